//! Keys that the cloud refuses, and permissions that they lack: what that costs in bad signatures
//! over restarts, reloads and commands, who is held for it, and how soon the same rows go through
//! once it is mended.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::common::process::{self, Daemon, poweryard, until};
use crate::common::scene::{bad_signatures, fault};
use crate::common::wire;
use crate::common::{
    self, PROJECT, UNFINISHED, Yard, by_hand, insert, insert_many, outcomes, secret, text, wait_for,
};
use poweryard::daemon::Reload;
use poweryard::model::PowerAction::{Start, Stop};
use poweryard::model::Service;
use poweryard::settings::Settings;
use poweryard::sim::{Call, OnOff};
use serde_json::Value;
use sqlx::SqliteConnection;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

const QUICK: &str = "[bms]\nservers = 40\nrunning = 1.0\noperation_ms = [10, 20]\n";
const RIGHT: &str = "poweryard-sim-secret-key";
const WRONG: &str = "not-the-secret-key";
const HELD: &str = "SELECT count(*) FROM holds WHERE kind = 'credentials' AND action IS NULL AND until IS NOT NULL";

fn set_secret(yard: &Yard, content: &str) {
    secret(yard.dir.path(), "secret-key", content);
}

/// The config, with a wrong secret key.
fn wrong_config(yard: &Yard) -> PathBuf {
    let config = yard.write_config();
    set_secret(yard, WRONG);
    config
}

/// Adds a target that uses the same keys for another project.
fn add_target(config: &Path, name: &str, project: &str) {
    let text = fs::read_to_string(config).expect("written");
    let first = text.find("[targets.default]").expect("a target");
    let end = text[first..]
        .find("[targets.default.auth]")
        .expect("its keys")
        + first;
    let auth_end = text[end + 1..]
        .find("[targets.")
        .map_or(text.len(), |at| at + end + 1);
    let table = text[first..auth_end]
        .replace("targets.default", &format!("targets.{name}"))
        .replace(PROJECT, project);
    fs::write(config, text + &table).expect("written");
}

async fn insert_for(producer: &mut SqliteConnection, server: &str, target: &str) {
    let sql = "INSERT INTO power_requests (server_id, action, target) VALUES (?, 'stop', ?)";
    sqlx::query(sql)
        .bind(server)
        .bind(target)
        .execute(producer)
        .await
        .expect("accepted");
}

/// Returns once the daemon has gone through the queue after everything that is in it now.
async fn a_round_passes(producer: &mut SqliteConnection) {
    let marker = format!(
        "nobody-{}",
        text(producer, "SELECT count(*) FROM power_requests").await
    );
    insert_for(producer, "x", &marker).await;
    wait_for(
        producer,
        &format!("SELECT count(*) FROM holds WHERE target = '{marker}'"),
        "1",
    )
    .await;
    let cancel = "UPDATE power_requests SET state = 'cancelled' WHERE target = ?";
    sqlx::query(cancel)
        .bind(&marker)
        .execute(&mut *producer)
        .await
        .expect("accepted");
    wait_for(
        producer,
        &format!("SELECT count(*) FROM holds WHERE target = '{marker}'"),
        "0",
    )
    .await;
}

