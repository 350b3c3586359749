//! A daemon at work in a queue that has grown in some way: how long its transactions hold the write
//! lock, seen by a producer, and how much memory it takes.

use std::path::Path;
use std::time::{Duration, Instant};

use poweryard::model::RequestState;
use poweryard::store::QueueClient;
use poweryard::store::client::{Access, Actor, Approval, Selection};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

use crate::common::far::{FarSide, Manner};
use crate::common::lock::LockWatch;
use crate::common::process;
use crate::common::yard::{More, Yard};
use crate::{RANDOM_ID, Servers, rows};

const AT_ONCE: Manner = Manner {
    latency: Duration::ZERO,
    job: Duration::ZERO,
};
/// Requests that wait beside those that ended long ago, or whose targets are unknown.
const BESIDE: usize = 20_000;
/// A drained queue is watched on for so long: what has ended leaves the lines of its servers then.
const REST: Duration = Duration::from_secs(5);
/// Ended requests that one statement of the generator makes.
const FINISHED_CHUNK: usize = 500_000;

/// When a run is over.
#[derive(Debug, Clone, Copy)]
enum Until {
    /// Nothing that waits could go.
    Drained,
    /// So long after it began.
    Passed(Duration),
}

/// `many` is a million in a usual run.
pub(crate) async fn measure(many: usize) {
    let tenth = many / 10;
    let random = rows(many, Servers::Random, "", "");
    run(&format!("{many} waiting"), 0, &random, Until::Drained).await;
    run(
        &format!("{many} waiting, two of each server in a row"),
        0,
        &pairs(many),
        Until::Drained,
    )
    .await;
    run(
        &format!("{tenth} behind one server"),
        0,
        &rows(tenth, Servers::Shared(1), "", ""),
        Until::Passed(Duration::from_secs(20)),
    )
    .await;
    let awaiting = format!(
        "INSERT INTO power_requests (server_id, action) VALUES ('first', 'stop'); {}",
        rows(tenth, Servers::Random, ", after_id", ", 1")
    );
    let what = format!("{tenth} waiting for one request");
    run(&what, 0, &awaiting, Until::Drained).await;
    let count = 200;
    let spread = rows(
        many / 5,
        Servers::Random,
        ", target",
        &format!(", 'target-' || (1 + i % {count})"),
    );
    let what = format!("{} waiting for {count} targets", many / 5);
    run(&what, count, &spread, Until::Drained).await;
    let misspelt = rows(many / 100, Servers::Random, ", target", ", 'taget-' || i");
    let what = format!("{} targets that no config has", many / 100);
    let good = rows(BESIDE, Servers::Random, "", "");
    run(&what, 0, &format!("{misspelt}; {good}"), Until::Drained).await;
    window(many).await;
    orders_and_guards(tenth).await;
    beside_finished(many * 10).await;
}

/// A window that opens for so many requests within the next minute or two.
async fn window(count: usize) {
    let far = FarSide::start(AT_ONCE);
    let yard = Yard::new(far.base_url(), AT_ONCE.job).await;
    fill(&yard, &rows(count, Servers::Random, "", "")).await;
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    let opens = now + Duration::from_secs(63);
    let left = Duration::from_secs(63 - u64::from(opens.second().unsigned_abs()));
    let line = format!(
        "window = {{ stop = [\"{}-24:00\"] }}",
        opens.strftime("%H:%M")
    );
    let more = More {
        line: &line,
        ..More::default()
    };
    yard.configure(far.base_url(), AT_ONCE.job, more);
    let what = format!("{count} for which a window opens");
    watch(&what, &yard, Until::Passed(left + Duration::from_secs(10))).await;
}

/// Waves and guards of so many requests, and what people do to all of them at once.
async fn orders_and_guards(count: usize) {
    let labelled = rows(count, Servers::Random, ", label", ", 'x'");
    let order = format!("INSERT INTO orders (label, waves) VALUES ('x', '1, 100%'); {labelled}");
    let what = format!("{count} of an order, all but one in its second wave");
    run(&what, 0, &order, Until::Drained).await;
    let far = FarSide::start(AT_ONCE);
    let guarded = Yard::new(far.base_url(), AT_ONCE.job).await;
    let more = More {
        line: "guard = { stop = \"1000000/1h\" }",
        ..More::default()
    };
    guarded.configure(far.base_url(), AT_ONCE.job, more);
    fill(&guarded, &labelled).await;
    let what = format!("{count} under a guard that lets them go");
    watch(&what, &guarded, Until::Drained).await;
    let held = Yard::new(far.base_url(), AT_ONCE.job).await;
    let more = More {
        line: "guard = { stop = \"10/1h\" }",
        ..More::default()
    };
    held.configure(far.base_url(), AT_ONCE.job, more);
    fill(&held, &labelled).await;
    let what = format!("{count} held by a guard");
    let span = Duration::from_secs(10);
    watch(&what, &held, Until::Passed(span)).await;
    people(&held, count).await;
}

