//! Keys that the cloud refuses: who is held for one, for how long, and when it is tried again.
//!
//! More than five bad signatures in a row lock a key for five minutes, and the cloud counts over all targets and over our
//! restarts. So the count is kept in the queue, by the key's fingerprint. Sends nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use tracing::{info, warn};

use super::dispatch::Dispatcher;
use crate::cloud::{CallError, Fault};
use crate::model::{HoldKind, TargetName, UtcMillis};
use crate::plan::Hold;
use crate::store::{RefusedKey, StoreError};

/// Longer than the cloud's own lock after too many bad signatures, which is five minutes. Source: vendor FAQs.
pub(crate) const CREDENTIALS_HOLD: Duration = Duration::from_secs(6 * 60);
/// A key that goes on being refused is tried again after this at the latest: whoever mends it in the cloud tells nobody.
const CREDENTIALS_HOLD_MAX: Duration = Duration::from_secs(3600);
/// One call and its repetition with a new signature. A key refused no more often than this may be tried at once after a
/// reload, with one signature, since whoever reloads may have mended it in the cloud.
const FIRST_REFUSALS: u32 = 2;

impl Dispatcher {
    /// While the cloud has not taken the key, calls that use it are made one at a time: five refused signatures in a row
    /// would lock it, and the first refusal holds all the others back. The end of a call is followed by a round.
    pub(super) fn may_call(&self, name: &TargetName) -> bool {
        let is_free = |name: &TargetName| self.targets.get(name).is_none_or(|target| target.open == 0);
        self.targets.get(name).is_none_or(|target| target.proved) || self.sharing_key_with(name).iter().all(is_free)
    }

    /// What the fate of any call says of the key: the service took it, or it was refused. Anything else says nothing.
    pub(super) async fn learn_of_key(&mut self, name: &TargetName, error: Option<&CallError>) {
        let taken = match error.map(|error| &error.fault) {
            None | Some(Fault::Refused(_)) => true,
            Some(Fault::Credentials) => false,
            Some(
                Fault::Unreachable
                | Fault::Throttled { .. }
                | Fault::Unavailable
                | Fault::Lost
                | Fault::Permission
                | Fault::Configuration,
            ) => return,
        };
        if self.targets.get(name).is_none_or(|target| target.proved == taken) {
            return;
        }
        for name in self.sharing_key_with(name) {
            if let Some(target) = self.targets.get_mut(&name) {
                target.proved = taken;
                if taken {
                    target.cloud.key().set_refusals(0);
                }
            }
        }
        if taken
            && let Some(key) = self.key_of(name)
            && self.refused.remove(&key).is_some()
            && let Err(error) = self.store.forget_refused_key(&key).await
        {
            warn!(target = %name, "the queue still calls the key of target \"{name}\" refused: {error}");
        }
    }

    /// The cloud refused the key of `name`: all that use it are held, longer each time. Returns until when.
    pub(super) async fn hold_key(&mut self, name: &TargetName, reason: &str, now: UtcMillis) -> UtcMillis {
        let until = now + CREDENTIALS_HOLD;
        let (Some(key), Some(target)) = (self.key_of(name), self.targets.get(name)) else { return until };
        // The call counted its own refusals; other targets may have seen some that it did not.
        let before = self.refused.get(&key).map_or(0, |refused| refused.refusals);
        let refusals = target.cloud.key().refusals().max(before + 1);
        let doublings = refusals.saturating_sub(FIRST_REFUSALS).min(8);
        let until = now + (CREDENTIALS_HOLD * (1 << doublings)).min(CREDENTIALS_HOLD_MAX);
        let secret = target.cloud.key().secret().map(str::to_owned);
        let refused = RefusedKey { secret, refusals, until, reason: reason.to_owned() };
        if let Err(error) = self.store.note_refused_key(&key, &refused).await {
            warn!(target = %name, "that the key of target \"{name}\" was refused is kept in memory only: {error}");
        }
        for name in self.sharing_key_with(name) {
            if let Some(target) = self.targets.get(&name) {
                target.cloud.key().set_refusals(refusals);
            }
            self.put_hold(credentials_hold(&name, &refused, now)).await;
        }
        self.refused.insert(key, refused);
        until
    }

    /// At a start: whoever uses a key that was refused stays held, unless its secret is another one now.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn resume_keys(&mut self, now: UtcMillis) -> Result<(), StoreError> {
        for name in self.targets.keys().cloned().collect::<Vec<_>>() {
            let Some(refused) = self.known_refusals(&name) else { continue };
            if self.has_new_secret(&name, &refused) {
                self.try_key_again(&name, now).await?;
            } else if refused.until > now {
                self.put_hold(credentials_hold(&name, &refused, now)).await;
            }
        }
        Ok(())
    }

    /// After a reload: the targets in `renewed` have new secrets and are tried at once; so are others that lack a permission,
    /// and keys that were not refused often.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn retry_keys(
        &mut self,
        renewed: &BTreeSet<TargetName>,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        for name in self.targets.keys().cloned().collect::<Vec<_>>() {
            match self.known_refusals(&name) {
                Some(refused)
                    if refused.refusals > FIRST_REFUSALS
                        && !renewed.contains(&name)
                        && !self.has_new_secret(&name, &refused) =>
                {
                    if refused.until > now {
                        self.put_hold(credentials_hold(&name, &refused, now)).await;
                    }
                }
                Some(_) | None => self.try_key_again(&name, now).await?,
            }
            if let Some(target) = self.targets.get_mut(&name) {
                // Nobody has tried these yet: one call at a time until the cloud has taken them.
                target.proved &= !renewed.contains(&name);
            }
        }
        Ok(())
    }

    /// Tells the client of `name` what is known of its key.
    fn known_refusals(&self, name: &TargetName) -> Option<RefusedKey> {
        let target = self.targets.get(name)?;
        let refused = self.refused.get(target.cloud.key().id()).cloned();
        target.cloud.key().set_refusals(refused.as_ref().map_or(0, |refused| refused.refusals));
        refused
    }

    fn has_new_secret(&self, name: &TargetName, refused: &RefusedKey) -> bool {
        let secret = self.targets.get(name).and_then(|target| target.cloud.key().secret());
        secret.is_some() && refused.secret.is_some() && secret != refused.secret.as_deref()
    }

    async fn try_key_again(&mut self, name: &TargetName, now: UtcMillis) -> Result<(), StoreError> {
        if let Some(target) = self.targets.get_mut(name) {
            target.pace.unblock();
        }
        if self.store.lift_hold(name, HoldKind::Credentials).await? {
            // Looks were put off to the end of the hold.
            self.store.look_at_once(name, now).await?;
            info!(target = %name, "the credentials of target \"{name}\" are tried again");
        }
        Ok(())
    }

    /// The targets whose calls are made with the same key as those of `name`, itself included.
    fn sharing_key_with(&self, name: &TargetName) -> Vec<TargetName> {
        let key = self.key_of(name);
        let same = self.targets.iter().filter(|(_, other)| Some(other.cloud.key().id()) == key.as_deref());
        same.map(|(name, _)| name.clone()).collect()
    }

    fn key_of(&self, name: &TargetName) -> Option<String> {
        self.targets.get(name).map(|target| target.cloud.key().id().to_owned())
    }
}

fn credentials_hold(name: &TargetName, refused: &RefusedKey, now: UtcMillis) -> Hold {
    Hold {
        target: Some(name.clone()),
        action: None,
        kind: HoldKind::Credentials,
        reason: refused.reason.clone(),
        since: now,
        until: Some(refused.until),
    }
}
