//! Why a request is refused: a closed enum. `rpc/status.rs` maps each to a status, exhaustively, and says what to do
//! next; the texts here only say what is wrong.

use super::ids::SandboxId;
use super::limits::REASON_BYTES;

/// The text, cut at [`REASON_BYTES`]: failures come from outside, what is kept of them has a bound.
#[must_use]
pub fn bounded(mut text: String) -> String {
    let mut end = text.len().min(REASON_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// Why a request is refused. The name in upper snake case is the machine-readable reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Fields are bad or missing; all of them, as (field path, what is wrong).
    #[error("invalid request: {}", .0.iter().map(|(f, d)| format!("{f}: {d}")).collect::<Vec<_>>().join("; "))]
    InvalidArgument(Vec<(String, String)>),
    /// No such pool.
    #[error("there is no pool {pool:?}")]
    PoolUnknown {
        /// As asked.
        pool: String,
    },
    /// No such claim.
    #[error("there is no claim {claim}")]
    ClaimUnknown {
        /// As asked.
        claim: String,
    },
    /// The claim was released (or expired); the id is spent.
    #[error("claim {claim} was released")]
    ClaimReleased {
        /// As asked.
        claim: String,
    },
    /// Same claim id, other content.
    #[error("claim {claim} exists with other content: {field} differs")]
    ClaimContentDiffers {
        /// As asked.
        claim: String,
        /// The first field that differs.
        field: String,
    },
    /// The claim is not acknowledged yet.
    #[error("claim {claim} is pending")]
    ClaimPending {
        /// As asked.
        claim: String,
    },
    /// The claim's sandbox ended by itself.
    #[error("the sandbox of claim {claim} has ended ({reason})")]
    SandboxEnded {
        /// As asked.
        claim: String,
        /// SANDBOX_EXITED, OOM, GUEST_LOST, DATA_LOSS.
        reason: String,
    },
    /// After a restart the guest has not been heard yet; nothing was destroyed.
    #[error("claim {claim} is being recovered")]
    ClaimRecovering {
        /// As asked.
        claim: String,
    },
    /// A smaller epoch than one seen.
    #[error("epoch is stale: the current one is {current}")]
    EpochStale {
        /// The largest seen.
        current: u64,
    },
    /// The current epoch belongs to another caller.
    #[error("epoch {current} belongs to another caller")]
    EpochConflict {
        /// The epoch.
        current: u64,
    },
    /// The claim's sandbox is being woken: it can't be put to sleep meanwhile.
    #[error("the sandbox of claim {claim} is being woken")]
    WakeInFlight {
        /// As asked.
        claim: String,
    },
    /// The sandbox could not be put to sleep; it runs.
    #[error("the sandbox of claim {claim} could not be put to sleep: {detail}")]
    HibernateFailed {
        /// As asked.
        claim: String,
        /// Bounded.
        detail: String,
        /// Milliseconds.
        retry_ms: u64,
    },
    /// The sandbox could not be woken; it sleeps.
    #[error("the sandbox of claim {claim} could not be woken: {detail}")]
    ResumeFailed {
        /// As asked.
        claim: String,
        /// Bounded.
        detail: String,
        /// Milliseconds.
        retry_ms: u64,
    },
    /// There is no room on the disk for the sandbox's image; it is as it was.
    #[error("there is no room for the image of claim {claim}: {detail}")]
    NoRoomOnDisk {
        /// As asked.
        claim: String,
        /// Bounded.
        detail: String,
        /// Milliseconds.
        retry_ms: u64,
    },
    /// The image of the sandbox could not be restored by what this node now runs, so none is made.
    #[error("the sandbox of claim {claim} would not come back from the disk: {detail}")]
    NotRestorable {
        /// As asked.
        claim: String,
        /// Bounded.
        detail: String,
    },
    /// The image of the sandbox can't be restored by what this node now runs.
    #[error("the image of claim {claim} does not fit this node: {detail}")]
    ImageMismatch {
        /// As asked.
        claim: String,
        /// Bounded.
        detail: String,
    },
    /// The claim was released while it was being made.
    #[error("claim {claim} was released while it was in flight")]
    ReleasedInFlight {
        /// As asked.
        claim: String,
    },
    /// The pool has no warm member.
    #[error("pool {pool} has no warm member")]
    PoolEmpty {
        /// The pool.
        pool: String,
        /// Refill estimate, milliseconds.
        retry_ms: u64,
    },
    /// The pool (or node) holds as many sandboxes as it may.
    #[error("pool {pool} is at its limit of {limit} sandboxes")]
    PoolFull {
        /// The pool.
        pool: String,
        /// `max_total`.
        limit: u32,
        /// Milliseconds.
        retry_ms: u64,
    },
    /// The wait for a member ended without one.
    #[error("no member of pool {pool} became free in time")]
    WaitTimedOut {
        /// The pool.
        pool: String,
        /// Milliseconds.
        retry_ms: u64,
    },
    /// A queue has no room.
    #[error("{queue} is full")]
    QueueFull {
        /// Which one: "requests", "waiters", "joiners", "watchers", "executions",
        /// "imports".
        queue: &'static str,
        /// Milliseconds.
        retry_ms: u64,
    },
    /// A watcher read more slowly than changes came and fell out of the history.
    #[error("the watch fell behind; start it anew without a resume token")]
    WatchLagged,
    /// The disk reserve is reached: claims are refused, releases go on.
    #[error("the data directory's disk is full up to hearth's reserve")]
    DiskReserve {
        /// Milliseconds.
        retry_ms: u64,
    },
    /// No member acknowledged its personalization.
    #[error("{attempts} members of pool {pool} failed to take the claim: {last}")]
    GuestFailed {
        /// The pool.
        pool: String,
        /// Members tried.
        attempts: u32,
        /// The last failure, bounded.
        last: String,
        /// Milliseconds.
        retry_ms: u64,
    },
    /// The guest understood the personalization and cannot apply it (for example a bad path).
    #[error("the sandbox cannot apply the personalization: {detail}")]
    PersonalizationRefused {
        /// As the guest says, bounded and escaped.
        detail: String,
    },
    /// A cold creation failed.
    #[error("creating a sandbox for pool {pool} failed: {detail}")]
    CreateFailed {
        /// The pool.
        pool: String,
        /// Bounded.
        detail: String,
        /// Milliseconds.
        retry_ms: u64,
    },
    /// The pool's breaker is open.
    #[error("pool {pool} keeps failing: {detail}")]
    PoolFailing {
        /// The pool.
        pool: String,
        /// The last failure, bounded.
        detail: String,
        /// Milliseconds until the next probe.
        retry_ms: u64,
    },
    /// Something asked for is not served by this node (yet).
    #[error("{what} is not served here")]
    Unsupported {
        /// What.
        what: String,
    },
    /// The claim asks for a network policy, and the pool's sandboxes have no interface that one could be applied to.
    #[error(
        "network policy {policy} cannot be applied: the sandboxes of pool {pool:?} have no network interface"
    )]
    NetworkPolicyUnsupported {
        /// The mode asked for.
        policy: &'static str,
        /// The pool.
        pool: String,
    },
    /// A template asks for a network, and this node gives sandboxes none.
    #[error("this node gives sandboxes no network: {detail}")]
    NetworkUnavailable {
        /// Why; bounded.
        detail: String,
    },
    /// SetPools names a pool that an object of the cluster declares.
    #[error("pool {pool} is declared by WarmPool {warm_pool}")]
    PoolOfWarmPool {
        /// The pool.
        pool: String,
        /// namespace/name.
        warm_pool: String,
    },
    /// A policy for templates is not kept, and it is enforced.
    #[error("policy {rule} refuses pool {pool}: {field}: {detail}")]
    PolicyRefused {
        /// The pool.
        pool: String,
        /// The check's name, or whose rule of the cluster's it is.
        rule: String,
        /// The field of the pool that breaks it.
        field: String,
        /// What is wrong and what would be right; bounded.
        detail: String,
    },
    /// The cluster's admission decides on the pool's template, and has not done so yet.
    #[error("the cluster has not said yet whether pool {pool} is allowed")]
    PolicyPending {
        /// The pool.
        pool: String,
        /// Milliseconds.
        retry_ms: u64,
    },
    /// A lower generation than the one in force.
    #[error("{what} generation is stale: the current one is {current}")]
    GenerationStale {
        /// "set" or the pool.
        what: String,
        /// In force.
        current: u64,
    },
    /// The same generation with other content.
    #[error("{what} has other content under the same generation {current}")]
    GenerationConflict {
        /// "set" or the pool.
        what: String,
        /// In force.
        current: u64,
    },
    /// hearthd has not finished recovery.
    #[error("hearthd is starting")]
    Starting {
        /// Milliseconds.
        retry_ms: u64,
    },
    /// hearthd is shutting down.
    #[error("hearthd is shutting down")]
    ShuttingDown {
        /// Milliseconds.
        retry_ms: u64,
    },
    /// The node is drained: it takes no new claims, and wakes nothing that it put to sleep for that.
    #[error("the node is drained")]
    NodeDraining {
        /// Milliseconds.
        retry_ms: u64,
    },
    /// The cluster has cordoned the node: it takes no new claims.
    #[error("the node is cordoned")]
    NodeCordoned {
        /// Milliseconds.
        retry_ms: u64,
    },
    /// A template names a RuntimeClass, and the cluster has told of none since the start.
    #[error(
        "RuntimeClasses are not known: hearthd has not heard of the API server since its start"
    )]
    RuntimeClassesUnknown {
        /// Milliseconds.
        retry_ms: u64,
    },
    /// This node can't serve a template's RuntimeClass.
    #[error("pool {pool} can't be served: {detail}")]
    RuntimeClassUnservable {
        /// The pool.
        pool: String,
        /// The class.
        class: String,
        /// Why; bounded.
        detail: String,
    },
    /// containerd cannot be reached.
    #[error("containerd is unreachable")]
    RuntimeUnavailable {
        /// Milliseconds.
        retry_ms: u64,
    },
    /// The guest of this sandbox does not answer.
    #[error("the guest of sandbox {sandbox} does not answer")]
    GuestUnavailable {
        /// Which.
        sandbox: SandboxId,
        /// Milliseconds.
        retry_ms: u64,
    },
    /// The guest's own answer to an exec, file or connect call: not found inside.
    #[error("not found in the sandbox: {detail}")]
    InsideNotFound {
        /// Bounded and escaped.
        detail: String,
    },
    /// The guest refused a call for another reason.
    #[error("refused in the sandbox: {detail}")]
    InsideRefused {
        /// Bounded and escaped.
        detail: String,
    },
    /// No identity.
    #[error("no identity: {detail}")]
    Unauthenticated {
        /// What is missing.
        detail: &'static str,
    },
    /// A ServiceAccount token that is not good.
    #[error("the token is refused: {detail}")]
    TokenRefused {
        /// Why.
        detail: &'static str,
        /// The audiences that are taken, with commas.
        audiences: String,
    },
    /// The cluster gives the owner of a ServiceAccount token no right to this call.
    #[error("{caller} may not {verb} {resource} of {group} in namespace {namespace}")]
    NotGranted {
        /// Who, as hearth names it.
        caller: String,
        /// RBAC's verb.
        verb: &'static str,
        /// RBAC's resource, with a subresource perhaps.
        resource: &'static str,
        /// RBAC's API group.
        group: &'static str,
        /// Where a Role would give it.
        namespace: String,
    },
    /// Whose a token is or what its owner may do is not known, and nobody could be asked.
    #[error("the token can't be reviewed: {detail}")]
    AuthorityUnavailable {
        /// Why.
        detail: &'static str,
        /// Milliseconds.
        retry_ms: u64,
    },
    /// Not allowed.
    #[error("not allowed: {detail}")]
    NotAllowed {
        /// What.
        detail: &'static str,
    },
    /// The caller makes too many calls.
    #[error("this caller makes too many calls")]
    RateLimited {
        /// When to come back.
        retry_ms: u64,
    },
    /// An image operation failed.
    #[error("image {image:?}: {detail}")]
    ImageFailed {
        /// Reference.
        image: String,
        /// Bounded.
        detail: String,
    },
    /// No such image.
    #[error("there is no image {image:?}")]
    ImageUnknown {
        /// Reference.
        image: String,
    },
    /// A pool names the image.
    #[error("image {image:?} is named by pool {pool}")]
    ImageInUse {
        /// Reference.
        image: String,
        /// The pool.
        pool: String,
    },
    /// The caller's deadline, or hearth's own bound for the call, passed before the answer. What was started goes on.
    #[error("{what} passed before the answer")]
    DeadlineExceeded {
        /// "the caller's deadline", "hearth's bound for this call", …
        what: &'static str,
    },
    /// Our bug.
    #[error("internal error: {detail}")]
    Internal {
        /// Bounded.
        detail: String,
    },
}
