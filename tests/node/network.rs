//! Network policies on a real node: gVisor's own network stack on a real netns, nftables, hearth's resolver. The packet
//! matrix is in `tests/network`; here is what the daemon makes of it: templates, claims, sleep, deaths, leaks.

use crate::hearthd::{
    Hearth, claim_request, eventually, fresh_id, patient_request, pool, processes,
};
use crate::outside::{self, Outside};
use crate::vitals::Vitals;
use hearth::api::{
    ClaimRequest, ClaimState, GetNetworkRequest, GetNetworkResponse, HibernateReason,
    HibernateRequest, NetworkMode, NetworkPolicy, NetworkRule, Personalization, Pool, PortRange,
    Source, Tier,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// A server inside, and its client.
const LOOPBACK: &str = "import socket
for address in ('127.0.0.1', '::1'):
    server = socket.create_server((address, 0), family=socket.AF_INET6 if ':' in address else socket.AF_INET)
    client = socket.create_connection(server.getsockname()[:2], 2)
    print(client.getpeername()[0])";

/// hearthd in the node's namespace.
pub async fn node(outside: &Outside) -> Hearth {
    node_with(outside, &[]).await
}

/// The same with settings of the test's own.
pub async fn node_with(outside: &Outside, more: &[(&str, &str)]) -> Hearth {
    let settings = [
        ("network.enabled", "true"),
        ("network.resolvers", outside::GATEWAY),
        ("network.spares", "2"),
    ];
    let settings = [&settings, more].concat();
    Hearth::start_inside(&[], outside.node(), &settings).await
}

pub fn mode(mode: NetworkMode) -> NetworkPolicy {
    NetworkPolicy {
        mode: mode.into(),
        ..NetworkPolicy::default()
    }
}

/// An allowlist of one rule.
pub fn allow(rule: NetworkRule) -> NetworkPolicy {
    NetworkPolicy {
        allow: vec![rule],
        ..mode(NetworkMode::Allowlist)
    }
}

pub fn to(address: &str) -> NetworkRule {
    NetworkRule {
        cidr: address.to_owned(),
        ..NetworkRule::default()
    }
}

pub fn with_policy(name: &str, min_warm: u32, policy: NetworkPolicy) -> Pool {
    let mut pool = pool(name, min_warm, 16);
    pool.template.as_mut().unwrap().network_policy = Some(policy);
    pool
}

fn request(pool: &str, policy: Option<NetworkPolicy>) -> ClaimRequest {
    ClaimRequest {
        personalization: Some(Personalization {
            network_policy: policy,
            ..Personalization::default()
        }),
        ..claim_request(&fresh_id(), pool)
    }
}

/// Claims with a policy of its own: claim, sandbox, how the sandbox came.
async fn claim(hearth: &Hearth, pool: &str, policy: NetworkPolicy) -> (String, Source) {
    let request = request(pool, Some(policy));
    let id = request.claim_id.clone();
    let answer = hearth.claims().await.claim(request).await.unwrap();
    (id, answer.into_inner().source())
}

/// Does a connection from inside get its answer?
pub async fn reaches(hearth: &Hearth, claim: &str, host: &str, port: u16) -> bool {
    let script = format!(
        "import socket\ns = socket.create_connection(('{host}', {port}), 2)\ns.settimeout(2)\nprint(s.recv(16).decode())"
    );
    let (code, text) = hearth.run(claim, &["python3", "-c", &script]).await;
    code == 0 && text == "hearth\n"
}

pub async fn network(hearth: &Hearth, claim: &str) -> GetNetworkResponse {
    let request = GetNetworkRequest {
        claim_id: claim.to_owned(),
    };
    let answer = hearth.sandboxes().await.get_network(request).await;
    answer.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn templates_open_what_they_say_and_nothing_else() {
    let outside = Outside::new();
    let hearth = node(&outside).await;
    let listed = NetworkRule {
        ports: vec![PortRange { first: 80, last: 0 }],
        ..to(outside::PRIVATE)
    };
    hearth
        .set_pools(vec![
            with_policy("closed", 1, mode(NetworkMode::None)),
            with_policy("listed", 1, allow(listed)),
            with_policy("open", 2, mode(NetworkMode::Internet)),
        ])
        .await;
    hearth.warm("closed", 1).await;
    hearth.warm("listed", 1).await;
    hearth.warm("open", 2).await;
    let (closed, _) = hearth.claim("closed").await;
    let (listed, _) = hearth.claim("listed").await;
    let (open, _) = hearth.claim("open").await;
    let (neighbour, _) = hearth.claim("open").await;
    // With an interface or without: a loopback.
    for claim in [&closed, &open] {
        let (code, told) = hearth.run(claim, &["python3", "-c", LOOPBACK]).await;
        assert_eq!((code, told.as_str()), (0, "127.0.0.1\n::1\n"), "{claim}");
    }
    let neighbours = network(&hearth, &neighbour).await.addresses[0].clone();
    for (target, port, expected) in [
        (outside::PUBLIC, 80, [false, false, true]),
        (outside::PRIVATE, 80, [false, true, false]),
        (outside::PRIVATE, 81, [false, false, false]),
        (outside::METADATA, 80, [false, false, false]),
        (outside::NODE, 8080, [false, false, false]),
        (neighbours.as_str(), 80, [false, false, false]),
    ] {
        for (claim, expected) in [&closed, &listed, &open].into_iter().zip(expected) {
            let found = reaches(&hearth, claim, target, port).await;
            assert_eq!(found, expected, "{target}:{port} from {claim}");
        }
    }
    assert_eq!(network(&hearth, &closed).await.interface, "");
    let told = network(&hearth, &open).await;
    assert_eq!(told.policy, Some(mode(NetworkMode::Internet)));
    assert!(
        told.denied_packets > 0 && !told.denied.is_empty(),
        "{told:?}"
    );
    let scraped = hearth.admin_page("/metrics").1;
    let counted = "hearth_network_denied_packets_total{pool=\"open\"}";
    assert!(scraped.contains(counted), "{scraped}");
    hearth.finish().await;
}

pub async fn sleep(hearth: &Hearth, claim: &str, tier: Tier) {
    let request = HibernateRequest {
        claim_id: claim.to_owned(),
        epoch: 1,
        tier: tier.into(),
        reason: HibernateReason::WaitingOnModel.into(),
    };
    hearth.claims().await.hibernate(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_brings_its_policy_to_a_member_warm_or_frozen() {
    let outside = Outside::new();
    let hearth = node(&outside).await;
    let mut tiers = with_policy("python", 3, mode(NetworkMode::Allowlist));
    tiers.running = Some(1);
    hearth.set_pools(vec![tiers]).await;
    hearth.warm("python", 3).await;
    eventually("two frozen members", || async {
        hearth.status("python").await.frozen == 2
    })
    .await;
    let mut sources = Vec::new();
    for (allowed, refused) in [
        (outside::PUBLIC, outside::OTHER),
        (outside::OTHER, outside::PUBLIC),
    ] {
        let (claim, source) = claim(&hearth, "python", allow(to(allowed))).await;
        sources.push(source);
        assert!(
            reaches(&hearth, &claim, allowed, 80).await,
            "{allowed}, {source:?}"
        );
        assert!(
            !reaches(&hearth, &claim, refused, 80).await,
            "{refused}, {source:?}"
        );
        // As it was, after a sleep in either tier.
        for tier in [Tier::Memory, Tier::Disk] {
            sleep(&hearth, &claim, tier).await;
            if tier == Tier::Memory {
                let asleep = network(&hearth, &claim).await;
                let held = asleep.policy.unwrap().allow[0].cidr.clone();
                assert_eq!(held, format!("{allowed}/32"));
            }
            assert!(reaches(&hearth, &claim, allowed, 80).await, "{tier:?}");
            assert!(!reaches(&hearth, &claim, refused, 80).await, "{tier:?}");
            let (code, told) = hearth.run(&claim, &["python3", "-c", LOOPBACK]).await;
            assert_eq!((code, told.as_str()), (0, "127.0.0.1\n::1\n"), "{tier:?}");
        }
    }
    // The pool may have thawed the second one before it was claimed.
    assert_eq!(sources[0], Source::Warm);
    assert!(matches!(sources[1], Source::Warm | Source::Thawed));
    // Without one it has the template's: nothing.
    let (plain, _) = hearth.claim("python").await;
    assert!(!reaches(&hearth, &plain, outside::PUBLIC, 80).await);
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_policy_under_the_same_claim_id_is_another_content() {
    let outside = Outside::new();
    let hearth = node(&outside).await;
    let pools = vec![
        with_policy("python", 1, mode(NetworkMode::Allowlist)),
        with_policy("closed", 1, mode(NetworkMode::None)),
    ];
    hearth.set_pools(pools).await;
    hearth.warm("python", 1).await;
    let first = request("python", Some(allow(to("11.1.1.77/24"))));
    let mut client = hearth.claims().await;
    let answer = client.claim(first.clone()).await.unwrap().into_inner();
    let same = |cidr: &str| ClaimRequest {
        personalization: Some(Personalization {
            network_policy: Some(allow(to(cidr))),
            ..Personalization::default()
        }),
        ..first.clone()
    };
    let again = client
        .claim(same("11.1.1.0/24"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(again.sandbox_id, answer.sandbox_id, "it means the same");
    let refused = client.claim(same("11.1.1.0/25")).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::AlreadyExists);
    assert!(refused.message().contains("personalization.network_policy"));
    let refused = client.claim(request("closed", Some(mode(NetworkMode::Internet))));
    let refused = refused.await.unwrap_err();
    assert_eq!(
        refused.code(),
        tonic::Code::FailedPrecondition,
        "{refused:?}"
    );
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_outlive_hearthd_and_containerd() {
    let outside = Outside::new();
    let mut hearth = node(&outside).await;
    let pool = with_policy("python", 2, mode(NetworkMode::Internet));
    hearth.set_pools(vec![pool]).await;
    hearth.warm("python", 2).await;
    let (own, _) = claim(&hearth, "python", allow(to(outside::PUBLIC))).await;
    let (plain, _) = hearth.claim("python").await;
    let hold = async |hearth: &Hearth| {
        assert!(reaches(hearth, &own, outside::PUBLIC, 80).await);
        assert!(!reaches(hearth, &own, outside::OTHER, 80).await);
        assert!(reaches(hearth, &plain, outside::OTHER, 80).await);
        assert!(!reaches(hearth, &plain, outside::PRIVATE, 80).await);
    };
    hold(&hearth).await;
    hearth.kill();
    hearth.restart().await;
    hold(&hearth).await;
    let told = network(&hearth, &own).await;
    assert_eq!(
        told.policy.unwrap().allow,
        [to(&format!("{}/32", outside::PUBLIC))]
    );
    hearth.kill_containerd();
    eventually("containerd is back", || async {
        hearth.phase().await.as_deref() == Some("ready")
    })
    .await;
    hold(&hearth).await;
    // And members made before serve claims after.
    hearth.warm("python", 2).await;
    hearth.kill();
    hearth.restart().await;
    hearth.warm("python", 2).await;
    let (late, _) = claim(&hearth, "python", allow(to(outside::OTHER))).await;
    assert!(reaches(&hearth, &late, outside::OTHER, 80).await);
    assert!(!reaches(&hearth, &late, outside::PUBLIC, 80).await);
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_open_as_they_are_resolved_and_ports_as_they_are_published() {
    let outside = Outside::new();
    let hearth = node(&outside).await;
    hearth
        .set_pools(vec![with_policy("python", 1, mode(NetworkMode::Allowlist))])
        .await;
    hearth.warm("python", 1).await;
    let policy = NetworkPolicy {
        publish: vec![8000],
        ..allow(NetworkRule {
            name: "*.example.com".to_owned(),
            ..NetworkRule::default()
        })
    };
    let (claim, _) = claim(&hearth, "python", policy).await;
    assert!(
        !reaches(&hearth, &claim, outside::PUBLIC, 80).await,
        "not by its address yet"
    );
    assert!(reaches(&hearth, &claim, outside::NAME, 80).await);
    assert!(!reaches(&hearth, &claim, outside::OTHER_NAME, 80).await);
    assert!(!reaches(&hearth, &claim, outside::OTHER, 80).await);
    let told = network(&hearth, &claim).await;
    assert_eq!(told.pinned.len(), 1, "{told:?}");
    assert_eq!(told.pinned[0].name, outside::NAME);
    // A server inside: open to the node where published, else through Connect only.
    let serve = "import socket\nls = []\nfor p in (8000, 8001):\n  l = socket.socket(); l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); l.bind(('', p)); l.listen(); ls.append(l)\nimport select\nwhile True:\n  for l in select.select(ls, [], [])[0]:\n    c, _ = l.accept(); c.sendall(b'inside'); c.close()";
    hearth
        .start_detached(&claim, &["python3", "-c", serve])
        .await;
    let address = told.addresses[0].clone();
    eventually("the published port answers", || async {
        outside.reaches(false, &address, 8000)
    })
    .await;
    assert!(!outside.reaches(false, &address, 8001));
    hearth.finish().await;
}

/// Sandboxes that are claimed with a policy of their own, talk, and are released.
const CHURNED: u32 = 500;
/// Callers at once.
const CHURNERS: u32 = 4;

/// How many there are of everything that a sandbox has.
pub fn census(hearth: &Hearth) -> BTreeMap<&'static str, usize> {
    let sandboxes = hearth.census();
    let root = hearth.path("").display().to_string();
    let root = root.trim_end_matches('/').to_owned();
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let (links, elements) = outside::routed(&hearth.path("run/netns/router"));
    BTreeMap::from([
        ("containers", sandboxes.containers.len()),
        ("tasks", sandboxes.tasks.len()),
        ("cgroups", sandboxes.cgroups.len()),
        ("directories", sandboxes.dirs.len()),
        (
            "processes",
            processes(|line| line.iter().any(|word| word.contains(&root))).len(),
        ),
        (
            "mounts",
            mounts.lines().filter(|line| line.contains(&root)).count(),
        ),
        ("links", links.len()),
        ("elements of nftables", elements),
    ])
}

/// Claims a member with a policy of its own, uses its network, and releases it.
async fn churn(hearth: &Hearth, round: u32) {
    let (open, closed) = match round % 2 {
        0 => (outside::PUBLIC, outside::OTHER),
        _ => (outside::OTHER, outside::PUBLIC),
    };
    let request = ClaimRequest {
        personalization: request("python", Some(allow(to(open)))).personalization,
        ..patient_request(&fresh_id(), "python", 60)
    };
    let id = request.claim_id.clone();
    hearth.claims().await.claim(request).await.unwrap();
    if round.is_multiple_of(25) {
        assert!(reaches(hearth, &id, open, 80).await, "round {round}");
        assert!(!reaches(hearth, &id, closed, 80).await, "round {round}");
    }
    hearth.release(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_churned_sandboxes_leave_nothing_behind() {
    let outside = Outside::new();
    let hearth = node(&outside).await;
    let mut python = with_policy("python", 4, mode(NetworkMode::Allowlist));
    python.max_parallel_refills = 4;
    hearth.set_pools(vec![python]).await;
    // Spares come back in their own time, and so do descriptors.
    let settled = async || {
        hearth.warm("python", 4).await;
        let mut last = BTreeMap::new();
        eventually("nothing moves any more", || {
            let now = census(&hearth);
            let same = now == last;
            last = now;
            async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                same
            }
        })
        .await;
        last
    };
    // One round first: what is made once and kept is there.
    futures::future::join_all((0..CHURNERS).map(|round| churn(&hearth, round))).await;
    let vitals = Vitals::of(hearth.pid());
    let (before, held) = (settled().await, vitals.descriptors());
    let callers = (0..CHURNERS).map(|caller| {
        let hearth = &hearth;
        async move {
            for round in 0..CHURNED / CHURNERS {
                churn(hearth, caller + CHURNERS * round).await;
            }
        }
    });
    futures::future::join_all(callers).await;
    let mut after = BTreeMap::new();
    eventually("everything is as before", || {
        after = census(&hearth);
        let same = after == before;
        async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            same
        }
    })
    .await;
    // Connections of the callers come and go.
    eventually("descriptors are as before", || async {
        vitals.descriptors() <= held + 4
    })
    .await;
    hearth.finish().await;
}

/// Says something every half second, which takes hardly any CPU.
const TALKS: &str = "import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    try: s.sendto(b'hearth', ('{address}', 80))
    except OSError: pass
    time.sleep(0.5)";

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_with_traffic_is_in_use_and_a_silent_one_falls_asleep() {
    let outside = Outside::new();
    let hearth = node(&outside).await;
    let mut sleepy = with_policy("open", 2, mode(NetworkMode::Internet));
    sleepy.template.as_mut().unwrap().idle_after = Some(prost_types::Duration {
        seconds: 8,
        nanos: 0,
    });
    hearth.set_pools(vec![sleepy]).await;
    hearth.warm("open", 2).await;
    let (talks, _) = hearth.claim("open").await;
    let (silent, _) = hearth.claim("open").await;
    let script = TALKS.replace("{address}", outside::PUBLIC);
    hearth
        .start_detached(&talks, &["python3", "-c", &script])
        .await;
    // Used again later than the one that talks.
    let (code, _) = hearth.run(&silent, &["true"]).await;
    assert_eq!(code, 0);
    eventually("the silent one sleeps", || async {
        hearth.get(&silent).await.state() == ClaimState::Hibernated
    })
    .await;
    assert_eq!(hearth.get(&talks).await.state(), ClaimState::Claimed);
    let stop = ["python3", "-c", STOP_TALKING];
    let (code, text) = hearth.run(&talks, &stop).await;
    assert_eq!(code, 0, "{text}");
    eventually("it sleeps once it is silent", || async {
        hearth.get(&talks).await.state() == ClaimState::Hibernated
    })
    .await;
    hearth.finish().await;
}

/// Ends whatever talks.
const STOP_TALKING: &str = "import os, signal
for pid in filter(str.isdigit, os.listdir('/proc')):
    with open('/proc/' + pid + '/cmdline') as f: line = f.read()
    if 'SOCK_DGRAM' in line and int(pid) != os.getpid(): os.kill(int(pid), signal.SIGKILL)";
