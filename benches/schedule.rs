//! When calls leave and when jobs are asked for: a million servers in virtual time, against the
//! shortest schedule that there is.
//!
//! `cargo bench --bench schedule [-- --quick]`
//!
//! The real dispatcher decides, with `plan`, `pace` and `verdict` behind it; only the clock and the
//! cloud are modelled. A request stands for a thousand servers, so that the queue costs little.
//! Nothing is measured in real time, so that the figures are the same on every machine.
//!
//! Beside it: a client that asks for each job at fixed intervals.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::Parser;
use futures_util::future::{BoxFuture, FutureExt, ready};
use poweryard::cloud::auth::AccessKeys;
use poweryard::cloud::{Credentials, Key, Observed, PowerCloud};
use poweryard::daemon::{Dispatcher, Round, Task};
use poweryard::model::{
    CallError, Fault, JobId, JobReport, JobStatus, Listing, Now, PowerAction, ServerEnds, ServerId,
    Steady, SubJob, TargetName, Tracking, UtcMillis,
};
use poweryard::settings::Settings;
use poweryard::store::{Store, StoreOptions};
use secrecy::SecretString;
use sqlx::Connection;

#[path = "common/mod.rs"]
mod common;

use common::far::utc_now;
use common::figures::Figures;
use common::ids::{self, Chance};
use common::yard;

const SERVERS_A_CALL: usize = 1000;
const SUBMIT_TAKES: Duration = Duration::from_millis(200);
const QUERY_TAKES: Duration = Duration::from_millis(50);
const MINUTE: Duration = Duration::from_secs(60);
/// Submits that wait for their answers at a time, of every client.
const OPEN_MAX: usize = 16;

#[derive(Debug, Parser)]
struct Args {
    /// A tenth of the servers.
    #[arg(long)]
    quick: bool,
    /// Servers; a thousand go in a call.
    #[arg(long)]
    servers: Option<usize>,
    /// Cargo's.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    let usual = match (common::is_test(), args.quick) {
        (true, _) => 20_000,
        (false, true) => 100_000,
        (false, false) => 1_000_000,
    };
    let calls = (args.servers.unwrap_or(usual) / SERVERS_A_CALL).max(1);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    println!(
        "{calls} calls of {SERVERS_A_CALL} servers; job end to stored outcome as a share of the job's duration"
    );
    for limit in [Limit::Shared, Limit::Bms] {
        for jobs in Jobs::ALL {
            runtime.block_on(compare(limit, jobs, calls));
        }
    }
}

/// How many calls the cloud takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    /// 10 a second in all; those beyond wait for their turn.
    Shared,
    /// 50 submits and 2000 queries a minute; those beyond are refused (429).
    Bms,
}

impl Limit {
    fn name(self) -> &'static str {
        match self {
            Self::Shared => "10 calls a second in all",
            Self::Bms => "50 submits and 2000 queries a minute",
        }
    }

    fn submits_per_minute(self) -> usize {
        match self {
            Self::Shared => 600,
            Self::Bms => 50,
        }
    }

    /// The shortest time in which these jobs can be submitted in this order, and each asked for once
    /// when it has ended.
    fn bound(self, durations: &[Duration]) -> Duration {
        let submitted = |number: usize| match self {
            Self::Shared => Duration::from_millis(100) * number as u32,
            Self::Bms => MINUTE * (number / self.submits_per_minute()) as u32,
        };
        let known = |(number, &takes): (usize, &Duration)| {
            submitted(number) + SUBMIT_TAKES + takes + QUERY_TAKES
        };
        let last = durations.iter().enumerate().map(known).max();
        let all_calls = match self {
            Self::Shared => submitted(2 * durations.len() - 1) + QUERY_TAKES,
            Self::Bms => Duration::ZERO,
        };
        last.unwrap_or_default().max(all_calls)
    }
}

/// How long jobs take.
#[derive(Debug, Clone, Copy)]
enum Jobs {
    Fixed(u64),
    /// Log-normal around two minutes; one in fifty takes five times as long.
    Straggling,
}

impl Jobs {
    const ALL: [Self; 4] = [
        Self::Fixed(60),
        Self::Fixed(120),
        Self::Fixed(300),
        Self::Straggling,
    ];

