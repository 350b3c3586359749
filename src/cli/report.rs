//! `report`: what became of a label, server by server or in groups; the newest request of each
//! server counts. `status --label` shows the top of it.

use std::collections::BTreeMap;
use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::json;

use super::args::{self, JsonArg, QueueArgs};
use super::output::{self, Table, cell, visible, wrapped};
use super::{Context, Exit, Failure};
use crate::model::RequestState;
use crate::store::QueueClient;
use crate::store::client::{Access, LabelOutcome, LabelView, RequestRecord, WaitingReason};

/// Requests that are read and written at once.
const CHUNK: usize = 2_000;
/// Width of sentences.
const WIDTH: usize = 100;

/// Report what became of a label: off, on, failed and why, waiting and why.
///
/// Of each server the newest request of the label counts.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without --csv or --json: the counts, and a line for each server that did not succeed. With --csv (RFC 4180) or --json: \
every server. With --by: how many servers ended or wait in which way.

Examples:
  poweryard report --label evac
  poweryard report --label evac --csv
  poweryard report --label evac --by error")]
pub(super) struct ReportArgs {
    /// Requests with exactly this label.
    #[arg(long, value_name = "TEXT")]
    label: String,
    /// One line for each group instead of one for each server.
    #[arg(long, value_name = "WHAT", value_enum)]
    by: Option<By>,
    /// Print comma-separated values, with a head.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    queue: QueueArgs,
}

/// What servers are grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    /// By error code.
    Error,
    /// By target.
    Target,
    /// By action.
    Action,
}

pub(super) async fn run(context: &Context, args: ReportArgs) -> Result<Exit, Failure> {
    let mut client = args.queue.open(context, Access::Read).await?;
    let view = view(&mut client, &args.label).await?;
    let found = client.labelled(&args.label, None).await?;
    let ids = found.map(|found| found.newest).unwrap_or_default();
    match (args.by, args.csv, args.json.json) {
        (Some(by), ..) => groups(&mut client, &ids, by, &args).await?,
        (None, true, _) => csv(&mut client, &ids).await?,
        (None, _, true) => {
            let servers = client.requests(&ids).await?;
            output::json(&json!({ "label": view, "servers": servers }))?;
        }
        (None, false, false) => {
            output::print(&text(&view))?;
            output::print(&others(&mut client, &ids).await?)?;
        }
    }
    client.close().await?;
    Ok(Exit::Done)
}

/// The view of a label that somebody has.
///
/// # Errors
/// `Usage` for a label that nobody has.
pub(super) async fn view(client: &mut QueueClient, label: &str) -> Result<LabelView, Failure> {
    client
        .label_view(label, None, args::now())
        .await?
        .ok_or_else(|| Failure::Usage(format!("no request has the label {:?}", visible(label))))
}

/// The view for people.
pub(super) fn text(view: &LabelView) -> String {
    let mut text = format!("{}\n", visible(&headline(view)));
    if let Some(order) = &view.order {
        let line = format!(
            "order: {}, wave {} with {} of {} servers sent; waves {}, failures_max {}",
            order.state,
            order.wave,
            order.wave_servers,
            order.wave_size,
            order.waves,
            order.failures_max
        );
        text.push_str(&format!("{}\n", visible(&line)));
    }
    if !view.not_succeeded.is_empty() {
        text.push_str(&format!(
            "\ndid not succeed\n{}",
            outcomes(&view.not_succeeded).render()
        ));
    }
    if !view.waiting.is_empty() {
        text.push_str(&format!("\nwaiting\n{}", reasons(&view.waiting)));
    }
    if view.counts.unfinished() > 0 {
        text.push_str(&format!(
            "\nnothing has moved since {}\n",
            visible(&cell(&view.last_moved_at))
        ));
        let end = match (&view.expected_end, &view.no_expectation) {
            (Some(at), _) => format!("expected end: {at}"),
            (None, why) => format!("expected end: not known ({})", cell(why)),
        };
        text.push_str(&format!("{}\n", visible(&end)));
    }
    text
}

/// Such as `evac: 4940 off, 59 failed, 430 waiting, of 5429 servers`.
fn headline(view: &LabelView) -> String {
    let counts = &view.counts;
    let all = [
        (counts.off, "off"),
        (counts.on, "on"),
        (counts.rebooted, "rebooted"),
        (counts.failed, "failed"),
        (counts.unknown, "unknown"),
        (counts.left_out, "cancelled, expired or rejected"),
        (counts.running, "running"),
        (counts.queued, "waiting"),
    ];
    let named: Vec<String> = all
        .iter()
        .filter(|(servers, _)| *servers > 0)
        .map(|(servers, what)| format!("{servers} {what}"))
        .collect();
    format!(
        "{}: {}; servers: {}; as of {}",
        view.label,
        named.join(", "),
        view.servers,
        view.as_of
    )
}

fn outcomes(outcomes: &[LabelOutcome]) -> Table {
    let head = ["SERVERS", "ACTION", "STATE", "ERROR", "MESSAGE"];
    let mut table = Table::new(&head, &[0]);
    for outcome in outcomes {
        table.row([
            outcome.servers.to_string(),
            outcome.action.clone(),
            outcome.state.clone(),
            cell(&outcome.error_code),
            cell(&outcome.error_message),
        ]);
    }
    table
}

