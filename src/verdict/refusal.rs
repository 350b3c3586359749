//! A refused batch: which of its servers made the cloud refuse it, whether the refusal is true, and
//! what goes again.
//!
//! A refusal is believed as a whole or not at all: if one server has begun, the call counts as lost
//! for all of them. Explain, then split: the states settle what they explain, the rest goes again
//! as one group; only where nothing explains the refusal is the batch halved. A reboot needs proof
//! that the refusal is true before any of this.

use std::collections::HashMap;

use super::look::{fresh_status, missing};
use super::{Case, FIRST_PART, SECOND_PART, already_sentence, busy};
use crate::lifecycle::{BatchNext, Event, Outcome, Return, Step};
use crate::model::cloud_codes;
use crate::model::{
    Activity, AttemptResult, Batch, CallError, CodeClass, Complaint, Evidence, Fault, LookCause,
    Member, OwnCode, Power, RequestId, ServerId, ServerView, Sighting,
};

/// How often the states of a refused batch are asked for before it is split without them.
const EXPLAINING_LOOKS_MAX: u32 = 3;

/// What follows from a look at the servers of a refused batch.
pub(super) fn after_look(case: Case<'_>, sightings: &HashMap<ServerId, Sighting>) -> Step {
    if let Some(step) = treat_as_lost(case, sightings) {
        return step;
    }
    if case.batch.action.leaves_no_mark() {
        settle_refused_reboots(case, sightings)
    } else {
        explain(case, sightings)
    }
}

/// What follows when the states could not be read: later again, but not for long; then it is split
/// without an explanation. Where a split needs proof, what is then in doubt counts as lost.
pub(super) fn after_failed_look(case: Case<'_>, error: &CallError) -> Step {
    let Case {
        batch, rules, now, ..
    } = case;
    let is_over = batch.look_until.is_some_and(|until| now >= until);
    if batch.action.leaves_no_mark() {
        let next = if is_over {
            batch.look(LookCause::Lost, rules, now)
        } else {
            batch.again_by(batch.look_until.unwrap_or(now), rules, now)
        };
        return Step::only(next).after_failed_read(error);
    }
    let hopeless = matches!(error.fault, Fault::Permission | Fault::Refused(_));
    if batch.looks + 1 >= EXPLAINING_LOOKS_MAX || hopeless || is_over {
        return split(batch, &batch.members.iter().collect::<Vec<_>>(), Vec::new());
    }
    Step::only(batch.again(rules, now, batch.doubts)).after_failed_read(error)
}

/// If one of the servers has begun after all, as far as can be told, the refusal says nothing of
/// the others either: all of them are looked into as if no answer had come.
fn treat_as_lost(case: Case<'_>, sightings: &HashMap<ServerId, Sighting>) -> Option<Step> {
    let batch = case.batch;
    let mut has_begun = false;
    let mut seen_moving = Vec::new();
    for member in &batch.members {
        if let Some(Sighting::Present(view)) = sightings.get(&member.server) {
            has_begun |= begun(batch, member, view);
            if view.activity == batch.action.transition() {
                seen_moving.push(member.request);
            }
        }
    }
    has_begun.then(|| Step {
        seen_moving,
        ..Step::only(batch.look(LookCause::Lost, case.rules, case.now))
    })
}

/// True if a server shows what this call would have begun, and nothing that came before it explains
/// that.
fn begun(batch: &Batch, member: &Member, view: &ServerView) -> bool {
    if batch.was_refused_as_busy() {
        return false;
    }
    let has_ended = view.activity == Activity::Idle && fresh_status(batch, member, view).is_some();
    let may_be_earlier = batch.action.leaves_no_mark() && member.shadowed;
    has_ended || ((view.activity == batch.action.transition()) && !may_be_earlier)
}

/// Settles what the states explain of a refused start or stop, and sends the rest again: in one
/// group if something was explained, else in two halves, so that at last the culprit stands alone.
fn explain(case: Case<'_>, sightings: &HashMap<ServerId, Sighting>) -> Step {
    let mut moves = Vec::new();
    let mut rest: Vec<&Member> = Vec::new();
    for member in &case.batch.members {
        match sightings
            .get(&member.server)
            .and_then(|sighting| explanation(case, member, sighting))
        {
            Some(event) => moves.push((member.request, event)),
            None => rest.push(member),
        }
    }
    if moves.is_empty() {
        split(case.batch, &rest, moves)
    } else {
        resend(case.batch, &rest, moves)
    }
}

