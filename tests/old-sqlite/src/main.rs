//! `old-sqlite FILE [TIMEOUT_MS]`: runs SQL from stdin on SQLite 3.26.0, as a producer with an old library would.
//!
//! Prints rows tab-separated, stops at the first error (`Error: …` on stderr, exit 1). Knows nothing of the queue.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{Read, Write, stdin, stdout};
use std::process::ExitCode;
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, NO_PARAMS};

mod split;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let file = args.next().ok_or("usage: old-sqlite FILE [TIMEOUT_MS] < SQL")?;
    let timeout_ms = match args.next() {
        Some(text) => text.to_string_lossy().parse()?,
        None => 0,
    };
    let mut sql = String::new();
    stdin().read_to_string(&mut sql)?;
    let db = Connection::open(file)?;
    db.busy_timeout(Duration::from_millis(timeout_ms))?;
    for statement in split::statements(&sql) {
        print_rows(&db, &statement)?;
    }
    db.close().map_err(|(_, error)| error)?;
    Ok(())
}

/// Runs one statement to its end. The rows stepped through before an error are printed, as the stock shell does.
fn print_rows(db: &Connection, statement: &str) -> Result<(), Box<dyn Error>> {
    let mut prepared = db.prepare(statement)?;
    let columns = prepared.column_count();
    let mut rows = prepared.query(NO_PARAMS)?;
    let mut out = stdout().lock();
    while let Some(row) = rows.next() {
        let row = row?;
        let cells: Vec<String> = (0..columns).map(|column| cell(row.get_raw(column))).collect();
        writeln!(out, "{}", cells.join("\t"))?;
    }
    Ok(())
}

/// A value as the stock shell prints it: NULL is empty.
fn cell(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => String::new(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => format!("{number:?}"),
        ValueRef::Text(text) => text.to_owned(),
        ValueRef::Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
    }
}
