//! The course of things: the daemon's decisions, played through from one moment at which something
//! changes to the next.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::stock::{Stock, take_expired, take_first, turn_of};
use super::{
    ActionForecast, Cause, Counted, Forecast, PlannedCall, Question, TargetOutlook, Waiting,
};
use crate::model::{
    Hold, HoldKind, Lane, Order, OrderState, PowerAction, Share, Standing, TargetName, UtcMillis,
};
use crate::plan::guard::{self, GuardVerdict, Waiting as GuardWaiting};
use crate::plan::waves::{self, Gate, Next};
use crate::plan::windows;
use crate::plan::{self, Allowance, Choice, Limits};

/// The course is not followed beyond so many calls.
const CALLS_MAX: usize = 100_000;
/// Nor for longer than this.
const HORIZON: Duration = Duration::from_secs(366 * 86_400);
/// How long a job lasts of which nothing tells: its end comes after its beginning.
const TOOK_UNKNOWN: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Course<'a> {
    question: &'a Question,
    now: UtcMillis,
    stocks: Vec<Stock>,
    /// What joins its lane at a time that is known.
    coming: BTreeMap<UtcMillis, Vec<Share>>,
    /// What waits for other requests.
    followers: VecDeque<Share>,
    /// What nothing but a person lets go.
    kept: VecDeque<Kept>,
    orders: Vec<OrderCourse>,
    targets: BTreeMap<TargetName, TargetCourse<'a>>,
    /// When to look again.
    wakes: BTreeSet<UtcMillis>,
    actions: BTreeMap<(TargetName, PowerAction), ActionForecast>,
    told: Forecast,
    calls: usize,
    /// It goes on, but was not followed any further.
    is_cut: bool,
}

/// Requests that a hold keeps one by one.
struct Kept {
    share: Share,
    why: Why,
}

/// Why requests do not leave now.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Why {
    cause: Cause,
    reason: String,
    until: Option<UtcMillis>,
}

/// Requests that leave, for those that wait for them.
struct Leaving<'a> {
    target: &'a TargetName,
    action: PowerAction,
    /// That of an order.
    label: Option<&'a String>,
    /// When they have ended.
    ends_at: UtcMillis,
}

impl Leaving<'_> {
    /// True if such a request waits for one of these, as far as is known.
    fn releases(&self, share: &Share, now: UtcMillis) -> bool {
        let is_its_leader = match share.standing {
            Standing::After(leader) => {
                leader.action.is_none_or(|action| action == self.action)
                    && leader.due_at.is_none_or(|at| at <= now)
            }
            _ => true,
        };
        is_its_leader && self.is_like(share)
    }

    /// True if it may be about the same servers.
    fn is_like(&self, share: &Share) -> bool {
        let is_of_label =
            share.label.is_none() || self.label.is_none() || share.label.as_ref() == self.label;
        share.target == *self.target && is_of_label
    }
}

/// An order on its way.
struct OrderCourse {
    order: Order,
    /// Those whose wave has not come, in the order of the claim.
    waiting: VecDeque<Share>,
    /// Requests that were let go and have not left.
    open: u64,
    /// When the last of those that have left has ended.
    ends_at: UtcMillis,
    why: Option<Why>,
    /// The daemon says that it is held: nothing of the course changes that.
    is_held: bool,
}

/// A target on its way.
struct TargetCourse<'a> {
    outlook: &'a TargetOutlook,
    pace: crate::pace::Pace,
    probed: BTreeSet<PowerAction>,
    spent: BTreeMap<PowerAction, Vec<(UtcMillis, u32)>>,
    unapproved: BTreeMap<PowerAction, Vec<(UtcMillis, u32)>>,
    /// What windows say, and until when that is known.
    windows: BTreeMap<PowerAction, (Option<UtcMillis>, Option<Hold>)>,
    /// In force at the moment.
    holds: Vec<Hold>,
    /// No call leaves before this.
    paced_until: Option<UtcMillis>,
}

