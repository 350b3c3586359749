//! Batches on their way: what is due, one batch with its open requests, and the record of a step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sqlx::sqlite::SqliteConnection;

use super::{Store, StoreError, rows, text};
use crate::lifecycle::{self, BatchNext, Event, Outcome, Return, Seen, SeenState, Step};
use crate::model::{
    AttemptResult, BatchId, BatchState, CodeClass, Complaint, JobId, LookCause, PowerAction, RequestId, RequestState,
    ServerId, Service, TargetName, UtcMillis,
};
use crate::verdict::{Batch, Member};

/// Where a batch was sent: it can be asked for only while the config still says the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Which API.
    pub service: Service,
    /// Base URL.
    pub endpoint: String,
    /// The cloud's project.
    pub project_id: String,
}

/// An open batch and when its next step is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueBatch {
    /// Which.
    pub id: BatchId,
    /// Of which target.
    pub target: TargetName,
    /// What its next step is about.
    pub state: BatchState,
    /// Followed by the servers' own states, not by a job.
    pub by_servers: bool,
    /// Since or from when.
    pub at: UtcMillis,
}

impl Store {
    /// Open batches in the order in which their next steps are due, at most `limit`, without those in `except`.
    pub async fn open_batches(&self, except: &BTreeSet<BatchId>, limit: u32) -> Result<Vec<DueBatch>, StoreError> {
        let except = serde_json::to_string(except).unwrap_or_default();
        let mut writer = self.writer.lock().await;
        let found: Vec<(i64, Vec<u8>, String, bool, String)> = sqlx::query_as(
            "SELECT id, CAST(target AS BLOB), state, state = 'looking' OR (state = 'tracking' AND job_id IS NULL), next_look_at
             FROM batches
             WHERE state <> 'done' AND id NOT IN (SELECT value FROM json_each(?1)) ORDER BY next_look_at LIMIT 0 + ?2",
        )
        .bind(except)
        .bind(limit)
        .fetch_all(&mut *writer)
        .await?;
        let due = |(id, target, state, by_servers, at): (i64, Vec<u8>, String, bool, String)| {
            Ok(DueBatch {
                id: BatchId(id),
                target: TargetName(rows::lossy(target)),
                state: rows::word(&state)?,
                by_servers,
                at: rows::readable_time(Some(at)).unwrap_or(UtcMillis(0)),
            })
        };
        found.into_iter().map(due).collect()
    }

    /// The batch with those of its requests that are not settled, and where it was sent. None if it is done.
    pub async fn load_batch(&self, id: BatchId) -> Result<Option<(Batch, Origin)>, StoreError> {
        let mut writer = self.writer.lock().await;
        let Some(row) = batch_row(&mut writer, id).await? else { return Ok(None) };
        let members = members(&mut writer, &row).await?;
        row.into_batch(members).map(Some)
    }

    /// Calls since `since` that may have had an effect (not those that were not sent, or refused): when, and for how many
    /// servers.
    pub async fn spent(
        &self,
        target: &TargetName,
        action: PowerAction,
        since: UtcMillis,
    ) -> Result<Vec<(UtcMillis, u32)>, StoreError> {
        let mut writer = self.writer.lock().await;
        let calls: Vec<(String, i64)> = sqlx::query_as(
            "SELECT intent_at, server_count FROM batches
             WHERE target = ? AND action = ? AND intent_at > ?
               AND (submitted_at IS NOT NULL OR look_cause = 'lost' OR state = 'submitting')",
        )
        .bind(&target.0)
        .bind(action.as_str())
        .bind(text(since))
        .fetch_all(&mut *writer)
        .await?;
        let call = |(at, servers): (String, i64)| {
            rows::readable_time(Some(at)).map(|at| (at, u32::try_from(servers).unwrap_or(u32::MAX)))
        };
        Ok(calls.into_iter().filter_map(call).collect())
    }

