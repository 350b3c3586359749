//! Queued requests that become due, expire, waited in vain or are rejected. Which gate each is at
//! is decided in `gate`, which may be sent in `claim`.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::sqlite::SqliteConnection;

use super::gate::{EndedRow, QueuedEnd};
use super::{StoreError, gate, rows, text};
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
    /// When there is something to do without anybody's doing; none: no time is known.
    pub next_at: Option<UtcMillis>,
}

/// One chunk of each.
pub(in crate::store) async fn take_in(
    tx: &mut SqliteConnection,
    default_ttl: Option<Duration>,
    now: UtcMillis,
) -> Result<TakenIn, StoreError> {
    let expired = expire(tx, default_ttl, now).await?;
    let cancelled = gate::follow_notes(tx, now, CHUNK).await?;
    let cancelled = count(cancelled, RequestState::Cancelled, OwnCode::Dependency);
    let retried = gate::end_retry_waits(tx, now, CHUNK).await?;
    let let_out = gate::let_out(tx, now, CHUNK).await?;
    // What was expired or cancelled may have been awaited in turn.
    let next_at = next_due_at(tx, default_ttl).await?;
    Ok(TakenIn {
        due: retried + let_out,
        expired: expired.values().sum(),
        cancelled: cancelled.values().sum(),
        ended: expired.into_iter().chain(cancelled).collect(),
        more: next_at.is_some_and(|at| at <= now),
        next_at,
    })
}

pub(in crate::store) async fn end_stranded(
    tx: &mut SqliteConnection,
    now: UtcMillis,
) -> Result<EndedCounts, StoreError> {
    let stranded = gate::end_stranded(tx, now).await?;
    Ok(counted(stranded, RequestState::Unknown, OwnCode::Orphaned))
}

/// One chunk of the requests that are queued to stop or reboot one of `protected`.
pub(in crate::store) async fn find_protected(
    connection: &mut SqliteConnection,
    target: &TargetName,
    protected: &[ServerId],
) -> Result<Vec<i64>, StoreError> {
    let servers = serde_json::to_string(protected).unwrap_or_default();
    Ok(sqlx::query_scalar(
        "SELECT r.id FROM json_each($1) j CROSS JOIN power_requests r
         ON r.in_line = 1 AND r.server_id = j.value AND r.target = $2
         WHERE r.state = 'queued' AND r.action IN (SELECT value FROM json_each($4))
         UNION ALL
         SELECT r.id FROM json_each($1) j CROSS JOIN power_requests r
         ON r.in_line IS NULL AND r.gate IS NOT NULL AND r.target = $2 AND r.server_id = j.value
         WHERE r.action IN (SELECT value FROM json_each($4)) LIMIT 0 + $3",
    )
    .bind(&servers)
    .bind(&target.0)
    .bind(CHUNK)
    .bind(rows::actions(PowerAction::interrupts))
    .fetch_all(connection)
    .await?)
}

pub(in crate::store) async fn reject_protected(
    tx: &mut SqliteConnection,
    found: &[i64],
    now: UtcMillis,
) -> Result<EndedCounts, StoreError> {
    let end = QueuedEnd {
        state: RequestState::Rejected,
        code: OwnCode::Protected,
        message: "the config protects this server from stop and reboot",
    };
    let rejected = gate::end_queued(tx, found, &end, now).await?;
    Ok(counted(
        rejected,
        RequestState::Rejected,
        OwnCode::Protected,
    ))
}

pub(in crate::store) async fn targets_after(
    connection: &mut SqliteConnection,
    after: &str,
    limit: u32,
) -> Result<Vec<TargetName>, StoreError> {
    let names: Vec<Vec<u8>> = sqlx::query_scalar(
        "WITH RECURSIVE used(target, number) AS (
             SELECT (SELECT min(first.target) FROM (
                 SELECT min(f.target) AS target FROM power_requests f WHERE f.gate = 'ready' AND f.target > $1
                 UNION ALL
                 SELECT min(f.target) FROM power_requests f WHERE f.in_line IS NULL AND f.gate IS NOT NULL AND f.target > $1
             ) first), 1
             UNION ALL
             SELECT (SELECT min(next.target) FROM (
                 SELECT (SELECT min(n.target) FROM power_requests n WHERE n.gate = 'ready' AND n.target > used.target) AS target
                 UNION ALL
                 SELECT (SELECT min(n.target) FROM power_requests n
                         WHERE n.in_line IS NULL AND n.gate IS NOT NULL AND n.target > used.target)
             ) next), used.number + 1
             FROM used WHERE used.target IS NOT NULL AND used.number < $2
         )
         SELECT CAST(target AS BLOB) FROM used WHERE target IS NOT NULL",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(&mut *connection)
    .await?;
    Ok(names.into_iter().map(rows::lossy).map(TargetName).collect())
}

