//! Sandboxes that take all they can get, all at once: each costs itself, the others are served, hearthd does not grow,
//! nothing is left over. How much slower the others are is `make bench` (section "neighbours").

use crate::hearthd::{Hearth, claim_request, eventually, fresh_id, pool};
use crate::noises::{NOISES, noisy};
use crate::vitals::Vitals;
use hearth::api::{ClaimState, GetClaimRequest, OnEmpty};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// What hearthd may hold more of than while it served quiet claims only.
const GROWTH_BYTES: u64 = 32 << 20;

async fn serve_one(hearth: &Hearth) {
    let id = fresh_id();
    let mut request = claim_request(&id, "quiet");
    request.on_empty = OnEmpty::Wait.into();
    request.wait_timeout = Some(prost_types::Duration {
        seconds: 60,
        nanos: 0,
    });
    hearth.claims().await.claim(request).await.unwrap();
    let ran = hearth.run(&id, &["echo", "served"]).await;
    assert_eq!(ran, (0, "served\n".to_owned()));
    hearth.release(&id).await;
}

async fn state(hearth: &Hearth, claim: &str) -> (ClaimState, String) {
    let request = GetClaimRequest {
        claim_id: claim.to_owned(),
    };
    let got = hearth.claims().await.get(request).await.unwrap();
    let claim = got.into_inner().claim.unwrap();
    (claim.state(), claim.status_reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_noises_at_once_disturb_nobody() {
    let hearth = Hearth::start().await;
    let count = u32::try_from(NOISES.len() + 1).unwrap();
    hearth
        .set_pools(vec![noisy(count), pool("quiet", 2, 6)])
        .await;
    hearth.warm("noisy", count).await;
    hearth.warm("quiet", 2).await;
    for _ in 0..5 {
        serve_one(&hearth).await;
    }
    let vitals = Vitals::of(hearth.pid());
    vitals.forget_peak();
    let before = vitals.peak_bytes();

    let stop = AtomicBool::new(false);
    let execs = AtomicU32::new(0);
    let mut claims = Vec::new();
    for (name, script) in NOISES {
        let (claim, _) = hearth.claim("noisy").await;
        hearth
            .start_detached(&claim, &["python3", "-c", script])
            .await;
        claims.push((*name, claim));
    }
    let (busy, _) = hearth.claim("noisy").await;
    let tiny = || async {
        while !stop.load(Ordering::Relaxed) {
            let ran = hearth.run(&busy, &["busybox", "true"]).await;
            assert_eq!(ran.0, 0);
            execs.fetch_add(1, Ordering::Relaxed);
        }
    };
    let others = async {
        for _ in 0..15 {
            serve_one(&hearth).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(others, tiny(), tiny(), tiny(), tiny());
    let execs = execs.load(Ordering::Relaxed);
    let grown = vitals.peak_bytes().saturating_sub(before);
    println!("{execs} tiny execs meanwhile; hearthd's peak grew by {grown} bytes from {before}");
    assert!(execs > 20, "{execs}");
    assert!(grown < GROWTH_BYTES, "hearthd grew by {grown} bytes");
    eventually("the hog has ended itself", || async {
        let hog = claims.iter().find(|(name, _)| *name == "memory hog");
        state(&hearth, &hog.unwrap().1).await == (ClaimState::Failed, "OOM".to_owned())
    })
    .await;
    for (name, claim) in &claims {
        let state = state(&hearth, claim).await;
        // A bomb of python processes may meet its memory before its number.
        let alone = ["memory hog", "fork bomb"].contains(name) && state.1 == "OOM";
        assert!(alone || state.0 == ClaimState::Claimed, "{name}: {state:?}");
        hearth.release(claim).await;
    }
    hearth.release(&busy).await;
    hearth.set_pools(vec![pool("quiet", 2, 6)]).await;
    eventually("only the quiet ones are left", || async {
        let census = hearth.census();
        census.cgroups.len() == 2 && census.tasks.len() == 2 && census.dirs.len() == 2
    })
    .await;
    hearth.finish().await;
}
