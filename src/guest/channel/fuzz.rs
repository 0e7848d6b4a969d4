//! What a guest may say, for the fuzzers in fuzz/: a channel with calls of every kind in flight, without FIFOs. Whatever
//! comes in, nothing panics and what is held stays within the credit.

use super::call::{Call, Kind, Work};
use super::calls::Calls;
use super::conversation::Link;
use super::inlet::Takes;
use super::metrics::GuestMetrics;
use super::outgoing::Outgoing;
use super::outlet::{self, Item};
use super::session::Session;
use super::stream::{Stream, StreamParts};
use crate::guest::wire::FIRST_CREDIT;
use crate::guest::{v1, wire};
use prometheus::Registry;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Waker};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use v1::host_message::Body;

const SESSION: u64 = 0x5e55_1017;
const KINDS: [Kind; 13] = [
    Kind::Ping,
    Kind::Personalize,
    Kind::Witness,
    Kind::Stats,
    Kind::Exec,
    Kind::ReadFile,
    Kind::WriteFile,
    Kind::ListFiles,
    Kind::Connect,
    Kind::Interpreter,
    Kind::RunCode,
    Kind::Interrupt,
    Kind::Quiesce,
];
/// What a file is asked for, so that its bound is met.
const READ_LIMIT: u64 = 1000;

struct Channel {
    link: Link,
    calls: Calls,
    outputs: Vec<mpsc::Receiver<Item>>,
}

/// One for the process: registering is slow.
fn metrics() -> Option<&'static GuestMetrics> {
    static METRICS: OnceLock<Option<GuestMetrics>> = OnceLock::new();
    let made = METRICS.get_or_init(|| GuestMetrics::register(&Registry::new()).ok());
    made.as_ref()
}

impl Channel {
    fn new() -> Option<Self> {
        let mut channel = Self {
            link: Link::Aligned(Session::new(SESSION, Instant::now())),
            calls: Calls::default(),
            outputs: Vec::new(),
        };
        let permits = Arc::new(Semaphore::new(KINDS.len()));
        for (kind, id) in KINDS.into_iter().zip(1..) {
            let call = Call {
                kind,
                work: channel.work(kind),
                start: Some(Outgoing::encode(id, Body::Ping(v1::Ping::default())).ok()?),
                made_at: Instant::now(),
                written_at: None,
                deadline: None,
                _permit: Arc::clone(&permits).try_acquire_owned().ok()?,
            };
            channel.calls.accept(id, Box::new(call));
        }
        channel.write();
        Some(channel)
    }

    fn work(&mut self, kind: Kind) -> Work {
        match kind {
            Kind::Ping | Kind::Quiesce | Kind::Personalize | Kind::Witness | Kind::Stats => {
                return Work::Short(oneshot::channel().0);
            }
            Kind::Interpreter | Kind::Interrupt => return Work::Short(oneshot::channel().0),
            Kind::Exec | Kind::ReadFile | Kind::WriteFile | Kind::ListFiles => {}
            Kind::Connect | Kind::RunCode => {}
        }
        let (to_owner, output) = mpsc::channel(outlet::QUEUE_ITEMS);
        self.outputs.push(output);
        let parts = StreamParts {
            kind,
            takes: Takes::DATA,
            limit: match kind {
                Kind::ReadFile => READ_LIMIT,
                _ => u64::MAX,
            },
            started: oneshot::channel().0,
            output: to_owner,
            input: mpsc::channel(1).1,
        };
        Work::Stream(Box::new(Stream::new(parts)))
    }

    /// All that is to be said to the guest is said.
    fn write(&mut self) {
        while let Some(next) = self.calls.next(Instant::now()) {
            if next.is_start {
                self.calls.was_written(next.call, Instant::now());
            }
        }
    }

    /// One read; owners take what is there if they are `awake`. `false`: the guest broke the protocol.
    fn hear(&mut self, bytes: &[u8], awake: bool) -> bool {
        let Some(metrics) = metrics() else {
            return false;
        };
        let taken = self
            .link
            .take(bytes, &mut self.calls, metrics, Instant::now());
        let mut context = Context::from_waker(Waker::noop());
        let _nobody_waits = self.calls.poll(&mut context);
        if awake {
            for output in &mut self.outputs {
                while output.try_recv().is_ok() {}
            }
        }
        self.write();
        let held = self.calls.held_bytes();
        assert!(
            held <= 2 * FIRST_CREDIT * self.outputs.len(),
            "{held} bytes are held"
        );
        taken.is_ok()
    }
}

/// Bytes as they come out of the FIFO. The first one says how: as they are, or cut into records whose checksum is right
/// whatever else they say: kind, flags, length (2 bytes, little-endian), and as much payload.
pub fn records(data: &[u8]) {
    let (Some((how, mut rest)), Some(mut channel)) = (data.split_first(), Channel::new()) else {
        return;
    };
    if how % 2 == 0 {
        let pieces = rest.chunks(usize::from(*how).max(1));
        let _broken = pieces
            .into_iter()
            .all(|piece| channel.hear(piece, how % 4 == 0));
        return;
    }
    while let Some((head, after)) = rest.split_at_checked(4) {
        let length = usize::from(u16::from_le_bytes([head[2], head[3]]));
        let (payload, after) = after.split_at(after.len().min(length));
        rest = after;
        if !channel.hear(&sealed(head, payload), head[0] % 2 == 0) {
            return;
        }
    }
}

fn sealed(head: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut record = b"HRT1".to_vec();
    record.extend_from_slice(head);
    record.extend_from_slice(&SESSION.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&record);
    hasher.update(payload);
    record.extend_from_slice(&hasher.finalize().to_le_bytes());
    record.extend_from_slice(payload);
    record
}

/// Messages of any content in good records: a length (2 bytes, little-endian) and as many bytes, again and again. The
/// owners are awake after messages of even length.
pub fn messages(mut data: &[u8]) {
    let Some(mut channel) = Channel::new() else {
        return;
    };
    while let Some((head, after)) = data.split_at_checked(2) {
        let length = usize::from(u16::from_le_bytes([head[0], head[1]]));
        let (message, after) = after.split_at(after.len().min(length));
        data = after;
        for record in wire::records(SESSION, message) {
            if !channel.hear(&record, message.len() % 2 == 0) {
                return;
            }
        }
    }
}
