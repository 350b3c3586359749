//! What an INSERT may say, what it gets by default, and how a bad one is refused: with a sentence, never in silence.

use crate::old_sqlite;
use crate::queue::Queue;

/// Columns and values of a bad row, and the sentence that refuses it.
const BAD_ROWS: &[(&str, &str, &str)] = &[
    ("action", "'stop'", SERVER),
    ("server_id, action", "NULL, 'stop'", SERVER),
    ("server_id, action", "'', 'stop'", SERVER),
    ("server_id, action", "'a b', 'stop'", SERVER),
    ("server_id, action", "'ä', 'stop'", SERVER),
    ("server_id, action", "'../a', 'stop'", SERVER),
    ("server_id, action", "' a', 'stop'", SERVER),
    ("server_id, action", "'a' || char(10), 'stop'", SERVER),
    ("server_id, action", "'a' || char(0) || 'b', 'stop'", SERVER),
    ("server_id, action", "x'6161', 'stop'", SERVER),
    ("server_id, action", "CAST(x'61ff' AS TEXT), 'stop'", SERVER),
    ("server_id, action", "'12345678901234567890123456789012345678901234567890123456789012345', 'stop'", SERVER),
    ("server_id", "'a'", ACTION),
    ("server_id, action", "'a', NULL", ACTION),
    ("server_id, action", "'a', ''", ACTION),
    ("server_id, action", "'a', 'STOP'", ACTION),
    ("server_id, action", "'a', 'off'", ACTION),
    ("server_id, action", "'a', x'73746f70'", ACTION),
    ("server_id, action", "'a', 'stop' || char(0)", ACTION),
    ("server_id, action, target", "'a', 'stop', NULL", TARGET),
    ("server_id, action, target", "'a', 'stop', ''", TARGET),
    ("server_id, action, target", "'a', 'stop', 'eu de'", TARGET),
    ("server_id, action, target", "'a', 'stop', x'61'", TARGET),
    ("server_id, action, target", "'a', 'stop', 'a' || char(0)", TARGET),
    ("server_id, action, priority", "'a', 'stop', NULL", PRIORITY),
    ("server_id, action, priority", "'a', 'stop', 101", PRIORITY),
    ("server_id, action, priority", "'a', 'stop', -101", PRIORITY),
    ("server_id, action, priority", "'a', 'stop', 1.5", PRIORITY),
    ("server_id, action, priority", "'a', 'stop', 'high'", PRIORITY),
    ("server_id, action, priority", "'a', 'stop', x'31'", PRIORITY),
    ("server_id, action, request_key", "'a', 'stop', x'31'", "request_key must be text"),
    ("server_id, action, label", "'a', 'stop', x'31'", "label must be text"),
    ("server_id, action, requested_by", "'a', 'stop', x'31'", "requested_by must be text"),
    ("server_id, action, after_id", "'a', 'stop', 99", AFTER),
    ("server_id, action, after_id", "'a', 'stop', 1.5", AFTER),
    ("server_id, action, after_id", "'a', 'stop', 'first'", AFTER),
    ("server_id, action, after_id", "'a', 'stop', x'31'", AFTER),
    ("server_id, action, after_id", "'a', 'stop', -1", AFTER),
    ("server_id, action, id", "'a', 'stop', 7", ID),
    ("server_id, action, rowid", "'a', 'stop', 7", ID),
    ("server_id, action, id", "'a', 'stop', 9223372036854775807", ID),
    ("server_id, action, id", "'a', 'stop', 0", ID),
    ("server_id, action, state", "'a', 'stop', 'running'", DAEMON),
    ("server_id, action, state", "'a', 'stop', 'succeeded'", DAEMON),
    ("server_id, action, state", "'a', 'stop', NULL", DAEMON),
    ("server_id, action, batch_id", "'a', 'stop', 1", DAEMON),
    ("server_id, action, attempts", "'a', 'stop', 1", DAEMON),
    ("server_id, action, retry_at", "'a', 'stop', '2030-01-01'", DAEMON),
    ("server_id, action, evidence", "'a', 'stop', 'job'", DAEMON),
    ("server_id, action, error_code", "'a', 'stop', 'x'", DAEMON),
    ("server_id, action, error_message", "'a', 'stop', 'x'", DAEMON),
    ("server_id, action, submitted_at", "'a', 'stop', '2030-01-01'", DAEMON),
    ("server_id, action, finished_at", "'a', 'stop', '2030-01-01'", DAEMON),
    ("server_id, action, created_at", "'a', 'stop', '2001-01-01T00:00:00.000Z'", DAEMON),
    ("server_id, action, created_at", "'a', 'stop', NULL", DAEMON),
    ("server_id, action, gate", "'a', 'stop', 'flight'", DAEMON),
    ("server_id, action, gate", "'a', 'stop', NULL", DAEMON),
    ("server_id, action, eligible_at", "'a', 'stop', NULL", DAEMON),
    ("server_id, action, travel_group", "'a', 'stop', 1", DAEMON),
];
const SERVER: &str = "server_id must be 1 to 64 characters of A-Z a-z 0-9 and -";
const ACTION: &str = "action must be start, stop or reboot";
const TARGET: &str = "target must be 1 to 64 characters of A-Z a-z 0-9 . _ and -";
const PRIORITY: &str = "priority must be a whole number from -100 to 100";
const AFTER: &str = "after_id must be the id of an existing request";
const ID: &str = "id is given by the queue; leave it out";
const DAEMON: &str = "a producer sets only server_id, action, target, priority, not_before, expires_at, after_id, \
                      request_key, label and requested_by";

