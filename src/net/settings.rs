//! What the adapter is told once, at start.

use crate::machine::ids::NodeTag;
use crate::machine::network::Cidr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// Built by `app` from the configuration.
#[derive(Debug, Clone)]
pub struct NetSettings {
    /// hearth's run directory. Namespaces are bound to files in `<run>/netns/`, which containerd must see too.
    pub run: PathBuf,
    /// The mount namespace of containerd, where namespaces are bound, if it is another than this process's.
    pub mounts: Option<PathBuf>,
    /// Of this node: part of every name on the host.
    pub tag: NodeTag,
    /// IPv4 addresses of sandboxes; /8 to /28. The first is the network, the second the gateway and resolver, the third the
    /// node's end. Only this node sees them (masquerade), so every node may use the same.
    pub range4: Cidr,
    /// IPv6 addresses of sandboxes; /48 to /124. Laid out like `range4`.
    pub range6: Cidr,
    /// Cluster ranges (pods, services, nodes): never part of the internet. An allowlist may name them.
    pub closed: Vec<Cidr>,
    /// Addresses that no policy opens, beside the built-in ones: the node's API server by its own address, for example.
    pub never: Vec<Cidr>,
    /// Where hearth's resolver asks, in order. Empty: every question is answered SERVFAIL.
    pub upstream: Vec<SocketAddr>,
    /// Interfaces of the node that lead outside. Empty: those of its default routes.
    pub uplinks: Vec<String>,
    /// Namespaces with an interface, made ahead of need.
    pub spares: usize,
    /// Flows that one sandbox may have at once, as conntrack counts them.
    pub flows_per_sandbox: u32,
    /// DNS questions that one sandbox may ask in a second; twice as many at once.
    pub questions_per_second: u32,
}

impl NetSettings {
    /// The default of `range4`: part of 198.18.0.0/15, set aside for benchmarks inside one network (RFC 2544): never
    /// routed on the internet. 10/8, 172.16/12 and 192.168/16 are what clusters are built from, 100.64/10 is what clouds
    /// give to pods (and Tailscale to everyone), 169.254/16 is the metadata services'.
    pub const RANGE4: Cidr = Cidr {
        address: IpAddr::V4(Ipv4Addr::new(198, 18, 0, 0)),
        length: 16,
    };
    /// The default of `range6`: a unique local prefix (RFC 4193) that spells `hearth`. A name with both kinds of addresses is
    /// then reached over IPv4 first (RFC 6724): right for a node without IPv6.
    pub const RANGE6: Cidr = Cidr {
        address: IpAddr::V6(Ipv6Addr::new(0xfd68, 0x6561, 0x7274, 0x6800, 0, 0, 0, 0)),
        length: 64,
    };
    /// The default of `spares`.
    pub const SPARES: usize = 8;
    /// The default of `flows_per_sandbox`.
    pub const FLOWS: u32 = 1024;
    /// The default of `questions_per_second`.
    pub const QUESTIONS: u32 = 50;

    /// Defaults for the rest.
    #[must_use]
    pub fn new(run: PathBuf, tag: NodeTag) -> Self {
        Self {
            run,
            mounts: None,
            tag,
            range4: Self::RANGE4,
            range6: Self::RANGE6,
            closed: Vec::new(),
            never: Vec::new(),
            upstream: Vec::new(),
            uplinks: Vec::new(),
            spares: Self::SPARES,
            flows_per_sandbox: Self::FLOWS,
            questions_per_second: Self::QUESTIONS,
        }
    }
}
