//! The record of a step: what became of a batch and of its requests, in one transaction.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::sqlite::SqliteConnection;

use super::{Store, StoreError, gate, text};
use crate::lifecycle::{self, BatchNext, Event, Outcome, Return, Step};
use crate::model::{
    AttemptResult, Batch, BatchId, BatchState, JobId, LookCause, RequestId, RequestState, ServerId,
    UtcMillis,
};

impl Store {
    /// Stores what follows from one answer, in one synced transaction.
    pub async fn record(
        &self,
        batch: &Batch,
        step: &Step,
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        self.record_all(&[(batch, step)], now).await
    }

    /// Stores what follows from several answers, each about a batch of its own: all of it in one
    /// synced transaction, or none.
    pub async fn record_all(
        &self,
        steps: &[(&Batch, &Step)],
        now: UtcMillis,
    ) -> Result<(), StoreError> {
        for (batch, step) in steps {
            check_moves(batch, step)?;
        }
        let mut writer = self.writer.lock().await;
        let mut tx = self.begin(&mut writer).await?;
        for (batch, step) in steps {
            move_requests(&mut tx, batch, step, now).await?;
            remember_moving(&mut tx, batch.id, &step.seen_moving, now).await?;
            move_batch(&mut tx, batch, step, now).await?;
        }
        tx.commit().await?;
        for (batch, step) in steps {
            self.note_members(batch, step);
        }
        Ok(())
    }

    /// The members of a batch that was only accepted are still as its claim has left them.
    fn note_members(&self, batch: &Batch, step: &Step) {
        let is_accepted = matches!(step.batch, BatchNext::Track { .. });
        let is_as_claimed = is_accepted && step.moves.is_empty() && step.seen_moving.is_empty();
        if !is_as_claimed {
            self.own().claimed.forget(batch.id);
        }
    }
}

/// The schema refuses illegal moves too; this names the request and the event.
fn check_moves(batch: &Batch, step: &Step) -> Result<(), StoreError> {
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

/// True if the answer to the call itself ended the request: then the call has switched nothing.
fn was_settled_by_the_answer(batch: &Batch, outcome: &Outcome) -> bool {
    let did_nothing = matches!(
        outcome.result,
        AttemptResult::Already | AttemptResult::Refused
    );
    batch.state == BatchState::Submitting && did_nothing
}

/// True if the call counts no longer, now that the request goes back. Busy, refused and unsent ones
/// are taken back, but for a reboot that the cloud had accepted before its own task called the
/// server busy: that is bounded by the attempts.
fn is_taken_back(batch: &Batch, back: &Return) -> bool {
    let did_nothing = matches!(
        back.result,
        AttemptResult::Busy | AttemptResult::Refused | AttemptResult::NotSent
    );
    let was_taken_up = batch.action.leaves_no_mark() && batch.submitted_at.is_some();
    did_nothing && is_counted(batch) && !was_taken_up
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

async fn move_requests(
    tx: &mut SqliteConnection,
    batch: &Batch,
    step: &Step,
    now: UtcMillis,
) -> Result<(), StoreError> {
    let groups = groups(step);
    // What happens to all of them alike needs no list.
    let is_alike = groups.len() == 1 && step.moves.len() == batch.members.len();
    for (event, ids) in groups {
        let members = gate::Members {
            batch: batch.id,
            ids: (!is_alike).then_some(ids.as_str()),
        };
        match event {
            Event::Claimed => {}
            Event::Ended(outcome) => {
                let taken_back = i64::from(was_settled_by_the_answer(batch, outcome));
                gate::end(tx, members, outcome, taken_back, now).await?;
                gate::note_awaited(tx, &ids).await?;
            }
            Event::Returned(back) => {
                keep_attempts(tx, batch, &ids, back, now).await?;
                let taken_back = i64::from(is_taken_back(batch, back));
                gate::give_back(tx, members, back, taken_back).await?;
            }
        }
    }
    gate::bring_forward_after(tx, &batch.target, &moved(batch, step)).await
}

fn moved(batch: &Batch, step: &Step) -> Vec<(RequestId, ServerId)> {
    let moved: BTreeSet<RequestId> = step.moves.iter().map(|(request, _)| *request).collect();
    let members = batch.members.iter();
    members
        .filter(|member| moved.contains(&member.request))
        .map(|member| (member.request, member.server.clone()))
        .collect()
}

/// The ledger of the calls before the one that comes next.
async fn keep_attempts(
    tx: &mut SqliteConnection,
    batch: &Batch,
    ids: &str,
    back: &Return,
    now: UtcMillis,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO earlier_attempts (request_id, batch_id, result, error_code, error_message, started_at, finished_at, baseline,
             seen_since)
         SELECT r.id, r.batch_id, ?3, nullif(?4, ''), nullif(?5, ''), ifnull(r.submitted_at, ?6), ?6, r.baseline, r.seen_since
         FROM json_each(?1) j CROSS JOIN power_requests r ON r.id = j.value WHERE +r.batch_id = ?2 AND +r.state = 'running'",
    )
    .bind(ids)
    .bind(batch.id.0)
    .bind(back.result.as_str())
    .bind(&back.code)
    .bind(&back.message)
    .bind(text(now))
    .execute(tx)
    .await?;
    Ok(())
}

async fn remember_moving(
    tx: &mut SqliteConnection,
    batch: BatchId,
    moving: &[RequestId],
    now: UtcMillis,
) -> Result<(), StoreError> {
    if moving.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE power_requests SET seen_since = ?3
         WHERE id IN (SELECT value FROM json_each(?1)) AND +batch_id = ?2 AND +state = 'running' AND seen_since IS NULL",
    )
    .bind(serde_json::to_string(moving).unwrap_or_default())
    .bind(batch.0)
    .bind(text(now))
    .execute(tx)
    .await?;
    Ok(())
}

