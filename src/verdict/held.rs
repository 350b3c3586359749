//! Batches that may not be asked for at present: their time goes on all the same.

use super::{Case, after_failed_look, after_failed_query};
use crate::lifecycle::{BatchNext, Step};
use crate::model::{BatchState, CallError, Fault, UtcMillis};

/// What follows for a batch that was due while its target's credentials are held `until` some time:
/// it is asked for then, or when its own time is up, whichever comes first. Without this a long
/// hold would keep requests open without a bound.
pub fn while_held(case: Case<'_>, until: UtcMillis) -> Step {
    let Case {
        batch, rules, now, ..
    } = case;
    let ends = match batch.state {
        BatchState::Looking => batch.look_until.unwrap_or(until),
        _ => batch.tracking_ends(rules.job_time_limit),
    };
    if now < ends {
        return Step::look_again(batch, until.min(ends));
    }
    let error = CallError {
        fault: Fault::Credentials,
        status: None,
        code: String::new(),
        message: format!("this target may not be asked before {until}; see its hold"),
        request_id: None,
        retry_after: None,
    };
    match after_failed(case, &error) {
        // Nothing was asked, so nothing is to be asked again at once either.
        Step {
            batch:
                BatchNext::Look {
                    cause,
                    until: look_until,
                    ..
                },
            read_error,
            ..
        } => {
            let next = BatchNext::Look {
                cause,
                until: look_until,
                next_look_at: until.min(look_until),
            };
            Step {
                read_error,
                ..Step::only(next)
            }
        }
        ended => ended,
    }
}

fn after_failed(case: Case<'_>, error: &CallError) -> Step {
    match (case.batch.state, &case.batch.job) {
        (BatchState::Tracking, Some(_)) => {
            after_failed_query(case.batch, error, case.rules, case.now)
        }
        _ => after_failed_look(case, error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::*;
    use super::super::{FIRST_PART, SECOND_PART};
    use super::*;
    use crate::model::{Batch, LookCause, PowerAction, RequestState};
    use crate::verdict::Watch;

    fn held(batch: &Batch, until: UtcMillis, now: UtcMillis) -> Step {
        while_held(
            Case {
                batch,
                watch: &Watch::default(),
                rules: &rules(),
                now,
            },
            until,
        )
    }

    #[test]
    fn a_hold_longer_than_a_jobs_time_leads_to_looking_and_then_to_unknown() {
        let mut batch = batch(PowerAction::Reboot, BatchState::Tracking, 1);
        let (ends, until) = (
            NOW + rules().job_time_limit,
            NOW + Duration::from_secs(100_000),
        );
        let waits = held(&batch, until, NOW);
        assert_eq!(
            waits.batch,
            BatchNext::Again {
                next_look_at: ends,
                doubts: 0
            }
        );
        let BatchNext::Look {
            cause,
            until: look_until,
            next_look_at,
        } = held(&batch, until, ends).batch
        else {
            panic!("its servers are to be looked at");
        };
        assert_eq!((cause, next_look_at), (LookCause::TimeLimit, look_until));
        (batch.state, batch.look_cause, batch.look_until) =
            (BatchState::Looking, Some(cause), Some(look_until));
        let over = held(&batch, until, look_until);
        assert_eq!(ended(&over, 1).state, RequestState::Unknown);
    }

    #[test]
    fn a_refused_batch_does_not_wait_for_the_end_of_a_long_hold() {
        let mut batch = batch(PowerAction::Stop, BatchState::Looking, 2);
        let (ends, until) = (
            NOW + Duration::from_secs(900),
            NOW + Duration::from_secs(100_000),
        );
        (batch.look_cause, batch.look_until) = (Some(LookCause::Refused), Some(ends));
        let waits = held(&batch, until, NOW);
        assert_eq!(
            waits.batch,
            BatchNext::Again {
                next_look_at: ends,
                doubts: 0
            }
        );
        let split = held(&batch, until, ends);
        assert_eq!(
            (returned(&split, 1).group, returned(&split, 2).group),
            (
                Some(batch.group(FIRST_PART)),
                Some(batch.group(SECOND_PART))
            )
        );
        assert_eq!(split.batch, BatchNext::Done);
        // That reboots did not run is not proved by waiting.
        batch.action = PowerAction::Reboot;
        let over = held(&batch, until, ends);
        assert!(
            over.moves.is_empty()
                && matches!(
                    over.batch,
                    BatchNext::Look {
                        cause: LookCause::Lost,
                        ..
                    }
                )
        );
    }

    #[test]
    fn a_short_hold_is_simply_waited_for() {
        let batch = batch(PowerAction::Stop, BatchState::Tracking, 1);
        let until = NOW + Duration::from_secs(360);
        let next = held(&batch, until, NOW).batch;
        assert_eq!(
            next,
            BatchNext::Again {
                next_look_at: until,
                doubts: 0
            }
        );
    }
}
