//! The queue, for the rest of the crate: what can be asked and told, by event. Knows nothing of HTTP,
//! and this page nothing of SQL.
//!
//! `Store` is the daemon's side: here is what the daemon can do, each in one transaction or one
//! read, and how the file is opened and kept is in `sqlite`. `QueueClient` is the side of the
//! commands, which are producers and readers like any other. All SQL is in `sqlite` and `client`,
//! in plain functions that take a connection.
//!
//! Nothing in this process opens the database, its `-wal` or its `-shm` by hand once SQLite has,
//! and closes it again: that drops SQLite's POSIX locks, and the next producer to leave would
//! delete the live `-wal`. The one handle that the lock needs is never closed (`sqlite::file`).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::lifecycle::Step;
use crate::model::{
    Batch, BatchId, Crowd, DueBatch, Head, Hold, HoldKind, Lane, ListedServer, OrderId, OrderNews,
    Origin, PowerAction, RequestId, ServerId, TargetName, UtcMillis,
};
use sqlite::{
    batches, claim, clocks, epoch, export, export_file, gate, guard, holds, intake, orders, record,
    servers, snapshot, upkeep,
};

pub mod client;
mod error;
mod sqlite;

pub use client::QueueClient;
pub use error::StoreError;
pub use sqlite::{
    Changes, Claim, CountedCall, DaemonInfo, DueFilter, DueTarget, EndedCounts, ExportChunk,
    ExportNote, ExportPlace, ExportSpan, Exported, GoneChunk, GuardLimit, Hands, HeldPlace,
    InventoryNote, InventorySync, KnownOrder, LastClocks, NewWave, NotedPace, Prune, QueueLock,
    RefusedKey, Restored, Running, SEEN_AT_AGE_MAX, SERVERS_CHUNK, Snapshot, SnapshotQuery, Store,
    StoreOptions, TakenIn, TargetNews, TargetStatus, Unapproved, Which, daemon_on,
};
pub(crate) use sqlite::{beside, folder_of};

/// Appends what is `exported` to the file of this day in `dir`, and returns once it is on the disk.
///
/// # Errors
/// `Unusable`.
pub fn write_export(dir: &Path, exported: &Exported, now: UtcMillis) -> Result<(), StoreError> {
    let path = export_file::path_of(dir, now);
    export_file::append(&path, &exported.lines).map_err(|error| StoreError::unusable(&path, error))
}

// What a round reads and moves.
impl Store {
    /// Makes sure that this is still the queue that was opened, and still this daemon's, and reads
    /// what a round needs.
    ///
    /// # Errors
    /// Those of `check_identity`.
    pub async fn snapshot(
        &self,
        asked: &SnapshotQuery<'_>,
        now: UtcMillis,
    ) -> Result<Snapshot, StoreError> {
        let mut writer = self.writer().await;
        self.require_same_files(&mut writer).await?;
        let snapshot = snapshot::read(&mut writer, asked, now).await?;
        self.require_mark(&snapshot.mark)?;
        Ok(snapshot)
    }

