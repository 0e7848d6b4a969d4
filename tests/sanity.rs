//! The sanity suite (`sanity/`) against a hearthd: every RPC, whole and broken in every way, and nothing leaks.
//!
//! [`node`] is the one place that says which hearthd. The same suite runs against the fake driver in
//! `src/rpc/tests/sanity.rs`.
#![allow(clippy::unwrap_used)]

#[path = "sanity/mod.rs"]
mod suite;

/// A hearthd to try.
struct Socket {
    /// Path of its socket. The caller must be one of its `api.allowed_uids`.
    path: String,
    /// A pool with at least two warm members, whose image has `true` and `sh`.
    pool: String,
}

/// The node under test.
fn node() -> Socket {
    let told = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    Socket {
        path: told("HEARTH_TEST_SOCKET"),
        pool: told("HEARTH_TEST_POOL"),
    }
}

#[tokio::test]
#[ignore = "needs a hearthd: HEARTH_TEST_SOCKET and HEARTH_TEST_POOL"]
async fn every_call_whole_and_broken() {
    let node = node();
    let endpoint = tonic::transport::Endpoint::try_from(format!("unix://{}", node.path)).unwrap();
    suite::run(endpoint.connect().await.unwrap(), &node.pool).await;
}
