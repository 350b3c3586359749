//! The promises of the contract, as checks of a run's facts. Pure: changes nothing, reads no clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::Broken;
use super::audit::Move;
use super::facts::{BatchFacts, Departure, Facts, Fate, Moment, Request, SLACK};
use super::guards;
use super::windows::Calendar;
use super::wire::Cloud;
use poweryard::model::Budget;
use poweryard::model::{
    AttemptResult, BatchState, Evidence, PowerAction, RequestState, ServerId, TargetName, UtcMillis,
};
use poweryard::sim::OnOff;

/// The configured bounds that a run is held to.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) targets: BTreeMap<TargetName, TargetLimits>,
    pub(super) attempts_max: u32,
    pub(super) default_ttl: Option<Duration>,
    /// From a claim to the end of its attempt.
    pub(super) flight_max: Duration,
    /// Targets that nothing disturbs: a request that nothing holds leaves within so long.
    pub(super) prompt: BTreeMap<TargetName, Duration>,
    /// What can be seen at each target.
    pub(super) sights: BTreeMap<TargetName, Sight>,
    /// There is a gate before each wave, and what it says is true for so long.
    pub(super) gate_interval: Option<Duration>,
}

impl Limits {
    /// The same, where the clouds' lists have these servers.
    pub(super) fn with_listed(mut self, listed: &BTreeSet<ServerId>) -> Self {
        for sight in self.sights.values_mut() {
            sight.listed.clone_from(listed);
        }
        self
    }

    /// The more generous of both: calls that were made before a reload count too.
    pub(super) fn loosen(&mut self, other: &Self) {
        self.attempts_max = self.attempts_max.max(other.attempts_max);
        self.flight_max = self.flight_max.max(other.flight_max);
        for (name, limits) in &mut self.targets {
            let Some(new) = other.targets.get(name) else {
                continue;
            };
            limits.submits_per_minute = limits.submits_per_minute.max(new.submits_per_minute);
            limits.batch_servers_max = new.batch_servers_max;
            limits.guards.clone_from(&new.guards);
            limits.calendar.clone_from(&new.calendar);
        }
        self.gate_interval = other.gate_interval;
    }
}

/// Where a scenario hides nothing: what has happened to a server there can be seen by whoever
/// looks.
#[derive(Debug, Clone, Default)]
pub(super) struct Sight {
    /// The power that a start or a stop leaves.
    pub(super) power: bool,
    /// That a reboot was accepted, and how it ended.
    pub(super) reboots: bool,
    /// That a refused reboot was not done: an unbroken row of looks shows it.
    pub(super) refused_reboots: bool,
    /// Servers that can never be shown alone.
    pub(super) hidden: Vec<ServerId>,
    /// Servers that the list has.
    pub(super) listed: BTreeSet<ServerId>,
}

/// Those of one target.
#[derive(Debug, Clone)]
pub(super) struct TargetLimits {
    pub(super) submits_per_minute: u32,
    pub(super) batch_servers_max: u32,
    pub(super) budgets: Vec<(PowerAction, Budget)>,
    pub(super) protected: Vec<ServerId>,
    pub(super) guards: Vec<(PowerAction, Budget)>,
    pub(super) calendar: Calendar,
}

impl TargetLimits {
    pub(super) fn forbids(&self, action: PowerAction, server: &ServerId) -> bool {
        action != PowerAction::Start && self.protected.contains(server)
    }
}

macro_rules! hold {
    ($true:expr, $($text:tt)*) => {
        if !$true {
            return Err(Broken(format!($($text)*)));
        }
    };
}
pub(super) use hold;

