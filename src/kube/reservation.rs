//! Reservations: a Pod for each pool of this node that does nothing and requests what the pool's sandboxes were promised, so
//! that scheduler and quotas count what they do not see. Accounting only: no claim waits for one, and no sandbox is refused
//! for want of one.
//!
//! ```text
//! PoolView::promised ─▶ plan (create, resize, delete, leave) ─▶ run ─▶ pods, pods/resize
//!                        ▲ what the watch shows of them (pod) ◀──────────┘
//! ```
//! `plan` and `pod` are pure.

mod metrics;
mod plan;
mod pod;
mod run;
#[cfg(test)]
mod tests;

pub use metrics::Metrics;
pub use run::{Standings, keep};

/// How a pool's reservation stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// The cluster counts all of it; or there is nothing to count.
    Granted,
    /// Asked for, or about to be.
    UnderWay,
    /// Less is counted than the pool's sandboxes were promised.
    Short {
        /// CamelCase, of a closed list.
        reason: &'static str,
        /// In the cluster's words; bounded.
        message: String,
    },
}

/// How reservations are made. From the configuration, by `app`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where they live; empty: hearthd's own namespace.
    pub namespace: String,
    /// hearth's image as the cluster knows it.
    pub image: String,
    /// Secrets of the namespace that the image is pulled with.
    pub pull_secrets: Vec<String>,
    /// Their PriorityClass; empty: the cluster's default.
    pub priority_class: String,
}
