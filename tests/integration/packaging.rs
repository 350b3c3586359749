//! What the package gives to systemd, and what the daemon tells it: how little the unit may do,
//! whether its words are known, reloads, and the watchdog. The package as a whole on a real systemd
//! is `tests/nspawn/run`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::common::Yard;
use crate::common::process::{Daemon, Ear, until};
use sqlx::Connection;

const SERVERS: &str = "[bms]\nservers = 10\n";

/// Its output, if this machine has it and it knows these words.
fn systemd_analyze(args: &[&str]) -> Option<Output> {
    let output = Command::new("systemd-analyze")
        .args(args)
        .env("SYSTEMD_LOG_LEVEL", "warning")
        .output()
        .ok();
    let output = output
        .filter(|output| !String::from_utf8_lossy(&output.stderr).contains("unrecognized option"));
    if output.is_none() {
        println!("skipped: this machine has no systemd-analyze that could tell");
    }
    output
}

fn text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]]
        .map(String::from_utf8_lossy)
        .concat()
}

/// The unit as it is installed, but for the program's path.
fn unit_in(dir: &Path) -> String {
    let installed = include_str!("../../config/poweryard.service");
    let here = installed.replace("/usr/bin/poweryard", env!("CARGO_BIN_EXE_poweryard"));
    assert_ne!(here, installed);
    let path = dir.join("poweryard.service");
    fs::write(&path, here).expect("written");
    path.display().to_string()
}

#[test]
fn the_unit_is_exposed_to_at_most_1_2() {
    let dir = tempfile::tempdir().expect("a folder");
    let unit = unit_in(dir.path());
    let Some(said) = systemd_analyze(&[
        "security",
        "--no-pager",
        "--offline=true",
        "--threshold=12",
        &unit,
    ]) else {
        return;
    };
    let said = (said.status.success(), text(&said));
    println!("{}", said.1.lines().last().unwrap_or_default());
    assert!(said.0, "{}", said.1);
}

#[test]
fn systemd_knows_every_word_of_the_unit() {
    let dir = tempfile::tempdir().expect("a folder");
    let unit = unit_in(dir.path());
    let Some(said) = systemd_analyze(&["verify", "--man=no", &unit]) else {
        return;
    };
    assert_eq!(text(&said), "");
    assert!(said.status.success());
}

#[test]
fn systemd_knows_every_word_of_the_drop_in_that_is_for_it() {
    let version = systemd_analyze(&["--version"])
        .map(|said| text(&said))
        .unwrap_or_default();
    let number = version
        .split_whitespace()
        .nth(1)
        .and_then(|number| number.parse::<u32>().ok());
    if number.is_none_or(|number| number < 254) {
        println!("skipped: this machine's systemd is older than 254");
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let unit = unit_in(dir.path());
    fs::create_dir(format!("{unit}.d")).expect("a folder");
    fs::write(
        format!("{unit}.d/systemd254.conf"),
        include_str!("../../config/poweryard-systemd254.conf"),
    )
    .expect("written");
    let said = systemd_analyze(&["verify", "--man=no", &unit]).expect("it is there");
    assert_eq!(text(&said), "");
}

#[test]
fn the_package_has_the_pages_and_the_unit_names_one_of_them() {
    let manifest: toml::Table = include_str!("../../Cargo.toml")
        .parse()
        .expect("valid TOML");
    let assets = manifest["package"]["metadata"]["deb"]["assets"]
        .as_array()
        .expect("a list");
    let pages = toml::Value::from(vec!["docs/*.md", "usr/share/doc/poweryard/docs/", "644"]);
    assert!(assets.contains(&pages), "{assets:?}");
    let unit = include_str!("../../config/poweryard.service");
    let named = unit
        .split("file:/usr/share/doc/poweryard/")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next());
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(named.expect("a page"));
    assert!(page.exists(), "{}", page.display());
}

fn times(ear: &Ear, line: &str) -> usize {
    ear.heard().iter().filter(|heard| *heard == line).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_when_a_reload_begins_and_ends_and_that_one_was_refused() {
    let yard = Yard::new(SERVERS).await;
    let ear = Ear::new(yard.dir.path());
    let config = yard.write_config();
    let good = fs::read_to_string(&config).expect("written");
    let daemon = Daemon::start_telling(&config, Some(&ear));
    ear.hear("READY=1").await;
    ear.hear("STATUS=0 calls open").await;
    assert_eq!(times(&ear, "RELOADING=1"), 0);

    daemon.signal("-HUP");
    until("the reload has ended", || times(&ear, "READY=1") == 2).await;
    let heard = ear.heard();
    let begun = heard
        .iter()
        .position(|line| line == "RELOADING=1")
        .expect("it was told");
    assert!(heard[begun + 1].starts_with("MONOTONIC_USEC="), "{heard:?}");
    assert_eq!(
        heard.iter().rposition(|line| line == "READY=1"),
        Some(begun + 2),
        "{heard:?}"
    );

    fs::write(&config, good.replacen("linger", "lingre", 1)).expect("written");
    daemon.signal("-HUP");
    ear.hear("STATUS=the last reload was refused, see the log; 0 calls open")
        .await;
    until("the reload has ended", || times(&ear, "READY=1") == 3).await;

    fs::write(&config, good).expect("written");
    daemon.signal("-HUP");
    until("the reload has ended", || times(&ear, "READY=1") == 4).await;
    let last = ear
        .heard()
        .into_iter()
        .rfind(|line| line.starts_with("STATUS="));
    assert_eq!(last.as_deref(), Some("STATUS=0 calls open"));
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_is_fed_when_idle_or_locked_out_but_not_when_stopped() {
    let yard = Yard::new(SERVERS).await;
    let ear = Ear::new(yard.dir.path());
    let limit = Duration::from_secs(8);
    let daemon = Daemon::start_watched(&yard.write_config(), &ear, limit);
    ear.hear("READY=1").await;
    // The longest silence over some time, in the eyes of who waits for it.
    let silence = async |over: Duration| {
        let (begin, mut fed_at, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
        let mut fed = times(&ear, "WATCHDOG=1");
        while begin.elapsed() < over {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if times(&ear, "WATCHDOG=1") > fed {
                (fed, fed_at) = (times(&ear, "WATCHDOG=1"), Instant::now());
            }
            longest = longest.max(fed_at.elapsed());
        }
        longest
    };
    let idle = silence(Duration::from_secs(6)).await;
    let mut producer = yard.producer().await;
    sqlx::query("BEGIN IMMEDIATE")
        .execute(&mut producer)
        .await
        .expect("locked");
    let locked = silence(Duration::from_secs(12)).await;
    println!("longest silence of a watchdog of {limit:?}: idle {idle:?}, behind a lock {locked:?}");
    assert!(idle < limit && locked < limit);
    sqlx::query("COMMIT")
        .execute(&mut producer)
        .await
        .expect("unlocked");
    producer.close().await.expect("closed");
    daemon.signal("-STOP");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = times(&ear, "WATCHDOG=1");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(times(&ear, "WATCHDOG=1"), before);
    daemon.signal("-CONT");
    assert_eq!(daemon.stop().await, Some(0));
}
