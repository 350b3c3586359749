//! The servers' own states: what they prove when the job does not tell, when there is none, and
//! when the submit's answer was lost. What they say of a refused batch is in `refusal`.

use std::collections::HashMap;

use super::{Case, busy, refusal};
use crate::lifecycle::{BatchNext, Event, Outcome, Return, Step};
use crate::model::{
    Activity, AttemptResult, Baseline, Batch, BatchState, CallError, Complaint, Evidence,
    JobStatus, LookCause, Member, OwnCode, Power, PowerAction, RequestId, ServerId, ServerView,
    Sighting, UtcMillis,
};
use crate::pace;

/// What follows from a look at the servers of a batch.
///
/// The answer may be slow, and shows the servers as they were at some moment since the question;
/// `Watch` counts by that.
pub fn after_look(case: Case<'_>, sightings: &HashMap<ServerId, Sighting>) -> Step {
    let sighting = |member: &Member| sightings.get(&member.server);
    match (case.batch.state, case.batch.look_cause) {
        (BatchState::Looking, Some(LookCause::Refused)) if case.watch.may_have_been_refused() => {
            refusal::after_look(case, sightings)
        }
        (BatchState::Looking, _) => look_into(case, sighting, None),
        (BatchState::Tracking | BatchState::Submitting | BatchState::Done, _) => {
            follow(case, sighting)
        }
    }
}

/// What follows when the states could not be read: later again, within the time that looking has. A
/// refused batch does not wait for long: it is split without an explanation, unless that takes
/// proof.
pub fn after_failed_look(case: Case<'_>, error: &CallError) -> Step {
    let Case {
        batch, rules, now, ..
    } = case;
    if batch.state != BatchState::Looking {
        let next = if now >= tracking_ends(case) {
            batch.look(LookCause::TimeLimit, rules, now)
        } else {
            batch.again(rules, now, 0)
        };
        return Step::only(next).after_failed_read(error);
    }
    if batch.look_cause == Some(LookCause::Refused) && case.watch.may_have_been_refused() {
        return refusal::after_failed_look(case, error);
    }
    look_into(case, |_| None, Some(error)).after_failed_read(error)
}

/// Looks for evidence of what became of each request; see the contract, promises 3 and 6. `failure`
/// is why this look shows nothing.
fn look_into<'a>(
    case: Case<'_>,
    sighting: impl Fn(&Member) -> Option<&'a Sighting>,
    failure: Option<&CallError>,
) -> Step {
    let ends = case.batch.look_until.unwrap_or(case.now);
    settle_members(case, sighting, ends, || out_of_time(case.batch, failure))
}

/// Follows an accepted batch that has no job: its servers' own states tell, until the time of a job
/// is over.
fn follow<'a>(case: Case<'_>, sighting: impl Fn(&Member) -> Option<&'a Sighting>) -> Step {
    let mut step = settle_members(case, sighting, tracking_ends(case), || {
        never_seen(case.batch)
    });
    if step.batch == BatchNext::Done {
        let took = case.now.since(case.batch.accepted_at());
        step.job_ms = i64::try_from(took.as_millis()).ok();
    }
    step
}

fn tracking_ends(case: Case<'_>) -> UtcMillis {
    case.batch.tracking_ends(case.rules.job_time_limit)
}

/// One look: what it settles, what is worth remembering, and when to look again. At `ends` the rest
/// ends as `at_the_end`.
fn settle_members<'a>(
    case: Case<'_>,
    sighting: impl Fn(&Member) -> Option<&'a Sighting>,
    ends: UtcMillis,
    at_the_end: impl Fn() -> Outcome,
) -> Step {
    let Case {
        batch, rules, now, ..
    } = case;
    let mut step = Step::only(BatchNext::Done);
    let mut latest = ends;
    let mut open = 0;
    for member in &batch.members {
        let finding = sighting(member).map_or(ServerReading::Nothing, |seen| {
            read_server(case, member, seen)
        });
        match finding {
            ServerReading::Event(event) => step.moves.push((member.request, event)),
            _ if now >= ends => step
                .moves
                .push((member.request, Event::Ended(at_the_end()))),
            ServerReading::Moving => {
                open += 1;
                if !member.seen_moving {
                    step.seen_moving.push(member.request);
                }
            }
            ServerReading::Settling => {
                open += 1;
                latest = latest.min(now + rules.watch_interval());
            }
            ServerReading::Nothing => open += 1,
        }
    }
    if open > 0 {
        step.batch = batch.again_by(latest.min(now + rules.settle_time), rules, now);
    }
    step
}

