//! Which schema a file has, and how it is brought up to date. The schema itself is in
//! `migrations/`.

use std::path::Path;

use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};

use super::{StoreError, write_guard};

static MIGRATOR: Migrator = sqlx::migrate!();

/// `PRAGMA application_id` of our files: "pyrd".
const APPLICATION_ID: i64 = 1_887_007_332;

/// Brings the schema up to date, one transaction a migration. A foreign or newer file is left
/// alone.
pub(super) async fn migrate(
    connection: &mut SqliteConnection,
    path: &Path,
) -> Result<(), StoreError> {
    match state(connection, path).await? {
        SchemaState::Current => Ok(()),
        SchemaState::Empty => run(connection, path).await,
        SchemaState::Older => {
            write_guard::acquire(connection).await?;
            run(connection, path).await
        }
    }
}

/// The list of migrations is written with the write guard only: the first one leaves it taken.
async fn run(connection: &mut SqliteConnection, path: &Path) -> Result<(), StoreError> {
    MIGRATOR
        .run(&mut *connection)
        .await
        .map_err(|error| match error {
            sqlx::migrate::MigrateError::Execute(error) => StoreError::opening(path, error),
            other => StoreError::Unreadable(other.to_string()),
        })?;
    write_guard::release(connection).await
}

/// Refuses a foreign or newer file before anything is done that would change it, as switching to
/// WAL does. What cannot be opened only for reading is judged when it is opened for good.
pub(super) async fn refuse_foreign(path: &Path) -> Result<(), StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .disable_statement_logging();
    let Ok(mut connection) = options.connect().await else {
        return Ok(());
    };
    match state(&mut connection, path).await {
        Err(error @ (StoreError::Foreign(_) | StoreError::Newer(_))) => Err(error),
        // Whatever is wrong with the file otherwise shows when it is opened for good.
        _ => {
            let _ = connection.close().await;
            Ok(())
        }
    }
}

/// Refuses a file that the commands of this version cannot read.
pub(in crate::store) async fn require_current(
    connection: &mut SqliteConnection,
    path: &Path,
) -> Result<(), StoreError> {
    match state(connection, path).await? {
        SchemaState::Current => Ok(()),
        SchemaState::Older | SchemaState::Empty => Err(StoreError::Older(path.to_owned())),
    }
}

/// True for what a daemon leaves behind that was killed while it made the queue: the list of
/// migrations is made first, alone, and is still empty.
async fn is_barely_begun(
    connection: &mut SqliteConnection,
    objects: &[String],
) -> Result<bool, sqlx::Error> {
    if !objects.iter().all(|name| is_of_the_list(name)) {
        return Ok(false);
    }
    let applied: i64 = sqlx::query_scalar("SELECT count(*) FROM _sqlx_migrations")
        .fetch_one(connection)
        .await?;
    Ok(applied == 0)
}

/// True for the list of migrations and its index.
fn is_of_the_list(name: &str) -> bool {
    name == "_sqlx_migrations" || name.starts_with("sqlite_autoindex__sqlx_migrations")
}

enum SchemaState {
    Empty,
    Older,
    Current,
}

async fn state(connection: &mut SqliteConnection, path: &Path) -> Result<SchemaState, StoreError> {
    let found = find(connection)
        .await
        .map_err(|error| StoreError::opening(path, error))?;
    let applied = match found {
        FileContent::Nothing => return Ok(SchemaState::Empty),
        FileContent::Foreign => return Err(StoreError::Foreign(path.to_owned())),
        FileContent::Migrated(version) => version,
    };
    let versions = MIGRATOR.iter().map(|migration| migration.version);
    match applied.cmp(&versions.max().unwrap_or(0)) {
        std::cmp::Ordering::Less => Ok(SchemaState::Older),
        std::cmp::Ordering::Equal => Ok(SchemaState::Current),
        std::cmp::Ordering::Greater => Err(StoreError::Newer(path.to_owned())),
    }
}

/// What is in a file.
enum FileContent {
    Nothing,
    /// Another program's tables.
    Foreign,
    /// Ours; the last migration.
    Migrated(i64),
}