/// Sentences, which are too long for cells.
fn reasons(waiting: &[WaitingReason]) -> String {
    let lines = waiting.iter().map(|reason| {
        let until = reason.until.as_ref();
        let until = until
            .map(|until| format!(" (until {until})"))
            .unwrap_or_default();
        let line = format!("{}: {}{until}", reason.servers, reason.reason);
        wrapped(&visible(&line), "  ", WIDTH)
    });
    lines.collect()
}

/// A line for each server that did not succeed.
async fn others(client: &mut QueueClient, ids: &[i64]) -> Result<String, Failure> {
    let head = [
        "SERVER", "NAME", "TARGET", "ACTION", "STATE", "ERROR", "MESSAGE", "REQUEST",
    ];
    let mut table = Table::new(&head, &[7]);
    let mut is_empty = true;
    for request in client.not_succeeded(ids).await? {
        let state: Result<RequestState, _> = request.state.parse();
        if !state.is_ok_and(|state| state.is_terminal()) {
            continue;
        }
        is_empty = false;
        table.row([
            request.server_id,
            cell(&request.name),
            request.target,
            request.action,
            request.state,
            cell(&request.error_code),
            cell(&request.error_message),
            request.id.to_string(),
        ]);
    }
    Ok(if is_empty {
        String::new()
    } else {
        format!("\nservers that did not succeed\n{}", table.render())
    })
}

/// A column of `--csv`: its name, and how it is read.
type CsvColumn = (&'static str, fn(&RequestRecord) -> String);

const COLUMNS: [CsvColumn; 13] = [
    ("server_id", |request| request.server_id.clone()),
    ("name", |request| cell(&request.name)),
    ("target", |request| request.target.clone()),
    ("action", |request| request.action.clone()),
    ("state", |request| request.state.clone()),
    ("evidence", |request| cell(&request.evidence)),
    ("error_code", |request| cell(&request.error_code)),
    ("error_message", |request| cell(&request.error_message)),
    ("created_at", |request| request.created_at.clone()),
    ("submitted_at", |request| cell(&request.submitted_at)),
    ("finished_at", |request| cell(&request.finished_at)),
    ("requested_by", |request| cell(&request.requested_by)),
    ("request_id", |request| request.id.to_string()),
];

async fn csv(client: &mut QueueClient, ids: &[i64]) -> Result<(), Failure> {
    let head = COLUMNS.map(|(name, _)| name.to_owned());
    let mut lines = csv_line(&head);
    for chunk in ids.chunks(CHUNK) {
        for request in client.requests(chunk).await? {
            lines.push_str(&csv_line(&COLUMNS.map(|(_, read)| read(&request))));
        }
        if !write(&lines)? {
            return Ok(());
        }
        lines.clear();
    }
    write(&lines)?;
    Ok(())
}

/// False once nobody reads any more.
fn write(text: &str) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes());
    match written.and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Output(error)),
    }
}

/// By RFC 4180. A spreadsheet takes a text that begins like a formula for one, and anybody may have
/// written it: it gets an apostrophe in front.
fn csv_line(cells: &[String]) -> String {
    let cells: Vec<String> = cells.iter().map(|cell| csv_cell(cell)).collect();
    format!("{}\r\n", cells.join(","))
}

fn csv_cell(cell: &str) -> String {
    let cell = if cell.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        format!("'{cell}")
    } else {
        cell.to_owned()
    };
    if cell.contains(['"', ',', '\r', '\n']) {
        return format!("\"{}\"", cell.replace('"', "\"\""));
    }
    cell
}

/// How many servers there are of each state in a group.
async fn groups(
    client: &mut QueueClient,
    ids: &[i64],
    by: By,
    args: &ReportArgs,
) -> Result<(), Failure> {
    let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
    for chunk in ids.chunks(CHUNK) {
        for request in client.requests(chunk).await? {
            let group = match by {
                By::Error => cell(&request.error_code),
                By::Target => request.target,
                By::Action => request.action,
            };
            *counts.entry((group, request.state)).or_default() += 1;
        }
    }
    let by = match by {
        By::Error => "error",
        By::Target => "target",
        By::Action => "action",
    };
    let mut rows: Vec<((String, String), u64)> = counts.into_iter().collect();
    rows.sort_by_key(|(_, servers)| std::cmp::Reverse(*servers));
    if args.json.json {
        let groups: Vec<_> = rows
            .iter()
            .map(|((group, state), servers)| json!({ by: group, "state": state, "servers": servers }))
            .collect();
        return output::json(&groups);
    }
    if args.csv {
        let mut lines = csv_line(&[by, "state", "servers"].map(str::to_owned));
        for ((group, state), servers) in rows {
            lines.push_str(&csv_line(&[group, state, servers.to_string()]));
        }
        return output::print(&lines);
    }
    let head = by.to_uppercase();
    let mut table = Table::new(&[head.as_str(), "STATE", "SERVERS"], &[2]);
    for ((group, state), servers) in rows {
        table.row([group, state, servers.to_string()]);
    }
    output::print(&table.render())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_with_commas_quotes_and_line_ends_are_quoted() {
        let cells = ["a", "b,c", "say \"no\"", "two\nlines", ""].map(str::to_owned);
        assert_eq!(
            csv_line(&cells),
            "a,\"b,c\",\"say \"\"no\"\"\",\"two\nlines\",\r\n"
        );
    }

    #[test]
    fn no_cell_is_a_formula_to_a_spreadsheet() {
        assert_eq!(csv_cell("=HYPERLINK(1)"), "'=HYPERLINK(1)");
        assert_eq!(csv_cell("@x,y"), "\"'@x,y\"");
    }
}