/// Intents precede calls: what leaves is a stored batch with these members and no others.
pub(super) fn check_departure(
    facts: &Facts,
    call: &Departure<'_>,
    now: Moment,
) -> Result<(), Broken> {
    let Departure {
        batch,
        target,
        action,
        members,
    } = call;
    let stored = facts.batches.get(batch);
    hold!(
        stored.is_some(),
        "the call of batch {batch} leaves, but no intent is stored"
    );
    let Some(stored) = stored else { return Ok(()) };
    hold!(
        stored.state == BatchState::Submitting,
        "the call of batch {batch} leaves, but it is {}",
        stored.state
    );
    hold!(
        stored.departed.is_none(),
        "the call of batch {batch} leaves a second time"
    );
    hold!(
        stored.action == *action,
        "batch {batch} is for {}, but its call is {action}",
        stored.action
    );
    hold!(
        stored.members.iter().eq(members.keys()),
        "batch {batch} has other members stored than it sends"
    );
    let limits = facts.limits.targets.get(*target);
    hold!(
        limits.is_some(),
        "batch {batch} goes to target {target}, which nobody configured"
    );
    let Some(limits) = limits else { return Ok(()) };
    let asked_until = facts.asked_until.get(*target);
    hold!(
        asked_until.is_none_or(|until| now.real >= *until),
        "batch {batch} leaves before {asked_until:?} (Retry-After)"
    );
    hold!(
        members.len() <= limits.batch_servers_max as usize,
        "batch {batch} is too large"
    );
    for (id, server) in *members {
        let known = facts
            .requests
            .get(id)
            .map(|request| (&request.wish, request.state));
        let as_asked = known.is_some_and(|(wish, state)| {
            state == RequestState::Running
                && (&wish.target, &wish.server, wish.action) == (*target, server, *action)
        });
        hold!(
            as_asked,
            "batch {batch} sends {action} of {server} for request {id}, which is {known:?}"
        );
        hold!(
            !limits.forbids(*action, server),
            "batch {batch} sends {action} of {server}, which is protected"
        );
    }
    check_budget(facts, call, limits, now)?;
    guards::check(facts, call, limits, now)
}

/// Nothing leaves outside its window but what has a reason. True if this call leaves for that.
pub(super) fn check_window(
    facts: &Facts,
    call: &Departure<'_>,
    now: Moment,
) -> Result<bool, Broken> {
    let calendar = facts
        .limits
        .targets
        .get(call.target)
        .map(|limits| &limits.calendar);
    if calendar.is_none_or(|calendar| calendar.is_open(call.action, now.utc)) {
        return Ok(false);
    }
    for id in call.members.keys() {
        let has_reason = facts
            .requests
            .get(id)
            .is_some_and(|request| request.wish.has_override);
        hold!(
            has_reason,
            "request {id} leaves outside the window of {}, without a reason",
            call.action
        );
    }
    Ok(true)
}

/// Calls that may have had an effect never carry more servers in a budget's span than it allows.
fn check_budget(
    facts: &Facts,
    call: &Departure<'_>,
    limits: &TargetLimits,
    now: Moment,
) -> Result<(), Broken> {
    let Some((_, budget)) = limits
        .budgets
        .iter()
        .find(|(action, _)| *action == call.action)
    else {
        return Ok(());
    };
    let counts = |batch: &&BatchFacts| is_spent(batch, (call.target, call.action), *budget, now);
    let spent: usize = facts
        .batches
        .values()
        .filter(counts)
        .map(|batch| batch.members.len())
        .sum();
    let all = spent + call.members.len();
    hold!(
        all <= budget.servers as usize,
        "{all} servers to {} in {:?}, of {}",
        call.action,
        budget.span,
        budget.servers
    );
    Ok(())
}

/// True if a budget or a guard counts this batch: it left within the span, and may have had an effect.
pub(super) fn is_spent(
    batch: &BatchFacts,
    (target, action): (&TargetName, PowerAction),
    budget: Budget,
    now: Moment,
) -> bool {
    let in_span = |(at, own): &(Moment, TargetName)| {
        own == target
            && now.utc.since(at.utc) < budget.span
            && now.real.since(at.real) < budget.span
    };
    batch.action == action
        && batch.departed.as_ref().is_some_and(in_span)
        && !matches!(batch.known_fate(), Fate::NotDone | Fate::Refused)
}