/// Every way in which an INSERT can be told to swallow a problem.
const FORMS: &[(&str, &str)] = &[
    ("INSERT", ""),
    ("INSERT OR IGNORE", ""),
    ("INSERT OR REPLACE", ""),
    ("REPLACE", ""),
    ("INSERT OR FAIL", ""),
    ("INSERT OR ROLLBACK", ""),
    ("INSERT", " ON CONFLICT DO NOTHING"),
    ("INSERT", " ON CONFLICT (request_key) DO UPDATE SET priority = 1"),
];

#[tokio::test]
async fn a_plain_row_gets_every_default() {
    let mut queue = Queue::new().await;
    let id = queue.insert("616fb98f-46ca-475e-917e-2563e5a8cd19", &[]).await;
    assert_eq!(id, 1);
    let row = "SELECT server_id, action, target, priority, not_before, expires_at, after_id, request_key, label, requested_by,
                   state, batch_id, attempts, retry_at, evidence, error_code, error_message, submitted_at, finished_at
               FROM power_requests";
    assert_eq!(queue.row(row).await, "616fb98f-46ca-475e-917e-2563e5a8cd19|stop|default|0|||||||queued||0||||||");
    let created =
        "SELECT created_at GLOB '20[0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9].[0-9][0-9][0-9]Z'
                       AND abs(julianday(created_at) - julianday('now')) < 0.001 FROM power_requests";
    assert_eq!(queue.row(created).await, "1");
}

#[tokio::test]
async fn every_producer_column_is_kept_as_written() {
    let mut queue = Queue::new().await;
    queue.insert("first", &[]).await;
    queue
        .sql(
            "INSERT INTO power_requests (server_id, action, target, priority, after_id, request_key, label, requested_by)
             VALUES ('A-9', 'reboot', 'eu-de.prod_1', -100, 1, 'k', 'night ''run''', 'ops')",
        )
        .await;
    let row = "SELECT server_id, action, target, priority, after_id, request_key, label, requested_by FROM power_requests WHERE id = 2";
    assert_eq!(queue.row(row).await, "A-9|reboot|eu-de.prod_1|-100|1|k|night 'run'|ops");
}

