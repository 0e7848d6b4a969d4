//! Input of a call on its way into a process, a terminal or a socket: written at once as far as it goes, the rest (at
//! most the credit) kept until there is room.

use bytes::{Buf, BytesMut};
use hearth::guest::v1::{Chunk, Credit, guest_message::Body};
use nix::{
    errno::Errno,
    sys::socket::{Shutdown, shutdown},
    unistd,
};
use std::os::fd::{AsRawFd, OwnedFd};

use crate::{
    calls::{CallWants, Line},
    credit::Window,
    refusal::Refusal,
    wants::Part,
};

/// Ctrl-D: how a terminal says end-of-file.
const END_KEY: &[u8] = &[4];

/// What end-of-input means to the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtEnd {
    /// A pipe is closed.
    Close,
    /// A socket is shut down for writing.
    ShutDown,
    /// A terminal gets its end-of-file key.
    Key,
}

#[derive(Debug)]
enum To {
    /// A connection that does not stand yet: input waits.
    NotYet,
    Open(OwnedFd),
    /// Input is taken and dropped, so that the host's writer is not stuck.
    Closed,
}

#[derive(Debug)]
pub struct Intake {
    to: To,
    at_end: AtEnd,
    queue: BytesMut,
    /// No input comes after the queue.
    ending: bool,
    window: Window,
}

impl Intake {
    /// Into a process; `None`: it wants no input.
    pub fn new(to: Option<OwnedFd>, at_end: AtEnd) -> Self {
        Self {
            to: to.map_or(To::Closed, To::Open),
            at_end,
            queue: BytesMut::new(),
            ending: false,
            window: Window::default(),
        }
    }

    /// Into a connection to come.
    pub fn of_connection() -> Self {
        Self {
            to: To::NotYet,
            ..Self::new(None, AtEnd::ShutDown)
        }
    }

    /// The connection stands.
    pub fn open(&mut self, to: OwnedFd, line: &mut Line<'_>) {
        self.to = To::Open(to);
        self.pump(line);
    }

    /// Nothing more will be handed on.
    pub fn is_closed(&self) -> bool {
        matches!(self.to, To::Closed)
    }

    pub fn wants<'a>(&'a self, wants: &mut CallWants<'_, 'a>) {
        if let (To::Open(to), false) = (&self.to, self.queue.is_empty()) {
            wants.write(to, Part::Input);
        }
    }

    /// Takes what the host sent.
    ///
    /// # Errors
    /// LIMIT: more than the credit.
    pub fn take(&mut self, chunk: &Chunk, line: &mut Line<'_>) -> Result<(), Refusal> {
        self.window.spend(chunk.data.len())?;
        if self.ending || self.is_closed() {
            self.handed_on(chunk.data.len(), line);
            return Ok(());
        }
        // The queue is for what does not go at once.
        let mut rest = &chunk.data[..];
        if self.queue.is_empty() {
            let count = self.write(rest);
            self.handed_on(count, line);
            rest = &rest[count..];
        }
        self.queue.extend_from_slice(rest);
        if chunk.eof {
            self.ending = true;
            if self.at_end == AtEnd::Key {
                self.queue.extend_from_slice(END_KEY);
            }
        }
        self.pump(line);
        Ok(())
    }

    /// Writes as much of the queue as goes.
    pub fn pump(&mut self, line: &mut Line<'_>) {
        while !self.queue.is_empty() {
            let queue = std::mem::take(&mut self.queue);
            let count = self.write(&queue);
            self.queue = queue;
            self.queue.advance(count);
            self.handed_on(count, line);
            if count == 0 {
                return;
            }
        }
        self.queue = BytesMut::new();
        if self.ending && self.at_end != AtEnd::Key && !matches!(self.to, To::NotYet) {
            self.close();
        }
    }

    /// How much of it is done with: written, or dropped because nobody reads any more.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let to = match &self.to {
            To::NotYet => return 0,
            To::Open(to) => to,
            To::Closed => return bytes.len(),
        };
        match unistd::write(to, bytes) {
            Ok(count) => count.min(bytes.len()),
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(_) => {
                // A process that closed its stdin, a connection that broke. Its other side tells.
                self.to = To::Closed;
                bytes.len()
            }
        }
    }

    fn handed_on(&mut self, bytes: usize, line: &mut Line<'_>) {
        if let Some(bytes) = self.window.used(bytes) {
            line.answer(Body::Credit(Credit { bytes }));
        }
    }

    fn close(&mut self) {
        if let (To::Open(to), AtEnd::ShutDown) = (&self.to, self.at_end) {
            // A connection that is gone already has nothing to shut down.
            let _ = shutdown(to.as_raw_fd(), Shutdown::Write);
        }
        self.to = To::Closed;
    }
}
