//! Rows as they are in the file, for people and for JSON. Judges no value: what does not read is
//! shown as it goes.

use serde::Serialize;
use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, Row};

use crate::model::{HoldKind, quoted};
use crate::store::sqlite::rows::lossy;

/// A value that a column is read as, whatever its type there.
trait Column: Sized {
    fn read(row: &SqliteRow, column: &str) -> Result<Self, sqlx::Error>;
}

/// Bytes that are no UTF-8 are replaced, numbers are written out.
impl Column for Option<String> {
    fn read(row: &SqliteRow, column: &str) -> Result<Self, sqlx::Error> {
        let bytes: Option<Vec<u8>> = row.try_get_unchecked(column)?;
        Ok(bytes.map(lossy))
    }
}

/// NULL reads as an empty text.
impl Column for String {
    fn read(row: &SqliteRow, column: &str) -> Result<Self, sqlx::Error> {
        Ok(Option::read(row, column)?.unwrap_or_default())
    }
}

/// As SQLite converts it.
impl Column for Option<i64> {
    fn read(row: &SqliteRow, column: &str) -> Result<Self, sqlx::Error> {
        row.try_get_unchecked(column)
    }
}

/// NULL reads as 0.
impl Column for i64 {
    fn read(row: &SqliteRow, column: &str) -> Result<Self, sqlx::Error> {
        Ok(Option::read(row, column)?.unwrap_or_default())
    }
}

/// A row whose fields are read from the columns of their names.
macro_rules! record {
    ($(#[$doc:meta])* pub struct $record:ident { $($(#[$about:meta])* $field:ident: $type:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, utoipa::ToSchema)]
        #[expect(
            missing_docs,
            reason = "the fields are the columns, which the contract and the schema describe"
        )]
        pub struct $record {
            $($(#[$about])* pub $field: $type),+
        }

        impl $record {
            /// The columns with their values, in the order of the table.
            pub fn columns(&self) -> Vec<(&'static str, serde_json::Value)> {
                vec![$((stringify!($field), serde_json::json!(self.$field))),+]
            }
        }

        impl FromRow<'_, SqliteRow> for $record {
            fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
                Ok(Self { $($field: Column::read(row, stringify!($field))?),+ })
            }
        }
    };
}

record! {
    /// One row of `power_requests`: the columns of the contract, in its order, and the server's name
    /// as lists have shown it.
    pub struct RequestRecord {
        id: i64,
        server_id: String,
        name: Option<String>,
        action: String,
        target: String,
        priority: i64,
        not_before: Option<String>,
        expires_at: Option<String>,
        after_id: Option<i64>,
        request_key: Option<String>,
        label: Option<String>,
        requested_by: Option<String>,
        override_reason: Option<String>,
        approved_by: Option<String>,
        created_at: String,
        state: String,
        batch_id: Option<i64>,
        attempts: i64,
        retry_at: Option<String>,
        evidence: Option<String>,
        error_code: Option<String>,
        error_message: Option<String>,
        submitted_at: Option<String>,
        finished_at: Option<String>,
        /// The wave of its order that has let it go.
        wave: Option<i64>,
    }
}

record! {
    /// One row of `orders`, as far as it concerns people.
    pub struct OrderRecord {
        label: String,
        waves: String,
        failures_max: String,
        pause: Option<String>,
        expires_at: Option<String>,
        state: String,
        wave: i64,
        created_at: String,
        finished_at: Option<String>,
        /// How many servers it has.
        servers: i64,
        /// How many servers the present wave may let go; 0: it has let none go yet.
        wave_size: i64,
        /// How many it has let go.
        wave_servers: i64,
        /// What an operator lets go in spite of all.
        let_go: Option<String>,
    }
}

record! {
    /// One row of `batches`, as far as the contract goes.
    pub struct BatchRecord {
        id: i64,
        target: String,
        service: String,
        endpoint: String,
        project_id: String,
        action: String,
        state: String,
        server_count: i64,
        job_id: Option<String>,
        intent_at: String,
        submitted_at: Option<String>,
        next_look_at: Option<String>,
        looks: i64,
        look_cause: Option<String>,
        look_until: Option<String>,
        finished_at: Option<String>,
        error_code: Option<String>,
        error_message: Option<String>,
        read_error: Option<String>,
    }
}

