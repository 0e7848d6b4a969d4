//! A guest that says what a test wants, byte by byte: lies, stalls and floods that hearth-init cannot be made to do. It
//! speaks over real FIFOs, from a thread of its own.
#![allow(clippy::unwrap_used)]

use crate::guest::v1::{GuestMessage, HostMessage, guest_message, host_message};
use crate::guest::wire::{self, Assembler, Decoder, HOST_MESSAGE_BYTES, Kind, Record};
use crate::runtime::StdioPaths;
use bytes::Bytes;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use prost::Message;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest wait of a script: a test must fail, not hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often an endless script looks whether the test is over.
const GLANCE: Duration = Duration::from_millis(20);

/// Makes the FIFOs of a sandbox in `directory`.
pub(super) fn make_fifos(directory: &Path) -> StdioPaths {
    let make = |name: &str| {
        let path = directory.join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path
    };
    StdioPaths {
        stdin: make("stdin"),
        stdout: make("stdout"),
        stderr: make("stderr"),
    }
}

/// A scripted guest.
pub(super) struct FakeGuest {
    stdin: File,
    stdout: File,
    stderr: File,
    decoder: Decoder,
    assembler: Assembler,
    pub(super) session: u64,
    /// The test is over: floods and endless service stop.
    pub(super) over: Arc<AtomicBool>,
}

impl FakeGuest {
    pub(super) fn open(paths: &StdioPaths) -> Self {
        let open = |path: &Path| {
            File::options()
                .read(true)
                .write(true)
                .custom_flags(nix::libc::O_NONBLOCK)
                .open(path)
                .unwrap()
        };
        Self {
            stdin: open(&paths.stdin),
            stdout: open(&paths.stdout),
            stderr: open(&paths.stderr),
            decoder: Decoder::default(),
            assembler: Assembler::new(HOST_MESSAGE_BYTES),
            session: 0,
            over: Arc::default(),
        }
    }

    /// Runs a script in a thread.
    pub(super) fn run<T: Send + 'static>(
        mut self,
        script: impl FnOnce(&mut Self) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        std::thread::spawn(move || script(&mut self))
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// The next record, whatever it is; `None`: nothing came for so long.
    pub(super) fn try_record(&mut self, patience: Duration) -> Option<Record> {
        let until = Instant::now() + patience;
        loop {
            if let Some(record) = self.decoder.next_record() {
                return Some(record);
            }
            let mut buffer = [0; 8192];
            match self.stdin.read(&mut buffer) {
                Ok(count) => self.decoder.feed(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !wait(&self.stdin, PollFlags::POLLIN, until) {
                        return None;
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Waits for a HELLO, drops all else, does not answer.
    pub(super) fn hello(&mut self) -> u64 {
        loop {
            let record = self.try_record(PATIENCE).expect("no HELLO came");
            if record.kind == Kind::Hello {
                assert_eq!(wire::protocol_of(&record), Some(wire::PROTOCOL));
                self.session = record.session;
                self.assembler = Assembler::new(HOST_MESSAGE_BYTES);
                return record.session;
            }
        }
    }

    /// Waits for a HELLO and answers.
    pub(super) fn align(&mut self) {
        let session = self.hello();
        self.raw(&wire::ack(session));
    }

    /// The next message of the session; a HELLO in between is answered. `None`: nothing came for so long.
    pub(super) fn try_message(&mut self, patience: Duration) -> Option<(u64, host_message::Body)> {
        loop {
            let record = self.try_record(patience)?;
            if record.kind == Kind::Hello {
                self.session = record.session;
                self.assembler = Assembler::new(HOST_MESSAGE_BYTES);
                self.raw(&wire::ack(record.session));
                continue;
            }
            if record.session != self.session {
                continue;
            }
            if let Some(message) = self.assembler.take(record).unwrap() {
                let message = HostMessage::decode(message).unwrap();
                return Some((message.call, message.body.unwrap()));
            }
        }
    }

    /// The next message of the session.
    pub(super) fn message(&mut self) -> (u64, host_message::Body) {
        self.try_message(PATIENCE).expect("no message came")
    }

    /// Says something in the session.
    pub(super) fn say(&mut self, call: u64, body: guest_message::Body) {
        let message = GuestMessage {
            call,
            body: Some(body),
        };
        self.say_bytes(&message.encode_to_vec());
    }

    /// Says anything as a message of the session.
    pub(super) fn say_bytes(&mut self, message: &[u8]) {
        for record in wire::records(self.session, message) {
            self.raw(&record);
        }
    }

    /// Writes bytes; waits for room.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        assert!(self.try_raw(bytes, PATIENCE), "nobody reads");
    }

    /// Writes bytes; `false`: no room for so long.
    pub(super) fn try_raw(&mut self, bytes: &[u8], patience: Duration) -> bool {
        write(&mut self.stdout, bytes, patience)
    }

    /// Writes the same bytes again and again, until the test is over.
    pub(super) fn flood(&mut self, bytes: &[u8]) {
        while !self.is_over() {
            // From the start of the bytes only once all of them were taken: it may be records.
            let mut rest = bytes;
            while !rest.is_empty() && !self.is_over() {
                rest = &rest[write_some(&mut self.stdout, rest, GLANCE).unwrap_or_default()..];
            }
        }
    }

    /// Answers with `answer` whatever comes, until the test is over.
    pub(super) fn serve(&mut self, answer: impl Fn(&mut Self, u64, host_message::Body)) {
        while !self.is_over() {
            if let Some((call, body)) = self.try_message(GLANCE) {
                answer(self, call, body);
            }
        }
    }

    /// Writes log bytes.
    pub(super) fn log(&mut self, bytes: &[u8]) {
        assert!(write(&mut self.stderr, bytes, PATIENCE), "nobody drains");
    }

    /// Fills both FIFOs with what an earlier conversation left; how many bytes lie towards the host.
    pub(super) fn leave_full(&mut self) -> usize {
        let stale = wire::records(7, &[1; 200_000]);
        fill(&mut self.stdin, &stale);
        fill(&mut self.stdout, &stale)
    }
}

fn fill(file: &mut File, records: &[Bytes]) -> usize {
    let mut written = 0;
    for record in records {
        match file.write(record) {
            Ok(count) => written += count,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                return written;
            }
        }
    }
    panic!("a FIFO that does not fill");
}

fn write(file: &mut File, mut bytes: &[u8], patience: Duration) -> bool {
    while !bytes.is_empty() {
        match write_some(file, bytes, patience) {
            Some(count) => bytes = &bytes[count..],
            None => return false,
        }
    }
    true
}

/// How much the FIFO took; `None`: no room for so long.
fn write_some(file: &mut File, bytes: &[u8], patience: Duration) -> Option<usize> {
    let until = Instant::now() + patience;
    loop {
        match file.write(bytes) {
            Ok(count) => return Some(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if !wait(file, PollFlags::POLLOUT, until) {
                    return None;
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn wait(file: &File, what: PollFlags, until: Instant) -> bool {
    let left = until.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap();
    let mut fds = [PollFd::new(file.as_fd(), what)];
    poll(&mut fds, timeout).unwrap() > 0
}
