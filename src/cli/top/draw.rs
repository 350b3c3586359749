//! How `top` looks. Reads nothing and decides nothing.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Row, Sparkline, Table, TableState, Wrap};

use super::app::{App, Dialog, HoldChange, Tab};
use crate::cli::output::{visible, width};
use crate::cli::panels::{self, Panel, shared};
use crate::cli::terminal::Tone;
use crate::model::UtcMillis;
use crate::store::client::{Glance, OutcomeSlot, Selection, scope_name};

/// From this width on the overview has two columns.
const WIDE: u16 = 140;
/// Lines of the sentence at the top.
const HEADLINE_MAX: u16 = 3;

/// What the drawing depends on beside the data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drawing {
    /// False with `NO_COLOR`.
    pub(super) has_colours: bool,
    /// The present time.
    pub(super) now: UtcMillis,
}

impl Drawing {
    fn style(self, tone: Tone) -> Style {
        let style = Style::new();
        match (tone, self.has_colours) {
            (Tone::Plain, _) => style,
            (Tone::Heading, _) => style.add_modifier(Modifier::BOLD),
            (_, false) => style,
            (Tone::Good, true) => style.fg(Color::Green),
            (Tone::Bad, true) => style.fg(Color::Red),
            (Tone::Doubtful, true) => style.fg(Color::Yellow),
            (Tone::Busy, true) => style.fg(Color::Cyan),
        }
    }
}

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, app: &App, look: Drawing) {
    let [title, tabs, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_title(frame, title, app, look);
    draw_tabs(frame, tabs, app, look);
    draw_foot(frame, foot, app, look);
    match (&app.glance, app.tab) {
        (Some(glance), Tab::Overview) => draw_overview(frame, body, glance, look),
        (Some(glance), Tab::Failures) => draw_failures(frame, body, app, glance, look),
        _ => draw_page(frame, body, app, look),
    }
    if let Some(dialog) = &app.dialog {
        draw_dialog(frame, dialog, app, look);
    }
}

fn draw_title(frame: &mut Frame<'_>, area: Rect, app: &App, look: Drawing) {
    let daemon = match app.glance.as_ref().map(|glance| &glance.daemon) {
        None => Span::raw(""),
        Some(daemon) => match daemon.running {
            Some(true) => Span::styled("daemon running", look.style(Tone::Good)),
            Some(false) => Span::styled("NO DAEMON RUNS", look.style(Tone::Bad)),
            None => Span::styled("daemon: cannot tell", look.style(Tone::Doubtful)),
        },
    };
    let as_of = app
        .glance
        .as_ref()
        .and_then(|glance| glance.as_of.to_string().get(11..19).map(str::to_owned))
        .map(|clock| format!("as of {clock} UTC"))
        .unwrap_or_default();
    let right = Line::from(vec![daemon, Span::raw("  "), Span::raw(as_of)]);
    let [left, right_area] = Layout::horizontal([
        Constraint::Min(1),
        Constraint::Length(u16::try_from(right.width()).unwrap_or(u16::MAX)),
    ])
    .areas(area);
    let name = Line::styled(
        format!("poweryard  {}", visible(&app.queue)),
        look.style(Tone::Heading),
    );
    frame.render_widget(name, left);
    frame.render_widget(right, right_area);
}

fn draw_tabs(frame: &mut Frame<'_>, area: Rect, app: &App, look: Drawing) {
    let mut spans = Vec::new();
    for (number, tab) in Tab::ALL.into_iter().enumerate() {
        let text = format!(" {} {} ", number + 1, tab.name());
        let style = if tab == app.tab {
            look.style(Tone::Heading).add_modifier(Modifier::REVERSED)
        } else {
            Style::new()
        };
        spans.push(Span::styled(text, style));
    }
    frame.render_widget(Line::from(spans), area);
}

fn draw_foot(frame: &mut Frame<'_>, area: Rect, app: &App, look: Drawing) {
    let line = match (&app.note, &app.trouble) {
        (Some(note), _) => Line::styled(visible(note), look.style(Tone::Heading)),
        (None, Some(trouble)) => Line::styled(visible(trouble), look.style(Tone::Bad)),
        (None, None) => Line::raw(
            "q quit  1-7 pages  ↑↓ choose  Enter explain  / filter  p pause  r resume  ? help",
        ),
    };
    frame.render_widget(line, area);
}

/// Several tables that share the room by what they need.
fn draw_overview(frame: &mut Frame<'_>, area: Rect, glance: &Glance, look: Drawing) {
    let sentence = visible(&glance.headline);
    let lines = lines_of(&sentence, area.width).min(HEADLINE_MAX);
    let [head, body] =
        Layout::vertical([Constraint::Length(lines), Constraint::Min(1)]).areas(area);
    let style = match glance.trouble {
        Some(_) => look.style(Tone::Doubtful).add_modifier(Modifier::BOLD),
        None => look.style(Tone::Heading),
    };
    let headline = Paragraph::new(sentence)
        .style(style)
        .wrap(Wrap { trim: true });
    frame.render_widget(headline, head);
    let queue = panels::queue(glance, look.now);
    let waiting = panels::waiting(glance, look.now);
    let batches = panels::batches(glance, look.now);
    let errors = panels::errors(glance);
    let targets = panels::targets(glance, look.now);
    let orders = panels::orders(glance, look.now);
    if area.width >= WIDE {
        let [left, right] =
            Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)])
                .spacing(2)
                .areas(body);
        let lists = [&queue, &waiting, &orders, &targets];
        stack(frame, left, &lists, &OutcomeChart::of_day(glance), look);
        let lists = [&batches, &errors];
        stack(frame, right, &lists, &OutcomeChart::of_hour(glance), look);
    } else {
        let mut all = vec![&queue, &waiting, &batches, &errors];
        if !glance.orders.is_empty() {
            all.push(&orders);
        }
        all.push(&targets);
        stack(frame, body, &all, &OutcomeChart::of_hour(glance), look);
    }
}

