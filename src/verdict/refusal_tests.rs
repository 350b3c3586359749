//! Which refusals are believed, and what becomes of their servers, tested.

use super::super::testing::*;
use super::*;
use crate::lifecycle::BatchNext;
use crate::model::PowerAction::{self, Reboot, Start, Stop};
use crate::model::{Activity, Baseline, BatchState, JobStatus, Operation, RequestState, Service};

const STARTED: Option<Operation> = Some(Operation {
    action: Start,
    status: JobStatus::Succeeded,
});
const REBOOTED: Option<Operation> = Some(Operation {
    action: Reboot,
    status: JobStatus::Succeeded,
});
const FAILED_REBOOT: Option<Operation> = Some(Operation {
    action: Reboot,
    status: JobStatus::Failed,
});

/// A batch of BMS servers whose call was refused with this code.
fn refused(action: PowerAction, code: &str, servers: u32) -> Batch {
    let mut batch = batch(action, BatchState::Looking, servers);
    batch.look_cause = Some(LookCause::Refused);
    batch.look_until = Some(NOW + rules().look_time_limit);
    batch.complaint = Some(complaint(code, CodeClass::Other));
    batch
}

/// The same of CloudDC servers that showed `operation` before the call.
fn refused_by_clouddc(action: PowerAction, operation: Option<Operation>, servers: u32) -> Batch {
    let mut batch = Batch {
        service: Service::CloudDc,
        ..refused(action, "CloudDC.0007", servers)
    };
    for member in &mut batch.members {
        member.baseline = Baseline::Known(operation);
    }
    batch
}

fn idle(power: Power) -> Sighting {
    doing(power, Activity::Idle)
}

fn doing(power: Power, activity: Activity) -> Sighting {
    Sighting::Present(ServerView::of(power, activity))
}

fn showing(operation: Option<Operation>) -> Sighting {
    Sighting::Present(ServerView {
        operation,
        ..ServerView::of(Power::On, Activity::Idle)
    })
}

fn each(batch: &Batch, sighting: &Sighting) -> HashMap<ServerId, Sighting> {
    batch
        .members
        .iter()
        .map(|member| (member.server.clone(), sighting.clone()))
        .collect()
}

fn server(number: u32) -> ServerId {
    ServerId(format!("server-{number}"))
}

/// Looks every ten seconds from `from` on, until something is moved: after how many seconds, and
/// what follows.
fn look_on(looked: &mut Looked, from: u64, sightings: &HashMap<ServerId, Sighting>) -> (u64, Step) {
    for second in (from..from + 3600).step_by(10) {
        let step = looked.look(second, sightings);
        if !step.moves.is_empty() {
            return (second, step);
        }
    }
    panic!("nothing was ever concluded");
}

fn unproved(step: &Step, request: i64) -> bool {
    let end = ended(step, request);
    (end.state, end.code.as_str()) == (RequestState::Unknown, "poweryard.unproved")
}

#[test]
fn a_refused_stop_is_explained_at_once_and_the_rest_travels_together() {
    let batch = refused(Stop, "BMS.0605", 6);
    let mut sightings = each(&batch, &idle(Power::On));
    sightings.insert(server(1), Sighting::Missing);
    sightings.insert(server(2), idle(Power::Off));
    let locked = ServerView {
        locked: true,
        ..ServerView::of(Power::On, Activity::Idle)
    };
    sightings.insert(server(3), Sighting::Present(locked));
    sightings.insert(server(4), doing(Power::On, Activity::PoweringOn));
    let step = Looked::new(batch).look(1, &sightings);
    assert_eq!(step.batch, BatchNext::Done);
    assert_eq!(ended(&step, 1).code, "poweryard.missing");
    assert_eq!(ended(&step, 2).evidence, Evidence::Already);
    assert_eq!(ended(&step, 3).code, "poweryard.locked");
    assert!(ended(&step, 3).message.contains("text of BMS.0605"));
    assert_eq!(returned(&step, 4).result, AttemptResult::Busy);
    assert_eq!(returned(&step, 5).group, returned(&step, 6).group);
    assert_ne!(returned(&step, 4).group, returned(&step, 5).group);
    assert_eq!(returned(&step, 5).retry_at, None);
}