    /// Makes due at once what waits for a time that we set ourselves: looks, second tries, and holds that end by themselves.
    /// A producer's `not_before` and an operator's pause stay.
    pub async fn forget_waits(&self, now: UtcMillis) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().await;
        let mut tx = self.begin(&mut writer).await?;
        for statement in [
            "UPDATE batches SET next_look_at = ?1 WHERE state <> 'done' AND next_look_at > ?1",
            "UPDATE power_requests SET retry_at = ?1 WHERE gate = 'retry' AND retry_at > ?1",
            "DELETE FROM holds WHERE kind IN ('breaker', 'budget') AND until > ?1",
        ] {
            sqlx::query(statement).bind(text(now)).execute(&mut *tx).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Makes the next looks of a target's open batches due.
    pub async fn look_at_once(&self, target: &TargetName, now: UtcMillis) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().await;
        sqlx::query("UPDATE batches SET next_look_at = ?1 WHERE state <> 'done' AND next_look_at > ?1 AND target = ?2")
            .bind(text(now))
            .bind(&target.0)
            .execute(&mut *writer)
            .await?;
        Ok(())
    }

    /// How many batches are open, by target.
    pub async fn unfinished_batches(&self) -> Result<Vec<(TargetName, i64)>, StoreError> {
        let mut writer = self.writer.lock().await;
        // The condition on next_look_at leads to the index of open batches, and away from reading all that ever were.
        let targets: Vec<Vec<u8>> =
            sqlx::query_scalar("SELECT CAST(target AS BLOB) FROM batches WHERE state <> 'done' AND next_look_at >= ''")
                .fetch_all(&mut *writer)
                .await?;
        let mut counts: BTreeMap<TargetName, i64> = BTreeMap::new();
        targets.into_iter().for_each(|target| *counts.entry(TargetName(rows::lossy(target))).or_default() += 1);
        Ok(counts.into_iter().collect())
    }

    /// How long the last jobs of this target and action took, newest first, at most twenty.
    pub async fn job_history(&self, target: &TargetName, action: PowerAction) -> Result<Vec<Duration>, StoreError> {
        let mut writer = self.writer.lock().await;
        let took: Vec<i64> = sqlx::query_scalar(
            "SELECT job_ms FROM batches WHERE target = ? AND action = ? AND job_ms IS NOT NULL ORDER BY id DESC LIMIT 20",
        )
        .bind(&target.0)
        .bind(action.as_str())
        .fetch_all(&mut *writer)
        .await?;
        Ok(took.into_iter().map(|ms| Duration::from_millis(ms.max(0) as u64)).collect())
    }

    /// When the last `count` submit calls of a target were over, in the order in which they were made. One whose answer is
    /// not known may have arrived only just now.
    pub async fn recent_calls(
        &self,
        target: &TargetName,
        count: u32,
        now: UtcMillis,
    ) -> Result<Vec<UtcMillis>, StoreError> {
        let mut writer = self.writer.lock().await;
        let calls: Vec<String> = sqlx::query_scalar(
            "SELECT CASE state WHEN 'submitting' THEN ?3 ELSE coalesce(submitted_at, finished_at, intent_at) END
             FROM batches WHERE target = ?1 ORDER BY id DESC LIMIT 0 + ?2",
        )
        .bind(&target.0)
        .bind(count)
        .bind(text(now))
        .fetch_all(&mut *writer)
        .await?;
        Ok(calls.into_iter().rev().filter_map(|call| rows::readable_time(Some(call))).collect())
    }

    /// Stores what follows from one answer, in one synced transaction.
    pub async fn record(&self, batch: &Batch, step: &Step, now: UtcMillis) -> Result<(), StoreError> {
        check_moves(batch, step)?;
        let mut writer = self.writer.lock().await;
        let mut tx = self.begin(&mut writer).await?;
        move_requests(&mut tx, batch, step, now).await?;
        remember_seen(&mut tx, batch.id, &step.seen).await?;
        move_batch(&mut tx, batch, step, now).await?;
        Ok(tx.commit().await?)
    }
}

