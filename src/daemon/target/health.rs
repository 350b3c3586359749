//! Is this target well? What the end of a call means for the calls after it.
//!
//! Owns the pace of submit calls, the wait between reads, and which actions need a probe. Pure:
//! writes no row, and returns what follows for `holds`. Who is held for a refused key is decided
//! in `keys`.

use std::collections::BTreeSet;
use std::time::Duration;

use super::refusals::CREDENTIALS_HOLD;
use crate::model::{CallError, Fault, Hold, HoldKind, PowerAction, TargetName, UtcMillis};
use crate::pace::{Pace, Reads};
use crate::store::NotedPace;

/// What a call says if the cloud refused its key.
pub(super) const REFUSED: &str = "the cloud refuses the credentials";
/// A wrong endpoint or project does not fix itself. Asking this often notices that somebody fixed
/// it.
const CONFIGURATION_HOLD: Duration = Duration::from_secs(5 * 60);

/// See the module.
#[derive(Debug)]
pub(super) struct Health {
    target: TargetName,
    pace: Pace,
    /// When the target may be asked again, if the cloud throttled a read.
    reads: Reads,
    /// Actions whose last call did not arrive, as far as we know: the next one carries a single
    /// server.
    probe_next: BTreeSet<PowerAction>,
    /// A breaker hold of ours may be in the table.
    breaker_held: bool,
}

/// What the end of a call means for the calls after it.
#[derive(Debug)]
pub(in crate::daemon) enum Consequence {
    /// Nothing.
    Nothing,
    /// The target answers: its breaker hold is over.
    Recovered,
    /// Calls are held.
    Held(Hold),
    /// Reads are held, and new calls too if the cloud named the wait: nobody could see meanwhile
    /// what becomes of them.
    ReadsHeld {
        /// What keeps new calls back.
        hold: Option<Hold>,
        /// Reads were not held before.
        is_news: bool,
    },
    /// The cloud refused the key: all targets that use it are to be held.
    KeyRefused {
        /// The sentence for `holds`.
        reason: String,
    },
}

impl Health {
    /// A target with this pace, about which an earlier run has noted something, or nothing.
    pub(super) fn new(target: TargetName, pace: Pace, noted: Option<NotedPace>) -> Self {
        let mut health = Self {
            target,
            pace,
            reads: Reads::default(),
            probe_next: BTreeSet::new(),
            breaker_held: true,
        };
        if let Some(noted) = noted {
            health.pace.resume(noted.rate, noted.throttles);
            health.reads = Reads::resumed(noted.reads_until);
        }
        if health.is_in_trouble() {
            health.probe_next.extend(PowerAction::ALL);
        }
        health
    }

    /// What the next start goes on with.
    pub(super) fn noted(&self) -> NotedPace {
        NotedPace {
            rate: self.pace.rate(),
            throttles: self.pace.throttles(),
            reads_until: self.reads.until(),
        }
    }

    /// True from a throttled or failed submit call until one is answered.
    pub(super) fn is_in_trouble(&self) -> bool {
        self.pace.throttles() > 0
    }

    /// True while it is in doubt whether calls for this action arrive: one server is enough to
    /// find out.
    pub(super) fn needs_probe(&self, action: PowerAction) -> bool {
        self.probe_next.contains(&action)
    }

    /// None if a submit call may leave now, else when to ask again.
    pub(super) fn submit_wait(&mut self, now: UtcMillis) -> Option<UtcMillis> {
        self.pace.wait(now)
    }

    /// None if the target may be asked now, else when.
    pub(super) fn read_wait(&self, now: UtcMillis) -> Option<UtcMillis> {
        self.reads.wait(now)
    }

    /// A submit call leaves.
    pub(super) fn submit_started(&mut self) {
        self.pace.call_started();
    }

    /// A submit call has ended, however it went.
    pub(super) fn submit_ended(&mut self, now: UtcMillis) {
        self.pace.call_ended(now);
    }

    /// Applies a new configured rate.
    pub(super) fn reconfigure(&mut self, submits_per_minute: u32) {
        self.pace.reconfigure(submits_per_minute);
    }

    /// Somebody has perhaps had a limit raised: a call and a read find out.
    pub(super) fn try_again(&mut self) {
        self.pace.unblock();
        self.reads = Reads::default();
    }

    /// The clock was moved by this many milliseconds.
    pub(super) fn move_times(&mut self, by_ms: i64) {
        self.pace.moved(by_ms);
        self.reads.moved(by_ms);
    }

    /// What the end of a submit call means for the next ones.
    pub(super) fn after_submit(
        &mut self,
        action: PowerAction,
        error: Option<&CallError>,
        now: UtcMillis,
    ) -> Consequence {
        match error {
            None => self.answered(action, now),
            Some(error) if matches!(error.fault, Fault::Refused(_)) => self.answered(action, now),
            Some(error) => self.hold_back(Some(action), error, now),
        }
    }

