//! What commands write: new requests, cancellations, an operator's holds, refused keys. Each function is one
//! transaction, all or nothing.

use std::collections::BTreeMap;

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, FromRow, QueryBuilder, Sqlite};

use super::{NewOrder, orders, read};
use crate::model::{Hold, HoldKind, PowerAction, RequestState, TargetName};
use crate::store::sqlite::rows::list;
use crate::store::sqlite::{holds, write_guard};
use crate::store::{RefusedKey, StoreError};

/// Rows inserted by one statement.
const CHUNK: usize = 500;

/// A request to be inserted; the fields are the producer's columns.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[expect(
    missing_docs,
    reason = "the fields are the columns, which the contract and the schema describe"
)]
pub struct NewRequest {
    pub server_id: String,
    pub action: String,
    pub target: String,
    pub priority: i64,
    pub not_before: Option<String>,
    pub expires_at: Option<String>,
    pub after_id: Option<i64>,
    pub request_key: Option<String>,
    pub label: Option<String>,
    pub requested_by: Option<String>,
    pub override_reason: Option<String>,
}

/// What a cancellation did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cancelled {
    /// Requests that were queued and are cancelled now.
    pub cancelled: Vec<i64>,
    /// Those asked for that were not queued, with their states.
    pub kept: Vec<(i64, String)>,
}

/// Which ended requests are to be tried again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RetryFilter {
    /// These, whatever their states; empty: those that the other fields describe.
    pub ids: Vec<i64>,
    /// With exactly this label.
    pub label: Option<String>,
    /// That ended in one of these states. Not looked at beside `ids`.
    pub states: Vec<RequestState>,
    /// That ended at this time or later.
    pub since: Option<String>,
}

/// A request that may be tried again.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct RetryCandidate {
    /// Its id.
    pub id: i64,
    /// Its server.
    pub server_id: String,
    /// Its action.
    pub action: String,
    /// How it ended, or where it is.
    pub state: String,
    /// A later request for the same server, if there is one.
    pub later_id: Option<i64>,
}

/// What a retry did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retried {
    /// The ids of ended requests, each with the id of its new one.
    pub inserted: Vec<(i64, i64)>,
    /// Those that were not tried again, with the reason.
    pub skipped: Vec<(i64, String)>,
}

pub(super) async fn enqueue_in(
    connection: &mut SqliteConnection,
    order: Option<&NewOrder>,
    requests: &[NewRequest],
    if_absent: bool,
) -> Result<(Vec<i64>, usize), StoreError> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    if let Some(order) = order {
        orders::insert(&mut tx, order).await?;
    }
    let requests = &as_keyed_before(&mut tx, requests).await?;
    let taken = if if_absent {
        ids_by_key(&mut tx, requests).await?
    } else {
        BTreeMap::new()
    };
    let absent: Vec<NewRequest> = requests
        .iter()
        .filter(|request| id_of_key(request, &taken).is_none())
        .cloned()
        .collect();
    let mut inserted = Vec::with_capacity(absent.len());
    for chunk in absent.chunks(CHUNK) {
        match insert(&mut tx, chunk).await {
            Ok(new) => inserted.extend(new),
            Err(StoreError::Refused(reason)) => {
                return Err(name_refused(&mut tx, chunk, reason).await?);
            }
            Err(error) => return Err(error),
        }
    }
    tx.commit().await?;
    let mut new = inserted.into_iter();
    let ids = requests
        .iter()
        .filter_map(|request| id_of_key(request, &taken).or_else(|| new.next()))
        .collect();
    Ok((ids, requests.len() - absent.len()))
}

