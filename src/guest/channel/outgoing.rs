//! A message to the guest on its way through the FIFO.

use crate::guest::v1::{HostMessage, host_message::Body};
use crate::guest::{GuestError, wire};
use bytes::BytesMut;
use prost::Message;

/// An encoded message, cut into records as the FIFO takes them. It may hold secrets: what was written is wiped at once,
/// the rest when it is dropped. (Best effort: the kernel's copy and the claim's own one are not ours.)
pub(super) struct Outgoing {
    message: Vec<u8>,
    written: usize,
}

impl Outgoing {
    /// Encodes. [`GuestError::Limit`] if it is larger than the guest takes.
    pub(super) fn encode(call: u64, body: Body) -> Result<Self, GuestError> {
        let message = HostMessage {
            call,
            body: Some(body),
        };
        let length = message.encoded_len();
        if length > wire::HOST_MESSAGE_BYTES {
            return Err(GuestError::Limit);
        }
        // Exact capacity: growing would leave copies behind.
        let mut encoded = Vec::with_capacity(length);
        match message.encode(&mut encoded) {
            Ok(()) => Ok(Self {
                message: encoded,
                written: 0,
            }),
            // A Vec has room.
            Err(_) => Err(GuestError::Limit),
        }
    }

    /// Makes the next record; how much of the message it carries.
    pub(super) fn put_record(&self, session: u64, record: &mut BytesMut) -> usize {
        wire::put_next_record(record, session, &self.message[self.written..])
    }

    /// That much was written.
    pub(super) fn advance(&mut self, carried: usize) {
        let end = (self.written + carried).min(self.message.len());
        wipe(&mut self.message[self.written..end]);
        self.written = end;
    }

    /// All of it was written.
    pub(super) fn is_written(&self) -> bool {
        self.written == self.message.len()
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> &[u8] {
        &self.message
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        wipe(&mut self.message);
    }
}

/// Overwrites with zeros, also where the compiler sees that nobody reads them.
pub(super) fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    std::hint::black_box(bytes);
}
