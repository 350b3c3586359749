//! `/search`: what a word may mean: a request, a server by id or name, a label.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use super::format::{label, label_address, segment, server, shown_label, state, text};
use super::layout::Layout;
use super::table::{table, texts};
use super::{Answer, Trouble, html as answer, open};
use crate::store::client::{Access, RequestRecord, ServerRecord};
use crate::store::{QueueClient, StoreError};
use crate::web::Site;
use crate::web::access::Caller;

/// Hits of each kind.
const LIMIT: u32 = 50;
/// Longer words are no names.
const WORD_MAX: usize = 300;
/// Each further one may multiply the time that a comparison takes.
const WILDCARDS_MAX: usize = 4;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Wanted {
    q: String,
}

/// What was found, as far as the caller may see it.
struct Hits {
    request: Option<RequestRecord>,
    /// With exactly this id or name.
    exact: Vec<ServerRecord>,
    servers: Vec<ServerRecord>,
    labels: Vec<String>,
}

pub(super) async fn show(
    State(site): State<Arc<Site>>,
    caller: Caller,
    Query(wanted): Query<Wanted>,
) -> Answer {
    let word: String = wanted.q.trim().chars().take(WORD_MAX).collect();
    if word.matches('*').count() > WILDCARDS_MAX {
        return Err(Trouble::bad_request("a search may have four `*` at most"));
    }
    let hits = if word.is_empty() {
        None
    } else {
        let mut door = open(&site, Access::Read).await?;
        let client = &mut door.client;
        let hits = Hits::find(client, &caller, &word).await?;
        door.close().await?;
        Some(hits)
    };
    if let Some(only) = hits.as_ref().and_then(|hits| hits.only(&word)) {
        return Ok(redirect(&only));
    }
    let title = if word.is_empty() {
        "Search".to_owned()
    } else {
        format!("Search: {}", text(&word))
    };
    let layout = Layout {
        title: &title,
        trouble: None,
        caller: &caller,
        as_of: None,
    };
    let content = html! {
        @match &hits {
            None => p { "Type a server's id or name, a request's id, or a label; names may have " code { "*" } "." },
            Some(hits) => (hits.content()),
        }
    };
    Ok(answer(layout.page(content)))
}

fn redirect(address: &str) -> Response {
    Redirect::to(address).into_response()
}

impl Hits {
    async fn find(
        client: &mut QueueClient,
        caller: &Caller,
        word: &str,
    ) -> Result<Self, StoreError> {
        let id: Option<i64> = word.trim_start_matches('#').parse().ok();
        let request = match id {
            Some(id) => client.request(id).await.ok(),
            None => None,
        };
        let mut exact = client.servers_called(word).await?;
        exact.retain(|server| caller.sees(&server.target));
        let mut servers = client.servers_like(word, LIMIT).await?;
        servers.retain(|server| caller.sees(&server.target));
        let mut labels = Vec::new();
        for label in client.labels_like(word, LIMIT).await? {
            let targets = client.targets_of_label(&label).await?;
            if targets.iter().any(|target| caller.sees(target)) {
                labels.push(label);
            }
        }
        Ok(Self {
            request: request.filter(|request| caller.sees(&request.target)),
            exact,
            servers,
            labels,
        })
    }

    /// The address of the only thing that the word means.
    fn only(&self, word: &str) -> Option<String> {
        let is_label = self.labels.iter().any(|label| label == word);
        match (&self.request, self.exact.as_slice(), is_label) {
            (Some(request), [], false) => Some(format!("/request/{}", request.id)),
            (None, [_], false) => Some(format!("/server/{}", segment(word))),
            (None, [], true) => Some(label_address(word)),
            (None, [], false) => self.only_similar(),
            _ => None,
        }
    }

    fn only_similar(&self) -> Option<String> {
        match (self.servers.as_slice(), self.labels.as_slice()) {
            ([server], []) => Some(format!("/server/{}", segment(&server.server_id))),
            ([], [label]) => Some(label_address(label)),
            _ => None,
        }
    }

    fn content(&self) -> Markup {
        let is_empty = self.request.is_none() && self.servers.is_empty() && self.labels.is_empty();
        html! {
            @if is_empty {
                p.nothing { "Nothing was found: no server's id or name contains it, no label begins with it, and it is no request's id." }
            }
            @if let Some(request) = &self.request {
                h2 { "Request" }
                p { a href={ "/request/" (request.id) } { "Request " (request.id) } " " (state(&request.state)) }
            }
            @if !self.servers.is_empty() { h2 { "Servers" } (self.server_table()) }
            @if !self.labels.is_empty() {
                h2 { "Labels" }
                ul { @for found in &self.labels { li { @if found.is_empty() { (shown_label(found)) } @else { (label(found)) } } } }
            }
        }
    }

    fn server_table(&self) -> Markup {
        let columns = [
            texts("Server"),
            texts("Target"),
            texts("Power"),
            texts("Listed"),
        ];
        let rows = self.servers.iter().map(|found| {
            vec![
                server(&found.server_id, Some(&found.name)),
                html! { (text(&found.target)) },
                state(&found.power),
                html! { @if found.gone_at.is_some() { "gone" } @else { "yes" } },
            ]
        });
        table("By name", &columns, rows.collect())
    }
}
