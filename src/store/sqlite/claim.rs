//! From a request that may go to a batch: which lanes can go, who leads them, and the claim.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use sqlx::sqlite::SqliteConnection;

use super::guard::GuardLimit;
use super::rows::list;
use super::{Store, StoreError, gate, holds, overrides, rows, text};
use crate::lifecycle::{self, Event};
use crate::model::{
    Baseline, Batch, BatchId, BatchState, Head, Lane, Member, Origin, RequestId, RequestState,
    ServerId, UtcMillis,
};

/// A claim that has parked so many goes with those that it has found by then.
const PARKED_MAX: usize = 2000;
/// So many are parked in one transaction, which stays short whatever is in the lane.
const PARKED_AT_ONCE: usize = 500;
/// So many are parked in the transaction of the claim itself; before more, it is made anew.
const PARKED_BESIDE: usize = 100;

/// What is claimed, and for whom.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// Where the requests are.
    pub lane: &'a Lane,
    /// Where the batch is sent.
    pub origin: &'a Origin,
    /// Which of the lane's requests.
    pub which: Which<'a>,
    /// Nothing is claimed if one of these servers is among them.
    pub barred: &'a [ServerId],
    /// How many unapproved requests may be due; none: any number.
    pub guard: Option<&'a GuardLimit>,
    /// The time of the intent.
    pub now: UtcMillis,
}

/// Which requests of a lane are claimed.
#[derive(Debug, Clone, Copy)]
pub enum Which<'a> {
    /// This many from its head.
    First(u32),
    /// These, as far as they are still in it, each with what its server's last operation is.
    These(&'a [(RequestId, Baseline)]),
}

impl Claim<'_> {
    fn batch(&self, id: BatchId, members: Vec<Member>) -> Batch {
        Batch {
            id,
            target: self.lane.target.clone(),
            service: self.origin.service,
            action: self.lane.action,
            state: BatchState::Submitting,
            job: None,
            intent_at: self.now,
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
        }
    }

    fn bars_one_of(&self, candidates: &[Candidate]) -> bool {
        let barred: HashSet<&ServerId> = self.barred.iter().collect();
        candidates
            .iter()
            .any(|candidate| barred.contains(&candidate.server))
    }
}

/// A request that is ready, as the claim reads it.
struct Candidate {
    id: i64,
    server: ServerId,
    /// Calls so far.
    attempts: i64,
    /// Since when it could go.
    since: Option<UtcMillis>,
}

/// Id, server, attempts, since when.
type CandidateRow = (i64, String, i64, Option<String>);

