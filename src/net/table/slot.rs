//! The rules of one slot: its chains and sets, and the policy in them.

use super::{CHAINS, Place, REFUSALS, SETS, Table, V4, V6, name, payload};
use crate::net::nft::expr::{Base, Ct, ESTABLISHED, Expr, FIRST, Meta, NEW, RELATED, Verdict};
use crate::net::nft::{Batch, Element};
use crate::net::plan::mac;
use crate::net::rtnl::octets;
use crate::net::rules::{Compiled, Reach, protocol_number};
use std::net::IpAddr;
use std::time::Duration;

impl Table {
    /// Makes a slot's chains and sets, reaching nothing, and leads its packets there.
    pub(in crate::net) fn add_slot(&self, batch: &mut Batch, place: Place) {
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
    pub(in crate::net) fn delete_slot(&self, batch: &mut Batch, place: Place, mark: Option<u32>) {
        let link = Element::key(place.link.to_ne_bytes().to_vec());
        for map in ["from", "to", "refuse", "spoofs"] {
            batch.take(map, std::slice::from_ref(&link));
        }
        // Packets put it there, or have not: what is put in can be taken out.
        batch.put("knocks", std::slice::from_ref(&link));
        batch.take("knocks", std::slice::from_ref(&link));
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
    pub(in crate::net) fn policy(
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
pub(in crate::net) fn pin(
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
