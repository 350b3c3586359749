//! Keys that the cloud refuses: who is held for one, for how long, and when it is tried again.
//!
//! The cloud counts over all targets and over our restarts, so what was refused is kept in the
//! queue, by fingerprints of key and secret. What follows from it is decided in `refusals`. Works
//! over the targets given to it, and makes no call.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::health::REFUSED;
use super::refusals::{self, FIRST_REFUSALS, KeyState, KeyUser, RefusedCall};
use super::{Target, Targets};
use crate::cloud::{KeyName, Signed};
use crate::daemon::holds::Holds;
use crate::model::{CallError, Fault, Hold, HoldKind, Steady, TargetName, UtcMillis};
use crate::store::{RefusedKey, Store, StoreError};

/// An answer that takes longer than this is very likely delayed by something else than a bad key.
pub(in crate::daemon) const ANSWER_PATIENCE: Duration = Duration::from_millis(500);
/// This long after its call a refusal is no longer to be expected.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);
/// Calls that may still be refused, with a key that the cloud has not accepted yet. Each has one
/// signature, and five bad ones would lock the key.
const UNCERTAIN_CALLS_MAX: usize = 4;

/// What is known of keys that the cloud refused.
pub(in crate::daemon) struct RefusedKeys {
    store: Arc<Store>,
    /// Those that the cloud refused last, one for each secret.
    refused: Vec<RefusedKey>,
}

/// A call that has ended.
#[derive(Debug, Clone, Copy)]
pub(in crate::daemon) struct SignedCall<'a> {
    pub(in crate::daemon) target: &'a TargetName,
    /// What it was made with, which need not be the target's present key.
    pub(in crate::daemon) signed: &'a Signed,
    pub(in crate::daemon) error: Option<&'a CallError>,
}

/// What a reload means for keys.
pub(in crate::daemon) struct Renewal {
    /// Targets with new secrets or other keys: they are tried at once.
    pub(in crate::daemon) renewed: BTreeSet<TargetName>,
    /// Those that were held for a refused key before.
    pub(in crate::daemon) held_before: BTreeSet<TargetName>,
    /// Somebody asked for the reload, and may have fixed something in the cloud: a permission that
    /// was lacking, or a key that was not refused often. That is tried, too.
    pub(in crate::daemon) is_asked_for: bool,
}

/// What follows for one target from what is known of its key.
#[derive(Debug)]
pub(in crate::daemon) struct KeyStep {
    pub(in crate::daemon) target: TargetName,
    /// None: the key is tried again.
    hold: Option<Hold>,
}

impl KeyStep {
    /// # Errors
    /// Those of the store, when a hold is to be lifted. One that cannot be stored is kept in
    /// memory.
    pub(in crate::daemon) async fn carry_out(
        self,
        holds: &mut Holds,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        if let Some(hold) = self.hold {
            holds.put(hold).await;
            return Ok(());
        }
        holds.lift_credentials(&self.target, now).await
    }

    fn try_again(target: &TargetName) -> Self {
        Self {
            target: target.clone(),
            hold: None,
        }
    }
}

/// While the cloud has not accepted the key, calls that use it are made one at a time: five refused
/// signatures in a row would lock it, and the first refusal holds all the others back. The end of a
/// call is followed by a round.
///
/// A bad signature is refused at once. So a target whose cloud does not answer keeps the others
/// waiting only for `ANSWER_PATIENCE`, and many of its kind for not much longer.
pub(in crate::daemon) fn may_call(targets: &Targets, name: &TargetName, now: Steady) -> bool {
    let Some(target) = targets.get(name) else {
        return true;
    };
    if target.is_key_accepted() {
        return true;
    }
    let uncertain = uncertain_calls(targets, target, now);
    !target.has_open_call()
        && uncertain.len() < UNCERTAIN_CALLS_MAX
        && uncertain.iter().all(|waited| *waited >= ANSWER_PATIENCE)
}

/// As `may_call`, for a list that nobody waits for: it leaves no signature while the key may still be
/// refused, however slow the cloud is.
pub(in crate::daemon) fn may_list(targets: &Targets, name: &TargetName, now: Steady) -> bool {
    let Some(target) = targets.get(name) else {
        return true;
    };
    may_call(targets, name, now)
        && (target.is_key_accepted() || uncertain_calls(targets, target, now).is_empty())
}

/// How long calls have been open that use this target's key and may still be refused.
fn uncertain_calls(targets: &Targets, target: &Target, now: Steady) -> Vec<Duration> {
    sharing_key(targets, target)
        .filter_map(|(_, other)| other.open_for(now))
        .filter(|waited| *waited < REFUSAL_PATIENCE)
        .collect()
}

