//! Reasons why something is not going out, and what is known of each target.

use std::collections::BTreeMap;

use super::batches::Origin;
use super::rows::{list, names};
use super::{Store, StoreError, rows, text};
use crate::model::{HoldKind, PowerAction, TargetName, UtcMillis};
use crate::plan::Hold;

/// What is remembered of a target's pace over restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotedPace {
    /// Submit calls a minute.
    pub rate: u32,
    /// Throttled or failed calls in a row.
    pub throttles: u32,
    /// Nothing is read before this, because the cloud throttled a read.
    pub reads_until: Option<UtcMillis>,
}

impl Store {
    /// The holds that may concern a configured target; those whose time has passed are removed first. Otherwise as
    /// [`Store::present_holds`].
    pub async fn holds(&self, now: UtcMillis) -> Result<(Vec<Hold>, Vec<String>), StoreError> {
        {
            let mut writer = self.writer.lock().await;
            let over: Vec<i64> = sqlx::query_scalar(
                "SELECT id FROM holds INDEXED BY holds_that_matter
                 WHERE (kind <> 'unknown_target' OR target IS NULL) AND until <= ?",
            )
            .bind(text(now))
            .fetch_all(&mut *writer)
            .await?;
            if !over.is_empty() {
                sqlx::query("DELETE FROM holds WHERE id IN (SELECT value FROM json_each(?))")
                    .bind(list(&over))
                    .execute(&mut *writer)
                    .await?;
            }
        }
        self.present_holds(now).await
    }

    /// The holds in force that may concern a configured target. And a sentence on each row that a stranger wrote and that
    /// does not read: without a known action or kind it holds nothing, while odd times leave it in force.
    pub async fn present_holds(&self, now: UtcMillis) -> Result<(Vec<Hold>, Vec<String>), StoreError> {
        let mut writer = self.writer.lock().await;
        read(&mut writer, now).await
    }

