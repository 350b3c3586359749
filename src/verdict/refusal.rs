//! A refused batch: which of its servers made the cloud refuse it, whether the refusal is true, and
//! what goes again.
//!
//! A refusal is believed as a whole or not at all: if one server has begun, the call counts as lost
//! for all of them. Explain, then split: the states settle what they explain, the rest goes again
//! as one group; only where nothing explains the refusal is the batch halved. A reboot needs proof
//! that the refusal is true before any of this.

use std::collections::HashMap;

use super::case::{Case, FIRST_PART, SECOND_PART, already, failed};
use super::evidence::{fresh_status, missing};
use crate::lifecycle::{Event, Moves, Outcome, Return, Step};
use crate::model::cloud_codes;
use crate::model::{
    AttemptResult, Batch, CallError, CodeClass, Complaint, Evidence, Fault, LookCause, Member,
    OwnCode, Power, RequestId, ServerId, ServerView, Sighting,
};

/// How often the states of a refused batch are asked for before it is split without them.
const EXPLAINING_LOOKS_MAX: u32 = 3;

/// What follows from a look at the servers of a refused batch.
pub(super) fn after_look(case: Case<'_>, sightings: &HashMap<ServerId, Sighting>) -> Step {
    if let Some(step) = treat_as_lost(case, sightings) {
        step
    } else if case.batch.action.leaves_no_mark() {
        settle_refused_reboots(case, sightings)
    } else {
        Step::done(explain_or_halve(case, sightings))
    }
}

/// What becomes of refused starts and stops.
fn explain_or_halve(case: Case<'_>, sightings: &HashMap<ServerId, Sighting>) -> Moves {
    let all: Vec<&Member> = case.batch.members.iter().collect();
    let mut explained = explain(case, &all, sightings);
    if explained.moves.is_empty() {
        return halve(case.batch, &all);
    }
    explained.moves.extend(resend(case.batch, &explained.rest));
    explained.moves
}

/// What follows when the states could not be read: later again, but not for long; then it is split
/// without an explanation. Where a split needs proof, what is then in doubt counts as lost.
pub(super) fn after_failed_look(case: Case<'_>, error: &CallError) -> Step {
    let batch = case.batch;
    let is_over = batch.look_until.is_some_and(|until| case.now >= until);
    if batch.action.leaves_no_mark() {
        let next = if is_over {
            case.look_at_servers(LookCause::Lost)
        } else {
            case.look_again_by(batch.look_until.unwrap_or(case.now))
        };
        return Step::only(next).after_failed_read(error);
    }
    let is_hopeless = matches!(error.fault, Fault::Permission | Fault::Refused(_));
    if is_over || is_hopeless || batch.looks + 1 >= EXPLAINING_LOOKS_MAX {
        let all: Vec<&Member> = batch.members.iter().collect();
        return Step::done(halve(batch, &all));
    }
    Step::only(case.look_again(batch.doubts)).after_failed_read(error)
}

/// If any of the servers has started anyway, as far as can be told, the refusal cannot be trusted
/// for the others: all of them are looked into as if no answer had come.
fn treat_as_lost(case: Case<'_>, sightings: &HashMap<ServerId, Sighting>) -> Option<Step> {
    let batch = case.batch;
    let has_begun = batch
        .members
        .iter()
        .any(|member| view_of(member, sightings).is_some_and(|view| begun(batch, member, view)));
    if !has_begun {
        return None;
    }
    let moving = batch
        .members
        .iter()
        .filter(|member| is_in_transition(batch, member, sightings));
    Some(Step {
        seen_moving: moving.map(|member| member.request).collect(),
        ..Step::only(case.look_at_servers(LookCause::Lost))
    })
}

/// True if a server shows what this call would have begun, and nothing that came before it explains
/// that.
fn begun(batch: &Batch, member: &Member, view: &ServerView) -> bool {
    if batch.was_refused_as_busy() {
        return false;
    }
    let has_ended = view.is_idle() && fresh_status(batch, member, view).is_some();
    let may_be_earlier = batch.action.leaves_no_mark() && member.shadowed;
    let is_under_way = view.activity == batch.action.transition();
    has_ended || (is_under_way && !may_be_earlier)
}

/// True if the server is in the transition that the request would cause.
fn is_in_transition(
    batch: &Batch,
    member: &Member,
    sightings: &HashMap<ServerId, Sighting>,
) -> bool {
    view_of(member, sightings).is_some_and(|view| view.activity == batch.action.transition())
}

