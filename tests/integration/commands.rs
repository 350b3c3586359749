//! The commands as users and scripts meet them: the real program on a real queue, its exit codes,
//! its JSON, its sentences.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use crate::common::process::poweryard;
use poweryard::model::UtcMillis;
use poweryard::store::QueueLock;
use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions};
use tempfile::TempDir;

const TIME: &str = "2026-01-31T22:00:00.000Z";

/// A fresh queue made by `db migrate`.
struct Queue {
    dir: TempDir,
}

/// What a command said.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn ids(&self) -> Vec<i64> {
        self.out
            .lines()
            .map(|line| line.parse().expect("an id a line"))
            .collect()
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Self {
            code: output.status.code(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

impl Queue {
    fn new() -> Self {
        let queue = Self {
            dir: tempfile::tempdir().expect("a folder"),
        };
        assert_eq!(queue.run(&["db", "migrate"]).code, Some(0));
        queue
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("queue.db")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = poweryard();
        command.args(args).arg("--database").arg(self.path());
        command
    }

    fn run(&self, args: &[&str]) -> Said {
        self.command(args).output().expect("it runs").into()
    }

    fn run_with_input(&self, args: &[&str], input: &str) -> Said {
        let mut child = self.spawn(args, Stdio::piped());
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(input.as_bytes())
            .expect("it reads");
        child.wait_with_output().expect("it ends").into()
    }

    fn spawn(&self, args: &[&str], stdin: Stdio) -> Child {
        let mut command = self.command(args);
        command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs")
    }

    /// Another client, as a producer or the daemon would be.
    async fn sql(&self, statements: &str) {
        let mut connection = self.connect().await;
        sqlx::raw_sql(AssertSqlSafe(statements.to_owned()))
            .execute(&mut connection)
            .await
            .expect("valid SQL");
    }

    /// With the write guard, which a producer does not take.
    async fn by_hand(&self, statements: &str) {
        self.sql(&format!("UPDATE queue_mark SET writing = token; {statements}; UPDATE queue_mark SET writing = NULL"))
            .await;
    }

    async fn connect(&self) -> SqliteConnection {
        SqliteConnectOptions::new()
            .filename(self.path())
            .connect()
            .await
            .expect("the queue opens")
    }

    /// Takes a queued request along as the daemon does: a batch, then in flight.
    async fn submit(&self, id: i64) {
        self.by_hand(&format!(
            "INSERT INTO batches (target, service, endpoint, project_id, action, state, server_count, intent_at, next_look_at)
             SELECT target, 'bms', 'https://example.test', 'p', action, 'submitting', 1, '{TIME}', '{TIME}'
             FROM power_requests WHERE id = {id};
             UPDATE power_requests SET state = 'running', gate = 'flight', submitted_at = '{TIME}', attempts = attempts + 1,
                 batch_id = (SELECT max(id) FROM batches) WHERE id = {id};"
        ))
        .await;
    }

    async fn run_job(&self, id: i64) {
        self.submit(id).await;
        self.by_hand(&format!(
            "UPDATE batches SET state = 'tracking', job_id = 'job-{id}', submitted_at = '{TIME}'
             WHERE id = (SELECT batch_id FROM power_requests WHERE id = {id});"
        ))
        .await;
    }

    async fn end(&self, id: i64, state: &str, evidence: &str) {
        self.by_hand(&format!(
            "UPDATE power_requests SET state = '{state}', evidence = '{evidence}', error_code = 'BMS.0040',
                 error_message = 'so it was', gate = NULL, finished_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
             WHERE id = {id};"
        ))
        .await;
    }

    /// One request that has ended in this way.
    async fn ended(
        &self,
        action: &str,
        server: &str,
        label: &str,
        state: &str,
        evidence: &str,
    ) -> i64 {
        let id = self
            .run(&["enqueue", action, server, "--label", label])
            .ids()[0];
        self.run_job(id).await;
        self.end(id, state, evidence).await;
        id
    }
}

#[test]
fn enqueue_prints_the_new_ids_one_a_line() {
    let queue = Queue::new();
    let said = queue.run(&[
        "enqueue",
        "stop",
        "server-1",
        "server-2",
        "--label",
        "night",
        "--priority",
        "-5",
    ]);
    assert_eq!((said.code, said.ids()), (Some(0), vec![1, 2]));
    let rows = queue.run(&["list", "--json"]).json();
    assert_eq!(rows[0]["id"], 2, "newest first");
    assert_eq!(
        (&rows[1]["server_id"], &rows[1]["action"]),
        (&"server-1".into(), &"stop".into())
    );
    assert_eq!(
        (&rows[1]["priority"], &rows[1]["requested_by"]),
        (&(-5).into(), &"alice".into())
    );
}

#[test]
fn enqueue_takes_all_servers_or_none_and_names_the_one_refused() {
    let queue = Queue::new();
    assert_eq!(
        queue
            .run(&["enqueue", "stop", "server-2", "server-9", "--key", "night"])
            .code,
        Some(0)
    );
    let again = queue.run(&["enqueue", "stop", "server-1", "server-2", "--key", "night"]);
    assert_eq!((again.code, again.out.as_str()), (Some(2), ""));
    assert!(
        again.err.contains("server-2")
            && again
                .err
                .contains("'night:server-2' is already used by request 1")
    );
    assert_eq!(
        queue
            .run(&["list", "--json"])
            .json()
            .as_array()
            .map(Vec::len),
        Some(2)
    );
    assert_eq!(
        queue.run(&["list", "--json"]).json()[1]["request_key"],
        "night:server-2"
    );
}

#[test]
fn a_key_means_the_same_for_one_server_and_for_many() {
    let queue = Queue::new();
    assert_eq!(
        queue
            .run(&["enqueue", "reboot", "server-1", "--key", "night"])
            .code,
        Some(0)
    );
    assert_eq!(
        queue.run(&["list", "--json"]).json()[0]["request_key"],
        "night:server-1"
    );
    let grown = [
        "enqueue", "reboot", "server-1", "server-2", "--key", "night",
    ];
    let refused = queue.run(&grown);
    assert_eq!(
        (refused.code, refused.out.as_str()),
        (Some(2), ""),
        "{refused:?}"
    );
    let said = queue.run(&[&grown[..], &["--if-absent"]].concat());
    assert_eq!((said.code, said.ids()), (Some(0), vec![1, 2]), "{said:?}");
    let again = queue.run(&[&grown[..], &["--if-absent"]].concat());
    assert_eq!(
        (again.code, again.ids()),
        (Some(0), vec![1, 2]),
        "{again:?}"
    );
    assert_eq!(
        queue
            .run(&["list", "--json"])
            .json()
            .as_array()
            .map(Vec::len),
        Some(2)
    );
}

#[test]
fn a_key_has_the_id_as_it_is_stored() {
    let queue = Queue::new();
    let plain = "616fb98f46ca475e917e2563e5a8cd19";
    queue.run(&["enqueue", "stop", plain, "--key", "night"]);
    let row = &queue.run(&["list", "--server", plain, "--json"]).json()[0];
    assert_eq!(row["server_id"], "616fb98f-46ca-475e-917e-2563e5a8cd19");
    assert_eq!(
        row["request_key"],
        "night:616fb98f-46ca-475e-917e-2563e5a8cd19"
    );
    let both = [
        "enqueue",
        "stop",
        plain,
        "616FB98F-46CA-475E-917E-2563E5A8CD19",
    ];
    assert!(queue.run(&both).err.contains("named twice"));
}

#[test]
fn a_key_is_the_same_however_its_server_is_spelt() {
    let queue = Queue::new();
    assert_eq!(
        queue
            .run(&["enqueue", "reboot", "Server-A", "--key", "night"])
            .ids(),
        [1]
    );
    let refused = queue.run(&["enqueue", "reboot", "server-a", "--key", "night"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    let again = [
        "enqueue",
        "reboot",
        "SERVER-A",
        "server-b",
        "--key",
        "night",
        "--if-absent",
    ];
    assert_eq!(queue.run(&again).ids(), [1, 2]);
    queue.run(&["cancel", "1"]);
    assert_eq!(queue.run(&again).ids(), [1, 2], "also once it has ended");
    assert_eq!(
        queue
            .run(&["enqueue", "reboot", "SERVER-A", "--key", "Night"])
            .ids(),
        [3],
        "that is another key"
    );
}

#[test]
fn another_word_for_an_action_is_never_hinted_as_another_action() {
    let queue = Queue::new();
    for (word, hint) in [
        ("restart", "use reboot"),
        ("off", "use stop"),
        ("shutdown", "use stop"),
        ("on", "use start"),
    ] {
        let said = queue.run(&["enqueue", word, "server-1"]);
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(
            said.err.contains(hint) && !said.err.contains("similar"),
            "{said:?}"
        );
    }
    assert!(
        queue
            .run(&["enqueue", "cycle", "server-1"])
            .err
            .contains("use power-cycle")
    );
}

#[tokio::test]
async fn a_target_that_nobody_has_is_warned_of_at_once() {
    let queue = Queue::new();
    assert_eq!(
        queue
            .run(&["enqueue", "stop", "server-1", "--target", "tpyo"])
            .err,
        "",
        "nothing is known yet"
    );
    queue
        .by_hand(&format!("INSERT INTO targets (target, service, endpoint, project_id, submits_per_minute, pace_per_minute, throttles, updated_at) VALUES ('tokyo', 'bms', 'https://example.test', 'p', 50, 50, 0, '{TIME}');"))
        .await;
    for args in [
        &["enqueue", "stop", "server-1", "--target", "tpyo"][..],
        &["pause", "--target", "tpyo"],
    ] {
        let said = queue.run(args);
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(
            said.err.contains(
                "no target tpyo in the config, so its requests are held; known targets: tokyo"
            ),
            "{said:?}"
        );
    }
    assert_eq!(
        queue
            .run(&["enqueue", "stop", "server-1", "--target", "tokyo"])
            .err,
        ""
    );
}

#[test]
fn requested_by_is_the_login_name_where_the_environment_has_none() {
    let queue = Queue::new();
    let mut command = queue.command(&["enqueue", "stop", "server-1"]);
    assert!(
        command
            .env_remove("USER")
            .status()
            .expect("it runs")
            .success()
    );
    let users = fs::read_to_string("/etc/passwd").expect("a list of users");
    let by = queue.run(&["list", "--json"]).json()[0]["requested_by"].clone();
    let by = by.as_str().expect("a name");
    assert!(
        users.lines().any(|line| line.split(':').next() == Some(by)),
        "{by}"
    );
}

#[tokio::test]
async fn the_widest_label_leaves_every_line_of_a_list_short() {
    let queue = Queue::new();
    let labels = [
        "printf('%256s', 'x')",
        "replace(printf('%256s', ''), ' ', char(27))",
        "replace(printf('%256s', ''), ' ', '電')",
    ];
    for label in labels {
        queue
            .sql(&format!("INSERT INTO power_requests (server_id, action, label) VALUES ('server-1', 'stop', {label})"))
            .await;
    }
    // An older program, or one that turns checks off, may have left more.
    queue
        .sql(
            "DROP TRIGGER power_requests_check_update; PRAGMA ignore_check_constraints = ON;
             UPDATE power_requests SET label = printf('%.*c', 65536, 'x') WHERE id = 1;",
        )
        .await;
    let said = queue.run(&["list"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.out.contains('…') && said.out.lines().all(|line| line.chars().count() < 170),
        "{said:?}"
    );
    assert_eq!(
        queue.run(&["show", "1", "--json"]).json()["label"]
            .as_str()
            .map(str::len),
        Some(65_536)
    );
}

#[tokio::test]
async fn a_status_tells_a_long_reason_once_and_in_short_lines() {
    let queue = Queue::new();
    let reason = "the cloud refuses the credentials ".repeat(9);
    queue
        .by_hand(&format!(
            "INSERT INTO targets (target, service, endpoint, project_id, submits_per_minute, pace_per_minute, throttles, updated_at) VALUES ('default', 'bms', 'https://example.test', 'p', 50, 25, 1, '{TIME}');
             INSERT INTO holds (target, kind, reason, since) VALUES ('default', 'credentials', '{reason}', '{TIME}');"
        ))
        .await;
    let status = queue.run(&["status"]).out;
    assert!(
        status.lines().all(|line| line.chars().count() <= 130),
        "{status}"
    );
    let words = status.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(
        words.matches("the cloud refuses the credentials").count(),
        9,
        "{status}"
    );
}

#[test]
fn enqueue_reads_servers_from_a_file_or_stdin() {
    let queue = Queue::new();
    let said = queue.run_with_input(
        &["enqueue", "start", "--from-file", "-"],
        "# rack 7\n\nserver-1\r\nserver-2 # b\n",
    );
    assert_eq!((said.code, said.ids()), (Some(0), vec![1, 2]));
    let bad = queue.run_with_input(
        &["enqueue", "start", "--from-file", "-"],
        "server-3\nserver_4\n",
    );
    assert_eq!(bad.code, Some(2));
    assert!(
        bad.err.contains("stdin:2") && bad.err.contains("server_4"),
        "{}",
        bad.err
    );
    let missing = queue.run(&["enqueue", "start", "--from-file", "/no/such/list"]);
    assert_eq!(missing.code, Some(2));
    assert!(
        missing.err.contains("/no/such/list: caused by"),
        "{}",
        missing.err
    );
}

#[test]
fn a_long_list_goes_in_whole() {
    let queue = Queue::new();
    let list: String = (0..1234)
        .map(|number| format!("server-{number}\n"))
        .collect();
    let said = queue.run_with_input(&["enqueue", "start", "--from-file", "-"], &list);
    assert_eq!(said.ids(), (1..=1234).collect::<Vec<_>>());
    assert_eq!(
        queue
            .run(&["list", "--server", "server-1233", "--json"])
            .json()[0]["id"],
        1234
    );
}

#[test]
fn whatever_is_wrong_in_a_request_is_exit_code_2_in_one_sentence() {
    let queue = Queue::new();
    let wrong: &[(&[&str], &str)] = &[
        (&["enqueue", "halt", "server-1"], "invalid value 'halt'"),
        (&["enqueue", "stop"], "no server given"),
        (&["enqueue", "stop", "server 1"], "'server 1'"),
        (&["enqueue", "stop", "server-1", "SERVER-1"], "named twice"),
        (
            &["enqueue", "stop", "server-1", "--priority", "101"],
            "--priority",
        ),
        (
            &["enqueue", "stop", "server-1", "--target", "eu west"],
            "--target must be",
        ),
        (
            &["enqueue", "stop", "server-1", "--not-before", "22:00"],
            "--not-before 22:00: write a time",
        ),
        (
            &["enqueue", "stop", "server-1", "--not-before", "+2 parsecs"],
            "--not-before",
        ),
        (
            &["enqueue", "stop", "server-1", "--expires-at", "2025-01-01"],
            "--expires-at must be later",
        ),
        (
            &["enqueue", "stop", "server-1", "--after", "99"],
            "--after must be",
        ),
        (
            &["enqueue", "stop", "server-1", "--priority", "high"],
            "whole number",
        ),
        (&["enqueue", "stop", "server-1", "--key", ""], "--key"),
        (&["enqueue", "stop", "server-1", "--if-absent"], "--key"),
        (&["wait", "--label", "nihgt"], "no request has the label"),
        (&["show", "99"], "no request 99"),
        (&["explain", "99"], "no request 99"),
        (&["wait", "99"], "no request 99"),
        (&["cancel", "99"], "no request 99"),
        (&["retry", "99"], "no request 99"),
        (&["cancel"], "required"),
        (&["retry"], "required"),
        (&["retry", "--label", "x", "--state", "running"], "running"),
        (&["wait", "--since", "yesterday"], "yesterday"),
        (&["list", "--state", "gone"], "gone"),
    ];
    for (args, what) in wrong {
        let said = queue.run(args);
        assert_eq!(said.code, Some(2), "{args:?}: {said:?}");
        assert!(
            said.err.contains(what) && said.out.is_empty(),
            "{args:?}: {said:?}"
        );
    }
    assert_eq!(
        queue.run(&["list", "--json"]).json(),
        Value::Array(Vec::new())
    );
}

#[test]
fn a_relative_time_is_counted_from_now() {
    let queue = Queue::new();
    let said = queue.run(&[
        "enqueue",
        "stop",
        "server-1",
        "--not-before",
        "+2h",
        "--expires-at",
        "3h",
    ]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let row = &queue.run(&["list", "--json"]).json()[0];
    let time = |name: &str| {
        row[name]
            .as_str()
            .expect("a time")
            .parse::<UtcMillis>()
            .expect("the queue's form")
    };
    assert_eq!(
        time("expires_at")
            .since(time("not_before"))
            .as_secs()
            .div_ceil(60),
        60
    );
}

#[test]
fn files_that_are_no_queue_are_exit_code_3_and_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let missing = dir.path().join("missing.db");
    let text = dir.path().join("text.db");
    fs::write(
        &text,
        "this is not a database, however long it may be".repeat(100),
    )
    .expect("written");
    for file in [&missing, &text, &dir.path().to_owned()] {
        let said = Said::from(
            poweryard()
                .args(["list", "--database"])
                .arg(file)
                .output()
                .expect("it runs"),
        );
        assert_eq!(said.code, Some(3), "{said:?}");
        assert!(said.err.contains(&file.display().to_string()), "{said:?}");
    }
    assert!(!missing.exists(), "a command creates no queue");
}

#[tokio::test]
async fn foreign_and_other_schemas_are_exit_code_3() {
    let queue = Queue::new();
    queue
        .by_hand("UPDATE _sqlx_migrations SET version = 9999")
        .await;
    assert_eq!(queue.run(&["status"]).code, Some(3));
    queue
        .by_hand("UPDATE _sqlx_migrations SET version = 0")
        .await;
    let older = queue.run(&["status"]);
    assert!(
        older.code == Some(3) && older.err.contains("db migrate"),
        "{older:?}"
    );
    queue.sql("PRAGMA application_id = 7").await;
    let foreign = queue.run(&["status"]);
    assert!(
        foreign.code == Some(3) && foreign.err.contains("another program's"),
        "{foreign:?}"
    );
}

#[test]
fn without_a_config_a_command_ends_with_78_and_names_the_way_out() {
    let said = Said::from(
        poweryard()
            .args(["--config", "/no/such.toml", "list"])
            .output()
            .expect("it runs"),
    );
    assert_eq!(said.code, Some(78));
    assert!(
        said.err.contains("/no/such.toml") && said.err.contains("--database"),
        "{said:?}"
    );
    let dir = tempfile::tempdir().expect("a folder");
    let config = dir.path().join("poweryard.toml");
    fs::write(&config, "[queue]\ndatabse = \"/q\"\n").expect("written");
    let said = Said::from(
        poweryard()
            .env("POWERYARD_CONFIG", &config)
            .arg("list")
            .output()
            .expect("it runs"),
    );
    assert!(
        said.code == Some(78) && said.err.contains("databse"),
        "{said:?}"
    );
}

#[test]
fn migrate_refuses_while_a_daemon_runs() {
    let queue = Queue::new();
    let lock = QueueLock::take(&queue.path(), UtcMillis(0)).expect("nobody else");
    let said = queue.run(&["db", "migrate"]);
    assert_eq!(said.code, Some(5));
    let advice = format!("stop it first (pid {})", std::process::id());
    assert!(said.err.contains(&advice), "{said:?}");
    let status = queue.run(&["status", "--json"]).json();
    assert_eq!(
        (&status["daemon"]["running"], &status["daemon"]["pid"]),
        (&true.into(), &std::process::id().into())
    );
    drop(lock);
    assert_eq!(queue.run(&["db", "migrate"]).code, Some(0));
}

#[tokio::test]
async fn a_foreign_value_never_stops_a_list() {
    let queue = Queue::new();
    queue
        .sql(
            "INSERT INTO power_requests (server_id, action, label, requested_by, request_key)
             VALUES ('server-1', 'stop', CAST(x'ff1b5b324a' AS TEXT), CAST(x'c3' AS TEXT), CAST(x'6bff' AS TEXT));
             INSERT INTO holds (kind, reason, since) VALUES ('operator', CAST(x'ff' AS TEXT), 'last tuesday');",
        )
        .await;
    for args in [
        &["list"][..],
        &["list", "--json"],
        &["show", "1"],
        &["explain", "1"],
        &["status"],
    ] {
        let said = queue.run(args);
        assert!(
            said.code == Some(0) && said.out.contains("server-1") | said.out.contains("stop"),
            "{said:?}"
        );
        assert!(
            !said.out.contains('\u{1b}'),
            "a label steers no terminal: {said:?}"
        );
    }
    assert_eq!(
        queue.run(&["list", "--json"]).json()[0]["label"],
        "\u{fffd}\u{1b}[2J"
    );
}

#[test]
fn list_filters_and_limits() {
    let queue = Queue::new();
    queue.run(&["enqueue", "stop", "server-1", "server-2", "--label", "a"]);
    queue.run(&[
        "enqueue", "start", "server-3", "--label", "b", "--target", "eu",
    ]);
    queue.run(&["cancel", "2"]);
    let ids = |args: &[&str]| {
        let said = queue.run(&[&["list", "--json"], args].concat()).json();
        said.as_array()
            .expect("an array")
            .iter()
            .map(|row| row["id"].as_i64().expect("an id"))
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&[]), [3, 2, 1]);
    assert_eq!(ids(&["--limit", "1"]), [3]);
    assert_eq!(ids(&["--state", "queued"]), [3, 1]);
    assert_eq!(
        ids(&["--state", "queued,cancelled", "--label", "a"]),
        [2, 1]
    );
    assert_eq!(ids(&["--target", "eu"]), [3]);
    assert_eq!(ids(&["--server", "SERVER-2"]), [2]);
    assert_eq!(ids(&["--state", "failed"]), Vec::<i64>::new());
}

#[tokio::test]
async fn show_has_the_columns_the_attempts_and_the_batch() {
    let queue = Queue::new();
    queue.run(&["enqueue", "stop", "server-1"]);
    queue.run_job(1).await;
    let shown = queue.run(&["show", "1", "--json"]).json();
    assert_eq!(
        (&shown["state"], &shown["server_id"]),
        (&"running".into(), &"server-1".into())
    );
    assert_eq!(shown["attempts"][0]["batch_id"], 1);
    assert_eq!(
        (&shown["attempt_count"], &shown["batch"]["job_id"]),
        (&1.into(), &"job-1".into())
    );
    assert!(queue.run(&["show", "1"]).out.contains("job-1"));
}

#[tokio::test]
async fn explain_follows_a_request_from_queue_to_end() {
    let queue = Queue::new();
    queue.run(&["enqueue", "stop", "server-1"]);
    queue.run(&["enqueue", "start", "server-1"]);
    queue.run(&["pause"]);
    let held = queue.run(&["explain", "1"]).out;
    assert!(
        held.contains("held") && held.contains("alice") && held.contains("poweryard resume"),
        "{held}"
    );
    assert!(held.contains("No daemon runs"), "{held}");
    assert!(
        queue
            .run(&["explain", "2"])
            .out
            .contains("behind request 1")
    );
    queue.run_job(1).await;
    let running = queue.run(&["explain", "1", "--json"]).json();
    assert!(
        running["explanation"].to_string().contains("job-1"),
        "{running}"
    );
    queue.end(1, "failed", "job").await;
    let failed = queue.run(&["explain", "1"]).out;
    assert!(
        failed.contains("BMS.0040: so it was") && failed.contains("poweryard retry 1"),
        "{failed}"
    );
}

#[tokio::test]
async fn status_counts_what_is_unfinished_and_says_what_could_go() {
    let queue = Queue::new();
    let empty = queue.run(&["status", "--json"]);
    assert_eq!(
        (empty.code, &empty.json()["daemon"]["running"]),
        (Some(0), &false.into())
    );
    queue.run(&["enqueue", "stop", "server-1", "server-2", "server-3"]);
    queue.run_job(1).await;
    queue
        .by_hand(&format!(
            "INSERT INTO targets (target, service, endpoint, project_id, submits_per_minute, pace_per_minute, throttles, updated_at) VALUES ('default', 'bms', 'https://example.test', 'p', 50, 25, 1, '{TIME}');
             INSERT INTO holds (target, kind, reason, since) VALUES ('default', 'breaker', 'cannot be reached', '{TIME}');
             DROP TRIGGER batches_check_update;
             UPDATE batches SET intent_steady_ms = strftime('%s', 'now') * 1000;"
        ))
        .await;
    let status = queue.run(&["status", "--json"]).json();
    assert_eq!(status["queue"].as_array().map(Vec::len), Some(2));
    assert_eq!(status["oldest_ready"], Value::Null, "all of it is held");
    assert_eq!(status["batches"][0]["job_id"], "job-1");
    let target = &status["targets"][0];
    assert_eq!(
        (&target["pace_per_minute"], &target["calls_last_minute"]),
        (&25.into(), &1.into())
    );
    assert_eq!(target["breaker"]["reason"], "cannot be reached");
    queue.by_hand("DELETE FROM holds").await;
    assert_eq!(
        queue.run(&["status", "--json"]).json()["oldest_ready"]["id"],
        2
    );
    assert!(
        queue
            .run(&["status"])
            .out
            .contains("oldest request that can be sent: 2")
    );
}

#[tokio::test]
async fn wait_ends_with_the_outcome() {
    let queue = Queue::new();
    assert_eq!(queue.run(&["wait"]).code, Some(0), "nothing to wait for");
    let good = queue
        .ended("stop", "server-1", "good", "succeeded", "job")
        .await
        .to_string();
    let bad = queue
        .ended("stop", "server-2", "bad", "failed", "job")
        .await
        .to_string();
    assert_eq!(queue.run(&["wait", &good]).code, Some(0));
    let said = queue.run(&["wait", &good, &bad, "--json"]);
    assert_eq!(said.code, Some(1));
    let said = said.json();
    assert_eq!(
        (&said["requests"], &said["succeeded"], &said["timed_out"]),
        (&2.into(), &1.into(), &false.into())
    );
    assert_eq!(said["others"][0]["error_code"], "BMS.0040");
    assert_eq!(
        queue.run(&["wait", "--label", "bad"]).code,
        Some(1),
        "what has ended counts"
    );
    let after = queue.run(&[
        "wait",
        "--label",
        "bad",
        "--since",
        "2090-01-01t00:00 +0100",
    ]);
    assert!(
        after.code == Some(0) && after.out.contains("nothing to wait for"),
        "{after:?}"
    );
    assert_eq!(
        queue.run(&["wait", "--label", "bad", "--since", "1h"]).code,
        Some(1)
    );
    queue
        .ended("stop", "server-2", "bad", "succeeded", "job")
        .await;
    assert_eq!(
        queue.run(&["wait", "--label", "bad"]).code,
        Some(0),
        "the newest of each server counts"
    );
    queue.run(&["enqueue", "stop", "server-3", "--label", "slow"]);
    let late = queue.run(&["wait", "--label", "slow", "--timeout", "1ms"]);
    assert!(
        late.code == Some(4) && late.out.contains("timed out"),
        "{late:?}"
    );
}

#[tokio::test]
async fn wait_says_what_changes_and_why_nothing_moves() {
    let queue = Queue::new();
    queue.run(&["pause", "--reason", "rack 7 is being moved"]);
    let mut child = queue.spawn(&["enqueue", "stop", "server-1", "--wait"], Stdio::null());
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let mut next = || lines.next().expect("a line").expect("UTF-8");
    assert_eq!(next(), "1 queued");
    assert!(next().starts_with("no daemon runs on this queue"));
    let why = next();
    assert!(
        why.starts_with("not sent yet: held: ") && why.ends_with("rack 7 is being moved"),
        "{why}"
    );
    queue.run_job(1).await;
    assert_eq!(next(), "1 running");
    queue.end(1, "failed", "job").await;
    assert_eq!(child.wait().expect("it ends").code(), Some(1));
}

#[test]
fn cancelling_a_label_that_nobody_has_says_so() {
    let queue = Queue::new();
    queue.run(&["enqueue", "stop", "server-1", "--label", "night"]);
    let said = queue.run(&["cancel", "--label", "nihgt"]);
    assert!(
        said.code == Some(0) && said.err.contains("\"nihgt\""),
        "{said:?}"
    );
    let said = queue.run(&["cancel", "--label", "night"]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
}

#[tokio::test]
async fn enqueue_wait_follows_its_own_requests() {
    let queue = Queue::new();
    let mut child = queue.spawn(&["enqueue", "stop", "server-1", "--wait"], Stdio::null());
    let mut id = String::new();
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    out.read_line(&mut id).expect("an id");
    let id: i64 = id.trim().parse().expect("an id");
    queue.run_job(id).await;
    queue.end(id, "succeeded", "job").await;
    let mut err = String::new();
    child
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut err)
        .expect("UTF-8");
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    assert!(err.contains("succeeded"), "{err}");
}

#[tokio::test]
async fn cancel_withdraws_what_is_queued_and_says_what_is_not() {
    let queue = Queue::new();
    queue.run(&[
        "enqueue", "stop", "server-1", "server-2", "server-3", "--label", "a",
    ]);
    queue.run_job(1).await;
    let said = queue.run(&["cancel", "1", "2"]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.out.contains("cancelled 1 request") && said.out.contains("request 1 could not"),
        "{said:?}"
    );
    assert_eq!(
        queue.run(&["cancel", "3", "99"]).code,
        Some(2),
        "an unknown id spoils the whole call"
    );
    let rest = queue.run(&["cancel", "--label", "a", "--json"]);
    assert_eq!(
        (rest.code, &rest.json()["cancelled"]),
        (Some(0), &vec![3].into())
    );
    assert_eq!(queue.run(&["cancel", "3"]).code, Some(0), "it is as wished");
    assert_eq!(
        queue.run(&["show", "3", "--json"]).json()["error_code"],
        "poweryard.cancelled"
    );
}

#[tokio::test]
async fn retry_copies_failed_requests_and_leaves_doubtful_reboots_alone() {
    let queue = Queue::new();
    let failed = queue.ended("stop", "server-1", "a", "failed", "job").await;
    let replaced = queue.ended("stop", "server-2", "a", "failed", "job").await;
    let good = queue
        .ended("start", "server-2", "a", "succeeded", "job")
        .await;
    let doubtful = queue
        .ended("reboot", "server-3", "a", "unknown", "none")
        .await;
    let said = queue.run(&["retry", "--label", "a", "--json"]);
    assert_eq!(said.code, Some(0));
    let said = said.json();
    assert_eq!(
        said["inserted"],
        serde_json::json!([{ "id": doubtful + 1, "retry_of": failed }])
    );
    assert_eq!(said["skipped"][0]["id"], replaced);
    let new = queue
        .run(&["show", &(doubtful + 1).to_string(), "--json"])
        .json();
    assert_eq!(
        (&new["server_id"], &new["label"], &new["state"]),
        (&"server-1".into(), &"a".into(), &"queued".into())
    );

    let by_state = queue.run(&["retry", "--label", "a", "--state", "unknown"]);
    assert!(
        by_state.out.is_empty() && by_state.err.contains("may have happened"),
        "{by_state:?}"
    );
    assert_eq!(
        queue.run(&["retry", &doubtful.to_string()]).ids(),
        [doubtful + 2]
    );
    let refused = queue.run(&["retry", &good.to_string()]);
    assert!(
        refused.out.is_empty() && refused.err.contains("ended as succeeded"),
        "{refused:?}"
    );
}

#[test]
fn a_pause_stores_who_and_why_and_explain_names_what_ends_it() {
    let queue = Queue::new();
    queue.run(&["enqueue", "stop", "server-1"]);
    assert_eq!(
        queue
            .run(&["pause", "--action", "stop", "--reason", "rack 7 moves"])
            .code,
        Some(0)
    );
    assert!(
        queue
            .run(&["pause", "--action", "stop"])
            .out
            .contains("already paused")
    );
    let hold = queue.run(&["status", "--json"]).json()["holds"][0].clone();
    assert_eq!(
        (&hold["kind"], &hold["action"]),
        (&"operator".into(), &"stop".into())
    );
    assert_eq!(
        hold["reason"],
        "stop on every target paused by alice: rack 7 moves"
    );
    let explained = queue.run(&["explain", "1"]).out;
    assert!(
        explained.contains("`poweryard resume --action stop`"),
        "{explained}"
    );
    assert_eq!(explained.matches("rack 7 moves").count(), 1, "{explained}");
}

#[test]
fn a_resume_ends_the_pause_of_the_same_words_and_names_the_others() {
    let pauses: &[&[&str]] = &[
        &[],
        &["--target", "eu"],
        &["--action", "stop"],
        &["--target", "eu", "--action", "stop"],
    ];
    for own in pauses {
        let queue = Queue::new();
        for scope in pauses {
            queue.run(&[&["pause"], *scope].concat());
        }
        let said = queue.run(&[&["resume"], *own].concat());
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(
            said.out.contains("resumed: ") && said.out.matches("still paused: ").count() == 3,
            "{said:?}"
        );
        // Now there is nothing of its own to end.
        let again = queue.run(&[&["resume"], *own].concat());
        assert_eq!(again.code, Some(0), "{again:?}");
        assert!(
            again.out.contains("nothing to resume: ")
                && again.out.matches("still paused: ").count() == 3,
            "{again:?}"
        );
        assert_eq!(
            queue.run(&["status", "--json"]).json()["holds"]
                .as_array()
                .map(Vec::len),
            Some(3)
        );
        assert!(
            queue
                .run(&["resume", "--all"])
                .out
                .contains("3 pauses ended")
        );
        assert!(
            queue
                .run(&["resume", "--all"])
                .out
                .contains("nothing was paused")
        );
        assert_eq!(
            queue.run(&["status", "--json"]).json()["holds"]
                .as_array()
                .map(Vec::len),
            Some(0)
        );
    }
}

#[tokio::test]
async fn a_resume_ends_only_what_an_operator_holds() {
    let queue = Queue::new();
    queue
        .by_hand(&format!(
            "INSERT INTO holds (target, kind, reason, since) VALUES ('default', 'credentials', 'refused', '{TIME}')"
        ))
        .await;
    queue.run(&["pause", "--target", "default"]);
    let said = queue.run(&["resume", "--all"]);
    assert!(
        said.code == Some(0) && said.out.contains("1 pause ended"),
        "{said:?}"
    );
    assert_eq!(
        queue.run(&["status", "--json"]).json()["holds"][0]["kind"],
        "credentials"
    );
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let queue = Queue::new();
    let list: String = (0..3000)
        .map(|number| format!("server-{number}\n"))
        .collect();
    queue.run_with_input(&["enqueue", "start", "--from-file", "-"], &list);
    let mut child = queue.spawn(&["list", "--limit", "3000"], Stdio::null());
    drop(child.stdout.take());
    let mut err = String::new();
    child
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut err)
        .expect("UTF-8");
    assert_eq!(
        (child.wait().expect("it ends").code(), err.as_str()),
        (Some(0), "")
    );
}

#[test]
fn simulate_prints_its_address_passes_check_and_ends_on_sigterm() {
    let mut simulated = poweryard()
        .arg("simulate")
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut url = String::new();
    BufReader::new(simulated.stdout.take().expect("piped"))
        .read_line(&mut url)
        .expect("a line");
    let said = Files {
        endpoint: url.trim(),
        ..Files::default()
    }
    .check(&["--online"]);
    let pid = simulated.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .expect("kill runs")
            .success()
    );
    assert_eq!(simulated.wait().expect("it ends").code(), Some(0));
    let findings = said.json();
    let levels: Vec<_> = findings
        .as_array()
        .expect("an array")
        .iter()
        .map(|finding| &finding["level"])
        .collect();
    assert!(
        said.code == Some(0) && !levels.contains(&&"error".into()),
        "{findings:#}"
    );
    assert!(
        findings.to_string().contains("a read call was accepted"),
        "{findings:#}"
    );
    assert!(findings.to_string().contains("clock"), "{findings:#}");
}

#[test]
fn a_bad_scenario_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("scenario.toml");
    fs::write(&file, "weather = \"rain\"\n").expect("written");
    let said = Said::from(
        poweryard()
            .args(["simulate", "--scenario"])
            .arg(&file)
            .output()
            .expect("it runs"),
    );
    assert!(
        said.code == Some(2) && said.err.contains("scenario.toml") && said.err.contains("weather"),
        "{said:?}"
    );
}

#[test]
fn check_finds_an_open_secret_and_an_endpoint_that_is_not_there() {
    let open = Files {
        secret_mode: 0o644,
        ..Files::default()
    }
    .check(&[]);
    assert_eq!(open.code, Some(78));
    let findings = open.json();
    let error = findings
        .as_array()
        .expect("an array")
        .iter()
        .find(|finding| finding["level"] == "error");
    let error = error.expect("an error");
    assert!(
        error["subject"].to_string().contains("secret_key_file") && error["mend"].is_string(),
        "{error:#}"
    );
    let dead = Files::default().check(&["--online"]);
    assert_eq!(dead.code, Some(78), "{dead:?}");
    let said = Said::from(
        poweryard()
            .args(["--config", "/no/such.toml", "check"])
            .output()
            .expect("it runs"),
    );
    assert!(
        said.code == Some(78) && said.out.contains("/no/such.toml"),
        "{said:?}"
    );
}

#[test]
fn check_finds_a_taken_port_and_serve_says_it_serves_only_when_it_can() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let listen = format!(
        "[listen]\naddress = \"{}\"\n",
        taken.local_addr().expect("its address")
    );
    let files = Files {
        listen: &listen,
        ..Files::default()
    };
    let said = files.check(&[]);
    assert_eq!(said.code, Some(78), "{said:?}");
    let findings = said.json();
    let error = findings
        .as_array()
        .expect("an array")
        .iter()
        .find(|finding| finding["level"] == "error");
    assert_eq!(error.expect("an error")["subject"], "listen.address");
    drop(taken);
    assert_eq!(files.check(&[]).code, Some(0), "the port is free again");
    // The daemon cannot start, so it serves nothing: the port is not even tried.
    let wrong = Files {
        access_key: "\"POWERYARDSIMAK\"",
        ..files
    };
    let said = wrong.serve();
    assert!(
        said.code == Some(78) && said.err.contains("quotes") && !said.err.contains("serving"),
        "{said:?}"
    );
}

