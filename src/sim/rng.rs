//! Seeded chance: the same seed and the same calls give the same world. Stays away from the
//! machine's own entropy and clock.

use crate::model::{SPLITMIX_STEP, splitmix};

/// SplitMix64: tiny, fast and even enough for faults, durations and schedules; not for secrets.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// A stream of its own for each `(seed, purpose)`.
    pub fn new(seed: u64, purpose: &str) -> Self {
        let mixed = purpose.bytes().fold(seed, |state, byte| {
            (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(mixed)
    }

    /// The next number of the stream.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(SPLITMIX_STEP);
        splitmix(self.0)
    }

    pub(super) fn next_u128(&mut self) -> u128 {
        (u128::from(self.next_u64()) << 64) | u128::from(self.next_u64())
    }

    /// 32 hex digits, as job and request ids are printed.
    pub(super) fn hex32(&mut self) -> String {
        format!("{:032x}", self.next_u128())
    }

    /// A whole number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        match high.saturating_sub(low).checked_add(1) {
            Some(width) => low + self.next_u64() % width,
            None => self.next_u64(),
        }
    }

    /// One of them, each as likely; `None` if there are none.
    pub fn pick<'a, T>(&mut self, among: &'a [T]) -> Option<&'a T> {
        let last = u64::try_from(among.len().checked_sub(1)?).ok()?;
        among.get(usize::try_from(self.between(0, last)).ok()?)
    }

    /// True with probability `p`; never for 0.0, always for 1.0.
    pub fn happens(&mut self, p: f64) -> bool {
        const STEPS: f64 = (1_u64 << 53) as f64;
        ((self.next_u64() >> 11) as f64) / STEPS < p
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_itself_and_purposes_differ() {
        let draw = |seed, purpose| Rng::new(seed, purpose).next_u64();
        assert_eq!(draw(7, "faults"), draw(7, "faults"));
        assert_ne!(draw(7, "faults"), draw(7, "servers"));
        assert_ne!(draw(7, "faults"), draw(8, "faults"));
    }

    #[test]
    fn draws_stay_inside_their_bounds() {
        let mut rng = Rng::new(1, "bounds");
        assert!((0..1000).all(|_| (10..=12).contains(&rng.between(10, 12))));
        assert!((0..1000).all(|_| !rng.happens(0.0) && rng.happens(1.0)));
        assert!((0..1000).all(|_| rng.pick(&[7, 8]).is_some()) && rng.pick::<u8>(&[]).is_none());
        let hits = (0..10_000).filter(|_| rng.happens(0.25)).count();
        assert!((2_200..2_800).contains(&hits), "{hits} of 10000 at 0.25");
    }
}
