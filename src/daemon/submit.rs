//! The submit pass: which batches leave now, and what a call's fate means for the target's pace and
//! holds.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::baselines::Baselines;
use super::dispatch::{Answered, Dispatcher, Readiness, Round};
use super::keys::{ANSWER_PATIENCE, REFUSED};
use super::refusals::CREDENTIALS_HOLD;
use super::task::Task;
use crate::cloud::Observed;
use crate::lifecycle::{BatchNext, Step};
use crate::model::{
    Batch, BatchState, CallError, Fault, Head, Hold, HoldKind, Lane, LookCause, Now, PowerAction,
    Steady, TargetName, Tracking, UtcMillis,
};
use crate::plan::{self, Allowance, Choice, Limits};
use crate::store::{StoreError, Which};
use crate::verdict::{self, Case, Watch};

/// Servers read at once before their requests leave: a page of the list.
const HEADS_MAX: usize = 1000;
/// What was made ready for a call (a token) is good for so long.
const READY_FOR: Duration = Duration::from_secs(5);
/// A wrong endpoint or project does not mend itself; asking every so often notices that somebody
/// did.
const CONFIGURATION_HOLD: Duration = Duration::from_secs(5 * 60);

/// What is claimed at the end of a round.
pub(super) struct Chosen {
    target: TargetName,
    lane: Lane,
    servers_max: u32,
}

impl Dispatcher {
    /// Gets targets ready whose batches may leave, and chooses the next one. One batch is claimed
    /// in a round, so that its call leaves at once; the next round comes at once too, and then it
    /// is another target's turn.
    pub(super) async fn submit_pass(
        &mut self,
        round: &mut Round,
        now: UtcMillis,
    ) -> Result<Option<Chosen>, StoreError> {
        if self.is_halted() {
            return Ok(None);
        }
        let names = self.targets_in_turn(round, now);
        let mut lanes = self.lanes_of(&names, now).await?;
        let mut chosen: Option<Chosen> = None;
        for name in names {
            let Some(lanes) = lanes.remove(&name) else {
                continue;
            };
            // The one before may have begun a call with the same key.
            if !self.may_call(&name) {
                continue;
            }
            if chosen.is_some() && self.is_ready(&name) {
                round.wake(now);
                continue;
            }
            let Some(lane) = self.next_lane(&name, lanes, round, now).await? else {
                continue;
            };
            let Some(servers_max) = self.allowed(&name, lane.action, round, now).await? else {
                // Another action may have something left of its own.
                round.wake(now);
                continue;
            };
            // Whoever asks meanwhile whether a call may be made with this key counts this one.
            self.call_opens(&name);
            chosen = Some(Chosen {
                target: name,
                lane,
                servers_max,
            });
        }
        Ok(chosen)
    }

    /// The targets that a call may leave for at this moment, those first that have waited for
    /// longest.
    fn targets_in_turn(&mut self, round: &mut Round, now: UtcMillis) -> Vec<TargetName> {
        let all: Vec<TargetName> = self.targets.keys().cloned().collect();
        let first =
            all.partition_point(|name| self.last_served.as_ref().is_some_and(|last| name <= last));
        let (served, waiting) = all.split_at(first);
        let in_turn = waiting.iter().chain(served);
        in_turn
            .filter(|name| self.has_room(name, round, now))
            .cloned()
            .collect()
    }

    /// True if the pace, the open calls and the key of `name` let one more call leave.
    fn has_room(&mut self, name: &TargetName, round: &mut Round, now: UtcMillis) -> bool {
        if !self.may_call(name) {
            // Its own open call ends by an answer, which a round follows; those of others are only
            // waited for so long.
            if self
                .targets
                .get(name)
                .is_some_and(|target| target.open == 0)
            {
                round.wake(now + ANSWER_PATIENCE);
            }
            return false;
        }
        let Some(target) = self.targets.get_mut(name) else {
            return false;
        };
        let most = if target.pace.throttles() > 0 {
            1
        } else {
            target.settings.submits_open_max
        };
        if matches!(target.ready, Readiness::Preparing(_)) || target.submitting >= most as usize {
            return false;
        }
        match target.pace.wait(now) {
            Some(at) => {
                round.wake(at);
                false
            }
            None => true,
        }
    }

