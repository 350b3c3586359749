//! Reasons why something is not going out, and what is known of each target.

use std::time::Duration;

use sqlx::sqlite::SqliteConnection;

use super::rows::{list, names};
use super::{StoreError, rows, text};
use crate::model::{Hold, HoldKind, Origin, PowerAction, TargetName, UtcMillis};

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

pub(in crate::store) async fn find_past_holds(
    connection: &mut SqliteConnection,
    now: UtcMillis,
) -> Result<Vec<i64>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT id FROM holds INDEXED BY holds_that_matter
         WHERE (kind <> 'unknown_target' OR target IS NULL) AND until <= $1",
    )
    .bind(text(now))
    .fetch_all(connection)
    .await?)
}

pub(in crate::store) async fn is_held(
    connection: &mut SqliteConnection,
    target: &TargetName,
    kind: HoldKind,
) -> Result<bool, StoreError> {
    Ok(
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM holds WHERE target = $1 AND kind = $2)")
            .bind(&target.0)
            .bind(kind.as_str())
            .fetch_one(connection)
            .await?,
    )
}

pub(in crate::store) async fn lift_hold(
    tx: &mut SqliteConnection,
    target: &TargetName,
    kind: HoldKind,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM holds WHERE target = $1 AND kind = $2")
        .bind(&target.0)
        .bind(kind.as_str())
        .execute(tx)
        .await?;
    Ok(())
}

/// Removes the hold of this kind on exactly this target and action, for every label.
pub(in crate::store) async fn lift(
    tx: &mut SqliteConnection,
    target: Option<&TargetName>,
    action: Option<PowerAction>,
    kind: HoldKind,
) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM holds WHERE ifnull(target, '') = $1 AND ifnull(action, '') = $2 AND ifnull(label, '') = '' AND kind = $3",
    )
    .bind(target.map_or("", |target| target.0.as_str()))
    .bind(action.map_or("", PowerAction::as_str))
    .bind(kind.as_str())
    .execute(tx)
    .await?;
    Ok(())
}

pub(in crate::store) async fn exchange_holds(
    tx: &mut SqliteConnection,
    put: &[Hold],
    over: &[Hold],
) -> Result<(), StoreError> {
    for hold in over {
        lift(tx, hold.target.as_ref(), hold.action, hold.kind).await?;
    }
    for hold in put {
        put_hold(tx, hold).await?;
    }
    Ok(())
}

pub(in crate::store) async fn refused_keys(
    connection: &mut SqliteConnection,
) -> Result<Vec<RefusedKey>, StoreError> {
    let found: Vec<RefusedKeyRecord> = sqlx::query_as(REFUSED_KEYS)
        .fetch_all(&mut *connection)
        .await?;
    Ok(found
        .into_iter()
        .filter_map(RefusedKeyRecord::into_key)
        .collect())
}

pub(in crate::store) async fn forget_refused_key(
    tx: &mut SqliteConnection,
    key: &str,
    secret: &str,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM refused_keys WHERE key = $1 AND secret = $2")
        .bind(key)
        .bind(secret)
        .execute(&mut *tx)
        .await?;
    Ok(())
}

pub(in crate::store) async fn not_yet_held(
    connection: &mut SqliteConnection,
    unknown: &[TargetName],
) -> Result<Vec<TargetName>, StoreError> {
    let new: Vec<String> = sqlx::query_scalar(
        "SELECT j.value FROM json_each($1) j WHERE NOT EXISTS (
         SELECT 1 FROM holds h WHERE ifnull(h.target, '') = j.value AND ifnull(h.action, '') = ''
         AND ifnull(h.label, '') = '' AND h.kind = 'unknown_target')",
    )
    .bind(names(unknown))
    .fetch_all(connection)
    .await?;
    Ok(new.into_iter().map(TargetName).collect())
}

pub(in crate::store) async fn hold_unknown_targets(
    tx: &mut SqliteConnection,
    new: &[TargetName],
    now: UtcMillis,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO holds (target, kind, reason, since)
         SELECT j.value, 'unknown_target', 'the config has no [targets.' || j.value || ']', $2 FROM json_each($1) j",
    )
    .bind(names(new))
    .bind(text(now))
    .execute(tx)
    .await?;
    Ok(())
}

