//! The dispatcher: what to do at this moment, and what follows from what was done. One writer, no
//! network.
//!
//! What it keeps in memory is only what is being done right now (calls in flight, answers not yet
//! stored) and each target's pace, which it can rebuild from the queue.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing::{info, warn};

use super::baselines::Baselines;
use super::clock::Clocks;
use super::keep::Keeping;
use super::strangers::Strangers;
use super::task::{Finished, Task};
use super::{Clouds, Observers, clock_check, report};
use crate::cloud::{PowerCloud, Signed};
use crate::lifecycle::{BatchNext, Step};
use crate::meter::TargetFacts;
use crate::model::{
    Batch, BatchId, BatchState, CallError, Evidence, Fault, Head, Hold, HoldKind, Now, Origin,
    PowerAction, Steady, TargetName, UtcMillis,
};
use crate::pace::{LookTimes, Pace, Reads};
use crate::settings::{BatchSettings, Settings, TargetSettings};
use crate::store::{EndedCounts, NotedPace, RefusedKey, Store, StoreError, TargetNews};
use crate::verdict::{Rules, Watch};

/// Between two chunks that are taken in: as long as a chunk lasts, so that producers get their
/// turn.
const CHUNK_PAUSE: Duration = Duration::from_millis(10);
/// Stamps that lie ahead of the clock by more than this at a start show that it was set back.
const AHEAD_MAX: Duration = Duration::from_secs(2);

/// See the module.
pub struct Dispatcher {
    pub(super) store: Arc<Store>,
    pub(super) batching: BatchSettings,
    default_ttl: Option<Duration>,
    pub(super) targets: BTreeMap<TargetName, Target>,
    pub(super) holds: Vec<Hold>,
    /// What was last said of holds that do not read.
    odd_holds: Vec<String>,
    /// Keys that the cloud refused last, one for each secret.
    pub(super) refused: Vec<RefusedKey>,
    /// What the call was made with whose answer is taken in.
    pub(super) signed: Signed,
    /// Batches whose call is being made.
    pub(super) in_hand: BTreeSet<BatchId>,
    /// What this process has seen of open batches; never stored.
    pub(super) watches: BTreeMap<BatchId, Watch>,
    /// Jobs being asked for, of all targets.
    pub(super) tracking: usize,
    /// Answers that the database did not take.
    unsaved: Vec<Answered>,
    /// Why nothing is sent by this clock.
    clock_doubt: Option<String>,
    /// The steady clock, as of the present round or answer.
    pub(super) steady: Steady,
    pub(super) clocks: Clocks,
    /// No chunk is taken in before this.
    chunk_after: Steady,
    pub(super) strangers: Strangers,
    /// Whose batch was claimed last: the others come before it.
    pub(super) last_served: Option<TargetName>,
    /// From when on nothing new may leave: set by whoever is asked to stop.
    pub(super) halt: Arc<AtomicBool>,
    pub(super) keeping: Keeping,
    pub(super) observers: Observers,
    /// What the start found stranded, until somebody counts it.
    stranded: EndedCounts,
}

/// An answer and what follows from it, on its way into the database.
pub(super) struct Answered {
    pub(super) batch: Batch,
    pub(super) step: Step,
    pub(super) error: Option<CallError>,
}

/// A configured target at work.
pub(super) struct Target {
    pub(super) settings: TargetSettings,
    pub(super) origin: Origin,
    pub(super) cloud: Arc<dyn PowerCloud>,
    pub(super) rules: Rules,
    pub(super) pace: Pace,
    /// When it may be asked again, if the cloud throttled a read.
    pub(super) reads: Reads,
    /// Its jobs being asked for.
    pub(super) tracking: usize,
    pub(super) ready: Readiness,
    /// Whose states are being read, to leave next.
    pub(super) heads: Vec<Head>,
    /// What they were.
    pub(super) baselines: Baselines,
    /// Submit calls being made.
    pub(super) submitting: usize,
    /// Calls being made, reads included.
    pub(super) open: usize,
    /// When the last of them was begun.
    pub(super) opened_at: Steady,
    /// The cloud has taken the key, and has not refused it since.
    pub(super) proved: bool,
    /// Actions whose last call did not arrive, as far as we know: the next one carries a single
    /// server.
    pub(super) doubted: BTreeSet<PowerAction>,
    /// Since when its servers are being looked at.
    pub(super) looking: Option<Now>,
    /// A breaker hold of ours may be in the table.
    pub(super) broken: bool,
    /// What was last stored of it.
    noted: Option<TargetNews>,
}

