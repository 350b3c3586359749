//! Every answer that the cloud can give, and every absence of one, against the running daemon: what
//! becomes of the rows, what the cloud carried out, and how many calls it took.

use std::time::{Duration, Instant};

use crate::common::process::until;
use crate::common::scene::{Scene, bad_signatures, fault};
use crate::common::{PROJECT, Yard, insert, outcomes, secret, text, wait_for};
use futures_util::future::join_all;
use poweryard::model::PowerAction::{self, Reboot, Start, Stop};
use poweryard::settings::Settings;
use poweryard::sim::{Call, OnOff};

const ACTIONS: [PowerAction; 3] = [Start, Stop, Reboot];

/// One server that is not as `action` wishes it to be.
fn one_server(action: PowerAction, operation_ms: u32, fault: &str) -> String {
    let running = if action == Start { "0.0" } else { "1.0" };
    format!(
        "[bms]\nservers = 1\nrunning = {running}\noperation_ms = [{operation_ms}, {operation_ms}]\n{fault}"
    )
}

/// What became of the one request: state, evidence and code; attempts; submit calls; operations
/// carried out.
type Fate = (String, String, usize, usize);

async fn fate(action: PowerAction, operation_ms: u32, faults: &str, lines: &[&str]) -> Fate {
    let mut scene = Scene::new(&one_server(action, operation_ms, faults), lines).await;
    scene.ask(action, [1]).await;
    let end = scene.outcomes().await;
    let attempts = scene.text("SELECT attempts FROM power_requests").await;
    scene.daemon.stop().await;
    let calls = scene
        .yard
        .cloud
        .calls()
        .iter()
        .filter(|call| call.call == Call::Submit)
        .count();
    (end, attempts, calls, scene.yard.cloud.ledger().len())
}

