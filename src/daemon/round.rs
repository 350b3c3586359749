//! The round: the order of the passes, from the take-in to the claim. One writer, no network.
//!
//! What the dispatcher keeps in memory is only what is being done right now (calls in flight,
//! answers not yet stored) and each target's pace, which it can rebuild from the queue.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tracing::warn;

use super::answers::AnswerPass;
use super::clock::Clocks;
use super::connect::Clouds;
use super::follow::{FollowPass, Picked};
use super::guards::{GuardWatch, Surroundings};
use super::held::HeldWalk;
use super::holds::Holds;
use super::intake::Intake;
use super::inventory::{Inventory, InventoryPass};
use super::ledger::{Ledger, Observers};
use super::open_batches::OpenBatches;
use super::orders::Orders;
use super::submit::{SubmitPass, Submits};
use super::target::keys::RefusedKeys;
use super::target::{self, Configured, Target, Targets};
use super::task::{Finished, GateSaid, Round};
use super::unknown_targets::UnknownTargets;
use super::upkeep::Upkeep;
use super::windows::WindowWatch;
use crate::model::{Batch, BatchId, Now, TargetName, UtcMillis, counted};
use crate::settings::Settings;
use crate::store::{EndedCounts, Snapshot, SnapshotQuery, Store, StoreError};

/// Between two chunks of ended requests that leave the lines of their servers.
const LEAVE_PAUSE: Duration = Duration::from_millis(50);

/// Decides what to do at this moment, and what follows from what was done.
pub struct Dispatcher {
    pub(super) store: Arc<Store>,
    pub(super) targets: Targets,
    pub(super) holds: Holds,
    held: HeldWalk,
    pub(super) windows: WindowWatch,
    pub(super) guards: GuardWatch,
    pub(super) orders: Orders,
    pub(super) keys: RefusedKeys,
    pub(super) intake: Intake,
    pub(super) submits: Submits,
    pub(super) unknown_targets: UnknownTargets,
    pub(super) upkeep: Upkeep,
    pub(super) inventory: Inventory,
    pub(super) ledger: Ledger,
    clocks: Clocks,
    batches: OpenBatches,
    /// Requests in flight that the start found without a batch, until somebody counts them.
    without_batch: EndedCounts,
}

// Its life.
impl Dispatcher {
    /// Begins with the queue as it is.
    ///
    /// # Errors
    /// Those of the store: also when it cannot be written.
    pub async fn new(
        store: Arc<Store>,
        settings: &Settings,
        clouds: Clouds,
        now: Now,
    ) -> Result<Self, StoreError> {
        let clocks = clocks_at_start(&store, now).await?;
        let now = clocks.dated(now).utc;
        let targets = load_targets(&store, settings, &clouds, now).await?;
        let names: Vec<TargetName> = targets.keys().cloned().collect();
        store.forget_targets_except(&names).await?;
        let without_batch = end_without_batch(&store, now).await?;
        let keys = RefusedKeys::load(Arc::clone(&store)).await?;
        let mut dispatcher = Self {
            targets,
            keys,
            holds: Holds::new(Arc::clone(&store)),
            held: HeldWalk::default(),
            windows: WindowWatch::default(),
            guards: GuardWatch::default(),
            orders: Orders::new(settings.waves.clone()),
            intake: Intake::new(Arc::clone(&store), settings.queue.default_ttl),
            submits: Submits::new(settings.batch.linger),
            unknown_targets: UnknownTargets::default(),
            upkeep: Upkeep::new(&settings.queue),
            inventory: Inventory::new(Arc::clone(&store)),
            ledger: Ledger::new(Arc::clone(&store)),
            clocks,
            batches: OpenBatches::default(),
            without_batch,
            store,
        };
        for step in dispatcher.keys.after_start(&dispatcher.targets, now) {
            step.carry_out(&mut dispatcher.holds, now).await?;
        }
        Ok(dispatcher)
    }

    /// From now on `observers` are told what is done.
    pub fn observe(&mut self, observers: Observers) {
        self.ledger.observe(observers);
        self.ledger.count(&std::mem::take(&mut self.without_batch));
    }

    /// Once true is stored here, no new intent is made. Shared with what hears that the daemon is
    /// to stop.
    pub fn halt(&self) -> Arc<AtomicBool> {
        self.submits.halt()
    }

    /// Answers that wait to be stored.
    pub fn unsaved(&self) -> usize {
        self.ledger.unsaved()
    }

    /// Those of them that came to submit calls: what a job or a look has shown can be asked for
    /// again.
    pub fn unsaved_submits(&self) -> usize {
        self.ledger.unsaved_submits()
    }

    /// Calls being made.
    pub fn open_calls(&self) -> usize {
        self.batches.in_progress().len()
    }

