//! A batch on its way, with those of its requests that are not settled.

use std::time::Duration;

use super::{
    Baseline, BatchId, BatchState, Complaint, JobId, LookCause, PowerAction, RequestId, ServerId,
    Service, TargetName, UtcMillis,
};

/// A batch with those of its requests that are not settled yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its row in `batches`.
    pub id: BatchId,
    /// Where it was sent.
    pub target: TargetName,
    /// Which API took the call.
    pub service: Service,
    /// What was asked for.
    pub action: PowerAction,
    /// Never `Done`.
    pub state: BatchState,
    /// The cloud's job, while tracking.
    pub job: Option<JobId>,
    /// When the intent was stored.
    pub intent_at: UtcMillis,
    /// When the cloud had accepted it.
    pub submitted_at: Option<UtcMillis>,
    /// Looks so far.
    pub looks: u32,
    /// Answers in a row that left the job's end in doubt.
    pub doubts: u32,
    /// It was open in an older copy of the queue that somebody put back: what was done to its servers
    /// between its call and now is partly unknown.
    pub from_copy: bool,
    /// How many servers the call carried.
    pub server_count: u32,
    /// Why its servers are looked at, while they are.
    pub look_cause: Option<LookCause>,
    /// When looking ends.
    pub look_until: Option<UtcMillis>,
    /// The error that concerns the batch as a whole: why it was refused, or how its job failed.
    pub complaint: Option<Complaint>,
    /// Why the last look failed, if it did.
    pub read_error: Option<String>,
    /// The requests that are not settled.
    pub members: Vec<Member>,
}

/// One unsettled request of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its row in `power_requests`.
    pub request: RequestId,
    /// Whom it concerns.
    pub server: ServerId,
    /// Calls that carried it and that the cloud may have acted on; this one counts from its claim
    /// until it is known to be refused or not sent.
    pub attempts: u32,
    /// Times it was found busy.
    pub busy: u32,
    /// Its server was seen in a transition that this request would cause.
    pub seen_moving: bool,
    /// The server's last operation before the call.
    pub baseline: Baseline,
    /// An earlier reboot of this server ended `unknown`, or its own task failed, and it may still
    /// be under way: one that is seen proves nothing.
    pub shadowed: bool,
    /// From when it could go to the intent of its first call; known to the claim alone, and
    /// decides nothing.
    pub waited: Option<Duration>,
}

impl Batch {
    /// True while its job, or what its servers show, is followed.
    pub fn is_tracked(&self) -> bool {
        self.state == BatchState::Tracking
    }

    /// When the cloud had accepted the call; when its intent was stored, if that is not known.
    pub fn accepted_at(&self) -> UtcMillis {
        self.submitted_at.unwrap_or(self.intent_at)
    }

    /// When its servers are looked at, whatever its job says.
    pub fn tracking_ends(&self, job_time_limit: Duration) -> UtcMillis {
        self.accepted_at() + job_time_limit
    }
}

impl Member {
    /// True if the last operation before the call was a reboot that had ended: another one ends in
    /// the same words.
    pub fn shows_old_reboot(&self) -> bool {
        match self.baseline {
            Baseline::Known(Some(operation)) => {
                operation.action.leaves_no_mark() && operation.status.is_over()
            }
            Baseline::Known(None) | Baseline::Unknown => false,
        }
    }
}
