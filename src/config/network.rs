//! `[network]`: whether sandboxes get a network, and from what.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// The network of sandboxes. docs/network.md says what hearthd needs for it and does with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// Sandboxes may have a network, as their pool's template says. Takes CAP_NET_ADMIN, CAP_SYS_ADMIN and nftables. Without
    /// it only templates with the network policy none are served.
    pub enabled: bool,
    /// IPv4 addresses of sandboxes, /8 to /28. Only this node sees them, so every node may use the same; nothing else on
    /// the node may.
    pub range4: String,
    /// IPv6 addresses of sandboxes, /48 to /124.
    pub range6: String,
    /// Ranges of the cluster (pods, services, nodes): never part of the internet. An allowlist may name them.
    pub cluster_ranges: Vec<String>,
    /// Addresses that no policy opens, beside the node's own, metadata, multicast and other sandboxes.
    pub never: Vec<String>,
    /// Resolvers that hearth's own asks for sandboxes, in order: addresses, with a port if it is not 53. Empty: those of
    /// the node's /etc/resolv.conf.
    pub resolvers: Vec<String>,
    /// Interfaces of the node that lead outside. Empty: those of its default routes.
    pub uplinks: Vec<String>,
    /// Network namespaces made ahead of need.
    pub spares: usize,
    /// Flows that one sandbox may have at once.
    pub flows_per_sandbox: u32,
    /// DNS questions that one sandbox may ask in a second.
    pub questions_per_second: u32,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            enabled: false,
            range4: "198.18.0.0/16".into(),
            range6: "fd68:6561:7274:6800::/64".into(),
            cluster_ranges: Vec::new(),
            never: Vec::new(),
            resolvers: Vec::new(),
            uplinks: Vec::new(),
            spares: 8,
            flows_per_sandbox: 1024,
            questions_per_second: 50,
        }
    }
}

/// A prefix as the configuration writes it: "192.0.2.0/24" or one address. `None`: it is none, or has bits beyond its
/// length, which most often is a slip.
#[must_use]
pub fn prefix(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length.parse::<u8>().ok()?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let (bits, set) = match address {
        IpAddr::V4(address) => (32, address.to_bits().trailing_zeros()),
        IpAddr::V6(address) => (128, address.to_bits().trailing_zeros()),
    };
    let length = length.unwrap_or(bits);
    let beyond = u32::from(bits.checked_sub(length)?);
    (set >= beyond).then_some((address, length))
}

/// A resolver as the configuration writes it: an address, with a port if it is not 53.
#[must_use]
pub fn resolver(text: &str) -> Option<SocketAddr> {
    let port_53 = |address: IpAddr| SocketAddr::new(address, 53);
    let address = text.parse::<IpAddr>().map(port_53);
    address.or_else(|_| text.parse()).ok()
}

impl Network {
    /// What is wrong with the values.
    pub(super) fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let within = |text: &str, v4: bool, lengths: std::ops::RangeInclusive<u8>| {
            prefix(text).is_some_and(|(address, length)| {
                address.is_ipv4() == v4 && lengths.contains(&length)
            })
        };
        if !within(&self.range4, true, 8..=28) {
            let what = "must be an IPv4 prefix of /8 to /28 such as \"198.18.0.0/16\"";
            found.push(("network.range4", what.into()));
        }
        if !within(&self.range6, false, 48..=124) {
            let what = "must be an IPv6 prefix of /48 to /124 such as \"fd68:6561:7274:6800::/64\"";
            found.push(("network.range6", what.into()));
        }
        let mut each = |key, texts: &[String], well: fn(&str) -> bool, form: &str| {
            if let Some(wrong) = texts.iter().find(|text| !well(text)) {
                found.push((key, format!("{wrong:?} must be {form}")));
            }
        };
        let form = "an address, or a prefix without bits beyond its length";
        let well = |text: &str| prefix(text).is_some();
        each("network.cluster_ranges", &self.cluster_ranges, well, form);
        each("network.never", &self.never, well, form);
        let well = |text: &str| resolver(text).is_some();
        let form = "an address, with a port if it is not 53";
        each("network.resolvers", &self.resolvers, well, form);
        let well = |text: &str| {
            let odd = |c: char| c.is_whitespace() || c == '/' || c.is_control();
            (1..16).contains(&text.len()) && !text.contains(odd)
        };
        each(
            "network.uplinks",
            &self.uplinks,
            well,
            "an interface's name",
        );
        if self.spares > 1024 {
            found.push(("network.spares", "must be at most 1024".into()));
        }
        if self.flows_per_sandbox == 0 {
            found.push(("network.flows_per_sandbox", "must be at least 1".into()));
        }
        if self.questions_per_second == 0 {
            let what = "must be at least 1".into();
            found.push(("network.questions_per_second", what));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::{Network, prefix, resolver};

    #[test]
    fn values_are_held_to_their_form() {
        assert!(Network::default().problems().is_empty());
        let wrong = Network {
            range4: "198.18.0.1/16".into(),
            range6: "198.18.0.0/16".into(),
            cluster_ranges: vec!["10.0.0.0/8".into(), "ten".into()],
            never: vec!["192.0.2.0/33".into()],
            resolvers: vec!["dns.example".into()],
            uplinks: vec!["eth 0".into()],
            spares: 5000,
            flows_per_sandbox: 0,
            questions_per_second: 0,
            enabled: true,
        };
        let keys: Vec<_> = wrong.problems().into_iter().map(|(key, _)| key).collect();
        let short: Vec<_> = keys.iter().map(|key| &key["network.".len()..]).collect();
        let expected = [
            "range4",
            "range6",
            "cluster_ranges",
            "never",
            "resolvers",
            "uplinks",
            "spares",
            "flows_per_sandbox",
            "questions_per_second",
        ];
        assert_eq!(short, expected);
    }

    #[test]
    fn prefixes_and_resolvers() {
        for (text, length) in [
            ("192.0.2.0/24", 24),
            ("192.0.2.1", 32),
            ("0.0.0.0/0", 0),
            ("::/0", 0),
            ("fd00::1", 128),
        ] {
            assert_eq!(prefix(text).unwrap().1, length, "{text}");
        }
        assert_eq!(resolver("192.0.2.1").unwrap().to_string(), "192.0.2.1:53");
        assert_eq!(
            resolver("[fd00::1]:5353").unwrap().to_string(),
            "[fd00::1]:5353"
        );
    }
}
