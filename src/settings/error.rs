//! What is wrong with a config file: one sentence per mistake, with file, line and key. Does no
//! checks itself.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a config file was not accepted. The caller ends (exit code 78) or, on a reload, keeps the
/// old settings.
#[derive(Debug)]
pub enum SettingsError {
    /// The file could not be read.
    Unreadable {
        /// The config file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file was read and has these mistakes: at least one, in the order of their lines.
    Mistakes(Vec<Mistake>),
}

/// One mistake in a config file, or in a list that it names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// The file to correct.
    pub file: PathBuf,
    /// The line to correct, from 1.
    pub line: usize,
    /// The key with its tables, such as `targets.default.endpoint`.
    pub key: String,
    /// What is wrong, and how to write it.
    pub problem: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}: {}: {}",
            self.file.display(),
            self.line,
            self.key,
            self.problem
        )
    }
}

/// One line per mistake.
impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { file, .. } => {
                write!(f, "{}: the config file cannot be read", file.display())
            }
            Self::Mistakes(mistakes) => {
                let lines: Vec<String> = mistakes.iter().map(Mistake::to_string).collect();
                f.write_str(&lines.join("\n"))
            }
        }
    }
}

impl std::error::Error for SettingsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { source, .. } => Some(source),
            Self::Mistakes(_) => None,
        }
    }
}
