//! What keeps calls from leaving: the rows of `holds` as the present round knows them. Puts and
//! lifts those that are ours.

use std::sync::Arc;

use tracing::{info, warn};

use super::task::Round;
use crate::model::{Hold, HoldKind, Lane, PowerAction, TargetName, UtcMillis};
use crate::store::{Snapshot, Store, StoreError};

/// See the module.
pub(super) struct Holds {
    store: Arc<Store>,
    present: Vec<Hold>,
    /// What was last said of rows that cannot be read.
    unreadable: Vec<String>,
}

impl Holds {
    /// Knows of none before the first review.
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            present: Vec::new(),
            unreadable: Vec::new(),
        }
    }

    /// Knows those that the queue has now. What has passed is removed from there.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn review(
        &mut self,
        seen: &Snapshot,
        round: &mut Round,
    ) -> Result<(), StoreError> {
        if seen.has_past_holds {
            self.store.end_past_holds(round.now.utc).await?;
        }
        self.present.clone_from(&seen.holds);
        if seen.unreadable_holds != self.unreadable {
            self.unreadable.clone_from(&seen.unreadable_holds);
            self.unreadable
                .iter()
                .for_each(|sentence| warn!("{sentence}"));
        }
        for until in self.present.iter().filter_map(|hold| hold.until) {
            round.wake(until);
        }
        Ok(())
    }

    pub(super) fn present(&self) -> &[Hold] {
        &self.present
    }

    /// True while this lane is kept from going out.
    pub(super) fn cover(&self, lane: &Lane, now: UtcMillis) -> bool {
        self.present.iter().any(|hold| hold.covers(lane, now))
    }

    /// Until when all calls of this target are held because of its credentials.
    pub(super) fn credentials_until(
        &self,
        target: &TargetName,
        now: UtcMillis,
    ) -> Option<UtcMillis> {
        self.present
            .iter()
            .filter(|hold| hold.kind == HoldKind::Credentials && hold.action.is_none())
            .filter(|hold| hold.target.as_ref() == Some(target))
            .filter_map(|hold| hold.until)
            .filter(|until| *until > now)
            .max()
    }

    /// True if this target is held for a reason of this kind already: calls that were open beside
    /// a failed one fail of the same trouble.
    pub(super) fn is_known(&self, target: &TargetName, kind: HoldKind, now: UtcMillis) -> bool {
        self.present.iter().any(|hold| {
            hold.kind == kind
                && hold.target.as_ref() == Some(target)
                && hold.until.is_some_and(|until| until > now)
        })
    }

    /// Puts a hold into the queue, if that works, and into the present plan.
    pub(super) async fn put(&mut self, hold: Hold) {
        if let Err(error) = self.store.put_hold(&hold).await {
            warn!("the queue cannot store a hold; it is kept in memory only: {error}");
        }
        self.present.push(hold);
    }

    /// Puts a hold into the queue and into the present plan.
    ///
    /// # Errors
    /// Those of the store; then it is in neither.
    pub(super) async fn try_put(&mut self, hold: Hold) -> Result<(), StoreError> {
        self.store.put_hold(&hold).await?;
        self.present.push(hold);
        Ok(())
    }

    /// Of the kind `kind` exactly these hold, from now on; what is known of them already stays.
    ///
    /// # Errors
    /// Those of the store; then nothing has changed.
    pub(super) async fn exchange(
        &mut self,
        kind: HoldKind,
        wanted: Vec<Hold>,
    ) -> Result<(), StoreError> {
        let (old, others): (Vec<Hold>, Vec<Hold>) = std::mem::take(&mut self.present)
            .into_iter()
            .partition(|hold| hold.kind == kind && hold.label.is_none());
        let over: Vec<Hold> = old
            .iter()
            .filter(|hold| !wanted.iter().any(|new| new.has_place_of(hold)))
            .cloned()
            .collect();
        let put: Vec<Hold> = wanted
            .iter()
            .filter(|new| !old.iter().any(|hold| new.says_the_same_as(hold)))
            .cloned()
            .collect();
        let exchanged = if put.is_empty() && over.is_empty() {
            Ok(())
        } else {
            self.store.exchange_holds(&put, &over).await
        };
        self.present = others;
        self.present.extend(match exchanged {
            Ok(()) => wanted,
            Err(_) => old,
        });
        exchanged
    }

    /// The target answers: what kept calls back is over.
    pub(super) async fn lift_breaker(&self, target: &TargetName) {
        match self.store.lift_hold(target, HoldKind::Breaker).await {
            Ok(true) => info!(target = %target, "target \"{target}\" answers again"),
            Ok(false) => {}
            Err(error) => {
                warn!(target = %target, "cannot remove the hold on target \"{target}\" yet: {error}");
            }
        }
    }

    /// The credentials of a target are tried again, if they were held.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn lift_credentials(
        &self,
        target: &TargetName,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        if self.store.lift_hold(target, HoldKind::Credentials).await? {
            // Looks were put off to the end of the hold.
            self.store.look_at_once(target, now).await?;
            info!(target = %target, "trying the credentials of target \"{target}\" again");
        }
        Ok(())
    }

    /// What a call had used up of a budget may go to others at once.
    ///
    /// # Errors
    /// Only those that no waiting fixes.
    pub(super) async fn free_budget(
        &self,
        target: &TargetName,
        action: PowerAction,
    ) -> Result<(), StoreError> {
        let is_held = self.present.iter().any(|hold| {
            hold.kind == HoldKind::Budget
                && hold.target.as_ref() == Some(target)
                && hold.action == Some(action)
        });
        if !is_held {
            return Ok(());
        }
        match self.store.lift_budget(target, action).await {
            // It ends automatically.
            Err(error) if error.is_passing() => Ok(()),
            lifted => lifted,
        }
    }
}
