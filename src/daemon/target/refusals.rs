//! What the refusals of a key mean for those who use it: who is held, until when, and why. Pure: no
//! SQL, no clock.
//!
//! More than five bad signatures in a row lock an access key for five minutes, whatever secrets
//! made them. So a secret that was refused rests, longer each time; and of one key no more than
//! four signatures are refused within the time of the lock, by however many secrets.

use std::time::Duration;

use crate::cloud::{KeyName, Signed};
use crate::model::{TargetName, UtcMillis};
use crate::store::RefusedKey;

/// Longer than the cloud's own lock after too many bad signatures, which is five minutes. Source:
/// vendor FAQs.
pub(crate) const CREDENTIALS_HOLD: Duration = Duration::from_secs(6 * 60);
/// A key that goes on being refused is tried again after this at the latest: somebody who fixes it
/// in the cloud tells nobody.
const CREDENTIALS_HOLD_MAX: Duration = Duration::from_secs(3600);
/// One call and its repetition with a new signature. A key refused no more often than this may be
/// tried once when somebody reloads, with one signature, since that person may have fixed it in the
/// cloud.
pub(crate) const FIRST_REFUSALS: u32 = 2;
/// A key rests after this many refused signatures within `CREDENTIALS_HOLD`, whatever its secrets.
/// Five would lock it.
const RECENT_REFUSALS_MAX: usize = 4;

/// A target as far as its key goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyUser {
    pub(crate) target: TargetName,
    /// What its calls are made with at present.
    pub(crate) key: KeyName,
    /// The cloud has accepted that, and has not refused it since.
    pub(crate) key_accepted: bool,
}

/// A call whose signatures the cloud refused.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RefusedCall<'a> {
    /// What the call was made with.
    pub(crate) signed: &'a Signed,
    /// Whose call it was.
    pub(crate) target: &'a TargetName,
    /// The sentence for `holds`.
    pub(crate) reason: &'a str,
}

/// Whether a target may make calls, as far as its key goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyState {
    /// It may.
    Free,
    /// Its own secret was refused.
    Refused(RefusedKey),
    /// The cloud refused the same key with another secret, which another target uses.
    HeldWith {
        /// Until when.
        until: UtcMillis,
        /// The sentence for `holds`.
        reason: String,
    },
    /// Its secret is new, but the key was refused so often with others that one more might lock it.
    Resting {
        /// Until when.
        until: UtcMillis,
        /// The sentence for `holds`.
        reason: String,
    },
}

impl KeyState {
    /// Until when the target is held, and why; none if it is free.
    pub(crate) fn hold(&self, target: &TargetName) -> Option<(UtcMillis, String)> {
        match self {
            Self::Free => None,
            Self::Refused(refused) if refused.target == *target => {
                Some((refused.until, refused.reason.clone()))
            }
            Self::Refused(refused) => {
                let whose = format!(
                    "held together with {}, which uses the same key: {}",
                    refused.target, refused.reason
                );
                Some((refused.until, whose))
            }
            Self::HeldWith { until, reason } | Self::Resting { until, reason } => {
                Some((*until, reason.clone()))
            }
        }
    }
}

/// Whether `user` may make calls. `users` are all targets, and `refused` is all that is known of
/// refused keys.
pub(crate) fn state_of(
    user: &KeyUser,
    users: &[KeyUser],
    refused: &[RefusedKey],
    now: UtcMillis,
) -> KeyState {
    if let Some(own) = own_refusal(&user.key, refused, now) {
        return KeyState::Refused(own.clone());
    }
    if let Some((until, whose)) = refusal_of_another(user, users, refused, now) {
        let refused = if user.key.is_user() {
            "user: its password was refused"
        } else {
            "access key: its secret was refused"
        };
        let reason = format!("held together with {whose}, which uses the same {refused}");
        return KeyState::HeldWith { until, reason };
    }
    match rest(&user.key, refused, now) {
        Some((until, reason)) if !user.key_accepted => KeyState::Resting { until, reason },
        _ => KeyState::Free,
    }
}

/// What is known of this very secret, while it rests.
pub(crate) fn own_refusal<'a>(
    key: &KeyName,
    refused: &'a [RefusedKey],
    now: UtcMillis,
) -> Option<&'a RefusedKey> {
    let own = refused
        .iter()
        .filter(|refused| is_of(refused, key) && refused.until > now);
    own.max_by_key(|refused| refused.until)
}

