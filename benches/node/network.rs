//! A claim that brings its network policy to a warm member, beside one that takes the template's, and a visitor of a
//! sandbox that sleeps, beside one of a sandbox that is awake. On a node of its own.

use crate::hearthd::{Hearth, claim_request, eventually, fresh_id, pool};
use crate::measure::{Report, Series, millis};
use crate::outside::{self, Outside};
use hearth::api::{
    GetNetworkRequest, HibernateRequest, NetworkMode, NetworkPolicy, NetworkRule, Personalization,
    PortRange,
};
use std::time::{Duration, Instant};

const POOL: &str = "network";
const MEMBERS: u32 = 4;
const ROUNDS: u32 = 25;
const VISITS: u32 = 20;

pub async fn section(report: &mut Report) {
    let outside = Outside::new();
    let settings = [
        ("log.level", "warn"),
        ("network.enabled", "true"),
        ("network.resolvers", outside::GATEWAY),
        ("memory.swap", "zram:1GiB"),
    ];
    let hearth = Hearth::start_inside(&[], outside.node(), &settings).await;
    let mut declared = pool(POOL, MEMBERS, 4 * MEMBERS);
    declared.template.as_mut().unwrap().network_policy = Some(NetworkPolicy {
        mode: NetworkMode::Allowlist.into(),
        ..NetworkPolicy::default()
    });
    hearth.set_pools(vec![declared]).await;
    // In turn, so that both meet the same node.
    let (mut plain, mut own) = (Series::default(), Series::default());
    for _ in 0..ROUNDS {
        plain.push(claim(&hearth, None).await);
        own.push(claim(&hearth, Some(policy())).await);
    }
    report.row("claim of a member with an interface", &plain);
    report.row("  with a policy of three rules of its own", &own);
    let more = millis(own.at(50)) - millis(plain.at(50));
    let what = "claim with its own network policy, p50 beyond a warm claim, ms";
    report.goal(what, more, "≤ 3", more <= 3.0);
    visits(report, &hearth, &outside).await;
    hearth.finish().await;
}

/// Answers whoever connects.
const SERVE: &str = "import socket
s = socket.create_server(('', 8000))
while True:
    c = s.accept()[0]; c.sendall(b'x'); c.close()";

/// A connection from the node to a published port, until the first byte: hearth looks twenty times a second.
async fn visits(report: &mut Report, hearth: &Hearth, outside: &Outside) {
    let policy = NetworkPolicy {
        publish: vec![8000],
        mode: NetworkMode::Internet.into(),
        ..NetworkPolicy::default()
    };
    let mut request = claim_request(&fresh_id(), POOL);
    let id = request.claim_id.clone();
    request.personalization = Some(Personalization {
        network_policy: Some(policy),
        ..Personalization::default()
    });
    hearth.claims().await.claim(request).await.unwrap();
    hearth.start_detached(&id, &["python3", "-c", SERVE]).await;
    let network = GetNetworkRequest {
        claim_id: id.clone(),
    };
    let network = hearth.sandboxes().await.get_network(network).await.unwrap();
    let address = network.into_inner().addresses[0].clone();
    eventually("it serves", || async {
        outside.reaches(false, &address, 8000)
    })
    .await;
    let (mut awake, mut asleep) = (Series::default(), Series::default());
    for round in 0..VISITS {
        let visit = || {
            let began = Instant::now();
            assert!(outside.reaches(false, &address, 8000));
            began.elapsed()
        };
        awake.push(visit());
        let sleep = HibernateRequest {
            claim_id: id.clone(),
            epoch: 1,
            ..HibernateRequest::default()
        };
        hearth.claims().await.hibernate(sleep).await.unwrap();
        // Its memory goes, and no two visits come at the same moment between two looks.
        let pause = Duration::from_millis(1000 + u64::from(round) * 37);
        tokio::time::sleep(pause).await;
        asleep.push(visit());
    }
    report.row("visitor of a sandbox asleep → first byte", &asleep);
    report.row("  the same of one awake", &awake);
    hearth.release(&id).await;
}

fn policy() -> NetworkPolicy {
    let rule = |cidr: &str, name: &str| NetworkRule {
        cidr: cidr.to_owned(),
        name: name.to_owned(),
        ports: vec![PortRange {
            first: 443,
            last: 0,
        }],
        ..NetworkRule::default()
    };
    NetworkPolicy {
        mode: NetworkMode::Allowlist.into(),
        allow: vec![
            rule("11.1.0.0/16", ""),
            rule("10.9.9.9", ""),
            rule("", "*.example.com"),
        ],
        ..NetworkPolicy::default()
    }
}

async fn claim(hearth: &Hearth, policy: Option<NetworkPolicy>) -> Duration {
    eventually("full and quiet", || async {
        let status = hearth.status(POOL).await;
        status.creating == 0 && status.releasing == 0 && status.warm == MEMBERS
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let id = fresh_id();
    let mut request = claim_request(&id, POOL);
    request.personalization = policy.map(|policy| Personalization {
        network_policy: Some(policy),
        ..Personalization::default()
    });
    let mut client = hearth.claims().await;
    let began = Instant::now();
    client.claim(request).await.unwrap();
    let took = began.elapsed();
    hearth.release(&id).await;
    took
}