    /// As `snapshot`, of a queue that may be another daemon's.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn peek(
        &self,
        asked: &SnapshotQuery<'_>,
        now: UtcMillis,
    ) -> Result<Snapshot, StoreError> {
        snapshot::read(&mut *self.writer().await, asked, now).await
    }

    /// Lets out what is due, expires what is too old, cancels what waited in vain: one chunk of
    /// each.
    pub async fn take_in(
        &self,
        default_ttl: Option<Duration>,
        now: UtcMillis,
    ) -> Result<TakenIn, StoreError> {
        let mut writer = self.writer().await;
        let next_at = intake::next_due_at(&mut writer, default_ttl).await?;
        if next_at.is_none_or(|at| at > now) {
            return Ok(TakenIn {
                next_at,
                ..TakenIn::default()
            });
        }
        let mut tx = self.begin(&mut writer).await?;
        let taken_in = intake::take_in(&mut tx, default_ttl, now).await?;
        tx.commit().await?;
        Ok(taken_in)
    }

    /// Lets the next held requests behind `after` into their lanes that nothing of their label holds
    /// any more: a chunk. Returns the last one looked at; none at the end.
    pub async fn release_held(
        &self,
        after: &HeldPlace,
        now: UtcMillis,
    ) -> Result<Option<HeldPlace>, StoreError> {
        let mut writer = self.writer().await;
        if !gate::is_anything_held(&mut writer).await? {
            return Ok(None);
        }
        let mut tx = self.begin(&mut writer).await?;
        let last = gate::release_held(&mut tx, after, now).await?;
        tx.commit().await?;
        Ok(last)
    }

    /// Ends requests on their way that no open batch carries: somebody wrote into the ledgers, and
    /// nobody would ever ask what became of them. Returns how many that were.
    pub async fn end_stranded(&self, now: UtcMillis) -> Result<EndedCounts, StoreError> {
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        let ended = intake::end_stranded(&mut tx, now).await?;
        tx.commit().await?;
        Ok(ended)
    }

    /// Rejects what is queued to stop or reboot one of `protected`. Returns how many requests that
    /// were.
    pub async fn reject_protected(
        &self,
        target: &TargetName,
        protected: &[ServerId],
        now: UtcMillis,
    ) -> Result<EndedCounts, StoreError> {
        let mut writer = self.writer().await;
        let found = intake::find_protected(&mut writer, target, protected).await?;
        if found.is_empty() {
            return Ok(EndedCounts::new());
        }
        let mut tx = self.begin(&mut writer).await?;
        let ended = intake::reject_protected(&mut tx, &found, now).await?;
        tx.commit().await?;
        Ok(ended)
    }

    /// The next targets that requests name which are ready or parked, behind `after` in the order of
    /// names; at most `limit`.
    pub async fn targets_after(
        &self,
        after: &str,
        limit: u32,
    ) -> Result<Vec<TargetName>, StoreError> {
        intake::targets_after(&mut *self.writer().await, after, limit).await
    }
}

// Intents and their outcomes.
impl Store {
    /// The first requests of each lane that may go, at most `each`, in the order in which they would
    /// be claimed. Those that may not are parked.
    pub async fn heads(
        &self,
        lanes: &[&Lane],
        each: u32,
        now: UtcMillis,
    ) -> Result<Vec<Head>, StoreError> {
        let mut writer = self.writer().await;
        let mut heads = Vec::new();
        for lane in lanes {
            heads.extend(claim::heads(self, &mut writer, lane, each, now).await?);
        }
        Ok(heads)
    }

    /// Lets requests wait, each until a time of its own and for a reason: their servers are busy
    /// with something else, or could not be read.
    pub async fn put_off(&self, waits: &[(RequestId, UtcMillis, &str)]) -> Result<(), StoreError> {
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        claim::put_off(&mut tx, waits).await?;
        tx.commit().await
    }

    /// Stores the intent: a batch of the lane's first requests, or of some of them, synced before
    /// this returns.
    ///
    /// Those of them that cannot go, because an earlier request of their server is not over, are
    /// parked. `None` if nobody is left, if the lane is held, if one of `barred` is among them, or if
    /// its guard is exceeded: a pause, or rows of a stranger, may have come in at this very moment. The batch's own next
    /// step, should the daemon die before the call's answer is stored, is due at once. Before this
    /// returns, the epoch file knows of the claim, and the queue is still the one that was begun.
    ///
    /// # Errors
    /// Those of the store. `EpochFile` means that the claim was undone, `Replaced` that it is in
    /// no queue any more: in both cases nothing may be sent.
    pub async fn claim(&self, claim: &Claim<'_>) -> Result<Option<Batch>, StoreError> {
        self.retry_epoch_file()?;
        let mut writer = self.writer().await;
        let Some(batch) = claim::claim(self, &mut writer, claim).await? else {
            return Ok(None);
        };
        self.keep_members(&batch);
        self.require_same_files(&mut writer).await?;
        drop(writer);
        if let Err(error) = self.note_claim(&batch) {
            let undone = Step::not_begun(&batch, &error.to_string());
            self.record(&batch, &undone, claim.now).await?;
            return Err(error);
        }
        Ok(Some(batch))
    }

