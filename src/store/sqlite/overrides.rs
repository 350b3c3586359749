//! Reasons to leave outside windows and freezes are noted among the things that people did, each
//! request once: when a command, the page or the API gives the reason, one row for all of its
//! requests; when a producer wrote it by SQL, once the requests leave because of it.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::sqlite::SqliteConnection;

use super::{StoreError, rows, text};
use crate::model::{BatchId, OperatorAction, UtcMillis, quoted};

/// Notes the reasons for which the requests of this batch leave, as far as nobody has noted them,
/// one row for each reason and who asked for it.
pub(super) async fn note(
    tx: &mut SqliteConnection,
    batch: BatchId,
    now: UtcMillis,
) -> Result<(), StoreError> {
    let mut unnoted: Vec<i64> = sqlx::query_scalar(
        "SELECT r.id FROM power_requests r WHERE r.state = 'running' AND r.batch_id = $1 AND r.override_reason IS NOT NULL
         AND NOT EXISTS (SELECT 1 FROM noted_overrides n WHERE n.request_id = r.id)",
    )
    .bind(batch.0)
    .fetch_all(&mut *tx)
    .await?;
    unnoted.sort_unstable();
    note_reasons(tx, &unnoted, Some(now)).await
}

/// As `note`, of requests that a command has just inserted or changed; `at` none: the clock's time.
pub(in crate::store) async fn note_reasons(
    tx: &mut SqliteConnection,
    requests: &[i64],
    at: Option<UtcMillis>,
) -> Result<(), StoreError> {
    if requests.is_empty() {
        return Ok(());
    }
    let found: Vec<ReasonRow> = sqlx::query_as(
        "SELECT r.id, CAST(r.requested_by AS BLOB) AS requested_by, CAST(r.override_reason AS BLOB) AS reason,
                CAST(r.label AS BLOB) AS label
         FROM json_each($1) j CROSS JOIN power_requests r ON r.id = j.value WHERE r.override_reason IS NOT NULL",
    )
    .bind(rows::list(requests))
    .fetch_all(&mut *tx)
    .await?;
    let mut groups: BTreeMap<(Option<Vec<u8>>, Vec<u8>), Group> = BTreeMap::new();
    for row in found {
        let group = groups.entry((row.requested_by, row.reason)).or_default();
        group.ids.push(row.id);
        group.labels.insert(row.label);
    }
    for ((who, reason), group) in groups {
        let who = who.map_or_else(|| "a producer".to_owned(), rows::lossy);
        sqlx::query(
            "INSERT INTO operator_actions (at, who, action, what, requests, reason)
             VALUES (ifnull($1, strftime('%Y-%m-%dT%H:%M:%fZ', 'now')), $2, $3, $4, $5, $6)",
        )
        .bind(at.map(text))
        .bind(who)
        .bind(OperatorAction::Override.as_str())
        .bind(group.words())
        .bind(i64::try_from(group.ids.len()).unwrap_or(i64::MAX))
        .bind(rows::lossy(reason))
        .execute(&mut *tx)
        .await?;
    }
    mark_noted(tx, requests).await
}

/// These requests need no row of their own any more.
pub(in crate::store) async fn mark_noted(
    tx: &mut SqliteConnection,
    requests: &[i64],
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT OR IGNORE INTO noted_overrides (request_id) SELECT value FROM json_each($1)",
    )
    .bind(rows::list(requests))
    .execute(tx)
    .await?;
    Ok(())
}

/// A request with its reason, as anybody may have written it.
#[derive(sqlx::FromRow)]
struct ReasonRow {
    id: i64,
    requested_by: Option<Vec<u8>>,
    reason: Vec<u8>,
    label: Option<Vec<u8>>,
}

/// Requests that have the reason in common and who asked for them.
#[derive(Default)]
struct Group {
    ids: Vec<i64>,
    labels: BTreeSet<Option<Vec<u8>>>,
}

impl Group {
    /// By their label, if they have one in common; else by their ids.
    fn words(&self) -> String {
        match self.labels.first() {
            Some(Some(label)) if self.labels.len() == 1 => {
                format!("--label {}", quoted(&rows::lossy(label.clone())))
            }
            _ => rows::runs(&self.ids),
        }
    }
}
