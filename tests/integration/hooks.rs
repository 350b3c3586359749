//! The hooks of `[notify]`: what they are told, how often they are tried, and that one that hangs,
//! fails or is flooded costs nothing but its own events.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::process::{Daemon, until};
use crate::common::wire::{Cloud, Reply, ok};
use crate::common::{Yard, insert, insert_many, outcomes};
use poweryard::lifecycle::{BatchNext, Event, Outcome, Step};
use poweryard::meter::Meter;
use poweryard::model::{
    Baseline, Batch, BatchId, BatchState, Evidence, Member, PowerAction, RequestId, ServerId,
    Service, TargetName, UtcMillis,
};
use poweryard::notify::Notifier;
use poweryard::settings::NotifySettings;
use serde_json::Value;

const QUICK: &str = "[bms]\nservers = 20\nrunning = 1.0\noperation_ms = [10, 20]\n";

/// An executable shell script in `dir`.
fn script(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode set");
    path.display().to_string()
}

/// The yard's config with `[notify]`.
fn notifying(yard: &Yard, lines: &str) -> PathBuf {
    let config = yard.write_config();
    let text = fs::read_to_string(&config).expect("written");
    fs::write(&config, format!("{text}[notify]\n{lines}\n")).expect("written");
    config
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_hooks_are_told_of_failures_with_labels_and_of_nothing_else() {
    let yard = Yard::new(QUICK).await;
    let heard = yard.dir.path().join("heard");
    let command = script(
        yard.dir.path(),
        "tell",
        &format!(
            "cat >> {0}; echo >> {0}; echo $1 >> {0}.args",
            heard.display()
        ),
    );
    let receiver = Cloud::start(|_, _| ok("thanks")).await;
    let url = format!("http://127.0.0.1:{}/hook?secret=s3cr3t", receiver.port);
    let config = notifying(
        &yard,
        &format!("command = [\"{command}\", \"two words\"]\nurl = \"{url}\""),
    );
    let daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    sqlx::query("INSERT INTO power_requests (server_id, action, label, requested_by) VALUES ('no-such-1', 'stop', 'ni\"ght', 'alice'), ('no-such-2', 'stop', NULL, NULL)")
        .execute(&mut producer)
        .await
        .expect("accepted");
    insert(&mut producer, &yard.server(1), "reboot").await;
    let ended = outcomes(&mut producer).await;
    assert!(ended.contains("1 succeeded/job"), "{ended}");
    until("the command was told of both", || {
        told(&lines(&heard)).len() == 2
    })
    .await;
    let received = || {
        receiver
            .received()
            .iter()
            .map(|call| serde_json::from_slice(&call.body).expect("JSON"))
            .collect::<Vec<Value>>()
    };
    until("the URL was told of both", || told(&received()).len() == 2).await;
    for events in [lines(&heard), received()] {
        for event in &events {
            assert_eq!(
                (&event["target"], &event["action"]),
                (&"default".into(), &"stop".into()),
                "{event}"
            );
            assert!(
                event["batch_id"].is_i64() && event.get("job_id").is_some(),
                "{event}"
            );
            assert!(
                event["at"].as_str().is_some_and(|at| at.ends_with('Z')),
                "{event}"
            );
        }
        let requests = told(&events);
        let first = &requests[0];
        assert_eq!(
            (&first["id"], &first["server_id"]),
            (&1.into(), &"no-such-1".into())
        );
        assert_eq!(
            (&first["state"], &first["label"]),
            (&"failed".into(), &"ni\"ght".into())
        );
        assert_eq!(first["requested_by"], "alice");
        assert!(
            first["evidence"].is_string()
                && first["error_code"].is_string()
                && first["error_message"].is_string()
        );
        assert_eq!(
            (&requests[1]["label"], &requests[1]["requested_by"]),
            (&Value::Null, &Value::Null)
        );
    }
    let call = &receiver.received()[0];
    assert_eq!(
        (call.method.as_str(), call.target.as_str()),
        ("POST", "/hook?secret=s3cr3t")
    );
    assert_eq!(call.header("content-type"), Some("application/json"));
    assert!(
        fs::read_to_string(heard.with_extension("args"))
            .expect("written")
            .starts_with("two words\n")
    );
    assert_eq!(daemon.stop().await, Some(0));
    let log = fs::read_to_string(config.with_extension("log")).expect("a log");
    assert!(!log.contains("s3cr3t"), "{log}");
}

/// All requests of these events, by id.
fn told(events: &[Value]) -> Vec<Value> {
    let requests = events
        .iter()
        .flat_map(|event| event["requests"].as_array().expect("requests").clone());
    let mut requests: Vec<Value> = requests.collect();
    requests.sort_by_key(|request| request["id"].as_i64());
    requests
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_hangs_delays_neither_passes_nor_other_hook_nor_stop() {
    let yard = Yard::new(QUICK).await;
    let pids = yard.dir.path().join("pids");
    let command = script(
        yard.dir.path(),
        "hang",
        &format!("sleep 300 & echo $! >> {}; wait", pids.display()),
    );
    let receiver = Cloud::start(|_, _| ok("")).await;
    let url = format!("http://127.0.0.1:{}/", receiver.port);
    let config = notifying(
        &yard,
        &format!("command = [\"{command}\"]\nurl = \"{url}\"\ntimeout = \"60s\""),
    );
    let daemon = Daemon::start(&config);
    let mut producer = yard.producer().await;
    insert(&mut producer, "no-such-server", "stop").await;
    outcomes(&mut producer).await;
    until("the URL was told", || receiver.received().len() == 1).await;
    until("the command hangs", || pids.exists()).await;
    let begin = Instant::now();
    let servers = yard.servers(10);
    insert_many(&mut producer, &servers, "reboot").await;
    outcomes(&mut producer).await;
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "{:?}",
        begin.elapsed()
    );
    let begin = Instant::now();
    assert_eq!(daemon.stop().await, Some(0));
    assert!(
        begin.elapsed() < Duration::from_secs(10),
        "{:?}",
        begin.elapsed()
    );
    let pid = fs::read_to_string(&pids)
        .expect("written")
        .trim()
        .to_owned();
    until("what the command started has ended too", || is_over(&pid)).await;
    let log = fs::read_to_string(config.with_extension("log")).expect("a log");
    assert!(log.contains("1 events were not delivered"), "{log}");
}

/// Gone, or a zombie that nobody has reaped yet.
fn is_over(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

/// A step that fails so many requests of batch `id`.
fn failed(id: i64, count: u32) -> (Batch, Step) {
    let members = (1..=count).map(|number| Member {
        request: RequestId(i64::from(number)),
        server: ServerId(format!("server-{number}")),
        attempts: 1,
        busy: 0,
        seen_moving: false,
        baseline: Baseline::Unknown,
        shadowed: false,
        waited: None,
    });
    let batch = Batch {
        id: BatchId(id),
        service: Service::Bms,
        target: TargetName("default".into()),
        action: PowerAction::Stop,
        state: BatchState::Tracking,
        job: None,
        intent_at: UtcMillis(0),
        submitted_at: None,
        looks: 1,
        doubts: 0,
        from_copy: false,
        server_count: count,
        look_cause: None,
        look_until: None,
        complaint: None,
        read_error: None,
        members: members.collect(),
    };
    let end = || Event::Ended(Outcome::failed(Evidence::Job, "BMS.0001", "no"));
    let moves = batch
        .members
        .iter()
        .map(|member| (member.request, end()))
        .collect();
    let step = Step {
        batch: BatchNext::Done,
        moves,
        seen_moving: vec![],
        complaint: None,
        job_ms: None,
        read_error: None,
    };
    (batch, step)
}

fn settings(command: Option<String>, url: Option<String>) -> NotifySettings {
    NotifySettings {
        command: command.into_iter().collect(),
        url: url.map(|url| url.parse().expect("a URL")),
        timeout: Duration::from_millis(500),
        allow_http: false,
    }
}

fn count(meter: &Meter, series: &str) -> u64 {
    let text = meter.text();
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
    found.unwrap_or_else(|| panic!("no {series} in\n{text}"))
}

const DROPPED: &str = "poweryard_notify_dropped_total";

fn deliveries(meter: &Meter, hook: &str, result: &str) -> u64 {
    count(
        meter,
        &format!("poweryard_notify_deliveries_total{{hook=\"{hook}\",result=\"{result}\"}}"),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_fails_is_tried_three_times_and_the_next_event_begins_anew() {
    let receiver = Cloud::start(|_, before| match before {
        // A redirect is not followed: it counts as a failure.
        0 => Reply::Http(307, vec![("location", "/elsewhere".into())], String::new()),
        1 | 2 => Reply::Http(500, vec![], "no".into()),
        3 => Reply::Http(503, vec![], "not yet".into()),
        _ => ok(""),
    })
    .await;
    let meter = Arc::new(Meter::new());
    let url = format!("http://127.0.0.1:{}/hook", receiver.port);
    let (notifier, deliveries_) = Notifier::start(
        Some(settings(None, Some(url))),
        "/nowhere/queue.db".into(),
        Arc::clone(&meter),
    );
    for id in [1, 2] {
        let (batch, step) = failed(id, 2);
        notifier.stored(&batch, &step, UtcMillis(0));
    }
    until("both are over", || {
        deliveries(&meter, "url", "failed") + deliveries(&meter, "url", "delivered") == 2
    })
    .await;
    assert_eq!(
        (
            deliveries(&meter, "url", "failed"),
            deliveries(&meter, "url", "delivered")
        ),
        (1, 1)
    );
    let calls = receiver.received();
    let batches: Vec<i64> = calls
        .iter()
        .map(|call| {
            serde_json::from_slice::<Value>(&call.body).expect("JSON")["batch_id"]
                .as_i64()
                .expect("an id")
        })
        .collect();
    assert_eq!(batches, [1, 1, 1, 2, 2]);
    assert!(
        calls.iter().all(|call| call.target == "/hook"),
        "no redirect is followed"
    );
    deliveries_.finish().await;
    assert_eq!(count(&meter, DROPPED), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_cannot_be_started_or_ends_badly_is_given_up() {
    let dir = tempfile::tempdir().expect("a folder");
    let tries = dir.path().join("tries");
    let bad = script(
        dir.path(),
        "bad",
        &format!(
            "echo x >> {}; echo 'no \u{1b}[31mway' >&2; exit 3",
            tries.display()
        ),
    );
    let meter = Arc::new(Meter::new());
    let (notifier, deliveries_) = Notifier::start(
        Some(settings(Some(bad), None)),
        dir.path().join("queue.db"),
        Arc::clone(&meter),
    );
    let (batch, step) = failed(1, 1);
    notifier.stored(&batch, &step, UtcMillis(0));
    until("it is given up", || {
        deliveries(&meter, "command", "failed") == 1
    })
    .await;
    assert_eq!(
        fs::read_to_string(&tries).expect("written").lines().count(),
        3
    );
    // Another hook takes over without a restart.
    notifier.take_up(Some(&settings(Some("/nowhere/at/all".into()), None)));
    notifier.stored(&batch, &step, UtcMillis(0));
    until("that one too", || {
        deliveries(&meter, "command", "failed") == 2
    })
    .await;
    notifier.take_up(None);
    notifier.stored(&batch, &step, UtcMillis(0));
    deliveries_.finish().await;
    assert_eq!(
        (
            deliveries(&meter, "command", "failed"),
            count(&meter, DROPPED)
        ),
        (2, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_dropped_and_counted_and_handing_in_never_waits() {
    let dir = tempfile::tempdir().expect("a folder");
    let hang = script(dir.path(), "hang", "exec sleep 60");
    let meter = Arc::new(Meter::new());
    let many = NotifySettings {
        timeout: Duration::from_secs(60),
        ..settings(Some(hang), None)
    };
    let (notifier, deliveries_) =
        Notifier::start(Some(many), dir.path().join("queue.db"), Arc::clone(&meter));
    let begin = Instant::now();
    for id in 0..400 {
        let (batch, step) = failed(id, 1);
        notifier.stored(&batch, &step, UtcMillis(0));
    }
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
    let dropped = count(&meter, DROPPED);
    // 256 wait, and one may have been taken out already.
    assert!((143..=144).contains(&dropped), "{dropped}");
    let begin = Instant::now();
    deliveries_.finish().await;
    assert!(
        begin.elapsed() < Duration::from_secs(8),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(count(&meter, DROPPED), 400, "all of them are accounted for");
    let (batch, step) = failed(1, 1);
    notifier.stored(&batch, &step, UtcMillis(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_events_are_bounded_by_their_requests() {
    let dir = tempfile::tempdir().expect("a folder");
    let hang = script(dir.path(), "hang", "exec sleep 60");
    let meter = Arc::new(Meter::new());
    let many = NotifySettings {
        timeout: Duration::from_secs(60),
        ..settings(Some(hang), None)
    };
    let (notifier, deliveries_) =
        Notifier::start(Some(many), dir.path().join("queue.db"), Arc::clone(&meter));
    for id in 0..25 {
        let (batch, step) = failed(id, 1000);
        notifier.stored(&batch, &step, UtcMillis(0));
    }
    assert_eq!(
        count(&meter, DROPPED),
        5,
        "20,000 requests are the most that wait"
    );
    deliveries_.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_leaves_a_child_behind_is_told_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let told = dir.path().join("told");
    let pid = dir.path().join("pid");
    // The child keeps the stdin and the stderr of the command; a thousand requests do not fit into
    // a pipe.
    let lines = format!(
        "head -c 1 >> {}; sleep 300 & echo $! > {}; exit 0",
        told.display(),
        pid.display()
    );
    let command = script(dir.path(), "leave", &lines);
    let meter = Arc::new(Meter::new());
    let (notifier, deliveries_) = Notifier::start(
        Some(settings(Some(command), None)),
        dir.path().join("queue.db"),
        Arc::clone(&meter),
    );
    let (batch, step) = failed(1, 1000);
    notifier.stored(&batch, &step, UtcMillis(0));
    until("it is told", || {
        deliveries(&meter, "command", "delivered") == 1
    })
    .await;
    deliveries_.finish().await;
    assert_eq!(deliveries(&meter, "command", "failed"), 0);
    assert_eq!(fs::read_to_string(&told).expect("written"), "{");
    let pid = fs::read_to_string(&pid).expect("written").trim().to_owned();
    assert!(!is_over(&pid), "what a command leaves behind goes on");
    Command::new("kill").arg(&pid).status().expect("kill runs");
}
