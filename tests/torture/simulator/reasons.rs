//! Whether what `power_waiting` says of each request is true, when the daemon has nothing left to
//! do: nothing waits without a reason, and no reason is made up. Pure.

use std::time::Duration;

use super::Broken;
use super::facts::{Facts, Moment, Request};
use super::rules::{self, hold};
use super::{guards, orders};
use poweryard::model::{PowerAction, RequestState, TargetName, UtcMillis};

/// Calls a minute let the next request leave within this.
const PACE_MAX: Duration = Duration::from_secs(70);

/// A row of `holds`.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(super) struct HoldFact {
    pub(super) target: Option<String>,
    pub(super) action: Option<String>,
    pub(super) label: Option<String>,
    pub(super) kind: String,
    pub(super) reason: String,
    pub(super) until: Option<String>,
}

impl HoldFact {
    fn is_about(&self, request: &Request) -> bool {
        let wish = &request.wish;
        let is_same =
            |held: &Option<String>, own: &str| held.as_deref().is_none_or(|held| held == own);
        is_same(&self.target, &wish.target.0)
            && is_same(&self.action, wish.action.as_str())
            && (self.label.is_none() || self.label == wish.label)
    }

    fn until(&self) -> Option<UtcMillis> {
        self.until.as_ref().and_then(|until| until.parse().ok())
    }
}

/// What the queue says at one moment.
pub(super) struct Said {
    pub(super) holds: Vec<HoldFact>,
    /// Request and reason.
    pub(super) waiting: Vec<(i64, String)>,
    /// When the daemon wakes without anybody's doing.
    pub(super) wakes_in: Option<Duration>,
}

/// Checks all of it.
pub(super) fn check(facts: &Facts, said: &Said, now: Moment) -> Result<(), Broken> {
    for (id, reason) in &said.waiting {
        let Some(request) = facts.requests.get(id) else {
            continue;
        };
        let is_true = is_true(facts, said, (*id, request), reason, now);
        hold!(
            is_true,
            "request {id} waits, and that is not true: {reason} ({:?}, wave {:?}, wakes in {:?}, {:?})",
            request.wish,
            request.wave,
            said.wakes_in,
            request
                .wish
                .label
                .as_ref()
                .and_then(|label| facts.orders.get(label))
        );
    }
    check_guards(facts, said, now)?;
    orders::check_done(facts)
}

fn is_true(
    facts: &Facts,
    said: &Said,
    (id, request): (i64, &Request),
    reason: &str,
    now: Moment,
) -> bool {
    let wish = &request.wish;
    let number = |text: &str| text.parse::<i64>().ok();
    let is_ahead = |text: &str| text.parse::<UtcMillis>().is_ok_and(|at| at > now.utc);
    if let Some(held) = reason.strip_prefix("held: ") {
        let holds = said.holds.iter();
        let mut causes =
            holds.filter(|hold| held.starts_with(&hold.reason) && hold.is_about(request));
        return causes.any(|cause| is_held(facts, cause, (id, request), now));
    }
    if let Some(awaited) = reason.strip_prefix("waits for request ").and_then(number) {
        let state = facts.requests.get(&awaited).map(|awaited| awaited.state);
        return wish.after == Some(awaited) && state.is_some_and(|state| !state.is_terminal());
    }
    if let Some(other) = reason.strip_prefix("behind request ").and_then(number) {
        let is_earlier = other < id;
        return facts.requests.get(&other).is_some_and(|other| {
            let is_before = is_earlier || other.state == RequestState::Running;
            is_before && !other.state.is_terminal() && other.wish.place() == wish.place()
        });
    }
    if let Some(at) = reason.strip_prefix("not due until ") {
        return is_ahead(at) && (wish.not_before.is_some() || facts.stepped > Duration::ZERO);
    }
    if let Some(at) = reason.strip_prefix("retry at ") {
        return is_ahead(at);
    }
    // It could leave: it does once the pace, or what the cloud asked for, lets it.
    let asked_until = facts.asked_until.get(&wish.target);
    let is_throttled = asked_until.is_some_and(|until| *until > now.real);
    let is_paced = said.wakes_in.is_some_and(|wait| wait <= PACE_MAX);
    reason == "next" && (is_throttled || is_paced)
}

