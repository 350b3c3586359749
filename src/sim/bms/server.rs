//! One bare-metal server: its power, the operation it is in, and what the API says of both. Knows
//! nothing of jobs and faults.
//!
//! State is updated lazily: each reader gives the time, and what has ended by then is applied.

use crate::model::{PowerAction, ServerId, UtcMillis};
use crate::sim::record::OnOff;

/// When all servers were made: 2026-01-01T00:00:00Z.
pub(super) const CREATED: UtcMillis = UtcMillis(1_767_225_600_000);

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
    pub(super) updated: UtcMillis,
    pub(super) operation: Option<Operation>,
}

/// A power operation that has begun.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operation {
    pub(super) action: PowerAction,
    pub(super) begin: UtcMillis,
    /// `None`: never.
    pub(super) end: Option<UtcMillis>,
    /// Whether the power changes at the end.
    pub(super) succeeds: bool,
}

/// Why a call or one of its servers is refused; always HTTP 400.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sim) struct Refusal {
    pub(in crate::sim) code: String,
    pub(in crate::sim) message: String,
}

impl Refusal {
    pub(super) fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
        }
    }

    pub(super) fn missing() -> Self {
        Self::new("BMS.0040", "The server does not exist.")
    }
}

/// The four words and numbers that tell a server's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) status: &'static str,
    pub(super) vm_state: &'static str,
    pub(super) task_state: Option<&'static str>,
    pub(super) power_state: u8,
}

impl Server {
    pub(super) fn new(id: ServerId, index: usize, is_on: bool) -> Self {
        let name = format!("bms-{:04}", index + 1);
        let is_locked = false;
        let is_missing = false;
        Self {
            id,
            name,
            index,
            is_on,
            is_locked,
            is_missing,
            updated: CREATED,
            operation: None,
        }
    }

    /// Applies an operation that has ended by `now`.
    pub(super) fn settle(&mut self, now: UtcMillis) {
        let Some(operation) = self.operation else {
            return;
        };
        let Some(end) = operation.end.filter(|&end| end <= now) else {
            return;
        };
        if operation.succeeds {
            self.is_on = OnOff::after(operation.action) == OnOff::On;
        }
        self.updated = end;
        self.operation = None;
    }

    /// Why it would not take `action` at this moment, by the documented preconditions.
    pub(super) fn refusal(&self, action: PowerAction) -> Option<Refusal> {
        if self.is_missing {
            return Some(Refusal::missing());
        }
        if self.is_locked {
            return Some(Refusal::new("BMS.0605", "the BMS is locked."));
        }
        if let Some(operation) = &self.operation {
            let (code, doing) = match operation.action {
                PowerAction::Start => ("BMS.0035", "powering on"),
                PowerAction::Stop => ("BMS.0036", "powering off"),
                PowerAction::Reboot => ("BMS.0037", "rebooting"),
            };
            return Some(Refusal::new(
                code,
                format!("Server is {doing}, not allow to {action}."),
            ));
        }
        match (action, self.is_on) {
            (PowerAction::Start, true) => Some(Refusal::new(
                "BMS.0038",
                "Server is running, not allow to start.",
            )),
            (PowerAction::Stop | PowerAction::Reboot, false) => Some(Refusal::new(
                "BMS.0039",
                format!("Server is stopped, not allow to {action}."),
            )),
            (PowerAction::Start, false) | (PowerAction::Stop | PowerAction::Reboot, true) => None,
        }
    }

    pub(super) fn begin(&mut self, operation: Operation) {
        self.updated = operation.begin;
        self.operation = Some(operation);
    }

    /// What the API shows at `now`; a server that is stopping is still `ACTIVE`, one that is
    /// starting still `SHUTOFF`.
    pub(super) fn shown(&self, now: UtcMillis) -> Shown {
        let running = Shown {
            status: "ACTIVE",
            vm_state: "active",
            task_state: None,
            power_state: 1,
        };
        let stopped = Shown {
            status: "SHUTOFF",
            vm_state: "stopped",
            task_state: None,
            power_state: 4,
        };
        let idle = if self.is_on { running } else { stopped };
        let Some(operation) = &self.operation else {
            return idle;
        };
        match operation.action {
            PowerAction::Start => Shown {
                task_state: Some("powering-on"),
                ..idle
            },
            PowerAction::Stop => Shown {
                task_state: Some("powering-off"),
                ..idle
            },
            PowerAction::Reboot => {
                let task_state = if operation.is_in_first_half(now) {
                    "rebooting"
                } else {
                    "reboot_started_hard"
                };
                Shown {
                    status: "HARD_REBOOT",
                    task_state: Some(task_state),
                    ..idle
                }
            }
        }
    }
}

