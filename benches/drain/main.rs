//! From rows to stored outcomes: the daemon beside the floor, in turns, against a far side in a
//! process of its own.
//!
//! `cargo bench --bench drain [-- --quick] [-- --rows N --latency-ms L --job-ms D --runs R]`
//!
//! The rows are in the queue, checkpointed, before either begins. Wall: from the first read of them
//! to the last stored outcome, without the start of the process. CPU and memory: the whole process.
//! Written: the whole process with its last checkpoint, and what the INSERT wrote.

use std::time::Duration;

use clap::Parser;
use poweryard::model::UtcMillis;
use sqlx::sqlite::SqliteConnection;

#[path = "../common/mod.rs"]
mod common;
mod floor;

use common::far::{Calls, FarSide, Manner, utc_now};
use common::figures::{Figures, ratio};
use common::yard::Yard;
use common::{ids, process, yard};

#[derive(Debug, Parser)]
struct Args {
    /// One run each, of the shapes that take seconds.
    #[arg(long)]
    quick: bool,
    /// Only this many rows.
    #[arg(long)]
    rows: Option<usize>,
    /// Only with this latency of each call.
    #[arg(long)]
    latency_ms: Option<u64>,
    /// Only with jobs that take so long.
    #[arg(long)]
    job_ms: Option<u64>,
    /// Runs of each shape.
    #[arg(long)]
    runs: Option<usize>,
    /// Cargo's.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    rows: usize,
    latency_ms: u64,
    job_ms: u64,
    runs: usize,
}

impl Args {
    fn shapes(&self) -> Vec<Shape> {
        let quick = self.quick || common::is_test();
        let rows = match self.rows {
            Some(rows) => vec![rows],
            None if common::is_test() => vec![1_000],
            None if quick => vec![10_000],
            None => vec![10_000, 100_000],
        };
        let mut shapes = Vec::new();
        for rows in rows {
            for (latency_ms, job_ms) in [(0, 0), (50, 0), (50, 2000)] {
                let usual_runs = match (quick, rows) {
                    (true, _) => 1,
                    (false, ..=20_000) => 7,
                    (false, _) => 3,
                };
                shapes.push(Shape {
                    rows,
                    latency_ms: self.latency_ms.unwrap_or(latency_ms),
                    job_ms: self.job_ms.unwrap_or(job_ms),
                    runs: self.runs.unwrap_or(usual_runs),
                });
            }
        }
        shapes.dedup_by_key(|shape| (shape.rows, shape.latency_ms, shape.job_ms));
        shapes
    }
}

/// What one client did, over all runs of a shape.
#[derive(Default)]
struct Client {
    wall_s: Figures,
    cpu_s: Figures,
    peak_mib: Figures,
    /// The INSERT and the drain.
    written_kb: Figures,
    far_cpu_s: Figures,
    /// From the intent to the stored answer, beyond the call's own latency: a kill in this time
    /// leaves it in doubt whether the call was carried out.
    in_doubt_ms: Figures,
    calls: Calls,
}

fn main() {
    common::far::run_if_asked();
    floor::run_if_asked();
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    for shape in args.shapes() {
        runtime.block_on(compare(shape));
    }
}

async fn compare(shape: Shape) {
    let manner = Manner {
        latency: Duration::from_millis(shape.latency_ms),
        job: Duration::from_millis(shape.job_ms),
    };
    let mut far = FarSide::start(manner);
    let mut floor = Client::default();
    let mut daemon = Client::default();
    for run in 0..shape.runs {
        let servers = ids::random_ids(shape.rows, run as u64);
        run_floor(&mut floor, &mut far, manner, &servers).await;
        run_daemon(&mut daemon, &mut far, manner, &servers).await;
    }
    print(shape, &floor, &daemon);
}

async fn run_floor(client: &mut Client, far: &mut FarSide, manner: Manner, servers: &[String]) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("floor.db");
    let inserted = floor::fill(&path, servers).await;
    let far_before = far.cpu();
    let drained = floor::run(&path, far.base_url(), manner.job);
    client.wall_s.push(drained.wall.as_secs_f64());
    client.note(far, far_before, drained.usage);
    client.note_written(inserted + drained.written, servers.len());
}

