//! What may be asked, and which answers stay: pure.

use crate::machine::network::Cidr;
use crate::net::rules::{Compiled, NameRule, covers, matches};
use simple_dns::rdata::{OPT, RData};
use simple_dns::{CLASS, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Bytes of a question, at most: a name has 255.
pub(super) const QUESTION_BYTES: usize = 1232;
/// Bytes of an answer over UDP without EDNS.
const PLAIN_BYTES: u16 = 512;
/// Bytes of an answer over UDP that never comes in pieces (DNS flag day 2020).
pub(super) const UDP_BYTES: u16 = 1232;
/// Records of an answer that are looked at.
const RECORDS: usize = 128;
/// An address stays open at least so long: time to connect after the answer.
pub(crate) const PIN_MIN: Duration = Duration::from_secs(30);
/// And at most so long; the answer says no more either.
pub(crate) const PIN_MAX: Duration = Duration::from_secs(3600);

/// A question that was read.
#[derive(Debug, Clone)]
pub(super) struct Asking {
    pub id: u16,
    pub question: Question<'static>,
    /// In lower case, without the last dot.
    pub name: String,
    /// Bytes of the answer that the asker takes over UDP.
    pub room: u16,
}

/// Why there is no question to ask on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Malformed {
    /// It deserves no answer.
    Nothing,
    /// It is a message with this id, but no question that hearth answers.
    Unsupported(u16),
}

/// Reads a question. Every count in it is checked before anything is made room for.
pub(super) fn read(bytes: &[u8]) -> Result<Asking, Malformed> {
    let header: &[u8; 12] = bytes.first_chunk().ok_or(Malformed::Nothing)?;
    let field = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    // An answer is never answered.
    if bytes.len() > QUESTION_BYTES || header[2] & 0x80 != 0 {
        return Err(Malformed::Nothing);
    }
    let unsupported = Malformed::Unsupported(field(0));
    if (field(4), field(6), field(8)) != (1, 0, 0) || field(10) > 2 {
        return Err(unsupported);
    }
    let packet = Packet::parse(bytes).map_err(|_| unsupported)?;
    let room = packet.opt().map_or(PLAIN_BYTES, |opt| opt.udp_packet_size);
    let room = room.clamp(PLAIN_BYTES, UDP_BYTES);
    let question = packet.questions.into_iter().next().ok_or(unsupported)?;
    let plain = matches!(question.qtype, QTYPE::TYPE(_));
    let name = plain_name(&question.qname).ok_or(unsupported)?;
    if !plain || question.qclass != QCLASS::CLASS(CLASS::IN) || header[2] & 0x78 != 0 {
        return Err(unsupported);
    }
    Ok(Asking {
        id: field(0),
        question: question.into_owned(),
        name,
        room,
    })
}

/// A name of letters, digits, hyphens and underscores, in lower case; anything else is no name that a policy could name.
fn plain_name(name: &simple_dns::Name<'_>) -> Option<String> {
    let mut text = String::new();
    for label in name.as_bytes() {
        let fine = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if label.is_empty() || !label.iter().all(fine) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
    }
    (!text.is_empty() && text.len() <= 253).then_some(text)
}

fn named(rules: &[NameRule], name: &str) -> bool {
    rules.iter().any(|rule| matches(&rule.pattern, name))
}

/// May the name be asked for?
pub(super) fn may_ask(policy: &Compiled, name: &str) -> bool {
    // A denial of some ports only denies no name.
    let denied = policy.deny_names.iter().any(|rule| {
        rule.protocol.is_none() && rule.ports.is_empty() && matches(&rule.pattern, name)
    });
    !denied && (policy.internet || named(&policy.allow_names, name))
}

/// Ranges that answers may not lead to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ranges<'a> {
    /// Nor anything else.
    pub never: &'a [Cidr],
    /// Not part of the internet.
    pub closed: &'a [Cidr],
    /// The node's own.
    pub node: &'a [IpAddr],
}

/// May an answer lead there? Into a private range only where the allowlist names the address too: whoever owns a name that is
/// allowed must not open the cluster with it.
pub(super) fn may_lead_to(policy: &Compiled, ranges: Ranges<'_>, address: IpAddr) -> bool {
    let within = |list: &[Cidr]| list.iter().any(|cidr| covers(*cidr, address));
    if within(ranges.never) || ranges.node.contains(&address) {
        return false;
    }
    let listed = |reach: &crate::net::rules::Reach| (reach.first..=reach.last).contains(&address);
    !within(ranges.closed) || policy.allow.iter().any(listed)
}

