//! What commands write as producers do: new requests, and refused keys. Each function is one
//! transaction, all or nothing.

use std::collections::BTreeMap;

use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use super::{NewOrder, orders};
use crate::store::sqlite::{holds, overrides, write_guard};
use crate::store::{RefusedKey, StoreError};

/// Rows inserted by one statement.
pub(super) const CHUNK: usize = 500;

/// A request to be inserted; the fields are the producer's columns.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
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
    let inserted = insert_all(&mut tx, &absent).await?;
    overrides::note_reasons(&mut tx, &with_reason(&absent, &inserted), None).await?;
    tx.commit().await?;
    let mut new = inserted.into_iter();
    let ids = requests
        .iter()
        .filter_map(|request| id_of_key(request, &taken).or_else(|| new.next()))
        .collect();
    Ok((ids, requests.len() - absent.len()))
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

/// A stop, and a start that waits for it. The start's `after_id` is filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cycle {
    /// First.
    pub stop: NewRequest,
    /// Then.
    pub start: NewRequest,
}

pub(super) async fn enqueue_cycles(
    connection: &mut SqliteConnection,
    order: Option<&NewOrder>,
    cycles: &[Cycle],
    if_absent: bool,
) -> Result<(Vec<i64>, usize), StoreError> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    if let Some(order) = order {
        orders::insert(&mut tx, order).await?;
    }
    let stops: Vec<NewRequest> = cycles.iter().map(|cycle| cycle.stop.clone()).collect();
    let stops = as_keyed_before(&mut tx, &stops).await?;
    let starts: Vec<NewRequest> = cycles.iter().map(|cycle| cycle.start.clone()).collect();
    let mut starts = as_keyed_before(&mut tx, &starts).await?;
    let mut taken = BTreeMap::new();
    if if_absent {
        taken = ids_by_key(&mut tx, &stops).await?;
        taken.extend(ids_by_key(&mut tx, &starts).await?);
    }
    let mut absent = Vec::new();
    for (stop, start) in stops.iter().zip(&starts) {
        match (id_of_key(stop, &taken), id_of_key(start, &taken)) {
            (None, None) => absent.push(stop.clone()),
            (Some(_), Some(_)) => {}
            (Some(id), None) | (None, Some(id)) => {
                return Err(StoreError::Refused(format!(
                    "server {}: of its stop and its start only request {id} is left; use another key",
                    stop.server_id
                )));
            }
        }
    }
    let mut inserted = insert_all(&mut tx, &absent).await?;
    let mut stop_ids = inserted.clone().into_iter();
    let mut then = Vec::with_capacity(absent.len());
    for start in &mut starts {
        if id_of_key(start, &taken).is_none() {
            start.after_id = stop_ids.next();
            then.push(start.clone());
        }
    }
    let start_ids = insert_all(&mut tx, &then).await?;
    let mut new = inserted.clone().into_iter().zip(start_ids.clone());
    absent.extend(then);
    inserted.extend(start_ids);
    overrides::note_reasons(&mut tx, &with_reason(&absent, &inserted), None).await?;
    tx.commit().await?;
    let mut ids = Vec::with_capacity(cycles.len() * 2);
    for (stop, start) in stops.iter().zip(&starts) {
        let old = id_of_key(stop, &taken).zip(id_of_key(start, &taken));
        if let Some((stop, start)) = old.or_else(|| new.next()) {
            ids.extend([stop, start]);
        }
    }
    Ok((ids, cycles.len() - inserted.len() / 2))
}

/// Inserts requests, some at a time; names the one that is refused.
pub(super) async fn insert_all(
    tx: &mut SqliteConnection,
    requests: &[NewRequest],
) -> Result<Vec<i64>, StoreError> {
    let mut inserted = Vec::with_capacity(requests.len());
    for chunk in requests.chunks(CHUNK) {
        match insert(tx, chunk).await {
            Ok(new) => inserted.extend(new),
            Err(StoreError::Refused(reason)) => {
                return Err(name_refused(tx, chunk, reason).await?);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(inserted)
}

/// The ids of those that may leave outside windows.
pub(super) fn with_reason(requests: &[NewRequest], ids: &[i64]) -> Vec<i64> {
    let each = requests.iter().zip(ids);
    each.filter(|(request, _)| request.override_reason.is_some())
        .map(|(_, id)| *id)
        .collect()
}

/// Those of the requests whose keys no request has.
pub(super) async fn absent(
    connection: &mut SqliteConnection,
    requests: &[NewRequest],
) -> Result<Vec<NewRequest>, StoreError> {
    let requests = as_keyed_before(connection, requests).await?;
    let taken = ids_by_key(connection, &requests).await?;
    let absent = requests.into_iter();
    Ok(absent
        .filter(|request| id_of_key(request, &taken).is_none())
        .collect())
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
        "SELECT r.request_key, r.id FROM json_each($1) j CROSS JOIN power_requests r ON r.request_key = j.value",
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
        "SELECT j.value ->> 0, r.request_key FROM json_each($1) j CROSS JOIN power_requests r
             ON r.in_line IS NULL AND r.gate IS NULL AND r.server_id = j.value ->> 1
             AND r.request_key = (j.value ->> 3) || r.server_id
         UNION ALL
         SELECT j.value ->> 0, r.request_key FROM json_each($1) j CROSS JOIN power_requests r
             ON r.in_line = 1 AND r.server_id = j.value ->> 1 AND r.request_key = (j.value ->> 3) || r.server_id
         UNION ALL
         SELECT j.value ->> 0, r.request_key FROM json_each($1) j CROSS JOIN power_requests r
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

pub(super) async fn insert(
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
         FROM json_each($1) j ORDER BY j.key RETURNING id",
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
        sqlx::query_scalar("SELECT id FROM power_requests WHERE request_key = $1")
            .bind(&request.request_key)
            .fetch_optional(tx)
            .await?;
    let key = request.request_key.as_deref().unwrap_or_default();
    Ok(taken.map(|id| format!("request_key '{key}' is already used by request {id}")))
}
