//! Times: which forms a producer may write, how they are stored, and which are refused.

use crate::old_sqlite;
use crate::queue::Queue;

const NOT_BEFORE: &str =
    "not_before must be a UTC time such as 2026-01-31, 2026-01-31 22:00 or 2026-01-31T22:00:00+01:00";
const EXPIRES_AT: &str =
    "expires_at must be a UTC time such as 2026-01-31, 2026-01-31 22:00 or 2026-01-31T22:00:00+01:00";

/// What a producer writes, and what is stored.
const GOOD: &[(&str, &str)] = &[
    ("'2090-01-31'", "2090-01-31T00:00:00.000Z"),
    ("'2090-01-31 22:00'", "2090-01-31T22:00:00.000Z"),
    ("'2090-01-31T22:00'", "2090-01-31T22:00:00.000Z"),
    ("'2090-01-31 22:00:01'", "2090-01-31T22:00:01.000Z"),
    ("'2090-01-31T22:00:01.5'", "2090-01-31T22:00:01.500Z"),
    ("'2090-01-31T22:00:01.007Z'", "2090-01-31T22:00:01.007Z"),
    ("'2090-01-31T22:00:59.999Z'", "2090-01-31T22:00:59.999Z"),
    ("'2090-01-31T22:00Z'", "2090-01-31T22:00:00.000Z"),
    ("'2090-01-31T00:30:00+01:00'", "2090-01-30T23:30:00.000Z"),
    ("'2090-12-31 23:30:00 -02:00'", "2091-01-01T01:30:00.000Z"),
    ("'2088-02-29'", "2088-02-29T00:00:00.000Z"),
    ("datetime('2090-01-31 22:00:00', '+1 hour')", "2090-01-31T23:00:00.000Z"),
    ("date('2090-01-31', '+1 day')", "2090-02-01T00:00:00.000Z"),
    ("strftime('%Y-%m-%dT%H:%M:%SZ', '2090-01-31')", "2090-01-31T00:00:00.000Z"),
];

const BAD: &[&str] = &[
    "'22:00'",
    "'now'",
    "''",
    "'tomorrow'",
    "'2090-02-31'",
    "'2089-02-29'",
    "'2090-02-31T10:00:00Z'",
    "'2090-13-01'",
    "'2090-00-10'",
    "'2090-01-00'",
    "'2090-1-1'",
    "'20900131'",
    "'31.01.2090'",
    "'2090-01-31 25:00'",
    "'2090-01-31 22:61'",
    "'2090-01-31 22'",
    "'2090-01-31 22:00 CET'",
    "'2090-01-31x'",
    "'2090-01-31 22:00:00 +1 day'",
    "'2090-01-31' || char(0)",
    "'2090-01-31T22:00:00Z' || char(0) || 'x'",
    "' 2090-01-31'",
    "'-2090-01-31'",
    "'1990-01-31'",
    "'2100-01-01'",
    "'9999-12-31'",
    "'2099-12-31T23:30:00-02:00'",
    "'2000-01-01T00:30:00+02:00'",
    "2460000.5",
    "1900000000",
    "'1900000000'",
    "x'323039302d30312d3331'",
];

#[tokio::test]
async fn every_accepted_form_is_stored_as_utc_with_milliseconds() {
    let mut queue = Queue::new().await;
    for (written, stored) in GOOD {
        let id = queue.insert("a", &[("not_before", written), ("expires_at", "'2098-01-01'")]).await;
        let row = format!("SELECT not_before, eligible_at, gate FROM power_requests WHERE id = {id}");
        assert_eq!(queue.row(&row).await, format!("{stored}|{stored}|later"), "{written}");
        let id = queue.insert("a", &[("expires_at", written)]).await;
        assert_eq!(
            queue.row(&format!("SELECT expires_at FROM power_requests WHERE id = {id}")).await,
            *stored,
            "{written}"
        );
        let old = format!(
            "INSERT INTO power_requests (server_id, action, not_before, expires_at) VALUES ('b', 'stop', {written}, '2098-01-01');
             SELECT not_before, expires_at FROM power_requests WHERE id = last_insert_rowid();"
        );
        let found = old_sqlite::run(queue.path(), &old).expect("accepted by 3.26");
        // 3.26 cuts milliseconds where later versions round them.
        assert_eq!(found[..22], stored[..22], "on 3.26: {written}");
        assert_eq!(found[23..], *"Z\t2098-01-01T00:00:00.000Z\n", "on 3.26: {written}");
    }
}