/// The target that uses the same key with a refused secret, and until when that holds the others,
/// too.
fn refusal_of_another(
    user: &KeyUser,
    users: &[KeyUser],
    refused: &[RefusedKey],
    now: UtcMillis,
) -> Option<(UtcMillis, TargetName)> {
    let others = refused
        .iter()
        .filter(|refused| refused.key == user.key.id && !is_of(refused, &user.key));
    let mut latest: Option<(UtcMillis, TargetName)> = None;
    for refused in others {
        // One that the cloud goes on accepting cannot be locked by a single refusal now and then.
        if user.key_accepted && refused.refusals > FIRST_REFUSALS {
            continue;
        }
        let Some(whose) = present_user(refused, users) else {
            continue;
        };
        let until = last_refusal(refused)
            .map_or(now, |at| at + CREDENTIALS_HOLD)
            .min(refused.until);
        if until > now && latest.as_ref().is_none_or(|(other, _)| until > *other) {
            latest = Some((until, whose.clone()));
        }
    }
    latest
}

/// Who uses a refused secret at present, preferably the target whose call was refused. None if the
/// secret was replaced.
pub(crate) fn present_user<'a>(
    refused: &RefusedKey,
    users: &'a [KeyUser],
) -> Option<&'a TargetName> {
    let present: Vec<&TargetName> = users
        .iter()
        .filter(|user| is_of(refused, &user.key))
        .map(|user| &user.target)
        .collect();
    let caller = present.iter().find(|target| ***target == refused.target);
    caller.or(present.first()).copied()
}

/// Until when a key rests that was refused with several secrets in a short time, and the sentence
/// for that.
pub(crate) fn rest(
    key: &KeyName,
    refused: &[RefusedKey],
    now: UtcMillis,
) -> Option<(UtcMillis, String)> {
    let recent = recent(key, refused, now);
    let surplus = recent.len().checked_sub(RECENT_REFUSALS_MAX)?;
    let until = *recent.get(surplus)? + CREDENTIALS_HOLD;
    let minutes = CREDENTIALS_HOLD.as_secs() / 60;
    let reason = format!(
        "the cloud refused this key {} times within {minutes} minutes, with several secrets; another refusal might lock it, so the new secret waits",
        recent.len()
    );
    Some((until, reason))
}

/// When signatures of this key were refused within the time of the lock, whatever the secret; the
/// oldest first.
pub(crate) fn recent(key: &KeyName, refused: &[RefusedKey], now: UtcMillis) -> Vec<UtcMillis> {
    let of_key = refused.iter().filter(|refused| refused.key == key.id);
    let mut all: Vec<UtcMillis> = of_key
        .flat_map(|refused| refused.recent.iter().copied())
        .collect();
    all.retain(|at| counts(*at, now));
    all.sort();
    all
}

/// A refusal that lies ahead was seen by a clock that has been set back since; it counts, unless
/// that clock was far off.
fn counts(at: UtcMillis, now: UtcMillis) -> bool {
    now.since(at) < CREDENTIALS_HOLD && at.since(now) <= CREDENTIALS_HOLD
}

/// What is known of a key after `refusal`. All entries of `refused` about the
/// same secret are in it.
pub(crate) fn after_refusal(
    refusal: RefusedCall<'_>,
    refused: &[RefusedKey],
    now: UtcMillis,
) -> RefusedKey {
    let signed = refusal.signed;
    let own: Vec<&RefusedKey> = refused
        .iter()
        .filter(|refused| is_of(refused, &signed.key))
        .collect();
    let before = own
        .iter()
        .map(|refused| refused.refusals)
        .max()
        .unwrap_or(0);
    let refusals = before.saturating_add(signed.refused.max(1));
    let mut recent: Vec<UtcMillis> = own
        .iter()
        .flat_map(|refused| refused.recent.iter().copied())
        .collect();
    recent.retain(|at| counts(*at, now));
    recent.sort();
    recent.extend(std::iter::repeat_n(now, signed.refused.max(1) as usize));
    let doublings = refusals.saturating_sub(FIRST_REFUSALS).min(8);
    RefusedKey {
        key: signed.key.id.clone(),
        secret: signed.key.secret.clone(),
        target: refusal.target.clone(),
        refusals,
        until: now + (CREDENTIALS_HOLD * (1 << doublings)).min(CREDENTIALS_HOLD_MAX),
        reason: refusal.reason.to_owned(),
        recent,
    }
}

/// True if `refused` is about this very key and secret, as far as they can be compared.
pub(crate) fn is_of(refused: &RefusedKey, key: &KeyName) -> bool {
    refused.key == key.id && key.may_have_secret(&refused.secret)
}

