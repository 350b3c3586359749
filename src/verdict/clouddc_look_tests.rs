//! What states prove where the service has no jobs and remembers a server's last operation, tested.

use std::time::Duration;

use proptest::prelude::*;

use super::super::testing::*;
use super::*;
use crate::lifecycle::Return;
use crate::model::{Activity, Baseline, CodeClass, Fault, Operation, RequestState, Service};
use JobStatus::{Failed, Pending, Succeeded};
use PowerAction::{Reboot, Start, Stop};

const TIME_LIMIT: u64 = 3600;

fn operation(action: PowerAction, status: JobStatus) -> Option<Operation> {
    Some(Operation { action, status })
}

/// A batch that CloudDC took, or that `cause` leads to look at, for servers that were at `baseline`
/// before the call.
fn carried(
    action: PowerAction,
    cause: Option<LookCause>,
    baseline: Baseline,
    servers: u32,
) -> Batch {
    let state = if cause.is_some() {
        BatchState::Looking
    } else {
        BatchState::Tracking
    };
    let mut batch = Batch {
        service: Service::CloudDc,
        job: None,
        ..batch(action, state, servers)
    };
    batch
        .members
        .iter_mut()
        .for_each(|member| member.baseline = baseline);
    batch.look_cause = cause;
    batch.look_until = cause.map(|_| NOW + rules().look_time_limit);
    batch
}

fn accepted(action: PowerAction, baseline: Option<Operation>) -> Batch {
    carried(action, None, Baseline::Known(baseline), 1)
}

fn lost(action: PowerAction, baseline: Option<Operation>) -> Batch {
    carried(action, Some(LookCause::Lost), Baseline::Known(baseline), 1)
}

fn refused(action: PowerAction, baseline: Option<Operation>, servers: u32) -> Batch {
    let mut batch = carried(
        action,
        Some(LookCause::Refused),
        Baseline::Known(baseline),
        servers,
    );
    batch.complaint = Some(complaint("CloudDC.0002", CodeClass::Other));
    batch
}

/// An idle server with this last operation.
fn idle(power: Power, operation: Option<Operation>) -> Sighting {
    Sighting::Present(ServerView {
        operation,
        ..ServerView::of(power, Activity::Idle)
    })
}

/// A server in the middle of `action`, as the newer documents show it.
fn moving(power: Power, action: PowerAction) -> Sighting {
    let activity = match action {
        Start => Activity::PoweringOn,
        Stop => Activity::PoweringOff,
        Reboot => Activity::Rebooting,
    };
    Sighting::Present(ServerView {
        operation: operation(action, Pending),
        ..ServerView::of(power, activity)
    })
}

/// An idle server whose last operation failed with `CloudDC.0006`.
fn failed(power: Power, action: PowerAction) -> Sighting {
    let error = Some(complaint("CloudDC.0006", CodeClass::Other));
    Sighting::Present(ServerView {
        operation: operation(action, Failed),
        error,
        ..ServerView::of(power, Activity::Idle)
    })
}

fn each(batch: &Batch, sighting: &Sighting) -> HashMap<ServerId, Sighting> {
    batch
        .members
        .iter()
        .map(|member| (member.server.clone(), sighting.clone()))
        .collect()
}

/// Looks every ten seconds, as the daemon would, until request 1 is moved: after how many seconds,
/// and how.
fn look_on(batch: Batch, shows: impl Fn(u64) -> Sighting) -> (u64, Event) {
    let mut looked = Looked::new(batch);
    for seconds in (0..2 * TIME_LIMIT).step_by(10) {
        let sightings = each(&looked.batch, &shows(seconds));
        let step = looked.look(seconds, &sightings);
        if let Some((_, event)) = step.moves.into_iter().next() {
            return (seconds, event);
        }
    }
    panic!("looking did not end");
}

/// What follows from a single look at this second.
fn one_look(batch: &Batch, second: u64, sightings: &HashMap<ServerId, Sighting>) -> Step {
    Looked::new(batch.clone()).look(second, sightings)
}

/// After how many seconds, the state, the code.
fn end(batch: Batch, shows: impl Fn(u64) -> Sighting) -> (u64, RequestState, String) {
    match look_on(batch, shows) {
        (after, Event::Ended(outcome)) => (after, outcome.state, outcome.code),
        (after, event) => panic!("after {after} s: {event:?}"),
    }
}

