//! `/metrics`, `/healthz`, `/readyz`, the status page and the API: one HTTP server beside the
//! daemon's loop.
//!
//! Slow, broken or very many callers meet limits here and never slow down the daemon's loop. The
//! queue is read and written over connections of its own, through the same door as the commands.
//!
//! `server` accepts connections, `access` decides who may come in, `api` is for programs; what
//! everybody shares is here.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;
use tracing::{error, info};

use crate::meter::Meter;
use crate::settings::{SecretRules, Settings, TargetSettings};

mod access;
mod api;
mod glance;
mod health;
mod metrics;
mod page;
mod prometheus_text;
mod server;
mod shared_read;

use access::GuestBook;
pub use access::{CertificateError, Entrance, EntranceError, ServerCertificate};
pub use api::Turns;
use api::{Followers, Views};
use glance::SharedGlance;
use metrics::Reading;
use page::Labels;
use shared_read::SharedRead;

/// What `poweryard explain` says of a request; `Err`: why it says nothing.
pub type Explain =
    Arc<dyn Fn(i64) -> BoxFuture<'static, Result<Vec<String>, String>> + Send + Sync>;

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
    explain: Explain,
    /// The targets whose secrets' age is shown.
    targets: Mutex<(Vec<TargetSettings>, SecretRules)>,
    reading: SharedRead<Reading>,
    glance: SharedGlance,
    labels: Labels,
    /// Who may come in; none while it does not listen.
    entrance: RwLock<Option<Arc<Entrance>>>,
    access: GuestBook,
    turns: Turns,
    views: Views,
    followers: Followers,
}

/// For those who would otherwise keep a server that has ended.
type SiteLink = Weak<Site>;

impl Site {
    fn entrance(&self) -> Option<Arc<Entrance>> {
        let entrance = self.entrance.read();
        entrance.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// None: nobody any more.
    fn let_in_by(&self, entrance: Option<Entrance>) {
        let mut present = self
            .entrance
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *present = entrance.map(Arc::new);
    }
}

impl Web {
    /// A server that does not listen yet.
    pub fn new(
        settings: &Settings,
        rules: &SecretRules,
        meter: Arc<Meter>,
        explain: Explain,
    ) -> Self {
        let site = Site {
            meter,
            database: settings.queue.database.clone(),
            explain,
            targets: Mutex::new((settings.targets.clone(), rules.clone())),
            reading: SharedRead::default(),
            entrance: RwLock::default(),
            access: GuestBook::default(),
            glance: SharedGlance::new(&settings.queue.database),
            labels: Labels::default(),
            turns: Turns::default(),
            views: Views::default(),
            followers: Followers::default(),
        };
        Self {
            site: Arc::new(site),
            serving: None,
        }
    }

    /// What holds connections to the queue; they have to be closed when the daemon has ended.
    pub fn turns(&self) -> Turns {
        self.site.turns.clone()
    }

    /// Listens where `entrance` says from now on, and no longer on the old address; none: on no
    /// address.
    ///
    /// # Errors The address cannot be listened on; then nothing changes.
    pub fn listen(&mut self, entrance: Option<Entrance>) -> io::Result<()> {
        let Some(entrance) = entrance else {
            self.stop();
            self.site.let_in_by(None);
            return Ok(());
        };
        let address = entrance.address;
        let scheme = if entrance.certificate.is_some() {
            "https"
        } else {
            "http"
        };
        if self.serving.as_ref().map(|serving| serving.address) == Some(address) {
            self.site.let_in_by(Some(entrance));
            return Ok(());
        }
        let listener = server::bind(address)?;
        // The address as configured. With port 0 the real port is another one; the log shows it.
        let actual = listener.local_addr().unwrap_or(address);
        info!(address = %actual, "serving {scheme}://{actual}/ and {scheme}://{actual}/metrics");
        self.stop();
        self.site.let_in_by(Some(entrance));
        let site = Arc::clone(&self.site);
        self.serving = Some(Serving {
            address,
            task: tokio::spawn(server::serve(listener, routes(Arc::clone(&site)), site)),
        });
        Ok(())
    }

    /// Applies new settings. If the new address cannot be listened on, that is logged and the old
    /// one stays.
    pub fn take_up(
        &mut self,
        settings: &Settings,
        rules: &SecretRules,
        entrance: Option<Entrance>,
    ) {
        *self
            .site
            .targets
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = (settings.targets.clone(), rules.clone());
        let address = entrance
            .as_ref()
            .map(|entrance| entrance.address.to_string())
            .unwrap_or_default();
        if let Err(why) = self.listen(entrance) {
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

fn routes(site: Arc<Site>) -> Router {
    Router::new()
        .route("/metrics", get(metrics::answer))
        .route("/healthz", get(health::moves))
        .route("/readyz", get(health::ready))
        .route("/login", get(access::show_form).post(access::sign_in))
        .route("/login/style.css", get(access::style))
        .route("/logout", post(access::sign_out))
        .nest("/api/v1", api::routes())
        .merge(page::routes())
        .layer(from_fn_with_state(Arc::clone(&site), access::guard))
        .with_state(site)
}

const PLAIN: &str = "text/plain; charset=utf-8";

/// An answer that must not be cached. The guard adds what browsers are told.
fn say(status: StatusCode, kind: &'static str, text: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (status, headers, text).into_response()
}
