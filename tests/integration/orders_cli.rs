//! Orders as people meet them after the fact: who did what, what is undone, what is reported, and
//! what is written down before it is deleted.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use crate::common::process::{json, poweryard};
use crate::common::queue::{HOUR, Queue, failed, step, succeeded, wall};
use crate::common::scene::Scene;
use crate::common::{Yard, insert, outcomes, text, wait_for};
use poweryard::model::PowerAction;
use poweryard::store::{Prune, write_export};
use serde_json::Value;

const QUICK: &str = "[bms]\nservers = 40\nrunning = 1.0\noperation_ms = [10, 50]\n";

/// A command on the queue at `path`.
fn run(path: &Path, args: &[&str]) -> Output {
    poweryard()
        .args(args)
        .arg("--database")
        .arg(path)
        .output()
        .expect("it runs")
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn all(output: &Output) -> String {
    format!("{}{}", out(output), String::from_utf8_lossy(&output.stderr))
}

fn ids(output: &Output) -> Vec<i64> {
    assert!(output.status.success(), "{}", all(output));
    let lines = out(output);
    let ids = lines.lines().map(|line| line.parse().expect("an id"));
    ids.collect()
}

fn lines(text: &str) -> Vec<Value> {
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Claims all that may go, and ends each request in the way that `how` says for its id.
async fn end_all(queue: &Queue, how: impl Fn(i64) -> poweryard::lifecycle::Outcome) {
    for batch in queue.go(wall()).await {
        let moves = batch.members.iter().map(|member| {
            let end = how(member.request.0);
            (member.request, poweryard::lifecycle::Event::Ended(end))
        });
        let step = step(poweryard::lifecycle::BatchNext::Done, moves.collect());
        let stored = queue.store.record(&batch, &step, wall()).await;
        stored.expect("recorded");
    }
}

#[tokio::test]
async fn a_power_cycle_is_a_stop_and_a_start_that_waits_for_it() {
    let mut queue = Queue::new().await;
    let cycle = [
        "enqueue",
        "power-cycle",
        "a",
        "B",
        "--key",
        "k",
        "--label",
        "x",
        "--expires-at",
        "2090-01-01",
    ];
    let first = run(queue.path(), &cycle);
    assert_eq!(ids(&first), [1, 3, 2, 4], "stop and start of each server");
    let rows = "SELECT id || ' ' || server_id || ' ' || action || ' ' || ifnull(after_id, '-') || ' ' || request_key || ' '
        || (expires_at IS NOT NULL) || ' ' || requested_by FROM power_requests ORDER BY id";
    assert_eq!(
        queue.rows(rows).await,
        [
            "1 a stop - k:stop:a 1 alice",
            "2 B stop - k:stop:B 1 alice",
            "3 a start 1 k:start:a 0 alice",
            "4 B start 2 k:start:B 0 alice",
        ]
    );
    let again = run(queue.path(), &cycle);
    assert_eq!(again.status.code(), Some(2), "{}", all(&again));
    // Servers that have one are skipped, however they are written; the others are not.
    let mut more = cycle.to_vec();
    more.splice(2..4, ["A", "c"]);
    more.push("--if-absent");
    let more = run(queue.path(), &more);
    assert_eq!(ids(&more), [1, 3, 5, 6]);
    assert!(all(&more).contains("skipped 1 server"), "{}", all(&more));
    assert_eq!(queue.row("SELECT count(*) FROM power_requests").await, "6");
    // Half of a cycle, of which the other half was pruned, is not made whole by half of another.
    queue
        .sql("UPDATE power_requests SET state = 'cancelled' WHERE id IN (5, 6); DELETE FROM power_requests WHERE id = 6")
        .await;
    let half = run(
        queue.path(),
        &["enqueue", "power-cycle", "c", "--key", "k", "--if-absent"],
    );
    assert_eq!(half.status.code(), Some(2), "{}", all(&half));
    assert!(
        all(&half).contains("only request 5 is left"),
        "{}",
        all(&half)
    );
    let said = run(queue.path(), &["enqueue", "cycle", "a"]);
    assert!(all(&said).contains("use power-cycle"), "{}", all(&said));
    let said = run(queue.path(), &["pause", "--action", "power-cycle"]);
    assert_eq!(said.status.code(), Some(2), "{}", all(&said));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cycle_and_its_undo_are_carried_out() {
    let mut scene = Scene::new(QUICK, &[]).await;
    let path = scene.yard.database();
    let servers = scene.yard.servers(3);
    let mut args = vec!["enqueue", "power-cycle", "--label", "cycle"];
    args.extend(servers.iter().map(String::as_str));
    assert_eq!(ids(&run(&path, &args)).len(), 6);
    assert_eq!(scene.outcomes().await, "6 succeeded/job");
    let nothing = run(&path, &["undo", "--label", "cycle"]);
    assert!(nothing.status.success(), "{}", all(&nothing));
    assert!(
        all(&nothing).contains("3 requests: is left alone: its server is as it was before"),
        "{}",
        all(&nothing)
    );
    args.splice(1..4, ["stop", "--label", "evac"]);
    run(&path, &args);
    assert_eq!(scene.outcomes().await, "9 succeeded/job");
    assert_eq!(ids(&run(&path, &["undo", "--label", "evac"])).len(), 3);
    assert_eq!(scene.outcomes().await, "12 succeeded/job");
    let off = scene.yard.cloud.ledger().len();
    assert_eq!(off, 12);
    let again = run(&path, &["undo", "--label", "evac"]);
    assert!(
        all(&again).contains("3 requests: is left alone: its server has a later request"),
        "{}",
        all(&again)
    );
    scene.daemon.stop().await;
}

#[tokio::test]
async fn an_order_half_done_is_undone_as_far_as_it_went() {
    let mut queue = Queue::new().await;
    for server in ["a", "b", "c", "d"] {
        queue.insert(server, &[("label", "'x'")]).await;
    }
    queue
        .insert("r", &[("label", "'x'"), ("action", "'reboot'")])
        .await;
    end_all(&queue, |id| if id == 2 { failed() } else { succeeded() }).await;
    queue.insert("e", &[("label", "'x'")]).await;
    queue.insert("d", &[]).await;
    let nobody = run(queue.path(), &["undo", "--label", "y"]);
    assert_eq!(nobody.status.code(), Some(2), "{}", all(&nobody));
    let undone = run(queue.path(), &["undo", "--label", "x", "--json"]);
    let undone = json(&undone);
    assert_eq!(undone["label"], "undo x");
    let results = undone["results"].as_array().expect("a list");
    let results: Vec<String> = results
        .iter()
        .map(|result| format!("{} {}", result["id"], result["new_id"]))
        .collect();
    assert_eq!(
        results,
        ["1 8", "2 null", "3 9", "4 null", "5 null", "6 null"]
    );
    let new = "SELECT server_id || ' ' || action || ' ' || label || ' ' || requested_by FROM power_requests WHERE id > 7";
    assert_eq!(
        queue.rows(new).await,
        ["a start undo x alice", "c start undo x alice"]
    );
}

#[tokio::test]
async fn a_report_counts_the_newest_request_of_each_server_and_says_why_others_wait() {
    let mut queue = Queue::new().await;
    for server in ["a", "b", "c"] {
        queue.insert(server, &[("label", "'x'")]).await;
    }
    end_all(&queue, |id| if id == 1 { succeeded() } else { failed() }).await;
    queue.insert("b", &[("label", "'x'")]).await;
    end_all(&queue, |_| succeeded()).await;
    queue
        .by_hand("INSERT INTO servers VALUES ('default', 'c', '=cmd|\"x\", y', 'on', 'ACTIVE', '2026-01-01T00:00:00.000Z', NULL, 0)")
        .await;
    for server in ["d", "e"] {
        queue.insert(server, &[("label", "'x'")]).await;
    }
    queue
        .insert("f", &[("label", "'x'"), ("not_before", "'2090-01-01'")])
        .await;
    queue.insert("z", &[("label", "'y'")]).await;
    run(
        queue.path(),
        &["pause", "--label", "x", "--reason", "lunch"],
    );
    let view = json(&run(queue.path(), &["status", "--label", "x", "--json"]));
    for (key, expected) in [
        ("servers", 6),
        ("off", 2),
        ("failed", 1),
        ("queued", 3),
        ("requests", 7),
    ] {
        assert_eq!(view[key], expected, "{key}: {view}");
    }
    assert_eq!(view["not_succeeded"][0]["error_code"], "BMS.0040");
    assert_eq!(view["waiting"][0]["servers"], 2, "{view}");
    assert_eq!(
        view["waiting"][0]["reason"],
        "held: every action with label x on every target paused by alice: lunch"
    );
    assert_eq!(view["expected_end"], Value::Null, "it is not guessed");
    let text = out(&run(queue.path(), &["report", "--label", "x"]));
    for part in [
        "x: 2 off, 1 failed, 3 waiting; servers: 6",
        "not due until 2090-01-01",
        "paused by alice: lunch",
        "expected end: not known",
        "=cmd|",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let csv = out(&run(queue.path(), &["report", "--label", "x", "--csv"]));
    let rows: Vec<&str> = csv.split("\r\n").collect();
    assert_eq!(rows.len(), 8, "a head, six servers, an end: {csv}");
    assert!(
        rows[0].starts_with("server_id,name,target,action,state"),
        "{csv}"
    );
    assert!(
        rows.iter().any(|row| row.starts_with("c,\"'=cmd|\"\"x\"\", y\",default,stop,failed,job,BMS.0040")),
        "{csv}"
    );
    let by = json(&run(
        queue.path(),
        &["report", "--label", "x", "--by", "error", "--json"],
    ));
    assert_eq!(
        by,
        serde_json::json!([
            { "error": "", "state": "queued", "servers": 3 },
            { "error": "", "state": "succeeded", "servers": 2 },
            { "error": "BMS.0040", "state": "failed", "servers": 1 },
        ])
    );
    let nobody = run(queue.path(), &["report", "--label", "nobody"]);
    assert_eq!(nobody.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_label_is_expected_from_what_earlier_jobs_took() {
    let mut scene = Scene::new(QUICK, &[]).await;
    scene.ask(PowerAction::Stop, 1..=3).await;
    scene.outcomes().await;
    scene.daemon.stop().await;
    for number in 4..=6 {
        insert(&mut scene.producer, &scene.yard.server(number), "stop").await;
    }
    let label = "UPDATE power_requests SET label = 'x' WHERE state = 'queued'";
    sqlx::query(label)
        .execute(&mut scene.producer)
        .await
        .expect("labelled");
    let path = scene.yard.database();
    let view = json(&run(&path, &["status", "--label", "x", "--json"]));
    assert!(view["expected_end"].is_string(), "{view}");
    let start = scene.yard.server(1);
    let args = ["enqueue", "start", start.as_str(), "--label", "x"];
    run(&path, &args);
    let view = json(&run(&path, &["status", "--label", "x", "--json"]));
    let why = view["no_expectation"].as_str().unwrap_or_default();
    assert!(why.contains("no start on target default"), "{view}");
}

#[tokio::test]
async fn commands_leave_a_row_with_who_and_why() {
    let mut queue = Queue::new().await;
    for server in ["a", "b", "c"] {
        queue.insert(server, &[("label", "'x'")]).await;
    }
    let path = queue.path().to_owned();
    for (args, code) in [
        (&["pause", "--label", "x", "--reason", "lunch"][..], 0),
        (&["resume", "--label", "x", "--reason", "back"], 0),
        (
            &["approve", "--label", "x", "--yes", "3", "--reason", "ok"],
            0,
        ),
        (&["approve", "--label", "x", "--yes", "3"], 2),
        (&["override", "--label", "x", "--reason", "fire"], 0),
        (&["override", "--label", "none", "--reason", "fire"], 2),
        (&["override", "--label", "x"], 2),
        (&["cancel", "1", "2", "--reason", "wrong rack"], 0),
        (&["cancel", "--label", "x"], 0),
        (
            &[
                "retry",
                "--label",
                "x",
                "--state",
                "cancelled",
                "--reason",
                "right after all",
            ],
            0,
        ),
        (&["db", "release", "--reason", "checked"], 0),
    ] {
        let said = run(&path, args);
        assert_eq!(said.status.code(), Some(code), "{args:?}: {}", all(&said));
    }
    let rows = "SELECT who || ' ' || action || ' ' || what || ' ' || requests || ' ' || ifnull(reason, '-')
        FROM operator_actions ORDER BY id";
    assert_eq!(
        queue.rows(rows).await,
        [
            "alice pause --label x 3 lunch",
            "alice resume --label x 3 back",
            "alice approve --label x 3 ok",
            "alice override --label x 3 fire",
            "alice override --label none 0 fire",
            "alice cancel 1 2 2 wrong rack",
            "alice cancel --label x 1 -",
            "alice retry --label x --state cancelled 3 right after all",
            "alice release the restored copy 0 checked",
        ]
    );
}

/// A queue in which three requests have ended, one of them with two attempts, and one is queued.
async fn with_ended() -> Queue {
    let mut queue = Queue::new().await;
    for server in ["a", "b", "c"] {
        queue.insert(server, &[("label", "'x'")]).await;
    }
    for batch in queue.go(wall()).await {
        queue.give_back(&batch, None, wall()).await;
    }
    end_all(&queue, |id| if id == 1 { succeeded() } else { failed() }).await;
    queue.insert("d", &[]).await;
    run(queue.path(), &["pause", "--reason", "drill"]);
    queue
}

#[tokio::test]
async fn an_export_has_each_outcome_with_its_attempts_and_each_action_once() {
    let queue = with_ended().await;
    let text = out(&run(queue.path(), &["db", "export", "-"]));
    let kinds: Vec<String> = lines(&text)
        .iter()
        .map(|line| {
            let id = line.get("request_id").unwrap_or(&line["id"]);
            format!("{} {id}", line["type"].as_str().unwrap_or_default())
        })
        .collect();
    assert_eq!(
        kinds,
        [
            "outcome 1",
            "attempt 1",
            "attempt 1",
            "outcome 2",
            "attempt 2",
            "attempt 2",
            "outcome 3",
            "attempt 3",
            "attempt 3",
            "action 1"
        ]
    );
    let first = &lines(&text)[0];
    assert_eq!(
        (&first["state"], &first["label"]),
        (&"succeeded".into(), &"x".into())
    );
    assert!(
        first["finished_at"].is_string() && first["attempts"].is_number(),
        "{first}"
    );
    let none = run(queue.path(), &["db", "export", "-", "--until", "1h"]);
    assert_eq!(out(&none), "");
    let bad = run(queue.path(), &["db", "export", "-", "--until", "soon"]);
    assert_eq!(bad.status.code(), Some(2));
    assert!(all(&bad).contains("--until soon"), "{}", all(&bad));

    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("export.jsonl");
    let name = file.to_str().expect("a plain path");
    let done = run(queue.path(), &["db", "export", name]);
    assert!(
        out(&done).contains("wrote 3 outcomes and 1 action"),
        "{}",
        all(&done)
    );
    assert_eq!(fs::read_to_string(&file).expect("readable"), text);
    let mode = fs::metadata(&file).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for (name, code) in [
        ("/dev/null", 2),
        (queue.path().to_str().expect("a plain path"), 2),
        ("/nonexistent/export.jsonl", 3),
    ] {
        let said = run(queue.path(), &["db", "export", name]);
        assert_eq!(said.status.code(), Some(code), "{name}: {}", all(&said));
    }
    let full = std::process::Command::new("sh")
        .args(["-c", "\"$0\" db export - --database \"$1\" > /dev/full"])
        .arg(env!("CARGO_BIN_EXE_poweryard"))
        .arg(queue.path())
        .status()
        .expect("it runs");
    assert_eq!(full.code(), Some(1), "stdout on a full disk");
}

#[tokio::test]
async fn an_export_is_written_in_chunks_and_lacks_nobody() {
    let mut queue = Queue::new().await;
    queue
        .sql(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1201)
             INSERT INTO power_requests (server_id, action) SELECT 's' || i, 'stop' FROM n;
             UPDATE power_requests SET state = 'cancelled'",
        )
        .await;
    let text = out(&run(queue.path(), &["db", "export", "-"]));
    assert_eq!(lines(&text).len(), 1201);
}

#[tokio::test]
async fn what_db_prune_deletes_is_written_down_first() {
    let mut queue = with_ended().await;
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().display();
    queue
        .by_hand(&format!(
            "INSERT INTO upkeep (id, export_dir) VALUES (1, '{folder}')"
        ))
        .await;
    // It cannot be written: nothing is deleted.
    let missing = format!("UPDATE upkeep SET export_dir = '{folder}/missing'");
    queue.by_hand(&missing).await;
    let said = run(queue.path(), &["db", "prune", "--older-than", "0s"]);
    assert_eq!(said.status.code(), Some(3), "{}", all(&said));
    assert!(all(&said).contains("/missing/poweryard-"), "{}", all(&said));
    assert_eq!(queue.row("SELECT count(*) FROM power_requests").await, "4");

    queue
        .by_hand(&format!("UPDATE upkeep SET export_dir = '{folder}'"))
        .await;
    let said = run(queue.path(), &["db", "prune", "--older-than", "0s"]);
    assert!(
        out(&said).starts_with("deleted 3 requests") && out(&said).contains("were written to"),
        "{}",
        all(&said)
    );
    assert_eq!(
        queue
            .row("SELECT group_concat(id) FROM power_requests")
            .await,
        "4"
    );
    let files: Vec<_> = fs::read_dir(dir.path()).expect("readable").collect();
    assert_eq!(files.len(), 1);
    let file = files[0].as_ref().expect("a file").path();
    let written = lines(&fs::read_to_string(file).expect("readable"));
    let count = |kind: &str| written.iter().filter(|line| line["type"] == kind).count();
    assert_eq!((count("outcome"), count("attempt")), (3, 6));
}

#[tokio::test]
async fn a_prune_deletes_only_what_was_written() {
    let mut queue = with_ended().await;
    let later = wall() + HOUR;
    let exported = queue
        .store
        .before_prune(&Prune::default(), later, later)
        .await
        .expect("readable");
    assert_eq!(lines(&exported.lines).len(), 9);
    // A crash after it was written: it is written once more, and nothing is lost.
    let dir = tempfile::tempdir().expect("a folder");
    for _ in 0..2 {
        write_export(dir.path(), &exported, later).expect("written");
    }
    let files: Vec<_> = fs::read_dir(dir.path()).expect("readable").collect();
    let file = files[0].as_ref().expect("a file").path();
    assert_eq!(
        lines(&fs::read_to_string(file).expect("readable")).len(),
        18
    );
    // One more has ended by now, and is not in the file.
    queue
        .sql("UPDATE power_requests SET state = 'cancelled' WHERE id = 4")
        .await;
    let pruned = queue
        .store
        .prune_exported(Prune::default(), later, &exported, later)
        .await
        .expect("pruned");
    assert_eq!(pruned.requests, 3);
    assert_eq!(
        queue
            .row("SELECT group_concat(id) FROM power_requests")
            .await,
        "4"
    );
    // Attempts of requests that somebody else has deleted are written, too.
    run(queue.path(), &["resume", "--all"]);
    queue.insert("e", &[]).await;
    for batch in queue.go(wall()).await {
        queue.give_back(&batch, None, wall()).await;
    }
    end_all(&queue, |_| failed()).await;
    queue.sql("DELETE FROM power_requests").await;
    let mut prune = Prune::default();
    let mut written = String::new();
    while !prune.done {
        let exported = queue
            .store
            .before_prune(&prune, later, later)
            .await
            .expect("readable");
        written.push_str(&exported.lines);
        let next = queue
            .store
            .prune_exported(prune, later, &exported, later)
            .await;
        prune = next.expect("pruned");
    }
    assert_eq!(lines(&written).len(), 1, "{written}");
    assert_eq!(
        queue.row("SELECT count(*) FROM earlier_attempts").await,
        "0"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_writes_down_what_it_deletes_and_waits_while_it_cannot() {
    let yard = Yard::new(QUICK).await;
    let mut settings = yard.settings();
    let daemon = yard.start_with(settings.clone());
    let mut producer = yard.producer().await;
    for number in 1..=5 {
        insert(&mut producer, &yard.server(number), "stop").await;
    }
    assert_eq!(outcomes(&mut producer).await, "5 succeeded/job");
    daemon.stop().await;
    let folder = yard.dir.path().join("export");
    settings.queue.retention = Some(Duration::from_millis(1));
    settings.queue.export_before_prune = Some(folder.clone());
    let daemon = yard.start_with(settings.clone());
    let failing = "SELECT export_error LIKE '%poweryard-%' FROM upkeep";
    wait_for(&mut producer, failing, "1").await;
    assert_eq!(
        text(&mut producer, "SELECT count(*) FROM power_requests").await,
        "5"
    );
    let status = run(&yard.database(), &["status"]);
    assert!(
        out(&status).contains("old requests are not deleted"),
        "{}",
        all(&status)
    );
    daemon.stop().await;
    // The folder is there now: the next start does it.
    fs::create_dir(&folder).expect("made");
    let daemon = yard.start_with(settings);
    wait_for(&mut producer, "SELECT count(*) FROM power_requests", "0").await;
    assert_eq!(
        text(&mut producer, "SELECT export_error IS NULL FROM upkeep").await,
        "1"
    );
    let files: Vec<_> = fs::read_dir(&folder).expect("readable").collect();
    let file = files[0].as_ref().expect("a file").path();
    let written = lines(&fs::read_to_string(file).expect("readable"));
    assert_eq!(
        written
            .iter()
            .filter(|line| line["type"] == "outcome")
            .count(),
        5
    );
    drop(producer);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reason_given_to_many_calls_at_once_is_one_row() {
    let freeze = "window = { freeze = [\"2026-01-01..2098-12-31\"] }";
    let mut scene = Scene::new(QUICK, &[freeze, "batch_servers_max = 10"]).await;
    let path = scene.yard.database();
    let servers = scene.yard.servers(30);
    let mut args = vec!["enqueue", "stop", "--override-reason", "fire"];
    args.extend(servers.iter().map(String::as_str));
    assert_eq!(ids(&run(&path, &args)).len(), 30);
    assert_eq!(scene.outcomes().await, "30 succeeded/job");
    assert!(scene.submits() >= 3);
    let rows = "SELECT group_concat(who || ' ' || what || ' ' || requests) FROM operator_actions";
    assert_eq!(scene.text(rows).await, "alice 1-30 30");
    scene.daemon.stop().await;
}

#[tokio::test]
async fn check_finds_a_folder_that_is_not_there() {
    let yard = Yard::new(QUICK).await;
    let config = yard.write_config();
    let folder = yard.dir.path().join("export");
    let line = format!("[queue]\nexport_before_prune = \"{}\"\n", folder.display());
    let text = fs::read_to_string(&config).expect("readable");
    fs::write(&config, text.replacen("[queue]\n", &line, 1)).expect("written");
    let check = || {
        let said = poweryard()
            .arg("--config")
            .arg(&config)
            .args(["check", "--json"])
            .output();
        let findings = json(&said.expect("it runs"));
        let mut findings = findings.as_array().expect("a list").clone();
        findings.retain(|finding| finding["subject"] == folder.display().to_string());
        findings
    };
    assert_eq!(check()[0]["level"], "error");
    fs::create_dir(&folder).expect("made");
    assert_eq!(check()[0]["level"], "ok");
}
