//! The daemon: takes requests in, submits batches, follows them, stores outcomes; wakes, stops and
//! reports.
//!
//! `Dispatcher` decides and writes, one step at a time; its state in memory is only what is being
//! done at this moment. `Task` is one call to a cloud. `run` is the loop that carries tasks between
//! the two. A timer, a new row and a restart after `kill -9` all run the same round, so there is no
//! code that only runs after a crash. Knows no wire formats and no SQL.
//!
//! `round` has the order of the passes: the take-in (`intake`), orders with waves (`orders`), the
//! claim (`submit`), the calls that ask what became of batches (`follow`), the queue's upkeep. What
//! follows from an ended call is in `answers`. Both kinds of passes work over values that know
//! nothing of them: `target` (is it well? is its key accepted?), `holds`, `guards`, `windows`,
//! `ledger` (what is stored and told), `open_batches`.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{error, info, warn};

use crate::model::Batch;
use crate::settings::Settings;
use crate::store::{QueueLock, Store, StoreError};
use systemd::Watchdog;

mod answers;
mod clock;
mod clock_check;
mod connect;
mod dry_run;
mod follow;
mod forecast;
mod guards;
mod held;
mod holds;
mod intake;
mod inventory;
mod ledger;
mod loop_policy;
mod open_batches;
mod orders;
mod reload;
mod report;
mod round;
mod submit;
pub(crate) mod systemd;
mod target;
mod task;
mod unknown_targets;
mod upkeep;
mod windows;

pub use clock_check::{beyond as clock_doubt, now};
pub use connect::{Clouds, ConnectError, connect, connect_all, key_of};
pub use dry_run::dry_run;
pub use forecast::{ForecastQuery, NewShare, Outlook, forecast, labels_leaving};
pub use ledger::Observers;
pub use loop_policy::{LoopPolicy, SAFETY_INTERVAL, Stop, StopStep, Unsaved};
pub use reload::{Reload, ReloadError};
pub use round::Dispatcher;
pub(crate) use target::refusals;
pub use task::{Begun, Finished, GateCall, GateSaid, Round, Task};

/// Why the daemon ended other than by being asked to.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The queue cannot be used, and waiting will not help.
    #[error("cannot use the queue {path}")]
    Store {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
}

/// What the daemon is told and tells while it runs. By default neither.
#[derive(Debug, Default)]
pub struct Links {
    /// New settings come this way.
    pub reloads: Option<mpsc::Receiver<Reload>>,
    /// Told what is done.
    pub observers: Observers,
}

/// Runs the daemon until `stop` resolves.
///
/// # Errors
/// When the queue is missing, foreign, newer, damaged, read-only, or another daemon runs on it.
pub async fn run(
    settings: &Settings,
    clouds: Clouds,
    links: Links,
    stop: impl Future<Output = ()>,
) -> Result<(), DaemonError> {
    let path = settings.queue.database.as_path();
    let serve = serve(settings, clouds, links, stop);
    // Boxed: a caller that runs a daemon beside other things would carry its whole state.
    Box::pin(serve).await.map_err(|source| DaemonError::Store {
        path: path.to_owned(),
        source,
    })
}

async fn serve(
    settings: &Settings,
    clouds: Clouds,
    links: Links,
    stop: impl Future<Output = ()>,
) -> Result<(), StoreError> {
    let path = settings.queue.database.as_path();
    let mut lock = QueueLock::take(path, now().utc)?;
    let mut stop = std::pin::pin!(stop);
    if !clock_check::wait(path, &mut lock, stop.as_mut()).await {
        return Ok(());
    }
    let ready = wait_until_ready(settings, &clouds, stop.as_mut()).await?;
    let Some((store, mut dispatcher)) = ready else {
        info!("asked to stop before the queue could be used");
        return Ok(());
    };
    dispatcher.observe(links.observers);
    info!(queue = %path.display(), targets = settings.targets.len(), "poweryard {} serves {}", env!("CARGO_PKG_VERSION"), path.display());
    let begun = Loop {
        dispatcher,
        tasks: JoinSet::new(),
        followers: Vec::new(),
        policy: LoopPolicy::default(),
        reloads: links.reloads.unwrap_or_else(no_reloads),
        watchdog: Watchdog::of_the_unit(),
        is_announced: false,
    };
    let outcome = begun.run(&store, stop).await;
    let outcome = match outcome {
        Ok(()) => end_epoch(&store).await,
        Err(error) => Err(store.explain_damage(error).await),
    };
    if outcome.is_err() {
        // It may not be our queue any more: then closing it would write into somebody else's.
        std::mem::forget(Arc::clone(&store));
    }
    close(store).await;
    drop(lock);
    outcome
}

