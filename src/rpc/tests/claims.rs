//! Claims and pools over the wire: what rpc adds to the machine's answers.

use super::*;
use crate::machine::ids::{ClaimId, NodeTag};
use std::sync::atomic::Ordering;
use tonic::Request;

#[tokio::test]
async fn a_claim_is_answered_with_all_that_a_caller_needs() {
    let bench = Bench::start().await;
    let mut request = claim_request();
    request.ttl = Some(prost_types::Duration {
        seconds: 60,
        nanos: 0,
    });
    request.personalization = Some(Personalization {
        secrets: vec![Secret {
            name: "k".into(),
            value: "hunter2".into(),
        }],
        ..Default::default()
    });
    let first = bench
        .claims()
        .await
        .claim(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(first.access_token.starts_with("hearth_"));
    assert_eq!(first.endpoints[0].name, "sandboxes");
    assert_eq!(first.endpoints[0].address, "unix:///run/hearth/hearth.sock");
    assert_eq!((first.source(), first.generation), (Source::Warm, 1));
    assert!(first.expires_at.is_some() && first.timings.is_some());
    let claim = ClaimId::parse(&request.claim_id).unwrap();
    assert_eq!(bench.driver.inside(claim).secrets[0].1, "hunter2");
    // Rule 1: the same answer; rule 2: other content is named.
    let again = bench
        .claims()
        .await
        .claim(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (&again.sandbox_id, &again.access_token),
        (&first.sandbox_id, &first.access_token)
    );
    request.personalization.as_mut().unwrap().secrets[0].value = "hunter3".into();
    let status = refused(
        bench.claims().await.claim(request).await,
        Code::AlreadyExists,
        "CLAIM_CONTENT_DIFFERS",
    );
    let details = status.get_error_details();
    assert_eq!(
        details.error_info().unwrap().metadata["field"],
        "personalization.secrets"
    );
    assert!(!status.message().contains("hunter"), "{}", status.message());
    bench
        .counted(r#"hearth_claims_total{code="OK",pool="python",source="warm"} 2"#)
        .await;
    bench
        .counted(r#"hearth_claims_total{code="ALREADY_EXISTS",pool="python",source=""} 1"#)
        .await;
}

#[tokio::test]
async fn an_empty_pool_tells_when_to_retry() {
    let bench = Bench::start().await;
    let (_first, _second) = (bench.claimed().await, bench.claimed().await);
    let status = refused(
        bench.claims().await.claim(claim_request()).await,
        Code::ResourceExhausted,
        "POOL_EMPTY",
    );
    let delay = status.get_error_details().retry_info().unwrap().retry_delay;
    assert_eq!(delay, Some(Duration::from_millis(10)));
    let cold = ClaimRequest {
        on_empty: OnEmpty::Cold.into(),
        ..claim_request()
    };
    let response = bench.claims().await.claim(cold).await.unwrap();
    assert_eq!(response.into_inner().source(), Source::Cold);
    let wait = ClaimRequest {
        on_empty: OnEmpty::Wait.into(),
        wait_timeout: Some(prost_types::Duration {
            seconds: 0,
            nanos: 20_000_000,
        }),
        ..claim_request()
    };
    refused(
        bench.claims().await.claim(wait).await,
        Code::ResourceExhausted,
        "WAIT_TIMED_OUT",
    );
}

#[tokio::test]
async fn a_callers_deadline_passes_while_its_claim_goes_on() {
    let bench = Bench::start().await;
    bench.driver.answering.send_replace(false);
    let request = claim_request();
    let mut client = bench.claims().await;
    let mut hurried = Request::new(request.clone());
    hurried.set_timeout(Duration::from_millis(300));
    // hearthd's answer, unless tonic's own timer is the first to fire on a busy machine.
    let code = client.claim(hurried).await.unwrap_err().code();
    assert!(
        [Code::DeadlineExceeded, Code::Cancelled].contains(&code),
        "{code:?}"
    );
    // It joins, and is answered as the first would have been.
    let (mut second, joined) = (client.clone(), request.clone());
    let joiner = tokio::spawn(async move { second.claim(joined).await });
    eventually("the second claim has begun", || {
        bench.driver.claims_begun.load(Ordering::SeqCst) == 2
    })
    .await;
    bench.driver.answering.send_replace(true);
    joiner.await.unwrap().unwrap();
    let found = client
        .get(GetClaimRequest {
            claim_id: request.claim_id,
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(found.claim.unwrap().state(), ClaimState::Claimed);
    // The caller left before its claim was answered; the joiner's was.
    bench
        .counted(r#"hearth_claims_total{code="CANCELLED",pool="unknown",source=""} 1"#)
        .await;
}

#[tokio::test]
async fn a_batch_has_one_result_each_in_order() {
    let bench = Bench::start().await;
    let good = claim_request();
    let claims = vec![
        good.clone(),
        ClaimRequest {
            epoch: 0,
            ..claim_request()
        },
        ClaimRequest {
            pool: "other".into(),
            ..claim_request()
        },
        ClaimRequest {
            claim_id: "x".into(),
            ..claim_request()
        },
        claim_request(),
    ];
    let ids: Vec<_> = claims.iter().map(|claim| claim.claim_id.clone()).collect();
    let batch = ClaimBatchRequest { claims };
    let results = bench
        .claims()
        .await
        .claim_batch(batch)
        .await
        .unwrap()
        .into_inner()
        .results;
    assert_eq!(
        results
            .iter()
            .map(|result| result.claim_id.clone())
            .collect::<Vec<_>>(),
        ids
    );
    let reasons: Vec<_> = results
        .into_iter()
        .map(|result| match result.result.unwrap() {
            claim_result::Result::Claim(claim) => claim.access_token[..7].to_owned(),
            claim_result::Result::Error(error) => error.reason,
        })
        .collect();
    assert_eq!(
        reasons,
        [
            "hearth_",
            "INVALID_ARGUMENT",
            "POOL_UNKNOWN",
            "INVALID_ARGUMENT",
            "hearth_"
        ]
    );
    let twice = ClaimBatchRequest {
        claims: vec![good.clone(), good],
    };
    let status = refused(
        bench.claims().await.claim_batch(twice).await,
        Code::InvalidArgument,
        "INVALID_ARGUMENT",
    );
    let details = status.get_error_details();
    assert_eq!(
        details.bad_request().unwrap().field_violations[0].field,
        "claims[1].claim_id"
    );
}

#[tokio::test]
async fn pages_are_complete_and_their_tokens_checked() {
    let bench = Bench::start().await;
    let mut expected = Vec::new();
    for _ in 0..4 {
        let request = ClaimRequest {
            on_empty: OnEmpty::Cold.into(),
            ..claim_request()
        };
        expected.push(request.claim_id.clone());
        bench.claims().await.claim(request).await.unwrap();
    }
    expected.sort();
    let mut client = bench.claims().await;
    let mut request = ListClaimsRequest {
        pool: POOL.into(),
        page_size: 3,
        page_token: String::new(),
    };
    let first = client.list(request.clone()).await.unwrap().into_inner();
    request.page_token.clone_from(&first.next_page_token);
    let second = client.list(request.clone()).await.unwrap().into_inner();
    assert_eq!(
        (first.claims.len(), second.next_page_token.as_str()),
        (3, "")
    );
    let found: Vec<_> = first
        .claims
        .into_iter()
        .chain(second.claims)
        .map(|claim| claim.claim_id)
        .collect();
    assert_eq!(found, expected);
    request.pool = "other".into();
    refused(
        client.list(request).await,
        Code::InvalidArgument,
        "INVALID_ARGUMENT",
    );
}

#[tokio::test]
async fn a_watch_shows_one_pool_and_goes_on_after_its_token() {
    let bench = Bench::start().await;
    let (claim_id, _) = bench.claimed().await;
    let mut client = bench.claims().await;
    let of = |pool: &str, token: &str| WatchClaimsRequest {
        pool: pool.into(),
        resume_token: token.into(),
    };
    let mut ours = client.watch(of(POOL, "")).await.unwrap().into_inner();
    let mut others = client.watch(of("other", "")).await.unwrap().into_inner();
    let first = ours.message().await.unwrap().unwrap();
    // Nobody can go on in the middle of a snapshot.
    assert_eq!(first.resume_token, "");
    assert_eq!(
        (first.kind(), first.claim.unwrap().claim_id),
        (ChangeKind::Snapshot, claim_id.clone())
    );
    let synced = ours.message().await.unwrap().unwrap();
    assert_eq!((synced.kind(), synced.resumed), (ChangeKind::Synced, false));
    assert_eq!(
        others.message().await.unwrap().unwrap().kind(),
        ChangeKind::Synced
    );
    let mut resumed = client
        .watch(of(POOL, &synced.resume_token))
        .await
        .unwrap()
        .into_inner();
    let went_on = resumed.message().await.unwrap().unwrap();
    assert_eq!(
        (went_on.kind(), went_on.resumed),
        (ChangeKind::Synced, true)
    );
    client
        .release(ReleaseRequest { claim_id, epoch: 1 })
        .await
        .unwrap();
    assert_eq!(
        ours.message().await.unwrap().unwrap().kind(),
        ChangeKind::Removed
    );
    assert_eq!(
        resumed.message().await.unwrap().unwrap().kind(),
        ChangeKind::Removed
    );
    bench
        .counted(r#"hearth_streams_open{kind="watch_claims"} 3"#)
        .await;
    drop((ours, others, resumed));
    bench
        .counted(r#"hearth_streams_open{kind="watch_claims"} 0"#)
        .await;
}

#[tokio::test]
async fn pools_are_set_read_and_watched() {
    let bench = Bench::start().await;
    let mut client = bench.pools().await;
    let mut watch = client
        .watch_pools(WatchPoolsRequest {})
        .await
        .unwrap()
        .into_inner();
    let first = watch.message().await.unwrap().unwrap();
    let view = first.pools[0].clone();
    let (pool, status) = (view.pool.unwrap(), view.status.unwrap());
    assert_eq!(
        (
            pool.template.as_ref().unwrap().resources.unwrap().pids,
            status.warm
        ),
        (1024, 2)
    );
    assert_eq!(status.breaker(), BreakerState::Open);
    assert!(
        (50..=60).contains(&status.retry_after.unwrap().seconds),
        "{status:?}"
    );
    bench.claimed().await;
    assert_eq!(
        watch.message().await.unwrap().unwrap().pools[0]
            .status
            .as_ref()
            .unwrap()
            .claimed,
        1
    );
    // What was read can be set again; anything else under the same generation cannot.
    let set = |generation, pools| SetPoolsRequest {
        generation,
        pools,
        epoch: 1,
    };
    client.set_pools(set(1, vec![pool.clone()])).await.unwrap();
    let changed = client.set_pools(set(1, vec![])).await;
    refused(changed, Code::AlreadyExists, "GENERATION_CONFLICT");
    client.set_pools(set(2, vec![pool])).await.unwrap();
    let stale = refused(
        client.set_pools(set(1, vec![])).await,
        Code::Aborted,
        "GENERATION_STALE",
    );
    assert_eq!(
        stale.get_error_details().error_info().unwrap().metadata["current"],
        "2"
    );
}

#[tokio::test]
async fn the_node_tells_about_itself_and_its_orphans() {
    let bench = Bench::start().await;
    bench.claimed().await;
    let mut client = bench.node().await;
    let info = client.info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!(
        (info.version.as_str(), info.node_tag.as_str()),
        ("1.2.3", "0000fa4e")
    );
    assert_eq!(
        (
            info.sandboxes,
            info.max_sandboxes,
            info.cgroup_version,
            info.epoch
        ),
        (1, 77, 2, 1)
    );
    assert_eq!(info.runtime_handlers[0].name, HANDLER);
    let (ours, theirs) = (bench.driver.orphan(TAG), bench.driver.orphan(NodeTag(1)));
    let found = client
        .orphans(OrphansRequest::default())
        .await
        .unwrap()
        .into_inner()
        .orphans;
    let reasons: Vec<_> = found.iter().map(|orphan| orphan.reason.as_str()).collect();
    assert_eq!(reasons, ["BEING_DESTROYED", "OTHER_NODE_TAG"]);
    let unlisted = OrphansRequest {
        destroy: vec!["h00000001000000000009".into()],
    };
    refused(
        client.orphans(unlisted).await,
        Code::InvalidArgument,
        "INVALID_ARGUMENT",
    );
    let named = OrphansRequest {
        destroy: vec![theirs.to_string()],
    };
    let left = client.orphans(named).await.unwrap().into_inner().orphans;
    assert_eq!(
        left.iter()
            .map(|orphan| orphan.sandbox_id.clone())
            .collect::<Vec<_>>(),
        [ours.to_string()]
    );
}
