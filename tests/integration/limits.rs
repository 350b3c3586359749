//! What the config forbids or rations, and what a reload changes: protected servers, budgets,
//! secrets, targets.

use std::fs;
use std::process::{Child, Command};

use crate::common::{PROJECT, Yard, insert, insert_many, outcomes, reload, secret, text, wait_for};
use poweryard::settings::Settings;
use sqlx::AssertSqlSafe;

const QUICK: &str = "[bms]\nservers = 40\nrunning = 1.0\noperation_ms = [10, 50]\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_protected_server_is_neither_stopped_nor_rebooted_but_may_be_started() {
    let mut yard = Yard::new(QUICK).await;
    let (protected, other) = (yard.server(1), yard.server(2));
    yard.target_lines.push_str(&format!(
        "protect = {{ servers = [\"{}\"] }}\n",
        protected.to_uppercase()
    ));
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    for action in ["stop", "reboot", "start"] {
        insert(&mut producer, &protected, action).await;
    }
    insert(&mut producer, &other, "stop").await;
    let ended = outcomes(&mut producer).await;
    daemon.stop().await;
    assert_eq!(
        ended,
        "2 rejected/none/poweryard.protected, 1 succeeded/already, 1 succeeded/job"
    );
    assert_eq!(yard.cloud.ledger().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_rations_servers_over_a_rolling_span_and_says_so() {
    let mut yard = Yard::new(QUICK).await;
    yard.target_lines.push_str("budget = { stop = \"5/2s\" }\n");
    let daemon = yard.start();
    let mut producer = yard.producer().await;
    let servers: Vec<String> = (1..=12).map(|n| yard.server(n)).collect();
    insert_many(&mut producer, &servers, "stop").await;
    wait_for(
        &mut producer,
        "SELECT count(*) FROM holds WHERE kind = 'budget' AND action = 'stop'",
        "1",
    )
    .await;
    let reason = text(
        &mut producer,
        "SELECT reason FROM power_waiting ORDER BY id DESC LIMIT 1",
    )
    .await;
    assert!(
        reason.starts_with("held: the budget stop = \"5/2s\" is used up until "),
        "{reason}"
    );
    // A budget is about its action only.
    insert(&mut producer, &yard.server(20), "reboot").await;
    wait_for(
        &mut producer,
        "SELECT state FROM power_requests WHERE action = 'reboot'",
        "succeeded",
    )
    .await;
    assert_eq!(outcomes(&mut producer).await, "13 succeeded/job");
    // By the times of the calls: how long one is on its way depends on the machine.
    let most_in_a_span = "SELECT max((SELECT sum(b.server_count) FROM batches b WHERE b.action = 'stop' AND b.intent_at >= a.intent_at
                              AND julianday(b.intent_at) - julianday(a.intent_at) < 1.999 / 86400))
                          FROM batches a WHERE a.action = 'stop'";
    assert_eq!(text(&mut producer, most_in_a_span).await, "5");
    daemon.stop().await;
    let ledger = yard.cloud.ledger();
    assert_eq!(ledger.len(), 13);
}

/// The real program, killed when the test ends.
struct Program(Child);

