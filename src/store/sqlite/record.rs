//! The record of a step: what became of a batch and of its requests, in one transaction.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::sqlite::SqliteConnection;

use super::gate::{self, Leaving};
use super::rows::list;
use super::{StoreError, text};
use crate::lifecycle::{self, BatchNext, Event, Outcome, Return, Step};
use crate::model::{
    AttemptResult, Batch, BatchState, JobId, LookCause, Member, RequestId, RequestState, UtcMillis,
};

/// What follows for one batch.
pub(in crate::store) async fn record(
    tx: &mut SqliteConnection,
    batch: &Batch,
    step: &Step,
    now: UtcMillis,
) -> Result<(), StoreError> {
    let record = Record {
        batch,
        step,
        now,
        moved: step.moves.iter().map(|(request, _)| *request).collect(),
    };
    record.move_requests(tx).await?;
    record.remember_moving(tx).await?;
    record.move_batch(tx).await
}

/// True of a batch that was only accepted: its members are still as its claim has left them.
pub(in crate::store) fn leaves_members_as_claimed(step: &Step) -> bool {
    let is_accepted = matches!(step.batch, BatchNext::Track { .. });
    is_accepted && step.moves.is_empty() && step.seen_moving.is_empty()
}

/// The schema refuses illegal moves too; this names the request and the event.
pub(in crate::store) fn check_moves(batch: &Batch, step: &Step) -> Result<(), StoreError> {
    let members: BTreeSet<RequestId> = batch.members.iter().map(|member| member.request).collect();
    for (request, event) in &step.moves {
        if !members.contains(request) {
            return Err(StoreError::NoSuchRequest(request.0));
        }
        lifecycle::next(RequestState::Running, event)
            .map_err(|error| StoreError::Unreadable(format!("request {request}: {error}")))?;
    }
    Ok(())
}

/// Calls that the cloud may have acted on count as attempts. Each counts from its claim, until its
/// answer says that nothing was done; this is true while it does.
fn is_counted(batch: &Batch) -> bool {
    batch.state == BatchState::Submitting
        || batch.submitted_at.is_some()
        || batch.look_cause == Some(LookCause::Lost)
}

/// True if the call counts no longer as one of the request's attempts.
fn is_call_taken_back(batch: &Batch, event: &Event) -> bool {
    match event {
        Event::Claimed => false,
        Event::Ended(outcome) => was_settled_by_the_answer(batch, outcome),
        Event::Returned(back) => had_no_effect(batch, back),
    }
}

/// True if the answer to the call itself ended the request: then the call has switched nothing.
fn was_settled_by_the_answer(batch: &Batch, outcome: &Outcome) -> bool {
    let did_nothing = matches!(
        outcome.result,
        AttemptResult::Already | AttemptResult::Refused
    );
    batch.state == BatchState::Submitting && did_nothing
}

/// Busy, refused and unsent calls are taken back, but for a reboot that the cloud had accepted
/// before its own task called the server busy: that is bounded by the attempts.
fn had_no_effect(batch: &Batch, back: &Return) -> bool {
    let did_nothing = matches!(
        back.result,
        AttemptResult::Busy | AttemptResult::Refused | AttemptResult::NotSent
    );
    let was_accepted = batch.action.leaves_no_mark() && batch.submitted_at.is_some();
    did_nothing && is_counted(batch) && !was_accepted
}

/// Requests to which the same happens, so that one statement moves them all: a step rarely has more
/// than a handful of such groups, and a list of ids costs SQLite a third of a list of objects.
fn groups(step: &Step) -> Vec<(&Event, String)> {
    let mut groups: BTreeMap<&Event, Vec<RequestId>> = BTreeMap::new();
    for (request, event) in &step.moves {
        groups.entry(event).or_default().push(*request);
    }
    groups
        .into_iter()
        .map(|(event, ids)| (event, serde_json::to_string(&ids).unwrap_or_default()))
        .collect()
}

