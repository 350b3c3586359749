//! What people hold and let go: a target, an action, a label, the waves of an order, and what a
//! restore has put on hold. Each is one transaction that also writes one row into `operator_actions`;
//! its `requests` are those that were queued under it at that moment.

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, QueryBuilder, Sqlite};

use super::actions::note;
use super::orders::{self, Lets};
use super::{Actor, Done, Selection};
use crate::model::{
    Hold, HoldKind, LetGo, OperatorAction, PowerAction, RequestState, TargetName, UtcMillis,
};
use crate::store::StoreError;
use crate::store::sqlite::{holds, write_guard};

/// What a pause came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paused {
    /// False if the same pause stood already; it stays as it was.
    pub is_new: bool,
    /// Queued requests that it holds.
    pub requests: u64,
}

/// What a resume came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resumed {
    /// Pauses that have ended.
    pub pauses: u64,
    /// What became of the label's order, where no pause of the label stood.
    pub lets: Option<Lets>,
    /// Queued requests that this is about.
    pub requests: u64,
}

impl Resumed {
    /// Why nothing came of it, as a clause; none if something did.
    pub fn why_nothing(&self) -> Option<String> {
        if self.pauses > 0 {
            return None;
        }
        match self.lets {
            Some(Lets::Goes(_)) => None,
            Some(Lets::Done) => Some("the order is done".to_owned()),
            Some(Lets::OnItsWay(wave)) => Some(format!(
                "wave {wave} has not ended, and nothing else holds the next one"
            )),
            Some(Lets::NoOrder) | None => Some("there is no pause with these words".to_owned()),
        }
    }
}

impl Paused {
    /// As the other things that people do are told.
    pub fn done(&self) -> Done {
        counted(self.requests)
    }
}

impl Resumed {
    /// As the other things that people do are told.
    pub fn done(&self) -> Done {
        counted(self.requests)
    }
}

fn counted(requests: u64) -> Done {
    Done {
        done: requests,
        results: Vec::new(),
    }
}

/// Such as `stop on every target`, or `every action with label kernel on target eu`.
pub fn scope_name(target: Option<&str>, action: Option<&str>, label: Option<&str>) -> String {
    let action = action.unwrap_or("every action");
    let label = label
        .map(|label| format!(" with label {label}"))
        .unwrap_or_default();
    match target {
        Some(target) => format!("{action}{label} on target {target}"),
        None => format!("{action}{label} on every target"),
    }
}

pub(super) async fn pause(
    connection: &mut SqliteConnection,
    actor: Actor<'_>,
    scope: &Selection,
    now: UtcMillis,
) -> Result<Paused, StoreError> {
    require_scope(scope)?;
    let waiting = count_queued(connection, scope).await?;
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    let stood: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM holds WHERE kind = $1 AND target IS NOT DISTINCT FROM $2 AND action IS NOT DISTINCT FROM $3 AND label IS NOT DISTINCT FROM $4 AND until IS NULL)",
    )
    .bind(HoldKind::Operator.as_str())
    .bind(&scope.target)
    .bind(scope.action.map(PowerAction::as_str))
    .bind(&scope.label)
    .fetch_one(&mut *tx)
    .await?;
    if !stood {
        holds::put_hold(&mut tx, &hold(actor, scope, now)).await?;
    }
    let requests = if stood { 0 } else { waiting };
    note(
        &mut tx,
        actor,
        OperatorAction::Pause,
        &said(scope),
        requests,
    )
    .await?;
    tx.commit().await?;
    Ok(Paused {
        is_new: !stood,
        requests,
    })
}

fn hold(actor: Actor<'_>, scope: &Selection, now: UtcMillis) -> Hold {
    let why = actor.reason.filter(|reason| !reason.trim().is_empty());
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    Hold {
        target: scope.target.clone().map(TargetName),
        action: scope.action,
        label: scope.label.clone(),
        kind: HoldKind::Operator,
        reason: format!("{} paused by {}{why}", name(scope), actor.who),
        since: now,
        until: None,
    }
}

fn name(scope: &Selection) -> String {
    scope_name(
        scope.target.as_deref(),
        scope.action.map(PowerAction::as_str),
        scope.label.as_deref(),
    )
}

pub(super) async fn resume(
    connection: &mut SqliteConnection,
    actor: Actor<'_>,
    scope: &Selection,
    what: LetGo,
) -> Result<Resumed, StoreError> {
    require_scope(scope)?;
    let waiting = count_queued(connection, scope).await?;
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    let removed = sqlx::query(
        "DELETE FROM holds WHERE kind = $1 AND target IS NOT DISTINCT FROM $2 AND action IS NOT DISTINCT FROM $3 AND label IS NOT DISTINCT FROM $4",
    )
    .bind(HoldKind::Operator.as_str())
    .bind(&scope.target)
    .bind(scope.action.map(PowerAction::as_str))
    .bind(&scope.label)
    .execute(&mut *tx)
    .await?;
    let mut resumed = Resumed {
        pauses: removed.rows_affected(),
        ..Resumed::default()
    };
    let mut words = said(scope);
    if let Some(label) = &scope.label
        && resumed.pauses == 0
        && scope.is_whole_label()
    {
        resumed.lets = Some(orders::let_go(&mut tx, label, what).await?);
        if what == LetGo::Rest {
            words.push_str(" --rest");
        }
    }
    if resumed.why_nothing().is_none() {
        resumed.requests = waiting;
    }
    note(
        &mut tx,
        actor,
        OperatorAction::Resume,
        &words,
        resumed.requests,
    )
    .await?;
    tx.commit().await?;
    Ok(resumed)
}

