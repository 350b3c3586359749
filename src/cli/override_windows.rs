//! `override`: lets queued requests leave outside windows and freezes.

use super::args::{self, JsonArg, QueueArgs};
use super::output::{self, visible};
use super::{Context, Exit, Failure};
use crate::model::{PowerAction, RequestId, counted};
use crate::store::client::{Access, Actor, Selection};

/// Let queued requests leave outside windows and freezes.
///
/// Takes those that are queued now, never those that come later. `enqueue --override-reason` does
/// the same for new ones.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["ids", "label", "target"]))]
#[command(after_help = "\
Guards, budgets, pauses and waves still hold them. The reason is kept in the requests and in operator_actions. Exit code \
2: nothing is queued of what was named.

Example: poweryard override --label evac --reason 'leak in rack 7'")]
pub(super) struct OverrideArgs {
    /// The requests' ids.
    #[arg(value_name = "ID")]
    ids: Vec<RequestId>,
    /// All queued requests with exactly this label.
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// All queued requests of this target and --action.
    #[arg(long, value_name = "NAME", requires = "action")]
    target: Option<String>,
    /// start, stop or reboot; with --target.
    #[arg(long, value_name = "ACTION", value_parser = args::actions(), requires = "target")]
    action: Option<PowerAction>,
    /// Why they may leave.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) async fn run(context: &Context, args: OverrideArgs) -> Result<Exit, Failure> {
    let which = Selection {
        ids: (!args.ids.is_empty()).then(|| args::unique(&args.ids)),
        label: args.label,
        target: args.target,
        action: args.action,
        ..Selection::default()
    };
    let who = args::who();
    let actor = Actor {
        who: &who,
        reason: Some(&args.reason),
    };
    let mut client = args.queue.open(context, Access::Write).await?;
    let done = client.override_windows(actor, &which).await?;
    client.close().await?;
    if args.json.json {
        output::json(&done)?;
    } else {
        let requests = counted(done.done, "request");
        output::print(&format!(
            "{requests} may leave outside windows and freezes\n"
        ))?;
        for left in done.left_alone() {
            output::note(&format!("request {} {}", left.id, visible(&left.message)));
        }
    }
    if done.done > 0 {
        return Ok(Exit::Done);
    }
    Err(Failure::Usage(format!(
        "nothing of {} is queued",
        visible(&which.words())
    )))
}
