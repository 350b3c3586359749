//! The queue's file: all SQL, pragmas, migrations, the file's mode and its lock. Knows nothing of HTTP.
//!
//! `Store` is the daemon's side: one writer connection, short `BEGIN IMMEDIATE` transactions that never span a network
//! call, set-based statements driven from lists of ids. `Desk` is the side of the commands, which are producers and
//! readers like any other.
//!
//! Nothing in this process opens the database, its `-wal` or its `-shm` by itself once SQLite has: closing such a handle
//! drops SQLite's POSIX locks, and the next producer to leave would delete the live `-wal`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Sqlite, Transaction};
use tokio::sync::Mutex;

use crate::model::UtcMillis;

mod batches;
pub mod desk;
mod error;
mod file;
mod holds;
mod intake;
mod rows;
mod schema;

pub use batches::{DueBatch, Origin};
pub use desk::Desk;
pub use error::StoreError;
pub use file::{DaemonInfo, QueueLock, daemon_info};
pub use intake::TakenIn;

/// How long a statement waits for a producer's lock. A longer one is an answer (`StoreError::Busy`), not a failure.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The `-wal` is cut back to this after a checkpoint, in bytes.
const WAL_SIZE_LIMIT: &str = "67108864";

/// The daemon's side of the queue.
#[derive(Debug)]
pub struct Store {
    writer: Mutex<SqliteConnection>,
    path: PathBuf,
}

impl Store {
    /// Opens the queue for the daemon: creates the file (mode 0660) if it is missing, brings its schema up to date and
    /// makes sure that it can be written.
    ///
    /// # Errors
    /// `Foreign`, `Newer` and `Corrupt` files are left alone.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        file::create(path)?;
        schema::refuse_strangers(path).await?;
        let mut writer = connect_writer(path).await.map_err(|error| StoreError::opening(path, error))?;
        schema::migrate(&mut writer, path).await?;
        Ok(Self { writer: Mutex::new(writer), path: path.to_owned() })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begins a write.
    ///
    /// When the disk is full SQLite has often rolled back by itself. sqlx does not notice, tries to roll back once more, fails,
    /// and refuses to begin anything ever after: then the connection is opened anew.
    async fn begin<'a>(&self, writer: &'a mut SqliteConnection) -> Result<Transaction<'a, Sqlite>, StoreError> {
        if writer.is_in_transaction() {
            // What was still to be rolled back has been by the time this returns, or never will be.
            writer.ping().await?;
        }
        if writer.is_in_transaction() {
            // The old one goes when the new one is open, so that `-wal` and `-shm` stay.
            *writer = connect_writer(&self.path).await?;
        }
        Ok(writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// A number that changes when another connection has committed.
    pub async fn data_version(&self) -> Result<i64, StoreError> {
        let mut writer = self.writer.lock().await;
        Ok(sqlx::query_scalar("PRAGMA data_version").fetch_one(&mut *writer).await?)
    }

    /// Closes the file, which checkpoints the `-wal` when no producer has it open.
    pub async fn close(self) -> Result<(), StoreError> {
        Ok(self.writer.into_inner().close().await?)
    }
}

async fn connect_writer(path: &Path) -> Result<SqliteConnection, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("journal_size_limit", WAL_SIZE_LIMIT)
        .disable_statement_logging();
    options.connect().await
}

/// The times of the schema, as text.
fn text(time: UtcMillis) -> String {
    time.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_transaction_that_sqlite_rolled_back_by_itself_is_not_the_last_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(&dir.path().join("queue.db")).await.expect("a queue");
        let mut writer = store.writer.lock().await;
        let mut tx = store.begin(&mut writer).await.expect("begun");
        // As a full disk does it: behind sqlx's back.
        sqlx::query("ROLLBACK").execute(&mut *tx).await.expect("rolled back");
        drop(tx);
        for _ in 0..2 {
            let mut tx = store.begin(&mut writer).await.expect("begun again");
            sqlx::query("DELETE FROM holds").execute(&mut *tx).await.expect("written");
            tx.commit().await.expect("committed");
        }
        let tx = store.begin(&mut writer).await.expect("begun");
        drop(tx);
        store.begin(&mut writer).await.expect("an ordinary roll-back needs nothing");
    }
}
