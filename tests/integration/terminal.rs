//! What people see on a terminal, at 80×24 and at 200×50, against the simulated cloud: `top` and its
//! keys, the live table of `wait`, lists that fit, and completions.

use std::path::Path;
use std::process::Command;

use crate::common::process;
use crate::common::scene::{Scene, fault};
use crate::common::tmux::{self, Pane};
use poweryard::model::PowerAction;

const SIZES: [(u16, u16); 2] = [(80, 24), (200, 50)];

/// Twelve servers, of which one fails to stop.
async fn busy_scene() -> Scene {
    let scenario = fault("sub_job_fails", "servers = [3]\ncode = \"BMS.0040\"\n");
    let lines = ["inventory_interval = \"10m\""];
    let mut scene = Scene::new(&format!("[bms]\nservers = 12\n{scenario}"), &lines).await;
    scene.wait_for("SELECT count(*) FROM servers", "12").await;
    scene
}

#[tokio::test(flavor = "multi_thread")]
async fn top_shows_the_queue_and_its_keys_explain_pause_and_resume() {
    if !tmux::is_there() {
        return;
    }
    let mut scene = busy_scene().await;
    scene.ask(PowerAction::Stop, 1..=6).await;
    scene
        .wait_for("SELECT count(*) FROM power_outcomes", "6")
        .await;
    for (columns, rows) in SIZES {
        let pane = Pane::open(columns, rows, &scene.yard.database());
        pane.enter("py top");
        pane.shows("as of");
        let screen = pane.shows("DONE/MIN");
        for part in [
            "1 Overview",
            "5 off",
            "1 failed",
            "BMS.0040",
            "default",
            "q quit",
        ] {
            assert!(screen.contains(part), "{part} in\n{screen}");
        }
        assert_eq!(screen.lines().count(), usize::from(rows), "{screen}");

        pane.key("2");
        pane.shows("REQUEST");
        pane.shows("bms-0006");
        pane.key("End");
        pane.key("Enter");
        pane.shows("Request 1: stop server");
        pane.shows("It never changes again.");
        pane.key("Escape");
        // Written at once with what follows, it would be another key: Alt and that.
        pane.until("the page", |screen| !screen.contains("never changes again"));
        pane.write("/");
        pane.shows("Enter takes it");
        pane.write("failed");
        pane.key("Enter");
        pane.shows("only: failed");
        pane.until("one row", |screen| !screen.contains("bms-0006"));

        pane.key("p");
        pane.shows("Pause what?");
        pane.key("Enter");
        pane.shows("As alice. Why?");
        pane.write("rack 7");
        pane.key("Enter");
        pane.shows("paused: stop on target default");
        scene
            .wait_for(
                "SELECT reason FROM holds WHERE kind = 'operator'",
                "stop on target default paused by alice: rack 7",
            )
            .await;
        pane.key("3");
        pane.shows("rack 7");
        pane.key("r");
        pane.shows("Resume what?");
        pane.key("Enter");
        pane.shows("As alice. Why?");
        pane.key("Enter");
        pane.shows("resumed: stop on target default");
        scene
            .wait_for("SELECT count(*) FROM holds WHERE kind = 'operator'", "0")
            .await;

        pane.key("1");
        scene.ask(PowerAction::Start, 7..=8).await;
        pane.until("what has changed", |screen| screen.contains("on, 5 off"));
        pane.write("q");
        pane.is_given_back();
    }
    assert_eq!(
        scene
            .text("SELECT group_concat(who || ' ' || action, ', ') FROM (SELECT who, action FROM operator_actions ORDER BY rowid)")
            .await,
        "alice pause, alice resume, alice pause, alice resume"
    );
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn top_gives_the_terminal_back_after_every_signal_that_ends_it() {
    if !tmux::is_there() {
        return;
    }
    let scene = busy_scene().await;
    for (columns, rows) in SIZES {
        let pane = Pane::open(columns, rows, &scene.yard.database());
        pane.enter("echo what was here before");
        for signal in ["TERM", "HUP", "INT", "QUIT"] {
            let pid = scene.yard.dir.path().join("pid");
            let _ = std::fs::remove_file(&pid);
            pane.enter(&format!(
                "( echo $BASHPID > {}; exec {} top --database {} )",
                pid.display(),
                env!("CARGO_BIN_EXE_poweryard"),
                scene.yard.database().display()
            ));
            pane.shows("as of");
            assert_eq!(pane.value("alternate_on"), "1");
            kill(signal, &pid);
            pane.until("the shell", |screen| {
                screen.contains("what was here before") && screen.trim_end().ends_with("ready$")
            });
        }
        pane.enter("py top");
        pane.shows("as of");
        pane.key("C-c");
        pane.is_given_back();
    }
    scene.daemon.stop().await;
}

fn kill(signal: &str, pid: &Path) {
    let pid = std::fs::read_to_string(pid).expect("a pid");
    let said = Command::new("kill")
        .args(["-s", signal, pid.trim()])
        .output()
        .expect("it runs");
    assert!(said.status.success(), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn top_without_a_terminal_is_wrong_usage() {
    let scene = busy_scene().await;
    let database = scene.yard.database();
    let said = process::run(&["top", "--database", &database.display().to_string()]);
    assert_eq!(said.status.code(), Some(2), "{said:?}");
    let sentence = String::from_utf8_lossy(&said.stderr);
    assert!(sentence.contains("top needs a terminal"), "{sentence}");
    assert!(said.stdout.is_empty(), "{said:?}");
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_shows_a_live_table_and_then_the_failures() {
    if !tmux::is_there() {
        return;
    }
    let scene = busy_scene().await;
    for (round, (columns, rows)) in SIZES.into_iter().enumerate() {
        let label = format!("round-{round}");
        let action = ["stop", "start"][round];
        scene
            .command(&["pause", "--reason", "rack 7 is being moved"])
            .await;
        scene
            .command(&["enqueue", action, "bms-000?", "--label", &label])
            .await;
        let pane = Pane::open(columns, rows, &scene.yard.database());
        pane.enter(&format!("py wait -l {label}"));
        let screen = pane.shows("0/9 ended");
        assert_eq!(screen.matches("ended").count(), 1, "{screen}");
        pane.shows("not sent yet: held: ");
        scene.command(&["resume"]).await;
        let screen = pane.until("the summary", |screen| {
            screen.contains("succeeded") && screen.trim_end().ends_with("ready$")
        });
        let has_failed = screen.contains("BMS.0040") && screen.contains("bms-0003");
        assert_eq!(has_failed, action == "stop", "{screen}");
        assert!(!screen.contains("0/9 ended"), "the table is gone\n{screen}");
    }
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_status_fit_the_terminal() {
    if !tmux::is_there() {
        return;
    }
    let mut scene = busy_scene().await;
    scene.ask(PowerAction::Stop, 1..=12).await;
    scene
        .wait_for("SELECT count(*) FROM power_outcomes", "12")
        .await;
    for (columns, rows) in SIZES {
        let pane = Pane::open(columns, rows, &scene.yard.database());
        let screen = pane.run("py list");
        for part in ["bms-0003", "BMS.0040", " ago", "failed"] {
            assert!(screen.contains(part), "{part} in\n{screen}");
        }
        // A head and twelve requests: no line was broken.
        assert_eq!(screen.lines().count(), 13, "{screen}");
        assert!(pane.coloured().contains("\u{1b}[31mfailed"), "red");
        let screen = pane.run("NO_COLOR=1 py list --state failed --full-times");
        assert!(
            screen.contains("failed") && !screen.contains(" ago"),
            "{screen}"
        );
        assert!(!pane.coloured().contains("\u{1b}[31m"), "no colour");
        let screen = pane.run("py status");
        let first = screen.lines().next().unwrap_or_default();
        assert!(first.starts_with("daemon: running"), "{screen}");
        assert!(screen.contains("11 off, 1 failed"), "{screen}");
    }
    scene.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_know_the_queue_and_are_silent_without_one() {
    let scene = busy_scene().await;
    scene
        .command(&["enqueue", "stop", "bms-0001", "--label", "patch day $(id)"])
        .await;
    scene
        .command(&["enqueue", "start", "bms-0002", "--label", "night"])
        .await;
    let queue = scene.yard.database();
    let queue = queue.display().to_string();
    let config = scene.yard.write_config();
    let config = config.display().to_string();
    for (line, wanted) in [
        (
            &["list", "--database", &queue, "--label", ""][..],
            "night,patch\\ day\\ \\$\\(id\\),",
        ),
        (&["list", "--database", &queue, "-l", "ni"][..], "night,"),
        (
            &["list", "--config", &config, "--target", "d"][..],
            "default,",
        ),
        (&["show", "--database", &queue, ""][..], "2,1,"),
        (
            &["enqueue", "start", "--database", &queue, "bms-000"][..],
            "bms-0001,",
        ),
        (&["list", "--database", "/no/such", "--label", ""][..], ","),
        (&["list", "--config", "/no/such", "--label", ""][..], ","),
    ] {
        let said = completed(line);
        assert!(
            said.starts_with(wanted) || wanted == "," && said.is_empty(),
            "{line:?}: {said:?}"
        );
    }
    scene.daemon.stop().await;
}

/// What bash offers for the last of these words, each with a comma behind it.
fn completed(words: &[&str]) -> String {
    let program = env!("CARGO_BIN_EXE_poweryard");
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let script = format!(
        "source <(POWERYARD_COMPLETE=bash '{program}') || exit 9
         COMP_WORDS=('{program}' {}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMP_TYPE=9
         _clap_complete_poweryard '{program}' \"${{COMP_WORDS[COMP_CWORD]}}\" ''
         printf '%s,' \"${{COMPREPLY[@]}}\"",
        quoted.join(" ")
    );
    let said = Command::new("bash")
        .args(["--norc", "-c", &script])
        .env_remove("POWERYARD_CONFIG")
        .output()
        .expect("bash runs");
    assert!(said.status.success() && said.stderr.is_empty(), "{said:?}");
    String::from_utf8_lossy(&said.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_and_exported_whole() {
    let mut scene = busy_scene().await;
    scene.ask(PowerAction::Stop, 1..=4).await;
    scene
        .wait_for("SELECT count(*) FROM power_outcomes", "4")
        .await;
    scene
        .command(&[
            "enqueue",
            "start",
            "bms-0001",
            "bms-0002",
            "--label",
            "night",
            "--not-before",
            "+1h",
            "--requested-by",
            "=carol",
        ])
        .await;
    let queue = scene.yard.database().display().to_string();
    let ids = |args: &[&str]| {
        let said = process::run(&[&["list", "--json", "--database", &queue], args].concat());
        assert!(said.status.success(), "{args:?}: {said:?}");
        let rows: serde_json::Value = serde_json::from_slice(&said.stdout).expect("JSON");
        let ids = rows.as_array().expect("an array").iter();
        ids.map(|row| row["id"].as_i64().expect("an id"))
            .collect::<Vec<_>>()
    };
    for (args, wanted) in [
        (&["--error", "BMS.0040"][..], &[3][..]),
        (&["-e", "BMS.*", "-s", "failed"], &[3]),
        (&["--action", "start"], &[6, 5]),
        (&["--action", "start,stop", "-n", "2"], &[6, 5]),
        (&["-l", "ni*"], &[6, 5]),
        (&["-l", "ni"], &[]),
        (&["--requested-by", "=carol"], &[6, 5]),
        (&["--server", "bms-000[23]", "-t", "default"], &[6, 3, 2]),
        (&["--since", "1h"], &[6, 5, 4, 3, 2, 1]),
        (
            &["--since", "1h", "--until", "2090-01-01", "-s", "succeeded"],
            &[4, 2, 1],
        ),
        (&["--until", "1h"], &[]),
    ] {
        assert_eq!(ids(args), wanted, "{args:?}");
    }
    let said = process::run(&["list", "--csv", "--label", "night", "--database", &queue]);
    let text = String::from_utf8(said.stdout).expect("UTF-8");
    let lines: Vec<&str> = text.split("\r\n").collect();
    assert!(lines[0].starts_with("id,server_id,name,action,"), "{text}");
    assert!(
        lines[1].starts_with("6,") && lines[1].contains(",bms-0002,start,default,0,"),
        "{text}"
    );
    assert!(lines[1].contains(",night,'=carol,"), "{text}");
    assert_eq!(lines.len(), 4, "a head, two rows, the end");
    let wrong = process::run(&["list", "--until", "soon", "--database", &queue]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&wrong.stderr).contains("--until soon"),
        "{wrong:?}"
    );
    scene.daemon.stop().await;
}