/// Of a batch that was open in an older copy of the queue.
const FROM_COPY: &str = "what was done to the server after this queue was copied is not in it";

enum ServerReading {
    /// Settled.
    Event(Event),
    /// In a transition that the request would cause: worth remembering.
    Moving,
    /// Idle, and not for long enough.
    Settling,
    /// This look tells nothing.
    Nothing,
}

fn read_server(case: Case<'_>, member: &Member, sighting: &Sighting) -> ServerReading {
    let batch = case.batch;
    let view = match sighting {
        Sighting::Missing => return ServerReading::Event(Event::Ended(missing())),
        Sighting::Present(view) => view,
    };
    if view.activity != Activity::Idle {
        // In some other transition nothing is proved, and no idleness is counted across it.
        return if may_be_doing(batch.action, view.activity) {
            ServerReading::Moving
        } else {
            ServerReading::Nothing
        };
    }
    if fresh_status(batch, member, view) == Some(JobStatus::Failed) {
        return ServerReading::Event(Event::Ended(failed_as_seen(view)));
    }
    if batch.action.leaves_no_mark() {
        read_reboot(case, member, view)
    } else {
        read_power(case, member, view)
    }
}

/// True if a server that is doing this may be carrying out `action`. Of one that leaves a mark any
/// transition counts: its power tells in the end.
fn may_be_doing(action: PowerAction, activity: Activity) -> bool {
    activity == action.transition() || !action.leaves_no_mark()
}

/// An idle server that was to be started or stopped.
fn read_power(case: Case<'_>, member: &Member, view: &ServerView) -> ServerReading {
    let batch = case.batch;
    if view.power == batch.action.wished_power() {
        return ServerReading::Event(Event::Ended(Outcome::succeeded(
            Evidence::Observed,
            observed_sentence(batch.action),
        )));
    }
    if view.power == Power::Unclear {
        return ServerReading::Nothing;
    }
    // The cloud accepted it and may not have begun yet. Once it was seen to move, its idleness is
    // counted.
    if batch.state == BatchState::Tracking && !member.seen_moving {
        return ServerReading::Nothing;
    }
    if case.has_settled(member) {
        if batch.from_copy {
            return unproved(format!("{}, and {FROM_COPY}", why_in_doubt(batch)));
        }
        ServerReading::Event(not_carried_out(case, member))
    } else {
        ServerReading::Settling
    }
}

impl Case<'_> {
    /// True if the server was idle and the same for the settling time, in a row of looks without a
    /// gap.
    pub(super) fn has_settled(&self, member: &Member) -> bool {
        self.watch
            .idle_for(member.request)
            .is_some_and(|idle| idle >= self.rules.settle_time)
    }

    /// True if the looks prove, once a server has settled, that a reboot which the cloud says it
    /// did not do was not done.
    ///
    /// A server that remembers its last operation still shows another one than a reboot: that is a
    /// mark. Without one there must be no moment since the call at which it could have passed
    /// unseen. What has never shown an operation may not show this one either.
    pub(super) fn can_be_disproved(&self, member: &Member) -> bool {
        if member.seen_moving || self.batch.from_copy || !self.watch.may_have_been_refused() {
            return false;
        }
        let covered = self.watch.covers_call(member.request);
        match (self.batch.service.shows_last_operation(), member.baseline) {
            (true, Baseline::Unknown | Baseline::Known(None)) => false,
            (true, Baseline::Known(Some(_))) => covered || !member.shows_old_reboot(),
            (false, _) => covered,
        }
    }
}

