//! What is true of a run, from its own sources: what producers wrote, what left, what the cloud
//! carried out, what the queue recorded. Owns the bookkeeping; what must hold is in `rules`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::audit::{Entry, Move};
use super::orders::{self, OrderFacts, Place};
use super::wire::Cloud;
use super::{Broken, rules};
use poweryard::model::{
    AttemptResult, BatchState, CodeClass, Evidence, PowerAction, RequestState, ServerId,
    TargetName, Tracking, UtcMillis,
};
use poweryard::model::{CallError, Fault};

/// One moment: by the machine's time of day, which somebody may have set, and in truth.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// What the daemon, the producers and the queue go by.
    pub(super) utc: UtcMillis,
    /// How long something has lasted goes by this.
    pub(super) real: UtcMillis,
}

/// What a producer asked for.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) target: TargetName,
    pub(super) server: ServerId,
    pub(super) action: PowerAction,
    pub(super) not_before: Option<UtcMillis>,
    pub(super) expires_at: Option<UtcMillis>,
    pub(super) after: Option<i64>,
    pub(super) inserted_at: Moment,
    pub(super) priority: i64,
    pub(super) label: Option<String>,
    /// Somebody gave a reason to leave outside windows.
    pub(super) has_override: bool,
    /// Somebody approved it.
    pub(super) is_approved: bool,
    /// Its `not_before` was changed since.
    pub(super) is_moved: bool,
}

impl Wish {
    /// The server that it is about.
    pub(super) fn place(&self) -> Place {
        (self.target.clone(), self.server.clone())
    }
}

/// What an operator holds: a target, an action and a label; none: all of them.
pub(super) type Scope = (Option<TargetName>, Option<PowerAction>, Option<String>);

/// One request and its history.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) wish: Wish,
    pub(super) state: RequestState,
    pub(super) evidence: Option<Evidence>,
    pub(super) since: Moment,
    /// Batches that took it up, oldest first, each with its result once the queue names one.
    pub(super) calls: Vec<(i64, Option<AttemptResult>)>,
    /// The wave of its order that has let it go.
    pub(super) wave: Option<i64>,
}

/// One batch and its history.
#[derive(Debug, Clone)]
pub(super) struct BatchFacts {
    pub(super) action: PowerAction,
    pub(super) state: BatchState,
    pub(super) members: BTreeSet<i64>,
    /// Those of the members.
    servers: BTreeSet<ServerId>,
    /// When and for which target the call left this machine, as far as the daemon is concerned.
    pub(super) departed: Option<(Moment, TargetName)>,
    /// The daemon that made the call still lives and has not stored its answer.
    pub(super) in_hand: bool,
    /// What the daemon was told, until it is stored.
    told: Option<Fate>,
    /// What the queue knows of the call.
    fate: Fate,
    /// Members that the cloud really acted on for this batch.
    pub(super) carried: BTreeSet<i64>,
    /// A restart, a clock that was set or keys that were refused fell into its time.
    pub(super) disturbed: bool,
    /// Members that the cloud will act on later, or has, although it said otherwise.
    pub(super) denied: BTreeSet<i64>,
    /// All of its members were approved when it left.
    pub(super) is_approved: bool,
}

impl BatchFacts {
    /// What the queue knows of the call, or is just being told.
    pub(super) fn known_fate(&self) -> Fate {
        if self.fate == Fate::Open {
            self.told.unwrap_or(Fate::InDoubt)
        } else {
            self.fate
        }
    }
}

/// What a daemon can know of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// No answer is stored.
    Open,
    /// It has a job.
    Accepted,
    /// Certainly nothing was done.
    NotDone,
    /// It may have been acted on.
    InDoubt,
    /// Refused: until its servers have told whether that is true, it may have been acted on.
    Refused,
}

