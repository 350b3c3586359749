//! What becomes due, what expires, what waited in vain, and what is rejected. What may go is
//! `claim`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sqlx::sqlite::SqliteConnection;

use super::rows::list;
use super::{Store, StoreError, rows, text};
use crate::model::{OwnCode, PowerAction, RequestState, ServerId, TargetName, UtcMillis};

/// Rows moved in one transaction, so that ours stay under a few milliseconds whatever waits: a
/// producer that finds the queue locked sleeps for longer each time.
const CHUNK: i64 = 200;

/// How many requests ended without an answer of the cloud: by target, action, state and why.
pub type EndedCounts = BTreeMap<(TargetName, PowerAction, RequestState, OwnCode), u64>;

/// What a take-in pass did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TakenIn {
    /// Requests that became due (`not_before`, `after_id`, `retry_at`).
    pub due: u64,
    /// Requests that expired.
    pub expired: u64,
    /// Requests cancelled because what they waited for did not succeed.
    pub cancelled: u64,
    /// Those that expired or were cancelled, counted.
    pub ended: EndedCounts,
    /// Something is left to do: call again soon.
    pub more: bool,
}

impl Store {
    /// Lets out what is due, expires what is too old, cancels what waited in vain: one chunk of
    /// each.
    pub async fn take_in(
        &self,
        default_ttl: Option<Duration>,
        now: UtcMillis,
    ) -> Result<TakenIn, StoreError> {
        let mut writer = self.writer.lock().await;
        if !anything_due(&mut writer, default_ttl, now).await? {
            return Ok(TakenIn::default());
        }
        let mut tx = self.begin(&mut writer).await?;
        let expired = expire(&mut tx, default_ttl, now).await?;
        follow_ends(&mut tx).await?;
        let mut doomed = cancel_doomed(&mut tx, now).await?;
        let retried = end_retry_waits(&mut tx, now).await?;
        let let_out = let_out(&mut tx, now).await?;
        // What was expired or cancelled may have been awaited in turn.
        let more = anything_due(&mut tx, default_ttl, now).await?;
        tx.commit().await?;
        let total = |ended: &EndedCounts| ended.values().sum();
        let (expired_count, cancelled, mut ended) = (total(&expired), total(&doomed), expired);
        ended.append(&mut doomed);
        Ok(TakenIn {
            due: retried + let_out,
            expired: expired_count,
            cancelled,
            ended,
            more,
        })
    }

    /// Ends requests on their way that no open batch carries: somebody wrote into the ledgers, and
    /// nobody would ever ask what became of them. Returns how many that were.
    pub async fn end_stranded(&self, now: UtcMillis) -> Result<EndedCounts, StoreError> {
        let mut writer = self.writer.lock().await;
        let mut tx = self.begin(&mut writer).await?;
        let stranded: Vec<(i64, Vec<u8>, String)> = sqlx::query_as(
            "UPDATE power_requests SET state = 'unknown', evidence = 'none', error_code = ?2,
                 error_message = 'its batch was removed from the queue by hand, so the daemon cannot ask what happened to it',
                 finished_at = ?1, gate = NULL
             WHERE state = 'running' AND NOT EXISTS (
                 SELECT 1 FROM batches b JOIN request_attempts a ON a.batch_id = b.id AND a.request_id = power_requests.id
                 WHERE b.id = power_requests.batch_id AND b.state <> 'done' AND a.result IS NULL)
             RETURNING id, CAST(target AS BLOB), action",
        )
        .bind(text(now))
        .bind(OwnCode::Orphaned.as_str())
        .fetch_all(&mut *tx)
        .await?;
        // An attempt that stayed open could never be deleted.
        sqlx::query(
            "UPDATE request_attempts SET result = 'unknown', error_code = ?3, finished_at = ?2
             WHERE request_id IN (SELECT value FROM json_each(?1)) AND result IS NULL",
        )
        .bind(list(stranded.iter().map(|row| &row.0)))
        .bind(text(now))
        .bind(OwnCode::Orphaned.as_str())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        let rows = stranded
            .into_iter()
            .map(|(_, target, action)| (target, action));
        Ok(count(
            rows.collect(),
            RequestState::Unknown,
            OwnCode::Orphaned,
        ))
    }

