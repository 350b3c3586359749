//! Times for people: how long ago something was, or how far ahead it is. Reads no clock.

use std::time::Duration;

use crate::model::UtcMillis;

/// How times of the queue are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ShownTimes {
    /// As they are stored.
    Full,
    /// As seen from this moment: `5m ago`, `in 3h12m`.
    Ages(UtcMillis),
}

impl ShownTimes {
    /// A stored time; text that is none is shown as it is.
    pub(super) fn show(self, time: &str) -> String {
        let Self::Ages(now) = self else {
            return time.to_owned();
        };
        match time.parse::<UtcMillis>() {
            Ok(at) if at > now => format!("in {}", short_span(at.since(now))),
            Ok(at) => format!("{} ago", short_span(now.since(at))),
            Err(_) => time.to_owned(),
        }
    }

    /// As `show`; an absent time is an empty text.
    pub(super) fn show_some(self, time: Option<&String>) -> String {
        time.map(|time| self.show(time)).unwrap_or_default()
    }
}

/// Such as `45s`, `5m`, `3h12m`, `31h` or `6d`: what two or three digits can say.
pub(super) fn short_span(span: Duration) -> String {
    let seconds = span.as_secs();
    let minutes = seconds / 60;
    let hours = minutes / 60;
    match (seconds, hours) {
        (0..60, _) => format!("{seconds}s"),
        (_, 0) => format!("{minutes}m"),
        (_, 1..10) if minutes.is_multiple_of(60) => format!("{hours}h"),
        (_, 1..10) => format!("{hours}h{}m", minutes % 60),
        (_, 10..48) => format!("{hours}h"),
        _ => format!("{}d", hours / 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_as_many_digits_as_people_need() {
        let said = [0, 59, 60, 3599, 3600, 11_520, 36_000, 172_799, 172_800]
            .map(|seconds| short_span(Duration::from_secs(seconds)));
        assert_eq!(
            said,
            ["0s", "59s", "1m", "59m", "1h", "3h12m", "10h", "47h", "2d"]
        );
    }

    #[test]
    fn times_are_seen_from_now_unless_they_are_wanted_in_full() {
        let stored = "2026-01-31T22:00:00.000Z";
        let at: UtcMillis = stored.parse().expect("a time");
        assert_eq!(ShownTimes::Full.show(stored), stored);
        assert_eq!(
            ShownTimes::Ages(at + Duration::from_secs(300)).show(stored),
            "5m ago"
        );
        assert_eq!(
            ShownTimes::Ages(at.before(Duration::from_secs(300))).show(stored),
            "in 5m"
        );
        assert_eq!(ShownTimes::Ages(at).show("yesterday"), "yesterday");
        assert_eq!(ShownTimes::Ages(at).show_some(None), "");
    }
}
