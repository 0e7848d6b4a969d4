//! Random bytes and damaged traffic as the guest: no panic, bounded memory, and either an answer or an error.

use crate::guest::channel::GuestMetrics;
use crate::guest::channel::call::{Call, Kind, Work};
use crate::guest::channel::calls::Calls;
use crate::guest::channel::conversation::Link;
use crate::guest::channel::inlet::Takes;

use crate::guest::channel::outgoing::Outgoing;
use crate::guest::channel::outlet::{self, Item};
use crate::guest::channel::session::Session;
use crate::guest::channel::stream::{Stream, StreamParts};
use crate::guest::v1::host_message::Body as Hears;
use crate::guest::v1::{self, GuestMessage, HostMessage, guest_message::Body as Says};
use crate::guest::{GuestError, StreamInput, StreamItem, wire};
use bytes::Bytes;
use prometheus::Registry;
use proptest::prelude::*;
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Waker};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

const EXEC: u64 = 5;
const READ: u64 = 6;
const LIST: u64 = 8;
const CONNECT: u64 = 9;
/// Calls that stream to the host, as they are numbered by [`KINDS`].
const STREAMS: [u64; 4] = [EXEC, READ, LIST, CONNECT];
const ENTRY_NAME: &str = "entry";
const SESSION: u64 = 0x5e55_1017;
const KINDS: [Kind; 9] = [
    Kind::Ping,
    Kind::Personalize,
    Kind::Witness,
    Kind::Stats,
    Kind::Exec,
    Kind::ReadFile,
    Kind::WriteFile,
    Kind::ListFiles,
    Kind::Connect,
];

/// A channel without FIFOs: what a guest says goes in, what owners get comes out.
struct Channel {
    link: Link,
    calls: Calls,
    outputs: Vec<mpsc::Receiver<Item>>,
    inputs: Vec<mpsc::Sender<StreamInput>>,
    metrics: GuestMetrics,
    permits: Arc<Semaphore>,
    made: u64,
    /// What an honest guest keeps of each call that streams to the host.
    honest: BTreeMap<u64, Honest>,
}

/// An honest guest's side of one stream.
#[derive(Debug, Default)]
struct Honest {
    started: bool,
    credit: usize,
    said: usize,
    /// What its owner has got.
    got: usize,
}

impl Channel {
    fn new() -> Self {
        let now = Instant::now();
        let mut channel = Self {
            link: Link::Aligned(Session::new(SESSION, now)),
            calls: Calls::default(),
            outputs: Vec::new(),
            inputs: Vec::new(),
            metrics: GuestMetrics::register(&Registry::new()).unwrap(),
            permits: Arc::new(Semaphore::new(100)),
            made: 0,
            honest: BTreeMap::new(),
        };
        for id in STREAMS {
            let honest = Honest {
                credit: wire::FIRST_CREDIT,
                ..Honest::default()
            };
            channel.honest.insert(id, honest);
        }
        for kind in KINDS {
            channel.call(kind);
        }
        channel.write();
        channel
    }

    fn call(&mut self, kind: Kind) {
        self.made += 1;
        let work = match kind {
            Kind::Ping | Kind::Quiesce | Kind::Personalize | Kind::Witness | Kind::Stats => {
                Work::Short(oneshot::channel().0)
            }
            _ => self.stream(kind),
        };
        let call = Call {
            kind,
            work,
            start: Some(Outgoing::encode(self.made, Hears::Ping(v1::Ping::default())).unwrap()),
            made_at: Instant::now(),
            written_at: None,
            deadline: None,
            _permit: Arc::clone(&self.permits).try_acquire_owned().unwrap(),
        };
        self.calls.accept(self.made, Box::new(call));
    }

    fn stream(&mut self, kind: Kind) -> Work {
        let (to_owner, output) = mpsc::channel(outlet::QUEUE_ITEMS);
        let (input, from_owner) = mpsc::channel(1);
        self.outputs.push(output);
        self.inputs.push(input);
        Work::Stream(Box::new(Stream::new(StreamParts {
            kind,
            takes: Takes::DATA,
            limit: u64::MAX,
            started: oneshot::channel().0,
            output: to_owner,
            input: from_owner,
        })))
    }