/// Never more calls in so long than configured, over restarts too.
pub(super) fn check_pace(
    calls: &mut VecDeque<UtcMillis>,
    limits: Option<&TargetLimits>,
    span: Duration,
    now: UtcMillis,
) -> Result<(), Broken> {
    while calls.front().is_some_and(|&at| now.since(at) >= span) {
        calls.pop_front();
    }
    let (calls, most) = (
        calls.len(),
        limits.map_or(0, |limits| limits.submits_per_minute),
    );
    hold!(
        calls <= most as usize,
        "{calls} submit calls in {span:?}; {most} are allowed"
    );
    Ok(())
}

/// What the cloud acts on must still be open in this batch, and no reboot may come twice. Where the
/// cloud acts on what it has denied, only the latter can be promised: starts and stops may be sent
/// again, and what it says of one server is believed.
pub(super) fn check_carried(facts: &Facts, batch: i64, id: i64) -> Result<(), Broken> {
    let Some(request) = facts.requests.get(&id) else {
        return Ok(());
    };
    let is_reboot = request.wish.action == PowerAction::Reboot;
    hold!(
        !is_reboot || facts.times_carried(id) == 0,
        "request {id}: batch {batch} reboots its server a second time"
    );
    let result = request
        .calls
        .iter()
        .find(|(call, _)| *call == batch)
        .and_then(|(_, result)| *result);
    let lied = facts
        .batches
        .get(&batch)
        .is_some_and(|batch| batch.denied.contains(&id));
    if lied && (!is_reboot || request.state == RequestState::Failed) {
        return Ok(());
    }
    let denied = matches!(
        result,
        Some(
            AttemptResult::NotSent
                | AttemptResult::Busy
                | AttemptResult::Refused
                | AttemptResult::Lost
        )
    ) || (request.state == RequestState::Failed && result.is_some());
    hold!(
        !denied,
        "request {id}: batch {batch} is carried out after its attempt was settled as {result:?}"
    );
    Ok(())
}

/// One move of one request.
pub(super) fn check_move(
    facts: &Facts,
    moved: &Move,
    cloud: &Cloud,
    now: Moment,
) -> Result<(), Broken> {
    let id = moved.request;
    let Some(request) = facts.requests.get(&id) else {
        return Err(Broken(format!(
            "request {id} moves, but nobody inserted it"
        )));
    };
    hold!(
        request.state == moved.was,
        "request {id} was {}, and is moved from {}",
        request.state,
        moved.was
    );
    hold!(
        is_legal(moved.was, moved.becomes),
        "request {id} moves from {} to {}",
        moved.was,
        moved.becomes
    );
    match moved.becomes {
        RequestState::Running => check_claim(facts, id, request, now),
        RequestState::Queued => check_return(facts, id, request),
        _ => check_end(facts, moved, request, cloud, now),
    }
}

/// Only what has ended is ever pruned, and nothing that somebody still waits for.
pub(super) fn check_deleted(facts: &Facts, id: i64, was: &str) -> Result<(), Broken> {
    let state = facts.requests.get(&id).map(|request| request.state);
    hold!(
        state.is_some_and(RequestState::is_terminal),
        "request {id} ({was}, {state:?}) was deleted"
    );
    let waits = facts
        .requests
        .iter()
        .find(|(_, other)| other.wish.after == Some(id) && !other.state.is_terminal());
    hold!(
        waits.is_none(),
        "request {id} was deleted, and request {waits:?} waits for it"
    );
    let label = facts
        .requests
        .get(&id)
        .and_then(|request| request.wish.label.as_ref());
    let order = label.and_then(|label| facts.orders.get(label));
    hold!(
        order.is_none_or(|order| order.is_done),
        "request {id} was deleted, and its order {label:?} is not done"
    );
    Ok(())
}

/// A batch is never pruned before it is done.
pub(super) fn check_gone(facts: &Facts, id: i64, was: BatchState) -> Result<(), Broken> {
    let state = facts.batches.get(&id).map(|batch| batch.state);
    let is_done = (was, state) == (BatchState::Done, Some(BatchState::Done));
    hold!(is_done, "batch {id} ({was}, {state:?}) was deleted");
    Ok(())
}

