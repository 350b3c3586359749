//! The terminal while `top` runs, and as it was afterwards: after a key, a signal, an error, a panic.

use std::io::{self, Stdout};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;

/// The screen that `top` draws on. When it is dropped, the terminal is as it was.
pub(super) struct Screen {
    /// To draw on.
    pub(super) terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    /// Takes the terminal. A panic hook gives it back before anything is said of the panic, also
    /// where a panic aborts.
    pub(super) fn take() -> io::Result<Self> {
        let terminal = ratatui::try_init().inspect_err(|_| ratatui::restore())?;
        Ok(Self { terminal })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // If the terminal is gone, nothing can be done about it.
        let _ = self.terminal.show_cursor();
        let _ = ratatui::try_restore();
    }
}
