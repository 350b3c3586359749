use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::model::{LaneKind, Leader, LetGo, OrderState, Standing};
use crate::plan::windows::{Freeze, Span};

const NOW: UtcMillis = UtcMillis(1_800_000_000_000);

fn target() -> TargetName {
    TargetName("eu".to_owned())
}

fn minutes(minutes: u64) -> UtcMillis {
    NOW + Duration::from_secs(60 * minutes)
}

/// That many stops that may go.
fn stops(requests: u64) -> Share {
    Share {
        target: target(),
        action: PowerAction::Stop,
        kind: LaneKind::default(),
        priority: 0,
        standing: Standing::Ready,
        label: None,
        has_turn: true,
        requests,
        first_id: 1,
        expires_at: None,
        is_protected: false,
        is_counted: false,
        is_asked: true,
    }
}

/// It waits for a stop that is due then.
fn after_a_stop(due_at: Option<UtcMillis>) -> Standing {
    Standing::After(Leader {
        action: Some(PowerAction::Stop),
        due_at,
    })
}

/// A target without limits, whose jobs take a minute.
fn outlook() -> TargetOutlook {
    let took = PowerAction::ALL
        .iter()
        .map(|action| (*action, Duration::from_secs(60)));
    TargetOutlook {
        batch_servers_max: 1000,
        pace: Pace::new(6000, [], NOW),
        is_probed: false,
        budgets: BTreeMap::new(),
        guards: BTreeMap::new(),
        windows: Windows::default(),
        took: took.collect(),
    }
}

fn counted(servers: u32, minutes: u64) -> BTreeMap<PowerAction, Counted> {
    let counted = Counted {
        budget: Budget {
            servers,
            span: Duration::from_secs(60 * minutes),
        },
        calls: Vec::new(),
        crowds: Vec::new(),
    };
    BTreeMap::from([(PowerAction::Stop, counted)])
}

fn question(shares: Vec<Share>, outlook: TargetOutlook) -> Question {
    Question {
        now: NOW,
        shares,
        running: Vec::new(),
        targets: BTreeMap::from([(target(), outlook)]),
        holds: Vec::new(),
        orders: Vec::new(),
        has_gate: false,
    }
}

fn pause(label: Option<&str>, until: Option<UtcMillis>) -> Hold {
    Hold {
        target: None,
        action: None,
        label: label.map(str::to_owned),
        kind: HoldKind::Operator,
        reason: "paused".to_owned(),
        since: NOW,
        until,
    }
}

/// `minute: servers` of each call.
fn calls(forecast: &Forecast) -> Vec<(u64, u64)> {
    let calls = forecast.calls.iter();
    calls
        .map(|call| (call.at.since(NOW).as_secs() / 60, call.servers))
        .collect()
}

/// The causes, with how many wait for each and until which minute.
fn causes(forecast: &Forecast) -> Vec<(&'static str, u64, Option<u64>)> {
    let waiting = forecast.waiting.iter();
    waiting
        .map(|waiting| {
            let until = waiting.until.map(|at| at.since(NOW).as_secs() / 60);
            (waiting.cause.as_str(), waiting.requests, until)
        })
        .collect()
}

fn only(forecast: &Forecast) -> &ActionForecast {
    assert_eq!(forecast.actions.len(), 1);
    &forecast.actions[0]
}

#[test]
fn full_batches_leave_at_once_and_nothing_waits() {
    let told = forecast(&question(vec![stops(2300)], outlook()));
    assert_eq!(calls(&told), [(0, 1000), (0, 1000), (0, 300)]);
    assert_eq!(causes(&told), []);
    let stop = only(&told);
    assert_eq!((stop.requests, stop.calls, stop.stuck), (2300, 3, 0));
    assert_eq!(stop.last_leaves_at, Some(NOW));
    assert_eq!(stop.last_ends_at, Some(minutes(1)));
}

