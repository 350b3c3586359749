//! What faults of calls do to answers: refusing before the work, spoiling after it. Does not choose
//! them; see `faults`.

use std::time::Duration;

use serde_json::json;

use super::answer::{Answer, Delivery};
use super::faults::FaultKind;
use super::odd;
use super::scenario::clouddc::ThrottleBody;
use crate::model::{Service, UtcMillis};

/// All that the document of CloudDC says of a 429.
const OVERLOADED: &str = "The request is overloaded.";
/// The limit that a 429 names when the scenario lifts the rate: the documented one of the submit
/// call.
const DOCUMENTED_SUBMITS_PER_MINUTE: u32 = 50;

/// The words of an answer that is given instead of the service's own: what they depend on.
pub(super) struct Instead<'a> {
    /// `None`: the identity service.
    pub(super) service: Option<Service>,
    pub(super) now: UtcMillis,
    pub(super) request_id: &'a str,
    /// Calls of its kind in a minute; 0: any number.
    pub(super) limit: u32,
    pub(super) throttle_body: ThrottleBody,
}

impl Instead<'_> {
    /// A 429: as the gateway words it, or as the document of CloudDC has it, which knows only
    /// "String".
    pub(super) fn throttled(&self, retry_after_s: Option<u32>, as_date: bool) -> Answer {
        let answer = match self.throttle_body {
            ThrottleBody::Gateway => self.throttled_by_gateway(),
            ThrottleBody::JsonString => Answer::json(429, &OVERLOADED),
            ThrottleBody::Text => Answer::text(429, OVERLOADED),
        };
        match retry_after_s {
            Some(seconds) if as_date => {
                let until = self.now + Duration::from_secs(u64::from(seconds));
                answer.with_header("Retry-After", http_date(until))
            }
            Some(seconds) => answer.with_header("Retry-After", seconds.to_string()),
            None => answer,
        }
    }

    fn throttled_by_gateway(&self) -> Answer {
        let limit = if self.limit == 0 {
            DOCUMENTED_SUBMITS_PER_MINUTE
        } else {
            self.limit
        };
        let text = format!(
            "The throttling threshold has been reached: policy user over ratelimit,limit:{limit},time:1 minute"
        );
        Answer::gateway(429, "APIGW.0308", &text, self.request_id)
    }

    /// The answer of the first fault that keeps the call from being carried out, if there is one.
    pub(super) fn before(&self, faults: &[FaultKind]) -> Option<Answer> {
        faults.iter().find_map(|kind| match kind {
            FaultKind::Throttle {
                retry_after_s,
                as_date,
            } => Some(self.throttled(*retry_after_s, *as_date)),
            FaultKind::ErrorBefore { status: 503 } => {
                let text = "The IAM service is currently unavailable.";
                Some(Answer::gateway(503, "APIGW.0613", text, self.request_id))
            }
            FaultKind::ErrorBefore { status } => Some(server_error(*status, self.request_id)),
            FaultKind::DropBefore => Some(Answer::dropped()),
            FaultKind::Refuse {
                status,
                code,
                message,
            } => Some(Answer::refusal_by(self.service, *status, code, message)),
            FaultKind::Conflict { message } => {
                let message = message.as_deref().unwrap_or_default();
                Some(Answer::json(
                    409,
                    &json!({"conflictingRequest": {"message": message, "code": 409}}),
                ))
            }
            FaultKind::ExpiredToken { code } => {
                Some(expired_token(code, self.now, self.request_id))
            }
            FaultKind::Redirect { status } => {
                Some(Answer::empty(*status).with_header("Location", "/moved"))
            }
            _ => None,
        })
    }
}

/// The answer after the first fault that spoils it.
pub(super) fn after(answer: Answer, struck: &[FaultKind], request_id: &str) -> Answer {
    for kind in struck {
        match kind {
            FaultKind::ErrorAfter { status } => return server_error(*status, request_id),
            FaultKind::DropAfter => return Answer::dropped(),
            FaultKind::HtmlBody => return Answer::html(answer.status),
            FaultKind::MalformedBody => return malformed(answer),
            FaultKind::TruncatedBody => {
                let bytes = answer.body.len() / 2;
                return answer.delivered(Delivery::Truncated { bytes });
            }
            FaultKind::OddAnswer { oddity } => return odd::made_odd(answer, *oddity),
            FaultKind::OversizedBody { bytes } => {
                return answer.delivered(Delivery::Padded { bytes: *bytes });
            }
            _ => {}
        }
    }
    answer
}

/// False for the answers of a gateway that keeps the call to itself, as the documents have it: then
/// nothing can act on it.
pub(super) fn may_reach_service(answer: &Answer) -> bool {
    !matches!(answer.status, 300..=399 | 401 | 429 | 503)
}

/// By how much the struck call is slowed down.
pub(super) fn slowed_ms(struck: &[FaultKind]) -> u64 {
    let mut slowed_ms = 0;
    for kind in struck {
        if let FaultKind::Slow { delay_ms } = kind {
            slowed_ms += delay_ms;
        }
    }
    slowed_ms
}

/// The gateway's one code for its own 5xx, with the text of the status; no body where the tables
/// have no such text.
fn server_error(status: u16, request_id: &str) -> Answer {
    let text = match status {
        500 => "An unexpected error occurred",
        502 => "Backend unavailable.",
        504 => "Backend timeout.",
        _ => return Answer::empty(status),
    };
    Answer::gateway(status, "APIGW.0201", text, request_id)
}

fn expired_token(code: &str, now: UtcMillis, request_id: &str) -> Answer {
    let text = if code == "APIGW.0307" {
        "The token must be updated.".to_owned()
    } else {
        format!("Incorrect IAM authentication information: token expires, expires_at: {now}")
    };
    Answer::gateway(401, code, &text, request_id)
}

/// `Wed, 21 Oct 2015 07:28:00 GMT`
fn http_date(time: UtcMillis) -> String {
    jiff::Timestamp::from_millisecond(time.0)
        .map(|time| time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
        .unwrap_or_default()
}

/// Half a body that is delivered as if it were whole.
fn malformed(mut answer: Answer) -> Answer {
    answer.body.truncate(answer.body.len() / 2);
    answer
}
