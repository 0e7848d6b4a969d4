//! `WarmPool` (`hearth.dev/v1alpha1`): a pool of the nodes that it selects, as an object of the cluster. This file is its
//! schema; the manifest in `daemonset/` is rendered from it.
//!
//! ```text
//! WarmPool ─▶ plan (whose, which node, convert) ─▶ Call::SetWarmPools ─▶ machine
//!     ▲                                                                   │ PoolView
//!     └── status: this node's part, and the sums over all parts ◀── status ┘
//! ```
//! Bounds are those of the API of hearthd, told by the API server already when the object is written.

// Columns have the same keys, each its own.
#![allow(clippy::duplicated_attributes)]

mod convert;
mod plan;
mod quantity;
mod run;
mod status;
#[cfg(test)]
mod tests;

pub use quantity::Quantity;
pub use run::{Beside, Check, keep};

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A pool of warm sandboxes on every node that it selects.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "hearth.dev",
    version = "v1alpha1",
    kind = "WarmPool",
    namespaced,
    status = "WarmPoolStatus",
    derive = "PartialEq",
    shortname = "wp",
    doc = "A pool of warm sandboxes on every node that it selects.",
    scale(
        spec_replicas_path = ".spec.minWarm",
        status_replicas_path = ".status.replicas"
    ),
    printcolumn(
        name = "Min",
        type_ = "integer",
        json_path = ".spec.minWarm",
        description = "Members that each node is to keep warm"
    ),
    printcolumn(
        name = "Warm",
        type_ = "integer",
        json_path = ".status.warm",
        description = "Members that can be claimed now, on all nodes"
    ),
    printcolumn(
        name = "Claimed",
        type_ = "integer",
        json_path = ".status.claimed",
        description = "Sandboxes that belong to claims, on all nodes"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Every node has its warm members"
    ),
    printcolumn(
        name = "Nodes",
        type_ = "integer",
        json_path = ".status.nodesTotal",
        description = "Nodes that have the pool"
    ),
    printcolumn(
        name = "Frozen",
        type_ = "integer",
        priority = "1",
        json_path = ".status.frozen",
        description = "Those of the warm ones that are frozen"
    ),
    printcolumn(
        name = "Image",
        type_ = "string",
        priority = "1",
        json_path = ".spec.template.image"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.minWarm <= self.maxTotal", "message": "minWarm must be at most maxTotal", "fieldPath": ".minWarm"},
]))]
pub struct WarmPoolSpec {
    /// How many members each selected node keeps warm. /scale changes this.
    #[schemars(range(min = 0, max = 4096))]
    #[serde(default)]
    pub min_warm: u32,
    /// How many sandboxes there may be at once on each node, claimed ones included.
    #[schemars(range(min = 1, max = 4096))]
    pub max_total: u32,
    /// How many warm members stay running; those beyond are frozen and their memory is reclaimed. More than minWarm means all.
    #[schemars(range(min = 0, max = 4096))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<u32>,
    /// At most this many creations at once on a node; 0: hearthd's default.
    #[schemars(range(min = 0, max = 16))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub max_parallel_refills: u32,
    /// What happens to members when the template changes.
    #[serde(default)]
    pub update_strategy: UpdateStrategy,
    /// Labels that a node must have to get the pool. Empty: every node that runs hearthd.
    #[schemars(extend("maxProperties" = 32))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub node_selector: BTreeMap<String, String>,
    /// What its members are.
    pub template: Template,
}

/// What happens to members when the template changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UpdateStrategy {
    /// Old members stay claimable until used; refills follow the new template.
    #[default]
    OnReplenish,
    /// Old unclaimed members are destroyed at once.
    Recreate,
}

/// What a sandbox of the pool is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "!(has(self.runtimeHandler) && has(self.runtimeClassName))", "message": "at most one of runtimeHandler and runtimeClassName"},
]))]
pub struct Template {
    /// Image reference as known to containerd.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,
    /// Runtime handler of the nodes; left out, and without a runtimeClassName: "gvisor".
    #[schemars(length(min = 1, max = 63))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_handler: Option<String>,
    /// A RuntimeClass instead: its handler is taken, and nodes that can't serve it do not have the pool.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_class_name: Option<String>,
    /// Process started inside when the member is made; empty: none, the sandbox waits for executions.
    #[schemars(length(max = 1024))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub command: Vec<String>,
    /// Environment of every process, beneath the claim's.
    #[schemars(extend("maxProperties" = 256))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub env: BTreeMap<String, String>,
    /// Working directory; empty: the image's.
    #[schemars(length(max = 4096))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub working_dir: String,
    /// Limits of one sandbox.
    #[serde(default, skip_serializing_if = "is_default")]
    pub resources: Resources,
    /// A command run once before the member counts as warm.
    #[schemars(length(max = 1024))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub warm_command: Vec<String>,
    /// The proof of readiness.
    #[serde(default, skip_serializing_if = "is_default")]
    pub readiness: Readiness,
    /// Interpreter that waits for code, from the image: "python" or "perl".
    #[schemars(length(max = 63))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub interpreter: String,
    /// Processes of the interpreter that wait to become a plain Exec of it; only with "python".
    #[schemars(range(min = 0, max = 4))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub prefork: u32,
    /// A claimed sandbox that did nothing for so long is hibernated; 0: never.
    #[schemars(range(min = 0, max = 2_592_000))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub idle_after_seconds: u32,
    /// What becomes of a claim whose sandbox's image does not come back from the disk.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_data_loss: OnDataLoss,
    /// What its sandboxes may reach, unless a claim brings its own policy.
    #[serde(default, skip_serializing_if = "is_default")]
    pub network_policy: NetworkPolicy,
}

