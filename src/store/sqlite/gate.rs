//! Gates and lines: the only place in Rust that writes them. A row arrives ready, in its lane and
//! in the line of its server; here the claim parks what cannot go, and what ends a reason releases,
//! set by set.
//!
//! Of one server, the first unfinished row of its line goes first. Those behind it are parked by
//! the claim that meets them, each once, and come forward one at a time.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::sqlite::SqliteConnection;

use super::rows::{self, list};
use super::{StoreError, text};
use crate::lifecycle::{Outcome, Return};
use crate::model::{BatchId, Member, OwnCode, RequestState, ServerId, TargetName, UtcMillis};

/// Batches whose requests leave the line in one transaction: those that have left already are read
/// again for nothing.
const LEAVING_TOGETHER: i64 = 4;
/// Requests that leave the line in one transaction: each touches pages of its own in two indexes,
/// and what is committed meanwhile waits for it.
const LEAVING_MAX: i64 = 500;
/// Servers whose next requests come forward in the transaction that frees them; the others do in
/// the next rounds. Each of them touches pages of its own in several indexes.
const FORWARD_AT_ONCE: usize = 200;

/// Held requests looked at in one transaction.
const HELD_CHUNK: i64 = 1000;

/// Servers of one target, for the next of each to come forward.
type Freed = BTreeMap<TargetName, Vec<ServerId>>;

/// True if any request is held by its label.
pub(in crate::store) async fn is_anything_held(
    connection: &mut SqliteConnection,
) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM power_requests WHERE gate = 'held')";
    Ok(sqlx::query_scalar(sql).fetch_one(connection).await?)
}

/// Parks these requests, which are ready: earlier ones of their servers go first.
pub(super) async fn park_behind(
    tx: &mut SqliteConnection,
    ids: &BTreeSet<i64>,
) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE power_requests SET gate = 'behind', in_line = NULL
         WHERE id IN (SELECT value FROM json_each($1)) AND gate = 'ready'",
    )
    .bind(list(ids))
    .execute(tx)
    .await?;
    Ok(())
}

/// Takes these requests out of their lanes: their labels hold them. They go on to hold up their
/// servers.
pub(super) async fn park_held(
    tx: &mut SqliteConnection,
    ids: &BTreeSet<i64>,
) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE power_requests SET gate = 'held' WHERE id IN (SELECT value FROM json_each($1)) AND gate = 'ready'",
    )
    .bind(list(ids))
    .execute(tx)
    .await?;
    Ok(())
}

/// Requests of an order that were read, a JSON list of ids: those that no wave has let go are taken
/// out of their lanes, and those without a time of expiry get the order's.
pub(super) async fn hold_for_wave(
    tx: &mut SqliteConnection,
    ids: &str,
    order: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE power_requests SET expires_at = ifnull(expires_at, (SELECT w.expires_at FROM orders w WHERE w.id = $2)),
             gate = CASE WHEN gate = 'ready' AND wave IS NULL THEN 'held' ELSE gate END
         WHERE id IN (SELECT value FROM json_each($1)) AND +state = 'queued'
           AND (+expires_at IS NULL OR (+gate = 'ready' AND +wave IS NULL))",
    )
    .bind(ids)
    .bind(order)
    .execute(tx)
    .await?;
    Ok(())
}

/// A wave lets these requests go, a JSON list of ids: those that are held are in their lanes again,
/// and could go from now on. So those that follow in the next rounds travel with them.
pub(super) async fn let_wave_go(
    tx: &mut SqliteConnection,
    ids: &str,
    (wave, now): (i64, UtcMillis),
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE power_requests SET wave = $2, gate = CASE gate WHEN 'held' THEN 'ready' ELSE gate END,
             eligible_at = CASE gate WHEN 'held' THEN $3 ELSE eligible_at END
         WHERE id IN (SELECT value FROM json_each($1)) AND +state = 'queued' AND +wave IS NULL",
    )
    .bind(ids)
    .bind(wave)
    .bind(text(now))
    .execute(tx)
    .await?;
    Ok(())
}