/// Everything that is known of a run.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) limits: rules::Limits,
    pub(super) requests: BTreeMap<i64, Request>,
    pub(super) batches: BTreeMap<i64, BatchFacts>,
    /// Old requests that somebody has pruned.
    pub(super) deleted: BTreeSet<i64>,
    /// What operators hold at present.
    pub(super) held: BTreeSet<Scope>,
    /// Orders with waves, by label.
    pub(super) orders: BTreeMap<String, OrderFacts>,
    /// Requests that left outside a window for a reason of their own.
    pub(super) overridden: BTreeSet<i64>,
    /// When the submit calls of the last minute left.
    departures: BTreeMap<TargetName, VecDeque<UtcMillis>>,
    /// When they came to the cloud.
    arrivals: BTreeMap<TargetName, VecDeque<UtcMillis>>,
    /// A number that the whole history decides.
    pub(super) digest: u64,
    /// By how much the machine's time of day was set, all in all: what goes by it may last so much
    /// longer.
    pub(super) stepped: Duration,
    /// When the newest daemon started, or its rounds went well again after one that failed, in true
    /// time: what happened before, it sees since then.
    pub(super) sees_since: UtcMillis,
    /// An older copy was put back: nothing leaves before somebody has released what is unfinished
    /// in it.
    pub(super) awaits_release: bool,
    /// The copy that was put back last was older than what daemons had written: the next daemon holds
    /// also what came before its start.
    pub(super) is_older: bool,
    /// Batches of which the copies that were put back know nothing.
    forgotten: BTreeSet<i64>,
    /// Servers on which these may have acted: what is seen of them may be theirs.
    pub(super) touched: BTreeSet<ServerId>,
    /// Until when the cloud has asked not to be called, in true time, by target.
    pub(super) asked_until: BTreeMap<TargetName, UtcMillis>,
    /// The latest that the machine's time of day has been: whatever was due by then is due.
    pub(super) latest: UtcMillis,
}

impl Facts {
    pub(super) fn new(limits: rules::Limits) -> Self {
        Self {
            limits,
            requests: BTreeMap::new(),
            batches: BTreeMap::new(),
            deleted: BTreeSet::new(),
            held: BTreeSet::new(),
            orders: BTreeMap::new(),
            overridden: BTreeSet::new(),
            departures: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            digest: 0xcbf2_9ce4_8422_2325,
            stepped: Duration::ZERO,
            sees_since: UtcMillis(0),
            awaits_release: false,
            is_older: false,
            forgotten: BTreeSet::new(),
            touched: BTreeSet::new(),
            asked_until: BTreeMap::new(),
            latest: UtcMillis(0),
        }
    }

    /// A producer inserted a row.
    pub(super) fn inserted(&mut self, id: i64, wish: Wish) -> Result<(), Broken> {
        let since = wish.inserted_at;
        let request = Request {
            wish,
            state: RequestState::Queued,
            evidence: None,
            since,
            calls: Vec::new(),
            wave: None,
        };
        match self.requests.insert(id, request) {
            None => Ok(()),
            Some(_) => Err(Broken(format!("request id {id} was given twice"))),
        }
    }

    /// A submit call leaves.
    pub(super) fn departs(&mut self, call: &Departure<'_>, now: Moment) -> Result<(), Broken> {
        rules::check_departure(self, call, now)?;
        let calls = self.departures.entry(call.target.clone()).or_default();
        calls.push_back(now.real);
        rules::check_pace(
            calls,
            self.limits.targets.get(call.target),
            WINDOW,
            now.real,
        )?;
        if rules::check_window(self, call, now)? {
            self.overridden.extend(call.members.keys().copied());
        }
        let is_approved = self.are_approved(call);
        if let Some(facts) = self.batches.get_mut(&call.batch) {
            (facts.departed, facts.in_hand) = (Some((now, call.target.clone())), true);
            facts.is_approved = is_approved;
        }
        Ok(())
    }

    /// True if somebody has approved all that this call carries.
    pub(super) fn are_approved(&self, call: &Departure<'_>) -> bool {
        let mut members = call.members.keys().filter_map(|id| self.requests.get(id));
        members.all(|request| request.wish.is_approved)
    }

