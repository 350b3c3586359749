//! `/metrics`, health and the status page: what they say of a daemon at work, in trouble and held,
//! that no scraper disturbs it, and that the shipped alert rules and dashboard name only metrics
//! that there are. `promtool` judges, where there is one.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::process::{Daemon, poweryard, until};
use crate::common::wire::unused_port;
use crate::common::{PATIENCE, Yard, insert, insert_many, outcomes, wait_for};
use poweryard::sim::Call;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const QUICK: &str = "[bms]\nservers = 100\nrunning = 1.0\noperation_ms = [10, 20]\n";
const ALERTS: &str = include_str!("../../config/alerts.yml");
const DASHBOARD: &str = include_str!("../../config/dashboard.json");
const PAGE: &str = include_str!("../../docs/monitor.md");

/// The yard's config, listening on `port`.
fn listening(yard: &Yard, port: u16) -> PathBuf {
    let config = yard.write_config();
    let text = fs::read_to_string(&config).expect("written");
    fs::write(
        &config,
        format!("{text}[listen]\naddress = \"127.0.0.1:{port}\"\n"),
    )
    .expect("written");
    config
}

/// Status and text of an answer; none if nobody answers.
async fn ask(port: u16, path: &str) -> Option<(u16, String)> {
    let answer = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        stream
            .write_all(
                format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
                    .as_bytes(),
            )
            .await
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
    };
    tokio::time::timeout(PATIENCE, answer).await.ok().flatten()
}

async fn metrics(port: u16) -> String {
    let (status, text) = ask(port, "/metrics").await.expect("an answer");
    assert_eq!(status, 200);
    text
}

