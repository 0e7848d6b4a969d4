//! The claims that wait for a pool's members. Callers take turns; one caller's claims are served first come first served.
//!
//! Start-time fair queueing with one claim as the unit: a claim's turn is that of its caller's claim before it plus one,
//! but never before the turn that is being served. So a caller with one claim comes next, however many another one has
//! waiting. A full queue takes a claim of a caller with fewer in it at the cost of the newest one of who has most.

use super::ids::ClaimId;
use super::limits::{RETRY_MS, WAITERS_PER_POOL};
use super::refusal::Refusal;
use super::spec::OnEmpty;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Debug, Clone)]
struct Waiter {
    claim: ClaimId,
    by: Arc<str>,
    turn: u64,
}

/// What one caller has waiting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Share {
    waiting: usize,
    /// Of its next claim, if nothing else is served before.
    next_turn: u64,
}

/// See the module. A cold claim waits for its own creation to begin, and takes a member that becomes warm before that.
#[derive(Debug, Clone, Default)]
pub(super) struct Queue {
    /// By place, which rises with arrival.
    places: BTreeMap<u64, Waiter>,
    /// (turn, place): the order in which they are served.
    order: BTreeSet<(u64, u64)>,
    /// The cold ones of them.
    cold: BTreeSet<(u64, u64)>,
    /// Of those with something waiting.
    shares: BTreeMap<Arc<str>, Share>,
    /// The turn that is being served.
    turn: u64,
    /// The highest place that was ever taken here.
    newest: u64,
}

impl Queue {
    /// Waits at a place. One that comes back to its old place is served next.
    pub(super) fn enter(&mut self, place: u64, claim: ClaimId, by: Arc<str>, on_empty: OnEmpty) {
        let share = self.shares.entry(by.clone()).or_default();
        share.waiting += 1;
        let turn = match place > self.newest {
            true => {
                let turn = share.next_turn.max(self.turn);
                share.next_turn = turn + 1;
                turn
            }
            false => 0,
        };
        self.newest = self.newest.max(place);
        self.order.insert((turn, place));
        if on_empty == OnEmpty::Cold {
            self.cold.insert((turn, place));
        }
        self.places.insert(place, Waiter { claim, by, turn });
    }

    /// It is served, or waits no longer.
    pub(super) fn leave(&mut self, place: u64) {
        let Some(Waiter { by, turn, .. }) = self.places.remove(&place) else {
            return;
        };
        if self.order.first() == Some(&(turn, place)) {
            self.turn = self.turn.max(turn);
        }
        self.order.remove(&(turn, place));
        self.cold.remove(&(turn, place));
        if let Some(share) = self.shares.get_mut(&by) {
            share.waiting -= 1;
            if share.waiting == 0 {
                self.shares.remove(&by);
            }
        }
    }

    fn at(&self, place: (u64, u64)) -> Option<ClaimId> {
        self.places.get(&place.1).map(|it| it.claim)
    }

    /// Who is next.
    pub(super) fn first(&self) -> Option<ClaimId> {
        self.at(*self.order.first()?)
    }

    /// The cold claim that is next.
    pub(super) fn first_cold(&self) -> Option<ClaimId> {
        self.at(*self.cold.first()?)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn cold_len(&self) -> usize {
        self.cold.len()
    }

    /// Those that only a refill can serve.
    pub(super) fn waiters(&self) -> usize {
        self.len() - self.cold_len()
    }

    /// By arrival.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, ClaimId)> {
        self.places.iter().map(|(place, it)| (*place, it.claim))
    }

    /// Cold claims, in their order.
    pub(super) fn cold(&self) -> Vec<ClaimId> {
        let cold = self.cold.iter().filter_map(|place| self.at(*place));
        cold.collect()
    }

    /// Room for one more of this caller? `Some`: if that one goes.
    pub(super) fn room_for(&self, by: &Arc<str>) -> Result<Option<ClaimId>, Refusal> {
        if self.len() < WAITERS_PER_POOL {
            return Ok(None);
        }
        let mine = self.shares.get(by).map_or(0, |it| it.waiting);
        let most = self.shares.iter().max_by_key(|(_, it)| it.waiting);
        let goes = most.filter(|(_, share)| share.waiting > mine + 1);
        let newest = goes.and_then(|(whose, _)| {
            let mut theirs = self.places.values().rev();
            theirs.find(|it| it.by == *whose).map(|it| it.claim)
        });
        newest.map(Some).ok_or_else(full)
    }

    /// What is counted is what there is. For the invariants.
    pub(super) fn is_sound(&self) -> bool {
        let mut waiting: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
        for it in self.places.values() {
            *waiting.entry(&it.by).or_default() += 1;
        }
        let counted = self.shares.iter().map(|(by, it)| (by, it.waiting));
        let placed = self.places.iter().map(|(place, it)| (it.turn, *place));
        counted.eq(waiting) && placed.collect::<BTreeSet<_>>() == self.order
    }
}

/// The queue has no room.
pub(super) fn full() -> Refusal {
    Refusal::QueueFull {
        queue: "waiters",
        retry_ms: RETRY_MS,
    }
}
