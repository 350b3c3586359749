//! The thin HTTP edge: turns what arrives into a [`Request`], asks the world, and delivers the
//! answer as told. The only part of the simulated cloud with a clock, sockets and waiting. Decides
//! nothing.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::{StreamExt, stream};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::answer::{Answer, Delivery};
use super::connection::{Switch, Switchboard, SwitchedListener};
use super::gateway::Request;
use super::record::{CallRecord, LedgerEntry, ServerSummary};
use super::scenario::Scenario;
use super::world::World;
use crate::model::{ServerId, Service, UtcMillis};

/// Longer bodies are refused (signing guide).
const REQUEST_BYTES_MAX: usize = 12 << 20;
/// Padding is sent in pieces of this size.
static PADDING: [u8; 64 << 10] = [b' '; 64 << 10];

/// A simulated cloud that listens on a TCP port. Ends when stopped or dropped.
#[derive(Debug)]
pub struct SimCloud {
    address: SocketAddr,
    world: Arc<Mutex<World>>,
    switchboard: Switchboard,
    serving: JoinHandle<()>,
}

impl SimCloud {
    /// Opens the port (0: any free one) and serves in the background of the current Tokio runtime.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn start(listen: SocketAddr, scenario: Scenario) -> io::Result<Self> {
        let switchboard = Switchboard::default();
        let listener = SwitchedListener {
            listener: TcpListener::bind(listen).await?,
            switchboard: switchboard.clone(),
        };
        let address = listener.address()?;
        let world = Arc::new(Mutex::new(World::new(scenario)));
        let app = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&world));
        let service = app.into_make_service_with_connect_info::<Switch>();
        let serving = tokio::spawn(async move {
            // It only ends by being aborted: accept errors are waited out.
            let _ = axum::serve(listener, service).await;
        });
        Ok(Self {
            address,
            world,
            switchboard,
            serving,
        })
    }

    /// `http://ADDRESS:PORT`, without a final slash.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every power operation really carried out, in order.
    pub fn ledger(&self) -> Vec<LedgerEntry> {
        let mut world = lock(&self.world);
        world.act_late(now());
        world.ledger().to_vec()
    }

    /// The servers that exist, as they are at this moment.
    pub fn servers(&self) -> Vec<ServerSummary> {
        lock(&self.world).servers(now())
    }

    /// The ids of all servers of `service`, in the order of its list; also of those that a fault
    /// makes missing.
    pub fn server_ids(&self, service: Service) -> Vec<ServerId> {
        lock(&self.world).server_ids(service)
    }

    /// Gives a server another name.
    pub fn rename(&self, id: &ServerId, name: &str) {
        lock(&self.world).rename(id, name);
    }

    /// Has a server vanish or return.
    pub fn set_missing(&self, id: &ServerId, is_missing: bool) {
        lock(&self.world).set_missing(id, is_missing);
    }

    /// Every call that arrived, in order.
    pub fn calls(&self) -> Vec<CallRecord> {
        lock(&self.world).calls().to_vec()
    }

    /// Closes the port and cuts every connection.
    pub async fn stop(mut self) {
        self.serving.abort();
        // Aborted is how it ends here.
        let _ = (&mut self.serving).await;
    }
}

impl Drop for SimCloud {
    fn drop(&mut self) {
        self.serving.abort();
        self.switchboard.cut_all();
    }
}

fn now() -> UtcMillis {
    UtcMillis(jiff::Timestamp::now().as_millisecond())
}

/// A panic in another call leaves the world as it was between two of its steps; tests still want to
/// see it.
fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers one request, late if the answer says so.
async fn answer(
    ConnectInfo(switch): ConnectInfo<Switch>,
    State(world): State<Arc<Mutex<World>>>,
    request: axum::extract::Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, REQUEST_BYTES_MAX).await else {
        return deliver(lock(&world).refuse_large(), &switch);
    };
    let mut headers = Vec::with_capacity(parts.headers.len());
    for (name, value) in &parts.headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        headers.push((name.as_str().to_owned(), value));
    }
    let request = Request {
        method: parts.method.as_str().to_owned(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers,
        body: body.into(),
    };
    let answer = lock(&world).handle(now(), &request);
    if !answer.delay.is_zero() {
        tokio::time::sleep(answer.delay).await;
    }
    deliver(answer, &switch)
}

/// Turns the answer into an HTTP response, and cuts the connection if it must not arrive.
fn deliver(answer: Answer, switch: &Switch) -> Response {
    let whole = answer.body.len();
    let (body, length) = match answer.delivery {
        Delivery::Whole => (Body::from(answer.body), whole),
        Delivery::Padded { bytes } => (padded(answer.body, bytes), whole + bytes),
        Delivery::Truncated { bytes } => (truncated(answer.body, bytes), whole),
        Delivery::Dropped => {
            switch.cut();
            (Body::empty(), 0)
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(answer.content_type),
    );
    let own = [("X-Request-Id", answer.request_id)];
    for (name, value) in own.into_iter().chain(answer.headers) {
        if let (Ok(name), Ok(value)) = (
            name.parse::<header::HeaderName>(),
            HeaderValue::from_str(&value),
        ) {
            headers.insert(name, value);
        }
    }
    response
}

/// The first bytes of a body, then an error, on which the connection is closed.
fn truncated(mut body: Vec<u8>, bytes: usize) -> Body {
    body.truncate(bytes);
    let begin = stream::iter([Ok(Bytes::from(body))]);
    let end = stream::once(async {
        // The server sends what it has whenever more is not ready; an immediate error would discard
        // that.
        tokio::task::yield_now().await;
        Err(io::Error::from(io::ErrorKind::ConnectionAborted))
    });
    Body::from_stream(begin.chain(end))
}

/// A body and this many blanks, never all of them in memory.
fn padded(body: Vec<u8>, bytes: usize) -> Body {
    let mut left = bytes;
    let padding = std::iter::from_fn(move || {
        let piece = left.min(PADDING.len());
        left -= piece;
        (piece > 0).then(|| Ok::<_, io::Error>(Bytes::from_static(&PADDING).slice(..piece)))
    });
    Body::from_stream(stream::iter(
        std::iter::once(Ok(Bytes::from(body))).chain(padding),
    ))
}

#[cfg(test)]
mod tests;