    /// The lanes of these targets that are not held.
    async fn lanes_of(
        &self,
        names: &[TargetName],
        now: UtcMillis,
    ) -> Result<BTreeMap<TargetName, Vec<Lane>>, StoreError> {
        let mut wanted = Vec::new();
        for name in names {
            for action in PowerAction::ALL.iter().copied() {
                if !self.holds.iter().any(|hold| hold.covers(name, action, now)) {
                    wanted.push((name.clone(), action));
                }
            }
        }
        let mut lanes: BTreeMap<TargetName, Vec<Lane>> = BTreeMap::new();
        for lane in self.store.lanes(&wanted).await? {
            lanes.entry(lane.target.clone()).or_default().push(lane);
        }
        Ok(lanes)
    }

    fn is_ready(&self, name: &TargetName) -> bool {
        let is_fresh = |since: Steady| self.steady.since(since) < READY_FOR;
        self.targets.get(name).is_some_and(
            |target| matches!(target.ready, Readiness::Ready(since) if is_fresh(since)),
        )
    }

    /// The lane of `name` to claim from, if a call may leave at this moment; else notes when to ask
    /// again.
    async fn next_lane(
        &mut self,
        name: &TargetName,
        lanes: Vec<Lane>,
        round: &mut Round,
        now: UtcMillis,
    ) -> Result<Option<Lane>, StoreError> {
        let is_ready = self.is_ready(name);
        let Some(target) = self.targets.get(name) else {
            return Ok(None);
        };
        let limits = Limits {
            batch_servers_max: target.settings.batch_servers_max,
            linger: self.batching.linger,
        };
        let mut counted = Vec::new();
        for lane in lanes {
            // Nobody can join the others, so that nobody waits for them to fill.
            let may_grow = lane.group == 0;
            counted.push(if may_grow {
                self.store.count(&lane, limits.batch_servers_max).await?
            } else {
                lane
            });
        }
        let lanes = counted;
        let open = plan::open_lanes(name, &lanes, &self.holds, now);
        let lane = match plan::choose(&open, limits, now) {
            Choice::Go(lane) => lane,
            Choice::WaitUntil(at) => {
                round.wake(at);
                return Ok(None);
            }
            Choice::Nothing => return Ok(None),
        };
        // After a failed call one call probes whether the cloud is back; its end is followed by a
        // round.
        if target.doubted.contains(&lane.action) && target.submitting > 0 {
            return Ok(None);
        }
        let covered = !target.cloud.wants_baselines() || target.baselines.cover(&lane, now);
        if is_ready && covered {
            return Ok(Some(lane));
        }
        let heads = if covered {
            Vec::new()
        } else {
            self.heads(name, &lanes, now).await?
        };
        self.prepare(name, heads, round, now);
        Ok(None)
    }

    /// The requests of `name` that may leave next, of all lanes that are not held: one look shows
    /// the servers of all.
    async fn heads(
        &self,
        name: &TargetName,
        lanes: &[Lane],
        now: UtcMillis,
    ) -> Result<Vec<Head>, StoreError> {
        let held = |lane: &Lane| {
            self.holds
                .iter()
                .any(|hold| hold.covers(name, lane.action, now))
        };
        let mut open: Vec<&Lane> = lanes
            .iter()
            .filter(|lane| lane.target == *name && !held(lane))
            .collect();
        open.sort_by_key(|lane| (-lane.head_priority, lane.head_id));
        let each = (HEADS_MAX / open.len().max(1)).max(self.batch_servers_max(name) as usize);
        open.truncate(HEADS_MAX.div_ceil(each));
        self.store.heads(&open, each as u32).await
    }

    fn batch_servers_max(&self, name: &TargetName) -> u32 {
        self.targets
            .get(name)
            .map_or(1, |target| target.settings.batch_servers_max)
    }

