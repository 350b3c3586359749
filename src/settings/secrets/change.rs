//! Whether the secret files of a target have changed since they were read: by their metadata, and
//! by digests of their content. Keeps no secret.

use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use secrecy::zeroize::Zeroizing;

use super::{SECRET_BYTES_MAX, SecretRules, listen, paths};
use crate::settings::secret_digest::salted_digest;
use crate::settings::{ListenSettings, TargetSettings};

/// The metadata of the files that the secrets were read from: unequal once a file is replaced,
/// changed, or made readable to others.
///
/// Take it before [`LoadedSecrets::load`](super::LoadedSecrets::load), so that a change in between is noticed.
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

    /// Looks at the files that `[listen]` names: tokens, certificate and key.
    pub fn take_of_listen(settings: &ListenSettings, rules: &SecretRules) -> Self {
        Self::of(listen::paths(settings, rules))
    }

    pub(super) fn of(paths: Vec<PathBuf>) -> Self {
        let mut stamps = Vec::with_capacity(paths.len());
        for path in paths {
            let stamp = fs::metadata(&path).ok().map(|meta| FileStamp::of(&meta));
            stamps.push((path, stamp));
        }
        Self(stamps)
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
    /// Take it before [`LoadedSecrets::load`](super::LoadedSecrets::load), so that a change in between is noticed.
    pub fn take(target: &TargetSettings, rules: &SecretRules) -> Self {
        Self::of(paths(
            &target.auth,
            target.proxy_password_file.as_deref(),
            rules,
        ))
    }

    pub(super) fn of(paths: Vec<PathBuf>) -> Self {
        let mut digests = Vec::with_capacity(paths.len());
        for path in paths {
            let digest = digest_of(&path);
            digests.push((path, digest));
        }
        Self(digests)
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
