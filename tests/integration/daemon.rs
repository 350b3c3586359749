//! The daemon against the simulated cloud, over HTTP and on a real file, with rows inserted by
//! another connection.

use crate::common::{Yard, insert, insert_many, outcomes, text};
use poweryard::model::{PowerAction, Service};

const QUICK: &str = "[bms]\nservers = 3000\noperation_ms = [10, 50]\n";

#[tokio::test(flavor = "multi_thread")]
async fn one_row_becomes_one_call_and_a_stored_outcome() {
    let yard = Yard::new(QUICK).await;
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "reboot").await;
    let first = outcomes(&mut producer).await;
    daemon.stop().await;
    let running = yard.cloud.servers()[0].power == poweryard::sim::OnOff::On;
    let expected = if running {
        "1 succeeded/job"
    } else {
        "1 failed/refused/BMS.0039"
    };
    assert_eq!(first, expected);
    assert_eq!(yard.cloud.ledger().len(), usize::from(running));
    assert_eq!(
        text(&mut producer, "SELECT attempts FROM power_requests").await,
        if running { "1" } else { "0" }
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_rows_leave_in_three_calls() {
    let yard = Yard::new(&format!("{QUICK}running = 1.0\n")).await;
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    let servers: Vec<String> = yard
        .cloud
        .server_ids(Service::Bms)
        .iter()
        .map(ToString::to_string)
        .collect();
    insert_many(&mut producer, &servers, "reboot").await;
    assert_eq!(outcomes(&mut producer).await, "3000 succeeded/job");
    daemon.stop().await;
    let submits = yard
        .cloud
        .calls()
        .iter()
        .filter(|call| call.action == Some(PowerAction::Reboot))
        .count();
    assert_eq!(submits, 3);
    let ledger = yard.cloud.ledger();
    assert_eq!(ledger.len(), 3000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_batch_is_explained_and_the_good_servers_go() {
    let faults = "[[faults]]\nkind = \"missing\"\nservers = [7]\n[[faults]]\nkind = \"locked\"\nservers = [8]\n";
    let yard = Yard::new(&format!(
        "[bms]\nservers = 1000\nrunning = 0.7\noperation_ms = [10, 50]\n{faults}"
    ))
    .await;
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    let servers: Vec<String> = yard
        .cloud
        .server_ids(Service::Bms)
        .iter()
        .map(ToString::to_string)
        .collect();
    insert_many(&mut producer, &servers, "stop").await;
    let seen = outcomes(&mut producer).await;
    daemon.stop().await;
    assert!(
        seen.contains("1 failed/observed/poweryard.missing")
            && seen.contains("1 failed/observed/poweryard.locked"),
        "{seen}"
    );
    let submits = yard
        .cloud
        .calls()
        .iter()
        .filter(|call| call.action.is_some())
        .count();
    assert!(submits <= 6, "{submits} submit calls");
    let stopped = text(
        &mut producer,
        "SELECT count(*) FROM power_requests WHERE evidence = 'job'",
    )
    .await;
    assert_eq!(yard.cloud.ledger().len().to_string(), stopped);
}
