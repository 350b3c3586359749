//! `[clouddc]` of a scenario: the physical servers, their operations, and the answers that the
//! documents leave open. Values only; what they lead to is in `sim::clouddc`.

use serde::Deserialize;

use super::field_types::{Chance, Span, Unset};
use crate::model::PowerAction;

/// `[clouddc]`: servers and operations of the Cloud Data Center service.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CloudDcScenario {
    /// `servers`: how many there are; default 100.
    pub servers: usize,
    /// `running`: the share of them that runs at first, spread evenly; default 0.5.
    pub running: Chance,
    /// `operation_ms`: how long one server's operation takes, a range in ms; default `[1000,
    /// 3000]`.
    pub operation_ms: Span,
    /// `processing_after_ms`: how long after the call `…-processing` shows, a range in ms; default
    /// `[0, 0]`. Until then the server looks as before, though it is busy; an operation that ends
    /// earlier never shows it.
    pub processing_after_ms: Span,
    /// `transition_words`: while `…-processing` shows, `power_state` is `powering-on`,
    /// `powering-off` or `rebooting`, as in older documents; default false: it stays `on` or `off`
    /// until the end.
    pub transition_words: bool,
    /// `first_states`: what `operation_state` is left from before, one of these drawn for each
    /// server, regardless of its power; a word that is listed three times is three times as likely.
    /// Default: three of eight are `reboot-succeed`.
    pub first_states: Vec<FirstState>,
    /// `no_operation_state`: how the `operation_state` of a server is written that never had an
    /// operation; default `"omitted"`.
    pub no_operation_state: Unset,
    /// `refusals`: what a missing, locked, busy or already-so server does to the call that names
    /// it; default `"batch"`.
    pub refusals: Refusals,
    /// `refusal_names_server`: the text of a refused call has the server's id; default true.
    pub refusal_names_server: bool,
    /// `already_so`: a power on of a running server, a power off of a stopped one; default
    /// `"refused"`.
    pub already_so: AlreadySo,
    /// `answer_ids`: how the answer to a power call writes the ids; default `"plain"`.
    pub answer_ids: AnswerIds,
    /// `locked_shows`: how a locked server is told from others; default `"maintain"`.
    pub locked_shows: LockedShows,
    /// `next_marker`: what leads to the next page; default `"id"`.
    pub next_marker: NextMarker,
    /// `no_next_marker`: how the last page writes that there is none; default `"null"`.
    pub no_next_marker: Unset,
    /// `missing_show`: how a show of an unknown server is answered; default `"not_found"`.
    pub missing_show: MissingShow,
    /// `throttle_body`: the body of a 429; default `"gateway"`.
    pub throttle_body: ThrottleBody,
}

impl Default for CloudDcScenario {
    fn default() -> Self {
        use FirstState::{None, PowerOffSucceed, PowerOnSucceed, RebootFailed, RebootSucceed};
        Self {
            servers: 100,
            running: Chance(0.5),
            operation_ms: Span {
                min_ms: 1000,
                max_ms: 3000,
            },
            processing_after_ms: Span::default(),
            transition_words: false,
            first_states: vec![
                None,
                None,
                PowerOnSucceed,
                PowerOffSucceed,
                RebootSucceed,
                RebootSucceed,
                RebootSucceed,
                RebootFailed,
            ],
            no_operation_state: Unset::Omitted,
            refusals: Refusals::Batch,
            refusal_names_server: true,
            already_so: AlreadySo::Refused,
            answer_ids: AnswerIds::Plain,
            locked_shows: LockedShows::Maintain,
            next_marker: NextMarker::Id,
            no_next_marker: Unset::Null,
            missing_show: MissingShow::NotFound,
            throttle_body: ThrottleBody::Gateway,
        }
    }
}

/// An `operation_state` from before the simulated cloud began; `None`, written `none`: never an
/// operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the variants are the words of the document")]
pub enum FirstState {
    None,
    PowerOnSucceed,
    PowerOnFailed,
    PowerOffSucceed,
    PowerOffFailed,
    RebootSucceed,
    RebootFailed,
}

impl FirstState {
    /// The operation it tells of, and whether that succeeded.
    pub(in crate::sim) fn operation(self) -> Option<(PowerAction, bool)> {
        match self {
            Self::None => None,
            Self::PowerOnSucceed => Some((PowerAction::Start, true)),
            Self::PowerOnFailed => Some((PowerAction::Start, false)),
            Self::PowerOffSucceed => Some((PowerAction::Stop, true)),
            Self::PowerOffFailed => Some((PowerAction::Stop, false)),
            Self::RebootSucceed => Some((PowerAction::Reboot, true)),
            Self::RebootFailed => Some((PowerAction::Reboot, false)),
        }
    }
}

/// What a missing, locked, busy or already-so server does to the power call that names it. It is
/// never acted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusals {
    /// The whole call fails with 400, and nothing runs.
    Batch,
    /// The others run, and only they are in the answer.
    LeftOut,
    /// The others run, and all are in the answer.
    Listed,
}

/// What becomes of a power on of a running server, or a power off of a stopped one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlreadySo {
    /// It is refused.
    Refused,
    /// It runs like any other operation, is in the ledger, and changes nothing.
    Accepted,
}

/// How the answer to a power call writes the ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerIds {
    /// As text, as the document's table says.
    Plain,
    /// Each as `{"$ref":"#/definitions/UUID"}`, as the document's example has it.
    Template,
}

/// How a locked server is told from others. Its `manage_state` is `in-use` where nothing else is
/// said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockedShows {
    /// `manage_state` is `maintain`.
    Maintain,
    /// `manage_state` is `frozen`, as in older documents.
    Frozen,
    /// `frozen_state` is 1; it is 0 for the others.
    FrozenState,
}

/// What leads to the next page of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NextMarker {
    /// The last id of this page.
    Id,
    /// A URL, with that id as its `marker`.
    Url,
}

/// How a show of a server that does not exist is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MissingShow {
    /// HTTP 400 with an `error_code`.
    Error,
    /// HTTP 404 with an `error_code`.
    NotFound,
}

/// The body of a 429, which the document calls a nameless string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThrottleBody {
    /// The gateway's own: `APIGW.0308`.
    Gateway,
    /// A JSON string and nothing else.
    JsonString,
    /// Plain text, no JSON.
    Text,
}
