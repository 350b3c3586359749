//! Keeping the queue: old rows go after `retention`, a large `-wal` is cut back, and the note beside the queue is kept fresh.
//! A little at a time.

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
/// The note beside the queue is never older than this while anything happens, nor has the `-wal` been large for longer.
const NOTE_INTERVAL: Duration = Duration::from_secs(300);

/// Where the daemon stands with it.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    pub(super) retention: Option<Duration>,
    prune: Prune,
    prune_at: Option<UtcMillis>,
    note_at: Option<UtcMillis>,
    seen: Option<(i64, i64)>,
}

impl Keeping {
    pub(super) fn new(retention: Option<Duration>) -> Self {
        Self { retention, ..Self::default() }
    }
}

impl Dispatcher {
    /// One chunk of old rows, the `-wal` and the note, where they are due.
    pub(super) async fn keep_pass(&mut self, round: &mut Round, now: UtcMillis) -> Result<(), StoreError> {
        let is_due =
            |at: Option<UtcMillis>, longest: Duration| at.is_none_or(|at| at <= now || at.since(now) > longest);
        if is_due(self.keeping.note_at, NOTE_INTERVAL) {
            self.keeping.note_at = Some(now + NOTE_INTERVAL);
            self.store.bound_wal().await?;
            match self.store.raise_epoch(self.keeping.seen).await {
                Ok(seen) => self.keeping.seen = Some(seen),
                // The next claim tries again, and nothing leaves without it.
                Err(error @ StoreError::Unnoted { .. }) => warn!("{}", report::chain(&error)),
                Err(error) => return Err(error),
            }
        }
        let Some(retention) = self.keeping.retention else { return Ok(()) };
        if is_due(self.keeping.prune_at, WALK_INTERVAL) {
            self.prune(retention, now).await?;
        }
        self.keeping.prune_at.into_iter().for_each(|at| round.wake(at));
        Ok(())
    }

    async fn prune(&mut self, retention: Duration, now: UtcMillis) -> Result<(), StoreError> {
        let keeping = &mut self.keeping;
        let next = match self.store.prune(keeping.prune.clone(), now.before(retention), now).await {
            Ok(next) => next,
            Err(error) if error.is_passing() => {
                warn!("old requests stay for now: {error}");
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
                    "{} requests and {} batches older than {} deleted",
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
