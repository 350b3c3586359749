//! Signing with access keys: `SDK-HMAC-SHA256`, as the vendor's SDK does it.
//!
//! Pure: a request's parts, keys and a time go in, header values come out. Sends nothing and reads
//! no clock.
//!
//! Source: API Request Signing Guide, AK/SK Signing and Authentication Algorithm; SDK
//! `signer.Signer`.

use std::fmt::Write;

use hmac::digest::Digest;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::ExposeSecret;
use sha2::Sha256;

use super::AccessKeys;
use crate::model::UtcMillis;

const ALGORITHM: &str = "SDK-HMAC-SHA256";

/// What a signature covers. It must not change between here and the network.
#[derive(Debug, Clone)]
pub struct Signable<'a> {
    /// `GET`, `POST` or `PUT`.
    pub method: &'a str,
    /// The path as sent.
    pub path: &'a str,
    /// The query as sent, made by `canonical_query`; empty for none.
    pub query: &'a str,
    /// Every header to be signed, `host` and `x-sdk-date` among them; names in lower case, in any
    /// order.
    pub headers: Vec<(&'static str, &'a str)>,
    /// The bytes sent; empty for none.
    pub body: &'a [u8],
    /// The value of `x-sdk-date`.
    pub date: &'a str,
}

/// `X-Sdk-Date`: `YYYYMMDDTHHMMSSZ`, UTC.
pub fn sdk_date(now: UtcMillis) -> String {
    now.to_string()
        .split('.')
        .next()
        .unwrap_or_default()
        .replace(['-', ':'], "")
        + "Z"
}

/// The value of the `Authorization` header.
pub fn authorization(keys: &AccessKeys, request: &Signable<'_>) -> String {
    let signature = signature(keys, &string_to_sign(request));
    let access_key = &keys.access_key;
    let signed = signed_names(&request.sorted_headers());
    format!("{ALGORITHM} Access={access_key}, SignedHeaders={signed}, Signature={signature}")
}

/// Query parameters as they are signed and sent: sorted by name, then value, and percent-encoded.
pub fn canonical_query(parameters: &[(&str, &str)]) -> String {
    let mut sorted = parameters.to_vec();
    sorted.sort_unstable();
    let pairs: Vec<_> = sorted
        .iter()
        .map(|(name, value)| format!("{}={}", percent_encode(name), percent_encode(value)))
        .collect();
    pairs.join("&")
}

/// Percent-encodes all but `A-Z a-z 0-9 - . _ ~`.
pub fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

impl<'a> Signable<'a> {
    fn sorted_headers(&self) -> Vec<(&'static str, &'a str)> {
        let mut headers = self.headers.clone();
        headers.sort_unstable();
        headers
    }
}

fn string_to_sign(request: &Signable<'_>) -> String {
    let hash = hex::encode(Sha256::digest(canonical_request(request)));
    format!("{ALGORITHM}\n{}\n{hash}", request.date)
}

fn canonical_request(request: &Signable<'_>) -> String {
    let headers = request.sorted_headers();
    let lines: String = headers
        .iter()
        .map(|(name, value)| format!("{name}:{}\n", value.trim()))
        .collect();
    let method = request.method;
    let path = canonical_path(request.path);
    let query = request.query;
    let signed = signed_names(&headers);
    let body = hex::encode(Sha256::digest(request.body));
    format!("{method}\n{path}\n{query}\n{lines}\n{signed}\n{body}")
}

/// Decoded, encoded again segment by segment, and with a final `/` that the request itself does not
/// have.
fn canonical_path(path: &str) -> String {
    let mut canonical = String::with_capacity(path.len() + 1);
    for segment in path.split('/').skip(usize::from(path.starts_with('/'))) {
        canonical.push('/');
        canonical.push_str(&percent_encode(&percent_decode(segment)));
    }
    if !canonical.ends_with('/') {
        canonical.push('/');
    }
    canonical
}

