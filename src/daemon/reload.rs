//! New settings and secrets while the daemon runs: taken up as a whole, or refused as a whole. Reads no file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::oneshot;
use tracing::{info, warn};

use super::Clouds;
use super::dispatch::{Dispatcher, Target};
use crate::model::{HoldKind, TargetName, UtcMillis};
use crate::settings::Settings;
use crate::store::StoreError;

/// What the daemon shall go on with.
pub struct Reload {
    /// The new settings.
    pub settings: Settings,
    /// Clients for all their targets.
    pub clouds: Clouds,
    /// Targets whose secrets have been replaced: a `credentials` hold on them is lifted.
    pub new_secrets: BTreeSet<TargetName>,
    /// Told once the daemon goes on with them; dropped if it refuses.
    pub accepted: oneshot::Sender<()>,
}

/// Why new settings were refused; the old ones stay.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The queue cannot be exchanged under a running daemon.
    #[error("queue.database has changed; that takes a restart")]
    Database,
    /// Its open batches could not be asked for any more.
    #[error("targets.{target} is {change}, but {batches} of its batches are unfinished")]
    InUse {
        /// Which target.
        target: TargetName,
        /// What the new settings do to it.
        change: &'static str,
        /// How many.
        batches: i64,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Dispatcher {
    /// Goes on with new settings.
    ///
    /// # Errors
    /// The new settings leave unfinished batches behind, or the database failed. Nothing has changed then.
    pub async fn reload(&mut self, reload: Reload, now: UtcMillis) -> Result<(), ReloadError> {
        let Reload { settings, clouds, new_secrets, accepted } = reload;
        self.check(&settings).await?;
        let attempts_max = settings.batch.attempts_max.get();
        let mut targets = BTreeMap::new();
        for new in &settings.targets {
            let Some(cloud) = clouds.get(&new.name) else { continue };
            let target = match self.targets.remove(&new.name) {
                Some(mut target) if target.origin == Target::origin_of(new) => {
                    target.take_up(new, attempts_max, Arc::clone(cloud));
                    target
                }
                _ => Target::new(&self.store, new, attempts_max, Arc::clone(cloud), now).await?,
            };
            targets.insert(new.name.clone(), target);
        }
        let names: Vec<TargetName> = targets.keys().cloned().collect();
        self.targets = targets;
        self.store.forget_targets_except(&names).await?;
        for name in &names {
            // Budgets may have changed; those that still bind are found again at once.
            self.store.lift_hold(name, HoldKind::Budget).await?;
        }
        self.take_up(&settings);
        for name in new_secrets {
            self.renewed(&name).await;
        }
        let _ = accepted.send(());
        Ok(())
    }

    async fn check(&self, settings: &Settings) -> Result<(), ReloadError> {
        if settings.queue.database != self.store.path() {
            return Err(ReloadError::Database);
        }
        for (target, batches) in self.store.unfinished_batches().await? {
            let Some(old) = self.targets.get(&target) else { continue };
            let new = settings.targets.iter().find(|new| new.name == target);
            let change = match new.map(Target::origin_of) {
                None => "removed",
                Some(origin) if origin != old.origin => "given another service, endpoint or project",
                Some(_) => continue,
            };
            return Err(ReloadError::InUse { target, change, batches });
        }
        Ok(())
    }

    /// Its secrets have been replaced, so what was held for the old ones may go.
    async fn renewed(&mut self, name: &TargetName) {
        if let Some(target) = self.targets.get_mut(name) {
            target.pace.unblock();
            // Nobody has tried these yet: one call at a time until the cloud has taken them.
            target.proved = false;
        }
        match self.store.lift_hold(name, HoldKind::Credentials).await {
            Ok(true) => info!(target = %name, "target \"{name}\" has new credentials and is held no longer"),
            Ok(false) => {}
            Err(error) => {
                warn!(target = %name, "the credentials hold of target \"{name}\" stays until its end: {error}")
            }
        }
    }
}
