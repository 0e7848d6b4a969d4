//! The main job through the public API on a real node: claim a warm sandbox, run code in it, release it; and the claim
//! contract where it meets reality (timers, guests, refills).
use crate::hearthd::{Hearth, claim_request, eventually, fresh_id, pool};
use hearth::api::{
    BreakerState, ChangeKind, ClaimBatchRequest, ClaimState, File, GetClaimRequest, OnEmpty,
    Personalization, Readiness, RenewRequest, Secret, Source, WatchClaimsRequest, WriteFileRequest,
    WriteFileStart, claim_result, write_file_request,
};
use std::time::{Duration, Instant};
use tonic::{Code, Status};
use tonic_types::StatusExt;

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map(|info| info.reason).unwrap_or_default()
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

#[tokio::test(flavor = "multi_thread")]
async fn claim_run_code_release() {
    let hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 2, 8)]).await;
    hearth.warm("python", 2).await;

    let id = fresh_id();
    let mut request = claim_request(&id, "python");
    request.personalization = Some(Personalization {
        env: [("GREETING".to_owned(), "hello".to_owned())].into(),
        files: vec![File {
            path: "/work/in/data.txt".into(),
            content: b"from outside".to_vec().into(),
            mode: 0o640,
        }],
        secrets: vec![Secret {
            name: "token".into(),
            value: b"s3cret-value-7741".to_vec().into(),
        }],
        hostname: "agent-7".into(),
        network_policy: None,
    });
    let answer = hearth
        .claims()
        .await
        .claim(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.source(), Source::Warm);
    let timings = answer.timings.unwrap();
    assert!(
        timings.commit.is_some() && timings.guest.is_some(),
        "{timings:?}"
    );

    let python = "import os,socket,sys; print(os.environ['GREETING'], socket.gethostname(), \
                  open('/work/in/data.txt').read(), sys.version_info[0])";
    let (code, out) = hearth.run(&id, &["python3", "-c", python]).await;
    assert_eq!((code, out.as_str()), (0, "hello agent-7 from outside 3\n"));
    let (_, out) = hearth
        .run(&id, &["stat", "-c", "%a %F", "/work/in/data.txt"])
        .await;
    assert_eq!(out, "640 regular file\n");
    let (_, out) = hearth.run(&id, &["cat", "/run/hearth/secrets/token"]).await;
    assert_eq!(out, "s3cret-value-7741");
    let (_, out) = hearth
        .run(&id, &["stat", "-f", "-c", "%T", "/run/hearth/secrets"])
        .await;
    assert_eq!(out, "tmpfs\n", "secrets live in RAM");
    // gVisor, not the host's kernel.
    let (_, out) = hearth.run(&id, &["cat", "/proc/version"]).await;
    assert!(!out.contains(&host_release()), "{out}");
    // Exit codes and failures to start.
    assert_eq!(hearth.run(&id, &["sh", "-c", "exit 42"]).await.0, 42);
    assert_eq!(hearth.run(&id, &["sh", "-c", "kill -9 $$"]).await.0, 137);
    let missing = hearth.try_run(&id, &["no-such-program"]).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound, "{missing:?}");

    // A megabyte in and out.
    let content: Vec<u8> = (0..1_000_000_u32)
        .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1])
        .collect();
    write_file(&hearth, &id, "/root/blob", &content).await;
    assert_eq!(read_file(&hearth, &id, "/root/blob").await, content);

    // The same claim again: the same answer. Other content: refused, naming what differs.
    let mut other = claim_request(&id, "python");
    other.ttl = seconds(60);
    let refused = hearth.claims().await.claim(other).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::AlreadyExists, "CLAIM_CONTENT_DIFFERS")
    );

    hearth.release(&id).await;
    hearth.release(&id).await;
    let gone = hearth
        .claims()
        .await
        .get(GetClaimRequest {
            claim_id: id.clone(),
        })
        .await
        .unwrap_err();
    assert_eq!(
        (gone.code(), reason(&gone).as_str()),
        (Code::NotFound, "CLAIM_RELEASED")
    );
    let spent = hearth
        .claims()
        .await
        .claim(claim_request(&id, "python"))
        .await
        .unwrap_err();
    assert_eq!(
        (spent.code(), reason(&spent).as_str()),
        (Code::NotFound, "CLAIM_RELEASED")
    );
    let sandbox = answer.sandbox_id;
    eventually("the sandbox is gone everywhere", || {
        let census = hearth.census();
        let gone = ![census.containers, census.tasks, census.cgroups, census.dirs]
            .iter()
            .any(|ids| ids.contains(&sandbox));
        async move { gone }
    })
    .await;

    // Nothing of a secret or a token is in the logs or the state.
    let (log, state) = (hearth.log_text(), hearth.state().to_string());
    for secret in ["s3cret-value-7741", answer.access_token.as_str()] {
        assert!(
            !log.contains(secret) && !state.contains(secret),
            "{secret} leaked"
        );
    }
    hearth.finish().await;
}

