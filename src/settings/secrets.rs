//! The files with keys and passwords: finds and reads them, and reports every problem. Never prints
//! what they contain, and knows nothing of how a secret is used.
//!
//! `readers` checks who else may read a file, `content` what is in it, `change` whether it has
//! changed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;

use super::{AuthSettings, TargetSettings};
use crate::model::TargetName;

mod change;
mod content;
mod listen;
mod readers;

pub use change::{SecretContent, SecretStamp};
use content::{SecretKind, judge};
pub use listen::{ListenSecrets, TlsPem};
use readers::{check_readers, own_user, shell_quoted};

/// More than any key, token or password.
const SECRET_BYTES_MAX: u64 = 64 * 1024;
/// Set by systemd for a unit with `LoadCredential=`.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// The secrets of one target, mirroring [`AuthSettings`]. `Debug` shows none of them.
#[derive(Debug, Clone)]
pub enum LoadedSecrets {
    /// For signing.
    AkSk {
        /// The access key (AK): not secret, but kept like a secret.
        access_key: SecretString,
        /// The secret key (SK).
        secret_key: SecretString,
        /// The security token of temporary keys.
        security_token: Option<SecretString>,
    },
    /// For obtaining a token.
    Token {
        /// The IAM user's password.
        password: SecretString,
    },
}

impl LoadedSecrets {
    /// Reads the files that `auth` names, after checking who else may read them.
    ///
    /// # Errors
    /// The first file that is missing, open to others or to the queue's group, empty, too large, or
    /// not one line.
    pub fn load(
        target: &TargetName,
        auth: &AuthSettings,
        rules: &SecretRules,
    ) -> Result<Self, SecretError> {
        let read = |key: &'static str, file: &Path| read_secret(target, key, file, rules);
        match auth {
            AuthSettings::AkSk {
                access_key_file,
                secret_key_file,
                security_token_file,
            } => Ok(Self::AkSk {
                access_key: read("access_key_file", access_key_file)?,
                secret_key: read("secret_key_file", secret_key_file)?,
                security_token: security_token_file
                    .as_deref()
                    .map(|file| read("security_token_file", file))
                    .transpose()?,
            }),
            AuthSettings::Token { password_file, .. } => Ok(Self::Token {
                password: read("password_file", password_file)?,
            }),
        }
    }

    /// Every problem that the files of `auth` have; none if [`LoadedSecrets::load`] would succeed.
    pub fn problems(
        target: &TargetName,
        auth: &AuthSettings,
        rules: &SecretRules,
    ) -> Vec<SecretError> {
        files(auth)
            .into_iter()
            .filter_map(|(key, file)| read_secret(target, key, file, rules).err())
            .collect()
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
    /// The rules for this queue and what `$CREDENTIALS_DIRECTORY` holds. A queue that does not
    /// exist yet has no group.
    ///
    /// Only looks at the database by its path, since opening it would drop SQLite's locks.
    pub fn new(database: &Path, credentials_directory: Option<&OsStr>) -> Self {
        let credentials_directory = credentials_directory
            .filter(|path| !path.is_empty())
            .map(PathBuf::from);
        let paths = [Some(database), database.parent()].into_iter().flatten();
        let queue_groups = paths
            .filter_map(|path| fs::metadata(path).ok())
            .map(|meta| meta.gid())
            .collect();
        Self {
            credentials_directory,
            queue_groups,
        }
    }

    /// [`SecretRules::new`] with this process's own environment.
    pub fn from_env(database: &Path) -> Self {
        Self::new(database, std::env::var_os(CREDENTIALS_DIRECTORY).as_deref())
    }

    /// Root-owned files in systemd's directory have a group bit that comes from the service's own
    /// access list.
    fn is_systemd_credential(&self, path: &Path, owner: u32) -> bool {
        owner == 0 && self.is_credential(path)
    }

    fn is_credential(&self, path: &Path) -> bool {
        self.credentials_directory
            .as_deref()
            .is_some_and(|directory| path.starts_with(directory))
    }
}

/// `$CREDENTIALS_DIRECTORY`, if it is set and not empty.
pub(super) fn credentials_directory() -> Option<PathBuf> {
    std::env::var_os(CREDENTIALS_DIRECTORY)
        .filter(|directory| !directory.is_empty())
        .map(PathBuf::from)
}

/// The path of a `*_file` value: an absolute path as it is, a name in the credentials directory.
pub(super) fn resolve(value: &Path, credentials: Option<&Path>) -> Result<PathBuf, String> {
    match credentials {
        _ if value.is_absolute() => Ok(value.to_owned()),
        Some(directory) => Ok(directory.join(value)),
        None => Err(
            "is the name of a systemd credential, but $CREDENTIALS_DIRECTORY is not set; write \
             an absolute path, or start poweryard with its systemd unit"
                .to_owned(),
        ),
    }
}

/// Why a secret could not be used; names the key, the file, and the command that fixes it if there
/// is one.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct SecretError {
    /// The key with its tables, such as `targets.default.auth.secret_key_file`.
    pub key: String,
    /// What is wrong with its file; part of the message.
    pub problem: SecretProblem,
}

