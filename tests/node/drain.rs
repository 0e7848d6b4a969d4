//! Drain on a real node: every mode, a long execution, the disk, kill -9 in the middle, and what hearthctl shows.

use crate::disk::{count, counted, goes_on, is_on_disk};
use crate::hearthd::{Census, Hearth, claim_request, eventually, fresh_id, pool};
use hearth::api::{
    ClaimState, DrainMode, DrainRequest, DrainResponse, DrainState, DrainStatus, HibernateRequest,
    InfoRequest, Tier, UndrainRequest,
};
use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};
use tonic::{Code, Streaming};
use tonic_types::StatusExt;

async fn drain(
    hearth: &Hearth,
    mode: DrainMode,
    deadline_seconds: Option<i64>,
) -> Streaming<DrainResponse> {
    let deadline = |seconds| prost_types::Duration { seconds, nanos: 0 };
    let request = DrainRequest {
        mode: mode.into(),
        deadline: deadline_seconds.map(deadline),
    };
    let mut node = hearth.node().await;
    node.drain(request).await.unwrap().into_inner()
}

async fn next(stream: &mut Streaming<DrainResponse>) -> DrainStatus {
    let step = stream.message().await.unwrap();
    step.expect("the stream ended").status.unwrap()
}

/// Reads on until the stream ends; the last thing it told.
async fn last(stream: &mut Streaming<DrainResponse>) -> DrainStatus {
    let mut told = next(stream).await;
    while let Some(step) = stream.message().await.unwrap() {
        told = step.status.unwrap();
    }
    told
}

async fn status(hearth: &Hearth) -> Option<DrainStatus> {
    let mut node = hearth.node().await;
    node.info(InfoRequest {}).await.unwrap().into_inner().drain
}

async fn undrain(hearth: &Hearth) {
    hearth
        .node()
        .await
        .undrain(UndrainRequest {})
        .await
        .unwrap();
}

/// A new claim meets the drain, with what to do next.
async fn assert_refused(hearth: &Hearth) {
    let request = claim_request(&fresh_id(), "python");
    let refused = hearth.claims().await.claim(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let details = refused.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "NODE_DRAINING");
    assert!(details.retry_info().unwrap().retry_delay.is_some());
    assert!(refused.message().contains("another node"), "{refused:?}");
}

fn ctl(hearth: &Hearth, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearthctl"));
    command.arg("--socket").arg(hearth.path("s")).args(args);
    command.stdin(Stdio::null()).output().unwrap()
}