    fn prepare(&mut self, name: &TargetName, heads: Vec<Head>, round: &mut Round, now: UtcMillis) {
        let Some(target) = self.targets.get_mut(name) else {
            return;
        };
        target.ready = Readiness::Preparing(now);
        target.open += 1;
        target.opened_at = self.steady;
        let servers = heads.iter().map(|head| head.server.clone()).collect();
        target.heads = heads;
        round.tasks.push(Task::Prepare {
            target: name.clone(),
            servers,
            cloud: target.cloud.clone(),
        });
    }

    /// How many servers the next call for this action may carry; none if its budget is used up,
    /// which is a hold.
    async fn allowed(
        &mut self,
        name: &TargetName,
        action: PowerAction,
        round: &mut Round,
        now: UtcMillis,
    ) -> Result<Option<u32>, StoreError> {
        let Some(target) = self.targets.get(name) else {
            return Ok(None);
        };
        // While it is in doubt whether calls arrive, one server is enough to find out.
        let most = if target.doubted.contains(&action) {
            1
        } else {
            target.settings.batch_servers_max
        };
        let Some((_, budget)) = target.settings.budgets.iter().find(|(of, _)| *of == action) else {
            return Ok(Some(most));
        };
        let since = now.before(budget.span + self.clocks.allowance(budget.span, self.steady));
        let mut spent = self.store.spent(name, action, since, now).await?;
        spent
            .iter_mut()
            .for_each(|(at, _)| *at = self.clocks.corrected(*at, now));
        match plan::allowance(*budget, &spent, now) {
            Allowance::Servers(left) => Ok(Some(left.min(most))),
            Allowance::NoneUntil(until) => {
                let span = humantime::format_duration(budget.span);
                let reason = format!(
                    "the budget {action} = \"{}/{span}\" is used up until {until}",
                    budget.servers
                );
                let (target, action, kind) = (Some(name.clone()), Some(action), HoldKind::Budget);
                let hold = Hold {
                    target,
                    action,
                    kind,
                    reason,
                    since: now,
                    until: Some(until),
                };
                info!(target = %name, hold.until = %until, "target \"{name}\": {}", hold.reason);
                self.store.put_hold(&hold).await?;
                self.holds.push(hold);
                round.wake(until);
                Ok(None)
            }
        }
    }

    /// Claims what was chosen, if nothing has gone wrong since. A claim is a stored intent; its
    /// call is in the round's tasks.
    pub(super) async fn claim_chosen(
        &mut self,
        chosen: Chosen,
        others: Result<(), StoreError>,
        round: &mut Round,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let Chosen {
            target: name,
            lane,
            servers_max,
        } = chosen;
        let Some(target) = self.targets.get_mut(&name) else {
            return others;
        };
        target.open = target.open.saturating_sub(1);
        others?;
        // The last moment: whoever has asked for a stop meanwhile gets no new intent.
        if self.is_halted() {
            return Ok(());
        }
        round.wake(now);
        self.last_served = Some(name.clone());
        self.claim(&name, &lane, servers_max, round, now).await
    }

    async fn claim(
        &mut self,
        name: &TargetName,
        lane: &Lane,
        servers_max: u32,
        round: &mut Round,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let Some(target) = self.targets.get_mut(name) else {
            return Ok(());
        };
        let barred = if lane.action.interrupts() {
            target.settings.protected.as_slice()
        } else {
            &[]
        };
        let heads = match target.cloud.wants_baselines() {
            true => Some(target.baselines.take(lane, servers_max)),
            false => None,
        };
        let which = heads
            .as_deref()
            .map_or(Which::First(servers_max), Which::These);
        let Some(batch) = self
            .store
            .claim(lane, &target.origin, which, barred, now)
            .await?
        else {
            // Held, cancelled or protected at this very moment: the next round sees which.
            return Ok(());
        };
        target.pace.call_started();
        target.submitting += 1;
        target.open += 1;
        target.opened_at = self.steady;
        self.in_hand.insert(batch.id);
        let began = Now {
            utc: now,
            steady: self.steady,
        };
        self.watches.insert(batch.id, Watch::of_call(began));
        self.observers.meter.claimed(&batch);
        round.tasks.push(Task::Submit {
            batch,
            cloud: target.cloud.clone(),
        });
        Ok(())
    }

