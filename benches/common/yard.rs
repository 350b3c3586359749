//! A queue in a folder of its own, its producers, and the daemon as a process: the program that was
//! built, `poweryard serve`.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;

use super::process;

const PROJECT: &str = "bbf1946d374b44a0a2a95533562ba954";

/// A folder with a queue, a config and secrets.
pub(crate) struct Yard {
    dir: TempDir,
}

/// What a config has beside its usual lines.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct More<'a> {
    /// Targets beside `default`, named `target-1` and so on.
    pub(crate) targets: usize,
    /// How long finished requests are kept.
    pub(crate) retention: Option<&'static str>,
    /// A line for each target.
    pub(crate) line: &'a str,
}

impl Yard {
    /// An empty queue whose target is the far side at `base_url`. Calls leave as fast as the config
    /// allows, and nothing lingers; jobs are first looked at after `first_look`.
    pub(crate) async fn new(base_url: &str, first_look: Duration) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["access_key", "secret_key"] {
            let path = dir.path().join(name);
            fs::write(&path, "benchmark").expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode set");
        }
        let yard = Self { dir };
        yard.configure(base_url, first_look, More::default());
        let store = poweryard::store::Store::open(&yard.database())
            .await
            .expect("a queue");
        store.close().await.expect("closed");
        yard
    }

    /// Writes the config anew, as `new` does, with more in it.
    pub(crate) fn configure(&self, base_url: &str, first_look: Duration, more: More<'_>) {
        let first_look = first_look.as_millis().max(1);
        let dir = self.dir.path().display();
        let retention = more.retention.unwrap_or("90d");
        let line = more.line;
        let mut config = format!(
            "[queue]\ndatabase = \"{dir}/queue.db\"\nretention = \"{retention}\"\n[batch]\nlinger = \"0ms\"\n"
        );
        let mut targets = vec![("default".to_owned(), PROJECT.to_owned())];
        for number in 1..=more.targets {
            targets.push((format!("target-{number}"), format!("{number:032x}")));
        }
        for (name, project) in targets {
            let target = format!(
                "[targets.{name}]\nservice = \"bms\"\nendpoint = \"{base_url}\"\nproject_id = \"{project}\"\n\
                 allow_http = true\nsubmits_per_minute = 6000\nfirst_look = \"{first_look}ms\"\ninventory_interval = \"off\"\n{line}\n\
                 [targets.{name}.auth]\nkind = \"aksk\"\n\
                 access_key_file = \"{dir}/access_key\"\nsecret_key_file = \"{dir}/secret_key\"\n"
            );
            config.push_str(&target);
        }
        fs::write(self.config(), config).expect("written");
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.path().join("queue.db")
    }

    fn config(&self) -> PathBuf {
        self.path().join("poweryard.toml")
    }

    /// A connection as a stock client opens it.
    pub(crate) async fn producer(&self) -> SqliteConnection {
        connect(&self.database()).await
    }

    /// A reboot of each server, in one transaction. Returns the bytes written for it, with what a
    /// checkpoint writes; nobody has the queue open afterwards.
    pub(crate) async fn insert(&self, servers: &[String]) -> u64 {
        let before = process::bytes_written("self");
        let mut producer = self.producer().await;
        sqlx::query("INSERT INTO power_requests (server_id, action) SELECT value, 'reboot' FROM json_each(?)")
            .bind(serde_json::to_string(servers).expect("text"))
            .execute(&mut producer)
            .await
            .expect("inserted");
        producer.close().await.expect("closed");
        process::bytes_written("self") - before
    }

    /// Starts the daemon. Its log is in the folder.
    pub(crate) fn start(&self) -> Child {
        self.command().spawn().expect("it starts")
    }

    /// Starts the daemon, and returns when it says that it is ready.
    pub(crate) fn start_ready(&self) -> Child {
        let path = self.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        let patience = Some(Duration::from_secs(20));
        socket.set_read_timeout(patience).expect("a timeout");
        let child = self
            .command()
            .env("NOTIFY_SOCKET", &path)
            .spawn()
            .expect("it starts");
        let mut buffer = [0; 4096];
        loop {
            let length = socket.recv(&mut buffer).expect("the daemon says READY=1");
            let said = String::from_utf8_lossy(&buffer[..length]);
            if said.lines().any(|line| line == "READY=1") {
                break;
            }
        }
        // Nobody reads what it says from now on; a socket that is gone does not block it.
        drop(socket);
        let _ = fs::remove_file(&path);
        child
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_poweryard"));
        for name in [
            "POWERYARD_CONFIG",
            "RUST_LOG",
            "CREDENTIALS_DIRECTORY",
            "NOTIFY_SOCKET",
            "WATCHDOG_USEC",
        ] {
            command.env_remove(name);
        }
        let log = File::create(self.path().join("log")).expect("a log file");
        command
            .arg("--config")
            .arg(self.config())
            .arg("serve")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command
    }
}

/// A connection as a stock client opens it, but for the patience that every producer needs.
pub(crate) async fn connect(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(Duration::from_secs(60))
        .disable_statement_logging()
        .connect()
        .await
        .expect("it opens")
}

/// Waits until nothing is queued or running.
pub(crate) async fn wait_until_done(reader: &mut SqliteConnection) {
    wait_until_done_to(reader, i64::MAX).await;
}

/// Waits until nothing up to this id is queued or running. Asks from where it last found something
/// unfinished, so that it costs the queue nothing.
pub(crate) async fn wait_until_done_to(reader: &mut SqliteConnection, last: i64) {
    let begun = std::time::Instant::now();
    let mut from = 0_i64;
    loop {
        let open: Option<i64> = sqlx::query_scalar(
            "SELECT id FROM power_requests WHERE id BETWEEN ? AND ? AND state IN ('queued', 'running') ORDER BY id LIMIT 1",
        )
        .bind(from)
        .bind(last)
        .fetch_optional(&mut *reader)
        .await
        .expect("readable");
        match open {
            Some(id) => from = id,
            None => return,
        }
        assert!(
            begun.elapsed() < process::PATIENCE,
            "request {from} does not end"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
