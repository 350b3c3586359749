//! A moment at which the daemon has nothing to do and nothing is on its way: whatever waits then
//! waits for a reason, which the queue names.

use std::time::Duration;

use super::Machine;
use crate::simulator::Broken;
use crate::simulator::reasons::{self, Said};

/// A daemon that wakes sooner than this may be about to do something.
const SOON: Duration = Duration::from_millis(1_500);

/// Called after a round that had nothing to do.
pub(super) async fn check(machine: &mut Machine<'_>) -> Result<(), Broken> {
    let now = machine.moment();
    let wakes_in = machine.wake_at.map(|at| at.since(now.real));
    let is_quiet = machine.flights.iter().all(|flight| flight.orphaned)
        && wakes_in.is_none_or(|wait| wait >= SOON);
    if !is_quiet {
        return Ok(());
    }
    let holds = sqlx::query_as("SELECT target, action, label, kind, reason, until FROM holds")
        .fetch_all(&mut machine.connection)
        .await?;
    let waiting = sqlx::query_as("SELECT id, reason FROM power_waiting")
        .fetch_all(&mut machine.connection)
        .await?;
    let said = Said {
        holds,
        waiting,
        wakes_in,
    };
    machine.summary.quiet += 1;
    reasons::check(&machine.facts, &said, now)
}
