//! Guards: how many requests may leave that nobody has approved, and what an approval lets go.

use std::process::Output;

use crate::common::process::{poweryard, said};
use crate::common::queue::{self, Queue, origin, wall};
use crate::common::scene::{Scene, fault};
use crate::common::{Yard, insert, insert_many, reload, sql};
use poweryard::model::PowerAction::{Reboot, Start, Stop};
use poweryard::model::{Batch, Lane};
use poweryard::settings::Settings;
use poweryard::store::client::{Access, Actor, Approval, Selection};
use poweryard::store::{Claim, GuardLimit, QueueClient, Which};

const QUICK: &str = "[bms]\nservers = 40\nrunning = 1.0\noperation_ms = [10, 50]\n";
const HELD: &str = "SELECT group_concat(action) FROM holds WHERE kind = 'approval'";
const REASON: &str = "SELECT reason FROM holds WHERE kind = 'approval'";
const DONE: &str = "SELECT count(*) FROM power_requests WHERE state = 'succeeded'";
const QUEUED: &str = "SELECT count(*) FROM power_requests WHERE state = 'queued'";

async fn guarded(guard: &str) -> Scene {
    Scene::new(QUICK, &[&format!("guard = {{ stop = \"{guard}\" }}")]).await
}

/// `approve` with these arguments.
async fn approve(scene: &Scene, args: &[&str]) -> Output {
    let mut command = poweryard();
    command
        .arg("approve")
        .args(args)
        .arg("--database")
        .arg(scene.yard.database());
    tokio::task::spawn_blocking(move || command.output())
        .await
        .expect("joined")
        .expect("it runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_rows_wait_until_exactly_those_are_approved() {
    let many = "[bms]\nservers = 10000\nrunning = 1.0\noperation_ms = [10, 50]\n";
    let mut scene = Scene::new(many, &["guard = { stop = \"200/1h\" }"]).await;
    let servers = scene.yard.cloud.server_ids(scene.yard.service);
    let servers: Vec<String> = servers.into_iter().map(|server| server.0).collect();
    insert_many(&mut scene.producer, &servers, "stop").await;
    sql(
        &mut scene.producer,
        "UPDATE power_requests SET label = 'evac' WHERE id > 9000",
    )
    .await;
    scene.wait_for(HELD, "stop").await;
    scene.a_round_passes().await;
    assert_eq!(scene.submits(), 0, "nothing has left");
    let said_all =
        "SELECT reason LIKE '10000 requests to stop, more than guard stop = \"200/1h\" lets go%'
                            AND reason LIKE '%evac%' FROM holds WHERE kind = 'approval'";
    scene.wait_for(said_all, "1").await;
    let reason = scene.text(REASON).await;
    assert!(
        reason.contains("9000 without a label, 1000 with label evac"),
        "{reason}"
    );
    assert!(
        reason.contains("`poweryard approve --target default --action stop`"),
        "{reason}"
    );

    let done = approve(&scene, &["--label", "evac", "--yes", "1000"]).await;
    assert!(done.status.success(), "{}", said(&done));
    // Rows that come later under the same label are not approved with it.
    sql(
        &mut scene.producer,
        "INSERT INTO power_requests (server_id, action, label) VALUES ('late', 'stop', 'evac')",
    )
    .await;
    let ended = "SELECT count(*) FROM power_requests WHERE state = 'succeeded' AND label = 'evac' AND approved_by = 'alice'";
    scene.wait_for(ended, "1000").await;
    scene.a_round_passes().await;
    assert_eq!(scene.carried_out(), 1000);
    assert_eq!(scene.text(QUEUED).await, "9001");
    let noted =
        "SELECT who || '|' || action || '|' || what || '|' || requests FROM operator_actions";
    assert_eq!(scene.text(noted).await, "alice|approve|--label evac|1000");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_by_one_they_go_until_the_number_is_reached() {
    let mut scene = guarded("3/1h").await;
    for number in 1..=3 {
        scene.ask(Stop, [number]).await;
        scene.wait_for(DONE, &number.to_string()).await;
    }
    scene.ask(Stop, [4]).await;
    scene.wait_for(HELD, "stop").await;
    let reason = scene.text("SELECT reason FROM power_waiting").await;
    assert!(
        reason.starts_with(
            "held: 1 request to stop after 3 in the last 1h, more than guard stop = \"3/1h\""
        ),
        "{reason}"
    );
    // A guard is about its action only.
    scene.ask(Reboot, [5]).await;
    scene
        .wait_for(
            "SELECT state FROM power_requests WHERE action = 'reboot'",
            "succeeded",
        )
        .await;
    sql(
        &mut scene.producer,
        "UPDATE power_requests SET approved_by = 'bob' WHERE state = 'queued'",
    )
    .await;
    assert_eq!(scene.outcomes().await, "5 succeeded/job");
    scene.wait_for(HELD, "").await;
    // What was approved does not count: nor does it free anything.
    scene.ask(Stop, [6]).await;
    scene.wait_for(HELD, "stop").await;
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_span_rolls_and_frees_them_without_anybody() {
    let mut scene = guarded("2/2s").await;
    scene.ask(Stop, [1, 2]).await;
    assert_eq!(scene.outcomes().await, "2 succeeded/job");
    scene.ask(Stop, [3]).await;
    assert_eq!(scene.outcomes().await, "3 succeeded/job");
    let most_in_a_span = "SELECT max((SELECT sum(b.server_count) FROM batches b WHERE b.intent_at >= a.intent_at
                              AND julianday(b.intent_at) - julianday(a.intent_at) < 1.999 / 86400)) FROM batches a";
    assert_eq!(scene.text(most_in_a_span).await, "2");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_that_is_taken_back_holds_them_again() {
    let mut scene = guarded("2/1h").await;
    scene.command(&["pause"]).await;
    scene.ask(Stop, 1..=3).await;
    // Whatever else holds them.
    scene.wait_for(HELD, "stop").await;
    sql(
        &mut scene.producer,
        "UPDATE power_requests SET approved_by = 'bob'",
    )
    .await;
    scene.wait_for(HELD, "").await;
    sql(
        &mut scene.producer,
        "UPDATE power_requests SET approved_by = NULL",
    )
    .await;
    scene.wait_for(HELD, "stop").await;
    scene.command(&["resume"]).await;
    scene.a_round_passes().await;
    assert_eq!(scene.submits(), 0);
    sql(
        &mut scene.producer,
        "UPDATE power_requests SET state = 'cancelled' WHERE id = 1",
    )
    .await;
    // Two may leave.
    scene.wait_for(DONE, "2").await;
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_changes_nothing_and_a_reload_adds_or_removes_guards() {
    let mut scene = guarded("2/1h").await;
    scene.ask(Stop, 1..=3).await;
    scene.wait_for(HELD, "stop").await;
    let since = scene.text("SELECT since FROM holds").await;
    scene.daemon.stop().await;
    let (reloads, daemon) = scene.yard.start_reloading(scene.yard.settings());
    scene.daemon = daemon;
    scene.a_round_passes().await;
    assert_eq!(
        scene
            .text("SELECT since FROM holds WHERE kind = 'approval'")
            .await,
        since
    );
    assert_eq!(scene.submits(), 0);
    let without = |settings: &Settings| {
        let mut settings = settings.clone();
        settings.targets[0].guards.clear();
        settings
    };
    let with = scene.yard.settings();
    assert!(reload(&reloads, without(&with)).await);
    scene.wait_for(DONE, "3").await;
    scene.wait_for(HELD, "").await;
    assert!(reload(&reloads, with).await);
    scene.ask(Stop, [4]).await;
    scene.wait_for(HELD, "stop").await;
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_try_again_is_no_new_request_and_retry_inserts_unapproved_ones() {
    // The first call is lost and not carried out.
    let lost = fault(
        "error_before",
        "on = [\"submit\"]\ncalls = [1]\nstatus = 500",
    );
    let mut scene = Scene::new(&format!("{QUICK}{lost}"), &["guard = { stop = \"3/1h\" }"]).await;
    scene.ask(Stop, 1..=3).await;
    assert_eq!(
        scene.outcomes().await,
        "3 succeeded/job",
        "each was counted once"
    );
    scene.command(&["retry", "2", "--state", "succeeded"]).await;
    scene.wait_for(HELD, "stop").await;
    assert_eq!(
        scene
            .text("SELECT count(*) FROM power_requests WHERE approved_by IS NULL")
            .await,
        "4"
    );
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn protected_rows_do_not_count_and_a_budget_still_rations_approved_ones() {
    let mut yard = Yard::new(QUICK).await;
    let protected = yard.server(1);
    yard.set("guard = { stop = \"3/1h\" }");
    yard.set("budget = { stop = \"4/1h\" }");
    yard.target_lines
        .push_str(&format!("protect = {{ servers = [\"{protected}\"] }}\n"));
    let daemon = yard.start();
    let producer = yard.producer().await;
    let mut scene = Scene {
        yard,
        daemon,
        producer,
    };
    scene.ask(Stop, 1..=4).await;
    assert_eq!(
        scene.outcomes().await,
        "1 rejected/none/poweryard.protected, 3 succeeded/job"
    );
    scene.ask(Stop, 5..=8).await;
    scene.wait_for(HELD, "stop").await;
    sql(
        &mut scene.producer,
        "UPDATE power_requests SET approved_by = 'bob' WHERE state = 'queued'",
    )
    .await;
    scene
        .wait_for("SELECT group_concat(kind) FROM holds", "budget")
        .await;
    scene.wait_for(DONE, "4").await;
    assert_eq!(scene.text(QUEUED).await, "3");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_refused_batch_keep_their_approval() {
    let locked = fault("locked", "servers = [3]");
    let mut scene = Scene::new(
        &format!("{QUICK}{locked}"),
        &["guard = { stop = \"2/1h\" }"],
    )
    .await;
    scene.ask(Stop, 1..=6).await;
    scene.wait_for(HELD, "stop").await;
    let done = approve(
        &scene,
        &["--target", "default", "--action", "stop", "--yes", "6"],
    )
    .await;
    assert!(done.status.success(), "{}", said(&done));
    let outcomes = scene.outcomes().await;
    assert!(outcomes.ends_with("5 succeeded/job"), "{outcomes}");
    assert_eq!(
        scene
            .text("SELECT count(*) FROM batches WHERE approved = 0")
            .await,
        "0"
    );
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_behind_another_of_their_server_are_due_too() {
    let mut scene = guarded("2/1h").await;
    scene.command(&["pause"]).await;
    // Three stops for one server, a start for another.
    let servers = vec![scene.yard.server(1); 3];
    insert_many(&mut scene.producer, &servers, "stop").await;
    let other = scene.yard.server(2);
    insert(&mut scene.producer, &other, "start").await;
    scene.wait_for(HELD, "stop").await;
    scene.command(&["resume"]).await;
    scene
        .wait_for(
            "SELECT state FROM power_requests WHERE action = 'start'",
            "succeeded",
        )
        .await;
    let done = approve(&scene, &["1", "--yes", "1"]).await;
    assert!(done.status.success(), "{}", said(&done));
    // Two unapproved ones are left; those go.
    let ended = scene.outcomes().await;
    assert_eq!(ended, "3 succeeded/already, 1 succeeded/job");
    scene.daemon.stop().await;
    assert_eq!(scene.yard.cloud.ledger().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_due_yet_is_not_counted_but_can_be_approved() {
    let mut scene = guarded("1/1h").await;
    sql(
        &mut scene.producer,
        "INSERT INTO power_requests (server_id, action, label, not_before) VALUES
             ('a', 'stop', 'night', '2090-01-01'), ('b', 'stop', 'night', '2090-01-01')",
    )
    .await;
    scene.a_round_passes().await;
    assert_eq!(scene.text(HELD).await, "");
    let done = approve(&scene, &["--label", "night", "--yes", "2"]).await;
    assert!(done.status.success(), "{}", said(&done));
    assert_eq!(
        scene
            .text("SELECT count(*) FROM power_requests WHERE approved_by = 'alice'")
            .await,
        "2"
    );
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_and_status_say_who_is_held_and_which_command_approves() {
    let mut scene = guarded("1/1h").await;
    scene.ask(Stop, [1, 2]).await;
    scene.wait_for(HELD, "stop").await;
    let mut explain = poweryard();
    explain
        .args(["explain", "2", "--database"])
        .arg(scene.yard.database());
    let explain = said(&explain.output().expect("it runs"));
    assert!(
        explain.contains("`poweryard approve 2 --yes 1` approves this one alone"),
        "{explain}"
    );
    let mut status = poweryard();
    status
        .args(["status", "--database"])
        .arg(scene.yard.database());
    let status = said(&status.output().expect("it runs"));
    assert!(
        status.contains("approval") && status.contains("poweryard approve"),
        "{status}"
    );
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_number_no_terminal_or_nothing_to_approve_is_exit_2() {
    let mut scene = guarded("1/1h").await;
    scene.command(&["pause"]).await;
    scene.ask(Stop, 1..=3).await;
    for (args, words) in [
        (&["--label", "none", "--yes", "0"][..], "nothing to approve"),
        (
            &["--target", "default", "--action", "stop", "--yes", "2"],
            "3 requests are waiting",
        ),
        (&["--target", "default", "--action", "stop"], "--yes 3"),
        (&["1", "99", "--yes", "1"], "99"),
        (&["--target", "default", "--yes", "3"], "--action"),
        (&["--yes", "3"], "required"),
        (&["1", "--label", "x", "--yes", "1"], "cannot be used with"),
    ] {
        let done = approve(&scene, args).await;
        assert_eq!(done.status.code(), Some(2), "{args:?}: {}", said(&done));
        assert!(said(&done).contains(words), "{args:?}: {}", said(&done));
    }
    let touched = "SELECT count(*) FROM power_requests WHERE approved_by IS NOT NULL";
    assert_eq!(scene.text(touched).await, "0");
    assert_eq!(
        scene
            .text("SELECT count(*) FROM operator_actions WHERE action = 'approve'")
            .await,
        "0"
    );
    scene.daemon.stop().await;
}

async fn claim_guarded(queue: &Queue, lane: &Lane, guard: &GuardLimit) -> Option<Batch> {
    let claim = Claim {
        lane,
        origin: &origin(),
        which: Which::First(10),
        barred: &[],
        guard: Some(guard),
        now: wall(),
    };
    queue.store.claim(&claim).await.expect("no failure")
}

#[tokio::test]
async fn rows_that_arrive_between_plan_and_claim_do_not_slip_through() {
    let mut queue = Queue::new().await;
    queue.insert("a", &[]).await;
    let lane = queue.lanes().await[0].clone();
    queue.insert("b", &[]).await;
    let limit = |due_max, counted| GuardLimit { due_max, counted };
    let one = limit(1, Vec::new());
    let claim = async |queue: &Queue, guard: &GuardLimit| {
        let batch = claim_guarded(queue, &lane, guard).await;
        batch.map(|batch| batch.members.len())
    };
    assert_eq!(claim(&queue, &one).await, None);
    assert_eq!(queue.row("SELECT count(*) FROM batches").await, "0");
    assert_eq!(claim(&queue, &limit(2, Vec::new())).await, Some(2));
}

#[tokio::test]
async fn an_approved_lane_is_no_business_of_the_guard() {
    let mut queue = Queue::new().await;
    let approved = queue.insert("a", &[]).await;
    queue.insert("b", &[]).await;
    queue
        .sql(&format!(
            "UPDATE power_requests SET approved_by = 'alice' WHERE id = {approved}"
        ))
        .await;
    let none = GuardLimit {
        due_max: 0,
        counted: Vec::new(),
    };
    let mut claimed = Vec::new();
    for lane in queue.lanes().await {
        claimed.extend(claim_guarded(&queue, &lane, &none).await);
    }
    assert_eq!(queue::ids(&claimed), [approved]);
    assert_eq!(queue.row("SELECT approved FROM batches").await, "1");
}

#[tokio::test]
async fn a_hundred_thousand_requests_are_approved_at_once() {
    let mut queue = Queue::new().await;
    queue
        .sql(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
             INSERT INTO power_requests (server_id, action, label) SELECT 'server-' || i, 'stop', 'all' FROM n",
        )
        .await;
    let mut command = poweryard();
    command
        .args(["approve", "--label", "all", "--yes", "100000", "--database"])
        .arg(queue.path());
    let done = command.output().expect("it runs");
    assert!(done.status.success(), "{}", said(&done));
    assert!(
        said(&done).contains("100000 requests, in at least 100 calls"),
        "{}",
        said(&done)
    );
    let approved =
        "SELECT count(*) FROM power_requests WHERE approved_by = 'alice' AND gate = 'ready'";
    assert_eq!(queue.row(approved).await, "100000");
}

#[tokio::test]
async fn what_comes_after_it_was_shown_is_not_approved_with_it() {
    let mut queue = Queue::new().await;
    let label = [("label", "'evac'")];
    let first = queue.insert("a", &label).await;
    queue.insert("b", &label).await;
    let mut client = QueueClient::open(queue.path(), Access::Write)
        .await
        .expect("a queue");
    let which = Selection::of_label("evac");
    let seen = client.unapproved(&which).await.expect("readable");
    let late = queue.insert("c", &label).await;
    let by = Actor {
        who: "alice",
        reason: None,
    };
    let done = client.approve(by, &which, &seen).await.expect("approved");
    let Approval::Done(done) = done else {
        panic!("{done:?}");
    };
    assert_eq!(done.done, 2);
    let unapproved = "SELECT group_concat(id) FROM power_requests WHERE approved_by IS NULL";
    assert_eq!(queue.row(unapproved).await, late.to_string());

    // One that was shown and has gone since: nothing is approved.
    let all = Selection::of_ids(vec![first, late]);
    queue
        .sql("UPDATE power_requests SET approved_by = NULL")
        .await;
    let seen = client.unapproved(&all).await.expect("readable");
    queue
        .sql(&format!(
            "UPDATE power_requests SET state = 'cancelled' WHERE id = {first}"
        ))
        .await;
    let done = client.approve(by, &all, &seen).await;
    assert_eq!(done.expect("no failure"), Approval::Another(1));
    assert_eq!(
        queue
            .row("SELECT count(*) FROM power_requests WHERE approved_by IS NOT NULL")
            .await,
        "0"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_is_guarded_where_the_config_says_so() {
    let mut scene = Scene::new(QUICK, &["guard = { start = \"1/1h\" }"]).await;
    scene.ask(Start, [1, 2]).await;
    scene.wait_for(HELD, "start").await;
    scene.daemon.stop().await;
}
