//! What is due when.

use super::ids::{ClaimId, Now, RequestId, SandboxId};
use std::collections::BTreeSet;

/// What falls due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The claim expires.
    Expire(ClaimId),
    /// A request's wait for a member ends.
    Wait(ClaimId, RequestId),
    /// A failed destruction is tried again.
    Destroy(SandboxId),
    /// A silent guest is asked again.
    Witness(SandboxId),
    /// The runtime is listed again.
    Relist,
    /// hearth may begin freezes again.
    FreezeAgain,
    /// The drain's deadline.
    Drain,
    /// The drain tries again to send a sandbox to the disk.
    DrainSink,
    /// What sandboxes use is looked at again.
    Sample,
    /// What came in for sandboxes that sleep is looked at again.
    Listen,
    /// A frozen sandbox goes to the disk.
    Sink,
    /// Some pool's pause has ended: creations may start.
    Refill,
    /// Refill has stepped aside for claims long enough.
    Quiet,
}

/// Timers in the order they fall due. Whoever sets one knows when it is due, and clears exactly that.
#[derive(Debug, Clone, Default)]
pub(super) struct Timers {
    due: BTreeSet<(Now, Timer)>,
}

impl Timers {
    pub(super) fn set(&mut self, at: Now, timer: Timer) {
        self.due.insert((at, timer));
    }

    pub(super) fn clear(&mut self, at: Now, timer: Timer) {
        self.due.remove(&(at, timer));
    }

    /// Has a timer be due at `wanted` and at no other time. `held`: when it is due so far, kept by whoever it is for.
    pub(super) fn keep(&mut self, timer: Timer, held: &mut Option<Now>, wanted: Option<Now>) {
        if *held == wanted {
            return;
        }
        if let Some(at) = held.take() {
            self.clear(at, timer);
        }
        if let Some(at) = wanted {
            self.set(at, timer);
        }
        *held = wanted;
    }

    /// Takes the earliest timer that is due.
    pub(super) fn pop_due(&mut self, now: Now) -> Option<Timer> {
        let first = *self.due.first().filter(|(at, _)| *at <= now)?;
        self.due.remove(&first);
        Some(first.1)
    }

    pub(super) fn next(&self) -> Option<Now> {
        self.due.first().map(|(at, _)| *at)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(Now, Timer)> {
        self.due.iter()
    }
}
