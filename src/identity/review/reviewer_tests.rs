//! The reviewer on a fake authority: who is asked, how often, and what happens when it does not answer.

use super::super::fakes::{FakeAuthority, Mood, jwt, token};
use super::*;
use prometheus::Registry;
use serde_json::json;

const HOUR: Duration = Duration::from_secs(3600);
const CLAIM: Deed = Deed {
    verb: "create",
    resource: "claims",
};
const USER: &str = "system:serviceaccount:agents:allocator";

fn settings() -> Settings {
    Settings {
        audiences: vec!["hearth".into()],
        namespace: "hearth".into(),
        entries: 64,
        good: HOUR,
        refused: HOUR,
        deadline: Duration::from_secs(20),
    }
}

struct Bench {
    authority: Arc<FakeAuthority>,
    reviewer: Arc<Reviewer>,
    registry: Registry,
}

fn bench(settings: &Settings) -> Bench {
    let (authority, registry) = (FakeAuthority::new(), Registry::new());
    let metrics = Metrics::register(&registry).unwrap();
    let reviewer = Arc::new(Reviewer::new(authority.clone(), settings, metrics));
    Bench {
        authority,
        reviewer,
        registry,
    }
}

impl Bench {
    fn known(&self) -> String {
        let token = token(HOUR);
        self.authority.knows(&token, USER);
        token
    }

    async fn who(&self, token: &str) -> Result<Arc<Principal>, Unreviewed> {
        self.who_from(token, "address:10.0.0.1").await
    }

    async fn who_from(&self, token: &str, peer: &str) -> Result<Arc<Principal>, Unreviewed> {
        let token = self.reviewer.read(token)?;
        self.reviewer.who(token, &peer.into()).await
    }

    fn counts(&self, line: &str) -> bool {
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap();
        text.lines().any(|found| found == line)
    }
}

#[tokio::test]
async fn an_answer_is_asked_for_once() {
    let bench = bench(&settings());
    let token = bench.known();
    for _ in 0..3 {
        let who = bench.who(&token).await.unwrap();
        assert_eq!(
            &**who.caller(),
            "k8s:system:serviceaccount:agents:allocator"
        );
        assert_eq!(
            bench.reviewer.may(&who, CLAIM).await,
            Err(Unreviewed::Denied)
        );
    }
    assert_eq!(bench.authority.asked(), (1, 1));
    let fresh = bench.known();
    let who = bench.who(&fresh).await.unwrap();
    // Of the same principal: what it may do is remembered.
    assert_eq!(
        bench.reviewer.may(&who, CLAIM).await,
        Err(Unreviewed::Denied)
    );
    assert_eq!(bench.authority.asked(), (2, 1));
    for line in [
        r#"hearth_token_reviews_total{result="good",review="token"} 2"#,
        r#"hearth_token_reviews_total{result="refused",review="access"} 1"#,
        r#"hearth_token_lookups_total{by="memory",review="token"} 2"#,
        r#"hearth_token_lookups_total{by="review",review="token"} 2"#,
        r#"hearth_token_answers_kept{kind="good",review="token"} 2"#,
        r#"hearth_token_answers_kept{kind="bad",review="access"} 1"#,
        r#"hearth_token_review_duration_seconds_count{review="token"} 2"#,
    ] {
        assert!(bench.counts(line), "{line}");
    }
}

