//! The driver: moves virtual time from event to event, lets the daemon take its steps, carries its calls to the cloud and
//! the answers back in any order, and ends it where the seed says. After each step it has the facts checked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::SqliteConnection;

use super::daemon::{Daemon, Fuse};
use super::draw::Plan;
use super::facts::{Facts, SLACK};
use super::producer::{self, Producers};
use super::rng::Rng;
use super::wire::Cloud;
use super::{Broken, Summary, audit, connect, rules};
use crate::daemon::{Finished, Round, Task};
use crate::model::{BatchState, ServerId, UtcMillis};
use crate::sim::World;
use crate::store::StoreError;

/// 2080-01-01: ahead of any machine's clock.
const BEGIN: UtcMillis = UtcMillis(3_471_292_800_000);
/// Steps after which a run is called endless.
const STEPS_MAX: u64 = 200_000;
/// Rounds in a row without any progress after which the daemon is called spinning.
const IDLE_ROUNDS_MAX: u32 = 60;
/// Deaths and locks in one run, at most.
const CRASHES_MAX: u64 = 60;
/// As `daemon::run` waits when the database fails: first, and at most.
const TROUBLE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

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
}

/// What may happen next.
enum Event {
    Round,
    Flight(usize),
    Act,
    Unlock,
}

pub(super) struct Machine<'a> {
    plan: Plan,
    rng: Rng,
    path: PathBuf,
    cloud: Cloud,
    fuse: Arc<Fuse>,
    desk: SqliteConnection,
    producers: Producers,
    facts: Facts,
    daemon: Option<Daemon>,
    flights: Vec<Flight>,
    wake_at: Option<UtcMillis>,
    act_at: Option<UtcMillis>,
    locked_until: Option<UtcMillis>,
    trouble: Duration,
    end_at: Option<Point>,
    calls: u64,
    idle_rounds: u32,
    seen: (u64, i64),
    summary: Summary,
    trace: &'a mut Option<Vec<String>>,
}

impl<'a> Machine<'a> {
    pub(super) async fn new(
        plan: Plan,
        rng: Rng,
        path: &Path,
        end_at: Option<Point>,
        trace: &'a mut Option<Vec<String>>,
    ) -> Result<Self, Broken> {
        let world = World::new(plan.scenario.clone());
        let servers = world.server_ids();
        let fuse = Arc::new(Fuse::default());
        if let Some(Point::Commit(n)) = end_at {
            fuse.set(n.saturating_sub(1));
        }
        Ok(Self {
            facts: Facts::new(limits(&plan), BEGIN),
            producers: Producers::new(servers, plan.rough.requests, plan.rough.meddling),
            cloud: Cloud::new(world, BEGIN),
            desk: connect(path).await?,
            path: path.to_owned(),
            fuse,
            daemon: None,
            flights: Vec::new(),
            wake_at: Some(BEGIN),
            act_at: Some(BEGIN),
            locked_until: None,
            trouble: Duration::ZERO,
            end_at,
            calls: 0,
            idle_rounds: 0,
            seen: (0, 0),
            summary: Summary::default(),
            plan,
            rng,
            trace,
        })
    }

    /// Runs until everything has ended and every promise was kept.
    pub(super) async fn run(&mut self) -> Result<Summary, Broken> {
        let outcome = self.run_to_the_end().await;
        if outcome.is_err() && self.trace.is_some() {
            self.describe_queue().await?;
        }
        outcome
    }

