//! The follow pass: which open batches are asked for now, and what follows from what they say.

use std::collections::BTreeMap;

use tracing::warn;

use super::dispatch::{Answered, Dispatcher, Round, Target};
use super::task::Task;
use crate::cloud::Observed;
use crate::lifecycle::Step;
use crate::model::{
    Batch, BatchState, CallError, DueBatch, Hold, HoldKind, JobReport, Now, Origin, TargetName,
    UtcMillis,
};
use crate::pace;
use crate::store::{Hands, StoreError};
use crate::verdict::{self, Case, Look, Watch};

/// Jobs of one target that are asked for at once.
const TRACKING_EACH_MAX: usize = 8;
/// Jobs asked for at once in all: each answer can be a quarter of a megabyte, and as much again
/// when parsed.
const TRACKING_MAX: usize = 32;
/// These each target has for itself, however many the others ask for: one whose answers never come
/// holds up no other.
const TRACKING_OWN: usize = 2;
/// Open batches of one target considered in one round.
const CONSIDERED_MAX: u32 = 256;
/// Steps stored in one round that no call came before: each is a synced write, and calls wait to
/// leave.
const RECORDS_MAX: usize = 4;

/// What a round picks up.
#[derive(Default)]
struct Gathered {
    /// Batches whose servers are to be looked at, by target.
    looks: BTreeMap<TargetName, Vec<Batch>>,
    /// Steps stored.
    records: usize,
}

impl Dispatcher {
    /// Picks the open batches whose next look is due. One batch is never in two hands; a target's
    /// servers are looked at by one task at a time, for all batches that want it.
    pub(super) async fn follow_pass(
        &mut self,
        round: &mut Round,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let mut gathered = Gathered::default();
        let outcome = self.gather(round, &mut gathered, now).await;
        // Also after a failure half-way: what was picked up counts as an open call from then on.
        for (name, batches) in gathered.looks {
            let Some(target) = self.targets.get_mut(&name) else {
                continue;
            };
            target.looking = Some(Now {
                utc: now,
                steady: self.steady,
            });
            self.in_hand.extend(batches.iter().map(|batch| batch.id));
            round.tasks.push(Task::Look {
                target: name,
                batches,
                cloud: target.cloud.clone(),
            });
        }
        outcome
    }

    async fn gather(
        &mut self,
        round: &mut Round,
        gathered: &mut Gathered,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        for target in self.store.due_targets(&self.in_hand).await? {
            if target.at > now {
                round.wake(target.at);
                continue;
            }
            let hands = self.free_hands(&target.target);
            for due in self
                .store
                .due_batches(&target, hands, &self.in_hand, CONSIDERED_MAX)
                .await?
            {
                // A look that is made anyway shows the servers of those too that would want one
                // soon.
                let joins = due.by_servers
                    && gathered.looks.contains_key(&due.target)
                    && due.at <= now + pace::JOIN_WITHIN;
                if !joins && due.at > now {
                    round.wake(due.at);
                    if due.at > now + pace::JOIN_WITHIN {
                        break;
                    }
                    continue;
                }
                if gathered.records >= RECORDS_MAX && self.is_stored_only(&due, now) {
                    round.wake(now);
                    continue;
                }
                if self.has_a_hand_free(&due, gathered)
                    && let Some((batch, origin)) = self.store.load_batch(due.id).await?
                {
                    self.pick_up(batch, &origin, round, gathered, now).await?;
                }
            }
        }
        Ok(())
    }

    fn free_hands(&self, name: &TargetName) -> Hands {
        let Some(target) = self.targets.get(name) else {
            return Hands {
                jobs: true,
                looks: true,
            };
        };
        Hands {
            jobs: self.may_track(target),
            looks: target.looking.is_none(),
        }
    }

    fn may_track(&self, target: &Target) -> bool {
        target.tracking < TRACKING_OWN
            || (target.tracking < TRACKING_EACH_MAX && self.tracking < TRACKING_MAX)
    }

    /// True for a batch whose next step needs no call.
    fn is_stored_only(&self, due: &DueBatch, now: UtcMillis) -> bool {
        due.state == BatchState::Submitting
            || !self.targets.contains_key(&due.target)
            || self.reads_held(&due.target, now).is_some()
    }

    /// A job was asked for.
    pub(super) async fn tracked(
        &mut self,
        batch: Batch,
        answer: Result<JobReport, CallError>,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        self.tracking = self.tracking.saturating_sub(1);
        let Some(target) = self.targets.get_mut(&batch.target) else {
            return Ok(());
        };
        target.open = target.open.saturating_sub(1);
        target.tracking = target.tracking.saturating_sub(1);
        let rules = target.rules;
        self.learn_of_key(&batch.target, answer.as_ref().err(), now)
            .await;
        self.learn_from_read(&batch.target, answer.as_ref().err(), now)
            .await;
        let watch = self.watch(batch.id);
        if let Ok(job) = &answer {
            watch.note_busy(verdict::busy_reboots(&batch, job));
        }
        let case = Case {
            batch: &batch,
            watch,
            rules: &rules,
            now,
        };
        let step = match &answer {
            Ok(job) => verdict::after_job(case, job),
            Err(error) => verdict::after_failed_query(case, error),
        };
        self.note_step(&batch, &step);
        self.save(
            Answered {
                batch,
                step,
                error: answer.err(),
            },
            now,
        )
        .await
    }

