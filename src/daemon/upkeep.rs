//! The queue's upkeep: old rows go after `retention`, a large `-wal` is cut back, and the epoch
//! file is kept fresh. A little at a time.
//!
//! With `export_before_prune` each chunk of old rows is written to a file first, in a thread of its
//! own, because a file system may hang; it is deleted once it is on the disk. A crash in between means that
//! it is written twice.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot::{self, error::TryRecvError};
use tracing::{info, warn};

use super::report;
use super::task::Round;
use crate::model::{UtcMillis, counted};
use crate::settings::QueueSettings;
use crate::store::{ExportNote, Exported, Prune, Store, StoreError, write_export};

/// Between two chunks: producers get their turn.
const CHUNK_PAUSE: Duration = Duration::from_millis(50);
/// From the begin of writing a chunk down to the first look whether it is on the disk.
const WRITE_PAUSE: Duration = Duration::from_millis(10);
/// Writing that lasts longer than this hangs, as far as anybody can tell.
const WRITE_TIME: Duration = Duration::from_secs(60);
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
    export_to: Option<PathBuf>,
    /// A chunk that is being written.
    export: Option<Export>,
    /// What the queue says of it; none: not known.
    noted: Option<ExportNote>,
    prune: Prune,
    prune_at: Option<UtcMillis>,
    note_at: Option<UtcMillis>,
    wal_at: Option<UtcMillis>,
    /// Cuts of a large `-wal` in a row that somebody's reading has kept from being made.
    wal_tries: u32,
    seen: Option<(i64, i64)>,
}

/// A chunk of old rows on its way into a file.
#[derive(Debug)]
struct Export {
    dir: PathBuf,
    cutoff: UtcMillis,
    exported: Arc<Exported>,
    begun: UtcMillis,
    /// What came of it. The end of the daemon does not wait for it.
    written: oneshot::Receiver<Result<(), StoreError>>,
}

impl Upkeep {
    pub(super) fn new(settings: &QueueSettings) -> Self {
        Self {
            retention: settings.retention,
            export_to: settings.export_before_prune.clone(),
            ..Self::default()
        }
    }

    /// Old rows go by this from now on.
    pub(super) fn apply(&mut self, settings: &QueueSettings) {
        self.retention = settings.retention;
        self.export_to.clone_from(&settings.export_before_prune);
        self.noted = None;
        self.prune_at = None;
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
        if self.noted.is_none() {
            self.note(store, None, now).await?;
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
        let pruned = match self.export.take() {
            Some(export) => self.prune_exported(store, export, now).await,
            None => self.prune_next(store, now.before(retention), now).await,
        };
        let next = match pruned {
            Ok(Some(next)) => next,
            Ok(None) => return Ok(()),
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

    /// Deletes the next chunk, or begins to write it down first. None: it is being written.
    async fn prune_next(
        &mut self,
        store: &Store,
        cutoff: UtcMillis,
        now: UtcMillis,
    ) -> Result<Option<Prune>, StoreError> {
        let Some(dir) = self.export_to.clone() else {
            return store.prune(self.prune.clone(), cutoff, now).await.map(Some);
        };
        let exported = store.before_prune(&self.prune, cutoff, now).await?;
        if exported.lines.is_empty() {
            let next = store.prune_exported(self.prune.clone(), cutoff, &exported, now);
            return next.await.map(Some);
        }
        let exported = Arc::new(exported);
        let (to, lines) = (dir.clone(), Arc::clone(&exported));
        let (tell, written) = oneshot::channel();
        let writing = std::thread::Builder::new().name("export".to_owned());
        // If there is no thread for it, `tell` is dropped, which reads as a thread that has ended.
        let _ = writing.spawn(move || {
            // Nobody listens any more if the daemon ends.
            let _ = tell.send(write_export(&to, &lines, now));
        });
        self.export = Some(Export {
            dir,
            cutoff,
            exported,
            begun: now,
            written,
        });
        self.prune_at = Some(now + WRITE_PAUSE);
        Ok(None)
    }

    /// Deletes a chunk that has been written down. None: it has not been, or not yet.
    async fn prune_exported(
        &mut self,
        store: &Store,
        mut export: Export,
        now: UtcMillis,
    ) -> Result<Option<Prune>, StoreError> {
        let written = match export.written.try_recv() {
            Ok(written) => written,
            Err(TryRecvError::Empty) => {
                self.wait_for(store, export, now).await?;
                return Ok(None);
            }
            Err(TryRecvError::Closed) => Err(StoreError::Unusable {
                path: export.dir.clone(),
                source: std::io::Error::other("the thread that wrote it has ended"),
            }),
        };
        if let Err(error) = written {
            warn!(
                "ended requests cannot be written to {}, so they are not deleted: {}",
                export.dir.display(),
                report::chain(&error)
            );
            self.prune_at = Some(now + WALK_INTERVAL);
            self.note(store, Some(report::chain(&error)), now).await?;
            return Ok(None);
        }
        self.note(store, None, now).await?;
        let so_far = self.prune.clone();
        let next = store.prune_exported(so_far, export.cutoff, &export.exported, now);
        next.await.map(Some)
    }

    /// It is looked at again when it has lasted twice as long.
    async fn wait_for(
        &mut self,
        store: &Store,
        export: Export,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let lasted = now.since(export.begun);
        self.prune_at = Some(now + lasted.clamp(CHUNK_PAUSE, WRITE_TIME));
        let why = format!(
            "writing to {} has not ended since {}",
            export.dir.display(),
            export.begun
        );
        self.export = Some(export);
        let is_known = self.noted.as_ref().is_some_and(|note| note.error.is_some());
        if lasted > WRITE_TIME && !is_known {
            warn!("ended requests are not deleted: {why}");
            self.note(store, Some(why), now).await?;
        }
        Ok(())
    }

    /// Notes for `status` and `db prune` what became of the last try.
    async fn note(
        &mut self,
        store: &Store,
        error: Option<String>,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let note = ExportNote {
            dir: self.export_to.as_ref().map(|dir| dir.display().to_string()),
            failed_at: error.is_some().then(|| now.to_string()),
            error,
        };
        if self.noted.as_ref() != Some(&note) {
            store.note_export(&note).await?;
            self.noted = Some(note);
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
