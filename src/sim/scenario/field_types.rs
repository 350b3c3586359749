//! Values of a scenario that check themselves while they are read, so that errors name their line.

use serde::{Deserialize, Deserializer};

use crate::sim::rng::Rng;

/// A probability, 0.0 to 1.0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chance(pub(in crate::sim) f64);

impl Chance {
    /// `p`, or the nearest of 0.0 and 1.0.
    pub fn clamped(p: f64) -> Self {
        Self(p.clamp(0.0, 1.0))
    }
}

impl<'de> Deserialize<'de> for Chance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let p = f64::deserialize(deserializer)?;
        if (0.0..=1.0).contains(&p) {
            return Ok(Self(p));
        }
        Err(serde::de::Error::custom(format!(
            "{p} is no chance: expected 0.0 to 1.0"
        )))
    }
}

/// A range of milliseconds, written `[least, most]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// The least.
    pub min_ms: u64,
    /// The most.
    pub max_ms: u64,
}

impl Span {
    pub(in crate::sim) fn draw_ms(self, rng: &mut Rng) -> u64 {
        rng.between(self.min_ms, self.max_ms)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let [min_ms, max_ms] = <[u64; 2]>::deserialize(deserializer)?;
        if min_ms <= max_ms {
            return Ok(Self { min_ms, max_ms });
        }
        Err(serde::de::Error::custom(format!(
            "[{min_ms}, {max_ms}] is no range: expected [least, most]"
        )))
    }
}

/// How a field that has no value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unset {
    /// The field is left out.
    Omitted,
    /// The field is null.
    Null,
}

impl Unset {
    /// `value` as a field of an answer: the outer `None` is left out, the inner one is null.
    pub(in crate::sim) fn field<T>(self, value: Option<T>) -> Option<Option<T>> {
        match (self, value) {
            (_, Some(value)) => Some(Some(value)),
            (Self::Null, None) => Some(None),
            (Self::Omitted, None) => None,
        }
    }
}
