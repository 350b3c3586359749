//! A terminal of a given size, by tmux, with a shell in it. Knows nothing of what a test asserts.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::PATIENCE;

/// True if there is a tmux; otherwise says so, past the test runner, which would keep it to itself.
pub(crate) fn is_there() -> bool {
    let is_there = Command::new("tmux").arg("-V").output().is_ok();
    if !is_there {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: no tmux here, so nothing is tried on a terminal (Debian: apt-get install tmux)"
        );
    }
    is_there
}

/// A terminal. Its tmux ends with it.
pub(crate) struct Pane {
    dir: TempDir,
    runs: AtomicUsize,
}

impl Pane {
    /// A shell whose prompt is `ready$ ` and in which `py` is the program on this queue.
    pub(crate) fn open(columns: u16, rows: u16, queue: &Path) -> Self {
        let pane = Self {
            dir: tempfile::tempdir().expect("a folder"),
            runs: AtomicUsize::new(0),
        };
        let start = pane.dir.path().join("start.sh");
        let program = env!("CARGO_BIN_EXE_poweryard");
        let script = format!(
            "PS1='ready$ '\nunset NO_COLOR POWERYARD_CONFIG RUST_LOG SUDO_USER LOGNAME\nexport USER=alice\n\
             py() {{ local c=$1; shift; '{program}' $c --database '{}' \"$@\"; }}\n",
            queue.display()
        );
        std::fs::write(&start, script).expect("written");
        let size = (columns.to_string(), rows.to_string());
        let shell = format!(
            "exec bash --norc --noprofile --rcfile '{0}' -i",
            start.display()
        );
        let shell = shell.replace("--norc ", "");
        pane.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            &size.0,
            "-y",
            &size.1,
            &shell,
        ]);
        pane.tmux(&["set", "-g", "status", "off"]);
        pane.tmux(&["resize-window", "-x", &size.0, "-y", &size.1]);
        pane.shows("ready$");
        pane
    }

    fn tmux(&self, args: &[&str]) -> Output {
        let said = Command::new("tmux")
            .arg("-u")
            .arg("-S")
            .arg(self.dir.path().join("socket"))
            .args(args)
            .env_remove("TMUX")
            .output()
            .expect("tmux runs");
        assert!(said.status.success(), "tmux {args:?}: {said:?}");
        said
    }

    /// Types a line and ends it.
    pub(crate) fn enter(&self, line: &str) {
        self.tmux(&["send-keys", "-l", line]);
        self.key("Enter");
    }

    /// Runs a command to its end on an empty screen, and returns what is there then, without the
    /// prompt.
    pub(crate) fn run(&self, line: &str) -> String {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let mark = format!("ended-{number}");
        self.enter(&format!("clear; {line}; echo {mark}"));
        let screen = self.until(&mark, |screen| screen.lines().any(|line| line == mark));
        let lines = screen.lines().take_while(|line| *line != mark);
        lines.map(|line| format!("{line}\n")).collect()
    }

    /// Types text.
    pub(crate) fn write(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
    }

    /// Presses a key, by the name that tmux has for it.
    pub(crate) fn key(&self, name: &str) {
        self.tmux(&["send-keys", name]);
    }

    /// What is on the screen.
    pub(crate) fn text(&self) -> String {
        let said = self.tmux(&["capture-pane", "-p"]);
        String::from_utf8_lossy(&said.stdout).into_owned()
    }

    /// The same with its escape sequences.
    pub(crate) fn coloured(&self) -> String {
        let said = self.tmux(&["capture-pane", "-p", "-e"]);
        String::from_utf8_lossy(&said.stdout).into_owned()
    }

    /// One of tmux's own values, such as `alternate_on`.
    pub(crate) fn value(&self, name: &str) -> String {
        let said = self.tmux(&["display-message", "-p", &format!("#{{{name}}}")]);
        String::from_utf8_lossy(&said.stdout).trim().to_owned()
    }

    /// Waits until the text is on the screen.
    pub(crate) fn shows(&self, text: &str) -> String {
        self.until(text, |screen| screen.contains(text))
    }

    /// Waits until the screen is as wanted.
    pub(crate) fn until(&self, what: &str, holds: impl Fn(&str) -> bool) -> String {
        let begun = Instant::now();
        loop {
            let screen = self.text();
            if holds(&screen) {
                return screen;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{what:?} does not appear on\n{screen}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the terminal is as a shell wants it.
    pub(crate) fn is_given_back(&self) {
        self.until("ready$", |screen| {
            screen.trim_end().ends_with("ready$") && self.value("alternate_on") == "0"
        });
        assert_eq!(self.value("cursor_flag"), "1", "the cursor is seen");
        assert_eq!(
            self.value("mouse_any_flag"),
            "0",
            "the mouse is the terminal's"
        );
        let modes =
            self.run("stty -a | tr -s ' ;' '\\n' | grep -x -e echo -e icanon -e isig | xargs");
        assert_eq!(modes, "isig icanon echo\n");
    }
}

impl Drop for Pane {
    fn drop(&mut self) {
        let _ = Command::new("tmux")
            .arg("-S")
            .arg(self.dir.path().join("socket"))
            .arg("kill-server")
            .env_remove("TMUX")
            .output();
    }
}
