//! What a call gets back: a value with status, headers, body and what the network does to it. Sends
//! nothing itself.

use std::borrow::Cow;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::model::Service;

/// One answer of the simulated cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Headers in addition to `X-Request-Id`, `Content-Type` and `Content-Length`.
    pub headers: Vec<(&'static str, String)>,
    /// The value of `X-Request-Id`.
    pub request_id: String,
    /// The value of `Content-Type`.
    pub content_type: &'static str,
    /// The whole body, before the network changes it.
    pub body: Vec<u8>,
    /// What becomes of the answer on its way.
    pub delivery: Delivery,
    /// How long the cloud takes before the first byte of its answer.
    pub delay: Duration,
}

/// What becomes of an answer on its way to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// It arrives.
    Whole,
    /// The connection closes without one byte of it.
    Dropped,
    /// `Content-Length` promises the whole body; the connection closes after this many bytes of it.
    Truncated {
        /// Bytes of the body that arrive.
        bytes: usize,
    },
    /// This many blanks follow the body, so that a JSON body stays valid.
    Padded {
        /// Blanks after the body.
        bytes: usize,
    },
}

/// A text as it stands between the quotes of a JSON string.
pub(super) fn in_quotes(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| !c.is_control() && c != '"' && c != '\\';
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let quoted = Value::from(text).to_string();
    Cow::Owned(quoted[1..quoted.len() - 1].to_owned())
}

const JSON: &str = "application/json;charset=utf-8";

impl Answer {
    fn new(status: u16, content_type: &'static str, body: Vec<u8>) -> Self {
        let headers = Vec::new();
        let request_id = String::new();
        Self {
            status,
            headers,
            request_id,
            content_type,
            body,
            delivery: Delivery::Whole,
            delay: Duration::ZERO,
        }
    }

    /// A JSON body; values of this crate always serialise.
    pub(super) fn json(status: u16, body: &impl Serialize) -> Self {
        let text = serde_json::to_vec(body).expect("answers hold only strings, numbers and lists");
        Self::new(status, JSON, text)
    }

    /// A JSON body that is already text.
    pub(super) fn json_text(status: u16, text: String) -> Self {
        Self::new(status, JSON, text.into_bytes())
    }

    /// The shape of a BMS refusal: `{"error":{"message","code"}}`.
    pub(super) fn refusal(status: u16, code: &str, message: &str) -> Self {
        Self::json(
            status,
            &json!({"error": {"message": message, "code": code}}),
        )
    }

    /// The shape of a CloudDC refusal: `{"error_code","error_msg"}`.
    pub(super) fn flat_refusal(status: u16, code: &str, message: &str) -> Self {
        Self::json(status, &json!({"error_code": code, "error_msg": message}))
    }

    /// A refusal in the shape of the service that was called; `None` is the identity service.
    pub(super) fn refusal_by(
        service: Option<Service>,
        status: u16,
        code: &str,
        message: &str,
    ) -> Self {
        match service {
            Some(Service::CloudDc) => Self::flat_refusal(status, code, message),
            Some(Service::Bms) | None => Self::refusal(status, code, message),
        }
    }

    /// The shape of the gateway: `{"error_msg","error_code","request_id"}`.
    pub(super) fn gateway(status: u16, code: &str, message: &str, request_id: &str) -> Self {
        Self::json(
            status,
            &json!({"error_msg": message, "error_code": code, "request_id": request_id}),
        )
    }

    /// A page as proxies send it.
    pub(super) fn html(status: u16) -> Self {
        let page = format!(
            "<html><head><title>{status}</title></head><body><h1>{status}</h1><hr>proxy</body></html>\n"
        );
        Self::new(status, "text/html", page.into_bytes())
    }

    /// Text that is not JSON.
    pub(super) fn text(status: u16, text: &str) -> Self {
        Self::new(status, "text/plain", text.into())
    }

    /// No body at all.
    pub(super) fn empty(status: u16) -> Self {
        Self::new(status, "text/plain", Vec::new())
    }

    pub(super) fn dropped() -> Self {
        Self::empty(0).delivered(Delivery::Dropped)
    }

    pub(super) fn delivered(self, delivery: Delivery) -> Self {
        Self { delivery, ..self }
    }

    pub(super) fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The body as JSON; `Null` if it is none.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// True for a 2xx that arrives whole.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status) && self.delivery == Delivery::Whole
    }
}
