//! Who asks, and what they may see and do. Page and API take a [`Caller`] as an argument of their
//! handlers; the guard has put it into the request.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};

use super::tokens::Grant;
use crate::model::{PowerAction, Role, TargetName};
use crate::web::{PLAIN, say};

/// Who asks: the owner of a token, with it or signed in, or anybody where there are no tokens.
#[derive(Debug, Clone)]
pub(in crate::web) struct Caller {
    grant: Arc<Grant>,
    /// Of the session, if the caller has signed in.
    form_token: Option<String>,
    /// False where there are no tokens.
    is_known: bool,
}

/// Why something is refused, in a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::web) struct Refusal {
    /// 403, or whatever fits.
    pub(in crate::web) status: StatusCode,
    /// Why.
    pub(in crate::web) sentence: String,
    /// After how many seconds it is worth another try.
    pub(in crate::web) retry_after: Option<u64>,
}

impl Caller {
    pub(super) fn of_token(grant: Arc<Grant>) -> Self {
        Self {
            grant,
            form_token: None,
            is_known: true,
        }
    }

    pub(super) fn of_session(grant: Arc<Grant>, form_token: String) -> Self {
        Self {
            grant,
            form_token: Some(form_token),
            is_known: true,
        }
    }

    /// Where there are no tokens: may read.
    pub(super) fn anybody() -> Self {
        let grant = Grant {
            name: "anybody".to_owned(),
            role: Role::Reader,
            targets: None,
            actions: None,
        };
        Self {
            grant: Arc::new(grant),
            form_token: None,
            is_known: false,
        }
    }

    /// The token's name; it becomes `requested_by`, `approved_by` and `who`.
    pub(in crate::web) fn name(&self) -> &str {
        &self.grant.name
    }

    /// What the token is for.
    pub(in crate::web) fn role(&self) -> Role {
        self.grant.role
    }

    /// True if there are tokens, and this caller has one.
    pub(in crate::web) fn is_known(&self) -> bool {
        self.is_known
    }

    /// The targets that may be seen and acted on; none: all.
    pub(in crate::web) fn targets(&self) -> Option<&[TargetName]> {
        self.grant.targets.as_deref()
    }

    /// The actions that may be asked for, cancelled and approved; none: all.
    pub(in crate::web) fn actions(&self) -> Option<&[PowerAction]> {
        self.grant.actions.as_deref()
    }

    /// True if what is about this target may be seen.
    pub(in crate::web) fn sees(&self, target: &str) -> bool {
        self.targets()
            .is_none_or(|targets| targets.iter().any(|name| name.0 == target))
    }

    /// True if this action may be asked for.
    pub(in crate::web) fn handles(&self, action: &str) -> bool {
        self.actions()
            .is_none_or(|actions| actions.iter().any(|known| known.as_str() == action))
    }

    /// True if the role may do what is meant for `wanted`.
    pub(in crate::web) fn may(&self, wanted: Role) -> bool {
        self.grant.role.covers(wanted)
    }

    /// What every form has to carry in a field `form_token`, for callers who have signed in. The
    /// guard refuses forms without it.
    pub(in crate::web) fn form_token(&self) -> Option<&str> {
        self.form_token.as_deref()
    }

    /// Refuses who may not do what is meant for `wanted`.
    ///
    /// # Errors
    /// 403 with a sentence that names the role.
    pub(in crate::web) fn require(&self, wanted: Role) -> Result<(), Refusal> {
        if self.may(wanted) {
            return Ok(());
        }
        let sentence = if self.is_known() {
            format!(
                "this needs a token of the role {wanted}; the token {} has the role {}",
                self.name(),
                self.role()
            )
        } else {
            format!(
                "this needs a token of the role {wanted}, and the config has no tokens ([[listen.tokens]])"
            )
        };
        Err(Refusal::forbidden(sentence))
    }

    /// Refuses an action on a target that the token is not for.
    ///
    /// # Errors
    /// 403 with a sentence that names the target or the action.
    pub(in crate::web) fn require_lane(&self, target: &str, action: &str) -> Result<(), Refusal> {
        if !self.sees(target) {
            return Err(Refusal::forbidden(format!(
                "the token {} is not for target {target}",
                self.name()
            )));
        }
        if !self.handles(action) {
            return Err(Refusal::forbidden(format!(
                "the token {} is not for the action {action}",
                self.name()
            )));
        }
        Ok(())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        // Only a path that the guard lets pass without a token has none.
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Refusal::new(StatusCode::UNAUTHORIZED, "this needs a token"))
    }
}

impl Refusal {
    pub(in crate::web) fn new(status: StatusCode, sentence: impl Into<String>) -> Self {
        Self {
            status,
            sentence: sentence.into(),
            retry_after: None,
        }
    }

    pub(in crate::web) fn forbidden(sentence: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, sentence)
    }
}

/// As plain text; the API makes problem details of it.
impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = say(self.status, PLAIN, self.sentence + "\n");
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(axum::http::header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(role: Role) -> Caller {
        Caller::of_token(Arc::new(Grant {
            name: "rack-7".to_owned(),
            role,
            targets: Some(vec![TargetName("eu".to_owned())]),
            actions: Some(vec![PowerAction::Start]),
        }))
    }

    #[test]
    fn a_role_that_is_too_low_is_named() {
        let refusal = caller(Role::Reader)
            .require(Role::Operator)
            .expect_err("too low");
        assert_eq!(refusal.status, StatusCode::FORBIDDEN);
        assert!(
            refusal.sentence.contains("role operator") && refusal.sentence.contains("role reader"),
            "{}",
            refusal.sentence
        );
        assert_eq!(caller(Role::Operator).require(Role::Producer), Ok(()));
    }

    #[test]
    fn anybody_may_read_and_nothing_else() {
        let anybody = Caller::anybody();
        assert_eq!(anybody.require(Role::Reader), Ok(()));
        assert!(anybody.sees("eu") && anybody.require(Role::Producer).is_err());
    }

    #[test]
    fn targets_and_actions_of_the_token_limit_what_may_be_asked_for() {
        let caller = caller(Role::Producer);
        assert_eq!(caller.require_lane("eu", "start"), Ok(()));
        assert!(caller.require_lane("us", "start").is_err());
        assert!(caller.require_lane("eu", "stop").is_err());
        assert!(!caller.sees("us"));
    }
}