/// What becomes of a server whose state explains the refusal; none: its state is no reason for one.
fn explanation(case: Case<'_>, member: &Member, sighting: &Sighting) -> Option<Event> {
    let batch = case.batch;
    let view = match sighting {
        Sighting::Missing => return Some(Event::Ended(missing())),
        Sighting::Present(view) => view,
    };
    if view.locked {
        let message = with_its_words(batch, "the server is locked in the cloud");
        return Some(Event::Ended(Outcome::failed(
            Evidence::Observed,
            OwnCode::Locked,
            message,
        )));
    }
    if view.activity != Activity::Idle {
        return Some(busy(
            batch,
            member,
            &Complaint::our_own(OwnCode::Busy, "the server is busy with another operation"),
            case.now,
        ));
    }
    if batch.action.needs_a_running_server() && view.power == Power::Off {
        return Some(Event::Ended(stopped(batch)));
    }
    let is_as_wished = view.power == batch.action.wished_power();
    (is_as_wished && !batch.action.leaves_no_mark()).then(|| {
        Event::Ended(Outcome::succeeded(
            Evidence::Already,
            already_sentence(batch.action),
        ))
    })
}

/// How far the proof has come that a refused reboot was not done.
enum Proof {
    /// There is no such server.
    Gone,
    /// It was not done.
    Disproved,
    /// Its row of looks is not long enough yet.
    Settling,
    /// In some transition, or not readable at present: a row may begin later.
    Unsettled,
    /// No look can prove it any more.
    Hopeless,
}

fn progress(case: Case<'_>, member: &Member, sighting: Option<&Sighting>) -> Proof {
    let view = match sighting {
        Some(Sighting::Missing) => return Proof::Gone,
        Some(Sighting::Present(view)) => Some(view),
        None => None,
    };
    let in_transition = view.is_some_and(|view| {
        matches!(
            view.activity,
            Activity::PoweringOn | Activity::PoweringOff | Activity::Rebooting
        )
    });
    let stays_visible = view.is_some_and(|view| explains_for_good(case.batch, member, view));
    match case.watch.idle_for(member.request) {
        _ if in_transition => Proof::Unsettled,
        Some(_) if case.can_be_disproved(member) || stays_visible => {
            if case.has_settled(member) {
                Proof::Disproved
            } else {
                Proof::Settling
            }
        }
        Some(_) if !case.has_settled(member) && !member.seen_moving => Proof::Settling,
        None if case.can_be_disproved(member) => Proof::Unsettled,
        Some(_) | None => Proof::Hopeless,
    }
}

/// True if the server is in a state in which no reboot is possible or can have ended well, whatever
/// nobody saw before.
fn explains_for_good(batch: &Batch, member: &Member, view: &ServerView) -> bool {
    let is_unable = view.locked || view.power == Power::Off;
    batch.action.leaves_no_mark()
        && view.activity == Activity::Idle
        && is_unable
        && !member.seen_moving
}

/// Reboots that the cloud refused are settled, or go again, once each has stayed idle through the
/// settling time in looks that would have shown it rebooting, late ones too. Those that nobody can
/// tell of any more count as lost.
fn settle_refused_reboots(case: Case<'_>, sightings: &HashMap<ServerId, Sighting>) -> Step {
    let Case {
        batch, rules, now, ..
    } = case;
    let mut gone = Vec::new();
    let mut disproved: Vec<&Member> = Vec::new();
    let mut are_settling = false;
    let mut are_unsettled = false;
    let mut are_hopeless = false;
    let mut seen_moving = Vec::new();
    for member in &batch.members {
        let sighting = sightings.get(&member.server);
        if let Some(Sighting::Present(view)) = sighting
            && view.activity == batch.action.transition()
            && !member.seen_moving
        {
            seen_moving.push(member.request);
        }
        match progress(case, member, sighting) {
            Proof::Gone => gone.push((member.request, Event::Ended(missing()))),
            Proof::Disproved => disproved.push(member),
            Proof::Settling => are_settling = true,
            Proof::Unsettled => are_unsettled = true,
            Proof::Hopeless => are_hopeless = true,
        }
    }
    let ends = batch.look_until.unwrap_or(now);
    if are_settling && now < ends {
        return Step {
            moves: gone,
            seen_moving,
            ..Step::only(batch.again_by(ends, rules, now))
        };
    }
    let others = are_settling
        || are_unsettled
        || are_hopeless
        || batch.members.len() < batch.server_count as usize;
    let mut step = finish(case, sightings, &disproved, gone, others);
    step.seen_moving = seen_moving;
    if are_unsettled && now < ends {
        step.batch = batch.again_by(ends, rules, now);
    } else if are_settling || are_unsettled || are_hopeless {
        step.batch = batch.look(LookCause::Lost, rules, now);
    }
    step
}

