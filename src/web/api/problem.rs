//! Errors as problem details. Source: RFC 9457.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::warn;
use utoipa::ToSchema;

use super::Refusal;
use crate::store::StoreError;
use crate::web::access::CHALLENGE;

/// What is wrong.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    /// Always `about:blank`: the status says what kind of problem it is.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The status in words.
    title: String,
    /// The status.
    status: u16,
    /// A sentence for a person.
    detail: String,
    /// The rows that are wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    errors: Vec<RowNote>,
    #[serde(skip)]
    retry_after: Option<u64>,
    /// A token would help.
    #[serde(skip)]
    way_in: bool,
}

/// What is to be said about one row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct RowNote {
    /// Which one, from 0.
    pub(super) index: usize,
    /// A sentence.
    pub(super) message: String,
}

pub(super) const MEDIA_TYPE: &str = "application/problem+json";

/// Seconds after which a locked queue is worth another try.
const LOCKED_RETRY: u64 = 5;
/// The same, for what takes longer.
const TROUBLE_RETRY: u64 = 30;

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Refusal::new(status, detail).into()
    }

    pub(super) fn with_errors(mut self, errors: Vec<RowNote>) -> Self {
        self.errors = errors;
        self
    }

    fn with_retry(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(super) fn unprocessable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    }

    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// The queue, or what it is read with, has too much to do.
    pub(super) fn busy(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).with_retry(LOCKED_RETRY)
    }
}

/// A refusal of the guard in the API's form. `way_in`: a token would help.
pub(in crate::web) fn problem(refusal: Refusal, way_in: bool) -> Response {
    let mut problem = Problem::from(refusal);
    problem.way_in = way_in;
    problem.into_response()
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let title = refusal.status.canonical_reason().unwrap_or("Error");
        Self {
            kind: "about:blank",
            title: title.to_owned(),
            status: refusal.status.as_u16(),
            detail: refusal.sentence,
            errors: Vec::new(),
            retry_after: refusal.retry_after,
            way_in: false,
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Refused(sentence) => Self::unprocessable(sentence),
            StoreError::NotAllowed(sentence) => Self::new(StatusCode::FORBIDDEN, sentence),
            StoreError::NoSuchRequest(_) => Self::not_found(error.to_string()),
            StoreError::Busy => Self::busy("the queue is locked by another program"),
            StoreError::Full => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the disk that holds the queue is full",
            )
            .with_retry(TROUBLE_RETRY),
            // What it says may name files of the server.
            _ => {
                warn!("the API cannot use the queue: {error}");
                Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the queue cannot be used at present; the daemon's log says why",
                )
                .with_retry(TROUBLE_RETRY)
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, MEDIA_TYPE)], body).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.way_in {
            headers.insert(header::WWW_AUTHENTICATE, CHALLENGE);
        }
        response
    }
}
