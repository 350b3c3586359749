//! The frame of every page: title, navigation, search, who is signed in.

use axum::http::StatusCode;
use maud::{DOCTYPE, Markup, html};

use super::files;
use super::format::text;
use crate::model::UtcMillis;
use crate::web::access::Caller;

/// One page.
pub(super) struct Layout<'a> {
    /// What it is about.
    pub(super) title: &'a str,
    /// What is wrong, for the tab.
    pub(super) trouble: Option<&'a str>,
    pub(super) caller: &'a Caller,
    /// When it was read; none for pages that tell what was done.
    pub(super) as_of: Option<UtcMillis>,
}

/// What the pages are called in the navigation.
const PLACES: [(&str, &str); 4] = [
    ("/", "Overview"),
    ("/requests", "Requests"),
    ("/requests?state=failed,unknown", "Failures"),
    ("/requests?state=queued", "Waiting"),
];

impl Layout<'_> {
    /// The whole page around its content.
    pub(super) fn page(&self, content: Markup) -> Markup {
        let trouble = self.trouble.map(|trouble| format!("({trouble}) "));
        let title = format!(
            "{}{} - poweryard",
            trouble.unwrap_or_default(),
            text(self.title)
        );
        html! {
            (DOCTYPE)
            html lang="en" {
                (head(&title))
                body {
                    a.skip href="#content" { "Skip to the content" }
                    header {
                        p.brand { a href="/" { "poweryard" } }
                        nav aria-label="Pages" {
                            ul {
                                @for (address, name) in PLACES { li { a href=(address) { (name) } } }
                            }
                        }
                        (search(""))
                        (self.person())
                    }
                    main id="content" tabindex="-1" {
                        h1 { (text(self.title)) }
                        @if let Some(as_of) = self.as_of { (as_of_line(as_of)) }
                        (content)
                    }
                    (footer())
                }
            }
        }
    }

    fn person(&self) -> Markup {
        html! {
            @if self.caller.is_known() {
                @if let Some(token) = self.caller.form_token() {
                    form.person method="post" action="/logout" {
                        input type="hidden" name="form_token" value=(token);
                        span { (text(self.caller.name())) " (" (self.caller.role()) ")" } " "
                        button { "Sign out" }
                    }
                }
            }
        }
    }
}

/// A page that says why there is no other.
pub(super) fn trouble(status: StatusCode, sentence: &str) -> Markup {
    let words = status.canonical_reason().unwrap_or("Error");
    html! {
        (DOCTYPE)
        html lang="en" {
            (head(&format!("{words} - poweryard")))
            body {
                header {
                    p.brand { a href="/" { "poweryard" } }
                    (search(""))
                }
                main id="content" {
                    h1 { (words) }
                    p role="alert" { (text(sentence)) "." }
                    p { a href="/" { "To the overview" } }
                }
                (footer())
            }
        }
    }
}

fn head(title: &str) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (title) }
            link rel="icon" type="image/svg+xml" href=(files::address("icon.svg"));
            link rel="stylesheet" href=(files::address("style.css"));
            script src=(files::address("live.js")) defer {}
        }
    }
}

/// The field that searches servers, requests and labels.
pub(super) fn search(given: &str) -> Markup {
    html! {
        form.search role="search" action="/search" {
            label for="search" { "Search" }
            input id="search" name="q" type="search" value=(given) placeholder="server, id or label" maxlength="300";
            button { "Go" }
        }
    }
}

/// The script replaces the second part.
fn as_of_line(as_of: UtcMillis) -> Markup {
    let stored = as_of.to_string();
    let clock = stored.get(11..19).unwrap_or_default();
    let day = stored.get(..10).unwrap_or_default();
    html! {
        p.as-of {
            span id="as-of" data-live { "As of " time datetime=(stored) { (day) " " (clock) } " UTC." }
            " " span id="live" role="status" { a href="" { "Read again" } }
        }
    }
}

fn footer() -> Markup {
    html! {
        footer {
            p {
                "poweryard " (env!("CARGO_PKG_VERSION")) ". All times are UTC. "
                a href="/metrics" { "metrics" } " " a href="/healthz" { "healthz" } " " a href="/readyz" { "readyz" }
                " " a href="/api/v1/openapi.json" { "API" }
            }
        }
    }
}
