//! `wait`: follows requests until they are terminal, and sums up how they ended. Polls the file;
//! changes nothing.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::args::{self, JsonArg, QueueArgs};
use super::output::{self, Fit, Table, cell};
use super::terminal::{self, Screen};
use super::{Context, Exit, Failure};
use crate::model::{RequestId, RequestState};
use crate::store::QueueClient;
use crate::store::client::{Access, OpenRequest, OutcomeCount, RequestRecord};

mod forecast;
mod progress;
mod reasons;
mod view;

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
While it waits, it says on stderr how many requests are in which state, and why nothing moves: on a terminal as a live table
with the rate and the end that is expected, elsewhere one line each time that the counts or the reasons change.
Exit code: 0 all succeeded, or there was nothing to wait for; 1 some did not succeed; 2 no request has the label; 4 timed out.

Example: poweryard wait --label patch-day --since 2h --timeout 30m")]
pub(super) struct WaitArgs {
    /// The requests' ids.
    #[arg(value_name = "ID", conflicts_with_all = ["label", "since"])]
    ids: Vec<RequestId>,
    /// Requests with exactly this label.
    #[arg(long, short, value_name = "TEXT")]
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
    let subject = match args.label {
        Some(label) => Subject::Label { label, since },
        None if args.ids.is_empty() => Subject::Ids(client.to_follow(since.as_deref()).await?),
        None => Subject::Ids(named(&mut client, &args.ids).await?),
    };
    let followed = Followed::to_the_end(&mut client, subject, args.timeout).await?;
    client.close().await?;
    if args.json.json {
        output::json(&followed)?
    } else {
        output::print(&summary(&followed, terminal::of_stdout().as_ref()))?
    }
    Ok(followed.exit())
}

/// What is waited for.
#[derive(Debug)]
pub(super) enum Subject {
    /// These requests; all of them count.
    Ids(Vec<i64>),
    /// All requests of a label, also those that join it meanwhile; of each server the newest counts.
    Label {
        /// The label.
        label: String,
        /// What ended before this time does not count.
        since: Option<String>,
    },
}

/// How a subject is at a moment.
#[derive(Debug, Default)]
struct Present {
    /// What has not ended.
    open: Vec<OpenRequest>,
    /// Those that count.
    counted: Vec<i64>,
}

impl Subject {
    /// Reads it; `before` is how it was last.
    async fn read(
        &self,
        client: &mut QueueClient,
        before: Option<Present>,
    ) -> Result<Present, Failure> {
        let (open, counted) = match (self, before) {
            (Self::Label { label, since }, before) => {
                let found = client.labelled(label, since.as_deref()).await?;
                match (found, before) {
                    (Some(found), _) => (found.open, found.newest),
                    // All of it was deleted meanwhile, so all of it had ended.
                    (None, Some(before)) => (Vec::new(), before.counted),
                    (None, None) => return Err(no_such_label(label)),
                }
            }
            (Self::Ids(ids), None) => (ids.clone(), ids.clone()),
            // What has ended stays ended.
            (Self::Ids(_), Some(before)) => (
                before.open.iter().map(|open| open.id).collect(),
                before.counted,
            ),
        };
        let open = client.open_requests(&open).await?;
        Ok(Present { open, counted })
    }
}

