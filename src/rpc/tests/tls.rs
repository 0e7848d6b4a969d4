//! TCP: who gets through the handshake, as whom, and for how long. Real sockets, certificates made on the spot.

use super::*;
pub(super) use crate::identity::certificates::{Authority, Issued, Volume, Wanted};
use crate::identity::{ClientCertificate, Reloader, Tls, TlsFiles};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

pub(super) const ADMIN: &str = "spiffe://td/ns/hearth/sa/admin";
pub(super) const ALLOCATOR: &str = "spiffe://td/ns/a/sa/allocator";
pub(super) const VIEWER: &str = "viewer.example";
pub(super) const HOUR: Duration = Duration::from_secs(3600);

fn policy() -> Policy {
    let lists: [(Roles, &[String]); 3] = [
        (Roles::ADMIN, &[ADMIN.to_owned()]),
        (
            Roles::ALLOCATOR,
            &["spiffe://td/ns/*/sa/allocator".to_owned()],
        ),
        (Roles::VIEWER, &[format!("dns:{VIEWER}")]),
    ];
    Policy::new(lists).unwrap()
}

/// A server over TCP.
pub(super) struct Secure {
    pub(super) bench: Bench,
    pub(super) authority: Authority,
    volume: Volume,
    address: SocketAddr,
}

/// How a [`Secure`] differs from the usual one.
pub(super) struct Ways {
    pub(super) client: ClientCertificate,
    pub(super) age: Duration,
    pub(super) grace: Duration,
    pub(super) per_second: u32,
    /// Who reviews tokens.
    pub(super) reviews: Option<(Arc<dyn identity::Authority>, identity::ReviewSettings)>,
}

impl Default for Ways {
    fn default() -> Self {
        Self {
            client: ClientCertificate::Required,
            age: HOUR,
            grace: HOUR,
            per_second: 1_000_000,
            reviews: None,
        }
    }
}

fn node() -> Wanted {
    Wanted::dns("localhost").and_address("127.0.0.1")
}

impl Secure {
    async fn start() -> Self {
        Self::with(Ways::default()).await
    }

    pub(super) async fn with(ways: Ways) -> Self {
        let (authority, volume) = (Authority::new("ours"), Volume::new());
        volume.swap(&authority.issue(&node()), &authority.pem());
        let (tls, _reloader) = Self::tls(&volume, ways.client);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tcp = Tcp {
            listener,
            tls,
            age: ways.age,
            grace: ways.grace,
        };
        let guard = |registry: &prometheus::Registry, audit: &Path| {
            let reviewer = ways.reviews.map(|(authority, settings)| {
                let metrics = identity::ReviewMetrics::register(registry).unwrap();
                Arc::new(identity::Reviewer::new(authority, &settings, metrics))
            });
            Guard {
                reviewer,
                ..guard_of(registry, policy(), ways.per_second, audit)
            }
        };
        let bench = Bench::guarded(guard, Some(tcp), |_| ()).await;
        Self {
            bench,
            authority,
            volume,
            address,
        }
    }

    fn tls(volume: &Volume, client_certificate: ClientCertificate) -> (Tls, JoinHandle<()>) {
        let files = TlsFiles {
            certificate: volume.path("tls.crt"),
            key: volume.path("tls.key"),
            client_ca: volume.path("ca.crt"),
            client_certificate,
        };
        let metrics = identity::Metrics::register(&prometheus::Registry::new()).unwrap();
        let (reloader, tls) = Reloader::load(files, metrics).unwrap();
        // Ends with the server, which holds the other end.
        (tls, tokio::spawn(reloader.run()))
    }

    pub(super) fn endpoint(&self, shown: Option<&Issued>) -> Endpoint {
        let ca = Certificate::from_pem(self.authority.pem());
        let tls = ClientTlsConfig::new().ca_certificate(ca);
        let tls = match shown {
            Some(shown) => tls.identity(Identity::from_pem(&shown.pem, &shown.key_pem)),
            None => tls,
        };
        let endpoint = Endpoint::try_from(format!("https://{}", self.address)).unwrap();
        endpoint.tls_config(tls).unwrap()
    }

    /// A channel with this certificate of our CA.
    pub(super) async fn of(&self, wanted: &Wanted) -> Channel {
        let issued = self.authority.issue(wanted);
        self.endpoint(Some(&issued)).connect().await.unwrap()
    }