#[test]
fn check_and_serve_refuse_what_no_key_can_be_without_showing_it() {
    for access_key in [
        "\u{feff}POWERYARDSIMAK",
        "'POWERYARDSIMAK'",
        "HW_ACCESS_KEY=POWERYARDSIMAK",
        " POWERYARDSIMAK",
        "POWERYARD\u{200b}SIMAK",
        "POWERYARDSIMAK\nsecret",
        "{\"ak\": \"POWERYARDSIMAK\"}",
        "",
    ] {
        let files = Files {
            access_key,
            ..Files::default()
        };
        for said in [files.check(&[]), files.serve()] {
            assert_eq!(said.code, Some(78), "{access_key:?}: {said:?}");
            let text = format!("{}{}", said.out, said.err);
            assert!(
                text.contains("access_key_file") && !text.contains("SIMAK"),
                "{access_key:?}: {text}"
            );
        }
    }
    assert_eq!(Files::default().check(&[]).code, Some(0));
}

#[test]
fn a_missing_folder_is_to_be_created_with_the_right_mode() {
    let said = Said::from(
        poweryard()
            .args(["db", "migrate", "--database", "/no/such/queue.db"])
            .output()
            .expect("it runs"),
    );
    assert!(
        said.code == Some(3)
            && said
                .err
                .contains("create the folder /no/such with mode 3770"),
        "{said:?}"
    );
}

