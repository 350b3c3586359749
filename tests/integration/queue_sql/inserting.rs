//! What an INSERT may say, what it gets by default, and how a bad one is refused: with a sentence,
//! never in silence.

use crate::common::old_sqlite;
use crate::common::queue::Queue;

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
    (
        "server_id, action",
        "'12345678901234567890123456789012345678901234567890123456789012345', 'stop'",
        SERVER,
    ),
    ("server_id", "'a'", ACTION),
    ("server_id, action", "'a', NULL", ACTION),
    ("server_id, action", "'a', ''", ACTION),
    ("server_id, action", "'a', 'STOP'", ACTION),
    ("server_id, action", "'a', 'off'", ACTION),
    ("server_id, action", "'a', x'73746f70'", ACTION),
    ("server_id, action", "'a', 'stop' || char(0)", ACTION),
    ("server_id, action, target", "'a', 'stop', ''", TARGET),
    ("server_id, action, target", "'a', 'stop', 'eu de'", TARGET),
    ("server_id, action, target", "'a', 'stop', x'61'", TARGET),
    (
        "server_id, action, target",
        "'a', 'stop', 'a' || char(0)",
        TARGET,
    ),
    ("server_id, action, priority", "'a', 'stop', 101", PRIORITY),
    ("server_id, action, priority", "'a', 'stop', -101", PRIORITY),
    ("server_id, action, priority", "'a', 'stop', 1.5", PRIORITY),
    (
        "server_id, action, priority",
        "'a', 'stop', 'high'",
        PRIORITY,
    ),
    (
        "server_id, action, priority",
        "'a', 'stop', x'31'",
        PRIORITY,
    ),
    (
        "server_id, action, request_key",
        "'a', 'stop', x'31'",
        "request_key must be text of at most 256 characters",
    ),
    (
        "server_id, action, request_key",
        "'a', 'stop', printf('%257s', 'x')",
        "request_key must be text of at most 256 characters",
    ),
    (
        "server_id, action, request_key",
        "'a', 'stop', 'x' || char(0) || printf('%2000s', 'x')",
        "request_key must be text of at most 256 characters",
    ),
    (
        "server_id, action, label",
        "'a', 'stop', x'31'",
        "label must be text of at most 256 characters",
    ),
    (
        "server_id, action, label",
        "'a', 'stop', printf('%257s', 'x')",
        "label must be text of at most 256 characters",
    ),
    (
        "server_id, action, label",
        "'a', 'stop', 'x' || char(0) || printf('%2000s', 'x')",
        "label must be text of at most 256 characters",
    ),
    (
        "server_id, action, requested_by",
        "'a', 'stop', x'31'",
        "requested_by must be text of at most 256 characters",
    ),
    (
        "server_id, action, requested_by",
        "'a', 'stop', printf('%257s', 'x')",
        "requested_by must be text of at most 256 characters",
    ),
    (
        "server_id, action, requested_by",
        "'a', 'stop', 'x' || char(0) || printf('%2000s', 'x')",
        "requested_by must be text of at most 256 characters",
    ),
    ("server_id, action, after_id", "'a', 'stop', 99", AFTER),
    ("server_id, action, after_id", "'a', 'stop', 1.5", AFTER),
    ("server_id, action, after_id", "'a', 'stop', 'first'", AFTER),
    ("server_id, action, after_id", "'a', 'stop', x'31'", AFTER),
    ("server_id, action, after_id", "'a', 'stop', -1", AFTER),
    ("server_id, action, id", "'a', 'stop', 7", ID),
    ("server_id, action, rowid", "'a', 'stop', 7", ID),
    (
        "server_id, action, id",
        "'a', 'stop', 9223372036854775807",
        ID,
    ),
    ("server_id, action, id", "'a', 'stop', 0", ID),
    (
        "server_id, action, state",
        "'a', 'stop', 'running'",
        "state is set by the queue; leave it out",
    ),
    (
        "server_id, action, state",
        "'a', 'stop', 'succeeded'",
        "state is set by the queue; leave it out",
    ),
    (
        "server_id, action, batch_id",
        "'a', 'stop', 1",
        "batch_id is set by the queue; leave it out",
    ),
    (
        "server_id, action, attempts",
        "'a', 'stop', 1",
        "attempts is set by the queue; leave it out",
    ),
    (
        "server_id, action, retry_at",
        "'a', 'stop', '2030-01-01'",
        "retry_at is set by the queue; leave it out",
    ),
    (
        "server_id, action, evidence",
        "'a', 'stop', 'job'",
        "evidence is set by the queue; leave it out",
    ),
    (
        "server_id, action, error_code",
        "'a', 'stop', 'x'",
        "error_code is set by the queue; leave it out",
    ),
    (
        "server_id, action, error_message",
        "'a', 'stop', 'x'",
        "error_message is set by the queue; leave it out",
    ),
    (
        "server_id, action, submitted_at",
        "'a', 'stop', '2030-01-01'",
        "submitted_at is set by the queue; leave it out",
    ),
    (
        "server_id, action, finished_at",
        "'a', 'stop', '2030-01-01'",
        "finished_at is set by the queue; leave it out",
    ),
    (
        "server_id, action, created_at",
        "'a', 'stop', '2001-01-01T00:00:00.000Z'",
        "created_at is set by the queue; leave it out",
    ),
    (
        "server_id, action, gate",
        "'a', 'stop', 'flight'",
        "gate is set by the queue; leave it out",
    ),
    (
        "server_id, action, eligible_at",
        "'a', 'stop', '2030-01-01'",
        "eligible_at is set by the queue; leave it out",
    ),
    (
        "server_id, action, attempts",
        "'a', 'stop', 'many'",
        "attempts is set by the queue; leave it out",
    ),
    (
        "server_id, action, created_at",
        "'a', 'stop', CURRENT_TIMESTAMP",
        "created_at is set by the queue; leave it out",
    ),
    (
        "server_id, action, travel_group",
        "'a', 'stop', 1",
        "travel_group is set by the queue; leave it out",
    ),
];
const SERVER: &str = "server_id must be 1 to 64 characters of A-Z a-z 0-9 and -";
const ACTION: &str = "action must be start, stop or reboot";
const TARGET: &str = "target must be 1 to 64 characters of A-Z a-z 0-9 . _ and -";
const PRIORITY: &str = "priority must be a whole number from -100 to 100";
const AFTER: &str = "after_id must be the id of an existing request";
const ID: &str = "id is given by the queue; leave it out";

