//! What `plan`, the questions of commands and the dry run say of the future, judged by what the
//! daemon then does, by rows, and by what the simulated cloud was called for.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Output, Stdio};
use std::time::Duration;

use crate::common::process::{self, poweryard, until};
use crate::common::scene;
use crate::common::{Yard, by_hand, insert_many, outcomes, sql, text};
use poweryard::daemon::{self, ForecastQuery, Outlook};
use poweryard::model::PowerAction;
use poweryard::store::QueueClient;
use poweryard::store::client::{Access, AskedFor};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;
use sqlx::{AssertSqlSafe, SqliteConnection};

const QUICK: &str = "[bms]\nservers = 60\nrunning = 1.0\noperation_ms = [10, 40]\n";

/// A queue and a config, and nobody who sends.
async fn quiet(lines: &[&str]) -> (Yard, SqliteConnection) {
    let mut yard = Yard::new(QUICK).await;
    lines.iter().for_each(|line| yard.set(line));
    let migrated = command(&yard, &["db", "migrate"]).await;
    assert!(migrated.status.success(), "{migrated:?}");
    let producer = yard.producer().await;
    (yard, producer)
}

/// A command that reads the config.
async fn command(yard: &Yard, args: &[&str]) -> Output {
    let config = yard.write_config();
    let mut command = poweryard();
    command.arg("--config").arg(config).args(args);
    let ran = tokio::task::spawn_blocking(move || command.output());
    ran.await.expect("joined").expect("it runs")
}

/// The same with the queue alone.
async fn command_on_queue(yard: &Yard, args: &[&str]) -> Output {
    let mut command = poweryard();
    command.args(args).arg("--database").arg(yard.database());
    let ran = tokio::task::spawn_blocking(move || command.output());
    ran.await.expect("joined").expect("it runs")
}