fn last_refusal(refused: &RefusedKey) -> Option<UtcMillis> {
    refused.recent.iter().copied().max()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UtcMillis = UtcMillis(1_800_000_000_000);

    fn signed(secret: &str, refused: u32) -> Signed {
        Signed {
            key: KeyName {
                id: "ak".into(),
                secret: secret.into(),
            },
            refused,
        }
    }

    fn user(target: &str, secret: &str, key_accepted: bool) -> KeyUser {
        KeyUser {
            target: TargetName(target.into()),
            key: signed(secret, 0).key,
            key_accepted,
        }
    }

    /// Notes a refusal of a call that `target` signed with `secret`.
    fn refuse(known: &mut Vec<RefusedKey>, secret: &str, signatures: u32, now: UtcMillis) {
        let signed = signed(secret, signatures);
        let refusal = RefusedCall {
            signed: &signed,
            target: &TargetName("a".into()),
            reason: "HTTP 401",
        };
        let new = after_refusal(refusal, known, now);
        known.retain(|refused| !is_of(refused, &signed.key));
        known.push(new);
    }

    fn minutes(number: u64) -> UtcMillis {
        NOW + Duration::from_secs(number * 60)
    }

    #[test]
    fn the_hold_of_a_secret_grows_with_each_refusal_up_to_an_hour() {
        let mut known = Vec::new();
        let mut holds = Vec::new();
        for signatures in [2, 1, 1, 1, 1] {
            refuse(&mut known, "s", signatures, NOW);
            holds.push(known[0].until.since(NOW).as_secs() / 60);
        }
        assert_eq!(holds, [6, 12, 24, 48, 60]);
    }

    #[test]
    fn however_secrets_alternate_five_signatures_are_never_refused_in_a_row() {
        let secrets = ["s1", "s2", "s1", "s3", "s4", "s2", "s5", "s6"];
        let mut known = Vec::new();
        for minute in 0..120 {
            let now = minutes(minute);
            let me = user("a", secrets[minute as usize % secrets.len()], false);
            if state_of(&me, std::slice::from_ref(&me), &known, now) == KeyState::Free {
                // Repeated with a new signature only where nothing is known of the key.
                let signatures = if recent(&me.key, &known, now).is_empty() {
                    2
                } else {
                    1
                };
                refuse(&mut known, &me.key.secret, signatures, now);
            }
            assert!(
                recent(&me.key, &known, now).len() <= RECENT_REFUSALS_MAX,
                "minute {minute}"
            );
        }
    }

    #[test]
    fn a_new_secret_is_free_at_once_and_one_refused_before_is_not_new() {
        let mut known = Vec::new();
        refuse(&mut known, "wrong", 2, NOW);
        for (secret, free) in [("right", true), ("wrong", false)] {
            let me = user("a", secret, false);
            assert_eq!(
                state_of(&me, std::slice::from_ref(&me), &known, minutes(1)) == KeyState::Free,
                free
            );
        }
    }

    #[test]
    fn another_targets_refusal_is_told_as_that_and_ends_with_its_secret() {
        let mut known = Vec::new();
        refuse(&mut known, "wrong", 2, NOW);
        let (other, mine) = (user("a", "wrong", false), user("b", "right", true));
        let stands = state_of(&mine, &[other, mine.clone()], &known, minutes(1));
        let reason = "held together with a, which uses the same access key: its secret was refused"
            .to_owned();
        assert_eq!(
            stands,
            KeyState::HeldWith {
                until: minutes(6),
                reason
            }
        );
        let replaced = user("a", "right", false);
        assert_eq!(
            state_of(&mine, &[replaced, mine.clone()], &known, minutes(1)),
            KeyState::Free
        );
    }

    #[test]
    fn an_accepted_secret_is_not_held_for_later_refusals_of_another() {
        let mut known = Vec::new();
        refuse(&mut known, "wrong", 2, NOW);
        refuse(&mut known, "wrong", 1, minutes(6));
        let (other, taken, untried) = (
            user("a", "wrong", false),
            user("b", "right", true),
            user("b", "right", false),
        );
        assert_eq!(
            state_of(&taken, &[other.clone(), taken.clone()], &known, minutes(7)),
            KeyState::Free
        );
        let hold = state_of(
            &untried,
            &[other.clone(), untried.clone()],
            &known,
            minutes(7),
        )
        .hold(&untried.target);
        assert_eq!(hold.map(|(until, _)| until), Some(minutes(12)));
        let own =
            state_of(&other, std::slice::from_ref(&other), &known, minutes(7)).hold(&other.target);
        assert_eq!(
            own.map(|(until, _)| until),
            Some(minutes(18)),
            "the refused one rests longer"
        );
    }

    #[test]
    fn a_clock_that_was_far_ahead_bars_nobody_for_long() {
        let mut known = Vec::new();
        for secret in ["s1", "s2", "s3", "s4"] {
            refuse(&mut known, secret, 1, minutes(600_000));
        }
        let me = user("a", "s5", false);
        assert_eq!(
            state_of(&me, std::slice::from_ref(&me), &known, NOW),
            KeyState::Free
        );
    }

    /// What was refused of `key` with this secret in the call of `target`, twice at `at`.
    fn refusal(key: &str, secret: &str, target: &str, at: UtcMillis) -> RefusedKey {
        let mut signed = signed(secret, 2);
        key.clone_into(&mut signed.key.id);
        let refusal = RefusedCall {
            signed: &signed,
            target: &TargetName(target.into()),
            reason: "HTTP 401",
        };
        after_refusal(refusal, &[], at)
    }

    #[test]
    fn a_hold_with_anothers_words_names_that_target() {
        let state = KeyState::Refused(refusal("ak", "s", "a", NOW));
        for (target, reason) in [
            ("a", "HTTP 401"),
            (
                "b",
                "held together with a, which uses the same key: HTTP 401",
            ),
        ] {
            let hold = state.hold(&TargetName(target.into()));
            assert_eq!(hold, Some((minutes(6), reason.to_owned())));
        }
    }

    #[test]
    fn a_key_refused_four_times_rests_until_the_oldest_counts_no_more() {
        let mut known = Vec::new();
        for (minute, secret) in ["s1", "s2", "s3", "s4"].into_iter().enumerate() {
            refuse(&mut known, secret, 1, minutes(minute as u64));
        }
        let of_another_key = (0..9).map(|_| refusal("other", "s", "a", minutes(4)));
        known.extend(of_another_key);
        let me = user("a", "s5", false);
        let users = std::slice::from_ref(&me);
        let state = state_of(&me, users, &known, minutes(4));
        let KeyState::Resting { until, reason } = state else {
            panic!("{state:?}")
        };
        assert_eq!(until, minutes(6));
        assert!(reason.contains("4 times within 6 minutes"), "{reason}");
        let accepted = user("a", "s5", true);
        for (user, now) in [(&accepted, minutes(4)), (&me, minutes(6))] {
            assert_eq!(state_of(user, users, &known, now), KeyState::Free);
        }

        refuse(&mut known, "s6", 1, minutes(4));
        let rest = rest(&me.key, &known, minutes(5));
        assert_eq!(rest.map(|(until, _)| until), Some(minutes(7)));
    }

    #[test]
    fn a_refused_secret_is_tried_again_at_the_end_of_its_hold() {
        let known = [refusal("ak", "wrong", "a", NOW)];
        let users = [user("a", "wrong", false), user("b", "right", false)];
        for user in &users {
            let now = minutes(6);
            assert_ne!(
                state_of(user, &users, &known, now.moved(-1)),
                KeyState::Free
            );
            assert_eq!(state_of(user, &users, &known, now), KeyState::Free);
        }
    }

    #[test]
    fn of_several_refusals_of_its_key_the_longest_holds_a_target() {
        let short = refusal("ak", "s1", "a", NOW);
        let long = refusal("ak", "s2", "b", minutes(1));
        let mut of_another_key = refusal("other", "s3", "c", minutes(2));
        of_another_key.refusals = 1;
        let mut other = user("c", "s3", false);
        other.key.id = "other".into();
        let me = user("d", "right", true);
        let users = [user("a", "s1", false), user("b", "s2", false), other];
        for known in [
            [short.clone(), long.clone(), of_another_key.clone()],
            [of_another_key, long, short],
        ] {
            let hold = state_of(&me, &users, &known, minutes(2)).hold(&me.target);
            let (until, reason) = hold.expect("it is held");
            assert_eq!(until, minutes(7));
            assert!(reason.contains("with b,"), "{reason}");
        }
    }

    #[test]
    fn a_refused_secret_is_called_that_of_the_target_that_was_refused() {
        let users = [user("a", "s", false), user("b", "s", false)];
        for (caller, named) in [("b", "b"), ("a", "a"), ("gone", "a")] {
            let refused = refusal("ak", "s", caller, NOW);
            let name = present_user(&refused, &users);
            assert_eq!(name, Some(&TargetName(named.into())), "{caller}");
        }
    }
}
