//! Guards as the contract has them: a surplus that nobody has approved does not leave. Its own
//! reading; nothing of the daemon's.

use super::Broken;
use super::facts::{BatchFacts, Departure, Facts, Moment, Request};
use super::rules::{self, TargetLimits, hold};
use poweryard::model::{Budget, PowerAction, RequestState, TargetName};

/// What a guard counts at one moment.
pub(super) struct Crowd {
    /// Due and unapproved, whatever else holds them, and not counted with a call already.
    pub(super) due: usize,
    /// Left within the span, unapproved.
    pub(super) left: usize,
}

/// Unapproved requests leave only if those that are due, with those that left within the span, are
/// no more than the number.
pub(super) fn check(
    facts: &Facts,
    call: &Departure<'_>,
    limits: &TargetLimits,
    now: Moment,
) -> Result<(), Broken> {
    let guard = limits
        .guards
        .iter()
        .find(|(action, _)| *action == call.action);
    let Some((_, guard)) = guard.filter(|_| !facts.are_approved(call)) else {
        return Ok(());
    };
    let about = (call.target, call.action);
    let mut crowd = count(facts, about, *guard, now);
    let members = call.members.keys().filter_map(|id| facts.requests.get(id));
    crowd.due += members
        .filter(|request| {
            let mut calls = request.calls.iter().rev();
            let before = calls.nth(1).map(|(batch, _)| *batch);
            !is_counted(facts, before, about, *guard, now)
        })
        .count();
    let all = crowd.due + crowd.left;
    hold!(
        crowd.due == 0 || all <= guard.servers as usize,
        "batch {} leaves unapproved: {} due and {} left within {:?}, of {}",
        call.batch,
        crowd.due,
        crowd.left,
        guard.span,
        guard.servers
    );
    Ok(())
}

/// What is certainly to be counted: of what has become due this very moment nobody can know.
pub(super) fn count(
    facts: &Facts,
    about: (&TargetName, PowerAction),
    guard: Budget,
    now: Moment,
) -> Crowd {
    let left = facts
        .batches
        .values()
        .filter(|batch| is_guarded(batch, about, guard, now));
    let due = facts.requests.iter().filter(|(_, request)| {
        let last = request.calls.last().map(|(batch, _)| *batch);
        is_waiting(facts, request, about, now) && !is_counted(facts, last, about, guard, now)
    });
    Crowd {
        due: due.count(),
        left: left.map(|batch| batch.members.len()).sum(),
    }
}

/// Left within the span, unapproved, in calls that were refused: a refusal may be disproved, and then
/// the daemon counts them.
pub(super) fn count_refused(
    facts: &Facts,
    (target, action): (&TargetName, PowerAction),
    guard: Budget,
    now: Moment,
) -> usize {
    let refused = facts.batches.values().filter(|batch| {
        let departed = batch.departed.as_ref();
        let is_in_span =
            departed.is_some_and(|(at, own)| own == target && now.real.since(at.real) < guard.span);
        is_in_span
            && batch.action == action
            && !batch.is_approved
            && !rules::is_spent(batch, (target, action), guard, now)
    });
    refused.map(|batch| batch.members.len()).sum()
}

fn is_waiting(
    facts: &Facts,
    request: &Request,
    (target, action): (&TargetName, PowerAction),
    now: Moment,
) -> bool {
    let wish = &request.wish;
    let limits = facts.limits.targets.get(target);
    let is_forbidden = limits.is_some_and(|limits| limits.forbids(action, &wish.server));
    let is_over = facts.expiry(request).is_some_and(|at| at <= now.utc);
    request.state == RequestState::Queued
        && (&wish.target, wish.action) == (target, action)
        && !wish.is_approved
        && !is_forbidden
        && !is_over
        && facts.is_due(request, now)
}

fn is_guarded(
    batch: &BatchFacts,
    about: (&TargetName, PowerAction),
    guard: Budget,
    now: Moment,
) -> bool {
    !batch.is_approved && rules::is_spent(batch, about, guard, now)
}

fn is_counted(
    facts: &Facts,
    batch: Option<i64>,
    about: (&TargetName, PowerAction),
    guard: Budget,
    now: Moment,
) -> bool {
    let batch = batch.and_then(|id| facts.batches.get(&id));
    batch.is_some_and(|batch| is_guarded(batch, about, guard, now))
}
