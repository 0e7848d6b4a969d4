//! nf_tables over netlink: tables, chains, sets, elements, rules and their expressions, sent as one transaction.
//! Numbers are those of linux/netfilter/nf_tables.h.

pub(super) mod expr;
mod read;

pub(super) use read::{Nft, Shown};

use super::netlink::{APPEND, CREATE, Wire};
use std::time::Duration;

const SUBSYSTEM: u16 = 10;
const INET: u8 = 1;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const NEWSET: u16 = 9;
const DELSET: u16 = 11;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;
const GETGEN: u16 = 16;
const NEWOBJ: u16 = 18;
const GETOBJ: u16 = 19;
const DELOBJ: u16 = 20;

const OBJECT_COUNTER: u32 = 1;
/// Bytes of elements in one message: the length of an attribute is 16 bits wide.
const ELEMENTS: usize = 48 << 10;

const fn kind(message: u16) -> u16 {
    SUBSYSTEM << 8 | message
}

fn header(wire: &mut Wire, family: u8, resource: u16) {
    wire.raw(&[family, 0]);
    wire.raw(&resource.to_be_bytes());
}

/// What a set's keys and values are.
#[derive(Clone, Copy)]
pub(super) struct SetKind {
    /// nft's numbers of its types, for whoever lists the table; 6 bits each in a concatenation.
    pub types: u32,
    /// Bytes of each field of the key.
    pub fields: &'static [u32],
    pub flags: u32,
    pub data: Data,
    /// Elements, at most; 0: as many as there is memory for.
    pub size: u32,
    /// Of every element.
    pub timeout: Duration,
}

/// What a map leads to.
#[derive(Clone, Copy)]
pub(super) enum Data {
    None,
    Verdict,
    Mark,
    Counter,
}

/// Key ranges.
pub(super) const INTERVAL: u32 = 0x4;
const MAP: u32 = 0x8;
/// Elements that go by themselves.
pub(super) const TIMEOUT: u32 = 0x10;
/// Filled by packets.
pub(super) const EVAL: u32 = 0x20;
const OBJECT: u32 = 0x40;
/// Keys of several fields, each a range.
pub(super) const CONCAT: u32 = 0x80;
const INTERVAL_END: u32 = 1;

/// An element to be put into a set or taken out.
#[derive(Debug, Clone, Default)]
pub(super) struct Element {
    pub key: Vec<u8>,
    /// With `CONCAT | INTERVAL`: the last key of the range.
    pub last: Option<Vec<u8>>,
    /// The first key behind a range (with `INTERVAL` alone).
    pub end: bool,
    pub goto: Option<String>,
    pub mark: Option<u32>,
    pub counter: Option<String>,
    pub timeout: Option<Duration>,
    /// At most 256 bytes, given back as they are.
    pub note: Vec<u8>,
}

impl Element {
    pub(super) fn key(key: Vec<u8>) -> Self {
        Self {
            key,
            ..Self::default()
        }
    }