/// What is wrong with a secret's file.
#[derive(Debug, thiserror::Error)]
pub enum SecretProblem {
    /// A name, and no credentials directory to look it up in.
    #[error("{0}")]
    NoCredentials(String),
    /// Missing, or this process may not read it.
    #[error("{file} cannot be read ({cause}){fix}", file = file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        cause: io::Error,
        /// How to fix it, after a semicolon.
        fix: String,
    },
    /// A directory, a pipe or a device.
    #[error("{} is not a regular file; name the file that holds the secret", .0.display())]
    NotAFile(PathBuf),
    /// Somebody else may read it.
    #[error("{file} can be read by {readers} (mode {mode:04o}); run: {fix}", file = file.display())]
    Open {
        /// The file.
        file: PathBuf,
        /// Who.
        readers: &'static str,
        /// Its permission bits.
        mode: u32,
        /// The command that closes it.
        fix: String,
    },
    /// Something that cannot be a key, token or password: quotes around it, the name of a variable
    /// before it, two lines and the like.
    #[error("{} {flaw}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong with its content, and what to do.
        flaw: &'static str,
    },
    /// Nothing but white space.
    #[error("{} is empty; write the secret into it", .0.display())]
    Empty(PathBuf),
    /// As `Empty`, but a systemd credential: for a missing file systemd also provides an empty one.
    #[error("{} is empty; write the secret into the file that the unit's LoadCredential= names, then restart the unit", .0.display())]
    EmptyCredential(PathBuf),
    /// More than 64 KiB.
    #[error("{} is larger than 64 KiB, which no secret is; name the right file", .0.display())]
    TooLarge(PathBuf),
}

fn read_secret(
    target: &TargetName,
    key: &str,
    value: &Path,
    rules: &SecretRules,
) -> Result<SecretString, SecretError> {
    resolve(value, rules.credentials_directory.as_deref())
        .map_err(SecretProblem::NoCredentials)
        .and_then(|file| read_file(file, SecretKind::of(key), rules))
        .map_err(|problem| SecretError {
            key: format!("targets.{target}.auth.{key}"),
            problem,
        })
}

fn read_file(
    path: PathBuf,
    kind: SecretKind,
    rules: &SecretRules,
) -> Result<SecretString, SecretProblem> {
    let bytes = read_bytes(&path, rules)?;
    match judge(&bytes, kind) {
        Ok("") if rules.is_credential(&path) => Err(SecretProblem::EmptyCredential(path)),
        Ok("") => Err(SecretProblem::Empty(path)),
        Ok(secret) => Ok(SecretString::from(secret)),
        Err(flaw) => Err(SecretProblem::Malformed { file: path, flaw }),
    }
}