    /// Puts a hold, or renews the one of the same target, action and kind; its `since` stays.
    pub async fn put_hold(&self, hold: &Hold) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().await;
        put_hold(&mut writer, hold).await
    }

    /// Removes the holds of this kind on a target. False if there was none.
    pub async fn lift_hold(&self, target: &TargetName, kind: HoldKind) -> Result<bool, StoreError> {
        let mut writer = self.writer.lock().await;
        let lifted = sqlx::query("DELETE FROM holds WHERE target = ? AND kind = ?")
            .bind(&target.0)
            .bind(kind.as_str())
            .execute(&mut *writer)
            .await?;
        Ok(lifted.rows_affected() > 0)
    }

    /// Removes the hold of a budget that is looked at again; one that still binds is put again by the next try.
    pub async fn lift_budget(&self, target: &TargetName, action: PowerAction) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().await;
        sqlx::query("DELETE FROM holds WHERE ifnull(target, '') = ? AND ifnull(action, '') = ? AND kind = 'budget'")
            .bind(&target.0)
            .bind(action.as_str())
            .execute(&mut *writer)
            .await?;
        Ok(())
    }

    /// Keys that were refused last, by fingerprint. A row that a stranger spoilt says nothing.
    pub async fn refused_keys(&self) -> Result<BTreeMap<String, RefusedKey>, StoreError> {
        let mut writer = self.writer.lock().await;
        let found: Vec<RefusedKeyRecord> = sqlx::query_as(REFUSED_KEYS).fetch_all(&mut *writer).await?;
        Ok(found.into_iter().filter_map(RefusedKeyRecord::into_key).collect())
    }

    /// Remembers that a key was refused.
    pub async fn note_refused_key(&self, key: &str, refused: &RefusedKey) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().await;
        note_refused_key(&mut writer, key, refused).await
    }

    /// The cloud has taken this key.
    pub async fn forget_refused_key(&self, key: &str) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().await;
        sqlx::query("DELETE FROM refused_keys WHERE key = ?").bind(key).execute(&mut *writer).await?;
        Ok(())
    }

    /// Holds these targets, which the config does not have. Returns those that were not held yet.
    pub async fn hold_unknown_targets(
        &self,
        unknown: &[TargetName],
        now: UtcMillis,
    ) -> Result<Vec<TargetName>, StoreError> {
        if unknown.is_empty() {
            return Ok(Vec::new());
        }
        let mut writer = self.writer.lock().await;
        let new: Vec<TargetName> = sqlx::query_scalar(
            "SELECT j.value FROM json_each(?) j WHERE NOT EXISTS (
                 SELECT 1 FROM holds h WHERE ifnull(h.target, '') = j.value AND ifnull(h.action, '') = ''
                 AND h.kind = 'unknown_target')",
        )
        .bind(names(unknown))
        .fetch_all(&mut *writer)
        .await?
        .into_iter()
        .map(TargetName)
        .collect();
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let mut tx = self.begin(&mut writer).await?;
        sqlx::query(
            "INSERT INTO holds (target, kind, reason, since)
             SELECT j.value, 'unknown_target', 'the config has no [targets.' || j.value || ']', ?2 FROM json_each(?1) j",
        )
        .bind(names(&new))
        .bind(text(now))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(new)
    }

    /// Looks at the next `limit` holds of unknown targets behind the one with id `after`: lets go those whose target is
    /// among `configured`, or named by no unfinished request any more. Returns the last id looked at; none at the end.
    pub async fn lift_unknown_targets(
        &self,
        configured: &[TargetName],
        after: i64,
        limit: u32,
    ) -> Result<Option<i64>, StoreError> {
        let mut writer = self.writer.lock().await;
        let found: Vec<(i64, bool)> = sqlx::query_as(
            "SELECT h.id, h.kind = 'unknown_target' AND h.target IS NOT NULL
                    AND (h.target IN (SELECT value FROM json_each(?1))
                         OR NOT EXISTS (SELECT 1 FROM power_requests r WHERE r.target = h.target AND r.gate IS NOT NULL))
             FROM holds h WHERE h.id > ?2 ORDER BY h.id LIMIT 0 + ?3",
        )
        .bind(names(configured))
        .bind(after)
        .bind(limit)
        .fetch_all(&mut *writer)
        .await?;
        let over: Vec<i64> = found.iter().filter(|(_, over)| *over).map(|(id, _)| *id).collect();
        if !over.is_empty() {
            sqlx::query("DELETE FROM holds WHERE id IN (SELECT value FROM json_each(?))")
                .bind(list(&over))
                .execute(&mut *writer)
                .await?;
        }
        Ok(found.last().map(|(id, _)| *id).filter(|_| found.len() as u64 == u64::from(limit)))
    }

    /// Stores what is known of a configured target, for `status` and for the next start.
    pub async fn note_target(
        &self,
        target: &TargetName,
        origin: &Origin,
        configured: u32,
        noted: NotedPace,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().await;
        sqlx::query(
            "INSERT INTO targets (target, service, endpoint, project_id, submits_per_minute, pace_per_minute, throttles,
                 reads_until, updated_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
             ON CONFLICT (target) DO UPDATE SET service = ?2, endpoint = ?3, project_id = ?4, submits_per_minute = ?5,
                 pace_per_minute = ?6, throttles = ?7, reads_until = ?8, updated_at = ?9",
        )
        .bind(&target.0)
        .bind(origin.service.as_str())
        .bind(&origin.endpoint)
        .bind(&origin.project_id)
        .bind(configured)
        .bind(noted.rate)
        .bind(noted.throttles)
        .bind(noted.reads_until.map(text))
        .bind(text(now))
        .execute(&mut *writer)
        .await?;
        Ok(())
    }

    /// What an earlier run had learned of this target's pace; none if it was another service, endpoint or project then.
    pub async fn noted_pace(&self, target: &TargetName, origin: &Origin) -> Result<Option<NotedPace>, StoreError> {
        let mut writer = self.writer.lock().await;
        let sql = "SELECT pace_per_minute, throttles, CAST(reads_until AS BLOB) FROM targets
                   WHERE target = ? AND service = ? AND endpoint = ? AND project_id = ?";
        let found: Option<(u32, u32, Option<Vec<u8>>)> = sqlx::query_as(sql)
            .bind(&target.0)
            .bind(origin.service.as_str())
            .bind(&origin.endpoint)
            .bind(&origin.project_id)
            .fetch_optional(&mut *writer)
            .await?;
        Ok(found.map(|(rate, throttles, reads_until)| NotedPace {
            rate,
            throttles,
            reads_until: rows::readable_time(reads_until.map(rows::lossy)),
        }))
    }

    /// Forgets targets that the config no longer has.
    pub async fn forget_targets_except(&self, names: &[TargetName]) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().await;
        sqlx::query("DELETE FROM targets WHERE target NOT IN (SELECT value FROM json_each(?))")
            .bind(serde_json::to_string(names).unwrap_or_default())
            .execute(&mut *writer)
            .await?;
        Ok(())
    }
}