#[test]
fn nothing_to_do_is_an_answer() {
    let told = forecast(&question(Vec::new(), outlook()));
    assert_eq!(told, Forecast::default());
}

#[test]
fn an_end_is_not_guessed_where_no_job_has_ended() {
    let mut fresh = outlook();
    fresh.took.clear();
    let told = forecast(&question(vec![stops(3)], fresh));
    assert_eq!(only(&told).last_leaves_at, Some(NOW));
    assert_eq!(only(&told).last_ends_at, None);
}

#[test]
fn the_pace_spreads_calls_over_minutes() {
    let mut slow = outlook();
    slow.pace = Pace::new(2, [NOW], NOW);
    let told = forecast(&question(vec![stops(4000)], slow));
    assert_eq!(calls(&told), [(0, 1000), (1, 1000), (1, 1000), (2, 1000)]);
    assert_eq!(causes(&told), [("pace", 3000, Some(1))]);
}

#[test]
fn a_budget_lets_its_number_go_in_each_span() {
    let mut tight = outlook();
    tight.budgets = counted(500, 60);
    let told = forecast(&question(vec![stops(1200)], tight.clone()));
    assert_eq!(calls(&told), [(0, 500), (60, 500), (120, 200)]);
    assert_eq!(causes(&told), [("budget", 700, Some(60))]);
    let used = tight.budgets.get_mut(&PowerAction::Stop).expect("there");
    used.calls = vec![(NOW.before(Duration::from_secs(600)), 400)];
    let told = forecast(&question(vec![stops(1200)], tight));
    assert_eq!(calls(&told)[..3], [(0, 100), (50, 400), (60, 100)]);
}

#[test]
fn a_budget_of_one_action_does_not_hold_another() {
    let mut tight = outlook();
    tight.budgets = counted(10, 60);
    let starts = Share {
        action: PowerAction::Start,
        priority: -1,
        ..stops(30)
    };
    let told = forecast(&question(vec![stops(20), starts], tight));
    assert_eq!(calls(&told), [(0, 10), (0, 30), (60, 10)]);
}

#[test]
fn over_its_number_a_guard_holds_all_until_somebody_approves() {
    let mut guarded = outlook();
    guarded.guards = counted(200, 60);
    let told = forecast(&question(vec![stops(201)], guarded.clone()));
    assert_eq!(calls(&told), []);
    assert_eq!(causes(&told), [("approval", 201, None)]);
    assert_eq!(only(&told).stuck, 201);
    assert!(
        told.waiting[0].reason.contains("201 requests to stop"),
        "{}",
        told.waiting[0].reason
    );
    let mut approved = stops(201);
    approved.kind.is_approved = true;
    let told = forecast(&question(vec![approved, stops(5)], guarded.clone()));
    assert_eq!(calls(&told), [(0, 201), (0, 5)]);
    let told = forecast(&question(vec![stops(200)], guarded));
    assert_eq!(calls(&told), [(0, 200)]);
}

#[test]
fn what_left_before_counts_for_a_guard_until_its_span_is_over() {
    let mut guarded = outlook();
    guarded.guards = counted(200, 60);
    let used = guarded.guards.get_mut(&PowerAction::Stop).expect("there");
    used.calls = vec![(NOW.before(Duration::from_secs(1200)), 150)];
    let told = forecast(&question(vec![stops(100)], guarded));
    assert_eq!(calls(&told), [(40, 100)]);
    assert_eq!(causes(&told), [("approval", 100, Some(40))]);
}

