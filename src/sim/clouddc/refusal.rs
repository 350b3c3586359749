//! Why the service refuses, in its words: `{"error_code","error_msg"}`. Decides nothing.
//!
//! The shape is documented; the codes are made up, since no table of them is public, apart from
//! that of the printed example.

use crate::model::{PowerAction, ServerId};
use crate::sim::answer::Answer;

/// The code of a call that is refused for what it says.
pub(in crate::sim) const INVALID_CODE: &str = "CloudDC.0000";
/// Its text.
pub(in crate::sim) const INVALID_TEXT: &str = "Invalid request parameter.";
/// The code of an operation that failed.
pub(in crate::sim) const FAILED_CODE: &str = "CloudDC.0006";
/// Its text.
pub(in crate::sim) const FAILED_TEXT: &str = "Failed to operate the physical server.";

/// Why a server does not take an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Missing,
    Locked,
    /// It is in this operation.
    Busy(PowerAction),
    AlreadyOn,
    AlreadyOff,
    /// Only a running server is rebooted.
    NotRunning,
}

impl Reason {
    /// As the answer to a whole call; names the server if `id` is given.
    pub(super) fn answer(self, status: u16, id: Option<&ServerId>) -> Answer {
        let server = match id {
            Some(id) => format!("The physical server {id}"),
            None => "The physical server".to_owned(),
        };
        Answer::flat_refusal(status, self.code(), &format!("{server} {}.", self.text()))
    }

    fn code(self) -> &'static str {
        match self {
            Self::Missing => "CloudDC.0001",
            Self::Locked => "CloudDC.0002",
            Self::Busy(_) => "CloudDC.0003",
            Self::AlreadyOn | Self::AlreadyOff => "CloudDC.0004",
            Self::NotRunning => "CloudDC.0005",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Missing => "does not exist",
            Self::Locked => "is frozen or in maintenance",
            Self::Busy(PowerAction::Start) => "is being powered on",
            Self::Busy(PowerAction::Stop) => "is being powered off",
            Self::Busy(PowerAction::Reboot) => "is being rebooted",
            Self::AlreadyOn => "is already powered on",
            Self::AlreadyOff => "is already powered off",
            Self::NotRunning => "is powered off and cannot be rebooted",
        }
    }
}

/// The answer to a call that cannot be understood or names too many servers.
pub(in crate::sim) fn invalid() -> Answer {
    Answer::flat_refusal(400, INVALID_CODE, INVALID_TEXT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_documented_shape_and_names_its_server_if_told_to() {
        let expected = include_str!("../../../tests/fixtures/api-examples/clouddc-error-400.json");
        assert_eq!(
            invalid().value(),
            serde_json::from_str::<serde_json::Value>(expected).expect("JSON")
        );
        let id = ServerId("01939592-e8fe-7d9b-9332-4589486377a4".into());
        let text =
            |id| Reason::Busy(PowerAction::Stop).answer(400, id).value()["error_msg"].clone();
        assert_eq!(text(None), "The physical server is being powered off.");
        assert_eq!(
            text(Some(&id)),
            format!("The physical server {id} is being powered off.")
        );
    }
}
