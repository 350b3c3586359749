//! What the people who run the machine do to the daemon beside killing it: new settings and
//! secrets, an orderly stop, a prune, a second daemon.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Machine, Stage};
use crate::simulator::Broken;
use crate::simulator::daemon::{Daemon, Secrets};
use crate::simulator::draw::{SETTLE_MORE, large};
use poweryard::daemon::{Finished, ReloadError, Stop, StopStep, Unsaved};
use poweryard::settings::{Settings, TargetSettings, WavesSettings};
use poweryard::store::{QueueLock, StoreError};

/// One of these acts.
pub(super) async fn operate(machine: &mut Machine<'_>) -> Result<(), Broken> {
    match machine.rng.between(0, 11) {
        10 | 11 => super::copies::release(machine).await,
        0..=3 => {
            if machine.rng.permille(250) {
                set_secrets(
                    machine,
                    match machine.secrets {
                        Secrets::Right => Secrets::Wrong,
                        Secrets::Wrong => Secrets::Right,
                    },
                );
            }
            vary_settings(machine)?;
            reload(machine).await
        }
        4..=6 => {
            ask_to_stop(machine);
            Ok(())
        }
        7 | 8 => prune(machine).await,
        _ => start_another(machine),
    }
}

/// Takes note of how long wrong ones were there.
pub(super) fn set_secrets(machine: &mut Machine<'_>, secrets: Secrets) {
    let now = machine.now();
    if machine.secrets == Secrets::Wrong {
        machine.wrong_for = machine.wrong_for.max(now.since(machine.secrets_since));
    }
    machine.secrets = secrets;
    machine.secrets_since = now;
}

/// Limits and times that may change at any moment. No settling time gets shorter: how late the
/// cloud acts was drawn by it.
fn vary_settings(machine: &mut Machine<'_>) -> Result<(), Broken> {
    let mut settings: Settings = machine.plan.settings.clone();
    for (target, drawn) in settings
        .targets
        .iter_mut()
        .zip(machine.plan.settle_times.clone())
    {
        vary(machine, target, drawn);
    }
    settings.batch.linger = machine.rng.millis(0, 300);
    machine.plan.settings = settings;
    vary_guards(machine)
}

/// Other numbers for the guards, other windows, another gate or none. A guard's span stays: batches
/// are kept for as long as it is.
fn vary_guards(machine: &mut Machine<'_>) -> Result<(), Broken> {
    let utc = machine.cloud.moment().utc;
    let rng = &mut machine.rng;
    let plan = &mut machine.plan;
    for target in &mut plan.settings.targets {
        for (_, guard) in &mut target.guards {
            guard.servers = rng.between(1, 8) as u32;
        }
    }
    for index in 0..plan.calendars.len() {
        if plan.calendars[index].is_any() && rng.permille(300) {
            large::set_calendar(rng, plan, index, utc)?;
        }
    }
    if plan.rough.orders > 0 && rng.permille(200) {
        plan.settings.waves = if plan.settings.waves.gate.is_empty() {
            large::gate(rng)
        } else {
            WavesSettings::default()
        };
    }
    Ok(())
}

fn vary(machine: &mut Machine<'_>, target: &mut TargetSettings, drawn: Duration) {
    let rng = &mut machine.rng;
    target.submits_per_minute = rng.between(3, 50) as u32;
    target.submits_open_max = rng.between(1, 16) as u32;
    target.batch_servers_max = rng.between(1, 20) as u32;
    target.first_look = rng.millis(50, 4_000);
    let most_ms = u64::try_from(SETTLE_MORE.as_millis()).unwrap_or(0);
    target.settle_time = drawn + rng.millis(0, most_ms);
}

/// Has the daemon, if there is one, go on with the present settings and secrets. Whatever calls
/// are being made.
pub(super) async fn reload(machine: &mut Machine<'_>) -> Result<(), Broken> {
    let secrets = machine.secrets;
    machine.say(|| format!("reload, with {secrets:?} secrets"));
    machine.facts.disturbed();
    // New secrets are tried at once.
    machine.facts.asked_until.clear();
    if machine.is_stopping() {
        return Ok(());
    }
    let Some(daemon) = machine.daemon.as_mut() else {
        return Ok(());
    };
    let outcome = daemon
        .reload(&machine.plan.settings, secrets, &machine.cloud)
        .await;
    machine.learn().await?;
    if machine.fuse.is_blown() {
        return super::calls::crash(machine, "before a commit, in a reload").await;
    }
    machine.wake_at = Some(machine.now());
    machine.idle_rounds = 0;
    match outcome {
        Ok(()) => {
            machine.facts.reloaded(&machine.plan.limits());
            Ok(())
        }
        // The old ones stay, until the operator, who is told, tries it again.
        Err(ReloadError::Store(error)) if error.is_passing() => {
            machine.must_reload = true;
            machine.say(|| format!("the reload fails: {error}"));
            Ok(())
        }
        Err(error) => Err(Broken(format!("a reload is refused: {error}"))),
    }
}

/// A SIGTERM: while the daemon waits, or in the middle of its next round.
fn ask_to_stop(machine: &mut Machine<'_>) {
    if machine.daemon.is_none() || machine.is_stopping() {
        return;
    }
    if machine.rng.permille(500) {
        machine.is_halting = true;
        machine.wake_at = Some(machine.now());
    } else {
        halt(machine);
        begin_stop(machine);
    }
}

/// From now on the daemon makes no intent and begins no call.
pub(super) fn halt(machine: &mut Machine<'_>) {
    if let Some(daemon) = machine.daemon.as_ref() {
        daemon.dispatcher.halt().store(true, Ordering::SeqCst);
    }
}

