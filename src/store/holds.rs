//! Reasons why something is not going out, and what is known of each target.

use super::batches::Origin;
use super::{Store, StoreError, rows, text};
use crate::model::{HoldKind, TargetName, UtcMillis};
use crate::plan::Hold;

impl Store {
    /// The holds in force; removes none.
    pub async fn present_holds(&self, now: UtcMillis) -> Result<Vec<Hold>, StoreError> {
        let mut writer = self.writer.lock().await;
        let found: Vec<HoldRecord> =
            sqlx::query_as("SELECT target, action, kind, reason, since, until FROM holds ORDER BY id")
                .fetch_all(&mut *writer)
                .await?;
        let holds = found.into_iter().map(HoldRecord::into_hold).collect::<Result<Vec<_>, _>>()?;
        Ok(holds.into_iter().filter(|hold| hold.until.is_none_or(|until| until > now)).collect())
    }

    /// All holds; those whose time has passed are removed first.
    pub async fn holds(&self, now: UtcMillis) -> Result<Vec<Hold>, StoreError> {
        let mut writer = self.writer.lock().await;
        let found: Vec<HoldRecord> =
            sqlx::query_as("SELECT target, action, kind, reason, since, until FROM holds ORDER BY id")
                .fetch_all(&mut *writer)
                .await?;
        let holds = found.into_iter().map(HoldRecord::into_hold).collect::<Result<Vec<_>, _>>()?;
        if holds.iter().any(|hold| hold.until.is_some_and(|until| until <= now)) {
            sqlx::query("DELETE FROM holds WHERE until <= ?").bind(text(now)).execute(&mut *writer).await?;
        }
        Ok(holds.into_iter().filter(|hold| hold.until.is_none_or(|until| until > now)).collect())
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

    /// Makes the `unknown_target` holds cover exactly `unknown`. Returns the targets newly held.
    pub async fn hold_unknown_targets(
        &self,
        unknown: &[TargetName],
        now: UtcMillis,
    ) -> Result<Vec<TargetName>, StoreError> {
        let mut writer = self.writer.lock().await;
        let held: Vec<String> = sqlx::query_scalar("SELECT target FROM holds WHERE kind = 'unknown_target'")
            .fetch_all(&mut *writer)
            .await?;
        let new: Vec<TargetName> = unknown.iter().filter(|name| !held.contains(&name.0)).cloned().collect();
        let over: Vec<&String> = held.iter().filter(|name| !unknown.iter().any(|target| target.0 == **name)).collect();
        if new.is_empty() && over.is_empty() {
            return Ok(new);
        }
        let mut tx = self.begin(&mut writer).await?;
        for name in over {
            sqlx::query("DELETE FROM holds WHERE kind = 'unknown_target' AND target = ?")
                .bind(name)
                .execute(&mut *tx)
                .await?;
        }
        for target in &new {
            let reason = format!("the config has no [targets.{target}]");
            let hold = Hold {
                target: Some(target.clone()),
                action: None,
                kind: HoldKind::UnknownTarget,
                reason,
                since: now,
                until: None,
            };
            put_hold(&mut tx, &hold).await?;
        }
        tx.commit().await?;
        Ok(new)
    }

    /// Stores what is known of a configured target, for `status` and for the next start.
    pub async fn note_target(
        &self,
        target: &TargetName,
        origin: &Origin,
        configured: u32,
        rate: u32,
        throttles: u32,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().await;
        sqlx::query(
            "INSERT INTO targets (target, service, endpoint, project_id, submits_per_minute, pace_per_minute, throttles, updated_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT (target) DO UPDATE SET service = ?2, endpoint = ?3, project_id = ?4, submits_per_minute = ?5,
                 pace_per_minute = ?6, throttles = ?7, updated_at = ?8",
        )
        .bind(&target.0)
        .bind(origin.service.as_str())
        .bind(&origin.endpoint)
        .bind(&origin.project_id)
        .bind(configured)
        .bind(rate)
        .bind(throttles)
        .bind(text(now))
        .execute(&mut *writer)
        .await?;
        Ok(())
    }

    /// The rate and the throttled calls in a row that an earlier run left for this target; none if it was another
    /// service, endpoint or project then.
    pub async fn noted_pace(&self, target: &TargetName, origin: &Origin) -> Result<Option<(u32, u32)>, StoreError> {
        let mut writer = self.writer.lock().await;
        let sql = "SELECT pace_per_minute, throttles FROM targets
                   WHERE target = ? AND service = ? AND endpoint = ? AND project_id = ?";
        Ok(sqlx::query_as(sql)
            .bind(&target.0)
            .bind(origin.service.as_str())
            .bind(&origin.endpoint)
            .bind(&origin.project_id)
            .fetch_optional(&mut *writer)
            .await?)
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

#[derive(sqlx::FromRow)]
pub(super) struct HoldRecord {
    target: Option<String>,
    action: Option<String>,
    kind: String,
    reason: String,
    since: String,
    until: Option<String>,
}

impl HoldRecord {
    pub(super) fn into_hold(self) -> Result<Hold, StoreError> {
        Ok(Hold {
            target: self.target.map(TargetName),
            action: self.action.as_deref().map(rows::word).transpose()?,
            kind: rows::word(&self.kind)?,
            reason: self.reason,
            since: rows::time(&self.since)?,
            until: rows::maybe_time(self.until)?,
        })
    }
}
