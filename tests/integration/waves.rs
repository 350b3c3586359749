//! Orders with waves: how many servers leave, when the next ones do, and what is said of those that
//! wait. Seen in the rows, with a real daemon and the simulated cloud.

use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use crate::common::process::{Daemon, Dice, run};
use crate::common::scene::{Scene, fault};
use crate::common::{self, PATIENCE, Yard, outcomes, reload, sql, text, wait_for};
use poweryard::daemon::{self, Dispatcher};
use poweryard::model::{Budget, PowerAction, ServerId, Service, TargetName};
use poweryard::plan::windows::Freeze;
use poweryard::settings::Settings;
use poweryard::store::{Store, StoreOptions};
use sqlx::{AssertSqlSafe, SqliteConnection};

const QUICK: &str = "[bms]\nservers = 60\nrunning = 1.0\noperation_ms = [10, 50]\n";
const SLOW: &str = "[bms]\nservers = 60\nrunning = 1.0\noperation_ms = [300, 400]\n";

/// A running daemon whose settings were changed, and in which a failure is not tried again.
async fn begin(scenario: &str, change: impl FnOnce(&Yard, &mut Settings)) -> Scene {
    let yard = Yard::new(scenario).await;
    let mut settings = yard.settings();
    settings.batch.attempts_max = NonZeroU32::MIN;
    change(&yard, &mut settings);
    let daemon = yard.start_with(settings);
    let producer = yard.producer().await;
    Scene {
        yard,
        daemon,
        producer,
    }
}

/// The complaint about a statement that must fail.
async fn refused(producer: &mut SqliteConnection, sql: &str) -> String {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(producer)
        .await;
    done.expect_err("refused").to_string()
}

/// Values for these servers, as `INSERT INTO power_requests (server_id, action, label)` takes them.
fn rows(yard: &Yard, numbers: impl IntoIterator<Item = usize>, action: &str) -> String {
    let row = |number| format!("('{}', '{action}', 'x')", yard.server(number));
    let rows: Vec<String> = numbers.into_iter().map(row).collect();
    format!(
        "INSERT INTO power_requests (server_id, action, label) VALUES {}",
        rows.join(", ")
    )
}

/// An order `x` with stops for these servers, in one transaction.
async fn order(
    scene: &mut Scene,
    columns: &str,
    values: &str,
    numbers: impl IntoIterator<Item = usize>,
) {
    let rows = rows(&scene.yard, numbers, "stop");
    let all = format!(
        "BEGIN IMMEDIATE; INSERT INTO orders (label, {columns}) VALUES ('x', {values}); {rows}; COMMIT"
    );
    sql(&mut scene.producer, &all).await;
}

const STATE: &str = "SELECT state || ' ' || wave FROM orders WHERE label = 'x'";
const SIZES: &str = "SELECT group_concat(servers, ' ') FROM (
    SELECT count(DISTINCT server_id) AS servers FROM power_requests WHERE label = 'x' AND wave IS NOT NULL GROUP BY wave ORDER BY wave)";
/// How many requests left before all of the wave before theirs had ended.
const OVERLAPS: &str = "SELECT count(*) FROM power_requests r WHERE r.label = 'x' AND r.submitted_at IS NOT NULL AND EXISTS (
    SELECT 1 FROM power_requests e WHERE e.label = 'x' AND e.wave = r.wave - 1
    AND (e.finished_at IS NULL OR e.finished_at > r.submitted_at))";
const HOLD: &str = "SELECT reason FROM holds WHERE kind = 'wave' AND label = 'x'";
/// A request that waits for its wave.
const WAITING: &str = "SELECT reason FROM power_waiting WHERE id = (
    SELECT max(id) FROM power_requests WHERE state = 'queued' AND wave IS NULL)";
const SENT: &str = "SELECT count(*) FROM power_requests WHERE submitted_at IS NOT NULL";

fn failing(numbers: &[usize]) -> String {
    let servers = format!("servers = {numbers:?}\ncode = \"BMS.3037\"\nmessage = \"broken\"");
    format!("{QUICK}{}", fault("sub_job_fails", &servers))
}

