//! The driver: moves virtual time from event to event, lets the daemon take its steps, carries its
//! calls to the cloud and the answers back in any order, and ends it where the seed says. After
//! each step it has the facts checked.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::SqliteConnection;

use super::daemon::{Daemon, Fuse, Secrets};
use super::draw::Plan;
use super::facts::{Facts, Moment};
use super::producer::{self, Producers};
use super::rng::Rng;
use super::wire::Cloud;
use super::{Broken, Summary, audit, connect, rules, staff};
use poweryard::daemon::{Finished, GateCall, Round, SAFETY_INTERVAL, Task};
use poweryard::model::Batch;
use poweryard::model::{BatchState, JobId, UtcMillis};
use poweryard::settings::TargetSettings;
use poweryard::sim::World;

mod calls;
mod copies;
mod ending;
mod operators;
mod quiet;

/// When producers give up what does not expire by itself.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Steps after which a run is called endless.
const STEPS_MAX: u64 = 200_000;
/// Rounds in a row without any progress, within this span, after which the daemon is called
/// spinning.
const IDLE_ROUNDS_MAX: u32 = 60;
const IDLE_ROUNDS_SPAN: Duration = Duration::from_secs(120);
/// Deaths and locks in one run, at most.
const CRASHES_MAX: u64 = 60;
/// How often somebody sets the clock in one run, at most.
const CLOCK_STEPS_MAX: u64 = 4;
/// Of a thousand rounds in which nothing can be due, so many are made: the others would only cost
/// time, and they would find what nobody had set a time for.
const SAFETY_ROUNDS: u64 = 60;
/// How long a start waits for a lock before it tries again.
const START_AGAIN: Duration = Duration::from_secs(1);

/// Where exactly a daemon is to die, once, counted from the beginning of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    /// Before this commit.
    Commit(u64),
    /// Before this call reaches the cloud.
    Call(u64),
    /// After this call was carried out, before its answer arrives.
    Answer(u64),
}

/// A call on its way there or back.
struct Flight {
    at: UtcMillis,
    stage: Stage,
    /// Whoever made it is dead.
    orphaned: bool,
}

enum Stage {
    Out(Task),
    Back(Finished),
    /// A stop came before the call was begun.
    Unsent(Batch),
    /// The gate is asked, and this is what it will say.
    Gate(GateCall, Result<(), String>),
}

/// What may happen next.
enum Event {
    Round,
    Flight(usize),
    Act,
    Unlock,
    Late,
}

pub(super) struct Machine<'a> {
    plan: Plan,
    rng: Rng,
    path: PathBuf,
    cloud: Cloud,
    fuse: Arc<Fuse>,
    connection: SqliteConnection,
    producers: Producers,
    facts: Facts,
    daemon: Option<Daemon>,
    flights: Vec<Flight>,
    wake_at: Option<UtcMillis>,
    act_at: Option<UtcMillis>,
    locked_until: Option<UtcMillis>,
    end_at: Option<Point>,
    calls: u64,
    idle_rounds: u32,
    /// When the first of these was.
    idle_since: UtcMillis,
    /// Commits of the daemon, and the last entry of the audit, that are taken into account.
    seen: (u64, i64),
    /// Entries of the cloud's ledger that are taken into account.
    ledger_seen: usize,
    /// Of what it begins although it said otherwise, so much is taken into account.
    late_seen: usize,
    /// What the cloud calls the calls on which it acts, and the batches they were made for.
    called: HashMap<JobId, i64>,
    /// Steps of the clock so far.
    steps_of_clock: u64,
    secrets: Secrets,
    secrets_since: UtcMillis,
    /// The last reload failed while the queue was locked.
    must_reload: bool,
    /// The longest that the secrets were wrong without a break.
    wrong_for: Duration,
    /// Somebody asks the daemon to stop, at the latest after its next round.
    is_halting: bool,
    /// A producer has written since.
    acted: bool,
    /// The queue as somebody has copied it.
    copy: Option<copies::Copy>,
    summary: Summary,
    trace: &'a mut Option<Vec<String>>,
}

