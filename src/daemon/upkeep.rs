//! The queue's upkeep: old rows go after `retention`, a large `-wal` is cut back, and the epoch
//! file is kept fresh. A little at a time.

use std::time::Duration;

use tracing::{info, warn};

use super::report;
use super::task::Round;
use crate::model::{UtcMillis, counted};
use crate::store::{Prune, Store, StoreError};

/// Between two chunks: producers get their turn.
const CHUNK_PAUSE: Duration = Duration::from_millis(50);
/// From the end of one walk through old rows to the next.
const WALK_INTERVAL: Duration = Duration::from_secs(600);
/// The epoch file is never older than this while anything happens.
const NOTE_INTERVAL: Duration = Duration::from_secs(300);
/// How often the size of the `-wal` is looked at.
const WAL_INTERVAL: Duration = Duration::from_secs(60);
/// Between two tries to cut it while readers are in it.
const WAL_PAUSE: Duration = Duration::from_secs(1);
/// How long the first try waits for the readers to leave, and no producer can write; doubles to
/// `WAL_PATIENCE_MAX`, which is enough for readers that stay half as long each, however they
/// overlap.
const WAL_PATIENCE: Duration = Duration::from_millis(50);
const WAL_PATIENCE_MAX: Duration = Duration::from_millis(800);
/// Tries in a row; after that a reader is one that does not leave.
const WAL_TRIES_MAX: u32 = 8;

/// How far it has come.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    retention: Option<Duration>,
    prune: Prune,
    prune_at: Option<UtcMillis>,
    note_at: Option<UtcMillis>,
    wal_at: Option<UtcMillis>,
    /// Cuts of a large `-wal` in a row that somebody's reading has kept from being made.
    wal_tries: u32,
    seen: Option<(i64, i64)>,
}

impl Upkeep {
    pub(super) fn new(retention: Option<Duration>) -> Self {
        Self {
            retention,
            ..Self::default()
        }
    }

    /// Old rows go after this from now on.
    pub(super) fn apply(&mut self, retention: Option<Duration>) {
        self.retention = retention;
    }

    /// The clock was moved by this many milliseconds.
    pub(super) fn move_times(&mut self, by_ms: i64) {
        for at in [&mut self.prune_at, &mut self.note_at, &mut self.wal_at] {
            *at = at.map(|at| at.moved(by_ms));
        }
    }

    /// One chunk of old rows, the `-wal` and the epoch file, where they are due.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn pass(
        &mut self,
        store: &Store,
        round: &mut Round,
    ) -> Result<(), StoreError> {
        let now = round.now.utc;
        if is_due(self.wal_at, now) {
            self.bound_wal(store, now).await?;
        }
        if let Some(at) = self.wal_at {
            round.wake(at);
        }
        if is_due(self.note_at, now) {
            self.note_at = Some(now + NOTE_INTERVAL);
            self.raise_epoch(store).await?;
        }
        let Some(retention) = self.retention else {
            return Ok(());
        };
        if is_due(self.prune_at, now) {
            self.prune(store, retention, now).await?;
        }
        if let Some(at) = self.prune_at {
            round.wake(at);
        }
        Ok(())
    }

    async fn bound_wal(&mut self, store: &Store, now: UtcMillis) -> Result<(), StoreError> {
        let tries = self.wal_tries;
        let patience = (WAL_PATIENCE * (1 << tries.min(8))).min(WAL_PATIENCE_MAX);
        let is_small = store.bound_wal(patience).await?;
        if is_small || tries + 1 >= WAL_TRIES_MAX {
            self.wal_tries = 0;
            self.wal_at = Some(now + WAL_INTERVAL);
        } else {
            self.wal_tries = tries + 1;
            self.wal_at = Some(now + WAL_PAUSE);
        }
        Ok(())
    }

    async fn raise_epoch(&mut self, store: &Store) -> Result<(), StoreError> {
        match store.raise_epoch(self.seen).await {
            Ok(seen) => self.seen = Some(seen),
            // The next claim tries again, and nothing leaves without it.
            Err(error @ StoreError::EpochFile { .. }) => warn!("{}", report::chain(&error)),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn prune(
        &mut self,
        store: &Store,
        retention: Duration,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let cutoff = now.before(retention);
        let next = match store.prune(self.prune.clone(), cutoff, now).await {
            Ok(next) => next,
            Err(error) if error.is_passing() => {
                warn!("cannot delete old requests yet: {error}");
                self.prune_at = Some(now + WALK_INTERVAL);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if next.done {
            tell_deleted(&next, retention);
            self.prune = Prune::default();
            self.prune_at = Some(now + WALK_INTERVAL);
        } else {
            self.prune = next;
            self.prune_at = Some(now + CHUNK_PAUSE);
        }
        Ok(())
    }
}

fn is_due(at: Option<UtcMillis>, now: UtcMillis) -> bool {
    at.is_none_or(|at| at <= now)
}

fn tell_deleted(deleted: &Prune, retention: Duration) {
    if deleted.requests + deleted.batches > 0 {
        info!(
            requests.deleted = deleted.requests,
            batches.deleted = deleted.batches,
            "deleted {} and {} older than {}",
            counted(deleted.requests, "request"),
            counted(deleted.batches, "batch"),
            humantime::format_duration(retention)
        );
    }
}
