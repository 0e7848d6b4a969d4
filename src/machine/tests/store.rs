//! What a journal holds, in memory.

use crate::machine::ids::{ClaimId, Now, SandboxId};
use crate::machine::record::{ClaimRecord, Drains, Op, Records, SandboxRecord};
use crate::machine::spec::{Fence, PoolSet};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Default)]
pub struct Store {
    pub sandboxes: BTreeMap<SandboxId, SandboxRecord>,
    pub claims: BTreeMap<ClaimId, ClaimRecord>,
    pub tombstones: BTreeMap<ClaimId, Now>,
    pub pools: PoolSet,
    pub fence: Option<Fence>,
    pub drains: Drains,
    pub cordoned: bool,
    pub next_sequence: u64,
}

impl Store {
    pub fn apply(&mut self, op: Op) {
        match op {
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

    pub fn records(&self) -> Records {
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
