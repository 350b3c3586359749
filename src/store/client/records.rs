//! Rows as they stand in the file, for people and for JSON. Judges no value: what does not read is
//! shown as it goes.

use serde::Serialize;
use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, Row};

use crate::model::HoldKind;

/// One row of `power_requests`: the columns of the contract, in its order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[expect(
    missing_docs,
    reason = "the fields are the columns, which the contract and the schema describe"
)]
pub struct RequestRecord {
    pub id: i64,
    pub server_id: String,
    pub action: String,
    pub target: String,
    pub priority: i64,
    pub not_before: Option<String>,
    pub expires_at: Option<String>,
    pub after_id: Option<i64>,
    pub request_key: Option<String>,
    pub label: Option<String>,
    pub requested_by: Option<String>,
    pub created_at: String,
    pub state: String,
    pub batch_id: Option<i64>,
    pub attempts: i64,
    pub retry_at: Option<String>,
    pub evidence: Option<String>,
    pub error_code: Option<String>,
    pub error_message: Option<String>,
    pub submitted_at: Option<String>,
    pub finished_at: Option<String>,
    /// The wave of its order that has let it go.
    pub wave: Option<i64>,
}

/// One row of `batches`, as far as the contract goes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[expect(
    missing_docs,
    reason = "the fields are the columns, which the contract and the schema describe"
)]
pub struct BatchRecord {
    pub id: i64,
    pub target: String,
    pub service: String,
    pub endpoint: String,
    pub project_id: String,
    pub action: String,
    pub state: String,
    pub server_count: i64,
    pub job_id: Option<String>,
    pub intent_at: String,
    pub submitted_at: Option<String>,
    pub next_look_at: Option<String>,
    pub looks: i64,
    pub look_cause: Option<String>,
    pub look_until: Option<String>,
    pub finished_at: Option<String>,
    pub error_code: Option<String>,
    pub error_message: Option<String>,
    pub read_error: Option<String>,
}

/// One row of `request_attempts`, with the job that carried it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[expect(
    missing_docs,
    reason = "the fields are the columns, which the contract and the schema describe"
)]
pub struct AttemptRecord {
    pub request_id: i64,
    pub batch_id: i64,
    pub job_id: Option<String>,
    pub result: Option<String>,
    pub error_code: Option<String>,
    pub error_message: Option<String>,
    pub started_at: String,
    pub finished_at: Option<String>,
}

/// Who asked for a request, and what for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[expect(
    missing_docs,
    reason = "the fields are the columns, which the contract and the schema describe"
)]
pub struct ProducerNote {
    pub id: i64,
    pub label: Option<String>,
    pub requested_by: Option<String>,
}

/// One row of `holds`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[expect(
    missing_docs,
    reason = "the fields are the columns, which the contract and the schema describe"
)]
pub struct HoldRecord {
    pub target: Option<String>,
    pub action: Option<String>,
    pub label: Option<String>,
    pub kind: String,
    pub reason: String,
    pub since: String,
    pub until: Option<String>,
}

impl HoldRecord {
    /// True if it is about all requests of this target and action, whether or not its time has
    /// passed.
    pub fn covers(&self, target: &str, action: &str) -> bool {
        self.label.is_none() && self.is_about(target, action)
    }

    /// True if it is about this request, whether or not its time has passed.
    pub fn covers_request(&self, request: &RequestRecord) -> bool {
        let is_of_label = self.label.is_none() || self.label == request.label;
        let is_let_go = self.kind == HoldKind::Wave.as_str() && request.wave.is_some();
        is_of_label && !is_let_go && self.is_about(&request.target, &request.action)
    }

    fn is_about(&self, target: &str, action: &str) -> bool {
        self.target.as_deref().is_none_or(|held| held == target)
            && self.action.as_deref().is_none_or(|held| held == action)
    }
}

/// A column's text whatever its type: bytes that are no UTF-8 are replaced, numbers are written
/// out.
pub(super) fn maybe_text(row: &SqliteRow, column: &str) -> Result<Option<String>, sqlx::Error> {
    let bytes: Option<Vec<u8>> = row.try_get_unchecked(column)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Like [`maybe_text`]; NULL reads as an empty text.
pub(super) fn text(row: &SqliteRow, column: &str) -> Result<String, sqlx::Error> {
    Ok(maybe_text(row, column)?.unwrap_or_default())
}

/// A column's whole number whatever its type, as SQLite converts it.
pub(super) fn maybe_whole(row: &SqliteRow, column: &str) -> Result<Option<i64>, sqlx::Error> {
    row.try_get_unchecked(column)
}

/// Like [`maybe_whole`]; NULL reads as 0.
pub(super) fn whole(row: &SqliteRow, column: &str) -> Result<i64, sqlx::Error> {
    Ok(maybe_whole(row, column)?.unwrap_or_default())
}

/// Reads each field from the column of its name, by the named function.
macro_rules! from_columns {
    ($record:ident { $($field:ident: $read:ident),+ $(,)? }) => {
        impl $record {
            /// The columns with their values, in the order of the table.
            pub fn columns(&self) -> Vec<(&'static str, serde_json::Value)> {
                vec![$((stringify!($field), serde_json::json!(self.$field))),+]
            }
        }

        impl FromRow<'_, SqliteRow> for $record {
            fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
                Ok(Self { $($field: $read(row, stringify!($field))?),+ })
            }
        }
    };
}

from_columns!(RequestRecord {
    id: whole,
    server_id: text,
    action: text,
    target: text,
    priority: whole,
    not_before: maybe_text,
    expires_at: maybe_text,
    after_id: maybe_whole,
    request_key: maybe_text,
    label: maybe_text,
    requested_by: maybe_text,
    created_at: text,
    state: text,
    batch_id: maybe_whole,
    attempts: whole,
    retry_at: maybe_text,
    evidence: maybe_text,
    error_code: maybe_text,
    error_message: maybe_text,
    submitted_at: maybe_text,
    finished_at: maybe_text,
    wave: maybe_whole,
});

from_columns!(ProducerNote {
    id: whole,
    label: maybe_text,
    requested_by: maybe_text
});

from_columns!(BatchRecord {
    id: whole,
    target: text,
    service: text,
    endpoint: text,
    project_id: text,
    action: text,
    state: text,
    server_count: whole,
    job_id: maybe_text,
    intent_at: text,
    submitted_at: maybe_text,
    next_look_at: maybe_text,
    looks: whole,
    look_cause: maybe_text,
    look_until: maybe_text,
    finished_at: maybe_text,
    error_code: maybe_text,
    error_message: maybe_text,
    read_error: maybe_text,
});

from_columns!(AttemptRecord {
    request_id: whole,
    batch_id: whole,
    job_id: maybe_text,
    result: maybe_text,
    error_code: maybe_text,
    error_message: maybe_text,
    started_at: text,
    finished_at: maybe_text,
});

from_columns!(HoldRecord {
    target: maybe_text,
    action: maybe_text,
    label: maybe_text,
    kind: text,
    reason: text,
    since: text,
    until: maybe_text,
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_without_target_or_action_covers_all_of_them() {
        let all = HoldRecord::default();
        assert!(all.covers("default", "stop"));
        let stops = HoldRecord {
            action: Some("stop".to_owned()),
            ..HoldRecord::default()
        };
        assert!(stops.covers("default", "stop") && !stops.covers("default", "start"));
    }
}