#[test]
fn a_window_that_opens_across_a_clock_change_opens_by_the_clock_on_the_wall() {
    // 2026-10-25 02:30 in Berlin, for the first time; the window opens at 03:00, an hour and a half
    // later.
    let now: UtcMillis = "2026-10-25T00:30:00Z".parse().expect("a time");
    let span = Span::parse("Sun 03:00-05:00 Europe/Berlin").expect("a span");
    let mut closed = outlook();
    closed.windows.spans = BTreeMap::from([(PowerAction::Stop, vec![span])]);
    let mut asked = question(vec![stops(7)], closed);
    asked.now = now;
    let told = forecast(&asked);
    let opens: UtcMillis = "2026-10-25T02:00:00Z".parse().expect("a time");
    assert_eq!(told.calls[0].at, opens);
    assert_eq!(told.waiting[0].until, Some(opens));
    assert!(told.waiting[0].reason.contains("03:00 Europe/Berlin"));
}

#[test]
fn a_freeze_holds_until_its_last_day_is_over_unless_there_is_a_reason() {
    let now: UtcMillis = "2026-12-24T12:00:00Z".parse().expect("a time");
    let freeze = Freeze::parse("2026-12-20..2027-01-03").expect("a freeze");
    let mut frozen = outlook();
    frozen.windows.freezes = vec![freeze];
    let mut urgent = stops(3);
    urgent.kind.has_override = true;
    let mut asked = question(vec![stops(7), urgent], frozen);
    asked.now = now;
    let told = forecast(&asked);
    let servers: Vec<u64> = told.calls.iter().map(|call| call.servers).collect();
    assert_eq!(servers, [3, 7]);
    let over: UtcMillis = "2027-01-04T00:00:00Z".parse().expect("a time");
    assert_eq!(told.calls[1].at, over);
}

#[test]
fn a_window_that_never_opens_leaves_them_stuck() {
    let mut frozen = outlook();
    frozen.windows.freezes = vec![Freeze::parse("2026-01-01..2099-12-31").expect("a freeze")];
    let told = forecast(&question(vec![stops(7)], frozen));
    assert_eq!((only(&told).stuck, causes(&told).len()), (7, 1));
}

#[test]
fn what_expires_before_it_can_leave_is_counted_and_takes_no_room() {
    let mut tight = outlook();
    tight.budgets = counted(100, 60);
    let short = Share {
        expires_at: Some(minutes(90)),
        ..stops(1000)
    };
    let long = Share {
        first_id: 2000,
        ..stops(50)
    };
    let told = forecast(&question(vec![short, long], tight));
    assert_eq!(calls(&told), [(0, 100), (60, 100), (120, 50)]);
    let stop = only(&told);
    assert_eq!((stop.expiring, stop.stuck), (800, 0));
    assert_eq!(stop.first_expires_at, Some(minutes(90)));
}

#[test]
fn a_pause_keeps_all_and_that_of_a_label_only_its_own() {
    let mut asked = question(vec![stops(5)], outlook());
    asked.holds = vec![pause(None, None)];
    let told = forecast(&asked);
    assert_eq!((calls(&told), only(&told).stuck), (Vec::new(), 5));
    let labelled = Share {
        label: Some("night".to_owned()),
        ..stops(9)
    };
    let mut asked = question(vec![stops(5), labelled], outlook());
    asked.holds = vec![pause(Some("night"), Some(minutes(30)))];
    let told = forecast(&asked);
    assert_eq!(calls(&told), [(0, 5), (30, 9)]);
    assert_eq!(causes(&told), [("operator", 9, Some(30))]);
}

#[test]
fn the_hold_that_ends_last_is_the_one_that_is_told() {
    let mut asked = question(vec![stops(5)], outlook());
    asked.holds = vec![pause(None, Some(minutes(90)))];
    asked.holds.push(Hold {
        kind: HoldKind::Breaker,
        until: Some(minutes(2)),
        ..pause(None, None)
    });
    assert_eq!(causes(&forecast(&asked)), [("operator", 5, Some(90))]);
}

#[test]
fn requests_of_an_unknown_target_wait_for_a_person() {
    let lost = Share {
        target: TargetName("tpyo".to_owned()),
        ..stops(4)
    };
    let told = forecast(&question(vec![lost], outlook()));
    assert_eq!(causes(&told), [("unknown_target", 4, None)]);
    assert_eq!(only(&told).stuck, 4);
}

