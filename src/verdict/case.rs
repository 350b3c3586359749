//! What every verdict starts from: a batch, what was seen of it, its limits, and the moment.
//!
//! Also the next looks, and the moves to which more than one kind of answer leads.

use std::time::Duration;

use super::watch::Watch;
use crate::lifecycle::{BatchNext, Event, Outcome, Return};
use crate::model::cloud_codes;
use crate::model::{
    AttemptResult, Batch, BatchState, CodeClass, Complaint, Evidence, LookCause, Member,
    PowerAction, UtcMillis,
};
use crate::pace::{self, LearnedTimes, LookTimes, OpenJob};

/// The limits that verdicts keep to; from the target's settings.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// After this, the servers of a running job are looked at.
    pub job_time_limit: Duration,
    /// Looking at servers ends after this.
    pub look_time_limit: Duration,
    /// A server that stays idle in the state that was not asked for, in looks over this time,
    /// proves that nothing was carried out.
    pub settle_time: Duration,
    /// How many calls may carry one request.
    pub attempts_max: u32,
    /// When to look.
    pub looks: LookTimes,
}

/// A batch of which an answer tells, with all that decides what follows.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// The batch, as it was before the answer.
    pub batch: &'a Batch,
    /// What this process has seen of it, this answer included.
    pub watch: &'a Watch,
    /// The limits.
    pub rules: &'a Rules,
    /// What other jobs of its target and action have shown, and this answer of its own.
    pub learned: &'a LearnedTimes,
    /// When the answer was there.
    pub now: UtcMillis,
}

/// Parts of a batch, for `Batch::group`.
pub(super) const FIRST_PART: i64 = 1;
pub(super) const SECOND_PART: i64 = 2;
const BUSY_PART: i64 = 3;

impl Batch {
    /// Group number `part` (1 to 3) of those into which this batch is split.
    pub(super) fn group(&self, part: i64) -> i64 {
        self.id.0 * 4 + part
    }

    /// True if the cloud itself says that a server was in a transition before the call: a
    /// transition that is seen may have begun before it.
    pub(super) fn was_refused_as_busy(&self) -> bool {
        matches!(self.look_cause, Some(LookCause::Refused | LookCause::Lost))
            && self.complaint.as_ref().is_some_and(speaks_of_a_busy_server)
    }

    fn seed(&self) -> u64 {
        (self.id.0 as u64) << 16 | u64::from(self.looks)
    }

    /// True if a server showed a reboot that had ended, before it was to be rebooted: the new one
    /// can be told from that one only while it is being done.
    fn may_pass_unseen(&self) -> bool {
        self.action.leaves_no_mark()
            && self
                .members
                .iter()
                .any(|member| member.shows_old_reboot() && !member.seen_moving)
    }

    /// True for reboots that the cloud says it did not do: they are sent again only if looks
    /// without a gap prove it.
    fn needs_proof(&self) -> bool {
        self.action.leaves_no_mark()
            && self.state == BatchState::Looking
            && matches!(self.look_cause, Some(LookCause::Refused | LookCause::Busy))
    }
}

/// By its code: the class is not stored with it.
fn speaks_of_a_busy_server(complaint: &Complaint) -> bool {
    cloud_codes::class(&complaint.code) == CodeClass::ServerBusy
}

