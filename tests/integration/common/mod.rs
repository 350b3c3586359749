//! What the integration tests share: a folder with a queue, a config, secrets, a simulated cloud,
//! and the daemon.

pub(crate) mod judge;
pub(crate) mod old_sqlite;
pub(crate) mod process;
pub(crate) mod queue;
pub(crate) mod scene;
pub(crate) mod statements;
pub(crate) mod tmux;
pub(crate) mod wire;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use poweryard::daemon::{self, DaemonError, Dispatcher, Links, Observers, Reload};
use poweryard::model::{Now, Service};
use poweryard::settings::{SecretRules, Settings};
use poweryard::sim::{OnOff, Scenario, SimCloud};
use poweryard::store::Store;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

/// How long a condition may take to come true before a test fails, on a machine that is busy with
/// other things too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) const UNFINISHED: &str = "SELECT count(*) FROM power_requests WHERE finished_at IS NULL";

pub(crate) const PROJECT: &str = "bbf1946d374b44a0a2a95533562ba954";

/// One queue with its cloud.
pub(crate) struct Yard {
    pub(crate) dir: TempDir,
    pub(crate) cloud: SimCloud,
    /// That of the config's target.
    pub(crate) service: Service,
    /// Lines that the config's target gets beside the necessary ones.
    pub(crate) target_lines: String,
}

/// A daemon running in this process.
pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    daemon: JoinHandle<Result<(), DaemonError>>,
}

impl Running {
    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        let joined = tokio::task::spawn_blocking(|| self.daemon.join())
            .await
            .expect("joined");
        joined
            .expect("the daemon does not panic")
            .expect("the daemon ends well");
    }
}

impl Yard {
    /// A cloud by `scenario` (TOML), and looks quick enough for a test.
    pub(crate) async fn new(scenario: &str) -> Self {
        let scenario = Scenario::from_toml(scenario).expect("a valid scenario");
        let cloud = SimCloud::start(([127, 0, 0, 1], 0).into(), scenario)
            .await
            .expect("a free port");
        let dir = tempfile::tempdir().expect("a folder");
        let target_lines = "submits_per_minute = 6000\nfirst_look = \"20ms\"\nlook_interval_max = \"100ms\"\n\
                            settle_time = \"1s\"\nlook_time_limit = \"10s\"\n\
                            inventory_interval = \"off\"\n";
        Self {
            dir,
            cloud,
            service: Service::Bms,
            target_lines: target_lines.into(),
        }
    }

    /// Sets one line of the config's target, such as `job_time_limit = "1s"`, in place of an
    /// earlier one of that key.
    pub(crate) fn set(&mut self, line: &str) {
        let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
        let others = self
            .target_lines
            .lines()
            .filter(|other| key(other) != key(line));
        self.target_lines = others
            .chain([line])
            .map(|line| format!("{line}\n"))
            .collect();
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.dir.path().join("queue.db")
    }

    /// Writes the config and the secrets it names.
    pub(crate) fn write_config(&self) -> PathBuf {
        self.write_config_for("default", &self.cloud.base_url())
    }

    pub(crate) fn write_config_for(&self, target: &str, endpoint: &str) -> PathBuf {
        secret(self.dir.path(), "access-key", "POWERYARDSIMAK");
        secret(self.dir.path(), "secret-key", "poweryard-sim-secret-key");
        let (dir, service, lines) = (self.dir.path().display(), self.service, &self.target_lines);
        let text = format!(
            "[queue]\ndatabase = \"{dir}/queue.db\"\n[batch]\nlinger = \"0ms\"\n[targets.{target}]\nservice = \"{service}\"\n\
             endpoint = \"{endpoint}\"\nproject_id = \"{PROJECT}\"\nallow_http = true\n{lines}\
             [targets.{target}.auth]\nkind = \"aksk\"\naccess_key_file = \"{dir}/access-key\"\nsecret_key_file = \"{dir}/secret-key\"\n"
        );
        let path = self.dir.path().join("poweryard.toml");
        fs::write(&path, text).expect("written");
        path
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings::load(&self.write_config()).expect("a valid config")
    }

    pub(crate) fn start(&self) -> Running {
        self.start_with(self.settings())
    }

    pub(crate) fn start_with(&self, settings: Settings) -> Running {
        self.start_reloading(settings).1
    }