/// A row as anybody may have written it: the schema checks its words and the form of its times, not what texts hold.
#[derive(sqlx::FromRow)]
struct BatchRecord {
    id: i64,
    target: Vec<u8>,
    service: String,
    endpoint: Vec<u8>,
    project_id: Vec<u8>,
    action: String,
    state: String,
    server_count: i64,
    job_id: Option<Vec<u8>>,
    intent_at: String,
    submitted_at: Option<String>,
    looks: i64,
    doubts: i64,
    look_cause: Option<String>,
    look_until: Option<String>,
    error_code: Option<Vec<u8>>,
    error_message: Option<Vec<u8>>,
    error_class: Option<Vec<u8>>,
    read_error: Option<Vec<u8>>,
}

async fn batch_row(connection: &mut SqliteConnection, id: BatchId) -> Result<Option<BatchRecord>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT id, CAST(target AS BLOB) AS target, service, CAST(endpoint AS BLOB) AS endpoint,
                CAST(project_id AS BLOB) AS project_id, action, state, server_count, CAST(job_id AS BLOB) AS job_id, intent_at,
                submitted_at, looks, doubts, look_cause, look_until, CAST(error_code AS BLOB) AS error_code,
                CAST(error_message AS BLOB) AS error_message, CAST(error_class AS BLOB) AS error_class,
                CAST(read_error AS BLOB) AS read_error
         FROM batches WHERE id = ? AND state <> 'done'",
    )
    .bind(id.0)
    .fetch_optional(connection)
    .await?)
}

impl BatchRecord {
    fn into_batch(self, members: Vec<Member>) -> Result<(Batch, Origin), StoreError> {
        // A time that does not read is one long ago: what it bounds is over.
        let time = |text: String| rows::readable_time(Some(text)).unwrap_or(UtcMillis(0));
        let origin = Origin {
            service: rows::word(&self.service)?,
            endpoint: rows::lossy(self.endpoint),
            project_id: rows::lossy(self.project_id),
        };
        let said_already = self.error_class.as_deref() == Some(SAID_ALREADY.as_bytes());
        let class = if said_already { CodeClass::AlreadyInTargetState } else { CodeClass::Other };
        let complaint = (self.error_code.is_some() || self.error_message.is_some()).then(|| Complaint {
            code: self.error_code.map(rows::lossy).unwrap_or_default(),
            message: self.error_message.map(rows::lossy).unwrap_or_default(),
            class,
        });
        let batch = Batch {
            id: BatchId(self.id),
            target: TargetName(rows::lossy(self.target)),
            service: origin.service,
            action: rows::word(&self.action)?,
            state: rows::word(&self.state)?,
            job: self.job_id.map(rows::lossy).map(JobId),
            intent_at: time(self.intent_at),
            submitted_at: rows::readable_time(self.submitted_at),
            looks: rows::count(self.looks),
            doubts: rows::count(self.doubts),
            server_count: rows::count(self.server_count),
            look_cause: self.look_cause.as_deref().map(rows::word).transpose()?,
            look_until: self.look_until.map(time),
            complaint,
            read_error: self.read_error.map(rows::lossy),
            members,
        };
        Ok((batch, origin))
    }
}

/// The one class of a batch's complaint that later steps ask for.
const SAID_ALREADY: &str = "already";

/// An unknown reboot may be under way for this long. Documented jobs take minutes; nobody says what the longest is.
const SHADOW: Duration = Duration::from_secs(24 * 3600);

