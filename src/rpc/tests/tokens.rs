//! ServiceAccount tokens over real TLS: who gets in, as whom, and what is told to the others. The authority is a fake
//! (`identity/review/fakes.rs`); tests/cluster/tokens.rs has a real API server.

use super::tls::{ADMIN, ALLOCATOR, HOUR, Secure, VIEWER, Wanted, Ways, with_token};
use super::*;
use crate::identity::ClientCertificate;
use crate::identity::review_fakes::{FakeAuthority, Mood, jwt, token};
use serde_json::json;

const USER: &str = "system:serviceaccount:agents:allocator";
const CALLER: &str = "k8s:system:serviceaccount:agents:allocator";

struct Reviewed {
    secure: Secure,
    authority: Arc<FakeAuthority>,
    /// Without a certificate.
    channel: Channel,
}

impl Reviewed {
    async fn start() -> Self {
        Self::with(HOUR, 1_000_000).await
    }

    async fn with(counts: Duration, per_second: u32) -> Self {
        let authority = FakeAuthority::new();
        let settings = identity::ReviewSettings {
            audiences: vec!["hearth".into()],
            namespace: "hearth".into(),
            entries: 64,
            good: counts,
            refused: counts,
            deadline: PATIENCE,
        };
        let ways = Ways {
            client: ClientCertificate::Optional,
            per_second,
            reviews: Some((authority.clone(), settings)),
            ..Ways::default()
        };
        let secure = Secure::with(ways).await;
        let channel = secure.endpoint(None).connect().await.unwrap();
        Self {
            secure,
            authority,
            channel,
        }
    }

    /// A token of the usual user.
    fn token(&self) -> String {
        let token = token(HOUR);
        self.authority.knows(&token, USER);
        token
    }

    async fn claim(&self, token: &str) -> Result<(String, ClaimResponse), Status> {
        let (request, mut claims) = (claim_request(), ClaimsClient::new(self.channel.clone()));
        let id = request.claim_id.clone();
        let answer = claims.claim(with_token(request, token)).await?;
        Ok((id, answer.into_inner()))
    }

    async fn list(&self, token: &str) -> Result<(), Status> {
        list(&self.channel, Some(token)).await
    }
}

async fn list(channel: &Channel, token: Option<&str>) -> Result<(), Status> {
    let message = ListClaimsRequest::default();
    let request = match token {
        Some(token) => with_token(message, token),
        None => tonic::Request::new(message),
    };
    let mut claims = ClaimsClient::new(channel.clone());
    claims.list(request).await.map(|_| ())
}

fn metadata(status: &Status, key: &str) -> String {
    let details = status.get_error_details();
    details.error_info().unwrap().metadata[key].clone()
}

#[tokio::test]
async fn a_token_lets_its_owner_do_what_the_cluster_grants_and_no_more() {
    let bench = Reviewed::start().await;
    let token = bench.token();
    bench.authority.grants(USER, "create", "claims");
    let (claim_id, granted) = bench.claim(&token).await.unwrap();
    let status = refused(
        bench.list(&token).await,
        Code::PermissionDenied,
        "NOT_GRANTED",
    );
    for (key, value) in [
        ("caller", CALLER),
        ("verb", "list"),
        ("resource", "claims"),
        ("group", "hearth.dev"),
        ("namespace", "hearth"),
    ] {
        assert_eq!(metadata(&status, key), value);
        assert!(status.message().contains(value), "{}", status.message());
    }
    // The claim's own token opens its sandbox, and the other kind does not without the right to.
    let mut sandboxes = SandboxesClient::new(bench.channel.clone());
    let stats = || StatsRequest {
        claim_id: claim_id.clone(),
        ..StatsRequest::default()
    };
    let asked = sandboxes.stats(with_token(stats(), &granted.access_token));
    asked.await.unwrap();
    let asked = sandboxes.stats(with_token(stats(), &token)).await;
    refused(asked, Code::PermissionDenied, "NOT_GRANTED");
    bench.authority.grants(USER, "update", "nodes/drain");
    let mut node = NodeClient::new(bench.channel.clone());
    let undrained = node.undrain(with_token(UndrainRequest::default(), &token));
    undrained.await.unwrap();
    let audited = || bench.secure.bench.audited();
    let line = |event: &str, method: &str, key: &str, value: serde_json::Value| {
        let found = |line: &serde_json::Value| {
            line["event"] == event
                && line["method"] == method
                && line["caller"] == CALLER
                && line[key] == value
        };
        audited().iter().any(found)
    };
    eventually("what was decided and done is written down", || {
        line("decision", "Claims/Claim", "by", json!("grant"))
            && line("decision", "Claims/List", "by", json!("NOT_GRANTED"))
            && line(
                "outcome",
                "Claims/Claim",
                "subject",
                json!(format!("claim {claim_id} of pool {POOL}")),
            )
    })
    .await;
    let text = std::fs::read_to_string(bench.secure.bench.dir.path().join("audit.log")).unwrap();
    assert!(!text.contains(&token) && !bench.secure.bench.metrics().contains(&token));
}

