//! The real program as a child process: the daemon with its signals, and the commands. Knows
//! nothing of what a test asserts.

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::PATIENCE;

/// The program, without what the environment of the test says of it.
pub(crate) fn poweryard() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_poweryard"));
    for name in [
        "POWERYARD_CONFIG",
        "RUST_LOG",
        "SUDO_USER",
        "LOGNAME",
        "CREDENTIALS_DIRECTORY",
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
    ] {
        command.env_remove(name);
    }
    command.env("USER", "alice").stdin(Stdio::null());
    command
}

/// One command to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    poweryard().args(args).output().expect("it runs")
}

/// What a command printed and complained about.
pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The JSON that a command printed.
pub(crate) fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// `poweryard serve`, killed when dropped.
pub(crate) struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts it; its log goes to a file beside the config.
    pub(crate) fn start(config: &Path) -> Self {
        Self::start_telling(config, None)
    }

    /// Starts it with `NOTIFY_SOCKET`.
    pub(crate) fn start_telling(config: &Path, ear: Option<&Ear>) -> Self {
        let mut command = poweryard();
        if let Some(ear) = ear {
            command.env("NOTIFY_SOCKET", &ear.path);
        }
        Self::spawn(command, config)
    }

    /// Starts it with `NOTIFY_SOCKET` and a watchdog.
    pub(crate) fn start_watched(config: &Path, ear: &Ear, limit: Duration) -> Self {
        let mut command = poweryard();
        command
            .env("NOTIFY_SOCKET", &ear.path)
            .env("WATCHDOG_USEC", limit.as_micros().to_string());
        Self::spawn(command, config)
    }

    /// Starts it under `strace`, which notes what it writes, syncs and sends.
    pub(crate) fn start_traced(config: &Path, trace: &Path) -> Self {
        let program = poweryard();
        let mut command = Command::new("strace");
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.args(["-D", "-f", "-yy", "-s", "5000", "-e"]);
        command
            .arg("trace=fsync,fdatasync,pwrite64,write,writev,sendto,sendmsg")
            .arg("-o")
            .arg(trace);
        command.arg(program.get_program()).stdin(Stdio::null());
        Self::spawn(command, config)
    }

    fn spawn(mut command: Command, config: &Path) -> Self {
        let log = config.with_extension("log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("a log file");
        let child = command
            .arg("--config")
            .arg(config)
            .arg("serve")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        Self {
            child: child.expect("it starts"),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`: nothing of the process runs after this returns.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it has ended");
    }

    /// SIGTERM.
    pub(crate) fn ask_to_stop(&self) {
        self.signal("-TERM");
    }

    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args([signal, &self.pid().to_string()])
            .status()
            .expect("kill runs");
        assert!(sent.success());
    }

    /// Its exit code, once it has ended by itself.
    pub(crate) async fn exit_code(&mut self) -> Option<i32> {
        let mut code = None;
        until("the daemon has ended", || {
            code = self
                .child
                .try_wait()
                .expect("it can be waited for")
                .map(|status| status.code());
            code.is_some()
        })
        .await;
        code.flatten()
    }

    /// SIGTERM, and the exit code.
    pub(crate) async fn stop(mut self) -> Option<i32> {
        self.ask_to_stop();
        self.exit_code().await
    }

    /// Processor time used so far, in ticks of 10 ms.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it runs");
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        // utime and stime are fields 14 and 15; the first after the name is field 3.
        let field = |number: usize| {
            after_name
                .split_whitespace()
                .nth(number - 3)
                .and_then(|text| text.parse().ok())
        };
        field(14)
            .zip(field(15))
            .map(|(user, system): (u64, u64)| user + system)
            .expect("two numbers")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A `NOTIFY_SOCKET`, and what the daemon said on it. Read all the time, as systemd does: a full
/// socket blocks who writes.
pub(crate) struct Ear {
    path: PathBuf,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Ear {
    pub(crate) fn new(dir: &Path) -> Self {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ear = Self {
            path,
            heard: Arc::clone(&heard),
        };
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer) {
                let lines = String::from_utf8_lossy(&buffer[..length])
                    .lines()
                    .map(str::to_owned)
                    .collect::<Vec<_>>();
                heard.lock().expect("nobody panics with it").extend(lines);
            }
        });
        ear
    }

    /// Waits for a line that begins so.
    pub(crate) async fn hear(&self, beginning: &str) {
        until(beginning, || {
            self.heard().iter().any(|line| line.starts_with(beginning))
        })
        .await;
    }

    /// All lines so far.
    pub(crate) fn heard(&self) -> Vec<String> {
        self.heard.lock().expect("nobody panics with it").clone()
    }
}

/// Waits until `holds` says so.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let ends = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < ends, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Seeded chance, so that a failing run can be had again.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// From 0 to `most`.
    pub(crate) fn roll(&mut self, most: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % (most + 1)
    }
}
