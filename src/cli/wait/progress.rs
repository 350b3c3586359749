//! What `wait` shows while it waits: how many requests are in which state, and why nothing moves. On
//! a terminal a live table, elsewhere a line on stderr for each change.

use std::collections::BTreeSet;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::forecast::{EndsSoFar, Left};
use super::reasons::{self, Situation};
use super::view::WaitView;
use crate::cli::terminal::{self, Screen};
use crate::cli::{args, output};
use crate::store::client::{FollowedBatch, OpenRequest, UnsentReason};
use crate::store::{QueueClient, Running, StoreError, daemon_on};

/// Lines follow each other no faster than this.
const SHOW_INTERVAL: Duration = Duration::from_secs(1);
/// For this many requests the reason is read; a million requests mostly wait for the same thing.
const REASONS_READ: usize = 1000;

/// Shows how far the followed requests are.
pub(super) struct Progress {
    bar: ProgressBar,
    screen: Option<Screen>,
    view: WaitView,
    ends: EndsSoFar,
    begun_at: Instant,
    shown_at: Option<Instant>,
    /// The queue has changed since it was read.
    is_outdated: bool,
    waiting: Vec<UnsentReason>,
    batches: Vec<FollowedBatch>,
}

impl Progress {
    /// Nothing is shown yet.
    pub(super) fn start() -> Self {
        let screen = terminal::of_stderr();
        let target = if screen.is_some() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = ProgressStyle::with_template("{msg}");
        let bar = ProgressBar::with_draw_target(None, target)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self {
            bar,
            screen,
            view: WaitView::default(),
            ends: EndsSoFar::default(),
            begun_at: Instant::now(),
            shown_at: None,
            is_outdated: true,
            waiting: Vec::new(),
            batches: Vec::new(),
        }
    }

    /// The queue has changed, so it is read again before anything is shown.
    pub(super) fn queue_changed(&mut self) {
        self.is_outdated = true;
    }

    /// Shows what has changed, at most once a second. `open` are the requests that have not ended,
    /// `counted` those whose states are counted.
    pub(super) async fn show(
        &mut self,
        client: &mut QueueClient,
        open: &[OpenRequest],
        counted: &[i64],
    ) -> Result<(), StoreError> {
        let was_shown_just_now = self.shown_at.is_some_and(|at| at.elapsed() < SHOW_INTERVAL);
        if open.is_empty() || was_shown_just_now {
            return Ok(());
        }
        let before = self.view.clone();
        if self.is_outdated {
            self.view.count(&client.outcome_counts(counted).await?);
            self.batches = client.open_batches_among(&carrying(open)).await?;
            self.is_outdated = false;
        }
        // A reason may change while the queue does not: what it says depends on the time.
        self.waiting = client.waiting_reasons(&some_queued(open)).await?;
        self.look_ahead(client, open).await?;
        match terminal::of_stderr().or(self.screen) {
            Some(screen) => self.bar.set_message(self.view.table(&screen)),
            None => self.write_changes(&before),
        }
        self.shown_at = Some(Instant::now());
        Ok(())
    }

    /// Works out why nothing moves, how fast requests end, and when the last will.
    async fn look_ahead(
        &mut self,
        client: &mut QueueClient,
        open: &[OpenRequest],
    ) -> Result<(), StoreError> {
        let now = args::now();
        let queued = open.iter().filter(|open| open.batch_id.is_none()).count();
        let situation = Situation {
            is_without_daemon: daemon_on(client.path()) == Running::No,
            waiting: &self.waiting,
            queued: i64::try_from(queued).unwrap_or(i64::MAX),
            batches: &self.batches,
            now,
        };
        let left = Left {
            queued: situation.queued,
            is_all_held: situation.is_without_daemon || situation.is_all_held(),
            of_batches: reasons::left_of(&self.batches, now),
            usual: match self.waiting.first() {
                Some(first) => client.usual_ms(&first.target, &first.action).await?,
                None => None,
            }
            .and_then(|ms| u64::try_from(ms).ok())
            .map(Duration::from_millis),
        };
        self.view.why = situation.sentences();
        self.view.elapsed = self.begun_at.elapsed();
        self.ends.note(self.view.elapsed, self.view.ended());
        self.view.per_minute = self.ends.per_minute();
        self.view.left = left.expected(self.view.per_minute);
        Ok(())
    }

    /// A line if the counts have changed, and one for each new reason.
    fn write_changes(&self, before: &WaitView) {
        if self.view.counts != before.counts {
            output::note(&self.view.line());
        }
        for sentence in self.view.why.iter().filter(|new| !before.why.contains(new)) {
            output::note(&output::visible(sentence));
        }
    }

    /// Removes the live table. Elsewhere the last counts are told, if they have changed.
    pub(super) async fn end(
        &mut self,
        client: &mut QueueClient,
        counted: &[i64],
    ) -> Result<(), StoreError> {
        self.bar.finish_and_clear();
        if self.screen.is_none() && self.shown_at.is_some() {
            let before = self.view.clone();
            self.view.count(&client.outcome_counts(counted).await?);
            self.view.why.clear();
            self.write_changes(&before);
        }
        Ok(())
    }
}

/// The batches that carry them.
fn carrying(open: &[OpenRequest]) -> Vec<i64> {
    let batches: BTreeSet<i64> = open.iter().filter_map(|open| open.batch_id).collect();
    batches.into_iter().collect()
}

/// Queued ones from the whole range.
fn some_queued(open: &[OpenRequest]) -> Vec<i64> {
    let queued: Vec<i64> = open
        .iter()
        .filter(|open| open.batch_id.is_none())
        .map(|open| open.id)
        .collect();
    let step = queued.len().div_ceil(REASONS_READ).max(1);
    queued.into_iter().step_by(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(ids: impl Iterator<Item = i64>, batch_id: Option<i64>) -> Vec<OpenRequest> {
        ids.map(|id| OpenRequest { id, batch_id }).collect()
    }

    #[test]
    fn reasons_are_read_from_the_whole_range_of_very_many() {
        let some = some_queued(&open(0..1_000_000, None));
        assert_eq!(some.len(), REASONS_READ);
        assert!(some.last().is_some_and(|id| *id > 990_000), "{some:?}");
        assert_eq!(some_queued(&open(0..3, None)), [0, 1, 2]);
        assert!(some_queued(&open(0..3, Some(7))).is_empty());
    }

    #[test]
    fn each_batch_is_asked_for_once() {
        let mut all = open(0..3, Some(7));
        all.extend(open(3..5, None));
        all.extend(open(5..6, Some(2)));
        assert_eq!(carrying(&all), [2, 7]);
    }
}