#[test]
fn an_unexplained_refusal_of_a_stop_is_halved_whatever_its_code() {
    for code in ["BMS.0605", "BMS.0777", ""] {
        let batch = refused(Stop, code, 5);
        let sightings = each(&batch, &idle(Power::On));
        let step = Looked::new(batch).look(1, &sightings);
        let groups: Vec<_> = (1..=5).map(|n| returned(&step, n).group).collect();
        assert!(
            groups[..3].iter().all(|group| *group == groups[0]) && groups[3] == groups[4],
            "{code}"
        );
        assert_ne!(groups[0], groups[3], "{code}");
    }
}

#[test]
fn a_refused_start_or_stop_that_has_begun_with_one_is_lost_for_all() {
    let cases = [
        (Start, Activity::PoweringOn, Power::Off),
        (Stop, Activity::PoweringOff, Power::On),
    ];
    for (action, activity, power) in cases {
        let mut looked = Looked::new(refused(action, "BMS.0605", 3));
        let mut sightings = each(&looked.batch, &idle(power));
        sightings.insert(server(2), doing(power, activity));
        sightings.insert(server(3), Sighting::Missing);
        let step = looked.look(1, &sightings);
        assert!(step.moves.is_empty(), "{action}");
        assert!(
            matches!(
                step.batch,
                BatchNext::Look {
                    cause: LookCause::Lost,
                    ..
                }
            ),
            "{action}"
        );
        // If the cloud says that one was busy, that one is.
        let busy = Looked::new(refused(action, "BMS.0036", 3)).look(1, &sightings);
        assert_eq!(returned(&busy, 2).result, AttemptResult::Busy, "{action}");
    }
}

#[test]
fn refused_reboots_go_again_after_an_unbroken_watch_since_the_call() {
    for (batch, shows) in [
        (refused(Reboot, "BMS.0605", 4), idle(Power::On)),
        (refused(Reboot, "BMS.0777", 4), idle(Power::On)),
        (refused_by_clouddc(Reboot, REBOOTED, 4), showing(REBOOTED)),
        (
            refused_by_clouddc(Reboot, FAILED_REBOOT, 4),
            showing(FAILED_REBOOT),
        ),
        (refused_by_clouddc(Reboot, STARTED, 4), showing(STARTED)),
    ] {
        let sightings = each(&batch, &shows);
        let (after, step) = look_on(&mut Looked::new(batch.clone()), 0, &sightings);
        assert_eq!((after, &step.batch), (60, &BatchNext::Done), "{batch:?}");
        let groups: Vec<_> = (1..=4).map(|n| returned(&step, n).group).collect();
        assert!(
            groups[0] == groups[1] && groups[2] == groups[3] && groups[0] != groups[2],
            "halved: {groups:?}"
        );
        assert!((1..=4).all(|n| returned(&step, n).result == AttemptResult::Refused));
    }
}

#[test]
fn a_watch_with_a_gap_proves_no_refused_reboot_that_leaves_no_mark() {
    for (batch, shows) in [
        (refused(Reboot, "BMS.0605", 2), idle(Power::On)),
        (refused_by_clouddc(Reboot, REBOOTED, 2), showing(REBOOTED)),
        (
            refused_by_clouddc(Reboot, FAILED_REBOOT, 2),
            showing(FAILED_REBOOT),
        ),
        (refused_by_clouddc(Reboot, None, 2), showing(None)),
    ] {
        let sightings = each(&batch, &shows);
        let mut paused = Looked::new(batch.clone());
        paused.look(1, &sightings);
        let mut restarted = Looked::resumed(batch.clone());
        let mut unreadable = Looked::new(batch.clone());
        unreadable.look(1, &HashMap::new());
        for (looked, from) in [(&mut paused, 40), (&mut restarted, 5), (&mut unreadable, 5)] {
            let (_, step) = look_on(looked, from, &sightings);
            assert!(unproved(&step, 1) && unproved(&step, 2), "{step:?}");
        }
    }
}

