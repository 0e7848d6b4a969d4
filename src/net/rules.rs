//! A policy as the kernel is to have it: pure. Rules may overlap as they like; the kernel's sets of ranges may not, so they
//! are cut into boxes (a range of addresses × a protocol × a range of ports) that do not.

use crate::machine::network::{
    Cidr, NetworkMode, NetworkPolicy, PortRange, Protocol, Rule, Target,
};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Boxes of one policy, each direction, at most. What a policy of the greatest allowed size needs if its rules do not
/// cross each other at every address and every port.
pub(super) const BOXES: usize = 4096;

/// Addresses that are never reached, whatever a policy says: this network, loopback, link-local with the metadata services,
/// multicast and reserved. (IANA's special-purpose registries; the metadata service of EC2 over IPv6, of Alibaba.)
pub(super) const NEVER: &[(&str, u8)] = &[
    ("0.0.0.0", 8),
    ("127.0.0.0", 8),
    ("169.254.0.0", 16),
    ("100.100.100.200", 32),
    ("224.0.0.0", 3),
    ("::", 128),
    ("::1", 128),
    ("::ffff:0:0", 96),
    ("fe80::", 10),
    ("fec0::", 10),
    ("fd00:ec2::254", 128),
    ("ff00::", 8),
];

/// Addresses that are not the internet: private, carrier-grade NAT, documentation, benchmarks, other special purposes, and
/// what carries IPv4 inside (6to4, NAT64, Teredo): a way around the rules for IPv4.
pub(super) const CLOSED: &[(&str, u8)] = &[
    ("10.0.0.0", 8),
    ("100.64.0.0", 10),
    ("172.16.0.0", 12),
    ("192.0.0.0", 24),
    ("192.0.2.0", 24),
    ("192.88.99.0", 24),
    ("192.168.0.0", 16),
    ("198.18.0.0", 15),
    ("198.51.100.0", 24),
    ("203.0.113.0", 24),
    ("::", 3),
    ("2001::", 23),
    ("2001:db8::", 32),
    ("2002::", 16),
    ("3fff::", 20),
    ("4000::", 2),
    ("8000::", 1),
];

/// Prefixes of one of the lists above.
pub(super) fn listed(list: &[(&str, u8)]) -> Vec<Cidr> {
    let cidr = |(address, length): &(&str, u8)| {
        Some(Cidr {
            address: address.parse().ok()?,
            length: *length,
        })
    };
    list.iter().filter_map(cidr).collect()
}

/// An address as a number: IPv4 in the low 32 bits.
pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// The address with that number; `four`: IPv4.
pub(super) fn address(four: bool, number: u128) -> IpAddr {
    match (four, u32::try_from(number)) {
        (true, number) => Ipv4Addr::from(number.unwrap_or(u32::MAX)).into(),
        (false, _) => Ipv6Addr::from(number).into(),
    }
}

/// First and last address of a prefix.
pub(super) fn span(cidr: Cidr) -> (u128, u128) {
    let bits: u32 = if cidr.address.is_ipv4() { 32 } else { 128 };
    let host = bits.saturating_sub(cidr.length.into());
    let mask = 1_u128.checked_shl(host).map_or(u128::MAX, |size| size - 1);
    let first = number(cidr.address) & !mask;
    (first, first | mask)
}

/// Does the prefix have the address?
pub(super) fn covers(cidr: Cidr, address: IpAddr) -> bool {
    let (first, last) = span(cidr);
    cidr.address.is_ipv4() == address.is_ipv4() && (first..=last).contains(&number(address))
}

/// The prefixes of a family as ranges: sorted, apart from each other.
pub(super) fn merged(prefixes: &[Cidr], four: bool) -> Vec<(u128, u128)> {
    let of_family = prefixes.iter().filter(|c| c.address.is_ipv4() == four);
    let mut spans: Vec<_> = of_family.map(|cidr| span(*cidr)).collect();
    spans.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (first, last) in spans {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// A range of addresses with a range of ports of a protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reach {
    pub first: IpAddr,
    pub last: IpAddr,
    pub protocol: Protocol,
    pub ports: PortRange,
}

/// The number of a protocol in a packet.
pub(super) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const EVERY_PORT: PortRange = PortRange {
    first: 0,
    last: u16::MAX,
};

/// A name of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NameRule {
    /// `name` or `*.name`.
    pub pattern: String,
    pub protocol: Option<Protocol>,
    pub ports: Vec<PortRange>,
}

/// A policy ready for the kernel and the resolver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Compiled {
    /// Everything public.
    pub internet: bool,
    pub allow: Vec<Reach>,
    pub deny: Vec<Reach>,
    pub publish: BTreeSet<u16>,
    pub allow_names: Vec<NameRule>,
    pub deny_names: Vec<NameRule>,
    /// Of the policy as it was given.
    pub digest: [u8; 16],
}

/// The policy's rules need more than [`BOXES`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its rules cross each other too often: more than {BOXES} ranges")]
pub(super) struct TooManyRanges;

impl Compiled {
    pub(super) fn of(policy: &NetworkPolicy) -> Result<Self, TooManyRanges> {
        let listed: &[Rule] = match policy.mode {
            NetworkMode::Allowlist => &policy.allow,
            NetworkMode::None | NetworkMode::Internet => &[],
        };
        let published = policy.mode != NetworkMode::None;
        Ok(Self {
            internet: policy.mode == NetworkMode::Internet,
            allow: boxes(listed)?,
            deny: boxes(&policy.deny)?,
            publish: policy
                .publish
                .iter()
                .copied()
                .filter(|_| published)
                .collect(),
            allow_names: names(listed),
            deny_names: names(&policy.deny),
            digest: digest(policy),
        })
    }
}

