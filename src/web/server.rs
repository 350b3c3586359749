//! Accepts connections and keeps them within limits: in number, in time, and in what waits to be
//! sent. Knows nothing of what is answered.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::Site;
use super::access::{Peer, Refusal};

/// Connections served at a time; for a further one, a connection that asks for nothing at present
/// is dropped.
const CONNECTIONS_MAX: usize = 512;
/// Time for the TLS handshake, and for a request's head; a connection that is kept alive waits so
/// long for its next request.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// Time from a request's head to its answer.
const ANSWER_TIME: Duration = Duration::from_secs(60);
/// A reader that takes nothing for so long is dropped.
const STALL_TIME: Duration = Duration::from_secs(15);
/// More than any request head of a scraper or a browser.
const BUFFER_BYTES_MAX: usize = 32 * 1024;
/// What the system keeps for a reader that does not read.
const SEND_BUFFER_BYTES: u32 = 256 * 1024;
/// Connections that the system keeps until they are accepted.
const BACKLOG: u32 = 1024;
/// Pause when the process has no file descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Listens on `address`.
pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts connections; each is a task of its own, limited in number and time.
///
/// Silent connections are dropped first, so that any number of them cannot block others.
pub(super) async fn serve(listener: TcpListener, routes: Router, site: Arc<Site>) {
    let mut guests: VecDeque<Guest> = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                guests.retain(|guest| !guest.task.is_finished());
                make_room(&mut guests);
                let activity = Arc::new(GuestState::default());
                let site = Arc::clone(&site);
                let served = welcome(stream, peer, routes.clone(), site, Arc::clone(&activity));
                let task = tokio::spawn(served).abort_handle();
                guests.push_back(Guest { task, activity });
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
    activity: Arc<GuestState>,
}

/// What a connection is doing at present.
#[derive(Debug, Default)]
pub(super) struct GuestState(AtomicU8);

/// Nothing has been asked yet.
const SILENT: u8 = 0;
/// An answer is being made.
const ASKED: u8 = 1;
/// It follows events; how many do is limited elsewhere.
const FOLLOWING: u8 = 2;
/// All that was asked is answered, and it is kept for more.
const KEPT: u8 = 3;

impl GuestState {
    fn set(&self, to: u8) {
        self.0.store(to, Ordering::Relaxed);
    }

    fn get(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    /// From now on it follows events.
    pub(super) fn follow(&self) {
        self.set(FOLLOWING);
    }
}

/// Drops a connection if the limit is reached: the one that has been silent for longest, else the
/// oldest that waits for nothing, else the oldest that does not follow events.
fn make_room(guests: &mut VecDeque<Guest>) {
    if guests.len() < CONNECTIONS_MAX {
        return;
    }
    let place = |activity| {
        guests
            .iter()
            .position(|guest| guest.activity.get() == activity)
    };
    let dropped = place(SILENT)
        .or_else(|| place(KEPT))
        .or_else(|| place(ASKED))
        .unwrap_or(0);
    if let Some(guest) = guests.remove(dropped) {
        guest.task.abort();
    }
}

async fn welcome(
    stream: TcpStream,
    peer: SocketAddr,
    routes: Router,
    site: Arc<Site>,
    activity: Arc<GuestState>,
) {
    let Ok(here) = stream.local_addr() else {
        return;
    };
    // Small answers leave at once.
    let _ = stream.set_nodelay(true);
    let Some(entrance) = site.entrance() else {
        return;
    };
    let tls = entrance.certificate.as_ref().map(|found| found.tls());
    drop(entrance);
    let peer = Peer {
        address: peer.ip().to_canonical(),
        here: here.ip().to_canonical(),
        is_encrypted: tls.is_some(),
    };
    let Some(tls) = tls else {
        return answer(stream, peer, routes, activity).await;
    };
    let handshake = TlsAcceptor::from(tls).accept(stream);
    match tokio::time::timeout(HEAD_TIME, handshake).await {
        Ok(Ok(stream)) => answer(stream, peer, routes, activity).await,
        Ok(Err(why)) => debug!("a TLS handshake failed: {why}"),
        Err(_) => debug!("a TLS handshake took longer than {HEAD_TIME:?}"),
    }
}

async fn answer<S>(stream: S, peer: Peer, routes: Router, activity: Arc<GuestState>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        activity.set(ASKED);
        request.extensions_mut().insert(peer);
        // Weak: the request would otherwise keep what says that its connection is served.
        request.extensions_mut().insert(Arc::downgrade(&activity));
        let activity = Arc::clone(&activity);
        let answered = routes.call(request);
        async move {
            let response = match tokio::time::timeout(ANSWER_TIME, answered).await {
                Ok(response) => response,
                Err(_) => Ok(late().into_response()),
            };
            if activity.get() == ASKED {
                activity.set(KEPT);
            }
            response
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(Impatient::new(stream)), service);
    if let Err(why) = connection.await {
        debug!("a connection of {} broke off: {why}", peer.address);
    }
}

fn late() -> Refusal {
    Refusal::new(
        StatusCode::REQUEST_TIMEOUT,
        "the request was not complete, or could not be answered, within a minute",
    )
}

/// In a request: what says that its connection follows events.
pub(super) type GuestLink = Weak<GuestState>;

/// A stream that fails when its reader takes nothing for [`STALL_TIME`].
struct Impatient<S> {
    stream: S,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncWrite + Unpin> Impatient<S> {
    fn new(stream: S) -> Self {
        Self {
            stream,
            stalled: None,
        }
    }

    /// Passes on how a write went, and ends one that stalls.
    fn judge<T>(
        &mut self,
        wrote: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if wrote.is_ready() {
            self.stalled = None;
            return wrote;
        }
        let until = || Box::pin(tokio::time::sleep_until(Instant::now() + STALL_TIME));
        let stalled = self.stalled.get_or_insert_with(until);
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(wrote, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(shut, context)
    }
}