#[test]
fn a_mark_that_no_reboot_would_leave_is_proof_after_a_restart_too() {
    let batch = refused_by_clouddc(Reboot, STARTED, 2);
    let sightings = each(&batch, &showing(STARTED));
    let mut restarted = Looked::resumed(batch);
    let (after, step) = look_on(&mut restarted, 5, &sightings);
    assert_eq!(after, 65);
    assert!((1..=2).all(|n| returned(&step, n).result == AttemptResult::Refused));
}

#[test]
fn a_reboot_that_may_be_an_earlier_one_leaves_no_proof_that_this_was_refused() {
    let mut batch = refused_by_clouddc(Reboot, STARTED, 1);
    batch.members[0].shadowed = true;
    let sightings = each(&batch, &showing(REBOOTED));
    let mut restarted = Looked::resumed(batch.clone());
    assert!(unproved(&look_on(&mut restarted, 5, &sightings).1, 1));

    let sightings = each(&batch, &showing(STARTED));
    let mut restarted = Looked::resumed(batch);
    let (_, step) = look_on(&mut restarted, 5, &sightings);
    assert_eq!(ended(&step, 1).evidence, Evidence::Refused);
}

#[test]
fn what_never_showed_an_operation_proves_no_refused_reboot() {
    for baseline in [Baseline::Unknown, Baseline::Known(None)] {
        let mut batch = refused_by_clouddc(Reboot, STARTED, 3);
        batch.members[0].baseline = baseline;
        let mut sightings = each(&batch, &showing(STARTED));
        sightings.insert(server(1), showing(None));
        let mut looked = Looked::new(batch);
        let (_, step) = look_on(&mut looked, 0, &sightings);
        assert!(
            stays(&step, 1)
                && matches!(
                    step.batch,
                    BatchNext::Look {
                        cause: LookCause::Lost,
                        ..
                    }
                )
        );
        assert_eq!(returned(&step, 2).group, returned(&step, 3).group);
        assert!(unproved(&look_on(&mut looked, 61, &sightings).1, 1));
    }
}

#[test]
fn a_refused_reboot_that_has_begun_with_one_is_lost_for_all() {
    let bms = refused(Reboot, "BMS.0605", 3);
    let clouddc = refused_by_clouddc(Reboot, STARTED, 3);
    for (batch, idle, begun) in [
        (
            bms.clone(),
            idle(Power::On),
            doing(Power::On, Activity::Rebooting),
        ),
        (
            bms,
            idle(Power::On),
            doing(Power::Unclear, Activity::Rebooting),
        ),
        (clouddc.clone(), showing(STARTED), showing(REBOOTED)),
        (clouddc, showing(STARTED), showing(FAILED_REBOOT)),
    ] {
        for late in [1, 41] {
            let mut looked = Looked::new(batch.clone());
            let mut sightings = each(&batch, &idle);
            for second in (1..late).step_by(10) {
                assert!(looked.look(second, &sightings).moves.is_empty());
            }
            sightings.insert(server(2), begun.clone());
            // A state that would explain the refusal explains nothing then.
            let locked = ServerView {
                locked: true,
                ..ServerView::of(Power::On, Activity::Idle)
            };
            sightings.insert(server(3), Sighting::Present(locked));
            let step = looked.look(late, &sightings);
            assert!(step.moves.is_empty(), "{begun:?}");
            assert!(
                matches!(
                    step.batch,
                    BatchNext::Look {
                        cause: LookCause::Lost,
                        ..
                    }
                ),
                "{begun:?}"
            );
            sightings.insert(server(2), idle.clone());
            for second in (late + 10..late + 300).step_by(10) {
                let step = looked.look(second, &sightings);
                assert!(
                    step.moves
                        .iter()
                        .all(|(_, event)| matches!(event, Event::Ended(_))),
                    "{step:?}"
                );
            }
        }
    }
}

