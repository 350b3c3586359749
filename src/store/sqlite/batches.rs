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
    /// As it stands in the row.
    key: Vec<u8>,
    /// When the first of them is due.
    pub at: UtcMillis,
}

impl DueTarget {
    pub(super) fn of(key: Vec<u8>, at: String) -> Self {
        Self {
            target: TargetName(rows::lossy(key.clone())),
            key,
            at: rows::readable_time(Some(at)).unwrap_or(UtcMillis(0)),
        }
    }
}

/// What a target's batches can be followed by at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hands {
    /// By asking for their jobs.
    pub jobs: bool,
    /// By looking at their servers.
    pub looks: bool,
}

impl Store {
    /// A target's open batches in the order in which their next steps are due, at most `limit`, of
    /// the kinds for which there is a `hand`, without those in `except`.
    pub async fn due_batches(
        &self,
        due: &DueTarget,
        hands: Hands,
        except: &BTreeSet<BatchId>,
        limit: u32,
    ) -> Result<Vec<DueBatch>, StoreError> {
        let mut writer = self.writer.lock().await;
        let found: Vec<(i64, String, bool, String)> = sqlx::query_as(
            "SELECT id, state, state = 'looking' OR (state = 'tracking' AND job_id IS NULL), next_look_at
             FROM batches
             WHERE state <> 'done' AND target = CAST(?1 AS TEXT) AND id NOT IN (SELECT value FROM json_each(?2))
               AND CASE WHEN state = 'tracking' AND job_id IS NOT NULL THEN ?3 WHEN state = 'submitting' THEN 1 ELSE ?4 END
             ORDER BY next_look_at LIMIT 0 + ?5",
        )
        .bind(&due.key)
        .bind(serde_json::to_string(except).unwrap_or_default())
        .bind(hands.jobs)
        .bind(hands.looks)
        .bind(limit)
        .fetch_all(&mut *writer)
        .await?;
        let batch = |(id, state, by_servers, at): (i64, String, bool, String)| {
            Ok(DueBatch {
                id: BatchId(id),
                target: due.target.clone(),
                state: rows::word(&state)?,
                by_servers,
                at: rows::readable_time(Some(at)).unwrap_or(UtcMillis(0)),
            })
        };
        found.into_iter().map(batch).collect()
    }

    /// The batch with those of its requests that are not settled, and where it was sent. None if it
    /// is done.
    pub async fn load_batch(&self, id: BatchId) -> Result<Option<(Batch, Origin)>, StoreError> {
        let mut writer = self.writer.lock().await;
        let Some(row) = batch_row(&mut writer, id).await? else {
            return Ok(None);
        };
        let kept = row.is_told_by_job().then(|| self.own().claimed.take(id));
        let members = match kept.flatten() {
            Some(members) => members,
            None => members(&mut writer, &row).await?,
        };
        row.into_batch(members).map(Some)
    }

