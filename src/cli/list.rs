//! `list`: requests, newest first.

use serde_json::Value;

use super::ages::ShownTimes;
use super::args::{self, QueueArgs};
use super::output::{self, Fit, Table, cell};
use super::terminal;
use super::{Context, Exit, Failure, servers};
use crate::model::{PowerAction, RequestState};
use crate::store::QueueClient;
use crate::store::client::{Access, Filter, RequestRecord, TextFilter};

/// List requests, newest first.
///
/// On a terminal, times are shown as ages, and what does not fit into the width is cut or left out.
/// Elsewhere all columns are complete.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
--label, --error and --requested-by take a whole text, or a pattern: * is any text, ? any character, [ab] one of these.

Examples:
  poweryard list --state queued,running --target default
  poweryard list --state failed --since 2h --error 'BMS.*'
  poweryard list --server 'gpu-*' --action reboot --full-times
  poweryard list --label patch-day --limit 100000 --csv")]
pub(super) struct ListArgs {
    /// Only requests in these states, separated by commas.
    #[arg(long, short, value_name = "STATE", value_delimiter = ',', value_parser = args::states())]
    state: Vec<RequestState>,
    /// Only requests of this target.
    #[arg(long, short, value_name = "NAME")]
    target: Option<String>,
    /// Only these actions, separated by commas.
    #[arg(long, short, value_name = "ACTION", value_delimiter = ',', value_parser = args::actions())]
    action: Vec<PowerAction>,
    /// Only requests with this label.
    #[arg(long, short, value_name = "TEXT")]
    label: Option<String>,
    /// Only requests for this server: an id, a name, or a glob over names.
    #[arg(long, value_name = "SERVER")]
    server: Option<String>,
    /// Take --server as an id, whatever the inventory says.
    #[arg(long, requires = "server")]
    ids: bool,
    /// Only requests with this error code.
    #[arg(long, short, value_name = "CODE")]
    error: Option<String>,
    /// Only what this person or program asked for.
    #[arg(long, value_name = "TEXT")]
    requested_by: Option<String>,
    /// Only what ended then or later, or was inserted then and has not ended: a UTC time, or 2h for
    /// two hours ago.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only what ended before then, or was inserted before it and has not ended.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Show at most this many.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
    limit: u32,
    /// Show times as they are stored instead of ages.
    #[arg(help_heading = "Output", long)]
    full_times: bool,
    /// Print the result as JSON.
    #[arg(help_heading = "Output", long)]
    json: bool,
    /// Print the result as comma-separated values, with all columns.
    #[arg(help_heading = "Output", long, conflicts_with = "json")]
    csv: bool,
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) async fn run(context: &Context, args: ListArgs) -> Result<Exit, Failure> {
    let mut client = args.queue.open(context, Access::Read).await?;
    let filter = filter(&mut client, &args).await?;
    let found = client.list(&filter).await?;
    client.close().await?;
    if args.json {
        output::json(&found)?
    } else if args.csv {
        output::print(&csv(&found))?
    } else {
        let screen = terminal::of_stdout();
        let times = if screen.is_some() && !args.full_times {
            ShownTimes::Ages(args::now())
        } else {
            ShownTimes::Full
        };
        output::print(&table(&found, times).render_on(screen.as_ref(), &FIT))?
    }
    Ok(Exit::Done)
}

async fn filter(client: &mut QueueClient, args: &ListArgs) -> Result<Filter, Failure> {
    let target = args.target.as_deref();
    let servers = match &args.server {
        Some(word) => Some(servers::filter(client, word, target, args.ids).await?),
        None => None,
    };
    let now = args::now();
    let since = match &args.since {
        Some(since) => Some(args::past_of(client, "--since", since, now).await?),
        None => None,
    };
    let until = match &args.until {
        Some(until) => Some(args::past_of(client, "--until", until, now).await?),
        None => None,
    };
    let text = |text: &Option<String>| text.as_deref().map(TextFilter::read);
    Ok(Filter {
        states: args.state.clone(),
        target: args.target.clone(),
        actions: args.action.clone(),
        label: text(&args.label),
        servers,
        error_code: text(&args.error),
        requested_by: text(&args.requested_by),
        since,
        until,
        limit: args.limit,
    })
}