impl Candidate {
    fn read(row: CandidateRow) -> Self {
        let (id, server, attempts, since) = row;
        Self {
            id,
            server: ServerId(server),
            attempts,
            since: rows::readable_time(since),
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

    fn into_member(self, claim: &Claim<'_>, busy: u32, baseline: Baseline) -> Member {
        let attempts = rows::count(self.attempts.saturating_add(1));
        let is_first = attempts == 1 && claim.lane.kind.group == 0;
        let since = self.since.filter(|_| is_first);
        Member {
            request: RequestId(self.id),
            server: self.server,
            attempts,
            busy,
            seen_moving: false,
            baseline,
            shadowed: false,
            waited: since.map(|since| claim.now.since(since)),
        }
    }
}

/// The first of a lane.
struct Candidates {
    requests: Vec<Candidate>,
    /// Somebody of their target was found behind another one.
    may_be_behind: bool,
    /// There are orders, or labels on hold.
    may_be_held: bool,
}

impl Candidates {
    /// One row for all of them: each row costs as much again on its way through sqlx.
    fn read(found: (bool, bool, Vec<u8>)) -> Result<Self, StoreError> {
        let (may_be_behind, may_be_held, requests) = found;
        let requests: Vec<CandidateRow> = rows::json(requests)?;
        Ok(Self {
            requests: requests.into_iter().map(Candidate::read).collect(),
            may_be_behind,
            may_be_held,
        })
    }
}

/// What a claim takes, and how many requests it has parked.
struct Pick {
    go: Vec<Candidate>,
    parked: usize,
}

/// The first requests of a lane that may go, at most `each`. Those that may not are parked.
pub(in crate::store) async fn heads(
    store: &Store,
    writer: &mut SqliteConnection,
    lane: &Lane,
    each: u32,
    now: UtcMillis,
) -> Result<Vec<Head>, StoreError> {
    let found = read_first(writer, lane, each).await?;
    let mut go = found.requests;
    if !find_behind(writer, &go).await?.is_empty()
        || (found.may_be_held && !find_held(writer, &go, now).await?.is_empty())
    {
        let mut tx = store.begin(writer).await?;
        go = pick_first(&mut tx, lane, each, (true, now)).await?.go;
        tx.commit().await?;
    }
    Ok(go
        .into_iter()
        .map(|candidate| candidate.into_head(lane))
        .collect())
}

pub(in crate::store) async fn put_off(
    tx: &mut SqliteConnection,
    waits: &[(RequestId, UtcMillis, &str)],
) -> Result<(), StoreError> {
    let waits: Vec<(i64, String, &str)> = waits
        .iter()
        .map(|(request, until, why)| (request.0, text(*until), *why))
        .collect();
    gate::put_off(tx, &serde_json::to_string(&waits).unwrap_or_default()).await
}

pub(in crate::store) async fn claim(
    store: &Store,
    writer: &mut SqliteConnection,
    claim: &Claim<'_>,
) -> Result<Option<Batch>, StoreError> {
    // Where nobody was found behind another one, hardly anybody is: the schema refuses the claim if
    // somebody is, and then each is looked at.
    match try_claim(store, writer, claim, false).await {
        Err(StoreError::Refused(_)) => try_claim(store, writer, claim, true).await,
        tried => tried,
    }
}

/// Those who cannot go are parked, if they are many in transactions before that of the claim. With
/// `looks`, each is looked at, also where nobody was found behind another one.
async fn try_claim(
    store: &Store,
    writer: &mut SqliteConnection,
    claim: &Claim<'_>,
    looks: bool,
) -> Result<Option<Batch>, StoreError> {
    let mut parked = 0;
    loop {
        let mut tx = store.begin(writer).await?;
        match claim_once(&mut tx, claim, looks, PARKED_MAX - parked).await {
            Ok(Tried::Claimed(batch)) => {
                tx.commit().await?;
                return Ok(Some(*batch));
            }
            Ok(Tried::Parked { count, is_last }) => {
                tx.commit().await?;
                if is_last {
                    return Ok(None);
                }
                parked += count;
            }
            Ok(Tried::Nothing) => {
                tx.rollback().await?;
                return Ok(None);
            }
            Err(error) => {
                // What the schema refuses may be claimed in another way, on this connection. After
                // an error of the disk there may be nothing left to roll back.
                let _ = tx.rollback().await;
                return Err(error);
            }
        }
    }
}

/// What one transaction of a claim came to.
enum Tried {
    Claimed(Box<Batch>),
    /// Requests were parked. Unless this is the last one, the claim is tried again.
    Parked {
        count: usize,
        is_last: bool,
    },
    /// Nothing was written.
    Nothing,
}

/// One transaction of a claim, which parks no more than about `parked_max` from now on.
async fn claim_once(
    tx: &mut SqliteConnection,
    claim: &Claim<'_>,
    looks: bool,
    parked_max: usize,
) -> Result<Tried, StoreError> {
    let holds = holds::read(tx, claim.now).await?;
    let is_held = holds.iter().any(|hold| hold.covers(claim.lane, claim.now));
    if is_held || is_guard_exceeded(tx, claim).await? {
        return Ok(Tried::Nothing);
    }
    let picked = match claim.which {
        Which::First(most) => pick_first(tx, claim.lane, most, (looks, claim.now)).await?,
        Which::These(heads) => pick_these(tx, claim.lane, heads, (looks, claim.now)).await?,
    };
    let count = picked.parked;
    if count > PARKED_BESIDE && count < parked_max {
        let is_last = false;
        return Ok(Tried::Parked { count, is_last });
    }
    let is_idle = picked.go.is_empty() && count == 0;
    if is_idle || claim.bars_one_of(&picked.go) {
        return Ok(Tried::Nothing);
    }
    if picked.go.is_empty() {
        let is_last = true;
        return Ok(Tried::Parked { count, is_last });
    }
    let batch = claim_picked(tx, claim, picked.go).await?;
    let mut overridden = holds.iter();
    if overridden.any(|hold| hold.is_overridden_by(claim.lane, claim.now)) {
        overrides::note(tx, batch.id, claim.now).await?;
    }
    Ok(Tried::Claimed(Box::new(batch)))
}

async fn is_guard_exceeded(
    tx: &mut SqliteConnection,
    claim: &Claim<'_>,
) -> Result<bool, StoreError> {
    match claim.guard {
        Some(guard) => guard.is_exceeded(tx, claim.lane).await,
        None => Ok(false),
    }
}

/// The first requests of a lane that may go, at most `most`. Those that are met on the way and may
/// not are parked, each once, and no more are looked for after `PARKED_AT_ONCE`.
async fn pick_first(
    tx: &mut SqliteConnection,
    lane: &Lane,
    most: u32,
    (looks, now): (bool, UtcMillis),
) -> Result<Pick, StoreError> {
    let mut parked = 0;
    loop {
        let candidates = read_first(tx, lane, most).await?;
        let picked = park_others(tx, candidates, (looks, now)).await?;
        parked += picked.parked;
        if picked.parked == 0 || parked >= PARKED_AT_ONCE {
            return Ok(Pick {
                go: picked.go,
                parked,
            });
        }
    }
}

/// Those of `heads` that are still in the lane and may go.
async fn pick_these(
    tx: &mut SqliteConnection,
    lane: &Lane,
    heads: &[(RequestId, Baseline)],
    (looks, now): (bool, UtcMillis),
) -> Result<Pick, StoreError> {
    let found = sqlx::query_as(
        "SELECT EXISTS (SELECT 1 FROM power_requests b WHERE b.gate = 'behind' AND b.target = $2),
                EXISTS (SELECT 1 FROM orders) OR EXISTS (SELECT 1 FROM holds WHERE label IS NOT NULL),
                CAST(json_group_array(json_array(
                r.id, CAST(r.server_id AS TEXT), CAST(r.attempts AS INTEGER), CAST(ifnull(r.eligible_at, r.created_at) AS TEXT)
                )) AS BLOB)
         FROM json_each($1) j CROSS JOIN power_requests r ON r.id = j.value
         WHERE r.gate = 'ready' AND r.target = $2 AND r.action = $3
           AND r.travel_group * 4 + (r.approved_by IS NOT NULL) * 2 + (r.override_reason IS NOT NULL) = $4",
    )
    .bind(list(heads.iter().map(|(request, _)| &request.0)))
    .bind(&lane.target.0)
    .bind(lane.action.as_str())
    .bind(lane.kind.number())
    .fetch_one(&mut *tx)
    .await?;
    park_others(tx, Candidates::read(found)?, (looks, now)).await
}

async fn read_first(
    connection: &mut SqliteConnection,
    lane: &Lane,
    most: u32,
) -> Result<Candidates, StoreError> {
    let found = sqlx::query_as(
        "SELECT EXISTS (SELECT 1 FROM power_requests b WHERE b.gate = 'behind' AND b.target = $1),
                EXISTS (SELECT 1 FROM orders) OR EXISTS (SELECT 1 FROM holds WHERE label IS NOT NULL),
                CAST(json_group_array(json_array(
                r.id, CAST(r.server_id AS TEXT), CAST(r.attempts AS INTEGER), CAST(ifnull(r.eligible_at, r.created_at) AS TEXT)
                )) AS BLOB)
         FROM (SELECT id, server_id, attempts, eligible_at, created_at FROM power_requests
               WHERE gate = 'ready' AND target = $1 AND action = $2
                 AND travel_group * 4 + (approved_by IS NOT NULL) * 2 + (override_reason IS NOT NULL) = $3
               ORDER BY priority DESC, id LIMIT 0 + $4) r",
    )
    .bind(&lane.target.0)
    .bind(lane.action.as_str())
    .bind(lane.kind.number())
    .bind(most)
    .fetch_one(connection)
    .await?;
    Candidates::read(found)
}

/// Parks those that are behind another one or held by their labels, where any may be; with `looks`,
/// each may be behind another one. Of very many only the first are parked: the others are met again.
async fn park_others(
    tx: &mut SqliteConnection,
    found: Candidates,
    (looks, now): (bool, UtcMillis),
) -> Result<Pick, StoreError> {
    let mut candidates = found.requests;
    let mut parked = 0;
    if looks || found.may_be_behind {
        let behind = find_behind(tx, &candidates).await?;
        let first: BTreeSet<i64> = behind.iter().take(PARKED_AT_ONCE).copied().collect();
        gate::park_behind(tx, &first).await?;
        candidates.retain(|candidate| !behind.contains(&candidate.id));
        parked = first.len();
    }
    if found.may_be_held {
        let held = find_held(tx, &candidates, now).await?;
        let first: BTreeSet<i64> = held.iter().take(PARKED_AT_ONCE).copied().collect();
        gate::park_held(tx, &first).await?;
        candidates.retain(|candidate| !held.contains(&candidate.id));
        parked += first.len();
    }
    Ok(Pick {
        go: candidates,
        parked,
    })
}

/// The ids of those that cannot go: an earlier request of their server is not over.
async fn find_behind(
    connection: &mut SqliteConnection,
    candidates: &[Candidate],
) -> Result<BTreeSet<i64>, StoreError> {
    let found: Option<Vec<u8>> = sqlx::query_scalar(
        "SELECT CAST(json_group_array(r.id) AS BLOB)
         FROM json_each($1) j CROSS JOIN power_requests r ON r.id = j.value
         WHERE EXISTS (SELECT 1 FROM power_requests o WHERE o.in_line = 1 AND o.server_id = r.server_id
                       AND o.target = r.target AND o.id < r.id AND o.finished_at IS NULL)
            OR EXISTS (SELECT 1 FROM power_requests p WHERE p.in_line IS NULL AND p.gate = 'behind'
                       AND p.target = r.target AND p.server_id = r.server_id AND p.id < r.id)",
    )
    .bind(list(candidates.iter().map(|candidate| &candidate.id)))
    .fetch_optional(connection)
    .await?;
    let behind: Vec<i64> = rows::json(found.unwrap_or_default())?;
    Ok(behind.into_iter().collect())
}

/// The ids of those that their labels hold: a pause, or a wave that has not come.
async fn find_held(
    connection: &mut SqliteConnection,
    candidates: &[Candidate],
    now: UtcMillis,
) -> Result<BTreeSet<i64>, StoreError> {
    let found: Option<Vec<u8>> = sqlx::query_scalar(
        "SELECT CAST(json_group_array(r.id) AS BLOB)
         FROM json_each($1) j CROSS JOIN power_requests r ON r.id = j.value
         WHERE r.label IS NOT NULL AND (
             (r.wave IS NULL AND EXISTS (SELECT 1 FROM orders w WHERE w.label = r.label))
             OR EXISTS (SELECT 1 FROM holds h WHERE h.label = r.label AND h.kind = 'operator'
                        AND (h.target IS NULL OR h.target = r.target) AND (h.action IS NULL OR h.action = r.action)
                        AND (h.until IS NULL OR h.until > $2)))",
    )
    .bind(list(candidates.iter().map(|candidate| &candidate.id)))
    .bind(text(now))
    .fetch_optional(connection)
    .await?;
    let held: Vec<i64> = rows::json(found.unwrap_or_default())?;
    Ok(held.into_iter().collect())
}

async fn claim_picked(
    tx: &mut SqliteConnection,
    claim: &Claim<'_>,
    go: Vec<Candidate>,
) -> Result<Batch, StoreError> {
    lifecycle::next(RequestState::Queued, &Event::Claimed)
        .map_err(|error| StoreError::Unreadable(error.to_string()))?;
    let id = insert_batch(tx, claim, go.len()).await?;
    let ids = list(go.iter().map(|candidate| &candidate.id));
    gate::take(tx, &ids, id, claim.now).await?;
    let baselines: BTreeMap<RequestId, Baseline> = match claim.which {
        Which::First(_) => BTreeMap::new(),
        Which::These(heads) => heads.iter().copied().collect(),
    };
    note_baselines(tx, id, &baselines).await?;
    let mut times_busy = BTreeMap::new();
    // Only a request that travels apart can have been busy before.
    if claim.lane.kind.group != 0 {
        times_busy = count_busy_attempts(tx, &ids).await?;
    }
    let mut members = Vec::with_capacity(go.len());
    for candidate in go {
        let busy = times_busy.get(&candidate.id).map_or(0, |n| rows::count(*n));
        let baseline = baselines.get(&RequestId(candidate.id)).copied();
        members.push(candidate.into_member(claim, busy, baseline.unwrap_or_default()));
    }
    Ok(claim.batch(id, members))
}

async fn insert_batch(
    tx: &mut SqliteConnection,
    claim: &Claim<'_>,
    server_count: usize,
) -> Result<BatchId, StoreError> {
    let id = sqlx::query_scalar(
        "INSERT INTO batches (target, service, endpoint, project_id, action, state, server_count, intent_at, next_look_at,
             intent_steady_ms, travel_group, approved)
         VALUES ($1, $2, $3, $4, $5, 'submitting', $6, $7, $7, $8 - (SELECT clock_set_ms FROM queue_mark), $9, $10) RETURNING id",
    )
    .bind(&claim.lane.target.0)
    .bind(claim.origin.service.as_str())
    .bind(&claim.origin.endpoint)
    .bind(&claim.origin.project_id)
    .bind(claim.lane.action.as_str())
    .bind(server_count as i64)
    .bind(text(claim.now))
    .bind(claim.now.0)
    .bind(claim.lane.kind.group)
    .bind(claim.lane.kind.is_approved)
    .fetch_one(tx)
    .await?;
    Ok(BatchId(id))
}

/// How often each of these requests, a JSON list of ids, was found busy.
async fn count_busy_attempts(
    tx: &mut SqliteConnection,
    ids: &str,
) -> Result<BTreeMap<i64, i64>, StoreError> {
    let busy: Vec<(i64, i64)> = sqlx::query_as(
        "SELECT a.request_id, count(*) FROM json_each($1) j
         JOIN earlier_attempts a ON a.request_id = j.value AND a.result = 'busy' GROUP BY a.request_id",
    )
    .bind(ids)
    .fetch_all(tx)
    .await?;
    Ok(busy.into_iter().collect())
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
        "UPDATE power_requests SET baseline = j.value ->> 1 FROM json_each($1) j
         WHERE power_requests.id = j.value ->> 0 AND +batch_id = $2",
    )
    .bind(serde_json::to_string(&known).unwrap_or_default())
    .bind(batch.0)
    .execute(tx)
    .await?;
    Ok(())
}
