//! `/server/ID` and `/server/NAME`: what is known of a server, and its requests.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use maud::{Markup, html};

use super::filter::Filter;
use super::format::{dash, state, text, time, time_or_dash};
use super::layout::Layout;
use super::requests::{self, Place};
use super::table::{table, texts};
use super::{Answer, Trouble, html as answer, open};
use crate::model::UtcMillis;
use crate::store::client::{Access, Selection, ServerRecord};
use crate::web::Site;
use crate::web::access::Caller;
use crate::web::api::seen_by;
use crate::web::glance::now;

const LIMIT: u32 = 100;

pub(super) async fn show(
    State(site): State<Arc<Site>>,
    caller: Caller,
    Path(word): Path<String>,
    Query(place): Query<Place>,
) -> Answer {
    let now = now();
    let before = place.cursor()?;
    let mut door = open(&site, Access::Read).await?;
    let client = &mut door.client;
    let mut known = client.servers_called(&word).await?;
    known.retain(|server| caller.sees(&server.target));
    let mut ids: Vec<String> = known
        .iter()
        .map(|server| server.server_id.clone())
        .collect();
    if ids.is_empty() {
        ids.push(word.clone());
    }
    let which = Selection {
        servers: Some(ids),
        allowed: seen_by(&caller),
        ..Selection::default()
    };
    let page = client.page(&which, before.as_ref(), LIMIT).await?;
    door.close().await?;
    if known.is_empty() && page.requests.is_empty() {
        let sentence = format!(
            "no list has shown a server with the id or name '{}', and no request is about one",
            text(&word)
        );
        return Err(Trouble::not_found(sentence));
    }
    let title = format!("Server {}", text(&word));
    let layout = Layout {
        title: &title,
        trouble: None,
        caller: &caller,
        as_of: Some(now),
    };
    let content = html! {
        section id="server" data-live aria-label="What is known of it" { (inventory(&known, now)) }
        h2 { "Its requests" }
        section id="requests" data-live aria-label="Its requests" {
            (requests::list(&Filter::of_server(&word), &page, now))
        }
    };
    Ok(answer(layout.page(content)))
}

fn inventory(known: &[ServerRecord], now: UtcMillis) -> Markup {
    if known.is_empty() {
        return html! { p.nothing { "No list has shown it." } };
    }
    let columns = [
        texts("Name"),
        texts("Id"),
        texts("Target"),
        texts("Power"),
        texts("The cloud says"),
        texts("Seen"),
        texts("Gone since"),
    ];
    let rows = known.iter().map(|server| {
        vec![
            html! { (text(&server.name)) },
            html! { span.id { (text(&server.server_id)) } },
            html! { (text(&server.target)) },
            state(&server.power),
            html! { (text(&server.status)) },
            time(&server.seen_at, now),
            server
                .gone_at
                .as_deref()
                .map_or_else(dash, |at| time_or_dash(Some(at), now)),
        ]
    });
    table("As lists have shown it", &columns, rows.collect())
}
