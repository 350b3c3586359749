//! request_key: a producer may repeat itself, and no wording of an INSERT or UPDATE removes or
//! doubles a request.

use crate::common::old_sqlite;
use crate::common::queue::{self, Queue};

const USED: &str = "request_key is already used by another request, which cannot be replaced";

#[tokio::test]
async fn a_repeated_key_fails_and_can_be_skipped() {
    let mut queue = Queue::new().await;
    let id = queue.insert("a", &[("request_key", "'k'")]).await;
    let insert = "INTO power_requests (server_id, action, request_key) VALUES ('b', 'start', 'k')";
    let complaint = queue.refused(&format!("INSERT {insert}")).await;
    assert!(
        complaint.contains("UNIQUE constraint failed: power_requests.request_key"),
        "{complaint}"
    );
    for sql in [
        format!("INSERT OR IGNORE {insert}"),
        format!("INSERT {insert} ON CONFLICT DO NOTHING"),
        format!("INSERT {insert} ON CONFLICT (request_key) DO NOTHING"),
    ] {
        queue.sql(&sql).await;
        assert_eq!(
            queue.rows("SELECT id, server_id FROM power_requests").await,
            [format!("{id}|a")],
            "{sql}"
        );
        assert_eq!(old_sqlite::run(queue.path(), &sql), Ok(String::new()));
        assert_eq!(
            queue.rows("SELECT id, server_id FROM power_requests").await,
            [format!("{id}|a")],
            "3.26: {sql}"
        );
    }
}

#[tokio::test]
async fn repeats_within_one_statement_are_skipped_and_new_keys_taken() {
    let mut queue = Queue::new().await;
    let values = "INTO power_requests (server_id, action, request_key) VALUES ('a', 'stop', 'x'), ('b', 'stop', 'x'), ('c', 'stop', 'y')";
    queue.sql(&format!("INSERT OR IGNORE {values}")).await;
    queue.sql(&format!("INSERT OR IGNORE {values}")).await;
    assert_eq!(
        queue
            .rows("SELECT server_id, request_key FROM power_requests")
            .await,
        ["a|x", "c|y"]
    );
    assert_eq!(queue.refused(&format!("REPLACE {values}")).await, USED);
    assert_eq!(
        queue
            .rows("SELECT server_id, request_key FROM power_requests")
            .await,
        ["a|x", "c|y"]
    );
}

#[tokio::test]
async fn nothing_replaces_a_request_in_whatever_state_it_is() {
    let mut queue = Queue::new().await;
    let now = queue::wall();
    let ended = queue.insert("ended", &[("request_key", "'ended'")]).await;
    queue
        .sql("UPDATE power_requests SET state = 'cancelled'")
        .await;
    let flying = queue
        .insert(
            "flying",
            &[("request_key", "'flying'"), ("action", "'reboot'")],
        )
        .await;
    queue.go(now).await;
    let queued = queue.insert("queued", &[("request_key", "'queued'")]).await;
    let all = "SELECT id, server_id, action, state, request_key FROM power_requests ORDER BY id";
    let before = queue.rows(all).await;
    for recursive in ["OFF", "ON"] {
        for key in ["ended", "flying", "queued"] {
            let insert = format!(
                "INTO power_requests (server_id, action, request_key) VALUES ('z', 'start', '{key}')"
            );
            for sql in [
                format!("INSERT OR REPLACE {insert}"),
                format!("REPLACE {insert}"),
                format!(
                    "REPLACE INTO power_requests (server_id, action, request_key, not_before) VALUES ('z', 'start', '{key}', '2090-01-01')"
                ),
            ] {
                let sql = format!("PRAGMA recursive_triggers = {recursive}; {sql};");
                queue.refused(&sql).await;
                assert_eq!(queue.rows(all).await, before, "{sql}");
                let old = old_sqlite::run(queue.path(), &sql);
                assert!(old.is_err(), "3.26: {sql}");
                assert_eq!(queue.rows(all).await, before, "3.26: {sql}");
            }
        }
        for (id, other) in [(queued, flying), (queued, ended), (flying, queued)] {
            for sql in [
                format!(
                    "UPDATE OR REPLACE power_requests SET request_key = (SELECT request_key FROM power_requests WHERE id = {other}) WHERE id = {id}"
                ),
                format!("UPDATE OR REPLACE power_requests SET id = {other} WHERE id = {id}"),
                format!("UPDATE OR REPLACE power_requests SET rowid = {other} WHERE id = {id}"),
                format!("UPDATE OR REPLACE power_requests SET _rowid_ = {other} WHERE id = {id}"),
                format!(
                    "UPDATE OR REPLACE power_requests SET oid = {other}, batch_id = 3 WHERE id = {id}"
                ),
            ] {
                let sql = format!("PRAGMA recursive_triggers = {recursive}; {sql};");
                let complaint = queue.refused(&sql).await;
                assert!(
                    complaint.starts_with("what a request asks for never changes"),
                    "{sql}: {complaint}"
                );
                assert!(old_sqlite::run(queue.path(), &sql).is_err(), "3.26: {sql}");
                assert_eq!(queue.rows(all).await, before, "{sql}");
            }
        }
    }
}