/// The value of a series, written with its labels.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// Waits until a path answers with this status.
async fn answers(port: u16, path: &str, status: u16) -> String {
    let ends = Instant::now() + PATIENCE;
    let mut last = None;
    while Instant::now() < ends {
        last = ask(port, path).await;
        if let Some((found, text)) = &last
            && *found == status
        {
            return text.clone();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{path} does not answer {status}: {last:?}");
}

/// Runs promtool; none where there is none.
fn promtool(args: &[&str], input: &str) -> Option<(bool, String)> {
    let mut command = Command::new("promtool");
    let spawned = command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = spawned else {
        println!("skipped: there is no promtool here (Debian: apt-get install prometheus)");
        return None;
    };
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(input.as_bytes())
        .expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    Some((
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

/// Words that look like our metrics, without the endings of a histogram's series.
fn named_metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|char: char| !(char.is_ascii_lowercase() || char == '_'));
    // Names of package files end there.
    let words = words.filter(|word| word.starts_with("poweryard_") && *word != "poweryard_");
    let bare = |word: &str| {
        let endings = ["_bucket", "_sum", "_count"];
        endings
            .iter()
            .find_map(|end| word.strip_suffix(end))
            .unwrap_or(word)
            .to_owned()
    };
    words.map(bare).collect()
}

fn known_metrics(text: &str) -> BTreeSet<String> {
    let name = |line: &str| {
        line.strip_prefix("# TYPE ")?
            .split(' ')
            .next()
            .map(str::to_owned)
    };
    text.lines().filter_map(name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_daemon_does_can_be_read_and_promtool_has_nothing_to_say() {
    let port = unused_port().await;
    let throttle = "[[faults]]\nkind = \"throttle\"\non = [\"submit\"]\ncalls = [1]\n";
    let yard = Yard::new(&format!("{QUICK}{throttle}")).await;
    let daemon = Daemon::start(&listening(&yard, port));
    let mut producer = yard.producer().await;
    let servers = yard.servers(40);
    insert_many(&mut producer, &servers, "reboot").await;
    insert(&mut producer, "no-such-server", "stop").await;
    for sql in [
        "INSERT INTO power_requests (server_id, action, target) VALUES ('b', 'stop', 'nobody'), ('c', 'stop', 'no-one')",
        "INSERT INTO power_requests (server_id, action, expires_at) VALUES ('d', 'start', strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '+0.2 seconds'))",
        "INSERT INTO holds (target, action, kind, reason, since) VALUES ('default', 'start', 'operator', 'paused', '2026-01-31T22:00:00.000Z')",
    ] {
        sqlx::query(sql)
            .execute(&mut producer)
            .await
            .expect("accepted");
    }
    wait_for(
        &mut producer,
        "SELECT count(*) FROM power_requests WHERE finished_at IS NULL AND target = 'default'",
        "0",
    )
    .await;
    let text = metrics(port).await;
    for (series, wanted) in [
        (
            "poweryard_outcomes_total{target=\"default\",action=\"reboot\",state=\"succeeded\",evidence=\"job\",error_code=\"\"}",
            40.0,
        ),
        (
            "poweryard_outcomes_total{target=\"default\",action=\"start\",state=\"expired\",evidence=\"none\",error_code=\"poweryard.expired\"}",
            1.0,
        ),
        (
            "poweryard_requests_ended_total{target=\"default\",action=\"stop\",state=\"failed\"}",
            1.0,
        ),
        (
            "poweryard_requests_ended_total{target=\"default\",action=\"stop\",state=\"unknown\"}",
            0.0,
        ),
        ("poweryard_throttled_calls_total{target=\"default\"}", 1.0),
        (
            "poweryard_calls_total{target=\"default\",call=\"submit\",result=\"throttled\"}",
            1.0,
        ),
        (
            "poweryard_requests{target=\"(unknown)\",action=\"stop\",state=\"queued\"}",
            2.0,
        ),
        ("poweryard_holds{target=\"default\",kind=\"operator\"}", 1.0),
        (
            "poweryard_holds{target=\"(unknown)\",kind=\"unknown_target\"}",
            2.0,
        ),
        (
            "poweryard_oldest_ready_age_seconds{target=\"default\",action=\"start\"}",
            0.0,
        ),
        (
            "poweryard_pace_configured_calls_per_second{target=\"default\"}",
            100.0,
        ),
        ("poweryard_breaker_open{target=\"default\"}", 0.0),
        ("poweryard_credentials_refusals{target=\"default\"}", 0.0),
        ("poweryard_database_readable{}", 1.0),
        ("poweryard_database_trouble{}", 0.0),
        ("poweryard_build_info{version=\"0.1.0\"}", 1.0),
        (
            "poweryard_job_duration_seconds_count{target=\"default\",action=\"reboot\"}",
            1.0,
        ),
        (
            "poweryard_first_look_seconds_count{target=\"default\",action=\"reboot\"}",
            1.0,
        ),
        (
            "poweryard_job_end_to_stored_seconds_count{target=\"default\",action=\"reboot\"}",
            1.0,
        ),
    ] {
        // Throttling and the split of a refused batch may add calls and jobs.
        let found = value(&text, series);
        let at_least = series.contains("_seconds_count");
        assert!(
            found.is_some_and(|found| found == wanted || (at_least && found > wanted)),
            "{series} {wanted}\n{text}"
        );
    }
    let waits = "poweryard_request_wait_seconds_count{target=\"default\",action=\"reboot\"}";
    assert!(
        value(&text, waits).is_some_and(|waits| waits >= 40.0),
        "{text}"
    );
    assert!(value(&text, "poweryard_disk_free_bytes{}").is_some_and(|bytes| bytes > 0.0));
    assert!(value(&text, "poweryard_wal_size_bytes{}").is_some_and(|bytes| bytes > 0.0));
    let age = value(
        &text,
        "poweryard_credentials_age_seconds{target=\"default\"}",
    );
    assert!(age.is_some_and(|age| age < 120.0), "{age:?}");
    assert!(
        !text.contains(&yard.server(1)) && !text.contains("nobody"),
        "no ids, and no names that producers invent"
    );
    if let Some((good, said)) = promtool(&["check", "metrics"], &text) {
        assert!(good && said.is_empty(), "{said}");
    }
    // What is shipped and written about names only what there is, and the page all of it.
    let mut known = known_metrics(&text);
    // This daemon has no certificate.
    known.insert("poweryard_certificate_remaining_seconds".to_owned());
    for (what, written) in [
        ("alerts.yml", ALERTS),
        ("dashboard.json", DASHBOARD),
        ("docs/monitor.md", PAGE),
    ] {
        let strangers: Vec<_> = named_metrics(written).difference(&known).cloned().collect();
        assert!(
            strangers.is_empty(),
            "{what} names {strangers:?}; there are {known:#?}"
        );
    }
    let told = named_metrics(PAGE);
    let untold: Vec<_> = known.difference(&told).collect();
    assert!(untold.is_empty(), "docs/monitor.md leaves out {untold:?}");
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_counted_until_it_is_done() {
    let port = unused_port().await;
    let yard = Yard::new(QUICK).await;
    let daemon = Daemon::start(&listening(&yard, port));
    let mut producer = yard.producer().await;
    let order = "BEGIN IMMEDIATE; INSERT INTO orders (label, waves) VALUES ('x', '1');
        INSERT INTO power_requests (server_id, action, label) VALUES ('nobody', 'stop', 'x'), ('no-one', 'stop', 'x'); COMMIT";
    sqlx::raw_sql(order)
        .execute(&mut producer)
        .await
        .expect("accepted");
    wait_for(&mut producer, "SELECT state FROM orders", "held").await;
    let held = "poweryard_orders{state=\"held\"}";
    assert_eq!(value(&metrics(port).await, held), Some(1.0));
    sqlx::query("UPDATE power_requests SET state = 'cancelled' WHERE state = 'queued'")
        .execute(&mut producer)
        .await
        .expect("accepted");
    wait_for(&mut producer, "SELECT state FROM orders", "done").await;
    let ends = Instant::now() + PATIENCE;
    while value(&metrics(port).await, held) != Some(0.0) {
        assert!(Instant::now() < ends, "it is counted for ever");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(daemon.stop().await, Some(0));
}

#[test]
fn the_alert_rules_fire_when_they_should_and_not_before() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = |end: &str| root.join(end).display().to_string();
    if let Some((good, said)) = promtool(&["check", "rules", &path("config/alerts.yml")], "") {
        assert!(good && !said.contains("FAILED"), "{said}");
    }
    if let Some((good, said)) = promtool(
        &["test", "rules", &path("tests/fixtures/alerts.test.yml")],
        "",
    ) {
        assert!(good, "{said}");
    }
    let tests = include_str!("../fixtures/alerts.test.yml");
    for alert in ALERTS
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        assert!(
            tests.contains(&format!("alertname: {alert}\n")),
            "nothing tests {alert}"
        );
    }
}

#[test]
fn the_dashboard_is_json_with_a_query_in_every_panel() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_i64().expect("an id")), "{panel}");
        let expr = panel["targets"][0]["expr"].as_str().expect("a query");
        assert!(
            expr.contains("poweryard_")
                && panel["title"]
                    .as_str()
                    .is_some_and(|title| !title.is_empty()),
            "{panel}"
        );
    }
    assert!(ids.len() > 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_leaves_it_ready_and_is_on_the_page_with_its_reason() {
    let port = unused_port().await;
    let yard = Yard::new(QUICK).await;
    let daemon = Daemon::start(&listening(&yard, port));
    let mut producer = yard.producer().await;
    answers(port, "/readyz", 200).await;
    sqlx::query(
        "INSERT INTO holds (kind, reason, since) VALUES ('operator', '<b>paused</b>', '2026-01-31T22:00:00.000Z')",
    )
    .execute(&mut producer)
    .await
    .expect("accepted");
    insert(&mut producer, &yard.server(1), "stop").await;
    let page = answers(port, "/", 200).await;
    assert!(
        page.contains("&lt;b&gt;paused&lt;/b&gt;")
            && !page.contains("<b>")
            && page.contains("1 waiting: 1 paused"),
        "{page}"
    );
    assert_eq!(
        ask(port, "/readyz").await.map(|answer| answer.0),
        Some(200),
        "a hold is no reason"
    );
    let text = metrics(port).await;
    assert_eq!(
        value(&text, "poweryard_holds{target=\"(all)\",kind=\"operator\"}"),
        Some(1.0)
    );
    assert_eq!(
        value(
            &text,
            "poweryard_oldest_ready_age_seconds{target=\"default\",action=\"stop\"}"
        ),
        Some(0.0)
    );

    sqlx::query("DELETE FROM holds")
        .execute(&mut producer)
        .await
        .expect("deleted");
    outcomes(&mut producer).await;
    for (path, status) in [("/nothing", 404), ("/metrics?x=1", 200), ("/readyz", 200)] {
        assert_eq!(
            ask(port, path).await.map(|answer| answer.0),
            Some(status),
            "{path}"
        );
    }
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_held_makes_it_unready_until_it_is_over() {
    let port = unused_port().await;
    let yard = Yard::new(&format!("{QUICK}[latency]\nsubmit_ms = [200, 200]\n")).await;
    let daemon = Daemon::start(&listening(&yard, port));
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    until("the call has arrived", || {
        yard.cloud
            .calls()
            .iter()
            .any(|call| call.call == Call::Submit)
    })
    .await;
    sqlx::query("BEGIN IMMEDIATE")
        .execute(&mut producer)
        .await
        .expect("locked");
    let said = answers(port, "/readyz", 503).await;
    assert!(said.contains("the database fails"), "{said}");
    assert_eq!(
        ask(port, "/healthz").await.map(|answer| answer.0),
        Some(200)
    );
    let text = metrics(port).await;
    assert_eq!(value(&text, "poweryard_database_trouble{}"), Some(1.0));
    assert_eq!(
        value(&text, "poweryard_database_readable{}"),
        Some(1.0),
        "reading goes on"
    );
    sqlx::query("COMMIT")
        .execute(&mut producer)
        .await
        .expect("unlocked");
    answers(port, "/readyz", 200).await;
    assert_eq!(outcomes(&mut producer).await, "1 succeeded/job");
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn scrapers_that_are_slow_many_or_mad_disturb_nothing() {
    let port = unused_port().await;
    let yard = Yard::new(QUICK).await;
    let daemon = Daemon::start(&listening(&yard, port));
    let mut producer = yard.producer().await;
    answers(port, "/readyz", 200).await;
    let mut mad = Vec::new();
    for number in 0..60 {
        let mut stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .expect("a connection");
        let begin: &[u8] = match number % 3 {
            0 => b"",
            1 => b"GET /metrics HTTP/1.1\r\nhost",
            _ => &[0xff; 40_000],
        };
        let _ = stream.write_all(begin).await;
        mad.push(stream);
    }
    let begin = Instant::now();
    for number in 1..=10 {
        insert(&mut producer, &yard.server(number), "reboot").await;
    }
    assert_eq!(outcomes(&mut producer).await, "10 succeeded/job");
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "{:?}",
        begin.elapsed()
    );
    // Connections without a request end by themselves, and then others are served.
    answers(port, "/metrics", 200).await;
    drop(mad);
    let together = (0..40).map(|_| tokio::spawn(ask(port, "/metrics")));
    for answer in together.collect::<Vec<_>>() {
        assert_eq!(
            answer.await.expect("asked").map(|answer| answer.0),
            Some(200)
        );
    }
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_ends_it_with_78_and_a_second_daemon_is_named_as_such() {
    let yard = Yard::new(QUICK).await;
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let config = listening(&yard, port);
    let serve = || {
        let mut command = poweryard();
        command
            .arg("--config")
            .arg(&config)
            .arg("serve")
            .stdout(Stdio::null());
        tokio::task::spawn_blocking(move || command.output().expect("it runs"))
    };
    let said = serve().await.expect("it ended");
    let sentence = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said.status.code(), Some(78), "{sentence}");
    assert!(
        sentence.contains(&format!("cannot listen on 127.0.0.1:{port}"))
            && sentence.contains("in use"),
        "{sentence}"
    );
    assert!(!yard.database().exists(), "nothing was made on the way");
    drop(taken);
    let daemon = Daemon::start(&config);
    answers(port, "/readyz", 200).await;
    let said = serve().await.expect("it ended");
    assert_eq!(
        said.status.code(),
        Some(5),
        "{}",
        String::from_utf8_lossy(&said.stderr)
    );
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_the_address_and_keeps_the_old_one_if_it_is_taken() {
    let (first, second) = (unused_port().await, unused_port().await);
    let yard = Yard::new(QUICK).await;
    let daemon = Daemon::start(&listening(&yard, first));
    answers(first, "/readyz", 200).await;
    let taken = TcpListener::bind(("127.0.0.1", second))
        .await
        .expect("free");
    listening(&yard, second);
    daemon.signal("-HUP");
    let log = yard.dir.path().join("poweryard.log");
    let logged = |words: &str| fs::read_to_string(&log).unwrap_or_default().contains(words);
    until("it says so", || logged("the old address stays")).await;
    assert_eq!(
        ask(first, "/healthz").await.map(|answer| answer.0),
        Some(200)
    );
    drop(taken);
    daemon.signal("-HUP");
    answers(second, "/healthz", 200).await;
    assert_eq!(
        ask(first, "/healthz").await,
        None,
        "it has left the old address"
    );
    yard.write_config();
    daemon.signal("-HUP");
    let ends = Instant::now() + PATIENCE;
    while ask(second, "/healthz").await.is_some() {
        assert!(
            Instant::now() < ends,
            "it goes on listening without [listen]"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_half_open_connections_do_not_keep_health_away() {
    let yard = Yard::new(QUICK).await;
    let port = unused_port().await;
    let _daemon = Daemon::start(&listening(&yard, port));
    while ask(port, "/healthz").await.is_none() {}
    let mut half_open = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .expect("accepted by the system");
        // One that was dropped for another need not take it.
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\n").await;
        half_open.push(stream);
    }
    let begun = Instant::now();
    let answer = ask(port, "/healthz").await.expect("an answer");
    assert_eq!(answer.0, 200);
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "it waited for others to leave"
    );
}
