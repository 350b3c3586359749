//! The tables that show the queue at a glance, for `top` and `status`: what is in their columns. Draws
//! nothing.

use std::time::Duration;

use ratatui::layout::Constraint;

use super::ages::{ShownTimes, short_span};
use super::output::{cell, visible};
use super::pause::pause_scope;
use super::terminal::Tone;
use crate::model::{RequestState, UtcMillis};
use crate::store::client::{Glance, HoldRecord, RequestRecord, grouped};

/// A table: its heads, and rows of as many cells.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Panel {
    /// The first one is the name of the panel.
    pub(super) heads: Vec<&'static str>,
    /// How wide each column is.
    pub(super) widths: Vec<Constraint>,
    /// The cells, safe for a terminal.
    pub(super) rows: Vec<Vec<Cell>>,
    /// What is said if there are no rows.
    pub(super) empty: &'static str,
}

/// A text with its tone.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cell {
    /// What it says.
    pub(super) text: String,
    /// How.
    pub(super) tone: Tone,
    /// Numbers are right-aligned, and so are their heads.
    pub(super) is_number: bool,
}

impl Cell {
    fn plain(text: impl AsRef<str>) -> Self {
        Self::toned(text, Tone::Plain)
    }

    /// A word whose tone is that of a state.
    fn state(word: &str) -> Self {
        Self::toned(word, Tone::of(word))
    }

    fn toned(text: impl AsRef<str>, tone: Tone) -> Self {
        Self {
            text: visible(text.as_ref()),
            tone,
            is_number: false,
        }
    }

    /// A number; zero is not worth a colour.
    fn number(number: i64, tone: Tone) -> Self {
        let mut cell = if number == 0 {
            Self::plain("-")
        } else {
            Self::toned(grouped(number), tone)
        };
        cell.is_number = true;
        cell
    }

    /// An id, which has no blanks or commas.
    fn id(id: i64) -> Self {
        Self {
            is_number: true,
            ..Self::plain(id.to_string())
        }
    }
}

/// Unfinished requests, and what became of others in the last hour, by target and action.
pub(super) fn queue(glance: &Glance, now: UtcMillis) -> Panel {
    let mut lanes: Vec<(String, String)> = Vec::new();
    let unfinished = glance
        .queue
        .iter()
        .map(|count| (&count.target, &count.action));
    let ended = glance
        .ended
        .hour
        .iter()
        .map(|count| (&count.target, &count.action));
    for (target, action) in unfinished.chain(ended) {
        let lane = (target.clone(), action.clone());
        if !lanes.contains(&lane) {
            lanes.push(lane);
        }
    }
    let times = ShownTimes::Ages(now);
    let mut rows = Vec::with_capacity(lanes.len());
    for (target, action) in &lanes {
        let of_lane = |state: RequestState| {
            let counts = glance.queue.iter().filter(|count| {
                count.target == *target && count.action == *action && count.state == state.as_str()
            });
            counts.map(|count| count.count).sum::<i64>()
        };
        let ended = |is_meant: fn(&str) -> bool| {
            let counts = glance.ended.hour.iter().filter(|count| {
                count.target == *target && count.action == *action && is_meant(&count.state)
            });
            counts.map(|count| count.count).sum::<i64>()
        };
        let oldest = glance
            .queue
            .iter()
            .filter(|count| count.target == *target && count.action == *action)
            .filter_map(|count| count.oldest_created_at.clone())
            .min();
        rows.push(vec![
            Cell::plain(target),
            Cell::plain(action),
            Cell::number(of_lane(RequestState::Queued), Tone::Plain),
            Cell::number(of_lane(RequestState::Running), Tone::Busy),
            Cell::number(ended(is_good), Tone::Good),
            Cell::number(ended(is_bad), Tone::Bad),
            Cell::plain(times.show_some(oldest.as_ref())),
        ]);
    }
    Panel {
        heads: vec![
            "QUEUE",
            "ACTION",
            "QUEUED",
            "RUNNING",
            "DONE/1H",
            "FAILED/1H",
            "OLDEST",
        ],
        widths: vec![
            Constraint::Fill(1),
            Constraint::Length(7),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(10),
        ],
        rows,
        empty: "nothing is waiting or running, and nothing has ended in the last hour",
    }
}

