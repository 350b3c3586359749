//! The submit pass: which batches leave now, and what a call's fate means for the target's pace and holds.

use std::time::Duration;

use tracing::{info, warn};

use super::dispatch::{Answered, Dispatcher, Readiness, Round};
use super::task::Task;
use crate::cloud::{CallError, Fault};
use crate::model::{HoldKind, PowerAction, TargetName, Tracking, UtcMillis};
use crate::plan::{self, Allowance, Choice, Hold, Lane, Limits};
use crate::store::StoreError;
use crate::verdict::{self, Batch};

/// Submit calls of one target that may be open at once.
const SUBMITTING_MAX: usize = 16;
/// Longer than the cloud's own lock after too many bad signatures, which is five minutes. Source: vendor FAQs.
const CREDENTIALS_HOLD: Duration = Duration::from_secs(6 * 60);
/// A wrong endpoint or project does not mend itself; asking every so often notices that somebody did.
const CONFIGURATION_HOLD: Duration = Duration::from_secs(5 * 60);

impl Dispatcher {
    /// Claims what may leave now. A claim is a stored intent; its call is in the round's tasks.
    pub(super) async fn submit_pass(&mut self, round: &mut Round, now: UtcMillis) -> Result<(), StoreError> {
        let count_max = self.targets.values().map(|target| target.settings.batch_servers_max).max().unwrap_or(1);
        let mut lanes = self.store.lanes(count_max).await?;
        let names: Vec<TargetName> = self.targets.keys().cloned().collect();
        for name in names {
            while let Some(lane) = self.next_lane(&name, &lanes, round, now) {
                if let Some(servers_max) = self.allowed(&name, lane.action, round, now).await? {
                    self.claim(&name, &lane, servers_max, round, now).await?;
                    lanes = self.store.lanes(count_max).await?;
                }
            }
            if let Some(target) = self.targets.get_mut(&name)
                && target.ready == Readiness::Ready
            {
                target.ready = Readiness::Unknown;
            }
        }
        Ok(())
    }

    /// The lane of `name` to claim from, if a call may leave at this moment; else notes when to ask again.
    fn next_lane(&mut self, name: &TargetName, lanes: &[Lane], round: &mut Round, now: UtcMillis) -> Option<Lane> {
        if !self.may_call(name) {
            return None;
        }
        let target = self.targets.get_mut(name)?;
        let limits = Limits { batch_servers_max: target.settings.batch_servers_max, linger: self.batching.linger };
        let lane = match plan::choose(name, lanes, &self.holds, limits, now) {
            Choice::Go(lane) => lane,
            Choice::WaitUntil(at) => {
                round.wake(at);
                return None;
            }
            Choice::Nothing => return None,
        };
        // After a failed call one call probes whether the cloud is back; its end is followed by a round.
        let most = if target.pace.throttles() > 0 { 1 } else { SUBMITTING_MAX };
        if target.submitting >= most {
            return None;
        }
        if let Some(at) = target.pace.wait(now) {
            round.wake(at);
            return None;
        }
        match target.ready {
            Readiness::Ready => Some(lane),
            Readiness::Preparing => None,
            Readiness::Unknown => {
                target.ready = Readiness::Preparing;
                round.tasks.push(Task::Prepare { target: name.clone(), cloud: target.cloud.clone() });
                None
            }
        }
    }

