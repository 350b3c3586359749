//! `retry`: a new request for each that did not succeed. Never repeats a reboot that may have
//! happened, unless by its id.

use serde_json::json;

use super::args::{self, JsonArg, QueueArgs};
use super::output;
use super::{Context, Exit, Failure};
use crate::model::{PowerAction, RequestId, RequestState};
use crate::store::client::{Access, Retried, RetryCandidate, RetryFilter};

/// Insert a new request for each failed one.
///
/// It has the same server, action, target, priority and label. Servers that have a later request
/// are skipped.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true).args(["ids", "label", "since"]))]
#[command(after_help = "\
With ids, failed and unknown requests are tried again, or those in the states that --state names. An unknown reboot \
may have happened: it is tried again only if you name its id.

Examples:
  poweryard retry --label patch-day
  poweryard retry --since 2h --state failed,expired
  poweryard retry 17")]
pub(super) struct RetryArgs {
    /// The requests' ids.
    #[arg(value_name = "ID", conflicts_with_all = ["label", "since"])]
    ids: Vec<RequestId>,
    /// Requests with exactly this label.
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// The states to try again, separated by commas; by default `failed`.
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = args::states())]
    state: Vec<RequestState>,
    /// Requests that ended since then: a UTC time, or 2h for two hours ago.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) async fn run(context: &Context, args: RetryArgs) -> Result<Exit, Failure> {
    let by_id = !args.ids.is_empty();
    let states = wanted_states(&args.state, by_id)?;
    let mut client = args.queue.open(context, Access::Write).await?;
    let since = match &args.since {
        Some(since) => Some(args::past(&mut client, "--since", since, args::now()).await?),
        None => None,
    };
    let filter = RetryFilter {
        ids: args::unique(&args.ids),
        label: args.label,
        states: states.clone(),
        since,
    };
    let retried = client
        .retry(&filter, args::login_user().as_deref(), |candidate| {
            why_skipped(candidate, &states, by_id)
        })
        .await?;
    client.close().await?;
    if args.json.json {
        output::json(&object(&retried))?
    } else {
        report(&retried)?
    }
    Ok(Exit::Done)
}

fn wanted_states(named: &[RequestState], by_id: bool) -> Result<Vec<RequestState>, Failure> {
    if let Some(open) = named.iter().find(|state| !state.is_terminal()) {
        return Err(Failure::Usage(format!(
            "--state {open}: only requests that have ended can be tried again"
        )));
    }
    Ok(match (named.is_empty(), by_id) {
        (false, _) => named.to_vec(),
        (true, false) => vec![RequestState::Failed],
        (true, true) => vec![RequestState::Failed, RequestState::Unknown],
    })
}

/// Why a request is not tried again; none if it is.
fn why_skipped(candidate: &RetryCandidate, states: &[RequestState], by_id: bool) -> Option<String> {
    let wanted = states.iter().any(|state| state.as_str() == candidate.state);
    let is_harmless = candidate
        .action
        .parse()
        .is_ok_and(|action: PowerAction| !action.leaves_no_mark());
    let unknown_reboot = candidate.state == RequestState::Unknown.as_str() && !is_harmless;
    match candidate.later_id {
        _ if !wanted
            && candidate
                .state
                .parse()
                .is_ok_and(|state: RequestState| !state.is_terminal()) =>
        {
            Some(format!("is {} and has not ended", candidate.state))
        }
        _ if !wanted => Some(format!(
            "ended as {state}; add --state {state} to try it again",
            state = candidate.state
        )),
        _ if unknown_reboot && !by_id => {
            Some("is a reboot that may have happened; name its id to try it again".to_owned())
        }
        Some(later) => Some(format!(
            "server {} has a later request, {later}",
            candidate.server_id
        )),
        None => None,
    }
}

fn object(retried: &Retried) -> serde_json::Value {
    let inserted: Vec<_> = retried
        .inserted
        .iter()
        .map(|(old, new)| json!({ "id": new, "retry_of": old }))
        .collect();
    let skipped: Vec<_> = retried
        .skipped
        .iter()
        .map(|(id, why)| json!({ "id": id, "reason": why }))
        .collect();
    json!({ "inserted": inserted, "skipped": skipped })
}

/// Prints the new ids on stdout, one per line, and remarks on stderr.
fn report(retried: &Retried) -> Result<(), Failure> {
    let ids: String = retried
        .inserted
        .iter()
        .map(|(_, new)| format!("{new}\n"))
        .collect();
    output::print(&ids)?;
    for (id, why) in &retried.skipped {
        output::note(&format!("skipped request {id}: {}", output::visible(why)));
    }
    if retried.inserted.is_empty() && retried.skipped.is_empty() {
        output::note("no request to try again");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(action: &str, state: &str) -> RetryCandidate {
        RetryCandidate {
            id: 1,
            server_id: "s".to_owned(),
            action: action.to_owned(),
            state: state.to_owned(),
            later_id: None,
        }
    }

    #[test]
    fn an_unknown_reboot_is_repeated_only_by_its_id() {
        let unknown = [RequestState::Unknown];
        assert!(why_skipped(&ended("reboot", "unknown"), &unknown, false).is_some());
        assert!(why_skipped(&ended("stop", "unknown"), &unknown, false).is_none());
        assert!(why_skipped(&ended("reboot", "unknown"), &unknown, true).is_none());
    }

    #[test]
    fn a_later_request_for_the_server_speaks_against_it() {
        let failed = RetryCandidate {
            later_id: Some(9),
            ..ended("stop", "failed")
        };
        let why = why_skipped(&failed, &[RequestState::Failed], true).expect("a reason");
        assert!(why.contains('9'), "{why}");
    }

    #[test]
    fn unfinished_states_cannot_be_asked_for() {
        assert!(wanted_states(&[RequestState::Running], false).is_err());
        assert_eq!(
            wanted_states(&[], false).expect("the default"),
            [RequestState::Failed]
        );
    }
}
