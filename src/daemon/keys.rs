//! Keys that the cloud refuses: who is held for one, for how long, and when it is tried again.
//!
//! The cloud counts over all targets and over our restarts, so what was refused is kept in the
//! queue, by fingerprints of key and secret. What follows from it is decided in `refusals`. Sends
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tracing::{info, warn};

use super::dispatch::{Dispatcher, Target};
use super::refusals::{self, FIRST_REFUSALS, KeyUser, Standing};
use crate::cloud::KeyName;
use crate::model::{CallError, Fault, Hold, HoldKind, TargetName, UtcMillis};
use crate::store::{RefusedKey, StoreError};

/// What a call says whose key the cloud refused.
pub(super) const REFUSED: &str = "the cloud refuses the credentials";

/// An answer that does not come within this is kept up by something else than a bad key, very
/// likely.
pub(super) const ANSWER_PATIENCE: Duration = Duration::from_millis(500);
/// And this long after its call a refusal is not to be expected any more.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);
/// Calls that may still be refused, with a key that the cloud has not taken yet. Each has one
/// signature, and five bad ones would lock the key.
const UNPROVED_CALLS_MAX: usize = 4;

/// What a reload means for keys.
pub(super) struct Renewal {
    /// Targets with new secrets or other keys: they are tried at once.
    pub(super) renewed: BTreeSet<TargetName>,
    /// Those that were held for a refused key before.
    pub(super) held_before: BTreeSet<TargetName>,
    /// Somebody asked for the reload, and may have fixed something in the cloud: a permission that
    /// was lacking, or a key that was not refused often. That is tried, too.
    pub(super) is_asked_for: bool,
}

impl Dispatcher {
    /// While the cloud has not taken the key, calls that use it are made one at a time: five
    /// refused signatures in a row would lock it, and the first refusal holds all the others back.
    /// The end of a call is followed by a round.
    ///
    /// A bad signature is refused at once. So a target whose cloud does not answer keeps the others
    /// waiting only for `ANSWER_PATIENCE`, and many of its kind for not much longer.
    pub(super) fn may_call(&self, name: &TargetName) -> bool {
        let Some(target) = self.targets.get(name).filter(|target| !target.proved) else {
            return true;
        };
        let sharing = self.sharing_key_with(name);
        let open: Vec<&Target> = sharing
            .iter()
            .filter_map(|name| self.targets.get(name))
            .filter(|target| target.open > 0)
            .collect();
        let waited = open
            .iter()
            .map(|target| self.steady.since(target.opened_at));
        let in_doubt: Vec<Duration> = waited.filter(|waited| *waited < REFUSAL_PATIENCE).collect();
        let is_overdue = |waited: &Duration| *waited >= ANSWER_PATIENCE;
        target.open == 0 && in_doubt.len() < UNPROVED_CALLS_MAX && in_doubt.iter().all(is_overdue)
    }

    /// True if the call whose answer is taken in was made with the key that `name` still has.
    /// Otherwise the answer says nothing of the present key.
    pub(super) fn is_signed_by_present_key(&self, name: &TargetName) -> bool {
        self.targets
            .get(name)
            .is_some_and(|target| *target.cloud.key().name() == self.signed.key)
    }

    /// What the fate of any call says of the key that signed it: the service took it, or it was
    /// refused. Anything else says nothing.
    pub(super) async fn learn_of_key(
        &mut self,
        name: &TargetName,
        error: Option<&CallError>,
        now: UtcMillis,
    ) {
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
        if !self.is_signed_by_present_key(name) {
            if let (false, Some(error)) = (taken, error) {
                self.hold_former_key(name, error, now).await;
            }
            return;
        }
        if self
            .targets
            .get(name)
            .is_none_or(|target| target.proved == taken)
        {
            return;
        }
        let signed = self.signed.key.clone();
        for target in self
            .targets
            .values_mut()
            .filter(|target| *target.cloud.key().name() == signed)
        {
            target.proved = taken;
        }
        if taken {
            self.forget_refusals(&signed, now).await;
        }
    }

    /// The cloud has taken this key: its refusals are over, and so are those of secrets that nobody
    /// uses any more.
    async fn forget_refusals(&mut self, taken: &KeyName, now: UtcMillis) {
        let users = self.key_users();
        let is_over = |refused: &RefusedKey| {
            let is_replaced =
                refused.key == taken.id && refusals::present_user(refused, &users).is_none();
            is_replaced || refusals::is_of(refused, taken)
        };
        let over: Vec<RefusedKey> = self
            .refused
            .iter()
            .filter(|refused| is_over(refused))
            .cloned()
            .collect();
        if over.is_empty() {
            return;
        }
        let held: Vec<TargetName> = users
            .into_iter()
            .filter(|user| user.key.id == taken.id)
            .map(|user| user.target)
            .collect();
        let held: Vec<TargetName> = held
            .into_iter()
            .filter(|name| self.standing(name, now) != Standing::Free)
            .collect();
        for refused in over {
            if let Err(error) = self
                .store
                .forget_refused_key(&refused.key, &refused.secret)
                .await
            {
                let name = &refused.target;
                warn!(target = %name, "cannot remove the note that the key of target \"{name}\" is refused: {error}");
            }
            self.refused.retain(|other| *other != refused);
        }
        self.tell_clients(now);
        for name in held {
            if self.standing(&name, now) == Standing::Free
                && let Err(error) = self.try_key_again(&name, now).await
            {
                warn!(target = %name, "cannot remove the hold on target \"{name}\" yet: {error}");
            }
        }
    }