    /// Stores what follows from one answer, in one synced transaction.
    pub async fn record(
        &self,
        batch: &Batch,
        step: &Step,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        self.record_all(&[(batch, step)], now).await
    }

    /// Stores what follows from several answers, each about a batch of its own: all of it in one
    /// synced transaction, or none.
    pub async fn record_all(
        &self,
        steps: &[(&Batch, &Step)],
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        for (batch, step) in steps {
            record::check_moves(batch, step)?;
        }
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        for (batch, step) in steps {
            record::record(&mut tx, batch, step, now).await?;
        }
        tx.commit().await?;
        for (batch, step) in steps {
            if !record::leaves_members_as_claimed(step) {
                self.forget_members(batch.id);
            }
        }
        Ok(())
    }
}

// Open batches, and what earlier ones tell.
impl Store {
    /// A target's open batches in the order in which their next steps are due.
    pub async fn due_batches(
        &self,
        due: &DueTarget,
        filter: &DueFilter<'_>,
    ) -> Result<Vec<DueBatch>, StoreError> {
        batches::due_batches(&mut *self.writer().await, due, filter).await
    }

    /// The batches of this target and action whose jobs are followed, and asked for later than
    /// `now`.
    pub async fn waiting_jobs(
        &self,
        target: &TargetName,
        action: PowerAction,
        now: UtcMillis,
    ) -> Result<Vec<DueBatch>, StoreError> {
        batches::waiting_jobs(&mut *self.writer().await, target, action, now).await
    }

    /// Moves the next looks at these open batches, all in one transaction. Losing it to a crash costs
    /// no more than a look at another time.
    pub async fn move_looks(&self, looks: &[(BatchId, UtcMillis)]) -> Result<(), StoreError> {
        if looks.is_empty() {
            return Ok(());
        }
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        batches::move_looks(&mut tx, looks).await?;
        tx.commit().await
    }

    /// The batch with those of its requests that are not settled, and where it was sent. None if it
    /// is done.
    pub async fn load_batch(&self, id: BatchId) -> Result<Option<(Batch, Origin)>, StoreError> {
        let mut writer = self.writer().await;
        batches::load_batch(self, &mut writer, id).await
    }

    /// Calls after `since` that may have had an effect (not those that were not sent, or refused):
    /// when, as the present clock would have shown it, and for how many servers.
    pub async fn spent(
        &self,
        target: &TargetName,
        action: PowerAction,
        since: UtcMillis,
    ) -> Result<Vec<(UtcMillis, u32)>, StoreError> {
        batches::spent(&mut *self.writer().await, target, action, since).await
    }

    /// Calls after `since` that a guard counts: those that carried unapproved requests and may have
    /// had an effect.
    pub async fn unapproved_calls(
        &self,
        target: &TargetName,
        action: PowerAction,
        since: UtcMillis,
    ) -> Result<Vec<CountedCall>, StoreError> {
        batches::unapproved_calls(&mut *self.writer().await, target, action, since).await
    }

    /// How many requests are due and unapproved, counted up to `most`.
    pub async fn count_unapproved(
        &self,
        wanted: Unapproved<'_>,
        most: u64,
    ) -> Result<u64, StoreError> {
        guard::count_due(&mut *self.writer().await, wanted, most).await
    }

    /// Whose the first `most` of them are, the largest groups first.
    pub async fn unapproved_crowds(
        &self,
        wanted: Unapproved<'_>,
        most: u64,
    ) -> Result<Vec<Crowd>, StoreError> {
        guard::crowds(&mut *self.writer().await, wanted, most).await
    }