/// A step of a batch that is being stored.
struct Record<'a> {
    batch: &'a Batch,
    step: &'a Step,
    now: UtcMillis,
    /// The requests that the step moves.
    moved: BTreeSet<RequestId>,
}

impl Record<'_> {
    async fn move_requests(&self, tx: &mut SqliteConnection) -> Result<(), StoreError> {
        let groups = groups(self.step);
        // What happens to all of them alike needs no list.
        let is_alike = groups.len() == 1 && self.moved.len() == self.batch.members.len();
        for (event, ids) in groups {
            let leaving = Leaving {
                batch: self.batch.id,
                ids: (!is_alike).then_some(ids.as_str()),
                is_call_taken_back: is_call_taken_back(self.batch, event),
            };
            match event {
                Event::Claimed => {}
                Event::Ended(outcome) => {
                    gate::end(tx, leaving, outcome, self.now).await?;
                }
                Event::Returned(back) => {
                    self.keep_attempts(tx, &ids, back).await?;
                    gate::give_back(tx, leaving, back).await?;
                }
            }
        }
        self.tell_who_waits(tx).await
    }

    /// Those that wait for the requests that have moved.
    async fn tell_who_waits(&self, tx: &mut SqliteConnection) -> Result<(), StoreError> {
        if self.moved.is_empty() {
            return Ok(());
        }
        let waiting = gate::who_waits(tx, &self.batch.target).await?;
        if waiting.for_an_end {
            let moves = self.step.moves.iter();
            let ended = moves.filter(|(_, event)| matches!(event, Event::Ended(_)));
            gate::note_awaited(tx, &list(ended.map(|(request, _)| &request.0))).await?;
        }
        if waiting.behind {
            let members = self.batch.members.iter();
            let moved: Vec<&Member> = members
                .filter(|member| self.moved.contains(&member.request))
                .collect();
            gate::bring_forward_after(tx, &self.batch.target, &moved).await?;
        }
        Ok(())
    }

    /// The ledger of the calls before the one that comes next.
    async fn keep_attempts(
        &self,
        tx: &mut SqliteConnection,
        ids: &str,
        back: &Return,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO earlier_attempts (request_id, batch_id, result, error_code, error_message, started_at, finished_at, baseline,
                 seen_since)
             SELECT r.id, r.batch_id, $3, nullif($4, ''), nullif($5, ''), ifnull(r.submitted_at, $6), $6, r.baseline, r.seen_since
             FROM json_each($1) j CROSS JOIN power_requests r ON r.id = j.value WHERE +r.batch_id = $2 AND +r.state = 'running'",
        )
        .bind(ids)
        .bind(self.batch.id.0)
        .bind(back.result.as_str())
        .bind(&back.code)
        .bind(&back.message)
        .bind(text(self.now))
        .execute(tx)
        .await?;
        Ok(())
    }

    async fn remember_moving(&self, tx: &mut SqliteConnection) -> Result<(), StoreError> {
        if self.step.seen_moving.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "UPDATE power_requests SET seen_since = $3
             WHERE id IN (SELECT value FROM json_each($1)) AND +batch_id = $2 AND +state = 'running' AND seen_since IS NULL",
        )
        .bind(serde_json::to_string(&self.step.seen_moving).unwrap_or_default())
        .bind(self.batch.id.0)
        .bind(text(self.now))
        .execute(tx)
        .await?;
        Ok(())
    }

    async fn move_batch(&self, tx: &mut SqliteConnection) -> Result<(), StoreError> {
        let batch = self.batch;
        let step = self.step;
        let staying = self.staying();
        let next = if staying.is_empty() {
            &BatchNext::Done
        } else {
            &step.batch
        };
        let more = counted_more(batch, next);
        if more != 0 {
            count_attempts(tx, &staying, more).await?;
        }
        let change = Change::of(batch, next, self.now);
        let is_done = change.state == BatchState::Done;
        let complaint = step.complaint.as_ref();
        sqlx::query(
            "UPDATE batches SET state = $2, job_id = ifnull($3, job_id), submitted_at = ifnull($4, submitted_at),
                 submitted_steady_ms = ifnull($15 - (SELECT clock_set_ms FROM queue_mark), submitted_steady_ms), next_look_at = $5,
                 looks = looks + $6, doubts = $7, look_cause = ifnull($8, look_cause), look_until = ifnull($9, look_until),
                 finished_at = $10, error_code = ifnull($11, error_code), error_message = ifnull($12, error_message),
                 job_ms = ifnull(job_ms, $13), read_error = $14
             WHERE id = $1 AND state <> 'done'",
        )
        .bind(batch.id.0)
        .bind(change.state.as_str())
        .bind(change.job.map(|job| job.0))
        .bind(change.submitted_at.map(text))
        .bind(change.next_look_at.map(text))
        .bind(i64::from(batch.state != BatchState::Submitting))
        .bind(change.doubts)
        .bind(change.look.map(|(cause, _)| cause.as_str()))
        .bind(change.look.map(|(_, until)| text(until)))
        .bind(is_done.then(|| text(self.now)))
        .bind(complaint.map(|complaint| complaint.code.as_str()).filter(|code| !code.is_empty()))
        .bind(complaint.map(|complaint| complaint.message.as_str()))
        .bind(step.job_ms)
        .bind(&step.read_error)
        .bind(change.submitted_at.map(|at| at.0))
        .execute(tx)
        .await?;
        Ok(())
    }

    /// The requests that the batch goes on with.
    fn staying(&self) -> Vec<RequestId> {
        let requests = self.batch.members.iter().map(|member| member.request);
        requests
            .filter(|request| !self.moved.contains(request))
            .collect()
    }
}

