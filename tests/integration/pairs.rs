//! Budgets, guards, waves and windows beside everything else that can happen to a request: each pair
//! that can meet, by real rows, a real daemon and the simulated cloud. Which test covers which pair;
//! those without a file are here, and `torture` draws all of them together.
//!
//! | | budget | guard | wave | window |
//! | --- | --- | --- | --- | --- |
//! | protection | `what_is_protected_is_rejected_whatever_holds_it` | guard: `protected_rows_do_not_count…` | waves: `a_protected_server_is_neither…` | `what_is_protected…` |
//! | order per server | `those_behind_what_is_held_wait…` | guard: `those_behind_another_of_their_server…` | waves: `a_power_cycle_is_never_cut_in_half` | `those_behind_what_is_held_wait…` |
//! | retries | `a_try_again_is_rationed…` | guard: `a_try_again_is_no_new_request…` | waves: `a_retry_leaves_at_once…` | `a_try_again_waits_for_its_window` |
//! | splits | neighbours: `a_refused_batch_frees_its_budget…` | guard: `parts_of_a_refused_batch_keep…` | waves: `a_refused_batch_is_split…` | `parts_of_a_refused_batch_wait…` |
//! | dry run | `a_dry_run_sends_nothing_of_what_is_held` (all four) | | | |
//! | after_id | `what_waits_for_a_held_request…` | guard: `what_is_not_due_yet_is_not_counted…` | waves: `a_request_that_waits_for_one_of_a_later_wave…` | `what_waits_for_a_held_request…` |
//! | cancel | `a_cancel_of_what_is_held_frees…` | `a_cancel_of_what_is_held_frees…` | `a_cancel_of_what_is_held_frees…` | `a_cancel_of_what_is_held_frees…` |
//! | expiry | `what_is_held_expires_in_time` | `what_is_held_expires_in_time` | waves: `requests_of_an_order_expire…` | `what_is_held_expires_in_time` |
//! | reload | `a_reload_frees_what_it_no_longer_holds` | guard: `a_restart_changes_nothing_and_a_reload…` | waves: `a_reload_in_the_middle…` | windows: `a_reload_opens_and_closes…` |
//! | kill -9 | `a_kill_lets_nothing_go_that_is_held` | `a_kill_lets_nothing_go…` | waves: `a_kill_at_any_moment…` | `a_kill_lets_nothing_go…` |
//! | budget | limits | guard: `protected_rows…a_budget_still_rations…` | waves: `a_budget_rations_a_wave…` | `a_closed_window_spends_no_budget` |
//! | guard | | guard | waves: `a_guard_counts_all_of_an_order…` | windows: `a_guard_asks_by_day…` |
//! | wave | | | waves | waves: `an_order_waits_for_its_window…` |
//! | pause of a label | `a_pause_of_a_label_holds_beside_all_others` (all four) | | | |
//!
//! Approval and cancel of very many are here too: they let others have the lock in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::common::process::{Daemon, poweryard};
use crate::common::queue::{Queue, wall};
use crate::common::scene::fault;
use crate::common::{self, PATIENCE, Running, Yard, outcomes, reload, sql, text, wait_for};
use poweryard::daemon::{self, Dispatcher, Reload};
use poweryard::model::{OperatorAction, RequestState, UtcMillis};
use poweryard::store::client::{Access, Actor, Approval, Selection};
use poweryard::store::{NewWave, QueueClient, Store, StoreOptions};
use sqlx::SqliteConnection;
use tokio::sync::mpsc;

const QUICK: &str = "[bms]\nservers = 40\nrunning = 1.0\noperation_ms = [10, 50]\n";
const BUDGET: &str = "budget = { stop = \"1/1h\" }";
const GUARD: &str = "guard = { stop = \"1/1h\" }";
const KINDS: &str =
    "SELECT group_concat(kind) FROM (SELECT DISTINCT kind FROM holds ORDER BY kind)";
const SENT: &str = "SELECT count(*) FROM power_requests WHERE submitted_at IS NOT NULL";

/// A day before and after today: nothing is stopped or rebooted.
fn frozen() -> String {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("a clock after 1970");
    let now = UtcMillis(i64::try_from(now.as_millis()).expect("a clock before the year 2099"));
    let day = Duration::from_secs(86_400);
    let date = |at: UtcMillis| at.to_string()[..10].to_owned();
    let (first, last) = (date(now.before(day)), date(now + day));
    format!("window = {{ freeze = [\"{first}..{last}\"] }}")
}