fn no_reloads() -> mpsc::Receiver<Reload> {
    let (_, reloads) = mpsc::channel(1);
    reloads
}

async fn begin(
    settings: &Settings,
    clouds: &Clouds,
) -> Result<(Arc<Store>, Dispatcher), StoreError> {
    let store = Arc::new(Store::open(&settings.queue.database).await?);
    if let Some(restored) = store.begin_epoch(now().utc).await? {
        report::restored(&restored);
    }
    let dispatcher = Dispatcher::new(Arc::clone(&store), settings, clouds.clone(), now()).await?;
    Ok((store, dispatcher))
}

/// Closing the queue tidies up the `-wal`, if no producer has the file open.
async fn close(store: Arc<Store>) {
    if let Some(store) = Arc::into_inner(store)
        && let Err(error) = store.close().await
    {
        warn!(
            "the queue could not be closed cleanly: {}",
            report::chain(&error)
        );
    }
}

/// Notes how far the queue has come, so that an older copy is known for one.
async fn end_epoch(store: &Store) -> Result<(), StoreError> {
    match store.end_epoch().await {
        // What was done is stored; a later start finds the epoch as it is.
        Err(error) if error.is_passing() => {
            warn!("{}", report::chain(&error));
            Ok(())
        }
        ended => ended,
    }
}

/// Begins as soon as the queue can be used. None if a stop is asked for before that.
///
/// # Errors
/// Those that no waiting fixes.
async fn wait_until_ready(
    settings: &Settings,
    clouds: &Clouds,
    mut stop: Pin<&mut impl Future<Output = ()>>,
) -> Result<Option<(Arc<Store>, Dispatcher)>, StoreError> {
    loop {
        let begun = tokio::select! {
            biased;
            () = &mut stop => return Ok(None),
            begun = begin(settings, clouds) => begun,
        };
        match begun {
            // A producer that inserts a million rows at once holds its lock for longer than we
            // wait.
            Err(StoreError::Busy) => {
                let path = settings.queue.database.display();
                warn!("{path} is locked by another program; waiting for it");
                systemd::status("waiting for another program to unlock the queue");
                systemd::extend();
            }
            begun => return begun.map(Some),
        }
    }
}

/// How a task ended.
enum TaskEnd {
    Finished(Finished),
    /// The intent of this call is stored, and a stop was asked for before it began.
    NotBegun(Batch),
    GateSaid(GateSaid),
}

async fn carry_out(task: Task, halt: Arc<AtomicBool>) -> TaskEnd {
    match task.begin(halt.load(Ordering::SeqCst)) {
        Begun::Leaves(task) => TaskEnd::Finished(task.run().await),
        Begun::Stays(batch) => TaskEnd::NotBegun(batch),
    }
}

struct Loop {
    dispatcher: Dispatcher,
    tasks: JoinSet<TaskEnd>,
    /// Reads that a stop may cut short; submit calls are waited for.
    followers: Vec<AbortHandle>,
    /// What to do next.
    policy: LoopPolicy,
    /// New settings.
    reloads: mpsc::Receiver<Reload>,
    /// Fed after each completed step, also one in vain: a database that fails is waited for, not a
    /// reason to be killed.
    watchdog: Watchdog,
    /// systemd was told that work can flow.
    is_announced: bool,
}

