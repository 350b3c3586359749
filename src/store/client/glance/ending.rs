//! What ends a hold, in a clause for people. Pure.

use crate::model::{HoldKind, quoted};
use crate::store::client::HoldRecord;

/// Such as "it ends automatically as the budget allows".
pub(super) fn of_hold(hold: &HoldRecord) -> String {
    let ends = match hold.kind.parse() {
        Ok(HoldKind::Operator) => return format!("`{}` ends it", hold.resume_command()),
        Ok(HoldKind::Approval) => return format!("`{}` approves them", approve_command(hold)),
        Ok(HoldKind::Budget) => "they are sent automatically as the budget allows",
        Ok(HoldKind::Credentials) => {
            "fix the credentials; the daemon then continues, or tries again when the hold ends"
        }
        Ok(HoldKind::Breaker) => "the daemon tries again automatically",
        Ok(HoldKind::UnknownTarget) => "add the target to the config, or cancel the requests",
        Ok(HoldKind::Window) => {
            "they are sent automatically when the window opens; an override_reason lets them go before"
        }
        Ok(HoldKind::Wave) => match &hold.label {
            Some(label) => {
                return format!(
                    "`poweryard resume --label {}` lets the next wave go",
                    quoted(label)
                );
            }
            None => "the daemon lets the next wave go",
        },
        Ok(HoldKind::Restored) => {
            "`poweryard db release` releases them, `poweryard db release --drop` cancels them"
        }
        Err(_) => "this version does not know this kind of hold",
    };
    ends.to_owned()
}

fn approve_command(hold: &HoldRecord) -> String {
    match (&hold.label, &hold.target, &hold.action) {
        (Some(label), _, _) => format!("poweryard approve --label {}", quoted(label)),
        (None, Some(target), Some(action)) => {
            format!("poweryard approve --target {target} --action {action}")
        }
        _ => "poweryard approve".to_owned(),
    }
}
