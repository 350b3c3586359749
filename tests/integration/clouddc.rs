//! CloudDC, where no job tells and the servers' own states must: against the running daemon. Judged
//! by the rows, the ledger of the simulated cloud, and the calls that it took.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::common::judge::assert_rows_agree;
use crate::common::process::{self, Daemon, Dice, until};
use crate::common::{Running, Yard, insert, insert_many, outcomes, text, wait_for};
use futures_util::future::join_all;
use poweryard::model::PowerAction::{self, Reboot, Start, Stop};
use poweryard::model::Service;
use poweryard::sim::{Call, CallRecord, OnOff};
use sqlx::SqliteConnection;

struct Scene {
    yard: Yard,
    daemon: Running,
    producer: SqliteConnection,
}

async fn yard(scenario: &str, faults: &str, lines: &[&str]) -> Yard {
    let mut yard = Yard::new(&format!(
        "[bms]\nservers = 0\n[clouddc]\n{scenario}\n{faults}"
    ))
    .await;
    yard.service = Service::CloudDc;
    lines.iter().for_each(|line| yard.set(line));
    yard
}

impl Scene {
    async fn new(scenario: &str, lines: &[&str]) -> Self {
        Self::with_faults(scenario, "", lines).await
    }

    /// `faults` may be any further tables of the scenario.
    async fn with_faults(scenario: &str, faults: &str, lines: &[&str]) -> Self {
        let yard = yard(scenario, faults, lines).await;
        let daemon = yard.start();
        let producer = yard.producer().await;
        Self {
            yard,
            daemon,
            producer,
        }
    }

    /// Inserts requests for the servers with these numbers.
    async fn ask(&mut self, action: PowerAction, numbers: impl IntoIterator<Item = usize>) {
        let ids = self.yard.cloud.server_ids(Service::CloudDc);
        let servers: Vec<String> = numbers
            .into_iter()
            .map(|number| ids[number - 1].to_string())
            .collect();
        insert_many(&mut self.producer, &servers, action.as_str()).await;
    }

    async fn outcomes(&mut self) -> String {
        outcomes(&mut self.producer).await
    }

    async fn text(&mut self, sql: &str) -> String {
        text(&mut self.producer, sql).await
    }

    fn calls(&self, kind: Call) -> Vec<CallRecord> {
        calls(&self.yard, kind)
    }

    fn submits(&self) -> usize {
        self.calls(Call::Submit).len()
    }

    /// How many operations the cloud has carried out.
    fn carried_out(&self) -> usize {
        self.yard.cloud.ledger().len()
    }
}

fn calls(yard: &Yard, kind: Call) -> Vec<CallRecord> {
    yard.cloud
        .calls()
        .into_iter()
        .filter(|call| call.call == kind)
        .collect()
}

fn fault(kind: &str, more: &str) -> String {
    format!("[[faults]]\nkind = \"{kind}\"\nservice = \"clouddc\"\n{more}\n")
}

