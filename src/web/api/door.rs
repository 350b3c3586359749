//! How the API gets at the queue: connections of its own, a few at a time, so that any number of
//! callers cannot take the disk and the lock away from the daemon.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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
/// A connection that nobody needs for so long is closed.
const IDLE_TIME: Duration = Duration::from_secs(5);

/// Whose turn it is, and the connections that wait for the next who reads: to open the queue costs
/// more than most reads.
#[derive(Clone)]
pub struct Turns(Arc<SharedTurns>);

struct SharedTurns {
    readers: Semaphore,
    writers: Semaphore,
    idle: Mutex<IdleReaders>,
}

#[derive(Default)]
struct IdleReaders {
    clients: Vec<IdleClient>,
    /// Somebody closes those that nobody takes.
    is_swept: bool,
    /// The daemon ends: none is kept any more.
    is_over: bool,
}

struct IdleClient {
    client: QueueClient,
    file: QueueFile,
    since: Instant,
}

/// Device and inode: an older copy that was put in the queue's place is another file.
type QueueFile = (u64, u64);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(SharedTurns {
            readers: Semaphore::new(READERS_MAX),
            writers: Semaphore::new(WRITERS_MAX),
            idle: Mutex::default(),
        }))
    }
}

impl Turns {
    /// Closes the connections that nobody uses, and keeps none from now on. SQLite tidies up the
    /// `-wal` when the last one is closed.
    pub async fn end(&self) {
        let clients = {
            let mut idle = self.0.idle();
            idle.is_over = true;
            std::mem::take(&mut idle.clients)
        };
        for idle in clients {
            // What it says has no consequence any more.
            let _ = idle.client.close().await;
        }
    }

    /// Waits for the caller's turn to open the queue; none: it does not come in time.
    pub(in crate::web) async fn take(&self, access: Access) -> Option<SemaphorePermit<'_>> {
        let places = match access {
            Access::Read => &self.0.readers,
            Access::Write => &self.0.writers,
        };
        let turn = tokio::time::timeout(PATIENCE, places.acquire()).await;
        turn.ok()?.ok()
    }

    fn take_idle(&self, file: QueueFile) -> Option<QueueClient> {
        let mut idle = self.0.idle();
        let place = idle.clients.iter().position(|idle| idle.file == file)?;
        Some(idle.clients.swap_remove(place).client)
    }

    /// Returns it if none is kept any more.
    fn keep_idle(&self, client: QueueClient, file: QueueFile) -> Option<QueueClient> {
        let mut idle = self.0.idle();
        if idle.is_over {
            return Some(client);
        }
        idle.clients.push(IdleClient {
            client,
            file,
            since: Instant::now(),
        });
        if !idle.is_swept {
            idle.is_swept = true;
            tokio::spawn(sweep(Arc::clone(&self.0)));
        }
        None
    }
}

impl SharedTurns {
    fn idle(&self) -> MutexGuard<'_, IdleReaders> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out what was idle for too long; none: there is nothing left to wait for.
    fn outdated(&self) -> Option<Vec<IdleClient>> {
        let mut idle = self.idle();
        if idle.clients.is_empty() {
            idle.is_swept = false;
            return None;
        }
        let (old, young) = std::mem::take(&mut idle.clients)
            .into_iter()
            .partition(|idle| idle.since.elapsed() >= IDLE_TIME);
        idle.clients = young;
        Some(old)
    }
}

async fn sweep(shared: Arc<SharedTurns>) {
    while let Some(outdated) = shared.outdated() {
        for idle in outdated {
            let _ = idle.client.close().await;
        }
        tokio::time::sleep(IDLE_TIME).await;
    }
}

/// A connection, for as long as it is the caller's turn.
pub(super) struct Door<'a> {
    pub(super) client: QueueClient,
    turns: &'a Turns,
    /// None: it writes, and is not kept.
    file: Option<QueueFile>,
    _turn: SemaphorePermit<'a>,
}

impl Door<'_> {
    /// Gives the connection back. One that is dropped instead, in the middle of something, is not
    /// used again.
    pub(super) async fn close(self) -> Result<(), Problem> {
        let left = match self.file {
            Some(file) => self.turns.keep_idle(self.client, file),
            None => Some(self.client),
        };
        if let Some(client) = left {
            client.close().await?;
        }
        Ok(())
    }
}

/// Opens the queue for reading or writing, when it is the caller's turn.
pub(super) async fn open(site: &Site, access: Access) -> Result<Door<'_>, Problem> {
    let turns = &site.turns;
    let late = || Problem::busy("too many others ask for the queue at present");
    let turn = turns.take(access).await.ok_or_else(late)?;
    let file = match access {
        Access::Read => file_id(&site.database),
        Access::Write => None,
    };
    let client = match file.and_then(|file| turns.take_idle(file)) {
        Some(client) => client,
        None => QueueClient::open(&site.database, access).await?,
    };
    Ok(Door {
        client,
        turns,
        file,
        _turn: turn,
    })
}

/// By its path: a handle of our own would drop SQLite's locks when closed.
fn file_id(queue: &Path) -> Option<QueueFile> {
    let meta = std::fs::metadata(queue).ok()?;
    Some((meta.dev(), meta.ino()))
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