fn succeeds(batch: Batch, shows: impl Fn(u64) -> Sighting) -> u64 {
    let Event::Ended(outcome) = look_on(batch.clone(), &shows).1 else {
        panic!("it goes out again")
    };
    assert_eq!(
        (outcome.state, outcome.evidence),
        (RequestState::Succeeded, Evidence::Observed),
        "{outcome:?}"
    );
    end(batch, shows).0
}

const REBOOTED: fn() -> Option<Operation> = || operation(Reboot, Succeeded);

#[test]
fn an_earlier_reboot_proves_nothing_and_at_the_time_limit_it_is_unknown() {
    let (after, state, code) = end(accepted(Reboot, REBOOTED()), |_| {
        idle(Power::On, REBOOTED())
    });
    assert_eq!(
        (after, state, code.as_str()),
        (TIME_LIMIT, RequestState::Unknown, "poweryard.time_limit")
    );
}

#[test]
fn a_reboot_seen_under_way_counts_although_its_final_state_is_the_same() {
    let shows = |seconds| match seconds {
        20..50 => moving(Power::On, Reboot),
        _ => idle(Power::On, REBOOTED()),
    };
    assert_eq!(succeeds(accepted(Reboot, REBOOTED()), shows), 50);
    assert_eq!(succeeds(lost(Reboot, REBOOTED()), shows), 50);
}

#[test]
fn a_reboot_that_replaces_another_operation_succeeded_even_if_unseen() {
    let befores = [
        None,
        operation(Start, Succeeded),
        operation(Stop, Failed),
        operation(Reboot, Failed),
    ];
    for before in befores {
        let shows = |seconds| idle(Power::On, if seconds < 30 { before } else { REBOOTED() });
        assert_eq!(succeeds(accepted(Reboot, before), shows), 30, "{before:?}");
        assert_eq!(succeeds(lost(Reboot, before), shows), 30, "{before:?}");
    }
}

#[test]
fn a_reboot_that_fails_after_a_successful_one_has_the_servers_own_error() {
    let shows = |seconds| {
        if seconds < 30 {
            idle(Power::On, REBOOTED())
        } else {
            failed(Power::On, Reboot)
        }
    };
    for batch in [accepted(Reboot, REBOOTED()), lost(Reboot, REBOOTED())] {
        let Event::Ended(outcome) = look_on(batch, shows).1 else {
            panic!("it goes out again")
        };
        let told = (
            outcome.state,
            outcome.evidence,
            outcome.code.as_str(),
            outcome.message.as_str(),
        );
        assert_eq!(
            told,
            (
                RequestState::Failed,
                Evidence::Observed,
                "CloudDC.0006",
                "text of CloudDC.0006"
            )
        );
    }
}

#[test]
fn a_failure_without_a_code_has_one_of_ours() {
    let shows = |_| idle(Power::Off, operation(Start, Failed));
    assert_eq!(
        end(accepted(Start, None), shows),
        (0, RequestState::Failed, "poweryard.failed".to_owned())
    );
}

#[test]
fn start_and_stop_are_told_by_the_power() {
    for (action, before, after) in [
        (Start, Power::Off, Power::On),
        (Stop, Power::On, Power::Off),
    ] {
        let bare = |seconds| idle(if seconds < 40 { before } else { after }, None);
        assert_eq!(succeeds(accepted(action, None), bare), 40);
        let whole = |seconds| match seconds {
            0 => idle(before, None),
            10..40 => moving(before, action),
            _ => idle(after, operation(action, Succeeded)),
        };
        assert_eq!(succeeds(accepted(action, None), whole), 40);
        assert_eq!(
            succeeds(accepted(action, operation(action, Succeeded)), whole),
            40
        );
        assert_eq!(succeeds(lost(action, None), whole), 40);
    }
}

#[test]
fn a_start_that_is_newly_seen_failed_failed() {
    let soon = |seconds| {
        if seconds < 20 {
            idle(Power::Off, REBOOTED())
        } else {
            failed(Power::Off, Start)
        }
    };
    assert_eq!(
        end(accepted(Start, REBOOTED()), soon),
        (20, RequestState::Failed, "CloudDC.0006".to_owned())
    );
    let again = |seconds| {
        if seconds < 20 {
            moving(Power::Off, Start)
        } else {
            failed(Power::Off, Start)
        }
    };
    let before = operation(Start, Failed);
    assert_eq!(
        end(accepted(Start, before), again),
        (20, RequestState::Failed, "CloudDC.0006".to_owned())
    );
}

