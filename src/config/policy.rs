//! `[policy]`: what templates of pools must keep to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What comes of a policy that is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PolicyMode {
    /// It is not looked at.
    Off,
    /// It is told and counted.
    Audit,
    /// Such a pool is refused, or gets no sandboxes.
    Enforce,
}

/// Keys that take a mode.
pub(super) const MODES: [&str; 7] = [
    "kubernetes.admission",
    "policy.digest_pinned",
    "policy.image_allowed",
    "policy.limits_set",
    "policy.namespace_allowed",
    "policy.network_policy_set",
    "policy.not_privileged",
];

/// What templates of pools must keep to: each check is "off", "audit" (told and counted) or "enforce" (such a pool is
/// refused; one that is there already gets no further sandbox).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// The CPU has a limit; memory, processes, disk and descriptors always have.
    pub limits_set: PolicyMode,
    /// The runtime handler gives sandboxes a kernel of their own; a template has no other way to ask for privileges.
    pub not_privileged: PolicyMode,
    /// The network policy is none or an allowlist, not the whole internet.
    pub network_policy_set: PolicyMode,
    /// The tenant's namespace is in namespaces. Pools without one pass.
    pub namespace_allowed: PolicyMode,
    /// The image is in images.
    pub image_allowed: PolicyMode,
    /// The image is named by its digest.
    pub digest_pinned: PolicyMode,
    /// For namespace_allowed: names, or beginnings of names that end in *.
    pub namespaces: Vec<String>,
    /// For image_allowed: references, or beginnings of references that end in /*, :* or @*.
    pub images: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            limits_set: PolicyMode::Off,
            not_privileged: PolicyMode::Off,
            network_policy_set: PolicyMode::Off,
            namespace_allowed: PolicyMode::Off,
            image_allowed: PolicyMode::Off,
            digest_pinned: PolicyMode::Off,
            namespaces: Vec::new(),
            images: Vec::new(),
        }
    }
}

impl Policy {
    /// What is wrong with the values.
    pub(super) fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        for pattern in &self.images {
            let beginning = pattern.strip_suffix('*');
            let cut = beginning.is_none_or(|it| it.ends_with(['/', ':', '@']));
            if pattern.is_empty() || !cut || beginning.unwrap_or(pattern).contains('*') {
                let what = format!(
                    "{pattern:?}: must be a reference, or a beginning that ends in /*, :* or @*: a name that only begins the same is somebody else's"
                );
                found.push(("policy.images", what));
            }
        }
        for pattern in &self.namespaces {
            if pattern.is_empty() || pattern.trim_end_matches('*').contains('*') {
                let what = format!("{pattern:?}: must be a name, or the beginning of one and *");
                found.push(("policy.namespaces", what));
            }
        }
        let needed = [
            (self.image_allowed, self.images.is_empty(), "policy.images"),
            (
                self.namespace_allowed,
                self.namespaces.is_empty(),
                "policy.namespaces",
            ),
        ];
        for (mode, empty, key) in needed {
            if mode != PolicyMode::Off && empty {
                found.push((key, "is empty: nothing would be allowed".into()));
            }
        }
        found
    }
}
