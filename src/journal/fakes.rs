//! Fake: a journal in memory. It commits when it is told to, and can lose what was not committed: what a disk does only
//! at a power cut.
#![allow(clippy::unwrap_used)]

use super::{BATCHES_IN_FLIGHT, Batch, Journal, JournalEvent};
use crate::machine::ids::{ClaimId, Now, SandboxId, Ticket};
use crate::machine::record::{ClaimRecord, Drains, Op, Records, SandboxRecord};
use crate::machine::spec::{Fence, PoolSet};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::mpsc;

/// SplitMix64: enough for tests, and the seed is one number.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// Seeded by `HEARTH_SEED`, or anew; prints the seed.
    pub(super) fn new() -> Self {
        let given = std::env::var("HEARTH_SEED").ok();
        let seed = given.map_or_else(|| getrandom::u64().unwrap(), |text| text.parse().unwrap());
        println!("HEARTH_SEED={seed}");
        Self(seed)
    }

    /// Any number.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// One of `len` places.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }

    /// Heads or tails.
    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// What the operations amount to: the model that the real journal is compared with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryRecords {
    sandboxes: BTreeMap<SandboxId, SandboxRecord>,
    claims: BTreeMap<ClaimId, ClaimRecord>,
    tombstones: BTreeMap<ClaimId, Now>,
    pools: PoolSet,
    fence: Option<Fence>,
    drains: Drains,
    cordoned: bool,
    next_sequence: u64,
}

impl MemoryRecords {
    /// Carries out one operation.
    pub fn apply(&mut self, op: &Op) {
        match op.clone() {
            Op::PutSandbox(record) => drop(self.sandboxes.insert(record.id, record)),
            Op::DeleteSandbox(id) => drop(self.sandboxes.remove(&id)),
            Op::PutClaim(record) => drop(self.claims.insert(record.id, record)),
            Op::DeleteClaim(id) => drop(self.claims.remove(&id)),
            Op::PutTombstone(id, at) => drop(self.tombstones.insert(id, at)),
            Op::DeleteTombstone(id) => drop(self.tombstones.remove(&id)),
            Op::PutPools(set) => self.pools = set,
            Op::PutFence(fence) => self.fence = Some(fence),
            Op::PutDrain(asker, drain) => self.drains.put(asker, Some(drain)),
            Op::DeleteDrain(asker) => self.drains.put(asker, None),
            Op::PutCordon(cordoned) => self.cordoned = cordoned,
            Op::PutSequence(next) => self.next_sequence = next,
        }
    }

    /// What is recorded of a sandbox.
    #[must_use]
    pub fn sandbox(&self, id: SandboxId) -> Option<&SandboxRecord> {
        self.sandboxes.get(&id)
    }

    /// As a journal reads them back.
    pub fn read(&self) -> Records {
        Records {
            sandboxes: self.sandboxes.values().cloned().collect(),
            claims: self.claims.values().cloned().collect(),
            tombstones: self.tombstones.iter().map(|(id, at)| (*id, *at)).collect(),
            pools: self.pools.clone(),
            fence: self.fence.clone(),
            drains: self.drains,
            cordoned: self.cordoned,
            next_sequence: self.next_sequence,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    durable: MemoryRecords,
    last: Option<Now>,
    queued: VecDeque<Batch>,
    /// Commit at once on append.
    automatic: bool,
    /// Of the newest journal: older ones write to nobody.
    incarnation: u64,
    events: Option<mpsc::Sender<JournalEvent>>,
}

impl State {
    /// Commits the oldest `batches`; one event, as group commit does. The newest ticket made durable.
    fn commit(&mut self, batches: usize) -> Option<Ticket> {
        let taken = batches.min(self.queued.len());
        let mut newest = None;
        for batch in self.queued.drain(..taken) {
            batch.ops.iter().for_each(|op| self.durable.apply(op));
            self.last = self.last.max(Some(batch.anchor));
            newest = Some(batch.ticket);
        }
        if let Some(ticket) = newest {
            self.tell(JournalEvent::Durable(ticket));
        }
        newest
    }

    fn tell(&self, event: JournalEvent) {
        let events = self.events.as_ref().unwrap();
        // Told in the test's own thread: waiting for room would hang it.
        if let Err(mpsc::error::TrySendError::Full(event)) = events.try_send(event) {
            panic!("the channel of journal events is too small for {event:?}");
        }
    }
}

/// Fake: the disk beneath [`MemoryJournal`]s. It outlives them, as a disk outlives a process.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<State>>);

impl MemoryDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a journal on what is durable, as after `kill -9` of the one before: what that one had queued is lost.
    /// With it comes what it reads.
    pub fn open(&self, events: mpsc::Sender<JournalEvent>) -> (MemoryJournal, Records) {
        let mut state = self.state();
        state.queued.clear();
        state.incarnation += 1;
        state.events = Some(events);
        let journal = MemoryJournal {
            disk: self.clone(),
            incarnation: state.incarnation,
            newest: None,
        };
        (journal, state.durable.read())
    }

    /// From now on: commit every batch at once, or only when told.
    pub fn set_automatic(&self, automatic: bool) {
        let mut state = self.state();
        state.automatic = automatic;
        if automatic {
            state.commit(usize::MAX);
        }
    }

    /// Commits the oldest `batches` as one; the newest ticket made durable.
    pub fn commit(&self, batches: usize) -> Option<Ticket> {
        self.state().commit(batches)
    }

    /// Commits everything queued as one.
    pub fn commit_all(&self) -> Option<Ticket> {
        self.commit(usize::MAX)
    }

    /// Batches queued and not durable.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.state().queued.len()
    }

    /// Reaches or frees the disk reserve.
    pub fn set_reserve_reached(&self, reached: bool) {
        self.state().tell(JournalEvent::Reserve { reached });
    }

    /// What is durable.
    #[must_use]
    pub fn durable(&self) -> Records {
        self.state().durable.read()
    }

    /// The newest hearth time that is durable.
    #[must_use]
    pub fn last_now(&self) -> Option<Now> {
        self.state().last
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

/// Fake: a journal on a [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryJournal {
    disk: MemoryDisk,
    incarnation: u64,
    newest: Option<Ticket>,
}

impl Journal for MemoryJournal {
    fn append(&mut self, ticket: Ticket, anchor: Now, ops: Vec<Op>) {
        assert!(self.newest < Some(ticket), "tickets must rise");
        self.newest = Some(ticket);
        let mut state = self.disk.state();
        if state.incarnation != self.incarnation {
            return;
        }
        assert!(
            state.queued.len() < BATCHES_IN_FLIGHT,
            "more batches in flight than agreed"
        );
        state.queued.push_back(Batch {
            ticket,
            anchor,
            ops,
        });
        if state.automatic {
            state.commit(usize::MAX);
        }
    }
}
