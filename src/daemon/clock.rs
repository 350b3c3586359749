//! The time of day against the steady clock: notices that somebody has set the time, and by how
//! much.
//!
//! What the daemon remembers by the time of day then moves along: a wait of a minute stays a
//! minute. The store dates earlier calls as the present clock would have. Reads no clock and no row.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tracing::{info, warn};

use super::clock_check;
use crate::model::{Batch, BatchId, Now, Steady, UtcMillis};
use crate::store::LastClocks;

/// Between two looks at the clocks a difference of more than this was set by somebody, and is no
/// correction.
const STEP_MIN_MS: i64 = 2000;
/// Steps that are remembered, for what was stamped before them.
const STEPS_MAX: usize = 8;

/// The two clocks as they were last seen, and the steps since the start.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    last: Option<LastClocks>,
    /// When the clock was set, and by how many milliseconds; the newest step is the last.
    steps: VecDeque<(Steady, i64)>,
    /// By how much the times of batches are off whose call is being made: they were loaded before
    /// the clock was set.
    stale: BTreeMap<BatchId, i64>,
    /// Why nothing is sent by this clock.
    doubt: Option<String>,
}

impl Clocks {
    /// As they were when a daemon wrote last.
    pub(super) fn new(last: Option<LastClocks>) -> Self {
        Self {
            last,
            ..Self::default()
        }
    }

    /// True while no clock is right that says this.
    pub(super) fn doubts(&mut self, now: UtcMillis) -> bool {
        let doubt = clock_check::beyond(now);
        match (&doubt, &self.doubt) {
            (Some(doubt), None) => warn!("{doubt}"),
            (None, Some(_)) => info!("this machine's clock looks right again"),
            _ => {}
        }
        self.doubt = doubt;
        self.doubt.is_some()
    }

    /// Why nothing is sent by this clock, if so.
    pub(super) fn doubt(&self) -> Option<&str> {
        self.doubt.as_deref()
    }

    /// By how many milliseconds the time of day was set since the last look, below zero: back; none
    /// if it only went on. After a boot only that it was set back can be told: a clock that was set
    /// ahead looks like one that time has passed on.
    pub(super) fn step(&self, now: Now) -> Option<i64> {
        let last = self.last?;
        let passed = match last.steady {
            Some(steady) => now.steady.since(steady),
            None => now.utc.since(last.utc),
        };
        let passed = i64::try_from(passed.as_millis()).unwrap_or(i64::MAX);
        let step = now.utc.0.saturating_sub(last.utc.0).saturating_sub(passed);
        (step.saturating_abs() >= STEP_MIN_MS).then_some(step)
    }

    /// The clocks were looked at, and a step was acted upon.
    pub(super) fn seen(&mut self, Now { utc, steady }: Now) {
        let steady = Some(steady);
        self.last = Some(LastClocks { utc, steady });
    }

    /// This moment by the clock that was seen last, whatever the time of day was set to since.
    pub(super) fn dated(&self, now: Now) -> Now {
        let utc = self.last.map_or(now.utc, |last| last.dated(now));
        Now { utc, ..now }
    }

    /// Remembers a step, while the calls of the batches `in_progress` are being made.
    pub(super) fn stepped(&mut self, by_ms: i64, now: Steady, in_progress: &BTreeSet<BatchId>) {
        self.steps.push_back((now, by_ms));
        if self.steps.len() > STEPS_MAX {
            self.steps.pop_front();
        }
        for id in in_progress {
            *self.stale.entry(*id).or_default() += by_ms;
        }
    }

    /// Gives a batch whose call has ended the times that the present clock would have shown.
    pub(super) fn correct_returned(&mut self, batch: &mut Batch) {
        let by_ms = self.stale.remove(&batch.id).unwrap_or(0);
        batch.intent_at = batch.intent_at.moved(by_ms);
        batch.submitted_at = batch.submitted_at.map(|at| at.moved(by_ms));
        batch.look_until = batch.look_until.map(|at| at.moved(by_ms));
    }

