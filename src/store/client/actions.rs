//! What people do to requests: cancel, retry, override windows. Each first finds the requests that
//! are meant, by a read, and then changes those, some in each transaction, so that producers and the
//! daemon get the lock in between; what comes later is not touched. The first transaction also writes
//! the one row into `operator_actions`, whether it found many requests or none, so that nothing is
//! done that is not noted.
//!
//! Commands, the page and the API call the same functions. Pauses are in `pauses`, approval is in
//! `approve`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, FromRow, QueryBuilder, Sqlite, Transaction};
use utoipa::ToSchema;

use super::{NewRequest, Selection};
use crate::model::{OperatorAction, PowerAction, RequestState};
use crate::store::StoreError;
use crate::store::sqlite::overrides;
use crate::store::sqlite::rows::{list, lossy};

/// The longest reason, in characters.
const REASON_MAX: usize = 1024;
/// Requests changed in one transaction: a few milliseconds.
const CHUNK: usize = 200;
/// Between two of them: a waiting client of SQLite tries again after some milliseconds.
const CHUNK_PAUSE: Duration = Duration::from_millis(10);

/// Who does something, and why.
#[derive(Debug, Clone, Copy)]
pub struct Actor<'a> {
    /// The login name, or the name of the token.
    pub who: &'a str,
    /// In their own words.
    pub reason: Option<&'a str>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, ToSchema)]
pub struct Done {
    /// How many requests it was done to.
    pub done: u64,
    /// Each request that was meant, those left alone too, in the order of their ids. Empty where
    /// it is not about single requests: a pause, a resume, a release.
    pub results: Vec<RequestResult>,
}

/// What came of it for one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RequestResult {
    /// Which.
    pub id: i64,
    /// True if it was done to this one, just now.
    pub ok: bool,
    /// What was done, or why it was not: `request 7 {message}`.
    pub message: Cow<'static, str>,
    /// Of a retry: the new request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_id: Option<i64>,
    /// The state that it was found in.
    #[serde(skip)]
    pub state: Option<RequestState>,
}

impl Done {
    /// A result for each, and how many are `ok`.
    pub(super) fn of(mut results: Vec<RequestResult>) -> Self {
        results.sort_by_key(|result| result.id);
        let done = results.iter().filter(|result| result.ok).count();
        Self {
            done: u64::try_from(done).unwrap_or(u64::MAX),
            results,
        }
    }

    /// Those that it was not done to.
    pub fn left_alone(&self) -> impl Iterator<Item = &RequestResult> {
        self.results.iter().filter(|result| !result.ok)
    }
}

impl RequestResult {
    pub(super) fn done(id: i64, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            id,
            ok: true,
            message: message.into(),
            new_id: None,
            state: None,
        }
    }

    pub(super) fn left(id: i64, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            ok: false,
            ..Self::done(id, message)
        }
    }

    pub(super) fn in_state(mut self, state: Option<RequestState>) -> Self {
        self.state = state;
        self
    }
}

/// Appends what somebody did to the list of it. `what`: the selection as it was given.
///
/// # Errors
/// `Refused` for a reason that is too long.
pub(super) async fn note(
    tx: &mut SqliteConnection,
    actor: Actor<'_>,
    action: OperatorAction,
    what: &str,
    requests: u64,
) -> Result<(), StoreError> {
    let reason = actor.reason.filter(|reason| !reason.trim().is_empty());
    if reason.is_some_and(|reason| reason.chars().count() > REASON_MAX) {
        return Err(StoreError::Refused(format!(
            "a reason has at most {REASON_MAX} characters"
        )));
    }
    sqlx::query(
        "INSERT INTO operator_actions (who, action, what, requests, reason) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(actor.who)
    .bind(action.as_str())
    .bind(what)
    .bind(i64::try_from(requests).unwrap_or(i64::MAX))
    .bind(reason)
    .execute(tx)
    .await?;
    Ok(())
}

/// What somebody does, as it is noted.
#[derive(Clone, Copy)]
pub(super) struct Deed<'a> {
    pub(super) actor: Actor<'a>,
    pub(super) action: OperatorAction,
    pub(super) which: &'a Selection,
}

