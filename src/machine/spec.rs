//! What is asked for: pools, templates, claims. Values are already checked by `rpc` (shape and bounds); the machine
//! checks what depends on its state.

use super::ids::{ClaimId, PoolName};
use super::network::NetworkPolicy;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Limits of one sandbox. Units in the names; all are filled in (defaults applied by rpc).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a core; 0: unlimited.
    pub cpu_millis: u64,
    /// Bytes promised to the workload; the runtime adds its own overhead.
    pub memory_bytes: u64,
    /// Processes and threads of one user inside.
    pub pids: u64,
    /// Writable disk in bytes.
    pub disk_bytes: u64,
    /// Descriptors of one process.
    pub open_files: u64,
}

/// The proof of readiness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// A command that must exit 0; empty: the guest's answer is the proof.
    pub command: Vec<String>,
    /// Milliseconds for the whole of warm command and readiness.
    pub timeout_ms: u64,
}

/// What a sandbox of a pool is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// Image reference.
    pub image: String,
    /// Runtime handler. Of a template with a class: what the class meant when the pool was declared; empty until then.
    pub runtime_handler: String,
    /// The RuntimeClass it was declared with; empty: with a handler.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub runtime_class: String,
    /// Process started when the member is made; empty: none.
    pub command: Vec<String>,
    /// Environment beneath the claim's.
    pub env: BTreeMap<String, String>,
    /// Working directory; empty: the image's.
    pub working_dir: String,
    /// Limits.
    pub resources: Resources,
    /// What its sandboxes may reach, unless a claim brings its own policy.
    pub network_policy: NetworkPolicy,
    /// Run once before the member counts as warm; empty: none.
    pub warm_command: Vec<String>,
    /// The proof of readiness.
    pub readiness: Readiness,
    /// Interpreter that is ready for code: one of `limits::INTERPRETERS`; empty: none.
    pub interpreter: String,
    /// Processes of the interpreter that wait to become an exec of it: at most `limits::PREFORK_MAX`.
    #[serde(default, skip_serializing_if = "is_none")]
    pub prefork: u32,
    /// A claimed sandbox that did nothing for so long is frozen, milliseconds; 0: never.
    #[serde(default, skip_serializing_if = "is_never")]
    pub idle_after_ms: u64,
    /// For claims that do not say it themselves.
    #[serde(default, skip_serializing_if = "OnDataLoss::is_fail")]
    pub on_data_loss: OnDataLoss,
}

fn is_none(count: &u32) -> bool {
    *count == 0
}

fn is_never(after_ms: &u64) -> bool {
    *after_ms == 0
}

/// What happens to unclaimed members when the template changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateStrategy {
    /// Old members stay claimable; refills follow the new template.
    OnReplenish,
    /// Old members are destroyed at once.
    Recreate,
}

/// A pool as declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSpec {
    /// Name.
    pub name: PoolName,
    /// Generation of this pool.
    pub generation: u64,
    /// What its members are.
    pub template: Template,
    /// How many to keep warm.
    pub min_warm: u32,
    /// How many sandboxes at once, claimed included.
    pub max_total: u32,
    /// What happens on a change of template.
    pub update_strategy: UpdateStrategy,
    /// Creations in flight, at most.
    pub max_parallel_refills: u32,
    /// How many warm members stay running; those beyond are frozen and their memory reclaimed. `None`: all run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<u32>,
    /// The object that declares it; `None`: SetPools. Neither changes or removes the other's pools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_pool: Option<WarmPoolRef>,
}

/// A `WarmPool` object of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmPoolRef {
    /// Its namespace: the tenant's.
    pub namespace: String,
    /// Its name, which is the pool's.
    pub name: String,
}

impl std::fmt::Display for WarmPoolRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What the cluster's admission said of a template as a Pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It would be admitted.
    Allowed,
    /// It would not.
    Denied {
        /// Whose rule it is, such as "PodSecurity" or "ResourceQuota/small". Bounded.
        rule: String,
        /// In the words of the API server. Bounded.
        message: String,
    },
}

/// A verdict, and of what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// The pool.
    pub pool: PoolName,
    /// The template that was asked about: of another one it means nothing.
    pub template: Box<Template>,
    /// What was said.
    pub verdict: Verdict,
}

