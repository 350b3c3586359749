//! The queue's file and lock: who creates them, with which mode, and who runs on them. Opens no
//! database.
//!
//! The lock is a `flock` on the queue's own inode, so that a symbolic link, a hard link or a
//! deleted file beside it make no difference. The handle that it needs is never closed while the
//! file exists: that would drop the POSIX locks which SQLite holds in this process. `PATH.lock`
//! only says who has it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::model::UtcMillis;

/// Device and inode.
pub(super) type FileId = (u64, u64);

/// Creates the file with mode 0660 before SQLite opens it, if it is missing. SQLite itself would
/// create 0640 under a 0007 umask, and give the same mode to `-wal` and `-shm`.
pub(super) fn create(path: &Path) -> Result<(), StoreError> {
    match create_new(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(StoreError::unusable(path, error))
        }
        _ => Ok(()),
    }
}

fn create_new(path: &Path) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create_new(true)
        .mode(0o660)
        .open(path)?;
    // The umask took bits away; this gives them back.
    file.set_permissions(Permissions::from_mode(0o660))
}

/// Device and inode, by path: opening the file by hand would drop SQLite's locks.
pub(in crate::store) fn id_of(path: &Path) -> Result<FileId, StoreError> {
    let meta = std::fs::metadata(path).map_err(|error| StoreError::unusable(path, error))?;
    Ok((meta.dev(), meta.ino()))
}

/// A handle on a queue that this process has opened by hand.
struct Handle {
    file: Arc<File>,
    /// A daemon of this process has the lock by it.
    locks: bool,
}

/// All of them. Each try for a lock is made while nobody else of this process makes one: they share
/// the handle.
static HANDLES: Mutex<BTreeMap<FileId, Handle>> = Mutex::new(BTreeMap::new());

fn handles() -> MutexGuard<'static, BTreeMap<FileId, Handle>> {
    HANDLES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The handle on the file at `path`, opened if there is none yet.
fn handle_of<'a>(
    handles: &'a mut BTreeMap<FileId, Handle>,
    path: &Path,
) -> std::io::Result<(FileId, &'a mut Handle)> {
    // Nothing has a file open that is gone, or it does not matter any more.
    handles.retain(|_, handle| {
        handle.locks || handle.file.metadata().is_ok_and(|meta| meta.nlink() > 0)
    });
    let meta = std::fs::metadata(path)?;
    let mut id = (meta.dev(), meta.ino());
    if !handles.contains_key(&id) {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        id = (meta.dev(), meta.ino());
        match handles.entry(id) {
            // Another file has come to this place at this moment, and is known: this handle must
            // not be closed either.
            Entry::Occupied(_) => std::mem::forget(file),
            Entry::Vacant(place) => {
                place.insert(Handle {
                    file: Arc::new(file),
                    locks: false,
                });
            }
        }
    }
    handles
        .get_mut(&id)
        .map(|handle| (id, handle))
        .ok_or_else(|| std::io::Error::other("the file was replaced just now"))
}

/// A handle on a file beside the queue, of which SQLite has one of its own: kept open as that on
/// the queue itself.
pub(super) fn kept_handle(path: &Path) -> std::io::Result<Arc<File>> {
    handle_of(&mut handles(), path).map(|(_, handle)| Arc::clone(&handle.file))
}

/// Held for as long as a daemon runs on a queue.
#[derive(Debug)]
pub struct QueueLock {
    id: FileId,
    /// Says who has the lock, if that could be written.
    note: Option<File>,
    since: UtcMillis,
}

/// What a running daemon says of itself beside its queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonInfo {
    /// Its process id.
    pub pid: u32,
    /// When it took the lock.
    pub since: UtcMillis,
    /// What it waits for before it begins, in a few words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
}

/// Whether a daemon runs on a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Running {
    /// One does; what it says of itself, if that can be read.
    Yes(Option<DaemonInfo>),
    /// None does.
    No,
    /// This user may not read the queue.
    CannotTell,
}

