//! `[kubernetes.reservation]`: Pods that request what sandboxes were promised.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether the cluster counts what pools use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReservationMode {
    /// Not by hearth.
    None,
    /// By a Pod for each pool of the node.
    Pod,
}

/// What scheduler and quotas of the cluster see of the sandboxes of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Reservation {
    /// "none"; or "pod": for each pool a Pod that does nothing and requests what the pool's sandboxes were promised, with
    /// the overhead of their RuntimeClass. It is resized in place: Kubernetes 1.33 or newer.
    pub mode: ReservationMode,
    /// Namespace of these Pods. Empty: hearthd's own.
    pub namespace: String,
    /// hearth's image as the cluster knows it: what runs in them. Needed with mode "pod".
    pub image: String,
    /// Secrets of that namespace that the image is pulled with.
    pub pull_secrets: Vec<String>,
    /// PriorityClass of these Pods. Empty: the cluster's default, which whatever is more important may take away.
    pub priority_class: String,
}

impl Default for Reservation {
    fn default() -> Self {
        Self {
            mode: ReservationMode::None,
            namespace: String::new(),
            image: String::new(),
            pull_secrets: Vec::new(),
            priority_class: String::new(),
        }
    }
}

impl Reservation {
    /// What is wrong with the values. `enabled`: hearthd calls the API server at all.
    pub(super) fn problems(&self, enabled: bool) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        if !may_be_namespace(&self.namespace) {
            found.push((
                "kubernetes.reservation.namespace",
                "must be a namespace's name: at most 63 of a-z, 0-9 and '-'".into(),
            ));
        }
        let names = self.pull_secrets.iter();
        let mut names = names.chain(
            [&self.priority_class]
                .into_iter()
                .filter(|it| !it.is_empty()),
        );
        if !names.all(|name| super::is_node_name(name)) {
            found.push((
                "kubernetes.reservation",
                "pull_secrets and priority_class must be names: at most 253 of a-z, 0-9, '-' and '.'".into(),
            ));
        }
        if self.mode == ReservationMode::None {
            return found;
        }
        if !enabled {
            found.push((
                "kubernetes.enabled",
                "must be true for kubernetes.reservation.mode".into(),
            ));
        }
        if self.image.is_empty() || self.image.len() > 512 {
            found.push((
                "kubernetes.reservation.image",
                "must be hearth's image, at most 512 bytes, with mode \"pod\"".into(),
            ));
        }
        found
    }
}

/// Is it shaped as a namespace's name, or empty?
pub(super) fn may_be_namespace(name: &str) -> bool {
    let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    name.len() <= 63 && name.bytes().all(label)
}
