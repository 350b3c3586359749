//! The follow pass: which open batches are asked for now. What the answers mean is decided in
//! `answers`.

use std::collections::BTreeMap;

use tracing::warn;

use super::holds::Holds;
use super::ledger::{Answered, Ledger};
use super::open_batches::OpenBatches;
use super::target::keys::{self, RefusedKeys};
use super::target::{self, Target, Targets};
use super::task::Round;
use crate::lifecycle::Step;
use crate::model::{Batch, BatchState, DueBatch, JobId, Origin, TargetName, UtcMillis};
use crate::pace::{self, OpenJob};
use crate::store::{DueFilter, DueTarget, Hands, Snapshot, Store, StoreError};
use crate::verdict::{self, Case, Watch};

/// Open batches of one target considered in one round.
const CONSIDERED_MAX: u32 = 256;
/// Steps stored in one round that no call came before: each is a synced write, and calls wait to
/// leave.
const RECORDS_MAX: usize = 4;

/// The pass of one round.
pub(super) struct FollowPass<'a> {
    pub(super) store: &'a Store,
    pub(super) targets: &'a mut Targets,
    pub(super) holds: &'a Holds,
    pub(super) keys: &'a RefusedKeys,
    pub(super) batches: &'a mut OpenBatches,
    pub(super) ledger: &'a Ledger,
    pub(super) round: &'a mut Round,
    pub(super) seen: &'a Snapshot,
    pub(super) picked: Picked,
}

/// What a pass has picked up.
#[derive(Default)]
pub(super) struct Picked {
    /// Batches whose servers are to be looked at, by target.
    looks: BTreeMap<TargetName, Vec<Batch>>,
    /// Steps stored.
    records: usize,
}

/// When a batch that may be asked for has its turn.
enum When {
    Now,
    /// Not in this round, as those after it may have theirs.
    Later,
    /// Neither have those after it.
    LastOne,
}