impl<'a> Course<'a> {
    pub(super) fn new(question: &'a Question) -> Self {
        let targets = question.targets.iter();
        let targets = targets.map(|(name, outlook)| (name.clone(), TargetCourse::new(outlook)));
        let orders = question.orders.iter();
        let mut course = Self {
            question,
            now: question.now,
            stocks: Vec::new(),
            coming: BTreeMap::new(),
            followers: VecDeque::new(),
            kept: VecDeque::new(),
            orders: orders
                .map(|order| OrderCourse::new(order, question))
                .collect(),
            targets: targets.collect(),
            wakes: BTreeSet::new(),
            actions: BTreeMap::new(),
            told: Forecast::default(),
            calls: 0,
            is_cut: false,
        };
        for share in &question.shares {
            if share.is_asked {
                course.action_of(share).requests += share.requests;
            }
            course.place(share.clone());
        }
        course.orders.iter_mut().for_each(OrderCourse::begin);
        for batch in &question.running {
            let took = course.took(&batch.target, batch.action);
            let ends_at = (batch.since + took).max(question.now + TOOK_UNKNOWN);
            let after = Leaving {
                target: &batch.target,
                action: batch.action,
                label: None,
                ends_at,
            };
            course.release_followers(&after, batch.requests);
        }
        course
    }

    /// Plays it through.
    pub(super) fn run(mut self) -> Forecast {
        self.step();
        self.note_waiting();
        while let Some(at) = self.next_wake() {
            if at > self.question.now + HORIZON || self.calls >= CALLS_MAX {
                self.is_cut = true;
                break;
            }
            self.now = at;
            self.step();
        }
        self.note_stuck();
        self.told.actions = self.actions.into_values().collect();
        self.told
    }

    fn next_wake(&self) -> Option<UtcMillis> {
        let wakes = self.wakes.iter().chain(self.coming.keys());
        wakes.copied().filter(|at| *at > self.now).min()
    }

    /// All that happens at this moment.
    fn step(&mut self) {
        let now = self.now;
        self.wakes.retain(|at| *at > now);
        self.arrive();
        self.expire();
        for number in 0..self.orders.len() {
            self.serve_order(number);
        }
        let names: Vec<TargetName> = self.targets.keys().cloned().collect();
        for name in names {
            self.make_calls(&name);
        }
    }

    fn wake(&mut self, at: UtcMillis) {
        if at > self.now {
            self.wakes.insert(at);
        }
    }
}

