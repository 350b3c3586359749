//! Decides which requests leave next. Pure: knows nothing of SQL, HTTP or clocks.
//!
//! The store keeps claimable requests in lanes: one (target, action, travel group) each, highest
//! priority first, then oldest. A batch is the head of one lane. What must not travel together is
//! in different lanes, so the plan only chooses among lanes; which server's turn it is, is already
//! settled by the queue's own order (promise 8).

use std::time::Duration;

use crate::model::{Budget, Hold, HoldKind, Lane, PowerAction, TargetName, UtcMillis};

pub mod forecast;
pub mod guard;
pub mod waves;
pub mod windows;

/// What a target's batches must keep to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most servers in one call.
    pub batch_servers_max: u32,
    /// How long a batch that is not full waits for more.
    pub linger: Duration,
}

/// What to do for one target at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Claim the head of this lane.
    Go(Lane),
    /// Something waits for more rows to join it; look again then.
    WaitUntil(UtcMillis),
    /// Nothing may go.
    Nothing,
}

/// The lanes of `target` that nothing holds: the highest priority first, then the oldest request.
pub fn open_lanes<'a>(
    target: &TargetName,
    lanes: &'a [Lane],
    holds: &[Hold],
    now: UtcMillis,
) -> Vec<&'a Lane> {
    let mut open: Vec<&Lane> = lanes
        .iter()
        .filter(|lane| lane.target == *target && lane.ready > 0)
        .filter(|lane| !holds.iter().any(|hold| hold.covers(lane, now)))
        .collect();
    open.sort_by_key(|lane| (-lane.head_priority, lane.head_id));
    open
}

/// Chooses the first of these lanes whose head may leave.
///
/// A lane of fresh requests that does not fill a batch waits until its oldest request could have
/// gone for `linger`; returned groups do not wait, nobody can join them.
pub fn choose(open: &[&Lane], limits: Limits, now: UtcMillis) -> Choice {
    let mut earliest: Option<UtcMillis> = None;
    for lane in open {
        let leaves_at = limits.leaves_at(lane, now);
        // A clock that stepped back must not make a row linger for hours.
        if leaves_at <= now || leaves_at > now + limits.linger {
            return Choice::Go((*lane).clone());
        }
        earliest = Some(earliest.map_or(leaves_at, |earlier| earlier.min(leaves_at)));
    }
    earliest.map_or(Choice::Nothing, Choice::WaitUntil)
}

impl Limits {
    fn leaves_at(self, lane: &Lane, now: UtcMillis) -> UtcMillis {
        let may_grow = lane.kind.group == 0 && lane.ready < self.batch_servers_max;
        if may_grow {
            lane.oldest_eligible_at + self.linger
        } else {
            now
        }
    }
}

/// How many servers a budget still lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowance {
    /// At most this many, at least one.
    Servers(u32),
    /// None before this time.
    NoneUntil(UtcMillis),
}

/// What is left of `budget`, given the calls of its span that may have had an effect: when, and for
/// how many servers.
///
/// The span rolls: a call counts until exactly one span has passed.
pub fn allowance(budget: Budget, spent: &[(UtcMillis, u32)], now: UtcMillis) -> Allowance {
    let mut used: u64 = 0;
    let mut oldest: Option<UtcMillis> = None;
    for &(at, servers) in spent {
        if now.since(at) < budget.span {
            used += u64::from(servers);
            oldest = Some(oldest.map_or(at, |earlier| earlier.min(at)));
        }
    }
    match u64::from(budget.servers).saturating_sub(used) {
        0 => Allowance::NoneUntil(oldest.unwrap_or(now) + budget.span),
        left => Allowance::Servers(u32::try_from(left).unwrap_or(u32::MAX)),
    }
}

/// The hold of a budget that is used up, put at the first of these times, until the second.
pub fn budget_hold(
    target: &TargetName,
    action: PowerAction,
    budget: Budget,
    (since, until): (UtcMillis, UtcMillis),
) -> Hold {
    let span = humantime::format_duration(budget.span);
    let servers = budget.servers;
    Hold {
        target: Some(target.clone()),
        action: Some(action),
        label: None,
        kind: HoldKind::Budget,
        reason: format!("the budget {action} = \"{servers}/{span}\" is used up until {until}"),
        since,
        until: Some(until),
    }
}