impl Operation {
    fn is_in_first_half(&self, now: UtcMillis) -> bool {
        self.end
            .is_none_or(|end| now.since(self.begin) * 2 < end.since(self.begin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(is_on: bool) -> Server {
        Server::new(
            ServerId("616fb98f-46ca-475e-917e-2563e5a8cd19".into()),
            0,
            is_on,
        )
    }

    fn with_operation(is_on: bool, action: PowerAction, succeeds: bool) -> Server {
        let mut server = server(is_on);
        server.begin(Operation {
            action,
            begin: UtcMillis(1000),
            end: Some(UtcMillis(3000)),
            succeeds,
        });
        server
    }

    fn code(server: &Server, action: PowerAction) -> Option<String> {
        server.refusal(action).map(|refusal| refusal.code)
    }

    #[test]
    fn preconditions_give_the_documented_codes() {
        use PowerAction::{Reboot, Start, Stop};
        let expected = |code: &str| Some(code.to_owned());
        assert_eq!(
            [Start, Stop, Reboot].map(|a| code(&server(true), a)),
            [expected("BMS.0038"), None, None]
        );
        assert_eq!(
            [Start, Stop, Reboot].map(|a| code(&server(false), a)),
            [None, expected("BMS.0039"), expected("BMS.0039")]
        );
        let busy = |is_on, action| code(&with_operation(is_on, action, true), Stop);
        assert_eq!(
            [busy(false, Start), busy(true, Stop), busy(true, Reboot)].map(Option::unwrap),
            ["BMS.0035", "BMS.0036", "BMS.0037"]
        );
        let message = server(false).refusal(Reboot).expect("stopped").message;
        assert_eq!(message, "Server is stopped, not allow to reboot.");
        let locked = Server {
            is_locked: true,
            ..server(true)
        };
        let missing = Server {
            is_missing: true,
            is_locked: true,
            ..server(true)
        };
        assert_eq!(
            (code(&locked, Stop), code(&missing, Stop)),
            (expected("BMS.0605"), expected("BMS.0040"))
        );
    }

    #[test]
    fn a_transition_shows_and_then_the_power_has_changed() {
        let mut stopping = with_operation(true, PowerAction::Stop, true);
        let during = stopping.shown(UtcMillis(1500));
        assert_eq!(
            (during.status, during.task_state, during.power_state),
            ("ACTIVE", Some("powering-off"), 1)
        );
        stopping.settle(UtcMillis(2999));
        assert!(stopping.operation.is_some());
        stopping.settle(UtcMillis(3000));
        let after = stopping.shown(UtcMillis(3000));
        assert_eq!(
            (
                after.status,
                after.vm_state,
                after.task_state,
                after.power_state
            ),
            ("SHUTOFF", "stopped", None, 4)
        );

        let starting = with_operation(false, PowerAction::Start, true).shown(UtcMillis(1500));
        assert_eq!(
            (starting.status, starting.task_state),
            ("SHUTOFF", Some("powering-on"))
        );
    }

    #[test]
    fn a_reboot_goes_through_two_task_states() {
        let rebooting = with_operation(true, PowerAction::Reboot, true);
        let states = [1000, 1999, 2000, 2999].map(|ms| {
            rebooting
                .shown(UtcMillis(ms))
                .task_state
                .unwrap_or_default()
        });
        assert_eq!(
            states,
            [
                "rebooting",
                "rebooting",
                "reboot_started_hard",
                "reboot_started_hard"
            ]
        );
        assert_eq!(rebooting.shown(UtcMillis(1000)).status, "HARD_REBOOT");
    }

    #[test]
    fn a_failed_operation_leaves_the_power_as_it_was() {
        let mut starting = with_operation(false, PowerAction::Start, false);
        starting.settle(UtcMillis(5000));
        assert!(!starting.is_on && starting.operation.is_none());
    }
}
