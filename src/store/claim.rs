//! From a request that may go to a batch: which lanes can go, who leads them, and the claim.

use std::collections::{BTreeMap, HashSet};

use sqlx::sqlite::SqliteConnection;

use super::rows::list;
use super::{Store, StoreError, holds, rows, text};
use crate::lifecycle::{self, Event, Step};
use crate::model::{
    Baseline, Batch, BatchId, BatchState, Head, Lane, Member, Origin, OwnCode, PowerAction,
    RequestId, RequestState, ServerId, TargetName, UtcMillis,
};

/// Lanes of one target and action that are read at once; those beyond come when the first of these
/// have left.
const LANES_MAX: i64 = 1000;

/// Which requests of a lane are claimed.
#[derive(Debug, Clone, Copy)]
pub enum Which<'a> {
    /// So many from its head.
    First(u32),
    /// These, as far as they still stand in it, each with what its server's last operation is.
    These(&'a [(RequestId, Baseline)]),
}

impl Store {
    /// The lanes of each wanted target and action, with their heads; not counted. Of very many
    /// travel groups the oldest. Cost does not depend on what waits behind the heads, nor on other
    /// targets.
    pub async fn lanes(
        &self,
        wanted: &[(TargetName, PowerAction)],
    ) -> Result<Vec<Lane>, StoreError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let wanted: Vec<(&str, &str)> = wanted
            .iter()
            .map(|(target, action)| (target.0.as_str(), action.as_str()))
            .collect();
        let mut writer = self.writer.lock().await;
        let found: Vec<(String, String, i64, i64, i64)> = sqlx::query_as(
            "WITH RECURSIVE head(target, action, travel_group, number) AS (
                 SELECT j.value ->> 0, j.value ->> 1,
                        (SELECT r.travel_group FROM power_requests r WHERE r.gate = 'ready' AND r.target = j.value ->> 0
                         AND r.action = j.value ->> 1 ORDER BY r.travel_group LIMIT 1), 1
                 FROM json_each(?1) j
                 UNION ALL
                 SELECT head.target, head.action,
                        (SELECT n.travel_group FROM power_requests n WHERE n.gate = 'ready' AND n.target = head.target
                         AND n.action = head.action AND n.travel_group > head.travel_group ORDER BY n.travel_group LIMIT 1),
                        head.number + 1
                 FROM head WHERE head.travel_group IS NOT NULL AND head.number < ?2
             )
             SELECT head.target, head.action, head.travel_group, p.priority, p.id
             FROM head CROSS JOIN power_requests p ON p.id = (
                 SELECT f.id FROM power_requests f WHERE f.gate = 'ready' AND f.target = head.target
                 AND f.action = head.action AND f.travel_group = head.travel_group ORDER BY f.priority DESC, f.id LIMIT 1)
             WHERE head.travel_group IS NOT NULL",
        )
        .bind(serde_json::to_string(&wanted).unwrap_or_default())
        .bind(LANES_MAX)
        .fetch_all(&mut *writer)
        .await?;
        let lane =
            |(target, action, group, head_priority, head_id): (String, String, i64, i64, i64)| {
                Ok(Lane {
                    target: TargetName(target),
                    action: rows::word(&action)?,
                    group,
                    head_priority,
                    head_id,
                    ready: 1,
                    oldest_eligible_at: UtcMillis(0),
                })
            };
        found.into_iter().map(lane).collect()
    }

    /// Counts a lane's requests, up to `count_max`, and finds since when the longest-waiting of
    /// fewer could go.
    pub async fn count(&self, lane: &Lane, count_max: u32) -> Result<Lane, StoreError> {
        let mut writer = self.writer.lock().await;
        let ready: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM (SELECT 1 FROM power_requests r WHERE r.gate = 'ready' AND r.target = ?1 AND r.action = ?2
                 AND r.travel_group = ?3 LIMIT 0 + ?4)",
        )
        .bind(&lane.target.0)
        .bind(lane.action.as_str())
        .bind(lane.group)
        .bind(count_max)
        .fetch_one(&mut *writer)
        .await?;
        let ready = u32::try_from(ready).unwrap_or(u32::MAX);
        let mut counted = Lane {
            ready,
            ..lane.clone()
        };
        if ready < count_max {
            let oldest: Option<String> = sqlx::query_scalar(
                "SELECT min(r.eligible_at) FROM power_requests r WHERE r.gate = 'ready' AND r.target = ?1 AND r.action = ?2
                     AND r.travel_group = ?3",
            )
            .bind(&lane.target.0)
            .bind(lane.action.as_str())
            .bind(lane.group)
            .fetch_one(&mut *writer)
            .await?;
            counted.oldest_eligible_at = rows::readable_time(oldest).unwrap_or(UtcMillis(0));
        }
        Ok(counted)
    }

    /// The first requests of each lane, at most `each`, in the order in which they would be
    /// claimed.
    pub async fn heads(&self, lanes: &[&Lane], each: u32) -> Result<Vec<Head>, StoreError> {
        let mut writer = self.writer.lock().await;
        let mut heads = Vec::new();
        for lane in lanes {
            let found: Vec<(i64, String, Option<String>)> = sqlx::query_as(
                "SELECT id, server_id, eligible_at FROM power_requests
                 WHERE gate = 'ready' AND target = ? AND action = ? AND travel_group = ? ORDER BY priority DESC, id LIMIT 0 + ?",
            )
            .bind(&lane.target.0)
            .bind(lane.action.as_str())
            .bind(lane.group)
            .bind(each)
            .fetch_all(&mut *writer)
            .await?;
            heads.extend(found.into_iter().map(|(id, server, since)| Head {
                request: RequestId(id),
                server: ServerId(server),
                action: lane.action,
                group: lane.group,
                eligible_at: rows::readable_time(since),
            }));
        }
        Ok(heads)
    }

    /// Lets requests wait, each until a time of its own and for a reason: their servers are busy
    /// with something else, or could not be read.
    pub async fn put_off(&self, waits: &[(RequestId, UtcMillis, &str)]) -> Result<(), StoreError> {
        if waits.is_empty() {
            return Ok(());
        }
        let waits: Vec<(i64, String, &str)> = waits
            .iter()
            .map(|(request, until, why)| (request.0, text(*until), *why))
            .collect();
        let mut writer = self.writer.lock().await;
        let mut tx = self.begin(&mut writer).await?;
        sqlx::query(
            "UPDATE power_requests SET gate = 'retry', retry_at = j.value ->> 1, error_code = ?2,
                 error_message = j.value ->> 2
             FROM json_each(?1) j WHERE power_requests.id = j.value ->> 0 AND gate = 'ready'",
        )
        .bind(serde_json::to_string(&waits).unwrap_or_default())
        .bind(OwnCode::Busy.as_str())
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }

    /// Stores the intent: a batch of the lane's first requests, or of some of them, synced before
    /// this returns.
    ///
    /// `None` if the lane has become empty or is held, or if one of `barred` stands among them: a
    /// pause, or a row of a stranger, may have come in at this very moment. The batch's own next
    /// step, should the daemon die before the call's answer is stored, is due at once. Before this
    /// returns, the note beside the queue knows of the claim, and the queue is still the one that
    /// was begun.
    ///
    /// # Errors
    /// Those of the store. `Unnoted` means that the claim was undone, `Replaced` that it is
    /// nobody's business any more: in both cases nothing may be sent.
    pub async fn claim(
        &self,
        lane: &Lane,
        origin: &Origin,
        which: Which<'_>,
        barred: &[ServerId],
        now: UtcMillis,
    ) -> Result<Option<Batch>, StoreError> {
        if self.own().unnoted.is_some() {
            self.require_note()?;
        }
        let mut writer = self.writer.lock().await;
        let mut tx = self.begin(&mut writer).await?;
        let (holds, _) = holds::read(&mut tx, now).await?;
        if holds
            .iter()
            .any(|hold| hold.covers(&lane.target, lane.action, now))
        {
            tx.rollback().await?;
            return Ok(None);
        }
        let batch = insert_batch(&mut tx, lane, origin, now).await?;
        let members = claim_members(&mut tx, lane, batch, which, now).await?;
        let barred: HashSet<&ServerId> = barred.iter().collect();
        if members.is_empty() || members.iter().any(|member| barred.contains(&member.server)) {
            tx.rollback().await?;
            return Ok(None);
        }
        sqlx::query("UPDATE batches SET server_count = ? WHERE id = ?")
            .bind(members.len() as i64)
            .bind(batch.0)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        let batch = Batch {
            id: batch,
            target: lane.target.clone(),
            service: origin.service,
            action: lane.action,
            state: BatchState::Submitting,
            job: None,
            intent_at: now,
            submitted_at: None,
            looks: 0,
            doubts: 0,
            from_copy: false,
            server_count: members.len() as u32,
            look_cause: None,
            look_until: None,
            complaint: None,
            read_error: None,
            members,
        };
        self.look_at_place(&mut writer).await?;
        drop(writer);
        if let Err(error) = self.note_claim(&batch) {
            self.record(&batch, &Step::not_begun(&batch, &error.to_string()), now)
                .await?;
            return Err(error);
        }
        Ok(Some(batch))
    }

    fn note_claim(&self, batch: &Batch) -> Result<(), StoreError> {
        {
            let note = &mut self.own().note;
            let last = batch
                .members
                .iter()
                .map(|member| member.request.0)
                .max()
                .unwrap_or(0);
            note.last_id = note.last_id.max(last);
            note.last_batch_id = note.last_batch_id.max(batch.id.0);
        }
        self.require_note()
    }
}

