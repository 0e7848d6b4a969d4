//! Connections: accepted from the socket, bounded, and cut when the shutdown demands it.

use super::bounds;
use super::metrics::Metrics;
use super::until::Shutdown;
use std::collections::BTreeSet;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_stream::Stream;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::{Connected, UdsConnectInfo};

/// Accepts connections.
pub struct Acceptor {
    listener: UnixListener,
    allowed_uids: BTreeSet<u32>,
    operators: Arc<Semaphore>,
    others: Arc<Semaphore>,
    metrics: Metrics,
    shutdown: Shutdown,
}

impl Acceptor {
    /// For a bound listener.
    #[must_use]
    pub fn new(
        listener: UnixListener,
        allowed_uids: BTreeSet<u32>,
        metrics: Metrics,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            listener,
            allowed_uids,
            operators: Arc::new(Semaphore::new(bounds::OPERATOR_CONNECTIONS)),
            others: Arc::new(Semaphore::new(bounds::OTHER_CONNECTIONS)),
            metrics,
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
            let operator = uid.is_some_and(|uid| self.allowed_uids.contains(&uid));
            let room = if operator {
                &self.operators
            } else {
                &self.others
            };
            match Arc::clone(room).try_acquire_owned() {
                Ok(permit) => {
                    return Connection::new(stream, permit, &self.metrics, &self.shutdown);
                }
                // Closed at once: an answer, where waiting in the kernel's queue would be none.
                Err(_) => {
                    self.metrics.connection_refused();
                    tracing::debug!(?uid, "too many connections: closed");
                }
            }
        }
    }
}

/// One connection.
pub struct Connection {
    stream: UnixStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Until its first byte: who connects and says nothing must not keep others out.
    greeting: Option<Pin<Box<Sleep>>>,
    open: prometheus::IntGauge,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn new(
        stream: UnixStream,
        permit: OwnedSemaphorePermit,
        metrics: &Metrics,
        shutdown: &Shutdown,
    ) -> Self {
        let open = metrics.connections().clone();
        open.inc();
        Self {
            stream,
            cut: Box::pin(shutdown.cut.clone().cancelled_owned()),
            greeting: Some(Box::pin(tokio::time::sleep(bounds::GREETING))),
            open,
            _permit: permit,
        }
    }

    /// An error once the connection is to be cut; registers for that otherwise.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "hearthd has ended",
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
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
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
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
