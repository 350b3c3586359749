//! How soon the daemon notices a commit, and what it costs while there is none.
//!
//! `cargo bench --bench wake [-- --quick]`
//!
//! This process inserts single requests, the daemon and the far side are processes of their own.
//! Measured from the return of the COMMIT to the arrival of the call at the far side, which has
//! read and parsed it by then. Afterwards the daemon is left alone for a minute.

use std::time::{Duration, Instant};

use clap::Parser;

#[path = "common/mod.rs"]
mod common;

use common::far::{FarSide, Manner, monotonic_ns};
use common::figures::Figures;
use common::ids::{self, Chance};
use common::process;
use common::yard::{self, Yard};

#[derive(Debug, Parser)]
struct Args {
    /// 50 commits and 5 idle seconds.
    #[arg(long)]
    quick: bool,
    /// Commits.
    #[arg(long)]
    commits: Option<usize>,
    /// Idle seconds.
    #[arg(long)]
    idle_s: Option<u64>,
    /// Cargo's.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    common::far::run_if_asked();
    let args = Args::parse();
    let quick = args.quick || common::is_test();
    let commits = args.commits.unwrap_or(if quick { 50 } else { 500 });
    let idle_s = args.idle_s.unwrap_or(if quick { 5 } else { 60 });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(measure(commits, Duration::from_secs(idle_s)));
}

async fn measure(commits: usize, idle: Duration) {
    let at_once = Manner {
        latency: Duration::ZERO,
        job: Duration::ZERO,
    };
    let mut far = FarSide::start(at_once);
    let yard = Yard::new(far.base_url(), at_once.job).await;
    let daemon = yard.start_ready();
    wake(&yard, &mut far, commits).await;
    // The looks after the last notification are over, and its connections are idle.
    tokio::time::sleep(Duration::from_secs(2)).await;
    rest(daemon.id(), idle).await;
    process::end(daemon);
}

async fn wake(yard: &Yard, far: &mut FarSide, commits: usize) {
    let mut producer = yard.producer().await;
    let mut reader = yard.producer().await;
    let mut chance = Chance(7);
    let mut took = Figures::default();
    for server in ids::random_ids(commits, 1) {
        sqlx::query("INSERT INTO power_requests (server_id, action) VALUES (?, 'reboot')")
            .bind(server)
            .execute(&mut producer)
            .await
            .expect("inserted");
        let committed_ns = monotonic_ns();
        yard::wait_until_done(&mut reader).await;
        let arrivals = far.take_calls().arrivals_ns;
        let [arrived_ns] = arrivals.as_slice() else {
            panic!("one call for one request, not {}", arrivals.len());
        };
        // The daemon may see a commit before its producer does.
        took.push_ms(Duration::from_nanos(
            arrived_ns.saturating_sub(committed_ns),
        ));
        let pause = 50 + chance.next() % 50;
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    println!(
        "commit to call on the wire, ms: p50 {:.2}, p90 {:.2}, p99 {:.2}, max {:.2}, n={}",
        took.median(),
        took.at(0.9),
        took.at(0.99),
        took.max(),
        took.len()
    );
}

async fn rest(daemon: u32, idle: Duration) {
    let before = process::usage(daemon);
    let begun = Instant::now();
    tokio::time::sleep(idle).await;
    let after = process::usage(daemon);
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = (after.cpu - before.cpu).as_secs_f64();
    println!(
        "idle for {seconds:.0} s: {:.4} % of a core, {:.1} wake-ups a second, {:.1} MiB resident",
        cpu / seconds * 100.0,
        (after.sleeps - before.sleeps) as f64 / seconds,
        after.resident_mib
    );
}
