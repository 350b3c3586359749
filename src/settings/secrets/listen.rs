//! The files that `[listen]` names: tokens, certificate and private key. Knows nothing of TLS and
//! of who shows a token.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};

use super::content::SecretKind;
use super::{SecretError, SecretProblem, SecretRules, read_bytes, read_file, resolve, unreadable};
use crate::settings::{ListenSettings, TlsFiles, TokenSettings};

/// Fewer could be guessed.
const TOKEN_CHARS_MIN: usize = 16;
const TOO_SHORT: &str = "contains fewer than 16 characters, which could be guessed; write the output of `openssl rand -hex 32` into it";
const SAME: &str = "contains the same token as another file; each needs its own";
/// More than any certificate with those that vouch for it.
const CERTIFICATE_BYTES_MAX: u64 = 1024 * 1024;

/// The secrets of `[listen]`. `Debug` shows none of them.
#[derive(Debug, Clone)]
pub struct ListenSecrets {
    /// One for each of `[[listen.tokens]]`, in the same order.
    pub tokens: Vec<SecretString>,
    /// Certificate and key, if there is TLS.
    pub tls: Option<TlsPem>,
}

/// What `tls_cert_file` and `tls_key_file` contain.
#[derive(Clone)]
pub struct TlsPem {
    /// Certificates, the server's own one first.
    pub cert: Vec<u8>,
    /// The private key.
    pub key: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for TlsPem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsPem").finish_non_exhaustive()
    }
}

impl ListenSecrets {
    /// Reads the files, after checking who else may read them.
    ///
    /// # Errors
    /// The first file that is missing, open to others or to the queue's group, too large, or does
    /// not contain what it should.
    pub fn load(settings: &ListenSettings, rules: &SecretRules) -> Result<Self, SecretError> {
        let mut tokens: Vec<SecretString> = Vec::with_capacity(settings.tokens.len());
        for token in &settings.tokens {
            let secret = load_other_token(token, &tokens, rules)?;
            tokens.push(secret);
        }
        let tls = settings
            .tls
            .as_ref()
            .map(|files| load_tls(files, rules))
            .transpose()?;
        Ok(Self { tokens, tls })
    }

    /// Every problem that the files have; none if [`ListenSecrets::load`] would succeed.
    pub fn problems(settings: &ListenSettings, rules: &SecretRules) -> Vec<SecretError> {
        let mut tokens: Vec<SecretString> = Vec::new();
        let mut problems = Vec::new();
        for token in &settings.tokens {
            match load_other_token(token, &tokens, rules) {
                Ok(secret) => tokens.push(secret),
                Err(problem) => problems.push(problem),
            }
        }
        if let Some(files) = &settings.tls {
            problems.extend(load_tls(files, rules).err());
        }
        problems
    }
}

/// A token that is none of the others.
fn load_other_token(
    token: &TokenSettings,
    others: &[SecretString],
    rules: &SecretRules,
) -> Result<SecretString, SecretError> {
    let secret = load_token(token, rules)?;
    let mut others = others.iter();
    if others.any(|other| other.expose_secret() == secret.expose_secret()) {
        return Err(malformed(token, rules, SAME));
    }
    Ok(secret)
}

fn load_token(token: &TokenSettings, rules: &SecretRules) -> Result<SecretString, SecretError> {
    let secret = resolve(&token.token_file, rules.credentials_directory.as_deref())
        .map_err(SecretProblem::NoCredentials)
        .and_then(|file| read_file(file, SecretKind::Key, rules))
        .map_err(|problem| of_token(token, problem))?;
    if secret.expose_secret().len() < TOKEN_CHARS_MIN {
        return Err(malformed(token, rules, TOO_SHORT));
    }
    Ok(secret)
}

fn of_token(token: &TokenSettings, problem: SecretProblem) -> SecretError {
    SecretError {
        key: format!("listen.tokens ({}): token_file", token.name),
        problem,
    }
}

fn malformed(token: &TokenSettings, rules: &SecretRules, flaw: &'static str) -> SecretError {
    let file = path_of(&token.token_file, rules);
    of_token(token, SecretProblem::Malformed { file, flaw })
}

fn load_tls(files: &TlsFiles, rules: &SecretRules) -> Result<TlsPem, SecretError> {
    let cert = path_of(&files.cert_file, rules);
    let cert = read_certificate(&cert).map_err(|problem| SecretError {
        key: "listen.tls_cert_file".to_owned(),
        problem,
    })?;
    let key = resolve(&files.key_file, rules.credentials_directory.as_deref())
        .map_err(SecretProblem::NoCredentials)
        .and_then(|file| read_bytes(&file, rules))
        .map_err(|problem| SecretError {
            key: "listen.tls_key_file".to_owned(),
            problem,
        })?;
    Ok(TlsPem { cert, key })
}

/// Everybody may read a certificate.
fn read_certificate(path: &Path) -> Result<Vec<u8>, SecretProblem> {
    let failed = |cause| unreadable(path, cause);
    // Opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(SecretProblem::NotAFile(path.to_owned()));
    }
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(failed)?
        .take(CERTIFICATE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

fn path_of(value: &Path, rules: &SecretRules) -> PathBuf {
    resolve(value, rules.credentials_directory.as_deref()).unwrap_or_else(|_| value.to_owned())
}

/// Where all these files are.
pub(super) fn paths(settings: &ListenSettings, rules: &SecretRules) -> Vec<PathBuf> {
    let mut values: Vec<&Path> = Vec::new();
    for token in &settings.tokens {
        values.push(&token.token_file);
    }
    if let Some(files) = &settings.tls {
        values.push(&files.cert_file);
        values.push(&files.key_file);
    }
    values
        .into_iter()
        .map(|value| path_of(value, rules))
        .collect()
}
