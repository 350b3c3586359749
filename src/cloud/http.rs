//! The HTTP client of one target: what may be sent, how long it may take, and what it means if no
//! answer comes.
//!
//! Owns timeouts, TLS, connections and the cap on bodies. Follows no redirect, repeats nothing,
//! reads no environment. Knows nothing of signing or of what a body says.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use reqwest::{Certificate, Client, ClientBuilder, Proxy, Request, Response, Url};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::ClientError;
use super::answer::{Answer, CallKind};
use super::auth::aksk::percent_decode;
use super::text::{MESSAGE_CHARS_MAX, cap};
use crate::model::{CallError, Fault};
use crate::settings::{AuthSettings, TargetSettings};

/// Bodies are read up to this many bytes. A page of 1000 servers takes about 3 MB.
pub const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Answers to reads that are in memory at once, of all targets: a page of 1000 servers takes as much
/// as ten jobs, and a hundred targets may ask for one at the same time.
static READ_ANSWERS: Semaphore = Semaphore::const_new(24);
/// Those of one target: others still have room while the answers of a few arrive slowly.
const READ_ANSWERS_EACH: usize = 2;

/// The room of an answer in memory, given back when it is dropped. Only what has begun to arrive has
/// one, so that a target that does not answer takes no room.
#[derive(Debug)]
pub struct Room {
    _of_target: OwnedSemaphorePermit,
    _of_all: SemaphorePermit<'static>,
}

/// Carries a call to its answer: over the network, or to a simulated cloud in the same process.
pub trait Wire: Send + Sync {
    /// Sends a read; any connection will do. See `send_fresh` for what the errors mean.
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Answer, CallError>>;

    /// Sends a request over a connection of its own, and reads the whole answer, whatever its
    /// status.
    ///
    /// # Errors
    /// `Unreachable`: no connection, so nothing left. Anything later (time ran out, reset, an
    /// answer that breaks off or is larger than `BODY_BYTES_MAX`) is `Lost` after a submit and
    /// `Unavailable` after a read.
    fn send_fresh(
        &self,
        request: Request,
        kind: CallKind,
    ) -> BoxFuture<'_, Result<Answer, CallError>>;
}

impl Wire for Http {
    fn send(&self, request: Request) -> BoxFuture<'_, Result<Answer, CallError>> {
        Box::pin(self.exchange(&self.reads, request, CallKind::Read))
    }

    fn send_fresh(
        &self,
        request: Request,
        kind: CallKind,
    ) -> BoxFuture<'_, Result<Answer, CallError>> {
        Box::pin(self.exchange(&self.submits, request, kind))
    }
}

/// Two clients for one target: one that keeps connections for reading, and one that opens a fresh
/// one for each call.
#[derive(Debug)]
pub struct Http {
    reads: Client,
    submits: Client,
    read_answers: Arc<Semaphore>,
    connect_timeout: Duration,
    request_timeout: Duration,
    proxy: Option<String>,
    /// True if the endpoint is an `http://` address.
    is_plain: bool,
}