    fn name(self) -> String {
        match self {
            Self::Fixed(seconds) => format!("jobs of {seconds} s"),
            Self::Straggling => "log-normal jobs around 120 s with stragglers".to_owned(),
        }
    }

    fn durations(self, count: usize) -> Vec<Duration> {
        let mut chance = Chance(11);
        let mut draw = || match self {
            Self::Fixed(seconds) => Duration::from_secs(seconds),
            Self::Straggling => {
                let radius = (-2.0 * (1.0 - chance.share()).ln()).sqrt();
                let normal = radius * (std::f64::consts::TAU * chance.share()).cos();
                let straggles = if chance.share() < 0.02 { 5.0 } else { 1.0 };
                let ms = 120_000.0 * (0.4 * normal).exp() * straggles;
                Duration::from_millis(ms as u64)
            }
        };
        (0..count).map(|_| draw()).collect()
    }
}

async fn compare(limit: Limit, jobs: Jobs, calls: usize) {
    let durations = jobs.durations(calls);
    let bound = limit.bound(&durations).as_secs_f64();
    println!("\n{}, {}: bound {bound:.1} s", limit.name(), jobs.name());
    println!(
        "  {:<14} {:>10} {:>8} {:>14} {:>9} {:>8} {:>8} {:>10}",
        "", "makespan s", "ratio", "queries a job", "refused", "median", "p90", "first s"
    );
    drive_daemon(limit, durations.clone())
        .await
        .print("poweryard", bound);
    for seconds in [2, 10] {
        let every = Duration::from_secs(seconds);
        let cloud = poll_at_intervals(limit, durations.clone(), every);
        cloud.print(&format!("every {seconds} s"), bound);
    }
}

/// The cloud in virtual time.
struct Cloud {
    limit: Limit,
    begun: UtcMillis,
    /// Of the jobs that are not submitted yet, in the order in which they come.
    durations: VecDeque<Duration>,
    jobs: HashMap<JobId, Job>,
    queries: usize,
    refused: usize,
    /// When the next call of all gets its turn.
    next_turn: UtcMillis,
    /// Calls that were taken in the last minute.
    taken: HashMap<Kind, VecDeque<UtcMillis>>,
    /// The call that is being answered.
    call: Call,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Submit,
    Query,
}

/// A call on its way.
#[derive(Debug, Clone, Copy)]
struct Call {
    kind: Kind,
    /// The cloud reads it here.
    turn: UtcMillis,
    /// Its answer arrives here.
    answered: UtcMillis,
    is_refused: bool,
}

#[derive(Debug, Clone)]
struct Job {
    server: ServerId,
    takes: Duration,
    ended: UtcMillis,
    /// When a client had an answer that shows the end.
    known: Option<UtcMillis>,
}

impl Cloud {
    fn new(limit: Limit, durations: Vec<Duration>, begun: UtcMillis) -> Self {
        Self {
            limit,
            begun,
            durations: durations.into(),
            jobs: HashMap::new(),
            queries: 0,
            refused: 0,
            next_turn: begun,
            taken: HashMap::new(),
            call: Call {
                kind: Kind::Submit,
                turn: begun,
                answered: begun,
                is_refused: false,
            },
        }
    }

    /// A call leaves now.
    fn take(&mut self, kind: Kind, now: UtcMillis) -> Call {
        let latency = match kind {
            Kind::Submit => SUBMIT_TAKES,
            Kind::Query => QUERY_TAKES,
        };
        let (turn, is_refused) = match self.limit {
            Limit::Shared => (self.wait_for_turn(now), false),
            Limit::Bms => (now, self.is_over_limit(kind, now)),
        };
        self.queries += usize::from(kind == Kind::Query);
        self.refused += usize::from(is_refused);
        Call {
            kind,
            turn,
            answered: turn + latency,
            is_refused,
        }
    }

    fn wait_for_turn(&mut self, now: UtcMillis) -> UtcMillis {
        let turn = self.next_turn.max(now);
        self.next_turn = turn + Duration::from_millis(100);
        turn
    }

