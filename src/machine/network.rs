//! What a sandbox may reach. Values only: checked for shape and bounds by `rpc`, compared by the machine, enforced by
//! `net`. Addresses are plain data here (`core::net`); nothing in this room opens a socket.

use core::net::IpAddr;
use serde::{Deserialize, Serialize};

/// What a sandbox may begin to talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum NetworkMode {
    /// No interface at all: loopback only. Nothing can be opened later, for gVisor reads its interfaces at its start.
    #[default]
    None,
    /// Every public address: never private, link-local, carrier-grade NAT, multicast, metadata, the node's own
    /// addresses, another sandbox, or a configured cluster range.
    Internet,
    /// What `allow` lists and nothing else. Empty: an interface that reaches nothing until a claim brings its policy.
    Allowlist,
}

/// Protocol of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Ports from `first` to `last`, both included, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortRange {
    /// Lowest.
    pub first: u16,
    /// Highest.
    pub last: u16,
}

/// A prefix; bits beyond `length` are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cidr {
    /// Its first address.
    pub address: IpAddr,
    /// Bits that count, at most 32 (IPv4) or 128 (IPv6).
    pub length: u8,
}

/// The other end of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Target {
    /// Addresses. In an allowlist a private range may be named: that is how a cluster service is reached. Never
    /// reached, whatever is listed: another sandbox, the node's own addresses, metadata, multicast, loopback.
    Cidr(Cidr),
    /// A DNS name in lower case without the last dot, or `*.name` for every name beneath it. What hearth's resolver
    /// answers for it is open for as long as the answer lives.
    Name(String),
}

/// One line of `allow` or `deny`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rule {
    /// Where to.
    pub to: Target,
    /// `None`: both.
    pub protocol: Option<Protocol>,
    /// Empty: every port.
    pub ports: Vec<PortRange>,
}

/// A network policy: of a template, or of one claim. The default is `None`, closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct NetworkPolicy {
    /// The mode.
    pub mode: NetworkMode,
    /// Only with `Allowlist`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Rule>,
    /// Beats `allow` and `Internet`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<Rule>,
    /// TCP ports inside that others may open on the sandbox's own address; empty: only hearth's Connect comes in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<u16>,
}

impl NetworkPolicy {
    /// Must the sandbox be made with an interface?
    #[must_use]
    pub fn needs_interface(&self) -> bool {
        self.mode != NetworkMode::None
    }
}
