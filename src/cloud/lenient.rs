//! Reads JSON as far as possible: first strictly, and if that fails with every tolerance that
//! leaves no doubt.
//!
//! Owns the tolerances: bytes that are not UTF-8, half of an escaped pair, repeated names (the last
//! value counts), raw control characters, numbers out of range, values nested without end, surplus
//! commas, blanks and NULs around. Half a document and two documents in one body stay unreadable.
//! Knows nothing of what the values mean.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{Map, Number, Value};

/// Values nested deeper than this are skipped and count as null. No document nests more than 8
/// deep.
const DEPTH_MAX: usize = 64;

/// The body read as `T`; none if it cannot be read so.
pub(super) fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Option<T> {
    // One pass over the whole body checks its UTF-8 faster than the parser does string by string.
    if let Ok(text) = str::from_utf8(body)
        && let Ok(read) = serde_json::from_str(text)
    {
        return Some(read);
    }
    T::deserialize(repaired(body)?).ok()
}

/// The body's first character that is no blank, to tell an object from a web page; none if there is
/// none.
pub(super) fn first_character(body: &[u8]) -> Option<char> {
    let body = body.trim_ascii_start();
    let text = text_of(&body[..body.len().min(256)]);
    text.trim_start_matches(is_blank).chars().next()
}

/// The document in `body`, read with all tolerances; none if it ends too early or is no JSON.
fn repaired(body: &[u8]) -> Option<Value> {
    let text = text_of(body);
    let mut reader = Reader {
        rest: text.trim_start_matches(is_blank),
    };
    let value = reader.value(0)?;
    // A second document could contradict the first one.
    let rest = reader.rest.trim_start_matches(is_blank);
    if rest.starts_with(['{', '[', '<', '"']) {
        None
    } else {
        Some(value)
    }
}

/// As UTF-8, or as UTF-16 if a mark says so or the first bracket shows it; what is neither becomes
/// U+FFFD.
fn text_of(body: &[u8]) -> Cow<'_, str> {
    type Unit = fn([u8; 2]) -> u16;
    let (unit, text): (Unit, &[u8]) = match body {
        [0xff, 0xfe, text @ ..] => (u16::from_le_bytes, text),
        [0xfe, 0xff, text @ ..] => (u16::from_be_bytes, text),
        [b'{' | b'[', 0, ..] => (u16::from_le_bytes, body),
        [0, b'{' | b'[', ..] => (u16::from_be_bytes, body),
        _ => return String::from_utf8_lossy(body),
    };
    let units = text.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
    let characters =
        char::decode_utf16(units).map(|read| read.unwrap_or(char::REPLACEMENT_CHARACTER));
    Cow::Owned(characters.collect())
}

/// What may be around values: white space, control characters, and a byte order mark.
fn is_blank(c: char) -> bool {
    c.is_whitespace() || c.is_control() || c == '\u{feff}'
}

