//! The gateway's side of `SDK-HMAC-SHA256`: what must have been signed, and with which result.
//! Knows no keys and no clock.
//!
//! Written from the vendor's signing guide, independently of this crate's client.

use std::fmt::Write as _;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::gateway::Request;

const ALGORITHM: &str = "SDK-HMAC-SHA256";

/// The parts of an `Authorization` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Authorization<'a> {
    pub(super) access_key: &'a str,
    /// As written, joined by `;`.
    pub(super) signed_headers: &'a str,
    pub(super) signature: &'a str,
}

impl<'a> Authorization<'a> {
    /// Reads `SDK-HMAC-SHA256 Access=…, SignedHeaders=…, Signature=…`.
    pub(super) fn read(value: &'a str) -> Option<Self> {
        let fields = value.trim().strip_prefix(ALGORITHM)?.strip_prefix(' ')?;
        let field = |name: &str| {
            let mut parts = fields.split(',').map(str::trim);
            parts.find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
        };
        Some(Self {
            access_key: field("Access")?,
            signed_headers: field("SignedHeaders")?,
            signature: field("Signature")?,
        })
    }
}

/// The signature this request must carry, or `None` if a header that it claims to have signed is
/// not there.
pub(super) fn expected(
    request: &Request,
    signed_headers: &str,
    secret_key: &str,
) -> Option<String> {
    let canonical = canonical_request(request, signed_headers)?;
    let to_sign = format!(
        "{ALGORITHM}\n{}\n{}",
        request.header("x-sdk-date")?,
        hex::encode(Sha256::digest(canonical))
    );
    let mut mac = Hmac::<Sha256>::new_from_slice(secret_key.as_bytes()).ok()?;
    mac.update(to_sign.as_bytes());
    Some(hex::encode(mac.finalize().into_bytes()))
}

/// Method, path, query, headers, their names and the body's hash, each on its line.
fn canonical_request(request: &Request, signed_headers: &str) -> Option<String> {
    let mut headers = String::new();
    for name in signed_headers.split(';') {
        let value = request.header(name)?;
        writeln!(headers, "{}:{}", name.to_ascii_lowercase(), value.trim())
            .expect("a String takes any text");
    }
    let payload = match request.header("x-sdk-content-sha256") {
        Some("UNSIGNED-PAYLOAD") => "UNSIGNED-PAYLOAD".to_owned(),
        _ => hex::encode(Sha256::digest(&request.body)),
    };
    let path = canonical_path(&request.path);
    let query = canonical_query(&request.query);
    Some(
        [
            request.method.as_str(),
            &path,
            &query,
            &headers,
            signed_headers,
            &payload,
        ]
        .join("\n"),
    )
}

/// Every segment decoded and encoded again, with a final slash that the request itself does not
/// have.
fn canonical_path(path: &str) -> String {
    let mut canonical = path
        .split('/')
        .map(|segment| encode(&decode(segment)))
        .collect::<Vec<_>>()
        .join("/");
    if !canonical.ends_with('/') {
        canonical.push('/');
    }
    canonical
}

/// Sorted by key, then value; both encoded.
fn canonical_query(query: &str) -> String {
    let mut pairs: Vec<(String, String)> = query_pairs(query)
        .map(|(key, value)| (encode(&key), encode(&value)))
        .collect();
    pairs.sort();
    pairs
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join("&")
}

/// The decoded pairs of a query, as bytes. A plus is a plus, not a blank.
pub(super) fn query_pairs(query: &str) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
}

fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| bytes.get(at + 1..at + 3))
            .flatten();
        match escaped.and_then(|digits| hex::decode(digits).ok()) {
            Some(byte) => {
                decoded.extend(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    decoded
}

fn encode(bytes: &[u8]) -> String {
    let mut encoded = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("a String takes any text");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn text(value: &Value) -> String {
        value.as_str().expect("a text").to_owned()
    }

    fn vectors() -> Vec<(String, Request, Value)> {
        let file: Value =
            serde_json::from_str(include_str!("../../tests/fixtures/signing-vectors.json"))
                .expect("JSON");
        let read = |vector: &Value| {
            let uri = text(&vector["expected"]["request_uri"]);
            let (path, query) = uri.split_once('?').unwrap_or((&uri, ""));
            let headers = vector["expected"]["headers_on_the_wire"]
                .as_object()
                .expect("headers");
            let request = Request {
                method: text(&vector["input"]["method"]),
                path: path.to_owned(),
                query: query.to_owned(),
                headers: headers
                    .iter()
                    .map(|(name, value)| (name.to_lowercase(), text(value)))
                    .collect(),
                body: vector["input"]["body"]
                    .as_str()
                    .unwrap_or_default()
                    .as_bytes()
                    .to_vec(),
            };
            (text(&vector["name"]), request, vector.clone())
        };
        file["vectors"]
            .as_array()
            .expect("vectors")
            .iter()
            .map(read)
            .collect()
    }

    #[test]
    fn every_signature_of_the_vendor_is_reproduced() {
        let vectors = vectors();
        assert!(vectors.len() >= 17);
        for (name, request, vector) in vectors {
            let wanted = &vector["expected"];
            let authorization = text(&wanted["authorization"]);
            let read = Authorization::read(&authorization).expect("readable");
            assert_eq!(read.access_key, vector["input"]["access_key"], "{name}");
            let canonical =
                canonical_request(&request, read.signed_headers).expect("all headers are there");
            assert_eq!(canonical, text(&wanted["canonical_request"]), "{name}");
            let signature = expected(
                &request,
                read.signed_headers,
                &text(&vector["input"]["secret_key"]),
            );
            assert_eq!(signature.as_deref(), Some(read.signature), "{name}");
        }
    }

    #[test]
    fn anything_signed_that_changes_spoils_the_signature() {
        let (_, request, vector) = vectors()
            .into_iter()
            .find(|(name, ..)| name == "bms-list-servers-query")
            .expect("there");
        let signed = text(&vector["expected"]["signed_headers"]);
        let secret = text(&vector["input"]["secret_key"]);
        let right = expected(&request, &signed, &secret);
        let mut other = request.clone();
        other.query = other.query.replace("limit=1000", "limit=999");
        assert_ne!(expected(&other, &signed, &secret), right);
        let mut other = request.clone();
        other.body = b"x".to_vec();
        assert_ne!(expected(&other, &signed, &secret), right);
        let mut other = request.clone();
        other.query = request.query.split('&').rev().collect::<Vec<_>>().join("&");
        assert_eq!(
            expected(&other, &signed, &secret),
            right,
            "the order on the wire does not matter"
        );
        let mut other = request;
        other.headers.retain(|(name, _)| name != "content-type");
        assert_eq!(expected(&other, &signed, &secret), None);
    }

    #[test]
    fn other_authorizations_are_not_read() {
        for value in [
            "",
            "Bearer x",
            "SDK-HMAC-SHA256 Access=a",
            "SDK-HMAC-SHA256Access=a, SignedHeaders=b, Signature=c",
        ] {
            assert_eq!(Authorization::read(value), None, "{value}");
        }
    }
}
