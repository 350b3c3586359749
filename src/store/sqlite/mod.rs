//! The queue's file in SQLite: its SQL, pragmas, migrations, mode and lock.
//!
//! One writer connection, short `BEGIN IMMEDIATE` transactions that never span a network call,
//! set-based statements driven from lists of ids.
//!
//! `LIMIT 0 + $1`: SQLite (since 3.47) plans with the value of a bare parameter there, and so would
//! compile the statement anew at every execution; for the search of lanes that costs more than
//! running it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, Sqlite, Transaction};
use tokio::sync::Mutex;

use super::StoreError;
use crate::model::{Batch, BatchId, Member, Now, UtcMillis};
use claimed_members::ClaimedMembers;
use epoch_file::{EpochFile, HighWater};
use identity::{IdentityState, QueueIdentity, StampPage};
use write_guard::WriteGuard;

pub(super) mod batches;
pub(in crate::store) mod changes;
pub(super) mod claim;
mod claimed_members;
pub(super) mod clocks;
pub(super) mod epoch;
mod epoch_file;
pub(super) mod export;
pub(super) mod export_file;
pub(super) mod file;
pub(super) mod gate;
pub(super) mod guard;
pub(super) mod holds;
mod identity;
pub(super) mod intake;
pub(super) mod orders;
pub(super) mod overrides;
pub(super) mod record;
pub(super) mod rows;
pub(super) mod schema;
pub(super) mod servers;
pub(super) mod snapshot;
pub(super) mod upkeep;
pub(super) mod write_guard;

pub use batches::{CountedCall, DueFilter, DueTarget, Hands};
pub use changes::Changes;
pub use claim::{Claim, Which};
pub use clocks::LastClocks;
pub use epoch::Restored;
pub use export::{ExportChunk, ExportNote, ExportPlace, ExportSpan, Exported};
pub use file::{DaemonInfo, QueueLock, Running, daemon_on};
pub(crate) use file::{beside, folder_of};
pub use gate::HeldPlace;
pub use guard::{GuardLimit, Unapproved};
pub use holds::{NotedPace, RefusedKey, TargetNews, TargetStatus};
pub use intake::{EndedCounts, TakenIn};
pub use orders::{KnownOrder, NewWave};
pub use servers::{GoneChunk, InventoryNote, InventorySync, SEEN_AT_AGE_MAX, SERVERS_CHUNK};
pub use snapshot::{Snapshot, SnapshotQuery};
pub use upkeep::Prune;

/// The `-wal` is cut back to this after a checkpoint, in bytes.
const WAL_SIZE_LIMIT: u64 = 64 << 20;
/// The page cache, in KiB (negative, as SQLite wants it): what a batch touches at random, for a few
/// batches. Twice as much made nothing faster, at 10,000 rows or at 1,000,000.
const CACHE_SIZE: &str = "-8192";

/// How long a statement waits for a producer's lock. A longer one is an answer
/// (`StoreError::Busy`), not a failure.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How the daemon's side is opened. The defaults are what `serve` uses; a simulation wants speed,
/// and to be asked.
#[derive(Clone)]
pub struct StoreOptions {
    /// How long a statement waits for a producer's lock.
    pub busy_timeout: Duration,
    /// Waits until a commit is on the disk. Without it a power failure loses intents.
    pub synced: bool,
    /// Asked before each commit; one that it does not allow is rolled back, and fails as if the
    /// queue were locked. A simulation counts commits this way, and ends a daemon just before one
    /// of them.
    pub allow_commit: Option<Arc<dyn Fn() -> bool + Send + Sync>>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            busy_timeout: BUSY_TIMEOUT,
            synced: true,
            allow_commit: None,
        }
    }
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            busy_timeout,
            synced,
            allow_commit: _,
        } = self;
        f.debug_struct("StoreOptions")
            .field("busy_timeout", busy_timeout)
            .field("synced", synced)
            .finish_non_exhaustive()
    }
}

/// The daemon's side of the queue.
#[derive(Debug)]
pub struct Store {
    writer: Mutex<SqliteConnection>,
    path: PathBuf,
    boot: Option<String>,
    options: StoreOptions,
    own: std::sync::Mutex<Own>,
}

