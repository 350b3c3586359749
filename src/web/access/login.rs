//! `/login` and `/logout`: a person shows a token once, and the browser a cookie from then on.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Peer;
use super::caller::Refusal;
use super::entrance::Entrance;
use super::guard::{address_of, cookie, field, prove};
use super::sessions::SESSION_TIME;
use crate::web::{Site, say};

/// The session's name.
pub(super) const COOKIE: &str = "poweryard_session";
/// Where a person is sent after signing in.
const HOME: &str = "/";
const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const STYLE: &str = include_str!("login.css");

/// The form.
pub(in crate::web) async fn show_form(Extension(entrance): Extension<Arc<Entrance>>) -> Response {
    if entrance.tokens.is_empty() {
        return redirect(HOME);
    }
    say(StatusCode::OK, HTML, page(None))
}

/// Its style.
pub(in crate::web) async fn style() -> Response {
    say(StatusCode::OK, CSS, STYLE.to_owned())
}

/// Begins a session for who shows a token.
pub(in crate::web) async fn sign_in(
    State(site): State<Arc<Site>>,
    Extension(peer): Extension<Peer>,
    Extension(entrance): Extension<Arc<Entrance>>,
    headers: HeaderMap,
    form: Bytes,
) -> Response {
    if entrance.tokens.is_empty() {
        return redirect(HOME);
    }
    let token = field(&form, "token").unwrap_or_default();
    let address = address_of(&entrance, peer, &headers);
    let digest = match prove(&site.access, &entrance, address, token.trim()).await {
        Ok(digest) => digest,
        Err(refusal) => return refuse(refusal),
    };
    let Some(name) = site.access.sessions.begin(digest, Instant::now()) else {
        let why = "the system has no random numbers yet; try again later";
        return refuse(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why));
    };
    let is_encrypted = peer.is_encrypted || entrance.behind_proxy;
    with_cookie(redirect(HOME), &name, SESSION_TIME.as_secs(), is_encrypted)
}

/// Ends the session.
pub(in crate::web) async fn sign_out(
    State(site): State<Arc<Site>>,
    Extension(peer): Extension<Peer>,
    Extension(entrance): Extension<Arc<Entrance>>,
    headers: HeaderMap,
) -> Response {
    if let Some(name) = cookie(&headers, COOKIE) {
        site.access.sessions.end(name);
    }
    let is_encrypted = peer.is_encrypted || entrance.behind_proxy;
    with_cookie(redirect("/login"), "", 0, is_encrypted)
}

fn refuse(refusal: Refusal) -> Response {
    let page = say(refusal.status, HTML, page(Some(&refusal.sentence)));
    match refusal.retry_after {
        Some(seconds) => ([(header::RETRY_AFTER, seconds)], page).into_response(),
        None => page,
    }
}

/// To another page, which is asked for with GET.
pub(super) fn redirect(path: &'static str) -> Response {
    (StatusCode::SEE_OTHER, [(header::LOCATION, path)]).into_response()
}

fn with_cookie(mut response: Response, name: &str, seconds: u64, is_encrypted: bool) -> Response {
    let secure = if is_encrypted { "; Secure" } else { "" };
    let cookie =
        format!("{COOKIE}={name}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}");
    // Hex digits and fixed words.
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

/// `why` is one of our own sentences.
fn page(why: Option<&str>) -> String {
    let why = why
        .map(|why| format!("<p role=\"alert\">{why}</p>\n"))
        .unwrap_or_default();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>Sign in - poweryard</title>\
         <link rel=\"icon\" href=\"data:,\"><link rel=\"stylesheet\" href=\"/login/style.css\"></head>\n\
         <body><main><h1>poweryard</h1>\n{why}\
         <form method=\"post\" action=\"/login\">\n\
         <p><label for=\"token\">Token</label>\n\
         <input id=\"token\" name=\"token\" type=\"password\" autocomplete=\"current-password\" required autofocus></p>\n\
         <p><button>Sign in</button></p>\n</form></main></body></html>\n"
    )
}
