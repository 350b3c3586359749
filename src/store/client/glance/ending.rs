//! What ends a hold, in a clause for people. Pure.

use crate::model::HoldKind;
use crate::store::client::HoldRecord;

/// Such as "it ends automatically as the budget allows".
pub(super) fn of_hold(hold: &HoldRecord) -> String {
    let ends = match hold.kind.parse() {
        Ok(HoldKind::Operator) => return format!("`{}` ends it", hold.resume_command()),
        Ok(HoldKind::Budget) => "they are sent automatically as the budget allows",
        Ok(HoldKind::Credentials) => {
            "fix the credentials; the daemon then continues, or tries again when the hold ends"
        }
        Ok(HoldKind::Breaker) => "the daemon tries again automatically",
        Ok(HoldKind::UnknownTarget) => "add the target to the config, or cancel the requests",
        Ok(HoldKind::Window) => {
            "they are sent automatically when the window opens; an override_reason lets them go before"
        }
        // Their reasons name the command.
        Ok(HoldKind::Approval) => "somebody approves them",
        Ok(HoldKind::Wave) => "the wave before succeeds, or somebody lets the next one go",
        Ok(HoldKind::Restored) => {
            "`poweryard db release` releases them, `poweryard db release --drop` cancels them"
        }
        Err(_) => "this version does not know this kind of hold",
    };
    ends.to_owned()
}
