//! Keeping the queue for years: old rows go, in small steps, and a copy that is put back is known for one.
//!
//! Ids are never given twice, also not by an older copy: a small file beside the queue, `PATH.epoch`, remembers how far they
//! went. Deletes only what has ended; decides nothing about power.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteConnection;

use super::holds::put_hold;
use super::{Store, StoreError, WAL_SIZE_LIMIT, rows, text};
use crate::model::{HoldKind, UtcMillis};
use crate::plan::Hold;

/// Rows looked at in one transaction, so that it stays short.
const CHUNK: i64 = 300;
/// Free pages given back to the file system after each chunk.
const VACUUM_PAGES: &str = "PRAGMA incremental_vacuum(512)";
/// Ids left out after a restore: more than anybody inserts between two notes of the last one.
const IDS_SKIPPED: i64 = 1_000_000;

/// How far a prune has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prune {
    /// Requests deleted.
    pub requests: u64,
    /// Batches deleted.
    pub batches: u64,
    /// Everything older has been looked at.
    pub done: bool,
    request_cursor: i64,
    batch_cursor: i64,
    requests_done: bool,
}

/// Looks at one chunk more: deletes requests that ended before `cutoff` and that nobody waits for, then batches without
/// requests. Takes any connection, so that a command prunes the same way as the daemon.
pub(super) async fn prune_chunk(
    connection: &mut SqliteConnection,
    so_far: Prune,
    cutoff: UtcMillis,
) -> Result<Prune, StoreError> {
    let next = match so_far.requests_done {
        false => prune_requests(connection, so_far, cutoff).await?,
        true => prune_batches(connection, so_far, cutoff).await?,
    };
    if next.requests + next.batches > so_far.requests + so_far.batches {
        sqlx::query(VACUUM_PAGES).fetch_all(connection).await?;
    }
    Ok(next)
}

async fn prune_requests(
    connection: &mut SqliteConnection,
    mut prune: Prune,
    cutoff: UtcMillis,
) -> Result<Prune, StoreError> {
    let found: Vec<(i64, String, Option<String>)> =
        sqlx::query_as("SELECT id, created_at, finished_at FROM power_requests WHERE id > ? ORDER BY id LIMIT 0 + ?")
            .bind(prune.request_cursor)
            .bind(CHUNK)
            .fetch_all(&mut *connection)
            .await?;
    let cutoff = text(cutoff);
    // Ids are the order of arrival: behind one that came in since, none can have ended before.
    let old: Vec<_> = found.iter().take_while(|(_, created_at, _)| *created_at < cutoff).collect();
    prune.requests_done = old.len() < CHUNK as usize;
    prune.request_cursor = old.last().map_or(prune.request_cursor, |(id, ..)| *id);
    let ended = old.iter().filter(|(.., finished_at)| finished_at.as_ref().is_some_and(|at| *at < cutoff));
    let ids: Vec<i64> = ended.map(|(id, ..)| *id).collect();
    if ids.is_empty() {
        return Ok(prune);
    }
    let ids = serde_json::to_string(&ids).unwrap_or_default();
    let mut tx = sqlx::Connection::begin_with(connection, "BEGIN IMMEDIATE").await?;
    let deleted = sqlx::query(
        "DELETE FROM power_requests WHERE id IN (SELECT value FROM json_each(?1)) AND finished_at IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM power_requests w WHERE w.after_id = power_requests.id AND w.gate IS NOT NULL)",
    )
    .bind(&ids)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "DELETE FROM request_attempts WHERE request_id IN (SELECT value FROM json_each(?1)) AND result IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM power_requests r WHERE r.id = request_attempts.request_id)",
    )
    .bind(&ids)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    prune.requests += deleted.rows_affected();
    Ok(prune)
}