fn is_held(facts: &Facts, hold: &HoldFact, (id, request): (i64, &Request), now: Moment) -> bool {
    let wish = &request.wish;
    let limits = facts.limits.targets.get(&wish.target);
    let is_ahead = hold.until().is_some_and(|until| until > now.utc);
    match hold.kind.as_str() {
        "operator" => rules::is_paused(facts, request),
        "window" => {
            let Some(calendar) = limits.map(|limits| &limits.calendar) else {
                return false;
            };
            let opens = hold.until().is_none_or(|until| {
                calendar.is_open(wish.action, until)
                    && !calendar.is_open(wish.action, until.before(Duration::from_millis(1)))
            });
            !wish.has_override && !calendar.is_open(wish.action, now.utc) && opens
        }
        "approval" => {
            let guards = limits
                .map(|limits| limits.guards.as_slice())
                .unwrap_or_default();
            let has_guard = guards.iter().any(|(action, _)| *action == wish.action);
            has_guard && !wish.is_approved
        }
        "budget" => {
            let budgets = limits
                .map(|limits| limits.budgets.as_slice())
                .unwrap_or_default();
            is_ahead && budgets.iter().any(|(action, _)| *action == wish.action)
        }
        "wave" => orders::is_reason_true(facts, id, &hold.reason, now),
        "restored" => facts.awaits_release || facts.is_older,
        "unknown_target" => limits.is_none(),
        "breaker" | "credentials" => is_ahead || hold.until.is_none(),
        _ => false,
    }
}

/// A guard that is exceeded holds what waits, whatever else does, and no other guard does.
fn check_guards(facts: &Facts, said: &Said, now: Moment) -> Result<(), Broken> {
    for (target, limits) in &facts.limits.targets {
        for (action, guard) in &limits.guards {
            let crowd = guards::count(facts, (target, *action), *guard, now);
            let is_exceeded = crowd.due > 0 && crowd.due + crowd.left > guard.servers as usize;
            let is_held = has_approval_hold(said, target, *action);
            hold!(
                !is_exceeded || is_held,
                "{} unapproved requests to {action} at {target} are due, {} left in the span, of {}, and no hold says so",
                crowd.due,
                crowd.left,
                guard.servers
            );
            let is_plain = facts.stepped == Duration::ZERO && !facts.awaits_release;
            let doubtful = guards::count_refused(facts, (target, *action), *guard, now);
            let may_be = crowd.due + crowd.left + doubtful + facts.uncertain(target, *action, now);
            hold!(
                !is_held || !is_plain || may_be > guard.servers as usize,
                "unapproved requests to {action} at {target} are held for approval: {} due, {} left, of {}",
                crowd.due,
                crowd.left,
                guard.servers
            );
        }
    }
    Ok(())
}

fn has_approval_hold(said: &Said, target: &TargetName, action: PowerAction) -> bool {
    said.holds.iter().any(|hold| {
        hold.kind == "approval"
            && hold.target.as_deref() == Some(target.0.as_str())
            && hold.action.as_deref() == Some(action.as_str())
    })
}

impl Facts {
    /// Unapproved requests that may be due, or about to end, at this very moment.
    fn uncertain(&self, target: &TargetName, action: PowerAction, now: Moment) -> usize {
        let requests = self.requests.values().filter(|request| {
            let wish = &request.wish;
            request.state == RequestState::Queued
                && (&wish.target, wish.action) == (target, action)
                && !wish.is_approved
                && !self.is_due(request, now)
                && self.is_due_for(request, Duration::ZERO, now)
        });
        requests.count()
    }
}