/// What this daemon remembers of the queue that it began on.
#[derive(Debug)]
struct Own {
    mark: Mark,
    /// What the clocks showed when the daemon looked at them last.
    clocks: Option<Now>,
    /// By how much the time of day was set and the queue has not followed yet.
    set_ms: i64,
    identity: QueueIdentity,
    high_water: HighWater,
    /// None until an epoch has begun: a simulation has none.
    epoch_file: Option<EpochFile>,
    /// The members of batches whose jobs have not been asked for yet.
    claimed_members: ClaimedMembers,
    /// The epoch file is on the disk before anything leaves.
    synced: bool,
    /// Why the epoch file is not what it should be: no call leaves then.
    epoch_file_error: Option<std::io::Error>,
}

/// What each transaction finds in the queue, or else is refused.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Mark {
    token: String,
    epoch: i64,
}

impl Store {
    /// Opens the queue for the daemon: creates the file (mode 0660) if it is missing, brings its
    /// schema up to date and makes sure that it can be written.
    ///
    /// # Errors
    /// `Foreign`, `Newer` and `Corrupt` files are left alone.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, &StoreOptions::default()).await
    }

    /// As `open`, opened in another way than the daemon's.
    ///
    /// # Errors
    /// As `open`.
    pub async fn open_with(path: &Path, options: &StoreOptions) -> Result<Self, StoreError> {
        file::create(path)?;
        schema::refuse_foreign(path).await?;
        let mut writer = connect_writer(path, options).await?;
        if let Err(error) = schema::migrate(&mut writer, path).await {
            return Err(closed(writer, error).await);
        }
        Self::begun(writer, path, options.clone()).await
    }

    async fn begun(
        mut writer: SqliteConnection,
        path: &Path,
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        let mark = match read_mark(&mut writer).await {
            Ok(mark) => mark.unwrap_or_default(),
            Err(error) => return Err(closed(writer, error).await),
        };
        let own = Own {
            clocks: None,
            set_ms: 0,
            mark,
            identity: QueueIdentity::new(path, file::id_of(path)?),
            high_water: HighWater::default(),
            epoch_file: None,
            claimed_members: ClaimedMembers::default(),
            synced: options.synced,
            epoch_file_error: None,
        };
        Ok(Self {
            writer: Mutex::new(writer),
            path: path.to_owned(),
            boot: clocks::boot_id(),
            options,
            own: std::sync::Mutex::new(own),
        })
    }

    /// Opens an existing queue of the current schema so that nothing can be written.
    ///
    /// # Errors
    /// `Missing`, `Foreign`, `Newer`, `Older`, `Corrupt`.
    pub async fn open_to_read(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::Missing(path.to_owned()));
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("query_only", "ON");
        let connected = options.disable_statement_logging().connect().await;
        let mut writer = connected.map_err(|error| StoreError::opening(path, error))?;
        schema::require_current(&mut writer, path).await?;
        Self::begun(writer, path, StoreOptions::default()).await
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Commits, if the options allow it. All commits of the daemon are made here.
    pub(super) async fn commit(&self, tx: Transaction<'_, Sqlite>) -> Result<(), StoreError> {
        if self
            .options
            .allow_commit
            .as_ref()
            .is_some_and(|allow| !allow())
        {
            tx.rollback().await?;
            return Err(StoreError::Busy);
        }
        Ok(tx.commit().await?)
    }

    /// Makes sure that this is still the queue that was opened, and still this daemon's.
    ///
    /// # Errors
    /// `Replaced` if the file, its `-wal` or its `-shm` is another one or was written over:
    /// producers write elsewhere, or what is known of the queue does not hold. `TakenOver` if
    /// another daemon or another copy has come in its place.
    pub async fn check_identity(&self) -> Result<(), StoreError> {
        let mut writer = self.writer().await;
        self.require_same_files(&mut writer).await?;
        let found = read_mark(&mut writer).await?;
        self.require_mark(&found.unwrap_or_default())
    }

    /// Refuses a queue that is another daemon's.
    pub(super) fn require_mark(&self, found: &Mark) -> Result<(), StoreError> {
        if *found == self.mark() {
            Ok(())
        } else {
            Err(StoreError::TakenOver(self.path.clone()))
        }
    }

    /// Why the queue reads as damaged: perhaps somebody has exchanged or cut its files between two
    /// checks.
    pub async fn explain_damage(&self, error: StoreError) -> StoreError {
        if !matches!(error, StoreError::Damaged) {
            return error;
        }
        match self.check_identity().await {
            Err(replaced @ StoreError::Replaced(_)) => replaced,
            _ => error,
        }
    }

    pub(super) async fn require_same_files(
        &self,
        writer: &mut SqliteConnection,
    ) -> Result<(), StoreError> {
        let standing = self.own().identity.look();
        match standing {
            IdentityState::Same => Ok(()),
            IdentityState::Another => Err(StoreError::Replaced(self.path.clone())),
            IdentityState::Moved => {
                let now = match stamp_page(writer).await {
                    Err(StoreError::Busy) => return Err(StoreError::Busy),
                    found => found.ok(),
                };
                let mut own = self.own();
                match now.filter(|now| Some(*now) != own.identity.stamp_page()) {
                    Some(page) => own.identity.stamp_moved(page),
                    None => return Err(StoreError::Replaced(self.path.clone())),
                }
                Ok(())
            }
        }
    }

    /// The one connection that writes, once nobody else uses it.
    pub(super) async fn writer(&self) -> tokio::sync::MutexGuard<'_, SqliteConnection> {
        self.writer.lock().await
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mark(&self) -> Mark {
        self.own().mark.clone()
    }

    /// What they showed, and by how much the queue has to follow the time of day.
    pub(super) fn clocks(&self) -> (Option<Now>, i64) {
        let own = self.own();
        (own.clocks, own.set_ms)
    }

    /// The daemon has looked at its clocks, and what it writes from now on is stamped with them. If
    /// somebody has set the time of day, by so many milliseconds (below zero: back), the queue
    /// follows that first.
    pub fn note_clocks(&self, now: Now, set_ms: i64) {
        let mut own = self.own();
        own.clocks = Some(now);
        own.set_ms = own.set_ms.saturating_add(set_ms);
    }

    /// The id of the machine's present boot; none if it cannot be told.
    pub(super) fn boot(&self) -> Option<&str> {
        self.boot.as_deref()
    }

    pub(super) fn high_water(&self) -> HighWater {
        self.own().high_water
    }

    /// The epoch file is to know of this claim before its call leaves.
    ///
    /// # Errors
    /// `EpochFile`.
    pub(super) fn note_claim(&self, batch: &Batch) -> Result<(), StoreError> {
        let requests = batch.members.iter().map(|member| member.request.0);
        let last_id = requests.max().unwrap_or(0);
        self.own().high_water.reach(last_id, batch.id.0);
        self.require_epoch_file()
    }

    /// Keeps the members of a batch that was claimed for its first question.
    pub(super) fn keep_members(&self, batch: &Batch) {
        self.own()
            .claimed_members
            .keep(batch.id, batch.members.clone());
    }

    /// The members of this batch are no longer as its claim has left them.
    pub(super) fn forget_members(&self, batch: BatchId) {
        self.own().claimed_members.forget(batch);
    }

    fn take_members(&self, batch: BatchId) -> Option<Vec<Member>> {
        self.own().claimed_members.take(batch)
    }

    /// A transaction of ours has raised the epoch and followed the clock by so much, and is
    /// committed.
    fn went_to(&self, epoch: i64, set_ms: i64) {
        let mut own = self.own();
        own.set_ms -= set_ms;
        own.mark.epoch = epoch;
        own.high_water.epoch = epoch;
        own.write_epoch_file(false);
    }

    /// Tries again to write an epoch file that could not be written.
    ///
    /// # Errors
    /// `EpochFile`.
    pub(super) fn retry_epoch_file(&self) -> Result<(), StoreError> {
        if self.own().epoch_file_error.is_some() {
            self.require_epoch_file()?;
        }
        Ok(())
    }

    /// Writes the epoch file, unless it is as it should be, and waits until it is on the
    /// disk.
    ///
    /// # Errors
    /// `EpochFile`.
    fn require_epoch_file(&self) -> Result<(), StoreError> {
        let mut own = self.own();
        own.write_epoch_file(true);
        match own.epoch_file_error.take() {
            None => Ok(()),
            Some(source) => {
                own.epoch_file_error = Some(std::io::Error::new(source.kind(), source.to_string()));
                Err(StoreError::EpochFile {
                    path: epoch_file::path_of(&file::real(&self.path)),
                    source,
                })
            }
        }
    }

    /// A number that changes when another connection has committed. None while the daemon itself
    /// uses the connection: its work is not to wait for this.
    ///
    /// # Errors
    /// Also `Replaced`: SQLite maps the `-shm`, so that reading one that was cut ends the process.
    async fn data_version(&self) -> Result<Option<i64>, StoreError> {
        let Ok(mut writer) = self.writer.try_lock() else {
            return Ok(None);
        };
        self.require_same_files(&mut writer).await?;
        let version = sqlx::query_scalar("PRAGMA data_version");
        Ok(Some(version.fetch_one(&mut *writer).await?))
    }

    /// Closes the file, which checkpoints the `-wal` when no producer has it open.
    pub async fn close(self) -> Result<(), StoreError> {
        Ok(self.writer.into_inner().close().await?)
    }

    /// Begins a transaction that writes, with the write guard.
    ///
    /// On a full disk or an I/O error SQLite rolls a transaction back on its own. sqlx then still
    /// counts it as open, and would begin no other on this connection for ever: the connection is
    /// replaced.
    ///
    /// # Errors
    /// Those of `check_identity`.
    pub(super) async fn begin<'c>(
        &'c self,
        writer: &'c mut SqliteConnection,
    ) -> Result<WriteGuard<'c>, StoreError> {
        if writer.is_in_transaction() {
            // A transaction that was dropped is rolled back in the background; this waits for it.
            writer.ping().await?;
        }
        self.require_same_files(writer).await?;
        if writer.is_in_transaction() {
            let former =
                std::mem::replace(writer, connect_writer(&self.path, &self.options).await?);
            // It has nothing left to do; a failure to close it is none of this transaction.
            let _ = former.close().await;
        }
        WriteGuard::take(writer.begin_with("BEGIN IMMEDIATE").await?, self).await
    }
}

