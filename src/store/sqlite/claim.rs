//! From a request that may go to a batch: which lanes can go, who leads them, and the claim.

use std::collections::{BTreeMap, HashSet};

use sqlx::sqlite::SqliteConnection;

use super::rows::list;
use super::{Store, StoreError, gate, holds, rows, text};
use crate::lifecycle::{self, Event, Step};
use crate::model::{
    Baseline, Batch, BatchId, BatchState, Head, Lane, Member, Origin, RequestId, RequestState,
    ServerId, UtcMillis,
};

/// A claim that has parked so many goes with those that it has found by then: the transaction stays
/// short whatever stands in the lane.
const PARKED_MAX: usize = 2000;

/// Which requests of a lane are claimed.
#[derive(Debug, Clone, Copy)]
pub enum Which<'a> {
    /// So many from its head.
    First(u32),
    /// These, as far as they still stand in it, each with what its server's last operation is.
    These(&'a [(RequestId, Baseline)]),
}

impl Store {
    /// The first requests of each lane that may go, at most `each`, in the order in which they would
    /// be claimed. Those that may not are parked.
    pub async fn heads(
        &self,
        lanes: &[&Lane],
        each: u32,
        now: UtcMillis,
    ) -> Result<Vec<Head>, StoreError> {
        let mut writer = self.writer.lock().await;
        let mut heads = Vec::new();
        for lane in lanes {
            let mut sorted = Sorted::of(read_first(&mut writer, lane, each, true, now).await?);
            if sorted.parked() > 0 {
                let mut tx = self.begin(&mut writer).await?;
                sorted.park(&mut tx).await?;
                let more = pick_first(&mut tx, lane, each, true, now).await?;
                tx.commit().await?;
                sorted.go = more.go;
            }
            heads.extend(
                sorted
                    .go
                    .into_iter()
                    .map(|candidate| candidate.into_head(lane)),
            );
        }
        Ok(heads)
    }

    /// How many of the first `most` requests of a lane their labels do not hold. Moves nobody.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn count_free(
        &self,
        lane: &Lane,
        most: u32,
        now: UtcMillis,
    ) -> Result<u32, StoreError> {
        let mut writer = self.writer.lock().await;
        let first = read_first(&mut writer, lane, most, false, now).await?;
        let free = first.iter().filter(|candidate| !candidate.is_held).count();
        Ok(u32::try_from(free).unwrap_or(u32::MAX))
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
        let waits = serde_json::to_string(&waits).unwrap_or_default();
        gate::put_off(&mut tx, &waits).await?;
        tx.commit().await
    }

    /// Stores the intent: a batch of the lane's first requests, or of some of them, synced before
    /// this returns.
    ///
    /// Those of them that cannot go, because an earlier request of their server is not over, are
    /// parked. `None` if nobody is left, if the lane is held, or if one of `barred` stands among
    /// them: a pause, or a row of a stranger, may have come in at this very moment. The batch's own next
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
        // Where nobody is parked, hardly anybody is behind another one: the schema refuses the claim
        // if somebody is, and then each is looked at.
        let looks = gate::is_anything_parked(&mut writer, &lane.target).await?;
        let wanted = Wanted {
            lane,
            origin,
            which,
            barred,
            now,
        };
        let claimed = match self.try_claim(&mut writer, &wanted, looks).await {
            Err(StoreError::Refused(_)) if !looks => {
                self.try_claim(&mut writer, &wanted, true).await?
            }
            tried => tried?,
        };
        let Some((batch, members)) = claimed else {
            return Ok(None);
        };
        self.own().claimed.keep(batch, members.clone());
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

    /// The claim's transaction. With `looks`, it parks those who cannot go.
    async fn try_claim(
        &self,
        writer: &mut SqliteConnection,
        wanted: &Wanted<'_>,
        looks: bool,
    ) -> Result<Option<(BatchId, Vec<Member>)>, StoreError> {
        let Wanted { lane, now, .. } = *wanted;
        let mut tx = self.begin(writer).await?;
        let holds = holds::read(&mut tx, now).await?;
        if holds.iter().any(|hold| hold.covers(lane, now)) {
            tx.rollback().await?;
            return Ok(None);
        }
        let picked = match wanted.which {
            Which::First(most) => pick_first(&mut tx, lane, most, looks, now).await?,
            Which::These(heads) => pick_these(&mut tx, lane, heads, looks, now).await?,
        };
        let barred: HashSet<&ServerId> = wanted.barred.iter().collect();
        let is_barred = |candidate: &Candidate| barred.contains(&candidate.server);
        if picked.go.iter().any(is_barred) || (picked.go.is_empty() && picked.parked == 0) {
            tx.rollback().await?;
            return Ok(None);
        }
        if picked.go.is_empty() {
            tx.commit().await?;
            return Ok(None);
        }
        let claimed = claim_picked(&mut tx, wanted, picked.go).await;
        if claimed.is_err() {
            // What the schema refuses may be claimed in another way, on this connection.
            tx.rollback().await?;
            return claimed.map(Some);
        }
        tx.commit().await?;
        claimed.map(Some)
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

/// What a claim is asked for.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    lane: &'a Lane,
    origin: &'a Origin,
    which: Which<'a>,
    barred: &'a [ServerId],
    now: UtcMillis,
}