impl Http {
    /// Builds both clients. `proxy_password` is for the user that `target.proxy` names. Reads
    /// `ca_file`, or the system's authorities if TLS is to be spoken without one.
    ///
    /// # Errors
    /// An `http://` address without `allow_http`, an unreadable `ca_file`, a proxy or TLS set-up that cannot work.
    pub fn new(
        target: &TargetSettings,
        proxy_password: Option<&SecretString>,
    ) -> Result<Self, ClientError> {
        check_scheme(&target.endpoint, target.allow_http)?;
        if let AuthSettings::Token { iam_endpoint, .. } = &target.auth {
            check_scheme(iam_endpoint, target.allow_http)?;
        }
        // Another part of this process may have installed a provider already; both work.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self {
            reads: builder(target, proxy_password)?
                .build()
                .map_err(ClientError::set_up)?,
            // A stale keep-alive socket would turn a whole batch into "may have been carried out".
            submits: builder(target, proxy_password)?
                .pool_max_idle_per_host(0)
                .build()
                .map_err(ClientError::set_up)?,
            read_answers: Arc::new(Semaphore::new(READ_ANSWERS_EACH)),
            connect_timeout: target.connect_timeout,
            request_timeout: target.request_timeout,
            proxy: target.proxy.as_ref().map(address),
            is_plain: target.endpoint.scheme() == "http",
        })
    }

    async fn exchange(
        &self,
        client: &Client,
        request: Request,
        kind: CallKind,
    ) -> Result<Answer, CallError> {
        let host = address(request.url());
        let response = client
            .execute(request)
            .await
            .map_err(|error| self.no_answer(&host, kind, &error))?;
        let room = match kind {
            CallKind::Read => self.room().await.map(Arc::new),
            CallKind::Submit => None,
        };
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let body = match read_body(response).await {
            Ok(body) => Answer {
                status,
                headers,
                body,
                room,
            }
            .decoded(BODY_BYTES_MAX)
            .ok_or(BodyFault::TooLarge),
            Err(fault) => Err(fault),
        };
        body.map_err(|fault| {
            let message = match fault {
                BodyFault::TooLarge => format!(
                    "{host} answered with more than {} MiB; the answer was cut off",
                    BODY_BYTES_MAX >> 20
                ),
                BodyFault::Broken(error) => {
                    format!("the answer of {host} broke off: {}", self.why(&error))
                }
            };
            not_answered(kind, Some(status), &message)
        })
    }

    /// Waits until an answer may be kept in memory. (No semaphore is ever closed.)
    async fn room(&self) -> Option<Room> {
        let of_target = Arc::clone(&self.read_answers).acquire_owned().await.ok()?;
        Some(Room {
            _of_target: of_target,
            _of_all: READ_ANSWERS.acquire().await.ok()?,
        })
    }

    fn no_answer(&self, host: &str, kind: CallKind, error: &reqwest::Error) -> CallError {
        let through = self
            .proxy
            .as_ref()
            .map(|proxy| format!(" through the proxy {proxy}"))
            .unwrap_or_default();
        if let (true, Some(proxy), Some(refusal)) =
            (error.is_connect(), &self.proxy, tunnel_refusal(error))
        {
            return refusal.error(proxy, host);
        }
        if error.is_connect() {
            let why = if error.is_timeout() {
                format!(
                    "no connection within {}",
                    humantime::format_duration(self.connect_timeout)
                )
            } else {
                tls_error(error)
                    .and_then(tls_sentence)
                    .map_or_else(|| connect_causes(error), str::to_owned)
            };
            failed(
                Fault::Unreachable,
                None,
                &format!("could not connect to {host}{through}: {why}"),
            )
        } else if error.is_builder() {
            failed(
                Fault::Configuration,
                None,
                &format!("the request to {host} cannot be sent: {}", causes(error)),
            )
        } else {
            let why = self.why(error);
            not_answered(
                kind,
                None,
                &format!("no answer from {host}{through}: {why}"),
            )
        }
    }

    fn why(&self, error: &reqwest::Error) -> String {
        if error.is_timeout() {
            return format!(
                "not complete within {}",
                humantime::format_duration(self.request_timeout)
            );
        }
        let why = causes(error);
        // The answer of a TLS server to plain HTTP begins with a byte that no HTTP answer begins
        // with.
        if self.is_plain && why.contains("invalid HTTP version") {
            return format!("{why}; if it speaks TLS, write https:// in the endpoint");
        }
        why
    }
}

fn check_scheme(url: &Url, allow_http: bool) -> Result<(), ClientError> {
    match url.scheme() {
        "https" => Ok(()),
        "http" if allow_http => Ok(()),
        _ => Err(ClientError::Insecure {
            address: address(url),
        }),
    }
}

