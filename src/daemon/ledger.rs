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

/// See the module.
pub(super) struct Ledger {
    store: Arc<Store>,
    observers: Observers,
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

impl Ledger {
    /// One that nobody listens to yet.
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            observers: Observers::default(),
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

    /// Stores what follows from an answer, and then says so. An answer that cannot be stored is
    /// kept.
    ///
    /// # Errors
    /// Only those that no waiting fixes.
    pub(super) async fn save(
        &mut self,
        answered: Answered,
        holds: &Holds,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        match self.store_answer(&answered, now).await {
            Ok(()) => self.after_save(&answered, holds, now).await,
            Err(error) if error.is_passing() => {
                let id = answered.batch.id;
                warn!(batch.id = %id, "batch {id}: the answer cannot be stored yet: {}", report::chain(&error));
                self.unsaved.push(answered);
                self.meter().database_failed(self.unsaved.len());
                Ok(())
            }
            Err(error) => Err(error),
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
