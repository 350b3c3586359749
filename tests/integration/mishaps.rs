//! What can happen to the machine under a running daemon: the clock is set, the queue's file goes
//! away.

use std::fs;
use std::time::Duration;

use crate::common::process::Daemon;
use crate::common::{
    UNFINISHED, Yard, clouds, dispatcher, insert, insert_many, outcomes, text, wait_for,
};
use poweryard::daemon::{self, DaemonError, Dispatcher, Finished};
use poweryard::model::{Now, PowerAction, UtcMillis};
use poweryard::store::StoreError;
use sqlx::{AssertSqlSafe, Connection};

const SLOW_JOB: &str = "[bms]\nservers = 4\nrunning = 1.0\noperation_ms = [300, 300]\n";
const HOUR: Duration = Duration::from_secs(3600);

/// This moment on a machine whose time of day was set ahead.
fn ahead(by: Duration) -> Now {
    let now = daemon::now();
    Now {
        utc: now.utc + by,
        ..now
    }
}

/// Rounds at the times that `clock` shows, each task carried out at once.
async fn round(dispatcher: &mut Dispatcher, now: Now) {
    let round = dispatcher.round(now).await;
    assert!(round.trouble.is_none(), "{:?}", round.trouble);
    for task in round.tasks {
        let finished: Finished = task.run().await;
        dispatcher.finish(finished, now).await.expect("stored");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_steps_back_an_hour_delays_neither_batch_nor_row() {
    let yard = Yard::new(SLOW_JOB).await;
    let settings = yard.settings();
    // The daemon's clock is an hour ahead, and is then put right.
    let ahead = ahead(HOUR);
    let mut dispatcher = dispatcher(&settings, ahead).await;
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    while text(&mut producer, "SELECT ifnull(max(state), '') FROM batches").await != "tracking" {
        round(&mut dispatcher, ahead).await;
    }
    insert(&mut producer, &yard.server(2), "stop").await;
    for _ in 0..400 {
        round(&mut dispatcher, daemon::now()).await;
        if text(&mut producer, UNFINISHED).await == "0" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(outcomes(&mut producer).await, "2 succeeded/job");
    assert_eq!(yard.cloud.ledger().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_steps_ahead_and_back_loses_and_repeats_nothing() {
    let yard = Yard::new(SLOW_JOB).await;
    let settings = yard.settings();
    let mut dispatcher = dispatcher(&settings, daemon::now()).await;
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "reboot").await;
    while text(&mut producer, "SELECT ifnull(max(state), '') FROM batches").await != "tracking" {
        round(&mut dispatcher, daemon::now()).await;
    }
    insert(&mut producer, &yard.server(2), "stop").await;
    // A reboot that still runs after its time is looked at; a row that waits is not too old yet.
    for by in [HOUR, Duration::ZERO] {
        for _ in 0..400 {
            round(&mut dispatcher, ahead(by)).await;
            if text(
                &mut producer,
                "SELECT count(*) FROM power_requests WHERE state <> 'succeeded'",
            )
            .await
                == "0"
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(
            text(
                &mut producer,
                "SELECT count(*) FROM power_requests WHERE state <> 'succeeded'"
            )
            .await,
            "0"
        );
        insert(&mut producer, &yard.server(3), "stop").await;
    }
    assert_eq!(yard.cloud.ledger().len(), 3);
}

/// A daemon that is expected to end by itself.
fn begin(yard: &Yard) -> std::thread::JoinHandle<Result<(), DaemonError>> {
    let settings = yard.settings();
    let clouds = clouds(&settings);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let links = daemon::Links::default();
        runtime.block_on(daemon::run(
            &settings,
            clouds,
            links,
            std::future::pending(),
        ))
    })
}

async fn why_it_ended(daemon: std::thread::JoinHandle<Result<(), DaemonError>>) -> StoreError {
    let ended = tokio::task::spawn_blocking(|| daemon.join())
        .await
        .expect("joined")
        .expect("no panic");
    let DaemonError::Store { source, .. } = ended.expect_err("it cannot go on");
    source
}

fn beside(yard: &Yard, ending: &str) -> std::path::PathBuf {
    let mut name = yard.database().into_os_string();
    name.push(ending);
    name.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_whose_file_was_replaced_ends_and_writes_nothing_more() {
    let yard = Yard::new(SLOW_JOB).await;
    let daemon = begin(&yard);
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    wait_for(
        &mut producer,
        "SELECT state FROM power_requests",
        "succeeded",
    )
    .await;
    fs::rename(yard.database(), yard.database().with_extension("old")).expect("moved away");
    fs::write(yard.database(), "").expect("another file");
    let source = why_it_ended(daemon).await;
    assert!(matches!(source, StoreError::Replaced(_)), "{source}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_committed_after_wal_or_shm_were_removed_are_not_lost() {
    for removed in [&["-wal", "-shm"][..], &["-shm"]] {
        let yard = Yard::new(SLOW_JOB).await;
        let daemon = begin(&yard);
        let mut producer = yard.producer().await;
        insert(&mut producer, &yard.server(1), "stop").await;
        wait_for(
            &mut producer,
            "SELECT state FROM power_requests",
            "succeeded",
        )
        .await;
        // Nothing is left to write.
        let lingering = "SELECT count(*) FROM lingering_batches";
        wait_for(&mut producer, lingering, "0").await;
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
            .execute(&mut producer)
            .await
            .expect("cut");
        removed
            .iter()
            .for_each(|ending| fs::remove_file(beside(&yard, ending)).expect("removed"));
        let mut other = yard.producer().await;
        let id = insert(&mut other, &yard.server(2), "reboot").await;
        let source = why_it_ended(daemon).await;
        assert!(matches!(source, StoreError::Replaced(_)), "{source}");
        assert_eq!(
            text(
                &mut other,
                &format!("SELECT state FROM power_requests WHERE id = {id}")
            )
            .await,
            "queued"
        );
        assert_eq!(yard.cloud.ledger().len(), 1);
    }
}

/// Whoever reads next would find no rows, or only errors.
#[tokio::test(flavor = "multi_thread")]
async fn a_wal_that_was_cut_or_written_over_ends_the_daemon() {
    for how in ["cut", "halved", "zeroed"] {
        let yard = Yard::new(SLOW_JOB).await;
        let daemon = begin(&yard);
        let mut producer = yard.producer().await;
        insert(&mut producer, &yard.server(1), "reboot").await;
        wait_for(
            &mut producer,
            "SELECT state FROM power_requests",
            "succeeded",
        )
        .await;
        // What is written last about a batch, too.
        wait_for(&mut producer, "SELECT count(*) FROM lingering_batches", "0").await;
        let wal = beside(&yard, "-wal");
        let length = fs::metadata(&wal).expect("it is there").len();
        assert!(length > 0);
        match how {
            "cut" => cut(&wal, 0),
            "halved" => cut(&wal, length / 2),
            _ => {
                let mut file = fs::OpenOptions::new()
                    .write(true)
                    .open(&wal)
                    .expect("opened");
                std::io::Write::write_all(&mut file, &[0; 64]).expect("written");
            }
        }
        let source = why_it_ended(daemon).await;
        assert!(matches!(source, StoreError::Replaced(_)), "{how}: {source}");
        assert_eq!(yard.cloud.ledger().len(), 1, "{how}");
    }
}

fn cut(path: &std::path::Path, to: u64) {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|file| file.set_len(to))
        .expect("cut");
}

/// SQLite has the `-shm` in its memory: if it looks there before the daemon has noticed the cut, the
/// kernel ends the process (SIGBUS). So the daemon is one of its own here, and nobody else has the
/// queue open.
#[tokio::test(flavor = "multi_thread")]
async fn a_shm_that_was_cut_ends_the_daemon_and_repeats_nothing() {
    let yard = Yard::new(SLOW_JOB).await;
    let config = yard.write_config();
    let mut daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "reboot").await;
    assert_eq!(outcomes(&mut producer).await, "1 succeeded/job");
    producer.close().await.expect("closed");
    cut(&beside(&yard, "-shm"), 0);
    let code = daemon.exit_code().await;
    assert!(matches!(code, Some(3) | None), "{code:?}");
    let daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(2), "reboot").await;
    assert_eq!(outcomes(&mut producer).await, "2 succeeded/job");
    assert_eq!(daemon.stop().await, Some(0));
    assert_eq!(yard.cloud.ledger().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_written_over_the_open_file_ends_the_daemon_and_repeats_nothing() {
    let yard = Yard::new(SLOW_JOB).await;
    let copy = yard.dir.path().join("copy.db");
    let daemon = begin(&yard);
    let mut producer = yard.producer().await;
    wait_for(&mut producer, "SELECT count(*) FROM targets", "1").await;
    let later = "INSERT INTO power_requests (server_id, action, not_before) VALUES (?, 'reboot', strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+1 seconds'))";
    sqlx::query(later)
        .bind(yard.server(1))
        .execute(&mut producer)
        .await
        .expect("accepted");
    sqlx::query("VACUUM INTO ?")
        .bind(copy.to_string_lossy())
        .execute(&mut producer)
        .await
        .expect("a plain copy");
    wait_for(
        &mut producer,
        "SELECT state FROM power_requests",
        "succeeded",
    )
    .await;
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
        .execute(&mut producer)
        .await
        .expect("cut");
    fs::write(yard.database(), fs::read(&copy).expect("read")).expect("written over it");
    let source = why_it_ended(daemon).await;
    let noticed = matches!(
        source,
        StoreError::Replaced(_)
            | StoreError::TakenOver(_)
            | StoreError::Damaged
            | StoreError::Corrupt(_)
    );
    assert!(noticed, "{source}");
    assert_eq!(yard.cloud.ledger().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_vacuumed_by_somebody_else_is_still_the_same() {
    let yard = Yard::new(SLOW_JOB).await;
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    wait_for(
        &mut producer,
        "SELECT state FROM power_requests",
        "succeeded",
    )
    .await;
    for sql in [
        "DELETE FROM power_requests",
        "VACUUM",
        "PRAGMA wal_checkpoint(TRUNCATE)",
    ] {
        sqlx::query(sql).execute(&mut producer).await.expect("done");
    }
    insert(&mut producer, &yard.server(2), "stop").await;
    assert_eq!(outcomes(&mut producer).await, "1 succeeded/job");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaves_by_a_clock_that_stands_in_another_century() {
    let yard = Yard::new(SLOW_JOB).await;
    let settings = yard.settings();
    let mut dispatcher = dispatcher(&settings, daemon::now()).await;
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "reboot").await;
    for wrong in [UtcMillis(946_684_800_000), UtcMillis(4_102_444_799_999)] {
        let asked = dispatcher
            .round(Now {
                utc: wrong,
                ..daemon::now()
            })
            .await;
        assert!(asked.trouble.is_none() && asked.tasks.is_empty());
        assert!(dispatcher.status_line().contains("clock is wrong"));
    }
    assert_eq!(
        text(&mut producer, "SELECT state FROM power_requests").await,
        "queued"
    );
    let asked = dispatcher.round(daemon::now()).await;
    assert!(asked.trouble.is_none() && !asked.tasks.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_while_the_clock_stands_in_another_century_is_stored() {
    for wrong in [UtcMillis(946_684_800_000), UtcMillis(4_102_444_799_999)] {
        let yard = Yard::new(SLOW_JOB).await;
        let settings = yard.settings();
        let mut dispatcher = dispatcher(&settings, daemon::now()).await;
        let mut producer = yard.producer().await;
        insert(&mut producer, &yard.server(1), "reboot").await;
        let state = "SELECT ifnull(max(state), '') FROM batches";
        while text(&mut producer, state).await.is_empty() {
            for task in dispatcher.round(daemon::now()).await.tasks {
                let finished = task.run().await;
                let now = Now {
                    utc: wrong,
                    ..daemon::now()
                };
                dispatcher.finish(finished, now).await.expect("stored");
            }
        }
        assert_eq!(text(&mut producer, state).await, "tracking");
        for _ in 0..400 {
            round(&mut dispatcher, daemon::now()).await;
            if text(&mut producer, state).await == "done" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(outcomes(&mut producer).await, "1 succeeded/job");
    }
}

/// The ledgers' own guards, out of the way of a hand that means it.
const BY_FORCE: &str = "DROP TRIGGER batches_check_delete; DROP TRIGGER batches_check_update;";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_its_batch_ends_unknown_and_blocks_no_other() {
    for removed in [
        "DELETE FROM batches",
        "UPDATE batches SET state = 'done', next_look_at = NULL, finished_at = intent_at",
    ] {
        let mut yard =
            Yard::new("[bms]\nservers = 2\nrunning = 1.0\noperation_ms = [10, 10]\n").await;
        yard.set("first_look = \"30s\"");
        yard.set("look_interval_max = \"30s\"");
        let daemon = yard.start();
        let mut producer = yard.producer().await;
        let lost = insert(&mut producer, &yard.server(1), "reboot").await;
        wait_for(&mut producer, "SELECT state FROM batches", "tracking").await;
        daemon.stop().await;
        // What is left of it is looked at at once.
        let force = format!("{BY_FORCE} UPDATE batches SET next_look_at = intent_at; {removed}");
        sqlx::raw_sql(AssertSqlSafe(force))
            .execute(&mut producer)
            .await
            .expect("removed");
        let next = insert(&mut producer, &yard.server(1), "stop").await;
        let other = insert(&mut producer, &yard.server(2), "stop").await;
        yard.set("first_look = \"20ms\"");
        let daemon = yard.start();
        assert_eq!(
            outcomes(&mut producer).await,
            "2 succeeded/job, 1 unknown/none/poweryard.orphaned",
            "{removed}"
        );
        wait_for(
            &mut producer,
            "SELECT count(*) FROM batches WHERE state <> 'done'",
            "0",
        )
        .await;
        daemon.stop().await;
        assert_eq!(
            text(
                &mut producer,
                &format!("SELECT state FROM power_requests WHERE id = {lost}")
            )
            .await,
            "unknown"
        );
        let carried_out: Vec<_> = yard
            .cloud
            .ledger()
            .iter()
            .map(|entry| entry.action)
            .collect();
        assert_eq!(
            carried_out,
            [PowerAction::Reboot, PowerAction::Stop, PowerAction::Stop],
            "{next} and {other} went"
        );
        let open = "SELECT count(*) FROM request_attempts WHERE result IS NULL";
        assert_eq!(
            text(&mut producer, open).await,
            "0",
            "{removed}: an open attempt can never be pruned"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_unknown_reboot_does_not_prove_a_later_one() {
    let lost = |kind: &str, call: u32| {
        format!("[[faults]]\nkind = \"{kind}\"\non = [\"submit\"]\ncalls = [{call}]\n")
    };
    let faults = lost("drop_after", 1) + &lost("drop_before", 2);
    let mut yard = Yard::new(&format!(
        "[bms]\nservers = 1\nrunning = 1.0\noperation_ms = [3500, 3500]\n{faults}"
    ))
    .await;
    yard.set("look_time_limit = \"1100ms\"");
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "reboot").await;
    assert_eq!(
        outcomes(&mut producer).await,
        "1 unknown/none/poweryard.time_limit"
    );
    daemon.stop().await;
    // The first reboot is still under way when the second call is lost before it reaches the cloud.
    yard.set("look_time_limit = \"15s\"");
    insert(&mut producer, &yard.server(1), "reboot").await;
    let daemon = yard.start();
    wait_for(
        &mut producer,
        "SELECT seen_since IS NOT NULL FROM request_attempts WHERE batch_id = 2",
        "1",
    )
    .await;
    assert_eq!(
        outcomes(&mut producer).await,
        "1 unknown/none/poweryard.time_limit, 1 unknown/none/poweryard.unproved"
    );
    daemon.stop().await;
    assert_eq!(
        yard.cloud.ledger().len(),
        1,
        "the second was never carried out"
    );
}

/// What a checkpoint cuts the `-wal` back to.
const WAL_LIMIT: u64 = 64 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_reader_costs_only_disk_and_the_wal_is_cut_back_after_it() {
    let yard = Yard::new("[bms]\nservers = 1000\nrunning = 1.0\noperation_ms = [10, 20]\n").await;
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    let servers = yard.servers(1000);
    let wal = yard.dir.path().join("queue.db-wal");
    let size = || fs::metadata(&wal).map_or(0, |meta| meta.len());
    let mut reader = yard.producer().await;
    sqlx::raw_sql("BEGIN; SELECT count(*) FROM power_requests")
        .execute(&mut reader)
        .await
        .expect("a snapshot");
    let mut sizes = vec![size()];
    for done in 1..=3 {
        insert_many(&mut producer, &servers, "reboot").await;
        assert_eq!(
            outcomes(&mut producer).await,
            format!("{} succeeded/job", done * 1000)
        );
        sizes.push(size());
    }
    assert!(
        sizes.windows(2).all(|pair| pair[0] < pair[1]),
        "the reader keeps the -wal growing: {sizes:?}"
    );
    assert_eq!(
        text(&mut reader, "SELECT count(*) FROM power_requests").await,
        "0",
        "it sees what it saw"
    );
    // Beyond the limit, by very many rows that are not due.
    let large = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
                 INSERT INTO power_requests (server_id, action, not_before, requested_by)
                 SELECT 'large-' || i, 'stop', datetime('now', '+1 day'), hex(zeroblob(128)) FROM n";
    while size() <= WAL_LIMIT + (8 << 20) {
        sqlx::query(large)
            .execute(&mut producer)
            .await
            .expect("accepted");
    }
    insert_many(&mut producer, &servers, "reboot").await;
    let succeeded = "SELECT count(*) FROM power_requests WHERE state = 'succeeded'";
    wait_for(&mut producer, succeeded, "4000").await;
    let grown = size();
    assert!(grown > WAL_LIMIT, "{grown}");

    sqlx::query("COMMIT")
        .execute(&mut reader)
        .await
        .expect("it leaves");
    // Whoever writes next begins the -wal anew; it is cut back when the daemon is the one.
    let mut rounds = 4;
    while size() > WAL_LIMIT && rounds < 12 {
        rounds += 1;
        insert_many(&mut producer, &servers, "reboot").await;
        wait_for(&mut producer, succeeded, &format!("{rounds}000")).await;
    }
    // Where the producer always was the one, the daemon cuts it when it next looks, which is once a
    // minute.
    for _ in 0..900 {
        if size() <= WAL_LIMIT {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!(
        "the -wal: {sizes:?}, then {grown}, and {} after {rounds} rounds",
        size()
    );
    assert!(
        size() <= WAL_LIMIT,
        "the -wal has {} bytes, {grown} before the reader left",
        size()
    );
    daemon.stop().await;
    assert_eq!(yard.cloud.ledger().len(), rounds * 1000);
    assert_eq!(
        text(
            &mut producer,
            "SELECT integrity_check FROM pragma_integrity_check"
        )
        .await,
        "ok"
    );
}
