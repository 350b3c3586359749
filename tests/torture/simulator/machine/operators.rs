//! What the people who run the machine do to the daemon beside killing it: new settings and
//! secrets, an orderly stop, a prune, a second daemon.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Machine, Stage};
use crate::simulator::Broken;
use crate::simulator::daemon::{Daemon, Secrets};
use crate::simulator::draw::SETTLE_MORE;
use poweryard::daemon::{Finished, ReloadError, Stop, StopStep, Unsaved};
use poweryard::settings::{Settings, TargetSettings};
use poweryard::store::{QueueLock, StoreError};

impl Machine<'_> {
    /// One of these acts.
    pub(super) async fn operate(&mut self) -> Result<(), Broken> {
        match self.rng.between(0, 11) {
            10 | 11 => self.release().await,
            0..=3 => {
                if self.rng.permille(250) {
                    self.set_secrets(match self.secrets {
                        Secrets::Right => Secrets::Wrong,
                        Secrets::Wrong => Secrets::Right,
                    });
                }
                self.vary_settings();
                self.reload().await
            }
            4..=6 => {
                self.ask_to_stop();
                Ok(())
            }
            7 | 8 => self.prune().await,
            _ => self.start_another(),
        }
    }

    /// Takes note of how long wrong ones were there.
    pub(super) fn set_secrets(&mut self, secrets: Secrets) {
        let now = self.now();
        if self.secrets == Secrets::Wrong {
            self.wrong_for = self.wrong_for.max(now.since(self.secrets_since));
        }
        self.secrets = secrets;
        self.secrets_since = now;
    }

    /// Limits and times that may change at any moment. No settling time gets shorter: how late the
    /// cloud acts was drawn by it.
    fn vary_settings(&mut self) {
        let mut settings: Settings = self.plan.settings.clone();
        for (target, drawn) in settings
            .targets
            .iter_mut()
            .zip(self.plan.settle_times.clone())
        {
            self.vary(target, drawn);
        }
        settings.batch.linger = self.rng.millis(0, 300);
        self.plan.settings = settings;
    }

    fn vary(&mut self, target: &mut TargetSettings, drawn: Duration) {
        let rng = &mut self.rng;
        target.submits_per_minute = rng.between(3, 50) as u32;
        target.submits_open_max = rng.between(1, 16) as u32;
        target.batch_servers_max = rng.between(1, 20) as u32;
        target.first_look = rng.millis(50, 4_000);
        let most_ms = u64::try_from(SETTLE_MORE.as_millis()).unwrap_or(0);
        target.settle_time = drawn + rng.millis(0, most_ms);
    }

    /// Has the daemon, if there is one, go on with the present settings and secrets. Whatever calls
    /// are being made.
    pub(super) async fn reload(&mut self) -> Result<(), Broken> {
        let secrets = self.secrets;
        self.say(|| format!("reload, with {secrets:?} secrets"));
        self.facts.disturbed();
        // New secrets are tried at once.
        self.facts.asked_until.clear();
        if self.is_stopping() {
            return Ok(());
        }
        let Some(daemon) = self.daemon.as_mut() else {
            return Ok(());
        };
        let outcome = daemon
            .reload(&self.plan.settings, secrets, &self.cloud)
            .await;
        self.learn().await?;
        if self.fuse.is_blown() {
            return self.crash("before a commit, in a reload").await;
        }
        self.wake_at = Some(self.now());
        self.idle_rounds = 0;
        match outcome {
            Ok(()) => {
                self.facts.reloaded(&self.plan.limits());
                Ok(())
            }
            // The old ones stay; the next start takes these.
            Err(ReloadError::Store(error)) if error.is_passing() => {
                self.say(|| format!("the reload fails: {error}"));
                Ok(())
            }
            Err(error) => Err(Broken(format!("a reload is refused: {error}"))),
        }
    }

    /// A SIGTERM: while the daemon waits, or in the middle of its next round.
    fn ask_to_stop(&mut self) {
        if self.daemon.is_none() || self.is_stopping() {
            return;
        }
        if self.rng.permille(500) {
            self.is_halting = true;
            self.wake_at = Some(self.now());
        } else {
            self.halt();
            self.begin_stop();
        }
    }

    /// From now on the daemon makes no intent and begins no call.
    pub(super) fn halt(&mut self) {
        if let Some(daemon) = self.daemon.as_ref() {
            daemon.dispatcher.halt().store(true, Ordering::SeqCst);
        }
    }

    pub(super) fn is_halted(&self) -> bool {
        let is_halted = |daemon: &Daemon| daemon.dispatcher.halt().load(Ordering::SeqCst);
        self.daemon.as_ref().is_some_and(is_halted)
    }

    /// Reads are cut short; submits are waited for.
    pub(super) fn begin_stop(&mut self) {
        self.say(|| "the daemon is asked to stop".to_owned());
        self.is_halting = false;
        if let Some(daemon) = self.daemon.as_mut() {
            daemon.stop = Some(Stop::default());
        }
        let is_waited_for = |stage: &Stage| match stage {
            Stage::Out(task) => task.is_waited_for(),
            Stage::Back(finished) => matches!(finished, Finished::Submitted { .. }),
            Stage::Unsent(_) => true,
        };
        self.flights
            .retain(|flight| flight.orphaned || is_waited_for(&flight.stage));
        self.wake_at = Some(self.now());
    }

    /// The next step of a stop.
    pub(super) async fn go_on_stopping(&mut self) -> Result<(), Broken> {
        let calls = self.flights.iter().filter(|flight| !flight.orphaned);
        let calls = calls.count();
        let moment = self.cloud.moment();
        let Some(daemon) = self.daemon.as_mut() else {
            return Ok(());
        };
        let Some(stop) = daemon.stop.as_mut() else {
            return Ok(());
        };
        match stop.next(calls, daemon.dispatcher.unsaved(), moment.steady) {
            // The answer wakes it.
            StopStep::AwaitCalls => self.wake_at = None,
            StopStep::End => return self.end_stop(true).await,
            StopStep::Save => {
                let saved = daemon.dispatcher.save_answers(moment.utc).await;
                let left = daemon.dispatcher.unsaved_submits();
                let after = stop.after_failed_save(left, moment.steady);
                self.learn().await?;
                if self.fuse.is_blown() {
                    return self.crash("before a commit, while stopping").await;
                }
                let now = self.now();
                match after {
                    _ if saved.is_ok() => self.wake_at = Some(now),
                    Unsaved::TryAgain(wait) => self.wake_at = Some(now + wait),
                    Unsaved::Leave => return self.end_stop(true).await,
                    Unsaved::GiveUp => return self.end_stop(false).await,
                }
            }
        }
        Ok(())
    }

    /// The process ends, in order or with an error.
    async fn end_stop(&mut self, in_order: bool) -> Result<(), Broken> {
        if let Some(daemon) = self.daemon.as_ref().filter(|_| in_order) {
            let ended = daemon.end_epoch().await;
            self.learn().await?;
            if self.fuse.is_blown() {
                return self.crash("before a commit, at the end of a stop").await;
            }
            match ended {
                Err(error) if !error.is_passing() => {
                    return Err(Broken(format!("a stop fails: {error}")));
                }
                _ => {}
            }
        }
        self.say(|| "the daemon has stopped".to_owned());
        self.fuse.replace();
        self.summary.stops += 1;
        self.facts.crashed();
        if let Some(daemon) = self.daemon.take() {
            daemon.end().await;
        }
        let pause = if self.rng.permille(500) {
            Duration::ZERO
        } else {
            self.rng.millis(0, 60_000)
        };
        self.wake_at = Some(self.now() + pause);
        self.copy_or_restore().await
    }

    /// Somebody prunes what has ended, however young it is.
    async fn prune(&mut self) -> Result<(), Broken> {
        let age = self.rng.millis(0, 120_000);
        let now = self.cloud.moment().utc;
        let cutoff = now.before(age);
        let Some(daemon) = self.daemon.as_ref().filter(|daemon| daemon.stop.is_none()) else {
            return Ok(());
        };
        let pruned = daemon.prune(cutoff, now).await;
        self.learn().await?;
        if self.fuse.is_blown() {
            return self.crash("before a commit, in a prune").await;
        }
        match pruned {
            Ok(pruned) => self.say(|| {
                format!(
                    "pruned: {} requests, {} batches",
                    pruned.requests, pruned.batches
                )
            }),
            Err(error) if error.is_passing() => self.say(|| format!("the prune fails: {error}")),
            Err(error) => return Err(Broken(format!("a prune fails for good: {error}"))),
        }
        self.acted = true;
        Ok(())
    }

    /// Somebody starts a second daemon on the same queue, by its name or by another.
    fn start_another(&mut self) -> Result<(), Broken> {
        if self.daemon.is_none() {
            return Ok(());
        }
        let alias = self.path.with_file_name("alias.db");
        let path = match self.rng.between(0, 2) {
            0 => self.path.clone(),
            1 => made(&alias, || std::os::unix::fs::symlink(&self.path, &alias))?,
            _ => made(&alias, || std::fs::hard_link(&self.path, &alias))?,
        };
        let taken = QueueLock::take(&path, self.cloud.moment().utc);
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
}

/// The other name, once it leads to the queue.
fn made(alias: &Path, make: impl FnOnce() -> io::Result<()>) -> Result<PathBuf, Broken> {
    let _ = std::fs::remove_file(alias);
    make().map_err(|error| Broken(format!("cannot make {}: {error}", alias.display())))?;
    Ok(alias.to_owned())
}
