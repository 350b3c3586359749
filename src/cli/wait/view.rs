//! How the live table of `wait` looks, and the line that a log gets. Reads nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cli::ages::short_span;
use crate::cli::output::{cut, visible};
use crate::cli::terminal::{Screen, Tone};
use crate::model::RequestState;
use crate::store::client::OutcomeCount;

/// The bar's width.
const BAR: usize = 20;
/// Error codes that are named beside a state.
const CODES_MAX: usize = 4;

/// How far the followed requests are.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct WaitView {
    /// How many are in each state.
    pub(super) counts: BTreeMap<RequestState, i64>,
    /// How many have ended with which code, the most frequent first.
    pub(super) errors: BTreeMap<RequestState, Vec<(String, i64)>>,
    /// Since the start.
    pub(super) elapsed: Duration,
    /// Requests that end in a minute.
    pub(super) per_minute: Option<f64>,
    /// How long it will probably take.
    pub(super) left: Option<Duration>,
    /// Why nothing moves.
    pub(super) why: Vec<String>,
}

impl WaitView {
    /// Takes over what the queue says of the followed requests.
    pub(super) fn count(&mut self, outcomes: &[OutcomeCount]) {
        self.counts.clear();
        self.errors.clear();
        for outcome in outcomes {
            // A state that this version does not know is in the summary, by its own name.
            let Ok(state) = outcome.state.parse::<RequestState>() else {
                continue;
            };
            *self.counts.entry(state).or_default() += outcome.count;
            if let Some(code) = outcome.error_code.clone().filter(|_| state.is_terminal()) {
                add(self.errors.entry(state).or_default(), code, outcome.count);
            }
        }
        for codes in self.errors.values_mut() {
            codes.sort_by_key(|(_, count)| -count);
        }
    }

    /// How many there are.
    pub(super) fn all(&self) -> i64 {
        self.counts.values().sum()
    }

    /// How many have ended.
    pub(super) fn ended(&self) -> i64 {
        let ended = self.counts.iter().filter(|(state, _)| state.is_terminal());
        ended.map(|(_, count)| count).sum()
    }

    /// How many are in this state.
    pub(super) fn in_state(&self, state: RequestState) -> i64 {
        self.counts.get(&state).copied().unwrap_or_default()
    }

    /// Such as `3 queued, 5 running, 20 succeeded`.
    pub(super) fn line(&self) -> String {
        let parts: Vec<String> = self
            .counts
            .iter()
            .map(|(state, count)| format!("{count} {state}"))
            .collect();
        parts.join(", ")
    }

    /// The table, as high as it has to be; no line is wider than the terminal.
    pub(super) fn table(&self, screen: &Screen) -> String {
        let columns = screen.columns.saturating_sub(1);
        let mut lines = vec![cut(&self.head(), columns)];
        for (state, count) in &self.counts {
            let codes = self.codes(*state);
            let word = format!("{:<10}", state.as_str());
            let rest = cut(&format!("{count:>8}  {codes}"), columns.saturating_sub(10));
            lines.push(screen.paint(Tone::of(state.as_str()), &word) + rest.trim_end());
        }
        for sentence in &self.why {
            lines.push(screen.paint(Tone::Doubtful, &cut(&visible(sentence), columns)));
        }
        lines.join("\n")
    }

    /// The bar, how many have ended, how fast, and when the last will.
    fn head(&self) -> String {
        let all = self.all();
        let ended = self.ended();
        let mut head = format!("{} {ended}/{all} ended", bar(ended, all));
        if self.in_state(RequestState::Failed) > 0 {
            head.push_str(&format!(", {} failed", self.in_state(RequestState::Failed)));
        }
        head.push_str(&format!(", {}", short_span(self.elapsed)));
        if let Some(rate) = self.per_minute {
            head.push_str(&format!(", {rate:.0}/min"));
        }
        if let Some(left) = self.left.filter(|left| !left.is_zero()) {
            head.push_str(&format!(", about {} left", short_span(left)));
        }
        head
    }

    fn codes(&self, state: RequestState) -> String {
        let Some(codes) = self.errors.get(&state) else {
            return String::new();
        };
        let named = codes.iter().take(CODES_MAX);
        let mut parts: Vec<String> = named
            .map(|(code, count)| format!("{} {count}", visible(code)))
            .collect();
        if codes.len() > CODES_MAX {
            parts.push(format!("{} other codes", codes.len() - CODES_MAX));
        }
        parts.join(", ")
    }
}

fn add(codes: &mut Vec<(String, i64)>, code: String, count: i64) {
    match codes.iter_mut().find(|(known, _)| *known == code) {
        Some((_, sum)) => *sum += count,
        None => codes.push((code, count)),
    }
}

fn bar(done: i64, all: i64) -> String {
    let width = BAR as i64;
    let full = if all > 0 { done * width / all } else { width };
    let full = usize::try_from(full.clamp(0, width)).unwrap_or(BAR);
    format!("{}{}", "█".repeat(full), "░".repeat(BAR - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(state: &str, error_code: Option<&str>, count: i64) -> OutcomeCount {
        OutcomeCount {
            state: state.to_owned(),
            evidence: None,
            error_code: error_code.map(str::to_owned),
            count,
            first_id: 1,
        }
    }

    fn view() -> WaitView {
        let mut view = WaitView {
            elapsed: Duration::from_secs(250),
            per_minute: Some(61.2),
            left: Some(Duration::from_secs(180)),
            why: vec!["280 not sent yet: held: the budget of stop is used up ".repeat(4)],
            ..WaitView::default()
        };
        view.count(&[
            outcome("succeeded", None, 20),
            outcome("queued", None, 3),
            outcome("failed", Some("BMS.0040"), 1),
            outcome("failed", Some("BMS.0039"), 2),
        ]);
        view
    }

    #[test]
    fn counts_are_summed_by_state_in_the_order_of_a_requests_life() {
        assert_eq!(view().line(), "3 queued, 20 succeeded, 3 failed");
        assert_eq!((view().all(), view().ended()), (26, 23));
    }

    #[test]
    fn the_table_says_how_far_how_fast_and_what_failed() {
        for columns in [80, 200] {
            let screen = Screen {
                columns,
                rows: 24,
                has_colours: false,
            };
            let table = view().table(&screen);
            assert!(
                table.lines().all(|line| line.chars().count() < columns),
                "{table}"
            );
            let head = table.lines().next().expect("a head");
            assert!(
                head.ends_with("23/26 ended, 3 failed, 4m, 61/min, about 3m left"),
                "{head}"
            );
            assert!(
                table.contains("failed           3  BMS.0039 2, BMS.0040 1"),
                "{table}"
            );
        }
    }

    #[test]
    fn the_bar_is_full_only_at_the_end() {
        assert_eq!(bar(0, 10), "░".repeat(BAR));
        assert!(bar(9_999, 10_000).ends_with('░'));
        assert_eq!(bar(10, 10), "█".repeat(BAR));
        assert_eq!(bar(0, 0), "█".repeat(BAR));
    }
}