    /// A submit call reaches the cloud.
    pub(super) fn arrives(&mut self, target: &TargetName, now: Moment) -> Result<(), Broken> {
        let calls = self.arrivals.entry(target.clone()).or_default();
        calls.push_back(now.real);
        rules::check_pace(
            calls,
            self.limits.targets.get(target),
            WINDOW - LATE_MAX,
            now.real,
        )
    }

    /// The cloud acted on these servers for a batch.
    pub(super) fn carried_out(
        &mut self,
        batch: i64,
        servers: &BTreeSet<ServerId>,
    ) -> Result<(), Broken> {
        if self.forgotten.contains(&batch) {
            return Ok(());
        }
        let Some(facts) = self.batches.get(&batch) else {
            return Err(Broken(format!(
                "the cloud acted for batch {batch}, which is not in the queue"
            )));
        };
        let of = |request: &i64| {
            self.requests
                .get(request)
                .is_some_and(|r| servers.contains(&r.wish.server))
        };
        let carried: BTreeSet<i64> = facts.members.iter().copied().filter(of).collect();
        if carried.len() != servers.len() {
            return Err(Broken(format!(
                "batch {batch} switched servers that it has no members for"
            )));
        }
        for &request in &carried {
            rules::check_carried(self, batch, request)?;
        }
        if let Some(facts) = self.batches.get_mut(&batch) {
            facts.carried.extend(carried);
        }
        Ok(())
    }

    /// The cloud will act on these servers of a batch later, although it said otherwise.
    pub(super) fn denied(&mut self, batch: i64, servers: &BTreeSet<ServerId>) {
        let Some(facts) = self.batches.get_mut(&batch) else {
            return;
        };
        let of = |request: &i64| {
            self.requests
                .get(request)
                .is_some_and(|r| servers.contains(&r.wish.server))
        };
        facts
            .denied
            .extend(facts.members.iter().copied().filter(of));
    }

    /// Somebody set the machine's time of day.
    pub(super) fn clock_set(&mut self, by: Duration) {
        self.stepped += by;
        self.disturbed();
    }

    fn forget_times(&mut self) {
        self.departures.clear();
        self.arrivals.clear();
        self.asked_until.clear();
    }

    /// The answer to a submit call is taken in. Once it is stored, the time that the cloud asks for
    /// is kept, over restarts too.
    pub(super) fn asked_to_wait(&mut self, batch: i64, wait: Option<Duration>, now: Moment) {
        let stored = self
            .batches
            .get(&batch)
            .filter(|facts| facts.state != BatchState::Submitting);
        if let (Some(wait), Some((_, target))) =
            (wait, stored.and_then(|facts| facts.departed.as_ref()))
        {
            let until = self.asked_until.entry(target.clone()).or_insert(now.real);
            *until = (*until).max(now.real + wait);
        }
    }

    /// Somebody has put a copy of the queue back, of the time when `then` was true. `is_older`:
    /// daemons have written since.
    pub(super) fn restored(&mut self, then: &Self, is_older: bool, now: Moment) {
        let newer = std::mem::replace(&mut self.batches, then.batches.clone());
        self.requests.clone_from(&then.requests);
        self.deleted.clone_from(&then.deleted);
        self.held.clone_from(&then.held);
        self.orders.clone_from(&then.orders);
        self.forget_gates();
        for (id, batch) in newer {
            if let Some(known) = self.batches.get_mut(&id) {
                known.carried = batch.carried;
                known.denied = batch.denied;
                known.departed = batch.departed;
            } else {
                self.forgotten.insert(id);
                self.touched.extend(batch.servers);
            }
        }
        let mut is_unfinished = false;
        for request in self
            .requests
            .values_mut()
            .filter(|request| !request.state.is_terminal())
        {
            request.since = now;
            is_unfinished = true;
        }
        self.is_older = is_older;
        // What a release let go before may be in this copy too.
        self.awaits_release = is_unfinished && (is_older || then.awaits_release);
        self.disturbed();
        self.forget_times();
    }

