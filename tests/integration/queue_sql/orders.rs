//! Orders with waves: what a producer may write, and what only the daemon does.

use poweryard::store::Prune;

use crate::common::old_sqlite;
use crate::common::queue::{Queue, wall};

const WAVES: &str = "waves must be sizes such as 1, 5%, 25%: numbers of servers from 1, or shares above 0 up to 100%";
const FAILURES: &str =
    "failures_max must be a number of servers or a share up to 100%, such as 3 or 2%";
const PAUSE: &str = "pause must be a whole number and s, m, h or d, such as 90s, 10m, 2h or 1d";

#[tokio::test]
async fn what_an_order_leaves_out_is_filled_in() {
    let mut queue = Queue::new().await;
    queue
        .sql("INSERT INTO orders (label, waves, failures_max, state, wave) VALUES ('x', '1, 5%', NULL, NULL, NULL)")
        .await;
    let row = "SELECT failures_max, pause, state, wave, finished_at,
        round(julianday(expires_at) - julianday(created_at)) FROM orders";
    assert_eq!(queue.row(row).await, "0||open|1||7.0");
    queue
        .sql("UPDATE orders SET expires_at = '2090-01-31 22:00+01:00', waves = '100%', pause = '90s'")
        .await;
    let row = "SELECT waves, pause, expires_at FROM orders";
    assert_eq!(queue.row(row).await, "100%|90s|2090-01-31T21:00:00.000Z");
}

#[tokio::test]
async fn what_does_not_read_is_refused_in_a_sentence() {
    let mut queue = Queue::new().await;
    for (columns, values, sentence) in [
        ("waves", "NULL", WAVES),
        ("waves", "''", WAVES),
        ("waves", "'0'", WAVES),
        ("waves", "'1,'", WAVES),
        ("waves", "'1;2'", WAVES),
        ("waves", "'-1'", WAVES),
        ("waves", "'0%'", WAVES),
        ("waves", "'101%'", WAVES),
        ("waves", "'5%%'", WAVES),
        ("waves", "'1.5'", WAVES),
        ("waves", "'all'", WAVES),
        ("waves, failures_max", "'1', ''", FAILURES),
        ("waves, failures_max", "'1', 'few'", FAILURES),
        ("waves, failures_max", "'1', '-1'", FAILURES),
        ("waves, failures_max", "'1', '200%'", FAILURES),
        ("waves, pause", "'1', '10'", PAUSE),
        ("waves, pause", "'1', '10 m'", PAUSE),
        ("waves, pause", "'1', '1h30m'", PAUSE),
        (
            "waves, expires_at",
            "'1', '22:00'",
            "expires_at must be a UTC time",
        ),
        (
            "waves, expires_at",
            "'1', '2020-01-01'",
            "expires_at must be later than now",
        ),
        (
            "waves, servers",
            "'1', 5",
            "the other columns are set by the queue",
        ),
        (
            "waves, id",
            "'1', 5",
            "the other columns are set by the queue",
        ),
        (
            "waves, let_go",
            "'1', 'rest'",
            "the other columns are set by the queue",
        ),
    ] {
        let sql = format!("INSERT INTO orders (label, {columns}) VALUES ('x', {values})");
        let said = queue.refused(&sql).await;
        assert!(said.contains(sentence), "{sql}: {said}");
    }
    let said = queue
        .refused("INSERT INTO orders (label, waves) VALUES ('', '1')")
        .await;
    assert!(said.contains("label must be text of 1 to 256"), "{said}");
    assert_eq!(queue.row("SELECT count(*) FROM orders").await, "0");
}

#[tokio::test]
async fn forms_that_people_write_are_taken() {
    let mut queue = Queue::new().await;
    for (number, waves) in ["1", "1,5%,25%", " 10 , 100% ", "0.5%, 33.3%", "999999999"]
        .iter()
        .enumerate()
    {
        queue
            .sql(&format!(
                "INSERT INTO orders (label, waves, failures_max) VALUES ('{number}', '{waves}', 3)"
            ))
            .await;
    }
    assert_eq!(queue.row("SELECT count(*) FROM orders").await, "5");
}

#[tokio::test]
async fn only_the_daemon_writes_what_it_tells() {
    let mut queue = Queue::new().await;
    queue
        .sql("INSERT INTO orders (label, waves) VALUES ('x', '1')")
        .await;
    for change in [
        "state = 'done'",
        "wave = 2",
        "wave_size = 9",
        "begun_at = '2026-01-01'",
        "label = 'y'",
        "read_id = 9",
        "done_id = 9",
        "id = 9",
    ] {
        queue.refused(&format!("UPDATE orders SET {change}")).await;
    }
    queue
        .refused(
            "INSERT INTO order_servers (label, target, server_id) VALUES ('x', 'default', 'a')",
        )
        .await;
    queue.sql("UPDATE orders SET let_go = 'wave'").await;
    queue
        .by_hand("UPDATE orders SET begun_at = '2026-01-01T00:00:00.000Z'")
        .await;
    for statement in [
        "UPDATE orders SET waves = '2'",
        "DELETE FROM orders",
        "INSERT INTO orders (label, waves) VALUES ('x', '100%')",
        "INSERT OR REPLACE INTO orders (label, waves) VALUES ('x', '100%')",
    ] {
        let said = queue.refused(statement).await;
        assert!(said.contains("this order has begun"), "{statement}: {said}");
    }
}