/// What is known of a key that was refused last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedKey {
    /// Tells its secret from another one, if that may be.
    pub secret: Option<String>,
    /// In a row, as far as we saw.
    pub refusals: u32,
    /// The targets that use it are held until then.
    pub until: UtcMillis,
    /// The cloud's words.
    pub reason: String,
}

/// Casts, because anybody may have written anything here.
pub(super) const REFUSED_KEYS: &str =
    "SELECT CAST(key AS BLOB) AS key, CAST(secret AS BLOB) AS secret, CAST(refusals AS INTEGER) AS refusals,
    CAST(until AS BLOB) AS until, CAST(reason AS BLOB) AS reason FROM refused_keys";

/// A row as anybody may have written it.
#[derive(sqlx::FromRow)]
pub(super) struct RefusedKeyRecord {
    key: Vec<u8>,
    secret: Option<Vec<u8>>,
    refusals: i64,
    until: Vec<u8>,
    reason: Vec<u8>,
}

impl RefusedKeyRecord {
    pub(super) fn into_key(self) -> Option<(String, RefusedKey)> {
        let until = rows::readable_time(String::from_utf8(self.until).ok())?;
        let reason = String::from_utf8_lossy(&self.reason).into_owned();
        let secret = self.secret.and_then(|secret| String::from_utf8(secret).ok());
        let refused = RefusedKey { secret, refusals: u32::try_from(self.refusals).unwrap_or(1), until, reason };
        Some((String::from_utf8(self.key).ok()?, refused))
    }
}

/// Takes any connection, so that `check --online` counts its refusals too.
pub(super) async fn note_refused_key(
    connection: &mut sqlx::SqliteConnection,
    key: &str,
    refused: &RefusedKey,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO refused_keys (key, refusals, until, reason, secret) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (key) DO UPDATE SET refusals = ?2, until = ?3, reason = ?4, secret = ?5",
    )
    .bind(key)
    .bind(refused.refusals.max(1))
    .bind(text(refused.until))
    .bind(&refused.reason)
    .bind(&refused.secret)
    .execute(connection)
    .await?;
    Ok(())
}

/// As [`Store::present_holds`]. Takes any connection, so that a claim looks in its own transaction.
pub(super) async fn read(
    connection: &mut sqlx::SqliteConnection,
    now: UtcMillis,
) -> Result<(Vec<Hold>, Vec<String>), StoreError> {
    let found: Vec<HoldRecord> = sqlx::query_as(
        "SELECT id, CAST(target AS BLOB) AS target, CAST(action AS BLOB) AS action, CAST(kind AS BLOB) AS kind,
                CAST(reason AS BLOB) AS reason, CAST(since AS BLOB) AS since, CAST(until AS BLOB) AS until
         FROM holds INDEXED BY holds_that_matter WHERE kind <> 'unknown_target' OR target IS NULL ORDER BY id",
    )
    .fetch_all(connection)
    .await?;
    let mut odd = Vec::new();
    let holds: Vec<Hold> = found.into_iter().filter_map(|record| record.into_hold(now, &mut odd)).collect();
    Ok((holds.into_iter().filter(|hold| hold.until.is_none_or(|until| until > now)).collect(), odd))
}