/// Whether a target's next submit call could leave at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    /// Not asked.
    Unknown,
    /// Being asked, since then.
    Preparing(UtcMillis),
    /// Yes, as of this moment.
    Ready(Steady),
}

/// What a round asks for.
#[derive(Default)]
pub struct Round {
    /// To be started now.
    pub tasks: Vec<Task>,
    /// When the next round is due if nothing happens before; none: no time is known.
    pub wake_at: Option<UtcMillis>,
    /// Why the round ended early. What it had claimed and picked up by then is in `tasks` all the
    /// same.
    pub trouble: Option<StoreError>,
}

impl Round {
    pub(super) fn wake(&mut self, at: UtcMillis) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

impl Dispatcher {
    /// Begins where the queue stands.
    ///
    /// # Errors
    /// Those of the store: also when it cannot be written.
    pub async fn new(
        store: Arc<Store>,
        settings: &Settings,
        clouds: Clouds,
        now: Now,
    ) -> Result<Self, StoreError> {
        let begun = now;
        let Now { utc: now, steady } = begun;
        let attempts_max = settings.batch.attempts_max.get();
        let clocks = clocks_at_start(&store, begun).await?;
        let mut targets = BTreeMap::new();
        for settings in &settings.targets {
            let Some(cloud) = clouds.get(&settings.name) else {
                continue;
            };
            let target =
                Target::new(&store, settings, attempts_max, Arc::clone(cloud), now).await?;
            targets.insert(settings.name.clone(), target);
        }
        let names: Vec<TargetName> = targets.keys().cloned().collect();
        store.forget_targets_except(&names).await?;
        let stranded = store.end_stranded(now).await?;
        if !stranded.is_empty() {
            let stranded: u64 = stranded.values().sum();
            warn!(
                requests.stranded = stranded,
                "{stranded} requests in progress no longer have a batch; they are now unknown"
            );
        }
        let refused = store.refused_keys().await?;
        let mut dispatcher = Self {
            store,
            batching: settings.batch.clone(),
            default_ttl: settings.queue.default_ttl,
            targets,
            holds: Vec::new(),
            odd_holds: Vec::new(),
            refused,
            signed: Signed::default(),
            in_hand: BTreeSet::new(),
            watches: BTreeMap::new(),
            tracking: 0,
            unsaved: Vec::new(),
            clock_doubt: None,
            steady,
            clocks,
            chunk_after: steady,
            strangers: Strangers::default(),
            last_served: None,
            halt: Arc::default(),
            keeping: Keeping::new(settings.queue.retention),
            observers: Observers::default(),
            stranded,
        };
        dispatcher.resume_keys(now).await?;
        Ok(dispatcher)
    }

    /// From now on `observers` are told what is done.
    pub fn observe(&mut self, observers: Observers) {
        self.observers = observers;
        let stranded = std::mem::take(&mut self.stranded);
        self.count(&stranded);
    }

    /// Does what is due: stores what could not be stored, takes rows in, claims batches, picks
    /// batches to follow.
    pub async fn round(&mut self, now: Now) -> Round {
        let mut round = Round::default();
        self.steady = now.steady;
        round.trouble = self.passes(&mut round, now).await.err();
        // The calls of this round are not made yet.
        self.spare_keys(now.utc);
        self.note_progress(round.trouble.is_none());
        round
    }

