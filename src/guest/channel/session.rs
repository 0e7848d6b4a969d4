//! A session that stands: bytes → messages, and what does not belong to it.

use super::answers::Broken;
use super::limits::JUNK_BYTES;
use crate::guest::v1::GuestMessage;
use crate::guest::wire::{Assembler, Decoder, GUEST_MESSAGE_BYTES, HEADER_BYTES, Kind, Record};
use prost::Message;
use tokio::time::Instant;

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) nonce: u64,
    /// When the guest was last heard.
    pub(super) heard_at: Instant,
    decoder: Decoder,
    assembler: Assembler,
    /// Bytes of records that are of no use.
    useless: u64,
    records: usize,
}

impl Session {
    pub(super) fn new(nonce: u64, now: Instant) -> Self {
        Self {
            nonce,
            heard_at: now,
            decoder: Decoder::default(),
            assembler: Assembler::new(GUEST_MESSAGE_BYTES),
            useless: 0,
            records: 0,
        }
    }

    /// Takes what was read. Call [`Self::next_message`] until it says `None` before the next.
    pub(super) fn feed(&mut self, read: &[u8]) {
        self.decoder.feed(read);
    }

    /// Bytes thrown away so far.
    pub(super) fn junk(&self) -> u64 {
        self.decoder.junk() + self.useless
    }

    /// Records read since the last time this was asked.
    pub(super) fn take_records(&mut self) -> usize {
        std::mem::take(&mut self.records)
    }

    /// The next message of the guest.
    pub(super) fn next_message(&mut self, now: Instant) -> Result<Option<GuestMessage>, Broken> {
        while let Some(record) = self.decoder.next_record() {
            self.records += 1;
            if record.kind != Kind::Data || record.session != self.nonce {
                // After the ACK nothing of an earlier session follows, and no second ACK.
                self.useless += (HEADER_BYTES + record.payload.len()) as u64;
                self.check_junk()?;
                continue;
            }
            self.heard_at = now;
            if let Some(message) = self.gather(record)? {
                return Ok(Some(message));
            }
        }
        self.check_junk()?;
        Ok(None)
    }

    fn gather(&mut self, record: Record) -> Result<Option<GuestMessage>, Broken> {
        let whole = self
            .assembler
            .take(record)
            .map_err(|_| "a message beyond its bound")?;
        whole
            .map(GuestMessage::decode)
            .transpose()
            .map_err(|_| "a message that does not decode")
    }

    fn check_junk(&self) -> Result<(), Broken> {
        if self.junk() > JUNK_BYTES {
            return Err("too many bytes of no record");
        }
        Ok(())
    }
}
