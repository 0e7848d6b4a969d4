//! Guests that lie, flood and stall: their own channel fails, nothing else does.

use super::*;
use crate::guest::wire::{self, FIRST_CREDIT, GUEST_MESSAGE_BYTES};
use bytes::Bytes;

/// What a guest does wrong after an exec (call 1) has started.
type Lie = fn(&mut FakeGuest, u64);

fn credit(bytes: u32) -> Says {
    Says::Credit(v1::Credit { bytes })
}

fn exited_with(code: i32, signal: u32) -> Says {
    Says::Exited(v1::Exited {
        code,
        signal,
        timed_out: false,
    })
}

fn say_sealed(guest: &mut FakeGuest, call: u64, body: Says, twice: Says) {
    guest.say(call, body);
    guest.say(call, twice);
}

const LIES: &[(&str, Lie)] = &[
    ("an answer of the wrong kind", |g, call| g.say(call, pong())),
    ("a second start", |g, call| g.say(call, started())),
    ("an unknown call", |g, call| g.say(call + 1000, pong())),
    ("call 0", |g, _| g.say(0, pong())),
    ("call at the end of all numbers", |g, _| {
        g.say(u64::MAX, pong())
    }),
    ("no content", |g, call| {
        g.say_bytes(&[8, u8::try_from(call).unwrap()])
    }),
    ("no message", |g, _| g.say_bytes(&[0xff; 100])),
    ("a message of no bytes", |g, _| g.say_bytes(&[])),
    ("a stream of no name", |g, call| {
        g.say(call, output(v1::Stream::Unspecified, b"x", false));
    }),
    ("output of nothing", |g, call| g.say(call, stdout(b""))),
    ("output after eof", |g, call| {
        g.say(call, output(v1::Stream::Stdout, b"", true));
        g.say(call, stdout(b"x"));
    }),
    ("eof twice", |g, call| {
        let eof = || output(v1::Stream::Stderr, b"", true);
        say_sealed(g, call, eof(), eof());
    }),
    ("output after the end", |g, call| {
        say_sealed(g, call, exited(0), stdout(b"x"))
    }),
    ("the end twice", |g, call| {
        say_sealed(g, call, exited(0), exited(0))
    }),
    ("more than was granted at once", |g, call| {
        g.say(call, stdout(&[0; FIRST_CREDIT + 1]));
    }),
    ("more than was granted in pieces", |g, call| {
        for _ in 0..=64 {
            g.say(call, stdout(&[0; FIRST_CREDIT / 64]));
        }
    }),
    ("exit code 256", |g, call| g.say(call, exited_with(256, 0))),
    ("exit code -1", |g, call| g.say(call, exited_with(-1, 0))),
    ("signal 65", |g, call| g.say(call, exited_with(0, 65))),
    ("no credit", |g, call| g.say(call, credit(0))),
    ("absurd credit", |g, call| g.say(call, credit(u32::MAX))),
    ("credit without end", |g, call| {
        (0..1000).for_each(|_| g.say(call, credit(1000)));
    }),
    ("a message beyond its bound", |g, call| {
        let message = vec![0x12; GUEST_MESSAGE_BYTES + 1];
        g.say_bytes(&message);
        g.say(call, pong());
    }),
    ("a message that never ends", |g, _| {
        let part = wire::records(g.session, &[0; 100_000]);
        g.flood(&part[0]);
    }),
    ("entries of an exec", |g, call| {
        g.say(call, Says::Entries(v1::Entries::default()));
    }),
    ("junk", |g, _| g.flood(&[0x5a; 4096])),
    ("heads of records in junk", |g, _| {
        let head = wire::records(g.session, &[0; 4076])[0][..20].to_vec();
        g.flood(&head.repeat(200));
    }),
    ("records of another session", |g, _| {
        let record = wire::records(g.session ^ 1, &[0; 4000]);
        g.flood(&record[0]);
    }),
    ("ACK again and again", |g, _| {
        let acks = wire::ack(g.session).repeat(100);
        g.flood(&acks);
    }),
    ("HELLO to the host", |g, _| {
        let hello = wire::hello(g.session);
        g.flood(&hello);
    }),
];

/// A second sandbox on the same node, which must not notice.
async fn neighbour() -> (Rig, Arc<dyn Guest>) {
    let rig = Rig::new();
    rig.run(|guest| {
        guest.align();
        serve(guest);
    });
    let host = rig.connect();
    host.ping(LONG).await.unwrap();
    (rig, host)
}

