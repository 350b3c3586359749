//! A file that is written beside its name and gets it in one step, once it is whole and on the disk.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::backup::{create_private, put_in_place};
use crate::store::StoreError;
use crate::store::sqlite::file;

/// It has mode 0600. Dropped before `finish`, nothing of it stays.
#[derive(Debug)]
pub struct NewFile {
    to: PathBuf,
    partial: PathBuf,
    file: BufWriter<File>,
}

impl NewFile {
    /// Begins a file that will be at `to`.
    ///
    /// # Errors
    /// `Unusable`; `Refused` if `to` belongs to the `queue`, or is no plain file.
    pub fn create(to: &Path, queue: &Path) -> Result<Self, StoreError> {
        if is_of_queue(to, queue) {
            return Err(StoreError::Refused(format!(
                "{} belongs to the queue; name another file",
                to.display()
            )));
        }
        if fs::symlink_metadata(to).is_ok_and(|meta| !meta.is_file()) {
            return Err(StoreError::Refused(format!(
                "{} is not a plain file, and would be replaced; name another file",
                to.display()
            )));
        }
        let partial = file::beside(to, ".partial");
        let file = create_private(&partial).map_err(|error| StoreError::unusable(to, error))?;
        Ok(Self {
            to: to.to_owned(),
            partial,
            file: BufWriter::new(file),
        })
    }

    /// Appends.
    ///
    /// # Errors
    /// `Unusable`.
    pub fn write(&mut self, text: &str) -> Result<(), StoreError> {
        self.file
            .write_all(text.as_bytes())
            .map_err(|error| StoreError::unusable(&self.to, error))
    }

    /// Puts it in place.
    ///
    /// # Errors
    /// `Unusable`.
    pub fn finish(mut self) -> Result<(), StoreError> {
        let flushed = self.file.flush();
        flushed
            .and_then(|()| put_in_place(&self.partial, &self.to))
            .map_err(|error| StoreError::unusable(&self.to, error))
    }
}

/// True for the queue's file and those beside it, by whatever name.
fn is_of_queue(to: &Path, queue: &Path) -> bool {
    let Ok(id) = file::id_of(to) else {
        return false;
    };
    let queue = file::real(queue);
    ["", "-wal", "-shm", ".lock", ".epoch"]
        .iter()
        .any(|ending| file::id_of(&file::beside(&queue, ending)).is_ok_and(|own| own == id))
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // After `finish` it has another name.
        let _ = fs::remove_file(&self.partial);
    }
}