    /// The claim comes last: between a stored intent and its call there is nothing else to do.
    async fn passes(&mut self, round: &mut Round, now: Now) -> Result<(), StoreError> {
        self.store.check_place().await?;
        if self.doubts_clock(now.utc) {
            return Ok(());
        }
        self.notice_clock(now).await?;
        self.store.mend_ids().await?;
        let now = now.utc;
        // While an answer waits to be stored, no new call leaves.
        self.save_answers(now).await?;
        self.take_in(round, now).await?;
        self.reject_protected(now).await?;
        self.review_holds(round, now).await?;
        let chosen = self.submit_pass(round, now).await?;
        let others = self.other_passes(round, now).await;
        match chosen {
            Some(chosen) => self.claim_chosen(chosen, others, round, now).await,
            None => others,
        }
    }

    async fn other_passes(&mut self, round: &mut Round, now: UtcMillis) -> Result<(), StoreError> {
        self.follow_pass(round, now).await?;
        // A prune asks them for how long the budgets remember.
        self.note_paces(now).await?;
        self.keep_pass(round, now).await
    }

    /// True while no clock is right that says this.
    fn doubts_clock(&mut self, now: UtcMillis) -> bool {
        let doubt = clock_check::beyond(now);
        match (&doubt, &self.clock_doubt) {
            (Some(doubt), None) => warn!("{doubt}"),
            (None, Some(_)) => info!("this machine's clock looks right again"),
            _ => {}
        }
        self.clock_doubt = doubt;
        self.clock_doubt.is_some()
    }

    /// Decides what follows from a finished task, and stores it. An answer that cannot be stored is
    /// kept.
    ///
    /// # Errors
    /// Only those that no waiting mends.
    pub async fn finish(&mut self, finished: Finished, now: Now) -> Result<(), StoreError> {
        self.steady = now.steady;
        match self.notice_clock(now).await {
            // It is noticed again; the answer is more urgent.
            Err(error) if error.is_passing() => {}
            noticed => noticed?,
        }
        let now = now.utc;
        let (target, call, fault) = finished.end();
        self.observers.meter.call_ended(target, call, fault);
        self.signed = finished.signed().clone();
        match finished {
            Finished::Prepared { target, result, .. } => self.prepared(&target, result, now).await,
            Finished::Submitted {
                mut batch, answer, ..
            } => {
                self.in_hand.remove(&batch.id);
                self.clocks.correct_returned(&mut batch, answer.is_ok());
                self.submitted(batch, answer, now).await
            }
            Finished::Tracked {
                mut batch, answer, ..
            } => {
                self.in_hand.remove(&batch.id);
                self.clocks.correct_returned(&mut batch, false);
                self.tracked(batch, answer, now).await
            }
            Finished::Looked {
                target,
                mut batches,
                answer,
                ..
            } => {
                for batch in &mut batches {
                    self.in_hand.remove(&batch.id);
                    self.clocks.correct_returned(batch, false);
                }
                self.looked(&target, batches, answer, now).await
            }
        }
    }

    /// Takes up what is not about one target.
    pub(super) fn take_up(&mut self, settings: &Settings) {
        self.batching = settings.batch.clone();
        self.default_ttl = settings.queue.default_ttl;
        self.keeping.retention = settings.queue.retention;
        self.observers.notifier.take_up(settings.notify.as_ref());
    }

    /// Once true is stored here, no new intent is made. Shared with whoever hears that the daemon
    /// is to stop.
    pub fn halt(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.halt)
    }

    pub(super) fn is_halted(&self) -> bool {
        self.halt.load(Ordering::SeqCst)
    }

    /// Answers that wait to be stored.
    pub fn unsaved(&self) -> usize {
        self.unsaved.len()
    }

    /// Those of them that came to submit calls: what a job or a look has shown can be asked for
    /// again.
    pub fn unsaved_submits(&self) -> usize {
        self.unsaved
            .iter()
            .filter(|answered| answered.batch.state == BatchState::Submitting)
            .count()
    }

    /// Calls being made.
    pub fn open_calls(&self) -> usize {
        self.in_hand.len()
    }

