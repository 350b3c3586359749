//! The inventory: what the daemon keeps of the servers that lists show, judged by the table
//! `servers`, the calls that the simulated cloud took, and what `poweryard inventory` says.

use std::process::Output;

use crate::common::process::{self, json, run};
use crate::common::scene::{self, Scene, fault};
use crate::common::{self, UNFINISHED, Yard, by_hand, text, wait_for};
use poweryard::model::{PowerAction, ServerId, Service};
use poweryard::sim::Call;

const EVERY_SECOND: &str = "inventory_interval = \"1s\"";
const ONCE: &str = "inventory_interval = \"1h\"";
const OFF: &str = "inventory_interval = \"off\"";
const PRESENT: &str = "SELECT count(*) FROM servers WHERE gone_at IS NULL";
const READ_IN_FULL: &str = "SELECT count(*) FROM targets WHERE inventory_at IS NOT NULL";

fn servers(count: usize) -> String {
    format!("[bms]\nservers = {count}\noperation_ms = [100, 200]\n[clouddc]\nservers = 0\n")
}

async fn said(yard: &Yard, args: &[&str]) -> Output {
    let database = yard.database().display().to_string();
    let args: Vec<String> = args
        .iter()
        .map(ToString::to_string)
        .chain(["--database".to_owned(), database])
        .collect();
    let ran = tokio::task::spawn_blocking(move || {
        run(&args.iter().map(String::as_str).collect::<Vec<_>>())
    });
    ran.await.expect("it ran")
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn id(yard: &Yard, number: usize) -> ServerId {
    ServerId(yard.server(number))
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_power_of_both_services_are_kept() {
    for service in [Service::Bms, Service::CloudDc] {
        let mut yard =
            Yard::new("[bms]\nservers = 4\n[clouddc]\nservers = 4\nfirst_states = [\"none\"]\n")
                .await;
        yard.service = service;
        yard.set(ONCE);
        let daemon = yard.start();
        let mut producer = yard.producer().await;
        wait_for(&mut producer, READ_IN_FULL, "1").await;
        for server in yard.cloud.servers() {
            if server.service != service {
                continue;
            }
            let row = format!(
                "SELECT name || ' ' || power || ' ' || target FROM servers WHERE server_id = '{}'",
                server.server_id
            );
            let power = format!("{:?}", server.power).to_lowercase();
            let expected = format!("{} {power} default", server.name);
            assert_eq!(text(&mut producer, &row).await, expected);
        }
        assert_eq!(text(&mut producer, PRESENT).await, "4");
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_vanishes_is_marked_and_unmarked_when_it_returns() {
    let mut scene = Scene::new(&servers(3), &[EVERY_SECOND]).await;
    scene.wait_for(PRESENT, "3").await;
    let second = id(&scene.yard, 2);
    let gone = format!("SELECT gone_at IS NOT NULL FROM servers WHERE server_id = '{second}'");
    scene.yard.cloud.set_missing(&second, true);
    scene.wait_for(&gone, "1").await;
    let kept = scene.text("SELECT count(*) FROM servers").await;
    assert_eq!(kept, "3", "its row stays");
    scene.yard.cloud.set_missing(&second, false);
    scene.yard.cloud.rename(&second, "renamed");
    scene.wait_for(&gone, "0").await;
    let name = format!("SELECT name FROM servers WHERE server_id = '{second}'");
    assert_eq!(scene.text(&name).await, "renamed");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_cannot_be_read_keeps_the_old_one_and_disturbs_nothing() {
    // The first two calls are a page that proves the key, or the list itself.
    let broken = fault(
        "error_before",
        "on = [\"list\"]\ncalls = [2,3,4,5,6,7,8,9,10,11,12]",
    );
    let scenario = format!("{}{broken}", servers(3));
    let mut scene = Scene::new(&scenario, &[EVERY_SECOND]).await;
    scene.wait_for(READ_IN_FULL, "1").await;
    let read_at = scene.text("SELECT inventory_at FROM targets").await;
    let gone = id(&scene.yard, 3);
    scene.yard.cloud.set_missing(&gone, true);
    scene
        .wait_for("SELECT inventory_error LIKE '%503%' FROM targets", "1")
        .await;
    assert_eq!(scene.text(PRESENT).await, "3", "nobody is marked");
    let still = scene.text("SELECT inventory_at FROM targets").await;
    assert_eq!(still, read_at, "it says how old it is");
    scene.ask(PowerAction::Reboot, [1, 2]).await;
    let outcomes = scene.outcomes().await;
    assert!(!outcomes.contains("unknown"), "{outcomes}");
    let holds = scene.text("SELECT count(*) FROM holds").await;
    assert_eq!(holds, "0", "nothing is held");
    scene.wait_for(PRESENT, "2").await;
    scene
        .wait_for("SELECT inventory_error IS NULL FROM targets", "1")
        .await;
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_list_waits_alone() {
    let throttle = fault(
        "throttle",
        "on = [\"list\"]\nchance = 1.0\nretry_after_s = 3600",
    );
    let scenario = format!("{}{throttle}", servers(3));
    let mut scene = Scene::new(&scenario, &[EVERY_SECOND]).await;
    scene
        .wait_for("SELECT inventory_error IS NOT NULL FROM targets", "1")
        .await;
    let lists = scene.calls(Call::List).len();
    scene.ask(PowerAction::Start, [1, 2, 3]).await;
    let outcomes = scene.outcomes().await;
    assert!(!outcomes.contains("unknown"), "{outcomes}");
    assert_eq!(scene.text("SELECT count(*) FROM holds").await, "0");
    let sync = said(&scene.yard, &["inventory", "sync"]).await;
    assert_eq!(sync.status.code(), Some(1), "{sync:?}");
    assert!(err(&sync).contains("throttles reads"), "{sync:?}");
    assert!(scene.calls(Call::List).len() <= lists + 1, "it waits");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_looks_have_seen_costs_no_list_of_its_own() {
    let mut yard = Yard::new(
        "[bms]\nservers = 0\n[clouddc]\nservers = 10\noperation_ms = [300, 500]\nrunning = 1.0\n",
    )
    .await;
    yard.service = Service::CloudDc;
    yard.set(ONCE);
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    wait_for(&mut producer, READ_IN_FULL, "1").await;
    let ids = yard.servers(8);
    common::insert_many(&mut producer, &ids, "stop").await;
    common::outcomes(&mut producer).await;
    // Its interval is an hour. The last ones to end are shown one by one, which is no list.
    let known = "SELECT count(*) > 0 FROM servers WHERE power = 'off' AND gone_at IS NULL";
    wait_for(&mut producer, known, "1").await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_list_is_not_read_a_second_time() {
    let mut scene = Scene::new(&servers(3), &[ONCE]).await;
    scene.wait_for(READ_IN_FULL, "1").await;
    assert_eq!(scene.calls(Call::List).len(), 1);
    scene.a_round_passes().await;
    scene.a_round_passes().await;
    assert_eq!(scene.calls(Call::List).len(), 1);
    scene.command(&["inventory", "sync"]).await;
    assert_eq!(scene.calls(Call::List).len(), 2, "somebody asked");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn off_reads_no_list_until_somebody_asks() {
    let mut scene = Scene::new(&servers(3), &[OFF]).await;
    scene.a_round_passes().await;
    scene.a_round_passes().await;
    assert_eq!(scene.calls(Call::List).len(), 0);
    scene
        .command(&["inventory", "sync", "--target", "default"])
        .await;
    assert_eq!(scene.text(PRESENT).await, "3");
    let rows = said(&scene.yard, &["inventory", "--json"]).await;
    assert_eq!(json(&rows).as_array().map(Vec::len), Some(3));
    let unknown = said(&scene.yard, &["inventory", "sync", "--target", "x"]).await;
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_daemon_no_list_is_read() {
    let scene = Scene::new(&servers(1), &[OFF]).await;
    let yard = scene.yard;
    scene.daemon.stop().await;
    let sync = said(&yard, &["inventory", "sync"]).await;
    assert_eq!(sync.status.code(), Some(3), "{sync:?}");
    assert!(err(&sync).contains("no daemon runs on"), "{sync:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_vanished_while_no_daemon_ran_is_marked_at_the_next_start() {
    let scene = Scene::new(&servers(3), &[ONCE]).await;
    let Scene {
        yard,
        daemon,
        mut producer,
    } = scene;
    wait_for(&mut producer, READ_IN_FULL, "1").await;
    daemon.stop().await;
    yard.cloud.set_missing(&id(&yard, 2), true);
    let daemon = yard.start();
    wait_for(&mut producer, PRESENT, "2").await;
    let order = "SELECT seen_at < gone_at FROM servers WHERE gone_at IS NOT NULL";
    assert_eq!(text(&mut producer, order).await, "1");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_lets_submits_go_first_and_does_not_hold_them_up() {
    let scenario = "[latency]\nlist_ms = [60000, 60000]\n[bms]\nservers = 4\nrunning = 1.0\n\
                    operation_ms = [100, 200]\n";
    let scene = Scene::new(scenario, &[OFF]).await;
    let Scene {
        mut yard,
        daemon,
        mut producer,
    } = scene;
    daemon.stop().await;
    let first: Vec<String> = vec![yard.server(1), yard.server(2)];
    common::insert_many(&mut producer, &first, "reboot").await;
    yard.set(ONCE);
    let daemon = yard.start();
    wait_for(&mut producer, UNFINISHED, "0").await;
    let calls = yard.cloud.calls();
    assert_eq!(calls[0].call, Call::Submit, "{calls:?}");
    // The list is being read now, for a minute.
    process::until("the list was asked for", || {
        yard.cloud
            .calls()
            .iter()
            .any(|call| call.call == Call::List)
    })
    .await;
    let second: Vec<String> = vec![yard.server(3), yard.server(4)];
    common::insert_many(&mut producer, &second, "reboot").await;
    common::outcomes(&mut producer).await;
    assert_eq!(text(&mut producer, READ_IN_FULL).await, "0");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_costs_one_refusal_and_says_so() {
    let yard = {
        let mut yard = Yard::new(&servers(2)).await;
        yard.set(EVERY_SECOND);
        yard
    };
    let settings = yard.settings();
    common::secret(
        yard.dir.path(),
        "secret-key",
        "another-secret-key-of-somebody",
    );
    let daemon = yard.start_with(settings);
    let mut producer = yard.producer().await;
    wait_for(
        &mut producer,
        "SELECT count(*) FROM holds WHERE kind = 'credentials'",
        "1",
    )
    .await;
    let sync = said(&yard, &["inventory", "sync"]).await;
    assert_eq!(sync.status.code(), Some(1), "{sync:?}");
    assert!(err(&sync).contains("refuses the credentials"), "{sync:?}");
    let bad = scene::bad_signatures(&yard);
    assert!(bad <= 2, "{bad} bad signatures");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_servers_are_ten_pages() {
    let mut scene = Scene::new(&servers(9_999), &[ONCE]).await;
    scene.wait_for(READ_IN_FULL, "1").await;
    assert_eq!(scene.text(PRESENT).await, "9999");
    // One more: the page that proved the key.
    assert_eq!(scene.calls(Call::List).len(), 11);
    scene.command(&["inventory", "sync"]).await;
    assert_eq!(scene.calls(Call::List).len(), 21);
    let last = scene
        .text("SELECT max(seen_at) = min(seen_at) OR 1 FROM servers")
        .await;
    assert_eq!(last, "1");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_names_are_kept_and_found_as_they_are() {
    let names = [
        "it's \"quoted\"",
        "two\nlines",
        "🦀 crab",
        "100%_full",
        "rack[1]*",
        "Straße?",
        "tab\tand \u{1b}[2J",
        "ends with \\",
    ];
    let mut scene = Scene::new(&servers(names.len()), &[OFF]).await;
    for (number, name) in names.iter().enumerate() {
        let server = id(&scene.yard, number + 1);
        scene.yard.cloud.rename(&server, name);
    }
    scene.command(&["inventory", "sync"]).await;
    for (number, name) in names.iter().enumerate() {
        let server = id(&scene.yard, number + 1);
        let enqueued = said(&scene.yard, &["enqueue", "start", name]).await;
        assert_eq!(enqueued.status.code(), Some(0), "{name:?}: {enqueued:?}");
        let newest = scene
            .text("SELECT server_id FROM power_requests ORDER BY id DESC LIMIT 1")
            .await;
        assert_eq!(ServerId(newest), server, "{name:?}");
    }
    let table = said(&scene.yard, &["inventory"]).await;
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert_eq!(table.lines().count(), names.len() + 1, "{table}");
    assert!(!table.contains('\u{1b}'), "{table}");
    scene.daemon.stop().await;
}

const GPU_1: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const GPU_2: &str = "aaaaaaaa-0000-4000-8000-000000000002";
const TWIN_1: &str = "aaaaaaaa-0000-4000-8000-000000000003";
const TWIN_2: &str = "aaaaaaaa-0000-4000-8000-000000000004";
const OLD: &str = "aaaaaaaa-0000-4000-8000-000000000005";
const DECOY: &str = "aaaaaaaa-0000-4000-8000-000000000006";
const ELSEWHERE: &str = "aaaaaaaa-0000-4000-8000-000000000007";

/// A queue without a daemon that knows some servers.
async fn known_servers() -> (Yard, sqlx::SqliteConnection) {
    let scene = Scene::new(&servers(1), &[OFF]).await;
    let Scene {
        yard,
        daemon,
        mut producer,
    } = scene;
    daemon.stop().await;
    let now = "strftime('%Y-%m-%dT%H:%M:%fZ','now')";
    let rows = [
        (GPU_1, "default", "gpu-1", "NULL"),
        (GPU_2, "default", "gpu-2", "NULL"),
        (TWIN_1, "default", "twin", "NULL"),
        (TWIN_2, "default", "twin", "NULL"),
        (OLD, "default", "old", now),
        // Its name is another one's id.
        (DECOY, "default", GPU_1, "NULL"),
        (ELSEWHERE, "other", "elsewhere", "NULL"),
    ];
    for (id, target, name, gone) in rows {
        let insert = format!(
            "INSERT INTO servers (target, server_id, name, power, status, seen_at, gone_at)
             VALUES ('{target}', '{id}', '{name}', 'on', 'ACTIVE', {now}, {gone})"
        );
        by_hand(&mut producer, &insert).await.expect("inserted");
    }
    (yard, producer)
}

async fn servers_asked_for(producer: &mut sqlx::SqliteConnection) -> String {
    let sql = "SELECT group_concat(server_id, ' ') FROM (SELECT server_id FROM power_requests ORDER BY id)";
    let found = text(producer, sql).await;
    sqlx::query("UPDATE power_requests SET state = 'cancelled' WHERE state = 'queued'")
        .execute(producer)
        .await
        .expect("cancelled");
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn words_are_ids_then_names_then_globs_then_unlisted_ids() {
    let unlisted = "bbbbbbbb-0000-4000-8000-000000000001";
    for (words, expected) in [
        (vec![GPU_1], vec![GPU_1]),
        (vec!["AAAAAAAA-0000-4000-8000-000000000002"], vec![GPU_2]),
        (vec!["aaaaaaaa000040008000000000000002"], vec![GPU_2]),
        (vec!["gpu-2"], vec![GPU_2]),
        (vec!["gpu-*"], vec![GPU_1, GPU_2]),
        (vec!["gpu-?"], vec![GPU_1, GPU_2]),
        (vec!["gpu-[2-9]"], vec![GPU_2]),
        (vec!["gpu-2", "gpu-*"], vec![GPU_2, GPU_1]),
        (vec!["tw*"], vec![TWIN_1, TWIN_2]),
        (vec![unlisted], vec![unlisted]),
        (vec![OLD], vec![OLD]),
        (vec!["--ids", "gpu-1"], vec!["gpu-1"]),
        (vec!["--target", "third", "gpu-1"], vec!["gpu-1"]),
        (vec!["--target", "other", "elsewhere"], vec![ELSEWHERE]),
    ] {
        let (yard, mut producer) = known_servers().await;
        let args: Vec<&str> = ["enqueue", "start"]
            .into_iter()
            .chain(words.clone())
            .collect();
        let enqueued = said(&yard, &args).await;
        assert_eq!(enqueued.status.code(), Some(0), "{words:?}: {enqueued:?}");
        let asked = servers_asked_for(&mut producer).await;
        let is_same = asked.eq_ignore_ascii_case(&expected.join(" "));
        assert!(is_same, "{words:?}: {asked}");
        let warns = words == [unlisted] || words == [OLD];
        assert_eq!(err(&enqueued).contains(" server "), warns, "{enqueued:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_that_names_nobody_or_two_inserts_nothing() {
    let (yard, mut producer) = known_servers().await;
    for (words, sentence) in [
        (vec!["gpu-1", "gpu-l"], "similar names: gpu-"),
        (vec!["GPU-1"], "similar names: gpu-1"),
        (vec!["twin"], TWIN_1),
        (vec!["twin"], TWIN_2),
        (vec!["old"], "is gone since"),
        (vec!["elsewhere"], "on target other"),
        (vec!["web-*"], "matches no server of target default"),
        (vec!["gpu-[1"], "matches no server"),
        (vec!["", "gpu-1"], "is empty and names no server"),
        (vec!["  "], "is empty and names no server"),
        (vec!["gpu-1", GPU_1], "named twice"),
        (vec!["--ids", "gpu 1"], "is not a server id"),
        (vec!["--target", "third", "gpu-*"], "has no inventory yet"),
    ] {
        let args: Vec<&str> = ["enqueue", "stop"]
            .into_iter()
            .chain(words.clone())
            .collect();
        let refused = said(&yard, &args).await;
        assert_eq!(refused.status.code(), Some(2), "{words:?}: {refused:?}");
        assert!(err(&refused).contains(sentence), "{words:?}: {refused:?}");
    }
    let inserted = text(&mut producer, "SELECT count(*) FROM power_requests").await;
    assert_eq!(inserted, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_a_file_are_names_too() {
    let (yard, mut producer) = known_servers().await;
    let file = yard.dir.path().join("rack");
    std::fs::write(&file, "gpu-2 # noisy\n\n# all\ngpu-*\n").expect("written");
    let path = file.display().to_string();
    let enqueued = said(&yard, &["enqueue", "stop", "--from-file", &path]).await;
    assert_eq!(enqueued.status.code(), Some(0), "{enqueued:?}");
    let asked = servers_asked_for(&mut producer).await;
    assert_eq!(asked, format!("{GPU_2} {GPU_1}"));
    std::fs::write(&file, "gpu-1\ngpu-9x\n").expect("written");
    let refused = said(&yard, &["enqueue", "stop", "--from-file", &path]).await;
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(err(&refused).contains("rack:2: 'gpu-9x'"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_shown_beside_servers_and_filter_them() {
    let (yard, _producer) = known_servers().await;
    let unlisted = "bbbbbbbb-0000-4000-8000-000000000001";
    said(&yard, &["enqueue", "stop", "gpu-1", "gpu-2", unlisted]).await;
    let listed = json(&said(&yard, &["list", "--json"]).await);
    let names: Vec<_> = (0..3).map(|at| listed[at]["name"].clone()).collect();
    assert_eq!(
        names,
        [serde_json::Value::Null, "gpu-2".into(), "gpu-1".into()]
    );
    for (word, count) in [
        ("gpu-1", 1),
        ("gpu-*", 2),
        (GPU_2, 1),
        (unlisted, 1),
        ("tw*", 0),
    ] {
        let found = json(&said(&yard, &["list", "--server", word, "--json"]).await);
        assert_eq!(found.as_array().map(Vec::len), Some(count), "{word}");
    }
    for word in ["gpu-9", "twin", "x*"] {
        let refused = said(&yard, &["list", "--server", word]).await;
        assert_eq!(refused.status.code(), Some(2), "{word}: {refused:?}");
    }
    let shown = json(&said(&yard, &["show", "1", "--json"]).await);
    assert_eq!(shown["name"], "gpu-1");
    let explained = json(&said(&yard, &["explain", "1", "--json"]).await);
    assert_eq!(explained["name"], "gpu-1");
    let sentence = explained["explanation"][0].as_str().unwrap_or_default();
    assert!(sentence.contains("(gpu-1)"), "{sentence}");
    let status = json(&said(&yard, &["status", "--json"]).await);
    assert_eq!(status["oldest_ready"]["name"], "gpu-1");
    let waited = json(&said(&yard, &["wait", "--timeout", "10ms", "--json"]).await);
    assert_eq!(waited["others"][1]["name"], "gpu-2");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inventory_is_listed_by_patterns_and_says_who_is_gone() {
    let (yard, _producer) = known_servers().await;
    for (words, count) in [
        (vec![], 7),
        (vec!["gpu-*"], 2),
        (vec!["gpu-*", "gpu-1"], 2),
        (vec![OLD], 1),
        (vec!["--target", "other"], 1),
    ] {
        let args: Vec<&str> = ["inventory", "--json"]
            .into_iter()
            .chain(words.clone())
            .collect();
        let found = json(&said(&yard, &args).await);
        assert_eq!(found.as_array().map(Vec::len), Some(count), "{words:?}");
    }
    let refused = said(&yard, &["inventory", "web-*"]).await;
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let gone = json(&said(&yard, &["inventory", "--json", OLD]).await);
    assert!(gone[0]["gone_at"].is_string(), "{gone}");
}