/// How long the lock is held while somebody approves, cancels and retries all of them.
async fn people(yard: &Yard, count: usize) {
    let actor = Actor {
        who: "somebody",
        reason: None,
    };
    let which = Selection::of_label("x");
    let again = Selection {
        states: vec![RequestState::Cancelled],
        ..which.clone()
    };
    for what in ["approved", "cancelled", "retried"] {
        let mut client = QueueClient::open(&yard.database(), Access::Write)
            .await
            .expect("a queue");
        let lock = LockWatch::start(&yard.database());
        let begun = Instant::now();
        match what {
            "approved" => {
                let seen = client.unapproved(&which).await.expect("readable");
                let done = client.approve(actor, &which, &seen).await;
                assert!(matches!(done, Ok(Approval::Done(_))));
            }
            "cancelled" => {
                let done = client.cancel(actor, &which).await.expect("taken");
                assert_eq!(done.done, count as u64);
            }
            _ => {
                let done = client.retry(actor, &again).await.expect("taken");
                assert_eq!(done.done, count as u64);
            }
        }
        let took = begun.elapsed();
        let spans = lock.end();
        client.close().await.expect("closed");
        println!(
            "{:<62} longest {:.0}, p99 {:.1}, p50 {:.1} ms, {:.0} % of {:.1} s",
            format!("{count} {what} at once"),
            spans.max(),
            spans.at(0.99),
            spans.median(),
            spans.sum() / took.as_secs_f64() / 10.0,
            took.as_secs_f64()
        );
    }
}

/// Two requests of each server, one after the other: half of each batch must be parked.
fn pairs(count: usize) -> String {
    // The servers are in no order.
    let server =
        "printf('%08x-%04x-4000-8000-%012x', (i / 2 * 2654435761) & 4294967295, i & 65534, i / 2)";
    format!(
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {count})
         INSERT INTO power_requests (server_id, action) SELECT {server}, 'stop' FROM n"
    )
}

async fn run(what: &str, targets: usize, sql: &str, until: Until) {
    let far = FarSide::start(AT_ONCE);
    let yard = Yard::new(far.base_url(), AT_ONCE.job).await;
    let more = More {
        targets,
        ..More::default()
    };
    yard.configure(far.base_url(), AT_ONCE.job, more);
    fill(&yard, sql).await;
    watch(what, &yard, until).await;
}

async fn fill(yard: &Yard, sql: &str) {
    let mut producer = yard.producer().await;
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(&mut producer)
        .await
        .expect("taken");
    producer.close().await.expect("closed");
}

/// Runs a daemon, and prints what it cost.
async fn watch(what: &str, yard: &Yard, until: Until) {
    let watch = LockWatch::start(&yard.database());
    let begun = Instant::now();
    let daemon = yard.start_ready();
    let mut reader = yard.producer().await;
    match until {
        Until::Drained => {
            wait_until_drained(&mut reader).await;
            tokio::time::sleep(REST).await;
        }
        Until::Passed(span) => tokio::time::sleep(span).await,
    }
    let took = begun.elapsed();
    let usage = process::usage(daemon.id());
    let spans = watch.end();
    reader.close().await.expect("closed");
    process::end(daemon);
    println!(
        "{what:<62} longest {:.0}, p99 {:.1}, p50 {:.1} ms, {:.0} % of {:.1} s; peak {:.0} MiB",
        spans.max(),
        spans.at(0.99),
        spans.median(),
        spans.sum() / took.as_secs_f64() / 10.0,
        took.as_secs_f64(),
        usage.peak_mib
    );
}

