//! `inventory`: the servers that lists have shown; `inventory sync`: has the daemon read the lists
//! now.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Subcommand;
use tokio::time::{Instant, sleep};

use super::args::{self, JsonArg, QueueArgs};
use super::output::{self, Table, cell, visible};
use super::{Context, Exit, Failure, servers};
use crate::store::client::{Access, InventorySummary, ServerRecord};
use crate::store::{QueueClient, Running, daemon_on};

/// How often the file is asked whether the wish has come true.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// List the servers that the cloud's lists have shown, by their names.
///
/// The daemon reads the lists at its start and every `inventory_interval`, and keeps servers that
/// have vanished, with the time (GONE).
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "\
A pattern is an id, a name, or a glob over names: * is any text, ? any character, [ab] one of these.

Examples:
  poweryard inventory 'gpu-*'
  poweryard inventory --target default --json
  poweryard inventory sync")]
pub(super) struct InventoryArgs {
    #[command(subcommand)]
    command: Option<InventoryCommand>,
    /// Ids, names or globs; without any, all servers are listed.
    #[arg(value_name = "PATTERN")]
    patterns: Vec<String>,
    /// Only servers of this target.
    #[arg(long, short, value_name = "NAME")]
    target: Option<String>,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    queue: QueueArgs,
}

#[derive(Debug, Subcommand)]
enum InventoryCommand {
    Sync(SyncArgs),
}

/// Have the daemon read the lists of servers now, and wait until it has.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code: 0 the lists were read; 1 a list cannot be read; 3 no daemon runs; 4 timed out.

Example: poweryard inventory sync --target default")]
struct SyncArgs {
    /// Only the list of this target.
    #[arg(long, short, value_name = "NAME")]
    target: Option<String>,
    /// Stop waiting after this time, such as 90s or 5m.
    #[arg(long, value_name = "SPAN", value_parser = args::span, default_value = "2m")]
    timeout: Duration,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) async fn run(context: &Context, args: InventoryArgs) -> Result<Exit, Failure> {
    match args.command {
        Some(InventoryCommand::Sync(args)) => sync(context, args).await,
        None => list(context, args).await,
    }
}

async fn list(context: &Context, args: InventoryArgs) -> Result<Exit, Failure> {
    let mut client = args.queue.open(context, Access::Read).await?;
    let target = args.target.as_deref();
    let mut found = client.servers(target).await?;
    if !args.patterns.is_empty() {
        let matching = servers::matching(&mut client, &args.patterns, target, false).await?;
        let matching: BTreeSet<(String, String)> = matching.into_iter().map(key).collect();
        found.retain(|server| matching.contains(&key(server.clone())));
    }
    let summaries = client.inventory(target).await?;
    client.close().await?;
    for server in &mut found {
        show_age(server, &summaries);
    }
    if args.json.json {
        output::json(&found)?;
    } else {
        output::print(&table(&found))?;
    }
    for summary in &summaries {
        if let Some(doubt) = doubt(summary) {
            output::note(&doubt);
        }
    }
    Ok(Exit::Done)
}

fn key(server: ServerRecord) -> (String, String) {
    (server.target, server.server_id)
}

/// A row is not written each time that a list shows its server unchanged: a server that is not gone
/// was in the list that was read last.
fn show_age(server: &mut ServerRecord, summaries: &[InventorySummary]) {
    let read_at = summaries
        .iter()
        .find(|summary| summary.target == server.target)
        .and_then(|summary| summary.inventory_at.clone());
    if let Some(read_at) = read_at
        && server.gone_at.is_none()
        && read_at > server.seen_at
    {
        server.seen_at = read_at;
    }
}

fn table(servers: &[ServerRecord]) -> String {
    let head = [
        "NAME", "SERVER", "TARGET", "POWER", "STATUS", "SEEN", "GONE",
    ];
    let mut table = Table::new(&head, &[]);
    for server in servers {
        table.row([
            server.name.clone(),
            server.server_id.clone(),
            server.target.clone(),
            server.power.clone(),
            server.status.clone(),
            server.seen_at.clone(),
            cell(&server.gone_at),
        ]);
    }
    table.render()
}

/// What is wrong with a target's inventory.
pub(super) fn doubt(summary: &InventorySummary) -> Option<String> {
    let target = visible(&summary.target);
    let error = summary.inventory_error.as_deref().map(visible);
    match (&summary.inventory_at, error) {
        (Some(_), None) => None,
        (Some(at), Some(error)) => Some(format!(
            "note: the servers of target {target} are as of {at}; the last try to list them failed: {error}"
        )),
        (None, Some(error)) => Some(format!(
            "note: the servers of target {target} have never been listed in full; the last try failed: {error}"
        )),
        (None, None) => Some(format!(
            "note: the servers of target {target} have not been listed yet"
        )),
    }
}

async fn sync(context: &Context, args: SyncArgs) -> Result<Exit, Failure> {
    let mut client = args.queue.open(context, Access::Write).await?;
    require_daemon(&client)?;
    let target = args.target.as_deref();
    if let Some(target) = target
        && let Some(warning) = args::stranger(context, &args.queue, &mut client, target).await?
    {
        output::note(&warning);
        return Err(Failure::Usage(format!(
            "there is no list of servers to read for target {}",
            visible(target)
        )));
    }
    let wish = client.wish_for_inventory(target).await?;
    let end = Instant::now().checked_add(args.timeout);
    let error = loop {
        if let Some(error) = client.wish_end(wish).await? {
            break error;
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            client.withdraw_wish(wish).await?;
            output::note("timed out; the lists have not been read");
            return Ok(Exit::TimedOut);
        }
        if let Err(failure) = require_daemon(&client) {
            client.withdraw_wish(wish).await?;
            return Err(failure);
        }
        sleep(POLL_INTERVAL).await;
    };
    let summaries = client.inventory(target).await?;
    client.close().await?;
    if args.json.json {
        output::json(&summaries)?;
    } else {
        output::print(&summary_table(&summaries))?;
    }
    match error {
        None => Ok(Exit::Done),
        Some(error) => {
            output::note(&format!("error: {}", visible(&error)));
            Ok(Exit::Otherwise)
        }
    }
}

/// Only a daemon reads lists.
fn require_daemon(client: &QueueClient) -> Result<(), Failure> {
    match daemon_on(client.path()) {
        Running::No => Err(Failure::NoDaemon {
            path: client.path().to_owned(),
        }),
        Running::Yes(_) | Running::CannotTell => Ok(()),
    }
}

fn summary_table(summaries: &[InventorySummary]) -> String {
    let mut table = Table::new(&["TARGET", "SERVERS", "GONE", "READ"], &[1, 2]);
    for summary in summaries {
        table.row([
            summary.target.clone(),
            summary.servers.to_string(),
            summary.gone.to_string(),
            cell(&summary.inventory_at),
        ]);
    }
    table.render()
}
