//! The pages: what is seen at a glance, lists, one request, one server, one label, and what
//! operators do to all that a filter finds. Rendered here, readable without scripts; the script only
//! fetches them again. Decides nothing: what is done is done by the functions of the commands.
//!
//! One file for each page; `layout` is the frame, `format` the cells, `table` and `chart` what their
//! names say. All text comes from strangers: it is escaped by the template, and its control
//! characters are spelled out by `format`.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use maud::Markup;
use tokio::sync::SemaphorePermit;

use super::access::Refusal;
use super::{Site, say};
use crate::store::client::Access;
use crate::store::{QueueClient, StoreError};

mod act;
mod chart;
mod files;
mod filter;
mod format;
mod home;
mod label;
mod layout;
mod request;
mod requests;
mod search;
mod server;
mod table;

pub(super) use label::Labels;

const HTML: &str = "text/html; charset=utf-8";

pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new()
        .route("/", get(home::show))
        .route("/requests", get(requests::show))
        .route("/request/{id}", get(request::show))
        .route("/server/{word}", get(server::show))
        .route("/label/{label}", get(label::show))
        .route("/search", get(search::show))
        .route("/act", get(act::confirm).post(act::perform))
        .route("/static/{name}", get(files::file))
        .fallback(nothing_here)
}

/// A page, or why there is none.
type Answer = Result<Response, Trouble>;

/// Why a page cannot be shown, in a sentence.
#[derive(Debug)]
struct Trouble(Refusal);

impl Trouble {
    fn not_found(sentence: impl Into<String>) -> Self {
        Self(Refusal::new(StatusCode::NOT_FOUND, sentence))
    }

    fn bad_request(sentence: impl Into<String>) -> Self {
        Self(Refusal::new(StatusCode::BAD_REQUEST, sentence))
    }

    /// The queue cannot be read, or not in time.
    fn unreadable(why: &str) -> Self {
        Self::later(format!("the queue cannot be read: {why}"))
    }

    /// It is worth another try in a moment.
    fn later(sentence: String) -> Self {
        Self(Refusal {
            retry_after: Some(2),
            ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, sentence)
        })
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.sentence)
    }
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        let sentence = error.to_string();
        match error {
            StoreError::NoSuchRequest(_) => Self::not_found(sentence),
            StoreError::NotAllowed(_) => Self(Refusal::forbidden(sentence)),
            StoreError::Refused(_) => Self::bad_request(sentence),
            _ => Self::unreadable(&sentence),
        }
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        let Refusal {
            status,
            sentence,
            retry_after,
        } = self.0;
        let mut response = say(
            status,
            HTML,
            layout::trouble(status, &sentence).into_string(),
        );
        if let Some(seconds) = retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

fn html(page: Markup) -> Response {
    say(StatusCode::OK, HTML, page.into_string())
}

async fn nothing_here() -> Trouble {
    Trouble::not_found("there is no such page")
}

/// A connection for one page, for as long as it is its turn.
struct Door<'a> {
    client: QueueClient,
    _turn: SemaphorePermit<'a>,
}

impl Door<'_> {
    async fn close(self) -> Result<(), Trouble> {
        Ok(self.client.close().await?)
    }
}

/// Opens the queue when it is the page's turn.
async fn open(site: &Site, access: Access) -> Result<Door<'_>, Trouble> {
    let late = || Trouble::unreadable("too many others read it at present");
    let turn = site.turns.take(access).await.ok_or_else(late)?;
    Ok(Door {
        client: QueueClient::open(&site.database, access).await?,
        _turn: turn,
    })
}
