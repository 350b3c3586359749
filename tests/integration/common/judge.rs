//! What the rows say of all calls, against what the simulated cloud carried out.

use std::collections::HashMap;

use poweryard::model::PowerAction;
use poweryard::sim::OnOff;
use sqlx::SqliteConnection;

use super::{Yard, text};

/// No server was rebooted more often than its requests say, nor less often than they say for
/// certain; each server is as its newest request left it, if that succeeded; and no batch and no
/// attempt is open.
pub(crate) async fn assert_rows_agree(yard: &Yard, producer: &mut SqliteConnection) {
    let rows: Vec<(String, String, String)> =
        sqlx::query_as("SELECT server_id, action, state FROM power_requests ORDER BY id")
            .fetch_all(&mut *producer)
            .await
            .expect("readable");
    let mut reboots: HashMap<String, usize> = HashMap::new();
    for entry in yard.cloud.ledger() {
        if entry.action == PowerAction::Reboot {
            *reboots.entry(entry.server_id.to_string()).or_default() += 1;
        }
    }
    let mut proved: HashMap<&str, (usize, usize)> = HashMap::new();
    let mut newest: HashMap<&str, (&str, &str)> = HashMap::new();
    for (server, action, state) in &rows {
        newest.insert(server, (action, state));
        if action == "reboot" {
            let (certain, possible) = proved.entry(server).or_default();
            *certain += usize::from(state == "succeeded");
            *possible += usize::from(state == "unknown");
        }
    }
    for (server, (certain, possible)) in &proved {
        let done = reboots.get(*server).copied().unwrap_or_default();
        assert!(
            (*certain..=certain + possible).contains(&done),
            "{server}: {done} reboots for {certain} that succeeded and {possible} that nobody knows of"
        );
    }
    assert!(
        reboots
            .keys()
            .all(|server| proved.contains_key(server.as_str()))
    );
    let power = yard.powers();
    for (server, (action, _)) in newest
        .iter()
        .filter(|(_, (_, state))| *state == "succeeded")
    {
        let wished = if *action == "stop" {
            OnOff::Off
        } else {
            OnOff::On
        };
        assert_eq!(power.get(*server), Some(&wished), "{action} of {server}");
    }
    for open in [
        "SELECT count(*) FROM batches WHERE state <> 'done'",
        "SELECT count(*) FROM request_attempts WHERE result IS NULL",
    ] {
        assert_eq!(text(producer, open).await, "0", "{open}");
    }
}