    /// How many servers the next call for this action may carry; none if its budget is used up, which is a hold.
    async fn allowed(
        &mut self,
        name: &TargetName,
        action: PowerAction,
        round: &mut Round,
        now: UtcMillis,
    ) -> Result<Option<u32>, StoreError> {
        let Some(target) = self.targets.get(name) else { return Ok(None) };
        let most = target.settings.batch_servers_max;
        let Some((_, budget)) = target.settings.budgets.iter().find(|(of, _)| *of == action) else {
            return Ok(Some(most));
        };
        let spent = self.store.spent(name, action, now.before(budget.span)).await?;
        match plan::allowance(*budget, &spent, now) {
            Allowance::Servers(left) => Ok(Some(left.min(most))),
            Allowance::NoneUntil(until) => {
                let span = humantime::format_duration(budget.span);
                let reason =
                    format!("the budget of {} servers to {action} in {span} is used up until {until}", budget.servers);
                let (target, action, kind) = (Some(name.clone()), Some(action), HoldKind::Budget);
                let hold = Hold { target, action, kind, reason, since: now, until: Some(until) };
                info!(target = %name, hold.until = %until, "target \"{name}\": {}", hold.reason);
                self.store.put_hold(&hold).await?;
                self.holds.push(hold);
                round.wake(until);
                Ok(None)
            }
        }
    }

    async fn claim(
        &mut self,
        name: &TargetName,
        lane: &Lane,
        servers_max: u32,
        round: &mut Round,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let Some(target) = self.targets.get_mut(name) else { return Ok(()) };
        let barred = match lane.action {
            PowerAction::Start => &[],
            PowerAction::Stop | PowerAction::Reboot => target.settings.protected.as_slice(),
        };
        let Some(batch) = self.store.claim(lane, &target.origin, servers_max, barred, now).await? else {
            return self.reject_protected(now).await;
        };
        target.pace.call_started();
        target.submitting += 1;
        target.open += 1;
        self.in_hand.insert(batch.id);
        round.tasks.push(Task::Submit { batch, cloud: target.cloud.clone() });
        Ok(())
    }

    /// The cloud is ready for calls, or says why not.
    pub(super) async fn prepared(
        &mut self,
        name: &TargetName,
        result: Result<(), CallError>,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let Some(target) = self.targets.get_mut(name) else { return Ok(()) };
        target.ready = if result.is_ok() { Readiness::Ready } else { Readiness::Unknown };
        if let Err(error) = result {
            self.stand_back(name, &error, now).await;
        }
        Ok(())
    }

    /// A submit call has ended: what follows for its batch, and for the target's next calls.
    pub(super) async fn submitted(
        &mut self,
        batch: Batch,
        answer: Result<Tracking, CallError>,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let history = self.store.job_history(&batch.target, batch.action).await.unwrap_or_default();
        let Some(target) = self.targets.get_mut(&batch.target) else { return Ok(()) };
        target.pace.call_ended(now);
        target.submitting = target.submitting.saturating_sub(1);
        target.open = target.open.saturating_sub(1);
        let rules = target.rules;
        let error = answer.as_ref().err().cloned();
        self.learn_of_key(&batch.target, error.as_ref());
        self.learn_from_submit(&batch.target, error.as_ref(), now).await;
        let step = verdict::after_submit(&batch, answer, &history, &rules, now);
        self.save(Answered { batch, step, error }, now).await
    }

    /// What the fate of a submit call means for the next ones.
    async fn learn_from_submit(&mut self, name: &TargetName, error: Option<&CallError>, now: UtcMillis) {
        match error.map(|error| (error, &error.fault)) {
            None | Some((_, Fault::Refused(_))) => self.reached(name).await,
            Some((error, _)) => self.stand_back(name, error, now).await,
        }
    }

    /// What a failed read means for the target: only refused credentials concern more than this read.
    pub(super) async fn learn_from_read(&mut self, name: &TargetName, error: &CallError, now: UtcMillis) {
        if error.fault == Fault::Credentials {
            self.stand_back(name, error, now).await;
        }
    }

    /// The service answered: whatever kept calls back is over.
    async fn reached(&mut self, name: &TargetName) {
        let Some(target) = self.targets.get_mut(name) else { return };
        target.pace.answered();
        if std::mem::take(&mut target.broken) {
            match self.store.lift_hold(name, HoldKind::Breaker).await {
                Ok(true) => info!(target = %name, "target \"{name}\" answers again"),
                Ok(false) => {}
                Err(error) => warn!(target = %name, "the hold of target \"{name}\" stays for now: {error}"),
            }
        }
    }