/// Tables one below the other, and a chart below them.
fn stack(
    frame: &mut Frame<'_>,
    area: Rect,
    panels: &[&Panel],
    chart: &OutcomeChart<'_>,
    look: Drawing,
) {
    let chart_height = match area.height {
        0..18 => 2,
        18..30 => 3,
        _ => 6,
    };
    let wanted: Vec<usize> = panels.iter().map(|panel| panel.rows.len().max(1)).collect();
    let room = usize::from(area.height.saturating_sub(chart_height));
    let rows = shared(&wanted, room.saturating_sub(panels.len()));
    let mut y = area.y;
    for (panel, rows) in panels.iter().zip(rows) {
        let rows = u16::try_from(rows).unwrap_or(u16::MAX);
        let height = rows.saturating_add(1).min(area.bottom().saturating_sub(y));
        draw_panel(
            frame,
            Rect::new(area.x, y, area.width, height),
            panel,
            None,
            look,
        );
        y += height;
    }
    // At the bottom, where it stays while the tables grow.
    let height = area.bottom().saturating_sub(y).min(chart_height);
    let top = area.bottom().saturating_sub(height);
    draw_chart(
        frame,
        Rect::new(area.x, top, area.width, height),
        chart,
        look,
    );
}

/// What ended in each minute or hour.
struct OutcomeChart<'a> {
    slots: &'a [OutcomeSlot],
    /// The heads of the good ones and the bad ones.
    heads: [&'static str; 2],
    span: &'static str,
}

impl<'a> OutcomeChart<'a> {
    fn of_hour(glance: &'a Glance) -> Self {
        Self {
            slots: &glance.ended.minutes,
            heads: ["DONE/MIN", "FAILED/MIN"],
            span: "the last hour",
        }
    }

    fn of_day(glance: &'a Glance) -> Self {
        Self {
            slots: &glance.ended.hours,
            heads: ["DONE/H", "FAILED/H"],
            span: "the last day",
        }
    }
}

