//! `list`: requests, newest first.

use super::args::{self, JsonArg, QueueArgs};
use super::output::{self, Table, cell};
use super::{Context, Exit, Failure, servers};
use crate::model::RequestState;
use crate::store::client::{Access, Filter, RequestRecord};

/// List requests, newest first.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  poweryard list --state queued,running --target default
  poweryard list --server 'gpu-*' --state failed
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
    /// Only requests for this server: an id, a name, or a glob over names.
    #[arg(long, value_name = "SERVER")]
    server: Option<String>,
    /// Take --server as an id, whatever the inventory says.
    #[arg(long, requires = "server")]
    ids: bool,
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
    let target = args.target.as_deref();
    let servers = match &args.server {
        Some(word) => Some(servers::filter(&mut client, word, target, args.ids).await?),
        None => None,
    };
    let filter = Filter {
        states: args.state,
        target: args.target,
        label: args.label,
        servers,
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
            "ID", "TARGET", "SERVER", "NAME", "ACTION", "STATE", "EVIDENCE", "ERROR", "LABEL",
            "CREATED",
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
            request.created_at.clone(),
        ]);
    }
    table.render()
}