/// A daemon with settings that can be changed, and a producer.
struct Place {
    yard: Yard,
    reloads: mpsc::Sender<Reload>,
    daemon: Running,
    producer: SqliteConnection,
}

impl Place {
    async fn new(scenario: &str, lines: &[&str]) -> Self {
        let mut yard = Yard::new(scenario).await;
        lines.iter().for_each(|line| yard.set(line));
        let (reloads, daemon) = yard.start_reloading(yard.settings());
        let producer = yard.producer().await;
        Self {
            yard,
            reloads,
            daemon,
            producer,
        }
    }

    async fn sql(&mut self, statement: &str) {
        sql(&mut self.producer, statement).await;
    }

    async fn text(&mut self, statement: &str) -> String {
        text(&mut self.producer, statement).await
    }

    async fn wait_for(&mut self, statement: &str, wanted: &str) {
        wait_for(&mut self.producer, statement, wanted).await;
    }

    /// One request for the server with this number; its id.
    async fn ask(&mut self, action: &str, number: usize, more: (&str, &str)) -> i64 {
        let server = self.yard.server(number);
        let (columns, values) = more;
        let statement = format!(
            "INSERT INTO power_requests (server_id, action{columns}) VALUES ('{server}', '{action}'{values})"
        );
        self.sql(&statement).await;
        let id = self.text("SELECT max(id) FROM power_requests").await;
        id.parse().expect("an id")
    }

    async fn stop(&mut self, number: usize) -> i64 {
        self.ask("stop", number, ("", "")).await
    }

    async fn reason(&mut self, id: i64) -> String {
        let reason = format!("SELECT reason FROM power_waiting WHERE id = {id}");
        self.text(&reason).await
    }

    async fn wait_until_held(&mut self, id: i64, by: &str) {
        let is_held =
            format!("SELECT reason LIKE 'held: %{by}%' FROM power_waiting WHERE id = {id}");
        self.wait_for(&is_held, "1").await;
    }

    async fn wait_for_state(&mut self, id: i64, state: &str) {
        let now = format!("SELECT state FROM power_requests WHERE id = {id}");
        self.wait_for(&now, state).await;
    }

    /// Sets a line of the target anew; an empty value takes it away.
    async fn change(&mut self, line: &str) {
        self.yard.set(line);
        let settings = self.yard.settings();
        assert!(reload(&self.reloads, settings).await, "accepted");
    }

    async fn outcomes(&mut self) -> String {
        outcomes(&mut self.producer).await
    }

    async fn end(self) {
        self.daemon.stop().await;
    }
}

/// The things that hold a stop of server 2, each with a line of the config and a word of its reason.
/// Where a number has to be used up, server 1 does that.
fn holding() -> [(&'static str, String, &'static str); 3] {
    [
        ("budget", BUDGET.to_owned(), "is used up"),
        ("approval", GUARD.to_owned(), "more than guard"),
        ("window", frozen(), "is frozen"),
    ]
}