#[test]
fn protected_servers_are_not_called_and_starts_of_them_are() {
    let guarded = Share {
        is_protected: true,
        ..stops(2)
    };
    let starts = Share {
        action: PowerAction::Start,
        ..guarded.clone()
    };
    let told = forecast(&question(vec![stops(5), guarded, starts], outlook()));
    let servers: u64 = told.calls.iter().map(|call| call.servers).sum();
    assert_eq!(servers, 7);
    assert_eq!(causes(&told), [("protected", 2, None)]);
}

#[test]
fn what_is_not_due_joins_its_lane_when_it_is() {
    let later = Share {
        standing: Standing::Later(minutes(15)),
        ..stops(4)
    };
    let again = Share {
        standing: Standing::Retry(minutes(2)),
        ..stops(1)
    };
    let told = forecast(&question(vec![later, again], outlook()));
    assert_eq!(calls(&told), [(2, 1), (15, 4)]);
    assert_eq!(
        causes(&told),
        [("not_due", 4, Some(15)), ("retry", 1, Some(2))]
    );
}

#[test]
fn what_waits_for_others_follows_when_these_have_ended() {
    let starts = Share {
        action: PowerAction::Start,
        standing: after_a_stop(None),
        ..stops(30)
    };
    let told = forecast(&question(vec![stops(30), starts.clone()], outlook()));
    assert_eq!(calls(&told), [(0, 30), (1, 30)]);
    // Those that they wait for run already.
    let mut asked = question(vec![starts], outlook());
    asked.running = vec![RunningBatch {
        target: target(),
        action: PowerAction::Stop,
        requests: 30,
        since: NOW.before(Duration::from_secs(30)),
    }];
    assert_eq!(forecast(&asked).calls[0].at, NOW + Duration::from_secs(30));
}

#[test]
fn others_that_leave_release_nobody_who_waits_for_later_ones() {
    let cycle_stops = Share {
        standing: Standing::Later(minutes(60)),
        first_id: 100,
        ..stops(30)
    };
    let cycle_starts = Share {
        action: PowerAction::Start,
        standing: after_a_stop(Some(minutes(60))),
        first_id: 101,
        ..stops(30)
    };
    let reboots = Share {
        action: PowerAction::Reboot,
        ..stops(40)
    };
    let shares = vec![stops(30), reboots, cycle_stops, cycle_starts];
    let told = forecast(&question(shares, outlook()));
    assert_eq!(calls(&told), [(0, 30), (0, 40), (60, 30), (61, 30)]);
}

#[test]
fn others_that_go_first_take_the_way_and_are_not_told_of() {
    let others = Share {
        priority: 50,
        is_asked: false,
        ..stops(600)
    };
    let mut tight = outlook();
    tight.budgets = counted(500, 60);
    let told = forecast(&question(vec![others, stops(100)], tight));
    assert_eq!(calls(&told), [(60, 200)]);
    assert_eq!(told.calls[0].asked, 100);
    assert_eq!(causes(&told), [("budget", 100, Some(60))]);
    assert_eq!(only(&told).requests, 100);
}

#[test]
fn after_trouble_the_first_call_carries_one_server() {
    let mut shaken = outlook();
    shaken.is_probed = true;
    let told = forecast(&question(vec![stops(30)], shaken));
    assert_eq!(calls(&told), [(0, 1), (0, 29)]);
}

/// An order whose requests wait for their waves.
fn order(waves: &str) -> Order {
    Order {
        label: "kernel".to_owned(),
        waves: waves.to_owned(),
        failures_max: "0".to_owned(),
        pause: None,
        state: OrderState::Open,
        wave: 1,
        wave_size: 0,
        wave_taken: 0,
        over_at: None,
        let_go: None,
        servers: 0,
        is_unfinished: true,
        is_on_its_way: false,
        has_due: true,
        has_success: false,
        failed: 0,
        failed_in_wave: 0,
        is_past: false,
    }
}

