//! The epoch file, `PATH.epoch`: how far this queue has come. It outlives the queue's file, and so
//! an older copy is recognised by it. Opens no database.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::file::{self, FileId};

/// The length of the file: always the same, so that it is overwritten in place, in one sector.
const LENGTH: usize = 256;

/// What it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(in crate::store) struct HighWater {
    /// The newest epoch that the queue's file had.
    pub(super) epoch: i64,
    /// The highest id of a request that was ever given, as far as somebody noted it.
    pub(super) last_id: i64,
    /// The highest id of a batch, likewise.
    pub(super) last_batch_id: i64,
    /// When the queue's file came to be, in milliseconds since 1970, where the file system tells.
    /// Somebody who puts a copy in its place, and one of the epoch file with it, makes a new file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) born_ms: Option<i64>,
}

impl HighWater {
    /// None if there is no such file, or it does not read.
    pub(super) fn read(queue: &Path) -> Option<Self> {
        let high_water: Self = serde_json::from_slice(&std::fs::read(path_of(queue)).ok()?).ok()?;
        let possible = 0..=MOST;
        (possible.contains(&high_water.epoch)
            && possible.contains(&high_water.last_id)
            && possible.contains(&high_water.last_batch_id))
        .then_some(high_water)
    }

    /// A request and a batch with these ids were given.
    pub(super) fn reach(&mut self, id: i64, batch_id: i64) {
        self.last_id = self.last_id.max(id);
        self.last_batch_id = self.last_batch_id.max(batch_id);
    }

    /// True if the file at `queue` is another one than that which this was written for, as far
    /// as can be told.
    pub(super) fn is_of_another_file(&self, queue: &Path) -> bool {
        self.born_ms
            .zip(born(queue))
            .is_some_and(|(noted, found)| noted != found)
    }
}

fn born(queue: &Path) -> Option<i64> {
    let since = std::fs::metadata(queue)
        .ok()?
        .created()
        .ok()?
        .duration_since(UNIX_EPOCH)
        .ok()?;
    i64::try_from(since.as_millis()).ok()
}

/// No queue comes so far: a larger number was written by a stranger.
pub(super) const MOST: i64 = 1_000_000_000_000_000;

/// Where the epoch file of the queue at `queue` is.
pub(super) fn path_of(queue: &Path) -> PathBuf {
    file::beside(queue, ".epoch")
}

/// Writes it. Keeps it open, since it is written with each call that leaves.
#[derive(Debug)]
pub(super) struct EpochFile {
    queue: PathBuf,
    born_ms: Option<i64>,
    open: Option<(File, FileId)>,
}

impl EpochFile {
    /// For the queue whose file is at `queue`.
    pub(super) fn new(queue: PathBuf) -> Self {
        Self {
            born_ms: born(&queue),
            queue,
            open: None,
        }
    }

    /// Writes `high_water`; with `synced`, it is on the disk before this returns.
    pub(super) fn write(&mut self, high_water: HighWater, synced: bool) -> std::io::Result<()> {
        let mut text = serde_json::to_vec(&HighWater {
            born_ms: self.born_ms,
            ..high_water
        })?;
        text.resize(LENGTH, b' ');
        let path = path_of(&self.queue);
        let at_path = std::fs::metadata(&path)
            .map(|meta| (meta.dev(), meta.ino()))
            .ok();
        if let Some((file, id)) = &self.open
            && Some(*id) == at_path
        {
            file.write_all_at(&text, 0)?;
            return if synced { file.sync_data() } else { Ok(()) };
        }
        self.open = None;
        self.open = Some(replace(&path, &text)?);
        Ok(())
    }
}

/// Puts a new file in its place, as a whole.
fn replace(path: &Path, text: &[u8]) -> std::io::Result<(File, FileId)> {
    let partial = file::beside(path, ".partial");
    // One that another user left behind cannot be opened, but removed.
    match std::fs::remove_file(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o640)
        .open(&partial)?;
    file.write_all_at(text, 0)?;
    file.sync_all()?;
    std::fs::rename(&partial, path)?;
    File::open(file::folder_of(path))?.sync_all()?;
    let meta = file.metadata()?;
    Ok((file, (meta.dev(), meta.ino())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIGH_WATER: HighWater = HighWater {
        epoch: 7,
        last_id: 3,
        last_batch_id: 2,
        born_ms: None,
    };

    #[test]
    fn the_epoch_file_reads_back_and_comes_back_when_it_is_removed() {
        let dir = tempfile::tempdir().expect("a folder");
        let queue = dir.path().join("queue.db");
        let mut file = EpochFile::new(queue.clone());
        assert_eq!(HighWater::read(&queue), None);
        for epoch in [7, 123_456, 8] {
            file.write(
                HighWater {
                    epoch,
                    ..HIGH_WATER
                },
                true,
            )
            .expect("written");
            assert_eq!(
                HighWater::read(&queue),
                Some(HighWater {
                    epoch,
                    ..HIGH_WATER
                })
            );
        }
        std::fs::remove_file(path_of(&queue)).expect("removed");
        file.write(HIGH_WATER, false).expect("written anew");
        assert_eq!(HighWater::read(&queue), Some(HIGH_WATER));
        std::fs::write(path_of(&queue), "{\"epoch\":").expect("spoilt");
        assert_eq!(HighWater::read(&queue), None);
        std::fs::write(
            path_of(&queue),
            r#"{"epoch":9223372036854775807,"last_id":1,"last_batch_id":1}"#,
        )
        .expect("odd");
        assert_eq!(HighWater::read(&queue), None);
    }

    #[test]
    fn an_epoch_file_that_cannot_be_written_is_an_error_until_it_can() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = dir.path().join("gone");
        let mut file = EpochFile::new(folder.join("queue.db"));
        file.write(HIGH_WATER, true)
            .expect_err("there is no such folder");
        std::fs::create_dir(&folder).expect("made");
        file.write(HIGH_WATER, true).expect("now it can");
    }
}