impl Case<'_> {
    /// The first look after the call was accepted.
    pub(super) fn first_look_at(self) -> UtcMillis {
        let mut wait = self.learned.first_wait(self.batch.id);
        if self.batch.may_pass_unseen() {
            wait = wait.min(pace::CLOSE_INTERVAL);
        }
        self.now + wait.min(self.rules.job_time_limit)
    }

    /// Another look at a job that runs, when it may have ended, and no later than `latest`.
    pub(super) fn look_when_ended(self, latest: UtcMillis) -> BatchNext {
        let job = OpenJob {
            id: self.batch.id,
            age: self.now.since(self.batch.accepted_at()),
            looks: self.batch.looks + 1,
        };
        let wait = self.learned.next_wait(job);
        BatchNext::Again {
            next_look_at: (self.now + wait).min(latest),
            doubts: 0,
        }
    }

    /// Another look, and nothing else changes.
    pub(super) fn look_again(self, doubts: u32) -> BatchNext {
        BatchNext::Again {
            next_look_at: self.next_look_at(),
            doubts,
        }
    }

    /// Another look, no later than `latest`, and no doubts.
    pub(super) fn look_again_by(self, latest: UtcMillis) -> BatchNext {
        BatchNext::Again {
            next_look_at: self.next_look_at().min(latest),
            doubts: 0,
        }
    }

    fn next_look_at(self) -> UtcMillis {
        let batch = self.batch;
        let mut wait = self.rules.looks.next_look(batch.looks + 1, batch.seed());
        if batch.may_pass_unseen() && self.now.since(batch.accepted_at()) < pace::CLOSE_SPAN {
            wait = wait.min(pace::CLOSE_INTERVAL);
        }
        if batch.needs_proof() {
            wait = wait.min(pace::proof_interval(self.rules.settle_time));
        }
        self.now + wait
    }

    /// From now on the servers are looked at, because of `cause`.
    pub(super) fn look_at_servers(self, cause: LookCause) -> BatchNext {
        BatchNext::Look {
            cause,
            until: self.now + self.rules.look_time_limit,
            next_look_at: self.now,
        }
    }

    /// When its servers are looked at, whatever its job says.
    pub(super) fn tracking_ends(self) -> UtcMillis {
        self.batch.tracking_ends(self.rules.job_time_limit)
    }

    /// The server is busy, as `why` says: it waits in a group of its own, so that it does not spoil
    /// the batches of others.
    pub(super) fn wait_apart(self, member: &Member, why: &Complaint) -> Event {
        Event::Returned(Return {
            retry_at: Some(self.now + pace::busy_delay(member.busy, self.batch.seed())),
            group: Some(self.batch.group(BUSY_PART)),
            result: AttemptResult::Busy,
            code: why.code.clone(),
            message: why.message.clone(),
        })
    }

    /// Another try later, because of `why`; none if no try is left.
    pub(super) fn try_again(
        self,
        member: &Member,
        why: &Complaint,
        result: AttemptResult,
    ) -> Option<Event> {
        if member.attempts >= self.rules.attempts_max {
            return None;
        }
        let tries = member.attempts.saturating_sub(1);
        Some(Event::Returned(Return {
            retry_at: Some(self.now + pace::retry_delay(tries, self.batch.seed())),
            group: None,
            result,
            code: why.code.clone(),
            message: why.message.clone(),
        }))
    }

    /// What the refusal of a call means for the only server that it carried; `class` is that of
    /// `why.code`. None: it does not tell, the server has to be looked at.
    pub(super) fn refused_alone(
        self,
        member: &Member,
        class: CodeClass,
        why: &Complaint,
    ) -> Option<Event> {
        match class {
            CodeClass::AlreadyInTargetState if is_as_wished(self.batch.action, why) => {
                Some(already(self.batch.action))
            }
            CodeClass::AlreadyInTargetState
            | CodeClass::ServerPermanent
            | CodeClass::ServerFailed
            | CodeClass::BatchInvalid => Some(failed(Evidence::Refused, why)),
            // `Retryable`: the cloud could not do it at that moment and did nothing.
            CodeClass::ServerBusy | CodeClass::Retryable => Some(self.wait_apart(member, why)),
            CodeClass::RetryableUncertain
            | CodeClass::Ambiguous
            | CodeClass::SubJobFailed
            | CodeClass::JobUnknown
            | CodeClass::AuthToken
            | CodeClass::AuthPermission
            | CodeClass::ConfigPermanent
            | CodeClass::Other => None,
        }
    }
}

/// The request failed with the cloud's own words.
pub(super) fn failed(evidence: Evidence, why: &Complaint) -> Event {
    Event::Ended(Outcome::failed(evidence, &why.code, &why.message))
}

/// BMS.0038 says "running" and BMS.0039 says "stopped"; each is what one action only asks for. A
/// reboot is never "already" done.
pub(super) fn is_as_wished(action: PowerAction, why: &Complaint) -> bool {
    match action {
        PowerAction::Start => why.code == "BMS.0038",
        PowerAction::Stop => why.code == "BMS.0039",
        PowerAction::Reboot => false,
    }
}

/// The request succeeded: the server was as wished before the call.
pub(super) fn already(action: PowerAction) -> Event {
    let sentence = match action {
        PowerAction::Start => "the server was already running",
        PowerAction::Stop => "the server was already stopped",
        PowerAction::Reboot => "the server had already been rebooted",
    };
    Event::Ended(Outcome::succeeded(Evidence::Already, sentence))
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::model::BatchId;

    /// How long after `NOW` the batch is looked at again.
    fn wait(batch: &Batch) -> Duration {
        let case = Case {
            batch,
            watch: &Watch::default(),
            rules: &rules(),
            learned: &LearnedTimes::new(rules().looks, &[]),
            now: NOW,
        };
        match case.look_again(0) {
            BatchNext::Again { next_look_at, .. } => next_look_at.since(NOW),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reboots_that_the_cloud_denies_are_looked_at_often_enough_for_a_proof() {
        for (action, cause, is_often) in [
            (PowerAction::Reboot, LookCause::Refused, true),
            (PowerAction::Reboot, LookCause::Busy, true),
            (PowerAction::Reboot, LookCause::Lost, false),
            (PowerAction::Stop, LookCause::Refused, false),
        ] {
            let mut batch = batch(action, BatchState::Looking, 1);
            batch.looks = 40;
            batch.look_cause = Some(cause);
            let is_within = wait(&batch) <= Duration::from_secs(5);
            assert_eq!(is_within, is_often, "{action} {cause}");
        }
    }

    #[test]
    fn waits_grow_with_the_looks_and_differ_from_batch_to_batch() {
        let mut first = batch(PowerAction::Stop, BatchState::Tracking, 1);
        first.looks = 1;
        let other = Batch {
            id: BatchId(8),
            ..first.clone()
        };
        assert_ne!(wait(&first), wait(&other));
        for batch in [first, other] {
            let milliseconds = wait(&batch).as_millis();
            assert!((750..=825).contains(&milliseconds), "{milliseconds}");
        }
    }

    #[test]
    fn parts_of_batches_never_share_a_group() {
        let batch = batch(PowerAction::Stop, BatchState::Looking, 1);
        let parts = [FIRST_PART, SECOND_PART, BUSY_PART].map(|part| batch.group(part));
        assert_eq!(parts, [29, 30, 31]);
        let next = Batch {
            id: BatchId(8),
            ..batch
        };
        assert_eq!(next.group(FIRST_PART), 33);
    }
}