impl Own {
    fn write_epoch_file(&mut self, synced: bool) {
        if let Some(writer) = &mut self.epoch_file {
            self.epoch_file_error = writer.write(self.high_water, synced && self.synced).err();
        }
    }
}

/// The error, once the connection is closed. One that is dropped is closed in the background some
/// time later, and may then tidy up what has come in the file's place.
async fn closed(connection: SqliteConnection, error: StoreError) -> StoreError {
    let _ = connection.close().await;
    error
}

async fn read_mark(connection: &mut SqliteConnection) -> Result<Option<Mark>, StoreError> {
    let found: Option<(Vec<u8>, i64)> = sqlx::query_as(
        "SELECT CAST(token AS BLOB), CAST(epoch AS INTEGER) FROM queue_mark WHERE id = 1",
    )
    .fetch_optional(connection)
    .await?;
    Ok(found.map(|(token, epoch)| Mark {
        token: rows::lossy(token),
        epoch,
    }))
}

async fn stamp_page(connection: &mut SqliteConnection) -> Result<StampPage, StoreError> {
    let (number, size) = sqlx::query_as(
        "SELECT rootpage, page_size FROM sqlite_master, pragma_page_size WHERE type = 'table' AND name = 'queue_stamp'",
    )
    .fetch_one(connection)
    .await?;
    Ok(StampPage { number, size })
}

