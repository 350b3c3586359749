//! What comes in: parameters and bodies, each from text to a finished value, or a problem that says
//! how to write it.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;

use super::problem::Problem;
use crate::store::QueueClient;
use crate::web::access::too_large;

/// Of a body.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Of what is sent beyond that, so much is read before it is refused: a client that is still
/// sending would otherwise see a broken connection in place of the answer.
const EXCESS_BYTES_MAX: usize = 24 * 1024 * 1024;

/// The parameters behind the question mark, each at most once.
#[derive(Debug, Default)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Refuses those that are not `known`.
    pub(super) fn require_known(&self, known: &[&str]) -> Result<(), Problem> {
        let unknown = self
            .0
            .iter()
            .find(|(name, _)| !known.contains(&name.as_str()));
        unknown.map_or(Ok(()), |(name, _)| {
            Err(Problem::bad_request(format!(
                "unknown parameter {name:?}; known here: {}",
                known.join(", ")
            )))
        })
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str())
    }

    /// A parameter as a value of its own type.
    pub(super) fn read<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Problem> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        parse(text)
            .map(Some)
            .map_err(|why| Problem::bad_request(format!("{name}: {why}")))
    }

    /// How many at most: from 1 to 1000.
    pub(super) fn limit(&self, usual: u32) -> Result<u32, Problem> {
        let limit = self.read("limit", |text| {
            let number = text.parse::<u32>().ok();
            let fitting = number.filter(|number| (1..=1000).contains(number));
            fitting.ok_or_else(|| "must be a whole number from 1 to 1000".to_owned())
        })?;
        Ok(limit.unwrap_or(usual))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        let mut params: Vec<(String, String)> = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if params.iter().any(|(other, _)| *other == name) {
                return Err(Problem::bad_request(format!(
                    "the parameter {name:?} is given twice"
                )));
            }
            params.push((name.into_owned(), value.into_owned()));
        }
        Ok(Self(params))
    }
}

/// Words separated by commas.
pub(super) fn words<T: std::str::FromStr<Err: std::fmt::Display>>(
    text: &str,
) -> Result<Vec<T>, String> {
    let words = text.split(',').map(|word| word.trim().parse::<T>());
    words
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())
}

/// A time as producers write it, in the queue's own form.
pub(super) async fn time(
    client: &mut QueueClient,
    name: &str,
    text: Option<&str>,
) -> Result<Option<String>, Problem> {
    let Some(text) = text else {
        return Ok(None);
    };
    let read = client.read_time(text).await?;
    read.map(Some).ok_or_else(|| {
        Problem::bad_request(format!(
            "{name}: {text:?} is not a time; write for example 2026-01-31T22:00:00Z"
        ))
    })
}

/// The bytes of a body that says that it is JSON.
pub(super) struct JsonText(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for JsonText {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the body must be JSON: send the header Content-Type: application/json",
            ));
        }
        Ok(Self(read(request.into_body()).await?))
    }
}

impl JsonText {
    /// The object that it holds.
    pub(super) fn object<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_json::from_slice(&self.0).map_err(|error| {
            let what = format!("the body does not read: {error}");
            if error.is_data() {
                Problem::unprocessable(what)
            } else {
                Problem::bad_request(what)
            }
        })
    }
}

async fn read(body: Body) -> Result<Bytes, Problem> {
    let mut frames = body.into_data_stream();
    let mut bytes = Vec::new();
    let mut length = 0_usize;
    while let Some(data) = frames.next().await {
        let data = data.map_err(|_| Problem::bad_request("the body broke off"))?;
        length += data.len();
        if length <= BODY_BYTES_MAX {
            bytes.extend_from_slice(&data);
        } else if length > BODY_BYTES_MAX + EXCESS_BYTES_MAX {
            break;
        }
    }
    if length > BODY_BYTES_MAX {
        return Err(too_large().into());
    }
    Ok(bytes.into())
}