    /// Servers were looked at.
    pub(super) async fn looked(
        &mut self,
        name: &TargetName,
        batches: Vec<Batch>,
        answer: Result<Observed, CallError>,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let Some(target) = self.targets.get_mut(name) else {
            return Ok(());
        };
        let ended = Now {
            utc: now,
            steady: self.steady,
        };
        let began = target.looking.take().unwrap_or(ended);
        target.open = target.open.saturating_sub(1);
        let rules = target.rules;
        let concerns_target = match &answer {
            Ok(observed) => observed.ended_by.clone(),
            Err(error) => Some(error.clone()),
        };
        self.learn_of_key(name, concerns_target.as_ref(), now).await;
        self.learn_from_read(name, concerns_target.as_ref(), now)
            .await;
        for batch in batches {
            let watch = self.watch(batch.id);
            match &answer {
                Ok(observed) => {
                    let look = Look {
                        began,
                        ended,
                        sightings: &observed.sightings,
                    };
                    watch.note_look(&batch, look, rules.settle_time);
                }
                Err(_) => watch.note_failed_look(&batch),
            }
            let case = Case {
                batch: &batch,
                watch,
                rules: &rules,
                now,
            };
            let step = match &answer {
                Ok(observed) => {
                    let step = verdict::after_look(case, &observed.sightings);
                    verdict::name_failures(&batch, step, &observed.failures)
                }
                Err(error) => verdict::after_failed_look(case, error),
            };
            self.note_step(&batch, &step);
            let error = answer.as_ref().err().cloned();
            self.save(Answered { batch, step, error }, now).await?;
        }
        Ok(())
    }

    /// False for what must wait for the end of another task; that end is followed by a round.
    fn has_a_hand_free(&self, due: &DueBatch, gathered: &Gathered) -> bool {
        match due.state {
            _ if due.by_servers && gathered.looks.contains_key(&due.target) => true,
            _ if due.by_servers => {
                self.targets
                    .get(&due.target)
                    .is_none_or(|target| target.looking.is_none())
                    && self.may_call(&due.target)
            }
            BatchState::Tracking => {
                self.targets
                    .get(&due.target)
                    .is_none_or(|target| self.may_track(target))
                    && self.may_call(&due.target)
            }
            BatchState::Submitting | BatchState::Looking | BatchState::Done => true,
        }
    }

    async fn pick_up(
        &mut self,
        mut batch: Batch,
        origin: &Origin,
        round: &mut Round,
        gathered: &mut Gathered,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        self.clocks.correct_loaded(&mut batch);
        let Some(target) = self
            .targets
            .get(&batch.target)
            .filter(|target| target.origin == *origin)
        else {
            let step = verdict::orphaned_target(&batch, now);
            let (id, name) = (batch.id, &batch.target);
            warn!(batch.id = %id, target = %name, "batch {id}: target \"{name}\" was removed from the config or changed since the call");
            round.wake(now);
            gathered.records += 1;
            return self.record(&batch, &step, now).await;
        };
        let no_looks = Watch::default();
        let case = Case {
            batch: &batch,
            watch: self.watches.get(&batch.id).unwrap_or(&no_looks),
            rules: &target.rules,
            now,
        };
        if batch.state == BatchState::Submitting {
            let step = verdict::orphaned_intent(case);
            round.wake(now);
            gathered.records += 1;
            return self.record(&batch, &step, now).await;
        }
        if let Some(until) = self.reads_held(&batch.target, now) {
            let step = verdict::while_held(case, until);
            // The next round sees when it is due from now on.
            round.wake(now);
            gathered.records += 1;
            return self.record(&batch, &step, now).await;
        }
        match (&batch.job, batch.state) {
            (Some(job), BatchState::Tracking) => {
                let (job, cloud) = (job.clone(), target.cloud.clone());
                self.in_hand.insert(batch.id);
                self.tracking += 1;
                if let Some(target) = self.targets.get_mut(&batch.target) {
                    target.tracking += 1;
                }
                self.call_opens(&batch.target);
                round.tasks.push(Task::Track { batch, job, cloud });
            }
            _ => {
                if !gathered.looks.contains_key(&batch.target) {
                    self.call_opens(&batch.target);
                }
                gathered
                    .looks
                    .entry(batch.target.clone())
                    .or_default()
                    .push(batch);
            }
        }
        Ok(())
    }

    /// Stores a step that no call came before, and says so.
    async fn record(
        &mut self,
        batch: &Batch,
        step: &Step,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        self.store.record(batch, step, now).await?;
        self.note_step(batch, step);
        self.tell(batch, step, None, now);
        Ok(())
    }

    pub(super) fn call_opens(&mut self, name: &TargetName) {
        if let Some(target) = self.targets.get_mut(name) {
            target.open += 1;
            target.opened_at = self.steady;
        }
    }

    /// Until when nothing is asked: while the cloud refuses the credentials, reads would only
    /// prolong its lock; and while it throttles reads. Those of a target whose own secret it takes
    /// go on, though another one's secret for the same key was refused: they add no bad signature.
    fn reads_held(&self, name: &TargetName, now: UtcMillis) -> Option<UtcMillis> {
        let ours = |hold: &&Hold| {
            hold.kind == HoldKind::Credentials
                && hold.target.as_ref() == Some(name)
                && hold.action.is_none()
        };
        let may_read = self.may_read_while_held(name, now);
        let credentials = self
            .holds
            .iter()
            .filter(ours)
            .filter(|_| !may_read)
            .filter_map(|hold| hold.until);
        let throttled = self
            .targets
            .get(name)
            .and_then(|target| target.reads.wait(now));
        credentials
            .filter(|&until| until > now)
            .chain(throttled)
            .max()
    }
}