async fn move_batch(
    tx: &mut SqliteConnection,
    batch: &Batch,
    step: &Step,
    now: UtcMillis,
) -> Result<(), StoreError> {
    let gone: BTreeSet<RequestId> = step.moves.iter().map(|(request, _)| *request).collect();
    let stay = batch
        .members
        .iter()
        .filter(|member| !gone.contains(&member.request));
    let stay: Vec<i64> = stay.map(|member| member.request.0).collect();
    let next = if stay.is_empty() {
        &BatchNext::Done
    } else {
        &step.batch
    };
    let more = counted_more(batch, next);
    if more != 0 {
        sqlx::query(
            "UPDATE power_requests SET attempts = max(0, attempts + ?2) WHERE id IN (SELECT value FROM json_each(?1))",
        )
        .bind(serde_json::to_string(&stay).unwrap_or_default())
        .bind(more)
        .execute(&mut *tx)
        .await?;
    }
    let change = Change::of(batch, next, now);
    let complaint = step.complaint.as_ref();
    sqlx::query(
        "UPDATE batches SET state = ?2, job_id = ifnull(?3, job_id), submitted_at = ifnull(?4, submitted_at), next_look_at = ?5,
             looks = looks + ?6, doubts = ?7, look_cause = ifnull(?8, look_cause), look_until = ifnull(?9, look_until),
             finished_at = ?10, error_code = ifnull(?11, error_code), error_message = ifnull(?12, error_message),
             job_ms = ifnull(job_ms, ?13), read_error = ?14
         WHERE id = ?1 AND state <> 'done'",
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
    .bind((change.state == BatchState::Done).then(|| text(now)))
    .bind(complaint.map(|complaint| complaint.code.as_str()).filter(|code| !code.is_empty()))
    .bind(complaint.map(|complaint| complaint.message.as_str()))
    .bind(step.job_ms)
    .bind(&step.read_error)
    .execute(&mut *tx)
    .await?;
    if change.state == BatchState::Done {
        sqlx::query("INSERT INTO lingering_batches (batch_id) VALUES (?) ON CONFLICT DO NOTHING")
            .bind(batch.id.0)
            .execute(tx)
            .await?;
    }
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