pub(super) async fn cancel(
    connection: &mut SqliteConnection,
    ids: &[i64],
) -> Result<Cancelled, StoreError> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    read::require_ids(&mut tx, ids).await?;
    let kept = sqlx::query_as(
        "SELECT r.id, r.state FROM json_each(?) j CROSS JOIN power_requests r ON r.id = j.value WHERE r.state <> 'queued'",
    )
    .bind(list(ids))
    .fetch_all(&mut *tx)
    .await?;
    let cancelled = sqlx::query_scalar(
        "UPDATE power_requests SET state = 'cancelled'
         WHERE id IN (SELECT value FROM json_each(?)) AND state = 'queued' RETURNING id",
    )
    .bind(list(ids))
    .fetch_all(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(Cancelled { cancelled, kept })
}

pub(super) async fn cancel_label(
    connection: &mut SqliteConnection,
    label: &str,
) -> Result<Cancelled, StoreError> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    let kept = sqlx::query_as(
        "SELECT id, state FROM power_requests WHERE label = ? AND state = 'running' ORDER BY id",
    )
    .bind(label)
    .fetch_all(&mut *tx)
    .await?;
    let cancelled = sqlx::query_scalar(
        "UPDATE power_requests SET state = 'cancelled' WHERE label = ? AND state = 'queued' RETURNING id",
    )
    .bind(label)
    .fetch_all(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(Cancelled { cancelled, kept })
}

pub(super) async fn retry(
    connection: &mut SqliteConnection,
    filter: &RetryFilter,
    requested_by: Option<&str>,
    skip: impl Fn(&RetryCandidate) -> Option<String>,
) -> Result<Retried, StoreError> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    read::require_ids(&mut tx, &filter.ids).await?;
    let mut retried = Retried::default();
    let mut again = Vec::new();
    for candidate in retry_candidates(&mut tx, filter).await? {
        match skip(&candidate) {
            Some(reason) => retried.skipped.push((candidate.id, reason)),
            None => again.push(candidate.id),
        }
    }
    let new = copy(&mut tx, &again, requested_by).await?;
    retried.inserted = again.into_iter().zip(new).collect();
    tx.commit().await?;
    Ok(retried)
}

pub(super) async fn pause(
    connection: &mut SqliteConnection,
    hold: &Hold,
) -> Result<bool, StoreError> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    let stood: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM holds WHERE kind = ? AND target IS ? AND action IS ? AND label IS ? AND until IS NULL)",
    )
    .bind(HoldKind::Operator.as_str())
    .bind(hold.target.as_ref().map(|target| &target.0))
    .bind(hold.action.map(PowerAction::as_str))
    .bind(&hold.label)
    .fetch_one(&mut *tx)
    .await?;
    if !stood {
        holds::put_hold(&mut tx, hold).await?;
    }
    tx.commit().await?;
    Ok(!stood)
}

pub(super) async fn resume(
    connection: &mut SqliteConnection,
    target: Option<&TargetName>,
    action: Option<PowerAction>,
    label: Option<&str>,
) -> Result<u64, StoreError> {
    let removed = sqlx::query(
        "DELETE FROM holds WHERE kind = ?1 AND target IS ?2 AND action IS ?3 AND label IS ?4",
    )
    .bind(HoldKind::Operator.as_str())
    .bind(target.map(|target| &target.0))
    .bind(action.map(PowerAction::as_str))
    .bind(label)
    .execute(&mut *connection)
    .await?;
    Ok(removed.rows_affected())
}

pub(super) async fn resume_all(connection: &mut SqliteConnection) -> Result<u64, StoreError> {
    let removed = sqlx::query("DELETE FROM holds WHERE kind = ?").bind(HoldKind::Operator.as_str());
    Ok(removed.execute(&mut *connection).await?.rows_affected())
}

pub(super) async fn note_refused_key(
    connection: &mut SqliteConnection,
    refused: &RefusedKey,
) -> Result<(), StoreError> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    write_guard::acquire(&mut tx).await?;
    holds::note_refused_key(&mut tx, refused).await?;
    write_guard::release(&mut tx).await?;
    Ok(tx.commit().await?)
}

