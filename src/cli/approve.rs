//! `approve`: lets requests go that a guard holds. The number of requests has to be typed, so that
//! nobody approves what nobody has counted.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use serde_json::json;

use super::args::{self, JsonArg, QueueArgs, QueuedArgs, ReasonArg};
use super::output::{self, Table, visible};
use super::{Context, Exit, Failure};
use super::{ask, plan};
use crate::model::counted;
use crate::store::QueueClient;
use crate::store::client::{Access, Approval, AskedFor, Unapproved, another_number};

/// Approve queued requests, so that a guard of the config no longer holds them.
///
/// Takes those that are queued and unapproved now, whether they are due or not; never those that
/// come later.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
It shows what would be approved and asks for the number of those requests. Windows, budgets, pauses and waves still hold
approved requests. Exit code 2, with nothing approved: another number, nothing to approve, or no terminal and no --yes.

Examples:
  poweryard approve --label evac
  poweryard approve --target default --action stop --yes 4120
  poweryard approve 17 18 --yes 2")]
pub(super) struct ApproveArgs {
    #[command(flatten)]
    which: QueuedArgs,
    /// How many requests are to be approved; for scripts, in place of the question.
    #[arg(long, value_name = "NUMBER")]
    yes: Option<u64>,
    #[command(flatten)]
    reason: ReasonArg,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) async fn run(context: &Context, args: ApproveArgs) -> Result<Exit, Failure> {
    let which = args.which.selection();
    let mut client = args.queue.open(context, Access::Write).await?;
    let seen = client.unapproved(&which).await?;
    let waiting = seen.requests();
    if waiting == 0 {
        return Err(Failure::Usage(format!(
            "nothing to approve: no queued request of {} is unapproved",
            visible(&which.words())
        )));
    }
    if !args.json.json {
        output::print(&shown(context, &args, &mut client, &seen).await?)?;
    }
    let number = match args.yes {
        Some(number) => number,
        None => ask_number(waiting)?,
    };
    if number != waiting {
        return Err(another(number, waiting));
    }
    let who = args::who();
    let approval = client
        .approve(args.reason.actor(&who), &which, &seen)
        .await?;
    client.close().await?;
    match approval {
        // Some have gone since they were shown.
        Approval::Another(waiting) => Err(another(number, waiting)),
        Approval::Done(_) if args.json.json => {
            output::json(&json!({ "approved": number, "by": who, "counts": seen.counts }))?;
            Ok(Exit::Done)
        }
        Approval::Done(_) => {
            let requests = counted(number, "request");
            output::print(&format!("approved {requests}\n"))?;
            Ok(Exit::Done)
        }
    }
}

/// The number that is typed at the terminal.
fn ask_number(waiting: u64) -> Result<u64, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(format!(
            "this is no terminal; with --yes {waiting} these requests are approved"
        )));
    }
    let line = ask::answer("Type the number of requests to approve them: ")?;
    let typed = line.trim();
    typed.parse().map_err(|_| {
        Failure::Usage(format!(
            "'{}' is not the number of requests; nothing is approved",
            visible(typed)
        ))
    })
}

fn another(number: u64, waiting: u64) -> Failure {
    Failure::Usage(another_number(number, waiting))
}

/// What is shown before the question.
async fn shown(
    context: &Context,
    args: &ApproveArgs,
    client: &mut QueueClient,
    seen: &Unapproved,
) -> Result<String, Failure> {
    let which = args.which.selection();
    let asked = AskedFor {
        label: which.label,
        target: which.target,
        action: which.action,
        ids: which.ids,
        is_unapproved: true,
    };
    let outlook = plan::as_approved(context, &args.queue, client, asked).await?;
    let then = plan::text(&outlook, &BTreeMap::new());
    let calls: u64 = outlook
        .forecast
        .actions
        .iter()
        .map(|action| action.calls)
        .sum();
    let counts = text(seen, calls);
    Ok(format!("{counts}once approved:\n{then}"))
}

/// `calls`: those that carry them once they are approved; 0: something else holds them.
fn text(seen: &Unapproved, calls: u64) -> String {
    let mut table = Table::new(&["TARGET", "ACTION", "LABEL", "REQUESTS"], &[3]);
    for count in &seen.counts {
        table.row([
            count.target.clone(),
            count.action.clone(),
            output::cell(&count.label),
            count.requests.to_string(),
        ]);
    }
    let requests = seen.requests();
    let in_calls = if calls == 0 {
        String::new()
    } else {
        format!(", in at least {}", counted(calls, "call"))
    };
    format!(
        "{}{}{in_calls}\n",
        table.render(),
        counted(requests, "request")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::client::ApprovalCount;

    #[test]
    fn what_would_be_approved_is_counted_by_target_action_and_label() {
        let count = |label: Option<&str>, requests| ApprovalCount {
            target: "default".to_owned(),
            action: "stop".to_owned(),
            label: label.map(str::to_owned),
            requests,
        };
        let seen = Unapproved {
            counts: vec![count(None, 1), count(Some("evac"), 1200)],
            last_id: 1201,
        };
        let said = text(&seen, 2);
        assert!(
            said.ends_with("1201 requests, in at least 2 calls\n"),
            "{said}"
        );
        assert!(said.contains("evac") && said.contains("1200"), "{said}");
    }
}
