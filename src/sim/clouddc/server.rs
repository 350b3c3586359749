//! One physical server: its power, the operation it is in, the last one it had, and what the API
//! says of them. Knows nothing of calls and faults.
//!
//! State is updated lazily: each reader gives the time, and what has ended by then is applied. The
//! last operation has neither time nor id and is kept until the next one ends, so a word from long
//! ago looks like one of this moment.

use std::fmt;

use super::refusal::Reason;
use crate::model::{PowerAction, ServerId, UtcMillis};
use crate::sim::record::OnOff;
use crate::sim::scenario::clouddc::AlreadySo;

/// A server.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) id: ServerId,
    pub(super) name: String,
    /// Its place in the list, from 0.
    pub(super) index: usize,
    /// Power, apart from a running operation.
    pub(super) is_on: bool,
    pub(super) is_locked: bool,
    /// It has an id, but does not exist.
    pub(super) is_missing: bool,
    /// The last operation that has ended.
    pub(super) last: Option<Ended>,
    pub(super) operation: Option<Operation>,
}

/// A power operation that has been accepted and has not ended.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    pub(super) action: PowerAction,
    /// From when on `…-processing` shows; until then the server looks as before.
    pub(super) shows_from: UtcMillis,
    /// `None`: never.
    pub(super) end: Option<UtcMillis>,
    /// `None`: the power is as wished at the end.
    pub(super) failure: Option<Failure>,
}

/// A power operation that has ended.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub(super) action: PowerAction,
    pub(super) failure: Option<Failure>,
}

/// Why an operation failed; `error` of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: String,
    pub(super) message: String,
}

/// What the API tells of a server's power.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown<'a> {
    pub(super) power_state: &'static str,
    /// `None`: it never had an operation.
    pub(super) operation_state: Option<OperationState>,
    /// The failure that `operation_state` tells of.
    pub(super) failure: Option<&'a Failure>,
}

/// A word of `operation_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OperationState {
    action: PowerAction,
    phase: &'static str,
}

impl fmt::Display for OperationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operation = match self.action {
            PowerAction::Start => "power-on",
            PowerAction::Stop => "power-off",
            PowerAction::Reboot => "reboot",
        };
        write!(f, "{operation}-{}", self.phase)
    }
}

impl Server {
    pub(super) fn new(id: ServerId, index: usize, is_on: bool) -> Self {
        let name = format!("clouddc-{:04}", index + 1);
        Self {
            id,
            name,
            index,
            is_on,
            is_locked: false,
            is_missing: false,
            last: None,
            operation: None,
        }
    }

    /// Applies an operation that has ended by `now`.
    pub(super) fn settle(&mut self, now: UtcMillis) {
        let Some(Operation {
            action, failure, ..
        }) = self
            .operation
            .take_if(|operation| operation.end.is_some_and(|end| end <= now))
        else {
            return;
        };
        if failure.is_none() {
            self.is_on = OnOff::after(action) == OnOff::On;
        }
        self.last = Some(Ended { action, failure });
    }

    /// Why it would not take `action` at this moment.
    pub(super) fn refusal(&self, action: PowerAction, already_so: AlreadySo) -> Option<Reason> {
        if self.is_missing {
            return Some(Reason::Missing);
        }
        if self.is_locked {
            return Some(Reason::Locked);
        }
        if let Some(operation) = &self.operation {
            return Some(Reason::Busy(operation.action));
        }
        let is_refused = already_so == AlreadySo::Refused;
        match (action, self.is_on) {
            (PowerAction::Start, true) if is_refused => Some(Reason::AlreadyOn),
            (PowerAction::Stop, false) if is_refused => Some(Reason::AlreadyOff),
            (PowerAction::Reboot, false) => Some(Reason::NotRunning),
            (PowerAction::Start | PowerAction::Stop, _) | (PowerAction::Reboot, true) => None,
        }
    }

    /// What the API shows at `now`. With `transition_words`, `power_state` tells the transition
    /// while it shows.
    pub(super) fn shown(&self, now: UtcMillis, transition_words: bool) -> Shown<'_> {
        let power_state = if self.is_on { "on" } else { "off" };
        match &self.operation {
            Some(Operation {
                action, shows_from, ..
            }) if *shows_from <= now => {
                let operation_state = Some(OperationState {
                    action: *action,
                    phase: "processing",
                });
                let power_state = if transition_words {
                    transition(*action)
                } else {
                    power_state
                };
                Shown {
                    power_state,
                    operation_state,
                    failure: None,
                }
            }
            Some(_) | None => {
                let failure = self.last.as_ref().and_then(|last| last.failure.as_ref());
                Shown {
                    power_state,
                    operation_state: self.last.as_ref().map(Ended::operation_state),
                    failure,
                }
            }
        }
    }
}

impl Ended {
    fn operation_state(&self) -> OperationState {
        let phase = if self.failure.is_some() {
            "failed"
        } else {
            "succeed"
        };
        OperationState {
            action: self.action,
            phase,
        }
    }
}

fn transition(action: PowerAction) -> &'static str {
    match action {
        PowerAction::Start => "powering-on",
        PowerAction::Stop => "powering-off",
        PowerAction::Reboot => "rebooting",
    }
}