#[test]
fn a_start_that_failed_before_the_call_is_not_taken_for_this_one() {
    let before = operation(Start, Failed);
    let (after, state, code) = end(accepted(Start, before), |_| failed(Power::Off, Start));
    assert_eq!(
        (after, state, code.as_str()),
        (TIME_LIMIT, RequestState::Unknown, "poweryard.time_limit")
    );
    let late = |seconds| {
        if seconds < 1800 {
            failed(Power::Off, Start)
        } else {
            idle(Power::On, operation(Start, Succeeded))
        }
    };
    assert_eq!(succeeds(accepted(Start, before), late), 1800);
    // After a lost answer it may simply be sent again.
    let (after, event) = look_on(lost(Start, before), |_| failed(Power::Off, Start));
    assert!(
        matches!(
            event,
            Event::Returned(Return {
                result: AttemptResult::Lost,
                ..
            })
        ),
        "{event:?}"
    );
    assert_eq!(after, 60);
}

#[test]
fn without_a_baseline_only_a_transition_that_was_seen_counts() {
    let unseen = |_| idle(Power::On, REBOOTED());
    let seen = |seconds| {
        if seconds == 20 {
            moving(Power::On, Reboot)
        } else {
            idle(Power::On, REBOOTED())
        }
    };
    for cause in [None, Some(LookCause::Lost)] {
        let batch = || carried(Reboot, cause, Baseline::Unknown, 1);
        assert_eq!(end(batch(), unseen).1, RequestState::Unknown, "{cause:?}");
        assert_eq!(succeeds(batch(), seen), 30, "{cause:?}");
        let fails = |seconds| {
            if seconds == 20 {
                moving(Power::On, Reboot)
            } else {
                failed(Power::On, Reboot)
            }
        };
        assert_eq!(
            end(batch(), fails),
            (30, RequestState::Failed, "CloudDC.0006".to_owned()),
            "{cause:?}"
        );
    }
    let stopped_once = |_| failed(Power::On, Stop);
    assert_eq!(
        end(carried(Stop, None, Baseline::Unknown, 1), stopped_once).1,
        RequestState::Unknown
    );
}

#[test]
fn an_accepted_call_is_not_called_undone_before_the_time_limit() {
    for (action, power) in [(Start, Power::Off), (Stop, Power::On), (Reboot, Power::On)] {
        let (after, state, _) = end(accepted(action, None), |_| idle(power, None));
        assert_eq!(
            (after, state),
            (TIME_LIMIT, RequestState::Unknown),
            "{action}"
        );
    }
}

#[test]
fn a_stop_that_moved_and_then_stays_idle_and_running_may_be_sent_again() {
    // By the older words alone: no operation tells that it failed.
    let shows = |seconds| match seconds {
        10..40 => Sighting::Present(ServerView::of(Power::Unclear, Activity::PoweringOff)),
        _ => idle(Power::On, None),
    };
    let (after, event) = look_on(accepted(Stop, None), shows);
    assert!(
        matches!(
            event,
            Event::Returned(Return {
                result: AttemptResult::Lost,
                ..
            })
        ),
        "{event:?}"
    );
    assert_eq!(after, 100, "idle since 40 s");
    let mut last = accepted(Stop, None);
    last.members[0].attempts = 3;
    assert_eq!(end(last, shows).2, "poweryard.not_carried_out");
}

#[test]
fn a_lost_reboot_without_a_trace_is_unknown_and_not_sent_again() {
    for before in [
        None,
        REBOOTED(),
        operation(Reboot, Failed),
        operation(Start, Succeeded),
    ] {
        let (after, event) = look_on(lost(Reboot, before), |_| idle(Power::On, before));
        let Event::Ended(outcome) = event else {
            panic!("{event:?}")
        };
        assert_eq!(
            (after, outcome.state, outcome.code.as_str()),
            (60, RequestState::Unknown, "poweryard.unproved")
        );
    }
}

#[test]
fn a_lost_start_or_stop_is_settled_by_the_power_or_sent_again() {
    for (action, before, after) in [
        (Start, Power::Off, Power::On),
        (Stop, Power::On, Power::Off),
    ] {
        assert_eq!(
            succeeds(lost(action, REBOOTED()), |_| idle(
                after,
                operation(action, Succeeded)
            )),
            0
        );
        let (waited, event) = look_on(lost(action, REBOOTED()), |_| idle(before, REBOOTED()));
        assert!(
            matches!(
                event,
                Event::Returned(Return {
                    result: AttemptResult::Lost,
                    ..
                })
            ),
            "{event:?}"
        );
        assert_eq!(waited, 60);
    }
}

