//! Connections to a port inside.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener},
    time::Duration,
};

use hearth::guest::v1::{
    Connect, FailureKind, guest_message::Body as Answer, host_message::Body as Ask,
};

use crate::guest::{Guest, Host};

fn connect(host: &mut Host, port: u16) -> u64 {
    let id = host.ask(Ask::Connect(Connect { port: port.into() }));
    assert!(matches!(host.next(id), Answer::Connected(_)));
    id
}

fn received(host: &mut Host, id: u64, until_eof: bool) -> Vec<u8> {
    let mut data = Vec::new();
    loop {
        match host.next(id) {
            Answer::Output(output) => {
                data.extend_from_slice(&output.data);
                if output.eof || !until_eof {
                    return data;
                }
            }
            Answer::Credit(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn both_directions_end_by_themselves() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address).unwrap();
        let port = listener.local_addr().unwrap().port();
        // The host ends first, the server answers after that.
        let id = connect(&mut host, port);
        let (mut server, _) = listener.accept().unwrap();
        host.input(id, b"question", true);
        let mut question = String::new();
        server.read_to_string(&mut question).unwrap();
        assert_eq!(question, "question");
        server.write_all(&vec![b'a'; 200_000]).unwrap();
        drop(server);
        assert_eq!(received(&mut host, id, true).len(), 200_000);
        // The host does not wait for the connection before it speaks and ends.
        let id = host.ask(Ask::Connect(Connect { port: port.into() }));
        host.input(id, b"early", true);
        let (mut server, _) = listener.accept().unwrap();
        let mut word = String::new();
        server.read_to_string(&mut word).unwrap();
        assert_eq!(word, "early");
        drop(server);
        assert!(matches!(host.next(id), Answer::Connected(_)));
        assert_eq!(received(&mut host, id, true), b"");
        // The server ends first, the host goes on.
        let id = connect(&mut host, port);
        let (mut server, _) = listener.accept().unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(received(&mut host, id, true), b"");
        host.input(id, b"late", false);
        host.input(id, b" word", true);
        let mut word = String::new();
        server.read_to_string(&mut word).unwrap();
        assert_eq!(word, "late word");
        assert!(host.next_within(id, Duration::from_millis(50)).is_none());
        // It is over: the number can be used again.
        host.say(id, Ask::Connect(Connect { port: port.into() }));
        assert!(matches!(host.next(id), Answer::Connected(_)));
    }
}

#[test]
fn nobody_there() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let failure = host.failure(Ask::Connect(Connect { port: port.into() }));
    assert_eq!(failure.kind(), FailureKind::Refused, "{failure:?}");
    for port in [0, 65_536, u32::MAX] {
        let failure = host.failure(Ask::Connect(Connect { port }));
        assert_eq!(failure.kind(), FailureKind::Invalid, "{failure:?}");
    }
}

#[test]
fn a_server_that_does_not_read_blocks_nobody() {
    let guest = Guest::plain(&[]);
    let mut host = guest.host();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let id = connect(&mut host, listener.local_addr().unwrap().port());
    let (server, _) = listener.accept().unwrap();
    // Until no credit comes any more.
    let mut sent = 0_usize;
    let mut credit = hearth::guest::wire::FIRST_CREDIT;
    while credit > 0 {
        let piece = credit.min(16 << 10);
        host.input(id, &vec![0; piece], false);
        (sent, credit) = (sent + piece, credit - piece);
        while let Some(Answer::Credit(more)) =
            host.next_within(id, Duration::from_millis(if credit == 0 { 300 } else { 0 }))
        {
            credit += usize::try_from(more.bytes).unwrap();
        }
        assert!(sent < 64 << 20);
    }
    println!("{sent} bytes before the back-pressure");
    host.ping();
    assert_eq!(host.sh("echo beside"), "beside\n");
    // A connection that breaks is told.
    drop(server);
    match host.next(id) {
        Answer::Failure(failure) => assert_eq!(failure.kind(), FailureKind::Io, "{failure:?}"),
        Answer::Credit(_) | Answer::Output(_) => {}
        other => panic!("{other:?}"),
    }
    host.ping();
}
