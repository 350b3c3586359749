//! The write guard: only a transaction that has taken it may write what is the daemon's. The
//! schema's triggers see to that.
//!
//! The daemon takes it for its own token and the epoch that it left, so that a second daemon, or a
//! copy in the queue's place, is noticed before anything is stored.

use std::ops::{Deref, DerefMut};

use sqlx::sqlite::SqliteConnection;
use sqlx::{Sqlite, Transaction};

use super::{Store, StoreError, clocks};
use crate::model::Now;

/// A transaction of the daemon. Dropped, it is rolled back.
pub(in crate::store) struct WriteGuard<'c> {
    tx: Transaction<'c, Sqlite>,
    store: &'c Store,
    epoch: i64,
    /// What the clocks show now, once the daemon has looked at them.
    clocks: Option<Now>,
    /// By how much the queue follows the time of day in this transaction.
    set_ms: i64,
}

impl<'c> WriteGuard<'c> {
    /// Takes the guard for the daemon of `store`. If the time of day was set, the queue follows it
    /// before anything is written by it.
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
        let (clocks, set_ms) = store.clocks();
        if let Some(now) = clocks.filter(|_| set_ms != 0) {
            clocks::follow(&mut tx, set_ms, now.utc).await?;
        }
        Ok(Self {
            tx,
            store,
            epoch: mark.epoch + 1,
            clocks,
            set_ms,
        })
    }

    /// Commits, and writes the new epoch to the epoch file, which need not have reached the disk
    /// yet.
    pub(in crate::store) async fn commit(mut self) -> Result<(), StoreError> {
        match self.clocks {
            Some(now) => clocks::release(&mut self.tx, now, self.store.boot()).await?,
            None => release(&mut self.tx).await?,
        }
        self.store.commit(self.tx).await?;
        self.store.went_to(self.epoch, self.set_ms);
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
