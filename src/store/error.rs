//! What can be wrong with the queue's file, split where the reaction differs.

use std::path::{Path, PathBuf};

/// Why the queue could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such file; commands do not create one.
    #[error("there is no queue at {0}; `poweryard serve` or `poweryard db migrate` creates it")]
    Missing(PathBuf),
    /// An SQLite file of something else.
    #[error("{0} is another program's database; poweryard leaves it alone; check the path")]
    Foreign(PathBuf),
    /// Written by a later version.
    #[error(
        "{0} was written by a newer version of poweryard; this version leaves it alone; run the newer one"
    )]
    Newer(PathBuf),
    /// Written by an earlier version; the daemon and `db migrate` bring it up to date.
    #[error("{0} has an older schema; run `poweryard db migrate`")]
    Older(PathBuf),
    /// The file was deleted or replaced while the daemon ran on it: what producers write now is in
    /// another file.
    #[error(
        "{0} was deleted or replaced while poweryard was using it; poweryard stops, and the next start uses the file that is there then"
    )]
    Replaced(PathBuf),
    /// Another daemon, or an older copy of the queue, has come in this one's place.
    #[error(
        "{0} is not as poweryard left it: another daemon is using it now, or a copy was put in its place; poweryard stops, and sends and stores nothing more"
    )]
    TakenOver(PathBuf),
    /// The epoch file, by which an older copy is known, cannot be written. Nothing
    /// leaves until it can.
    #[error("cannot write {path}, which is needed to recognise an older copy of the queue")]
    EpochFile {
        /// The epoch file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A daemon runs on it.
    #[error("another poweryard daemon runs on {path} (pid {pid}); a queue can have only one")]
    DaemonRuns {
        /// The queue.
        path: PathBuf,
        /// That daemon's process id, if it could be read.
        pid: String,
    },
    /// A producer holds the write lock for longer than we wait. Try again.
    #[error("the database is locked by another program")]
    Busy,
    /// The disk is full. Try again once there is room.
    #[error("the disk that holds the database is full")]
    Full,
    /// Cannot be read, written or opened.
    #[error("cannot use {path}")]
    Unusable {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is damaged or not a database.
    #[error("{0} is damaged or is not an SQLite database; restore it from a backup")]
    Corrupt(PathBuf),
    /// SQLite found the open file damaged. Waiting does not fix that.
    #[error("the database is damaged; restore it from a backup")]
    Damaged,
    /// The database or its folder may not be written.
    #[error("the database is read-only; check the mode and owner of the file and its folder")]
    ReadOnly,
    /// The schema refused a row: what is wrong with it, in a sentence.
    #[error("{0}")]
    Refused(String),
    /// This person may not do that; a sentence.
    #[error("{0}")]
    NotAllowed(String),
    /// No request has this id.
    #[error("there is no request {0}")]
    NoSuchRequest(i64),
    /// A stored value that this version cannot read.
    #[error("the queue contains a value that cannot be read: {0}")]
    Unreadable(String),
    /// Anything else that SQLite says.
    #[error("the database failed")]
    Database(#[source] sqlx::Error),
}

impl StoreError {
    /// True if the same statement may succeed a little later, without anybody's help or with an
    /// operator's.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Busy | Self::Full | Self::Database(_) | Self::ReadOnly | Self::EpochFile { .. }
        )
    }

    pub(super) fn unusable(path: &Path, source: std::io::Error) -> Self {
        Self::Unusable {
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn opening(path: &Path, error: sqlx::Error) -> Self {
        let database_code = error
            .as_database_error()
            .and_then(|error| error.code())
            .map(|code| code.to_string());
        match database_code
            .as_deref()
            .and_then(|code| code.parse::<i32>().ok())
            .map(|code| code & 0xff)
        {
            Some(11 | 26) => Self::Corrupt(path.to_owned()),
            Some(14) => Self::unusable(path, why_unusable(path)),
            _ => error.into(),
        }
    }
}

/// SQLite says only "unable to open database file"; the file system knows more.
fn why_unusable(path: &Path) -> std::io::Error {
    match std::fs::metadata(path) {
        Err(error) => error,
        Ok(meta) if meta.is_dir() => std::io::Error::other("it is a folder"),
        Ok(_) => std::io::Error::other(
            "SQLite cannot open it; check the mode and owner of the file, of its folder and of a -wal beside it",
        ),
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let Some(database) = error.as_database_error() else {
            return Self::Database(error);
        };
        // SQLite's primary result codes; the extended code carries more in its upper bits.
        match database
            .code()
            .and_then(|code| code.parse::<i32>().ok())
            .map(|code| (code & 0xff, code))
        {
            // 531: a commit hook refused; only a simulation has one, and means a commit that fails
            // for now.
            Some((5 | 6, _) | (_, 531)) => Self::Busy,
            Some((8, _)) => Self::ReadOnly,
            Some((11 | 26, _)) => Self::Damaged,
            Some((13, _)) => Self::Full,
            Some((19, _)) => Self::Refused(database.message().to_owned()),
            _ => Self::Database(error),
        }
    }
}