/// What stays of an answer.
#[derive(Debug)]
pub(super) struct Kept<'a> {
    pub rcode: RCODE,
    pub records: Vec<ResourceRecord<'a>>,
    /// Addresses, each with its life.
    pub addresses: Vec<(IpAddr, Duration)>,
    /// Every address was taken out.
    pub emptied: bool,
}

/// Is this the answer to that question, and is there room for what it says it has?
pub(super) fn parse<'a>(asking: &Asking, id: u16, bytes: &'a [u8]) -> Option<Packet<'a>> {
    let header: &[u8; 12] = bytes.first_chunk()?;
    let field = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let records: usize = [6, 8, 10].map(|at| usize::from(field(at))).iter().sum();
    if field(4) != 1 || records * 11 > bytes.len() || header[2] & 0x80 == 0 || field(0) != id {
        return None;
    }
    let packet = Packet::parse(bytes).ok()?;
    let question = packet.questions.first()?;
    let same =
        plain_name(&question.qname)? == asking.name && question.qtype == asking.question.qtype;
    same.then_some(packet)
}

/// Takes out what the policy does not let the sandbox reach, and what the question did not lead to.
pub(super) fn keep<'a>(
    asking: &Asking,
    policy: &Compiled,
    ranges: Ranges<'_>,
    answer: Packet<'a>,
) -> Kept<'a> {
    let mut kept = Kept {
        rcode: answer.rcode(),
        records: Vec::new(),
        addresses: Vec::new(),
        emptied: false,
    };
    let mut names = BTreeSet::from([asking.name.clone()]);
    let mut taken_out = false;
    for mut record in answer.answers.into_iter().take(RECORDS) {
        if !plain_name(&record.name).is_some_and(|name| names.contains(&name)) {
            continue;
        }
        record.ttl = record
            .ttl
            .min(u32::try_from(PIN_MAX.as_secs()).unwrap_or(u32::MAX));
        let address = match &record.rdata {
            RData::A(a) => Some(IpAddr::V4(Ipv4Addr::from(a.address))),
            RData::AAAA(a) => Some(IpAddr::V6(Ipv6Addr::from(a.address))),
            RData::CNAME(name) => {
                names.extend(plain_name(&name.0));
                None
            }
            _ => None,
        };
        if let Some(address) = address {
            if !may_lead_to(policy, ranges, address) {
                taken_out = true;
                continue;
            }
            let life = Duration::from_secs(record.ttl.into()).clamp(PIN_MIN, PIN_MAX);
            kept.addresses.push((address, life));
        }
        kept.records.push(record);
    }
    kept.emptied = taken_out && kept.addresses.is_empty();
    kept
}

/// The question as it is asked upstream: hearth's own words, nothing else of what the sandbox sent.
pub(super) fn ask(asking: &Asking, id: u16) -> Option<Vec<u8>> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(asking.question.clone());
    *packet.opt_mut() = Some(OPT {
        opt_codes: Vec::new(),
        udp_packet_size: UDP_BYTES,
        version: 0,
    });
    packet.build_bytes_vec().ok()
}

/// An answer without records.
pub(super) fn bare(asking: &Asking, rcode: RCODE) -> Vec<u8> {
    answer(asking, rcode, &[], None)
}

/// The answer; over UDP (`room`) one that is too long says so and is empty.
pub(super) fn answer(
    asking: &Asking,
    rcode: RCODE,
    records: &[ResourceRecord<'_>],
    room: Option<u16>,
) -> Vec<u8> {
    let mut packet = Packet::new_reply(asking.id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED | PacketFlag::RECURSION_AVAILABLE);
    *packet.rcode_mut() = rcode;
    packet.questions.push(asking.question.clone());
    packet.answers.extend_from_slice(records);
    let bytes = packet.build_bytes_vec_compressed().unwrap_or_default();
    if room.is_some_and(|room| bytes.len() > room.into()) {
        packet.answers.clear();
        packet.set_flags(PacketFlag::TRUNCATION);
        return packet.build_bytes_vec_compressed().unwrap_or_default();
    }
    bytes
}

/// To a message that is no question.
pub(super) fn unsupported(id: u16) -> Vec<u8> {
    let mut packet = Packet::new_reply(id);
    *packet.rcode_mut() = RCODE::NotImplemented;
    packet.build_bytes_vec().unwrap_or_default()
}

/// Does it ask for addresses?
pub(super) fn asks_for_addresses(asking: &Asking) -> bool {
    matches!(asking.question.qtype, QTYPE::TYPE(TYPE::A | TYPE::AAAA))
}

#[cfg(test)]
mod tests;
