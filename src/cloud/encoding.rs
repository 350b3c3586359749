//! Bodies that arrive compressed although nobody asked for it. Pure: headers and bytes in, the
//! decoded body out.
//!
//! Owns which `Content-Encoding` is decoded. An unknown one stays as it is, and whatever reads the
//! answer reports it.

use std::io::Read;

use flate2::read::{DeflateDecoder, GzDecoder, MultiGzDecoder, ZlibDecoder};
use reqwest::header::{CONTENT_ENCODING, HeaderMap};

/// The decoded body would be larger than the cap.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLarge;

/// How many nested encodings are decoded.
const LAYERS_MAX: usize = 4;

/// Decodes what `Content-Encoding` names, or a body that begins like gzip without naming it, and
/// removes the header. A body that does not decode stays as it is, with its header.
pub(crate) fn decode(
    headers: &mut HeaderMap,
    body: Vec<u8>,
    bytes_max: usize,
) -> Result<Vec<u8>, TooLarge> {
    let mut named = named_encodings(headers);
    if named.is_empty() && is_gzip(&body) {
        named.push("gzip".to_owned());
    }
    if named.is_empty() || named.len() > LAYERS_MAX {
        return Ok(body);
    }
    let mut decoded = body.clone();
    // The last one named was applied last.
    for name in named.iter().rev() {
        match undo(name, &decoded, bytes_max)? {
            Some(inner) => decoded = inner,
            None => return Ok(body),
        }
    }
    headers.remove(CONTENT_ENCODING);
    Ok(decoded)
}

/// The words of all `Content-Encoding` headers in their order, in lower case.
pub(super) fn named_encodings(headers: &HeaderMap) -> Vec<String> {
    let values = headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let words = values
        .flat_map(|value| value.split(','))
        .map(|word| word.trim().to_ascii_lowercase());
    words
        .filter(|word| !word.is_empty() && word != "identity")
        .collect()
}

/// None for an unknown encoding, or a body that is not in it.
fn undo(name: &str, body: &[u8], bytes_max: usize) -> Result<Option<Vec<u8>>, TooLarge> {
    match name {
        // Some servers add NULs after its end.
        "gzip" | "x-gzip" => match unpack(MultiGzDecoder::new(body), bytes_max)? {
            Some(unpacked) => Ok(Some(unpacked)),
            None => unpack(GzDecoder::new(body), bytes_max),
        },
        // Some servers send the bare stream, without the wrapper that the standard demands.
        "deflate" => match unpack(ZlibDecoder::new(body), bytes_max)? {
            Some(unpacked) => Ok(Some(unpacked)),
            None => unpack(DeflateDecoder::new(body), bytes_max),
        },
        _ => Ok(None),
    }
}

fn unpack(decoder: impl Read, bytes_max: usize) -> Result<Option<Vec<u8>>, TooLarge> {
    let mut unpacked = Vec::new();
    let limit = u64::try_from(bytes_max)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    match decoder.take(limit).read_to_end(&mut unpacked) {
        Ok(_) if unpacked.len() > bytes_max => Err(TooLarge),
        Ok(_) => Ok(Some(unpacked)),
        Err(_) => Ok(None),
    }
}

/// No text begins with these two bytes.
fn is_gzip(body: &[u8]) -> bool {
    body.starts_with(&[0x1f, 0x8b])
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use reqwest::header::HeaderValue;

    use super::*;

    const BODY: &[u8] = br#"{"job_id":"1"}"#;

    fn gzip(body: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(body).expect("memory");
        encoder.finish().expect("memory")
    }

    fn decoded(name: Option<&'static str>, body: Vec<u8>) -> (Result<Vec<u8>, TooLarge>, bool) {
        let mut headers = HeaderMap::new();
        if let Some(name) = name {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(name));
        }
        let decoded = decode(&mut headers, body, 1000);
        (decoded, headers.contains_key(CONTENT_ENCODING))
    }

    #[test]
    fn gzip_and_both_forms_of_deflate_are_undone() {
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        zlib.write_all(BODY).expect("memory");
        let mut bare = DeflateEncoder::new(Vec::new(), Compression::default());
        bare.write_all(BODY).expect("memory");
        for (name, body) in [
            (Some("gzip"), gzip(BODY)),
            (Some("GZIP"), gzip(BODY)),
            (Some("x-gzip, identity"), gzip(BODY)),
            (Some("gzip, gzip"), gzip(&gzip(BODY))),
            (None, gzip(BODY)),
            (Some("gzip"), [gzip(BODY), vec![0; 8]].concat()),
            (Some("deflate"), zlib.finish().expect("memory")),
            (Some("deflate"), bare.finish().expect("memory")),
        ] {
            assert_eq!(decoded(name, body), (Ok(BODY.to_vec()), false), "{name:?}");
        }
    }

    #[test]
    fn what_does_not_decode_stays_with_its_header() {
        let half = gzip(BODY)[..20].to_vec();
        for (name, body) in [
            ("br", vec![1, 2, 3]),
            ("gzip", BODY.to_vec()),
            ("gzip", half),
        ] {
            assert_eq!(
                decoded(Some(name), body.clone()),
                (Ok(body), true),
                "{name}"
            );
        }
        assert_eq!(decoded(None, BODY.to_vec()), (Ok(BODY.to_vec()), false));
    }

    #[test]
    fn a_small_body_that_unpacks_to_a_large_one_is_refused() {
        assert_eq!(decoded(Some("gzip"), gzip(&[b' '; 5000])).0, Err(TooLarge));
    }
}