impl<'a> Machine<'a> {
    pub(super) async fn new(
        mut plan: Plan,
        rng: Rng,
        path: &Path,
        end_at: Option<Point>,
        trace: &'a mut Option<Vec<String>>,
    ) -> Result<Self, Broken> {
        plan.settings.queue.database = path.to_owned();
        let mut world = World::new(plan.scenario.clone());
        let begin = plan.begin;
        let listed = world
            .servers(begin)
            .into_iter()
            .map(|server| server.server_id)
            .collect();
        let of = |target: &TargetSettings| {
            let servers = world.server_ids(target.service).into_iter();
            servers
                .map(|server| (target.name.clone(), server))
                .collect::<Vec<_>>()
        };
        let servers = plan.settings.targets.iter().flat_map(of).collect();
        let fuse = Arc::new(Fuse::default());
        if let Some(Point::Commit(n)) = end_at {
            fuse.set(n.saturating_sub(1));
        }
        Ok(Self {
            facts: Facts::new(plan.limits().with_listed(&listed)),
            producers: Producers::new(servers, &plan.rough),
            cloud: Cloud::new(world, begin),
            connection: connect(path).await?,
            path: path.to_owned(),
            fuse,
            daemon: None,
            flights: Vec::new(),
            wake_at: Some(begin),
            act_at: Some(begin),
            locked_until: None,
            end_at,
            calls: 0,
            idle_rounds: 0,
            idle_since: begin,
            seen: (0, 0),
            ledger_seen: 0,
            late_seen: 0,
            called: HashMap::new(),
            steps_of_clock: 0,
            secrets: Secrets::Right,
            secrets_since: begin,
            must_reload: false,
            wrong_for: Duration::ZERO,
            is_halting: false,
            acted: false,
            copy: None,
            summary: Summary::default(),
            plan,
            rng,
            trace,
        })
    }

    /// Runs until everything has ended and every promise was kept.
    pub(super) async fn run(&mut self) -> Result<Summary, Broken> {
        if self.trace.is_some() {
            let drawn = format!(
                "{:?}\n{:?}\n{:?}",
                self.plan.scenario, self.plan.settings, self.plan.rough
            );
            self.say(|| drawn);
        }
        let outcome = self.run_to_the_end().await;
        if outcome.is_err() && self.trace.is_some() {
            ending::describe_queue(self).await?;
        }
        outcome
    }

    async fn run_to_the_end(&mut self) -> Result<Summary, Broken> {
        while !self.is_over() {
            self.summary.steps += 1;
            if self.summary.steps > STEPS_MAX {
                return Err(Broken(format!("no end after {STEPS_MAX} steps")));
            }
            self.disturb().await?;
            self.step().await?;
            self.learn().await?;
            rules::check_bounds(&self.facts, self.moment())?;
            rules::check_prompt(&self.facts, self.moment())?;
        }
        ending::check_remains(self).await?;
        Ok(ending::sum_up(self))
    }

