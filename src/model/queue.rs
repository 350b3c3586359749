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
    /// 0: fresh requests. Else the part of a refused batch, or servers that were busy.
    pub group: i64,
    /// Priority of the first request.
    pub head_priority: i64,
    /// Id of the first request.
    pub head_id: i64,
    /// How many requests stand in the lane, counted up to `Limits::batch_servers_max`.
    pub ready: u32,
    /// Since when the longest-waiting of them could go.
    pub oldest_eligible_at: UtcMillis,
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
    /// Its lane's travel group.
    pub group: i64,
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
    /// True while it keeps this target and action from going out.
    pub fn covers(&self, target: &TargetName, action: PowerAction, now: UtcMillis) -> bool {
        self.target.as_ref().is_none_or(|held| held == target)
            && self.action.is_none_or(|held| held == action)
            && self.until.is_none_or(|until| until > now)
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
