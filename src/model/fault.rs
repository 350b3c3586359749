//! Why a call to a cloud did not succeed, and what the caller may do next.

use std::fmt;
use std::time::Duration;

use super::CodeClass;

/// Why a call did not succeed. `Display` is one sentence for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallError {
    /// What the caller may do next.
    pub fault: Fault,
    /// HTTP status, if an answer came.
    pub status: Option<u16>,
    /// The cloud's code, such as `BMS.0039`; empty when it gave none.
    pub code: String,
    /// The cloud's text, or what went wrong on the way; at most 500 characters.
    pub message: String,
    /// The cloud's id for this call (`X-Request-Id` or the body's `request_id`), for a support
    /// case.
    pub request_id: Option<String>,
    /// When the cloud wants to be asked again, from `Retry-After`; also where it does not throttle
    /// (503).
    pub retry_after: Option<Duration>,
}

/// The reactions to a failed call, one a variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Could not connect: nothing left this machine. Resend later.
    Unreachable,
    /// The cloud is overloaded or throttles; nothing was carried out. Resend after `retry_after`,
    /// if it named one.
    Throttled {
        /// From `Retry-After`.
        retry_after: Option<Duration>,
        /// From the gateway's text `limit:50,time:1 minute`: this many calls in this time.
        limit: Option<(u32, Duration)>,
    },
    /// A passing fault in front of the service; nothing was carried out. Resend later.
    Unavailable,
    /// The token or signature was refused, also after one renewal; nothing was carried out. Hold
    /// all that use this key.
    Credentials,
    /// These credentials may not do this; nothing was carried out. Hold the target.
    Permission,
    /// Wrong endpoint, project or service, or a redirect; nothing was carried out. Hold the target.
    Configuration,
    /// The service read the call and refused it. After a submit: `RetryableUncertain` and `Other`
    /// may hide that it was begun; `Retryable` is a passing refusal that concerns one of the
    /// servers (`BMS.1006`).
    Refused(CodeClass),
    /// The call left and its answer is missing, unreadable, or says nothing certain: it may have
    /// been carried out.
    Lost,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.status, self.code.is_empty()) {
            (Some(status), false) => write!(f, "HTTP {status}, {}: {}", self.code, self.message)?,
            (Some(status), true) => write!(f, "HTTP {status}: {}", self.message)?,
            (None, _) => write!(f, "{}", self.message)?,
        }
        match &self.request_id {
            Some(id) => write!(f, " (request id {id})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for CallError {}