impl RefusedKeys {
    /// What the queue knows.
    ///
    /// # Errors
    /// Those of the store.
    pub(in crate::daemon) async fn load(store: Arc<Store>) -> Result<Self, StoreError> {
        let refused = store.refused_keys().await?;
        Ok(Self { store, refused })
    }

    /// The clock was moved by this many milliseconds.
    pub(in crate::daemon) fn move_times(&mut self, by_ms: i64) {
        self.refused
            .iter_mut()
            .for_each(|refused| refused.move_times(by_ms));
    }

    /// True if `name` is held only because of another target, while the cloud accepts its own key:
    /// reads may go on then, since they add no bad signature.
    pub(in crate::daemon) fn may_read_while_held(
        &self,
        name: &TargetName,
        targets: &Targets,
        now: UtcMillis,
    ) -> bool {
        let is_accepted = targets.get(name).is_some_and(Target::is_key_accepted);
        is_accepted && matches!(self.state_of(name, targets, now), KeyState::HeldWith { .. })
    }

    /// The targets that may not make calls because of a refused key.
    pub(in crate::daemon) fn held_targets(
        &self,
        targets: &Targets,
        now: UtcMillis,
    ) -> BTreeSet<TargetName> {
        targets
            .keys()
            .filter(|name| self.state_of(name, targets, now) != KeyState::Free)
            .cloned()
            .collect()
    }

    /// Tells the clients of keys that are to be spared: one that was refused in the last minutes
    /// gets one signature a call, and so does one that the cloud has not accepted yet and that
    /// several calls are being made with.
    pub(in crate::daemon) fn spare(&self, targets: &Targets, now: UtcMillis) {
        let mut uncertain: BTreeMap<&str, usize> = BTreeMap::new();
        for target in targets.values() {
            if !target.is_key_accepted() && target.has_open_call() {
                *uncertain.entry(&target.key().name().id).or_default() += 1;
            }
        }
        for target in targets.values() {
            let key = target.key();
            let calls = uncertain.get(key.name().id.as_str()).copied();
            let is_shared_now = calls.is_some_and(|calls| calls > 1);
            let was_refused = !refusals::recent(key.name(), &self.refused, now).is_empty();
            key.set_one_proof_a_call(is_shared_now || was_refused);
        }
    }

    /// Tells the clients what is known of their keys.
    fn tell_clients(&self, targets: &Targets, now: UtcMillis) {
        for target in targets.values() {
            let key = target.key();
            let own = self
                .refused
                .iter()
                .filter(|refused| refusals::is_of(refused, key.name()));
            key.set_refusals(own.map(|refused| refused.refusals).max().unwrap_or(0));
        }
        self.spare(targets, now);
    }

    fn state_of(&self, name: &TargetName, targets: &Targets, now: UtcMillis) -> KeyState {
        let users = key_users(targets);
        let user = users.iter().find(|user| user.target == *name);
        user.map_or(KeyState::Free, |user| {
            refusals::state_of(user, &users, &self.refused, now)
        })
    }

    fn hold_of(&self, name: &TargetName, targets: &Targets, now: UtcMillis) -> Option<Hold> {
        let (until, reason) = self.state_of(name, targets, now).hold(name)?;
        Some(Hold {
            target: Some(name.clone()),
            action: None,
            label: None,
            kind: HoldKind::Credentials,
            reason,
            since: now,
            until: Some(until),
        })
    }

    fn hold_step(&self, name: &TargetName, targets: &Targets, now: UtcMillis) -> Option<KeyStep> {
        let hold = self.hold_of(name, targets, now)?;
        Some(KeyStep {
            target: name.clone(),
            hold: Some(hold),
        })
    }

    fn is_at_rest(&self, target: &Target, now: UtcMillis) -> bool {
        refusals::rest(target.key().name(), &self.refused, now).is_some()
    }

    fn has_refusals(&self, target: &Target, now: UtcMillis) -> bool {
        let id = &target.key().name().id;
        self.refused
            .iter()
            .any(|refused| refused.key == *id && refused.until > now)
    }

    /// True if a call of `name` was refused with a secret that `name` no longer has.
    fn has_new_secret(&self, name: &TargetName, target: &Target) -> bool {
        let key = target.key().name();
        self.refused.iter().any(|refused| {
            refused.target == *name && refused.key == key.id && !refusals::is_of(refused, key)
        })
    }

