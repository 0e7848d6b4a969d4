//! The TCP listener: TLS before anything else, a server of its own for each connection, so that each ages by itself.
//!
//! A connection is asked to leave (GOAWAY: calls in flight go on, new ones go to a new connection) when it has reached its
//! age, and in any case before its certificate expires: whoever stays connected shows a fresh certificate from time to
//! time, to the CAs of that time. What has not ended within the grace is cut.

use super::bounds;
use super::connection::{Connection, Io, Rooms};
use super::until::Shutdown;
use crate::identity::{Certificate, Identity, Metrics, Policy, Tls};
use futures::StreamExt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The TCP listener, as `app` has bound it.
pub struct Tcp {
    /// Bound.
    pub listener: TcpListener,
    /// What handshakes are judged by.
    pub tls: Tls,
    /// Age at which a connection is asked to leave; each a tenth more or less, so that they don't all leave at once.
    pub age: Duration,
    /// How long it may take to leave.
    pub grace: Duration,
}

/// What every connection needs.
#[derive(Clone)]
pub struct Keeper {
    /// Names to roles.
    pub policy: Arc<Policy>,
    /// Rooms, shared with the Unix socket.
    pub rooms: Rooms,
    /// Identity's metrics.
    pub metrics: Metrics,
    /// The shutdown.
    pub shutdown: Shutdown,
}

/// Serves one connection until its third argument resolves, then lets it end.
pub trait Serve: Clone + Send + Sync + 'static {
    /// Ends when the connection has ended.
    fn serve(
        &self,
        connection: Connection,
        leave: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send;
}

impl Tcp {
    /// Accepts until the shutdown begins; ends when all connections have.
    pub async fn run(self, keeper: Keeper, server: impl Serve) {
        let handshakes = Arc::new(Semaphore::new(bounds::HANDSHAKES));
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = keeper.shutdown.begun.cancelled() => break,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(bounds::ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
                keeper.rooms.refuse("handshakes");
                continue;
            };
            let (keeper, server) = (keeper.clone(), server.clone());
            let (tls, age, grace) = (self.tls.clone(), self.age, self.grace);
            tasks.spawn(async move {
                let shaken = keeper.shake(stream, from, &tls).await;
                drop(permit);
                if let Some((io, identity)) = shaken {
                    Box::pin(keeper.keep(io, identity, age, grace, server)).await;
                }
            });
        }
        drop(self.listener);
        tasks.close();
        tasks.wait().await;
    }
}

impl Keeper {
    async fn shake(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        tls: &Tls,
    ) -> Option<(Io, Identity)> {
        // Small answers are answers too. A socket that refuses this is about to fail anyway.
        let _ = stream.set_nodelay(true);
        let shaken = timeout(bounds::HANDSHAKE, tls.acceptor().accept(stream)).await;
        let why = match shaken {
            Ok(Ok(stream)) => match self.identify(&stream, from) {
                Ok(identity) => return Some((Io::Tls(Box::new(stream)), identity)),
                Err(error) => error.to_string(),
            },
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it took too long".to_owned(),
        };
        self.metrics.handshake_failed();
        tracing::info!(%from, why, "a TLS handshake failed");
        None
    }

    fn identify(
        &self,
        stream: &tokio_rustls::server::TlsStream<TcpStream>,
        from: SocketAddr,
    ) -> Result<Identity, crate::identity::CertificateError> {
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        match chain.first() {
            Some(own) => Ok(self.policy.certificate(&Certificate::read(own)?, from)),
            None => Ok(self.policy.stranger(from)),
        }
    }

    async fn keep(
        self,
        io: Io,
        identity: Identity,
        age: Duration,
        grace: Duration,
        server: impl Serve,
    ) {
        let Some(permit) = self.rooms.enter(&identity) else {
            return;
        };
        let age = lifetime(age, identity.valid_until, SystemTime::now());
        let cut = self.shutdown.cut.child_token();
        let metrics = self.rooms.metrics();
        let connection = Connection::new(io, identity, permit, metrics, cut.clone());
        let (begun, closed) = (self.shutdown.begun.clone(), connection.closed());
        let leave = leave(age, begun, closed);
        let mut served = pin!(server.serve(connection, leave));
        if timeout(age.saturating_add(grace), &mut served)
            .await
            .is_err()
        {
            cut.cancel();
            let _cut = timeout(bounds::CUT_PAUSE, served).await;
        }
    }
}

async fn leave(age: Duration, begun: CancellationToken, closed: CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(age) => {}
        () = begun.cancelled() => {}
        () = closed.cancelled() => {}
    }
}

/// How old a connection may become: about `age`, and less than its certificate has left.
fn lifetime(age: Duration, valid_until: Option<SystemTime>, now: SystemTime) -> Duration {
    // Only a spread: no randomness would spread nothing, which is no danger.
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    let age = age.mul_f64(0.9 + 0.2 * f64::from(random) / f64::from(u32::MAX));
    match valid_until {
        Some(until) => {
            let left = until.duration_since(now).unwrap_or_default();
            age.min(left.mul_f64(bounds::CERTIFICATE_USED))
        }
        None => age,
    }
}

/// A stream of one connection that never ends: the server would take its end for a shutdown.
pub fn only(
    connection: Connection,
) -> impl futures::Stream<Item = std::io::Result<Connection>> + Send {
    futures::stream::once(async move { Ok(connection) }).chain(futures::stream::pending())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_leaves_about_its_age_and_before_its_certificate_expires() {
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        let ages: Vec<_> = (0..100).map(|_| lifetime(hour, None, now)).collect();
        let (least, most) = (ages.iter().min().unwrap(), ages.iter().max().unwrap());
        assert!(*least >= hour.mul_f64(0.9) && *most <= hour.mul_f64(1.1));
        assert!(
            *most - *least > Duration::from_secs(60),
            "{least:?} {most:?}"
        );
        let soon = Duration::from_secs(5);
        assert!(lifetime(hour, Some(now + soon), now) < soon);
        assert_eq!(lifetime(hour, Some(now - soon), now), Duration::ZERO);
        assert!(lifetime(hour, Some(now + 9 * hour), now) > hour / 2);
    }
}
