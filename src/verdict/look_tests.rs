//! What states prove, tested.

use std::time::Duration;

use super::super::testing::*;
use super::*;
use crate::cloud::Fault;
use crate::model::{CodeClass, RequestState};
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
    batch.members.iter().map(|member| (member.server.clone(), sighting.clone())).collect()
}

/// Looks every ten seconds at what `shows` tells, as the daemon would, until request 1 is moved.
fn look_on(mut batch: Batch, shows: impl Fn(u64) -> Sighting) -> (u64, Event) {
    for seconds in (0..3600).step_by(10) {
        let now = NOW + Duration::from_secs(seconds);
        let step = after_look(&batch, &all(&batch, shows(seconds)), &rules(), now, now);
        if let Some((_, event)) = step.moves.into_iter().next() {
            return (seconds, event);
        }
        for (request, seen) in step.seen {
            batch.members[request.0 as usize - 1].seen = Some(seen);
        }
        batch.looks += 1;
    }
    panic!("looking did not end");
}

#[test]
fn a_stop_whose_server_is_seen_stopped_succeeded() {
    let (after, event) = look_on(looking(PowerAction::Stop, LookCause::Lost, 1), |_| view(Power::Off, Activity::Idle));
    let Event::Ended(outcome) = event else { panic!("{event:?}") };
    assert_eq!((after, outcome.state, outcome.evidence), (0, RequestState::Succeeded, Evidence::Observed));
}

#[test]
fn idleness_is_counted_to_the_question_and_not_to_a_late_answer() {
    let mut batch = looking(PowerAction::Stop, LookCause::Lost, 1);
    batch.members[0].seen = Some(Seen { what: SeenState::Idle, since: NOW });
    let idle = all(&batch, view(Power::On, Activity::Idle));
    let at = |seconds| NOW + Duration::from_secs(seconds);
    assert!(stays(&after_look(&batch, &idle, &rules(), at(5), at(65)), 1), "it may have begun in the minute between");
    assert!(!stays(&after_look(&batch, &idle, &rules(), at(60), at(65)), 1));
}

#[test]
fn a_stop_is_not_proved_undone_before_the_settling_time() {
    let (after, event) = look_on(looking(PowerAction::Stop, LookCause::Lost, 1), |_| view(Power::On, Activity::Idle));
    assert_eq!(after, 60);
    assert!(matches!(event, Event::Returned(Return { result: AttemptResult::Lost, .. })));
}

#[test]
fn idleness_is_not_counted_across_a_transition() {
    let flapping = |seconds| match seconds {
        30 => view(Power::On, Activity::PoweringOff),
        _ => view(Power::On, Activity::Idle),
    };
    assert_eq!(look_on(looking(PowerAction::Stop, LookCause::Lost, 1), flapping).0, 100);
}

#[test]
fn a_lost_reboot_is_never_sent_again_and_without_a_transition_unknown() {
    let (_, event) = look_on(looking(PowerAction::Reboot, LookCause::Lost, 1), |_| view(Power::On, Activity::Idle));
    let Event::Ended(outcome) = event else { panic!("{event:?}") };
    assert_eq!((outcome.state, outcome.code.as_str()), (RequestState::Unknown, "poweryard.unproved"));
}

#[test]
fn a_reboot_seen_in_transition_is_followed_to_its_end() {
    let comes_back = |seconds| match seconds {
        20..200 => view(Power::Unclear, Activity::Rebooting),
        _ => view(Power::On, Activity::Idle),
    };
    let (after, event) = look_on(looking(PowerAction::Reboot, LookCause::Lost, 1), comes_back);
    let Event::Ended(outcome) = event else { panic!("{event:?}") };
    assert_eq!((after, outcome.state, outcome.evidence), (200, RequestState::Succeeded, Evidence::Observed));
}

#[test]
fn a_reboot_that_is_seen_proves_nothing_while_an_earlier_one_may_be_under_way() {
    for (power, afterwards) in [(Power::On, "running"), (Power::Off, "stopped"), (Power::Faulty, "faulty")] {
        let comes_back = |seconds| match seconds {
            20..200 => view(Power::Unclear, Activity::Rebooting),
            _ => view(power, Activity::Idle),
        };
        let mut batch = looking(PowerAction::Reboot, LookCause::Lost, 1);
        batch.members[0].shadowed = true;
        let (after, event) = look_on(batch, comes_back);
        let Event::Ended(outcome) = event else { panic!("{event:?}") };
        let end = (outcome.state, outcome.evidence, outcome.code.as_str());
        assert_eq!(end, (RequestState::Unknown, Evidence::None, "poweryard.unproved"), "{afterwards}");
        assert!(outcome.message.contains("an earlier one"), "{}", outcome.message);
        assert_eq!(after, 260, "idle through the settling time, counted from the end of the transition");
    }
}

#[test]
fn a_shadow_hides_neither_a_missing_server_nor_the_end_of_the_time() {
    let mut batch = looking(PowerAction::Reboot, LookCause::Lost, 2);
    batch.members[0].shadowed = true;
    let mut sightings = all(&batch, view(Power::On, Activity::Rebooting));
    let late = NOW + rules().look_time_limit;
    assert_eq!(ended(&after_look(&batch, &sightings, &rules(), late, late), 1).code, "poweryard.time_limit");
    sightings.insert(ServerId("server-1".into()), Sighting::Missing);
    assert_eq!(ended(&after_look(&batch, &sightings, &rules(), NOW, NOW), 1).code, "poweryard.missing");
}