/// Those of these requests, a JSON list of ids, whose servers have had their turn in their order go
/// with its present wave.
pub(super) async fn let_turns_go(
    tx: &mut SqliteConnection,
    ids: &str,
    (wave, now): (i64, UtcMillis),
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE power_requests SET wave = $2, gate = CASE gate WHEN 'held' THEN 'ready' ELSE gate END,
             eligible_at = CASE gate WHEN 'held' THEN $3 ELSE eligible_at END
         WHERE id IN (SELECT value FROM json_each($1)) AND +state = 'queued' AND +wave IS NULL AND EXISTS (
             SELECT 1 FROM order_servers s WHERE s.label = power_requests.label AND s.target = power_requests.target
             AND s.server_id = power_requests.server_id AND s.wave IS NOT NULL)",
    )
    .bind(ids)
    .bind(wave)
    .bind(text(now))
    .execute(tx)
    .await?;
    Ok(())
}

/// How far a walk through held requests has come: target, action and id of the last one.
pub type HeldPlace = (String, String, i64);

/// Looks at the next held requests behind `after`, a chunk: those that nothing of their label
/// holds any more are in their lanes again. Returns the last one looked at; none at the end.
pub(in crate::store) async fn release_held(
    tx: &mut SqliteConnection,
    after: &HeldPlace,
    now: UtcMillis,
) -> Result<Option<HeldPlace>, StoreError> {
    let (target, action, id) = after;
    let found: Vec<(Vec<u8>, String, i64, bool)> = sqlx::query_as(
        "SELECT CAST(r.target AS BLOB), r.action, r.id,
                r.label IS NOT NULL AND (
                    (r.wave IS NULL AND EXISTS (SELECT 1 FROM orders w WHERE w.label = r.label))
                    OR EXISTS (SELECT 1 FROM holds h WHERE h.label = r.label AND h.kind = 'operator'
                               AND (h.target IS NULL OR h.target = r.target) AND (h.action IS NULL OR h.action = r.action)
                               AND (h.until IS NULL OR h.until > $5)))
         FROM power_requests r INDEXED BY power_requests_held_count
         WHERE r.gate = 'held' AND (r.target, r.action, r.id) > ($1, $2, $3)
         ORDER BY r.target, r.action, r.id LIMIT 0 + $4",
    )
    .bind(target)
    .bind(action)
    .bind(id)
    .bind(HELD_CHUNK)
    .bind(text(now))
    .fetch_all(&mut *tx)
    .await?;
    let free = found.iter().filter(|(.., is_held)| !is_held);
    sqlx::query(
        "UPDATE power_requests SET gate = 'ready' WHERE id IN (SELECT value FROM json_each($1)) AND gate = 'held'",
    )
    .bind(list(free.map(|(_, _, id, _)| id)))
    .execute(tx)
    .await?;
    let is_over = i64::try_from(found.len()).unwrap_or(i64::MAX) < HELD_CHUNK;
    let last = found.into_iter().next_back().filter(|_| !is_over);
    Ok(last.map(|(target, action, id, _)| (rows::lossy(target), action, id)))
}

/// Lets requests wait that are ready: a JSON list of their ids, each with a time and a reason.
pub(super) async fn put_off(tx: &mut SqliteConnection, waits: &str) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE power_requests SET gate = 'retry', retry_at = j.value ->> 1, error_code = $2,
             error_message = j.value ->> 2
         FROM json_each($1) j WHERE power_requests.id = j.value ->> 0 AND gate = 'ready'",
    )
    .bind(waits)
    .bind(OwnCode::Busy.as_str())
    .execute(tx)
    .await?;
    Ok(())
}

/// A batch takes these requests along, a JSON list of ids. The schema refuses it for one whose
/// server has an earlier unfinished request in its line.
pub(super) async fn take(
    tx: &mut SqliteConnection,
    ids: &str,
    batch: BatchId,
    now: UtcMillis,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE power_requests SET state = 'running', gate = 'flight', batch_id = $2, submitted_at = $3, retry_at = NULL,
             attempts = attempts + 1
         WHERE id IN (SELECT value FROM json_each($1))",
    )
    .bind(ids)
    .bind(batch.0)
    .bind(text(now))
    .execute(tx)
    .await?;
    Ok(())
}

