//! Stored text to values. A value that does not read names itself instead of ending the pass with a
//! riddle.

use std::str::FromStr;

use super::StoreError;
use crate::model::{Baseline, JobStatus, Operation, PowerAction, TargetName, UtcMillis};

pub(in crate::store) fn word<T: FromStr>(text: &str) -> Result<T, StoreError>
where
    T::Err: std::fmt::Display,
{
    text.parse()
        .map_err(|error: T::Err| StoreError::Unreadable(error.to_string()))
}

pub(in crate::store) fn time(text: &str) -> Result<UtcMillis, StoreError> {
    word(text)
}

pub(in crate::store) fn maybe_time(text: Option<String>) -> Result<Option<UtcMillis>, StoreError> {
    text.as_deref().map(time).transpose()
}

/// Ids for `json_each`.
pub(in crate::store) fn list<'a>(ids: impl IntoIterator<Item = &'a i64>) -> String {
    let ids: Vec<String> = ids.into_iter().map(i64::to_string).collect();
    format!("[{}]", ids.join(","))
}

/// Ids as they were given; three and more in a row as `17-5016`.
pub(in crate::store) fn runs(ids: &[i64]) -> String {
    let mut words = Vec::new();
    let mut rest = ids;
    while let Some(&first) = rest.first() {
        let is_next = |(at, id): (i64, &i64)| first.checked_add(at) == Some(*id);
        let length = (0..).zip(rest).take_while(|pair| is_next(*pair)).count();
        let (run, after) = rest.split_at(length.max(1));
        match run {
            [_, .., last] if length > 2 => words.push(format!("{first}-{last}")),
            _ => words.extend(run.iter().map(i64::to_string)),
        }
        rest = after;
    }
    words.join(" ")
}

/// Names for `json_each`.
pub(in crate::store) fn names<'a>(targets: impl IntoIterator<Item = &'a TargetName>) -> String {
    let names: Vec<&str> = targets
        .into_iter()
        .map(|target| target.0.as_str())
        .collect();
    serde_json::to_string(&names).unwrap_or_default()
}

/// The words of those actions of which `holds` is true, for `json_each`.
pub(in crate::store) fn actions(holds: fn(PowerAction) -> bool) -> String {
    let words: Vec<&str> = PowerAction::those(holds).map(PowerAction::as_str).collect();
    serde_json::to_string(&words).unwrap_or_default()
}

/// Many rows that a statement has put into one JSON array; empty: none. Of texts only the bytes are
/// certain.
pub(in crate::store) fn json<T: serde::de::DeserializeOwned>(
    bytes: Vec<u8>,
) -> Result<Vec<T>, StoreError> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&lossy(bytes)).map_err(|error| StoreError::Unreadable(error.to_string()))
}

/// The bytes that SQLite's `hex` has written out; what is no pair of digits is left out.
pub(in crate::store) fn bytes_of_hex(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().collect();
    let pairs = digits.chunks_exact(2);
    let texts = pairs.filter_map(|pair| std::str::from_utf8(pair).ok());
    texts
        .filter_map(|pair| u8::from_str_radix(pair, 16).ok())
        .collect()
}

/// A text of which only the bytes are certain.
pub(in crate::store) fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// A number that counts something, and that a stranger may have written: never so large that one
/// more would not fit.
pub(in crate::store) fn count(number: i64) -> u32 {
    number.clamp(0, i64::from(i32::MAX)) as u32
}

/// A span in milliseconds, as stored.
pub(in crate::store) fn millis(span: std::time::Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// A time that a stranger may have spoilt: then none, since the pass must go on.
pub(in crate::store) fn readable_time(text: Option<String>) -> Option<UtcMillis> {
    text.and_then(|text| text.parse().ok())
}

/// A baseline as stored: `none`, or such as `reboot succeeded`; NULL where nothing is known.
pub(in crate::store) fn baseline_text(baseline: Baseline) -> Option<String> {
    let operation = match baseline {
        Baseline::Unknown => return None,
        Baseline::Known(None) => return Some("none".to_owned()),
        Baseline::Known(Some(operation)) => operation,
    };
    let (_, status) = OPERATION_STATES
        .iter()
        .find(|(status, _)| *status == operation.status)?;
    Some(format!("{} {status}", operation.action))
}

/// Reads `baseline_text` back; anything else tells nothing.
pub(in crate::store) fn baseline(text: Option<String>) -> Baseline {
    match text.as_deref() {
        Some("none") => Baseline::Known(None),
        Some(text) => operation(text).map_or(Baseline::Unknown, |operation| {
            Baseline::Known(Some(operation))
        }),
        None => Baseline::Unknown,
    }
}

fn operation(text: &str) -> Option<Operation> {
    let (action, state) = text.split_once(' ')?;
    let (status, _) = OPERATION_STATES.iter().find(|(_, word)| *word == state)?;
    Some(Operation {
        action: action.parse().ok()?,
        status: *status,
    })
}

const OPERATION_STATES: [(JobStatus, &str); 3] = [
    (JobStatus::Pending, "processing"),
    (JobStatus::Succeeded, "succeeded"),
    (JobStatus::Failed, "failed"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_baseline_reads_back_as_it_was_stored() {
        let operations = PowerAction::ALL.iter().flat_map(|action| {
            OPERATION_STATES.map(|(status, _)| {
                Baseline::Known(Some(Operation {
                    action: *action,
                    status,
                }))
            })
        });
        for stored in operations.chain([Baseline::Unknown, Baseline::Known(None)]) {
            assert_eq!(baseline(baseline_text(stored)), stored);
        }
        assert_eq!(
            baseline(Some("explode twice".to_owned())),
            Baseline::Unknown
        );
    }

    #[test]
    fn many_ids_in_a_row_are_said_in_short() {
        assert_eq!(runs(&[3, 1]), "3 1");
        assert_eq!(runs(&[1, 2, 17, 18, 19, 9]), "1 2 17-19 9");
        assert_eq!(runs(&[i64::MAX, 5]), format!("{} 5", i64::MAX));
        assert_eq!(runs(&[]), "");
    }
}