/// A request that stands ready, as the claim reads it.
struct Candidate {
    id: i64,
    server: ServerId,
    /// Calls so far.
    attempts: i64,
    /// Since when it could go.
    since: Option<UtcMillis>,
    /// An earlier request of its server is not over.
    is_behind: bool,
    /// Its label is paused, or no wave of its order has let it go.
    is_held: bool,
}

/// Id, server, attempts, since when, behind another one, held by its label.
type CandidateRow = (i64, String, i64, Option<String>, i64, i64);

impl Candidate {
    fn read(row: CandidateRow) -> Self {
        let (id, server, attempts, since, is_behind, is_held) = row;
        Self {
            id,
            server: ServerId(server),
            attempts,
            since: rows::readable_time(since),
            is_behind: is_behind != 0,
            is_held: is_held != 0,
        }
    }

    fn into_head(self, lane: &Lane) -> Head {
        Head {
            request: RequestId(self.id),
            server: self.server,
            action: lane.action,
            kind: lane.kind,
            eligible_at: self.since,
        }
    }
}

/// What a claim takes, and how many requests it has parked.
struct Picked {
    go: Vec<Candidate>,
    parked: usize,
}

/// Candidates by what becomes of them.
#[derive(Default)]
struct Sorted {
    go: Vec<Candidate>,
    /// Ids of those that another one of their server goes before.
    behind: Vec<i64>,
    /// Ids of those that their labels hold.
    held: Vec<i64>,
}

impl Sorted {
    fn of(candidates: Vec<Candidate>) -> Self {
        let mut sorted = Self::default();
        for candidate in candidates {
            if candidate.is_behind {
                sorted.behind.push(candidate.id);
            } else if candidate.is_held {
                sorted.held.push(candidate.id);
            } else {
                sorted.go.push(candidate);
            }
        }
        sorted
    }

    fn parked(&self) -> usize {
        self.behind.len() + self.held.len()
    }

    async fn park(&self, tx: &mut SqliteConnection) -> Result<(), StoreError> {
        gate::park_behind(tx, &self.behind).await?;
        gate::park_held(tx, &self.held).await
    }
}

/// The first requests of a lane that may go, at most `most`. Those that are met on the way and may
/// not are parked; each is met once.
async fn pick_first(
    tx: &mut SqliteConnection,
    lane: &Lane,
    most: u32,
    looks: bool,
    now: UtcMillis,
) -> Result<Picked, StoreError> {
    let mut picked = Picked {
        go: Vec::new(),
        parked: 0,
    };
    loop {
        let sorted = Sorted::of(read_first(tx, lane, most, looks, now).await?);
        sorted.park(tx).await?;
        let parked = sorted.parked();
        picked.go = sorted.go;
        picked.parked += parked;
        if parked == 0 || picked.parked >= PARKED_MAX {
            return Ok(picked);
        }
    }
}

