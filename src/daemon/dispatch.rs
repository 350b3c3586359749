//! The dispatcher: what to do at this moment, and what follows from what was done. One writer, no network.
//!
//! What it keeps in memory is only what is being done right now (calls in flight, answers not yet stored) and each target's
//! pace, which it can rebuild from the queue.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::task::{Finished, Task};
use super::{Clouds, report};
use crate::cloud::PowerCloud;
use crate::lifecycle::Step;
use crate::model::{BatchId, TargetName, UtcMillis};
use crate::pace::{LookTimes, Pace};
use crate::plan::Hold;
use crate::settings::{BatchSettings, Settings, TargetSettings};
use crate::store::{Origin, Store, StoreError};
use crate::verdict::{Batch, Rules};

/// Chunks taken in before calls are made; the rest follows in the next round, which comes at once.
const CHUNKS_A_ROUND: u32 = 4;
/// From a round that the database cut short to the next.
const AFTER_CUT_SHORT: Duration = Duration::from_millis(250);

/// See the module.
pub struct Dispatcher {
    pub(super) store: Arc<Store>,
    pub(super) batching: BatchSettings,
    default_ttl: Option<Duration>,
    pub(super) targets: BTreeMap<TargetName, Target>,
    pub(super) holds: Vec<Hold>,
    /// What was last said of holds that do not read.
    odd_holds: Vec<String>,
    /// Batches whose call is being made.
    pub(super) in_hand: BTreeSet<BatchId>,
    /// Jobs being asked for.
    pub(super) tracking: usize,
    /// Answers that the database did not take.
    unsaved: Vec<(Batch, Step)>,
}

/// A configured target at work.
pub(super) struct Target {
    pub(super) settings: TargetSettings,
    pub(super) origin: Origin,
    pub(super) cloud: Arc<dyn PowerCloud>,
    pub(super) rules: Rules,
    pub(super) pace: Pace,
    pub(super) ready: Readiness,
    /// Submit calls being made.
    pub(super) submitting: usize,
    /// Calls being made, reads included.
    pub(super) open: usize,
    /// The cloud has taken the key, and has not refused it since.
    pub(super) proved: bool,
    /// Its servers are being looked at.
    pub(super) looking: bool,
    /// A breaker hold of ours may be in the table.
    pub(super) broken: bool,
    /// The rate and throttle count as last stored.
    noted: Option<(u32, u32)>,
}

/// Whether a target's next submit call could leave at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    /// Not asked.
    Unknown,
    /// Being asked.
    Preparing,
    /// Yes, for the calls of this round.
    Ready,
}

