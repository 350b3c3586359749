//! The time of day against the steady clock: notices that somebody has set the time, and by how
//! much.
//!
//! What the daemon remembers by the time of day then moves along: a wait of a minute stays a
//! minute. Reads no clock and no row.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tracing::{info, warn};

use super::clock_check;
use crate::model::{Batch, BatchId, Now, Steady, UtcMillis};

/// Between two looks at the clocks a difference of more than this was set by somebody, and is no
/// correction.
const STEP_MIN_MS: i64 = 2000;
/// Steps that are remembered, for what was stamped before them.
const STEPS_MAX: usize = 8;

/// Somebody has set the clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClockStep {
    /// Milliseconds; below zero: it was set back.
    pub(super) by_ms: i64,
    /// When that was noticed.
    pub(super) at: Now,
}

/// What the clock showed between two steps.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    /// None: whatever it showed before.
    from: Option<UtcMillis>,
    to: UtcMillis,
    /// By how much the clock has been set since, in milliseconds.
    off_ms: i64,
}

impl Stretch {
    fn showed(&self, at: UtcMillis) -> bool {
        self.from.is_none_or(|from| from <= at) && at <= self.to
    }

    /// A clock that is back where it was is not off.
    fn off_ms(&self) -> i64 {
        if self.off_ms.saturating_abs() < STEP_MIN_MS {
            0
        } else {
            self.off_ms
        }
    }
}

/// The two clocks as they were last seen, and the steps since the start.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    last: Option<Now>,
    /// What the clock showed before each step.
    stretches: VecDeque<Stretch>,
    /// The first time that it showed after the last step.
    stepped_to: Option<UtcMillis>,
    stepped_at: Option<Steady>,
    /// When this run began, as the present clock would have shown it.
    began: Option<UtcMillis>,
    /// The time of day when the clock was last found to have been set back, or at the start.
    right_since: Option<UtcMillis>,
    /// By how much the times of batches that were open before a step are off.
    off: BTreeMap<BatchId, i64>,
    /// The same for batches whose call was being made: they were loaded before the step.
    stale: BTreeMap<BatchId, i64>,
    /// Why nothing is sent by this clock.
    doubt: Option<String>,
}

impl Clocks {
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

    /// By how many milliseconds the time of day has been set since the last look; none if it only
    /// went on.
    pub(super) fn step(&self, now: Now) -> Option<i64> {
        let last = self.last?;
        let passed = i64::try_from(now.steady.since(last.steady).as_millis()).unwrap_or(i64::MAX);
        let step = now.utc.0.saturating_sub(last.utc.0).saturating_sub(passed);
        (step.saturating_abs() >= STEP_MIN_MS).then_some(step)
    }

    /// The run begins; what an earlier one wrote has been looked at.
    pub(super) fn begin(&mut self, now: Now) {
        self.began = Some(now.utc);
        self.seen(now);
    }

    /// The clocks were looked at, and a step was acted upon.
    pub(super) fn seen(&mut self, now: Now) {
        self.right_since.get_or_insert(now.utc);
        self.last = Some(now);
    }

    /// Remembers a step: `open` are the batches that are not done, those of them that are
    /// `in_progress` were loaded already.
    pub(super) fn stepped(
        &mut self,
        step: ClockStep,
        open: &[BatchId],
        in_progress: &BTreeSet<BatchId>,
    ) {
        self.note_step(step);
        let by_ms = step.by_ms;
        let mut off = BTreeMap::new();
        for id in open {
            let before = self.off.get(id).copied().unwrap_or(0);
            off.insert(*id, before.saturating_add(by_ms));
        }
        self.off = off;
        for id in in_progress {
            *self.stale.entry(*id).or_default() += by_ms;
        }
    }