/// Some holds of unknown targets.
pub(in crate::store) struct UnknownTargetsPage {
    /// Those that nothing needs any more.
    pub(in crate::store) needless: Vec<i64>,
    /// The last hold that was looked at; none at the end.
    pub(in crate::store) last: Option<i64>,
}

pub(in crate::store) async fn page_of_unknown_targets(
    connection: &mut SqliteConnection,
    configured: &[TargetName],
    after: i64,
    limit: u32,
) -> Result<UnknownTargetsPage, StoreError> {
    let found: Vec<(i64, bool)> = sqlx::query_as(
        "SELECT h.id, h.kind = 'unknown_target' AND h.target IS NOT NULL
                AND (h.target IN (SELECT value FROM json_each($1))
                     OR NOT (EXISTS (SELECT 1 FROM power_requests r WHERE r.gate = 'ready' AND r.target = h.target)
                             OR EXISTS (SELECT 1 FROM power_requests r WHERE r.in_line IS NULL AND r.gate IS NOT NULL
                                        AND r.target = h.target)
                             OR EXISTS (SELECT 1 FROM power_requests r WHERE r.gate = 'held' AND r.target = h.target)))
         FROM holds h WHERE h.id > $2 ORDER BY h.id LIMIT 0 + $3",
    )
    .bind(names(configured))
    .bind(after)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let is_full = found.len() as u64 == u64::from(limit);
    let last = found.last().map(|(id, _)| *id);
    let needless = found.into_iter().filter(|(_, is_needless)| *is_needless);
    Ok(UnknownTargetsPage {
        needless: needless.map(|(id, _)| id).collect(),
        last: last.filter(|_| is_full),
    })
}

pub(in crate::store) async fn delete_holds(
    tx: &mut SqliteConnection,
    ids: &[i64],
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM holds WHERE id IN (SELECT value FROM json_each($1))")
        .bind(list(ids))
        .execute(tx)
        .await?;
    Ok(())
}

pub(in crate::store) async fn note_target(
    tx: &mut SqliteConnection,
    status: &TargetStatus<'_>,
) -> Result<(), StoreError> {
    let news = status.news;
    sqlx::query(
        "INSERT INTO targets (target, service, endpoint, project_id, submits_per_minute, pace_per_minute, throttles,
             reads_until, updated_at, budget_ms, default_ttl_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
         ON CONFLICT (target) DO UPDATE SET service = $2, endpoint = $3, project_id = $4, submits_per_minute = $5,
             pace_per_minute = $6, throttles = $7, reads_until = $8, updated_at = $9, budget_ms = $10, default_ttl_ms = $11,
             inventory_at = CASE WHEN service = $2 AND endpoint = $3 AND project_id = $4 THEN inventory_at END",
    )
    .bind(&status.target.0)
    .bind(status.origin.service.as_str())
    .bind(&status.origin.endpoint)
    .bind(&status.origin.project_id)
    .bind(news.configured)
    .bind(news.pace.rate)
    .bind(news.pace.throttles)
    .bind(news.pace.reads_until.map(text))
    .bind(text(status.now))
    .bind(news.budget_span.map(rows::millis))
    .bind(news.default_ttl.map(rows::millis))
    .execute(&mut *tx)
    .await?;
    Ok(())
}

pub(in crate::store) async fn noted_pace(
    connection: &mut SqliteConnection,
    target: &TargetName,
    origin: &Origin,
) -> Result<Option<NotedPace>, StoreError> {
    let sql = "SELECT CAST(pace_per_minute AS INTEGER), CAST(throttles AS INTEGER), CAST(reads_until AS BLOB)
                   FROM targets WHERE target = $1 AND service = $2 AND endpoint = $3 AND project_id = $4";
    let found: Option<(i64, i64, Option<Vec<u8>>)> = sqlx::query_as(sql)
        .bind(&target.0)
        .bind(origin.service.as_str())
        .bind(&origin.endpoint)
        .bind(&origin.project_id)
        .fetch_optional(&mut *connection)
        .await?;
    Ok(found.map(|(rate, throttles, reads_until)| NotedPace {
        rate: rows::count(rate),
        throttles: rows::count(throttles),
        reads_until: rows::readable_time(reads_until.map(rows::lossy)),
    }))
}

