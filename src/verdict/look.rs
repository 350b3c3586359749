//! The servers' own states: what they prove when the job does not tell, when there is none, and when the submit's answer
//! was lost. What they say of a refused batch is in `refusal`.

use std::collections::HashMap;

use super::{Batch, Member, Rules, our_own, refusal};
use crate::cloud::CallError;
use crate::lifecycle::{BatchNext, Event, Outcome, Return, Seen, SeenState, Step};
use crate::model::{
    Activity, AttemptResult, Baseline, BatchState, Evidence, JobStatus, LookCause, Power, PowerAction, RequestId,
    ServerId, ServerView, Sighting, UtcMillis,
};
use crate::pace;

/// What follows from a look at the servers of a batch that was begun at `asked_at`.
///
/// The answer may be slow, and shows the servers as they were at some moment since then: idleness counts only up to there.
pub fn after_look(
    batch: &Batch,
    sightings: &HashMap<ServerId, Sighting>,
    rules: &Rules,
    asked_at: UtcMillis,
    now: UtcMillis,
) -> Step {
    match (batch.state, batch.look_cause) {
        (BatchState::Looking, Some(LookCause::Refused)) => refusal::after_look(batch, sightings, rules, asked_at, now),
        (BatchState::Looking, _) => prove(batch, |member| sightings.get(&member.server), None, rules, asked_at, now),
        (BatchState::Tracking | BatchState::Submitting | BatchState::Done, _) => {
            watch(batch, |member| sightings.get(&member.server), rules, asked_at, now)
        }
    }
}

/// What follows when the states could not be read: later again, within the time that looking has. A refused batch does not
/// wait for long: it is split without an explanation.
pub fn after_failed_look(batch: &Batch, error: &CallError, rules: &Rules, now: UtcMillis) -> Step {
    if batch.state != BatchState::Looking {
        let next = match now >= tracking_ends(batch, rules) {
            true => batch.look(LookCause::TimeLimit, rules, now),
            false => batch.again(rules, now, 0),
        };
        return Step::only(next).after_failed_read(error);
    }
    if batch.look_cause == Some(LookCause::Refused)
        && let Some(step) = refusal::after_failed_look(batch, error, rules, now)
    {
        return step;
    }
    prove(batch, |_| None, Some(error), rules, now, now).after_failed_read(error)
}

/// Looks for evidence of what became of each request; see the contract, promises 3 and 6. `failure` is why this look shows
/// nothing.
fn prove<'a>(
    batch: &Batch,
    sighting: impl Fn(&Member) -> Option<&'a Sighting>,
    failure: Option<&CallError>,
    rules: &Rules,
    asked_at: UtcMillis,
    now: UtcMillis,
) -> Step {
    let ends = batch.look_until.unwrap_or(now);
    search(batch, sighting, rules, asked_at, now, (ends, |batch: &Batch| out_of_time(batch, failure)))
}

/// Follows an accepted batch that has no job: its servers' own states tell, until the time of a job is over.
fn watch<'a>(
    batch: &Batch,
    sighting: impl Fn(&Member) -> Option<&'a Sighting>,
    rules: &Rules,
    asked_at: UtcMillis,
    now: UtcMillis,
) -> Step {
    let mut step = search(batch, sighting, rules, asked_at, now, (tracking_ends(batch, rules), never_seen));
    if step.batch == BatchNext::Done {
        let took = now.since(batch.submitted_at.unwrap_or(batch.intent_at));
        step.job_ms = i64::try_from(took.as_millis()).ok();
    }
    step
}

fn tracking_ends(batch: &Batch, rules: &Rules) -> UtcMillis {
    batch.submitted_at.unwrap_or(batch.intent_at) + rules.job_time_limit
}

/// One look: what it settles, what is worth remembering, and when to look again. At `ends` the rest ends as `at_the_end`.
fn search<'a>(
    batch: &Batch,
    sighting: impl Fn(&Member) -> Option<&'a Sighting>,
    rules: &Rules,
    asked_at: UtcMillis,
    now: UtcMillis,
    (ends, at_the_end): (UtcMillis, impl Fn(&Batch) -> Outcome),
) -> Step {
    let mut step = Step::only(batch.again_by(ends.min(now + rules.settle_time), rules, now));
    let mut open = 0;
    for member in &batch.members {
        let finding = sighting(member).map_or(Finding::Nothing, |seen| find(batch, member, seen, rules, asked_at));
        match finding {
            Finding::Event(event) => step.moves.push((member.request, event)),
            _ if now >= ends => step.moves.push((member.request, Event::Ended(at_the_end(batch)))),
            Finding::Remember(seen) => {
                open += 1;
                if member.seen != Some(seen) {
                    step.seen.push((member.request, seen));
                }
            }
            Finding::Nothing => open += 1,
        }
    }
    if open == 0 {
        step.batch = BatchNext::Done;
    }
    step
}