    /// How much longer than `span` ago something may have been stamped by a clock that has been set
    /// ahead within `span`.
    pub(super) fn allowance(&self, span: Duration, now: Steady) -> Duration {
        let recent = self.steps.iter().rev();
        let recent = recent.take_while(|(at, _)| now.since(*at) < span);
        let since_then = recent.scan(0_i64, |sum, (_, by_ms)| {
            *sum = sum.saturating_add(*by_ms);
            Some(*sum)
        });
        let ahead_ms = since_then.max().unwrap_or(0);
        Duration::from_millis(u64::try_from(ahead_ms).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BatchState, PowerAction, Service, TargetName};

    const BEGIN: UtcMillis = UtcMillis(1_800_000_000_000);
    const HOUR_MS: i64 = 3_600_000;
    const HOUR: Duration = Duration::from_secs(3600);

    fn at(utc_seconds: i64, steady_seconds: u64) -> Now {
        Now {
            utc: BEGIN.moved(utc_seconds * 1000),
            steady: steady(steady_seconds),
        }
    }

    fn steady(seconds: u64) -> Steady {
        Steady(Duration::from_secs(seconds))
    }

    #[test]
    fn only_what_the_steady_clock_did_not_see_pass_is_a_step() {
        let mut clocks = Clocks::default();
        assert_eq!(clocks.step(at(0, 0)), None, "the first look");
        clocks.seen(at(0, 0));
        assert_eq!(
            clocks.step(at(86_400, 86_400)),
            None,
            "a machine that slept for a day"
        );
        assert_eq!(clocks.step(at(6, 5)), None, "a correction");
        assert_eq!(clocks.step(at(3605, 5)), Some(HOUR_MS));
        assert_eq!(clocks.step(at(-3595, 5)), Some(-HOUR_MS));
    }

    #[test]
    fn after_a_boot_only_a_clock_that_was_set_back_can_be_told() {
        let utc = BEGIN;
        let rebooted = Clocks::new(Some(LastClocks { utc, steady: None }));
        assert_eq!(rebooted.step(at(3600, 5)), None);
        assert_eq!(rebooted.step(at(-3600, 5)), Some(-HOUR_MS));
        assert_eq!(rebooted.step(at(-1, 5)), None, "a correction");
        assert_eq!(rebooted.dated(at(-3600, 5)), at(-3600, 5));
        let steady = Some(steady(100));
        let same_boot = Clocks::new(Some(LastClocks { utc, steady }));
        assert_eq!(same_boot.step(at(3600, 3700)), None);
        assert_eq!(same_boot.step(at(3700, 200)), Some(HOUR_MS));
        assert_eq!(same_boot.dated(at(3700, 200)), at(100, 200));
    }

    #[test]
    fn what_is_as_old_as_a_step_ahead_is_given_that_much_longer() {
        let mut clocks = Clocks::default();
        assert_eq!(clocks.allowance(HOUR, steady(0)), Duration::ZERO);
        clocks.stepped(HOUR_MS, steady(10), &BTreeSet::new());
        assert_eq!(clocks.allowance(HOUR, steady(20)), HOUR);
        assert_eq!(
            clocks.allowance(HOUR, steady(3610)),
            Duration::ZERO,
            "everything older has aged by the new clock"
        );
        clocks.stepped(-2 * HOUR_MS, steady(30), &BTreeSet::new());
        assert_eq!(clocks.allowance(HOUR, steady(40)), Duration::ZERO);
        clocks.stepped(3 * HOUR_MS, steady(50), &BTreeSet::new());
        assert_eq!(
            clocks.allowance(HOUR, steady(60)),
            3 * HOUR,
            "for what was stamped between the last two"
        );
        for _ in 0..STEPS_MAX {
            clocks.stepped(HOUR_MS, steady(70), &BTreeSet::new());
        }
        assert_eq!(clocks.allowance(HOUR, steady(80)), 8 * HOUR);
    }

    fn batch() -> Batch {
        Batch {
            id: BatchId(1),
            target: TargetName("default".into()),
            service: Service::Bms,
            action: PowerAction::Stop,
            state: BatchState::Tracking,
            job: None,
            intent_at: BEGIN,
            submitted_at: Some(BEGIN),
            looks: 0,
            doubts: 0,
            from_copy: false,
            server_count: 0,
            look_cause: None,
            look_until: Some(BEGIN),
            complaint: None,
            read_error: None,
            members: Vec::new(),
        }
    }

    #[test]
    fn a_clock_that_cannot_be_right_is_doubted_until_it_can() {
        let mut clocks = Clocks::default();
        assert!(clocks.doubts(UtcMillis(0)));
        assert!(clocks.doubt().is_some_and(|why| why.contains("clock")));
        assert!(!clocks.doubts(BEGIN));
        assert_eq!(clocks.doubt(), None);
    }

    #[test]
    fn a_batch_that_was_loaded_before_a_step_is_corrected_once() {
        let mut clocks = Clocks::default();
        let open = BTreeSet::from([BatchId(1)]);
        for _ in 0..2 {
            clocks.stepped(HOUR_MS, steady(0), &open);
        }
        let mut returned = batch();
        clocks.correct_returned(&mut returned);
        let two_hours = BEGIN.moved(2 * HOUR_MS);
        assert_eq!(returned.intent_at, two_hours);
        assert_eq!(returned.submitted_at, Some(two_hours));
        assert_eq!(returned.look_until, Some(two_hours));
        let mut again = batch();
        clocks.correct_returned(&mut again);
        assert_eq!(again, batch());
    }
}