/// The columns of `table`: id, target, server, name, action, state, evidence, error, label,
/// created, finished, by.
const FIT: Fit = Fit {
    cut: &[(2, 9), (11, 8), (8, 12), (3, 12), (7, 12)],
    drop: &[11, 6, 10, 2, 1, 8, 7, 9, 3],
    states: &[5],
};

fn table(requests: &[RequestRecord], times: ShownTimes) -> Table {
    let mut table = Table::new(
        &[
            "ID", "TARGET", "SERVER", "NAME", "ACTION", "STATE", "EVIDENCE", "ERROR", "LABEL",
            "CREATED", "FINISHED", "BY",
        ],
        &[0],
    );
    for request in requests {
        table.row([
            request.id.to_string(),
            request.target.clone(),
            request.server_id.clone(),
            cell(&request.name),
            request.action.clone(),
            request.state.clone(),
            cell(&request.evidence),
            cell(&request.error_code),
            cell(&request.label),
            times.show(&request.created_at),
            times.show_some(request.finished_at.as_ref()),
            cell(&request.requested_by),
        ]);
    }
    table
}

/// All columns by their names, as JSON has them; NULL is an empty field.
fn csv(requests: &[RequestRecord]) -> String {
    let mut text = String::new();
    let head = RequestRecord::default();
    output::push_record(&mut text, head.columns().iter().map(|(name, _)| *name));
    for request in requests {
        let fields: Vec<String> = request
            .columns()
            .into_iter()
            .map(|(_, value)| match value {
                Value::Null => String::new(),
                Value::String(text) => text,
                other => other.to_string(),
            })
            .collect();
        output::push_record(&mut text, fields);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::terminal::Screen;
    use crate::model::UtcMillis;

    fn request() -> RequestRecord {
        RequestRecord {
            id: 1234,
            target: "default".to_owned(),
            server_id: "616fb98f-46ca-475e-917e-2563e5a8cd19".to_owned(),
            name: Some("gpu-rack7-0042".to_owned()),
            action: "reboot".to_owned(),
            state: "failed".to_owned(),
            evidence: Some("refused".to_owned()),
            error_code: Some("BMS.0040".to_owned()),
            label: Some("patch, \"day\"".to_owned()),
            created_at: "2026-01-31T22:00:00.000Z".to_owned(),
            finished_at: Some("2026-01-31T22:05:00.000Z".to_owned()),
            requested_by: Some("alice".to_owned()),
            ..RequestRecord::default()
        }
    }

    #[test]
    fn on_80_columns_what_people_look_for_is_there() {
        let now: UtcMillis = "2026-01-31T23:00:00.000Z".parse().expect("a time");
        let screen = Screen {
            columns: 80,
            rows: 24,
            has_colours: false,
        };
        let text = table(&[request()], ShownTimes::Ages(now)).render_on(Some(&screen), &FIT);
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        for word in [
            "1234",
            "gpu-rack7-0042",
            "reboot",
            "failed",
            "BMS.0040",
            "1h ago",
        ] {
            assert!(text.contains(word), "{word} in\n{text}");
        }
    }

    #[test]
    fn a_file_gets_every_column_with_whole_times() {
        let text = table(&[request()], ShownTimes::Full).render_on(None, &FIT);
        for word in [
            "616fb98f-46ca-475e-917e-2563e5a8cd19",
            "2026-01-31T22:05:00.000Z",
            "alice",
        ] {
            assert!(text.contains(word), "{word} in\n{text}");
        }
    }

    #[test]
    fn csv_has_the_columns_of_the_table_and_quotes_what_needs_it() {
        let text = csv(&[request()]);
        let mut lines = text.lines();
        assert!(
            lines
                .next()
                .is_some_and(|head| head.starts_with("id,server_id,name,action,target,"))
        );
        let row = lines.next().expect("a row");
        assert!(row.starts_with("1234,616fb98f-46ca-475e-917e-2563e5a8cd19,gpu-rack7-0042,reboot,default,0,,,,,\"patch, \"\"day\"\"\",alice,"), "{row}");
    }
}