fn is_good(state: &str) -> bool {
    state == RequestState::Succeeded.as_str()
}

fn is_bad(state: &str) -> bool {
    !is_good(state) && state != RequestState::Cancelled.as_str()
}

/// Why requests wait, and the holds that hold nothing now.
pub(super) fn waiting(glance: &Glance, now: UtcMillis) -> Panel {
    let times = ShownTimes::Ages(now);
    let mut rows = Vec::new();
    for group in &glance.waiting {
        let tone = if group.kind == "next" {
            Tone::Plain
        } else {
            Tone::Doubtful
        };
        rows.push(vec![
            Cell::number(group.count, Tone::Plain),
            Cell::plain(place(
                group.target.as_deref(),
                group.action.as_deref(),
                group.label.as_deref(),
            )),
            Cell::toned(&group.kind, tone),
            Cell::plain(times.show_some(group.until.as_ref())),
            Cell::plain(without_place(&group.reason, glance)),
        ]);
    }
    for hold in idle_holds(glance) {
        rows.push(vec![
            Cell::number(0, Tone::Plain),
            Cell::plain(place(
                hold.target.as_deref(),
                hold.action.as_deref(),
                hold.label.as_deref(),
            )),
            Cell::toned(&hold.kind, Tone::Doubtful),
            Cell::plain(times.show_some(hold.until.as_ref())),
            Cell::plain(without_place(&hold.reason, glance)),
        ]);
    }
    Panel {
        heads: vec!["WAITING", "OF", "KIND", "ENDS", "WHY"],
        widths: vec![
            Constraint::Length(8),
            Constraint::Fill(2),
            Constraint::Length(11),
            Constraint::Length(9),
            Constraint::Fill(5),
        ],
        rows,
        empty: "nothing waits, nothing is held",
    }
}

/// The reason of a pause begins with its place, which has a column of its own.
fn without_place<'a>(reason: &'a str, glance: &Glance) -> &'a str {
    let mut holds = glance.holds.iter();
    let rest = holds.find_map(|hold| reason.strip_prefix(pause_scope(hold).as_str()));
    rest.map_or(reason, str::trim_start)
}

/// Holds that no waiting request is counted under, so that each reason is shown once.
pub(super) fn idle_holds(glance: &Glance) -> impl Iterator<Item = &HoldRecord> {
    glance.holds.iter().filter(|hold| {
        let mut groups = glance.waiting.iter();
        !groups.any(|group| group.kind == hold.kind && group.reason.contains(&hold.reason))
    })
}

