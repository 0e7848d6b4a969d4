//! Towards the guest: one record at a time, one write(2) each, never waiting.

use super::alignment::Alignment;
use super::calls::{Calls, Next};
use super::conversation::Link;
use super::limits::TURN_BYTES;
use super::outgoing::wipe;
use bytes::BytesMut;
use std::io;
use tokio::net::unix::pipe;
use tokio::time::Instant;

/// What is being written.
#[derive(Default)]
pub(super) struct Writer {
    current: Option<Next>,
    /// The record that waits for room, and how much of the message it carries.
    record: BytesMut,
    carried: usize,
    is_blocked: bool,
}

impl Writer {
    /// Something waits until the FIFO has room.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    /// Drops a message in the middle: its session is over. No half record was written.
    pub(super) fn forget(&mut self) {
        self.current = None;
        wipe(&mut self.record);
        self.record = BytesMut::new();
    }

    /// Writes what there is, until the FIFO is full or it is another task's turn.
    ///
    /// # Errors
    /// The FIFO's own.
    pub(super) fn write(
        &mut self,
        fifo: &pipe::Sender,
        link: &mut Link,
        calls: &mut Calls,
    ) -> io::Result<()> {
        let mut left = TURN_BYTES;
        self.is_blocked = true;
        while left > 0 {
            let nonce = match link {
                Link::Aligned(session) => session.nonce,
                Link::Aligning(alignment) => {
                    self.is_blocked = !say_hello(fifo, alignment)?;
                    return Ok(());
                }
            };
            if !self.make_record(nonce, calls) {
                self.is_blocked = false;
                return Ok(());
            }
            if !try_write(fifo, &self.record)? {
                return Ok(());
            }
            left = left.saturating_sub(self.record.len());
            self.record_written(calls);
        }
        Ok(())
    }

    /// Makes sure that a record waits; `false`: there is nothing to say.
    fn make_record(&mut self, session: u64, calls: &mut Calls) -> bool {
        if !self.record.is_empty() {
            return true;
        }
        if self.current.is_none() {
            self.current = calls.next(Instant::now());
        }
        match &self.current {
            Some(next) => {
                self.carried = next.message.put_record(session, &mut self.record);
                true
            }
            None => {
                // An idle channel holds no memory.
                self.record = BytesMut::new();
                false
            }
        }
    }

    fn record_written(&mut self, calls: &mut Calls) {
        wipe(&mut self.record);
        self.record.clear();
        let Some(mut next) = self.current.take() else {
            return;
        };
        next.message.advance(self.carried);
        if !next.message.is_written() {
            self.current = Some(next);
        } else if next.is_start {
            calls.was_written(next.call, Instant::now());
        }
    }
}

/// `true`: it is said.
fn say_hello(fifo: &pipe::Sender, alignment: &mut Alignment) -> io::Result<bool> {
    let Some(hello) = alignment.hello() else {
        return Ok(true);
    };
    let written = try_write(fifo, &hello)?;
    if written {
        alignment.was_written(Instant::now());
    }
    Ok(written)
}

/// One write(2) of one record: whole or not at all. `false`: no room.
fn try_write(fifo: &pipe::Sender, record: &[u8]) -> io::Result<bool> {
    match fifo.try_write(record) {
        Ok(count) if count == record.len() => Ok(true),
        Ok(_) => Err(io::Error::other("half a record was written")),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(error) => Err(error),
    }
}
