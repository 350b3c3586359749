//! New settings and secrets while the daemon runs: taken up as a whole, or refused as a whole.
//! Reads no file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tracing::warn;

use super::dispatch::{Dispatcher, Target};
use super::keys::Renewal;
use super::strangers::Strangers;
use super::{Clouds, report};
use crate::model::{HoldKind, TargetName, UtcMillis};
use crate::settings::{Settings, TargetSettings};
use crate::store::StoreError;
use tokio::sync::oneshot;

/// What the daemon shall go on with.
pub struct Reload {
    /// The new settings.
    pub settings: Settings,
    /// Clients for all their targets.
    pub clouds: Clouds,
    /// Somebody asked for it: what may have been fixed in the cloud is tried at once, too. False
    /// if only a secret has changed.
    pub is_asked_for: bool,
    /// Told once the daemon goes on with them; dropped if it refuses.
    pub accepted: oneshot::Sender<()>,
}

/// Why new settings were refused; the old ones stay.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The queue cannot be exchanged under a running daemon.
    #[error("queue.database has changed; restart the daemon to use the new file")]
    Database,
    /// Its open batches could not be asked for any more.
    #[error("targets.{target} is {change}, but it has unfinished batches: {batches}")]
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
    /// The new settings leave unfinished batches behind, or the database failed. Nothing has
    /// changed then.
    pub async fn reload(&mut self, reload: Reload, now: UtcMillis) -> Result<(), ReloadError> {
        let Reload {
            settings,
            clouds,
            is_asked_for,
            accepted,
        } = reload;
        self.check(&settings).await?;
        let attempts_max = settings.batch.attempts_max.get();
        let mut targets = BTreeMap::new();
        // First what may fail, so that nothing has changed then.
        for new in settings.targets.iter().filter(|new| !self.has(new)) {
            let Some(cloud) = clouds.get(&new.name) else {
                continue;
            };
            let target =
                Target::new(&self.store, new, attempts_max, Arc::clone(cloud), now).await?;
            targets.insert(new.name.clone(), target);
        }
        let known = |new: &&TargetSettings| clouds.contains_key(&new.name);
        let names: Vec<TargetName> = settings
            .targets
            .iter()
            .filter(known)
            .map(|new| new.name.clone())
            .collect();
        self.store.forget_targets_except(&names).await?;
        let renewed = self.renewed_keys(&clouds);
        let renewal = Renewal {
            renewed,
            held_before: self.held_for_keys(now),
            is_asked_for,
        };
        for name in &names {
            // Budgets may have changed; those that still bind are found again at once. And whoever
            // reloads has mended something: a call finds out.
            self.store.lift_hold(name, HoldKind::Budget).await?;
            self.store.lift_hold(name, HoldKind::Breaker).await?;
        }
        let mut asked_again = Vec::new();
        for new in &settings.targets {
            if targets.contains_key(&new.name) {
                continue;
            }
            if let (Some(mut target), Some(cloud)) =
                (self.targets.remove(&new.name), clouds.get(&new.name))
            {
                let throttled = target.reads.wait(now).is_some();
                target.take_up(new, attempts_max, Arc::clone(cloud));
                asked_again.extend(throttled.then(|| new.name.clone()));
                targets.insert(new.name.clone(), target);
            }
        }
        self.targets = targets;
        self.strangers = Strangers::default();
        self.take_up(&settings);
        for name in asked_again {
            // Its looks were put off to the end of the throttling.
            if let Err(error) = self.store.look_at_once(&name, now).await {
                warn!(target = %name, "the looks at target \"{name}\" stay postponed: {}", report::chain(&error));
            }
        }
        if let Err(error) = self.retry_keys(&renewal, now).await {
            warn!(
                "cannot remove the holds of refused keys yet: {}",
                report::chain(&error)
            );
        }
        let _ = accepted.send(());
        Ok(())
    }

    /// The present targets whose new clients have another key or secret.
    fn renewed_keys(&self, clouds: &Clouds) -> BTreeSet<TargetName> {
        let has_new_key = |name: &TargetName| {
            let old = self
                .targets
                .get(name)
                .map(|target| target.cloud.key().name());
            old.is_some() && old != clouds.get(name).map(|cloud| cloud.key().name())
        };
        clouds
            .keys()
            .filter(|name| has_new_key(name))
            .cloned()
            .collect()
    }

    /// True for a target that is sent to the same place as now.
    fn has(&self, new: &TargetSettings) -> bool {
        self.targets
            .get(&new.name)
            .is_some_and(|target| target.origin == Target::origin_of(new))
    }

    async fn check(&self, settings: &Settings) -> Result<(), ReloadError> {
        if settings.queue.database != self.store.path() {
            return Err(ReloadError::Database);
        }
        for (target, batches) in self.store.unfinished_batches().await? {
            let Some(old) = self.targets.get(&target) else {
                continue;
            };
            let new = settings.targets.iter().find(|new| new.name == target);
            let change = match new.map(Target::origin_of) {
                None => "removed",
                Some(origin) if origin != old.origin => {
                    "given another service, endpoint or project"
                }
                Some(_) => continue,
            };
            return Err(ReloadError::InUse {
                target,
                change,
                batches,
            });
        }
        Ok(())
    }
}