fn of_order(requests: u64) -> Share {
    Share {
        label: Some("kernel".to_owned()),
        has_turn: false,
        ..stops(requests)
    }
}

#[test]
fn waves_leave_one_after_the_other_and_the_last_size_repeats() {
    let mut asked = question(vec![of_order(500)], outlook());
    asked.orders = vec![order("1, 5%, 40%")];
    let told = forecast(&asked);
    assert_eq!(calls(&told), [(0, 1), (1, 25), (2, 200), (3, 200), (4, 74)]);
    assert_eq!(causes(&told), [("wave", 499, None)]);
    asked.orders[0].pause = Some("10m".to_owned());
    let told = forecast(&asked);
    assert_eq!(calls(&told)[..3], [(0, 1), (11, 25), (22, 200)]);
}

#[test]
fn a_wave_under_way_goes_on_and_a_held_order_waits_for_a_person() {
    let under_way = Order {
        wave: 2,
        wave_size: 25,
        wave_taken: 20,
        servers: 521,
        has_success: true,
        is_on_its_way: true,
        ..order("1, 25")
    };
    let mut asked = question(vec![of_order(60)], outlook());
    asked.orders = vec![under_way.clone()];
    assert_eq!(calls(&forecast(&asked)), [(0, 5), (1, 25), (2, 25), (3, 5)]);
    let held = Order {
        state: OrderState::Held,
        wave_taken: 25,
        ..under_way
    };
    asked.holds = vec![Hold {
        kind: HoldKind::Wave,
        reason: "wave 2 failed".to_owned(),
        ..pause(Some("kernel"), None)
    }];
    asked.orders = vec![held.clone()];
    let told = forecast(&asked);
    assert_eq!((calls(&told), only(&told).stuck), (Vec::new(), 60));
    assert_eq!(told.waiting[0].reason, "wave 2 failed");
    asked.orders = vec![Order {
        let_go: Some(LetGo::Rest),
        is_on_its_way: false,
        ..held
    }];
    assert_eq!(calls(&forecast(&asked)), [(0, 60)]);
}

#[test]
fn a_power_cycle_in_waves_is_never_cut_in_half() {
    let starts = Share {
        action: PowerAction::Start,
        standing: after_a_stop(None),
        first_id: 2,
        ..of_order(10)
    };
    let mut asked = question(vec![of_order(10), starts], outlook());
    asked.orders = vec![order("2, 8")];
    let told = forecast(&asked);
    let actions: Vec<(PowerAction, u64)> = told
        .calls
        .iter()
        .map(|call| (call.action, call.servers))
        .collect();
    let (stop, start) = (PowerAction::Stop, PowerAction::Start);
    assert_eq!(actions, [(stop, 2), (start, 2), (stop, 8), (start, 8)]);
    assert_eq!(calls(&told).last(), Some(&(3, 8)));
}

#[test]
fn an_order_waits_for_its_wave_and_then_for_a_window() {
    let mut closed = outlook();
    closed.windows.spans = BTreeMap::from([(
        PowerAction::Stop,
        vec![Span::parse("12:00-13:00").expect("a span")],
    )]);
    let mut asked = question(vec![of_order(30)], closed);
    asked.orders = vec![order("10")];
    asked.now = "2026-11-26T11:00:00Z".parse().expect("a time");
    let told = forecast(&asked);
    let times: Vec<String> = told.calls.iter().map(|call| call.at.to_string()).collect();
    assert_eq!(
        times,
        [
            "2026-11-26T12:00:00.000Z",
            "2026-11-26T12:01:00.000Z",
            "2026-11-26T12:02:00.000Z"
        ]
    );
}