/// Every way in which an INSERT can be told to swallow a problem.
const FORMS: &[(&str, &str)] = &[
    ("INSERT", ""),
    ("INSERT OR IGNORE", ""),
    ("INSERT OR REPLACE", ""),
    ("REPLACE", ""),
    ("INSERT OR FAIL", ""),
    ("INSERT OR ROLLBACK", ""),
    ("INSERT", " ON CONFLICT DO NOTHING"),
    (
        "INSERT",
        " ON CONFLICT (request_key) DO UPDATE SET priority = 1",
    ),
];

#[tokio::test]
async fn a_plain_row_gets_every_default() {
    let mut queue = Queue::new().await;
    let id = queue
        .insert("616fb98f-46ca-475e-917e-2563e5a8cd19", &[])
        .await;
    assert_eq!(id, 1);
    let row = "SELECT server_id, action, target, priority, not_before, expires_at, after_id, request_key, label, requested_by,
                   state, batch_id, attempts, retry_at, evidence, error_code, error_message, submitted_at, finished_at
               FROM power_requests";
    assert_eq!(
        queue.row(row).await,
        "616fb98f-46ca-475e-917e-2563e5a8cd19|stop|default|0|||||||queued||0||||||"
    );
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
    assert_eq!(
        queue.row(row).await,
        "A-9|reboot|eu-de.prod_1|-100|1|k|night 'run'|ops"
    );
}

