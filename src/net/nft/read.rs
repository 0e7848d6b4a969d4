//! The socket: transactions are sent, and what the kernel has is read.

use super::{
    BATCH_BEGIN, BATCH_END, Batch, GETGEN, GETOBJ, GETSETELEM, GETTABLE, INET, OBJECT_COUNTER,
    SUBSYSTEM, header, kind,
};
use crate::net::netlink::{
    ACKED, Refusal, Socket, Wire, attribute, attributes, be32, be64, ne32, text,
};
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use std::time::Duration;

/// An element as the kernel shows it.
#[derive(Debug, Clone, Default)]
pub(in crate::net) struct Shown {
    pub key: Vec<u8>,
    pub mark: Option<u32>,
    pub expires: Option<Duration>,
    pub note: Vec<u8>,
    /// Of its counter.
    pub packets: u64,
}

/// A socket for nf_tables.
pub(in crate::net) struct Nft(Socket);

impl Nft {
    /// Of the namespace in which the calling thread is.
    pub(in crate::net) fn open() -> Result<Self, Errno> {
        Socket::open(SockProtocol::NetlinkNetFilter).map(Self)
    }

    /// The socket itself: connection tracking is another subsystem of the same protocol.
    pub(in crate::net) fn socket(&mut self) -> &mut Socket {
        &mut self.0
    }

    /// One transaction: all of it, or nothing.
    pub(in crate::net) fn commit(&mut self, batch: Batch) -> Result<(), Refusal> {
        if batch.wire.len() == 0 {
            return Ok(());
        }
        let mut wire = Wire::new();
        wire.message(BATCH_BEGIN, 1, |w| header(w, 0, SUBSYSTEM));
        wire.append(&batch.wire);
        // The end of a batch is not acknowledged by every kernel: the last message before it is.
        wire.flag_last(ACKED);
        let last = wire.len() - 1;
        wire.message(BATCH_END, 1, |w| header(w, 0, SUBSYSTEM));
        self.0.exchange_until(wire, last)
    }

    /// The number of the namespace's rules: it changes with every transaction, whoever's.
    pub(in crate::net) fn generation(&mut self) -> Result<u32, Refusal> {
        let mut found = None;
        self.0.get(
            kind(GETGEN),
            |w| header(w, 0, 0),
            |_, body| {
                found = body.get(4..).and_then(|body| be32(attribute(body, 1)?));
            },
        )?;
        found.ok_or(Refusal {
            errno: Errno::EPROTO,
            message: 0,
        })
    }

    /// Is the table there?
    pub(in crate::net) fn has_table(&mut self, table: &str) -> Result<bool, Refusal> {
        let ask = |w: &mut Wire| {
            header(w, INET, 0);
            w.text(1, table);
        };
        match self.0.get(kind(GETTABLE), ask, |_, _| {}) {
            Ok(()) => Ok(true),
            Err(refusal) if refusal.errno == Errno::ENOENT => Ok(false),
            Err(refusal) => Err(refusal),
        }
    }

    /// Packets of every counter of the table, by name.
    pub(in crate::net) fn counters(&mut self, table: &str) -> Result<Vec<(String, u64)>, Refusal> {
        let mut counters = Vec::new();
        let ask = |w: &mut Wire| {
            header(w, INET, 0);
            w.text(1, table);
            w.be32(3, OBJECT_COUNTER);
        };
        let asked = self.0.dump(kind(GETOBJ), ask, |_, body| {
            let body = body.get(4..).unwrap_or(&[]);
            counters.extend(read_counter(body));
        });
        none_without_table(asked)?;
        Ok(counters)
    }

    /// Packets of one counter.
    pub(in crate::net) fn counter(&mut self, table: &str, name: &str) -> Result<u64, Refusal> {
        let mut packets = 0;
        let ask = |w: &mut Wire| {
            header(w, INET, 0);
            w.text(1, table);
            w.text(2, name);
            w.be32(3, OBJECT_COUNTER);
        };
        self.0.get(kind(GETOBJ), ask, |_, body| {
            packets = read_counter(body.get(4..).unwrap_or(&[])).map_or(0, |(_, packets)| packets);
        })?;
        Ok(packets)
    }

    /// Every element of a set. No such set: none.
    pub(in crate::net) fn elements(
        &mut self,
        table: &str,
        set: &str,
    ) -> Result<Vec<Shown>, Refusal> {
        let mut found = Vec::new();
        let ask = |w: &mut Wire| {
            header(w, INET, 0);
            w.text(1, table);
            w.text(2, set);
        };
        let asked = self.0.dump(kind(GETSETELEM), ask, |_, body| {
            let list = body.get(4..).and_then(|body| attribute(body, 3));
            let elements = attributes(list.unwrap_or(&[]));
            found.extend(elements.map(|(_, element)| read_element(element)));
        });
        none_without_table(asked)?;
        Ok(found)
    }
}

fn none_without_table(asked: Result<(), Refusal>) -> Result<(), Refusal> {
    match asked {
        Err(refusal) if refusal.errno == Errno::ENOENT => Ok(()),
        asked => asked,
    }
}

fn read_counter(body: &[u8]) -> Option<(String, u64)> {
    let name = text(attribute(body, 2)?);
    Some((name, be64(attribute(attribute(body, 4)?, 2)?)?))
}

fn read_element(element: &[u8]) -> Shown {
    let value = |kind| attribute(element, kind).and_then(|data| attribute(data, 1));
    let expires = attribute(element, 5).and_then(be64);
    let mark = value(2).and_then(ne32);
    // A single expression, or a list of them.
    let list = attribute(element, 11).and_then(|list| attribute(list, 1));
    let counter = attribute(element, 7).or(list);
    let counter = counter.and_then(|counter| attribute(counter, 2));
    let packets = counter.and_then(|data| be64(attribute(data, 2)?));
    Shown {
        key: value(1).unwrap_or(&[]).to_vec(),
        mark,
        expires: expires.map(Duration::from_millis),
        note: attribute(element, 6).unwrap_or(&[]).to_vec(),
        packets: packets.unwrap_or(0),
    }
}
