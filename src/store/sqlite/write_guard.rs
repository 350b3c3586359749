//! The write guard: only a transaction that has taken it may write what is the daemon's. The
//! schema's triggers see to that.
//!
//! The daemon takes it for its own token and the epoch that it left, so that a second daemon, or a
//! copy in the queue's place, is noticed before anything is stored.

use std::ops::{Deref, DerefMut};

use sqlx::sqlite::SqliteConnection;
use sqlx::{Sqlite, Transaction};

use super::{Store, StoreError, rows, text};
use crate::model::UtcMillis;

/// A transaction of the daemon. Dropped, it is rolled back.
pub(in crate::store) struct WriteGuard<'c> {
    tx: Transaction<'c, Sqlite>,
    store: &'c Store,
    epoch: i64,
    /// What the clock shows now, once the daemon has looked at it.
    clock: Option<UtcMillis>,
}

impl<'c> WriteGuard<'c> {
    /// Takes the guard for the daemon of `store`.
    ///
    /// # Errors
    /// `TakenOver` if token or epoch are not those that this daemon left.
    pub(super) async fn take(
        mut tx: Transaction<'c, Sqlite>,
        store: &'c Store,
    ) -> Result<Self, StoreError> {
        let mark = store.mark();
        let taken = sqlx::query(
            "UPDATE queue_mark SET writing = token, epoch = epoch + 1 WHERE id = 1 AND token = $1 AND epoch = $2",
        )
        .bind(&mark.token)
        .bind(mark.epoch)
        .execute(&mut *tx)
        .await?;
        if taken.rows_affected() != 1 {
            return Err(StoreError::TakenOver(store.path().to_owned()));
        }
        Ok(Self {
            tx,
            store,
            epoch: mark.epoch + 1,
            clock: store.clock(),
        })
    }

    /// The clock was set, and what the daemon waits for is moved along in this transaction.
    pub(in crate::store) fn set_clock(&mut self, clock: UtcMillis) {
        self.clock = Some(clock);
    }

    /// Commits, and writes the new epoch to the epoch file, which need not have reached the disk
    /// yet.
    pub(in crate::store) async fn commit(mut self) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE queue_mark SET writing = NULL, clock_at = ifnull($1, clock_at) WHERE id = 1",
        )
        .bind(self.clock.map(text))
        .execute(&mut *self.tx)
        .await?;
        self.store.commit(self.tx).await?;
        self.store.went_to(self.epoch);
        Ok(())
    }

    /// Undoes what was done.
    pub(in crate::store) async fn rollback(self) -> Result<(), StoreError> {
        Ok(self.tx.rollback().await?)
    }
}

impl Deref for WriteGuard<'_> {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.tx
    }
}

impl DerefMut for WriteGuard<'_> {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.tx
    }
}

/// What the clock showed at the last commit of a daemon.
pub(in crate::store) async fn clock_at(
    connection: &mut SqliteConnection,
) -> Result<Option<UtcMillis>, StoreError> {
    let clock_at: Option<Vec<u8>> =
        sqlx::query_scalar("SELECT CAST(clock_at AS BLOB) FROM queue_mark WHERE id = 1")
            .fetch_one(connection)
            .await?;
    Ok(rows::readable_time(clock_at.map(rows::lossy)))
}

/// Takes the guard for a command, inside its transaction. The epoch stays: a daemon that runs goes
/// on.
pub(in crate::store) async fn acquire(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    sqlx::query("UPDATE queue_mark SET writing = token WHERE id = 1")
        .execute(connection)
        .await?;
    Ok(())
}

/// Gives the guard back, before the commit.
pub(in crate::store) async fn release(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    sqlx::query("UPDATE queue_mark SET writing = NULL WHERE id = 1")
        .execute(connection)
        .await?;
    Ok(())
}