/// The request that has this one's key already.
fn id_of_key(request: &NewRequest, taken: &BTreeMap<String, i64>) -> Option<i64> {
    let key = request.request_key.as_ref()?;
    taken.get(key).copied()
}

/// The ids of those requests that have one of these keys already.
async fn ids_by_key(
    tx: &mut SqliteConnection,
    requests: &[NewRequest],
) -> Result<BTreeMap<String, i64>, StoreError> {
    let keys: Vec<_> = requests
        .iter()
        .filter_map(|request| request.request_key.as_ref())
        .collect();
    let keys =
        serde_json::to_string(&keys).map_err(|error| StoreError::Unreadable(error.to_string()))?;
    let found: Vec<(String, i64)> = sqlx::query_as(
        "SELECT r.request_key, r.id FROM json_each(?) j CROSS JOIN power_requests r ON r.request_key = j.value",
    )
    .bind(keys)
    .fetch_all(tx)
    .await?;
    Ok(found.into_iter().collect())
}

/// A key that ends in its server's id has the spelling under which that server has it already: ids
/// are compared without case.
async fn as_keyed_before(
    tx: &mut SqliteConnection,
    requests: &[NewRequest],
) -> Result<Vec<NewRequest>, StoreError> {
    let keyed: Vec<(usize, &str, &str, &str)> = requests
        .iter()
        .enumerate()
        .filter_map(|(index, request)| {
            let prefix = request
                .request_key
                .as_ref()?
                .strip_suffix(&request.server_id)?;
            Some((
                index,
                request.server_id.as_str(),
                request.target.as_str(),
                prefix,
            ))
        })
        .collect();
    let mut requests = requests.to_vec();
    if keyed.is_empty() {
        return Ok(requests);
    }
    let keyed =
        serde_json::to_string(&keyed).map_err(|error| StoreError::Unreadable(error.to_string()))?;
    let found: Vec<(i64, String)> = sqlx::query_as(
        "SELECT j.value ->> 0, r.request_key FROM json_each(?1) j CROSS JOIN power_requests r
             ON r.in_line IS NULL AND r.gate IS NULL AND r.server_id = j.value ->> 1
             AND r.request_key = (j.value ->> 3) || r.server_id
         UNION ALL
         SELECT j.value ->> 0, r.request_key FROM json_each(?1) j CROSS JOIN power_requests r
             ON r.in_line = 1 AND r.server_id = j.value ->> 1 AND r.request_key = (j.value ->> 3) || r.server_id
         UNION ALL
         SELECT j.value ->> 0, r.request_key FROM json_each(?1) j CROSS JOIN power_requests r
             ON r.in_line IS NULL AND r.gate IS NOT NULL AND r.target = j.value ->> 2 AND r.server_id = j.value ->> 1
             AND r.request_key = (j.value ->> 3) || r.server_id",
    )
    .bind(keyed)
    .fetch_all(tx)
    .await?;
    for (index, key) in found {
        if let Some(request) = usize::try_from(index)
            .ok()
            .and_then(|index| requests.get_mut(index))
        {
            request.request_key = Some(key);
        }
    }
    Ok(requests)
}

async fn retry_candidates(
    tx: &mut SqliteConnection,
    filter: &RetryFilter,
) -> Result<Vec<RetryCandidate>, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT r.id, r.server_id, r.action, r.state,
                nullif(max(
                    ifnull((SELECT max(l.id) FROM power_requests l WHERE l.in_line = 1
                            AND l.server_id = r.server_id AND l.target = r.target AND l.id > r.id), 0),
                    ifnull((SELECT max(l.id) FROM power_requests l WHERE l.in_line IS NULL AND l.gate IS NOT NULL
                            AND l.target = r.target AND l.server_id = r.server_id AND l.id > r.id), 0),
                    ifnull((SELECT max(l.id) FROM power_requests l WHERE l.in_line IS NULL AND l.gate IS NULL
                            AND l.server_id = r.server_id AND l.target = r.target AND l.id > r.id), 0)), 0) AS later_id
         FROM power_requests r WHERE 1",
    );
    if filter.ids.is_empty() {
        query.push(" AND r.finished_at IS NOT NULL AND r.state IN (");
        let mut states = query.separated(", ");
        for state in &filter.states {
            states.push_bind(state.as_str());
        }
        query.push(")");
    } else {
        query
            .push(" AND r.id IN (SELECT value FROM json_each(")
            .push_bind(list(&filter.ids))
            .push("))");
    }
    if let Some(label) = &filter.label {
        query.push(" AND r.label = ").push_bind(label.clone());
    }
    if let Some(since) = &filter.since {
        query
            .push(" AND r.finished_at >= ")
            .push_bind(since.clone());
    }
    query.push(" ORDER BY r.id");
    Ok(query.build_query_as().fetch_all(tx).await?)
}

