//! What a guard counts: requests that nobody has approved, due or sent within its span. Judges
//! nothing; see `plan::guard`.

use sqlx::sqlite::SqliteConnection;

use super::StoreError;
use super::rows::{self, list};
use crate::model::{Crowd, Lane, PowerAction, TargetName};

/// What a claim of unapproved requests must not exceed. Counted again in its transaction, since rows
/// may have arrived after the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardLimit {
    /// So many may be due at most.
    pub due_max: u64,
    /// Batches that the guard counts: those of their requests that are due again are not counted
    /// once more.
    pub counted: Vec<i64>,
}

impl GuardLimit {
    /// True if more are due than may be. Approved requests are no business of a guard.
    pub(super) async fn is_exceeded(
        &self,
        tx: &mut SqliteConnection,
        lane: &Lane,
    ) -> Result<bool, StoreError> {
        if lane.kind.is_approved {
            return Ok(false);
        }
        let wanted = Unapproved {
            target: &lane.target,
            action: lane.action,
            counted: &self.counted,
        };
        let due = count_due(tx, wanted, self.due_max.saturating_add(1)).await?;
        Ok(due > self.due_max)
    }
}

/// Whose requests are counted.
#[derive(Debug, Clone, Copy)]
pub struct Unapproved<'a> {
    /// Of this target.
    pub target: &'a TargetName,
    /// Of this action.
    pub action: PowerAction,
    /// Requests that these batches carried last are left out: they are counted with their batch.
    pub counted: &'a [i64],
}

/// Along the lanes of unapproved requests, and what is due besides. An approved lane is passed over
/// with one search, however many stand in it.
pub(in crate::store) async fn count_due(
    connection: &mut SqliteConnection,
    wanted: Unapproved<'_>,
    most: u64,
) -> Result<u64, StoreError> {
    let due: i64 = sqlx::query_scalar(
        "WITH RECURSIVE kinds(kind) AS (
             SELECT (SELECT r.travel_group * 4 + (r.approved_by IS NOT NULL) * 2 + (r.override_reason IS NOT NULL)
                     FROM power_requests r WHERE r.gate = 'ready' AND r.target = $1 AND r.action = $2 ORDER BY 1 LIMIT 1)
             UNION ALL
             SELECT (SELECT n.travel_group * 4 + (n.approved_by IS NOT NULL) * 2 + (n.override_reason IS NOT NULL)
                     FROM power_requests n WHERE n.gate = 'ready' AND n.target = $1 AND n.action = $2
                     AND n.travel_group * 4 + (n.approved_by IS NOT NULL) * 2 + (n.override_reason IS NOT NULL) > kinds.kind
                     ORDER BY 1 LIMIT 1)
             FROM kinds WHERE kinds.kind IS NOT NULL
         )
         SELECT count(*) FROM (
             SELECT 1 FROM kinds CROSS JOIN power_requests c INDEXED BY power_requests_ready
                 ON c.gate = 'ready' AND c.target = $1 AND c.action = $2
                 AND c.travel_group * 4 + (c.approved_by IS NOT NULL) * 2 + (c.override_reason IS NOT NULL) = kinds.kind
             WHERE kinds.kind & 2 = 0 AND (c.batch_id IS NULL OR c.batch_id NOT IN (SELECT value FROM json_each($3)))
             UNION ALL
             SELECT 1 FROM power_requests u INDEXED BY power_requests_unapproved
             WHERE u.target = $1 AND u.action = $2 AND u.approved_by IS NULL
               AND (u.gate = 'retry' OR u.gate = 'held' OR u.gate = 'behind')
               AND (u.batch_id IS NULL OR u.batch_id NOT IN (SELECT value FROM json_each($3)))
             LIMIT 0 + $4)",
    )
    .bind(&wanted.target.0)
    .bind(wanted.action.as_str())
    .bind(list(wanted.counted))
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .fetch_one(connection)
    .await?;
    Ok(u64::try_from(due).unwrap_or(0))
}

/// Label and requester as bytes: they are anybody's text.
type CrowdRow = (Option<Vec<u8>>, Option<Vec<u8>>, i64);

pub(in crate::store) async fn crowds(
    connection: &mut SqliteConnection,
    wanted: Unapproved<'_>,
    most: u64,
) -> Result<Vec<Crowd>, StoreError> {
    let found: Vec<CrowdRow> = sqlx::query_as(
        "WITH RECURSIVE kinds(kind) AS (
             SELECT (SELECT r.travel_group * 4 + (r.approved_by IS NOT NULL) * 2 + (r.override_reason IS NOT NULL)
                     FROM power_requests r WHERE r.gate = 'ready' AND r.target = $1 AND r.action = $2 ORDER BY 1 LIMIT 1)
             UNION ALL
             SELECT (SELECT n.travel_group * 4 + (n.approved_by IS NOT NULL) * 2 + (n.override_reason IS NOT NULL)
                     FROM power_requests n WHERE n.gate = 'ready' AND n.target = $1 AND n.action = $2
                     AND n.travel_group * 4 + (n.approved_by IS NOT NULL) * 2 + (n.override_reason IS NOT NULL) > kinds.kind
                     ORDER BY 1 LIMIT 1)
             FROM kinds WHERE kinds.kind IS NOT NULL
         )
         SELECT CAST(waiting.label AS BLOB), CAST(waiting.requested_by AS BLOB), count(*) FROM (
             SELECT c.label, c.requested_by FROM kinds CROSS JOIN power_requests c INDEXED BY power_requests_ready
                 ON c.gate = 'ready' AND c.target = $1 AND c.action = $2
                 AND c.travel_group * 4 + (c.approved_by IS NOT NULL) * 2 + (c.override_reason IS NOT NULL) = kinds.kind
             WHERE kinds.kind & 2 = 0 AND (c.batch_id IS NULL OR c.batch_id NOT IN (SELECT value FROM json_each($3)))
             UNION ALL
             SELECT u.label, u.requested_by FROM power_requests u INDEXED BY power_requests_unapproved
             WHERE u.target = $1 AND u.action = $2 AND u.approved_by IS NULL
               AND (u.gate = 'retry' OR u.gate = 'held' OR u.gate = 'behind')
               AND (u.batch_id IS NULL OR u.batch_id NOT IN (SELECT value FROM json_each($3)))
             LIMIT 0 + $4) waiting
         GROUP BY waiting.label, waiting.requested_by ORDER BY count(*) DESC, 1, 2",
    )
    .bind(&wanted.target.0)
    .bind(wanted.action.as_str())
    .bind(list(wanted.counted))
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .fetch_all(connection)
    .await?;
    let crowd = |(label, requested_by, requests): CrowdRow| Crowd {
        label: label.map(rows::lossy),
        requested_by: requested_by.map(rows::lossy),
        requests: u64::try_from(requests).unwrap_or(0),
    };
    Ok(found.into_iter().map(crowd).collect())
}