pub(super) async fn resume_all(
    connection: &mut SqliteConnection,
    actor: Actor<'_>,
) -> Result<Resumed, StoreError> {
    let waiting = count_queued(connection, &Selection::default()).await?;
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    let removed =
        sqlx::query("DELETE FROM holds WHERE kind = $1").bind(HoldKind::Operator.as_str());
    let pauses = removed.execute(&mut *tx).await?.rows_affected();
    let requests = if pauses > 0 { waiting } else { 0 };
    note(&mut tx, actor, OperatorAction::Resume, "--all", requests).await?;
    tx.commit().await?;
    Ok(Resumed {
        pauses,
        lets: None,
        requests,
    })
}

pub(super) async fn release(
    connection: &mut SqliteConnection,
    actor: Actor<'_>,
    drop: bool,
) -> Result<Option<u64>, StoreError> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    write_guard::acquire(&mut tx).await?;
    let lifted = sqlx::query("DELETE FROM holds WHERE kind = 'restored'")
        .execute(&mut *tx)
        .await?
        .rows_affected();
    let mut requests = 0;
    if lifted > 0 {
        requests = of_the_copy(&mut tx, drop).await?;
    }
    write_guard::release(&mut tx).await?;
    let words = if drop { "--drop" } else { "the restored copy" };
    note(&mut tx, actor, OperatorAction::Release, words, requests).await?;
    tx.commit().await?;
    Ok((lifted > 0).then_some(requests))
}

/// How many requests were queued in the copy; with `drop`, they are cancelled.
async fn of_the_copy(tx: &mut SqliteConnection, drop: bool) -> Result<u64, StoreError> {
    if drop {
        let dropped = sqlx::query(
            "UPDATE power_requests SET state = 'cancelled'
             WHERE state = 'queued' AND id <= (SELECT restored_last_id FROM queue_mark)",
        );
        return Ok(dropped.execute(tx).await?.rows_affected());
    }
    let mut query = QueryBuilder::<Sqlite>::new("SELECT count(*) FROM (");
    let all = Selection::default();
    all.push_ids(&mut query, &[RequestState::Queued], "");
    query.push(" AND r.id <= (SELECT restored_last_id FROM queue_mark))");
    let queued: i64 = query.build_query_scalar().fetch_one(tx).await?;
    Ok(u64::try_from(queued).unwrap_or(0))
}

/// How many requests are queued in this scope.
async fn count_queued(
    connection: &mut SqliteConnection,
    scope: &Selection,
) -> Result<u64, StoreError> {
    let mut query = match &scope.label {
        Some(label) => {
            let mut query =
                QueryBuilder::<Sqlite>::new("SELECT count(*) FROM power_requests WHERE label = ");
            query.push_bind(label.clone());
            query
        }
        None => {
            QueryBuilder::<Sqlite>::new("SELECT ifnull(sum(count), 0) FROM queue_overview WHERE 1")
        }
    };
    query.push(" AND state = 'queued'");
    if let Some(target) = &scope.target {
        query.push(" AND target = ").push_bind(target.clone());
    }
    if let Some(action) = scope.action {
        query.push(" AND action = ").push_bind(action.as_str());
    }
    let queued: i64 = query.build_query_scalar().fetch_one(connection).await?;
    Ok(u64::try_from(queued).unwrap_or(0))
}

/// The scope in the words of the command.
fn said(scope: &Selection) -> String {
    let words = scope.words();
    if words.is_empty() {
        "every action on every target".to_owned()
    } else {
        words
    }
}

/// A pause is about a target, an action, a label, or all of them; and about nothing that its maker
/// may not touch.
fn require_scope(scope: &Selection) -> Result<(), StoreError> {
    let plain = Selection {
        target: scope.target.clone(),
        action: scope.action,
        label: scope.label.clone(),
        allowed: scope.allowed.clone(),
        ..Selection::default()
    };
    if *scope != plain {
        return Err(StoreError::Refused(
            "a pause is about a target, an action, a label, or everything; not about single requests"
                .to_owned(),
        ));
    }
    let allowed = &scope.allowed;
    let is_target_allowed = allowed.targets.as_ref().is_none_or(|targets| {
        let target = scope.target.as_ref();
        target.is_some_and(|target| targets.contains(target))
    });
    let is_action_allowed = allowed.actions.as_ref().is_none_or(|actions| {
        let action = scope.action.as_ref();
        action.is_some_and(|action| actions.contains(action))
    });
    if is_target_allowed && is_action_allowed && allowed.requested_by.is_none() {
        return Ok(());
    }
    Err(StoreError::NotAllowed(format!(
        "you may not pause or resume {}",
        name(scope)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_paused_is_stored_with_the_reason() {
        let stops = Selection {
            action: Some(PowerAction::Stop),
            ..Selection::default()
        };
        let reason = |reason| {
            let alice = Actor {
                who: "alice",
                reason,
            };
            hold(alice, &stops, UtcMillis(0)).reason
        };
        assert_eq!(
            reason(Some("move")),
            "stop on every target paused by alice: move"
        );
        assert_eq!(reason(None), "stop on every target paused by alice");
        assert_eq!(reason(Some(" ")), "stop on every target paused by alice");
    }

    #[test]
    fn nobody_pauses_beyond_what_they_may_touch() {
        let mut scope = Selection::of_lane("eu", PowerAction::Stop);
        scope.allowed.targets = Some(vec!["eu".to_owned()]);
        assert!(require_scope(&scope).is_ok());
        scope.target = None;
        assert!(matches!(
            require_scope(&scope),
            Err(StoreError::NotAllowed(_))
        ));
        let ids = Selection::of_ids(vec![1]);
        assert!(matches!(require_scope(&ids), Err(StoreError::Refused(_))));
    }
}
