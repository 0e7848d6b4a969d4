//! The rules of the router's namespace, as transactions.
//!
//! ```text
//! prerouting guard   a slot's link, MAC and address belong together, or the packet goes; who passes is marked
//! forward            flow of the policy in force (link . mark in `gens`) ─▶ accept, or arrive where it comes to a slot
//!                    from a slot to the uplink ─▶ out-N     from the uplink to a slot ─▶ in-N      else drop
//! out-N, in-N ─▶ judge-N (never, deny, allow, names, internet) ─▶ pass-N (flows at once) ─▶ admit: the flow gets its mark
//!            └─▶ no-N (counted, remembered, refused)
//! arrive             what somebody inside may be waiting for is noted in `knocks`, and accepted
//! input              the resolver, for slots only; else drop
//! ```
//! One lookup by link or by (link, mark) decides a packet's way, however many slots there are. A policy is nothing but
//! elements: `apply` makes no chain. Its flows carry its generation in the mark of conntrack, which in this namespace nobody
//! else uses; when the generation changes every flow is judged again, in both directions.

mod arriving;
mod slot;

pub(super) use arriving::KNOCKS_FOR;
pub(super) use slot::pin;

use super::nft::expr::{Base, Ct, ESTABLISHED, Expr, FIRST, Meta, RELATED, Verdict};
use super::nft::{Batch, CONCAT, Data, EVAL, Element, Hook, INTERVAL, SetKind, TIMEOUT};
use super::plan::Plan;
use super::rtnl::octets;
use super::rules::{CLOSED, NEVER, listed, merged};
use super::settings::NetSettings;
use crate::machine::network::Cidr;
use std::net::IpAddr;
use std::time::Duration;

/// What the guard writes into the packets it lets pass. The router's routing rules know no other: without the guard nothing
/// is routed.
pub(super) const PASSED: u32 = 1;
/// The router's link to the node.
pub(super) const UPLINK: &str = "uplink";
/// Denied destinations remembered for each slot and family.
const SEEN: u32 = 64;
/// How long.
const SEEN_FOR: Duration = Duration::from_secs(600);
/// Refusals told to a sandbox in a second; the rest is dropped in silence.
const REFUSALS: u32 = 50;
const DNS: [u8; 2] = 53_u16.to_be_bytes();

const IPV4: u32 = 7;
const IPV6: u32 = 8;
const ETHER: u32 = 9;
const PROTOCOL: u32 = 12;
const SERVICE: u32 = 13;
const MARK: u32 = 19;
const IFACE: u32 = 20;

const fn plain(types: u32, fields: &'static [u32]) -> SetKind {
    SetKind {
        types,
        fields,
        flags: 0,
        data: Data::None,
        size: 0,
        timeout: Duration::ZERO,
    }
}

const fn links_to(data: Data) -> SetKind {
    SetKind {
        data,
        ..plain(IFACE, &[4])
    }
}

const fn ranges(address: u32, fields: &'static [u32], more: u32) -> SetKind {
    SetKind {
        flags: INTERVAL | CONCAT | more,
        ..plain(address << 12 | PROTOCOL << 6 | SERVICE, fields)
    }
}

const fn seen(address: u32, fields: &'static [u32]) -> SetKind {
    SetKind {
        flags: EVAL | TIMEOUT,
        size: SEEN,
        timeout: SEEN_FOR,
        ..plain(PROTOCOL << 12 | address << 6 | SERVICE, fields)
    }
}

const REACH4: &[u32] = &[4, 1, 2];
const REACH6: &[u32] = &[16, 1, 2];

/// Names of a slot's chains and sets.
pub(super) fn name(what: &str, slot: u32) -> String {
    format!("{what}-{slot}")
}

/// Chains of a slot, in the order in which they can be deleted.
pub(super) const CHAINS: [&str; 5] = ["out", "in", "judge", "pass", "no"];
/// Sets of a slot.
const SETS: [(&str, SetKind); 10] = [
    ("allow4", ranges(IPV4, REACH4, 0)),
    ("allow6", ranges(IPV6, REACH6, 0)),
    ("deny4", ranges(IPV4, REACH4, 0)),
    ("deny6", ranges(IPV6, REACH6, 0)),
    ("pin4", ranges(IPV4, REACH4, TIMEOUT)),
    ("pin6", ranges(IPV6, REACH6, TIMEOUT)),
    ("open", plain(PROTOCOL, &[1])),
    ("pub", plain(SERVICE, &[2])),
    ("seen4", seen(IPV4, &[1, 4, 2])),
    ("seen6", seen(IPV6, &[1, 16, 2])),
];

fn payload(base: Base, offset: u32, length: u32, to: u32) -> Expr<'static> {
    Expr::Payload {
        base,
        offset,
        length,
        to,
    }
}