    /// What systemd shows as the unit's status.
    pub fn status_line(&self) -> String {
        if let Some(doubt) = self.clocks.doubt() {
            return doubt.to_owned();
        }
        let holds = self.holds.present();
        let held = match holds.first() {
            Some(hold) => format!("; {} held: {}", holds.len(), hold.reason),
            None => String::new(),
        };
        format!("{} open{held}", counted(self.open_calls(), "call"))
    }
}

// What it does.
impl Dispatcher {
    /// Does what is due: stores what could not be stored, takes rows in, claims batches, picks
    /// batches to follow.
    pub async fn round(&mut self, now: Now) -> Round {
        let mut round = Round::new(now);
        round.trouble = self.passes(&mut round).await.err();
        // The calls of this round are not made yet.
        self.keys.spare(&self.targets, now.utc);
        self.note_progress(round.trouble.is_none());
        round
    }

    /// Decides what follows from a finished task, and stores it. An answer that cannot be stored is
    /// kept.
    ///
    /// # Errors
    /// Only those that no waiting fixes.
    pub async fn finish(&mut self, finished: Finished, now: Now) -> Result<(), StoreError> {
        self.take_in(finished, now).await?;
        self.save_new(now).await
    }

    /// Decides what follows from a finished task. `save_new` stores it, with others.
    ///
    /// # Errors
    /// Only those that no waiting fixes.
    pub async fn take_in(&mut self, finished: Finished, now: Now) -> Result<(), StoreError> {
        if !self.clocks.doubts(now.utc) {
            match self.notice_clock(now).await {
                // The queue follows the clock as soon as it can be written; the answer is more urgent.
                Err(error) if error.is_passing() => {}
                noticed => noticed?,
            }
        }
        let now = self.clocks.dated(now);
        self.answer_pass(now).take_in(finished).await
    }

    /// The gate has answered: the next round acts on it.
    pub fn gate_said(&mut self, said: GateSaid, now: Now) {
        self.orders.gate_said(said, self.clocks.dated(now));
    }

    /// Gives back a batch whose intent is stored and whose call was not begun, since a stop was
    /// asked for at this moment. `save_new` stores that.
    pub fn not_begun(&mut self, batch: Batch, now: Now) {
        self.answer_pass(self.clocks.dated(now)).not_begun(batch);
    }

    /// Stores what was taken in, together. An answer that cannot be stored is kept.
    ///
    /// # Errors
    /// Only those that no waiting fixes.
    pub async fn save_new(&mut self, now: Now) -> Result<(), StoreError> {
        let now = self.clocks.dated(now);
        self.ledger.save_new(&self.holds, now.utc).await
    }

    /// Tries again to store the answers that could not be stored.
    ///
    /// # Errors
    /// The database still fails.
    pub async fn save_answers(&mut self, now: Now) -> Result<(), StoreError> {
        let now = self.clocks.dated(now);
        self.ledger.save_all(&self.holds, now.utc).await
    }

    /// Read, plan, act, report. The claim comes last: between a stored intent and its call there is
    /// nothing else to do.
    async fn passes(&mut self, round: &mut Round) -> Result<(), StoreError> {
        let now = round.now;
        if self.clocks.doubts(now.utc) {
            return self.store.check_identity().await;
        }
        self.notice_clock(now).await?;
        // While an answer waits to be stored, no new call leaves; and what it lets out must be seen
        // below, or a later request of its server goes first.
        self.save_answers(now).await?;
        let with_room = self.submit_pass(round).targets_with_room();
        let seen = &self.look(&with_room, now).await?;
        self.store.fix_ids(seen).await?;
        self.intake
            .take_in(seen, &self.ledger, &self.clocks, round)
            .await?;
        self.intake
            .reject_protected(&self.targets, &self.ledger, now.utc)
            .await?;
        self.unknown_targets
            .look(&self.store, seen, &self.targets, round)
            .await?;
        self.holds.review(seen, round).await?;
        self.orders.pass(&self.store, seen, round).await?;
        self.windows
            .pass(&self.targets, &mut self.holds, round)
            .await?;
        self.guard_pass(seen, round).await?;
        let vanished = self.orders.vanished();
        self.held.pass(&self.store, seen, vanished, round).await?;
        let chosen = self.submit_pass(round).choose(with_room, seen).await?;
        let others = self.other_passes(seen, chosen.is_some(), round).await;
        match chosen {
            Some(chosen) => self.submit_pass(round).claim(chosen, others).await,
            None => others,
        }
    }

