//! TCP connections with a switch that closes them at once, between any two bytes. Knows nothing of
//! what they carry.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

/// Closes its connection: from then on every read and write of it fails, and its task ends.
#[derive(Debug, Clone, Default)]
pub(super) struct Switch(Arc<SwitchState>);

#[derive(Debug, Default)]
struct SwitchState {
    is_cut: AtomicBool,
    reader: AtomicWaker,
}

impl Switch {
    pub(super) fn cut(&self) {
        self.0.is_cut.store(true, Ordering::Release);
        self.0.reader.wake();
    }

    fn check(&self) -> io::Result<()> {
        if self.0.is_cut.load(Ordering::Acquire) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

/// The switches of all open connections.
#[derive(Debug, Clone, Default)]
pub(super) struct Switchboard(Arc<Mutex<Vec<Weak<SwitchState>>>>);

impl Switchboard {
    fn new_switch(&self) -> Switch {
        let switch = Switch::default();
        let mut switches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        switches.retain(|open| open.strong_count() > 0);
        switches.push(Arc::downgrade(&switch.0));
        switch
    }

    /// Cuts every connection.
    pub(super) fn cut_all(&self) {
        let switches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for state in switches.iter().filter_map(Weak::upgrade) {
            Switch(state).cut();
        }
    }
}

/// A listener whose connections can be cut.
pub(super) struct SwitchedListener {
    pub(super) listener: TcpListener,
    pub(super) switchboard: Switchboard,
}

impl Listener for SwitchedListener {
    type Io = SwitchedStream;
    type Addr = Switch;

    async fn accept(&mut self) -> (SwitchedStream, Switch) {
        let stream = self.accept_stream().await;
        let switch = self.switchboard.new_switch();
        (
            SwitchedStream {
                stream,
                switch: switch.clone(),
            },
            switch,
        )
    }

    fn local_addr(&self) -> io::Result<Switch> {
        Ok(Switch::default())
    }
}

impl SwitchedListener {
    /// Waits for the next connection; pauses when the process has no file descriptor left for it.
    async fn accept_stream(&self) -> TcpStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _peer)) => {
                    // Without it small answers wait for the client's delayed acknowledgement; not
                    // having it is no error.
                    let _ = stream.set_nodelay(true);
                    return stream;
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Connected<IncomingStream<'_, SwitchedListener>> for Switch {
    fn connect_info(stream: IncomingStream<'_, SwitchedListener>) -> Self {
        stream.remote_addr().clone()
    }
}

/// A connection that its switch can cut.
pub(super) struct SwitchedStream {
    stream: TcpStream,
    switch: Switch,
}

impl AsyncRead for SwitchedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.switch.0.reader.register(cx.waker());
        self.switch.check()?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for SwitchedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.switch.check()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.switch.check()?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
