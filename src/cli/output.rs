//! Results on stdout, remarks on stderr, and tables for people. A reader that ends early (`| head`)
//! is not an error.

use std::io::{self, Write};

use serde::Serialize;

use super::Failure;

pub(super) use crate::model::quoted;

/// Writes results to stdout. Ends quietly when nobody reads them any more.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::Output(error)),
        Ok(()) => Ok(()),
    }
}

/// Writes one JSON value to stdout, indented.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| Failure::Output(error.into()))?;
    print(&(text + "\n"))
}

/// Writes a remark to stderr. If stderr is closed, nothing can be done about it.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The widest cell, in columns of the terminal; longer ones end in `…`. JSON has the whole text.
const CELL_MAX: usize = 60;

/// A table with a head and aligned columns, two blanks apart.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    /// Columns of numbers, which are right-aligned.
    numbers: &'static [usize],
}

impl Table {
    /// `numbers` says which columns hold numbers, from 0.
    pub(super) fn new(head: &[&str], numbers: &'static [usize]) -> Self {
        Self {
            rows: vec![head.iter().map(|&word| word.to_owned()).collect()],
            numbers,
        }
    }

    /// Adds a row; an empty cell is shown as `-`.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows
            .push(cells.iter().map(|cell| shown(cell)).collect());
    }

    /// The lines, without trailing blanks.
    pub(super) fn render(&self) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let mut widths = vec![0; columns];
        for row in &self.rows {
            for (widest, cell) in widths.iter_mut().zip(row) {
                *widest = width(cell).max(*widest);
            }
        }
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                if column > 0 {
                    line.push_str("  ");
                }
                let blanks = " ".repeat(widths[column].saturating_sub(width(cell)));
                if self.numbers.contains(&column) {
                    line.push_str(&blanks);
                    line.push_str(cell);
                } else {
                    line.push_str(cell);
                    line.push_str(&blanks);
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A cell as the table shows it: never empty, safe, not too wide.
fn shown(cell: &str) -> String {
    if cell.is_empty() {
        return "-".to_owned();
    }
    // Cut first: escaping makes a long text even longer.
    let cell = visible(&cut(cell, CELL_MAX));
    cut(&cell, CELL_MAX)
}

/// The text, or its beginning and `…` if it is wider than `widest`.
fn cut(text: &str, widest: usize) -> String {
    let mut used = 0;
    let mut room = 0;
    for (at, char) in text.char_indices() {
        used += char_width(char);
        if used < widest {
            room = at + char.len_utf8();
        }
        if used > widest {
            return format!("{}…", &text[..room]);
        }
    }
    text.to_owned()
}

/// The width of the text in columns of a terminal.
fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

/// Columns of one character: none for marks on the one before, two for East Asian wide forms and
/// emoji. After Unicode's East Asian Width, by blocks.
fn char_width(char: char) -> usize {
    match u32::from(char) {
        0x0300..=0x036f | 0x200b..=0x200d | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

/// Marks that change the direction of text: they can make it look like another text.
fn turns_direction(char: char) -> bool {
    matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Breaks text at blanks into lines of at most `widest` columns, each after `indent`.
pub(super) fn wrapped(text: &str, indent: &str, widest: usize) -> String {
    let mut lines = String::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && width(&line) + 1 + width(word) > widest {
            lines.push_str(&format!("{indent}{line}\n"));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push_str(&format!("{indent}{line}\n"));
    lines
}

/// Text from outside, made safe for a terminal: control characters are escaped.
pub(super) fn visible(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() || turns_direction(char) {
            safe.extend(char.escape_default());
        } else {
            safe.push(char);
        }
    }
    safe
}

/// An absent value as an empty cell.
pub(super) fn cell<T: ToString>(value: &Option<T>) -> String {
    value.as_ref().map(T::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_trails() {
        let mut table = Table::new(&["ID", "STATE", "LABEL"], &[0]);
        table.row(["7".to_owned(), "succeeded".to_owned(), String::new()]);
        table.row(["1234".to_owned(), "queued".to_owned(), "night".to_owned()]);
        assert_eq!(
            table.render(),
            "  ID  STATE      LABEL\n   7  succeeded  -\n1234  queued     night\n"
        );
    }

    #[test]
    fn a_label_cannot_steer_the_terminal() {
        assert_eq!(visible("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(visible("Größe"), "Größe");
    }

    #[test]
    fn a_cell_of_any_length_is_cut() {
        let mut table = Table::new(&["LABEL", "STATE"], &[]);
        table.row(["x".repeat(70_000), "queued".to_owned()]);
        table.row(["\u{1b}".repeat(300), "queued".to_owned()]);
        table.row(["電".repeat(300), "queued".to_owned()]);
        table.row(["x".repeat(60), "queued".to_owned()]);
        let text = table.render();
        assert!(text.lines().all(|line| width(line) <= 60 + 2 + 6), "{text}");
        assert_eq!(text.matches('…').count(), 3, "{text}");
    }

    #[test]
    fn wide_characters_and_marks_shift_no_column() {
        let mut table = Table::new(&["LABEL", "STATE"], &[]);
        table.row(["電源".to_owned(), "queued".to_owned()]);
        table.row(["e\u{301}te".to_owned(), "queued".to_owned()]);
        assert_eq!(
            table.render(),
            "LABEL  STATE\n電源   queued\ne\u{301}te    queued\n"
        );
        assert_eq!(visible("a\u{202e}b"), "a\\u{202e}b");
    }

    #[test]
    fn long_sentences_are_broken_at_blanks() {
        assert_eq!(wrapped("one two three", "  ", 8), "  one two\n  three\n");
        assert_eq!(wrapped("", "  ", 8), "  \n");
    }
}