    /// The one read of a round.
    async fn look(&self, with_room: &[TargetName], now: Now) -> Result<Snapshot, StoreError> {
        let mut targets = Vec::with_capacity(with_room.len());
        for name in with_room {
            if let Some(target) = self.targets.get(name) {
                targets.push((name.clone(), target.batch_servers_max()));
            }
        }
        let asked = SnapshotQuery {
            default_ttl: self.intake.corrected_ttl(&self.clocks, now.steady),
            targets: &targets,
            except: self.batches.in_progress(),
        };
        self.store.snapshot(&asked, now.utc).await
    }

    async fn other_passes(
        &mut self,
        seen: &Snapshot,
        is_claiming: bool,
        round: &mut Round,
    ) -> Result<(), StoreError> {
        self.follow_pass(seen, round).run().await?;
        // A prune asks them for how long the budgets remember.
        target::store_news(&mut self.targets, &self.store, round.now.utc).await?;
        let is_quiet = round.tasks.is_empty() && self.batches.in_progress().is_empty();
        if self.store.leave_line(seen, is_quiet).await? {
            round.wake(round.now.utc + LEAVE_PAUSE);
        }
        let inventory_pass = InventoryPass {
            inventory: &mut self.inventory,
            targets: &mut self.targets,
            holds: &self.holds,
            keys: &self.keys,
            seen,
            round,
            is_claiming,
        };
        inventory_pass.run().await?;
        self.upkeep.pass(&self.store, round).await
    }

    async fn guard_pass(&mut self, seen: &Snapshot, round: &mut Round) -> Result<(), StoreError> {
        let around = Surroundings {
            store: &self.store,
            targets: &self.targets,
            holds: &mut self.holds,
        };
        self.guards.pass(around, seen, round).await
    }

    fn submit_pass<'a>(&'a mut self, round: &'a mut Round) -> SubmitPass<'a> {
        SubmitPass {
            store: &self.store,
            targets: &mut self.targets,
            holds: &mut self.holds,
            guards: &self.guards,
            batches: &mut self.batches,
            ledger: &self.ledger,
            submits: &mut self.submits,
            round,
        }
    }

    fn follow_pass<'a>(&'a mut self, seen: &'a Snapshot, round: &'a mut Round) -> FollowPass<'a> {
        FollowPass {
            store: &self.store,
            targets: &mut self.targets,
            holds: &self.holds,
            keys: &self.keys,
            batches: &mut self.batches,
            ledger: &self.ledger,
            round,
            seen,
            picked: Picked::default(),
        }
    }

    fn answer_pass(&mut self, now: Now) -> AnswerPass<'_> {
        AnswerPass {
            store: &self.store,
            targets: &mut self.targets,
            holds: &mut self.holds,
            keys: &mut self.keys,
            clocks: &mut self.clocks,
            batches: &mut self.batches,
            ledger: &mut self.ledger,
            inventory: &mut self.inventory,
            now,
        }
    }

    fn note_progress(&self, is_good: bool) {
        let targets = self.targets.iter();
        let facts = targets.map(|(name, target)| (name.clone(), target.facts()));
        let meter = self.ledger.meter();
        meter.note_targets(facts);
        meter.round_ended(is_good, self.unsaved(), self.open_calls());
    }

    /// After somebody set the clock, what was put off until some time of the day is moved along.
    /// Otherwise a step of an hour would park it for an hour, or end it an hour early.
    async fn notice_clock(&mut self, now: Now) -> Result<(), StoreError> {
        let in_progress = self.batches.in_progress();
        if let Some(by_ms) = look_at_clocks(&mut self.clocks, &self.store, in_progress, now) {
            self.move_times(by_ms);
        }
        self.store.follow_clock().await
    }

    fn move_times(&mut self, by_ms: i64) {
        self.ledger.move_times(by_ms);
        for target in self.targets.values_mut() {
            target.move_times(by_ms);
        }
        self.keys.move_times(by_ms);
        self.upkeep.move_times(by_ms);
        self.orders.move_times(by_ms);
    }
}

/// Returns by how much somebody has set the time of day since the last look, if so. The store
/// follows with the next write.
fn look_at_clocks(
    clocks: &mut Clocks,
    store: &Store,
    in_progress: &BTreeSet<BatchId>,
    now: Now,
) -> Option<i64> {
    let step = clocks.step(now);
    if let Some(by_ms) = step {
        clocks.stepped(by_ms, now.steady, in_progress);
        let way = if by_ms > 0 { "ahead" } else { "back" };
        let size = humantime::format_duration(Duration::from_secs(by_ms.unsigned_abs() / 1000));
        warn!(
            clock.step_ms = by_ms,
            "this machine's clock was set {way} by {size}; the daemon moves its own waiting times with it"
        );
    }
    clocks.seen(now);
    store.note_clocks(now, step.unwrap_or(0));
    step
}

