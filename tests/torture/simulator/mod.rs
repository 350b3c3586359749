//! The proof by simulation: runs the real dispatcher, the decisions of the real loop
//! (`daemon::LoopPolicy`, `daemon::Stop`) and the real store under a virtual clock against the simulated
//! cloud, in process, and checks the promises of the contract after every step.
//!
//! ```text
//!  seed ─▶ draw ──▶ machine ──round, finish──▶ Dispatcher ─▶ Store ─▶ a queue on a RAM disk
//!                    │   ▲                         │tasks                 │ triggers
//!   producer ◀──acts─┤   └─answers, reordered──────┤                      ▼
//!                    │                      real client ─▶ wire        audit ─▶ facts ─▶ rules
//!                    └─ crashes, locks             └─▶ World (ledger) ─────────────┘
//! ```
//!
//! A seed decides everything: the cloud's faults, the settings, what producers insert and when, how
//! long every call is on its way, in which order answers come back, and where the daemon dies:
//! between two steps, before any commit, between a call's being carried out and its answer. It also
//! decides what the cloud does although it denied it, when somebody sets the clock, reloads other
//! settings or wrong secrets, stops the daemon, prunes, starts a second one, or puts an earlier
//! copy of the queue back. Half of the seeds also have orders with waves and their gate, guards,
//! windows and freezes around a clock change of their zone, and people who approve, override, pause,
//! resume, cancel and retry. Virtual time begins far ahead of this machine's, because the schema's
//! triggers ask SQLite for "now". Needs no network and no clock; a failing seed replays exactly.
//!
//! Whenever the daemon has nothing left to do, each request that waits must have a reason in
//! `power_waiting`, and the reason must be true.
//!
//! What it takes for granted: a cloud that acts on what it denied begins within the settling time,
//! and is at it for longer than two looks of a row are apart; a throttle, in disguise too, means
//! that nobody looked at the call.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::runtime::Runtime;

use poweryard::store::{Store, StoreOptions};

mod audit;
mod cores;
mod daemon;
mod draw;
mod exhaustive;
mod facts;
mod guards;
mod machine;
mod orders;
mod producer;
mod reasons;
mod rng;
mod rules;
mod staff;
mod windows;
mod wire;

pub(crate) use cores::on_every_core;
pub(crate) use exhaustive::KINDS;

use machine::Machine;

/// A promise that does not hold, or a simulation that cannot go on; one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{0}")]
pub(crate) struct Broken(pub(crate) String);

impl From<sqlx::Error> for Broken {
    fn from(error: sqlx::Error) -> Self {
        Self(format!("the simulation's own SQL failed: {error}"))
    }
}

/// A run that broke a promise.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// Replays it.
    pub(crate) seed: u64,
    /// Which promise, and how.
    pub(crate) what: Broken,
    /// What happened, step by step, if asked for.
    pub(crate) trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}", self.seed, self.what)
    }
}

impl std::error::Error for Failure {}

/// What happened in a run that kept every promise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// How requests ended: state and evidence, and how many.
    pub(crate) ends: std::collections::BTreeMap<String, u64>,
    /// Submit calls that reached the cloud.
    pub(crate) submits: u64,
    /// How often a daemon died.
    pub(crate) crashes: u64,
    /// Steps of the simulation.
    pub(crate) steps: u64,
    /// Commits of the daemon.
    pub(crate) commits: u64,
    /// Calls of any kind that reached the cloud.
    pub(crate) calls: u64,
    /// How often a daemon was stopped in order.
    pub(crate) stops: u64,
    /// How often an earlier copy of the queue was put back.
    pub(crate) restores: u64,
    /// Requests for which there was evidence to be had; none of them ended `unknown`.
    pub(crate) with_evidence: u64,
    /// Moments at which the reasons of all that waited were checked.
    pub(crate) quiet: u64,
    /// Requests that a wave let go.
    pub(crate) waved: u64,
    /// Requests that left outside a window for a reason of their own.
    pub(crate) overridden: u64,
    /// Decided by the whole history: equal for equal runs.
    pub(crate) digest: u64,
}