#[tokio::test(flavor = "multi_thread")]
async fn waves_leave_one_after_the_other_in_their_sizes() {
    let mut scene = begin(QUICK, |_, _| {}).await;
    order(&mut scene, "waves", "'1, 5%, 25%'", 1..=40).await;
    assert_eq!(scene.outcomes().await, "40 succeeded/job");
    scene.wait_for(STATE, "done 6").await;
    assert_eq!(scene.text(SIZES).await, "1 2 10 10 10 7");
    assert_eq!(scene.text(OVERLAPS).await, "0");
    assert_eq!(scene.text("SELECT count(*) FROM holds").await, "0");
    let finished = "SELECT finished_at IS NOT NULL FROM orders";
    assert_eq!(scene.text(finished).await, "1");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_in_the_second_wave_stop_there_and_resume_goes_on() {
    let mut scene = begin(&failing(&[3, 5, 7]), |_, _| {}).await;
    order(
        &mut scene,
        "waves, failures_max",
        "'1, 10, 25%', '2'",
        1..=40,
    )
    .await;
    scene.wait_for(STATE, "held 2").await;
    assert_eq!(scene.text(SENT).await, "11");
    let reason = scene.text(WAITING).await;
    assert!(
        reason.starts_with(
            "held: wave 2 of order 'x' failed for 3 of 10 servers, 3 of 40 in all: more than 2"
        ),
        "{reason}"
    );
    let database = scene.yard.database().display().to_string();
    let last = scene.text("SELECT max(id) FROM power_requests").await;
    for args in [&["status"][..], &["explain", &last]] {
        let said = run(&[args, &["--database", &database]].concat());
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.contains("failed for 3 of 10 servers"), "{said}");
    }
    scene.command(&["resume", "--label", "x"]).await;
    // Nobody fails in the third one, but three of the order have.
    scene.wait_for(STATE, "held 3").await;
    assert_eq!(scene.text(SENT).await, "21");
    scene.command(&["resume", "--label", "x", "--rest"]).await;
    assert_eq!(
        scene.outcomes().await,
        "3 failed/job/BMS.3037, 37 succeeded/job"
    );
    scene.wait_for(STATE, "done 4").await;
    assert_eq!(scene.text(SIZES).await, "1 10 10 19");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_leaves_at_once_and_a_newcomer_waits() {
    let mut scene = begin(QUICK, |_, _| {}).await;
    let broken = scene.yard.server(1);
    // As failed as can be: the cloud does not know it.
    let rows =
        rows(&scene.yard, 2..=6, "stop").replace("VALUES ", "VALUES ('nobody', 'stop', 'x'), ");
    let begun = format!(
        "BEGIN IMMEDIATE; INSERT INTO orders (label, waves) VALUES ('x', '2'); {rows}; COMMIT"
    );
    sql(&mut scene.producer, &begun).await;
    scene.wait_for(STATE, "held 1").await;
    assert_eq!(scene.text(SENT).await, "2");
    let again = format!(
        "INSERT INTO power_requests (server_id, action, label) VALUES ('nobody', 'stop', 'x'), ('{broken}', 'stop', 'x')"
    );
    sql(&mut scene.producer, &again).await;
    // The one that had its turn left, in vain; the other one waits.
    scene.wait_for("SELECT count(*) FROM power_requests WHERE server_id = 'nobody' AND finished_at IS NOT NULL", "2").await;
    scene.wait_for(STATE, "held 1").await;
    assert_eq!(scene.text(SENT).await, "3");
    let failed = scene.text(HOLD).await;
    assert!(failed.contains("failed for 1 of 2 servers"), "{failed}");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successful_retry_lets_the_next_wave_go() {
    // Only what the first call carries fails.
    let once = "servers = [1]\ncalls = [1]\ncode = \"BMS.3037\"\nmessage = \"broken\"";
    let scenario = format!("{QUICK}{}", fault("sub_job_fails", once));
    let mut scene = begin(&scenario, |_, _| {}).await;
    order(&mut scene, "waves", "'2'", 1..=3).await;
    scene.wait_for(STATE, "held 1").await;
    scene.command(&["retry", "--label", "x"]).await;
    assert_eq!(
        scene.outcomes().await,
        "1 failed/job/BMS.3037, 3 succeeded/job"
    );
    scene.wait_for(STATE, "done 2").await;
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wave_in_which_nobody_succeeded_holds_the_next() {
    let mut scene = begin(&failing(&[1]), |_, _| {}).await;
    order(&mut scene, "waves, failures_max", "'1, 5', '100%'", 1..=4).await;
    scene.wait_for(STATE, "held 1").await;
    let reason = scene.text(HOLD).await;
    assert!(reason.contains("nobody succeeded"), "{reason}");
    scene.command(&["retry", "--label", "x"]).await;
    // It fails again: `sub_job_fails` is for good.
    scene
        .wait_for(
            "SELECT count(*) FROM power_requests WHERE state = 'failed'",
            "2",
        )
        .await;
    scene.wait_for(STATE, "held 1").await;
    scene.command(&["cancel", "--label", "x"]).await;
    scene.wait_for(STATE, "done 1").await;
    assert_eq!(scene.text("SELECT count(*) FROM holds").await, "0");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_between_waves_is_kept_and_told() {
    let mut scene = begin(QUICK, |_, _| {}).await;
    order(&mut scene, "waves, pause", "'1, 5', '2s'", 1..=3).await;
    scene
        .wait_for(
            "SELECT count(*) FROM holds WHERE kind = 'wave' AND until IS NOT NULL",
            "1",
        )
        .await;
    let reason = scene.text(WAITING).await;
    assert!(reason.contains("after its pause of 2s"), "{reason}");
    assert_eq!(scene.outcomes().await, "3 succeeded/job");
    let waited = "SELECT (julianday((SELECT min(submitted_at) FROM power_requests WHERE wave = 2))
        - julianday((SELECT max(finished_at) FROM power_requests WHERE wave = 1))) * 86400 >= 1.9";
    assert_eq!(scene.text(waited).await, "1");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resume_ends_the_pause_of_the_label_first() {
    let mut scene = begin(&failing(&[1]), |_, _| {}).await;
    order(&mut scene, "waves", "'1'", 1..=3).await;
    scene.wait_for(STATE, "held 1").await;
    scene.command(&["pause", "--label", "x"]).await;
    scene.command(&["resume", "--label", "x"]).await;
    scene.a_round_passes().await;
    assert_eq!(scene.text(STATE).await, "held 1");
    let database = scene.yard.database().display().to_string();
    let said = run(&["resume", "--label", "x", "--database", &database]);
    assert_eq!(
        String::from_utf8_lossy(&said.stdout),
        "let go: wave 2 of order 'x'\n"
    );
    scene
        .wait_for(
            "SELECT count(*) FROM power_requests WHERE wave = 2 AND state = 'succeeded'",
            "1",
        )
        .await;
    scene.daemon.stop().await;
}

/// A program that lets a wave go once the file `yes` exists beside it.
fn gate(yard: &Yard, otherwise: &str) -> PathBuf {
    let dir = yard.dir.path().display();
    let path = yard.dir.path().join("gate");
    let script = format!(
        "#!/bin/sh\ncat >> {dir}/asked\necho >> {dir}/asked\ntest -e {dir}/yes && exit 0\n{otherwise}\n"
    );
    std::fs::write(&path, script).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode set");
    path
}

async fn begin_with_gate(otherwise: &str) -> Scene {
    let mut scene = begin(QUICK, |yard, settings| {
        settings.waves.gate = vec![gate(yard, otherwise).display().to_string()];
        settings.waves.gate_timeout = Duration::from_millis(500);
        settings.waves.gate_interval = Duration::from_millis(300);
    })
    .await;
    order(&mut scene, "waves", "'1, 5'", 1..=3).await;
    scene
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_says_no_is_asked_again_and_its_last_line_is_told() {
    let mut scene = begin_with_gate("echo one; echo 'node 7 is sick' >&2; exit 3").await;
    scene.wait_for(STATE, "held 1").await;
    let reason = scene.text(WAITING).await;
    assert!(
        reason.contains("wave 1 of order 'x' is over (0 of 1 server failed, 0 of 3 in all)"),
        "{reason}"
    );
    assert!(reason.contains("node 7 is sick"), "{reason}");
    let asked = std::fs::read_to_string(scene.yard.dir.path().join("asked")).expect("asked");
    let told: serde_json::Value =
        serde_json::from_str(asked.lines().next().expect("a line")).expect("JSON");
    assert_eq!(
        (
            told["label"].as_str(),
            told["next_wave"].as_u64(),
            told["servers"].as_u64()
        ),
        (Some("x"), Some(2), Some(3))
    );
    assert_eq!(scene.text(SENT).await, "1");
    std::fs::write(scene.yard.dir.path().join("yes"), "").expect("written");
    assert_eq!(scene.outcomes().await, "3 succeeded/job");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_hangs_is_killed_and_means_not_yet() {
    let mut scene = begin_with_gate("sleep 60").await;
    scene.wait_for(STATE, "held 1").await;
    let reason = scene.text(HOLD).await;
    assert!(
        reason.contains("took longer than 500ms and was killed"),
        "{reason}"
    );
    // Meanwhile others are not held up.
    scene.ask(PowerAction::Stop, [9]).await;
    scene
        .wait_for(
            "SELECT count(*) FROM power_requests WHERE label IS NULL AND state = 'succeeded'",
            "1",
        )
        .await;
    std::fs::write(scene.yard.dir.path().join("yes"), "").expect("written");
    assert_eq!(scene.outcomes().await, "4 succeeded/job");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_gate_holds_and_resume_goes_past_it() {
    let mut scene = begin(QUICK, |_, settings| {
        settings.waves.gate = vec!["/nowhere/gate".to_owned()];
    })
    .await;
    order(&mut scene, "waves", "'1, 5'", 1..=3).await;
    scene.wait_for(STATE, "held 1").await;
    let reason = scene.text(HOLD).await;
    assert!(
        reason.contains("/nowhere/gate cannot be started"),
        "{reason}"
    );
    scene.command(&["resume", "--label", "x"]).await;
    assert_eq!(scene.outcomes().await, "3 succeeded/job");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_join_come_last_whatever_their_priority() {
    let mut scene = begin(SLOW, |_, _| {}).await;
    order(&mut scene, "waves", "'1, 2'", 1..=5).await;
    scene.wait_for(SENT, "1").await;
    let late = rows(&scene.yard, [9], "stop");
    sql(
        &mut scene.producer,
        &format!("{late}; UPDATE power_requests SET priority = 100 WHERE id = last_insert_rowid()"),
    )
    .await;
    assert_eq!(scene.outcomes().await, "6 succeeded/job");
    let last = "SELECT wave FROM power_requests ORDER BY id DESC LIMIT 1";
    assert_eq!(scene.text(last).await, "4");
    assert_eq!(scene.text(SIZES).await, "1 2 2 1");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_waves_take_the_highest_priorities() {
    let mut scene = begin(QUICK, |_, _| {}).await;
    let rows = rows(&scene.yard, 1..=3, "stop");
    let all = format!(
        "BEGIN IMMEDIATE; INSERT INTO orders (label, waves) VALUES ('x', '1'); {rows};
        UPDATE power_requests SET priority = id; COMMIT"
    );
    sql(&mut scene.producer, &all).await;
    assert_eq!(scene.outcomes().await, "3 succeeded/job");
    let by_wave = "SELECT group_concat(id, ' ') FROM (SELECT id FROM power_requests ORDER BY wave)";
    assert_eq!(scene.text(by_wave).await, "3 2 1");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cycle_is_never_cut_in_half() {
    let mut scene = begin(QUICK, |_, _| {}).await;
    let stops = rows(&scene.yard, 1..=5, "stop");
    let all = format!("BEGIN IMMEDIATE; INSERT INTO orders (label, waves) VALUES ('x', '1, 2'); {stops};
        INSERT INTO power_requests (server_id, action, label, after_id) SELECT server_id, 'start', 'x', id FROM power_requests; COMMIT");
    sql(&mut scene.producer, &all).await;
    assert_eq!(scene.outcomes().await, "10 succeeded/job");
    scene.wait_for(STATE, "done 3").await;
    assert_eq!(scene.text(SIZES).await, "1 2 2");
    assert_eq!(scene.text(OVERLAPS).await, "0");
    let cut = "SELECT count(*) FROM power_requests a JOIN power_requests b ON b.after_id = a.id WHERE a.wave <> b.wave";
    assert_eq!(scene.text(cut).await, "0");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_half_of_a_power_cycle_is_a_failed_server() {
    let mut scene = begin(&failing(&[1]), |_, _| {}).await;
    let stops = rows(&scene.yard, 1..=4, "stop");
    let all = format!("BEGIN IMMEDIATE; INSERT INTO orders (label, waves) VALUES ('x', '2'); {stops};
        INSERT INTO power_requests (server_id, action, label, after_id) SELECT server_id, 'start', 'x', id FROM power_requests; COMMIT");
    sql(&mut scene.producer, &all).await;
    scene.wait_for(STATE, "held 1").await;
    let reason = scene.text(HOLD).await;
    assert!(reason.contains("failed for 1 of 2 servers"), "{reason}");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_for_one_of_a_later_wave_stops_nobody() {
    let mut scene = begin(QUICK, |_, _| {}).await;
    let (first, second) = (scene.yard.server(1), scene.yard.server(2));
    let all = format!("BEGIN IMMEDIATE; INSERT INTO orders (label, waves) VALUES ('x', '1');
        INSERT INTO power_requests (server_id, action, label) VALUES ('{first}', 'stop', 'x'), ('{second}', 'stop', 'x');
        INSERT INTO power_requests (server_id, action, label, after_id) VALUES ('{first}', 'start', 'x', 2); COMMIT");
    sql(&mut scene.producer, &all).await;
    assert_eq!(scene.outcomes().await, "3 succeeded/job");
    scene.wait_for(STATE, "done 2").await;
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_that_changes_leaves_one_order_and_joins_the_other() {
    let mut scene = begin(&failing(&[1]), |_, _| {}).await;
    order(&mut scene, "waves", "'1'", 1..=5).await;
    scene.wait_for(STATE, "held 1").await;
    scene.wait_for("SELECT servers FROM orders", "5").await;
    sql(&mut scene.producer, "UPDATE power_requests SET label = NULL WHERE id = 4; UPDATE power_requests SET label = 'y' WHERE id = 5").await;
    scene
        .wait_for(
            "SELECT count(*) FROM power_requests WHERE id > 3 AND state = 'succeeded'",
            "2",
        )
        .await;
    scene.wait_for("SELECT servers FROM orders", "3").await;
    assert_eq!(scene.text(SENT).await, "3");
    let joined = rows(&scene.yard, [9], "stop")
        .replace("'x'", "NULL")
        .replace("'stop'", "'reboot'");
    sql(&mut scene.producer, &format!("INSERT INTO holds (action, kind, reason, since) VALUES ('reboot', 'operator', 'wait', '2026-01-01T00:00:00.000Z'); {joined};
        UPDATE power_requests SET label = 'x' WHERE id = 6; DELETE FROM holds WHERE kind = 'operator'")).await;
    scene.wait_for("SELECT servers FROM orders", "4").await;
    scene.a_round_passes().await;
    assert_eq!(
        scene
            .text("SELECT state || ' ' || gate FROM power_requests WHERE id = 6")
            .await,
        "queued held"
    );
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_an_order_expire_by_its_time_and_not_by_the_default() {
    let mut scene = begin(&failing(&[1]), |_, settings| {
        settings.queue.default_ttl = Some(Duration::from_secs(1));
    })
    .await;
    let expiry = "'1', strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+4 seconds')";
    order(&mut scene, "waves, expires_at", expiry, 1..=3).await;
    let longest = "SELECT (julianday(max(finished_at)) - julianday(max(created_at))) * 86400 >= 3.5 FROM power_requests";
    assert_eq!(
        scene.outcomes().await,
        "2 expired/none/poweryard.expired, 1 failed/job/BMS.3037"
    );
    assert_eq!(scene.text(longest).await, "1");
    scene.wait_for(STATE, "done 1").await;
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_was_done_goes_on_in_its_last_wave() {
    let mut scene = begin(QUICK, |_, _| {}).await;
    order(&mut scene, "waves", "'1, 2'", 1..=3).await;
    scene.wait_for(STATE, "done 2").await;
    // Also servers that have had their turn wait for it again.
    let starts = rows(&scene.yard, [1, 2, 3, 4, 5], "start");
    sql(&mut scene.producer, &starts).await;
    scene.wait_for(STATE, "done 4").await;
    assert_eq!(scene.text("SELECT group_concat(n, ' ') FROM (SELECT count(*) AS n FROM power_requests WHERE action = 'start' GROUP BY wave ORDER BY wave)").await, "2 2 1");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_in_two_targets_is_one_order() {
    let mut scene = begin("[bms]\nservers = 5\nrunning = 1.0\noperation_ms = [10, 50]\n[clouddc]\nservers = 5\nrunning = 1.0\noperation_ms = [10, 50]\n", |_, settings| {
        let mut other = settings.targets[0].clone();
        other.name = TargetName("other".into());
        other.service = Service::CloudDc;
        other.batch_servers_max = 50;
        settings.targets.push(other);
    })
    .await;
    let other: Vec<String> = scene
        .yard
        .cloud
        .server_ids(Service::CloudDc)
        .iter()
        .take(4)
        .map(ToString::to_string)
        .collect();
    let values: Vec<String> = other
        .iter()
        .map(|id| format!("('{id}', 'stop', 'x', 'other')"))
        .collect();
    let rows = rows(&scene.yard, 1..=4, "stop");
    let all = format!(
        "BEGIN IMMEDIATE; INSERT INTO orders (label, waves) VALUES ('x', '5, 50%'); {rows};
        INSERT INTO power_requests (server_id, action, label, target) VALUES {}; COMMIT",
        values.join(", ")
    );
    sql(&mut scene.producer, &all).await;
    scene.outcomes().await;
    assert_eq!(scene.text(SIZES).await, "5 3");
    assert_eq!(scene.text("SELECT servers FROM orders").await, "8");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_written_before_its_first_request_leaves() {
    let mut scene = begin(QUICK, |_, _| {}).await;
    let first = rows(&scene.yard, [1], "stop");
    sql(&mut scene.producer, &first).await;
    scene.outcomes().await;
    let late = refused(
        &mut scene.producer,
        "INSERT INTO orders (label, waves) VALUES ('x', '1')",
    )
    .await;
    assert!(late.contains("have been sent already"), "{late}");
    sql(
        &mut scene.producer,
        "INSERT INTO orders (label, waves) VALUES ('y', '1')",
    )
    .await;
    sql(
        &mut scene.producer,
        &format!(
            "INSERT INTO power_requests (server_id, action, label) VALUES ('{}', 'stop', 'y')",
            scene.yard.server(2)
        ),
    )
    .await;
    scene.outcomes().await;
    let changed = refused(
        &mut scene.producer,
        "UPDATE orders SET waves = '100%' WHERE label = 'y'",
    )
    .await;
    assert!(changed.contains("has begun"), "{changed}");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_deleted_order_held_leaves() {
    let mut scene = begin(QUICK, |_, _| {}).await;
    let all = format!("BEGIN IMMEDIATE; INSERT INTO orders (label, waves) VALUES ('x', '1');
        INSERT INTO power_requests (server_id, action, label, not_before) VALUES ('{}', 'stop', 'x', datetime('now', '+1 day')); COMMIT", scene.yard.server(1));
    sql(&mut scene.producer, &all).await;
    scene.wait_for("SELECT servers FROM orders", "1").await;
    sql(
        &mut scene.producer,
        "DELETE FROM orders; UPDATE power_requests SET not_before = NULL",
    )
    .await;
    assert_eq!(scene.outcomes().await, "1 succeeded/job");
    assert_eq!(scene.text("SELECT count(*) FROM order_servers").await, "0");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn enqueue_writes_the_order_and_repeats_it_safely() {
    let scene = begin(QUICK, |_, _| {}).await;
    let database = scene.yard.database().display().to_string();
    let server = scene.yard.server(1);
    let call = |more: &[&str]| {
        let args = [
            &[
                "enqueue",
                "stop",
                &server,
                "--label",
                "x",
                "--key",
                "k",
                "--if-absent",
                "--database",
                &database,
            ][..],
            more,
        ]
        .concat();
        run(&args)
    };
    let asked = ["--waves", "1, 5%", "--failures-max", "2%", "--pause", "10m"];
    assert!(call(&asked).status.success());
    assert!(call(&asked).status.success());
    let mut scene = scene;
    let stored = "SELECT waves || '|' || failures_max || '|' || pause || '|' || (SELECT count(*) FROM power_requests) FROM orders";
    assert_eq!(scene.text(stored).await, "1, 5%|2%|10m|1");
    for (args, word) in [
        (&["--waves", "1, 50%"][..], "other waves"),
        (&["--waves", "0"], "--waves must be sizes"),
        (&["--waves", "1", "--pause", "soon"], "--pause must be"),
        (
            &["--waves", "1", "--failures-max", "lots"],
            "--failures-max must be",
        ),
    ] {
        let label = if word == "other waves" {
            &[][..]
        } else {
            &["--label", "z"]
        };
        let said = run(&[
            &["enqueue", "stop", &server, "--database", &database][..],
            if label.is_empty() {
                &["--label", "x"]
            } else {
                label
            },
            args,
        ]
        .concat());
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert_eq!(said.status.code(), Some(2), "{text}");
        assert!(text.contains(word), "{text}");
    }
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_changes_nothing_of_the_waves() {
    let yard = Yard::new(SLOW).await;
    let config = yard.write_config();
    let mut daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    let rows = rows(&yard, 1..=20, "stop");
    let all = format!(
        "BEGIN IMMEDIATE; INSERT INTO orders (label, waves) VALUES ('x', '1, 20%, 40%'); {rows}; COMMIT"
    );
    sql(&mut producer, &all).await;
    let mut dice = Dice(13);
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(50 + dice.roll(500))).await;
        daemon.kill();
        daemon = Daemon::start(&config);
    }
    outcomes(&mut producer).await;
    wait_for(&mut producer, STATE, "done 4").await;
    assert_eq!(text(&mut producer, SIZES).await, "1 4 8 7");
    assert_eq!(text(&mut producer, OVERLAPS).await, "0");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_batch_is_split_within_its_wave() {
    let locked = fault("locked", "servers = [3]");
    let mut scene = begin(&format!("{QUICK}{locked}"), |_, _| {}).await;
    order(&mut scene, "waves, failures_max", "'1, 5', '1'", 1..=8).await;
    let ended = "1 failed/observed/poweryard.locked, 7 succeeded/job";
    assert_eq!(scene.outcomes().await, ended);
    scene.wait_for(STATE, "done 3").await;
    assert_eq!(scene.text(SIZES).await, "1 5 2");
    assert_eq!(scene.text(OVERLAPS).await, "0");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protected_server_is_neither_a_success_nor_a_failure() {
    let mut scene = begin(QUICK, |yard, settings| {
        settings.targets[0].protected = vec![ServerId(yard.server(1))];
    })
    .await;
    order(&mut scene, "waves", "'2'", 1..=4).await;
    let ended = "1 rejected/none/poweryard.protected, 3 succeeded/job";
    assert_eq!(scene.outcomes().await, ended);
    scene.wait_for(STATE, "done 2").await;
    assert_eq!(scene.text(SIZES).await, "2 1");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_rations_a_wave_and_the_next_one_waits_for_all_of_it() {
    let mut scene = begin(QUICK, |_, settings| {
        let budget = Budget {
            servers: 2,
            span: Duration::from_secs(1),
        };
        settings.targets[0].budgets = vec![(PowerAction::Stop, budget)];
    })
    .await;
    order(&mut scene, "waves", "'5, 1'", 1..=6).await;
    assert_eq!(scene.outcomes().await, "6 succeeded/job");
    assert_eq!(scene.text(SIZES).await, "5 1");
    assert_eq!(scene.text(OVERLAPS).await, "0");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_on_a_paused_target_waits_and_goes_on() {
    let mut scene = begin(QUICK, |_, _| {}).await;
    scene.command(&["pause", "--target", "default"]).await;
    order(&mut scene, "waves", "'1, 2'", 1..=4).await;
    scene.wait_for("SELECT wave_taken FROM orders", "1").await;
    let reason = "SELECT reason FROM power_waiting WHERE id = 1";
    assert!(scene.text(reason).await.contains("paused by"));
    sql(
        &mut scene.producer,
        "UPDATE power_requests SET state = 'cancelled' WHERE id = 4",
    )
    .await;
    scene.command(&["resume", "--target", "default"]).await;
    assert_eq!(
        scene.outcomes().await,
        "1 cancelled/none/poweryard.cancelled, 3 succeeded/job"
    );
    scene.wait_for(STATE, "done 2").await;
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_in_the_middle_changes_nothing_of_the_waves() {
    let yard = Yard::new(SLOW).await;
    let (reloads, daemon) = yard.start_reloading(yard.settings());
    let mut scene = Scene {
        producer: yard.producer().await,
        yard,
        daemon,
    };
    order(&mut scene, "waves", "'1, 2'", 1..=5).await;
    scene.wait_for(SENT, "1").await;
    assert!(reload(&reloads, scene.yard.settings()).await);
    scene.wait_for(SENT, "3").await;
    assert!(reload(&reloads, scene.yard.settings()).await);
    assert_eq!(scene.outcomes().await, "5 succeeded/job");
    assert_eq!(scene.text(SIZES).await, "1 2 2");
    assert_eq!(scene.text(OVERLAPS).await, "0");
    scene.daemon.stop().await;
}

/// At most two servers an hour are stopped that nobody has approved.
fn guard(settings: &mut Settings) {
    let two = Budget {
        servers: 2,
        span: Duration::from_secs(3600),
    };
    settings.targets[0].guards = vec![(PowerAction::Stop, two)];
}

const SUCCEEDED: &str = "SELECT count(*) FROM power_requests WHERE state = 'succeeded'";
const FOR_APPROVAL: &str = "SELECT count(*) FROM holds WHERE kind = 'approval'";

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_counts_all_of_an_order_and_its_approval_lets_waves_go() {
    let mut scene = begin(QUICK, |_, settings| guard(settings)).await;
    order(&mut scene, "waves", "'1, 2'", 1..=5).await;
    scene.wait_for(FOR_APPROVAL, "1").await;
    scene.a_round_passes().await;
    assert_eq!(scene.text(SENT).await, "0");
    let reason = scene.text("SELECT reason FROM holds WHERE kind = 'approval'");
    assert!(reason.await.starts_with("5 requests to stop"));

    scene
        .command(&["approve", "--label", "x", "--yes", "5"])
        .await;
    scene.wait_for(STATE, "done 3").await;
    assert_eq!(scene.text(SUCCEEDED).await, "5");
    assert_eq!(scene.text(SIZES).await, "1 2 2");
    assert_eq!(scene.text(OVERLAPS).await, "0");
    assert_eq!(scene.text(FOR_APPROVAL).await, "0");

    // What joins later was not approved.
    let newcomers = rows(&scene.yard, 6..=8, "stop");
    sql(&mut scene.producer, &newcomers).await;
    scene.wait_for(FOR_APPROVAL, "1").await;
    scene.a_round_passes().await;
    assert_eq!(scene.text(SENT).await, "5");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waves_that_left_are_counted_by_the_guard_with_those_that_wait() {
    let mut scene = begin(QUICK, |_, settings| guard(settings)).await;
    order(&mut scene, "waves", "'1'", 1..=2).await;
    assert_eq!(scene.outcomes().await, "2 succeeded/job");
    let third = rows(&scene.yard, [3], "stop");
    sql(&mut scene.producer, &third).await;
    scene.wait_for(FOR_APPROVAL, "1").await;
    scene.a_round_passes().await;
    assert_eq!(scene.text(SENT).await, "2");
    scene
        .command(&["approve", "--label", "x", "--yes", "1"])
        .await;
    scene.wait_for(SUCCEEDED, "3").await;
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_waits_for_its_window_and_a_reason_sends_its_waves() {
    let always = Freeze::parse("2020-01-01..2099-12-31").expect("a freeze");
    let mut scene = begin(QUICK, |_, settings| {
        settings.targets[0].windows.freezes = vec![always];
    })
    .await;
    order(&mut scene, "waves", "'1, 2'", 1..=3).await;
    scene.wait_for("SELECT wave_taken FROM orders", "1").await;
    scene.a_round_passes().await;
    assert_eq!(scene.text(SENT).await, "0");

    let excuse = "UPDATE power_requests SET override_reason = 'fire' WHERE label = 'x'";
    sql(&mut scene.producer, excuse).await;
    scene.wait_for(STATE, "done 2").await;
    assert_eq!(scene.text(SUCCEEDED).await, "3");
    assert_eq!(scene.text(SIZES).await, "1 2");
    assert_eq!(scene.text(OVERLAPS).await, "0");
    let noted =
        "SELECT sum(requests) FROM operator_actions WHERE action = 'override' AND reason = 'fire'";
    assert_eq!(scene.text(noted).await, "3");
    scene.daemon.stop().await;
}

/// A daemon that dies before a commit: nothing of it is stored from then on.
struct Mortal {
    store: Arc<Store>,
    dispatcher: Dispatcher,
}

impl Mortal {
    /// None if it dies while it begins. `commits_left` counts down.
    async fn begin(settings: &Settings, commits_left: &Arc<AtomicI64>) -> Option<Self> {
        let counted = Arc::clone(commits_left);
        let options = StoreOptions {
            synced: false,
            allow_commit: Some(Arc::new(move || counted.fetch_sub(1, Ordering::SeqCst) > 0)),
            ..StoreOptions::default()
        };
        let path = &settings.queue.database;
        let store = Arc::new(Store::open_with(path, &options).await.ok()?);
        store.begin_epoch(daemon::now().utc).await.ok()?;
        let clouds = common::clouds(settings);
        let dispatcher = Dispatcher::new(Arc::clone(&store), settings, clouds, daemon::now()).await;
        let dispatcher = dispatcher.ok()?;
        Some(Self { store, dispatcher })
    }

    /// Works until everything has ended, or until it dies.
    async fn work(mut self, producer: &mut SqliteConnection, commits_left: &AtomicI64) {
        let ends = Instant::now() + PATIENCE;
        while commits_left.load(Ordering::SeqCst) >= 0 && text(producer, STATE).await != "done 3" {
            assert!(Instant::now() < ends, "{}", common::dump(producer).await);
            let round = self.dispatcher.round(daemon::now()).await;
            for task in round.tasks {
                let finished = task.run().await;
                if self
                    .dispatcher
                    .finish(finished, daemon::now())
                    .await
                    .is_err()
                {
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        drop(self.dispatcher);
        if let Some(store) = Arc::into_inner(self.store) {
            store.close().await.expect("closed");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_at_every_commit_lets_no_server_go_too_early() {
    let mut died = 0;
    for commits in 1.. {
        let yard = Yard::new("[bms]\nservers = 5\nrunning = 1.0\noperation_ms = [5, 20]\n").await;
        let settings = yard.settings();
        let path = &settings.queue.database;
        Store::open(path)
            .await
            .expect("a queue")
            .close()
            .await
            .expect("closed");
        let mut producer = yard.producer().await;
        let rows = rows(&yard, 1..=5, "stop");
        let all = format!(
            "BEGIN IMMEDIATE; INSERT INTO orders (label, waves) VALUES ('x', '1, 2'); {rows}; COMMIT"
        );
        sql(&mut producer, &all).await;
        let left = Arc::new(AtomicI64::new(commits));
        if let Some(first) = Mortal::begin(&settings, &left).await {
            first.work(&mut producer, &left).await;
        }
        let is_dead = left.load(Ordering::SeqCst) < 0;
        let forever = Arc::new(AtomicI64::new(i64::MAX));
        let second = Mortal::begin(&settings, &forever).await;
        second
            .expect("it begins")
            .work(&mut producer, &forever)
            .await;
        let ended = "SELECT count(*) FROM power_requests WHERE state = 'succeeded'";
        assert_eq!(text(&mut producer, ended).await, "5", "{commits}");
        assert_eq!(text(&mut producer, SIZES).await, "1 2 2", "{commits}");
        assert_eq!(text(&mut producer, OVERLAPS).await, "0", "{commits}");
        if !is_dead {
            break;
        }
        died += 1;
    }
    assert!(died > 15, "{died}");
}