    /// What the end of a read means. Refused credentials concern every call. A throttled read
    /// holds the other reads.
    pub(super) fn after_read(&mut self, error: Option<&CallError>, now: UtcMillis) -> Consequence {
        let Some(error) = error else {
            self.reads.answered();
            return Consequence::Nothing;
        };
        match error.fault {
            Fault::Credentials => self.hold_back(None, error, now),
            Fault::Throttled { retry_after, .. } => self.hold_reads(retry_after, error, now),
            Fault::Unreachable
            | Fault::Unavailable
            | Fault::Lost
            | Fault::Permission
            | Fault::Configuration
            | Fault::Refused(_) => Consequence::Nothing,
        }
    }

    /// What it means that the target could not be made ready for a call. `has_read` is true if
    /// that included reading servers.
    pub(super) fn after_failed_preparation(
        &mut self,
        error: &CallError,
        has_read: bool,
        now: UtcMillis,
    ) -> Consequence {
        if let Fault::Throttled { retry_after, .. } = error.fault
            && has_read
        {
            self.reads.throttled(now, retry_after);
        }
        self.hold_back(None, error, now)
    }

    /// The service answered: what kept calls back is over, unless reads are held or the wait is
    /// not over. A call that was open beside the one that was throttled does not tell how long the
    /// cloud wants to be left alone.
    fn answered(&mut self, action: PowerAction, now: UtcMillis) -> Consequence {
        self.pace.answered();
        self.probe_next.remove(&action);
        let waits = self.reads.wait(now).is_some() || self.pace.is_blocked(now);
        if waits || !self.breaker_held {
            return Consequence::Nothing;
        }
        self.breaker_held = false;
        Consequence::Recovered
    }

    fn hold_reads(
        &mut self,
        retry_after: Option<Duration>,
        error: &CallError,
        now: UtcMillis,
    ) -> Consequence {
        let is_news = self.reads.wait(now).is_none();
        let until = self.reads.throttled(now, retry_after);
        let hold = retry_after.map(|_| Hold {
            target: Some(self.target.clone()),
            action: None,
            label: None,
            kind: HoldKind::Breaker,
            reason: format!("the cloud throttles reads: {error}"),
            since: now,
            until: Some(until),
        });
        Consequence::ReadsHeld { hold, is_news }
    }

    /// No call leaves for a while. `action` is what was asked for; none for a token or a read,
    /// which does not tell how fast submit calls may follow one another.
    fn hold_back(
        &mut self,
        action: Option<PowerAction>,
        error: &CallError,
        now: UtcMillis,
    ) -> Consequence {
        self.note_doubt(action, &error.fault);
        let reason = format!("{}: {error}", what_is_wrong(&error.fault, action.is_some()));
        let until = match error.fault {
            Fault::Credentials => return Consequence::KeyRefused { reason },
            Fault::Permission => now + CREDENTIALS_HOLD,
            _ => self.block(action.is_some(), error, now),
        };
        Consequence::Held(Hold {
            target: Some(self.target.clone()),
            // A user may hold the permission for one action and not for another.
            action: action.filter(|_| error.fault == Fault::Permission),
            label: None,
            kind: hold_kind(&error.fault),
            reason,
            since: now,
            until: Some(until),
        })
    }

    /// Blocks the pace, and returns until when.
    fn block(&mut self, is_submit: bool, error: &CallError, now: UtcMillis) -> UtcMillis {
        self.breaker_held = true;
        let pace = &mut self.pace;
        match error.fault {
            Fault::Throttled { retry_after, limit } if is_submit => {
                pace.throttled(now, retry_after, limit)
            }
            Fault::Throttled { retry_after, .. } => pace.hold_back(now, retry_after),
            Fault::Unreachable => pace.hold_back(now, None),
            Fault::Unavailable | Fault::Lost => pace.hold_back(now, error.retry_after),
            Fault::Credentials | Fault::Permission | Fault::Configuration | Fault::Refused(_) => {
                pace.hold_back(now, Some(CONFIGURATION_HOLD))
            }
        }
    }

    /// Notes whose next call is a probe for whether calls arrive again. One that was throttled did
    /// arrive.
    fn note_doubt(&mut self, action: Option<PowerAction>, fault: &Fault) {
        match fault {
            Fault::Throttled { .. } => {}
            Fault::Permission => self.probe_next.extend(action),
            Fault::Unreachable
            | Fault::Unavailable
            | Fault::Lost
            | Fault::Credentials
            | Fault::Configuration
            | Fault::Refused(_) => self.probe_next.extend(PowerAction::ALL),
        }
    }
}

fn hold_kind(fault: &Fault) -> HoldKind {
    match fault {
        Fault::Credentials | Fault::Permission => HoldKind::Credentials,
        Fault::Throttled { .. }
        | Fault::Unreachable
        | Fault::Unavailable
        | Fault::Lost
        | Fault::Configuration
        | Fault::Refused(_) => HoldKind::Breaker,
    }
}

