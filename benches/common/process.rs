//! What a process has used, from `/proc`.

use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take before a benchmark gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1800);

/// As of one moment, since the start of the process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Of all its threads that are alive; of those that have ended too, to 10 ms, if that is more.
    pub(crate) cpu: Duration,
    /// The most that was resident at a time, in MiB.
    pub(crate) peak_mib: f64,
    /// Resident, in MiB.
    pub(crate) resident_mib: f64,
    /// How often its threads went to sleep of their own accord.
    pub(crate) sleeps: u64,
}

/// What the process `id` has used so far.
pub(crate) fn usage(id: u32) -> Usage {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let mut usage = Usage {
        peak_mib: field(&status, "VmHWM:") as f64 / 1024.0,
        resident_mib: field(&status, "VmRSS:") as f64 / 1024.0,
        ..Usage::default()
    };
    for thread in fs::read_dir(format!("/proc/{id}/task"))
        .expect("it runs")
        .flatten()
    {
        let read = |name| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
        let schedstat = read("schedstat");
        let ran_ns = schedstat.split_whitespace().next();
        let ran_ns = ran_ns.and_then(|text| text.parse().ok()).unwrap_or(0);
        usage.cpu += Duration::from_nanos(ran_ns);
        usage.sleeps += field(&read("status"), "voluntary_ctxt_switches:");
    }
    usage.cpu = usage.cpu.max(cpu_in_ticks(id));
    usage
}

/// This process, with threads that have ended.
pub(crate) fn own_cpu() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(used.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(used.tv_nsec).unwrap_or(0))
}

/// User and system time, fields 14 and 15 of `stat`; the first after the name is field 3.
fn cpu_in_ticks(id: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields = after_name.split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.filter_map(|text| text.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
}

/// Bytes that the process `id` (or "self") had the disk written, also once it has ended and nobody
/// has waited for it.
pub(crate) fn bytes_written(id: &str) -> u64 {
    let io = fs::read_to_string(format!("/proc/{id}/io")).unwrap_or_default();
    field(&io, "write_bytes:")
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// SIGTERM; what the process had the disk written in its whole life, its last checkpoint included.
pub(crate) fn end(mut child: Child) -> u64 {
    let id = child.id();
    if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        kill_process(pid, Signal::TERM).expect("it runs");
    }
    wait_for("the process ends", || has_ended(id));
    let written = bytes_written(&id.to_string());
    let status = child.wait().expect("it has ended");
    assert!(status.success(), "it ended with {status}");
    written
}

fn has_ended(id: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or_default();
    state.trim_start().starts_with('Z')
}

/// Asks every few milliseconds.
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
