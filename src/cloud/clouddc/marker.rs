//! Where the next page of CloudDC's list is: the API reference calls `next_marker` an id, the
//! vendor's client an address.
//!
//! Owns finding the marker in either. Nothing is ever sent to the address itself.

use crate::cloud::auth::aksk::percent_decode;

/// Longer ones are ignored: they would not fit into a URL.
const MARKER_BYTES_MAX: usize = 1024;

/// The marker in `text`: the parameter `marker` of an address, else the text itself. Either may be
/// percent-encoded.
///
/// None if it has no marker: then this page counts as the last, and servers that are missing from
/// the list are read alone.
pub(super) fn find(text: &str) -> Option<String> {
    let decoded = percent_decode(text);
    let named = parameter(text)
        .or_else(|| parameter(&decoded))
        .map(percent_decode);
    let is_address = decoded.contains("://") || decoded.contains('?') || decoded.starts_with('/');
    let marker = named.unwrap_or_else(|| {
        if is_address {
            String::new()
        } else {
            decoded.clone()
        }
    });
    let marker = marker.trim();
    let usable =
        (1..=MARKER_BYTES_MAX).contains(&marker.len()) && !marker.contains(char::is_control);
    usable.then(|| marker.to_owned())
}

/// The value of `marker=` in an address or a query; other parameters' names may end in the same
/// word.
fn parameter(text: &str) -> Option<&str> {
    let (_, query) = text.split_once('?').unwrap_or(("", text));
    let query = query.split('#').next().unwrap_or_default();
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix("marker="))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "01939592-e8fe-7d9b-9332-4589486377a4";

    #[test]
    fn an_id_and_an_address_name_the_same_marker() {
        for text in [
            ID.to_owned(),
            format!(" {ID} "),
            format!("marker={ID}"),
            format!("?limit=1000&marker={ID}"),
            format!("/v1/p/physicalservers?marker={ID}&limit=1000"),
            format!(
                "https://clouddc.example/v1/p/physicalservers?previous_marker=x&marker={ID}#end"
            ),
            format!(
                "https%3A%2F%2Fclouddc.example%2Fv1%2Fp%2Fphysicalservers%3Flimit%3D1000%26marker%3D{ID}"
            ),
        ] {
            assert_eq!(find(&text).as_deref(), Some(ID), "{text}");
        }
    }

    #[test]
    fn an_encoded_marker_is_decoded_once() {
        assert_eq!(
            find("https://h/p?marker=a%2Fb%3D%3D&x=1").as_deref(),
            Some("a/b==")
        );
        assert_eq!(find("a%2Fb%3D%3D").as_deref(), Some("a/b=="));
        assert_eq!(find("a/b==").as_deref(), Some("a/b=="));
    }

    #[test]
    fn an_address_without_a_marker_and_nonsense_name_none() {
        for text in [
            "",
            " ",
            "https://h/p",
            "/v1/p",
            "/v1/p?limit=10",
            "?marker=",
            "https://h/?next_marker=x",
            "a\u{7}b",
        ] {
            assert_eq!(find(text), None, "{text}");
        }
        assert_eq!(find(&"x".repeat(2000)), None);
    }

    proptest! {
        #[test]
        fn any_text_names_a_short_marker_or_none(text in "\\PC*|[a-z%0-9?&=/]{0,40}") {
            prop_assert!(find(&text).is_none_or(|marker| (1..=MARKER_BYTES_MAX).contains(&marker.len())));
        }
    }
}
