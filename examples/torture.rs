//! The proof by simulation, any number of seeds: `cargo run --release --example torture -- --seeds
//! 10000`.
//!
//! Exit 1 with the seed and what it broke; `--from SEED --seeds 1 --verbose` replays it step by
//! step.

use std::error::Error;
use std::io::IsTerminal;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use simulator::{Broken, Failure, KINDS, Simulator, Summary, on_every_core};

#[path = "../tests/torture/simulator/mod.rs"]
mod simulator;

/// Run the daemon against the simulated cloud under a virtual clock, seed by seed.
#[derive(Debug, Parser)]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Go on after a failure, and list all of them.
    #[arg(long)]
    keep_going: bool,
    /// Print what happens, step by step; for a few seeds.
    #[arg(long)]
    verbose: bool,
    /// Print the outcome for a program.
    #[arg(long, hide = true)]
    json: bool,
    /// In place of seeds: one scenario of each kind, once for each commit and each call at which
    /// its daemon can die.
    #[arg(long, conflicts_with_all = ["seeds", "from", "keep_going", "verbose"])]
    every_crash: bool,
}

/// Seeds that one process runs. Two simulations in one process would wait for each other: SQLite
/// counts its memory under a lock for all.
const CHUNK: u64 = 100;

/// What came of some seeds.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Outcome {
    total: Summary,
    failures: Vec<Failure>,
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.total.add(&other.total);
        self.failures.extend(other.failures);
    }
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args = Args::parse();
    if args.every_crash {
        return Ok(crash_everywhere());
    }
    let started = Instant::now();
    let outcome = if args.seeds <= CHUNK || args.verbose {
        run_seeds(&args)?
    } else {
        run_chunks(&args)?
    };
    if args.json {
        println!("{}", serde_json::to_string(&outcome)?);
        return Ok(ExitCode::SUCCESS);
    }
    Ok(report(outcome, started.elapsed()))
}

/// Runs processes with a chunk each, one on each core at a time.
fn run_chunks(args: &Args) -> Result<Outcome, Box<dyn Error>> {
    let end = args.from + args.seeds;
    let next = AtomicU64::new(args.from);
    let stop = AtomicBool::new(false);
    let bar = bar(args.seeds);
    let all: Mutex<(Outcome, Option<String>)> = Mutex::default();
    on_every_core(|| {
        while !stop.load(Ordering::Relaxed) {
            let from = next.fetch_add(CHUNK, Ordering::Relaxed);
            if from >= end {
                break;
            }
            let seeds = CHUNK.min(end - from);
            let chunk = run_chunk(from, seeds, args.keep_going);
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            match chunk {
                Ok(chunk) => {
                    let is_over = !chunk.failures.is_empty() && !args.keep_going;
                    stop.fetch_or(is_over, Ordering::Relaxed);
                    all.0.add(chunk);
                }
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    all.1 = Some(format!("seeds from {from}: {error}"));
                }
            }
            bar.inc(seeds);
        }
    });
    bar.finish_and_clear();
    let (outcome, error) = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    match error {
        None => Ok(outcome),
        Some(error) => {
            report(outcome, Duration::ZERO);
            Err(error.into())
        }
    }
}

fn run_chunk(from: u64, seeds: u64, keep_going: bool) -> Result<Outcome, Box<dyn Error>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--json", "--from", &from.to_string()]);
    command.args(["--seeds", &seeds.to_string()]);
    if keep_going {
        command.arg("--keep-going");
    }
    let output = command.stderr(Stdio::inherit()).output()?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Runs them in this process, one after another.
fn run_seeds(args: &Args) -> Result<Outcome, Broken> {
    let simulator = Simulator::new()?;
    let mut outcome = Outcome::default();
    for seed in args.from..args.from + args.seeds {
        match simulator.run(seed, args.verbose) {
            Ok(summary) => outcome.total.add(&summary),
            Err(failure) => {
                outcome.failures.push(failure);
                if !args.keep_going {
                    break;
                }
            }
        }
    }
    Ok(outcome)
}

fn crash_everywhere() -> ExitCode {
    let (next, failures) = (AtomicUsize::new(0), AtomicUsize::new(0));
    on_every_core(|| {
        while let Some(kind) = KINDS.get(next.fetch_add(1, Ordering::Relaxed)) {
            let points = Simulator::new()
                .map_err(|broken| broken.to_string())
                .and_then(|simulator| {
                    let points = simulator.run_every_crash(kind, |_| true);
                    points.map_err(|failure| format!("{}\n{failure}", failure.trace.join("\n")))
                });
            match points {
                Ok(points) => {
                    println!("{kind}: {} commits, {} calls", points.commits, points.calls);
                }
                Err(why) => {
                    println!("{why}");
                    failures.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    });
    match failures.into_inner() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn report(outcome: Outcome, took: Duration) -> ExitCode {
    let Outcome {
        total,
        mut failures,
    } = outcome;
    println!(
        "{} submit calls, {} calls, {} crashes, {} stops, {} restores, {} commits, {} steps in {:.1} s; digest {:016x}",
        total.submits,
        total.calls,
        total.crashes,
        total.stops,
        total.restores,
        total.commits,
        total.steps,
        took.as_secs_f64(),
        total.digest
    );
    println!(
        "{:>9} with evidence to be had, and none of them unknown",
        total.with_evidence
    );
    println!(
        "{:>9} quiet moments; {} requests let go by waves, {} sent outside a window for a reason",
        total.quiet, total.waved, total.overridden
    );
    for (end, count) in &total.ends {
        println!("{count:>9} {end}");
    }
    failures.sort_by_key(|failure| failure.seed);
    for failure in &failures {
        for line in &failure.trace {
            println!("{line}");
        }
        println!(
            "{failure}\n  replay: cargo run --release --example torture -- --from {} --seeds 1 --verbose",
            failure.seed
        );
    }
    if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn bar(seeds: u64) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(seeds), target);
    if let Ok(style) =
        ProgressStyle::with_template("{bar:30} {pos}/{len} seeds, {per_sec}, {eta} left")
    {
        bar.set_style(style);
    }
    bar
}
