//! What became of a label, whether or not it has waves: of each server the newest request counts.
//! For `status --label`, `report`, the page and the API. Writes nothing.
//!
//! It costs as much as the label has requests, and as much as waits in the lanes of those that are
//! next; nothing else in the queue matters.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use sqlx::sqlite::SqliteConnection;
use sqlx::{FromRow, QueryBuilder, Sqlite};

use super::glance::{in_order_of_view, usual_ms};
use super::{HoldRecord, OrderRecord, RequestRecord, orders, read};
use crate::model::{PowerAction, RequestState, Service, UtcMillis};
use crate::store::StoreError;
use crate::store::sqlite::rows;

/// A label at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LabelView {
    /// Which.
    pub label: String,
    /// When it was looked at.
    pub as_of: UtcMillis,
    /// Servers that it has requests for, in all targets.
    pub servers: u64,
    /// Requests that it has.
    pub requests: u64,
    /// What became of them.
    #[serde(flatten)]
    pub counts: LabelCounts,
    /// How those ended that did not succeed, the most frequent first.
    pub not_succeeded: Vec<LabelOutcome>,
    /// Why those wait that are queued, the most frequent first.
    pub waiting: Vec<WaitingReason>,
    /// When one of its requests was inserted, sent, or ended last.
    pub last_moved_at: Option<String>,
    /// When the last of them is expected to end; none: nothing is unfinished, or it is not known.
    pub expected_end: Option<UtcMillis>,
    /// Why that is not known.
    pub no_expectation: Option<String>,
    /// Its waves, if it has any.
    pub order: Option<OrderRecord>,
}

/// Servers by their newest requests. Each is in one of the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct LabelCounts {
    /// Servers that were switched off, and not since: their newest request is a stop that succeeded.
    pub off: u64,
    /// Servers that were switched on.
    pub on: u64,
    /// Servers that were rebooted.
    pub rebooted: u64,
    /// Servers whose newest request has failed.
    pub failed: u64,
    /// Servers of which nobody can tell.
    pub unknown: u64,
    /// Servers whose newest request was cancelled, has expired or was rejected.
    pub left_out: u64,
    /// Servers whose newest request runs.
    pub running: u64,
    /// Servers whose newest request is queued.
    pub queued: u64,
}

/// How many servers' newest requests have ended in one way other than success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LabelOutcome {
    /// What was asked for.
    pub action: String,
    /// How it ended.
    pub state: String,
    /// The cloud's code or ours.
    pub error_code: Option<String>,
    /// What one of them says.
    pub error_message: Option<String>,
    /// How many.
    pub servers: u64,
    /// The first of them.
    pub first_id: i64,
}

/// How many servers' newest requests wait for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WaitingReason {
    /// As `power_waiting` says it, without what differs from request to request.
    pub reason: String,
    /// When it ends automatically, as far as that is known.
    pub until: Option<String>,
    /// How many.
    pub servers: u64,
    /// The first of them.
    pub first_id: i64,
}

/// The newest requests that have all of this in common.
#[derive(FromRow)]
struct Group {
    target: String,
    action: String,
    state: String,
    error_code: Option<Vec<u8>>,
    error_message: Option<Vec<u8>>,
    gate: Option<String>,
    is_approved: bool,
    has_override: bool,
    is_let_go: bool,
    /// When the first of them may go, if they wait for a time.
    first_at: Option<String>,
    servers: i64,
    first_id: i64,
}

/// All requests of a label.
#[derive(FromRow)]
struct Whole {
    requests: i64,
    last_moved_at: Option<String>,
}

/// The label's view; none if no request has it, or none of the `targets` that may be seen.
pub(super) async fn view(
    connection: &mut SqliteConnection,
    label: &str,
    targets: Option<&[String]>,
    now: UtcMillis,
) -> Result<Option<LabelView>, StoreError> {
    let whole = whole(connection, label, targets).await?;
    if whole.requests == 0 {
        return Ok(None);
    }
    let groups = groups(connection, label, targets).await?;
    let holds = read::holds(connection, now).await?;
    let waiting = waiting(&groups, &in_order_of_view(&holds), label, now);
    let expected = expected_end(connection, label, targets, &groups, &waiting, now).await?;
    let mut counts = LabelCounts::default();
    for group in &groups {
        *counts.place_of(group) += count(group.servers);
    }
    Ok(Some(LabelView {
        label: label.to_owned(),
        as_of: now,
        servers: groups.iter().map(|group| count(group.servers)).sum(),
        requests: count(whole.requests),
        counts,
        not_succeeded: not_succeeded(&groups),
        waiting: grouped(waiting),
        last_moved_at: whole.last_moved_at,
        expected_end: expected.as_ref().ok().copied().flatten(),
        no_expectation: expected.err(),
        order: orders::order(connection, label).await?,
    }))
}