async fn insert_batch(
    tx: &mut SqliteConnection,
    lane: &Lane,
    origin: &Origin,
    now: UtcMillis,
) -> Result<BatchId, StoreError> {
    let id = sqlx::query_scalar(
        "INSERT INTO batches (target, service, endpoint, project_id, action, state, server_count, intent_at, next_look_at, travel_group)
         VALUES (?, ?, ?, ?, ?, 'submitting', 1, ?, ?, ?) RETURNING id",
    )
    .bind(&lane.target.0)
    .bind(origin.service.as_str())
    .bind(&origin.endpoint)
    .bind(&origin.project_id)
    .bind(lane.action.as_str())
    .bind(text(now))
    .bind(text(now))
    .bind(lane.group)
    .fetch_one(tx)
    .await?;
    Ok(BatchId(id))
}

async fn claim_members(
    tx: &mut SqliteConnection,
    lane: &Lane,
    batch: BatchId,
    which: Which<'_>,
    now: UtcMillis,
) -> Result<Vec<Member>, StoreError> {
    lifecycle::next(RequestState::Queued, &Event::Claimed)
        .map_err(|error| StoreError::Unreadable(error.to_string()))?;
    let claim = match which {
        Which::First(_) => {
            "UPDATE power_requests SET state = 'running', gate = 'flight', batch_id = ?1, submitted_at = ?2, retry_at = NULL,
                 attempts = attempts + 1
             WHERE id IN (SELECT id FROM power_requests WHERE gate = 'ready' AND target = ?3 AND action = ?4 AND travel_group = ?5
                          ORDER BY priority DESC, id LIMIT 0 + ?6)
             RETURNING id, server_id, attempts, eligible_at"
        }
        Which::These(_) => {
            "UPDATE power_requests SET state = 'running', gate = 'flight', batch_id = ?1, submitted_at = ?2, retry_at = NULL,
                 attempts = attempts + 1
             WHERE id IN (SELECT value FROM json_each(?6))
                AND gate = 'ready' AND target = ?3 AND action = ?4 AND travel_group = ?5
             RETURNING id, server_id, attempts, eligible_at"
        }
    };
    let claim = sqlx::query_as(claim)
        .bind(batch.0)
        .bind(text(now))
        .bind(&lane.target.0)
        .bind(lane.action.as_str())
        .bind(lane.group);
    let claim = match which {
        Which::First(most) => claim.bind(most),
        Which::These(heads) => claim.bind(list(heads.iter().map(|(request, _)| &request.0))),
    };
    let claimed: Vec<(i64, String, i64, Option<String>)> = claim.fetch_all(&mut *tx).await?;
    let baselines: BTreeMap<RequestId, Baseline> = match which {
        Which::First(_) => BTreeMap::new(),
        Which::These(heads) => heads.iter().copied().collect(),
    };
    let ids = list(claimed.iter().map(|row| &row.0));
    sqlx::query(
        "INSERT INTO request_attempts (request_id, batch_id, started_at) SELECT value, ?2, ?3 FROM json_each(?1)",
    )
    .bind(&ids)
    .bind(batch.0)
    .bind(text(now))
    .execute(&mut *tx)
    .await?;
    note_baselines(tx, batch, &baselines).await?;
    // Only a request that travels apart can have been busy before.
    let busy: Vec<(i64, i64)> = match lane.group {
        0 => Vec::new(),
        _ => {
            sqlx::query_as(
                "SELECT a.request_id, count(*) FROM json_each(?1) j
                 JOIN request_attempts a ON a.request_id = j.value AND a.result = 'busy' GROUP BY a.request_id",
            )
            .bind(&ids)
            .fetch_all(&mut *tx)
            .await?
        }
    };
    let busy: BTreeMap<i64, i64> = busy.into_iter().collect();
    let waited = |attempts: i64, since: Option<String>| {
        let first = attempts == 1 && lane.group == 0;
        rows::readable_time(since)
            .filter(|_| first)
            .map(|since| now.since(since))
    };
    let member = |(id, server, attempts, since): (i64, String, i64, Option<String>)| Member {
        request: RequestId(id),
        server: ServerId(server),
        attempts: attempts as u32,
        busy: busy.get(&id).map_or(0, |&count| count as u32),
        seen_moving: false,
        baseline: baselines.get(&RequestId(id)).copied().unwrap_or_default(),
        shadowed: false,
        waited: waited(attempts, since),
    };
    Ok(claimed.into_iter().map(member).collect())
}

/// Part of the intent: after a crash they cannot be read any more.
async fn note_baselines(
    tx: &mut SqliteConnection,
    batch: BatchId,
    baselines: &BTreeMap<RequestId, Baseline>,
) -> Result<(), StoreError> {
    let known = baselines
        .iter()
        .filter_map(|(request, baseline)| Some((request.0, rows::baseline_text(*baseline)?)));
    let known: Vec<(i64, String)> = known.collect();
    if known.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE request_attempts SET baseline = j.value ->> 1 FROM json_each(?1) j
         WHERE +batch_id = ?2 AND request_id = j.value ->> 0",
    )
    .bind(serde_json::to_string(&known).unwrap_or_default())
    .bind(batch.0)
    .execute(tx)
    .await?;
    Ok(())
}