    /// A batch whose intent is stored and whose call was not begun, since a stop was asked for at
    /// this moment: nothing of it is in doubt, and its requests stand in the queue as before.
    ///
    /// # Errors
    /// Only those that no waiting mends.
    pub async fn not_begun(&mut self, batch: Batch, now: UtcMillis) -> Result<(), StoreError> {
        self.in_hand.remove(&batch.id);
        if let Some(target) = self.targets.get_mut(&batch.target) {
            target.pace.call_ended(now);
            target.submitting = target.submitting.saturating_sub(1);
            target.open = target.open.saturating_sub(1);
        }
        let step = Step::not_begun(&batch, "the daemon was stopped before the call began");
        self.save(
            Answered {
                batch,
                step,
                error: None,
            },
            now,
        )
        .await
    }

    /// A call that was neither accepted nor lost uses up nothing of a budget: what it had used up
    /// may go to others at once.
    pub(super) async fn free_budget(&mut self, answered: &Answered) -> Result<(), StoreError> {
        let Answered { batch, step, .. } = answered;
        let is_spent = match step.batch {
            BatchNext::Track { .. } => true,
            BatchNext::Look { cause, .. } => cause == LookCause::Lost,
            BatchNext::Again { .. } | BatchNext::Done => false,
        };
        let is_held = |hold: &Hold| {
            let (target, action) = (hold.target.as_ref(), hold.action);
            hold.kind == HoldKind::Budget
                && target == Some(&batch.target)
                && action == Some(batch.action)
        };
        if batch.state != BatchState::Submitting || is_spent || !self.holds.iter().any(is_held) {
            return Ok(());
        }
        match self.store.lift_budget(&batch.target, batch.action).await {
            // It ends by itself.
            Err(error) if error.is_passing() => Ok(()),
            lifted => lifted,
        }
    }

    /// The cloud is ready for calls, or says why not.
    pub(super) async fn prepared(
        &mut self,
        name: &TargetName,
        result: Result<Observed, CallError>,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let Some(target) = self.targets.get_mut(name) else {
            return Ok(());
        };
        target.open = target.open.saturating_sub(1);
        let (heads, was) = (std::mem::take(&mut target.heads), target.ready);
        // One server that cannot be read keeps nobody from leaving; what is wrong with it the call
        // itself will show.
        let result = match result {
            Ok(Observed {
                ended_by: Some(error),
                ..
            }) if error.fault == Fault::Credentials => Err(error),
            result => result,
        };
        target.ready = if result.is_ok() {
            Readiness::Ready(self.steady)
        } else {
            Readiness::Unknown
        };
        // Without a call that was signed, nothing is known of the key.
        if !heads.is_empty() || result.is_err() {
            self.learn_of_key(name, result.as_ref().err(), now).await;
        }
        match result {
            Ok(observed) => {
                if !heads.is_empty() {
                    self.learn_from_read(name, observed.ended_by.as_ref(), now)
                        .await;
                }
                let asked_at = if let Readiness::Preparing(since) = was {
                    since
                } else {
                    now
                };
                self.take_baselines(name, &heads, &observed, asked_at, now)
                    .await
            }
            Err(error) => {
                if !heads.is_empty() {
                    self.hold_reads(name, &error, now);
                }
                self.stand_back(name, None, &error, now).await;
                Ok(())
            }
        }
    }

    async fn take_baselines(
        &mut self,
        name: &TargetName,
        heads: &[Head],
        observed: &Observed,
        asked_at: UtcMillis,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        if heads.is_empty() {
            return Ok(());
        }
        let sorted = Baselines::sort(heads, observed, asked_at, now);
        if let Some(target) = self.targets.get_mut(name) {
            target.baselines = sorted.baselines;
        }
        match self.store.put_off(&sorted.put_off).await {
            // They stay where they are, and are looked at again.
            Err(error) if error.is_passing() => Ok(()),
            done => done,
        }
    }

