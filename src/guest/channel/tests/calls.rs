//! Every kind of call, answered as hearth-init does.

use super::*;
use crate::guest::{Personalization, StreamInput};
use bytes::Bytes;
use std::time::{SystemTime, UNIX_EPOCH};

#[tokio::test(flavor = "multi_thread")]
async fn short_calls_are_answered() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let (call, body) = guest.message();
        assert_eq!(body, Hears::Witness(v1::Witness {}));
        let claim_id = "7e57a5f5-0000-4000-8000-000000000001".to_owned();
        guest.say(
            call,
            Says::Held(v1::Held {
                claim_id,
                running: 2,
            }),
        );
        let (call, body) = guest.message();
        assert_eq!(body, Hears::Stats(v1::StatsQuery {}));
        guest.say(
            call,
            Says::Stats(v1::GuestStats {
                processes: 7,
                execs: 3,
            }),
        );
        let (call, _) = guest.message();
        guest.say(call, pong());
    });
    let host = rig.connect();
    let held = host.witness(LONG).await.unwrap();
    assert_eq!(held, "7e57a5f5-0000-4000-8000-000000000001");
    let stats = host.stats(LONG).await.unwrap();
    assert_eq!((stats.processes, stats.execs), (7, 3));
    assert_eq!(host.ping(LONG).await, Ok("1.2.3".to_owned()));
    guest.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_find_their_calls_in_any_order() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let mut calls: Vec<_> = (0..8).map(|_| guest.message()).collect();
        calls.reverse();
        for (call, _) in calls {
            let version = format!("v{call}");
            guest.say(call, Says::Pong(v1::Pong { version }));
        }
    });
    let host = rig.connect();
    let pings = (0..8).map(|_| host.ping(LONG));
    let mut versions = futures::future::try_join_all(pings).await.unwrap();
    versions.sort();
    versions.dedup();
    assert_eq!(versions.len(), 8);
    guest.join().unwrap();
}