async fn check_lie(name: &str, lie: Lie) {
    let rig = Rig::new();
    let guest = rig.run(move |guest| {
        guest.align();
        let (call, _) = guest.message();
        guest.say(call, started());
        lie(guest, call);
    });
    let host = rig.connect();
    let mut stream = host
        .exec(exec("x"))
        .await
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    let error = failure(&host).await;
    assert!(matches!(error, GuestError::Protocol(_)), "{name}: {error}");
    let items = drain(&mut stream).await;
    // Where the exec had ended first, its owner may have had that end.
    let ended = matches!(items.last(), Some(Ok(StreamItem::Exited { .. })));
    assert!(
        ended || items.last() == Some(&Err(error.clone())),
        "{name}: {items:?}"
    );
    assert_eq!(host.ping(LONG).await, Err(error), "{name}");
    rig.over();
    guest.join().unwrap();
    fifos_closed(&rig.paths).await;
    assert!(
        rig.metric("hearth_guest_protocol_errors_total", "") == 1.0,
        "{name}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_lie_fails_its_channel_and_no_other() {
    let (_rig, neighbour) = neighbour().await;
    for (name, lie) in LIES {
        check_lie(name, *lie).await;
        assert_eq!(neighbour.ping(LONG).await, Ok("1.2.3".to_owned()), "{name}");
    }
}

/// Answers the first call with `says` and expects the channel to fail.
pub(super) async fn check_answer<T: std::fmt::Debug>(
    says: Vec<Says>,
    call: impl AsyncFnOnce(Arc<dyn Guest>) -> Result<T, GuestError>,
) {
    let rig = Rig::new();
    let name = format!("{says:?}");
    let guest = rig.run(move |guest| {
        guest.align();
        let (call, _) = guest.message();
        for body in says {
            guest.say(call, body);
        }
    });
    let host = rig.connect();
    let answer = call(Arc::clone(&host)).await;
    let error = failure(&host).await;
    assert!(matches!(error, GuestError::Protocol(_)), "{name}: {error}");
    assert_eq!(answer.unwrap_err(), error, "{name}");
    guest.join().unwrap();
}

/// To the end of a stream.
pub(super) async fn run(stream: Result<GuestStream, GuestError>) -> Result<(), GuestError> {
    for item in drain(&mut stream?).await {
        item?;
    }
    Ok(())
}

fn held(claim_id: &str) -> Says {
    Says::Held(v1::Held {
        claim_id: claim_id.to_owned(),
        running: 0,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_answers_to_short_calls_fail_the_channel() {
    for says in [started(), held(""), credit(1), stdout(b"x")] {
        check_answer(vec![says], async |host| host.ping(LONG).await).await;
    }
    for claim_id in ["x".repeat(65), "../../etc".to_owned(), "a\nb".to_owned()] {
        check_answer(vec![held(&claim_id)], async |host| host.witness(LONG).await).await;
    }
}

fn entries(name: &'static [u8], kind: u32) -> Says {
    let entry = v1::Entry {
        name: Bytes::from_static(name),
        kind,
        ..v1::Entry::default()
    };
    Says::Entries(v1::Entries {
        entries: vec![entry],
        done: true,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_are_none_fail_the_channel() {
    let names: [&'static [u8]; 7] = [b"", b".", b"..", b"a/b", b"/", b"a\0b", &[b'x'; 256]];
    let mut answers: Vec<Says> = names.iter().map(|name| entries(name, 1)).collect();
    answers.extend([entries(b"x", 0), entries(b"x", 5)]);
    answers.push(Says::Entries(v1::Entries::default()));
    for says in answers {
        let list =
            async |host: Arc<dyn Guest>| run(host.list_files(v1::ListFiles::default()).await).await;
        check_answer(vec![says], list).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_connections_have_no_stderr_and_no_more_than_was_asked_for() {
    let info = || Says::FileInfo(v1::FileInfo::default());
    let stderr = || output(v1::Stream::Stderr, b"x", false);
    let read = async |host: Arc<dyn Guest>| {
        let request = v1::ReadFile {
            limit: 5,
            ..v1::ReadFile::default()
        };
        run(host.read_file(request).await).await
    };
    check_answer(vec![info(), stderr()], read).await;
    check_answer(vec![info(), stdout(b"123456")], read).await;
    check_answer(vec![info(), credit(5)], read).await;
    check_answer(vec![stdout(b"12345")], read).await;
    let connect = async |host: Arc<dyn Guest>| run(host.connect(1).await).await;
    let connected = || Says::Connected(v1::Connected {});
    check_answer(vec![connected(), stderr()], connect).await;
    check_answer(vec![connected(), exited(0)], connect).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_written_before_it_was_sent_is_a_lie() {
    let write = async |host: Arc<dyn Guest>| {
        // Kept open: the content is not whole.
        run(host.write_file(v1::WriteFile::default()).await).await
    };
    let written = Says::Written(v1::Written { size_bytes: 0 });
    check_answer(vec![written], write).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_little_junk_is_only_counted() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        guest.raw(&[0x5a; 1000]);
        // A message whose answer lies right behind junk that looks like a head.
        let head = wire::records(guest.session, &[0; 4076])[0][..20].to_vec();
        guest.raw(&head);
        let (call, _) = guest.message();
        guest.say(call, pong());
        // The false head swallows what follows until as much has come as it promised.
        guest.raw(&[0x5a; 5000]);
    });
    let host = rig.connect();
    assert_eq!(host.ping(LONG).await, Ok("1.2.3".to_owned()));
    guest.join().unwrap();
    let until = tokio::time::Instant::now() + LONG;
    while rig.metric("hearth_guest_junk_bytes_total", "") < 1020.0 {
        assert!(tokio::time::Instant::now() < until, "junk is not counted");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(rig.metric("hearth_guest_protocol_errors_total", "") == 0.0);
}
