//! `status`: the queue at a glance; ten million finished rows do not slow it down.

use serde_json::json;

use super::args::{self, JsonArg, QueueArgs};
use super::output::{self, Table, cell, visible, wrapped};
use super::pause::pause_scope;
use super::{Context, Exit, Failure, report, servers, terminal};
use crate::store::client::{
    Access, BatchRecord, Glance, Glancer, HoldRecord, OldestReady, OrderRecord, OverviewCount,
    TargetHealth,
};
use crate::store::{ExportNote, QueueClient, Running, StoreError, daemon_on};

mod screen;

/// Show the daemon, what has ended lately, what waits for what, running batches, holds, targets.
///
/// On a terminal it fits one screen; elsewhere it is complete.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The exit code is 0 even if no daemon is running. With --label: what became of its servers so far; 2 if no request has it.

Examples:
  poweryard status --json
  poweryard status --label evac")]
pub(super) struct StatusArgs {
    /// Only what became of this label; `report` has it server by server.
    #[arg(long, short, value_name = "TEXT")]
    label: Option<String>,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    queue: QueueArgs,
}

/// Width of the reasons of holds.
const REASON_WIDTH: usize = 100;

/// All that is shown.
struct Status {
    daemon: Running,
    queue: Vec<OverviewCount>,
    oldest_ready: Option<OldestReady>,
    batches: Vec<BatchRecord>,
    holds: Vec<HoldRecord>,
    orders: Vec<OrderRecord>,
    targets: Vec<TargetHealth>,
    export: ExportNote,
}

pub(super) async fn run(context: &Context, args: StatusArgs) -> Result<Exit, Failure> {
    if let Some(label) = &args.label {
        return run_label(context, &args, label).await;
    }
    let now = args::now();
    let mut glancer = Glancer::new(&args.queue.path(context)?);
    let glance = glancer.read(now).await?.glance(None);
    if let Some(size) = terminal::of_stdout().filter(|_| !args.json.json) {
        output::print(&screen::text(&glance, now, &size))?;
        return Ok(Exit::Done);
    }
    let status = read(args.queue.open(context, Access::Read).await?).await?;
    if args.json.json {
        output::json(&status.object(&glance))?
    } else {
        output::print(&status.text(&glance.headline))?
    }
    Ok(Exit::Done)
}

async fn run_label(context: &Context, args: &StatusArgs, label: &str) -> Result<Exit, Failure> {
    let mut client = args.queue.open(context, Access::Read).await?;
    let view = report::view(&mut client, label).await?;
    client.close().await?;
    if args.json.json {
        output::json(&view)?
    } else {
        output::print(&report::text(&view))?
    }
    Ok(Exit::Done)
}

async fn read(mut client: QueueClient) -> Result<Status, StoreError> {
    let now = args::now();
    let running = daemon_on(client.path());
    let holds = client.holds(now).await?;
    let ready = client.oldest_ready().await?.into_iter();
    let mut free = ready.filter(|ready| {
        let mut holds = holds.iter();
        !holds.any(|hold| hold.covers(&ready.target, &ready.action))
    });
    let oldest_ready = free.next();
    let status = Status {
        daemon: running,
        queue: client.overview().await?,
        oldest_ready,
        batches: client.open_batches().await?,
        orders: client.open_orders().await?,
        targets: client.target_health(&holds, now).await?,
        export: client.export_note().await?,
        holds,
    };
    client.close().await?;
    Ok(status)
}

impl Status {
    fn object(&self, glance: &Glance) -> serde_json::Value {
        json!({
            "headline": glance.headline,
            "ended": {
                "hour": glance.ended.hour,
                "day": glance.ended.day,
                "errors": glance.ended.errors,
            },
            "daemon": {
                "running": self.daemon.known(),
                "pid": self.daemon.info().map(|daemon| daemon.pid),
                "since": self.daemon.info().map(|daemon| daemon.since),
                "waits": self.daemon.info().and_then(|daemon| daemon.waits.as_ref()),
            },
            "queue": self.queue,
            "oldest_ready": self.oldest_ready,
            "batches": self.batches,
            "holds": self.holds,
            "orders": self.orders,
            "targets": self.targets,
            "export": self.export,
        })
    }

