//! Requests and what belongs to them: lists, single rows, who is still unfinished, how they ended.
//! Writes nothing.

use std::collections::BTreeMap;

use sqlx::sqlite::SqliteConnection;
use sqlx::{QueryBuilder, Sqlite};

use super::names::is_glob;
use super::selection::push_of_servers;
use super::{AttemptRecord, BatchRecord, HoldRecord, OutcomeCount, ProducerNote, RequestRecord};
use crate::model::{PowerAction, RequestState, UtcMillis};
use crate::store::StoreError;
use crate::store::sqlite::rows::{list, lossy};
use crate::store::sqlite::text;

/// Which requests to list; an absent or empty field leaves nothing out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// In one of these states.
    pub states: Vec<RequestState>,
    /// Of this target.
    pub target: Option<String>,
    /// For one of these actions.
    pub actions: Vec<PowerAction>,
    /// With this label.
    pub label: Option<TextFilter>,
    /// For one of these servers; ids are compared without case. None: for any.
    pub servers: Option<Vec<String>>,
    /// With this error code.
    pub error_code: Option<TextFilter>,
    /// Asked for by this person or program.
    pub requested_by: Option<TextFilter>,
    /// Ended at this time or later, or inserted then and not ended. In the queue's own form.
    pub since: Option<String>,
    /// Ended before this time, or inserted before it and not ended.
    pub until: Option<String>,
    /// At most this many.
    pub limit: u32,
}

/// A text that a column has to match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextFilter {
    /// This text.
    Is(String),
    /// A pattern as SQLite's GLOB reads it.
    Matches(String),
}

impl TextFilter {
    /// A word of a user: a pattern if it contains `*`, `?` or `[`.
    pub fn read(word: &str) -> Self {
        if is_glob(word) {
            Self::Matches(word.to_owned())
        } else {
            Self::Is(word.to_owned())
        }
    }

    fn push(&self, query: &mut QueryBuilder<Sqlite>, column: &str) {
        let (comparison, text) = match self {
            Self::Is(text) => (" = ", text),
            Self::Matches(pattern) => (" GLOB ", pattern),
        };
        query
            .push(" AND ")
            .push(column)
            .push(comparison)
            .push_bind(text.clone());
    }
}

/// The requests of a label.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labelled {
    /// Those that have not ended.
    pub open: Vec<i64>,
    /// The newest one of each server.
    pub newest: Vec<i64>,
}

/// Requests with the names of their servers, where lists have shown them.
const REQUESTS: &str = "SELECT r.*, (SELECT n.name FROM servers n WHERE n.target = r.target AND n.server_id = r.server_id) AS name
     FROM power_requests r WHERE ";

/// What is unfinished, by the indexes of the line and of what is parked.
const UNFINISHED: &str = "SELECT id FROM power_requests WHERE in_line = 1 AND finished_at IS NULL
     UNION ALL SELECT id FROM power_requests WHERE in_line IS NULL AND gate IS NOT NULL";

pub(super) async fn list_requests(
    connection: &mut SqliteConnection,
    filter: &Filter,
) -> Result<Vec<RequestRecord>, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new(REQUESTS);
    query.push("1");
    if !filter.states.is_empty() {
        push_states(&mut query, &filter.states);
    }
    if let Some(target) = &filter.target {
        query.push(" AND target = ").push_bind(target.clone());
    }
    if !filter.actions.is_empty() {
        query.push(" AND action IN (");
        let mut listed = query.separated(", ");
        for action in &filter.actions {
            listed.push_bind(action.as_str());
        }
        query.push(")");
    }
    for (text, column) in [
        (&filter.label, "label"),
        (&filter.error_code, "error_code"),
        (&filter.requested_by, "requested_by"),
    ] {
        if let Some(text) = text {
            text.push(&mut query, column);
        }
    }
    push_times(&mut query, filter);
    if let Some(servers) = &filter.servers {
        query.push(" AND id IN (");
        push_of_servers(&mut query, servers);
        query.push(")");
    }
    query
        .push(" ORDER BY id DESC LIMIT ")
        .push_bind(i64::from(filter.limit));
    Ok(query.build_query_as().fetch_all(&mut *connection).await?)
}