    /// Lets the queue follow the clock, if that is left to do.
    pub async fn follow_clock(&self) -> Result<(), StoreError> {
        let (_, set_ms) = self.clocks();
        if set_ms == 0 {
            return Ok(());
        }
        self.begin(&mut *self.writer().await).await?.commit().await
    }

    /// The clocks when a daemon wrote last; none before the first time.
    pub async fn last_clocks(&self) -> Result<Option<LastClocks>, StoreError> {
        clocks::last(&mut *self.writer().await, self.boot()).await
    }

    /// Makes the next looks of a target's open batches due.
    pub async fn look_at_once(
        &self,
        target: &TargetName,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        batches::look_at_once(&mut tx, target, now).await?;
        tx.commit().await
    }

    /// How many batches are open, by target.
    pub async fn unfinished_batches(&self) -> Result<Vec<(TargetName, i64)>, StoreError> {
        batches::unfinished_batches(&mut *self.writer().await).await
    }

    /// How long the last jobs of this target and action took, newest first, at most `limit`.
    pub async fn job_history(
        &self,
        target: &TargetName,
        action: PowerAction,
        limit: usize,
    ) -> Result<Vec<Duration>, StoreError> {
        batches::job_history(&mut *self.writer().await, target, action, limit).await
    }

    /// When the last `count` submit calls of a target were over, in the order in which they were
    /// made. One whose answer is not known may have arrived only just now, and so may those that an
    /// older copy lacks have, when it was found.
    pub async fn recent_calls(
        &self,
        target: &TargetName,
        count: u32,
        now: UtcMillis,
    ) -> Result<Vec<UtcMillis>, StoreError> {
        batches::recent_calls(&mut *self.writer().await, target, count, now).await
    }
}

// Holds, refused keys and targets.
impl Store {
    /// Removes the holds whose time has passed, as far as they may concern a configured target.
    pub async fn end_past_holds(&self, now: UtcMillis) -> Result<(), StoreError> {
        let mut writer = self.writer().await;
        let past = holds::find_past_holds(&mut writer, now).await?;
        if past.is_empty() {
            return Ok(());
        }
        let mut tx = self.begin(&mut writer).await?;
        holds::delete_holds(&mut tx, &past).await?;
        tx.commit().await
    }

    /// Puts a hold, or renews the one of the same target, action and kind; its `since` stays.
    pub async fn put_hold(&self, hold: &Hold) -> Result<(), StoreError> {
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        holds::put_hold(&mut tx, hold).await?;
        tx.commit().await
    }

    /// Puts and renews some holds and removes others, together.
    pub async fn exchange_holds(&self, put: &[Hold], over: &[Hold]) -> Result<(), StoreError> {
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        holds::exchange_holds(&mut tx, put, over).await?;
        tx.commit().await
    }

