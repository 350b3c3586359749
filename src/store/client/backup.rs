//! What the `db` commands do to a queue while a daemon may be running on it: copy and prune.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};

use crate::model::UtcMillis;
use crate::store::Exported;
use crate::store::StoreError;
use crate::store::sqlite::upkeep::{self, Prune};
use crate::store::sqlite::{file, text, write_guard};

pub(super) async fn backup(
    connection: &mut SqliteConnection,
    queue: &Path,
    to: &Path,
    now: UtcMillis,
) -> Result<(), StoreError> {
    if file::id_of(to).is_ok_and(|id| file::id_of(queue).is_ok_and(|own| own == id)) {
        return Err(StoreError::Refused(format!(
            "{} is the queue itself; name another file for the copy",
            to.display()
        )));
    }
    let partial = file::beside(to, ".partial");
    let outcome = write_backup(connection, &partial, to, now).await;
    if outcome.is_err() {
        // What is wrong has been said; a rest of the copy helps nobody.
        let _ = fs::remove_file(&partial);
    }
    outcome
}

async fn write_backup(
    connection: &mut SqliteConnection,
    partial: &Path,
    to: &Path,
    now: UtcMillis,
) -> Result<(), StoreError> {
    create_private(partial).map_err(|error| StoreError::unusable(to, error))?;
    sqlx::query("VACUUM INTO ?")
        .bind(partial.to_string_lossy())
        .execute(&mut *connection)
        .await?;
    mark(partial, now).await?;
    put_in_place(partial, to).map_err(|error| StoreError::unusable(to, error))
}

/// An empty file that only its owner reads. SQLite takes it, and so its mode.
pub(super) fn create_private(path: &Path) -> std::io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

/// Syncs the file and gives it its name in one step.
pub(super) fn put_in_place(partial: &Path, to: &Path) -> std::io::Result<()> {
    File::open(partial)?.sync_all()?;
    fs::rename(partial, to)?;
    File::open(file::folder_of(to))?.sync_all()
}

pub(super) async fn last_intent(
    connection: &mut SqliteConnection,
) -> Result<Option<UtcMillis>, StoreError> {
    let last: Option<i64> = sqlx::query_scalar(
        "SELECT intent_steady_ms + (SELECT clock_set_ms FROM queue_mark) FROM batches ORDER BY id DESC LIMIT 1",
    )
    .fetch_optional(&mut *connection)
    .await?;
    Ok(last.map(UtcMillis))
}

pub(super) async fn prune(
    connection: &mut SqliteConnection,
    so_far: Prune,
    cutoff: UtcMillis,
    now: UtcMillis,
    exported: Option<&Exported>,
) -> Result<Prune, StoreError> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    write_guard::acquire(&mut tx).await?;
    let next = upkeep::prune_chunk(&mut tx, so_far, cutoff, now, exported).await?;
    write_guard::release(&mut tx).await?;
    tx.commit().await?;
    upkeep::shrink(&mut *connection).await?;
    Ok(next)
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
    write_guard::acquire(&mut connection).await?;
    sqlx::query("UPDATE queue_mark SET copied_at = $1")
        .bind(text(now))
        .execute(&mut connection)
        .await?;
    write_guard::release(&mut connection).await?;
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
