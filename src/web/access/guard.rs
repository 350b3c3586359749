//! What every request has to pass before any page or API sees it: by which name it came, from which
//! page, and with which token. What is not named here as open needs a token.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;

use super::caller::{Caller, Refusal};
use super::entrance::Entrance;
use super::origin::{host_name, is_own_name, is_same_origin};
use super::tokens::{digest, is_same};
use super::{GuestBook, Peer};
use crate::web::{Site, api};

/// Of these everybody may know.
const OPEN_PATHS: [&str; 5] = [
    "/healthz",
    "/readyz",
    "/login",
    "/login/style.css",
    "/api/v1/openapi.json",
];
const API: &str = "/api/";
/// Of a request's body.
const BODY_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Of what nobody wants.
const DRAINED_BYTES_MAX: usize = 32 * 1024 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// Of a form that a page sends.
const FORM_BYTES_MAX: usize = 1024 * 1024;
/// In a header or as a field of a form.
const FORM_TOKEN: &str = "form_token";
const FORM_TOKEN_HEADER: &str = "x-form-token";
/// Nothing is loaded from elsewhere, no script or style is in a page's text, no other page may show
/// one of ours in a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Checks a request, notes its [`Caller`] in it, and gives every answer the headers that keep
/// browsers careful.
pub(in crate::web) async fn guard(
    State(site): State<Arc<Site>>,
    request: Request,
    next: Next,
) -> Response {
    let is_api = request.uri().path().starts_with(API);
    let (mut parts, body) = request.into_parts();
    let mut response = match admit(&site, &mut parts).await {
        Ok(None) => next.run(Request::from_parts(parts, body)).await,
        Ok(Some(form_token)) => match check_form(parts, body, &form_token).await {
            Ok(request) => next.run(request).await,
            Err(refusal) => Refused::from(refusal).answer(is_api),
        },
        Err(refused) => {
            let _ = tokio::time::timeout(DRAIN_TIME, drain(body)).await;
            refused.answer(is_api)
        }
    };
    add_headers(response.headers_mut());
    response
}

/// Takes what is still being sent, within limits: a client would otherwise see a broken connection
/// in place of the answer.
async fn drain(body: Body) {
    let mut frames = body.into_data_stream();
    let mut length = 0;
    while let Some(Ok(data)) = frames.next().await {
        length += data.len();
        if length > DRAINED_BYTES_MAX {
            return;
        }
    }
}

/// Why a request goes no further.
struct Refused {
    refusal: Refusal,
    /// A token would help.
    way_in: bool,
    /// The page where a person can sign in, if a person asks.
    login: Option<&'static str>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            way_in: false,
            login: None,
        }
    }
}

impl Refused {
    fn answer(self, is_api: bool) -> Response {
        if is_api {
            return api::problem(self.refusal, self.way_in);
        }
        if let Some(login) = self.login {
            return super::login::redirect(login);
        }
        let mut response = self.refusal.into_response();
        if self.way_in {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, CHALLENGE);
        }
        response
    }
}

/// How a token is to be shown.
pub(in crate::web) const CHALLENGE: HeaderValue =
    HeaderValue::from_static("Bearer realm=\"poweryard\"");

fn add_headers(headers: &mut HeaderMap) {
    let careful = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_FRAME_OPTIONS, "DENY"),
        // Other sites learn nothing. With `no-referrer` browsers would not say of a form where it
        // came from, and the guard could not check it.
        (header::REFERRER_POLICY, "same-origin"),
    ];
    for (name, value) in careful {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
}

/// Notes who asks. Returns what a form has to carry, if the body has to be one.
async fn admit(site: &Site, parts: &mut Parts) -> Result<Option<String>, Refused> {
    let closed = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the server is ending");
    let entrance = site.entrance().ok_or_else(closed)?;
    let peer = parts.extensions.get::<Peer>().copied();
    let peer = peer.ok_or_else(|| Refusal::new(StatusCode::BAD_REQUEST, "nobody asks"))?;
    check_name(&entrance, peer, parts)?;
    check_origin(parts)?;
    check_size(parts)?;
    parts.extensions.insert(Arc::clone(&entrance));
    if OPEN_PATHS.contains(&parts.uri.path()) {
        return Ok(None);
    }
    let address = address_of(&entrance, peer, &parts.headers);
    let caller = caller_of(&site.access, &entrance, address, parts).await?;
    let form_token = caller.form_token().map(str::to_owned);
    parts.extensions.insert(caller);
    Ok(form_token.filter(|_| !parts.method.is_safe()))
}

/// Refuses a name that is not ours: a foreign page may have made the browser ask.
fn check_name(entrance: &Entrance, peer: Peer, parts: &Parts) -> Result<(), Refusal> {
    let mut given = parts.headers.get_all(header::HOST).iter();
    let host = match (given.next(), given.next()) {
        (Some(host), None) => host,
        // Old programs that check health send none; browsers always do.
        (None, _) if parts.uri.authority().is_none() => return Ok(()),
        _ => {
            return Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                "the request must have one header Host",
            ));
        }
    };
    let name = host.to_str().ok().and_then(host_name);
    let addresses = [peer.here, entrance.address.ip()];
    match name {
        Some(name) if is_own_name(&name, &entrance.hosts, &addresses) => Ok(()),
        _ => Err(Refusal::new(
            StatusCode::MISDIRECTED_REQUEST,
            "this server is not called by this name; add it to hosts in [listen], or use the address",
        )),
    }
}

