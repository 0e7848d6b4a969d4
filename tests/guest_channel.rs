//! The host's side of the guest channel against the real hearth-init, over real FIFOs: `FifoConnector` and nothing
//! else. hearth-init runs as PID 1 of namespaces of its own. Needs root, `unshare` and busybox-static.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "support/guest.rs"]
mod support;

use hearth::guest::channel::{ChannelConfig, FifoConnector, GuestMetrics};
use hearth::guest::v1::{self, FailureKind};
use hearth::guest::{
    Guest, GuestConnector, GuestError, GuestStream, Personalization, StreamInput, StreamItem,
};
use hearth::runtime::StdioPaths;
use prometheus::Registry;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{PATIENCE, command};
use tokio::runtime::Handle;

/// A hearth-init, and what connects to it.
struct Rig {
    guest: support::Guest,
    connector: FifoConnector,
}

impl Rig {
    fn new() -> Self {
        let metrics = GuestMetrics::register(&Registry::new()).unwrap();
        Self {
            guest: support::Guest::first(&[]),
            connector: FifoConnector::new(Handle::current(), ChannelConfig::default(), metrics),
        }
    }

    fn connect(&self) -> Arc<dyn Guest> {
        let path = |name| self.guest.fifos.path(name);
        let stdio = StdioPaths {
            stdin: path("stdin"),
            stdout: path("stdout"),
            stderr: path("stderr"),
        };
        self.connector.connect(&stdio).unwrap()
    }
}

/// A command whose stdin is ours.
fn with_stdin(words: &[&str]) -> v1::Exec {
    v1::Exec {
        stdin: true,
        ..command(words)
    }
}

async fn next(stream: &mut GuestStream) -> Option<StreamItem> {
    let item = tokio::time::timeout(PATIENCE, stream.output.recv()).await;
    item.expect("a stream that gives nothing")
        .map(Result::unwrap)
}

/// What an exec came to.
#[derive(Debug, Default)]
struct Ran {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    code: Option<i32>,
}

async fn collect(stream: &mut GuestStream) -> Ran {
    let mut ran = Ran::default();
    while let Some(item) = next(stream).await {
        match item {
            StreamItem::Data {
                stderr: false,
                data,
            } => ran.stdout.extend_from_slice(&data),
            StreamItem::Data { stderr: true, data } => ran.stderr.extend_from_slice(&data),
            StreamItem::Exited { code, .. } => ran.code = Some(code),
            _ => {}
        }
    }
    ran
}

async fn run(guest: &Arc<dyn Guest>, words: &[&str]) -> Ran {
    collect(&mut guest.exec(command(words)).await.unwrap()).await
}

/// Sends everything, then the end.
async fn feed(stream: &GuestStream, content: &[u8]) {
    for piece in content.chunks(60_000) {
        let data = bytes::Bytes::copy_from_slice(piece);
        stream.input.send(StreamInput::Data(data)).await.unwrap();
    }
    stream.input.send(StreamInput::Eof).await.unwrap();
}

fn pattern(length: usize) -> Vec<u8> {
    (0u32..).flat_map(u32::to_le_bytes).take(length).collect()
}