// Where requests stand.
impl Course<'_> {
    /// Puts requests where they wait for what keeps them back at this moment.
    fn place(&mut self, share: Share) {
        if share.is_protected && share.action.interrupts() {
            if share.is_asked {
                self.action_of(&share).protected += share.requests;
            }
            return;
        }
        match share.standing {
            Standing::After(_) | Standing::Behind => return self.follow(share),
            Standing::Later(at) | Standing::Retry(at) if at > self.now => {
                return self.coming.entry(at).or_default().push(share);
            }
            Standing::Ready | Standing::Follows | Standing::Later(_) | Standing::Retry(_) => {}
        }
        if !self.targets.contains_key(&share.target) {
            let why = self.unknown_target(&share);
            return self.kept.push_back(Kept { share, why });
        }
        if let Some(order) = self.order_of(&share)
            && !share.has_turn
        {
            return order.add(share);
        }
        match self.pause_of(&share) {
            Some(Hold {
                until: Some(until), ..
            }) => {
                let until = *until;
                self.coming.entry(until).or_default().push(share);
            }
            Some(pause) => {
                let why = Why::of_hold(pause);
                self.kept.push_back(Kept { share, why });
            }
            None => self.join_lane(share),
        }
    }

    /// Those that arrived first are released first.
    fn follow(&mut self, share: Share) {
        let followers = &mut self.followers;
        let at = followers.partition_point(|other| other.first_id <= share.first_id);
        followers.insert(at, share);
    }

    fn join_lane(&mut self, share: Share) {
        match self.stocks.iter_mut().find(|stock| stock.takes(&share)) {
            Some(stock) => stock.add(share),
            None => self.stocks.push(Stock::of(share)),
        }
    }

    fn unknown_target(&self, share: &Share) -> Why {
        let mut holds = self.question.holds.iter();
        let known = holds.find(|hold| {
            hold.kind == HoldKind::UnknownTarget && hold.target.as_ref() == Some(&share.target)
        });
        known.map_or_else(
            || Why {
                cause: Cause::Hold(HoldKind::UnknownTarget),
                reason: format!("the config has no [targets.{}]", share.target),
                until: None,
            },
            Why::of_hold,
        )
    }

    /// The pause of its label, if that is in force.
    fn pause_of(&self, share: &Share) -> Option<&Hold> {
        let label = share.label.as_ref()?;
        self.question.holds.iter().find(|hold| {
            hold.label.as_ref() == Some(label)
                && hold.kind == HoldKind::Operator
                && hold.is_about(&share.target, share.action)
                && hold.until.is_none_or(|until| until > self.now)
        })
    }

    fn order_of(&mut self, share: &Share) -> Option<&mut OrderCourse> {
        let label = share.label.as_ref()?;
        let mut orders = self.orders.iter_mut();
        orders.find(|order| order.order.label == *label)
    }

    fn arrive(&mut self) {
        while let Some(entry) = self.coming.first_entry() {
            if *entry.key() > self.now {
                return;
            }
            for mut share in entry.remove() {
                share.standing = share.standing.once_due();
                self.place(share);
            }
        }
    }

    fn expire(&mut self) {
        let now = self.now;
        let mut expired = Vec::new();
        for stock in &mut self.stocks {
            expired.extend(stock.expire(now));
        }
        expired.extend(take_expired(&mut self.followers, now));
        for order in &mut self.orders {
            expired.extend(take_expired(&mut order.waiting, now));
        }
        let is_past = |kept: &Kept| kept.share.expires_at.is_some_and(|at| at <= now);
        let (past, kept): (VecDeque<Kept>, VecDeque<Kept>) = std::mem::take(&mut self.kept)
            .into_iter()
            .partition(is_past);
        self.kept = kept;
        expired.extend(past.into_iter().map(|kept| kept.share));
        for share in expired {
            self.note_left_line(&share);
            self.note_unsent(&share, |action| &mut action.expiring);
        }
    }

    /// Requests of an order are no longer in a lane.
    fn note_left_line(&mut self, share: &Share) {
        if let Some(order) = self.order_of(share)
            && share.has_turn
        {
            order.open = order.open.saturating_sub(share.requests);
        }
    }

    /// Those that wait for others like these come when these have ended.
    fn release_followers(&mut self, leaving: &Leaving<'_>, most: u64) {
        let now = self.now;
        let (mut next, others): (VecDeque<Share>, VecDeque<Share>) =
            std::mem::take(&mut self.followers)
                .into_iter()
                .partition(|share| leaving.releases(share, now));
        let released = take_first(&mut next, most);
        self.followers = others;
        next.into_iter().for_each(|share| self.follow(share));
        for mut share in released {
            share.has_turn |= leaving.label.is_some();
            if let Some(order) = self.order_of(&share)
                && share.has_turn
            {
                order.open += share.requests;
            }
            let coming = self.coming.entry(leaving.ends_at).or_default();
            coming.push(share);
        }
    }

    /// How many requests that others may wait for have not left.
    fn count_leaders(&self, leaving: &Leaving<'_>) -> u64 {
        let in_lanes = self.stocks.iter().flat_map(Stock::shares);
        let in_orders = self.orders.iter().flat_map(|order| &order.waiting);
        let all = in_lanes
            .chain(in_orders)
            .chain(self.coming.values().flatten());
        let leaders = all.filter(|share| leaving.is_like(share) && is_in_line(share));
        leaders.map(|share| share.requests).sum()
    }

    fn count_followers(&self, leaving: &Leaving<'_>) -> u64 {
        let like = self
            .followers
            .iter()
            .filter(|share| leaving.releases(share, self.now));
        like.map(|share| share.requests).sum()
    }
}