#[test]
fn an_endless_transition_ends_unknown() {
    let (after, event) =
        look_on(looking(PowerAction::Start, LookCause::Lost, 1), |_| view(Power::Off, Activity::PoweringOn));
    let Event::Ended(outcome) = event else { panic!("{event:?}") };
    assert_eq!((after, outcome.state, outcome.code.as_str()), (900, RequestState::Unknown, "poweryard.time_limit"));
}

#[test]
fn unreadable_states_end_unknown_in_time_too() {
    let error = CallError {
        fault: Fault::Unavailable,
        status: None,
        code: String::new(),
        message: String::new(),
        request_id: None,
    };
    let batch = looking(PowerAction::Stop, LookCause::Lost, 1);
    assert!(after_failed_look(&batch, &error, &rules(), NOW).moves.is_empty());
    let late = after_failed_look(&batch, &error, &rules(), NOW + rules().look_time_limit);
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
    };
    let late = NOW + rules().look_time_limit;
    let mut batch = looking(PowerAction::Stop, LookCause::Lost, 1);
    for before in [None, Some("something else".to_owned())] {
        batch.read_error = before;
        let step = after_failed_look(&batch, &error, &rules(), late);
        let message = &ended(&step, 1).message;
        assert!(message.contains("APIGW.0302") && !message.contains("something else"), "{message}");
    }
    // A look that succeeds has no failure to tell of, whatever the one before it was.
    let step = after_look(&batch, &all(&batch, view(Power::Unclear, Activity::Other)), &rules(), late, late);
    let message = &ended(&step, 1).message;
    assert!(!message.contains("failed"), "{message}");
}

#[test]
fn a_stop_that_never_works_fails_after_the_last_attempt() {
    let mut batch = looking(PowerAction::Stop, LookCause::Lost, 1);
    batch.members[0].attempts = 3;
    let (_, event) = look_on(batch, |_| view(Power::On, Activity::Idle));
    let Event::Ended(outcome) = event else { panic!("{event:?}") };
    assert_eq!((outcome.state, outcome.evidence), (RequestState::Failed, Evidence::Observed));
}

#[test]
fn a_reboot_that_made_the_cloud_refuse_another_is_not_taken_for_it() {
    let mut batch = looking(PowerAction::Reboot, LookCause::Refused, 2);
    let sightings = all(&batch, view(Power::On, Activity::Rebooting));
    assert_eq!(
        after_look(&batch, &sightings, &rules(), NOW, NOW).seen.len(),
        2,
        "nothing else explains the transition"
    );
    batch.complaint = Some(complaint("BMS.0037", CodeClass::Other));
    let step = after_look(&batch, &sightings, &rules(), NOW, NOW);
    assert_eq!(returned(&step, 1).result, AttemptResult::Busy);
}

#[test]
fn a_refused_batch_is_explained_and_the_rest_travels_together() {
    let batch = looking(PowerAction::Stop, LookCause::Refused, 6);
    let mut sightings = all(&batch, view(Power::On, Activity::Idle));
    let server = |n: u32| ServerId(format!("server-{n}"));
    sightings.insert(server(1), Sighting::Missing);
    sightings.insert(server(2), view(Power::Off, Activity::Idle));
    sightings
        .insert(server(3), Sighting::Present(ServerView { locked: true, ..ServerView::of(Power::On, Activity::Idle) }));
    sightings.insert(server(4), view(Power::On, Activity::PoweringOff));
    let step = after_look(&batch, &sightings, &rules(), NOW, NOW);
    assert_eq!(step.batch, BatchNext::Done);
    assert_eq!(ended(&step, 1).code, "poweryard.missing");
    assert_eq!(ended(&step, 2).evidence, Evidence::Already);
    assert_eq!(ended(&step, 3).code, "poweryard.locked");
    assert_eq!(returned(&step, 4).result, AttemptResult::Busy);
    assert_eq!(returned(&step, 5).group, returned(&step, 6).group);
    assert_ne!(returned(&step, 4).group, returned(&step, 5).group);
    assert_eq!(returned(&step, 5).retry_at, None);
}

#[test]
fn an_unexplained_refusal_is_halved() {
    let batch = looking(PowerAction::Stop, LookCause::Refused, 5);
    let step = after_look(&batch, &all(&batch, view(Power::On, Activity::Idle)), &rules(), NOW, NOW);
    let groups: Vec<_> = (1..=5).map(|n| returned(&step, n).group).collect();
    assert!(groups[..3].iter().all(|group| *group == groups[0]) && groups[3..].iter().all(|group| *group == groups[3]));
    assert_ne!(groups[0], groups[3]);
}

#[test]
fn a_reboot_seen_under_way_after_a_refusal_counts_as_carried_out() {
    let batch = looking(PowerAction::Reboot, LookCause::Refused, 2);
    let mut sightings = all(&batch, view(Power::On, Activity::Idle));
    sightings.insert(ServerId("server-1".into()), view(Power::Unclear, Activity::Rebooting));
    let step = after_look(&batch, &sightings, &rules(), NOW, NOW);
    assert!(stays(&step, 1));
    assert!(matches!(step.batch, BatchNext::Look { cause: LookCause::Lost, .. }));
    assert_eq!(returned(&step, 2).result, AttemptResult::Refused);
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
        Sighting::Present(ServerView { locked, ..ServerView::of(power, activity) })
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
