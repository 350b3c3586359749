//! The servers' own states: what they prove when the job does not tell, when there is none, and
//! when the submit's answer was lost. What they say of a refused batch is in `refusal`.

use std::collections::HashMap;

use super::case::Case;
use super::evidence::{could_be_another, fresh_status, may_be_doing, missing};
use super::refusal;
use crate::lifecycle::{BatchNext, Event, Outcome, Step};
use crate::model::{
    AttemptResult, Batch, BatchState, CallError, Complaint, Evidence, JobStatus, LookCause, Member,
    OwnCode, Power, PowerAction, RequestId, ServerId, ServerView, Sighting, UtcMillis, counted,
};
use crate::pace;

/// What follows from a look at the servers of a batch.
///
/// The answer may be slow, and shows the servers as they were at some moment since the question;
/// `Watch` counts by that.
pub fn after_look(case: Case<'_>, sightings: &HashMap<ServerId, Sighting>) -> Step {
    match case.batch.state {
        BatchState::Looking if case.is_refused() => refusal::after_look(case, sightings),
        BatchState::Looking => settle_members(case, sightings, &end_of_looking(case, None)),
        BatchState::Tracking | BatchState::Submitting | BatchState::Done => follow(case, sightings),
    }
}

/// What follows when the states could not be read: later again, within the time that looking has. A
/// refused batch does not wait for long: it is split without an explanation, unless that takes
/// proof.
pub fn after_failed_look(case: Case<'_>, error: &CallError) -> Step {
    match case.batch.state {
        BatchState::Looking if case.is_refused() => refusal::after_failed_look(case, error),
        BatchState::Looking => {
            let end = end_of_looking(case, Some(error));
            settle_members(case, &HashMap::new(), &end).after_failed_read(error)
        }
        BatchState::Tracking | BatchState::Submitting | BatchState::Done => {
            let next = if case.now >= case.tracking_ends() {
                case.look_at_servers(LookCause::TimeLimit)
            } else {
                case.look_again(0)
            };
            Step::only(next).after_failed_read(error)
        }
    }
}

/// Says of a request that ends without proof why its server could not be read last, if it could
/// not.
pub fn name_failures(
    batch: &Batch,
    mut step: Step,
    failures: &HashMap<ServerId, CallError>,
) -> Step {
    let servers: HashMap<RequestId, &ServerId> = batch
        .members
        .iter()
        .map(|member| (member.request, &member.server))
        .collect();
    for (request, event) in &mut step.moves {
        if let Event::Ended(outcome) = event
            && outcome.evidence == Evidence::None
            && let Some(error) = servers
                .get(request)
                .and_then(|server| failures.get(*server))
        {
            outcome.message = format!("{}; the last look failed: {error}", outcome.message);
        }
    }
    step
}

/// Of a batch that was open in an older copy of the queue.
const FROM_COPY: &str = "what was done to the server after this queue was copied is not in it";

/// When looking ends, and how a request ends of which nothing was proved by then.
struct EndOfLooks {
    at: UtcMillis,
    outcome: Outcome,
}

/// The answer is lost, or the job does not tell; see the contract, promises 3 and 6. `failure` is
/// why this look shows nothing.
fn end_of_looking(case: Case<'_>, failure: Option<&CallError>) -> EndOfLooks {
    let last = failure
        .map(|error| format!("; the last look failed: {error}"))
        .unwrap_or_default();
    let message = format!(
        "{}, and the server's state proved nothing within look_time_limit{last}",
        why_in_doubt(case.batch)
    );
    EndOfLooks {
        at: case.batch.look_until.unwrap_or(case.now),
        outcome: Outcome::unknown(OwnCode::TimeLimit, message),
    }
}

/// The cloud accepted the call and has no job for it: its servers are followed for as long as a job
/// may take.
fn end_of_tracking(case: Case<'_>) -> EndOfLooks {
    let action = case.batch.action;
    let message = format!(
        "the cloud accepted the call, and within job_time_limit the server was not seen to {action}"
    );
    EndOfLooks {
        at: case.tracking_ends(),
        outcome: Outcome::unknown(OwnCode::TimeLimit, message),
    }
}

/// Follows an accepted batch that has no job: its servers' own states tell.
fn follow(case: Case<'_>, sightings: &HashMap<ServerId, Sighting>) -> Step {
    let mut step = settle_members(case, sightings, &end_of_tracking(case));
    if step.batch == BatchNext::Done {
        let took = case.now.since(case.batch.accepted_at());
        step.job_ms = i64::try_from(took.as_millis()).ok();
    }
    step
}