#[tokio::test]
async fn every_other_form_is_refused_in_a_sentence() {
    let mut queue = Queue::new().await;
    for written in BAD {
        for (column, sentence) in [("not_before", NOT_BEFORE), ("expires_at", EXPIRES_AT)] {
            for insert in ["INSERT", "INSERT OR IGNORE", "REPLACE"] {
                let sql = format!(
                    "{insert} INTO power_requests (server_id, action, {column}) VALUES ('a', 'stop', {written});"
                );
                assert_eq!(queue.refused(&sql).await, sentence, "{sql}");
                let old = old_sqlite::run(queue.path(), &sql);
                assert_eq!(old, Err(format!("Error: {sentence}")), "on 3.26: {sql}");
            }
        }
    }
    assert_eq!(queue.row("SELECT count(*) FROM power_requests").await, "0");
}

#[tokio::test]
async fn changing_a_time_keeps_to_the_same_forms() {
    let mut queue = Queue::new().await;
    let id = queue.insert("a", &[]).await;
    for (written, stored) in GOOD {
        for (column, other) in [("not_before", "expires_at"), ("expires_at", "not_before")] {
            queue.sql(&format!("UPDATE power_requests SET {column} = {written}, {other} = NULL WHERE id = {id}")).await;
            let now = queue.row(&format!("SELECT {column}, {other} FROM power_requests WHERE id = {id}")).await;
            assert_eq!(now, format!("{stored}|"), "{written}");
        }
    }
    for written in BAD {
        for (column, sentence) in [("not_before", NOT_BEFORE), ("expires_at", EXPIRES_AT)] {
            for update in ["UPDATE", "UPDATE OR IGNORE", "UPDATE OR REPLACE"] {
                let sql = format!("{update} power_requests SET {column} = {written} WHERE id = {id}");
                assert_eq!(queue.refused(&sql).await, sentence, "{sql}");
            }
        }
    }
}

#[tokio::test]
async fn a_request_must_not_expire_before_it_can_go() {
    let mut queue = Queue::new().await;
    let past = "expires_at must be later than now (times are UTC unless they carry an offset)";
    let order = "expires_at must be later than not_before";
    let insert = |columns: &str, values: &str| {
        format!("INSERT OR IGNORE INTO power_requests (server_id, action, {columns}) VALUES ('a', 'stop', {values})")
    };
    for (sql, sentence) in [
        (insert("expires_at", "'2020-01-01'"), past),
        (insert("expires_at", "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"), past),
        (insert("expires_at", "datetime('now', '+1 hour') || '+02:00'"), past),
        (insert("not_before, expires_at", "'2090-01-02', '2090-01-01'"), order),
        (insert("not_before, expires_at", "'2090-01-01', '2090-01-01'"), order),
        (insert("not_before, expires_at", "'2090-01-01T00:00:00-05:00', '2090-01-01 04:00'"), order),
    ] {
        assert_eq!(queue.refused(&sql).await, sentence, "{sql}");
    }
    let id = queue.insert("a", &[("not_before", "'2090-01-01'"), ("expires_at", "'2090-01-02'")]).await;
    for (change, sentence) in [
        ("expires_at = '2020-01-01'", past),
        ("expires_at = '2089-01-01'", order),
        ("not_before = '2090-01-02'", order),
        ("not_before = '2095-01-01', expires_at = '2094-01-01'", order),
    ] {
        let sql = format!("UPDATE OR IGNORE power_requests SET {change} WHERE id = {id}");
        assert_eq!(queue.refused(&sql).await, sentence, "{sql}");
    }
    queue
        .sql(&format!("UPDATE power_requests SET not_before = '2095-01-01', expires_at = '2095-01-02' WHERE id = {id}"))
        .await;
}

#[tokio::test]
async fn a_not_before_in_the_past_holds_nothing_up() {
    let mut queue = Queue::new().await;
    let id = queue.insert("a", &[("not_before", "'2020-01-01'")]).await;
    let row = format!("SELECT gate, eligible_at = created_at, not_before FROM power_requests WHERE id = {id}");
    assert_eq!(queue.row(&row).await, "ready|1|2020-01-01T00:00:00.000Z");
}

#[tokio::test]
async fn a_new_not_before_parks_the_request_and_none_lets_it_go() {
    let mut queue = Queue::new().await;
    let id = queue.insert("a", &[]).await;
    let row = format!("SELECT gate, not_before, eligible_at FROM power_requests WHERE id = {id}");
    queue.sql(&format!("UPDATE power_requests SET not_before = '2090-01-01 02:00:00+02:00' WHERE id = {id}")).await;
    assert_eq!(queue.row(&row).await, "later|2090-01-01T00:00:00.000Z|2090-01-01T00:00:00.000Z");
    assert!(queue.go(crate::queue::wall()).await.is_empty());
    queue.sql(&format!("UPDATE power_requests SET not_before = NULL WHERE id = {id}")).await;
    let row = format!("SELECT not_before IS NULL, eligible_at = created_at FROM power_requests WHERE id = {id}");
    assert_eq!(queue.row(&row).await, "1|1");
    assert_eq!(crate::queue::ids(&queue.go(crate::queue::wall()).await), [id]);
}