    /// Nothing of hearth is answered; the handshake counts as failed.
    pub(super) async fn closed_to(&self, endpoint: Endpoint, case: &str) {
        let failed = "hearth_tls_handshakes_failed_total";
        let before = self.bench.number(failed);
        if let Ok(channel) = endpoint.connect().await {
            let asked = NodeClient::new(channel).info(InfoRequest {}).await;
            let status = asked.unwrap_err();
            assert_eq!(reason(&status), "", "{case}: {status:?}");
        }
        eventually(case, || self.bench.number(failed) > before).await;
    }
}

impl Bench {
    pub(super) fn number(&self, metric: &str) -> u64 {
        let text = self.metrics();
        let line = text.lines().find_map(|line| line.strip_prefix(metric));
        line.map_or(0, |number| number.trim().parse().unwrap())
    }

    pub(super) fn audited(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.dir.path().join("audit.log")).unwrap();
        let whole = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        whole.collect()
    }
}

pub(super) fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = MetadataValue::try_from(format!("Bearer {token}")).unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

#[tokio::test]
async fn a_certificate_gives_the_roles_of_its_name() {
    let secure = Secure::start().await;
    let admin = secure.of(&Wanted::spiffe(ADMIN)).await;
    let allocator = secure.of(&Wanted::spiffe(ALLOCATOR)).await;
    let viewer = secure.of(&Wanted::dns(VIEWER)).await;
    let list = ListClaimsRequest::default;
    let claimed = ClaimsClient::new(allocator.clone())
        .claim(claim_request())
        .await;
    claimed.unwrap();
    for channel in [&admin, &allocator, &viewer] {
        let mut claims = ClaimsClient::new(channel.clone());
        claims.list(list()).await.unwrap();
    }
    let denied = |answer| refused::<()>(answer, Code::PermissionDenied, "NOT_ALLOWED");
    let claimed = ClaimsClient::new(viewer).claim(claim_request()).await;
    denied(claimed.map(|_| ()));
    let set = SetPoolsRequest {
        generation: 2,
        pools: Vec::new(),
        epoch: 1,
    };
    let told = PoolsClient::new(allocator).set_pools(set.clone()).await;
    denied(told.map(|_| ()));
    PoolsClient::new(admin).set_pools(set).await.unwrap();
}

#[tokio::test]
async fn another_identity_has_no_role() {
    let secure = Secure::start().await;
    for (wanted, code, why) in [
        (
            "spiffe://td2/ns/a/sa/allocator",
            Code::PermissionDenied,
            "NOT_ALLOWED",
        ),
        (
            "spiffe://td/ns/a/b/sa/allocator",
            Code::PermissionDenied,
            "NOT_ALLOWED",
        ),
        ("spiffe://td", Code::Unauthenticated, "UNAUTHENTICATED"),
        (
            "https://td/ns/a/sa/allocator",
            Code::Unauthenticated,
            "UNAUTHENTICATED",
        ),
    ] {
        // A DNS name beside it counts for nothing.
        let channel = secure.of(&Wanted::spiffe(wanted).and_dns(VIEWER)).await;
        let asked = NodeClient::new(channel).info(InfoRequest {}).await;
        refused(asked, code, why);
    }
    let channel = secure.of(&Wanted::dns("viewer.example.evil")).await;
    let asked = NodeClient::new(channel).info(InfoRequest {}).await;
    refused(asked, Code::PermissionDenied, "NOT_ALLOWED");
}

#[tokio::test]
async fn bad_certificates_do_not_get_through_the_handshake() {
    let secure = Secure::start().await;
    let admin = || Wanted::spiffe(ADMIN);
    let issue = |wanted: &Wanted| secure.authority.issue(wanted);
    let cases = [
        ("wrong CA", Authority::new("ours").issue(&admin())),
        ("expired", issue(&admin().expired())),
        ("not yet valid", issue(&admin().later(HOUR, 2 * HOUR))),
    ];
    for (case, issued) in &cases {
        secure.closed_to(secure.endpoint(Some(issued)), case).await;
    }
    secure
        .closed_to(secure.endpoint(None), "no client certificate")
        .await;
    let plain = Endpoint::try_from(format!("http://{}", secure.address)).unwrap();
    secure.closed_to(plain, "plaintext").await;
    // And the right one still does.
    let channel = secure.of(&admin()).await;
    NodeClient::new(channel).info(InfoRequest {}).await.unwrap();
}