/// The whole set of pools under its generation, ordered by name without duplicates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct PoolSet {
    /// Of SetPools; 0: never set.
    pub generation: u64,
    /// Ordered by name.
    pub pools: Vec<PoolSpec>,
    /// What the cluster said of the templates, as far as it was asked. Of what is durable only: empty in a call.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub verdicts: BTreeMap<PoolName, Verdict>,
}

/// Who a claim is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Holder {
    /// Scope.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Unique id.
    pub uid: String,
}

/// Keyed digests (HMAC-SHA256 under the node's key, first 16 bytes) of the fields of a claim request, in the order of
/// the proto, without epoch and deadlines. Equal digests mean equal content; secrets are never stored to compare them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentDigest {
    /// (field name, digest), in proto order: `pool`, `holder`, `ttl`, `personalization.env`, `.files`, `.secrets`,
    /// `.hostname`, `.network_policy`, `on_empty`, and `on_data_loss` where it is said.
    pub fields: Vec<(String, [u8; 16])>,
}

impl ContentDigest {
    /// The first field that differs from `other`, if any.
    #[must_use]
    pub fn first_difference<'a>(&'a self, other: &'a Self) -> Option<&'a str> {
        let mut pairs = self.fields.iter().zip(&other.fields);
        let differs = pairs.find(|(mine, theirs)| mine != theirs);
        // Fields that a request may leave out come last.
        let both = self.fields.len().min(other.fields.len());
        let more = self.fields.get(both).or(other.fields.get(both));
        let first = differs.map(|(mine, _)| mine).or(more)?;
        Some(first.0.as_str())
    }
}

/// What to do when the pool is dry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnEmpty {
    /// Refuse.
    Fail,
    /// Wait in the pool's queue for this many milliseconds.
    Wait {
        /// Milliseconds from now.
        timeout_ms: u64,
    },
    /// Create for this claim.
    Cold,
}

/// What becomes of a claim whose sandbox's image does not come back from the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum OnDataLoss {
    /// It fails with DATA_LOSS.
    #[default]
    Fail,
    /// It gets a fresh sandbox of its pool's template, with nothing of what was in the old one.
    Cold,
}

impl OnDataLoss {
    /// For the journal: the default is not written.
    pub(super) fn is_fail(&self) -> bool {
        *self == Self::Fail
    }
}

/// A claim as asked for. The personalization itself stays with the driver, under the request's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRequest {
    /// The idempotency key.
    pub claim_id: ClaimId,
    /// The pool.
    pub pool: PoolName,
    /// Who it is for.
    pub holder: Holder,
    /// Milliseconds; 0: never expires.
    pub ttl_ms: u64,
    /// For rule 2.
    pub content: ContentDigest,
    /// For rule 7.
    pub on_empty: OnEmpty,
    /// A network policy of its own; `None`: what the template gives.
    pub network_policy: Option<NetworkPolicy>,
    /// Who asks: callers that wait for the same pool take turns. No part of the content.
    pub by: Arc<str>,
    /// `None`: as the template says.
    pub on_data_loss: Option<OnDataLoss>,
}

/// Why a caller puts a sandbox to sleep, as it says itself: the closed list of `HibernateReason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitingOn {
    /// It does not say.
    Unspecified,
    /// A person is to answer.
    Human,
    /// A model is to answer.
    Model,
}

/// Which tier a caller wants a sandbox to sleep in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// hearth chooses.
    Auto,
    /// Frozen, its memory reclaimed.
    Memory,
    /// Checkpointed.
    Disk,
}

/// What a drain does with the claims that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrainMode {
    /// Waits until they end by themselves.
    Wait,
    /// Puts their sandboxes to sleep: those with no stream open at once, the others at the deadline.
    Hibernate,
    /// Releases at the deadline those that are left.
    Evict,
}

/// A drain as asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainRequest {
    /// What happens to claims.
    pub mode: DrainMode,
    /// Milliseconds from its beginning to its deadline; `None`: it has none.
    pub deadline_ms: Option<u64>,
}

/// Who calls, as far as fencing is concerned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// The allocator's epoch, at least 1.
    pub epoch: u64,
    /// Identity of the allocator, for example "uid:0"; `None`: an admin, who acts beside the epoch's owner.
    pub caller: Option<String>,
}
