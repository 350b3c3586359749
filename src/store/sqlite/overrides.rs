//! What leaves outside a window because its producer gave a reason is noted among the things that
//! people did.

use sqlx::sqlite::SqliteConnection;

use super::{StoreError, text};
use crate::model::{BatchId, UtcMillis};

/// Notes the reasons for which the requests of this batch leave, one row for each reason and who
/// asked for it.
pub(super) async fn note(
    tx: &mut SqliteConnection,
    batch: BatchId,
    now: UtcMillis,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO operator_actions (at, who, action, what, requests, reason)
         SELECT ?2, ifnull(CAST(r.requested_by AS TEXT), 'a producer'), 'override',
                CASE WHEN count(r.label) = count(*) AND min(r.label) = max(r.label) THEN '--label ' || min(r.label)
                     ELSE group_concat(r.id, ' ') END,
                count(*), r.override_reason
         FROM power_requests r WHERE r.state = 'running' AND r.batch_id = ?1 AND r.override_reason IS NOT NULL
         GROUP BY r.override_reason, r.requested_by",
    )
    .bind(batch.0)
    .bind(text(now))
    .execute(tx)
    .await?;
    Ok(())
}
