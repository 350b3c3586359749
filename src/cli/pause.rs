//! `pause` and `resume`: an operator's hold. Nothing new leaves; what runs is still followed.

use super::args::{self, QueueArgs};
use super::output;
use super::{Context, Exit, Failure};
use crate::model::{HoldKind, PowerAction, TargetName};
use crate::plan::Hold;
use crate::store::desk::{Access, HoldRecord};

/// Hold requests back: nothing new leaves, what runs is still followed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without --target every target is held, without --action every action.

Example: poweryard pause --target default --action stop")]
pub(super) struct PauseArgs {
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    queue: QueueArgs,
}

/// End what `pause` began.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Ends every pause that lies within --target and --action; a wider one stays, and is named.

Example: poweryard resume --target default --action stop")]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    scope: Scope,
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
}

impl Scope {
    fn name(&self) -> String {
        scope_name(self.target.as_deref(), self.action.map(PowerAction::as_str))
    }

    /// True if a hold is about this, or about some of it.
    fn touches(&self, hold: &HoldRecord) -> bool {
        let action = self.action.map(PowerAction::as_str);
        let target = hold.target.is_none() || self.target.is_none() || hold.target == self.target;
        target && (hold.action.is_none() || action.is_none() || hold.action.as_deref() == action)
    }
}

/// Such as `stop on every target`.
fn scope_name(target: Option<&str>, action: Option<&str>) -> String {
    let action = action.unwrap_or("every action");
    match target {
        Some(target) => format!("{action} on target {target}"),
        None => format!("{action} on every target"),
    }
}

pub(super) async fn pause(context: &Context, args: PauseArgs) -> Result<Exit, Failure> {
    let mut desk = args.queue.open(context, Access::Write).await?;
    let who = args::login_user().unwrap_or_else(|| "an operator".to_owned());
    let hold = Hold {
        target: args.scope.target.clone().map(TargetName),
        action: args.scope.action,
        kind: HoldKind::Operator,
        reason: format!("{} paused by {who}", args.scope.name()),
        since: args::now(),
        until: None,
    };
    let new = desk.pause(&hold).await?;
    let known: Vec<String> = desk.targets(args::now()).await?.into_iter().map(|note| note.target).collect();
    desk.close().await?;
    let word = if new { "paused" } else { "already paused" };
    output::print(&format!("{word}: {}; what runs is still followed\n", args.scope.name()))?;
    if let Some(note) = args.scope.target.as_deref().and_then(|target| stranger(target, &known)) {
        output::note(&note);
    }
    Ok(Exit::Done)
}

pub(super) async fn resume(context: &Context, args: ResumeArgs) -> Result<Exit, Failure> {
    let mut desk = args.queue.open(context, Access::Write).await?;
    let target = args.scope.target.clone().map(TargetName);
    let ended = desk.resume(target.as_ref(), args.scope.action).await?;
    let holds = desk.holds(args::now()).await?;
    desk.close().await?;
    let wider = wider(&args.scope, &holds);
    match (ended, wider.is_empty()) {
        (0, true) => output::print(&format!("not paused: {}\n", args.scope.name()))?,
        (0, false) => {}
        _ => {
            let pauses = output::count(ended as usize, "pause");
            output::print(&format!("resumed: {} ({pauses} ended)\n", args.scope.name()))?;
        }
    }
    // What was asked for is done, or is not, because of them.
    let word = if ended > 0 { "note" } else { "error" };
    for hold in &wider {
        output::note(&format!("{word}: {hold}"));
    }
    Ok(if ended > 0 || wider.is_empty() { Exit::Done } else { Exit::Usage })
}

/// A warning about a target that the last daemon did not have: whoever mistypes a name believes that something is held.
/// None where no daemon has run yet.
fn stranger(target: &str, known: &[String]) -> Option<String> {
    if known.is_empty() || known.iter().any(|name| name == target) {
        return None;
    }
    let text = format!("warning: the daemon has no target {target}; it has {}", known.join(", "));
    Some(output::visible(&text))
}

/// A sentence for each pause that reaches beyond what was resumed, and so stays and still holds it, or some of it.
fn wider(scope: &Scope, holds: &[HoldRecord]) -> Vec<String> {
    let pauses = holds.iter().filter(|hold| hold.kind == HoldKind::Operator.as_str() && scope.touches(hold));
    let sentence = |hold: &HoldRecord| {
        let pause = scope_name(hold.target.as_deref(), hold.action.as_deref());
        let mut command = "poweryard resume".to_owned();
        command.extend(hold.target.iter().map(|target| format!(" --target {target}")));
        command.extend(hold.action.iter().map(|action| format!(" --action {action}")));
        let text = format!("{pause} is still paused, which is more than {}; `{command}` ends that", scope.name());
        output::visible(&text)
    };
    pauses.map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause_of(target: Option<&str>, action: Option<&str>) -> HoldRecord {
        HoldRecord {
            target: target.map(str::to_owned),
            action: action.map(str::to_owned),
            kind: "operator".to_owned(),
            ..HoldRecord::default()
        }
    }

    #[test]
    fn a_resume_names_the_wider_pause_that_still_holds() {
        let stops = Scope { target: Some("eu".to_owned()), action: Some(PowerAction::Stop) };
        let said = wider(&stops, &[pause_of(None, None), pause_of(Some("us"), None), pause_of(None, Some("start"))]);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("every action on every target") && said[0].contains("`poweryard resume`"), "{said:?}");
    }

    #[test]
    fn a_pause_of_a_mistyped_target_is_warned_about() {
        let known = ["default".to_owned(), "eu".to_owned()];
        assert_eq!(stranger("eu", &known), None);
        assert_eq!(stranger("eu", &[]), None);
        assert!(
            stranger("defualt", &known).is_some_and(|note| note.contains("defualt") && note.contains("default, eu"))
        );
    }

    #[test]
    fn a_pause_across_targets_still_holds_some_of_one_target() {
        let target = Scope { target: Some("eu".to_owned()), action: None };
        assert_eq!(wider(&target, &[pause_of(None, Some("stop"))]).len(), 1);
    }
}
