//! Keeping a queue for years: copies, what happens when one is put back, and old rows.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use sqlx::Connection;

use crate::common::process::run;
use crate::common::{UNFINISHED, Yard, insert, insert_many, outcomes, text, wait_for};

const QUICK: &str = "[bms]\nservers = 20\nrunning = 1.0\noperation_ms = [10, 20]\n";

/// A command's exit code, with what it said.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn command(yard: &Yard, args: &[&str]) -> Said {
    let database = yard.database();
    let mut all = args.to_vec();
    all.extend(["--database", database.to_str().expect("a plain path")]);
    let output = run(&all);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Said {
        code: output.status.code(),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

/// Puts a copy in the queue's place, as an operator would: nobody has it open. A producer that was
/// only dropped may have it open for a while yet.
fn put_back(yard: &Yard, copy: &Path) {
    for ending in ["-wal", "-shm"] {
        let mut name = yard.database().into_os_string();
        name.push(ending);
        let _ = fs::remove_file(name);
    }
    fs::copy(copy, yard.database()).expect("copied");
    fs::set_permissions(yard.database(), fs::Permissions::from_mode(0o660)).expect("mode set");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_made_beside_a_working_daemon_and_nothing_of_it_runs_again() {
    let yard = Yard::new(QUICK).await;
    let copy = yard.dir.path().join("copy.db");
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "reboot").await;
    assert_eq!(outcomes(&mut producer).await, "1 succeeded/job");
    command(&yard, &["pause"]);
    let queued = insert(&mut producer, &yard.server(2), "reboot").await;
    let said = command(
        &yard,
        &["db", "backup", copy.to_str().expect("a plain path")],
    );
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(
        fs::metadata(&copy)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    command(&yard, &["resume"]);
    assert_eq!(outcomes(&mut producer).await, "2 succeeded/job");
    let last = insert(&mut producer, &yard.server(3), "stop").await;
    assert_eq!(outcomes(&mut producer).await, "3 succeeded/job");
    producer.close().await.expect("closed");
    daemon.stop().await;

    put_back(&yard, &copy);
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    wait_for(
        &mut producer,
        "SELECT count(*) FROM holds WHERE kind = 'restored'",
        "1",
    )
    .await;
    command(&yard, &["resume"]);
    let reason = text(
        &mut producer,
        &format!("SELECT reason FROM power_waiting WHERE id = {queued}"),
    )
    .await;
    assert!(
        reason.starts_with("held: this queue is an older copy"),
        "{reason}"
    );
    let new = insert(&mut producer, &yard.server(4), "stop").await;
    assert!(
        new > last + 1,
        "id {new} comes after {last}, which the copy does not know"
    );
    let said = command(&yard, &["db", "release", "--drop"]);
    assert!(said.out.contains("1 request"), "{said:?}");
    assert_eq!(
        outcomes(&mut producer).await,
        "1 cancelled/none/poweryard.cancelled, 2 succeeded/job"
    );
    let reboots = yard
        .cloud
        .ledger()
        .iter()
        .filter(|entry| entry.server_id.0 == yard.server(2))
        .count();
    assert_eq!(reboots, 1);
    drop(producer);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_file_put_back_by_hand_is_noticed_and_works_once_released() {
    let yard = Yard::new(QUICK).await;
    let copy = yard.dir.path().join("copy.db");
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    command(&yard, &["pause"]);
    insert(&mut producer, &yard.server(1), "stop").await;
    producer.close().await.expect("closed");
    daemon.stop().await;
    fs::copy(yard.database(), &copy).expect("copied");
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    command(&yard, &["resume"]);
    assert_eq!(outcomes(&mut producer).await, "1 succeeded/job");
    producer.close().await.expect("closed");
    daemon.stop().await;

    put_back(&yard, &copy);
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    wait_for(
        &mut producer,
        "SELECT count(*) FROM holds WHERE kind = 'restored'",
        "1",
    )
    .await;
    command(&yard, &["resume"]);
    assert_eq!(text(&mut producer, UNFINISHED).await, "1");
    assert_eq!(yard.cloud.ledger().len(), 1);
    let said = command(&yard, &["db", "release"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(outcomes(&mut producer).await, "1 succeeded/already");
    assert!(
        command(&yard, &["db", "release"])
            .out
            .contains("nothing is on hold")
    );
    drop(producer);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_copy_of_a_moment_ago_is_known_for_an_older_one() {
    let yard = Yard::new(QUICK).await;
    let copy = yard.dir.path().join("copy.db");
    let daemon = yard.start();
    let mut producer = yard.producer().await;
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
    assert_eq!(outcomes(&mut producer).await, "1 succeeded/job");
    producer.close().await.expect("closed");
    daemon.stop().await;
    put_back(&yard, &copy);
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    wait_for(
        &mut producer,
        "SELECT count(*) FROM holds WHERE kind = 'restored'",
        "1",
    )
    .await;
    assert_eq!(text(&mut producer, UNFINISHED).await, "1");
    assert_eq!(yard.cloud.ledger().len(), 1);
    drop(producer);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_has_lost_its_note_is_taken_for_a_copy() {
    let yard = Yard::new(QUICK).await;
    let mut note = yard.database().into_os_string();
    note.push(".epoch");
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    assert_eq!(outcomes(&mut producer).await, "1 succeeded/job");
    fs::remove_file(&note).expect("it is there");
    insert(&mut producer, &yard.server(2), "stop").await;
    assert_eq!(outcomes(&mut producer).await, "2 succeeded/job");
    assert!(
        fs::metadata(&note).is_ok(),
        "it comes back with the next claim"
    );
    daemon.stop().await;
    insert(&mut producer, &yard.server(3), "stop").await;
    fs::remove_file(&note).expect("it is there");
    let daemon = yard.start();
    wait_for(
        &mut producer,
        "SELECT count(*) FROM holds WHERE kind = 'restored'",
        "1",
    )
    .await;
    command(&yard, &["db", "release"]);
    assert_eq!(outcomes(&mut producer).await, "3 succeeded/job");
    daemon.stop().await;
}

/// A backup of the folder has the note, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_comes_back_together_with_its_note_is_known_for_one() {
    let yard = Yard::new(QUICK).await;
    let note = yard.database().with_extension("db.epoch");
    let (copy, noted) = (
        yard.dir.path().join("copy.db"),
        yard.dir.path().join("copy.epoch"),
    );
    let daemon = yard.start();
    let producer = yard.producer().await;
    drop(producer);
    while !note.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    daemon.stop().await;
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "reboot").await;
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
        .execute(&mut producer)
        .await
        .expect("all in one file");
    fs::copy(yard.database(), &copy)
        .and_then(|_| fs::copy(&note, &noted))
        .expect("copied");
    let daemon = yard.start();
    assert_eq!(outcomes(&mut producer).await, "1 succeeded/job");
    producer.close().await.expect("closed");
    daemon.stop().await;
    fs::remove_file(yard.database()).expect("it was there");
    fs::copy(&noted, &note).expect("copied");
    put_back(&yard, &copy);
    if fs::metadata(yard.database())
        .and_then(|meta| meta.created())
        .is_err()
    {
        return;
    }
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    wait_for(
        &mut producer,
        "SELECT count(*) FROM holds WHERE kind = 'restored'",
        "1",
    )
    .await;
    assert_eq!(text(&mut producer, UNFINISHED).await, "1");
    assert_eq!(yard.cloud.ledger().len(), 1);
    drop(producer);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_restart_is_no_restore() {
    let yard = Yard::new(QUICK).await;
    for round in 1..=3 {
        let daemon = yard.start();
        let mut producer = yard.producer().await;
        insert(&mut producer, &yard.server(round), "stop").await;
        assert_eq!(
            outcomes(&mut producer).await,
            format!("{round} succeeded/job")
        );
        assert_eq!(
            text(&mut producer, "SELECT max(id) FROM power_requests").await,
            round.to_string()
        );
        assert_eq!(text(&mut producer, "SELECT count(*) FROM holds").await, "0");
        drop(producer);
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_long_ago_goes_with_its_ledger_and_what_is_awaited_stays() {
    let yard = Yard::new(QUICK).await;
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    let servers = yard.servers(5);
    insert_many(&mut producer, &servers, "stop").await;
    assert_eq!(outcomes(&mut producer).await, "5 succeeded/job");
    let awaits = "INSERT INTO power_requests (server_id, action, after_id, not_before) VALUES ('x', 'start', ?, datetime('now', '+1 day'))";
    sqlx::query(awaits)
        .bind(3)
        .execute(&mut producer)
        .await
        .expect("accepted");
    let said = command(&yard, &["db", "prune", "--older-than", "1h"]);
    assert!(
        said.out.starts_with("deleted 0 requests and 0 batches"),
        "{said:?}"
    );
    let said = command(&yard, &["db", "prune", "--older-than", "0s"]);
    assert!(said.out.starts_with("deleted 4 requests"), "{said:?}");
    assert_eq!(
        text(&mut producer, "SELECT group_concat(id) FROM power_requests").await,
        "3,6"
    );
    let orphans = "SELECT count(*) FROM request_attempts WHERE request_id NOT IN (SELECT id FROM power_requests)";
    assert_eq!(text(&mut producer, orphans).await, "0");
    let kept =
        "SELECT count(*) FROM batches WHERE id NOT IN (SELECT batch_id FROM request_attempts)";
    assert_eq!(text(&mut producer, kept).await, "0");
    let next = insert(&mut producer, &yard.server(6), "stop").await;
    assert_eq!(next, 7, "ids go on");
    drop(producer);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_keeps_to_its_retention() {
    let yard = Yard::new(QUICK).await;
    let mut settings = yard.settings();
    let daemon = yard.start_with(settings.clone());
    let mut producer = yard.producer().await;
    let servers = yard.servers(5);
    insert_many(&mut producer, &servers, "stop").await;
    assert_eq!(outcomes(&mut producer).await, "5 succeeded/job");
    daemon.stop().await;
    settings.queue.retention = Some(Duration::from_millis(1));
    let daemon = yard.start_with(settings);
    wait_for(&mut producer, "SELECT count(*) FROM power_requests", "0").await;
    // The pace counts the calls of the last minute, over restarts too.
    assert_eq!(
        text(&mut producer, "SELECT count(*) FROM batches").await,
        "1"
    );
    drop(producer);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_cannot_be_written_says_so_and_leaves_nothing() {
    let yard = Yard::new(QUICK).await;
    let daemon = yard.start();
    let producer = yard.producer().await;
    let said = command(&yard, &["db", "backup", "/nonexistent/copy.db"]);
    assert_eq!(said.code, Some(3), "{said:?}");
    assert!(said.err.contains("/nonexistent/copy.db"), "{said:?}");
    let link = yard.dir.path().join("link.db");
    std::os::unix::fs::symlink(yard.database(), &link).expect("linked");
    for itself in [yard.database(), link] {
        let said = command(
            &yard,
            &["db", "backup", itself.to_str().expect("a plain path")],
        );
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(said.err.contains("is the queue itself"), "{said:?}");
    }
    drop(producer);
    daemon.stop().await;
}
