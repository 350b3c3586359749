//! What the queue costs on this machine.
//!
//! `cargo bench --bench queue [-- --quick] [-- --rows N --only PART]`
//!
//! | part | |
//! | --- | --- |
//! | `insert` | a producer's INSERT of many rows, beside the same into a table with one index |
//! | `producer` | a producer's single INSERTs, alone and beside a daemon at work |
//! | `claim` | claim, acceptance and outcomes of 1,000 beside few and many rows that wait, ready and parked |
//! | `look` | one look at a queue in which everything becomes due, expires or is cancelled at once; the overview |
//! | `growth` | how long a daemon at work holds the write lock at a time, and its memory, however much there is of anything |
//!
//! Server ids are random. KB are what the disk was given to write, checkpoints included.

use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use poweryard::model::UtcMillis;
use poweryard::store::Store;
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection};
use tempfile::TempDir;

#[path = "../common/mod.rs"]
mod common;
mod growth;

use common::far::{FarSide, Manner, utc_now};
use common::figures::{Figures, ratio};
use common::ids::{self, Chance};
use common::steps::{self, BATCH};
use common::yard::{self, Yard};
use common::{one_index, process};

const HOUR: Duration = Duration::from_secs(3600);
/// Batches that are claimed beside each backlog.
const ROUNDS: usize = 20;
/// Servers that the parked rows of one backlog share.
const BUSY_SERVERS: usize = 1000;

#[derive(Debug, Parser)]
struct Args {
    /// Small backlogs: seconds instead of minutes.
    #[arg(long)]
    quick: bool,
    /// The large backlog; a hundredth of it is the small one.
    #[arg(long)]
    rows: Option<usize>,
    /// Only one part.
    #[arg(long)]
    only: Option<Part>,
    /// Cargo's.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Insert,
    Producer,
    Claim,
    Look,
    Growth,
}

fn main() {
    common::far::run_if_asked();
    let args = Args::parse();
    let usual = match (common::is_test(), args.quick) {
        (true, _) => 2_000,
        (false, true) => 100_000,
        (false, false) => 1_000_000,
    };
    let rows = args.rows.unwrap_or(usual);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let wanted = |part| args.only.is_none_or(|only| only == part);
    runtime.block_on(async {
        if wanted(Part::Insert) {
            insert(rows / 10).await;
        }
        if wanted(Part::Producer) {
            producer(rows / 10).await;
        }
        if wanted(Part::Claim) {
            claim(rows).await;
        }
        if wanted(Part::Look) {
            look(rows / 10).await;
        }
        if wanted(Part::Growth) {
            growth::measure(rows).await;
        }
    });
}

/// A queue in a folder of its own, with the daemon's side of it and a producer's.
struct Bench {
    store: Store,
    producer: SqliteConnection,
    _dir: TempDir,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("queue.db");
        let store = Store::open(&path).await.expect("a queue");
        let producer = yard::connect(&path).await;
        Self {
            store,
            producer,
            _dir: dir,
        }
    }

    async fn sql(&mut self, sql: &str) -> Duration {
        let begun = Instant::now();
        sqlx::raw_sql(AssertSqlSafe(sql))
            .fetch_all(&mut self.producer)
            .await
            .expect("taken");
        begun.elapsed()
    }

    /// After a load: what a running daemon's own checkpoints would have done meanwhile.
    async fn settle(&mut self) {
        self.sql("PRAGMA wal_checkpoint(TRUNCATE)").await;
    }
}

/// The same work again and again: how long it took, and what was written for its rows.
#[derive(Default)]
struct Cost {
    ms: Figures,
    bytes: u64,
    rows: usize,
}

impl Cost {
    async fn of<T>(&mut self, rows: usize, work: impl Future<Output = T>) -> T {
        let written = process::bytes_written("self");
        let begun = Instant::now();
        let done = work.await;
        self.ms.push_ms(begun.elapsed());
        self.bytes += process::bytes_written("self") - written;
        self.rows += rows;
        done
    }