    /// A submit call has ended: what follows for its batch, and for the target's next calls.
    pub(super) async fn submitted(
        &mut self,
        batch: Batch,
        answer: Result<Tracking, CallError>,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let history = self
            .store
            .job_history(&batch.target, batch.action)
            .await
            .unwrap_or_default();
        let Some(target) = self.targets.get_mut(&batch.target) else {
            return Ok(());
        };
        target.pace.call_ended(now);
        target.submitting = target.submitting.saturating_sub(1);
        target.open = target.open.saturating_sub(1);
        let rules = target.rules;
        let error = answer.as_ref().err().cloned();
        self.learn_of_key(&batch.target, error.as_ref(), now).await;
        self.learn_from_submit(&batch.target, batch.action, error.as_ref(), now)
            .await;
        let case = Case {
            batch: &batch,
            watch: self.watch(batch.id),
            rules: &rules,
            now,
        };
        let step = verdict::after_submit(case, answer, &history);
        self.note_step(&batch, &step);
        self.save(Answered { batch, step, error }, now).await
    }

    /// What the fate of a submit call means for the next ones.
    async fn learn_from_submit(
        &mut self,
        name: &TargetName,
        action: PowerAction,
        error: Option<&CallError>,
        now: UtcMillis,
    ) {
        match error.map(|error| (error, &error.fault)) {
            None | Some((_, Fault::Refused(_))) => self.reached(name, action, now).await,
            Some((error, _)) => self.stand_back(name, Some(action), error, now).await,
        }
    }

    /// What the fate of a read means for the target. Refused credentials concern every call. A
    /// throttled read holds the other reads; if the cloud named the wait, new calls too, since
    /// nobody could see meanwhile what becomes of them.
    pub(super) async fn learn_from_read(
        &mut self,
        name: &TargetName,
        error: Option<&CallError>,
        now: UtcMillis,
    ) {
        let Some(error) = error else {
            self.targets
                .get_mut(name)
                .into_iter()
                .for_each(|target| target.reads.answered());
            return;
        };
        match &error.fault {
            Fault::Credentials => self.stand_back(name, None, error, now).await,
            Fault::Throttled { retry_after, .. } => {
                let was_held = self
                    .targets
                    .get(name)
                    .is_some_and(|target| target.reads.wait(now).is_some());
                self.hold_reads(name, error, now);
                let until = self
                    .targets
                    .get(name)
                    .and_then(|target| target.reads.wait(now));
                if let (Some(_), Some(until)) = (retry_after, until) {
                    let (target, kind) = (Some(name.clone()), HoldKind::Breaker);
                    let reason = format!("the cloud throttles reads: {error}");
                    if !was_held {
                        warn!(target = %name, hold.until = %until, "target \"{name}\" is held until {until}: {reason}");
                    }
                    self.put_hold(Hold {
                        target,
                        action: None,
                        kind,
                        reason,
                        since: now,
                        until: Some(until),
                    })
                    .await;
                }
                // A restart at this moment remembers it too.
                if let Err(error) = self.note_paces(now).await {
                    warn!(target = %name, "reads are throttled; the queue cannot store that yet, so it is kept in memory: {error}");
                }
            }
            _ => {}
        }
    }

    fn hold_reads(&mut self, name: &TargetName, error: &CallError, now: UtcMillis) {
        if let Fault::Throttled { retry_after, .. } = error.fault
            && let Some(target) = self.targets.get_mut(name)
        {
            target.reads.throttled(now, retry_after);
        }
    }

