//! The rules of the router's namespace, as transactions.
//!
//! ```text
//! prerouting guard   a slot's link, MAC and address belong together, or the packet goes; who passes is marked
//! forward            flow of the policy in force (link . mark in `gens`) ─▶ accept
//!                    from a slot to the uplink ─▶ out-N     from the uplink to a slot ─▶ in-N      else drop
//! out-N, in-N ─▶ judge-N (never, deny, allow, names, internet) ─▶ pass-N (flows at once) ─▶ admit: the flow gets its mark
//!            └─▶ no-N (counted, remembered, refused)
//! input              the resolver, for slots only; else drop
//! ```
//! One lookup by link or by (link, mark) decides a packet's way, however many slots there are. A policy is nothing but
//! elements: `apply` makes no chain. Its flows carry its generation in the mark of conntrack, which in this namespace nobody
//! else uses; when the generation changes every flow is judged again, in both directions.

use super::nft::expr::{Base, Ct, ESTABLISHED, Expr, FIRST, Meta, NEW, RELATED, Verdict};
use super::nft::{Batch, CONCAT, Data, EVAL, Element, Hook, INTERVAL, SetKind, TIMEOUT};
use super::plan::{Plan, mac};
use super::rtnl::octets;
use super::rules::{CLOSED, Compiled, NEVER, Reach, listed, merged, protocol_number};
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