/// True where the cloud acts, or has acted, on the request's server although it denied it, for
/// whichever request that was.
fn cloud_lies_of(facts: &Facts, request: &Request) -> bool {
    let own = &request.wish;
    let same =
        |other: &&Request| (&other.wish.server, &other.wish.target) == (&own.server, &own.target);
    let denied = |batch: &i64| {
        facts
            .batches
            .get(batch)
            .is_some_and(|batch| !batch.denied.is_empty())
    };
    facts
        .requests
        .values()
        .filter(same)
        .flat_map(|other| &other.calls)
        .any(|(batch, _)| denied(batch))
}

/// True where whoever looks could have told what became of a request: it was sent, its server can
/// be seen, nothing fell into the time of its batch, no other operation could be taken for its own.
/// A start or a stop leaves a mark whatever became of its call. A reboot does not: of one that was
/// accepted its job tells, of one that was refused a row of looks.
pub(super) fn had_evidence(facts: &Facts, request: &Request) -> bool {
    let wish = &request.wish;
    let Some(sight) = facts.limits.sights.get(&wish.target) else {
        return false;
    };
    let batches = request
        .calls
        .iter()
        .filter_map(|(batch, _)| facts.batches.get(batch));
    let undisturbed = batches.clone().all(|batch| !batch.disturbed);
    let same =
        |other: &&Request| (&other.wish.server, &other.wish.target) == (&wish.server, &wish.target);
    let is_shown = sight.listed.contains(&wish.server) && !sight.hidden.contains(&wish.server);
    if request.calls.is_empty() || !undisturbed || !is_shown || cloud_lies_of(facts, request) {
        return false;
    }
    match wish.action {
        PowerAction::Start | PowerAction::Stop => sight.power,
        PowerAction::Reboot => {
            let casts_shadow = |other: &&Request| {
                other.wish.action == PowerAction::Reboot
                    && matches!(other.state, RequestState::Unknown | RequestState::Failed)
                    && !std::ptr::eq(*other, request)
            };
            let shadowed = facts
                .requests
                .values()
                .filter(same)
                .any(|other| casts_shadow(&other));
            let can_tell = match batches.clone().next_back().map(BatchFacts::known_fate) {
                Some(Fate::Accepted) => sight.reboots,
                Some(Fate::Refused) => sight.refused_reboots,
                Some(Fate::NotDone) => true,
                Some(Fate::Open | Fate::InDoubt) | None => false,
            };
            can_tell && !shadowed
        }
    }
}

/// Where nothing disturbs a target, whatever happens at others, a request that nothing holds leaves
/// soon.
pub(super) fn check_prompt(facts: &Facts, now: Moment) -> Result<(), Broken> {
    for (id, request) in &facts.requests {
        let (wish, Some(most)) = (&request.wish, facts.limits.prompt.get(&request.wish.target))
        else {
            continue;
        };
        // Those of the same server come first; it has waited since the last of them has ended.
        let same = |other: &&Request| {
            (&other.wish.server, &other.wish.target) == (&wish.server, &wish.target)
        };
        let older = || {
            facts
                .requests
                .range(..id)
                .map(|(_, older)| older)
                .filter(same)
        };
        let is_first = || older().all(|other| other.state.is_terminal());
        let is_free_for = || {
            older()
                .map(|other| now.real.since(other.since.real))
                .min()
                .unwrap_or(Duration::MAX)
        };
        let since = wish
            .not_before
            .map_or(now.real.since(request.since.real), |at| now.utc.since(at));
        let waits = since.min(now.real.since(request.since.real));
        let is_late = request.state == RequestState::Queued
            && wish.after.is_none()
            && wish.label.is_none()
            && waits > *most
            && is_free_for() > *most;
        hold!(
            !is_late || !is_first(),
            "request {id} waits {waits:?} for {} although nothing holds it",
            wish.target
        );
    }
    Ok(())
}

