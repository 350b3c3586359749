//! `approve`: lets requests go that a guard holds. The number of requests has to be typed, so that
//! nobody approves what nobody has counted.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};

use serde_json::json;

use super::args::{self, JsonArg, QueueArgs, ReasonArg};
use super::output::{self, Table, visible};
use super::{Context, Exit, Failure};
use crate::model::counted;
use crate::model::{PowerAction, RequestId, Service};
use crate::settings::Settings;
use crate::store::QueueClient;
use crate::store::client::{Access, Approval, ApprovalCount, Selection, Unapproved};

/// Approve queued requests, so that a guard of the config no longer holds them.
///
/// Takes those that are queued and unapproved now, whether they are due or not; never those that
/// come later.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["ids", "label", "target"]))]
#[command(after_help = "\
It shows what would be approved and asks for the number of those requests. Windows, budgets, pauses and waves still hold
approved requests. Exit code 2, with nothing approved: another number, nothing to approve, or no terminal and no --yes.

Examples:
  poweryard approve --label evac
  poweryard approve --target default --action stop --yes 4120
  poweryard approve 17 18 --yes 2")]
pub(super) struct ApproveArgs {
    /// The requests' ids.
    #[arg(value_name = "ID")]
    ids: Vec<RequestId>,
    /// All requests with exactly this label.
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// All requests of this target and --action.
    #[arg(long, value_name = "NAME", requires = "action")]
    target: Option<String>,
    /// start, stop or reboot; with --target.
    #[arg(long, value_name = "ACTION", value_parser = args::actions(), requires = "target")]
    action: Option<PowerAction>,
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
    let which = selection(&args);
    let mut client = args.queue.open(context, Access::Write).await?;
    let seen = client.unapproved(&which).await?;
    let waiting = seen.requests();
    if waiting == 0 {
        return Err(Failure::Usage(format!(
            "nothing to approve: no queued request of {} is unapproved",
            visible(&which.words())
        )));
    }
    let calls = calls(context, &args, &mut client, &seen.counts).await?;
    let shown = text(&seen, calls);
    if !args.json.json {
        output::print(&shown)?;
    }
    let number = match args.yes {
        Some(number) => number,
        None => ask(waiting)?,
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

fn selection(args: &ApproveArgs) -> Selection {
    match (&args.label, &args.target, args.action) {
        (Some(label), ..) => Selection::of_label(label),
        (None, Some(target), Some(action)) => Selection::of_lane(target, action),
        _ => Selection::of_ids(args::unique(&args.ids)),
    }
}

/// The number that is typed at the terminal.
fn ask(waiting: u64) -> Result<u64, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(format!(
            "this is no terminal; with --yes {waiting} these requests are approved"
        )));
    }
    let mut stderr = std::io::stderr();
    let asked = stderr.write_all(b"Type the number of requests to approve them: ");
    asked
        .and_then(|()| stderr.flush())
        .map_err(Failure::Output)?;
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .map_err(|source| Failure::File {
            what: "read the number from the terminal".to_owned(),
            source,
        })?;
    let typed = line.trim();
    typed.parse().map_err(|_| {
        Failure::Usage(format!(
            "'{}' is not the number of requests; nothing is approved",
            visible(typed)
        ))
    })
}

fn another(number: u64, waiting: u64) -> Failure {
    Failure::Usage(format!(
        "the number is {number}, but {waiting} requests are waiting for approval; nothing is approved"
    ))
}

/// How many calls they take at least, with the servers a call that the config allows, or the
/// service.
async fn calls(
    context: &Context,
    args: &ApproveArgs,
    client: &mut QueueClient,
    counts: &[ApprovalCount],
) -> Result<u64, Failure> {
    let mut most: BTreeMap<String, u32> = BTreeMap::new();
    for note in client.targets(args::now()).await? {
        if let Ok(service) = note.service.parse::<Service>() {
            most.insert(note.target, service.batch_servers_cap());
        }
    }
    // If this user cannot read the config, the service's own limit counts.
    if !args.queue.is_named()
        && let Ok(settings) = Settings::load(&context.config)
    {
        for target in settings.targets {
            most.insert(target.name.0, target.batch_servers_max);
        }
    }
    let mut of_lane: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for count in counts {
        let lane = (count.target.as_str(), count.action.as_str());
        *of_lane.entry(lane).or_default() += u64::try_from(count.requests).unwrap_or(0);
    }
    let of_lane = of_lane.into_iter().map(|((target, _), requests)| {
        let usual = Service::Bms.batch_servers_cap();
        requests.div_ceil(u64::from(most.get(target).copied().unwrap_or(usual)))
    });
    Ok(of_lane.sum())
}

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
    format!(
        "{}{}, in at least {}\n",
        table.render(),
        counted(requests, "request"),
        counted(calls, "call")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

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
