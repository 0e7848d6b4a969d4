//! HELLO and ACK: stale bytes, full FIFOs, guests that are late, deaf or of another version.

use super::*;
use crate::guest::wire;
use bytes::BufMut;
use std::io::Read;

/// The head of a record of full length whose rest never comes.
fn cut_record() -> Vec<u8> {
    wire::records(7, &[3; 4000]).concat()[..50].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_bytes_in_both_fifos_are_thrown_away() {
    let rig = Rig::new();
    let mut stale = wire::records(7, &[1; 10_000]).concat();
    stale.put_slice(&wire::ack(7));
    stale.put_slice(&cut_record());
    let length = stale.len();
    let mut guest = FakeGuest::open(&rig.paths);
    guest.raw(&stale);
    let mut towards_guest = std::fs::File::options()
        .write(true)
        .open(&rig.paths.stdin)
        .unwrap();
    std::io::Write::write_all(&mut towards_guest, &stale).unwrap();
    let guest = std::thread::spawn(move || {
        guest.align();
        let (call, body) = guest.message();
        assert_eq!(body, Hears::Ping(v1::Ping::default()));
        guest.say(call, pong());
    });
    let host = rig.connect();
    assert_eq!(host.ping(LONG).await, Ok("1.2.3".to_owned()));
    guest.join().unwrap();
    #[allow(clippy::cast_precision_loss)]
    let length = length as f64;
    assert!(rig.metric("hearth_guest_junk_bytes_total", "") == length);
    assert!(rig.metric("hearth_guest_sessions_total", "") == 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_waits_for_room_while_stdout_is_drained() {
    let rig = Rig::new();
    let mut guest = FakeGuest::open(&rig.paths);
    guest.leave_full();
    let host = rig.connect();
    // Nobody reads stdin, so no HELLO is in; still the host drains what the guest says.
    assert!(matches!(host.ping(SHORT).await, Err(GuestError::Silent(_))));
    assert!(guest.try_raw(&[0; 100_000], LONG));
    let guest = std::thread::spawn(move || {
        guest.align();
        let (call, _) = guest.message();
        guest.say(call, pong());
    });
    assert_eq!(host.ping(LONG).await, Ok("1.2.3".to_owned()));
    guest.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unread_hello_is_not_said_again() {
    let rig = Rig::new();
    let host = rig.connect();
    for _ in 0..2 {
        let ping = host.ping(Duration::from_millis(600)).await;
        assert_eq!(
            ping,
            Err(GuestError::Silent("no alignment within the deadline"))
        );
    }
    let mut stdin = std::fs::File::open(&rig.paths.stdin).unwrap();
    host.close();
    fifos_closed(&rig.paths).await;
    let mut unread = Vec::new();
    stdin.read_to_end(&mut unread).unwrap();
    assert_eq!(unread.len(), wire::RECORD_BYTES);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_hello_is_said_again_with_another_nonce_and_only_its_ack_counts() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        let first = guest.hello();
        let second = guest.hello();
        assert_ne!(first, second);
        // What belongs to the first session is stale, its ACK included.
        guest.session = first;
        guest.raw(&wire::ack(first));
        guest.say(1, pong());
        guest.session = second;
        guest.raw(&wire::ack(second));
        let (call, _) = guest.message();
        guest.say(call, pong());
    });
    let host = rig.connect();
    assert_eq!(host.ping(LONG).await, Ok("1.2.3".to_owned()));
    guest.join().unwrap();
    assert!(rig.metric("hearth_guest_sessions_total", "") == 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_stands_before_the_first_call() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        guest.try_record(SHORT)
    });
    let _host = rig.connect();
    let after = guest.join().unwrap();
    assert_eq!(after, None, "an idle host says nothing more");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_of_the_protocol_fails_the_channel() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        let session = guest.hello();
        guest.raw(&ack_of(session, wire::PROTOCOL + 1));
    });
    let host = rig.connect();
    let error = GuestError::Protocol("another version of the protocol");
    assert_eq!(host.ping(LONG).await, Err(error.clone()));
    assert_eq!(failure(&host).await, error);
    guest.join().unwrap();
    fifos_closed(&rig.paths).await;
    assert!(rig.metric("hearth_guest_protocol_errors_total", "") == 1.0);
}

/// An ACK that tells another version, built by hand.
fn ack_of(session: u64, protocol: u32) -> Vec<u8> {
    let mut bytes = wire::ack(session)[..16].to_vec();
    let payload = protocol.to_le_bytes();
    let crc = crc32fast::hash(&[bytes.as_slice(), &payload].concat());
    bytes.put_u32_le(crc);
    bytes.put_slice(&payload);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_ack_is_none_and_the_next_one_counts() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        let session = guest.hello();
        let ack = wire::ack(session);
        let mut damaged = ack.to_vec();
        damaged[17] ^= 1;
        guest.raw(&damaged);
        // In two pieces, with a pause: the host must join them.
        guest.raw(&ack[..9]);
        std::thread::sleep(Duration::from_millis(20));
        guest.raw(&ack[9..]);
        let (call, _) = guest.message();
        guest.say(call, pong());
    });
    let host = rig.connect();
    assert_eq!(host.ping(LONG).await, Ok("1.2.3".to_owned()));
    guest.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_instead_of_an_ack_fails_the_channel() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        let session = guest.hello();
        // As bad as it gets: all the head of the right ACK, and never one.
        let flood = wire::ack(session)[..16].repeat(4096);
        guest.flood(&flood);
    });
    let host = rig.connect();
    let error = GuestError::Protocol("a flood instead of an answer to HELLO");
    assert_eq!(failure(&host).await, error);
    assert_eq!(host.ping(LONG).await, Err(error));
    rig.over();
    guest.join().unwrap();
}

#[tokio::test]
async fn what_is_no_fifo_is_an_error() {
    let rig = Rig::new();
    std::fs::remove_file(&rig.paths.stdout).unwrap();
    assert!(rig.connector.connect(&rig.paths).is_err());
    std::fs::write(&rig.paths.stdout, "").unwrap();
    assert!(rig.connector.connect(&rig.paths).is_err());
}
