//! The death of the host, and its return.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use hearth::guest::{
    v1::{
        Attach, Exec, FailureKind, HostMessage, Ping, StatsQuery, Stream, Witness, WriteFile,
        guest_message::Body as Answer, host_message::Body as Ask,
    },
    wire,
};
use prost::Message;

use crate::{
    channel::BABBLE,
    guest::{Guest, Host, command, eventually, shell},
};

/// Far above what it takes (about a millisecond), far below a deadline of hearthd.
const ALIGNED: Duration = Duration::from_secs(1);

fn alive(pid: u32) -> bool {
    // A zombie is dead.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z"))
}

fn running(host: &mut Host) -> u32 {
    match host.call(Ask::Witness(Witness {})) {
        Answer::Held(held) => held.running,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_new_session_aligns_in_the_middle_of_output() {
    let guest = Guest::plain(&[]);
    for _ in 0..20 {
        let mut host = guest.host();
        let (id, _) = host.start(shell(BABBLE));
        host.grant(id, 1 << 30);
        // Dies without a word while both FIFOs are busy.
        eventually("the FIFO is full", || {
            std::thread::sleep(Duration::from_millis(5));
            true
        });
        drop(host);
        let mut host = guest.host();
        assert!(host.aligned.0 < ALIGNED, "{:?}", host.aligned);
        host.ping();
        println!(
            "aligned in {:?} after {} stale bytes",
            host.aligned.0, host.aligned.1
        );
        match host.call(Ask::Stats(StatsQuery {})) {
            Answer::Stats(stats) => assert_eq!(stats.execs, 0, "the babbler was killed"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_new_session_aligns_in_the_middle_of_input() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let mut exec = command(&["cat"]);
    exec.stdin = true;
    let (id, pid) = host.start(exec);
    let body = Some(Ask::Input(hearth::guest::v1::Chunk {
        data: vec![7; 50_000].into(),
        eof: false,
    }));
    let records = wire::records(
        host.session,
        &HostMessage { call: id, body }.encode_to_vec(),
    );
    // Half a message, and half a record behind it: more than a host can leave, but a shim may lose bytes at a restore.
    host.write(&records[..records.len() / 2].concat());
    host.write(&records[records.len() / 2][..1000]);
    drop(host);
    let mut host = guest.host();
    assert!(host.aligned.0 < ALIGNED, "{:?}", host.aligned);
    host.ping();
    assert_eq!(host.sh("echo whole"), "whole\n");
    eventually("cat was killed", || !alive(pid));
}

#[test]
fn a_hello_of_the_same_session_changes_nothing() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let mut exec = command(&["cat"]);
    exec.stdin = true;
    let (id, _) = host.start(exec);
    host.write(&wire::hello(host.session));
    host.input(id, b"still here", true);
    assert_eq!(host.finish(id).text(), "still here");
}

#[test]
fn what_is_detached_outlives_the_session() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    // Its output would fill any pipe, and break if nobody had it open.
    let line = "while :; do head -c 100000 /dev/zero; echo; sleep 0.01; done";
    let mut exec = shell(line);
    exec.detach = true;
    let (_, stays) = host.start(exec.clone());
    let (_, goes) = host.start(shell(line));
    exec.timeout_ms = 1500;
    let (_, timed) = host.start(exec);
    assert_eq!(running(&mut host), 0);
    drop(host);
    let mut host = guest.host();
    eventually("what is not detached was killed", || !alive(goes));
    assert_eq!(running(&mut host), 2);
    assert!(alive(stays));
    eventually("a timeout holds for a stray", || !alive(timed));
    let stuck = Instant::now();
    while stuck.elapsed() < Duration::from_millis(300) {
        assert!(alive(stays));
        host.ping();
    }
    assert_eq!(running(&mut host), 1);
    assert_eq!(
        host.run(command(&["kill", "-9", &stays.to_string()]))
            .code(),
        0
    );
    eventually("it was buried", || running(&mut host) == 0);
}

#[test]
fn cancel_kills_unless_detached() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let mut exec = shell("sleep 1000 & sleep 1000");
    let (id, pid) = host.start(exec.clone());
    let group = |pid: u32| {
        let found = host_processes().filter(move |(_, group)| *group == pid);
        found.map(|(pid, _)| pid).collect::<Vec<_>>()
    };
    eventually("both run", || group(pid).len() >= 3);
    host.say(id, Ask::Cancel(hearth::guest::v1::Cancel {}));
    eventually("the group is gone", || group(pid).is_empty());
    exec.detach = true;
    let (id, pid) = host.start(exec);
    host.say(id, Ask::Cancel(hearth::guest::v1::Cancel {}));
    host.ping();
    assert!(alive(pid));
    assert!(
        host.next_within(id, Duration::from_millis(100)).is_none(),
        "Cancel has no answer"
    );
    // Not of an earlier session.
    assert_eq!(running(&mut host), 0);
    host.run(command(&["kill", "-9", "--", &format!("-{pid}")]));
}

/// (pid, process group) of everything that runs.
fn host_processes() -> impl Iterator<Item = (u32, u32)> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let rest = stat.rsplit_once(") ")?.1;
        let mut fields = rest.split(' ');
        let state = fields.next()?;
        let group = fields.nth(1)?.parse().ok()?;
        (state != "Z").then_some((pid, group))
    })
}