    /// What is unfinished, for the trace.
    async fn describe_queue(&mut self) -> Result<(), Broken> {
        let rows: Vec<(i64, String, Option<String>, Option<String>, Option<String>, Option<String>, Option<i64>)> = sqlx::query_as(
            "SELECT id, state, gate, eligible_at, expires_at, retry_at, after_id FROM power_requests WHERE gate IS NOT NULL",
        )
        .fetch_all(&mut self.desk)
        .await?;
        for row in rows {
            self.say(|| format!("unfinished (id, state, gate, eligible_at, expires_at, retry_at, after_id): {row:?}"));
        }
        Ok(())
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
            rules::check_bounds(&self.facts, self.now())?;
        }
        self.check_remains().await?;
        Ok(self.sum_up())
    }

    /// Ends the daemon; the file may go.
    pub(super) async fn close(mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.end().await;
        }
        let _ = sqlx::Connection::close(self.desk).await;
    }

    fn now(&self) -> UtcMillis {
        self.cloud.now()
    }

    fn say(&mut self, what: impl FnOnce() -> String) {
        let now = self.cloud.now();
        if let Some(trace) = self.trace.as_mut() {
            trace.push(format!("{:>9.3} {}", now.since(BEGIN).as_secs_f64(), what()));
        }
    }

    fn is_over(&self) -> bool {
        self.act_at.is_none()
            && self.locked_until.is_none()
            && self.flights.is_empty()
            && self.facts.requests.values().all(|request| request.state.is_terminal())
            && self.facts.batches.values().all(|batch| batch.state == BatchState::Done)
    }

    /// What the seed does to the daemon between two steps.
    async fn disturb(&mut self) -> Result<(), Broken> {
        let rough = self.plan.rough.clone();
        if self.summary.crashes >= CRASHES_MAX {
            return Ok(());
        }
        if self.rng.permille(rough.crash) && self.daemon.is_some() {
            self.crash("between two steps").await;
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
            producer::lock(&mut self.desk, true).await?;
            let until = self.now() + self.rng.millis(1, 8_000);
            self.locked_until = Some(until);
            self.act_at = self.act_at.map(|at| at.max(until));
            self.say(|| format!("a producer locks the queue until {until}"));
        }
        Ok(())
    }

    /// Goes to the next moment at which something happens, and lets one thing happen.
    async fn step(&mut self) -> Result<(), Broken> {
        let flights = self.flights.iter().map(|flight| flight.at);
        let times = [self.wake_at, self.act_at, self.locked_until].into_iter().flatten().chain(flights);
        let Some(next) = times.min() else {
            return Err(Broken("nothing would ever wake the daemon, and something is unfinished".to_owned()));
        };
        let now = self.now().max(next);
        self.cloud.set_now(now);
        let due = |at: Option<UtcMillis>| at.is_some_and(|at| at <= now);
        let mut events: Vec<Event> =
            (0..self.flights.len()).filter(|&i| self.flights[i].at <= now).map(Event::Flight).collect();
        events.extend(due(self.wake_at).then_some(Event::Round));
        events.extend((due(self.act_at) && self.locked_until.is_none()).then_some(Event::Act));
        events.extend(due(self.locked_until).then_some(Event::Unlock));
        let chosen = self.rng.index(events.len());
        let chosen = events.swap_remove(chosen);
        match chosen {
            Event::Round => self.round().await,
            Event::Flight(index) => self.fly(index).await,
            Event::Act => self.act().await,
            Event::Unlock => {
                self.say(|| "the queue is unlocked".to_owned());
                self.locked_until = None;
                producer::lock(&mut self.desk, false).await
            }
        }
    }

    async fn round(&mut self) -> Result<(), Broken> {
        let now = self.now();
        if self.daemon.is_none() {
            return self.start().await;
        }
        let Some(daemon) = self.daemon.as_mut() else { return Ok(()) };
        let before = self.fuse.commits();
        let round = daemon.dispatcher.round(now).await;
        self.learn().await?;
        if self.fuse.is_blown() {
            self.crash("before a commit, in a round").await;
            return Ok(());
        }
        let progress = self.fuse.commits() > before || !round.tasks.is_empty();
        self.after_round(round, progress, now)
    }

    fn after_round(&mut self, round: Round, progress: bool, now: UtcMillis) -> Result<(), Broken> {
        self.idle_rounds = if progress { 0 } else { self.idle_rounds + 1 };
        if self.idle_rounds > IDLE_ROUNDS_MAX {
            return Err(Broken(format!("the daemon spins: {IDLE_ROUNDS_MAX} rounds without anything to do")));
        }
        match &round.trouble {
            None => {
                self.trouble = Duration::ZERO;
                self.wake_at = round.wake_at.map(|at| at.max(now));
            }
            Some(error) => self.endure(error)?,
        }
        let wake_at = self.wake_at;
        self.say(|| format!("round: {} tasks, next {wake_at:?}", round.tasks.len()));
        for task in round.tasks {
            self.launch(task, now)?;
        }
        Ok(())
    }

    fn launch(&mut self, task: Task, now: UtcMillis) -> Result<(), Broken> {
        if let Task::Submit { batch, .. } = &task {
            let members: BTreeMap<i64, ServerId> =
                batch.members.iter().map(|member| (member.request.0, member.server.clone())).collect();
            let (id, action) = (batch.id.0, batch.action);
            self.say(|| format!("submit of batch {id} leaves: {action} {:?}", members.keys()));
            self.facts.departs(id, action, &members, now)?;
        }
        let at = now + self.rng.millis(0, self.plan.rough.way_max_ms);
        self.flights.push(Flight { at, stage: Stage::Out(task), orphaned: false });
        Ok(())
    }

    /// The passing failures of a database are waited out, as `daemon::run` does.
    fn endure(&mut self, error: &StoreError) -> Result<(), Broken> {
        if !error.is_passing() {
            return Err(Broken(format!("the daemon gives up: {error}")));
        }
        self.trouble = if self.trouble.is_zero() { TROUBLE.0 } else { (self.trouble * 2).min(TROUBLE.1) };
        self.wake_at = Some(self.now() + self.trouble);
        self.say(|| format!("the daemon waits: {error}"));
        Ok(())
    }

    async fn start(&mut self) -> Result<(), Broken> {
        match Daemon::start(&self.path, &self.plan.settings, &self.cloud, &self.fuse).await {
            Ok(daemon) => {
                self.say(|| "a daemon starts".to_owned());
                self.daemon = Some(daemon);
            }
            Err(_) if self.fuse.is_blown() => self.crash("before a commit, while starting").await,
            Err(error) => self.endure(&error)?,
        }
        Ok(())
    }

    async fn fly(&mut self, index: usize) -> Result<(), Broken> {
        let flight = self.flights.swap_remove(index);
        match flight.stage {
            Stage::Out(task) => self.carry_out(task, flight.orphaned).await,
            Stage::Back(finished) => self.deliver(finished).await,
        }
    }

    /// A call reaches the cloud.
    async fn carry_out(&mut self, task: Task, orphaned: bool) -> Result<(), Broken> {
        self.calls += 1;
        if self.end_at == Some(Point::Call(self.calls)) {
            self.crash("before a call arrives").await;
            return Ok(());
        }
        let batch = match &task {
            Task::Submit { batch, .. } => Some(batch.id.0),
            Task::Prepare { .. } | Task::Track { .. } | Task::Look { .. } => None,
        };
        let before = self.cloud.ledger_len();
        let finished = task.run().await;
        let delay = self.cloud.take_delay();
        let done: BTreeSet<ServerId> =
            self.cloud.ledger_from(before).into_iter().map(|entry| entry.server_id).collect();
        self.say(|| format!("at the cloud: {} (switches {})", describe(&finished), done.len()));
        if let Some(batch) = batch {
            self.summary.submits += 1;
            self.facts.carried_out(batch, &done)?;
        }
        if orphaned {
            return Ok(());
        }
        let at = self.now() + delay + self.rng.millis(0, self.plan.rough.way_max_ms);
        self.flights.push(Flight { at, stage: Stage::Back(finished), orphaned });
        if self.end_at == Some(Point::Answer(self.calls)) {
            self.crash("between a call and its answer").await;
        }
        Ok(())
    }

    /// An answer reaches the daemon; as in `daemon::run`, a round follows.
    async fn deliver(&mut self, finished: Finished) -> Result<(), Broken> {
        let now = self.now();
        self.say(|| format!("answer: {}", describe(&finished)));
        if let Finished::Submitted { batch, answer } = &finished {
            self.facts.told(batch.id.0, answer);
        }
        let Some(daemon) = self.daemon.as_mut() else { return Ok(()) };
        let outcome = daemon.dispatcher.finish(finished, now).await;
        self.learn().await?;
        if self.fuse.is_blown() {
            self.crash("before a commit, after an answer").await;
            return Ok(());
        }
        self.idle_rounds = 0;
        match outcome {
            Ok(()) => self.wake_at = Some(now),
            Err(error) => self.endure(&error)?,
        }
        Ok(())
    }

    async fn act(&mut self) -> Result<(), Broken> {
        let now = self.now();
        if self.producers.left == 0 {
            self.producers.resume_all(&mut self.desk, &mut self.facts).await?;
            self.act_at = None;
        } else {
            let done = self.producers.act(&mut self.desk, &mut self.facts, &mut self.rng, now).await?;
            self.say(|| done);
            self.act_at = Some(now + producer::gap(&mut self.rng, self.plan.rough.act_gap_max_ms));
        }
        // The notification comes a little later; a few are missed, and the safety pass finds the change.
        let heard = if self.rng.permille(900) { self.rng.millis(0, 20) } else { Duration::from_secs(5) };
        self.wake_at = Some(self.wake_at.map_or(now + heard, |at| at.min(now + heard)));
        self.idle_rounds = 0;
        Ok(())
    }

    /// The daemon is gone from one moment to the next. A call that has left may still arrive.
    async fn crash(&mut self, how: &str) {
        self.say(|| format!("the daemon dies {how}"));
        self.summary.crashes += 1;
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
        self.fuse.mend();
        let pause = if self.rng.permille(700) { 0 } else { self.rng.between(0, 20_000) };
        self.wake_at = Some(self.now() + Duration::from_millis(pause));
        self.trouble = Duration::ZERO;
    }

    /// Takes what the queue has recorded since the last time.
    async fn learn(&mut self) -> Result<(), Broken> {
        let commits = self.fuse.commits();
        let now = self.now();
        let (entries, newest) = audit::read(&mut self.desk, self.seen.1).await?;
        self.seen = (commits, newest);
        if self.trace.is_some() {
            for entry in &entries {
                self.say(|| format!("    {entry:?}"));
            }
        }
        self.facts.learn(&entries, &self.cloud, now)
    }

    /// After the end nothing is left open, and no row is lost.
    async fn check_remains(&mut self) -> Result<(), Broken> {
        let (rows, open, attempts, ends): (i64, i64, i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM power_requests), (SELECT count(*) FROM power_requests WHERE gate IS NOT NULL),
                    (SELECT count(*) FROM request_attempts WHERE result IS NULL), (SELECT count(*) FROM awaited_ends)",
        )
        .fetch_one(&mut self.desk)
        .await?;
        let inserted = self.facts.requests.len() as i64;
        if (rows, open, attempts) != (inserted, 0, 0) {
            return Err(Broken(format!(
                "{inserted} rows were inserted and {rows} are left; {open} are not ended, {attempts} attempts are open, {ends} ends are not followed"
            )));
        }
        Ok(())
    }

    fn sum_up(&mut self) -> Summary {
        let mut summary = std::mem::take(&mut self.summary);
        for request in self.facts.requests.values() {
            let evidence = request.evidence.map_or("-", crate::model::Evidence::as_str);
            *summary.ends.entry(format!("{} {evidence}", request.state)).or_default() += 1;
        }
        summary.commits = self.fuse.commits();
        summary.calls = self.calls;
        summary.digest = self.facts.digest;
        summary
    }
}