fn view_of<'a>(
    member: &Member,
    sightings: &'a HashMap<ServerId, Sighting>,
) -> Option<&'a ServerView> {
    match sightings.get(&member.server)? {
        Sighting::Present(view) => Some(view),
        Sighting::Missing => None,
    }
}

/// Servers whose states explain the refusal, and the rest.
struct Explained<'a> {
    moves: Moves,
    rest: Vec<&'a Member>,
}

/// Settles those of `members` whose states explain the refusal.
fn explain<'a>(
    case: Case<'_>,
    members: &[&'a Member],
    sightings: &HashMap<ServerId, Sighting>,
) -> Explained<'a> {
    let mut moves = Vec::new();
    let mut rest = Vec::new();
    for member in members {
        match explanation(case, member, sightings) {
            Some(event) => moves.push((member.request, event)),
            None => rest.push(*member),
        }
    }
    Explained { moves, rest }
}

/// What becomes of a server whose state explains the refusal; none: its state is no reason for one.
fn explanation(
    case: Case<'_>,
    member: &Member,
    sightings: &HashMap<ServerId, Sighting>,
) -> Option<Event> {
    let batch = case.batch;
    let action = batch.action;
    let view = match sightings.get(&member.server)? {
        Sighting::Missing => return Some(missing()),
        Sighting::Present(view) => view,
    };
    if view.locked {
        return Some(locked(batch));
    }
    if !view.is_idle() {
        let why = Complaint::our_own(OwnCode::Busy, "the server is busy with another operation");
        return Some(case.wait_apart(member, &why));
    }
    if action.needs_a_running_server() && view.power == Power::Off {
        return Some(stopped(batch));
    }
    let is_as_wished = view.power == action.wished_power() && !action.leaves_no_mark();
    is_as_wished.then(|| already(action))
}

fn locked(batch: &Batch) -> Event {
    let message = with_the_clouds_words(batch, "the server is locked in the cloud");
    Event::Ended(Outcome::failed(
        Evidence::Observed,
        OwnCode::Locked,
        message,
    ))
}

/// A stopped server cannot be rebooted. Source: user guide, "Restarting a BMS".
fn stopped(batch: &Batch) -> Event {
    if let Some(why) = &batch.complaint
        && why.class == CodeClass::AlreadyInTargetState
    {
        return failed(Evidence::Refused, why);
    }
    let message = with_the_clouds_words(batch, "the server is stopped and cannot be rebooted");
    Event::Ended(Outcome::failed(
        Evidence::Refused,
        OwnCode::Stopped,
        message,
    ))
}

/// Our sentence with that of the cloud, which may say more.
fn with_the_clouds_words(batch: &Batch, sentence: &str) -> String {
    match &batch.complaint {
        Some(why) if why.message.is_empty() => sentence.to_owned(),
        Some(why) if why.code.is_empty() => format!("{sentence}; the cloud said: {}", why.message),
        Some(why) => format!("{sentence}; the cloud said: {}: {}", why.code, why.message),
        None => sentence.to_owned(),
    }
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

fn judge_refused_reboot(case: Case<'_>, member: &Member, sighting: Option<&Sighting>) -> Proof {
    let view = match sighting {
        Some(Sighting::Missing) => return Proof::Gone,
        Some(Sighting::Present(view)) => Some(view),
        None => None,
    };
    if view.is_some_and(|view| view.activity.is_power_transition()) {
        return Proof::Unsettled;
    }
    let can_be_disproved = case.can_be_disproved(member);
    if case.watch.idle_for(member.request).is_none() {
        return if can_be_disproved {
            Proof::Unsettled
        } else {
            Proof::Hopeless
        };
    }
    let has_settled = case.has_settled(member);
    let stays_visible = view.is_some_and(|view| explains_for_good(member, view));
    if can_be_disproved || stays_visible {
        if has_settled {
            Proof::Disproved
        } else {
            Proof::Settling
        }
    } else if !has_settled && !member.seen_moving {
        Proof::Settling
    } else {
        Proof::Hopeless
    }
}

/// True if the server is in a state in which no reboot is possible or can have ended well, whatever
/// nobody saw before.
fn explains_for_good(member: &Member, view: &ServerView) -> bool {
    let is_unable = view.locked || view.power == Power::Off;
    view.is_idle() && is_unable && !member.seen_moving
}

/// Refused reboots by how far their proofs have come.
#[derive(Default)]
struct Judged<'a> {
    gone: Moves,
    disproved: Vec<&'a Member>,
    /// Seen rebooting, for the first time.
    seen_moving: Vec<RequestId>,
    some_settling: bool,
    some_unsettled: bool,
    some_hopeless: bool,
}

