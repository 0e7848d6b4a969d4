//! What callers see: answers and views.

use super::admission::Finding;
use super::handler::Overhead;
use super::ids::{ClaimId, Now, PoolName, SandboxId};
use super::refusal::Refusal;
use super::spec::{DrainMode, Holder, PoolSpec, Verdict};
use serde::{Deserialize, Serialize};

/// How the sandbox of a claim came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A running member.
    Warm,
    /// Created for the claim.
    Cold,
    /// A frozen member that was thawed.
    Thawed,
    /// Made for the claim from its pool's golden image.
    Cloned,
}

/// The life of a claim as a caller sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ClaimState {
    /// Waiting for a member or for the guest.
    Pending,
    /// Acknowledged.
    Claimed,
    /// The sandbox ended by itself.
    Failed,
    /// After a restart: not yet known.
    Unknown,
    /// Acknowledged, and its sandbox sleeps.
    Hibernated,
}

/// A claim as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClaimView {
    /// Id.
    pub id: ClaimId,
    /// Pool.
    pub pool: PoolName,
    /// Who it is for.
    pub holder: Holder,
    /// State.
    pub state: ClaimState,
    /// Why, when failed: SANDBOX_EXITED, OOM, GUEST_LOST, DATA_LOSS. DATA_LOSS also of one that was started cold since.
    pub reason: Option<String>,
    /// `None` while pending without a sandbox.
    pub sandbox: Option<SandboxId>,
    /// The sandbox it had first: its access token is of that.
    pub first: Option<SandboxId>,
    /// How often it got a fresh sandbox because an image did not come back.
    pub cold_starts: u32,
    /// Generation of the pool the sandbox was made for; 0 without a sandbox.
    pub generation: u64,
    /// `None` without a sandbox.
    pub source: Option<Source>,
    /// `None` while pending.
    pub claimed_at: Option<Now>,
    /// `None`: never.
    pub expires_at: Option<Now>,
    /// Bytes of its sandbox's image, if that is all there is of it.
    pub image_bytes: u64,
}

/// The answer to an acknowledged Claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The claim.
    pub claim: ClaimId,
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// Generation of the pool the sandbox was made for.
    pub generation: u64,
    /// How the sandbox came to be.
    pub source: Source,
    /// `None`: never.
    pub expires_at: Option<Now>,
    /// The sandbox the claim had first: its access token is of that.
    pub first: SandboxId,
}

/// State of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum BreakerView {
    /// Refill goes on.
    Closed,
    /// Refill rests until then.
    Open(Now),
    /// One probe is under way.
    HalfOpen,
    /// This node can't serve the pool's RuntimeClass: refill rests until that changes.
    Unservable,
}

/// A pool as declared and as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolView {
    /// As declared.
    pub spec: PoolSpec,
    /// Members that can be claimed now, running or frozen.
    pub warm: u32,
    /// Those of the warm ones that are frozen (or on their way there or back).
    pub frozen: u32,
    /// Members being made, or being proved again after a restart. The four counts together are all sandboxes.
    pub creating: u32,
    /// Sandboxes that belong to claims, those being made for cold ones included.
    pub claimed: u32,
    /// Those of the claimed ones that sleep.
    pub hibernated: u32,
    /// Those of them that are on the disk.
    pub on_disk: u32,
    /// Bytes of its sandboxes' images.
    pub image_bytes: u64,
    /// Sandboxes being destroyed.
    pub releasing: u32,
    /// Claims waiting.
    pub waiting: u32,
    /// Members made from an older template.
    pub outdated: u32,
    /// The breaker.
    pub breaker: BreakerView,
    /// The last failure, or why it is unservable; bounded; empty: none.
    pub breaker_reason: String,
    /// Creations failed in a row.
    pub consecutive_failures: u32,
    /// What the cluster's admission said of its template. `None`: nothing yet.
    pub verdict: Option<Verdict>,
    /// Checks that its template does not pass.
    pub findings: Vec<Finding>,
    /// Why it gets no member that it does not have already; empty: it does.
    pub held: String,
    /// What one of its sandboxes takes beside what the template promises. `None`: the pool names a RuntimeClass, and the
    /// cluster has told of none since the start.
    pub overhead: Option<Overhead>,
}

/// Memory and CPU of several sandboxes together, as templates and RuntimeClasses count them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Promised {
    /// Bytes.
    pub memory_bytes: u64,
    /// Thousandths of a core. A template without a CPU limit promises none.
    pub cpu_millis: u64,
}

impl Promised {
    /// For each the larger one.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
            cpu_millis: self.cpu_millis.max(other.cpu_millis),
        }
    }
}

impl PoolView {
    /// What its sandboxes were promised, with their overhead as far as it is known. All of them count: members that run or
    /// are frozen or being made, claimed ones awake or asleep in whichever tier, those being destroyed. Who sleeps keeps
    /// little, and wakes within milliseconds when its holder wants it, without asking anybody. Members of an older template
    /// count as those of the present one.
    #[must_use]
    pub fn promised(&self) -> Promised {
        let there = [self.warm, self.creating, self.claimed, self.releasing];
        let there: u64 = there.into_iter().map(u64::from).sum();
        let (template, overhead) = (&self.spec.template.resources, self.overhead);
        let overhead = overhead.unwrap_or_default();
        let of_all = |of_one: u64, more: u64| there.saturating_mul(of_one.saturating_add(more));
        Promised {
            memory_bytes: of_all(template.memory_bytes, overhead.memory_bytes),
            cpu_millis: of_all(template.cpu_millis, overhead.cpu_millis),
        }
    }
}

