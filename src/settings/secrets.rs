//! The files with keys and passwords: where they are, who may read them, and their content, which
//! is never printed. Knows nothing of how a secret is used.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;

use super::digest::salted_digest;
use super::{AuthSettings, TargetSettings};
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
        let group = |path: &Path| fs::metadata(path).ok().map(|meta| meta.gid());
        let queue_groups = [Some(database), database.parent()]
            .into_iter()
            .flatten()
            .filter_map(group)
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
    #[error("{file} cannot be read ({cause}){mend}", file = file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        cause: io::Error,
        /// How to fix it, after a semicolon.
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

/// What a file should contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SecretKind {
    /// An access key or a secret key.
    Key,
    /// The security token of temporary keys.
    Token,
    /// Chosen by a person, so nearly every character is possible.
    Password,
}

impl SecretKind {
    /// The kind of secret that a key of the config names; `key` without its tables.
    fn of(key: &str) -> Self {
        match key {
            "access_key_file" | "secret_key_file" => Self::Key,
            "security_token_file" => Self::Token,
            _ => Self::Password,
        }
    }
}

/// Checks the same open file that it then reads, even if the path is replaced in the meantime.
fn read_file(
    path: PathBuf,
    kind: SecretKind,
    rules: &SecretRules,
) -> Result<SecretString, SecretProblem> {
    let unreadable = |cause| unreadable(&path, cause);
    // Opening a pipe would wait for its writer.
    if !fs::metadata(&path).map_err(unreadable)?.is_file() {
        return Err(SecretProblem::NotAFile(path));
    }
    let file = File::open(&path).map_err(unreadable)?;
    check_readers(&path, &file.metadata().map_err(unreadable)?, rules)?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(SECRET_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > SECRET_BYTES_MAX {
        return Err(SecretProblem::TooLarge(path));
    }
    match judge(&bytes, kind) {
        Ok("") if rules.is_credential(&path) => Err(SecretProblem::EmptyCredential(path)),
        Ok("") => Err(SecretProblem::Empty(path)),
        Ok(secret) => Ok(SecretString::from(secret)),
        Err(flaw) => Err(SecretProblem::Malformed { file: path, flaw }),
    }
}

const NOT_ONE_LINE: &str = "is not one line of text; write only the secret into it";
const BYTE_ORDER_MARK: &str = "begins with a byte order mark, which some editors add; save it as plain UTF-8 or ASCII without one";
const QUOTED: &str = "has quotes around the secret; write it without them";
const ASSIGNMENT: &str = "contains NAME=value; write only the value into it";
const JSON: &str = "contains JSON; write only the value of the key into it";
const BLANKS: &str =
    "has blanks in or around the secret, which no key has; write only the secret into it";
const NOT_ASCII: &str = "contains a character that is not ASCII, which no key has; it may be invisible; write or copy the secret again";
const ODD_CHARACTER: &str = "contains punctuation that no key has; write only the secret into it";

/// The secret in the bytes of a file, or what is wrong with them; empty if there is nothing but
/// white space.
fn judge(bytes: &[u8], kind: SecretKind) -> Result<&str, &'static str> {
    if bytes.starts_with(b"\xef\xbb\xbf")
        || bytes.starts_with(b"\xff\xfe")
        || bytes.starts_with(b"\xfe\xff")
    {
        return Err(BYTE_ORDER_MARK);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| NOT_ONE_LINE)?;
    if text.trim().is_empty() {
        return Ok("");
    }
    let line = without_line_end(text);
    match kind {
        SecretKind::Password if line.chars().any(char::is_control) => Err(NOT_ONE_LINE),
        SecretKind::Password => Ok(line),
        SecretKind::Token => judge_token(line),
        SecretKind::Key => judge_key(line),
    }
}

/// Without line ends at the end: editors add one or several, and they are invisible.
fn without_line_end(text: &str) -> &str {
    let mut text = text;
    while let Some(shorter) = text
        .strip_suffix("\r\n")
        .or_else(|| text.strip_suffix('\n'))
    {
        text = shorter;
    }
    text
}

