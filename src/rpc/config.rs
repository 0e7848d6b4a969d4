//! What the API is built with. Made by `app` from the daemon's configuration and what it found.

use super::tcp::Tcp;
use crate::identity;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Everything [`super::serve()`] must be told.
#[derive(Clone)]
pub struct RpcConfig {
    /// The data directory's key, for tokens and digests.
    pub node_key: [u8; 32],
    /// Where callers reach Sandboxes, for example "unix:///run/hearth/hearth.sock"; told with every claim.
    pub endpoints: Vec<String>,
    /// Version of hearthd.
    pub version: String,
    /// Tag of the data directory.
    pub node_tag: crate::machine::ids::NodeTag,
    /// When hearthd started.
    pub started_at: SystemTime,
    /// Most sandboxes the node takes.
    pub max_sandboxes: u32,
    /// 1 or 2.
    pub cgroup_version: u32,
    /// Bounds that the operator sets.
    pub limits: RpcLimits,
}

/// Where the API is served.
pub struct Listeners {
    /// The Unix socket, made by [`super::bind`].
    pub unix: tokio::net::UnixListener,
    /// TCP with TLS.
    pub tcp: Option<Tcp>,
}

/// Who may call, and what is written down of it.
#[derive(Clone)]
pub struct Guard {
    /// Names to roles.
    pub policy: Arc<identity::Policy>,
    /// The audit log.
    pub audit: identity::Audit,
    /// Bound of calls per caller.
    pub limiter: Arc<identity::Limiter>,
    /// Who says whose a ServiceAccount token is and what its owner may do; `None`: such tokens are not taken.
    pub reviewer: Option<Arc<identity::Reviewer>>,
    /// Identity's metrics.
    pub metrics: identity::Metrics,
}

/// Bounds that the operator sets (configuration section `limits`).
#[derive(Debug, Clone)]
pub struct RpcLimits {
    /// Executions, files and connections open in one sandbox.
    pub streams_per_sandbox: usize,
    /// Largest image archive, bytes.
    pub image_import_bytes: u64,
    /// Directory of archives on their way in, below the data directory. Made if missing, cleared at start.
    pub import_dir: PathBuf,
    /// Bytes of its file system that an import leaves free: the journal lives there too.
    pub disk_reserve_bytes: u64,
    /// From the shutdown's begin until streams are ended and calls in flight are refused.
    pub shutdown: Duration,
}

/// Without the key.
impl std::fmt::Debug for RpcConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RpcConfig")
            .field("endpoints", &self.endpoints)
            .field("version", &self.version)
            .field("node_tag", &self.node_tag)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
