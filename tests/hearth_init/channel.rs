//! Framing, back-pressure, fairness.

use std::time::{Duration, Instant};

use hearth::guest::{
    v1::{
        Credit, FailureKind, HostMessage, Ping, ReadFile, Signal, Witness,
        guest_message::Body as Answer, host_message::Body as Ask,
    },
    wire,
};
use prost::Message;

use crate::guest::{Guest, Host, PATIENCE, command, eventually, shell};

/// Writes for ever, as fast as it may.
pub const BABBLE: &str = "exec cat /dev/zero";

#[test]
fn a_ping_is_answered_with_the_version() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let mut times: Vec<_> = (0..200).map(|_| host.ping()).collect();
    times.sort();
    println!(
        "round trip on the host: median {:?}, longest {:?}",
        times[100], times[199]
    );
}

#[test]
fn junk_and_cut_records_are_skipped() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let ping = |call| {
        let body = Some(Ask::Ping(Ping::default()));
        wire::records(host.session, &HostMessage { call, body }.encode_to_vec()).concat()
    };
    let (cut, flipped) = (ping(1000), {
        let mut bytes = ping(1001);
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    });
    let other = wire::records(host.session ^ 1, &[8, 1, 18, 0]).concat();
    for junk in [
        b"HRT1".to_vec(),
        b"no record at all\n".repeat(1000),
        cut[..cut.len() - 1].to_vec(),
        flipped,
        other,
        wire::ack(host.session).to_vec(),
    ] {
        host.write(&junk);
        // A record may be lost behind the head of a cut one, until as many bytes have come as that one promised.
        let first = host.ask(Ask::Ping(Ping::default()));
        host.write(&wire::ack(1).repeat(4000 / 24));
        let second = host.ask(Ask::Ping(Ping::default()));
        assert!(matches!(host.next(second), Answer::Pong(_)));
        assert!(matches!(
            host.next_within(first, Duration::ZERO),
            None | Some(Answer::Pong(_))
        ));
    }
}

#[test]
fn messages_that_make_no_sense_are_ignored() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    // Not decodable; a kind of the future (field 99); no body at all; about calls that are not there.
    for message in [&[0xff; 40][..], &[8, 7, 0x9a, 6, 0], &[8, 7], &[]] {
        for record in wire::records(host.session, message) {
            host.write(&record);
        }
    }
    host.grant(900, 1);
    host.input(900, b"x", true);
    host.say(900, Ask::Signal(Signal { number: 9 }));
    host.say(900, Ask::Cancel(hearth::guest::v1::Cancel {}));
    host.ping();
    // A message beyond every bound: 8 MiB.
    let long = vec![0; wire::HOST_MESSAGE_BYTES + 100_000];
    for record in wire::records(host.session, &long) {
        host.write(&record);
    }
    host.ping();
    guest.log_until("more than 7340032 bytes: dropped");
}

#[test]
fn random_bytes_never_end_it() {
    let guest = Guest::plain(&[]);
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).unwrap();
    let mut state = u64::from_le_bytes(seed) | 1;
    println!("seed {state}");
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut host = guest.host();
    for _ in 0..2000 {
        // A message with a random body behind a plausible head: call 7, field 2 to 15, a length.
        let length = usize::try_from(random() % 60).unwrap();
        let field = u8::try_from((2 + random() % 14) << 3 | 2).unwrap();
        let mut message = vec![8, 7, field, u8::try_from(length).unwrap()];
        message.extend((0..length).map(|_| random().to_le_bytes()[0]));
        for record in wire::records(host.session, &message) {
            host.write(&record);
        }
    }
    let mut host = guest.host();
    host.ping();
}