/// A token is long and its alphabet is not documented, but it travels in an HTTP header.
fn judge_token(line: &str) -> Result<&str, &'static str> {
    if line.starts_with(['{', '[']) {
        return Err(JSON);
    }
    if line.chars().any(|c| c.is_control() && c != '\t') {
        return Err(NOT_ONE_LINE);
    }
    if !line.is_ascii() {
        return Err(NOT_ASCII);
    }
    if is_assignment(line) {
        return Err(ASSIGNMENT);
    }
    if line.contains('\t') || line.trim() != line {
        return Err(BLANKS);
    }
    if is_quoted(line) {
        return Err(QUOTED);
    }
    Ok(line)
}

fn judge_key(line: &str) -> Result<&str, &'static str> {
    let token = judge_token(line)?;
    if token.contains(' ') {
        return Err(BLANKS);
    }
    if token.contains([
        '"', '\'', '`', '{', '}', '[', ']', '(', ')', '<', '>', ',', ';', '\\', '$',
    ]) {
        return Err(ODD_CHARACTER);
    }
    Ok(token)
}

/// Such as `HW_ACCESS_KEY=AK…`, also with `export` before it or blanks around the sign. The `=` at
/// the end of a base64 text is not an assignment.
fn is_assignment(line: &str) -> bool {
    let line = line.trim_start();
    if line.starts_with("export ") || line.starts_with("set ") {
        return true;
    }
    let Some((name, value)) = line.split_once('=') else {
        return false;
    };
    let name = name.trim_end();
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_name && !value.trim_matches('=').is_empty()
}

fn is_quoted(line: &str) -> bool {
    const QUOTES: [char; 3] = ['"', '\'', '`'];
    line.starts_with(QUOTES) || line.ends_with(QUOTES)
}

fn unreadable(path: &Path, cause: io::Error) -> SecretProblem {
    let quoted = shell_quoted(path);
    let mend = match cause.kind() {
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
        mend,
    }
}

fn check_readers(path: &Path, meta: &Metadata, rules: &SecretRules) -> Result<(), SecretProblem> {
    let mode = meta.mode() & 0o7777;
    let group_counts =
        rules.queue_groups.contains(&meta.gid()) && !rules.is_systemd_credential(path, meta.uid());
    let Some(readers) = foreign_readers(mode, group_counts) else {
        return Ok(());
    };
    let mend = mend_command(path, meta.uid(), own_user());
    Err(SecretProblem::Open {
        file: path.to_owned(),
        readers,
        mode,
        mend,
    })
}

/// Who else may read a file of this mode. `group_counts` if its group is the queue's; any other
/// group may read, because that is how a root-owned file is shared with the daemon's own account.
fn foreign_readers(mode: u32, group_counts: bool) -> Option<&'static str> {
    if mode & READABLE_BY_OTHERS != 0 {
        Some("everybody")
    } else if mode & READABLE_BY_GROUP != 0 && group_counts {
        Some("the queue's group, to which producers belong")
    } else {
        None
    }
}

/// With mode 600 only the owner can read the file, so a file of another user needs a new owner,
/// too.
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
    let plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+' | '@');
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// The user that this process runs as; Linux shows it as the owner of the process's own entry.
fn own_user() -> u32 {
    fs::metadata("/proc/self").map_or(0, |meta| meta.uid())
}

/// The metadata of the files that the secrets were read from: unequal once a file is replaced,
/// changed, or made readable to others.
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
    /// Also changes with the mode and the owner.
    changed: (i64, i64),
}

impl SecretStamp {
    /// Looks at the secret files of `target`, without opening them. A missing file is noted as
    /// missing.
    pub fn take(target: &TargetSettings, rules: &SecretRules) -> Self {
        Self::of(paths(
            &target.auth,
            target.proxy_password_file.as_deref(),
            rules,
        ))
    }

    fn of(paths: Vec<PathBuf>) -> Self {
        let stamp = |path: PathBuf| {
            (
                path.clone(),
                fs::metadata(&path).ok().map(|meta| FileStamp::of(&meta)),
            )
        };
        Self(paths.into_iter().map(stamp).collect())
    }

