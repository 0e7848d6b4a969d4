//! A shim that is killed, and one that hangs.

use super::{Stopped, answers, has_failed, hibernate, is_gone, known, shim_of};
use crate::crash::assert_no_leak;
use crate::hearthd::{Hearth, eventually, pool};
use crate::hostile::reason;
use hearth::api::{ClaimState, Tier};
use nix::sys::signal::{Signal, kill};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_shim_costs_its_own_sandbox_only() {
    let hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 1, 8)]).await;
    let mut claims = Vec::new();
    for _ in 0..3 {
        hearth.warm("python", 1).await;
        let (claim, answer) = hearth.claim("python").await;
        claims.push((claim, answer.sandbox_id));
    }
    let [(running, one), (asleep, two), (kept, three)] = &claims[..] else {
        unreachable!()
    };
    hibernate(&hearth, asleep, Tier::Memory).await.unwrap();
    hearth.warm("python", 1).await;
    let member = known(&hearth);
    let member = member.iter().find(|id| ![one, two, three].contains(id));
    let member = member.unwrap();
    for sandbox in [one, two, member] {
        kill(shim_of(sandbox), Signal::SIGKILL).unwrap();
    }
    for claim in [running, asleep] {
        has_failed(&hearth, claim, "SANDBOX_EXITED").await;
    }
    answers(&hearth, kept).await;
    for sandbox in [one, two, member] {
        is_gone(&hearth, sandbox).await;
    }
    let log = hearth.log_text();
    let told = log.matches("the sandbox ended because its shim did");
    assert_eq!(told.count(), 3, "{}", hearth.log_tail());
    // Nobody gets the dead member.
    hearth.serve_one("python").await;
    hearth.warm("python", 1).await;
    answers(&hearth, kept).await;
    assert_no_leak(&hearth).await;
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_shim_holds_up_its_own_sandbox_only() {
    let hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 1, 8)]).await;
    let mut claims = Vec::new();
    for _ in 0..2 {
        hearth.warm("python", 1).await;
        let (claim, answer) = hearth.claim("python").await;
        claims.push((claim, answer.sandbox_id));
    }
    let [(silent, one), (doomed, two)] = &claims[..] else {
        unreachable!()
    };
    let stopped = [one, two].map(|sandbox| Stopped::new(shim_of(sandbox)));
    // The way to the guest leads through its shim.
    let refused = hearth.try_run(silent, &["true"]).await.unwrap_err();
    assert_eq!(reason(&refused), "GUEST_UNAVAILABLE", "{refused:?}");
    assert_eq!(hearth.get(silent).await.state(), ClaimState::Claimed);
    hearth.serve_one("python").await;
    // Answered at once, and destroyed although nobody lets the shim go on: it is killed.
    hearth.release(doomed).await;
    hearth.serve_one("python").await;
    is_gone(&hearth, two).await;
    let (_, metrics) = hearth.admin_page("/metrics");
    assert!(metrics.contains("hearth_shims_killed_total 1\n"));
    let [silent_shim, _killed] = stopped;
    drop(silent_shim);
    eventually("the other one goes on", || async {
        hearth.try_run(silent, &["true"]).await.is_ok()
    })
    .await;
    answers(&hearth, silent).await;
    hearth.release(silent).await;
    assert_no_leak(&hearth).await;
    hearth.finish().await;
}