fn no_such_label(label: &str) -> Failure {
    Failure::Usage(format!(
        "no request has the label {:?}",
        output::visible(label)
    ))
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
    /// Waits until all requests of the subject are terminal or the time is up.
    pub(super) async fn to_the_end(
        client: &mut QueueClient,
        subject: Subject,
        timeout: Option<Duration>,
    ) -> Result<Self, Failure> {
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut progress = Progress::start();
        // Read before the requests, so that a change between the two is noticed.
        let mut version = client.data_version().await?;
        let mut present = subject.read(client, None).await?;
        progress
            .show(client, &present.open, &present.counted)
            .await?;
        while !present.open.is_empty() && end.is_none_or(|end| Instant::now() < end) {
            // Reading very many requests takes longer; then it is done less often, and leaves the
            // disk to the daemon.
            let looked = Instant::now();
            let changed = client.data_version().await?;
            if changed != version {
                version = changed;
                present = subject.read(client, Some(present)).await?;
                progress.queue_changed();
            }
            progress
                .show(client, &present.open, &present.counted)
                .await?;
            let pause = POLL_INTERVAL.max(looked.elapsed() * 4);
            sleep(end.map_or(pause, |end| {
                pause.min(end.saturating_duration_since(Instant::now()))
            }))
            .await;
        }
        progress.end(client, &present.counted).await?;
        Self::sum_up(client, &present.counted, !present.open.is_empty()).await
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
fn outcome_table(followed: &Followed) -> Table {
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
    outcomes
}

/// The columns of `outcome_table`.
const OUTCOMES_FIT: Fit = Fit {
    cut: &[(2, 12)],
    drop: &[],
    states: &[0],
};

/// The columns of the table of those that did not succeed: id, server, name, action, state, error,
/// message.
const OTHERS_FIT: Fit = Fit {
    cut: &[(6, 20), (1, 9), (2, 12), (5, 12), (6, 8)],
    drop: &[2, 5, 1],
    states: &[4],
};

/// The table of outcomes, and some of each kind that did not succeed.
pub(super) fn summary(followed: &Followed, screen: Option<&Screen>) -> String {
    if followed.requests == 0 {
        return "nothing to wait for\n".to_owned();
    }
    let mut text = outcome_table(followed).render_on(screen, &OUTCOMES_FIT);
    let shown = some_of_each_kind(&followed.others);
    if !shown.is_empty() {
        let mut others = Table::new(
            &[
                "ID", "SERVER", "NAME", "ACTION", "STATE", "ERROR", "MESSAGE",
            ],
            &[0],
        );
        for request in &shown {
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
        text.push_str(&format!("\n{}", others.render_on(screen, &OTHERS_FIT)));
    }
    if followed.others.len() > shown.len() {
        text.push_str(&format!(
            "and {} more\n",
            followed.others.len() - shown.len()
        ));
    }
    if followed.timed_out {
        text.push_str("timed out; the daemon continues with the unfinished requests\n");
    }
    text
}

/// At most `NAMED_MAX`, the same number of each state and error, so that one frequent error does not
/// hide the others.
fn some_of_each_kind(others: &[RequestRecord]) -> Vec<&RequestRecord> {
    let mut kinds: BTreeMap<(&str, &Option<String>), Vec<&RequestRecord>> = BTreeMap::new();
    for request in others {
        let kind = (request.state.as_str(), &request.error_code);
        kinds.entry(kind).or_default().push(request);
    }
    let mut kinds: Vec<Vec<&RequestRecord>> = kinds.into_values().collect();
    kinds.sort_by_key(|kind| (Reverse(kind.len()), kind[0].id));
    kinds.truncate(NAMED_MAX);
    // The rare ones first: what they leave is for the frequent ones.
    let mut room = NAMED_MAX;
    let mut shown = Vec::new();
    for (left, kind) in kinds.iter().enumerate().rev() {
        let share = kind.len().min(room / (left + 1));
        room -= share;
        shown.splice(0..0, kind[..share].iter().copied());
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn others(code: &str, ids: std::ops::Range<i64>) -> Vec<RequestRecord> {
        ids.map(|id| RequestRecord {
            id,
            state: "failed".to_owned(),
            error_code: Some(code.to_owned()),
            ..RequestRecord::default()
        })
        .collect()
    }

    #[test]
    fn a_frequent_error_does_not_hide_a_rare_one() {
        let mut all = others("BMS.0040", 1..300);
        all.extend(others("BMS.0041", 300..302));
        all.extend(others("BMS.0042", 302..303));
        let ids: Vec<i64> = some_of_each_kind(&all)
            .iter()
            .map(|other| other.id)
            .collect();
        assert_eq!(ids.len(), NAMED_MAX);
        assert_eq!(ids[..17], (1..18).collect::<Vec<_>>());
        assert_eq!(ids[17..], [300, 301, 302]);
    }

    #[test]
    fn few_are_all_named_and_none_is_no_table() {
        assert_eq!(some_of_each_kind(&others("a", 1..4)).len(), 3);
        assert!(some_of_each_kind(&[]).is_empty());
        let many_kinds: Vec<_> = (0..50)
            .flat_map(|kind| others(&format!("code {kind:02}"), kind * 2..kind * 2 + 2))
            .collect();
        assert_eq!(some_of_each_kind(&many_kinds).len(), NAMED_MAX);
    }
}