#[test]
fn a_file_half_written_leaves_nothing() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let dir = guest.fifos.path("made/deep");
    let path = dir.join("file").display().to_string();
    let id = host.ask(Ask::WriteFile(WriteFile {
        path,
        mode: 0,
        parents: true,
    }));
    host.input(id, &[1; 10_000], false);
    host.ping();
    assert_eq!(
        std::fs::read_dir(&dir).unwrap().count(),
        1,
        "a temporary file"
    );
    drop(host);
    let mut host = guest.host();
    host.ping();
    assert!(!Path::new(&guest.fifos.path("made")).exists());
}

#[test]
fn an_absent_host_is_waited_for_without_spinning() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_hearth-init"));
    let mut child = crate::guest::quiet(&mut command).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(600));
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    assert!(
        child.try_wait().unwrap().is_none(),
        "the end of stdin is not its end"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(ticks < 10, "{ticks} ticks of 10 ms in 600 ms");
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    host.ping();
    let _ = host.ask(Ask::Ping(Ping::default()));
}

/// "R", "S", "T" …
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[test]
fn before_a_freeze_everybody_stops_and_goes_on_at_the_next_word_or_by_itself() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let (_, pid) = host.start(shell("while :; do sleep 0.01; done"));
    let quiesce_for = |quiesce_seconds| {
        Ask::Ping(Ping {
            quiesce: true,
            quiesce_seconds,
        })
    };
    let quiesce = || quiesce_for(0);
    let stopped = || state(pid) == Some('T');
    assert!(matches!(host.call(quiesce()), Answer::Pong(_)));
    eventually("it is stopped", stopped);
    host.ping();
    eventually("it goes on", || !stopped());
    // The host falls silent.
    assert!(matches!(host.call(quiesce()), Answer::Pong(_)));
    eventually("it is stopped", stopped);
    eventually("it goes on by itself", || !stopped());
    // An image takes longer than a freeze: who asks for a longer silence has it.
    assert!(matches!(host.call(quiesce_for(150)), Answer::Pong(_)));
    eventually("it is stopped", stopped);
    std::thread::sleep(Duration::from_millis(3_500));
    assert!(stopped(), "a silence for an image ended after 3 s");
    host.ping();
    eventually("it goes on", || !stopped());
    assert!(matches!(host.call(quiesce_for(1)), Answer::Pong(_)));
    eventually("it is stopped", stopped);
    eventually("it goes on by itself", || !stopped());
    // One that was stopped by somebody else stays so.
    let _ = nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap()),
        nix::sys::signal::Signal::SIGSTOP,
    );
    eventually("it is stopped", stopped);
    assert!(matches!(host.call(quiesce()), Answer::Pong(_)));
    host.ping();
    assert!(stopped(), "that was not ours to end");
}

fn kept(line: &str, key: &str, keep_ms: u64) -> Exec {
    Exec {
        key: key.into(),
        keep_ms,
        ..shell(line)
    }
}

