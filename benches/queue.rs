//! What the queue costs on this machine: inserts, claims beside a large and a parked backlog,
//! outcomes, one take-in, and the overview beside finished rows. `cargo bench --bench queue [--
//! ROWS]`, a million by default; prints the median and the range of each, in milliseconds.

use std::error::Error;
use std::time::{Duration, Instant, SystemTime};

use poweryard::lifecycle::{BatchNext, Event, Outcome, Return, Step};
use poweryard::model::{
    AttemptResult, Batch, Evidence, JobId, Origin, PowerAction, Service, TargetName, UtcMillis,
};
use poweryard::store::{Store, Which};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode};
use sqlx::{AssertSqlSafe, ConnectOptions};
use tempfile::TempDir;

type Outcomes = Result<(), Box<dyn Error>>;

const HOUR: Duration = Duration::from_secs(3600);
/// `Store::take_in` does at most this many of each kind in one transaction.
const ROUNDS: usize = 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcomes {
    // `cargo test --benches` runs this too, only to see that it does.
    let quick = !std::env::args().any(|arg| arg == "--bench");
    let asked = std::env::args().find_map(|arg| arg.parse().ok());
    let million = asked.unwrap_or(if quick { 5_000 } else { 1_000_000 });
    insert(million / 10).await?;
    for ready in [million / 100, million / 10, million] {
        claims(
            &format!("{ready} ready"),
            &rows(ready, "'s' || i", "", ""),
            0,
            None,
        )
        .await?;
    }
    let later = rows(million, "'s' || i", ", not_before", ", '2090-01-01'");
    claims(
        &format!("20000 ready, {million} not due"),
        &later,
        20_000,
        None,
    )
    .await?;
    let behind = rows(million, "'s' || (i % 9)", "", "");
    claims(
        &format!("20000 ready, {million} of nine servers"),
        &behind,
        20_000,
        None,
    )
    .await?;
    let held = rows(million, "'s' || i", ", target", ", 'held'");
    claims(&format!("20000 ready, {million} held"), &held, 20_000, None).await?;
    take_in(million).await?;
    overview(million).await
}

/// An INSERT of `count` rows with this server and more columns.
fn rows(count: usize, server: &str, columns: &str, values: &str) -> String {
    format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
         INSERT INTO power_requests (server_id, action{columns}) SELECT {server}, 'stop'{values} FROM n"
    )
}

struct Bench {
    store: Store,
    producer: SqliteConnection,
    _dir: TempDir,
}

impl Bench {
    async fn new() -> Result<Self, Box<dyn Error>> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("queue.db");
        let store = Store::open(&path).await?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .journal_mode(SqliteJournalMode::Wal);
        let producer = options.disable_statement_logging().connect().await?;
        Ok(Self {
            store,
            producer,
            _dir: dir,
        })
    }

    async fn sql(&mut self, sql: &str) -> Result<Duration, Box<dyn Error>> {
        let start = Instant::now();
        sqlx::raw_sql(AssertSqlSafe(sql))
            .fetch_all(&mut self.producer)
            .await?;
        Ok(start.elapsed())
    }

    /// After a load: what a running daemon's own checkpoints would have done meanwhile.
    async fn settle(&mut self) -> Outcomes {
        self.sql("PRAGMA wal_checkpoint(TRUNCATE)")
            .await
            .map(|_| ())
    }
}

