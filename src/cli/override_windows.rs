//! `override`: lets queued requests leave outside windows and freezes.

use super::args::{self, JsonArg, QueueArgs, QueuedArgs};
use super::output::{self, visible};
use super::{Context, Exit, Failure};
use crate::model::counted;
use crate::store::client::{Access, Actor};

/// Let queued requests leave outside windows and freezes.
///
/// Takes those that are queued now, never those that come later. `enqueue --override-reason` does
/// the same for new ones.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Guards, budgets, pauses and waves still hold them. The reason is kept in the requests and in operator_actions. Exit code \
2: nothing is queued of what was named.

Example: poweryard override --label evac --reason 'leak in rack 7'")]
pub(super) struct OverrideArgs {
    #[command(flatten)]
    which: QueuedArgs,
    /// Why they may leave.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) async fn run(context: &Context, args: OverrideArgs) -> Result<Exit, Failure> {
    let which = args.which.selection();
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
