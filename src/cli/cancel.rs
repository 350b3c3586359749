//! `cancel`: withdraws what is queued. What is on its way to the cloud stays as it is.

use serde_json::json;

use super::args::{self, JsonArg, QueueArgs};
use super::output;
use super::{Context, Exit, Failure};
use crate::model::{RequestId, RequestState};
use crate::store::desk::{Access, Cancelled};

/// Cancel queued requests.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["ids", "label"]))]
#[command(after_help = "\
Exit code: 1 if a request named by its id could not be cancelled.

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
    let mut desk = args.queue.open(context, Access::Write).await?;
    let mut done = match &args.label {
        Some(label) => desk.cancel_label(label).await?,
        None => desk.cancel(&args::unique(&args.ids)).await?,
    };
    desk.close().await?;
    done.cancelled.sort_unstable();
    match args.json.json {
        true => {
            let kept: Vec<_> = done
                .kept
                .iter()
                .map(|(id, state)| json!({ "id": id, "state": state }))
                .collect();
            output::json(&json!({ "cancelled": done.cancelled, "kept": kept }))?;
        }
        false => output::print(&text(&done))?,
    }
    let by_id = args.label.is_none();
    let was_cancelled = |state: &String| state == RequestState::Cancelled.as_str();
    match by_id && done.kept.iter().any(|(_, state)| !was_cancelled(state)) {
        true => Ok(Exit::Otherwise),
        false => Ok(Exit::Done),
    }
}

fn text(done: &Cancelled) -> String {
    let mut text = format!(
        "cancelled {}\n",
        output::count(done.cancelled.len(), "request")
    );
    for (id, state) in &done.kept {
        text.push_str(&format!("request {id} {}\n", why_kept(state)));
    }
    text
}

fn why_kept(state: &str) -> String {
    match state.parse() {
        Ok(RequestState::Running) => {
            "could not be cancelled: it is being sent to the cloud, or the cloud is carrying it out"
                .to_owned()
        }
        Ok(RequestState::Cancelled) => "was cancelled before".to_owned(),
        _ => format!(
            "could not be cancelled: it has ended as {}",
            output::visible(state)
        ),
    }
}