// Calls.
impl Course<'_> {
    /// All calls of a target that may leave at this moment.
    fn make_calls(&mut self, name: &TargetName) {
        let holds = self.holds_of(name);
        let now = self.now;
        let Some(target) = self.targets.get_mut(name) else {
            return;
        };
        target.holds = holds;
        target.paced_until = None;
        while self.calls < CALLS_MAX && self.make_call(name) {}
        let Some(target) = self.targets.get(name) else {
            return;
        };
        let mut wakes: Vec<UtcMillis> = target.paced_until.into_iter().collect();
        for lane in self.lanes(name) {
            let covering = target.holds.iter().filter(|hold| hold.covers(&lane, now));
            wakes.extend(covering.filter_map(|hold| hold.until));
        }
        wakes.into_iter().for_each(|at| self.wake(at));
    }

    /// True if a call has left.
    fn make_call(&mut self, name: &TargetName) -> bool {
        let now = self.now;
        let lanes = self.lanes(name);
        let Some(target) = self.targets.get_mut(name) else {
            return false;
        };
        let limits = Limits {
            batch_servers_max: target.outlook.batch_servers_max,
            linger: Duration::ZERO,
        };
        let open = plan::open_lanes(name, &lanes, &target.holds, now);
        let Choice::Go(lane) = plan::choose(&open, limits, now) else {
            return false;
        };
        if let Some(until) = target.pace.wait(now) {
            target.paced_until = Some(until);
            return false;
        }
        let Some(most) = target.servers_allowed(name, lane.action, now) else {
            // Another action may have something left of its own.
            return true;
        };
        self.leave(&lane, u64::from(most));
        true
    }

    fn leave(&mut self, lane: &Lane, most: u64) {
        let mut stocks = self.stocks.iter_mut();
        let Some(stock) = stocks.find(|stock| {
            stock.kind == lane.kind && stock.action == lane.action && stock.target == lane.target
        }) else {
            return;
        };
        let shares = stock.take(most);
        let servers: u64 = shares.iter().map(|share| share.requests).sum();
        let now = self.now;
        if let Some(target) = self.targets.get_mut(&lane.target) {
            target.note_call(lane, u32::try_from(servers).unwrap_or(u32::MAX), now);
        }
        self.calls += 1;
        let asked: u64 = shares
            .iter()
            .filter(|share| share.is_asked)
            .map(|share| share.requests)
            .sum();
        let took = self.took(&lane.target, lane.action);
        for share in &shares {
            self.note_left(share, now + took);
        }
        if asked == 0 {
            return;
        }
        let knows_took = self.knows_took(lane);
        self.told.calls.push(PlannedCall {
            at: now,
            target: lane.target.clone(),
            action: lane.action,
            kind: lane.kind,
            servers,
            asked,
        });
        if let Some(share) = shares.first() {
            let action = self.action_of(share);
            action.calls += 1;
            action.first_leaves_at.get_or_insert(now);
            action.last_leaves_at = Some(now);
            action.last_ends_at = knows_took.then_some(now + took);
        }
    }

    fn note_left(&mut self, share: &Share, ends_at: UtcMillis) {
        let now = self.now;
        self.note_left_line(share);
        let mut label = None;
        if let Some(order) = self.order_of(share) {
            order.ends_at = order.ends_at.max(ends_at);
            order.order.has_success = true;
            label = share.label.clone();
        }
        if label.is_some() {
            self.wakes.insert(ends_at.max(now));
        }
        let leaving = Leaving {
            target: &share.target,
            action: share.action,
            label: label.as_ref(),
            ends_at,
        };
        let mut most = share.requests;
        if !share.standing.leads() {
            // Those that wait for the others that have not left are not to be released by this one.
            let spare = self.count_followers(&leaving);
            most = most.min(spare.saturating_sub(self.count_leaders(&leaving)));
        }
        self.release_followers(&leaving, most);
    }

    fn lanes(&self, name: &TargetName) -> Vec<Lane> {
        let of_target = self.stocks.iter().filter(|stock| stock.target == *name);
        of_target.filter_map(Stock::lane).collect()
    }

    fn took(&self, target: &TargetName, action: PowerAction) -> Duration {
        let target = self.targets.get(target);
        let took = target.and_then(|target| target.outlook.took.get(&action));
        took.copied().unwrap_or(TOOK_UNKNOWN)
    }

    fn knows_took(&self, lane: &Lane) -> bool {
        let target = self.targets.get(&lane.target);
        target.is_some_and(|target| target.outlook.took.contains_key(&lane.action))
    }

    /// What holds a target at this moment, by the queue and by its own rules.
    fn holds_of(&mut self, name: &TargetName) -> Vec<Hold> {
        let now = self.now;
        let of_queue = self.question.holds.iter();
        let mut holds: Vec<Hold> = of_queue
            .filter(|hold| hold.label.is_none())
            .filter(|hold| hold.target.as_ref().is_none_or(|held| held == name))
            .filter(|hold| hold.until.is_none_or(|until| until > now))
            .cloned()
            .collect();
        let lanes = self.lanes(name);
        let actions: BTreeSet<PowerAction> = lanes.iter().map(|lane| lane.action).collect();
        for action in actions {
            let due = self.count_unapproved(name, action);
            let Some(target) = self.targets.get_mut(name) else {
                continue;
            };
            holds.extend(target.window_hold(name, action, now));
            holds.extend(target.guard_hold(name, action, due, now));
        }
        holds
    }

    /// What a guard counts as due: whatever else holds it.
    fn count_unapproved(&self, name: &TargetName, action: PowerAction) -> u64 {
        let in_lanes = self.stocks.iter().flat_map(Stock::shares);
        let in_orders = self.orders.iter().flat_map(|order| &order.waiting);
        let kept = self.kept.iter().map(|kept| &kept.share);
        let all = in_lanes
            .chain(in_orders)
            .chain(kept)
            .chain(&self.followers)
            .chain(self.coming.values().flatten());
        let counted = all.filter(|share| {
            share.target == *name
                && share.action == action
                && share.standing.is_due()
                && !share.kind.is_approved
                && !share.is_counted
        });
        counted.map(|share| share.requests).sum()
    }
}

