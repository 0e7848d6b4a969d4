//! A hearth-init that is hostile: what hearthd must bear without harm to anybody but this sandbox. It plays the guest
//! honestly up to a point and then does the one thing that `HOSTILE` in its environment names. Without that variable it
//! becomes the honest hearth-init, which the test has appended to this file, so that hostile and honest pools live on
//! one node. Built by `hack/build.sh hostile`; run in real gVisor by tests/node/hostile.rs.
#![allow(clippy::unwrap_used)]

mod acts;
mod honest;

use acts::Act;
use hearth::guest::v1::{self, HostMessage, guest_message::Body, host_message::Body as Asked};
use hearth::guest::wire::{self, Assembler, Decoder, Kind};
use prost::Message;
use std::io::{Read, Write};

fn main() {
    let Ok(name) = std::env::var("HOSTILE") else {
        honest::become_it();
    };
    let act = Act::parse(&name).unwrap();
    Guest::new(act).serve();
}

/// The guest's side of one channel. Writes block: nobody inside waits for it.
pub struct Guest {
    act: Act,
    session: u64,
    claim: String,
    /// Every record said so far, for the one who repeats himself.
    said: Vec<u8>,
}

impl Guest {
    fn new(act: Act) -> Self {
        if act == Act::FloodLog {
            std::thread::spawn(acts::flood_log);
        }
        Self {
            act,
            session: 0,
            claim: String::new(),
            said: Vec::new(),
        }
    }

    fn serve(&mut self) -> ! {
        let mut decoder = Decoder::default();
        let mut assembler = Assembler::new(wire::HOST_MESSAGE_BYTES);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = std::io::stdin().read(&mut buffer).unwrap();
            if count == 0 {
                std::thread::park();
            }
            decoder.feed(&buffer[..count]);
            while let Some(record) = decoder.next_record() {
                match record.kind {
                    Kind::Hello => {
                        self.session = record.session;
                        assembler = Assembler::new(wire::HOST_MESSAGE_BYTES);
                        self.greet();
                    }
                    Kind::Data if record.session == self.session => {
                        if let Some(whole) = assembler.take(record).unwrap() {
                            let HostMessage { call, body } = HostMessage::decode(whole).unwrap();
                            self.answer(call, body.unwrap());
                        }
                    }
                    Kind::Data | Kind::Ack => {}
                }
            }
        }
    }

    fn greet(&mut self) {
        match self.act {
            Act::Mute => {}
            Act::JunkForHello => self.write_for_ever(&[0x5a; 4096]),
            Act::OtherProtocol => {
                let record = acts::record(2, 0, 4, self.session, &2_u32.to_le_bytes());
                self.write(&record);
            }
            _ => self.write(&wire::ack(self.session)),
        }
        if self.act == Act::EndlessMessage {
            let part = &wire::records(self.session, &[0; 100_000])[0];
            self.write_for_ever(part);
        }
    }

    /// What an honest guest would say, unless it is the moment of the act.
    fn answer(&mut self, call: u64, asked: Asked) {
        match asked {
            Asked::Ping(_) => self.say(
                call,
                Body::Pong(v1::Pong {
                    version: "0.0.0".into(),
                }),
            ),
            Asked::Claim(claim) => match self.act {
                Act::NeverAcks => {}
                Act::AcksWithPong => self.say(call, Body::Pong(v1::Pong::default())),
                Act::AcksAnother => self.say(call + 1000, Body::ClaimAck(v1::ClaimAck::default())),
                _ => {
                    self.claim = claim.claim_id;
                    self.say(call, Body::ClaimAck(v1::ClaimAck::default()));
                }
            },
            Asked::Witness(_) => self.say(
                call,
                Body::Held(v1::Held {
                    claim_id: if self.act == Act::HoldsAnother {
                        "00000000-0000-4000-8000-000000000000".into()
                    } else {
                        self.claim.clone()
                    },
                    running: 0,
                }),
            ),
            Asked::Exec(_) | Asked::Attach(_) => acts::at_exec(self, call),
            Asked::ListFiles(_) => acts::at_list(self, call),
            Asked::ReadFile(_) => acts::at_read(self, call),
            Asked::Stats(_) => self.say(call, Body::Stats(v1::GuestStats::default())),
            Asked::WriteFile(_) | Asked::Connect(_) | Asked::Interpreter(_) | Asked::RunCode(_) => {
                self.say(
                    call,
                    Body::Failure(v1::Failure {
                        kind: v1::FailureKind::Io.into(),
                        message: "\x1b[2J".repeat(10_000),
                    }),
                )
            }
            Asked::Input(_) | Asked::Resize(_) | Asked::Signal(_) => {}
            Asked::Credit(_) | Asked::Cancel(_) | Asked::Interrupt(_) => {}
        }
    }

    /// A message in records of the session.
    pub fn say(&mut self, call: u64, body: Body) {
        let body = Some(body);
        self.say_bytes(&v1::GuestMessage { call, body }.encode_to_vec());
    }

    /// Something in place of a message.
    pub fn say_bytes(&mut self, message: &[u8]) {
        for record in wire::records(self.session, message) {
            self.write(&record);
        }
    }

    /// Bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) {
        if self.said.len() < 1 << 20 {
            self.said.extend_from_slice(bytes);
        }
        write(bytes);
    }

    /// The same bytes again and again.
    pub fn write_for_ever(&self, bytes: &[u8]) -> ! {
        loop {
            write(bytes);
        }
    }
}

/// Whole, also where stdin's other side has made the pipe non-blocking.
fn write(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match std::io::stdout().lock().write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
    std::io::stdout().flush().unwrap();
}