fn host_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap()
        .trim()
        .to_owned()
}

async fn write_file(hearth: &Hearth, claim: &str, path: &str, content: &[u8]) {
    let start = WriteFileStart {
        claim_id: claim.to_owned(),
        path: path.to_owned(),
        ..WriteFileStart::default()
    };
    let start = WriteFileRequest {
        request: Some(write_file_request::Request::Start(start)),
    };
    let chunks = content.chunks(60_000).map(|chunk| WriteFileRequest {
        request: Some(write_file_request::Request::Chunk(chunk.to_vec().into())),
    });
    let end = WriteFileRequest {
        request: Some(write_file_request::Request::Eof(true)),
    };
    let requests: Vec<_> = std::iter::once(start).chain(chunks).chain([end]).collect();
    let answer = hearth
        .sandboxes()
        .await
        .write_file(tokio_stream::iter(requests))
        .await
        .unwrap();
    assert_eq!(answer.into_inner().size_bytes, content.len() as u64);
}

async fn read_file(hearth: &Hearth, claim: &str, path: &str) -> Vec<u8> {
    let request = hearth::api::ReadFileRequest {
        claim_id: claim.to_owned(),
        path: path.to_owned(),
        ..Default::default()
    };
    let mut stream = hearth
        .sandboxes()
        .await
        .read_file(request)
        .await
        .unwrap()
        .into_inner();
    let mut content = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        content.extend_from_slice(&part.chunk);
    }
    content
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_expire_and_renewals_hold_them() {
    let hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 2, 4)]).await;
    hearth.warm("python", 2).await;
    let (brief, held) = (fresh_id(), fresh_id());
    for id in [&brief, &held] {
        let mut request = claim_request(id, "python");
        request.ttl = seconds(2);
        let answer = hearth
            .claims()
            .await
            .claim(request)
            .await
            .unwrap()
            .into_inner();
        assert!(answer.expires_at.is_some());
    }
    let renewal = RenewRequest {
        claim_id: held.clone(),
        epoch: 1,
        ttl: seconds(600),
    };
    hearth.claims().await.renew(renewal).await.unwrap();
    let began = Instant::now();
    eventually("the unrenewed one expires", || async {
        let request = GetClaimRequest {
            claim_id: brief.clone(),
        };
        hearth.claims().await.get(request).await.is_err()
    })
    .await;
    assert!(
        began.elapsed() > Duration::from_secs(1),
        "not before its time"
    );
    let request = GetClaimRequest {
        claim_id: held.clone(),
    };
    let claim = hearth
        .claims()
        .await
        .get(request)
        .await
        .unwrap()
        .into_inner()
        .claim
        .unwrap();
    assert_eq!(claim.state(), ClaimState::Claimed);
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_pool_fails_waits_or_creates_as_the_caller_says() {
    let hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 1, 3)]).await;
    hearth.warm("python", 1).await;
    // Claims faster than refills.
    let mut client = hearth.claims().await;
    let first = client
        .claim(claim_request(&fresh_id(), "python"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first.source(), Source::Warm);
    let dry = client
        .claim(claim_request(&fresh_id(), "python"))
        .await
        .unwrap_err();
    assert_eq!(
        (dry.code(), reason(&dry).as_str()),
        (Code::ResourceExhausted, "POOL_EMPTY")
    );
    assert!(
        dry.get_details_retry_info()
            .is_some_and(|info| info.retry_delay.is_some())
    );
    let mut cold = claim_request(&fresh_id(), "python");
    cold.on_empty = OnEmpty::Cold.into();
    let cold = client.claim(cold).await.unwrap().into_inner();
    assert!(matches!(cold.source(), Source::Cold | Source::Warm));
    let mut wait = claim_request(&fresh_id(), "python");
    wait.on_empty = OnEmpty::Wait.into();
    wait.wait_timeout = seconds(30);
    let waited = client.claim(wait).await.unwrap().into_inner();
    assert_ne!(waited.sandbox_id, cold.sandbox_id);
    // Three are held: the pool is full, and says so.
    let mut over = claim_request(&fresh_id(), "python");
    over.on_empty = OnEmpty::Cold.into();
    let full = client.claim(over).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted, "{full:?}");
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_judged_one_by_one() {
    let hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 3, 6)]).await;
    hearth.warm("python", 3).await;
    let ids: Vec<_> = (0..3).map(|_| fresh_id()).collect();
    let mut claims: Vec<_> = ids.iter().map(|id| claim_request(id, "python")).collect();
    claims.push(claim_request(&fresh_id(), "no-such-pool"));
    let answer = hearth
        .claims()
        .await
        .claim_batch(ClaimBatchRequest { claims })
        .await
        .unwrap();
    let results = answer.into_inner().results;
    let mut sandboxes = std::collections::BTreeSet::new();
    for (id, result) in ids.iter().zip(&results) {
        assert_eq!(&result.claim_id, id);
        match result.result.as_ref().unwrap() {
            claim_result::Result::Claim(claim) => {
                assert!(sandboxes.insert(claim.sandbox_id.clone()))
            }
            claim_result::Result::Error(error) => panic!("{error:?}"),
        }
    }
    match results[3].result.as_ref().unwrap() {
        claim_result::Result::Error(error) => {
            assert_eq!((error.code, error.reason.as_str()), (5, "POOL_UNKNOWN"));
        }
        claim_result::Result::Claim(claim) => panic!("{claim:?}"),
    }
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_template_opens_the_breaker_and_does_not_eat_the_node() {
    let hearth = Hearth::start().await;
    let mut broken = pool("broken", 2, 8);
    broken.template.as_mut().unwrap().readiness = Some(Readiness {
        command: vec!["sh".into(), "-c".into(), "echo not today; exit 3".into()],
        timeout: seconds(1),
    });
    hearth.set_pools(vec![broken, pool("python", 1, 4)]).await;
    hearth.warm("python", 1).await;
    eventually("the breaker opens", || async {
        hearth.status("broken").await.breaker() == BreakerState::Open
    })
    .await;
    let status = hearth.status("broken").await;
    assert!(status.breaker_reason.contains("not today"), "{status:?}");
    assert_eq!(status.warm, 0, "a member that is not ready is never warm");
    let refused = hearth
        .claims()
        .await
        .claim(claim_request(&fresh_id(), "broken"))
        .await
        .unwrap_err();
    assert!(
        ["POOL_FAILING", "POOL_EMPTY"].contains(&reason(&refused).as_str()),
        "{refused:?}"
    );
    hearth.claim("python").await;
    eventually("what failed is gone", || async {
        hearth.status("broken").await.releasing == 0
    })
    .await;
    let metrics = hearth.admin_page("/metrics").1;
    assert!(
        metrics.contains("hearth_refill_failures_total{pool=\"broken\"}"),
        "{metrics}"
    );
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_ends_by_itself_is_told_to_its_claim() {
    let hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 1, 4)]).await;
    hearth.warm("python", 1).await;
    let (claim, _) = hearth.claim("python").await;
    // More memory than the sandbox may have.
    let hog = "b=[]\nwhile True: b.append(bytearray(1<<24))";
    let _ended = hearth.try_run(&claim, &["python3", "-c", hog]).await;
    eventually("the claim tells", || async {
        let request = GetClaimRequest {
            claim_id: claim.clone(),
        };
        let got = hearth
            .claims()
            .await
            .get(request)
            .await
            .unwrap()
            .into_inner()
            .claim
            .unwrap();
        got.state() == ClaimState::Failed && got.status_reason == "OOM"
    })
    .await;
    let refused = hearth.try_run(&claim, &["true"]).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    hearth.release(&claim).await;
    hearth.warm("python", 1).await;
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_what_there_is_and_what_comes() {
    let hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 2, 4)]).await;
    hearth.warm("python", 2).await;
    let (first, _) = hearth.claim("python").await;
    let mut watch = hearth
        .claims()
        .await
        .watch(WatchClaimsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let one = watch.message().await.unwrap().unwrap();
    assert_eq!(
        (one.kind(), one.claim.unwrap().claim_id),
        (ChangeKind::Snapshot, first.clone())
    );
    assert_eq!(
        watch.message().await.unwrap().unwrap().kind(),
        ChangeKind::Synced
    );
    hearth.release(&first).await;
    loop {
        let change = watch.message().await.unwrap().unwrap();
        assert_eq!(change.claim.as_ref().unwrap().claim_id, first);
        if change.kind() == ChangeKind::Removed {
            break;
        }
    }
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_metrics_and_traces_tell_what_goes_on() {
    let hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 1, 4)]).await;
    hearth.warm("python", 1).await;
    for page in ["/livez", "/readyz", "/startupz"] {
        assert_eq!(hearth.admin_page(page).0, 200, "{page}");
    }
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let mut request = tonic::Request::new(claim_request(&fresh_id(), "python"));
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    request
        .metadata_mut()
        .insert("traceparent", parent.parse().unwrap());
    hearth.claims().await.claim(request).await.unwrap();
    for stage in ["driver answered", "journal committed", "guest personalized"] {
        eventually(&format!("the trace reaches: {stage}"), || {
            let log = hearth.log_text();
            let found = log
                .lines()
                .any(|line| line.contains(trace) && line.contains(stage));
            async move { found }
        })
        .await;
    }
    let metrics = hearth.admin_page("/metrics").1;
    for name in [
        "hearth_claims_total{",
        "hearth_claim_duration_seconds_bucket{",
        "hearth_pool_sandboxes{",
        "hearth_pool_warm_target{",
        "hearth_refill_duration_seconds_bucket{",
        "hearth_journal_commit_duration_seconds_bucket{",
        "hearth_guest_round_trip_seconds_bucket{",
        "hearth_orphans ",
        "hearth_build_info{",
    ] {
        assert!(metrics.contains(name), "{name} is missing:\n{metrics}");
    }
    hearth.finish().await;
}
