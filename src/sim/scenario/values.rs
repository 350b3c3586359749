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
        Err(serde::de::Error::custom(format!("{p} is no chance: expected 0.0 to 1.0")))
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
        Err(serde::de::Error::custom(format!("[{min_ms}, {max_ms}] is no range: expected [least, most]")))
    }
}
