//! Who is inside: streams that callers have open in sandboxes. A sandbox with one is never frozen by hearth's own
//! decision.

use crate::machine::ids::SandboxId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Streams open in each sandbox; an entry of 0 lasts until the next look.
type Counts = Arc<Mutex<BTreeMap<SandboxId, usize>>>;

fn lock(counts: &Counts) -> MutexGuard<'_, BTreeMap<SandboxId, usize>> {
    // A count is never left half changed.
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All visits of the node.
#[derive(Debug, Clone, Default)]
pub struct Visits {
    counts: Counts,
}

/// One open stream. Dropping it ends the visit.
#[derive(Debug)]
pub struct Visit {
    counts: Counts,
    sandbox: SandboxId,
}

impl Visits {
    /// A stream is opened.
    #[must_use]
    pub fn begin(&self, sandbox: SandboxId) -> Visit {
        *lock(&self.counts).entry(sandbox).or_default() += 1;
        Visit {
            counts: self.counts.clone(),
            sandbox,
        }
    }

    /// Whether somebody is inside, or was since the last look.
    pub(super) fn look(&self, sandbox: SandboxId) -> bool {
        let mut counts = lock(&self.counts);
        match counts.get(&sandbox) {
            None => return false,
            Some(0) => drop(counts.remove(&sandbox)),
            Some(_) => {}
        }
        true
    }

    /// The sandbox is gone.
    pub(super) fn forget(&self, sandbox: SandboxId) {
        lock(&self.counts).remove(&sandbox);
    }
}

impl Visit {
    /// Of which sandbox.
    #[must_use]
    pub fn sandbox(&self) -> SandboxId {
        self.sandbox
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Some(count) = lock(&self.counts).get_mut(&self.sandbox) {
            *count = count.saturating_sub(1);
        }
    }
}
