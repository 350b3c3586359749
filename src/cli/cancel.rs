//! `cancel`: cancels queued requests. Requests that have been sent stay as they are.

use serde_json::json;

use super::args::{self, JsonArg, QueueArgs, ReasonArg};
use super::output;
use super::{Context, Exit, Failure};
use crate::model::{RequestId, RequestState, counted};
use crate::store::client::{Access, Done, Selection};

/// Cancel queued requests.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["ids", "label"]))]
#[command(after_help = "\
Requests that have been sent are not cancelled. Exit code: 1 if a request named by its id could not be cancelled.

Examples:
  poweryard cancel 17 18
  poweryard cancel --label patch-day")]
pub(super) struct CancelArgs {
    /// The requests' ids.
    #[arg(value_name = "ID")]
    ids: Vec<RequestId>,
    /// All queued requests with exactly this label.
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    #[command(flatten)]
    reason: ReasonArg,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) async fn run(context: &Context, args: CancelArgs) -> Result<Exit, Failure> {
    let mut client = args.queue.open(context, Access::Write).await?;
    let which = match &args.label {
        Some(label) => Selection::of_label(label),
        None => Selection::of_ids(args::unique(&args.ids)),
    };
    let done = client
        .cancel(args.reason.actor(&args::who()), &which)
        .await?;
    client.close().await?;
    if let Some(label) = &args.label
        && done.results.is_empty()
    {
        output::note(&format!(
            "note: no request with the label {:?} is queued or running",
            output::visible(label)
        ));
    }
    if args.json.json {
        output::json(&object(&done))?;
    } else {
        output::print(&text(&done))?;
    }
    let is_by_id = args.label.is_none();
    let some_could_not = done
        .left_alone()
        .any(|kept| kept.state != Some(RequestState::Cancelled));
    Ok(if is_by_id && some_could_not {
        Exit::Otherwise
    } else {
        Exit::Done
    })
}

fn object(done: &Done) -> serde_json::Value {
    let cancelled: Vec<i64> = done
        .results
        .iter()
        .filter(|result| result.ok)
        .map(|result| result.id)
        .collect();
    let kept: Vec<_> = done
        .left_alone()
        .map(|kept| json!({ "id": kept.id, "state": kept.state }))
        .collect();
    json!({ "cancelled": cancelled, "kept": kept })
}

fn text(done: &Done) -> String {
    let mut text = format!("cancelled {}\n", counted(done.done, "request"));
    for kept in done.left_alone() {
        text.push_str(&format!(
            "request {} {}\n",
            kept.id,
            output::visible(&kept.message)
        ));
    }
    text
}