    /// The daemon is told how a submit call went; it counts once it is stored.
    pub(super) fn told(&mut self, batch: i64, answer: &Result<Tracking, CallError>) {
        if let Some(facts) = self.batches.get_mut(&batch) {
            facts.told = Some(fate(answer));
        }
    }

    /// A stop came between this batch's intent and its call.
    pub(super) fn not_sent(&mut self, batch: i64) {
        if let Some(facts) = self.batches.get_mut(&batch) {
            facts.told = Some(Fate::NotDone);
        }
    }

    /// The daemon died: whatever it had not stored is forgotten.
    pub(super) fn crashed(&mut self) {
        for facts in self.batches.values_mut() {
            (facts.told, facts.in_hand) = (None, false);
        }
        self.forget_gates();
        self.disturbed();
    }

    /// The gate has answered about the order that it got as JSON.
    pub(super) fn gate_said(&mut self, text: &str, is_yes: bool, now: Moment) {
        let asked: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        let label = asked["label"].as_str().unwrap_or_default();
        if let Some(order) = self.orders.get_mut(label) {
            order.gate_yes = asked["wave"]
                .as_i64()
                .filter(|_| is_yes)
                .map(|wave| (wave, now));
        }
    }

    /// Whatever the gate has said is forgotten.
    pub(super) fn forget_gates(&mut self) {
        for order in self.orders.values_mut() {
            order.gate_yes = None;
        }
    }

    /// Something happened that may have cost the batches on their way their evidence.
    pub(super) fn disturbed(&mut self) {
        for facts in self
            .batches
            .values_mut()
            .filter(|facts| facts.state != BatchState::Done)
        {
            facts.disturbed = true;
        }
    }

    /// New settings are in force. What was sent under the old ones was right then.
    pub(super) fn reloaded(&mut self, limits: &rules::Limits) {
        self.limits.loosen(limits);
    }

    /// Takes what the queue recorded, and checks each move.
    pub(super) fn learn(
        &mut self,
        entries: &[Entry],
        cloud: &Cloud,
        now: Moment,
    ) -> Result<(), Broken> {
        self.latest = self.latest.max(now.utc);
        let mut let_go = BTreeSet::new();
        for entry in entries {
            self.digest = (self.digest ^ fingerprint(&format!("{} {entry:?}", now.real)))
                .wrapping_mul(0x0100_0000_01b3);
            match entry {
                Entry::Moved(moved) => self.moved(moved, cloud, now)?,
                Entry::Deleted { request, was } => {
                    rules::check_deleted(self, *request, was)?;
                    self.deleted.insert(*request);
                }
                Entry::Gone { batch, was } => rules::check_gone(self, *batch, *was)?,
                Entry::Intent { batch, action } => self.intent(*batch, *action),
                Entry::Batch {
                    batch,
                    was,
                    becomes,
                } => self.batch_moved(*batch, *was, *becomes)?,
                Entry::Member { request, batch } => {
                    if let Some(facts) = self.batches.get_mut(batch) {
                        facts.members.insert(*request);
                        facts.servers.extend(
                            self.requests
                                .get(request)
                                .map(|request| request.wish.server.clone()),
                        );
                    }
                }
                Entry::Result {
                    request,
                    batch,
                    result,
                } => self.result(*request, *batch, *result)?,
                Entry::Waved { request, wave } => {
                    orders::let_go(self, *request, *wave)?;
                    let_go.insert(*request);
                }
                Entry::Order(moved) => orders::moved(self, moved, now)?,
                Entry::OrderGone { label } => {
                    self.orders.remove(label);
                }
            }
        }
        orders::check_let_go(self, &let_go, now)
    }

