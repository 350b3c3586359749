//! What the disk has seen when a call leaves: the real program under `strace`, judged by the order
//! of its system calls. Skipped where there is no `strace`, or where it may not trace.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::process::{Daemon, until};
use crate::common::{UNFINISHED, Yard, insert, wait_for};

/// The texts of a new batch's row, which stand side by side in its record: its action and its
/// state.
const INTENT: &str = "rebootsubmitting";

fn can_trace() -> bool {
    let traced = Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .stderr(Stdio::null())
        .status();
    traced.is_ok_and(|status| status.success())
}

/// What a trace tells of the `-wal` and of the calls.
#[derive(Debug, Default)]
struct Seen {
    /// Pages were written that no sync has followed so far.
    unsynced: bool,
    /// An intent was written since the last call.
    intent: bool,
    /// Threads in the middle of a sync of the `-wal`.
    syncing: BTreeSet<String>,
    calls: usize,
}

impl Seen {
    fn take(&mut self, line: &str) {
        let Some((thread, call)) = line.split_once(' ') else {
            return;
        };
        let call = call.trim_start();
        let is_of_wal = call.contains("queue.db-wal>");
        let syncs = call.starts_with("fsync(") || call.starts_with("fdatasync(");
        let goes_on =
            call.starts_with("<... fsync resumed") || call.starts_with("<... fdatasync resumed");
        if call.starts_with("pwrite64(") && is_of_wal {
            self.unsynced = true;
            self.intent |= call.contains(INTENT);
        } else if syncs && is_of_wal && call.contains("<unfinished") {
            self.syncing.insert(thread.to_owned());
        } else if (syncs && is_of_wal) || (goes_on && self.syncing.remove(thread)) {
            self.unsynced &= !call.ends_with("= 0");
        } else if call.contains("POST /v1/") && call.contains("/action") {
            assert!(
                self.intent,
                "a call leaves, and no intent has been written: {line}"
            );
            assert!(
                !self.unsynced,
                "a call leaves, and its intent is not synced: {line}"
            );
            self.calls += 1;
            self.intent = false;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
async fn the_intent_is_synced_before_the_first_byte_of_its_call() {
    if !can_trace() {
        eprintln!("skipped: this test needs strace, and the right to trace");
        return;
    }
    let yard = Yard::new("[bms]\nservers = 6\nrunning = 1.0\noperation_ms = [50, 50]\n").await;
    let (config, trace) = (yard.write_config(), yard.dir.path().join("trace"));
    let daemon = Daemon::start_traced(&config, &trace);
    let mut producer = yard.producer().await;
    for number in 1..=3 {
        insert(&mut producer, &yard.server(number), "reboot").await;
        wait_for(&mut producer, UNFINISHED, "0").await;
    }
    assert_eq!(daemon.stop().await, Some(0));
    until("the trace is complete", || {
        read(&trace).contains("+++ exited with")
    })
    .await;
    let mut seen = Seen::default();
    read(&trace).lines().for_each(|line| seen.take(line));
    assert_eq!((seen.calls, yard.cloud.ledger().len()), (3, 3));
}

fn read(trace: &Path) -> String {
    String::from_utf8_lossy(&fs::read(trace).unwrap_or_default()).into_owned()
}
