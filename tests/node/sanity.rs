//! The sanity suite on a real node: every RPC whole and broken in every way, and nothing leaks.

use crate::hearthd::{Hearth, pool};

#[path = "../sanity/mod.rs"]
mod suite;

#[tokio::test(flavor = "multi_thread")]
async fn every_call_whole_and_broken() {
    let hearth = Hearth::start().await;
    let mut python = pool("python", 2, 8);
    python.template.as_mut().unwrap().interpreter = "python".into();
    hearth.set_pools(vec![python]).await;
    hearth.warm("python", 2).await;
    suite::run(hearth.channel().await, "python").await;
    hearth.finish().await;
}