fn builder(
    target: &TargetSettings,
    proxy_password: Option<&SecretString>,
) -> Result<ClientBuilder, ClientError> {
    let mut builder = Client::builder()
        .user_agent(concat!("poweryard/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .http1_title_case_headers()
        .https_only(!target.allow_http)
        .connect_timeout(target.connect_timeout)
        .timeout(target.request_timeout)
        .no_proxy();
    if let Some(url) = &target.proxy {
        let mut proxy = Proxy::all(url.clone()).map_err(ClientError::set_up)?;
        if let Some(password) = proxy_password {
            let user = percent_decode(url.username());
            proxy = proxy.basic_auth(&user, password.expose_secret());
        }
        builder = builder.proxy(proxy);
    }
    if let Some(file) = &target.ca_file {
        builder = builder.tls_certs_only(authorities(file)?);
    } else if !speaks_tls(target) {
        // A test host without certificate authorities must still be able to talk to a loopback
        // endpoint.
        builder = builder.tls_certs_only([]);
    }
    Ok(builder)
}

fn speaks_tls(target: &TargetSettings) -> bool {
    let iam = match &target.auth {
        AuthSettings::Token { iam_endpoint, .. } => Some(iam_endpoint),
        AuthSettings::AkSk { .. } => None,
    };
    [Some(&target.endpoint), iam, target.proxy.as_ref()]
        .into_iter()
        .flatten()
        .any(|url| url.scheme() != "http")
}

fn authorities(file: &Path) -> Result<Vec<Certificate>, ClientError> {
    let unusable = |why: String| ClientError::Authorities {
        file: file.to_owned(),
        why,
    };
    let pem = std::fs::read(file).map_err(|error| unusable(error.to_string()))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|error| unusable(causes(&error)))?;
    if found.is_empty() {
        Err(unusable("it contains no PEM certificate".to_owned()))
    } else {
        Ok(found)
    }
}

enum BodyFault {
    TooLarge,
    Broken(reqwest::Error),
}

/// Reads chunk by chunk, so that neither a wrong `Content-Length` nor an endless body fills the
/// memory.
async fn read_body(mut response: Response) -> Result<Vec<u8>, BodyFault> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(BodyFault::Broken)? {
        if body.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(BodyFault::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// A call that left, and whose answer did not come, or not whole: `message` says what happened.
/// With `status`, an answer had begun.
pub fn not_answered(kind: CallKind, status: Option<u16>, message: &str) -> CallError {
    failed(doubt(kind), status, message)
}

pub(super) fn doubt(kind: CallKind) -> Fault {
    match kind {
        CallKind::Read => Fault::Unavailable,
        CallKind::Submit => Fault::Lost,
    }
}

fn failed(fault: Fault, status: Option<u16>, message: &str) -> CallError {
    CallError {
        fault,
        status,
        code: String::new(),
        message: cap(message, MESSAGE_CHARS_MAX),
        request_id: None,
        retry_after: None,
    }
}

/// The causes of a failed connection, with a hint if they are only the library's words.
fn connect_causes(error: &reqwest::Error) -> String {
    let why = causes(error);
    if why.contains("tls handshake eof") {
        "the connection was closed during the TLS handshake; the server may not speak \
         TLS, or a firewall forbids it"
            .to_owned()
    } else {
        why
    }
}

/// How a proxy refuses to connect: then nothing of the call has been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TunnelRefusal {
    /// HTTP 407.
    WantsPassword,
    /// Any other status.
    Refused,
}

impl TunnelRefusal {
    fn error(self, proxy: &str, host: &str) -> CallError {
        match self {
            Self::WantsPassword => {
                let message = format!(
                    "the proxy {proxy} answered, not the cloud: it requires a user name and a \
                     password; set proxy = \"http://user@...\" and proxy_password_file"
                );
                failed(Fault::Configuration, Some(407), &message)
            }
            Self::Refused => {
                let message = format!(
                    "the proxy {proxy} answered, not the cloud: it refuses to connect to {host}"
                );
                failed(Fault::Unreachable, None, &message)
            }
        }
    }
}

/// The library has no type for these, only words.
fn tunnel_refusal(error: &reqwest::Error) -> Option<TunnelRefusal> {
    let why = causes(error);
    if why.contains("proxy authorization required") {
        Some(TunnelRefusal::WantsPassword)
    } else if why.contains("tunnel error: unsuccessful") {
        Some(TunnelRefusal::Refused)
    } else {
        None
    }
}

/// The TLS library's error, wherever it is in the chain of causes.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An I/O error does not name what it wraps as its source.
        let wrapped = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = wrapped
            .map(|wrapped| wrapped as &(dyn Error + 'static))
            .or_else(|| error.source());
    }
    None
}

/// The usual mistakes with certificates, each with what to do.
fn tls_sentence(error: &rustls::Error) -> Option<&'static str> {
    use rustls::CertificateError as Certificate;
    use rustls::Error as Tls;
    match error {
        Tls::InvalidCertificate(Certificate::UnknownIssuer) => Some(
            "its certificate is signed by an authority that is not trusted here; name that \
             authority's certificate in ca_file",
        ),
        Tls::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. }) => Some(
            "its certificate has expired, or this machine's clock is ahead; check the clock, then the certificate",
        ),
        Tls::InvalidCertificate(
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. },
        ) => Some(
            "its certificate is not valid yet, or this machine's clock is behind; check the clock first",
        ),
        Tls::InvalidCertificate(
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. },
        ) => Some("its certificate is for another name; check the host name in the endpoint"),
        Tls::InvalidMessage(_) => Some(
            "it does not speak TLS; check the port, or for a test write http:// and allow_http = true",
        ),
        _ => None,
    }
}