async fn count_attempts(
    tx: &mut SqliteConnection,
    requests: &[RequestId],
    more: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE power_requests SET attempts = max(0, attempts + $2) WHERE id IN (SELECT value FROM json_each($1))",
    )
    .bind(serde_json::to_string(requests).unwrap_or_default())
    .bind(more)
    .execute(tx)
    .await?;
    Ok(())
}

/// What a look that begins means for the attempts of those that stay: a refused call counts no
/// longer, and one whose refusal was disproved counts after all.
fn counted_more(batch: &Batch, next: &BatchNext) -> i64 {
    let BatchNext::Look { cause, .. } = next else {
        return 0;
    };
    match (is_counted(batch), cause) {
        (false, LookCause::Lost) => 1,
        (true, LookCause::Refused) if batch.state == BatchState::Submitting => -1,
        _ => 0,
    }
}

/// What changes in the batch's own row.
struct Change {
    state: BatchState,
    job: Option<JobId>,
    submitted_at: Option<UtcMillis>,
    next_look_at: Option<UtcMillis>,
    doubts: u32,
    look: Option<(LookCause, UtcMillis)>,
}

impl Change {
    fn of(batch: &Batch, next: &BatchNext, now: UtcMillis) -> Self {
        let same = Self {
            state: batch.state,
            job: None,
            submitted_at: None,
            next_look_at: None,
            doubts: batch.doubts,
            look: None,
        };
        match next {
            BatchNext::Track { job, next_look_at } => Self {
                state: BatchState::Tracking,
                job: job.clone(),
                submitted_at: Some(now),
                next_look_at: Some(*next_look_at),
                ..same
            },
            BatchNext::Look {
                cause,
                until,
                next_look_at,
            } => Self {
                state: BatchState::Looking,
                next_look_at: Some(*next_look_at),
                look: Some((*cause, *until)),
                doubts: 0,
                ..same
            },
            BatchNext::Again {
                next_look_at,
                doubts,
            } => Self {
                next_look_at: Some(*next_look_at),
                doubts: *doubts,
                ..same
            },
            BatchNext::Done => Self {
                state: BatchState::Done,
                ..same
            },
        }
    }
}