/// The text that is still to be read.
struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start_matches(is_blank);
    }

    /// True if `c` comes next, which is then taken.
    fn takes(&mut self, c: char) -> bool {
        self.skip_blanks();
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        self.skip_blanks();
        match self.rest.chars().next()? {
            '{' | '[' if depth >= DEPTH_MAX => self.skip_nested(),
            '{' => self.object(depth),
            '[' => self.array(depth),
            '"' => self.string().map(Value::String),
            _ => self.bare_word(),
        }
    }

    fn object(&mut self, depth: usize) -> Option<Value> {
        let mut object = Map::new();
        self.takes('{');
        loop {
            while self.takes(',') {}
            if self.takes('}') {
                return Some(Value::Object(object));
            }
            self.skip_blanks();
            if !self.rest.starts_with('"') {
                return None;
            }
            let name = self.string()?;
            if !self.takes(':') {
                return None;
            }
            object.insert(name, self.value(depth + 1)?);
            if !self.at_separator('}') {
                return None;
            }
        }
    }

    fn array(&mut self, depth: usize) -> Option<Value> {
        let mut array = Vec::new();
        self.takes('[');
        loop {
            while self.takes(',') {}
            if self.takes(']') {
                return Some(Value::Array(array));
            }
            array.push(self.value(depth + 1)?);
            if !self.at_separator(']') {
                return None;
            }
        }
    }

    fn at_separator(&mut self, end: char) -> bool {
        self.skip_blanks();
        self.rest.starts_with([',', end])
    }

    /// A string with its quotes. An unknown escape is kept as written.
    fn string(&mut self) -> Option<String> {
        let mut text = String::new();
        let mut rest = self.rest.strip_prefix('"')?;
        loop {
            let plain = rest.find(['"', '\\'])?;
            text.push_str(&rest[..plain]);
            let end = rest[plain..].starts_with('"');
            rest = &rest[plain + 1..];
            if end {
                self.rest = rest;
                return Some(text);
            }
            let escape = rest.chars().next()?;
            rest = &rest[escape.len_utf8()..];
            match escape {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                'r' => text.push('\r'),
                'b' => text.push('\u{8}'),
                'f' => text.push('\u{c}'),
                'u' => {
                    let (character, after) = escaped_character(rest);
                    text.push(character);
                    rest = after;
                }
                other => text.push(other),
            }
        }
    }

    /// A number, or one of the words `true`, `false` and `null`; any other word counts as null.
    fn bare_word(&mut self) -> Option<Value> {
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || "+-._".contains(c)));
        let word = &self.rest[..end.unwrap_or(self.rest.len())];
        if word.is_empty() {
            return None;
        }
        self.rest = &self.rest[word.len()..];
        Some(match word {
            "true" | "True" => Value::Bool(true),
            "false" | "False" => Value::Bool(false),
            _ => number(word),
        })
    }

    /// Skips an object or array of any depth.
    fn skip_nested(&mut self) -> Option<Value> {
        let mut open = 0_usize;
        loop {
            let at = self.rest.find(['{', '[', '}', ']', '"'])?;
            let found = self.rest[at..].chars().next()?;
            self.rest = &self.rest[at..];
            if found == '"' {
                self.string()?;
                continue;
            }
            self.rest = &self.rest[1..];
            if matches!(found, '{' | '[') {
                open += 1;
            } else {
                open -= 1;
            }
            if open == 0 {
                return Some(Value::Null);
            }
        }
    }
}

/// A number out of range stays as it is written; what is not a number at all (`NaN`, `undefined`)
/// is null.
fn number(word: &str) -> Value {
    let digits = word.trim_start_matches(['-', '+']);
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return Value::Null;
    }
    match serde_json::from_str::<Number>(word) {
        Ok(number) => Value::Number(number),
        Err(_) => Value::String(word.to_owned()),
    }
}

/// The character of the four digits after `\u`, and what comes after it: U+FFFD for half of a pair
/// and for no digits.
fn escaped_character(rest: &str) -> (char, &str) {
    let Some((first, after)) = four_digits(rest) else {
        return (char::REPLACEMENT_CHARACTER, rest);
    };
    let single = char::from_u32(u32::from(first));
    let second = after.strip_prefix("\\u").and_then(four_digits);
    match (single, second) {
        (Some(character), _) => (character, after),
        (None, Some((second, after_both))) => match char::decode_utf16([first, second]).next() {
            Some(Ok(character)) => (character, after_both),
            _ => (char::REPLACEMENT_CHARACTER, after),
        },
        (None, None) => (char::REPLACEMENT_CHARACTER, after),
    }
}