fn times_carried_out(yard: &Yard) -> HashMap<String, usize> {
    let mut times = HashMap::new();
    yard.cloud
        .ledger()
        .iter()
        .for_each(|entry| *times.entry(entry.server_id.to_string()).or_default() += 1);
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_of_fifty_go_out_and_each_server_is_settled_by_its_own_state() {
    let mut scene = Scene::new(
        "servers = 180\nrunning = 1.0\noperation_ms = [1500, 2500]\n",
        &[],
    )
    .await;
    scene.ask(Stop, 1..=60).await;
    scene.ask(Reboot, 61..=180).await;
    assert_eq!(scene.outcomes().await, "180 succeeded/observed");
    let mut sizes: Vec<usize> = scene
        .calls(Call::Submit)
        .iter()
        .map(|call| call.servers)
        .collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [10, 20, 50, 50, 50]);
    assert_eq!(scene.carried_out(), 180);
    let known = "SELECT count(*) FROM request_attempts WHERE baseline IS NOT NULL";
    assert_eq!(scene.text(known).await, "180");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_servers_take_100_calls_and_5_pages_a_look() {
    // Twice as many stand in the list, and what is followed stands in its first half.
    let lines = ["first_look = \"1s\"", "look_interval_max = \"2s\""];
    let mut scene = Scene::new(
        "servers = 10000\nrunning = 1.0\noperation_ms = [4000, 6000]\n",
        &lines,
    )
    .await;
    let begin = Instant::now();
    scene.ask(Stop, 1..=2500).await;
    scene.ask(Reboot, 2501..=5000).await;
    assert_eq!(scene.outcomes().await, "5000 succeeded/observed");
    let (took, submits) = (begin.elapsed(), scene.submits());
    let (pages, shows) = (scene.calls(Call::List).len(), scene.calls(Call::Show).len());
    let looks: usize = scene
        .text("SELECT sum(looks) FROM batches")
        .await
        .parse()
        .expect("a number");
    println!(
        "5000 servers: {submits} submits, {pages} pages, {shows} shows, {looks} looks of batches in {took:?}"
    );
    assert_eq!((submits, scene.carried_out()), (100, 5000));
    // Before every thousand and at every look five pages at most; the last few servers are asked
    // for alone.
    assert!(pages <= 150 && shows <= 20, "{pages} pages, {shows} shows");
    assert!(
        looks >= 4 * pages,
        "a look is one for all batches: {looks} of them took {pages} pages"
    );
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_is_told_from_an_earlier_one_in_the_servers_state() {
    let stale = "servers = 180\nrunning = 1.0\nfirst_states = [\"reboot-succeed\"]\n";
    for late in [
        "processing_after_ms = [0, 0]\noperation_ms = [1000, 1500]\n",
        "processing_after_ms = [500, 800]\noperation_ms = [2000, 2500]\n",
    ] {
        let lines = ["first_look = \"10s\"", "look_interval_max = \"10s\""];
        let mut scene = Scene::new(&format!("{stale}{late}"), &lines).await;
        scene.ask(Reboot, 1..=180).await;
        assert_eq!(scene.outcomes().await, "180 succeeded/observed", "{late}");
        assert_eq!((scene.submits(), scene.carried_out()), (4, 180));
        assert_eq!(
            scene
                .text("SELECT count(*) FROM request_attempts WHERE baseline = 'reboot succeeded'")
                .await,
            "180"
        );
        scene.daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unseen_reboot_beside_an_earlier_one_is_unknown_at_the_time_limit() {
    // One that is over before it shows; and one that fails, of which nothing is seen either where
    // an earlier one had failed.
    let hidden = "servers = 20\nrunning = 1.0\noperation_ms = [10, 20]\nprocessing_after_ms = [1000, 1000]\n";
    let cases = [
        (
            "first_states = [\"reboot-succeed\"]\n",
            String::new(),
            20,
            "20 unknown/none/poweryard.time_limit",
        ),
        (
            "first_states = [\"reboot-failed\"]\n",
            fault("operation_fails", "chance = 1.0"),
            0,
            "20 unknown/none/poweryard.time_limit",
        ),
        (
            "first_states = [\"reboot-failed\"]\n",
            String::new(),
            20,
            "20 succeeded/observed",
        ),
        (
            "first_states = [\"reboot-succeed\"]\n",
            fault("operation_fails", "chance = 1.0"),
            0,
            "20 failed/observed/CloudDC.0006",
        ),
    ];
    join_all(
        cases
            .into_iter()
            .map(|(states, faults, carried_out, end)| async move {
                let mut scene = Scene::with_faults(
                    &format!("{hidden}{states}"),
                    &faults,
                    &["job_time_limit = \"3s\""],
                )
                .await;
                scene.ask(Reboot, 1..=20).await;
                assert_eq!(scene.outcomes().await, end, "{states}{faults}");
                assert_eq!((scene.submits(), scene.carried_out()), (1, carried_out));
                scene.daemon.stop().await;
            }),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_servers_do_not_sink_their_batch_however_the_cloud_says_it() {
    let styles = [
        "refusals = \"batch\"\nmissing_show = \"not_found\"",
        "refusals = \"batch\"\nrefusal_names_server = false\nlocked_shows = \"frozen\"",
        "refusals = \"batch\"\nalready_so = \"accepted\"\ntransition_words = true",
        "refusals = \"left_out\"\nanswer_ids = \"template\"",
        "refusals = \"left_out\"\nalready_so = \"accepted\"\nlocked_shows = \"frozen_state\"",
        "refusals = \"listed\"\nno_operation_state = \"null\"",
        "refusals = \"listed\"\nalready_so = \"accepted\"",
    ];
    let cases: Vec<_> = [Start, Stop, Reboot]
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

/// Fifty servers: one missing, one locked, some already as wished; what each of them becomes, and
/// in how few calls.
async fn mixed_batch(action: PowerAction, style: &str) {
    let faults = fault("missing", "servers = [7]") + &fault("locked", "servers = [8]");
    // A server that never showed an operation would prove nothing of a refused reboot.
    let mark = if style.contains("\"batch\"") {
        "first_states = [\"power-on-succeed\"]\n"
    } else {
        ""
    };
    let scenario =
        format!("servers = 60\nrunning = 0.7\noperation_ms = [900, 1500]\n{mark}{style}\n");
    let mut scene = Scene::with_faults(&scenario, &faults, &["job_time_limit = \"4s\""]).await;
    let before = scene.yard.powers();
    let (missing, locked) = (scene.yard.server(7), scene.yard.server(8));
    scene.ask(action, 1..=50).await;
    let summary = scene.outcomes().await;
    let rows: Vec<(String, String, String, Option<String>)> =
        sqlx::query_as("SELECT server_id, state, evidence, error_code FROM power_requests")
            .fetch_all(&mut scene.producer)
            .await
            .expect("readable");
    let times = times_carried_out(&scene.yard);
    let (whole, accepts) = (style.contains("\"batch\""), style.contains("\"accepted\""));
    for (server, state, evidence, code) in &rows {
        let on = before.get(server) == Some(&OnOff::On);
        let done = times.get(server).copied().unwrap_or_default();
        let end = (
            state.as_str(),
            evidence.as_str(),
            code.as_deref().unwrap_or_default(),
        );
        let is_wished = matches!((action, on), (Start, true) | (Stop, false));
        let expected = if *server == missing {
            vec![("failed", "observed", "poweryard.missing", 0)]
        } else if *server == locked && is_wished {
            vec![(
                "succeeded",
                if whole { "already" } else { "observed" },
                "",
                0,
            )]
        } else if *server == locked && whole {
            vec![("failed", "refused", "CloudDC.0002", 0)]
        } else if *server == locked {
            vec![("unknown", "none", "poweryard.time_limit", 0)]
        } else if is_wished && accepts {
            // One that is accepted is carried out and changes nothing; a refused batch is explained
            // by those first.
            vec![
                ("succeeded", "observed", "", 1),
                ("succeeded", "already", "", 0),
            ]
        } else if is_wished {
            vec![(
                "succeeded",
                if whole { "already" } else { "observed" },
                "",
                0,
            )]
        } else if action == Reboot && !on && whole {
            vec![("failed", "refused", "poweryard.stopped", 0)]
        } else if action == Reboot && !on {
            vec![("unknown", "none", "poweryard.time_limit", 0)]
        } else {
            vec![("succeeded", "observed", "", 1)]
        };
        let seen = (end.0, end.1, end.2, done);
        assert!(
            expected.contains(&seen),
            "{action} of {server}, on: {on}: {seen:?} and not {expected:?}; {style}: {summary}"
        );
    }
    // One call, a second without those that explain the refusal, and halves until the locked one is
    // alone.
    let most = if whole { 16 } else { 1 };
    assert!(
        scene.submits() <= most,
        "{} calls for {action} with {style}",
        scene.submits()
    );
    scene.daemon.stop().await;
}

/// What became of twenty requests: their ends; submit calls; operations carried out.
type Fate = (String, usize, usize);

async fn fate(action: PowerAction, operation_ms: u32, faults: &str, lines: &[&str]) -> Fate {
    let running = if action == Start { "0.0" } else { "1.0" };
    let scenario = format!(
        "servers = 25\nrunning = {running}\noperation_ms = [{operation_ms}, {operation_ms}]\n"
    );
    let mut scene = Scene::with_faults(&scenario, faults, lines).await;
    scene.ask(action, 1..=20).await;
    let end = scene.outcomes().await;
    scene.daemon.stop().await;
    let times = times_carried_out(&scene.yard);
    assert!(
        times.values().all(|&times| times == 1),
        "{action} with {faults}"
    );
    (
        end,
        calls(&scene.yard, Call::Submit).len(),
        scene.yard.cloud.ledger().len(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_looked_into_and_only_start_and_stop_go_out_again() {
    let submit = "on = [\"submit\"]\ncalls = [1]";
    let before: Vec<String> = ["drop_before", "error_before"]
        .into_iter()
        .map(|kind| {
            fault(
                kind,
                &format!(
                    "{submit}{}",
                    if kind == "error_before" {
                        "\nstatus = 502"
                    } else {
                        ""
                    }
                ),
            )
        })
        .collect();
    let after: Vec<String> = [
        "drop_after",
        "error_after",
        "html_body",
        "malformed_body",
        "truncated_body",
        "oversized_body",
    ]
    .into_iter()
    .map(|kind| fault(kind, submit))
    .collect();
    let mut cases = Vec::new();
    for action in [Start, Stop, Reboot] {
        for faults in &before {
            let end = match action {
                // After a lost answer one server goes alone, to find out whether calls arrive.
                Start | Stop => ("20 succeeded/observed".to_owned(), 3, 20),
                Reboot => ("20 unknown/none/poweryard.unproved".to_owned(), 1, 0),
            };
            cases.push((action, faults, end));
        }
        cases.extend(
            after
                .iter()
                .map(|faults| (action, faults, ("20 succeeded/observed".to_owned(), 1, 20))),
        );
    }
    let fates = join_all(
        cases
            .iter()
            .map(|(action, faults, _)| fate(*action, 900, faults, &[])),
    )
    .await;
    for ((action, faults, end), seen) in cases.iter().zip(fates) {
        assert_eq!(seen, *end, "{action} with {faults}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_certainly_not_carried_out_is_sent_again_reboots_too() {
    let submit = "on = [\"submit\"]\ncalls = [1]";
    let throttled =
        ["gateway", "json_string", "text"].map(|body| (body, fault("throttle", submit)));
    let mut cases: Vec<(String, String)> = throttled
        .into_iter()
        .map(|(body, fault)| (format!("throttle_body = \"{body}\"\n"), fault))
        .collect();
    cases.push((
        String::new(),
        fault(
            "refuse",
            &format!("{submit}\ncode = \"APIGW.0308\"\nstatus = 400"),
        ),
    ));
    cases.push((
        String::new(),
        fault("error_before", &format!("{submit}\nstatus = 503")),
    ));
    cases.push((String::new(), fault("expired_token", submit)));
    join_all(
        [Start, Stop, Reboot]
            .into_iter()
            .flat_map(|action| cases.iter().map(move |case| (action, case)))
            .map(|(action, (lines, faults))| async move {
                let running = if action == Start { "0.0" } else { "1.0" };
                let scenario = format!(
                    "servers = 60\nrunning = {running}\noperation_ms = [700, 900]\n{lines}"
                );
                let mut scene =
                    Scene::with_faults(&scenario, faults, &["submits_open_max = 1"]).await;
                scene.ask(action, 1..=60).await;
                assert_eq!(
                    scene.outcomes().await,
                    "60 succeeded/observed",
                    "{action} with {lines}{faults}"
                );
                assert_eq!(scene.carried_out(), 60);
                assert!(
                    scene.submits() <= 5,
                    "{} calls: {action} with {lines}{faults}",
                    scene.submits()
                );
                scene.daemon.stop().await;
            }),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn throttled_reads_are_repeated_and_decide_nothing_in_the_meantime() {
    let cases = [
        "throttle",
        "error_before",
        "drop_before",
        "drop_after",
        "html_body",
        "truncated_body",
        "malformed_body",
    ]
    .map(|kind| (kind, "calls = [1, 3, 4, 6]"))
    .into_iter()
    // Two in a row would hold the key.
    .chain([("expired_token", "calls = [1, 3, 6]")]);
    join_all(cases.map(|(kind, calls)| async move {
        // After a 429 nothing is read for 2 s and longer: a shorter reboot would pass unseen. So would one that is
        // shorter than a look of eight daemons on a busy machine.
        let operation = if kind == "throttle" { "[15000, 15500]" } else { "[4000, 4500]" };
        let scenario =
            format!("servers = 60\nrunning = 1.0\noperation_ms = {operation}\nthrottle_body = \"json_string\"\n");
        let mut scene =
            Scene::with_faults(&scenario, &fault(kind, &format!("on = [\"list\", \"show\"]\n{calls}")), &[]).await;
        scene.ask(Stop, 1..=25).await;
        scene.ask(Reboot, 26..=60).await;
        assert_eq!(scene.outcomes().await, "60 succeeded/observed", "{kind}");
        // Where a read before the call fails, one server goes alone at first, to find out whether calls arrive.
        assert!(scene.submits() <= 4 && scene.carried_out() == 60, "{kind}: {} calls", scene.submits());
        scene.daemon.stop().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_sent_and_holds_the_target() {
    let mut scene = Scene::with_faults(
        "servers = 10\nrunning = 1.0\n",
        &fault("redirect", "on = [\"submit\"]\nchance = 1.0"),
        &[],
    )
    .await;
    scene.ask(Reboot, 1..=10).await;
    wait_for(
        &mut scene.producer,
        "SELECT count(*) FROM power_waiting WHERE reason LIKE 'held: %'",
        "10",
    )
    .await;
    assert_eq!((scene.submits(), scene.carried_out()), (1, 0));
    assert_eq!(scene.text("SELECT kind FROM holds").await, "breaker");
    assert_eq!(
        scene.text("SELECT max(attempts) FROM power_requests").await,
        "0"
    );
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_that_never_end_are_unknown_at_the_time_limit() {
    let stuck = fault("operation_never_ends", "chance = 1.0");
    let limit: &[&str] = &["job_time_limit = \"2s\""];
    let fates = join_all([Start, Stop, Reboot].map(|action| fate(action, 10, &stuck, limit))).await;
    for seen in fates {
        assert_eq!(
            seen,
            ("20 unknown/none/poweryard.time_limit".to_owned(), 1, 20)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_that_fail_are_told_with_the_servers_own_code() {
    let fails = fault(
        "operation_fails",
        "code = \"CloudDC.4711\"\nmessage = \"The PSU has no power.\"\nservers = [4, 9]",
    );
    join_all([Start, Stop, Reboot].map(|action| {
        let fails = fails.clone();
        async move {
            let running = if action == Start { "0.0" } else { "1.0" };
            let scenario =
                format!("servers = 25\nrunning = {running}\noperation_ms = [600, 900]\n");
            let mut scene = Scene::with_faults(&scenario, &fails, &[]).await;
            scene.ask(action, 1..=20).await;
            assert_eq!(
                scene.outcomes().await,
                "2 failed/observed/CloudDC.4711, 18 succeeded/observed",
                "{action}"
            );
            let message =
                "SELECT DISTINCT error_message FROM power_requests WHERE state = 'failed'";
            assert_eq!(scene.text(message).await, "The PSU has no power.");
            assert_eq!((scene.submits(), scene.carried_out()), (1, 18));
            scene.daemon.stop().await;
        }
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_busy_before_the_call_waits_and_delays_nobody() {
    let stuck = fault("operation_never_ends", "servers = [1]\ncalls = [1]");
    let scenario = "servers = 60\nrunning = 1.0\noperation_ms = [300, 500]\n";
    let mut scene = Scene::with_faults(scenario, &stuck, &["job_time_limit = \"500ms\""]).await;
    scene.ask(Reboot, [1]).await;
    assert_eq!(
        scene.outcomes().await,
        "1 unknown/none/poweryard.time_limit"
    );
    scene.ask(Stop, 1..=60).await;
    wait_for(
        &mut scene.producer,
        "SELECT count(*) FROM power_requests WHERE state = 'succeeded'",
        "59",
    )
    .await;
    assert_eq!(scene.submits(), 3, "50 and 9 beside the first");
    let waits = "SELECT state || ' ' || attempts || ' ' || (retry_at IS NOT NULL) FROM power_requests ORDER BY id LIMIT 1 OFFSET 1";
    assert_eq!(scene.text(waits).await, "queued 0 1");
    let reason = "SELECT reason FROM power_waiting";
    assert!(
        scene.text(reason).await.starts_with("retry at "),
        "{}",
        scene.text(reason).await
    );
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_one_server_go_one_at_a_time_in_their_order() {
    let mut scene = Scene::new(
        "servers = 100\nrunning = 1.0\noperation_ms = [300, 600]\n",
        &[],
    )
    .await;
    for action in [Stop, Start, Reboot, Stop] {
        scene.ask(action, 1..=60).await;
    }
    assert_eq!(scene.outcomes().await, "240 succeeded/observed");
    let overtaken =
        "SELECT count(*) FROM power_requests a JOIN power_requests b ON b.server_id = a.server_id AND b.id > a.id
                     WHERE b.submitted_at < a.finished_at";
    assert_eq!(scene.text(overtaken).await, "0");
    let mut done: HashMap<String, Vec<PowerAction>> = HashMap::new();
    for entry in scene.yard.cloud.ledger() {
        done.entry(entry.server_id.to_string())
            .or_default()
            .push(entry.action);
    }
    assert!(
        done.len() == 60
            && done
                .values()
                .all(|actions| *actions == [Stop, Start, Reboot, Stop])
    );
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_go_out_side_by_side_up_to_the_number_that_the_config_allows() {
    let cases = [(16, 8_000), (3, 2_000)];
    join_all(cases.map(|(most, submit_ms)| async move {
        let latency = format!("[latency]\nsubmit_ms = [{submit_ms}, {submit_ms}]\n");
        let scenario = "servers = 100\nrunning = 1.0\noperation_ms = [300, 600]\n";
        let open_max = format!("submits_open_max = {most}");
        let lines = ["batch_servers_max = 5", open_max.as_str()];
        let begin = Instant::now();
        let mut scene = Scene::with_faults(scenario, &latency, &lines).await;
        scene.ask(Stop, 1..=60).await;
        assert_eq!(scene.outcomes().await, "60 succeeded/observed");
        let took = begin.elapsed();
        let submits = scene.calls(Call::Submit);
        assert_eq!(submits.len(), 12);
        let open_for = Duration::from_millis(submit_ms - 50);
        let open_at = |at| {
            submits
                .iter()
                .filter(|call| call.at <= at && at.since(call.at) < open_for)
                .count()
        };
        let together = submits
            .iter()
            .map(|call| open_at(call.at))
            .max()
            .unwrap_or_default();
        assert_eq!(together, most.min(12), "at most {most}");
        assert!(
            most == 3 || took < Duration::from_secs(48),
            "{took:?}: 96 s one after another"
        );
        scene.daemon.stop().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_are_throttled_together_are_throttled_once() {
    let faults = fault(
        "throttle",
        "on = [\"submit\"]\ncalls = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]",
    ) + "[latency]\nsubmit_ms = [1000, 1000]\n";
    let scenario =
        "servers = 60\nrunning = 1.0\noperation_ms = [300, 600]\nthrottle_body = \"text\"\n";
    let lines = ["batch_servers_max = 5", "submits_per_minute = 100"];
    let mut scene = Scene::with_faults(scenario, &faults, &lines).await;
    scene.ask(Stop, 1..=60).await;
    assert_eq!(scene.outcomes().await, "60 succeeded/observed");
    let submits = scene.calls(Call::Submit);
    assert!(submits.len() <= 26, "{} calls", submits.len());
    let waited = submits[12].at.since(submits[11].at);
    assert!(
        waited < Duration::from_secs(4),
        "{waited:?}: one wait of 2 s, and not of 60 s after twelve failures"
    );
    scene.daemon.stop().await;
}

/// A request as it ended.
#[derive(Debug, sqlx::FromRow)]
struct Ended {
    state: String,
    evidence: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_rebooted_twice_by_fifteen_kills() {
    const KILLS: usize = 15;
    let faults = fault("drop_after", "on = [\"submit\"]\ncalls = [5, 25, 45]")
        + &fault(
            "error_before",
            "on = [\"submit\"]\ncalls = [9, 33]\nstatus = 502",
        )
        + &fault("operation_fails", "chance = 0.02")
        + &fault("missing", "chance = 0.01")
        + &fault("locked", "chance = 0.01")
        + "[latency]\nsubmit_ms = [50, 250]\nlist_ms = [0, 30]\n";
    let scenario = "servers = 400\nrunning = 0.8\noperation_ms = [100, 900]\n";
    let yard = yard(
        scenario,
        &faults,
        &["job_time_limit = \"4s\"", "look_time_limit = \"4s\""],
    )
    .await;
    let config = yard.write_config();
    let servers: Vec<String> = yard
        .cloud
        .server_ids(Service::CloudDc)
        .iter()
        .map(ToString::to_string)
        .collect();
    let mut dice = Dice(20_261_122);
    let daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    daemon.kill();
    let mut open_calls = 0;
    for round in 0..KILLS {
        let daemon = Daemon::start(&config);
        for _ in 0..20 {
            let server = &servers[dice.roll(servers.len() as u64 - 1) as usize];
            insert(
                &mut producer,
                server,
                PowerAction::ALL[dice.roll(2) as usize].as_str(),
            )
            .await;
        }
        let (before, ends) = (
            calls(&yard, Call::Submit).len(),
            Instant::now() + Duration::from_millis(60 + dice.roll(1500)),
        );
        // At any moment at all, or as soon as a call is on its way.
        while Instant::now() < ends
            && (round % 2 == 0 || calls(&yard, Call::Submit).len() == before)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        daemon.kill();
        let submitting = text(
            &mut producer,
            "SELECT count(*) FROM batches WHERE state = 'submitting'",
        )
        .await;
        open_calls += submitting.parse::<u64>().expect("a number");
        let bare = "SELECT count(*) FROM request_attempts WHERE baseline IS NULL";
        assert_eq!(
            text(&mut producer, bare).await,
            "0",
            "the baseline is part of the intent"
        );
    }
    assert!(
        open_calls >= 3,
        "only {open_calls} calls were open when the daemon died: the test tests too little"
    );
    let daemon = Daemon::start(&config);
    let summary = outcomes(&mut producer).await;
    assert_eq!(daemon.stop().await, Some(0));
    println!("{open_calls} open calls at {KILLS} kills: {summary}");
    judge(&yard, &mut producer, KILLS * 20).await;
}

async fn judge(yard: &Yard, producer: &mut SqliteConnection, rows_inserted: usize) {
    let rows: Vec<Ended> = sqlx::query_as("SELECT state, evidence FROM power_requests")
        .fetch_all(&mut *producer)
        .await
        .expect("readable");
    assert_eq!(rows.len(), rows_inserted);
    for row in &rows {
        assert!(
            ["succeeded", "failed", "unknown"].contains(&row.state.as_str()),
            "{row:?}"
        );
        assert_eq!(row.evidence == "none", row.state == "unknown", "{row:?}");
    }
    assert_rows_agree(yard, producer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_was_before_the_call_is_known_after_a_crash_during_it() {
    // Killed while the answer is on its way; when the new daemon looks, the reboots of the servers
    // that had none are over and seen by their mark, and those of servers that had one before leave
    // none.
    let states = "first_states = [\"none\", \"reboot-succeed\"]\n";
    let scenario = format!("servers = 40\nrunning = 1.0\noperation_ms = [200, 200]\n{states}");
    let yard = yard(&scenario, "[latency]\nsubmit_ms = [700, 700]\n", &[]).await;
    let config = yard.write_config();
    let daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    let servers = yard.servers(40);
    insert_many(&mut producer, &servers, "reboot").await;
    until("the call has arrived", || yard.cloud.ledger().len() == 40).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    daemon.kill();
    let of = |baseline: &str, state: &str| {
        format!(
            "SELECT count(*) FROM power_requests r JOIN request_attempts a ON a.request_id = r.id WHERE a.baseline = '{baseline}' AND r.state LIKE '{state}'"
        )
    };
    let marked = text(&mut producer, &of("none", "%")).await;
    let stale = text(&mut producer, &of("reboot succeeded", "%")).await;
    assert!(marked != "0" && stale != "0", "{marked} and {stale}");
    let daemon = Daemon::start(&config);
    outcomes(&mut producer).await;
    assert_eq!(daemon.stop().await, Some(0));
    assert_eq!(text(&mut producer, &of("none", "succeeded")).await, marked);
    assert_eq!(
        text(&mut producer, &of("reboot succeeded", "unknown")).await,
        stale
    );
    assert_eq!(
        (calls(&yard, Call::Submit).len(), yard.cloud.ledger().len()),
        (1, 40)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn check_online_accepts_every_way_to_say_that_a_server_does_not_exist() {
    for missing_show in ["not_found", "error"] {
        let yard = yard(
            &format!("servers = 10\nmissing_show = \"{missing_show}\"\n"),
            "",
            &[],
        )
        .await;
        let config = yard.write_config().display().to_string();
        let args = ["--config", &config, "check", "--online", "--json"];
        let said = process::run(&args);
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(
            said.status.code() == Some(0) && text.contains("a read call was accepted"),
            "{missing_show}: {text}"
        );
        assert!(!text.contains("\"error\""), "{missing_show}: {text}");
        assert_eq!(calls(&yard, Call::Submit).len(), 0);
    }
    // A web page in its place does not speak for the service.
    let yard = yard(
        "servers = 10\n",
        &fault("html_body", "on = [\"show\"]\nchance = 1.0"),
        &[],
    )
    .await;
    let config = yard.write_config().display().to_string();
    let said = process::run(&["--config", &config, "check", "--online"]);
    assert_eq!(said.status.code(), Some(78), "{said:?}");
}
