//! The proof by simulation, in small: some seeds, and crashes all over one scenario of each
//! kind. `cargo run --release --example torture` runs any number of seeds.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use simulator::{KINDS, Simulator, Summary, on_every_core};

mod simulator;

const SEEDS: u64 = 100;

/// Has `work` done with each item once, on all cores, each with a simulator of its own.
fn with_each<T: Sync>(items: &[T], work: impl Fn(&Simulator, &T) + Sync) {
    let next = AtomicUsize::new(0);
    on_every_core(|| {
        let simulator = Simulator::new().expect("a folder for the queue");
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(&simulator, item);
        }
    });
}

#[test]
fn no_seed_breaks_a_promise() {
    let seeds: Vec<u64> = (0..SEEDS).collect();
    let total = Mutex::new(Summary::default());
    with_each(&seeds, |simulator, seed| {
        match simulator.run(*seed, false) {
            Ok(summary) => total
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .add(&summary),
            Err(failure) => {
                let traced = simulator.run(*seed, true).expect_err("a seed replays");
                panic!("{failure}\n{}", traced.trace.join("\n"));
            }
        }
    });
    let total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    let rare = [
        total.crashes,
        total.stops,
        total.restores,
        total.with_evidence,
        total.quiet,
        total.waved,
    ];
    assert!(rare.iter().all(|count| *count > 0), "{total:?}");
}

#[test]
fn a_seed_replays_exactly() {
    let simulator = Simulator::new().expect("a folder for the queue");
    for seed in 1000..1008 {
        let first = simulator.run(seed, false).expect("no promise is broken");
        assert_eq!(
            simulator.run(seed, true).expect("nor the second time"),
            first,
            "seed {seed}"
        );
    }
}

/// All points of all kinds take minutes without optimisation: a quarter of each kind's here,
/// others with each kind; `--every-crash` of the example tries them all.
#[test]
fn a_crash_at_any_commit_or_call_breaks_no_promise() {
    const EVERY: usize = 4;
    let kinds: Vec<(usize, &str)> = KINDS.into_iter().enumerate().collect();
    with_each(&kinds, |simulator, (place, kind)| {
        match simulator.run_every_crash(kind, |point| point % EVERY == place % EVERY) {
            Ok(points) => assert!(
                points.commits > 5 && points.calls > 3,
                "\"{kind}\" has only {points:?}"
            ),
            Err(failure) => panic!("{failure}\n{}", failure.trace.join("\n")),
        }
    });
}
