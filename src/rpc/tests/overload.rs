//! Overload is an answer; hostile peers and guests get no further than their own call.

use super::*;
use crate::rpc::bounds;
use crate::rpc::guest_fakes::Manner;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

#[tokio::test]
async fn claims_that_wait_starve_neither_releases_nor_reads() {
    let bench = Bench::start().await;
    let (claim_id, _) = bench.claimed().await;
    bench.driver.answering.send_replace(false);
    let client = bench.claims().await;
    let mut waiting = tokio::task::JoinSet::new();
    let wait = ClaimRequest {
        on_empty: OnEmpty::Wait.into(),
        wait_timeout: Some(prost_types::Duration {
            seconds: 60,
            nanos: 0,
        }),
        ..claim_request()
    };
    for _ in 0..bounds::CLAIMS_PER_CALLER {
        // One channel takes as many streams as there is room for claims; a second one for the calls below.
        let (mut client, request) = (
            client.clone(),
            ClaimRequest {
                claim_id: uuid::Uuid::new_v4().to_string(),
                ..wait.clone()
            },
        );
        waiting.spawn(async move { client.claim(request).await });
    }
    let begun = || bench.driver.claims_begun.load(Ordering::SeqCst) as usize;
    eventually("all claims are waiting", || {
        begun() == bounds::CLAIMS_PER_CALLER + 1
    })
    .await;
    let status = refused(
        bench.claims().await.claim(claim_request()).await,
        Code::ResourceExhausted,
        "QUEUE_FULL",
    );
    assert!(status.get_error_details().retry_info().is_some());
    bench
        .claims()
        .await
        .get(GetClaimRequest {
            claim_id: claim_id.clone(),
        })
        .await
        .unwrap();
    bench
        .claims()
        .await
        .release(ReleaseRequest { claim_id, epoch: 1 })
        .await
        .unwrap();
    waiting.abort_all();
    while waiting.join_next().await.is_some() {}
    bench.driver.answering.send_replace(true);
    // The room is free again: nothing was left behind by those that went away.
    let mut outcome = String::new();
    for _ in 0..1000 {
        let answer = bench.claims().await.claim(claim_request()).await;
        outcome = answer.map_or_else(|status| reason(&status), |_| "granted".to_owned());
        if outcome != "QUEUE_FULL" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_ne!(outcome, "QUEUE_FULL");
}

#[tokio::test]
async fn a_full_driver_is_told_as_it_is() {
    let bench = Bench::start().await;
    bench.driver.full.store(true, Ordering::SeqCst);
    let status = refused(
        bench.claims().await.claim(claim_request()).await,
        Code::ResourceExhausted,
        "QUEUE_FULL",
    );
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().metadata["queue"], "requests");
    assert_eq!(
        details.retry_info().unwrap().retry_delay,
        Some(Duration::from_millis(20))
    );
}

#[tokio::test]
async fn connections_are_bounded_and_the_next_one_is_closed_at_once() {
    let bench = Bench::start().await;
    let mut held = Vec::new();
    for _ in 0..bounds::KNOWN_CONNECTIONS {
        held.push(UnixStream::connect(bench.socket()).await.unwrap());
    }
    bench
        .counted(&format!(
            "hearth_rpc_connections {}",
            bounds::KNOWN_CONNECTIONS
        ))
        .await;
    let mut next = UnixStream::connect(bench.socket()).await.unwrap();
    let mut byte = [0; 1];
    let closed = tokio::time::timeout(PATIENCE, next.read(&mut byte))
        .await
        .unwrap();
    assert_eq!(closed.unwrap_or(0), 0);
    bench
        .counted("hearth_rpc_connections_refused_total 1")
        .await;
    drop(held);
    bench.counted("hearth_rpc_connections 0").await;
    bench.claimed().await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let bench = Bench::start().await;
    let mut idle = UnixStream::connect(bench.socket()).await.unwrap();
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, idle.read_to_end(&mut answer)).await;
    // Reset or end, whichever.
    let _ = closed.expect("it is still open");
    bench.counted("hearth_rpc_connections 0").await;
}