async fn members(connection: &mut SqliteConnection, batch: &BatchRecord) -> Result<Vec<Member>, StoreError> {
    // Asked only of those to whom it matters.
    let shadows_since = match (batch.action.as_str(), rows::readable_time(Some(batch.intent_at.clone()))) {
        ("reboot", Some(intent_at)) => Some(text(intent_at.before(SHADOW))),
        _ => None,
    };
    let found: Vec<MemberRecord> = sqlx::query_as(
        "SELECT r.id, r.server_id, r.state, r.attempts,
                CASE WHEN r.travel_group = 0 THEN 0
                     ELSE (SELECT count(*) FROM request_attempts b WHERE b.request_id = r.id AND b.result = 'busy') END AS busy,
                a.seen, a.seen_since, CAST(a.baseline AS BLOB) AS baseline,
                ?2 IS NOT NULL AND EXISTS (
                    SELECT 1 FROM power_requests e WHERE e.server_id = r.server_id AND e.target = r.target
                    AND e.finished_at > ?2 AND e.state = 'unknown' AND e.action = 'reboot') AS shadowed
         FROM request_attempts a JOIN power_requests r ON r.id = a.request_id AND r.batch_id = a.batch_id
         WHERE a.batch_id = ?1 AND a.result IS NULL",
    )
    .bind(batch.id)
    .bind(shadows_since)
    .fetch_all(connection)
    .await?;
    found.into_iter().map(MemberRecord::into_member).collect()
}

#[derive(sqlx::FromRow)]
struct MemberRecord {
    id: i64,
    server_id: String,
    state: String,
    attempts: i64,
    busy: i64,
    seen: Option<String>,
    seen_since: Option<String>,
    baseline: Option<Vec<u8>>,
    shadowed: bool,
}

impl MemberRecord {
    fn into_member(self) -> Result<Member, StoreError> {
        let seen = match (self.seen.as_deref(), rows::readable_time(self.seen_since)) {
            (Some("moving"), Some(since)) => Some(Seen { what: SeenState::Moving, since }),
            (Some("idle"), Some(since)) => Some(Seen { what: SeenState::Idle, since }),
            _ => None,
        };
        Ok(Member {
            request: RequestId(self.id),
            server: ServerId(self.server_id),
            state: rows::word(&self.state)?,
            attempts: rows::count(self.attempts),
            busy: rows::count(self.busy),
            seen,
            baseline: rows::baseline(self.baseline.map(rows::lossy)),
            shadowed: self.shadowed,
            waited: None,
        })
    }
}

/// The schema refuses illegal moves too; this names the request and the event.
fn check_moves(batch: &Batch, step: &Step) -> Result<(), StoreError> {
    let states: BTreeMap<RequestId, RequestState> =
        batch.members.iter().map(|member| (member.request, member.state)).collect();
    for (request, event) in &step.moves {
        let state = *states.get(request).ok_or(StoreError::NoSuchRequest(request.0))?;
        lifecycle::next(state, event).map_err(|error| StoreError::Unreadable(format!("request {request}: {error}")))?;
    }
    Ok(())
}

/// Calls that the cloud may have acted on count as attempts. This one does from the moment it is accepted or lost; busy,
/// refused and unsent ones are taken back.
fn was_counted(batch: &Batch) -> bool {
    batch.submitted_at.is_some() || batch.look_cause == Some(LookCause::Lost)
}

/// Requests to which the same happens, so that one statement moves them all: a step rarely has more than a handful of such
/// groups, and a list of ids costs SQLite a third of a list of objects.
fn groups(step: &Step) -> Vec<(&Event, String)> {
    let mut groups: BTreeMap<&Event, Vec<RequestId>> = BTreeMap::new();
    for (request, event) in &step.moves {
        groups.entry(event).or_default().push(*request);
    }
    groups.into_iter().map(|(event, ids)| (event, serde_json::to_string(&ids).unwrap_or_default())).collect()
}

async fn move_requests(
    tx: &mut SqliteConnection,
    batch: &Batch,
    step: &Step,
    now: UtcMillis,
) -> Result<(), StoreError> {
    for (event, ids) in groups(step) {
        match event {
            Event::Claimed => {}
            Event::Accepted => accept(tx, batch, &ids).await?,
            Event::Ended(outcome) => {
                end_attempts(tx, batch, &ids, (outcome.result, &outcome.code, &outcome.message), now).await?;
                end(tx, batch, &ids, outcome, now).await?;
            }
            Event::Returned(back) => {
                end_attempts(tx, batch, &ids, (back.result, &back.code, &back.message), now).await?;
                give_back(tx, batch, &ids, back).await?;
            }
        }
    }
    Ok(())
}

