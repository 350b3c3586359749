//! The tokens of `[[listen.tokens]]`, kept as digests, and what each of them allows.

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use crate::model::{PowerAction, Role, TargetName};
use crate::settings::{TokenSettings, salted_digest};

/// A digest of a token, useless outside of this process.
pub(super) type TokenDigest = [u8; 32];

/// What a token allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) name: String,
    pub(super) role: Role,
    /// None: all.
    pub(super) targets: Option<Vec<TargetName>>,
    /// None: all.
    pub(super) actions: Option<Vec<PowerAction>>,
}

/// All tokens.
#[derive(Debug, Default)]
pub(super) struct Tokens(Vec<(TokenDigest, Arc<Grant>)>);

impl Tokens {
    pub(super) fn new(settings: &[TokenSettings], secrets: &[SecretString]) -> Self {
        let mut tokens = Vec::with_capacity(settings.len());
        for (token, secret) in settings.iter().zip(secrets) {
            let grant = Grant {
                name: token.name.clone(),
                role: token.role,
                targets: token.targets.clone(),
                actions: token.actions.clone(),
            };
            tokens.push((digest(secret.expose_secret()), Arc::new(grant)));
        }
        Self(tokens)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the token with this digest allows. Takes the same time for all of them.
    pub(super) fn find(&self, wanted: &TokenDigest) -> Option<Arc<Grant>> {
        let mut found = None;
        for (digest, grant) in &self.0 {
            if bool::from(digest.ct_eq(wanted)) {
                found = Some(Arc::clone(grant));
            }
        }
        found
    }
}

/// Digests differ where tokens differ, so that their comparison says nothing about a token.
pub(super) fn digest(token: &str) -> TokenDigest {
    salted_digest(token.as_bytes())
}

/// True if both are the same; takes the same time wherever they differ.
pub(super) fn is_same(one: &str, other: &str) -> bool {
    digest(one).ct_eq(&digest(other)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_by_its_content_alone() {
        let of = |name: &str, role| TokenSettings {
            name: name.to_owned(),
            token_file: "/token".into(),
            role,
            targets: None,
            actions: None,
        };
        let tokens = Tokens::new(
            &[of("alice", Role::Operator), of("eye", Role::Reader)],
            &["a-token-of-alice".into(), "a-token-of-the-eye".into()],
        );
        let found = tokens.find(&digest("a-token-of-the-eye")).expect("known");
        assert_eq!((found.name.as_str(), found.role), ("eye", Role::Reader));
        for wrong in ["", "a-token-of-alic", "a-token-of-alice ", "alice"] {
            assert_eq!(tokens.find(&digest(wrong)), None, "{wrong}");
        }
    }
}