fn draw_chart(frame: &mut Frame<'_>, area: Rect, chart: &OutcomeChart<'_>, look: Drawing) {
    if area.height < 2 {
        return;
    }
    let number = |count: i64| u64::try_from(count).unwrap_or(0);
    let good: Vec<u64> = chart
        .slots
        .iter()
        .map(|slot| number(slot.succeeded))
        .collect();
    let bad: Vec<u64> = chart
        .slots
        .iter()
        .map(|slot| number(slot.failed + slot.unknown))
        .collect();
    let halves = Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)])
        .spacing(2)
        .areas::<2>(area);
    let [good_head, bad_head] = chart.heads;
    let series = [(good_head, good, Tone::Good), (bad_head, bad, Tone::Bad)];
    for (half, (name, data, tone)) in halves.into_iter().zip(series) {
        let [head, line] =
            Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).areas(half);
        let most = data.iter().copied().max().unwrap_or(0);
        let newest = data.len().saturating_sub(usize::from(line.width));
        frame.render_widget(
            Line::styled(
                format!("{name}  {}, up to {most}", chart.span),
                look.style(Tone::Heading),
            ),
            head,
        );
        let bars = Sparkline::default()
            .data(&data[newest..])
            .style(look.style(tone));
        frame.render_widget(bars, line);
    }
}

/// Errors above, the newest failures below.
fn draw_failures(frame: &mut Frame<'_>, area: Rect, app: &App, glance: &Glance, look: Drawing) {
    let errors = panels::errors(glance);
    let wanted = u16::try_from(errors.rows.len().max(1)).unwrap_or(u16::MAX);
    let height = (wanted + 1).min(area.height / 3);
    let [above, below] =
        Layout::vertical([Constraint::Length(height), Constraint::Min(1)]).areas(area);
    draw_panel(frame, above, &errors, None, look);
    let failures = panel_of(app, Tab::Failures, look.now);
    draw_panel(frame, below, &failures, Some(app.row()), look);
}

fn draw_page(frame: &mut Frame<'_>, area: Rect, app: &App, look: Drawing) {
    let panel = panel_of(app, app.tab, look.now);
    if app.tab != Tab::Requests || app.words.text().is_empty() {
        draw_panel(frame, area, &panel, Some(app.row()), look);
        return;
    }
    let [filter, rest] = Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).areas(area);
    let text = format!("only: {}", visible(app.words.text()));
    frame.render_widget(Line::styled(text, look.style(Tone::Doubtful)), filter);
    draw_panel(frame, rest, &panel, Some(app.row()), look);
}

/// The table of a page.
fn panel_of(app: &App, tab: Tab, now: UtcMillis) -> Panel {
    let Some(glance) = &app.glance else {
        return Panel {
            empty: "reading the queue",
            ..Panel::default()
        };
    };
    match tab {
        Tab::Overview => panels::queue(glance, now),
        Tab::Requests => panels::requests(&app.requests, "REQUEST", now),
        Tab::Waiting => panels::waiting(glance, now),
        Tab::Batches => panels::batches(glance, now),
        Tab::Failures => panels::requests(&glance.ended.newest_failures, "FAILED", now),
        Tab::Targets => panels::targets(glance, now),
        Tab::Orders => panels::orders(glance, now),
    }
}

fn draw_panel(frame: &mut Frame<'_>, area: Rect, panel: &Panel, row: Option<usize>, look: Drawing) {
    if area.is_empty() {
        return;
    }
    let heading = look.style(Tone::Heading);
    if panel.rows.is_empty() {
        let name = panel.heads.first().copied().unwrap_or_default();
        let lines = vec![Line::styled(name, heading), Line::raw(panel.empty)];
        frame.render_widget(Paragraph::new(lines), area);
        return;
    }
    let shown = usize::from(area.height.saturating_sub(1));
    let rows = panel.rows.iter().map(|cells| {
        let cells = cells
            .iter()
            .map(|cell| aligned(&cell.text, look.style(cell.tone), cell.is_number));
        Row::new(cells)
    });
    let hidden = panel.rows.len().saturating_sub(shown);
    let heads = panel.heads.iter().enumerate().map(|(column, head)| {
        let is_number = panel.rows[0].get(column).is_some_and(|cell| cell.is_number);
        if column == 0 && hidden > 0 && row.is_none() {
            return Line::from(format!("{head} +{hidden}"));
        }
        aligned(head, heading, is_number)
    });
    let table = Table::new(rows, &panel.widths)
        .header(Row::new(heads).style(heading))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .column_spacing(1);
    let mut state = TableState::new().with_selected(row);
    frame.render_stateful_widget(table, area, &mut state);
}

/// Numbers go to the right of their column.
fn aligned(text: &str, style: Style, is_number: bool) -> Line<'_> {
    let line = Line::styled(text, style);
    if is_number {
        line.right_aligned()
    } else {
        line
    }
}

