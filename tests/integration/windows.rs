//! Windows and freezes: what leaves when. Nights that matter are played through with a clock of the
//! test's own; what a person sees of them is asked of the real program.

use std::collections::BTreeSet;
use std::fs;
use std::process::Output;
use std::time::Duration;

use crate::common::process::{poweryard, said};
use crate::common::scene::Scene;
use crate::common::{self, Yard, insert, insert_many, reload, sql, text};
use jiff::{Timestamp, ToSpan};
use poweryard::daemon::Dispatcher;
use poweryard::model::PowerAction::{Start, Stop};
use poweryard::model::{Now, PowerAction, SPLITMIX_STEP, Steady, UtcMillis, splitmix};
use poweryard::plan::windows::WindowState;
use sqlx::SqliteConnection;

const QUICK: &str = "[bms]\nservers = 40\nrunning = 1.0\noperation_ms = [1, 5]\n";
const CLOSED: &str = "SELECT group_concat(action) FROM (SELECT action FROM holds WHERE kind = 'window' ORDER BY action)";

/// A daemon by a clock of the test's own.
struct Night {
    yard: Yard,
    dispatcher: Dispatcher,
    producer: SqliteConnection,
    now: Now,
}

impl Night {
    async fn new(lines: &str, begin: &str) -> Self {
        Self::in_cloud(QUICK, lines, begin).await
    }

    async fn in_cloud(scenario: &str, lines: &str, begin: &str) -> Self {
        let mut yard = Yard::new(scenario).await;
        yard.target_lines.push_str(lines);
        let mut settings = yard.settings();
        // Rows are dated by the machine's clock, not by the test's.
        settings.queue.default_ttl = None;
        let now = Now {
            utc: at(begin),
            steady: Steady(Duration::from_secs(1)),
        };
        let dispatcher = common::dispatcher(&settings, now).await;
        let producer = yard.producer().await;
        Self {
            yard,
            dispatcher,
            producer,
            now,
        }
    }

    async fn ask(&mut self, action: &str, number: usize) -> i64 {
        let server = self.yard.server(number);
        insert(&mut self.producer, &server, action).await
    }

    /// Time passes until then; nobody sets the clock.
    fn sleep_until(&mut self, time: &str) {
        let then = at(time);
        self.now.steady = Steady(self.now.steady.0 + then.since(self.now.utc));
        self.now.utc = then;
    }

    /// So much time passes.
    fn pass(&mut self, span: Duration) {
        self.now.steady = Steady(self.now.steady.0 + span);
        self.now.utc = self.now.utc + span;
    }

    /// Somebody sets the clock.
    fn set_clock(&mut self, time: &str) {
        self.now.utc = at(time);
    }

    /// Rounds at this very moment, until nothing more is to be done at it.
    async fn rounds(&mut self) {
        for _ in 0..500 {
            let round = self.dispatcher.round(self.now).await;
            assert!(round.trouble.is_none(), "{:?}", round.trouble);
            let is_over = round.tasks.is_empty()
                && round.wake_at.is_none_or(|wake_at| wake_at > self.now.utc);
            for task in round.tasks {
                let finished = task.run().await;
                let finished = self.dispatcher.finish(finished, self.now).await;
                finished.expect("stored");
            }
            if is_over {
                return;
            }
        }
        panic!("the rounds never end");
    }

    async fn text(&mut self, sql: &str) -> String {
        text(&mut self.producer, sql).await
    }

    async fn sent(&mut self) -> String {
        self.text("SELECT ifnull(sum(server_count), 0) FROM batches")
            .await
    }
}

