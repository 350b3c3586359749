//! Keeping the queue for years: old rows go, in small steps, and a copy that is put back is known
//! for one.
//!
//! Ids are never given twice, also not by an older copy: a small file beside the queue,
//! `PATH.epoch`, remembers how far they went (`note`). Deletes only what has ended; decides nothing
//! about power.

use std::time::Duration;

use sqlx::sqlite::SqliteConnection;

use super::batches::SHADOW;
use super::hand;
use super::holds::put_hold;
use super::note::{self, MOST, Note};
use super::snapshot::Snapshot;
use super::{Mark, Store, StoreError, WAL_SIZE_LIMIT, file, gate, orders, rows, stamp_page, text};
use crate::model::{Hold, HoldKind, PowerAction, UtcMillis};

/// Rows looked at in one transaction, so that it stays short.
const CHUNK: i64 = 300;
/// Batches whose requests still stand in the line, before they leave it beside other work.
pub(super) const LINGERING_MAX: i64 = 256;
/// Requests that leave the line in one transaction then.
const LEAVING_MAX: i64 = 3000;
/// The same in a quiet moment: what is committed meanwhile hardly waits for it.
const LEAVING_QUIETLY: i64 = 500;
/// Free pages given back to the file system after each chunk.
const VACUUM_PAGES: &str = "PRAGMA incremental_vacuum(512)";
/// Ids left out after a restore: more than anybody inserts between two notes of the last one.
const IDS_SKIPPED: i64 = 1_000_000;

/// How far a prune has come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prune {
    /// Requests deleted.
    pub requests: u64,
    /// Batches deleted.
    pub batches: u64,
    /// Rows of orders deleted.
    pub orders: u64,
    /// Everything older has been looked at.
    pub done: bool,
    requests_done: bool,
    /// The end and the id of the last row that was looked at.
    cursor: (String, i64),
}

impl Prune {
    /// True if more has been deleted than in `earlier`.
    pub(super) fn deleted_since(&self, earlier: &Self) -> bool {
        self.deleted() > earlier.deleted()
    }

    fn deleted(&self) -> u64 {
        self.requests + self.batches + self.orders
    }
}

/// Looks at one chunk more, inside a transaction that has the hand: deletes requests that ended
/// before `cutoff`, that nobody waits for and that cast no doubt on others, then batches without requests that no budget needs
/// any more at `now`.
///
/// It goes by when a row ended. One that ended while the clock was ahead stays until that time has
/// come and is past.
pub(in crate::store) async fn prune_chunk(
    tx: &mut SqliteConnection,
    mut so_far: Prune,
    cutoff: UtcMillis,
    now: UtcMillis,
) -> Result<Prune, StoreError> {
    let (end, id) = &so_far.cursor;
    let ended = match so_far.requests_done {
        false => {
            "SELECT finished_at, id FROM power_requests
             WHERE finished_at IS NOT NULL AND finished_at < ?1 AND (finished_at, id) > (?2, ?3)
             ORDER BY finished_at, id LIMIT 0 + ?4"
        }
        true => {
            "SELECT finished_at, id FROM batches
             WHERE finished_at IS NOT NULL AND finished_at < ?1 AND (finished_at, id) > (?2, ?3)
             ORDER BY finished_at, id LIMIT 0 + ?4"
        }
    };
    let found: Vec<(String, i64)> = sqlx::query_as(ended)
        .bind(text(cutoff))
        .bind(end)
        .bind(id)
        .bind(CHUNK)
        .fetch_all(&mut *tx)
        .await?;
    let ids = rows::list(found.iter().map(|(_, id)| id));
    match so_far.requests_done {
        false => so_far.requests += prune_requests(tx, &ids, now).await?,
        true => so_far.batches += prune_batches(tx, &ids, now).await?,
    }
    let walked = found.len() < CHUNK as usize;
    so_far.done = walked && so_far.requests_done;
    if so_far.done {
        so_far.orders += orders::prune(tx, cutoff).await?;
    }
    so_far.requests_done |= walked;
    so_far.cursor = found
        .into_iter()
        .last()
        .filter(|_| !walked)
        .unwrap_or_default();
    Ok(so_far)
}

/// Gives free pages back to the file system.
pub(in crate::store) async fn shrink(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    sqlx::query(VACUUM_PAGES).fetch_all(connection).await?;
    Ok(())
}