/// Lines that the text needs at this width.
fn lines_of(text: &str, columns: u16) -> u16 {
    let columns = usize::from(columns.max(1));
    let mut lines = 1;
    let mut used = 0;
    for word in text.split_whitespace() {
        let word = width(word);
        if used > 0 && used + 1 + word > columns {
            lines += 1;
            used = word;
        } else {
            used += word + usize::from(used > 0);
        }
    }
    lines
}

fn draw_dialog(frame: &mut Frame<'_>, dialog: &Dialog, app: &App, look: Drawing) {
    let (title, lines, scroll) = match dialog {
        Dialog::Help => ("Keys".to_owned(), help(), 0),
        Dialog::Text {
            title,
            lines,
            scroll,
        } => (title.clone(), lines.clone(), *scroll),
        Dialog::Filter { typed } => (
            "Filter: Enter takes it, Esc leaves".to_owned(),
            vec![
                format!("{typed}▏"),
                String::new(),
                "Words such as: failed queued stop gpu-7 gpu-* target:eu label:patch* error:BMS.* by:alice since:2h"
                    .to_owned(),
                "No word: the newest requests.".to_owned(),
            ],
            0,
        ),
        Dialog::Choose { deed, scopes, at } => (
            format!("{} what? ↑↓ Enter, Esc leaves", deed.verb()),
            scopes
                .iter()
                .enumerate()
                .map(|(number, scope)| {
                    let mark = if number == *at { "▶ " } else { "  " };
                    format!("{mark}{}", name_of(scope))
                })
                .collect(),
            // The chosen one stays in sight.
            u16::try_from(at.saturating_sub(8)).unwrap_or(0),
        ),
        Dialog::Reason { deed, scope, typed } => (
            format!("{}: {}", deed.verb(), name_of(scope)),
            vec![
                format!("As {}. Why? {typed}▏", app.who),
                String::new(),
                match deed {
                    HoldChange::Pause => {
                        "Enter pauses: nothing new is sent, what runs is still followed. Esc leaves."
                    }
                    HoldChange::Resume => {
                        "Enter ends this pause. If there is none and a wave of the label is held, it goes in spite of that. Esc leaves."
                    }
                }
                .to_owned(),
            ],
            0,
        ),
    };
    let area = frame.area();
    let columns = area.width.saturating_sub(4).clamp(1, 100);
    let lines: Vec<String> = lines.iter().map(|line| visible(line)).collect();
    let wanted: u16 = lines
        .iter()
        .map(|line| lines_of(line, columns.saturating_sub(4)).max(1))
        .fold(0, u16::saturating_add);
    let rows = wanted.saturating_add(2).min(area.height.saturating_sub(2));
    let popup = Rect::new(
        area.x + area.width.saturating_sub(columns) / 2,
        area.y + area.height.saturating_sub(rows) / 2,
        columns,
        rows,
    );
    let block = Block::bordered()
        .title(visible(&title))
        .title_style(look.style(Tone::Heading))
        .padding(ratatui::widgets::Padding::horizontal(1));
    let most = wanted.saturating_sub(rows.saturating_sub(2));
    let text = Paragraph::new(lines.into_iter().map(Line::from).collect::<Vec<_>>())
        .wrap(Wrap { trim: false })
        .scroll((scroll.min(most), 0))
        .block(block);
    frame.render_widget(Clear, popup);
    frame.render_widget(text, popup);
}

fn name_of(scope: &Selection) -> String {
    scope_name(
        scope.target.as_deref(),
        scope.action.map(|action| action.as_str()),
        scope.label.as_deref(),
    )
}

fn help() -> Vec<String> {
    [
        "1 to 7, Tab, ← →   another page",
        "↑ ↓ PgUp PgDn Home End   choose a row",
        "Enter, e   explain the request, or show the whole reason of the row",
        "/   list only some requests",
        "p   pause: asks what, and why",
        "r   resume: asks which pause or held wave",
        "q, Ctrl-C   quit",
        "Esc   close this",
    ]
    .map(str::to_owned)
    .to_vec()
}

#[cfg(test)]
#[path = "draw_tests.rs"]
mod tests;