    /// Writes all there is to say; the honest guest hears of credit and cancels.
    fn write(&mut self) {
        while let Some(next) = self.calls.next(Instant::now()) {
            if next.is_start {
                self.calls.was_written(next.call, Instant::now());
            }
            let message = HostMessage::decode(next.message.memory()).unwrap();
            match (self.honest.get_mut(&message.call), message.body) {
                (Some(honest), Some(Hears::Credit(credit))) => {
                    honest.credit += usize::try_from(credit.bytes).unwrap();
                }
                (Some(_), Some(Hears::Cancel(_))) => {
                    self.honest.remove(&message.call);
                }
                _ => {}
            }
        }
    }

    /// What an honest guest says next on a stream, if it may.
    fn say_honestly(&mut self, id: u64, length: usize, stderr: bool) -> Option<Says> {
        let honest = self.honest.get_mut(&id)?;
        if !std::mem::replace(&mut honest.started, true) && id != LIST {
            return Some(match id {
                EXEC => Says::Started(v1::Started::default()),
                READ => Says::FileInfo(v1::FileInfo::default()),
                _ => Says::Connected(v1::Connected {}),
            });
        }
        let entry = ENTRY_NAME.len() + wire::ENTRY_CREDIT;
        let length = length.min(honest.credit);
        let length = if id == LIST {
            length / entry * entry
        } else {
            length
        };
        if length == 0 {
            return None;
        }
        honest.credit -= length;
        honest.said += length;
        Some(if id == LIST {
            let entry_of = |_| v1::Entry {
                name: ENTRY_NAME.into(),
                kind: 1,
                ..v1::Entry::default()
            };
            let entries = (0..length / entry).map(entry_of).collect();
            Says::Entries(v1::Entries {
                entries,
                done: false,
            })
        } else {
            Says::Output(v1::Output {
                stream: if stderr && id == EXEC { 2 } else { 1 },
                data: vec![0; length].into(),
                eof: false,
            })
        })
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let now = Instant::now();
        self.link.take(bytes, &mut self.calls, &self.metrics, now)?;
        let mut cx = Context::from_waker(Waker::noop());
        while self.calls.poll(&mut cx).is_ready() {
            self.write();
        }
        Ok(())
    }

    /// The owner of one stream takes an item, if there is one.
    fn take(&mut self, which: usize) -> bool {
        let which = which % self.outputs.len();
        let Ok(item) = self.outputs[which].try_recv() else {
            return false;
        };
        let length = match item {
            Ok(StreamItem::Data { data, .. }) => data.len(),
            Ok(StreamItem::Entries(entries)) => {
                entries.len() * (ENTRY_NAME.len() + wire::ENTRY_CREDIT)
            }
            _ => 0,
        };
        assert!(length <= wire::FIRST_CREDIT);
        let id = 5 + u64::try_from(which).unwrap();
        if let Some(honest) = self.honest.get_mut(&id) {
            honest.got += length;
        }
        true
    }
}

/// What a guest does next.
#[derive(Debug, Clone)]
enum Step {
    /// What an honest guest may say: (call, bytes, to stderr).
    Honest(u64, usize, bool),
    Says(u64, Says),
    /// A message with one byte changed, in records that are whole.
    Damaged(u64, Says, usize, u8),
    /// A record with one byte changed.
    Torn(u64, Says, usize, u8),
    Bytes(Vec<u8>),
    OwnerTakes(usize),
    OwnerGoes(usize),
}

/// Half of it output.
fn says() -> impl Strategy<Value = Says> {
    let data = proptest::collection::vec(any::<u8>(), 0..3000);
    let output = (1i32..3, data, any::<bool>()).prop_map(|(stream, data, eof)| {
        Says::Output(v1::Output {
            stream,
            data: data.into(),
            eof,
        })
    });
    prop_oneof![output, other()]
}

