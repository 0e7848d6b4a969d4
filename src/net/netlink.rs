//! Netlink: messages written and read, and one synchronous exchange. For the two workers of this room only.
//!
//! No crate: hearth speaks to two subsystems from threads of its own, one message at a time, and what it says fits these
//! few verbs. (rtnetlink is made for a tokio task; of nf_tables no crate with a licence of ours knows what is needed here.)
//! The kernel works a request off inside `send`, so an answer is there when `send` returns: nothing here ever waits.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use std::os::fd::{AsRawFd, OwnedFd};

/// `NLM_F_REQUEST | NLM_F_ACK`.
pub(super) const ACKED: u16 = 0x1 | 0x4;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x1 | 0x300;
/// `NLM_F_CREATE`.
pub(super) const CREATE: u16 = 0x400;
/// `NLM_F_EXCL`.
pub(super) const EXCL: u16 = 0x200;
/// `NLM_F_REPLACE`.
pub(super) const REPLACE: u16 = 0x100;
/// `NLM_F_APPEND`.
pub(super) const APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 0x8000;
const HEADER: usize = 16;
/// The kernel fills at most 32 KiB of a dump's part.
const PART: usize = 64 << 10;
/// Room for one transaction and for its acknowledgements.
const BUFFER: usize = 32 << 20;

/// The kernel's refusal of one message of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Its answer.
    pub errno: Errno,
    /// Which message of the exchange, from 0.
    pub message: usize,
}

/// Messages, one behind the other.
#[derive(Debug, Default, Clone)]
pub(super) struct Wire {
    bytes: Vec<u8>,
    /// Where each message begins.
    begins: Vec<usize>,
}

impl Wire {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Messages so far.
    pub(super) fn len(&self) -> usize {
        self.begins.len()
    }

    /// Appends a message; its sequence number is filled in when it is sent.
    pub(super) fn message(&mut self, kind: u16, flags: u16, write: impl FnOnce(&mut Self)) {
        let at = self.bytes.len();
        self.begins.push(at);
        self.bytes.extend_from_slice(&[0; 4]);
        self.raw(&kind.to_ne_bytes());
        self.raw(&flags.to_ne_bytes());
        self.raw(&[0; 8]);
        write(self);
        let length = u32::try_from(self.bytes.len() - at).unwrap_or(u32::MAX);
        self.bytes[at..at + 4].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    /// Adds flags to the last message.
    pub(super) fn flag_last(&mut self, flags: u16) {
        if let Some(at) = self.begins.last() {
            let place = at + 6..at + 8;
            let old = u16::from_ne_bytes([self.bytes[at + 6], self.bytes[at + 7]]);
            self.bytes[place].copy_from_slice(&(old | flags).to_ne_bytes());
        }
    }

    /// All of another's messages behind these.
    pub(super) fn append(&mut self, other: &Self) {
        let at = self.bytes.len();
        self.begins
            .extend(other.begins.iter().map(|begin| begin + at));
        self.bytes.extend_from_slice(&other.bytes);
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn attr(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.raw(&length.to_ne_bytes());
        self.raw(&kind.to_ne_bytes());
        self.raw(value);
        self.pad();
    }

    /// A text with its NUL.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.attr(kind, &[value.as_bytes(), &[0]].concat());
    }

    pub(super) fn u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    pub(super) fn be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    pub(super) fn be64(&mut self, kind: u16, value: u64) {
        self.attr(kind, &value.to_be_bytes());
    }

    pub(super) fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Self)) {
        let at = self.bytes.len();
        self.raw(&[0; 2]);
        self.raw(&(kind | NLA_F_NESTED).to_ne_bytes());
        write(self);
        let length = u16::try_from(self.bytes.len() - at).unwrap_or(u16::MAX);
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn number(&mut self, first: u32) {
        for (number, at) in (first..).zip(self.begins.iter()) {
            self.bytes[at + 8..at + 12].copy_from_slice(&number.to_ne_bytes());
        }
    }
}

/// The attributes in `bytes`: kind without flags, and value. Stops at what is cut short.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*rest.first()?, *rest.get(1)?]));
        let kind = u16::from_ne_bytes([*rest.get(2)?, *rest.get(3)?]) & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The value of the first attribute of that kind.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

/// A text without its NUL.
pub(super) fn text(value: &[u8]) -> String {
    let value = value.strip_suffix(&[0]).unwrap_or(value);
    String::from_utf8_lossy(value).into_owned()
}

pub(super) fn be32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

pub(super) fn be64(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.try_into().ok()?))
}