    /// Rejects what is queued to stop or reboot one of `protected`. Returns how many requests that
    /// were.
    pub async fn reject_protected(
        &self,
        target: &TargetName,
        protected: &[ServerId],
        now: UtcMillis,
    ) -> Result<EndedCounts, StoreError> {
        let servers = serde_json::to_string(protected).unwrap_or_default();
        let mut writer = self.writer.lock().await;
        let found: Vec<i64> = sqlx::query_scalar(
            "SELECT r.id FROM json_each(?1) j CROSS JOIN power_requests r
             ON r.target = ?2 AND r.server_id = j.value AND r.gate IS NOT NULL
             WHERE r.state = 'queued' AND r.action IN (SELECT value FROM json_each(?4)) LIMIT 0 + ?3",
        )
        .bind(&servers)
        .bind(&target.0)
        .bind(CHUNK)
        .bind(rows::actions(PowerAction::interrupts))
        .fetch_all(&mut *writer)
        .await?;
        if found.is_empty() {
            return Ok(EndedCounts::new());
        }
        let mut tx = self.begin(&mut writer).await?;
        let rejected = sqlx::query_as(
            "UPDATE power_requests SET state = 'rejected', evidence = 'none', error_code = ?3,
                 error_message = 'the config protects this server from stop and reboot', finished_at = ?2, gate = NULL,
                 retry_at = NULL
             WHERE id IN (SELECT value FROM json_each(?1)) AND state = 'queued'
             RETURNING CAST(target AS BLOB), action",
        )
        .bind(serde_json::to_string(&found).unwrap_or_default())
        .bind(text(now))
        .bind(OwnCode::Protected.as_str())
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(count(rejected, RequestState::Rejected, OwnCode::Protected))
    }

    /// When the next queued row becomes due or expires without anybody's doing; long ago if
    /// `take_in` has work already.
    pub async fn next_due_at(
        &self,
        default_ttl: Option<Duration>,
    ) -> Result<Option<UtcMillis>, StoreError> {
        type NextTimes = (
            bool,
            Option<String>,
            Option<String>,
            Option<String>,
            Option<String>,
        );
        let mut writer = self.writer.lock().await;
        let (ended, later, retry, expiry, oldest): NextTimes = sqlx::query_as(
            "SELECT EXISTS (SELECT 1 FROM awaited_ends) OR EXISTS (SELECT 1 FROM power_requests WHERE gate = 'doomed'),
                        (SELECT min(eligible_at) FROM power_requests WHERE gate = 'later'),
                        (SELECT min(retry_at) FROM power_requests WHERE gate = 'retry'),
                        (SELECT min(expires_at) FROM power_requests WHERE state = 'queued' AND expires_at IS NOT NULL),
                        (SELECT min(eligible_at) FROM power_requests WHERE state = 'queued' AND expires_at IS NULL)",
        )
        .fetch_one(&mut *writer)
        .await?;
        if ended {
            return Ok(Some(UtcMillis(0)));
        }
        let ttl_ends = rows::readable_time(oldest)
            .zip(default_ttl)
            .map(|(oldest, ttl)| oldest + ttl);
        // A time that a stranger spoilt tells nothing; whoever it belongs to waits, and the others
        // go on.
        let times = [later, retry, expiry].map(rows::readable_time);
        Ok(times.into_iter().chain([ttl_ends]).flatten().min())
    }

    /// The next targets that unfinished requests name, behind `after` in the order of names; at
    /// most `limit`.
    pub async fn targets_after(
        &self,
        after: &str,
        limit: u32,
    ) -> Result<Vec<TargetName>, StoreError> {
        let mut writer = self.writer.lock().await;
        let names: Vec<Vec<u8>> = sqlx::query_scalar(
            "WITH RECURSIVE used(target, number) AS (
                 SELECT (SELECT min(f.target) FROM power_requests f WHERE f.gate IS NOT NULL AND f.target > ?1), 1
                 UNION ALL
                 SELECT (SELECT min(n.target) FROM power_requests n WHERE n.gate IS NOT NULL AND n.target > used.target),
                        used.number + 1
                 FROM used WHERE used.target IS NOT NULL AND used.number < ?2
             )
             SELECT CAST(target AS BLOB) FROM used WHERE target IS NOT NULL",
        )
        .bind(after)
        .bind(limit)
        .fetch_all(&mut *writer)
        .await?;
        Ok(names.into_iter().map(rows::lossy).map(TargetName).collect())
    }

    /// Changes with every write to the queue, whoever makes it.
    pub async fn change_mark(&self) -> Result<(i64, i64), StoreError> {
        let mut writer = self.writer.lock().await;
        let mark = "SELECT total_changes(), data_version FROM pragma_data_version";
        Ok(sqlx::query_as(mark).fetch_one(&mut *writer).await?)
    }
}

