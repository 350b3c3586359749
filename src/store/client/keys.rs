//! What is known of keys that the cloud refused, for a command that asks the cloud too.

use sqlx::Connection;

use super::QueueClient;
use crate::store::StoreError;
use crate::store::sqlite::hand;
use crate::store::sqlite::holds::{self, REFUSED_KEYS, RefusedKey, RefusedKeyRecord};

impl QueueClient {
    /// Keys that were refused last, one for each secret.
    pub async fn refused_keys(&mut self) -> Result<Vec<RefusedKey>, StoreError> {
        let found: Vec<RefusedKeyRecord> = sqlx::query_as(REFUSED_KEYS)
            .fetch_all(&mut self.connection)
            .await?;
        Ok(found
            .into_iter()
            .filter_map(RefusedKeyRecord::into_key)
            .collect())
    }

    /// Counts a refusal, so that the daemon's next start knows of it.
    pub async fn note_refused_key(&mut self, refused: &RefusedKey) -> Result<(), StoreError> {
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        hand::borrow(&mut tx).await?;
        holds::note_refused_key(&mut tx, refused).await?;
        hand::give_back(&mut tx).await?;
        Ok(tx.commit().await?)
    }
}
