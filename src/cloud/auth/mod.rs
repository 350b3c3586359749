//! Who we are to the cloud: access keys or a user's password, and the headers that prove it.
//!
//! Owns the secrets while they are in memory. Reads no file, and keeps every secret out of `Debug`, logs and messages.

use std::fmt;

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

/// Tells keys apart without telling them: safe to store beside a hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint {
    /// Of the kind and the access key, or of domain and user: 16 hex digits, the same for all targets that use it.
    pub key: String,
    /// Of the secret and the security token: 16 hex digits, slow to compute; another one once the secret has changed.
    pub secret: String,
}

/// Rounds of SHA-256 for `Fingerprint::secret`, so that stored fingerprints are poor material for guessing passwords.
const SECRET_ROUNDS: u32 = 20_000;

impl Credentials {
    /// Which key this is: of its kind and the access key, or of domain and user; 16 hex digits.
    pub fn key(&self) -> String {
        match self {
            Self::AkSk(keys) => short_hash(&["aksk", &keys.access_key, ""]),
            Self::Password(user) => short_hash(&["token", &user.domain, &user.username]),
        }
    }

    /// Which key this is, and which version of its secret. Takes some milliseconds.
    pub fn fingerprint(&self) -> Fingerprint {
        let secrets: [&str; 2] = match self {
            Self::AkSk(keys) => {
                [keys.secret_key.expose_secret(), keys.security_token.as_ref().map_or("", |s| s.expose_secret())]
            }
            Self::Password(user) => [user.password.expose_secret(), ""],
        };
        let key = self.key();
        let mut secret = short_hash(&[&key, secrets[0], secrets[1]]);
        for _ in 0..SECRET_ROUNDS {
            secret = short_hash(&[&secret, secrets[0], secrets[1]]);
        }
        Fingerprint { key, secret }
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
    fn a_fingerprint_names_the_key_and_apart_from_it_the_secret() {
        let (one, renewed, other) = (keys("AK1", "s1"), keys("AK1", "s2"), keys("AK2", "s1"));
        assert_eq!(one.fingerprint(), one.clone().fingerprint());
        assert_eq!(one.fingerprint().key, renewed.fingerprint().key);
        assert_ne!(one.fingerprint().secret, renewed.fingerprint().secret);
        assert_ne!(one.fingerprint().key, other.fingerprint().key);
        assert_eq!((one.fingerprint().key.len(), one.fingerprint().secret.len()), (16, 16));
    }

    #[test]
    fn secrets_stay_out_of_debug_output() {
        let password = SecretString::from("hush");
        let user = Password { domain: "d".into(), username: "u".into(), password };
        let shown = format!("{:?} {:?} {:?}", keys("AK1", "hush"), user, Credentials::Password(user.clone()));
        assert!(!shown.contains("hush") && !shown.contains("AK1"), "{shown}");
    }
}