async fn anything_due(
    connection: &mut SqliteConnection,
    ttl: Option<Duration>,
    now: UtcMillis,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM power_requests WHERE gate = 'later' AND eligible_at <= ?1)
             OR EXISTS (SELECT 1 FROM power_requests WHERE gate = 'retry' AND retry_at <= ?1)
             OR EXISTS (SELECT 1 FROM power_requests WHERE gate = 'doomed') OR EXISTS (SELECT 1 FROM awaited_ends)
             OR EXISTS (SELECT 1 FROM power_requests WHERE state = 'queued' AND expires_at IS NOT NULL AND expires_at <= ?1)
             OR EXISTS (SELECT 1 FROM power_requests WHERE state = 'queued' AND expires_at IS NULL AND eligible_at <= ?2)",
    )
    .bind(text(now))
    .bind(ttl_edge(ttl, now))
    .fetch_one(connection)
    .await?)
}

/// Requests that could have gone since before this have outlived the default time to live.
fn ttl_edge(ttl: Option<Duration>, now: UtcMillis) -> String {
    ttl.map_or_else(String::new, |ttl| text(now.before(ttl)))
}

async fn expire(
    tx: &mut SqliteConnection,
    ttl: Option<Duration>,
    now: UtcMillis,
) -> Result<EndedCounts, StoreError> {
    let expired = sqlx::query_as(
        "UPDATE power_requests SET state = 'expired', evidence = 'none', error_code = ?4,
             error_message = 'its time passed before it could be sent', finished_at = ?1, gate = NULL, retry_at = NULL
         WHERE id IN (SELECT id FROM power_requests WHERE state = 'queued' AND expires_at IS NOT NULL AND expires_at <= ?1 LIMIT 0 + ?3)
            OR id IN (SELECT id FROM power_requests WHERE state = 'queued' AND expires_at IS NULL AND eligible_at <= ?2 LIMIT 0 + ?3)
         RETURNING CAST(target AS BLOB), action",
    )
    .bind(text(now))
    .bind(ttl_edge(ttl, now))
    .bind(CHUNK)
    .bind(OwnCode::Expired.as_str())
    .fetch_all(tx)
    .await?;
    Ok(count(expired, RequestState::Expired, OwnCode::Expired))
}

/// Rows of target and action, counted.
fn count(rows: Vec<(Vec<u8>, String)>, state: RequestState, code: OwnCode) -> EndedCounts {
    let mut ended = EndedCounts::new();
    for (target, action) in rows {
        // The schema lets no other word in.
        if let Ok(action) = rows::word(&action) {
            *ended
                .entry((TargetName(rows::lossy(target)), action, state, code))
                .or_default() += 1;
        }
    }
    ended
}

/// Those that waited for a request that has ended may go, or are doomed.
async fn follow_ends(tx: &mut SqliteConnection) -> Result<(), StoreError> {
    let steps = [
        "UPDATE power_requests SET gate = CASE a.state WHEN 'succeeded' THEN 'later' ELSE 'doomed' END,
             eligible_at = CASE a.state WHEN 'succeeded' THEN max(a.finished_at, ifnull(power_requests.not_before, '')) END
         FROM power_requests a
         WHERE a.id = power_requests.after_id AND power_requests.id IN (
             SELECT r.id FROM (SELECT request_id FROM awaited_ends LIMIT 0 + ?1) e
             CROSS JOIN power_requests r ON r.after_id = e.request_id AND r.gate = 'after' LIMIT 0 + ?1)",
        "DELETE FROM awaited_ends WHERE request_id IN (SELECT request_id FROM awaited_ends LIMIT 0 + ?1)
             AND NOT EXISTS (SELECT 1 FROM power_requests r WHERE r.after_id = awaited_ends.request_id AND r.gate = 'after')",
    ];
    for step in steps {
        sqlx::query(step).bind(CHUNK).execute(&mut *tx).await?;
    }
    Ok(())
}