pub(super) async fn request(
    connection: &mut SqliteConnection,
    id: i64,
) -> Result<RequestRecord, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new(REQUESTS);
    query.push("id = ").push_bind(id);
    query
        .build_query_as()
        .fetch_optional(&mut *connection)
        .await?
        .ok_or(StoreError::NoSuchRequest(id))
}

pub(super) async fn not_succeeded(
    connection: &mut SqliteConnection,
    ids: &[i64],
) -> Result<Vec<RequestRecord>, StoreError> {
    among(connection, ids, " AND state <> 'succeeded'").await
}

pub(super) async fn requests(
    connection: &mut SqliteConnection,
    ids: &[i64],
) -> Result<Vec<RequestRecord>, StoreError> {
    among(connection, ids, "").await
}

/// Those of the requests with these ids that fulfil `more`, a condition with AND in front, or empty.
async fn among(
    connection: &mut SqliteConnection,
    ids: &[i64],
    more: &'static str,
) -> Result<Vec<RequestRecord>, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new(REQUESTS);
    query
        .push("id IN (SELECT value FROM json_each(")
        .push_bind(list(ids))
        .push("))")
        .push(more)
        .push(" ORDER BY id");
    Ok(query.build_query_as().fetch_all(&mut *connection).await?)
}

pub(super) async fn attempts(
    connection: &mut SqliteConnection,
    request: i64,
) -> Result<Vec<AttemptRecord>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT a.request_id, a.batch_id, b.job_id, a.result, a.error_code, a.error_message, a.started_at, a.finished_at
         FROM request_attempts a LEFT JOIN batches b ON b.id = a.batch_id WHERE a.request_id = $1 ORDER BY a.batch_id",
    )
    .bind(request)
    .fetch_all(&mut *connection)
    .await?)
}

pub(super) async fn batch(
    connection: &mut SqliteConnection,
    id: i64,
) -> Result<Option<BatchRecord>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM batches WHERE id = $1")
        .bind(id)
        .fetch_optional(&mut *connection)
        .await?)
}

pub(super) async fn waiting_reason(
    connection: &mut SqliteConnection,
    id: i64,
) -> Result<Option<String>, StoreError> {
    // As bytes: the reason of a hold may be anybody's text.
    let reason: Option<Vec<u8>> =
        sqlx::query_scalar("SELECT CAST(reason AS BLOB) FROM power_waiting WHERE id = $1")
            .bind(id)
            .fetch_optional(&mut *connection)
            .await?;
    Ok(reason.map(lossy))
}

pub(super) async fn holds(
    connection: &mut SqliteConnection,
    now: UtcMillis,
) -> Result<Vec<HoldRecord>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT target, action, label, kind, reason, since, until FROM holds WHERE until IS NULL OR until > $1 ORDER BY id",
    )
    .bind(text(now))
    .fetch_all(&mut *connection)
    .await?)
}

pub(super) async fn to_follow(
    connection: &mut SqliteConnection,
    since: Option<&str>,
) -> Result<Vec<i64>, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new("SELECT id FROM power_requests WHERE ");
    match since {
        Some(since) => query
            .push("(gate IS NOT NULL OR created_at >= ")
            .push_bind(since.to_owned())
            .push(")"),
        // Found by the index of what is unfinished, however much has ended.
        None => query.push("id IN (").push(UNFINISHED).push(")"),
    };
    query.push(" ORDER BY id");
    Ok(query
        .build_query_scalar()
        .fetch_all(&mut *connection)
        .await?)
}

pub(super) async fn labelled(
    connection: &mut SqliteConnection,
    label: &str,
    since: Option<&str>,
) -> Result<Option<Labelled>, StoreError> {
    let found: Vec<(i64, bool, bool, bool)> = sqlx::query_as(
        "SELECT r.id, r.gate IS NOT NULL, r.id = max(r.id) OVER (PARTITION BY r.target, r.server_id COLLATE NOCASE),
                ifnull(r.finished_at < $2, 0)
         FROM power_requests r WHERE r.label = $1 ORDER BY r.id",
    )
    .bind(label)
    .bind(since)
    .fetch_all(&mut *connection)
    .await?;
    if found.is_empty() {
        return Ok(None);
    }
    let mut labelled = Labelled::default();
    for (id, is_open, is_newest, is_before) in found {
        if is_open {
            labelled.open.push(id);
        }
        if is_newest && !is_before {
            labelled.newest.push(id);
        }
    }
    Ok(Some(labelled))
}