async fn connect_writer(path: &Path, how: &StoreOptions) -> Result<SqliteConnection, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(if how.synced {
            SqliteSynchronous::Full
        } else {
            SqliteSynchronous::Off
        })
        .busy_timeout(how.busy_timeout)
        .pragma("journal_size_limit", WAL_SIZE_LIMIT.to_string())
        .pragma("cache_size", CACHE_SIZE)
        .pragma("temp_store", "MEMORY")
        // What the daemon's own statements write fits by what they are; the checks are for everybody
        // else, and cost a third of a claim. A debug build, and so the tests, makes them.
        .pragma(
            "ignore_check_constraints",
            if cfg!(debug_assertions) { "OFF" } else { "ON" },
        )
        .disable_statement_logging();
    options
        .connect()
        .await
        .map_err(|error| StoreError::opening(path, error))
}

/// The times of the schema, as text.
pub(super) fn text(time: UtcMillis) -> String {
    time.to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::model::{Lane, LaneKind, Origin, PowerAction, Service, TargetName};

    const NOW: UtcMillis = UtcMillis(4_000_000_000_000);

    async fn run(store: &Store, sql: &'static str) {
        sqlx::raw_sql(sql)
            .execute(&mut *store.writer.lock().await)
            .await
            .expect(sql);
    }

    async fn claim(store: &Store, action: PowerAction) -> Result<Option<Batch>, StoreError> {
        let lane = Lane {
            target: TargetName("default".into()),
            action,
            kind: LaneKind::default(),
            head_priority: 0,
            head_id: 1,
            ready: 1,
            oldest_eligible_at: NOW,
        };
        let origin = Origin {
            service: Service::Bms,
            endpoint: String::new(),
            project_id: String::new(),
        };
        let claim = Claim {
            lane: &lane,
            origin: &origin,
            which: Which::First(10),
            barred: &[],
            guard: None,
            now: NOW,
        };
        store.claim(&claim).await
    }

    #[tokio::test]
    async fn a_transaction_that_was_not_committed_is_not_the_last_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let refuse = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&refuse);
        let allow_commit: Arc<dyn Fn() -> bool + Send + Sync> =
            Arc::new(move || !asked.swap(false, Ordering::SeqCst));
        let options = StoreOptions {
            synced: false,
            allow_commit: Some(allow_commit),
            ..StoreOptions::default()
        };
        let store = Store::open_with(&dir.path().join("queue.db"), &options)
            .await
            .expect("a queue");
        run(
            &store,
            "INSERT INTO power_requests (server_id, action) VALUES ('a', 'stop')",
        )
        .await;
        refuse.store(true, Ordering::SeqCst);
        let failed = claim(&store, PowerAction::Stop).await;
        assert!(matches!(failed, Err(StoreError::Busy)), "{failed:?}");
        let claimed = claim(&store, PowerAction::Stop)
            .await
            .expect("the next transaction begins");
        assert_eq!(claimed.map(|batch| batch.members.len()), Some(1));
    }

    #[tokio::test]
    async fn a_reboot_in_doubt_shadows_one_that_was_inserted_before_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("queue.db");
        let store = Store::open(&path).await.expect("a queue");
        run(
            &store,
            "INSERT INTO power_requests (server_id, action, not_before) VALUES ('a', 'reboot', '2098-01-01');
             INSERT INTO power_requests (server_id, action) VALUES ('a', 'reboot');",
        )
        .await;
        let first = claim(&store, PowerAction::Reboot).await.expect("a claim");
        assert_eq!(first.expect("the second one").members[0].request.0, 2);
        run(
            &store,
            "UPDATE queue_mark SET writing = token;
             UPDATE power_requests SET state = 'unknown', evidence = 'none', gate = NULL,
                    finished_at = '2096-10-02T07:06:39.000Z' WHERE id = 2;
             UPDATE batches SET state = 'done', next_look_at = NULL, finished_at = '2096-10-02T07:06:39.000Z';
             UPDATE power_requests SET gate = 'ready', in_line = 1 WHERE id = 1;
             UPDATE queue_mark SET writing = NULL;",
        )
        .await;
        let second = claim(&store, PowerAction::Reboot).await.expect("a claim");
        let second = second.expect("the first one").id;
        // As another process reads it.
        let store = Store::open(&path).await.expect("a queue");
        let loaded = store.load_batch(second).await.expect("a batch");
        let (batch, _) = loaded.expect("it is there");
        assert_eq!(batch.members[0].request.0, 1);
        assert!(batch.members[0].shadowed);
    }
}
