//! Single values of the config file, each from TOML to a finished type, or a sentence that says how
//! to write it. Knows nothing of tables; reads no file.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use toml::de::DeValue;

use crate::model::{Budget, ServerId};

/// A value, or a sentence that says how to write it.
pub(super) type Parsed<T> = Result<T, String>;

pub(super) fn text<'d>(value: &'d DeValue<'_>) -> Parsed<&'d str> {
    value
        .as_str()
        .ok_or_else(|| format!("must be a string in quotes, not {}", kind(value)))
}

/// Text that is not blank and has no control characters.
pub(super) fn name(value: &DeValue<'_>) -> Parsed<String> {
    let text = text(value)?;
    if text.trim().is_empty() || text.chars().any(char::is_control) {
        return Err("must not be empty or contain control characters".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn boolean(value: &DeValue<'_>) -> Parsed<bool> {
    value
        .as_bool()
        .ok_or_else(|| format!("must be true or false, not {}", kind(value)))
}

/// A whole number within `range`.
pub(super) fn whole(range: RangeInclusive<u32>) -> impl Fn(&DeValue<'_>) -> Parsed<u32> {
    move |value| {
        let number = any_whole(value)?;
        let wanted = || {
            format!(
                "{number} is out of range; use {} to {}",
                range.start(),
                range.end()
            )
        };
        u32::try_from(number)
            .ok()
            .filter(|number| range.contains(number))
            .ok_or_else(wanted)
    }
}

/// A whole number of any size that TOML allows; numbers beyond 64 bits count as the largest or
/// smallest.
pub(super) fn any_whole(value: &DeValue<'_>) -> Parsed<i128> {
    let number = value
        .as_integer()
        .ok_or_else(|| format!("must be a whole number, not {}", kind(value)))?;
    i128::from_str_radix(number.as_str(), number.radix()).map_err(|_| "is too large".to_owned())
}

/// A duration such as `"90s"` within `range`.
pub(super) fn duration(
    range: RangeInclusive<Duration>,
) -> impl Fn(&DeValue<'_>) -> Parsed<Duration> {
    move |value| {
        let text = value.as_str().ok_or_else(|| {
            format!(
                "must be a duration in quotes with its unit, such as \"90s\", not {}",
                kind(value)
            )
        })?;
        let duration = parse_duration(text)?;
        if range.contains(&duration) {
            return Ok(duration);
        }
        let [least, most] = [range.start(), range.end()].map(|end| show(*end));
        Err(format!(
            "{text:?} is out of range; use \"{least}\" to \"{most}\""
        ))
    }
}

/// A duration, or `word` for none.
pub(super) fn duration_or(
    word: &'static str,
    range: RangeInclusive<Duration>,
) -> impl Fn(&DeValue<'_>) -> Parsed<Option<Duration>> {
    move |value| match value.as_str() {
        Some(text) if text == word => Ok(None),
        _ => duration(range.clone())(value)
            .map(Some)
            .map_err(|problem| format!("{problem}, or write \"{word}\"")),
    }
}

fn parse_duration(text: &str) -> Parsed<Duration> {
    humantime::parse_duration(text).map_err(|error| {
        format!(
            "{text:?} is not a duration ({error}); \
             write a number with its unit, such as \"100ms\", \"90s\", \"24h\" or \"90d\""
        )
    })
}

/// A duration as an operator would write it, in the largest unit that fits without a remainder.
pub(super) fn show(duration: Duration) -> String {
    let secs = duration.as_secs();
    let millis = duration.subsec_millis();
    match secs {
        _ if millis != 0 => format!("{}ms", duration.as_millis()),
        0 => "0s".to_owned(),
        _ if secs.is_multiple_of(86_400) => format!("{}d", secs / 86_400),
        _ if secs.is_multiple_of(3_600) => format!("{}h", secs / 3_600),
        _ if secs.is_multiple_of(60) => format!("{}m", secs / 60),
        _ => format!("{secs}s"),
    }
}

/// `"500/1h"`: servers per span, which is 1 s to 366 days.
pub(super) fn budget(value: &DeValue<'_>) -> Parsed<Budget> {
    let usual = "write a number of servers per time, such as \"500/1h\"";
    let text = value
        .as_str()
        .ok_or_else(|| format!("must be a string, not {}; {usual}", kind(value)))?;
    let (servers, span) = text
        .split_once('/')
        .ok_or_else(|| format!("{text:?} has no slash; {usual}"))?;
    let servers = servers
        .trim()
        .parse::<u32>()
        .ok()
        .filter(|servers| *servers > 0)
        .ok_or_else(|| {
            format!(
                "{:?} is not a number of servers from 1 to {}; {usual}",
                servers.trim(),
                u32::MAX
            )
        })?;
    let span = parse_duration(span.trim())?;
    if !(Duration::from_secs(1)..=Duration::from_secs(366 * 86_400)).contains(&span) {
        return Err(format!(
            "the time of {text:?} is out of range; use \"1s\" to \"366d\""
        ));
    }
    Ok(Budget { servers, span })
}

/// An absolute path.
pub(super) fn path(value: &DeValue<'_>) -> Parsed<PathBuf> {
    let path = PathBuf::from(text(value)?);
    if path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&0) {
        return Ok(path);
    }
    Err(format!(
        "{:?} is not an absolute path; write one that begins with /",
        path.as_os_str()
    ))
}

/// An absolute path, or the bare name of a systemd credential. The value is not repeated: it might
/// be a secret.
pub(super) fn file_or_credential(value: &DeValue<'_>) -> Parsed<PathBuf> {
    let text = text(value)?;
    let is_name = (1..=255).contains(&text.len())
        && !text.contains(['/', '\0', '\n'])
        && text != "."
        && text != "..";
    if is_name || (text.starts_with('/') && !text.contains(['\0', '\n'])) {
        return Ok(PathBuf::from(text));
    }
    Err(
        "must be the absolute path of a file, or the name of a systemd credential (without /)"
            .to_owned(),
    )
}

/// An address with its port.
pub(super) fn address(value: &DeValue<'_>) -> Parsed<SocketAddr> {
    let text = text(value)?;
    text.parse().map_err(|_| {
        format!("{text:?} is not an IP address with a port; write for example \"127.0.0.1:9642\" or \"[::1]:9642\"")
    })
}

/// A proxy's base URL, perhaps with a user name.
pub(super) fn proxy_url(value: &DeValue<'_>) -> Parsed<Url> {
    const EXAMPLE: &str = "\"http://proxy.example.com:3128\"";
    let written = parsed_url(text(value)?, EXAMPLE)?;
    if written.password().is_some() {
        return Err(
            "contains a password; put the password into a file of its own and name that \
         file in proxy_password_file"
                .to_owned(),
        );
    }
    let mut url = written.clone();
    // This cannot fail for a URL with a host; a URL without one is refused by the next check.
    let _ = url.set_username("");
    bare_url(&url, url.as_str(), EXAMPLE)?;
    Ok(written)
}

fn parsed_url(text: &str, example: &str) -> Parsed<Url> {
    Url::parse(text).map_err(|error| format!("is not a URL ({error}); write for example {example}"))
}

/// A base URL: http or https, host, perhaps a port, nothing else. `example` is shown in the
/// messages.
pub(super) fn base_url(example: &str) -> impl Fn(&DeValue<'_>) -> Parsed<Url> {
    move |value| {
        let text = text(value)?;
        let url = parsed_url(text, example)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("contains a user name or a password; remove it from the URL".to_owned());
        }
        bare_url(&url, text, example)?;
        Ok(url)
    }
}

/// Refuses a URL that is not http or https, or has more than host and port. `text` is how it was
/// written.
fn bare_url(url: &Url, text: &str, example: &str) -> Parsed<()> {
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(format!(
            "{text:?} does not begin with http:// or https://; write for example {example}"
        ));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        let base = url.origin().ascii_serialization();
        return Err(format!(
            "{text:?} has a path or a query; write only the base URL: \"{base}\""
        ));
    }
    Ok(())
}

/// A cloud's project id: it becomes part of a URL's path.
pub(super) fn project_id(value: &DeValue<'_>) -> Parsed<String> {
    let text = text(value)?;
    if text.is_empty()
        || !text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    {
        return Err(format!(
            "{text:?} is not a project id; use letters, digits, - and _"
        ));
    }
    Ok(text.to_owned())
}

/// One server id, by the queue's own rule.
pub(super) fn server_id(text: &str) -> Parsed<ServerId> {
    if ServerId::is_valid(text) {
        return Ok(ServerId(ServerId::as_stored(text)));
    }
    Err(format!(
        "{text:?} is not a server id; use 1 to 64 letters, digits and -"
    ))
}

/// What a value is, with its article.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
