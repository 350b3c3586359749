//! Batches on their way, read: what is due, one batch with its open requests, what earlier ones
//! tell.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sqlx::sqlite::SqliteConnection;

use super::{Store, StoreError, rows, text};
use crate::model::cloud_codes;
use crate::model::{
    Batch, BatchId, BatchState, Complaint, DueBatch, JobId, Member, Origin, PowerAction, RequestId,
    ServerId, TargetName, UtcMillis,
};

/// A target with open batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueTarget {
    /// Which; a stranger's bytes that are no UTF-8 are replaced.
    pub target: TargetName,
    /// As it is in the row.
    key: Vec<u8>,
    /// When the first of them is due.
    pub at: UtcMillis,
}

impl DueTarget {
    pub(super) fn of(key: Vec<u8>, at: String) -> Self {
        Self {
            target: TargetName(rows::lossy(key.clone())),
            key,
            at: time_or_long_ago(at),
        }
    }
}

/// Which open batches of a target are wanted.
#[derive(Debug, Clone, Copy)]
pub struct DueFilter<'a> {
    /// Of the kinds that can be followed at this moment.
    pub hands: Hands,
    /// Without these: their calls are being made.
    pub except: &'a BTreeSet<BatchId>,
    /// At most this many.
    pub limit: u32,
}

/// What a target's batches can be followed by at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hands {
    /// By asking for their jobs.
    pub jobs: bool,
    /// By looking at their servers.
    pub looks: bool,
}

/// A call that budgets and guards count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CountedCall {
    /// Its batch.
    pub batch: BatchId,
    /// When its intent was stored, as the present clock would have shown it.
    pub at: UtcMillis,
    /// How many servers it carried.
    pub servers: u32,
}

pub(in crate::store) async fn due_batches(
    connection: &mut SqliteConnection,
    due: &DueTarget,
    filter: &DueFilter<'_>,
) -> Result<Vec<DueBatch>, StoreError> {
    let found: Vec<DueRow> = sqlx::query_as(
        "SELECT id, state, state = 'looking' OR (state = 'tracking' AND job_id IS NULL) AS by_servers, next_look_at, action,
                coalesce(submitted_steady_ms, intent_steady_ms) + (SELECT clock_set_ms FROM queue_mark) AS accepted_ms,
                looks, doubts = 0 AND read_error IS NULL AS is_plain
         FROM batches
         WHERE state <> 'done' AND target = CAST($1 AS TEXT) AND id NOT IN (SELECT value FROM json_each($2))
           AND CASE WHEN state = 'tracking' AND job_id IS NOT NULL THEN $3 WHEN state = 'submitting' THEN 1 ELSE $4 END
         ORDER BY next_look_at LIMIT 0 + $5",
    )
    .bind(&due.key)
    .bind(serde_json::to_string(filter.except).unwrap_or_default())
    .bind(filter.hands.jobs)
    .bind(filter.hands.looks)
    .bind(filter.limit)
    .fetch_all(&mut *connection)
    .await?;
    found
        .into_iter()
        .map(|row| row.into_due(&due.target))
        .collect()
}

pub(in crate::store) async fn waiting_jobs(
    connection: &mut SqliteConnection,
    target: &TargetName,
    action: PowerAction,
    now: UtcMillis,
) -> Result<Vec<DueBatch>, StoreError> {
    let found: Vec<DueRow> = sqlx::query_as(
        "SELECT id, state, 0 AS by_servers, next_look_at, action,
                coalesce(submitted_steady_ms, intent_steady_ms) + (SELECT clock_set_ms FROM queue_mark) AS accepted_ms,
                looks, 1 AS is_plain
         FROM batches
         WHERE state <> 'done' AND doubts = 0 AND read_error IS NULL AND target = $1 AND next_look_at > $2 AND state = 'tracking' AND job_id IS NOT NULL AND action = $3",
    )
    .bind(&target.0)
    .bind(text(now))
    .bind(action.as_str())
    .fetch_all(connection)
    .await?;
    found.into_iter().map(|row| row.into_due(target)).collect()
}

pub(in crate::store) async fn move_looks(
    tx: &mut SqliteConnection,
    looks: &[(BatchId, UtcMillis)],
) -> Result<(), StoreError> {
    let looks: Vec<(i64, String)> = looks.iter().map(|(id, at)| (id.0, text(*at))).collect();
    sqlx::query(
        "UPDATE batches SET next_look_at = j.value ->> 1 FROM json_each($1) j WHERE batches.id = j.value ->> 0 AND state <> 'done'",
    )
    .bind(serde_json::to_string(&looks).unwrap_or_default())
    .execute(tx)
    .await?;
    Ok(())
}

