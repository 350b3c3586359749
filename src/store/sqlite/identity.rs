//! Whether the file that this daemon began on is still what the path leads to, with its `-wal` and
//! `-shm`, and whether nobody has written another queue over it. Looks at the file system only;
//! opens nothing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use memchr::memmem;

use super::file::{self, FileId};

/// A checkpoint of somebody else may be writing the page that is being read.
const READS: u32 = 3;
/// Between two of them.
const READ_PAUSE: Duration = Duration::from_millis(5);
/// SQLite's formats of the `-shm` and the `-wal`, in bytes: <https://www.sqlite.org/walformat.html>.
const SHM_HEADER: usize = 48;
const SHM_LENGTH_MIN: u64 = 32768;
const WAL_HEADER: u64 = 32;
const WAL_SALT_AT: u64 = 16;
const FRAME_HEADER: u64 = 24;
/// The digits of the epoch in the stamp.
const DIGITS: usize = 20;

/// What was there when the daemon began.
#[derive(Debug)]
pub(super) struct QueueIdentity {
    path: PathBuf,
    main: FileId,
    sidecars: Vec<(PathBuf, FileId)>,
    log: Option<LogReader>,
    stamp: Option<StampReader>,
}

/// What is there now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IdentityState {
    /// The same.
    Same,
    /// Something else, or nothing.
    Another,
    /// The stamp is not where it was: a VACUUM may have moved it.
    Moved,
}

impl QueueIdentity {
    /// Takes note of the file at `path`.
    pub(super) fn new(path: &Path, main: FileId) -> Self {
        Self {
            path: path.to_owned(),
            main,
            sidecars: Vec::new(),
            log: None,
            stamp: None,
        }
    }

    /// Takes note of `-wal` and `-shm`, which exist from the first transaction to the end of this
    /// connection, and of where the stamp is, if this process holds the lock and so a handle.
    pub(super) fn begin(&mut self, token: &str, stamp: StampPage) {
        let real = file::real(&self.path);
        let found = ["-wal", "-shm"].map(|ending| file::beside(&real, ending));
        let known = found
            .into_iter()
            .filter_map(|path| file::id_of(&path).ok().map(|id| (path, id)));
        self.sidecars = known.collect();
        self.log = LogReader::open(&real);
        self.stamp = file::locked_handle(self.main).map(|file| StampReader {
            file,
            key: format!("pyrd:{token}:"),
            page: stamp,
            seen: None,
        });
    }

    /// Compares.
    pub(super) fn look(&mut self) -> IdentityState {
        let mut sidecars = self.sidecars.iter();
        let in_place = is_same_file(&self.path, self.main)
            && sidecars.all(|(path, was)| is_same_file(path, *was));
        if !in_place || self.log.as_ref().is_some_and(|log| !log.is_whole()) {
            return IdentityState::Another;
        }
        self.stamp
            .as_mut()
            .map_or(IdentityState::Same, StampReader::look)
    }

    /// Where the stamp is looked for.
    pub(super) fn stamp_page(&self) -> Option<StampPage> {
        self.stamp.as_ref().map(|stamp| stamp.page)
    }

    /// The stamp was moved by SQLite itself.
    pub(super) fn stamp_moved(&mut self, page: StampPage) {
        if let Some(stamp) = &mut self.stamp {
            stamp.page = page;
            stamp.seen = None;
        }
    }
}

fn is_same_file(path: &Path, was: FileId) -> bool {
    file::id_of(path).is_ok_and(|id| id == was)
}

/// Compares the `-wal` with what the `-shm` says of it: somebody who cut it, or wrote another
/// over it, took committed rows.
#[derive(Debug)]
struct LogReader {
    wal: Arc<File>,
    shm: Arc<File>,
}

/// What the header of the `-shm` says of the `-wal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LogExtent {
    /// Bytes of it that are in use.
    length: u64,
    /// Changes whenever it is begun anew.
    salt: [u8; 8],
}

impl LogReader {
    fn open(queue: &Path) -> Option<Self> {
        Some(Self {
            wal: file::kept_handle(&file::beside(queue, "-wal")).ok()?,
            shm: file::kept_handle(&file::beside(queue, "-shm")).ok()?,
        })
    }

