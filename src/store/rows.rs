//! Stored text to values. A value that does not read names itself instead of ending the pass with a riddle.

use std::str::FromStr;

use super::StoreError;
use crate::model::{JobStatus, Operation, UtcMillis};

pub(super) fn word<T: FromStr>(text: &str) -> Result<T, StoreError>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| StoreError::Unreadable(error.to_string()))
}

pub(super) fn time(text: &str) -> Result<UtcMillis, StoreError> {
    word(text)
}

pub(super) fn maybe_time(text: Option<String>) -> Result<Option<UtcMillis>, StoreError> {
    text.as_deref().map(time).transpose()
}

/// A text of which only the bytes are certain.
pub(super) fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// A number that counts something, and that a stranger may have written: never so large that one more would not fit.
pub(super) fn count(number: i64) -> u32 {
    number.clamp(0, i64::from(i32::MAX)) as u32
}

/// A time that a stranger may have spoilt: then none, since the pass must go on.
pub(super) fn readable_time(text: Option<String>) -> Option<UtcMillis> {
    text.and_then(|text| text.parse().ok())
}

/// A server's last operation, as `reboot succeeded`.
pub(super) fn operation_text(operation: Operation) -> String {
    let status = match operation.status {
        JobStatus::Pending => "pending",
        JobStatus::Succeeded => "succeeded",
        JobStatus::Failed => "failed",
    };
    format!("{} {status}", operation.action)
}

/// Reads `operation_text` back; none for anything else.
pub(super) fn operation(text: &str) -> Option<Operation> {
    let (action, status) = text.split_once(' ')?;
    let status = match status {
        "pending" => JobStatus::Pending,
        "succeeded" => JobStatus::Succeeded,
        "failed" => JobStatus::Failed,
        _ => return None,
    };
    Some(Operation { action: action.parse().ok()?, status })
}