#[test]
fn a_guard_counts_what_waits_for_its_wave() {
    let mut guarded = outlook();
    guarded.guards = counted(20, 60);
    let mut asked = question(vec![of_order(30)], guarded);
    asked.orders = vec![order("10")];
    assert_eq!(calls(&forecast(&asked)), []);
}

#[test]
fn what_is_due_in_years_does_not_hide_what_is_stuck() {
    let far = Share {
        standing: Standing::Later(NOW + Duration::from_secs(3 * 366 * 86_400)),
        is_asked: false,
        ..stops(1)
    };
    let lost = Share {
        target: TargetName("tpyo".to_owned()),
        ..stops(4)
    };
    let told = forecast(&question(vec![far.clone(), lost], outlook()));
    assert_eq!((only(&told).stuck, told.is_cut), (4, false));
    let asked = Share {
        is_asked: true,
        ..far
    };
    let told = forecast(&question(vec![asked], outlook()));
    assert_eq!((only(&told).stuck, told.is_cut), (0, true));
}

#[test]
fn of_those_behind_the_first_to_arrive_goes_first() {
    let behind = |first_id, action| Share {
        first_id,
        action,
        standing: Standing::Behind,
        ..stops(2)
    };
    let last = behind(9, PowerAction::Start);
    let next = behind(5, PowerAction::Reboot);
    let told = forecast(&question(vec![last, stops(2), next], outlook()));
    let actions: Vec<PowerAction> = told.calls.iter().map(|call| call.action).collect();
    let order = [PowerAction::Stop, PowerAction::Reboot, PowerAction::Start];
    assert_eq!(actions, order);
}

#[test]
fn a_course_that_never_ends_is_cut_and_says_so() {
    let mut narrow = outlook();
    narrow.batch_servers_max = 1;
    narrow.budgets = counted(1, 60);
    let told = forecast(&question(vec![stops(1_000_000)], narrow));
    assert!(told.is_cut);
    assert_eq!(only(&told).stuck, 0);
}

proptest::proptest! {
    /// Whatever waits, the forecast accounts for each request once.
    #[test]
    fn every_request_leaves_expires_is_rejected_or_stuck(
        sizes in proptest::collection::vec((0u64..400, 0usize..4, 0usize..3, proptest::bool::ANY), 1..8),
        (budget, guard) in (0u32..300, 0u32..900),
        (rate, most) in (1u32..60, 1u32..300),
    ) {
        let mut limited = outlook();
        limited.batch_servers_max = most;
        limited.pace = Pace::new(rate, [], NOW);
        if budget > 50 {
            limited.budgets = counted(budget, 30);
        }
        if guard > 100 {
            limited.guards = counted(guard, 30);
        }
        let shares: Vec<Share> = sizes.iter().enumerate().map(|(number, &(requests, standing, label, expires))| Share {
            standing: [Standing::Ready, Standing::Later(minutes(7)), Standing::Behind, Standing::Retry(minutes(1))][standing],
            label: (label == 1).then(|| "kernel".to_owned()),
            has_turn: label != 1,
            first_id: number as i64,
            expires_at: expires.then(|| minutes(45)),
            is_protected: label == 2 && standing == 0,
            ..stops(requests)
        }).collect();
        let all: u64 = shares.iter().map(|share| share.requests).sum();
        let mut asked = question(shares, limited);
        asked.orders = vec![order("3, 10%")];
        let told = forecast(&asked);
        let left: u64 = told.calls.iter().map(|call| call.asked).sum();
        let ends: u64 = told.actions.iter().map(|action| action.protected + action.expiring + action.stuck).sum();
        proptest::prop_assert!(!told.is_cut);
        proptest::prop_assert_eq!(left + ends, all);
        let now: u64 = told.calls_now(NOW).iter().map(|call| call.asked).sum();
        let waiting: u64 = told.waiting.iter().map(|waiting| waiting.requests).sum();
        proptest::prop_assert_eq!(now + waiting, all);
    }
}
