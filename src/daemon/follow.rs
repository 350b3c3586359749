//! The follow pass: which open batches are asked for now.

use tracing::warn;

use super::dispatch::{Dispatcher, Round};
use super::report;
use super::task::Task;
use crate::lifecycle::Step;
use crate::model::{BatchState, HoldKind, TargetName, UtcMillis};
use crate::store::{DueBatch, Origin, StoreError};
use crate::verdict::{self, Batch};

/// Answers that may be on their way at once: each can be a quarter of a megabyte, and as much again when parsed.
const FOLLOWING_MAX: usize = 8;

impl Dispatcher {
    /// Picks the open batches whose next look is due. One batch is never in two hands.
    pub(super) async fn follow_pass(&mut self, round: &mut Round, now: UtcMillis) -> Result<(), StoreError> {
        let free = FOLLOWING_MAX.saturating_sub(self.following);
        if free == 0 {
            return Ok(());
        }
        let open = self.store.open_batches(&self.in_hand, free as u32 + 1).await?;
        let picked = open.len();
        for due in open {
            if !self.is_due(&due, now) {
                round.wake(due.at);
                return Ok(());
            }
            if self.following >= FOLLOWING_MAX {
                return Ok(());
            }
            if let Some((batch, origin)) = self.store.load_batch(due.id).await? {
                self.pick_up(batch, &origin, round, now).await?;
            }
        }
        if picked > free {
            round.wake(now);
        }
        Ok(())
    }

    /// A look that lies further ahead than any wait we set was set by a clock that has stepped back since.
    fn is_due(&self, due: &DueBatch, now: UtcMillis) -> bool {
        let longest = self.targets.get(&due.target).map(|target| target.rules.job_time_limit * 2);
        due.at <= now || longest.is_some_and(|longest| due.at.since(now) > longest)
    }

    async fn pick_up(
        &mut self,
        batch: Batch,
        origin: &Origin,
        round: &mut Round,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let Some(target) = self.targets.get(&batch.target).filter(|target| target.origin == *origin) else {
            let step = verdict::orphaned_target(&batch, now);
            warn!(batch.id = %batch.id, target = %batch.target, "batch {}: the config no longer has target \"{}\" as it was", batch.id, batch.target);
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
        let cloud = target.cloud.clone();
        self.in_hand.insert(batch.id);
        self.following += 1;
        round.tasks.push(Task::Follow { batch, cloud });
        Ok(())
    }

    /// While the cloud refuses the credentials, reads would only prolong its lock.
    fn credentials_held(&self, target: &TargetName, now: UtcMillis) -> Option<UtcMillis> {
        let ours = |hold: &&crate::plan::Hold| {
            hold.kind == HoldKind::Credentials && hold.target.as_ref() == Some(target) && hold.action.is_none()
        };
        self.holds.iter().filter(ours).filter_map(|hold| hold.until).filter(|&until| until > now).max()
    }
}
