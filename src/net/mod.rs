//! The network of sandboxes: namespaces and veth pairs made ahead of need, and the policy on the host's side of them.
//!
//! Owns every netns, link, address and nftables element that carries a sandbox id of this node. Never decides what a
//! policy is (`machine::network`), never touches what another made.

use crate::machine::ids::{PoolName, SandboxId};
use crate::machine::network::NetworkPolicy;
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

mod conntrack;
mod enforce;
pub mod fakes;
mod keeper;
mod links;
mod linux;
mod metrics;
mod netlink;
mod nft;
mod node_side;
mod plan;
mod reconcile;
mod report;
mod resolver;
mod router;
mod rtnl;
mod rules;
mod settings;
mod spaces;
mod state;
mod table;
mod worker;

pub use linux::LinuxNetwork;
pub use metrics::NetMetrics;
pub use settings::NetSettings;
pub use spaces::mount_there;

/// Why something could not be done to a sandbox's network. The sandbox is then not handed out (design, MUST 8).
#[derive(Debug, Clone, thiserror::Error)]
pub enum NetError {
    /// The address range is used up.
    #[error("no free address is left in {0}")]
    AddressesExhausted(String),
    /// The sandbox has no interface, so no policy can be applied to it.
    #[error("the sandbox has no network interface")]
    NoInterface,
    /// The kernel refused; what was begun is undone or found by `reconcile`.
    #[error("{what}: {detail}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// Bounded.
        detail: String,
    },
    /// The deadline passed.
    #[error("{what} did not finish in {seconds} s")]
    DeadlineExceeded {
        /// What was tried.
        what: &'static str,
        /// Its deadline.
        seconds: u64,
    },
}

/// What a sandbox is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// For the spec's network namespace.
    pub netns: PathBuf,
    /// Its addresses.
    pub ipv4: Ipv4Addr,
    /// Its addresses.
    pub ipv6: Ipv6Addr,
    /// Where hearth's resolver answers it: for its resolv.conf.
    pub resolvers: Vec<IpAddr>,
}

/// A sandbox whose network must be in force: for reconcile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub id: SandboxId,
    /// Whose packets are counted there.
    pub pool: PoolName,
    /// The claim's policy, else the template's.
    pub policy: NetworkPolicy,
}

/// What is in force for a sandbox, read from the kernel, and what was denied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetReport {
    /// Interface on the node; empty: none.
    pub interface: String,
    /// Addresses of the sandbox.
    pub addresses: Vec<IpAddr>,
    /// The policy in force.
    pub policy: NetworkPolicy,
    /// Names that are open now, each with its addresses and the seconds they stay open.
    pub pinned: Vec<(String, IpAddr, u64)>,
    /// Packets it sent that were dropped.
    pub denied_packets: u64,
    /// The last denied destinations, newest first, bounded: (protocol, address, port, packets).
    pub denied: Vec<(String, IpAddr, u16, u64)>,
}

/// What hearth needs of the node's network. Every call has a deadline of its own inside and is idempotent.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Gives a sandbox about to be made its interface, with the policy already in force. Asked again for the same id:
    /// the same interface, addresses put back.
    async fn furnish(
        &self,
        id: SandboxId,
        pool: &PoolName,
        policy: &NetworkPolicy,
    ) -> Result<Interface, NetError>;

    /// Puts addresses, routes and neighbours back into the netns: gVisor takes them off the link at each start and
    /// restore (runtime-facts §3). Before every restore. Also makes the whole interface anew, with the same addresses
    /// where they are free, when the netns is gone (a reboot).
    async fn refurnish(
        &self,
        id: SandboxId,
        pool: &PoolName,
        policy: &NetworkPolicy,
    ) -> Result<Interface, NetError>;

    /// Replaces the policy of a sandbox: one nftables transaction; flows no longer allowed are cut.
    async fn apply(&self, id: SandboxId, policy: &NetworkPolicy) -> Result<(), NetError>;

    /// Takes everything of a sandbox away. `Ok` only when it was verified that nothing is left. One that has nothing: `Ok`.
    async fn release(&self, id: SandboxId) -> Result<(), NetError>;

    /// Makes the kernel match: policies in force for all of `wanted`, everything else of this node that carries a
    /// sandbox id removed. Returns those of `wanted` whose interface is gone.
    async fn reconcile(&self, wanted: Vec<Wanted>) -> Result<Vec<SandboxId>, NetError>;

    /// What is in force for a sandbox.
    async fn report(&self, id: SandboxId) -> Result<NetReport, NetError>;

    /// Packets over each sandbox's interface so far, both ways.
    async fn packets(&self) -> Result<BTreeMap<SandboxId, u64>, NetError>;

    /// Sandboxes that something came in for which their policy lets in and somebody inside may wait for, with how long ago
    /// the last of it came: a connection to a published port, data on a TCP connection, a UDP packet. What came long ago
    /// (a minute) is not told.
    async fn knocks(&self) -> Result<BTreeMap<SandboxId, Duration>, NetError>;

    /// Packets denied so far, per pool. For metrics; never waits on the kernel longer than its deadline.
    async fn denied(&self) -> Result<BTreeMap<PoolName, u64>, NetError>;
}