fn attach(key: &str, stdout: usize, stderr: usize) -> Ask {
    Ask::Attach(Attach {
        key: key.into(),
        stdout_bytes: stdout as u64,
        stderr_bytes: stderr as u64,
    })
}

#[test]
fn what_is_kept_is_taken_up_by_the_next_session_with_every_byte_once() {
    const LINES: usize = 20_000;
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let line = format!(
        "i=0; while [ $i -lt {LINES} ]; do echo $i; echo e$i >&2; i=$((i+1)); done; exit 7"
    );
    let (mut id, pid) = host.start(kept(&line, "k", 60_000));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut sessions = 0;
    let mut code = None;
    while code.is_none() {
        // Reads some of it, then dies, with more on its way.
        for _ in 0..1 + sessions * 3 {
            match host.next(id) {
                Answer::Output(output) if output.stream() == Stream::Stderr => {
                    err.extend_from_slice(&output.data);
                }
                Answer::Output(output) => out.extend_from_slice(&output.data),
                Answer::Exited(exited) => {
                    code = Some(exited.code);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        drop(host);
        host = guest.host();
        sessions += 1;
        id = host.ask(attach("k", out.len(), err.len()));
        match host.next(id) {
            Answer::Started(started) => {
                assert_eq!(started.pid, pid);
                assert_eq!((started.missed_stdout, started.missed_stderr), (0, 0));
            }
            other => panic!("{other:?}"),
        }
    }
    println!("{sessions} sessions");
    assert!(sessions > 3, "{sessions}");
    assert_eq!(code, Some(7));
    let lines = |word: &str| {
        (0..LINES)
            .map(|i| format!("{word}{i}\n"))
            .collect::<String>()
    };
    assert_eq!(String::from_utf8(out.clone()).unwrap(), lines(""));
    assert_eq!(String::from_utf8(err.clone()).unwrap(), lines("e"));
    // Its end waits too: its answer may not have arrived.
    assert_eq!(host.finish(id).code(), 7);
    let refused = host.failure(attach("k", out.len() + 1, 0));
    assert_eq!(refused.kind(), FailureKind::Invalid);
    let unknown = host.failure(attach("other", 0, 0));
    assert_eq!(unknown.kind(), FailureKind::NotFound);
    let twice = host.failure(Ask::Exec(kept("true", "k", 1000)));
    assert_eq!(twice.kind(), FailureKind::Invalid);
}

#[test]
fn what_is_kept_ends_when_nobody_attaches_in_time() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let (id, pid) = host.start(kept("sleep 100", "k", 300));
    host.say(id, Ask::Cancel(hearth::guest::v1::Cancel {}));
    eventually("it is killed", || !alive(pid));
    let unknown = host.failure(attach("k", 0, 0));
    assert_eq!(unknown.kind(), FailureKind::NotFound);
}

#[test]
fn who_attaches_last_has_it() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let (first, pid) = host.start(kept("echo a; sleep 0.3; echo b", "k", 60_000));
    let second = host.ask(attach("k", 0, 0));
    let ran = host.finish(first);
    assert_eq!(ran.failure.unwrap().kind(), FailureKind::Refused);
    let ran = host.finish(second);
    assert_eq!((ran.pid, ran.text().as_str()), (pid, "a\nb\n"));
}

#[test]
fn kept_ones_are_bounded_and_those_that_have_ended_make_room() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    for i in 0..15 {
        host.start(kept("sleep 100", &format!("k{i}"), 600_000));
    }
    let ends = host.run(kept("exit 3", "ends", 600_000));
    assert_eq!(ends.code(), 3);
    host.start(kept("sleep 100", "k15", 600_000));
    let refused = host.failure(Ask::Exec(kept("sleep 100", "k16", 600_000)));
    assert_eq!(refused.kind(), FailureKind::Limit);
    let forgotten = host.failure(attach("ends", 0, 0));
    assert_eq!(forgotten.kind(), FailureKind::NotFound);
    // One that is not kept has its own bounds.
    assert_eq!(host.sh("echo fine"), "fine\n");
}