    /// Removes the holds of this kind on a target. False if there was none.
    pub async fn lift_hold(&self, target: &TargetName, kind: HoldKind) -> Result<bool, StoreError> {
        let mut writer = self.writer().await;
        if !holds::is_held(&mut writer, target, kind).await? {
            return Ok(false);
        }
        let mut tx = self.begin(&mut writer).await?;
        holds::lift_hold(&mut tx, target, kind).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Removes the hold of a budget that is looked at again; one that still binds is put again by
    /// the next try.
    pub async fn lift_budget(
        &self,
        target: &TargetName,
        action: PowerAction,
    ) -> Result<(), StoreError> {
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        holds::lift(&mut tx, Some(target), Some(action), HoldKind::Budget).await?;
        tx.commit().await
    }

    /// Keys that were refused last, one for each secret. A row that a stranger spoilt says nothing.
    pub async fn refused_keys(&self) -> Result<Vec<RefusedKey>, StoreError> {
        holds::refused_keys(&mut *self.writer().await).await
    }

    /// Remembers that a key was refused, in place of what was known of it with this secret.
    pub async fn note_refused_key(&self, refused: &RefusedKey) -> Result<(), StoreError> {
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        holds::note_refused_key(&mut tx, refused).await?;
        tx.commit().await
    }

    /// What was known of a key with this secret says nothing any more.
    pub async fn forget_refused_key(&self, key: &str, secret: &str) -> Result<(), StoreError> {
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        holds::forget_refused_key(&mut tx, key, secret).await?;
        tx.commit().await
    }

    /// Holds these targets, which the config does not have. Returns those that were not held yet.
    pub async fn hold_unknown_targets(
        &self,
        unknown: &[TargetName],
        now: UtcMillis,
    ) -> Result<Vec<TargetName>, StoreError> {
        if unknown.is_empty() {
            return Ok(Vec::new());
        }
        let mut writer = self.writer().await;
        let new = holds::not_yet_held(&mut writer, unknown).await?;
        if new.is_empty() {
            return Ok(new);
        }
        let mut tx = self.begin(&mut writer).await?;
        holds::hold_unknown_targets(&mut tx, &new, now).await?;
        tx.commit().await?;
        Ok(new)
    }

    /// Looks at the next `limit` holds of unknown targets behind the one with id `after`: lets go
    /// those whose target is among `configured`, or named by no unfinished request any more.
    /// Returns the last id looked at; none at the end.
    pub async fn lift_unknown_targets(
        &self,
        configured: &[TargetName],
        after: i64,
        limit: u32,
    ) -> Result<Option<i64>, StoreError> {
        let mut writer = self.writer().await;
        let page = holds::page_of_unknown_targets(&mut writer, configured, after, limit).await?;
        if !page.needless.is_empty() {
            let mut tx = self.begin(&mut writer).await?;
            holds::delete_holds(&mut tx, &page.needless).await?;
            tx.commit().await?;
        }
        Ok(page.last)
    }

    /// Stores what is known of a configured target, for `status`, for a prune and for the next
    /// start.
    pub async fn note_target(&self, status: &TargetStatus<'_>) -> Result<(), StoreError> {
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        holds::note_target(&mut tx, status).await?;
        tx.commit().await
    }

    /// What an earlier run had learned of this target's pace; none if it was another service,
    /// endpoint or project then.
    pub async fn noted_pace(
        &self,
        target: &TargetName,
        origin: &Origin,
    ) -> Result<Option<NotedPace>, StoreError> {
        holds::noted_pace(&mut *self.writer().await, target, origin).await
    }

    /// Forgets targets that the config no longer has.
    pub async fn forget_targets_except(&self, names: &[TargetName]) -> Result<(), StoreError> {
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        holds::forget_targets_except(&mut tx, names).await?;
        tx.commit().await
    }
}

// Orders with waves.
impl Store {
    /// The orders that are not done, in the order of their rows, as far as the snapshot knows of
    /// requests.
    ///
    /// A request that waits for one of a later wave does not keep its own wave from being over:
    /// otherwise both would wait for ever.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn open_orders(
        &self,
        seen: &Snapshot,
        now: UtcMillis,
    ) -> Result<Vec<KnownOrder>, StoreError> {
        orders::open_orders(&mut *self.writer().await, seen.last_id(), now).await
    }

