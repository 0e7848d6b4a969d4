//! For tests of what is behind the services: the services themselves, without sockets, admission and deadlines.

pub use super::claims::ClaimsService;
pub use super::node::NodeService;
pub use super::pools::PoolsService;

use super::caller::{Caller, Right};
use super::config::RpcConfig;
use super::core::Core;
use super::door::Door;
use super::key::NodeKey;
use super::metrics::Metrics;
use super::places::Places;
use crate::driver::Handle;
use crate::identity::{self, Audit, AuditConfig, Policy, Roles};
use prometheus::Registry;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tonic::Request;

/// The services on one driver.
pub struct Services {
    /// Claims.
    pub claims: ClaimsService,
    /// Pools.
    pub pools: PoolsService,
    /// Node.
    pub node: NodeService,
    audit: Audit,
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
            node: NodeService(core),
            audit,
        }
    }

    /// A message as of a caller that was admitted under this name: an allocator, or an admin.
    pub fn asked<T>(&self, name: &str, admin: bool, message: T) -> Request<T> {
        let identity = identity::Identity {
            name: name.into(),
            ..Policy::default().user(None)
        };
        let roles = match admin {
            true => Roles::ADMIN,
            false => Roles::ALLOCATOR,
        };
        let mut request = Request::new(message);
        request.extensions_mut().insert(Caller {
            name: name.into(),
            right: Right::Role(roles),
            trail: self.audit.trail(&identity, "Simulated", ""),
        });
        request
    }
}