    /// Learns from a call's result whether the cloud accepts the key that signed it. Other results
    /// do not tell.
    pub(in crate::daemon) async fn learn(
        &mut self,
        call: SignedCall<'_>,
        targets: &mut Targets,
        now: UtcMillis,
    ) -> Vec<KeyStep> {
        let Some(is_accepted) = accepts_key(call.error) else {
            return Vec::new();
        };
        let key = &call.signed.key;
        let Some(target) = signer(targets, call) else {
            return self.learn_of_former(call, targets, now).await;
        };
        if target.is_key_accepted() == is_accepted {
            return Vec::new();
        }
        for target in targets.values_mut().filter(|target| target.signs_with(key)) {
            target.set_key_accepted(is_accepted);
        }
        if is_accepted {
            self.forget_refusals(key, targets, now).await
        } else {
            Vec::new()
        }
    }

    /// The cloud refused the present key of `refusal.target`. Returns the holds of all targets
    /// that use the key, whatever the secret.
    pub(in crate::daemon) async fn refuse(
        &mut self,
        refusal: RefusedCall<'_>,
        targets: &Targets,
        now: UtcMillis,
    ) -> Vec<Hold> {
        self.note_refusal(refusal, targets, now).await;
        let Some(target) = targets.get(refusal.target) else {
            return Vec::new();
        };
        sharing_key(targets, target)
            .filter_map(|(name, _)| self.hold_of(name, targets, now))
            .collect()
    }

    /// Learns from a call whose key or secret its target no longer has. A refusal counts with the
    /// key's refusals, and holds only the targets that still use that secret.
    async fn learn_of_former(
        &mut self,
        call: SignedCall<'_>,
        targets: &Targets,
        now: UtcMillis,
    ) -> Vec<KeyStep> {
        let refused = call.error.filter(|error| error.fault == Fault::Credentials);
        let Some(error) = refused else {
            return Vec::new();
        };
        let refusal = RefusedCall {
            signed: call.signed,
            target: call.target,
            reason: &format!("{REFUSED}: {error}"),
        };
        let refused = self.note_refusal(refusal, targets, now).await;
        key_users(targets)
            .iter()
            .filter(|user| refusals::is_of(&refused, &user.key))
            .filter_map(|user| self.hold_step(&user.target, targets, now))
            .collect()
    }

    /// Adds a refusal to what is known of its key.
    async fn note_refusal(
        &mut self,
        refusal: RefusedCall<'_>,
        targets: &Targets,
        now: UtcMillis,
    ) -> RefusedKey {
        self.read_again().await;
        let name = refusal.target;
        let refused = refusals::after_refusal(refusal, &self.refused, now);
        let replaced: Vec<RefusedKey> = self
            .refused
            .extract_if(.., |other| refusals::is_of(other, &refusal.signed.key))
            .collect();
        // A password that another process named, or the same one again.
        for old in replaced.iter().filter(|old| old.secret != refused.secret) {
            if let Err(error) = self.store.forget_refused_key(&old.key, &old.secret).await {
                warn!(target = %name, "cannot remove an older note about the key of target \"{name}\": {error}");
            }
        }
        if let Err(error) = self.store.note_refused_key(&refused).await {
            warn!(target = %name, "the key of target \"{name}\" was refused; the queue cannot store that, so it is kept in memory only: {error}");
        }
        self.refused.push(refused.clone());
        self.tell_clients(targets, now);
        refused
    }

    /// The cloud has accepted this key: its refusals are over, and so are those of secrets that
    /// nobody uses any more. Returns what is tried again because of that.
    async fn forget_refusals(
        &mut self,
        accepted: &KeyName,
        targets: &Targets,
        now: UtcMillis,
    ) -> Vec<KeyStep> {
        let users = key_users(targets);
        let held = self.held_targets(targets, now);
        let over: Vec<RefusedKey> = self
            .refused
            .extract_if(.., |refused| is_over(refused, accepted, &users))
            .collect();
        if over.is_empty() {
            return Vec::new();
        }
        for refused in &over {
            if let Err(error) = self
                .store
                .forget_refused_key(&refused.key, &refused.secret)
                .await
            {
                let name = &refused.target;
                warn!(target = %name, "cannot remove the note that the key of target \"{name}\" is refused: {error}");
            }
        }
        self.tell_clients(targets, now);
        let still_held = self.held_targets(targets, now);
        users
            .iter()
            .filter(|user| user.key.id == accepted.id)
            .map(|user| &user.target)
            .filter(|name| held.contains(name) && !still_held.contains(name))
            .map(KeyStep::try_again)
            .collect()
    }

