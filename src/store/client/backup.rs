//! What the `db` commands do to a queue while a daemon may be running on it: copy, prune, release.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use super::QueueClient;
use crate::model::UtcMillis;
use crate::store::StoreError;
use crate::store::sqlite::upkeep::{self, Prune};
use crate::store::sqlite::{file, hand, rows, text};

impl QueueClient {
    /// Writes a consistent copy to `to`, checks it, and puts it in place in one step: mode 0600,
    /// marked as a copy, so that a daemon that is started on it puts its requests on hold. Nobody
    /// waits for it.
    ///
    /// # Errors
    /// `Unusable` when the copy cannot be written; `Corrupt` when the queue is damaged; `Refused`
    /// when `to` is the queue itself. No copy is left then.
    pub async fn backup(&mut self, to: &Path, now: UtcMillis) -> Result<(), StoreError> {
        if file::identity(to)
            .is_ok_and(|identity| file::identity(&self.path).is_ok_and(|own| own == identity))
        {
            return Err(StoreError::Refused(format!(
                "{} is the queue itself; name another file for the copy",
                to.display()
            )));
        }
        let mut partial = to.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let outcome = self.write_backup(&partial, to, now).await;
        if outcome.is_err() {
            // What is wrong has been said; a rest of the copy helps nobody.
            let _ = fs::remove_file(&partial);
        }
        outcome
    }

    async fn write_backup(
        &mut self,
        partial: &Path,
        to: &Path,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let unusable = |source| StoreError::Unusable {
            path: to.to_owned(),
            source,
        };
        match fs::remove_file(partial) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(unusable(error));
            }
            _ => {}
        }
        // SQLite takes an empty file, and so its mode.
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(partial)
            .map_err(unusable)?;
        sqlx::query("VACUUM INTO ?")
            .bind(partial.to_string_lossy())
            .execute(&mut self.connection)
            .await?;
        mark(partial, now).await?;
        File::open(partial)
            .and_then(|file| file.sync_all())
            .map_err(unusable)?;
        fs::rename(partial, to).map_err(unusable)?;
        let folder = to
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(unusable)
    }

    /// When the batch was made that came last. None if there is none, or its time does not read.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn last_intent(&mut self) -> Result<Option<UtcMillis>, StoreError> {
        let last: Option<String> =
            sqlx::query_scalar("SELECT intent_at FROM batches ORDER BY id DESC LIMIT 1")
                .fetch_optional(&mut self.connection)
                .await?;
        Ok(rows::readable_time(last))
    }

    /// Looks at one chunk more of what ended before `cutoff`; see `Store::prune`.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn prune(
        &mut self,
        so_far: Prune,
        cutoff: UtcMillis,
        now: UtcMillis,
    ) -> Result<Prune, StoreError> {
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        hand::borrow(&mut tx).await?;
        let next = upkeep::prune_chunk(&mut tx, so_far, cutoff, now).await?;
        hand::give_back(&mut tx).await?;
        tx.commit().await?;
        upkeep::shrink(&mut self.connection).await?;
        Ok(next)
    }

    /// Ends the hold of a restore; with `drop`, cancels first what was queued in the copy. Returns
    /// how many requests were cancelled; none if there is no such hold.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn release(&mut self, drop: bool) -> Result<Option<u64>, StoreError> {
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        hand::borrow(&mut tx).await?;
        let lifted = sqlx::query("DELETE FROM holds WHERE kind = 'restored'")
            .execute(&mut *tx)
            .await?
            .rows_affected();
        let cancelled = match drop && lifted > 0 {
            true => {
                let dropped = sqlx::query(
                    "UPDATE power_requests SET state = 'cancelled'
                     WHERE state = 'queued' AND id <= (SELECT restored_last_id FROM queue_mark)",
                );
                dropped.execute(&mut *tx).await?.rows_affected()
            }
            false => 0,
        };
        hand::give_back(&mut tx).await?;
        tx.commit().await?;
        Ok((lifted > 0).then_some(cancelled))
    }
}

/// Marks a copy as one, and checks it from end to end.
async fn mark(copy: &Path, now: UtcMillis) -> Result<(), StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(copy)
        .create_if_missing(false)
        .disable_statement_logging();
    let mut connection = options
        .connect()
        .await
        .map_err(|error| StoreError::opening(copy, error))?;
    hand::borrow(&mut connection).await?;
    sqlx::query("UPDATE queue_mark SET copied_at = ?")
        .bind(text(now))
        .execute(&mut connection)
        .await?;
    hand::give_back(&mut connection).await?;
    let found: String = sqlx::query_scalar("PRAGMA integrity_check")
        .fetch_one(&mut connection)
        .await?;
    connection.close().await?;
    if found == "ok" {
        Ok(())
    } else {
        Err(StoreError::Unreadable(format!(
            "the copy is damaged: {found}"
        )))
    }
}