/// An open batch, as a round asks for those that are due.
#[derive(sqlx::FromRow)]
struct DueRow {
    id: i64,
    state: String,
    by_servers: bool,
    next_look_at: String,
    action: String,
    accepted_ms: i64,
    looks: i64,
    is_plain: bool,
}

impl DueRow {
    fn into_due(self, target: &TargetName) -> Result<DueBatch, StoreError> {
        Ok(DueBatch {
            id: BatchId(self.id),
            target: target.clone(),
            state: rows::word(&self.state)?,
            action: rows::word(&self.action)?,
            accepted_at: UtcMillis(self.accepted_ms),
            looks: u32::try_from(self.looks).unwrap_or(0),
            is_plain: self.is_plain,
            by_servers: self.by_servers,
            at: time_or_long_ago(self.next_look_at),
        })
    }
}

pub(in crate::store) async fn load_batch(
    store: &Store,
    connection: &mut SqliteConnection,
    id: BatchId,
) -> Result<Option<(Batch, Origin)>, StoreError> {
    let Some(row) = batch_row(connection, id).await? else {
        return Ok(None);
    };
    let kept = if row.is_told_by_job() {
        store.take_members(id)
    } else {
        None
    };
    let members = match kept {
        Some(members) => members,
        None => read_members(connection, &row).await?,
    };
    row.into_batch(members).map(Some)
}

pub(in crate::store) async fn spent(
    connection: &mut SqliteConnection,
    target: &TargetName,
    action: PowerAction,
    since: UtcMillis,
) -> Result<Vec<(UtcMillis, u32)>, StoreError> {
    let found: Vec<CallRow> = sqlx::query_as(
        "SELECT id, intent_steady_ms + (SELECT clock_set_ms FROM queue_mark), server_count FROM batches
         WHERE target = $1 AND action = $2 AND intent_steady_ms > $3 - (SELECT clock_set_ms FROM queue_mark)
           AND (submitted_at IS NOT NULL OR look_cause = 'lost' OR state = 'submitting')",
    )
    .bind(&target.0)
    .bind(action.as_str())
    .bind(since.0)
    .fetch_all(connection)
    .await?;
    let calls = found.into_iter().map(into_call);
    Ok(calls.map(|call| (call.at, call.servers)).collect())
}

pub(in crate::store) async fn unapproved_calls(
    connection: &mut SqliteConnection,
    target: &TargetName,
    action: PowerAction,
    since: UtcMillis,
) -> Result<Vec<CountedCall>, StoreError> {
    let found: Vec<CallRow> = sqlx::query_as(
        "SELECT id, intent_steady_ms + (SELECT clock_set_ms FROM queue_mark), server_count
         FROM batches INDEXED BY batches_unapproved
         WHERE target = $1 AND action = $2 AND approved = 0
           AND intent_steady_ms > $3 - (SELECT clock_set_ms FROM queue_mark)
           AND (submitted_at IS NOT NULL OR look_cause = 'lost' OR state = 'submitting')",
    )
    .bind(&target.0)
    .bind(action.as_str())
    .bind(since.0)
    .fetch_all(connection)
    .await?;
    Ok(found.into_iter().map(into_call).collect())
}

/// Id, time of the intent in milliseconds, servers.
type CallRow = (i64, i64, i64);

fn into_call((id, at, servers): CallRow) -> CountedCall {
    CountedCall {
        batch: BatchId(id),
        at: UtcMillis(at),
        servers: u32::try_from(servers).unwrap_or(u32::MAX),
    }
}

pub(in crate::store) async fn look_at_once(
    tx: &mut SqliteConnection,
    target: &TargetName,
    now: UtcMillis,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE batches SET next_look_at = $1 WHERE state <> 'done' AND next_look_at > $1 AND target = $2")
            .bind(text(now))
            .bind(&target.0)
            .execute(&mut *tx)
            .await?;
    Ok(())
}

pub(in crate::store) async fn unfinished_batches(
    connection: &mut SqliteConnection,
) -> Result<Vec<(TargetName, i64)>, StoreError> {
    // The condition on next_look_at leads to the index of open batches, and away from reading
    // all that ever were.
    let targets: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT CAST(target AS BLOB) FROM batches WHERE state <> 'done' AND next_look_at >= ''",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut counts: BTreeMap<TargetName, i64> = BTreeMap::new();
    targets
        .into_iter()
        .for_each(|target| *counts.entry(TargetName(rows::lossy(target))).or_default() += 1);
    Ok(counts.into_iter().collect())
}