/// A place at which stops are held from now on.
async fn held_place(kind: &str, line: &str) -> Place {
    let mut place = Place::new(QUICK, &[line]).await;
    if kind != "window" {
        let first = place.stop(1).await;
        place.wait_for_state(first, "succeeded").await;
    }
    place
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_protected_is_rejected_whatever_holds_it() {
    for (kind, line, word) in holding() {
        let mut place = held_place(kind, &line).await;
        let protected = place.yard.server(3);
        place
            .change(&format!("protect = {{ servers = [\"{protected}\"] }}"))
            .await;
        let held = place.stop(2).await;
        place.wait_until_held(held, word).await;
        let rejected = place.stop(3).await;
        place.wait_for_state(rejected, "rejected").await;
        assert_eq!(place.text(KINDS).await, kind);
        place.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_behind_what_is_held_wait_and_go_after_it() {
    for (kind, line, word) in holding() {
        let mut place = held_place(kind, &line).await;
        let stop = place.stop(2).await;
        place.wait_until_held(stop, word).await;
        // Starts are not held, but this one is for the same server.
        let start = place.ask("start", 2, ("", "")).await;
        let other = place.ask("start", 3, ("", "")).await;
        place.wait_for_state(other, "succeeded").await;
        assert_eq!(place.reason(start).await, format!("behind request {stop}"));
        let free = match kind {
            "approval" => "UPDATE power_requests SET approved_by = 'bob' WHERE state = 'queued'",
            _ => "UPDATE power_requests SET override_reason = 'a leak' WHERE state = 'queued'",
        };
        place.sql(free).await;
        if kind == "budget" {
            place.change("budget = { stop = \"9/1h\" }").await;
        }
        place.wait_for_state(start, "succeeded").await;
        let order = "SELECT group_concat(action) FROM (SELECT action FROM power_requests WHERE server_id = ";
        let server = place.yard.server(2);
        let order = format!("{order}'{server}' ORDER BY submitted_at)");
        assert_eq!(place.text(&order).await, "stop,start");
        place.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_try_again_waits_for_its_window() {
    // What the first call carries is lost and not carried out; its loss is found out by looks.
    let lost = fault(
        "error_before",
        "on = [\"submit\"]\ncalls = [1]\nstatus = 500",
    );
    let mut place = Place::new(&format!("{QUICK}{lost}"), &[]).await;
    let stop = place.stop(1).await;
    place.wait_for("SELECT state FROM batches", "looking").await;
    place.change(&frozen()).await;
    place.wait_until_held(stop, "is frozen").await;
    assert_eq!(place.text("SELECT count(*) FROM batches").await, "1");
    place.change("window = {}").await;
    assert_eq!(place.outcomes().await, "1 succeeded/job");
    assert_eq!(place.text("SELECT count(*) FROM batches").await, "2");
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_try_again_is_rationed_by_the_budget() {
    let lost = fault(
        "error_before",
        "on = [\"submit\"]\ncalls = [1]\nstatus = 500",
    );
    let mut place = Place::new(&format!("{QUICK}{lost}"), &[BUDGET]).await;
    let stop = place.stop(1).await;
    // The lost call may have had an effect: it is spent.
    place.wait_until_held(stop, "is used up").await;
    assert_eq!(place.text("SELECT count(*) FROM batches").await, "1");
    place.change("budget = { stop = \"2/1h\" }").await;
    assert_eq!(place.outcomes().await, "1 succeeded/job");
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_refused_batch_wait_for_their_window() {
    let refused = fault(
        "refuse",
        "on = [\"submit\"]\ncalls = [1]\nstatus = 400\ncode = \"BMS.0018\"\nmessage = \"no\"",
    );
    let scenario = format!("[latency]\nsubmit_ms = [600, 600]\n{QUICK}{refused}");
    let mut place = Place::new(&scenario, &[]).await;
    let servers = place.yard.servers(6);
    common::insert_many(&mut place.producer, &servers, "stop").await;
    place
        .wait_for("SELECT state FROM batches", "submitting")
        .await;
    place.change(&frozen()).await;
    place
        .wait_for(
            "SELECT count(*) FROM power_waiting WHERE reason LIKE 'held: %is frozen%'",
            "6",
        )
        .await;
    assert_eq!(place.text("SELECT count(*) FROM batches").await, "1");
    place.change("window = {}").await;
    assert_eq!(place.outcomes().await, "6 succeeded/job");
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_held_request_waits_too() {
    for (kind, line, word) in holding() {
        let mut place = held_place(kind, &line).await;
        let stop = place.stop(2).await;
        let after = format!(", {stop}");
        let start = place.ask("start", 3, (", after_id", &after)).await;
        place.wait_until_held(stop, word).await;
        assert_eq!(
            place.reason(start).await,
            format!("waits for request {stop}")
        );
        place
            .sql(&format!(
                "UPDATE power_requests SET state = 'cancelled' WHERE id = {stop}"
            ))
            .await;
        place.wait_for_state(start, "cancelled").await;
        place.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_of_what_is_held_frees_those_behind_it() {
    for (kind, line, word) in holding() {
        let mut place = held_place(kind, &line).await;
        let stop = place.stop(2).await;
        let start = place.ask("start", 2, ("", "")).await;
        place.wait_until_held(stop, word).await;
        place
            .sql("UPDATE power_requests SET state = 'cancelled' WHERE action = 'stop' AND state = 'queued'")
            .await;
        place.wait_for_state(start, "succeeded").await;
        if kind == "approval" {
            place.wait_for(KINDS, "").await;
        }
        place.end().await;
    }
    let mut place = Place::new(QUICK, &[]).await;
    place
        .sql("INSERT INTO orders (label, waves) VALUES ('x', '1')")
        .await;
    // Together: an order whose only request has ended would be done.
    let server = place.yard.server(2);
    place
        .sql(&format!(
            "INSERT INTO power_requests (server_id, action, label) VALUES ('nobody', 'stop', 'x'), ('{server}', 'stop', 'x')"
        ))
        .await;
    let held = 2;
    let start = place.ask("start", 2, ("", "")).await;
    place.wait_until_held(held, "nobody succeeded").await;
    let cancelled =
        "UPDATE power_requests SET state = 'cancelled' WHERE label = 'x' AND state = 'queued'";
    place.sql(cancelled).await;
    place.wait_for_state(start, "succeeded").await;
    place.wait_for("SELECT state FROM orders", "done").await;
    place.wait_for(KINDS, "").await;
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_expires_in_time() {
    for (kind, line, word) in holding() {
        let mut place = held_place(kind, &line).await;
        let soon = ", strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+2 seconds')";
        let stop = place.ask("stop", 2, (", expires_at", soon)).await;
        place.wait_until_held(stop, word).await;
        place.wait_for_state(stop, "expired").await;
        if kind == "approval" {
            place.wait_for(KINDS, "").await;
        }
        place.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_frees_what_it_no_longer_holds() {
    for (kind, line, word) in holding() {
        let mut place = held_place(kind, &line).await;
        let stop = place.stop(2).await;
        place.wait_until_held(stop, word).await;
        let key = line.split(' ').next().unwrap_or_default();
        place.change(&format!("{key} = {{}}")).await;
        place.wait_for_state(stop, "succeeded").await;
        place.wait_for(KINDS, "").await;
        place.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_lets_nothing_go_that_is_held() {
    for (kind, line, word) in holding() {
        let mut yard = Yard::new(QUICK).await;
        yard.set(&line);
        let config = yard.write_config();
        let mut daemon = Daemon::start(&config);
        let mut producer = yard.producer().await;
        if kind != "window" {
            common::insert(&mut producer, &yard.server(1), "stop").await;
            wait_for(
                &mut producer,
                "SELECT state FROM power_requests",
                "succeeded",
            )
            .await;
        }
        let sent = yard.cloud.ledger().len();
        let held = common::insert(&mut producer, &yard.server(2), "stop").await;
        for _ in 0..3 {
            let is_held =
                format!("SELECT reason LIKE '%{word}%' FROM power_waiting WHERE id = {held}");
            wait_for(&mut producer, &is_held, "1").await;
            daemon.kill();
            daemon = Daemon::start(&config);
            // A start comes and goes: the new daemon has been through the queue.
            let start = common::insert(&mut producer, &yard.server(3), "start").await;
            let done = format!("SELECT state FROM power_requests WHERE id = {start}");
            wait_for(&mut producer, &done, "succeeded").await;
        }
        let stops = yard.cloud.ledger();
        let stops = stops
            .iter()
            .filter(|entry| entry.server_id.0 != yard.server(3));
        assert_eq!(stops.count(), sent, "{kind}");
        assert_eq!(daemon.stop().await, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_window_spends_no_budget() {
    let frozen = frozen();
    let mut place = Place::new(QUICK, &["budget = { stop = \"2/1h\" }", &frozen]).await;
    for number in 1..=3 {
        place.stop(number).await;
    }
    place.wait_for(KINDS, "window").await;
    let with_reason = "UPDATE power_requests SET override_reason = 'a leak' WHERE id = 3";
    place.sql(with_reason).await;
    place.wait_for_state(3, "succeeded").await;
    assert_eq!(place.text(SENT).await, "1");
    place.change("window = {}").await;
    place.wait_for(SENT, "2").await;
    place.wait_for(KINDS, "budget").await;
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_of_a_label_holds_beside_all_others() {
    let frozen = frozen();
    let lines = [
        "budget = { reboot = \"1/1h\" }",
        "guard = { stop = \"1/1h\" }",
    ];
    let mut place = Place::new(QUICK, &lines).await;
    place
        .sql(
            "INSERT INTO holds (label, kind, reason, since) VALUES ('x', 'operator', 'paused by a test', '2026-01-01T00:00:00.000Z');
             INSERT INTO orders (label, waves) VALUES ('x', '1, 5')",
        )
        .await;
    for number in 1..=3 {
        place.ask("stop", number, (", label", ", 'x'")).await;
    }
    for number in 4..=5 {
        place.ask("reboot", number, (", label", ", 'x'")).await;
    }
    // The guard asks all the same; approval, a window and a wave that has room let nothing go.
    place.wait_for(KINDS, "approval,operator,wave").await;
    place
        .sql("UPDATE power_requests SET approved_by = 'bob' WHERE state = 'queued'")
        .await;
    place.wait_for(KINDS, "operator,wave").await;
    place.change(&frozen).await;
    place.wait_for(KINDS, "operator,wave,window").await;
    place.change("window = {}").await;
    place.wait_for(KINDS, "operator,wave").await;
    assert_eq!(place.text(SENT).await, "0");
    place.sql("DELETE FROM holds WHERE kind = 'operator'").await;
    // One reboot is left for the budget of the next hour.
    place.wait_for(KINDS, "budget").await;
    place
        .wait_for(
            "SELECT count(*) FROM power_requests WHERE state = 'succeeded'",
            "4",
        )
        .await;
    place.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_sends_nothing_of_what_is_held() {
    let mut yard = Yard::new(QUICK).await;
    for line in [
        "budget = { start = \"1/1h\" }",
        "guard = { stop = \"1/1h\" }",
        "window = { reboot = [\"Mon 00:00-00:01\", \"Thu 00:00-00:01\"] }",
    ] {
        yard.set(line);
    }
    let config = yard.write_config();
    // A daemon makes the queue; it is gone when the rows come.
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    daemon.stop().await;
    for (number, action) in [(1, "stop"), (2, "stop"), (3, "reboot")] {
        common::insert(&mut producer, &yard.server(number), action).await;
    }
    let order = "INSERT INTO orders (label, waves) VALUES ('x', '1');
                 INSERT INTO power_requests (server_id, action, label) VALUES ('s-1', 'start', 'x'), ('s-2', 'start', 'x')";
    sql(&mut producer, order).await;
    let before = text(
        &mut producer,
        "SELECT group_concat(id || state || gate) FROM power_requests",
    )
    .await;
    let mut command = poweryard();
    command
        .arg("--config")
        .arg(&config)
        .args(["serve", "--dry-run"])
        .stderr(std::process::Stdio::piped());
    let said = tokio::task::spawn_blocking(move || {
        let child = command.spawn().expect("it starts");
        std::thread::sleep(Duration::from_secs(3));
        let pid = child.id().to_string();
        std::process::Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .expect("kill runs");
        child.wait_with_output().expect("it ends")
    });
    let said = said.await.expect("it ran");
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(yard.cloud.calls().len(), 0, "{said}");
    let after = text(
        &mut producer,
        "SELECT group_concat(id || state || gate) FROM power_requests",
    )
    .await;
    assert_eq!(after, before);
    for why in [
        "more than guard",
        "outside its window",
        "wave 2 waits for its end",
    ] {
        assert!(said.contains(why), "{why}: {said}");
    }
    // The first wave.
    assert_eq!(said.matches("would send").count(), 1, "{said}");
    assert!(said.contains("would send: start of 1 server "), "{said}");
}

/// Rows of one label, without a daemon, and a client.
async fn many_rows(rows: usize) -> (Yard, SqliteConnection, QueueClient) {
    let yard = Yard::new(QUICK).await;
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    daemon.stop().await;
    let insert = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO power_requests (server_id, action, label) SELECT 's-' || i, 'stop', 'x' FROM n"
    );
    sql(&mut producer, &insert).await;
    let client = QueueClient::open(&yard.database(), Access::Write)
        .await
        .expect("a queue");
    (yard, producer, client)
}

const BY: Actor<'static> = Actor {
    who: "alice",
    reason: None,
};

/// Inserts rows of the same label, one by one, until `is_over`; how many.
async fn insert_meanwhile(producer: &mut SqliteConnection, is_over: &AtomicBool) -> usize {
    let mut inserted = 0;
    while !is_over.load(Ordering::Relaxed) {
        let row = format!(
            "INSERT INTO power_requests (server_id, action, label) VALUES ('late-{inserted}', 'stop', 'x')"
        );
        sql(producer, &row).await;
        inserted += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    inserted
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_of_many_lets_others_write_and_does_not_cover_what_they_write() {
    const ROWS: usize = 6000;
    let (_yard, mut producer, mut client) = many_rows(ROWS).await;
    let which = Selection::of_label("x");
    let seen = client.unapproved(&which).await.expect("readable");
    let is_over = AtomicBool::new(false);
    let (done, inserted) = tokio::join!(
        async {
            let done = client.approve(BY, &which, &seen).await;
            is_over.store(true, Ordering::Relaxed);
            done
        },
        insert_meanwhile(&mut producer, &is_over)
    );
    let Approval::Done(done) = done.expect("no failure") else {
        panic!("the number is right");
    };
    assert_eq!(done.done, ROWS as u64);
    assert!(
        inserted >= 10,
        "only {inserted} rows were inserted meanwhile"
    );
    let approved = "SELECT count(*) FROM power_requests WHERE approved_by = 'alice'";
    assert_eq!(text(&mut producer, approved).await, ROWS.to_string());
    let late = "SELECT count(*) FROM power_requests WHERE server_id LIKE 'late-%' AND approved_by IS NOT NULL";
    assert_eq!(text(&mut producer, late).await, "0");
    let noted = "SELECT group_concat(action || ' ' || requests) FROM operator_actions";
    assert_eq!(
        text(&mut producer, noted).await,
        format!("{} {ROWS}", OperatorAction::Approve)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_and_a_retry_of_many_let_others_write() {
    const ROWS: usize = 6000;
    let (_yard, mut producer, mut client) = many_rows(ROWS).await;
    let which = Selection::of_label("x");
    let is_over = AtomicBool::new(false);
    let (done, inserted) = tokio::join!(
        async {
            let done = client.cancel(BY, &which).await;
            is_over.store(true, Ordering::Relaxed);
            done
        },
        insert_meanwhile(&mut producer, &is_over)
    );
    assert_eq!(done.expect("no failure").done, ROWS as u64);
    assert!(
        inserted >= 10,
        "only {inserted} rows were inserted meanwhile"
    );
    let cancelled = "SELECT count(*) FROM power_requests WHERE state = 'cancelled'";
    assert_eq!(text(&mut producer, cancelled).await, ROWS.to_string());
    let again = Selection {
        states: vec![RequestState::Cancelled],
        ..which
    };
    let done = client.retry(BY, &again).await.expect("no failure");
    assert_eq!(done.done, ROWS as u64);
    let pairs =
        "SELECT count(*) = count(DISTINCT server_id) FROM power_requests WHERE state = 'queued'";
    assert_eq!(text(&mut producer, pairs).await, "1");
    let done = client.retry(BY, &again).await.expect("no failure");
    assert_eq!(done.done, 0, "each has a later request now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_of_many_sends_none_of_those_behind_what_it_cancels() {
    // Two requests for each server: if the first ended before the second, the second would leave.
    let mut place = Place::new(QUICK, &[]).await;
    place
        .sql("INSERT INTO holds (action, kind, reason, since) VALUES ('stop', 'operator', 'a test', '2026-01-01T00:00:00.000Z')")
        .await;
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500)
         INSERT INTO power_requests (server_id, action, label) SELECT 's-' || i, 'stop', 'x' FROM n";
    place.sql(rows).await;
    place.sql(&rows.replace("'stop'", "'start'")).await;
    place
        .wait_for(
            "SELECT count(*) FROM power_requests WHERE gate = 'behind'",
            "1500",
        )
        .await;
    let mut client = QueueClient::open(&place.yard.database(), Access::Write)
        .await
        .expect("a queue");
    let done = client.cancel(BY, &Selection::of_label("x")).await;
    assert_eq!(done.expect("no failure").done, 3000);
    assert_eq!(place.text("SELECT count(*) FROM batches").await, "0");
    place.end().await;
}

/// Rounds of a dispatcher whose commit with this number fails, as behind a lock; true if it came to it.
async fn work_with_a_failure(yard: &Yard, producer: &mut SqliteConnection, failing: u64) -> bool {
    let settings = yard.settings();
    let commits = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&commits);
    let options = StoreOptions {
        synced: false,
        allow_commit: Some(Arc::new(move || {
            counted.fetch_add(1, Ordering::SeqCst) + 1 != failing
        })),
        ..StoreOptions::default()
    };
    let path = &settings.queue.database;
    let store = Store::open_with(path, &options).await.expect("a queue");
    let store = Arc::new(store);
    store
        .begin_epoch(daemon::now().utc)
        .await
        .expect("the first one");
    let clouds = common::clouds(&settings);
    let now = daemon::now();
    let begun = commits.load(Ordering::SeqCst);
    let mut dispatcher = Dispatcher::new(Arc::clone(&store), &settings, clouds, now)
        .await
        .expect("nothing fails before the rounds");
    let ends = Instant::now() + PATIENCE;
    while text(producer, "SELECT state FROM orders").await != "done" {
        assert!(
            Instant::now() < ends,
            "commit {failing}: {}",
            common::dump(producer).await
        );
        let round = dispatcher.round(daemon::now()).await;
        for task in round.tasks {
            let finished = task.run().await;
            let _ = dispatcher.finish(finished, daemon::now()).await;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(begun < failing, "the start commits {begun} times");
    commits.load(Ordering::SeqCst) >= failing
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_fails_once_does_not_leave_an_order_waiting() {
    let mut failed = 0;
    for failing in 6..30 {
        let yard = Yard::new("[bms]\nservers = 3\nrunning = 1.0\noperation_ms = [5, 10]\n").await;
        let store = Store::open(&yard.database()).await.expect("a queue");
        store.close().await.expect("closed");
        let mut producer = yard.producer().await;
        let rows: Vec<String> = (1..=3)
            .map(|number| format!("('{}', 'stop', 'x')", yard.server(number)))
            .collect();
        let order = format!(
            "INSERT INTO orders (label, waves) VALUES ('x', '1, 2');
             INSERT INTO power_requests (server_id, action, label) VALUES {}",
            rows.join(", ")
        );
        sql(&mut producer, &order).await;
        failed += u32::from(work_with_a_failure(&yard, &mut producer, failing).await);
        let succeeded = "SELECT count(*) FROM power_requests WHERE state = 'succeeded'";
        assert_eq!(text(&mut producer, succeeded).await, "3", "{failing}");
    }
    assert!(failed > 10, "{failed}");
}

/// Rows that one transaction of an order may touch: a chunk of requests with their servers.
const ORDER_ROWS_MAX: i64 = 1100;

#[tokio::test]
async fn an_order_of_many_is_read_and_let_go_a_chunk_at_a_time() {
    for count in [600_u64, 3000] {
        let mut queue = Queue::new().await;
        queue
            .sql(&format!(
                "INSERT INTO orders (label, waves) VALUES ('x', '100%');
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
                 INSERT INTO power_requests (server_id, action, label) SELECT 's-' || i, 'stop', 'x' FROM n"
            ))
            .await;
        let mut most = 0;
        loop {
            let seen = queue.snapshot(&[], None).await;
            let orders = queue.store.open_orders(&seen, wall()).await;
            let orders = orders.expect("readable");
            let known = &orders[0];
            if known.is_unread {
                let read = queue.store.read_order(known.id, &seen, wall()).await;
                read.expect("stored");
            } else if known.order.wave_taken < count {
                let is_new = known.order.wave_size == 0;
                let wave = is_new.then_some(NewWave {
                    wave: 1,
                    size: count,
                });
                let taken = queue.store.let_servers_go(known.id, wave, wall()).await;
                assert!(taken.expect("stored") > 0);
            } else {
                break;
            }
            let after = queue.snapshot(&[], None).await.change_mark.0;
            most = most.max(after - seen.change_mark.0);
        }
        assert!(most <= ORDER_ROWS_MAX, "{count}: {most}");
        let gone = "SELECT count(*) FROM power_requests WHERE wave = 1 AND gate = 'ready'";
        assert_eq!(queue.row(gone).await, count.to_string());
    }
}
