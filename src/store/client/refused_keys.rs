//! What is known of keys that the cloud refused, for a command that asks the cloud too.

use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use crate::store::StoreError;
use crate::store::sqlite::holds::{self, REFUSED_KEYS, RefusedKey, RefusedKeyRecord};
use crate::store::sqlite::write_guard;

pub(super) async fn refused_keys(
    connection: &mut SqliteConnection,
) -> Result<Vec<RefusedKey>, StoreError> {
    let found: Vec<RefusedKeyRecord> = sqlx::query_as(REFUSED_KEYS)
        .fetch_all(&mut *connection)
        .await?;
    Ok(found
        .into_iter()
        .filter_map(RefusedKeyRecord::into_key)
        .collect())
}

pub(super) async fn note_refused_key(
    connection: &mut SqliteConnection,
    refused: &RefusedKey,
) -> Result<(), StoreError> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    write_guard::acquire(&mut tx).await?;
    holds::note_refused_key(&mut tx, refused).await?;
    write_guard::release(&mut tx).await?;
    Ok(tx.commit().await?)
}