pub(in crate::store) async fn forget_targets_except(
    tx: &mut SqliteConnection,
    names: &[TargetName],
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM targets WHERE target NOT IN (SELECT value FROM json_each($1))")
        .bind(serde_json::to_string(names).unwrap_or_default())
        .execute(&mut *tx)
        .await?;
    Ok(())
}

/// A configured target, and what there is to note of it.
#[derive(Debug, Clone, Copy)]
pub struct TargetStatus<'a> {
    /// Its name.
    pub target: &'a TargetName,
    /// Where its calls are sent.
    pub origin: &'a Origin,
    /// What may have changed.
    pub news: TargetNews,
    /// When it is noted.
    pub now: UtcMillis,
}

/// What may change of a configured target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetNews {
    /// Submit calls a minute, as configured.
    pub configured: u32,
    /// What the next start goes on with.
    pub pace: NotedPace,
    /// The longest span of its budgets and guards: its batches are kept for as long.
    pub budget_span: Option<Duration>,
    /// Its requests without a time of expiry expire after this; none: never.
    pub default_ttl: Option<Duration>,
}

/// What is known of a key that was refused with one of its secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedKey {
    /// The fingerprint of the access key, or of the user.
    pub key: String,
    /// Tells its secret from another one.
    pub secret: String,
    /// Whose call was refused last.
    pub target: TargetName,
    /// In a row, as far as we saw.
    pub refusals: u32,
    /// What uses this secret is held until then.
    pub until: UtcMillis,
    /// The cloud's words.
    pub reason: String,
    /// When, for each refused signature of the last minutes, the oldest first. The cloud counts
    /// them by key, whatever the secret.
    pub recent: Vec<UtcMillis>,
}

impl RefusedKey {
    /// The clock was moved by this many milliseconds.
    pub fn move_times(&mut self, by_ms: i64) {
        let moved = |at: UtcMillis| at.moved(by_ms).storable();
        self.until = moved(self.until);
        self.recent.iter_mut().for_each(|at| *at = moved(*at));
    }
}

/// Casts, because anybody may have written anything here.
const REFUSED_KEYS: &str =
    "SELECT CAST(key AS BLOB) AS key, CAST(secret AS BLOB) AS secret, CAST(target AS BLOB) AS target,
    CAST(refusals AS INTEGER) AS refusals, CAST(until AS BLOB) AS until, CAST(reason AS BLOB) AS reason,
    CAST(recent AS BLOB) AS recent FROM refused_keys";

/// A row as anybody may have written it.
#[derive(sqlx::FromRow)]
struct RefusedKeyRecord {
    key: Vec<u8>,
    secret: Vec<u8>,
    target: Vec<u8>,
    refusals: i64,
    until: Vec<u8>,
    reason: Vec<u8>,
    recent: Vec<u8>,
}

impl RefusedKeyRecord {
    fn into_key(self) -> Option<RefusedKey> {
        let recent = String::from_utf8_lossy(&self.recent).into_owned();
        Some(RefusedKey {
            key: String::from_utf8(self.key).ok()?,
            secret: String::from_utf8(self.secret).ok()?,
            target: TargetName(String::from_utf8_lossy(&self.target).into_owned()),
            refusals: u32::try_from(self.refusals).unwrap_or(1),
            until: rows::readable_time(String::from_utf8(self.until).ok())?,
            reason: String::from_utf8_lossy(&self.reason).into_owned(),
            recent: recent
                .split(' ')
                .filter_map(|time| rows::readable_time(Some(time.to_owned())))
                .collect(),
        })
    }
}

/// Takes any connection, so that `check --online` counts its refusals too.
pub(in crate::store) async fn note_refused_key(
    connection: &mut SqliteConnection,
    refused: &RefusedKey,
) -> Result<(), StoreError> {
    let recent: Vec<String> = refused.recent.iter().map(|at| text(*at)).collect();
    sqlx::query(
        "INSERT INTO refused_keys (key, secret, target, refusals, until, reason, recent) VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (key, secret) DO UPDATE SET target = $3, refusals = $4, until = $5, reason = $6, recent = $7",
    )
    .bind(&refused.key)
    .bind(&refused.secret)
    .bind(&refused.target.0)
    .bind(refused.refusals.max(1))
    .bind(text(refused.until))
    .bind(&refused.reason)
    .bind(recent.join(" "))
    .execute(connection)
    .await?;
    Ok(())
}

