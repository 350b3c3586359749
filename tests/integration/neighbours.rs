//! Nobody stops the others: strangers, held and slow targets, long waits and stops, seen in the
//! rows and in the calls.

use std::time::Duration;

use crate::common::scene::{Scene, fault};
use crate::common::{
    self, Yard, by_hand, dispatcher, insert, insert_many, outcomes, sql, text, wait_for,
};
use poweryard::daemon::{self, Dispatcher, Finished, Round, Task};
use poweryard::model::{CallError, Fault, Now, PowerAction};
use poweryard::settings::Settings;
use poweryard::sim::Call;
use poweryard::store::Store;

const QUICK: &str = "[bms]\nservers = 100\nrunning = 1.0\noperation_ms = [10, 50]\n";

/// The config's target, and a second one of another project.
fn two_targets(yard: &Yard) -> Settings {
    let path = yard.write_config();
    let text = std::fs::read_to_string(&path).expect("written");
    let (head, table) = text.split_at(text.find("[targets.").expect("a target"));
    let other = table
        .replace("targets.default", "targets.another")
        .replace(common::PROJECT, "0123456789abcdef0123456789abcdef");
    std::fs::write(&path, format!("{head}{other}{table}")).expect("written");
    Settings::load(&path).expect("a valid config")
}

/// Carries out what a round asks for, but for the submit calls, which are returned.
async fn carry_out(dispatcher: &mut Dispatcher, round: Round, now: Now) -> Vec<Task> {
    assert!(round.trouble.is_none(), "{:?}", round.trouble);
    let (submits, others): (Vec<Task>, Vec<Task>) = round
        .tasks
        .into_iter()
        .partition(|task| matches!(task, Task::Submit { .. }));
    for task in others {
        let finished: Finished = task.run().await;
        dispatcher.finish(finished, now).await.expect("stored");
    }
    submits
}