impl Running {
    /// True, false, or none if nobody can tell.
    pub fn known(&self) -> Option<bool> {
        match self {
            Self::Yes(_) => Some(true),
            Self::No => Some(false),
            Self::CannotTell => None,
        }
    }

    /// The process id of a daemon that runs, or `unknown`.
    pub fn pid(&self) -> String {
        self.info()
            .map_or_else(|| "unknown".to_owned(), |info| info.pid.to_string())
    }

    /// What a daemon that runs says of itself.
    pub fn info(&self) -> Option<&DaemonInfo> {
        match self {
            Self::Yes(info) => info.as_ref(),
            Self::No | Self::CannotTell => None,
        }
    }
}

impl QueueLock {
    /// Takes the lock of the queue at `path`, which is created if it is missing. It is gone with
    /// the process.
    ///
    /// # Errors
    /// `DaemonRuns` if somebody has it.
    pub fn take(path: &Path, now: UtcMillis) -> Result<Self, StoreError> {
        create(path)?;
        // A `status` command holds a shared lock for an instant; a daemon holds its own for good.
        for _ in 0..20 {
            let taken = try_to_take(path).map_err(|error| StoreError::unusable(path, error))?;
            if let Some(id) = taken {
                let mut lock = Self {
                    id,
                    note: open_note(path),
                    since: now,
                };
                lock.say(None);
                return Ok(lock);
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let pid = read_note(path).map_or_else(|| "unknown".to_owned(), |info| info.pid.to_string());
        Err(StoreError::DaemonRuns {
            path: path.to_owned(),
            pid,
        })
    }

    /// Notes beside the queue who runs on it and what it waits for. Somebody who cannot read
    /// that still sees the lock.
    pub fn say(&mut self, waits: Option<&str>) {
        let info = DaemonInfo {
            pid: std::process::id(),
            since: self.since,
            waits: waits.map(str::to_owned),
        };
        let Some(note) = &mut self.note else { return };
        let text = serde_json::to_string(&info).unwrap_or_default();
        // The lock itself is elsewhere: without the note nobody knows the process id, and that is
        // all.
        let _ = note
            .set_len(0)
            .and_then(|()| note.write_all_at(text.as_bytes(), 0))
            .and_then(|()| note.flush());
    }
}

/// Which file it was, if the lock was free.
fn try_to_take(path: &Path) -> std::io::Result<Option<FileId>> {
    let mut handles = handles();
    let (id, handle) = handle_of(&mut handles, path)?;
    if handle.locks {
        return Ok(None);
    }
    match handle.file.try_lock() {
        Ok(()) => {
            handle.locks = true;
            Ok(Some(id))
        }
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn open_note(path: &Path) -> Option<File> {
    let mut options = OpenOptions::new();
    let note = options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .open(lock_path(path))
        .ok()?;
    // The umask may have taken bits away: producers read here which daemon runs. Not ours to
    // change: no matter.
    let _ = note.set_permissions(Permissions::from_mode(0o640));
    Some(note)
}

impl Drop for QueueLock {
    fn drop(&mut self) {
        if let Some(note) = &self.note {
            // An empty note says that nobody runs.
            let _ = note.set_len(0);
        }
        if let Some(handle) = handles().get_mut(&self.id) {
            // If it fails, the lock goes with the process.
            let _ = handle.file.unlock();
            handle.locks = false;
        }
    }
}

/// The handle by which a daemon of this process has locked this file.
pub(super) fn locked_handle(id: FileId) -> Option<Arc<File>> {
    handles()
        .get(&id)
        .filter(|handle| handle.locks)
        .map(|handle| Arc::clone(&handle.file))
}

/// Whether a daemon runs on the queue at `path`. Nobody does where there is none.
pub fn daemon_on(path: &Path) -> Running {
    let mut handles = handles();
    let handle = match handle_of(&mut handles, path) {
        Ok((_, handle)) => handle,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Running::No,
        Err(_) => return Running::CannotTell,
    };
    if handle.locks {
        return Running::Yes(read_note(path));
    }
    match handle.file.try_lock_shared() {
        Ok(()) => match handle.file.unlock() {
            Ok(()) => Running::No,
            Err(_) => Running::CannotTell,
        },
        Err(TryLockError::WouldBlock) => Running::Yes(read_note(path)),
        Err(TryLockError::Error(_)) => Running::CannotTell,
    }
}

fn read_note(path: &Path) -> Option<DaemonInfo> {
    serde_json::from_str(&std::fs::read_to_string(lock_path(path)).ok()?).ok()
}

fn lock_path(path: &Path) -> PathBuf {
    beside(&real(path), ".lock")
}

/// Where the path leads to: what is beside a queue is beside the file itself, whatever link was
/// named.
pub(in crate::store) fn real(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// The folder that the file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// The path with an ending.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("queue.db");
        (dir, path)
    }

    #[test]
    fn a_second_daemon_is_refused_and_the_first_can_be_named() {
        let (_dir, path) = queue();
        assert_eq!(daemon_on(&path), Running::No);
        let lock = QueueLock::take(&path, UtcMillis(5)).expect("the first daemon");
        let second = QueueLock::take(&path, UtcMillis(6));
        assert!(
            matches!(second, Err(StoreError::DaemonRuns { pid, .. }) if pid == std::process::id().to_string())
        );
        assert_eq!(
            daemon_on(&path).info().map(|info| info.since),
            Some(UtcMillis(5))
        );
        drop(lock);
        assert_eq!(daemon_on(&path), Running::No);
        QueueLock::take(&path, UtcMillis(7)).expect("after the first has gone");
    }

    #[test]
    fn a_second_daemon_is_refused_by_whatever_name_it_finds_the_file() {
        let (dir, path) = queue();
        let _lock = QueueLock::take(&path, UtcMillis(5)).expect("the first daemon");
        let (symbolic, hard) = (dir.path().join("symbolic.db"), dir.path().join("hard.db"));
        std::os::unix::fs::symlink(&path, &symbolic).expect("linked");
        std::fs::hard_link(&path, &hard).expect("linked");
        std::fs::remove_file(lock_path(&path)).expect("the note about it is gone");
        for name in [&symbolic, &hard, &path] {
            let second = QueueLock::take(name, UtcMillis(6));
            assert!(
                matches!(second, Err(StoreError::DaemonRuns { .. })),
                "{second:?}"
            );
            assert_eq!(daemon_on(name), Running::Yes(None));
        }
    }

    #[test]
    fn a_lock_of_another_handle_counts_as_a_daemon() {
        let (_dir, path) = queue();
        create(&path).expect("created");
        let other = File::open(&path).expect("opened");
        other.try_lock().expect("nobody has it");
        assert_eq!(daemon_on(&path), Running::Yes(None));
        assert!(matches!(
            QueueLock::take(&path, UtcMillis(6)),
            Err(StoreError::DaemonRuns { .. })
        ));
    }

    #[test]
    fn producers_may_see_who_runs_and_not_say_so() {
        let (_dir, path) = queue();
        std::fs::write(lock_path(&path), "").expect("written");
        std::fs::set_permissions(lock_path(&path), Permissions::from_mode(0o600))
            .expect("mode set");
        let _lock = QueueLock::take(&path, UtcMillis(5)).expect("taken");
        let mode = std::fs::metadata(lock_path(&path))
            .expect("exists")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o640);
    }

    #[test]
    fn the_file_is_writable_for_its_group_whatever_the_umask() {
        let (_dir, path) = queue();
        create(&path).expect("created");
        let mode = std::fs::metadata(&path)
            .expect("exists")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o660);
        create(&path).expect("an existing file is left as it is");
    }
}
