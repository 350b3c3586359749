//! Text that a cloud wrote: read from any JSON type, and made safe to store and print.
//!
//! Owns tolerance and hygiene of single values. Knows nothing of what they mean.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::model::UtcMillis;

/// The most characters that we keep of a cloud's text.
pub(crate) const MESSAGE_CHARS_MAX: usize = 500;

/// The most characters that we keep of a server's name.
const NAME_CHARS_MAX: usize = 255;

/// Runs of token-like characters longer than this are cut out: a cloud may quote the token that it
/// refuses.
const WORD_CHARS_MAX: usize = 120;

/// A JSON value read as text: strings, numbers and booleans as written; null, arrays and objects
/// count as absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Text<'a>(Option<Cow<'a, str>>);

impl Text<'_> {
    /// The trimmed text; none if absent or blank.
    pub(crate) fn get(&self) -> Option<&str> {
        self.0
            .as_deref()
            .map(str::trim)
            .filter(|text| !text.is_empty())
    }

    /// The text as a time; none if absent or not a time.
    pub(crate) fn time(&self) -> Option<UtcMillis> {
        self.get()?.parse().ok()
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Text(Some(Cow::Borrowed(text))))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Text(Some(Cow::Owned(text.to_owned()))))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Text(Some(Cow::Owned(number.to_string()))))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Text(Some(Cow::Owned(number.to_string()))))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Text(Some(Cow::Owned(number.to_string()))))
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Self::Value, E> {
        Ok(Text(Some(Cow::Borrowed(if flag {
            "true"
        } else {
            "false"
        }))))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Text(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Text(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Text(None))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

/// A cloud's text as we store and print it: one line of at most 500 characters, without controls
/// and token-like runs.
pub(crate) fn tidy(text: &str) -> String {
    let mut tidy = String::new();
    for word in text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
    {
        if !tidy.is_empty() {
            tidy.push(' ');
        }
        push_without_secrets(&mut tidy, word);
        if tidy.len() > 8 * MESSAGE_CHARS_MAX {
            break;
        }
    }
    cap(&tidy, MESSAGE_CHARS_MAX)
}

/// A server's name, or its state in the cloud's own word, as it is kept: at most 255 characters.
/// Nothing else is changed but NUL, at which SQLite ends a text that it compares.
pub(crate) fn kept_word(text: &Text<'_>) -> String {
    let chars = text.get().unwrap_or_default().chars().take(NAME_CHARS_MAX);
    chars
        .map(|c| {
            if c == '\0' {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// The first `chars_max` characters of `text`, ending in `…` if something was cut off.
pub(crate) fn cap(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    let mut capped: String = text.chars().take(chars_max.saturating_sub(1)).collect();
    capped.push('…');
    capped
}

fn is_token_like(c: char) -> bool {
    c.is_ascii_alphanumeric() || "+/=_-.".contains(c)
}

fn push_without_secrets(out: &mut String, word: &str) {
    let mut rest = word;
    while !rest.is_empty() {
        let plain = rest.find(is_token_like).unwrap_or(rest.len());
        out.push_str(&rest[..plain]);
        rest = &rest[plain..];
        let run = rest.find(|c| !is_token_like(c)).unwrap_or(rest.len());
        out.push_str(if run > WORD_CHARS_MAX {
            "***"
        } else {
            &rest[..run]
        });
        rest = &rest[run..];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(json: &str) -> Option<String> {
        serde_json::from_str::<Text<'_>>(json)
            .expect("any JSON is text or absent")
            .get()
            .map(str::to_owned)
    }

    #[test]
    fn any_json_type_reads_as_text_or_as_absent() {
        assert_eq!(read("\"BMS.0040\"").as_deref(), Some("BMS.0040"));
        assert_eq!(read("\"a\\tb\"").as_deref(), Some("a\tb"));
        assert_eq!(read("400").as_deref(), Some("400"));
        assert_eq!(read("-1").as_deref(), Some("-1"));
        assert_eq!(read("true").as_deref(), Some("true"));
        for absent in ["null", "\"\"", "\"  \"", "[1,[2]]", "{\"a\":{\"b\":1}}"] {
            assert_eq!(read(absent), None, "{absent}");
        }
    }

    #[test]
    fn a_quoted_token_does_not_reach_the_log() {
        let message = tidy(&format!(
            "Invalid token: {}; renew it",
            "MIIabc+/".repeat(100)
        ));
        assert_eq!(message, "Invalid token: ***; renew it");
    }

    proptest! {
        #[test]
        fn tidy_text_is_short_and_printable(text in "\\PC*|(.|\\s){0,2000}") {
            let tidy = tidy(&text);
            prop_assert!(tidy.chars().count() <= MESSAGE_CHARS_MAX);
            prop_assert!(!tidy.chars().any(char::is_control));
        }
    }
}
