//! Calls on their way: from the daemon to the cloud, and their answers back, or into the void when
//! a daemon dies.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Flight, Machine, Point, Stage};
use crate::simulator::Broken;
use crate::simulator::facts::Departure;
use poweryard::cloud::Observed;
use poweryard::daemon::{Begun, Finished, GateCall, Task};
use poweryard::model::Batch;
use poweryard::model::{CallError, Fault};
use poweryard::model::{ServerId, Tracking, UtcMillis};

pub(super) fn launch(machine: &mut Machine<'_>, task: Task, now: UtcMillis) -> Result<(), Broken> {
    let task = match task.begin(super::operators::is_halted(machine)) {
        Begun::Leaves(task) => task,
        Begun::Stays(batch) => {
            machine.flights.push(Flight {
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
        machine.say(|| {
            format!(
                "submit of batch {id} to {target} leaves: {action} {:?}",
                members.keys()
            )
        });
        let moment = machine.moment();
        machine.facts.departs(
            &Departure {
                batch: id,
                target,
                action,
                members: &members,
            },
            moment,
        )?;
    }
    let at = now + machine.rng.millis(0, machine.plan.rough.way_max_ms);
    machine.flights.push(Flight {
        at,
        stage: Stage::Out(task),
        orphaned: false,
    });
    Ok(())
}

/// Somebody is asked about the next wave of an order: says yes or no, nothing in time, or is not
/// there.
pub(super) fn ask_gate(machine: &mut Machine<'_>, gate: GateCall, now: UtcMillis) {
    let rng = &mut machine.rng;
    let timeout = machine.plan.settings.waves.gate_timeout;
    let quick = rng.millis(0, 2_000).min(timeout);
    let (wait, answer) = match rng.between(0, 3) {
        _ if !rng.permille(machine.plan.rough.gate_no) => (quick, Ok(())),
        0 => (timeout, Err("took longer than its time".to_owned())),
        1 => (Duration::ZERO, Err("cannot be started".to_owned())),
        _ => (quick, Err("not yet".to_owned())),
    };
    machine.say(|| format!("the gate is asked about {}: {answer:?}", gate.text()));
    machine.flights.push(Flight {
        at: now + wait,
        stage: Stage::Gate(gate, answer),
        orphaned: false,
    });
}

fn hear_gate(machine: &mut Machine<'_>, gate: GateCall, answer: Result<(), String>) {
    let now = machine.moment();
    machine.facts.gate_said(gate.text(), answer.is_ok(), now);
    machine.say(|| format!("the gate says {answer:?}"));
    let moment = machine.cloud.moment();
    if let Some(daemon) = machine.daemon.as_mut() {
        daemon.dispatcher.gate_said(gate.answered(answer), moment);
        daemon.policy.answer_taken();
        machine.wake_at = Some(machine.cloud.now());
        machine.idle_rounds = 0;
    }
}

pub(super) async fn fly(machine: &mut Machine<'_>, index: usize) -> Result<(), Broken> {
    let flight = machine.flights.swap_remove(index);
    match flight.stage {
        Stage::Out(task) => carry_out(machine, task, flight.orphaned).await,
        Stage::Back(finished) => deliver(machine, finished).await,
        Stage::Unsent(batch) => return_unsent(machine, batch).await,
        Stage::Gate(gate, answer) => {
            hear_gate(machine, gate, answer);
            Ok(())
        }
    }
}

/// A call reaches the cloud.
async fn carry_out(machine: &mut Machine<'_>, task: Task, orphaned: bool) -> Result<(), Broken> {
    machine.calls += 1;
    if machine.end_at == Some(Point::Call(machine.calls)) {
        return crash(machine, "before a call arrives").await;
    }
    let now = machine.moment();
    let batch = match &task {
        Task::Submit { batch, .. } => {
            machine.facts.arrives(&batch.target, now)?;
            Some(batch.id.0)
        }
        Task::Prepare { .. } | Task::Track { .. } | Task::Look { .. } | Task::List { .. } => None,
    };
    let finished = task.run().await;
    let delay = machine.cloud.take_delay();
    machine.say(|| format!("at the cloud: {}", describe(&finished)));
    machine.summary.submits += u64::from(batch.is_some());
    attribute(machine, batch)?;
    if orphaned {
        return Ok(());
    }
    let at = machine.now() + delay + machine.rng.millis(0, machine.plan.rough.way_max_ms);
    machine.flights.push(Flight {
        at,
        stage: Stage::Back(finished),
        orphaned,
    });
    if machine.end_at == Some(Point::Answer(machine.calls)) {
        crash(machine, "between a call and its answer").await?;
    }
    Ok(())
}

/// Takes what the cloud has begun since the last time, and what it will, each for the batch
/// whose call it was: `batch` for what has not been heard of yet.
pub(super) fn attribute(machine: &mut Machine<'_>, batch: Option<i64>) -> Result<(), Broken> {
    let mut denied: BTreeSet<ServerId> = BTreeSet::new();
    for act in machine.cloud.late_acts(machine.late_seen) {
        if let (Entry::Vacant(call), Some(batch)) = (machine.called.entry(act.batch.clone()), batch)
        {
            call.insert(batch);
        }
        if machine.called.get(&act.batch).copied() == batch {
            denied.insert(act.server_id);
        }
    }
    machine.late_seen = machine.cloud.acted_late();
    if let Some(batch) = batch {
        machine.facts.denied(batch, &denied);
    }
    let mut done: BTreeMap<i64, BTreeSet<ServerId>> = BTreeMap::new();
    for entry in machine.cloud.ledger_from(machine.ledger_seen) {
        machine.ledger_seen += 1;
        machine.say(|| format!("the cloud begins {} of {}", entry.action, entry.server_id));
        let of = machine.called.get(&entry.batch).copied().or(batch);
        let Some(of) = of else {
            return Err(Broken(format!(
                "the cloud acted on {} and nobody asked for it",
                entry.server_id
            )));
        };
        machine.called.insert(entry.batch, of);
        done.entry(of).or_default().insert(entry.server_id);
    }
    done.iter()
        .try_for_each(|(batch, servers)| machine.facts.carried_out(*batch, servers))
}

/// An answer reaches the daemon; as in `daemon::run`, a round follows.
async fn deliver(machine: &mut Machine<'_>, finished: Finished) -> Result<(), Broken> {
    machine.say(|| format!("answer: {}", describe(&finished)));
    if is_about_key(&finished) {
        // Nobody asks before the key has rested.
        machine.facts.disturbed();
    }
    let mut asked_to_wait = None;
    if let Finished::Submitted { batch, answer, .. } = &finished {
        machine.facts.told(batch.id.0, answer);
        asked_to_wait = Some((batch.id.0, retry_after(answer)));
    }
    let Some(daemon) = machine.daemon.as_mut() else {
        return Ok(());
    };
    let outcome = daemon
        .dispatcher
        .finish(finished, machine.cloud.moment())
        .await;
    daemon.policy.answer_taken();
    machine.learn().await?;
    if machine.fuse.is_blown() {
        return crash(machine, "before a commit, after an answer").await;
    }
    if let Err(error) = outcome {
        return Err(Broken(format!("an answer ends the daemon: {error}")));
    }
    machine.idle_rounds = 0;
    machine.wake_at = Some(machine.cloud.now());
    if let Some((batch, wait)) = asked_to_wait {
        let is_plain = machine.cloud.clock() == 0 && machine.plan.rough.lock == 0;
        machine
            .facts
            .asked_to_wait(batch, wait.filter(|_| is_plain), machine.moment());
    }
    Ok(())
}

/// The daemon learns of a call that it has not begun.
async fn return_unsent(machine: &mut Machine<'_>, batch: Batch) -> Result<(), Broken> {
    machine.say(|| format!("not begun: batch {}", batch.id));
    machine.facts.not_sent(batch.id.0);
    let now = machine.cloud.moment();
    let Some(daemon) = machine.daemon.as_mut() else {
        return Ok(());
    };
    daemon.dispatcher.not_begun(batch, now);
    let outcome = daemon.dispatcher.save_new(now).await;
    machine.learn().await?;
    if machine.fuse.is_blown() {
        return crash(machine, "before a commit, with a call not begun").await;
    }
    machine.wake_at = Some(machine.cloud.now());
    outcome.map_err(|error| Broken(format!("a call not begun ends the daemon: {error}")))
}

/// The daemon is gone from one moment to the next. A call that has left may still arrive.
pub(super) async fn crash(machine: &mut Machine<'_>, how: &str) -> Result<(), Broken> {
    machine.say(|| format!("the daemon dies {how}"));
    machine.summary.crashes += 1;
    machine.learn().await?;
    machine.facts.crashed();
    for mut flight in std::mem::take(&mut machine.flights) {
        let is_submit = matches!(flight.stage, Stage::Out(Task::Submit { .. }));
        if is_submit && (flight.orphaned || machine.rng.permille(500)) {
            flight.orphaned = true;
            machine.flights.push(flight);
        }
    }
    if let Some(daemon) = machine.daemon.take() {
        daemon.end().await;
    }
    machine.fuse.replace();
    machine.is_halting = false;
    let pause = if machine.rng.permille(700) {
        0
    } else {
        machine.rng.between(0, 20_000)
    };
    machine.wake_at = Some(machine.now() + Duration::from_millis(pause));
    super::copies::copy_or_restore(machine).await
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
