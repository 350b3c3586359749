//! Where ended requests are written before they are deleted: a file for each day, appended to. Knows
//! nothing of SQL.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

use crate::model::UtcMillis;

/// How much is read at once to find the end of the last whole line.
const STEP: usize = 64 * 1024;

/// The file of the day (UTC) of this time.
pub(in crate::store) fn path_of(dir: &Path, now: UtcMillis) -> PathBuf {
    let time = now.to_string();
    let day = time.get(..10).unwrap_or(&time);
    dir.join(format!("poweryard-{day}.jsonl"))
}

/// Appends whole lines, and returns once they are on the disk. A part of a line that an earlier write
/// has left is removed first: what it was about was not deleted, and is written again. If not all of
/// it can be written, nothing of it stays.
///
/// # Errors
/// Those of the file system, and of a name that is no plain file.
pub(in crate::store) fn append(path: &Path, lines: &str) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let is_new = !path.exists();
    let mut file = open(path)?;
    // The daemon and `db prune` may write the same file.
    flock(&file, FlockOperation::LockExclusive)?;
    let end = end_of_lines(&mut file)?;
    file.set_len(end)?;
    file.seek(SeekFrom::Start(end))?;
    let written = file
        .write_all(lines.as_bytes())
        .and_then(|()| file.sync_data());
    if let Err(error) = written {
        // If this fails, too, the next write removes what is left of it.
        let _ = file.set_len(end);
        return Err(error);
    }
    if is_new {
        File::open(super::folder_of(path))?.sync_all()?;
    }
    Ok(())
}

/// Not through a link, and not a pipe.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or_default());
    let file = options.open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is not a plain file"))
    }
}

/// Behind the last line end; 0 without any.
fn end_of_lines(file: &mut File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut buffer = vec![0; STEP];
    while end > 0 {
        let begin = end.saturating_sub(STEP as u64);
        let part = usize::try_from(end - begin).unwrap_or(STEP);
        file.seek(SeekFrom::Start(begin))?;
        file.read_exact(&mut buffer[..part])?;
        if let Some(at) = buffer[..part].iter().rposition(|byte| *byte == b'\n') {
            return Ok(begin + at as u64 + 1);
        }
        end = begin;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_line_that_was_cut_off_is_removed_before_more_is_written() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = path_of(dir.path(), UtcMillis(1_800_000_000_000));
        assert!(path.ends_with("poweryard-2027-01-15.jsonl"), "{path:?}");
        append(&path, "{\"a\":1}\n").expect("written");
        let long = "x".repeat(STEP + 10);
        fs::write(&path, format!("{{\"a\":1}}\n{{\"b\":{long}")).expect("cut off");
        append(&path, "{\"b\":2}\n").expect("written");
        let content = fs::read_to_string(&path).expect("readable");
        assert_eq!(content, "{\"a\":1}\n{\"b\":2}\n");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o137, 0, "{mode:o}");
    }

    #[test]
    fn a_link_is_not_followed_and_a_folder_that_is_missing_not_made() {
        let dir = tempfile::tempdir().expect("a folder");
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, "keep").expect("written");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&elsewhere, &link).expect("linked");
        assert!(append(&link, "x\n").is_err());
        assert_eq!(fs::read_to_string(&elsewhere).expect("readable"), "keep");
        assert!(append(&dir.path().join("missing/file"), "x\n").is_err());
    }
}