async fn prune_requests(
    tx: &mut SqliteConnection,
    ids: &str,
    now: UtcMillis,
) -> Result<u64, StoreError> {
    // A reboot that may still be under way casts doubt on what is seen of its server.
    let deleted = sqlx::query(
        "DELETE FROM power_requests WHERE id IN (SELECT value FROM json_each(?1)) AND finished_at IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM power_requests w WHERE w.after_id = power_requests.id AND w.gate IS NOT NULL)
            AND NOT (finished_at > ?2 AND action IN (SELECT value FROM json_each(?3))
                     AND (state = 'unknown' OR (state = 'failed' AND evidence = 'job')))",
    )
    .bind(ids)
    .bind(text(now.before(SHADOW)))
    .bind(rows::actions(PowerAction::leaves_no_mark))
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "DELETE FROM earlier_attempts WHERE request_id IN (SELECT value FROM json_each(?1))
            AND NOT EXISTS (SELECT 1 FROM power_requests r WHERE r.id = earlier_attempts.request_id)",
    )
    .bind(ids)
    .execute(tx)
    .await?;
    Ok(deleted.rows_affected())
}

async fn prune_batches(
    tx: &mut SqliteConnection,
    ids: &str,
    now: UtcMillis,
) -> Result<u64, StoreError> {
    // Requests that somebody else has deleted leave their attempts behind.
    sqlx::query(
        "DELETE FROM earlier_attempts WHERE batch_id IN (SELECT value FROM json_each(?1))
            AND NOT EXISTS (SELECT 1 FROM power_requests r WHERE r.id = earlier_attempts.request_id)",
    )
    .bind(ids)
    .execute(&mut *tx)
    .await?;
    let deleted = sqlx::query(
        "DELETE FROM batches WHERE id IN (SELECT value FROM json_each(?1)) AND state = 'done'
            AND NOT EXISTS (SELECT 1 FROM power_requests r WHERE r.batch_id = batches.id)
            AND NOT EXISTS (SELECT 1 FROM earlier_attempts a WHERE a.batch_id = batches.id)
            AND NOT EXISTS (SELECT 1 FROM targets t WHERE t.target = batches.target
                            AND julianday(batches.intent_at) > julianday(?2) - t.budget_ms / 86400000.0)",
    )
    .bind(ids)
    .bind(text(now))
    .execute(tx)
    .await?;
    Ok(deleted.rows_affected())
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
    /// Begins a new epoch, and makes this daemon the queue's own. A copy, marked by `db backup`,
    /// older than the note beside the queue, another file than that which the note was written for,
    /// or without a note, has its requests put on hold and its ids moved past all that were ever
    /// given.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn begin_epoch(&self, now: UtcMillis) -> Result<Option<Restored>, StoreError> {
        let note = Note::read(&file::real(&self.path));
        let is_moved = note.is_some_and(|note| note.is_of_another_file(&file::real(&self.path)));
        let mut writer = self.writer.lock().await;
        // Whose the queue was before does not matter: the lock is ours.
        let mut tx = sqlx::Connection::begin_with(&mut *writer, "BEGIN IMMEDIATE").await?;
        sqlx::query(
            "INSERT INTO queue_mark (id, epoch, token) SELECT 1, 0, lower(hex(randomblob(16)))
             WHERE NOT EXISTS (SELECT 1 FROM queue_mark)",
        )
        .execute(&mut *tx)
        .await?;
        hand::borrow(&mut tx).await?;
        let (epoch, copied_at, token): (i64, Option<String>, String) = sqlx::query_as(
            "SELECT epoch, CAST(copied_at AS TEXT), lower(hex(randomblob(16))) FROM queue_mark",
        )
        .fetch_one(&mut *tx)
        .await?;
        // A queue that was ever begun has a note. Without it nobody can tell how old this file is.
        let is_copy =
            copied_at.is_some() || is_moved || note.map_or(epoch > 0, |note| note.epoch > epoch);
        let restored = if is_copy {
            Some(hold_restored(&mut tx, note, copied_at, now).await?)
        } else {
            None
        };
        let mut noted_by = note::Writer::new(file::real(&self.path));
        if note.is_none() && epoch == 0 {
            // A kill between the commit and the note must not make the next start take a fresh
            // queue for a copy. If this fails, so does the note itself, and nothing leaves.
            let _ = noted_by.write(
                Note {
                    epoch,
                    ..Note::default()
                },
                self.options.synced,
            );
        }
        let note = note.unwrap_or_default();
        mend_sequences(&mut tx, note).await?;
        let epoch = epoch.max(note.epoch) + 1;
        sqlx::query("UPDATE queue_mark SET epoch = ?1, token = ?2, writing = ?2, copied_at = NULL")
            .bind(epoch)
            .bind(&token)
            .execute(&mut *tx)
            .await?;
        let note = read_note(&mut tx).await?;
        hand::give_back(&mut tx).await?;
        tx.commit().await?;
        // So that the stamp stands in the file itself. If a reader is in the way, a later
        // checkpoint brings it there.
        sqlx::query("PRAGMA wal_checkpoint(PASSIVE)")
            .execute(&mut *writer)
            .await?;
        let page = stamp_page(&mut writer).await?;
        let mut own = self.own();
        own.place.begin(&token, page);
        own.mark = Mark { token, epoch };
        own.note = note;
        own.noted_by = Some(noted_by);
        // If it cannot be written now, it is tried again before anything leaves.
        own.write_note(true);
        Ok(restored)
    }

    /// Ends the epoch in order: a copy that was made before is an older one from now on.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn end_epoch(&self) -> Result<(), StoreError> {
        self.raise_epoch(None).await?;
        Ok(())
    }

    /// Raises the epoch if anything was written since `seen`; returns what is to be passed the next
    /// time.
    ///
    /// # Errors
    /// Those of the store, and `Unnoted`.
    pub async fn raise_epoch(&self, seen: Option<(i64, i64)>) -> Result<(i64, i64), StoreError> {
        const WRITTEN: &str = "SELECT total_changes(), data_version FROM pragma_data_version";
        let mut writer = self.writer.lock().await;
        let now: (i64, i64) = sqlx::query_as(WRITTEN).fetch_one(&mut *writer).await?;
        if Some(now) == seen {
            return Ok(now);
        }
        let before = self.own().note;
        let mut tx = self.begin(&mut writer).await?;
        mend_sequences(&mut tx, before).await?;
        let note = read_note(&mut tx).await?;
        tx.commit().await?;
        self.own().note = note;
        let seen = sqlx::query_as(WRITTEN).fetch_one(&mut *writer).await?;
        self.require_note()?;
        Ok(seen)
    }

    /// Mends the last ids that SQLite keeps, if somebody has set them back or beyond all reason: no
    /// row could be inserted.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn mend_ids(&self, seen: &Snapshot) -> Result<(), StoreError> {
        let known = self.own().note;
        let last = seen.last;
        let is_possible = |last: i64, known: i64| (known..=MOST + IDS_SKIPPED).contains(&last);
        if is_possible(last.last_id, known.last_id)
            && is_possible(last.last_batch_id, known.last_batch_id)
        {
            return Ok(());
        }
        let mut writer = self.writer.lock().await;
        let mut tx = self.begin(&mut writer).await?;
        mend_sequences(&mut tx, known).await?;
        tx.commit().await
    }

    /// Requests of batches that are done leave the line of their servers: some at a time, in quiet
    /// moments or once there are many. True if some have left: there may be more.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn leave_line(&self, seen: &Snapshot, is_quiet: bool) -> Result<bool, StoreError> {
        let rows_max = match (seen.lingering, is_quiet) {
            (0, _) => return Ok(false),
            (LINGERING_MAX, _) => LEAVING_MAX,
            (_, true) => LEAVING_QUIETLY,
            (_, false) => return Ok(false),
        };
        let mut writer = self.writer.lock().await;
        let mut tx = self.begin(&mut writer).await?;
        let left = gate::leave_line(&mut tx, rows_max).await?;
        tx.commit().await?;
        Ok(left > 0)
    }

    /// Looks at one chunk more of what ended before `cutoff`.
    pub async fn prune(
        &self,
        so_far: Prune,
        cutoff: UtcMillis,
        now: UtcMillis,
    ) -> Result<Prune, StoreError> {
        let mut writer = self.writer.lock().await;
        let mut tx = self.begin(&mut writer).await?;
        let next = prune_chunk(&mut tx, so_far.clone(), cutoff, now).await?;
        if next.deleted_since(&so_far) {
            tx.commit().await?;
            shrink(&mut writer).await?;
        } else {
            tx.rollback().await?;
        }
        Ok(next)
    }

    /// Cuts a `-wal` back that has grown beyond its limit. False if somebody was at work in it,
    /// longer than `patience`.
    ///
    /// SQLite itself does so only when this connection begins the file anew; producers' connections
    /// have no limit. While it is waited, nobody else can write: so whoever begins to read reads
    /// all that there is, and once the readers from before have left, and then those that came
    /// until all was copied, nobody is in the file any more.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn bound_wal(&self, patience: Duration) -> Result<bool, StoreError> {
        if std::fs::metadata(file::beside(&file::real(&self.path), "-wal"))
            .map_or(0, |wal| wal.len())
            <= WAL_SIZE_LIMIT
        {
            return Ok(true);
        }
        let mut writer = self.writer.lock().await;
        // The copying holds up nobody; what is left for the cut is done under the lock of writers.
        sqlx::query("PRAGMA wal_checkpoint(PASSIVE)")
            .execute(&mut *writer)
            .await?;
        set_busy_timeout(&mut writer, patience).await?;
        let cut = sqlx::query_scalar::<_, i64>("PRAGMA wal_checkpoint(TRUNCATE)")
            .fetch_one(&mut *writer)
            .await;
        set_busy_timeout(&mut writer, self.options.busy_timeout).await?;
        Ok(cut? == 0)
    }
}

