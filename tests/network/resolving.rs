//! hearth's resolver: names are opened for those who may have them, and for nobody else.

use crate::names::{Upstream, code, lookup};
use crate::world::{Outcome, Sandbox, World, allowlist, id, internet, on_a_node, pool, rule};
use hearth::machine::network::NetworkPolicy;
use hearth::net::{LinuxNetwork, Network, Wanted};
use simple_dns::RCODE;

const GATEWAY: &str = "198.18.0.1";
const PUBLIC: &str = "93.184.216.34";

struct Scene {
    net: LinuxNetwork,
    upstream: Upstream,
    running: tokio::task::JoinHandle<()>,
}

impl Scene {
    async fn new(world: &World) -> Self {
        let upstream = Upstream::start(&world.far, "192.0.2.1:53");
        upstream.says("public.example", &[PUBLIC]);
        upstream.says(
            "inward.example",
            &["10.0.0.1", "192.0.2.2", "169.254.169.254"],
        );
        upstream.says("both.example", &["10.0.0.1", PUBLIC]);
        let net = world.network(|settings| {
            settings.upstream = vec!["192.0.2.1:53".parse().unwrap()];
            settings.questions_per_second = 20;
        });
        let net = net.await;
        net.reconcile(Vec::new()).await.unwrap();
        let running = tokio::spawn(net.clone().run());
        Self {
            net,
            upstream,
            running,
        }
    }

    async fn sandbox(&self, world: &World, number: u64, policy: &NetworkPolicy) -> Sandbox {
        let interface = self
            .net
            .furnish(id(number), &pool("a"), policy)
            .await
            .unwrap();
        world.sandbox(&interface)
    }
}

/// In the sandbox, while the resolver runs on this thread.
async fn inside<T: Send + 'static>(
    sandbox: &Sandbox,
    what: impl FnOnce() -> T + Send + 'static,
) -> T {
    let space = sandbox.space.clone();
    tokio::task::spawn_blocking(move || space.run(what))
        .await
        .unwrap()
}

#[test]
fn a_listed_name_is_open_while_its_answer_lives() {
    on_a_node(async |world: &World| {
        let scene = Scene::new(world).await;
        let list = allowlist(&["tcp public.example 80", "udp *.example 80"]);
        let sandbox = scene.sandbox(world, 1, &list).await;
        assert_eq!(
            sandbox.tcp(PUBLIC, 80),
            Outcome::Refused,
            "before it is asked for"
        );
        let found = inside(&sandbox, || lookup(GATEWAY, "public.example")).await;
        assert_eq!(found, Some(vec![PUBLIC.parse().unwrap()]));
        assert_eq!(sandbox.tcp(PUBLIC, 80), Outcome::Reached);
        assert_eq!(sandbox.udp(PUBLIC, 80), Outcome::Reached);
        assert_eq!(sandbox.tcp(PUBLIC, 443), Outcome::Refused, "another port");
        let report = scene.net.report(id(1)).await.unwrap();
        assert_eq!(report.pinned[0].0, "public.example");
        // The answer lived for a second; the address stays open for the shortest time there is.
        assert!((1..=30).contains(&report.pinned[0].2), "{report:?}");
        let other = scene.sandbox(world, 2, &list).await;
        assert_eq!(
            other.tcp(PUBLIC, 80),
            Outcome::Refused,
            "it was not its answer"
        );
        // A policy that still names it keeps it open; one that does not closes it.
        let narrower = allowlist(&["tcp public.example 80"]);
        scene.net.apply(id(1), &narrower).await.unwrap();
        assert_eq!(sandbox.tcp(PUBLIC, 80), Outcome::Reached);
        assert_eq!(sandbox.udp(PUBLIC, 80), Outcome::Refused);
        // It survives hearthd.
        scene.running.abort();
        let second = world.network(|_| {}).await;
        let wanted = Wanted {
            id: id(1),
            pool: pool("a"),
            policy: narrower,
        };
        second.reconcile(vec![wanted]).await.unwrap();
        assert_eq!(sandbox.tcp(PUBLIC, 80), Outcome::Reached);
        assert_eq!(
            second.report(id(1)).await.unwrap().pinned[0].0,
            "public.example"
        );
        second
            .apply(id(1), &allowlist(&["tcp other.example 80"]))
            .await
            .unwrap();
        assert_eq!(sandbox.tcp(PUBLIC, 80), Outcome::Refused);
    });
}

#[test]
fn names_that_are_not_listed_do_not_exist_and_nobody_is_asked() {
    on_a_node(async |world: &World| {
        let scene = Scene::new(world).await;
        let list = scene
            .sandbox(world, 1, &allowlist(&["any public.example"]))
            .await;
        let code_of = |name: &'static str| move || code(GATEWAY, name);
        assert_eq!(
            inside(&list, code_of("other.example")).await,
            Some(RCODE::NameError)
        );
        assert_eq!(scene.upstream.asked(), Vec::<String>::new());
        let mut policy = internet();
        policy.deny = vec![rule("any public.example")];
        let open = scene.sandbox(world, 2, &policy).await;
        assert_eq!(
            inside(&open, code_of("public.example")).await,
            Some(RCODE::NameError)
        );
        assert_eq!(
            inside(&open, code_of("inward.example")).await,
            Some(RCODE::NameError)
        );
        let found = inside(&open, || lookup(GATEWAY, "both.example")).await;
        assert_eq!(found, Some(vec![PUBLIC.parse().unwrap()]));
        let found = inside(&open, || lookup("fd68:6561:7274:6800::1", "both.example")).await;
        assert_eq!(found, Some(vec![PUBLIC.parse().unwrap()]));
    });
}

#[test]
fn a_listed_name_does_not_open_the_cluster() {
    on_a_node(async |world: &World| {
        let scene = Scene::new(world).await;
        let sandbox = scene
            .sandbox(world, 1, &allowlist(&["any inward.example"]))
            .await;
        let found = inside(&sandbox, || code(GATEWAY, "inward.example")).await;
        assert_eq!(found, Some(RCODE::NameError));
        assert_eq!(sandbox.tcp("10.0.0.1", 80), Outcome::Refused);
    });
}

#[test]
fn questions_have_a_rate_and_strangers_no_answer() {
    on_a_node(async |world: &World| {
        let scene = Scene::new(world).await;
        let sandbox = scene.sandbox(world, 1, &internet()).await;
        let answered = inside(&sandbox, || {
            let threads: Vec<_> = (0..80)
                .map(|_| {
                    std::thread::spawn({
                        let space = crate::world::Space::here();
                        move || space.run(|| code(GATEWAY, "public.example").is_some())
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().unwrap())
                .filter(|answered| *answered)
                .count()
        })
        .await;
        assert!((1..80).contains(&answered), "{answered} of 80 answered");
        let node = world.node.clone();
        let stranger =
            tokio::task::spawn_blocking(move || node.run(|| code(GATEWAY, "public.example")));
        assert_eq!(stranger.await.unwrap(), None);
    });
}
