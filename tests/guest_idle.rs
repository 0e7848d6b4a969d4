//! What an idle guest channel costs, in a process of its own: memory and CPU of many channels that were used once.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use hearth::guest::channel::{ChannelConfig, FifoConnector, GuestMetrics};
use hearth::guest::v1::{self, GuestMessage, HostMessage, guest_message::Body};
use hearth::guest::wire::{self, Assembler, Decoder, FIRST_CREDIT, HOST_MESSAGE_BYTES, Kind};
use hearth::guest::{Guest, GuestConnector};
use hearth::runtime::StdioPaths;
use nix::sys::resource::{UsageWho, getrusage};
use prometheus::Registry;
use prost::Message;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

const CHANNELS: usize = 100;
/// One read buffer kept per channel would be more.
const MEMORY_BYTES: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(30);

/// The smallest guest there is: answers HELLO, and every exec with a first credit of output.
struct Answering {
    stdin: File,
    stdout: File,
    decoder: Decoder,
    session: u64,
}

impl Answering {
    fn open(paths: &StdioPaths) -> Self {
        let open = |path: &Path| File::options().read(true).write(true).open(path).unwrap();
        Self {
            stdin: open(&paths.stdin),
            stdout: open(&paths.stdout),
            decoder: Decoder::default(),
            session: 0,
        }
    }

    /// Until one exec was answered.
    fn answer_one(&mut self) {
        let mut assembler = Assembler::new(HOST_MESSAGE_BYTES);
        loop {
            let Some(record) = self.decoder.next_record() else {
                let mut buffer = [0; 4096];
                let count = self.stdin.read(&mut buffer).unwrap();
                self.decoder.feed(&buffer[..count]);
                continue;
            };
            if record.kind == Kind::Hello {
                self.session = record.session;
                self.stdout.write_all(&wire::ack(record.session)).unwrap();
            } else if let Some(message) = assembler.take(record).unwrap() {
                let call = HostMessage::decode(message).unwrap().call;
                self.run(call);
                return;
            }
        }
    }

    fn run(&mut self, call: u64) {
        let output = v1::Output {
            stream: v1::Stream::Stdout.into(),
            data: Bytes::from(vec![1; FIRST_CREDIT]),
            eof: false,
        };
        for body in [
            Body::Started(v1::Started {
                pid: 1,
                ..Default::default()
            }),
            Body::Output(output),
            Body::Exited(v1::Exited::default()),
        ] {
            let body = Some(body);
            let message = GuestMessage { call, body }.encode_to_vec();
            for record in wire::records(self.session, &message) {
                self.stdout.write_all(&record).unwrap();
            }
        }
    }
}

fn make_fifos(directory: &Path) -> StdioPaths {
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

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        << 10
}

fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let of = |time: nix::sys::time::TimeVal| {
        Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap())
    };
    of(usage.user_time()) + of(usage.system_time())
}

async fn use_once(guest: &Arc<dyn Guest>) {
    let exec = v1::Exec {
        command: vec!["x".to_owned()],
        ..v1::Exec::default()
    };
    let mut stream = guest.exec(exec).await.unwrap();
    let last = tokio::time::timeout(PATIENCE, async {
        let mut last = None;
        while let Some(item) = stream.output.recv().await {
            last = Some(item.unwrap());
        }
        last
    });
    let last = last.await.unwrap();
    assert!(matches!(
        last,
        Some(hearth::guest::StreamItem::Exited { .. })
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_channels_cost_almost_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let paths: Vec<_> = (0..CHANNELS)
        .map(|at| {
            let sandbox = directory.path().join(at.to_string());
            std::fs::create_dir(&sandbox).unwrap();
            make_fifos(&sandbox)
        })
        .collect();
    let mut guests: Vec<_> = paths.iter().map(Answering::open).collect();
    let metrics = GuestMetrics::register(&Registry::new()).unwrap();
    let connector = FifoConnector::new(Handle::current(), ChannelConfig::default(), metrics);
    let before = resident_bytes();
    let hosts: Vec<_> = paths
        .iter()
        .map(|paths| connector.connect(paths).unwrap())
        .collect();
    let answering = std::thread::spawn(move || {
        guests.iter_mut().for_each(Answering::answer_one);
        guests
    });
    for host in &hosts {
        use_once(host).await;
    }
    let _guests = answering.join().unwrap();
    let each = resident_bytes().saturating_sub(before) / CHANNELS;
    let cpu_before = cpu_time();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let cpu = cpu_time() - cpu_before;
    println!("an idle channel: {each} bytes; {CHANNELS} of them in 2 s: {cpu:?} of CPU");
    assert!(each < MEMORY_BYTES, "{each} bytes each");
    assert!(cpu < Duration::from_secs(1), "{cpu:?}");
}