#[test]
fn what_explains_a_refused_reboot_is_settled_at_the_end_of_the_watch() {
    let batch = refused(Reboot, "BMS.0605", 5);
    let mut sightings = each(&batch, &idle(Power::On));
    sightings.insert(server(1), Sighting::Missing);
    sightings.insert(server(2), idle(Power::Off));
    let locked = ServerView {
        locked: true,
        ..ServerView::of(Power::On, Activity::Idle)
    };
    sightings.insert(server(3), Sighting::Present(locked));
    let mut looked = Looked::new(batch);
    let first = looked.look(0, &sightings);
    assert_eq!(ended(&first, 1).code, "poweryard.missing");
    assert_eq!(first.moves.len(), 1);
    let (after, step) = look_on(&mut looked, 10, &sightings);
    assert_eq!((after, &step.batch), (60, &BatchNext::Done));
    assert_eq!(
        (ended(&step, 2).code.as_str(), ended(&step, 2).evidence),
        ("poweryard.stopped", Evidence::Refused)
    );
    assert_eq!(ended(&step, 3).code, "poweryard.locked");
    assert_eq!(returned(&step, 4).group, returned(&step, 5).group);
}

#[test]
fn a_stopped_server_explains_a_refused_reboot_after_a_restart_too() {
    let batch = refused(Reboot, "409", 2);
    let mut sightings = each(&batch, &idle(Power::On));
    sightings.insert(server(1), idle(Power::Off));
    let mut looked = Looked::resumed(batch);
    let (_, step) = look_on(&mut looked, 0, &sightings);
    assert_eq!(ended(&step, 1).code, "poweryard.stopped");
    assert!(ended(&step, 1).message.contains("text of 409"));
    assert!(unproved(&look_on(&mut looked, 61, &sightings).1, 2));
}

#[test]
fn alone_in_a_refused_call_a_server_has_the_clouds_own_code_or_its_state() {
    let alone = |batch: Batch, shows: &Sighting| {
        let sightings = each(&batch, shows);
        let step = look_on(&mut Looked::new(batch), 0, &sightings).1;
        let end = ended(&step, 1);
        (end.state, end.evidence, end.code.clone())
    };
    let refused_with = |code: &str| (RequestState::Failed, Evidence::Refused, code.to_owned());
    for action in [Stop, Reboot] {
        assert_eq!(
            alone(refused(action, "BMS.0777", 1), &idle(Power::On)),
            refused_with("BMS.0777")
        );
        let nameless = alone(refused(action, "", 1), &idle(Power::On));
        assert_eq!(nameless, refused_with("poweryard.refused"));
        let clouddc = refused_by_clouddc(action, STARTED, 1);
        assert_eq!(
            alone(clouddc, &showing(STARTED)),
            refused_with("CloudDC.0007")
        );
    }
    assert_eq!(
        alone(refused(Reboot, "BMS.0605", 1), &idle(Power::On)),
        refused_with("BMS.0605")
    );
    assert_eq!(
        alone(refused(Reboot, "BMS.0777", 1), &idle(Power::Off)),
        refused_with("poweryard.stopped")
    );
    let already = (RequestState::Succeeded, Evidence::Already, String::new());
    assert_eq!(
        alone(refused(Stop, "BMS.0777", 1), &idle(Power::Off)),
        already
    );
    let came_back = Looked::new(refused(Reboot, "BMS.0605", 1));
    let mut looked = came_back;
    looked.look(
        1,
        &each(&looked.batch, &doing(Power::On, Activity::Rebooting)),
    );
    let idle = each(&looked.batch, &idle(Power::On));
    assert_eq!(
        ended(&look_on(&mut looked, 11, &idle).1, 1).state,
        RequestState::Succeeded
    );
}

#[test]
fn a_reboot_refused_as_busy_goes_again_unless_a_reboot_was_seen() {
    let settles = |activity: Option<Activity>| {
        let mut looked = Looked::new(refused(Reboot, "BMS.0037", 1));
        if let Some(activity) = activity {
            looked.look(1, &each(&looked.batch, &doing(Power::On, activity)));
        }
        let idle = each(&looked.batch, &idle(Power::On));
        look_on(&mut looked, 11, &idle).1
    };
    assert_eq!(returned(&settles(None), 1).result, AttemptResult::Busy);
    assert_eq!(
        returned(&settles(Some(Activity::PoweringOff)), 1).result,
        AttemptResult::Busy
    );
    assert!(unproved(&settles(Some(Activity::Rebooting)), 1));
}