/// The parts of a deed, each for a transaction of its own; one without any requests if there are none.
pub(super) struct Chunks<'a> {
    deed: Deed<'a>,
    /// How many requests are meant, if they are too many for one transaction.
    meant: Option<usize>,
    left: Option<&'a [i64]>,
    is_first: bool,
}

impl<'a> Chunks<'a> {
    pub(super) fn of(deed: Deed<'a>, ids: &'a [i64]) -> Self {
        Self {
            deed,
            meant: (ids.len() > CHUNK).then_some(ids.len()),
            left: Some(ids),
            is_first: true,
        }
    }

    /// The next requests; none: all have been.
    pub(super) async fn next(&mut self) -> Option<&'a [i64]> {
        let left = self.left.take()?;
        if !self.is_first {
            tokio::time::sleep(CHUNK_PAUSE).await;
        }
        let (chunk, left) = left.split_at(left.len().min(CHUNK));
        self.left = (!left.is_empty()).then_some(left);
        Some(chunk)
    }

    /// Ends the transaction in which `done` of the present requests were changed. The first one notes
    /// the deed.
    pub(super) async fn commit(
        &mut self,
        mut tx: Transaction<'_, Sqlite>,
        done: usize,
    ) -> Result<(), StoreError> {
        if std::mem::take(&mut self.is_first) {
            let requests = self.meant.unwrap_or(done);
            let Deed {
                actor,
                action,
                which,
            } = self.deed;
            let requests = u64::try_from(requests).unwrap_or(u64::MAX);
            note(&mut tx, actor, action, &which.words(), requests).await?;
        }
        Ok(tx.commit().await?)
    }
}

pub(super) async fn cancel(
    connection: &mut SqliteConnection,
    actor: Actor<'_>,
    which: &Selection,
) -> Result<Done, StoreError> {
    which.require(connection).await?;
    // What is on its way is named, too: somebody may have meant to stop it.
    let states = which.states_among(&[RequestState::Queued, RequestState::Running]);
    let mut found = find(connection, which, &states).await?;
    let queued = found.iter().filter(|(_, state)| is_queued(state));
    let queued: Vec<i64> = queued.map(|(id, _)| *id).collect();
    let queued = last_first(connection, &queued).await?;
    let deed = Deed {
        actor,
        action: OperatorAction::Cancel,
        which,
    };
    let mut cancelled = BTreeSet::new();
    let mut chunks = Chunks::of(deed, &queued);
    while let Some(ids) = chunks.next().await {
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
        let some: Vec<i64> = sqlx::query_scalar(
            "UPDATE power_requests SET state = 'cancelled' WHERE id IN (SELECT value FROM json_each($1)) AND state = 'queued'
             RETURNING id",
        )
        .bind(list(ids))
        .fetch_all(&mut *tx)
        .await?;
        chunks.commit(tx, some.len()).await?;
        cancelled.extend(some);
    }
    see_again(connection, &mut found, &cancelled).await?;
    let mut results = barred(which, found.iter().map(|(id, _)| *id));
    for (id, state) in found {
        let known = state.parse().ok();
        let result = if cancelled.contains(&id) {
            RequestResult::done(id, "is cancelled").in_state(Some(RequestState::Queued))
        } else {
            RequestResult::left(id, why_kept(&state, known)).in_state(known)
        };
        results.push(result);
    }
    Ok(Done::of(results))
}

/// These requests in the order in which they are cancelled: the servers as the claim would take them,
/// and of each server its last request first, since the end of an earlier one lets the later ones go.
async fn last_first(
    connection: &mut SqliteConnection,
    ids: &[i64],
) -> Result<Vec<i64>, StoreError> {
    if ids.len() <= CHUNK {
        return Ok(ids.to_vec());
    }
    Ok(sqlx::query_scalar(
        "SELECT id FROM (
             SELECT r.id, min(-r.priority) OVER server AS priority, min(r.id) OVER server AS first
             FROM json_each($1) j CROSS JOIN power_requests r ON r.id = j.value
             WINDOW server AS (PARTITION BY r.target, r.server_id))
         ORDER BY priority, first, id DESC",
    )
    .bind(list(ids))
    .fetch_all(connection)
    .await?)
}

