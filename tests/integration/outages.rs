//! The cloud is away, throttles, or does not let itself be read: how many servers find out, what
//! the ledger holds afterwards, and what an operator is told meanwhile.

use crate::common::process::{Daemon, run};
use crate::common::scene::{Scene, fault};
use crate::common::{Yard, insert_many, outcomes, text, wait_for};
use poweryard::model::PowerAction::{Reboot, Stop};
use poweryard::settings::Settings;
use poweryard::sim::{Call, Scenario, SimCloud};
use serde_json::Value;

const CROWD: &str = "[bms]\nservers = 500\nrunning = 1.0\noperation_ms = [10, 20]\n";

/// Servers in each submit call that arrived.
fn carried(calls: &[poweryard::sim::CallRecord]) -> Vec<usize> {
    calls
        .iter()
        .filter(|call| call.call == Call::Submit)
        .map(|call| call.servers)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn in_an_outage_each_call_risks_one_server_and_full_batches_follow_it() {
    let away = fault(
        "error_before",
        "on = [\"submit\"]\ncalls = [1, 2]\nstatus = 503",
    );
    let mut scene = Scene::new(&format!("{CROWD}{away}"), &["batch_servers_max = 100"]).await;
    scene.ask(Reboot, 1..=500).await;
    scene
        .wait_for("SELECT kind FROM holds WHERE until IS NOT NULL", "breaker")
        .await;
    assert_eq!(scene.outcomes().await, "500 succeeded/job");
    // The first call could not know; what it carried came back to the queue.
    let mut carried = carried(&scene.yard.cloud.calls());
    // Those that follow the probe are made side by side.
    carried[3..].sort_unstable();
    assert_eq!(carried, [100, 1, 1, 99, 100, 100, 100, 100]);
    let by_state = "SELECT group_concat(line) FROM (SELECT count(*) || ' ' || result AS line FROM request_attempts GROUP BY result ORDER BY result)";
    assert_eq!(scene.text(by_state).await, "101 not_sent,500 succeeded");
    assert_eq!(
        scene.text("SELECT max(attempts) FROM power_requests").await,
        "1"
    );
    assert_eq!(scene.text("SELECT count(*) FROM holds").await, "0");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_is_of_one_server_whatever_is_asked_and_also_after_a_restart() {
    let away = fault(
        "error_before",
        "on = [\"submit\"]\ncalls = [1, 2]\nstatus = 503",
    );
    let mut scene = Scene::new(&format!("{CROWD}{away}"), &["batch_servers_max = 100"]).await;
    scene.ask(Reboot, 1..=100).await;
    scene
        .wait_for("SELECT kind FROM holds WHERE until IS NOT NULL", "breaker")
        .await;
    scene
        .wait_for(
            "SELECT count(*) FROM power_requests WHERE state = 'queued'",
            "100",
        )
        .await;
    scene.daemon.stop().await;
    // Another action is in doubt, too.
    let servers: Vec<String> = (101..=200)
        .map(|number| scene.yard.server(number))
        .collect();
    insert_many(&mut scene.producer, &servers, "stop").await;
    scene.daemon = scene.yard.start();
    assert_eq!(scene.outcomes().await, "200 succeeded/job");
    scene.daemon.stop().await;
    let carried = carried(&scene.yard.cloud.calls());
    assert_eq!(carried[..3], [100, 1, 1], "{carried:?}");
    assert_eq!(carried[3..].iter().sum::<usize>(), 199, "{carried:?}");
    assert!(
        carried.len() <= 6,
        "a probe for each action, and the rest: {carried:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nobody_listens_each_call_risks_one_server() {
    let mut yard = Yard::new(CROWD).await;
    yard.set("batch_servers_max = 500");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .expect("a free port")
        .local_addr()
        .expect("an address");
    let config = yard.write_config_for("default", &format!("http://{nobody}"));
    let daemon = yard.start_with(Settings::load(&config).expect("a valid config"));
    let mut producer = yard.producer().await;
    let servers = yard.servers(500);
    insert_many(&mut producer, &servers, "reboot").await;
    wait_for(
        &mut producer,
        "SELECT count(*) FROM batches WHERE state = 'done'",
        "3",
    )
    .await;
    wait_for(
        &mut producer,
        "SELECT count(*) FROM power_requests WHERE state = 'queued'",
        "500",
    )
    .await;
    let ledger =
        "SELECT group_concat(server_count) FROM (SELECT server_count FROM batches ORDER BY id)";
    assert_eq!(text(&mut producer, ledger).await, "500,1,1");
    assert!(
        text(&mut producer, "SELECT reason FROM power_waiting LIMIT 1")
            .await
            .starts_with("held: the cloud cannot be reached")
    );
    let cloud = SimCloud::start(nobody, Scenario::from_toml(CROWD).expect("a scenario"))
        .await
        .expect("the port is free");
    assert_eq!(outcomes(&mut producer).await, "500 succeeded/job");
    daemon.stop().await;
    assert!(
        text(&mut producer, ledger).await.ends_with(",1,499"),
        "the probe, then all the others"
    );
    assert_eq!(carried(&cloud.calls()), [1, 499]);
    let attempts: usize = text(&mut producer, "SELECT count(*) FROM request_attempts")
        .await
        .parse()
        .expect("a number");
    assert!(attempts <= 1010, "{attempts} attempts for 500 requests");
    assert_eq!(
        text(&mut producer, "SELECT max(attempts) FROM power_requests").await,
        "1"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_batch_is_resent_whole() {
    let busy = fault(
        "throttle",
        "on = [\"submit\"]\ncalls = [1, 2]\nretry_after_s = 1",
    );
    let mut scene = Scene::new(&format!("{CROWD}{busy}"), &["batch_servers_max = 100"]).await;
    scene.ask(Reboot, 1..=300).await;
    assert_eq!(scene.outcomes().await, "300 succeeded/job");
    assert_eq!(
        carried(&scene.yard.cloud.calls()),
        [100, 100, 100, 100, 100]
    );
    assert_eq!(scene.carried_out(), 300);
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_open_beside_a_throttled_one_does_not_end_the_wait() {
    let slow = fault("slow", "on = [\"submit\"]\ncalls = [1, 2]\ndelay_ms = 500");
    let busy = fault(
        "throttle",
        "on = [\"submit\"]\ncalls = [2]\nretry_after_s = 3000",
    );
    let yard = Yard::new(&format!("{CROWD}{busy}{slow}")).await;
    let daemon = Daemon::start(&yard.write_config());
    let mut producer = yard.producer().await;
    // Two actions are two calls, and leave together; the one that was throttled is known before the
    // other has ended.
    insert_many(&mut producer, &[yard.server(1)], "reboot").await;
    wait_for(&mut producer, "SELECT count(*) FROM batches", "1").await;
    insert_many(&mut producer, &[yard.server(2)], "stop").await;
    wait_for(
        &mut producer,
        "SELECT state FROM power_requests WHERE action = 'reboot'",
        "succeeded",
    )
    .await;
    let held = "SELECT count(*) FROM holds WHERE kind = 'breaker' AND until > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+40 minutes')";
    wait_for(&mut producer, held, "1").await;
    assert_eq!(daemon.stop().await, Some(0));
    let again = Daemon::start(&yard.write_config());
    // What the daemon says of this row shows that it has passed over both.
    let insert = "INSERT INTO power_requests (server_id, action, target) VALUES ('other', 'stop', 'misspelt')";
    sqlx::query(insert)
        .execute(&mut producer)
        .await
        .expect("inserted");
    wait_for(
        &mut producer,
        "SELECT count(*) FROM holds WHERE kind = 'unknown_target'",
        "1",
    )
    .await;
    assert_eq!(again.stop().await, Some(0));
    assert_eq!(carried(&yard.cloud.calls()), [1, 1], "also over a restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_connection_breaks_is_not_repeated_on_another() {
    for action in [Reboot, Stop] {
        let cut = fault("drop_after", "on = [\"submit\"]\ncalls = [1, 2, 3]");
        let mut scene = Scene::new(&format!("{CROWD}{cut}"), &[]).await;
        scene.ask(action, 1..=1).await;
        scene.outcomes().await;
        assert_eq!(carried(&scene.yard.cloud.calls()), [1], "{action}");
        assert_eq!(scene.carried_out(), 1, "{action}");
        scene.daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_call_during_an_outage_does_not_end_the_doubt() {
    let away = fault(
        "error_before",
        "on = [\"submit\"]\ncalls = [1]\nstatus = 503",
    );
    let busy = fault(
        "throttle",
        "on = [\"submit\"]\ncalls = [2]\nretry_after_s = 1",
    );
    let mut scene = Scene::new(&format!("{CROWD}{away}{busy}"), &[]).await;
    scene.ask(Reboot, 1..=200).await;
    assert_eq!(scene.outcomes().await, "200 succeeded/job");
    assert_eq!(carried(&scene.yard.cloud.calls()), [200, 1, 1, 199]);
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_lifts_a_breakers_hold_and_the_next_call_finds_out() {
    let busy = fault(
        "throttle",
        "on = [\"submit\"]\ncalls = [1]\nretry_after_s = 3000",
    );
    let yard = Yard::new(&format!("{CROWD}{busy}")).await;
    let daemon = Daemon::start(&yard.write_config());
    let mut producer = yard.producer().await;
    let servers = yard.servers(30);
    insert_many(&mut producer, &servers, "reboot").await;
    let held =
        "SELECT kind FROM holds WHERE until > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+40 minutes')";
    wait_for(&mut producer, held, "breaker").await;
    wait_for(
        &mut producer,
        "SELECT count(*) FROM power_requests WHERE state = 'queued'",
        "30",
    )
    .await;
    daemon.signal("-HUP");
    assert_eq!(outcomes(&mut producer).await, "30 succeeded/job");
    assert_eq!(text(&mut producer, "SELECT count(*) FROM holds").await, "0");
    assert_eq!(daemon.stop().await, Some(0));
    assert_eq!(carried(&yard.cloud.calls()), [30, 30]);
}

fn database(yard: &Yard) -> String {
    yard.database().display().to_string()
}

async fn said(args: &[&str]) -> String {
    let args: Vec<String> = args.iter().map(ToString::to_string).collect();
    let said = tokio::task::spawn_blocking(move || {
        run(&args.iter().map(String::as_str).collect::<Vec<_>>())
    });
    let said = said.await.expect("it ran");
    assert!(said.status.success(), "{said:?}");
    String::from_utf8(said.stdout).expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_may_not_be_read_is_told_of_until_a_read_succeeds() {
    let calls: Vec<String> = (1..=40).map(|call| call.to_string()).collect();
    let refused = fault(
        "refuse",
        &format!(
            "on = [\"job\"]\ncalls = [{}]\nstatus = 403\ncode = \"APIGW.0302\"\nmessage = \"not authorized\"",
            calls.join(", ")
        ),
    );
    let scenario =
        format!("[bms]\nservers = 1\nrunning = 1.0\noperation_ms = [60000, 60000]\n{refused}");
    let mut scene = Scene::new(&scenario, &[]).await;
    scene.ask(Reboot, [1]).await;
    scene
        .wait_for("SELECT read_error LIKE '%APIGW.0302%' FROM batches", "1")
        .await;
    let database = database(&scene.yard);
    let status = said(&["status", "--database", &database]).await;
    assert!(
        status.contains("the last look failed: ") && status.contains("APIGW.0302"),
        "{status}"
    );
    let status: Value =
        serde_json::from_str(&said(&["status", "--json", "--database", &database]).await)
            .expect("JSON");
    assert!(
        status["batches"][0]["read_error"]
            .to_string()
            .contains("APIGW.0302"),
        "{status:#}"
    );
    let explained = said(&["explain", "1", "--database", &database]).await;
    assert!(
        explained.contains("The last look failed: ") && explained.contains("APIGW.0302"),
        "{explained}"
    );
    let shown: Value =
        serde_json::from_str(&said(&["show", "1", "--json", "--database", &database]).await)
            .expect("JSON");
    assert!(
        shown["batch"]["read_error"]
            .to_string()
            .contains("APIGW.0302"),
        "{shown:#}"
    );
    // What may not be read holds nobody back.
    assert_eq!(scene.text("SELECT count(*) FROM holds").await, "0");
    scene
        .wait_for("SELECT read_error IS NULL FROM batches", "1")
        .await;
    assert_eq!(scene.text("SELECT state FROM batches").await, "tracking");
    let status = said(&["status", "--database", &database]).await;
    assert!(!status.contains("the last look failed"), "{status}");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn if_states_stay_unreadable_the_last_message_names_the_cause() {
    let refused = |calls| {
        fault(
            "refuse",
            &format!("on = [{calls}]\nchance = 1.0\nstatus = 403\ncode = \"APIGW.0302\""),
        )
    };
    let limits = ["job_time_limit = \"1s\"", "look_time_limit = \"1100ms\""];
    let scenario = format!("{CROWD}{}", refused("\"job\", \"list\", \"show\""));
    let mut scene = Scene::new(&scenario, &limits).await;
    scene.ask(Reboot, 1..=3).await;
    scene.ask(Stop, 4..=6).await;
    assert_eq!(
        scene.outcomes().await,
        "6 unknown/none/poweryard.time_limit"
    );
    let named = "SELECT count(*) FROM power_requests WHERE error_message LIKE '%the last look failed: %APIGW.0302%'";
    assert_eq!(scene.text(named).await, "6");
    assert_eq!(
        scene
            .text("SELECT count(*) FROM batches WHERE state <> 'done'")
            .await,
        "0"
    );
    let explained = said(&["explain", "1", "--database", &database(&scene.yard)]).await;
    assert!(explained.contains("APIGW.0302"), "{explained}");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_cannot_be_stored_at_a_stop_are_repeated_after_the_restart() {
    let away = fault(
        "drop_before",
        "on = [\"job\"]\ncalls = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]",
    );
    let mut scene = Scene::new(&format!("{CROWD}{away}"), &[]).await;
    scene.ask(Reboot, 1..=3).await;
    scene
        .wait_for("SELECT read_error IS NOT NULL FROM batches", "1")
        .await;
    scene.daemon.stop().await;
    scene.daemon = scene.yard.start();
    assert_eq!(scene.outcomes().await, "3 succeeded/job");
    assert_eq!(
        scene.text("SELECT count(read_error) FROM batches").await,
        "0",
        "it is done, and nothing is wrong"
    );
    assert_eq!(scene.submits(), 1);
    scene.daemon.stop().await;
}