/// Inserts a hold or renews its reason and end. Takes any connection, so that commands put holds the same way.
pub(super) async fn put_hold(connection: &mut sqlx::SqliteConnection, hold: &Hold) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO holds (target, action, kind, reason, since, until) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (ifnull(target, ''), ifnull(action, ''), kind) DO UPDATE SET reason = ?4, until = ?6",
    )
    .bind(hold.target.as_ref().map(|target| &target.0))
    .bind(hold.action.map(|action| action.as_str()))
    .bind(hold.kind.as_str())
    .bind(&hold.reason)
    .bind(text(hold.since))
    .bind(hold.until.map(text))
    .execute(connection)
    .await?;
    Ok(())
}

/// A row as anybody may have written it.
#[derive(sqlx::FromRow)]
struct HoldRecord {
    id: i64,
    target: Option<Vec<u8>>,
    action: Option<Vec<u8>>,
    kind: Vec<u8>,
    reason: Vec<u8>,
    since: Vec<u8>,
    until: Option<Vec<u8>>,
}

impl HoldRecord {
    fn into_hold(self, now: UtcMillis, odd: &mut Vec<String>) -> Option<Hold> {
        let id = self.id;
        let mut note = |what: &str, error: StoreError| odd.push(format!("row {id} of holds: {what}: {error}"));
        let read = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let ignored = "it holds nothing";
        let kind = rows::word(&read(self.kind)).map_err(|error| note(ignored, error)).ok()?;
        let action = self.action.map(|action| rows::word(&read(action))).transpose();
        let action = action.map_err(|error| note(ignored, error)).ok()?;
        let since = rows::time(&read(self.since)).unwrap_or_else(|error| {
            note("it is in force since an unknown time", error);
            now
        });
        let until = rows::maybe_time(self.until.map(read)).unwrap_or_else(|error| {
            note("it is in force without an end", error);
            None
        });
        Some(Hold {
            target: self.target.map(read).map(TargetName),
            action,
            kind,
            reason: read(self.reason),
            since,
            until,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UtcMillis = UtcMillis(1_800_000_000_000);

    #[tokio::test]
    async fn a_strangers_row_neither_hides_the_other_holds_nor_ends_the_pass() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(&dir.path().join("queue.db")).await.expect("a queue");
        let rows = "PRAGMA ignore_check_constraints = ON;
            INSERT INTO holds (target, kind, reason, since) VALUES ('a', 'whim', '', '2026-01-31T22:00:00.000Z');
            INSERT INTO holds (target, action, kind, reason, since) VALUES ('b', 'explode', 'operator', '', '2026-01-31T22:00:00.000Z');
            INSERT INTO holds (target, kind, reason, since, until) VALUES ('c', 'operator', CAST(x'ff' AS TEXT), 'yesterday', 'soon');
            INSERT INTO holds (kind, reason, since) VALUES ('unknown_target', '', x'00');
            INSERT INTO holds (target, kind, reason, since) VALUES ('d', 'operator', 'paused', '2026-01-31T22:00:00.000Z');
            INSERT INTO holds (target, kind, reason, since) VALUES (CAST(x'ff' AS TEXT), 'unknown_target', '', '2026-01-31T22:00:00.000Z');
            PRAGMA ignore_check_constraints = OFF;";
        sqlx::raw_sql(rows).execute(&mut *store.writer.lock().await).await.expect("inserted");
        let (holds, odd) = store.holds(NOW).await.expect("readable");
        let held: Vec<_> = holds.iter().map(|hold| hold.target.as_ref().map(|target| target.0.as_str())).collect();
        assert_eq!(held, [Some("c"), None, Some("d")], "an unknown target concerns no other");
        assert_eq!((holds[0].since, holds[0].until), (NOW, None), "what is meant to hold goes on to hold");
        assert_eq!(odd.len(), 5, "{odd:?}");
        store.hold_unknown_targets(&[TargetName("e".into())], NOW).await.expect("the others go on");
        assert_eq!(store.lift_unknown_targets(&[], 0, 100).await.expect("readable"), None);
        let left: i64 =
            sqlx::query_scalar("SELECT count(*) FROM holds WHERE target IS NOT NULL AND kind = 'unknown_target'")
                .fetch_one(&mut *store.writer.lock().await)
                .await
                .expect("readable");
        assert_eq!(left, 0, "targets that nobody asks for are let go");
    }
}
