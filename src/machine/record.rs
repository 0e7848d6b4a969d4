//! What is durable: the records of the journal, keyed, one each. `journal` encodes them; `recovery` reads them back.

use super::ids::{ClaimId, NodeTag, Now, PoolName, SandboxId};
use super::network::NetworkPolicy;
use super::spec::{ContentDigest, DrainMode, DrainRequest, Fence, Holder, OnDataLoss, PoolSet};
use super::view::Source;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;

/// Who a sandbox belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    /// Unclaimed member of its pool.
    Pool,
    /// Belongs to a claim.
    Claimed(ClaimId),
    /// To be destroyed, or being destroyed.
    Releasing,
}

/// How far the outside has come with a sandbox, as committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Residency {
    /// The intent to create is committed; the outside may hold anything.
    Creating,
    /// It was made and proved ready.
    Running,
    /// Its processes are to be stopped in their cgroup: committed before they are. Whether they are stopped, the outside
    /// tells: recovery goes by that.
    Frozen,
    /// Its image is sealed: that is the sandbox from here on. Whatever still runs outside under its id is a remainder and
    /// goes.
    OnDisk(Image),
}

/// What is known of a sandbox's image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Image {
    /// On the disk, sealed.
    pub size_bytes: u64,
    /// When it was sealed.
    pub since: Now,
}

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Its id.
    pub id: SandboxId,
    /// Its pool.
    pub pool: PoolName,
    /// The pool's generation it was made for.
    pub generation: u64,
    /// Whose it is.
    pub owner: Owner,
    /// How far it has come.
    pub residency: Residency,
    /// When its creation was decided.
    pub created_at: Now,
    /// Its template's network policy: in force unless its claim has its own. Here because the template may be another
    /// by the time of a restart.
    #[serde(default, skip_serializing_if = "is_closed")]
    pub network: NetworkPolicy,
}

fn is_closed(policy: &NetworkPolicy) -> bool {
    *policy == NetworkPolicy::default()
}

/// A claim with a sandbox. Claims that wait for a member are not durable: their callers saw nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRecord {
    /// Its id.
    pub id: ClaimId,
    /// Its pool.
    pub pool: PoolName,
    /// Who it is for.
    pub holder: Holder,
    /// For rule 2.
    pub content: ContentDigest,
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// Generation of the pool the sandbox was made for.
    pub generation: u64,
    /// How the sandbox came to be.
    pub source: Source,
    /// When the sandbox was assigned.
    pub claimed_at: Now,
    /// `None`: never. While not confirmed it counts from the assignment (`expires_at - claimed_at` is the ttl); recovery
    /// counts such a claim's time anew, as its caller may have been told a later time.
    pub expires_at: Option<Now>,
    /// The guest's acknowledgement is known to the journal. Written lazily: a claim may be acknowledged to its caller
    /// while this still says false; recovery then asks the guest, who remembers the claim id.
    pub confirmed: bool,
    /// The sandbox ended by itself: why.
    pub failed: Option<String>,
    /// Its own network policy, which is in force for its sandbox; `None`: the sandbox's template's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkPolicy>,
    /// What becomes of it when its sandbox's image does not come back.
    #[serde(default, skip_serializing_if = "OnDataLoss::is_fail")]
    pub on_data_loss: OnDataLoss,
    /// The sandbox it had first, if that was another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<SandboxId>,
    /// How often it got a fresh sandbox because an image did not come back.
    #[serde(default, skip_serializing_if = "is_none_yet")]
    pub cold_starts: u32,
}

fn is_none_yet(count: &u32) -> bool {
    *count == 0
}

/// A drain under way. It goes on over restarts until it is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainRecord {
    /// As asked for.
    pub asked: DrainRequest,
    /// When it began. Its deadline counts from then.
    pub since: Now,
}

impl DrainRecord {
    /// `None`: it has none.
    #[must_use]
    pub fn deadline(&self) -> Option<Now> {
        let ms = self.asked.deadline_ms?;
        Some(self.since.plus(ms))
    }
}

/// Who can ask for a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// Who calls Node.Drain.
    Api,
    /// The cluster, by what it says of the node.
    Cluster,
}

/// The drains that are asked for, one by each asker, who alone takes it back. The stricter of two is in force: a rule that
/// knows no order, so that a restart, which hears one of them before the other, comes to the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drains {
    /// By Node.Drain.
    pub api: Option<DrainRecord>,
    /// By the cluster.
    pub cluster: Option<DrainRecord>,
}

impl Drains {
    /// What one asks for.
    #[must_use]
    pub fn of(&self, asker: Asker) -> Option<DrainRecord> {
        match asker {
            Asker::Api => self.api,
            Asker::Cluster => self.cluster,
        }
    }

    /// One asks for this from now on.
    pub fn put(&mut self, asker: Asker, record: Option<DrainRecord>) {
        match asker {
            Asker::Api => self.api = record,
            Asker::Cluster => self.cluster = record,
        }
    }

    /// Evict before Hibernate before Wait; of the same mode the one whose deadline is sooner.
    #[must_use]
    pub fn in_force(&self) -> Option<DrainRecord> {
        let strictness = |it: &DrainRecord| {
            let mode = match it.asked.mode {
                DrainMode::Wait => 0,
                DrainMode::Hibernate => 1,
                DrainMode::Evict => 2,
            };
            (mode, Reverse(it.deadline().unwrap_or(Now(u64::MAX))))
        };
        self.api
            .into_iter()
            .chain(self.cluster)
            .max_by_key(strictness)
    }
}

/// One thing to make durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Replace the sandbox's record.
    PutSandbox(SandboxRecord),
    /// The sandbox is verified gone.
    DeleteSandbox(SandboxId),
    /// Replace the claim's record.
    PutClaim(ClaimRecord),
    /// The claim is gone.
    DeleteClaim(ClaimId),
    /// The claim was released at this time; remembered.
    PutTombstone(ClaimId, Now),
    /// Forget a released claim.
    DeleteTombstone(ClaimId),
    /// The set of pools.
    PutPools(PoolSet),
    /// The largest epoch seen and whose it is.
    PutFence(Fence),
    /// Somebody asks for a drain.
    PutDrain(Asker, DrainRecord),
    /// And takes that back.
    DeleteDrain(Asker),
    /// The cluster has cordoned the node, or undone that.
    PutCordon(bool),
    /// No sequence number at or beyond this has been used. Reserved in blocks, ahead of use.
    PutSequence(u64),
}

/// Everything the journal holds, as read at start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    /// Ordered by id.
    pub sandboxes: Vec<SandboxRecord>,
    /// Ordered by id.
    pub claims: Vec<ClaimRecord>,
    /// Ordered by id.
    pub tombstones: Vec<(ClaimId, Now)>,
    /// The set.
    pub pools: PoolSet,
    /// The largest epoch seen.
    pub fence: Option<Fence>,
    /// The drains that are asked for.
    pub drains: Drains,
    /// The cluster has cordoned the node, as it told last.
    pub cordoned: bool,
    /// First sequence number that is free.
    pub next_sequence: u64,
}

/// What identifies a data directory; made once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Part of every sandbox id.
    pub tag: NodeTag,
}