/// One look: what it settles, what is worth remembering, and when to look again.
fn settle_members(
    case: Case<'_>,
    sightings: &HashMap<ServerId, Sighting>,
    end: &EndOfLooks,
) -> Step {
    let settle_time = case.rules.settle_time;
    let mut step = Step::only(BatchNext::Done);
    let mut latest = end.at.min(case.now + settle_time);
    for member in &case.batch.members {
        match read_member(case, member, sightings) {
            ServerReading::Settled(event) => step.moves.push((member.request, event)),
            _ if case.now >= end.at => {
                let event = Event::Ended(end.outcome.clone());
                step.moves.push((member.request, event));
            }
            ServerReading::Moving if member.seen_moving => {}
            ServerReading::Moving => step.seen_moving.push(member.request),
            ServerReading::Settling => {
                latest = latest.min(case.now + pace::proof_interval(settle_time));
            }
            ServerReading::Nothing => {}
        }
    }
    if step.moves.len() < case.batch.members.len() {
        step.batch = case.look_again_by(latest);
    }
    step
}

/// What a look tells of one server.
enum ServerReading {
    /// What became of its request.
    Settled(Event),
    /// In a transition that the request would cause: worth remembering.
    Moving,
    /// Idle, and not for long enough.
    Settling,
    /// This look tells nothing.
    Nothing,
}

impl ServerReading {
    fn succeeded(sentence: &str) -> Self {
        Self::Settled(Event::Ended(Outcome::succeeded(
            Evidence::Observed,
            sentence,
        )))
    }

    fn failed(code: impl Into<String>, message: &str) -> Self {
        Self::Settled(Event::Ended(Outcome::failed(
            Evidence::Observed,
            code,
            message,
        )))
    }

    /// Nobody can tell whether a reboot was done.
    fn unproved(reason: String) -> Self {
        let message = format!("{reason}; it is not sent again automatically");
        Self::Settled(Event::Ended(Outcome::unknown(OwnCode::Unproved, message)))
    }
}

fn read_member(
    case: Case<'_>,
    member: &Member,
    sightings: &HashMap<ServerId, Sighting>,
) -> ServerReading {
    match sightings.get(&member.server) {
        Some(Sighting::Present(view)) => read_server(case, member, view),
        Some(Sighting::Missing) => ServerReading::Settled(missing()),
        None => ServerReading::Nothing,
    }
}

fn read_server(case: Case<'_>, member: &Member, view: &ServerView) -> ServerReading {
    let action = case.batch.action;
    if !view.is_idle() {
        // In some other transition nothing is proved, and no idleness is counted across it.
        return if may_be_doing(action, view.activity) {
            ServerReading::Moving
        } else {
            ServerReading::Nothing
        };
    }
    if fresh_status(case.batch, member, view) == Some(JobStatus::Failed) {
        return operation_failed(view);
    }
    if view.power == Power::Unclear {
        ServerReading::Nothing
    } else if action.leaves_no_mark() {
        read_reboot(case, member, view)
    } else {
        read_power(case, member, view)
    }
}

fn operation_failed(view: &ServerView) -> ServerReading {
    match &view.error {
        Some(error) if error.code.is_empty() => {
            ServerReading::failed(OwnCode::Failed, &error.message)
        }
        Some(error) => ServerReading::failed(&error.code, &error.message),
        None => ServerReading::failed(
            OwnCode::Failed,
            "the server's state says that the operation failed",
        ),
    }
}

/// An idle server that was to be started or stopped.
fn read_power(case: Case<'_>, member: &Member, view: &ServerView) -> ServerReading {
    let action = case.batch.action;
    if view.power == action.wished_power() {
        return ServerReading::succeeded(observed_sentence(action));
    }
    // The cloud accepted it and may not have begun yet. Once it was seen to move, its idleness is
    // counted.
    if case.batch.is_tracked() && !member.seen_moving {
        return ServerReading::Nothing;
    }
    if !case.has_settled(member) {
        ServerReading::Settling
    } else if case.batch.from_copy {
        ServerReading::unproved(format!("{}, and {FROM_COPY}", why_in_doubt(case.batch)))
    } else {
        ServerReading::Settled(not_carried_out(case, member))
    }
}

fn observed_sentence(action: PowerAction) -> &'static str {
    match action {
        PowerAction::Start | PowerAction::Reboot => "the server was seen running",
        PowerAction::Stop => "the server was seen stopped",
    }
}

/// Start or stop: the server is idle in the other state and has been for the settling time.
fn not_carried_out(case: Case<'_>, member: &Member) -> Event {
    let why = case.batch.complaint.clone().unwrap_or_else(|| {
        Complaint::our_own(OwnCode::NotCarriedOut, "the server stayed as it was")
    });
    if let Some(again) = case.try_again(member, &why, AttemptResult::Lost) {
        return again;
    }
    let message = format!(
        "the server stayed as it was after {}; last: {}",
        counted(member.attempts, "call"),
        why.message
    );
    Event::Ended(Outcome::failed(
        Evidence::Observed,
        OwnCode::NotCarriedOut,
        message,
    ))
}