pub(in crate::store) async fn job_history(
    connection: &mut SqliteConnection,
    target: &TargetName,
    action: PowerAction,
    limit: usize,
) -> Result<Vec<Duration>, StoreError> {
    let took: Vec<i64> = sqlx::query_scalar(
        "SELECT CAST(job_ms AS INTEGER) FROM batches WHERE target = $1 AND action = $2 AND job_ms IS NOT NULL
         ORDER BY id DESC LIMIT 0 + $3",
    )
    .bind(&target.0)
    .bind(action.as_str())
    .bind(limit as i64)
    .fetch_all(&mut *connection)
    .await?;
    Ok(took
        .into_iter()
        .map(|ms| Duration::from_millis(ms.max(0) as u64))
        .collect())
}

pub(in crate::store) async fn recent_calls(
    connection: &mut SqliteConnection,
    target: &TargetName,
    count: u32,
    now: UtcMillis,
) -> Result<Vec<UtcMillis>, StoreError> {
    let mut calls: Vec<i64> = sqlx::query_scalar(
        "SELECT CASE state WHEN 'submitting' THEN $3
                ELSE coalesce(submitted_steady_ms, intent_steady_ms) + (SELECT clock_set_ms FROM queue_mark) END
         FROM batches WHERE target = $1 ORDER BY id DESC LIMIT 0 + $2",
    )
    .bind(&target.0)
    .bind(count)
    .bind(now.0)
    .fetch_all(&mut *connection)
    .await?;
    let missing: Option<(i64, i64)> = sqlx::query_as(
        "SELECT missing_calls, missing_calls_ms + clock_set_ms FROM queue_mark WHERE missing_calls > 0",
    )
    .fetch_optional(connection)
    .await?;
    if let Some((number, at)) = missing {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        calls.extend(std::iter::repeat_n(at, number.min(count as usize)));
        calls.sort_unstable_by(|one, other| other.cmp(one));
        calls.truncate(count as usize);
    }
    Ok(calls.into_iter().rev().map(UtcMillis).collect())
}

/// A time that does not read is one long ago: what it bounds is over.
fn time_or_long_ago(text: String) -> UtcMillis {
    rows::readable_time(Some(text)).unwrap_or(UtcMillis(0))
}

/// A row as anybody may have written it: the schema checks its words and the form of its times, not
/// what texts hold.
#[derive(sqlx::FromRow)]
struct OpenBatchRow {
    id: i64,
    target: Vec<u8>,
    service: String,
    endpoint: Vec<u8>,
    project_id: Vec<u8>,
    action: String,
    state: String,
    server_count: i64,
    job_id: Option<Vec<u8>>,
    /// As it was dated then, like the ends that it is compared with.
    intent_at: String,
    intent_ms: i64,
    submitted_ms: Option<i64>,
    looks: i64,
    doubts: i64,
    from_copy: i64,
    look_cause: Option<String>,
    look_until: Option<String>,
    error_code: Option<Vec<u8>>,
    error_message: Option<Vec<u8>>,
    read_error: Option<Vec<u8>>,
}

async fn batch_row(
    connection: &mut SqliteConnection,
    id: BatchId,
) -> Result<Option<OpenBatchRow>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT id, CAST(target AS BLOB) AS target, service, CAST(endpoint AS BLOB) AS endpoint,
                CAST(project_id AS BLOB) AS project_id, action, state, server_count, CAST(job_id AS BLOB) AS job_id, intent_at,
                intent_steady_ms + (SELECT clock_set_ms FROM queue_mark) AS intent_ms,
                submitted_steady_ms + (SELECT clock_set_ms FROM queue_mark) AS submitted_ms, looks, doubts, from_copy,
                look_cause, look_until, CAST(error_code AS BLOB) AS error_code,
                CAST(error_message AS BLOB) AS error_message, CAST(read_error AS BLOB) AS read_error
         FROM batches WHERE id = $1 AND state <> 'done'",
    )
    .bind(id.0)
    .fetch_optional(connection)
    .await?)
}

impl OpenBatchRow {
    fn is_told_by_job(&self) -> bool {
        self.state == BatchState::Tracking.as_str() && self.job_id.is_some()
    }