impl LabelCounts {
    /// Servers of which something is to come.
    pub fn unfinished(&self) -> u64 {
        self.running + self.queued
    }

    fn place_of(&mut self, group: &Group) -> &mut u64 {
        match group.state.parse() {
            Ok(RequestState::Succeeded) => match group.action.parse() {
                Ok(PowerAction::Stop) => &mut self.off,
                Ok(PowerAction::Start) => &mut self.on,
                Ok(PowerAction::Reboot) | Err(_) => &mut self.rebooted,
            },
            Ok(RequestState::Failed) => &mut self.failed,
            Ok(RequestState::Queued) => &mut self.queued,
            Ok(RequestState::Running) => &mut self.running,
            Ok(RequestState::Cancelled | RequestState::Expired | RequestState::Rejected) => {
                &mut self.left_out
            }
            Ok(RequestState::Unknown) | Err(_) => &mut self.unknown,
        }
    }
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

async fn whole(
    connection: &mut SqliteConnection,
    label: &str,
    targets: Option<&[String]>,
) -> Result<Whole, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT count(*) AS requests,
                nullif(max(ifnull(max(created_at), ''), ifnull(max(submitted_at), ''), ifnull(max(finished_at), '')), '')
                    AS last_moved_at
         FROM power_requests WHERE label = ",
    );
    query.push_bind(label.to_owned());
    push_targets(&mut query, targets);
    Ok(query.build_query_as().fetch_one(connection).await?)
}

fn push_targets(query: &mut QueryBuilder<Sqlite>, targets: Option<&[String]>) {
    if let Some(targets) = targets {
        query
            .push(" AND +target IN (SELECT value FROM json_each(")
            .push_bind(serde_json::to_string(targets).unwrap_or_default())
            .push("))");
    }
}

/// The newest request of each server of the label.
fn push_newest(query: &mut QueryBuilder<Sqlite>, label: &str, targets: Option<&[String]>) {
    query
        .push("SELECT max(id) FROM power_requests WHERE label = ")
        .push_bind(label.to_owned());
    push_targets(query, targets);
    query.push(" GROUP BY target, server_id");
}

async fn groups(
    connection: &mut SqliteConnection,
    label: &str,
    targets: Option<&[String]>,
) -> Result<Vec<Group>, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT r.target, r.action, r.state, CAST(r.error_code AS BLOB) AS error_code,
                CAST(min(r.error_message) AS BLOB) AS error_message, r.gate, r.approved_by IS NOT NULL AS is_approved,
                r.override_reason IS NOT NULL AS has_override, r.wave IS NOT NULL AS is_let_go,
                min(CASE r.gate WHEN 'later' THEN r.eligible_at WHEN 'retry' THEN r.retry_at END) AS first_at,
                count(*) AS servers, min(r.id) AS first_id
         FROM power_requests r WHERE r.id IN (",
    );
    push_newest(&mut query, label, targets);
    query.push(
        ") GROUP BY r.target, r.action, r.state, r.error_code, r.gate, is_approved, has_override, is_let_go
           ORDER BY min(r.id)",
    );
    Ok(query.build_query_as().fetch_all(connection).await?)
}

