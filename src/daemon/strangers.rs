//! Targets that requests name and the config lacks: each is held, and warned of once.
//!
//! There may be very many of them, so they are walked through a chunk at a time, and only after
//! something was written.

use std::time::Duration;

use tracing::warn;

use super::dispatch::{Dispatcher, Round};
use crate::model::{Steady, TargetName, UtcMillis};
use crate::store::StoreError;

/// Targets, and holds, looked at in one round.
const CHUNK: u32 = 200;
/// Between two chunks of a walk.
const CHUNK_PAUSE: Duration = Duration::from_millis(20);
/// New ones of a chunk that get a line of their own.
const NAMED_MAX: usize = 5;

/// How far the walk has come.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    /// How the queue stood when the walk began; none: it is to begin anew.
    begun_at: Option<(i64, i64)>,
    /// The last target looked at; none: all have been.
    target: Option<String>,
    /// The last hold looked at; none: all have been.
    hold: Option<i64>,
    /// No chunk is looked at before this.
    after: Steady,
}

impl Strangers {
    fn is_done(&self) -> bool {
        self.target.is_none() && self.hold.is_none()
    }
}

impl Dispatcher {
    /// One chunk of the walk, if there is anything new.
    pub(super) async fn look_for_strangers(
        &mut self,
        round: &mut Round,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let pause = self.strangers.after.since(self.steady);
        if !pause.is_zero() {
            round.wake(now + pause);
            return Ok(());
        }
        let mark = self.store.change_mark().await?;
        if self.strangers.is_done() {
            if self.strangers.begun_at == Some(mark) {
                return Ok(());
            }
            self.strangers.begun_at = Some(mark);
            self.strangers.target = Some(String::new());
            self.strangers.hold = Some(0);
        }
        if let Some(last) = self.strangers.hold {
            let configured: Vec<TargetName> = self.targets.keys().cloned().collect();
            self.strangers.hold = self
                .store
                .lift_unknown_targets(&configured, last, CHUNK)
                .await?;
        }
        if let Some(last) = self.strangers.target.clone() {
            let used = self.store.targets_after(&last, CHUNK).await?;
            let unknown: Vec<TargetName> = used
                .iter()
                .filter(|name| !self.targets.contains_key(*name))
                .cloned()
                .collect();
            let new = self.store.hold_unknown_targets(&unknown, now).await?;
            warn_of(&new);
            let is_full = used.len() == CHUNK as usize;
            self.strangers.target = used.last().map(|name| name.0.clone()).filter(|_| is_full);
        }
        if !self.strangers.is_done() {
            self.strangers.after = Steady(self.steady.0 + CHUNK_PAUSE);
            round.wake(now + CHUNK_PAUSE);
        }
        Ok(())
    }
}

fn warn_of(new: &[TargetName]) {
    for target in new.iter().take(NAMED_MAX) {
        warn!(%target, "requests name target \"{target}\", which is not in the config; they are held until it is");
    }
    let others = new.len().saturating_sub(NAMED_MAX);
    if others > 0 {
        warn!(
            targets.unknown = others,
            "requests name {others} more targets that are not in the config; they are held"
        );
    }
}
