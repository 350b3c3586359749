//! How a command ends: its exit code, and the sentence on stderr. Decides nothing but these two.

use std::error::Error;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::daemon::{ConnectError, DaemonError};
use crate::logging::LoggingError;
use crate::settings::SettingsError;
use crate::store::{StoreError, folder_of};

/// The exit codes of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done; also nothing to wait for, and a status without a daemon.
    Done = 0,
    /// Some request did not end as `succeeded`, or could not be cancelled; or the result could not
    /// be written.
    Otherwise = 1,
    /// What was asked for is wrong.
    Usage = 2,
    /// The database cannot be used.
    Database = 3,
    /// Timed out waiting.
    TimedOut = 4,
    /// Another daemon runs.
    DaemonRuns = 5,
    /// Bad configuration.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command could not do what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The arguments, or what they name, are wrong.
    #[error("{0}")]
    Usage(String),
    /// The queue could not be used, or refused what was asked for.
    #[error("{}", on_file(path.as_deref(), source))]
    Store {
        /// The queue, once it is known which.
        path: Option<PathBuf>,
        /// Why.
        source: StoreError,
    },
    /// What was asked for cannot be done while a daemon runs.
    #[error("a daemon runs on {}; stop it first (pid {pid})", path.display())]
    StopFirst {
        /// The queue.
        path: PathBuf,
        /// The daemon's process id.
        pid: String,
    },
    /// What was asked for is done by a daemon, and none runs.
    #[error("no daemon runs on {}", path.display())]
    NoDaemon {
        /// The queue.
        path: PathBuf,
    },
    /// The config file was not accepted.
    #[error("{source}{}", no_config_hint(source))]
    Settings {
        /// Its mistakes.
        source: SettingsError,
    },
    /// A secret is missing or unsafe, or no client can be made from the settings.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The address of `[listen]` is taken, or is not one of this machine.
    #[error("cannot listen on {address} (listen.address in the config)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Logging could not be started.
    #[error(transparent)]
    Logging(#[from] LoggingError),
    /// The results could not be written.
    #[error("cannot write to stdout")]
    Output(#[source] io::Error),
    /// A file or an address that was named, or stdin, could not be used.
    #[error("cannot {what}")]
    File {
        /// What was tried, on which file.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The program's own threads could not be started.
    #[error("cannot start the program's threads")]
    Runtime(#[source] io::Error),
}

impl Failure {
    /// The exit code of the contract.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) | Self::Logging(_) | Self::File { .. } => Exit::Usage,
            Self::Settings { .. } | Self::Connect(_) | Self::Listen { .. } => Exit::Config,
            Self::Output(_) | Self::Runtime(_) => Exit::Otherwise,
            Self::StopFirst { .. } => Exit::DaemonRuns,
            Self::NoDaemon { .. } => Exit::Database,
            Self::Store { source, .. } => match source {
                StoreError::Refused(_)
                | StoreError::NotAllowed(_)
                | StoreError::NoSuchRequest(_) => Exit::Usage,
                StoreError::DaemonRuns { .. } => Exit::DaemonRuns,
                StoreError::Missing(_)
                | StoreError::Foreign(_)
                | StoreError::Newer(_)
                | StoreError::Older(_)
                | StoreError::Replaced(_)
                | StoreError::TakenOver(_)
                | StoreError::EpochFile { .. }
                | StoreError::Busy
                | StoreError::Full
                | StoreError::Unusable { .. }
                | StoreError::Corrupt(_)
                | StoreError::ReadOnly
                | StoreError::Damaged
                | StoreError::Unreadable(_)
                | StoreError::Database(_) => Exit::Database,
            },
        }
    }

    /// One sentence, then its causes.
    pub fn sentence(&self) -> String {
        let mut sentence = format!("error: {self}");
        // The text already includes the store's or settings' error; its sources are the causes.
        let mut cause = match self {
            Self::Store { source, .. } => source.source(),
            Self::Settings { source } => source.source(),
            other => other.source(),
        };
        let mut said = String::new();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some libraries' errors only repeat their source.
            if text != said {
                sentence.push_str(&format!(": caused by {text}"));
            }
            said = text;
            cause = error.source();
        }
        if let Self::Store { source, .. } = self {
            sentence.push_str(&way_out(source));
        }
        sentence
    }

    /// Names the queue that this happened on.
    pub(super) fn on(self, queue: &Path) -> Self {
        match self {
            Self::Store { path: None, source } => Self::Store {
                path: Some(queue.to_owned()),
                source,
            },
            other => other,
        }
    }
}