enum Finding {
    /// Settled.
    Event(Event),
    /// Not yet, but this is worth remembering.
    Remember(Seen),
    /// This look tells nothing.
    Nothing,
}

fn find(batch: &Batch, member: &Member, sighting: &Sighting, rules: &Rules, now: UtcMillis) -> Finding {
    let view = match sighting {
        Sighting::Missing => return Finding::Event(Event::Ended(missing())),
        Sighting::Present(view) => view,
    };
    let had_moved = matches!(member.seen, Some(Seen { what: SeenState::Moving, .. }));
    match (view.activity, batch.action) {
        (Activity::Rebooting, PowerAction::Reboot) => Finding::Remember(keep(member, SeenState::Moving, now)),
        // Some other transition: nothing is proved while it lasts, and no idleness is counted across it.
        (Activity::PoweringOn | Activity::PoweringOff | Activity::Rebooting | Activity::Other, _) => {
            let what =
                if had_moved || batch.action != PowerAction::Reboot { SeenState::Moving } else { SeenState::Idle };
            Finding::Remember(Seen { what, since: now })
        }
        (Activity::Idle, _) if news(batch, member, view, had_moved) == Some(JobStatus::Failed) => {
            Finding::Event(Event::Ended(failed_as_seen(view)))
        }
        (Activity::Idle, PowerAction::Reboot) => find_reboot(batch, member, view, had_moved, rules, now),
        (Activity::Idle, action) if view.power == wished_power(action) => {
            Finding::Event(Event::Ended(Outcome::succeeded(Evidence::Observed, observed_sentence(action))))
        }
        (Activity::Idle, _) if view.power == Power::Unclear => Finding::Nothing,
        // The cloud accepted it and may not have begun yet. Once it was seen to move, its idleness is counted.
        (Activity::Idle, _) if batch.state == BatchState::Tracking && member.seen.is_none() => Finding::Nothing,
        (Activity::Idle, _) => match keep(member, SeenState::Idle, now) {
            seen if now.since(seen.since) >= rules.settle_time => {
                Finding::Event(not_carried_out(batch, member, rules, now))
            }
            seen => Finding::Remember(seen),
        },
    }
}

/// What the server itself says of this request's action, where the service remembers a server's last operation.
///
/// It has neither time nor id: the end of an operation is this one's only if it was seen under way, or differs from what
/// stood there before the call.
pub(super) fn news(batch: &Batch, member: &Member, view: &ServerView, had_moved: bool) -> Option<JobStatus> {
    let operation = view.operation.filter(|operation| operation.action == batch.action)?;
    let changed = match member.baseline {
        Baseline::Known(before) => before != Some(operation),
        Baseline::Unknown => false,
    };
    let could_be_another = member.shadowed && batch.action == PowerAction::Reboot;
    ((changed || had_moved) && !could_be_another).then_some(operation.status)
}

fn failed_as_seen(view: &ServerView) -> Outcome {
    match &view.error {
        Some(error) if !error.code.is_empty() => Outcome::failed(Evidence::Observed, &error.code, &error.message),
        Some(error) => Outcome::failed(Evidence::Observed, "poweryard.failed", &error.message),
        None => {
            Outcome::failed(Evidence::Observed, "poweryard.failed", "the server's state says that the operation failed")
        }
    }
}

/// A reboot leaves no lasting mark: only a transition that was seen proves it, or what the service remembers of it. Without
/// one, idle through the settling time, it may have been over before the first look as well as never begun.
fn find_reboot(
    batch: &Batch,
    member: &Member,
    view: &ServerView,
    had_moved: bool,
    rules: &Rules,
    now: UtcMillis,
) -> Finding {
    let succeeded = |sentence: &str| Finding::Event(Event::Ended(Outcome::succeeded(Evidence::Observed, sentence)));
    if let Some(operation) = view.operation {
        let told = news(batch, member, view, had_moved) == Some(JobStatus::Succeeded);
        // A server that is off has not come back; if somebody else stopped it, nobody can tell.
        if told && operation.action == PowerAction::Reboot && view.power == Power::On {
            return succeeded("the server's state says that the reboot succeeded");
        }
        if had_moved || batch.state == BatchState::Tracking {
            return Finding::Nothing;
        }
    }
    let shadow = if member.shadowed { " that could not be an earlier one" } else { "" };
    match (had_moved && !member.shadowed, view.power) {
        (_, Power::Unclear) => Finding::Nothing,
        (true, Power::On) => succeeded("the server was seen rebooting, and then running"),
        (true, Power::Off | Power::Faulty) => {
            let message = "the server was seen rebooting, and did not come back";
            Finding::Event(Event::Ended(Outcome::failed(Evidence::Observed, "poweryard.not_running", message)))
        }
        (false, _) if batch.state == BatchState::Tracking => Finding::Nothing,
        (false, Power::On | Power::Off | Power::Faulty) => match keep(member, SeenState::Idle, now) {
            seen if now.since(seen.since) >= rules.settle_time => Finding::Event(Event::Ended(Outcome::unknown(
                "poweryard.unproved",
                format!("{}, and no reboot was seen{shadow}; it is not sent again by itself", doubt(batch)),
            ))),
            seen => Finding::Remember(seen),
        },
    }
}