#[tokio::test]
async fn values_that_sqlite_turns_into_the_right_type_are_taken() {
    let mut queue = Queue::new().await;
    let number = queue
        .insert(
            "1",
            &[("priority", "'7'"), ("label", "12"), ("request_key", "5")],
        )
        .await;
    let whole = queue
        .insert("2", &[("priority", "7.0"), ("after_id", "'1'")])
        .await;
    let kinds = "SELECT typeof(server_id), typeof(priority), typeof(label), typeof(request_key), typeof(after_id)
                 FROM power_requests ORDER BY id";
    assert_eq!((number, whole), (1, 2));
    assert_eq!(
        queue.rows(kinds).await,
        [
            "text|integer|text|text|null",
            "text|integer|null|null|integer"
        ]
    );
}

#[tokio::test]
async fn the_longest_names_are_taken() {
    let mut queue = Queue::new().await;
    let name = "a".repeat(64);
    queue
        .insert(
            &name,
            &[("target", &format!("'{name}'")), ("priority", "100")],
        )
        .await;
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
            assert_eq!(
                old_sqlite::run(queue.path(), &sql),
                Err(format!("Error: {sentence}")),
                "{sql}"
            );
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
    let complaint = queue
        .refused("INSERT INTO power_requests (id, server_id, action) VALUES (-1, 'a', 'stop')")
        .await;
    assert!(complaint.contains("id_positive"), "{complaint}");
}