const V4: [Expr<'static>; 2] = [Expr::Meta(Meta::NfProto, FIRST), Expr::Is(&[2])];
const V6: [Expr<'static>; 2] = [Expr::Meta(Meta::NfProto, FIRST), Expr::Is(&[10])];

/// An interface's name as a whole register.
pub(super) fn padded(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

fn span_elements(ranges: &[(u128, u128)], four: bool) -> Vec<Element> {
    let octets = |number| octets(super::rules::address(four, number));
    let last = if four { u32::MAX.into() } else { u128::MAX };
    let mut elements = Vec::new();
    for (first, end) in ranges {
        elements.push(Element::key(octets(*first)));
        if *end < last {
            elements.push(Element {
                end: true,
                ..Element::key(octets(end + 1))
            });
        }
    }
    elements
}

/// The table of the router's namespace.
pub(super) struct Table {
    name: String,
    plan: Plan,
    closed: Vec<Cidr>,
    never: Vec<Cidr>,
    flows: u32,
    /// The index of [`UPLINK`] there.
    uplink: u32,
}

/// What a slot is in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub slot: u32,
    /// Of its link in the router's namespace.
    pub link: u32,
}

impl Table {
    pub(super) fn new(settings: &NetSettings, plan: &Plan, uplink: u32) -> Self {
        let mut never = listed(NEVER);
        never.extend([plan.range4, plan.range6]);
        never.extend_from_slice(&settings.never);
        let mut closed = listed(CLOSED);
        closed.extend_from_slice(&settings.closed);
        Self {
            name: format!("hearth-{}", settings.tag),
            plan: plan.clone(),
            closed,
            never,
            flows: settings.flows_per_sandbox,
            uplink,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn batch(&self) -> Batch {
        Batch::on(&self.name)
    }

    /// Ranges that no policy opens. The node's own addresses are not known here.
    pub(super) fn never(&self) -> &[Cidr] {
        &self.never
    }

    /// Ranges that are not the internet.
    pub(super) fn closed(&self) -> &[Cidr] {
        &self.closed
    }

    /// Everything anew and without slots; what was there goes in the same transaction.
    pub(super) fn rebuild(&self, batch: &mut Batch) {
        // Made first, so that there is one to delete.
        batch.table();
        batch.delete_table();
        batch.table();
        for (name, kind) in [
            (
                "never4",
                SetKind {
                    flags: INTERVAL,
                    ..plain(IPV4, &[4])
                },
            ),
            (
                "never6",
                SetKind {
                    flags: INTERVAL,
                    ..plain(IPV6, &[16])
                },
            ),
            (
                "closed4",
                SetKind {
                    flags: INTERVAL,
                    ..plain(IPV4, &[4])
                },
            ),
            (
                "closed6",
                SetKind {
                    flags: INTERVAL,
                    ..plain(IPV6, &[16])
                },
            ),
            ("node4", plain(IPV4, &[4])),
            ("node6", plain(IPV6, &[16])),
            ("src4", plain(IFACE << 12 | ETHER << 6 | IPV4, &[4, 6, 4])),
            ("src6", plain(IFACE << 12 | ETHER << 6 | IPV6, &[4, 6, 16])),
            ("gens", plain(IFACE << 6 | MARK, &[4, 4])),
            ("marks", links_to(Data::Mark)),
            ("from", links_to(Data::Verdict)),
            ("to", links_to(Data::Verdict)),
            ("refuse", links_to(Data::Verdict)),
            ("spoofs", links_to(Data::Counter)),
            ("knocks", arriving::KNOCKS),
        ] {
            batch.set(name, &kind);
        }
        for four in [true, false] {
            let suffix = if four { "4" } else { "6" };
            let put = |batch: &mut Batch, set: &str, prefixes: &[Cidr]| {
                let elements = span_elements(&merged(prefixes, four), four);
                batch.put(&format!("{set}{suffix}"), &elements);
            };
            put(batch, "never", &self.never);
            put(batch, "closed", &self.closed);
        }
        self.guard(batch);
        self.forward(batch);
        self.input(batch);
        // What the router itself sends (answers, refusals) is nobody's flow.
        let hook = Hook {
            number: 3,
            priority: -300,
            kind: "filter",
            closed: false,
        };
        batch.chain("output", Some(&hook));
        batch.rule("output", &[Expr::Untracked]);
    }

    /// Packets to the router's own addresses: the test of the family, the load of the destination, and what it must be.
    fn to_gateway(&self) -> [([Expr<'static>; 2], Expr<'static>, Vec<u8>); 2] {
        let [four, six] = self.plan.gateway().map(octets);
        let destination = |offset, length| payload(Base::Network, offset, length, FIRST);
        [
            (V4, destination(16, 4), four),
            (V6, destination(24, 16), six),
        ]
    }

    fn guard(&self, batch: &mut Batch) {
        let hook = Hook {
            number: 0,
            priority: -300,
            kind: "filter",
            closed: true,
        };
        batch.chain("guard", Some(&hook));
        let uplink = self.uplink.to_ne_bytes();
        let mark = PASSED.to_ne_bytes();
        let pass = [
            Expr::Load(&mark),
            Expr::MarkPacket,
            Expr::Then(Verdict::Accept),
        ];
        batch.chain("passed", None);
        for (family, destination, octets) in self.to_gateway() {
            let to_us = [destination, Expr::Is(&octets), Expr::Untracked];
            batch.rule("passed", &[&family[..], &to_us].concat());
        }
        batch.rule("passed", &pass);
        let from_node = [Expr::Meta(Meta::Iif, FIRST), Expr::Is(&uplink)];
        batch.rule("guard", &[&from_node[..], &pass].concat());
        for (family, offset, length, set) in [(V4, 12, 4, "src4"), (V6, 8, 16, "src6")] {
            let known = [
                Expr::Meta(Meta::Iif, FIRST),
                payload(Base::Link, 6, 6, FIRST + 1),
                payload(Base::Network, offset, length, FIRST + 3),
                Expr::In(set),
                Expr::Then(Verdict::Goto("passed")),
            ];
            batch.rule("guard", &[&family[..], &known].concat());
        }
        batch.rule(
            "guard",
            &[Expr::Meta(Meta::Iif, FIRST), Expr::CounterOf("spoofs")],
        );
    }

    fn forward(&self, batch: &mut Batch) {
        arriving::rules(batch);
        batch.chain("admit", None);
        let (accept, arrive) = (Verdict::Accept, Verdict::Goto("arrive"));
        for (link, verdict) in [(Meta::Iif, accept), (Meta::Oif, arrive)] {
            let marked = [
                Expr::Meta(link, FIRST),
                Expr::Value("marks"),
                Expr::MarkFlow,
                Expr::Then(verdict),
            ];
            batch.rule("admit", &marked);
        }
        let hook = Hook {
            number: 2,
            priority: 0,
            kind: "filter",
            closed: true,
        };
        batch.chain("forward", Some(&hook));
        let uplink = self.uplink.to_ne_bytes();
        let known = [
            (Meta::Oif, Meta::Iif, ESTABLISHED, accept),
            (Meta::Iif, Meta::Oif, ESTABLISHED | RELATED, arrive),
        ];
        for (node, slot, states, verdict) in known {
            let known = [
                Expr::Meta(node, FIRST),
                Expr::Is(&uplink),
                Expr::Ct(Ct::State, FIRST),
                Expr::AnyBit(states),
                Expr::Meta(slot, FIRST),
                Expr::Ct(Ct::Mark, FIRST + 1),
                Expr::In("gens"),
                Expr::Then(verdict),
            ];
            batch.rule("forward", &known);
        }
        let ways = [(Meta::Oif, Meta::Iif, "from"), (Meta::Iif, Meta::Oif, "to")];
        for (node, slot, map) in ways {
            let judged = [
                Expr::Meta(node, FIRST),
                Expr::Is(&uplink),
                Expr::Meta(slot, FIRST),
                Expr::Verdicts(map),
            ];
            batch.rule("forward", &judged);
        }
        // To another sandbox, or to nowhere.
        batch.rule(
            "forward",
            &[Expr::Meta(Meta::Iif, FIRST), Expr::Verdicts("refuse")],
        );
    }

    fn input(&self, batch: &mut Batch) {
        let hook = Hook {
            number: 1,
            priority: 0,
            kind: "filter",
            closed: true,
        };
        batch.chain("input", Some(&hook));
        let uplink = self.uplink.to_ne_bytes();
        let from_node = [
            Expr::Meta(Meta::Iif, FIRST),
            Expr::Is(&uplink),
            Expr::Then(Verdict::Drop),
        ];
        batch.rule("input", &from_node);
        for (family, destination, octets) in self.to_gateway() {
            for protocol in [[6], [17]] {
                let question = [
                    destination,
                    Expr::Is(&octets),
                    Expr::Meta(Meta::L4Proto, FIRST),
                    Expr::Is(&protocol),
                    payload(Base::Transport, 2, 2, FIRST),
                    Expr::Is(&DNS),
                    Expr::Then(Verdict::Accept),
                ];
                batch.rule("input", &[&family[..], &question].concat());
            }
        }
        batch.rule(
            "input",
            &[Expr::Meta(Meta::Iif, FIRST), Expr::Verdicts("refuse")],
        );
    }

    /// The node's own addresses, which no policy opens.
    pub(super) fn node_addresses(&self, batch: &mut Batch, addresses: &[IpAddr]) {
        for (set, four) in [("node4", true), ("node6", false)] {
            let mut keys: Vec<_> = addresses
                .iter()
                .filter(|a| a.is_ipv4() == four)
                .map(|a| octets(*a))
                .collect();
            keys.sort();
            keys.dedup();
            batch.flush(set);
            batch.put(set, &keys.into_iter().map(Element::key).collect::<Vec<_>>());
        }
    }
}

/// An address as a key has it.
pub(super) fn read_address(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => Some(<[u8; 4]>::try_from(octets).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(octets).ok()?.into()),
        _ => None,
    }
}
