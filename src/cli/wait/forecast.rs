//! When the last of the followed requests will probably end: from how fast they have ended so far,
//! and from how long batches usually take. Reads no clock.

use std::collections::VecDeque;
use std::time::Duration;

/// The rate is that of this span.
const WINDOW: Duration = Duration::from_secs(300);
/// Nothing is said about the rate before this.
const RATE_MIN: Duration = Duration::from_secs(5);

/// How many have ended by when.
#[derive(Debug, Default)]
pub(super) struct EndsSoFar {
    /// Time since the start, and how many had ended.
    seen: VecDeque<(Duration, i64)>,
}

impl EndsSoFar {
    /// Notes how many have ended by now.
    pub(super) fn note(&mut self, elapsed: Duration, ended: i64) {
        self.seen.push_back((elapsed, ended));
        // One that is older than the window stays: the rate is counted from it.
        while self.seen.len() > 2 && elapsed.saturating_sub(self.seen[1].0) >= WINDOW {
            self.seen.pop_front();
        }
    }

    /// Requests that end in a minute; none while that cannot be told.
    pub(super) fn per_minute(&self) -> Option<f64> {
        let (from, before) = self.seen.front()?;
        let (to, by_now) = self.seen.back()?;
        let span = to.saturating_sub(*from);
        if span < RATE_MIN || by_now <= before {
            return None;
        }
        Some((by_now - before) as f64 * 60.0 / span.as_secs_f64())
    }
}

/// What is left to be done.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Left {
    /// Requests that are queued.
    pub(super) queued: i64,
    /// None of them can be sent now.
    pub(super) is_all_held: bool,
    /// How long the batches on their way will take, if they take as long as usual.
    pub(super) of_batches: Option<Duration>,
    /// How long a batch of what is queued usually takes.
    pub(super) usual: Option<Duration>,
}

impl Left {
    /// How long it will take; none if nobody can tell.
    pub(super) fn expected(&self, per_minute: Option<f64>) -> Option<Duration> {
        if self.queued == 0 {
            return self.of_batches;
        }
        if self.is_all_held {
            return None;
        }
        let of_queue = match per_minute {
            Some(rate) => Duration::try_from_secs_f64(self.queued as f64 * 60.0 / rate).ok()?,
            None => self.usual?,
        };
        Some(of_queue.max(self.of_batches.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_rate_is_that_of_the_last_minutes() {
        let mut ends = EndsSoFar::default();
        ends.note(seconds(0), 0);
        assert_eq!(ends.per_minute(), None);
        ends.note(seconds(60), 120);
        assert_eq!(ends.per_minute(), Some(120.0));
        for minute in 2..20 {
            ends.note(seconds(minute * 60), 120);
        }
        assert_eq!(ends.per_minute(), None, "nothing has ended for long");
    }

    #[test]
    fn the_end_follows_from_the_rate_or_from_what_is_usual() {
        let left = Left {
            queued: 60,
            is_all_held: false,
            of_batches: Some(seconds(20)),
            usual: Some(seconds(45)),
        };
        assert_eq!(left.expected(Some(120.0)), Some(seconds(30)));
        assert_eq!(left.expected(Some(600.0)), Some(seconds(20)));
        assert_eq!(left.expected(None), Some(seconds(45)));
        let all_sent = Left { queued: 0, ..left };
        assert_eq!(all_sent.expected(Some(1.0)), Some(seconds(20)));
    }

    #[test]
    fn nobody_can_tell_the_end_of_what_is_held() {
        let held = Left {
            queued: 5,
            is_all_held: true,
            ..Left::default()
        };
        assert_eq!(held.expected(Some(60.0)), None);
        assert_eq!(Left::default().expected(None), None);
    }
}
