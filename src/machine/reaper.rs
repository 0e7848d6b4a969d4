//! What is to be destroyed: recorded sandboxes that are releasing, and orphans.

use super::ids::{Now, SandboxId};
use super::limits::{DESTROY_RETRY_MAX_MS, DESTROY_RETRY_MS, NODE_PARALLEL_DESTROYS};
use std::collections::{BTreeMap, VecDeque};

/// How far a destruction is; `tries` have failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destruction {
    Ready { tries: u32 },
    InFlight { tries: u32 },
    Resting { tries: u32, until: Now },
}

/// First come first served, [`NODE_PARALLEL_DESTROYS`] at once. What fails rests and is tried again, for ever.
#[derive(Debug, Clone, Default)]
pub(super) struct Reaper {
    doomed: BTreeMap<SandboxId, Destruction>,
    ready: VecDeque<SandboxId>,
    in_flight: usize,
}

impl Reaper {
    /// Takes a sandbox over. False: it already has it.
    pub(super) fn add(&mut self, id: SandboxId) -> bool {
        if self.doomed.contains_key(&id) {
            return false;
        }
        self.make_ready(id, 0);
        true
    }

    /// The next to be destroyed, if one more may be in flight.
    pub(super) fn start(&mut self) -> Option<SandboxId> {
        if self.in_flight >= NODE_PARALLEL_DESTROYS {
            return None;
        }
        let id = self.ready.pop_front()?;
        let tries = self.tries(id);
        self.doomed.insert(id, Destruction::InFlight { tries });
        self.in_flight += 1;
        Some(id)
    }

    /// Nothing is left of it. False: no such destruction was in flight.
    pub(super) fn succeeded(&mut self, id: SandboxId) -> bool {
        let known = self.land(id);
        if known {
            self.doomed.remove(&id);
        }
        known
    }

    /// It is not known to be gone. Answers when to try again; `None`: no such destruction was in flight.
    pub(super) fn failed(&mut self, id: SandboxId, now: Now) -> Option<Now> {
        if !self.land(id) {
            return None;
        }
        let tries = self.tries(id).saturating_add(1);
        let until = now.plus(back_off(DESTROY_RETRY_MS, DESTROY_RETRY_MAX_MS, tries));
        let resting = Destruction::Resting { tries, until };
        self.doomed.insert(id, resting);
        Some(until)
    }

    /// Its rest is over.
    pub(super) fn rested(&mut self, id: SandboxId) {
        if let Some(Destruction::Resting { tries, .. }) = self.doomed.get(&id) {
            self.make_ready(id, *tries);
        }
    }

    pub(super) fn has(&self, id: SandboxId) -> bool {
        self.doomed.contains_key(&id)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SandboxId, Destruction)> {
        self.doomed.iter().map(|(id, state)| (*id, *state))
    }

    /// The queue and the count are what counting anew gives.
    pub(super) fn is_sound(&self) -> bool {
        let states = || self.doomed.values();
        let ready = states().filter(|s| matches!(s, Destruction::Ready { .. }));
        let flying = states().filter(|s| matches!(s, Destruction::InFlight { .. }));
        let is_ready = |id| matches!(self.doomed.get(id), Some(Destruction::Ready { .. }));
        ready.count() == self.ready.len()
            && self.ready.iter().all(is_ready)
            && flying.count() == self.in_flight
            && self.in_flight <= NODE_PARALLEL_DESTROYS
    }

    fn make_ready(&mut self, id: SandboxId, tries: u32) {
        self.doomed.insert(id, Destruction::Ready { tries });
        self.ready.push_back(id);
    }

    fn land(&mut self, id: SandboxId) -> bool {
        let flying = matches!(self.doomed.get(&id), Some(Destruction::InFlight { .. }));
        self.in_flight -= usize::from(flying);
        flying
    }

    fn tries(&self, id: SandboxId) -> u32 {
        match self.doomed.get(&id) {
            Some(
                Destruction::Ready { tries }
                | Destruction::InFlight { tries }
                | Destruction::Resting { tries, .. },
            ) => *tries,
            None => 0,
        }
    }
}

/// The pause after so many failures in a row: doubles from `first_ms` to `max_ms`.
pub(super) fn back_off(first_ms: u64, max_ms: u64, failures: u32) -> u64 {
    let doublings = failures.saturating_sub(1).min(63);
    first_ms.saturating_mul(1 << doublings).min(max_ms)
}
