//! How calls and channels end before their time: cancel, deadline, limit, silence, close.

use super::*;
use crate::guest::channel::limits::SHORT_CALLS;
use crate::guest::wire::FIRST_CREDIT;

fn quick() -> ChannelConfig {
    ChannelConfig {
        start_deadline: SHORT,
        ..ChannelConfig::default()
    }
}

/// The Cancel of a call and a ping, in any order; the ping's id.
fn cancel_and_ping(guest: &mut FakeGuest, call: u64) -> u64 {
    let mut heard = [guest.message(), guest.message()];
    heard.sort_by_key(|(id, _)| *id);
    let [cancel, (ping, body)] = heard;
    assert_eq!(cancel, (call, Hears::Cancel(v1::Cancel {})));
    assert_eq!(body, Hears::Ping(v1::Ping::default()));
    ping
}

const SILENT: GuestError = GuestError::Silent("no answer within the deadline");

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_output_cancels_and_late_messages_are_no_fault() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let (call, _) = guest.message();
        guest.say(call, started());
        let ping = cancel_and_ping(guest, call);
        for _ in 0..64 {
            guest.say(call, stdout(&[0; FIRST_CREDIT / 64]));
        }
        guest.say(call, Says::Credit(v1::Credit { bytes: 100 }));
        guest.say(call, exited(0));
        guest.say(ping, pong());
    });
    let host = rig.connect();
    let GuestStream { input, output } = host.exec(exec("yes")).await.unwrap();
    drop(output);
    assert_eq!(host.ping(LONG).await, Ok("1.2.3".to_owned()));
    guest.join().unwrap();
    assert!(input.is_closed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_call_that_goes_on_breaks_the_protocol() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let (call, _) = guest.message();
        guest.say(call, started());
        guest.message();
        // Less than its credit and what a cancelled call may still bring, then too much.
        for _ in 0..160 {
            guest.say(call, stdout(&[0; 1000]));
        }
    });
    let host = rig.connect();
    let GuestStream { input, output } = host.exec(exec("yes")).await.unwrap();
    drop(output);
    let error = GuestError::Protocol("a message after the last of its call");
    assert_eq!(failure(&host).await, error);
    drop(input);
    guest.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_given_up_before_it_was_sent_is_never_sent() {
    let rig = Rig::new();
    let host = rig.connect();
    let gone = tokio::time::timeout(SHORT, host.exec(exec("never"))).await;
    assert!(gone.is_err());
    tokio::time::sleep(Duration::from_millis(50)).await;
    let guest = rig.run(|guest| {
        guest.align();
        let (call, body) = guest.message();
        guest.say(call, pong());
        body
    });
    assert_eq!(host.ping(LONG).await, Ok("1.2.3".to_owned()));
    assert_eq!(guest.join().unwrap(), Hears::Ping(v1::Ping::default()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_while_an_exec_starts_cancels_it() {
    let rig = Rig::new();
    let (asked, was_asked) = tokio::sync::oneshot::channel();
    let guest = rig.run(|guest| {
        guest.align();
        let (call, _) = guest.message();
        asked.send(()).unwrap();
        let ping = cancel_and_ping(guest, call);
        guest.say(call, started());
        guest.say(ping, pong());
    });
    let host = rig.connect();
    tokio::select! {
        stream = host.exec(exec("slow")) => panic!("{stream:?}"),
        asked = was_asked => asked.unwrap(),
    }
    host.ping(LONG).await.unwrap();
    guest.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_answer_is_no_fault() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let (slow, _) = guest.message();
        // Something else is heard meanwhile: the channel is not stale.
        let (exec, _) = guest.message();
        guest.say(exec, started());
        let (ping, _) = guest.message();
        guest.say(slow, pong());
        guest.say(ping, pong());
    });
    let host = rig.connect();
    let slow = host.ping(2 * SHORT);
    let other = async { host.exec(exec("x")).await.unwrap() };
    let (slow, stream) = tokio::join!(slow, other);
    assert_eq!(slow, Err(SILENT));
    assert_eq!(host.ping(LONG).await, Ok("1.2.3".to_owned()));
    guest.join().unwrap();
    drop(stream);
    assert!(rig.metric("hearth_guest_sessions_total", "") == 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_does_not_start_in_time_is_silent_and_cancelled() {
    let rig = Rig::with(quick());
    let guest = rig.run(|guest| {
        guest.align();
        let (call, _) = guest.message();
        (call, guest.message())
    });
    let host = rig.connect();
    let error = host.exec(exec("slow")).await.unwrap_err();
    assert_eq!(error, SILENT);
    let (call, heard) = guest.join().unwrap();
    assert_eq!(heard, (call, Hears::Cancel(v1::Cancel {})));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_silence_the_next_call_begins_a_new_session() {
    let rig = Rig::new();
    let (resume, frozen) = std::sync::mpsc::sync_channel::<()>(1);
    let guest = rig.run(move |guest| {
        guest.align();
        let first = guest.session;
        let (call, _) = guest.message();
        guest.say(call, started());
        frozen.recv().unwrap();
        // Output of the old session, on its way when it was replaced.
        guest.say(call, stdout(b"stale"));
        guest.align();
        assert_ne!(guest.session, first);
        let (call, body) = guest.message();
        guest.say(call, pong());
        body
    });
    let host = rig.connect();
    let mut stream = host.exec(exec("x")).await.unwrap();
    assert!(matches!(
        next(&mut stream).await,
        Some(Ok(StreamItem::Started { .. }))
    ));
    assert_eq!(host.ping(SHORT).await, Err(SILENT));
    let (pinged, ()) = tokio::join!(host.ping(LONG), async {
        tokio::time::sleep(SHORT).await;
        resume.send(()).unwrap();
    });
    assert_eq!(pinged, Ok("1.2.3".to_owned()));
    assert_eq!(drain(&mut stream).await, [Err(GuestError::Closed)]);
    assert_eq!(guest.join().unwrap(), Hears::Ping(v1::Ping::default()));
    assert!(rig.metric("hearth_guest_sessions_total", "") == 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ended_before_a_new_session_keeps_its_items() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let (call, _) = guest.message();
        guest.say(call, started());
        guest.say(call, stdout(b"all"));
        guest.say(call, exited(0));
        let (call, _) = guest.message();
        guest.say(call, pong());
        guest.align();
        let (call, _) = guest.message();
        guest.say(call, pong());
    });
    let host = rig.connect();
    let mut stream = host.exec(exec("x")).await.unwrap();
    host.ping(LONG).await.unwrap();
    assert_eq!(host.ping(SHORT).await, Err(SILENT));
    host.ping(LONG).await.unwrap();
    let items = drain(&mut stream).await;
    assert_eq!(items.len(), 3, "{items:?}");
    assert!(matches!(items[2], Ok(StreamItem::Exited { .. })));
    guest.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_reads_nothing_is_silent_and_not_failed() {
    let rig = Rig::new();
    let guest = rig.run(|guest| guest.align());
    let host = rig.connect();
    guest.join().unwrap();
    let big = v1::Exec {
        env: [("BIG".to_owned(), "x".repeat(300_000))].into(),
        ..exec("x")
    };
    let stuck = tokio::time::timeout(SHORT, host.exec(big)).await;
    assert!(stuck.is_err());
    for _ in 0..3 {
        assert!(matches!(host.ping(SHORT).await, Err(GuestError::Silent(_))));
    }
    assert!(tokio::time::timeout(SHORT, host.failed()).await.is_err());
    // It reads again: half a message of the old session is dropped with it.
    let guest = rig.run(|guest| {
        guest.align();
        let (call, _) = guest.message();
        guest.say(call, pong());
    });
    assert_eq!(host.ping(LONG).await, Ok("1.2.3".to_owned()));
    guest.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_and_streams_in_flight_are_limited() {
    let rig = Rig::with(ChannelConfig {
        streams: 2,
        ..ChannelConfig::default()
    });
    let guest = rig.run(|guest| {
        guest.align();
        serve(guest);
    });
    let host = rig.connect();
    let first = host.exec(exec("a")).await.unwrap();
    let _second = host.exec(exec("b")).await.unwrap();
    assert_eq!(host.exec(exec("c")).await.unwrap_err(), GuestError::Limit);
    // Streams do not use up the room of short calls, and a stream that ended frees its place.
    host.ping(LONG).await.unwrap();
    drop(first);
    let until = tokio::time::Instant::now() + LONG;
    while host.exec(exec("d")).await.is_err() {
        assert!(tokio::time::Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    host.close();
    drop(guest);
}

#[tokio::test(flavor = "multi_thread")]
async fn short_calls_in_flight_are_limited() {
    let rig = Rig::new();
    let host = rig.connect();
    let pings = futures::future::join_all((0..=SHORT_CALLS).map(|_| host.ping(SHORT))).await;
    let limited = pings.iter().filter(|ping| **ping == Err(GuestError::Limit));
    assert_eq!(limited.count(), 1);
    let silent = |ping: &&Result<String, _>| matches!(ping, Err(GuestError::Silent(_)));
    assert_eq!(pings.iter().filter(silent).count(), SHORT_CALLS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_beyond_its_bound_is_refused_here() {
    let rig = Rig::new();
    let host = rig.connect();
    let what = crate::guest::Personalization {
        files: vec![("/big".to_owned(), vec![0; 8 << 20].into(), 0o600)],
        ..Default::default()
    };
    let refused = host.personalize("c", &what, LONG).await;
    assert_eq!(refused, Err(GuestError::Limit));
}

#[tokio::test(flavor = "multi_thread")]
async fn close_ends_every_call_and_frees_the_fifos() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let (call, _) = guest.message();
        guest.say(call, started());
    });
    let host = rig.connect();
    let mut stream = host.exec(exec("x")).await.unwrap();
    guest.join().unwrap();
    let (pinged, ()) = tokio::join!(host.ping(LONG), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        host.close();
    });
    assert_eq!(pinged, Err(GuestError::Closed));
    let items = drain(&mut stream).await;
    assert_eq!(items.last(), Some(&Err(GuestError::Closed)));
    assert_eq!(failure(&host).await, GuestError::Closed);
    assert_eq!(host.ping(LONG).await, Err(GuestError::Closed));
    assert_eq!(host.exec(exec("x")).await.unwrap_err(), GuestError::Closed);
    fifos_closed(&rig.paths).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_last_guest_closes_and_another_connector_attaches() {
    let rig = Rig::new();
    let guest = rig.run(|guest| {
        guest.align();
        let (call, _) = guest.message();
        guest.say(call, started());
        guest.say(call, stdout(&[1; FIRST_CREDIT]));
        guest.align();
        let (call, _) = guest.message();
        guest.say(call, pong());
    });
    let host = rig.connect();
    let mut stream = host.exec(exec("x")).await.unwrap();
    drop(host);
    let items = drain(&mut stream).await;
    assert_eq!(items.last(), Some(&Err(GuestError::Closed)));
    let host = rig.connect();
    assert_eq!(host.ping(LONG).await, Ok("1.2.3".to_owned()));
    guest.join().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_channel_closes_the_first_and_nothing_is_stolen() {
    let rig = Rig::new();
    let guest = rig.run(serve);
    for _ in 0..200 {
        let first = rig.connect();
        let mut stream = first.exec(exec("x")).await.unwrap();
        let second = rig.connect();
        // With two readers of one FIFO answers would get lost now.
        for _ in 0..5 {
            assert_eq!(second.ping(LONG).await, Ok("1.2.3".to_owned()));
        }
        let items = drain(&mut stream).await;
        assert_eq!(items.last(), Some(&Err(GuestError::Closed)));
        assert_eq!(failure(&first).await, GuestError::Closed);
        assert_eq!(rig.connector.openings.count(), 1);
    }
    let until = tokio::time::Instant::now() + LONG;
    while rig.connector.openings.count() > 0 {
        assert!(
            tokio::time::Instant::now() < until,
            "an ended channel is still noted"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rig.over();
    guest.join().unwrap();
}
