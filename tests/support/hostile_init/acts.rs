//! The acts: what each does when its moment has come.

use super::Guest;
use hearth::guest::v1::{self, guest_message::Body};
use hearth::guest::wire;
use std::io::Write;

/// One way to be hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Reads, never answers.
    Mute,
    /// Bytes that are no record, for ever, instead of the ACK.
    JunkForHello,
    /// An ACK of a protocol of its own.
    OtherProtocol,
    /// After the ACK one message that never ends.
    EndlessMessage,
    /// Never acknowledges a claim.
    NeverAcks,
    /// Answers the claim with an answer to something else.
    AcksWithPong,
    /// Answers a call that was never made.
    AcksAnother,
    /// After a restart of hearthd: says that it holds another claim.
    HoldsAnother,
    /// Output for ever, whatever credit it has.
    FloodOutput,
    /// Empty pieces of output for ever: they cost no credit.
    FloodNothing,
    /// Says all it ever said again.
    Replay,
    /// Well-formed records of another session for ever.
    OldSession,
    /// Records whose length is beyond every bound, for ever.
    Lengths,
    /// A field that says it is 2^62 bytes long.
    Varint,
    /// An exit code that does not exist.
    ExitCode,
    /// Grants credit for ever.
    Credit,
    /// Never starts what it was asked to start.
    Stall,
    /// Starts it, never ends it, and talks on when nobody wants it any more.
    TalksOn,
    /// Entries that lead out of their directory.
    Names,
    /// A file without end after a caller asked for ten bytes.
    EndlessFile,
    /// Log lines for ever, as fast as it can; honest otherwise.
    FloodLog,
}

impl Act {
    /// By its name in `HOSTILE`: as it is written here.
    pub fn parse(name: &str) -> Option<Self> {
        const ALL: &[Act] = &[
            Act::Mute,
            Act::JunkForHello,
            Act::OtherProtocol,
            Act::EndlessMessage,
            Act::NeverAcks,
            Act::AcksWithPong,
            Act::AcksAnother,
            Act::HoldsAnother,
            Act::FloodOutput,
            Act::FloodNothing,
            Act::Replay,
            Act::OldSession,
            Act::Lengths,
            Act::Varint,
            Act::ExitCode,
            Act::Credit,
            Act::Stall,
            Act::TalksOn,
            Act::Names,
            Act::EndlessFile,
            Act::FloodLog,
        ];
        ALL.iter().copied().find(|act| format!("{act:?}") == name)
    }
}

fn started() -> Body {
    Body::Started(v1::Started {
        pid: 7,
        ..Default::default()
    })
}

fn output(data: &[u8]) -> Body {
    Body::Output(v1::Output {
        stream: v1::Stream::Stdout.into(),
        data: data.to_vec().into(),
        eof: false,
    })
}

fn exited(code: i32) -> Body {
    Body::Exited(v1::Exited {
        code,
        ..v1::Exited::default()
    })
}

/// An exec was asked for.
pub fn at_exec(guest: &mut Guest, call: u64) {
    if guest.act == Act::Stall {
        return;
    }
    guest.say(call, started());
    let session = guest.session;
    match guest.act {
        Act::FloodOutput => loop {
            guest.say(call, output(&[b'x'; 4000]));
        },
        Act::FloodNothing => loop {
            guest.say(call, output(b""));
        },
        Act::Replay => {
            let said = guest.said.clone();
            guest.write_for_ever(&said);
        }
        Act::OldSession => {
            guest.write_for_ever(&wire::records(session ^ 1, &[0; 4000])[0]);
        }
        Act::Lengths => {
            guest.write_for_ever(&record(3, 0, u16::MAX, session, &[0; 4000]));
        }
        // Field 6 (Output), wire type 2, a length of 2^62.
        Act::Varint => {
            let mut message = vec![8, u8::try_from(call).unwrap_or(1), 0x32];
            message.extend([0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40]);
            guest.say_bytes(&message);
        }
        Act::ExitCode => guest.say(call, exited(1 << 30)),
        Act::Credit => loop {
            guest.say(call, Body::Credit(v1::Credit { bytes: u32::MAX }));
        },
        Act::TalksOn => {
            guest.say(call, output(b"hello"));
            loop {
                std::thread::sleep(std::time::Duration::from_millis(1));
                guest.say(call, output(&[b'x'; 1000]));
            }
        }
        _ => {
            guest.say(call, output(b"honest\n"));
            guest.say(call, exited(0));
        }
    }
}

/// A listing was asked for.
pub fn at_list(guest: &mut Guest, call: u64) {
    let entry = |name: &[u8]| v1::Entry {
        name: name.to_vec().into(),
        kind: 1,
        ..v1::Entry::default()
    };
    let name: &[u8] = match guest.act {
        Act::Names => b"../../etc/shadow",
        _ => b"file",
    };
    guest.say(
        call,
        Body::Entries(v1::Entries {
            entries: vec![entry(name)],
            done: true,
        }),
    );
}

/// A file was asked for.
pub fn at_read(guest: &mut Guest, call: u64) {
    guest.say(
        call,
        Body::FileInfo(v1::FileInfo {
            size_bytes: u64::MAX,
            mode: u32::MAX,
        }),
    );
    match guest.act {
        Act::EndlessFile => loop {
            guest.say(call, output(&[b'x'; 1000]));
        },
        _ => guest.say(
            call,
            Body::Output(v1::Output {
                stream: v1::Stream::Stdout.into(),
                data: Vec::new().into(),
                eof: true,
            }),
        ),
    }
}

/// Lines for ever.
pub fn flood_log() {
    let line = format!("{}\n", "\x1b[31mhostile\0".repeat(500));
    let mut stderr = std::io::stderr().lock();
    loop {
        if stderr.write_all(line.as_bytes()).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

/// A record with a checksum that fits, whatever else is wrong with it.
pub fn record(kind: u8, flags: u8, length: u16, session: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = b"HRT1".to_vec();
    out.extend([kind, flags]);
    out.extend(length.to_le_bytes());
    out.extend(session.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&out);
    hasher.update(payload);
    out.extend(hasher.finalize().to_le_bytes());
    out.extend(payload);
    out
}
