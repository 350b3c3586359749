//! Tables that fit the terminal: columns that say nothing are left out, long cells are cut, and
//! what still has no room is left out, too.

use super::{Table, cut, width};
use crate::cli::terminal::{Screen, Tone};

/// Blanks between two columns.
const GAP: usize = 2;
/// What a column with nothing to say shows.
const EMPTY: &str = "-";

/// What may give way, by the numbers of the columns.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) struct Fit {
    /// Columns that may be cut, each with the width that is left to it at least; the first one gives
    /// way first.
    pub(in crate::cli) cut: &'static [(usize, usize)],
    /// Columns that may be left out; the first one goes first. Those without any value go anyway.
    pub(in crate::cli) drop: &'static [usize],
    /// Columns whose words have a colour.
    pub(in crate::cli) states: &'static [usize],
}

impl Table {
    /// The lines as this terminal shows them; without one, all columns.
    pub(in crate::cli) fn render_on(&self, screen: Option<&Screen>, fit: &Fit) -> String {
        let Some(screen) = screen else {
            return self.render();
        };
        let natural = self.widths();
        let says_something = |column: usize| {
            let mut cells = self.rows.iter().skip(1).map(|row| row[column].as_str());
            self.rows.len() == 1 || cells.any(|cell| cell != EMPTY)
        };
        let mut kept: Vec<usize> = (0..natural.len())
            .filter(|column| !fit.drop.contains(column) || says_something(*column))
            .collect();
        let mut dropped = fit.drop.iter();
        let widths = loop {
            let widths = cut_widths(&natural, &kept, fit, screen.columns);
            if total(&widths, &kept) <= screen.columns {
                break widths;
            }
            let Some(next) = dropped.next() else {
                break widths;
            };
            kept.retain(|column| column != next);
        };
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            let line = self.line(row, &kept, &widths, screen.columns, |column, cell| {
                match (screen.has_colours, number) {
                    (false, _) => Tone::Plain,
                    (true, 0) => Tone::Heading,
                    (true, _) if fit.states.contains(&column) => Tone::of(cell),
                    (true, _) => Tone::Plain,
                }
            });
            text.push_str(&line);
            text.push('\n');
        }
        text
    }

    /// One line of at most `columns`, without trailing blanks.
    fn line(
        &self,
        row: &[String],
        kept: &[usize],
        widths: &[usize],
        columns: usize,
        tone: impl Fn(usize, &str) -> Tone,
    ) -> String {
        let last = kept.iter().rposition(|column| !row[*column].is_empty());
        let mut line = String::new();
        let mut used = 0;
        for (place, column) in kept.iter().copied().enumerate() {
            if place > 0 {
                used += GAP;
            }
            if used >= columns {
                break;
            }
            if place > 0 {
                line.push_str(&" ".repeat(GAP));
            }
            let room = widths[column].min(columns - used);
            let cell = cut(&row[column], room);
            let blanks = " ".repeat(room.saturating_sub(width(&cell)));
            let painted = tone(column, &row[column]).paint(&cell);
            used += room;
            if self.numbers.contains(&column) {
                line.push_str(&blanks);
                line.push_str(&painted);
            } else {
                line.push_str(&painted);
                if Some(place) != last {
                    line.push_str(&blanks);
                }
            }
        }
        line
    }
}

/// The widths of all columns after those that may be cut have given way.
fn cut_widths(natural: &[usize], kept: &[usize], fit: &Fit, columns: usize) -> Vec<usize> {
    let mut widths = natural.to_vec();
    for (column, least) in fit.cut {
        let excess = total(&widths, kept).saturating_sub(columns);
        if kept.contains(column) {
            let left = widths[*column].saturating_sub(excess);
            widths[*column] = left.max(*least).min(widths[*column]);
        }
    }
    widths
}

fn total(widths: &[usize], kept: &[usize]) -> usize {
    let cells: usize = kept.iter().map(|column| widths[*column]).sum();
    cells + GAP * kept.len().saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIT: Fit = Fit {
        cut: &[(3, 5), (1, 8)],
        drop: &[3, 2],
        states: &[2],
    };

    fn table() -> Table {
        let mut table = Table::new(&["ID", "SERVER", "STATE", "LABEL"], &[0]);
        table.row([
            "17".to_owned(),
            "616fb98f-46ca-475e-917e-2563e5a8cd19".to_owned(),
            "failed".to_owned(),
            "a long label".to_owned(),
        ]);
        table
    }

    fn shown(table: &Table, columns: usize, has_colours: bool) -> Vec<String> {
        let screen = Screen {
            columns,
            rows: 24,
            has_colours,
        };
        let text = table.render_on(Some(&screen), &FIT);
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn with_room_for_all_it_is_the_table_that_a_file_gets() {
        let table = table();
        assert_eq!(shown(&table, 80, false).join("\n") + "\n", table.render());
        assert_eq!(table.render_on(None, &FIT), table.render());
    }

    #[test]
    fn cells_give_way_first_and_columns_after_them() {
        let table = table();
        assert_eq!(
            shown(&table, 60, false)[1],
            "17  616fb98f-46ca-475e-917e-2563e5a8cd19  failed  a long la…"
        );
        assert_eq!(
            shown(&table, 40, false)[1],
            "17  616fb98f-46ca-475e-9…  failed  a lo…"
        );
        assert_eq!(shown(&table, 22, false)[1], "17  616fb98f-…  failed");
        assert_eq!(shown(&table, 8, false)[1], "17  616…");
    }

    #[test]
    fn a_column_that_says_nothing_is_left_out() {
        let mut table = Table::new(&["ID", "SERVER", "STATE", "LABEL"], &[0]);
        table.row(["17", "s", "failed", ""].map(str::to_owned));
        assert_eq!(
            shown(&table, 80, false),
            ["ID  SERVER  STATE", "17  s       failed"]
        );
    }

    #[test]
    fn colours_change_no_width() {
        let lines = shown(&table(), 80, true);
        assert!(
            lines[1].contains("\u{1b}[31mfailed\u{1b}[0m  a long label"),
            "{lines:?}"
        );
        assert!(!shown(&table(), 80, false)[1].contains('\u{1b}'));
    }
}