/// A sandbox, for the state dump and for `top`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SandboxView {
    /// Id.
    pub id: SandboxId,
    /// Pool.
    pub pool: PoolName,
    /// "pool", "claimed", "releasing".
    pub owner: &'static str,
    /// The claim, if it has one.
    pub claim: Option<ClaimId>,
    /// "creating", "running", "frozen", "on_disk", "unknown", "gone".
    pub residency: &'static str,
    /// When its creation was decided.
    pub created_at: Now,
}

/// Phase of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Recovery goes on: claims are refused `Starting`.
    Recovering,
    /// Serving.
    Ready,
    /// Serving what needs no containerd; it is unreachable.
    Degraded,
    /// Shutting down.
    ShuttingDown,
}

impl Phase {
    /// As in [`NodeView::phase`].
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recovering => "recovering",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::ShuttingDown => "shutting down",
        }
    }
}

/// How far a drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum DrainState {
    /// It goes on.
    Draining,
    /// Its deadline has passed, and something is still there.
    Overdue,
    /// Nothing runs any more: no claim is awake, nothing else is there, and what can go to the disk is there.
    Drained,
}

/// Why a claim's sandbox stays asleep in memory although the drain wanted it on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Whose.
    pub claim: ClaimId,
    /// Why.
    pub why: NotStowed,
    /// Bounded.
    pub detail: String,
}

/// What keeps a sandbox from the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum NotStowed {
    /// There is no room for its image.
    NoRoom,
    /// Its image could not come back.
    NotRestorable,
    /// Making its image failed time and again.
    Failed,
}

/// A drain under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DrainView {
    /// What happens to claims.
    pub mode: DrainMode,
    /// How far it is.
    pub state: DrainState,
    /// When it began.
    pub since: Now,
    /// `None`: it has none.
    pub deadline: Option<Now>,
    /// The cluster asks for a drain, alone or too: Undrain does not end that.
    pub by_cluster: bool,
    /// Claims it waits for: those with a sandbox, in mode Hibernate only those that are awake.
    pub claims: u32,
    /// Claims whose sandboxes sleep, in memory or on the disk.
    pub hibernated: u32,
    /// Those of them that are on the disk.
    pub on_disk: u32,
    /// Those of them that are still to go there, or on their way. The rest stays in memory.
    pub to_disk: u32,
    /// What sleeps goes to the disk.
    pub disk_tier: bool,
    /// Who can't go there, ordered by sandbox; the first [`super::limits::DRAIN_KEPT_SHOWN`].
    pub kept: Vec<Kept>,
    /// Sandboxes that belong to no claim and are not gone yet.
    pub unclaimed: u32,
}

/// The node in one look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeView {
    /// [`Phase::as_str`].
    pub phase: &'static str,
    /// Largest epoch seen, 0: none.
    pub epoch: u64,
    /// Generation of the set of pools.
    pub pools_generation: u64,
    /// Ordered by name.
    pub pools: Vec<PoolView>,
    /// Ordered by id.
    pub sandboxes: Vec<SandboxView>,
    /// Ordered by id.
    pub claims: Vec<ClaimView>,
    /// Released claims remembered.
    pub tombstones: usize,
    /// Found outside without a record, ordered by id. Those of this node's tag are being destroyed, the others are left
    /// alone until `Call::DestroyOrphans` names them.
    pub orphans: Vec<SandboxId>,
    /// The drain under way.
    pub drain: Option<DrainView>,
    /// The cluster has cordoned the node.
    pub cordoned: bool,
}

/// The answer to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To Claim.
    Granted(Grant),
    /// To Release.
    Released,
    /// To Renew.
    Renewed {
        /// `None`: never.
        expires_at: Option<Now>,
    },
    /// To Hibernate: the sandbox sleeps.
    Hibernated,
    /// To Resume: the sandbox is awake.
    Resumed,
    /// To Get.
    Claim(Box<ClaimView>),
    /// To List: a page and whether there is more.
    Claims {
        /// Ordered by id.
        claims: Vec<ClaimView>,
        /// More follow after the last.
        more: bool,
    },
    /// To SetPools.
    PoolsSet {
        /// In force.
        generation: u64,
    },
    /// To SetWarmPools: pools whose RuntimeClass this node can't serve, and why. What was there of them stays.
    WarmPoolsSet(Vec<(PoolName, Refusal)>),
    /// To GetPools.
    Pools {
        /// In force.
        generation: u64,
        /// Ordered by name.
        pools: Vec<PoolView>,
    },
    /// To Locate: the acknowledged claim's sandbox.
    Located {
        /// The sandbox.
        sandbox: SandboxId,
        /// What it was made from. `None` when that is no longer known: its pool has changed or gone since, and hearthd
        /// has restarted (environment and working directory are inherited inside, so nothing depends on it there).
        template: Option<std::sync::Arc<super::spec::Template>>,
    },
    /// To Drain, Undrain and GetDrain: the drain under way.
    Drain(Option<DrainView>),
    /// To Inspect and DestroyOrphans.
    Node(Box<NodeView>),
}
