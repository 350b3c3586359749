//! What happened to a batch, as one log line that an operator understands. Reads values, decides
//! nothing.

use std::collections::BTreeMap;
use std::error::Error;

use tracing::{info, warn};

use crate::lifecycle::{BatchNext, Event, Step};
use crate::model::{Batch, CallError, LookCause, RequestState, counted};
use crate::store::Restored;

/// An error with its causes, in one line.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Logs that the queue is an older copy.
pub(super) fn restored(restored: &Restored) {
    let unfinished = restored.unfinished;
    let of = restored
        .copied_at
        .as_ref()
        .map(|at| format!(" of {at}"))
        .unwrap_or_default();
    warn!(
        requests.unfinished = unfinished,
        "this queue is an older copy{of}: on hold until `poweryard db release`: {}",
        counted(unfinished, "unfinished request")
    );
}

/// Logs one step of a batch, if there is something to say.
pub(super) fn step(batch: &Batch, step: &Step, error: Option<&CallError>) {
    let id = batch.id;
    let servers = batch.members.len();
    let what = format!("{} of {}", batch.action, counted(servers, "server"));
    let because = error.map(|error| format!(": {error}")).unwrap_or_default();
    match &step.batch {
        BatchNext::Track { job: Some(job), .. } => {
            info!(batch.id = %id, job.id = %job, batch.servers = servers, target = %batch.target, "batch {id}: {what} accepted as job {job}");
        }
        BatchNext::Track { job: None, .. } => {
            info!(batch.id = %id, batch.servers = servers, target = %batch.target, "batch {id}: {what} accepted");
        }
        BatchNext::Look { cause, .. } => {
            let why = cause_sentence(*cause);
            looking(batch, *cause, &format!("{what} {why}{because}"));
        }
        // A read that fails is repeated. Said at looks 1, 2, 4, 8 and so on: an hour of it is not
        // silent, and no flood.
        BatchNext::Again { .. } if error.is_some() && (batch.looks + 1).is_power_of_two() => {
            let look = batch.looks + 1;
            warn!(batch.id = %id, batch.looks = look, target = %batch.target, "batch {id}: look {look} at {what} failed and will be repeated{because}");
        }
        BatchNext::Again { .. } | BatchNext::Done => {}
    }
    settled(batch, step, &because);
}

fn looking(batch: &Batch, cause: LookCause, what: &str) {
    let id = batch.id;
    let servers = batch.members.len();
    match cause {
        LookCause::Refused => {
            info!(batch.id = %id, batch.servers = servers, target = %batch.target, "batch {id}: {what}");
        }
        LookCause::Lost
        | LookCause::Vanished
        | LookCause::TimeLimit
        | LookCause::Gap
        | LookCause::Busy => {
            warn!(batch.id = %id, batch.servers = servers, target = %batch.target, "batch {id}: {what}");
        }
    }
}

fn cause_sentence(cause: LookCause) -> &'static str {
    match cause {
        LookCause::Refused => "was refused as a whole; looking at the servers to find out why",
        LookCause::Lost => "has no certain answer; looking at the servers",
        LookCause::Vanished => "has a job that the cloud no longer knows; looking at the servers",
        LookCause::TimeLimit => "runs longer than job_time_limit; looking at the servers",
        LookCause::Gap => {
            "is over, but the job's answer does not mention all servers; looking at the others"
        }
        LookCause::Busy => {
            "is over, but the job says that a server was busy; looking at it, because it may have been busy with this reboot"
        }
    }
}

/// Logs what ended in this step, and what goes back.
fn settled(batch: &Batch, step: &Step, because: &str) {
    let mut ends: BTreeMap<RequestState, usize> = BTreeMap::new();
    let mut returned = 0;
    for (_, event) in &step.moves {
        match event {
            Event::Ended(end) => *ends.entry(end.state).or_default() += 1,
            Event::Returned(_) => returned += 1,
            Event::Claimed => {}
        }
    }
    let mut parts = Vec::new();
    for (state, count) in &ends {
        parts.push(format!("{count} {state}"));
    }
    let mut why = "";
    if returned > 0 {
        parts.push(format!("{returned} back in the queue"));
        why = because;
    }
    if parts.is_empty() {
        return;
    }
    let open = batch.members.len() - ends.values().sum::<usize>() - returned;
    if open > 0 {
        parts.push(format!("{open} still running"));
    }
    let id = batch.id;
    let parts = parts.join(", ");
    info!(batch.id = %id, target = %batch.target, requests.returned = returned, requests.open = open,
        "batch {id}: {} of {}: {parts}{why}", batch.action, batch.server_count);
}
