//! Orders with waves as the contract has them: how many servers a wave may have, when the next one
//! may open, and when it is true that one waits. Its own reading; nothing of the daemon's.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use super::Broken;
use super::audit::OrderMove;
use super::facts::{Facts, Moment, Request};
use super::rules::hold;
use poweryard::model::{LetGo, RequestState, ServerId, TargetName, UtcMillis};

/// A number of servers, or a share of the order's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Amount {
    Servers(u64),
    Permille(u64),
}

impl Amount {
    /// Rounded up.
    fn of(self, servers: u64) -> u64 {
        match self {
            Self::Servers(number) => number,
            Self::Permille(share) => (servers * share).div_ceil(1000),
        }
    }

    fn is_exceeded(self, failed: u64, servers: u64) -> bool {
        match self {
            Self::Servers(most) => failed > most,
            Self::Permille(share) => failed * 1000 > servers * share,
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Servers(number) => write!(f, "{number}"),
            Self::Permille(share) if share % 10 == 0 => write!(f, "{}%", share / 10),
            Self::Permille(share) => write!(f, "{}.{}%", share / 10, share % 10),
        }
    }
}

/// A server in its target.
pub(super) type Place = (TargetName, ServerId);

/// What somebody ordered, and what the rows say of it.
#[derive(Debug, Clone)]
pub(super) struct OrderFacts {
    pub(super) waves: Vec<Amount>,
    pub(super) failures_max: Amount,
    pub(super) pause: Option<Duration>,
    pub(super) expires_at: UtcMillis,
    /// The present wave.
    pub(super) wave: i64,
    /// Its servers; 0: it has not been opened.
    size: i64,
    pub(super) is_done: bool,
    /// Requests up to this one had ended when it was done last.
    done_id: i64,
    /// Servers that the present wave has let go, and all that have had their turn.
    taken: BTreeSet<Place>,
    turns: BTreeSet<Place>,
    /// What an operator lets go in spite of all.
    pub(super) let_go: Option<LetGo>,
    /// The wave after which the gate has said yes last, and when.
    pub(super) gate_yes: Option<(i64, Moment)>,
    /// Requests with a greater id joined when it had begun.
    begun_id: Option<i64>,
    /// A wave of it has been opened.
    pub(super) has_begun: bool,
}

impl OrderFacts {
    pub(super) fn new(waves: Vec<Amount>, failures_max: Amount, expires_at: UtcMillis) -> Self {
        Self {
            waves,
            failures_max,
            pause: None,
            expires_at,
            wave: 1,
            size: 0,
            is_done: false,
            done_id: 0,
            taken: BTreeSet::new(),
            turns: BTreeSet::new(),
            let_go: None,
            gate_yes: None,
            begun_id: None,
            has_begun: false,
        }
    }

    fn size_of(&self, wave: i64, servers: u64) -> u64 {
        let place = usize::try_from(wave - 1).unwrap_or(0);
        let last = self.waves.len() - 1;
        let amount = self.waves.get(place.min(last));
        amount.map_or(0, |amount| amount.of(servers)).max(1)
    }

    fn has_room(&self) -> bool {
        (self.taken.len() as u64) < self.size.unsigned_abs()
    }
}

/// What is true of one order at one moment.
pub(super) struct Standing<'a> {
    label: &'a str,
    order: &'a OrderFacts,
    facts: &'a Facts,
}

impl<'a> Standing<'a> {
    fn of(facts: &'a Facts, label: &'a str) -> Option<Self> {
        let order = facts.orders.get(label)?;
        Some(Self {
            label,
            order,
            facts,
        })
    }

    fn requests(&self) -> impl Iterator<Item = (i64, &'a Request)> {
        let label = self.label;
        let requests = self.facts.requests.iter();
        requests
            .filter(move |(_, request)| request.wish.label.as_deref() == Some(label))
            .map(|(id, request)| (*id, request))
    }

    /// With pruned requests or without: the queue may have forgotten their servers.
    fn servers(&self, with_deleted: bool) -> u64 {
        let known = self
            .requests()
            .filter(|(id, _)| with_deleted || !self.facts.deleted.contains(id));
        let places: BTreeSet<Place> = known.map(|(_, request)| request.wish.place()).collect();
        places.len() as u64
    }

