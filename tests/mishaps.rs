//! What can happen to the machine under a running daemon: the clock is set, the queue's file goes away.

mod common;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use common::{Yard, insert, outcomes, text, wait_for};
use poweryard::daemon::{self, DaemonError, Dispatcher, Finished};
use poweryard::model::UtcMillis;
use poweryard::settings::SecretRules;
use poweryard::store::{Store, StoreError};

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
