//! What is at the other end of stdout or stderr: how large it is, whether it has colours, and which
//! colour means what. Writes nothing.

use std::io::IsTerminal;
use std::os::fd::AsFd;

/// What a terminal is taken for that does not say how large it is.
const USUAL_COLUMNS: usize = 80;
/// As `USUAL_COLUMNS`.
const USUAL_ROWS: usize = 24;
/// Nothing useful fits into fewer columns; the terminal breaks the lines then.
const COLUMNS_MIN: usize = 40;

/// A terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Screen {
    /// Its width.
    pub(super) columns: usize,
    /// Its height.
    pub(super) rows: usize,
    /// False with `NO_COLOR`, and on terminals that have none.
    pub(super) has_colours: bool,
}

impl Screen {
    /// The text in this tone, if the terminal has colours.
    pub(super) fn paint(&self, tone: Tone, text: &str) -> String {
        if self.has_colours {
            tone.paint(text)
        } else {
            text.to_owned()
        }
    }
}

/// The terminal that stdout goes to; none if it goes to a file or a pipe.
pub(super) fn of_stdout() -> Option<Screen> {
    screen(&std::io::stdout())
}

/// The terminal that stderr goes to; none if it goes to a file or a pipe.
pub(super) fn of_stderr() -> Option<Screen> {
    screen(&std::io::stderr())
}

fn screen(stream: &(impl IsTerminal + AsFd)) -> Option<Screen> {
    if !stream.is_terminal() {
        return None;
    }
    let (columns, rows) = match rustix::termios::tcgetwinsize(stream) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            (usize::from(size.ws_col), usize::from(size.ws_row))
        }
        _ => (USUAL_COLUMNS, USUAL_ROWS),
    };
    Some(Screen {
        columns: columns.max(COLUMNS_MIN),
        rows,
        has_colours: wants_colours(),
    })
}

/// What the environment says: <https://no-color.org>, and terminals that know no escape sequences.
pub(super) fn wants_colours() -> bool {
    let is_unset = |name: &str| std::env::var_os(name).is_none_or(|value| value.is_empty());
    is_unset("NO_COLOR") && std::env::var_os("TERM").is_none_or(|name| name != "dumb")
}

/// What a colour says. It is never the only sign: the word is always there, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    /// Nothing special.
    Plain,
    /// As wished.
    Good,
    /// Somebody has to look.
    Bad,
    /// It did not happen, or nobody can tell.
    Doubtful,
    /// It is being done.
    Busy,
    /// A heading.
    Heading,
}

impl Tone {
    /// The tone of a request's, batch's or order's state, or of a server's power.
    pub(super) fn of(word: &str) -> Self {
        match word {
            "succeeded" | "on" => Self::Good,
            "failed" | "rejected" => Self::Bad,
            "unknown" | "expired" | "cancelled" | "held" | "looking" | "unclear" => Self::Doubtful,
            "running" | "submitting" | "tracking" => Self::Busy,
            _ => Self::Plain,
        }
    }

    /// The text in this tone.
    pub(super) fn paint(self, text: &str) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            Self::Good => "32",
            Self::Bad => "31",
            Self::Doubtful => "33",
            Self::Busy => "36",
            Self::Heading => "1",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RequestState;

    #[test]
    fn every_state_that_needs_a_person_has_a_colour() {
        for state in RequestState::ALL {
            let is_quiet = Tone::of(state.as_str()) == Tone::Plain;
            assert_eq!(is_quiet, *state == RequestState::Queued, "{state}");
        }
    }

    #[test]
    fn plain_text_is_left_as_it_is() {
        assert_eq!(Tone::Plain.paint("queued"), "queued");
        assert_eq!(Tone::Bad.paint("failed"), "\u{1b}[31mfailed\u{1b}[0m");
    }
}
