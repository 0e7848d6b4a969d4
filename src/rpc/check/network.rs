//! Network policies of templates and claims, in one form: prefixes without stray bits, names in lower case, ports merged,
//! rules in order without doubles. So policies that mean the same are equal, and so are the digests of their claims.

use super::{Fields, index};
use crate::api;
use crate::machine::limits;
use crate::machine::network::{
    Cidr, NetworkMode, NetworkPolicy, PortRange, Protocol, Rule, Target,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of a DNS name and of one of its labels (RFC 1035).
const NAME_BYTES: usize = 253;
const LABEL_BYTES: usize = 63;

/// A policy. `None`: none is asked for (absent, or NETWORK_MODE_UNSPECIFIED without rules), or something is wrong, and
/// noted.
pub(super) fn policy(
    fields: &mut Fields,
    at: &str,
    asked: Option<api::NetworkPolicy>,
) -> Option<NetworkPolicy> {
    let asked = asked?;
    let field = |name: &str| format!("{at}.{name}");
    let Ok(mode) = api::NetworkMode::try_from(asked.mode) else {
        fields.wrong(field("mode"), "is not a known value");
        return None;
    };
    let says_more = !(asked.allow.is_empty() && asked.deny.is_empty() && asked.publish.is_empty());
    let mode = match mode {
        api::NetworkMode::Unspecified => {
            fields.need(
                !says_more,
                field("mode"),
                "is required with allow, deny or publish",
            );
            return None;
        }
        api::NetworkMode::None => NetworkMode::None,
        api::NetworkMode::Internet => NetworkMode::Internet,
        api::NetworkMode::Allowlist => NetworkMode::Allowlist,
    };
    let allowlist = mode == NetworkMode::Allowlist;
    fields.need(
        allowlist || asked.allow.is_empty(),
        field("allow"),
        "belongs to NETWORK_MODE_ALLOWLIST only",
    );
    let none = "means nothing with NETWORK_MODE_NONE: there is no interface";
    let open = mode != NetworkMode::None;
    fields.need(open || asked.deny.is_empty(), field("deny"), none);
    fields.need(open || asked.publish.is_empty(), field("publish"), none);
    let most = limits::NETWORK_RULES;
    let fits = asked.allow.len() + asked.deny.len() <= most;
    fields.need(
        fits,
        at,
        format!("must be at most {most} rules in allow and deny together"),
    );
    let allow = rules(fields, &field("allow"), asked.allow);
    let deny = rules(fields, &field("deny"), asked.deny);
    let publish = publish(fields, &field("publish"), &asked.publish);
    Some(NetworkPolicy {
        mode,
        allow: allow?,
        deny: deny?,
        publish: publish?,
    })
}

fn rules(fields: &mut Fields, at: &str, asked: Vec<api::NetworkRule>) -> Option<Vec<Rule>> {
    let mut checked = Some(Vec::new());
    let bounded = asked.into_iter().enumerate().take(limits::NETWORK_RULES);
    for (number, asked) in bounded {
        match (rule(fields, &index(at, number), &asked), &mut checked) {
            (Some(rule), Some(rules)) => rules.push(rule),
            (None, _) => checked = None,
            (_, None) => {}
        }
    }
    let mut rules = checked?;
    rules.sort();
    rules.dedup();
    Some(rules)
}

fn rule(fields: &mut Fields, at: &str, asked: &api::NetworkRule) -> Option<Rule> {
    let to = match (asked.cidr.is_empty(), asked.name.is_empty()) {
        (false, true) => fields
            .take(&format!("{at}.cidr"), cidr(&asked.cidr))
            .map(Target::Cidr),
        (true, false) => fields
            .take(&format!("{at}.name"), name(&asked.name))
            .map(Target::Name),
        (true, true) | (false, false) => {
            fields.wrong(at, "must say where to in exactly one of cidr and name");
            None
        }
    };
    let protocol = match api::Protocol::try_from(asked.protocol) {
        Ok(api::Protocol::Unspecified) => Some(None),
        Ok(api::Protocol::Tcp) => Some(Some(Protocol::Tcp)),
        Ok(api::Protocol::Udp) => Some(Some(Protocol::Udp)),
        Err(_) => {
            fields.wrong(format!("{at}.protocol"), "is not a known value");
            None
        }
    };
    let ports = ports(fields, &format!("{at}.ports"), &asked.ports);
    Some(Rule {
        to: to?,
        protocol: protocol?,
        ports: ports?,
    })
}

/// Merged and in order; every port: none.
fn ports(fields: &mut Fields, at: &str, asked: &[api::PortRange]) -> Option<Vec<PortRange>> {
    let most = limits::NETWORK_RULE_PORTS;
    fields.need(
        asked.len() <= most,
        at,
        format!("must be at most {most} ranges"),
    );
    let mut ranges = Vec::new();
    let mut well = true;
    for (number, range) in asked.iter().enumerate().take(most) {
        let last = if range.last == 0 {
            range.first
        } else {
            range.last
        };
        match (u16::try_from(range.first), u16::try_from(last)) {
            (Ok(first), Ok(last)) if (1..=last).contains(&first) => {
                ranges.push(PortRange { first, last });
            }
            _ => {
                fields.wrong(
                    index(at, number),
                    "must be ports of 1 to 65535, the first not above the last",
                );
                well = false;
            }
        }
    }
    ranges.sort();
    let mut merged: Vec<PortRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(before) if range.first <= before.last.saturating_add(1) => {
                before.last = before.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    let every = PortRange {
        first: 1,
        last: u16::MAX,
    };
    if merged == [every] {
        merged.clear();
    }
    well.then_some(merged)
}

fn publish(fields: &mut Fields, at: &str, asked: &[u32]) -> Option<Vec<u16>> {
    let most = limits::NETWORK_PUBLISHED;
    fields.need(
        asked.len() <= most,
        at,
        format!("must be at most {most} ports"),
    );
    let mut ports = Vec::new();
    let mut well = true;
    for (number, port) in asked.iter().enumerate().take(most) {
        match u16::try_from(*port) {
            Ok(port) if port > 0 => ports.push(port),
            _ => {
                fields.wrong(index(at, number), "must be a port of 1 to 65535");
                well = false;
            }
        }
    }
    ports.sort_unstable();
    ports.dedup();
    well.then_some(ports)
}

/// "192.0.2.0/24", "2001:db8::1": bits beyond the length are dropped.
fn cidr(text: &str) -> Result<Cidr, &'static str> {
    const FORM: &str = "must be an address, or a prefix such as 192.0.2.0/24 or 2001:db8::/32";
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| FORM)?;
    let bits = match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    let length: u8 = match length {
        None => bits,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse().map_err(|_| FORM)?
        }
        Some(_) => return Err(FORM),
    };
    if length > bits {
        return Err(FORM);
    }
    let address = match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
        }
        IpAddr::V6(address) if length >= 96 && address.to_ipv4_mapped().is_some() => {
            return Err("must name an IPv4 address as such, not mapped into IPv6");
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
        }
    };
    Ok(Cidr { address, length })
}

/// "Example.COM." becomes "example.com"; "*.example.com" stays.
fn name(text: &str) -> Result<String, &'static str> {
    const FORM: &str = "must be a DNS name such as example.com, or *.example.com";
    let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let base = text.strip_prefix("*.").unwrap_or(&text);
    let label = |label: &str| {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let edges = label.starts_with('-') || label.ends_with('-');
        (1..=LABEL_BYTES).contains(&label.len()) && label.bytes().all(word) && !edges
    };
    if text.len() > NAME_BYTES || !base.split('.').all(label) {
        return Err(FORM);
    }
    // Resolvers read a last label of digits as a part of an address.
    let last = base.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return Err("must be a DNS name; addresses go into cidr");
    }
    Ok(text)
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