/// Such as `stop eu`, or `label kernel`.
fn place(target: Option<&str>, action: Option<&str>, label: Option<&str>) -> String {
    let parts = [
        action.map(str::to_owned),
        target.map(str::to_owned),
        label.map(|label| format!("label {label}")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        "all".to_owned()
    } else {
        parts.join(" ")
    }
}

/// Batches on their way, and how far they are.
pub(super) fn batches(glance: &Glance, now: UtcMillis) -> Panel {
    let mut rows = Vec::new();
    for open in &glance.batches {
        let batch = &open.batch;
        let lasts = span_since(&batch.intent_at, now);
        let usual = open
            .usual_ms
            .and_then(|ms| u64::try_from(ms).ok())
            .map(Duration::from_millis);
        let is_late = lasts
            .zip(usual)
            .is_some_and(|(lasts, usual)| lasts > usual * 2);
        let time = match (lasts, usual) {
            (Some(lasts), Some(usual)) => format!("{} of {}", short_span(lasts), short_span(usual)),
            (Some(lasts), None) => short_span(lasts),
            (None, _) => String::new(),
        };
        let tone = if is_late { Tone::Doubtful } else { Tone::Plain };
        rows.push(vec![
            Cell::id(batch.id),
            Cell::plain(&batch.target),
            Cell::plain(&batch.action),
            match &batch.read_error {
                Some(_) => Cell::toned("look failed", Tone::Bad),
                None => Cell::state(&batch.state),
            },
            Cell::plain(format!("{}/{}", open.known, batch.server_count)),
            Cell::toned(bar(open.known, batch.server_count), Tone::Busy),
            Cell::toned(time, tone),
        ]);
    }
    Panel {
        heads: vec!["BATCH", "TARGET", "ACTION", "STATE", "KNOWN", "", "TIME"],
        widths: vec![
            Constraint::Length(8),
            Constraint::Fill(1),
            Constraint::Length(7),
            Constraint::Length(11),
            Constraint::Length(10),
            Constraint::Length(BAR as u16),
            Constraint::Length(14),
        ],
        rows,
        empty: "no batch is on its way",
    }
}

/// The width of a batch's bar.
const BAR: usize = 12;

fn bar(known: i64, all: i64) -> String {
    let width = BAR as i64;
    let full = if all > 0 { known * width / all } else { 0 };
    let full = usize::try_from(full.clamp(0, width)).unwrap_or(0);
    format!("{}{}", "█".repeat(full), "░".repeat(BAR - full))
}

fn span_since(time: &str, now: UtcMillis) -> Option<Duration> {
    let at: UtcMillis = time.parse().ok()?;
    Some(now.since(at))
}

/// Failures of the last day by error.
pub(super) fn errors(glance: &Glance) -> Panel {
    let mut rows = Vec::new();
    for error in &glance.ended.errors {
        rows.push(vec![
            Cell::number(error.count, Tone::Plain),
            Cell::state(&error.state),
            Cell::plain(cell(&error.error_code)),
            Cell::plain(cell(&error.message)),
        ]);
    }
    Panel {
        heads: vec!["ERRORS/24H", "STATE", "CODE", "THE NEWEST SAYS"],
        widths: vec![
            Constraint::Length(10),
            Constraint::Length(9),
            Constraint::Length(20),
            Constraint::Fill(1),
        ],
        rows,
        empty: "nothing has failed in the last day",
    }
}

/// Requests; `name` is what they are.
pub(super) fn requests(requests: &[RequestRecord], name: &'static str, now: UtcMillis) -> Panel {
    let times = ShownTimes::Ages(now);
    let mut rows = Vec::new();
    for request in requests {
        let server = match &request.name {
            Some(name) if !name.is_empty() => name,
            _ => &request.server_id,
        };
        let at = request.finished_at.as_ref().unwrap_or(&request.created_at);
        rows.push(vec![
            Cell::id(request.id),
            Cell::plain(server),
            Cell::plain(&request.action),
            Cell::state(&request.state),
            Cell::plain(cell(&request.error_code)),
            Cell::plain(cell(&request.label)),
            Cell::plain(times.show(at)),
        ]);
    }
    Panel {
        heads: vec![
            name, "SERVER", "ACTION", "STATE", "ERROR", "LABEL", "CHANGED",
        ],
        widths: vec![
            Constraint::Length(9),
            Constraint::Fill(2),
            Constraint::Length(7),
            Constraint::Length(10),
            Constraint::Fill(1),
            Constraint::Fill(1),
            Constraint::Length(10),
        ],
        rows,
        empty: "no request matches",
    }
}

/// Why it is held is among what waits.
fn health(hold: Option<&HoldRecord>) -> Cell {
    match hold {
        Some(_) => Cell::toned("held", Tone::Bad),
        None => Cell::toned("ok", Tone::Good),
    }
}

/// Targets, their pace and their health.
pub(super) fn targets(glance: &Glance, now: UtcMillis) -> Panel {
    let times = ShownTimes::Ages(now);
    let mut rows = Vec::new();
    for target in &glance.targets {
        let note = &target.note;
        let pace = format!("{}/{}", note.pace_per_minute, note.submits_per_minute);
        let is_slowed = note.pace_per_minute < note.submits_per_minute;
        let tone = if is_slowed {
            Tone::Doubtful
        } else {
            Tone::Plain
        };
        rows.push(vec![
            Cell::plain(&note.target),
            Cell::plain(&note.service),
            Cell::number(note.calls_last_minute, Tone::Plain),
            Cell::toned(pace, tone),
            health(target.breaker.as_ref()),
            health(target.credentials.as_ref()),
            match &note.inventory_error {
                Some(_) => Cell::toned("list failed", Tone::Doubtful),
                None => Cell::plain(times.show_some(note.inventory_at.as_ref())),
            },
        ]);
    }
    Panel {
        heads: vec![
            "TARGET",
            "SERVICE",
            "CALLS/60S",
            "PACE",
            "BREAKER",
            "KEY",
            "LISTED",
        ],
        widths: vec![
            Constraint::Fill(1),
            Constraint::Length(8),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(8),
            Constraint::Length(5),
            Constraint::Length(11),
        ],
        rows,
        empty: "no daemon has noted a target yet",
    }
}

/// Orders with waves.
pub(super) fn orders(glance: &Glance, now: UtcMillis) -> Panel {
    let times = ShownTimes::Ages(now);
    let mut rows = Vec::new();
    for note in &glance.orders {
        let order = &note.order;
        let in_state = |state: RequestState| {
            let counts = note
                .requests
                .iter()
                .filter(|count| count.state == state.as_str());
            counts.map(|count| count.count).sum::<i64>()
        };
        let failed = in_state(RequestState::Failed) + in_state(RequestState::Unknown);
        rows.push(vec![
            Cell::plain(&order.label),
            Cell::state(&order.state),
            Cell::id(order.wave),
            Cell::plain(format!("{}/{}", order.wave_servers, order.wave_size)),
            Cell::number(order.servers, Tone::Plain),
            Cell::number(in_state(RequestState::Succeeded), Tone::Good),
            Cell::number(failed, Tone::Bad),
            Cell::plain(times.show_some(order.expires_at.as_ref())),
            Cell::plain(&order.waves),
        ]);
    }
    Panel {
        heads: vec![
            "ORDER", "STATE", "WAVE", "SENT", "SERVERS", "DONE", "FAILED", "EXPIRES", "WAVES",
        ],
        widths: vec![
            Constraint::Fill(1),
            Constraint::Length(6),
            Constraint::Length(5),
            Constraint::Length(10),
            Constraint::Length(8),
            Constraint::Length(7),
            Constraint::Length(7),
            Constraint::Length(8),
            Constraint::Fill(1),
        ],
        rows,
        empty: "there is no order with waves",
    }
}

/// Rows for each of several tables: what it wishes, or else all the same, and what the modest leave goes
/// to the others.
pub(super) fn shared(wanted: &[usize], room: usize) -> Vec<usize> {
    let mut given = vec![0; wanted.len()];
    let mut left = room;
    while left > 0 {
        let mut is_any_given = false;
        for (has, wants) in given.iter_mut().zip(wanted) {
            if left > 0 && *has < *wants {
                *has += 1;
                left -= 1;
                is_any_given = true;
            }
        }
        if !is_any_given {
            break;
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_shared_and_the_modest_leave_theirs_to_others() {
        assert_eq!(shared(&[1, 10, 3], 20), [1, 10, 3]);
        assert_eq!(shared(&[1, 10, 3], 8), [1, 4, 3]);
        assert_eq!(shared(&[5, 5], 0), [0, 0]);
        assert_eq!(shared(&[], 7), Vec::<usize>::new());
    }
}