/// When a take-in has something to do; none: no time is known.
pub(in crate::store) async fn next_due_at(
    connection: &mut SqliteConnection,
    default_ttl: Option<Duration>,
) -> Result<Option<UtcMillis>, StoreError> {
    let times: NextTimes = sqlx::query_as(
        "SELECT EXISTS (SELECT 1 FROM round_notes) AS noted,
                (SELECT min(eligible_at) FROM power_requests WHERE gate = 'later') AS later,
                (SELECT min(retry_at) FROM power_requests WHERE gate = 'retry') AS retry,
                (SELECT min(expires_at) FROM power_requests WHERE state = 'queued' AND expires_at IS NOT NULL) AS expiry,
                (SELECT min(ifnull(eligible_at, created_at)) FROM power_requests
                 WHERE state = 'queued' AND gate <> 'after' AND expires_at IS NULL) AS oldest",
    )
    .fetch_one(connection)
    .await?;
    Ok(times.next(default_ttl))
}

/// What a take-in waits for.
#[derive(sqlx::FromRow)]
pub(super) struct NextTimes {
    /// Somebody waits for what has ended.
    pub(super) noted: bool,
    /// The first `not_before`.
    pub(super) later: Option<String>,
    /// The first `retry_at`.
    pub(super) retry: Option<String>,
    /// The first `expires_at`.
    pub(super) expiry: Option<String>,
    /// Since when the oldest request without a time of expiry could go.
    pub(super) oldest: Option<String>,
}

impl NextTimes {
    /// The first of them. A time that a stranger spoilt tells nothing: its request waits, and the
    /// others go on.
    pub(super) fn next(self, default_ttl: Option<Duration>) -> Option<UtcMillis> {
        if self.noted {
            return Some(UtcMillis(0));
        }
        let ttl_ends = rows::readable_time(self.oldest)
            .zip(default_ttl)
            .map(|(oldest, ttl)| oldest + ttl);
        let times = [self.later, self.retry, self.expiry].map(rows::readable_time);
        times.into_iter().chain([ttl_ends]).flatten().min()
    }
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
    // What an order with waves has is to live as long as the order says, also before it is read.
    sqlx::query(
        "UPDATE power_requests SET expires_at = (SELECT w.expires_at FROM orders w WHERE w.label = power_requests.label)
         WHERE id IN (SELECT id FROM power_requests WHERE state = 'queued' AND gate <> 'after' AND expires_at IS NULL
                      AND ifnull(eligible_at, created_at) <= $1 LIMIT 0 + $2)
           AND EXISTS (SELECT 1 FROM orders w WHERE w.label = power_requests.label AND w.expires_at IS NOT NULL)",
    )
    .bind(ttl_edge(ttl, now))
    .bind(CHUNK)
    .execute(&mut *tx)
    .await?;
    let due: Vec<i64> = sqlx::query_scalar(
        "SELECT id FROM (SELECT id FROM power_requests WHERE state = 'queued' AND expires_at IS NOT NULL AND expires_at <= $1
                         LIMIT 0 + $3)
         UNION ALL
         SELECT c.id FROM (SELECT id, label FROM power_requests WHERE state = 'queued' AND gate <> 'after' AND expires_at IS NULL
                           AND ifnull(eligible_at, created_at) <= $2 LIMIT 0 + $3) c
         WHERE NOT EXISTS (SELECT 1 FROM orders w WHERE w.label = c.label AND w.expires_at IS NOT NULL)",
    )
    .bind(text(now))
    .bind(ttl_edge(ttl, now))
    .bind(CHUNK)
    .fetch_all(&mut *tx)
    .await?;
    let end = QueuedEnd {
        state: RequestState::Expired,
        code: OwnCode::Expired,
        message: "its time passed before it could be sent",
    };
    let expired = gate::end_queued(tx, &due, &end, now).await?;
    Ok(counted(expired, RequestState::Expired, OwnCode::Expired))
}

fn counted(rows: Vec<EndedRow>, state: RequestState, code: OwnCode) -> EndedCounts {
    let rows = rows.into_iter().map(|row| (row.target, row.action));
    count(rows.collect(), state, code)
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
