//! What one round writes and reads does not grow with what is in the queue: rows that are touched,
//! and how often SQLite's machine goes round, are counted beside few and beside many. Nothing is
//! timed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::queue::{self, HOUR, Queue, succeeded, wall};
use crate::common::statements::statement;
use poweryard::model::{TargetName, UtcMillis};
use poweryard::store::Prune;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions};

/// Rows that one step of the intake takes in, of each kind.
const CHUNK: i64 = 200;
/// Requests parked by one claim in all, and by the one in which that is exceeded.
const PARKED_MAX: i64 = 2500;
const BATCH: u32 = 1000;

/// An INSERT of so many requests, with more columns and their values; `i` counts them from 1.
fn many(count: usize, server: &str, columns: &str, values: &str) -> String {
    format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
         INSERT INTO power_requests (server_id, action{columns}) SELECT {server}, 'stop'{values} FROM n"
    )
}

/// Rows that the daemon's connection has inserted, changed or deleted so far, with those of triggers.
async fn rows_touched(queue: &Queue) -> i64 {
    queue.snapshot(&[], None).await.change_mark.0
}

/// Takes in until nothing is left: the most rows that one take-in has touched.
async fn most_touched_by_a_take_in(queue: &Queue, now: UtcMillis) -> i64 {
    let mut most = 0;
    loop {
        let before = rows_touched(queue).await;
        let taken = queue.store.take_in(None, now).await.expect("taken in");
        most = most.max(rows_touched(queue).await - before);
        if !taken.more {
            return most;
        }
    }
}

#[tokio::test]
async fn a_take_in_touches_as_many_rows_however_many_are_due() {
    let soon = ", datetime('now', '+1 hour')";
    let shapes = [
        ("'s' || i", ", not_before", soon, 3),
        ("'s' || (i % 50)", ", not_before", soon, 3),
        ("'s' || i", ", expires_at", soon, 3),
        ("'s' || (i % 50)", ", expires_at", soon, 3),
    ];
    for (server, columns, values, each) in shapes {
        for count in [300, 3000] {
            let mut queue = Queue::new().await;
            queue.sql(&many(count, server, columns, values)).await;
            let most = most_touched_by_a_take_in(&queue, wall() + HOUR * 2).await;
            assert!(most <= CHUNK * each + 10, "{columns}, {count}: {most}");
        }
    }
}

#[tokio::test]
async fn an_end_lets_out_those_that_wait_for_it_a_few_at_a_time() {
    for ends_well in [true, false] {
        for count in [300, 3000] {
            let mut queue = Queue::new().await;
            queue.insert("first", &[]).await;
            queue
                .sql(&many(count, "'s' || i", ", after_id", ", 1"))
                .await;
            if ends_well {
                let batches = queue.claim_all(wall()).await;
                queue.end(&batches[0], &succeeded(), wall()).await;
            } else {
                queue
                    .sql("UPDATE power_requests SET state = 'cancelled' WHERE id = 1")
                    .await;
            }
            let most = most_touched_by_a_take_in(&queue, wall()).await;
            assert!(most <= CHUNK * 4 + 10, "{count}, {ends_well}: {most}");
            let left = queue
                .row("SELECT count(*) FROM power_requests WHERE gate = 'after'")
                .await;
            assert_eq!(left, "0");
        }
    }
}

#[tokio::test]
async fn a_claim_parks_a_bounded_number_and_then_nobody_again() {
    let mut queue = Queue::new().await;
    queue.sql(&many(5000, "'one'", "", "")).await;
    let mut parked = 0;
    let mut claimed = None;
    for _ in 0..5 {
        let before = rows_touched(&queue).await;
        for lane in queue.lanes().await {
            claimed = queue.claim(&lane, BATCH, wall()).await.or(claimed);
        }
        let touched = rows_touched(&queue).await - before;
        assert!(touched <= PARKED_MAX + i64::from(BATCH) + 20, "{touched}");
        parked += touched;
    }
    assert!((4999..5060).contains(&parked), "{parked}: each once");
    // From now on one ends and the next goes, and nobody else is touched.
    for _ in 0..5 {
        let before = rows_touched(&queue).await;
        let batch = claimed.take().expect("one goes");
        queue.end(&batch, &succeeded(), wall()).await;
        for lane in queue.lanes().await {
            claimed = queue.claim(&lane, BATCH, wall()).await;
        }
        let touched = rows_touched(&queue).await - before;
        assert!(touched <= 20, "{touched}");
    }
}

#[tokio::test]
async fn those_behind_a_batch_that_ends_come_forward_some_at_a_time() {
    let mut queue = Queue::new().await;
    queue.sql(&many(600, "'s' || (i % 300)", "", "")).await;
    let batches = queue.claim_all(wall()).await;
    assert_eq!(queue::ids(&batches), (1..=300).collect::<Vec<i64>>());
    queue.end(&batches[0], &succeeded(), wall()).await;
    let ready = "SELECT count(*) FROM power_requests WHERE gate = 'ready'";
    assert_eq!(queue.row(ready).await, "200");
    let taken = queue.store.take_in(None, wall()).await.expect("taken in");
    assert!(!taken.more);
    assert_eq!(queue.row(ready).await, "300");
    let batches = queue.claim_all(wall()).await;
    assert_eq!(queue::ids(&batches), (301..=600).collect::<Vec<i64>>());
}

