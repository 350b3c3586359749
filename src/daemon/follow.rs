//! The follow pass: which open batches are asked for now, and what follows from what they say.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::warn;

use super::dispatch::{Answered, Dispatcher, Round};
use super::task::Task;
use crate::cloud::{CallError, Observed};
use crate::lifecycle::Step;
use crate::model::{BatchState, HoldKind, JobReport, Now, TargetName, UtcMillis};
use crate::plan::Hold;
use crate::store::{DueBatch, Origin, StoreError};
use crate::verdict::{self, Batch, Case, Look, Rules, Watch};

/// Jobs asked for at once: each answer can be a quarter of a megabyte, and as much again when parsed.
const TRACKING_MAX: usize = 8;
/// Open batches considered in one round.
const CONSIDERED_MAX: u32 = 256;
/// Looks at one target's servers that lie no further apart than this are made as one.
const JOIN_WITHIN: Duration = Duration::from_secs(2);

/// No look is set further ahead than this: not by job times or intervals, nor by a credentials hold, `Retry-After` or the
/// patience with orphans, which are an hour at most. A bound too short would make a waiting batch due all the time.
fn longest_wait(rules: &Rules) -> Duration {
    ((rules.job_time_limit + rules.looks.interval_max) * 2).max(Duration::from_secs(2 * 3600))
}

impl Dispatcher {
    /// Picks the open batches whose next look is due. One batch is never in two hands; a target's servers are looked at by
    /// one task at a time, for all batches that want it.
    pub(super) async fn follow_pass(&mut self, round: &mut Round, now: UtcMillis) -> Result<(), StoreError> {
        let mut looks: BTreeMap<TargetName, Vec<Batch>> = BTreeMap::new();
        let gathered = self.gather(round, &mut looks, now).await;
        // Also after a failure half-way: what was picked up counts as an open call from then on.
        for (name, batches) in looks {
            let Some(target) = self.targets.get_mut(&name) else { continue };
            target.looking = Some(Now { utc: now, steady: self.steady });
            self.in_hand.extend(batches.iter().map(|batch| batch.id));
            round.tasks.push(Task::Look { target: name, batches, cloud: target.cloud.clone() });
        }
        gathered
    }

    async fn gather(
        &mut self,
        round: &mut Round,
        looks: &mut BTreeMap<TargetName, Vec<Batch>>,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        for due in self.store.open_batches(&self.in_hand, CONSIDERED_MAX).await? {
            // A look that is made anyway shows the servers of those too that would want one soon.
            let joins = due.by_servers && looks.contains_key(&due.target) && due.at <= now + JOIN_WITHIN;
            if !joins && !self.is_due(&due, now) {
                round.wake(due.at);
                if due.at > now + JOIN_WITHIN {
                    break;
                }
                continue;
            }
            if self.has_a_hand_free(&due, looks)
                && let Some((batch, origin)) = self.store.load_batch(due.id).await?
            {
                self.pick_up(batch, &origin, round, looks, now).await?;
            }
        }
        Ok(())
    }

    /// A job was asked for.
    pub(super) async fn tracked(
        &mut self,
        batch: Batch,
        answer: Result<JobReport, CallError>,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        self.tracking = self.tracking.saturating_sub(1);
        let Some(target) = self.targets.get_mut(&batch.target) else { return Ok(()) };
        target.open = target.open.saturating_sub(1);
        let rules = target.rules;
        self.learn_of_key(&batch.target, answer.as_ref().err(), now).await;
        let step = match &answer {
            Ok(job) => {
                self.watch(batch.id).note_busy(verdict::busy_reboots(&batch, job));
                verdict::after_job(&batch, job, &rules, now)
            }
            Err(error) => {
                self.learn_from_read(&batch.target, error, now).await;
                verdict::after_failed_query(&batch, error, &rules, now)
            }
        };
        self.note_step(&batch, &step);
        self.save(Answered { batch, step, error: answer.err() }, now).await
    }