pub(crate) fn percent_decode(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = (byte == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|digits| hex::decode(digits).ok());
        match escaped {
            Some(bytes) => {
                decoded.extend(bytes);
                rest = &tail[2..];
            }
            None => {
                decoded.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn signed_names(headers: &[(&'static str, &str)]) -> String {
    headers
        .iter()
        .map(|(name, _)| *name)
        .collect::<Vec<_>>()
        .join(";")
}

fn signature(keys: &AccessKeys, text: &str) -> String {
    let key = keys.secret_key.expose_secret().as_bytes();
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;
    use serde_json::Value;

    use super::*;

    const VECTORS: &str = include_str!("../../../tests/fixtures/signing-vectors.json");

    fn text(value: &Value) -> String {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    }

    fn header_name(name: &str) -> &'static str {
        ["content-type", "user-agent"]
            .into_iter()
            .find(|known| name.eq_ignore_ascii_case(known))
            .expect("a known header")
    }

    fn check(vector: &Value) {
        let name = &vector["name"];
        let input = &vector["input"];
        let expected = &vector["expected"];
        let query: Vec<_> = input["query"]
            .as_array()
            .expect("pairs")
            .iter()
            .map(|p| (text(&p[0]), text(&p[1])))
            .collect();
        let query = canonical_query(
            &query
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .collect::<Vec<_>>(),
        );
        let path = text(&input["path"]);
        let wire = if query.is_empty() {
            path.clone()
        } else {
            format!("{path}?{query}")
        };
        assert_eq!(wire, text(&expected["request_uri"]), "{name}");
        let date = text(&input["x_sdk_date"]);
        let mut headers = vec![
            ("host", input["host"].as_str().expect("a host")),
            ("x-sdk-date", &date),
        ];
        let others = input["headers"].as_object().expect("headers");
        headers.extend(
            others
                .iter()
                .map(|(name, value)| (header_name(name), value.as_str().expect("text"))),
        );
        headers.extend(
            input["x_project_id"]
                .as_str()
                .map(|id| ("x-project-id", id)),
        );
        headers.extend(
            input["security_token"]
                .as_str()
                .map(|token| ("x-security-token", token)),
        );
        let method = text(&input["method"]);
        let body = input["body"].as_str().unwrap_or("").as_bytes();
        let request = Signable {
            method: &method,
            path: &path,
            query: &query,
            headers,
            body,
            date: &date,
        };
        assert_eq!(
            canonical_request(&request),
            text(&expected["canonical_request"]),
            "{name}"
        );
        assert_eq!(
            string_to_sign(&request),
            text(&expected["string_to_sign"]),
            "{name}"
        );
        let keys = AccessKeys {
            access_key: text(&input["access_key"]),
            secret_key: SecretString::from(text(&input["secret_key"])),
            security_token: None,
        };
        assert_eq!(
            signature(&keys, &string_to_sign(&request)),
            text(&expected["signature"]),
            "{name}"
        );
        assert_eq!(
            authorization(&keys, &request),
            text(&expected["authorization"]),
            "{name}"
        );
    }

    #[test]
    fn every_vector_of_the_vendors_signer_is_reproduced() {
        let all: Value = serde_json::from_str(VECTORS).expect("the fixture is JSON");
        let vectors = all["vectors"].as_array().expect("vectors");
        assert_eq!(vectors.len(), 17);
        vectors.iter().for_each(check);
    }

    #[test]
    fn the_date_is_written_without_separators_and_fractions() {
        let time: UtcMillis = "2024-01-02T03:04:05.678Z".parse().expect("a time");
        assert_eq!(sdk_date(time), "20240102T030405Z");
    }

    #[test]
    fn an_escaped_path_is_decoded_before_it_is_encoded() {
        assert_eq!(
            canonical_path("/a%20b/%e6%9c%8d/x%zz"),
            "/a%20b/%E6%9C%8D/x%25zz/"
        );
        assert_eq!(canonical_path("/"), "/");
    }
}
