//! A refused batch: which of its servers made the cloud refuse it, and what goes again.
//!
//! Explain, then split: the states settle what they explain, the rest goes again as one group; only where nothing explains
//! the refusal is the batch halved. Where no document says what a refusal means, a reboot needs proof that it is true.

use std::collections::HashMap;

use super::look::{keep, missing, news};
use super::{Batch, FIRST_PART, Member, Rules, SECOND_PART, already_sentence, busy, our_own};
use crate::cloud::{CallError, Fault, codes};
use crate::lifecycle::{BatchNext, Event, Outcome, Return, Seen, SeenState, Step};
use crate::model::{
    Activity, AttemptResult, Baseline, CodeClass, Complaint, Evidence, LookCause, Power, PowerAction, RequestId,
    ServerId, Service, Sighting, UtcMillis,
};

/// How often the states of a refused batch are asked for before it is split without them.
const EXPLAINING_LOOKS_MAX: u32 = 3;

/// What follows from a look at the servers of a refused batch that was begun at `asked_at`.
pub(super) fn after_look(
    batch: &Batch,
    sightings: &HashMap<ServerId, Sighting>,
    rules: &Rules,
    asked_at: UtcMillis,
    now: UtcMillis,
) -> Step {
    match needs_proof(batch) {
        true => disprove(batch, sightings, rules, asked_at, now),
        false => explain(batch, sightings, rules, now),
    }
}

/// What follows when the states could not be read: later again, but not for long; then it is split without an explanation.
/// None where a split needs proof.
pub(super) fn after_failed_look(batch: &Batch, error: &CallError, rules: &Rules, now: UtcMillis) -> Option<Step> {
    if needs_proof(batch) {
        return None;
    }
    let hopeless = matches!(error.fault, Fault::Permission | Fault::Refused(_));
    let is_over = batch.look_until.is_some_and(|until| now >= until);
    if batch.looks + 1 >= EXPLAINING_LOOKS_MAX || hopeless || is_over {
        return Some(split(batch, &batch.members.iter().collect::<Vec<_>>(), Vec::new()));
    }
    Some(Step::only(batch.again(rules, now, batch.doubts)).after_failed_read(error))
}

/// Settles what the states explain of a refused batch, and sends the rest again: in one group if something was explained,
/// else in two halves, so that at last the culprit stands alone.
fn explain(batch: &Batch, sightings: &HashMap<ServerId, Sighting>, rules: &Rules, now: UtcMillis) -> Step {
    let mut moves = Vec::new();
    let mut followed = Vec::new();
    let mut rest: Vec<&Member> = Vec::new();
    for member in &batch.members {
        match sightings.get(&member.server).map(|sighting| blame(batch, member, sighting, now)) {
            Some(Blame::Settled(event)) => moves.push((member.request, event)),
            Some(Blame::CarriedOut) => followed.push((member.request, Seen { what: SeenState::Moving, since: now })),
            Some(Blame::Innocent) | None => rest.push(member),
        }
    }
    let mut step = match moves.is_empty() && followed.is_empty() {
        true => split(batch, &rest, moves),
        false => resend(batch, &rest, moves),
    };
    if !followed.is_empty() {
        step.batch = batch.look(LookCause::Lost, rules, now);
        step.seen = followed;
    }
    step
}

/// No code of CloudDC is documented, so that a refusal alone is no reason to send a reboot again. But its servers remember
/// their last operation: one that has stayed at what it was before the call, idle through the settling time, was not
/// rebooted. How long a reboot may be under way before it shows is not documented.
fn needs_proof(batch: &Batch) -> bool {
    batch.service == Service::CloudDc && batch.action == PowerAction::Reboot
}

