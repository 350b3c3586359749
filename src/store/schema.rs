//! Which schema a file has, and how it is brought up to date. The schema itself is in `migrations/`.

use std::path::Path;

use sqlx::migrate::Migrator;
use sqlx::sqlite::SqliteConnection;

use super::StoreError;

static MIGRATOR: Migrator = sqlx::migrate!();

/// `PRAGMA application_id` of our files: "pyrd".
const APPLICATION_ID: i64 = 1_887_007_332;

/// Brings the schema up to date, one transaction a migration. A foreign or newer file is left alone.
pub(super) async fn migrate(connection: &mut SqliteConnection, path: &Path) -> Result<(), StoreError> {
    match state(connection, path).await? {
        State::Current => Ok(()),
        State::Empty | State::Older => Ok(MIGRATOR.run(connection).await.map_err(|error| match error {
            sqlx::migrate::MigrateError::Execute(error) => StoreError::opening(path, error),
            other => StoreError::Unreadable(other.to_string()),
        })?),
    }
}

/// Refuses a file that the commands of this version cannot read.
pub(super) async fn require_current(connection: &mut SqliteConnection, path: &Path) -> Result<(), StoreError> {
    match state(connection, path).await? {
        State::Current => Ok(()),
        State::Older | State::Empty => Err(StoreError::Older(path.to_owned())),
    }
}

enum State {
    Empty,
    Older,
    Current,
}

async fn state(connection: &mut SqliteConnection, path: &Path) -> Result<State, StoreError> {
    let opening = |error| StoreError::opening(path, error);
    let objects: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sqlite_master").fetch_one(&mut *connection).await.map_err(opening)?;
    if objects == 0 {
        return Ok(State::Empty);
    }
    let id: i64 = sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *connection).await.map_err(opening)?;
    if id != APPLICATION_ID {
        return Err(StoreError::Foreign(path.to_owned()));
    }
    let applied: i64 = sqlx::query_scalar("SELECT ifnull(max(version), 0) FROM _sqlx_migrations WHERE success")
        .fetch_one(&mut *connection)
        .await
        .map_err(opening)?;
    let newest = MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0);
    match applied.cmp(&newest) {
        std::cmp::Ordering::Less => Ok(State::Older),
        std::cmp::Ordering::Equal => Ok(State::Current),
        std::cmp::Ordering::Greater => Err(StoreError::Newer(path.to_owned())),
    }
}
