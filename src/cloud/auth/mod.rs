//! Who we are to the cloud: access keys or a user's password, and the headers that prove it.
//!
//! Owns the secrets while they are in memory. Reads no file, and keeps every secret out of `Debug`, logs and messages.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use hmac::digest::Digest;
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

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

/// A key as the clouds count it: which one it is, and how often in a row it was refused. More than five bad signatures in a
/// row lock it for five minutes. Source: vendor FAQs.
#[derive(Debug)]
pub struct Key {
    id: String,
    secret: Option<String>,
    refusals: AtomicU32,
}

impl Key {
    /// The same for all clients that use this key, whatever its secret; tells nothing of either. 16 hex digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Changes with the secret key, and is too short to tell anything of it; 8 hex digits. None for a password: those can be
    /// guessed, and this is stored where producers can read.
    pub fn secret(&self) -> Option<&str> {
        self.secret.as_deref()
    }

    /// Refusals in a row, as far as this client knows.
    pub fn refusals(&self) -> u32 {
        self.refusals.load(Ordering::SeqCst)
    }

    /// Takes over what other clients, or an earlier run, know of this key.
    pub fn set_refusals(&self, refusals: u32) {
        self.refusals.store(refusals, Ordering::SeqCst);
    }

    /// Counts a refusal; true if it is the first in a row.
    pub(super) fn was_refused(&self) -> bool {
        self.refusals.fetch_add(1, Ordering::SeqCst) == 0
    }

    pub(super) fn was_accepted(&self) {
        self.set_refusals(0);
    }
}

impl Credentials {
    /// Which key this is: by its kind and the access key, or by domain and user.
    pub fn key(&self) -> Key {
        let (id, secret) = match self {
            Self::AkSk(keys) => {
                let token = keys.security_token.as_ref().map_or("", ExposeSecret::expose_secret);
                let mut secret = short_hash(&["secret", &keys.access_key, keys.secret_key.expose_secret(), token]);
                secret.truncate(8);
                (short_hash(&["aksk", &keys.access_key, ""]), Some(secret))
            }
            Self::Password(user) => (short_hash(&["token", &user.domain, &user.username]), None),
        };
        Key { id, secret, refusals: AtomicU32::new(0) }
    }

    /// The word of the config: `aksk` or `token`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::AkSk(_) => "aksk",
            Self::Password(_) => "token",
        }
    }
}

/// The first 16 hex digits of SHA-256 over the parts, with a byte between them that none of them holds.
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
        let (access_key, secret_key) = (access.to_owned(), SecretString::from(secret));
        Credentials::AkSk(AccessKeys { access_key, secret_key, security_token: None })
    }

    #[test]
    fn a_key_is_told_apart_whatever_its_secret_and_not_given_away() {
        let (one, renewed, other) = (keys("AK1", "s1").key(), keys("AK1", "s2").key(), keys("AK2", "s1").key());
        assert_eq!(one.id(), renewed.id());
        assert_ne!(one.id(), other.id());
        assert_ne!(one.secret(), renewed.secret());
        assert_eq!((one.id().len(), one.secret().map(str::len)), (16, Some(8)));
        let user = Password { domain: "d".into(), username: "u".into(), password: SecretString::from("hush") };
        assert_eq!(Credentials::Password(user).key().secret(), None);
    }

    #[test]
    fn secrets_stay_out_of_debug_output() {
        let password = SecretString::from("hush");
        let user = Password { domain: "d".into(), username: "u".into(), password };
        let shown = format!("{:?} {:?} {:?}", keys("AK1", "hush"), user, Credentials::Password(user.clone()));
        assert!(!shown.contains("hush") && !shown.contains("AK1"), "{shown}");
    }
}
