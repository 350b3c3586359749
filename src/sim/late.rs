//! Operations that the cloud carries out although its answer said otherwise: operations that begin
//! later, after a refusal, an error, a lost answer or a failed sub-job. Decides nothing; `world`
//! starts them when they are due.

use super::record::LedgerEntry;
use crate::model::{JobId, PowerAction, ServerId, Service, UtcMillis};

/// One server's operation that will begin, if the server takes it then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateAct {
    /// When it begins.
    pub at: UtcMillis,
    /// The service that was asked for it.
    pub service: Service,
    /// The server.
    pub server_id: ServerId,
    /// What will be done.
    pub action: PowerAction,
    /// The `batch` of its entry in the ledger: the job, or the `X-Request-Id` of the call.
    pub batch: JobId,
    /// How long it will take, in ms.
    pub duration_ms: u64,
}

impl LateAct {
    /// Its entry in the ledger.
    pub(super) fn entry(&self) -> LedgerEntry {
        LedgerEntry {
            at: self.at,
            service: self.service,
            server_id: self.server_id.clone(),
            action: self.action,
            batch: self.batch.clone(),
        }
    }
}
