//! The producers: strangers who insert, cancel, change and hold, over a connection of their own.
//!
//! Owns their SQL. The schema takes "now" from this machine's clock, far behind the virtual one;
//! what it derives from that is set to virtual time in the same transaction.

use std::path::Path;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

use super::draw::Roughness;
use super::facts::{Facts, Moment, Scope, Wish};
use super::orders::Place;
use super::rng::Rng;
use super::{Broken, staff};
use poweryard::model::{PowerAction, RequestState, ServerId, TargetName, UtcMillis};

/// What the producers may name.
pub(super) struct Producers {
    pub(super) servers: Vec<(TargetName, ServerId)>,
    /// Requests still to be inserted.
    pub(super) left: u64,
    /// Of a thousand acts, so many change something that is there.
    pub(super) meddling: u64,
    /// Of a thousand requests, so many name a target that nobody configured.
    misspelt: u64,
    /// Targets that nobody configured, each named by a row of its own, in one go.
    flood: u64,
    /// Of a thousand requests, so many are reboots, whatever else is drawn.
    reboots: u64,
    /// Of a thousand inserts, so many are of an order with waves.
    orders: u64,
    /// Of a thousand acts, so many are of those who approve and resume.
    staff: u64,
    /// Orders written so far.
    pub(super) ordered: u64,
    inserted: u64,
    patient: bool,
}

impl Producers {
    pub(super) fn new(servers: Vec<(TargetName, ServerId)>, rough: &Roughness) -> Self {
        let &Roughness {
            requests: left,
            meddling,
            misspelt,
            flood,
            reboots,
            orders,
            staff,
            ..
        } = rough;
        Self {
            servers,
            left,
            meddling,
            misspelt,
            flood,
            reboots,
            orders,
            staff,
            ordered: 0,
            inserted: 0,
            patient: true,
        }
    }

    /// One act; what was done, for the trace.
    pub(super) async fn act(
        &mut self,
        (connection, path): (&mut SqliteConnection, &Path),
        facts: &mut Facts,
        rng: &mut Rng,
        now: Moment,
    ) -> Result<String, Broken> {
        if self.flood > 0 {
            return self.name_many_targets(connection, facts, rng, now).await;
        }
        if !facts.requests.is_empty() && rng.permille(self.staff) {
            return staff::act((connection, path), facts, rng, now).await;
        }
        if facts.requests.is_empty() || !rng.permille(self.meddling) {
            let rows = rng.between(1, 8).min(self.left);
            if rng.permille(self.orders) {
                return staff::order(self, connection, facts, rng, (rows, now)).await;
            }
            return self.insert(connection, facts, rng, rows, now).await;
        }
        let queued = facts
            .requests
            .iter()
            .filter(|(_, request)| request.state == RequestState::Queued);
        let queued: Vec<i64> = queued.map(|(id, _)| *id).collect();
        let (what, id) = (rng.between(0, 6), rng.pick(&queued).copied());
        let done = match (what, id) {
            (6, _) => tamper(connection, rng).await,
            (0, Some(id)) => cancel(connection, id).await,
            (1, Some(id)) => change_not_before(connection, facts, rng, id, now).await,
            (2, Some(id)) => change_expiry(connection, facts, rng, id, now).await,
            (3, Some(id)) => change_priority(connection, facts, rng, id).await,
            _ => hold(connection, facts, rng, now).await,
        };
        done.map_err(|Broken(error)| {
            Broken(format!(
                "act {what} of the producers, on request {id:?}: {error}"
            ))
        })
    }

    /// Lifts every hold of an operator; the end of a run.
    pub(super) async fn resume_all(
        &mut self,
        connection: &mut SqliteConnection,
        facts: &mut Facts,
    ) -> Result<(), Broken> {
        sqlx::query("DELETE FROM holds WHERE kind = 'operator'")
            .execute(connection)
            .await?;
        facts.held.clear();
        Ok(())
    }

    /// True when asked for the first time.
    pub(super) fn is_patient(&mut self) -> bool {
        std::mem::take(&mut self.patient)
    }

    /// Cancels what is still queued, if somebody has waited long enough.
    pub(super) async fn give_up(
        &mut self,
        connection: &mut SqliteConnection,
    ) -> Result<(), Broken> {
        if !self.patient {
            sqlx::query("UPDATE power_requests SET state = 'cancelled' WHERE state = 'queued'")
                .execute(connection)
                .await?;
        }
        Ok(())
    }