/// Checks the same open file that it then reads, even if the path is replaced in the meantime.
fn read_bytes(path: &Path, rules: &SecretRules) -> Result<Zeroizing<Vec<u8>>, SecretProblem> {
    let unreadable = |cause| unreadable(path, cause);
    // Opening a pipe would wait for its writer.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(SecretProblem::NotAFile(path.to_owned()));
    }
    let file = File::open(path).map_err(unreadable)?;
    check_readers(path, &file.metadata().map_err(unreadable)?, rules)?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(SECRET_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > SECRET_BYTES_MAX {
        return Err(SecretProblem::TooLarge(path.to_owned()));
    }
    Ok(bytes)
}

fn unreadable(path: &Path, cause: io::Error) -> SecretProblem {
    let quoted = shell_quoted(path);
    let fix = match cause.kind() {
        io::ErrorKind::NotFound => {
            "; write the secret into a file of that name, mode 600".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            format!("; run: chown {} {quoted} && chmod 600 {quoted}", own_user())
        }
        _ => String::new(),
    };
    SecretProblem::Unreadable {
        file: path.to_owned(),
        cause,
        fix,
    }
}

/// The keys of `auth` that name secret files, each with its value.
fn files(auth: &AuthSettings) -> Vec<(&'static str, &Path)> {
    match auth {
        AuthSettings::AkSk {
            access_key_file,
            secret_key_file,
            security_token_file,
        } => {
            let mut files = vec![
                ("access_key_file", access_key_file.as_path()),
                ("secret_key_file", secret_key_file),
            ];
            files.extend(
                security_token_file
                    .as_deref()
                    .map(|file| ("security_token_file", file)),
            );
            files
        }
        AuthSettings::Token { password_file, .. } => vec![("password_file", password_file)],
    }
}

/// Where the secret files of a target are.
fn paths(
    auth: &AuthSettings,
    proxy_password_file: Option<&Path>,
    rules: &SecretRules,
) -> Vec<PathBuf> {
    let values = files(auth)
        .into_iter()
        .map(|(_, value)| value)
        .chain(proxy_password_file);
    let credentials = rules.credentials_directory.as_deref();
    values
        .map(|value| resolve(value, credentials).unwrap_or_else(|_| value.to_owned()))
        .collect()
}