/// The diagram of the contract.
fn is_legal(was: RequestState, becomes: RequestState) -> bool {
    use RequestState::{Cancelled, Expired, Failed, Queued, Rejected, Running, Succeeded, Unknown};
    match was {
        Queued => matches!(becomes, Running | Cancelled | Expired | Rejected),
        Running => matches!(becomes, Queued | Succeeded | Failed | Unknown),
        Succeeded | Failed | Cancelled | Expired | Rejected | Unknown => false,
    }
}

/// Nothing goes out before its time, after its time, out of turn or past an operator's hold; no
/// reboot goes out again.
fn check_claim(facts: &Facts, id: i64, request: &Request, now: Moment) -> Result<(), Broken> {
    hold!(
        !facts.awaits_release,
        "request {id} goes out although an older copy was put back, and nobody released it"
    );
    let (wish, now) = (&request.wish, now.utc);
    // Taken in while the clock was ahead, it may go although somebody has set the clock back since.
    let was = facts.latest.max(now);
    hold!(
        wish.not_before.is_none_or(|at| at <= was),
        "request {id} goes out before its not_before"
    );
    // The default time counts from when it came: it has not waited for longer because somebody set
    // the clock ahead.
    let allowance = if wish.expires_at.is_none() {
        facts.stepped
    } else {
        Duration::ZERO
    };
    let expiry = facts.expiry(request);
    hold!(
        expiry.is_none_or(|at| at + allowance > now),
        "request {id} goes out after its time"
    );
    hold!(
        is_freed(facts, request),
        "request {id} goes out before what it waits for has succeeded"
    );
    hold!(
        !is_paused(facts, request),
        "request {id} goes out although {} or its label is held",
        wish.action
    );
    let order = wish
        .label
        .as_ref()
        .filter(|label| facts.orders.contains_key(*label));
    hold!(
        order.is_none() || request.wave.is_some(),
        "request {id} goes out before a wave of its order {order:?} has let it go"
    );
    let reboots = wish.action == PowerAction::Reboot && facts.times_carried(id) > 0;
    hold!(
        !reboots,
        "request {id}: a reboot that was carried out is claimed again"
    );
    let same =
        |other: &Request| (&other.wish.server, &other.wish.target) == (&wish.server, &wish.target);
    for (other_id, other) in facts
        .requests
        .iter()
        .filter(|(other_id, other)| **other_id != id && same(other))
    {
        hold!(
            other.state != RequestState::Running,
            "requests {other_id} and {id} are in flight for {} together",
            wish.server
        );
        // One whose not_before was changed after the clock was set back may wait until its insert
        // is no longer ahead.
        let has_come = other.wish.inserted_at.utc <= now;
        let due =
            has_come && other.wish.not_before.is_none_or(|at| at <= now) && is_freed(facts, other);
        let waits_first = *other_id < id && other.state == RequestState::Queued && due;
        hold!(
            !waits_first,
            "request {id} goes out before request {other_id} of the same server, which is due"
        );
    }
    Ok(())
}

/// True if an operator holds its target, its action or its label.
pub(super) fn is_paused(facts: &Facts, request: &Request) -> bool {
    let wish = &request.wish;
    facts.held.iter().any(|(target, action, label)| {
        target.as_ref().is_none_or(|target| *target == wish.target)
            && action.is_none_or(|action| action == wish.action)
            && (label.is_none() || *label == wish.label)
    })
}

fn is_freed(facts: &Facts, request: &Request) -> bool {
    let awaited = request.wish.after.and_then(|id| facts.requests.get(&id));
    awaited.is_none_or(|awaited| awaited.state == RequestState::Succeeded)
}

/// Back in the queue means: proved not carried out.
fn check_return(facts: &Facts, id: i64, request: &Request) -> Result<(), Broken> {
    let Some((batch, result)) = request.calls.last() else {
        return Ok(());
    };
    let lied = request.wish.action != PowerAction::Reboot && cloud_lies_of(facts, request);
    let carried = facts
        .batches
        .get(batch)
        .is_some_and(|batch| batch.carried.contains(&id));
    hold!(
        !carried || lied,
        "request {id} is queued again ({result:?}), but the cloud has carried it out for batch {batch}"
    );
    Ok(())
}

