//! Records: how messages travel over the stdio FIFOs, the same on both sides. No I/O here.
//!
//! ```text
//!  0      4    5     6        8         16      20                    ≤ 4096
//!  | HRT1 |kind|flags| length | session | crc32 | payload (length bytes) |     integers little-endian
//! ```
//!
//! A record is at most 4,096 bytes, so that one write(2) of it into a FIFO is whole or not at all (`PIPE_BUF`): a
//! writer killed at any moment leaves no half record. A message is one or more DATA records of one session in a row,
//! all but the last flagged MORE. The CRC-32 covers header (without itself) and payload.
//!
//! Alignment: the host sends HELLO with a fresh random session and throws away everything until the ACK that carries
//! it. The guest drops its old conversation at a HELLO with a new session and ignores DATA of any other. The decoder
//! hunts for the magic and moves on by one byte when something does not fit: junk is counted, never fatal.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Version of framing and messages; told in HELLO and ACK.
pub const PROTOCOL: u32 = 1;
/// Largest record, header included (`PIPE_BUF` of Linux).
pub const RECORD_BYTES: usize = 4096;
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 20;
/// Largest payload of one record.
pub const PAYLOAD_BYTES: usize = RECORD_BYTES - HEADER_BYTES;
/// Largest message host → guest: a claim with all its files, secrets and variables at their bounds.
pub const HOST_MESSAGE_BYTES: usize = 7 << 20;
/// Largest message guest → host: one piece of a stream, or one page of a directory.
pub const GUEST_MESSAGE_BYTES: usize = 256 << 10;
/// Bytes a side may send on a call before the other grants more; each direction has its own credit.
pub const FIRST_CREDIT: usize = 64 << 10;
/// What an entry of a directory costs of that credit besides its name.
pub const ENTRY_CREDIT: usize = 64;
/// What a piece of a result or an error of code costs of that credit besides its texts and data.
pub const RESULT_CREDIT: usize = 64;

const MAGIC: [u8; 4] = *b"HRT1";
const MORE: u8 = 1;
/// Where the CRC lies.
const CRC_AT: usize = 16;

/// What a record is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Host → guest: a new session begins. Padded to a full record.
    Hello,
    /// Guest → host: it has begun.
    Ack,
    /// A message or a part of one.
    Data,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What it is for.
    pub kind: Kind,
    /// The message goes on in the next record.
    pub more: bool,
    /// The host's random nonce.
    pub session: u64,
    /// At most [`PAYLOAD_BYTES`].
    pub payload: Bytes,
}

/// Appends one record to `out`. `payload` longer than [`PAYLOAD_BYTES`] is a bug of the caller and is cut.
fn put_record(out: &mut BytesMut, kind: Kind, more: bool, session: u64, payload: &[u8]) {
    let payload = &payload[..payload.len().min(PAYLOAD_BYTES)];
    let start = out.len();
    out.reserve(HEADER_BYTES + payload.len());
    out.put_slice(&MAGIC);
    out.put_u8(match kind {
        Kind::Hello => 1,
        Kind::Ack => 2,
        Kind::Data => 3,
    });
    out.put_u8(if more { MORE } else { 0 });
    // Fits: a payload is at most 4,076 bytes.
    out.put_u16_le(u16::try_from(payload.len()).unwrap_or_default());
    out.put_u64_le(session);
    let crc = checksum(&out[start..start + CRC_AT], payload);
    out.put_u32_le(crc);
    out.put_slice(payload);
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(payload);
    hasher.finalize()
}

/// A HELLO, padded to a full record: it enters an almost full FIFO only once the guest has read on.
#[must_use]
pub fn hello(session: u64) -> Bytes {
    let mut payload = [0; PAYLOAD_BYTES];
    payload[..4].copy_from_slice(&PROTOCOL.to_le_bytes());
    let mut out = BytesMut::new();
    put_record(&mut out, Kind::Hello, false, session, &payload);
    out.freeze()
}

/// The answer to a HELLO. 24 bytes in every version of the protocol: the host looks for it in the middle of stale bytes.
#[must_use]
pub fn ack(session: u64) -> Bytes {
    let mut out = BytesMut::new();
    put_record(&mut out, Kind::Ack, false, session, &PROTOCOL.to_le_bytes());
    out.freeze()
}