/// Requests that leave a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaving<'a> {
    pub(super) batch: BatchId,
    /// Those in this JSON list; none: all that the batch carries.
    pub(super) ids: Option<&'a str>,
    /// The call does not count as one of their attempts.
    pub(super) is_call_taken_back: bool,
}

/// They have ended. They stay in the line of their servers until a quiet moment: see `leave_line`.
pub(super) async fn end(
    tx: &mut SqliteConnection,
    leaving: Leaving<'_>,
    outcome: &Outcome,
    now: UtcMillis,
) -> Result<(), StoreError> {
    let sql = match leaving.ids {
        None => {
            "UPDATE power_requests SET state = $2, evidence = $3, error_code = nullif($4, ''), error_message = nullif($5, ''),
                 finished_at = $6, gate = NULL, attempts = max(0, attempts - $7)
             WHERE state = 'running' AND batch_id = $1"
        }
        Some(_) => {
            "UPDATE power_requests SET state = $2, evidence = $3, error_code = nullif($4, ''), error_message = nullif($5, ''),
                 finished_at = $6, gate = NULL, attempts = max(0, attempts - $7)
             WHERE id IN (SELECT value FROM json_each($8)) AND +state = 'running' AND +batch_id = $1"
        }
    };
    let query = sqlx::query(sql)
        .bind(leaving.batch.0)
        .bind(outcome.state.as_str())
        .bind(outcome.evidence.as_str())
        .bind(&outcome.code)
        .bind(&outcome.message)
        .bind(text(now))
        .bind(i64::from(leaving.is_call_taken_back));
    let query = match leaving.ids {
        None => query,
        Some(ids) => query.bind(ids),
    };
    query.execute(tx).await?;
    Ok(())
}

/// They go back to the queue, at once or after a wait.
pub(super) async fn give_back(
    tx: &mut SqliteConnection,
    leaving: Leaving<'_>,
    back: &Return,
) -> Result<(), StoreError> {
    let sql = match leaving.ids {
        None => {
            "UPDATE power_requests SET state = 'queued', submitted_at = NULL, retry_at = $2,
                 gate = CASE WHEN $2 IS NULL THEN 'ready' ELSE 'retry' END,
                 travel_group = ifnull($3, travel_group), attempts = max(0, attempts - $4),
                 error_code = nullif($5, ''), error_message = nullif($6, ''), baseline = NULL, seen_since = NULL
             WHERE state = 'running' AND batch_id = $1"
        }
        Some(_) => {
            "UPDATE power_requests SET state = 'queued', submitted_at = NULL, retry_at = $2,
                 gate = CASE WHEN $2 IS NULL THEN 'ready' ELSE 'retry' END,
                 travel_group = ifnull($3, travel_group), attempts = max(0, attempts - $4),
                 error_code = nullif($5, ''), error_message = nullif($6, ''), baseline = NULL, seen_since = NULL
             WHERE id IN (SELECT value FROM json_each($7)) AND +state = 'running' AND +batch_id = $1"
        }
    };
    let query = sqlx::query(sql)
        .bind(leaving.batch.0)
        .bind(back.retry_at.map(text))
        .bind(back.group)
        .bind(i64::from(leaving.is_call_taken_back))
        .bind(&back.code)
        .bind(&back.message);
    let query = match leaving.ids {
        None => query,
        Some(ids) => query.bind(ids),
    };
    query.execute(tx).await?;
    Ok(())
}

/// How requests end that were not sent.
pub(super) struct QueuedEnd {
    pub(super) state: RequestState,
    pub(super) code: OwnCode,
    pub(super) message: &'static str,
}

/// A request that has ended without an answer of the cloud.
#[derive(sqlx::FromRow)]
pub(super) struct EndedRow {
    pub(super) id: i64,
    pub(super) target: Vec<u8>,
    pub(super) server_id: Vec<u8>,
    pub(super) action: String,
}

