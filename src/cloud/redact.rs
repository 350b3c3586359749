//! What must not be repeated: our own keys, tokens, names and passwords, which a cloud or a gateway
//! may quote in its answer.
//!
//! Owns finding them in a text, whole, percent-encoded or cut short. Keeps them in memory only, and
//! out of `Debug`.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};

use super::Observed;
use super::auth::Credentials;
use super::auth::aksk::percent_encode;
use crate::model::{
    CallError, CodeClass, Complaint, Extent, JobReport, Listing, Sighting, Tracking,
};

/// What replaces a secret.
const REDACTED: &str = "***";

/// A secret is also known by its first characters, because texts are cut; at least this many.
const PREFIX_CHARS_MIN: usize = 8;

/// Shorter ones would match in every sentence.
const WORD_CHARS_MIN: usize = 3;

/// A signature has this many hex digits; nothing else in an answer that somebody needs to read has
/// that many.
const SIGNATURE_DIGITS: usize = 64;

/// Tokens remembered: the present one, and those that calls still in progress may use.
const TOKENS_MAX: usize = 4;

/// The secrets of one target.
pub(super) struct Redactor {
    secrets: Vec<SecretString>,
    tokens: Mutex<VecDeque<SecretString>>,
}

impl Redactor {
    pub(super) fn new(credentials: &Credentials) -> Self {
        let secrets = match credentials {
            Credentials::AkSk(keys) => {
                let pair = [
                    SecretString::from(keys.access_key.as_str()),
                    keys.secret_key.clone(),
                ];
                pair.into_iter()
                    .chain(keys.security_token.clone())
                    .collect()
            }
            Credentials::Password(user) => vec![
                user.password.clone(),
                SecretString::from(user.username.as_str()),
                SecretString::from(user.domain.as_str()),
            ],
        };
        Self {
            secrets,
            tokens: Mutex::default(),
        }
    }

    /// Notes a token that a call is made with.
    pub(super) fn remember(&self, token: &HeaderValue) {
        let Ok(token) = token.to_str() else { return };
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.iter().any(|known| known.expose_secret() == token) {
            return;
        }
        if tokens.len() >= TOKENS_MAX {
            tokens.pop_front();
        }
        tokens.push_back(SecretString::from(token));
    }

    /// `text` without the secrets.
    pub(super) fn clean(&self, text: &str) -> String {
        let mut clean = text.to_owned();
        {
            let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            let mut secrets: Vec<&str> = tokens
                .iter()
                .chain(&self.secrets)
                .map(ExposeSecret::expose_secret)
                .collect();
            // The longest first, and all whole secrets before any beginnings: two secrets may begin
            // alike.
            secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
            for head_chars in [usize::MAX, PREFIX_CHARS_MIN] {
                for secret in &secrets {
                    clean = without(&clean, secret, head_chars);
                    let encoded = percent_encode(secret);
                    if encoded != *secret {
                        clean = without(&clean, &encoded, head_chars);
                    }
                }
            }
        }
        without_signatures(&clean)
    }

    fn clean_complaint(&self, complaint: &mut Complaint) {
        complaint.message = self.clean(&complaint.message);
        if complaint.class == CodeClass::Other {
            complaint.code = self.clean(&complaint.code);
        }
    }
}

/// The result of a call, with texts from the cloud.
pub(super) trait Redact {
    /// Removes our own secrets from its texts.
    fn redact(&mut self, redactor: &Redactor);
}

impl Redact for () {
    fn redact(&mut self, _: &Redactor) {}
}

/// A job's id is needed as it is.
impl Redact for Tracking {
    fn redact(&mut self, _: &Redactor) {}
}

impl Redact for CallError {
    fn redact(&mut self, redactor: &Redactor) {
        self.message = redactor.clean(&self.message);
        self.request_id = self.request_id.as_deref().map(|id| redactor.clean(id));
        // A documented code is not a secret, even if a user has that name.
        if crate::model::cloud_codes::class(&self.code) == CodeClass::Other {
            self.code = redactor.clean(&self.code);
        }
    }
}

impl Redact for JobReport {
    fn redact(&mut self, redactor: &Redactor) {
        let errors = self
            .sub_jobs
            .iter_mut()
            .filter_map(|sub_job| sub_job.error.as_mut());
        errors
            .chain(self.error.as_mut())
            .for_each(|complaint| redactor.clean_complaint(complaint));
    }
}

impl Redact for Observed {
    fn redact(&mut self, redactor: &Redactor) {
        for sighting in self.sightings.values_mut() {
            if let Sighting::Present(view) = sighting
                && let Some(complaint) = &mut view.error
            {
                complaint.message = redactor.clean(&complaint.message);
                complaint.code = redactor.clean(&complaint.code);
            }
        }
        self.failures
            .values_mut()
            .chain(self.ended_by.as_mut())
            .for_each(|error| error.redact(redactor));
        if let Some(listing) = &mut self.listing {
            listing.redact(redactor);
        }
    }
}

/// Names are the servers' own.
impl Redact for Listing {
    fn redact(&mut self, redactor: &Redactor) {
        if let Extent::CutShort(error) = &mut self.extent {
            error.redact(redactor);
        }
    }
}