async fn load_targets(
    store: &Store,
    settings: &Settings,
    clouds: &Clouds,
    now: UtcMillis,
) -> Result<Targets, StoreError> {
    let mut targets = Targets::new();
    for target in &settings.targets {
        if let Some(cloud) = clouds.get(&target.name) {
            let configured = Configured {
                settings: target,
                attempts_max: settings.batch.attempts_max.get(),
                default_ttl: settings.queue.default_ttl,
                cloud,
            };
            let loaded = Target::load(store, &configured, now).await?;
            targets.insert(target.name.clone(), loaded);
        }
    }
    Ok(targets)
}

async fn end_without_batch(store: &Store, now: UtcMillis) -> Result<EndedCounts, StoreError> {
    let ended = store.end_stranded(now).await?;
    if !ended.is_empty() {
        let count: u64 = ended.values().sum();
        warn!(
            requests.stranded = count,
            "no batch is left for {} in progress; now unknown",
            counted(count, "request")
        );
    }
    Ok(ended)
}

/// If somebody has set the clock since an earlier run, its waits are moved along.
async fn clocks_at_start(store: &Store, now: Now) -> Result<Clocks, StoreError> {
    let mut clocks = Clocks::new(store.last_clocks().await?);
    if !clocks.doubts(now.utc) {
        look_at_clocks(&mut clocks, store, &BTreeSet::new(), now);
        store.follow_clock().await?;
    }
    Ok(clocks)
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection, SqliteConnection};

    use super::*;
    use crate::model::Steady;

    const HOUR_MS: i64 = 3_600_000;
    const NOON: UtcMillis = UtcMillis(4_000_017_600_000);

    fn at(hours: i64) -> Now {
        Now {
            utc: NOON.moved(hours * HOUR_MS),
            steady: Steady(Duration::from_secs(60)),
        }
    }

    /// A queue with a budget's hold and a refused key, both until an hour after noon, that was last
    /// written by a clock `ahead` hours fast; with the way to ask until when they are.
    async fn queue(ahead: i64) -> (tempfile::TempDir, Store, SqliteConnection) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("queue.db");
        let store = Store::open(&path).await.expect("a queue");
        let url = format!("sqlite:{}", path.display());
        let mut connection = SqliteConnection::connect(&url).await.expect("it opens");
        let (until, written) = (NOON.moved(HOUR_MS), at(ahead).utc);
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
            "UPDATE queue_mark SET writing = token;
             INSERT INTO holds (target, action, kind, reason, since, until)
                 VALUES ('default', 'stop', 'budget', 'a test', '{written}', '{until}');
             INSERT INTO refused_keys (key, secret, target, refusals, until, reason, recent)
                 VALUES ('k', 's', 'default', 1, '{until}', 'a test', '{written}');
             UPDATE queue_mark SET writing = NULL, clock_at = '{written}';"
        )))
        .execute(&mut connection)
        .await
        .expect("taken");
        (dir, store, connection)
    }

    async fn untils(connection: &mut SqliteConnection) -> Vec<String> {
        sqlx::query_scalar("SELECT until FROM holds UNION ALL SELECT until FROM refused_keys")
            .fetch_all(connection)
            .await
            .expect("readable")
    }

    #[tokio::test]
    async fn what_waits_goes_with_a_clock_that_was_set_between_two_runs() {
        let (_dir, store, mut connection) = queue(72).await;
        clocks_at_start(&store, at(0)).await.expect("a start");
        let moved = NOON.moved(HOUR_MS - 72 * HOUR_MS).to_string();
        assert_eq!(untils(&mut connection).await, [moved.clone(), moved]);
    }

    #[tokio::test]
    async fn what_a_running_daemon_has_moved_is_not_moved_again_at_the_next_start() {
        let (_dir, store, mut connection) = queue(20).await;
        // The clock is put right while the daemon runs.
        let by_ms = -20 * HOUR_MS;
        store.note_clocks(at(0), by_ms);
        store.follow_clock().await.expect("moved");
        let moved = untils(&mut connection).await;
        let an_hour_later = Now {
            steady: Steady(at(0).steady.0 + Duration::from_secs(3600)),
            ..at(1)
        };
        clocks_at_start(&store, an_hour_later)
            .await
            .expect("a start");
        assert_eq!(untils(&mut connection).await, moved);
    }

    #[tokio::test]
    async fn a_step_ahead_in_one_run_is_undone_when_the_next_one_finds_the_clock_right() {
        let (_dir, store, mut connection) = queue(0).await;
        let before = untils(&mut connection).await;
        let by_ms = 72 * HOUR_MS;
        store.note_clocks(at(72), by_ms);
        store.follow_clock().await.expect("moved");
        assert_ne!(untils(&mut connection).await, before);
        clocks_at_start(&store, at(0)).await.expect("a start");
        assert_eq!(untils(&mut connection).await, before);
    }
}