    fn into_batch(self, members: Vec<Member>) -> Result<(Batch, Origin), StoreError> {
        let origin = Origin {
            service: rows::word(&self.service)?,
            endpoint: rows::lossy(self.endpoint),
            project_id: rows::lossy(self.project_id),
        };
        let has_complaint = self.error_code.is_some() || self.error_message.is_some();
        let code = self.error_code.map(rows::lossy).unwrap_or_default();
        let message = self.error_message.map(rows::lossy).unwrap_or_default();
        let complaint = has_complaint.then(|| Complaint {
            class: cloud_codes::class_for(origin.service, &code),
            code,
            message,
        });
        let batch = Batch {
            id: BatchId(self.id),
            target: TargetName(rows::lossy(self.target)),
            service: origin.service,
            action: rows::word(&self.action)?,
            state: rows::word(&self.state)?,
            job: self.job_id.map(rows::lossy).map(JobId),
            intent_at: UtcMillis(self.intent_ms),
            submitted_at: self.submitted_ms.map(UtcMillis),
            looks: rows::count(self.looks),
            doubts: rows::count(self.doubts),
            from_copy: self.from_copy != 0,
            server_count: rows::count(self.server_count),
            look_cause: self.look_cause.as_deref().map(rows::word).transpose()?,
            look_until: self.look_until.map(time_or_long_ago),
            complaint,
            read_error: self.read_error.map(rows::lossy),
            members,
        };
        Ok((batch, origin))
    }
}

/// A reboot that ended unknown, or whose own task failed, may be under way for this long.
/// Documented jobs take minutes; nobody says what the longest is.
pub(super) const SHADOW: Duration = Duration::from_secs(24 * 3600);

async fn read_members(
    connection: &mut SqliteConnection,
    batch: &OpenBatchRow,
) -> Result<Vec<Member>, StoreError> {
    // Asked only where it matters: of reboots, and not while a job tells.
    let leaves_no_mark = rows::word::<PowerAction>(&batch.action)?.leaves_no_mark();
    let shadows_since = if leaves_no_mark && !batch.is_told_by_job() {
        rows::readable_time(Some(batch.intent_at.clone()))
            .map(|intent_at| text(intent_at.before(SHADOW)))
    } else {
        None
    };
    // One row for all of them: each row costs as much again on its way through sqlx.
    let found: Option<Vec<u8>> = sqlx::query_scalar(
        "SELECT CAST(json_group_array(json_array(
                r.id, CAST(r.server_id AS TEXT), CAST(r.attempts AS INTEGER),
                CASE WHEN r.travel_group = 0 THEN 0
                     ELSE (SELECT count(*) FROM earlier_attempts b WHERE b.request_id = r.id AND b.result = 'busy') END,
                r.seen_since IS NOT NULL, CAST(r.baseline AS TEXT),
                $2 IS NOT NULL AND (EXISTS (
                    SELECT 1 FROM power_requests e WHERE e.in_line IS NULL AND e.gate IS NULL
                    AND e.server_id = r.server_id AND e.target = r.target AND e.finished_at > $2
                    AND e.action IN (SELECT value FROM json_each($3))
                    AND (e.state = 'unknown' OR (e.state = 'failed' AND e.evidence = 'job')))
                  OR EXISTS (
                    SELECT 1 FROM power_requests e WHERE e.in_line = 1
                    AND e.server_id = r.server_id AND e.target = r.target AND e.finished_at > $2
                    AND e.action IN (SELECT value FROM json_each($3))
                    AND (e.state = 'unknown' OR (e.state = 'failed' AND e.evidence = 'job')))))) AS BLOB)
         FROM power_requests r WHERE r.state = 'running' AND r.batch_id = $1",
    )
    .bind(batch.id)
    .bind(shadows_since)
    .bind(rows::actions(PowerAction::leaves_no_mark))
    .fetch_optional(connection)
    .await?;
    let found: Vec<MemberRow> = rows::json(found.unwrap_or_default())?;
    Ok(found.into_iter().map(into_member).collect())
}

/// Id, server, attempts, times busy, seen moving, baseline, shadowed.
type MemberRow = (i64, String, i64, i64, i64, Option<String>, i64);

fn into_member(row: MemberRow) -> Member {
    let (id, server, attempts, busy, seen_moving, baseline, shadowed) = row;
    Member {
        request: RequestId(id),
        server: ServerId(server),
        attempts: rows::count(attempts),
        busy: rows::count(busy),
        seen_moving: seen_moving != 0,
        baseline: rows::baseline(baseline),
        shadowed: shadowed != 0,
        waited: None,
    }
}