    fn is_over_limit(&mut self, kind: Kind, now: UtcMillis) -> bool {
        let most = match kind {
            Kind::Submit => 50,
            Kind::Query => 2000,
        };
        let taken = self.taken.entry(kind).or_default();
        while taken.front().is_some_and(|&at| now.since(at) >= MINUTE) {
            taken.pop_front();
        }
        let is_over = taken.len() >= most;
        if !is_over {
            taken.push_back(now);
        }
        is_over
    }

    fn accept(&mut self, server: ServerId) -> JobId {
        let takes = self.durations.pop_front().expect("no call is repeated");
        let id = JobId(format!("{:032x}", self.jobs.len() + 1));
        let job = Job {
            server,
            takes,
            ended: self.call.answered + takes,
            known: None,
        };
        self.jobs.insert(id.clone(), job);
        id
    }

    fn ask(&mut self, id: &JobId) -> JobReport {
        let call = self.call;
        let job = self.jobs.get_mut(id).expect("a job of ours");
        let is_over = job.ended <= call.turn;
        if is_over {
            job.known.get_or_insert(call.answered);
        }
        let status = if is_over {
            JobStatus::Succeeded
        } else {
            JobStatus::Pending
        };
        let sub_job = SubJob {
            server: Some(job.server.clone()),
            status,
            error: None,
        };
        JobReport {
            status,
            error: None,
            sub_jobs: vec![sub_job],
            duration: is_over.then_some(job.takes),
            server_ends: is_over.then_some(ServerEnds {
                half: job.takes,
                most: job.takes,
            }),
        }
    }

    fn print(&self, client: &str, bound: f64) {
        let mut delays = Figures::default();
        let mut first = Duration::MAX;
        let mut last = Duration::ZERO;
        for job in self.jobs.values() {
            let known = job.known.expect("every job was seen to end");
            let share = known.since(job.ended).as_secs_f64() / job.takes.as_secs_f64();
            delays.push(share * 100.0);
            first = first.min(known.since(self.begun));
            last = last.max(known.since(self.begun));
        }
        let makespan = last.as_secs_f64();
        println!(
            "  {client:<14} {makespan:>10.1} {:>8.3} {:>14.2} {:>9} {:>6.1} % {:>6.1} % {:>10.1}",
            makespan / bound,
            self.queries as f64 / self.jobs.len() as f64,
            self.refused,
            delays.median(),
            delays.at(0.9),
            first.as_secs_f64()
        );
    }
}

fn throttled(call: Call) -> CallError {
    CallError {
        fault: Fault::Throttled {
            retry_after: None,
            limit: None,
        },
        status: Some(429),
        code: "APIGW.0308".to_owned(),
        message: format!("too many calls: {:?}", call.kind),
        request_id: None,
        retry_after: None,
    }
}

/// The model behind the daemon's own door to clouds.
struct ModelCloud {
    cloud: Arc<Mutex<Cloud>>,
    key: Key,
}

impl ModelCloud {
    fn cloud(&self) -> MutexGuard<'_, Cloud> {
        lock(&self.cloud)
    }
}

fn lock(cloud: &Mutex<Cloud>) -> MutexGuard<'_, Cloud> {
    cloud.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PowerCloud for ModelCloud {
    fn key(&self) -> &Key {
        &self.key
    }

    fn prepare(&self) -> BoxFuture<'_, Result<(), CallError>> {
        ready(Ok(())).boxed()
    }

    fn submit<'a>(
        &'a self,
        _action: PowerAction,
        servers: &'a [ServerId],
    ) -> BoxFuture<'a, Result<Tracking, CallError>> {
        let mut cloud = self.cloud();
        let answer = if cloud.call.is_refused {
            Err(throttled(cloud.call))
        } else {
            Ok(Tracking::Job(cloud.accept(servers[0].clone())))
        };
        ready(answer).boxed()
    }

    fn job<'a>(&'a self, job: &'a JobId) -> BoxFuture<'a, Result<JobReport, CallError>> {
        let mut cloud = self.cloud();
        let answer = if cloud.call.is_refused {
            Err(throttled(cloud.call))
        } else {
            Ok(cloud.ask(job))
        };
        ready(answer).boxed()
    }

    fn observe<'a>(
        &'a self,
        servers: &'a [ServerId],
    ) -> BoxFuture<'a, Result<Observed, CallError>> {
        panic!(
            "nobody looks at {} servers whose jobs end well",
            servers.len()
        );
    }

    fn list(&self, _pages_max: usize) -> BoxFuture<'_, Result<Listing, CallError>> {
        panic!("nobody wants an inventory");
    }
}