async fn accept(tx: &mut SqliteConnection, batch: &Batch, ids: &str) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE power_requests SET state = 'running', attempts = attempts + 1
         WHERE id IN (SELECT value FROM json_each(?1)) AND batch_id = ?2 AND state = 'submitting'",
    )
    .bind(ids)
    .bind(batch.id.0)
    .execute(tx)
    .await?;
    Ok(())
}

async fn end(
    tx: &mut SqliteConnection,
    batch: &Batch,
    ids: &str,
    outcome: &Outcome,
    now: UtcMillis,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE power_requests SET state = ?3, evidence = ?4, error_code = nullif(?5, ''), error_message = nullif(?6, ''),
             finished_at = ?7, gate = NULL
         WHERE id IN (SELECT value FROM json_each(?1)) AND batch_id = ?2 AND state IN ('submitting', 'running')",
    )
    .bind(ids)
    .bind(batch.id.0)
    .bind(outcome.state.as_str())
    .bind(outcome.evidence.as_str())
    .bind(&outcome.code)
    .bind(&outcome.message)
    .bind(text(now))
    .execute(tx)
    .await?;
    Ok(())
}

/// Back in the queue a request is the first of its server again, unless an earlier one has become due meanwhile: that one
/// is brought forward by a trigger.
async fn give_back(tx: &mut SqliteConnection, batch: &Batch, ids: &str, back: &Return) -> Result<(), StoreError> {
    let uncounted = matches!(back.result, AttemptResult::Busy | AttemptResult::Refused | AttemptResult::NotSent);
    sqlx::query(
        "UPDATE power_requests SET state = 'queued', submitted_at = NULL, retry_at = ?3,
             gate = CASE WHEN EXISTS (SELECT 1 FROM power_requests b WHERE b.target = power_requests.target
                                      AND b.server_id = power_requests.server_id AND b.gate = 'behind' AND b.id < power_requests.id)
                         THEN 'behind' WHEN ?3 IS NULL THEN 'ready' ELSE 'retry' END,
             travel_group = ifnull(?4, travel_group), attempts = max(0, attempts - ?5),
             error_code = nullif(?6, ''), error_message = nullif(?7, '')
         WHERE id IN (SELECT value FROM json_each(?1)) AND batch_id = ?2 AND state IN ('submitting', 'running')",
    )
    .bind(ids)
    .bind(batch.id.0)
    .bind(back.retry_at.map(text))
    .bind(back.group)
    .bind(i64::from(uncounted && was_counted(batch)))
    .bind(&back.code)
    .bind(&back.message)
    .execute(tx)
    .await?;
    Ok(())
}

async fn end_attempts(
    tx: &mut SqliteConnection,
    batch: &Batch,
    ids: &str,
    (result, code, message): (AttemptResult, &str, &str),
    now: UtcMillis,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE request_attempts SET result = ?3, error_code = nullif(?4, ''), error_message = nullif(?5, ''), finished_at = ?6
         WHERE batch_id = ?2 AND request_id IN (SELECT value FROM json_each(?1)) AND result IS NULL",
    )
    .bind(ids)
    .bind(batch.id.0)
    .bind(result.as_str())
    .bind(code)
    .bind(message)
    .bind(text(now))
    .execute(tx)
    .await?;
    Ok(())
}

async fn remember_seen(
    tx: &mut SqliteConnection,
    batch: BatchId,
    seen: &[(RequestId, Seen)],
) -> Result<(), StoreError> {
    if seen.is_empty() {
        return Ok(());
    }
    let word = |what| match what {
        SeenState::Moving => "moving",
        SeenState::Idle => "idle",
    };
    let seen: Vec<_> = seen.iter().map(|(request, seen)| (request.0, word(seen.what), text(seen.since))).collect();
    sqlx::query(
        "UPDATE request_attempts SET seen = j.value ->> 1, seen_since = j.value ->> 2 FROM json_each(?1) j
         WHERE +batch_id = ?2 AND request_id = j.value ->> 0",
    )
    .bind(serde_json::to_string(&seen).map_err(|error| StoreError::Unreadable(error.to_string()))?)
    .bind(batch.0)
    .execute(tx)
    .await?;
    Ok(())
}