fn four_digits(text: &str) -> Option<(u16, &str)> {
    let digits = text
        .get(..4)
        .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
    Some((u16::from_str_radix(digits, 16).ok()?, &text[4..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::cloud::text::Text;

    #[derive(Deserialize)]
    struct Job<'a> {
        #[serde(borrow, default)]
        job_id: Text<'a>,
    }

    fn job(body: &[u8]) -> Option<String> {
        read::<Job<'_>>(body)?.job_id.get().map(str::to_owned)
    }

    #[test]
    fn an_odd_text_beside_it_does_not_hide_a_value() {
        let deep = format!(
            r#"{{"x":{}1{},"job_id":"j"}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        let deep_objects = format!(
            r#"{{"x":{}1{},"job_id":"j"}}"#,
            r#"{"a":"#.repeat(500),
            "}".repeat(500)
        );
        for body in [
            b"{\"x\":\"r\xc3\",\"job_id\":\"j\"}".as_slice(),
            b"\xef\xbb\xbf{\"job_id\":\"j\"}",
            b"\xff\xfe{\0\"\0j\0o\0b\0_\0i\0d\0\"\0:\0\"\0j\0\"\0}\0",
            b"{\0\"\0j\0o\0b\0_\0i\0d\0\"\0:\0\"\0j\0\"\0}\0",
            b"\0{\0\"\0j\0o\0b\0_\0i\0d\0\"\0:\0\"\0j\0\"\0}",
            br#"{"x":"\ud83d","job_id":"j"}"#,
            br#"{"x":"\ud83d\u0041 \udc00 \u12","job_id":"j"}"#,
            br#"{"job_id":"a","job_id":"j"}"#,
            b"{\"x\":\"a\nb\x01\tc\",\"job_id\":\"j\"}",
            br#"{"x":NaN,"y":-Infinity,"z":1e999,"v":undefined,"w":None,"job_id":"j"}"#,
            br#"{"x":"\q\'","job_id":"j",}"#,
            b"{\"job_id\":\"j\"}\0\0\r\n",
            b"\0\n {\"job_id\":\"j\"} 0",
            br#"{"x":[1,2,],"job_id":"j"}"#,
            br#"{"x":007,"job_id":"j"}"#,
            deep.as_bytes(),
            deep_objects.as_bytes(),
        ] {
            let shown = String::from_utf8_lossy(&body[..body.len().min(80)]);
            assert_eq!(job(body).as_deref(), Some("j"), "{shown}");
        }
    }

    #[test]
    fn a_text_with_bad_bytes_keeps_the_rest_of_it() {
        assert_eq!(
            job(b"{\"job_id\":\"a\xc3 b\"}").as_deref(),
            Some("a\u{fffd} b")
        );
        assert_eq!(
            job(br#"{"job_id":"fan \ud83d failed","x":"\ud83d"}"#).as_deref(),
            Some("fan \u{fffd} failed")
        );
        assert_eq!(
            job(br#"{"job_id":"\ud83d\ude00","x":NaN}"#).as_deref(),
            Some("\u{1f600}")
        );
        assert_eq!(
            job(br#"{"job_id":99999999999999999999e999}"#).as_deref(),
            Some("99999999999999999999e999")
        );
    }

    #[test]
    fn half_a_document_and_two_documents_stay_unreadable() {
        for body in [
            "",
            "{",
            r#"{"job_id":"j""#,
            r#"{"job_id":"j"#,
            r#"{"job_id" "j"}"#,
            r#"{"job_id":"j"}{"error":"x"}"#,
            r#"{"job_id":"j"}<html>"#,
            "<html>",
            "{job_id:1}",
            r#"{"job_id":"j" "x":1}"#,
        ] {
            assert_eq!(job(body.as_bytes()), None, "{body}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = repaired(&body);
        }

        #[test]
        fn what_is_valid_reads_as_the_strict_parser_reads_it(
            texts in proptest::collection::vec("\\PC{0,8}", 0..5), number: i64, flag: bool,
        ) {
            let value = json!({ "texts": texts, "number": number, "flag": [flag, null, { "a": 1.5 }] });
            prop_assert_eq!(repaired(value.to_string().as_bytes()), Some(value.clone()));
            let pretty = serde_json::to_string_pretty(&value).expect("JSON");
            prop_assert_eq!(repaired(pretty.as_bytes()), Some(value));
        }
    }
}
