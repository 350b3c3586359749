//! The machine's clocks, as far as the queue has to follow them.
//!
//! Each transaction of a daemon stores what they showed, so that the next daemon can tell whether
//! the time of day was set in between. For how long the machine has been up nobody can set; it begins
//! anew with each boot, so the id of the boot is stored with it. If the time of day was set, the
//! daemon's own waiting times move along, and `queue_mark.clock_set_ms` says by how much the times of
//! earlier calls are off. Reads no clock.

use std::fs;

use sqlx::sqlite::SqliteConnection;

use super::{StoreError, holds, rows, text};
use crate::model::{Now, Steady, UtcMillis};

/// Linux makes a new id at each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Names the time namespace: each counts the uptime from another moment.
const TIME_NAMESPACE: &str = "/proc/self/ns/time";

/// The clocks when a daemon wrote last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastClocks {
    /// The time of day.
    pub utc: UtcMillis,
    /// None if the machine was restarted since, or if that cannot be told.
    pub steady: Option<Steady>,
}

impl LastClocks {
    /// What the time of day would be now if nobody had set it since; what it is, if that cannot be
    /// told.
    pub fn dated(self, now: Now) -> UtcMillis {
        self.steady
            .map_or(now.utc, |steady| self.utc + now.steady.since(steady))
    }
}

/// The present boot, as this process sees it; none if it cannot be told.
pub(in crate::store) fn boot_id() -> Option<String> {
    let id = fs::read_to_string(BOOT_ID).ok()?;
    let namespace = fs::read_link(TIME_NAMESPACE).unwrap_or_default();
    Some(format!("{} {}", id.trim(), namespace.display()))
}

/// Gives the write guard back and stores what the clocks show: the last statement of each
/// transaction of a daemon that has looked at them.
pub(super) async fn release(
    tx: &mut SqliteConnection,
    now: Now,
    boot: Option<&str>,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE queue_mark SET writing = NULL, clock_at = $1, clock_uptime_ms = $2, clock_boot = $3 WHERE id = 1",
    )
    .bind(text(now.utc))
    .bind(i64::try_from(now.steady.0.as_millis()).unwrap_or(i64::MAX))
    .bind(boot)
    .execute(tx)
    .await?;
    Ok(())
}

/// The time of day was set by so much: moves the times that the daemon has set itself, which are
/// looks, second tries, and holds that end automatically, and from now on earlier calls are dated as
/// this clock would have dated them. A time that would then lie in another century has long passed
/// or is as far away as before; it stays.
pub(super) async fn follow(
    tx: &mut SqliteConnection,
    by_ms: i64,
    now: UtcMillis,
) -> Result<(), StoreError> {
    const TIMES: [&str; 6] = [
        "UPDATE batches SET look_until = strftime('%Y-%m-%dT%H:%M:%fZ', look_until, $1)
         WHERE state <> 'done' AND next_look_at >= '' AND strftime('%Y', look_until, $1) GLOB '20??'",
        "UPDATE power_requests SET retry_at = strftime('%Y-%m-%dT%H:%M:%fZ', retry_at, $1)
         WHERE gate = 'retry' AND retry_at >= '' AND strftime('%Y', retry_at, $1) GLOB '20??'",
        "UPDATE holds SET until = strftime('%Y-%m-%dT%H:%M:%fZ', until, $1)
         WHERE kind IN ('breaker', 'budget', 'credentials') AND strftime('%Y', until, $1) GLOB '20??'",
        "UPDATE orders SET wave_over_at = strftime('%Y-%m-%dT%H:%M:%fZ', wave_over_at, $1)
         WHERE state IS DISTINCT FROM 'done' AND strftime('%Y', wave_over_at, $1) GLOB '20??'",
        "UPDATE targets SET reads_until = strftime('%Y-%m-%dT%H:%M:%fZ', reads_until, $1)
         WHERE strftime('%Y', reads_until, $1) GLOB '20??'",
        "UPDATE batches SET next_look_at = strftime('%Y-%m-%dT%H:%M:%fZ', next_look_at, $1)
         WHERE state <> 'done' AND strftime('%Y', next_look_at, $1) GLOB '20??'",
    ];
    let by = format!("{:+.3} seconds", by_ms as f64 / 1000.0);
    for statement in TIMES {
        sqlx::query(statement).bind(&by).execute(&mut *tx).await?;
    }
    if by_ms < 0 {
        bring_back(tx, &by, (now, now.moved(-by_ms))).await?;
    }
    holds::move_refused_keys(tx, by_ms).await?;
    sqlx::query("UPDATE queue_mark SET clock_set_ms = clock_set_ms + $1 WHERE id = 1")
        .bind(by_ms)
        .execute(tx)
        .await?;
    Ok(())
}

