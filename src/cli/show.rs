//! `show`: one request with its attempts and its batch.

use serde_json::{Value, json};

use super::args::{JsonArg, QueueArgs};
use super::output::{self, Table, cell, visible};
use super::{Context, Exit, Failure};
use crate::model::RequestId;
use crate::store::client::{Access, AttemptRecord, BatchRecord, RequestRecord};

/// Show one request with its attempts and its batch.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: poweryard show 17 --json")]
pub(super) struct ShowArgs {
    /// The request's id.
    id: RequestId,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) async fn run(context: &Context, args: ShowArgs) -> Result<Exit, Failure> {
    let mut client = args.queue.open(context, Access::Read).await?;
    let request = client.request(args.id.0).await?;
    let attempts = client.attempts(args.id.0).await?;
    let batch = match request.batch_id {
        Some(id) => client.batch(id).await?,
        None => None,
    };
    client.close().await?;
    if args.json.json {
        output::json(&object(&request, &attempts, batch.as_ref()))?
    } else {
        output::print(&text(&request, &attempts, batch.as_ref()))?
    }
    Ok(Exit::Done)
}

/// The row's columns. `attempts` is the list of attempts; their number is `attempt_count`.
fn object(
    request: &RequestRecord,
    attempts: &[AttemptRecord],
    batch: Option<&BatchRecord>,
) -> Value {
    let mut object = json!(request);
    object["attempt_count"] = json!(request.attempts);
    object["attempts"] = json!(attempts);
    object["batch"] = json!(batch);
    object
}

fn text(
    request: &RequestRecord,
    attempts: &[AttemptRecord],
    batch: Option<&BatchRecord>,
) -> String {
    let mut text = fields(&request.columns(), "");
    if !attempts.is_empty() {
        let mut table = Table::new(
            &[
                "BATCH", "JOB", "RESULT", "ERROR", "STARTED", "FINISHED", "MESSAGE",
            ],
            &[0],
        );
        for attempt in attempts {
            table.row([
                attempt.batch_id.to_string(),
                cell(&attempt.job_id),
                cell(&attempt.result),
                cell(&attempt.error_code),
                attempt.started_at.clone(),
                cell(&attempt.finished_at),
                cell(&attempt.error_message),
            ]);
        }
        text.push_str(&format!("\nattempts\n{}", table.render()));
    }
    if let Some(batch) = batch {
        text.push_str(&format!("\nbatch\n{}", fields(&batch.columns(), "  ")));
    }
    text
}

/// One line per field, without NULLs.
fn fields(columns: &[(&str, Value)], indent: &str) -> String {
    let mut lines = String::new();
    for (name, value) in columns {
        let shown = match value {
            Value::Null => continue,
            Value::String(text) => visible(text),
            other => other.to_string(),
        };
        lines.push_str(&format!("{indent}{name:<14} {shown}\n"));
    }
    lines
}
