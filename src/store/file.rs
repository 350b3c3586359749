//! The queue's file and lock file: who creates them, with which mode, and who runs on them. Opens no database.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::model::UtcMillis;

/// Creates the file with mode 0660 before SQLite opens it, if it is missing. SQLite itself would create 0640 under a 0007
/// umask, and give the same mode to `-wal` and `-shm`.
pub(super) fn create(path: &Path) -> Result<(), StoreError> {
    let unusable = |source| StoreError::Unusable { path: path.to_owned(), source };
    match OpenOptions::new().write(true).create_new(true).mode(0o660).open(path) {
        // The umask took bits away; this gives them back.
        Ok(file) => file.set_permissions(Permissions::from_mode(0o660)).map_err(unusable),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(unusable(error)),
    }
}

/// Device and inode, by path: opening the file by hand would drop SQLite's locks.
pub(super) fn identity(path: &Path) -> Result<(u64, u64), StoreError> {
    let meta = std::fs::metadata(path).map_err(|source| StoreError::Unusable { path: path.to_owned(), source })?;
    Ok((meta.dev(), meta.ino()))
}

/// Held for as long as a daemon runs on a queue.
#[derive(Debug)]
pub struct QueueLock {
    file: File,
}

/// What a running daemon says of itself in its lock file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonInfo {
    /// Its process id.
    pub pid: u32,
    /// When it took the lock.
    pub since: UtcMillis,
}

impl QueueLock {
    /// Takes the lock of the queue at `path`: an advisory lock on a file of its own, `PATH.lock`, gone with the process.
    ///
    /// # Errors
    /// `DaemonRuns` if another process has it.
    pub fn take(path: &Path, now: UtcMillis) -> Result<Self, StoreError> {
        let lock_path = lock_path(path);
        let unusable = |source| StoreError::Unusable { path: lock_path.clone(), source };
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(&lock_path)
            .map_err(unusable)?;
        // The umask may have taken bits away: producers ask this file whether a daemon runs. Not ours to change: no matter.
        let _ = file.set_permissions(Permissions::from_mode(0o640));
        // A `status` command holds a shared lock for an instant; a daemon holds its own for good.
        for _ in 0..20 {
            match file.try_lock() {
                Ok(()) => return Self::sign(file, now).map_err(unusable),
                Err(TryLockError::WouldBlock) => std::thread::sleep(std::time::Duration::from_millis(10)),
                Err(TryLockError::Error(error)) => return Err(unusable(error)),
            }
        }
        let mut content = String::new();
        let info =
            file.read_to_string(&mut content).ok().and_then(|_| serde_json::from_str::<DaemonInfo>(&content).ok());
        let pid = info.map_or_else(|| "unknown".to_owned(), |info| info.pid.to_string());
        Err(StoreError::DaemonRuns { path: path.to_owned(), pid })
    }

    fn sign(mut file: File, now: UtcMillis) -> std::io::Result<Self> {
        let info = DaemonInfo { pid: std::process::id(), since: now };
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(serde_json::to_string(&info)?.as_bytes())?;
        Ok(Self { file })
    }
}

impl Drop for QueueLock {
    fn drop(&mut self) {
        // The lock goes with the file handle; an empty file says that nobody runs.
        let _ = self.file.set_len(0);
    }
}

/// The daemon that runs on the queue at `path`, if one does.
pub fn daemon_info(path: &Path) -> Option<DaemonInfo> {
    let mut file = File::open(lock_path(path)).ok()?;
    match file.try_lock_shared() {
        Ok(()) | Err(TryLockError::Error(_)) => None,
        Err(TryLockError::WouldBlock) => {
            let mut content = String::new();
            file.read_to_string(&mut content).ok()?;
            serde_json::from_str(&content).ok()
        }
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_and_the_first_can_be_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("queue.db");
        assert_eq!(daemon_info(&path), None);
        let lock = QueueLock::take(&path, UtcMillis(5)).expect("the first daemon");
        let second = QueueLock::take(&path, UtcMillis(6));
        assert!(matches!(second, Err(StoreError::DaemonRuns { pid, .. }) if pid == std::process::id().to_string()));
        assert_eq!(daemon_info(&path).map(|info| info.since), Some(UtcMillis(5)));
        drop(lock);
        assert_eq!(daemon_info(&path), None);
        QueueLock::take(&path, UtcMillis(7)).expect("after the first has gone");
    }

    #[test]
    fn producers_may_see_who_runs_and_not_say_so() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("queue.db");
        std::fs::write(lock_path(&path), "").expect("written");
        std::fs::set_permissions(lock_path(&path), Permissions::from_mode(0o600)).expect("mode set");
        let _lock = QueueLock::take(&path, UtcMillis(5)).expect("taken");
        let mode = std::fs::metadata(lock_path(&path)).expect("exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }

    #[test]
    fn the_file_is_writable_for_its_group_whatever_the_umask() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("queue.db");
        create(&path).expect("created");
        let mode = std::fs::metadata(&path).expect("exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        create(&path).expect("an existing file is left as it is");
    }
}
