//! What a caller asks the machine for.

use super::ids::{ClaimId, PoolName, SandboxId};
use super::spec::{
    ClaimRequest, DrainRequest, Fence, Judgement, PoolSet, PoolSpec, Tier, WaitingOn,
};

/// A call of a caller. Mutating calls carry their fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Claims.Claim; the members of a batch arrive one by one.
    Claim(Fence, Box<ClaimRequest>),
    /// Claims.Release.
    Release(Fence, ClaimId),
    /// Claims.Renew with the new ttl in milliseconds, 0: never expires.
    Renew(Fence, ClaimId, u64),
    /// Claims.Hibernate. Answered when the sandbox sleeps.
    Hibernate(Fence, ClaimId, Tier, WaitingOn),
    /// Claims.Resume. Answered when the sandbox is awake.
    Resume(Fence, ClaimId),
    /// Claims.Get.
    Get(ClaimId),
    /// Claims.List: of one pool or all, after an id, at most so many.
    List {
        /// Only this pool.
        pool: Option<PoolName>,
        /// Start after this id.
        after: Option<ClaimId>,
        /// Page size.
        limit: usize,
    },
    /// Pools.SetPools.
    SetPools(Fence, PoolSet),
    /// All pools that WarmPool objects declare, ordered by name; theirs that are left out are drained. Generations are the
    /// machine's to give, and so are the handlers of RuntimeClasses. Only from `kube`, so it carries no fence.
    SetWarmPools(Vec<PoolSpec>),
    /// What the cluster's admission says of templates. Only from `kube`. Answered like SetPools.
    JudgePools(Vec<Judgement>),
    /// Pools.GetPools.
    GetPools,
    /// Node.Drain: begins one, or changes the one under way. Answered when that is durable.
    Drain(DrainRequest),
    /// Node.Undrain.
    Undrain,
    /// How far the drain is. For the stream of Node.Drain.
    GetDrain,
    /// Which sandbox serves an acknowledged claim? For Sandboxes.*: one that sleeps is woken first.
    Locate(ClaimId),
    /// The whole state. For the dump, Node.Info and Node.Orphans.
    Inspect,
    /// Node.Orphans with destroy: only ids listed as orphans are destroyed. Answered like Inspect.
    DestroyOrphans(Vec<SandboxId>),
}
