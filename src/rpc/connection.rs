//! Connections: bounded, greeted, and cut when the shutdown or their age demands it. Accepted here from the Unix socket,
//! in `tcp.rs` from TCP.

use super::bounds;
use super::metrics::Metrics;
use super::until::Shutdown;
use crate::identity::{Identity, Policy, Roles};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

/// Rooms for connections. Those who have a role are never kept out by those who have none.
#[derive(Clone)]
pub struct Rooms {
    known: Arc<Semaphore>,
    others: Arc<Semaphore>,
    metrics: Metrics,
}

impl Rooms {
    /// Empty rooms.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        Self {
            known: Arc::new(Semaphore::new(bounds::KNOWN_CONNECTIONS)),
            others: Arc::new(Semaphore::new(bounds::OTHER_CONNECTIONS)),
            metrics,
        }
    }

    /// A place; `None`: the connection is to be closed at once, which is an answer, where waiting would be none.
    pub fn enter(&self, identity: &Identity) -> Option<OwnedSemaphorePermit> {
        let known = identity.roles != Roles::NONE;
        let room = if known { &self.known } else { &self.others };
        let entered = Arc::clone(room).try_acquire_owned().ok();
        if entered.is_none() {
            self.refuse(&identity.name);
        }
        entered
    }

    /// A connection is closed at once.
    pub fn refuse(&self, peer: &str) {
        self.metrics.connection_refused();
        tracing::debug!(peer, "too many connections: closed");
    }

    /// What the rooms count with.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

/// Accepts connections of the Unix socket.
pub struct Acceptor {
    listener: UnixListener,
    policy: Arc<Policy>,
    rooms: Rooms,
    shutdown: Shutdown,
}

impl Acceptor {
    /// For a bound listener.
    #[must_use]
    pub fn new(
        listener: UnixListener,
        policy: Arc<Policy>,
        rooms: Rooms,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            listener,
            policy,
            rooms,
            shutdown,
        }
    }

    /// The connections, as the server takes them.
    pub fn connections(self) -> impl Stream<Item = io::Result<Connection>> {
        futures::stream::unfold(self, |acceptor| async move {
            let connection = acceptor.next().await;
            Some((Ok(connection), acceptor))
        })
    }

    async fn next(&self) -> Connection {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(bounds::ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let uid = stream.peer_cred().ok().map(|cred| cred.uid());
            let identity = self.policy.user(uid);
            if let Some(permit) = self.rooms.enter(&identity) {
                let cut = self.shutdown.cut.clone();
                let metrics = self.rooms.metrics();
                return Connection::new(Io::Unix(stream), identity, permit, metrics, cut);
            }
        }
    }
}

/// What bytes travel over.
pub enum Io {
    /// The Unix socket.
    Unix(UnixStream),
    /// TCP, after the handshake.
    Tls(Box<TlsStream<TcpStream>>),
}

/// One connection.
pub struct Connection {
    io: Io,
    identity: Identity,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Until its first byte: who connects and says nothing must not keep others out.
    greeting: Option<Pin<Box<Sleep>>>,
    closed: CancellationToken,
    _closed: DropGuard,
    open: prometheus::IntGauge,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// With a place in its room, until `cut`.
    pub fn new(
        io: Io,
        identity: Identity,
        permit: OwnedSemaphorePermit,
        metrics: &Metrics,
        cut: CancellationToken,
    ) -> Self {
        let open = metrics.connections().clone();
        open.inc();
        let closed = CancellationToken::new();
        Self {
            io,
            identity,
            cut: Box::pin(cut.cancelled_owned()),
            greeting: Some(Box::pin(tokio::time::sleep(bounds::GREETING))),
            _closed: closed.clone().drop_guard(),
            closed,
            open,
            _permit: permit,
        }
    }

    /// Cancelled when the connection is gone.
    pub fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    /// An error once the connection is to be cut; registers for that otherwise.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "hearthd has ended this connection",
            )),
            Poll::Pending => Ok(()),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl Connected for Connection {
    type ConnectInfo = Identity;

    fn connect_info(&self) -> Identity {
        self.identity.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let read = match &mut self.io {
            Io::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        if read.is_ready() {
            self.greeting = None;
        } else if let Some(greeting) = &mut self.greeting {
            std::task::ready!(greeting.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        match &mut self.io {
            Io::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        match &mut self.io {
            Io::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Unix(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
