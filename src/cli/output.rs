//! Results on stdout, remarks on stderr, and tables for people. A reader that leaves early (`| head`) is no error.

use std::fmt::Write as _;
use std::io::{self, Write};

use serde::Serialize;

use super::Failure;

/// Writes results to stdout. Ends quietly when nobody reads them any more.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::Output(error)),
        Ok(()) => Ok(()),
    }
}

/// Writes one JSON value to stdout, indented.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::Output(error.into()))?;
    print(&(text + "\n"))
}

/// Writes a remark to stderr. If nobody listens there, nothing can be done about it.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A table with a head and aligned columns, two blanks apart.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    /// Columns of numbers, which are aligned on the right.
    numbers: &'static [usize],
}

impl Table {
    /// `numbers` says which columns hold numbers, from 0.
    pub(super) fn new(head: &[&str], numbers: &'static [usize]) -> Self {
        Self { rows: vec![head.iter().map(|&word| word.to_owned()).collect()], numbers }
    }

    /// Adds a row; an empty cell is shown as `-`.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.iter().map(|cell| if cell.is_empty() { "-".to_owned() } else { visible(cell) }).collect());
    }

    /// The lines, without trailing blanks.
    pub(super) fn render(&self) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                let width = widths[column];
                // Writing to a String cannot fail.
                let _ = match self.numbers.contains(&column) {
                    true => write!(line, "{gap}{cell:>width$}"),
                    false => write!(line, "{gap}{cell:<width$}"),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Text that a stranger wrote, safe for a terminal: control characters are spelled out.
pub(super) fn visible(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() {
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

/// `1 request`, `2 requests`.
pub(super) fn count(number: usize, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ if noun.ends_with("ch") => format!("{number} {noun}es"),
        _ => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_trails() {
        let mut table = Table::new(&["ID", "STATE", "LABEL"], &[0]);
        table.row(["7".to_owned(), "succeeded".to_owned(), String::new()]);
        table.row(["1234".to_owned(), "queued".to_owned(), "night".to_owned()]);
        assert_eq!(table.render(), "  ID  STATE      LABEL\n   7  succeeded  -\n1234  queued     night\n");
    }

    #[test]
    fn a_label_cannot_steer_the_terminal() {
        assert_eq!(visible("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(visible("Größe"), "Größe");
    }

    #[test]
    fn nouns_follow_their_number() {
        assert_eq!(count(1, "request"), "1 request");
        assert_eq!(count(2, "batch"), "2 batches");
    }
}