/// In SQL, so that a label of any bytes arrives as it is.
async fn copy(
    tx: &mut SqliteConnection,
    ids: &[i64],
    requested_by: Option<&str>,
) -> Result<Vec<i64>, StoreError> {
    let mut new: Vec<i64> = sqlx::query_scalar(
        "INSERT INTO power_requests (server_id, action, target, priority, label, requested_by)
         SELECT server_id, action, target, priority, label, ?2 FROM power_requests
         WHERE id IN (SELECT value FROM json_each(?1)) ORDER BY id RETURNING id",
    )
    .bind(list(ids))
    .bind(requested_by)
    .fetch_all(tx)
    .await?;
    // Ids are given in the order of insertion; RETURNING promises none.
    new.sort_unstable();
    Ok(new)
}

async fn insert(
    tx: &mut SqliteConnection,
    requests: &[NewRequest],
) -> Result<Vec<i64>, StoreError> {
    let rows = serde_json::to_string(requests)
        .map_err(|error| StoreError::Unreadable(error.to_string()))?;
    let mut ids: Vec<i64> = sqlx::query_scalar(
        "INSERT INTO power_requests (server_id, action, target, priority, not_before, expires_at, after_id, request_key,
                                     label, requested_by, override_reason)
         SELECT j.value ->> 'server_id', j.value ->> 'action', j.value ->> 'target', j.value ->> 'priority',
                j.value ->> 'not_before', j.value ->> 'expires_at', j.value ->> 'after_id', j.value ->> 'request_key',
                j.value ->> 'label', j.value ->> 'requested_by', j.value ->> 'override_reason'
         FROM json_each(?) j ORDER BY j.key RETURNING id",
    )
    .bind(rows)
    .fetch_all(tx)
    .await?;
    // Ids are given in the order of insertion; RETURNING promises none.
    ids.sort_unstable();
    Ok(ids)
}

/// Finds the row that a statement was refused for, one by one; the transaction is given up
/// afterwards.
async fn name_refused(
    tx: &mut SqliteConnection,
    requests: &[NewRequest],
    reason: String,
) -> Result<StoreError, StoreError> {
    for request in requests {
        match insert(tx, std::slice::from_ref(request)).await {
            Ok(_) => {}
            Err(StoreError::Refused(reason)) => {
                let reason = repeated_key(tx, request).await?.unwrap_or(reason);
                return Ok(StoreError::Refused(format!(
                    "server {}: {reason}",
                    request.server_id
                )));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(StoreError::Refused(reason))
}

/// The schema's sentences hold no values; an operator wants to know which request has the key.
async fn repeated_key(
    tx: &mut SqliteConnection,
    request: &NewRequest,
) -> Result<Option<String>, StoreError> {
    let taken: Option<i64> =
        sqlx::query_scalar("SELECT id FROM power_requests WHERE request_key = ?")
            .bind(&request.request_key)
            .fetch_optional(tx)
            .await?;
    let key = request.request_key.as_deref().unwrap_or_default();
    Ok(taken.map(|id| format!("request_key '{key}' is already used by request {id}")))
}