    async fn insert(
        &mut self,
        connection: &mut SqliteConnection,
        facts: &mut Facts,
        rng: &mut Rng,
        rows: u64,
        now: Moment,
    ) -> Result<String, Broken> {
        let one_action = rng.permille(600).then(|| action(rng));
        let mut said = String::from("insert");
        let mut tx = connection.begin().await?;
        for _ in 0..rows {
            let wish = self.wish(facts, rng, one_action, now);
            let key = rng.permille(300).then(|| format!("key-{}", self.inserted));
            self.inserted += 1;
            let id = insert_row(&mut tx, rng, &wish, key).await?;
            said.push_str(&format!(
                " {id}:{} {}",
                wish.action,
                wish.server.0.get(..8).unwrap_or(&wish.server.0)
            ));
            facts.inserted(id, wish)?;
        }
        tx.commit().await?;
        self.left -= rows;
        Ok(said)
    }

    /// A server that somebody may name, now and then one that is nowhere.
    pub(super) fn place(&self, rng: &mut Rng) -> Place {
        let nobody = ServerId(format!("nobody-{}", rng.between(1, 3)));
        let elsewhere = || (TargetName("default".into()), nobody.clone());
        let (target, known) = rng.pick(&self.servers).cloned().unwrap_or_else(elsewhere);
        let server = if rng.permille(20) { nobody } else { known };
        (target, server)
    }

    /// Rows before all others, each for a target of its own that nobody configured: as many lanes,
    /// none of which may go.
    async fn name_many_targets(
        &mut self,
        connection: &mut SqliteConnection,
        facts: &mut Facts,
        rng: &mut Rng,
        now: Moment,
    ) -> Result<String, Broken> {
        let rows = std::mem::take(&mut self.flood);
        let mut tx = connection.begin().await?;
        for number in 0..rows {
            let target = TargetName(format!("misspelt-{number}"));
            let Some((_, server)) = rng.pick(&self.servers).cloned() else {
                continue;
            };
            let expires_at = Some(now.utc + rng.millis(600_000, 900_000));
            let id: i64 = sqlx::query_scalar(
                "INSERT INTO power_requests (server_id, action, target, priority, expires_at)
                 VALUES (?, 'stop', ?, 50, ?) RETURNING id",
            )
            .bind(&server.0)
            .bind(&target.0)
            .bind(expires_at.map(|at| at.to_string()))
            .fetch_one(&mut *tx)
            .await?;
            set_eligible(&mut tx, id, now.utc).await?;
            let (action, inserted_at) = (PowerAction::Stop, now);
            facts.inserted(
                id,
                Wish {
                    target,
                    server,
                    action,
                    not_before: None,
                    expires_at,
                    after: None,
                    inserted_at,
                    priority: 50,
                    label: None,
                    has_override: false,
                    is_approved: false,
                    is_moved: false,
                },
            )?;
        }
        tx.commit().await?;
        Ok(format!("insert {rows} rows for misspelt targets"))
    }

    fn wish(
        &self,
        facts: &Facts,
        rng: &mut Rng,
        one_action: Option<PowerAction>,
        now: Moment,
    ) -> Wish {
        let (target, server) = self.place(rng);
        let not_before = rng.permille(100).then(|| now.utc + rng.millis(1, 120_000));
        let expires_at = rng
            .permille(100)
            .then(|| not_before.unwrap_or(now.utc) + rng.millis(1, 240_000));
        let target = if rng.permille(self.misspelt) {
            TargetName("misspelt".into())
        } else {
            target
        };
        let ids: Vec<i64> = facts
            .requests
            .keys()
            .copied()
            .filter(|id| !facts.deleted.contains(id))
            .collect();
        let after = if rng.permille(120) {
            rng.pick(&ids).copied()
        } else {
            None
        };
        let action = if rng.permille(self.reboots) {
            PowerAction::Reboot
        } else {
            one_action.unwrap_or_else(|| action(rng))
        };
        let priority = if rng.permille(200) {
            rng.between(0, 20) as i64 - 10
        } else {
            0
        };
        let label = rng.permille(self.staff / 2);
        let label = label.then(|| format!("plain-{}", rng.between(1, 2)));
        Wish {
            target,
            server,
            action,
            not_before,
            expires_at,
            after,
            inserted_at: now,
            priority,
            label,
            has_override: rng.permille(self.staff / 3),
            is_approved: false,
            is_moved: false,
        }
    }
}

