//! Whether what the queue says agrees with what the cloud really did. Pure.

use std::collections::HashMap;

use crate::cli::servers;
use crate::model::{Power, PowerAction, ServerId, Service};
use crate::sim::{LedgerEntry, OnOff, ServerSummary};
use crate::store::client::RequestRecord;

/// One sentence for each request whose outcome does not agree with the cloud's ledger. Each server
/// has one request; `service` tells whose server it is by the request's target.
pub(super) fn disagreements(
    rows: &[RequestRecord],
    service: impl Fn(&str) -> Option<Service>,
    ledger: &[LedgerEntry],
    servers: &[ServerSummary],
) -> Vec<String> {
    let mut done: HashMap<(Service, &ServerId), Vec<PowerAction>> = HashMap::new();
    for entry in ledger {
        done.entry((entry.service, &entry.server_id))
            .or_default()
            .push(entry.action);
    }
    let power: HashMap<(Service, &ServerId), OnOff> = servers
        .iter()
        .map(|server| ((server.service, &server.server_id), server.power))
        .collect();
    let mut disagreements = Vec::new();
    for row in rows {
        let server = ServerId(row.server_id.clone());
        let wrong = match service(&row.target).map(|service| (service, &server)) {
            Some(server) => {
                let done = done.get(&server).map_or(&[][..], Vec::as_slice);
                disagreement(row, done, power.get(&server).copied())
            }
            None => Some("there is no such target".to_owned()),
        };
        if let Some(wrong) = wrong {
            disagreements.push(format!(
                "request {} ({} of {}) is {}, but {wrong}",
                row.id,
                row.action,
                servers::shown(&row.server_id, row.name.as_deref()),
                row.state
            ));
        }
    }
    disagreements
}

/// What contradicts a row, if anything does.
fn disagreement(row: &RequestRecord, done: &[PowerAction], power: Option<OnOff>) -> Option<String> {
    let Ok(action) = row.action.parse::<PowerAction>() else {
        return Some("there is no such action".to_owned());
    };
    let is_reboot = action.leaves_no_mark();
    if done.iter().any(|carried_out| *carried_out != action) {
        return Some("the cloud did something else".to_owned());
    }
    if is_reboot && done.len() > 1 {
        return Some(format!("the cloud rebooted it {} times", done.len()));
    }
    let wished = OnOff::from(action.wished_power() == Power::On);
    let evidence = row.evidence.as_deref().unwrap_or_default();
    match (row.state.as_str(), evidence) {
        ("succeeded", _) if power != Some(wished) => Some(format!("its power is {power:?}")),
        ("succeeded", "job") if done.is_empty() => Some("the cloud did nothing".to_owned()),
        ("succeeded", _) if is_reboot && done.is_empty() => {
            Some("the cloud did not reboot it".to_owned())
        }
        ("succeeded" | "unknown", _) => None,
        ("failed", _) if !done.is_empty() => Some("the cloud carried it out".to_owned()),
        ("failed", _) => None,
        _ => Some("that is not a final state".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(action: &str, state: &str, evidence: &str) -> RequestRecord {
        RequestRecord {
            action: action.into(),
            state: state.into(),
            evidence: Some(evidence.into()),
            ..RequestRecord::default()
        }
    }

    #[test]
    fn an_outcome_that_the_ledger_does_not_bear_out_is_found() {
        let reboot = PowerAction::Reboot;
        let on = Some(OnOff::On);
        assert_eq!(
            disagreement(&row("reboot", "succeeded", "job"), &[reboot], on),
            None
        );
        assert!(disagreement(&row("reboot", "succeeded", "job"), &[], on).is_some());
        assert!(disagreement(&row("reboot", "succeeded", "observed"), &[], on).is_some());
        assert!(disagreement(&row("reboot", "unknown", "none"), &[reboot, reboot], on).is_some());
        assert!(disagreement(&row("reboot", "failed", "job"), &[reboot], on).is_some());
        assert!(disagreement(&row("stop", "succeeded", "already"), &[], on).is_some());
        assert_eq!(
            disagreement(&row("stop", "succeeded", "already"), &[], Some(OnOff::Off)),
            None
        );
        assert!(disagreement(&row("stop", "running", ""), &[], on).is_some());
    }
}
