//! Copies of the queue: taken when a daemon has ended, and put back when a later one has, as after
//! a lost disk. What the copy lacks the next daemon cannot know: it holds everything unfinished
//! until somebody decides.

use std::path::Path;

use super::Machine;
use crate::simulator::facts::Facts;
use crate::simulator::{Broken, connect};
use poweryard::store::QueueClient;
use poweryard::store::client::Access;

/// The queue's file as it was, and what was true then.
pub(super) struct Copy {
    file: Vec<u8>,
    facts: Facts,
    newest_entry: i64,
    /// Commits of daemons until then.
    commits: u64,
}

impl Machine<'_> {
    /// A daemon has ended: somebody may copy its queue now, or put the earlier copy back.
    pub(super) async fn copy_or_restore(&mut self) -> Result<(), Broken> {
        if !self.rng.permille(self.plan.rough.copies)
            || self.locked_until.is_some()
            || self.act_at.is_none()
        {
            return Ok(());
        }
        match self.copy.take() {
            Some(copy) if self.rng.permille(700) => self.restore(copy).await,
            _ => self.take_copy().await,
        }
    }

    async fn take_copy(&mut self) -> Result<(), Broken> {
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
            .execute(&mut self.connection)
            .await?;
        let file = std::fs::read(&self.path)
            .map_err(|error| Broken(format!("cannot copy the queue: {error}")))?;
        self.say(|| "somebody copies the queue".to_owned());
        self.copy = Some(Copy {
            file,
            facts: self.facts.clone(),
            newest_entry: self.seen.1,
            commits: self.fuse.commits(),
        });
        Ok(())
    }

    /// Nobody has the file open but the producers, and they reconnect.
    async fn restore(&mut self, copy: Copy) -> Result<(), Broken> {
        let elsewhere = self.path.with_file_name("elsewhere.db");
        let nothing = connect_to_new(&elsewhere).await?;
        let connection = std::mem::replace(&mut self.connection, nothing);
        sqlx::Connection::close(connection).await?;
        for ending in ["queue.db-wal", "queue.db-shm"] {
            let _ = std::fs::remove_file(self.path.with_file_name(ending));
        }
        if self.rng.permille(500) {
            let _ = std::fs::remove_file(&self.path);
        }
        std::fs::write(&self.path, &copy.file)
            .map_err(|error| Broken(format!("cannot restore: {error}")))?;
        let nothing = std::mem::replace(&mut self.connection, connect(&self.path).await?);
        sqlx::Connection::close(nothing).await?;
        let is_older = self.fuse.commits() > copy.commits;
        let now = self.moment();
        self.facts.restored(&copy.facts, is_older, now);
        self.seen = (self.fuse.commits(), copy.newest_entry);
        self.summary.restores += 1;
        let held = self.facts.awaits_release;
        self.say(|| format!("somebody puts the copy back; everything is to be held: {held}"));
        self.copy = Some(copy);
        Ok(())
    }

    /// An operator decides about what a restore put on hold: it may go, or is dropped.
    pub(super) async fn release(&mut self) -> Result<(), Broken> {
        if self.daemon.is_none() || !self.facts.awaits_release || self.locked_until.is_some() {
            return Ok(());
        }
        let failed =
            |error: poweryard::store::StoreError| Broken(format!("cannot release: {error}"));
        let dropped = self.rng.permille(500);
        let mut connection = QueueClient::open(&self.path, Access::Write)
            .await
            .map_err(failed)?;
        let released = connection.release(dropped).await.map_err(failed)?;
        connection.close().await.map_err(failed)?;
        self.say(|| format!("an operator releases what was restored: {released:?}"));
        self.acted = true;
        self.learn().await?;
        if released.is_none() {
            return Err(Broken(
                "a copy was put back, and nothing was held".to_owned(),
            ));
        }
        self.facts.awaits_release = false;
        self.wake_at = Some(self.now());
        self.idle_rounds = 0;
        Ok(())
    }
}

/// A connection to some other file.
async fn connect_to_new(path: &Path) -> Result<sqlx::SqliteConnection, Broken> {
    std::fs::write(path, [])
        .map_err(|error| Broken(format!("cannot write {}: {error}", path.display())))?;
    connect(path).await
}