#[test]
fn a_rebooting_server_that_explains_a_busy_refusal_frees_the_others() {
    let mut looked = Looked::new(refused(Reboot, "BMS.0037", 3));
    let mut sightings = each(&looked.batch, &idle(Power::On));
    sightings.insert(server(1), doing(Power::On, Activity::Rebooting));
    let (after, step) = look_on(&mut looked, 0, &sightings);
    assert_eq!(after, 60);
    assert!(stays(&step, 1) && matches!(step.batch, BatchNext::Again { .. }));
    assert_eq!(returned(&step, 2).group, returned(&step, 3).group);
    sightings.insert(server(1), idle(Power::On));
    assert!(unproved(&look_on(&mut looked, 70, &sightings).1, 1));
}

/// A reboot whose own task ended with this code, a second after its call began.
fn busy_by_its_job(code: &str) -> Looked {
    let mut batch = batch(Reboot, BatchState::Looking, 1);
    batch.submitted_at = Some(NOW);
    batch.look_cause = Some(LookCause::Busy);
    batch.look_until = Some(NOW + rules().look_time_limit);
    batch.complaint = Some(complaint(code, CodeClass::Other));
    let mut looked = Looked::new(batch);
    looked
        .watch
        .note_busy([(RequestId(1), complaint(code, CodeClass::ServerBusy))].into());
    looked
}

#[test]
fn a_reboot_called_busy_goes_again_only_if_none_can_have_gone_unseen() {
    let at_rest = each(&busy_by_its_job("BMS.0037").batch, &idle(Power::On));
    let (after, step) = look_on(&mut busy_by_its_job("BMS.0037"), 1, &at_rest);
    assert_eq!(
        (after, returned(&step, 1).result),
        (61, AttemptResult::Busy)
    );

    let mut last_try = busy_by_its_job("BMS.0037");
    last_try.batch.members[0].attempts = 3;
    let step = look_on(&mut last_try, 1, &at_rest).1;
    let end = (
        ended(&step, 1).state,
        ended(&step, 1).evidence,
        ended(&step, 1).code.as_str(),
    );
    assert_eq!(end, (RequestState::Failed, Evidence::Job, "BMS.0037"));

    assert!(
        unproved(
            &look_on(&mut busy_by_its_job("BMS.0037"), 120, &at_rest).1,
            1
        ),
        "looked at too late"
    );
    let mut restarted = busy_by_its_job("BMS.0037");
    restarted.watch = super::super::Watch::default();
    assert!(unproved(&look_on(&mut restarted, 1, &at_rest).1, 1));
}

#[test]
fn a_reboot_that_its_job_calls_busy_and_that_was_seen_is_unknown() {
    for known in [true, false] {
        let mut looked = busy_by_its_job("BMS.0037");
        if !known {
            looked.watch = super::super::Watch::default();
        }
        let rebooting = each(&looked.batch, &doing(Power::On, Activity::Rebooting));
        assert!(looked.look(1, &rebooting).moves.is_empty());
        let at_rest = each(&looked.batch, &idle(Power::On));
        assert!(unproved(&look_on(&mut looked, 11, &at_rest).1, 1));
    }
}

#[test]
fn a_reboot_whose_server_was_busy_powering_off_goes_again() {
    let mut looked = busy_by_its_job("BMS.0036");
    let powering_off = each(&looked.batch, &doing(Power::On, Activity::PoweringOff));
    assert!(looked.look(100, &powering_off).moves.is_empty());
    let at_rest = each(&looked.batch, &idle(Power::On));
    let (after, step) = look_on(&mut looked, 110, &at_rest);
    assert_eq!(
        (after, returned(&step, 1).result),
        (170, AttemptResult::Busy)
    );
}

#[test]
fn a_lost_call_that_somebody_rewrites_as_refused_stays_lost() {
    let mut looked = Looked::new(refused(Reboot, "", 2));
    let lost = BatchNext::Look {
        cause: LookCause::Lost,
        until: NOW + rules().look_time_limit,
        next_look_at: NOW,
    };
    looked.watch.note_step(&Step::only(lost));
    let sightings = each(&looked.batch, &idle(Power::On));
    let step = look_on(&mut looked, 1, &sightings).1;
    assert!(unproved(&step, 1) && unproved(&step, 2));
}

