//! The open guest channels, one a sandbox. Opened when a sandbox is made or asked for, closed before it is destroyed.

use crate::guest::{Guest, GuestConnector, GuestError};
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

type Channels = Arc<Mutex<BTreeMap<SandboxId, Open>>>;

fn lock(channels: &Channels) -> MutexGuard<'_, BTreeMap<SandboxId, Open>> {
    // A panic in between leaves the map whole: every change to it is one call.
    channels.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for the end of one channel. A guest that broke the protocol has lost its sandbox; a channel that merely ended is
/// opened anew by whoever needs it next.
async fn watch(
    id: SandboxId,
    guest: Arc<dyn Guest>,
    channels: Channels,
    events: mpsc::Sender<Event>,
) {
    match guest.failed().await {
        GuestError::Closed => {
            let mut open = lock(&channels);
            if open
                .get(&id)
                .is_some_and(|it| Arc::ptr_eq(&it.guest, &guest))
            {
                open.remove(&id);
            }
        }
        error => {
            warn!(sandbox = %id, %error, "guest channel failed");
            // The driver is gone only when hearthd ends.
            let _ended = events.send(Event::Ended(id, ExitCause::GuestLost)).await;
        }
    }
}

/// All channels of the node.
pub(super) struct Guests {
    runtime: Arc<dyn Runtime>,
    connector: Arc<dyn GuestConnector>,
    events: mpsc::Sender<Event>,
    open: Channels,
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
            open: Channels::default(),
        }
    }

    /// The channel of a sandbox, opened if need be. Must run inside the tokio runtime.
    pub(super) fn open(&self, id: SandboxId) -> std::io::Result<Arc<dyn Guest>> {
        let mut open = lock(&self.open);
        if let Some(known) = open.get(&id) {
            return Ok(known.guest.clone());
        }
        let guest = self.connector.connect(&self.runtime.stdio(id))?;
        let sentry = tokio::spawn(watch(
            id,
            guest.clone(),
            self.open.clone(),
            self.events.clone(),
        ));
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
        let closed = lock(&self.open).remove(&id);
        if closed.is_some() {
            debug!(sandbox = %id, "guest channel closed");
        }
    }

    /// How many are open, for the metric.
    pub(super) fn count(&self) -> usize {
        lock(&self.open).len()
    }
}
