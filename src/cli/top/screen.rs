//! The terminal while `top` runs, and as it was afterwards: after a key, a signal, an error, a panic.

use std::io::{self, Stdout};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;

/// The screen that `top` draws on. When it is dropped, the terminal is as it was.
pub(super) struct TakenTerminal {
    /// To draw on.
    pub(super) terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl TakenTerminal {
    /// Takes the terminal. A panic hook gives it back before anything is said of the panic, also
    /// where a panic aborts.
    pub(super) fn take() -> io::Result<Self> {
        let terminal = ratatui::try_init().inspect_err(|_| ratatui::restore())?;
        Ok(Self { terminal })
    }
}

impl Drop for TakenTerminal {
    fn drop(&mut self) {
        // If the terminal is gone, nothing can be done about it.
        let _ = self.terminal.show_cursor();
        let _ = ratatui::try_restore();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    /// Set in the process that panics.
    const PANICS: &str = "POWERYARD_TEST_PANICS";

    /// This test once more, in a terminal, where it panics.
    #[test]
    fn a_panic_gives_the_terminal_back_before_it_is_told() {
        if std::env::var_os(PANICS).is_some() {
            let mut screen = TakenTerminal::take().expect("a terminal");
            screen
                .terminal
                .draw(|frame| frame.render_widget("drawn", frame.area()))
                .expect("drawn");
            panic!("told afterwards");
        }
        let dir = tempfile::tempdir().expect("a folder");
        let tmux = |args: &[&str]| {
            let socket = dir.path().join("socket");
            let mut command = Command::new("tmux");
            command.arg("-S").arg(socket).args(args).env_remove("TMUX");
            command.output()
        };
        let test = "cli::top::screen::tests::a_panic_gives_the_terminal_back_before_it_is_told";
        let program = std::env::current_exe().expect("a path");
        let line = format!(
            "{PANICS}=1 RUST_BACKTRACE=0 '{}' --exact {test} --nocapture; stty -a; sleep 60",
            program.display()
        );
        let size = ["new-session", "-d", "-x", "100", "-y", "50"];
        let Ok(started) = tmux(&[&["-f", "/dev/null"], &size[..], &[line.as_str()]].concat())
        else {
            // `tests/integration/terminal.rs` says so.
            return;
        };
        assert!(started.status.success(), "{started:?}");
        let begun = Instant::now();
        let shown = loop {
            let captured = tmux(&["capture-pane", "-p"]).expect("tmux runs");
            let text = String::from_utf8_lossy(&captured.stdout).into_owned();
            if text.contains("icanon") || begun.elapsed() > Duration::from_secs(30) {
                break text;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let alternate = tmux(&["display-message", "-p", "#{alternate_on}#{cursor_flag}"]);
        let _ = tmux(&["kill-server"]);
        assert!(shown.contains("told afterwards"), "{shown}");
        assert!(
            !shown.contains("-icanon") && !shown.contains("-echo "),
            "{shown}"
        );
        let alternate = alternate.expect("tmux runs").stdout;
        assert_eq!(String::from_utf8_lossy(&alternate).trim(), "01", "{shown}");
    }
}