async fn cancel_doomed(
    tx: &mut SqliteConnection,
    now: UtcMillis,
) -> Result<EndedCounts, StoreError> {
    let cancelled = sqlx::query_as(
        "UPDATE power_requests SET state = 'cancelled', evidence = 'none', error_code = ?3,
             error_message = 'request ' || after_id || ', which it waited for, ended as '
                 || (SELECT a.state FROM power_requests a WHERE a.id = power_requests.after_id),
             finished_at = ?1, gate = NULL, retry_at = NULL
         WHERE id IN (SELECT id FROM power_requests WHERE gate = 'doomed' LIMIT 0 + ?2)
         RETURNING CAST(target AS BLOB), action",
    )
    .bind(text(now))
    .bind(CHUNK)
    .bind(OwnCode::Dependency.as_str())
    .fetch_all(tx)
    .await?;
    Ok(count(
        cancelled,
        RequestState::Cancelled,
        OwnCode::Dependency,
    ))
}

async fn end_retry_waits(tx: &mut SqliteConnection, now: UtcMillis) -> Result<u64, StoreError> {
    let ready = sqlx::query(
        "UPDATE power_requests SET gate = 'ready', retry_at = NULL
         WHERE id IN (SELECT id FROM power_requests WHERE gate = 'retry' AND retry_at <= ?1 ORDER BY retry_at LIMIT 0 + ?2)",
    )
    .bind(text(now))
    .bind(CHUNK)
    .execute(tx)
    .await?;
    Ok(ready.rows_affected())
}

/// Requests whose `not_before` has come take their place among those of their server: the lowest id
/// goes first.
async fn let_out(tx: &mut SqliteConnection, now: UtcMillis) -> Result<u64, StoreError> {
    let due: Vec<(i64, String, String)> = sqlx::query_as(
        "SELECT id, target, server_id FROM power_requests WHERE gate = 'later' AND eligible_at <= ?1 ORDER BY eligible_at LIMIT 0 + ?2",
    )
    .bind(text(now))
    .bind(CHUNK)
    .fetch_all(&mut *tx)
    .await?;
    if due.is_empty() {
        return Ok(0);
    }
    let mut firsts: BTreeMap<(&str, String), i64> = BTreeMap::new();
    for (id, target, server) in &due {
        let first = firsts
            .entry((target, server.to_ascii_lowercase()))
            .or_insert(*id);
        *first = (*first).min(*id);
    }
    let firsts: BTreeSet<i64> = firsts.into_values().collect();
    let others: Vec<i64> = due
        .iter()
        .map(|row| row.0)
        .filter(|id| !firsts.contains(id))
        .collect();
    let (firsts, others) = (list(&firsts), list(&others));
    let steps = [
        // Most have no others of their server beside them, and are done with this.
        (
            "UPDATE power_requests SET gate = CASE
                 WHEN EXISTS (SELECT 1 FROM power_requests o WHERE o.target = power_requests.target
                              AND o.server_id = power_requests.server_id AND o.gate IN ('flight', 'ready', 'retry', 'behind')) THEN 'behind'
                 WHEN retry_at IS NULL THEN 'ready' ELSE 'retry' END
             WHERE id IN (SELECT value FROM json_each(?1))",
            &firsts,
        ),
        ("UPDATE power_requests SET gate = 'behind' WHERE id IN (SELECT value FROM json_each(?1))", &others),
        // A later request that stood ready steps back.
        (
            "UPDATE power_requests SET gate = 'behind' WHERE id IN (
                 SELECT o.id FROM json_each(?1) j JOIN power_requests p ON p.id = j.value
                 JOIN power_requests o ON o.target = p.target AND o.server_id = p.server_id AND o.gate IN ('ready', 'retry') AND o.id > p.id)",
            &firsts,
        ),
        (
            "UPDATE power_requests SET gate = CASE WHEN retry_at IS NULL THEN 'ready' ELSE 'retry' END WHERE id IN (
                 SELECT (SELECT min(b.id) FROM power_requests b WHERE b.target = p.target AND b.server_id = p.server_id AND b.gate = 'behind')
                 FROM json_each(?1) j JOIN power_requests p ON p.id = j.value
                 WHERE NOT EXISTS (SELECT 1 FROM power_requests f WHERE f.target = p.target AND f.server_id = p.server_id
                                   AND f.gate IN ('flight', 'ready', 'retry')))",
            &firsts,
        ),
    ];
    for (step, ids) in steps {
        sqlx::query(step).bind(ids).execute(&mut *tx).await?;
    }
    Ok(due.len() as u64)
}