pub(super) fn is_halted(machine: &Machine<'_>) -> bool {
    let is_halted = |daemon: &Daemon| daemon.dispatcher.halt().load(Ordering::SeqCst);
    machine.daemon.as_ref().is_some_and(is_halted)
}

/// Reads are cut short; submits are waited for.
pub(super) fn begin_stop(machine: &mut Machine<'_>) {
    machine.say(|| "the daemon is asked to stop".to_owned());
    machine.is_halting = false;
    if let Some(daemon) = machine.daemon.as_mut() {
        daemon.stop = Some(Stop::default());
    }
    let is_waited_for = |stage: &Stage| match stage {
        Stage::Out(task) => task.is_waited_for(),
        Stage::Back(finished) => matches!(finished, Finished::Submitted { .. }),
        Stage::Unsent(_) => true,
        Stage::Gate(..) => false,
    };
    machine
        .flights
        .retain(|flight| flight.orphaned || is_waited_for(&flight.stage));
    machine.wake_at = Some(machine.now());
}

/// The next step of a stop.
pub(super) async fn go_on_stopping(machine: &mut Machine<'_>) -> Result<(), Broken> {
    let calls = machine.flights.iter().filter(|flight| !flight.orphaned);
    let calls = calls.count();
    let moment = machine.cloud.moment();
    let Some(daemon) = machine.daemon.as_mut() else {
        return Ok(());
    };
    let Some(stop) = daemon.stop.as_mut() else {
        return Ok(());
    };
    match stop.next(calls, daemon.dispatcher.unsaved(), moment.steady) {
        // The answer wakes it.
        StopStep::AwaitCalls => machine.wake_at = None,
        StopStep::End => return end_stop(machine, true).await,
        StopStep::Save => {
            let saved = daemon.dispatcher.save_answers(moment).await;
            let left = daemon.dispatcher.unsaved_submits();
            let after = stop.after_failed_save(left, moment.steady);
            machine.learn().await?;
            if machine.fuse.is_blown() {
                return super::calls::crash(machine, "before a commit, while stopping").await;
            }
            let now = machine.now();
            match after {
                _ if saved.is_ok() => machine.wake_at = Some(now),
                Unsaved::TryAgain(wait) => machine.wake_at = Some(now + wait),
                Unsaved::Leave => return end_stop(machine, true).await,
                Unsaved::GiveUp => return end_stop(machine, false).await,
            }
        }
    }
    Ok(())
}

/// The process ends, in order or with an error.
async fn end_stop(machine: &mut Machine<'_>, in_order: bool) -> Result<(), Broken> {
    if let Some(daemon) = machine.daemon.as_ref().filter(|_| in_order) {
        let ended = daemon.end_epoch().await;
        machine.learn().await?;
        if machine.fuse.is_blown() {
            return super::calls::crash(machine, "before a commit, at the end of a stop").await;
        }
        match ended {
            Err(error) if !error.is_passing() => {
                return Err(Broken(format!("a stop fails: {error}")));
            }
            _ => {}
        }
    }
    machine.say(|| "the daemon has stopped".to_owned());
    machine.fuse.replace();
    machine.summary.stops += 1;
    machine.facts.crashed();
    if let Some(daemon) = machine.daemon.take() {
        daemon.end().await;
    }
    let pause = if machine.rng.permille(500) {
        Duration::ZERO
    } else {
        machine.rng.millis(0, 60_000)
    };
    machine.wake_at = Some(machine.now() + pause);
    super::copies::copy_or_restore(machine).await
}

/// Somebody prunes what has ended, however young it is.
async fn prune(machine: &mut Machine<'_>) -> Result<(), Broken> {
    let age = machine.rng.millis(0, 120_000);
    let now = machine.cloud.moment().utc;
    let cutoff = now.before(age);
    let Some(daemon) = machine
        .daemon
        .as_ref()
        .filter(|daemon| daemon.stop.is_none())
    else {
        return Ok(());
    };
    let pruned = daemon.prune(cutoff, now).await;
    machine.learn().await?;
    if machine.fuse.is_blown() {
        return super::calls::crash(machine, "before a commit, in a prune").await;
    }
    match pruned {
        Ok(pruned) => machine.say(|| {
            format!(
                "pruned: {} requests, {} batches",
                pruned.requests, pruned.batches
            )
        }),
        Err(error) if error.is_passing() => machine.say(|| format!("the prune fails: {error}")),
        Err(error) => return Err(Broken(format!("a prune fails for good: {error}"))),
    }
    machine.acted = true;
    Ok(())
}

/// Somebody starts a second daemon on the same queue, by its name or by another.
fn start_another(machine: &mut Machine<'_>) -> Result<(), Broken> {
    if machine.daemon.is_none() {
        return Ok(());
    }
    let alias = machine.path.with_file_name("alias.db");
    let path = match machine.rng.between(0, 2) {
        0 => machine.path.clone(),
        1 => made(&alias, || std::os::unix::fs::symlink(&machine.path, &alias))?,
        _ => made(&alias, || std::fs::hard_link(&machine.path, &alias))?,
    };
    let taken = QueueLock::take(&path, machine.cloud.moment().utc);
    let _ = std::fs::remove_file(&alias);
    match taken {
        Err(StoreError::DaemonRuns { .. }) => Ok(()),
        Err(error) => Err(Broken(format!(
            "a second daemon ends for another reason: {error}"
        ))),
        Ok(_) => Err(Broken(format!(
            "a second daemon starts on the same queue as {}",
            path.display()
        ))),
    }
}

/// The other name, once it leads to the queue.
fn made(alias: &Path, make: impl FnOnce() -> io::Result<()>) -> Result<PathBuf, Broken> {
    let _ = std::fs::remove_file(alias);
    make().map_err(|error| Broken(format!("cannot make {}: {error}", alias.display())))?;
    Ok(alias.to_owned())
}