fn expected(end: &str, attempts: u32, calls: usize, carried_out: usize) -> Fate {
    (format!("1 {end}"), attempts.to_string(), calls, carried_out)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_lost_answer_only_start_and_stop_are_sent_again() {
    let submit = "on = [\"submit\"]\ncalls = [1]\n";
    let not_carried_out: Vec<String> = [500, 502, 504]
        .iter()
        .map(|status| fault("error_before", &format!("{submit}status = {status}")))
        .chain([fault("drop_before", submit)])
        .collect();
    let carried_out: Vec<String> = [500, 502, 503, 504]
        .iter()
        .map(|status| fault("error_after", &format!("{submit}status = {status}")))
        .chain(
            [
                "drop_after",
                "html_body",
                "malformed_body",
                "truncated_body",
                "oversized_body",
            ]
            .map(|kind| fault(kind, submit)),
        )
        .collect();
    let mut cases = Vec::new();
    for action in ACTIONS {
        for faults in &not_carried_out {
            let end = match action {
                Start | Stop => expected("succeeded/job", 2, 2, 1),
                Reboot => expected("unknown/none/poweryard.unproved", 1, 1, 0),
            };
            cases.push((action, 20, faults, end));
        }
        for faults in &carried_out {
            // Long enough to be seen in time on a busy machine, too.
            cases.push((
                action,
                3000,
                faults,
                expected("succeeded/observed", 1, 1, 1),
            ));
        }
    }
    // A reboot that is over before anybody looks leaves no mark.
    cases.push((
        Reboot,
        1,
        &carried_out[4],
        expected("unknown/none/poweryard.unproved", 1, 1, 1),
    ));
    let fates = join_all(
        cases
            .iter()
            .map(|(action, ms, faults, _)| fate(*action, *ms, faults, &[])),
    )
    .await;
    for ((action, _, faults, end), seen) in cases.iter().zip(fates) {
        assert_eq!(seen, *end, "{action} with {faults}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_gateway_says_it_did_not_pass_on_is_sent_again_reboots_too() {
    let submit = "on = [\"submit\"]\ncalls = [1]\n";
    let faults = [
        fault("error_before", &format!("{submit}status = 503")),
        fault("throttle", submit),
        fault("refuse", submit),
        fault(
            "refuse",
            &format!("{submit}code = \"APIGW.0308\"\nstatus = 400\nmessage = \"too many\""),
        ),
    ];
    let cases: Vec<_> = ACTIONS
        .into_iter()
        .flat_map(|action| faults.iter().map(move |f| (action, f)))
        .collect();
    let fates = join_all(
        cases
            .iter()
            .map(|(action, faults)| fate(*action, 20, faults, &[])),
    )
    .await;
    for ((action, faults), seen) in cases.iter().zip(fates) {
        assert_eq!(
            seen,
            expected("succeeded/job", 1, 2, 1),
            "{action} with {faults}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_throttling_the_clouds_wait_is_kept_else_waits_double() {
    let waits = |faults: String| async move {
        let mut scene = Scene::new(&one_server(Reboot, 20, &faults), &[]).await;
        scene.ask(Reboot, [1]).await;
        scene
            .wait_for(
                "SELECT count(*) FROM holds WHERE kind = 'breaker' AND until IS NOT NULL",
                "1",
            )
            .await;
        // The hold comes first, then the request goes back to the queue.
        scene
            .wait_for(
                "SELECT count(*) FROM power_waiting WHERE reason LIKE 'held: %'",
                "1",
            )
            .await;
        assert_eq!(scene.outcomes().await, "1 succeeded/job");
        assert_eq!(
            scene.text("SELECT count(*) FROM holds").await,
            "0",
            "the hold goes with its reason"
        );
        let calls = scene.calls(Call::Submit);
        scene.daemon.stop().await;
        calls
            .windows(2)
            .map(|pair| pair[1].at.since(pair[0].at))
            .collect::<Vec<Duration>>()
    };
    let on = "on = [\"submit\"]";
    let named = waits(fault(
        "throttle",
        &format!("{on}\ncalls = [1]\nretry_after_s = 5"),
    ));
    let nameless = waits(fault("throttle", &format!("{on}\ncalls = [1, 2]")));
    let disguised = waits(fault("refuse", &format!("{on}\ncalls = [1, 2]")));
    let (named, nameless, disguised) = tokio::join!(named, nameless, disguised);
    assert!(
        named.len() == 1 && named[0] >= Duration::from_secs(5),
        "{named:?}"
    );
    for waits in [nameless, disguised] {
        assert!(waits.len() == 2, "{waits:?}");
        assert!(
            waits[0] >= Duration::from_secs(2) && waits[1] >= Duration::from_secs(4),
            "{waits:?}"
        );
        assert!(waits[1] < Duration::from_secs(8), "{waits:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_servers_do_not_sink_their_batch_however_the_cloud_says_it() {
    let styles = [
        "refusals = \"batch\"\nmissing_show = \"error\"",
        "refusals = \"batch\"\nmissing_show = \"not_found\"",
        "refusals = \"batch\"\nmissing_show = \"deleted\"\nidle_task_state = \"null\"",
        "refusals = \"sub_job\"\nparent_on_failure = \"fail\"",
        "refusals = \"sub_job\"\nparent_on_failure = \"success\"",
        "refusals = \"sub_job\"\nparent_on_failure = \"fail\"\nsub_jobs_without_id = true",
        "refusals = \"sub_job\"\nparent_on_failure = \"success\"\nsub_jobs_without_id = true\ninit_polls = 3",
    ];
    let cases: Vec<_> = ACTIONS
        .into_iter()
        .flat_map(|action| styles.map(|style| (action, style)))
        .collect();
    join_all(
        cases
            .into_iter()
            .map(|(action, style)| mixed_batch(action, style)),
    )
    .await;
}

/// Twenty servers: one missing, one locked, some already stopped, some running.
async fn mixed_batch(action: PowerAction, style: &str) {
    let faults = fault("missing", "servers = [7]") + &fault("locked", "servers = [8]");
    let scenario =
        format!("[bms]\nservers = 20\nrunning = 0.7\noperation_ms = [10, 200]\n{style}\n{faults}");
    let mut scene = Scene::new(&scenario, &[]).await;
    let before = scene.yard.powers();
    let bad = [scene.yard.server(7), scene.yard.server(8)];
    scene.ask(action, 1..=20).await;
    let summary = scene.outcomes().await;
    let rows: Vec<(String, String, String, Option<String>)> =
        sqlx::query_as("SELECT server_id, state, evidence, error_code FROM power_requests")
            .fetch_all(&mut scene.producer)
            .await
            .expect("readable");
    let ledger = scene.yard.cloud.ledger();
    let named = !style.contains("without_id");
    for (server, state, evidence, code) in &rows {
        let carried_out = ledger
            .iter()
            .filter(|entry| entry.server_id.to_string() == *server)
            .count();
        let (code, on) = (
            code.as_deref().unwrap_or_default(),
            before.get(server) == Some(&OnOff::On),
        );
        let line = format!(
            "{server} was {}: {state}/{evidence}/{code}; {style}; {action}: {summary}",
            if on { "on" } else { "off" }
        );
        let says = |codes: &[&str]| codes.contains(&code);
        let is_wished =
            !bad.contains(server) && matches!((action, on), (Start, true) | (Stop, false));
        let ok = if bad.contains(server) {
            let codes = [
                "BMS.0040",
                "BMS.0605",
                "poweryard.missing",
                "poweryard.locked",
            ];
            // A locked server of which no sub-job tells may show itself to be as wished.
            let shown = !named
                && evidence == "observed"
                && matches!((action, on), (Start, true) | (Stop, false));
            carried_out == 0
                && (state == "failed" && (says(&codes) || !named) || state == "succeeded" && shown)
        } else if is_wished {
            carried_out == 0 && (state == "succeeded" && evidence == "already" || !named)
        } else if action == Reboot && !on {
            state == "failed"
                && carried_out == 0
                && (says(&["BMS.0039", "poweryard.stopped"]) || !named)
        } else {
            state == "succeeded" && evidence == "job" && carried_out == 1
        };
        assert!(ok, "{line}");
    }
    assert!(
        scene.submits() <= 6,
        "{} calls for {style}",
        scene.submits()
    );
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_the_job_does_not_tell_of_is_looked_at() {
    let cases: Vec<_> = ACTIONS
        .into_iter()
        .flat_map(|action| ["sub_job_without_id", "sub_job_left_out"].map(|kind| (action, kind)))
        .collect();
    join_all(cases.into_iter().map(|(action, kind)| async move {
        let running = if action == Start { "0.0" } else { "1.0" };
        let scenario = format!(
            "[bms]\nservers = 6\nrunning = {running}\noperation_ms = [50, 50]\n{}",
            fault(kind, "servers = [2]")
        );
        let mut scene = Scene::new(&scenario, &[]).await;
        scene.ask(action, 1..=6).await;
        let end = match action {
            Start | Stop => "5 succeeded/job, 1 succeeded/observed",
            // Its job was over when the gap was noticed.
            Reboot => "5 succeeded/job, 1 unknown/none/poweryard.unproved",
        };
        assert_eq!(scene.outcomes().await, end, "{action} {kind}");
        assert_eq!((scene.submits(), scene.carried_out()), (1, 6));
        scene.daemon.stop().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_vanishes_or_never_ends_leads_to_the_servers_themselves() {
    let first = "calls = [1]";
    let vanishes = fault("job_vanishes", first);
    let endless = fault("job_never_ends", first);
    let stuck = fault("operation_never_ends", first);
    let limit: &[&str] = &["job_time_limit = \"1s\"", "look_time_limit = \"3s\""];
    let mut cases = Vec::new();
    for action in ACTIONS {
        let gone = if action == Reboot {
            "unknown/none/poweryard.unproved"
        } else {
            "succeeded/observed"
        };
        cases.push((action, 1, &vanishes, gone));
        cases.push((action, 10, &endless, gone));
        // Long enough to be seen in transition.
        cases.push((action, 1500, &vanishes, "succeeded/observed"));
        cases.push((action, 1500, &endless, "succeeded/observed"));
        cases.push((action, 10, &stuck, "unknown/none/poweryard.time_limit"));
    }
    let fates = join_all(
        cases
            .iter()
            .map(|(action, ms, faults, _)| fate(*action, *ms, faults, limit)),
    )
    .await;
    for ((action, ms, faults, end), seen) in cases.iter().zip(fates) {
        assert_eq!(
            seen,
            expected(end, 1, 1, 1),
            "{action} of {ms} ms with {faults}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_answers_to_reads_are_asked_for_again() {
    let kinds = [
        "html_body",
        "malformed_body",
        "truncated_body",
        "oversized_body",
        "drop_before",
        "drop_after",
        "error_before",
        "error_after",
        "throttle",
        "redirect",
    ];
    let on_job = kinds.map(|kind| async move {
        let faults = fault(kind, "on = [\"job\"]\ncalls = [1, 2]");
        (kind, fate(Reboot, 20, &faults, &[]).await)
    });
    let on_list = kinds.map(|kind| async move {
        let faults =
            fault(kind, "on = [\"list\"]\ncalls = [1]") + &fault("missing", "servers = [3]");
        let scenario =
            format!("[bms]\nservers = 30\nrunning = 1.0\noperation_ms = [10, 20]\n{faults}");
        // Without a list each server is shown, and the look ends once an eighth of this time brings
        // no answer.
        let lines = ["settle_time = \"16s\"", "look_time_limit = \"1m\""];
        let mut scene = Scene::new(&scenario, &lines).await;
        scene.ask(Stop, 1..=30).await;
        let end = scene.outcomes().await;
        scene.daemon.stop().await;
        let calls = scene.yard.cloud.calls();
        (
            kind,
            end,
            calls
                .iter()
                .filter(|call| call.call == Call::Submit)
                .count(),
        )
    });
    let (on_job, on_list) = tokio::join!(join_all(on_job), join_all(on_list));
    for (kind, seen) in on_job {
        assert_eq!(seen, expected("succeeded/job", 1, 1, 1), "{kind} on job");
    }
    for (kind, end, submits) in on_list {
        assert_eq!(
            (end.as_str(), submits),
            ("1 failed/observed/poweryard.missing, 29 succeeded/job", 2),
            "{kind} on list"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirected_submit_was_not_sent_and_holds_the_target() {
    join_all([301, 302, 307, 308].map(|status| async move {
        let faults = fault(
            "redirect",
            &format!("on = [\"submit\"]\ncalls = [1]\nstatus = {status}"),
        );
        let mut scene = Scene::new(&one_server(Reboot, 10, &faults), &[]).await;
        scene.ask(Reboot, [1]).await;
        scene
            .wait_for(
                "SELECT count(*) FROM holds WHERE target = 'default' AND until IS NOT NULL",
                "1",
            )
            .await;
        scene.a_round_passes().await;
        let row = "SELECT state || ' ' || attempts FROM power_requests WHERE target = 'default'";
        assert_eq!(scene.text(row).await, "queued 0");
        assert!(
            scene
                .text("SELECT reason FROM power_waiting WHERE target = 'default'")
                .await
                .starts_with("held: ")
        );
        assert_eq!((scene.submits(), scene.carried_out()), (1, 0));
        scene.daemon.stop().await;
    }))
    .await;
}

/// The config with a token instead of keys.
fn with_token(yard: &Yard, password: &str) -> Settings {
    let path = yard.write_config();
    let config = std::fs::read_to_string(&path).expect("written");
    let config = config
        .split("[targets.default.auth]")
        .next()
        .unwrap_or_default();
    let file = secret(yard.dir.path(), "password", password);
    let auth = format!(
        "{config}[targets.default.auth]\nkind = \"token\"\niam_endpoint = \"{}\"\ndomain = \"sim\"\nusername = \"sim\"\npassword_file = \"{}\"\n",
        yard.cloud.base_url(),
        file.display()
    );
    std::fs::write(&path, auth).expect("written");
    Settings::load(&path).expect("a valid config")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_renewed_and_the_call_made_again() {
    for code in ["APIGW.0301", "APIGW.0307"] {
        let faults = fault(
            "expired_token",
            &format!("on = [\"submit\", \"job\"]\ncalls = [1]\ncode = \"{code}\""),
        );
        let yard = Yard::new(&one_server(Reboot, 10, &faults)).await;
        let daemon = yard.start_with(with_token(&yard, "sim-password"));
        let mut producer = yard.producer().await;
        insert(&mut producer, &yard.server(1), "reboot").await;
        assert_eq!(outcomes(&mut producer).await, "1 succeeded/job");
        daemon.stop().await;
        assert_eq!(yard.cloud.ledger().len(), 1);
        assert_eq!(
            text(&mut producer, "SELECT attempts FROM power_requests").await,
            "1"
        );
        let tokens = yard
            .cloud
            .calls()
            .iter()
            .filter(|call| call.call == Call::Token)
            .count();
        assert_eq!(tokens, 3, "one at the start, one for each refusal");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_live_a_second_carry_a_day_of_work() {
    let yard = Yard::new(
        "token_lifetime_s = 1\n[bms]\nservers = 8\nrunning = 1.0\noperation_ms = [900, 1100]\n",
    )
    .await;
    let daemon = yard.start_with(with_token(&yard, "sim-password"));
    let mut producer = yard.producer().await;
    for number in 1..=4 {
        insert(&mut producer, &yard.server(number), "reboot").await;
        outcomes(&mut producer).await;
    }
    assert_eq!(outcomes(&mut producer).await, "4 succeeded/job");
    daemon.stop().await;
    assert_eq!(yard.cloud.ledger().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_holds_the_target_before_any_call() {
    let yard = Yard::new(&one_server(Reboot, 10, "")).await;
    let daemon = yard.start_with(with_token(&yard, "wrong"));
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "reboot").await;
    wait_for(
        &mut producer,
        "SELECT count(*) FROM holds WHERE kind = 'credentials'",
        "1",
    )
    .await;
    assert!(
        text(&mut producer, "SELECT reason FROM power_waiting")
            .await
            .starts_with("held: ")
    );
    daemon.stop().await;
    let calls = yard.cloud.calls();
    assert!(
        calls.iter().all(|call| call.call == Call::Token) && calls.len() <= 2,
        "{calls:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_key_costs_two_bad_signatures_and_then_a_hold() {
    let mut yard =
        Yard::new("[bms]\nservers = 300\nrunning = 0.5\noperation_ms = [10, 20]\n").await;
    yard.set("batch_servers_max = 10");
    let settings = yard.settings();
    secret(yard.dir.path(), "secret-key", "not-the-secret-key");
    let daemon = yard.start_with(settings.clone());
    let producer = yard.producer().await;
    let mut scene = Scene {
        yard,
        daemon,
        producer,
    };
    for action in ACTIONS {
        scene.ask(action, 1..=100).await;
    }
    scene
        .wait_for(
            "SELECT count(*) FROM holds WHERE kind = 'credentials' AND until IS NOT NULL",
            "1",
        )
        .await;
    until("no call is open", || {
        scene.yard.cloud.calls().len() == bad_signatures(&scene.yard)
    })
    .await;
    scene
        .wait_for(
            "SELECT count(*) FROM power_requests WHERE state <> 'queued'",
            "0",
        )
        .await;
    scene.a_round_passes().await;
    assert!(
        bad_signatures(&scene.yard) <= 2,
        "{} bad signatures",
        bad_signatures(&scene.yard)
    );
    assert_eq!(
        scene.text("SELECT sum(attempts) FROM power_requests").await,
        "0"
    );
    let held = "SELECT count(*) FROM power_waiting WHERE target = 'default' AND reason NOT LIKE 'held: %' AND reason NOT LIKE 'behind %'";
    assert_eq!(scene.text(held).await, "0");
    scene.daemon.stop().await;

    scene.daemon = scene.yard.start_with(settings);
    scene.a_round_passes().await;
    scene.a_round_passes().await;
    assert!(
        bad_signatures(&scene.yard) <= 2,
        "{} bad signatures after a restart",
        bad_signatures(&scene.yard)
    );
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_became_wrong_costs_two_reads_not_one_for_each_job() {
    let mut yard =
        Yard::new("[bms]\nservers = 30\nrunning = 1.0\noperation_ms = [60000, 60000]\n").await;
    yard.set("batch_servers_max = 2");
    let settings = yard.settings();
    let daemon = yard.start_with(settings.clone());
    let producer = yard.producer().await;
    let mut scene = Scene {
        yard,
        daemon,
        producer,
    };
    scene.ask(Reboot, 1..=30).await;
    scene
        .wait_for(
            "SELECT count(*) FROM batches WHERE state = 'tracking'",
            "15",
        )
        .await;
    scene.daemon.stop().await;

    secret(scene.yard.dir.path(), "secret-key", "not-the-secret-key");
    scene.daemon = scene.yard.start_with(settings);
    scene
        .wait_for(
            "SELECT count(*) FROM holds WHERE kind = 'credentials' AND until IS NOT NULL",
            "1",
        )
        .await;
    scene.a_round_passes().await;
    scene.a_round_passes().await;
    assert!(
        bad_signatures(&scene.yard) <= 2,
        "{} bad signatures",
        bad_signatures(&scene.yard)
    );
    assert_eq!(
        scene
            .text("SELECT count(*) FROM power_requests WHERE state = 'running'")
            .await,
        "30"
    );
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_targets_with_one_wrong_key_cost_as_many_bad_signatures_as_one() {
    let yard = Yard::new("[bms]\nservers = 4\nrunning = 1.0\n").await;
    let path = yard.write_config();
    let config = std::fs::read_to_string(&path).expect("written");
    let second: String = config
        .split("[targets.")
        .skip(1)
        .map(|table| format!("[targets.{}", table.replacen("default", "second", 1)))
        .collect();
    std::fs::write(
        &path,
        config + &second.replace(PROJECT, "0123456789abcdef0123456789abcdef"),
    )
    .expect("written");
    secret(yard.dir.path(), "secret-key", "not-the-secret-key");
    let daemon = yard.start_with(Settings::load(&path).expect("a valid config"));
    let producer = yard.producer().await;
    let mut scene = Scene {
        yard,
        daemon,
        producer,
    };
    for target in ["default", "second"] {
        sqlx::query(
            "INSERT INTO power_requests (server_id, action, target) VALUES ('x', 'stop', ?)",
        )
        .bind(target)
        .execute(&mut scene.producer)
        .await
        .expect("accepted");
    }
    scene
        .wait_for(
            "SELECT count(*) FROM holds WHERE kind = 'credentials' AND until IS NOT NULL",
            "2",
        )
        .await;
    scene.a_round_passes().await;
    assert!(
        bad_signatures(&scene.yard) <= 2,
        "{} bad signatures",
        bad_signatures(&scene.yard)
    );
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_server_alone_is_settled_by_the_answer_about_it() {
    let alone = |action: PowerAction, running: &'static str, faults: String| async move {
        let scenario =
            format!("[bms]\nservers = 1\nrunning = {running}\noperation_ms = [10, 20]\n{faults}");
        let mut scene = Scene::new(&scenario, &[]).await;
        scene.ask(action, [1]).await;
        let end = scene.outcomes().await;
        assert_eq!(
            (scene.submits(), scene.carried_out()),
            (1, 0),
            "{action}: {end}"
        );
        assert_eq!(scene.text("SELECT attempts FROM power_requests").await, "0");
        scene.daemon.stop().await;
        end
    };
    for action in ACTIONS {
        let running = if action == Start { "0.0" } else { "1.0" };
        let missing = alone(action, running, fault("missing", "servers = [1]"));
        let locked = alone(action, running, fault("locked", "servers = [1]"));
        let (missing, locked) = tokio::join!(missing, locked);
        assert_eq!(
            (missing.as_str(), locked.as_str()),
            ("1 failed/refused/BMS.0040", "1 failed/refused/BMS.0605")
        );
    }
    assert_eq!(
        alone(Start, "1.0", String::new()).await,
        "1 succeeded/already"
    );
    assert_eq!(
        alone(Stop, "0.0", String::new()).await,
        "1 succeeded/already"
    );
    assert_eq!(
        alone(Reboot, "0.0", String::new()).await,
        "1 failed/refused/BMS.0039"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn with_states_unreadable_one_culprit_costs_two_calls_for_each_halving() {
    join_all(
        [(Stop, 100, 37), (Start, 33, 1)].map(|(action, servers, culprit)| async move {
            let running = if action == Start { "0.0" } else { "1.0" };
            let faults = fault("missing", &format!("servers = [{culprit}]"))
                + &fault(
                    "error_before",
                    "status = 500\non = [\"list\", \"show\"]\nchance = 1.0",
                );
            let scenario = format!(
                "[bms]\nservers = {servers}\nrunning = {running}\noperation_ms = [10, 20]\n{faults}"
            );
            let mut scene = Scene::new(&scenario, &[]).await;
            scene.ask(action, 1..=servers).await;
            let end = format!("1 failed/refused/BMS.0040, {} succeeded/job", servers - 1);
            assert_eq!(scene.outcomes().await, end);
            let halvings = usize::BITS - (servers - 1).leading_zeros();
            let after_the_first = scene.submits() - 1;
            assert!(
                after_the_first <= 2 * halvings as usize,
                "{after_the_first} calls for {servers} servers"
            );
            assert_eq!(scene.carried_out(), servers - 1);
            scene.daemon.stop().await;
        }),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_reboots_that_nobody_could_look_at_are_not_sent_again() {
    let faults = fault("missing", "servers = [8]")
        + &fault(
            "error_before",
            "status = 500\non = [\"list\", \"show\"]\nchance = 1.0",
        );
    let scenario = format!("[bms]\nservers = 8\nrunning = 1.0\noperation_ms = [10, 20]\n{faults}");
    let mut scene = Scene::new(&scenario, &["look_time_limit = \"2s\""]).await;
    scene.ask(Reboot, 1..=8).await;
    assert_eq!(
        scene.outcomes().await,
        "8 unknown/none/poweryard.time_limit"
    );
    assert_eq!((scene.submits(), scene.carried_out()), (1, 0));
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_servers_wait_apart_and_delay_nobody() {
    let stuck = fault("operation_never_ends", "calls = [1]");
    let scenario = format!("[bms]\nservers = 200\nrunning = 1.0\noperation_ms = [10, 20]\n{stuck}");
    let mut scene = Scene::new(
        &scenario,
        &["job_time_limit = \"100ms\"", "look_time_limit = \"1100ms\""],
    )
    .await;
    scene.ask(Reboot, [10, 20, 30]).await;
    assert_eq!(
        scene.outcomes().await,
        "3 unknown/none/poweryard.time_limit"
    );
    let begin = Instant::now();
    scene.ask(Stop, 1..=200).await;
    let done = "SELECT count(*) FROM power_requests WHERE action = 'stop' AND state = 'succeeded'";
    scene.wait_for(done, "197").await;
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
    let busy = "SELECT count(*) FROM power_waiting WHERE reason LIKE 'retry at %'";
    assert_eq!(scene.text(busy).await, "3");
    assert_eq!(
        scene
            .text("SELECT sum(attempts) FROM power_requests WHERE state = 'queued'")
            .await,
        "0"
    );
    let calls = scene.submits();
    // New work is not joined to the busy ones, and goes at once.
    let begin = Instant::now();
    scene.ask(Start, 101..=150).await;
    scene
        .wait_for(
            "SELECT count(*) FROM power_requests WHERE action = 'start' AND state = 'succeeded'",
            "50",
        )
        .await;
    assert!(
        begin.elapsed() < Duration::from_secs(3),
        "{:?}",
        begin.elapsed()
    );
    assert!(scene.submits() <= calls + 3);
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_a_target_that_the_config_lacks_wait_until_it_has_it() {
    let mut scene = Scene::new(&one_server(Stop, 10, ""), &[]).await;
    let server = scene.yard.server(1);
    sqlx::query(
        "INSERT INTO power_requests (server_id, action, target) VALUES (?, 'stop', 'elsewhere')",
    )
    .bind(&server)
    .execute(&mut scene.producer)
    .await
    .expect("accepted");
    scene
        .wait_for(
            "SELECT kind || ' ' || target FROM holds",
            "unknown_target elsewhere",
        )
        .await;
    let reason = scene.text("SELECT reason FROM power_waiting").await;
    assert!(
        reason.starts_with("held: ") && reason.contains("elsewhere"),
        "{reason}"
    );
    assert_eq!(scene.submits(), 0);
    scene.daemon.stop().await;

    let path = scene
        .yard
        .write_config_for("elsewhere", &scene.yard.cloud.base_url());
    scene.daemon = scene
        .yard
        .start_with(Settings::load(&path).expect("a valid config"));
    assert_eq!(scene.outcomes().await, "1 succeeded/job");
    assert_eq!(scene.text("SELECT count(*) FROM holds").await, "0");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_request_takes_the_hold_of_its_unknown_target_with_it() {
    let mut scene = Scene::new(&one_server(Stop, 10, ""), &[]).await;
    scene.a_round_passes().await;
    scene.wait_for("SELECT count(*) FROM holds", "0").await;
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chains_go_in_order_and_a_broken_link_cancels_what_follows() {
    let faults = fault("missing", "servers = [10]");
    let scenario = format!("[bms]\nservers = 10\nrunning = 1.0\noperation_ms = [10, 60]\n{faults}");
    let mut scene = Scene::new(&scenario, &[]).await;
    let soon = scene
        .text("SELECT strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+1.5 seconds')")
        .await;
    for number in 1..=10 {
        let server = scene.yard.server(number);
        let mut after = None;
        for (action, not_before) in [("stop", None), ("start", Some(&soon)), ("reboot", None)] {
            let sql = "INSERT INTO power_requests (server_id, action, after_id, not_before) VALUES (?, ?, ?, ?)";
            let row = sqlx::query(sql)
                .bind(&server)
                .bind(action)
                .bind(after)
                .bind(not_before);
            after = Some(
                row.execute(&mut scene.producer)
                    .await
                    .expect("accepted")
                    .last_insert_rowid(),
            );
        }
    }
    let end = scene.outcomes().await;
    let alone = "2 cancelled/none/poweryard.dependency, 1 failed/";
    assert!(
        end.starts_with(alone) && end.ends_with(", 27 succeeded/job"),
        "{end}"
    );
    let ledger = scene.yard.cloud.ledger();
    for number in 1..=9 {
        let server = scene.yard.server(number);
        let own: Vec<_> = ledger
            .iter()
            .filter(|entry| entry.server_id.to_string() == server)
            .collect();
        assert_eq!(
            own.iter().map(|entry| entry.action).collect::<Vec<_>>(),
            [Stop, Start, Reboot]
        );
        assert!(
            own[1].at.to_string() >= soon,
            "{} is before {soon}",
            own[1].at
        );
    }
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_by_command_holds_what_it_names_and_resume_releases_it() {
    let mut scene = Scene::new(
        "[bms]\nservers = 20\nrunning = 0.5\noperation_ms = [400, 500]\n",
        &[],
    )
    .await;
    let running: Vec<usize> = (1..=20)
        .filter(|number| scene.yard.cloud.servers()[number - 1].power == OnOff::On)
        .collect();
    let stopped: Vec<usize> = (1..=20)
        .filter(|number| !running.contains(number))
        .collect();
    // What runs when the pause comes is still followed.
    scene.ask(Stop, running[..1].iter().copied()).await;
    scene
        .wait_for("SELECT state FROM batches", "tracking")
        .await;
    scene.command(&["pause", "--action", "stop"]).await;
    scene.ask(Stop, running[1..].iter().copied()).await;
    scene.ask(Start, stopped.iter().copied()).await;
    scene
        .wait_for(
            "SELECT count(*) FROM power_requests WHERE action = 'start' AND state = 'succeeded'",
            "10",
        )
        .await;
    assert_eq!(
        scene
            .text("SELECT state FROM power_requests WHERE id = 1")
            .await,
        "succeeded"
    );
    let held = "SELECT count(*) FROM power_waiting WHERE reason LIKE 'held: %'";
    assert_eq!(scene.text(held).await, "9");
    assert_eq!(scene.submits(), 2);
    scene.command(&["pause"]).await;
    scene.ask(Reboot, stopped[..1].iter().copied()).await;
    scene.a_round_passes().await;
    assert_eq!(
        (scene.text(held).await.as_str(), scene.submits()),
        ("10", 2),
        "everything is paused"
    );
    scene.command(&["resume"]).await;
    scene.a_round_passes().await;
    assert_eq!(
        scene.text(held).await,
        "9",
        "the pause of stops has words of its own"
    );
    scene.command(&["resume", "--all"]).await;
    scene
        .wait_for(
            "SELECT count(*) FROM power_requests WHERE state = 'succeeded'",
            "21",
        )
        .await;
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn higher_priorities_go_first_then_older_requests() {
    let mut scene = Scene::new(
        "[bms]\nservers = 12\nrunning = 1.0\noperation_ms = [10, 20]\n",
        &["batch_servers_max = 1"],
    )
    .await;
    scene.command(&["pause"]).await;
    for number in 1..=12 {
        let server = scene.yard.server(number);
        sqlx::query("INSERT INTO power_requests (server_id, action, priority) VALUES (?, ?, ?)")
            .bind(&server)
            .bind(if number % 2 == 0 { "stop" } else { "reboot" })
            .bind(((number * 7) % 5) as i64 - 2)
            .execute(&mut scene.producer)
            .await
            .expect("accepted");
    }
    scene.command(&["resume"]).await;
    assert_eq!(scene.outcomes().await, "12 succeeded/job");
    let order = "SELECT group_concat(id) FROM (SELECT id FROM power_requests ORDER BY batch_id)";
    let wanted =
        "SELECT group_concat(id) FROM (SELECT id FROM power_requests ORDER BY priority DESC, id)";
    assert_eq!(scene.text(order).await, scene.text(wanted).await);
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_time_passes_while_it_is_held_expires_and_is_never_sent() {
    let mut scene = Scene::new(
        "[bms]\nservers = 2\nrunning = 1.0\noperation_ms = [10, 20]\n",
        &[],
    )
    .await;
    scene.command(&["pause"]).await;
    let server = scene.yard.server(1);
    sqlx::query("INSERT INTO power_requests (server_id, action, expires_at) VALUES (?, 'stop', strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+0.7 seconds'))")
        .bind(&server)
        .execute(&mut scene.producer)
        .await
        .expect("accepted");
    assert!(
        scene
            .text("SELECT reason FROM power_waiting")
            .await
            .starts_with("held: ")
    );
    assert_eq!(scene.outcomes().await, "1 expired/none/poweryard.expired");
    assert_eq!(
        scene
            .text("SELECT finished_at >= expires_at FROM power_requests")
            .await,
        "1"
    );
    scene.command(&["resume"]).await;
    // The server is free for the next request, and nothing of the expired one leaves.
    scene.ask(Reboot, [1]).await;
    assert_eq!(
        scene.outcomes().await,
        "1 expired/none/poweryard.expired, 1 succeeded/job"
    );
    assert_eq!((scene.submits(), scene.carried_out()), (1, 1));
    scene.daemon.stop().await;
}