/// Of those that were queued and were not changed, the states that they have now.
async fn see_again(
    connection: &mut SqliteConnection,
    found: &mut [(i64, String)],
    changed: &BTreeSet<i64>,
) -> Result<(), StoreError> {
    let missed = found
        .iter()
        .filter(|(id, state)| is_queued(state) && !changed.contains(id));
    let missed: Vec<i64> = missed.map(|(id, _)| *id).collect();
    if missed.is_empty() {
        return Ok(());
    }
    let states: Vec<(i64, String)> = sqlx::query_as(
        "SELECT r.id, r.state FROM json_each($1) j CROSS JOIN power_requests r ON r.id = j.value",
    )
    .bind(list(&missed))
    .fetch_all(connection)
    .await?;
    let states: BTreeMap<i64, String> = states.into_iter().collect();
    for (id, state) in found {
        if let Some(now) = states.get(id) {
            state.clone_from(now);
        }
    }
    Ok(())
}

fn is_queued(state: &str) -> bool {
    state == RequestState::Queued.as_str()
}

fn why_kept(state: &str, known: Option<RequestState>) -> Cow<'static, str> {
    match known {
        Some(RequestState::Running) => {
            "could not be cancelled: it has already been sent to the cloud".into()
        }
        Some(RequestState::Cancelled) => "was already cancelled".into(),
        _ => format!("could not be cancelled: it has ended as {state}").into(),
    }
}

/// Ids with their states, those of the selection that are in one of `states`; by ids, in any.
async fn find(
    connection: &mut SqliteConnection,
    which: &Selection,
    states: &[RequestState],
) -> Result<Vec<(i64, String)>, StoreError> {
    if states.is_empty() && which.ids.is_none() {
        return Ok(Vec::new());
    }
    let mut query =
        QueryBuilder::<Sqlite>::new("SELECT id, state FROM power_requests WHERE id IN (");
    which.push_ids(&mut query, states, "");
    query.push(") ORDER BY id");
    Ok(query.build_query_as().fetch_all(connection).await?)
}

/// Of those that were named by id, the ones that are not among `found`: this person may not touch
/// them, or other words of the selection leave them out.
pub(super) fn barred(which: &Selection, found: impl Iterator<Item = i64>) -> Vec<RequestResult> {
    let Some(ids) = &which.ids else {
        return Vec::new();
    };
    let found: BTreeSet<i64> = found.collect();
    let named: BTreeSet<i64> = ids.iter().copied().collect();
    let why = if which.allowed.is_everything() {
        "is not among those that the other words select"
    } else {
        "is not one that you may change"
    };
    named
        .difference(&found)
        .map(|id| RequestResult::left(*id, why))
        .collect()
}

/// A request that may be tried again.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
struct Candidate {
    id: i64,
    server_id: String,
    action: String,
    state: String,
    /// A later request for the same server, if there is one.
    later_id: Option<i64>,
}

pub(super) async fn retry(
    connection: &mut SqliteConnection,
    actor: Actor<'_>,
    which: &Selection,
) -> Result<Done, StoreError> {
    let wanted = wanted_states(which)?;
    which.require(connection).await?;
    let is_by_id = which.ids.is_some();
    let found = candidates(connection, which, &wanted).await?;
    let mut results = barred(which, found.iter().map(|candidate| candidate.id));
    let (again, skipped) = sorted_out(found, &wanted, is_by_id);
    results.extend(skipped);
    let deed = Deed {
        actor,
        action: OperatorAction::Retry,
        which,
    };
    let mut chunks = Chunks::of(deed, &again);
    while let Some(ids) = chunks.next().await {
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
        // Somebody else may have tried them again meanwhile.
        let these = Selection::of_ids(ids.to_vec());
        let found = candidates(&mut tx, &these, &[]).await?;
        let (again, skipped) = sorted_out(found, &wanted, is_by_id);
        results.extend(skipped);
        let new = copy(&mut tx, &again, actor.who).await?;
        for (id, new_id) in again.iter().zip(&new) {
            results.push(RequestResult {
                new_id: Some(*new_id),
                ..RequestResult::done(*id, format!("is tried again by request {new_id}"))
            });
        }
        chunks.commit(tx, new.len()).await?;
    }
    Ok(Done::of(results))
}