/// The slot in such a name.
pub(super) fn slot_of(name: &str) -> Option<u32> {
    name.rsplit_once('-')?.1.parse().ok()
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

    /// Is the address one that no policy opens? The node's own are not known here.
    pub(super) fn is_never(&self, address: IpAddr) -> bool {
        self.never
            .iter()
            .any(|cidr| super::rules::covers(*cidr, address))
    }

    /// Is it none of the internet's?
    pub(super) fn is_closed(&self, address: IpAddr) -> bool {
        self.closed
            .iter()
            .any(|cidr| super::rules::covers(*cidr, address))
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
        for (gateway, family, offset) in self
            .plan
            .gateway()
            .into_iter()
            .zip([V4, V6])
            .zip([16, 24])
            .map(|((g, f), o)| (g, f, o))
        {
            let octets = octets(gateway);
            let length = u32::from(gateway.is_ipv4()) * 4 + u32::from(gateway.is_ipv6()) * 16;
            let to_us = [
                payload(Base::Network, offset, length, FIRST),
                Expr::Is(&octets),
                Expr::Untracked,
            ];
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
        batch.chain("admit", None);
        for link in [Meta::Iif, Meta::Oif] {
            let marked = [
                Expr::Meta(link, FIRST),
                Expr::Value("marks"),
                Expr::MarkFlow,
                Expr::Then(Verdict::Accept),
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
        let ways = [
            (Meta::Oif, Meta::Iif, ESTABLISHED, "from"),
            (Meta::Iif, Meta::Oif, ESTABLISHED | RELATED, "to"),
        ];
        for (node, slot, states, _) in ways {
            let known = [
                Expr::Meta(node, FIRST),
                Expr::Is(&uplink),
                Expr::Ct(Ct::State, FIRST),
                Expr::AnyBit(states),
                Expr::Meta(slot, FIRST),
                Expr::Ct(Ct::Mark, FIRST + 1),
                Expr::In("gens"),
                Expr::Then(Verdict::Accept),
            ];
            batch.rule("forward", &known);
        }
        for (node, slot, _, map) in ways {
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
        for (gateway, family, offset) in self
            .plan
            .gateway()
            .into_iter()
            .zip([V4, V6])
            .zip([16, 24])
            .map(|((g, f), o)| (g, f, o))
        {
            let octets = octets(gateway);
            let length = u32::from(gateway.is_ipv4()) * 4 + u32::from(gateway.is_ipv6()) * 16;
            for protocol in [[6], [17]] {
                let question = [
                    payload(Base::Network, offset, length, FIRST),
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

    /// Makes a slot's chains and sets, reaching nothing, and leads its packets there.
    pub(super) fn add_slot(&self, batch: &mut Batch, place: Place) {
        let slot = place.slot;
        batch.counter(&name("denied", slot));
        for (set, kind) in &SETS {
            batch.set(&name(set, slot), kind);
        }
        for chain in CHAINS.iter().rev() {
            batch.chain(&name(chain, slot), None);
        }
        self.refuse_rules(batch, slot);
        self.pass_rules(batch, slot);
        judge_rules(batch, slot);
        way_rules(batch, slot);
        let link = place.link.to_ne_bytes().to_vec();
        for (map, chain) in [("from", "out"), ("to", "in"), ("refuse", "no")] {
            batch.put(
                map,
                &[Element {
                    goto: Some(name(chain, slot)),
                    ..Element::key(link.clone())
                }],
            );
        }
        batch.put(
            "spoofs",
            &[Element {
                counter: Some(name("denied", slot)),
                ..Element::key(link)
            }],
        );
        for (set, element) in self.sources(place) {
            batch.put(set, &[element]);
        }
    }

    fn sources(&self, place: Place) -> [(&'static str, Element); 2] {
        let [four, six] = self.plan.addresses(place.slot);
        let source = |address| {
            let mac = mac(place.slot, true);
            Element::key(
                [
                    &place.link.to_ne_bytes()[..],
                    &mac,
                    &[0, 0],
                    &octets(address),
                ]
                .concat(),
            )
        };
        [("src4", source(four)), ("src6", source(six))]
    }

    fn refuse_rules(&self, batch: &mut Batch, slot: u32) {
        let no = name("no", slot);
        batch.rule(&no, &[Expr::Counter(&name("denied", slot))]);
        for (family, offset, length, what) in [(V4, 16, 4, "seen4"), (V6, 24, 16, "seen6")] {
            let destination = [
                Expr::Meta(Meta::L4Proto, FIRST),
                payload(Base::Network, offset, length, FIRST + 1),
                payload(Base::Transport, 2, 2, FIRST + 1 + length / 4),
                Expr::Remember(&name(what, slot)),
            ];
            batch.rule(&no, &[&family[..], &destination].concat());
        }
        batch.rule(&no, &[Expr::Faster(REFUSALS), Expr::Then(Verdict::Drop)]);
        let tcp = [
            Expr::Meta(Meta::L4Proto, FIRST),
            Expr::Is(&[6]),
            Expr::ResetTcp,
        ];
        batch.rule(&no, &tcp);
        batch.rule(&no, &[Expr::Prohibited]);
    }

    fn pass_rules(&self, batch: &mut Batch, slot: u32) {
        let (pass, no) = (name("pass", slot), name("no", slot));
        let too_many = [
            Expr::Ct(Ct::State, FIRST),
            Expr::AnyBit(NEW),
            Expr::MoreFlows(self.flows),
            Expr::Then(Verdict::Goto(&no)),
        ];
        batch.rule(&pass, &too_many);
        batch.rule(&pass, &[Expr::Then(Verdict::Goto("admit"))]);
    }

    /// Takes everything of a slot away, if `add_slot` and `policy` put it there. `mark`: of the policy in force.
    pub(super) fn delete_slot(&self, batch: &mut Batch, place: Place, mark: Option<u32>) {
        let link = Element::key(place.link.to_ne_bytes().to_vec());
        for map in ["from", "to", "refuse", "spoofs"] {
            batch.take(map, std::slice::from_ref(&link));
        }
        for (set, element) in self.sources(place) {
            batch.take(set, &[element]);
        }
        if let Some(mark) = mark {
            self.unmark(batch, place, mark);
        }
        for chain in CHAINS {
            batch.delete_chain(&name(chain, place.slot));
        }
        for (set, _) in &SETS {
            batch.delete_set(&name(set, place.slot));
        }
        batch.delete_counter(&name("denied", place.slot));
    }

    fn unmark(&self, batch: &mut Batch, place: Place, mark: u32) {
        let link = place.link.to_ne_bytes();
        batch.take("marks", &[Element::key(link.to_vec())]);
        batch.take("gens", &[Element::key([link, mark.to_ne_bytes()].concat())]);
    }

    /// Puts a policy in force under a new mark; `before`: the mark of the one in force.
    pub(super) fn policy(
        &self,
        batch: &mut Batch,
        place: Place,
        policy: &Compiled,
        before: Option<u32>,
        mark: u32,
    ) {
        let slot = place.slot;
        for (set, reaches) in [("allow", &policy.allow), ("deny", &policy.deny)] {
            put_reaches(batch, slot, set, reaches, None);
        }
        let (open, publish) = (name("open", slot), name("pub", slot));
        batch.flush(&open);
        if policy.internet {
            batch.put(&open, &[6, 17].map(|number| Element::key(vec![number])));
        }
        batch.flush(&publish);
        let ports = policy
            .publish
            .iter()
            .map(|port| Element::key(port.to_be_bytes().to_vec()));
        batch.put(&publish, &ports.collect::<Vec<_>>());
        if let Some(before) = before {
            self.unmark(batch, place, before);
        }
        let link = place.link.to_ne_bytes();
        let element = Element {
            mark: Some(mark),
            note: policy.digest.to_vec(),
            ..Element::key(link.to_vec())
        };
        batch.put("marks", &[element]);
        batch.put("gens", &[Element::key([link, mark.to_ne_bytes()].concat())]);
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

/// Replaces the ranges of `set`4 and `set`6, each with the time it stays, if it goes by itself.
fn put_reaches(
    batch: &mut Batch,
    slot: u32,
    set: &str,
    reaches: &[Reach],
    pins: Option<&dyn Fn(IpAddr) -> (Duration, Vec<u8>)>,
) {
    for (suffix, four) in [("4", true), ("6", false)] {
        let set = name(&format!("{set}{suffix}"), slot);
        batch.flush(&set);
        let of_family = reaches.iter().filter(|reach| reach.first.is_ipv4() == four);
        let elements = of_family.map(|reach| {
            let key = |address, port: u16| {
                let protocol = [protocol_number(reach.protocol), 0, 0, 0];
                [
                    &octets(address)[..],
                    &protocol,
                    &port.to_be_bytes(),
                    &[0, 0],
                ]
                .concat()
            };
            let pin = pins.map(|pins| pins(reach.first));
            let (timeout, note) = pin.map_or((None, Vec::new()), |(time, note)| (Some(time), note));
            Element {
                last: Some(key(reach.last, reach.ports.last)),
                timeout,
                note,
                ..Element::key(key(reach.first, reach.ports.first))
            }
        });
        batch.put(&set, &elements.collect::<Vec<_>>());
    }
}

/// Replaces what names have opened: `pins` tells how long an address stays open, and its names.
pub(super) fn pin(
    batch: &mut Batch,
    slot: u32,
    reaches: &[Reach],
    pins: &dyn Fn(IpAddr) -> (Duration, Vec<u8>),
) {
    put_reaches(batch, slot, "pin", reaches, Some(pins));
}

/// Judges a flow by where it was begun to: goes on to `pass-N`, or returns.
fn judge_rules(batch: &mut Batch, slot: u32) {
    let (judge, pass) = (name("judge", slot), name("pass", slot));
    let families = [(Ct::Address4, "4", 1), (Ct::Address6, "6", 4)];
    for (address, suffix, _) in families {
        for set in ["never", "node"] {
            let set = format!("{set}{suffix}");
            let rule = [
                Expr::Ct(address, FIRST),
                Expr::In(&set),
                Expr::Then(Verdict::Return),
            ];
            batch.rule(&judge, &rule);
        }
    }
    for (set, verdict) in [
        ("deny", Verdict::Return),
        ("allow", Verdict::Goto(&pass)),
        ("pin", Verdict::Goto(&pass)),
    ] {
        for (address, suffix, registers) in families {
            let set = name(&format!("{set}{suffix}"), slot);
            let reach = [
                Expr::Ct(address, FIRST),
                Expr::Ct(Ct::Protocol, FIRST + registers),
                Expr::Ct(Ct::Port, FIRST + registers + 1),
                Expr::In(&set),
                Expr::Then(verdict),
            ];
            batch.rule(&judge, &reach);
        }
    }
    for (address, suffix, _) in families {
        let open = name("open", slot);
        let closed = format!("closed{suffix}");
        let internet = [
            Expr::Ct(Ct::Protocol, FIRST),
            Expr::In(&open),
            Expr::Ct(address, FIRST),
            Expr::NotIn(&closed),
            Expr::Then(Verdict::Goto(&pass)),
        ];
        batch.rule(&judge, &internet);
    }
}

/// What leaves the slot, and what comes to it.
fn way_rules(batch: &mut Batch, slot: u32) {
    let (out, inward, judge) = (name("out", slot), name("in", slot), name("judge", slot));
    let (pass, no, publish) = (name("pass", slot), name("no", slot), name("pub", slot));
    let flow = |direction: &'static [u8], states| {
        [
            Expr::Ct(Ct::Direction, FIRST),
            Expr::Is(direction),
            Expr::Ct(Ct::State, FIRST),
            Expr::AnyBit(states),
        ]
    };
    let tcp = [Expr::Meta(Meta::L4Proto, FIRST), Expr::Is(&[6])];
    let published = |port| {
        [
            payload(Base::Transport, port, 2, FIRST),
            Expr::In(&publish),
            Expr::Then(Verdict::Goto(&pass)),
        ]
    };
    let judged = [Expr::Then(Verdict::Jump(&judge))];
    batch.rule(
        &out,
        &[&flow(&[0], NEW | ESTABLISHED)[..], &judged].concat(),
    );
    batch.rule(
        &out,
        &[&flow(&[1], ESTABLISHED)[..], &tcp, &published(0)].concat(),
    );
    batch.rule(&out, &[Expr::Then(Verdict::Goto(&no))]);
    batch.rule(
        &inward,
        &[&flow(&[1], ESTABLISHED | RELATED)[..], &judged].concat(),
    );
    batch.rule(
        &inward,
        &[&flow(&[0], NEW | ESTABLISHED)[..], &tcp, &published(2)].concat(),
    );
    batch.rule(&inward, &[Expr::Then(Verdict::Drop)]);
}

/// An address as a key has it.
pub(super) fn read_address(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => Some(<[u8; 4]>::try_from(octets).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(octets).ok()?.into()),
        _ => None,
    }
}