    /// Also returns where new settings can be handed in.
    pub(crate) fn start_reloading(&self, settings: Settings) -> (mpsc::Sender<Reload>, Running) {
        let clouds = clouds(&settings);
        let (stop, stopped) = oneshot::channel();
        let (reloads, coming) = mpsc::channel(1);
        let daemon = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let links = Links {
                reloads: Some(coming),
                observers: Observers::default(),
            };
            runtime.block_on(daemon::run(&settings, clouds, links, async {
                let _ = stopped.await;
            }))
        });
        (reloads, Running { stop, daemon })
    }

    /// A producer's connection: another one than the daemon's.
    pub(crate) async fn producer(&self) -> SqliteConnection {
        let ends = Instant::now() + PATIENCE;
        while Instant::now() < ends {
            let options = SqliteConnectOptions::new()
                .filename(self.database())
                .busy_timeout(Duration::from_secs(5));
            // SQLite opens what it could not open to write once more, to read: were the file made
            // between the two, this producer could never insert.
            if self.database().exists()
                && let Ok(mut connection) = options.disable_statement_logging().connect().await
                && sqlx::query("SELECT 1 FROM power_requests LIMIT 1")
                    .fetch_optional(&mut connection)
                    .await
                    .is_ok()
            {
                return connection;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the daemon did not make its queue");
    }

    /// The power of every server by now.
    pub(crate) fn powers(&self) -> BTreeMap<String, OnOff> {
        self.cloud
            .servers()
            .into_iter()
            .map(|server| (server.server_id.to_string(), server.power))
            .collect()
    }

    pub(crate) fn server(&self, number: usize) -> String {
        self.cloud.server_ids(self.service)[number - 1].to_string()
    }

    /// The first `count` servers.
    pub(crate) fn servers(&self, count: usize) -> Vec<String> {
        let ids = self.cloud.server_ids(self.service);
        ids[..count].iter().map(ToString::to_string).collect()
    }
}

pub(crate) fn clouds(settings: &Settings) -> daemon::Clouds {
    daemon::connect_all(settings, &SecretRules::new(&settings.queue.database, None))
        .expect("secrets")
}

/// Begins on the queue of `settings` at this moment; the test makes the rounds.
pub(crate) async fn dispatcher(settings: &Settings, now: Now) -> Dispatcher {
    let store = Store::open(&settings.queue.database)
        .await
        .expect("a queue");
    Dispatcher::new(Arc::new(store), settings, clouds(settings), now)
        .await
        .expect("begun")
}

/// Hands new settings in; true if the daemon goes on with them.
pub(crate) async fn reload(reloads: &mpsc::Sender<Reload>, settings: Settings) -> bool {
    let (accepted, answer) = oneshot::channel();
    let reload = Reload {
        clouds: clouds(&settings),
        settings,
        is_asked_for: true,
        accepted,
    };
    assert!(reloads.send(reload).await.is_ok(), "the daemon has ended");
    answer.await.is_ok()
}

pub(crate) fn secret(dir: &Path, name: &str, content: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, content).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode set");
    path
}

pub(crate) async fn insert(connection: &mut SqliteConnection, server: &str, action: &str) -> i64 {
    sqlx::query("INSERT INTO power_requests (server_id, action) VALUES (?, ?)")
        .bind(server)
        .bind(action)
        .execute(connection)
        .await
        .expect("accepted")
        .last_insert_rowid()
}

pub(crate) async fn insert_many(
    connection: &mut SqliteConnection,
    servers: &[String],
    action: &str,
) {
    sqlx::query(
        "INSERT INTO power_requests (server_id, action) SELECT value, ?2 FROM json_each(?1)",
    )
    .bind(serde_json::to_string(servers).expect("text"))
    .bind(action)
    .execute(connection)
    .await
    .expect("accepted");
}

/// Waits until the first column of the first row is `wanted`.
pub(crate) async fn wait_for(connection: &mut SqliteConnection, sql: &str, wanted: &str) {
    let mut last = String::new();
    let ends = Instant::now() + PATIENCE;
    while Instant::now() < ends {
        last = text(connection, sql).await;
        if last == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!(
        "{sql}\n is '{last}' and not '{wanted}'; the queue holds\n{}",
        dump(connection).await
    );
}

/// The first column of the first row, as text; empty if there is none.
pub(crate) async fn text(connection: &mut SqliteConnection, sql: &str) -> String {
    let sql = format!("SELECT CAST(CAST(x AS TEXT) AS BLOB) FROM (SELECT ({sql}) AS x)");
    let bytes = sqlx::query_scalar::<_, Option<Vec<u8>>>(AssertSqlSafe(sql))
        .fetch_one(connection)
        .await;
    String::from_utf8_lossy(&bytes.expect("readable").unwrap_or_default()).into_owned()
}

/// Waits until every request is terminal, and returns `state/evidence/code` with their counts.
pub(crate) async fn outcomes(connection: &mut SqliteConnection) -> String {
    wait_for(connection, UNFINISHED, "0").await;
    text(
        connection,
        "SELECT group_concat(line, ', ') FROM (SELECT count(*) || ' ' || state || '/' || evidence || ifnull('/' || error_code, '') AS line
         FROM power_requests GROUP BY state, evidence, error_code ORDER BY state, evidence, error_code)",
    )
    .await
}

/// Carries out `sql`, of any number of statements.
pub(crate) async fn sql(connection: &mut SqliteConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(connection)
        .await
        .unwrap_or_else(|error| panic!("{sql}\n{error}"));
}

pub(crate) async fn dump(connection: &mut SqliteConnection) -> String {
    let requests = text(connection, "SELECT group_concat(line, char(10)) FROM (SELECT id || ' ' || server_id || ' ' || action || ' ' || state || ' ' || ifnull(gate, '-') || ' ' || ifnull(retry_at, '-') || ' ' || ifnull(error_message, '-') AS line FROM power_requests WHERE finished_at IS NULL LIMIT 20)").await;
    let batches = text(connection, "SELECT group_concat(line, char(10)) FROM (SELECT id || ' ' || action || ' ' || state || ' ' || ifnull(look_cause, '-') || ' ' || ifnull(next_look_at, '-') || ' ' || ifnull(error_message, '-') AS line FROM batches ORDER BY id DESC LIMIT 20)").await;
    let holds = text(
        connection,
        "SELECT group_concat(reason, char(10)) FROM holds",
    )
    .await;
    format!("{requests}\nbatches\n{batches}\nholds\n{holds}")
}

/// Runs statements with the write guard, which a producer does not take, in one transaction.
pub(crate) async fn by_hand(
    connection: &mut SqliteConnection,
    statements: &str,
) -> Result<(), sqlx::Error> {
    let sql = format!(
        "BEGIN IMMEDIATE; UPDATE queue_mark SET writing = token; {statements}; UPDATE queue_mark SET writing = NULL; COMMIT"
    );
    let done = sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(&mut *connection)
        .await;
    if done.is_err() {
        // What the failed statement left behind, if it left a transaction at all.
        let _ = sqlx::raw_sql("ROLLBACK").execute(connection).await;
    }
    done.map(|_| ())
}