fn limits(plan: &Plan) -> rules::Limits {
    let target = plan.settings.targets.first();
    let flight_max = target.map_or(SLACK, |target| {
        let answers = target.request_timeout * 20;
        target.job_time_limit + target.look_time_limit * 2 + target.settle_time + answers + SLACK * 6
    });
    rules::Limits {
        submits_per_minute: target.map_or(0, |target| target.submits_per_minute),
        batch_servers_max: target.map_or(0, |target| target.batch_servers_max),
        attempts_max: plan.settings.batch.attempts_max.get(),
        default_ttl: plan.settings.queue.default_ttl,
        flight_max,
    }
}

fn describe(finished: &Finished) -> String {
    let outcome = |error: Option<&crate::cloud::CallError>| {
        error.map_or("ok".to_owned(), |e| format!("{:?} {}", e.fault, e.code))
    };
    match finished {
        Finished::Prepared { result, .. } => format!("prepare: {}", outcome(result.as_ref().err())),
        Finished::Submitted { batch, answer } => {
            format!("submit of batch {}: {}", batch.id, outcome(answer.as_ref().err()))
        }
        Finished::Tracked { batch, answer } => format!("job of batch {}: {}", batch.id, outcome(answer.as_ref().err())),
        Finished::Looked { batches, answer, .. } => {
            let ids: Vec<i64> = batches.iter().map(|batch| batch.id.0).collect();
            format!("look for batches {ids:?}: {}", outcome(answer.as_ref().err()))
        }
    }
}
