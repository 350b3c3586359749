//! How the API gets at the queue: connections of its own, a few at a time, so that any number of
//! callers cannot take the disk and the lock away from the daemon.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::problem::Problem;
use crate::store::QueueClient;
use crate::store::client::{Access, Allowed};
use crate::web::Site;
use crate::web::access::Caller;

/// Reads at a time.
const READERS_MAX: usize = 4;
/// Writes at a time.
const WRITERS_MAX: usize = 1;
/// How long a caller waits for its turn.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whose turn it is.
pub(in crate::web) struct Turns {
    readers: Semaphore,
    writers: Semaphore,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            readers: Semaphore::new(READERS_MAX),
            writers: Semaphore::new(WRITERS_MAX),
        }
    }
}

impl Turns {
    /// Waits for the caller's turn to open the queue; none: it does not come in time.
    pub(in crate::web) async fn take(&self, access: Access) -> Option<SemaphorePermit<'_>> {
        let turns = match access {
            Access::Read => &self.readers,
            Access::Write => &self.writers,
        };
        let turn = tokio::time::timeout(PATIENCE, turns.acquire()).await;
        turn.ok()?.ok()
    }
}

/// A connection, for as long as it is the caller's turn.
pub(super) struct Door<'a> {
    pub(super) client: QueueClient,
    _turn: SemaphorePermit<'a>,
}

impl Door<'_> {
    /// Closes the connection.
    pub(super) async fn close(self) -> Result<(), Problem> {
        Ok(self.client.close().await?)
    }
}

/// Opens the queue for reading or writing, when it is the caller's turn.
pub(super) async fn open(site: &Site, access: Access) -> Result<Door<'_>, Problem> {
    let late = || Problem::busy("too many others ask for the queue at present");
    let turn = site.turns.take(access).await.ok_or_else(late)?;
    Ok(Door {
        client: QueueClient::open(&site.database, access).await?,
        _turn: turn,
    })
}

/// What this caller sees.
pub(in crate::web) fn seen_by(caller: &Caller) -> Allowed {
    let targets = caller.targets();
    Allowed {
        targets: targets.map(|targets| targets.iter().map(|name| name.0.clone()).collect()),
        ..Allowed::default()
    }
}

/// What this caller may change.
pub(in crate::web) fn allowed_to(caller: &Caller) -> Allowed {
    Allowed {
        actions: caller.actions().map(<[_]>::to_vec),
        ..seen_by(caller)
    }
}
