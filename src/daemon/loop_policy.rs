//! What the loop does next: how long it waits for news after a round, how many answers it stores
//! before the next one, and the steps of a stop. Pure: makes no call and reads no clock.
//!
//! `Loop` carries these decisions out, and so does the simulation, under a virtual clock.

use std::time::Duration;

use crate::model::{Steady, UtcMillis};
use crate::store::StoreError;

/// How often the queue is checked without a notification, in case one was missed.
pub const SAFETY_INTERVAL: Duration = Duration::from_secs(5);
/// Answers stored between two rounds.
const ANSWERS_A_TURN: usize = 4;
/// The first wait after the database failed; doubles up to `SAFETY_INTERVAL`.
const TROUBLE_WAIT: Duration = Duration::from_millis(250);
/// How long a stop waits for answers that cannot be stored.
const UNSAVED_PATIENCE: Duration = Duration::from_secs(30);

/// The loop of a daemon that serves: a round, a wait for news, a round.
#[derive(Debug, Default)]
pub struct LoopPolicy {
    /// The present wait, while the database fails.
    trouble: Option<Duration>,
    /// Answers taken in since the last round.
    answers: usize,
}

impl LoopPolicy {
    /// How long to wait for news after a round that was begun at `now`: until `wake_at`, if a time
    /// is known, and never for longer than [`SAFETY_INTERVAL`].
    pub fn after_round(&mut self, wake_at: Option<UtcMillis>, now: UtcMillis) -> Duration {
        self.answers = 0;
        self.trouble = None;
        wake_at
            .map_or(SAFETY_INTERVAL, |at| at.since(now))
            .min(SAFETY_INTERVAL)
    }

    /// How long to wait after a round that `error` ended early; longer each time. None: no waiting
    /// helps, and the daemon ends.
    pub fn after_failed_round(&mut self, error: &StoreError) -> Option<Duration> {
        self.answers = 0;
        if !error.is_passing() {
            return None;
        }
        let wait = self
            .trouble
            .map_or(TROUBLE_WAIT, |wait| (wait * 2).min(SAFETY_INTERVAL));
        self.trouble = Some(wait);
        Some(wait)
    }

    /// True if the last round was ended early.
    pub fn is_in_trouble(&self) -> bool {
        self.trouble.is_some()
    }

    /// Takes note of an answer that was taken in.
    pub fn answer_taken(&mut self) {
        self.answers += 1;
    }

    /// False if a round comes before the next answer.
    pub fn takes_answers(&self) -> bool {
        self.answers < ANSWERS_A_TURN
    }
}

/// An orderly stop. From its beginning no intent is made, no call begins and reads are cut short.
#[derive(Debug, Default)]
pub struct Stop {
    /// When it no longer waits for the database; none before the calls have ended.
    patience_ends: Option<Steady>,
}

/// The next step of a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopStep {
    /// Wait for the calls that are being made.
    AwaitCalls,
    /// Store the answers that wait to be stored.
    Save,
    /// Nothing is left to do.
    End,
}

/// What a stop does about answers that could not be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsaved {
    /// Try again after this wait.
    TryAgain(Duration),
    /// End without them: the next start asks again for what was read.
    Leave,
    /// End with the error: what a submit call was told is lost.
    GiveUp,
}

impl Stop {
    /// What to do with this many calls being made and answers that wait to be stored.
    pub fn next(&mut self, calls: usize, unsaved: usize, now: Steady) -> StopStep {
        if calls > 0 {
            return StopStep::AwaitCalls;
        }
        if unsaved == 0 {
            return StopStep::End;
        }
        self.patience_ends
            .get_or_insert(Steady(now.0 + UNSAVED_PATIENCE));
        StopStep::Save
    }

    /// What to do about a save that failed, with this many answers to submit calls among those that
    /// are left.
    pub fn after_failed_save(&self, unsaved_submits: usize, now: Steady) -> Unsaved {
        if unsaved_submits == 0 {
            Unsaved::Leave
        } else if self.patience_ends.is_some_and(|end| now >= end) {
            Unsaved::GiveUp
        } else {
            Unsaved::TryAgain(TROUBLE_WAIT)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UtcMillis = UtcMillis(1_800_000_000_000);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_wait_ends_when_something_is_due_and_after_five_seconds_at_the_latest() {
        let mut policy = LoopPolicy::default();
        assert_eq!(policy.after_round(Some(NOW + seconds(2)), NOW), seconds(2));
        assert_eq!(policy.after_round(Some(NOW + seconds(9)), NOW), seconds(5));
        assert_eq!(policy.after_round(None, NOW), seconds(5));
        let past = NOW.before(seconds(1));
        assert_eq!(policy.after_round(Some(past), NOW), Duration::ZERO);
    }

    #[test]
    fn trouble_is_waited_out_for_longer_each_time_until_it_ends() {
        let mut policy = LoopPolicy::default();
        let waits: Vec<u128> = (0..7)
            .filter_map(|_| policy.after_failed_round(&StoreError::Busy))
            .map(|wait| wait.as_millis())
            .collect();
        assert_eq!(waits, [250, 500, 1_000, 2_000, 4_000, 5_000, 5_000]);
        assert!(policy.is_in_trouble());
        policy.after_round(None, NOW);
        assert!(!policy.is_in_trouble());
        let again = policy.after_failed_round(&StoreError::Busy);
        assert_eq!(again, Some(Duration::from_millis(250)));
    }

    #[test]
    fn after_four_answers_a_round_has_its_turn() {
        let mut policy = LoopPolicy::default();
        for _ in 0..4 {
            assert!(policy.takes_answers());
            policy.answer_taken();
        }
        assert!(!policy.takes_answers());
        policy.after_round(None, NOW);
        assert!(policy.takes_answers());
    }

    #[test]
    fn a_stop_waits_for_calls_then_for_the_database_then_gives_up() {
        let mut stop = Stop::default();
        let at = |s: u64| Steady(seconds(s));
        assert_eq!(stop.next(1, 1, at(0)), StopStep::AwaitCalls);
        assert_eq!(stop.next(0, 1, at(100)), StopStep::Save);
        let again = Unsaved::TryAgain(TROUBLE_WAIT);
        assert_eq!(stop.after_failed_save(1, at(129)), again);
        assert_eq!(stop.after_failed_save(0, at(129)), Unsaved::Leave);
        assert_eq!(stop.next(0, 1, at(130)), StopStep::Save);
        assert_eq!(stop.after_failed_save(1, at(130)), Unsaved::GiveUp);
        assert_eq!(stop.next(0, 0, at(130)), StopStep::End);
    }
}