fn at(time: &str) -> UtcMillis {
    time.parse().expect("a time")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_outside_its_window_leaves_when_that_opens_and_no_row_is_moved() {
    let window = "window = { stop = [\"Mon..Fri 20:00-06:00 Europe/Berlin\"] }\n";
    let mut night = Night::new(window, "2026-11-27T12:00:00Z").await;
    for number in 1..=3 {
        night.ask("stop", number).await;
    }
    night.ask("start", 4).await;
    night.rounds().await;
    assert_eq!(night.sent().await, "1", "the start alone");
    assert_eq!(night.text(CLOSED).await, "stop");
    assert_eq!(
        night
            .text("SELECT reason || ' | ' || until FROM holds")
            .await,
        "stop is outside its window until 2026-11-27T19:00:00.000Z (Fri 2026-11-27 20:00 Europe/Berlin) | 2026-11-27T19:00:00.000Z"
    );
    assert_eq!(
        night
            .text("SELECT group_concat(DISTINCT gate) FROM power_requests WHERE action = 'stop'")
            .await,
        "ready"
    );
    night.sleep_until("2026-11-27T18:59:59.999Z");
    night.rounds().await;
    assert_eq!(night.sent().await, "1");
    night.sleep_until("2026-11-27T19:00:00Z");
    night.rounds().await;
    assert_eq!(night.sent().await, "4");
    assert_eq!(night.text(CLOSED).await, "");
    // At six it closes, on the Saturday that belongs to the Friday.
    night.sleep_until("2026-11-28T04:59:00Z");
    night.ask("stop", 5).await;
    night.rounds().await;
    assert_eq!(night.sent().await, "5");
    night.sleep_until("2026-11-28T05:00:00Z");
    night.ask("stop", 6).await;
    night.rounds().await;
    assert_eq!(night.sent().await, "5");
    assert_eq!(
        night.text("SELECT until FROM holds").await,
        "2026-11-30T19:00:00.000Z"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_night_of_a_clock_change_the_clock_on_the_wall_counts() {
    // Each time with whether a stop leaves then.
    for (window, times) in [
        (
            "02:15-02:45 Europe/Berlin",
            [
                ("2026-10-25T00:14:59.999Z", false),
                ("2026-10-25T00:15:00Z", true),
                ("2026-10-25T00:45:00Z", false),
                ("2026-10-25T01:15:00Z", true),
                ("2026-10-25T01:45:00Z", false),
            ],
        ),
        (
            "01:30-02:30 America/New_York",
            [
                ("2027-03-14T06:29:59Z", false),
                ("2027-03-14T06:30:00Z", true),
                ("2027-03-14T06:59:59Z", true),
                ("2027-03-14T07:00:00Z", false),
                ("2027-03-15T06:00:00Z", true),
            ],
        ),
        (
            "01:45-02:15 Australia/Lord_Howe",
            [
                ("2027-04-03T14:44:59Z", false),
                ("2027-04-03T14:45:00Z", true),
                ("2027-04-03T15:14:59Z", false),
                ("2027-04-03T15:44:00Z", true),
                ("2027-04-03T15:45:00Z", false),
            ],
        ),
    ] {
        let line = format!("window = {{ stop = [\"{window}\"] }}\n");
        let mut night = Night::new(&line, times[0].0).await;
        for (number, (time, leaves)) in times.into_iter().enumerate() {
            night.sleep_until(time);
            let id = night.ask("stop", number + 1).await;
            night.rounds().await;
            let sent = format!("SELECT batch_id IS NOT NULL FROM power_requests WHERE id = {id}");
            assert_eq!(night.text(&sent).await == "1", leaves, "{window} at {time}");
            sql(
                &mut night.producer,
                "UPDATE power_requests SET state = 'cancelled' WHERE state = 'queued'",
            )
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_holds_stops_and_reboots_and_those_with_a_reason_leave() {
    let freeze = "window = { freeze = [\"2026-12-20..2027-01-03 Europe/Berlin\"] }\n";
    let mut night = Night::new(freeze, "2026-12-24T17:00:00Z").await;
    night.ask("stop", 1).await;
    night.ask("reboot", 2).await;
    night.ask("start", 3).await;
    let servers: Vec<String> = (4..=7).map(|number| night.yard.server(number)).collect();
    insert_many(&mut night.producer, &servers, "stop").await;
    sql(
        &mut night.producer,
        "UPDATE power_requests SET override_reason = 'fire in hall 3' WHERE id BETWEEN 4 AND 6;
         UPDATE power_requests SET label = 'hall3' WHERE id BETWEEN 4 AND 6;
         UPDATE power_requests SET override_reason = 'smoke' WHERE id = 7",
    )
    .await;
    night.rounds().await;
    assert_eq!(night.sent().await, "5", "a start, and four with a reason");
    assert_eq!(night.text(CLOSED).await, "reboot,stop");
    let noted = "SELECT group_concat(line, '; ') FROM (SELECT at || ' ' || who || ' ' || action || ' ' || what || ' ' || requests || ' '
                 || reason AS line FROM operator_actions ORDER BY id)";
    assert_eq!(
        night.text(noted).await,
        "2026-12-24T17:00:00.000Z a producer override --label hall3 3 fire in hall 3; \
         2026-12-24T17:00:00.000Z a producer override 7 1 smoke"
    );
    // When it is over nothing needs a reason, and nothing is noted.
    night.sleep_until("2027-01-03T23:00:00Z");
    let id = night.ask("stop", 8).await;
    let reason = format!("UPDATE power_requests SET override_reason = 'late' WHERE id = {id}");
    sql(&mut night.producer, &reason).await;
    night.rounds().await;
    assert_eq!(night.sent().await, "8");
    assert_eq!(
        night.text("SELECT count(*) FROM operator_actions").await,
        "2"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_opens_and_closes_windows_as_it_shows() {
    let window = "window = { stop = [\"20:00-06:00\"] }\n";
    let mut night = Night::new(window, "2026-11-27T12:00:00Z").await;
    night.ask("stop", 1).await;
    night.rounds().await;
    assert_eq!(night.sent().await, "0");
    night.set_clock("2026-11-27T21:00:00Z");
    night.rounds().await;
    assert_eq!(night.sent().await, "1");
    night.set_clock("2026-11-27T13:00:00Z");
    night.ask("stop", 2).await;
    night.rounds().await;
    assert_eq!(night.sent().await, "1");
    assert_eq!(
        night.text("SELECT until FROM holds").await,
        "2026-11-27T20:00:00.000Z"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_asks_by_day_for_what_would_leave_at_night() {
    let lines = "window = { stop = [\"20:00-06:00\"] }\nguard = { stop = \"2/1h\" }\n";
    let mut night = Night::new(lines, "2026-11-27T12:00:00Z").await;
    for number in 1..=3 {
        night.ask("stop", number).await;
    }
    night.rounds().await;
    let kinds = "SELECT group_concat(kind) FROM (SELECT kind FROM holds ORDER BY kind)";
    assert_eq!(night.text(kinds).await, "approval,window");
    sql(
        &mut night.producer,
        "UPDATE power_requests SET approved_by = 'bob'",
    )
    .await;
    night.rounds().await;
    assert_eq!(night.text(kinds).await, "window");
    assert_eq!(night.sent().await, "0", "approval opens no window");
    night.sleep_until("2026-11-27T20:00:00Z");
    night.rounds().await;
    assert_eq!(night.sent().await, "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_parked_rows_do_not_make_an_opening_slow() {
    let window = "window = { stop = [\"20:00-06:00\"] }\n";
    let mut night = Night::new(window, "2026-11-27T12:00:00Z").await;
    sql(
        &mut night.producer,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         INSERT INTO power_requests (server_id, action) SELECT 'server-' || i, 'stop' FROM n",
    )
    .await;
    night.rounds().await;
    let changes = night
        .text("SELECT count(*) FROM power_requests WHERE gate <> 'ready'")
        .await;
    assert_eq!(changes, "0");
    night.sleep_until("2026-11-27T20:00:00Z");
    let round = night.dispatcher.round(night.now).await;
    assert!(round.trouble.is_none());
    assert_eq!(night.text("SELECT count(*) FROM holds").await, "0");
    let moved = night
        .text("SELECT count(*) FROM power_requests WHERE gate <> 'ready'")
        .await;
    assert_eq!(moved, "0", "opening touches no row");
}

/// Frozen by the machine's clock, whatever the time of the day.
fn frozen_now() -> String {
    let day = |hours: i64| {
        let at = Timestamp::now() + hours.hours();
        at.strftime("%Y-%m-%d").to_string()
    };
    format!("window = {{ freeze = [\"{}..{}\"] }}", day(-24), day(48))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_opens_and_closes_windows() {
    let mut yard = Yard::new(QUICK).await;
    let open = yard.settings();
    yard.set(&frozen_now());
    let frozen = yard.settings();
    let (reloads, daemon) = yard.start_reloading(frozen.clone());
    let producer = yard.producer().await;
    let mut scene = Scene {
        yard,
        daemon,
        producer,
    };
    scene.ask(Stop, [1]).await;
    scene.ask(Start, [2]).await;
    scene.wait_for(CLOSED, "reboot,stop").await;
    scene
        .wait_for(
            "SELECT state FROM power_requests WHERE action = 'start'",
            "succeeded",
        )
        .await;
    assert_eq!(scene.submits(), 1);
    assert!(reload(&reloads, open).await);
    assert_eq!(
        scene.outcomes().await,
        "1 succeeded/already, 1 succeeded/job"
    );
    scene.wait_for(CLOSED, "").await;
    assert!(reload(&reloads, frozen).await);
    scene.wait_for(CLOSED, "reboot,stop").await;
    scene.daemon.stop().await;
}

async fn with_config(scene: &Scene, args: &[&str]) -> Output {
    let mut command = poweryard();
    command
        .arg("--config")
        .arg(scene.yard.dir.path().join("poweryard.toml"))
        .args(args);
    tokio::task::spawn_blocking(move || command.output())
        .await
        .expect("joined")
        .expect("it runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expires_before_the_opening_says_so_at_once() {
    let freeze = frozen_now();
    let mut scene = Scene::new(QUICK, &[&freeze]).await;
    scene.wait_for(CLOSED, "reboot,stop").await;
    let server = scene.yard.server(1);
    let other = scene.yard.server(2);
    let third = scene.yard.server(3);
    let early = with_config(&scene, &["enqueue", "stop", &server, "--expires-at", "+1h"]).await;
    assert!(early.status.success(), "{}", said(&early));
    assert!(
        said(&early).contains("before they can be sent: stop is frozen"),
        "{}",
        said(&early)
    );
    let late = with_config(
        &scene,
        &["enqueue", "stop", &other, "--expires-at", "+2000h"],
    )
    .await;
    assert!(!said(&late).contains("warning"), "{}", said(&late));
    let database = scene.yard.database().display().to_string();
    // Without the config the daemon's hold and its default_ttl tell.
    let queue_only = ["enqueue", "stop", &third, "--database", &database];
    let queue_only = with_config(&scene, &queue_only).await;
    assert!(
        said(&queue_only).contains("warning: these requests expire at"),
        "{}",
        said(&queue_only)
    );
    let waiting =
        "SELECT group_concat(reason LIKE '%; it will expire before that') FROM power_waiting";
    assert_eq!(scene.text(waiting).await, "1,0,1");
    let explain = with_config(&scene, &["explain", "2"]).await;
    assert!(
        said(&explain).contains("is frozen (freeze = ") && said(&explain).contains(" until "),
        "{}",
        said(&explain)
    );
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn enqueue_with_a_reason_leaves_at_once_and_names_the_person() {
    let freeze = frozen_now();
    let mut scene = Scene::new(QUICK, &[&freeze]).await;
    scene.wait_for(CLOSED, "reboot,stop").await;
    let server = scene.yard.server(1);
    let args = [
        "enqueue",
        "stop",
        &server,
        "--override-reason",
        "leak in rack 7",
    ];
    let done = with_config(&scene, &args).await;
    assert!(
        done.status.success() && !said(&done).contains("warning"),
        "{}",
        said(&done)
    );
    assert_eq!(scene.outcomes().await, "1 succeeded/job");
    assert_eq!(
        scene
            .text("SELECT who || '|' || what || '|' || reason FROM operator_actions")
            .await,
        "alice|1|leak in rack 7"
    );
    let long = "x".repeat(257);
    let args = ["enqueue", "stop", &server, "--override-reason", &long];
    let refused = with_config(&scene, &args).await;
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        said(&refused).contains("--override-reason must be text of 1 to 256"),
        "{}",
        said(&refused)
    );
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_does_not_read_ends_with_78_and_names_its_line() {
    let yard = Yard::new(QUICK).await;
    let path = yard.write_config();
    let config = fs::read_to_string(&path).expect("readable");
    let config =
        format!("{config}[targets.default.window]\nstop = [\"Mon 20:00-06:00 Europe/Berln\"]\n");
    let line = config.lines().count();
    fs::write(&path, config).expect("written");
    for command in ["serve", "check"] {
        let mut program = poweryard();
        program.arg("--config").arg(&path).arg(command);
        let done = program.output().expect("it runs");
        assert_eq!(done.status.code(), Some(78), "{}", said(&done));
        let place =
            format!(":{line}: targets.default.window.stop: \"Europe/Berln\" is not a time zone");
        assert!(
            said(&done).replace("\n         ", "").contains(&place),
            "{}",
            said(&done)
        );
    }
}

/// Numbers that look drawn by chance, the same ones for the same seed.
struct Dice {
    seed: u64,
    thrown: u64,
}

impl Dice {
    /// From 0 on, less than `sides`.
    fn throw(&mut self, sides: u64) -> u64 {
        self.thrown += 1;
        let number = splitmix(
            self.seed
                .wrapping_add(SPLITMIX_STEP.wrapping_mul(self.thrown)),
        );
        number % sides
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.throw(from.len() as u64) as usize]
    }
}

/// No call outside a window without a reason.
async fn audit_windows(night: &mut Night, what: &str) {
    let windows = night.yard.settings().targets[0].windows.clone();
    let calls: Vec<(String, String, i64)> = sqlx::query_as(
        "SELECT b.action, b.intent_at, count(*) FROM batches b JOIN request_attempts a ON a.batch_id = b.id
         JOIN power_requests r ON r.id = a.request_id WHERE r.override_reason IS NULL GROUP BY b.id",
    )
    .fetch_all(&mut night.producer)
    .await
    .expect("readable");
    for (action, intent_at, servers) in calls {
        let action: PowerAction = action.parse().expect("an action");
        let state = windows.state(action, at(&intent_at));
        assert!(
            matches!(state, WindowState::Open { .. }),
            "{what}: {action} of {servers} at {intent_at}: {state:?}"
        );
    }
}

/// Of no span do more unapproved requests leave than the guard lets go; one that is tried again
/// counts once.
async fn audit_guard(night: &mut Night, what: &str) {
    let guards = night.yard.settings().targets[0].guards.clone();
    let (_, guard) = guards[0];
    let left: Vec<(String, i64)> = sqlx::query_as(
        "SELECT b.intent_at, a.request_id FROM batches b JOIN request_attempts a ON a.batch_id = b.id
         WHERE b.approved = 0 AND b.action = 'stop' AND (b.submitted_at IS NOT NULL OR b.look_cause = 'lost')",
    )
    .fetch_all(&mut night.producer)
    .await
    .expect("readable");
    for (last, _) in &left {
        let in_span = |time: &str| at(time) <= at(last) && at(last).since(at(time)) < guard.span;
        let requests: BTreeSet<i64> = left
            .iter()
            .filter(|(time, _)| in_span(time))
            .map(|(_, request)| *request)
            .collect();
        assert!(
            requests.len() <= guard.servers as usize,
            "{what}: {} unapproved stops left up to {last}",
            requests.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drawn_nights_keep_to_windows_and_guards_and_say_why_something_waits() {
    let nights = [
        ("Europe/Berlin", "2027-03-27T21:00:00Z"),
        ("America/New_York", "2027-03-14T03:00:00Z"),
        ("Australia/Lord_Howe", "2027-04-03T11:00:00Z"),
        ("UTC", "2027-01-01T20:00:00Z"),
    ];
    let mut sent = 0;
    let mut held = 0;
    for seed in 0..8 {
        let mut dice = Dice { seed, thrown: 0 };
        let (zone, begin) = nights[seed as usize % nights.len()];
        let clock = |dice: &mut Dice| format!("{:02}:{:02}", dice.throw(6), dice.throw(60));
        let spans: Vec<String> = (0..3)
            .map(|_| format!("\"{}-{} {zone}\"", clock(&mut dice), clock(&mut dice)))
            .filter(|span| span[1..6] != span[7..12])
            .collect();
        let (number, minutes) = (1 + dice.throw(6), 10 + dice.throw(60));
        let lines = format!(
            "window = {{ stop = [{}] }}\nguard = {{ stop = \"{number}/{minutes}m\" }}\n",
            spans.join(", ")
        );
        let lost =
            "[[faults]]\nkind = \"error_before\"\non = [\"submit\"]\nchance = 0.1\nstatus = 500\n";
        let mut night = Night::in_cloud(&format!("{QUICK}{lost}"), &lines, begin).await;
        for step in 0..25 {
            let what = format!("seed {seed}, step {step}, {lines}");
            for _ in 0..dice.throw(4) {
                let action = *dice.pick(&["stop", "stop", "stop", "reboot", "start"]);
                let id = night.ask(action, 1 + dice.throw(40) as usize).await;
                if dice.throw(8) == 0 {
                    let why = format!(
                        "UPDATE power_requests SET override_reason = 'why' WHERE id = {id}"
                    );
                    sql(&mut night.producer, &why).await;
                }
            }
            let act = match dice.throw(6) {
                0 => "UPDATE power_requests SET approved_by = 'bob' WHERE state = 'queued'",
                1 => {
                    "UPDATE power_requests SET approved_by = NULL WHERE state = 'queued' AND id % 2"
                }
                2 => {
                    "UPDATE power_requests SET state = 'cancelled' WHERE state = 'queued' AND id % 5 = 0"
                }
                _ => "SELECT 1",
            };
            sql(&mut night.producer, act).await;
            night.rounds().await;
            let unheld =
                "SELECT group_concat(id || ' ' || reason) FROM power_waiting WHERE reason = 'next'";
            assert_eq!(night.text(unheld).await, "", "{what}");
            let waits = "SELECT count(*) FROM power_waiting WHERE reason LIKE 'held: %'";
            held += night.text(waits).await.parse::<usize>().expect("a number");
            night.pass(Duration::from_millis(1 + dice.throw(20 * 60_000)));
        }
        audit_windows(&mut night, &lines).await;
        audit_guard(&mut night, &lines).await;
        sent += night.sent().await.parse::<usize>().expect("a number");
    }
    assert!(sent > 100 && held > 100, "{sent} sent, {held} held");
}