impl Summary {
    /// Adds the counts of another run.
    pub(crate) fn add(&mut self, other: &Self) {
        for (end, count) in &other.ends {
            *self.ends.entry(end.clone()).or_default() += count;
        }
        self.submits += other.submits;
        self.crashes += other.crashes;
        self.steps += other.steps;
        self.commits += other.commits;
        self.calls += other.calls;
        self.stops += other.stops;
        self.restores += other.restores;
        self.with_evidence += other.with_evidence;
        self.quiet += other.quiet;
        self.waved += other.waved;
        self.overridden += other.overridden;
        self.digest ^= other.digest;
    }
}

/// Runs seeds, one after another, each on a fresh queue. One for each thread.
pub(crate) struct Simulator {
    runtime: Runtime,
    folder: Folder,
    /// A queue as the daemon makes it, with the audit beside it.
    fresh: Vec<u8>,
}

impl Simulator {
    /// Prepares a folder on a RAM disk, if there is one, and a queue to begin each run with.
    ///
    /// # Errors
    /// When files or the queue cannot be made.
    pub(crate) fn new() -> Result<Self, Broken> {
        let io = |error: std::io::Error| Broken(format!("cannot prepare the simulation: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(io)?;
        let folder = Folder::new().map_err(io)?;
        let path = folder.path.join("fresh.db");
        runtime.block_on(make_fresh(&path))?;
        let fresh = std::fs::read(&path).map_err(io)?;
        Ok(Self {
            runtime,
            folder,
            fresh,
        })
    }

    /// Runs `seed` to its end.
    ///
    /// # Errors
    /// The promise that was broken; with `trace`, also what led there.
    pub(crate) fn run(&self, seed: u64, trace: bool) -> Result<Summary, Failure> {
        self.run_with(seed, trace, |seed| {
            let mut rng = rng::Rng::new(seed);
            let plan = draw::plan(&mut rng)?;
            Ok((plan, rng, None))
        })
    }

    fn run_with(
        &self,
        seed: u64,
        trace: bool,
        plan: impl FnOnce(u64) -> Result<(draw::Plan, rng::Rng, Option<machine::Point>), Broken>,
    ) -> Result<Summary, Failure> {
        let mut trace = trace.then(Vec::new);
        let outcome = self.runtime.block_on(async {
            let (plan, rng, end_at) = plan(seed)?;
            let path = self.folder.begin(&self.fresh)?;
            let mut machine = Machine::new(plan, rng, &path, end_at, &mut trace).await?;
            let outcome = machine.run().await;
            machine.close().await;
            outcome
        });
        outcome.map_err(|what| Failure {
            seed,
            what,
            trace: trace.unwrap_or_default(),
        })
    }
}

/// How a daemon's queue is opened here: a commit waits for nobody.
fn store_options() -> StoreOptions {
    StoreOptions {
        busy_timeout: std::time::Duration::ZERO,
        synced: false,
        allow_commit: None,
    }
}

async fn make_fresh(path: &Path) -> Result<(), Broken> {
    let store = Store::open_with(path, &store_options())
        .await
        .map_err(|error| Broken(error.to_string()))?;
    store
        .close()
        .await
        .map_err(|error| Broken(error.to_string()))?;
    let mut connection = connect(path).await?;
    audit::install(&mut connection).await?;
    sqlx::Connection::close(connection).await?;
    Ok(())
}

/// A producer's connection.
async fn connect(path: &Path) -> Result<SqliteConnection, Broken> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .synchronous(sqlx::sqlite::SqliteSynchronous::Off)
        .disable_statement_logging();
    Ok(options.connect().await?)
}

/// A folder of its own, gone with its owner.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn new() -> std::io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let ram = Path::new("/dev/shm");
        let base = if ram.is_dir() {
            ram.to_owned()
        } else {
            std::env::temp_dir()
        };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("poweryard-torture-{}-{number}", std::process::id()));
        // One that was killed, and had our number, may have left its own.
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::create_dir_all(&path)?,
        }
        Ok(Self { path })
    }

    /// A fresh queue in place of the one before.
    fn begin(&self, fresh: &[u8]) -> Result<PathBuf, Broken> {
        let path = self.path.join("queue.db");
        for ending in ["queue.db-wal", "queue.db-shm", "queue.db.epoch"] {
            let _ = std::fs::remove_file(self.path.join(ending));
        }
        std::fs::write(&path, fresh)
            .map_err(|error| Broken(format!("cannot write {}: {error}", path.display())))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
