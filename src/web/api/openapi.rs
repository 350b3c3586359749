//! `openapi.json`: made from the handlers and types of the API, so that it cannot say anything else
//! than they do.

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::response::Response;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use super::problem::{MEDIA_TYPE, Problem, RowNote};
use super::tagged::{tag_of, with_tag};
use super::{actions, events, reads, requests};

/// What the guard and the limits may say of any call.
const OF_ANY: [(&str, &str); 9] = [
    ("304", "What was known is still so (`If-None-Match`)"),
    ("400", "The call or its parameters do not read"),
    ("401", "The token is missing or wrong"),
    (
        "403",
        "The token, its role, its targets or its actions do not allow it, or the page is foreign",
    ),
    ("405", "The path knows other methods"),
    (
        "408",
        "The call was not complete, or could not be answered, within a minute",
    ),
    ("421", "The server is not called by this name"),
    ("429", "Too many wrong tokens came from this address"),
    ("503", "The queue is locked, or too many ask for it"),
];
/// What may be wrong with a body.
const OF_BODIES: [(&str, &str); 4] = [
    ("404", "A request that is named does not exist"),
    ("413", "The body or the number of rows is too large"),
    ("415", "The body is no JSON"),
    ("422", "What is asked for is wrong; `errors` names the rows"),
];

#[derive(OpenApi)]
#[openapi(
    info(
        title = "poweryard",
        description = "Power requests for bare-metal servers, asked for and followed from other machines.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    servers((url = "/api/v1")),
    paths(
        requests::insert, requests::list, requests::show,
        reads::status, reads::orders, reads::servers, events::events,
        actions::cancel, actions::retry, actions::approve, actions::pause, actions::resume,
    ),
    components(schemas(Problem, RowNote)),
    modifiers(&Usual),
    security(("token" = []))
)]
struct Document;

/// What all calls have in common.
struct Usual;

impl Modify for Usual {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        if let Some(components) = &mut document.components {
            components.add_security_scheme("token", SecurityScheme::Http(bearer));
        }
        for item in document.paths.paths.values_mut() {
            for read in [&mut item.get].into_iter().flatten() {
                add(read, &OF_ANY);
            }
            for write in [&mut item.post].into_iter().flatten() {
                add(write, &OF_ANY[1..]);
                add(write, &OF_BODIES);
            }
        }
    }
}

/// Adds answers that the handler does not name itself.
fn add(operation: &mut Operation, answers: &[(&str, &str)]) {
    for (status, description) in answers {
        let mut answer = ResponseBuilder::new().description(*description);
        if *status != "304" {
            let content = ContentBuilder::new()
                .schema(Some(Ref::from_schema_name("Problem")))
                .build();
            answer = answer.content(MEDIA_TYPE, content);
        }
        let answers = &mut operation.responses.responses;
        answers
            .entry((*status).to_owned())
            .or_insert(RefOr::T(answer.build()));
    }
}

/// The document and its tag.
static TEXT: LazyLock<(Bytes, String)> = LazyLock::new(|| {
    let mut document = Document::openapi();
    document.info.version = env!("CARGO_PKG_VERSION").to_owned();
    let text = serde_json::to_vec(&document).unwrap_or_default();
    let tag = tag_of(&text);
    (Bytes::from(text), tag)
});

/// Everybody may read it.
pub(super) async fn answer(headers: HeaderMap) -> Response {
    let (text, tag) = &*TEXT;
    with_tag(&headers, text.clone(), tag)
}
