//! Keeping the queue for years: old rows are deleted in small steps, and the `-wal` stays small.
//! Deletes only what has ended; decides nothing about power.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::SqliteConnection;

use super::batches::SHADOW;
use super::{Exported, Store, StoreError, WAL_SIZE_LIMIT, file, orders, rows, text};
use crate::model::{PowerAction, UtcMillis};

/// Rows looked at in one transaction, so that it stays short: beside ten million others, 300 of them
/// took 150 ms.
const CHUNK: i64 = 100;
/// Batches whose requests are still in the line, before they leave it beside other work: a million
/// requests. A drain is not slowed down by what can be done after it.
pub(super) const LINGERING_MAX: i64 = 1024;
/// Free pages given back to the file system after each chunk.
const VACUUM_PAGES: &str = "PRAGMA incremental_vacuum(128)";

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
    pub(in crate::store) fn deleted_since(&self, earlier: &Self) -> bool {
        self.deleted() > earlier.deleted()
    }

    /// True while the next chunk is about requests, and not about batches.
    pub(super) fn looks_at_requests(&self) -> bool {
        !self.requests_done
    }

    fn deleted(&self) -> u64 {
        self.requests + self.batches + self.orders
    }
}

/// Looks at one chunk more, inside a transaction that has the write guard: deletes requests that
/// ended before `cutoff`, that nobody waits for and that cast no doubt on others, then batches
/// without requests that no budget needs any more at `now`. Of `exported`, if it is given, only what
/// was written there before.
///
/// It goes by when a row ended. One that ended while the clock was ahead stays until that time has
/// come and is past.
pub(in crate::store) async fn prune_chunk(
    tx: &mut SqliteConnection,
    mut so_far: Prune,
    cutoff: UtcMillis,
    now: UtcMillis,
    exported: Option<&Exported>,
) -> Result<Prune, StoreError> {
    let found = next_rows(tx, &so_far, cutoff).await?;
    let ids: Vec<i64> = found.iter().map(|(_, id)| *id).collect();
    if so_far.requests_done {
        let orphans = match exported {
            Some(exported) => exported.orphans.clone(),
            None => orphans(tx, &ids).await?,
        };
        so_far.batches += prune_batches(tx, &ids, &orphans, now).await?;
    } else {
        let ids = exported.map_or(&ids, |exported| &exported.requests);
        so_far.requests += prune_requests(tx, ids, now).await?;
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

/// The rows that the next chunk looks at.
pub(super) async fn next_chunk(
    connection: &mut SqliteConnection,
    so_far: &Prune,
    cutoff: UtcMillis,
) -> Result<Vec<i64>, StoreError> {
    let found = next_rows(connection, so_far, cutoff).await?;
    Ok(found.into_iter().map(|(_, id)| id).collect())
}

async fn next_rows(
    connection: &mut SqliteConnection,
    so_far: &Prune,
    cutoff: UtcMillis,
) -> Result<Vec<(String, i64)>, StoreError> {
    let (end, id) = &so_far.cursor;
    let ended = if so_far.requests_done {
        "SELECT finished_at, id FROM batches
         WHERE finished_at IS NOT NULL AND finished_at < $1 AND (finished_at, id) > ($2, $3)
         ORDER BY finished_at, id LIMIT 0 + $4"
    } else {
        "SELECT finished_at, id FROM power_requests
         WHERE finished_at IS NOT NULL AND finished_at < $1 AND (finished_at, id) > ($2, $3)
         ORDER BY finished_at, id LIMIT 0 + $4"
    };
    Ok(sqlx::query_as(ended)
        .bind(text(cutoff))
        .bind(end)
        .bind(id)
        .bind(CHUNK)
        .fetch_all(connection)
        .await?)
}

/// Gives free pages back to the file system.
pub(in crate::store) async fn shrink(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    sqlx::query(VACUUM_PAGES).fetch_all(connection).await?;
    Ok(())
}

/// Those of `ids` that may be deleted, in the order of their ends: a reboot that may still be under
/// way casts doubt on what is seen of its server, and the next wave of an order depends on how the
/// requests before it ended.
pub(super) async fn deletable(
    connection: &mut SqliteConnection,
    ids: &[i64],
    now: UtcMillis,
) -> Result<Vec<i64>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT r.id FROM json_each($1) j CROSS JOIN power_requests r ON r.id = j.value
         WHERE r.finished_at IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM power_requests w WHERE w.after_id = r.id AND w.gate IS NOT NULL)
            AND NOT EXISTS (SELECT 1 FROM orders o WHERE o.label = r.label AND o.state IS DISTINCT FROM 'done')
            AND NOT (r.finished_at > $2 AND r.action IN (SELECT value FROM json_each($3))
                     AND (r.state = 'unknown' OR (r.state = 'failed' AND r.evidence = 'job')))",
    )
    .bind(rows::list(ids))
    .bind(text(now.before(SHADOW)))
    .bind(rows::actions(PowerAction::leaves_no_mark))
    .fetch_all(connection)
    .await?)
}