async fn prune_batches(
    connection: &mut SqliteConnection,
    mut prune: Prune,
    cutoff: UtcMillis,
) -> Result<Prune, StoreError> {
    let found: Vec<(i64, String)> =
        sqlx::query_as("SELECT id, intent_at FROM batches WHERE id > ? ORDER BY id LIMIT 0 + ?")
            .bind(prune.batch_cursor)
            .bind(CHUNK)
            .fetch_all(&mut *connection)
            .await?;
    let cutoff = text(cutoff);
    let old: Vec<i64> = found.iter().take_while(|(_, intent_at)| *intent_at < cutoff).map(|(id, _)| *id).collect();
    prune.done = old.len() < CHUNK as usize;
    prune.batch_cursor = old.last().copied().unwrap_or(prune.batch_cursor);
    let deleted = sqlx::query(
        "DELETE FROM batches WHERE id IN (SELECT value FROM json_each(?1)) AND state = 'done' AND finished_at < ?2
            AND NOT EXISTS (SELECT 1 FROM request_attempts a WHERE a.batch_id = batches.id)",
    )
    .bind(serde_json::to_string(&old).unwrap_or_default())
    .bind(cutoff)
    .execute(connection)
    .await?;
    prune.batches += deleted.rows_affected();
    Ok(prune)
}

/// What the file beside the queue says: how far this queue has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct EpochNote {
    epoch: i64,
    last_id: i64,
    last_batch_id: i64,
}

impl EpochNote {
    /// None if there is no such file, or it does not read: then only a mark in the queue itself tells of a restore.
    fn read(queue: &Path) -> Option<Self> {
        serde_json::from_str(&std::fs::read_to_string(note_path(queue)).ok()?).ok()
    }

    /// Replaces the file as a whole.
    fn write(self, queue: &Path) -> std::io::Result<()> {
        let path = note_path(queue);
        let partial = beside(&path, ".partial");
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&partial)?;
        file.write_all(serde_json::to_string(&self)?.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(partial, path)
    }
}

fn note_path(queue: &Path) -> PathBuf {
    beside(queue, ".epoch")
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// What was found of a queue that is an older copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Requests that were unfinished in it.
    pub unfinished: i64,
    /// When the copy was made, if `db backup` made it.
    pub copied_at: Option<String>,
}