    /// Servers were looked at.
    pub(super) async fn looked(
        &mut self,
        name: &TargetName,
        batches: Vec<Batch>,
        answer: Result<Observed, CallError>,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let Some(target) = self.targets.get_mut(name) else { return Ok(()) };
        let ended = Now { utc: now, steady: self.steady };
        let look = Look { began: target.looking.take().unwrap_or(ended), ended };
        target.open = target.open.saturating_sub(1);
        let rules = target.rules;
        let concerns_target = match &answer {
            Ok(observed) => observed.ended_by.clone(),
            Err(error) => Some(error.clone()),
        };
        self.learn_of_key(name, concerns_target.as_ref(), now).await;
        if let Some(error) = &concerns_target {
            self.learn_from_read(name, error, now).await;
        }
        for batch in batches {
            let watch = self.watch(batch.id);
            let step = match &answer {
                Ok(observed) => {
                    watch.note_look(&batch, &observed.sightings, look, &rules);
                    let case = Case { batch: &batch, watch, rules: &rules, now };
                    let step = verdict::after_look(case, &observed.sightings);
                    verdict::name_failures(&batch, step, &observed.failures)
                }
                Err(error) => {
                    watch.note_failed_look(&batch);
                    verdict::after_failed_look(Case { batch: &batch, watch, rules: &rules, now }, error)
                }
            };
            self.note_step(&batch, &step);
            let error = answer.as_ref().err().cloned();
            self.save(Answered { batch, step, error }, now).await?;
        }
        Ok(())
    }

    /// A look that lies further ahead than any wait we set was set by a clock that has stepped back since.
    fn is_due(&self, due: &DueBatch, now: UtcMillis) -> bool {
        let longest = self.targets.get(&due.target).map(|target| longest_wait(&target.rules));
        due.at <= now || longest.is_some_and(|longest| due.at.since(now) > longest)
    }

    /// False for what must wait for the end of another task; that end is followed by a round.
    fn has_a_hand_free(&self, due: &DueBatch, looks: &BTreeMap<TargetName, Vec<Batch>>) -> bool {
        match due.state {
            _ if due.by_servers && looks.contains_key(&due.target) => true,
            _ if due.by_servers => {
                self.targets.get(&due.target).is_none_or(|target| target.looking.is_none())
                    && self.may_call(&due.target)
            }
            BatchState::Tracking => self.tracking < TRACKING_MAX && self.may_call(&due.target),
            BatchState::Submitting | BatchState::Looking | BatchState::Done => true,
        }
    }

    async fn pick_up(
        &mut self,
        batch: Batch,
        origin: &Origin,
        round: &mut Round,
        looks: &mut BTreeMap<TargetName, Vec<Batch>>,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let Some(target) = self.targets.get(&batch.target).filter(|target| target.origin == *origin) else {
            let step = verdict::orphaned_target(&batch, now);
            let (id, name) = (batch.id, &batch.target);
            warn!(batch.id = %id, target = %name, "batch {id}: the config no longer has target \"{name}\" as it was");
            round.wake(now);
            return self.record(&batch, &step, now).await;
        };
        if batch.state == BatchState::Submitting {
            let step = verdict::orphaned_intent(&batch, &target.rules, now);
            round.wake(now);
            return self.record(&batch, &step, now).await;
        }
        if let Some(until) = self.credentials_held(&batch.target, now) {
            let no_looks = Watch::default();
            let watch = self.watches.get(&batch.id).unwrap_or(&no_looks);
            let step = verdict::while_held(Case { batch: &batch, watch, rules: &target.rules, now }, until);
            // The next round sees when it is due from now on.
            round.wake(now);
            return self.record(&batch, &step, now).await;
        }
        match (&batch.job, batch.state) {
            (Some(job), BatchState::Tracking) => {
                let (job, cloud) = (job.clone(), target.cloud.clone());
                self.in_hand.insert(batch.id);
                self.tracking += 1;
                self.call_opens(&batch.target);
                round.tasks.push(Task::Track { batch, job, cloud });
            }
            _ => {
                if !looks.contains_key(&batch.target) {
                    self.call_opens(&batch.target);
                }
                looks.entry(batch.target.clone()).or_default().push(batch);
            }
        }
        Ok(())
    }

    /// Stores a step that no call came before, and says so.
    async fn record(&mut self, batch: &Batch, step: &Step, now: UtcMillis) -> Result<(), StoreError> {
        self.store.record(batch, step, now).await?;
        self.note_step(batch, step);
        self.tell(batch, step, None, now);
        Ok(())
    }

    fn call_opens(&mut self, name: &TargetName) {
        if let Some(target) = self.targets.get_mut(name) {
            target.open += 1;
        }
    }

    /// While the cloud refuses the credentials, reads would only prolong its lock. Those of a target whose own secret it takes go
    /// on, though another one's secret for the same key was refused: they add no bad signature.
    fn credentials_held(&self, target: &TargetName, now: UtcMillis) -> Option<UtcMillis> {
        if self.may_read_while_held(target, now) {
            return None;
        }
        let ours = |hold: &&Hold| {
            hold.kind == HoldKind::Credentials && hold.target.as_ref() == Some(target) && hold.action.is_none()
        };
        self.holds.iter().filter(ours).filter_map(|hold| hold.until).filter(|&until| until > now).max()
    }
}