impl FollowPass<'_> {
    /// Picks the open batches whose next look is due. Only one task works on a batch at a time; a
    /// target's servers are looked at by one task at a time, for all batches that want it.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn run(mut self) -> Result<(), StoreError> {
        let outcome = self.gather().await;
        // Also after a failure half-way: what was picked up counts as an open call.
        for (name, batches) in self.picked.looks {
            if let Some(target) = self.targets.get(&name) {
                self.round.tasks.push(target.look(batches));
            }
        }
        outcome
    }

    async fn gather(&mut self) -> Result<(), StoreError> {
        let now = self.round.now.utc;
        for target in &self.seen.open {
            if target.at > now {
                self.round.wake(target.at);
            } else {
                self.gather_of(target).await?;
            }
        }
        for target in &self.seen.open {
            self.bring_looks_forward(&target.target).await?;
        }
        Ok(())
    }

    /// Moves the looks at a target's jobs that may have ended sooner than was thought when they were
    /// planned.
    async fn bring_looks_forward(&mut self, name: &TargetName) -> Result<(), StoreError> {
        let Some(target) = self.targets.get(name) else {
            return Ok(());
        };
        let actions = target.actions_with_news();
        // Looks that a hold has put off stay where they are; what is new is not forgotten.
        if actions.is_empty() || self.reads_held(target).is_some() {
            return Ok(());
        }
        let Some(target) = self.targets.get_mut(name) else {
            return Ok(());
        };
        let now = self.round.now.utc;
        let limit = target.rules().job_time_limit;
        for action in actions {
            let learned = target.learned(action);
            let mut looks = Vec::new();
            for due in self.store.waiting_jobs(name, action, now).await? {
                let job = open_job(&due, now);
                let planned = job.age + due.at.since(now);
                let sooner = learned.brought_forward(job, planned).unwrap_or(planned);
                // The limit may be lower than when it was planned.
                let age = sooner.min(limit).max(job.age);
                if age < planned {
                    looks.push((due.id, now + (age - job.age)));
                }
            }
            self.store.move_looks(&looks).await?;
            target.news_applied(action);
            if !looks.is_empty() {
                self.round.wake_now();
            }
        }
        Ok(())
    }

    /// Puts off the looks that would show nothing, since other jobs have lasted longer and still
    /// run. Returns those that are left.
    async fn put_off_looks(&mut self, due: Vec<DueBatch>) -> Result<Vec<DueBatch>, StoreError> {
        let now = self.round.now.utc;
        let mut left = Vec::with_capacity(due.len());
        let mut looks = Vec::new();
        for batch in due {
            let until = if batch.at <= now {
                self.put_off_until(&batch)
            } else {
                None
            };
            match until {
                Some(until) => {
                    self.round.wake(until);
                    looks.push((batch.id, until));
                }
                None => left.push(batch),
            }
        }
        self.store.move_looks(&looks).await?;
        if !looks.is_empty() {
            // More may be due than were read.
            self.round.wake_now();
        }
        Ok(left)
    }

    fn put_off_until(&self, due: &DueBatch) -> Option<UtcMillis> {
        let now = self.round.now.utc;
        let is_followed = due.state == BatchState::Tracking && !due.by_servers;
        if !is_followed || !due.is_plain {
            return None;
        }
        let target = self.targets.get(&due.target)?;
        let job = open_job(due, now);
        let learned = target.learned(due.action);
        let age = learned.put_off(job)?.min(target.rules().job_time_limit);
        (age > job.age).then(|| now + (age - job.age))
    }

    async fn gather_of(&mut self, due: &DueTarget) -> Result<(), StoreError> {
        let hands = self.free_hands(&due.target);
        let in_progress = self.batches.in_progress();
        let filter = DueFilter {
            hands,
            except: in_progress,
            limit: CONSIDERED_MAX,
        };
        let due_batches = self.store.due_batches(due, &filter).await?;
        for due in self.put_off_looks(due_batches).await? {
            match self.turn_of(&due) {
                When::Now => self.consider(&due).await?,
                When::Later => {}
                When::LastOne => break,
            }
        }
        Ok(())
    }

    fn turn_of(&mut self, due: &DueBatch) -> When {
        let now = self.round.now.utc;
        let is_soon = due.at <= now + pace::JOIN_WITHIN;
        // A look that is made anyway shows the servers of those too that would want one soon.
        if due.at <= now || (is_soon && self.joins_a_look(due)) {
            return When::Now;
        }
        self.round.wake(due.at);
        if is_soon { When::Later } else { When::LastOne }
    }

    async fn consider(&mut self, due: &DueBatch) -> Result<(), StoreError> {
        if self.picked.records >= RECORDS_MAX && self.is_stored_only(due) {
            self.round.wake_now();
            return Ok(());
        }
        if !self.has_hand_free(due) {
            return Ok(());
        }
        match self.store.load_batch(due.id).await? {
            Some((batch, origin)) => self.pick_up(batch, &origin).await,
            None => Ok(()),
        }
    }

    fn joins_a_look(&self, due: &DueBatch) -> bool {
        due.by_servers && self.picked.looks.contains_key(&due.target)
    }

    fn free_hands(&self, name: &TargetName) -> Hands {
        let target = self.targets.get(name);
        Hands {
            jobs: target.is_none_or(|target| target::may_track(target, self.targets)),
            looks: target.is_none_or(|target| !target.is_looking()),
        }
    }

    /// False for what must wait for the end of another task; that end is followed by a round.
    fn has_hand_free(&self, due: &DueBatch) -> bool {
        let hands = self.free_hands(&due.target);
        if due.by_servers {
            return self.joins_a_look(due) || (hands.looks && self.may_call(&due.target));
        }
        match due.state {
            BatchState::Tracking => hands.jobs && self.may_call(&due.target),
            BatchState::Submitting | BatchState::Looking | BatchState::Done => true,
        }
    }

    fn may_call(&self, name: &TargetName) -> bool {
        keys::may_call(self.targets, name, self.round.now.steady)
    }

    /// True for a batch whose next step needs no call.
    fn is_stored_only(&self, due: &DueBatch) -> bool {
        due.state == BatchState::Submitting
            || self
                .targets
                .get(&due.target)
                .is_none_or(|target| self.reads_held(target).is_some())
    }

    /// Until when nothing is asked: while the cloud refuses the credentials, since reads would only
    /// prolong its lock, and while it throttles reads.
    fn reads_held(&self, target: &Target) -> Option<UtcMillis> {
        let now = self.round.now.utc;
        let name = target.name();
        let throttled = target.read_wait(now);
        if self.keys.may_read_while_held(name, self.targets, now) {
            throttled
        } else {
            throttled.max(self.holds.credentials_until(name, now))
        }
    }

    async fn pick_up(&mut self, batch: Batch, origin: &Origin) -> Result<(), StoreError> {
        let target = self.targets.get(&batch.target);
        let Some(target) = target.filter(|target| target.origin() == origin) else {
            let step = verdict::orphaned_target(&batch, self.round.now.utc);
            let id = batch.id;
            let name = &batch.target;
            warn!(batch.id = %id, target = %name, "batch {id}: target \"{name}\" was removed from the config or changed since the call");
            return self.record(batch, step).await;
        };
        if let Some(step) = self.step_without_call(&batch, target) {
            return self.record(batch, step).await;
        }
        match (batch.job.clone(), batch.state) {
            (Some(job), BatchState::Tracking) => self.track(batch, job),
            _ => self.look_at(batch),
        }
        Ok(())
    }

    /// What follows for a batch of this target that needs no call.
    fn step_without_call(&self, batch: &Batch, target: &Target) -> Option<Step> {
        let no_looks = Watch::default();
        let case = Case {
            batch,
            watch: self.batches.watch_of(batch.id).unwrap_or(&no_looks),
            rules: &target.rules(),
            learned: target.learned(batch.action),
            now: self.round.now.utc,
        };
        if batch.state == BatchState::Submitting {
            return Some(verdict::orphaned_intent(case));
        }
        let until = self.reads_held(target)?;
        Some(verdict::while_held(case, until))
    }

    fn track(&mut self, batch: Batch, job: JobId) {
        let now = self.round.now.steady;
        if let Some(target) = self.targets.get_mut(&batch.target) {
            self.batches.read_begins(batch.id);
            self.round.tasks.push(target.track(batch, job, now));
        }
    }

    fn look_at(&mut self, batch: Batch) {
        self.batches.read_begins(batch.id);
        if let Some(batches) = self.picked.looks.get_mut(&batch.target) {
            batches.push(batch);
            return;
        }
        let name = batch.target.clone();
        if let Some(target) = self.targets.get_mut(&name) {
            target.look_begins(self.round.now);
        }
        self.picked.looks.insert(name, vec![batch]);
    }

    /// Stores a step that no call came before, and says so. The next round sees when the batch is
    /// due from now on.
    async fn record(&mut self, batch: Batch, step: Step) -> Result<(), StoreError> {
        self.round.wake_now();
        self.picked.records += 1;
        let answered = Answered {
            batch,
            step,
            error: None,
        };
        self.ledger.record(&answered, self.round.now.utc).await?;
        if let Some(target) = self.targets.get_mut(&answered.batch.target) {
            target.note_step(&answered.batch, &answered.step);
        }
        self.batches.note_step(&answered.batch, &answered.step);
        Ok(())
    }
}

/// The job of a batch, at `now`.
fn open_job(due: &DueBatch, now: UtcMillis) -> OpenJob {
    OpenJob {
        id: due.id,
        age: now.since(due.accepted_at),
        looks: due.looks,
    }
}