/// Inserts what somebody wishes for, and sets its times.
pub(super) async fn insert_row(
    tx: &mut SqliteConnection,
    rng: &mut Rng,
    wish: &Wish,
    key: Option<String>,
) -> Result<i64, Broken> {
    let spelled = if rng.permille(100) {
        wish.server.0.to_uppercase()
    } else {
        wish.server.0.clone()
    };
    let id: i64 = sqlx::query_scalar(
        "INSERT INTO power_requests (server_id, action, target, priority, not_before, expires_at, after_id, request_key,
                                     label, override_reason)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
    )
    .bind(&spelled)
    .bind(wish.action.as_str())
    .bind(&wish.target.0)
    .bind(wish.priority)
    .bind(wish.not_before.map(|at| at.to_string()))
    .bind(wish.expires_at.map(|at| at.to_string()))
    .bind(wish.after)
    .bind(key)
    .bind(&wish.label)
    .bind(wish.has_override.then_some("a fire"))
    .fetch_one(&mut *tx)
    .await?;
    set_eligible(tx, id, wish.inserted_at.utc).await?;
    Ok(id)
}

pub(super) fn action(rng: &mut Rng) -> PowerAction {
    *rng.pick(&[
        PowerAction::Start,
        PowerAction::Stop,
        PowerAction::Reboot,
        PowerAction::Reboot,
    ])
    .unwrap_or(&PowerAction::Reboot)
}

/// What the schema took from this machine's clock, in virtual time.
pub(super) async fn set_eligible(
    connection: &mut SqliteConnection,
    id: i64,
    at: UtcMillis,
) -> Result<(), Broken> {
    sqlx::query("UPDATE queue_mark SET writing = token")
        .execute(&mut *connection)
        .await?;
    sqlx::query(
        "UPDATE power_requests SET eligible_at = ?1
                 WHERE id = ?2 AND gate <> 'after' AND ifnull(eligible_at, created_at) < ?1",
    )
    .bind(at.to_string())
    .bind(id)
    .execute(&mut *connection)
    .await?;
    sqlx::query("UPDATE queue_mark SET writing = NULL")
        .execute(connection)
        .await?;
    Ok(())
}

async fn cancel(connection: &mut SqliteConnection, id: i64) -> Result<String, Broken> {
    sqlx::query("UPDATE power_requests SET state = 'cancelled' WHERE id = ? AND state = 'queued'")
        .bind(id)
        .execute(connection)
        .await?;
    Ok(format!("cancel {id}"))
}

async fn change_not_before(
    connection: &mut SqliteConnection,
    facts: &mut Facts,
    rng: &mut Rng,
    id: i64,
    now: Moment,
) -> Result<String, Broken> {
    let Some(request) = facts.requests.get_mut(&id) else {
        return Ok(String::new());
    };
    let at = rng.permille(600).then(|| now.utc + rng.millis(1, 60_000));
    let label = request.wish.label.as_ref();
    let order = label.and_then(|label| facts.orders.get(label));
    let end = request
        .wish
        .expires_at
        .or(order.map(|order| order.expires_at));
    if end.is_some_and(|end| at.is_some_and(|at| end <= at)) {
        return Ok(format!("not_before of {id} cannot be after its end"));
    }
    request.wish.not_before = at;
    request.wish.is_moved = true;
    let inserted_at = request.wish.inserted_at.utc;
    let mut tx = connection.begin().await?;
    sqlx::query("UPDATE power_requests SET not_before = ? WHERE id = ?")
        .bind(at.map(|at| at.to_string()))
        .bind(id)
        .execute(&mut *tx)
        .await?;
    set_eligible(&mut tx, id, inserted_at).await?;
    tx.commit().await?;
    Ok(format!("not_before of {id} = {at:?}"))
}

async fn change_expiry(
    connection: &mut SqliteConnection,
    facts: &mut Facts,
    rng: &mut Rng,
    id: i64,
    now: Moment,
) -> Result<String, Broken> {
    let Some(request) = facts.requests.get_mut(&id) else {
        return Ok(String::new());
    };
    let from = request.wish.not_before.unwrap_or(now.utc).max(now.utc);
    let at = from + rng.millis(1, 120_000);
    request.wish.expires_at = Some(at);
    sqlx::query("UPDATE power_requests SET expires_at = ? WHERE id = ?")
        .bind(at.to_string())
        .bind(id)
        .execute(connection)
        .await?;
    Ok(format!("expires_at of {id} = {at}"))
}

