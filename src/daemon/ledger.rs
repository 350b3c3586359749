//! What is stored of batches, and who is told of it: the log, the counters, the hooks.
//!
//! Owns the answers that the database did not take yet. Decides nothing.

use std::sync::Arc;

use tracing::warn;

use super::holds::Holds;
use super::report;
use crate::lifecycle::{BatchNext, Step};
use crate::meter::Meter;
use crate::model::{Batch, BatchState, CallError, Evidence, LookCause, UtcMillis};
use crate::notify::Notifier;
use crate::settings::NotifySettings;
use crate::store::{EndedCounts, Store, StoreError};

/// Who is told what the daemon does, beside the log. By default nobody listens.
#[derive(Debug, Clone, Default)]
pub struct Observers {
    /// Counts it.
    pub meter: Arc<Meter>,
    /// Tells the hooks what failed.
    pub notifier: Notifier,
}

/// Requests moved in one transaction, before another one begins.
const MOVES_MAX: usize = 2000;

/// See the module.
pub(super) struct Ledger {
    store: Arc<Store>,
    observers: Observers,
    /// Answers that are about to be stored.
    new: Vec<Answered>,
    /// Answers that the database did not take.
    unsaved: Vec<Answered>,
}

/// An answer and what follows from it, on its way into the database.
pub(super) struct Answered {
    pub(super) batch: Batch,
    pub(super) step: Step,
    pub(super) error: Option<CallError>,
}

impl Answered {
    /// True for a submit call that was neither accepted nor lost: it uses up nothing of a budget.
    fn frees_budget(&self) -> bool {
        let is_spent = match self.step.batch {
            BatchNext::Track { .. } => true,
            BatchNext::Look { cause, .. } => cause == LookCause::Lost,
            BatchNext::Again { .. } | BatchNext::Done => false,
        };
        self.batch.state == BatchState::Submitting && !is_spent
    }
}

/// How many of them are stored in one transaction, which stays short.
fn first_of(answers: &[Answered]) -> usize {
    let mut moves = 0;
    for (number, answered) in answers.iter().enumerate() {
        moves += answered.step.moves.len();
        if moves >= MOVES_MAX {
            return number + 1;
        }
    }
    answers.len()
}

impl Ledger {
    /// One that nobody listens to yet.
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            observers: Observers::default(),
            new: Vec::new(),
            unsaved: Vec::new(),
        }
    }

    /// From now on `observers` are told.
    pub(super) fn observe(&mut self, observers: Observers) {
        self.observers = observers;
    }

    /// Other hooks are told from now on.
    pub(super) fn apply(&self, hooks: Option<&NotifySettings>) {
        self.observers.notifier.take_up(hooks);
    }

    pub(super) fn meter(&self) -> &Meter {
        &self.observers.meter
    }

    /// Answers that wait to be stored.
    pub(super) fn unsaved(&self) -> usize {
        self.unsaved.len()
    }

    /// Those of them that came to submit calls.
    pub(super) fn unsaved_submits(&self) -> usize {
        let batches = self.unsaved.iter().map(|answered| &answered.batch);
        batches
            .filter(|batch| batch.state == BatchState::Submitting)
            .count()
    }

    /// Takes what follows from an answer: `save_new` stores it.
    pub(super) fn take(&mut self, answered: Answered) {
        self.new.push(answered);
    }

    /// Stores what was taken, all of it together, and then says so. What cannot be stored is kept.
    ///
    /// # Errors
    /// Only those that no waiting fixes.
    pub(super) async fn save_new(
        &mut self,
        holds: &Holds,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        while !self.new.is_empty() {
            let rest = self.new.split_off(first_of(&self.new));
            let some = std::mem::replace(&mut self.new, rest);
            let steps: Vec<(&Batch, &Step)> = some
                .iter()
                .map(|answered| (&answered.batch, &answered.step))
                .collect();
            match self.store.record_all(&steps, now).await {
                Ok(()) => {
                    for answered in &some {
                        self.after_save(answered, holds, now).await?;
                    }
                }
                Err(error) if error.is_passing() => self.keep(some, &error),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn keep(&mut self, answers: Vec<Answered>, error: &StoreError) {
        for answered in answers {
            let id = answered.batch.id;
            warn!(batch.id = %id, "batch {id}: the answer cannot be stored yet: {}", report::chain(error));
            self.unsaved.push(answered);
        }
        self.meter().database_failed(self.unsaved.len());
    }

    /// The clock was set: what follows from answers that wait to be stored moves along.
    pub(super) fn move_times(&mut self, by_ms: i64) {
        for answered in self.new.iter_mut().chain(&mut self.unsaved) {
            answered.step.move_times(by_ms);
        }
    }

    /// Tries again to store the answers that could not be stored.
    ///
    /// # Errors
    /// The database still fails.
    pub(super) async fn save_all(
        &mut self,
        holds: &Holds,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        while let Some(answered) = self.unsaved.last() {
            self.store_answer(answered, now).await?;
            if let Some(answered) = self.unsaved.pop() {
                self.after_save(&answered, holds, now).await?;
            }
        }
        Ok(())
    }

    /// Stores a step that no call came before, and says so.
    ///
    /// # Errors
    /// Those of the store; then nothing is kept.
    pub(super) async fn record(
        &self,
        answered: &Answered,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        self.store_answer(answered, now).await?;
        self.tell(answered, now);
        Ok(())
    }

    /// Counts requests that ended without a call.
    pub(super) fn count(&self, ended: &EndedCounts) {
        for ((target, action, state, code), count) in ended {
            let how = (*state, Evidence::None, code.as_str());
            self.meter().ended(target, *action, how, *count);
        }
    }

    async fn store_answer(&self, answered: &Answered, now: UtcMillis) -> Result<(), StoreError> {
        self.store
            .record(&answered.batch, &answered.step, now)
            .await
    }

    async fn after_save(
        &self,
        answered: &Answered,
        holds: &Holds,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        self.meter().looked(&answered.batch, &answered.step, now);
        self.tell(answered, now);
        if !answered.frees_budget() {
            return Ok(());
        }
        let batch = &answered.batch;
        holds.free_budget(&batch.target, batch.action).await
    }

    /// A step was stored: says so in the log, and to those who count and to the hooks.
    fn tell(&self, answered: &Answered, now: UtcMillis) {
        let Answered { batch, step, error } = answered;
        report::step(batch, step, error.as_ref());
        self.meter().stored(batch, step);
        self.observers.notifier.stored(batch, step, now);
    }
}