#[tokio::test]
async fn junk_on_the_socket_ends_its_own_connection_only() {
    let bench = Bench::start().await;
    let mut client = bench.claims().await;
    let junk: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    for start in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"",
    ] {
        let mut stream = UnixStream::connect(bench.socket()).await.unwrap();
        // The server may close while we still write.
        let _ = stream.write_all(start).await;
        let _ = stream.write_all(&junk).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .unwrap();
    }
    client.list(ListClaimsRequest::default()).await.unwrap();
}

#[tokio::test]
async fn streams_in_one_sandbox_are_bounded() {
    let bench = Bench::start().await;
    *bench.driver.manner.lock().unwrap() = Manner::Silent;
    let (claim_id, _) = bench.claimed().await;
    let (other, _) = bench.claimed().await;
    let mut client = bench.sandboxes().await;
    let start = |claim_id: &str| {
        let start = ExecStart {
            claim_id: claim_id.into(),
            command: vec!["true".into()],
            ..Default::default()
        };
        tokio_stream::iter([ExecRequest {
            request: Some(exec_request::Request::Start(start)),
        }])
    };
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(client.exec(start(&claim_id)).await.unwrap());
    }
    let status = refused(
        client.exec(start(&claim_id)).await.map(drop),
        Code::ResourceExhausted,
        "QUEUE_FULL",
    );
    assert_eq!(
        status.get_error_details().error_info().unwrap().metadata["queue"],
        "executions"
    );
    client.exec(start(&other)).await.unwrap();
    open.pop();
    for attempt in 0.. {
        match client.exec(start(&claim_id)).await {
            Ok(_) => break,
            Err(_) if attempt < 1000 => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(status) => panic!("the place did not come back: {status:?}"),
        }
    }
}

#[tokio::test]
async fn a_lying_guest_fails_its_own_calls_only() {
    let bench = Bench::start().await;
    *bench.driver.manner.lock().unwrap() = Manner::Lying;
    let (claim_id, _) = bench.claimed().await;
    let mut client = bench.sandboxes().await;
    let path = || "/x".to_owned();
    let read = ReadFileRequest {
        claim_id: claim_id.clone(),
        path: path(),
        ..Default::default()
    };
    let mut answers = client.read_file(read).await.unwrap().into_inner();
    refused(
        answers.message().await,
        Code::Unavailable,
        "GUEST_UNAVAILABLE",
    );
    let start = ExecStart {
        claim_id: claim_id.clone(),
        command: vec!["true".into()],
        ..Default::default()
    };
    let start = ExecRequest {
        request: Some(exec_request::Request::Start(start)),
    };
    let mut answers = client
        .exec(tokio_stream::iter([start]))
        .await
        .unwrap()
        .into_inner();
    refused(
        answers.message().await,
        Code::Unavailable,
        "GUEST_UNAVAILABLE",
    );
    let start = WriteFileStart {
        claim_id: claim_id.clone(),
        path: path(),
        ..Default::default()
    };
    let whole = [
        write_file_request::Request::Start(start),
        write_file_request::Request::Eof(true),
    ];
    let whole = whole.map(|request| WriteFileRequest {
        request: Some(request),
    });
    let written = client.write_file(tokio_stream::iter(whole)).await;
    refused(written, Code::Unavailable, "GUEST_UNAVAILABLE");
    let start = ConnectStart {
        claim_id: claim_id.clone(),
        port: 80,
    };
    let start = ConnectRequest {
        request: Some(connect_request::Request::Start(start)),
    };
    let mut answers = client
        .connect(tokio_stream::iter([start]))
        .await
        .unwrap()
        .into_inner();
    refused(
        answers.message().await,
        Code::Unavailable,
        "GUEST_UNAVAILABLE",
    );
    *bench.driver.manner.lock().unwrap() = Manner::Silent;
    refused(
        client
            .stats(StatsRequest {
                claim_id,
                ..StatsRequest::default()
            })
            .await,
        Code::Unavailable,
        "GUEST_UNAVAILABLE",
    );
}