#[tokio::test]
async fn an_order_that_goes_takes_along_what_the_daemon_knew_of_it() {
    let mut queue = Queue::new().await;
    queue
        .sql("INSERT INTO orders (label, waves) VALUES ('x', '1')")
        .await;
    queue
        .by_hand("INSERT INTO order_servers (label, target, server_id) VALUES ('x', 'default', 'a');
            INSERT INTO holds (label, kind, reason, since) VALUES ('x', 'wave', 'r', '2026-01-01T00:00:00.000Z')")
        .await;
    queue.sql("DELETE FROM orders").await;
    assert_eq!(
        queue
            .row("SELECT (SELECT count(*) FROM order_servers) || (SELECT count(*) FROM holds)")
            .await,
        "00"
    );
    assert_eq!(
        queue.row("SELECT writing IS NULL FROM queue_mark").await,
        "1"
    );
}

#[tokio::test]
async fn the_old_library_writes_an_order_with_its_requests() {
    let mut queue = Queue::new().await;
    let sql = "BEGIN IMMEDIATE; INSERT INTO orders (label, waves, failures_max, pause) VALUES ('x', '1, 5%', '2%', '10m');
        INSERT INTO power_requests (server_id, action, label) VALUES ('a', 'stop', 'x'); COMMIT;
        UPDATE orders SET expires_at = '2090-01-31';";
    old_sqlite::run(queue.path(), sql).expect("accepted by 3.26");
    let row = "SELECT (SELECT group_concat(ifnull(size, share)) FROM order_waves) || ' ' || expires_at FROM orders";
    assert_eq!(queue.row(row).await, "1,5.0 2090-01-31T00:00:00.000Z");
    let bad = "INSERT INTO orders (label, waves) VALUES ('y', '0');";
    assert!(old_sqlite::run(queue.path(), bad).is_err_and(|said| said.contains(WAVES)));
    old_sqlite::run(queue.path(), "DELETE FROM orders;").expect("it has not begun");
}

#[tokio::test]
async fn an_order_is_pruned_once_none_of_its_requests_is_left() {
    let mut queue = Queue::new().await;
    queue
        .sql("INSERT INTO orders (label, waves) VALUES ('old', '1'), ('kept', '1'), ('open', '1')")
        .await;
    queue.insert("a", &[("label", "'kept'")]).await;
    queue
        .by_hand(
            "UPDATE orders SET state = 'done', finished_at = '2026-01-01T00:00:00.000Z', begun_at = created_at WHERE label <> 'open';
             INSERT INTO order_servers (label, target, server_id) VALUES ('old', 'default', 'a'), ('kept', 'default', 'a')",
        )
        .await;
    let mut prune = Prune::default();
    while !prune.done {
        let next = queue.store.prune(prune, wall(), wall()).await;
        prune = next.expect("pruned");
    }
    let left = "SELECT group_concat(label, ' ') FROM (SELECT label FROM orders ORDER BY label)";
    assert_eq!(queue.row(left).await, "kept open");
    assert_eq!(queue.row("SELECT label FROM order_servers").await, "kept");
}

#[tokio::test]
async fn requests_that_have_the_orders_time_go_along_with_it() {
    let mut queue = Queue::new().await;
    queue
        .sql("INSERT INTO orders (label, waves, expires_at) VALUES ('x', '1', '2090-01-31')")
        .await;
    let filled = queue
        .insert("a", &[("label", "'x'"), ("expires_at", "'2090-01-31'")])
        .await;
    let own = queue
        .insert("b", &[("label", "'x'"), ("expires_at", "'2090-03-01'")])
        .await;
    for (time, stored) in [
        ("'2090-02-01 22:00'", "2090-02-01T22:00:00.000Z"),
        ("'2090-02-02T00:00:00.000Z'", "2090-02-02T00:00:00.000Z"),
        ("'2090-02-02T24:00:00.000Z'", "2090-02-03T00:00:00.000Z"),
    ] {
        queue
            .sql(&format!("UPDATE orders SET expires_at = {time}"))
            .await;
        let row = format!(
            "SELECT (SELECT expires_at FROM orders) || ' ' || expires_at FROM power_requests WHERE id = {filled}"
        );
        assert_eq!(queue.row(&row).await, format!("{stored} {stored}"));
    }
    let row = format!("SELECT expires_at FROM power_requests WHERE id = {own}");
    assert_eq!(queue.row(&row).await, "2090-03-01T00:00:00.000Z");
}

#[tokio::test]
async fn a_changed_time_of_an_order_is_refused_like_one_that_is_inserted() {
    let mut queue = Queue::new().await;
    queue
        .sql("INSERT INTO orders (label, waves, expires_at) VALUES ('x', '1', '2090-01-31')")
        .await;
    for (written, sentence) in [
        ("'22:00'", "expires_at must be a UTC time"),
        (
            "'2090-02-31T22:00:00.000Z'",
            "expires_at must be a UTC time",
        ),
        (
            "'2090-1x-31T22:00:00.000Z'",
            "expires_at must be a UTC time",
        ),
        (
            "'2190-01-31T22:00:00.000Z'",
            "expires_at must be a UTC time",
        ),
        (
            "'2020-01-31T22:00:00.000Z'",
            "expires_at must be later than now",
        ),
        ("'2020-01-31'", "expires_at must be later than now"),
    ] {
        for update in ["UPDATE", "UPDATE OR IGNORE", "UPDATE OR REPLACE"] {
            let sql = format!("{update} orders SET expires_at = {written};");
            let refused = queue.refused(&sql).await;
            assert!(refused.starts_with(sentence), "{sql} {refused}");
            let old = old_sqlite::run(queue.path(), &sql).expect_err("refused by 3.26");
            assert!(old.contains(sentence), "on 3.26: {sql} {old}");
        }
    }
    let row = "SELECT expires_at FROM orders";
    assert_eq!(queue.row(row).await, "2090-01-31T00:00:00.000Z");
}