impl Judged<'_> {
    /// True if another server of the call than the disproved ones may be the reason for the
    /// refusal.
    fn others_may_be_the_reason(&self, batch: &Batch) -> bool {
        self.some_open() || batch.members.len() < batch.server_count as usize
    }

    fn some_open(&self) -> bool {
        self.some_settling || self.some_unsettled || self.some_hopeless
    }
}

fn judge_refused_reboots<'a>(
    case: Case<'a>,
    sightings: &HashMap<ServerId, Sighting>,
) -> Judged<'a> {
    let mut judged = Judged::default();
    for member in &case.batch.members {
        if is_in_transition(case.batch, member, sightings) && !member.seen_moving {
            judged.seen_moving.push(member.request);
        }
        match judge_refused_reboot(case, member, sightings.get(&member.server)) {
            Proof::Gone => judged.gone.push((member.request, missing())),
            Proof::Disproved => judged.disproved.push(member),
            Proof::Settling => judged.some_settling = true,
            Proof::Unsettled => judged.some_unsettled = true,
            Proof::Hopeless => judged.some_hopeless = true,
        }
    }
    judged
}

/// Reboots that the cloud refused are settled, or go again, once each has stayed idle through the
/// settling time in looks that would have shown it rebooting, late ones too. Those that nobody can
/// tell of any more count as lost.
fn settle_refused_reboots(case: Case<'_>, sightings: &HashMap<ServerId, Sighting>) -> Step {
    let judged = judge_refused_reboots(case, sightings);
    let ends = case.batch.look_until.unwrap_or(case.now);
    let has_time = case.now < ends;
    let mut step = Step::done(Vec::new());
    if has_time && (judged.some_settling || judged.some_unsettled) {
        step.batch = case.look_again_by(ends);
    } else if judged.some_open() {
        step.batch = case.look_at_servers(LookCause::Lost);
    }
    step.moves = if has_time && judged.some_settling {
        judged.gone
    } else {
        settle_disproved(case, sightings, &judged)
    };
    step.seen_moving = judged.seen_moving;
    step
}

/// Reboots that were not done: settled by what explains the refusal, or sent again.
fn settle_disproved(
    case: Case<'_>,
    sightings: &HashMap<ServerId, Sighting>,
    judged: &Judged<'_>,
) -> Moves {
    let batch = case.batch;
    if let Some(settled) = settle_alone(case, &judged.disproved) {
        return vec![settled];
    }
    let explained = explain(case, &judged.disproved, sightings);
    let mut moves = judged.gone.clone();
    moves.extend(explained.moves);
    if moves.is_empty() && !judged.others_may_be_the_reason(batch) {
        return halve(batch, &judged.disproved);
    }
    moves.extend(resend(batch, &explained.rest));
    moves
}

/// By the cloud's own code, if the call carried one server and a document tells what the code
/// means.
fn settle_alone(case: Case<'_>, disproved: &[&Member]) -> Option<(RequestId, Event)> {
    let why = case.batch.complaint.as_ref()?;
    let member = only_server(case.batch, disproved)?;
    let event = case.refused_alone(member, cloud_codes::class(&why.code), why)?;
    Some((member.request, event))
}

/// The one of `members` that was alone in its call.
fn only_server<'a>(batch: &Batch, members: &[&'a Member]) -> Option<&'a Member> {
    match members {
        [member] if batch.server_count == 1 => Some(member),
        _ => None,
    }
}

/// Halves what nothing explains. One that was alone in its call is itself the reason, whatever it
/// is.
fn halve(batch: &Batch, members: &[&Member]) -> Moves {
    if let Some(member) = only_server(batch, members) {
        return vec![(member.request, refused_for_good(batch))];
    }
    let half = members.len().div_ceil(2);
    let mut moves = Vec::new();
    for (i, member) in members.iter().enumerate() {
        let part = if i < half { FIRST_PART } else { SECOND_PART };
        moves.push((member.request, send_again(batch, part)));
    }
    moves
}

fn refused_for_good(batch: &Batch) -> Event {
    let mut why = batch
        .complaint
        .clone()
        .unwrap_or_else(|| Complaint::our_own(OwnCode::Refused, "the call was refused"));
    if why.code.is_empty() {
        why.code = OwnCode::Refused.into();
    }
    failed(Evidence::Refused, &why)
}

/// All of them as one group.
fn resend(batch: &Batch, members: &[&Member]) -> Moves {
    members
        .iter()
        .map(|member| (member.request, send_again(batch, FIRST_PART)))
        .collect()
}

/// Back to the queue, in this part of the batch.
fn send_again(batch: &Batch, part: i64) -> Event {
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
