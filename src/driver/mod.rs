//! The one task that owns the machine: batch → step → journal → release effects, with bounded workers per kind of
//! effect. [`Handle`] is the only door.
//!
//! ```text
//! Handle ─▶ inbox (claims | others) ─┐             ┌─▶ journal thread ─▶ Durable(ticket) ─┐
//! workers, runtime, timer ─▶ events ─┴▶ Node::step ┤                                      ▼
//!                                                  └─▶ effects ──▶ gate (after ticket) ─▶ replies, workers, watchers
//! ```
//! One batch has one `now`, one ticket and at most one append. While batches are being committed the next ones are
//! gathered; at [`BATCHES_IN_FLIGHT`] the driver takes nothing new until the journal has caught up.

mod clock;
mod flight;
mod gate;
mod golden;
mod guests;
mod handle;
mod inbox;
mod memory;
mod metrics;
mod network;
#[path = "policies/metrics.rs"]
mod policies;
mod ready;
mod residency;
mod shift;
mod sink;
mod tell;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tier_fakes;
mod turn;
mod visits;
mod watch;
mod work;

pub use clock::{BootClock, Clock};
pub use handle::{Answered, ClaimChange, ClaimWatch, Handle, Timings};
pub use memory::{Charge, MemoryLook, NodeMemory, ReadZram, Zram};
pub use network::NodeNetwork;
pub use turn::Driver;
pub use visits::{Visit, Visits};

// What rpc and admin see of the rooms behind the driver.
pub use crate::cgroup::Usage;
pub use crate::guest::{
    Guest, GuestError, GuestStream, Personalization, RunItem, Silence, StreamInput, StreamItem,
    v1 as guest_v1,
};
pub use crate::machine::view::Phase;
pub use crate::net::NetReport;
pub use crate::runtime::{Handler, ImageInfo, ImageProgress, RuntimeError, Versions};

use crate::guest::GuestConnector;
use crate::journal::{Journal, JournalEvent};
use crate::machine::node::Node;
use crate::runtime::{Runtime, RuntimeEvent};
use prometheus::Registry;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Batches handed to the journal and not durable yet, at most.
const BATCHES_IN_FLIGHT: usize = 4;
/// Events of workers and of the runtime that wait for the driver; a worker that finds it full waits.
const EVENTS: usize = 1024;
/// Notices that a listener may lag behind; it loses the older ones.
const NOTICES: usize = 256;
/// What is persisted lazily is committed on its own after this long.
const LAZY_COMMIT: Duration = Duration::from_millis(200);

/// What a driver is built from, by `app`.
pub struct Parts {
    /// As recovered from the journal's records.
    pub node: Node,
    /// To append to.
    pub journal: Box<dyn Journal>,
    /// What the journal tells.
    pub journal_events: mpsc::Receiver<JournalEvent>,
    /// The container runtime.
    pub runtime: Arc<dyn Runtime>,
    /// What happens there by itself.
    pub runtime_events: mpsc::Receiver<RuntimeEvent>,
    /// The network of sandboxes.
    pub network: NodeNetwork,
    /// Opens guest channels.
    pub connector: Arc<dyn GuestConnector>,
    /// What sandboxes take of the node's memory, for those who ask. `None`: nothing real is underneath.
    pub memory: Option<Arc<NodeMemory>>,
    /// Frozen sandboxes' memory is reclaimed.
    pub reclaim: bool,
    /// Members are cloned from golden images where that is faster.
    pub golden: bool,
    /// hearth time.
    pub clock: Arc<dyn Clock>,
    /// Different at every start: tells resume tokens of watches apart.
    pub start_nonce: u64,
}

/// Builds the driver and its door. The driver does nothing before it [runs](Driver::run_until_stopped).
///
/// # Errors
/// A metric of the driver is registered already.
pub fn build(parts: Parts, registry: &Registry) -> Result<(Driver, Handle), prometheus::Error> {
    turn::build(parts, registry)
}
