//! The order of a shutdown, and what health says.

use super::*;
use crate::driver::Phase;
use crate::rpc::guest_fakes::Manner;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;

fn check() -> HealthCheckRequest {
    HealthCheckRequest {
        service: String::new(),
    }
}

#[tokio::test]
async fn health_follows_the_phase() {
    let bench = Bench::start().await;
    let mut client = HealthClient::new(bench.channel().await);
    let mut watch = client.watch(check()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, SERVING);
    for (phase, status) in [(Phase::Recovering, NOT_SERVING), (Phase::Degraded, SERVING)] {
        bench.driver.phase.send_replace(phase);
        assert_eq!(
            watch.message().await.unwrap().unwrap().status,
            status,
            "{phase:?}"
        );
    }
}

#[tokio::test]
async fn a_shutdown_says_so_ends_watches_lets_calls_finish_and_ends_streams_last() {
    let mut bench = Bench::with(|config| config.limits.shutdown = Duration::from_secs(2)).await;
    let (claim_id, _) = bench.claimed().await;
    let mut health = HealthClient::new(bench.channel().await)
        .watch(check())
        .await
        .unwrap()
        .into_inner();
    health.message().await.unwrap();
    let mut watch = bench
        .claims()
        .await
        .watch(WatchClaimsRequest::default())
        .await
        .unwrap()
        .into_inner();
    watch.message().await.unwrap();
    *bench.driver.manner.lock().unwrap() = Manner::Silent;
    let start = ExecStart {
        claim_id,
        command: vec!["true".into()],
        ..Default::default()
    };
    let start = ExecRequest {
        request: Some(exec_request::Request::Start(start)),
    };
    let mut exec = bench
        .sandboxes()
        .await
        .exec(tokio_stream::iter([start]))
        .await
        .unwrap()
        .into_inner();
    bench.driver.answering.send_replace(false);
    let mut client = bench.claims().await;
    let claim = tokio::spawn(async move { client.claim(claim_request()).await });
    let begun = || {
        bench
            .driver
            .claims_begun
            .load(std::sync::atomic::Ordering::SeqCst)
    };
    eventually("the claim has begun", || begun() == 2).await;

    bench.stop.cancel();
    assert_eq!(health.message().await.unwrap().unwrap().status, NOT_SERVING);
    let ended = loop {
        match watch.message().await {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    refused(ended, Code::Unavailable, "SHUTTING_DOWN");
    assert!(!claim.is_finished(), "the call may finish");
    bench.driver.answering.send_replace(true);
    claim.await.unwrap().unwrap();
    refused(exec.message().await, Code::Unavailable, "SHUTTING_DOWN");
    let server = bench.server.take().unwrap();
    tokio::time::timeout(PATIENCE, server)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(
        tokio::net::UnixStream::connect(bench.socket())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn clients_that_do_not_go_are_cut() {
    let mut bench = Bench::start().await;
    let _idle = tokio::net::UnixStream::connect(bench.socket())
        .await
        .unwrap();
    bench.driver.answering.send_replace(false);
    let mut client = bench.claims().await;
    let claim = tokio::spawn(async move { client.claim(claim_request()).await });
    let begun = || {
        bench
            .driver
            .claims_begun
            .load(std::sync::atomic::Ordering::SeqCst)
    };
    eventually("the claim has begun", || begun() == 1).await;
    bench.stop.cancel();
    refused(claim.await.unwrap(), Code::Unavailable, "SHUTTING_DOWN");
    let server = bench.server.take().unwrap();
    tokio::time::timeout(PATIENCE, server)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    bench.counted("hearth_rpc_connections 0").await;
}
