//! The labels of what is counted: targets, actions and words of ours, never an id.

use prometheus_client::encoding::EncodeLabelSet;

use super::{Call, Told};
use crate::model::{AttemptResult, Evidence, Fault, PowerAction, RequestState, TargetName};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TargetOnly {
    target: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TargetAction {
    target: String,
    action: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StateLabels {
    target: String,
    action: &'static str,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabels {
    target: String,
    action: &'static str,
    state: &'static str,
    evidence: &'static str,
    error_code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReturnLabels {
    target: String,
    action: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CallEnd {
    target: String,
    call: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct HookEnd {
    hook: &'static str,
    result: &'static str,
}

impl TargetOnly {
    pub(super) fn new(target: &TargetName) -> Self {
        Self {
            target: target.0.clone(),
        }
    }
}

impl TargetAction {
    pub(super) fn new(target: &TargetName, action: PowerAction) -> Self {
        Self {
            target: target.0.clone(),
            action: action.as_str(),
        }
    }
}

impl StateLabels {
    pub(super) fn new(target: &TargetName, action: PowerAction, state: RequestState) -> Self {
        Self {
            target: target.0.clone(),
            action: action.as_str(),
            state: state.as_str(),
        }
    }
}

impl OutcomeLabels {
    pub(super) fn new(
        target: &TargetName,
        action: PowerAction,
        state: RequestState,
        evidence: Evidence,
        error_code: String,
    ) -> Self {
        let action = action.as_str();
        let state = state.as_str();
        let evidence = evidence.as_str();
        Self {
            target: target.0.clone(),
            action,
            state,
            evidence,
            error_code,
        }
    }
}

impl ReturnLabels {
    pub(super) fn new(target: &TargetName, action: PowerAction, result: AttemptResult) -> Self {
        Self {
            target: target.0.clone(),
            action: action.as_str(),
            result: result.as_str(),
        }
    }
}

impl CallEnd {
    pub(super) fn new(target: &TargetName, call: Call, fault: Option<&Fault>) -> Self {
        let call = match call {
            Call::Prepare => "prepare",
            Call::Submit => "submit",
            Call::Track => "track",
            Call::Look => "look",
            Call::List => "list",
        };
        let result = match fault {
            None => "ok",
            Some(Fault::Unreachable) => "unreachable",
            Some(Fault::Throttled { .. }) => "throttled",
            Some(Fault::Unavailable) => "unavailable",
            Some(Fault::Credentials) => "credentials",
            Some(Fault::Permission) => "permission",
            Some(Fault::Configuration) => "configuration",
            Some(Fault::Refused(_)) => "refused",
            Some(Fault::Lost) => "lost",
        };
        Self {
            target: target.0.clone(),
            call,
            result,
        }
    }
}

impl HookEnd {
    pub(super) fn new(hook: &'static str, told: Told) -> Self {
        let result = match told {
            Told::Delivered => "delivered",
            Told::Failed => "failed",
        };
        Self { hook, result }
    }
}
