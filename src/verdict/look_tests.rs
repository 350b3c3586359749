//! What states prove, tested.

use std::time::Duration;

use super::super::testing::*;
use super::*;
use crate::lifecycle::Return;
use crate::model::{Activity, CodeClass, Fault, RequestState};
use proptest::prelude::*;

fn looking(action: PowerAction, cause: LookCause, servers: u32) -> Batch {
    let mut batch = batch(action, BatchState::Looking, servers);
    batch.look_cause = Some(cause);
    batch.look_until = Some(NOW + rules().look_time_limit);
    batch
}

fn view(power: Power, activity: Activity) -> Sighting {
    Sighting::Present(ServerView::of(power, activity))
}

fn all(batch: &Batch, sighting: Sighting) -> HashMap<ServerId, Sighting> {
    batch
        .members
        .iter()
        .map(|member| (member.server.clone(), sighting.clone()))
        .collect()
}

/// Looks every ten seconds at what `shows` tells, as the daemon would, until request 1 is moved.
fn look_on(batch: Batch, shows: impl Fn(u64) -> Sighting) -> (u64, Event) {
    let mut looked = Looked::new(batch);
    for seconds in (0..3600).step_by(10) {
        let sightings = all(&looked.batch, shows(seconds));
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

#[test]
fn a_stop_whose_server_is_seen_stopped_succeeded() {
    let (after, event) = look_on(looking(PowerAction::Stop, LookCause::Lost, 1), |_| {
        view(Power::Off, Activity::Idle)
    });
    let Event::Ended(outcome) = event else {
        panic!("{event:?}")
    };
    assert_eq!(
        (after, outcome.state, outcome.evidence),
        (0, RequestState::Succeeded, Evidence::Observed)
    );
}

#[test]
fn idleness_is_counted_to_the_question_and_not_to_a_late_answer() {
    let batch = looking(PowerAction::Stop, LookCause::Lost, 1);
    let idle = all(&batch, view(Power::On, Activity::Idle));
    for (began, is_proved) in [(59, false), (60, true)] {
        let mut looked = Looked::new(batch.clone());
        for second in [0, 20, 40] {
            assert!(stays(&looked.look(second, &idle), 1));
        }
        assert_eq!(
            stays(&looked.look_between(began, 65, &idle), 1),
            !is_proved,
            "it may have begun since {began} s"
        );
    }
}

#[test]
fn a_row_of_looks_with_a_gap_proves_nothing() {
    let mut looked = Looked::new(looking(PowerAction::Stop, LookCause::Lost, 1));
    let idle = all(&looked.batch, view(Power::On, Activity::Idle));
    for second in [0, 20, 60, 80, 100] {
        assert!(stays(&looked.look(second, &idle), 1), "{second} s");
    }
    assert_eq!(
        returned(&looked.look(120, &idle), 1).result,
        AttemptResult::Lost
    );
}

#[test]
fn while_idleness_is_counted_looks_leave_no_gap_in_their_row() {
    let batch = Batch {
        looks: 40,
        ..looking(PowerAction::Stop, LookCause::Lost, 1)
    };
    let step = one_look(&batch, 10, &all(&batch, view(Power::On, Activity::Idle)));
    let BatchNext::Again { next_look_at, .. } = step.batch else {
        panic!("{step:?}")
    };
    assert!(next_look_at.since(at(10).utc) <= Duration::from_secs(5));
}

#[test]
fn a_stop_is_not_proved_undone_before_the_settling_time() {
    let (after, event) = look_on(looking(PowerAction::Stop, LookCause::Lost, 1), |_| {
        view(Power::On, Activity::Idle)
    });
    assert_eq!(after, 60);
    assert!(matches!(
        event,
        Event::Returned(Return {
            result: AttemptResult::Lost,
            ..
        })
    ));
}

#[test]
fn idleness_is_not_counted_across_a_transition() {
    let flapping = |seconds| match seconds {
        30 => view(Power::On, Activity::PoweringOff),
        _ => view(Power::On, Activity::Idle),
    };
    assert_eq!(
        look_on(looking(PowerAction::Stop, LookCause::Lost, 1), flapping).0,
        100
    );
}

#[test]
fn a_lost_reboot_is_never_sent_again_and_without_a_transition_unknown() {
    let (_, event) = look_on(looking(PowerAction::Reboot, LookCause::Lost, 1), |_| {
        view(Power::On, Activity::Idle)
    });
    let Event::Ended(outcome) = event else {
        panic!("{event:?}")
    };
    assert_eq!(
        (outcome.state, outcome.code.as_str()),
        (RequestState::Unknown, "poweryard.unproved")
    );
}

#[test]
fn a_reboot_seen_in_transition_is_followed_to_its_end() {
    let comes_back = |seconds| match seconds {
        20..200 => view(Power::Unclear, Activity::Rebooting),
        _ => view(Power::On, Activity::Idle),
    };
    let (after, event) = look_on(looking(PowerAction::Reboot, LookCause::Lost, 1), comes_back);
    let Event::Ended(outcome) = event else {
        panic!("{event:?}")
    };
    assert_eq!(
        (after, outcome.state, outcome.evidence),
        (200, RequestState::Succeeded, Evidence::Observed)
    );
}

#[test]
fn a_reboot_seen_proves_nothing_while_an_earlier_one_may_be_running() {
    for (power, afterwards) in [
        (Power::On, "running"),
        (Power::Off, "stopped"),
        (Power::Faulty, "faulty"),
    ] {
        let comes_back = |seconds| match seconds {
            20..200 => view(Power::Unclear, Activity::Rebooting),
            _ => view(power, Activity::Idle),
        };
        let mut batch = looking(PowerAction::Reboot, LookCause::Lost, 1);
        batch.members[0].shadowed = true;
        let (after, event) = look_on(batch, comes_back);
        let Event::Ended(outcome) = event else {
            panic!("{event:?}")
        };
        let end = (outcome.state, outcome.evidence, outcome.code.as_str());
        assert_eq!(
            end,
            (RequestState::Unknown, Evidence::None, "poweryard.unproved"),
            "{afterwards}"
        );
        assert!(
            outcome.message.contains("an earlier one"),
            "{}",
            outcome.message
        );
        assert_eq!(
            after, 260,
            "idle through the settling time, counted from the end of the transition"
        );
    }
}

#[test]
fn a_shadow_hides_neither_a_missing_server_nor_the_end_of_the_time() {
    let mut batch = looking(PowerAction::Reboot, LookCause::Lost, 2);
    batch.members[0].shadowed = true;
    let mut sightings = all(&batch, view(Power::On, Activity::Rebooting));
    assert_eq!(
        ended(&one_look(&batch, 900, &sightings), 1).code,
        "poweryard.time_limit"
    );
    sightings.insert(ServerId("server-1".into()), Sighting::Missing);
    assert_eq!(
        ended(&one_look(&batch, 0, &sightings), 1).code,
        "poweryard.missing"
    );
}

#[test]
fn an_endless_transition_ends_unknown() {
    let (after, event) = look_on(looking(PowerAction::Start, LookCause::Lost, 1), |_| {
        view(Power::Off, Activity::PoweringOn)
    });
    let Event::Ended(outcome) = event else {
        panic!("{event:?}")
    };
    assert_eq!(
        (after, outcome.state, outcome.code.as_str()),
        (900, RequestState::Unknown, "poweryard.time_limit")
    );
}

#[test]
fn unreadable_states_end_unknown_in_time_too() {
    let error = CallError {
        fault: Fault::Unavailable,
        status: None,
        code: String::new(),
        message: String::new(),
        request_id: None,
        retry_after: None,
    };
    let batch = looking(PowerAction::Stop, LookCause::Lost, 1);
    assert!(Looked::new(batch.clone()).fail(0, &error).moves.is_empty());
    let late = Looked::new(batch.clone()).fail(900, &error);
    assert_eq!(ended(&late, 1).state, RequestState::Unknown);
}

#[test]
fn a_look_that_fails_as_the_time_runs_out_is_named_as_the_cause() {
    let error = CallError {
        fault: Fault::Permission,
        status: Some(403),
        code: "APIGW.0302".to_owned(),
        message: "not authorized".to_owned(),
        request_id: None,
        retry_after: None,
    };
    let mut batch = looking(PowerAction::Stop, LookCause::Lost, 1);
    for before in [None, Some("something else".to_owned())] {
        batch.read_error = before;
        let step = Looked::new(batch.clone()).fail(900, &error);
        let message = &ended(&step, 1).message;
        assert!(
            message.contains("APIGW.0302") && !message.contains("something else"),
            "{message}"
        );
    }
    // A look that succeeds has no failure to tell of, whatever the one before it was.
    let step = one_look(
        &batch,
        900,
        &all(&batch, view(Power::Unclear, Activity::Other)),
    );
    let message = &ended(&step, 1).message;
    assert!(!message.contains("failed"), "{message}");
}

#[test]
fn a_stop_that_never_works_fails_after_the_last_attempt() {
    let mut batch = looking(PowerAction::Stop, LookCause::Lost, 1);
    batch.members[0].attempts = 3;
    let (_, event) = look_on(batch, |_| view(Power::On, Activity::Idle));
    let Event::Ended(outcome) = event else {
        panic!("{event:?}")
    };
    assert_eq!(
        (outcome.state, outcome.evidence),
        (RequestState::Failed, Evidence::Observed)
    );
}

fn sightings() -> impl Strategy<Value = Sighting> {
    let powers = prop::sample::select(vec![Power::On, Power::Off, Power::Faulty, Power::Unclear]);
    let activities = prop::sample::select(vec![
        Activity::Idle,
        Activity::PoweringOn,
        Activity::PoweringOff,
        Activity::Rebooting,
        Activity::Other,
    ]);
    let present = (powers, activities, any::<bool>()).prop_map(|(power, activity, locked)| {
        Sighting::Present(ServerView {
            locked,
            ..ServerView::of(power, activity)
        })
    });
    prop_oneof![1 => Just(Sighting::Missing), 9 => present]
}

proptest! {
    #[test]
    fn no_state_whatever_makes_a_lost_reboot_leave_again(shown in prop::collection::vec(sightings(), 1..100)) {
        let batch = looking(PowerAction::Reboot, LookCause::Lost, 1);
        let (_, event) = look_on(batch, |seconds| shown[(seconds / 10) as usize % shown.len()].clone());
        prop_assert!(matches!(event, Event::Ended(_)), "{event:?}");
    }

    #[test]
    fn every_look_ends(action in prop::sample::select(PowerAction::ALL), shown in prop::collection::vec(sightings(), 1..100)) {
        let batch = looking(action, LookCause::Gap, 1);
        let (after, _) = look_on(batch, |seconds| shown[(seconds / 10) as usize % shown.len()].clone());
        prop_assert!(after <= 900);
    }
}

#[test]
fn a_reboot_of_unknown_end_says_why_its_servers_were_asked() {
    let complaint_of = |code: &str, message: &str| {
        Some(Complaint {
            message: message.into(),
            ..complaint(code, CodeClass::Other)
        })
    };
    for (cause, complaint, sentence) in [
        (LookCause::Lost, None, "the answer to the call was lost"),
        (
            LookCause::Lost,
            complaint_of("", ""),
            "the answer to the call was lost",
        ),
        (
            LookCause::Lost,
            complaint_of("", "cut off"),
            "the way the call ended does not tell whether anything was done (cut off)",
        ),
        (
            LookCause::Lost,
            complaint_of("poweryard.interrupted", "the daemon ended"),
            "whether anything was done (the daemon ended)",
        ),
        (
            LookCause::Lost,
            complaint_of("BMS.0006", "text"),
            "the cloud answered with BMS.0006, which does not tell",
        ),
        (LookCause::Vanished, None, "no longer knows the job"),
        (LookCause::TimeLimit, None, "within job_time_limit"),
        (
            LookCause::Busy,
            complaint_of("BMS.0037", "text"),
            "the job ended with BMS.0037, which may be about this reboot",
        ),
        (LookCause::Gap, None, "does not mention this server"),
    ] {
        let mut batch = looking(PowerAction::Reboot, cause, 1);
        batch.complaint = complaint;
        let (_, event) = look_on(batch, |_| view(Power::On, Activity::Idle));
        let Event::Ended(outcome) = event else {
            panic!("{event:?}")
        };
        assert!(outcome.message.contains(sentence), "{}", outcome.message);
    }
}

#[test]
fn what_was_observed_is_said() {
    for (action, power, sentence) in [
        (PowerAction::Start, Power::On, "the server was seen running"),
        (PowerAction::Stop, Power::Off, "the server was seen stopped"),
    ] {
        let batch = looking(action, LookCause::Lost, 1);
        let step = one_look(&batch, 0, &all(&batch, view(power, Activity::Idle)));
        assert_eq!(ended(&step, 1).message, sentence);
    }
}

#[test]
fn a_transition_is_remembered_once() {
    let mut looked = Looked::new(looking(PowerAction::Reboot, LookCause::Lost, 1));
    let rebooting = all(&looked.batch, view(Power::On, Activity::Rebooting));
    assert_eq!(looked.look(1, &rebooting).seen_moving, [RequestId(1)]);
    assert_eq!(looked.look(2, &rebooting).seen_moving, []);
}

#[test]
fn a_request_without_proof_names_the_failed_look_at_its_server() {
    let error = CallError {
        fault: Fault::Unavailable,
        status: Some(503),
        code: String::new(),
        message: "try later".into(),
        request_id: None,
        retry_after: None,
    };
    let batch = looking(PowerAction::Stop, LookCause::Lost, 3);
    let unread = batch.members[..2].iter();
    let failures = unread
        .map(|member| (member.server.clone(), error.clone()))
        .collect();
    let mut sightings = all(&batch, view(Power::Unclear, Activity::Other));
    sightings.insert(ServerId("server-2".into()), Sighting::Missing);
    let step = name_failures(&batch, one_look(&batch, 900, &sightings), &failures);
    assert!(ended(&step, 1).message.contains("try later"));
    assert!(!ended(&step, 2).message.contains("try later"));
    assert!(!ended(&step, 3).message.contains("try later"));
}

#[test]
fn a_busy_server_says_nothing_of_the_others_of_its_job() {
    let mut looked = Looked::new(looking(PowerAction::Reboot, LookCause::Busy, 2));
    let busy = complaint("BMS.0037", CodeClass::ServerBusy);
    looked.batch.complaint = Some(busy.clone());
    looked.watch.note_busy([(RequestId(1), busy)].into());
    let rebooting = all(&looked.batch, view(Power::On, Activity::Rebooting));
    assert!(looked.look(1, &rebooting).moves.is_empty());
    let idle = all(&looked.batch, view(Power::On, Activity::Idle));
    let step = looked.look(11, &idle);
    assert_eq!(ended(&step, 1).code, "poweryard.unproved");
    assert_eq!(ended(&step, 2).state, RequestState::Succeeded);
}