async fn change_priority(
    connection: &mut SqliteConnection,
    facts: &mut Facts,
    rng: &mut Rng,
    id: i64,
) -> Result<String, Broken> {
    let priority = rng.between(0, 200) as i64 - 100;
    if let Some(request) = facts.requests.get_mut(&id) {
        request.wish.priority = priority;
    }
    sqlx::query("UPDATE power_requests SET priority = ? WHERE id = ?")
        .bind(priority)
        .bind(id)
        .execute(connection)
        .await?;
    Ok(format!("priority of {id} = {priority}"))
}

/// Pauses or resumes all actions or one, of all targets or one.
async fn hold(
    connection: &mut SqliteConnection,
    facts: &mut Facts,
    rng: &mut Rng,
    now: Moment,
) -> Result<String, Broken> {
    let targets: Vec<TargetName> = facts.limits.targets.keys().cloned().collect();
    let target = if rng.permille(500) {
        rng.pick(&targets).cloned()
    } else {
        None
    };
    let action = rng.permille(500).then(|| action(rng));
    set_hold(connection, facts, (target, action, None), now).await
}

/// Pauses, or ends the pause made with the same words.
pub(super) async fn set_hold(
    connection: &mut SqliteConnection,
    facts: &mut Facts,
    scope: Scope,
    now: Moment,
) -> Result<String, Broken> {
    let (target, action, label) = scope.clone();
    let sql = match facts.held.remove(&scope) {
        true => {
            "DELETE FROM holds WHERE kind = 'operator' AND target IS ?1 AND action IS ?2 AND label IS ?4"
        }
        false => {
            facts.held.insert(scope);
            "INSERT INTO holds (target, action, label, kind, reason, since) VALUES (?1, ?2, ?4, 'operator', 'a test', ?3)"
        }
    };
    sqlx::query(sql)
        .bind(target.as_ref().map(|target| &target.0))
        .bind(action.map(PowerAction::as_str))
        .bind(now.utc.to_string())
        .bind(label)
        .execute(connection)
        .await?;
    Ok(format!("operators hold {:?}", facts.held))
}

/// What no producer may do to what is on its way. The schema refuses it, or it changes nothing.
const FORBIDDEN: [&str; 12] = [
    "UPDATE batches SET look_cause = 'refused' WHERE state = 'looking'",
    "UPDATE batches SET job_id = 'another', state = 'tracking' WHERE state <> 'done'",
    "UPDATE batches SET state = 'submitting', job_id = NULL WHERE state <> 'done'",
    "UPDATE batches SET look_until = '2099-01-01T00:00:00.000Z' WHERE state = 'looking'",
    "UPDATE batches SET error_code = 'BMS.0018' WHERE state = 'looking'",
    "UPDATE power_requests SET baseline = 'reboot failed' WHERE state = 'running'",
    "UPDATE power_requests SET seen_since = '2026-01-01T00:00:00.000Z' WHERE state = 'running'",
    "UPDATE earlier_attempts SET result = 'lost'",
    "UPDATE power_requests SET attempts = 0",
    "DELETE FROM earlier_attempts",
    "DELETE FROM batches WHERE state <> 'done'",
    "INSERT OR REPLACE INTO batches SELECT * FROM batches WHERE state <> 'done'",
];

/// Tries one of these.
async fn tamper(connection: &mut SqliteConnection, rng: &mut Rng) -> Result<String, Broken> {
    let statement = *rng.pick(&FORBIDDEN).unwrap_or(&FORBIDDEN[0]);
    let told = match sqlx::raw_sql(AssertSqlSafe(statement))
        .execute(connection)
        .await
    {
        Ok(done) => format!("{} rows", done.rows_affected()),
        Err(error) => error.to_string(),
    };
    Ok(format!("{statement}: {told}"))
}

/// Takes the write lock, or gives it back.
pub(super) async fn lock(connection: &mut SqliteConnection, locked: bool) -> Result<(), Broken> {
    let statement = if locked {
        "BEGIN IMMEDIATE"
    } else {
        "ROLLBACK"
    };
    sqlx::raw_sql(AssertSqlSafe(statement))
        .execute(connection)
        .await?;
    Ok(())
}

/// Between two acts.
pub(super) fn gap(rng: &mut Rng, most_ms: u64) -> Duration {
    rng.millis(0, most_ms)
}