    /// True if its time has come a second ago or more, whatever else holds it.
    pub(super) fn is_due(&self, request: &Request, now: Moment) -> bool {
        self.is_due_for(request, INTAKE_MAX, now)
    }

    /// True if its time has come so long ago.
    pub(super) fn is_due_for(&self, request: &Request, span: Duration, now: Moment) -> bool {
        let wish = &request.wish;
        let is_moved = wish.is_moved || wish.not_before.is_some() || wish.after.is_some();
        if !is_moved {
            return wish.inserted_at.utc <= now.utc;
        }
        let has_been = |at: UtcMillis| now.utc.since(at) >= span;
        let awaited = wish.after.map(|id| self.requests.get(&id));
        let is_free = match awaited {
            None => true,
            Some(awaited) => awaited.is_some_and(|awaited| {
                awaited.state == RequestState::Succeeded
                    && now.real.since(awaited.since.real) >= span
                    && has_been(awaited.since.utc)
            }),
        };
        is_free
            && wish.not_before.is_none_or(has_been)
            && has_been(wish.inserted_at.utc)
            && now.real.since(wish.inserted_at.real) >= span
    }

    /// True if no other request of its server has been before it for a second.
    pub(super) fn is_first_of_server(&self, id: i64, now: Moment) -> bool {
        let Some(request) = self.requests.get(&id) else {
            return false;
        };
        let place = request.wish.place();
        let mut others = self
            .requests
            .iter()
            .filter(|(other, request)| **other != id && request.wish.place() == place);
        others.all(|(other, request)| {
            let has_ended =
                request.state.is_terminal() && now.real.since(request.since.real) >= INTAKE_MAX;
            has_ended || (*other > id && request.state == RequestState::Queued)
        })
    }

    /// Of the requests that ended, those for which there was evidence to be had.
    pub(super) fn with_evidence(&self) -> u64 {
        let ended =
            |request: &&Request| request.state.is_terminal() && rules::had_evidence(self, request);
        self.requests.values().filter(ended).count() as u64
    }

    /// Every call that took up this request and was really carried out.
    pub(super) fn times_carried(&self, request: i64) -> usize {
        self.batches
            .values()
            .filter(|batch| batch.carried.contains(&request))
            .count()
    }

    /// When a queued request's time is over; none while what it waits for has not ended.
    pub(super) fn expiry(&self, request: &Request) -> Option<UtcMillis> {
        if let Some(at) = request.wish.expires_at {
            return Some(at);
        }
        let label = request.wish.label.as_ref();
        if let Some(order) = label.and_then(|label| self.orders.get(label)) {
            return Some(order.expires_at);
        }
        let waited = match request.wish.after.map(|id| self.requests.get(&id)) {
            None => request.wish.inserted_at.utc,
            Some(awaited) => {
                let since = awaited.filter(|awaited| awaited.state.is_terminal())?.since;
                // What had ended before is nothing to wait for, even if a clock that was set back
                // since says otherwise.
                if since.real > request.wish.inserted_at.real {
                    since.utc
                } else {
                    request.wish.inserted_at.utc
                }
            }
        };
        // Of a request that has waited for another one the daemon takes the latest of all times.
        // SQLite's own clock, which dates the insert, is not the one that is drawn here.
        let from = waited.max(request.wish.not_before.unwrap_or(waited));
        self.limits.default_ttl.map(|ttl| from + ttl)
    }

    /// True if it has waited for the default time, although a clock that was set back since dated
    /// that later.
    pub(super) fn has_really_expired(&self, request: &Request, now: Moment) -> bool {
        let wish = &request.wish;
        let Some(ttl) = self
            .limits
            .default_ttl
            .filter(|_| wish.expires_at.is_none())
        else {
            return false;
        };
        let awaited = wish.after.and_then(|id| self.requests.get(&id));
        let freed_at = awaited.map_or(wish.inserted_at.real, |awaited| awaited.since.real);
        let waited = now.real.since(freed_at.max(wish.inserted_at.real));
        let was_due = wish.not_before.is_none_or(|at| now.utc.since(at) >= ttl);
        self.stepped > Duration::ZERO && waited >= ttl && was_due
    }

