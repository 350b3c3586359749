//! What the people who run the machine do to the daemon beside killing it: new settings and
//! secrets, an orderly stop, a prune, a second daemon.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Machine, Stage};
use crate::daemon::{Finished, ReloadError, Task};
use crate::model::UtcMillis;
use crate::settings::{Settings, TargetSettings};
use crate::store::{QueueLock, StoreError};
use crate::torture::Broken;
use crate::torture::daemon::Secrets;
use crate::torture::draw::SETTLE_MORE;

/// As `daemon::run` waits for answers that cannot be stored.
const UNSAVED_PATIENCE: Duration = Duration::from_secs(30);
/// As it tries again meanwhile.
const TROUBLE_WAIT: Duration = Duration::from_millis(250);

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
                self.begin_stop();
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
        if self.stopping.is_some() {
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

    /// A SIGTERM: no new calls; reads are cut short; submits are waited for.
    fn begin_stop(&mut self) {
        if self.daemon.is_none() || self.stopping.is_some() {
            return;
        }
        self.say(|| "the daemon is asked to stop".to_owned());
        self.stopping = Some(self.now() + UNSAVED_PATIENCE + self.longest_call());
        let is_submit = |stage: &Stage| match stage {
            Stage::Out(task) => matches!(task, Task::Submit { .. }),
            Stage::Back(finished) => matches!(finished, Finished::Submitted { .. }),
        };
        self.flights
            .retain(|flight| flight.orphaned || is_submit(&flight.stage));
        self.wake_at = Some(self.now());
    }

    /// The next step of a stop: the process ends once every answer has come and is stored, or
    /// patience is over.
    pub(super) async fn finish_stop(&mut self, until: UtcMillis) -> Result<(), Broken> {
        if self.flights.iter().any(|flight| !flight.orphaned) {
            // The answer wakes it.
            self.wake_at = None;
            return Ok(());
        }
        let (now, moment) = (self.now(), self.cloud.moment().utc);
        let Some(daemon) = self.daemon.as_mut() else {
            return Ok(());
        };
        let saved = daemon.stop(moment).await;
        self.learn().await?;
        if self.fuse.is_blown() {
            return self.crash("before a commit, while stopping").await;
        }
        if saved.is_err() && now < until {
            self.wake_at = Some(now + TROUBLE_WAIT);
            return Ok(());
        }
        self.say(|| "the daemon has stopped".to_owned());
        self.stopping = None;
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
        self.wake_at = Some(now + pause);
        self.copy_or_restore().await
    }

    fn longest_call(&self) -> Duration {
        self.plan
            .settings
            .targets
            .iter()
            .map(|target| target.request_timeout)
            .max()
            .unwrap_or_default()
    }

    /// Somebody prunes what has ended, however young it is.
    async fn prune(&mut self) -> Result<(), Broken> {
        let age = self.rng.millis(0, 120_000);
        let now = self.cloud.moment().utc;
        let cutoff = now.before(age);
        let Some(daemon) = self.daemon.as_ref().filter(|_| self.stopping.is_none()) else {
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
