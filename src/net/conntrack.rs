//! Flows that conntrack knows: those of an address are forgotten when its sandbox has gone, so that the next one with the
//! address inherits none.

use super::netlink::{ACKED, Refusal, Socket, Wire};
use super::rtnl::octets;
use nix::errno::Errno;
use std::net::IpAddr;

const SUBSYSTEM: u16 = 1;
const DELETE: u16 = 2;
const TUPLE_ORIG: u16 = 1;
const TUPLE_IP: u16 = 1;
const FILTER: u16 = 25;
const ORIG_FLAGS: u16 = 1;

/// Which end of the flow's first packet the address is.
#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

fn ask(wire: &mut Wire, address: IpAddr, end: End) {
    let (family, source, destination) = match address {
        IpAddr::V4(_) => (2, 1, 2),
        IpAddr::V6(_) => (10, 3, 4),
    };
    let (kind, flag) = match end {
        End::Source => (source, 1),
        End::Destination => (destination, 2),
    };
    wire.raw(&[family, 0, 0, 0]);
    wire.nest(TUPLE_ORIG, |w| {
        w.nest(TUPLE_IP, |w| w.attr(kind, &octets(address)));
    });
    wire.nest(FILTER, |w| w.u32(ORIG_FLAGS, flag));
}

/// Forgets every flow that the address has begun or that was begun to it.
pub(super) fn forget(socket: &mut Socket, address: IpAddr) -> Result<(), Refusal> {
    for end in [End::Source, End::Destination] {
        let mut wire = Wire::new();
        wire.message(SUBSYSTEM << 8 | DELETE, ACKED, |w| ask(w, address, end));
        match socket.exchange(wire) {
            // There was none.
            Err(refusal) if refusal.errno == Errno::ENOENT => {}
            done => done?,
        }
    }
    Ok(())
}