/// Those of `ids` that are queued have ended, and those that wait for them or behind them are told.
pub(super) async fn end_queued(
    tx: &mut SqliteConnection,
    ids: &[i64],
    end: &QueuedEnd,
    now: UtcMillis,
) -> Result<Vec<EndedRow>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let ended = sqlx::query_as(
        "UPDATE power_requests SET state = $2, evidence = 'none', error_code = $3, error_message = $4, finished_at = $5,
             gate = NULL, in_line = NULL, retry_at = NULL
         WHERE id IN (SELECT value FROM json_each($1)) AND +state = 'queued'
         RETURNING id, CAST(target AS BLOB) AS target, CAST(server_id AS BLOB) AS server_id, action",
    )
    .bind(list(ids))
    .bind(end.state.as_str())
    .bind(end.code.as_str())
    .bind(end.message)
    .bind(text(now))
    .fetch_all(&mut *tx)
    .await?;
    after_ends(tx, &ended).await?;
    Ok(ended)
}

/// Requests on their way that no open batch carries have ended.
pub(super) async fn end_stranded(
    tx: &mut SqliteConnection,
    now: UtcMillis,
) -> Result<Vec<EndedRow>, StoreError> {
    let stranded = sqlx::query_as(
        "UPDATE power_requests SET state = 'unknown', evidence = 'none', error_code = $2,
             error_message = 'its batch was removed from the queue by hand, so the daemon cannot ask what happened to it',
             finished_at = $1, gate = NULL, in_line = NULL
         WHERE state = 'running' AND NOT EXISTS (
             SELECT 1 FROM batches b WHERE b.id = power_requests.batch_id AND b.state <> 'done')
         RETURNING id, CAST(target AS BLOB) AS target, CAST(server_id AS BLOB) AS server_id, action",
    )
    .bind(text(now))
    .bind(OwnCode::Orphaned.as_str())
    .fetch_all(&mut *tx)
    .await?;
    after_ends(tx, &stranded).await?;
    Ok(stranded)
}

async fn after_ends(tx: &mut SqliteConnection, ended: &[EndedRow]) -> Result<(), StoreError> {
    note_awaited(tx, &list(ended.iter().map(|row| &row.id))).await?;
    let servers = ended
        .iter()
        .map(|row| (Some(row.target.clone()), Some(row.server_id.clone())));
    for (target, servers) in freed(servers) {
        bring_forward(tx, &target, servers.iter()).await?;
    }
    Ok(())
}

/// Who may wait for requests that have ended or gone back to the queue.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
pub(super) struct Waiting {
    /// Somebody waits for the end of another request.
    pub(super) for_an_end: bool,
    /// Somebody of the target is behind another one.
    pub(super) behind: bool,
}

/// One look for both: mostly there is nobody.
pub(super) async fn who_waits(
    connection: &mut SqliteConnection,
    target: &TargetName,
) -> Result<Waiting, StoreError> {
    Ok(sqlx::query_as(
        "SELECT EXISTS (SELECT 1 FROM power_requests WHERE gate IS NOT NULL AND after_id IS NOT NULL) AS for_an_end,
                EXISTS (SELECT 1 FROM power_requests WHERE gate = 'behind' AND target = $1) AS behind",
    )
    .bind(&target.0)
    .fetch_one(connection)
    .await?)
}

/// These requests of a target have ended or gone back to the queue: of each server, the first that
/// waits behind comes forward, if there are many some in the next rounds.
pub(super) async fn bring_forward_after(
    tx: &mut SqliteConnection,
    target: &TargetName,
    moved: &[&Member],
) -> Result<(), StoreError> {
    let (first, others) = moved.split_at(moved.len().min(FORWARD_AT_ONCE));
    move_forward(tx, target, first.iter().map(|member| &member.server)).await?;
    if others.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO round_notes (request_id, target, server_id)
         SELECT e.id, e.target, e.server_id FROM json_each($1) j CROSS JOIN power_requests e ON e.id = j.value
         WHERE EXISTS (SELECT 1 FROM power_requests m WHERE m.in_line IS NULL AND m.gate = 'behind'
                       AND m.target = e.target AND m.server_id = e.server_id)
         ON CONFLICT DO NOTHING",
    )
    .bind(list(others.iter().map(|member| &member.request.0)))
    .execute(tx)
    .await?;
    Ok(())
}

