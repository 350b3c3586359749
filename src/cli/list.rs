//! `list`: requests, newest first.

use super::args::{self, JsonArg, QueueArgs};
use super::output::{self, Table, cell};
use super::{Context, Exit, Failure};
use crate::model::{RequestState, ServerId};
use crate::store::client::{Access, Filter, RequestRecord};

/// List requests, newest first.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  poweryard list --state queued,running --target default
  poweryard list --label patch-day --limit 1000 --json")]
pub(super) struct ListArgs {
    /// Only requests in these states, separated by commas.
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = args::states())]
    state: Vec<RequestState>,
    /// Only requests of this target.
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Only requests with exactly this label.
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// Only requests for this server.
    #[arg(long, value_name = "ID")]
    server: Option<String>,
    /// Show at most this many.
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u32,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) async fn run(context: &Context, args: ListArgs) -> Result<Exit, Failure> {
    let mut client = args.queue.open(context, Access::Read).await?;
    let filter = Filter {
        states: args.state,
        target: args.target,
        label: args.label,
        server: args.server.as_deref().map(ServerId::as_stored),
        limit: args.limit,
    };
    let found = client.list(&filter).await?;
    client.close().await?;
    if args.json.json {
        output::json(&found)?
    } else {
        output::print(&table(&found))?
    }
    Ok(Exit::Done)
}

fn table(requests: &[RequestRecord]) -> String {
    let mut table = Table::new(
        &[
            "ID", "TARGET", "SERVER", "ACTION", "STATE", "EVIDENCE", "ERROR", "LABEL", "CREATED",
        ],
        &[0],
    );
    for request in requests {
        table.row([
            request.id.to_string(),
            request.target.clone(),
            request.server_id.clone(),
            request.action.clone(),
            request.state.clone(),
            cell(&request.evidence),
            cell(&request.error_code),
            cell(&request.label),
            request.created_at.clone(),
        ]);
    }
    table.render()
}
