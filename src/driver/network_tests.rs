#![allow(clippy::unwrap_used)]

use super::*;
use crate::machine::ids::NodeTag;
use crate::machine::network::NetworkMode;
use crate::net::fakes::{Call, PaperNetwork, Verb};

fn id(sequence: u64) -> SandboxId {
    SandboxId::new(NodeTag(7), sequence).unwrap()
}

fn pool() -> PoolName {
    PoolName::parse("python").unwrap()
}

fn mode(mode: NetworkMode) -> NetworkPolicy {
    NetworkPolicy {
        mode,
        ..NetworkPolicy::default()
    }
}

fn on_paper() -> (PaperNetwork, Arc<Networks>) {
    let paper = PaperNetwork::new();
    let networks = Networks::new(Ok(Arc::new(paper.clone())));
    (paper, networks)
}

fn refused() -> NetError {
    NetError::Refused {
        what: "nft",
        detail: "no".into(),
    }
}

fn alive(id: SandboxId, alive: bool) -> Observed {
    Observed {
        id,
        alive,
        frozen: false,
    }
}

#[tokio::test]
async fn only_a_policy_that_needs_an_interface_gets_one() {
    let (paper, networks) = on_paper();
    let (pool, none) = (pool(), mode(NetworkMode::None));
    assert_eq!(networks.furnish(id(1), &pool, &none).await, Ok(None));
    assert!(paper.calls().is_empty());
    let policy = mode(NetworkMode::Internet);
    let furnished = networks.furnish(id(2), &pool, &policy).await.unwrap();
    assert!(!furnished.unwrap().resolvers.is_empty());
    assert_eq!(paper.in_force(id(2)), Some(policy.clone()));
    paper.fail_next(Verb::Furnish, refused());
    let failed = networks.furnish(id(3), &pool, &policy).await;
    assert_eq!(failed, Err("nft: no".to_owned()));
}

#[tokio::test]
async fn without_a_network_everything_that_needs_one_is_refused() {
    let networks = Networks::new(Err("no nft here".to_owned()));
    let policy = mode(NetworkMode::Internet);
    let (pool, none) = (pool(), mode(NetworkMode::None));
    assert_eq!(networks.furnish(id(1), &pool, &none).await, Ok(None));
    let why = networks.furnish(id(1), &pool, &policy).await.unwrap_err();
    assert!(why.contains("no nft here"), "{why}");
    assert!(networks.apply(id(1), &policy).await.is_err());
    assert_eq!(networks.available(), Err("no nft here".to_owned()));
    assert_eq!(networks.release(id(1)).await, Ok(()));
    assert_eq!(networks.report(id(1)).await, Ok(NetReport::default()));
    // What runs with an interface can't be held to its policy.
    let wanted = vec![(id(1), pool.clone(), policy.clone()), (id(2), pool, policy)];
    let seen = [alive(id(1), true), alive(id(2), false)];
    assert_eq!(networks.reconcile(wanted, &seen).await, Ok(vec![id(1)]));
}

#[tokio::test]
async fn a_reconciliation_tells_what_runs_and_has_lost_its_interface() {
    let (paper, networks) = on_paper();
    let policy = mode(NetworkMode::Internet);
    for number in 1..=4 {
        networks
            .furnish(id(number), &pool(), &policy)
            .await
            .unwrap();
    }
    paper.lose(id(2));
    paper.lose(id(3));
    let claim = mode(NetworkMode::Allowlist);
    let wanted = vec![
        (id(1), pool(), claim.clone()),
        (id(2), pool(), policy.clone()),
        (id(3), pool(), policy.clone()),
    ];
    let seen = [alive(id(1), true), alive(id(2), true), alive(id(3), false)];
    let lost = networks.reconcile(wanted.clone(), &seen).await;
    assert_eq!(
        lost,
        Ok(vec![id(2)]),
        "one that has ended has nothing to lose"
    );
    assert_eq!(paper.present(), [id(1)], "what nobody wants is gone");
    assert_eq!(paper.in_force(id(1)), Some(claim));
    // Nothing is told before policies are in force; leftovers alone hold nobody up.
    paper.fail_next(Verb::Reconcile, refused());
    assert!(networks.reconcile(wanted, &seen).await.is_err());
    paper.fail_next(Verb::Reconcile, refused());
    assert_eq!(networks.reconcile(Vec::new(), &seen).await, Ok(Vec::new()));
}

/// One that is given up goes on; the next waits until it has ended.
#[tokio::test]
async fn reconciliations_never_overlap() {
    let (paper, networks) = on_paper();
    paper.delay(Verb::Reconcile, Duration::from_millis(200));
    let first = tokio::spawn({
        let networks = networks.clone();
        async move { networks.reconcile(Vec::new(), &[]).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    first.abort();
    let began = tokio::time::Instant::now();
    networks.reconcile(Vec::new(), &[]).await.unwrap();
    // What is left of the first, and all of its own: sleeps are never shorter.
    assert!(began.elapsed() > Duration::from_millis(300));
    let reconciled = |call: &Call| matches!(call, Call::Reconcile(_));
    assert_eq!(
        paper.calls().iter().filter(|call| reconciled(call)).count(),
        2
    );
}

/// A scrape does not wait for a kernel that hangs.
#[tokio::test]
async fn counting_what_was_denied_has_an_end() {
    let (paper, networks) = on_paper();
    networks.count_denied().await;
    paper.delay(Verb::Denied, Duration::from_secs(600));
    timeout(20 * SCRAPE, networks.count_denied()).await.unwrap();
}

#[tokio::test]
async fn a_report_of_one_without_an_interface_is_empty() {
    let (paper, networks) = on_paper();
    assert_eq!(networks.report(id(1)).await, Ok(NetReport::default()));
    let policy = mode(NetworkMode::Internet);
    networks.furnish(id(1), &pool(), &policy).await.unwrap();
    assert_eq!(networks.report(id(1)).await.unwrap().policy, policy);
    paper.fail_next(Verb::Report, refused());
    assert!(matches!(
        networks.report(id(1)).await,
        Err(Refusal::Internal { .. })
    ));
    assert_eq!(networks.release(id(1)).await, Ok(()));
    paper.fail_next(Verb::Release, refused());
    assert!(networks.release(id(1)).await.is_err());
}