impl Store {
    /// Begins a new epoch. A copy, marked by `db backup` or older than the note beside the queue, has its requests put on hold
    /// and its ids moved past all that were ever given.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn begin_epoch(&self, now: UtcMillis) -> Result<Option<Restored>, StoreError> {
        let note = EpochNote::read(&self.path).unwrap_or_default();
        let mut writer = self.writer.lock().await;
        let mut tx = self.begin(&mut writer).await?;
        let (epoch, copied_at): (i64, Option<String>) =
            sqlx::query_as("SELECT epoch, CAST(copied_at AS TEXT) FROM queue_mark").fetch_one(&mut *tx).await?;
        let is_copy = copied_at.is_some() || note.epoch > epoch;
        let restored = if is_copy { Some(hold_restored(&mut tx, note, copied_at, now).await?) } else { None };
        sqlx::query("UPDATE queue_mark SET epoch = max(epoch, ?) + 1, copied_at = NULL")
            .bind(note.epoch)
            .execute(&mut *tx)
            .await?;
        let note = read_note(&mut tx).await?;
        tx.commit().await?;
        // If it cannot be written now, it is tried again as the daemon works.
        let _ = self.write_note(note);
        Ok(restored)
    }

    /// Raises the epoch if anything was written since `seen`; returns what is to be passed the next time.
    ///
    /// # Errors
    /// Those of the store, and `Unusable` when the note cannot be written.
    pub async fn raise_epoch(&self, seen: Option<(i64, i64)>) -> Result<(i64, i64), StoreError> {
        const WRITTEN: &str = "SELECT total_changes(), data_version FROM pragma_data_version";
        let mut writer = self.writer.lock().await;
        let now: (i64, i64) = sqlx::query_as(WRITTEN).fetch_one(&mut *writer).await?;
        if Some(now) == seen {
            return Ok(now);
        }
        sqlx::query("UPDATE queue_mark SET epoch = epoch + 1").execute(&mut *writer).await?;
        let note = read_note(&mut writer).await?;
        let seen = sqlx::query_as(WRITTEN).fetch_one(&mut *writer).await?;
        self.write_note(note)?;
        Ok(seen)
    }

    /// Looks at one chunk more of what ended before `cutoff`.
    pub async fn prune(&self, so_far: Prune, cutoff: UtcMillis) -> Result<Prune, StoreError> {
        let mut writer = self.writer.lock().await;
        // As for any other transaction of ours, the connection must be fit to begin one.
        self.begin(&mut writer).await?.rollback().await?;
        prune_chunk(&mut writer, so_far, cutoff).await
    }

    /// Cuts a `-wal` back that has grown beyond its limit. False if somebody was at work in it, longer than `patience`.
    ///
    /// SQLite itself does so only when this connection begins the file anew; producers' connections have no limit. While it
    /// is waited, nobody else can write: so whoever begins to read reads all that there is, and once the readers from before
    /// have left, and then those that came until all was copied, nobody is in the file any more.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn bound_wal(&self, patience: Duration) -> Result<bool, StoreError> {
        if std::fs::metadata(beside(&self.path, "-wal")).map_or(0, |wal| wal.len()) <= WAL_SIZE_LIMIT {
            return Ok(true);
        }
        let mut writer = self.writer.lock().await;
        // The copying holds up nobody; what is left for the cut is done under the lock of writers.
        sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(&mut *writer).await?;
        set_busy_timeout(&mut writer, patience).await?;
        let cut = sqlx::query_scalar::<_, i64>("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut *writer).await;
        set_busy_timeout(&mut writer, self.options.busy_timeout).await?;
        Ok(cut? == 0)
    }

    fn write_note(&self, note: EpochNote) -> Result<(), StoreError> {
        note.write(&self.path).map_err(|source| StoreError::Unusable { path: note_path(&self.path), source })
    }
}

async fn set_busy_timeout(connection: &mut SqliteConnection, timeout: Duration) -> Result<(), StoreError> {
    let pragma = format!("PRAGMA busy_timeout = {}", timeout.as_millis());
    sqlx::query(sqlx::AssertSqlSafe(pragma)).execute(connection).await?;
    Ok(())
}

async fn read_note(connection: &mut SqliteConnection) -> Result<EpochNote, StoreError> {
    let (epoch, last_id, last_batch_id) = sqlx::query_as(
        "SELECT epoch, ifnull((SELECT seq FROM sqlite_sequence WHERE name = 'power_requests'), 0),
                ifnull((SELECT seq FROM sqlite_sequence WHERE name = 'batches'), 0) FROM queue_mark",
    )
    .fetch_one(connection)
    .await?;
    Ok(EpochNote { epoch, last_id, last_batch_id })
}