/// A call that is being made, first answered first.
struct Flight {
    call: Call,
    task: Task,
}

/// The daemon without its loop and its network.
struct Drive {
    dispatcher: Dispatcher,
    cloud: Arc<Mutex<Cloud>>,
    begun: UtcMillis,
    flights: HashMap<usize, Flight>,
    order: BinaryHeap<Reverse<(UtcMillis, usize)>>,
    launched: usize,
}

async fn drive_daemon(limit: Limit, durations: Vec<Duration>) -> Cloud {
    let dir = tempfile::tempdir().expect("a folder");
    let settings = settings(dir.path(), limit);
    let options = StoreOptions {
        synced: false,
        ..StoreOptions::default()
    };
    let path = &settings.queue.database;
    let store = Arc::new(Store::open_with(path, &options).await.expect("a queue"));
    insert(path, durations.len()).await;
    let begun = utc_now();
    let cloud = Arc::new(Mutex::new(Cloud::new(limit, durations, begun)));
    let door: Arc<dyn PowerCloud> = Arc::new(ModelCloud {
        cloud: Arc::clone(&cloud),
        key: keys().key(),
    });
    let clouds = BTreeMap::from([(TargetName("default".into()), door)]);
    store.begin_epoch(begun).await.expect("begun");
    let now = Now {
        utc: begun,
        steady: Steady(Duration::ZERO),
    };
    let dispatcher = Dispatcher::new(store, &settings, clouds, now)
        .await
        .expect("a dispatcher");
    let mut drive = Drive {
        dispatcher,
        cloud: Arc::clone(&cloud),
        begun,
        flights: HashMap::new(),
        order: BinaryHeap::new(),
        launched: 0,
    };
    drive.run().await;
    drop(drive);
    let cloud = Arc::into_inner(cloud).expect("nobody else has it");
    cloud.into_inner().unwrap_or_else(PoisonError::into_inner)
}

impl Drive {
    async fn run(&mut self) {
        let mut now = self.begun;
        loop {
            let round = self.dispatcher.round(self.moment(now)).await;
            assert!(round.trouble.is_none(), "{:?}", round.trouble);
            let wake_at = round.wake_at;
            self.launch(round, now);
            if self.is_over() {
                return;
            }
            let answered = self.order.peek().map(|Reverse((at, _))| *at);
            let next = answered.into_iter().chain(wake_at).min();
            now = next.expect("something is unfinished").max(now);
            self.take_answer(now).await;
        }
    }

    fn moment(&self, utc: UtcMillis) -> Now {
        Now {
            utc,
            steady: Steady(utc.since(self.begun)),
        }
    }

    fn is_over(&self) -> bool {
        let cloud = lock(&self.cloud);
        cloud.durations.is_empty() && cloud.jobs.values().all(|job| job.known.is_some())
    }

    fn launch(&mut self, round: Round, now: UtcMillis) {
        for task in round.tasks {
            let call = match &task {
                Task::Submit { .. } => lock(&self.cloud).take(Kind::Submit, now),
                Task::Track { .. } => lock(&self.cloud).take(Kind::Query, now),
                // Keys that sign need nothing from the network.
                Task::Prepare { .. } => Call {
                    kind: Kind::Query,
                    turn: now,
                    answered: now,
                    is_refused: false,
                },
                Task::Look { .. } | Task::List { .. } => panic!("no job is in doubt"),
            };
            self.launched += 1;
            let number = self.launched;
            self.order.push(Reverse((call.answered, number)));
            self.flights.insert(number, Flight { call, task });
        }
    }

    /// Hands over one answer that has arrived, if there is one.
    async fn take_answer(&mut self, now: UtcMillis) {
        let is_due = self.order.peek().is_some_and(|Reverse((at, _))| *at <= now);
        if !is_due {
            return;
        }
        let Some(Reverse((_, number))) = self.order.pop() else {
            return;
        };
        let flight = self.flights.remove(&number).expect("it was launched");
        lock(&self.cloud).call = flight.call;
        let finished = flight.task.run().await;
        self.dispatcher
            .finish(finished, self.moment(now))
            .await
            .expect("stored");
    }
}