    /// The cloud refused the key of `name`: all that use it are held. Returns until when `name` is.
    pub(super) async fn hold_key(
        &mut self,
        name: &TargetName,
        reason: &str,
        now: UtcMillis,
    ) -> UtcMillis {
        let until = self.note_refusal(name, reason, now).await.until;
        for other in self.sharing_key_with(name) {
            let Some((until, reason)) = self.standing(&other, now).hold(&other) else {
                continue;
            };
            if other != *name {
                warn!(target = %other, hold.until = %until, "target \"{other}\" is held until {until}: {reason}");
            }
            self.put_hold(credentials_hold(&other, until, reason, now))
                .await;
        }
        until
    }

    /// A call was refused whose secret `name` no longer has: that counts with the key's refusals,
    /// and holds only those who still use that secret.
    async fn hold_former_key(&mut self, name: &TargetName, error: &CallError, now: UtcMillis) {
        let refused = self
            .note_refusal(name, &format!("{REFUSED}: {error}"), now)
            .await;
        for user in self
            .key_users()
            .into_iter()
            .filter(|user| refusals::is_of(&refused, &user.key))
        {
            let standing = self.standing(&user.target, now);
            self.hold_as(&user.target, &standing, now).await;
        }
    }

    /// Adds the refusal of the call whose answer is taken in to what is known of its key.
    async fn note_refusal(
        &mut self,
        name: &TargetName,
        reason: &str,
        now: UtcMillis,
    ) -> RefusedKey {
        self.read_refused_keys().await;
        let refused = refusals::after_refusal(&self.signed, name, reason, &self.refused, now);
        let own = |other: &&RefusedKey| refusals::is_of(other, &self.signed.key);
        let replaced: Vec<RefusedKey> = self.refused.iter().filter(own).cloned().collect();
        for old in replaced {
            // A password that another process named, or the same one again.
            if old.secret != refused.secret
                && let Err(error) = self.store.forget_refused_key(&old.key, &old.secret).await
            {
                warn!(target = %name, "cannot remove an older note about the key of target \"{name}\": {error}");
            }
            self.refused.retain(|other| *other != old);
        }
        if let Err(error) = self.store.note_refused_key(&refused).await {
            warn!(target = %name, "the key of target \"{name}\" was refused; the queue cannot store that, so it is kept in memory only: {error}");
        }
        self.refused.push(refused.clone());
        self.tell_clients(now);
        refused
    }

    /// A `check --online` beside the daemon notes its refusals in the queue, too.
    async fn read_refused_keys(&mut self) {
        match self.store.refused_keys().await {
            Ok(stored) => {
                let is_stored = |known: &RefusedKey| {
                    stored
                        .iter()
                        .any(|other| (&other.key, &other.secret) == (&known.key, &known.secret))
                };
                self.refused.retain(|known| !is_stored(known));
                self.refused.extend(stored);
            }
            Err(error) => warn!("cannot read from the queue which keys were refused: {error}"),
        }
    }