/// Minutes from now until the time that `sql` finds, rounded.
async fn minutes_until(producer: &mut SqliteConnection, sql: &str) -> i64 {
    let minutes =
        format!("SELECT CAST(round((julianday(({sql})) - julianday('now')) * 1440) AS INTEGER)");
    text(producer, &minutes).await.parse().expect("a time")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_fixed_while_the_daemon_is_stopped_works_at_once() {
    let yard = Yard::new(QUICK).await;
    let config = wrong_config(&yard);
    let daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    let servers = yard.servers(20);
    insert_many(&mut producer, &servers, "stop").await;
    wait_for(&mut producer, HELD, "1").await;
    wait_for(
        &mut producer,
        "SELECT count(*) FROM power_requests WHERE state = 'queued'",
        "20",
    )
    .await;
    assert_eq!(daemon.stop().await, Some(0));
    set_secret(&yard, RIGHT);
    let daemon = Daemon::start(&config);
    // The hold of six minutes was for another secret; this waits for less than one.
    assert_eq!(outcomes(&mut producer).await, "20 succeeded/job");
    assert_eq!(daemon.stop().await, Some(0));
    assert!(
        bad_signatures(&yard) <= 2,
        "{} bad signatures",
        bad_signatures(&yard)
    );
    assert_eq!(text(&mut producer, "SELECT count(*) FROM holds").await, "0");
    assert_eq!(
        text(&mut producer, "SELECT count(*) FROM refused_keys").await,
        "0"
    );
    assert_eq!(
        text(&mut producer, "SELECT max(attempts) FROM power_requests").await,
        "1"
    );
}

/// Jobs that run while the secret is wrong: their next looks were put off to the end of the hold.
async fn followed_again(restart: bool) {
    let yard = Yard::new(QUICK).await;
    let config = yard.write_config();
    // The first look is late enough for the secret to become wrong before it.
    let slow = fs::read_to_string(&config)
        .expect("written")
        .replace("\"20ms\"", "\"3s\"")
        .replace("\"100ms\"", "\"3s\"");
    fs::write(&config, slow).expect("written");
    let daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "reboot").await;
    wait_for(&mut producer, "SELECT state FROM batches", "tracking").await;
    assert_eq!(daemon.stop().await, Some(0));
    set_secret(&yard, WRONG);
    let daemon = Daemon::start(&config);
    wait_for(&mut producer, HELD, "1").await;
    wait_for(
        &mut producer,
        "SELECT next_look_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+5 minutes') FROM batches",
        "1",
    )
    .await;
    let mut daemon = Some(daemon);
    if restart && let Some(daemon) = daemon.take() {
        assert_eq!(daemon.stop().await, Some(0));
    }
    set_secret(&yard, RIGHT);
    let daemon = match daemon {
        Some(daemon) => {
            daemon.signal("-HUP");
            daemon
        }
        None => Daemon::start(&config),
    };
    assert_eq!(outcomes(&mut producer).await, "1 succeeded/job");
    assert_eq!(daemon.stop().await, Some(0));
    assert!(
        bad_signatures(&yard) <= 2,
        "{} bad signatures",
        bad_signatures(&yard)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mended_secret_lets_running_jobs_be_followed_at_once_too() {
    tokio::join!(followed_again(true), followed_again(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_restarts_with_a_wrong_secret_cost_no_more_signatures_than_one() {
    let yard = Yard::new(QUICK).await;
    let config = wrong_config(&yard);
    let mut daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    wait_for(&mut producer, HELD, "1").await;
    for number in 2..=5 {
        // A stop, or a death.
        match number % 2 {
            0 => assert_eq!(daemon.stop().await, Some(0)),
            _ => daemon.kill(),
        }
        daemon = Daemon::start(&config);
        insert(&mut producer, &yard.server(number), "stop").await;
        a_round_passes(&mut producer).await;
        a_round_passes(&mut producer).await;
    }
    assert_eq!(daemon.stop().await, Some(0));
    assert!(
        bad_signatures(&yard) <= 2,
        "{} bad signatures",
        bad_signatures(&yard)
    );
    assert_eq!(
        text(
            &mut producer,
            "SELECT count(*) FROM power_requests WHERE state = 'queued'"
        )
        .await,
        "5"
    );
    assert_eq!(yard.cloud.ledger().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_hold_of_a_resting_key_comes_back_with_the_next_start() {
    let yard = Yard::new(QUICK).await;
    let config = wrong_config(&yard);
    let daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    wait_for(&mut producer, HELD, "1").await;
    wait_for(&mut producer, "SELECT state FROM power_requests", "queued").await;
    assert_eq!(daemon.stop().await, Some(0));
    let before = bad_signatures(&yard);
    by_hand(&mut producer, "DELETE FROM holds")
        .await
        .expect("deleted");
    let daemon = Daemon::start(&config);
    wait_for(&mut producer, HELD, "1").await;
    a_round_passes(&mut producer).await;
    assert_eq!(daemon.stop().await, Some(0));
    assert_eq!(bad_signatures(&yard), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_added_with_a_refused_key_is_held_without_a_signature() {
    let yard = Yard::new(QUICK).await;
    let config = wrong_config(&yard);
    let daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    insert_for(&mut producer, &yard.server(1), "default").await;
    wait_for(&mut producer, HELD, "1").await;
    wait_for(&mut producer, "SELECT state FROM power_requests", "queued").await;
    let at_first = bad_signatures(&yard);
    // Whoever reloads may have mended the key in the cloud: one signature finds out, for all that
    // use it.
    insert_for(&mut producer, &yard.server(2), "second").await;
    wait_for(
        &mut producer,
        "SELECT count(*) FROM holds WHERE kind = 'unknown_target'",
        "1",
    )
    .await;
    add_target(&config, "second", "0123456789abcdef0123456789abcdef");
    daemon.signal("-HUP");
    wait_for(&mut producer, HELD, "2").await;
    a_round_passes(&mut producer).await;
    wait_for(&mut producer, "SELECT refusals FROM refused_keys", "3").await;
    assert_eq!(bad_signatures(&yard), at_first + 1);
    // It has been refused often enough: a third target is held without asking.
    insert_for(&mut producer, &yard.server(3), "third").await;
    wait_for(
        &mut producer,
        "SELECT count(*) FROM holds WHERE kind = 'unknown_target'",
        "1",
    )
    .await;
    add_target(&config, "third", "fedcba9876543210fedcba9876543210");
    daemon.signal("-HUP");
    wait_for(&mut producer, HELD, "3").await;
    a_round_passes(&mut producer).await;
    assert_eq!(daemon.stop().await, Some(0));
    assert_eq!(bad_signatures(&yard), at_first + 1);
    let waiting = "SELECT count(*) FROM power_waiting WHERE reason LIKE ";
    let own = format!("{waiting}'held: the cloud refuses the credentials%'");
    let shared = format!(
        "{waiting}'held: held together with %, which uses the same key: the cloud refuses the credentials%'"
    );
    assert_eq!(
        text(&mut producer, &own).await,
        "1",
        "the target whose call was refused last"
    );
    assert_eq!(text(&mut producer, &shared).await, "2");
}

async fn check_online(config: &Path) -> Output {
    let mut command = poweryard();
    command
        .arg("--config")
        .arg(config)
        .args(["check", "--online", "--json"]);
    tokio::task::spawn_blocking(move || command.output().expect("it runs"))
        .await
        .expect("it ran")
}

/// The finding about the target itself.
fn finding(said: &Output) -> Value {
    let findings: Value = serde_json::from_slice(&said.stdout).expect("JSON");
    let of_target = |finding: &&Value| finding["subject"] == "targets.default";
    // The last one: what comes before is about the files.
    findings
        .as_array()
        .expect("an array")
        .iter()
        .rfind(of_target)
        .expect("a finding")
        .clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_with_a_wrong_secret_count_and_hold_a_daemon_after_them() {
    let yard = Yard::new(QUICK).await;
    let config = wrong_config(&yard);
    let database = yard.database().display().to_string();
    assert!(
        process::run(&["db", "migrate", "--database", &database])
            .status
            .success()
    );
    let said = check_online(&config).await;
    assert_eq!(
        (said.status.code(), finding(&said)["level"].as_str()),
        (Some(78), Some("error")),
        "{said:?}"
    );
    for _ in 2..=3 {
        let said = check_online(&config).await;
        let finding = finding(&said);
        assert!(
            finding["finding"].to_string().contains("not asked"),
            "{finding}"
        );
        assert!(
            finding["mend"].to_string().contains("wait until"),
            "{finding}"
        );
    }
    let asked = bad_signatures(&yard);
    assert!((1..=2).contains(&asked), "{asked} bad signatures");
    let daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    wait_for(&mut producer, HELD, "1").await;
    a_round_passes(&mut producer).await;
    assert!(
        text(
            &mut producer,
            "SELECT reason FROM power_waiting WHERE id = 1"
        )
        .await
        .starts_with("held: ")
    );
    assert_eq!(bad_signatures(&yard), asked, "the daemon asked again");
    // Mended, it is asked again, by both.
    set_secret(&yard, RIGHT);
    daemon.signal("-HUP");
    wait_for(
        &mut producer,
        "SELECT state FROM power_requests WHERE id = 1",
        "succeeded",
    )
    .await;
    let said = check_online(&config).await;
    assert_eq!(finding(&said)["level"], "ok", "{said:?}");
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_before_there_is_a_queue_cost_one_signature_each() {
    let yard = Yard::new(QUICK).await;
    let config = wrong_config(&yard);
    for _ in 1..=3 {
        assert_eq!(check_online(&config).await.status.code(), Some(78));
    }
    assert_eq!(bad_signatures(&yard), 3);
    assert!(!yard.database().exists(), "a check creates no queue");
    // The key is not locked.
    set_secret(&yard, RIGHT);
    let said = check_online(&config).await;
    assert_eq!(finding(&said)["level"], "ok", "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hold_of_a_refused_key_grows_and_ends_when_it_is_accepted() {
    let yard = Yard::new(QUICK).await;
    let config = wrong_config(&yard);
    let daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    let until_of_key = "SELECT until FROM refused_keys";
    let until_of_hold = "SELECT until FROM holds WHERE kind = 'credentials'";
    wait_for(&mut producer, "SELECT refusals FROM refused_keys", "2").await;
    wait_for(&mut producer, HELD, "1").await;
    assert_eq!(minutes_until(&mut producer, until_of_key).await, 6);
    assert_eq!(minutes_until(&mut producer, until_of_hold).await, 6);
    daemon.signal("-HUP");
    wait_for(&mut producer, "SELECT refusals FROM refused_keys", "3").await;
    wait_for(&mut producer, HELD, "1").await;
    assert_eq!(minutes_until(&mut producer, until_of_key).await, 12);
    assert_eq!(minutes_until(&mut producer, until_of_hold).await, 12);
    wait_for(&mut producer, "SELECT state FROM power_requests", "queued").await;
    assert_eq!(daemon.stop().await, Some(0));

    // The hold is over by the next start: one signature, and the next hold is longer still.
    for sql in [
        "UPDATE refused_keys SET until = '2026-01-01T00:00:00.000Z', recent = ''",
        "DELETE FROM holds",
    ] {
        by_hand(&mut producer, sql).await.expect("done");
    }
    let daemon = Daemon::start(&config);
    wait_for(&mut producer, "SELECT refusals FROM refused_keys", "4").await;
    wait_for(&mut producer, HELD, "1").await;
    assert_eq!(minutes_until(&mut producer, until_of_hold).await, 24);
    assert_eq!(bad_signatures(&yard), 4);
    set_secret(&yard, RIGHT);
    daemon.signal("-HUP");
    assert_eq!(outcomes(&mut producer).await, "1 succeeded/job");
    assert_eq!(daemon.stop().await, Some(0));
    assert_eq!(
        text(&mut producer, "SELECT count(*) FROM refused_keys").await,
        "0"
    );
    assert_eq!(text(&mut producer, "SELECT count(*) FROM holds").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_key_may_not_do_holds_that_action_alone_until_a_reload() {
    for code in [
        "status = 403\ncode = \"APIGW.0302\"",
        "status = 400\ncode = \"BMS.0004\"",
    ] {
        let refused = fault("refuse", &format!("on = [\"submit\"]\ncalls = [1]\n{code}"));
        let scenario =
            format!("[bms]\nservers = 40\nrunning = 0.5\noperation_ms = [10, 20]\n{refused}");
        let yard = Yard::new(&scenario).await;
        let daemon = Daemon::start(&yard.write_config());
        let mut producer = yard.producer().await;
        let now: Vec<_> = yard
            .cloud
            .servers()
            .into_iter()
            .filter(|server| server.service == Service::Bms)
            .collect();
        let of = |power| {
            now.iter()
                .filter(|s| s.power == power)
                .map(|s| s.server_id.to_string())
                .collect::<Vec<_>>()
        };
        insert_many(&mut producer, &of(OnOff::On), "stop").await;
        let held = "SELECT kind || ' ' || ifnull(action, 'all') || ' ' || target FROM holds";
        wait_for(&mut producer, held, "credentials stop default").await;
        insert_many(&mut producer, &of(OnOff::Off), "start").await;
        let started =
            "SELECT count(*) FROM power_requests WHERE action = 'start' AND state = 'succeeded'";
        wait_for(&mut producer, started, "20").await;
        assert_eq!(text(&mut producer, UNFINISHED).await, "20");
        assert_eq!(
            text(&mut producer, held).await,
            "credentials stop default",
            "the other action lifts nothing"
        );
        let waiting = "SELECT count(*) FROM power_waiting WHERE action = 'stop' AND reason LIKE 'held: the credentials lack %'";
        assert_eq!(text(&mut producer, waiting).await, "20");
        let row = "SELECT sum(attempts) FROM power_requests WHERE action = 'stop'";
        assert_eq!(text(&mut producer, row).await, "0");
        assert_eq!(
            text(&mut producer, "SELECT count(*) FROM refused_keys").await,
            "0",
            "the key itself is good"
        );
        // Granted in the cloud: a reload tries it, with one server first.
        daemon.signal("-HUP");
        assert_eq!(outcomes(&mut producer).await, "40 succeeded/job");
        assert_eq!(text(&mut producer, "SELECT count(*) FROM holds").await, "0");
        assert_eq!(daemon.stop().await, Some(0));
        let submits: Vec<_> = yard
            .cloud
            .calls()
            .into_iter()
            .filter(|call| call.call == Call::Submit)
            .collect();
        let calls = |action| {
            submits
                .iter()
                .filter(|c| c.action == Some(action))
                .map(|c| c.servers)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (calls(Stop), calls(Start)),
            (vec![20, 1, 19], vec![20]),
            "{code}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_restarted_without_a_permission_asks_no_more_than_before() {
    let refused = fault(
        "refuse",
        "on = [\"submit\"]\nchance = 1.0\nstatus = 403\ncode = \"APIGW.0302\"",
    );
    let yard = Yard::new(&format!("{QUICK}{refused}")).await;
    let config = yard.write_config();
    let daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    let servers = yard.servers(10);
    insert_many(&mut producer, &servers, "stop").await;
    wait_for(&mut producer, "SELECT action FROM holds", "stop").await;
    wait_for(
        &mut producer,
        "SELECT count(*) FROM power_requests WHERE state = 'queued'",
        "10",
    )
    .await;
    assert_eq!(daemon.stop().await, Some(0));
    let daemon = Daemon::start(&config);
    a_round_passes(&mut producer).await;
    let submits = || {
        yard.cloud
            .calls()
            .iter()
            .filter(|call| call.call == Call::Submit)
            .count()
    };
    assert_eq!(submits(), 1, "the hold outlives the daemon");
    daemon.signal("-HUP");
    until("one call found out", || submits() == 2).await;
    wait_for(&mut producer, "SELECT action FROM holds", "stop").await;
    a_round_passes(&mut producer).await;
    assert_eq!(submits(), 2);
    assert_eq!(daemon.stop().await, Some(0));
}

/// Lets the daemon take up new settings and secrets; returns once it has.
async fn take_up(reloads: &mpsc::Sender<Reload>, config: &Path, is_asked_for: bool) {
    let settings = Settings::load(config).expect("a valid config");
    let clouds = common::clouds(&settings);
    let (accepted, answer) = oneshot::channel();
    let reload = Reload {
        settings,
        clouds,
        is_asked_for,
        accepted,
    };
    assert!(
        reloads.send(reload).await.is_ok() && answer.await.is_ok(),
        "the daemon goes on with them"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_that_is_taken_up_again_is_not_tried_again() {
    let yard = Yard::new(QUICK).await;
    let config = wrong_config(&yard);
    let (reloads, running) = yard.start_reloading(Settings::load(&config).expect("a valid config"));
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    wait_for(&mut producer, "SELECT refusals FROM refused_keys", "2").await;
    wait_for(&mut producer, HELD, "1").await;
    for _ in 1..=3 {
        set_secret(&yard, &format!("{WRONG}\n"));
        take_up(&reloads, &config, false).await;
        a_round_passes(&mut producer).await;
    }
    assert_eq!(bad_signatures(&yard), 2);
    set_secret(&yard, RIGHT);
    take_up(&reloads, &config, false).await;
    wait_for(
        &mut producer,
        "SELECT state FROM power_requests WHERE id = 1",
        "succeeded",
    )
    .await;
    assert_eq!(
        text(&mut producer, "SELECT count(*) FROM refused_keys").await,
        "0"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_that_alternate_never_lock_the_key() {
    let yard = Yard::new(QUICK).await;
    let config = wrong_config(&yard);
    let mut daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    wait_for(&mut producer, "SELECT refusals FROM refused_keys", "2").await;
    let refused = "SELECT sum(refusals) FROM refused_keys";
    for (secret, expected) in [
        ("wrong-too", "3"),
        (WRONG, "3"),
        ("wrong-three", "4"),
        ("wrong-too", "4"),
        ("wrong-four", "4"),
    ] {
        wait_for(&mut producer, HELD, "1").await;
        set_secret(&yard, secret);
        // By a restart or by a reload.
        if expected == "3" {
            assert_eq!(daemon.stop().await, Some(0));
            daemon = Daemon::start(&config);
        } else {
            daemon.signal("-HUP");
        }
        wait_for(&mut producer, refused, expected).await;
        wait_for(&mut producer, HELD, "1").await;
        a_round_passes(&mut producer).await;
        a_round_passes(&mut producer).await;
    }
    assert_eq!(bad_signatures(&yard), 4);
    let reason = text(&mut producer, "SELECT reason FROM holds").await;
    assert!(
        reason.contains("4 times within 6 minutes, with several secrets"),
        "{reason}"
    );
    let said = check_online(&config).await;
    assert_eq!(finding(&said)["level"], "error", "{said:?}");
    assert_eq!(daemon.stop().await, Some(0));
    assert_eq!(bad_signatures(&yard), 4, "nor does a check ask");
}

/// The first submit call is answered late.
const LATE: &str = "on = [\"submit\"]\ncalls = [1]\ndelay_ms = 1500";

/// A cloud that refuses its first two submit calls, the first one only when it is told to, and then
/// takes everything.
async fn refuses_late(listener: TcpListener, mut told: oneshot::Receiver<()>) {
    let mut submits = 0;
    while let Ok((stream, _)) = listener.accept().await {
        let mut stream = BufReader::new(stream);
        if let Some(asked) = wire::read_request(&mut stream, 0).await {
            let is_submit = asked.method == "POST";
            submits += usize::from(is_submit);
            if is_submit && submits == 1 {
                let _ = (&mut told).await;
            }
            let (status, body) = match (is_submit, submits) {
                (true, 1 | 2) => ("401 Unauthorized", wire::REFUSED),
                (true, _) => ("200 OK", "{\"job_id\": \"job-1\"}"),
                (false, _) => ("200 OK", JOB_OVER),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
        }
    }
}

const JOB_OVER: &str = r#"{"job_id": "job-1", "status": "SUCCESS", "entities":
    {"sub_jobs": [{"job_id": "job-2", "status": "SUCCESS", "entities": {"server_id": "server-1"}}]}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_call_refused_after_its_secret_was_replaced_holds_nobody() {
    let yard = Yard::new(QUICK).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("its address"));
    let (tell, told) = oneshot::channel();
    tokio::spawn(refuses_late(listener, told));
    let config = yard.write_config_for("default", &endpoint);
    let (reloads, running) = yard.start_reloading(Settings::load(&config).expect("a valid config"));
    let mut producer = yard.producer().await;
    insert(&mut producer, "server-1", "stop").await;
    wait_for(&mut producer, "SELECT state FROM batches", "submitting").await;
    set_secret(&yard, "another-secret");
    take_up(&reloads, &config, false).await;
    tell.send(()).expect("the cloud waits for it");
    assert_eq!(outcomes(&mut producer).await, "1 succeeded/job");
    assert_eq!(
        text(&mut producer, "SELECT count(*) FROM batches").await,
        "2",
        "the first call was refused"
    );
    assert_eq!(text(&mut producer, "SELECT count(*) FROM holds").await, "0");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_taken_with_the_old_secret_proves_nothing_of_the_new_one() {
    let yard = Yard::new(&format!("{QUICK}{}", fault("slow", LATE))).await;
    let config = yard.write_config();
    add_target(&config, "second", "0123456789abcdef0123456789abcdef");
    let (reloads, running) = yard.start_reloading(Settings::load(&config).expect("a valid config"));
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    wait_for(&mut producer, "SELECT state FROM batches", "submitting").await;
    set_secret(&yard, WRONG);
    take_up(&reloads, &config, false).await;
    for number in 2..=5 {
        insert(
            &mut producer,
            &yard.server(number),
            if number % 2 == 0 { "stop" } else { "reboot" },
        )
        .await;
        insert_for(&mut producer, &yard.server(number), "second").await;
    }
    wait_for(&mut producer, HELD, "2").await;
    a_round_passes(&mut producer).await;
    assert!(
        bad_signatures(&yard) <= 2,
        "{} calls at once with a secret that nobody had proved",
        bad_signatures(&yard)
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_held_for_another_ones_secret_says_so_and_follows_its_jobs() {
    let mut yard =
        Yard::new("[bms]\nservers = 40\nrunning = 1.0\noperation_ms = [3000, 3000]\n").await;
    yard.set("look_interval_max = \"500ms\"");
    let config = yard.write_config();
    add_target(&config, "second", "0123456789abcdef0123456789abcdef");
    let other = secret(yard.dir.path(), "other-secret", WRONG)
        .display()
        .to_string();
    let written = fs::read_to_string(&config).expect("written");
    let (first, second) =
        written.split_at(written.find("[targets.second.auth]").expect("its keys"));
    let own = secret(yard.dir.path(), "secret-key", RIGHT)
        .display()
        .to_string();
    fs::write(&config, format!("{first}{}", second.replace(&own, &other))).expect("written");
    let daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    wait_for(&mut producer, "SELECT state FROM batches", "tracking").await;
    insert_for(&mut producer, &yard.server(2), "second").await;
    let reason = "SELECT reason FROM holds WHERE target = 'default'";
    wait_for(
        &mut producer,
        reason,
        "held together with second, which uses the same access key: its secret was refused",
    )
    .await;
    insert(&mut producer, &yard.server(3), "stop").await;
    // Far sooner than the hold of six minutes.
    wait_for(
        &mut producer,
        "SELECT state FROM power_requests WHERE id = 1",
        "succeeded",
    )
    .await;
    wait_for(
        &mut producer,
        "SELECT reason LIKE 'held: held together with second,%' FROM power_waiting WHERE target = 'default'",
        "1",
    )
    .await;
    assert_eq!(bad_signatures(&yard), 2);
    // Fixed at the other target, both go on.
    secret(yard.dir.path(), "other-secret", RIGHT);
    daemon.signal("-HUP");
    wait_for(
        &mut producer,
        "SELECT count(*) FROM holds WHERE target = 'default'",
        "0",
    )
    .await;
    wait_for(
        &mut producer,
        "SELECT state FROM power_requests WHERE id = 3",
        "succeeded",
    )
    .await;
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_tells_a_refusal_that_holds_as_an_error() {
    let yard = Yard::new(QUICK).await;
    let config = wrong_config(&yard);
    let daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    wait_for(&mut producer, HELD, "1").await;
    let mut command = poweryard();
    command
        .arg("--config")
        .arg(&config)
        .args(["check", "--json"]);
    let said = tokio::task::spawn_blocking(move || command.output().expect("it runs"))
        .await
        .expect("it ran");
    assert_eq!(
        (said.status.code(), finding(&said)["level"].as_str()),
        (Some(78), Some("error")),
        "{said:?}"
    );
    assert_eq!(bad_signatures(&yard), 2, "it asks nobody");
    assert_eq!(daemon.stop().await, Some(0));
}
