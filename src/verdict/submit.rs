//! The answer to a submit call, or its absence.

use std::time::Duration;

use super::case::Case;
use crate::lifecycle::{BatchNext, Event, Outcome, Step};
use crate::model::cloud_codes::{self, CodeOrigin};
use crate::model::{
    Batch, CallError, CodeClass, Complaint, Fault, LookCause, OwnCode, Tracking, UtcMillis,
};

/// "The server does not exist": then nothing can have been done with it.
const NO_SUCH_SERVER: &str = "BMS.0040";
/// As long as a job may take by default.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(3600);

/// What follows from the answer to a submit call.
///
/// Accepted: track. Certainly not carried out: every request back to the queue, in its place. Lost,
/// or a refusal that does not say that nothing was done: look. Refused: look at the servers'
/// states, for which of them is the reason and whether it is true; a start or stop that was alone
/// in its call has its outcome at once.
pub fn after_submit(case: Case<'_>, answer: Result<Tracking, CallError>) -> Step {
    match answer {
        Ok(tracking) => accepted(case, tracking),
        Err(error) => not_accepted(case, error),
    }
}

/// A batch whose intent is stored and whose call nobody is making: the daemon ended in between.
/// Whether the call left is not known, so this is a lost answer.
pub fn orphaned_intent(case: Case<'_>) -> Step {
    let why = Complaint::our_own(
        OwnCode::Interrupted,
        "the daemon ended while the call was being made",
    );
    lost(case, why)
}

/// A batch whose target the config no longer has, or has with another service, endpoint or project:
/// it cannot be asked for. Its requests end `unknown` an hour after the call, which leaves time to
/// fix the config.
pub fn orphaned_target(batch: &Batch, now: UtcMillis) -> Step {
    let ends = batch.intent_at + ORPHAN_PATIENCE;
    if now < ends {
        return Step::only(BatchNext::Again {
            next_look_at: ends,
            doubts: batch.doubts,
        });
    }
    let why = "the target was removed from the config or changed after the request was sent, so the daemon cannot ask what happened to it";
    let end = Event::Ended(Outcome::unknown(OwnCode::Orphaned, why));
    let moves = batch
        .members
        .iter()
        .map(|member| (member.request, end.clone()))
        .collect();
    Step::done(moves)
}

fn accepted(case: Case<'_>, tracking: Tracking) -> Step {
    let job = match tracking {
        Tracking::Job(job) => Some(job),
        Tracking::ServerState => None,
    };
    Step::only(BatchNext::Track {
        job,
        next_look_at: case.first_look_at(),
    })
}

fn not_accepted(case: Case<'_>, error: CallError) -> Step {
    match error.fault {
        Fault::Refused(class) => refused(case, complaint(error, class)),
        Fault::Lost if one_server_may_be_the_reason(case.batch, &error) => {
            refused(case, complaint(error, CodeClass::Other))
        }
        Fault::Lost => lost(case, complaint(error, CodeClass::Ambiguous)),
        Fault::Unreachable
        | Fault::Throttled { .. }
        | Fault::Unavailable
        | Fault::Credentials
        | Fault::Permission
        | Fault::Configuration => {
            Step::not_sent(case.batch, complaint(error, CodeClass::Retryable))
        }
    }
}

/// True for starts and stops that failed with a code of the service which no document explains,
/// under a status that tells no more. One of the servers may be the reason, and each call would
/// fail with it: so they are split as refused ones are, since they may be sent twice.
fn one_server_may_be_the_reason(batch: &Batch, error: &CallError) -> bool {
    batch.service.documents_its_refusals()
        && batch.members.len() > 1
        && !batch.action.leaves_no_mark()
        && is_unexplained(&error.code)
}

/// True for a code of the service itself that no document lists.
fn is_unexplained(code: &str) -> bool {
    cloud_codes::origin(code) == CodeOrigin::Bms && cloud_codes::class(code) == CodeClass::Other
}

fn complaint(error: CallError, class: CodeClass) -> Complaint {
    let message = match (error.status, error.request_id) {
        (Some(status), Some(id)) => format!("{} (HTTP {status}, request id {id})", error.message),
        (Some(status), None) => format!("{} (HTTP {status})", error.message),
        (None, _) => error.message,
    };
    Complaint {
        code: error.code,
        message,
        class,
    }
}

fn lost(case: Case<'_>, why: Complaint) -> Step {
    Step::only(case.look_at_servers(LookCause::Lost)).complaining(why)
}