fn what_is_wrong(fault: &Fault, is_submit: bool) -> &'static str {
    match fault {
        Fault::Throttled { .. } if is_submit => "the cloud throttles submit calls",
        Fault::Throttled { .. } => "the cloud throttles calls",
        Fault::Unreachable => "the cloud cannot be reached",
        Fault::Unavailable => "the cloud is not available",
        Fault::Lost => "the last call's answer was lost",
        Fault::Credentials => REFUSED,
        Fault::Permission => "the credentials lack a permission",
        Fault::Configuration | Fault::Refused(_) => "the target's settings are wrong",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UtcMillis = UtcMillis(1_800_000_000_000);
    const MINUTE: Duration = Duration::from_secs(60);

    fn health() -> Health {
        let pace = Pace::new(60, [], NOW);
        Health::new(TargetName("default".into()), pace, None)
    }

    fn error(fault: Fault) -> CallError {
        CallError {
            fault,
            status: None,
            code: String::new(),
            message: String::new(),
            request_id: None,
            retry_after: None,
        }
    }

    fn throttled(retry_after: Option<Duration>) -> CallError {
        error(Fault::Throttled {
            retry_after,
            limit: None,
        })
    }

    fn held(consequence: Consequence) -> Hold {
        match consequence {
            Consequence::Held(hold) => hold,
            other => panic!("calls are held, not {other:?}"),
        }
    }

    #[test]
    fn a_call_that_did_not_arrive_makes_the_next_one_a_probe() {
        for fault in [Fault::Unreachable, Fault::Unavailable, Fault::Lost] {
            let mut health = health();
            let lost = error(fault);
            let hold = held(health.after_submit(PowerAction::Stop, Some(&lost), NOW));
            assert_eq!((hold.kind, hold.action), (HoldKind::Breaker, None));
            assert!(health.needs_probe(PowerAction::Reboot));
            let later = NOW + MINUTE;
            let answered = health.after_submit(PowerAction::Reboot, None, later);
            assert!(matches!(answered, Consequence::Recovered));
            assert!(!health.needs_probe(PowerAction::Reboot));
            assert!(health.needs_probe(PowerAction::Stop), "nobody has tried it");
        }
    }

    #[test]
    fn an_answer_beside_a_throttled_call_does_not_end_its_wait() {
        let mut health = health();
        let wait = throttled(Some(MINUTE));
        let hold = held(health.after_submit(PowerAction::Stop, Some(&wait), NOW));
        assert_eq!(hold.until, Some(NOW + MINUTE));
        assert!(!health.needs_probe(PowerAction::Stop), "it did arrive");
        let beside = health.after_submit(PowerAction::Stop, None, NOW);
        assert!(matches!(beside, Consequence::Nothing));
        let after = health.after_submit(PowerAction::Stop, None, NOW + MINUTE);
        assert!(matches!(after, Consequence::Recovered));
        let again = health.after_submit(PowerAction::Stop, None, NOW + MINUTE);
        assert!(matches!(again, Consequence::Nothing), "said once");
    }

    #[test]
    fn a_throttled_read_holds_new_calls_only_if_the_cloud_names_the_wait() {
        for (retry_after, holds_calls) in [(None, false), (Some(MINUTE), true)] {
            let mut health = health();
            let error = throttled(retry_after);
            match health.after_read(Some(&error), NOW) {
                Consequence::ReadsHeld { hold, is_news } => {
                    assert!(is_news);
                    assert_eq!(hold.is_some(), holds_calls);
                }
                other => panic!("reads are held, not {other:?}"),
            }
            assert!(health.read_wait(NOW).is_some());
            assert_eq!(health.submit_wait(NOW), None, "the pace is as it was");
        }
    }

    #[test]
    fn a_missing_permission_holds_its_action_alone() {
        let mut health = health();
        let missing = error(Fault::Permission);
        let hold = held(health.after_submit(PowerAction::Reboot, Some(&missing), NOW));
        assert_eq!(hold.kind, HoldKind::Credentials);
        assert_eq!(hold.action, Some(PowerAction::Reboot));
        assert_eq!(hold.until, Some(NOW + CREDENTIALS_HOLD));
        assert!(health.needs_probe(PowerAction::Reboot));
        assert!(!health.needs_probe(PowerAction::Stop));
    }

    #[test]
    fn a_refused_key_is_for_keys_to_judge_whatever_the_call_was_for() {
        let refused = error(Fault::Credentials);
        let mut health = health();
        for consequence in [
            health.after_submit(PowerAction::Stop, Some(&refused), NOW),
            health.after_read(Some(&refused), NOW),
            health.after_failed_preparation(&refused, true, NOW),
        ] {
            assert!(matches!(consequence, Consequence::KeyRefused { .. }));
        }
        assert_eq!(health.submit_wait(NOW), None);
    }
}