    /// A `check --online` beside the daemon notes its refusals in the queue, too.
    async fn read_again(&mut self) {
        match self.store.refused_keys().await {
            Ok(stored) => {
                self.refused
                    .retain(|known| !stored.iter().any(|other| is_same_secret(known, other)));
                self.refused.extend(stored);
            }
            Err(error) => warn!("cannot read from the queue which keys were refused: {error}"),
        }
    }

    /// At a start: a target whose key was refused stays held, unless its secret is another one now.
    pub(in crate::daemon) fn after_start(&self, targets: &Targets, now: UtcMillis) -> Vec<KeyStep> {
        self.tell_clients(targets, now);
        let mut steps = Vec::new();
        for (name, target) in targets {
            let is_tried = match self.state_of(name, targets, now) {
                // It was held for a secret that has been replaced since.
                KeyState::Free => self.has_refusals(target, now),
                KeyState::HeldWith { .. } => {
                    self.has_new_secret(name, target) && !self.is_at_rest(target, now)
                }
                KeyState::Refused(_) | KeyState::Resting { .. } => false,
            };
            if is_tried {
                steps.push(KeyStep::try_again(name));
            } else {
                steps.extend(self.hold_step(name, targets, now));
            }
        }
        steps
    }

    /// After a reload: see `Renewal`.
    pub(in crate::daemon) async fn after_reload(
        &mut self,
        renewal: &Renewal,
        targets: &mut Targets,
        now: UtcMillis,
    ) -> Vec<KeyStep> {
        self.read_again().await;
        for name in &renewal.renewed {
            if let Some(target) = targets.get_mut(name) {
                // Nobody has tried these yet: one call at a time until the cloud has accepted them.
                target.set_key_accepted(false);
            }
        }
        self.tell_clients(targets, now);
        let mut steps = Vec::new();
        for (name, target) in targets.iter() {
            let is_new = renewal.renewed.contains(name);
            let is_tried = match self.state_of(name, targets, now) {
                KeyState::Free => {
                    renewal.is_asked_for || is_new || renewal.held_before.contains(name)
                }
                KeyState::Refused(refused) => {
                    renewal.is_asked_for
                        && refused.refusals <= FIRST_REFUSALS
                        && !self.is_at_rest(target, now)
                }
                KeyState::HeldWith { .. } => is_new && !self.is_at_rest(target, now),
                KeyState::Resting { .. } => false,
            };
            if is_tried {
                steps.push(KeyStep::try_again(name));
            } else {
                steps.extend(self.hold_step(name, targets, now));
            }
        }
        steps
    }
}

/// None where a call's result says nothing of the key.
fn accepts_key(error: Option<&CallError>) -> Option<bool> {
    match error.map(|error| &error.fault) {
        None | Some(Fault::Refused(_)) => Some(true),
        Some(Fault::Credentials) => Some(false),
        Some(
            Fault::Unreachable
            | Fault::Throttled { .. }
            | Fault::Unavailable
            | Fault::Lost
            | Fault::Permission
            | Fault::Configuration,
        ) => None,
    }
}

/// The target of a call, if it still has the key that the call was made with.
fn signer<'a>(targets: &'a Targets, call: SignedCall<'_>) -> Option<&'a Target> {
    targets
        .get(call.target)
        .filter(|target| target.signs_with(&call.signed.key))
}

fn is_over(refused: &RefusedKey, accepted: &KeyName, users: &[KeyUser]) -> bool {
    let is_replaced =
        refused.key == accepted.id && refusals::present_user(refused, users).is_none();
    is_replaced || refusals::is_of(refused, accepted)
}

fn is_same_secret(one: &RefusedKey, other: &RefusedKey) -> bool {
    one.key == other.key && one.secret == other.secret
}

/// The targets whose calls are made with the same key as those of `target`, itself included,
/// whatever the secret.
fn sharing_key<'a>(
    targets: &'a Targets,
    target: &'a Target,
) -> impl Iterator<Item = (&'a TargetName, &'a Target)> {
    targets
        .iter()
        .filter(|(_, other)| other.key().name().id == target.key().name().id)
}

fn key_users(targets: &Targets) -> Vec<KeyUser> {
    let mut users = Vec::new();
    for (name, target) in targets {
        users.push(KeyUser {
            target: name.clone(),
            key: target.key().name().clone(),
            key_accepted: target.is_key_accepted(),
        });
    }
    users
}