/// What `check` and `serve` read: the simulated cloud's default keys, unless a test says otherwise.
#[derive(Clone, Copy)]
struct Files<'a> {
    endpoint: &'a str,
    access_key: &'a str,
    secret_mode: u32,
    listen: &'a str,
}

impl Default for Files<'_> {
    fn default() -> Self {
        Self {
            endpoint: "http://127.0.0.1:9",
            access_key: "POWERYARDSIMAK\n",
            secret_mode: 0o600,
            listen: "",
        }
    }
}

impl Files<'_> {
    /// Runs `check --json` on a queue of its own.
    fn check(&self, args: &[&str]) -> Said {
        self.run(&[&["check", "--json"], args].concat())
    }

    /// Runs a `serve` that ends by itself.
    fn serve(&self) -> Said {
        self.run(&["serve"])
    }

    fn run(&self, args: &[&str]) -> Said {
        let queue = Queue::new();
        let secret = |name: &str, content: &str, mode| {
            let path = queue.dir.path().join(name);
            fs::write(&path, content).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode");
            path.display().to_string()
        };
        let config = format!(
            "[queue]\ndatabase = {:?}\n[targets.default]\nservice = \"bms\"\nendpoint = {:?}\nallow_http = true\n\
             project_id = \"bbf1946d374b44a0a2a95533562ba954\"\n[targets.default.auth]\nkind = \"aksk\"\n\
             access_key_file = {:?}\nsecret_key_file = {:?}\n{}",
            queue.path(),
            self.endpoint,
            secret("ak", self.access_key, 0o600),
            secret("sk", "poweryard-sim-secret-key", self.secret_mode),
            self.listen,
        );
        let path = queue.dir.path().join("poweryard.toml");
        fs::write(&path, config).expect("written");
        poweryard()
            .arg("--config")
            .arg(path)
            .args(args)
            .output()
            .expect("it runs")
            .into()
    }
}
