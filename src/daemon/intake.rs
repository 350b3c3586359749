//! The take-in: requests that become due, that end without a call, or that are rejected. A chunk at
//! a time, with pauses in which producers get their turn.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::clock::Clocks;
use super::ledger::Ledger;
use super::target::{Target, Targets};
use super::task::Round;
use crate::model::{Steady, UtcMillis, counted};
use crate::store::{Snapshot, Store, StoreError};

/// Between two chunks that are taken in: as long as a chunk lasts.
const CHUNK_PAUSE: Duration = Duration::from_millis(10);

/// See the module.
pub(super) struct Intake {
    store: Arc<Store>,
    default_ttl: Option<Duration>,
    /// No chunk is taken in before this.
    chunk_after: Steady,
}

impl Intake {
    pub(super) fn new(store: Arc<Store>, default_ttl: Option<Duration>) -> Self {
        Self {
            store,
            default_ttl,
            chunk_after: Steady(Duration::ZERO),
        }
    }

    /// Requests without a time of expiry expire after this from now on.
    pub(super) fn apply(&mut self, default_ttl: Option<Duration>) {
        self.default_ttl = default_ttl;
    }

    /// Lets out what is due, and ends what has expired or waited in vain.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn take_in(
        &mut self,
        seen: &Snapshot,
        ledger: &Ledger,
        clocks: &Clocks,
        round: &mut Round,
    ) -> Result<(), StoreError> {
        let now = round.now;
        if let Some(at) = seen.due_at.filter(|at| *at > now.utc) {
            round.wake(at);
        }
        if seen.due_at.is_none_or(|at| at > now.utc) {
            return Ok(());
        }
        let pause = self.chunk_after.since(now.steady);
        if !pause.is_zero() {
            round.wake(now.utc + pause);
            return Ok(());
        }
        let ttl = self.corrected_ttl(clocks, now.steady);
        let taken = self.store.take_in(ttl, now.utc).await?;
        if taken.expired + taken.cancelled > 0 {
            ledger.count(&taken.ended);
            info!(
                expired = taken.expired,
                cancelled = taken.cancelled,
                "requests ended without being sent: {} expired, {} cancelled",
                taken.expired,
                taken.cancelled
            );
        }
        if taken.more {
            self.chunk_after = Steady(now.steady.0 + CHUNK_PAUSE);
            round.wake(now.utc + CHUNK_PAUSE);
            return Ok(());
        }
        if let Some(at) = taken.next_at {
            round.wake(at.max(now.utc + Duration::from_millis(1)));
        }
        if taken.due + taken.cancelled + taken.expired > 0 {
            // What was let out by it is in no lane that this round knows.
            round.wake_now();
        }
        Ok(())
    }

    /// Rejects all requests for protected servers, before anything is claimed.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn reject_protected(
        &self,
        targets: &Targets,
        ledger: &Ledger,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        for (name, target) in targets {
            if target.protected().is_empty() {
                continue;
            }
            let rejected = self.reject_for(target, ledger, now).await?;
            if rejected > 0 {
                warn!(target = %name, requests.rejected = rejected, "rejected {} to stop or reboot protected servers of target \"{name}\"", counted(rejected, "request"));
            }
        }
        Ok(())
    }

    async fn reject_for(
        &self,
        target: &Target,
        ledger: &Ledger,
        now: UtcMillis,
    ) -> Result<u64, StoreError> {
        let mut rejected = 0;
        loop {
            let some = self
                .store
                .reject_protected(target.name(), target.protected(), now)
                .await?;
            if some.is_empty() {
                return Ok(rejected);
            }
            ledger.count(&some);
            rejected += some.values().sum::<u64>();
        }
    }

    /// What waited before the clock stepped ahead has not waited for longer because of it.
    pub(super) fn corrected_ttl(&self, clocks: &Clocks, now: Steady) -> Option<Duration> {
        self.default_ttl.map(|ttl| ttl + clocks.allowance(ttl, now))
    }
}