/// Why no further task was taken in.
enum TakeInError {
    Store(StoreError),
    Panicked(Box<dyn std::any::Any + Send>),
}

impl Loop {
    async fn run(
        mut self,
        store: &Arc<Store>,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), StoreError> {
        let mut changes = store.changes();
        loop {
            let Some(pause) = self.round(stop.as_mut()).await? else {
                break;
            };
            let pause = pause.min(self.watchdog.patience());
            self.tell_systemd();
            self.watchdog.feed();
            // In this order: answers that wait to be stored take turns with the rounds, in which
            // calls leave.
            tokio::select! {
                biased;
                () = &mut stop => {
                    self.dispatcher.halt().store(true, Ordering::SeqCst);
                    break;
                }
                Some(reload) = self.reloads.recv() => self.reload(reload).await,
                Some(ended) = self.tasks.join_next() => self.finish_tasks(ended).await?,
                () = changes.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        systemd::stopping();
        changes.end().await;
        self.finish().await
    }

    /// Ready is said once, after the first round that the database let through.
    fn tell_systemd(&mut self) {
        if self.policy.is_in_trouble() {
            systemd::status("nothing is sent: the database fails, see the log");
            if !self.is_announced {
                systemd::extend();
            }
            return;
        }
        systemd::status(&self.dispatcher.status_line());
        if !self.is_announced {
            systemd::ready();
            self.is_announced = true;
        }
    }

    /// One round, and how long to sleep if nothing happens; none once a stop is asked for. From
    /// that moment on no intent is made, and no call begins.
    async fn round(
        &mut self,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Option<Duration>, StoreError> {
        let now = now();
        let halt = self.dispatcher.halt();
        let mut stopped = false;
        let round = {
            let mut round = std::pin::pin!(self.dispatcher.round(now));
            loop {
                tokio::select! {
                    biased;
                    () = &mut stop, if !stopped => {
                        stopped = true;
                        halt.store(true, Ordering::SeqCst);
                    }
                    round = &mut round => break round,
                }
            }
        };
        round.tasks.into_iter().for_each(|task| self.start(task));
        round.gates.into_iter().for_each(|gate| self.ask(gate));
        let pause = match round.trouble {
            None => {
                if self.policy.is_in_trouble() {
                    info!("the database works again");
                }
                self.policy.after_round(round.wake_at, now.utc)
            }
            Some(error) => self.wait_for_database(error)?,
        };
        Ok((!stopped).then_some(pause))
    }

    async fn reload(&mut self, reload: Reload) {
        match self.dispatcher.reload(reload, now().utc).await {
            Ok(()) => info!("the new settings are in force"),
            Err(error) => error!(
                "the new settings are refused; the old ones stay in force: {}",
                report::chain(&error)
            ),
        }
    }

    /// How long to wait before a failure of the database is tried again.
    fn wait_for_database(&mut self, error: StoreError) -> Result<Duration, StoreError> {
        let is_news = !self.policy.is_in_trouble();
        let Some(wait) = self.policy.after_failed_round(&error) else {
            return Err(error);
        };
        if is_news {
            let unsaved = self.dispatcher.unsaved();
            warn!(
                answers.unsaved = unsaved,
                "{}; nothing is sent until it works again",
                report::chain(&error)
            );
        }
        Ok(wait)
    }

    fn start(&mut self, task: Task) {
        let is_read = !task.is_waited_for();
        let handle = self.tasks.spawn(carry_out(task, self.dispatcher.halt()));
        if is_read {
            self.followers.retain(|follower| !follower.is_finished());
            self.followers.push(handle);
        }
    }

    /// A stop does not wait for its answer.
    fn ask(&mut self, gate: GateCall) {
        let asked = async { TaskEnd::GateSaid(gate.run().await) };
        self.followers.push(self.tasks.spawn(asked));
    }

    /// Stores what has ended: this one, and a few more that have, together. What was taken in before
    /// something went wrong is stored all the same.
    async fn finish_tasks(
        &mut self,
        ended: Result<TaskEnd, tokio::task::JoinError>,
    ) -> Result<(), StoreError> {
        let taken_in = self.take_in_tasks(ended).await;
        let stored = self.dispatcher.save_new(now()).await;
        self.watchdog.feed();
        match taken_in {
            // A panicking task ends the process, so that systemd sees it.
            Err(TakeInError::Panicked(panic)) => std::panic::resume_unwind(panic),
            Err(TakeInError::Store(error)) => Err(error),
            Ok(()) => stored,
        }
    }

    async fn take_in_tasks(
        &mut self,
        ended: Result<TaskEnd, tokio::task::JoinError>,
    ) -> Result<(), TakeInError> {
        let mut next = Some(ended);
        while let Some(ended) = next {
            match ended {
                Ok(TaskEnd::Finished(finished)) => self
                    .dispatcher
                    .take_in(finished, now())
                    .await
                    .map_err(TakeInError::Store)?,
                Ok(TaskEnd::NotBegun(batch)) => self.dispatcher.not_begun(batch, now()),
                Ok(TaskEnd::GateSaid(said)) => self.dispatcher.gate_said(said, now()),
                Err(error) if error.is_panic() => {
                    return Err(TakeInError::Panicked(error.into_panic()));
                }
                Err(_cut_short) => {}
            }
            // Behind a lock each of them may take seconds.
            self.watchdog.feed();
            self.policy.answer_taken();
            next = if self.policy.takes_answers() {
                self.tasks.try_join_next()
            } else {
                None
            };
        }
        Ok(())
    }

    /// After a request to stop: no new call; the calls in flight and the writes of their answers
    /// are waited for.
    async fn finish(mut self) -> Result<(), StoreError> {
        info!(
            calls = self.dispatcher.open_calls(),
            "stopping: no new calls; waiting for the calls in progress"
        );
        self.followers.iter().for_each(AbortHandle::abort);
        let mut stop = Stop::default();
        loop {
            let calls = self.tasks.len();
            let unsaved = self.dispatcher.unsaved();
            match stop.next(calls, unsaved, now().steady) {
                StopStep::AwaitCalls => self.await_calls().await?,
                StopStep::Save => {
                    if !self.save(&stop).await? {
                        break;
                    }
                }
                StopStep::End => break,
            }
        }
        Ok(())
    }

    /// Waits until the calls that are being made have ended. Each ends within its request_timeout,
    /// which may be longer than the unit's TimeoutStopSec.
    async fn await_calls(&mut self) -> Result<(), StoreError> {
        let mut signs_of_life = tokio::time::interval(SAFETY_INTERVAL);
        while !self.tasks.is_empty() {
            tokio::select! {
                Some(ended) = self.tasks.join_next() => self.finish_tasks(ended).await?,
                _ = signs_of_life.tick() => {
                    systemd::extend();
                    self.watchdog.feed();
                }
            }
        }
        Ok(())
    }

    /// Stores the answers that wait, or waits a little where that fails. False if the stop goes on
    /// without them.
    async fn save(&mut self, stop: &Stop) -> Result<bool, StoreError> {
        systemd::extend();
        self.watchdog.feed();
        let Err(error) = self.dispatcher.save_answers(now()).await else {
            return Ok(true);
        };
        match stop.after_failed_save(self.dispatcher.unsaved_submits(), now().steady) {
            Unsaved::TryAgain(wait) => {
                tokio::time::sleep(wait).await;
                Ok(true)
            }
            Unsaved::Leave => {
                warn!(
                    "cannot store what was read last: {}; the next start reads it again",
                    report::chain(&error)
                );
                Ok(false)
            }
            Unsaved::GiveUp => {
                error!(
                    answers.unsaved = self.dispatcher.unsaved(),
                    "cannot store the last answers: {}; the next start looks at the servers instead",
                    report::chain(&error)
                );
                Err(error)
            }
        }
    }
}
