//! What waits, what holds it back, and what is due: the queue as plain values.

use std::time::Duration;

use super::{
    BatchId, BatchState, HoldKind, PowerAction, RequestId, ServerId, Service, TargetName, UtcMillis,
};

/// Claimable requests that may share a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// Whose cloud project.
    pub target: TargetName,
    /// What is asked for.
    pub action: PowerAction,
    /// What its requests have in common besides.
    pub kind: LaneKind,
    /// Priority of the first request.
    pub head_priority: i64,
    /// Id of the first request.
    pub head_id: i64,
    /// How many requests stand in the lane, counted up to `Limits::batch_servers_max`.
    pub ready: u32,
    /// Since when the longest-waiting of them could go.
    pub oldest_eligible_at: UtcMillis,
}

/// What requests of one target and action must have in common to share a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct LaneKind {
    /// 0: fresh requests. Else the part of a refused batch, or servers that were busy.
    pub group: i64,
    /// Somebody approved them: a guard does not hold them.
    pub is_approved: bool,
    /// They have a reason to leave outside windows and freezes.
    pub has_override: bool,
}

impl LaneKind {
    /// As the index of ready requests has it.
    pub fn number(self) -> i64 {
        self.group
            .saturating_mul(4)
            .saturating_add(i64::from(self.is_approved) * 2 + i64::from(self.has_override))
    }

    /// The reverse of `number`.
    pub fn of_number(number: i64) -> Self {
        Self {
            group: number.div_euclid(4),
            is_approved: number & 2 != 0,
            has_override: number & 1 != 0,
        }
    }
}

/// A request that may leave soon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Which.
    pub request: RequestId,
    /// Whom it concerns.
    pub server: ServerId,
    /// Its lane's action.
    pub action: PowerAction,
    /// Its lane's kind.
    pub kind: LaneKind,
    /// Since when it could go.
    pub eligible_at: Option<UtcMillis>,
}

/// One row of `holds`: a reason why something is not going out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// None: every target.
    pub target: Option<TargetName>,
    /// None: every action.
    pub action: Option<PowerAction>,
    /// None: every label. A label's requests are held one by one, and not as a lane.
    pub label: Option<String>,
    /// Whose doing it is.
    pub kind: HoldKind,
    /// A sentence for the operator.
    pub reason: String,
    /// Since when.
    pub since: UtcMillis,
    /// It ends automatically at this time; none: it does not.
    pub until: Option<UtcMillis>,
}

impl Hold {
    /// True while it keeps this lane from going out.
    pub fn covers(&self, lane: &Lane, now: UtcMillis) -> bool {
        let is_exempt = match self.kind {
            HoldKind::Approval => lane.kind.is_approved,
            HoldKind::Window => lane.kind.has_override,
            _ => false,
        };
        self.label.is_none()
            && !is_exempt
            && self.is_about(&lane.target, lane.action)
            && self.until.is_none_or(|until| until > now)
    }

    /// True if this lane leaves in spite of this hold because its requests have a reason to.
    pub fn is_overridden_by(&self, lane: &Lane, now: UtcMillis) -> bool {
        self.kind == HoldKind::Window
            && lane.kind.has_override
            && self.is_about(&lane.target, lane.action)
            && self.until.is_none_or(|until| until > now)
    }

    /// True if both are of one kind and about the same: of two such holds the queue keeps one.
    pub fn has_place_of(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.target == other.target
            && self.action == other.action
            && self.label == other.label
    }

    /// True if the other one in its place needs no change.
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        self.has_place_of(other) && self.reason == other.reason && self.until == other.until
    }

    /// True if its target and action are these, or all.
    pub fn is_about(&self, target: &TargetName, action: PowerAction) -> bool {
        self.target.as_ref().is_none_or(|held| held == target)
            && self.action.is_none_or(|held| held == action)
    }
}

/// `"500/1h"`: at most `servers` in any `span`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// How many servers.
    pub servers: u32,
    /// In how long.
    pub span: Duration,
}

/// Requests that wait for approval and have label and requester in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crowd {
    /// Their label.
    pub label: Option<String>,
    /// Who asked for them.
    pub requested_by: Option<String>,
    /// How many they are.
    pub requests: u64,
}

/// Where a batch was sent: it can be asked for only while the config still says the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Which API.
    pub service: Service,
    /// Base URL.
    pub endpoint: String,
    /// The cloud's project.
    pub project_id: String,
}

/// An open batch and when its next step is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueBatch {
    /// Which.
    pub id: BatchId,
    /// Of which target.
    pub target: TargetName,
    /// What its next step is about.
    pub state: BatchState,
    /// What was asked for.
    pub action: PowerAction,
    /// When the cloud had accepted it; when its intent was stored, if that is not known.
    pub accepted_at: UtcMillis,
    /// Looks so far.
    pub looks: u32,
    /// The last answers said what is expected of a job that runs: its next look is planned like
    /// that of any other.
    pub is_plain: bool,
    /// Followed by the servers' own states, not by a job.
    pub by_servers: bool,
    /// Since or from when.
    pub at: UtcMillis,
}