fn metric(hearth: &Hearth, name: &str) -> f64 {
    let (code, page) = hearth.admin_page("/metrics");
    assert_eq!(code, 200);
    let mut lines = page.lines();
    let line = lines.find(|line| {
        line.strip_prefix(name)
            .is_some_and(|it| it.starts_with(' '))
    });
    let value = line.and_then(|line| line.rsplit(' ').next());
    value
        .unwrap_or_else(|| panic!("no {name}"))
        .parse()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_survives_kill_9_and_is_undone() {
    let mut hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 2, 8)]).await;
    hearth.warm("python", 2).await;
    let (claim, answer) = hearth.claim("python").await;
    hearth.warm("python", 2).await;
    let mut told = drain(&hearth, DrainMode::Wait, None).await;
    let first = next(&mut told).await;
    assert_eq!((first.state(), first.claims), (DrainState::Draining, 1));
    assert!(first.unclaimed > 0, "{first:?}");
    assert_refused(&hearth).await;
    // In the middle: members may be half destroyed.
    hearth.kill();
    hearth.restart().await;
    let after = status(&hearth).await.expect("the drain goes on");
    // The same moment; its wall-clock time is worked out anew at each start.
    let apart = |one: &DrainStatus, other: &DrainStatus| {
        let seconds = |it: &DrainStatus| it.since.as_ref().unwrap().seconds;
        seconds(one).abs_diff(seconds(other))
    };
    assert!(apart(&after, &first) <= 1, "{after:?} {first:?}");
    assert_refused(&hearth).await;
    // What is claimed is served as before: the same answer, the same sandbox, and work in it.
    let mut claims = hearth.claims().await;
    let again = claims.claim(claim_request(&claim, "python")).await;
    assert_eq!(again.unwrap().into_inner().sandbox_id, answer.sandbox_id);
    assert_eq!(hearth.run(&claim, &["echo", "here"]).await.1, "here\n");
    let only = BTreeSet::from([answer.sandbox_id]);
    eventually("the members are gone", || async {
        hearth.census() == Census::of(&only)
    })
    .await;
    assert_eq!(metric(&hearth, "hearth_draining"), 1.0);
    assert_eq!(metric(&hearth, "hearth_drain_claims"), 1.0);

    // A deadline that passes does nothing to claims, and says so.
    let output = ctl(&hearth, &["drain", "--deadline", "1s"]);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("draining (wait): 1 claims left"), "{shown}");
    assert!(shown.contains("overdue (wait)"), "{shown}");
    let hint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(hint.contains("--mode evict"), "{hint}");
    let node = ctl(&hearth, &["node"]);
    assert!(String::from_utf8_lossy(&node.stdout).contains("overdue (wait)"));

    // Who joins hears of the end.
    let mut joined = drain(&hearth, DrainMode::Wait, None).await;
    next(&mut joined).await;
    hearth.release(&claim).await;
    assert_eq!(last(&mut joined).await.state(), DrainState::Drained);
    assert_eq!(hearth.census(), Census::default());
    let output = ctl(&hearth, &["drain", "-o", "json"]);
    assert!(output.status.success(), "{output:?}");
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&value["state"], &value["claims"]),
        (&"drained".into(), &0.into())
    );

    let output = ctl(&hearth, &["undrain"]);
    assert!(output.status.success(), "{output:?}");
    undrain(&hearth).await;
    assert_eq!(status(&hearth).await, None);
    hearth.warm("python", 2).await;
    hearth.serve_one("python").await;
    assert_eq!(metric(&hearth, "hearth_draining"), 0.0);
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_hibernates_idle_claims_and_lets_a_long_execution_finish() {
    let hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 2, 8)]).await;
    hearth.warm("python", 2).await;
    let (idle, _) = hearth.claim("python").await;
    let (busy, _) = hearth.claim("python").await;
    // Long enough that the idle one is asleep before it ends, whatever the machine does: it is let go below.
    let work = hearth.run(
        &busy,
        &[
            "sh",
            "-c",
            "until [ -e /tmp/go ]; do sleep 0.1; done; echo done",
        ],
    );
    let meanwhile = async {
        let mut told = drain(&hearth, DrainMode::Hibernate, Some(3600)).await;
        let mut now = next(&mut told).await;
        while now.hibernated == 0 {
            now = next(&mut told).await;
        }
        assert_eq!((now.claims, now.state()), (1, DrainState::Draining));
        assert_eq!(hearth.get(&idle).await.state(), ClaimState::Hibernated);
        assert_eq!(hearth.get(&busy).await.state(), ClaimState::Claimed);
        let refused = hearth.try_run(&idle, &["true"]).await.unwrap_err();
        let details = refused.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "NODE_DRAINING");
        assert_eq!(hearth.run(&busy, &["touch", "/tmp/go"]).await.0, 0);
        let end = last(&mut told).await;
        assert_eq!((end.state(), end.hibernated), (DrainState::Drained, 2));
        assert_eq!((end.disk_tier, end.on_disk, end.to_disk), (true, 2, 0));
    };
    let (worked, ()) = tokio::join!(work, meanwhile);
    assert_eq!(worked, (0, "done\n".to_owned()), "it was let finish");
    undrain(&hearth).await;
    for claim in [&idle, &busy] {
        assert_eq!(hearth.run(claim, &["echo", "awake"]).await.1, "awake\n");
    }
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_evicts_at_its_deadline_also_over_a_restart() {
    let mut hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 1, 8)]).await;
    hearth.warm("python", 1).await;
    let (claim, _) = hearth.claim("python").await;
    let needed = DrainRequest {
        mode: DrainMode::Evict.into(),
        deadline: None,
    };
    let refused = hearth
        .node()
        .await
        .drain(needed)
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let mut told = drain(&hearth, DrainMode::Evict, Some(2)).await;
    assert_eq!(next(&mut told).await.claims, 1);
    hearth.kill();
    hearth.restart().await;
    let mut told = drain(&hearth, DrainMode::Evict, Some(2)).await;
    assert_eq!(last(&mut told).await.state(), DrainState::Drained);
    let request = hearth::api::GetClaimRequest {
        claim_id: claim.clone(),
    };
    let gone = hearth.claims().await.get(request).await.unwrap_err();
    let details = gone.get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "CLAIM_RELEASED");
    assert_eq!(hearth.census(), Census::default());
    assert_eq!(metric(&hearth, "hearth_claims_evicted_total"), 1.0);
    undrain(&hearth).await;
    hearth.serve_one("python").await;
    hearth.finish().await;
}

async fn sleep_in_memory(hearth: &Hearth, claim: &str) {
    let request = HibernateRequest {
        claim_id: claim.to_owned(),
        epoch: 1,
        tier: Tier::Memory.into(),
        ..HibernateRequest::default()
    };
    hearth.claims().await.hibernate(request).await.unwrap();
}

