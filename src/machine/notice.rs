//! What operators are told of: for logs, counters and the cluster's Events. Decides nothing.

use super::admission::Finding;
use super::causes::{ExitCause, FreezeCause, SinkCause, ThawCause};
use super::ids::{ClaimId, PoolName, SandboxId};
use super::spec::{DrainRequest, Verdict};

/// What operators should see; bounded kinds, for logs and counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A pool's breaker opened.
    BreakerOpened {
        /// Pool.
        pool: PoolName,
        /// The last failure.
        reason: String,
    },
    /// A pool's breaker closed.
    BreakerClosed {
        /// Pool.
        pool: PoolName,
    },
    /// A template that was declared does not pass a check.
    PolicyFinding(PoolName, Finding),
    /// What the cluster says of a pool's template has changed.
    Judged(PoolName, Verdict),
    /// A member was lost while unclaimed.
    MemberLost {
        /// Pool.
        pool: PoolName,
        /// Sandbox.
        sandbox: SandboxId,
        /// How.
        cause: ExitCause,
    },
    /// A claim expired.
    ClaimExpired {
        /// Claim.
        claim: ClaimId,
    },
    /// A drain's deadline took a claim.
    ClaimEvicted {
        /// Claim.
        claim: ClaimId,
    },
    /// A drain has begun, or was changed.
    DrainBegun {
        /// As asked for.
        asked: DrainRequest,
    },
    /// A drain was undone.
    DrainEnded,
    /// The cluster has cordoned the node (true), or undone that.
    Cordoned(bool),
    /// A wedged shim was killed, so that its sandbox could be removed, as the machine has asked. The driver's own.
    ShimKilled {
        /// Sandbox.
        sandbox: SandboxId,
    },
    /// A pool's RuntimeClass can't be served here (any more): refill rests.
    PoolUnservable {
        /// Pool.
        pool: PoolName,
        /// Why; bounded.
        reason: String,
    },
    /// It can be served again.
    PoolServable {
        /// Pool.
        pool: PoolName,
    },
    /// A claim's sandbox ended by itself.
    ClaimFailed {
        /// Claim.
        claim: ClaimId,
        /// How.
        cause: ExitCause,
    },
    /// A sandbox of this data directory without a record was found and is being destroyed.
    OrphanDestroyed {
        /// Sandbox.
        sandbox: SandboxId,
    },
    /// A sandbox of another data directory was found; it is left alone.
    OrphanFound {
        /// Sandbox.
        sandbox: SandboxId,
    },
    /// A destruction failed and will be tried again.
    DestroyRetried {
        /// Sandbox.
        sandbox: SandboxId,
        /// Why.
        error: String,
    },
    /// Recovery has finished.
    Recovered {
        /// Sandboxes adopted.
        adopted: usize,
        /// Sandboxes undone.
        undone: usize,
        /// Claims still to be confirmed by their guests.
        unknown: usize,
    },
    /// A freeze has begun.
    FreezeStarted {
        /// Why.
        cause: FreezeCause,
    },
    /// A thaw has begun, other than for a claim of a member.
    ThawStarted {
        /// Why.
        cause: ThawCause,
    },
    /// A freeze failed: the sandbox runs.
    FreezeFailed {
        /// Sandbox.
        sandbox: SandboxId,
        /// Why.
        error: String,
    },
    /// A sandbox is going to the disk.
    SinkStarted {
        /// Why.
        cause: SinkCause,
    },
    /// It did not get there.
    SinkFailed {
        /// Sandbox.
        sandbox: SandboxId,
        /// Why.
        error: String,
    },
    /// A sandbox is coming back from the disk.
    RestoreStarted {
        /// Why.
        cause: ThawCause,
    },
    /// It did not come back.
    RestoreFailed {
        /// Sandbox.
        sandbox: SandboxId,
        /// Why.
        error: String,
    },
    /// A claim whose image did not come back has got this fresh sandbox.
    ColdStarted(ClaimId, SandboxId),
    /// A thaw failed.
    ThawFailed {
        /// Sandbox.
        sandbox: SandboxId,
        /// Why.
        error: String,
    },
    /// The node is short of memory.
    MemoryShort {
        /// Bytes to be freed.
        short_bytes: u64,
        /// Sandboxes chosen to be frozen.
        chosen: usize,
    },
    /// A creation ended: how long it took.
    Created {
        /// Pool.
        pool: PoolName,
        /// Milliseconds, failure is `None`.
        took_ms: Option<u64>,
    },
    /// A tombstone was forgotten before its time: the bound was reached.
    TombstoneForgottenEarly,
}