/// Those of `heads` that still stand in the lane and may go.
async fn pick_these(
    tx: &mut SqliteConnection,
    lane: &Lane,
    heads: &[(RequestId, Baseline)],
    looks: bool,
    now: UtcMillis,
) -> Result<Picked, StoreError> {
    let found: Option<Vec<u8>> = sqlx::query_scalar(
        "SELECT CAST(json_group_array(json_array(
                r.id, CAST(r.server_id AS TEXT), CAST(r.attempts AS INTEGER), CAST(ifnull(r.eligible_at, r.created_at) AS TEXT),
                CASE WHEN ?5 THEN
                    EXISTS (SELECT 1 FROM power_requests o WHERE o.in_line = 1 AND o.server_id = r.server_id
                            AND o.target = r.target AND o.id < r.id AND o.finished_at IS NULL)
                    OR EXISTS (SELECT 1 FROM power_requests p WHERE p.in_line IS NULL AND p.gate = 'behind'
                               AND p.target = r.target AND p.server_id = r.server_id AND p.id < r.id)
                ELSE 0 END,
                r.label IS NOT NULL AND (
                    (r.wave IS NULL AND EXISTS (SELECT 1 FROM orders w WHERE w.label = r.label))
                    OR EXISTS (SELECT 1 FROM holds h WHERE h.label = r.label AND h.kind = 'operator'
                               AND (h.target IS NULL OR h.target = r.target) AND (h.action IS NULL OR h.action = r.action)
                               AND (h.until IS NULL OR h.until > ?6))))) AS BLOB)
         FROM json_each(?1) j CROSS JOIN power_requests r ON r.id = j.value
         WHERE r.gate = 'ready' AND r.target = ?2 AND r.action = ?3
           AND r.travel_group * 4 + (r.approved_by IS NOT NULL) * 2 + (r.override_reason IS NOT NULL) = ?4",
    )
    .bind(list(heads.iter().map(|(request, _)| &request.0)))
    .bind(&lane.target.0)
    .bind(lane.action.as_str())
    .bind(lane.kind.number())
    .bind(looks)
    .bind(text(now))
    .fetch_optional(&mut *tx)
    .await?;
    let found: Vec<CandidateRow> = rows::json(found.unwrap_or_default())?;
    let sorted = Sorted::of(found.into_iter().map(Candidate::read).collect());
    sorted.park(tx).await?;
    Ok(Picked {
        parked: sorted.parked(),
        go: sorted.go,
    })
}

/// One row for all of them: each row costs as much again on its way through sqlx. Whether one is
/// behind another is said only with `looks`.
async fn read_first(
    connection: &mut SqliteConnection,
    lane: &Lane,
    most: u32,
    looks: bool,
    now: UtcMillis,
) -> Result<Vec<Candidate>, StoreError> {
    let found: Option<Vec<u8>> = sqlx::query_scalar(
        "SELECT CAST(json_group_array(json_array(
                r.id, CAST(r.server_id AS TEXT), CAST(r.attempts AS INTEGER), CAST(ifnull(r.eligible_at, r.created_at) AS TEXT),
                CASE WHEN ?5 THEN
                    EXISTS (SELECT 1 FROM power_requests o WHERE o.in_line = 1 AND o.server_id = r.server_id
                            AND o.target = r.target AND o.id < r.id AND o.finished_at IS NULL)
                    OR EXISTS (SELECT 1 FROM power_requests p WHERE p.in_line IS NULL AND p.gate = 'behind'
                               AND p.target = r.target AND p.server_id = r.server_id AND p.id < r.id)
                ELSE 0 END,
                r.label IS NOT NULL AND (
                    (r.wave IS NULL AND EXISTS (SELECT 1 FROM orders w WHERE w.label = r.label))
                    OR EXISTS (SELECT 1 FROM holds h WHERE h.label = r.label AND h.kind = 'operator'
                               AND (h.target IS NULL OR h.target = r.target) AND (h.action IS NULL OR h.action = r.action)
                               AND (h.until IS NULL OR h.until > ?6))))) AS BLOB)
         FROM (SELECT id, server_id, target, action, attempts, eligible_at, created_at, label, wave FROM power_requests
               WHERE gate = 'ready' AND target = ?1 AND action = ?2
                 AND travel_group * 4 + (approved_by IS NOT NULL) * 2 + (override_reason IS NOT NULL) = ?3
               ORDER BY priority DESC, id LIMIT 0 + ?4) r",
    )
    .bind(&lane.target.0)
    .bind(lane.action.as_str())
    .bind(lane.kind.number())
    .bind(most)
    .bind(looks)
    .bind(text(now))
    .fetch_optional(connection)
    .await?;
    let found: Vec<CandidateRow> = rows::json(found.unwrap_or_default())?;
    Ok(found.into_iter().map(Candidate::read).collect())
}

