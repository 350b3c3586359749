//! Points in time as the queue stores them. Reads no clock.

use std::fmt;
use std::ops::Add;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time in whole milliseconds since 1970-01-01 UTC; written `YYYY-MM-DDTHH:MM:SS.mmmZ`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, utoipa::ToSchema)]
#[schema(value_type = String, format = DateTime)]
pub struct UtcMillis(pub i64);

/// Text that is not a time in the queue's own form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a time such as 2026-01-31T22:00:00.000Z")]
pub struct NotATime(pub String);

impl UtcMillis {
    /// How long ago `earlier` was; zero if it lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// This moment, moved by this many milliseconds; negative: back.
    pub fn moved(self, by_ms: i64) -> Self {
        Self(self.0.saturating_add(by_ms))
    }

    /// The nearest time that the queue can store, from the year 2000 to the end of 2099.
    pub fn storable(self) -> Self {
        Self(self.0.clamp(946_684_800_000, 4_102_444_799_999))
    }

    /// This moment less `span`.
    pub fn before(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)),
        )
    }
}

/// A point on a clock that only goes forward, counted from the machine's boot. Nobody can set it, and
/// it means nothing after the next boot: spans that prove something are measured on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Steady(pub Duration);

impl Steady {
    /// From milliseconds; below zero counts as zero.
    pub fn from_millis(ms: i64) -> Self {
        Self(Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// This moment, on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The time of day: for what is stored and shown.
    pub utc: UtcMillis,
    /// For how long something has lasted.
    pub steady: Steady,
}

impl Add<Duration> for UtcMillis {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)),
        )
    }
}

impl fmt::Display for UtcMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let low = Timestamp::MIN.as_millisecond();
        let high = Timestamp::MAX.as_millisecond();
        let time = Timestamp::from_millisecond(self.0.clamp(low, high)).map_err(|_| fmt::Error)?;
        write!(f, "{time:.3}")
    }
}

impl FromStr for UtcMillis {
    type Err = NotATime;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<Timestamp>()
            .map(|time| Self(time.as_millisecond()))
            .map_err(|_| NotATime(text.to_owned()))
    }
}

impl Serialize for UtcMillis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UtcMillis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_with_three_digits_and_z_and_read_back() {
        let text = "2026-01-31T22:00:00.000Z";
        let time: UtcMillis = text.parse().expect("a valid time");
        assert_eq!(time.to_string(), text);
        assert_eq!(
            (time + Duration::from_millis(7)).to_string(),
            "2026-01-31T22:00:00.007Z"
        );
    }

    #[test]
    fn spans_saturate_instead_of_wrapping() {
        let time = UtcMillis(5);
        assert_eq!(time.since(UtcMillis(9)), Duration::ZERO);
        assert_eq!((time + Duration::MAX).0, i64::MAX);
    }
}