    /// Ends the daemon; the file may go.
    pub(super) async fn close(mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.end().await;
        }
        let _ = sqlx::Connection::close(self.connection).await;
    }

    fn now(&self) -> UtcMillis {
        self.cloud.now()
    }

    fn moment(&self) -> Moment {
        Moment {
            utc: self.cloud.moment().utc,
            real: self.now(),
        }
    }

    fn say(&mut self, what: impl FnOnce() -> String) {
        let now = self.cloud.now();
        let begin = self.plan.begin;
        if let Some(trace) = self.trace.as_mut() {
            trace.push(format!(
                "{:>9.3} {}",
                now.since(begin).as_secs_f64(),
                what()
            ));
        }
    }

    fn is_over(&self) -> bool {
        self.act_at.is_none()
            && self.locked_until.is_none()
            && self.flights.is_empty()
            && self.cloud.next_late_at().is_none()
            && self
                .facts
                .requests
                .values()
                .all(|request| request.state.is_terminal())
            && self
                .facts
                .batches
                .values()
                .all(|batch| batch.state == BatchState::Done)
    }

    /// What the seed does to the daemon between two steps.
    async fn disturb(&mut self) -> Result<(), Broken> {
        let rough = self.plan.rough.clone();
        if self.summary.crashes >= CRASHES_MAX {
            return Ok(());
        }
        if self.rng.permille(rough.clock)
            && self.act_at.is_some()
            && self.steps_of_clock < CLOCK_STEPS_MAX
        {
            self.set_clock();
        }
        if self.rng.permille(rough.operators) && self.act_at.is_some() {
            operators::operate(self).await?;
        }
        if self.rng.permille(rough.crash) && self.daemon.is_some() {
            calls::crash(self, "between two steps").await?;
        }
        if self.rng.permille(rough.crash_in_step) && self.daemon.is_some() {
            let more = self.rng.between(0, 5);
            self.fuse.set(more);
        }
        if self.rng.permille(rough.lock) {
            let (more, times) = (self.rng.between(0, 5), self.rng.between(1, 4));
            self.fuse.fail(more, times);
        }
        if self.rng.permille(rough.lock) && self.locked_until.is_none() && self.act_at.is_some() {
            producer::lock(&mut self.connection, true).await?;
            let until = self.now() + self.rng.millis(1, 8_000);
            self.locked_until = Some(until);
            self.act_at = self.act_at.map(|at| at.max(until));
            self.say(|| format!("a producer locks the queue until {until}"));
        }
        Ok(())
    }

    /// Somebody sets the time of day: a correction, a wrong zone, a wrong day, or right again.
    fn set_clock(&mut self) {
        let by_ms = *self
            .rng
            .pick(&[
                -90_000_000,
                -7_200_000,
                -600_000,
                -70_000,
                -3_000,
                3_000,
                70_000,
                600_000,
                7_200_000,
            ])
            .unwrap_or(&0);
        let off_ms = if self.cloud.clock() != 0 && self.rng.permille(500) {
            0
        } else {
            self.cloud.clock() + by_ms
        };
        let by = Duration::from_millis(off_ms.abs_diff(self.cloud.clock()));
        self.steps_of_clock += 1;
        self.cloud.set_clock(off_ms);
        self.facts.clock_set(by);
        let safety = self.now() + SAFETY_INTERVAL;
        self.wake_at = self.wake_at.map(|at| at.min(safety));
        self.say(|| format!("the clock is off by {off_ms} ms"));
    }

    /// Goes to the next moment at which something happens, and lets one thing happen.
    async fn step(&mut self) -> Result<(), Broken> {
        let flights = self.flights.iter().map(|flight| flight.at);
        let late_at = self.cloud.next_late_at();
        let times = [self.wake_at, self.act_at, self.locked_until, late_at]
            .into_iter()
            .flatten()
            .chain(flights);
        let Some(next) = times.min() else {
            return Err(Broken(
                "nothing would ever wake the daemon, and something is unfinished".to_owned(),
            ));
        };
        let now = self.now().max(next);
        self.cloud.set_now(now);
        let due = |at: Option<UtcMillis>| at.is_some_and(|at| at <= now);
        let takes_answers = self.takes_answers();
        let mut events: Vec<Event> = (0..self.flights.len())
            .filter(|&i| {
                let flight = &self.flights[i];
                flight.at <= now && (takes_answers || matches!(flight.stage, Stage::Out(_)))
            })
            .map(Event::Flight)
            .collect();
        events.extend(due(self.wake_at).then_some(Event::Round));
        events.extend((due(self.act_at) && self.locked_until.is_none()).then_some(Event::Act));
        events.extend(due(self.locked_until).then_some(Event::Unlock));
        events.extend(due(late_at).then_some(Event::Late));
        let chosen = self.rng.index(events.len());
        match events.swap_remove(chosen) {
            Event::Round => self.round().await,
            Event::Flight(index) => calls::fly(self, index).await,
            Event::Act => self.act().await,
            Event::Late => {
                self.cloud.act_late();
                calls::attribute(self, None)
            }
            Event::Unlock => {
                self.say(|| "the queue is unlocked".to_owned());
                self.locked_until = None;
                producer::lock(&mut self.connection, false).await
            }
        }
    }

    async fn round(&mut self) -> Result<(), Broken> {
        let now = self.now();
        if self.daemon.is_none() {
            return self.start().await;
        }
        if self.is_stopping() {
            return operators::go_on_stopping(self).await;
        }
        let Some(daemon) = self.daemon.as_mut() else {
            return Ok(());
        };
        let before = self.fuse.commits();
        if self.is_halting {
            let more = self.rng.between(1, 4);
            self.fuse.halt(more, daemon.dispatcher.halt());
        }
        let round = daemon.dispatcher.round(self.cloud.moment()).await;
        self.learn().await?;
        if self.fuse.is_blown() {
            return calls::crash(self, "before a commit, in a round").await;
        }
        if self.is_halting {
            // At the latest now: between the round and the calls that it asks for.
            operators::halt(self);
        }
        let asks = !round.tasks.is_empty() || !round.gates.is_empty();
        let progress = self.fuse.commits() > before || asks;
        let is_idle = !progress && round.trouble.is_none();
        self.after_round(round, progress, now)?;
        if self.is_halting {
            operators::begin_stop(self);
        } else if is_idle {
            quiet::check(self).await?;
        }
        Ok(())
    }

    fn after_round(&mut self, round: Round, progress: bool, now: UtcMillis) -> Result<(), Broken> {
        self.idle_rounds = if progress { 0 } else { self.idle_rounds + 1 };
        if self.idle_rounds <= 1 || now.since(self.idle_since) > IDLE_ROUNDS_SPAN {
            self.idle_rounds = self.idle_rounds.min(1);
            self.idle_since = now;
        }
        if self.idle_rounds > IDLE_ROUNDS_MAX {
            return Err(Broken(format!(
                "the daemon spins: {IDLE_ROUNDS_MAX} rounds without anything to do"
            )));
        }
        let Round {
            tasks,
            gates,
            wake_at,
            trouble,
            ..
        } = round;
        let daemon = self.daemon.as_ref();
        if daemon.is_some_and(|daemon| daemon.policy.is_in_trouble()) {
            self.facts.sees_since = self.moment().real;
        }
        self.wake_at = match trouble {
            None => self.wake_after(wake_at),
            Some(error) => {
                self.say(|| format!("the daemon waits: {error}"));
                let policy = self.daemon.as_mut().map(|daemon| &mut daemon.policy);
                let wait = policy.and_then(|policy| policy.after_failed_round(&error));
                let gives_up = || Broken(format!("the daemon gives up: {error}"));
                Some(now + wait.ok_or_else(gives_up)?)
            }
        };
        for gate in gates {
            calls::ask_gate(self, gate, now);
        }
        let wake_at = self.wake_at;
        self.say(|| format!("round: {} tasks, next {wake_at:?}", tasks.len()));
        tasks
            .into_iter()
            .try_for_each(|task| calls::launch(self, task, now))
    }

    /// When the round after a good one comes, if nothing happens before.
    fn wake_after(&mut self, due_at: Option<UtcMillis>) -> Option<UtcMillis> {
        let now = self.now();
        let utc = self.cloud.moment().utc;
        let policy = self.daemon.as_mut().map(|daemon| &mut daemon.policy)?;
        let wait = policy.after_round(due_at, utc);
        if wait == SAFETY_INTERVAL && !self.rng.permille(SAFETY_ROUNDS) {
            due_at.map(|at| self.cloud.true_time(at).max(now))
        } else {
            Some(now + wait)
        }
    }

    /// False while a round comes before the next answer.
    fn takes_answers(&self) -> bool {
        let takes = |daemon: &Daemon| daemon.stop.is_some() || daemon.policy.takes_answers();
        self.daemon.as_ref().is_none_or(takes)
    }

    fn is_stopping(&self) -> bool {
        self.daemon
            .as_ref()
            .is_some_and(|daemon| daemon.stop.is_some())
    }

    async fn start(&mut self) -> Result<(), Broken> {
        match Daemon::start(
            &self.path,
            &self.plan.settings,
            self.secrets,
            &self.cloud,
            &self.fuse,
        )
        .await
        {
            Ok(daemon) => {
                self.say(|| "a daemon starts".to_owned());
                self.daemon = Some(daemon);
                self.facts.sees_since = self.moment().real;
                self.must_reload = false;
                self.facts.reloaded(&self.plan.limits());
            }
            Err(_) if self.fuse.is_blown() => {
                calls::crash(self, "before a commit, while starting").await?
            }
            Err(error) if error.is_passing() => {
                self.say(|| format!("the start waits: {error}"));
                self.wake_at = Some(self.now() + START_AGAIN);
            }
            Err(error) => return Err(Broken(format!("no daemon starts: {error}"))),
        }
        Ok(())
    }

    async fn act(&mut self) -> Result<(), Broken> {
        let now = self.now();
        if std::mem::take(&mut self.must_reload) {
            operators::reload(self).await?;
        }
        if self.producers.left == 0 && self.secrets == Secrets::Wrong {
            // Somebody notices, before the producers are done.
            operators::set_secrets(self, Secrets::Right);
            operators::reload(self).await?;
            self.act_at = Some(now + SAFETY_INTERVAL);
            return Ok(());
        }
        if self.producers.left == 0 && self.facts.awaits_release && self.daemon.is_none() {
            // There is nothing to release before the daemon has found out.
            self.act_at = Some(now + SAFETY_INTERVAL);
            return Ok(());
        }
        if self.producers.left == 0 {
            copies::release(self).await?;
            let producers = &mut self.producers;
            let facts = &mut self.facts;
            producers.resume_all(&mut self.connection, facts).await?;
            if self.rng.permille(500) {
                staff::let_all_go(&mut self.connection, &self.path, facts).await?;
            }
            // Requests that never expire wait for ever behind a server that stays busy for ever:
            // somebody gives them up.
            self.act_at = match self.plan.settings.queue.default_ttl {
                None if self.producers.is_patient() => Some(now + PATIENCE),
                _ => None,
            };
            if self.act_at.is_none() {
                self.producers.give_up(&mut self.connection).await?;
            }
        } else {
            let moment = self.moment();
            let done = self
                .producers
                .act(
                    (&mut self.connection, &self.path),
                    &mut self.facts,
                    &mut self.rng,
                    moment,
                )
                .await?;
            self.say(|| done);
            self.act_at = Some(now + producer::gap(&mut self.rng, self.plan.rough.act_gap_max_ms));
        }
        self.acted = true;
        // The notification comes a little later; a few are missed, and the safety pass finds the
        // change.
        let heard = if self.rng.permille(900) {
            self.rng.millis(0, 20)
        } else {
            Duration::from_secs(5)
        };
        self.wake_at = Some(self.wake_at.map_or(now + heard, |at| at.min(now + heard)));
        self.idle_rounds = 0;
        Ok(())
    }

    /// Takes what the queue has recorded since the last time.
    async fn learn(&mut self) -> Result<(), Broken> {
        let commits = self.fuse.commits();
        if commits == self.seen.0 && !std::mem::take(&mut self.acted) {
            return Ok(());
        }
        let now = self.moment();
        let (entries, newest) = audit::read(&mut self.connection, self.seen.1).await?;
        self.seen = (commits, newest);
        if self.trace.is_some() {
            for entry in &entries {
                self.say(|| format!("    {entry:?}"));
            }
        }
        self.facts.learn(&entries, &self.cloud, now)
    }
}