/// `host:port`, without path, query or user.
pub(crate) fn address(url: &Url) -> String {
    let host = url.host_str().unwrap_or("?");
    url.port_or_known_default()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The causes below `error` in one line, without the HTTP library's wrappers, which name the URL or
/// say nothing.
pub(crate) fn causes(error: &(dyn Error + 'static)) -> String {
    let mut line: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        next = error.source();
        let text = error
            .downcast_ref::<io::Error>()
            .filter(|io| io.raw_os_error().is_some())
            .map_or_else(
                || error.to_string(),
                // "connection refused" rather than "Connection refused (os error 111)".
                |io| io.kind().to_string(),
            );
        let wrapper =
            (error.is::<reqwest::Error>() || text.starts_with("client error")) && next.is_some();
        if wrapper
            || text == "tcp connect error"
            || line.last().is_some_and(|last| last.contains(&text))
        {
            continue;
        }
        line.push(if error.is::<reqwest::Error>() {
            "the HTTP library gives no reason".to_owned()
        } else {
            text
        });
    }
    line.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_shows_host_and_port_and_no_secret() {
        let url = Url::parse("https://user:secret@proxy.example/path?token=1").expect("a URL");
        assert_eq!(address(&url), "proxy.example:443");
    }

    #[test]
    fn each_usual_mistake_with_a_certificate_says_what_to_do() {
        use rustls::CertificateError::{Expired, NotValidForName, NotValidYet, UnknownIssuer};
        for (mistake, word) in [
            (UnknownIssuer, "ca_file"),
            (Expired, "clock"),
            (NotValidYet, "clock"),
            (NotValidForName, "endpoint"),
        ] {
            let wrapped =
                io::Error::other(io::Error::other(rustls::Error::InvalidCertificate(mistake)));
            let sentence = tls_error(&wrapped)
                .and_then(tls_sentence)
                .expect("a sentence");
            assert!(sentence.contains(word), "{sentence}");
        }
        assert_eq!(tls_error(&io::Error::other("else")), None);
    }

    #[test]
    fn causes_read_as_words() {
        let refused = io::Error::from_raw_os_error(111);
        assert_eq!(causes(&refused), "connection refused");
        assert_eq!(
            causes(&io::Error::other("dns error: no such host")),
            "dns error: no such host"
        );
    }
}
