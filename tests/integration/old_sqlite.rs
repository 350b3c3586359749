//! A producer on SQLite 3.26 beside the running daemon: it opens the WAL file, inserts, reads,
//! cancels and is refused in the same words. Knows nothing of clouds.

use crate::common::old_sqlite;
use crate::common::queue::{HOUR, Queue, failed, ids, wall};

fn old(queue: &Queue, sql: &str) -> String {
    old_sqlite::run(queue.path(), sql).unwrap_or_else(|error| panic!("{sql}\n{error}"))
}

#[tokio::test]
async fn the_tool_is_3_26_and_the_file_stays_in_wal_mode() {
    let queue = Queue::new().await;
    let said = old(
        &queue,
        "SELECT sqlite_version(); PRAGMA journal_mode; PRAGMA integrity_check;",
    );
    assert_eq!(said, "3.26.0\nwal\nok\n");
}

#[tokio::test]
async fn an_old_producers_rows_of_every_kind_are_carried_out() {
    let mut queue = Queue::new().await;
    old(
        &queue,
        "INSERT INTO power_requests (server_id, action) VALUES ('616fb98f-46ca-475e-917e-2563e5a8cd19', 'stop');
         INSERT INTO power_requests (server_id, action, target, priority, request_key, label, requested_by)
             VALUES ('b', 'reboot', 'other', 7, 'k', 'night', 'cron');
         INSERT INTO power_requests (server_id, action, not_before, expires_at)
             VALUES ('c', 'start', datetime('now', '+1 hour'), datetime('now', '+3 hours'));
         INSERT INTO power_requests (server_id, action, after_id) VALUES ('d', 'start', 1);
         INSERT INTO power_requests (server_id, action) VALUES ('B', 'stop'), ('616FB98F-46CA-475E-917E-2563E5A8CD19', 'start');
         INSERT OR IGNORE INTO power_requests (server_id, action, request_key) VALUES ('b', 'reboot', 'k');",
    );
    let gates = queue
        .rows("SELECT id, target, priority, gate FROM power_requests ORDER BY id")
        .await;
    assert_eq!(
        gates,
        [
            "1|default|0|ready",
            "2|other|7|ready",
            "3|default|0|later",
            "4|default|0|after",
            "5|default|0|ready",
            "6|default|0|ready"
        ]
    );
    assert_eq!(ids(&queue.go(wall()).await), [1, 2, 5]);
    assert_eq!(ids(&queue.go(wall() + HOUR * 2).await), [3]);
}

#[tokio::test]
async fn an_old_reader_sees_every_view_and_ledger() {
    let mut queue = Queue::new().await;
    let now = wall();
    queue.insert("a", &[]).await;
    queue.insert("b", &[("after_id", "1")]).await;
    queue.insert("a", &[]).await;
    queue.insert("c", &[("not_before", "'2090-01-01'")]).await;
    let batches = queue.go(now).await;
    let batch = queue.accept(&batches[0], now).await;
    assert_eq!(
        old(&queue, "SELECT id, reason FROM power_waiting ORDER BY id;"),
        "2\twaits for request 1\n3\tbehind request 1\n4\tnot due until 2090-01-01T00:00:00.000Z\n"
    );
    queue.end(&batch, &failed(), now).await;
    assert_eq!(
        old(
            &queue,
            "SELECT id, state, evidence, error_code, job_id, duration_ms FROM power_outcomes;"
        ),
        "1\tfailed\tjob\tBMS.0040\tjob-1\t0\n"
    );
    assert_eq!(
        old(
            &queue,
            "SELECT target, server_id, state, request_id FROM server_outcomes;"
        ),
        "default\ta\tfailed\t1\n"
    );
    assert_eq!(
        old(
            &queue,
            "SELECT target, action, state, count FROM queue_overview;"
        ),
        "default\tstop\tqueued\t3\n"
    );
    for table in [
        "power_requests",
        "holds",
        "batches",
        "request_attempts",
        "targets",
    ] {
        old(&queue, &format!("SELECT * FROM {table};"));
    }
}

#[tokio::test]
async fn an_old_producer_cancels_and_the_order_of_the_rest_holds() {
    let mut queue = Queue::new().await;
    old(
        &queue,
        "INSERT INTO power_requests (server_id, action, label) VALUES ('a', 'stop', 'x'), ('a', 'start', 'y'), ('a', 'stop', 'z');
         INSERT INTO power_requests (server_id, action, after_id) VALUES ('b', 'stop', 1);
         UPDATE power_requests SET state='cancelled' WHERE label='x' AND state='queued';
         UPDATE power_requests SET priority = 3, not_before = '2020-01-01 10:00', expires_at = '2090-01-01', label = 'w' WHERE label = 'z';",
    );
    let row = "SELECT state, evidence, error_code, error_message, finished_at IS NOT NULL FROM power_requests WHERE id = 1";
    assert_eq!(
        queue.row(row).await,
        "cancelled|none|poweryard.cancelled|cancelled while queued|1"
    );
    let row = "SELECT priority, not_before, expires_at, label FROM power_requests WHERE id = 3";
    assert_eq!(
        queue.row(row).await,
        "3|2020-01-01T10:00:00.000Z|2090-01-01T00:00:00.000Z|w"
    );
    assert_eq!(ids(&queue.go(wall()).await), [2]);
    assert_eq!(queue.state(4).await, "cancelled");
    assert_eq!(
        old(
            &queue,
            "DELETE FROM power_requests WHERE id = 1; SELECT changes();"
        ),
        "1\n"
    );
}

