//! The opposite of what a label really switched: a query and an insert. A server that was switched
//! and is as it was before, as after a power cycle, is left alone.

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, FromRow};

use super::{Actor, Done, NewRequest, RequestResult, write};
use crate::model::{Evidence, PowerAction, RequestState};
use crate::store::StoreError;
use crate::store::sqlite::rows;

/// The longest label, in characters and in bytes.
const LABEL_MAX: (usize, usize) = (256, 1024);

/// What an undo would do, or has done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Undo {
    /// The label of the new requests.
    pub label: String,
    /// Servers to be switched on again.
    pub starts: u64,
    /// Servers to be switched off again.
    pub stops: u64,
    /// For each server, the newest request of the old label: with its new request, or with the
    /// reason why there is none.
    pub done: Done,
}

/// One request of the label.
#[derive(Debug, Clone, FromRow)]
struct Step {
    id: i64,
    target: String,
    server_id: String,
    action: String,
    state: String,
    evidence: Option<String>,
}

/// What is to become of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Switch(PowerAction),
    Leave(&'static str),
}

/// The label that the opposite of this one gets: `undo L`, cut to what a label may be.
pub fn undo_label(label: &str) -> String {
    let mut all = format!("undo {label}");
    let (characters, bytes) = LABEL_MAX;
    while all.chars().count() > characters || all.len() > bytes {
        all.pop();
    }
    all
}

/// What an undo of this label would do now.
pub(super) async fn preview(
    connection: &mut SqliteConnection,
    label: &str,
) -> Result<Undo, StoreError> {
    let mut undo = Undo {
        label: undo_label(label),
        ..Undo::default()
    };
    let mut results = Vec::new();
    for (last, verdict) in verdicts(connection, label).await? {
        let message = match verdict {
            Verdict::Switch(PowerAction::Start) => {
                undo.starts += 1;
                "is to be switched on again"
            }
            Verdict::Switch(_) => {
                undo.stops += 1;
                "is to be switched off again"
            }
            Verdict::Leave(why) => {
                results.push(RequestResult::left(last.id, why));
                continue;
            }
        };
        results.push(RequestResult::done(last.id, message));
    }
    undo.done = Done::of(results);
    Ok(undo)
}

/// Inserts the opposite. `seen`: as many servers must still be switched; none: as many as there are.
pub(super) async fn undo(
    connection: &mut SqliteConnection,
    actor: Actor<'_>,
    label: &str,
    seen: Option<u64>,
) -> Result<Undo, StoreError> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    let mut undo = preview(&mut tx, label).await?;
    if seen.is_some_and(|seen| seen != undo.done.done) {
        return Err(StoreError::Refused(format!(
            "{} servers can be switched back now, and not as many as were shown; nothing is done",
            undo.done.done
        )));
    }
    let mut requests = Vec::new();
    for (last, verdict) in verdicts(&mut tx, label).await? {
        if let Verdict::Switch(action) = verdict {
            requests.push(opposite(last, action, actor.who, &undo.label));
        }
    }
    let ids = write::insert_all(&mut tx, &requests).await?;
    let switched = undo.done.results.iter_mut().filter(|result| result.ok);
    for (result, new_id) in switched.zip(ids) {
        result.new_id = Some(new_id);
        result.message = format!("is undone by request {new_id}").into();
    }
    tx.commit().await?;
    Ok(undo)
}

fn opposite(last: Step, action: PowerAction, who: &str, label: &str) -> NewRequest {
    NewRequest {
        server_id: last.server_id,
        action: action.as_str().to_owned(),
        target: last.target,
        priority: 0,
        not_before: None,
        expires_at: None,
        after_id: None,
        request_key: None,
        label: Some(label.to_owned()),
        requested_by: Some(who.to_owned()),
        override_reason: None,
    }
}

/// For each server of the label its newest request and what is to become of it, by the ids of those.
async fn verdicts(
    connection: &mut SqliteConnection,
    label: &str,
) -> Result<Vec<(Step, Verdict)>, StoreError> {
    let steps: Vec<Step> = sqlx::query_as(
        "SELECT id, target, server_id, action, state, evidence FROM power_requests WHERE label = $1
         ORDER BY target, server_id, id",
    )
    .bind(label)
    .fetch_all(&mut *connection)
    .await?;
    let mut verdicts = Vec::new();
    for history in steps.chunk_by(is_same_server) {
        if let Some(last) = history.last() {
            verdicts.push((last.clone(), verdict(history)));
        }
    }
    verdicts.sort_by_key(|(last, _)| last.id);
    let switched = verdicts
        .iter()
        .filter(|(_, verdict)| matches!(verdict, Verdict::Switch(_)));
    let ids: Vec<i64> = switched.map(|(last, _)| last.id).collect();
    let overtaken = overtaken(connection, &ids).await?;
    for (last, verdict) in &mut verdicts {
        if overtaken.binary_search(&last.id).is_ok() {
            *verdict = Verdict::Leave("is left alone: its server has a later request");
        }
    }
    Ok(verdicts)
}

