//! Who may call what.

use super::*;
use tonic::Request;
use tonic::metadata::MetadataValue;

/// A server that knows us as nobody.
async fn closed() -> Bench {
    let other = format!("uid:{}", ourselves() + 1);
    let guard = |registry: &prometheus::Registry, dir: &Path| guard(registry, &other, dir);
    Bench::guarded(guard, None, |_| ()).await
}

/// Another server with the same driver, that lets us do everything.
async fn granted(bench: &Bench) -> (String, ClaimResponse) {
    let open = Bench::with(|_| ()).await;
    let (id, response) = open.claimed().await;
    bench.driver.adopt(&open.driver);
    (id, response)
}

fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = MetadataValue::try_from(format!("Bearer {token}")).unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

#[tokio::test]
async fn strangers_get_nothing_but_health_and_reflection() {
    let bench = closed().await;
    let channel = bench.channel().await;
    let denied = |status| refused::<()>(Err(status), Code::PermissionDenied, "NOT_ALLOWED");
    denied(
        bench
            .claims()
            .await
            .claim(claim_request())
            .await
            .unwrap_err(),
    );
    denied(
        bench
            .claims()
            .await
            .list(ListClaimsRequest::default())
            .await
            .unwrap_err(),
    );
    denied(
        bench
            .pools()
            .await
            .get_pools(GetPoolsRequest::default())
            .await
            .unwrap_err(),
    );
    denied(bench.node().await.info(InfoRequest {}).await.unwrap_err());
    denied(
        bench
            .sandboxes()
            .await
            .stats(StatsRequest::default())
            .await
            .unwrap_err(),
    );
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let check = tonic_health::pb::HealthCheckRequest {
        service: "hearth.v1.Claims".into(),
    };
    assert_eq!(health.check(check).await.unwrap().into_inner().status, 1);
    use tonic_reflection::pb::v1 as reflection;
    let ask = reflection::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            reflection::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
    };
    let mut client = reflection::server_reflection_client::ServerReflectionClient::new(channel);
    let answers = client
        .server_reflection_info(tokio_stream::iter([ask]))
        .await
        .unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    assert!(
        format!("{answer:?}").contains("hearth.v1.Sandboxes"),
        "{answer:?}"
    );
    bench
        .counted(r#"hearth_rpc_requests_total{code="PERMISSION_DENIED",method="Claims/Claim"} 1"#)
        .await;
}

#[tokio::test]
async fn a_token_opens_its_claims_sandbox_and_nothing_else() {
    let bench = closed().await;
    let (claim_id, response) = granted(&bench).await;
    let token = response.access_token;
    let mut client = bench.sandboxes().await;
    let stats = || StatsRequest {
        claim_id: claim_id.clone(),
        ..StatsRequest::default()
    };
    client.stats(with_token(stats(), &token)).await.unwrap();
    let located = bench.driver.located();
    assert_eq!(located, 1);
    // Not another claim, not with another token, not another service.
    let (other, _) = granted(&bench).await;
    let asked = client
        .stats(with_token(
            StatsRequest {
                claim_id: other,
                ..StatsRequest::default()
            },
            &token,
        ))
        .await;
    refused(asked, Code::PermissionDenied, "NOT_ALLOWED");
    for wrong in [
        "hearth_AAAA",
        &token[..token.len() - 1],
        &token.to_lowercase(),
        "x",
    ] {
        let asked = client.stats(with_token(stats(), wrong)).await;
        refused(asked, Code::PermissionDenied, "NOT_ALLOWED");
    }
    assert_eq!(bench.driver.located(), located, "woken by a wrong token");
    let listed = bench
        .claims()
        .await
        .list(with_token(ListClaimsRequest::default(), &token))
        .await;
    refused(listed, Code::PermissionDenied, "NOT_ALLOWED");
}

#[tokio::test]
async fn a_wrong_token_does_not_tell_whether_there_is_a_claim() {
    let bench = closed().await;
    let (claim_id, response) = granted(&bench).await;
    let mut client = bench.sandboxes().await;
    let mut texts = std::collections::BTreeSet::new();
    for claim_id in [claim_id, uuid::Uuid::new_v4().to_string()] {
        let asked = client
            .stats(with_token(
                StatsRequest {
                    claim_id,
                    ..StatsRequest::default()
                },
                "hearth_AAAA",
            ))
            .await;
        texts.insert(
            refused(asked, Code::PermissionDenied, "NOT_ALLOWED")
                .message()
                .to_owned(),
        );
    }
    assert_eq!(texts.len(), 1, "{texts:?}");
    // A good token of a claim that is gone has ended with it.
    let claim_id = uuid::Uuid::new_v4().to_string();
    let asked = client
        .stats(with_token(
            StatsRequest {
                claim_id,
                ..StatsRequest::default()
            },
            &response.access_token,
        ))
        .await;
    refused(asked, Code::PermissionDenied, "NOT_ALLOWED");
}

#[tokio::test]
async fn the_holder_learns_why_its_own_sandbox_is_gone() {
    let bench = closed().await;
    let (claim_id, response) = granted(&bench).await;
    bench
        .driver
        .end(crate::machine::ids::ClaimId::parse(&claim_id).unwrap());
    let mut client = bench.sandboxes().await;
    let stats = || StatsRequest {
        claim_id: claim_id.clone(),
        ..StatsRequest::default()
    };
    let asked = client
        .stats(with_token(stats(), &response.access_token))
        .await;
    refused(asked, Code::FailedPrecondition, "SANDBOX_ENDED");
    let asked = client.stats(with_token(stats(), "hearth_AAAA")).await;
    refused(asked, Code::PermissionDenied, "NOT_ALLOWED");
}

#[tokio::test]
async fn an_operator_that_presents_a_token_is_judged_by_it() {
    let bench = Bench::start().await;
    let (claim_id, response) = bench.claimed().await;
    let mut client = bench.sandboxes().await;
    let stats = || StatsRequest {
        claim_id: claim_id.clone(),
        ..StatsRequest::default()
    };
    client.stats(stats()).await.unwrap();
    client
        .stats(with_token(stats(), &response.access_token))
        .await
        .unwrap();
    let asked = client.stats(with_token(stats(), "hearth_AAAA")).await;
    refused(asked, Code::PermissionDenied, "NOT_ALLOWED");
}

#[tokio::test]
async fn the_token_ends_with_the_claim() {
    let bench = Bench::start().await;
    let (claim_id, response) = bench.claimed().await;
    let released = ReleaseRequest {
        claim_id: claim_id.clone(),
        epoch: 1,
    };
    bench.claims().await.release(released).await.unwrap();
    let mut client = bench.sandboxes().await;
    let stats = StatsRequest {
        claim_id,
        ..StatsRequest::default()
    };
    let asked = client
        .stats(with_token(stats.clone(), &response.access_token))
        .await;
    refused(asked, Code::PermissionDenied, "NOT_ALLOWED");
    refused(client.stats(stats).await, Code::NotFound, "CLAIM_RELEASED");
}