// Orders.
impl Course<'_> {
    fn serve_order(&mut self, number: usize) {
        let now = self.now;
        let gate = if self.question.has_gate {
            Gate::Yes
        } else {
            Gate::Absent
        };
        // An order opens its next wave at once if its present one has carried nobody.
        for _ in 0..CALLS_MAX {
            let Some(order) = self.orders.get_mut(number) else {
                return;
            };
            if order.is_held {
                return;
            }
            order.look(now);
            match waves::next(&order.order, &gate, now) {
                Next::Done => return,
                Next::Open { wave, size } => {
                    order.open_wave(wave, size);
                    self.let_go(number);
                }
                Next::Take => self.let_go(number),
                Next::Wait(wait) => {
                    order.order.over_at = wait.news.over_at;
                    order.why = wait.news.reason.map(|reason| Why {
                        cause: Cause::Hold(HoldKind::Wave),
                        reason,
                        until: wait.news.until,
                    });
                    let ends_at = order.ends_at;
                    self.wake(ends_at);
                    wait.news.until.iter().for_each(|at| self.wake(*at));
                    return;
                }
            }
        }
    }

    fn let_go(&mut self, number: usize) {
        let Some(order) = self.orders.get_mut(number) else {
            return;
        };
        let room = order.order.wave_size - order.order.wave_taken;
        let shares = take_first(&mut order.waiting, room);
        for mut share in shares {
            share.has_turn = true;
            if let Some(order) = self.orders.get_mut(number) {
                order.order.wave_taken += share.requests;
                order.open += share.requests;
            }
            self.place(share);
        }
    }
}