fn other() -> impl Strategy<Value = Says> {
    let small = 0u32..300;
    prop_oneof![
        Just(Says::Pong(v1::Pong::default())),
        Just(Says::ClaimAck(v1::ClaimAck::default())),
        "[a-f0-9-]{0,40}".prop_map(|claim_id| Says::Held(v1::Held {
            claim_id,
            running: 1
        })),
        small.clone().prop_map(|pid| Says::Started(v1::Started {
            pid,
            ..Default::default()
        })),
        (0i32..256).prop_map(|code| Says::Exited(v1::Exited {
            code,
            ..Default::default()
        })),
        small
            .clone()
            .prop_map(|bytes| Says::Credit(v1::Credit { bytes })),
        small.clone().prop_map(|mode| Says::FileInfo(v1::FileInfo {
            size_bytes: 1,
            mode
        })),
        Just(Says::Written(v1::Written::default())),
        (
            proptest::collection::vec("[a-z]{1,9}", 0..50),
            any::<bool>()
        )
            .prop_map(|(names, done)| {
                let entry = |name: String| v1::Entry {
                    name: name.into(),
                    kind: 1,
                    ..Default::default()
                };
                Says::Entries(v1::Entries {
                    entries: names.into_iter().map(entry).collect(),
                    done,
                })
            }),
        Just(Says::Connected(v1::Connected {})),
        Just(Says::Stats(v1::GuestStats::default())),
        ".{0,20}".prop_map(|message| Says::Failure(v1::Failure { kind: 1, message })),
    ]
}

/// Ids as they are, seldom one that is not.
fn call_id() -> impl Strategy<Value = u64> {
    prop_oneof![60 => 1u64..10, 1 => any::<u64>()]
}

fn honest() -> impl Strategy<Value = Step> {
    let id = proptest::sample::select(STREAMS.to_vec());
    (id, 1usize..20_000, any::<bool>())
        .prop_map(|(id, length, stderr)| Step::Honest(id, length, stderr))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        300 => honest(),
        100 => any::<usize>().prop_map(Step::OwnerTakes),
        2 => any::<usize>().prop_map(Step::OwnerGoes),
        1 => (call_id(), says()).prop_map(|(id, says)| Step::Says(id, says)),
        1 => (call_id(), says(), any::<usize>(), any::<u8>())
            .prop_map(|(id, says, at, by)| Step::Damaged(id, says, at, by)),
        1 => (call_id(), says(), any::<usize>(), any::<u8>())
            .prop_map(|(id, says, at, by)| Step::Torn(id, says, at, by)),
        1 => proptest::collection::vec(any::<u8>(), 0..5000).prop_map(Step::Bytes),
    ]
}

fn message(call: u64, body: Says) -> Vec<u8> {
    let body = Some(body);
    GuestMessage { call, body }.encode_to_vec()
}

fn change(bytes: &mut [u8], at: usize, by: u8) {
    let length = bytes.len();
    if length > 0 {
        bytes[at % length] ^= by;
    }
}

