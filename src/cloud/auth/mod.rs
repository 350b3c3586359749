//! Who we are to the cloud: access keys or a user's password, and the headers that prove it.
//!
//! Owns the secrets while they are in memory. Reads no file, and keeps every secret out of `Debug`,
//! logs and messages.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use hmac::digest::Digest;
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use crate::settings::{process_number, salted_digest};

pub mod aksk;
pub mod token;

/// The secrets of one target; a new value replaces the old one as a whole.
#[derive(Clone)]
pub enum Credentials {
    /// `kind = "aksk"`.
    AkSk(AccessKeys),
    /// `kind = "token"`.
    Password(Password),
}

/// A permanent or temporary pair of access keys.
#[derive(Clone)]
pub struct AccessKeys {
    /// AK: names the key.
    pub access_key: String,
    /// SK: signs.
    pub secret_key: SecretString,
    /// Comes with temporary keys only.
    pub security_token: Option<SecretString>,
}

/// An IAM user's name and password.
#[derive(Clone)]
pub struct Password {
    /// The account (domain) name.
    pub domain: String,
    /// The user's name.
    pub username: String,
    /// The password.
    pub password: SecretString,
}

/// Which key a call is made with; reveals nothing of the key itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyName {
    /// The same for all clients that use this access key or user, whatever the secret. 16 hex
    /// digits.
    pub id: String,
    /// Changes with the secret and not with the file that holds it. For a secret key 8 hex digits,
    /// too few to reveal anything. A password can be guessed, and producers can read where this is
    /// stored: so its digest is salted by this process, and begins with a number of the process and
    /// a hyphen.
    pub secret: String,
}

impl KeyName {
    /// True if `stored` is the name of this secret, or of a password that another process named:
    /// those cannot be compared.
    pub fn may_have_secret(&self, stored: &str) -> bool {
        match (self.secret.split_once('-'), stored.split_once('-')) {
            (Some((process, _)), Some((other, _))) if process != other => true,
            _ => self.secret == stored,
        }
    }

    /// True for a user with a password, false for an access key.
    pub fn is_user(&self) -> bool {
        self.secret.contains('-')
    }
}

/// What a call shows about the key that it was made with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signed {
    /// That key, which may no longer be the target's present one.
    pub key: KeyName,
    /// Refused proofs in a row (signatures, tokens or passwords) that have not been reported yet.
    pub refused: u32,
}

/// A key as the clouds count it: which one it is, and how often in a row it was refused. More than
/// five bad signatures in a row lock it for five minutes, whatever secrets made them. Source:
/// vendor FAQs.
#[derive(Debug)]
pub struct Key {
    name: KeyName,
    refusals: AtomicU32,
    untold: AtomicU32,
    one_proof_a_call: AtomicBool,
}

impl Key {
    /// Which key this is.
    pub fn name(&self) -> &KeyName {
        &self.name
    }

    /// Refusals in a row, as far as this client knows.
    pub fn refusals(&self) -> u32 {
        self.refusals.load(Ordering::SeqCst)
    }

    /// Learns what other clients, or an earlier run, know of this key.
    pub fn set_refusals(&self, refusals: u32) {
        self.refusals.store(refusals, Ordering::SeqCst);
    }

    /// With `true` a refused call is not repeated with a new signature: few are left before the key
    /// is locked.
    pub fn set_one_proof_a_call(&self, one: bool) {
        self.one_proof_a_call.store(one, Ordering::SeqCst);
    }

    /// For the code that handles a call that has just ended. Each refusal is reported once.
    pub fn signed(&self) -> Signed {
        Signed {
            key: self.name.clone(),
            refused: self.untold.swap(0, Ordering::SeqCst),
        }
    }

    /// Counts a refusal; true if the call may be repeated with a new signature.
    pub(super) fn was_refused(&self) -> bool {
        self.untold.fetch_add(1, Ordering::SeqCst);
        let is_first = self.refusals.fetch_add(1, Ordering::SeqCst) == 0;
        is_first && !self.one_proof_a_call.load(Ordering::SeqCst)
    }

    pub(super) fn was_accepted(&self) {
        self.set_refusals(0);
        self.untold.store(0, Ordering::SeqCst);
    }
}