/// Awake ones and one that its caller put to sleep; hearthd dies while they are on their way.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_puts_everything_on_the_disk_also_over_kill_9() {
    let mut hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 4, 8)]).await;
    hearth.warm("python", 4).await;
    let mut claims = Vec::new();
    for _ in 0..4 {
        let (claim, answer) = hearth.claim("python").await;
        count(&hearth, &claim).await;
        let before = counted(&hearth, &claim).await;
        claims.push((claim, answer.sandbox_id, before));
    }
    sleep_in_memory(&hearth, &claims[0].0).await;
    let mut told = drain(&hearth, DrainMode::Hibernate, Some(0)).await;
    // Killed with one on the disk and the others somewhere on their way.
    loop {
        let now = next(&mut told).await;
        assert!(now.disk_tier, "{now:?}");
        assert!(now.on_disk + now.to_disk <= now.hibernated, "{now:?}");
        if now.on_disk > 0 {
            println!("killed at {now:?}");
            break;
        }
    }
    hearth.kill();
    hearth.restart().await;
    let mut told = drain(&hearth, DrainMode::Hibernate, Some(0)).await;
    let end = last(&mut told).await;
    assert_eq!(end.state(), DrainState::Drained, "{end:?}");
    assert_eq!((end.hibernated, end.on_disk), (4, 4), "{end:?}");
    assert!(end.kept.is_empty(), "{end:?}");
    let output = ctl(
        &hearth,
        &["drain", "--mode", "hibernate", "--deadline", "0s"],
    );
    assert!(output.status.success(), "{output:?}");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("4 asleep (4 on the disk)"), "{shown}");
    for (claim, sandbox, _) in &claims {
        is_on_disk(&hearth, sandbox).await;
        let refused = hearth.try_run(claim, &["true"]).await.unwrap_err();
        let details = refused.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "NODE_DRAINING");
    }
    assert_eq!(metric(&hearth, "hearth_images"), 4.0);
    assert_eq!(metric(&hearth, "hearth_drain_claims"), 0.0);
    // The node goes away, as it was drained for.
    hearth.reboot().await;
    undrain(&hearth).await;
    for (claim, _, (before, process)) in &claims {
        let (now, same) = counted(&hearth, claim).await;
        assert_eq!(&same, process, "the same process");
        assert!(now >= *before, "{before} → {now}");
        goes_on(&hearth, claim).await;
    }
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_names_those_that_find_no_room_on_the_disk_and_leaves_them_asleep() {
    let hearth = Hearth::start_with(&[("hibernation.quota_bytes", "33554432")]).await;
    hearth.set_pools(vec![pool("python", 2, 8)]).await;
    hearth.warm("python", 2).await;
    let mut claims = Vec::new();
    for _ in 0..2 {
        let (claim, _) = hearth.claim("python").await;
        count(&hearth, &claim).await;
        claims.push(claim);
    }
    let mut told = drain(&hearth, DrainMode::Hibernate, Some(0)).await;
    let end = last(&mut told).await;
    assert_eq!(end.state(), DrainState::Drained, "{end:?}");
    assert_eq!(
        (end.hibernated, end.on_disk, end.to_disk),
        (2, 0, 0),
        "{end:?}"
    );
    let named: BTreeSet<_> = end.kept.iter().map(|it| it.claim_id.clone()).collect();
    assert_eq!(named, claims.iter().cloned().collect());
    for kept in &end.kept {
        assert_eq!(kept.reason, "NO_ROOM_ON_DISK", "{kept:?}");
        assert!(kept.detail.contains("quota_bytes"), "{kept:?}");
        assert_eq!(
            hearth.get(&kept.claim_id).await.state(),
            ClaimState::Hibernated
        );
    }
    let output = ctl(
        &hearth,
        &["drain", "--mode", "hibernate", "--deadline", "0s"],
    );
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("2 stay in memory"), "{shown}");
    assert!(
        shown.contains("stays in memory: NO_ROOM_ON_DISK"),
        "{shown}"
    );
    undrain(&hearth).await;
    for claim in &claims {
        goes_on(&hearth, claim).await;
    }
    hearth.finish().await;

    // Without a disk tier everything sleeps in memory, and it is told.
    let hearth = Hearth::start_with(&[("hibernation.quota_bytes", "0")]).await;
    hearth.set_pools(vec![pool("python", 1, 8)]).await;
    hearth.warm("python", 1).await;
    let (claim, _) = hearth.claim("python").await;
    let mut told = drain(&hearth, DrainMode::Hibernate, Some(0)).await;
    let end = last(&mut told).await;
    assert_eq!((end.state(), end.hibernated), (DrainState::Drained, 1));
    assert_eq!((end.disk_tier, end.on_disk), (false, 0), "{end:?}");
    let output = ctl(
        &hearth,
        &["drain", "--mode", "hibernate", "--deadline", "0s"],
    );
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("no disk tier"), "{shown}");
    undrain(&hearth).await;
    assert_eq!(hearth.run(&claim, &["echo", "awake"]).await.1, "awake\n");
    hearth.finish().await;
}