async fn set_busy_timeout(
    connection: &mut SqliteConnection,
    timeout: Duration,
) -> Result<(), StoreError> {
    let pragma = format!("PRAGMA busy_timeout = {}", timeout.as_millis());
    sqlx::query(sqlx::AssertSqlSafe(pragma))
        .execute(connection)
        .await?;
    Ok(())
}

async fn read_note(connection: &mut SqliteConnection) -> Result<Note, StoreError> {
    let (epoch, last_id, last_batch_id) = sqlx::query_as(
        "SELECT epoch, ifnull((SELECT CAST(seq AS INTEGER) FROM sqlite_sequence WHERE name = 'power_requests'), 0),
                ifnull((SELECT CAST(seq AS INTEGER) FROM sqlite_sequence WHERE name = 'batches'), 0) FROM queue_mark",
    )
    .fetch_one(connection)
    .await?;
    Ok(Note {
        epoch,
        last_id,
        last_batch_id,
        ..Note::default()
    })
}

/// SQLite's own table of the last ids is open to anybody. Set back, it gives ids twice; set to its
/// maximum, it gives none.
async fn mend_sequences(tx: &mut SqliteConnection, note: Note) -> Result<(), StoreError> {
    let own = read_note(tx).await?;
    let (request, batch): (i64, i64) = sqlx::query_as(
        "SELECT ifnull((SELECT max(id) FROM power_requests), 0), ifnull((SELECT max(id) FROM batches), 0)",
    )
    .fetch_one(&mut *tx)
    .await?;
    for (table, now, least) in [
        ("power_requests", own.last_id, request.max(note.last_id)),
        ("batches", own.last_batch_id, batch.max(note.last_batch_id)),
    ] {
        if !(least..=MOST).contains(&now) {
            set_sequence(tx, table, least).await?;
        }
    }
    Ok(())
}

