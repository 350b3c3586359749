//! The files with keys and passwords: where they are, who may read them, and what they hold. Never prints what they hold.
//! Knows nothing of how a secret is used.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;

use super::AuthSettings;
use crate::model::TargetName;

/// More than any key, token or password.
const SECRET_BYTES_MAX: u64 = 64 * 1024;
/// Set by systemd for a unit with `LoadCredential=`.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
const READABLE_BY_OTHERS: u32 = 0o004;
const READABLE_BY_GROUP: u32 = 0o040;

/// The secrets of one target, mirroring [`AuthSettings`]. `Debug` shows none of them.
#[derive(Debug, Clone)]
pub enum LoadedSecrets {
    /// For signing.
    AkSk {
        /// The access key (AK): not secret by itself, but kept like one.
        access_key: SecretString,
        /// The secret key (SK).
        secret_key: SecretString,
        /// The security token of temporary keys.
        security_token: Option<SecretString>,
    },
    /// For buying a token.
    Token {
        /// The IAM user's password.
        password: SecretString,
    },
}

impl LoadedSecrets {
    /// Reads the files that `auth` names, after checking who else may read them.
    ///
    /// # Errors
    /// The first file that is missing, open to others or to the queue's group, empty, too large, or not one line of text.
    pub fn load(target: &TargetName, auth: &AuthSettings, rules: &SecretRules) -> Result<Self, SecretError> {
        let read = |key: &str, file: &Path| read_secret(format!("targets.{target}.auth.{key}"), file, rules);
        match auth {
            AuthSettings::AkSk { access_key_file, secret_key_file, security_token_file } => Ok(Self::AkSk {
                access_key: read("access_key_file", access_key_file)?,
                secret_key: read("secret_key_file", secret_key_file)?,
                security_token: security_token_file
                    .as_deref()
                    .map(|file| read("security_token_file", file))
                    .transpose()?,
            }),
            AuthSettings::Token { password_file, .. } => {
                Ok(Self::Token { password: read("password_file", password_file)? })
            }
        }
    }
}

/// Where secrets are looked up, and which groups must not read them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretRules {
    /// `$CREDENTIALS_DIRECTORY`, where systemd puts credentials.
    pub credentials_directory: Option<PathBuf>,
    /// The groups that own the queue's file and its directory: producers are in them.
    pub queue_groups: Vec<u32>,
}

impl SecretRules {
    /// The rules for this queue and what `$CREDENTIALS_DIRECTORY` holds. A queue that does not exist yet has no group.
    ///
    /// Only looks at the database by its path, since opening it would drop SQLite's locks.
    pub fn new(database: &Path, credentials_directory: Option<&OsStr>) -> Self {
        let credentials_directory = credentials_directory.filter(|path| !path.is_empty()).map(PathBuf::from);
        let group = |path: &Path| fs::metadata(path).ok().map(|meta| meta.gid());
        let queue_groups = [Some(database), database.parent()].into_iter().flatten().filter_map(group).collect();
        Self { credentials_directory, queue_groups }
    }

    /// [`SecretRules::new`] with this process's own environment.
    pub fn from_env(database: &Path) -> Self {
        Self::new(database, std::env::var_os(CREDENTIALS_DIRECTORY).as_deref())
    }

    /// Root-owned files in systemd's directory show a group bit that stands for the service's own access list.
    fn is_systemd_credential(&self, path: &Path, meta: &Metadata) -> bool {
        meta.uid() == 0 && self.credentials_directory.as_deref().is_some_and(|directory| path.starts_with(directory))
    }
}

/// `$CREDENTIALS_DIRECTORY`, if it is set to something.
pub(super) fn credentials_directory() -> Option<PathBuf> {
    std::env::var_os(CREDENTIALS_DIRECTORY).filter(|directory| !directory.is_empty()).map(PathBuf::from)
}

/// Where a `*_file` value is: an absolute path stands for itself, a name is looked up in the credentials directory.
pub(super) fn resolve(value: &Path, credentials: Option<&Path>) -> Result<PathBuf, String> {
    match credentials {
        _ if value.is_absolute() => Ok(value.to_owned()),
        Some(directory) => Ok(directory.join(value)),
        None => Err("names a systemd credential, but $CREDENTIALS_DIRECTORY is not set; \
             write an absolute path, or start poweryard by its systemd unit"
            .to_owned()),
    }
}

/// Why a secret could not be taken; names the key and the file, and the command that mends it where there is one.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct SecretError {
    /// The key with its tables, such as `targets.default.auth.secret_key_file`.
    pub key: String,
    /// What is wrong with its file.
    #[source]
    pub problem: SecretProblem,
}

