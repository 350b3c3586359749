//! How long jobs usually take, for those who ask when something will have ended. Pure.

use std::time::Duration;

/// Of so many ended jobs, the newest ones, the durations count.
const NEWEST: usize = 20;

/// What nine in ten of the newest jobs did not exceed; none without any. Newest first.
pub fn usual_duration(history: &[Duration]) -> Option<Duration> {
    let mut newest: Vec<Duration> = history.iter().take(NEWEST).copied().collect();
    newest.sort_unstable();
    let place = (newest.len() * 9).div_ceil(10).checked_sub(1)?;
    newest.get(place).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_job_in_ten_may_take_longer() {
        let seconds = |times: &[u64]| {
            let history: Vec<Duration> = times.iter().copied().map(Duration::from_secs).collect();
            usual_duration(&history).map(|usual| usual.as_secs())
        };
        assert_eq!(seconds(&[]), None);
        assert_eq!(seconds(&[7]), Some(7));
        assert_eq!(seconds(&[60, 5, 5, 5, 5, 5, 5, 5, 5, 6]), Some(6));
        let mut many = vec![5; 20];
        many.extend([900; 40]);
        assert_eq!(seconds(&many), Some(5), "those of long ago do not count");
    }
}
