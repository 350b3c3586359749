//! A table with one index, as little as a queue can be: what the floor works on, and what INSERTs
//! are compared with.

use std::path::Path;

use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};

/// The index is in the order of the claim, over pending rows alone.
const SCHEMA: &str = "
    CREATE TABLE requests (
        id INTEGER PRIMARY KEY,
        server_id TEXT NOT NULL,
        action TEXT NOT NULL,
        status TEXT NOT NULL DEFAULT 'pending',
        priority INTEGER NOT NULL DEFAULT 0,
        created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
        batch_id INTEGER,
        error TEXT,
        finished_at TEXT
    );
    CREATE TABLE batches (id INTEGER PRIMARY KEY, job_id TEXT NOT NULL);
    CREATE INDEX requests_pending ON requests (action, priority DESC, id) WHERE status = 'pending';";

/// A new file with the table.
pub(crate) async fn create(path: &Path) -> SqliteConnection {
    let mut writer = open(path).await;
    sqlx::raw_sql(SCHEMA)
        .execute(&mut writer)
        .await
        .expect("created");
    writer
}

/// With `synchronous=FULL`, as the daemon does.
pub(crate) async fn open(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .disable_statement_logging()
        .connect()
        .await
        .expect("it opens")
}