// What is told.
impl Course<'_> {
    fn action_of(&mut self, share: &Share) -> &mut ActionForecast {
        let key = (share.target.clone(), share.action);
        self.actions
            .entry(key)
            .or_insert_with(|| ActionForecast::none_of(&share.target, share.action))
    }

    /// Requests that never leave, as far as is known.
    fn note_unsent(&mut self, share: &Share, count: fn(&mut ActionForecast) -> &mut u64) {
        if !share.is_asked {
            return;
        }
        let action = self.action_of(share);
        *count(action) += share.requests;
        action.first_expires_at = action
            .first_expires_at
            .into_iter()
            .chain(share.expires_at)
            .min();
    }

    /// What has not left when nothing more happens.
    fn note_stuck(&mut self) {
        let coming = self.coming.values().flatten();
        self.told.is_cut = self.is_cut && coming.into_iter().any(|share| share.is_asked);
        let mut most: BTreeMap<(TargetName, PowerAction), (u64, String)> = BTreeMap::new();
        for (share, why) in self.left_over() {
            if self.is_cut && why.until.is_some() {
                self.told.is_cut |= share.is_asked;
                continue;
            }
            self.note_unsent(&share, |action| &mut action.stuck);
            if share.is_asked {
                let key = (share.target.clone(), share.action);
                let largest = most.entry(key).or_default();
                if share.requests > largest.0 {
                    *largest = (share.requests, why.reason);
                }
            }
        }
        for (key, (_, reason)) in most {
            if let Some(action) = self.actions.get_mut(&key) {
                action.stuck_reason = Some(reason);
            }
        }
    }

    /// All that stands somewhere and waits for nothing that is to come.
    fn left_over(&self) -> Vec<(Share, Why)> {
        let mut left = Vec::new();
        for stock in &self.stocks {
            if let Some(why) = self.why_not(stock) {
                left.extend(stock.shares().map(|share| (share.clone(), why.clone())));
            }
        }
        for order in &self.orders {
            let why = order.why_not();
            left.extend(
                order
                    .waiting
                    .iter()
                    .map(|share| (share.clone(), why.clone())),
            );
        }
        let kept = self.kept.iter();
        left.extend(kept.map(|kept| (kept.share.clone(), kept.why.clone())));
        let followers = self.followers.iter();
        left.extend(followers.map(|share| (share.clone(), Why::of_follower(share))));
        left
    }

    /// What does not leave at this moment, and why.
    fn note_waiting(&mut self) {
        let mut groups: BTreeMap<(TargetName, PowerAction, Why), u64> = BTreeMap::new();
        let mut note = |share: &Share, why: Why| {
            if share.is_asked {
                let key = (share.target.clone(), share.action, why);
                *groups.entry(key).or_default() += share.requests;
            }
        };
        for (share, why) in self.left_over() {
            note(&share, why);
        }
        for share in self.question.shares.iter() {
            if share.is_protected && share.action.interrupts() {
                note(share, Why::protected());
            }
        }
        for (at, shares) in &self.coming {
            for share in shares {
                note(share, self.why_coming(share, *at));
            }
        }
        let waiting = groups
            .into_iter()
            .map(|((target, action, why), requests)| Waiting {
                target,
                action,
                requests,
                cause: why.cause,
                reason: why.reason,
                until: why.until,
            });
        self.told.waiting = joined(waiting.collect());
    }

    /// Why a lane does not leave at this moment; none if it is empty.
    fn why_not(&self, stock: &Stock) -> Option<Why> {
        let lane = stock.lane()?;
        let target = self.targets.get(&stock.target)?;
        let covering = target
            .holds
            .iter()
            .filter(|hold| hold.covers(&lane, self.now));
        // The one that ends last, as `power_waiting` has it.
        let last = covering.max_by_key(|hold| (hold.until.is_none(), hold.until));
        Some(match last {
            Some(hold) => Why::of_hold(hold),
            None => Why {
                cause: Cause::Pace,
                reason: "the calls of the last minute use up submits_per_minute".to_owned(),
                until: target.paced_until,
            },
        })
    }

    fn why_coming(&self, share: &Share, at: UtcMillis) -> Why {
        let (cause, reason) = match share.standing {
            Standing::Behind | Standing::After(_) => return Why::of_follower(share),
            Standing::Retry(_) => (Cause::Retry, "it is tried again later"),
            Standing::Later(_) => (Cause::NotDue, "it is not due yet"),
            Standing::Ready | Standing::Follows => match self.pause_of(share) {
                Some(pause) => return Why::of_hold(pause),
                None => (Cause::NotDue, "it is not due yet"),
            },
        };
        Why {
            cause,
            reason: reason.to_owned(),
            until: Some(at),
        }
    }
}

