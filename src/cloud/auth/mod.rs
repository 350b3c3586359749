//! Who we are to the cloud: access keys or a user's password, and the headers that prove it.
//!
//! Owns the secrets while they are in memory. Reads no file, and keeps every secret out of `Debug`, logs and messages.

use std::fmt;

use hmac::digest::Digest;
use secrecy::SecretString;
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

impl Credentials {
    /// Which key this is: of its kind and the access key, or of domain and user; 16 hex digits.
    pub fn key(&self) -> String {
        match self {
            Self::AkSk(keys) => short_hash(&["aksk", &keys.access_key, ""]),
            Self::Password(user) => short_hash(&["token", &user.domain, &user.username]),
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
        assert_eq!(one, renewed);
        assert_ne!(one, other);
        assert_eq!(one.len(), 16);
        assert!(!one.contains("AK1"));
    }

    #[test]
    fn secrets_stay_out_of_debug_output() {
        let password = SecretString::from("hush");
        let user = Password { domain: "d".into(), username: "u".into(), password };
        let shown = format!("{:?} {:?} {:?}", keys("AK1", "hush"), user, Credentials::Password(user.clone()));
        assert!(!shown.contains("hush") && !shown.contains("AK1"), "{shown}");
    }
}