#[test]
fn refused_reboots_whose_states_cannot_be_read_are_never_sent_again() {
    let error = CallError {
        fault: Fault::Refused(CodeClass::Other),
        status: Some(400),
        code: "x".into(),
        message: String::new(),
        request_id: None,
        retry_after: None,
    };
    let mut looked = Looked::new(Batch {
        looks: 9,
        ..refused(Reboot, "BMS.0605", 4)
    });
    assert!(looked.fail(1, &error).moves.is_empty());
    assert!(looked.fail(900, &error).moves.is_empty());
    let last = looked.fail(1800, &error);
    assert!((1..=4).all(|n| ended(&last, n).state == RequestState::Unknown));
    // A stop may go out twice.
    let stops = Looked::new(Batch {
        looks: 9,
        ..refused(Stop, "BMS.0605", 4)
    })
    .fail(1, &error);
    assert!((1..=4).all(|n| returned(&stops, n).result == AttemptResult::Refused));
}

fn unreadable() -> CallError {
    CallError {
        fault: Fault::Unavailable,
        status: None,
        code: String::new(),
        message: String::new(),
        request_id: None,
        retry_after: None,
    }
}

#[test]
fn refused_stops_whose_states_cannot_be_read_are_split_at_the_third_look() {
    for (looks, moved) in [(0, 0), (1, 0), (2, 2)] {
        let batch = Batch {
            looks,
            ..refused(Stop, "BMS.0605", 2)
        };
        let step = Looked::new(batch).fail(1, &unreadable());
        assert_eq!(step.moves.len(), moved, "{looks} looks before");
    }
}

#[test]
fn the_clouds_words_are_added_to_ours_where_there_are_any() {
    for (code, message, added) in [
        ("BMS.0605", "no", "; the cloud said: BMS.0605: no"),
        ("", "no", "; the cloud said: no"),
        ("BMS.0605", "", ""),
    ] {
        let mut batch = refused(Stop, code, 1);
        batch.complaint = Some(Complaint {
            message: message.into(),
            ..complaint(code, CodeClass::Other)
        });
        let locked = Sighting::Present(ServerView {
            locked: true,
            ..ServerView::of(Power::On, Activity::Idle)
        });
        let sightings = each(&batch, &locked);
        let step = Looked::new(batch).look(1, &sightings);
        let sentence = format!("the server is locked in the cloud{added}");
        assert_eq!(ended(&step, 1).message, sentence);
    }
}

fn is_lost(step: &Step) -> bool {
    matches!(
        step.batch,
        BatchNext::Look {
            cause: LookCause::Lost,
            ..
        }
    )
}

#[test]
fn refused_reboots_count_as_lost_as_soon_as_no_look_can_disprove_them() {
    let mut looked = Looked::resumed(refused(Reboot, "BMS.0605", 2));
    let sightings = each(&looked.batch, &idle(Power::On));
    for second in [0, 20, 40] {
        assert!(!is_lost(&looked.look(second, &sightings)), "{second} s");
    }
    assert!(is_lost(&looked.look(60, &sightings)));

    let mut seen = Looked::new(refused(Reboot, "BMS.0037", 1));
    let rebooting = each(&seen.batch, &doing(Power::On, Activity::Rebooting));
    assert!(!is_lost(&seen.look(0, &rebooting)));
    assert!(is_lost(&seen.look(10, &sightings)));

    let mut late = Looked::resumed(refused(Reboot, "BMS.0605", 2));
    assert!(is_lost(&late.look(900, &sightings)));
}

#[test]
fn a_reboot_that_was_not_alone_in_its_call_need_not_be_the_reason() {
    let mut one_left = refused(Reboot, "BMS.0605", 1);
    one_left.server_count = 2;
    let sightings = each(&one_left, &idle(Power::On));
    let (_, step) = look_on(&mut Looked::new(one_left), 0, &sightings);
    assert_eq!(returned(&step, 1).result, AttemptResult::Refused);

    let mut two_left = refused(Reboot, "BMS.0605", 2);
    two_left.server_count = 3;
    let sightings = each(&two_left, &idle(Power::On));
    let (_, step) = look_on(&mut Looked::new(two_left), 0, &sightings);
    assert_eq!(returned(&step, 1).group, returned(&step, 2).group);
}