    fn intent(&mut self, batch: i64, action: PowerAction) {
        let facts = BatchFacts {
            action,
            state: BatchState::Submitting,
            members: BTreeSet::new(),
            servers: BTreeSet::new(),
            departed: None,
            in_hand: false,
            told: None,
            fate: Fate::Open,
            carried: BTreeSet::new(),
            disturbed: false,
            denied: BTreeSet::new(),
            is_approved: false,
        };
        self.batches.insert(batch, facts);
    }

    fn batch_moved(
        &mut self,
        batch: i64,
        was: BatchState,
        becomes: BatchState,
    ) -> Result<(), Broken> {
        let Some(facts) = self.batches.get_mut(&batch) else {
            return Err(Broken(format!(
                "batch {batch} moves without having been made"
            )));
        };
        if was == BatchState::Done {
            return Err(Broken(format!(
                "batch {batch} was done and is {becomes} again"
            )));
        }
        if was == BatchState::Submitting {
            if facts.in_hand && facts.told.is_none() {
                return Err(Broken(format!(
                    "batch {batch} was given up while its call was being made"
                )));
            }
            facts.fate = facts.told.take().unwrap_or(Fate::InDoubt);
            facts.in_hand = false;
        }
        facts.state = becomes;
        Ok(())
    }

    fn result(&mut self, request: i64, batch: i64, result: AttemptResult) -> Result<(), Broken> {
        let Some(facts) = self.requests.get_mut(&request) else {
            return Err(Broken(format!(
                "an attempt of request {request}, which nobody inserted"
            )));
        };
        match facts.calls.iter_mut().find(|(call, _)| *call == batch) {
            Some((_, open @ None)) => *open = Some(result),
            _ => {
                return Err(Broken(format!(
                    "request {request} has no open attempt in batch {batch}"
                )));
            }
        }
        Ok(())
    }

    fn moved(&mut self, moved: &Move, cloud: &Cloud, now: Moment) -> Result<(), Broken> {
        rules::check_move(self, moved, cloud, now)?;
        let Some(request) = self.requests.get_mut(&moved.request) else {
            return Ok(());
        };
        if let (RequestState::Running, Some(batch)) = (moved.becomes, moved.batch) {
            request.calls.push((batch, None));
        }
        (request.state, request.evidence, request.since) = (moved.becomes, moved.evidence, now);
        Ok(())
    }
}

/// By the words of `PowerCloud::submit`.
fn fate(answer: &Result<Tracking, CallError>) -> Fate {
    match answer.as_ref().map_err(|error| &error.fault) {
        Ok(_) => Fate::Accepted,
        // Such a code does not even say that nothing was done.
        Err(Fault::Refused(CodeClass::RetryableUncertain | CodeClass::Ambiguous)) => Fate::InDoubt,
        Err(Fault::Refused(_)) => Fate::Refused,
        Err(Fault::Lost) => Fate::InDoubt,
        Err(_) => Fate::NotDone,
    }
}

fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What a daemon sends.
pub(super) struct Departure<'a> {
    pub(super) batch: i64,
    pub(super) target: &'a TargetName,
    pub(super) action: PowerAction,
    pub(super) members: &'a BTreeMap<i64, ServerId>,
}

/// The span that `submits_per_minute` speaks of.
const WINDOW: Duration = Duration::from_secs(60);
/// The call of a daemon that died may arrive so much later than the next daemon starts, which
/// cannot know of that.
const LATE_MAX: Duration = Duration::from_secs(1);

/// How long a span is, generously: for bounds that only mean "some day".
pub(super) const SLACK: Duration = Duration::from_secs(180);

/// What has become due is taken in within this, unless no round succeeds.
const INTAKE_MAX: Duration = Duration::from_secs(1);