/// What could have gone before the clock was set back from the second of these times to the first
/// need not wait for the second again, but a producer's `not_before` counts.
async fn bring_back(
    tx: &mut SqliteConnection,
    by: &str,
    (now, before): (UtcMillis, UtcMillis),
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE power_requests SET eligible_at =
             max(strftime('%Y-%m-%dT%H:%M:%fZ', eligible_at, $1), ifnull(not_before, ''))
         WHERE gate = 'later' AND eligible_at > $2 AND eligible_at <= $3 AND ifnull(not_before, '') < eligible_at
           AND strftime('%Y', eligible_at, $1) GLOB '20??'",
    )
    .bind(by)
    .bind(text(now))
    .bind(text(before))
    .execute(tx)
    .await?;
    Ok(())
}

pub(in crate::store) async fn last(
    connection: &mut SqliteConnection,
    boot: Option<&str>,
) -> Result<Option<LastClocks>, StoreError> {
    let (at, uptime_ms, is_same_boot): (Option<Vec<u8>>, Option<i64>, Option<bool>) = sqlx::query_as(
        "SELECT CAST(clock_at AS BLOB), CAST(clock_uptime_ms AS INTEGER), clock_boot = $1 FROM queue_mark WHERE id = 1",
    )
    .bind(boot)
    .fetch_one(connection)
    .await?;
    let uptime_ms = uptime_ms.filter(|_| is_same_boot == Some(true));
    Ok(
        rows::readable_time(at.map(rows::lossy)).map(|utc| LastClocks {
            utc,
            steady: uptime_ms.map(Steady::from_millis),
        }),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::store::{Store, StoreOptions};

    const NOW: Now = Now {
        utc: UtcMillis(1_800_000_000_000),
        steady: Steady(Duration::from_millis(1234)),
    };

    async fn queue_with(options: &StoreOptions) -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("queue.db");
        let store = Store::open_with(&path, options).await.expect("a queue");
        (dir, store)
    }

    async fn queue() -> (tempfile::TempDir, Store) {
        queue_with(&StoreOptions::default()).await
    }

    async fn sql(store: &Store, sql: String) {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(&mut *store.writer().await)
            .await
            .expect("taken");
    }

    #[tokio::test]
    async fn the_last_clocks_are_told_and_their_uptime_only_until_the_next_boot() {
        let (_dir, store) = queue().await;
        assert_eq!(store.last_clocks().await.expect("readable"), None);
        store.note_clocks(NOW, 1);
        store.follow_clock().await.expect("stored");
        let mut writer = store.writer().await;
        let mut told = async |boot| last(&mut writer, boot).await.expect("readable");
        let present = boot_id();
        assert!(present.is_some());
        let (utc, steady) = (NOW.utc, Some(NOW.steady));
        assert_eq!(
            told(present.as_deref()).await,
            Some(LastClocks { utc, steady })
        );
        for other in [Some("another"), None] {
            let steady = None;
            assert_eq!(told(other).await, Some(LastClocks { utc, steady }));
        }
    }

    #[tokio::test]
    async fn the_queue_follows_a_clock_once_with_the_first_write_that_succeeds() {
        let is_open = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&is_open);
        let options = StoreOptions {
            allow_commit: Some(Arc::new(move || asked.load(Ordering::Relaxed))),
            ..StoreOptions::default()
        };
        let (_dir, store) = queue_with(&options).await;
        let followed = async || -> i64 {
            sqlx::query_scalar("SELECT clock_set_ms FROM queue_mark")
                .fetch_one(&mut *store.writer().await)
                .await
                .expect("readable")
        };
        let write = async || store.forget_targets_except(&[]).await;
        store.note_clocks(NOW, -5000);
        assert!(write().await.is_err());
        assert_eq!(followed().await, 0);
        store.note_clocks(NOW, 2000);
        is_open.store(true, Ordering::Relaxed);
        for _ in 0..2 {
            write().await.expect("stored");
            store.follow_clock().await.expect("stored");
            assert_eq!(followed().await, -3000);
        }
    }

    #[tokio::test]
    async fn a_request_that_could_go_before_the_clock_was_set_back_still_can() {
        let (_dir, store) = queue().await;
        let hour_ago = text(NOW.utc.moved(-3_600_000));
        let rows = format!(
            "INSERT INTO power_requests (server_id, action, not_before) VALUES ('a', 'stop', '2098-01-01'),
                 ('b', 'stop', '2098-01-01'), ('c', 'stop', '2098-01-01');
             UPDATE queue_mark SET writing = token;
             UPDATE power_requests SET not_before = '{hour_ago}' WHERE server_id = 'a';
             UPDATE power_requests SET not_before = '{now}' WHERE server_id = 'b';
             UPDATE power_requests SET eligible_at = '{now}' WHERE server_id IN ('a', 'b');
             UPDATE queue_mark SET writing = NULL;",
            now = text(NOW.utc)
        );
        sql(&store, rows).await;
        let set_back = Now {
            utc: NOW.utc.moved(-1_800_000),
            ..NOW
        };
        store.note_clocks(set_back, -1_800_000);
        store.follow_clock().await.expect("stored");
        let times: Vec<String> =
            sqlx::query_scalar("SELECT eligible_at FROM power_requests ORDER BY id")
                .fetch_all(&mut *store.writer().await)
                .await
                .expect("readable");
        let later = "2098-01-01T00:00:00.000Z".to_owned();
        assert_eq!(times, [text(set_back.utc), text(NOW.utc), later]);
    }

    #[tokio::test]
    async fn a_time_that_would_lie_in_another_century_stays() {
        let (_dir, store) = queue().await;
        let rows = format!(
            "UPDATE queue_mark SET writing = token;
             INSERT INTO batches (target, service, endpoint, project_id, action, state, server_count, intent_at, next_look_at,
                 look_cause, look_until)
                 VALUES ('default', 'bms', 'e', 'p', 'stop', 'looking', 1, '{now}', '{now}', 'lost', '2090-01-01T00:00:00.000Z');
             INSERT INTO refused_keys (key, secret, target, refusals, until, reason, recent)
                 VALUES ('k', 's', 'default', 1, '{now}', 'a test', '{now}');
             UPDATE queue_mark SET writing = NULL;",
            now = text(NOW.utc)
        );
        sql(&store, rows).await;
        let years = |years: i64| years * 365 * 86_400_000;
        for by_ms in [years(-60), years(120)] {
            store.note_clocks(NOW, by_ms);
            store.follow_clock().await.expect("stored");
        }
        let times: (String, String) =
            sqlx::query_as("SELECT next_look_at, look_until FROM batches")
                .fetch_one(&mut *store.writer().await)
                .await
                .expect("readable");
        let moved = "2030-01-16T00:00:00.000Z".to_owned();
        assert_eq!(times, (text(NOW.utc), moved));
    }
}
