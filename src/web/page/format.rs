//! Cells: times, spans, numbers, states, and links to other pages. Pure.

use maud::{Markup, html};

use crate::model::{UtcMillis, visible};
use crate::store::client::grouped;

/// A text of anybody's; the template escapes it.
pub(super) fn text(text: &str) -> String {
    visible(text)
}

/// A text, or a dash for none.
pub(super) fn text_or_dash(given: Option<&str>) -> Markup {
    match given.filter(|given| !given.is_empty()) {
        Some(given) => html! { (text(given)) },
        None => dash(),
    }
}

/// Nothing to show.
pub(super) fn dash() -> Markup {
    html! { span.none aria-label="none" { "–" } }
}

/// A stored time to the second, and how far it is from `now`.
pub(super) fn time(at: &str, now: UtcMillis) -> Markup {
    let Ok(parsed) = at.parse::<UtcMillis>() else {
        return html! { (text(at)) };
    };
    html! {
        time datetime=(text(at)) { (second(at)) }
        " " span.age { "(" (distance(parsed, now)) ")" }
    }
}

/// As `time`, or a dash for none.
pub(super) fn time_or_dash(at: Option<&str>, now: UtcMillis) -> Markup {
    at.map_or_else(dash, |at| time(at, now))
}

/// Such as `2026-01-31 22:00:05`.
fn second(at: &str) -> String {
    match (at.get(..10), at.get(11..19)) {
        (Some(day), Some(clock)) => text(&format!("{day} {clock}")),
        _ => text(at),
    }
}

/// Such as `5 min ago` or `in 2 h`.
fn distance(at: UtcMillis, now: UtcMillis) -> String {
    if at > now {
        format!("in {}", span(at.since(now).as_millis()))
    } else {
        format!("{} ago", span(now.since(at).as_millis()))
    }
}

/// Such as `350 ms`, `12 s`, `5 min`, `2 h 10 min` or `3 d`.
pub(super) fn span(ms: u128) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 if (seconds / 60).is_multiple_of(60) => format!("{} h", seconds / 3600),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d", seconds / 86400),
    }
}

/// As `span`, of milliseconds that may have any sign.
pub(super) fn span_of(ms: i64) -> String {
    span(u128::try_from(ms).unwrap_or_default())
}

/// Such as `4,940`.
pub(super) fn number(number: i64) -> String {
    grouped(number)
}

/// A number of requests that leads to them, or a dash for none.
pub(super) fn requests(count: i64, address: &str) -> Markup {
    html! {
        @if count == 0 { (dash()) } @else { a href=(address) { (number(count)) } }
    }
}

/// A state as a word in its colour.
pub(super) fn state(word: &str) -> Markup {
    let known = [
        "queued",
        "running",
        "succeeded",
        "failed",
        "cancelled",
        "expired",
        "rejected",
        "unknown",
        "submitting",
        "tracking",
        "looking",
        "done",
        "open",
        "held",
    ];
    let class = if known.contains(&word) { word } else { "other" };
    html! { span class={ "state " (class) } { (text(word)) } }
}

/// A server by its name if it has one, with its id.
pub(super) fn server(id: &str, name: Option<&str>) -> Markup {
    let address = format!("/server/{}", segment(id));
    html! {
        @match name.filter(|name| !name.is_empty()) {
            Some(name) => { a href=(address) { (text(name)) } " " span.id { (text(id)) } }
            None => { a.id href=(address) { (text(id)) } }
        }
    }
}

/// A request by its id.
pub(super) fn request(id: i64) -> Markup {
    html! { a href={ "/request/" (id) } { (id) } }
}

/// A label with its page.
pub(super) fn label(label: &str) -> Markup {
    html! {
        @if label.is_empty() { (shown_label(label)) }
        @else { a href=(label_address(label)) { (shown_label(label)) } }
    }
}

/// The label, or a word for an empty one.
pub(super) fn shown_label(label: &str) -> String {
    if label.is_empty() {
        return "(empty label)".to_owned();
    }
    text(label)
}

/// Where a label's page is. Browsers take some labels for steps in a path, and of those there is only
/// the list.
pub(super) fn label_address(label: &str) -> String {
    if [".", ".."].contains(&label) {
        return format!("/requests?label={}", parameter(label));
    }
    format!("/label/{}", segment(label))
}

/// A text as one segment of a path.
pub(super) fn segment(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// A text as the value of a parameter.
pub(super) fn parameter(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// A command to copy.
pub(super) fn command(command: &str) -> Markup {
    html! { code.command { (text(command)) } }
}

/// One of our sentences, in which commands stand between backticks.
pub(super) fn sentence(sentence: &str) -> Markup {
    html! {
        @for (number, part) in sentence.split('`').enumerate() {
            @if number % 2 == 1 { (command(part)) } @else { (text(part)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_said_in_the_largest_units() {
        let said = [350, 12_000, 300_000, 7_800_000, 7_200_000, 260_000_000].map(span);
        assert_eq!(
            said,
            ["350 ms", "12 s", "5 min", "2 h 10 min", "2 h", "3 d"]
        );
    }

    #[test]
    fn what_strangers_wrote_stays_text() {
        let evil = "<script>alert('x')</script>\u{202e}\n\u{1b}[31m";
        for shown in [
            text_or_dash(Some(evil)).into_string(),
            server(evil, Some(evil)).into_string(),
            label(evil).into_string(),
            state(evil).into_string(),
            time(evil, UtcMillis(0)).into_string(),
            sentence(evil).into_string(),
        ] {
            assert!(
                !shown.contains("<script") && !shown.contains('\u{202e}'),
                "{shown}"
            );
            assert!(
                !shown.contains('\u{1b}') && !shown.contains('\n'),
                "{shown}"
            );
        }
        assert_eq!(segment("../a b?c#d/é"), "..%2Fa%20b%3Fc%23d%2F%C3%A9");
    }

    #[test]
    fn labels_that_are_steps_of_a_path_have_a_list_alone() {
        assert_eq!(label_address(".."), "/requests?label=..");
        assert_eq!(label_address("patch day"), "/label/patch%20day");
    }
}