impl From<StoreError> for Failure {
    fn from(source: StoreError) -> Self {
        Self::Store { path: None, source }
    }
}

impl From<DaemonError> for Failure {
    fn from(DaemonError::Store { path, source }: DaemonError) -> Self {
        Self::Store {
            path: Some(path),
            source,
        }
    }
}

impl From<SettingsError> for Failure {
    fn from(source: SettingsError) -> Self {
        Self::Settings { source }
    }
}

/// What to do about an error of the queue, where there is something to do.
fn way_out(error: &StoreError) -> String {
    match error {
        StoreError::Busy => {
            "; try again, or end the program that keeps a write transaction open".to_owned()
        }
        StoreError::Full => "; free some space on it".to_owned(),
        StoreError::NoSuchRequest(_) => "; `poweryard list` shows the newest ones".to_owned(),
        StoreError::Unusable { path, source } => folder_hint(path, source),
        _other => String::new(),
    }
}

/// The folder of the queue is missing, or this user may not use it.
fn folder_hint(path: &Path, error: &io::Error) -> String {
    let folder = folder_of(path);
    match (error.kind(), fs::metadata(folder)) {
        (io::ErrorKind::NotFound, Err(_)) => {
            format!(
                "; create the folder {} with mode 3770 and the producers' group",
                folder.display()
            )
        }
        (io::ErrorKind::PermissionDenied, Ok(meta)) => {
            format!(
                "; ask to be added to group {}, which owns {}",
                group_name(meta.gid()),
                folder.display()
            )
        }
        _ => String::new(),
    }
}

/// The name of a group, or its number if the system knows no name for it.
pub(super) fn group_name(gid: u32) -> String {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let name = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| gid.to_string())
}

/// Puts the file in front of errors that do not name it.
fn on_file(path: Option<&Path>, error: &StoreError) -> String {
    match (path, error) {
        (
            Some(path),
            StoreError::Busy
            | StoreError::Full
            | StoreError::ReadOnly
            | StoreError::Damaged
            | StoreError::Unreadable(_)
            | StoreError::Database(_),
        ) => format!("{}: {error}", path.display()),
        _ => error.to_string(),
    }
}

fn no_config_hint(error: &SettingsError) -> &'static str {
    match error {
        SettingsError::Unreadable { .. } => {
            " (give another file with --config; commands that only use the queue accept --database instead)"
        }
        SettingsError::Mistakes(_) => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_names_the_file_once_and_then_the_causes() {
        let busy = Failure::from(StoreError::Busy).on(Path::new("/q/queue.db"));
        assert_eq!(
            busy.sentence(),
            "error: /q/queue.db: the database is locked by another program; try again, or end the program that keeps a write transaction open"
        );
        assert_eq!(busy.exit(), Exit::Database);
        let missing =
            Failure::from(StoreError::Missing("/q/queue.db".into())).on(Path::new("/q/queue.db"));
        assert_eq!(missing.sentence().matches("/q/queue.db").count(), 1);
        let source = io::Error::other("no such thing");
        let unusable = Failure::from(StoreError::Unusable {
            path: "/q".into(),
            source,
        });
        assert_eq!(
            unusable.sentence(),
            "error: cannot use /q: caused by no such thing"
        );
    }

    #[test]
    fn a_missing_folder_and_a_forbidden_one_say_what_to_do() {
        let unusable = |path: &str, kind: io::ErrorKind| {
            Failure::from(StoreError::Unusable {
                path: path.into(),
                source: kind.into(),
            })
            .sentence()
        };
        let missing = unusable("/no/such/queue.db.lock", io::ErrorKind::NotFound);
        assert!(
            missing
                .ends_with("; create the folder /no/such with mode 3770 and the producers' group"),
            "{missing}"
        );
        let forbidden = unusable("/queue.db", io::ErrorKind::PermissionDenied);
        assert!(
            forbidden.ends_with("; ask to be added to group root, which owns /"),
            "{forbidden}"
        );
        assert_eq!(group_name(u32::MAX - 7), (u32::MAX - 7).to_string());
    }
}
