//! Times: which forms a producer may write, how they are stored, and which are refused.

use proptest::prelude::*;
use proptest::test_runner::Config;

use crate::common::old_sqlite;
use crate::common::queue::Queue;

const NOT_BEFORE: &str = "not_before must be a UTC time such as 2026-01-31, 2026-01-31 22:00 or 2026-01-31T22:00:00+01:00: \
                          a date that exists, from 2000 to 2099, and nothing or a time after it";
const EXPIRES_AT: &str = "expires_at must be a UTC time such as 2026-01-31, 2026-01-31 22:00 or 2026-01-31T22:00:00+01:00: \
                          a date that exists, from 2000 to 2099, and nothing or a time after it";

/// What a producer writes, and what is stored.
const GOOD: &[(&str, &str)] = &[
    ("'2090-01-31'", "2090-01-31T00:00:00.000Z"),
    ("'2090-01-31 22:00'", "2090-01-31T22:00:00.000Z"),
    ("'2090-01-31T22:00'", "2090-01-31T22:00:00.000Z"),
    ("'2090-01-31 22:00:01'", "2090-01-31T22:00:01.000Z"),
    ("'2090-01-31T22:00:01.5'", "2090-01-31T22:00:01.500Z"),
    ("'2090-01-31T22:00:01.007Z'", "2090-01-31T22:00:01.007Z"),
    ("'2090-01-31T22:00:59.999Z'", "2090-01-31T22:00:59.999Z"),
    ("'2090-01-31T22:00:00.000Z'", "2090-01-31T22:00:00.000Z"),
    ("'2090-01-31T24:00:00.000Z'", "2090-02-01T00:00:00.000Z"),
    ("'2090-01-31T22:00Z'", "2090-01-31T22:00:00.000Z"),
    ("'2090-01-31T00:30:00+01:00'", "2090-01-30T23:30:00.000Z"),
    ("'2090-12-31 23:30:00 -02:00'", "2091-01-01T01:30:00.000Z"),
    ("'2090-01-31T00:30:00+0100'", "2090-01-30T23:30:00.000Z"),
    ("'2090-01-31T00:30:00+01'", "2090-01-30T23:30:00.000Z"),
    ("'2090-01-31 00:30 +01:00'", "2090-01-30T23:30:00.000Z"),
    ("'2090-01-31 00:30:00 +0130'", "2090-01-30T23:00:00.000Z"),
    ("'2090-01-31 00:30:00.250 -01'", "2090-01-31T01:30:00.250Z"),
    ("'2090-01-31 22:00:00 UTC'", "2090-01-31T22:00:00.000Z"),
    ("'2090-01-31T22:00 Z'", "2090-01-31T22:00:00.000Z"),
    ("'2090-01-31t22:00:00z'", "2090-01-31T22:00:00.000Z"),
    ("'2090-01-31t22:00:00.007z'", "2090-01-31T22:00:00.007Z"),
    ("'2088-02-29'", "2088-02-29T00:00:00.000Z"),
    (
        "datetime('2090-01-31 22:00:00', '+1 hour')",
        "2090-01-31T23:00:00.000Z",
    ),
    ("date('2090-01-31', '+1 day')", "2090-02-01T00:00:00.000Z"),
    (
        "strftime('%Y-%m-%dT%H:%M:%SZ', '2090-01-31')",
        "2090-01-31T00:00:00.000Z",
    ),
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
    "'2090-01-31Z'",
    "'2090-01-31 UTC'",
    "'2090-01-31 +0100'",
    "'2090-01-31+01'",
    "'2090-01-31 22:00+1'",
    "'2090-01-31 22:00+010'",
    "'2090-01-31 22:00+01000'",
    "'2090-01-31 22:00+1500'",
    "'2090-01-31 22:00+0160'",
    "'2090-01-31 22:00+01:00 UTC'",
    "'2090-01-31 22:00Z UTC'",
    "'2090-01-31 22+01'",
    "'2090-02-31 22:00 +0100'",
    "'2090-01-31 22:00:00 +1 day'",
    "'2090-02-31T10:00:00.000Z'",
    "'2090-01-31T25:00:00.000Z'",
    "'1990-01-31T22:00:00.000Z'",
    "'2100-01-01T00:00:00.000Z'",
    "'2090-01-31T22:00:00.000Z' || char(0) || 'x'",
    "CAST('2090-01-31T22:00:00.000Z' AS BLOB)",
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
        let id = queue
            .insert(
                "a",
                &[("not_before", written), ("expires_at", "'2098-01-01'")],
            )
            .await;
        let row =
            format!("SELECT not_before, eligible_at, gate FROM power_requests WHERE id = {id}");
        assert_eq!(
            queue.row(&row).await,
            format!("{stored}|{stored}|later"),
            "{written}"
        );
        let id = queue.insert("a", &[("expires_at", written)]).await;
        assert_eq!(
            queue
                .row(&format!(
                    "SELECT expires_at FROM power_requests WHERE id = {id}"
                ))
                .await,
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
        assert_eq!(
            found[23..],
            *"Z\t2098-01-01T00:00:00.000Z\n",
            "on 3.26: {written}"
        );
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
            queue
                .sql(&format!(
                    "UPDATE power_requests SET {column} = {written}, {other} = NULL WHERE id = {id}"
                ))
                .await;
            let now = queue
                .row(&format!(
                    "SELECT {column}, {other} FROM power_requests WHERE id = {id}"
                ))
                .await;
            assert_eq!(now, format!("{stored}|"), "{written}");
        }
    }
    for written in BAD {
        for (column, sentence) in [("not_before", NOT_BEFORE), ("expires_at", EXPIRES_AT)] {
            for update in ["UPDATE", "UPDATE OR IGNORE", "UPDATE OR REPLACE"] {
                let sql =
                    format!("{update} power_requests SET {column} = {written} WHERE id = {id}");
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
        format!(
            "INSERT OR IGNORE INTO power_requests (server_id, action, {columns}) VALUES ('a', 'stop', {values})"
        )
    };
    for (sql, sentence) in [
        (insert("expires_at", "'2020-01-01'"), past),
        (
            insert("expires_at", "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"),
            past,
        ),
        (
            insert("expires_at", "datetime('now', '+1 hour') || '+02:00'"),
            past,
        ),
        (insert("expires_at", "'2020-01-01T00:00:00.000Z'"), past),
        (
            insert("not_before, expires_at", "'2090-01-02', '2090-01-01'"),
            order,
        ),
        (
            insert(
                "not_before, expires_at",
                "'2090-01-02T00:00:00.000Z', '2090-01-02T00:00:00.000Z'",
            ),
            order,
        ),
        (
            insert(
                "not_before, expires_at",
                "'2090-01-02T00:00:00.000Z', '2090-01-01 23:00'",
            ),
            order,
        ),
        (
            insert("not_before, expires_at", "'2090-01-01', '2090-01-01'"),
            order,
        ),
        (
            insert(
                "not_before, expires_at",
                "'2090-01-01T00:00:00-05:00', '2090-01-01 04:00'",
            ),
            order,
        ),
    ] {
        assert_eq!(queue.refused(&sql).await, sentence, "{sql}");
    }
    let id = queue
        .insert(
            "a",
            &[
                ("not_before", "'2090-01-01'"),
                ("expires_at", "'2090-01-02'"),
            ],
        )
        .await;
    for (change, sentence) in [
        ("expires_at = '2020-01-01'", past),
        ("expires_at = '2089-01-01'", order),
        ("not_before = '2090-01-02'", order),
        (
            "not_before = '2095-01-01', expires_at = '2094-01-01'",
            order,
        ),
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
    let row =
        format!("SELECT gate, eligible_at IS NULL, not_before FROM power_requests WHERE id = {id}");
    assert_eq!(queue.row(&row).await, "ready|1|2020-01-01T00:00:00.000Z");
}

#[tokio::test]
async fn a_new_not_before_parks_the_request_and_none_lets_it_go() {
    let mut queue = Queue::new().await;
    let id = queue.insert("a", &[]).await;
    let row = format!("SELECT gate, not_before, eligible_at FROM power_requests WHERE id = {id}");
    queue
        .sql(&format!(
            "UPDATE power_requests SET not_before = '2090-01-01 02:00:00+02:00' WHERE id = {id}"
        ))
        .await;
    assert_eq!(
        queue.row(&row).await,
        "later|2090-01-01T00:00:00.000Z|2090-01-01T00:00:00.000Z"
    );
    assert!(queue.go(crate::common::queue::wall()).await.is_empty());
    queue
        .sql(&format!(
            "UPDATE power_requests SET not_before = NULL WHERE id = {id}"
        ))
        .await;
    let row = format!(
        "SELECT not_before IS NULL, eligible_at = created_at FROM power_requests WHERE id = {id}"
    );
    assert_eq!(queue.row(&row).await, "1|1");
    assert_eq!(
        crate::common::queue::ids(&queue.go(crate::common::queue::wall()).await),
        [id]
    );
}

/// A second with its milliseconds, if they are there.
type Second = (i8, Option<i16>);

/// A time as somebody may write it, with its parts: valid or not.
#[derive(Debug, Clone)]
struct Written {
    date: (i16, i8, i8),
    /// Hour, minute, and second with milliseconds, if they are there.
    time: Option<(i8, i8, Option<Second>)>,
    separator: char,
    /// Minutes east of UTC; `Z` for none inside, nothing at all for none.
    offset: Option<Option<i32>>,
}

impl Written {
    fn text(&self) -> String {
        let (year, month, day) = self.date;
        let mut text = format!("{year:04}-{month:02}-{day:02}");
        let Some((hour, minute, second)) = self.time else {
            return text;
        };
        text.push_str(&format!("{}{hour:02}:{minute:02}", self.separator));
        if let Some((second, millis)) = second {
            text.push_str(&format!(":{second:02}"));
            millis
                .into_iter()
                .for_each(|millis| text.push_str(&format!(".{millis:03}")));
        }
        match self.offset {
            None => {}
            Some(None) => text.push('Z'),
            Some(Some(minutes)) => {
                let sign = if minutes < 0 { '-' } else { '+' };
                text.push_str(&format!(
                    "{sign}{:02}:{:02}",
                    minutes.abs() / 60,
                    minutes.abs() % 60
                ));
            }
        }
        text
    }

    /// What it means, by another library than SQLite's; none if it means nothing.
    fn meaning(&self) -> Option<String> {
        let (year, month, day) = self.date;
        let (hour, minute, second) = self.time.unwrap_or_default();
        let (second, millis) = second.unwrap_or_default();
        let civil = jiff::civil::Date::new(year, month, day).ok()?;
        let time = jiff::civil::Time::new(
            hour,
            minute,
            second,
            i32::from(millis.unwrap_or(0)) * 1_000_000,
        )
        .ok()?;
        let offset = self.time.and(self.offset.flatten()).unwrap_or(0);
        let utc = civil
            .to_datetime(time)
            .to_zoned(jiff::tz::TimeZone::UTC)
            .ok()?
            .timestamp();
        let utc = utc
            .checked_sub(jiff::Span::new().minutes(i64::from(offset)))
            .ok()?;
        let text = utc.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string();
        text.starts_with("20").then_some(text)
    }
}

fn written() -> impl Strategy<Value = Written> {
    let second = prop::option::of((0i8..62, prop::option::of(0i16..1000)));
    let time = prop::option::weighted(0.8, (0i8..24, 0i8..62, second));
    let offset = prop::option::of(prop::option::of(-14 * 60 + 1..14 * 60));
    (
        (2070i16..2100, 0i8..14, 0i8..33),
        time,
        prop_oneof![Just(' '), Just('T')],
        offset,
    )
        .prop_map(|(date, time, separator, offset)| Written {
            date,
            time,
            separator,
            offset,
        })
}

#[test]
fn whatever_a_producer_writes_is_stored_as_what_it_means_or_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let queue = std::cell::RefCell::new(runtime.block_on(Queue::new()));
    let config = Config {
        cases: 400,
        failure_persistence: None,
        ..Config::default()
    };
    proptest!(config, |(written in written())| {
        let sql = format!(
            "INSERT INTO power_requests (server_id, action, not_before) VALUES ('a', 'stop', '{}');
             SELECT not_before FROM power_requests WHERE id = last_insert_rowid()",
            written.text()
        );
        let stored = runtime.block_on(queue.borrow_mut().try_sql(&sql)).map(|rows| rows[0][0].clone());
        match written.meaning() {
            Some(meaning) => prop_assert_eq!(stored, Ok(meaning), "{}", written.text()),
            None => prop_assert_eq!(stored, Err(NOT_BEFORE.to_owned()), "{}", written.text()),
        }
    });
    proptest!(Config { cases: 400, failure_persistence: None, ..Config::default() }, |(text in "[0-9TZ:. +-]{0,30}|.{0,20}")| {
        let quoted = text.replace('\'', "''").replace('\0', "");
        let sql = format!(
            "INSERT INTO power_requests (server_id, action, not_before) VALUES ('a', 'stop', '{quoted}');
             SELECT not_before FROM power_requests WHERE id = last_insert_rowid()"
        );
        if let Ok(rows) = runtime.block_on(queue.borrow_mut().try_sql(&sql)) {
            prop_assert!(rows[0][0].parse::<poweryard::model::UtcMillis>().is_ok(), "{quoted} is stored as {rows:?}");
        }
    });
}