#[tokio::test]
async fn without_a_good_token_every_call_is_refused_and_told_why() {
    let bench = Reviewed::start().await;
    let nobody = list(&bench.channel, None).await;
    refused(nobody, Code::Unauthenticated, "UNAUTHENTICATED");
    let other = jwt(&json!({"aud": ["https://kubernetes.default.svc"]}));
    let expired = jwt(&json!({"aud": "hearth", "exp": 1}));
    let long = jwt(&json!({"aud": "hearth", "x": "x".repeat(8000)}));
    for (text, why) in [
        ("garbage", "no ServiceAccount token"),
        (&other, "another audience"),
        (&expired, "has expired"),
        (&long, "no ServiceAccount token"),
    ] {
        let status = refused(
            bench.list(text).await,
            Code::Unauthenticated,
            "TOKEN_REFUSED",
        );
        assert!(status.message().contains(why), "{}", status.message());
        assert_eq!(metadata(&status, "audiences"), "hearth");
    }
    assert_eq!(bench.authority.asked(), (0, 0));
    for _ in 0..2 {
        let unknown = token(HOUR);
        let asked = bench.list(&unknown).await;
        refused(asked, Code::Unauthenticated, "TOKEN_REFUSED");
        let asked = bench.list(&unknown).await;
        refused(asked, Code::Unauthenticated, "TOKEN_REFUSED");
    }
    assert_eq!(bench.authority.asked(), (2, 0));
    let mut two = with_token(ListClaimsRequest::default(), &bench.token());
    let value = two.metadata().get("authorization").unwrap().clone();
    two.metadata_mut().append("authorization", value);
    let asked = ClaimsClient::new(bench.channel.clone()).list(two).await;
    refused(asked, Code::PermissionDenied, "NOT_ALLOWED");
    // What is open to everybody asks for nothing, and a certificate that is shown must be good all the same.
    let mut health = tonic_health::pb::health_client::HealthClient::new(bench.channel.clone());
    let asked = tonic_health::pb::HealthCheckRequest::default();
    health.check(with_token(asked, &token(HOUR))).await.unwrap();
    let expired = Wanted::spiffe(ADMIN).expired();
    let expired = bench.secure.authority.issue(&expired);
    let endpoint = bench.secure.endpoint(Some(&expired));
    bench.secure.closed_to(endpoint, "expired").await;
    assert_eq!(bench.authority.asked(), (2, 0));
}

/// Larger than a request's headers may be: the transport's own refusal, which is one of the stream and not of hearth.
#[tokio::test]
async fn a_token_beyond_every_bound_ends_its_own_call_only() {
    let bench = Reviewed::start().await;
    let token = bench.token();
    bench.authority.grants(USER, "list", "claims");
    let endless = jwt(&json!({"aud": "hearth", "x": "x".repeat(100_000)}));
    bench.list(&endless).await.unwrap_err();
    assert_eq!(bench.authority.asked(), (0, 0));
    bench.list(&token).await.unwrap();
}

#[tokio::test]
async fn certificates_work_as_ever_and_a_token_that_is_shown_beside_one_is_judged() {
    let bench = Reviewed::start().await;
    let allocator = bench.secure.of(&Wanted::spiffe(ALLOCATOR)).await;
    let viewer = bench.secure.of(&Wanted::dns(VIEWER)).await;
    let admin = bench.secure.of(&Wanted::spiffe(ADMIN)).await;
    for channel in [&allocator, &viewer, &admin] {
        list(channel, None).await.unwrap();
    }
    assert_eq!(
        bench.authority.asked(),
        (0, 0),
        "nobody is asked about certificates"
    );
    let token = bench.token();
    // A right of the token's owner that the certificate has not, and the other way round.
    bench.authority.grants(USER, "create", "claims");
    let mut claims = ClaimsClient::new(viewer.clone());
    let claimed = claims.claim(with_token(claim_request(), &token)).await;
    claimed.unwrap();
    let asked = list(&admin, Some(&token)).await;
    let status = refused(asked, Code::PermissionDenied, "NOT_GRANTED");
    assert_eq!(metadata(&status, "caller"), CALLER);
    // A claim's token is still a claim's token.
    let asked = list(&admin, Some("hearth_AAAA")).await;
    asked.unwrap();
}