    /// The service answered: whatever kept calls back is over, unless reads are held or the time is
    /// not over. A call that was open beside the one that was throttled says nothing of how long
    /// the cloud wants to be left alone.
    async fn reached(&mut self, name: &TargetName, action: PowerAction, now: UtcMillis) {
        let Some(target) = self.targets.get_mut(name) else {
            return;
        };
        target.pace.answered();
        target.doubted.remove(&action);
        let waits = target.reads.wait(now).is_some() || target.pace.is_blocked(now);
        if !waits && std::mem::take(&mut target.broken) {
            match self.store.lift_hold(name, HoldKind::Breaker).await {
                Ok(true) => info!(target = %name, "target \"{name}\" answers again"),
                Ok(false) => {}
                Err(error) => {
                    warn!(target = %name, "cannot remove the hold on target \"{name}\" yet: {error}")
                }
            }
        }
    }

    /// No call leaves for a while, and `holds` says why. `action` is what was asked for, if
    /// anything was.
    async fn stand_back(
        &mut self,
        name: &TargetName,
        action: Option<PowerAction>,
        error: &CallError,
        now: UtcMillis,
    ) {
        let is_about_key = matches!(error.fault, Fault::Credentials | Fault::Permission);
        if is_about_key && !self.is_signed_by_present_key(name) {
            return;
        }
        let Some(target) = self.targets.get_mut(name) else {
            return;
        };
        let pace = &mut target.pace;
        let (kind, until, what) = match &error.fault {
            // That of a token or a read says nothing of how fast submit calls may follow one
            // another.
            Fault::Throttled { retry_after, .. } if action.is_none() => (
                HoldKind::Breaker,
                pace.stand_back(now, *retry_after),
                "the cloud throttles calls",
            ),
            Fault::Throttled { retry_after, limit } => (
                HoldKind::Breaker,
                pace.throttled(now, *retry_after, *limit),
                "the cloud throttles submit calls",
            ),
            Fault::Unreachable => (
                HoldKind::Breaker,
                pace.stand_back(now, None),
                "the cloud cannot be reached",
            ),
            Fault::Unavailable => (
                HoldKind::Breaker,
                pace.stand_back(now, error.retry_after),
                "the cloud is not available",
            ),
            Fault::Lost => (
                HoldKind::Breaker,
                pace.stand_back(now, error.retry_after),
                "the last call's answer was lost",
            ),
            Fault::Credentials => (HoldKind::Credentials, now, REFUSED),
            Fault::Permission => (
                HoldKind::Credentials,
                now + CREDENTIALS_HOLD,
                "the credentials lack a permission",
            ),
            Fault::Configuration | Fault::Refused(_) => (
                HoldKind::Breaker,
                pace.stand_back(now, Some(CONFIGURATION_HOLD)),
                "the target's settings are wrong",
            ),
        };
        target.broken |= kind == HoldKind::Breaker;
        target.doubt(&error.fault, action);
        let reason = format!("{what}: {error}");
        let is_known = |hold: &Hold| {
            hold.kind == kind
                && hold.target.as_ref() == Some(name)
                && hold.until.is_some_and(|until| until > now)
        };
        // Calls that were open beside a failed one fail of the same trouble.
        let is_news = !self.holds.iter().any(is_known);
        let until = match error.fault {
            Fault::Credentials => self.hold_key(name, &reason, now).await,
            _ => {
                // A user may hold the permission for one action and not for another.
                let action = action.filter(|_| error.fault == Fault::Permission);
                let (target, reason) = (Some(name.clone()), reason.clone());
                self.put_hold(Hold {
                    target,
                    action,
                    kind,
                    reason,
                    since: now,
                    until: Some(until),
                })
                .await;
                until
            }
        };
        if is_news {
            warn!(target = %name, hold.until = %until, "target \"{name}\" is held until {until}: {reason}");
        } else {
            debug!(target = %name, hold.until = %until, "target \"{name}\" is held until {until}: {reason}");
        }
    }

    /// Puts a hold into the queue and into the present plan.
    pub(super) async fn put_hold(&mut self, hold: Hold) {
        if let Err(error) = self.store.put_hold(&hold).await {
            warn!("the queue cannot store a hold; it is kept in memory only: {error}");
        }
        self.holds.push(hold);
    }
}