    /// What systemd shows as the unit's status.
    pub fn status_line(&self) -> String {
        if let Some(doubt) = &self.clock_doubt {
            return doubt.clone();
        }
        let holds = match self.holds.first() {
            Some(hold) => format!("; {} held: {}", self.holds.len(), hold.reason),
            None => String::new(),
        };
        format!("{} calls open{holds}", self.in_hand.len())
    }

    /// Tries again to store the answers that could not be stored.
    ///
    /// # Errors
    /// The database still fails.
    pub async fn save_answers(&mut self, now: UtcMillis) -> Result<(), StoreError> {
        while let Some(answered) = self.unsaved.last() {
            self.store
                .record(&answered.batch, &answered.step, now)
                .await?;
            if let Some(answered) = self.unsaved.pop() {
                self.tell_answered(&answered, now);
                self.free_budget(&answered).await?;
            }
        }
        Ok(())
    }

    /// The watch over a batch: begun anew if this process has none.
    pub(super) fn watch(&mut self, id: BatchId) -> &mut Watch {
        self.watches.entry(id).or_default()
    }

    /// Keeps in the watch what was decided; a batch that is done needs none.
    pub(super) fn note_step(&mut self, batch: &Batch, step: &Step) {
        if step.batch == BatchNext::Done || step.moves.len() == batch.members.len() {
            self.watches.remove(&batch.id);
        } else {
            self.watch(batch.id).note_step(step);
        }
    }