/// What the server itself says of this request's action, where the service remembers a server's
/// last operation.
///
/// It has neither time nor id: the end of an operation is this one's only if it was seen under way,
/// or differs from what stood there before the call.
pub(super) fn fresh_status(batch: &Batch, member: &Member, view: &ServerView) -> Option<JobStatus> {
    let operation = view
        .operation
        .filter(|operation| operation.action == batch.action)?;
    let changed = match member.baseline {
        Baseline::Known(before) => before != Some(operation),
        Baseline::Unknown => false,
    };
    let could_be_another = batch.from_copy || (member.shadowed && batch.action.leaves_no_mark());
    ((changed || member.seen_moving) && !could_be_another).then_some(operation.status)
}

fn failed_as_seen(view: &ServerView) -> Outcome {
    match &view.error {
        Some(error) if !error.code.is_empty() => {
            Outcome::failed(Evidence::Observed, &error.code, &error.message)
        }
        Some(error) => Outcome::failed(Evidence::Observed, OwnCode::Failed, &error.message),
        None => Outcome::failed(
            Evidence::Observed,
            OwnCode::Failed,
            "the server's state says that the operation failed",
        ),
    }
}

/// A reboot leaves no lasting mark: only a transition that was seen proves it, or what the service
/// remembers of it. Without one, idle through the settling time, it may have been over before the
/// first look as well as never begun.
fn read_reboot(case: Case<'_>, member: &Member, view: &ServerView) -> ServerReading {
    let batch = case.batch;
    if case.busy_with(member).is_some() {
        return read_busy_reboot(case, member, view);
    }
    if member.seen_moving && batch.was_refused_as_busy() && view.power != Power::Unclear {
        return unproved(
            "the cloud said that a server was busy, and the reboot that was then seen may be another one"
                .to_owned(),
        );
    }
    let succeeded = |sentence: &str| {
        ServerReading::Event(Event::Ended(Outcome::succeeded(
            Evidence::Observed,
            sentence,
        )))
    };
    if view.operation.is_some() {
        let told = fresh_status(batch, member, view) == Some(JobStatus::Succeeded);
        // A server that is off has not come back; if somebody else stopped it, nobody can tell.
        if told && view.power == Power::On {
            return succeeded("the server's state says that the reboot succeeded");
        }
        if member.seen_moving || batch.state == BatchState::Tracking {
            return ServerReading::Nothing;
        }
    }
    let shadow = if member.shadowed || batch.from_copy {
        " that could not be an earlier one"
    } else {
        ""
    };
    match (
        member.seen_moving && !member.shadowed && !batch.from_copy,
        view.power,
    ) {
        (_, Power::Unclear) => ServerReading::Nothing,
        (true, Power::On) => succeeded("the server was seen rebooting, and then running"),
        (true, Power::Off | Power::Faulty) => {
            let message = "the server was seen rebooting, and did not come back";
            ServerReading::Event(Event::Ended(Outcome::failed(
                Evidence::Observed,
                OwnCode::NotRunning,
                message,
            )))
        }
        (false, _) if batch.state == BatchState::Tracking => ServerReading::Nothing,
        (false, Power::On | Power::Off | Power::Faulty) if case.has_settled(member) => unproved(
            format!("{}, and no reboot was seen{shadow}", why_in_doubt(batch)),
        ),
        (false, Power::On | Power::Off | Power::Faulty) => ServerReading::Settling,
    }
}

fn unproved(reason: String) -> ServerReading {
    let message = format!("{reason}; it is not sent again automatically");
    ServerReading::Event(Event::Ended(Outcome::unknown(OwnCode::Unproved, message)))
}

impl Case<'_> {
    /// The words with which a reboot's own task called its server busy. After a restart those of
    /// the batch: which of its servers they were about is not stored, and proves nothing any more.
    fn busy_with(&self, member: &Member) -> Option<&Complaint> {
        let of_batch = self.batch.look_cause == Some(LookCause::Busy) && !self.watch.knows_busy();
        self.watch
            .busy(member.request)
            .or_else(|| self.batch.complaint.as_ref().filter(|_| of_batch))
    }
}