    fn text(&self, headline: &str) -> String {
        let mut text = match &self.daemon {
            Running::Yes(Some(daemon)) => {
                let waits = daemon
                    .waits
                    .as_ref()
                    .map(|waits| format!("; {waits}"))
                    .unwrap_or_default();
                format!(
                    "daemon: running, pid {}, since {}{waits}\n",
                    daemon.pid, daemon.since
                )
            }
            Running::Yes(None) => "daemon: running\n".to_owned(),
            Running::No => "daemon: not running\n".to_owned(),
            Running::CannotTell => "daemon: cannot tell whether one is running\n".to_owned(),
        };
        text.push_str(&wrapped(&visible(headline), "", REASON_WIDTH));
        section(
            &mut text,
            "queue",
            "nothing is waiting or running",
            self.queue_table(),
        );
        if let Some(oldest) = &self.oldest_ready {
            let since = oldest.eligible_at.as_ref().unwrap_or(&oldest.created_at);
            let line = format!(
                "oldest request that can be sent: {}, {} {} on {}, since {since}",
                oldest.id,
                oldest.action,
                servers::shown(&oldest.server_id, oldest.name.as_deref()),
                oldest.target
            );
            text.push_str(&format!("{}\n", visible(&line)));
        }
        section(&mut text, "batches", "none is running", self.batch_table());
        for batch in &self.batches {
            if let Some(why) = &batch.read_error {
                text.push_str(&format!(
                    "{}\n",
                    visible(&format!("batch {}: the last look failed: {why}", batch.id))
                ));
            }
        }
        section(&mut text, "holds", "nothing is held", self.hold_table());
        for hold in &self.holds {
            let place = pause_scope(hold);
            // The reason of a pause begins with its place.
            let reason = if hold.reason.starts_with(&place) {
                hold.reason.clone()
            } else {
                format!("{place}: {}", hold.reason)
            };
            text.push_str(&wrapped(&visible(&reason), "  ", REASON_WIDTH));
        }
        if let Some(table) = self.order_table() {
            section(&mut text, "orders", "", Some(table));
        }
        section(
            &mut text,
            "targets",
            "no daemon has run on this queue yet",
            self.target_table(),
        );
        for target in &self.targets {
            if let Some(error) = &target.note.inventory_error {
                let age = match &target.note.inventory_at {
                    Some(at) => format!("as of {at}"),
                    None => "not known".to_owned(),
                };
                let name = &target.note.target;
                let line = format!(
                    "the servers of {name} are {age}; the last try to list them failed: {error}"
                );
                text.push_str(&wrapped(&visible(&line), "  ", REASON_WIDTH));
            }
        }
        if let Some(error) = &self.export.error {
            let since = cell(&self.export.failed_at);
            let line = format!(
                "old requests are not deleted, because they cannot be written down first (tried at {since}): {error}"
            );
            text.push('\n');
            text.push_str(&wrapped(&visible(&line), "", REASON_WIDTH));
        }
        text
    }

    fn queue_table(&self) -> Option<Table> {
        let mut table = Table::new(&["TARGET", "ACTION", "STATE", "COUNT", "OLDEST"], &[3]);
        for count in &self.queue {
            table.row([
                count.target.clone(),
                count.action.clone(),
                count.state.clone(),
                count.count.to_string(),
                cell(&count.oldest_created_at),
            ]);
        }
        (!self.queue.is_empty()).then_some(table)
    }

    fn batch_table(&self) -> Option<Table> {
        let mut table = Table::new(
            &[
                "BATCH",
                "TARGET",
                "ACTION",
                "STATE",
                "SERVERS",
                "JOB",
                "SINCE",
                "LOOKS",
                "NEXT LOOK",
            ],
            &[0, 4, 7],
        );
        for batch in &self.batches {
            table.row([
                batch.id.to_string(),
                batch.target.clone(),
                batch.action.clone(),
                batch.state.clone(),
                batch.server_count.to_string(),
                cell(&batch.job_id),
                batch.intent_at.clone(),
                batch.looks.to_string(),
                cell(&batch.next_look_at),
            ]);
        }
        (!self.batches.is_empty()).then_some(table)
    }

    fn hold_table(&self) -> Option<Table> {
        let mut table = Table::new(&["TARGET", "ACTION", "KIND", "SINCE", "UNTIL"], &[]);
        for hold in &self.holds {
            table.row([
                hold.target.clone().unwrap_or_else(|| "all".to_owned()),
                hold.action.clone().unwrap_or_else(|| "all".to_owned()),
                hold.kind.clone(),
                hold.since.clone(),
                cell(&hold.until),
            ]);
        }
        (!self.holds.is_empty()).then_some(table)
    }

    /// None without orders, which most queues do not have.
    fn order_table(&self) -> Option<Table> {
        let head = [
            "ORDER", "STATE", "WAVE", "SENT", "SIZE", "SERVERS", "WAVES", "EXPIRES",
        ];
        let mut table = Table::new(&head, &[2, 3, 4, 5]);
        for order in &self.orders {
            table.row([
                order.label.clone(),
                order.state.clone(),
                order.wave.to_string(),
                order.wave_servers.to_string(),
                order.wave_size.to_string(),
                order.servers.to_string(),
                order.waves.clone(),
                cell(&order.expires_at),
            ]);
        }
        (!self.orders.is_empty()).then_some(table)
    }

    fn target_table(&self) -> Option<Table> {
        let head = [
            "TARGET",
            "SERVICE",
            "CALLS/60S",
            "PACE/MIN",
            "CONFIGURED",
            "BREAKER",
            "CREDENTIALS",
            "NOTED",
        ];
        let mut table = Table::new(&head, &[2, 3, 4]);
        for target in &self.targets {
            table.row([
                target.note.target.clone(),
                target.note.service.clone(),
                target.note.calls_last_minute.to_string(),
                target.note.pace_per_minute.to_string(),
                target.note.submits_per_minute.to_string(),
                health(target.breaker.as_ref()).to_owned(),
                health(target.credentials.as_ref()).to_owned(),
                target.note.updated_at.clone(),
            ]);
        }
        (!self.targets.is_empty()).then_some(table)
    }
}

/// The reasons are shown once, with the holds.
fn health(hold: Option<&HoldRecord>) -> &'static str {
    if hold.is_some() { "held" } else { "ok" }
}

fn section(text: &mut String, name: &str, empty: &str, table: Option<Table>) {
    match table {
        Some(table) => text.push_str(&format!("\n{name}\n{}", table.render())),
        None => text.push_str(&format!("\n{name}: {empty}\n")),
    }
}