/// True for those that hold up others of their servers.
fn is_in_line(share: &Share) -> bool {
    matches!(share.standing, Standing::Ready | Standing::Retry(_))
}

/// Of requests that wait for one reason until different times, the first time is told.
fn joined(groups: Vec<Waiting>) -> Vec<Waiting> {
    let mut joined: Vec<Waiting> = Vec::new();
    for group in groups {
        match joined.last_mut() {
            Some(last) if last.is_like(&group) => {
                last.requests += group.requests;
                last.until = last.until.into_iter().chain(group.until).min();
            }
            _ => joined.push(group),
        }
    }
    joined
}

impl Waiting {
    fn is_like(&self, other: &Self) -> bool {
        self.target == other.target
            && self.action == other.action
            && self.cause == other.cause
            && self.reason == other.reason
    }
}

impl Why {
    fn of_hold(hold: &Hold) -> Self {
        Self {
            cause: Cause::Hold(hold.kind),
            reason: hold.reason.clone(),
            until: hold.until,
        }
    }

    fn of_follower(share: &Share) -> Self {
        let (cause, reason) = match share.standing {
            Standing::After(_) => (Cause::After, "it waits for another request to succeed"),
            _ => (Cause::Behind, "another request of its server goes first"),
        };
        Self {
            cause,
            reason: reason.to_owned(),
            until: None,
        }
    }

    fn protected() -> Self {
        Self {
            cause: Cause::Protected,
            reason: "the config protects its server: it will be rejected".to_owned(),
            until: None,
        }
    }
}

impl ActionForecast {
    fn none_of(target: &TargetName, action: PowerAction) -> Self {
        Self {
            target: target.clone(),
            action,
            requests: 0,
            protected: 0,
            expiring: 0,
            stuck: 0,
            stuck_reason: None,
            calls: 0,
            first_leaves_at: None,
            last_leaves_at: None,
            last_ends_at: None,
            first_expires_at: None,
        }
    }
}

impl OrderCourse {
    fn new(order: &Order, question: &Question) -> Self {
        let mut holds = question.holds.iter();
        let hold = holds
            .find(|hold| hold.kind == HoldKind::Wave && hold.label.as_ref() == Some(&order.label));
        Self {
            order: order.clone(),
            waiting: VecDeque::new(),
            open: 0,
            ends_at: question.now,
            why: hold.map(Why::of_hold),
            is_held: order.state == OrderState::Held && order.let_go.is_none(),
        }
    }

    fn add(&mut self, share: Share) {
        let place = turn_of(&share);
        let at = self
            .waiting
            .partition_point(|other| turn_of(other) <= place);
        self.waiting.insert(at, share);
    }

    /// All that the queue has of it is placed.
    fn begin(&mut self) {
        let waiting: u64 = self.waiting.iter().map(|share| share.requests).sum();
        let order = &mut self.order;
        // What the daemon has not read yet, each for a server of its own.
        order.servers = order.servers.max(order.wave_taken + waiting);
        if order.is_on_its_way {
            self.ends_at = self.ends_at + TOOK_UNKNOWN;
        }
    }

    /// What is to be known of it at this moment.
    fn look(&mut self, now: UtcMillis) {
        let order = &mut self.order;
        order.has_due = !self.waiting.is_empty();
        order.is_on_its_way = self.open > 0 || now < self.ends_at;
        order.is_unfinished = order.has_due || order.is_on_its_way;
    }

