//! What the service manager is told. Does nothing when there is none; a failure to tell is not
//! worth ending for.
//!
//! A process has one service manager, so what it was told last is kept once for the process.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::Instant;

/// While the daemon starts or stops, each sign of life asks for this much more time. More than the
/// longest single wait in those phases.
const EXTENSION: Duration = Duration::from_secs(60);

/// Rounds may follow each other within a millisecond.
const FEEDS_APART: Duration = Duration::from_secs(1);
/// systemd drops what is longer than 4096 bytes.
const STATUS_CHARS_MAX: usize = 300;

/// What was said last.
static TOLD: Mutex<ToldSystemd> = Mutex::new(ToldSystemd {
    ready: false,
    refused: false,
    work: String::new(),
});

struct ToldSystemd {
    /// READY=1.
    ready: bool,
    /// The last reload was refused.
    refused: bool,
    /// What the rounds say.
    work: String,
}

impl ToldSystemd {
    fn line(&self) -> String {
        let refused = if self.refused {
            "the last reload was refused, see the log; "
        } else {
            ""
        };
        refused
            .chars()
            .chain(self.work.chars().map(without_control))
            .take(STATUS_CHARS_MAX)
            .collect()
    }
}

/// Producers can write reasons of holds: a line break would let them say something of their own to
/// systemd.
fn without_control(c: char) -> char {
    if c.is_control() { ' ' } else { c }
}

/// Work can flow.
pub(super) fn ready() {
    told().ready = true;
    tell(&[NotifyState::Ready]);
}

/// What the rounds do, if it is another line than before.
pub(super) fn status(work: &str) {
    let mut told = told();
    if told.work != work {
        work.clone_into(&mut told.work);
        tell(&[NotifyState::Status(&told.line())]);
    }
}

/// SIGHUP has come. With `Type=notify-reload`, `systemctl reload` waits from here to [`reloaded`].
pub(crate) fn reloading() {
    // Nothing is reloaded in the eyes of systemd before it is ready, and READY=1 must not come from
    // a reload.
    if told().ready
        && let Ok(at) = NotifyState::monotonic_usec_now()
    {
        tell(&[NotifyState::Reloading, at]);
    }
}

/// The new settings are in force, or refused, which the status line then says until others are
/// accepted.
pub(crate) fn reloaded(accepted: bool) {
    let mut told = told();
    told.refused = !accepted;
    if told.ready {
        tell(&[NotifyState::Ready, NotifyState::Status(&told.line())]);
    }
}

/// No new call leaves.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Asks for more time to start or to stop, beyond TimeoutStartSec or TimeoutStopSec.
pub(super) fn extend() {
    let micros = u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::ExtendTimeoutUsec(micros)]);
}

/// The watchdog of the unit (WatchdogSec=). Fed after each completed step, never by a timer.
pub(super) struct Watchdog {
    /// None: the unit has none.
    limit: Option<Duration>,
    fed_at: Option<Instant>,
}

impl Watchdog {
    pub(super) fn of_the_unit() -> Self {
        Self {
            limit: sd_notify::watchdog_enabled(),
            fed_at: None,
        }
    }

    /// Says that something was done, unless that was said a moment ago.
    pub(super) fn feed(&mut self) {
        let Some(limit) = self.limit else { return };
        if self
            .fed_at
            .is_none_or(|at| at.elapsed() >= (limit / 4).min(FEEDS_APART))
        {
            self.fed_at = Some(Instant::now());
            tell(&[NotifyState::Watchdog]);
        }
    }

    /// How long nothing may happen without a feed.
    pub(super) fn patience(&self) -> Duration {
        self.limit.map_or(Duration::MAX, |limit| limit / 2)
    }
}

fn told() -> MutexGuard<'static, ToldSystemd> {
    TOLD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("cannot notify systemd: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_short_line_whatever_it_is_made_of() {
        let mut told = ToldSystemd {
            ready: true,
            refused: false,
            work: "held: why\nMAINPID=1".to_owned(),
        };
        assert_eq!(told.line(), "held: why MAINPID=1");
        told.refused = true;
        told.work = "ä".repeat(5000);
        assert!(
            told.line()
                .starts_with("the last reload was refused, see the log; ä")
        );
        assert_eq!(told.line().chars().count(), STATUS_CHARS_MAX);
    }
}
