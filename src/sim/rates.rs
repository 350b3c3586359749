//! Rolling rate windows. Counts calls; knows nothing of what they do.

use std::collections::VecDeque;
use std::time::Duration;

use crate::model::UtcMillis;

const WINDOW: Duration = Duration::from_secs(60);

/// The calls of one kind in the last minute.
#[derive(Debug, Default, Clone)]
pub(super) struct RateWindow {
    taken: VecDeque<UtcMillis>,
}

impl RateWindow {
    /// Takes one of `limit` places in the rolling minute that ends `now`; false if there is none. A
    /// limit of 0 lifts the rate.
    ///
    /// With `refused_count`, a refused call takes a place too, so that hammering keeps the window
    /// shut.
    pub(super) fn take(&mut self, now: UtcMillis, limit: u32, refused_count: bool) -> bool {
        if limit == 0 {
            return true;
        }
        let begin = now.before(WINDOW);
        while self.taken.front().is_some_and(|&at| at <= begin) {
            self.taken.pop_front();
        }
        let free = self.taken.len() < limit as usize;
        if free || refused_count {
            self.taken.push_back(now);
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_after_a_minute() {
        let mut window = RateWindow::default();
        let takes: Vec<bool> = [0, 1, 2, 59_999, 60_000, 60_000]
            .map(|ms| window.take(UtcMillis(ms), 2, false))
            .into();
        assert_eq!(takes, [true, true, false, false, true, false]);
    }

    #[test]
    fn refused_calls_keep_the_window_shut_when_they_count() {
        let mut window = RateWindow::default();
        assert!(window.take(UtcMillis(0), 1, true));
        assert!(!window.take(UtcMillis(30_000), 1, true));
        assert!(!window.take(UtcMillis(61_000), 1, true));
        assert!(window.take(UtcMillis(121_001), 1, true));
    }
}
