//! The beginning of a session: a HELLO with a fresh nonce, and everything thrown away until the ACK that carries it.
//!
//! When to say HELLO again: a HELLO waits in the FIFO for a guest that is frozen or has not started, and is lost only
//! with a shim that had read it. So there is another one (with a nonce of its own: only its ACK counts) only while calls
//! wait, only after a pause that doubles, and never while the FIFO still holds the last one unread.

use super::answers::Broken;
use super::limits::{ALIGNMENT_BYTES, HELLO_LONGEST_PAUSE, HELLO_PAUSE};
use crate::guest::wire::{self, Decoder, HEADER_BYTES, Kind, PROTOCOL};
use bytes::Bytes;
use std::io;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of an ACK that tell it from all others: all before the checksum.
const NEEDLE_BYTES: usize = HEADER_BYTES - 4;

/// Waiting for an ACK.
#[derive(Debug)]
pub(super) struct Alignment {
    nonce: u64,
    ack: Bytes,
    /// End of what was read: may be the beginning of the ACK.
    tail: Vec<u8>,
    thrown_away: u64,
    written_at: Option<Instant>,
    pause: Duration,
}

impl Alignment {
    /// With a fresh nonce.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub(super) fn begin() -> io::Result<Self> {
        let nonce = getrandom::u64().map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self {
            nonce,
            ack: wire::ack(nonce),
            tail: Vec::new(),
            thrown_away: 0,
            written_at: None,
            pause: HELLO_PAUSE,
        })
    }

    /// The session to come.
    pub(super) fn nonce(&self) -> u64 {
        self.nonce
    }

    /// The HELLO, while it was not written.
    pub(super) fn hello(&self) -> Option<Bytes> {
        self.written_at.is_none().then(|| wire::hello(self.nonce))
    }

    /// The HELLO was written.
    pub(super) fn was_written(&mut self, now: Instant) {
        self.written_at = Some(now);
    }

    /// When to look whether another HELLO is needed.
    pub(super) fn repeats_at(&self) -> Option<Instant> {
        self.written_at.map(|at| at + self.pause)
    }

    /// The pause is over: another HELLO, unless the last one is still unread.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub(super) fn repeat(&mut self, is_unread: bool, now: Instant) -> io::Result<()> {
        if is_unread {
            self.written_at = Some(now);
            return Ok(());
        }
        *self = Self {
            pause: (self.pause * 2).min(HELLO_LONGEST_PAUSE),
            thrown_away: self.thrown_away,
            ..Self::begin()?
        };
        Ok(())
    }

    /// Bytes thrown away so far.
    pub(super) fn thrown_away(&self) -> u64 {
        self.thrown_away
    }

    /// Takes what was read; what follows the ACK, once it has come. The ACK is looked for at every byte, not record by
    /// record: stale bytes may end in the head of a record whose rest never comes.
    pub(super) fn find_ack(&mut self, read: &[u8]) -> Result<Option<Bytes>, Broken> {
        let mut bytes = std::mem::take(&mut self.tail);
        bytes.extend_from_slice(read);
        let needle = &self.ack[..NEEDLE_BYTES];
        let mut from = 0;
        while let Some(at) = find(&bytes[from..], needle) {
            let start = from + at;
            let end = start + self.ack.len();
            if end > bytes.len() {
                return self.keep(&bytes, start).map(|()| None);
            }
            if is_whole_ack(&bytes[start..end], &self.ack)? {
                self.thrown_away += start as u64;
                return Ok(Some(Bytes::from(bytes).slice(end..)));
            }
            from = start + 1;
        }
        let kept = bytes.len().saturating_sub(NEEDLE_BYTES - 1).max(from);
        self.keep(&bytes, kept).map(|()| None)
    }

    /// Keeps what may be the beginning of the ACK.
    fn keep(&mut self, bytes: &[u8], from: usize) -> Result<(), Broken> {
        self.tail = bytes[from..].to_vec();
        self.thrown_away += from as u64;
        if self.thrown_away > ALIGNMENT_BYTES {
            return Err("a flood instead of an answer to HELLO");
        }
        Ok(())
    }
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|part| part == needle)
}

/// Whether these bytes are the ACK; an error if they are one of another protocol.
fn is_whole_ack(bytes: &[u8], ack: &[u8]) -> Result<bool, Broken> {
    if bytes == ack {
        return Ok(true);
    }
    let mut decoder = Decoder::default();
    decoder.feed(bytes);
    let other = decoder.next_record().is_some_and(|record| {
        record.kind == Kind::Ack && wire::protocol_of(&record) != Some(PROTOCOL)
    });
    if other {
        return Err("another version of the protocol");
    }
    Ok(false)
}
