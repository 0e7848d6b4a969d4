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

mod backoff;
mod client;
mod follow;
mod metrics;

pub use backoff::Backoff;
pub use client::{CallError, ClientError, Kube, Settings};
pub use follow::{Follow, Followed, Objects, follow};
pub use metrics::Metrics;

use crate::driver::Handle;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long hearthd's end waits for the API server.
const LAST_CALL: Duration = Duration::from_secs(1);

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

    /// Ends it. Takes [`LAST_CALL`] at most.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ = tokio::time::timeout(LAST_CALL, async {}).await;
    }
}
