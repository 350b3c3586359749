//! The fixed words of the queue, each an enum that is stored as lower-case text. Stays away from
//! meaning: see `lifecycle` for the states, `action` and `service` for these two.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A stored or typed word that is none of those allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{found}' is not {what}; expected one of: {allowed}")]
pub struct UnknownWord {
    pub(super) what: &'static str,
    pub(super) found: String,
    pub(super) allowed: String,
}

macro_rules! stored_enum {
    ($(#[$meta:meta])* $name:ident, $what:literal { $($(#[$vmeta:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $word)] $variant),+ }

        impl $name {
            /// Every variant, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word as stored and printed.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::ALL.iter().copied().find(|word| word.as_str() == text).ok_or_else(|| UnknownWord {
                    what: $what,
                    found: text.to_owned(),
                    allowed: Self::ALL.iter().map(|word| word.as_str()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

pub(super) use stored_enum;

stored_enum! {
    /// What an operator asks for; stored in `power_requests.action`.
    PowerAction, "an action" {
        /// Power on.
        Start = "start",
        /// Power off, always forced: the clouds have no soft stop.
        Stop = "stop",
        /// Restart, always forced.
        Reboot = "reboot",
    }
}

stored_enum! {
    /// Where a request is; stored in `power_requests.state`.
    RequestState, "a state" {
        /// Waiting; `power_waiting` says for what.
        Queued = "queued",
        /// In a batch that is not done; how far that one is, its own state says.
        Running = "running",
        /// Done, with evidence.
        Succeeded = "succeeded",
        /// Known to have failed, with evidence.
        Failed = "failed",
        /// Withdrawn while queued, or what it waited for did not succeed.
        Cancelled = "cancelled",
        /// Its time passed while queued.
        Expired = "expired",
        /// Refused by this daemon's own rules.
        Rejected = "rejected",
        /// Nobody can tell whether it happened; never sent again automatically.
        Unknown = "unknown",
    }
}

impl RequestState {
    /// True for the states that never change again.
    pub const fn is_terminal(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

stored_enum! {
    /// How we know how a request ended; stored in `power_requests.evidence`.
    Evidence, "a kind of evidence" {
        /// The cloud's task said so.
        Job = "job",
        /// The server was already so.
        Already = "already",
        /// The call's answer is about this server alone.
        Refused = "refused",
        /// Seen in the server's state or in the list.
        Observed = "observed",
        /// Nothing: cancelled, expired, rejected, unknown.
        None = "none",
    }
}

stored_enum! {
    /// Where a batch is; stored in `batches.state`.
    BatchState, "a batch state" {
        /// The intent is stored; the call may or may not have left.
        Submitting = "submitting",
        /// Accepted; its job is asked for.
        Tracking = "tracking",
        /// Its servers are looked at.
        Looking = "looking",
        /// Every server's outcome is stored, or its request is queued again.
        Done = "done",
    }
}

stored_enum! {
    /// Why a batch's servers are looked at; stored in `batches.look_cause`.
    LookCause, "a cause for looking" {
        /// The call was refused as a whole; the states explain which server is to blame.
        Refused = "refused",
        /// The call's answer was lost, or the daemon died before storing it.
        Lost = "lost",
        /// The cloud does not know the job any more.
        Vanished = "vanished",
        /// The job runs longer than `job_time_limit`.
        TimeLimit = "time_limit",
        /// The job is over and its answer leaves servers out.
        Gap = "gap",
        /// The job is over and says of a reboot that its server was busy: perhaps with that reboot.
        Busy = "busy",
    }
}

stored_enum! {
    /// What became of one request in one batch; stored in `request_attempts.result`.
    AttemptResult, "an attempt's result" {
        /// Carried out.
        Succeeded = "succeeded",
        /// Tried and failed.
        Failed = "failed",
        /// The server was already so.
        Already = "already",
        /// The server was busy; tried again later.
        Busy = "busy",
        /// Refused, alone or beside others.
        Refused = "refused",
        /// The call did not reach the service.
        NotSent = "not_sent",
        /// The answer was lost, and looking showed that nothing was carried out.
        Lost = "lost",
        /// Nobody can tell.
        Unknown = "unknown",
    }
}

stored_enum! {
    /// Why a target, or one action of it, is not going out; stored in `holds.kind`.
    HoldKind, "a kind of hold" {
        /// An operator paused it.
        Operator = "operator",
        /// A budget of the config is used up.
        Budget = "budget",
        /// The cloud refuses the credentials.
        Credentials = "credentials",
        /// The cloud throttles, or cannot be reached.
        Breaker = "breaker",
        /// The config has no such target.
        UnknownTarget = "unknown_target",
        /// The database was restored from a backup.
        Restored = "restored",
        /// More than the config's guard lets go without somebody's approval.
        Approval = "approval",
        /// Outside the config's windows, or in a freeze.
        Window = "window",
        /// The next wave of an order waits.
        Wave = "wave",
    }
}

stored_enum! {
    /// Where an order with waves is; stored in `orders.state`.
    OrderState, "a state of an order" {
        /// Its waves leave.
        Open = "open",
        /// Its next wave does not leave, until somebody or something lets it.
        Held = "held",
        /// All of its requests have ended.
        Done = "done",
    }
}

stored_enum! {
    /// What an operator lets go in spite of all; stored in `orders.let_go`.
    LetGo, "what is let go" {
        /// The next wave.
        Wave = "wave",
        /// All that remain.
        Rest = "rest",
    }
}

stored_enum! {
    /// What a person did; stored in `operator_actions.action`.
    OperatorAction, "something that a person does" {
        /// Withdrew queued requests.
        Cancel = "cancel",
        /// Asked again for what had failed.
        Retry = "retry",
        /// Let requests go that a guard holds.
        Approve = "approve",
        /// Put a hold.
        Pause = "pause",
        /// Ended a hold, or let a wave go.
        Resume = "resume",
        /// Let go or cancelled what a restore had put on hold.
        Release = "release",
        /// Gave a reason to leave outside windows and freezes.
        Override = "override",
    }
}

stored_enum! {
    /// Which API a target speaks.
    Service, "a service" {
        /// Bare Metal Server, API v1: at most 1000 servers a call, followed by job.
        Bms = "bms",
        /// Cloud Data Center: at most 50 servers a call, followed by server state.
        CloudDc = "clouddc",
    }
}
