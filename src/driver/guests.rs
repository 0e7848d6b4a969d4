//! The open guest channels, one a sandbox. Opened when a sandbox is made or asked for, closed before it is destroyed.

use crate::guest::{Guest, GuestConnector};
use crate::machine::event::{Event, ExitCause};
use crate::machine::ids::SandboxId;
use crate::runtime::Runtime;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tracing::{debug, warn};

struct Open {
    guest: Arc<dyn Guest>,
    /// Waits for the channel to fail.
    sentry: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.sentry.abort();
        self.guest.close();
    }
}

/// All channels of the node.
pub(super) struct Guests {
    runtime: Arc<dyn Runtime>,
    connector: Arc<dyn GuestConnector>,
    events: mpsc::Sender<Event>,
    open: Mutex<BTreeMap<SandboxId, Open>>,
}

impl Guests {
    pub(super) fn new(
        runtime: Arc<dyn Runtime>,
        connector: Arc<dyn GuestConnector>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self {
            runtime,
            connector,
            events,
            open: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SandboxId, Open>> {
        // A panic in between leaves the map whole: every change to it is one call.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The channel of a sandbox, opened if need be. Must run inside the tokio runtime.
    pub(super) fn open(&self, id: SandboxId) -> std::io::Result<Arc<dyn Guest>> {
        let mut open = self.lock();
        if let Some(known) = open.get(&id) {
            return Ok(known.guest.clone());
        }
        let guest = self.connector.connect(&self.runtime.stdio(id))?;
        let events = self.events.clone();
        let watched = guest.clone();
        let sentry = tokio::spawn(async move {
            let error = watched.failed().await;
            warn!(sandbox = %id, %error, "guest channel failed");
            // The driver is gone only when hearthd ends.
            let _ended = events.send(Event::Ended(id, ExitCause::GuestLost)).await;
        });
        let sentry = sentry.abort_handle();
        open.insert(
            id,
            Open {
                guest: guest.clone(),
                sentry,
            },
        );
        Ok(guest)
    }

    /// Closes the channel of a sandbox that is to be destroyed or has ended; calls in flight get `Closed`.
    pub(super) fn close(&self, id: SandboxId) {
        let closed = self.lock().remove(&id);
        if closed.is_some() {
            debug!(sandbox = %id, "guest channel closed");
        }
    }

    /// How many are open, for the metric.
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }
}