#[test]
fn a_babbling_exec_starves_nobody() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let (first, _) = host.start(shell(BABBLE));
    let (second, _) = host.start(shell(BABBLE));
    // More than it can ever send: only the room in the FIFO and fairness hold it back.
    host.grant(first, 1 << 30);
    host.grant(second, 1 << 30);
    let mut bytes = [0; 2];
    let mut worst = Duration::ZERO;
    for round in 0..200 {
        worst = worst.max(host.ping());
        for (count, call) in std::iter::zip(&mut bytes, [first, second]) {
            while let Some(Answer::Output(output)) = host.next_within(call, Duration::ZERO) {
                *count += output.data.len();
            }
        }
        if round == 100 {
            assert_eq!(host.sh("echo among them"), "among them\n");
        }
    }
    println!("beside two babblers: longest round trip {worst:?}, bytes {bytes:?}");
    let (least, most) = (bytes[0].min(bytes[1]), bytes[0].max(bytes[1]));
    assert!(least > 0 && most < 4 * least, "unfair: {bytes:?}");
}

#[test]
fn nothing_deadlocks_while_nobody_reads() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let (babbler, _) = host.start(shell(BABBLE));
    host.grant(babbler, 1 << 30);
    let mark = guest.fifos.path("mark");
    let line = format!("sleep 0.1; echo x >{}; exit 3", mark.display());
    let waiting = host.ask(Ask::Exec(shell(&line)));
    // Stdout is full now, and stays so. The guest still reads, starts, and buries.
    eventually("the second exec did its work", || mark.exists());
    for _ in 0..100 {
        host.to
            .write_all_now(&wire::records(host.session, &ping(5000)).concat());
    }
    eventually("it was buried", || {
        let child = guest.child.id();
        let children = std::fs::read_to_string(format!("/proc/{child}/task/{child}/children"));
        children.unwrap().split_whitespace().count() == 1
    });
    assert_eq!(host.finish(waiting).code(), 3);
    for _ in 0..100 {
        assert!(matches!(host.next(5000), Answer::Pong(_)));
    }
}

fn ping(call: u64) -> Vec<u8> {
    let body = Some(Ask::Ping(Ping::default()));
    HostMessage { call, body }.encode_to_vec()
}

trait WriteNow {
    fn write_all_now(&mut self, bytes: &[u8]);
}