/// Those that are tried again, and what is said of the others.
fn sorted_out(
    found: Vec<Candidate>,
    wanted: &[RequestState],
    is_by_id: bool,
) -> (Vec<i64>, Vec<RequestResult>) {
    let mut again = Vec::new();
    let mut skipped = Vec::new();
    for candidate in found {
        let Some(why) = candidate.why_skipped(wanted, is_by_id) else {
            again.push(candidate.id);
            continue;
        };
        let state = candidate.state.parse().ok();
        skipped.push(RequestResult::left(candidate.id, why).in_state(state));
    }
    (again, skipped)
}

/// The requests that `retry` would insert at this moment.
pub(super) async fn tried_again(
    connection: &mut SqliteConnection,
    which: &Selection,
) -> Result<Vec<NewRequest>, StoreError> {
    let wanted = wanted_states(which)?;
    which.require(connection).await?;
    let found = candidates(connection, which, &wanted).await?;
    let again = found.iter().filter(|candidate| {
        candidate
            .why_skipped(&wanted, which.ids.is_some())
            .is_none()
    });
    let ids = list(again.map(|candidate| &candidate.id));
    let rows: Vec<AgainRow> = sqlx::query_as(
        "SELECT r.server_id, r.action, r.target, r.priority, CAST(r.label AS BLOB) AS label
         FROM json_each($1) j CROSS JOIN power_requests r ON r.id = j.value ORDER BY r.id",
    )
    .bind(ids)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(AgainRow::into_request).collect())
}

#[derive(FromRow)]
struct AgainRow {
    server_id: String,
    action: String,
    target: String,
    priority: i64,
    label: Option<Vec<u8>>,
}

impl AgainRow {
    fn into_request(self) -> NewRequest {
        NewRequest {
            server_id: self.server_id,
            action: self.action,
            target: self.target,
            priority: self.priority,
            label: self.label.map(lossy),
            ..NewRequest::default()
        }
    }
}

/// By ids also what is unknown, because somebody has looked at each.
fn wanted_states(which: &Selection) -> Result<Vec<RequestState>, StoreError> {
    if let Some(open) = which.states.iter().find(|state| !state.is_terminal()) {
        return Err(StoreError::Refused(format!(
            "state {open}: only requests that have ended can be tried again"
        )));
    }
    Ok(if !which.states.is_empty() {
        which.states.clone()
    } else if which.ids.is_some() {
        vec![RequestState::Failed, RequestState::Unknown]
    } else {
        vec![RequestState::Failed]
    })
}

impl Candidate {
    /// Why it is not tried again; none if it is. A reboot that may have happened is repeated only
    /// if somebody names it.
    fn why_skipped(&self, wanted: &[RequestState], is_by_id: bool) -> Option<String> {
        let state: Option<RequestState> = self.state.parse().ok();
        if state.is_some_and(|state| !state.is_terminal()) {
            return Some(format!("is {} and has not ended", self.state));
        }
        if !state.is_some_and(|state| wanted.contains(&state)) {
            return Some(format!(
                "ended as {state}; add --state {state} to try it again",
                state = self.state
            ));
        }
        let action: Option<PowerAction> = self.action.parse().ok();
        let is_harmless = action.is_some_and(|action| !action.leaves_no_mark());
        if state == Some(RequestState::Unknown) && !is_harmless && !is_by_id {
            return Some(
                "is a reboot that may have happened; name its id to try it again".to_owned(),
            );
        }
        let later = self.later_id?;
        Some(format!(
            "server {} has a later request, {later}",
            self.server_id
        ))
    }
}

async fn candidates(
    connection: &mut SqliteConnection,
    which: &Selection,
    states: &[RequestState],
) -> Result<Vec<Candidate>, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT r.id, r.server_id, r.action, r.state,
                nullif(max(
                    ifnull((SELECT max(l.id) FROM power_requests l WHERE l.in_line = 1
                            AND l.server_id = r.server_id AND l.target = r.target AND l.id > r.id), 0),
                    ifnull((SELECT max(l.id) FROM power_requests l WHERE l.in_line IS NULL AND l.gate IS NOT NULL
                            AND l.target = r.target AND l.server_id = r.server_id AND l.id > r.id), 0),
                    ifnull((SELECT max(l.id) FROM power_requests l WHERE l.in_line IS NULL AND l.gate IS NULL
                            AND l.server_id = r.server_id AND l.target = r.target AND l.id > r.id), 0)), 0) AS later_id
         FROM power_requests r WHERE r.id IN (",
    );
    which.push_ids(&mut query, states, "");
    query.push(") ORDER BY r.id");
    Ok(query.build_query_as().fetch_all(connection).await?)
}

