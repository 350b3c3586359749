//! Batches that may not be asked for at present: their time runs on.

use super::case::Case;
use super::{after_failed_look, after_failed_query};
use crate::lifecycle::{BatchNext, Step};
use crate::model::{BatchState, CallError, Fault, UtcMillis};

/// What follows for a batch that was due while its target's credentials are held `until` some time:
/// it is asked for then, or when its own time is up, whichever comes first. Without this a long
/// hold would keep requests open without a bound.
pub fn while_held(case: Case<'_>, until: UtcMillis) -> Step {
    let ends = match case.batch.state {
        BatchState::Looking => case.batch.look_until.unwrap_or(until),
        BatchState::Tracking | BatchState::Submitting | BatchState::Done => case.tracking_ends(),
    };
    if case.now < ends {
        return Step::look_again(case.batch, until.min(ends));
    }
    let mut step = after_failed(case, &not_asked(until));
    // Nothing was asked, so nothing is to be asked again at once either.
    if let BatchNext::Look {
        until: look_until,
        next_look_at,
        ..
    } = &mut step.batch
    {
        *next_look_at = until.min(*look_until);
    }
    step
}

fn not_asked(until: UtcMillis) -> CallError {
    CallError {
        fault: Fault::Credentials,
        status: None,
        code: String::new(),
        message: format!("this target may not be asked before {until}; see its hold"),
        request_id: None,
        retry_after: None,
    }
}

fn after_failed(case: Case<'_>, error: &CallError) -> Step {
    if case.batch.is_tracked() && case.batch.job.is_some() {
        after_failed_query(case, error)
    } else {
        after_failed_look(case, error)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::case::{FIRST_PART, SECOND_PART};
    use super::super::testing::*;
    use super::*;
    use crate::model::{Batch, LookCause, PowerAction, RequestState};

    fn held(batch: &Batch, until: UtcMillis, now: UtcMillis) -> Step {
        verdict_at(now, batch, |case| while_held(case, until))
    }

    #[test]
    fn a_hold_longer_than_a_jobs_time_leads_to_looking_and_then_to_unknown() {
        let mut batch = batch(PowerAction::Reboot, BatchState::Tracking, 1);
        let ends = NOW + rules().job_time_limit;
        let until = NOW + Duration::from_secs(100_000);
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
        batch.state = BatchState::Looking;
        batch.look_cause = Some(cause);
        batch.look_until = Some(look_until);
        let over = held(&batch, until, look_until);
        assert_eq!(ended(&over, 1).state, RequestState::Unknown);
    }

    #[test]
    fn a_refused_batch_does_not_wait_for_the_end_of_a_long_hold() {
        let mut batch = batch(PowerAction::Stop, BatchState::Looking, 2);
        let ends = NOW + Duration::from_secs(900);
        let until = NOW + Duration::from_secs(100_000);
        batch.look_cause = Some(LookCause::Refused);
        batch.look_until = Some(ends);
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

    #[test]
    fn what_the_last_look_left_is_kept_while_nothing_is_asked() {
        let mut batch = batch(PowerAction::Stop, BatchState::Tracking, 1);
        batch.doubts = 3;
        batch.read_error = Some("HTTP 503".to_owned());
        let step = held(&batch, NOW + Duration::from_secs(360), NOW);
        assert_eq!(step.read_error, batch.read_error);
        assert!(matches!(step.batch, BatchNext::Again { doubts: 3, .. }));
    }
}