/// What a round asks for.
#[derive(Default)]
pub struct Round {
    /// To be started now.
    pub tasks: Vec<Task>,
    /// When the next round is due if nothing happens before; none: no time is known.
    pub wake_at: Option<UtcMillis>,
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
        now: UtcMillis,
    ) -> Result<Self, StoreError> {
        let attempts_max = settings.batch.attempts_max.get();
        let mut targets = BTreeMap::new();
        for settings in &settings.targets {
            let Some(cloud) = clouds.get(&settings.name) else { continue };
            let target = Target::new(&store, settings, attempts_max, Arc::clone(cloud), now).await?;
            targets.insert(settings.name.clone(), target);
        }
        let names: Vec<TargetName> = targets.keys().cloned().collect();
        store.forget_targets_except(&names).await?;
        Ok(Self {
            store,
            batching: settings.batch.clone(),
            default_ttl: settings.queue.default_ttl,
            targets,
            holds: Vec::new(),
            odd_holds: Vec::new(),
            in_hand: BTreeSet::new(),
            tracking: 0,
            unsaved: Vec::new(),
        })
    }

    /// Does what is due: stores what could not be stored, takes rows in, claims batches, picks batches to follow.
    ///
    /// # Errors
    /// Those of the store; nothing is lost, and the same round can be tried again.
    pub async fn round(&mut self, now: UtcMillis) -> Result<Round, StoreError> {
        let mut round = Round::default();
        match self.passes(&mut round, now).await {
            Ok(()) => Ok(round),
            Err(error) if round.tasks.is_empty() => Err(error),
            // What was claimed or picked up before the failure is in our hands: its calls must be made, or nobody ever
            // touches it again. The next round meets the same failure with empty hands.
            Err(error) => {
                warn!("a round was cut short: {}", report::chain(&error));
                round.wake(now + AFTER_CUT_SHORT);
                Ok(round)
            }
        }
    }

    async fn passes(&mut self, round: &mut Round, now: UtcMillis) -> Result<(), StoreError> {
        // While an answer waits to be stored, no new call leaves.
        self.save_answers(now).await?;
        self.take_in(round, now).await?;
        self.review_holds(round, now).await?;
        self.submit_pass(round, now).await?;
        self.follow_pass(round, now).await?;
        self.note_paces(now).await
    }

    /// Decides what follows from a finished task, and stores it. An answer that cannot be stored is kept.
    ///
    /// # Errors
    /// Only those that no waiting mends.
    pub async fn finish(&mut self, finished: Finished, now: UtcMillis) -> Result<(), StoreError> {
        match finished {
            Finished::Prepared { target, result } => self.prepared(&target, result, now).await,
            Finished::Submitted { batch, answer } => {
                self.in_hand.remove(&batch.id);
                self.submitted(batch, answer, now).await
            }
            Finished::Tracked { batch, answer } => {
                self.in_hand.remove(&batch.id);
                self.tracked(batch, answer, now).await
            }
            Finished::Looked { target, batches, answer } => {
                self.in_hand.retain(|id| batches.iter().all(|batch| batch.id != *id));
                self.looked(&target, batches, answer, now).await
            }
        }
    }

    /// Answers that wait to be stored.
    pub fn unsaved(&self) -> usize {
        self.unsaved.len()
    }

    /// Calls being made.
    pub fn open_calls(&self) -> usize {
        self.in_hand.len()
    }

    /// What systemd shows as the unit's status.
    pub fn status_line(&self) -> String {
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
        while let Some((batch, step)) = self.unsaved.last() {
            self.store.record(batch, step, now).await?;
            self.unsaved.pop();
        }
        Ok(())
    }

    pub(super) async fn save(&mut self, batch: Batch, step: Step, now: UtcMillis) -> Result<(), StoreError> {
        match self.store.record(&batch, &step, now).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_passing() => {
                // Its own batch must not be touched by another round meanwhile.
                warn!(batch.id = %batch.id, "batch {}: the answer cannot be stored yet: {}", batch.id, report::chain(&error));
                self.unsaved.push((batch, step));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn take_in(&mut self, round: &mut Round, now: UtcMillis) -> Result<(), StoreError> {
        for _ in 0..CHUNKS_A_ROUND {
            let taken = self.store.take_in(self.default_ttl, now).await?;
            if taken.expired + taken.cancelled > 0 {
                info!(
                    expired = taken.expired,
                    cancelled = taken.cancelled,
                    "requests ended without being sent: {} expired, {} cancelled",
                    taken.expired,
                    taken.cancelled
                );
            }
            if !taken.more {
                break;
            }
            round.wake(now);
        }
        if let Some(at) = self.store.next_due_at(self.default_ttl).await? {
            round.wake(at.max(now + Duration::from_millis(1)));
        }
        Ok(())
    }

    async fn review_holds(&mut self, round: &mut Round, now: UtcMillis) -> Result<(), StoreError> {
        let used = self.store.targets_in_use().await?;
        let unknown: Vec<TargetName> = used.into_iter().filter(|name| !self.targets.contains_key(name)).collect();
        for target in self.store.hold_unknown_targets(&unknown, now).await? {
            warn!(%target, "requests name target \"{target}\", which the config does not have; they wait");
        }
        let (holds, odd) = self.store.holds(now).await?;
        self.holds = holds;
        if odd != self.odd_holds {
            odd.iter().for_each(|sentence| warn!("{sentence}"));
            self.odd_holds = odd;
        }
        self.holds.iter().filter_map(|hold| hold.until).for_each(|until| round.wake(until));
        Ok(())
    }

    /// Stores changed paces, so that a restart and `status` know them.
    async fn note_paces(&mut self, now: UtcMillis) -> Result<(), StoreError> {
        for (name, target) in &mut self.targets {
            let known = (target.pace.rate(), target.pace.throttles());
            if target.noted != Some(known) {
                let configured = target.settings.submits_per_minute;
                self.store.note_target(name, &target.origin, configured, known.0, known.1, now).await?;
                target.noted = Some(known);
            }
        }
        Ok(())
    }
}

impl Target {
    async fn new(
        store: &Store,
        settings: &TargetSettings,
        attempts_max: u32,
        cloud: Arc<dyn PowerCloud>,
        now: UtcMillis,
    ) -> Result<Self, StoreError> {
        let calls = store.recent_calls(&settings.name, settings.submits_per_minute).await?;
        let mut pace = Pace::new(settings.submits_per_minute, calls, now);
        if let Some((rate, throttles)) = store.noted_pace(&settings.name).await? {
            pace.resume(rate, throttles);
        }
        let endpoint = settings.endpoint.as_str().trim_end_matches('/').to_owned();
        Ok(Self {
            origin: Origin { service: settings.service, endpoint, project_id: settings.project_id.clone() },
            settings: settings.clone(),
            cloud,
            rules: rules(settings, attempts_max),
            pace,
            ready: Readiness::Unknown,
            submitting: 0,
            open: 0,
            proved: false,
            looking: false,
            broken: true,
            noted: None,
        })
    }
}

fn rules(settings: &TargetSettings, attempts_max: u32) -> Rules {
    Rules {
        job_time_limit: settings.job_time_limit,
        look_time_limit: settings.look_time_limit,
        settle_time: settings.settle_time,
        attempts_max,
        looks: LookTimes { first: settings.first_look, interval_max: settings.look_interval_max },
    }
}
