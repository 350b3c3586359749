//! The queue as a whole, for `status`: every query costs what is unfinished, never what is
//! finished. Writes nothing.

use std::time::Duration;

use serde::Serialize;
use sqlx::FromRow;
use sqlx::sqlite::SqliteConnection;
use utoipa::ToSchema;

use super::BatchRecord;
use crate::model::UtcMillis;
use crate::store::StoreError;

/// One row of `queue_overview`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema, FromRow)]
#[expect(
    missing_docs,
    reason = "the fields are the columns, which the contract describes"
)]
pub struct OverviewCount {
    pub target: String,
    pub action: String,
    pub state: String,
    pub count: i64,
    pub oldest_created_at: Option<String>,
}

/// The oldest request that could go, of one target and action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema, FromRow)]
pub struct OldestReady {
    /// Its id.
    pub id: i64,
    /// Its target.
    pub target: String,
    /// Its action.
    pub action: String,
    /// Its server.
    pub server_id: String,
    /// The server's name, if a list has shown it.
    pub name: Option<String>,
    /// When it was inserted.
    pub created_at: String,
    /// Since when it could go.
    pub eligible_at: Option<String>,
}

/// What the daemon last noted of a configured target, with its calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema, FromRow)]
pub struct TargetNote {
    /// Its name.
    pub target: String,
    /// Which API.
    pub service: String,
    /// Base URL.
    pub endpoint: String,
    /// The cloud's project.
    pub project_id: String,
    /// As configured.
    pub submits_per_minute: i64,
    /// As lowered by the cloud's 429s.
    pub pace_per_minute: i64,
    /// Throttled calls in a row.
    pub throttles: i64,
    /// Submit calls of the last 60 s.
    pub calls_last_minute: i64,
    /// When the list of its servers was last read in full.
    pub inventory_at: Option<String>,
    /// Why the last try to read it failed.
    pub inventory_error: Option<String>,
    /// When the daemon noted it.
    pub updated_at: String,
}

/// How many requests are in one state, or ended in one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema, FromRow)]
pub struct OutcomeCount {
    /// State.
    pub state: String,
    /// How it is known, once it has ended.
    pub evidence: Option<String>,
    /// The cloud's code or ours.
    pub error_code: Option<String>,
    /// How many.
    pub count: i64,
    /// The first of them.
    pub first_id: i64,
}

pub(super) async fn overview(
    connection: &mut SqliteConnection,
) -> Result<Vec<OverviewCount>, StoreError> {
    Ok(
        sqlx::query_as(
            "SELECT target, action, state, count, oldest_created_at FROM queue_overview",
        )
        .fetch_all(&mut *connection)
        .await?,
    )
}

pub(super) async fn oldest_ready(
    connection: &mut SqliteConnection,
) -> Result<Vec<OldestReady>, StoreError> {
    let mut ready: Vec<OldestReady> = sqlx::query_as(
        "SELECT r.id, r.target, r.action, r.server_id, r.created_at, r.eligible_at,
                (SELECT n.name FROM servers n WHERE n.target = r.target AND n.server_id = r.server_id) AS name
         FROM (SELECT min(id) AS id FROM power_requests INDEXED BY power_requests_ready
               WHERE gate = 'ready' GROUP BY target, action) oldest
         JOIN power_requests r ON r.id = oldest.id",
    )
    .fetch_all(&mut *connection)
    .await?;
    ready.sort_unstable_by_key(|ready| ready.id);
    Ok(ready)
}

pub(super) async fn open_batches(
    connection: &mut SqliteConnection,
) -> Result<Vec<BatchRecord>, StoreError> {
    Ok(
        sqlx::query_as("SELECT * FROM batches WHERE state <> 'done' ORDER BY next_look_at")
            .fetch_all(&mut *connection)
            .await?,
    )
}

pub(super) async fn targets(
    connection: &mut SqliteConnection,
    now: UtcMillis,
) -> Result<Vec<TargetNote>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT t.target, t.service, t.endpoint, t.project_id, t.submits_per_minute, t.pace_per_minute, t.throttles,
                (SELECT count(*) FROM (SELECT intent_steady_ms FROM batches b WHERE b.target = t.target
                                       ORDER BY b.id DESC LIMIT 6000)
                 WHERE intent_steady_ms > $1 - (SELECT clock_set_ms FROM queue_mark)) AS calls_last_minute,
                t.inventory_at, t.inventory_error, t.updated_at
         FROM targets t ORDER BY t.target",
    )
    .bind(now.before(Duration::from_secs(60)).0)
    .fetch_all(&mut *connection)
    .await?)
}