/// Why the servers had to be asked.
fn doubt(batch: &Batch) -> String {
    let answered = batch.complaint.as_ref().filter(|why| !why.code.is_empty() && !why.code.starts_with("poweryard."));
    match batch.look_cause {
        Some(LookCause::Lost | LookCause::Refused) => match answered {
            Some(why) => format!("the cloud answered with {}, which does not tell whether anything was done", why.code),
            None => "the answer to the call was lost".to_owned(),
        },
        Some(LookCause::Vanished) => "the cloud does not know the job any more".to_owned(),
        Some(LookCause::TimeLimit) => "the job did not end within job_time_limit".to_owned(),
        Some(LookCause::Gap) | None => "the job's answer leaves this server out".to_owned(),
    }
}

/// `what`, since when it was first seen in a row.
pub(super) fn keep(member: &Member, what: SeenState, now: UtcMillis) -> Seen {
    match member.seen {
        Some(seen) if seen.what == what && seen.since <= now => seen,
        _ => Seen { what, since: now },
    }
}

/// Start or stop: the server is idle in the other state and has been for the settling time.
fn not_carried_out(batch: &Batch, member: &Member, rules: &Rules, now: UtcMillis) -> Event {
    let why = batch.complaint.clone().unwrap_or_else(|| our_own("not_carried_out", "the server stayed as it was"));
    if member.attempts >= rules.attempts_max {
        let message = format!("the server stayed as it was after {} calls; last: {}", member.attempts, why.message);
        return Event::Ended(Outcome::failed(Evidence::Observed, "poweryard.not_carried_out", message));
    }
    Event::Returned(Return {
        retry_at: Some(now + pace::retry_delay(member.attempts.saturating_sub(1), batch.seed())),
        group: None,
        result: AttemptResult::Lost,
        code: why.code,
        message: why.message,
    })
}

/// The cloud accepted the call, and its servers were followed for as long as a job may take.
fn never_seen(batch: &Batch) -> Outcome {
    let action = batch.action;
    Outcome::unknown(
        "poweryard.time_limit",
        format!("the cloud accepted the call, and within job_time_limit the server was not seen to {action}"),
    )
}

pub(super) fn missing() -> Outcome {
    Outcome::failed(Evidence::Observed, "poweryard.missing", "the cloud has no such server in this project")
}

fn out_of_time(batch: &Batch, failure: Option<&CallError>) -> Outcome {
    let why = failure.map(|error| format!("; the last look failed: {error}")).unwrap_or_default();
    Outcome::unknown(
        "poweryard.time_limit",
        format!("{}, and the server's state proved nothing within look_time_limit{why}", doubt(batch)),
    )
}

/// Says of a request that ends without proof why its server could not be read last, if it could not.
pub fn name_failures(batch: &Batch, mut step: Step, failures: &HashMap<ServerId, CallError>) -> Step {
    let servers: HashMap<RequestId, &ServerId> =
        batch.members.iter().map(|member| (member.request, &member.server)).collect();
    for (request, event) in &mut step.moves {
        if let Event::Ended(outcome) = event
            && outcome.evidence == Evidence::None
            && let Some(error) = servers.get(request).and_then(|server| failures.get(*server))
        {
            outcome.message = format!("{}; the last look failed: {error}", outcome.message);
        }
    }
    step
}

fn wished_power(action: PowerAction) -> Power {
    match action {
        PowerAction::Start | PowerAction::Reboot => Power::On,
        PowerAction::Stop => Power::Off,
    }
}

fn observed_sentence(action: PowerAction) -> &'static str {
    match action {
        PowerAction::Start | PowerAction::Reboot => "the server was seen running",
        PowerAction::Stop => "the server was seen stopped",
    }
}

#[cfg(test)]
#[path = "look_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "clouddc_look_tests.rs"]
mod clouddc_tests;