impl Program {
    fn serve(yard: &Yard) -> Self {
        let config = yard.dir.path().join("poweryard.toml");
        let mut command = Command::new(env!("CARGO_BIN_EXE_poweryard"));
        Self(
            command
                .arg("--config")
                .arg(config)
                .arg("serve")
                .env("RUST_LOG", "off")
                .spawn()
                .expect("started"),
        )
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.0.id().to_string()])
            .status();
        assert!(status.expect("kill runs").success());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mended_secret_lifts_the_hold_and_the_same_rows_go_through() {
    let yard = Yard::new(QUICK).await;
    yard.write_config();
    secret(yard.dir.path(), "secret-key", "not-the-secret-key");
    let program = Program::serve(&yard);
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    wait_for(
        &mut producer,
        "SELECT kind FROM holds WHERE target = 'default'",
        "credentials",
    )
    .await;
    wait_for(&mut producer, "SELECT state FROM power_requests", "queued").await;
    let refused = yard.cloud.calls().len();
    assert!(refused <= 2, "{refused} calls with a wrong key");
    secret(yard.dir.path(), "secret-key", "poweryard-sim-secret-key");
    program.signal("HUP");
    assert_eq!(outcomes(&mut producer).await, "1 succeeded/job");
    assert_eq!(text(&mut producer, "SELECT count(*) FROM holds").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_up_a_new_target_and_refuses_to_drop_one_at_work() {
    let yard = Yard::new("[bms]\nservers = 4\nrunning = 1.0\noperation_ms = [1500, 1500]\n").await;
    let config = yard.write_config();
    let program = Program::serve(&yard);
    let mut producer = yard.producer().await;
    insert(&mut producer, &yard.server(1), "stop").await;
    wait_for(&mut producer, "SELECT state FROM batches", "tracking").await;
    let whole = fs::read_to_string(&config).expect("readable");
    // The target at work under another name: refused, and the old config stays in force.
    fs::write(&config, whole.replace("targets.default", "targets.other")).expect("written");
    program.signal("HUP");
    assert_eq!(outcomes(&mut producer).await, "1 succeeded/job");
    // Nothing is at work any more: taken up now.
    sqlx::query(
        "INSERT INTO power_requests (server_id, action, target) VALUES (?, 'stop', 'other')",
    )
    .bind(yard.server(2))
    .execute(&mut producer)
    .await
    .expect("accepted");
    wait_for(&mut producer, "SELECT kind FROM holds", "unknown_target").await;
    program.signal("HUP");
    assert_eq!(outcomes(&mut producer).await, "2 succeeded/job");
    // A config with a mistake changes nothing.
    fs::write(&config, "[queue]\nnonsense = 1\n").expect("written");
    program.signal("HUP");
    fs::write(&config, whole.replace("targets.default", "targets.other")).expect("written");
    sqlx::query(
        "INSERT INTO power_requests (server_id, action, target) VALUES (?, 'stop', 'other')",
    )
    .bind(yard.server(3))
    .execute(&mut producer)
    .await
    .expect("accepted");
    assert_eq!(outcomes(&mut producer).await, "3 succeeded/job");
    Settings::load(&config).expect("valid again");
}

/// The present config with one more target, and with server 2 of the first one protected.
fn widened(yard: &mut Yard) -> Settings {
    let lines = yard.target_lines.clone();
    yard.target_lines.push_str(&format!(
        "protect = {{ servers = [\"{}\"] }}\n",
        yard.server(2)
    ));
    let path = yard.write_config();
    yard.target_lines = lines;
    let text = fs::read_to_string(&path).expect("written");
    let (head, table) = text.split_at(text.find("[targets.").expect("a target"));
    let second = table
        .replace("targets.default", "targets.second")
        .replace(PROJECT, "0123456789abcdef0123456789abcdef");
    fs::write(&path, format!("{head}{table}{second}")).expect("written");
    Settings::load(&path).expect("a valid config")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_the_queue_fails_leaves_everything_as_it_was() {
    // What the set-up of a new target reads, and what is written for all of them.
    for table in ["targets", "holds"] {
        let mut yard =
            Yard::new("[bms]\nservers = 6\nrunning = 1.0\noperation_ms = [1500, 1500]\n").await;
        let (reloads, daemon) = yard.start_reloading(yard.settings());
        let mut producer = yard.producer().await;
        insert(&mut producer, &yard.server(1), "stop").await;
        wait_for(&mut producer, "SELECT state FROM batches", "tracking").await;
        let wider = widened(&mut yard);
        let rename = format!("ALTER TABLE {table} RENAME TO elsewhere");
        sqlx::raw_sql(AssertSqlSafe(rename))
            .execute(&mut producer)
            .await
            .expect("renamed");
        assert!(!reload(&reloads, wider.clone()).await, "{table}");
        let rename = format!("ALTER TABLE elsewhere RENAME TO {table}");
        sqlx::raw_sql(AssertSqlSafe(rename))
            .execute(&mut producer)
            .await
            .expect("renamed");
        // The old settings are in force: no second target, nobody protected, and the running job is
        // still followed.
        let second =
            "INSERT INTO power_requests (server_id, action, target) VALUES ('x', 'stop', 'second')";
        sqlx::query(second)
            .execute(&mut producer)
            .await
            .expect("accepted");
        insert(&mut producer, &yard.server(2), "stop").await;
        wait_for(
            &mut producer,
            "SELECT kind || ' ' || target FROM holds",
            "unknown_target second",
        )
        .await;
        wait_for(
            &mut producer,
            "SELECT count(*) FROM power_requests WHERE state = 'succeeded'",
            "2",
        )
        .await;
        assert_eq!(
            text(&mut producer, "SELECT count(*) FROM targets").await,
            "1",
            "{table}"
        );
        // Nothing keeps the same settings from being taken up now.
        assert!(reload(&reloads, wider).await);
        insert(&mut producer, &yard.server(2), "reboot").await;
        wait_for(
            &mut producer,
            "SELECT state FROM power_requests WHERE action = 'reboot'",
            "rejected",
        )
        .await;
        wait_for(&mut producer, "SELECT count(*) FROM targets", "2").await;
        wait_for(
            &mut producer,
            "SELECT count(*) FROM holds WHERE kind = 'unknown_target'",
            "0",
        )
        .await;
        daemon.stop().await;
        assert_eq!(yard.cloud.ledger().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_the_queue_fails_leaves_the_targets_as_they_were() {
    for table in ["targets", "holds"] {
        let mut yard = Yard::new(QUICK).await;
        let (reloads, daemon) = yard.start_reloading(yard.settings());
        let mut producer = yard.producer().await;
        wait_for(&mut producer, "SELECT count(*) FROM targets", "1").await;
        yard.target_lines.push_str(&format!(
            "protect = {{ servers = [\"{}\"] }}\n",
            yard.server(2)
        ));
        let protecting = yard.settings();
        let rename = format!("ALTER TABLE {table} RENAME TO elsewhere");
        sqlx::raw_sql(AssertSqlSafe(rename))
            .execute(&mut producer)
            .await
            .expect("renamed");
        assert!(!reload(&reloads, protecting.clone()).await, "{table}");
        let rename = format!("ALTER TABLE elsewhere RENAME TO {table}");
        sqlx::raw_sql(AssertSqlSafe(rename))
            .execute(&mut producer)
            .await
            .expect("renamed");
        insert(&mut producer, &yard.server(2), "stop").await;
        assert_eq!(outcomes(&mut producer).await, "1 succeeded/job", "{table}");
        assert!(reload(&reloads, protecting).await);
        insert(&mut producer, &yard.server(2), "reboot").await;
        assert_eq!(
            outcomes(&mut producer).await,
            "1 rejected/none/poweryard.protected, 1 succeeded/job"
        );
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_crowd_of_protected_requests_gets_one_of_them_through() {
    let mut yard =
        Yard::new("[bms]\nservers = 300\nrunning = 1.0\noperation_ms = [10, 50]\n").await;
    let servers: Vec<String> = (1..=300).map(|n| yard.server(n)).collect();
    let list = yard.dir.path().join("protected");
    fs::write(&list, servers.join("\n")).expect("written");
    yard.target_lines.push_str(&format!(
        "protect = {{ servers_file = \"{}\" }}\n",
        list.display()
    ));
    let settings = yard.settings();
    let store = poweryard::store::Store::open(&settings.queue.database)
        .await
        .expect("a queue");
    store.close().await.expect("closed");
    let mut producer = yard.producer().await;
    for _ in 0..4 {
        insert_many(&mut producer, &servers, "reboot").await;
    }
    let daemon = yard.start_with(settings);
    let ended = outcomes(&mut producer).await;
    daemon.stop().await;
    assert_eq!(ended, "1200 rejected/none/poweryard.protected");
    assert!(yard.cloud.calls().is_empty());
}
