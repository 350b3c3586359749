//! `/metrics`, `/healthz`, `/readyz` and the status page: one small HTTP server beside the daemon's
//! loop.
//!
//! It only reads, over connections of its own; slow, broken or very many scrapers meet limits here
//! and never slow down the daemon's loop. There is no login: everybody who can reach the address is
//! served. Writes nothing, decides nothing.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::future::BoxFuture;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinHandle};
use tracing::{debug, error, info};

use crate::meter::Meter;
use crate::settings::{SecretRules, Settings, TargetSettings};
use crate::store::StoreError;

mod health;
mod metrics;
mod page;
mod prometheus_text;
mod shared_read;

use metrics::Reading;
use shared_read::SharedRead;

/// Connections served at a time; for a further one, a connection that has not sent a request yet is
/// dropped.
const CONNECTIONS_MAX: usize = 128;
/// Time for a request's head.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// Time for a whole connection, which carries one request.
const CONNECTION_TIME: Duration = Duration::from_secs(15);
/// More than any request head of a scraper or a browser.
const BUFFER_BYTES_MAX: usize = 16 * 1024;
/// Pause when the process has no file descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What `poweryard status` prints, read when it is called.
pub type StatusText = Arc<dyn Fn() -> BoxFuture<'static, Result<String, StoreError>> + Send + Sync>;

/// The server and where it listens. Ends when dropped.
pub struct Web {
    site: Arc<Site>,
    serving: Option<Serving>,
}

struct Serving {
    address: SocketAddr,
    task: JoinHandle<()>,
}

/// The sources of the pages.
struct Site {
    meter: Arc<Meter>,
    database: PathBuf,
    status: StatusText,
    /// The targets whose secrets' age is shown.
    targets: Mutex<(Vec<TargetSettings>, SecretRules)>,
    reading: SharedRead<Reading>,
    page: SharedRead<String>,
}

impl Web {
    /// A server that does not listen yet.
    pub fn new(
        settings: &Settings,
        rules: &SecretRules,
        meter: Arc<Meter>,
        status: StatusText,
    ) -> Self {
        let site = Site {
            meter,
            database: settings.queue.database.clone(),
            status,
            targets: Mutex::new((settings.targets.clone(), rules.clone())),
            reading: SharedRead::default(),
            page: SharedRead::default(),
        };
        Self {
            site: Arc::new(site),
            serving: None,
        }
    }

    /// Listens on `address` from now on, and no longer on the old address; none: on no address.
    ///
    /// # Errors The address cannot be listened on; then nothing changes.
    pub async fn listen(&mut self, address: Option<SocketAddr>) -> io::Result<()> {
        if self.serving.as_ref().map(|serving| serving.address) == address {
            return Ok(());
        }
        let serving = match address {
            None => None,
            Some(address) => {
                let listener = TcpListener::bind(address).await?;
                // The address as configured. With port 0 the real port is another one; the log
                // shows it.
                let actual = listener.local_addr().unwrap_or(address);
                info!(address = %actual, "serving http://{actual}/ and http://{actual}/metrics");
                Some(Serving {
                    address,
                    task: tokio::spawn(serve(listener, Arc::clone(&self.site))),
                })
            }
        };
        self.stop();
        self.serving = serving;
        Ok(())
    }

    /// Applies new settings. If the new address cannot be listened on, that is logged and the old
    /// one stays.
    pub async fn take_up(&mut self, settings: &Settings, rules: &SecretRules) {
        *self
            .site
            .targets
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = (settings.targets.clone(), rules.clone());
        if let Err(why) = self.listen(settings.listen).await {
            let address = settings
                .listen
                .map(|address| address.to_string())
                .unwrap_or_default();
            error!(
                "cannot listen on {address} (listen.address); the old address stays in use: {why}"
            );
        }
    }

    fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.task.abort();
        }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Accepts connections; each is a task of its own, limited in number and time.
///
/// Silent connections are dropped first, so that any number of them cannot block others.
async fn serve(listener: TcpListener, site: Arc<Site>) {
    let routes = routes(site);
    let mut guests: VecDeque<Guest> = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => {
                guests.retain(|guest| !guest.task.is_finished());
                make_room(&mut guests);
                let asked = Arc::new(AtomicBool::new(false));
                let task =
                    tokio::spawn(answer(stream, routes.clone(), Arc::clone(&asked))).abort_handle();
                guests.push_back(Guest { task, asked });
            }
            Err(why) => {
                debug!("cannot accept a connection: {why}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection being served.
struct Guest {
    task: AbortHandle,
    /// The head of its request has arrived.
    asked: Arc<AtomicBool>,
}

/// Drops a connection if the limit is reached: the one that has been silent for longest, else the
/// oldest.
fn make_room(guests: &mut VecDeque<Guest>) {
    if guests.len() < CONNECTIONS_MAX {
        return;
    }
    let silent = guests
        .iter()
        .position(|guest| !guest.asked.load(Ordering::Relaxed));
    if let Some(guest) = guests.remove(silent.unwrap_or(0)) {
        guest.task.abort();
    }
}

async fn answer(stream: TcpStream, routes: Router, asked: Arc<AtomicBool>) {
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(move |request| {
        asked.store(true, Ordering::Relaxed);
        routes.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .keep_alive(false)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIME, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => debug!("a connection to the status page broke off: {why}"),
        Err(_) => debug!("a connection to the status page took longer than {CONNECTION_TIME:?}"),
    }
}

fn routes(site: Arc<Site>) -> Router {
    Router::new()
        .route("/", get(page::answer))
        .route("/metrics", get(metrics::answer))
        .route("/healthz", get(health::moves))
        .route("/readyz", get(health::ready))
        .with_state(site)
}

const PLAIN: &str = "text/plain; charset=utf-8";

/// An answer that must not be cached.
fn say(status: StatusCode, kind: &'static str, text: String) -> Response {
    const NOSNIFF: (HeaderName, &str) = (header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        NOSNIFF,
    ];
    (status, headers, text).into_response()
}