async fn prune_requests(
    tx: &mut SqliteConnection,
    ids: &[i64],
    now: UtcMillis,
) -> Result<u64, StoreError> {
    let deletable = rows::list(&deletable(tx, ids, now).await?);
    let deleted = sqlx::query(
        "DELETE FROM power_requests WHERE id IN (SELECT value FROM json_each($1)) AND finished_at IS NOT NULL",
    )
    .bind(deletable)
    .execute(&mut *tx)
    .await?;
    let ids = rows::list(ids);
    sqlx::query(
        "DELETE FROM earlier_attempts WHERE request_id IN (SELECT value FROM json_each($1))
            AND NOT EXISTS (SELECT 1 FROM power_requests r WHERE r.id = earlier_attempts.request_id)",
    )
    .bind(&ids)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "DELETE FROM noted_overrides WHERE request_id IN (SELECT value FROM json_each($1))",
    )
    .bind(&ids)
    .execute(tx)
    .await?;
    Ok(deleted.rows_affected())
}

/// Attempts of these batches whose requests somebody else has deleted: request and batch.
pub(super) async fn orphans(
    connection: &mut SqliteConnection,
    batches: &[i64],
) -> Result<Vec<(i64, i64)>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT a.request_id, a.batch_id FROM json_each($1) j CROSS JOIN earlier_attempts a ON a.batch_id = j.value
         WHERE NOT EXISTS (SELECT 1 FROM power_requests r WHERE r.id = a.request_id)",
    )
    .bind(rows::list(batches))
    .fetch_all(connection)
    .await?)
}

async fn prune_batches(
    tx: &mut SqliteConnection,
    ids: &[i64],
    orphans: &[(i64, i64)],
    now: UtcMillis,
) -> Result<u64, StoreError> {
    sqlx::query(
        "DELETE FROM earlier_attempts
         WHERE (request_id, batch_id) IN (SELECT j.value ->> 0, j.value ->> 1 FROM json_each($1) j)",
    )
    .bind(serde_json::to_string(orphans).unwrap_or_default())
    .execute(&mut *tx)
    .await?;
    let deleted = sqlx::query(
        "DELETE FROM batches WHERE id IN (SELECT value FROM json_each($1)) AND state = 'done'
            AND NOT EXISTS (SELECT 1 FROM power_requests r WHERE r.batch_id = batches.id)
            AND NOT EXISTS (SELECT 1 FROM earlier_attempts a WHERE a.batch_id = batches.id)
            AND NOT EXISTS (SELECT 1 FROM targets t WHERE t.target = batches.target
                            AND batches.intent_steady_ms > $2 - t.budget_ms - (SELECT clock_set_ms FROM queue_mark))
            AND coalesce(submitted_steady_ms, intent_steady_ms) < $2 - 120000 - (SELECT clock_set_ms FROM queue_mark)",
    )
    .bind(rows::list(ids))
    .bind(now.0)
    .execute(tx)
    .await?;
    Ok(deleted.rows_affected())
}

/// True if requests that have ended may leave the line of their servers now.
pub(in crate::store) fn may_leave_line(lingering: i64, is_quiet: bool) -> bool {
    lingering >= LINGERING_MAX || (lingering > 0 && is_quiet)
}

/// True if the `-wal` has grown beyond its limit.
pub(in crate::store) fn is_wal_too_large(queue: &Path) -> bool {
    let wal = file::beside(&file::real(queue), "-wal");
    std::fs::metadata(wal).is_ok_and(|wal| wal.len() > WAL_SIZE_LIMIT)
}

/// Cuts the `-wal`; see `Store::bound_wal`.
pub(in crate::store) async fn cut_wal(
    store: &Store,
    writer: &mut SqliteConnection,
    patience: Duration,
) -> Result<bool, StoreError> {
    // The copying holds up nobody; what is left for the cut is done under the lock of writers.
    sqlx::query("PRAGMA wal_checkpoint(PASSIVE)")
        .execute(&mut *writer)
        .await?;
    set_busy_timeout(writer, patience).await?;
    let cut = sqlx::query_scalar::<_, i64>("PRAGMA wal_checkpoint(TRUNCATE)")
        .fetch_one(&mut *writer)
        .await;
    set_busy_timeout(writer, store.options.busy_timeout).await?;
    Ok(cut? == 0)
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