/// When a request can leave at the earliest under a budget that is used up until `until`, with
/// `ahead` others before it: of no span do more than the budget's servers leave.
pub fn earliest_under_budget(budget: Budget, until: UtcMillis, ahead: u64) -> UtcMillis {
    let spans = ahead / u64::from(budget.servers.max(1));
    until
        + budget
            .span
            .saturating_mul(u32::try_from(spans).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::LaneKind;
    use proptest::prelude::*;

    const NOW: UtcMillis = UtcMillis(1_800_000_000_000);
    const LIMITS: Limits = Limits {
        batch_servers_max: 1000,
        linger: Duration::from_millis(100),
    };

    fn lane(
        action: PowerAction,
        group: i64,
        head_priority: i64,
        head_id: i64,
        ready: u32,
        waited_ms: u64,
    ) -> Lane {
        let oldest_eligible_at = NOW.before(Duration::from_millis(waited_ms));
        Lane {
            target: target(),
            action,
            kind: LaneKind {
                group,
                ..LaneKind::default()
            },
            head_priority,
            head_id,
            ready,
            oldest_eligible_at,
        }
    }

    fn choice(lanes: &[Lane], holds: &[Hold]) -> Choice {
        choose(&open_lanes(&target(), lanes, holds, NOW), LIMITS, NOW)
    }

    fn target() -> TargetName {
        TargetName("default".into())
    }

    fn hold(action: Option<PowerAction>, until: Option<UtcMillis>) -> Hold {
        Hold {
            target: None,
            action,
            label: None,
            kind: HoldKind::Operator,
            reason: "paused".into(),
            since: NOW,
            until,
        }
    }

    #[test]
    fn a_higher_priority_goes_before_an_older_request() {
        let lanes = [
            lane(PowerAction::Stop, 0, 0, 1, 5, 500),
            lane(PowerAction::Start, 0, 10, 9, 5, 500),
        ];
        let Choice::Go(chosen) = choice(&lanes, &[]) else {
            panic!("one may go")
        };
        assert_eq!(chosen.action, PowerAction::Start);
    }

    #[test]
    fn a_batch_that_is_not_full_lingers_and_a_full_one_does_not() {
        let small = lane(PowerAction::Stop, 0, 0, 1, 999, 40);
        let wait = Choice::WaitUntil(NOW + Duration::from_millis(60));
        assert_eq!(choice(std::slice::from_ref(&small), &[]), wait);
        let full = Lane {
            ready: 1000,
            ..small.clone()
        };
        assert_eq!(choice(std::slice::from_ref(&full), &[]), Choice::Go(full));
        let kind = LaneKind {
            group: 7,
            ..LaneKind::default()
        };
        let part = Lane { kind, ..small };
        assert_eq!(choice(std::slice::from_ref(&part), &[]), Choice::Go(part));
    }

    #[test]
    fn a_lingering_lane_does_not_hold_up_one_that_may_go() {
        let lanes = [
            lane(PowerAction::Stop, 0, 50, 1, 1, 0),
            lane(PowerAction::Start, 0, 0, 2, 1, 200),
        ];
        assert_eq!(choice(&lanes, &[]), Choice::Go(lanes[1].clone()));
    }

    #[test]
    fn a_clock_that_stepped_back_an_hour_does_not_park_the_lane() {
        let ahead = Lane {
            oldest_eligible_at: NOW + Duration::from_secs(3600),
            ..lane(PowerAction::Stop, 0, 0, 1, 1, 0)
        };
        assert_eq!(choice(std::slice::from_ref(&ahead), &[]), Choice::Go(ahead));
    }

    #[test]
    fn a_hold_stops_its_action_only_and_ends_by_itself() {
        let lanes = [
            lane(PowerAction::Stop, 0, 0, 1, 5, 500),
            lane(PowerAction::Start, 0, 0, 2, 5, 500),
        ];
        let held = [hold(Some(PowerAction::Stop), None)];
        assert_eq!(choice(&lanes, &held), Choice::Go(lanes[1].clone()));
        let over = [hold(None, Some(NOW))];
        assert_eq!(choice(&lanes, &over), Choice::Go(lanes[0].clone()));
    }

    #[test]
    fn a_budget_lets_through_what_its_rolling_span_has_left() {
        let budget = Budget {
            servers: 500,
            span: Duration::from_secs(3600),
        };
        let at = |minutes: u64| NOW.before(Duration::from_secs(minutes * 60));
        assert_eq!(allowance(budget, &[], NOW), Allowance::Servers(500));
        assert_eq!(
            allowance(budget, &[(at(61), 400), (at(30), 200)], NOW),
            Allowance::Servers(300)
        );
        let until = at(50) + budget.span;
        assert_eq!(
            allowance(budget, &[(at(50), 300), (at(10), 200)], NOW),
            Allowance::NoneUntil(until)
        );
        assert_eq!(
            allowance(budget, &[(at(50), 300), (at(10), 200)], until),
            Allowance::Servers(300)
        );
    }

    proptest! {
        #[test]
        fn what_goes_is_never_held_and_never_behind_another_that_may_go(
            shapes in prop::collection::vec((0usize..3, 0i64..3, -5i64..5, 1i64..500, 0u32..1001, 0u64..300), 0..12),
            held in prop::option::of(0usize..3),
        ) {
            let actions = PowerAction::ALL;
            let lanes: Vec<Lane> = shapes.iter()
                .map(|&(a, g, p, id, ready, waited)| lane(actions[a], g, p, id, ready, waited)).collect();
            let holds: Vec<Hold> = held.iter().map(|&a| hold(Some(actions[a]), None)).collect();
            if let Choice::Go(chosen) = choice(&lanes, &holds) {
                prop_assert!(chosen.ready > 0);
                prop_assert!(!holds.iter().any(|hold| hold.covers(&chosen, NOW)));
                let before = |lane: &Lane| (-lane.head_priority, lane.head_id) < (-chosen.head_priority, chosen.head_id);
                let full_and_free = |lane: &Lane| lane.ready >= 1000
                    && !holds.iter().any(|hold| hold.covers(lane, NOW));
                prop_assert!(!lanes.iter().any(|lane| before(lane) && full_and_free(lane)));
            }
        }
    }

    #[test]
    fn only_lanes_of_the_target_with_something_ready_are_open() {
        let other = Lane {
            target: TargetName("other".into()),
            ..lane(PowerAction::Stop, 0, 0, 1, 5, 500)
        };
        let empty = lane(PowerAction::Stop, 0, 0, 2, 0, 500);
        let ready = lane(PowerAction::Start, 0, 0, 3, 1, 500);
        let lanes = [other, empty, ready.clone()];
        assert_eq!(open_lanes(&target(), &lanes, &[], NOW), [&ready]);
    }

    #[test]
    fn of_no_span_more_than_the_budget_leaves() {
        let budget = Budget {
            servers: 500,
            span: Duration::from_secs(3600),
        };
        for (ahead, hours) in [(0, 0), (499, 0), (500, 1), (1200, 2)] {
            let at = NOW + Duration::from_secs(hours * 3600);
            assert_eq!(earliest_under_budget(budget, NOW, ahead), at, "{ahead}");
        }
    }
}