record! {
    /// One row of `request_attempts`, with the job that carried it.
    pub struct AttemptRecord {
        request_id: i64,
        batch_id: i64,
        job_id: Option<String>,
        result: Option<String>,
        error_code: Option<String>,
        error_message: Option<String>,
        started_at: String,
        finished_at: Option<String>,
    }
}

record! {
    /// Who asked for a request, and what for.
    pub struct ProducerNote {
        id: i64,
        label: Option<String>,
        requested_by: Option<String>,
    }
}

record! {
    /// One row of `holds`.
    pub struct HoldRecord {
        target: Option<String>,
        action: Option<String>,
        label: Option<String>,
        kind: String,
        reason: String,
        since: String,
        until: Option<String>,
    }
}

record! {
    /// One row of `servers`.
    pub struct ServerRecord {
        target: String,
        server_id: String,
        name: String,
        power: String,
        status: String,
        seen_at: String,
        gone_at: Option<String>,
        /// 1: the cloud refuses to switch it.
        locked: i64,
    }
}

record! {
    /// A batch that runs.
    pub struct RunningBatch {
        target: String,
        action: String,
        /// Those that have not ended.
        requests: i64,
        /// Since when, in milliseconds since 1970 by the present clock.
        since_ms: i64,
    }
}

record! {
    /// What the daemon has noted of a target, for those who cannot read its config.
    pub struct TargetLimits {
        target: String,
        service: String,
        /// Calls a minute at present.
        pace_per_minute: i64,
        /// Throttled or failed calls in a row.
        throttles: i64,
        /// How long a request without a time of expiry may wait; none: for ever.
        default_ttl_ms: Option<i64>,
    }
}

impl HoldRecord {
    /// True if it is about all requests of this target and action, whether or not its time has
    /// passed.
    pub fn covers(&self, target: &str, action: &str) -> bool {
        self.label.is_none() && self.is_about_lane(target, action)
    }

    /// True if it keeps this request back, whether or not its time has passed.
    pub fn is_about(&self, request: &RequestRecord) -> bool {
        let is_exempt = match self.kind.parse() {
            Ok(HoldKind::Approval) => request.approved_by.is_some(),
            Ok(HoldKind::Window) => request.override_reason.is_some(),
            Ok(HoldKind::Wave) => request.wave.is_some(),
            _ => false,
        };
        let is_of_label = self.label.is_none() || self.label == request.label;
        !is_exempt && is_of_label && self.is_about_lane(&request.target, &request.action)
    }

    /// The command that ends it, if an operator put it.
    pub fn resume_command(&self) -> String {
        let mut command = "poweryard resume".to_owned();
        command.extend(
            self.target
                .iter()
                .map(|target| format!(" --target {target}")),
        );
        command.extend(
            self.action
                .iter()
                .map(|action| format!(" --action {action}")),
        );
        command.extend(
            self.label
                .iter()
                .map(|label| format!(" --label {}", quoted(label))),
        );
        command
    }

    fn is_about_lane(&self, target: &str, action: &str) -> bool {
        self.target.as_deref().is_none_or(|held| held == target)
            && self.action.as_deref().is_none_or(|held| held == action)
    }
}

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

    #[test]
    fn approval_reason_and_wave_exempt_a_request_from_their_holds_alone() {
        let plain = RequestRecord {
            label: Some("a".to_owned()),
            ..RequestRecord::default()
        };
        let approved = RequestRecord {
            approved_by: Some("alice".to_owned()),
            ..plain.clone()
        };
        let excused = RequestRecord {
            override_reason: Some("fire".to_owned()),
            ..plain.clone()
        };
        let let_go = RequestRecord {
            wave: Some(1),
            ..plain.clone()
        };
        let held_by = |kind: &str, label: Option<&str>| {
            let hold = HoldRecord {
                kind: kind.to_owned(),
                label: label.map(str::to_owned),
                ..HoldRecord::default()
            };
            [&plain, &approved, &excused, &let_go].map(|request| hold.is_about(request))
        };
        assert_eq!(held_by("approval", None), [true, false, true, true]);
        assert_eq!(held_by("window", None), [true, true, false, true]);
        assert_eq!(held_by("operator", Some("a")), [true; 4]);
        assert_eq!(held_by("wave", Some("a")), [true, true, true, false]);
        assert_eq!(held_by("operator", Some("b")), [false; 4]);
    }
}