/// On the Unix socket callers are users of the host, whatever else they show.
#[tokio::test]
async fn tokens_are_for_tcp() {
    let bench = Reviewed::start().await;
    let token = bench.token();
    bench.authority.grants(USER, "list", "claims");
    let channel = bench.secure.bench.channel().await;
    let asked = list(&channel, Some(&token)).await;
    refused(asked, Code::PermissionDenied, "NOT_ALLOWED");
    assert_eq!(bench.authority.asked(), (0, 0));
}

#[tokio::test]
async fn an_epoch_belongs_to_the_tokens_owner_over_all_its_tokens() {
    let bench = Reviewed::start().await;
    bench.authority.grants(USER, "create", "claims");
    bench.authority.grants(USER, "delete", "claims");
    let (other, stranger) = (token(HOUR), "system:serviceaccount:b:other");
    bench.authority.knows(&other, stranger);
    bench.authority.grants(stranger, "create", "claims");
    let (claim_id, _) = bench.claim(&bench.token()).await.unwrap();
    let claimed = bench.claim(&other).await;
    refused(claimed, Code::Aborted, "EPOCH_CONFLICT");
    let release = ReleaseRequest { claim_id, epoch: 1 };
    let mut claims = ClaimsClient::new(bench.channel.clone());
    let released = claims.release(with_token(release, &bench.token())).await;
    released.unwrap();
}

#[tokio::test]
async fn while_nobody_can_be_asked_what_is_known_goes_on_and_the_rest_is_told_to_wait() {
    let bench = Reviewed::start().await;
    let (known, fresh) = (bench.token(), bench.token());
    bench.authority.grants(USER, "create", "claims");
    bench.claim(&known).await.unwrap();
    bench.authority.mood(Mood::Away);
    bench.claim(&known).await.unwrap();
    for asked in [
        bench.list(&known).await,
        bench.claim(&fresh).await.map(|_| ()),
    ] {
        let status = refused(asked, Code::Unavailable, "AUTHORITY_UNAVAILABLE");
        let details = status.get_error_details();
        let retry = details.retry_info().unwrap().retry_delay.unwrap();
        assert!(retry > Duration::ZERO);
    }
    let metrics = bench.secure.bench.metrics();
    for review in ["token", "access"] {
        let none = format!(r#"hearth_token_reviews_total{{result="refused",review="{review}"}} 0"#);
        assert!(metrics.contains(&none), "{metrics}");
    }
    let denied = |line: &serde_json::Value| line["allowed"] == false;
    assert!(!bench.secure.bench.audited().iter().any(denied));
    // Certificates ask nobody.
    let allocator = bench.secure.of(&Wanted::spiffe(ALLOCATOR)).await;
    list(&allocator, None).await.unwrap();
}

#[tokio::test]
async fn a_hung_authority_holds_a_call_no_longer_than_its_own_deadline() {
    let bench = Reviewed::start().await;
    let token = bench.token();
    bench.authority.mood(Mood::Hung);
    let mut request = with_token(ListClaimsRequest::default(), &token);
    request.set_timeout(Duration::from_millis(500));
    let asked = ClaimsClient::new(bench.channel.clone()).list(request).await;
    // hearth's own answer, which is there before the client's timer.
    refused(asked, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    // The review goes on, and whoever asks next finds its answer.
    bench.authority.grants(USER, "list", "claims");
    bench.authority.mood(Mood::Well);
    bench.list(&token).await.unwrap();
    assert_eq!(bench.authority.asked(), (1, 1));
}

#[tokio::test]
async fn a_right_that_was_taken_back_ends_on_an_open_connection() {
    let bench = Reviewed::with(Duration::from_millis(300), 1_000_000).await;
    let token = bench.token();
    bench.authority.grants(USER, "list", "claims");
    bench.list(&token).await.unwrap();
    bench.authority.takes_back(USER);
    let began = std::time::Instant::now();
    let status = loop {
        match bench.list(&token).await {
            Ok(()) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(status) => break status,
        }
        assert!(began.elapsed() < PATIENCE);
    };
    refused::<()>(Err(status), Code::PermissionDenied, "NOT_GRANTED");
}

/// Callers behind one address are counted each by itself, and made-up tokens as the address.
#[tokio::test]
async fn a_flood_of_made_up_tokens_is_stopped_and_leaves_the_others_their_rate() {
    let bench = Reviewed::with(HOUR, 20).await;
    let known = bench.token();
    bench.authority.grants(USER, "list", "claims");
    bench.list(&known).await.unwrap();
    let mut limited = 0;
    for _ in 0..200 {
        let status = bench.list(&token(HOUR)).await.unwrap_err();
        match reason(&status).as_str() {
            "RATE_LIMITED" => limited += 1,
            why => assert_eq!(why, "TOKEN_REFUSED", "{status:?}"),
        }
    }
    assert!(limited > 0);
    let (tokens, _) = bench.authority.asked();
    assert!(tokens < 200, "{tokens}");
    bench.list(&known).await.unwrap();
}