/// p50 and p99 of some times.
fn quantiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_are_answered() {
    let rig = Rig::new();
    let began = Instant::now();
    let guest = rig.connect();
    let version = guest.ping(PATIENCE).await.unwrap();
    println!("start to first pong: {:?}", began.elapsed());
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    for idle in [Duration::ZERO, Duration::from_millis(20)] {
        let mut times = Vec::new();
        let count = if idle.is_zero() { 2000 } else { 50 };
        for _ in 0..count {
            tokio::time::sleep(idle).await;
            let asked = Instant::now();
            guest.ping(PATIENCE).await.unwrap();
            times.push(asked.elapsed());
        }
        let (p50, p99) = quantiles(times);
        println!("round trip after {idle:?}: p50 {p50:?}, p99 {p99:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_makes_the_sandbox_the_callers_own() {
    let rig = Rig::new();
    let guest = rig.connect();
    assert_eq!(guest.witness(PATIENCE).await.unwrap(), "");
    let what = Personalization {
        env: [("COLOUR".to_owned(), "blue".to_owned())].into(),
        files: vec![("/run/motd".to_owned(), "hello".into(), 0o640)],
        secrets: vec![("token".to_owned(), "s3cret".into())],
        hostname: "mine".to_owned(),
    };
    for _ in 0..2 {
        guest.personalize("claim-1", &what, PATIENCE).await.unwrap();
    }
    assert_eq!(guest.witness(PATIENCE).await.unwrap(), "claim-1");
    let script = "echo $COLOUR $(hostname) $(cat /run/motd /run/hearth/secrets/token)";
    let ran = run(&guest, &["sh", "-c", script]).await;
    assert_eq!(
        String::from_utf8(ran.stdout).unwrap(),
        "blue mine hellos3cret\n"
    );
    let other = guest.personalize("claim-2", &what, PATIENCE).await;
    let claimed = FailureKind::Claimed;
    assert!(matches!(other, Err(GuestError::Failed { kind, .. }) if kind == claimed));
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_echoes_a_mebibyte_and_exits() {
    let rig = Rig::new();
    let guest = rig.connect();
    let content = pattern(1 << 20);
    let mut stream = guest.exec(with_stdin(&["cat"])).await.unwrap();
    let input = GuestStream {
        input: stream.input.clone(),
        output: tokio::sync::mpsc::channel(1).1,
    };
    let (ran, ()) = tokio::join!(collect(&mut stream), feed(&input, &content));
    assert!(ran.stdout == content);
    assert_eq!(ran.code, Some(0));
    let ran = run(&guest, &["sh", "-c", "echo out; echo err >&2; exit 7"]).await;
    assert_eq!(
        (ran.stdout.as_slice(), ran.stderr.as_slice()),
        (b"out\n".as_slice(), b"err\n".as_slice())
    );
    assert_eq!(ran.code, Some(7));
    let missing = guest
        .exec(command(&["/no/such/program"]))
        .await
        .unwrap_err();
    let not_found = FailureKind::NotFound;
    assert!(matches!(missing, GuestError::Failed { kind, .. } if kind == not_found));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_passes_both_ways() {
    const MEBIBYTES: usize = 64;
    let rig = Rig::new();
    let guest = rig.connect();
    let megabytes = f64::from(u32::try_from(MEBIBYTES << 20).unwrap()) / 1e6;
    let began = Instant::now();
    let count = format!("count={MEBIBYTES}");
    let ran = run(&guest, &["dd", "if=/dev/zero", "bs=1M", &count]).await;
    assert_eq!(ran.stdout.len(), MEBIBYTES << 20);
    println!(
        "guest → host: {:.0} MB/s",
        megabytes / began.elapsed().as_secs_f64()
    );
    let began = Instant::now();
    let mut stream = guest.exec(with_stdin(&["wc", "-c"])).await.unwrap();
    feed(&stream, &vec![0; MEBIBYTES << 20]).await;
    let ran = collect(&mut stream).await;
    assert_eq!(
        String::from_utf8(ran.stdout).unwrap().trim(),
        (MEBIBYTES << 20).to_string()
    );
    println!(
        "host → guest: {:.0} MB/s",
        megabytes / began.elapsed().as_secs_f64()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_stops_nobody_else() {
    let rig = Rig::new();
    let guest = rig.connect();
    let mut slow = guest
        .exec(command(&["dd", "if=/dev/zero", "bs=1M", "count=4"]))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let ran = run(&guest, &["echo", "quick"]).await;
    assert_eq!(ran.stdout, b"quick\n");
    assert_eq!(collect(&mut slow).await.stdout.len(), 4 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_a_size_and_keys() {
    let rig = Rig::new();
    let guest = rig.connect();
    let script = "stty size; read line; stty size; echo got $line; exec sleep 60";
    let exec = v1::Exec {
        tty: true,
        rows: 24,
        columns: 80,
        ..with_stdin(&["sh", "-c", script])
    };
    let mut stream = guest.exec(exec).await.unwrap();
    let mut seen = String::new();
    for (until, inputs) in [
        (
            "24 80",
            vec![
                StreamInput::Resize {
                    rows: 50,
                    columns: 132,
                },
                StreamInput::Data("x\n".into()),
            ],
        ),
        ("got x", vec![StreamInput::Data("\u{3}".into())]),
    ] {
        while !seen.contains(until) {
            if let Some(StreamItem::Data { data, .. }) = next(&mut stream).await {
                seen.push_str(&String::from_utf8_lossy(&data));
            }
        }
        for input in inputs {
            stream.input.send(input).await.unwrap();
        }
    }
    assert!(seen.contains("50 132"), "{seen}");
    let ran = collect(&mut stream).await;
    assert_eq!(ran.code, Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_arrive_and_dropping_the_output_kills() {
    let rig = Rig::new();
    let guest = rig.connect();
    let mut stream = guest.exec(command(&["sleep", "60"])).await.unwrap();
    stream.input.send(StreamInput::Signal(15)).await.unwrap();
    assert_eq!(collect(&mut stream).await.code, Some(143));
    let stream = guest.exec(command(&["sleep", "60"])).await.unwrap();
    assert_eq!(guest.stats(PATIENCE).await.unwrap().execs, 1);
    drop(stream);
    let until = Instant::now() + PATIENCE;
    while guest.stats(PATIENCE).await.unwrap().execs > 0 {
        assert!(Instant::now() < until, "it lives on");
    }
    assert!(guest.stats(PATIENCE).await.unwrap().processes >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_written_read_and_listed() {
    let rig = Rig::new();
    let guest = rig.connect();
    let content = pattern(1 << 20);
    let write = v1::WriteFile {
        path: "/run/a/b".to_owned(),
        mode: 0o600,
        parents: true,
    };
    let mut stream = guest.write_file(write).await.unwrap();
    feed(&stream, &content).await;
    let size_bytes = content.len() as u64;
    assert_eq!(
        next(&mut stream).await,
        Some(StreamItem::Written { size_bytes })
    );
    let read = v1::ReadFile {
        path: "/run/a/b".to_owned(),
        offset: 1000,
        limit: 500_000,
    };
    let mut stream = guest.read_file(read).await.unwrap();
    let info = StreamItem::FileInfo {
        size_bytes,
        mode: 0o600,
    };
    assert_eq!(next(&mut stream).await, Some(info));
    assert!(collect(&mut stream).await.stdout == content[1000..501_000]);
    let missing = v1::ReadFile {
        path: "/run/none".to_owned(),
        ..v1::ReadFile::default()
    };
    let error = guest.read_file(missing).await.unwrap_err();
    let not_found = FailureKind::NotFound;
    assert!(matches!(error, GuestError::Failed { kind, .. } if kind == not_found));
    list_many(&guest).await;
}

/// More entries than one first credit pays for.
async fn list_many(guest: &Arc<dyn Guest>) {
    let script = "mkdir /run/many && cd /run/many && touch $(seq -f 'a-file-with-a-name-%g' 3000)";
    let ran = run(guest, &["sh", "-c", script]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let list = v1::ListFiles {
        path: "/run/many".to_owned(),
    };
    let mut stream = guest.list_files(list).await.unwrap();
    // The guest waits for credit meanwhile.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut names = std::collections::BTreeSet::new();
    let mut last = None;
    while let Some(item) = next(&mut stream).await {
        if let StreamItem::Entries(entries) = &item {
            names.extend(entries.iter().map(|entry| entry.name.clone()));
        }
        last = Some(item);
    }
    assert_eq!(names.len(), 3000);
    assert_eq!(last, Some(StreamItem::Done));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_inside_is_reached() {
    let rig = Rig::new();
    let guest = rig.connect();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let echo = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let (mut from, mut to) = socket.split();
        tokio::io::copy(&mut from, &mut to).await.unwrap()
    });
    let mut stream = guest.connect(port).await.unwrap();
    assert_eq!(next(&mut stream).await, Some(StreamItem::Connected));
    let content = pattern(1 << 20);
    let input = GuestStream {
        input: stream.input.clone(),
        output: tokio::sync::mpsc::channel(1).1,
    };
    let (ran, ()) = tokio::join!(collect(&mut stream), feed(&input, &content));
    assert!(ran.stdout == content);
    assert_eq!(echo.await.unwrap(), content.len() as u64);
    guest.ping(PATIENCE).await.unwrap();
    let refused = guest.connect(1).await.unwrap_err();
    assert!(matches!(refused, GuestError::Failed { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_host_attaches_in_mid_transfer() {
    let rig = Rig::new();
    for _ in 0..5 {
        let guest = rig.connect();
        let mut stream = guest
            .exec(with_stdin(&["sh", "-c", "yes & cat"]))
            .await
            .unwrap();
        while !matches!(next(&mut stream).await, Some(StreamItem::Data { .. })) {}
        // Both FIFOs are full of what nobody will want.
        let input = stream.input.clone();
        let fed = tokio::time::timeout(Duration::from_millis(50), async {
            while input
                .send(StreamInput::Data(vec![b'x'; 60_000].into()))
                .await
                .is_ok()
            {}
        });
        let _ = fed.await;
        drop(guest);
        let guest = rig.connect();
        let began = Instant::now();
        guest.ping(PATIENCE).await.unwrap();
        println!("attached again after {:?}", began.elapsed());
        let ran = run(&guest, &["echo", "here"]).await;
        assert_eq!(ran.stdout, b"here\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_was_frozen_is_reached_again() {
    let mut rig = Rig::new();
    let guest = rig.connect();
    let mut stream = guest.exec(command(&["sleep", "60"])).await.unwrap();
    let group = nix::unistd::Pid::from_raw(i32::try_from(rig.guest.child.id()).unwrap());
    let init = child_of(group);
    nix::sys::signal::kill(init, nix::sys::signal::SIGSTOP).unwrap();
    for _ in 0..3 {
        let silent = guest.ping(Duration::from_millis(100)).await;
        assert!(matches!(silent, Err(GuestError::Silent(_))), "{silent:?}");
    }
    nix::sys::signal::kill(init, nix::sys::signal::SIGCONT).unwrap();
    let began = Instant::now();
    guest.ping(PATIENCE).await.unwrap();
    println!("reached again {:?} after the thaw", began.elapsed());
    let mut last = None;
    while let Some(item) = stream.output.recv().await {
        last = Some(item);
    }
    assert_eq!(last, Some(Err(GuestError::Closed)));
    assert!(rig.guest.child.try_wait().unwrap().is_none());
}

/// hearth-init under `unshare --fork`.
fn child_of(parent: nix::unistd::Pid) -> nix::unistd::Pid {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let children = std::fs::read_to_string(path).unwrap();
    let pid = children.split_whitespace().next().unwrap().parse().unwrap();
    nix::unistd::Pid::from_raw(pid)
}
