//! `wait`: follows requests until they are terminal, and sums up how they ended. Polls the file;
//! changes nothing.

use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::args::{self, JsonArg, QueueArgs};
use super::output::{self, Table, cell};
use super::{Context, Exit, Failure};
use crate::model::{RequestId, RequestState};
use crate::store::QueueClient;
use crate::store::client::{Access, OutcomeCount, RequestRecord};

mod progress;

use progress::Progress;

/// How often the file is asked whether anything has changed.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Requests that are named one by one in a summary for people.
const NAMED_MAX: usize = 20;

/// Wait until requests have ended, and show how they ended.
///
/// With ids: these requests. With --label: all requests of the label; for each server the newest
/// one counts, even if it ended before. With neither: all requests that are unfinished now.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
While it waits, it says on stderr how many requests are in which state each time that changes, and why nothing moves.
Exit code: 0 all succeeded, or there was nothing to wait for; 1 some did not succeed; 2 no request has the label; 4 timed out.

Example: poweryard wait --label patch-day --since 2h --timeout 30m")]
pub(super) struct WaitArgs {
    /// The requests' ids.
    #[arg(value_name = "ID", conflicts_with_all = ["label", "since"])]
    ids: Vec<RequestId>,
    /// Requests with exactly this label.
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// A UTC time, or 2h for two hours ago. With --label: requests that ended before it do not
    /// count. Without: requests inserted since then count even if they have ended.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Stop waiting after this time, such as 90s or 30m.
    #[arg(long, value_name = "SPAN", value_parser = args::span)]
    timeout: Option<Duration>,
    #[command(flatten)]
    json: JsonArg,
    #[command(flatten)]
    queue: QueueArgs,
}

pub(super) async fn run(context: &Context, args: WaitArgs) -> Result<Exit, Failure> {
    let mut client = args.queue.open(context, Access::Read).await?;
    let since = match &args.since {
        Some(since) => Some(args::past(&mut client, since, args::now()).await?),
        None => None,
    };
    let (open, counted) = match &args.label {
        Some(label) => of_label(&mut client, label, since.as_deref()).await?,
        None if args.ids.is_empty() => all(client.to_follow(since.as_deref()).await?),
        None => all(named(&mut client, &args.ids).await?),
    };
    let followed = Followed::to_the_end(&mut client, open, counted, args.timeout).await?;
    client.close().await?;
    if args.json.json {
        output::json(&followed)?
    } else {
        output::print(&summary(&followed))?
    }
    Ok(followed.exit())
}

/// The requests to wait for, and those that count.
async fn of_label(
    client: &mut QueueClient,
    label: &str,
    since: Option<&str>,
) -> Result<(Vec<i64>, Vec<i64>), Failure> {
    match client.labelled(label, since).await? {
        Some(found) => Ok((found.open, found.newest)),
        None => Err(Failure::Usage(format!(
            "no request has the label {:?}",
            output::visible(label)
        ))),
    }
}

fn all(ids: Vec<i64>) -> (Vec<i64>, Vec<i64>) {
    (ids.clone(), ids)
}

/// Ids from the command line, each once; all of them exist.
pub(super) async fn named(
    client: &mut QueueClient,
    ids: &[RequestId],
) -> Result<Vec<i64>, Failure> {
    let ids = args::unique(ids);
    client.require_ids(&ids).await?;
    Ok(ids)
}

/// How the requests ended.
#[derive(Debug, Serialize)]
pub(super) struct Followed {
    requests: usize,
    succeeded: i64,
    timed_out: bool,
    outcomes: Vec<OutcomeCount>,
    /// All that have not succeeded (yet).
    others: Vec<RequestRecord>,
}

impl Followed {
    /// Waits until all of `ids` are terminal or the time is up; `counted` are summed up.
    pub(super) async fn to_the_end(
        client: &mut QueueClient,
        ids: Vec<i64>,
        counted: Vec<i64>,
        timeout: Option<Duration>,
    ) -> Result<Self, Failure> {
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut progress = Progress::start(ids.len());
        // Read before the requests, so that a change between the two is noticed.
        let mut version = client.data_version().await?;
        let mut open = client.unfinished(&ids).await?;
        progress.show(client, &open, &counted).await?;
        while !open.is_empty() && end.is_none_or(|end| Instant::now() < end) {
            // Reading very many requests takes longer; then it is done less often, and leaves the
            // disk to the daemon.
            let looked = Instant::now();
            let changed = client.data_version().await?;
            if changed != version {
                version = changed;
                open = client.unfinished(&open).await?;
                progress.queue_changed();
            }
            progress.show(client, &open, &counted).await?;
            let pause = POLL_INTERVAL.max(looked.elapsed() * 4);
            sleep(end.map_or(pause, |end| {
                pause.min(end.saturating_duration_since(Instant::now()))
            }))
            .await;
        }
        progress.end();
        Self::sum_up(client, &counted, !open.is_empty()).await
    }

    async fn sum_up(
        client: &mut QueueClient,
        ids: &[i64],
        timed_out: bool,
    ) -> Result<Self, Failure> {
        let outcomes = client.outcome_counts(ids).await?;
        let succeeded = outcomes
            .iter()
            .filter(|outcome| outcome.state == RequestState::Succeeded.as_str());
        let succeeded = succeeded.map(|outcome| outcome.count).sum();
        let others = client.not_succeeded(ids).await?;
        Ok(Self {
            requests: ids.len(),
            succeeded,
            timed_out,
            outcomes,
            others,
        })
    }

    /// A request that was deleted in the meantime does not count as succeeded.
    pub(super) fn exit(&self) -> Exit {
        match (self.timed_out, self.succeeded == self.requests as i64) {
            (true, _) => Exit::TimedOut,
            (false, true) => Exit::Done,
            (false, false) => Exit::Otherwise,
        }
    }
}

/// How many ended in which way.
pub(super) fn outcome_table(followed: &Followed) -> String {
    let mut outcomes = Table::new(
        &["STATE", "EVIDENCE", "ERROR", "COUNT", "FIRST ID"],
        &[3, 4],
    );
    for outcome in &followed.outcomes {
        outcomes.row([
            outcome.state.clone(),
            cell(&outcome.evidence),
            cell(&outcome.error_code),
            outcome.count.to_string(),
            outcome.first_id.to_string(),
        ]);
    }
    outcomes.render()
}

/// The table of outcomes, and the first of those that did not succeed.
pub(super) fn summary(followed: &Followed) -> String {
    if followed.requests == 0 {
        return "nothing to wait for\n".to_owned();
    }
    let mut text = outcome_table(followed);
    if !followed.others.is_empty() {
        let mut others = Table::new(
            &[
                "ID", "SERVER", "NAME", "ACTION", "STATE", "ERROR", "MESSAGE",
            ],
            &[0],
        );
        for request in followed.others.iter().take(NAMED_MAX) {
            others.row([
                request.id.to_string(),
                request.server_id.clone(),
                cell(&request.name),
                request.action.clone(),
                request.state.clone(),
                cell(&request.error_code),
                cell(&request.error_message),
            ]);
        }
        text.push_str(&format!("\n{}", others.render()));
    }
    if followed.others.len() > NAMED_MAX {
        text.push_str(&format!("and {} more\n", followed.others.len() - NAMED_MAX));
    }
    if followed.timed_out {
        text.push_str("timed out; the daemon continues with the unfinished requests\n");
    }
    text
}