    /// When the newest of the files was written; none if none is there.
    pub fn modified(&self) -> Option<SystemTime> {
        let newest = self
            .0
            .iter()
            .filter_map(|(_, stamp)| stamp.map(|stamp| stamp.modified.0))
            .max()?;
        Some(UNIX_EPOCH + Duration::from_secs(u64::try_from(newest).unwrap_or(0)))
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

/// The content of the secret files as salted digests: equal for the same bytes, however often they
/// are rewritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretContent(Vec<(PathBuf, Option<[u8; 32]>)>);

impl SecretContent {
    /// Reads the secret files of `target`. One that cannot be read is noted as that.
    ///
    /// Take it before [`LoadedSecrets::load`], so that a change in between is noticed.
    pub fn take(target: &TargetSettings, rules: &SecretRules) -> Self {
        Self::of(paths(
            &target.auth,
            target.proxy_password_file.as_deref(),
            rules,
        ))
    }

    fn of(paths: Vec<PathBuf>) -> Self {
        let digest = |path: PathBuf| (path.clone(), digest_of(&path));
        Self(paths.into_iter().map(digest).collect())
    }
}

fn digest_of(path: &Path) -> Option<[u8; 32]> {
    // Opening a pipe would wait for its writer.
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut bytes = Zeroizing::new(Vec::new());
    File::open(path)
        .ok()?
        .take(SECRET_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(salted_digest(&bytes))
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
    fn what_no_key_can_be_is_refused_and_a_line_end_is_cut() {
        let cases: [(&[u8], &str); 20] = [
            (b"\xef\xbb\xbfAKID\r\n", BYTE_ORDER_MARK),
            (b"\xff\xfeA\0K\0", BYTE_ORDER_MARK),
            (b"\"AKID\"\n", QUOTED),
            (b"'AKID'", QUOTED),
            (b"AKID\"", QUOTED),
            (b"HW_ACCESS_KEY=AKID\n", ASSIGNMENT),
            (b"export HW_ACCESS_KEY=AKID\n", ASSIGNMENT),
            (b"access_key = \"AKID\"\n", ASSIGNMENT),
            (b" AKID\n", BLANKS),
            (b"AKID \n", BLANKS),
            (b"AK ID", BLANKS),
            (b"\tAKID", BLANKS),
            ("AK\u{200b}ID".as_bytes(), NOT_ASCII),
            ("AKID\u{a0}\n".as_bytes(), NOT_ASCII),
            ("\u{201c}AKID\u{201d}".as_bytes(), NOT_ASCII),
            (b"AKID\nSECRET\n", NOT_ONE_LINE),
            (b"AK\xffID", NOT_ONE_LINE),
            (b"{\"access\": \"AKID\"}", JSON),
            (b"user,AKID,SECRET", ODD_CHARACTER),
            (b"<your-key>", ODD_CHARACTER),
        ];
        for (content, flaw) in cases {
            assert_eq!(
                judge(content, SecretKind::Key),
                Err(flaw),
                "{}",
                String::from_utf8_lossy(content)
            );
        }
        for content in ["AKID", "AKID\n", "AKID\r\n", "AKID\n\n"] {
            assert_eq!(judge(content.as_bytes(), SecretKind::Key), Ok("AKID"));
        }
        assert_eq!(judge(b"a+b/c_d-e==\n", SecretKind::Key), Ok("a+b/c_d-e=="));
        assert_eq!(
            judge(b"QUJD==\n", SecretKind::Key),
            Ok("QUJD=="),
            "the end of a base64 text is no assignment"
        );
        assert_eq!(judge(b" \r\n", SecretKind::Key), Ok(""));
    }

    #[test]
    fn a_security_token_is_one_line_of_printable_ascii() {
        let token = "gQpjbi1ub3J0aC00(x);{}y+/==";
        assert_eq!(
            judge(format!("{token}\n").as_bytes(), SecretKind::Token),
            Ok(token)
        );
        for (content, flaw) in [
            ("gQpj\u{200b}bi", NOT_ASCII),
            ("gQpj\nbi", NOT_ONE_LINE),
            ("TOKEN=gQpj", ASSIGNMENT),
            ("\"gQpj\"", QUOTED),
            ("gQpj ", BLANKS),
        ] {
            assert_eq!(judge(content.as_bytes(), SecretKind::Token), Err(flaw));
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
        assert_eq!(foreign_readers(0o644, false), Some("everybody"));
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
    fn a_file_of_another_owner_must_change_hands() {
        assert_eq!(
            mend_command(Path::new("/s"), 0, 990),
            "chown 990 /s && chmod 600 /s"
        );
        assert_eq!(mend_command(Path::new("/s"), 990, 0), "chmod 600 /s");
        assert_eq!(
            mend_command(Path::new("/a b'c"), 7, 7),
            r"chmod 600 '/a b'\''c'"
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