#[cfg(test)]
mod tests {
    use PowerAction::{Reboot, Start, Stop};

    use super::*;

    fn server(is_on: bool) -> Server {
        Server::new(
            ServerId("01939592-e8fe-7d9b-9332-4589486377a4".into()),
            0,
            is_on,
        )
    }

    /// Accepted at 1000, seen from 1200 on, ended at 3000.
    fn with_operation(is_on: bool, action: PowerAction, failure: Option<Failure>) -> Server {
        let operation = Operation {
            action,
            shows_from: UtcMillis(1200),
            end: Some(UtcMillis(3000)),
            failure,
        };
        Server {
            operation: Some(operation),
            ..server(is_on)
        }
    }

    fn words(server: &Server, ms: i64) -> (&'static str, Option<String>) {
        let shown = server.shown(UtcMillis(ms), false);
        (
            shown.power_state,
            shown.operation_state.map(|state| state.to_string()),
        )
    }

    fn word(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn what_is_refused_depends_on_power_lock_and_operation() {
        let refused = |server: &Server, action| server.refusal(action, AlreadySo::Refused);
        assert_eq!(
            [Start, Stop, Reboot].map(|a| refused(&server(true), a)),
            [Some(Reason::AlreadyOn), None, None]
        );
        assert_eq!(
            [Start, Stop, Reboot].map(|a| refused(&server(false), a)),
            [None, Some(Reason::AlreadyOff), Some(Reason::NotRunning)]
        );
        for action in [Start, Stop, Reboot] {
            assert_eq!(
                refused(&with_operation(true, action, None), Stop),
                Some(Reason::Busy(action))
            );
        }
        let locked = Server {
            is_locked: true,
            ..server(true)
        };
        let missing = Server {
            is_missing: true,
            ..locked.clone()
        };
        assert_eq!(
            [&locked, &missing].map(|s| refused(s, Stop)),
            [Some(Reason::Locked), Some(Reason::Missing)]
        );
    }

    #[test]
    fn already_so_can_be_accepted_but_a_stopped_server_never_reboots() {
        let accepted = |is_on, action| server(is_on).refusal(action, AlreadySo::Accepted);
        assert_eq!([accepted(true, Start), accepted(false, Stop)], [None, None]);
        assert_eq!(accepted(false, Reboot), Some(Reason::NotRunning));
    }

    #[test]
    fn an_operation_shows_late_and_its_result_stays_for_ever() {
        let mut stopping = with_operation(true, Stop, None);
        stopping.last = Some(Ended {
            action: Reboot,
            failure: None,
        });
        assert_eq!(words(&stopping, 1199), ("on", word("reboot-succeed")));
        assert_eq!(words(&stopping, 1200), ("on", word("power-off-processing")));
        stopping.settle(UtcMillis(2999));
        assert_eq!(words(&stopping, 2999), ("on", word("power-off-processing")));
        stopping.settle(UtcMillis(3000));
        assert_eq!(words(&stopping, 3000), ("off", word("power-off-succeed")));
        assert_eq!(
            words(&stopping, i64::MAX),
            ("off", word("power-off-succeed"))
        );
    }

    #[test]
    fn an_operation_that_ends_before_it_shows_is_never_seen_processing() {
        let mut rebooting = with_operation(true, Reboot, None);
        rebooting.operation.as_mut().expect("just begun").shows_from = UtcMillis(5000);
        assert_eq!(words(&rebooting, 2999), ("on", None));
        rebooting.settle(UtcMillis(3000));
        assert_eq!(words(&rebooting, 3000), ("on", word("reboot-succeed")));
    }

    #[test]
    fn a_failure_keeps_power_and_error_until_the_next_operation_shows() {
        let failure = Failure {
            code: "c".into(),
            message: "m".into(),
        };
        let mut starting = with_operation(false, Start, Some(failure.clone()));
        assert_eq!(
            starting.shown(UtcMillis(2000), false).failure,
            None,
            "not before it has failed"
        );
        starting.settle(UtcMillis(3000));
        assert_eq!(words(&starting, 3000), ("off", word("power-on-failed")));
        assert_eq!(
            starting.shown(UtcMillis(3000), false).failure,
            Some(&failure)
        );
        starting.operation = Some(Operation {
            action: Start,
            shows_from: UtcMillis(4000),
            end: None,
            failure: None,
        });
        assert_eq!(
            starting.shown(UtcMillis(3999), false).failure,
            Some(&failure)
        );
        assert_eq!(starting.shown(UtcMillis(4000), false).failure, None);
    }

    #[test]
    fn the_older_words_show_while_processing_shows() {
        for (is_on, action, expected) in [
            (false, Start, "powering-on"),
            (true, Stop, "powering-off"),
            (true, Reboot, "rebooting"),
        ] {
            let server = with_operation(is_on, action, None);
            let before = if is_on { "on" } else { "off" };
            let powers = [1199, 1200].map(|ms| server.shown(UtcMillis(ms), true).power_state);
            assert_eq!(powers, [before, expected]);
        }
    }
}