/// A ClientHello of TLS 1.1 (RFC 4346 §7.4.1.2) with nothing wrong but its version: signature algorithms are TLS 1.2's.
fn hello_of_tls_1_1() -> Vec<u8> {
    let mut body = vec![3, 2];
    body.extend([7; 32]); // Random.
    body.push(0); // No session.
    let suites = [0xc0, 0x13, 0xc0, 0x14, 0x00, 0x2f]; // ECDHE-RSA-AES and RSA-AES, with SHA-1.
    body.extend([0, 6]);
    body.extend(suites);
    body.extend([1, 0]); // No compression.
    body.extend([0, 8, 0, 13, 0, 4, 0, 2, 4, 3]); // Signature algorithms: ECDSA on P-256.
    let length = u8::try_from(body.len()).unwrap();
    let mut record = vec![22, 3, 1, 0, length + 4, 1, 0, 0, length];
    record.extend(body);
    record
}

#[tokio::test]
async fn old_tls_is_refused() {
    let secure = Secure::start().await;
    let mut stream = TcpStream::connect(secure.address).await.unwrap();
    stream.write_all(&hello_of_tls_1_1()).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer));
    // The connection may end with a reset after the alert.
    let _ended = read.await.unwrap();
    // An alert (21), fatal (2), protocol_version (70).
    assert_eq!((answer[0], answer.len()), (21, 7), "{answer:?}");
    assert_eq!(answer[5..], [2, 70], "{answer:?}");
}

