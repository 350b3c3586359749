//! Approving requests that a guard holds. What is approved is counted in the same transaction, so
//! that nothing is approved that nobody has seen.

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, QueryBuilder, Sqlite};

use super::read;
use crate::store::StoreError;
use crate::store::sqlite::rows;

/// Which of the queued and unapproved requests are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// These ids.
    Ids(Vec<i64>),
    /// Those with exactly this label.
    Label(String),
    /// Those of one target and action.
    Lane {
        /// The target.
        target: String,
        /// The action.
        action: String,
    },
}

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

/// Who approves what, as it is noted in `operator_actions`.
#[derive(Debug, Clone, Copy)]
pub struct Approver<'a> {
    /// Who.
    pub who: &'a str,
    /// The selection as it was given.
    pub what: &'a str,
}

/// What an approval came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Approval {
    /// All that was seen is approved.
    Done,
    /// Nothing is approved: so many of those that were seen are left.
    Another(u64),
}

/// Target, action, label as bytes, how many, and the greatest id.
type CountRow = (String, String, Option<Vec<u8>>, i64, i64);

pub(super) async fn unapproved(
    connection: &mut SqliteConnection,
    which: &Selection,
) -> Result<Unapproved, StoreError> {
    require(connection, which).await?;
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT target, action, CAST(label AS BLOB), count(*), max(id) FROM power_requests WHERE id IN (",
    );
    push_selection(&mut query, which);
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
    which: &Selection,
    seen: &Unapproved,
    by: Approver<'_>,
) -> Result<Approval, StoreError> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    let mut query = QueryBuilder::<Sqlite>::new("SELECT count(*) FROM (");
    push_selection(&mut query, which);
    query.push(") WHERE id <= ").push_bind(seen.last_id);
    let waiting: i64 = query.build_query_scalar().fetch_one(&mut *tx).await?;
    let waiting = u64::try_from(waiting).unwrap_or(0);
    if waiting != seen.requests() {
        tx.rollback().await?;
        return Ok(Approval::Another(waiting));
    }
    let mut query = QueryBuilder::<Sqlite>::new("UPDATE power_requests SET approved_by = ");
    query
        .push_bind(by.who.to_owned())
        .push(" WHERE id <= ")
        .push_bind(seen.last_id)
        .push(" AND id IN (");
    push_selection(&mut query, which);
    query.push(")");
    let approved = query.build().execute(&mut *tx).await?.rows_affected();
    sqlx::query(
        "INSERT INTO operator_actions (who, action, what, requests) VALUES (?, 'approve', ?, ?)",
    )
    .bind(by.who)
    .bind(by.what)
    .bind(i64::try_from(approved).unwrap_or(i64::MAX))
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(Approval::Done)
}

async fn require(connection: &mut SqliteConnection, which: &Selection) -> Result<(), StoreError> {
    match which {
        Selection::Ids(ids) => read::require_ids(connection, ids).await,
        Selection::Label(_) | Selection::Lane { .. } => Ok(()),
    }
}

/// The ids of those that are queued and unapproved. Each of the parts of what is queued has an index
/// of its own.
fn push_selection(query: &mut QueryBuilder<Sqlite>, which: &Selection) {
    match which {
        Selection::Ids(ids) => {
            query
                .push("SELECT r.id FROM json_each(")
                .push_bind(rows::list(ids))
                .push(") j CROSS JOIN power_requests r ON r.id = j.value WHERE r.state = 'queued' AND r.approved_by IS NULL");
        }
        Selection::Label(label) => {
            query
                .push("SELECT id FROM power_requests WHERE label = ")
                .push_bind(label.clone())
                .push(" AND state = 'queued' AND approved_by IS NULL");
        }
        Selection::Lane { target, action } => {
            let parts = [
                "gate = 'ready'",
                "in_line IS NULL AND gate IS NOT NULL",
                "gate = 'held'",
                "gate = 'retry'",
            ];
            for (at, part) in parts.iter().enumerate() {
                if at > 0 {
                    query.push(" UNION ALL ");
                }
                query
                    .push("SELECT id FROM power_requests WHERE ")
                    .push(*part)
                    .push(" AND approved_by IS NULL AND target = ")
                    .push_bind(target.clone())
                    .push(" AND action = ")
                    .push_bind(action.clone());
            }
        }
    }
}