/// The password of the user that `proxy` names; none if the target has no `proxy_password_file`.
///
/// # Errors
/// As [`LoadedSecrets::load`].
pub fn load_proxy_password(
    target: &TargetSettings,
    rules: &SecretRules,
) -> Result<Option<SecretString>, SecretError> {
    let Some(value) = &target.proxy_password_file else {
        return Ok(None);
    };
    let password = resolve(value, rules.credentials_directory.as_deref())
        .map_err(SecretProblem::NoCredentials)
        .and_then(|file| read_file(file, SecretKind::Password, rules));
    password.map(Some).map_err(|problem| SecretError {
        key: format!("targets.{}.proxy_password_file", target.name),
        problem,
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may fail by a panic")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use secrecy::ExposeSecret;
    use tempfile::TempDir;

    use super::*;

    /// A folder with a queue and a secret in it; the secret's group is the queue's.
    struct Folder {
        dir: TempDir,
        rules: SecretRules,
    }

    impl Folder {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("queue.db"), "").unwrap();
            let rules = SecretRules::new(&dir.path().join("queue.db"), None);
            Self { dir, rules }
        }

        fn file(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
            let path = self.dir.path().join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            path
        }

        fn load(&self, password_file: impl Into<PathBuf>) -> Result<LoadedSecrets, String> {
            let target = TargetName("default".into());
            LoadedSecrets::load(&target, &token(password_file.into()), &self.rules)
                .map_err(|error| error.to_string())
        }

        fn password(&self, content: impl AsRef<[u8]>) -> Result<String, String> {
            match self.load(self.file("password", content, 0o600))? {
                LoadedSecrets::Token { password } => Ok(password.expose_secret().to_owned()),
                LoadedSecrets::AkSk { .. } => panic!("not the kind asked for"),
            }
        }
    }

    fn token(password_file: PathBuf) -> AuthSettings {
        let iam_endpoint = "https://iam.example.com".parse().unwrap();
        AuthSettings::Token {
            iam_endpoint,
            domain: "d".into(),
            username: "u".into(),
            password_file,
        }
    }

    fn content_of(password_file: PathBuf, rules: &SecretRules) -> SecretContent {
        SecretContent::of(paths(&token(password_file), None, rules))
    }

    #[test]
    fn of_a_password_only_the_line_end_is_cut() {
        let folder = Folder::new();
        assert_eq!(folder.password("hunter2").unwrap(), "hunter2");
        assert_eq!(folder.password("a b\r\n").unwrap(), "a b");
        assert_eq!(folder.password(" hunter2 \n\n").unwrap(), " hunter2 ");
        for usual in ["NAME=value", "\"hunter2\"", "{\"a\": 1}", "p\u{e4}ssword"] {
            assert_eq!(folder.password(usual).unwrap(), usual);
        }
        assert_eq!(
            folder.password("x".repeat(64 * 1024)).unwrap().len(),
            64 * 1024
        );
    }

    #[test]
    fn contents_that_cannot_be_a_secret_are_refused_without_showing_them() {
        let folder = Folder::new();
        let path = folder.dir.path().join("password").display().to_string();
        let key = "targets.default.auth.password_file";
        let cases: [(&[u8], &str); 5] = [
            (b" \n", "is empty; write the secret into it"),
            (
                &[b'x'; 64 * 1024 + 1],
                "is larger than 64 KiB, which no secret is; name the right file",
            ),
            (
                b"hunter2\nhunter3\n",
                "is not one line of text; write only the secret into it",
            ),
            (
                b"hunter\x002",
                "is not one line of text; write only the secret into it",
            ),
            (
                b"h\xff\xfe",
                "is not one line of text; write only the secret into it",
            ),
        ];
        for (content, expected) in cases {
            assert_eq!(
                folder.password(content).unwrap_err(),
                format!("{key}: {path} {expected}")
            );
        }
    }

    #[test]
    fn the_same_bytes_written_anew_are_the_same_content() {
        let folder = Folder::new();
        let path = folder.file("password", "one", 0o600);
        let first = content_of(path.clone(), &folder.rules);
        let other = folder.file("next", "one", 0o600);
        fs::rename(other, &path).unwrap();
        assert_eq!(content_of(path.clone(), &folder.rules), first);
        fs::write(&path, "two").unwrap();
        assert_ne!(content_of(path.clone(), &folder.rules), first);
        fs::remove_file(&path).unwrap();
        assert_ne!(content_of(path, &folder.rules), first);
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused_with_the_command_to_fix_it() {
        let folder = Folder::new();
        for (mode, readers) in [
            (0o644, "everybody"),
            (0o604, "everybody"),
            (0o640, "the queue's group, to which producers belong"),
            (0o440, "the queue's group, to which producers belong"),
        ] {
            let path = folder.file(&format!("secret{mode:o}"), "hunter2", mode);
            assert_eq!(
                folder.load(&path).unwrap_err(),
                format!(
                    "targets.default.auth.password_file: {path} can be read by {readers} (mode {mode:04o}); \
                     run: chmod 600 {path}",
                    path = path.display()
                )
            );
        }
        for mode in [0o600, 0o400] {
            assert!(
                folder
                    .load(folder.file(&format!("fine{mode:o}"), "hunter2", mode))
                    .is_ok()
            );
        }
    }

    #[test]
    fn a_check_finds_every_bad_file() {
        let folder = Folder::new();
        let auth = AuthSettings::AkSk {
            access_key_file: folder.file("ak", "", 0o600),
            secret_key_file: folder.file("sk", "hunter-sk", 0o644),
            security_token_file: None,
        };
        let problems = LoadedSecrets::problems(&TargetName("t".into()), &auth, &folder.rules);
        let keys: Vec<&str> = problems
            .iter()
            .map(|problem| problem.key.as_str())
            .collect();
        assert_eq!(
            keys,
            [
                "targets.t.auth.access_key_file",
                "targets.t.auth.secret_key_file"
            ]
        );
    }

    #[test]
    fn a_group_that_no_producer_is_in_may_read() {
        let mut folder = Folder::new();
        folder.rules.queue_groups = vec![u32::MAX - 1];
        assert!(
            folder
                .load(folder.file("password", "hunter2", 0o640))
                .is_ok()
        );
    }

    #[test]
    fn systemds_own_files_show_a_group_bit_that_does_not_count() {
        let directory = Some(PathBuf::from("/run/credentials/poweryard.service"));
        let rules = SecretRules {
            credentials_directory: directory,
            queue_groups: vec![0],
        };
        let inside = Path::new("/run/credentials/poweryard.service/secret_key");
        assert!(rules.is_systemd_credential(inside, 0));
        assert!(!rules.is_systemd_credential(inside, 1000));
        assert!(!rules.is_systemd_credential(Path::new("/etc/poweryard/secret_key"), 0));
    }

    #[test]
    fn a_name_is_looked_up_in_the_credentials_directory() {
        let mut folder = Folder::new();
        assert_eq!(
            folder.load("password").unwrap_err(),
            "targets.default.auth.password_file: is the name of a systemd credential, but $CREDENTIALS_DIRECTORY is not set; write an absolute path, or start poweryard with its systemd unit"
        );
        folder.rules = SecretRules::new(
            Path::new("/no/queue.db"),
            Some(folder.dir.path().as_os_str()),
        );
        folder.file("password", "hunter2", 0o400);
        assert!(folder.load("password").is_ok());
    }

    #[test]
    fn a_missing_file_and_a_directory_are_named() {
        let folder = Folder::new();
        assert_eq!(
            folder.load("/no/such").unwrap_err(),
            "targets.default.auth.password_file: /no/such cannot be read (No such file or directory (os error 2)); \
             write the secret into a file of that name, mode 600"
        );
        assert_eq!(
            folder.load("/etc").unwrap_err(),
            "targets.default.auth.password_file: /etc is not a regular file; name the file that holds the secret"
        );
    }

    #[test]
    fn both_kinds_are_loaded_and_debug_shows_neither() {
        let folder = Folder::new();
        let auth = AuthSettings::AkSk {
            access_key_file: folder.file("ak", "hunter-ak", 0o600),
            secret_key_file: folder.file("sk", "hunter-sk", 0o600),
            security_token_file: Some(folder.file("st", "hunter-st", 0o600)),
        };
        let secrets = LoadedSecrets::load(&TargetName("t".into()), &auth, &folder.rules).unwrap();
        assert!(!format!("{secrets:?}").contains("hunter"));
        assert!(LoadedSecrets::problems(&TargetName("t".into()), &auth, &folder.rules).is_empty());
        let LoadedSecrets::AkSk {
            access_key,
            secret_key,
            security_token,
        } = secrets
        else {
            panic!("wrong kind")
        };
        let texts = [&access_key, &secret_key, &security_token.unwrap()]
            .map(|secret| secret.expose_secret().to_owned());
        assert_eq!(texts, ["hunter-ak", "hunter-sk", "hunter-st"]);
    }

    #[test]
    fn a_stamp_changes_with_the_file_its_mode_and_its_absence() {
        let folder = Folder::new();
        let path = folder.file("password", "one", 0o600);
        let take = || SecretStamp::of(paths(&token(path.clone()), None, &folder.rules));
        let first = take();
        assert_eq!(first, take());
        let other = folder.file("next", "two", 0o600);
        fs::rename(other, &path).unwrap();
        let second = take();
        assert_ne!(first, second);
        fs::write(&path, "longer").unwrap();
        let third = take();
        assert_ne!(second, third);
        fs::remove_file(&path).unwrap();
        assert_ne!(third, take());
        assert_eq!(take(), take());
    }
}
