//! The rules in the node's own namespace: few, and the same however many sandboxes there are. Sandboxes come through one
//! link; from it nothing reaches the node itself, and what goes on leaves with the node's address.

use super::nft::Batch;
use super::nft::Hook;
use super::nft::expr::{Base, Ct, ESTABLISHED, Expr, FIRST, Meta, Verdict};
use super::plan::Plan;
use super::rtnl::octets;
use super::rules::span;
use super::table::padded;
use crate::machine::network::Cidr;

/// `RTN_LOCAL`: an address of the node itself.
const LOCAL: [u8; 4] = 2_u32.to_ne_bytes();

/// Makes the table anew in one transaction. `link`: the node's end of the link to the router.
pub(super) fn rebuild(batch: &mut Batch, link: &str, plan: &Plan) {
    batch.table();
    batch.delete_table();
    batch.table();
    let link = padded(link);
    let inward = [Expr::Meta(Meta::IifName, FIRST), Expr::Is(&link)];
    // Behind conntrack and before any other's destination NAT: what the sandbox asked for, not what becomes of it.
    let hook = Hook {
        number: 0,
        priority: -150,
        kind: "filter",
        closed: false,
    };
    batch.chain("guard", Some(&hook));
    let answers = [
        Expr::Ct(Ct::Direction, FIRST),
        Expr::Is(&[1]),
        Expr::Ct(Ct::State, FIRST),
        Expr::AnyBit(ESTABLISHED),
        Expr::Then(Verdict::Accept),
    ];
    batch.rule("guard", &[&inward[..], &answers].concat());
    let local = [
        Expr::DestinationKind,
        Expr::Is(&LOCAL),
        Expr::Then(Verdict::Drop),
    ];
    batch.rule("guard", &[&inward[..], &local].concat());
    let hook = Hook {
        number: 1,
        priority: -10,
        kind: "filter",
        closed: false,
    };
    batch.chain("input", Some(&hook));
    let unless_answer = [
        Expr::Ct(Ct::Direction, FIRST),
        Expr::Is(&[0]),
        Expr::Then(Verdict::Drop),
    ];
    batch.rule("input", &[&inward[..], &unless_answer].concat());
    let hook = Hook {
        number: 4,
        priority: 100,
        kind: "nat",
        closed: false,
    };
    batch.chain("outward", Some(&hook));
    for range in [plan.range4, plan.range6] {
        masquerade(batch, range, &link);
    }
}

fn masquerade(batch: &mut Batch, range: Cidr, link: &[u8]) {
    let four = range.address.is_ipv4();
    let (first, last) = span(range);
    let bytes = |number| octets(super::rules::address(four, number));
    let (first, last) = (bytes(first), bytes(last));
    // What is the same in the first and the last address, in whole octets and bits.
    let mask: Vec<u8> = first
        .iter()
        .zip(&last)
        .map(|(first, last)| !(first ^ last))
        .collect();
    let (family, offset, length): (&[u8], u32, u32) =
        if four { (&[2], 12, 4) } else { (&[10], 8, 16) };
    let rule = [
        Expr::Meta(Meta::NfProto, FIRST),
        Expr::Is(family),
        Expr::Payload {
            base: Base::Network,
            offset,
            length,
            to: FIRST,
        },
        Expr::Masked(&mask),
        Expr::Is(&first),
        Expr::Meta(Meta::OifName, FIRST),
        Expr::IsNot(link),
        Expr::Masquerade,
    ];
    batch.rule("outward", &rule);
}