/// A reboot leaves no lasting mark: only a transition that was seen proves it, or what the service
/// remembers of it. Without one, idle through the settling time, it may have been over before the
/// first look as well as never begun.
fn read_reboot(case: Case<'_>, member: &Member, view: &ServerView) -> ServerReading {
    let batch = case.batch;
    if let Some(why) = case.busy_with(member) {
        return read_busy_reboot(case, member, why);
    }
    if member.seen_moving && batch.was_refused_as_busy() {
        let reason = "the cloud said that a server was busy, and the reboot that was then seen may be another one";
        return ServerReading::unproved(reason.to_owned());
    }
    if view.operation.is_some() {
        // A server that is off has not come back; if somebody else stopped it, nobody can tell.
        if was_rebooted(batch, member, view) && view.power == Power::On {
            return ServerReading::succeeded("the server's state says that the reboot succeeded");
        }
        if member.seen_moving || batch.is_tracked() {
            return ServerReading::Nothing;
        }
    }
    if member.seen_moving && !could_be_another(batch, member) {
        read_end_of_reboot(view.power)
    } else if batch.is_tracked() {
        ServerReading::Nothing
    } else if case.has_settled(member) {
        ServerReading::unproved(no_reboot_was_seen(batch, member))
    } else {
        ServerReading::Settling
    }
}

/// True if the server's last operation is this reboot, and succeeded.
fn was_rebooted(batch: &Batch, member: &Member, view: &ServerView) -> bool {
    fresh_status(batch, member, view) == Some(JobStatus::Succeeded)
}

/// A server that was seen rebooting is idle again.
fn read_end_of_reboot(power: Power) -> ServerReading {
    match power {
        Power::On => ServerReading::succeeded("the server was seen rebooting, and then running"),
        Power::Off | Power::Faulty => ServerReading::failed(
            OwnCode::NotRunning,
            "the server was seen rebooting, and did not come back",
        ),
        Power::Unclear => ServerReading::Nothing,
    }
}

fn no_reboot_was_seen(batch: &Batch, member: &Member) -> String {
    let doubt = why_in_doubt(batch);
    if could_be_another(batch, member) {
        format!("{doubt}, and no reboot was seen that could not be an earlier one")
    } else {
        format!("{doubt}, and no reboot was seen")
    }
}

/// A reboot whose own task says that the server was busy. If a reboot was seen, nobody can tell
/// whose it was. If it was busy powering on or off, or nothing can have passed unseen since the
/// call, it goes again.
fn read_busy_reboot(case: Case<'_>, member: &Member, why: &Complaint) -> ServerReading {
    if member.seen_moving {
        return ServerReading::unproved(format!(
            "the job ended with {}, and the reboot that was then seen may be another one",
            why.code
        ));
    }
    if !case.has_settled(member) {
        return ServerReading::Settling;
    }
    if !was_busy_with_something_else(case, member) {
        return ServerReading::unproved(format!(
            "the job ended with {}, which may be about this reboot, and the reboot may have happened unseen",
            why.code
        ));
    }
    if member.attempts >= case.rules.attempts_max {
        let outcome = Outcome::failed(Evidence::Job, &why.code, &why.message);
        return ServerReading::Settled(Event::Ended(outcome));
    }
    ServerReading::Settled(case.wait_apart(member, why))
}

/// True if this process was told that this server was busy, and knows that it was not with the
/// reboot of this request.
fn was_busy_with_something_else(case: Case<'_>, member: &Member) -> bool {
    let is_known = case.watch.busy(member.request).is_some();
    let is_explained = case.watch.saw_power_change(member.request);
    is_known && (is_explained || case.can_be_disproved(member))
}

/// Why the servers had to be asked.
fn why_in_doubt(batch: &Batch) -> String {
    match batch.look_cause {
        Some(LookCause::Lost | LookCause::Refused) => why_the_call_is_in_doubt(batch),
        Some(LookCause::Vanished) => "the cloud no longer knows the job".to_owned(),
        Some(LookCause::TimeLimit) => "the job did not end within job_time_limit".to_owned(),
        Some(LookCause::Busy) => {
            let code = batch.complaint.as_ref().map_or("", |why| why.code.as_str());
            format!("the job ended with {code}, which may be about this reboot")
        }
        Some(LookCause::Gap) | None => "the job's answer does not mention this server".to_owned(),
    }
}

fn why_the_call_is_in_doubt(batch: &Batch) -> String {
    match &batch.complaint {
        Some(Complaint { code, .. }) if is_of_the_cloud(code) => {
            format!("the cloud answered with {code}, which does not tell whether anything was done")
        }
        Some(Complaint { message, .. }) if !message.is_empty() => {
            format!("the way the call ended does not tell whether anything was done ({message})")
        }
        Some(_) | None => "the answer to the call was lost".to_owned(),
    }
}

fn is_of_the_cloud(code: &str) -> bool {
    !code.is_empty() && code.parse::<OwnCode>().is_err()
}

#[cfg(test)]
#[path = "look_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "clouddc_look_tests.rs"]
mod clouddc_tests;