/// Of a batch that was open in an older copy of the queue, what the server shows may come from calls
/// that are not in the copy.
#[test]
fn in_a_copy_neither_idleness_nor_an_operation_proves_anything() {
    let copied = |batch: Batch| Batch {
        from_copy: true,
        ..batch
    };
    let stopped = operation(Stop, Succeeded);
    for batch in [lost(Start, stopped), lost(Reboot, stopped)] {
        let (_, event) = look_on(copied(batch), |_| idle(Power::Off, stopped));
        let Event::Ended(outcome) = event else {
            panic!("{event:?}")
        };
        assert_eq!(outcome.state, RequestState::Unknown);
    }
    for batch in [lost(Reboot, stopped), refused(Reboot, stopped, 1)] {
        let (_, event) = look_on(copied(batch), |seconds| match seconds {
            10 => moving(Power::On, Reboot),
            _ => idle(Power::On, REBOOTED()),
        });
        let Event::Ended(outcome) = event else {
            panic!("{event:?}")
        };
        assert_eq!(outcome.state, RequestState::Unknown);
    }
    let refused = copied(refused(Reboot, stopped, 1));
    assert_eq!(
        end(refused, |_| idle(Power::On, stopped)).1,
        RequestState::Unknown
    );
    let (_, event) = look_on(copied(lost(Start, stopped)), |_| failed(Power::Off, Start));
    assert!(matches!(event, Event::Ended(outcome) if outcome.state == RequestState::Unknown));
    // The wished power is what the producer asked for, whoever has brought it about.
    let on = |_| idle(Power::On, operation(Start, Succeeded));
    assert_eq!(succeeds(copied(lost(Start, stopped)), on), 0);
}

#[test]
fn nothing_seen_proves_a_reboot_after_one_whose_end_is_unknown() {
    let shadowed = |mut batch: Batch| {
        batch.members[0].shadowed = true;
        batch
    };
    let seen = |seconds| {
        if seconds == 20 {
            moving(Power::On, Reboot)
        } else {
            idle(Power::On, REBOOTED())
        }
    };
    let fails = |seconds| {
        if seconds == 20 {
            moving(Power::On, Reboot)
        } else {
            failed(Power::On, Reboot)
        }
    };
    for batch in [
        accepted(Reboot, None),
        lost(Reboot, None),
        refused(Reboot, None, 1),
    ] {
        assert_eq!(
            end(shadowed(batch.clone()), seen).1,
            RequestState::Unknown,
            "{batch:?}"
        );
        assert_eq!(
            end(shadowed(batch.clone()), fails).1,
            RequestState::Unknown,
            "{batch:?}"
        );
    }
    // Start and stop have no shadow: the power tells.
    assert_eq!(
        succeeds(shadowed(accepted(Stop, None)), |_| idle(Power::Off, None)),
        0
    );
}

#[test]
fn a_server_that_is_gone_fails() {
    for &action in PowerAction::ALL {
        for batch in [
            accepted(action, REBOOTED()),
            lost(action, None),
            refused(action, None, 1),
        ] {
            assert_eq!(
                end(batch, |_| Sighting::Missing),
                (0, RequestState::Failed, "poweryard.missing".to_owned())
            );
        }
    }
}

#[test]
fn a_reboot_is_not_succeeded_while_its_server_is_off() {
    let shows = |seconds| {
        if seconds < 100 {
            idle(Power::Off, REBOOTED())
        } else {
            idle(Power::On, REBOOTED())
        }
    };
    assert_eq!(succeeds(accepted(Reboot, None), shows), 100);
    assert_eq!(
        end(accepted(Reboot, None), |_| idle(Power::Off, REBOOTED())).1,
        RequestState::Unknown
    );
}

