//! Calls on their way: from the daemon to the cloud, and their answers back, or into the void when
//! a daemon dies.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Flight, Machine, Point, Stage};
use crate::simulator::Broken;
use crate::simulator::facts::Departure;
use poweryard::cloud::Observed;
use poweryard::daemon::{Begun, Finished, Task};
use poweryard::model::Batch;
use poweryard::model::{CallError, Fault};
use poweryard::model::{ServerId, Tracking, UtcMillis};

impl Machine<'_> {
    pub(super) fn launch(&mut self, task: Task, now: UtcMillis) -> Result<(), Broken> {
        let task = match task.begin(self.is_halted()) {
            Begun::Leaves(task) => task,
            Begun::Stays(batch) => {
                self.flights.push(Flight {
                    at: now,
                    stage: Stage::Unsent(batch),
                    orphaned: false,
                });
                return Ok(());
            }
        };
        if let Task::Submit { batch, .. } = &task {
            let members: BTreeMap<i64, ServerId> = batch
                .members
                .iter()
                .map(|member| (member.request.0, member.server.clone()))
                .collect();
            let (id, action, target) = (batch.id.0, batch.action, &batch.target);
            self.say(|| {
                format!(
                    "submit of batch {id} to {target} leaves: {action} {:?}",
                    members.keys()
                )
            });
            let moment = self.moment();
            self.facts.departs(
                &Departure {
                    batch: id,
                    target,
                    action,
                    members: &members,
                },
                moment,
            )?;
        }
        let at = now + self.rng.millis(0, self.plan.rough.way_max_ms);
        self.flights.push(Flight {
            at,
            stage: Stage::Out(task),
            orphaned: false,
        });
        Ok(())
    }

    pub(super) async fn fly(&mut self, index: usize) -> Result<(), Broken> {
        let flight = self.flights.swap_remove(index);
        match flight.stage {
            Stage::Out(task) => self.carry_out(task, flight.orphaned).await,
            Stage::Back(finished) => self.deliver(finished).await,
            Stage::Unsent(batch) => self.return_unsent(batch).await,
        }
    }

    /// A call reaches the cloud.
    async fn carry_out(&mut self, task: Task, orphaned: bool) -> Result<(), Broken> {
        self.calls += 1;
        if self.end_at == Some(Point::Call(self.calls)) {
            return self.crash("before a call arrives").await;
        }
        let now = self.moment();
        let batch = match &task {
            Task::Submit { batch, .. } => {
                self.facts.arrives(&batch.target, now)?;
                Some(batch.id.0)
            }
            Task::Prepare { .. } | Task::Track { .. } | Task::Look { .. } | Task::List { .. } => {
                None
            }
        };
        let finished = task.run().await;
        let delay = self.cloud.take_delay();
        self.say(|| format!("at the cloud: {}", describe(&finished)));
        self.summary.submits += u64::from(batch.is_some());
        self.attribute(batch)?;
        if orphaned {
            return Ok(());
        }
        let at = self.now() + delay + self.rng.millis(0, self.plan.rough.way_max_ms);
        self.flights.push(Flight {
            at,
            stage: Stage::Back(finished),
            orphaned,
        });
        if self.end_at == Some(Point::Answer(self.calls)) {
            self.crash("between a call and its answer").await?;
        }
        Ok(())
    }

    /// Takes what the cloud has begun since the last time, and what it will, each for the batch
    /// whose call it was: `batch` for what has not been heard of yet.
    pub(super) fn attribute(&mut self, batch: Option<i64>) -> Result<(), Broken> {
        let mut denied: BTreeSet<ServerId> = BTreeSet::new();
        for act in self.cloud.late_acts(self.late_seen) {
            if let (Entry::Vacant(call), Some(batch)) =
                (self.called.entry(act.batch.clone()), batch)
            {
                call.insert(batch);
            }
            if self.called.get(&act.batch).copied() == batch {
                denied.insert(act.server_id);
            }
        }
        self.late_seen = self.cloud.acted_late();
        if let Some(batch) = batch {
            self.facts.denied(batch, &denied);
        }
        let mut done: BTreeMap<i64, BTreeSet<ServerId>> = BTreeMap::new();
        for entry in self.cloud.ledger_from(self.ledger_seen) {
            self.ledger_seen += 1;
            self.say(|| format!("the cloud begins {} of {}", entry.action, entry.server_id));
            let of = self.called.get(&entry.batch).copied().or(batch);
            let Some(of) = of else {
                return Err(Broken(format!(
                    "the cloud acted on {} and nobody asked for it",
                    entry.server_id
                )));
            };
            self.called.insert(entry.batch, of);
            done.entry(of).or_default().insert(entry.server_id);
        }
        done.iter()
            .try_for_each(|(batch, servers)| self.facts.carried_out(*batch, servers))
    }

    /// An answer reaches the daemon; as in `daemon::run`, a round follows.
    async fn deliver(&mut self, finished: Finished) -> Result<(), Broken> {
        self.say(|| format!("answer: {}", describe(&finished)));
        if is_about_key(&finished) {
            // Nobody asks before the key has rested.
            self.facts.disturbed();
        }
        let mut asked_to_wait = None;
        if let Finished::Submitted { batch, answer, .. } = &finished {
            self.facts.told(batch.id.0, answer);
            asked_to_wait = Some((batch.id.0, retry_after(answer)));
        }
        let Some(daemon) = self.daemon.as_mut() else {
            return Ok(());
        };
        let outcome = daemon
            .dispatcher
            .finish(finished, self.cloud.moment())
            .await;
        daemon.turns.answer_taken();
        self.learn().await?;
        if self.fuse.is_blown() {
            return self.crash("before a commit, after an answer").await;
        }
        if let Err(error) = outcome {
            return Err(Broken(format!("an answer ends the daemon: {error}")));
        }
        self.idle_rounds = 0;
        self.wake_at = Some(self.cloud.now());
        if let Some((batch, wait)) = asked_to_wait {
            let is_plain = self.cloud.clock() == 0 && self.plan.rough.lock == 0;
            self.facts
                .asked_to_wait(batch, wait.filter(|_| is_plain), self.moment());
        }
        Ok(())
    }

    /// The daemon learns of a call that it has not begun.
    async fn return_unsent(&mut self, batch: Batch) -> Result<(), Broken> {
        self.say(|| format!("not begun: batch {}", batch.id));
        self.facts.not_sent(batch.id.0);
        let now = self.cloud.moment();
        let Some(daemon) = self.daemon.as_mut() else {
            return Ok(());
        };
        daemon.dispatcher.not_begun(batch, now);
        let outcome = daemon.dispatcher.save_new(now).await;
        self.learn().await?;
        if self.fuse.is_blown() {
            return self.crash("before a commit, with a call not begun").await;
        }
        self.wake_at = Some(self.cloud.now());
        outcome.map_err(|error| Broken(format!("a call not begun ends the daemon: {error}")))
    }

    /// The daemon is gone from one moment to the next. A call that has left may still arrive.
    pub(super) async fn crash(&mut self, how: &str) -> Result<(), Broken> {
        self.say(|| format!("the daemon dies {how}"));
        self.summary.crashes += 1;
        self.learn().await?;
        self.facts.crashed();
        for mut flight in std::mem::take(&mut self.flights) {
            let is_submit = matches!(flight.stage, Stage::Out(Task::Submit { .. }));
            if is_submit && (flight.orphaned || self.rng.permille(500)) {
                flight.orphaned = true;
                self.flights.push(flight);
            }
        }
        if let Some(daemon) = self.daemon.take() {
            daemon.end().await;
        }
        self.fuse.replace();
        self.is_halting = false;
        let pause = if self.rng.permille(700) {
            0
        } else {
            self.rng.between(0, 20_000)
        };
        self.wake_at = Some(self.now() + Duration::from_millis(pause));
        self.copy_or_restore().await
    }
}