    fn print(&self, what: &str) {
        if self.ms.is_empty() {
            return;
        }
        let written = if self.rows == 0 {
            String::new()
        } else {
            format!(
                "{:>7.2} KB a row",
                self.bytes as f64 / 1e3 / self.rows as f64
            )
        };
        println!(
            "{what:<62} {:<24.2} ms{written}, n={}",
            self.ms,
            self.ms.len()
        );
    }
}

/// A UUID, in SQL.
const RANDOM_ID: &str =
    "printf('%08x-%04x-4%03x-8%03x-%012x', random() & 4294967295, random() & 65535,
                         random() & 4095, random() & 4095, random() & 281474976710655)";

/// Where a backlog's server ids come from.
#[derive(Debug, Clone, Copy)]
enum Servers {
    /// One for each row.
    Random,
    /// So many in all.
    Shared(usize),
}

/// An INSERT of `count` rows with these servers, and more columns with their values.
fn rows(count: usize, servers: Servers, columns: &str, values: &str) -> String {
    let server = match servers {
        Servers::Random => RANDOM_ID.to_owned(),
        Servers::Shared(servers) => format!("'server-' || (i % {servers})"),
    };
    format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
         INSERT INTO power_requests (server_id, action{columns}) SELECT {server}, 'stop'{values} FROM n"
    )
}

async fn insert(count: usize) {
    let forms = [
        ("plain", rows(count, Servers::Random, "", "")),
        (
            "with a key",
            rows(count, Servers::Random, ", request_key", ", 'key-' || i"),
        ),
        (
            "with a label and expires_at",
            rows(
                count,
                Servers::Random,
                ", label, expires_at",
                ", 'night', '2090-01-01'",
            ),
        ),
        (
            "the same, as it is stored",
            rows(
                count,
                Servers::Random,
                ", label, expires_at",
                ", 'night', '2090-01-01T00:00:00.000Z'",
            ),
        ),
        (
            "not due",
            rows(count, Servers::Random, ", not_before", ", '2090-01-01'"),
        ),
        (
            "the same, as it is stored",
            rows(
                count,
                Servers::Random,
                ", not_before",
                ", '2090-01-01T00:00:00.000Z'",
            ),
        ),
        (
            "of 1000 servers",
            rows(count, Servers::Shared(BUSY_SERVERS), "", ""),
        ),
    ];
    for (what, sql) in forms {
        let mut ours = Cost::default();
        let mut one_index = Cost::default();
        for _ in 0..5 {
            let mut bench = Bench::new().await;
            ours.of(count, bench.sql(&sql)).await;
            let written = process::bytes_written("self");
            bench.settle().await;
            ours.bytes += process::bytes_written("self") - written;
            insert_into_one_index(count, &mut one_index).await;
        }
        ours.print(&format!("insert {count} {what}, one statement"));
        one_index.print("    the same number into a table with one index");
        println!("    ratio {:.2}", ratio(&ours.ms, &one_index.ms));
    }
}

async fn insert_into_one_index(count: usize, cost: &mut Cost) {
    let dir = tempfile::tempdir().expect("a folder");
    let mut writer = one_index::create(&dir.path().join("one.db")).await;
    let sql = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
         INSERT INTO requests (server_id, action) SELECT {RANDOM_ID}, 'stop' FROM n"
    );
    let work = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut writer);
    cost.of(count, work).await.expect("taken");
    let written = process::bytes_written("self");
    writer.close().await.expect("closed");
    cost.bytes += process::bytes_written("self") - written;
}