fn personalization() -> Personalization {
    Personalization {
        env: [("MODE".to_owned(), "fast".to_owned())].into(),
        files: vec![("/etc/motd".to_owned(), Bytes::from(vec![5; 500_000]), 0o644)],
        secrets: vec![("token".to_owned(), Bytes::from_static(b"s3cret"))],
        hostname: "box".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn personalize_brings_everything_and_fresh_entropy() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let mut claims = Vec::new();
        for already in [false, true] {
            let (call, body) = guest.message();
            let Hears::Claim(claim) = body else {
                panic!("{body:?}");
            };
            claims.push(claim);
            guest.say(call, Says::ClaimAck(v1::ClaimAck { already }));
        }
        claims
    });
    let host = rig.connect();
    let what = personalization();
    for _ in 0..2 {
        host.personalize("some-claim", &what, LONG).await.unwrap();
    }
    let claims = guest.join().unwrap();
    let claim = &claims[0];
    assert_eq!(claim.claim_id, "some-claim");
    assert_eq!(claim.env, what.env);
    assert_eq!(claim.hostname, "box");
    assert_eq!(claim.files[0].content, what.files[0].1);
    assert_eq!(claim.files[0].mode, 0o644);
    assert_eq!(claim.secrets[0].path, "token");
    assert_eq!(claim.secrets[0].content, "s3cret");
    assert_eq!(claim.secrets[0].mode, 0o600);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    let told = u128::from(claim.wall_clock_ns);
    assert!(told <= now && told > now - LONG.as_nanos());
    assert_eq!(claim.entropy.len(), 32);
    assert_ne!(claim.entropy, claims[1].entropy);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_comes_bounded_and_escaped() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        for message in ["no\n\u{1b}[31m\u{202e}", &"x\n".repeat(10_000)] {
            let (call, _) = guest.message();
            let failure = v1::Failure {
                kind: v1::FailureKind::Claimed.into(),
                message: message.to_owned(),
            };
            guest.say(call, Says::Failure(failure));
        }
        let (call, _) = guest.message();
        let failure = v1::Failure {
            kind: 99,
            message: String::new(),
        };
        guest.say(call, Says::Failure(failure));
    });
    let host = rig.connect();
    let what = Personalization::default();
    let error = host.personalize("c", &what, LONG).await.unwrap_err();
    let expected = GuestError::Failed {
        kind: v1::FailureKind::Claimed,
        message: r"no\n\u{1b}[31m\u{202e}".to_owned(),
    };
    assert_eq!(error, expected);
    let Err(GuestError::Failed { message, .. }) = host.exec(exec("sh")).await else {
        panic!("no failure");
    };
    assert!(
        message.len() <= 512 && message.starts_with(r"x\nx\n"),
        "{message}"
    );
    let error = host.read_file(v1::ReadFile::default()).await.unwrap_err();
    let unknown = v1::FailureKind::Unspecified;
    assert!(matches!(error, GuestError::Failed { kind, .. } if kind == unknown));
    guest.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_streams_both_ways() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let (call, body) = guest.message();
        let Hears::Exec(exec) = body else {
            panic!("{body:?}");
        };
        assert_eq!(exec.command, ["sh"]);
        guest.say(call, started());
        let heard: Vec<_> = (0..4).map(|_| guest.message()).collect();
        guest.say(call, stdout(b"out"));
        guest.say(call, output(v1::Stream::Stderr, b"err", true));
        guest.say(call, output(v1::Stream::Stdout, b"", true));
        let exited = v1::Exited {
            code: 137,
            signal: 9,
            timed_out: true,
        };
        guest.say(call, Says::Exited(exited));
        heard.into_iter().map(|(_, body)| body).collect::<Vec<_>>()
    });
    let host = rig.connect();
    let exec = v1::Exec {
        tty: true,
        ..exec("sh")
    };
    let mut stream = host.exec(exec).await.unwrap();
    let input = [
        StreamInput::Data(Bytes::from_static(b"in")),
        StreamInput::Resize {
            rows: 3,
            columns: 4,
        },
        StreamInput::Signal(99),
        StreamInput::Signal(15),
        StreamInput::Eof,
        StreamInput::Data(Bytes::from_static(b"too late")),
    ];
    for input in input {
        stream.input.send(input).await.unwrap();
    }
    let items: Vec<_> = drain(&mut stream)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        items[0],
        StreamItem::Started {
            pid: 42,
            missed: [0, 0]
        }
    );
    let of = |stderr: bool| {
        let data: Vec<u8> = items
            .iter()
            .filter_map(|item| match item {
                StreamItem::Data { stderr: s, data } if *s == stderr => Some(data.to_vec()),
                _ => None,
            })
            .flatten()
            .collect();
        data
    };
    assert_eq!((of(false), of(true)), (b"out".to_vec(), b"err".to_vec()));
    assert!(items.contains(&StreamItem::Eof { stderr: false }));
    assert!(items.contains(&StreamItem::Eof { stderr: true }));
    let last = StreamItem::Exited {
        code: 137,
        signal: 9,
        timed_out: true,
    };
    assert_eq!(items.last(), Some(&last));
    let data = |data: &'static [u8], eof| {
        Hears::Input(v1::Chunk {
            data: Bytes::from_static(data),
            eof,
        })
    };
    let expected = [
        data(b"in", false),
        Hears::Resize(v1::Resize {
            rows: 3,
            columns: 4,
        }),
        Hears::Signal(v1::Signal { number: 15 }),
        data(b"", true),
    ];
    assert_eq!(guest.join().unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_without_stdin_or_terminal_is_sent_neither() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let (call, _) = guest.message();
        guest.say(call, started());
        let (_, body) = guest.message();
        guest.say(call, exited(0));
        body
    });
    let host = rig.connect();
    let exec = v1::Exec {
        stdin: false,
        ..exec("sh")
    };
    let mut stream = host.exec(exec).await.unwrap();
    let input = [
        StreamInput::Data(Bytes::from_static(b"in")),
        StreamInput::Eof,
        StreamInput::Resize {
            rows: 3,
            columns: 4,
        },
        StreamInput::Signal(1),
    ];
    for input in input {
        stream.input.send(input).await.unwrap();
    }
    assert_eq!(drain(&mut stream).await.len(), 2);
    let heard = guest.join().unwrap();
    assert_eq!(heard, Hears::Signal(v1::Signal { number: 1 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn read_file_gives_info_content_and_an_end() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let (call, body) = guest.message();
        guest.say(
            call,
            Says::FileInfo(v1::FileInfo {
                size_bytes: 10,
                mode: 0o100_755,
            }),
        );
        guest.say(call, stdout(b"content"));
        guest.say(call, output(v1::Stream::Stdout, b"!", true));
        body
    });
    let host = rig.connect();
    let request = v1::ReadFile {
        path: "/a".to_owned(),
        offset: 1,
        limit: 8,
    };
    let mut stream = host.read_file(request.clone()).await.unwrap();
    assert!(
        stream.input.send(StreamInput::Eof).await.is_err(),
        "takes no input"
    );
    let items: Vec<_> = drain(&mut stream)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let info = StreamItem::FileInfo {
        size_bytes: 10,
        mode: 0o755,
    };
    assert_eq!(items[0], info);
    assert_eq!(items.last(), Some(&StreamItem::Done));
    let content: Vec<u8> = items
        .iter()
        .filter_map(|item| match item {
            StreamItem::Data { data, .. } => Some(data.to_vec()),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(content, b"content!");
    assert_eq!(guest.join().unwrap(), Hears::ReadFile(request));
}

#[tokio::test(flavor = "multi_thread")]
async fn write_file_sends_content_and_gets_its_size() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let (call, _) = guest.message();
        let mut content = Vec::new();
        loop {
            let (_, body) = guest.message();
            let Hears::Input(chunk) = body else {
                panic!("{body:?}");
            };
            content.extend_from_slice(&chunk.data);
            if !chunk.data.is_empty() {
                let bytes = u32::try_from(chunk.data.len()).unwrap();
                guest.say(call, Says::Credit(v1::Credit { bytes }));
            }
            if chunk.eof {
                break;
            }
        }
        let size_bytes = content.len() as u64;
        guest.say(call, Says::Written(v1::Written { size_bytes }));
        content
    });
    let host = rig.connect();
    let mut stream = host.write_file(v1::WriteFile::default()).await.unwrap();
    let content: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
    for piece in content.chunks(60_000) {
        let data = Bytes::copy_from_slice(piece);
        stream.input.send(StreamInput::Data(data)).await.unwrap();
    }
    stream.input.send(StreamInput::Eof).await.unwrap();
    let size_bytes = content.len() as u64;
    assert_eq!(
        drain(&mut stream).await,
        [Ok(StreamItem::Written { size_bytes })]
    );
    assert!(guest.join().unwrap() == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_whose_writer_gives_up_is_cancelled() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let (first, _) = guest.message();
        let (second, body) = guest.message();
        (first == second, body)
    });
    let host = rig.connect();
    let mut stream = host.write_file(v1::WriteFile::default()).await.unwrap();
    let (unused, _) = tokio::sync::mpsc::channel(1);
    drop(std::mem::replace(&mut stream.input, unused));
    assert_eq!(drain(&mut stream).await, [Err(GuestError::Closed)]);
    assert_eq!(guest.join().unwrap(), (true, Hears::Cancel(v1::Cancel {})));
}

