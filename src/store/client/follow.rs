//! What somebody who waits for requests wants to know: which have not ended, what carries them, why
//! the others are not sent, and how long calls usually take. Writes nothing.

use sqlx::FromRow;
use sqlx::sqlite::SqliteConnection;

use super::BatchRecord;
use super::glance::usual_ms;
use crate::store::StoreError;
use crate::store::sqlite::rows::{list, lossy};

/// A request that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromRow)]
pub struct OpenRequest {
    /// Its id.
    pub id: i64,
    /// The batch that carries it; none while it is queued.
    pub batch_id: Option<i64>,
}

/// A reason why requests of one target and action are not sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsentReason {
    /// The sentence of `power_waiting`.
    pub reason: String,
    /// Target.
    pub target: String,
    /// Action.
    pub action: String,
    /// How many have it.
    pub count: i64,
}

/// A batch on its way, and how long those before it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowedBatch {
    /// The batch.
    pub batch: BatchRecord,
    /// What the middle one of the last jobs took, in milliseconds; none if none has ended.
    pub usual_ms: Option<i64>,
}

pub(super) async fn open_requests(
    connection: &mut SqliteConnection,
    ids: &[i64],
) -> Result<Vec<OpenRequest>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT r.id, CASE WHEN r.state = 'running' THEN CAST(r.batch_id AS INTEGER) END AS batch_id
         FROM json_each($1) j CROSS JOIN power_requests r ON r.id = j.value WHERE r.gate IS NOT NULL",
    )
    .bind(list(ids))
    .fetch_all(&mut *connection)
    .await?)
}

pub(super) async fn waiting_reasons(
    connection: &mut SqliteConnection,
    ids: &[i64],
) -> Result<Vec<UnsentReason>, StoreError> {
    // As bytes: the reason of a hold may be anybody's text.
    let found: Vec<(Vec<u8>, String, String, i64)> = sqlx::query_as(
        "SELECT CAST(w.reason AS BLOB), w.target, w.action, count(*)
         FROM json_each($1) j CROSS JOIN power_waiting w ON w.id = j.value
         GROUP BY 1, 2, 3 ORDER BY count(*) DESC, min(w.id)",
    )
    .bind(list(ids))
    .fetch_all(&mut *connection)
    .await?;
    let mut reasons = Vec::with_capacity(found.len());
    for (reason, target, action, count) in found {
        reasons.push(UnsentReason {
            reason: lossy(reason),
            target,
            action,
            count,
        });
    }
    Ok(reasons)
}

pub(super) async fn open_batches_among(
    connection: &mut SqliteConnection,
    ids: &[i64],
) -> Result<Vec<FollowedBatch>, StoreError> {
    let batches: Vec<BatchRecord> = sqlx::query_as(
        "SELECT b.* FROM json_each($1) j CROSS JOIN batches b ON b.id = j.value WHERE b.state <> 'done' ORDER BY b.id",
    )
    .bind(list(ids))
    .fetch_all(&mut *connection)
    .await?;
    let mut open = Vec::with_capacity(batches.len());
    for batch in batches {
        let usual_ms = usual_ms(connection, &batch.target, &batch.action).await?;
        open.push(FollowedBatch { batch, usual_ms });
    }
    Ok(open)
}
