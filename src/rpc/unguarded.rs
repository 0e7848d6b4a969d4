//! For tests of what is behind the services: the services themselves, without sockets, admission and deadlines.

pub use super::claims::ClaimsService;
pub use super::node::NodeService;
pub use super::pools::PoolsService;
pub use super::sandboxes::SandboxesService;

use super::caller::{Caller, Right};
use super::config::RpcConfig;
use super::core::Core;
use super::door::Door;
use super::key::NodeKey;
use super::metrics::Metrics;
use super::places::Places;
use crate::driver::Handle;
use crate::identity::{self, Audit, AuditConfig, Policy, Roles};
use bytes::{BufMut, Bytes, BytesMut};
use http_body::Frame;
use prometheus::Registry;
use prost::Message;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::Semaphore;
use tonic::codec::Codec;
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

/// The services on one driver.
pub struct Services {
    /// Claims.
    pub claims: ClaimsService,
    /// Pools.
    pub pools: PoolsService,
    /// Node.
    pub node: NodeService,
    /// Sandboxes.
    pub sandboxes: SandboxesService,
    audit: Audit,
}

/// Who calls.
pub enum By<'a> {
    /// An allocator of this name.
    Allocator(&'a str),
    /// An admin.
    Admin,
    /// Whoever holds this access token.
    Token(&'a str),
}

/// A client's stream of one message, which stays open.
pub fn stream_of<T: Message + Default + 'static>(message: &T) -> Streaming<T> {
    let data = message.encode_to_vec();
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(data.len()).unwrap());
    frame.put_slice(&data);
    let decoder = ProstCodec::<T, T>::default().decoder();
    Streaming::new_request(decoder, OneFrame(Some(frame.freeze())), None, None)
}

struct OneFrame(Option<Bytes>);

impl http_body::Body for OneFrame {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0.take() {
            Some(frame) => Poll::Ready(Some(Ok(Frame::data(frame)))),
            None => Poll::Pending,
        }
    }
}

impl Services {
    /// On this driver.
    pub fn new(handle: Handle, config: RpcConfig, registry: &Registry) -> Self {
        let door: Arc<dyn Door> = Arc::new(handle);
        let metrics = Metrics::register(registry).unwrap();
        let core = Arc::new(Core {
            door,
            key: NodeKey::new(&config.node_key),
            places: Places::new(config.limits.streams_per_sandbox, metrics.clone()),
            transfers: Arc::new(Semaphore::new(1)),
            config,
            metrics,
        });
        let config = AuditConfig {
            file: None,
            max_bytes: 1,
        };
        // Nobody writes: what is to be written is lost, and counted as such.
        let metrics = identity::Metrics::register(registry).unwrap();
        let (audit, _writer) = Audit::open(config, metrics).unwrap();
        Self {
            claims: ClaimsService(Arc::clone(&core)),
            pools: PoolsService(Arc::clone(&core)),
            node: NodeService(Arc::clone(&core)),
            sandboxes: SandboxesService(core),
            audit,
        }
    }

    /// A message as of a caller that was admitted.
    pub fn asked<T>(&self, by: By<'_>, message: T) -> Request<T> {
        let (name, right) = match by {
            By::Allocator(name) => (name, Right::Role(Roles::ALLOCATOR)),
            By::Admin => ("admin", Right::Role(Roles::ADMIN)),
            By::Token(token) => ("holder", Right::Token(token.into())),
        };
        let identity = identity::Identity {
            name: name.into(),
            ..Policy::default().user(None)
        };
        let mut request = Request::new(message);
        request.extensions_mut().insert(Caller {
            name: name.into(),
            right,
            trail: self.audit.trail(&identity, "Simulated", ""),
        });
        request
    }
}
