//! Keeping the queue for years: old rows are deleted in small steps, and the `-wal` stays small.
//! Deletes only what has ended; decides nothing about power.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::SqliteConnection;

use super::batches::SHADOW;
use super::{Store, StoreError, WAL_SIZE_LIMIT, file, orders, rows, text};
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

    fn deleted(&self) -> u64 {
        self.requests + self.batches + self.orders
    }
}

/// Looks at one chunk more, inside a transaction that has the write guard: deletes requests that
/// ended before `cutoff`, that nobody waits for and that cast no doubt on others, then batches
/// without requests that no budget needs any more at `now`.
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
    let ended = if so_far.requests_done {
        "SELECT finished_at, id FROM batches
         WHERE finished_at IS NOT NULL AND finished_at < ?1 AND (finished_at, id) > (?2, ?3)
         ORDER BY finished_at, id LIMIT 0 + ?4"
    } else {
        "SELECT finished_at, id FROM power_requests
         WHERE finished_at IS NOT NULL AND finished_at < ?1 AND (finished_at, id) > (?2, ?3)
         ORDER BY finished_at, id LIMIT 0 + ?4"
    };
    let found: Vec<(String, i64)> = sqlx::query_as(ended)
        .bind(text(cutoff))
        .bind(end)
        .bind(id)
        .bind(CHUNK)
        .fetch_all(&mut *tx)
        .await?;
    let ids = rows::list(found.iter().map(|(_, id)| id));
    if so_far.requests_done {
        so_far.batches += prune_batches(tx, &ids, now).await?;
    } else {
        so_far.requests += prune_requests(tx, &ids, now).await?;
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
    // A reboot that may still be under way casts doubt on what is seen of its server. And the next wave
    // of an order depends on how the requests before it ended.
    let deleted = sqlx::query(
        "DELETE FROM power_requests WHERE id IN (SELECT value FROM json_each(?1)) AND finished_at IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM power_requests w WHERE w.after_id = power_requests.id AND w.gate IS NOT NULL)
            AND NOT EXISTS (SELECT 1 FROM orders o WHERE o.label = power_requests.label AND o.state IS NOT 'done')
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
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "DELETE FROM noted_overrides WHERE request_id IN (SELECT value FROM json_each(?1))",
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
                            AND julianday(batches.intent_at) > julianday(?2) - t.budget_ms / 86400000.0)
            AND julianday(coalesce(submitted_at, finished_at, intent_at)) < julianday(?2, '-2 minutes')",
    )
    .bind(ids)
    .bind(text(now))
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