async fn insert_batch(
    tx: &mut SqliteConnection,
    lane: &Lane,
    origin: &Origin,
    server_count: usize,
    now: UtcMillis,
) -> Result<BatchId, StoreError> {
    let id = sqlx::query_scalar(
        "INSERT INTO batches (target, service, endpoint, project_id, action, state, server_count, intent_at, next_look_at, travel_group,
                              approved)
         VALUES (?, ?, ?, ?, ?, 'submitting', ?, ?, ?, ?, ?) RETURNING id",
    )
    .bind(&lane.target.0)
    .bind(origin.service.as_str())
    .bind(&origin.endpoint)
    .bind(&origin.project_id)
    .bind(lane.action.as_str())
    .bind(server_count as i64)
    .bind(text(now))
    .bind(text(now))
    .bind(lane.kind.group)
    .bind(lane.kind.is_approved)
    .fetch_one(tx)
    .await?;
    Ok(BatchId(id))
}

async fn claim_picked(
    tx: &mut SqliteConnection,
    wanted: &Wanted<'_>,
    go: Vec<Candidate>,
) -> Result<(BatchId, Vec<Member>), StoreError> {
    let batch = insert_batch(tx, wanted.lane, wanted.origin, go.len(), wanted.now).await?;
    let members = claim_members(tx, wanted, batch, go).await?;
    Ok((batch, members))
}

async fn claim_members(
    tx: &mut SqliteConnection,
    wanted: &Wanted<'_>,
    batch: BatchId,
    go: Vec<Candidate>,
) -> Result<Vec<Member>, StoreError> {
    let Wanted {
        lane, which, now, ..
    } = *wanted;
    lifecycle::next(RequestState::Queued, &Event::Claimed)
        .map_err(|error| StoreError::Unreadable(error.to_string()))?;
    let ids = list(go.iter().map(|candidate| &candidate.id));
    gate::take(tx, &ids, batch, now).await?;
    let baselines: BTreeMap<RequestId, Baseline> = match which {
        Which::First(_) => BTreeMap::new(),
        Which::These(heads) => heads.iter().copied().collect(),
    };
    note_baselines(tx, batch, &baselines).await?;
    // Only a request that travels apart can have been busy before.
    let busy: Vec<(i64, i64)> = match lane.kind.group {
        0 => Vec::new(),
        _ => {
            sqlx::query_as(
                "SELECT a.request_id, count(*) FROM json_each(?1) j
                 JOIN earlier_attempts a ON a.request_id = j.value AND a.result = 'busy' GROUP BY a.request_id",
            )
            .bind(&ids)
            .fetch_all(&mut *tx)
            .await?
        }
    };
    let busy: BTreeMap<i64, i64> = busy.into_iter().collect();
    let member = |candidate: Candidate| {
        let request = RequestId(candidate.id);
        let attempts = rows::count(candidate.attempts.saturating_add(1));
        let is_first = attempts == 1 && lane.kind.group == 0;
        Member {
            request,
            server: candidate.server,
            attempts,
            busy: busy.get(&request.0).map_or(0, |&count| rows::count(count)),
            seen_moving: false,
            baseline: baselines.get(&request).copied().unwrap_or_default(),
            shadowed: false,
            waited: candidate
                .since
                .filter(|_| is_first)
                .map(|since| now.since(since)),
        }
    };
    Ok(go.into_iter().map(member).collect())
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
        "UPDATE power_requests SET baseline = j.value ->> 1 FROM json_each(?1) j
         WHERE power_requests.id = j.value ->> 0 AND +batch_id = ?2",
    )
    .bind(serde_json::to_string(&known).unwrap_or_default())
    .bind(batch.0)
    .execute(tx)
    .await?;
    Ok(())
}