    /// Requests of the present wave.
    fn present(&self) -> impl Iterator<Item = (i64, &'a Request)> {
        let wave = self.order.wave;
        let done_id = self.order.done_id;
        self.requests()
            .filter(move |(id, request)| request.wave == Some(wave) && *id > done_id)
    }

    /// One that has not ended, and is waited for.
    fn on_its_way(&self) -> Option<i64> {
        let mut open = self.present().filter(|(_, request)| {
            !request.state.is_terminal() && !self.waits_for_later_wave(request)
        });
        open.next().map(|(id, _)| id)
    }

    /// True if it waits, along a chain, for a request of the order that no wave has let go.
    fn waits_for_later_wave(&self, request: &Request) -> bool {
        let mut request = request;
        loop {
            let awaited = request
                .wish
                .after
                .and_then(|id| self.facts.requests.get(&id));
            let Some(awaited) = awaited.filter(|awaited| !awaited.state.is_terminal()) else {
                return false;
            };
            if awaited.wish.label.as_deref() != Some(self.label) {
                return false;
            }
            if awaited.wave.is_none() {
                return true;
            }
            request = awaited;
        }
    }

    fn has_success(&self) -> bool {
        self.present()
            .any(|(_, request)| request.state == RequestState::Succeeded)
    }

    /// Servers whose newest request that was not given up before it was sent is failed or unknown.
    fn failed(&self) -> u64 {
        use RequestState::{Cancelled, Expired, Failed, Rejected, Unknown};
        let mut newest = std::collections::BTreeMap::new();
        for (_, request) in self.requests() {
            if !matches!(request.state, Cancelled | Expired | Rejected) {
                newest.insert(request.wish.place(), request.state);
            }
        }
        let failed = newest
            .values()
            .filter(|state| matches!(state, Failed | Unknown));
        failed.count() as u64
    }

    /// When the last of the present wave that is waited for ended, in true time: at the latest then
    /// the wave was over.
    fn over_since(&self) -> UtcMillis {
        self.last_end(|_| true)
    }

    /// When the last of them ended that was sent: the wave was not over before.
    fn over_since_at_least(&self) -> UtcMillis {
        self.last_end(|request| !request.calls.is_empty())
    }

    fn last_end(&self, counts: impl Fn(&Request) -> bool) -> UtcMillis {
        let ends = self.present().filter(|(_, request)| {
            request.state.is_terminal() && !self.waits_for_later_wave(request) && counts(request)
        });
        let last = ends.map(|(_, request)| request.since.real).max();
        last.unwrap_or(UtcMillis(0))
    }

    /// A request that could be let go now and has been for a second.
    fn is_due(&self, id: i64, now: Moment) -> bool {
        let facts = self.facts;
        let Some(request) = facts.requests.get(&id) else {
            return false;
        };
        request.state == RequestState::Queued
            && request.wave.is_none()
            && request.calls.is_empty()
            && facts.is_due(request, now)
            && facts.is_first_of_server(id, now)
    }
}

/// The rows say something new of an order.
pub(super) fn moved(facts: &mut Facts, moved: &OrderMove, now: Moment) -> Result<(), Broken> {
    let label = moved.label.as_str();
    let Some(standing) = Standing::of(facts, label) else {
        return Err(Broken(format!(
            "order '{label}' moves, but nobody inserted it"
        )));
    };
    let order = standing.order;
    let is_opening = moved.size > 0 && (order.size == 0 || moved.wave != order.wave);
    if is_opening {
        check_opening(&standing, moved, now)?;
    }
    if moved.is_done && !order.is_done {
        let open = standing
            .requests()
            .find(|(_, request)| !request.state.is_terminal());
        hold!(
            open.is_none(),
            "order '{label}' is done, but its request {open:?} is not"
        );
    }
    let known = facts.requests.keys().next_back().copied();
    let Some(order) = facts.orders.get_mut(label) else {
        return Ok(());
    };
    if is_opening || moved.size == 0 {
        order.taken.clear();
    }
    if is_opening && order.let_go == Some(LetGo::Wave) {
        order.let_go = None;
    }
    if is_opening && order.begun_id.is_none() {
        order.begun_id = known;
    }
    if moved.is_done && !order.is_done {
        order.turns.clear();
        order.let_go = None;
    }
    if moved.size == 0 {
        order.begun_id = None;
    }
    order.has_begun |= is_opening;
    order.wave = moved.wave;
    order.size = moved.size;
    order.is_done = moved.is_done;
    order.done_id = moved.done_id;
    Ok(())
}