#[tokio::test]
async fn ids_are_never_reused_not_even_after_the_last_row_is_deleted() {
    let mut queue = Queue::new().await;
    let first = queue.insert("a", &[]).await;
    queue
        .sql("UPDATE power_requests SET state = 'cancelled'")
        .await;
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

/// Every column of the table but the id, as an object mapper sends them.
async fn columns(queue: &mut Queue) -> Vec<String> {
    queue
        .rows(
            "SELECT name FROM pragma_table_info('power_requests') WHERE name <> 'id' ORDER BY cid",
        )
        .await
}

const STORED: &str =
    "SELECT server_id, action, target, priority, state, attempts, gate, travel_group, eligible_at IS NULL AND in_line = 1,
                      created_at GLOB '20*Z', batch_id IS NULL AND evidence IS NULL AND finished_at IS NULL
                      FROM power_requests ORDER BY id DESC LIMIT 1";

#[tokio::test]
async fn a_row_that_names_every_column_gets_the_defaults_for_nulls() {
    let mut queue = Queue::new().await;
    let columns = columns(&mut queue).await;
    for (insert, end) in FORMS {
        let values: Vec<&str> = columns
            .iter()
            .map(|column| match column.as_str() {
                "server_id" => "'a'",
                "action" => "'stop'",
                _ => "NULL",
            })
            .collect();
        let sql = format!(
            "{insert} INTO power_requests (id, {}) VALUES (NULL, {}){end}",
            columns.join(", "),
            values.join(", ")
        );
        queue.sql(&sql).await;
        assert_eq!(
            queue.row(STORED).await,
            "a|stop|default|0|queued|0|ready|0|1|1|1",
            "{sql}"
        );
        old_sqlite::run(queue.path(), &format!("DELETE FROM power_requests; {sql};"))
            .expect_err("unfinished ones stay");
        queue
            .sql("UPDATE power_requests SET state = 'cancelled' WHERE state = 'queued'")
            .await;
        if !sql.contains("DO UPDATE") {
            old_sqlite::run(queue.path(), &sql).expect("accepted by 3.26");
            assert_eq!(
                queue.row(STORED).await,
                "a|stop|default|0|queued|0|ready|0|1|1|1",
                "3.26: {sql}"
            );
        }
        queue
            .sql("UPDATE power_requests SET state = 'cancelled' WHERE state = 'queued'")
            .await;
    }
}

#[tokio::test]
async fn a_daemon_column_may_be_sent_with_null_or_its_default() {
    let mut queue = Queue::new().await;
    let defaults = [
        ("state", "'queued'"),
        ("attempts", "0"),
        ("gate", "'ready'"),
        ("travel_group", "0"),
    ];
    for (column, default) in defaults {
        for value in [default, "NULL"] {
            queue
                .sql(&format!(
                    "INSERT OR IGNORE INTO power_requests (server_id, action, {column}) VALUES ('a', 'stop', {value})"
                ))
                .await;
            assert_eq!(
                queue.row(STORED).await,
                "a|stop|default|0|queued|0|ready|0|1|1|1",
                "{column} {value}"
            );
            queue
                .sql("UPDATE power_requests SET state = 'cancelled' WHERE state = 'queued'")
                .await;
        }
    }
}

#[tokio::test]
async fn a_null_target_means_the_default_one_for_order_and_flight_too() {
    let mut queue = Queue::new().await;
    queue.insert("a", &[]).await;
    let second = queue
        .insert("A", &[("target", "NULL"), ("gate", "NULL")])
        .await;
    assert_eq!(queue.reason(second).await, "behind request 1");
}

#[tokio::test]
async fn only_an_insert_may_leave_daemon_columns_null() {
    let mut queue = Queue::new().await;
    queue.insert("a", &[]).await;
    for column in [
        "target",
        "priority",
        "created_at",
        "state",
        "attempts",
        "gate",
        "travel_group",
    ] {
        for update in ["UPDATE", "UPDATE OR IGNORE", "UPDATE OR REPLACE"] {
            queue
                .refused(&format!("{update} power_requests SET {column} = NULL"))
                .await;
        }
    }
    assert_eq!(
        queue.row(STORED).await,
        "a|stop|default|0|queued|0|ready|0|1|1|1"
    );
}

#[tokio::test]
async fn a_uuid_without_dashes_is_the_same_server_as_with_them() {
    let mut queue = Queue::new().await;
    let dashed = queue
        .insert("616fb98f-46ca-475e-917e-2563e5a8cd19", &[])
        .await;
    let plain = queue.insert("616FB98F46CA475E917E2563E5A8CD19", &[]).await;
    old_sqlite::run(
        queue.path(),
        "INSERT INTO power_requests (server_id, action) VALUES ('616fb98f46ca475e917e2563e5a8cd19', 'start');",
    )
    .expect("accepted by 3.26");
    let ids = queue
        .rows("SELECT server_id FROM power_requests ORDER BY id")
        .await;
    let spelled = ["616fb98f", "616FB98F", "616fb98f"];
    for (id, start) in ids.iter().zip(spelled) {
        assert!(
            id.eq_ignore_ascii_case("616fb98f-46ca-475e-917e-2563e5a8cd19")
                && id.starts_with(start),
            "{ids:?}"
        );
    }
    assert_eq!(
        (queue.reason(dashed).await, queue.reason(plain).await),
        ("next".to_owned(), format!("behind request {dashed}"))
    );
    let other = queue.insert("616fb98f46ca475e917e2563e5a8cd1x", &[]).await;
    let kept = queue
        .row(&format!(
            "SELECT server_id FROM power_requests WHERE id = {other}"
        ))
        .await;
    assert_eq!(
        kept, "616fb98f46ca475e917e2563e5a8cd1x",
        "32 other characters are a name of their own"
    );
    let change =
        "UPDATE power_requests SET server_id = '616fb98f46ca475e917e2563e5a8cd18' WHERE id = 1";
    assert_eq!(
        queue.refused(change).await,
        "what a request asks for never changes; cancel it and insert another"
    );
}

#[tokio::test]
async fn the_id_column_says_that_it_is_never_null() {
    let mut queue = Queue::new().await;
    let column =
        "SELECT type, \"notnull\", pk FROM pragma_table_info('power_requests') WHERE name = 'id'";
    assert_eq!(queue.row(column).await, "INTEGER|1|1");
}

#[tokio::test]
async fn the_longest_texts_are_taken_and_longer_labels_refused_later_too() {
    let mut queue = Queue::new().await;
    let text = format!("'{}'", "ä".repeat(256));
    queue
        .insert(
            "a",
            &[
                ("label", &text),
                ("request_key", &text),
                ("requested_by", &text),
            ],
        )
        .await;
    for update in ["UPDATE", "UPDATE OR IGNORE"] {
        let longer = format!("{update} power_requests SET label = label || 'x'");
        assert_eq!(
            queue.refused(&longer).await,
            "label must be text of at most 256 characters"
        );
    }
}