/// True if the cloud refused the key of this call.
fn is_about_key(finished: &Finished) -> bool {
    let seen = |answer: &Result<Observed, CallError>| match answer {
        Ok(observed) => observed.ended_by.as_ref().map(|error| error.fault.clone()),
        Err(error) => Some(error.fault.clone()),
    };
    let fault = match finished {
        Finished::Prepared { result, .. } => seen(result),
        Finished::Looked { answer, .. } => seen(answer),
        Finished::Submitted { answer, .. } => {
            answer.as_ref().err().map(|error| error.fault.clone())
        }
        Finished::Tracked { answer, .. } => answer.as_ref().err().map(|error| error.fault.clone()),
        Finished::Listed { answer, .. } => answer.as_ref().err().map(|error| error.fault.clone()),
    };
    matches!(fault, Some(Fault::Credentials | Fault::Permission))
}

/// How long the cloud asks not to be called.
fn retry_after(answer: &Result<Tracking, CallError>) -> Option<Duration> {
    match answer {
        Err(CallError {
            fault: Fault::Throttled { retry_after, .. },
            ..
        }) => *retry_after,
        _ => None,
    }
}

fn describe(finished: &Finished) -> String {
    let outcome = |error: Option<&CallError>| {
        error.map_or("ok".to_owned(), |e| format!("{:?} {}", e.fault, e.code))
    };
    match finished {
        Finished::Prepared { target, result, .. } => {
            format!("prepare of {target}: {}", outcome(result.as_ref().err()))
        }
        Finished::Submitted { batch, answer, .. } => {
            format!(
                "submit of batch {}: {}",
                batch.id,
                outcome(answer.as_ref().err())
            )
        }
        Finished::Tracked { batch, answer, .. } => {
            format!(
                "job of batch {}: {}",
                batch.id,
                outcome(answer.as_ref().err())
            )
        }
        Finished::Looked {
            batches, answer, ..
        } => {
            let ids: Vec<i64> = batches.iter().map(|batch| batch.id.0).collect();
            format!(
                "look for batches {ids:?}: {}",
                outcome(answer.as_ref().err())
            )
        }
        Finished::Listed { wish, answer, .. } => {
            format!(
                "list of {}: {}",
                wish.target,
                outcome(answer.as_ref().err())
            )
        }
    }
}
