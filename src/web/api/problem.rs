//! Errors as problem details. Source: RFC 9457.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Refusal;
use crate::web::access::CHALLENGE;

/// What is wrong.
#[derive(Debug, Serialize)]
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
    errors: Vec<RowError>,
}

/// What is wrong with one row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct RowError {
    /// Which one, from 0.
    pub(super) index: usize,
    /// A sentence.
    pub(super) message: String,
}

const MEDIA_TYPE: &str = "application/problem+json";

/// A refusal in the API's form. `way_in`: a token would help.
pub(in crate::web) fn problem(refusal: Refusal, way_in: bool) -> Response {
    let retry_after = refusal.retry_after;
    let problem = Problem {
        kind: "about:blank",
        title: refusal
            .status
            .canonical_reason()
            .unwrap_or("Error")
            .to_owned(),
        status: refusal.status.as_u16(),
        detail: refusal.sentence,
        errors: Vec::new(),
    };
    let mut response = problem.into_response();
    let headers = response.headers_mut();
    if let Some(seconds) = retry_after {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if way_in {
        headers.insert(header::WWW_AUTHENTICATE, CHALLENGE);
    }
    response
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        (status, [(header::CONTENT_TYPE, MEDIA_TYPE)], body).into_response()
    }
}