#[tokio::test]
async fn a_silent_peer_is_cut_and_holds_nobody_up() {
    let secure = Secure::start().await;
    let mut silent = TcpStream::connect(secure.address).await.unwrap();
    let channel = secure.of(&Wanted::spiffe(ADMIN)).await;
    NodeClient::new(channel).info(InfoRequest {}).await.unwrap();
    let mut nothing = Vec::new();
    let read = tokio::time::timeout(PATIENCE, silent.read_to_end(&mut nothing));
    assert_eq!(read.await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_client_refuses_another_server() {
    let (ours, other) = (Secure::start().await, Secure::start().await);
    let issued = other.authority.issue(&Wanted::spiffe(ADMIN));
    let ca = Certificate::from_pem(other.authority.pem());
    let tls = ClientTlsConfig::new().ca_certificate(ca);
    let tls = tls.identity(Identity::from_pem(&issued.pem, &issued.key_pem));
    let endpoint = Endpoint::try_from(format!("https://{}", ours.address)).unwrap();
    assert!(endpoint.tls_config(tls).unwrap().connect().await.is_err());
}

#[tokio::test]
async fn without_a_certificate_a_token_opens_its_sandbox_and_nothing_more() {
    let secure = Secure::with(Ways {
        client: ClientCertificate::Optional,
        ..Ways::default()
    })
    .await;
    let allocator = secure.of(&Wanted::spiffe(ALLOCATOR)).await;
    let mut claims = ClaimsClient::new(allocator);
    let mut granted = Vec::new();
    for _ in 0..2 {
        let request = claim_request();
        let answer = claims.claim(request.clone()).await.unwrap().into_inner();
        granted.push((request.claim_id, answer.access_token));
    }
    let stranger = secure.endpoint(None).connect().await.unwrap();
    let mut sandboxes = SandboxesClient::new(stranger.clone());
    let stats = |claim_id: &str| StatsRequest {
        claim_id: claim_id.to_owned(),
        ..StatsRequest::default()
    };
    let ((first, token), (second, _)) = (&granted[0], &granted[1]);
    let asked = sandboxes.stats(with_token(stats(first), token)).await;
    asked.unwrap();
    let asked = sandboxes.stats(with_token(stats(second), token)).await;
    refused(asked, Code::PermissionDenied, "NOT_ALLOWED");
    let asked = sandboxes.stats(stats(first)).await;
    refused(asked, Code::Unauthenticated, "UNAUTHENTICATED");
    let mut strange = ClaimsClient::new(stranger);
    let asked = strange.claim(with_token(claim_request(), token)).await;
    refused(asked, Code::Unauthenticated, "UNAUTHENTICATED");
    let release = ReleaseRequest {
        claim_id: first.clone(),
        epoch: 1,
    };
    claims.release(release).await.unwrap();
    let asked = sandboxes.stats(with_token(stats(first), token)).await;
    refused(asked, Code::PermissionDenied, "NOT_ALLOWED");
    // One that is shown must be good all the same.
    let wrong = Authority::new("ours").issue(&Wanted::spiffe(ADMIN));
    secure
        .closed_to(secure.endpoint(Some(&wrong)), "wrong CA")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_five_seconds_rotate_under_load_without_one_failed_call() {
    const LIFE: Duration = Duration::from_secs(5);
    const ROTATIONS: u32 = 6;
    let secure = Secure::start().await;
    let short = |wanted: Wanted| secure.authority.issue(&wanted.valid(HOUR, LIFE));
    let fresh = async || {
        let issued = std::time::Instant::now();
        let endpoint = secure.endpoint(Some(&short(Wanted::spiffe(ALLOCATOR))));
        (endpoint.connect().await.unwrap(), issued)
    };
    let (current, channels) = watch::channel(fresh().await);
    let calls = Arc::new(AtomicU64::new(0));
    let mut workers = Vec::new();
    for _ in 0..4 {
        let (channels, calls) = (channels.clone(), Arc::clone(&calls));
        workers.push(tokio::spawn(async move {
            // As long as somebody rotates.
            while channels.has_changed().is_ok() {
                let (channel, issued) = channels.borrow().clone();
                let info = NodeClient::new(channel).info(InfoRequest {}).await;
                // On a machine that stood still the next certificate is late (times in it are whole seconds).
                if let Err(status) = info
                    && issued.elapsed() < LIFE - Duration::from_secs(1)
                {
                    return Err(format!("call {calls:?}: {status:?}"));
                }
                calls.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok::<(), String>(())
        }));
    }
    for _ in 0..ROTATIONS {
        tokio::time::sleep(LIFE / 2).await;
        secure.volume.swap(&short(node()), &secure.authority.pem());
        current.send_replace(fresh().await);
    }
    drop(current);
    for worker in workers {
        worker.await.unwrap().unwrap();
    }
    let calls = calls.load(Ordering::Relaxed);
    assert!(calls > 200, "{calls}");
    println!("{calls} calls over {ROTATIONS} rotations");
}

#[tokio::test]
async fn a_removed_ca_is_not_trusted_any_more() {
    let secure = Secure::start().await;
    let issued = secure.authority.issue(&Wanted::spiffe(ADMIN));
    let endpoint = secure.endpoint(Some(&issued));
    let info = |channel| async { NodeClient::new(channel).info(InfoRequest {}).await };
    info(endpoint.connect().await.unwrap()).await.unwrap();
    let next = Authority::new("next");
    secure
        .volume
        .swap(&secure.authority.issue(&node()), &next.pem());
    let began = std::time::Instant::now();
    loop {
        let asked = match endpoint.connect().await {
            Ok(channel) => info(channel).await.is_ok(),
            Err(_) => false,
        };
        if !asked {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "the old CA is still trusted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_connections_leave_in_order_and_are_cut_in_the_end() {
    let second = Duration::from_secs(1);
    let secure = Secure::with(Ways {
        age: second,
        grace: 2 * second,
        ..Ways::default()
    })
    .await;
    let channel = secure.of(&Wanted::spiffe(ADMIN)).await;
    let mut claims = ClaimsClient::new(channel.clone());
    let watch = claims.watch(WatchClaimsRequest::default()).await.unwrap();
    let mut watch = watch.into_inner();
    let began = std::time::Instant::now();
    let cut = tokio::spawn(async move {
        while let Ok(Some(_)) = watch.message().await {}
        began.elapsed()
    });
    let (mut calls, mut repeated) = (0, 0);
    while began.elapsed() < 4 * second {
        let mut node = NodeClient::new(channel.clone());
        let asked = std::time::Instant::now();
        let mut met_the_end = false;
        // tonic's client does not repeat by itself what it had not sent when it was asked to leave; on a slow machine
        // the repetition, too, can meet a connection that has just grown old.
        while let Err(status) = node.info(InfoRequest {}).await {
            assert_eq!(reason(&status), "", "{status:?}");
            assert!(asked.elapsed() < PATIENCE, "no new connection: {status:?}");
            met_the_end = true;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        calls += 1;
        repeated += u32::from(met_the_end);
    }
    assert!(
        repeated <= 5,
        "one call for a connection at most: {repeated}"
    );
    let cut = tokio::time::timeout(PATIENCE, cut).await.unwrap().unwrap();
    assert!(cut > 2 * second, "streams have the grace: {cut:?}");
    let audited = secure.bench.audited();
    let from: std::collections::BTreeSet<_> = audited
        .iter()
        .filter_map(|line| line["from"].as_str())
        .collect();
    assert!(from.len() > 2, "{calls} calls over {from:?}");
}

#[tokio::test]
async fn an_expired_connection_is_closed_to_new_calls() {
    let secure = Secure::start().await;
    let life = Duration::from_secs(3);
    let channel = secure.of(&Wanted::spiffe(ADMIN).valid(HOUR, life)).await;
    let mut node = NodeClient::new(channel);
    node.info(InfoRequest {}).await.unwrap();
    tokio::time::sleep(life + Duration::from_secs(1)).await;
    // The client was asked to leave, and comes back with the same certificate, which has expired.
    assert!(node.info(InfoRequest {}).await.is_err());
}

#[tokio::test]
async fn a_caller_that_asks_too_much_is_told_when_to_come_back() {
    let secure = Secure::with(Ways {
        per_second: 5,
        ..Ways::default()
    })
    .await;
    let allocator = secure.of(&Wanted::spiffe(ALLOCATOR)).await;
    let mut claims = ClaimsClient::new(allocator);
    let limited = loop {
        if let Err(status) = claims.list(ListClaimsRequest::default()).await {
            break status;
        }
    };
    let details = limited.get_error_details();
    assert_eq!(
        (limited.code(), reason(&limited).as_str()),
        (Code::ResourceExhausted, "RATE_LIMITED")
    );
    let delay = details.retry_info().unwrap().retry_delay.unwrap();
    assert!(Duration::ZERO < delay && delay <= Duration::from_millis(200));
    // Giving back goes on, and so do other callers.
    let release = ReleaseRequest {
        claim_id: uuid::Uuid::new_v4().to_string(),
        epoch: 1,
    };
    claims.release(release).await.unwrap();
    let admin = secure.of(&Wanted::spiffe(ADMIN)).await;
    NodeClient::new(admin).info(InfoRequest {}).await.unwrap();
    tokio::time::sleep(delay).await;
    claims.list(ListClaimsRequest::default()).await.unwrap();
    assert!(secure.bench.number("hearth_rpc_rate_limited_total") > 0);
}

#[tokio::test]
async fn every_decision_and_every_change_is_written_down_without_secrets() {
    let secure = Secure::start().await;
    let allocator = secure.of(&Wanted::spiffe(ALLOCATOR)).await;
    let mut request = claim_request();
    let mut inside = Personalization::default();
    inside.env.insert("PASSWORD".into(), "hunter2".into());
    request.personalization = Some(inside);
    let claim_id = request.claim_id.clone();
    let claimed = ClaimsClient::new(allocator.clone()).claim(request).await;
    let token = claimed.unwrap().into_inner().access_token;
    let mut sandboxes = SandboxesClient::new(allocator.clone());
    let stats = || StatsRequest {
        claim_id: claim_id.clone(),
        ..StatsRequest::default()
    };
    sandboxes.stats(with_token(stats(), &token)).await.unwrap();
    let wrong = sandboxes.stats(with_token(stats(), "hearth_AAAA")).await;
    refused(wrong, Code::PermissionDenied, "NOT_ALLOWED");
    let denied = PoolsClient::new(allocator)
        .set_pools(SetPoolsRequest::default())
        .await;
    refused(denied, Code::PermissionDenied, "NOT_ALLOWED");
    let decision = |method: &str, allowed: bool, by: &str| {
        let fits = |line: &serde_json::Value| {
            line["event"] == "decision"
                && (&line["method"], &line["allowed"]) == (&method.into(), &allowed.into())
                && (&line["by"], &line["caller"]) == (&by.into(), &ALLOCATOR.into())
        };
        secure
            .bench
            .audited()
            .iter()
            .filter(|line| fits(line))
            .count()
    };
    for (method, allowed, by) in [
        ("Claims/Claim", true, "role"),
        ("Sandboxes/Stats", true, "token"),
        ("Sandboxes/Stats", false, "token"),
        ("Pools/SetPools", false, "NOT_ALLOWED"),
    ] {
        let case = format!("{method} {allowed} {by}");
        eventually(&case, || decision(method, allowed, by) == 1).await;
    }
    let outcome = |line: &serde_json::Value| {
        line["event"] == "outcome"
            && line["method"] == "Claims/Claim"
            && line["code"] == "OK"
            && line["subject"] == format!("claim {claim_id} of pool {POOL}")
            && line["trace_id"].as_str().unwrap().len() == 32
    };
    eventually("the outcome", || secure.bench.audited().iter().any(outcome)).await;
    let text = std::fs::read_to_string(secure.bench.dir.path().join("audit.log")).unwrap();
    for secret in ["hunter2", &token, "hearth_"] {
        assert!(!text.contains(secret), "{text}");
    }
}
