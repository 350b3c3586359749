//! `pause` and `resume`: an operator's hold. Nothing new is sent; what runs is still followed.

use super::args::{self, QueueArgs, ReasonArg};
use super::output;
use super::{Context, Exit, Failure};
use crate::model::{HoldKind, LetGo, PowerAction, counted};
use crate::store::client::{Access, HoldRecord, Lets, Selection, scope_name};

/// Hold requests: nothing new is sent; the daemon still follows what is running.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without --target every target is paused, without --action every action, without --label every label.

Examples:
  poweryard pause --target default --action stop --reason 'rack 7 is being moved'
  poweryard pause --label kernel")]
pub(super) struct PauseArgs {
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    reason: ReasonArg,
    #[command(flatten)]
    queue: QueueArgs,
}

/// End a pause, or let the next wave of an order go.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Ends only the pause that was made with the same --target, --action and --label. Other pauses stay and are listed.
If the label is not paused, but its order has a wave that is held, --label lets that wave go in spite of what holds it.

Examples:
  poweryard resume --target default --action stop
  poweryard resume --label kernel
  poweryard resume --all")]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    scope: Scope,
    /// End all pauses, also those of other people.
    #[arg(long, conflicts_with_all = ["target", "action", "label"])]
    all: bool,
    /// Of the label's order let all waves go that remain.
    #[arg(long, requires = "label", conflicts_with_all = ["target", "action", "all"])]
    rest: bool,
    #[command(flatten)]
    reason: ReasonArg,
    #[command(flatten)]
    queue: QueueArgs,
}

#[derive(Debug, clap::Args)]
struct Scope {
    /// Only this target.
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Only this action: start, stop or reboot.
    #[arg(long, value_name = "ACTION", value_parser = args::actions())]
    action: Option<PowerAction>,
    /// Only requests with exactly this label.
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
}

impl ResumeArgs {
    fn what(&self) -> LetGo {
        if self.rest { LetGo::Rest } else { LetGo::Wave }
    }
}

impl Scope {
    fn selection(&self) -> Selection {
        Selection {
            target: self.target.clone(),
            action: self.action,
            label: self.label.clone(),
            ..Selection::default()
        }
    }

    fn name(&self) -> String {
        scope_name(
            self.target.as_deref(),
            self.action.map(PowerAction::as_str),
            self.label.as_deref(),
        )
    }
}

/// What a hold is about, in words.
pub(super) fn pause_scope(hold: &HoldRecord) -> String {
    scope_name(
        hold.target.as_deref(),
        hold.action.as_deref(),
        hold.label.as_deref(),
    )
}

/// The command that ends an operator's hold.
pub(super) fn resume_command(hold: &HoldRecord) -> String {
    let mut command = "poweryard resume".to_owned();
    command.extend(
        hold.target
            .iter()
            .map(|target| format!(" --target {target}")),
    );
    command.extend(
        hold.action
            .iter()
            .map(|action| format!(" --action {action}")),
    );
    command.extend(
        hold.label
            .iter()
            .map(|label| format!(" --label {}", output::quoted(label))),
    );
    command
}

pub(super) async fn pause(context: &Context, args: PauseArgs) -> Result<Exit, Failure> {
    let mut client = args.queue.open(context, Access::Write).await?;
    let who = args::who();
    let paused = client
        .pause(
            args.reason.actor(&who),
            &args.scope.selection(),
            args::now(),
        )
        .await?;
    let warning = match &args.scope.target {
        Some(target) => args::stranger(context, &args.queue, &mut client, target).await?,
        None => None,
    };
    client.close().await?;
    let word = if paused.is_new {
        "paused"
    } else {
        "already paused"
    };
    output::print(&format!(
        "{word}: {}; requests that are running are still followed\n",
        args.scope.name()
    ))?;
    if let Some(warning) = warning {
        output::note(&warning);
    }
    Ok(Exit::Done)
}

pub(super) async fn resume(context: &Context, args: ResumeArgs) -> Result<Exit, Failure> {
    let mut client = args.queue.open(context, Access::Write).await?;
    let who = args::who();
    let actor = args.reason.actor(&who);
    let resumed = if args.all {
        client.resume_all(actor).await?
    } else {
        let scope = args.scope.selection();
        client.resume(actor, &scope, args.what()).await?
    };
    let ended = resumed.pauses;
    let holds = client.holds(args::now()).await?;
    client.close().await?;
    let order = resumed.lets.and_then(|lets| said_of_order(&lets, &args));
    let mut text = match (ended, args.all) {
        (0, false) if order.is_some() => order.unwrap_or_default(),
        (0, true) => "nothing was paused\n".to_owned(),
        (0, false) => format!(
            "nothing to resume: there is no pause for {}\n",
            args.scope.name()
        ),
        (_, true) => format!("resumed: {} ended\n", counted(ended, "pause")),
        (_, false) => format!("resumed: {}\n", args.scope.name()),
    };
    text.extend(
        holds
            .iter()
            .filter(|hold| hold.kind == HoldKind::Operator.as_str())
            .map(still_paused),
    );
    output::print(&text)?;
    Ok(Exit::Done)
}

/// What became of the waves of an order; none without one.
fn said_of_order(lets: &Lets, args: &ResumeArgs) -> Option<String> {
    let label = args.scope.label.as_deref().unwrap_or_default();
    let said = match lets {
        Lets::NoOrder => return None,
        Lets::Done => format!("nothing to resume: order '{label}' is done"),
        Lets::OnItsWay(wave) => format!(
            "nothing to resume: wave {wave} of order '{label}' has not ended, and nothing else holds the next one"
        ),
        Lets::Goes(wave) if args.rest => {
            format!("let go: all that remains of order '{label}', from wave {wave} on")
        }
        Lets::Goes(wave) => format!("let go: wave {wave} of order '{label}'"),
    };
    Some(format!("{}\n", output::visible(&said)))
}

/// A line for a pause that stays.
fn still_paused(hold: &HoldRecord) -> String {
    let line = format!(
        "still paused: {}, since {} ({}); to end it: `{}`",
        pause_scope(hold),
        hold.since,
        hold.reason,
        resume_command(hold)
    );
    format!("{}\n", output::visible(&line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_that_stays_is_named_with_the_words_that_end_it() {
        let hold = HoldRecord {
            target: Some("eu".to_owned()),
            action: Some("stop".to_owned()),
            kind: "operator".to_owned(),
            reason: "stop on target eu paused by bob: move".to_owned(),
            ..HoldRecord::default()
        };
        let said = still_paused(&hold);
        assert!(
            said.starts_with("still paused: stop on target eu, since"),
            "{said}"
        );
        assert!(
            said.contains("`poweryard resume --target eu --action stop`")
                && said.contains("bob: move"),
            "{said}"
        );
    }
}