/// Waits until nothing is on its way, and what is queued is for targets that no config has.
async fn wait_until_drained(reader: &mut SqliteConnection) {
    let begun = Instant::now();
    loop {
        let is_drained: bool = sqlx::query_scalar(
            "SELECT NOT EXISTS (SELECT 1 FROM power_requests WHERE state = 'running' AND batch_id > 0)
             AND NOT EXISTS (SELECT 1 FROM power_requests WHERE in_line IS NULL AND gate IS NOT NULL)
             AND NOT EXISTS (SELECT 1 FROM power_requests WHERE gate = 'held')
             AND NOT EXISTS (SELECT 1 FROM power_requests WHERE gate = 'ready'
                             AND (target = 'default' OR target GLOB 'target-*'))",
        )
        .fetch_one(&mut *reader)
        .await
        .expect("readable");
        if is_drained {
            return;
        }
        assert!(begun.elapsed() < process::PATIENCE, "it does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// With all that ever ended in the file; then also while that is deleted.
async fn beside_finished(count: usize) {
    let far = FarSide::start(AT_ONCE);
    let yard = Yard::new(far.base_url(), AT_ONCE.job).await;
    let begun = Instant::now();
    fill_finished(&yard.database(), count).await;
    let size = std::fs::metadata(yard.database()).map_or(0, |meta| meta.len());
    println!(
        "{count} finished: made in {:.0} s, {:.1} GB",
        begun.elapsed().as_secs_f64(),
        size as f64 / 1e9
    );
    let waiting = rows(BESIDE, Servers::Random, "", "");
    fill(&yard, &waiting).await;
    let what = format!("{BESIDE} waiting, {count} finished");
    watch(&what, &yard, Until::Drained).await;
    let more = More {
        retention: Some("1h"),
        ..More::default()
    };
    yard.configure(far.base_url(), AT_ONCE.job, more);
    fill(&yard, &waiting).await;
    let what = format!("{count} finished, which are deleted");
    let span = Duration::from_secs(10);
    watch(&what, &yard, Until::Passed(span)).await;
}

/// Requests that ended hours ago, in a queue that nobody has open. Its triggers and indexes are put
/// aside meanwhile.
async fn fill_finished(path: &Path, count: usize) {
    let mut writer = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Off)
        .synchronous(SqliteSynchronous::Off)
        .pragma("cache_size", "-200000")
        .pragma("ignore_check_constraints", "ON")
        .disable_statement_logging()
        .connect()
        .await
        .expect("it opens");
    let aside: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT type, name, sql FROM sqlite_master WHERE type IN ('index', 'trigger') AND sql IS NOT NULL",
    )
    .fetch_all(&mut writer)
    .await
    .expect("readable");
    for (kind, name, _) in &aside {
        done(&mut writer, &format!("DROP {kind} {name}")).await;
    }
    for first in (1..=count).step_by(FINISHED_CHUNK) {
        let last = count.min(first + FINISHED_CHUNK - 1);
        done(&mut writer, &finished(first, last, count)).await;
    }
    let batches = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count} / 1000)
         INSERT INTO batches (target, service, endpoint, project_id, action, state, server_count, intent_at, submitted_at, finished_at)
         SELECT 'default', 'bms', 'http://127.0.0.1:1', 'p', 'reboot', 'done', 1000, ended, ended, ended
         FROM n JOIN (SELECT id, finished_at AS ended FROM power_requests) r ON r.id = i * 1000"
    );
    done(&mut writer, &batches).await;
    for (_, _, sql) in &aside {
        done(&mut writer, sql).await;
    }
    done(&mut writer, "PRAGMA journal_mode = WAL").await;
    writer.close().await.expect("closed");
}

/// The last one ended two hours ago, a hundred in each second.
fn finished(first: usize, last: usize, count: usize) -> String {
    format!(
        "WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {last})
         INSERT INTO power_requests (id, server_id, action, state, gate, in_line, batch_id, attempts, evidence,
             created_at, submitted_at, finished_at)
         SELECT i, {RANDOM_ID}, 'reboot', 'succeeded', NULL, NULL, (i - 1) / 1000 + 1, 1, 'job', ended, ended, ended
         FROM (SELECT i, strftime('%Y-%m-%dT%H:%M:%fZ', 'now', (({count} - i) / -100.0 - 7200) || ' seconds') AS ended
               FROM n)"
    )
}

async fn done(writer: &mut SqliteConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(writer)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}