fn later(now: Now, by: Duration) -> Now {
    Now {
        utc: now.utc + by,
        steady: poweryard::model::Steady(now.steady.0 + by),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_unknown_targets_are_each_held_and_hide_nobody() {
    let yard = Yard::new(QUICK).await;
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    sql(
        &mut producer,
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 500)
         INSERT INTO power_requests (server_id, action, target) SELECT 'node-' || i, 'stop', 'cluster-' || i FROM n",
    )
    .await;
    insert(&mut producer, &yard.server(1), "stop").await;
    wait_for(
        &mut producer,
        "SELECT state FROM power_requests WHERE target = 'default'",
        "succeeded",
    )
    .await;
    let held = "SELECT count(*) FROM holds WHERE kind = 'unknown_target'";
    wait_for(&mut producer, held, "500").await;
    sql(
        &mut producer,
        "UPDATE power_requests SET state = 'cancelled' WHERE state = 'queued'",
    )
    .await;
    wait_for(&mut producer, held, "0").await;
    daemon.stop().await;
    assert_eq!(yard.cloud.ledger().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_target_with_many_travel_groups_hides_no_other() {
    let yard = Yard::new(QUICK).await;
    let settings = two_targets(&yard);
    let daemon = yard.start_with(settings);
    let mut producer = yard.producer().await;
    sql(
        &mut producer,
        "INSERT INTO holds (target, kind, reason, since) VALUES ('another', 'operator', 'paused', '2026-01-31T22:00:00.000Z')",
    )
    .await;
    sql(
        &mut producer,
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 1200)
         INSERT INTO power_requests (server_id, action, target) SELECT 'node-' || i, 'stop', 'another' FROM n",
    )
    .await;
    by_hand(&mut producer, "UPDATE power_requests SET travel_group = id")
        .await
        .expect("done");
    insert(&mut producer, &yard.server(1), "stop").await;
    wait_for(
        &mut producer,
        "SELECT state FROM power_requests WHERE target = 'default'",
        "succeeded",
    )
    .await;
    daemon.stop().await;
    assert_eq!(yard.cloud.ledger().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_stores_one_intent_and_the_targets_take_turns() {
    let mut yard = Yard::new(QUICK).await;
    yard.set("batch_servers_max = 2");
    let settings = two_targets(&yard);
    let now = daemon::now();
    let mut dispatcher = dispatcher(&settings, now).await;
    let mut producer = yard.producer().await;
    for number in 1..=8 {
        let target = if number % 2 == 0 {
            "default"
        } else {
            "another"
        };
        sqlx::query("INSERT INTO power_requests (server_id, action, target) VALUES (?, 'stop', ?)")
            .bind(yard.server(number))
            .bind(target)
            .execute(&mut producer)
            .await
            .expect("accepted");
    }
    let mut targets = Vec::new();
    for _ in 0..20 {
        let round = dispatcher.round(now).await;
        let submits = carry_out(&mut dispatcher, round, now).await;
        assert!(
            submits.len() <= 1,
            "an intent that waits for others to be stored"
        );
        for task in submits {
            if let Task::Submit { batch, .. } = &task {
                targets.push(batch.target.0.clone());
            }
            let finished = task.run().await;
            dispatcher.finish(finished, now).await.expect("stored");
        }
    }
    // The cloud knows no second project, so that this target stands back after its first call.
    assert_eq!(targets, ["another", "default", "default"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_was_stored_before_the_claim_stops_it() {
    let yard = Yard::new(QUICK).await;
    let settings = yard.settings();
    let store = Store::open(&settings.queue.database)
        .await
        .expect("a queue");
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    let asked = poweryard::store::SnapshotQuery {
        default_ttl: None,
        targets: &[(poweryard::model::TargetName("default".into()), 10)],
        except: &std::collections::BTreeSet::new(),
    };
    let seen = store.peek(&asked, daemon::now().utc).await.expect("read");
    let lane = seen.lanes[0].clone();
    sql(
        &mut producer,
        "INSERT INTO holds (kind, reason, since) VALUES ('operator', 'paused', '2026-01-31T22:00:00.000Z')",
    )
    .await;
    let origin = poweryard::model::Origin {
        service: poweryard::model::Service::Bms,
        endpoint: String::new(),
        project_id: String::new(),
    };
    let claim = poweryard::store::Claim {
        lane: &lane,
        origin: &origin,
        which: poweryard::store::Which::First(10),
        barred: &[],
        guard: None,
        now: daemon::now().utc,
    };
    let claimed = store.claim(&claim).await.expect("no failure");
    assert_eq!(claimed, None);
    assert_eq!(
        text(&mut producer, "SELECT count(*) FROM batches").await,
        "0"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_read_is_not_repeated_before_its_time_also_after_a_restart() {
    let busy = fault(
        "throttle",
        "on = [\"job\"]\nchance = 1.0\nretry_after_s = 86400",
    );
    let mut yard = Yard::new(&format!("{QUICK}{busy}")).await;
    yard.set("job_time_limit = \"1h\"");
    let settings = yard.settings();
    let mut now = daemon::now();
    let mut first = dispatcher(&settings, now).await;
    let mut producer = yard.producer().await;
    insert_many(&mut producer, &[yard.server(1), yard.server(2)], "reboot").await;
    let queries = || {
        yard.cloud
            .calls()
            .iter()
            .filter(|call| call.call == Call::Job)
            .count()
    };
    let mut rounds = 0;
    while queries() == 0 {
        rounds += 1;
        assert!(rounds < 200, "the job is never asked for");
        now = later(now, Duration::from_millis(50));
        let round = first.round(now).await;
        for task in round.tasks {
            let finished = task.run().await;
            first.finish(finished, now).await.expect("stored");
        }
    }
    // A row that comes meanwhile is not sent: nobody could see what becomes of it.
    insert(&mut producer, &yard.server(3), "reboot").await;
    drop(first);
    let mut second = dispatcher(&settings, now).await;
    for _ in 0..20 {
        now = later(now, Duration::from_secs(60));
        let round = second.round(now).await;
        for task in round.tasks {
            let finished = task.run().await;
            second.finish(finished, now).await.expect("stored");
        }
    }
    assert_eq!(queries(), 1);
    assert_eq!(
        text(&mut producer, "SELECT count(*) FROM batches").await,
        "1"
    );
    assert_eq!(
        text(&mut producer, "SELECT kind FROM holds").await,
        "breaker"
    );
    // The reads are held for a day; the requests end within their own bounds all the same.
    for _ in 0..60 {
        now = later(now, Duration::from_secs(60));
        let round = second.round(now).await;
        assert!(round.tasks.is_empty(), "nothing may be asked");
    }
    let ended = text(
        &mut producer,
        "SELECT group_concat(state) FROM power_requests WHERE id < 3",
    )
    .await;
    assert_eq!(ended, "unknown,unknown");
    assert_eq!(queries(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_ahead_ends_no_job_early_and_expires_nothing() {
    let mut yard =
        Yard::new("[bms]\nservers = 4\nrunning = 1.0\noperation_ms = [300, 300]\n").await;
    yard.set("job_time_limit = \"10m\"");
    let settings = yard.settings();
    let begun = daemon::now();
    let mut dispatcher = dispatcher(&settings, begun).await;
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "reboot").await;
    sql(&mut producer, "INSERT INTO holds (target, action, kind, reason, since) VALUES ('default', 'stop', 'operator', 'paused', '2026-01-31T22:00:00.000Z')").await;
    insert(&mut producer, &yard.server(2), "stop").await;
    let two_days = Duration::from_secs(2 * 86_400);
    let mut step = Duration::ZERO;
    for _ in 0..400 {
        let present = daemon::now();
        let now = Now {
            utc: present.utc + step,
            ..present
        };
        let round = dispatcher.round(now).await;
        for task in round.tasks {
            let finished = task.run().await;
            dispatcher.finish(finished, now).await.expect("stored");
        }
        let first = "SELECT CASE r.state WHEN 'running' THEN b.state ELSE r.state END
                     FROM power_requests r LEFT JOIN batches b ON b.id = r.batch_id WHERE r.id = 1";
        match text(&mut producer, first).await.as_str() {
            "queued" | "submitting" | "looking" => {}
            "tracking" => step = two_days,
            _ => break,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let states = text(
        &mut producer,
        "SELECT group_concat(state || '/' || ifnull(evidence, '-')) FROM power_requests",
    )
    .await;
    assert_eq!(states, "succeeded/job,queued/-");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_by_a_clock_that_has_been_set_back_is_due_in_time() {
    let yard = Yard::new(QUICK).await;
    let settings = yard.settings();
    let present = daemon::now();
    let ahead = Now {
        utc: present.utc + Duration::from_secs(86_400),
        ..present
    };
    let mut first = dispatcher(&settings, ahead).await;
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    for _ in 0..10 {
        let round = first.round(ahead).await;
        for task in round.tasks {
            let finished = task.run().await;
            first.finish(finished, ahead).await.expect("stored");
        }
    }
    assert_eq!(
        text(&mut producer, "SELECT state FROM batches").await,
        "tracking"
    );
    drop(first);
    let daemon = yard.start();
    assert_eq!(outcomes(&mut producer).await, "1 succeeded/job");
    daemon.stop().await;
}

/// Two rounds, and what follows from them at once.
async fn two_rounds(dispatcher: &mut Dispatcher, now: Now) {
    for _ in 0..2 {
        for task in dispatcher.round(now).await.tasks {
            let finished = task.run().await;
            dispatcher.finish(finished, now).await.expect("stored");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_counts_a_call_by_its_age_whatever_the_clock_is_set_to() {
    let mut yard = Yard::new(QUICK).await;
    yard.target_lines.push_str("budget = { stop = \"1/1h\" }\n");
    let settings = yard.settings();
    let begun = daemon::now();
    let moment = |passed: u64, set_ms: i64| {
        let now = later(begun, Duration::from_secs(passed));
        Now {
            utc: now.utc.moved(set_ms),
            ..now
        }
    };
    let mut first = dispatcher(&settings, begun).await;
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    two_rounds(&mut first, begun).await;
    drop(first);
    insert(&mut producer, &yard.server(2), "stop").await;
    let two_hours = 2 * 3_600_000;
    for (run, sets) in [
        [0, two_hours],
        [-two_hours, two_hours],
        [two_hours, 0],
        [0, -two_hours],
    ]
    .into_iter()
    .enumerate()
    {
        let passed = 100 * run as u64;
        let mut dispatcher = dispatcher(&settings, moment(passed, sets[0])).await;
        for (minute, set_ms) in sets.into_iter().enumerate() {
            let now = moment(passed + 60 * minute as u64, set_ms);
            two_rounds(&mut dispatcher, now).await;
            assert_eq!(
                yard.cloud.ledger().len(),
                1,
                "run {run}, set by {set_ms} ms"
            );
        }
    }
    let hour_over = moment(3601, -two_hours);
    two_rounds(&mut dispatcher(&settings, hour_over).await, hour_over).await;
    assert_eq!(yard.cloud.ledger().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_batch_frees_its_budget_at_once() {
    let locked = fault("locked", "servers = [3]");
    let mut scene = Scene::new(
        &format!(
            "[bms]\nservers = 20\nrunning = 1.0\noperation_ms = [10, 50]\n[latency]\nsubmit_ms = [300, 300]\n{locked}"
        ),
        &["budget = { stop = \"5/1h\" }"],
    )
    .await;
    // The key is taken, so that nobody waits for that.
    scene.ask(PowerAction::Reboot, [20]).await;
    scene
        .wait_for(
            "SELECT state FROM power_requests WHERE action = 'reboot'",
            "succeeded",
        )
        .await;
    scene.ask(PowerAction::Stop, 1..=8).await;
    scene
        .wait_for(
            "SELECT count(*) FROM power_requests WHERE state = 'succeeded' AND action = 'stop'",
            "5",
        )
        .await;
    let left = "SELECT group_concat(state || ' ' || n, ', ') FROM (SELECT state, count(*) AS n FROM power_requests WHERE action = 'stop' GROUP BY state)";
    assert_eq!(scene.text(left).await, "failed 1, queued 2, succeeded 5");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_waits_for_a_lock_can_be_stopped() {
    let yard = Yard::new(QUICK).await;
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    daemon.stop().await;
    sql(&mut producer, "BEGIN IMMEDIATE").await;
    let started = std::time::Instant::now();
    let daemon = yard.start();
    daemon.stop().await;
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "it waited for the lock"
    );
    sql(&mut producer, "ROLLBACK").await;
    assert!(yard.cloud.calls().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_leaves_no_intent_in_doubt() {
    let mut yard =
        Yard::new("[bms]\nservers = 600\nrunning = 1.0\noperation_ms = [60000, 60000]\n").await;
    yard.set("batch_servers_max = 1");
    yard.set("submits_open_max = 64");
    yard.set("look_interval_max = \"30s\"");
    yard.set("first_look = \"30s\"");
    for more in [10, 60, 130] {
        let daemon = yard.start();
        let mut producer = yard.producer().await;
        let servers = yard.servers(600);
        insert_many(&mut producer, &servers, "stop").await;
        let submits = || {
            yard.cloud
                .calls()
                .iter()
                .filter(|call| call.call == Call::Submit)
                .count()
        };
        let many = submits() + more;
        while submits() < many {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        daemon.stop().await;
        let after = submits();
        assert_eq!(
            text(
                &mut producer,
                "SELECT count(*) FROM batches WHERE state = 'submitting'"
            )
            .await,
            "0"
        );
        let sent = "SELECT count(*) FROM batches WHERE submitted_at IS NOT NULL";
        assert_eq!(text(&mut producer, sent).await, after.to_string());
        sql(
            &mut producer,
            "UPDATE power_requests SET state = 'cancelled' WHERE state = 'queued'",
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_never_answers_hardly_delays_others_with_its_key() {
    let yard = Yard::new(QUICK).await;
    let settings = two_targets(&yard);
    let mut now = daemon::now();
    let mut dispatcher = dispatcher(&settings, now).await;
    let mut producer = yard.producer().await;
    sql(
        &mut producer,
        "INSERT INTO power_requests (server_id, action, target) VALUES ('x', 'stop', 'another')",
    )
    .await;
    insert(&mut producer, &yard.server(1), "stop").await;
    // The first call is that of `another`; no answer to it comes for as long as it is not carried
    // out.
    now = later(now, Duration::from_secs(1));
    let without_answer = dispatcher.round(now).await.tasks;
    assert!(
        matches!(without_answer.as_slice(), [Task::Prepare { target, .. }] if target.0 == "another")
    );
    let at_once = dispatcher.round(now).await;
    assert!(at_once.tasks.is_empty(), "two bad signatures at a time");
    assert!(
        at_once
            .wake_at
            .is_some_and(|at| at <= now.utc + Duration::from_secs(1))
    );
    now = later(now, Duration::from_secs(1));
    let mut submitted = Vec::new();
    for _ in 0..4 {
        let round = dispatcher.round(now).await;
        for task in carry_out(&mut dispatcher, round, now).await {
            if let Task::Submit { batch, .. } = task {
                submitted.push(batch.target.0);
            }
        }
    }
    assert_eq!(submitted, ["default"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_behind_a_lock_waits_for_calls_and_not_for_reads() {
    let yard = Yard::new(QUICK).await;
    let settings = yard.settings();
    let mut now = daemon::now();
    let mut dispatcher = dispatcher(&settings, now).await;
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "reboot").await;
    let mut track = None;
    for _ in 0..200 {
        now = later(now, Duration::from_millis(50));
        let round = dispatcher.round(now).await;
        for task in round.tasks {
            match task {
                Task::Track { .. } => track = Some(task),
                task => {
                    let finished = task.run().await;
                    dispatcher.finish(finished, now).await.expect("stored");
                }
            }
        }
    }
    sql(&mut producer, "BEGIN IMMEDIATE").await;
    let finished = track.expect("the job is asked for").run().await;
    dispatcher
        .finish(finished, now)
        .await
        .expect("kept in memory");
    assert_eq!((dispatcher.unsaved(), dispatcher.unsaved_submits()), (1, 0));
    sql(&mut producer, "ROLLBACK").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_call_whose_answer_names_a_wait_of_days_holds_for_days() {
    let yard = Yard::new(QUICK).await;
    let mut now = daemon::now();
    let mut dispatcher = dispatcher(&yard.settings(), now).await;
    let mut producer = yard.producer().await;
    insert_many(&mut producer, &[yard.server(1), yard.server(2)], "reboot").await;
    let mut submits = Vec::new();
    for _ in 0..4 {
        now = later(now, Duration::from_secs(1));
        let round = dispatcher.round(now).await;
        submits.extend(carry_out(&mut dispatcher, round, now).await);
    }
    let Some(Task::Submit { batch, cloud }) = submits.pop() else {
        panic!("a call leaves")
    };
    let three_days = Duration::from_secs(3 * 86_400);
    let answer = Err(CallError {
        fault: Fault::Lost,
        status: Some(503),
        code: String::new(),
        message: "maintenance".to_owned(),
        request_id: None,
        retry_after: Some(three_days),
    });
    let finished = Finished::Submitted {
        batch,
        answer,
        signed: cloud.key().signed(),
    };
    dispatcher.finish(finished, now).await.expect("stored");
    let until = text(
        &mut producer,
        "SELECT until FROM holds WHERE kind = 'breaker'",
    )
    .await;
    assert_eq!(until, (now.utc + three_days).to_string());
}