#[test]
fn unreadable_states_at_the_time_limit_lead_to_looking_which_ends_too() {
    let error = CallError {
        fault: Fault::Unavailable,
        status: Some(503),
        code: String::new(),
        message: "the answer is empty".into(),
        request_id: None,
        retry_after: None,
    };
    let batch = carried(Reboot, None, Baseline::Known(None), 2);
    let early = Looked::new(batch.clone()).fail(TIME_LIMIT - 1, &error);
    assert!(
        early.moves.is_empty() && matches!(early.batch, BatchNext::Again { .. }),
        "{early:?}"
    );
    let now = NOW + Duration::from_secs(TIME_LIMIT);
    let step = Looked::new(batch.clone()).fail(TIME_LIMIT, &error);
    let BatchNext::Look { cause, until, .. } = step.batch else {
        panic!("{step:?}")
    };
    assert!(
        step.moves.is_empty()
            && cause == LookCause::TimeLimit
            && until == now + rules().look_time_limit
    );
    let batch = Batch {
        state: BatchState::Looking,
        look_cause: Some(cause),
        look_until: Some(until),
        ..batch
    };
    assert!(
        Looked::new(batch.clone())
            .fail(TIME_LIMIT, &error)
            .moves
            .is_empty()
    );
    let last = Looked::new(batch).fail(TIME_LIMIT + 900, &error);
    assert_eq!(
        (ended(&last, 1).state, ended(&last, 2).state),
        (RequestState::Unknown, RequestState::Unknown)
    );
    assert_eq!(last.batch, BatchNext::Done);
}

#[test]
fn how_long_a_batch_took_is_told_when_its_last_server_is_settled() {
    let batch = carried(Stop, None, Baseline::Known(None), 2);
    let step = one_look(&batch, 42, &each(&batch, &idle(Power::Off, None)));
    assert_eq!((step.job_ms, step.batch), (Some(42_000), BatchNext::Done));
}

#[test]
fn a_server_that_an_answer_leaves_out_is_looked_at_again() {
    let batch = carried(Stop, None, Baseline::Known(None), 2);
    let mut sightings = each(&batch, &idle(Power::Off, None));
    sightings.remove(&batch.members[1].server);
    let step = one_look(&batch, 0, &sightings);
    assert!(stays(&step, 2) && ended(&step, 1).state == RequestState::Succeeded);
    assert!(matches!(step.batch, BatchNext::Again { .. }));
}

#[test]
fn while_a_reboot_could_pass_unseen_its_server_is_looked_at_closely() {
    let wait = |batch: &Batch, second| {
        let step = one_look(batch, second, &each(batch, &idle(Power::On, REBOOTED())));
        let BatchNext::Again { next_look_at, .. } = step.batch else {
            panic!("{step:?}")
        };
        next_look_at.since(at(second).utc)
    };
    let half_a_second = Duration::from_millis(500);
    for batch in [
        accepted(Reboot, REBOOTED()),
        lost(Reboot, REBOOTED()),
        refused(Reboot, REBOOTED(), 1),
    ] {
        let batch = Batch { looks: 20, ..batch };
        assert!(wait(&batch, 30) <= half_a_second, "{batch:?}");
    }
    assert!(
        wait(
            &Batch {
                looks: 20,
                ..accepted(Reboot, REBOOTED())
            },
            90
        ) > half_a_second
    );
    let changed = Batch {
        looks: 20,
        ..accepted(Reboot, operation(Start, Succeeded))
    };
    let step = one_look(
        &changed,
        0,
        &each(&changed, &idle(Power::On, operation(Start, Succeeded))),
    );
    let BatchNext::Again { next_look_at, .. } = step.batch else {
        panic!("{step:?}")
    };
    assert!(
        next_look_at.since(NOW) > half_a_second,
        "its end will be seen whenever somebody looks"
    );
}

fn operations() -> impl Strategy<Value = Option<Operation>> {
    let statuses = prop::sample::select(vec![Succeeded, Failed]);
    let some = (prop::sample::select(PowerAction::ALL), statuses)
        .prop_map(|(action, status)| operation(action, status));
    prop_oneof![1 => Just(None), 4 => some]
}

fn baselines() -> impl Strategy<Value = Baseline> {
    prop_oneof![1 => Just(Baseline::Unknown), 4 => operations().prop_map(Baseline::Known)]
}

/// Anything that the service can show, most of it idle and at one of few operations, so that
/// baselines recur.
fn sightings() -> impl Strategy<Value = Sighting> {
    let powers = || prop::sample::select(vec![Power::On, Power::On, Power::Off, Power::Unclear]);
    let at_rest = (powers(), operations()).prop_map(|(power, operation)| idle(power, operation));
    let under_way = (powers(), prop::sample::select(PowerAction::ALL))
        .prop_map(|(power, action)| moving(power, action));
    let odd = powers().prop_map(|power| Sighting::Present(ServerView::of(power, Activity::Other)));
    prop_oneof![12 => at_rest, 2 => under_way, 1 => odd]
}