/// As `clocks::follow` moves the holds that follow from them.
pub(super) async fn move_refused_keys(
    connection: &mut SqliteConnection,
    by_ms: i64,
) -> Result<(), StoreError> {
    for mut refused in refused_keys(connection).await? {
        refused.move_times(by_ms);
        note_refused_key(connection, &refused).await?;
    }
    Ok(())
}

/// The holds in force that may concern a configured target. Takes a connection, so that a claim looks
/// in its own transaction.
pub(in crate::store) async fn read(
    connection: &mut SqliteConnection,
    now: UtcMillis,
) -> Result<Vec<Hold>, StoreError> {
    let found: Vec<u8> = sqlx::query_scalar(
        "SELECT CAST(json_group_array(json_array(
             h.id, CAST(h.target AS TEXT), CAST(h.action AS TEXT), CAST(h.label AS TEXT), CAST(h.kind AS TEXT),
             CAST(h.reason AS TEXT), CAST(h.since AS TEXT), CAST(h.until AS TEXT))) AS BLOB)
         FROM holds h INDEXED BY holds_that_matter WHERE h.kind <> 'unknown_target' OR h.target IS NULL",
    )
    .fetch_one(connection)
    .await?;
    let found: Vec<HoldRow> = rows::json(found)?;
    let mut unreadable = Vec::new();
    let all = found
        .into_iter()
        .filter_map(|row| row.into_hold(now, &mut unreadable));
    Ok(in_force(all.collect(), now))
}

/// Those whose time has not passed.
pub(super) fn in_force(holds: Vec<Hold>, now: UtcMillis) -> Vec<Hold> {
    holds
        .into_iter()
        .filter(|hold| hold.until.is_none_or(|until| until > now))
        .collect()
}

/// Inserts a hold or renews its reason and end. Takes any connection, so that commands put holds
/// the same way.
/// A breaker that is to hold for longer stays: what the cloud asked for outlasts a restart, which
/// forgets it, and a shorter wait that another call asks for afterwards.
pub(in crate::store) async fn put_hold(
    connection: &mut SqliteConnection,
    hold: &Hold,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO holds (target, action, label, kind, reason, since, until) VALUES ($1, $2, $7, $3, $4, $5, $6)
         ON CONFLICT (ifnull(target, ''), ifnull(action, ''), ifnull(label, ''), kind) DO UPDATE SET reason = $4, until = $6
         WHERE kind <> 'breaker' OR ifnull(until, '') < $6",
    )
    .bind(hold.target.as_ref().map(|target| &target.0))
    .bind(hold.action.map(|action| action.as_str()))
    .bind(hold.kind.as_str())
    .bind(&hold.reason)
    .bind(text(hold.since))
    .bind(hold.until.map(text))
    .bind(&hold.label)
    .execute(connection)
    .await?;
    Ok(())
}

/// A row as anybody may have written it.
#[derive(serde::Deserialize)]
pub(super) struct HoldRow {
    id: i64,
    target: Option<String>,
    action: Option<String>,
    label: Option<String>,
    kind: String,
    reason: String,
    since: String,
    until: Option<String>,
}

