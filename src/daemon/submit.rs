//! The submit pass: which batch leaves now. What a call's end means is decided in `answers`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing::info;

use super::guards::GuardWatch;
use super::holds::Holds;
use super::ledger::Ledger;
use super::open_batches::OpenBatches;
use super::target::keys::{self, ANSWER_PATIENCE};
use super::target::{Room, Targets};
use super::task::Round;
use crate::model::{Head, Lane, PowerAction, TargetName, UtcMillis};
use crate::plan::{self, Allowance, Choice, Limits};
use crate::store::{Claim, Snapshot, Store, StoreError, Which};

/// Servers read at once before their requests leave: a page of the list.
const HEADS_MAX: usize = 1000;

/// What the submit pass keeps from round to round.
pub(super) struct Submits {
    /// How long a batch that is not full waits for more.
    linger: Duration,
    /// Whose batch was claimed last: the others come before it.
    last_served: Option<TargetName>,
    /// Once true, no new intent is made.
    halt: Arc<AtomicBool>,
}

impl Submits {
    pub(super) fn new(linger: Duration) -> Self {
        Self {
            linger,
            last_served: None,
            halt: Arc::default(),
        }
    }

    /// Batches wait this long for more from now on.
    pub(super) fn apply(&mut self, linger: Duration) {
        self.linger = linger;
    }

    pub(super) fn halt(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.halt)
    }

    fn is_halted(&self) -> bool {
        self.halt.load(Ordering::SeqCst)
    }
}

/// The pass of one round.
pub(super) struct SubmitPass<'a> {
    pub(super) store: &'a Store,
    pub(super) targets: &'a mut Targets,
    pub(super) holds: &'a mut Holds,
    pub(super) guards: &'a GuardWatch,
    pub(super) batches: &'a mut OpenBatches,
    pub(super) ledger: &'a Ledger,
    pub(super) submits: &'a mut Submits,
    pub(super) round: &'a mut Round,
}

/// What is claimed at the end of a round.
pub(super) struct Chosen {
    target: TargetName,
    lane: Lane,
    servers_max: u32,
}

// Choosing.
impl SubmitPass<'_> {
    /// Gets targets ready whose batches may leave, and chooses the next one. One batch is claimed
    /// in a round, so that its call leaves at once; the next round comes at once too, and then it
    /// is another target's turn.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn choose(
        &mut self,
        with_room: Vec<TargetName>,
        seen: &Snapshot,
    ) -> Result<Option<Chosen>, StoreError> {
        let mut lanes = self.open_lanes(&seen.lanes);
        let mut chosen = None;
        for name in with_room {
            let Some(lanes) = lanes.remove(&name) else {
                continue;
            };
            // The one before may have begun a call with the same key.
            if !self.may_call(&name) {
                continue;
            }
            if chosen.is_some() && self.is_ready(&name) {
                self.round.wake_now();
                continue;
            }
            match self.choose_from(name, lanes).await {
                Ok(next) => chosen = chosen.or(next),
                Err(error) => {
                    self.let_go(chosen);
                    return Err(error);
                }
            }
        }
        Ok(chosen)
    }

    /// What was chosen is not claimed: its key is no longer in use.
    fn let_go(&mut self, chosen: Option<Chosen>) {
        let target = chosen.and_then(|chosen| self.targets.get_mut(&chosen.target));
        if let Some(target) = target {
            target.call_closes();
        }
    }

    /// The targets that a call may leave for at this moment. Those come first that have waited for
    /// longest.
    pub(super) fn targets_with_room(&mut self) -> Vec<TargetName> {
        if self.submits.is_halted() {
            return Vec::new();
        }
        let mut names: Vec<TargetName> = self.targets.keys().cloned().collect();
        if let Some(last) = &self.submits.last_served {
            let served = names.partition_point(|name| name <= last);
            names.rotate_left(served);
        }
        names.retain(|name| self.has_room(name));
        names
    }

    /// True if the pace, the open calls and the key of `name` let one more call leave.
    fn has_room(&mut self, name: &TargetName) -> bool {
        let may_call = self.may_call(name);
        let Some(target) = self.targets.get_mut(name) else {
            return false;
        };
        let now = self.round.now.utc;
        if !may_call {
            // Its own open call ends with an answer, which a round follows; those of others are
            // waited for no longer than this.
            if !target.has_open_call() {
                self.round.wake(now + ANSWER_PATIENCE);
            }
            return false;
        }
        match target.room(now) {
            Room::Free => true,
            Room::AfterOwnCall => false,
            Room::Until(at) => {
                self.round.wake(at);
                false
            }
        }
    }

    fn may_call(&self, name: &TargetName) -> bool {
        keys::may_call(self.targets, name, self.round.now.steady)
    }

    fn is_ready(&self, name: &TargetName) -> bool {
        let target = self.targets.get(name);
        target.is_some_and(|target| target.is_ready(self.round.now.steady))
    }

    /// The lanes that are not held, by target.
    fn open_lanes(&self, lanes: &[Lane]) -> BTreeMap<TargetName, Vec<Lane>> {
        let now = self.round.now.utc;
        let mut open: BTreeMap<TargetName, Vec<Lane>> = BTreeMap::new();
        for lane in lanes {
            if !self.holds.cover(lane, now) {
                open.entry(lane.target.clone())
                    .or_default()
                    .push(lane.clone());
            }
        }
        open
    }

    /// What of `lanes` could be claimed now, all of one target; else notes when to ask again.
    async fn choose_from(
        &mut self,
        name: TargetName,
        lanes: Vec<Lane>,
    ) -> Result<Option<Chosen>, StoreError> {
        let Some(lane) = self.next_lane(&name, lanes).await? else {
            return Ok(None);
        };
        let Some(servers_max) = self.servers_allowed(&name, lane.action).await? else {
            // Another action may have something left of its own.
            self.round.wake_now();
            return Ok(None);
        };
        if let Some(target) = self.targets.get_mut(&name) {
            // From now on its key is in use for those who ask.
            target.call_opens(self.round.now.steady);
        }
        Ok(Some(Chosen {
            target: name,
            lane,
            servers_max,
        }))
    }

    /// The lane to claim from, if a call may leave at this moment; else gets the target ready, or
    /// notes when to ask again.
    async fn next_lane(
        &mut self,
        name: &TargetName,
        lanes: Vec<Lane>,
    ) -> Result<Option<Lane>, StoreError> {
        let now = self.round.now;
        let Some(target) = self.targets.get_mut(name) else {
            return Ok(None);
        };
        let limits = Limits {
            batch_servers_max: target.batch_servers_max(),
            linger: self.submits.linger,
        };
        let open = plan::open_lanes(name, &lanes, self.holds.present(), now.utc);
        let lane = match plan::choose(&open, limits, now.utc) {
            Choice::Go(lane) => lane,
            Choice::WaitUntil(at) => {
                self.round.wake(at);
                return Ok(None);
            }
            Choice::Nothing => return Ok(None),
        };
        // After a failed call one call probes whether the cloud is back; its end is followed by a
        // round.
        if target.is_being_probed(lane.action) {
            return Ok(None);
        }
        let knows_servers = target.knows_servers(&lane, now.utc);
        if knows_servers && target.is_ready(now.steady) {
            return Ok(Some(lane));
        }
        let mut heads = Vec::new();
        if !knows_servers {
            let batch_max = limits.batch_servers_max as usize;
            heads = next_heads(self.store, &lanes, batch_max, now.utc).await?;
        }
        self.round.tasks.push(target.prepare(heads, now));
        Ok(None)
    }

    /// How many servers the next call for this action may carry; none if its budget is used up,
    /// which is a hold.
    async fn servers_allowed(
        &mut self,
        name: &TargetName,
        action: PowerAction,
    ) -> Result<Option<u32>, StoreError> {
        let Some(target) = self.targets.get(name) else {
            return Ok(None);
        };
        let most = target.next_servers_max(action);
        let Some(budget) = target.budget_of(action) else {
            return Ok(Some(most));
        };
        let since = self.round.now.utc.before(budget.span);
        let spent = self.store.spent(name, action, since).await?;
        match plan::allowance(budget, &spent, self.round.now.utc) {
            Allowance::Servers(left) => Ok(Some(left.min(most))),
            Allowance::NoneUntil(until) => {
                let times = (self.round.now.utc, until);
                let hold = plan::budget_hold(name, action, budget, times);
                info!(target = %name, hold.until = %until, "target \"{name}\": {}", hold.reason);
                self.holds.try_put(hold).await?;
                self.round.wake(until);
                Ok(None)
            }
        }
    }
}