async fn find(connection: &mut SqliteConnection) -> Result<FileContent, sqlx::Error> {
    let objects: Vec<String> = sqlx::query_scalar("SELECT name FROM sqlite_master")
        .fetch_all(&mut *connection)
        .await?;
    if objects.is_empty() || is_barely_begun(connection, &objects).await? {
        return Ok(FileContent::Nothing);
    }
    let id: i64 = sqlx::query_scalar("PRAGMA application_id")
        .fetch_one(&mut *connection)
        .await?;
    if id != APPLICATION_ID {
        return Ok(FileContent::Foreign);
    }
    let applied = sqlx::query_scalar(
        "SELECT CAST(ifnull(max(version), 0) AS INTEGER) FROM _sqlx_migrations WHERE success",
    )
    .fetch_one(connection)
    .await?;
    Ok(FileContent::Migrated(applied))
}

#[cfg(test)]
mod tests {
    use sqlx::{ConnectOptions, Connection};

    use super::super::{StoreOptions, connect_writer};
    use super::*;
    use crate::model::{HoldKind, OperatorAction, OwnCode, PowerAction, Service};

    const QUEUE: &str = include_str!("../../../migrations/0001_queue.sql");

    /// The words that the constraint of this name allows.
    fn allowed_by(constraint: &str) -> Vec<&'static str> {
        let (_, check) = QUEUE
            .split_once(&format!("CONSTRAINT {constraint} CHECK ("))
            .expect("a constraint of that name");
        let (list, _) = check.split_once(')').expect("an end");
        list.split('\'').skip(1).step_by(2).collect()
    }

    #[test]
    fn the_schema_knows_the_words_that_the_code_knows() {
        let actions: Vec<&str> = PowerAction::ALL.iter().map(|word| word.as_str()).collect();
        for constraint in ["action_known", "batch_action_known", "hold_action_known"] {
            assert_eq!(allowed_by(constraint), actions, "{constraint}");
        }
        let kinds: Vec<&str> = HoldKind::ALL.iter().map(|word| word.as_str()).collect();
        assert_eq!(allowed_by("hold_kind_known"), kinds);
        let people = OperatorAction::ALL.iter().map(|word| word.as_str());
        assert_eq!(
            allowed_by("operator_action_known"),
            people.collect::<Vec<_>>()
        );
        let services: Vec<&str> = Service::ALL.iter().map(|word| word.as_str()).collect();
        assert_eq!(allowed_by("batch_service_known"), services);
    }

    #[test]
    fn the_error_codes_of_the_schema_are_codes_of_ours() {
        let codes = QUEUE.split("'poweryard.").skip(1);
        let codes: Vec<String> = codes
            .filter_map(|rest| rest.split_once('\''))
            .map(|(word, _)| format!("poweryard.{word}"))
            .collect();
        assert_eq!(codes, [OwnCode::Cancelled.as_str()]);
    }

    /// A file with this much of sqlx's own list, as a kill leaves it between two steps.
    async fn migrated_after(steps: &'static str) -> Result<(), StoreError> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("queue.db");
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true);
        let mut connection = options.connect().await.expect("a file");
        sqlx::raw_sql(steps)
            .execute(&mut connection)
            .await
            .expect("done");
        connection.close().await.expect("closed");
        migrate(
            &mut connect_writer(&path, &StoreOptions::default()).await?,
            &path,
        )
        .await
    }

    #[tokio::test]
    async fn a_kill_while_the_queue_is_made_does_not_make_it_foreign() {
        migrated_after("")
            .await
            .expect("an empty file becomes a queue");
        let list = "CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY, description TEXT NOT NULL,
                        installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, success BOOLEAN NOT NULL,
                        checksum BLOB NOT NULL, execution_time BIGINT NOT NULL)";
        migrated_after(list)
            .await
            .expect("one with nothing but an empty list, too");
        let other = "CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY); INSERT INTO _sqlx_migrations VALUES (7)";
        assert!(
            matches!(migrated_after(other).await, Err(StoreError::Foreign(_))),
            "somebody else uses sqlx as well"
        );
        let other =
            "CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY); CREATE TABLE notes (text)";
        assert!(matches!(
            migrated_after(other).await,
            Err(StoreError::Foreign(_))
        ));
    }
}