#[tokio::test]
async fn what_can_not_be_good_costs_no_review() {
    let bench = bench(&settings());
    let other = jwt(&json!({"aud": "https://kubernetes.default.svc"}));
    let late = jwt(&json!({"aud": "hearth", "exp": 1}));
    for (text, why) in [
        ("garbage", Unfit::Form),
        (&other, Unfit::Audience),
        (&late, Unfit::Expired),
    ] {
        assert_eq!(bench.who(text).await, Err(Unreviewed::Unfit(why)));
    }
    assert_eq!(bench.authority.asked(), (0, 0));
    assert!(bench.counts(r#"hearth_token_unfit_total{why="audience"} 1"#));
}

#[tokio::test]
async fn all_who_ask_the_same_wait_for_one_review() {
    let bench = bench(&settings());
    let token = bench.known();
    bench.authority.mood(Mood::Hung);
    let asked: Vec<_> = (0..50)
        .map(|_| {
            let (reviewer, token) = (Arc::clone(&bench.reviewer), token.clone());
            tokio::spawn(async move {
                let token = reviewer.read(&token).unwrap();
                reviewer.who(token, &"address:10.0.0.1".into()).await
            })
        })
        .collect();
    while !bench.counts(r#"hearth_token_lookups_total{by="joined",review="token"} 49"#) {
        tokio::task::yield_now().await;
    }
    // Whoever leaves ends it for nobody: neither the one that began it.
    asked[0].abort();
    bench.authority.mood(Mood::Well);
    for asked in asked.into_iter().skip(1) {
        assert!(asked.await.unwrap().is_ok());
    }
    assert_eq!(bench.authority.asked(), (1, 0));
}

#[tokio::test]
async fn while_nobody_can_be_asked_what_is_remembered_counts_and_nothing_else() {
    let bench = bench(&settings());
    let known = bench.known();
    let who = bench.who(&known).await.unwrap();
    bench.authority.grants(USER, "create", "claims");
    bench.reviewer.may(&who, CLAIM).await.unwrap();
    bench.authority.mood(Mood::Away);
    for _ in 0..3 {
        let who = bench.who(&known).await.unwrap();
        bench.reviewer.may(&who, CLAIM).await.unwrap();
    }
    let away = |answer| matches!(answer, Err(Unreviewed::Away(_)));
    let fresh = bench.known();
    assert!(away(bench.who(&fresh).await.map(|_| ())));
    let release = Deed {
        verb: "delete",
        resource: "claims",
    };
    assert!(away(bench.reviewer.may(&who, release).await));
    // Not asked again at once.
    let asked = bench.authority.asked();
    assert!(away(bench.who(&fresh).await.map(|_| ())));
    assert_eq!(bench.authority.asked(), asked);
    bench.authority.mood(Mood::Well);
    let began = Instant::now();
    while bench.who(&fresh).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(bench.counts(r#"hearth_token_reviews_total{result="refused",review="token"} 0"#));
}

#[tokio::test]
async fn a_hung_authority_is_not_waited_for_longer_than_the_deadline() {
    let bench = bench(&Settings {
        deadline: Duration::from_millis(100),
        ..settings()
    });
    bench.authority.mood(Mood::Hung);
    let token = bench.known();
    let asked = tokio::time::timeout(Duration::from_secs(20), bench.who(&token)).await;
    assert!(matches!(asked, Ok(Err(Unreviewed::Away(_)))), "{asked:?}");
    assert_eq!(
        bench.reviewer.strangers.available_permits(),
        STRANGERS_AT_ONCE
    );
}

/// Made-up tokens of many peers, with an authority that hangs on each: bounded questions, bounded memory, and those who are
/// known get through.
#[tokio::test]
async fn a_flood_of_made_up_tokens_is_bounded_and_shuts_nobody_out() {
    let bench = bench(&Settings {
        deadline: HOUR,
        ..settings()
    });
    let known = bench.known();
    bench.authority.grants(USER, "create", "claims");
    bench.who(&known).await.unwrap();
    bench.authority.mood(Mood::Hung);
    let mut flood = Vec::new();
    for peer in 0..100 {
        let reviewer = Arc::clone(&bench.reviewer);
        let peer: Arc<str> = format!("address:10.0.0.{peer}").into();
        flood.push(tokio::spawn(async move {
            for _ in 0..100 {
                let token = reviewer.read(&token(HOUR)).unwrap();
                let asked = reviewer.who(token, &peer);
                let _ = tokio::time::timeout(Duration::from_millis(1), asked).await;
            }
        }));
    }
    for task in flood {
        task.await.unwrap();
    }
    assert_eq!(bench.authority.most_at_once(), STRANGERS_AT_ONCE);
    // Rights have a room of their own.
    let who = bench.who(&known).await.unwrap();
    let (reviewer, asked) = (Arc::clone(&bench.reviewer), Arc::clone(&who));
    let right = tokio::spawn(async move { reviewer.may(&asked, CLAIM).await });
    while bench.authority.most_at_once() == STRANGERS_AT_ONCE {
        tokio::task::yield_now().await;
    }
    bench.authority.mood(Mood::Well);
    right.await.unwrap().unwrap();
    let most = usize::try_from(PER_SECOND).unwrap() * 2 + STRANGERS_AT_ONCE;
    assert!(
        bench.authority.asked().0 <= most,
        "{:?}",
        bench.authority.asked()
    );
}

#[tokio::test]
async fn one_peer_has_its_share_of_reviews() {
    let bench = bench(&settings());
    let mut turned = 0;
    for _ in 0..50 {
        match bench.who(&token(HOUR)).await {
            Err(Unreviewed::Refused) => {}
            Err(Unreviewed::TooMany(wait)) => {
                assert!(wait > Duration::ZERO);
                turned += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(turned > 0);
    let other = bench.who_from(&token(HOUR), "address:10.0.0.2").await;
    assert_eq!(other, Err(Unreviewed::Refused));
}

#[tokio::test]
async fn an_answer_counts_no_longer_than_the_token_and_is_renewed_before() {
    let bench = bench(&settings());
    let short = token(Duration::from_secs(3));
    bench.authority.knows(&short, USER);
    bench.who(&short).await.unwrap();
    let began = Instant::now();
    // Late in its life the next call asks anew, beside its own answer.
    while bench.authority.asked().0 < 2 {
        match bench.who(&short).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            // On a machine that stood still it is over.
            Err(why) => {
                assert_eq!(why, Unreviewed::Unfit(Unfit::Expired));
                break;
            }
        }
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    while bench.who(&short).await.is_ok() {
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let late = bench.who(&short).await;
    assert_eq!(late, Err(Unreviewed::Unfit(Unfit::Expired)));
}

#[tokio::test]
async fn a_right_that_was_taken_back_ends_with_its_answer() {
    let bench = bench(&Settings {
        good: Duration::from_millis(300),
        refused: Duration::from_millis(10),
        ..settings()
    });
    let known = bench.known();
    bench.authority.grants(USER, "create", "claims");
    let who = bench.who(&known).await.unwrap();
    bench.reviewer.may(&who, CLAIM).await.unwrap();
    bench.authority.takes_back(USER);
    let began = Instant::now();
    while bench.reviewer.may(&who, CLAIM).await.is_ok() {
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bench.authority.forgets(&known);
    while bench.who(&known).await.is_ok() {
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // And one that was given is taken.
    bench.authority.grants(USER, "create", "claims");
    while bench.reviewer.may(&who, CLAIM).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
