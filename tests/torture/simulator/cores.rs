//! A thread on each core, with all that it starts.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Does `work` once on each core that this process may use, and waits.
///
/// A simulation and SQLite's thread take turns thousands of times a second: on two cores each turn
/// wakes the other core.
pub(crate) fn on_every_core(work: impl Fn() + Sync) {
    let allowed = sched_getaffinity(None).expect("Linux tells");
    std::thread::scope(|scope| {
        for core in (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)) {
            let work = &work;
            scope.spawn(move || {
                let mut here = CpuSet::new();
                here.set(core);
                sched_setaffinity(None, &here).expect("it is allowed");
                work();
            });
        }
    });
}