/// Reboots that were not done: settled by what explains the refusal, or sent again. `others`:
/// somebody else in the call may be the reason for it.
fn finish(
    case: Case<'_>,
    sightings: &HashMap<ServerId, Sighting>,
    disproved: &[&Member],
    mut moves: Vec<(RequestId, Event)>,
    others: bool,
) -> Step {
    let batch = case.batch;
    if let ([member], 1) = (disproved, batch.server_count)
        && let Some(event) = alone(case, member)
    {
        moves.push((member.request, event));
        return Step {
            moves,
            ..Step::only(BatchNext::Done)
        };
    }
    let mut rest: Vec<&Member> = Vec::new();
    for member in disproved {
        match sightings
            .get(&member.server)
            .and_then(|sighting| explanation(case, member, sighting))
        {
            Some(event) => moves.push((member.request, event)),
            None => rest.push(member),
        }
    }
    if moves.is_empty() && !others {
        split(batch, &rest, moves)
    } else {
        resend(batch, &rest, moves)
    }
}

/// What the cloud's own code says of the one server of a call, where a document tells what it
/// means.
fn alone(case: Case<'_>, member: &Member) -> Option<Event> {
    let why = case.batch.complaint.as_ref()?;
    match cloud_codes::class(&why.code) {
        CodeClass::ServerBusy | CodeClass::Retryable => {
            Some(busy(case.batch, member, why, case.now))
        }
        CodeClass::AlreadyInTargetState
        | CodeClass::ServerPermanent
        | CodeClass::ServerFailed
        | CodeClass::BatchInvalid => Some(Event::Ended(Outcome::failed(
            Evidence::Refused,
            &why.code,
            &why.message,
        ))),
        CodeClass::RetryableUncertain
        | CodeClass::Ambiguous
        | CodeClass::AuthToken
        | CodeClass::AuthPermission
        | CodeClass::ConfigPermanent
        | CodeClass::JobUnknown
        | CodeClass::SubJobFailed
        | CodeClass::Other => None,
    }
}

/// A stopped server cannot be rebooted. Source: user guide, "Restarting a BMS".
fn stopped(batch: &Batch) -> Outcome {
    let said_so = batch
        .complaint
        .as_ref()
        .filter(|complaint| complaint.class == CodeClass::AlreadyInTargetState);
    if let Some(Complaint { code, message, .. }) = said_so {
        return Outcome::failed(Evidence::Refused, code.as_str(), message.as_str());
    }
    let message = with_its_words(batch, "the server is stopped and cannot be rebooted");
    Outcome::failed(Evidence::Refused, OwnCode::Stopped, message)
}

/// Our sentence with that of the cloud, which may say more.
fn with_its_words(batch: &Batch, sentence: &str) -> String {
    match batch
        .complaint
        .as_ref()
        .filter(|why| !why.message.is_empty())
    {
        Some(why) if why.code.is_empty() => format!("{sentence}; the cloud said: {}", why.message),
        Some(why) => format!("{sentence}; the cloud said: {}: {}", why.code, why.message),
        None => sentence.to_owned(),
    }
}

fn resend(batch: &Batch, rest: &[&Member], mut moves: Vec<(RequestId, Event)>) -> Step {
    moves.extend(
        rest.iter()
            .map(|member| (member.request, beside_others(batch, FIRST_PART))),
    );
    Step {
        moves,
        ..Step::only(BatchNext::Done)
    }
}

/// Halves what nothing explains. One that was alone in its call is itself the reason, whatever it
/// is.
fn split(batch: &Batch, rest: &[&Member], mut moves: Vec<(RequestId, Event)>) -> Step {
    if let ([member], 1) = (rest, batch.server_count) {
        let why = batch
            .complaint
            .clone()
            .unwrap_or_else(|| Complaint::our_own(OwnCode::Refused, "the call was refused"));
        let code = if why.code.is_empty() {
            OwnCode::Refused.as_str()
        } else {
            why.code.as_str()
        };
        moves.push((
            member.request,
            Event::Ended(Outcome::failed(Evidence::Refused, code, &why.message)),
        ));
        return Step {
            moves,
            ..Step::only(BatchNext::Done)
        };
    }
    let half = rest.len().div_ceil(2);
    for (i, member) in rest.iter().enumerate() {
        let part = if i < half { FIRST_PART } else { SECOND_PART };
        moves.push((member.request, beside_others(batch, part)));
    }
    Step {
        moves,
        ..Step::only(BatchNext::Done)
    }
}

fn beside_others(batch: &Batch, part: i64) -> Event {
    let why = batch
        .complaint
        .clone()
        .unwrap_or_else(|| Complaint::our_own(OwnCode::Refused, "the whole call was refused"));
    Event::Returned(Return {
        retry_at: None,
        group: Some(batch.group(part)),
        result: AttemptResult::Refused,
        code: why.code,
        message: why.message,
    })
}

#[cfg(test)]
#[path = "refusal_tests.rs"]
mod tests;
