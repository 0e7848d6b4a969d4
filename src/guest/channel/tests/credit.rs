//! Credit in both directions: whoever is slow holds back its own stream and nobody else.

use super::*;
use crate::guest::StreamInput;
use crate::guest::wire::{ENTRY_CREDIT, FIRST_CREDIT};
use bytes::Bytes;

/// Bytes that tell where they belong.
fn pattern(length: usize) -> Vec<u8> {
    (0u32..).flat_map(u32::to_le_bytes).take(length).collect()
}

/// Says all of it within the credit it is given, a message of at most `piece` at a time; answers pings meanwhile.
fn say_all(guest: &mut FakeGuest, call: u64, content: &[u8], piece: usize) {
    let mut credit = FIRST_CREDIT;
    let mut rest = content;
    while !rest.is_empty() {
        while credit == 0 {
            match guest.message() {
                (of, Hears::Credit(more)) => {
                    assert_eq!(of, call);
                    credit += usize::try_from(more.bytes).unwrap();
                }
                (of, Hears::Ping(_)) => guest.say(of, pong()),
                (_, other) => panic!("{other:?}"),
            }
        }
        let (now, later) = rest.split_at(rest.len().min(credit).min(piece));
        guest.say(call, stdout(now));
        credit -= now.len();
        rest = later;
    }
}

/// Collects stdout to the end of an exec; how many items it came in.
async fn collect(stream: &mut GuestStream) -> (Vec<u8>, usize) {
    let (mut content, mut count) = (Vec::new(), 0);
    while let Some(item) = next(stream).await {
        if let StreamItem::Data { data, .. } = item.unwrap() {
            content.extend_from_slice(&data);
            count += 1;
        }
    }
    (content, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_back_its_own_exec_only() {
    let rig = Rig::new();
    let content = pattern(1 << 20);
    let expected = content.clone();
    let guest = rig.run(move |guest| {
        guest.align();
        let (call, _) = guest.message();
        guest.say(call, started());
        say_all(guest, call, &content, 50_000);
        guest.say(call, exited(0));
    });
    let host = rig.connect();
    let mut stream = host.exec(exec("yes")).await.unwrap();
    // Nobody reads, the guest runs out of credit and waits; others are served.
    for _ in 0..20 {
        assert_eq!(host.ping(LONG).await, Ok("1.2.3".to_owned()));
    }
    let (content, _) = collect(&mut stream).await;
    assert!(content == expected);
    guest.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tiny_messages_merge_while_nobody_reads() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let (call, _) = guest.message();
        guest.say(call, started());
        for at in 0..FIRST_CREDIT {
            let stream = match at % 2 {
                0 => v1::Stream::Stdout,
                _ => v1::Stream::Stderr,
            };
            guest.say(call, output(stream, b"x", false));
        }
        guest.say(call, exited(0));
        let (call, _) = guest.message();
        guest.say(call, pong());
    });
    let host = rig.connect();
    let mut stream = host.exec(exec("yes")).await.unwrap();
    host.ping(LONG).await.unwrap();
    let (content, count) = collect(&mut stream).await;
    assert_eq!(content.len(), FIRST_CREDIT);
    assert!(count <= 4, "{count} items");
    guest.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn credit_comes_in_lumps() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let (call, _) = guest.message();
        guest.say(call, started());
        say_all(guest, call, &[1; 15_000], 1000);
        let before = guest.try_message(SHORT);
        guest.say(call, stdout(&[1; 2000]));
        let after = guest.message();
        guest.say(call, exited(0));
        (before, after)
    });
    let host = rig.connect();
    let mut stream = host.exec(exec("yes")).await.unwrap();
    collect(&mut stream).await;
    let (before, (_, after)) = guest.join().unwrap();
    assert_eq!(before, None);
    assert!(
        matches!(after, Hears::Credit(credit) if credit.bytes > 15_000),
        "{after:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_cost_credit_too() {
    let rig = Rig::new();
    let name = "n".repeat(200);
    let page = FIRST_CREDIT / (ENTRY_CREDIT + name.len());
    let guest = rig.run(move |guest| {
        guest.align();
        let (call, _) = guest.message();
        let entry = v1::Entry {
            name: name.into(),
            kind: 2,
            ..v1::Entry::default()
        };
        let entries = v1::Entries {
            entries: vec![entry; page],
            done: false,
        };
        guest.say(call, Says::Entries(entries.clone()));
        let mut granted = 0;
        while granted < FIRST_CREDIT / 2 {
            let (_, Hears::Credit(credit)) = guest.message() else {
                panic!("no credit");
            };
            granted += usize::try_from(credit.bytes).unwrap();
        }
        let half = entries.entries[..page / 2].to_vec();
        guest.say(
            call,
            Says::Entries(v1::Entries {
                entries: half,
                done: true,
            }),
        );
    });
    let host = rig.connect();
    let mut stream = host.list_files(v1::ListFiles::default()).await.unwrap();
    let items = drain(&mut stream).await;
    assert_eq!(items.last(), Some(&Ok(StreamItem::Done)));
    guest.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn input_waits_for_the_guests_credit_and_holds_its_owner_back() {
    let rig = Rig::new();
    let content = pattern(1 << 20);
    let expected = content.clone();
    let guest = rig.run(move |guest| {
        guest.align();
        let (exec, _) = guest.message();
        guest.say(exec, started());
        let mut heard = Vec::new();
        let (mut granted, mut pings) = (FIRST_CREDIT, 0);
        loop {
            match guest.message() {
                (_, Hears::Input(chunk)) => {
                    heard.extend_from_slice(&chunk.data);
                    assert!(heard.len() <= granted, "more than was granted");
                    if chunk.eof {
                        break;
                    }
                }
                (call, Hears::Ping(_)) => {
                    guest.say(call, pong());
                    pings += 1;
                }
                (_, other) => panic!("{other:?}"),
            }
            // Stingy until it was asked often enough: the host must wait.
            if pings >= 20 && granted == heard.len() {
                guest.say(exec, Says::Credit(v1::Credit { bytes: 10_000 }));
                granted += 10_000;
            }
        }
        guest.say(exec, exited(0));
        heard
    });
    let host = rig.connect();
    let GuestStream { input, mut output } = host.exec(exec("cat")).await.unwrap();
    let (progress, written) = tokio::sync::watch::channel(0);
    let owner = tokio::spawn(async move {
        for piece in content.chunks(40_000) {
            let data = Bytes::copy_from_slice(piece);
            input.send(StreamInput::Data(data)).await.unwrap();
            progress.send_modify(|sum| *sum += piece.len());
        }
        input.send(StreamInput::Eof).await.unwrap();
    });
    for _ in 0..19 {
        host.ping(LONG).await.unwrap();
    }
    tokio::time::sleep(SHORT).await;
    // Sent: a first credit. Waiting: one piece held, one queued, and what is left of the one under way.
    assert!(
        *written.borrow() <= FIRST_CREDIT + 3 * 40_000,
        "{}",
        *written.borrow()
    );
    host.ping(LONG).await.unwrap();
    while output.recv().await.is_some() {}
    owner.await.unwrap();
    assert!(guest.join().unwrap() == expected);
}