/// Requests of these servers have ended, or gone back to the queue, or left the line: of each, the
/// first that waits behind comes forward, unless an earlier one is in the line, or one runs.
pub(super) async fn bring_forward<'a>(
    tx: &mut SqliteConnection,
    target: &TargetName,
    servers: impl Iterator<Item = &'a ServerId>,
) -> Result<(), StoreError> {
    if who_waits(tx, target).await?.behind {
        move_forward(tx, target, servers).await?;
    }
    Ok(())
}

/// The same, where somebody is behind.
async fn move_forward<'a>(
    tx: &mut SqliteConnection,
    target: &TargetName,
    servers: impl Iterator<Item = &'a ServerId>,
) -> Result<(), StoreError> {
    let names: Vec<&str> = servers.map(|server| server.0.as_str()).collect();
    let forward: Vec<i64> = sqlx::query_scalar(
        "UPDATE power_requests SET in_line = 1, gate = CASE
             WHEN retry_at IS NOT NULL THEN 'retry'
             WHEN wave IS NULL AND label IS NOT NULL AND EXISTS (SELECT 1 FROM orders w WHERE w.label = power_requests.label)
                 THEN 'held'
             ELSE 'ready' END
         WHERE id IN (
             SELECT b.id FROM json_each($2) j CROSS JOIN power_requests b ON b.id = (
                 SELECT min(m.id) FROM power_requests m
                 WHERE m.in_line IS NULL AND m.gate = 'behind' AND m.target = $1 AND m.server_id = j.value)
             WHERE (SELECT f.id < b.id OR f.state = 'running' FROM power_requests f
                    WHERE f.in_line = 1 AND f.server_id = b.server_id AND f.target = b.target AND f.finished_at IS NULL
                    ORDER BY f.id LIMIT 1) IS NOT 1)
         RETURNING id",
    )
    .bind(&target.0)
    .bind(serde_json::to_string(&names).unwrap_or_default())
    .fetch_all(&mut *tx)
    .await?;
    leave_before(tx, &forward).await
}

/// What has ended before these of their servers leaves the line at once: a long row of requests for
/// one server must not be passed over again for every further one.
async fn leave_before(tx: &mut SqliteConnection, ids: &[i64]) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE power_requests SET in_line = NULL WHERE finished_at IS NOT NULL AND id IN (
             SELECT e.id FROM json_each($1) j CROSS JOIN power_requests b ON b.id = j.value
             CROSS JOIN power_requests e ON e.in_line = 1 AND e.server_id = b.server_id AND e.target = b.target AND e.id < b.id)",
    )
    .bind(list(ids))
    .execute(tx)
    .await?;
    Ok(())
}

/// These requests, a JSON list of ids, have ended: those that wait for one of them are told in the
/// next round.
pub(super) async fn note_awaited(tx: &mut SqliteConnection, ids: &str) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO round_notes (request_id, target, server_id)
         SELECT e.id, e.target, e.server_id FROM json_each($1) j CROSS JOIN power_requests e ON e.id = j.value
         WHERE EXISTS (SELECT 1 FROM power_requests w WHERE w.after_id = j.value AND w.gate = 'after')
         ON CONFLICT DO NOTHING",
    )
    .bind(ids)
    .execute(tx)
    .await?;
    Ok(())
}

/// The waits of these are over: they are in their lanes again.
pub(super) async fn end_retry_waits(
    tx: &mut SqliteConnection,
    now: UtcMillis,
    chunk: i64,
) -> Result<u64, StoreError> {
    let ready = sqlx::query(
        "UPDATE power_requests SET retry_at = NULL, gate = CASE
             WHEN wave IS NULL AND label IS NOT NULL AND EXISTS (SELECT 1 FROM orders w WHERE w.label = power_requests.label)
                 THEN 'held'
             ELSE 'ready' END
         WHERE id IN (SELECT id FROM power_requests WHERE gate = 'retry' AND retry_at <= $1 ORDER BY retry_at LIMIT 0 + $2)",
    )
    .bind(text(now))
    .bind(chunk)
    .execute(tx)
    .await?;
    Ok(ready.rows_affected())
}

