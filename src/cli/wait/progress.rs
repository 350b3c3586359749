//! What `wait` shows while it waits: how many requests are in which state, and why the queued ones
//! are not sent. On a terminal a live table, elsewhere a line on stderr for each change.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::cli::output::{self, Table};
use crate::model::RequestState;
use crate::store::client::OutcomeCount;
use crate::store::{QueueClient, Running, StoreError, daemon_on};

/// Lines follow each other no faster than this.
const SHOW_INTERVAL: Duration = Duration::from_secs(1);
/// For this many requests the reason is read; a million requests mostly wait for the same thing.
const REASONS_READ: usize = 50;
/// Different reasons that are shown.
const REASONS_SHOWN: usize = 3;

/// Shows how far the followed requests are.
pub(super) struct Progress {
    bar: ProgressBar,
    is_terminal: bool,
    counts: BTreeMap<RequestState, i64>,
    reasons: Vec<String>,
    shown_at: Option<Instant>,
    /// The queue has changed since the counts were read.
    is_outdated: bool,
}

impl Progress {
    /// `requests` is how many are waited for.
    pub(super) fn start(requests: usize) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let target = if is_terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} ended, {elapsed}\n{msg}");
        let bar = ProgressBar::with_draw_target(Some(requests as u64), target)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self {
            bar,
            is_terminal,
            counts: BTreeMap::new(),
            reasons: Vec::new(),
            shown_at: None,
            is_outdated: true,
        }
    }

    /// The queue has changed, so the counts are read again before they are shown.
    pub(super) fn queue_changed(&mut self) {
        self.is_outdated = true;
    }

    /// Shows what has changed, at most once a second. `open` are the requests that have not ended,
    /// `counted` those whose states are counted.
    pub(super) async fn show(
        &mut self,
        client: &mut QueueClient,
        open: &[i64],
        counted: &[i64],
    ) -> Result<(), StoreError> {
        let all = self.bar.length().unwrap_or_default();
        self.bar.set_position(all.saturating_sub(open.len() as u64));
        let was_shown_just_now = self.shown_at.is_some_and(|at| at.elapsed() < SHOW_INTERVAL);
        if open.is_empty() || was_shown_just_now {
            return Ok(());
        }
        let mut counts = self.counts.clone();
        if self.is_outdated {
            counts = by_state(&client.outcome_counts(counted).await?);
            self.is_outdated = false;
        }
        let reasons = reasons(client, open).await?;
        if self.is_terminal {
            self.bar.set_message(table(&counts, &reasons));
        } else {
            if counts != self.counts {
                output::note(&line(&counts));
            }
            for reason in reasons.iter().filter(|new| !self.reasons.contains(new)) {
                output::note(reason);
            }
        }
        self.counts = counts;
        self.reasons = reasons;
        self.shown_at = Some(Instant::now());
        Ok(())
    }

    /// Removes the live table.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn by_state(outcomes: &[OutcomeCount]) -> BTreeMap<RequestState, i64> {
    let mut counts = BTreeMap::new();
    for outcome in outcomes {
        // A state that this version does not know is in the summary, by its own name.
        if let Ok(state) = outcome.state.parse::<RequestState>() {
            *counts.entry(state).or_default() += outcome.count;
        }
    }
    counts
}

/// Such as `3 queued, 5 running, 20 succeeded`.
fn line(counts: &BTreeMap<RequestState, i64>) -> String {
    let parts: Vec<String> = counts
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    parts.join(", ")
}

fn table(counts: &BTreeMap<RequestState, i64>, reasons: &[String]) -> String {
    let mut table = Table::new(&["STATE", "COUNT"], &[1]);
    for (state, count) in counts {
        table.row([state.to_string(), count.to_string()]);
    }
    table.render() + &reasons.join("\n")
}

/// Why requests are not sent, each reason once; empty if they only wait for their turn.
async fn reasons(client: &mut QueueClient, open: &[i64]) -> Result<Vec<String>, StoreError> {
    let mut reasons = Vec::new();
    if daemon_on(client.path()) == Running::No && !open.is_empty() {
        reasons.push("no daemon runs on this queue; nothing is sent until one does".to_owned());
    }
    for id in open.iter().take(REASONS_READ) {
        let Some(reason) = client.waiting_reason(*id).await? else {
            continue;
        };
        let sentence = output::visible(&format!("not sent yet: {reason}"));
        if reason != "next" && !reasons.contains(&sentence) && reasons.len() < REASONS_SHOWN {
            reasons.push(sentence);
        }
    }
    Ok(reasons)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_summed_by_state_in_the_order_of_a_requests_life() {
        let outcome = |state: &str, error_code: Option<&str>, count| OutcomeCount {
            state: state.to_owned(),
            evidence: None,
            error_code: error_code.map(str::to_owned),
            count,
            first_id: 1,
        };
        let counts = by_state(&[
            outcome("succeeded", None, 20),
            outcome("queued", None, 3),
            outcome("failed", Some("BMS.0040"), 1),
            outcome("failed", Some("BMS.0039"), 2),
        ]);
        assert_eq!(line(&counts), "3 queued, 20 succeeded, 3 failed");
    }
}