async fn move_batch(tx: &mut SqliteConnection, batch: &Batch, step: &Step, now: UtcMillis) -> Result<(), StoreError> {
    let gone: BTreeSet<RequestId> =
        step.moves.iter().filter(|(_, event)| !matches!(event, Event::Accepted)).map(|(request, _)| *request).collect();
    let stay = batch.members.iter().filter(|member| !gone.contains(&member.request));
    let stay: Vec<i64> = stay.map(|member| member.request.0).collect();
    let next = if stay.is_empty() { &BatchNext::Done } else { &step.batch };
    if matches!(next, BatchNext::Look { cause: LookCause::Lost, .. }) && !was_counted(batch) {
        sqlx::query("UPDATE power_requests SET attempts = attempts + 1 WHERE id IN (SELECT value FROM json_each(?))")
            .bind(serde_json::to_string(&stay).unwrap_or_default())
            .execute(&mut *tx)
            .await?;
    }
    let change = Change::of(batch, next, now);
    let complaint = step.complaint.as_ref();
    let said_already = complaint.is_some_and(|complaint| complaint.class == CodeClass::AlreadyInTargetState);
    sqlx::query(
        "UPDATE batches SET state = ?2, job_id = ifnull(?3, job_id), submitted_at = ifnull(?4, submitted_at), next_look_at = ?5,
             looks = looks + ?6, doubts = ?7, look_cause = ifnull(?8, look_cause), look_until = ifnull(?9, look_until),
             finished_at = ?10, error_code = ifnull(?11, error_code), error_message = ifnull(?12, error_message),
             error_class = ifnull(?13, error_class), job_ms = ifnull(job_ms, ?14), read_error = ?15
         WHERE id = ?1 AND state <> 'done'",
    )
    .bind(batch.id.0)
    .bind(change.state.as_str())
    .bind(change.job.map(|job| job.0))
    .bind(change.submitted_at.map(text))
    .bind(change.next_look_at.map(text))
    .bind(i64::from(batch.state != BatchState::Submitting))
    .bind(change.doubts)
    .bind(change.look.map(|(cause, _)| cause.as_str()))
    .bind(change.look.map(|(_, until)| text(until)))
    .bind((change.state == BatchState::Done).then(|| text(now)))
    .bind(complaint.map(|complaint| complaint.code.as_str()).filter(|code| !code.is_empty()))
    .bind(complaint.map(|complaint| complaint.message.as_str()))
    .bind(said_already.then_some(SAID_ALREADY))
    .bind(step.job_ms)
    .bind(&step.read_error)
    .execute(tx)
    .await?;
    Ok(())
}

/// What changes in the batch's own row.
struct Change {
    state: BatchState,
    job: Option<JobId>,
    submitted_at: Option<UtcMillis>,
    next_look_at: Option<UtcMillis>,
    doubts: u32,
    look: Option<(LookCause, UtcMillis)>,
}

impl Change {
    fn of(batch: &Batch, next: &BatchNext, now: UtcMillis) -> Self {
        let same = Self {
            state: batch.state,
            job: None,
            submitted_at: None,
            next_look_at: None,
            doubts: batch.doubts,
            look: None,
        };
        match next {
            BatchNext::Track { job, next_look_at } => Self {
                state: BatchState::Tracking,
                job: job.clone(),
                submitted_at: Some(now),
                next_look_at: Some(*next_look_at),
                ..same
            },
            BatchNext::Look { cause, until, next_look_at } => Self {
                state: BatchState::Looking,
                next_look_at: Some(*next_look_at),
                look: Some((*cause, *until)),
                doubts: 0,
                ..same
            },
            BatchNext::Again { next_look_at, doubts } => {
                Self { next_look_at: Some(*next_look_at), doubts: *doubts, ..same }
            }
            BatchNext::Done => Self { state: BatchState::Done, ..same },
        }
    }
}