    /// Stores what follows from an answer, and then says so.
    pub(super) async fn save(
        &mut self,
        answered: Answered,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        match self
            .store
            .record(&answered.batch, &answered.step, now)
            .await
        {
            Ok(()) => {
                self.tell_answered(&answered, now);
                self.free_budget(&answered).await
            }
            Err(error) if error.is_passing() => {
                let id = answered.batch.id;
                warn!(batch.id = %id, "batch {id}: the answer cannot be stored yet: {}", report::chain(&error));
                self.unsaved.push(answered);
                self.observers.meter.database_failed(self.unsaved.len());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn tell_answered(&self, answered: &Answered, now: UtcMillis) {
        self.observers
            .meter
            .looked(&answered.batch, &answered.step, now);
        self.tell(
            &answered.batch,
            &answered.step,
            answered.error.as_ref(),
            now,
        );
    }

    /// A step was stored: says so in the log, and to those who count and to the hooks.
    pub(super) fn tell(
        &self,
        batch: &Batch,
        step: &Step,
        error: Option<&CallError>,
        now: UtcMillis,
    ) {
        report::step(batch, step, error);
        self.observers.meter.stored(batch, step);
        self.observers.notifier.stored(batch, step, now);
    }

    /// Counts requests that ended without a call.
    fn count(&self, ended: &EndedCounts) {
        for ((target, action, state, code), count) in ended {
            let how = (*state, Evidence::None, code.as_str());
            self.observers.meter.ended(target, *action, how, *count);
        }
    }

    fn note_progress(&self, good: bool) {
        let facts = |(name, target): (&TargetName, &Target)| {
            let facts = TargetFacts {
                configured: target.settings.submits_per_minute,
                pace: target.pace.rate(),
                breaker: target.pace.throttles() > 0,
                refusals: target.cloud.key().refusals(),
            };
            (name.clone(), facts)
        };
        self.observers
            .meter
            .note_targets(self.targets.iter().map(facts));
        self.observers
            .meter
            .round_ended(good, self.unsaved.len(), self.in_hand.len());
    }

    /// After somebody set the clock, what was put off until some time of the day is moved along;
    /// else a step of an hour would park it for an hour, or end it an hour early.
    async fn notice_clock(&mut self, now: Now) -> Result<(), StoreError> {
        if let Some(by_ms) = self.clocks.step(now) {
            self.store.move_waits(by_ms).await?;
            let open = self.store.open_batch_ids().await?;
            self.clocks.stepped(by_ms, &open, &self.in_hand, now);
            self.targets
                .values_mut()
                .for_each(|target| target.move_times(by_ms));
            self.refused
                .iter_mut()
                .for_each(|refused| refused.move_times(by_ms));
            self.keeping.move_times(by_ms);
            let (way, size) = (
                if by_ms > 0 { "ahead" } else { "back" },
                Duration::from_millis(by_ms.unsigned_abs()),
            );
            warn!(
                clock.step_ms = by_ms,
                "this machine's clock was set {way} by {size:?}; the daemon moves its own waiting times with it"
            );
        }
        // Only now: a step whose waits could not be moved is noticed again.
        self.clocks.seen(now);
        Ok(())
    }

    async fn take_in(&mut self, round: &mut Round, now: UtcMillis) -> Result<(), StoreError> {
        let pause = self.chunk_after.since(self.steady);
        if !pause.is_zero() {
            round.wake(now + pause);
            return Ok(());
        }
        // What waited before the clock stepped ahead has not waited for longer because of it.
        let ttl = self
            .default_ttl
            .map(|ttl| ttl + self.clocks.allowance(ttl, self.steady));
        let taken = self.store.take_in(ttl, now).await?;
        if taken.expired + taken.cancelled > 0 {
            self.count(&taken.ended);
            info!(
                expired = taken.expired,
                cancelled = taken.cancelled,
                "requests ended without being sent: {} expired, {} cancelled",
                taken.expired,
                taken.cancelled
            );
        }
        if taken.more {
            self.chunk_after = Steady(self.steady.0 + CHUNK_PAUSE);
            round.wake(now + CHUNK_PAUSE);
            return Ok(());
        }
        if let Some(at) = self.store.next_due_at(ttl).await? {
            round.wake(at.max(now + Duration::from_millis(1)));
        }
        Ok(())
    }

    /// All of them, before anything is claimed.
    pub(super) async fn reject_protected(&self, now: UtcMillis) -> Result<(), StoreError> {
        for (name, target) in self
            .targets
            .iter()
            .filter(|(_, target)| !target.settings.protected.is_empty())
        {
            let mut rejected = 0;
            loop {
                let some = self
                    .store
                    .reject_protected(name, &target.settings.protected, now)
                    .await?;
                if some.is_empty() {
                    break;
                }
                self.count(&some);
                rejected += some.values().sum::<u64>();
            }
            if rejected > 0 {
                warn!(target = %name, requests.rejected = rejected, "rejected {rejected} requests to stop or reboot protected servers of target \"{name}\"");
            }
        }
        Ok(())
    }

    async fn review_holds(&mut self, round: &mut Round, now: UtcMillis) -> Result<(), StoreError> {
        self.look_for_strangers(round, now).await?;
        let (holds, odd) = self.store.holds(now).await?;
        self.holds = holds;
        if odd != self.odd_holds {
            odd.iter().for_each(|sentence| warn!("{sentence}"));
            self.odd_holds = odd;
        }
        self.holds
            .iter()
            .filter_map(|hold| hold.until)
            .for_each(|until| round.wake(until));
        Ok(())
    }

    /// Stores changed paces, so that a restart and `status` know them.
    pub(super) async fn note_paces(&mut self, now: UtcMillis) -> Result<(), StoreError> {
        for (name, target) in &mut self.targets {
            let news = TargetNews {
                configured: target.settings.submits_per_minute,
                pace: NotedPace {
                    rate: target.pace.rate(),
                    throttles: target.pace.throttles(),
                    reads_until: target.reads.until(),
                },
                budget_span: target
                    .settings
                    .budgets
                    .iter()
                    .map(|(_, budget)| budget.span)
                    .max(),
            };
            if target.noted != Some(news) {
                self.store
                    .note_target(name, &target.origin, news, now)
                    .await?;
                target.noted = Some(news);
            }
        }
        Ok(())
    }
}

impl Target {
    pub(super) async fn new(
        store: &Store,
        settings: &TargetSettings,
        attempts_max: u32,
        cloud: Arc<dyn PowerCloud>,
        now: UtcMillis,
    ) -> Result<Self, StoreError> {
        let calls = store
            .recent_calls(&settings.name, settings.submits_per_minute, now)
            .await?;
        let mut pace = Pace::new(settings.submits_per_minute, calls, now);
        let origin = Self::origin_of(settings);
        let mut reads = Reads::default();
        match store.noted_pace(&settings.name, &origin).await? {
            Some(noted) => {
                pace.resume(noted.rate, noted.throttles);
                reads = Reads::resumed(noted.reads_until);
            }
            // What kept calls back was met somewhere else: a mended endpoint is tried at once.
            None => {
                store.lift_hold(&settings.name, HoldKind::Breaker).await?;
            }
        }
        let pace_in_doubt = pace.throttles() > 0;
        Ok(Self {
            origin,
            settings: settings.clone(),
            cloud,
            rules: rules(settings, attempts_max),
            pace,
            reads,
            tracking: 0,
            ready: Readiness::Unknown,
            heads: Vec::new(),
            baselines: Baselines::default(),
            submitting: 0,
            open: 0,
            opened_at: Steady(Duration::ZERO),
            proved: false,
            doubted: if pace_in_doubt {
                PowerAction::ALL.iter().copied().collect()
            } else {
                BTreeSet::new()
            },
            looking: None,
            broken: true,
            noted: None,
        })
    }

    /// Notes whose next call shall find out whether calls arrive again. One that was throttled did
    /// arrive.
    pub(super) fn doubt(&mut self, fault: &Fault, action: Option<PowerAction>) {
        match fault {
            Fault::Throttled { .. } => {}
            Fault::Permission => self.doubted.extend(action),
            Fault::Unreachable
            | Fault::Unavailable
            | Fault::Lost
            | Fault::Credentials
            | Fault::Configuration
            | Fault::Refused(_) => self.doubted.extend(PowerAction::ALL),
        }
    }

    /// The clock was moved by so many milliseconds.
    fn move_times(&mut self, by_ms: i64) {
        self.pace.moved(by_ms);
        self.reads.moved(by_ms);
        self.baselines.move_times(by_ms);
        if let Readiness::Preparing(since) = self.ready {
            self.ready = Readiness::Preparing(since.moved(by_ms));
        }
    }

    /// Where `settings` send their batches.
    pub(super) fn origin_of(settings: &TargetSettings) -> Origin {
        let endpoint = settings.endpoint.as_str().trim_end_matches('/').to_owned();
        Origin {
            service: settings.service,
            endpoint,
            project_id: settings.project_id.clone(),
        }
    }

    /// Goes on with other limits or another client; what is being done goes on.
    pub(super) fn take_up(
        &mut self,
        settings: &TargetSettings,
        attempts_max: u32,
        cloud: Arc<dyn PowerCloud>,
    ) {
        self.pace.reconfigure(settings.submits_per_minute);
        // Whoever reloads has perhaps had a limit raised; a call finds out.
        self.reads = Reads::default();
        self.rules = rules(settings, attempts_max);
        self.settings = settings.clone();
        self.cloud = cloud;
        self.noted = None;
    }
}

/// A clock that shows less than what an earlier run has written was set back since: its waits are
/// moved along.
async fn clocks_at_start(store: &Store, now: Now) -> Result<Clocks, StoreError> {
    let mut clocks = Clocks::default();
    clocks.seen(now);
    let ahead = store
        .last_written_at()
        .await?
        .map_or(Duration::ZERO, |at| at.since(now.utc));
    if ahead > AHEAD_MAX {
        let by_ms = -i64::try_from(ahead.as_millis()).unwrap_or(i64::MAX);
        store.move_waits(by_ms).await?;
        clocks.stepped(by_ms, &store.open_batch_ids().await?, &BTreeSet::new(), now);
        warn!(
            clock.step_ms = by_ms,
            "this machine's clock is {ahead:?} behind the newest time in the queue; the daemon moves its own waiting times with it"
        );
    }
    Ok(clocks)
}

fn rules(settings: &TargetSettings, attempts_max: u32) -> Rules {
    Rules {
        job_time_limit: settings.job_time_limit,
        look_time_limit: settings.look_time_limit,
        settle_time: settings.settle_time,
        attempts_max,
        looks: LookTimes {
            first: settings.first_look,
            interval_max: settings.look_interval_max,
        },
    }
}