fn causes() -> impl Strategy<Value = Option<LookCause>> {
    prop::sample::select(vec![
        None,
        Some(LookCause::Lost),
        Some(LookCause::Refused),
        Some(LookCause::TimeLimit),
    ])
}

/// What is seen in look number `n` of a sequence that stays at its last view.
fn nth(shown: &[Sighting], seconds: u64) -> &Sighting {
    &shown[(seconds as usize / 10).min(shown.len() - 1)]
}

proptest! {
    #[test]
    fn a_reboot_never_succeeds_unless_it_was_seen_or_left_a_mark(
        cause in causes(),
        baseline in baselines(),
        shadowed in any::<bool>(),
        shown in prop::collection::vec(sightings(), 1..40),
    ) {
        let mut batch = carried(Reboot, cause, baseline, 1);
        batch.members[0].shadowed = shadowed;
        let (after, event) = look_on(batch, |seconds| nth(&shown, seconds).clone());
        let views: Vec<&ServerView> = (0..=after).step_by(10).filter_map(|seconds| match nth(&shown, seconds) {
            Sighting::Present(view) => Some(view),
            Sighting::Missing => None,
        }).collect();
        let was_seen = views.iter().any(|view| view.activity == Activity::Rebooting);
        let left_a_mark = views.iter().any(|view| {
            matches!(baseline, Baseline::Known(before) if before != view.operation)
                && view.operation == operation(Reboot, Succeeded)
        });
        if let Event::Ended(Outcome { state: RequestState::Succeeded, .. }) = event {
            prop_assert!(!shadowed && (was_seen || left_a_mark), "{baseline:?} {views:?}");
        }
        if let Event::Returned(_) = event {
            prop_assert!(cause == Some(LookCause::Refused), "only a refused reboot ever goes out again");
            let own = |view: &&&ServerView| view.activity == Activity::Rebooting && !shadowed;
            prop_assert!(views.iter().find(own).is_none(), "{baseline:?} {views:?}");
        }
    }

    #[test]
    fn a_start_or_stop_never_succeeds_unless_its_power_was_seen(
        action in prop::sample::select(vec![Start, Stop]),
        cause in causes(),
        baseline in baselines(),
        shown in prop::collection::vec(sightings(), 1..40),
    ) {
        let (after, event) = look_on(carried(action, cause, baseline, 1), |seconds| nth(&shown, seconds).clone());
        if let Event::Ended(Outcome { state: RequestState::Succeeded, .. }) = event {
            let Sighting::Present(view) = nth(&shown, after) else { panic!("it is gone") };
            prop_assert_eq!((view.activity, view.power), (Activity::Idle, action.wished_power()));
        }
    }

    #[test]
    fn whatever_is_shown_it_ends_in_time(
        action in prop::sample::select(PowerAction::ALL),
        cause in causes(),
        baseline in baselines(),
        shown in prop::collection::vec(sightings(), 1..40),
    ) {
        let (after, _) = look_on(carried(action, cause, baseline, 1), |seconds| shown[(seconds as usize / 10) % shown.len()].clone());
        let longest = if cause.is_none() { TIME_LIMIT } else { 2 * 900 + 20 };
        prop_assert!(after <= longest, "{after} s");
    }
}

#[test]
fn a_failure_keeps_the_servers_own_words_without_a_code_too() {
    let sighting = Sighting::Present(ServerView {
        operation: operation(Start, Failed),
        error: Some(complaint("", CodeClass::Other)),
        ..ServerView::of(Power::Off, Activity::Idle)
    });
    let batch = accepted(Start, None);
    let step = one_look(&batch, 0, &each(&batch, &sighting));
    let end = ended(&step, 1);
    assert_eq!(
        (end.code.as_str(), end.message.as_str()),
        ("poweryard.failed", "text of ")
    );
}

#[test]
fn a_reboot_seen_has_not_succeeded_while_another_operation_is_shown() {
    let after = succeeds(lost(Reboot, None), |seconds| match seconds {
        0 => moving(Power::On, Reboot),
        10..50 => idle(Power::On, operation(Start, Succeeded)),
        _ => idle(Power::On, REBOOTED()),
    });
    assert_eq!(after, 50);
}