// Claiming.
impl SubmitPass<'_> {
    /// Claims what was chosen, if nothing has gone wrong since. A claim is a stored intent; its
    /// call is in the round's tasks.
    ///
    /// # Errors
    /// What has gone wrong since, and those of the store.
    pub(super) async fn claim(
        &mut self,
        chosen: Chosen,
        others: Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let Some(target) = self.targets.get_mut(&chosen.target) else {
            return others;
        };
        target.call_closes();
        others?;
        // The last moment: a stop that was asked for meanwhile leaves no new intent.
        if self.submits.is_halted() {
            return Ok(());
        }
        self.round.wake_now();
        self.submits.last_served = Some(chosen.target);
        let now = self.round.now;
        let lane = chosen.lane;
        let heads = target.take_baselines(&lane, chosen.servers_max);
        let claim = Claim {
            lane: &lane,
            origin: target.origin(),
            which: heads
                .as_deref()
                .map_or(Which::First(chosen.servers_max), Which::These),
            barred: target.barred_from(lane.action),
            guard: self.guards.limit(&lane),
            now: now.utc,
        };
        let Some(batch) = self.store.claim(&claim).await? else {
            // Held, cancelled or protected at this very moment: the next round sees which.
            return Ok(());
        };
        self.batches.submit_begins(batch.id, now);
        self.ledger.meter().claimed(&batch);
        self.round.tasks.push(target.submit(batch, now.steady));
        Ok(())
    }
}

/// The requests of `lanes`, all of one target, that may leave next: one look shows the servers of
/// all.
async fn next_heads(
    store: &Store,
    lanes: &[Lane],
    batch_max: usize,
    now: UtcMillis,
) -> Result<Vec<Head>, StoreError> {
    let mut lanes: Vec<&Lane> = lanes.iter().collect();
    lanes.sort_by_key(|lane| (-lane.head_priority, lane.head_id));
    let each = (HEADS_MAX / lanes.len().max(1)).max(batch_max);
    lanes.truncate(HEADS_MAX.div_ceil(each));
    store.heads(&lanes, each as u32, now).await
}