fn said(output: &Output) -> String {
    // Sentences are broken into lines.
    let all = process::said(output);
    all.split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn plan(yard: &Yard, args: &[&str]) -> Value {
    let output = command(yard, &[&["plan", "--json"], args].concat()).await;
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// What the daemon's own forecast says of the queue.
async fn outlook(yard: &Yard) -> Outlook {
    let settings = yard.settings();
    let mut client = QueueClient::open(&yard.database(), Access::Read)
        .await
        .expect("a queue");
    let query = ForecastQuery {
        settings: Some(&settings),
        ..ForecastQuery::default()
    };
    let outlook = daemon::forecast(&mut client, &query, daemon::now().utc).await;
    client.close().await.expect("closed");
    outlook.expect("a forecast")
}

/// The servers of each call that was foretold, and how many seconds after the first it leaves.
fn foretold(outlook: &Outlook) -> Vec<(u64, u64)> {
    let calls = &outlook.forecast.calls;
    let first = calls.first().map(|call| call.at).expect("a call");
    calls
        .iter()
        .map(|call| (call.servers, call.at.since(first).as_secs()))
        .collect()
}

/// The same of what was sent.
async fn sent(producer: &mut SqliteConnection) -> Vec<(u64, f64)> {
    let rows: Vec<(i64, f64)> = sqlx::query_as(
        "SELECT server_count, (julianday(intent_at) - (SELECT min(julianday(intent_at)) FROM batches)) * 86400.0
         FROM batches ORDER BY id",
    )
    .fetch_all(producer)
    .await
    .expect("readable");
    rows.into_iter()
        .map(|(servers, seconds)| (servers as u64, seconds))
        .collect()
}

/// Each call carries exactly as many servers, in the same order, and none leaves before its time or
/// later than by this.
fn expect_as_foretold(foretold: &[(u64, u64)], sent: &[(u64, f64)], late_max: f64) {
    let sizes = |all: Vec<u64>| all;
    assert_eq!(
        sizes(sent.iter().map(|call| call.0).collect()),
        sizes(foretold.iter().map(|call| call.0).collect())
    );
    for ((_, planned), (_, real)) in foretold.iter().zip(sent) {
        let late = real - *planned as f64;
        assert!((-0.1..late_max).contains(&late), "{foretold:?} {sent:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_does_what_was_foretold_under_a_budget() {
    let lines = ["batch_servers_max = 10", "budget = { stop = \"25/3s\" }"];
    let (yard, mut producer) = quiet(&lines).await;
    insert_many(&mut producer, &yard.servers(60), "stop").await;
    let outlook = outlook(&yard).await;
    let calls = [(10, 0), (10, 0), (5, 0), (10, 3), (10, 3), (5, 3), (10, 6)];
    assert_eq!(foretold(&outlook), calls);
    let daemon = yard.start();
    assert_eq!(outcomes(&mut producer).await, "60 succeeded/job");
    expect_as_foretold(&calls, &sent(&mut producer).await, 2.5);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_does_what_was_foretold_of_waves() {
    let (yard, mut producer) = quiet(&["batch_servers_max = 10"]).await;
    sql(
        &mut producer,
        "INSERT INTO orders (label, waves, pause) VALUES ('kernel', '1, 5%, 25%', '2s')",
    )
    .await;
    insert_many(&mut producer, &yard.servers(60), "stop").await;
    sql(&mut producer, "UPDATE power_requests SET label = 'kernel'").await;
    let outlook = outlook(&yard).await;
    let sizes: Vec<u64> = foretold(&outlook).iter().map(|call| call.0).collect();
    assert_eq!(sizes, [1, 3, 10, 5, 10, 5, 10, 5, 10, 1]);
    let daemon = yard.start();
    assert_eq!(outcomes(&mut producer).await, "60 succeeded/job");
    // Without a history a job counts for a second; here each takes less.
    let sent = sent(&mut producer).await;
    let real: Vec<u64> = sent.iter().map(|call| call.0).collect();
    assert_eq!(real, sizes);
    for ((_, planned), (_, real)) in foretold(&outlook).iter().zip(&sent) {
        assert!((real - *planned as f64).abs() < 6.0, "{sent:?}");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_says_what_leaves_now_and_why_not_the_rest() {
    let lines = [
        "batch_servers_max = 20",
        "budget = { stop = \"30/1h\" }",
        "guard = { reboot = \"5/1h\" }",
        "window = { freeze = [\"2020-01-01\"], start = [\"00:00-00:01\", \"00:01-00:02\"] }",
    ];
    let (mut yard, mut producer) = quiet(&lines).await;
    let first = yard.server(1);
    yard.set(&format!("protect = {{ servers = [\"{first}\"] }}"));
    insert_many(&mut producer, &yard.servers(60), "stop").await;
    sql(
        &mut producer,
        "UPDATE power_requests SET label = 'evac' WHERE id > 21;
         INSERT INTO power_requests (server_id, action, target) VALUES ('x', 'stop', 'tpyo');
         INSERT INTO power_requests (server_id, action, not_before) VALUES ('y', 'stop', datetime('now', '+1 hour'));",
    )
    .await;
    for number in 1..=6 {
        let reboot = format!(
            "INSERT INTO power_requests (server_id, action) VALUES ('idle-{number}', 'reboot')"
        );
        sql(&mut producer, &reboot).await;
    }
    let told = plan(&yard, &[]).await;
    let stop = &told["actions"][0];
    assert_eq!(stop["action"], "stop");
    assert_eq!(stop["requests"], 61);
    assert_eq!(stop["protected"], 1);
    assert_eq!(stop["now"]["calls"], serde_json::json!([20, 10]));
    assert_eq!(stop["calls"], 4);
    let kinds = |action: &Value| -> Vec<(String, u64)> {
        let waiting = action["waiting"].as_array().expect("a list");
        let pair = |one: &Value| {
            let kind = one["kind"].as_str().expect("a word").to_owned();
            (kind, one["requests"].as_u64().expect("a number"))
        };
        waiting.iter().map(pair).collect()
    };
    let expected = [("budget", 29), ("not_due", 1), ("protected", 1)];
    assert_eq!(
        kinds(stop),
        expected.map(|(kind, number)| (kind.to_owned(), number))
    );
    let reboot = &told["actions"][1];
    assert_eq!(kinds(reboot), [("approval".to_owned(), 6)]);
    assert_eq!(reboot["stuck"], 6);
    let reason = reboot["waiting"][0]["reason"].as_str().expect("a sentence");
    assert!(
        reason.contains("6 requests to reboot, more than guard reboot = \"5/1h\""),
        "{reason}"
    );
    assert_eq!(
        kinds(&told["actions"][2]),
        [("unknown_target".to_owned(), 1)]
    );
    let of_label = plan(&yard, &["--label", "evac"]).await;
    assert_eq!(of_label["actions"][0]["requests"], 39);
    assert_eq!(of_label["actions"][0]["now"]["requests"], 10);
    let nothing = command(&yard, &["plan", "--label", "nobody"]).await;
    assert!(said(&nothing).contains("nothing waits"), "{nothing:?}");
    assert_eq!(yard.cloud.calls().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_config_a_plan_goes_by_the_queue_and_says_so() {
    let lines = ["batch_servers_max = 20", "budget = { stop = \"30/1h\" }"];
    let (yard, mut producer) = quiet(&lines).await;
    insert_many(&mut producer, &yard.servers(60), "stop").await;
    let blind = command_on_queue(&yard, &["plan"]).await;
    let blind = said(&blind);
    assert!(
        blind.contains("leaves now: 1 call with 60 servers"),
        "{blind}"
    );
    assert!(blind.contains("not known without the config"), "{blind}");
    // What the daemon holds is in the queue.
    command_on_queue(&yard, &["pause", "--action", "stop"]).await;
    let held = said(&command_on_queue(&yard, &["plan"]).await);
    assert!(
        held.contains("nothing leaves now 60 wait (operator)"),
        "{held}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_of_the_servers_is_told() {
    let (yard, mut producer) = quiet(&[]).await;
    let rows: Vec<String> = (1..=10)
        .map(|number| {
            let power = ["on", "on", "on", "off", "unclear"][number % 5];
            let gone = if number == 1 { "'2026-01-01T00:00:00.000Z'" } else { "NULL" };
            let locked = i32::from(number == 2);
            format!("('default', 's-{number}', 'n', '{power}', 'X', '2026-01-01T00:00:00.000Z', {gone}, {locked})")
        })
        .collect();
    let insert = format!("INSERT INTO servers VALUES {}", rows.join(", "));
    by_hand(&mut producer, &insert).await.expect("written");
    let names: Vec<String> = (1..=12).map(|number| format!("S-{number}")).collect();
    insert_many(&mut producer, &names, "stop").await;
    let mix = &plan(&yard, &[]).await["actions"][0]["servers"];
    let number = |what: &str| mix[what].as_u64().expect("a number");
    let all = [
        "on", "off", "unclear", "gone", "unknown", "already", "locked",
    ]
    .map(number);
    assert_eq!(all, [5, 2, 2, 1, 2, 2, 1]);
    let words = said(&command(&yard, &["plan"]).await);
    assert!(
        words.contains(
            "servers: 5 on, 2 off (as wished already), 2 unclear, 1 gone, 2 not in the list, 1 locked"
        ),
        "{words}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_request_of_a_server_is_not_promised_for_now() {
    let (yard, mut producer) = quiet(&[]).await;
    insert_many(&mut producer, &yard.servers(5), "stop").await;
    insert_many(&mut producer, &yard.servers(4), "reboot").await;
    let told = plan(&yard, &[]).await;
    let now: Vec<&Value> = told["actions"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|action| &action["now"]["requests"])
        .collect();
    assert_eq!(now, [5, 0]);
    assert_eq!(told["actions"][1]["waiting"][0]["kind"], "behind");
    assert_eq!(told["actions"][1]["calls"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn enqueue_warns_of_what_a_budget_cannot_let_go_in_time() {
    let (yard, mut producer) = quiet(&["budget = { stop = \"10/1h\" }"]).await;
    let file = yard.dir.path().join("list");
    std::fs::write(&file, yard.servers(60).join("\n")).expect("written");
    let file = file.display().to_string();
    let ask = [
        "enqueue",
        "stop",
        "--from-file",
        &file,
        "--expires-at",
        "+90m",
    ];
    let warned = command(&yard, &ask).await;
    assert!(warned.status.success(), "no terminal: nobody is asked");
    assert!(
        said(&warned).contains("warning: 40 of these 60 requests expire before they can be sent"),
        "{}",
        said(&warned)
    );
    assert_eq!(
        text(&mut producer, "SELECT count(*) FROM power_requests").await,
        "60"
    );
}

/// A terminal of which this test is the person.
struct Terminal {
    person: File,
    program: OwnedFd,
}

impl Terminal {
    fn new() -> Self {
        let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&person).expect("granted");
        unlockpt(&person).expect("unlocked");
        let name = ptsname(&person, Vec::new()).expect("a name");
        let program = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().expect("a path"))
            .expect("the other end");
        Self {
            person: File::from(person),
            program: program.into(),
        }
    }

    /// Runs the command with this answer. Returns its exit code, its results, and what was shown.
    fn run(mut self, yard: &Yard, args: &[&str], answer: &str) -> (Option<i32>, String, String) {
        let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().expect("a copy"));
        let mut command = poweryard();
        command
            .arg("--config")
            .arg(yard.write_config())
            .args(args)
            .stdin(end(&self.program))
            .stderr(end(&self.program))
            .stdout(Stdio::piped());
        let child = command.spawn().expect("it runs");
        drop(command);
        drop(self.program);
        let mut reader = self.person.try_clone().expect("a copy");
        let shown = std::thread::spawn(move || {
            let mut shown = Vec::new();
            let mut buffer = [0; 4096];
            // The end of the terminal is an error on Linux.
            while let Ok(length) = reader.read(&mut buffer) {
                if length == 0 {
                    break;
                }
                shown.extend_from_slice(&buffer[..length]);
            }
            String::from_utf8_lossy(&shown).into_owned()
        });
        self.person
            .write_all(format!("{answer}\n").as_bytes())
            .expect("typed");
        let output = child.wait_with_output().expect("it ends");
        let results = String::from_utf8_lossy(&output.stdout).into_owned();
        let shown = shown.join().expect("read");
        let words = shown.split_whitespace().collect::<Vec<_>>().join(" ");
        (output.status.code(), results, words)
    }
}

async fn at_terminal(yard: &Yard, args: &[&str], answer: &str) -> (Option<i32>, String, String) {
    tokio::task::block_in_place(|| Terminal::new().run(yard, args, answer))
}

#[tokio::test(flavor = "multi_thread")]
async fn above_twenty_servers_a_person_is_asked_before_anything_is_inserted() {
    let (yard, mut producer) = quiet(&["batch_servers_max = 10"]).await;
    const ROWS: &str = "SELECT count(*) FROM power_requests";
    let many = yard.servers(21);
    let mut ask = vec!["enqueue", "stop", "--label", "evac"];
    ask.extend(many.iter().map(String::as_str));
    for answer in ["n", "", "21", "yess"] {
        let (code, out, shown) = at_terminal(&yard, &ask, answer).await;
        assert_eq!((code, out.as_str()), (Some(2), ""), "{shown}");
        assert!(shown.contains("stop on default: 21 requests"), "{shown}");
        assert!(
            shown.contains(
                "leaves now: 3 calls with 21 servers (2 with 10 servers, 1 with 1 server)"
            ),
            "{shown}"
        );
        assert!(
            shown.contains("Insert 21 requests for 21 servers? [y/N]"),
            "{shown}"
        );
    }
    assert_eq!(text(&mut producer, ROWS).await, "0");
    let (code, out, _) = at_terminal(&yard, &ask, "yes").await;
    assert_eq!((code, out.lines().count()), (Some(0), 21));
    let (code, _, shown) = at_terminal(&yard, &[&ask[..], &["--yes"]].concat(), "").await;
    assert_eq!(code, Some(0), "{shown}");
    assert!(!shown.contains("[y/N]"), "{shown}");
    let (code, _, shown) = at_terminal(&yard, &ask[..24], "").await;
    assert_eq!(code, Some(0), "twenty are not asked about: {shown}");
    assert!(shown.contains("stop on default: 20 requests"), "{shown}");
    assert_eq!(text(&mut producer, ROWS).await, "62");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_and_retry_ask_a_person_too() {
    const STATES: &str = "SELECT group_concat(state || ' ' || n) FROM
                          (SELECT state, count(*) AS n FROM power_requests GROUP BY state ORDER BY state)";
    let (yard, mut producer) = quiet(&[]).await;
    insert_many(&mut producer, &yard.servers(30), "stop").await;
    sql(&mut producer, "UPDATE power_requests SET label = 'evac'").await;
    let cancel = ["cancel", "--label", "evac"];
    let (code, _, shown) = at_terminal(&yard, &cancel, "n").await;
    assert_eq!(code, Some(2), "{shown}");
    assert!(shown.contains("default stop queued 30"), "{shown}");
    assert!(shown.contains("Cancel 30 requests?"), "{shown}");
    assert_eq!(text(&mut producer, STATES).await, "queued 30");
    let (code, out, _) = at_terminal(&yard, &cancel, "y").await;
    assert_eq!((code, out.as_str()), (Some(0), "cancelled 30 requests\n"));
    let retry = ["retry", "--label", "evac", "--state", "cancelled"];
    let (code, _, shown) = at_terminal(&yard, &retry, "no").await;
    assert_eq!(code, Some(2), "{shown}");
    assert!(
        shown.contains("leaves now: 1 call with 30 servers"),
        "{shown}"
    );
    assert_eq!(text(&mut producer, STATES).await, "cancelled 30");
    let (code, out, _) = at_terminal(&yard, &[&retry[..], &["--yes"]].concat(), "").await;
    assert_eq!((code, out.lines().count()), (Some(0), 30));
    assert_eq!(text(&mut producer, STATES).await, "cancelled 30,queued 30");
}

#[tokio::test(flavor = "multi_thread")]
async fn approve_shows_what_becomes_of_what_is_approved() {
    let lines = [
        "guard = { stop = \"5/1h\" }",
        "budget = { stop = \"20/1h\" }",
    ];
    let (yard, mut producer) = quiet(&lines).await;
    insert_many(&mut producer, &yard.servers(30), "stop").await;
    let lane = ["approve", "--target", "default", "--action", "stop"];
    let (code, shown, _) = at_terminal(&yard, &lane, "29").await;
    assert_eq!(code, Some(2));
    let shown = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        shown.contains("30 requests, in at least 2 calls"),
        "{shown}"
    );
    assert!(
        shown.contains("leaves now: 1 call with 20 servers 10 wait (budget)"),
        "{shown}"
    );
    let (code, _, _) = at_terminal(&yard, &lane, "30").await;
    assert_eq!(code, Some(0));
    let left = plan(&yard, &[]).await;
    assert_eq!(left["actions"][0]["now"]["requests"], 20);
}

/// What a dry run logs, once it has said its first lines.
async fn dry_run(yard: &Yard, last: &str) -> String {
    let config = yard.write_config();
    let log = yard.dir.path().join("dry.log");
    let mut child = poweryard()
        .arg("--config")
        .arg(config)
        .args(["serve", "--dry-run"])
        .stderr(File::create(&log).expect("a file"))
        .spawn()
        .expect("it runs");
    let mut told = String::new();
    until("the dry run has spoken", || {
        told = std::fs::read_to_string(&log).expect("readable");
        told.contains(last)
    })
    .await;
    child.kill().expect("ended");
    child.wait().expect("ended");
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_knows_windows_guards_budgets_and_waves_and_changes_nothing() {
    let lines = [
        "batch_servers_max = 10",
        "guard = { reboot = \"5/1h\" }",
        "budget = { stop = \"15/1h\" }",
        "window = { start = [\"00:00-00:01 UTC\"] }",
    ];
    let (yard, mut producer) = quiet(&lines).await;
    let all = yard.servers(60);
    sql(
        &mut producer,
        "INSERT INTO orders (label, waves) VALUES ('kernel', '3, 50%')",
    )
    .await;
    insert_many(&mut producer, &all[..20], "stop").await;
    insert_many(&mut producer, &all[20..30], "reboot").await;
    insert_many(&mut producer, &all[30..34], "start").await;
    let of_order: Vec<String> = all[40..50].to_vec();
    for server in of_order {
        sqlx::query(
            "INSERT INTO power_requests (server_id, action, label, priority) VALUES (?, 'stop', 'kernel', 9)",
        )
        .bind(server)
        .execute(&mut producer)
        .await
        .expect("accepted");
    }
    let before = dump(&mut producer).await;
    let foretold = outlook(&yard).await;
    let now: Vec<(PowerAction, u64)> = foretold
        .forecast
        .calls_now(foretold.as_of)
        .iter()
        .map(|call| (call.action, call.servers))
        .collect();
    let told = dry_run(&yard, "reboot of").await;
    let is_minute = daemon::now().utc.0.rem_euclid(86_400_000) < 60_000;
    if !is_minute {
        // The wave and the first of the others, as far as the budget goes.
        assert_eq!(now, [(PowerAction::Stop, 10), (PowerAction::Stop, 5)]);
        assert!(
            told.contains("start of 4 servers on target \"default\": start is outside its window"),
            "{told}"
        );
    }
    for line in [
        "would send: stop of 15 servers on target \"default\", in 2 calls",
        "would not send: stop of 8 servers on target \"default\": the budget stop",
        "would not send: stop of 7 servers",
        "would not send: reboot of 10 servers on target \"default\": 10 requests to reboot, more than guard",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    assert_eq!(dump(&mut producer).await, before);
    assert_eq!(yard.cloud.calls().len(), 0);
}

/// All that a daemon would change.
async fn dump(producer: &mut SqliteConnection) -> String {
    let mut all = String::new();
    for sql in [
        "SELECT group_concat(id || state || gate || ifnull(wave, '')) FROM power_requests",
        "SELECT count(*) FROM holds",
        "SELECT count(*) FROM batches",
        "SELECT group_concat(label || state || wave || wave_size) FROM orders",
    ] {
        all.push_str(&text(producer, sql).await);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_beside_a_running_daemon_counts_what_has_left() {
    let slow = "[bms]\nservers = 60\nrunning = 1.0\noperation_ms = [3000, 3000]\n";
    let mut scene = scene::Scene::new(slow, &["budget = { stop = \"30/1h\" }"]).await;
    scene.ask(PowerAction::Stop, 1..=50).await;
    scene
        .wait_for(
            "SELECT count(*) FROM power_requests WHERE state = 'running'",
            "30",
        )
        .await;
    scene
        .wait_for("SELECT count(*) FROM holds WHERE kind = 'budget'", "1")
        .await;
    let told = outlook(&scene.yard).await;
    let until = scene.text("SELECT until FROM holds").await;
    assert_eq!(told.forecast.actions[0].requests, 20);
    assert_eq!(told.forecast.calls_now(told.as_of).len(), 0);
    let waiting = &told.forecast.waiting[0];
    assert_eq!(waiting.requests, 20);
    assert_eq!(waiting.until.map(|at| at.to_string()), Some(until));
    // A new request of a server that is on its way comes after that.
    scene.ask(PowerAction::Start, [1]).await;
    let of_label = AskedFor {
        action: Some(PowerAction::Start),
        ..AskedFor::default()
    };
    let settings = scene.yard.settings();
    let mut client = QueueClient::open(&scene.yard.database(), Access::Read)
        .await
        .expect("a queue");
    let query = ForecastQuery {
        settings: Some(&settings),
        asked: of_label,
        ..ForecastQuery::default()
    };
    let now = daemon::now().utc;
    let told = daemon::forecast(&mut client, &query, now)
        .await
        .expect("told");
    assert_eq!(told.forecast.actions[0].requests, 1);
    assert!(told.forecast.calls[0].at > now);
    assert!(told.forecast.calls[0].at < now + Duration::from_secs(10));
    scene.daemon.stop().await;
}

/// The SQL of the forecast, out of its own source.
fn statements() -> Vec<&'static str> {
    let source = include_str!("../../src/store/client/forecast.rs");
    let literals = source.split('"').skip(1).step_by(2);
    literals
        .filter(|text| text.starts_with("SELECT ") || text.starts_with("WITH "))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forecast_reads_nothing_that_has_ended() {
    let (_yard, mut producer) = quiet(&[]).await;
    let unfinished = [
        "ready",
        "line",
        "parked_count",
        "held_count",
        "retry",
        "expiry",
    ];
    assert!(statements().len() > 10);
    for statement in statements() {
        let explain = format!("EXPLAIN QUERY PLAN {statement}");
        let steps: Vec<(i64, i64, i64, String)> = sqlx::query_as(AssertSqlSafe(explain))
            .fetch_all(&mut producer)
            .await
            .unwrap_or_else(|error| panic!("{statement}\n{error}"));
        for (.., step) in &steps {
            let is_large = step.starts_with("SCAN power_requests") || step.starts_with("SCAN r ");
            let is_open = unfinished
                .iter()
                .any(|index| step.contains(&format!("INDEX power_requests_{index}")));
            assert!(!is_large || is_open, "{step}\n{statement}");
            assert!(!step.contains("AUTOMATIC"), "{step}\n{statement}");
            assert!(!step.starts_with("SCAN batches USING INDEX batches_ended"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cycle_is_asked_about_by_servers_and_its_starts_come_later() {
    let (yard, mut producer) = quiet(&[]).await;
    let many = yard.servers(21);
    let mut ask = vec!["enqueue", "power-cycle", "--label", "cycle"];
    ask.extend(many.iter().map(String::as_str));
    let (code, _, shown) = at_terminal(&yard, &ask, "n").await;
    assert_eq!(code, Some(2), "{shown}");
    assert!(
        shown.contains("Insert 42 requests for 21 servers?"),
        "{shown}"
    );
    assert!(
        shown.contains("start on default: 21 requests nothing leaves now 21 wait (after)"),
        "{shown}"
    );
    let (code, out, _) = at_terminal(&yard, &ask[..24], "").await;
    assert_eq!((code, out.lines().count()), (Some(0), 40));
    let told = plan(&yard, &["--label", "cycle"]).await;
    let calls: Vec<&Value> = told["actions"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|action| &action["calls"])
        .collect();
    assert_eq!(calls, [1, 1]);
    sql(
        &mut producer,
        "UPDATE power_requests SET state = 'cancelled' WHERE action = 'stop'",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_kept_with_the_names_and_told() {
    let locked = format!("{QUICK}{}", scene::fault("locked", "servers = [2, 5]"));
    let mut scene = scene::Scene::new(&locked, &["inventory_interval = \"1h\""]).await;
    scene
        .wait_for("SELECT count(*) FROM servers WHERE locked = 1", "2")
        .await;
    scene.command(&["pause"]).await;
    scene.ask(PowerAction::Stop, 1..=5).await;
    let mix = &plan(&scene.yard, &[]).await["actions"][0]["servers"];
    assert_eq!(
        (&mix["on"], &mix["locked"]),
        (&Value::from(5), &Value::from(2))
    );
    scene.daemon.stop().await;
}