/// By action, state and error, whatever the target.
fn not_succeeded(groups: &[Group]) -> Vec<LabelOutcome> {
    let mut found: BTreeMap<(&str, &str, &Option<Vec<u8>>), LabelOutcome> = BTreeMap::new();
    for group in groups {
        let state: Result<RequestState, _> = group.state.parse();
        if !state.is_ok_and(|state| state.is_terminal() && state != RequestState::Succeeded) {
            continue;
        }
        let key = (
            group.action.as_str(),
            group.state.as_str(),
            &group.error_code,
        );
        let outcome = found.entry(key).or_insert_with(|| LabelOutcome {
            action: group.action.clone(),
            state: group.state.clone(),
            error_code: group.error_code.clone().map(rows::lossy),
            error_message: group.error_message.clone().map(rows::lossy),
            servers: 0,
            first_id: group.first_id,
        });
        outcome.servers += count(group.servers);
    }
    let mut found: Vec<LabelOutcome> = found.into_values().collect();
    found.sort_by_key(|outcome| (std::cmp::Reverse(outcome.servers), outcome.first_id));
    found
}

/// What holds a group back.
enum Why {
    /// It is next.
    Nothing,
    /// In words, and until when.
    Because(String, Option<String>),
}

/// Why each of the groups that are queued waits.
fn waiting<'a>(
    groups: &'a [Group],
    holds: &[&HoldRecord],
    label: &str,
    now: UtcMillis,
) -> Vec<(&'a Group, Why)> {
    let queued = groups
        .iter()
        .filter(|group| group.state == RequestState::Queued.as_str());
    queued
        .map(|group| (group, why(group, holds, label, &now.to_string())))
        .collect()
}

/// As `power_waiting` decides it. A request that nobody has found to be behind another one yet
/// counts as held or next.
fn why(group: &Group, holds: &[&HoldRecord], label: &str, now: &str) -> Why {
    let first_at = group.first_at.clone().filter(|at| at.as_str() > now);
    match (group.gate.as_deref(), first_at) {
        (Some("after"), _) => return Why::Because("waits for another request".to_owned(), None),
        (Some("later"), Some(at)) => {
            return Why::Because(format!("not due until {at}, or later"), Some(at));
        }
        (Some("behind"), _) => {
            return Why::Because("behind another request of its server".to_owned(), None);
        }
        _ => {}
    }
    let like = RequestRecord {
        target: group.target.clone(),
        action: group.action.clone(),
        label: Some(label.to_owned()),
        approved_by: group.is_approved.then(String::new),
        override_reason: group.has_override.then(String::new),
        wave: group.is_let_go.then_some(1),
        ..RequestRecord::default()
    };
    if let Some(hold) = holds.iter().find(|hold| hold.is_about(&like)) {
        return Why::Because(format!("held: {}", hold.reason), hold.until.clone());
    }
    match (group.gate.as_deref(), group.first_at.clone()) {
        (Some("held"), _) => {
            Why::Because("held: its turn in its order has not come".to_owned(), None)
        }
        (Some("retry"), Some(at)) if at.as_str() > now => {
            Why::Because(format!("retry at {at}, or later"), Some(at))
        }
        _ => Why::Nothing,
    }
}

fn grouped(waiting: Vec<(&Group, Why)>) -> Vec<WaitingReason> {
    let mut found: BTreeMap<(String, Option<String>), WaitingReason> = BTreeMap::new();
    for (group, why) in waiting {
        let (reason, until) = match why {
            Why::Nothing => ("next".to_owned(), None),
            Why::Because(reason, until) => (reason, until),
        };
        let key = (reason.clone(), until.clone());
        let entry = found.entry(key).or_insert_with(|| WaitingReason {
            reason,
            until,
            servers: 0,
            first_id: group.first_id,
        });
        entry.servers += count(group.servers);
        entry.first_id = entry.first_id.min(group.first_id);
    }
    let mut found: Vec<WaitingReason> = found.into_values().collect();
    found.sort_by_key(|reason| (std::cmp::Reverse(reason.servers), reason.first_id));
    found
}

