//! Batches that are not done, as far as this process remembers them: whose call is being made, and
//! what looks have shown. Never stored.

use std::collections::{BTreeMap, BTreeSet};

use crate::lifecycle::{BatchNext, Step};
use crate::model::{Batch, BatchId, Now};
use crate::verdict::Watch;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct OpenBatches {
    in_progress: BTreeSet<BatchId>,
    watches: BTreeMap<BatchId, Watch>,
}

impl OpenBatches {
    /// Those whose call is being made: only one task works on a batch at a time.
    pub(super) fn in_progress(&self) -> &BTreeSet<BatchId> {
        &self.in_progress
    }

    /// A submit call begins.
    pub(super) fn submit_begins(&mut self, id: BatchId, now: Now) {
        self.in_progress.insert(id);
        self.watches.insert(id, Watch::of_call(now));
    }

    /// A call begins that asks what became of a batch.
    pub(super) fn read_begins(&mut self, id: BatchId) {
        self.in_progress.insert(id);
    }

    /// Either call has ended.
    pub(super) fn call_ended(&mut self, id: BatchId) {
        self.in_progress.remove(&id);
    }

    /// What was seen of a batch, if this process has seen anything.
    pub(super) fn watch_of(&self, id: BatchId) -> Option<&Watch> {
        self.watches.get(&id)
    }

    /// The watch over a batch: begun anew if this process has none.
    pub(super) fn watch(&mut self, id: BatchId) -> &mut Watch {
        self.watches.entry(id).or_default()
    }

    /// Notes what was decided; a batch that is done needs no watch.
    pub(super) fn note_step(&mut self, batch: &Batch, step: &Step) {
        if step.batch == BatchNext::Done || step.moves.len() == batch.members.len() {
            self.watches.remove(&batch.id);
        } else {
            self.watch(batch.id).note_step(step);
        }
    }
}