/// Limits of one sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// CPU, such as "500m"; left out: unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Memory, such as "512Mi", which is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Writable disk, such as "1Gi", which is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Quantity>,
    /// Processes and threads of a user inside; 0: 1024.
    #[schemars(range(min = 0, max = 4_194_304))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub pids: u32,
    /// Descriptors that a process may have open; 0: 65536.
    #[schemars(range(min = 0, max = 1_048_576))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub open_files: u32,
}

/// How a member proves that it is ready, inside, before it counts as warm.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Readiness {
    /// A command that must exit 0. Empty: the guest's own answer is the proof.
    #[schemars(length(max = 1024))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub command: Vec<String>,
    /// How long it may take; 0: 30 s.
    #[schemars(range(min = 0, max = 300))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub timeout_seconds: u32,
}

/// What becomes of a claim whose sandbox's image does not come back from the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnDataLoss {
    /// It fails.
    #[default]
    Fail,
    /// It gets a fresh sandbox.
    Cold,
}

/// What a sandbox may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "!has(self.allow) || self.allow.size() == 0 || self.mode == 'Allowlist'", "message": "allow belongs to mode Allowlist"},
    {"rule": "self.mode != 'None' || ((!has(self.deny) || self.deny.size() == 0) && (!has(self.publish) || self.publish.size() == 0))",
     "message": "deny and publish mean nothing with mode None: there is no interface"},
]))]
pub struct NetworkPolicy {
    /// What is reached at all.
    #[serde(default)]
    pub mode: NetworkMode,
    /// Destinations of an allowlist.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub allow: Vec<NetworkRule>,
    /// Destinations that are refused before all else.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub deny: Vec<NetworkRule>,
    /// Ports inside that the node may connect to.
    #[schemars(length(max = 16), inner(range(min = 1, max = 65535)))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub publish: Vec<u32>,
}

/// What is reached at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NetworkMode {
    /// Nothing: there is no interface.
    #[default]
    None,
    /// Public addresses.
    Internet,
    /// What is listed.
    Allowlist,
}

/// Destinations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "has(self.cidr) != has(self.name)", "message": "exactly one of cidr and name says where to"},
]))]
pub struct NetworkRule {
    /// An address or a prefix.
    #[schemars(length(min = 1, max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr: Option<String>,
    /// A DNS name, or *.name.
    #[schemars(length(min = 1, max = 255))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Left out: both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Left out: all.
    #[schemars(length(max = 8))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub ports: Vec<PortRange>,
}

/// A transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(clippy::upper_case_acronyms)] // As Kubernetes spells them.
pub enum Protocol {
    /// TCP.
    TCP,
    /// UDP.
    UDP,
}

/// Ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortRange {
    /// The first.
    #[schemars(range(min = 1, max = 65535))]
    pub first: u32,
    /// The last; 0: only the first.
    #[schemars(range(min = 0, max = 65535))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub last: u32,
}

/// What the nodes tell. Each writes its own entry of `nodes`; the rest are sums over the entries that it then saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WarmPoolStatus {
    /// Warm members of the node that has fewest: what /scale shows. It reaches minWarm when all nodes have.
    #[serde(default)]
    pub replicas: u32,
    /// Members that can be claimed now, running or frozen.
    #[serde(default)]
    pub warm: u32,
    /// Those of the warm ones that are frozen.
    #[serde(default)]
    pub frozen: u32,
    /// Sandboxes that belong to claims.
    #[serde(default)]
    pub claimed: u32,
    /// Nodes with all the warm members that they are to have.
    #[serde(default)]
    pub nodes_ready: u32,
    /// Nodes that have the pool, or can't have it.
    #[serde(default)]
    pub nodes_total: u32,
    /// The oldest generation of the object that a node has acted on.
    #[serde(default)]
    pub observed_generation: i64,
    /// Accepted, Admitted, Ready, and Reserved where asked for: true if true on every node; else of the first where it is not.
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// One entry for each node that has the pool, or can't have it.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["node"]))]
    #[serde(default)]
    pub nodes: Vec<NodeStatus>,
}

/// What one node tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// The node's name.
    pub node: String,
    /// The generation of the object that it has acted on.
    #[serde(default)]
    pub observed_generation: i64,
    /// Members that can be claimed now, running or frozen.
    #[serde(default)]
    pub warm: u32,
    /// Those of the warm ones that are frozen.
    #[serde(default)]
    pub frozen: u32,
    /// Sandboxes that belong to claims.
    #[serde(default)]
    pub claimed: u32,
    /// Accepted, Admitted, Ready, and Reserved where asked for.
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// As everywhere in Kubernetes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Accepted, Admitted, Ready or Reserved.
    pub r#type: String,
    /// True, False or Unknown.
    pub status: String,
    /// When the status changed last.
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// One word for programs.
    #[serde(default)]
    pub reason: String,
    /// For people.
    #[serde(default)]
    pub message: String,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
