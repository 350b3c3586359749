//! Targets that requests name and the config lacks: each is held, and warned of once.
//!
//! There may be very many of them, so they are walked through a chunk at a time, and only after
//! something was written.

use std::time::Duration;

use tracing::warn;

use super::target::Targets;
use super::task::Round;
use crate::model::{Steady, TargetName, UtcMillis, counted};
use crate::store::{Snapshot, Store, StoreError};

/// Targets, and holds, looked at in one round.
const CHUNK: u32 = 200;
/// Between two chunks of a walk.
const CHUNK_PAUSE: Duration = Duration::from_millis(20);
/// Between two walks while nobody else writes.
const OWN_PAUSE: Duration = Duration::from_secs(1);
/// New ones of a chunk that get a line of their own.
const NAMED_MAX: usize = 5;

/// How far the walk has come. The default begins it anew.
#[derive(Debug, Default)]
pub(super) struct UnknownTargets {
    /// How the queue stood when the walk began; none: it is to begin anew.
    begun_at: Option<(i64, i64)>,
    /// The last target looked at; none: all have been.
    target: Option<String>,
    /// The last hold looked at; none: all have been.
    hold: Option<i64>,
    /// No chunk is looked at before this.
    after: Steady,
    /// No walk is begun before this for what the daemon itself has written.
    own_after: Steady,
}

impl UnknownTargets {
    /// One chunk of the walk, if there is anything new.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn look(
        &mut self,
        store: &Store,
        seen: &Snapshot,
        targets: &Targets,
        round: &mut Round,
    ) -> Result<(), StoreError> {
        let now = round.now;
        let pause = self.after.since(now.steady);
        if !pause.is_zero() {
            round.wake(now.utc + pause);
            return Ok(());
        }
        if self.is_done() {
            if self.begun_at == Some(seen.change_mark) {
                return Ok(());
            }
            // Nobody else has written: what the daemon itself has ended can wait a little.
            let is_own = self.begun_at.map(|(_, others)| others) == Some(seen.change_mark.1);
            let pause = self.own_after.since(now.steady);
            if is_own && !pause.is_zero() {
                round.wake(now.utc + pause);
                return Ok(());
            }
            self.own_after = Steady(now.steady.0 + OWN_PAUSE);
            self.begin(seen.change_mark);
        }
        if let Some(last) = self.hold {
            let configured: Vec<TargetName> = targets.keys().cloned().collect();
            self.hold = store.lift_unknown_targets(&configured, last, CHUNK).await?;
        }
        if let Some(last) = self.target.clone() {
            self.target = hold_unknown(store, targets, &last, now.utc).await?;
        }
        if !self.is_done() {
            self.after = Steady(now.steady.0 + CHUNK_PAUSE);
            round.wake(now.utc + CHUNK_PAUSE);
        }
        Ok(())
    }

    fn begin(&mut self, mark: (i64, i64)) {
        self.begun_at = Some(mark);
        self.target = Some(String::new());
        self.hold = Some(0);
    }

    fn is_done(&self) -> bool {
        self.target.is_none() && self.hold.is_none()
    }
}

/// Holds the unknown ones among the next targets after `last`, and returns the last of these; none:
/// there are no more.
async fn hold_unknown(
    store: &Store,
    targets: &Targets,
    last: &str,
    now: UtcMillis,
) -> Result<Option<String>, StoreError> {
    let used = store.targets_after(last, CHUNK).await?;
    let unknown: Vec<TargetName> = used
        .iter()
        .filter(|name| !targets.contains_key(*name))
        .cloned()
        .collect();
    let new = store.hold_unknown_targets(&unknown, now).await?;
    warn_of(&new);
    let is_full = used.len() == CHUNK as usize;
    Ok(used.last().map(|name| name.0.clone()).filter(|_| is_full))
}

fn warn_of(new: &[TargetName]) {
    for target in new.iter().take(NAMED_MAX) {
        warn!(%target, "requests name target \"{target}\", which is not in the config; they are held until it is");
    }
    let others = new.len().saturating_sub(NAMED_MAX);
    if others > 0 {
        warn!(
            targets.unknown = others,
            "also held: {} that requests name and the config lacks",
            counted(others, "more target")
        );
    }
}