pub(super) async fn place_in_lane(
    connection: &mut SqliteConnection,
    id: i64,
) -> Result<Option<i64>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT (SELECT count(*) FROM power_requests o WHERE o.gate = 'ready' AND o.target = r.target
                 AND o.action = r.action AND (o.priority, -o.id) > (r.priority, -r.id))
         FROM power_requests r WHERE r.id = $1 AND r.gate = 'ready'",
    )
    .bind(id)
    .fetch_optional(&mut *connection)
    .await?)
}

pub(super) async fn unfinished(
    connection: &mut SqliteConnection,
    ids: &[i64],
) -> Result<Vec<i64>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT r.id FROM json_each($1) j CROSS JOIN power_requests r ON r.id = j.value WHERE r.gate IS NOT NULL",
    )
    .bind(list(ids))
    .fetch_all(&mut *connection)
    .await?)
}

pub(super) async fn producer_notes(
    connection: &mut SqliteConnection,
    ids: &[i64],
) -> Result<BTreeMap<i64, ProducerNote>, StoreError> {
    let found: Vec<ProducerNote> = sqlx::query_as(
        "SELECT r.id, CAST(r.label AS BLOB) AS label, CAST(r.requested_by AS BLOB) AS requested_by
         FROM json_each($1) j CROSS JOIN power_requests r ON r.id = j.value",
    )
    .bind(list(ids))
    .fetch_all(&mut *connection)
    .await?;
    Ok(found.into_iter().map(|note| (note.id, note)).collect())
}

pub(super) async fn outcome_counts(
    connection: &mut SqliteConnection,
    ids: &[i64],
) -> Result<Vec<OutcomeCount>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT r.state, r.evidence, r.error_code, count(*) AS count, min(r.id) AS first_id
         FROM json_each($1) j CROSS JOIN power_requests r ON r.id = j.value
         GROUP BY r.state, r.evidence, r.error_code ORDER BY count(*) DESC, min(r.id)",
    )
    .bind(list(ids))
    .fetch_all(&mut *connection)
    .await?)
}

pub(super) async fn read_time(
    connection: &mut SqliteConnection,
    time: &str,
) -> Result<Option<String>, StoreError> {
    let found: Option<Option<String>> = sqlx::query_scalar(
        "SELECT strftime('%Y-%m-%dT%H:%M:%fZ', julianday($1)) WHERE $1 GLOB '20[0-9][0-9]-[01][0-9]-[0-3][0-9]*'
         AND date(julianday(substr($1, 1, 10))) = substr($1, 1, 10)",
    )
    .bind(time)
    .fetch_optional(&mut *connection)
    .await?;
    Ok(found.flatten())
}

pub(super) async fn require_ids(
    connection: &mut SqliteConnection,
    ids: &[i64],
) -> Result<(), StoreError> {
    let unknown: Option<i64> = sqlx::query_scalar(
        "SELECT j.value FROM json_each($1) j WHERE NOT EXISTS (SELECT 1 FROM power_requests r WHERE r.id = j.value) LIMIT 1",
    )
    .bind(list(ids))
    .fetch_optional(connection)
    .await?;
    unknown.map_or(Ok(()), |id| Err(StoreError::NoSuchRequest(id)))
}

/// What ended since a time is found by the index of the ends, however much ended before.
fn push_times(query: &mut QueryBuilder<Sqlite>, filter: &Filter) {
    if let Some(since) = &filter.since {
        query
            .push(" AND id IN (SELECT id FROM power_requests WHERE finished_at >= ")
            .push_bind(since.clone())
            .push(" UNION ALL ")
            .push(UNFINISHED)
            .push(") AND ifnull(finished_at, created_at) >= ")
            .push_bind(since.clone());
    }
    if let Some(until) = &filter.until {
        query
            .push(" AND ifnull(finished_at, created_at) < ")
            .push_bind(until.clone());
    }
}

/// Unfinished requests are found by the index of those, however many finished ones there are.
fn push_states(query: &mut QueryBuilder<Sqlite>, states: &[RequestState]) {
    let open = states.iter().all(|state| !state.is_terminal());
    if open {
        query.push(" AND id IN (").push(UNFINISHED).push(")");
    }
    query.push(" AND state IN (");
    let mut listed = query.separated(", ");
    for state in states {
        listed.push_bind(state.as_str());
    }
    query.push(")");
}