pub(super) fn ne32(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

pub(super) fn ne64(value: &[u8]) -> Option<u64> {
    Some(u64::from_ne_bytes(value.try_into().ok()?))
}

/// A netlink socket. It belongs to the network namespace of the thread that opened it, wherever that thread goes.
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    pub(super) fn open(protocol: SockProtocol) -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        setsockopt(&fd, sockopt::SndBufForce, &BUFFER)?;
        setsockopt(&fd, sockopt::RcvBufForce, &BUFFER)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { fd, sequence: 1 })
    }

    /// Sends all messages at once and reads what the kernel says of them. The last must ask for an acknowledgement.
    ///
    /// # Errors
    /// The first refusal; the messages behind it may have been done (not so in a batch of nf_tables).
    pub(super) fn exchange(&mut self, wire: Wire) -> Result<(), Refusal> {
        let last = wire.len().saturating_sub(1);
        self.exchange_until(wire, last)
    }

    /// The same; message `last` is the one that asks for an acknowledgement.
    pub(super) fn exchange_until(&mut self, mut wire: Wire, last: usize) -> Result<(), Refusal> {
        if wire.len() == 0 {
            return Ok(());
        }
        let first = self.number(&mut wire);
        self.send(&wire)?;
        let mut refusal: Option<Refusal> = None;
        let mut done = false;
        self.read(|kind, sequence, body| {
            if kind != NLMSG_ERROR || sequence < first {
                return true;
            }
            let message = (sequence - first) as usize;
            let errno = body.get(..4).and_then(ne32).unwrap_or(0).cast_signed();
            if errno != 0 {
                let errno = Errno::from_raw(-errno);
                if refusal.is_none_or(|found| found.message > message) {
                    refusal = Some(Refusal { errno, message });
                }
            } else {
                done |= message >= last;
            }
            true
        })?;
        match refusal {
            Some(refusal) => Err(refusal),
            None if done => Ok(()),
            None => Err(Refusal {
                errno: Errno::EPROTO,
                message: last,
            }),
        }
    }

    /// Asks for all there is: `each` gets every answer's kind and body.
    pub(super) fn dump(
        &mut self,
        kind: u16,
        write: impl FnOnce(&mut Wire),
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), Refusal> {
        self.ask(kind, DUMP, write, &mut each)
    }

    /// Asks for one thing that answers with one message.
    pub(super) fn get(
        &mut self,
        kind: u16,
        write: impl FnOnce(&mut Wire),
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), Refusal> {
        self.ask(kind, ACKED, write, &mut each)
    }

    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        write: impl FnOnce(&mut Wire),
        each: &mut impl FnMut(u16, &[u8]),
    ) -> Result<(), Refusal> {
        let mut wire = Wire::new();
        wire.message(kind, flags, write);
        let first = self.number(&mut wire);
        self.send(&wire)?;
        let mut answer = Errno::EPROTO as i32;
        self.read(|kind, sequence, body| {
            if sequence != first {
                return true;
            }
            match kind {
                NLMSG_DONE | NLMSG_ERROR => {
                    let errno = body.get(..4).and_then(ne32).unwrap_or(0).cast_signed();
                    answer = -errno;
                    false
                }
                _ => {
                    each(kind, body);
                    true
                }
            }
        })?;
        match answer {
            0 => Ok(()),
            errno => Err(Refusal {
                errno: Errno::from_raw(errno),
                message: 0,
            }),
        }
    }

    fn number(&mut self, wire: &mut Wire) -> u32 {
        let first = self.sequence;
        wire.number(first);
        let count = u32::try_from(wire.len()).unwrap_or(u32::MAX);
        self.sequence = first.checked_add(count).unwrap_or(1);
        first
    }

    fn send(&mut self, wire: &Wire) -> Result<(), Refusal> {
        // What an earlier exchange left unread is not this one's.
        self.read(|_, _, _| true)?;
        let failed = |errno| Refusal { errno, message: 0 };
        send(self.fd.as_raw_fd(), &wire.bytes, MsgFlags::empty()).map_err(failed)?;
        Ok(())
    }

    /// All that is there, until `each` says that it is enough.
    fn read(&mut self, mut each: impl FnMut(u16, u32, &[u8]) -> bool) -> Result<(), Refusal> {
        let mut buffer = vec![0; PART];
        loop {
            let length = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(Refusal { errno, message: 0 }),
            };
            let mut rest = buffer.get(..length).unwrap_or(&[]);
            while let Some(header) = rest.get(..HEADER) {
                let field = |at: usize| ne32(&header[at..at + 4]).unwrap_or(0);
                let whole = field(0) as usize;
                let kind = u16::from_ne_bytes([header[4], header[5]]);
                let Some(body) = rest.get(HEADER..whole) else {
                    break;
                };
                if !each(kind, field(8), body) {
                    return Ok(());
                }
                rest = rest.get(whole.next_multiple_of(4)..).unwrap_or(&[]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut wire = Wire::new();
        wire.message(7, ACKED, |w| {
            w.text(1, "a");
            w.nest(2, |w| w.be32(3, 0x0102_0304));
        });
        wire.message(8, 1, |w| w.raw(&[9]));
        wire.flag_last(4);
        wire.number(40);
        assert_eq!(wire.len(), 2);
        assert_eq!(wire.bytes.len() % 4, 0);
        assert_eq!(wire.bytes[8], 40);
        let second = &wire.bytes[wire.begins[1]..];
        assert_eq!((second[0], second[4], second[6], second[8]), (17, 8, 5, 41));
        let body = &wire.bytes[HEADER..wire.begins[1]];
        assert_eq!(attribute(body, 1).map(text), Some("a".to_owned()));
        let nest = attribute(body, 2).unwrap();
        assert_eq!(attribute(nest, 3).and_then(be32), Some(0x0102_0304));
        assert_eq!(attribute(body, 9), None);
    }

    #[test]
    fn attributes_that_lie_about_their_length_end_the_reading() {
        assert_eq!(attributes(&[200, 0, 1, 0, 5]).count(), 0);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[0, 0, 0, 0, 0, 0, 0, 0]).count(), 0);
    }
}