/// A wave opens only when the one before is over and went well enough, or somebody let it go.
fn check_opening(standing: &Standing<'_>, moved: &OrderMove, now: Moment) -> Result<(), Broken> {
    let OrderMove { label, wave, .. } = moved;
    let order = standing.order;
    let facts = standing.facts;
    if order.let_go != Some(LetGo::Rest) {
        let least = order.size_of(*wave, standing.servers(false));
        let most = order.size_of(*wave, standing.servers(true));
        let size = moved.size.unsigned_abs();
        hold!(
            (least..=most).contains(&size),
            "wave {wave} of order '{label}' opens for {size} servers; {least} to {most} are right"
        );
    }
    if order.size == 0 {
        hold!(
            *wave == order.wave,
            "order '{label}' begins with wave {wave} after wave {}",
            order.wave
        );
        return Ok(());
    }
    hold!(
        *wave == order.wave + 1,
        "wave {wave} of order '{label}' follows wave {}",
        order.wave
    );
    let open = standing.on_its_way();
    hold!(
        open.is_none(),
        "wave {wave} of order '{label}' opens, but request {open:?} of the wave before has not ended"
    );
    if order.let_go.is_some() {
        return Ok(());
    }
    hold!(
        standing.has_success(),
        "wave {wave} of order '{label}' opens, but nobody in the wave before succeeded"
    );
    let failed = standing.failed();
    let servers = standing.servers(true);
    hold!(
        !order.failures_max.is_exceeded(failed, servers),
        "wave {wave} of order '{label}' opens, but {failed} of {servers} servers failed: more than {}",
        order.failures_max
    );
    let over_since = standing.over_since_at_least();
    let waited = now.real.since(over_since);
    hold!(
        order.pause.is_none_or(|pause| waited >= pause),
        "wave {wave} of order '{label}' opens {waited:?} after the one before; its pause is {:?}",
        order.pause
    );
    let Some(interval) = facts.limits.gate_interval else {
        return Ok(());
    };
    let is_let = order.gate_yes.is_some_and(|(after, at)| {
        after == order.wave && at.real >= over_since && now.real.since(at.real) <= interval
    });
    hold!(
        is_let,
        "wave {wave} of order '{label}' opens, but the gate said yes only {:?}",
        order.gate_yes
    );
    Ok(())
}

/// A wave lets a request go.
pub(super) fn let_go(facts: &mut Facts, id: i64, wave: i64) -> Result<(), Broken> {
    let Some(request) = facts.requests.get_mut(&id) else {
        return Err(Broken(format!("a wave lets unknown request {id} go")));
    };
    let place = request.wish.place();
    request.wave = Some(wave);
    let label = request.wish.label.clone().unwrap_or_default();
    let Some(order) = facts.orders.get_mut(&label) else {
        return Err(Broken(format!(
            "request {id} is let go by wave {wave}, but is of no order"
        )));
    };
    hold!(
        wave == order.wave && order.size > 0,
        "request {id} is let go by wave {wave} of order '{label}', whose wave is {}",
        order.wave
    );
    if order.turns.insert(place.clone()) {
        order.taken.insert(place);
    }
    hold!(
        order.let_go == Some(LetGo::Rest) || order.taken.len() as i64 <= order.size,
        "wave {wave} of order '{label}' lets {} servers go, of {}",
        order.taken.len(),
        order.size
    );
    Ok(())
}