fn is_same_server(one: &Step, other: &Step) -> bool {
    one.target == other.target && one.server_id.eq_ignore_ascii_case(&other.server_id)
}

/// From all requests of one server, in the order of arrival: what was switched first tells how it was
/// before, what was switched last how it is now.
fn verdict(history: &[Step]) -> Verdict {
    let mut switched = Vec::new();
    for step in history {
        let action: Option<PowerAction> = step.action.parse().ok();
        let leaves_power = action.is_some_and(|action| action.leaves_no_mark());
        match step.state.parse() {
            Ok(RequestState::Queued | RequestState::Running) => {
                return Verdict::Leave("is left alone: it has not ended");
            }
            Ok(RequestState::Unknown) | Err(_) if !leaves_power => {
                return Verdict::Leave("is left alone: nobody can tell what became of it");
            }
            Ok(RequestState::Succeeded) if !leaves_power && !is_already(step) => {
                switched.extend(action);
            }
            _ => {}
        }
    }
    match (switched.first(), switched.last()) {
        (Some(first), Some(last)) if first == last => match last {
            PowerAction::Stop => Verdict::Switch(PowerAction::Start),
            PowerAction::Start => Verdict::Switch(PowerAction::Stop),
            PowerAction::Reboot => Verdict::Leave("is left alone: a reboot cannot be undone"),
        },
        (Some(_), _) => Verdict::Leave("is left alone: its server is as it was before"),
        (None, _) if history.iter().any(is_done_reboot) => {
            Verdict::Leave("is left alone: a reboot cannot be undone")
        }
        (None, _) => Verdict::Leave("is left alone: nothing was switched"),
    }
}

fn is_already(step: &Step) -> bool {
    step.evidence.as_deref() == Some(Evidence::Already.as_str())
}

fn is_done_reboot(step: &Step) -> bool {
    let action: Result<PowerAction, _> = step.action.parse();
    action.is_ok_and(|action| action.leaves_no_mark())
        && step.state == RequestState::Succeeded.as_str()
}

/// Those of these requests whose servers have a later one, sorted.
async fn overtaken(connection: &mut SqliteConnection, ids: &[i64]) -> Result<Vec<i64>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT r.id FROM json_each($1) j CROSS JOIN power_requests r ON r.id = j.value
         WHERE EXISTS (SELECT 1 FROM power_requests l WHERE l.in_line = 1
                       AND l.server_id = r.server_id AND l.target = r.target AND l.id > r.id)
            OR EXISTS (SELECT 1 FROM power_requests l WHERE l.in_line IS NULL AND l.gate IS NOT NULL
                       AND l.target = r.target AND l.server_id = r.server_id AND l.id > r.id)
            OR EXISTS (SELECT 1 FROM power_requests l WHERE l.in_line IS NULL AND l.gate IS NULL
                       AND l.server_id = r.server_id AND l.target = r.target AND l.id > r.id)
         ORDER BY r.id",
    )
    .bind(rows::list(ids))
    .fetch_all(connection)
    .await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(steps: &[(&str, &str, &str)]) -> Verdict {
        let history: Vec<Step> = steps
            .iter()
            .map(|(action, state, evidence)| Step {
                id: 1,
                target: "default".to_owned(),
                server_id: "a".to_owned(),
                action: (*action).to_owned(),
                state: (*state).to_owned(),
                evidence: Some((*evidence).to_owned()),
            })
            .collect();
        verdict(&history)
    }

    #[test]
    fn only_what_was_really_switched_is_switched_back() {
        let start = Verdict::Switch(PowerAction::Start);
        let stop = Verdict::Switch(PowerAction::Stop);
        assert_eq!(after(&[("stop", "succeeded", "job")]), start);
        assert_eq!(after(&[("start", "succeeded", "observed")]), stop);
        assert_eq!(
            after(&[("stop", "failed", "job"), ("stop", "succeeded", "job")]),
            start,
            "the second try"
        );
        assert_eq!(
            after(&[
                ("stop", "succeeded", "job"),
                ("stop", "succeeded", "already")
            ]),
            start
        );
        for history in [
            &[("stop", "succeeded", "already")][..],
            &[("stop", "failed", "refused")],
            &[("stop", "cancelled", "none")],
            &[("stop", "unknown", "none")],
            &[
                ("stop", "unknown", "none"),
                ("stop", "succeeded", "already"),
            ],
            &[("stop", "running", "")],
            &[("stop", "succeeded", "job"), ("start", "queued", "")],
            &[("reboot", "succeeded", "job")],
            &[("stop", "succeeded", "job"), ("start", "succeeded", "job")],
        ] {
            assert!(matches!(after(history), Verdict::Leave(_)), "{history:?}");
        }
    }

    #[test]
    fn the_label_of_an_undo_is_never_too_long() {
        assert_eq!(undo_label("kernel"), "undo kernel");
        let long = undo_label(&"x".repeat(256));
        assert_eq!(long.chars().count(), 256);
        assert!(undo_label(&"電".repeat(256)).len() <= 1024);
    }
}