/// Refuses requests that pages of other origins make.
fn check_origin(parts: &Parts) -> Result<(), Refusal> {
    let Some(origin) = parts.headers.get(header::ORIGIN) else {
        return Ok(());
    };
    let host = parts.headers.get(header::HOST);
    let (origin, host) = (
        origin.to_str().ok(),
        host.and_then(|host| host.to_str().ok()),
    );
    match origin.zip(host) {
        Some((origin, host)) if is_same_origin(origin, host) => Ok(()),
        _ => Err(Refusal::forbidden(
            "the request comes from a page of another origin; a proxy in front must pass the header Host on",
        )),
    }
}

fn check_size(parts: &Parts) -> Result<(), Refusal> {
    let length = parts
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > BODY_BYTES_MAX) {
        return Err(too_large());
    }
    Ok(())
}

/// 413.
pub(in crate::web) fn too_large() -> Refusal {
    Refusal::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "the body has more than 8 MiB; send the requests in several parts",
    )
}

/// Who is asking: behind a proxy, who asked the proxy.
pub(super) fn address_of(entrance: &Entrance, peer: Peer, headers: &HeaderMap) -> IpAddr {
    if !entrance.behind_proxy {
        return peer.address;
    }
    let forwarded = headers.get_all("x-forwarded-for").iter().next_back();
    forwarded
        .and_then(|value| value.to_str().ok()?.rsplit(',').next()?.trim().parse().ok())
        .unwrap_or(peer.address)
}

async fn caller_of(
    access: &GuestBook,
    entrance: &Entrance,
    address: IpAddr,
    parts: &Parts,
) -> Result<Caller, Refused> {
    if entrance.tokens.is_empty() {
        return Ok(Caller::anybody());
    }
    if let Some(value) = parts.headers.get(header::AUTHORIZATION) {
        let token = bearer(value);
        return by_token(access, entrance, address, token.unwrap_or_default())
            .await
            .map_err(|refusal| Refused {
                way_in: refusal.status == StatusCode::UNAUTHORIZED,
                ..refusal.into()
            });
    }
    let name = cookie(&parts.headers, super::login::COOKIE);
    let session = name.and_then(|name| access.sessions.find(name, Instant::now()));
    if let Some(session) = session
        && let Some(grant) = entrance.tokens.find(&session.token)
    {
        return Ok(Caller::of_session(grant, session.form_token));
    }
    let refusal = Refusal::new(
        StatusCode::UNAUTHORIZED,
        "this needs a token: in the header `Authorization: Bearer TOKEN`, or by signing in at /login",
    );
    Err(Refused {
        refusal,
        way_in: true,
        login: is_person(parts).then_some("/login"),
    })
}

/// The caller with this token; a wrong one is answered late.
async fn by_token(
    access: &GuestBook,
    entrance: &Entrance,
    address: IpAddr,
    token: &str,
) -> Result<Caller, Refusal> {
    let digest = prove(access, entrance, address, token).await?;
    let grant = entrance.tokens.find(&digest);
    grant
        .map(Caller::of_token)
        .ok_or_else(|| Refusal::new(StatusCode::UNAUTHORIZED, "the token is wrong"))
}

/// The digest of a right token.
///
/// # Errors
/// 401 after a while, 429 at once.
pub(super) async fn prove(
    access: &GuestBook,
    entrance: &Entrance,
    address: IpAddr,
    token: &str,
) -> Result<super::tokens::TokenDigest, Refusal> {
    if let Err(wait) = access.slowdown.admit(address) {
        return Err(Refusal {
            retry_after: Some(wait.as_secs().max(1)),
            ..Refusal::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too many wrong tokens came from this address; try again later",
            )
        });
    }
    let digest = digest(token);
    if entrance.tokens.find(&digest).is_some() {
        return Ok(digest);
    }
    access.slowdown.punish(address).await;
    Err(Refusal::new(StatusCode::UNAUTHORIZED, "the token is wrong"))
}

fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

/// The cookie with this name.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let cookies = headers.get_all(header::COOKIE).iter();
    cookies
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(found, _)| *found == name)
        .map(|(_, value)| value)
}

/// A browser that a person has asked for a page.
fn is_person(parts: &Parts) -> bool {
    let accepts = parts
        .headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .unwrap_or_default();
    parts.method == Method::GET && accepts.contains("text/html")
}

/// A request that changes something and comes with a session's cookie: the browser says from which
/// page, and the form carries what only our pages know.
async fn check_form(parts: Parts, body: Body, expected: &str) -> Result<Request, Refusal> {
    if !parts.headers.contains_key(header::ORIGIN) {
        return Err(Refusal::forbidden(
            "the browser does not say from which page this comes",
        ));
    }
    if let Some(given) = parts.headers.get(FORM_TOKEN_HEADER) {
        let given = given.to_str().unwrap_or_default();
        require_same(given, expected)?;
        return Ok(Request::from_parts(parts, body));
    }
    let bytes = axum::body::to_bytes(body, FORM_BYTES_MAX)
        .await
        .map_err(|_| too_large())?;
    require_same(&field(&bytes, FORM_TOKEN).unwrap_or_default(), expected)?;
    Ok(Request::from_parts(parts, Body::from(bytes)))
}

fn require_same(given: &str, expected: &str) -> Result<(), Refusal> {
    if is_same(given, expected) {
        return Ok(());
    }
    Err(Refusal::forbidden(
        "the form is not one that this session was given; load the page again",
    ))
}

/// A field of a form.
pub(super) fn field(form: &Bytes, name: &str) -> Option<String> {
    form_urlencoded::parse(form)
        .find(|(found, _)| found == name)
        .map(|(_, value)| value.into_owned())
}
