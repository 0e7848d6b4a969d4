//! What comes from the host: bytes → records → messages of the session. Never fatal: junk, records of older sessions
//! and messages that can't be decoded are dropped.

use hearth::guest::{
    v1::{HostMessage, host_message::Body},
    wire::{self, Assembler, Decoder, Kind, Record},
};
use nix::{errno::Errno, unistd};
use prost::Message;
use std::{io, time::Duration};

use crate::{
    clock::Moment,
    limits::{ABSENT_PAUSE, READ_BYTES},
    log::Log,
};

#[derive(Debug)]
pub enum Heard {
    /// A HELLO: of a new session, or of this one once more.
    Hello {
        session: u64,
        new: bool,
    },
    Said {
        call: u64,
        body: Body,
    },
}

#[derive(Debug)]
pub struct Host {
    decoder: Decoder,
    assembler: Assembler,
    session: Option<u64>,
    buffer: Vec<u8>,
    /// Nobody has the other side open: look again then.
    absent_until: Moment,
    pause: Duration,
    junk_told: u64,
    /// More of a message is to come.
    amid: bool,
}

impl Host {
    pub fn new() -> Self {
        Self {
            decoder: Decoder::default(),
            assembler: Assembler::new(wire::HOST_MESSAGE_BYTES),
            session: None,
            buffer: Vec::new(),
            absent_until: Moment::ZERO,
            pause: ABSENT_PAUSE.0,
            junk_told: 0,
            amid: false,
        }
    }

    /// When stdin is to be looked at again.
    pub fn absent_until(&self) -> Moment {
        self.absent_until
    }

    /// Reads once; then [`Self::next`] tells what it was.
    pub fn read(&mut self, now: Moment) {
        if self.buffer.is_empty() {
            self.buffer = vec![0; READ_BYTES.0];
        }
        match unistd::read(io::stdin(), &mut self.buffer) {
            Ok(0) => self.absent(now),
            Ok(count) => {
                self.pause = ABSENT_PAUSE.0;
                self.decoder.feed(&self.buffer[..count]);
                if count == self.buffer.len() && count < READ_BYTES.1 {
                    self.buffer = vec![0; READ_BYTES.1];
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.absent(now),
        }
    }

    fn absent(&mut self, now: Moment) {
        self.absent_until = now + self.pause;
        self.pause = (self.pause * 2).min(ABSENT_PAUSE.1);
    }

    /// The next thing said.
    pub fn next(&mut self, log: &mut Log) -> Option<Heard> {
        while let Some(record) = self.decoder.next_record() {
            let heard = match record.kind {
                Kind::Hello => Some(self.hello(&record, log)),
                Kind::Data if Some(record.session) == self.session => self.data(record, log),
                // A record of an older session, or one that is the guest's to send.
                Kind::Data | Kind::Ack => None,
            };
            if heard.is_some() {
                return heard;
            }
        }
        None
    }

    fn hello(&mut self, record: &Record, log: &mut Log) -> Heard {
        let session = record.session;
        let new = self.session != Some(session);
        if new {
            self.session = Some(session);
            self.assembler = Assembler::new(wire::HOST_MESSAGE_BYTES);
            self.amid = false;
            let (protocol, junk) = (wire::protocol_of(record), self.decoder.junk());
            if protocol != Some(wire::PROTOCOL) {
                log.say(format_args!("the host speaks protocol {protocol:?}"));
            }
            if junk > self.junk_told {
                log.say(format_args!("{} bytes of junk", junk - self.junk_told));
                self.junk_told = junk;
            }
        }
        Heard::Hello { session, new }
    }

    fn data(&mut self, record: Record, log: &mut Log) -> Option<Heard> {
        self.amid = record.more;
        let message = match self.assembler.take(record) {
            Ok(message) => message?,
            Err(error) => {
                log.say(format_args!("{error}: dropped"));
                return None;
            }
        };
        match HostMessage::decode(message) {
            Ok(HostMessage {
                call,
                body: Some(body),
            }) => Some(Heard::Said { call, body }),
            Ok(HostMessage { call, body: None }) => {
                log.say(format_args!(
                    "call {call}: a message this version does not know"
                ));
                None
            }
            Err(error) => {
                log.say(format_args!("a message that can't be decoded: {error}"));
                None
            }
        }
    }

    /// Between two messages: no large buffer is needed now.
    pub fn is_idle(&self) -> bool {
        !self.amid
    }

    /// Gives back what a busy time has gathered.
    pub fn rest(&mut self) {
        if self.buffer.len() > READ_BYTES.0 {
            self.forget();
        }
    }

    /// Gives back the read buffer: a claim was read into it.
    pub fn forget(&mut self) {
        self.buffer = Vec::new();
    }
}
