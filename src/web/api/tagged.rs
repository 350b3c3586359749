//! Answers with an `ETag`: who has them already gets 304. Source: RFC 9110, section 13.1.2.

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use sha2::{Digest, Sha256};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Kept by the one who asked, and asked for again each time.
const CACHING: HeaderValue = HeaderValue::from_static("private, no-cache");

/// A value as JSON; what it says is its tag.
pub(super) fn tagged<T: Serialize>(asked: &HeaderMap, value: &T) -> Response {
    let body = Bytes::from(serde_json::to_vec(value).unwrap_or_default());
    let tag = tag_of(&body);
    with_tag(asked, body, &tag)
}

/// The tag of what is said here.
pub(super) fn tag_of(said: &[u8]) -> String {
    let digest = Sha256::digest(said);
    format!("W/\"{}\"", hex::encode(&digest[..16]))
}

/// A body with the tag of what it says.
pub(super) fn with_tag(asked: &HeaderMap, body: Bytes, tag: &str) -> Response {
    let mut response = if is_known(asked, tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let mut response = body.into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, JSON);
        response
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, CACHING);
    // Hex digits and quotes.
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(header::ETAG, tag);
    }
    response
}

fn is_known(asked: &HeaderMap, tag: &str) -> bool {
    let bare = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let known = asked.get_all(header::IF_NONE_MATCH).iter();
    known
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .any(|known| known.trim() == "*" || bare(known) == bare(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_knows_the_tag_gets_no_body() {
        let tag = tag_of(b"x");
        assert_ne!(tag, tag_of(b"y"));
        for (known, wanted) in [
            (tag.clone(), true),
            (format!("\"a\", {tag}"), true),
            (tag.trim_start_matches("W/").to_owned(), true),
            ("*".to_owned(), true),
            ("\"a\"".to_owned(), false),
        ] {
            let mut asked = HeaderMap::new();
            let known = HeaderValue::from_str(&known).expect("a header");
            asked.insert(header::IF_NONE_MATCH, known);
            assert_eq!(is_known(&asked, &tag), wanted, "{asked:?}");
        }
    }
}