    fn open_wave(&mut self, wave: u64, size: u64) {
        let order = &mut self.order;
        order.wave = wave;
        order.wave_size = size;
        order.wave_taken = 0;
        order.over_at = None;
        order.has_success = false;
        order.let_go = order.let_go.filter(|let_go| let_go.is_rest());
    }

    fn why_not(&self) -> Why {
        self.why.clone().unwrap_or_else(|| Why {
            cause: Cause::Hold(HoldKind::Wave),
            reason: format!("its turn in order '{}' has not come", self.order.label),
            until: None,
        })
    }
}

impl<'a> TargetCourse<'a> {
    fn new(outlook: &'a TargetOutlook) -> Self {
        let mut probed = BTreeSet::new();
        if outlook.is_probed {
            probed.extend(PowerAction::ALL);
        }
        Self {
            outlook,
            pace: outlook.pace.clone(),
            probed,
            spent: calls_of(&outlook.budgets),
            unapproved: calls_of(&outlook.guards),
            windows: BTreeMap::new(),
            holds: Vec::new(),
            paced_until: None,
        }
    }

    /// How many servers the next call may carry; none if the budget is used up, which is a hold.
    fn servers_allowed(
        &mut self,
        name: &TargetName,
        action: PowerAction,
        now: UtcMillis,
    ) -> Option<u32> {
        let most = if self.probed.contains(&action) {
            1
        } else {
            self.outlook.batch_servers_max
        };
        let Some(counted) = self.outlook.budgets.get(&action) else {
            return Some(most);
        };
        let spent = self.spent.entry(action).or_default();
        spent.retain(|(at, _)| now.since(*at) < counted.budget.span);
        match plan::allowance(counted.budget, spent, now) {
            Allowance::Servers(left) => Some(left.min(most)),
            Allowance::NoneUntil(until) => {
                let hold = plan::budget_hold(name, action, counted.budget, (now, until));
                self.holds.push(hold);
                None
            }
        }
    }

    fn note_call(&mut self, lane: &Lane, servers: u32, now: UtcMillis) {
        let action = lane.action;
        self.pace.call_started();
        self.pace.call_ended(now);
        self.probed.remove(&action);
        if self.outlook.budgets.contains_key(&action) {
            self.spent.entry(action).or_default().push((now, servers));
        }
        if self.outlook.guards.contains_key(&action) && !lane.kind.is_approved {
            let calls = self.unapproved.entry(action).or_default();
            calls.push((now, servers));
        }
    }

    fn window_hold(
        &mut self,
        name: &TargetName,
        action: PowerAction,
        now: UtcMillis,
    ) -> Option<Hold> {
        let windows = &self.outlook.windows;
        if !windows.limit(action) {
            return None;
        }
        if let Some((until, hold)) = self.windows.get(&action)
            && until.is_some_and(|until| now < until)
        {
            return hold.clone();
        }
        let state = windows.state(action, now);
        let until = state.until();
        let hold = windows::hold(name, action, state, now);
        self.windows.insert(action, (until, hold.clone()));
        hold
    }

    fn guard_hold(
        &mut self,
        name: &TargetName,
        action: PowerAction,
        due: u64,
        now: UtcMillis,
    ) -> Option<Hold> {
        let counted = self.outlook.guards.get(&action)?;
        let calls = self.unapproved.entry(action).or_default();
        calls.retain(|(at, _)| now.since(*at) < counted.budget.span);
        let GuardVerdict::Holds { until } = guard::judge(counted.budget, due, calls, now) else {
            return None;
        };
        let waiting = GuardWaiting {
            target: name,
            action,
            due,
            is_more: false,
            left: guard::left(counted.budget, calls, now),
            crowds: &counted.crowds,
        };
        let mut hold = guard::hold(counted.budget, &waiting, now);
        hold.until = until;
        Some(hold)
    }
}

fn calls_of(
    limits: &BTreeMap<PowerAction, Counted>,
) -> BTreeMap<PowerAction, Vec<(UtcMillis, u32)>> {
    let calls = limits.iter();
    calls
        .map(|(action, counted)| (*action, counted.calls.clone()))
        .collect()
}
