//! How many instructions the queue's own work takes: a figure that hardly depends on the machine, so
//! that a regression shows anywhere.
//!
//! `cargo test --bench instructions [-- --keep]`
//!
//! A fixed drain, the store alone, under `valgrind --tool=callgrind`: the INSERT of two thousand
//! rows, and claim, acceptance and outcomes of all of them. `benches/instructions.txt` has what it
//! took when it was last kept; more than half as much again fails. `--keep` writes that file anew.

use std::fmt::Write as _;
use std::process::{Command, ExitCode};

use clap::Parser;
use poweryard::store::Store;

#[path = "common/mod.rs"]
mod common;

use common::far::utc_now;
use common::{ids, steps, yard};

const ROLE: &str = "work";
const ROWS: usize = 2 * steps::BATCH as usize;
/// Other compilers and other SQLite differ by less than this.
const MOST: f64 = 1.5;
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");

/// What is counted apart. Each includes those before it.
const STAGES: [&str; 3] = ["open", "insert", "drain"];

#[derive(Debug, Parser)]
struct Args {
    /// Write the file anew.
    #[arg(long)]
    keep: bool,
    /// Cargo's.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, role, stage] = args.as_slice()
        && role == ROLE
    {
        work(stage);
        return ExitCode::SUCCESS;
    }
    let args = Args::parse();
    let Some(counted) = count_all() else {
        println!("instructions are not counted: there is no valgrind here");
        return ExitCode::SUCCESS;
    };
    if args.keep {
        keep(&counted);
        return ExitCode::SUCCESS;
    }
    compare(&counted)
}

/// The instructions of each stage beyond the one before. None if there is nothing to count them
/// with.
fn count_all() -> Option<Vec<(&'static str, u64)>> {
    let mut counted = Vec::new();
    let mut before = 0;
    for stage in STAGES {
        let all = count(stage)?;
        counted.push((stage, all.saturating_sub(before)));
        before = all;
    }
    Some(counted)
}

fn count(stage: &str) -> Option<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().expect("this program"))
        .args([ROLE, stage])
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "under valgrind: {said}");
    let line = said
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    let (_, number) = line.expect("callgrind says what it has collected");
    Some(number.trim().parse().expect("a number"))
}

/// Counts of an optimised build are others.
fn profile() -> &'static str {
    if cfg!(debug_assertions) {
        "test"
    } else {
        "release"
    }
}

fn kept() -> Vec<(String, String, u64)> {
    let text = std::fs::read_to_string(FILE).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let fields = |line: &str| {
        let mut fields = line.split_whitespace().map(str::to_owned);
        Some((fields.next()?, fields.next()?, fields.next()?.parse().ok()?))
    };
    lines.filter_map(fields).collect()
}

fn compare(counted: &[(&str, u64)]) -> ExitCode {
    let kept = kept();
    let mut is_good = true;
    for (stage, count) in counted {
        let former = kept
            .iter()
            .find(|(of, name, _)| of == profile() && name == stage);
        let Some((_, _, former)) = former else {
            println!("{stage:<8} {count:>14} instructions; none are kept for this profile");
            continue;
        };
        let ratio = *count as f64 / *former as f64;
        println!("{stage:<8} {count:>14} instructions, {ratio:.2} times those that are kept");
        is_good &= ratio <= MOST;
    }
    if is_good {
        return ExitCode::SUCCESS;
    }
    println!(
        "more than {MOST} times as many as before. If that is meant: cargo test --bench instructions -- --keep"
    );
    ExitCode::FAILURE
}

fn keep(counted: &[(&str, u64)]) {
    let mut text = format!(
        "# Instructions for {ROWS} rows, the store alone; see benches/instructions.rs.\n# profile, stage, instructions\n"
    );
    for (profile_kept, stage, count) in kept() {
        if profile_kept != profile() {
            writeln!(text, "{profile_kept} {stage} {count}").expect("a String takes any text");
        }
    }
    for (stage, count) in counted {
        writeln!(text, "{} {stage} {count}", profile()).expect("a String takes any text");
    }
    std::fs::write(FILE, &text).expect("written");
    print!("{text}");
}

fn work(stage: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("queue.db");
        let store = Store::open(&path).await.expect("a queue");
        if stage != "open" {
            insert(&path).await;
        }
        if stage == "drain" {
            drain(&store).await;
        }
        store.close().await.expect("closed");
    });
}

async fn insert(path: &std::path::Path) {
    let mut producer = yard::connect(path).await;
    let servers = serde_json::to_string(&ids::random_ids(ROWS, 1)).expect("text");
    sqlx::query(
        "INSERT INTO power_requests (server_id, action) SELECT value, 'reboot' FROM json_each(?)",
    )
    .bind(servers)
    .execute(&mut producer)
    .await
    .expect("inserted");
    sqlx::Connection::close(producer).await.expect("closed");
}

async fn drain(store: &Store) {
    while let Some(lane) = steps::first_lane(store).await {
        let now = utc_now();
        let batch = steps::claim(store, &lane, now).await.expect("claimed");
        steps::accept(store, &batch, now).await;
        let batch = steps::load(store, &batch).await;
        steps::end(store, &batch, now).await;
    }
}