    /// Calls since `since` that may have had an effect (not those that were not sent, or refused):
    /// when, and for how many servers. One that is dated later than `now`, by a clock that was
    /// ahead, was made before the next one that is not; if there is none, its date stays.
    pub async fn spent(
        &self,
        target: &TargetName,
        action: PowerAction,
        since: UtcMillis,
        now: UtcMillis,
    ) -> Result<Vec<(UtcMillis, u32)>, StoreError> {
        let mut writer = self.writer.lock().await;
        let next: Option<String> = sqlx::query_scalar(
            "SELECT intent_at FROM batches WHERE intent_at <= ?3 AND id > (
                 SELECT max(id) FROM batches WHERE target = ?1 AND action = ?2 AND intent_at > ?3) ORDER BY id LIMIT 1",
        )
        .bind(&target.0)
        .bind(action.as_str())
        .bind(text(now))
        .fetch_optional(&mut *writer)
        .await?;
        let next = rows::readable_time(next);
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
            let at = rows::readable_time(Some(at))?;
            let at = if at > now { next.unwrap_or(at) } else { at };
            Some((at, u32::try_from(servers).unwrap_or(u32::MAX)))
        };
        Ok(calls.into_iter().filter_map(call).collect())
    }

    /// Moves the times that we set ourselves by `by_ms`, as the clock was moved: looks, second
    /// tries, and holds that end by themselves. A producer's `not_before` and an operator's pause
    /// stay.
    pub async fn move_waits(&self, by_ms: i64) -> Result<(), StoreError> {
        const OTHER_TIMES: [&str; 5] = [
            "UPDATE batches SET look_until = strftime('%Y-%m-%dT%H:%M:%fZ', look_until, ?1)
             WHERE state <> 'done' AND next_look_at >= '' AND strftime('%s', look_until, ?1) IS NOT NULL",
            "UPDATE power_requests SET retry_at = strftime('%Y-%m-%dT%H:%M:%fZ', retry_at, ?1)
             WHERE gate = 'retry' AND retry_at >= '' AND strftime('%s', retry_at, ?1) IS NOT NULL",
            "UPDATE holds SET until = strftime('%Y-%m-%dT%H:%M:%fZ', until, ?1)
             WHERE kind IN ('breaker', 'budget', 'credentials') AND strftime('%s', until, ?1) IS NOT NULL",
            "UPDATE orders SET wave_over_at = strftime('%Y-%m-%dT%H:%M:%fZ', wave_over_at, ?1)
             WHERE state IS NOT 'done' AND strftime('%s', wave_over_at, ?1) IS NOT NULL",
            "UPDATE targets SET reads_until = strftime('%Y-%m-%dT%H:%M:%fZ', reads_until, ?1)
             WHERE strftime('%s', reads_until, ?1) IS NOT NULL",
        ];
        let by = format!("{:+.3} seconds", by_ms as f64 / 1000.0);
        let mut writer = self.writer.lock().await;
        let mut tx = self.begin(&mut writer).await?;
        for statement in OTHER_TIMES {
            sqlx::query(statement).bind(&by).execute(&mut *tx).await?;
        }
        sqlx::query(
            "UPDATE batches SET next_look_at = strftime('%Y-%m-%dT%H:%M:%fZ', next_look_at, ?1)
             WHERE state <> 'done' AND strftime('%s', next_look_at, ?1) IS NOT NULL",
        )
        .bind(&by)
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }

    /// The batches that are not done.
    pub async fn open_batch_ids(&self) -> Result<Vec<BatchId>, StoreError> {
        let mut writer = self.writer.lock().await;
        let ids: Vec<i64> = sqlx::query_scalar("SELECT id FROM batches WHERE state <> 'done'")
            .fetch_all(&mut *writer)
            .await?;
        Ok(ids.into_iter().map(BatchId).collect())
    }

    /// The latest time that a daemon is known to have written; a clock that shows less was set back
    /// since.
    pub async fn last_written_at(&self) -> Result<Option<UtcMillis>, StoreError> {
        let mut writer = self.writer.lock().await;
        let times: Vec<Option<Vec<u8>>> = sqlx::query_scalar(
            "SELECT CAST((SELECT intent_at FROM batches WHERE id = (SELECT max(id) FROM batches)) AS BLOB)
             UNION ALL SELECT CAST(updated_at AS BLOB) FROM targets
             UNION ALL SELECT CAST(since AS BLOB) FROM holds INDEXED BY holds_that_matter
                 WHERE (kind <> 'unknown_target' OR target IS NULL) AND kind IN ('breaker', 'budget', 'credentials')",
        )
        .fetch_all(&mut *writer)
        .await?;
        Ok(times
            .into_iter()
            .filter_map(|time| rows::readable_time(time.map(rows::lossy)))
            .max())
    }

    /// Makes the next looks of a target's open batches due.
    pub async fn look_at_once(
        &self,
        target: &TargetName,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().await;
        let mut tx = self.begin(&mut writer).await?;
        sqlx::query("UPDATE batches SET next_look_at = ?1 WHERE state <> 'done' AND next_look_at > ?1 AND target = ?2")
            .bind(text(now))
            .bind(&target.0)
            .execute(&mut *tx)
            .await?;
        tx.commit().await
    }

    /// How many batches are open, by target.
    pub async fn unfinished_batches(&self) -> Result<Vec<(TargetName, i64)>, StoreError> {
        let mut writer = self.writer.lock().await;
        // The condition on next_look_at leads to the index of open batches, and away from reading
        // all that ever were.
        let targets: Vec<Vec<u8>> = sqlx::query_scalar(
            "SELECT CAST(target AS BLOB) FROM batches WHERE state <> 'done' AND next_look_at >= ''",
        )
        .fetch_all(&mut *writer)
        .await?;
        let mut counts: BTreeMap<TargetName, i64> = BTreeMap::new();
        targets
            .into_iter()
            .for_each(|target| *counts.entry(TargetName(rows::lossy(target))).or_default() += 1);
        Ok(counts.into_iter().collect())
    }

    /// How long the last jobs of this target and action took, newest first, at most twenty.
    pub async fn job_history(
        &self,
        target: &TargetName,
        action: PowerAction,
    ) -> Result<Vec<Duration>, StoreError> {
        let mut writer = self.writer.lock().await;
        let took: Vec<i64> = sqlx::query_scalar(
            "SELECT job_ms FROM batches WHERE target = ? AND action = ? AND job_ms IS NOT NULL ORDER BY id DESC LIMIT 20",
        )
        .bind(&target.0)
        .bind(action.as_str())
        .fetch_all(&mut *writer)
        .await?;
        Ok(took
            .into_iter()
            .map(|ms| Duration::from_millis(ms.max(0) as u64))
            .collect())
    }

    /// When the last `count` submit calls of a target were over, in the order in which they were
    /// made. One whose answer is not known may have arrived only just now.
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
        Ok(calls
            .into_iter()
            .rev()
            .filter_map(|call| rows::readable_time(Some(call)))
            .collect())
    }
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
    intent_at: String,
    submitted_at: Option<String>,
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
                submitted_at, looks, doubts, from_copy, look_cause, look_until, CAST(error_code AS BLOB) AS error_code,
                CAST(error_message AS BLOB) AS error_message, CAST(read_error AS BLOB) AS read_error
         FROM batches WHERE id = ? AND state <> 'done'",
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
        // A time that does not read is one long ago: what it bounds is over.
        let time = |text: String| rows::readable_time(Some(text)).unwrap_or(UtcMillis(0));
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
            intent_at: time(self.intent_at),
            submitted_at: rows::readable_time(self.submitted_at),
            looks: rows::count(self.looks),
            doubts: rows::count(self.doubts),
            from_copy: self.from_copy != 0,
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

/// A reboot that ended unknown, or whose own task failed, may be under way for this long.
/// Documented jobs take minutes; nobody says what the longest is.
pub(super) const SHADOW: Duration = Duration::from_secs(24 * 3600);

async fn members(
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
                ?2 IS NOT NULL AND (EXISTS (
                    SELECT 1 FROM power_requests e WHERE e.in_line IS NULL AND e.gate IS NULL
                    AND e.server_id = r.server_id AND e.target = r.target AND e.finished_at > ?2
                    AND e.action IN (SELECT value FROM json_each(?3))
                    AND (e.state = 'unknown' OR (e.state = 'failed' AND e.evidence = 'job')))
                  OR EXISTS (
                    SELECT 1 FROM power_requests e WHERE e.in_line = 1
                    AND e.server_id = r.server_id AND e.target = r.target AND e.finished_at > ?2 AND e.id < r.id
                    AND e.action IN (SELECT value FROM json_each(?3))
                    AND (e.state = 'unknown' OR (e.state = 'failed' AND e.evidence = 'job')))))) AS BLOB)
         FROM power_requests r WHERE r.state = 'running' AND r.batch_id = ?1",
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
