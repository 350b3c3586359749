//! `undo`: switches back what a label has switched.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};

use serde_json::json;

use super::args::{self, JsonArg, QueueArgs};
use super::output::{self, visible};
use super::{Context, Exit, Failure};
use crate::model::counted;
use crate::store::client::{Access, Actor, Undo};

/// More servers than this are asked for on a terminal.
const ASKED_ABOVE: u64 = 20;

/// Switch back what a label has really switched: a new request for each such server.
///
/// A query and an enqueue: servers whose stop succeeded get a start, those whose start succeeded get
/// a stop. The new requests have the label "undo L", and are an order of their own: guards count them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
It cannot undo reboots, nor what a server lost when it was switched off. It leaves alone servers that were already so, or \
are as they were before (after a power-cycle), whose request failed, is unknown or has not ended, and those with a later \
request. On a terminal it asks above 20 servers.

Example: poweryard undo --label evac")]
pub(super) struct UndoArgs {
    /// Requests with exactly this label.
    #[arg(long, value_name = "TEXT")]
    label: String,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) async fn run(context: &Context, args: UndoArgs) -> Result<Exit, Failure> {
    let mut client = args.queue.open(context, Access::Write).await?;
    let seen = client.undo_preview(&args.label).await?;
    if seen.done.results.is_empty() {
        return Err(Failure::Usage(format!(
            "no request has the label {:?}",
            visible(&args.label)
        )));
    }
    output::note(&said(&seen));
    if seen.done.done == 0 {
        return Ok(Exit::Done);
    }
    let expected = if must_ask(&args, &seen) {
        if !is_confirmed()? {
            output::note("nothing is done");
            return Ok(Exit::Usage);
        }
        Some(seen.done.done)
    } else {
        None
    };
    let who = args::who();
    let actor = Actor {
        who: &who,
        reason: None,
    };
    let undone = client.undo(actor, &args.label, expected).await?;
    client.close().await?;
    if args.json.json {
        output::json(&json!({ "label": undone.label, "results": undone.done.results }))?;
    } else {
        let ids = undone
            .done
            .results
            .iter()
            .filter_map(|result| result.new_id);
        let lines: String = ids.map(|id| format!("{id}\n")).collect();
        output::print(&lines)?;
    }
    Ok(Exit::Done)
}

fn must_ask(args: &UndoArgs, seen: &Undo) -> bool {
    !args.yes && seen.done.done > ASKED_ABOVE && io::stdin().is_terminal()
}

fn is_confirmed() -> Result<bool, Failure> {
    let mut stderr = io::stderr();
    let asked = stderr.write_all(b"Go on? [y/N] ");
    asked
        .and_then(|()| stderr.flush())
        .map_err(Failure::Output)?;
    let mut line = String::new();
    io::stdin()
        .read_line(&mut line)
        .map_err(|source| Failure::File {
            what: "read the answer from the terminal".to_owned(),
            source,
        })?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

/// What will be done, and why not the rest.
fn said(undo: &Undo) -> String {
    let mut lines = vec![format!(
        "{}: {} to be switched on again, {} off again",
        visible(&undo.label),
        counted(undo.starts, "server"),
        counted(undo.stops, "server"),
    )];
    let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
    for left in undo.done.left_alone() {
        *reasons.entry(&left.message).or_default() += 1;
    }
    for (reason, servers) in reasons {
        lines.push(format!("  {}: {reason}", counted(servers, "request")));
    }
    lines.join("\n")
}