impl WriteNow for std::fs::File {
    /// Without reading in between.
    fn write_all_now(&mut self, bytes: &[u8]) {
        use std::io::Write;
        let began = Instant::now();
        while self.write(bytes).is_err() {
            assert!(began.elapsed() < PATIENCE, "the guest does not read");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn answers_that_nobody_takes_stop_the_reading_and_nothing_else() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let record = wire::records(host.session, &ping(1)).concat();
    let mut sent = 0;
    // Until neither FIFO nor guest takes any more.
    let mut idle = Instant::now();
    while idle.elapsed() < Duration::from_millis(500) {
        use std::io::Write;
        if host.to.write(&record).is_ok() {
            sent += 1;
            idle = Instant::now();
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    println!("{sent} pings were taken before the guest stopped reading");
    assert!(sent < 20_000);
    for _ in 0..sent {
        assert!(matches!(host.next(1), Answer::Pong(_)));
    }
    host.ping();
}

#[test]
fn output_waits_for_credit() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    host.generous = false;
    let (id, _) = host.start(shell(BABBLE));
    let mut bytes = 0;
    while let Some(Answer::Output(output)) = host.next_within(id, Duration::from_millis(300)) {
        bytes += output.data.len();
    }
    assert_eq!(bytes, wire::FIRST_CREDIT);
    host.grant(id, 5);
    match host.next(id) {
        Answer::Output(output) => assert_eq!(output.data.len(), 5),
        other => panic!("{other:?}"),
    }
    assert!(host.next_within(id, Duration::from_millis(100)).is_none());
    host.ping();
    // Credit that overflows any counter.
    for _ in 0..3 {
        host.say(id, Ask::Credit(Credit { bytes: u32::MAX }));
    }
}

#[test]
fn input_beyond_the_credit_ends_the_call() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let mut exec = command(&["sleep", "100"]);
    exec.stdin = true;
    let (id, pid) = host.start(exec);
    // A pipe holds 64 KiB, and as much is granted.
    let piece = vec![0; wire::FIRST_CREDIT];
    host.input(id, &piece, false);
    let mut granted = 0;
    while let Some(Answer::Credit(credit)) = host.next_within(id, Duration::from_millis(200)) {
        granted += usize::try_from(credit.bytes).unwrap();
    }
    assert_eq!(granted, wire::FIRST_CREDIT);
    host.input(id, &piece, false);
    assert!(
        host.next_within(id, Duration::from_millis(200)).is_none(),
        "its queue is full"
    );
    host.input(id, b"x", false);
    match host.next(id) {
        Answer::Failure(failure) => assert_eq!(failure.kind(), FailureKind::Limit),
        other => panic!("{other:?}"),
    }
    eventually("it was killed", || {
        !std::path::Path::new(&format!("/proc/{pid}")).exists()
    });
    host.ping();
}

#[test]
fn calls_beyond_the_bound_are_refused() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let mut open = Vec::new();
    for at in 0..256 {
        let path = guest.fifos.path(&format!("file{at}")).display().to_string();
        let write = hearth::guest::v1::WriteFile {
            path,
            mode: 0,
            parents: false,
        };
        open.push(host.ask(Ask::WriteFile(write)));
    }
    let refused = host.failure(Ask::Exec(command(&["true"])));
    assert_eq!(refused.kind(), FailureKind::Limit, "{refused:?}");
    host.input(open[7], b"", true);
    assert!(matches!(host.next(open[7]), Answer::Written(_)));
    assert_eq!(host.run(command(&["true"])).code(), 0);
    assert!(matches!(
        host.call(Ask::Witness(Witness {})),
        Answer::Held(_)
    ));
    // A number in use is not opened twice.
    host.say(open[8], Ask::Exec(command(&["true"])));
    host.ping();
    guest.log_until("is in use");
}

/// How fast data goes each way, printed.
pub fn rates(host: &mut Host, bytes: usize) {
    let rate = |name: &str, began: Instant| {
        let megabytes = f64::from(u32::try_from(bytes).unwrap()) / 1e6;
        println!(
            "{name}: {:.0} MB/s",
            megabytes / began.elapsed().as_secs_f64()
        );
    };
    let began = Instant::now();
    let count = format!("count={}", bytes / 50_000);
    let ran = host.run(command(&["dd", "if=/dev/zero", "bs=50000", &count]));
    assert_eq!(ran.stdout.len(), bytes);
    rate("output of an exec", began);
    let (path, limit) = ("/dev/zero".into(), u64::try_from(bytes).unwrap());
    let ask = ReadFile {
        path,
        offset: 0,
        limit,
    };
    let began = Instant::now();
    let id = host.ask(Ask::ReadFile(ask));
    assert!(matches!(host.next(id), Answer::FileInfo(_)));
    assert_eq!(host.finish_data(id).len(), bytes);
    rate("content of a file", began);
    let ask = ReadFile {
        path: "/dev/zero".into(),
        offset: 0,
        limit,
    };
    let began = Instant::now();
    host.generous = false;
    let id = host.ask(Ask::ReadFile(ask));
    host.grant(id, bytes);
    assert!(matches!(host.next(id), Answer::FileInfo(_)));
    assert_eq!(host.finish_data(id).len(), bytes);
    host.generous = true;
    rate("content of a file, all credit at once", began);
    let mut exec = shell("cat >/dev/null");
    exec.stdin = true;
    let (id, _) = host.start(exec);
    let (mut left, mut credit) = (bytes, wire::FIRST_CREDIT);
    let piece = vec![0; 32 << 10];
    let began = Instant::now();
    while left > 0 {
        let count = piece.len().min(credit).min(left);
        if count > 0 {
            host.input(id, &piece[..count], count == left);
            (left, credit) = (left - count, credit - count);
        }
        let wait = if credit == 0 {
            PATIENCE
        } else {
            Duration::ZERO
        };
        if let Some(Answer::Credit(more)) = host.next_within(id, wait) {
            credit += usize::try_from(more.bytes).unwrap();
        }
    }
    assert_eq!(host.finish(id).code(), 0);
    rate("input of an exec", began);
}

#[test]
fn data_goes_both_ways() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    rates(&mut host, 100_000_000);
    let times = std::fs::read_to_string(format!("/proc/{}/stat", guest.child.id())).unwrap();
    let fields: Vec<&str> = times.rsplit_once(") ").unwrap().1.split(' ').collect();
    println!(
        "hearth-init: {} ticks of its own, {} of the kernel's",
        fields[11], fields[12]
    );
}
