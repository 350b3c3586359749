//! The proof by simulation, any number of seeds: `cargo run --release --example torture -- --seeds
//! 10000`.
//!
//! Exit 1 with the seed and what it broke; `--from SEED --seeds 1 --verbose` replays it step by
//! step.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
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
    /// In place of seeds: one scenario of each kind, once for each commit and each call at which
    /// its daemon can die.
    #[arg(long, conflicts_with_all = ["seeds", "from", "keep_going", "verbose"])]
    every_crash: bool,
}

/// What the threads share.
struct Work {
    next: AtomicU64,
    end: u64,
    stop: AtomicBool,
    total: Mutex<(Summary, Vec<Failure>)>,
    bar: ProgressBar,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.every_crash {
        return crash_everywhere();
    }
    let started = Instant::now();
    let work = Work {
        next: AtomicU64::new(args.from),
        end: args.from + args.seeds,
        stop: AtomicBool::new(false),
        total: Mutex::default(),
        bar: bar(args.seeds, args.verbose),
    };
    on_every_core(|| {
        if let Err(broken) = run_seeds(&work, &args) {
            println!("{broken}");
            work.stop.store(true, Ordering::Relaxed);
        }
    });
    work.bar.finish_and_clear();
    report(
        work.total
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner),
        started.elapsed(),
    )
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

fn run_seeds(work: &Work, args: &Args) -> Result<(), Broken> {
    let simulator = Simulator::new()?;
    while !work.stop.load(Ordering::Relaxed) {
        let seed = work.next.fetch_add(1, Ordering::Relaxed);
        if seed >= work.end {
            break;
        }
        let outcome = simulator.run(seed, args.verbose);
        let mut total = work.total.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(summary) => total.0.add(&summary),
            Err(failure) => {
                work.stop.fetch_or(!args.keep_going, Ordering::Relaxed);
                total.1.push(failure);
            }
        }
        work.bar.inc(1);
    }
    Ok(())
}

fn report((total, mut failures): (Summary, Vec<Failure>), took: Duration) -> ExitCode {
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

fn bar(seeds: u64, verbose: bool) -> ProgressBar {
    let shown = std::io::stderr().is_terminal() && !verbose;
    let target = if shown {
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
