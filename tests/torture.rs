//! The proof by simulation, in small: a few hundred seeds, and a crash at every point of one scenario of each kind.
//! `cargo run --release --example torture` runs any number of seeds.

use poweryard::torture::{KINDS, Simulator};

const SEEDS: u64 = 200;

#[test]
fn no_seed_breaks_a_promise() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    std::thread::scope(|scope| {
        for first in 0..threads {
            scope.spawn(move || {
                let simulator = Simulator::new().expect("a folder for the queue");
                for seed in (first..SEEDS).step_by(threads as usize) {
                    if let Err(failure) = simulator.run(seed, false) {
                        let traced = simulator.run(seed, true).expect_err("a seed replays");
                        panic!("{failure}\n{}", traced.trace.join("\n"));
                    }
                }
            });
        }
    });
}

#[test]
fn a_seed_replays_exactly() {
    let simulator = Simulator::new().expect("a folder for the queue");
    for seed in 1000..1008 {
        let first = simulator.run(seed, false).expect("no promise is broken");
        assert_eq!(simulator.run(seed, true).expect("nor the second time"), first, "seed {seed}");
    }
}

#[test]
fn a_crash_at_every_commit_and_every_call_breaks_no_promise() {
    let simulator = Simulator::new().expect("a folder for the queue");
    for kind in KINDS {
        match simulator.run_every_crash(kind) {
            Ok(points) => assert!(points.commits > 5 && points.calls > 3, "\"{kind}\" has only {points:?}"),
            Err(failure) => panic!("{failure}\n{}", failure.trace.join("\n")),
        }
    }
}
