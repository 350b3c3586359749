//! How far the demo is, target by target, and how its requests ended. Decides nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::{Instant, sleep};

use crate::cli::Failure;
use crate::cli::output::{self, Table, cell};
use crate::store::QueueClient;
use crate::store::client::RequestRecord;

/// How often the queue is asked which requests are unfinished.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Follows requests, each given with its target, until all have ended. Prints a line for each
/// target as soon as its last request has ended.
pub(super) async fn to_the_end(
    client: &mut QueueClient,
    requests: impl IntoIterator<Item = (i64, String)>,
) -> Result<(), Failure> {
    let started = Instant::now();
    let target_of: HashMap<i64, String> = requests.into_iter().collect();
    let mut open: Vec<i64> = target_of.keys().copied().collect();
    let mut bars = bars(&counts(&open, &target_of));
    while !bars.is_empty() {
        let looked = Instant::now();
        open = client.unfinished(&open).await?;
        let left = counts(&open, &target_of);
        for (target, bar) in &bars {
            let left = left.get(target.as_str()).copied().unwrap_or_default();
            bar.set_position(bar.length().unwrap_or_default().saturating_sub(left));
        }
        for (target, bar) in bars.extract_if(.., |target, _| !left.contains_key(target.as_str())) {
            let took = started.elapsed().as_secs_f64();
            bar.finish_and_clear();
            let name = format!("  {target}");
            let all = bar.length().unwrap_or_default();
            output::print(&format!("{name:<17}all {all} ended after {took:.1} s\n"))?;
        }
        // Reading very many requests takes longer; then it is done less often, and leaves the disk
        // to the daemon.
        sleep(POLL_INTERVAL.max(looked.elapsed() * 4)).await;
    }
    Ok(())
}

fn counts<'a>(ids: &[i64], target_of: &'a HashMap<i64, String>) -> BTreeMap<&'a str, u64> {
    let mut counts = BTreeMap::new();
    ids.iter()
        .filter_map(|id| target_of.get(id))
        .for_each(|target| *counts.entry(target.as_str()).or_default() += 1);
    counts
}

/// One bar for each target, on a terminal only: a log cannot show bars.
fn bars(counts: &BTreeMap<&str, u64>) -> BTreeMap<String, ProgressBar> {
    let is_seen = std::io::stderr().is_terminal();
    let all = MultiProgress::with_draw_target(if is_seen {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    });
    let style = ProgressStyle::with_template("{prefix:16} {bar:40} {pos}/{len} ended, {elapsed}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let mut bars = BTreeMap::new();
    for (target, count) in counts {
        let bar = ProgressBar::new(*count)
            .with_style(style.clone())
            .with_prefix((*target).to_owned());
        bars.insert((*target).to_owned(), all.add(bar));
    }
    bars
}

/// How many requests of each target ended in which way.
pub(super) fn outcome_table(rows: &[RequestRecord]) -> String {
    type Way<'a> = (&'a str, &'a str, &'a Option<String>, &'a Option<String>);
    let mut ways: BTreeMap<Way<'_>, (usize, i64)> = BTreeMap::new();
    for row in rows {
        let way = (
            row.target.as_str(),
            row.state.as_str(),
            &row.evidence,
            &row.error_code,
        );
        let (count, first) = ways.entry(way).or_insert((0, row.id));
        *count += 1;
        *first = row.id.min(*first);
    }
    let mut begins: HashMap<&str, i64> = HashMap::new();
    for row in rows {
        let begin = begins.entry(&row.target).or_insert(row.id);
        *begin = row.id.min(*begin);
    }
    let mut ways: Vec<_> = ways.into_iter().collect();
    ways.sort_by_key(|((target, ..), (count, first))| {
        (begins.get(target).copied(), Reverse(*count), *first)
    });
    let mut table = Table::new(
        &["TARGET", "STATE", "EVIDENCE", "ERROR", "COUNT", "FIRST ID"],
        &[4, 5],
    );
    for ((target, state, evidence, code), (count, first)) in ways {
        table.row([
            target.to_owned(),
            state.to_owned(),
            cell(evidence),
            cell(code),
            count.to_string(),
            first.to_string(),
        ]);
    }
    table.render()
}
