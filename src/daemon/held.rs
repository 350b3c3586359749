//! Requests that their labels hold. They are parked by the claim that meets them; here they are let
//! out when the pause, or the order, is gone.

use super::task::Round;
use crate::model::{Hold, HoldKind};
use crate::store::{HeldPlace, Snapshot, Store, StoreError};

/// The walk through held requests, one chunk a round.
#[derive(Default)]
pub(super) struct HeldWalk {
    /// Behind the last request that was looked at; none: no walk is on.
    after: Option<HeldPlace>,
    /// The pauses of labels, and how many orders had vanished, when the last walk was begun; none:
    /// there was no walk yet.
    begun_with: Option<(Vec<Hold>, u64)>,
}

impl HeldWalk {
    /// One chunk, if what holds labels has changed since the last walk.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn pass(
        &mut self,
        store: &Store,
        seen: &Snapshot,
        vanished_orders: u64,
        round: &mut Round,
    ) -> Result<(), StoreError> {
        let holding = (pauses_of_labels(&seen.holds), vanished_orders);
        if self.begun_with.as_ref() != Some(&holding) {
            self.begun_with = Some(holding);
            self.after = Some(HeldPlace::default());
        }
        let Some(after) = &self.after else {
            return Ok(());
        };
        self.after = store.release_held(after, round.now.utc).await?;
        round.wake_now();
        Ok(())
    }
}

fn pauses_of_labels(holds: &[Hold]) -> Vec<Hold> {
    holds
        .iter()
        .filter(|hold| hold.label.is_some() && hold.kind == HoldKind::Operator)
        .cloned()
        .collect()
}