/// Requests whose time has come take their place among those of their server: the lowest id goes
/// first.
pub(super) async fn let_out(
    tx: &mut SqliteConnection,
    now: UtcMillis,
    chunk: i64,
) -> Result<u64, StoreError> {
    let due: Vec<(i64, Vec<u8>, String)> = sqlx::query_as(
        "SELECT id, CAST(target AS BLOB), server_id FROM power_requests WHERE gate = 'later' AND eligible_at <= $1
         ORDER BY eligible_at LIMIT 0 + $2",
    )
    .bind(text(now))
    .bind(chunk)
    .fetch_all(&mut *tx)
    .await?;
    if due.is_empty() {
        return Ok(0);
    }
    let mut firsts: BTreeMap<(Vec<u8>, String), i64> = BTreeMap::new();
    for (id, target, server) in &due {
        let first = firsts
            .entry((target.clone(), server.to_ascii_lowercase()))
            .or_insert(*id);
        *first = (*first).min(*id);
    }
    let firsts: Vec<i64> = firsts.into_values().collect();
    let all: Vec<i64> = due.iter().map(|(id, _, _)| *id).collect();
    // First all of them are behind, then the first of each server comes forward if nobody is
    // before it.
    sqlx::query("UPDATE power_requests SET gate = 'behind' WHERE id IN (SELECT value FROM json_each($1)) AND gate = 'later'")
        .bind(list(&all))
        .execute(&mut *tx)
        .await?;
    sqlx::query(
        "UPDATE power_requests SET in_line = 1, gate = CASE
             WHEN retry_at IS NOT NULL THEN 'retry'
             WHEN wave IS NULL AND label IS NOT NULL AND EXISTS (SELECT 1 FROM orders w WHERE w.label = power_requests.label)
                 THEN 'held'
             ELSE 'ready' END
         WHERE id IN (
             SELECT b.id FROM json_each($1) j CROSS JOIN power_requests b ON b.id = j.value
             WHERE (SELECT f.id < b.id OR f.state = 'running' FROM power_requests f
                    WHERE f.in_line = 1 AND f.server_id = b.server_id AND f.target = b.target AND f.finished_at IS NULL
                    ORDER BY f.id LIMIT 1) IS NOT 1
               AND NOT EXISTS (SELECT 1 FROM power_requests m WHERE m.in_line IS NULL AND m.gate = 'behind'
                               AND m.target = b.target AND m.server_id = b.server_id AND m.id < b.id))",
    )
    .bind(list(&firsts))
    .execute(tx)
    .await?;
    Ok(due.len() as u64)
}

/// A row of `round_notes`; a stranger's has no server.
#[derive(sqlx::FromRow)]
struct NoteRow {
    request_id: i64,
    target: Option<Vec<u8>>,
    server_id: Option<Vec<u8>>,
}