/// What is wrong with a secret's file.
#[derive(Debug, thiserror::Error)]
pub enum SecretProblem {
    /// A name, and no credentials directory to look it up in.
    #[error("{0}")]
    NoCredentials(String),
    /// Missing, or not for us to read.
    #[error("{file} cannot be read ({cause}){mend}", file = file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        cause: io::Error,
        /// The command that mends it, after a semicolon.
        mend: String,
    },
    /// A directory, a pipe or a device.
    #[error("{} is not a regular file; name the file that holds the secret", .0.display())]
    NotAFile(PathBuf),
    /// Somebody else may read it.
    #[error("{file} can be read by {readers} (mode {mode:04o}); run: {mend}", file = file.display())]
    Open {
        /// The file.
        file: PathBuf,
        /// Who.
        readers: &'static str,
        /// Its permission bits.
        mode: u32,
        /// The command that closes it.
        mend: String,
    },
    /// Nothing but white space.
    #[error("{} is empty; write the secret into it", .0.display())]
    Empty(PathBuf),
    /// More than 64 KiB.
    #[error("{} is larger than 64 KiB; is it the right file?", .0.display())]
    TooLarge(PathBuf),
    /// Several lines, control characters or no UTF-8.
    #[error("{} is not one line of text; write the secret alone into it", .0.display())]
    NotOneLine(PathBuf),
}

fn read_secret(key: String, value: &Path, rules: &SecretRules) -> Result<SecretString, SecretError> {
    resolve(value, rules.credentials_directory.as_deref())
        .map_err(SecretProblem::NoCredentials)
        .and_then(|file| read_file(file, rules))
        .map_err(|problem| SecretError { key, problem })
}

/// Checks the very file that it then reads, whatever is put in its place meanwhile.
fn read_file(path: PathBuf, rules: &SecretRules) -> Result<SecretString, SecretProblem> {
    let unreadable = |cause| unreadable(&path, cause);
    // Opening a pipe would wait for its writer.
    if !fs::metadata(&path).map_err(unreadable)?.is_file() {
        return Err(SecretProblem::NotAFile(path));
    }
    let file = File::open(&path).map_err(unreadable)?;
    check_readers(&path, &file.metadata().map_err(unreadable)?, rules)?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > SECRET_BYTES_MAX {
        return Err(SecretProblem::TooLarge(path));
    }
    match std::str::from_utf8(&bytes).map(str::trim_end) {
        Ok("") => Err(SecretProblem::Empty(path)),
        Ok(secret) if !secret.chars().any(char::is_control) => Ok(SecretString::from(secret)),
        _ => Err(SecretProblem::NotOneLine(path)),
    }
}

fn unreadable(path: &Path, cause: io::Error) -> SecretProblem {
    let quoted = shell_quoted(path);
    let mend = match cause.kind() {
        io::ErrorKind::NotFound => "; write the secret into a file of that name, mode 600".to_owned(),
        io::ErrorKind::PermissionDenied => format!("; run: chown {} {quoted} && chmod 600 {quoted}", own_user()),
        _ => String::new(),
    };
    SecretProblem::Unreadable { file: path.to_owned(), cause, mend }
}

/// A group other than the queue's may read: that is how a root-owned file is given to the daemon's own account.
fn check_readers(path: &Path, meta: &Metadata, rules: &SecretRules) -> Result<(), SecretProblem> {
    let mode = meta.mode() & 0o7777;
    let readers = if mode & READABLE_BY_OTHERS != 0 {
        "everybody"
    } else if mode & READABLE_BY_GROUP != 0
        && rules.queue_groups.contains(&meta.gid())
        && !rules.is_systemd_credential(path, meta)
    {
        "the queue's group, to which producers belong"
    } else {
        return Ok(());
    };
    let mend = mend_command(path, meta.uid(), own_user());
    Err(SecretProblem::Open { file: path.to_owned(), readers, mode, mend })
}

/// Mode 600 serves the owner only, so a file that is another's must change hands too.
fn mend_command(path: &Path, owner: u32, user: u32) -> String {
    let path = shell_quoted(path);
    if owner == user || user == 0 {
        format!("chmod 600 {path}")
    } else {
        format!("chown {user} {path} && chmod 600 {path}")
    }
}

fn shell_quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+' | '@');
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// The user that this process runs as; Linux shows it as the owner of the process's own entry.
fn own_user() -> u32 {
    fs::metadata("/proc/self").map_or(0, |meta| meta.uid())
}

/// Which files the secrets were read from, as they were: unequal once one is replaced, changed or opened up.
///
/// Take it before [`LoadedSecrets::load`], so that a change in between is noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretStamp(Vec<(PathBuf, Option<FileStamp>)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// Also moves with the mode and the owner.
    changed: (i64, i64),
}

impl SecretStamp {
    /// Looks at the files that `auth` names, without opening them. A missing file is part of the picture.
    pub fn take(auth: &AuthSettings, rules: &SecretRules) -> Self {
        let credentials = rules.credentials_directory.as_deref();
        let stamps = files(auth).into_iter().map(|value| {
            let path = resolve(value, credentials).unwrap_or_else(|_| value.to_owned());
            let stamp = fs::metadata(&path).ok().map(|meta| FileStamp::of(&meta));
            (path, stamp)
        });
        Self(stamps.collect())
    }
}

impl FileStamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

fn files(auth: &AuthSettings) -> Vec<&Path> {
    match auth {
        AuthSettings::AkSk { access_key_file, secret_key_file, security_token_file } => {
            [Some(access_key_file), Some(secret_key_file), security_token_file.as_ref()]
                .into_iter()
                .flatten()
                .map(PathBuf::as_path)
                .collect()
        }
        AuthSettings::Token { password_file, .. } => vec![password_file],
    }
}