fn wall() -> UtcMillis {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    UtcMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

fn report(what: &str, mut took: Vec<Duration>) {
    if took.is_empty() {
        return;
    }
    took.sort();
    let ms = |at: usize| {
        took.get(at)
            .map_or(f64::NAN, |took| took.as_secs_f64() * 1e3)
    };
    println!(
        "{what:<62} {:>9.2} ({:.2}-{:.2}) ms, n={}",
        ms(took.len() / 2),
        ms(0),
        ms(took.len() - 1),
        took.len()
    );
}

async fn insert(count: usize) -> Outcomes {
    let forms = [
        ("plain", rows(count, "'s' || i", "", "")),
        (
            "with a key",
            rows(count, "'s' || i", ", request_key", ", 'k' || i"),
        ),
        (
            "with a label and expires_at",
            rows(
                count,
                "'s' || i",
                ", label, expires_at",
                ", 'night', '2090-01-01'",
            ),
        ),
        (
            "not due",
            rows(count, "'s' || i", ", not_before", ", '2090-01-01'"),
        ),
        ("of nine servers", rows(count, "'s' || (i % 9)", "", "")),
        (
            "random server ids",
            rows(count, "hex(randomblob(16))", "", ""),
        ),
    ];
    for (what, sql) in forms {
        let mut took = Vec::new();
        for _ in 0..5 {
            let mut bench = Bench::new().await?;
            took.push(bench.sql(&sql).await?);
        }
        report(&format!("insert {count} {what}, one statement"), took);
    }
    Ok(())
}

/// Loads `backlog`, then `more` plain rows beside it; claims, accepts and ends a thousand at a
/// time.
async fn claims(what: &str, backlog: &str, more: usize, ttl: Option<Duration>) -> Outcomes {
    let mut bench = Bench::new().await?;
    bench.sql(backlog).await?;
    if more > 0 {
        bench.sql(&rows(more, "'more' || i", "", "")).await?;
    }
    bench.settle().await?;
    let [
        mut look,
        mut lanes,
        mut claim,
        mut accept,
        mut end,
        mut back,
    ] = [const { Vec::<Duration>::new() }; 6];
    let origin = Origin {
        service: Service::Bms,
        endpoint: "http://127.0.0.1:1".into(),
        project_id: "p".into(),
    };
    for round in 0..ROUNDS {
        let now = wall();
        let start = Instant::now();
        bench.store.take_in(ttl, now).await?;
        bench.store.next_due_at(ttl).await?;
        bench.store.targets_after("", 200).await?;
        look.push(start.elapsed());
        let start = Instant::now();
        let wanted: Vec<_> = PowerAction::ALL
            .iter()
            .map(|action| (TargetName("default".into()), *action))
            .collect();
        let mut found = bench.store.lanes(&wanted).await?;
        for lane in found.iter_mut().filter(|lane| lane.group == 0) {
            *lane = bench.store.count(lane, 1000).await?;
        }
        lanes.push(start.elapsed());
        // A lane of its own for each kind; the held one is not claimed.
        let Some(lane) = found
            .iter()
            .find(|lane| lane.target.0 == "default" && lane.group == 0)
        else {
            break;
        };
        let start = Instant::now();
        let Some(batch) = bench
            .store
            .claim(lane, &origin, Which::First(1000), &[], now)
            .await?
        else {
            break;
        };
        claim.push(start.elapsed());
        let start = Instant::now();
        let next = BatchNext::Track {
            job: Some(JobId("j".into())),
            next_look_at: now,
        };
        bench
            .store
            .record(&batch, &step(next, Vec::new()), now)
            .await?;
        accept.push(start.elapsed());
        let Some((batch, _)) = bench.store.load_batch(batch.id).await? else {
            break;
        };
        let comes_back = round % 4 == 3;
        let start = Instant::now();
        bench
            .store
            .record(
                &batch,
                &step(BatchNext::Done, settle(&batch, comes_back, now)),
                now,
            )
            .await?;
        if comes_back { &mut back } else { &mut end }.push(start.elapsed());
    }
    report(&format!("{what}: one idle look"), look);
    report(&format!("{what}: lanes"), lanes);
    report(&format!("{what}: claim 1000"), claim);
    report(&format!("{what}: store 1000 accepted"), accept);
    report(&format!("{what}: store 1000 outcomes"), end);
    report(&format!("{what}: give 1000 back"), back);
    Ok(())
}

fn settle(
    batch: &Batch,
    comes_back: bool,
    now: UtcMillis,
) -> Vec<(poweryard::model::RequestId, Event)> {
    let event = match comes_back {
        true => Event::Returned(Return {
            retry_at: Some(now + HOUR),
            group: Some(1),
            result: AttemptResult::Busy,
            code: "BMS.0028".into(),
            message: "the server is busy".into(),
        }),
        false => Event::Ended(Outcome::succeeded(Evidence::Job, "done")),
    };
    batch
        .members
        .iter()
        .map(|member| (member.request, event.clone()))
        .collect()
}

fn step(batch: BatchNext, moves: Vec<(poweryard::model::RequestId, Event)>) -> Step {
    Step {
        batch,
        moves,
        seen_moving: Vec::new(),
        complaint: None,
        job_ms: None,
        read_error: None,
    }
}

/// One write transaction of `take_in`, when everything becomes due, expires or is doomed at once.
async fn take_in(million: usize) -> Outcomes {
    let cases: [(&str, String, Option<Duration>, Duration); 5] = [
        (
            "became due",
            rows(
                million,
                "'s' || i",
                ", not_before",
                ", datetime('now', '+1 hour')",
            ),
            None,
            HOUR * 2,
        ),
        (
            "of nine servers became due",
            rows(
                million,
                "'s' || (i % 9)",
                ", not_before",
                ", datetime('now', '+1 hour')",
            ),
            None,
            HOUR * 2,
        ),
        (
            "expired by default_ttl",
            rows(million, "'s' || i", "", ""),
            Some(HOUR),
            HOUR * 2,
        ),
        (
            "of nine servers expired",
            rows(
                million,
                "'s' || (i % 9)",
                ", expires_at",
                ", datetime('now', '+1 hour')",
            ),
            None,
            HOUR * 2,
        ),
        (
            "wait for one that was cancelled",
            format!(
                "INSERT INTO power_requests (server_id, action) VALUES ('first', 'stop'); {};
                 UPDATE power_requests SET state = 'cancelled' WHERE id = 1",
                rows(million, "'s' || i", ", after_id", ", 1")
            ),
            None,
            Duration::ZERO,
        ),
    ];
    for (what, sql, ttl, later) in cases {
        let mut bench = Bench::new().await?;
        bench.sql(&sql).await?;
        bench.settle().await?;
        let now = wall() + later;
        let mut took = Vec::new();
        for _ in 0..ROUNDS * 3 {
            let start = Instant::now();
            bench.store.take_in(ttl, now).await?;
            took.push(start.elapsed());
        }
        report(&format!("{million} {what}: one take_in"), took);
    }
    Ok(())
}

async fn overview(million: usize) -> Outcomes {
    let mut bench = Bench::new().await?;
    bench.sql(&rows(million, "'s' || i", "", "")).await?;
    for what in ["queued", "finished, 20000 queued"] {
        bench.settle().await?;
        let mut took = Vec::new();
        for _ in 0..5 {
            took.push(bench.sql("SELECT * FROM queue_overview").await?);
        }
        report(&format!("queue_overview, {million} {what}"), took);
        if what == "queued" {
            let took = bench
                .sql("UPDATE power_requests SET state = 'cancelled'")
                .await?;
            report(&format!("cancel {million} in one statement"), vec![took]);
            bench.sql(&rows(20_000, "'s' || i", "", "")).await?;
        }
    }
    let waiting = bench.sql("SELECT * FROM power_waiting").await?;
    report("power_waiting, 20000 queued", vec![waiting]);
    Ok(())
}
