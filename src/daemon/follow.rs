//! The follow pass: which open batches are asked for now, and what follows from what they say.

use std::collections::{BTreeMap, HashMap};

use tracing::warn;

use super::dispatch::{Dispatcher, Round};
use super::report;
use super::task::Task;
use crate::cloud::CallError;
use crate::lifecycle::Step;
use crate::model::{BatchState, HoldKind, JobReport, ServerId, Sighting, TargetName, UtcMillis};
use crate::plan::Hold;
use crate::store::{DueBatch, Origin, StoreError};
use crate::verdict::{self, Batch};

/// Jobs asked for at once: each answer can be a quarter of a megabyte, and as much again when parsed.
const TRACKING_MAX: usize = 8;
/// Open batches considered in one round.
const CONSIDERED_MAX: u32 = 128;

impl Dispatcher {
    /// Picks the open batches whose next look is due. One batch is never in two hands; a target's servers are looked at by
    /// one task at a time, for all batches that want it.
    pub(super) async fn follow_pass(&mut self, round: &mut Round, now: UtcMillis) -> Result<(), StoreError> {
        let mut looks: BTreeMap<TargetName, Vec<Batch>> = BTreeMap::new();
        for due in self.store.open_batches(&self.in_hand, CONSIDERED_MAX).await? {
            if !self.is_due(&due, now) {
                round.wake(due.at);
                break;
            }
            if self.has_a_hand_free(&due)
                && let Some((batch, origin)) = self.store.load_batch(due.id).await?
            {
                self.pick_up(batch, &origin, round, &mut looks, now).await?;
            }
        }
        for (name, batches) in looks {
            let Some(target) = self.targets.get_mut(&name) else { continue };
            target.looking = Some(now);
            self.in_hand.extend(batches.iter().map(|batch| batch.id));
            round.tasks.push(Task::Look { target: name, batches, cloud: target.cloud.clone() });
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
        let Some(target) = self.targets.get(&batch.target) else { return Ok(()) };
        let rules = target.rules;
        let step = match &answer {
            Ok(job) => verdict::after_job(&batch, job, &rules, now),
            Err(error) => {
                self.learn_from_read(&batch.target, error, now).await;
                verdict::after_failed_query(&batch, error, &rules, now)
            }
        };
        report::step(&batch, &step, answer.err().as_ref());
        self.save(batch, step, now).await
    }

    /// Servers were looked at.
    pub(super) async fn looked(
        &mut self,
        name: &TargetName,
        batches: Vec<Batch>,
        answer: Result<HashMap<ServerId, Sighting>, CallError>,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let Some(target) = self.targets.get_mut(name) else { return Ok(()) };
        let asked_at = target.looking.take().unwrap_or(now);
        let rules = target.rules;
        if let Err(error) = &answer {
            self.learn_from_read(name, error, now).await;
        }
        for batch in batches {
            let step = match &answer {
                Ok(sightings) => verdict::after_look(&batch, sightings, &rules, asked_at, now),
                Err(error) => verdict::after_failed_look(&batch, error, &rules, now),
            };
            report::step(&batch, &step, answer.as_ref().err());
            self.save(batch, step, now).await?;
        }
        Ok(())
    }

    /// A look that lies further ahead than any wait we set was set by a clock that has stepped back since.
    fn is_due(&self, due: &DueBatch, now: UtcMillis) -> bool {
        let longest = self.targets.get(&due.target).map(|target| target.rules.job_time_limit * 2);
        due.at <= now || longest.is_some_and(|longest| due.at.since(now) > longest)
    }

    /// False for what must wait for the end of another task; that end is followed by a round.
    fn has_a_hand_free(&self, due: &DueBatch) -> bool {
        match due.state {
            BatchState::Tracking => self.tracking < TRACKING_MAX,
            BatchState::Looking => self.targets.get(&due.target).is_none_or(|target| target.looking.is_none()),
            BatchState::Submitting | BatchState::Done => true,
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
            return self.store.record(&batch, &step, now).await;
        };
        if batch.state == BatchState::Submitting {
            let step = verdict::orphaned_intent(&batch, &target.rules, now);
            report::step(&batch, &step, None);
            round.wake(now);
            return self.store.record(&batch, &step, now).await;
        }
        if let Some(until) = self.credentials_held(&batch.target, now) {
            return self.store.record(&batch, &Step::look_again(&batch, until), now).await;
        }
        match (&batch.job, batch.state) {
            (Some(job), BatchState::Tracking) => {
                let (job, cloud) = (job.clone(), target.cloud.clone());
                self.in_hand.insert(batch.id);
                self.tracking += 1;
                round.tasks.push(Task::Track { batch, job, cloud });
            }
            _ => looks.entry(batch.target.clone()).or_default().push(batch),
        }
        Ok(())
    }

    /// While the cloud refuses the credentials, reads would only prolong its lock.
    fn credentials_held(&self, target: &TargetName, now: UtcMillis) -> Option<UtcMillis> {
        let ours = |hold: &&Hold| {
            hold.kind == HoldKind::Credentials && hold.target.as_ref() == Some(target) && hold.action.is_none()
        };
        self.holds.iter().filter(ours).filter_map(|hold| hold.until).filter(|&until| until > now).max()
    }
}
