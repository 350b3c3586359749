//! Chance for schedules: the simulated cloud's stream of numbers, in the units of a schedule.

use std::time::Duration;

use poweryard::sim;

/// The same seed gives the same run.
#[derive(Debug, Clone)]
pub(super) struct Rng(sim::Rng);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(sim::Rng::new(seed, "schedule"))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A whole number from `low` to `high`, both included.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0.between(low, high)
    }

    /// True in so many of a thousand cases.
    pub(super) fn permille(&mut self, chance: u64) -> bool {
        self.next() % 1000 < chance
    }

    /// A span from `low` to `high` milliseconds.
    pub(super) fn millis(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.between(low, high))
    }

    /// One of them; none of an empty slice.
    pub(super) fn pick<'a, T>(&mut self, among: &'a [T]) -> Option<&'a T> {
        self.0.pick(among)
    }

    /// A place in a list of `len` items, which is not empty.
    pub(super) fn index(&mut self, len: usize) -> usize {
        (self.next() % len.max(1) as u64) as usize
    }
}