impl HoldRow {
    /// Without a known action or kind it holds nothing, while odd times leave it in force; a sentence
    /// on either goes to `unreadable`.
    pub(super) fn into_hold(self, now: UtcMillis, unreadable: &mut Vec<String>) -> Option<Hold> {
        let row = format!("row {} of holds", self.id);
        let words = rows::word(&self.kind).and_then(|kind| {
            let action = self.action.as_deref().map(rows::word).transpose()?;
            Ok((kind, action))
        });
        let (kind, action) = match words {
            Ok(words) => words,
            Err(error) => {
                unreadable.push(format!("{row}: it is ignored: {error}"));
                return None;
            }
        };
        let since = rows::time(&self.since).unwrap_or_else(|error| {
            unreadable.push(format!(
                "{row}: it is in force, since an unknown time: {error}"
            ));
            now
        });
        let until = rows::maybe_time(self.until).unwrap_or_else(|error| {
            unreadable.push(format!("{row}: it is in force without an end: {error}"));
            None
        });
        Some(Hold {
            target: self.target.map(TargetName),
            action,
            label: self.label,
            kind,
            reason: self.reason,
            since,
            until,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{SnapshotQuery, Store};
    use super::*;

    const NOW: UtcMillis = UtcMillis(1_800_000_000_000);

    async fn until_of_breaker(store: &Store, until: UtcMillis) -> String {
        let hold = Hold {
            target: Some(TargetName("a".into())),
            action: None,
            label: None,
            kind: HoldKind::Breaker,
            reason: "throttled".to_owned(),
            since: NOW,
            until: Some(until),
        };
        store.put_hold(&hold).await.expect("put");
        sqlx::query_scalar("SELECT until FROM holds")
            .fetch_one(&mut *store.writer.lock().await)
            .await
            .expect("one hold")
    }

    #[tokio::test]
    async fn a_breaker_becomes_longer_and_not_shorter() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(&dir.path().join("queue.db"))
            .await
            .expect("a queue");
        let (soon, late) = (NOW.moved(14_000), NOW.moved(86_400_000));
        assert_eq!(until_of_breaker(&store, soon).await, text(soon));
        assert_eq!(until_of_breaker(&store, late).await, text(late));
        assert_eq!(until_of_breaker(&store, soon).await, text(late));
    }

    #[tokio::test]
    async fn a_strangers_row_neither_hides_the_other_holds_nor_ends_the_pass() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(&dir.path().join("queue.db"))
            .await
            .expect("a queue");
        let rows = "PRAGMA ignore_check_constraints = ON;
            UPDATE queue_mark SET writing = token;
            INSERT INTO holds (target, kind, reason, since) VALUES ('a', 'whim', '', '2026-01-31T22:00:00.000Z');
            INSERT INTO holds (target, action, kind, reason, since) VALUES ('b', 'explode', 'operator', '', '2026-01-31T22:00:00.000Z');
            INSERT INTO holds (target, kind, reason, since, until) VALUES ('c', 'operator', CAST(x'ff' AS TEXT), 'yesterday', 'soon');
            INSERT INTO holds (kind, reason, since) VALUES ('unknown_target', '', x'00');
            INSERT INTO holds (target, kind, reason, since) VALUES ('d', 'operator', 'paused', '2026-01-31T22:00:00.000Z');
            INSERT INTO holds (target, kind, reason, since) VALUES (CAST(x'ff' AS TEXT), 'unknown_target', '', '2026-01-31T22:00:00.000Z');
            UPDATE queue_mark SET writing = NULL;
            PRAGMA ignore_check_constraints = OFF;";
        sqlx::raw_sql(rows)
            .execute(&mut *store.writer.lock().await)
            .await
            .expect("inserted");
        let asked = SnapshotQuery {
            default_ttl: None,
            targets: &[],
            except: &BTreeSet::new(),
        };
        let seen = store.peek(&asked, NOW).await.expect("readable");
        let holds = seen.holds;
        let odd = seen.unreadable_holds;
        let held: Vec<_> = holds
            .iter()
            .map(|hold| hold.target.as_ref().map(|target| target.0.as_str()))
            .collect();
        assert_eq!(
            held,
            [Some("c"), None, Some("d")],
            "an unknown target concerns no other"
        );
        assert_eq!(
            (holds[0].since, holds[0].until),
            (NOW, None),
            "what is meant to hold goes on to hold"
        );
        assert_eq!(odd.len(), 5, "{odd:?}");
        store
            .hold_unknown_targets(&[TargetName("e".into())], NOW)
            .await
            .expect("the others go on");
        assert_eq!(
            store
                .lift_unknown_targets(&[], 0, 100)
                .await
                .expect("readable"),
            None
        );
        let left: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM holds WHERE target IS NOT NULL AND kind = 'unknown_target'",
        )
        .fetch_one(&mut *store.writer.lock().await)
        .await
        .expect("readable");
        assert_eq!(left, 0, "targets that nobody asks for are let go");
    }
}
