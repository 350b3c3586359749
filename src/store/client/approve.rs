//! Approving requests that a guard holds. What the person has counted is counted again by the read
//! that finds the requests; those are approved, some in each transaction, and none that come later.

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, QueryBuilder, Sqlite};

use super::actions::{Chunks, Deed, barred};
use super::{Actor, Done, RequestResult, Selection};
use crate::model::{OperatorAction, RequestState};
use crate::store::StoreError;
use crate::store::sqlite::rows;

/// How many of them have these in common.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ApprovalCount {
    /// Their target.
    pub target: String,
    /// Their action.
    pub action: String,
    /// Their label, if they have one.
    pub label: Option<String>,
    /// How many they are.
    pub requests: i64,
}

/// What is queued and unapproved of a selection at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unapproved {
    /// By target, action and label.
    pub counts: Vec<ApprovalCount>,
    /// Requests with a greater id have come later.
    pub last_id: i64,
}

impl Unapproved {
    /// How many they are.
    pub fn requests(&self) -> u64 {
        let each = self.counts.iter().map(|count| count.requests);
        each.map(|requests| u64::try_from(requests).unwrap_or(0))
            .sum()
    }
}

/// What an approval came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Approval {
    /// All that was seen is approved.
    Done(Done),
    /// Nothing is approved: so many of those that were seen are left.
    Another(u64),
}

/// Why nothing is approved if somebody names another number of requests than wait.
pub fn another_number(number: u64, waiting: u64) -> String {
    format!(
        "the number is {number}, but {waiting} requests are waiting for approval; nothing is approved"
    )
}

/// Target, action, label as bytes, how many, and the greatest id.
type CountRow = (String, String, Option<Vec<u8>>, i64, i64);

pub(super) async fn unapproved(
    connection: &mut SqliteConnection,
    which: &Selection,
) -> Result<Unapproved, StoreError> {
    which.require(connection).await?;
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT target, action, CAST(label AS BLOB), count(*), max(id) FROM power_requests WHERE id IN (",
    );
    push_unapproved(&mut query, which);
    query.push(") GROUP BY target, action, label ORDER BY target, action, label");
    let found: Vec<CountRow> = query.build_query_as().fetch_all(&mut *connection).await?;
    let mut unapproved = Unapproved::default();
    for (target, action, label, requests, last_id) in found {
        unapproved.last_id = unapproved.last_id.max(last_id);
        unapproved.counts.push(ApprovalCount {
            target,
            action,
            label: label.map(rows::lossy),
            requests,
        });
    }
    Ok(unapproved)
}

pub(super) async fn approve(
    connection: &mut SqliteConnection,
    actor: Actor<'_>,
    which: &Selection,
    seen: &Unapproved,
) -> Result<Approval, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new("SELECT id FROM power_requests WHERE id <= ");
    query.push_bind(seen.last_id).push(" AND id IN (");
    push_unapproved(&mut query, which);
    query.push(") ORDER BY id");
    let waiting: Vec<i64> = query
        .build_query_scalar()
        .fetch_all(&mut *connection)
        .await?;
    let count = u64::try_from(waiting.len()).unwrap_or(u64::MAX);
    if count != seen.requests() {
        return Ok(Approval::Another(count));
    }
    let deed = Deed {
        actor,
        action: OperatorAction::Approve,
        which,
    };
    let mut approved = Vec::with_capacity(waiting.len());
    let mut chunks = Chunks::of(deed, &waiting);
    while let Some(ids) = chunks.next().await {
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
        let some: Vec<i64> = sqlx::query_scalar(
            "UPDATE power_requests SET approved_by = $2
             WHERE id IN (SELECT value FROM json_each($1)) AND state = 'queued' AND approved_by IS NULL RETURNING id",
        )
        .bind(rows::list(ids))
        .bind(actor.who)
        .fetch_all(&mut *tx)
        .await?;
        chunks.commit(tx, some.len()).await?;
        approved.extend(some);
    }
    let mut results = left_alone(connection, which, &waiting, &approved).await?;
    for id in approved {
        results.push(RequestResult::done(id, "is approved"));
    }
    Ok(Approval::Done(Done::of(results)))
}

/// Those that were named by their ids and did not wait for approval, and those that no longer did
/// when it was their turn.
async fn left_alone(
    connection: &mut SqliteConnection,
    which: &Selection,
    waiting: &[i64],
    approved: &[i64],
) -> Result<Vec<RequestResult>, StoreError> {
    if which.ids.is_none() && waiting.len() == approved.len() {
        return Ok(Vec::new());
    }
    let missed = Selection::of_ids(waiting.to_vec());
    let meant = if which.ids.is_some() { which } else { &missed };
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT id, state FROM power_requests WHERE id NOT IN (SELECT value FROM json_each(",
    );
    query.push_bind(rows::list(approved)).push(")) AND id IN (");
    meant.push_ids(&mut query, &[], "");
    query.push(") ORDER BY id");
    let others: Vec<(i64, String)> = query.build_query_as().fetch_all(connection).await?;
    let found = others
        .iter()
        .map(|(id, _)| *id)
        .chain(approved.iter().copied());
    let mut results = barred(which, found);
    for (id, state) in others {
        let why = if state == RequestState::Queued.as_str() {
            "was approved before".to_owned()
        } else {
            format!("is {state} and no longer queued")
        };
        results.push(RequestResult::left(id, why).in_state(state.parse().ok()));
    }
    Ok(results)
}

/// The ids of those that are queued and unapproved.
fn push_unapproved(query: &mut QueryBuilder<Sqlite>, which: &Selection) {
    let states = which.states_among(&[RequestState::Queued]);
    // A selection of other states only: nothing of it can be approved.
    let more = match (states.is_empty(), which.ids.is_some()) {
        (true, false) => " AND 0",
        _ => " AND r.state = 'queued' AND r.approved_by IS NULL",
    };
    which.push_ids(query, &states, more);
}
