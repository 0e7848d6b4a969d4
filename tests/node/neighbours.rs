//! Sandboxes that take all they can get, all at once: each costs itself, the others are served, hearthd does not grow,
//! nothing is left over. How much slower the others are is `make bench` (section "neighbours").

use crate::hearthd::{Hearth, eventually, pool};
use crate::noises::{NOISES, noisy};
use crate::vitals::Vitals;
use hearth::api::ClaimState;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// What hearthd may hold more of than while it served quiet claims only.
const GROWTH_BYTES: u64 = 32 << 20;

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
        hearth.serve_one("quiet").await;
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
            hearth.serve_one("quiet").await;
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
        let hog = hearth.get(&hog.unwrap().1).await;
        hog.state() == ClaimState::Failed && hog.status_reason == "OOM"
    })
    .await;
    for (name, claim) in &claims {
        let got = hearth.get(claim).await;
        // A bomb of python processes may meet its memory before its number.
        let alone = ["memory hog", "fork bomb"].contains(name) && got.status_reason == "OOM";
        assert!(
            alone || got.state() == ClaimState::Claimed,
            "{name}: {got:?}"
        );
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
