//! What the simulated cloud reports in addition to its API: calls made, operations carried out,
//! servers. Plain values.

use serde::{Deserialize, Serialize};

use super::answer::Delivery;
use crate::model::{JobId, PowerAction, ServerId, Service, UtcMillis};

/// The kinds of calls, as scenarios name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Start, stop or reboot for a batch of servers.
    Submit,
    /// One job; only BMS has them.
    Job,
    /// A page of the list of servers, or their counts.
    List,
    /// One server.
    Show,
    /// A token by password.
    Token,
}

/// One call that arrived, whatever became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallRecord {
    /// When it arrived.
    pub at: UtcMillis,
    /// The service; `None`: the identity service.
    pub service: Option<Service>,
    /// What was called.
    pub call: Call,
    /// The action of a submit whose body could be read.
    pub action: Option<PowerAction>,
    /// How many servers it named.
    pub servers: usize,
    /// The answer's status, even if the answer was lost; 0 if there was none.
    pub status: u16,
    /// Bytes of the answer's body.
    pub bytes: usize,
    /// What became of the answer on its way.
    pub delivery: Delivery,
}

/// One power operation that was really carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LedgerEntry {
    /// When it began.
    pub at: UtcMillis,
    /// The service that was asked for it.
    pub service: Service,
    /// The server, in the spelling of the list.
    pub server_id: ServerId,
    /// What was done.
    pub action: PowerAction,
    /// The job it belongs to; CloudDC has none: the `X-Request-Id` of its call.
    pub batch: JobId,
}

/// One server as it really is, regardless of what the API shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerSummary {
    /// The service it belongs to.
    pub service: Service,
    /// Its id.
    pub server_id: ServerId,
    /// Its name.
    pub name: String,
    /// On or off. While an operation runs: as it was before.
    pub power: OnOff,
    /// Locked servers refuse power actions.
    pub locked: bool,
}

/// A server's power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnOff {
    /// Running.
    On,
    /// Shut down.
    Off,
}

impl OnOff {
    /// A server's power once this is done.
    pub(super) fn after(action: PowerAction) -> Self {
        match action {
            PowerAction::Start | PowerAction::Reboot => Self::On,
            PowerAction::Stop => Self::Off,
        }
    }
}

impl From<bool> for OnOff {
    fn from(is_on: bool) -> Self {
        if is_on { Self::On } else { Self::Off }
    }
}