async fn set_sequence(tx: &mut SqliteConnection, table: &str, last: i64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM sqlite_sequence WHERE name = ?")
        .bind(table)
        .execute(&mut *tx)
        .await?;
    sqlx::query("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)")
        .bind(table)
        .bind(last)
        .execute(tx)
        .await?;
    Ok(())
}

/// Puts everything on hold that was unfinished in the copy, and moves its ids on.
async fn hold_restored(
    tx: &mut SqliteConnection,
    note: Option<Note>,
    copied_at: Option<String>,
    now: UtcMillis,
) -> Result<Restored, StoreError> {
    let own = read_note(tx).await?;
    let unfinished: i64 = sqlx::query_scalar("SELECT ifnull(sum(count), 0) FROM queue_overview")
        .fetch_one(&mut *tx)
        .await?;
    if unfinished > 0 {
        let what = match (rows::readable_time(copied_at.clone()), note) {
            (Some(at), _) => format!("this queue is an older copy of {at}"),
            (None, Some(note)) if note.epoch <= own.epoch => {
                "this file was put in place of the queue and may be an older copy".to_owned()
            }
            (None, Some(_)) => "this queue is an older copy".to_owned(),
            (None, None) => {
                "this queue may be an older copy (the .epoch file beside it is missing)".to_owned()
            }
        };
        let reason = format!(
            "{what}; it does not know what has happened to its unfinished requests since then: see `poweryard db release --help`"
        );
        let kind = HoldKind::Restored;
        put_hold(
            tx,
            &Hold {
                target: None,
                action: None,
                label: None,
                kind,
                reason,
                since: now,
                until: None,
            },
        )
        .await?;
    }
    let note = note.unwrap_or_default();
    sqlx::query("UPDATE queue_mark SET restored_last_id = max(ifnull(restored_last_id, 0), ?)")
        .bind(own.last_id)
        .execute(&mut *tx)
        .await?;
    // The servers' later operations are in no row: that they are idle proves nothing of these calls.
    sqlx::query("UPDATE batches SET from_copy = 1 WHERE state <> 'done'")
        .execute(&mut *tx)
        .await?;
    // What a stranger set beyond all reason is mended after this.
    let next = |own: i64, noted: i64| own.max(noted).min(MOST) + IDS_SKIPPED;
    set_sequence(tx, "power_requests", next(own.last_id, note.last_id)).await?;
    set_sequence(tx, "batches", next(own.last_batch_id, note.last_batch_id)).await?;
    Ok(Restored {
        unfinished,
        copied_at,
    })
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
        let size = || {
            std::fs::metadata(dir.path().join("queue.db-wal"))
                .expect("it is there")
                .len()
        };
        let options = SqliteConnectOptions::new().filename(&path);
        let mut producer = options.connect().await.expect("connected");
        let mut reader = options.connect().await.expect("connected");
        for sql in ["BEGIN", "SELECT count(*) FROM power_requests"] {
            sqlx::query(sql).execute(&mut reader).await.expect("read");
        }
        let large = format!("CREATE TABLE large AS SELECT zeroblob({WAL_SIZE_LIMIT}) AS bytes");
        sqlx::query(sqlx::AssertSqlSafe(large))
            .execute(&mut producer)
            .await
            .expect("written");
        assert!(size() > WAL_SIZE_LIMIT);
        assert!(
            !store
                .bound_wal(Duration::ZERO)
                .await
                .expect("a reader is no failure")
        );
        assert!(size() > WAL_SIZE_LIMIT);
        sqlx::query("COMMIT")
            .execute(&mut reader)
            .await
            .expect("it leaves");
        assert!(
            store
                .bound_wal(Duration::ZERO)
                .await
                .expect("nobody is in it")
        );
        assert_eq!(size(), 0);
    }

    /// Reads for a tenth of a second each time, until told to end.
    async fn read_on(
        options: SqliteConnectOptions,
        begins_after: Duration,
        ended: Arc<AtomicBool>,
    ) {
        let mut reader = options.connect().await.expect("connected");
        tokio::time::sleep(begins_after).await;
        while !ended.load(Ordering::SeqCst) {
            for sql in ["BEGIN", "SELECT count(*) FROM power_requests"] {
                sqlx::query(sql).execute(&mut reader).await.expect("read");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            sqlx::query("COMMIT")
                .execute(&mut reader)
                .await
                .expect("it leaves");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_large_wal_is_cut_although_short_readers_overlap_all_the_time() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("queue.db");
        let store = Store::open(&path).await.expect("a queue");
        let size = || {
            std::fs::metadata(dir.path().join("queue.db-wal"))
                .expect("it is there")
                .len()
        };
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .busy_timeout(Duration::from_secs(10));
        let mut producer = options.clone().connect().await.expect("connected");
        let large = format!("CREATE TABLE large AS SELECT zeroblob({WAL_SIZE_LIMIT}) AS bytes");
        let ended = Arc::new(AtomicBool::new(false));
        let begin = |offset: u64| {
            read_on(
                options.clone(),
                Duration::from_millis(offset),
                Arc::clone(&ended),
            )
        };
        let readers: Vec<_> = [0, 33, 66]
            .into_iter()
            .map(|offset| tokio::spawn(begin(offset)))
            .collect();
        sqlx::query(sqlx::AssertSqlSafe(large))
            .execute(&mut producer)
            .await
            .expect("written");
        assert!(size() > WAL_SIZE_LIMIT);
        let mut tries = 0;
        while !store
            .bound_wal(Duration::from_millis(50 << tries))
            .await
            .expect("readers are no failure")
        {
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
