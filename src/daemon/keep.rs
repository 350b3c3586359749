//! Keeping the queue: old rows go after `retention`, a large `-wal` is cut back, and the note
//! beside the queue is kept fresh. A little at a time.

use std::time::Duration;

use tracing::{info, warn};

use super::dispatch::{Dispatcher, Round};
use super::report;
use crate::model::UtcMillis;
use crate::store::{Prune, StoreError};

/// Between two chunks: producers get their turn.
const CHUNK_PAUSE: Duration = Duration::from_millis(50);
/// From the end of one walk through old rows to the next.
const WALK_INTERVAL: Duration = Duration::from_secs(600);
/// The note beside the queue is never older than this while anything happens.
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

/// Where the daemon stands with it.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    pub(super) retention: Option<Duration>,
    prune: Prune,
    prune_at: Option<UtcMillis>,
    note_at: Option<UtcMillis>,
    wal_at: Option<UtcMillis>,
    /// Cuts of a large `-wal` in a row that somebody's reading has kept from being made.
    wal_tries: u32,
    seen: Option<(i64, i64)>,
}

impl Keeping {
    pub(super) fn new(retention: Option<Duration>) -> Self {
        Self {
            retention,
            ..Self::default()
        }
    }

    /// The clock was moved by so many milliseconds.
    pub(super) fn move_times(&mut self, by_ms: i64) {
        for at in [&mut self.prune_at, &mut self.note_at, &mut self.wal_at] {
            *at = at.map(|at| at.moved(by_ms));
        }
    }
}

impl Dispatcher {
    /// One chunk of old rows, the `-wal` and the note, where they are due.
    pub(super) async fn keep_pass(
        &mut self,
        round: &mut Round,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let is_due = |at: Option<UtcMillis>| at.is_none_or(|at| at <= now);
        if is_due(self.keeping.wal_at) {
            self.bound_wal(now).await?;
        }
        self.keeping
            .wal_at
            .into_iter()
            .for_each(|at| round.wake(at));
        if is_due(self.keeping.note_at) {
            self.keeping.note_at = Some(now + NOTE_INTERVAL);
            match self.store.raise_epoch(self.keeping.seen).await {
                Ok(seen) => self.keeping.seen = Some(seen),
                // The next claim tries again, and nothing leaves without it.
                Err(error @ StoreError::Unnoted { .. }) => warn!("{}", report::chain(&error)),
                Err(error) => return Err(error),
            }
        }
        let Some(retention) = self.keeping.retention else {
            return Ok(());
        };
        if is_due(self.keeping.prune_at) {
            self.prune(retention, now).await?;
        }
        self.keeping
            .prune_at
            .into_iter()
            .for_each(|at| round.wake(at));
        Ok(())
    }

    async fn bound_wal(&mut self, now: UtcMillis) -> Result<(), StoreError> {
        let tries = self.keeping.wal_tries;
        let patience = (WAL_PATIENCE * (1 << tries.min(8))).min(WAL_PATIENCE_MAX);
        let is_small = self.store.bound_wal(patience).await?;
        let goes_on = !is_small && tries + 1 < WAL_TRIES_MAX;
        self.keeping.wal_tries = if goes_on { tries + 1 } else { 0 };
        self.keeping.wal_at = Some(now + if goes_on { WAL_PAUSE } else { WAL_INTERVAL });
        Ok(())
    }

    async fn prune(&mut self, retention: Duration, now: UtcMillis) -> Result<(), StoreError> {
        let keeping = &mut self.keeping;
        let next = match self
            .store
            .prune(keeping.prune.clone(), now.before(retention), now)
            .await
        {
            Ok(next) => next,
            Err(error) if error.is_passing() => {
                warn!("cannot delete old requests yet: {error}");
                keeping.prune_at = Some(now + WALK_INTERVAL);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if next.done {
            if next.requests + next.batches > 0 {
                info!(
                    requests.deleted = next.requests,
                    batches.deleted = next.batches,
                    "deleted {} requests and {} batches older than {}",
                    next.requests,
                    next.batches,
                    humantime::format_duration(retention)
                );
            }
            keeping.prune = Prune::default();
            keeping.prune_at = Some(now + WALK_INTERVAL);
        } else {
            keeping.prune = next;
            keeping.prune_at = Some(now + CHUNK_PAUSE);
        }
        Ok(())
    }
}
