//! What the daemon would send, without sending or changing anything: no lock, no write, no call.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tracing::info;

use super::DaemonError;
use super::clock_check::now;
use super::forecast::{ForecastQuery, Outlook, forecast};
use crate::model::{PowerAction, TargetName, counted};
use crate::plan::forecast::{PlannedCall, Waiting};
use crate::settings::Settings;
use crate::store::client::Access;
use crate::store::{QueueClient, Store, StoreError};

/// Logs the plan, and again whenever the queue changes, until `stop` resolves.
///
/// # Errors
/// When the queue is missing, foreign, of another version, or unreadable.
pub async fn dry_run(
    settings: &Settings,
    stop: impl Future<Output = ()>,
) -> Result<(), DaemonError> {
    let path = settings.queue.database.clone();
    let told = tell_plans(settings, &path, stop).await;
    told.map_err(|source| DaemonError::Store { path, source })
}

async fn tell_plans(
    settings: &Settings,
    path: &Path,
    stop: impl Future<Output = ()>,
) -> Result<(), StoreError> {
    let store = Arc::new(Store::open_to_read(path).await?);
    let mut client = QueueClient::open(path, Access::Read).await?;
    let mut changes = store.changes();
    let mut stop = std::pin::pin!(stop);
    let mut told = Vec::new();
    loop {
        let query = ForecastQuery {
            settings: Some(settings),
            ..ForecastQuery::default()
        };
        let outlook = forecast(&mut client, &query, now().utc).await?;
        let lines = lines(&outlook);
        if lines != told {
            lines.iter().for_each(|line| info!("{line}"));
            told = lines;
        }
        tokio::select! {
            () = &mut stop => return Ok(()),
            () = changes.changed() => {}
        }
    }
}

/// The plan as sentences: first what would be sent, then what would not, and why.
fn lines(outlook: &Outlook) -> Vec<String> {
    let mut lines = Vec::new();
    let mut leaving: BTreeMap<(&TargetName, PowerAction), Vec<&PlannedCall>> = BTreeMap::new();
    for call in outlook.forecast.calls_now(outlook.as_of) {
        let calls = leaving.entry((&call.target, call.action)).or_default();
        calls.push(call);
    }
    for ((target, action), calls) in leaving {
        let servers: u64 = calls.iter().map(|call| call.servers).sum();
        lines.push(format!(
            "would send: {action} of {} on target \"{target}\", in {}",
            counted(servers, "server"),
            counted(calls.len(), "call")
        ));
    }
    lines.extend(outlook.forecast.waiting.iter().map(held));
    if lines.is_empty() {
        lines.push("nothing would be sent".to_owned());
    }
    lines
}

fn held(waiting: &Waiting) -> String {
    let until = waiting
        .until
        .map(|until| until.to_string())
        .filter(|until| !waiting.reason.contains(until))
        .map(|until| format!(", until {until}"));
    format!(
        "would not send: {} of {} on target \"{}\": {}{}",
        waiting.action,
        counted(waiting.requests, "server"),
        waiting.target,
        waiting.reason,
        until.unwrap_or_default()
    )
}