#[tokio::test]
async fn unknown_targets_are_held_a_chunk_at_a_time() {
    let mut queue = Queue::new().await;
    queue
        .sql(&many(1000, "'s' || i", ", target", ", 'taget-' || i"))
        .await;
    let mut last = String::new();
    loop {
        let before = rows_touched(&queue).await;
        let names = queue.store.targets_after(&last, 200).await.expect("read");
        let Some(TargetName(name)) = names.last().cloned() else {
            break;
        };
        last = name;
        let held = queue.store.hold_unknown_targets(&names, wall()).await;
        held.expect("held");
        assert!(rows_touched(&queue).await - before <= 210);
    }
    let held = queue.row("SELECT count(*) FROM holds").await;
    assert_eq!(held, "1000");
}

#[tokio::test]
async fn what_has_ended_is_put_away_and_deleted_a_chunk_at_a_time() {
    let mut queue = Queue::new().await;
    queue.sql(&many(2500, "'s' || i", "", "")).await;
    for _ in 0..3 {
        for batch in queue.claim_all(wall()).await {
            queue.end(&batch, &succeeded(), wall()).await;
        }
    }
    for _ in 0..6 {
        let before = rows_touched(&queue).await;
        queue.leave_line().await;
        let touched = rows_touched(&queue).await - before;
        assert!(touched <= 520, "{touched}");
    }
    let standing = queue
        .row("SELECT count(*) FROM power_requests WHERE in_line = 1")
        .await;
    assert_eq!(standing, "0");
    let mut prune = Prune::default();
    while !prune.done {
        let before = rows_touched(&queue).await;
        let later = wall() + HOUR;
        prune = queue.store.prune(prune, later, later).await.expect("run");
        let touched = rows_touched(&queue).await - before;
        assert!(touched <= 110, "{touched}");
    }
    assert_eq!(prune.requests, 2500);
}

/// A connection that counts how often its statements go round: SQLite asks whether to go on at each
/// turn of a loop.
struct Counter {
    connection: SqliteConnection,
    turns: Arc<AtomicU64>,
}

impl Counter {
    async fn open(queue: &Queue) -> Self {
        let mut connection = SqliteConnectOptions::new()
            .filename(queue.path())
            .disable_statement_logging()
            .connect()
            .await
            .expect("it opens");
        let turns = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&turns);
        let mut handle = connection.lock_handle().await.expect("a handle");
        handle.set_progress_handler(1, move || {
            counted.fetch_add(1, Ordering::Relaxed);
            true
        });
        drop(handle);
        Self { connection, turns }
    }

    /// The turns of one statement.
    async fn count(&mut self, sql: &str) -> u64 {
        let before = self.turns.load(Ordering::Relaxed);
        sqlx::raw_sql(AssertSqlSafe(sql))
            .fetch_all(&mut self.connection)
            .await
            .expect("it runs");
        self.turns.load(Ordering::Relaxed) - before
    }
}

/// A statement of the daemon with its values, in the order of their numbers.
fn with_values(part: &str, values: &[&str]) -> String {
    let mut sql = statement(part).to_owned();
    for (at, value) in values.iter().enumerate() {
        sql = sql.replace(&format!("${}", at + 1), value);
    }
    sql
}

#[tokio::test]
async fn what_a_round_reads_goes_round_as_often_however_many_wait() {
    let now = "'2030-01-01T00:00:00.000Z'";
    let reads = [
        with_values(
            "WITH RECURSIVE head",
            &[
                "'[[\"default\",\"stop\",100]]'",
                "1000",
                "'[]'",
                "256",
                "100",
                "100",
            ],
        ),
        with_values(
            "ORDER BY priority DESC, id LIMIT 0 + $4) r",
            &["'default'", "'stop'", "0", "100", "1"],
        ),
        with_values("WITH RECURSIVE used(target, number)", &["''", "200"]),
        with_values("LIMIT 0 + $3)\n         UNION ALL", &[now, "''", "50"]),
        with_values("WHERE gate = 'later' AND eligible_at <= $1", &[now, "50"]),
    ];
    let mut counted: Vec<Vec<u64>> = Vec::new();
    for count in [150, 3000] {
        let mut queue = Queue::new().await;
        let later = many(count, "'l' || i", ", not_before", ", '2029-01-01'");
        let expiring = many(count, "'e' || i", ", expires_at", ", '2029-01-01'");
        let awaiting = many(count, "'a' || i", ", after_id", ", 1");
        for sql in [many(count, "'s' || i", "", ""), later, expiring, awaiting] {
            queue.sql(&sql).await;
        }
        let mut counter = Counter::open(&queue).await;
        let mut turns = Vec::new();
        for sql in &reads {
            turns.push(counter.count(sql).await);
        }
        counted.push(turns);
    }
    for (few, many) in counted[0].iter().zip(&counted[1]) {
        assert!(many.abs_diff(*few) * 20 <= *few, "{counted:?}");
    }
}
