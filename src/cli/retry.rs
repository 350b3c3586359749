//! `retry`: a new request for each that did not succeed.

use serde_json::json;

use super::args::{self, JsonArg, QueueArgs, ReasonArg};
use super::output;
use super::{Context, Exit, Failure};
use crate::model::{RequestId, RequestState};
use crate::store::client::{Access, Done, Selection};

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
    reason: ReasonArg,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) async fn run(context: &Context, args: RetryArgs) -> Result<Exit, Failure> {
    let mut client = args.queue.open(context, Access::Write).await?;
    let since = match &args.since {
        Some(since) => Some(args::past(&mut client, since, args::now()).await?),
        None => None,
    };
    let which = Selection {
        ids: (!args.ids.is_empty()).then(|| args::unique(&args.ids)),
        label: args.label,
        states: args.state,
        since,
        ..Selection::default()
    };
    let done = client
        .retry(args.reason.actor(&args::who()), &which)
        .await?;
    client.close().await?;
    if args.json.json {
        output::json(&object(&done))?
    } else {
        report(&done)?
    }
    Ok(Exit::Done)
}

/// The ids of ended requests, each with the id of its new one.
fn inserted(done: &Done) -> impl Iterator<Item = (i64, i64)> {
    let results = done.results.iter();
    results.filter_map(|result| Some((result.id, result.new_id?)))
}

fn object(done: &Done) -> serde_json::Value {
    let inserted: Vec<_> = inserted(done)
        .map(|(old, new)| json!({ "id": new, "retry_of": old }))
        .collect();
    let skipped: Vec<_> = done
        .left_alone()
        .map(|left| json!({ "id": left.id, "reason": left.message }))
        .collect();
    json!({ "inserted": inserted, "skipped": skipped })
}

/// Prints the new ids on stdout, one per line, and remarks on stderr.
fn report(done: &Done) -> Result<(), Failure> {
    let ids: String = inserted(done).map(|(_, new)| format!("{new}\n")).collect();
    output::print(&ids)?;
    for left in done.left_alone() {
        let why = output::visible(&left.message);
        output::note(&format!("skipped request {}: {why}", left.id));
    }
    if done.results.is_empty() {
        output::note("no request to try again");
    }
    Ok(())
}