/// `text` without `secret`, in whatever case. A long one is also found by its first `head_chars`; a
/// short one only as a whole word.
fn without(text: &str, secret: &str, head_chars: usize) -> String {
    let count = secret.chars().count();
    if count < WORD_CHARS_MIN {
        return text.to_owned();
    }
    let short = count < PREFIX_CHARS_MIN;
    let head_end = secret
        .char_indices()
        .nth(head_chars)
        .map_or(secret.len(), |(at, _)| at);
    let lower_text = text.to_ascii_lowercase();
    let lower_secret = secret.to_ascii_lowercase();
    let mut clean = String::with_capacity(text.len());
    let mut done = 0;
    while let Some(found) = lower_text[done..].find(&lower_secret[..head_end]) {
        let start = done + found;
        let rest = lower_text[start..].chars().zip(lower_secret.chars());
        let end = start
            + rest
                .take_while(|(one, other)| one == other)
                .map(|(c, _)| c.len_utf8())
                .sum::<usize>();
        let is_part = short && (ends_in_word(&text[..start]) || begins_with_word(&text[end..]));
        clean.push_str(&text[done..start]);
        clean.push_str(if is_part { &text[start..end] } else { REDACTED });
        done = end;
    }
    clean.push_str(&text[done..]);
    clean
}

fn ends_in_word(text: &str) -> bool {
    text.chars().next_back().is_some_and(char::is_alphanumeric)
}

fn begins_with_word(text: &str) -> bool {
    text.chars().next().is_some_and(char::is_alphanumeric)
}

/// Hex digits as long as a signature, or any after the word by which our `Authorization` header
/// names it.
fn without_signatures(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_hexdigit()) {
        let (before, run) = rest.split_at(start);
        let end = run
            .find(|c: char| !c.is_ascii_hexdigit())
            .unwrap_or(run.len());
        clean.push_str(before);
        let named = clean.to_ascii_lowercase();
        let is_named = named.ends_with("signature=") || named.ends_with("signature%3d");
        let is_signature = end >= SIGNATURE_DIGITS || (is_named && end >= PREFIX_CHARS_MIN);
        clean.push_str(if is_signature { REDACTED } else { &run[..end] });
        rest = &run[end..];
    }
    clean.push_str(rest);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::auth::{AccessKeys, Password};

    fn keys() -> Redactor {
        Redactor::new(&Credentials::AkSk(AccessKeys {
            access_key: "EXAMPLEAK00000000001".to_owned(),
            secret_key: "Example/Secret+Key=000000000000000000001".into(),
            security_token: Some("gQpjbi1ub3J0aC0x+SECURITY=TOKEN==".into()),
        }))
    }

    #[test]
    fn keys_are_redacted_whole_encoded_and_cut_short() {
        let redactor = keys();
        for (text, clean) in [
            (
                "the key EXAMPLEAK00000000001 is frozen",
                "the key *** is frozen",
            ),
            (
                "the key exampleak00000000001 is frozen",
                "the key *** is frozen",
            ),
            ("AK=EXAMPLEAK00…", "AK=***…"),
            (
                "SK Example%2FSecret%2BKey%3D000000000000000000001.",
                "SK ***.",
            ),
            (
                "token gQpjbi1ub3J0aC0x+SECURITY=TOKEN== and EXAMPLEAK00000000001",
                "token *** and ***",
            ),
            ("EXAMPLE is no key", "EXAMPLE is no key"),
        ] {
            assert_eq!(redactor.clean(text), clean);
        }
        let header = format!(
            "SDK-HMAC-SHA256 Access=EXAMPLEAK00000000001, Signature={}",
            "0a".repeat(32)
        );
        assert_eq!(
            redactor.clean(&header),
            "SDK-HMAC-SHA256 Access=***, Signature=***"
        );
        assert_eq!(redactor.clean("Signature=0a0a0a0a0a0a…"), "Signature=***…");
        assert_eq!(
            redactor.clean("request 616fb98f46ca475e917e2563e5a8cd19"),
            "request 616fb98f46ca475e917e2563e5a8cd19"
        );
    }

    #[test]
    fn two_secrets_that_begin_alike_are_each_redacted_to_the_end() {
        let keys = AccessKeys {
            access_key: "EXAMPLEKEY-A-00".to_owned(),
            secret_key: "examplekey-secret-long-tail".into(),
            security_token: None,
        };
        let redactor = Redactor::new(&Credentials::AkSk(keys));
        let clean = redactor
            .clean("AK EXAMPLEKEY-A-00, SK examplekey-secret-long-tail, or examplekey-sec…");
        assert_eq!(clean, "AK ***, SK ***, or ***…");
    }

    #[test]
    fn names_passwords_and_tokens_are_redacted_as_words() {
        let user = Password {
            domain: "acme-corp-eu".into(),
            username: "ops".into(),
            password: "pa ss".into(),
        };
        let redactor = Redactor::new(&Credentials::Password(user));
        assert_eq!(
            redactor.clean("user ops of acme-corp-eu: stops, ops."),
            "user *** of ***: stops, ***."
        );
        assert_eq!(
            redactor.clean("password 'pa ss' or pa%20ss"),
            "password '***' or ***"
        );
        redactor.remember(&HeaderValue::from_static("short-token-1"));
        assert_eq!(
            redactor.clean("no such token: short-token-1"),
            "no such token: ***"
        );
    }

    #[test]
    fn every_text_of_an_error_is_cleaned_and_documented_codes_stay() {
        let error = |code: &str| CallError {
            fault: crate::model::Fault::Permission,
            status: Some(403),
            code: code.to_owned(),
            message: "EXAMPLEAK00000000001".to_owned(),
            request_id: Some("r-EXAMPLEAK00000000001".to_owned()),
            retry_after: None,
        };
        let mut echoed = error("X.EXAMPLEAK00000000001");
        echoed.redact(&keys());
        assert_eq!(
            echoed.to_string(),
            "HTTP 403, X.***: *** (request id r-***)"
        );
        let mut documented = error("BMS.0040");
        let user = Password {
            domain: "BMS".into(),
            username: "BMS".into(),
            password: "x".into(),
        };
        documented.redact(&Redactor::new(&Credentials::Password(user)));
        assert_eq!(documented.code, "BMS.0040");
    }
}
