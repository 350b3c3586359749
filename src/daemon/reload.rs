//! New settings and secrets while the daemon runs: applied as a whole, or refused as a whole. Reads
//! no file.

use std::collections::BTreeSet;

use tracing::warn;

use super::connect::Clouds;
use super::guards::GuardWatch;
use super::report;
use super::round::Dispatcher;
use super::target::keys::Renewal;
use super::target::{Configured, Target, Targets};
use super::unknown_targets::UnknownTargets;
use super::windows::WindowWatch;
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
        self.check(&reload.settings).await?;
        // First what may fail, so that nothing has changed then.
        let new = self.load_new_targets(&reload, now).await?;
        let names = connected(&reload);
        self.store.forget_targets_except(&names).await?;
        let renewal = Renewal {
            renewed: self.renewed_keys(&reload.clouds),
            held_before: self.keys.held_targets(&self.targets, now),
            is_asked_for: reload.is_asked_for,
        };
        for name in &names {
            // Budgets may have changed; those that still bind are found again at once.
            self.store.lift_hold(name, HoldKind::Budget).await?;
            // Somebody who reloads has fixed something: a call finds out. A secret that was replaced
            // does not end what the cloud has asked for.
            if reload.is_asked_for {
                self.store.lift_hold(name, HoldKind::Breaker).await?;
            }
        }
        let mut throttled = Vec::new();
        if reload.is_asked_for {
            throttled = self.throttled_targets(&new, &names, now);
            self.targets.values_mut().for_each(Target::try_again);
        }
        self.apply(&reload, new);
        for name in throttled {
            // Its looks were put off to the end of the throttling.
            if let Err(error) = self.store.look_at_once(&name, now).await {
                warn!(target = %name, "the looks at target \"{name}\" stay postponed: {}", report::chain(&error));
            }
        }
        if let Err(error) = self.renew_keys(&renewal, now).await {
            warn!(
                "cannot remove the holds of refused keys yet: {}",
                report::chain(&error)
            );
        }
        let _ = reload.accepted.send(());
        Ok(())
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
                Some(origin) if origin != *old.origin() => {
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

    /// The targets that are new, or sent to another place than now.
    async fn load_new_targets(
        &self,
        reload: &Reload,
        now: UtcMillis,
    ) -> Result<Targets, StoreError> {
        let mut targets = Targets::new();
        for settings in &reload.settings.targets {
            let old = self.targets.get(&settings.name);
            if old.is_some_and(|old| *old.origin() == Target::origin_of(settings)) {
                continue;
            }
            if let Some(configured) = configured(reload, settings) {
                let target = Target::load(&self.store, &configured, now).await?;
                targets.insert(settings.name.clone(), target);
            }
        }
        Ok(targets)
    }

    /// The present targets whose new clients have another key or secret.
    fn renewed_keys(&self, clouds: &Clouds) -> BTreeSet<TargetName> {
        let mut renewed = BTreeSet::new();
        for (name, cloud) in clouds {
            let old = self.targets.get(name);
            if old.is_some_and(|old| !old.signs_with(cloud.key().name())) {
                renewed.insert(name.clone());
            }
        }
        renewed
    }

    /// The targets that stay and whose reads are throttled.
    fn throttled_targets(
        &self,
        new: &Targets,
        names: &[TargetName],
        now: UtcMillis,
    ) -> Vec<TargetName> {
        let mut throttled = Vec::new();
        for name in names.iter().filter(|name| !new.contains_key(*name)) {
            let old = self.targets.get(name);
            if old.is_some_and(|old| old.read_wait(now).is_some()) {
                throttled.push(name.clone());
            }
        }
        throttled
    }

    fn apply(&mut self, reload: &Reload, new: Targets) {
        let settings = &reload.settings;
        let mut targets = new;
        for new in &settings.targets {
            if targets.contains_key(&new.name) {
                continue;
            }
            if let Some(configured) = configured(reload, new)
                && let Some(mut target) = self.targets.remove(&new.name)
            {
                target.apply(&configured);
                targets.insert(new.name.clone(), target);
            }
        }
        self.targets = targets;
        self.unknown_targets = UnknownTargets::default();
        self.windows = WindowWatch::default();
        self.guards = GuardWatch::default();
        self.submits.apply(settings.batch.linger);
        self.intake.apply(settings.queue.default_ttl);
        self.upkeep.apply(&settings.queue);
        self.inventory.apply(&self.targets, reload.is_asked_for);
        self.ledger.apply(settings.notify.as_ref());
        self.orders.apply(&settings.waves);
    }

    async fn renew_keys(&mut self, renewal: &Renewal, now: UtcMillis) -> Result<(), StoreError> {
        let steps = self
            .keys
            .after_reload(renewal, &mut self.targets, now)
            .await;
        for step in steps {
            step.carry_out(&mut self.holds, now).await?;
        }
        Ok(())
    }
}

/// The targets of the new settings that have a client.
fn connected(reload: &Reload) -> Vec<TargetName> {
    let targets = reload.settings.targets.iter();
    targets
        .map(|target| target.name.clone())
        .filter(|name| reload.clouds.contains_key(name))
        .collect()
}

fn configured<'a>(reload: &'a Reload, settings: &'a TargetSettings) -> Option<Configured<'a>> {
    Some(Configured {
        settings,
        attempts_max: reload.settings.batch.attempts_max.get(),
        default_ttl: reload.settings.queue.default_ttl,
        cloud: reload.clouds.get(&settings.name)?,
    })
}
