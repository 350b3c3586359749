//! The shapes in which the clouds complain: where in a JSON body the code and the text are.
//!
//! Owns only that search, which follows the vendor SDK's own rule (`DefaultExceptionHandler`). What
//! a code means is in `codes`.

use serde_json::{Map, Value};

use super::lenient;
use super::text::tidy;
use crate::model::cloud_codes;
use crate::model::{CodeClass, Complaint};

/// A code and a text found in a body, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundComplaint {
    /// The code, numbers as text; empty if there is only a text.
    pub(crate) code: String,
    /// The text; may be empty.
    pub(crate) message: String,
    /// The body's `request_id`.
    pub(crate) request_id: Option<String>,
}

/// Pairs of names of a code and its text, in the SDK's order.
const PAIRS: [(&str, &str); 3] = [
    ("error_code", "error_msg"),
    ("errorCode", "errorMsg"),
    ("code", "message"),
];

/// Looks for a code or a text at the top, then one level down (`error`, `itemNotFound`,
/// `badRequest`, …).
///
/// A nested object needs both a code and a text; at the top one of the two is enough.
pub(crate) fn find_complaint(body: &Value) -> Option<FoundComplaint> {
    let top = body.as_object()?;
    let mut nested = top.values().filter_map(Value::as_object);
    let (code, message) = code_and_text(top)
        .or_else(|| nested.find_map(code_and_text))
        .or_else(|| code_or_text(top))
        .or_else(|| {
            top.get("error")
                .and_then(Value::as_object)
                .and_then(code_or_text)
        })
        .or_else(|| {
            top.get("error")
                .and_then(scalar)
                .map(|message| (String::new(), message))
        })?;
    let request_id = top
        .get("request_id")
        .or_else(|| top.get("requestId"))
        .and_then(scalar);
    Some(FoundComplaint {
        code: tidy_code(&code),
        message,
        request_id,
    })
}

fn code_and_text(object: &Map<String, Value>) -> Option<(String, String)> {
    PAIRS
        .iter()
        .find_map(|(code, text)| Some((scalar(object.get(*code)?)?, scalar(object.get(*text)?)?)))
}

fn code_or_text(object: &Map<String, Value>) -> Option<(String, String)> {
    PAIRS.iter().find_map(|(code, text)| {
        let code = object.get(*code).and_then(scalar);
        let text = object.get(*text).and_then(scalar);
        (code.is_some() || text.is_some())
            .then(|| (code.unwrap_or_default(), text.unwrap_or_default()))
    })
}

/// A job's or sub-job's complaint; none if it has neither code nor text.
///
/// The text may itself be JSON of one of the error shapes (seen in `errorcode_message`); then its
/// inner text counts.
pub(crate) fn job_complaint(code: Option<&str>, text: Option<&str>) -> Option<Complaint> {
    if code.is_none() && text.is_none() {
        return None;
    }
    let code = tidy_code(code.unwrap_or_default());
    let text = text.unwrap_or_default();
    let inner = text
        .starts_with('{')
        .then(|| lenient::read(text.as_bytes()))
        .flatten();
    let inner = inner
        .as_ref()
        .and_then(find_complaint)
        .map(|found| found.message)
        .filter(|text| !text.is_empty());
    let message = tidy(inner.as_deref().unwrap_or(text));
    Some(Complaint {
        class: cloud_codes::class(&code),
        code,
        message,
    })
}

/// The error that is shown with a server; none if it has neither code nor text.
///
/// It means that this server failed, whatever the code is: no document lists these codes.
pub(crate) fn server_complaint(code: Option<&str>, text: Option<&str>) -> Option<Complaint> {
    job_complaint(code, text).map(|complaint| Complaint {
        class: CodeClass::ServerFailed,
        ..complaint
    })
}

/// A code as we keep it: one word, at most 64 characters.
fn tidy_code(code: &str) -> String {
    tidy(code).chars().take(64).collect()
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPTURES: &str = include_str!("../../tests/fixtures/wire-captures.json");

    #[test]
    fn every_shape_reads_as_the_vendors_client_reads_it() {
        let all: Value = serde_json::from_str(CAPTURES).expect("the fixture is JSON");
        let mut read = 0;
        for (name, case) in all["vendor_client_error_parsing"]
            .as_object()
            .expect("the cases")
        {
            // The vendor's HTTP library gives up on a 429 before its client reads it.
            if name == "err.429" || !case["response_body"].is_object() {
                continue;
            }
            let found = find_complaint(&case["response_body"]).expect(name);
            let sees = &case["client_sees"];
            assert_eq!(Some(found.code), scalar(&sees["code"]), "{name}");
            assert_eq!(Some(found.message), scalar(&sees["msg"]), "{name}");
            read += 1;
        }
        assert_eq!(read, 7);
    }

    #[test]
    fn a_body_without_code_and_text_is_no_complaint() {
        for body in [
            "{}",
            "[]",
            "null",
            "\"text\"",
            "{\"job_id\":\"1\"}",
            "{\"error\":null}",
        ] {
            assert_eq!(
                find_complaint(&serde_json::from_str(body).expect("JSON")),
                None,
                "{body}"
            );
        }
    }

    #[test]
    fn json_inside_a_jobs_text_gives_its_inner_text() {
        let text = r#"{"forbidden": {"message": "No valid host", "code": 403}}"#;
        let complaint = job_complaint(Some("Ecs.0204"), Some(text)).expect("a complaint");
        assert_eq!(
            (complaint.code.as_str(), complaint.message.as_str()),
            ("Ecs.0204", "No valid host")
        );
        assert_eq!(job_complaint(None, None), None);
    }
}
