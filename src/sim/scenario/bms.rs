//! `[bms]` of a scenario: servers, jobs, and the answers that the documents leave open. Values
//! only; what they lead to is in `sim::bms`.

use serde::Deserialize;

use super::field_types::{Chance, Span, Unset};

/// `[bms]`: servers and jobs of the Bare Metal Server service, and the answers that its documents
/// leave open.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BmsScenario {
    /// `servers`: how many there are; default 1000.
    pub servers: usize,
    /// `running`: the share of them that runs at first, spread evenly; default 0.5.
    pub running: Chance,
    /// `operation_ms`: how long one server's part of a job takes, a range in ms; default `[1000,
    /// 3000]`.
    pub operation_ms: Span,
    /// `init_polls`: this many queries of a job are answered `INIT`, without sub-jobs; default 0.
    pub init_polls: u32,
    /// `refusals`: what a missing, locked, busy or already-so server does to its batch; default
    /// `"batch"`.
    pub refusals: Refusals,
    /// `parent_on_failure`: a job's own status when a sub-job failed; default `"fail"`.
    pub parent_on_failure: ParentOnFailure,
    /// `sub_jobs_without_id`: failed sub-jobs do not name their server; default false.
    pub sub_jobs_without_id: bool,
    /// `idle_task_state`: how the `OS-EXT-STS:task_state` of an idle server is written; default
    /// `"omitted"`.
    pub idle_task_state: Unset,
    /// `missing_show`: how a show of an unknown server is answered; default `"error"`.
    pub missing_show: MissingShow,
}

impl Default for BmsScenario {
    fn default() -> Self {
        Self {
            servers: 1000,
            running: Chance(0.5),
            operation_ms: Span {
                min_ms: 1000,
                max_ms: 3000,
            },
            init_polls: 0,
            refusals: Refusals::Batch,
            parent_on_failure: ParentOnFailure::Fail,
            sub_jobs_without_id: false,
            idle_task_state: Unset::Omitted,
            missing_show: MissingShow::Error,
        }
    }
}

/// What a missing, locked, busy or already-so server does to the batch it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusals {
    /// The whole POST fails with that server's code, and nothing runs.
    Batch,
    /// The POST is accepted, and that server's sub-job fails with the code.
    SubJob,
}

/// A job's own status when a sub-job failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParentOnFailure {
    /// `FAIL`, with `Common.0021`.
    Fail,
    /// `SUCCESS`, whatever the sub-jobs say.
    Success,
}

/// How a show of a server that does not exist is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MissingShow {
    /// HTTP 400, `BMS.0040`, as in the error table.
    Error,
    /// HTTP 404 in the native form, `itemNotFound`.
    NotFound,
    /// HTTP 200 with status `DELETED`.
    Deleted,
}
