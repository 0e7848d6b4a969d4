//! `[kubernetes]`: hearthd's own calls to the Kubernetes API.

use super::Tokens;
use super::policy::PolicyMode;
use super::reservation::{Reservation, may_be_namespace};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// hearthd's own calls to the Kubernetes API. Nothing that a claim needs waits for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Kubernetes {
    /// Make them: the node's label and startup taint, its cordon, RuntimeClasses, Events.
    pub enabled: bool,
    /// Name of the Node object that hearthd runs on. Empty: the environment variable NODE_NAME, which the DaemonSet sets.
    pub node: String,
    /// A kubeconfig file. Empty: the service account of hearthd's pod.
    pub kubeconfig: PathBuf,
    /// Seconds that one call may take.
    pub call_seconds: u64,
    /// Keep the pools that WarmPool objects of the cluster declare for this node.
    pub warm_pools: bool,
    /// Ask the cluster whether it would admit each template as a Pod of the tenant's namespace: "off"; "audit" tells;
    /// "enforce" makes no sandbox of a template that is denied, or not asked about yet.
    pub admission: PolicyMode,
    /// Seconds after which it is asked about the same template again.
    pub admission_seconds: u64,
    /// The tenant's namespace of pools that SetPools declares. Empty: they have none, and the cluster is not asked about them.
    pub tenant_namespace: String,
    /// What scheduler and quotas of the cluster see of the sandboxes.
    pub reservation: Reservation,
    /// Callers with a ServiceAccount token.
    pub tokens: Tokens,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            enabled: false,
            node: String::new(),
            kubeconfig: PathBuf::new(),
            call_seconds: 5,
            warm_pools: false,
            admission: PolicyMode::Off,
            admission_seconds: 300,
            tenant_namespace: String::new(),
            reservation: Reservation::default(),
            tokens: Tokens::default(),
        }
    }
}

impl Kubernetes {
    /// What is wrong with the values.
    pub(super) fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        if !(1..=60).contains(&self.call_seconds) {
            found.push(("kubernetes.call_seconds", "must be 1 to 60".into()));
        }
        if !(self.kubeconfig.is_absolute() || self.kubeconfig.as_os_str().is_empty()) {
            found.push(("kubernetes.kubeconfig", "must be an absolute path".into()));
        }
        if !self.node.is_empty() && !is_node_name(&self.node) {
            found.push((
                "kubernetes.node",
                "must be a node's name: at most 253 of a-z, 0-9, '-' and '.'".into(),
            ));
        }
        if !(10..=86_400).contains(&self.admission_seconds) {
            found.push(("kubernetes.admission_seconds", "must be 10 to 86400".into()));
        }
        if !may_be_namespace(&self.tenant_namespace) {
            found.push((
                "kubernetes.tenant_namespace",
                "must be a namespace's name: at most 63 of a-z, 0-9 and '-'".into(),
            ));
        }
        if !self.enabled && (self.warm_pools || self.admission != PolicyMode::Off) {
            found.push((
                "kubernetes.enabled",
                "must be true for warm_pools and admission".into(),
            ));
        }
        found.extend(self.reservation.problems(self.enabled));
        if self.enabled && cfg!(not(feature = "kube")) {
            found.push((
                "kubernetes.enabled",
                "this hearthd was built without the feature `kube`".into(),
            ));
        }
        found
    }
}

/// Is it shaped as the name of a Node object is (an RFC 1123 subdomain)?
#[must_use]
pub fn is_node_name(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    (1..=253).contains(&name.len()) && name.bytes().all(good)
}