/// As `explain`, for reboots that need proof that the refusal is true. If one of them has begun all the same, the refusal
/// says nothing of the others either.
fn disprove(
    batch: &Batch,
    sightings: &HashMap<ServerId, Sighting>,
    rules: &Rules,
    asked_at: UtcMillis,
    now: UtcMillis,
) -> Step {
    let (mut moves, mut unchanged, mut doubtful) = (Vec::new(), Vec::new(), false);
    for member in &batch.members {
        match suspect(batch, member, sightings.get(&member.server), asked_at, now) {
            Suspicion::Begun => return believe_nothing(batch, sightings, rules, asked_at, now),
            Suspicion::Settled(event) => moves.push((member.request, event)),
            Suspicion::Unchanged(since) => unchanged.push((member, since)),
            Suspicion::Doubtful => doubtful = true,
        }
    }
    let ends = batch.look_until.unwrap_or(now);
    let (proved, waiting): (Vec<_>, Vec<_>) =
        unchanged.into_iter().partition(|(_, seen)| asked_at.since(seen.since) >= rules.settle_time);
    if !waiting.is_empty() && now < ends {
        let news = waiting.iter().filter(|(member, seen)| member.seen != Some(*seen));
        let seen = news.map(|(member, seen)| (member.request, *seen)).collect();
        return Step { moves, seen, ..Step::only(batch.again_by(ends.min(now + rules.settle_time), rules, now)) };
    }
    let doubtful = doubtful || !waiting.is_empty();
    let explained = doubtful || !moves.is_empty() || batch.members.len() < batch.server_count as usize;
    let rest: Vec<&Member> = proved.into_iter().map(|(member, _)| member).collect();
    let step = if explained { resend(batch, &rest, moves) } else { split(batch, &rest, moves) };
    match doubtful {
        true => Step { batch: batch.look(LookCause::Lost, rules, now), ..step },
        false => step,
    }
}

/// A refused reboot was begun after all, as far as can be told: all of them are looked into as if no answer had come.
fn believe_nothing(
    batch: &Batch,
    sightings: &HashMap<ServerId, Sighting>,
    rules: &Rules,
    asked_at: UtcMillis,
    now: UtcMillis,
) -> Step {
    let is_rebooting = |member: &&Member| match sightings.get(&member.server) {
        Some(Sighting::Present(view)) => view.activity == Activity::Rebooting,
        Some(Sighting::Missing) | None => false,
    };
    let moving = Seen { what: SeenState::Moving, since: asked_at };
    let seen = batch.members.iter().filter(is_rebooting).map(|member| (member.request, moving)).collect();
    Step { seen, ..Step::only(batch.look(LookCause::Lost, rules, now)) }
}

/// What a server's state says of a refused reboot that needs proof.
enum Suspicion {
    /// It was begun, refusal or not.
    Begun,
    /// This server explains a refusal; here is what becomes of its request.
    Settled(Event),
    /// As it was before the call, and idle since then.
    Unchanged(Seen),
    /// Whether it was begun, its state does not tell.
    Doubtful,
}

fn suspect(
    batch: &Batch,
    member: &Member,
    sighting: Option<&Sighting>,
    asked_at: UtcMillis,
    now: UtcMillis,
) -> Suspicion {
    let view = match sighting {
        Some(Sighting::Present(view)) => view,
        Some(Sighting::Missing) => return Suspicion::Settled(Event::Ended(missing())),
        None => return Suspicion::Doubtful,
    };
    let unchanged = member.baseline == Baseline::Known(view.operation);
    match (view.activity, view.power) {
        (Activity::Rebooting, _) if !member.shadowed => Suspicion::Begun,
        (Activity::Idle, _) if news(batch, member, view, false).is_some() => Suspicion::Begun,
        (Activity::PoweringOn | Activity::PoweringOff, _) => {
            Suspicion::Settled(busy(batch, member, &our_own("busy", "the server is in another transition"), now))
        }
        (Activity::Idle, Power::Off) if unchanged => Suspicion::Settled(Event::Ended(stopped(batch))),
        (Activity::Idle, _) if unchanged => Suspicion::Unchanged(keep(member, SeenState::Idle, asked_at)),
        (Activity::Idle | Activity::Rebooting | Activity::Other, _) => Suspicion::Doubtful,
    }
}