/// The service says that it did nothing. No document says whether a batch is refused as a whole, or
/// what a code that is in no table means. So the servers are looked at, unless there was only one
/// and the code tells.
fn refused(case: Case<'_>, why: Complaint) -> Step {
    let step = settled_at_once(case, &why)
        .unwrap_or_else(|| Step::only(case.look_at_servers(look_cause(why.class))));
    step.complaining(why)
}

/// The outcome of a refused call that carried one server, where its code tells what that one did.
/// Start and stop may be sent twice, so that their refusal is believed. That of a reboot is looked
/// into until it is proved or disproved, unless there is no such server.
fn settled_at_once(case: Case<'_>, why: &Complaint) -> Option<Step> {
    let [member] = case.batch.members.as_slice() else {
        return None;
    };
    if case.batch.action.leaves_no_mark() && why.code != NO_SUCH_SERVER {
        return None;
    }
    let event = case.refused_alone(member, why.class, why)?;
    Some(Step::done(vec![(member.request, event)]))
}

/// Two classes of refusals do not even say that nothing was done.
fn look_cause(class: CodeClass) -> LookCause {
    match class {
        CodeClass::RetryableUncertain | CodeClass::Ambiguous => LookCause::Lost,
        CodeClass::ServerBusy
        | CodeClass::AlreadyInTargetState
        | CodeClass::ServerPermanent
        | CodeClass::ServerFailed
        | CodeClass::BatchInvalid
        | CodeClass::Retryable
        | CodeClass::AuthToken
        | CodeClass::AuthPermission
        | CodeClass::ConfigPermanent
        | CodeClass::JobUnknown
        | CodeClass::SubJobFailed
        | CodeClass::Other => LookCause::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::model::{AttemptResult, BatchState, Evidence, JobId, PowerAction, RequestState};

    fn error(fault: Fault, code: &str) -> CallError {
        CallError {
            fault,
            status: Some(400),
            code: code.into(),
            message: "text".into(),
            request_id: None,
            retry_after: None,
        }
    }

    fn submitted(batch: &Batch, answer: Result<Tracking, CallError>) -> Step {
        verdict_at(NOW, batch, |case| after_submit(case, answer))
    }

    fn refused_with(code: &str, class: CodeClass, action: PowerAction, servers: u32) -> Step {
        let batch = batch(action, BatchState::Submitting, servers);
        submitted(&batch, Err(error(Fault::Refused(class), code)))
    }

    #[test]
    fn an_accepted_batch_runs_and_is_looked_at_soon() {
        let batch = batch(PowerAction::Stop, BatchState::Submitting, 2);
        let step = submitted(&batch, Ok(Tracking::Job(JobId("j".into()))));
        assert!(step.moves.is_empty());
        let BatchNext::Track { job, next_look_at } = step.batch else {
            panic!("{step:?}")
        };
        assert_eq!(job, Some(JobId("j".into())));
        assert!(next_look_at.since(NOW).as_millis() >= 2000);
    }

    #[test]
    fn what_was_not_sent_goes_back_without_delay_or_blame() {
        for fault in [
            Fault::Unreachable,
            Fault::Unavailable,
            Fault::Credentials,
            Fault::Throttled {
                retry_after: None,
                limit: None,
            },
        ] {
            let batch = batch(PowerAction::Reboot, BatchState::Submitting, 2);
            let step = submitted(&batch, Err(error(fault, "")));
            assert_eq!(step.batch, BatchNext::Done);
            let back = returned(&step, 1);
            assert_eq!(
                (back.retry_at, back.group, back.result),
                (None, None, AttemptResult::NotSent)
            );
        }
    }

    #[test]
    fn a_lost_answer_is_looked_into_and_nothing_is_returned() {
        let batch = batch(PowerAction::Reboot, BatchState::Submitting, 2);
        let step = submitted(&batch, Err(error(Fault::Lost, "")));
        assert!(step.moves.is_empty());
        assert!(matches!(
            step.batch,
            BatchNext::Look {
                cause: LookCause::Lost,
                ..
            }
        ));
    }

    #[test]
    fn an_unexplained_failure_is_split_and_of_one_or_of_reboots_it_is_lost() {
        let cause = |action, servers, code| {
            let batch = batch(action, BatchState::Submitting, servers);
            let step = submitted(&batch, Err(error(Fault::Lost, code)));
            let BatchNext::Look { cause, .. } = step.batch else {
                panic!("{step:?}")
            };
            cause
        };
        assert_eq!(cause(PowerAction::Stop, 20, "BMS.0777"), LookCause::Refused);
        assert_eq!(cause(PowerAction::Stop, 1, "BMS.0777"), LookCause::Lost);
        assert_eq!(cause(PowerAction::Reboot, 20, "BMS.0777"), LookCause::Lost);
        for other in ["", "500", "BMS.0006", "APIGW.0601", "Common.0012"] {
            assert_eq!(
                cause(PowerAction::Stop, 20, other),
                LookCause::Lost,
                "{other}"
            );
        }
    }

    #[test]
    fn a_refusal_among_others_is_explained_and_alone_it_settles() {
        let step = refused_with(
            "BMS.0039",
            CodeClass::AlreadyInTargetState,
            PowerAction::Stop,
            3,
        );
        assert!(
            step.moves.is_empty()
                && matches!(
                    step.batch,
                    BatchNext::Look {
                        cause: LookCause::Refused,
                        ..
                    }
                )
        );
        let alone = refused_with(
            "BMS.0039",
            CodeClass::AlreadyInTargetState,
            PowerAction::Stop,
            1,
        );
        assert_eq!(
            (ended(&alone, 1).state, ended(&alone, 1).evidence),
            (RequestState::Succeeded, Evidence::Already)
        );
        let missing = refused_with("BMS.0040", CodeClass::ServerPermanent, PowerAction::Stop, 1);
        assert_eq!(
            (ended(&missing, 1).state, ended(&missing, 1).code.as_str()),
            (RequestState::Failed, "BMS.0040")
        );
    }

    #[test]
    fn a_refused_reboot_is_looked_at_before_it_is_believed() {
        let refusals = [
            ("BMS.0039", CodeClass::AlreadyInTargetState),
            ("BMS.0605", CodeClass::ServerPermanent),
            ("BMS.0037", CodeClass::ServerBusy),
            ("BMS.9999", CodeClass::Other),
        ];
        for (code, class) in refusals {
            for servers in [1, 3] {
                let step = refused_with(code, class, PowerAction::Reboot, servers);
                assert!(step.moves.is_empty(), "{code}");
                assert!(
                    matches!(
                        step.batch,
                        BatchNext::Look {
                            cause: LookCause::Refused,
                            ..
                        }
                    ),
                    "{code}"
                );
            }
        }
        let gone = refused_with(
            "BMS.0040",
            CodeClass::ServerPermanent,
            PowerAction::Reboot,
            1,
        );
        assert_eq!(
            (ended(&gone, 1).state, ended(&gone, 1).code.as_str()),
            (RequestState::Failed, "BMS.0040")
        );
    }

    #[test]
    fn a_busy_server_waits_apart() {
        let step = refused_with("BMS.0037", CodeClass::ServerBusy, PowerAction::Stop, 1);
        let back = returned(&step, 1);
        assert_eq!(back.result, AttemptResult::Busy);
        assert!(back.retry_at > Some(NOW) && back.group.is_some_and(|group| group != 0));
    }

    #[test]
    fn ambiguous_codes_count_as_lost_and_unlisted_ones_as_refused() {
        for action in [PowerAction::Stop, PowerAction::Reboot] {
            let uncertain = refused_with("BMS.0006", CodeClass::RetryableUncertain, action, 1);
            assert!(uncertain.moves.is_empty());
            assert!(matches!(
                uncertain.batch,
                BatchNext::Look {
                    cause: LookCause::Lost,
                    ..
                }
            ));
            for class in [
                CodeClass::Other,
                CodeClass::AuthPermission,
                CodeClass::JobUnknown,
            ] {
                let unlisted = refused_with("BMS.9999", class, action, 1);
                assert!(
                    matches!(
                        unlisted.batch,
                        BatchNext::Look {
                            cause: LookCause::Refused,
                            ..
                        }
                    ),
                    "{class:?}"
                );
            }
        }
    }

    #[test]
    fn an_orphan_of_the_config_ends_unknown_in_time() {
        let mut batch = batch(PowerAction::Stop, BatchState::Tracking, 2);
        assert!(orphaned_target(&batch, NOW).moves.is_empty());
        batch.intent_at = NOW.before(ORPHAN_PATIENCE);
        assert_eq!(
            ended(&orphaned_target(&batch, NOW), 2).code,
            "poweryard.orphaned"
        );
    }

    #[test]
    fn already_is_a_success_only_in_the_state_that_was_asked_for() {
        use PowerAction::{Start, Stop};
        for (action, code, state) in [
            (Start, "BMS.0038", RequestState::Succeeded),
            (Start, "BMS.0039", RequestState::Failed),
            (Stop, "BMS.0038", RequestState::Failed),
            (Stop, "BMS.0039", RequestState::Succeeded),
        ] {
            let step = refused_with(code, CodeClass::AlreadyInTargetState, action, 1);
            assert_eq!(ended(&step, 1).state, state, "{action} {code}");
        }
    }
}