#[tokio::test]
async fn an_old_producer_is_refused_in_the_same_words() {
    let mut queue = Queue::new().await;
    queue.insert("a", &[("request_key", "'k'")]).await;
    queue.go(wall()).await;
    queue.insert("b", &[]).await;
    queue.insert("c", &[("after_id", "2")]).await;
    for (sql, sentence) in [
        (
            "UPDATE power_requests SET state = 'cancelled' WHERE id = 1",
            "a request does not move this way; a producer may only cancel what is queued",
        ),
        (
            "UPDATE power_requests SET state = 'succeeded' WHERE id = 2",
            "a request does not move this way; a producer may only cancel what is queued",
        ),
        (
            "UPDATE power_requests SET action = 'start' WHERE id = 2",
            "what a request asks for never changes; cancel it and insert another",
        ),
        (
            "UPDATE OR REPLACE power_requests SET rowid = 1 WHERE id = 2",
            "what a request asks for never changes; cancel it and insert another",
        ),
        (
            "UPDATE power_requests SET label = 'x' WHERE id = 1",
            "priority, not_before, expires_at, label, override_reason and approved_by can be changed only while a request is queued",
        ),
        (
            "UPDATE power_requests SET not_before = '22:00' WHERE id = 2",
            "not_before must be a UTC time such as 2026-01-31, 2026-01-31 22:00 or 2026-01-31T22:00:00+01:00: a date \
             that exists, from 2000 to 2099, and nothing or a time after it",
        ),
        (
            "UPDATE power_requests SET state = 'running', batch_id = 9 WHERE id = 2",
            "only the daemon submits requests",
        ),
        (
            "DELETE FROM power_requests WHERE id = 2",
            "an unfinished request cannot be deleted; cancel it while it is queued",
        ),
        (
            "REPLACE INTO power_requests (server_id, action, request_key) VALUES ('a', 'stop', 'k')",
            "request_key is already used by another request, which cannot be replaced",
        ),
        (
            "INSERT INTO power_requests (server_id, action, request_key) VALUES ('a', 'stop', 'k')",
            "UNIQUE constraint failed: power_requests.request_key",
        ),
        (
            "INSERT INTO power_requests (server_id, action, expires_at) VALUES ('a', 'stop', '2020-01-01')",
            "expires_at must be later than now (times are UTC unless they carry an offset)",
        ),
    ] {
        assert_eq!(
            old_sqlite::run(queue.path(), sql),
            Err(format!("Error: {sentence}")),
            "{sql}"
        );
    }
    queue
        .sql("UPDATE power_requests SET state = 'cancelled' WHERE id = 2")
        .await;
    let ended = old_sqlite::run(
        queue.path(),
        "UPDATE power_requests SET label = 'x' WHERE id = 2",
    );
    assert_eq!(
        ended,
        Err("Error: this request has ended; what became of it never changes".to_owned())
    );
    let awaited = old_sqlite::run(queue.path(), "DELETE FROM power_requests WHERE id = 2");
    assert_eq!(
        awaited,
        Err("Error: another request waits for this one; it cannot be deleted yet".to_owned())
    );
}

#[tokio::test]
async fn an_old_producer_learns_its_id_and_may_upsert() {
    let queue = Queue::new().await;
    let sql = "INSERT INTO power_requests (server_id, action, not_before, request_key) VALUES ('a', 'stop', '2090-01-01', 'k');
               SELECT last_insert_rowid(), changes();
               INSERT INTO power_requests (server_id, action, request_key) VALUES ('a', 'stop', 'k')
                   ON CONFLICT (request_key) DO UPDATE SET priority = 2;
               SELECT id, priority FROM power_requests;";
    assert_eq!(old(&queue, sql), "1\t1\n1\t2\n");
}

#[tokio::test]
async fn many_old_producers_come_and_go_while_the_daemon_works() {
    let mut queue = Queue::new().await;
    for round in 0..20 {
        old(
            &queue,
            &format!("INSERT INTO power_requests (server_id, action) VALUES ('s{round}', 'stop');"),
        );
        let batches = queue.go(wall()).await;
        assert_eq!(ids(&batches), [round + 1]);
        queue.end(&batches[0], &failed(), wall()).await;
        assert_eq!(
            old(&queue, "SELECT count(*) FROM power_outcomes;"),
            format!("{}\n", round + 1)
        );
    }
    assert_eq!(queue.row("PRAGMA integrity_check").await, "ok");
}