impl Credentials {
    /// Which key this is: by its kind and the access key, or by domain and user.
    pub fn key(&self) -> Key {
        let name = match self {
            Self::AkSk(keys) => {
                let token = keys
                    .security_token
                    .as_ref()
                    .map_or("", ExposeSecret::expose_secret);
                let mut secret = short_hash(&[
                    "secret",
                    &keys.access_key,
                    keys.secret_key.expose_secret(),
                    token,
                ]);
                secret.truncate(8);
                KeyName {
                    id: short_hash(&["aksk", &keys.access_key, ""]),
                    secret,
                }
            }
            Self::Password(user) => {
                let digest = salted_digest(user.password.expose_secret().as_bytes());
                let secret = format!("{}-{}", process_number(), hex::encode(&digest[..8]));
                KeyName {
                    id: short_hash(&["token", &user.domain, &user.username]),
                    secret,
                }
            }
        };
        Key {
            name,
            refusals: AtomicU32::new(0),
            untold: AtomicU32::new(0),
            one_proof_a_call: AtomicBool::new(false),
        }
    }

    /// The word of the config: `aksk` or `token`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::AkSk(_) => "aksk",
            Self::Password(_) => "token",
        }
    }
}

/// The first 16 hex digits of SHA-256 over the parts, with a byte between them that none of them
/// contains.
fn short_hash(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0xff]);
    }
    hex::encode(&hash.finalize()[..8])
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({}, ***)", self.kind())
    }
}

impl fmt::Debug for AccessKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessKeys(***)")
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(access: &str, secret: &str) -> Credentials {
        let access_key = access.to_owned();
        let secret_key = SecretString::from(secret);
        Credentials::AkSk(AccessKeys {
            access_key,
            secret_key,
            security_token: None,
        })
    }

    fn user(password: &str) -> Credentials {
        let (domain, username, password) =
            ("d".to_owned(), "u".to_owned(), SecretString::from(password));
        Credentials::Password(Password {
            domain,
            username,
            password,
        })
    }

    #[test]
    fn a_key_is_told_apart_whatever_its_secret_and_not_given_away() {
        let one = keys("AK1", "s1").key();
        let renewed = keys("AK1", "s2").key();
        let other = keys("AK2", "s1").key();
        assert_eq!(
            one.name(),
            keys("AK1", "s1").key().name(),
            "the same content is the same key"
        );
        assert_eq!(one.name().id, renewed.name().id);
        assert_ne!(one.name().id, other.name().id);
        assert!(!one.name().may_have_secret(&renewed.name().secret));
        assert_eq!((one.name().id.len(), one.name().secret.len()), (16, 8));
    }

    #[test]
    fn passwords_are_compared_within_one_process_alone() {
        let one = user("hush").key();
        let same = user("hush").key();
        let other = user("hash").key();
        assert_eq!(one.name(), same.name());
        assert!(!one.name().may_have_secret(&other.name().secret));
        let of_another_process = format!("0-{}", "0".repeat(16));
        assert!(
            one.name().may_have_secret(&of_another_process),
            "it cannot be told, so it counts as refused"
        );
        assert!(one.name().is_user() && !keys("AK1", "s1").key().name().is_user());
    }

    #[test]
    fn refusals_are_told_once_and_an_accepted_call_begins_anew() {
        let key = keys("AK1", "s1").key();
        assert!(
            key.was_refused(),
            "a first refusal is worth a second signature"
        );
        assert!(!key.was_refused());
        assert_eq!(
            (key.signed().refused, key.signed().refused, key.refusals()),
            (2, 0, 2)
        );
        key.was_refused();
        key.was_accepted();
        assert_eq!((key.signed().refused, key.refusals()), (0, 0));
        key.set_one_proof_a_call(true);
        assert!(!key.was_refused());
    }

    #[test]
    fn secrets_stay_out_of_debug_output() {
        let password = SecretString::from("hush");
        let user = Password {
            domain: "d".into(),
            username: "u".into(),
            password,
        };
        let shown = format!(
            "{:?} {:?} {:?}",
            keys("AK1", "hush"),
            user,
            Credentials::Password(user.clone())
        );
        assert!(!shown.contains("hush") && !shown.contains("AK1"), "{shown}");
    }
}
