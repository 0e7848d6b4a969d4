//! A containerd that hangs and goes on. One that hangs for good is replaced: `tests/managed.rs`.

use super::{Stopped, answers, cold};
use crate::crash::assert_no_leak;
use crate::hearthd::{Hearth, eventually, pool};
use crate::hostile::reason;

#[tokio::test(flavor = "multi_thread")]
async fn while_containerd_hangs_claims_are_served_from_what_is_warm() {
    let hearth = Hearth::start().await;
    hearth
        .set_pools(vec![pool("python", 2, 8), pool("scarce", 0, 8)])
        .await;
    hearth.warm("python", 2).await;
    let (kept, _) = hearth.claim("python").await;
    hearth.warm("python", 2).await;
    let containerd = hearth.containerd_pid();
    let hung = Stopped::new(containerd);
    // It is noticed by probes that nobody answers, three in a row.
    eventually("it is noticed", || async {
        hearth.phase().await.as_deref() == Some("degraded")
    })
    .await;
    answers(&hearth, &kept).await;
    let (warm, _) = hearth.claim("python").await;
    answers(&hearth, &warm).await;
    let refused = cold(&hearth, "scarce").await.unwrap_err();
    assert_eq!(reason(&refused), "RUNTIME_UNAVAILABLE", "{refused:?}");
    // Answered now, destroyed later.
    hearth.release(&warm).await;
    drop(hung);
    eventually("hearthd is ready again", || async {
        hearth.phase().await.as_deref() == Some("ready")
    })
    .await;
    assert_eq!(hearth.containerd_pid(), containerd, "the same one");
    hearth.warm("python", 2).await;
    let claim = cold(&hearth, "scarce").await.unwrap();
    answers(&hearth, &claim).await;
    answers(&hearth, &kept).await;
    assert_no_leak(&hearth).await;
    hearth.finish().await;
}