/// Single INSERTs with a pause between them, as many as there is time for.
async fn producer(count: usize) {
    let at_once = Manner {
        latency: Duration::ZERO,
        job: Duration::ZERO,
    };
    let far = FarSide::start(at_once);
    let yard = Yard::new(far.base_url(), at_once.job).await;
    yard.insert(&ids::random_ids(count, 3)).await;
    let alone = single_inserts(&yard, 500, || false).await;
    print_waits(
        &format!("single INSERT beside {count} waiting rows"),
        &alone,
    );
    let daemon = yard.start_ready();
    let mut reader = yard.producer().await;
    let done = std::sync::atomic::AtomicBool::new(false);
    let is_done = || done.load(std::sync::atomic::Ordering::Relaxed);
    let drain = async {
        yard::wait_until_done_to(&mut reader, count as i64).await;
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let (beside, ()) = tokio::join!(single_inserts(&yard, 2_000, is_done), drain);
    print_waits(
        &format!("single INSERT while a daemon drains {count}"),
        &beside,
    );
    process::end(daemon);
}

async fn single_inserts(yard: &Yard, most: usize, is_over: impl Fn() -> bool) -> Figures {
    let mut producer = yard.producer().await;
    let mut chance = Chance(5);
    let mut waits = Figures::default();
    for server in ids::random_ids(most, 4) {
        if is_over() {
            break;
        }
        let begun = Instant::now();
        sqlx::query("INSERT INTO power_requests (server_id, action) VALUES (?, 'reboot')")
            .bind(server)
            .execute(&mut producer)
            .await
            .expect("inserted");
        waits.push_ms(begun.elapsed());
        let pause = 2 + chance.next() % 8;
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    producer.close().await.expect("closed");
    waits
}

fn print_waits(what: &str, waits: &Figures) {
    println!(
        "{what:<62} p50 {:.2}, p99 {:.2}, max {:.2} ms, n={}",
        waits.median(),
        waits.at(0.99),
        waits.max(),
        waits.len()
    );
}

async fn claim(many: usize) {
    let few = many / 100;
    let ready_few = claims(&format!("{few} ready"), &rows(few, Servers::Random, "", "")).await;
    let ready = claims(
        &format!("{many} ready"),
        &rows(many, Servers::Random, "", ""),
    )
    .await;
    let later = rows(many, Servers::Random, ", not_before", ", '2090-01-01'");
    let later = claims(&format!("{many} not due"), &later).await;
    let behind = rows(many, Servers::Shared(BUSY_SERVERS), "", "");
    let behind = claims(&format!("{many} of {BUSY_SERVERS} servers"), &behind).await;
    println!(
        "claim of {BATCH} against {few} ready: {many} ready {:.2}, not due {:.2}, of {BUSY_SERVERS} servers {:.2}",
        ratio(&ready.claim.ms, &ready_few.claim.ms),
        ratio(&later.claim.ms, &ready_few.claim.ms),
        ratio(&behind.claim.ms, &ready_few.claim.ms)
    );
}

/// What the steps of a thousand requests cost.
#[derive(Default)]
struct Steps {
    look: Cost,
    lanes: Cost,
    claim: Cost,
    accept: Cost,
    end: Cost,
    give_back: Cost,
}

/// Loads a backlog, then as many ready rows as are claimed beside it; claims, accepts and ends a
/// thousand at a time. One batch in four comes back.
async fn claims(what: &str, backlog: &str) -> Steps {
    let mut bench = Bench::new().await;
    bench.sql(backlog).await;
    let more = ROUNDS * BATCH as usize;
    bench.sql(&rows(more, Servers::Random, "", "")).await;
    bench.settle().await;
    let mut costs = Steps::default();
    for round in 0..ROUNDS {
        if !one_batch(&bench.store, &mut costs, round % 4 == 3).await {
            break;
        }
    }
    costs.look.print(&format!("{what}: one idle look"));
    costs.lanes.print(&format!("{what}: lanes"));
    costs.claim.print(&format!("{what}: claim {BATCH}"));
    costs
        .accept
        .print(&format!("{what}: store {BATCH} accepted"));
    costs.end.print(&format!("{what}: store {BATCH} outcomes"));
    costs.give_back.print(&format!("{what}: give {BATCH} back"));
    costs
}

/// False if there was nothing to claim.
async fn one_batch(store: &Store, costs: &mut Steps, comes_back: bool) -> bool {
    let now = utc_now();
    let count = BATCH as usize;
    costs.look.of(0, idle_look(store, now)).await;
    let Some(lane) = costs.lanes.of(0, steps::first_lane(store)).await else {
        return false;
    };
    let claim = steps::claim(store, &lane, now);
    let Some(batch) = costs.claim.of(count, claim).await else {
        return false;
    };
    let accept = steps::accept(store, &batch, now);
    costs.accept.of(count, accept).await;
    let batch = steps::load(store, &batch).await;
    if comes_back {
        let give_back = steps::give_back(store, &batch, now);
        costs.give_back.of(count, give_back).await;
    } else {
        let end = steps::end(store, &batch, now);
        costs.end.of(count, end).await;
    }
    true
}

async fn idle_look(store: &Store, now: UtcMillis) {
    store.take_in(None, now).await.expect("taken in");
    steps::look(store, &[]).await;
    store.targets_after("", 200).await.expect("readable");
}

/// One write transaction of `take_in` while everything waits for one, and the overview.
async fn look(count: usize) {
    let soon = ", datetime('now', '+1 hour')";
    let shared = Servers::Shared(BUSY_SERVERS);
    let later = HOUR * 2;
    take_in(
        &format!("{count} became due"),
        &rows(count, Servers::Random, ", not_before", soon),
        later,
    )
    .await;
    take_in(
        &format!("{count} of {BUSY_SERVERS} servers became due"),
        &rows(count, shared, ", not_before", soon),
        later,
    )
    .await;
    take_in(
        &format!("{count} of {BUSY_SERVERS} servers expired"),
        &rows(count, shared, ", expires_at", soon),
        later,
    )
    .await;
    let awaiting = format!(
        "INSERT INTO power_requests (server_id, action) VALUES ('first', 'stop'); {};
         UPDATE power_requests SET state = 'cancelled' WHERE id = 1",
        rows(count, Servers::Random, ", after_id", ", 1")
    );
    take_in(
        &format!("{count} wait for one that was cancelled"),
        &awaiting,
        Duration::ZERO,
    )
    .await;
    overview(count).await;
}

async fn take_in(what: &str, sql: &str, later: Duration) {
    let mut bench = Bench::new().await;
    bench.sql(sql).await;
    bench.settle().await;
    let now = utc_now() + later;
    let mut cost = Cost::default();
    for _ in 0..ROUNDS * 3 {
        let taken = cost.of(0, bench.store.take_in(None, now)).await;
        if !taken.expect("taken in").more {
            break;
        }
    }
    cost.print(&format!("{what}: one take_in"));
}

async fn overview(count: usize) {
    let mut bench = Bench::new().await;
    bench.sql(&rows(count, Servers::Random, "", "")).await;
    bench.settle().await;
    time(
        &mut bench,
        "queue_overview, all queued",
        "SELECT * FROM queue_overview",
    )
    .await;
    let cancel = "UPDATE power_requests SET state = 'cancelled'";
    let mut cancelled = Cost::default();
    cancelled.of(count, bench.sql(cancel)).await;
    cancelled.print(&format!("cancel {count} in one statement"));
    bench.sql(&rows(20_000, Servers::Random, "", "")).await;
    bench.settle().await;
    let what = format!("queue_overview, {count} finished, 20000 queued");
    time(&mut bench, &what, "SELECT * FROM queue_overview").await;
    time(
        &mut bench,
        "power_waiting, 20000 queued",
        "SELECT * FROM power_waiting",
    )
    .await;
}

async fn time(bench: &mut Bench, what: &str, sql: &str) {
    let mut cost = Cost::default();
    for _ in 0..5 {
        cost.of(0, bench.sql(sql)).await;
    }
    cost.print(what);
}
