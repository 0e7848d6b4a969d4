//! The sanity suite of `tests/sanity` against the fake driver: what rpc alone is answerable for.

use super::Bench;

#[path = "../../../tests/sanity/mod.rs"]
mod suite;

#[tokio::test(flavor = "multi_thread")]
async fn every_call_whole_and_broken() {
    let bench = Bench::start().await;
    suite::run(bench.channel().await, super::POOL).await;
}
