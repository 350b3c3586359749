//! `explain`: why a request is where it is, and what comes next. Collects the facts; the sentences
//! are in `sentences`.

use std::path::PathBuf;
use std::sync::OnceLock;

use serde_json::json;

use super::args::{self, JsonArg, QueueArgs};
use super::output::{self, visible};
use super::{Context, Exit, Failure};
use crate::model::RequestId;
use crate::settings::{QueueSettings, Settings};
use crate::store::client::{Access, RequestRecord};
use crate::store::{QueueClient, Running, daemon_on};

mod sentences;

use sentences::{Facts, TargetRules};

/// Explain why a request is where it is, and what comes next.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: poweryard explain 17")]
pub(super) struct ExplainArgs {
    /// The request's id.
    id: RequestId,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) async fn run(context: &Context, args: ExplainArgs) -> Result<Exit, Failure> {
    let facts = facts(context, &args).await?;
    let sentences = facts.sentences();
    if !args.json.json {
        let lines: String = sentences
            .iter()
            .map(|sentence| format!("{}\n", visible(sentence)))
            .collect();
        output::print(&lines)?;
        return Ok(Exit::Done);
    }
    output::json(&json!({
        "id": facts.request.id,
        "server_id": facts.request.server_id,
        "name": facts.request.name,
        "state": facts.request.state,
        "reason": facts.reason,
        "explanation": sentences,
        "holds": facts.holds,
        "batch": facts.batch,
        "order": facts.order,
        "daemon": { "running": facts.daemon_runs },
    }))?;
    Ok(Exit::Done)
}

async fn facts(context: &Context, args: &ExplainArgs) -> Result<Facts, Failure> {
    let mut client = args.queue.open(context, Access::Read).await?;
    let facts = facts_of(context, &args.queue, &mut client, args.id.0).await?;
    client.close().await?;
    Ok(facts)
}

/// What `explain` says of a request.
pub(super) async fn sentences_of(
    context: &Context,
    queue: &QueueArgs,
    client: &mut QueueClient,
    id: i64,
) -> Result<Vec<String>, Failure> {
    Ok(facts_of(context, queue, client, id).await?.sentences())
}

/// What `explain` says of a request, for the daemon's pages.
///
/// # Errors
/// A sentence.
pub(super) async fn for_page(
    config: PathBuf,
    database: PathBuf,
    id: i64,
) -> Result<Vec<String>, String> {
    let context = Context {
        config,
        queue: OnceLock::from(database.clone()),
    };
    let sentence = |failure: Failure| failure.sentence();
    let client = QueueClient::open(&database, Access::Read).await;
    let mut client = client.map_err(|error| sentence(error.into()))?;
    let said = sentences_of(&context, &QueueArgs::default(), &mut client, id).await;
    let closed = client.close().await;
    closed.map_err(|error| sentence(error.into()))?;
    said.map_err(sentence)
}

async fn facts_of(
    context: &Context,
    queue: &QueueArgs,
    client: &mut QueueClient,
    id: i64,
) -> Result<Facts, Failure> {
    let now = args::now();
    let request = client.request(id).await?;
    let reason = client.waiting_reason(request.id).await?;
    let mut holds = client.holds(now).await?;
    holds.retain(|hold| hold.is_about(&request));
    let batch = match request.batch_id {
        Some(id) => client.batch(id).await?,
        None => None,
    };
    let after = match request.after_id {
        // It may have been pruned.
        Some(id) => client.request(id).await.ok(),
        None => None,
    };
    let order = match &request.label {
        Some(label) => client.order(label).await?,
        None => None,
    };
    let attempts = client.attempts(request.id).await?;
    let ahead = client
        .place_in_lane(request.id)
        .await?
        .and_then(|ahead| u64::try_from(ahead).ok());
    let daemon_runs = daemon_on(client.path()) != Running::No;
    let rules = rules(context, queue, &request);
    Ok(Facts {
        request,
        reason,
        holds,
        batch,
        after,
        order,
        attempts,
        ahead,
        daemon_runs,
        rules,
    })
}

/// What the config says, if this user can read it; nothing with `--database`.
fn rules(context: &Context, queue: &QueueArgs, request: &RequestRecord) -> TargetRules {
    if queue.is_named() {
        return TargetRules::default();
    }
    let settings = Settings::load(&context.config).ok();
    let targets = settings.iter().flat_map(|settings| &settings.targets);
    let mut budgets = targets
        .filter(|target| target.name.0 == request.target)
        .flat_map(|target| &target.budgets);
    TargetRules {
        budget: budgets
            .find(|(action, _)| action.as_str() == request.action)
            .map(|(_, budget)| *budget),
        attempts_max: settings
            .as_ref()
            .map(|settings| settings.batch.attempts_max.get()),
        default_ttl: QueueSettings::load(&context.config)
            .ok()
            .map(|queue| queue.default_ttl),
    }
}