    /// At a start: a target whose key was refused stays held, unless its secret is another one now.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn resume_keys(&mut self, now: UtcMillis) -> Result<(), StoreError> {
        self.tell_clients(now);
        for name in self.targets.keys().cloned().collect::<Vec<_>>() {
            let standing = self.standing(&name, now);
            let is_tried = match standing {
                // It was held for a secret that has been replaced since.
                Standing::Free => self.has_refusals(&name, now),
                Standing::HeldWith { .. } => {
                    self.has_new_secret(&name) && self.rest(&name, now).is_none()
                }
                Standing::Refused(_) | Standing::Resting { .. } => false,
            };
            if is_tried {
                self.try_key_again(&name, now).await?;
            } else {
                self.hold_as(&name, &standing, now).await;
            }
        }
        Ok(())
    }

    /// After a reload: see `Renewal`.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn retry_keys(
        &mut self,
        renewal: &Renewal,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let Renewal {
            renewed,
            held_before,
            is_asked_for,
        } = renewal;
        self.read_refused_keys().await;
        for name in renewed {
            if let Some(target) = self.targets.get_mut(name) {
                // Nobody has tried these yet: one call at a time until the cloud has taken them.
                target.proved = false;
            }
        }
        self.tell_clients(now);
        for name in self.targets.keys().cloned().collect::<Vec<_>>() {
            let is_new = renewed.contains(&name);
            let standing = self.standing(&name, now);
            let is_tried = match &standing {
                Standing::Free => *is_asked_for || is_new || held_before.contains(&name),
                Standing::Refused(refused) => {
                    *is_asked_for
                        && refused.refusals <= FIRST_REFUSALS
                        && self.rest(&name, now).is_none()
                }
                Standing::HeldWith { .. } => is_new && self.rest(&name, now).is_none(),
                Standing::Resting { .. } => false,
            };
            if is_tried {
                self.try_key_again(&name, now).await?;
            } else {
                self.hold_as(&name, &standing, now).await;
            }
        }
        Ok(())
    }

    async fn hold_as(&mut self, name: &TargetName, standing: &Standing, now: UtcMillis) {
        if let Some((until, reason)) = standing.hold(name) {
            self.put_hold(credentials_hold(name, until, reason, now))
                .await;
        }
    }

    /// True if `name` is held only because of another target, while the cloud takes its own key:
    /// reads may go on then.
    pub(super) fn may_read_while_held(&self, name: &TargetName, now: UtcMillis) -> bool {
        let is_proved = self.targets.get(name).is_some_and(|target| target.proved);
        is_proved && matches!(self.standing(name, now), Standing::HeldWith { .. })
    }

    fn standing(&self, name: &TargetName, now: UtcMillis) -> Standing {
        let users = self.key_users();
        let user = users.iter().find(|user| user.target == *name);
        user.map_or(Standing::Free, |user| {
            refusals::standing(user, &users, &self.refused, now)
        })
    }

    fn rest(&self, name: &TargetName, now: UtcMillis) -> Option<UtcMillis> {
        let key = self.targets.get(name)?.cloud.key().name();
        refusals::rest(key, &self.refused, now).map(|(until, _)| until)
    }

    /// True if a call of `name` was refused with a secret that `name` no longer has.
    fn has_new_secret(&self, name: &TargetName) -> bool {
        let Some(target) = self.targets.get(name) else {
            return false;
        };
        let key = target.cloud.key().name();
        self.refused.iter().any(|refused| {
            refused.target == *name && refused.key == key.id && !refusals::is_of(refused, key)
        })
    }

    fn has_refusals(&self, name: &TargetName, now: UtcMillis) -> bool {
        let Some(target) = self.targets.get(name) else {
            return false;
        };
        let id = &target.cloud.key().name().id;
        self.refused
            .iter()
            .any(|refused| refused.key == *id && refused.until > now)
    }

    /// The targets that may not make calls because of a refused key.
    pub(super) fn held_for_keys(&self, now: UtcMillis) -> BTreeSet<TargetName> {
        self.targets
            .keys()
            .filter(|name| self.standing(name, now) != Standing::Free)
            .cloned()
            .collect()
    }

    /// Tells the clients what is known of their keys.
    fn tell_clients(&self, now: UtcMillis) {
        for target in self.targets.values() {
            let key = target.cloud.key();
            let own = self
                .refused
                .iter()
                .filter(|refused| refusals::is_of(refused, key.name()));
            key.set_refusals(own.map(|refused| refused.refusals).max().unwrap_or(0));
        }
        self.spare_keys(now);
    }

    /// A key that was refused in the last minutes gets one signature a call, and so does one that
    /// nobody has taken yet and that several calls are being made with.
    pub(super) fn spare_keys(&self, now: UtcMillis) {
        let mut unproved: BTreeMap<&str, usize> = BTreeMap::new();
        for target in self
            .targets
            .values()
            .filter(|target| !target.proved && target.open > 0)
        {
            *unproved.entry(&target.cloud.key().name().id).or_default() += 1;
        }
        for target in self.targets.values() {
            let key = target.cloud.key();
            let is_shared_now = unproved
                .get(key.name().id.as_str())
                .is_some_and(|calls| *calls > 1);
            key.set_one_proof_a_call(
                is_shared_now || !refusals::recent(key.name(), &self.refused, now).is_empty(),
            );
        }
    }

    async fn try_key_again(&mut self, name: &TargetName, now: UtcMillis) -> Result<(), StoreError> {
        if let Some(target) = self.targets.get_mut(name) {
            target.pace.unblock();
        }
        if self.store.lift_hold(name, HoldKind::Credentials).await? {
            // Looks were put off to the end of the hold.
            self.store.look_at_once(name, now).await?;
            info!(target = %name, "trying the credentials of target \"{name}\" again");
        }
        Ok(())
    }

    /// The targets whose calls are made with the same key as those of `name`, itself included,
    /// whatever the secret.
    fn sharing_key_with(&self, name: &TargetName) -> Vec<TargetName> {
        let key = self
            .targets
            .get(name)
            .map(|target| &target.cloud.key().name().id);
        let same = self
            .targets
            .iter()
            .filter(|(_, other)| Some(&other.cloud.key().name().id) == key);
        same.map(|(name, _)| name.clone()).collect()
    }

    fn key_users(&self) -> Vec<KeyUser> {
        let user = |(name, target): (&TargetName, &Target)| KeyUser {
            target: name.clone(),
            key: target.cloud.key().name().clone(),
            proved: target.proved,
        };
        self.targets.iter().map(user).collect()
    }
}

fn credentials_hold(name: &TargetName, until: UtcMillis, reason: String, now: UtcMillis) -> Hold {
    Hold {
        target: Some(name.clone()),
        action: None,
        kind: HoldKind::Credentials,
        reason,
        since: now,
        until: Some(until),
    }
}