    /// Somebody else may be writing either of them at this moment, so a difference counts only if
    /// it stays.
    fn is_whole(&self) -> bool {
        for read in 1..=READS {
            match self.read() {
                Ok(true) => return true,
                _ if read < READS => std::thread::sleep(READ_PAUSE),
                _ => {}
            }
        }
        false
    }

    fn read(&self) -> std::io::Result<bool> {
        let mut header = [0; 2 * SHM_HEADER];
        self.shm.read_exact_at(&mut header, 0)?;
        let Some(extent) = log_extent(&header) else {
            return Ok(self.shm.metadata()?.len() >= SHM_LENGTH_MIN);
        };
        let mut salt = [0; 8];
        self.wal.read_exact_at(&mut salt, WAL_SALT_AT)?;
        Ok(salt == extent.salt && self.wal.metadata()?.len() >= extent.length)
    }
}

/// None while the `-wal` is empty, or the two copies of the header differ because it is being
/// written.
fn log_extent(header: &[u8; 2 * SHM_HEADER]) -> Option<LogExtent> {
    let (first, second) = header.split_at(SHM_HEADER);
    let is_begun = *first.get(12)? == 1;
    let page_size = u16::from_ne_bytes(first.get(14..16)?.try_into().ok()?);
    let frames = u32::from_ne_bytes(first.get(16..20)?.try_into().ok()?);
    if first != second || !is_begun || frames == 0 {
        return None;
    }
    // 1 stands for 65536, which does not fit.
    let page_size = if page_size == 1 {
        65536
    } else {
        u64::from(page_size)
    };
    let length = WAL_HEADER + u64::from(frames) * (page_size + FRAME_HEADER);
    Some(LogExtent {
        length,
        salt: first.get(32..40)?.try_into().ok()?,
    })
}

/// Where SQLite keeps the table `queue_stamp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StampPage {
    /// Its number, from 1.
    pub(super) number: i64,
    /// In bytes.
    pub(super) size: i64,
}

/// Reads the stamp in the file itself.
#[derive(Debug)]
struct StampReader {
    file: Arc<File>,
    /// What the stamp begins with.
    key: String,
    page: StampPage,
    /// The highest epoch that was seen in this place. None until the first checkpoint has come by.
    seen: Option<i64>,
}

impl StampReader {
    fn look(&mut self) -> IdentityState {
        for read in 1..=READS {
            match (self.read(), self.seen) {
                (Some(epoch), seen) if seen.is_none_or(|seen| epoch >= seen) => {
                    self.seen = Some(epoch);
                    return IdentityState::Same;
                }
                (None, None) => return IdentityState::Same,
                // An earlier epoch of our own: a copy was written over the file.
                (Some(_), Some(_)) if read == READS => return IdentityState::Another,
                _ => std::thread::sleep(READ_PAUSE),
            }
        }
        IdentityState::Moved
    }

    fn read(&self) -> Option<i64> {
        let size = usize::try_from(self.page.size).ok()?;
        let start = u64::try_from((self.page.number - 1) * self.page.size).ok()?;
        let mut page = vec![0; size];
        self.file.read_exact_at(&mut page, start).ok()?;
        newest(&page, self.key.as_bytes())
    }
}

/// The highest epoch behind `key` on a page. Rests of earlier rows may stand beside the row.
fn newest(page: &[u8], key: &[u8]) -> Option<i64> {
    let found = memmem::find_iter(page, key);
    found.filter_map(|at| epoch_at(page, at + key.len())).max()
}

fn epoch_at(page: &[u8], start: usize) -> Option<i64> {
    let digits = page.get(start..start + DIGITS)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_epoch_of_the_own_token_is_found_on_a_page() {
        let page = b"..pyrd:a:00000000000000000007..pyrd:a:00000000000000000012..pyrd:b:00000000000000000099";
        assert_eq!(newest(page, b"pyrd:a:"), Some(12));
        assert_eq!(newest(page, b"pyrd:b:"), Some(99));
        assert_eq!(newest(page, b"pyrd:c:"), None);
        assert_eq!(newest(b"pyrd:a:123", b"pyrd:a:"), None);
    }
}
