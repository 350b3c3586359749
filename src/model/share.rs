//! Requests that have not left, counted: what a forecast of the queue works with.

use super::{LaneKind, Power, PowerAction, TargetName, UtcMillis};

/// Requests that have all in common that a forecast asks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Whose cloud project.
    pub target: TargetName,
    /// What is asked for.
    pub action: PowerAction,
    /// What else their lane has in common.
    pub kind: LaneKind,
    /// Higher goes first.
    pub priority: i64,
    /// Where they stand.
    pub standing: Standing,
    /// Their label, if it may hold them: it is paused, or that of an order with waves.
    pub label: Option<String>,
    /// The wave of their order has come; also true without such an order.
    pub has_turn: bool,
    /// How many.
    pub requests: u64,
    /// The id of the first of them.
    pub first_id: i64,
    /// When the first of them expires; none: never.
    pub expires_at: Option<UtcMillis>,
    /// Their servers are protected: the requests will be rejected.
    pub is_protected: bool,
    /// A guard counts them with the batch that carried them last.
    pub is_counted: bool,
    /// The forecast is about them; the others only share the way.
    pub is_asked: bool,
}

/// What is known of the request that another one waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leader {
    /// Its action, if it is known.
    pub action: Option<PowerAction>,
    /// When it is due; none: it is.
    pub due_at: Option<UtcMillis>,
}

/// Where a request stands that has not left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may go, unless its label, a hold or a limit keeps it back.
    Ready,
    /// It is tried again at this time.
    Retry(UtcMillis),
    /// It is not due before this time.
    Later(UtcMillis),
    /// Another request of its server goes first.
    Behind,
    /// It waits for another request to succeed.
    After(Leader),
    /// It was behind or after another one, which has ended: it may go.
    Follows,
}

impl Standing {
    /// True for what a guard counts as due.
    pub fn is_due(self) -> bool {
        match self {
            Self::Ready | Self::Retry(_) | Self::Behind | Self::Follows => true,
            Self::Later(_) | Self::After(_) => false,
        }
    }

    /// True if others may wait for it that have not been released by another one.
    pub fn leads(self) -> bool {
        match self {
            Self::Ready | Self::Retry(_) | Self::Later(_) => true,
            Self::Behind | Self::After(_) | Self::Follows => false,
        }
    }

    /// Where it stands once its time has come.
    pub fn once_due(self) -> Self {
        if self.leads() {
            Self::Ready
        } else {
            Self::Follows
        }
    }
}

/// What lists have shown of the servers of some requests.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PowerMix {
    /// Whose cloud project.
    pub target: TargetName,
    /// What is asked for.
    pub action: PowerAction,
    /// Servers that are running.
    pub on: u64,
    /// Servers that are shut down.
    pub off: u64,
    /// Servers of which a list does not tell.
    pub unclear: u64,
    /// Servers that the newest list lacks.
    pub gone: u64,
    /// Servers that no list has shown.
    pub unknown: u64,
    /// Those that are as wished already; none can be after a reboot.
    pub already: u64,
    /// Those that are locked: the cloud refuses.
    pub locked: u64,
    /// There are more, which were not looked up.
    pub is_part: bool,
}

impl PowerMix {
    /// How many are as wished already. A reboot always has something to do.
    pub fn count_already(&self) -> u64 {
        if self.action.leaves_no_mark() {
            return 0;
        }
        match self.action.wished_power() {
            Power::On => self.on,
            Power::Off => self.off,
            Power::Faulty | Power::Unclear => 0,
        }
    }
}