#[tokio::test(flavor = "multi_thread")]
async fn list_files_gives_entries() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let (call, _) = guest.message();
        for done in [false, true] {
            let entries = (0..100).map(entry).collect();
            guest.say(call, Says::Entries(v1::Entries { entries, done }));
        }
    });
    let host = rig.connect();
    let mut stream = host.list_files(v1::ListFiles::default()).await.unwrap();
    let items: Vec<_> = drain(&mut stream)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let found = items.iter().map(|item| match item {
        StreamItem::Entries(entries) => entries.len(),
        _ => 0,
    });
    assert_eq!(found.sum::<usize>(), 200);
    assert_eq!(items.last(), Some(&StreamItem::Done));
    guest.join().unwrap();
}

fn entry(at: u32) -> v1::Entry {
    v1::Entry {
        name: format!("name {at}").into(),
        kind: 1,
        ..v1::Entry::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_when_both_sides_have() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let (call, body) = guest.message();
        assert_eq!(body, Hears::Connect(v1::Connect { port: 80 }));
        guest.say(call, Says::Connected(v1::Connected {}));
        guest.say(call, stdout(b"hello"));
        guest.say(call, output(v1::Stream::Stdout, b"", true));
        let heard: Vec<_> = (0..2).map(|_| guest.message().1).collect();
        // Under way when the host's side ended: not a fault.
        guest.say(call, Says::Credit(v1::Credit { bytes: 3 }));
        let (call, _) = guest.message();
        guest.say(call, pong());
        heard
    });
    let host = rig.connect();
    let mut stream = host.connect(80).await.unwrap();
    let expected = [
        StreamItem::Connected,
        StreamItem::Data {
            stderr: false,
            data: Bytes::from_static(b"hello"),
        },
        StreamItem::Eof { stderr: false },
    ];
    for item in expected {
        assert_eq!(next(&mut stream).await, Some(Ok(item)));
    }
    let data = Bytes::from_static(b"bye");
    stream.input.send(StreamInput::Data(data)).await.unwrap();
    stream.input.send(StreamInput::Eof).await.unwrap();
    assert_eq!(drain(&mut stream).await, [Ok(StreamItem::Done)]);
    assert_eq!(host.ping(LONG).await, Ok("1.2.3".to_owned()));
    assert_eq!(guest.join().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_drops_its_input_ends_it() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let (call, _) = guest.message();
        guest.say(call, started());
        let (_, body) = guest.message();
        guest.say(call, exited(0));
        body
    });
    let host = rig.connect();
    let GuestStream { input, mut output } = host.exec(exec("cat")).await.unwrap();
    drop(input);
    while output.recv().await.is_some() {}
    let end = Hears::Input(v1::Chunk {
        data: Bytes::new(),
        eof: true,
    });
    assert_eq!(guest.join().unwrap(), end);
}