fn check_end(
    facts: &Facts,
    moved: &Move,
    request: &Request,
    cloud: &Cloud,
    now: Moment,
) -> Result<(), Broken> {
    let (id, evidence) = (moved.request, moved.evidence);
    match moved.becomes {
        RequestState::Succeeded => check_success(facts, moved, request, cloud)?,
        RequestState::Failed => {
            let known = matches!(
                evidence,
                Some(Evidence::Job | Evidence::Refused | Evidence::Observed)
            );
            hold!(known, "request {id} failed with evidence {evidence:?}");
            let told =
                |batch: &BatchFacts| batch.carried.contains(&id) && !batch.denied.contains(&id);
            let honest = !facts.batches.values().any(told) || moved.code == "poweryard.not_running";
            // No refusal of a reboot is believed before looks have disproved it.
            let is_refused_reboot =
                evidence == Some(Evidence::Refused) && request.wish.action == PowerAction::Reboot;
            hold!(
                !is_refused_reboot || facts.times_carried(id) == 0,
                "request {id} failed as a refused reboot ({}), but the cloud had begun it",
                moved.code
            );
            // Who says that a server was rebooted and did not come back has seen its reboot.
            let claims_reboot =
                moved.code == "poweryard.not_running" && request.wish.action == PowerAction::Reboot;
            let touched = facts.touched.contains(&request.wish.server);
            hold!(
                !claims_reboot || touched || facts.times_carried(id) > 0,
                "request {id} failed as a reboot that was seen, but the cloud made none"
            );
            // What is seen may be the end of another operation, of which a copy that was put back
            // knows nothing.
            let by_another = evidence == Some(Evidence::Observed)
                && facts.touched.contains(&request.wish.server);
            hold!(
                honest || by_another,
                "request {id} failed ({evidence:?}, {}), but the cloud carried it out",
                moved.code
            );
        }
        RequestState::Unknown => {
            let seen = had_evidence(facts, request);
            hold!(
                !seen,
                "request {id} ended unknown ({}), but evidence could be had",
                moved.code
            );
        }
        RequestState::Expired => {
            let due = facts.expiry(request).is_some_and(|at| at <= now.utc)
                || facts.has_really_expired(request, now);
            hold!(due, "request {id} expired before its time");
        }
        RequestState::Rejected => {
            let limits = facts.limits.targets.get(&request.wish.target);
            let forbidden = limits
                .is_some_and(|limits| limits.forbids(request.wish.action, &request.wish.server));
            hold!(
                forbidden,
                "request {id} was rejected, but its server is not protected"
            );
        }
        RequestState::Cancelled if moved.code == "poweryard.dependency" => {
            let awaited = request
                .wish
                .after
                .and_then(|id| facts.requests.get(&id))
                .map(|awaited| awaited.state);
            let in_vain = awaited
                .is_some_and(|state| state.is_terminal() && state != RequestState::Succeeded);
            hold!(
                in_vain,
                "request {id} was cancelled for what it waits for, which is {awaited:?}"
            );
        }
        _ => {}
    }
    check_attempts(facts, moved, request)
}

/// Success has evidence, and the evidence is true.
fn check_success(
    facts: &Facts,
    moved: &Move,
    request: &Request,
    cloud: &Cloud,
) -> Result<(), Broken> {
    let (id, evidence) = (moved.request, moved.evidence);
    let is_reboot = request.wish.action == PowerAction::Reboot;
    match evidence {
        Some(Evidence::Job) => {
            let batch = moved.batch.and_then(|batch| facts.batches.get(&batch));
            let by_it = batch.is_some_and(|batch| batch.carried.contains(&id));
            hold!(
                by_it,
                "request {id} succeeded by its job, but batch {:?} did not carry it out",
                moved.batch
            );
        }
        Some(Evidence::Already | Evidence::Observed) if !is_reboot => {
            let (wished, power) = (
                wished(request.wish.action),
                power(cloud, &request.wish.server),
            );
            // A call that is in no copy may have changed it since, and so may one that the cloud
            // denied.
            let by_another =
                facts.touched.contains(&request.wish.server) || cloud_lies_of(facts, request);
            hold!(
                power == Some(wished) || by_another,
                "request {id} succeeded ({evidence:?}), but its power is {power:?}"
            );
        }
        Some(Evidence::Observed) => {
            let by_another = facts.touched.contains(&request.wish.server);
            hold!(
                facts.times_carried(id) > 0 || by_another,
                "request {id}: a reboot was observed, but the cloud made none"
            );
        }
        _ => {
            return Err(Broken(format!(
                "request {id} succeeded with evidence {evidence:?}"
            )));
        }
    }
    Ok(())
}