    /// The orders that are done and have got more requests, among the next ones behind `after`, and
    /// the last one looked at; none at the end.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn joined_orders(
        &self,
        after: OrderId,
        seen: &Snapshot,
    ) -> Result<(Vec<OrderId>, Option<OrderId>), StoreError> {
        orders::joined_orders(&mut *self.writer().await, after, seen.last_id()).await
    }

    /// Reads a chunk of an order's requests: its servers are noted, requests without a time of
    /// expiry get the order's, those that may not leave yet are taken out of their lanes, and those
    /// of servers that have had their turn leave. An order that was done is open again.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn read_order(
        &self,
        id: OrderId,
        seen: &Snapshot,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        if orders::read_order(&mut tx, id, seen.last_id(), now).await? {
            tx.commit().await
        } else {
            tx.rollback().await
        }
    }

    /// Opens a wave, if `new` is given, and lets servers of the order go, as far as its wave has
    /// room: a chunk. Each goes with all of its requests of the order. Returns how many servers left
    /// of it; nothing is opened for nobody.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn let_servers_go(
        &self,
        id: OrderId,
        new: Option<NewWave>,
        now: UtcMillis,
    ) -> Result<u64, StoreError> {
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        let Some(taken) = orders::let_servers_go(&mut tx, id, new, now).await? else {
            tx.rollback().await?;
            return Ok(0);
        };
        tx.commit().await?;
        Ok(taken)
    }

    /// Stores what is known of an order that waits, with the hold that says why, or without one.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn note_order(
        &self,
        id: OrderId,
        news: &OrderNews,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        orders::note_order(&mut tx, id, news, now).await?;
        tx.commit().await
    }

    /// All requests of an order have ended.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn end_order(&self, id: OrderId, now: UtcMillis) -> Result<(), StoreError> {
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        orders::end_order(&mut tx, id, now).await?;
        tx.commit().await
    }
}

// The inventory of servers.
impl Store {
    /// What is known of the target's inventory.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn inventory_of(&self, target: &TargetName) -> Result<InventoryNote, StoreError> {
        servers::inventory_of(&mut *self.writer().await, target).await
    }

    /// Stores what a list showed at `at` of these servers, which are one chunk of it.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn note_servers(
        &self,
        target: &TargetName,
        listed: &[ListedServer],
        at: UtcMillis,
    ) -> Result<(), StoreError> {
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        servers::note_servers(&mut tx, target, listed, at).await?;
        tx.commit().await
    }

    /// Marks the servers behind `after` that a whole list lacked at `at`: those for whose ids
    /// `is_listed` is false. A chunk at a time; begin with an empty `after`. What was first seen
    /// after `at` is left alone.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn mark_gone(
        &self,
        target: &TargetName,
        after: &str,
        at: UtcMillis,
        is_listed: impl Fn(&str) -> bool,
    ) -> Result<GoneChunk, StoreError> {
        let mut writer = self.writer().await;
        let times = (at, self.clocks().0.map(|now| now.utc));
        let chunk = servers::find_gone(&mut writer, target, after, times, is_listed).await?;
        if chunk.gone.is_empty() {
            return Ok(chunk);
        }
        let mut tx = self.begin(&mut writer).await?;
        servers::mark_gone(&mut tx, target, &chunk.gone, at).await?;
        tx.commit().await?;
        Ok(chunk)
    }

    /// Stores when the target's list was last read in full, and why the last try failed.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn note_inventory(
        &self,
        target: &TargetName,
        note: &InventoryNote,
    ) -> Result<(), StoreError> {
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        servers::note_inventory(&mut tx, target, note).await?;
        tx.commit().await
    }

    /// A wish came true, or did not, because of `error`.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn end_sync(
        &self,
        id: i64,
        error: Option<&str>,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        servers::end_sync(&mut tx, id, error, now).await?;
        tx.commit().await
    }
}

// Upkeep.
impl Store {
    /// Starts watching the file for other programs' commits.
    pub fn changes(self: &Arc<Self>) -> Changes {
        Changes::watch(Arc::clone(self))
    }