/// Puts everything on hold that was unfinished in the copy, and moves its ids on.
async fn hold_restored(
    tx: &mut SqliteConnection,
    note: EpochNote,
    copied_at: Option<String>,
    now: UtcMillis,
) -> Result<Restored, StoreError> {
    let own = read_note(tx).await?;
    let unfinished: i64 =
        sqlx::query_scalar("SELECT count(*) FROM power_requests WHERE gate IS NOT NULL").fetch_one(&mut *tx).await?;
    if unfinished > 0 {
        let of = rows::readable_time(copied_at.clone()).map(|at| format!(" of {at}")).unwrap_or_default();
        let reason = format!(
            "this queue is an older copy{of}; what became of its unfinished requests since is not in it: see `poweryard db release --help`"
        );
        let kind = HoldKind::Restored;
        put_hold(tx, &Hold { target: None, action: None, kind, reason, since: now, until: None }).await?;
    }
    sqlx::query("UPDATE queue_mark SET restored_last_id = max(ifnull(restored_last_id, 0), ?)")
        .bind(own.last_id)
        .execute(&mut *tx)
        .await?;
    for (table, last) in
        [("power_requests", own.last_id.max(note.last_id)), ("batches", own.last_batch_id.max(note.last_batch_id))]
    {
        sqlx::query("DELETE FROM sqlite_sequence WHERE name = ?").bind(table).execute(&mut *tx).await?;
        sqlx::query("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)")
            .bind(table)
            .bind(last + IDS_SKIPPED)
            .execute(&mut *tx)
            .await?;
    }
    Ok(Restored { unfinished, copied_at })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use sqlx::{ConnectOptions, sqlite::SqliteConnectOptions};

    #[tokio::test]
    async fn a_wal_that_producers_have_grown_is_cut_back_once_nobody_is_in_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("queue.db");
        let store = Store::open(&path).await.expect("a queue");
        let size = || std::fs::metadata(dir.path().join("queue.db-wal")).expect("it is there").len();
        let options = SqliteConnectOptions::new().filename(&path);
        let mut producer = options.connect().await.expect("connected");
        let mut reader = options.connect().await.expect("connected");
        for sql in ["BEGIN", "SELECT count(*) FROM power_requests"] {
            sqlx::query(sql).execute(&mut reader).await.expect("read");
        }
        let large = format!("CREATE TABLE large AS SELECT zeroblob({WAL_SIZE_LIMIT}) AS bytes");
        sqlx::query(sqlx::AssertSqlSafe(large)).execute(&mut producer).await.expect("written");
        assert!(size() > WAL_SIZE_LIMIT);
        assert!(!store.bound_wal(Duration::ZERO).await.expect("a reader is no failure"));
        assert!(size() > WAL_SIZE_LIMIT);
        sqlx::query("COMMIT").execute(&mut reader).await.expect("it leaves");
        assert!(store.bound_wal(Duration::ZERO).await.expect("nobody is in it"));
        assert_eq!(size(), 0);
    }

    /// Reads for a tenth of a second each time, until told to end.
    async fn read_on(options: SqliteConnectOptions, begins_after: Duration, ended: Arc<AtomicBool>) {
        let mut reader = options.connect().await.expect("connected");
        tokio::time::sleep(begins_after).await;
        while !ended.load(Ordering::SeqCst) {
            for sql in ["BEGIN", "SELECT count(*) FROM power_requests"] {
                sqlx::query(sql).execute(&mut reader).await.expect("read");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            sqlx::query("COMMIT").execute(&mut reader).await.expect("it leaves");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_large_wal_is_cut_although_short_readers_overlap_all_the_time() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("queue.db");
        let store = Store::open(&path).await.expect("a queue");
        let size = || std::fs::metadata(dir.path().join("queue.db-wal")).expect("it is there").len();
        let options = SqliteConnectOptions::new().filename(&path).busy_timeout(Duration::from_secs(10));
        let mut producer = options.clone().connect().await.expect("connected");
        let large = format!("CREATE TABLE large AS SELECT zeroblob({WAL_SIZE_LIMIT}) AS bytes");
        let ended = Arc::new(AtomicBool::new(false));
        let begin = |offset: u64| read_on(options.clone(), Duration::from_millis(offset), Arc::clone(&ended));
        let readers: Vec<_> = [0, 33, 66].into_iter().map(|offset| tokio::spawn(begin(offset))).collect();
        sqlx::query(sqlx::AssertSqlSafe(large)).execute(&mut producer).await.expect("written");
        assert!(size() > WAL_SIZE_LIMIT);
        let mut tries = 0;
        while !store.bound_wal(Duration::from_millis(50 << tries)).await.expect("readers are no failure") {
            tries += 1;
            assert!(tries < 6, "the readers keep it from being cut");
        }
        assert!(size() < WAL_SIZE_LIMIT);
        ended.store(true, Ordering::SeqCst);
        for reader in readers {
            reader.await.expect("it read on");
        }
    }
}