/// Follows one chunk of what has ended, or left the line, while others waited for that. Returns the
/// requests that are cancelled because what they waited for did not succeed: target and action of
/// each.
pub(super) async fn follow_notes(
    tx: &mut SqliteConnection,
    now: UtcMillis,
    chunk: i64,
) -> Result<Vec<(Vec<u8>, String)>, StoreError> {
    let noted: Vec<NoteRow> = sqlx::query_as(
        "SELECT request_id, CAST(target AS BLOB) AS target, CAST(server_id AS BLOB) AS server_id FROM round_notes
         LIMIT 0 + $1",
    )
    .bind(chunk)
    .fetch_all(&mut *tx)
    .await?;
    if noted.is_empty() {
        return Ok(Vec::new());
    }
    let ids = list(noted.iter().map(|note| &note.request_id));
    sqlx::query(
        "UPDATE power_requests SET gate = 'later', eligible_at = max(min(a.finished_at, $3), ifnull(power_requests.not_before, ''))
         FROM power_requests a
         WHERE a.id = power_requests.after_id AND a.state = 'succeeded' AND power_requests.id IN (
             SELECT r.id FROM json_each($1) j CROSS JOIN power_requests r ON r.after_id = j.value AND r.gate = 'after' LIMIT 0 + $2)",
    )
    .bind(&ids)
    .bind(chunk)
    .bind(text(now))
    .execute(&mut *tx)
    .await?;
    let cancelled: Vec<(i64, Vec<u8>, String)> = sqlx::query_as(
        "UPDATE power_requests SET state = 'cancelled', evidence = 'none', error_code = $3,
             error_message = 'request ' || after_id || ', which it waited for, ended as '
                 || (SELECT a.state FROM power_requests a WHERE a.id = power_requests.after_id),
             finished_at = $4, gate = NULL, in_line = NULL, retry_at = NULL
         WHERE id IN (
             SELECT r.id FROM json_each($1) j CROSS JOIN power_requests a ON a.id = j.value
             CROSS JOIN power_requests r ON r.after_id = a.id AND r.gate = 'after'
             WHERE a.finished_at IS NOT NULL AND a.state <> 'succeeded' LIMIT 0 + $2)
         RETURNING id, CAST(target AS BLOB), action",
    )
    .bind(&ids)
    .bind(chunk)
    .bind(OwnCode::Dependency.as_str())
    .bind(text(now))
    .fetch_all(&mut *tx)
    .await?;
    note_awaited(tx, &list(cancelled.iter().map(|(id, _, _)| id))).await?;
    let servers = noted.into_iter().map(|note| (note.target, note.server_id));
    for (target, servers) in freed(servers) {
        bring_forward(tx, &target, servers.iter()).await?;
    }
    sqlx::query(
        "DELETE FROM round_notes WHERE request_id IN (SELECT value FROM json_each($1)) AND NOT EXISTS (
             SELECT 1 FROM power_requests r CROSS JOIN power_requests a ON a.id = r.after_id
             WHERE r.after_id = round_notes.request_id AND r.gate = 'after' AND a.finished_at IS NOT NULL)",
    )
    .bind(&ids)
    .execute(tx)
    .await?;
    Ok(cancelled
        .into_iter()
        .map(|(_, target, action)| (target, action))
        .collect())
}

/// Targets and servers as they are in rows, sorted by target.
fn freed(rows: impl Iterator<Item = (Option<Vec<u8>>, Option<Vec<u8>>)>) -> Freed {
    let mut freed = Freed::new();
    for (target, server) in rows {
        if let (Some(target), Some(server)) = (target, server) {
            freed
                .entry(TargetName(rows::lossy(target)))
                .or_default()
                .push(ServerId(rows::lossy(server)));
        }
    }
    freed
}

/// Requests of batches that are done leave the line, some at a time. False if there was nothing left
/// to do.
pub(in crate::store) async fn leave_line(tx: &mut SqliteConnection) -> Result<bool, StoreError> {
    let standing: Vec<(i64, i64)> = sqlx::query_as(
        "SELECT r.id, l.batch_id FROM (SELECT batch_id FROM lingering_batches ORDER BY batch_id LIMIT 0 + $1) l
         CROSS JOIN power_requests r ON r.batch_id = l.batch_id
         WHERE r.finished_at IS NOT NULL AND r.in_line = 1 LIMIT 0 + $2",
    )
    .bind(LEAVING_TOGETHER)
    .bind(LEAVING_MAX)
    .fetch_all(&mut *tx)
    .await?;
    sqlx::query(
        "UPDATE power_requests SET in_line = NULL WHERE id IN (SELECT value FROM json_each($1))",
    )
    .bind(list(standing.iter().map(|(request, _)| request)))
    .execute(&mut *tx)
    .await?;
    // Of the last one there may be more.
    let is_full = standing.len() as i64 == LEAVING_MAX;
    let first_left = standing.last().filter(|_| is_full);
    let emptied = sqlx::query(
        "DELETE FROM lingering_batches WHERE batch_id < $2
         AND batch_id IN (SELECT batch_id FROM lingering_batches ORDER BY batch_id LIMIT 0 + $1)",
    )
    .bind(LEAVING_TOGETHER)
    .bind(first_left.map_or(i64::MAX, |(_, batch)| *batch))
    .execute(tx)
    .await?;
    Ok(!standing.is_empty() || emptied.rows_affected() > 0)
}