/// The same for equal policies, also after a restart.
fn digest(policy: &NetworkPolicy) -> [u8; 16] {
    let text = serde_json::to_vec(policy).unwrap_or_default();
    let whole: [u8; 32] = Sha256::digest(&text).into();
    std::array::from_fn(|at| whole[at])
}

fn names(rules: &[Rule]) -> Vec<NameRule> {
    let name = |rule: &Rule| match &rule.to {
        Target::Name(pattern) => Some(NameRule {
            pattern: pattern.clone(),
            protocol: rule.protocol,
            ports: rule.ports.clone(),
        }),
        Target::Cidr(_) => None,
    };
    rules.iter().filter_map(name).collect()
}

fn boxes(rules: &[Rule]) -> Result<Vec<Reach>, TooManyRanges> {
    let mut found = Vec::new();
    for four in [true, false] {
        for protocol in PROTOCOLS {
            let areas = rules.iter().filter_map(|rule| match &rule.to {
                Target::Cidr(cidr) if cidr.address.is_ipv4() == four => {
                    let speaks = rule.protocol.is_none_or(|only| only == protocol);
                    speaks.then(|| (span(*cidr), rule.ports.as_slice()))
                }
                _ => None,
            });
            cut(&areas.collect::<Vec<_>>(), |span, ports| {
                found.push(Reach {
                    first: address(four, span.0),
                    last: address(four, span.1),
                    protocol,
                    ports,
                });
                if found.len() > BOXES {
                    return Err(TooManyRanges);
                }
                Ok(())
            })?;
        }
    }
    Ok(found)
}

type Area<'a> = ((u128, u128), &'a [PortRange]);

/// Cuts areas at every address where one begins or ends; each piece gets the ports of all that cover it.
fn cut(
    areas: &[Area<'_>],
    mut each: impl FnMut((u128, u128), PortRange) -> Result<(), TooManyRanges>,
) -> Result<(), TooManyRanges> {
    let mut begins: BTreeSet<u128> = areas.iter().map(|((first, _), _)| *first).collect();
    begins.extend(
        areas
            .iter()
            .filter_map(|((_, last), _)| last.checked_add(1)),
    );
    let begins: Vec<u128> = begins.into_iter().collect();
    // Neighbours with the same ports are one piece.
    let mut piece: Option<((u128, u128), Vec<PortRange>)> = None;
    for (at, first) in begins.iter().enumerate() {
        let last = begins.get(at + 1).map_or(u128::MAX, |next| next - 1);
        let covering = areas
            .iter()
            .filter(|(span, _)| span.0 <= *first && *first <= span.1);
        let mut ends = covering.clone().map(|((_, last), _)| *last);
        let last = ends.next().map_or(last, |end| last.min(end));
        let ports = union(covering.map(|(_, ports)| *ports));
        match &mut piece {
            Some((span, same)) if *same == ports && span.1.checked_add(1) == Some(*first) => {
                span.1 = last;
            }
            _ => {
                flush(piece.take(), &mut each)?;
                piece = Some(((*first, last), ports));
            }
        }
    }
    flush(piece, &mut each)
}

fn flush(
    piece: Option<((u128, u128), Vec<PortRange>)>,
    each: &mut impl FnMut((u128, u128), PortRange) -> Result<(), TooManyRanges>,
) -> Result<(), TooManyRanges> {
    let (span, ports) = piece.unwrap_or_default();
    ports.into_iter().try_for_each(|ports| each(span, ports))
}

/// Port ranges that do not touch. A list without any stands for every port.
pub(super) fn union<'a>(lists: impl Iterator<Item = &'a [PortRange]>) -> Vec<PortRange> {
    let mut all: Vec<PortRange> = Vec::new();
    for list in lists {
        if list.is_empty() {
            return vec![EVERY_PORT];
        }
        all.extend_from_slice(list);
    }
    all.sort_unstable();
    let mut merged: Vec<PortRange> = Vec::new();
    for range in all {
        match merged.last_mut() {
            Some(before) if range.first <= before.last.saturating_add(1) => {
                before.last = before.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// What is open at the addresses that names led to: each address with the names that did.
pub(super) fn pinned(rules: &[NameRule], pins: &BTreeMap<IpAddr, BTreeSet<String>>) -> Vec<Reach> {
    let mut found = Vec::new();
    for (address, names) in pins {
        for protocol in PROTOCOLS {
            let speaking = rules.iter().filter(|rule| {
                rule.protocol.is_none_or(|only| only == protocol)
                    && names.iter().any(|name| matches(&rule.pattern, name))
            });
            for ports in union(speaking.map(|rule| rule.ports.as_slice())) {
                found.push(Reach {
                    first: *address,
                    last: *address,
                    protocol,
                    ports,
                });
            }
        }
    }
    found
}

/// Is the name (lower case, no last dot) one that the pattern stands for? `*.name` is every name beneath, not `name`.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(parent) => name
            .strip_suffix(parent)
            .and_then(|rest| rest.strip_suffix('.'))
            .is_some_and(|rest| !rest.is_empty()),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests;
