//! The daemon dies and comes back: `kill -9` at any moment, SIGTERM in the middle of a call, a
//! second daemon. The real program on a real file; judged by its rows against the ledger of the
//! simulated cloud.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::common::judge::assert_rows_agree;
use crate::common::process::{self, Daemon, Dice, Ear, until};
use crate::common::{self, Yard, insert, outcomes, text, wait_for};
use poweryard::model::{PowerAction, Service};
use poweryard::sim::{Call, CallRecord};
use sqlx::SqliteConnection;

const KILLS: usize = 25;
const ROWS: usize = 2000;
const ROWS_A_RUN: usize = ROWS / KILLS;

/// A request as it ended, with the job of the batch that carried it last.
#[derive(Debug, sqlx::FromRow)]
struct Ended {
    server_id: String,
    action: String,
    state: String,
    evidence: String,
    error_code: Option<String>,
    job_id: Option<String>,
}

fn submits(yard: &Yard) -> Vec<CallRecord> {
    yard.cloud
        .calls()
        .into_iter()
        .filter(|call| call.call == Call::Submit)
        .collect()
}

async fn insert_some(producer: &mut SqliteConnection, servers: &[String], dice: &mut Dice) {
    let rows: Vec<(String, &str)> = (0..ROWS_A_RUN)
        .map(|_| {
            let server = servers[dice.roll(servers.len() as u64 - 1) as usize].clone();
            (server, PowerAction::ALL[dice.roll(2) as usize].as_str())
        })
        .collect();
    sqlx::query("INSERT INTO power_requests (server_id, action) SELECT value ->> 0, value ->> 1 FROM json_each(?)")
        .bind(serde_json::to_string(&rows).expect("text"))
        .execute(producer)
        .await
        .expect("accepted");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_rebooted_twice_by_twenty_five_kills() {
    let begin = Instant::now();
    let faults = "[[faults]]\nkind = \"drop_after\"\non = [\"submit\"]\ncalls = [5, 25, 45]\n\
                  [[faults]]\nkind = \"error_after\"\non = [\"submit\"]\ncalls = [12, 35]\n\
                  [[faults]]\nkind = \"error_before\"\ncalls = [18, 40]\n\
                  [[faults]]\nkind = \"job_vanishes\"\nchance = 0.02\n\
                  [[faults]]\nkind = \"sub_job_fails\"\nchance = 0.02\n\
                  [[faults]]\nkind = \"sub_job_left_out\"\nchance = 0.02\n\
                  [[faults]]\nkind = \"missing\"\nchance = 0.005\n\
                  [[faults]]\nkind = \"locked\"\nchance = 0.005\n";
    let scenario = format!(
        "[bms]\nservers = 2000\nrunning = 0.6\noperation_ms = [20, 600]\nrefusals = \"sub_job\"\n\
         [latency]\nsubmit_ms = [0, 120]\njob_ms = [0, 20]\n{faults}"
    );
    let mut yard = Yard::new(&scenario).await;
    yard.target_lines.push_str("batch_servers_max = 25\n");
    let config = yard.write_config();
    let servers: Vec<String> = yard
        .cloud
        .server_ids(Service::Bms)
        .iter()
        .map(ToString::to_string)
        .collect();
    let mut dice = Dice(20_261_121);

    // While the queue is being made, too.
    for _ in 0..4 {
        let daemon = Daemon::start(&config);
        tokio::time::sleep(Duration::from_millis(dice.roll(40))).await;
        daemon.kill();
    }
    let daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    daemon.kill();
    let mut open_calls = 0;
    for _ in 0..KILLS {
        let daemon = Daemon::start(&config);
        insert_some(&mut producer, &servers, &mut dice).await;
        tokio::time::sleep(Duration::from_millis(20 + dice.roll(240))).await;
        if dice.roll(3) == 0 {
            wait_for_an_open_call(&mut producer).await;
        }
        daemon.kill();
        open_calls += calls_open(&mut producer).await;
    }
    assert!(
        open_calls >= 5,
        "only {open_calls} calls were open when the daemon died: the test tests too little"
    );
    let killed_after = begin.elapsed();
    let daemon = Daemon::start(&config);
    let summary = outcomes(&mut producer).await;
    assert_eq!(daemon.stop().await, Some(0));
    println!(
        "{open_calls} open calls at {KILLS} kills in {killed_after:?}, all done in {:?}: {summary}",
        begin.elapsed()
    );
    judge(&yard, &mut producer).await;
}

async fn calls_open(producer: &mut SqliteConnection) -> u64 {
    let open = "SELECT count(*) FROM batches WHERE state = 'submitting'";
    text(producer, open).await.parse().expect("a number")
}

/// Until a call is open, or for half a second: perhaps nothing can be sent now.
async fn wait_for_an_open_call(producer: &mut SqliteConnection) {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(500) && calls_open(producer).await == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn judge(yard: &Yard, producer: &mut SqliteConnection) {
    let rows: Vec<Ended> = sqlx::query_as(
        "SELECT r.server_id, r.action, r.state, r.evidence, r.error_code, b.job_id
         FROM power_requests r LEFT JOIN batches b ON b.id = r.batch_id ORDER BY r.id",
    )
    .fetch_all(&mut *producer)
    .await
    .expect("readable");
    assert_eq!(rows.len(), ROWS);
    let mut carried_out: HashMap<(String, String, String), usize> = HashMap::new();
    for entry in yard.cloud.ledger() {
        let key = (
            entry.batch.to_string(),
            entry.server_id.to_string(),
            entry.action.to_string(),
        );
        *carried_out.entry(key).or_default() += 1;
    }
    assert!(carried_out.values().all(|&count| count == 1));
    for row in &rows {
        let own = row.job_id.as_ref().and_then(|job| {
            carried_out
                .get(&(job.clone(), row.server_id.clone(), row.action.clone()))
                .copied()
        });
        match (row.state.as_str(), row.evidence.as_str()) {
            ("succeeded", "job") => assert_eq!(own, Some(1), "{row:?}"),
            ("failed", _) => assert_eq!(own, None, "{row:?}"),
            ("succeeded", "observed" | "already") => {}
            ("unknown", "none") => assert!(row.error_code.is_some(), "{row:?}"),
            _ => panic!("{row:?}"),
        }
        if row.state == "unknown" {
            let by_time = row.error_code.as_deref() == Some("poweryard.time_limit");
            assert!(row.action == "reboot" || by_time, "{row:?}");
        }
    }
    let overtaken =
        "SELECT count(*) FROM power_requests a JOIN power_requests b ON b.server_id = a.server_id AND b.id > a.id
                     WHERE b.submitted_at < a.finished_at";
    assert_eq!(
        text(producer, overtaken).await,
        "0",
        "requests of one server went out of their order"
    );
    assert_rows_agree(yard, producer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_of_a_call_stores_its_answer_and_sends_nothing_new() {
    let yard =
        Yard::new("[bms]\nservers = 10\nrunning = 1.0\noperation_ms = [10, 20]\n[latency]\nsubmit_ms = [1000, 1000]\n")
            .await;
    let config = yard.write_config();
    let ear = Ear::new(yard.dir.path());
    let mut daemon = Daemon::start_telling(&config, Some(&ear));
    let mut producer = yard.producer().await;
    let first = insert(&mut producer, &yard.server(1), "reboot").await;
    until("the call has arrived", || submits(&yard).len() == 1).await;
    daemon.ask_to_stop();
    ear.hear("STOPPING=1").await;
    let second = insert(&mut producer, &yard.server(2), "reboot").await;
    assert_eq!(daemon.exit_code().await, Some(0));
    let of = |id: i64, what: &str| {
        format!(
            "SELECT {what} FROM power_requests LEFT JOIN batches b ON b.id = batch_id WHERE power_requests.id = {id}"
        )
    };
    assert_eq!(
        text(
            &mut producer,
            &of(first, "power_requests.state || ' ' || b.state")
        )
        .await,
        "running tracking"
    );
    let job = text(&mut producer, &of(first, "job_id")).await;
    assert_eq!(job, yard.cloud.ledger()[0].batch.to_string());
    assert_eq!(
        text(&mut producer, &of(second, "power_requests.state")).await,
        "queued"
    );
    assert_eq!(submits(&yard).len(), 1);

    let daemon = Daemon::start(&config);
    assert_eq!(outcomes(&mut producer).await, "2 succeeded/job");
    assert_eq!(daemon.stop().await, Some(0));
    assert_eq!((submits(&yard).len(), yard.cloud.ledger().len()), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let yard = Yard::new("[bms]\nservers = 10\nrunning = 1.0\noperation_ms = [10, 20]\n").await;
    let config = yard.write_config();
    let first = Daemon::start(&config);
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    assert_eq!(outcomes(&mut producer).await, "1 succeeded/job");
    let refused = process::run(&["--config", &config.display().to_string(), "serve"]);
    assert_eq!(refused.status.code(), Some(5));
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains(&format!("pid {}", first.pid())),
        "it names the first"
    );
    insert(&mut producer, &yard.server(2), "stop").await;
    assert_eq!(outcomes(&mut producer).await, "2 succeeded/job");
    assert_eq!(first.stop().await, Some(0));
}

/// A request for a target that nobody has is held in the next round: once it is, the daemon has
/// seen all that was there before.
async fn a_round_has_passed(producer: &mut SqliteConnection) {
    let marker = format!(
        "nobody-{}",
        text(producer, "SELECT count(*) FROM power_requests").await
    );
    sqlx::query("INSERT INTO power_requests (server_id, action, target) VALUES ('x', 'stop', ?)")
        .bind(&marker)
        .execute(&mut *producer)
        .await
        .expect("accepted");
    wait_for(
        producer,
        &format!("SELECT count(*) FROM holds WHERE target = '{marker}'"),
        "1",
    )
    .await;
    sqlx::query("UPDATE power_requests SET state = 'cancelled' WHERE target = ?")
        .bind(&marker)
        .execute(producer)
        .await
        .expect("accepted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_to_the_pace_of_the_minute_before() {
    let mut yard = Yard::new("[bms]\nservers = 10\nrunning = 1.0\noperation_ms = [10, 20]\n").await;
    let slow = "submits_per_minute = 3\nbatch_servers_max = 1";
    yard.target_lines = yard.target_lines.replace("submits_per_minute = 6000", slow);
    let config = yard.write_config();
    let daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    for number in 1..=5 {
        insert(&mut producer, &yard.server(number), "stop").await;
    }
    let done = "SELECT count(*) FROM power_requests WHERE state = 'succeeded'";
    wait_for(&mut producer, done, "3").await;
    daemon.kill();
    for _ in 0..2 {
        let daemon = Daemon::start(&config);
        a_round_has_passed(&mut producer).await;
        a_round_has_passed(&mut producer).await;
        daemon.kill();
    }
    assert_eq!(text(&mut producer, done).await, "3");
    assert_eq!(submits(&yard).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_an_operators_hold_and_the_wait_the_cloud_asked_for() {
    let faults =
        "[[faults]]\nkind = \"throttle\"\nretry_after_s = 4\non = [\"submit\"]\ncalls = [1]\n";
    let yard = Yard::new(&format!(
        "[bms]\nservers = 10\nrunning = 1.0\noperation_ms = [10, 20]\n{faults}"
    ))
    .await;
    let config = yard.write_config();
    let database = yard.database().display().to_string();
    let daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    let pause = process::run(&["pause", "--action", "stop", "--database", &database]);
    assert_eq!(pause.status.code(), Some(0));
    insert(&mut producer, &yard.server(1), "stop").await;
    insert(&mut producer, &yard.server(2), "reboot").await;
    wait_for(
        &mut producer,
        "SELECT count(*) FROM holds WHERE kind = 'breaker'",
        "1",
    )
    .await;
    // The hold is stored first, and then what became of the call.
    wait_for(
        &mut producer,
        "SELECT count(*) FROM batches WHERE state = 'done'",
        "1",
    )
    .await;
    daemon.kill();

    let daemon = Daemon::start(&config);
    a_round_has_passed(&mut producer).await;
    assert_eq!(
        submits(&yard).len(),
        1,
        "a new daemon waits as the old one did"
    );
    wait_for(
        &mut producer,
        "SELECT state FROM power_requests WHERE action = 'reboot'",
        "succeeded",
    )
    .await;
    let calls = submits(&yard);
    assert_eq!(calls.len(), 2);
    assert!(
        calls[1].at.since(calls[0].at) >= Duration::from_secs(4),
        "{calls:?}"
    );
    let waiting = "SELECT reason FROM power_waiting WHERE action = 'stop' AND target = 'default'";
    assert!(text(&mut producer, waiting).await.starts_with("held: "));
    let resume = process::run(&["resume", "--action", "stop", "--database", &database]);
    assert_eq!(resume.status.code(), Some(0));
    wait_for(
        &mut producer,
        "SELECT state FROM power_requests WHERE action = 'stop' AND target = 'default'",
        "succeeded",
    )
    .await;
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_with_the_halves_of_a_refused_batch() {
    let faults = "[[faults]]\nkind = \"missing\"\nservers = [11]\n\
                  [[faults]]\nkind = \"error_before\"\nstatus = 502\non = [\"list\", \"show\"]\nchance = 1.0\n";
    let scenario = format!(
        "[bms]\nservers = 16\nrunning = 1.0\noperation_ms = [10, 20]\n[latency]\nsubmit_ms = [150, 150]\n{faults}"
    );
    let yard = Yard::new(&scenario).await;
    let config = yard.write_config();
    let daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    let servers = yard.servers(16);
    common::insert_many(&mut producer, &servers, "stop").await;
    // The first look finds nothing, so the batch is split; the halves are on disk before they are
    // sent.
    wait_for(
        &mut producer,
        "SELECT count(*) FROM batches WHERE travel_group <> 0",
        "2",
    )
    .await;
    until("both halves have arrived", || submits(&yard).len() == 3).await;
    daemon.kill();

    let daemon = Daemon::start(&config);
    // What was in flight is unknown: the states that could prove it cannot be read. What was queued
    // goes on by itself.
    let seen = outcomes(&mut producer).await;
    assert_eq!(daemon.stop().await, Some(0));
    let reboots = yard.cloud.ledger();
    assert!(
        reboots.len() <= 15
            && reboots
                .iter()
                .all(|entry| entry.server_id.to_string() != servers[10])
    );
    let twice = reboots.iter().any(|a| {
        reboots
            .iter()
            .filter(|b| b.server_id == a.server_id)
            .count()
            > 1
    });
    assert!(!twice, "{seen}");
    let groups = "SELECT max(groups) FROM (SELECT count(DISTINCT travel_group) AS groups FROM batches GROUP BY travel_group)";
    assert_eq!(text(&mut producer, groups).await, "1");
}
