//! `cancel`: cancels queued requests. Requests that have been sent stay as they are.

use serde_json::json;

use super::args::{self, JsonArg, QueueArgs};
use super::output;
use super::{Context, Exit, Failure};
use crate::model::{RequestId, RequestState, counted};
use crate::store::client::{Access, Cancelled};

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
    json: JsonArg,
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) async fn run(context: &Context, args: CancelArgs) -> Result<Exit, Failure> {
    let mut client = args.queue.open(context, Access::Write).await?;
    let mut done = match &args.label {
        Some(label) => client.cancel_label(label).await?,
        None => client.cancel(&args::unique(&args.ids)).await?,
    };
    client.close().await?;
    done.cancelled.sort_unstable();
    if let Some(label) = &args.label
        && done.cancelled.is_empty()
        && done.kept.is_empty()
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
    let some_could_not = done
        .kept
        .iter()
        .any(|(_, state)| state != RequestState::Cancelled.as_str());
    let is_by_id = args.label.is_none();
    Ok(if is_by_id && some_could_not {
        Exit::Otherwise
    } else {
        Exit::Done
    })
}

fn object(done: &Cancelled) -> serde_json::Value {
    let kept: Vec<_> = done
        .kept
        .iter()
        .map(|(id, state)| json!({ "id": id, "state": state }))
        .collect();
    json!({ "cancelled": done.cancelled, "kept": kept })
}

fn text(done: &Cancelled) -> String {
    let mut text = format!("cancelled {}\n", counted(done.cancelled.len(), "request"));
    for (id, state) in &done.kept {
        text.push_str(&format!("request {id} {}\n", why_kept(state)));
    }
    text
}

fn why_kept(state: &str) -> String {
    match state.parse() {
        Ok(RequestState::Running) => {
            "could not be cancelled: it has already been sent to the cloud".to_owned()
        }
        Ok(RequestState::Cancelled) => "was already cancelled".to_owned(),
        _ => format!(
            "could not be cancelled: it has ended as {}",
            output::visible(state)
        ),
    }
}