    fn note_step(&mut self, step: ClockStep) {
        let ClockStep { by_ms, at: now } = step;
        self.stepped_at = Some(now.steady);
        self.began = self.began.map(|at| at.moved(by_ms));
        let right_since = self
            .right_since
            .filter(|_| by_ms > 0)
            .map(|at| at.moved(by_ms));
        self.right_since = Some(right_since.unwrap_or(now.utc));
        self.stretches.push_back(Stretch {
            from: self.stepped_to,
            to: now.utc.moved(-by_ms),
            off_ms: 0,
        });
        if self.stretches.len() > STEPS_MAX {
            self.stretches.pop_front();
            if let Some(oldest) = self.stretches.front_mut() {
                oldest.from = None;
            }
        }
        for stretch in &mut self.stretches {
            stretch.off_ms = stretch.off_ms.saturating_add(by_ms);
        }
        // The clock may have been set just after the last look at it.
        let stepped_to = self.last.map(|last| last.utc.moved(by_ms));
        self.stepped_to = Some(stepped_to.unwrap_or(now.utc));
    }

    /// A batch as it was just read from the queue, with its times as the present clock would have
    /// shown them.
    pub(super) fn correct_loaded(&mut self, batch: &mut Batch, now: UtcMillis) {
        // Decided once: later such a time need not lie ahead any more.
        let intent_at = self.corrected_of(batch.id, batch.intent_at, now);
        match intent_at.0 - batch.intent_at.0 {
            0 => self.off.remove(&batch.id),
            off_ms => self.off.insert(batch.id, off_ms),
        };
        batch.intent_at = intent_at;
        batch.submitted_at = batch
            .submitted_at
            .map(|at| self.corrected_of(batch.id, at, now));
    }

    /// A time of a batch as it was just read from the queue, as the present clock would have shown
    /// it. What would lie ahead of `now` was stamped either after a step that had not been noticed
    /// yet, or by an earlier run, and then before this one began.
    pub(super) fn corrected_of(&self, id: BatchId, at: UtcMillis, now: UtcMillis) -> UtcMillis {
        let moved = at.moved(self.off.get(&id).copied().unwrap_or(0));
        if moved <= now {
            moved
        } else if self.is_of_present_clock(at, now) {
            at
        } else {
            self.began.unwrap_or(now).min(now)
        }
    }

    /// True if the clock may have shown this since the last step.
    fn is_of_present_clock(&self, at: UtcMillis, now: UtcMillis) -> bool {
        at <= now && self.stepped_to.is_none_or(|from| from <= at)
    }

    /// Corrects the times of a batch whose call has ended. One that is accepted only now is stamped
    /// by the present clock.
    pub(super) fn correct_returned(&mut self, batch: &mut Batch, accepted: bool) {
        let by_ms = self.stale.remove(&batch.id).unwrap_or(0);
        batch.intent_at = batch.intent_at.moved(by_ms);
        batch.submitted_at = batch.submitted_at.map(|at| at.moved(by_ms));
        batch.look_until = batch.look_until.map(|at| at.moved(by_ms));
        if accepted {
            self.off.remove(&batch.id);
        }
    }

    /// What was stamped `at`, as the present clock would have shown it: if it may have been stamped
    /// before or after a step, then after it. What no clock of this run can have shown was stamped by
    /// an earlier run if it lies ahead of `now`, and stays as it is otherwise.
    pub(super) fn corrected(&self, at: UtcMillis, now: UtcMillis) -> UtcMillis {
        let before = self.stretches.iter().filter(|stretch| stretch.showed(at));
        let moved = before.map(|stretch| at.moved(stretch.off_ms()));
        let newest = moved
            .chain(self.is_of_present_clock(at, now).then_some(at))
            .max();
        let otherwise = if at > now {
            self.right_since.unwrap_or(now)
        } else {
            at
        };
        newest.unwrap_or(otherwise).min(now)
    }