    /// Begins a new epoch, and makes this daemon the queue's own. A copy, marked by `db backup`,
    /// older than the epoch file, another file than that which it was written for, or without one,
    /// has its requests put on hold and its ids moved past all that were ever given.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn begin_epoch(&self, now: UtcMillis) -> Result<Option<Restored>, StoreError> {
        let mut writer = self.writer().await;
        epoch::begin(self, &mut writer, now).await
    }

    /// Ends the epoch in order: a copy that was made before is an older one from now on.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn end_epoch(&self) -> Result<(), StoreError> {
        self.raise_epoch(None).await?;
        Ok(())
    }

    /// Raises the epoch if anything was written since `seen`; returns what is to be passed the next
    /// time.
    ///
    /// # Errors
    /// Those of the store, and `EpochFile`.
    pub async fn raise_epoch(&self, seen: Option<(i64, i64)>) -> Result<(i64, i64), StoreError> {
        let mut writer = self.writer().await;
        epoch::raise(self, &mut writer, seen).await
    }

    /// Fixes the last ids that SQLite keeps, if somebody has set them back or beyond all reason: no
    /// row could be inserted.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn fix_ids(&self, seen: &Snapshot) -> Result<(), StoreError> {
        if epoch::are_ids_possible(seen.last, self.high_water()) {
            return Ok(());
        }
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        epoch::fix_ids(&mut tx, self.high_water()).await?;
        tx.commit().await
    }

    /// Requests of batches that are done leave the line of their servers: some at a time, in quiet
    /// moments or once there are many. True if some have left: there may be more.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn leave_line(&self, seen: &Snapshot, is_quiet: bool) -> Result<bool, StoreError> {
        if !upkeep::may_leave_line(seen.lingering, is_quiet) {
            return Ok(false);
        }
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        let have_left = gate::leave_line(&mut tx).await?;
        tx.commit().await?;
        Ok(have_left)
    }

    /// Looks at one chunk more of what ended before `cutoff`.
    pub async fn prune(
        &self,
        so_far: Prune,
        cutoff: UtcMillis,
        now: UtcMillis,
    ) -> Result<Prune, StoreError> {
        self.prune_chunk(so_far, cutoff, now, None).await
    }

    /// As `prune`, of what was `exported` before, and is on the disk.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn prune_exported(
        &self,
        so_far: Prune,
        cutoff: UtcMillis,
        exported: &Exported,
        now: UtcMillis,
    ) -> Result<Prune, StoreError> {
        self.prune_chunk(so_far, cutoff, now, Some(exported)).await
    }

    async fn prune_chunk(
        &self,
        so_far: Prune,
        cutoff: UtcMillis,
        now: UtcMillis,
        exported: Option<&Exported>,
    ) -> Result<Prune, StoreError> {
        let mut writer = self.writer().await;
        let mut tx = self.begin(&mut writer).await?;
        let next = upkeep::prune_chunk(&mut tx, so_far.clone(), cutoff, now, exported).await?;
        // What is written and not deleted would be written again by each walk.
        let has_orphans = exported.is_some_and(Exported::has_orphans);
        if next.deleted_since(&so_far) || has_orphans {
            tx.commit().await?;
            upkeep::shrink(&mut writer).await?;
        } else {
            tx.rollback().await?;
        }
        Ok(next)
    }

    /// What the next chunk of a prune would delete: to be written down first.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn before_prune(
        &self,
        so_far: &Prune,
        cutoff: UtcMillis,
        now: UtcMillis,
    ) -> Result<Exported, StoreError> {
        export::before_prune(&mut *self.writer().await, so_far, cutoff, now).await
    }

    /// Notes where ended requests are written before they are deleted, and why that failed.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn note_export(&self, note: &ExportNote) -> Result<(), StoreError> {
        let mut writer = self.writer().await;
        if export::read_note(&mut writer).await? == *note {
            return Ok(());
        }
        let mut tx = self.begin(&mut writer).await?;
        export::write_note(&mut tx, note).await?;
        tx.commit().await
    }

    /// Cuts a `-wal` back that has grown beyond its limit. False if somebody was at work in it,
    /// longer than `patience`.
    ///
    /// SQLite itself does so only when this connection begins the file anew; producers' connections
    /// have no limit. While it waits, nobody else can write: so new readers read all that there is,
    /// and once the readers from before have left, and then those that came until all was copied,
    /// nobody is in the file any more.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn bound_wal(&self, patience: Duration) -> Result<bool, StoreError> {
        if !upkeep::is_wal_too_large(self.path()) {
            return Ok(true);
        }
        let mut writer = self.writer().await;
        upkeep::cut_wal(self, &mut writer, patience).await
    }
}
