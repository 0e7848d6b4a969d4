//! Which channels are open in this process: two readers of one FIFO would steal each other's bytes, so a new channel
//! closes the one before it and waits until that has let go.

use super::limits::LETTING_GO;
use crate::guest::GuestError;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// One channel's handle for its successor.
#[derive(Debug, Clone)]
pub(super) struct Opening {
    pub(super) close: CancellationToken,
    pub(super) ended: watch::Receiver<Option<GuestError>>,
}

impl Opening {
    /// Until it reads and writes no more. Bounded: only a stuck worker thread takes longer than a turn.
    pub(super) async fn closed(mut self) {
        self.close.cancel();
        let ended = self.ended.wait_for(Option::is_some);
        if tokio::time::timeout(LETTING_GO, ended).await.is_err() {
            tracing::warn!("the channel before this one does not let go of its FIFOs");
        }
    }
}

/// The open channels, by the path of their stdin. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Openings(Arc<Mutex<BTreeMap<PathBuf, Opening>>>);

impl Openings {
    fn locked(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Opening>> {
        // Nothing in here panics halfway.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a new channel; the one before it, if that is still noted.
    pub(super) fn replace(&self, path: PathBuf, opening: Opening) -> Option<Opening> {
        self.locked().insert(path, opening)
    }

    /// Forgets a channel that has ended, unless it was replaced.
    pub(super) fn forget(&self, path: &PathBuf, ended: &Opening) {
        let mut open = self.locked();
        let is_same = |opening: &Opening| opening.ended.same_channel(&ended.ended);
        if open.get(path).is_some_and(is_same) {
            open.remove(path);
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.locked().len()
    }
}