    /// How much longer than `span` ago something may have been stamped by a clock that has been set
    /// ahead within `span`.
    pub(super) fn allowance(&self, span: Duration, steady: Steady) -> Duration {
        let recent = self.stepped_at.is_some_and(|at| steady.since(at) < span);
        let ahead_ms = self.stretches.iter().map(Stretch::off_ms).max();
        if recent {
            Duration::from_millis(u64::try_from(ahead_ms.unwrap_or(0)).unwrap_or(0))
        } else {
            Duration::ZERO
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BatchState, PowerAction, Service, TargetName};

    const BEGIN: UtcMillis = UtcMillis(1_800_000_000_000);

    fn at(utc_seconds: i64, steady_seconds: u64) -> Now {
        Now {
            utc: BEGIN.moved(utc_seconds * 1000),
            steady: Steady(Duration::from_secs(steady_seconds)),
        }
    }

    fn step(by_ms: i64, at: Now) -> ClockStep {
        ClockStep { by_ms, at }
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
        assert_eq!(clocks.step(at(3605, 5)), Some(3_600_000));
        assert_eq!(clocks.step(at(-3595, 5)), Some(-3_600_000));
    }

    #[test]
    fn only_times_stamped_before_a_step_ahead_of_the_clock_are_moved() {
        let mut clocks = Clocks::default();
        clocks.seen(at(0, 0));
        clocks.stepped(
            step(3_600_000, at(3600, 0)),
            &[BatchId(1)],
            &BTreeSet::new(),
        );
        let later = BEGIN + Duration::from_secs(3601);
        assert_eq!(
            clocks.corrected(BEGIN, later),
            BEGIN + Duration::from_secs(3600)
        );
        assert_eq!(clocks.corrected(later, later), later);
        let day = Duration::from_secs(86_400);
        assert_eq!(
            clocks.allowance(day, Steady(Duration::from_secs(10))),
            Duration::from_secs(3600)
        );
        assert_eq!(
            clocks.allowance(day, Steady(day)),
            Duration::ZERO,
            "everything older has aged by the new clock"
        );
    }

    #[test]
    fn what_lies_ahead_was_stamped_before_the_clock_was_set_back() {
        let mut clocks = Clocks::default();
        clocks.stepped(step(-3_600_000, at(-3600, 0)), &[], &BTreeSet::new());
        let now = at(-3590, 10).utc;
        assert_eq!(clocks.corrected(at(-5, 0).utc, now), at(-3605, 0).utc);
        assert_eq!(clocks.corrected(at(-3595, 5).utc, now), at(-3595, 5).utc);
        clocks.stepped(step(-60_000, at(-3650, 10)), &[], &BTreeSet::new());
        assert_eq!(
            clocks.corrected(at(-5, 0).utc, at(-3650, 10).utc),
            at(-3665, 0).utc
        );
    }

    #[test]
    fn a_clock_set_ahead_and_back_again_leaves_no_trace() {
        let mut clocks = Clocks::default();
        clocks.stepped(step(3_600_000, at(3600, 0)), &[], &BTreeSet::new());
        clocks.stepped(step(-3_600_500, at(10, 10)), &[], &BTreeSet::new());
        for (stamped, truly) in [(-5, -5_000), (3605, 4_500), (12, 12_000)] {
            assert_eq!(
                clocks.corrected(at(stamped, 0).utc, at(20, 20).utc),
                BEGIN.moved(truly),
                "{stamped}"
            );
        }
    }

    #[test]
    fn what_is_dated_later_than_now_happened_before_the_clock_was_set_back() {
        let mut clocks = Clocks::default();
        clocks.seen(at(0, 0));
        let ahead = BEGIN + Duration::from_secs(20 * 3600);
        assert_eq!(
            clocks.corrected(ahead, at(30, 30).utc),
            BEGIN,
            "by an earlier run, before this one began"
        );
        clocks.stepped(step(-3_600_000, at(-3500, 100)), &[], &BTreeSet::new());
        assert_eq!(
            clocks.corrected(BEGIN, at(-3400, 200).utc),
            at(-3600, 0).utc
        );
        clocks.stepped(step(7_200_000, at(3800, 200)), &[], &BTreeSet::new());
        assert_eq!(
            clocks.corrected(ahead, at(3900, 300).utc),
            at(3700, 100).utc,
            "a later step moves that along"
        );
    }

    const HOUR_MS: i64 = 3_600_000;

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
    fn times_of_open_batches_move_with_each_step_until_they_are_stamped_anew() {
        let mut clocks = Clocks::default();
        let open = [BatchId(1)];
        for _ in 0..2 {
            clocks.stepped(step(HOUR_MS, at(0, 0)), &open, &BTreeSet::from(open));
        }
        let two_hours = BEGIN.moved(2 * HOUR_MS);
        let mut loaded = batch();
        clocks.correct_loaded(&mut loaded, two_hours);
        assert_eq!(loaded.intent_at, two_hours);
        assert_eq!(loaded.submitted_at, Some(two_hours));

        let mut returned = batch();
        clocks.correct_returned(&mut returned, true);
        assert_eq!(returned.intent_at, two_hours);
        assert_eq!(returned.submitted_at, Some(two_hours));
        assert_eq!(returned.look_until, Some(two_hours));

        let mut again = batch();
        clocks.correct_returned(&mut again, false);
        clocks.correct_loaded(&mut again, two_hours);
        assert_eq!(again, batch(), "nothing is moved twice");
    }

    #[test]
    fn a_batch_that_an_earlier_run_dated_ahead_is_as_old_as_this_run() {
        let mut clocks = Clocks::default();
        clocks.begin(at(-90_000, 0));
        let mut loaded = batch();
        clocks.correct_loaded(&mut loaded, at(-89_990, 10).utc);
        assert_eq!(loaded.intent_at, at(-90_000, 0).utc);
        assert_eq!(loaded.submitted_at, Some(at(-90_000, 0).utc));
        let set_back = step(-90_000_000, at(-179_980, 20));
        clocks.stepped(set_back, &[BatchId(1)], &BTreeSet::new());
        let mut loaded = batch();
        clocks.correct_loaded(&mut loaded, at(-179_970, 30).utc);
        assert_eq!(loaded.intent_at, at(-180_000, 0).utc);
    }

    #[test]
    fn a_batch_that_was_stamped_before_a_step_ahead_was_noticed_is_not_dated_ahead() {
        let mut clocks = Clocks::default();
        clocks.begin(at(0, 0));
        let stamped = at(3601, 1).utc;
        clocks.stepped(step(HOUR_MS, at(3602, 2)), &[BatchId(1)], &BTreeSet::new());
        let now = at(3603, 3).utc;
        assert_eq!(clocks.corrected_of(BatchId(1), stamped, now), stamped);
    }

    #[test]
    fn what_was_stamped_after_a_step_ahead_stays() {
        let mut clocks = Clocks::default();
        clocks.stepped(step(HOUR_MS, at(3600, 0)), &[], &BTreeSet::new());
        let stamped = at(3605, 5).utc;
        assert_eq!(clocks.corrected(stamped, at(90_000, 86_400).utc), stamped);
    }

    #[test]
    fn what_is_no_longer_ahead_is_moved_back_no_further() {
        let mut clocks = Clocks::default();
        for _ in 0..2 {
            clocks.stepped(step(-60_000, at(-60, 0)), &[], &BTreeSet::new());
        }
        let now = at(-50, 10).utc;
        assert_eq!(clocks.corrected(BEGIN, now), at(-60, 0).utc);
    }

    #[test]
    fn what_was_stamped_before_steps_both_ways_is_moved_by_all_of_them() {
        let mut clocks = Clocks::default();
        clocks.seen(at(0, 0));
        clocks.stepped(step(-7_200_000, at(-7198, 2)), &[], &BTreeSet::new());
        clocks.seen(at(-7198, 2));
        clocks.stepped(step(3000, at(-7187, 10)), &[], &BTreeSet::new());
        clocks.seen(at(-7187, 10));
        clocks.stepped(step(-600_000, at(-7784, 13)), &[], &BTreeSet::new());
        let now = at(-7777, 20).utc;
        assert_eq!(clocks.corrected(at(1, 0).utc, now), at(-7796, 0).utc);
        assert_eq!(clocks.corrected(at(-7195, 0).utc, now), at(-7792, 0).utc);
        assert_eq!(clocks.corrected(at(-7186, 0).utc, now), at(-7786, 0).utc);
    }

    #[test]
    fn the_last_eight_steps_are_remembered() {
        let mut clocks = Clocks::default();
        for hour in 1..=9 {
            let now = at(hour * 3600, 0);
            clocks.stepped(step(HOUR_MS, now), &[], &BTreeSet::new());
        }
        let now = at(10 * 3600, 3600).utc;
        assert_eq!(clocks.corrected(BEGIN, now), BEGIN.moved(8 * HOUR_MS));
    }
}
