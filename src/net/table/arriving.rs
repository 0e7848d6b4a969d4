//! What comes in for a slot and its policy lets in: noted where somebody inside may wait for it, so that a sandbox that
//! sleeps can be woken.

use super::{IFACE, payload, plain};
use crate::net::nft::expr::{Base, Expr, FIRST, Meta, Verdict};
use crate::net::nft::{Batch, EVAL, SetKind, TIMEOUT};
use std::time::Duration;

/// How long a knock is remembered.
pub(in crate::net) const KNOCKS_FOR: Duration = Duration::from_secs(60);
/// Links of slots that something came in on. As many as there can be slots.
pub(super) const KNOCKS: SetKind = SetKind {
    flags: EVAL | TIMEOUT,
    size: 1 << 16,
    timeout: KNOCKS_FOR,
    ..plain(IFACE, &[4])
};
/// Bits of TCP's flags: a connection begins (SYN), or there is something to be read now (PSH, which ends what a program has
/// written). What keeps a connection alive, acknowledges or ends it has neither.
const SOMETHING_NEW: u8 = 0x02 | 0x08;
/// Headers alone are never so long: the middle of something long, which may be all that TCP sends again.
const LONG: u32 = !127;

/// The chain `arrive`.
pub(super) fn rules(batch: &mut Batch) {
    batch.chain("arrive", None);
    let note = [Expr::Meta(Meta::Oif, FIRST), Expr::Remember("knocks")];
    let speaks = |number| [Expr::Meta(Meta::L4Proto, FIRST), Expr::Is(number)];
    let flags = [
        payload(Base::Transport, 13, 1, FIRST),
        Expr::Masked(&[SOMETHING_NEW]),
        Expr::IsNot(&[0]),
    ];
    batch.rule("arrive", &[&speaks(&[6])[..], &flags, &note].concat());
    let long = [Expr::Meta(Meta::Length, FIRST), Expr::AnyBit(LONG)];
    batch.rule("arrive", &[&speaks(&[6])[..], &long, &note].concat());
    batch.rule("arrive", &[&speaks(&[17])[..], &note].concat());
    batch.rule("arrive", &[Expr::Then(Verdict::Accept)]);
}