enum Blame {
    /// This server explains a refusal; here is what becomes of its request.
    Settled(Event),
    /// A reboot that is under way, although the call was refused.
    CarriedOut,
    /// Nothing to be seen: the call is made again with it.
    Innocent,
}

fn blame(batch: &Batch, member: &Member, sighting: &Sighting, now: UtcMillis) -> Blame {
    let view = match sighting {
        Sighting::Missing => return Blame::Settled(Event::Ended(missing())),
        Sighting::Present(view) => view,
    };
    if batch.action == PowerAction::Reboot && view.activity == Activity::Rebooting && !was_refused_as_busy(batch) {
        return Blame::CarriedOut;
    }
    if view.locked {
        let locked = Outcome::failed(Evidence::Observed, "poweryard.locked", "the server is locked in the cloud");
        return Blame::Settled(Event::Ended(locked));
    }
    if view.activity != Activity::Idle {
        return Blame::Settled(busy(batch, member, &our_own("busy", "the server is in another transition"), now));
    }
    match (batch.action, view.power) {
        (PowerAction::Start, Power::On) | (PowerAction::Stop, Power::Off) => {
            Blame::Settled(Event::Ended(Outcome::succeeded(Evidence::Already, already_sentence(batch.action))))
        }
        (PowerAction::Reboot, Power::Off) => Blame::Settled(Event::Ended(stopped(batch))),
        _ => Blame::Innocent,
    }
}

/// The cloud itself says that a server was in a transition before the call: one that is seen now began before it.
fn was_refused_as_busy(batch: &Batch) -> bool {
    batch.complaint.as_ref().is_some_and(|complaint| codes::class(&complaint.code) == CodeClass::ServerBusy)
}

/// A stopped server cannot be rebooted. Source: user guide, "Restarting a BMS".
fn stopped(batch: &Batch) -> Outcome {
    let said_so = batch.complaint.as_ref().filter(|complaint| complaint.class == CodeClass::AlreadyInTargetState);
    let (code, message) = match said_so {
        Some(Complaint { code, message, .. }) => (code.as_str(), message.as_str()),
        None => ("poweryard.stopped", "the server is stopped and cannot be rebooted"),
    };
    Outcome::failed(Evidence::Refused, code, message)
}

fn resend(batch: &Batch, rest: &[&Member], mut moves: Vec<(RequestId, Event)>) -> Step {
    moves.extend(rest.iter().map(|member| (member.request, beside_others(batch, FIRST_PART))));
    Step { moves, ..Step::only(BatchNext::Done) }
}

/// Halves what nothing explains. One that was alone in its call is itself the reason, whatever it is.
fn split(batch: &Batch, rest: &[&Member], mut moves: Vec<(RequestId, Event)>) -> Step {
    if let ([member], 1) = (rest, batch.server_count) {
        let why = batch.complaint.clone().unwrap_or_else(|| our_own("refused", "the call was refused"));
        moves.push((member.request, Event::Ended(Outcome::failed(Evidence::Refused, &why.code, &why.message))));
        return Step { moves, ..Step::only(BatchNext::Done) };
    }
    let half = rest.len().div_ceil(2);
    for (i, member) in rest.iter().enumerate() {
        let part = if i < half { FIRST_PART } else { SECOND_PART };
        moves.push((member.request, beside_others(batch, part)));
    }
    Step { moves, ..Step::only(BatchNext::Done) }
}

fn beside_others(batch: &Batch, part: i64) -> Event {
    let why = batch.complaint.clone().unwrap_or_else(|| our_own("refused", "the whole call was refused"));
    Event::Returned(Return {
        retry_at: None,
        group: Some(batch.group(part)),
        result: AttemptResult::Refused,
        code: why.code,
        message: why.message,
    })
}
