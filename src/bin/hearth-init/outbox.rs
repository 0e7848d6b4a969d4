//! What goes to the host, and in which order: answers before stream data, each message's records in a row, and what was
//! begun is finished. Holds little: a call reads from its process or file only while the outbox has room.

use bytes::{Buf, BytesMut};
use hearth::guest::{
    v1::{GuestMessage, guest_message::Body},
    wire,
};
use nix::{errno::Errno, unistd};
use prost::Message;
use std::{collections::VecDeque, io};

use crate::limits::{QUEUED_ANSWERS, QUEUED_BYTES, WRITE_BYTES};

#[derive(Debug)]
enum Item {
    Ack,
    Message(Vec<u8>),
}

/// What a write to the host came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Flush {
    /// All is written, or stdout is full and will say when it is not.
    Waits,
    /// Nobody has the other side open: try later.
    Absent,
}

#[derive(Debug, Default)]
pub struct Outbox {
    /// 0: none yet, and nobody asked.
    session: u64,
    answers: VecDeque<Item>,
    stream: VecDeque<Vec<u8>>,
    stream_bytes: usize,
    /// The message whose records are being made, and how much of it they carry.
    current: Option<(Vec<u8>, usize)>,
    /// Records ready to be written, and what is left of each.
    records: BytesMut,
    lengths: VecDeque<usize>,
    /// The first of them is partly written.
    cut: bool,
    full: bool,
}

impl Outbox {
    /// A new session: everything of the old one goes, except the rest of a record that the host has half of.
    pub fn begin(&mut self, session: u64) {
        self.lengths.truncate(usize::from(self.cut));
        self.records.truncate(self.lengths.iter().sum());
        self.current = None;
        self.stream.clear();
        self.stream_bytes = 0;
        self.answers.clear();
        self.session = session;
        self.acknowledge();
    }

    /// Answers a HELLO.
    pub fn acknowledge(&mut self) {
        self.answers.push_back(Item::Ack);
    }

    /// A message that goes ahead of stream data.
    pub fn answer(&mut self, call: u64, body: Body) {
        self.answers.push_back(Item::Message(encode(call, body)));
    }

    /// A message that keeps its place among the stream data of its call.
    pub fn stream(&mut self, call: u64, body: Body) {
        let message = encode(call, body);
        self.stream_bytes += message.len();
        self.stream.push_back(message);
    }

    /// Whether a call may read from its source.
    pub fn has_room(&self) -> bool {
        self.stream_bytes < QUEUED_BYTES
    }

    /// Whether the host should be heard at all.
    pub fn is_crowded(&self) -> bool {
        self.answers.len() > QUEUED_ANSWERS
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
            && self.current.is_none()
            && self.answers.is_empty()
            && self.stream.is_empty()
    }

    /// Whether stdout must have room before more can be written.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Stdout may have room again.
    pub fn retry(&mut self) {
        self.full = false;
    }

    /// Gives back what a busy time has gathered.
    pub fn rest(&mut self) {
        if self.is_empty() {
            self.records = BytesMut::new();
            self.lengths.shrink_to_fit();
            self.answers.shrink_to_fit();
            self.stream.shrink_to_fit();
        }
    }

    /// Writes until stdout is full or nothing is left.
    pub fn flush(&mut self) -> Flush {
        while !self.full {
            if self.records.is_empty() {
                self.fill();
            }
            if self.records.is_empty() {
                break;
            }
            match unistd::write(io::stdout(), &self.records) {
                Ok(count) => {
                    // A part only: the rest has no room, and asking costs a system call.
                    self.full = count < self.records.len();
                    self.wrote(count);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.full = true,
                Err(_) => return Flush::Absent,
            }
        }
        Flush::Waits
    }

    fn fill(&mut self) {
        while self.records.len() < WRITE_BYTES {
            let Some((message, carried)) = self.current.take() else {
                match self.answers.pop_front() {
                    Some(Item::Ack) => {
                        let ack = wire::ack(self.session);
                        self.lengths.push_back(ack.len());
                        self.records.extend_from_slice(&ack);
                    }
                    Some(Item::Message(message)) => self.current = Some((message, 0)),
                    None => {
                        let Some(message) = self.stream.pop_front() else {
                            return;
                        };
                        self.stream_bytes = self.stream_bytes.saturating_sub(message.len());
                        self.current = Some((message, 0));
                    }
                }
                continue;
            };
            let before = self.records.len();
            let rest = message.get(carried..).unwrap_or_default();
            let carried = carried + wire::put_next_record(&mut self.records, self.session, rest);
            self.lengths.push_back(self.records.len() - before);
            if carried < message.len() {
                self.current = Some((message, carried));
            }
        }
    }

    fn wrote(&mut self, mut count: usize) {
        self.records.advance(count.min(self.records.len()));
        while let Some(left) = self.lengths.front_mut() {
            if count < *left {
                *left -= count;
                self.cut |= count > 0;
                return;
            }
            count -= *left;
            self.cut = false;
            self.lengths.pop_front();
        }
    }
}

fn encode(call: u64, body: Body) -> Vec<u8> {
    let body = Some(body);
    GuestMessage { call, body }.encode_to_vec()
}
