//! The commands' side of the queue: clients like any producer. Creates nothing, changes no pragma
//! that stays in the file, and stays away from what only the daemon writes.
//!
//! Values that strangers wrote are read as bytes and shown as well as they go; one odd value never
//! hides the rest.

use std::path::{Path, PathBuf};

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};

use super::StoreError;
use super::sqlite::{BUSY_TIMEOUT, schema};

mod backup;
mod keys;
mod orders;
mod overview;
mod read;
mod records;
mod write;

pub use orders::{Lets, NewOrder, OrderRecord};
pub use overview::{OldestReady, OutcomeCount, OverviewCount, TargetNote};
pub use read::{Filter, Labelled};
pub use records::{AttemptRecord, BatchRecord, HoldRecord, ProducerNote, RequestRecord};
pub use write::{Cancelled, NewRequest, Retried, RetryCandidate, RetryFilter};

/// What a command means to do with the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only read. The file is opened as usual, so that its `-wal` is tidied up as usual, but
    /// statements cannot write.
    Read,
    /// Insert, cancel or hold.
    Write,
}

/// One connection to an existing queue.
#[derive(Debug)]
pub struct QueueClient {
    connection: SqliteConnection,
    path: PathBuf,
}

impl QueueClient {
    /// Opens an existing queue of the current schema. A lock is waited for up to 5 s.
    ///
    /// # Errors
    /// `Missing`, `Foreign`, `Older`, `Newer` and `Corrupt` files are left as they are.
    pub async fn open(path: &Path, access: Access) -> Result<Self, StoreError> {
        match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::Missing(path.to_owned()));
            }
            Err(source) => {
                return Err(StoreError::Unusable {
                    path: path.to_owned(),
                    source,
                });
            }
            Ok(_) => {}
        }
        let mut options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(false)
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();
        if access == Access::Read {
            options = options.pragma("query_only", "ON");
        }
        let mut connection = options
            .connect()
            .await
            .map_err(|error| StoreError::opening(path, error))?;
        schema::require_current(&mut connection, path).await?;
        Ok(Self {
            connection,
            path: path.to_owned(),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A number that changes when another connection has committed.
    pub async fn data_version(&mut self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar("PRAGMA data_version")
            .fetch_one(&mut self.connection)
            .await?)
    }

    /// Closes the file.
    pub async fn close(self) -> Result<(), StoreError> {
        Ok(self.connection.close().await?)
    }
}

/// For `json_each`.
fn id_list(ids: &[i64]) -> String {
    let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
    format!("[{}]", ids.join(","))
}
