//! What people do to requests: cancel, retry, override windows. Each is one transaction that also
//! writes one row into `operator_actions`, whether it found many requests or none.
//!
//! Commands, the page and the API call the same functions. Pauses are in `pauses`, approval is in
//! `approve`.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::Serialize;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, FromRow, QueryBuilder, Sqlite};

use super::Selection;
use crate::model::{OperatorAction, PowerAction, RequestState};
use crate::store::StoreError;
use crate::store::sqlite::overrides;
use crate::store::sqlite::rows::list;

/// The longest reason, in characters.
const REASON_MAX: usize = 1024;

/// Who does something, and why.
#[derive(Debug, Clone, Copy)]
pub struct Actor<'a> {
    /// The login name, or the name of the token.
    pub who: &'a str,
    /// In their own words.
    pub reason: Option<&'a str>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Done {
    /// How many requests it was done to.
    pub done: u64,
    /// Each request that was meant, those left alone too, in the order of their ids. Empty where
    /// it is not about single requests: a pause, a resume, a release.
    pub results: Vec<RequestResult>,
}

/// What came of it for one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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
        "INSERT INTO operator_actions (who, action, what, requests, reason) VALUES (?, ?, ?, ?, ?)",
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

pub(super) async fn cancel(
    connection: &mut SqliteConnection,
    actor: Actor<'_>,
    which: &Selection,
) -> Result<Done, StoreError> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    which.require(&mut tx).await?;
    // What is on its way is named, too: somebody may have meant to stop it.
    let states = which.states_among(&[RequestState::Queued, RequestState::Running]);
    let found = find(&mut tx, which, &states).await?;
    let queued = found.iter().filter(|(_, state)| is_queued(state));
    let queued: Vec<i64> = queued.map(|(id, _)| *id).collect();
    sqlx::query(
        "UPDATE power_requests SET state = 'cancelled' WHERE id IN (SELECT value FROM json_each(?)) AND state = 'queued'",
    )
    .bind(list(&queued))
    .execute(&mut *tx)
    .await?;
    let mut results = barred(which, found.iter().map(|(id, _)| *id));
    for (id, state) in found {
        let known = state.parse().ok();
        let result = if is_queued(&state) {
            RequestResult::done(id, "is cancelled")
        } else {
            RequestResult::left(id, why_kept(&state, known))
        };
        results.push(result.in_state(known));
    }
    let done = Done::of(results);
    note(
        &mut tx,
        actor,
        OperatorAction::Cancel,
        &which.words(),
        done.done,
    )
    .await?;
    tx.commit().await?;
    Ok(done)
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
    tx: &mut SqliteConnection,
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
    Ok(query.build_query_as().fetch_all(tx).await?)
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
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    which.require(&mut tx).await?;
    let mut left = Vec::new();
    let mut again = Vec::new();
    let found = candidates(&mut tx, which, &wanted).await?;
    left.extend(barred(which, found.iter().map(|candidate| candidate.id)));
    for candidate in found {
        match candidate.why_skipped(&wanted, which.ids.is_some()) {
            Some(why) => left.push(
                RequestResult::left(candidate.id, why).in_state(candidate.state.parse().ok()),
            ),
            None => again.push(candidate.id),
        }
    }
    let new = copy(&mut tx, &again, actor.who).await?;
    let mut results = left;
    for (id, new_id) in again.into_iter().zip(new) {
        results.push(RequestResult {
            new_id: Some(new_id),
            ..RequestResult::done(id, format!("is tried again by request {new_id}"))
        });
    }
    let done = Done::of(results);
    note(
        &mut tx,
        actor,
        OperatorAction::Retry,
        &which.words(),
        done.done,
    )
    .await?;
    tx.commit().await?;
    Ok(done)
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
    tx: &mut SqliteConnection,
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
    Ok(query.build_query_as().fetch_all(tx).await?)
}

/// In SQL, so that a label of any bytes arrives as it is.
async fn copy(
    tx: &mut SqliteConnection,
    ids: &[i64],
    requested_by: &str,
) -> Result<Vec<i64>, StoreError> {
    let mut new: Vec<i64> = sqlx::query_scalar(
        "INSERT INTO power_requests (server_id, action, target, priority, label, requested_by)
         SELECT server_id, action, target, priority, label, ?2 FROM power_requests
         WHERE id IN (SELECT value FROM json_each(?1)) ORDER BY id RETURNING id",
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
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    which.require(&mut tx).await?;
    let states = which.states_among(&[RequestState::Queued]);
    let found = find(&mut tx, which, &states).await?;
    let queued = found.iter().filter(|(_, state)| is_queued(state));
    let queued: Vec<i64> = queued.map(|(id, _)| *id).collect();
    sqlx::query(
        "UPDATE power_requests SET override_reason = ?2 WHERE id IN (SELECT value FROM json_each(?1))",
    )
    .bind(list(&queued))
    .bind(reason)
    .execute(&mut *tx)
    .await?;
    overrides::mark_noted(&mut tx, &queued).await?;
    let mut results = barred(which, found.iter().map(|(id, _)| *id));
    for (id, state) in found {
        let known = state.parse().ok();
        let result = if is_queued(&state) {
            RequestResult::done(id, "leaves outside windows and freezes, too")
        } else {
            RequestResult::left(id, format!("is {state} and no longer queued"))
        };
        results.push(result.in_state(known));
    }
    let done = Done::of(results);
    note(
        &mut tx,
        actor,
        OperatorAction::Override,
        &which.words(),
        done.done,
    )
    .await?;
    tx.commit().await?;
    Ok(done)
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
