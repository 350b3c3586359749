//! Words with which somebody may go on who has typed the beginning of one: labels, targets, names,
//! ids. Few, and read by indexes, however large the queue is. Writes nothing.

use sqlx::FromRow;
use sqlx::sqlite::SqliteConnection;

use crate::store::StoreError;

/// So many words are offered at most.
const OFFERED_MAX: i64 = 200;
/// So many of the newest requests are looked at.
const LOOKED_AT: i64 = 10_000;

/// Which requests somebody may mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meant {
    /// Any.
    Any,
    /// Those that wait.
    Queued,
    /// Those that have not ended.
    Unfinished,
    /// Those that may be tried again.
    NotSucceeded,
}

/// A column of the newest requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewestText {
    /// `error_code`
    ErrorCode,
    /// `requested_by`
    RequestedBy,
}

/// A request that may be meant.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct RequestCandidate {
    /// Its id.
    pub id: i64,
    /// Its action.
    pub action: String,
    /// Its server's name, or its id.
    pub server: String,
    /// Its state.
    pub state: String,
}

/// The end of the range of texts that begin like this.
fn behind(beginning: &str) -> String {
    format!("{beginning}\u{10ffff}")
}

pub(super) async fn labels(
    connection: &mut SqliteConnection,
    beginning: &str,
) -> Result<Vec<String>, StoreError> {
    // From each label to the next one by the index, past all requests that share it.
    Ok(sqlx::query_scalar(
        "WITH RECURSIVE labels (label) AS (
             SELECT (SELECT min(label) FROM power_requests WHERE label >= $1 AND label < $2)
             UNION ALL
             SELECT (SELECT min(r.label) FROM power_requests r WHERE r.label > l.label AND r.label < $2)
             FROM labels l WHERE l.label IS NOT NULL LIMIT 1 + $3)
         SELECT label FROM labels WHERE label IS NOT NULL",
    )
    .bind(beginning)
    .bind(behind(beginning))
    .bind(OFFERED_MAX)
    .fetch_all(&mut *connection)
    .await?)
}

pub(super) async fn target_names(
    connection: &mut SqliteConnection,
) -> Result<Vec<String>, StoreError> {
    Ok(
        sqlx::query_scalar("SELECT target FROM targets ORDER BY target")
            .fetch_all(&mut *connection)
            .await?,
    )
}

pub(super) async fn server_names(
    connection: &mut SqliteConnection,
    target: Option<&str>,
    beginning: &str,
) -> Result<Vec<String>, StoreError> {
    let names = "SELECT DISTINCT name FROM servers WHERE gone_at IS NULL AND name >= $1 AND name < $2 AND name <> ''
         AND (target = $3 OR $3 IS NULL) ORDER BY name LIMIT 0 + $4";
    let ids = "SELECT DISTINCT server_id FROM servers WHERE server_id >= $1 AND server_id < $2
         AND (target = $3 OR $3 IS NULL) ORDER BY server_id LIMIT 0 + $4";
    let found = servers_of(connection, names, target, beginning).await?;
    if found.is_empty() && !beginning.is_empty() {
        return servers_of(connection, ids, target, beginning).await;
    }
    Ok(found)
}

async fn servers_of(
    connection: &mut SqliteConnection,
    query: &'static str,
    target: Option<&str>,
    beginning: &str,
) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar(query)
        .bind(beginning)
        .bind(behind(beginning))
        .bind(target)
        .bind(OFFERED_MAX)
        .fetch_all(&mut *connection)
        .await?)
}

pub(super) async fn newest_requests(
    connection: &mut SqliteConnection,
    meant: Meant,
    beginning: &str,
) -> Result<Vec<RequestCandidate>, StoreError> {
    let condition = match meant {
        Meant::Any => "1",
        Meant::Queued => "r.state = 'queued'",
        Meant::Unfinished => "r.gate IS NOT NULL",
        Meant::NotSucceeded => "r.state IN ('failed', 'unknown', 'expired', 'cancelled')",
    };
    let query = format!(
        "SELECT r.id, r.action, r.state,
                ifnull(nullif((SELECT n.name FROM servers n WHERE n.target = r.target AND n.server_id = r.server_id), ''),
                       r.server_id) AS server
         FROM power_requests r
         WHERE r.id > (SELECT max(id) FROM power_requests) - $2 AND {condition} AND substr(r.id, 1, length($1)) = $1
         ORDER BY r.id DESC LIMIT 0 + $3"
    );
    Ok(sqlx::query_as(sqlx::AssertSqlSafe(query))
        .bind(beginning)
        .bind(LOOKED_AT)
        .bind(OFFERED_MAX)
        .fetch_all(&mut *connection)
        .await?)
}

pub(super) async fn newest_texts(
    connection: &mut SqliteConnection,
    column: NewestText,
    beginning: &str,
) -> Result<Vec<String>, StoreError> {
    let column = match column {
        NewestText::ErrorCode => "error_code",
        NewestText::RequestedBy => "requested_by",
    };
    let query = format!(
        "SELECT DISTINCT {column} FROM power_requests
         WHERE id > (SELECT max(id) FROM power_requests) - $2 AND substr({column}, 1, length($1)) = $1
         ORDER BY 1 LIMIT 0 + $3"
    );
    Ok(sqlx::query_scalar(sqlx::AssertSqlSafe(query))
        .bind(beginning)
        .bind(LOOKED_AT)
        .bind(OFFERED_MAX)
        .fetch_all(&mut *connection)
        .await?)
}
