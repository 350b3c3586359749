//! Which state may follow which, for requests and batches; the only place that moves them.
//!
//! Owns the events and the one transition function. Knows nothing of SQL (the schema repeats the
//! rules), clocks or HTTP.

use crate::model::{
    AttemptResult, Batch, CallError, Complaint, Evidence, JobId, LookCause, OwnCode, RequestId,
    RequestState, UtcMillis,
};

/// Something that happens to one request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// It was put into a batch; the intent is stored.
    Claimed,
    /// It ended.
    Ended(Outcome),
    /// Back to the queue: proved not carried out, not sent, busy, refused beside others, or worth
    /// another try.
    Returned(Return),
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outcome {
    /// A terminal state.
    pub state: RequestState,
    /// How we know.
    pub evidence: Evidence,
    /// The cloud's code or ours; empty for none.
    pub code: String,
    /// A sentence for a person; empty for none.
    pub message: String,
    /// What the ledger says of the attempt that ended it.
    pub result: AttemptResult,
}

/// Why and until when a request goes back to the queue.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Return {
    /// Not before this time; none: at once.
    pub retry_at: Option<UtcMillis>,
    /// The group it travels in from now on; none: as before.
    pub group: Option<i64>,
    /// What the ledger says of this attempt.
    pub result: AttemptResult,
    /// The cloud's code or ours.
    pub code: String,
    /// A sentence for a person.
    pub message: String,
}

/// A move that the life of a request does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a request that is {from} cannot be moved by {event:?}")]
pub struct IllegalMove {
    from: RequestState,
    event: Event,
}

/// The state after `event`, or a refusal by name.
///
/// # Errors
/// `IllegalMove` for every pair that the contract's diagram does not have.
pub fn next(from: RequestState, event: &Event) -> Result<RequestState, IllegalMove> {
    use RequestState::{Cancelled, Expired, Failed, Queued, Rejected, Running, Succeeded, Unknown};
    match (from, event) {
        (Queued, Event::Claimed) => Ok(Running),
        (Running, Event::Returned(_)) => Ok(Queued),
        (Running, Event::Ended(end)) if matches!(end.state, Succeeded | Failed | Unknown) => {
            Ok(end.state)
        }
        (Queued, Event::Ended(end)) if matches!(end.state, Cancelled | Expired | Rejected) => {
            Ok(end.state)
        }
        (from, event) => Err(IllegalMove {
            from,
            event: event.clone(),
        }),
    }
}

impl Outcome {
    /// Done, and this is how we know.
    pub fn succeeded(evidence: Evidence, message: impl Into<String>) -> Self {
        let result = if evidence == Evidence::Already {
            AttemptResult::Already
        } else {
            AttemptResult::Succeeded
        };
        Self {
            state: RequestState::Succeeded,
            evidence,
            code: String::new(),
            message: message.into(),
            result,
        }
    }

    /// Known to have failed.
    pub fn failed(evidence: Evidence, code: impl Into<String>, message: impl Into<String>) -> Self {
        let result = if evidence == Evidence::Refused {
            AttemptResult::Refused
        } else {
            AttemptResult::Failed
        };
        Self {
            state: RequestState::Failed,
            evidence,
            code: code.into(),
            message: message.into(),
            result,
        }
    }

    /// Nobody can tell.
    pub fn unknown(code: OwnCode, message: impl Into<String>) -> Self {
        Self {
            state: RequestState::Unknown,
            evidence: Evidence::None,
            code: code.into(),
            message: message.into(),
            result: AttemptResult::Unknown,
        }
    }
}

/// Requests and what happens to each.
pub type Moves = Vec<(RequestId, Event)>;

/// What follows from one step of a batch: the whole of it is stored in one transaction, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Where the batch goes.
    pub batch: BatchNext,
    /// Requests that end or return to the queue; the others stay as they are.
    pub moves: Moves,
    /// Requests that stay, and whose servers were seen in a transition that theirs would cause.
    pub seen_moving: Vec<RequestId>,
    /// An error that concerns the batch as a whole, for its row.
    pub complaint: Option<Complaint>,
    /// How long the job took, once it is over, in milliseconds.
    pub job_ms: Option<i64>,
    /// Why this look at the job or the servers failed; none once one succeeds.
    pub read_error: Option<String>,
}

impl Step {
    /// The batch goes there, and nothing else happens.
    pub fn only(batch: BatchNext) -> Self {
        Self {
            batch,
            moves: Vec::new(),
            seen_moving: Vec::new(),
            complaint: None,
            job_ms: None,
            read_error: None,
        }
    }

    /// The clock was set by so much before this could be stored: what waits moves along.
    pub fn move_times(&mut self, by_ms: i64) {
        match &mut self.batch {
            BatchNext::Track { next_look_at, .. } | BatchNext::Again { next_look_at, .. } => {
                *next_look_at = next_look_at.moved(by_ms);
            }
            BatchNext::Look {
                until,
                next_look_at,
                ..
            } => {
                *until = until.moved(by_ms);
                *next_look_at = next_look_at.moved(by_ms);
            }
            BatchNext::Done => {}
        }
        for (_, event) in &mut self.moves {
            if let Event::Returned(back) = event {
                back.retry_at = back.retry_at.map(|at| at.moved(by_ms));
            }
        }
    }

    /// Nothing is left to do once these requests are moved.
    pub fn done(moves: Moves) -> Self {
        Self {
            moves,
            ..Self::only(BatchNext::Done)
        }
    }

    /// Nothing but another look at `at`.
    pub fn look_again(batch: &Batch, at: UtcMillis) -> Self {
        let read_error = batch.read_error.clone();
        Self {
            read_error,
            ..Self::only(BatchNext::Again {
                next_look_at: at,
                doubts: batch.doubts,
            })
        }
    }

