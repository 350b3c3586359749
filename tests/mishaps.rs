//! What can happen to the machine under a running daemon: the clock is set, the queue's file goes away.

mod common;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use common::{Yard, insert, outcomes, text, wait_for};
use poweryard::daemon::{self, DaemonError, Dispatcher, Finished};
use poweryard::model::{PowerAction, UtcMillis};
use poweryard::settings::SecretRules;
use poweryard::store::{Store, StoreError};
use sqlx::AssertSqlSafe;

const SLOW_JOB: &str = "[bms]\nservers = 4\nrunning = 1.0\noperation_ms = [300, 300]\n";
const HOUR: Duration = Duration::from_secs(3600);

/// Rounds at the times that `clock` shows, each task carried out at once.
async fn round(dispatcher: &mut Dispatcher, now: UtcMillis) {
    let round = dispatcher.round(now).await;
    assert!(round.trouble.is_none(), "{:?}", round.trouble);
    for task in round.tasks {
        let finished: Finished = task.run().await;
        dispatcher.finish(finished, now).await.expect("stored");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_steps_back_an_hour_parks_neither_a_running_batch_nor_a_waiting_row() {
    let yard = Yard::new(SLOW_JOB).await;
    let settings = yard.settings();
    let clouds = daemon::connect_all(&settings, &SecretRules::new(&settings.queue.database, None)).expect("secrets");
    let store = Arc::new(Store::open(&settings.queue.database).await.expect("a queue"));
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    // The daemon's clock is an hour ahead, and is then put right.
    let ahead = daemon::now() + HOUR;
    let mut dispatcher = Dispatcher::new(store, &settings, clouds, ahead).await.expect("begun");
    while text(&mut producer, "SELECT state FROM power_requests").await != "running" {
        round(&mut dispatcher, ahead).await;
    }
    insert(&mut producer, &yard.server(2), "stop").await;
    for _ in 0..400 {
        round(&mut dispatcher, daemon::now()).await;
        if text(&mut producer, "SELECT count(*) FROM power_requests WHERE finished_at IS NULL").await == "0" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(outcomes(&mut producer).await, "2 succeeded/job");
    assert_eq!(yard.cloud.ledger().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_whose_file_was_replaced_ends_instead_of_working_on_what_nobody_sees() {
    let yard = Yard::new(SLOW_JOB).await;
    let settings = yard.settings();
    let path = settings.queue.database.clone();
    let clouds = daemon::connect_all(&settings, &SecretRules::new(&path, None)).expect("secrets");
    let daemon = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(daemon::run(&settings, clouds, std::future::pending()))
    });
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    wait_for(&mut producer, "SELECT state FROM power_requests", "succeeded").await;
    fs::rename(&path, path.with_extension("old")).expect("moved away");
    fs::write(&path, "").expect("another file");
    let ended = tokio::task::spawn_blocking(|| daemon.join()).await.expect("joined").expect("no panic");
    let DaemonError::Store { source, .. } = ended.expect_err("it cannot go on");
    assert!(matches!(source, StoreError::Replaced(_)), "{source}");
}

/// The ledgers' own guards, out of the way of a hand that means it.
const BY_FORCE: &str = "DROP TRIGGER batches_check_delete; DROP TRIGGER request_attempts_check_delete;";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_batch_was_removed_by_force_ends_unknown_and_the_next_of_its_server_goes_out() {
    for removed in
        ["DELETE FROM batches", "DELETE FROM request_attempts", "DELETE FROM batches; DELETE FROM request_attempts"]
    {
        let mut yard = Yard::new("[bms]\nservers = 2\nrunning = 1.0\noperation_ms = [10, 10]\n").await;
        yard.set("first_look = \"30s\"");
        yard.set("look_interval_max = \"30s\"");
        let daemon = yard.start();
        let mut producer = yard.producer().await;
        let lost = insert(&mut producer, &yard.server(1), "reboot").await;
        wait_for(&mut producer, "SELECT state FROM power_requests", "running").await;
        daemon.stop().await;
        // What is left of it is looked at at once.
        let force = format!("UPDATE batches SET next_look_at = intent_at; {BY_FORCE} {removed}");
        sqlx::raw_sql(AssertSqlSafe(force)).execute(&mut producer).await.expect("removed");
        let next = insert(&mut producer, &yard.server(1), "stop").await;
        let other = insert(&mut producer, &yard.server(2), "stop").await;
        yard.set("first_look = \"20ms\"");
        let daemon = yard.start();
        assert_eq!(outcomes(&mut producer).await, "2 succeeded/job, 1 unknown/none/poweryard.orphaned", "{removed}");
        wait_for(&mut producer, "SELECT count(*) FROM batches WHERE state <> 'done'", "0").await;
        daemon.stop().await;
        assert_eq!(
            text(&mut producer, &format!("SELECT state FROM power_requests WHERE id = {lost}")).await,
            "unknown"
        );
        let carried_out: Vec<_> = yard.cloud.ledger().iter().map(|entry| entry.action).collect();
        assert_eq!(carried_out, [PowerAction::Reboot, PowerAction::Stop, PowerAction::Stop], "{next} and {other} went");
        let open = "SELECT count(*) FROM request_attempts WHERE result IS NULL";
        assert_eq!(text(&mut producer, open).await, "0", "{removed}: an open attempt can never be pruned");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_that_was_never_carried_out_is_not_proved_by_an_earlier_unknown_one() {
    let lost = |kind: &str, call: u32| format!("[[faults]]\nkind = \"{kind}\"\non = [\"submit\"]\ncalls = [{call}]\n");
    let faults = lost("drop_after", 1) + &lost("drop_before", 2);
    let mut yard =
        Yard::new(&format!("[bms]\nservers = 1\nrunning = 1.0\noperation_ms = [3500, 3500]\n{faults}")).await;
    yard.set("look_time_limit = \"1100ms\"");
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "reboot").await;
    assert_eq!(outcomes(&mut producer).await, "1 unknown/none/poweryard.time_limit");
    daemon.stop().await;
    // The first reboot is still under way when the second call is lost before it reaches the cloud.
    yard.set("look_time_limit = \"15s\"");
    insert(&mut producer, &yard.server(1), "reboot").await;
    let daemon = yard.start();
    wait_for(&mut producer, "SELECT seen FROM request_attempts WHERE batch_id = 2", "moving").await;
    assert_eq!(outcomes(&mut producer).await, "1 unknown/none/poweryard.time_limit, 1 unknown/none/poweryard.unproved");
    daemon.stop().await;
    assert_eq!(yard.cloud.ledger().len(), 1, "the second was never carried out");
}