/// In SQL, so that a label of any bytes arrives as it is.
async fn copy(
    tx: &mut SqliteConnection,
    ids: &[i64],
    requested_by: &str,
) -> Result<Vec<i64>, StoreError> {
    let mut new: Vec<i64> = sqlx::query_scalar(
        "INSERT INTO power_requests (server_id, action, target, priority, label, requested_by)
         SELECT server_id, action, target, priority, label, $2 FROM power_requests
         WHERE id IN (SELECT value FROM json_each($1)) ORDER BY id RETURNING id",
    )
    .bind(list(ids))
    .bind(requested_by)
    .fetch_all(tx)
    .await?;
    // Ids are given in the order of insertion; RETURNING promises none.
    new.sort_unstable();
    Ok(new)
}

pub(super) async fn override_windows(
    connection: &mut SqliteConnection,
    actor: Actor<'_>,
    which: &Selection,
) -> Result<Done, StoreError> {
    let Some(reason) = actor.reason.filter(|reason| !reason.trim().is_empty()) else {
        return Err(StoreError::Refused(
            "requests leave outside windows and freezes only for a reason; give one".to_owned(),
        ));
    };
    which.require(connection).await?;
    let states = which.states_among(&[RequestState::Queued]);
    let mut found = find(connection, which, &states).await?;
    let queued = found.iter().filter(|(_, state)| is_queued(state));
    let queued: Vec<i64> = queued.map(|(id, _)| *id).collect();
    let deed = Deed {
        actor,
        action: OperatorAction::Override,
        which,
    };
    let mut changed = BTreeSet::new();
    let mut chunks = Chunks::of(deed, &queued);
    while let Some(ids) = chunks.next().await {
        let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
        let some: Vec<i64> = sqlx::query_scalar(
            "UPDATE power_requests SET override_reason = $2 WHERE id IN (SELECT value FROM json_each($1)) AND state = 'queued'
             RETURNING id",
        )
        .bind(list(ids))
        .bind(reason)
        .fetch_all(&mut *tx)
        .await?;
        overrides::mark_noted(&mut tx, &some).await?;
        chunks.commit(tx, some.len()).await?;
        changed.extend(some);
    }
    see_again(connection, &mut found, &changed).await?;
    let mut results = barred(which, found.iter().map(|(id, _)| *id));
    for (id, state) in found {
        let known = state.parse().ok();
        let result = if changed.contains(&id) {
            RequestResult::done(id, "leaves outside windows and freezes, too")
        } else {
            RequestResult::left(id, format!("is {state} and no longer queued"))
        };
        results.push(result.in_state(known));
    }
    Ok(Done::of(results))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(action: &str, state: &str) -> Candidate {
        Candidate {
            id: 1,
            server_id: "s".to_owned(),
            action: action.to_owned(),
            state: state.to_owned(),
            later_id: None,
        }
    }

    #[test]
    fn an_unknown_reboot_is_repeated_only_by_its_id() {
        let unknown = [RequestState::Unknown];
        assert!(
            ended("reboot", "unknown")
                .why_skipped(&unknown, false)
                .is_some()
        );
        assert!(
            ended("stop", "unknown")
                .why_skipped(&unknown, false)
                .is_none()
        );
        assert!(
            ended("reboot", "unknown")
                .why_skipped(&unknown, true)
                .is_none()
        );
    }

    #[test]
    fn a_later_request_for_the_server_speaks_against_it() {
        let failed = Candidate {
            later_id: Some(9),
            ..ended("stop", "failed")
        };
        let why = failed.why_skipped(&[RequestState::Failed], true);
        assert!(why.as_ref().is_some_and(|why| why.contains('9')), "{why:?}");
    }

    #[test]
    fn unfinished_states_cannot_be_asked_for() {
        let running = Selection {
            states: vec![RequestState::Running],
            ..Selection::of_label("x")
        };
        assert!(wanted_states(&running).is_err());
        let label = Selection::of_label("x");
        assert_eq!(
            wanted_states(&label).expect("the default"),
            [RequestState::Failed]
        );
    }
}
