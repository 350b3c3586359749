//! The question before something is done to many servers. Only at a terminal: a script is asked
//! nothing, and `--yes` answers.

use std::io::{self, IsTerminal, Write};

use super::Failure;
use super::output;

/// Up to so many servers nobody is asked about.
const UNASKED_MAX: u64 = 20;

/// `--yes`.
#[derive(Debug, clap::Args)]
pub(super) struct YesArg {
    /// Answer yes to the question that is asked at a terminal above 20 servers.
    #[arg(long)]
    pub(super) yes: bool,
}

/// True if a person reads what is said, and can answer.
pub(super) fn is_person() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

impl YesArg {
    /// True if a person may be asked.
    pub(super) fn may_ask(&self) -> bool {
        !self.yes && is_person()
    }

    /// True if a person is asked about so many servers.
    pub(super) fn is_asked_about(&self, servers: u64) -> bool {
        servers > UNASKED_MAX && self.may_ask()
    }

    /// Asks about so many servers, at a terminal and if they are many.
    ///
    /// # Errors
    /// `Usage` if the answer is not yes.
    pub(super) fn confirm(&self, servers: u64, question: &str) -> Result<(), Failure> {
        if !self.is_asked_about(servers) {
            return Ok(());
        }
        let answer = answer(&format!("{question} [y/N] "))?;
        if is_yes(&answer) {
            return Ok(());
        }
        Err(Failure::Usage(
            "the answer is not yes; nothing is done".to_owned(),
        ))
    }
}

fn is_yes(answer: &str) -> bool {
    let answer = answer.trim();
    answer.eq_ignore_ascii_case("y") || answer.eq_ignore_ascii_case("yes")
}

/// What is typed at the terminal after this question, up to the end of the line.
///
/// # Errors
/// The terminal cannot be written or read.
pub(super) fn answer(question: &str) -> Result<String, Failure> {
    let mut stderr = io::stderr();
    let asked = stderr.write_all(output::visible(question).as_bytes());
    asked
        .and_then(|()| stderr.flush())
        .map_err(Failure::Output)?;
    let mut line = String::new();
    io::stdin()
        .read_line(&mut line)
        .map_err(|source| Failure::File {
            what: "read the answer from the terminal".to_owned(),
            source,
        })?;
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        for yes in ["y\n", "Y\r\n", " yes ", "YES"] {
            assert!(is_yes(yes), "{yes}");
        }
        for no in ["", "\n", "n", "no", "yep", "4120", "y y"] {
            assert!(!is_yes(no), "{no}");
        }
    }
}