/// A reboot whose own task says that the server was busy. If a reboot was seen, nobody can tell
/// whose it was. If it was busy powering on or off, or nothing can have passed unseen since the
/// call, it goes again.
fn read_busy_reboot(case: Case<'_>, member: &Member, view: &ServerView) -> ServerReading {
    let Some(why) = case.busy_with(member) else {
        return ServerReading::Nothing;
    };
    if view.power == Power::Unclear {
        return ServerReading::Nothing;
    }
    if member.seen_moving {
        return unproved(format!(
            "the job ended with {}, and the reboot that was then seen may be another one",
            why.code
        ));
    }
    if !case.has_settled(member) {
        return ServerReading::Settling;
    }
    let explained = case.watch.saw_power_change(member.request);
    let known = case.watch.busy(member.request).is_some();
    if !known || !(explained || case.can_be_disproved(member)) {
        return unproved(format!(
            "the job ended with {}, which may be about this reboot, and the reboot may have happened unseen",
            why.code
        ));
    }
    if member.attempts >= case.rules.attempts_max {
        return ServerReading::Event(Event::Ended(Outcome::failed(
            Evidence::Job,
            &why.code,
            &why.message,
        )));
    }
    ServerReading::Event(busy(case.batch, member, why, case.now))
}

/// Why the servers had to be asked.
fn why_in_doubt(batch: &Batch) -> String {
    let said = batch
        .complaint
        .as_ref()
        .map(|why| (why.code.as_str(), why.message.as_str()))
        .unwrap_or_default();
    match (batch.look_cause, said) {
        (Some(LookCause::Lost | LookCause::Refused), (code, _))
            if !code.is_empty() && code.parse::<OwnCode>().is_err() =>
        {
            format!("the cloud answered with {code}, which does not tell whether anything was done")
        }
        (Some(LookCause::Lost | LookCause::Refused), (_, message)) if !message.is_empty() => {
            format!("the way the call ended does not tell whether anything was done ({message})")
        }
        (Some(LookCause::Lost | LookCause::Refused), _) => {
            "the answer to the call was lost".to_owned()
        }
        (Some(LookCause::Vanished), _) => "the cloud no longer knows the job".to_owned(),
        (Some(LookCause::TimeLimit), _) => "the job did not end within job_time_limit".to_owned(),
        (Some(LookCause::Busy), (code, _)) => {
            format!("the job ended with {code}, which may be about this reboot")
        }
        (Some(LookCause::Gap) | None, _) => {
            "the job's answer does not mention this server".to_owned()
        }
    }
}

/// Start or stop: the server is idle in the other state and has been for the settling time.
fn not_carried_out(case: Case<'_>, member: &Member) -> Event {
    let batch = case.batch;
    let why = batch.complaint.clone().unwrap_or_else(|| {
        Complaint::our_own(OwnCode::NotCarriedOut, "the server stayed as it was")
    });
    if member.attempts >= case.rules.attempts_max {
        let message = format!(
            "the server stayed as it was after {} calls; last: {}",
            member.attempts, why.message
        );
        return Event::Ended(Outcome::failed(
            Evidence::Observed,
            OwnCode::NotCarriedOut,
            message,
        ));
    }
    Event::Returned(Return {
        retry_at: Some(
            case.now + pace::retry_delay(member.attempts.saturating_sub(1), batch.seed()),
        ),
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
        OwnCode::TimeLimit,
        format!(
            "the cloud accepted the call, and within job_time_limit the server was not seen to {action}"
        ),
    )
}

pub(super) fn missing() -> Outcome {
    Outcome::failed(
        Evidence::Observed,
        OwnCode::Missing,
        "the cloud has no such server in this project",
    )
}

fn out_of_time(batch: &Batch, failure: Option<&CallError>) -> Outcome {
    let why = failure
        .map(|error| format!("; the last look failed: {error}"))
        .unwrap_or_default();
    Outcome::unknown(
        OwnCode::TimeLimit,
        format!(
            "{}, and the server's state proved nothing within look_time_limit{why}",
            why_in_doubt(batch)
        ),
    )
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