fn perform(channel: &mut Channel, step: Step) -> Result<(), &'static str> {
    match step {
        Step::Says(id, says) => channel.hear(&wire::records(SESSION, &message(id, says)).concat()),
        Step::Damaged(id, says, at, by) => {
            let mut message = message(id, says);
            change(&mut message, at, by);
            channel.hear(&wire::records(SESSION, &message).concat())
        }
        Step::Torn(id, says, at, by) => {
            let mut records = wire::records(SESSION, &message(id, says)).concat();
            change(&mut records, at, by);
            channel.hear(&records)
        }
        Step::Bytes(bytes) => channel.hear(&bytes),
        Step::Honest(id, length, stderr) => match channel.say_honestly(id, length, stderr) {
            Some(says) => perform(channel, Step::Says(id, says)),
            None => Ok(()),
        },
        Step::OwnerTakes(which) => {
            channel.take(which);
            channel.hear(&[])
        }
        Step::OwnerGoes(which) => {
            let which = which % channel.outputs.len();
            channel.outputs[which].close();
            channel.hear(&[])
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn damaged_traffic_ends_in_an_answer_or_an_error(
        steps in proptest::collection::vec(step(), 1..400),
    ) {
        let mut channel = Channel::new();
        for step in steps {
            if perform(&mut channel, step).is_err() {
                // As the task does.
                channel.calls.fail_all(&GuestError::Closed);
                return Ok(());
            }
            let bound = channel.outputs.len() * 2 * wire::FIRST_CREDIT;
            prop_assert!(channel.calls.held_bytes() <= bound);
        }
    }

    #[test]
    fn honest_traffic_is_never_an_error_and_never_lost(
        steps in proptest::collection::vec(
            prop_oneof![
                30 => honest(),
                10 => any::<usize>().prop_map(Step::OwnerTakes),
                1 => any::<usize>().prop_map(Step::OwnerGoes),
            ],
            1..400,
        ),
    ) {
        let mut channel = Channel::new();
        for step in steps {
            let done = perform(&mut channel, step);
            prop_assert_eq!(done, Ok(()));
        }
        let mut moved = true;
        while moved {
            moved = (0..5).map(|which| channel.take(which)).fold(false, |a, b| a | b);
            prop_assert_eq!(channel.hear(&[]), Ok(()));
        }
        for (id, honest) in &channel.honest {
            prop_assert_eq!(honest.got, honest.said, "call {}", id);
            let kept = wire::FIRST_CREDIT - wire::FIRST_CREDIT / 4;
            prop_assert!(honest.credit > kept, "call {} starves", id);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9000), 0..40),
    ) {
        let mut channel = Channel::new();
        for piece in pieces {
            if channel.hear(&piece).is_err() {
                return Ok(());
            }
        }
    }
}

/// An honest guest passes through the same harness: it is not the errors alone that are tested.
#[test]
fn honest_traffic_passes() {
    let mut channel = Channel::new();
    let eof = |stream: v1::Stream| {
        Says::Output(v1::Output {
            stream: stream.into(),
            data: Bytes::from_static(b"x"),
            eof: true,
        })
    };
    let says = [
        (1, Says::Pong(v1::Pong::default())),
        (2, Says::ClaimAck(v1::ClaimAck::default())),
        (3, Says::Held(v1::Held::default())),
        (4, Says::Stats(v1::GuestStats::default())),
        (5, Says::Started(v1::Started::default())),
        (5, eof(v1::Stream::Stdout)),
        (5, eof(v1::Stream::Stderr)),
        (5, Says::Exited(v1::Exited::default())),
        (6, Says::FileInfo(v1::FileInfo::default())),
        (6, eof(v1::Stream::Stdout)),
        (
            8,
            Says::Entries(v1::Entries {
                done: true,
                ..Default::default()
            }),
        ),
        (9, Says::Connected(v1::Connected {})),
        (9, eof(v1::Stream::Stdout)),
    ];
    for (id, says) in says {
        perform(&mut channel, Step::Says(id, says)).unwrap();
    }
}

#[test]
fn streams_take_turns_towards_the_guest() {
    let mut channel = Channel::new();
    let (exec, connection) = (5, 9);
    for (id, says) in [
        (exec, Says::Started(v1::Started::default())),
        (connection, Says::Connected(v1::Connected {})),
    ] {
        perform(&mut channel, Step::Says(id, says)).unwrap();
    }
    for input in [0, 4] {
        let data = StreamInput::Data(vec![0; 100_000].into());
        channel.inputs[input].try_send(data).unwrap();
    }
    let mut cx = Context::from_waker(Waker::noop());
    assert!(channel.calls.poll(&mut cx).is_ready());
    let mut order = Vec::new();
    while let Some(next) = channel.calls.next(Instant::now()) {
        order.push(next.call);
    }
    // A first credit each, in pieces of half of it.
    assert_eq!(order, [exec, connection, exec, connection]);
}