fn keys() -> Credentials {
    Credentials::AkSk(AccessKeys {
        access_key: "benchmark".into(),
        secret_key: SecretString::from("benchmark".to_owned()),
        security_token: None,
    })
}

/// The defaults, but for what the model stands for.
fn settings(dir: &Path, limit: Limit) -> Settings {
    let dir = dir.display();
    let submits = limit.submits_per_minute();
    let text = format!(
        "[queue]\ndatabase = \"{dir}/queue.db\"\n[batch]\nlinger = \"0ms\"\n\
         [targets.default]\nservice = \"bms\"\nendpoint = \"https://bms.example.com\"\nproject_id = \"p\"\n\
         batch_servers_max = 1\nsubmits_per_minute = {submits}\nsubmits_open_max = {OPEN_MAX}\ninventory_interval = \"off\"\n\
         [targets.default.auth]\nkind = \"aksk\"\naccess_key_file = \"{dir}/a\"\nsecret_key_file = \"{dir}/s\"\n"
    );
    Settings::parse(&text, Path::new("bench.toml")).expect("valid")
}

async fn insert(path: &Path, count: usize) {
    let mut producer = yard::connect(path).await;
    let servers = ids::random_ids(count, 1);
    sqlx::query(
        "INSERT INTO power_requests (server_id, action) SELECT value, 'stop' FROM json_each(?)",
    )
    .bind(serde_json::to_string(&servers).expect("text"))
    .execute(&mut producer)
    .await
    .expect("inserted");
    producer.close().await.expect("closed");
}

/// What a client of the fixed intervals does next, and when.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// Submits, as far as it may.
    Submit,
    /// Asks for a job.
    Ask(JobId),
    /// Takes an answer; the number is the call's.
    Answer(usize, Option<JobId>),
}

/// A client that keeps to the limit of submits and asks for each job at fixed intervals, however many
/// others it asks for. Where in its interval a job begins is chance.
fn poll_at_intervals(limit: Limit, durations: Vec<Duration>, every: Duration) -> Cloud {
    let begun = UtcMillis(1_800_000_000_000);
    let mut left = durations.len();
    let mut cloud = Cloud::new(limit, durations, begun);
    let mut steps = BinaryHeap::from([Reverse((begun, Step::Submit))]);
    let mut calls: Vec<Call> = Vec::new();
    let mut chance = Chance(13);
    let mut open = 0;
    let mut window: VecDeque<UtcMillis> = VecDeque::new();
    while let Some(Reverse((now, step))) = steps.pop() {
        match step {
            Step::Submit => {
                while window.front().is_some_and(|&at| now.since(at) >= MINUTE) {
                    window.pop_front();
                }
                while left > 0 && open < OPEN_MAX && window.len() < limit.submits_per_minute() {
                    left -= 1;
                    open += 1;
                    window.push_back(now);
                    let call = cloud.take(Kind::Submit, now);
                    steps.push(Reverse((call.answered, Step::Answer(calls.len(), None))));
                    calls.push(call);
                }
                if let Some(&first) = window.front().filter(|_| left > 0 && open < OPEN_MAX) {
                    steps.push(Reverse((first + MINUTE, Step::Submit)));
                }
            }
            Step::Ask(job) => {
                let call = cloud.take(Kind::Query, now);
                steps.push(Reverse((
                    call.answered,
                    Step::Answer(calls.len(), Some(job)),
                )));
                calls.push(call);
            }
            Step::Answer(number, None) => {
                open -= 1;
                cloud.call = calls[number];
                let job = cloud.accept(ServerId("any".into()));
                let first = now + every.mul_f64(chance.share());
                steps.push(Reverse((first, Step::Ask(job))));
                steps.push(Reverse((now, Step::Submit)));
            }
            Step::Answer(number, Some(job)) => {
                cloud.call = calls[number];
                let is_refused = cloud.call.is_refused;
                if is_refused || cloud.ask(&job).status == JobStatus::Pending {
                    steps.push(Reverse((now + every, Step::Ask(job))));
                }
            }
        }
    }
    cloud
}