/// Calls that the cloud may have acted on, and no others, count as attempts.
fn check_attempts(facts: &Facts, moved: &Move, request: &Request) -> Result<(), Broken> {
    let is_reboot = request.wish.action == PowerAction::Reboot;
    let is_busy_reboot =
        |result: Option<AttemptResult>| is_reboot && result == Some(AttemptResult::Busy);
    let fate = |batch: &i64| facts.batches.get(batch).map(BatchFacts::known_fate);
    let counts = |(batch, result): &&(i64, Option<AttemptResult>)| {
        let taken_back = matches!(
            result,
            Some(AttemptResult::Busy | AttemptResult::Refused | AttemptResult::NotSent)
        );
        // A refused reboot that was then seen under way counts too: the cloud had begun it after
        // all, as far as can be told.
        let seen_after_all = matches!(
            result,
            Some(AttemptResult::Succeeded | AttemptResult::Unknown)
        );
        match fate(batch) {
            Some(Fate::Accepted | Fate::InDoubt) => !taken_back,
            Some(Fate::NotDone) => seen_after_all,
            Some(Fate::Open | Fate::Refused) | None => false,
        }
    };
    // A refusal may be disproved, and a server that is called busy may be so with the very reboot
    // that was sent.
    let may_count = |(batch, result): &&(i64, Option<AttemptResult>)| {
        fate(batch) == Some(Fate::Refused)
            || (fate(batch) != Some(Fate::NotDone) && is_busy_reboot(*result))
    };
    let (id, counted) = (
        moved.request,
        request.calls.iter().filter(counts).count() as i64,
    );
    let most = counted + request.calls.iter().filter(may_count).count() as i64;
    hold!(
        (counted..=most).contains(&moved.attempts),
        "request {id} ended with {} attempts, but {counted} calls may have been acted on",
        moved.attempts
    );
    hold!(
        moved.attempts <= i64::from(facts.limits.attempts_max),
        "request {id} had {} attempts",
        moved.attempts
    );
    let openly = facts
        .batches
        .values()
        .filter(|batch| batch.carried.contains(&id) && !batch.denied.contains(&id))
        .count();
    hold!(
        moved.attempts >= openly as i64,
        "request {id} was carried out more often than tried"
    );
    Ok(())
}

/// Nothing stays for ever: neither on its way, nor in the queue after its time.
pub(super) fn check_bounds(facts: &Facts, now: Moment) -> Result<(), Broken> {
    for (id, request) in &facts.requests {
        match request.state {
            RequestState::Running => {
                let flown = now.real.since(request.since.real);
                hold!(
                    flown < facts.limits.flight_max,
                    "request {id} is {} for {flown:?}",
                    request.state
                );
            }
            RequestState::Queued => {
                let over = facts
                    .expiry(request)
                    .map(|at| now.utc.since(at.max(request.since.utc)))
                    .unwrap_or_default();
                hold!(
                    over < SLACK + facts.stepped,
                    "request {id} is still queued {over:?} after its time"
                );
            }
            _ => {}
        }
    }
    Ok(())
}

fn wished(action: PowerAction) -> OnOff {
    OnOff::from(action != PowerAction::Stop)
}

fn power(cloud: &Cloud, server: &ServerId) -> Option<OnOff> {
    cloud
        .servers()
        .into_iter()
        .find(|summary| summary.server_id == *server)
        .map(|summary| summary.power)
}