/// What one step has let go: all requests of a server together, and those first that come first.
pub(super) fn check_let_go(
    facts: &Facts,
    let_go: &BTreeSet<i64>,
    now: Moment,
) -> Result<(), Broken> {
    for id in let_go {
        let Some(request) = facts.requests.get(id) else {
            continue;
        };
        let wish = &request.wish;
        let label = wish.label.clone().unwrap_or_default();
        let Some(standing) = Standing::of(facts, &label) else {
            continue;
        };
        let left = standing.requests().find(|(_, other)| {
            other.state == RequestState::Queued
                && other.wave.is_none()
                && other.wish.place() == wish.place()
        });
        hold!(
            left.is_none(),
            "request {id} is let go by a wave of order '{label}', but not request {left:?} of the same server"
        );
        check_turn(&standing, *id, let_go, now)?;
    }
    Ok(())
}

/// Nobody of higher priority, or older, is passed over for the server of this request.
fn check_turn(
    standing: &Standing<'_>,
    id: i64,
    let_go: &BTreeSet<i64>,
    now: Moment,
) -> Result<(), Broken> {
    let Some(begun_id) = standing.order.begun_id else {
        return Ok(());
    };
    let Some(request) = standing.facts.requests.get(&id) else {
        return Ok(());
    };
    let rank = |id: i64, request: &Request| (id > begun_id, -request.wish.priority, id);
    let place = request.wish.place();
    let done_id = standing.order.done_id;
    let mut of_server = standing
        .requests()
        .filter(|(other, request)| request.wish.place() == place && *other > done_id);
    // A server that has had its turn waits for nobody.
    if of_server.any(|(other, request)| request.wave.is_some() && !let_go.contains(&other)) {
        return Ok(());
    }
    let of_server = standing
        .requests()
        .filter(|(other, request)| let_go.contains(other) && request.wish.place() == place);
    let Some(own) = of_server.map(|(id, request)| rank(id, request)).min() else {
        return Ok(());
    };
    let passed_over = standing
        .requests()
        .find(|(other, request)| standing.is_due(*other, now) && rank(*other, request) < own);
    hold!(
        passed_over.is_none(),
        "request {id} is let go in order '{}' before {passed_over:?}",
        standing.label
    );
    Ok(())
}

/// Whether what the daemon says of a request that waits for its wave is true.
pub(super) fn is_reason_true(facts: &Facts, id: i64, reason: &str, now: Moment) -> bool {
    let request = facts.requests.get(&id);
    let label = request.and_then(|request| request.wish.label.as_deref());
    let Some(standing) = label.and_then(|label| Standing::of(facts, label)) else {
        return false;
    };
    if request.is_some_and(|request| request.wave.is_some()) {
        return false;
    }
    let order = standing.order;
    let servers = standing.servers(false);
    let is_over = standing.on_its_way().is_none();
    if reason.contains("is on its way") {
        return !is_over && !order.has_room();
    }
    // A wave that somebody lets go opens when the one before is over.
    if !is_over || order.let_go.is_some() {
        return false;
    }
    if reason.contains("nobody succeeded") {
        return !standing.has_success();
    }
    if reason.contains(" failed for ") {
        return order.failures_max.is_exceeded(standing.failed(), servers);
    }
    if reason.contains("after its pause") {
        // It counts from when a daemon sees the end.
        let waited = now.real.since(standing.over_since().max(facts.sees_since));
        return order
            .pause
            .is_some_and(|pause| waited < pause + Duration::from_secs(1));
    }
    reason.contains("gate") && facts.limits.gate_interval.is_some()
}

/// Orders of which everything has ended are done.
pub(super) fn check_done(facts: &Facts) -> Result<(), Broken> {
    for (label, order) in &facts.orders {
        let Some(standing) = Standing::of(facts, label) else {
            continue;
        };
        let mut requests = standing.requests().peekable();
        let has_any = requests.peek().is_some();
        let is_over = requests.all(|(_, request)| request.state.is_terminal());
        hold!(
            order.is_done || !has_any || !is_over,
            "order '{label}' is not done, but all of its requests have ended"
        );
    }
    Ok(())
}