/// The protocol version that a HELLO or an ACK tells; `None` if it is too short to tell one.
#[must_use]
pub fn protocol_of(record: &Record) -> Option<u32> {
    let bytes = record.payload.get(..4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// Appends the first record of what is left of an encoded message to `out` and tells how many bytes of the message it
/// took. For a writer that makes one record at a time, to hold no second copy of a long message.
pub fn put_next_record(out: &mut BytesMut, session: u64, message: &[u8]) -> usize {
    let (part, after) = message.split_at(message.len().min(PAYLOAD_BYTES));
    put_record(out, Kind::Data, !after.is_empty(), session, part);
    part.len()
}

/// An encoded message as records, one item each: every item is for one write(2). `message` must be within the bound of
/// its direction.
#[must_use]
pub fn records(session: u64, message: &[u8]) -> Vec<Bytes> {
    let count = message.len().div_ceil(PAYLOAD_BYTES).max(1);
    let mut out = BytesMut::with_capacity(message.len() + count * HEADER_BYTES);
    let mut rest = message;
    let mut records = Vec::with_capacity(count);
    loop {
        let taken = put_next_record(&mut out, session, rest);
        records.push(out.split().freeze());
        rest = &rest[taken..];
        if rest.is_empty() {
            return records;
        }
    }
}

/// Bytes → records. Holds at most one record of unread bytes beyond what was fed last.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    junk: u64,
}

impl Decoder {
    /// Takes what was read. Call [`Self::next_record`] until it says `None` before feeding more.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole record.
    pub fn next_record(&mut self) -> Option<Record> {
        loop {
            self.skip_to_magic();
            if self.buffer.is_empty() {
                // An idle decoder holds no memory: a node has hundreds.
                self.buffer = BytesMut::new();
            }
            if self.buffer.len() < HEADER_BYTES {
                return None;
            }
            let mut head = &self.buffer[MAGIC.len()..HEADER_BYTES];
            let (kind, flags, length) = (head.get_u8(), head.get_u8(), head.get_u16_le());
            let (session, crc) = (head.get_u64_le(), head.get_u32_le());
            let kind = match kind {
                1 => Some(Kind::Hello),
                2 => Some(Kind::Ack),
                3 => Some(Kind::Data),
                _ => None,
            };
            let length = usize::from(length);
            let Some(kind) = kind.filter(|_| flags <= MORE && length <= PAYLOAD_BYTES) else {
                self.skip(1);
                continue;
            };
            let whole = HEADER_BYTES + length;
            if self.buffer.len() < whole {
                return None;
            }
            if checksum(&self.buffer[..CRC_AT], &self.buffer[HEADER_BYTES..whole]) != crc {
                self.skip(1);
                continue;
            }
            let payload = self.buffer.split_to(whole).freeze().slice(HEADER_BYTES..);
            return Some(Record {
                kind,
                more: flags == MORE,
                session,
                payload,
            });
        }
    }

    /// Bytes thrown away because they belonged to no record.
    #[must_use]
    pub fn junk(&self) -> u64 {
        self.junk
    }

    fn skip(&mut self, count: usize) {
        self.buffer.advance(count);
        self.junk = self.junk.saturating_add(count as u64);
    }

    /// Drops bytes until the buffer begins with the magic or with a part of it that may still grow whole.
    fn skip_to_magic(&mut self) {
        let fits = |at: usize| {
            let rest = &self.buffer[at..];
            let known = rest.len().min(MAGIC.len());
            rest[..known] == MAGIC[..known]
        };
        let at = (0..self.buffer.len()).find(|at| fits(*at));
        let junk = at.unwrap_or(self.buffer.len());
        if junk > 0 {
            self.skip(junk);
        }
    }
}

/// A message that grows beyond its bound, or whose parts do not fit together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of more than {bound} bytes")]
pub struct TooLong {
    /// The bound.
    pub bound: usize,
}

/// DATA records of one session → encoded messages.
#[derive(Debug)]
pub struct Assembler {
    bound: usize,
    parts: BytesMut,
}

impl Assembler {
    /// For one session; `bound` is [`HOST_MESSAGE_BYTES`] or [`GUEST_MESSAGE_BYTES`].
    #[must_use]
    pub fn new(bound: usize) -> Self {
        Self {
            bound,
            parts: BytesMut::new(),
        }
    }

    /// Takes the next DATA record; a whole message when it was the last part.
    ///
    /// # Errors
    /// [`TooLong`]: what was gathered is dropped.
    pub fn take(&mut self, record: Record) -> Result<Option<Bytes>, TooLong> {
        if self.parts.len() + record.payload.len() > self.bound {
            self.parts = BytesMut::new();
            return Err(TooLong { bound: self.bound });
        }
        if !record.more && self.parts.is_empty() {
            return Ok(Some(record.payload));
        }
        self.parts.extend_from_slice(&record.payload);
        Ok((!record.more).then(|| std::mem::take(&mut self.parts).freeze()))
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