#[tokio::test]
async fn values_that_sqlite_turns_into_the_right_type_are_taken() {
    let mut queue = Queue::new().await;
    let number = queue.insert("1", &[("priority", "'7'"), ("label", "12"), ("request_key", "5")]).await;
    let whole = queue.insert("2", &[("priority", "7.0"), ("after_id", "'1'")]).await;
    let kinds = "SELECT typeof(server_id), typeof(priority), typeof(label), typeof(request_key), typeof(after_id)
                 FROM power_requests ORDER BY id";
    assert_eq!((number, whole), (1, 2));
    assert_eq!(queue.rows(kinds).await, ["text|integer|text|text|null", "text|integer|null|null|integer"]);
}

#[tokio::test]
async fn the_longest_names_are_taken() {
    let mut queue = Queue::new().await;
    let name = "a".repeat(64);
    queue.insert(&name, &[("target", &format!("'{name}'")), ("priority", "100")]).await;
}

#[tokio::test]
async fn a_bad_row_is_refused_with_a_sentence_however_the_insert_is_worded() {
    let mut queue = Queue::new().await;
    for (columns, values, sentence) in BAD_ROWS {
        for (insert, end) in FORMS {
            let sql = format!("{insert} INTO power_requests ({columns}) VALUES ({values}){end}");
            assert_eq!(queue.refused(&sql).await, *sentence, "{sql}");
        }
    }
    assert_eq!(queue.row("SELECT count(*) FROM power_requests").await, "0");
}

#[tokio::test]
async fn sqlite_3_26_refuses_the_same_bad_rows_with_the_same_sentences() {
    let mut queue = Queue::new().await;
    for (columns, values, sentence) in BAD_ROWS {
        for insert in ["INSERT", "INSERT OR IGNORE", "REPLACE"] {
            let sql = format!("{insert} INTO power_requests ({columns}) VALUES ({values});");
            assert_eq!(old_sqlite::run(queue.path(), &sql), Err(format!("Error: {sentence}")), "{sql}");
        }
    }
    assert_eq!(queue.row("SELECT count(*) FROM power_requests").await, "0");
}

#[tokio::test]
async fn one_bad_row_among_many_undoes_the_whole_statement() {
    let mut queue = Queue::new().await;
    let complaint = queue
        .refused("INSERT OR IGNORE INTO power_requests (server_id, action) VALUES ('a', 'stop'), ('b', 'of')")
        .await;
    assert_eq!(complaint, ACTION);
    assert_eq!(queue.row("SELECT count(*) FROM power_requests").await, "0");
}

#[tokio::test]
async fn a_negative_id_is_refused_by_the_named_check() {
    let mut queue = Queue::new().await;
    // SQLite shows a BEFORE trigger -1 when no id was given, so that only the CHECK can tell.
    let complaint = queue.refused("INSERT INTO power_requests (id, server_id, action) VALUES (-1, 'a', 'stop')").await;
    assert!(complaint.contains("id_positive"), "{complaint}");
}

#[tokio::test]
async fn ids_are_never_reused_not_even_after_the_last_row_is_deleted() {
    let mut queue = Queue::new().await;
    let first = queue.insert("a", &[]).await;
    queue.sql("UPDATE power_requests SET state = 'cancelled'").await;
    queue.sql("DELETE FROM power_requests").await;
    assert_eq!(queue.insert("a", &[]).await, first + 1);
}

#[tokio::test]
async fn an_id_given_to_an_upsert_or_a_copy_is_refused() {
    let mut queue = Queue::new().await;
    let id = queue.insert("a", &[]).await;
    for sql in [
        format!(
            "INSERT INTO power_requests (id, server_id, action) VALUES ({id}, 'b', 'stop') ON CONFLICT (id) DO NOTHING"
        ),
        format!(
            "INSERT INTO power_requests (id, server_id, action) VALUES ({id}, 'b', 'stop')
                 ON CONFLICT (id) DO UPDATE SET server_id = 'b'"
        ),
        "INSERT OR REPLACE INTO power_requests SELECT * FROM power_requests".to_owned(),
    ] {
        assert_eq!(queue.refused(&sql).await, ID, "{sql}");
    }
}
