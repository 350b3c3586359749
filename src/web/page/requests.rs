//! `/requests`: what a filter finds, page by page, and what may be done to all of it.

use std::sync::Arc;

use axum::extract::{Query, State};
use maud::{Markup, html};
use serde::Deserialize;

use super::act::{self, Deed};
use super::filter::Filter;
use super::format::{
    command, dash, label, request, server, state, text, text_or_dash, time, time_or_dash,
};
use super::layout::Layout;
use super::table::{Column, numbers, table, texts};
use super::{Answer, Trouble, html as answer, open};
use crate::model::{PowerAction, RequestState, Role, UtcMillis};
use crate::store::client::{Access, Cursor, Page, RequestRecord};
use crate::web::Site;
use crate::web::access::Caller;
use crate::web::glance::now;

/// Requests on a page.
const LIMIT: u32 = 100;

/// Where a page begins.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Place {
    before: String,
}

impl Place {
    pub(super) fn cursor(&self) -> Result<Option<Cursor>, Trouble> {
        if self.before.is_empty() {
            return Ok(None);
        }
        let wrong = |_| Trouble::bad_request("before is not one that a page has given");
        self.before.parse().map(Some).map_err(wrong)
    }
}

pub(super) async fn show(
    State(site): State<Arc<Site>>,
    caller: Caller,
    Query(filter): Query<Filter>,
    Query(place): Query<Place>,
) -> Answer {
    let now = now();
    let before = place.cursor()?;
    let mut door = open(&site, Access::Read).await?;
    let client = &mut door.client;
    let which = filter.selection(client, &caller, now).await?;
    let page = client.page(&which, before.as_ref(), LIMIT).await?;
    door.close().await?;
    let title = if filter.is_empty() {
        "Requests".to_owned()
    } else {
        format!("Requests: {}", filter.words())
    };
    let layout = Layout {
        title: &title,
        trouble: None,
        caller: &caller,
        as_of: Some(now),
    };
    let content = html! {
        (form(&filter))
        (deeds(&filter, &caller))
        section id="requests" data-live aria-label="Requests" { (list(&filter, &page, now)) }
    };
    Ok(answer(layout.page(content)))
}

/// What every list of requests shows.
pub(super) const COLUMNS: [Column; 10] = [
    numbers("Request"),
    texts("Server"),
    texts("Action"),
    texts("State"),
    texts("Error"),
    texts("Target"),
    texts("Label"),
    texts("Asked for by"),
    texts("Inserted"),
    texts("Ended"),
];

/// The rows of such a list.
pub(super) fn rows(requests: &[RequestRecord], now: UtcMillis) -> Vec<Vec<Markup>> {
    requests.iter().map(|one| row(one, now)).collect()
}

fn row(one: &RequestRecord, now: UtcMillis) -> Vec<Markup> {
    vec![
        request(one.id),
        server(&one.server_id, one.name.as_deref()),
        html! { (text(&one.action)) },
        state(&one.state),
        error(one),
        html! { (text(&one.target)) },
        one.label.as_deref().map_or_else(dash, label),
        text_or_dash(one.requested_by.as_deref()),
        time(&one.created_at, now),
        time_or_dash(one.finished_at.as_deref(), now),
    ]
}

fn error(one: &RequestRecord) -> Markup {
    match (&one.error_code, &one.error_message) {
        (None, None) => dash(),
        (code, message) => html! {
            @if let Some(code) = code { strong { (text(code)) } " " }
            @if let Some(message) = message { (text(message)) }
        },
    }
}

/// A list, and the way to the next page.
pub(super) fn list(filter: &Filter, page: &Page, now: UtcMillis) -> Markup {
    let parameters = filter.parameters();
    html! {
        @if page.requests.is_empty() && page.next.is_none() {
            p.nothing { "No request matches." }
        } @else if page.requests.is_empty() {
            p.nothing { "No request matches among the newest; look further back." }
        } @else {
            (table("The newest first", &COLUMNS, rows(&page.requests, now)))
        }
        @if let Some(next) = &page.next {
            p.pages { a rel="next" href={ "/requests?" (parameters) "&before=" (next) } { "Further back" } }
        }
    }
}

fn form(filter: &Filter) -> Markup {
    html! {
        form.filter action="/requests" aria-label="Filter" {
            (choice("state", "State", &filter.state, RequestState::ALL.iter().map(|state| state.as_str())))
            (choice("action", "Action", &filter.action, PowerAction::ALL.iter().map(|action| action.as_str())))
            (field("target", "Target", &filter.target, ""))
            (field("label", "Label", &filter.label, ""))
            (field("server", "Server", &filter.server, "id, name or gpu-*"))
            (field("error", "Error", &filter.error, "BMS.0040"))
            (field("since", "Since", &filter.since, "24h"))
            (field("until", "Until", &filter.until, ""))
            @if !filter.id.is_empty() { input type="hidden" name="id" value=(filter.id); }
            p { button { "Filter" } " " a href="/requests" { "Clear" } }
        }
    }
}

fn field(name: &str, title: &str, value: &str, example: &str) -> Markup {
    html! {
        p {
            label for={ "filter-" (name) } { (title) }
            input id={ "filter-" (name) } name=(name) value=(value) placeholder=(example) autocomplete="off";
        }
    }
}

/// A filter may have several states, separated by commas; those are one choice more.
fn choice<'a>(
    name: &str,
    title: &str,
    value: &str,
    words: impl Iterator<Item = &'a str> + Clone,
) -> Markup {
    let is_word = words.clone().any(|word| word == value);
    html! {
        p {
            label for={ "filter-" (name) } { (title) }
            select id={ "filter-" (name) } name=(name) {
                option value="" selected[value.is_empty()] { "any" }
                @if !is_word && !value.is_empty() { option value=(value) selected { (text(value)) } }
                @for word in words { option value=(word) selected[word == value] { (word) } }
            }
        }
    }
}

/// What an operator may do to all that matches; the commands for everybody else.
fn deeds(filter: &Filter, caller: &Caller) -> Markup {
    if filter.is_empty() {
        return html! {};
    }
    html! {
        @if caller.may(Role::Operator) {
            (act::bar(&[Deed::Cancel, Deed::Retry, Deed::Approve], filter, "everything that matches"))
        } @else {
            details.commands {
                summary { "Commands for everything that matches" }
                p { (command(&format!("poweryard list {}", filter.options()))) }
                p { (command(&format!("poweryard cancel {}", filter.options()))) }
                p { (command(&format!("poweryard retry {}", filter.options()))) }
            }
        }
    }
}