    fn write(&self, wire: &mut Wire) {
        wire.nest(1, |w| {
            w.nest(1, |w| w.attr(1, &self.key));
            if let Some(last) = &self.last {
                w.nest(10, |w| w.attr(1, last));
            }
            if self.end {
                w.be32(3, INTERVAL_END);
            }
            if let Some(chain) = &self.goto {
                w.nest(2, |w| expr::verdict(w, &expr::Verdict::Goto(chain)));
            }
            if let Some(mark) = self.mark {
                w.nest(2, |w| w.attr(1, &mark.to_ne_bytes()));
            }
            if let Some(counter) = &self.counter {
                w.text(9, counter);
            }
            if let Some(timeout) = self.timeout {
                w.be64(4, millis(timeout));
            }
            if !self.note.is_empty() {
                w.attr(6, &self.note[..self.note.len().min(256)]);
            }
        });
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Where a base chain is hooked in.
pub(super) struct Hook {
    /// 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
    pub number: u32,
    pub priority: i32,
    pub kind: &'static str,
    /// What is not decided is dropped.
    pub closed: bool,
}

/// One transaction on one table: all of it, or nothing.
pub(super) struct Batch {
    table: String,
    wire: Wire,
}

impl Batch {
    pub(super) fn on(table: &str) -> Self {
        Self {
            table: table.to_owned(),
            wire: Wire::new(),
        }
    }

    fn add(&mut self, message: u16, flags: u16, write: impl FnOnce(&mut Wire)) {
        self.wire.message(kind(message), 1 | flags, |w| {
            header(w, INET, 0);
            write(w);
        });
    }

    /// The table; there may be one already.
    pub(super) fn table(&mut self) {
        let table = self.table.clone();
        self.add(NEWTABLE, CREATE, |w| w.text(1, &table));
    }

    pub(super) fn delete_table(&mut self) {
        let table = self.table.clone();
        self.add(DELTABLE, 0, |w| w.text(1, &table));
    }

    pub(super) fn chain(&mut self, name: &str, hook: Option<&Hook>) {
        let table = self.table.clone();
        self.add(NEWCHAIN, CREATE, |w| {
            w.text(1, &table);
            w.text(3, name);
            if let Some(hook) = hook {
                w.nest(4, |w| {
                    w.be32(1, hook.number);
                    w.be32(2, hook.priority.cast_unsigned());
                });
                w.be32(5, u32::from(!hook.closed));
                w.text(7, hook.kind);
            }
        });
    }

    pub(super) fn delete_chain(&mut self, name: &str) {
        self.named(DELCHAIN, 3, name);
    }

    /// A rule at the end of a chain.
    pub(super) fn rule(&mut self, chain: &str, expressions: &[expr::Expr<'_>]) {
        let table = self.table.clone();
        self.add(NEWRULE, CREATE | APPEND, |w| {
            w.text(1, &table);
            w.text(2, chain);
            w.nest(4, |w| {
                expressions
                    .iter()
                    .for_each(|expression| expression.write(w));
            });
        });
    }

    pub(super) fn set(&mut self, name: &str, set: &SetKind) {
        let table = self.table.clone();
        let id = u32::try_from(self.wire.len()).unwrap_or(u32::MAX);
        let mut flags = set.flags;
        if !matches!(set.data, Data::None) {
            flags |= MAP;
        }
        if matches!(set.data, Data::Counter) {
            flags = flags & !MAP | OBJECT;
        }
        // Fields of a concatenation fill whole registers.
        let length = match set.fields {
            [one] => *one,
            fields => fields.iter().map(|field| field.next_multiple_of(4)).sum(),
        };
        self.add(NEWSET, CREATE, |w| {
            w.text(1, &table);
            w.text(2, name);
            w.be32(3, flags);
            w.be32(4, set.types);
            w.be32(5, length);
            match set.data {
                Data::None => {}
                Data::Verdict => w.be32(6, 0xffff_ff00),
                Data::Mark => {
                    w.be32(6, 19);
                    w.be32(7, 4);
                }
                Data::Counter => w.be32(15, OBJECT_COUNTER),
            }
            w.nest(9, |w| {
                if set.size > 0 {
                    w.be32(1, set.size);
                }
                if set.flags & CONCAT != 0 {
                    w.nest(2, |w| {
                        for field in set.fields {
                            w.nest(1, |w| w.be32(1, *field));
                        }
                    });
                }
            });
            w.be32(10, id);
            if !set.timeout.is_zero() {
                w.be64(11, millis(set.timeout));
            }
        });
    }

    pub(super) fn delete_set(&mut self, name: &str) {
        self.named(DELSET, 2, name);
    }

    pub(super) fn put(&mut self, set: &str, elements: &[Element]) {
        self.elements(NEWSETELEM, CREATE, set, elements);
    }

    /// Takes elements out; all must be there.
    pub(super) fn take(&mut self, set: &str, elements: &[Element]) {
        self.elements(DELSETELEM, 0, set, elements);
    }

    fn elements(&mut self, message: u16, flags: u16, set: &str, elements: &[Element]) {
        let table = self.table.clone();
        let mut rest = elements;
        while !rest.is_empty() {
            let mut size = 0;
            let fits = rest.iter().take_while(|element| {
                size += 64 + 2 * element.key.len() + element.note.len();
                size <= ELEMENTS
            });
            let (now, later) = rest.split_at(fits.count().max(1));
            rest = later;
            self.add(message, flags, |w| {
                w.text(1, &table);
                w.text(2, set);
                w.nest(3, |w| now.iter().for_each(|element| element.write(w)));
            });
        }
    }

    /// Takes every element out.
    pub(super) fn flush(&mut self, set: &str) {
        let table = self.table.clone();
        self.add(DELSETELEM, 0, |w| {
            w.text(1, &table);
            w.text(2, set);
        });
    }

    pub(super) fn counter(&mut self, name: &str) {
        let table = self.table.clone();
        self.add(NEWOBJ, CREATE, |w| {
            w.text(1, &table);
            w.text(2, name);
            w.be32(3, OBJECT_COUNTER);
            w.nest(4, |w| {
                w.be64(1, 0);
                w.be64(2, 0);
            });
        });
    }

    pub(super) fn delete_counter(&mut self, name: &str) {
        let table = self.table.clone();
        self.add(DELOBJ, 0, |w| {
            w.text(1, &table);
            w.text(2, name);
            w.be32(3, OBJECT_COUNTER);
        });
    }

    fn named(&mut self, message: u16, attribute: u16, name: &str) {
        let table = self.table.clone();
        self.add(message, 0, |w| {
            w.text(1, &table);
            w.text(attribute, name);
        });
    }
}