/// When the last of them may end: by how long the last jobs took, by the pace that the daemon has
/// noted, and by the most servers that a call of the service takes. `Err`: why that is not known.
/// `Ok(None)`: nothing is unfinished.
async fn expected_end(
    connection: &mut SqliteConnection,
    label: &str,
    targets: Option<&[String]>,
    groups: &[Group],
    waiting: &[(&Group, Why)],
    now: UtcMillis,
) -> Result<Result<Option<UtcMillis>, String>, StoreError> {
    let held: u64 = waiting
        .iter()
        .filter(|(_, why)| matches!(why, Why::Because(..)))
        .map(|(group, _)| count(group.servers))
        .sum();
    if held > 0 {
        return Ok(Err(format!("held or waiting for something else: {held}")));
    }
    let mut end = None;
    for batch in running(connection, label, targets).await? {
        let Some(usual) = usual_duration(connection, &batch.target, &batch.action).await? else {
            return Ok(Err(no_history(&batch.target, &batch.action)));
        };
        let at = batch.since.as_deref().and_then(|since| since.parse().ok());
        let at = at.unwrap_or(now) + usual;
        if at <= now {
            return Ok(Err(format!("batch {} takes longer than usual", batch.id)));
        }
        end = end.max(Some(at));
    }
    let mut next: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (group, _) in waiting {
        let actions = next.entry(group.target.as_str()).or_default();
        if !actions.contains(&group.action.as_str()) {
            actions.push(&group.action);
        }
    }
    for (target, actions) in next {
        let mut calls = 0;
        let mut longest = Duration::ZERO;
        let Some(pace) = pace_of(connection, target).await? else {
            return Ok(Err(format!(
                "no daemon has noted the pace of target {target}"
            )));
        };
        for action in actions {
            calls += calls_of(connection, target, action, pace.servers_a_call).await?;
            let Some(usual) = usual_duration(connection, target, action).await? else {
                return Ok(Err(no_history(target, action)));
            };
            longest = longest.max(usual);
        }
        let leaving = Duration::from_secs(60).mul_f64(calls as f64 / pace.calls_a_minute);
        end = end.max(Some(now + leaving + longest));
    }
    let is_unfinished = groups.iter().any(|group| {
        group
            .state
            .parse()
            .is_ok_and(|state: RequestState| !state.is_terminal())
    });
    Ok(match end {
        None if is_unfinished => Err("what runs has no batch".to_owned()),
        end => Ok(end),
    })
}

fn no_history(target: &str, action: &str) -> String {
    format!("no {action} on target {target} has shown yet how long it takes")
}

/// An open batch of the label.
#[derive(FromRow)]
struct OpenBatch {
    id: i64,
    target: String,
    action: String,
    since: Option<String>,
}

async fn running(
    connection: &mut SqliteConnection,
    label: &str,
    targets: Option<&[String]>,
) -> Result<Vec<OpenBatch>, StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT b.id, b.target, b.action, ifnull(b.submitted_at, b.intent_at) AS since FROM batches b
         WHERE b.state <> 'done' AND EXISTS (SELECT 1 FROM power_requests r WHERE r.state = 'running' AND r.batch_id = b.id
             AND r.label = ",
    );
    query.push_bind(label.to_owned()).push(")");
    push_targets(&mut query, targets);
    query.push(" ORDER BY b.id");
    Ok(query.build_query_as().fetch_all(connection).await?)
}

/// How long the middle one of the last jobs took; none without any.
async fn usual_duration(
    connection: &mut SqliteConnection,
    target: &str,
    action: &str,
) -> Result<Option<Duration>, StoreError> {
    let usual = usual_ms(connection, target, action).await?;
    Ok(usual.map(|ms| Duration::from_millis(count(ms))))
}

/// How fast a target's requests leave at best.
struct Pace {
    calls_a_minute: f64,
    servers_a_call: u64,
}

async fn pace_of(
    connection: &mut SqliteConnection,
    target: &str,
) -> Result<Option<Pace>, StoreError> {
    let found: Option<(i64, String)> = sqlx::query_as(
        "SELECT CAST(pace_per_minute AS INTEGER), service FROM targets WHERE target = $1",
    )
    .bind(target)
    .fetch_optional(connection)
    .await?;
    Ok(found.and_then(|(calls, service)| {
        let service: Service = service.parse().ok()?;
        Some(Pace {
            calls_a_minute: f64::from(rows::count(calls.max(1))),
            servers_a_call: u64::from(service.batch_servers_cap()),
        })
    }))
}

/// Calls that all of a lane's requests take, also those of other labels.
async fn calls_of(
    connection: &mut SqliteConnection,
    target: &str,
    action: &str,
    servers_a_call: u64,
) -> Result<u64, StoreError> {
    let ready: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM power_requests WHERE gate = 'ready' AND target = $1 AND action = $2",
    )
    .bind(target)
    .bind(action)
    .fetch_one(connection)
    .await?;
    Ok(count(ready).div_ceil(servers_a_call))
}