    /// No call leaves for a while, and `holds` says why.
    async fn stand_back(&mut self, name: &TargetName, error: &CallError, now: UtcMillis) {
        let Some(target) = self.targets.get_mut(name) else { return };
        let pace = &mut target.pace;
        let (kind, until, what) = match &error.fault {
            Fault::Throttled { retry_after, limit } => {
                (HoldKind::Breaker, pace.throttled(now, *retry_after, *limit), "the cloud throttles submit calls")
            }
            Fault::Unreachable => (HoldKind::Breaker, pace.stand_back(now, None), "the cloud cannot be reached"),
            Fault::Unavailable => (HoldKind::Breaker, pace.stand_back(now, None), "the cloud is not available"),
            Fault::Lost => (HoldKind::Breaker, pace.stand_back(now, None), "the last call's answer was lost"),
            Fault::Credentials => (
                HoldKind::Credentials,
                pace.stand_back(now, Some(CREDENTIALS_HOLD)),
                "the cloud refuses the credentials",
            ),
            Fault::Permission => (
                HoldKind::Credentials,
                pace.stand_back(now, Some(CREDENTIALS_HOLD)),
                "the credentials lack a permission",
            ),
            Fault::Configuration | Fault::Refused(_) => {
                (HoldKind::Breaker, pace.stand_back(now, Some(CONFIGURATION_HOLD)), "the target's settings are wrong")
            }
        };
        target.broken |= kind == HoldKind::Breaker;
        let names = match error.fault {
            Fault::Credentials => self.sharing_key_with(name),
            _ => vec![name.clone()],
        };
        warn!(target = %name, hold.until = %until, "target \"{name}\" is held until {until}: {what}: {error}");
        for name in names {
            let hold = Hold {
                target: Some(name.clone()),
                action: None,
                kind,
                reason: format!("{what}: {error}"),
                since: now,
                until: Some(until),
            };
            if let Err(error) = self.store.put_hold(&hold).await {
                warn!(target = %name, "the hold of target \"{name}\" is kept in memory only: {error}");
            }
            self.holds.push(hold);
        }
    }

    /// While the cloud has not taken the key, calls that use it are made one at a time: five refused signatures in a row
    /// would lock it, and the first refusal holds all the others back. The end of a call is followed by a round.
    pub(super) fn may_call(&self, name: &TargetName) -> bool {
        let is_free = |name: &TargetName| self.targets.get(name).is_none_or(|target| target.open == 0);
        self.targets.get(name).is_none_or(|target| target.proved) || self.sharing_key_with(name).iter().all(is_free)
    }

    /// What the fate of any call says of the key: the service took it, or it was refused. Anything else says nothing.
    pub(super) fn learn_of_key(&mut self, name: &TargetName, error: Option<&CallError>) {
        let taken = match error.map(|error| &error.fault) {
            None | Some(Fault::Refused(_)) => true,
            Some(Fault::Credentials) => false,
            Some(
                Fault::Unreachable
                | Fault::Throttled { .. }
                | Fault::Unavailable
                | Fault::Lost
                | Fault::Permission
                | Fault::Configuration,
            ) => return,
        };
        if self.targets.get(name).is_none_or(|target| target.proved == taken) {
            return;
        }
        for name in self.sharing_key_with(name) {
            if let Some(target) = self.targets.get_mut(&name) {
                target.proved = taken;
            }
        }
    }

    /// The targets whose calls are made with the same key as those of `name`, itself included.
    fn sharing_key_with(&self, name: &TargetName) -> Vec<TargetName> {
        let key = self.targets.get(name).map(|target| target.cloud.key());
        let same = self.targets.iter().filter(|(_, other)| Some(other.cloud.key()) == key);
        same.map(|(name, _)| name.clone()).collect()
    }
}
