//! Expressions of rules. Registers: 1 holds 16 bytes; 8 to 23 are the same room in pieces of 4.

use crate::net::netlink::Wire;

/// The first register.
pub(in crate::net) const FIRST: u32 = 8;

/// What becomes of a packet.
#[derive(Clone, Copy)]
pub(in crate::net) enum Verdict<'a> {
    Drop,
    Accept,
    Return,
    Jump(&'a str),
    Goto(&'a str),
}

/// What is known of a packet without looking into it.
#[derive(Clone, Copy)]
pub(in crate::net) enum Meta {
    /// Bytes, from the network header on.
    Length = 0,
    Mark = 3,
    Iif = 4,
    Oif = 5,
    IifName = 6,
    OifName = 7,
    NfProto = 15,
    L4Proto = 16,
}

/// What is known of the flow it belongs to; addresses, protocol and ports as the flow's beginner sent them.
#[derive(Clone, Copy)]
pub(in crate::net) enum Ct {
    State,
    Direction,
    Mark,
    Protocol,
    Port,
    Address4,
    Address6,
}

impl Ct {
    fn key(self) -> (u32, bool) {
        match self {
            Self::State => (0, false),
            Self::Direction => (1, false),
            Self::Mark => (3, false),
            Self::Protocol => (10, true),
            Self::Port => (12, true),
            Self::Address4 => (20, true),
            Self::Address6 => (22, true),
        }
    }
}

/// States of a flow, as bits of [`Ct::State`].
pub(in crate::net) const ESTABLISHED: u32 = 2;
/// A message about a flow.
pub(in crate::net) const RELATED: u32 = 4;
/// Its first packet.
pub(in crate::net) const NEW: u32 = 8;

/// The part of a packet that an offset counts from.
#[derive(Clone, Copy)]
pub(in crate::net) enum Base {
    Link,
    Network,
    Transport,
}

/// One expression.
#[derive(Clone, Copy)]
pub(in crate::net) enum Expr<'a> {
    Meta(Meta, u32),
    Ct(Ct, u32),
    Payload {
        base: Base,
        offset: u32,
        length: u32,
        to: u32,
    },
    /// Goes on where register 8 is this.
    Is(&'a [u8]),
    /// Goes on where register 8 is not this.
    IsNot(&'a [u8]),
    /// Goes on where a bit of the four bytes in register 8 is set.
    AnyBit(u32),
    /// Keeps only these bits of what begins in register 8.
    Masked(&'a [u8]),
    /// Goes on where the key from register 8 is in the set.
    In(&'a str),
    /// Goes on where it is not.
    NotIn(&'a str),
    /// Takes the verdict that the map has for the key.
    Verdicts(&'a str),
    /// Puts what the map has for the key into register 8.
    Value(&'a str),
    /// Writes register 8 into the flow's mark.
    MarkFlow,
    /// Puts these bytes into register 8.
    Load(&'a [u8]),
    /// Writes register 8 into the packet's mark.
    MarkPacket,
    Counter(&'a str),
    /// The counter that the map has for the key.
    CounterOf(&'a str),
    /// Puts the key into a set, with a counter of its own.
    Remember(&'a str),
    /// Goes on where more than this many packets come a second.
    Faster(u32),
    /// Goes on where there are more flows than this.
    MoreFlows(u32),
    Untracked,
    Masquerade,
    /// What kind of address the destination is to this node: a number of `RTN_*`.
    DestinationKind,
    ResetTcp,
    Prohibited,
    Then(Verdict<'a>),
}

impl Expr<'_> {
    pub(super) fn write(&self, wire: &mut Wire) {
        wire.nest(1, |w| {
            w.text(1, self.name());
            w.nest(2, |w| self.data(w));
        });
        if matches!(self, Self::AnyBit(_)) {
            Self::IsNot(&[0; 4]).write(wire);
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Meta(..) | Self::MarkPacket => "meta",
            Self::Ct(..) | Self::MarkFlow => "ct",
            Self::Payload { .. } => "payload",
            Self::Is(_) | Self::IsNot(_) => "cmp",
            Self::AnyBit(_) | Self::Masked(_) => "bitwise",
            Self::In(_) | Self::NotIn(_) | Self::Verdicts(_) | Self::Value(_) => "lookup",
            Self::Counter(_) | Self::CounterOf(_) => "objref",
            Self::Remember(_) => "dynset",
            Self::Faster(_) => "limit",
            Self::MoreFlows(_) => "connlimit",
            Self::Untracked => "notrack",
            Self::Masquerade => "masq",
            Self::DestinationKind => "fib",
            Self::ResetTcp | Self::Prohibited => "reject",
            Self::Then(_) | Self::Load(_) => "immediate",
        }
    }

    fn data(&self, w: &mut Wire) {
        match *self {
            Self::Meta(what, to) => {
                w.be32(1, to);
                w.be32(2, what as u32);
            }
            Self::MarkPacket => {
                w.be32(2, Meta::Mark as u32);
                w.be32(3, FIRST);
            }
            Self::Ct(what, to) => {
                let (key, original) = what.key();
                w.be32(1, to);
                w.be32(2, key);
                if original {
                    w.attr(3, &[0]);
                }
            }
            Self::MarkFlow => {
                w.be32(2, Ct::Mark.key().0);
                w.be32(4, FIRST);
            }
            Self::Payload {
                base,
                offset,
                length,
                to,
            } => {
                w.be32(1, to);
                w.be32(2, base as u32);
                w.be32(3, offset);
                w.be32(4, length);
            }
            Self::Is(value) => compare(w, 0, value),
            Self::IsNot(value) => compare(w, 1, value),
            Self::AnyBit(bits) => masked(w, &bits.to_ne_bytes()),
            Self::Masked(bits) => masked(w, bits),
            Self::In(set) => lookup(w, set),
            Self::NotIn(set) => {
                lookup(w, set);
                w.be32(5, 1);
            }
            Self::Verdicts(map) => {
                lookup(w, map);
                w.be32(3, 0);
            }
            Self::Value(map) => {
                lookup(w, map);
                w.be32(3, FIRST);
            }
            Self::Counter(name) => {
                w.be32(1, super::OBJECT_COUNTER);
                w.text(2, name);
            }
            Self::CounterOf(map) => {
                w.be32(3, FIRST);
                w.text(4, map);
            }
            Self::Remember(set) => remember(w, set),
            Self::Faster(rate) => {
                w.be64(1, rate.into());
                w.be64(2, 1);
                w.be32(3, rate);
                w.be32(4, 0);
                w.be32(5, 1);
            }
            Self::MoreFlows(count) => {
                w.be32(1, count);
                w.be32(2, 1);
            }
            Self::DestinationKind => {
                w.be32(1, FIRST);
                w.be32(2, 3);
                w.be32(3, 2);
            }
            Self::ResetTcp => {
                w.be32(1, 1);
                w.attr(2, &[0]);
            }
            Self::Prohibited => {
                w.be32(1, 2);
                w.attr(2, &[3]);
            }
            Self::Load(value) => {
                w.be32(1, FIRST);
                w.nest(2, |w| w.attr(1, value));
            }
            Self::Then(verdict) => {
                w.be32(1, 0);
                w.nest(2, |w| self::verdict(w, &verdict));
            }
            Self::Untracked | Self::Masquerade => {}
        }
    }
}

fn compare(w: &mut Wire, operation: u32, value: &[u8]) {
    w.be32(1, FIRST);
    w.be32(2, operation);
    w.nest(3, |w| w.attr(1, value));
}

fn masked(w: &mut Wire, bits: &[u8]) {
    w.be32(1, FIRST);
    w.be32(2, FIRST);
    w.be32(3, u32::try_from(bits.len()).unwrap_or(0));
    w.nest(4, |w| w.attr(1, bits));
    w.nest(5, |w| w.attr(1, &[0; 16][..bits.len().min(16)]));
}

fn lookup(w: &mut Wire, set: &str) {
    w.text(1, set);
    w.be32(2, FIRST);
}

fn remember(w: &mut Wire, set: &str) {
    w.text(1, set);
    // Update: what is there stays longer.
    w.be32(3, 1);
    w.be32(4, FIRST);
    w.nest(7, |w| {
        w.text(1, "counter");
        w.nest(2, |_| {});
    });
}

/// A verdict as the value of an element or of an `immediate`.
pub(super) fn verdict(w: &mut Wire, verdict: &Verdict<'_>) {
    let (code, chain) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Return => (-5, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
    };
    w.nest(2, |w| {
        w.be32(1, i32::cast_unsigned(code));
        if let Some(chain) = chain {
            w.text(2, chain);
        }
    });
}
