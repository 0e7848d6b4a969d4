//! The small parts by themselves.

use crate::guest::channel::alignment::Alignment;
use crate::guest::channel::limits::{HELLO_LONGEST_PAUSE, HELLO_PAUSE};
use crate::guest::channel::outgoing::Outgoing;
use crate::guest::channel::pace::Pace;
use crate::guest::channel::text::escaped;
use crate::guest::v1::{self, host_message::Body};
use crate::guest::wire;
use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use std::time::Duration;
use tokio::time::Instant;

fn secret_message(length: usize) -> Outgoing {
    let secret = v1::GuestFile {
        path: "token".to_owned(),
        content: Bytes::from(vec![0x5e; length]),
        mode: 0o600,
    };
    let claim = v1::Claim {
        secrets: vec![secret],
        ..v1::Claim::default()
    };
    Outgoing::encode(1, Body::Claim(claim)).unwrap()
}

#[test]
fn what_was_written_of_a_message_is_wiped_at_once() {
    let mut message = secret_message(20_000);
    let mut record = BytesMut::new();
    let mut wiped = 0;
    while !message.is_written() {
        record.clear();
        let carried = message.put_record(9, &mut record);
        message.advance(carried);
        wiped += carried;
        let (written, rest) = message.memory().split_at(wiped);
        assert!(written.iter().all(|byte| *byte == 0));
        assert!(rest.is_empty() || rest.contains(&0x5e));
    }
    assert!(wiped > 20_000);
}

#[test]
fn a_message_goes_out_as_the_records_of_wire() {
    let mut message = secret_message(10_000);
    let whole = message.memory().to_vec();
    let mut records = Vec::new();
    while !message.is_written() {
        let mut record = BytesMut::new();
        let carried = message.put_record(9, &mut record);
        records.push(record.freeze());
        message.advance(carried);
    }
    assert_eq!(records, wire::records(9, &whole));
}

#[test]
fn a_rate_allows_a_burst_and_then_so_many_per_second() {
    let start = Instant::now();
    let mut pace = Pace::new(1000, 100);
    assert_eq!(pace.room(start), 100);
    pace.spend(100, start);
    assert_eq!((pace.resumes_at(start), pace.room(start)), (None, 0));
    pace.spend(50, start);
    assert_eq!(
        pace.resumes_at(start),
        Some(start + Duration::from_millis(50))
    );
    let later = start + Duration::from_millis(50);
    assert_eq!(pace.resumes_at(later), None);
    assert_eq!(pace.room(later + Duration::from_millis(10)), 10);
    let much_later = start + Duration::from_secs(3600);
    assert_eq!(
        pace.room(much_later),
        100,
        "idle time saves up no more than a burst"
    );
    pace.spend(usize::MAX, start);
    assert!(pace.resumes_at(start).is_some());
}

#[test]
fn hello_is_repeated_with_doubling_pauses() {
    let now = Instant::now();
    let mut alignment = Alignment::begin().unwrap();
    assert!(alignment.hello().is_some() && alignment.repeats_at().is_none());
    let mut pause = HELLO_PAUSE;
    for _ in 0..10 {
        alignment.was_written(now);
        assert_eq!(alignment.hello(), None);
        assert_eq!(alignment.repeats_at(), Some(now + pause));
        let nonce = alignment.nonce();
        alignment.repeat(true, now).unwrap();
        assert_eq!((alignment.nonce(), alignment.hello()), (nonce, None));
        alignment.repeat(false, now).unwrap();
        assert_ne!(alignment.nonce(), nonce);
        assert!(alignment.hello().is_some());
        pause = (pause * 2).min(HELLO_LONGEST_PAUSE);
    }
}

proptest! {
    #[test]
    fn an_ack_is_found_in_any_pieces(
        junk in proptest::collection::vec(any::<u8>(), 0..300),
        heads in 0usize..4,
        piece in 1usize..64,
    ) {
        let mut alignment = Alignment::begin().unwrap();
        let ack = wire::ack(alignment.nonce());
        let mut bytes = junk.clone();
        for at in 0..heads {
            bytes.extend_from_slice(&ack[..ack.len() - 1 - at]);
        }
        let before = bytes.len();
        bytes.extend_from_slice(&ack);
        bytes.extend_from_slice(b"rest");
        let mut rest = None;
        for part in bytes.chunks(piece) {
            match &mut rest {
                None => rest = alignment.find_ack(part).unwrap().map(|rest| rest.to_vec()),
                Some(rest) => rest.extend_from_slice(part),
            }
        }
        prop_assert_eq!(rest, Some(b"rest".to_vec()));
        prop_assert_eq!(alignment.thrown_away(), before as u64);
    }

    #[test]
    fn escaped_text_is_bounded_and_holds_nothing_unsafe(
        bytes in proptest::collection::vec(any::<u8>(), 0..2000),
        bound in 0usize..1000,
    ) {
        let text = escaped(&bytes, bound);
        prop_assert!(text.len() <= bound);
        let unsafe_char = |c: char| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{200e}');
        prop_assert!(!text.chars().any(unsafe_char));
    }
}
