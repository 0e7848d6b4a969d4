//! The host's side of the guest channel, over the stdio FIFOs of a sandbox.
//!
//! ```text
//!  callers ──▶ client ──bounded──▶ conversation (one task per sandbox)        FIFOs
//!                                   ├ alignment | session  ◀── records ──── stdout
//!                                   ├ calls ─ call ─ stream ┬ outlet ──▶ owner
//!                                   │                       └ inlet  ◀── owner
//!                                   ├ writer ─ outgoing ──── records ──▶ stdin
//!                                   └ log    ◀──────────────── lines ──── stderr
//! ```
//!
//! Owns: the host's descriptors of the FIFOs, sessions, calls in flight, credit. Never: waits for an owner of a stream,
//! trusts a byte of the guest, decides what becomes of a sandbox. A guest that breaks the protocol fails its own channel
//! only; one that is merely silent fails its calls.

mod alignment;
mod answers;
mod call;
mod calls;
mod client;
mod conversation;
mod fifos;
mod inlet;
mod limits;
mod log;
mod metrics;
mod openings;
mod outgoing;
mod outlet;
mod pace;
mod run;
mod session;
mod stream;
mod text;
mod writer;

#[cfg(test)]
mod fakes;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
#[cfg(test)]
mod tests;

pub use metrics::GuestMetrics;

use super::{Guest, GuestConnector, GuestError};
use crate::runtime::StdioPaths;
use client::FifoGuest;
use conversation::{Conversation, Parts};
use fifos::Fifos;
use limits::{SHORT_CALLS, START_DEADLINE, STREAMS};
use openings::{Opening, Openings};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Bounds of one channel that `app` may set.
#[derive(Debug, Clone, Copy)]
pub struct ChannelConfig {
    /// Streams (exec, files, connections) in flight in one sandbox; one more gets [`GuestError::Limit`].
    pub streams: usize,
    /// How long a stream may take to start.
    pub start_deadline: Duration,
}

impl Default for ChannelConfig {
    fn default() -> Self {
        Self {
            streams: STREAMS,
            start_deadline: START_DEADLINE,
        }
    }
}

/// Opens channels over FIFOs.
#[derive(Debug, Clone)]
pub struct FifoConnector {
    runtime: Handle,
    config: ChannelConfig,
    metrics: GuestMetrics,
    openings: Openings,
}

impl FifoConnector {
    /// Tasks are spawned on `runtime`. Called once, by `app`.
    #[must_use]
    pub fn new(runtime: Handle, config: ChannelConfig, metrics: GuestMetrics) -> Self {
        Self {
            runtime,
            config,
            metrics,
            openings: Openings::default(),
        }
    }
}

/// The id of a sandbox, as the directory of its FIFOs is named.
fn sandbox_of(stdio: &StdioPaths) -> String {
    let directory = stdio.stdin.parent().and_then(|parent| parent.file_name());
    directory.map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

impl GuestConnector for FifoConnector {
    /// A channel that is still open on the same FIFOs is closed first: its calls get [`GuestError::Closed`].
    fn connect(&self, stdio: &StdioPaths) -> Result<Arc<dyn Guest>, io::Error> {
        let _in_runtime = self.runtime.enter();
        let (to_task, commands) = mpsc::channel(SHORT_CALLS + self.config.streams);
        let (end, ended) = watch::channel(None::<GuestError>);
        let close = CancellationToken::new();
        let conversation = Conversation::new(Parts {
            sandbox: sandbox_of(stdio),
            fifos: Fifos::open(stdio)?,
            commands,
            close: close.clone(),
            end,
            metrics: self.metrics.clone(),
        })?;
        let opening = Opening {
            close: close.clone(),
            ended: ended.clone(),
        };
        let (path, openings) = (stdio.stdin.clone(), self.openings.clone());
        let before = openings.replace(path.clone(), opening.clone());
        self.runtime.spawn(async move {
            if let Some(before) = before {
                before.closed().await;
            }
            conversation.run().await;
            openings.forget(&path, &opening);
        });
        let guest = FifoGuest::new(to_task, close, ended, self.config, self.metrics.clone());
        Ok(Arc::new(guest))
    }
}