    /// The call was certainly not made, or nothing was carried out, because of `why`: all of the
    /// batch goes back to the queue, in its place.
    pub fn not_sent(batch: &Batch, why: Complaint) -> Self {
        let back = Event::Returned(Return {
            retry_at: None,
            group: None,
            result: AttemptResult::NotSent,
            code: why.code.clone(),
            message: why.message.clone(),
        });
        let moves = batch
            .members
            .iter()
            .map(|member| (member.request, back.clone()))
            .collect();
        Self::done(moves).complaining(why)
    }

    /// A batch whose intent is stored and whose call is known not to have been begun: as
    /// `not_sent`, with `why` as the sentence for a person.
    pub fn not_begun(batch: &Batch, why: &str) -> Self {
        Self::not_sent(batch, Complaint::our_own(OwnCode::Interrupted, why))
    }

    /// The same, with an error that concerns the batch as a whole.
    pub fn complaining(mut self, complaint: Complaint) -> Self {
        self.complaint = Some(complaint);
        self
    }

    /// The same, after a look that failed.
    pub fn after_failed_read(mut self, error: &CallError) -> Self {
        self.read_error = Some(error.to_string());
        self
    }
}

/// Where a batch goes after a step. A batch whose last request was moved is done, whatever is
/// here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchNext {
    /// Accepted: its job is asked for, first at `next_look_at`.
    Track {
        /// None where the cloud has no jobs.
        job: Option<JobId>,
        /// The first look.
        next_look_at: UtcMillis,
    },
    /// Its servers are looked at from now on.
    Look {
        /// Why.
        cause: LookCause,
        /// Looking ends here.
        until: UtcMillis,
        /// The first look.
        next_look_at: UtcMillis,
    },
    /// As before; the next look is at `next_look_at`.
    Again {
        /// The next look.
        next_look_at: UtcMillis,
        /// Answers in a row that left the job's end in doubt.
        doubts: u32,
    },
    /// Nothing is left to do.
    Done,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events() -> impl Strategy<Value = Event> {
        let ends = prop::sample::select(RequestState::ALL).prop_map(|state| {
            Event::Ended(Outcome {
                state,
                code: String::new(),
                ..Outcome::unknown(OwnCode::Unproved, "")
            })
        });
        prop_oneof![Just(Event::Claimed), ends, Just(returned(None))]
    }

    fn returned(retry_at: Option<UtcMillis>) -> Event {
        Event::Returned(Return {
            retry_at,
            group: None,
            result: AttemptResult::Busy,
            code: String::new(),
            message: String::new(),
        })
    }

    proptest! {
        #[test]
        fn an_ended_request_never_moves_again(
            from in prop::sample::select(RequestState::ALL),
            events in prop::collection::vec(events(), 0..12),
        ) {
            let mut state = from;
            for event in &events {
                let after = next(state, event);
                if state.is_terminal() {
                    prop_assert!(after.is_err());
                }
                state = after.unwrap_or(state);
            }
        }

        #[test]
        fn only_requests_in_flight_end_as_succeeded_failed_or_unknown(event in events()) {
            if let Ok(state) = next(RequestState::Queued, &event) {
                prop_assert!(!matches!(state, RequestState::Succeeded | RequestState::Failed | RequestState::Unknown));
            }
        }
    }

    #[test]
    fn what_waits_moves_with_a_clock_that_was_set_before_it_could_be_stored() {
        let (at, later) = (UtcMillis(5000), UtcMillis(9000));
        let back = |retry_at| vec![(RequestId(1), returned(retry_at))];
        let look = |until, next_look_at| BatchNext::Look {
            cause: LookCause::Lost,
            until,
            next_look_at,
        };
        let mut step = Step {
            moves: back(Some(at)),
            ..Step::only(look(at, at))
        };
        step.move_times(4000);
        assert_eq!(step.batch, look(later, later));
        assert_eq!(step.moves, back(Some(later)));
    }

    fn ended(state: RequestState) -> Event {
        Event::Ended(Outcome {
            state,
            ..Outcome::unknown(OwnCode::Unproved, "")
        })
    }

    #[test]
    fn a_request_is_claimed_ends_or_returns_only_from_where_it_may() {
        use RequestState::{Cancelled, Expired, Failed, Queued, Rejected, Running, Succeeded};
        for end in [Succeeded, Failed, RequestState::Unknown] {
            assert_eq!(next(Running, &ended(end)), Ok(end));
            assert!(next(Queued, &ended(end)).is_err());
        }
        for end in [Cancelled, Expired, Rejected] {
            assert_eq!(next(Queued, &ended(end)), Ok(end));
            assert!(next(Running, &ended(end)).is_err());
        }
        for end in [Queued, Running] {
            assert!(next(Running, &ended(end)).is_err());
            assert!(next(Queued, &ended(end)).is_err());
        }
        assert_eq!(next(Queued, &Event::Claimed), Ok(Running));
        assert!(next(Running, &Event::Claimed).is_err());
    }

    #[test]
    fn the_ledger_says_what_the_evidence_says() {
        let results = [
            Outcome::succeeded(Evidence::Already, ""),
            Outcome::succeeded(Evidence::Job, ""),
            Outcome::failed(Evidence::Refused, "", ""),
            Outcome::failed(Evidence::Observed, "", ""),
        ]
        .map(|outcome| outcome.result);
        assert_eq!(
            results,
            [
                AttemptResult::Already,
                AttemptResult::Succeeded,
                AttemptResult::Refused,
                AttemptResult::Failed
            ]
        );
    }
}