async fn run_daemon(client: &mut Client, far: &mut FarSide, manner: Manner, servers: &[String]) {
    let yard = Yard::new(far.base_url(), manner.job).await;
    let inserted = yard.insert(servers).await;
    let far_before = far.cpu();
    let daemon = yard.start();
    let mut reader = yard.producer().await;
    yard::wait_until_done(&mut reader).await;
    let ended = utc_now();
    let usage = process::usage(daemon.id());
    let (succeeded, begun): (i64, String) = sqlx::query_as(
        "SELECT count(*), min(submitted_at) FROM power_requests WHERE state = 'succeeded'",
    )
    .fetch_one(&mut reader)
    .await
    .expect("readable");
    assert_eq!(succeeded as usize, servers.len(), "all succeed");
    client.note_doubt(&mut reader, manner.latency).await;
    sqlx::Connection::close(reader).await.expect("closed");
    let begun: UtcMillis = begun.parse().expect("a time");
    client.wall_s.push(ended.since(begun).as_secs_f64());
    client.note(far, far_before, usage);
    client.note_written(inserted + process::end(daemon), servers.len());
}

impl Client {
    fn note(&mut self, far: &mut FarSide, far_before: Duration, usage: process::Usage) {
        self.cpu_s.push(usage.cpu.as_secs_f64());
        self.peak_mib.push(usage.peak_mib);
        let far_cpu = far.cpu().saturating_sub(far_before);
        self.far_cpu_s.push(far_cpu.as_secs_f64());
        self.calls = far.take_calls();
    }

    fn note_written(&mut self, bytes: u64, rows: usize) {
        self.written_kb.push(bytes as f64 / 1e3 / rows as f64);
    }

    async fn note_doubt(&mut self, reader: &mut SqliteConnection, latency: Duration) {
        let batches: Vec<(String, String)> =
            sqlx::query_as("SELECT intent_at, submitted_at FROM batches")
                .fetch_all(reader)
                .await
                .expect("readable");
        for (intent_at, submitted_at) in batches {
            let intent_at: UtcMillis = intent_at.parse().expect("a time");
            let submitted_at: UtcMillis = submitted_at.parse().expect("a time");
            let open = submitted_at.since(intent_at);
            self.in_doubt_ms.push_ms(open.saturating_sub(latency));
        }
    }

    fn print(&self, name: &str) {
        println!(
            "  {name:<10} {:<22.3} {:<20.3} {:<20.0} {:<20.2} {:<6.2} {:>4} + {}",
            self.wall_s,
            self.cpu_s,
            self.peak_mib,
            self.written_kb,
            self.far_cpu_s.median(),
            self.calls.submits,
            self.calls.queries
        );
    }
}

fn print(shape: Shape, floor: &Client, daemon: &Client) {
    println!(
        "\n{} rows, {} ms a call, jobs of {} ms, {} runs in turns",
        shape.rows, shape.latency_ms, shape.job_ms, shape.runs
    );
    println!(
        "  {:<10} {:<22} {:<20} {:<20} {:<20} far CPU  calls",
        "", "wall s", "CPU s", "peak MiB", "KB written a row"
    );
    floor.print("floor");
    daemon.print("poweryard");
    println!(
        "  {:<10} {:<22.2} {:<20.2} {:<20.2} {:<20.2}",
        "ratio",
        ratio(&daemon.wall_s, &floor.wall_s),
        ratio(&daemon.cpu_s, &floor.cpu_s),
        ratio(&daemon.peak_mib, &floor.peak_mib),
        ratio(&daemon.written_kb, &floor.written_kb)
    );
    println!(
        "  intent to stored answer, beyond the call's own time: p50 {:.0}, p99 {:.0}, max {:.0} ms",
        daemon.in_doubt_ms.median(),
        daemon.in_doubt_ms.at(0.99),
        daemon.in_doubt_ms.max()
    );
}
