//! Stored text to values. A value that does not read names itself instead of ending the pass with a riddle.

use std::str::FromStr;

use super::StoreError;
use crate::model::UtcMillis;

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

/// A time that a stranger may have spoilt: then none, since the pass must go on.
pub(super) fn readable_time(text: Option<String>) -> Option<UtcMillis> {
    text.and_then(|text| text.parse().ok())
}
