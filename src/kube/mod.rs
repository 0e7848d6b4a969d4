//! What hearthd asks and tells the Kubernetes API, where the configuration says so.
//!
//! ```text
//! client (deadlines) ─▶ follow (watch, kept while the server is away) ─▶ node, runtimeclass ─▶ driver::Handle
//! driver::Handle (phase, pools, notices) ─▶ node (label, taint), events
//! ```
//! Nothing that a claim needs waits for it: the API server may be away at the start, at the end and for any time in
//! between. What was known last stays in force, and is brought up to date when it is back.
//!
//! `client` and `follow` are the foundation; a room of its own is each thing that is built on them.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admission;
mod backoff;
mod client;
mod follow;
mod metrics;
pub mod warmpool;

pub use backoff::Backoff;
pub use client::{CallError, ClientError, Kube, Settings};
pub use follow::{Follow, Followed, Objects, follow};
pub use metrics::Metrics;

use crate::driver::Handle;
use crate::machine::admission::Rules;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long hearthd's end waits for the API server.
const LAST_CALL: Duration = Duration::from_secs(1);

/// How pools and the cluster go together. From the configuration, by `app`.
pub struct Pools {
    /// Pools are kept as WarmPool objects say, by SetPools' rules; `None`: they are not.
    pub warm_pools: Option<warmpool::Check>,
    /// Which pools the cluster is asked about, and whether at all.
    pub rules: Rules,
    /// How soon it is asked about the same template again.
    pub ask_again: Duration,
    /// Of asking.
    pub metrics: admission::Metrics,
}

/// Everything of this room that runs. Built by `app`.
pub struct Running {
    kube: Kube,
    stop: CancellationToken,
}

impl Running {
    /// Begins with what must be said before the node is touched. Must be called inside the tokio runtime.
    #[must_use]
    pub fn begin(kube: Kube) -> Self {
        let stop = CancellationToken::new();
        Self { kube, stop }
    }

    /// Begins all the rest: the driver is there. Once.
    pub fn serve(&self, handle: &Handle) {
        let _ = (&self.kube, handle);
    }

    /// Begins to keep the pools of WarmPool objects, and to ask the cluster about templates. Once, after the driver is there.
    pub fn serve_pools(&self, handle: &Handle, pools: Pools) {
        let (kube, stop) = (&self.kube, &self.stop);
        let unasked =
            admission::judge(kube, handle, pools.rules, pools.ask_again, pools.metrics, stop);
        if let Some(check) = pools.warm_pools {
            warmpool::keep(kube, handle, check, unasked, stop);
        }
    }

    /// Ends it. Takes [`LAST_CALL`] at most.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ = tokio::time::timeout(LAST_CALL, async {}).await;
    }
}