#[tokio::test]
async fn a_running_request_is_not_replaced_by_another_of_its_server() {
    let mut queue = Queue::new().await;
    let flying = queue.insert("a", &[("action", "'reboot'")]).await;
    queue.go(queue::wall()).await;
    let behind = queue.insert("A", &[("action", "'reboot'")]).await;
    queue
        .by_hand(
            "INSERT INTO batches (target, service, endpoint, project_id, action, state, server_count, intent_at, next_look_at)
             VALUES ('default', 'bms', 'e', 'p', 'reboot', 'submitting', 1, '2026-01-01T00:00:00.000Z', '2026-01-01T00:00:00.000Z')",
        )
        .await;
    for update in ["UPDATE", "UPDATE OR REPLACE", "UPDATE OR IGNORE"] {
        let sql = format!(
            "{update} power_requests SET state = 'running', gate = 'flight', batch_id = (SELECT max(id) FROM batches)
             WHERE id = {behind}"
        );
        assert_eq!(
            queue.refused_by_hand(&sql).await,
            "another request for this server is in progress, or goes first"
        );
    }
    assert_eq!(queue.state(flying).await, "running");
}

#[tokio::test]
async fn an_upsert_may_change_what_a_queued_request_lets_change() {
    let mut queue = Queue::new().await;
    let id = queue.insert("a", &[("request_key", "'k'")]).await;
    let upsert = |change: &str| {
        format!(
            "INSERT INTO power_requests (server_id, action, request_key, priority) VALUES ('a', 'stop', 'k', 9)
             ON CONFLICT (request_key) DO UPDATE SET {change}"
        )
    };
    queue
        .sql(&upsert("priority = excluded.priority, label = 'again'"))
        .await;
    assert_eq!(
        queue
            .rows("SELECT id, priority, label FROM power_requests")
            .await,
        [format!("{id}|9|again")]
    );
    assert!(
        queue
            .refused(&upsert("action = 'start'"))
            .await
            .starts_with("what a request asks for never changes")
    );
    queue
        .sql("UPDATE power_requests SET state = 'cancelled'")
        .await;
    assert!(
        queue
            .refused(&upsert("priority = 1"))
            .await
            .starts_with("this request has ended")
    );
}

#[tokio::test]
async fn a_key_is_free_again_once_its_request_is_deleted() {
    let mut queue = Queue::new().await;
    queue.insert("a", &[("request_key", "'k'")]).await;
    queue.sql("INSERT OR IGNORE INTO power_requests (server_id, action, request_key) VALUES ('a', 'stop', 'k')").await;
    queue
        .sql("UPDATE power_requests SET state = 'cancelled'")
        .await;
    queue.sql("DELETE FROM power_requests").await;
    for insert in ["INSERT", "REPLACE"] {
        queue
            .sql(&format!("{insert} INTO power_requests (server_id, action, request_key) VALUES ('a', 'stop', 'k')"))
            .await;
        queue
            .sql("UPDATE power_requests SET state = 'cancelled'")
            .await;
        queue.sql("DELETE FROM power_requests").await;
    }
}

#[tokio::test]
async fn any_number_of_requests_go_without_a_key() {
    let mut queue = Queue::new().await;
    for insert in ["INSERT", "REPLACE", "INSERT OR IGNORE"] {
        queue
            .sql(&format!("{insert} INTO power_requests (server_id, action) VALUES ('a', 'stop'), ('b', 'stop')"))
            .await;
    }
    assert_eq!(queue.row("SELECT count(*) FROM power_requests").await, "6");
}
