//! What stays behind: nothing.

use crate::world::{Outcome, World, allowlist, id, internet, on_a_node, pool, talk};
use hearth::machine::ids::SandboxId;
use hearth::machine::network::NetworkPolicy;
use hearth::net::{Network, Wanted};
use std::collections::BTreeMap;

const PUBLIC: &str = "93.184.216.34";

/// Everything that a sandbox may leave: links, neighbours, routes, namespaces, rules with their elements, flows.
fn census(world: &World) -> BTreeMap<&'static str, String> {
    let router = world.router();
    let mut files: Vec<String> = std::fs::read_dir(world.run.path().join("netns"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    files.sort();
    let flows = |space: &crate::world::Space| {
        let all = space.program("cat /proc/net/nf_conntrack");
        all.lines()
            .filter(|line| line.contains("198.18.0.") || line.contains("fd68:"))
            .count()
            .to_string()
    };
    let rules = router.program("nft -s list ruleset");
    // Sets that packets fill empty themselves.
    BTreeMap::from([
        (
            "links",
            router.program("ip -o link").lines().count().to_string(),
        ),
        (
            "neighbours",
            router
                .program("ip neigh show nud permanent")
                .lines()
                .count()
                .to_string(),
        ),
        (
            "routes",
            router
                .program("ip route show table all")
                .lines()
                .count()
                .to_string(),
        ),
        (
            "routes6",
            router
                .program("ip -6 route show table all")
                .lines()
                .count()
                .to_string(),
        ),
        (
            "links of the node",
            world.node.program("ip -o link").lines().count().to_string(),
        ),
        ("namespaces", files.join(" ")),
        ("rules", rules),
        (
            "rules of the node",
            world.node.program("nft -s list ruleset"),
        ),
        ("flows of the router", flows(&router)),
        ("flows of the node", flows(&world.node)),
        (
            "mounts",
            std::fs::read_to_string("/proc/self/mounts")
                .unwrap()
                .lines()
                .filter(|line| line.contains(world.run.path().to_str().unwrap()))
                .count()
                .to_string(),
        ),
    ])
}

fn wanted(id: SandboxId, policy: &NetworkPolicy) -> Wanted {
    Wanted {
        id,
        pool: pool("a"),
        policy: policy.clone(),
    }
}

#[test]
fn five_hundred_sandboxes_leave_nothing() {
    on_a_node(async |world: &World| {
        let net = world.network(|_| {}).await;
        net.reconcile(Vec::new()).await.unwrap();
        let before = census(world);
        let policies = [
            internet(),
            allowlist(&["tcp 93.184.216.34/32 80", "any fd00::/8"]),
            allowlist(&[]),
        ];
        for round in 0..50_u64 {
            let ids: Vec<_> = (0..10).map(|at| id(1 + 10 * round + at)).collect();
            let furnished = ids.iter().enumerate().map(|(at, id)| {
                let (net, policy) = (net.clone(), policies[at % 3].clone());
                async move { net.furnish(*id, &pool("a"), &policy).await.unwrap() }
            });
            let interfaces = futures::future::join_all(furnished).await;
            let sandbox = world.sandbox(&interfaces[0]);
            assert_eq!(sandbox.udp(PUBLIC, 80), Outcome::Reached);
            net.apply(ids[0], &policies[1]).await.unwrap();
            let released = ids.iter().map(|id| net.release(*id));
            for released in futures::future::join_all(released).await {
                released.unwrap();
            }
        }
        assert_eq!(census(world), before);
        net.release(id(1)).await.unwrap();
        net.dismantle().await.unwrap();
        assert_eq!(
            std::fs::read_dir(world.run.path().join("netns"))
                .unwrap()
                .count(),
            0
        );
        assert_eq!(world.node.program("nft list ruleset"), "");
        assert_eq!(
            world
                .node
                .program("cat /proc/sys/net/ipv4/conf/up0/forwarding")
                .trim(),
            "0"
        );
    });
}

#[test]
fn after_a_restart_what_is_wanted_goes_on_and_the_rest_goes() {
    on_a_node(async |world: &World| {
        let list = allowlist(&["tcp 93.184.216.34/32 80"]);
        let first = world.network(|settings| settings.spares = 2).await;
        first.reconcile(Vec::new()).await.unwrap();
        first.add_spare().await.unwrap();
        let clean = {
            let kept = first.furnish(id(1), &pool("a"), &list).await.unwrap();
            first.furnish(id(2), &pool("a"), &internet()).await.unwrap();
            first.add_spare().await.unwrap();
            kept
        };
        let sandbox = world.sandbox(&clean);
        let mut flow = sandbox.connect(PUBLIC, 80);
        drop(first);
        // A second hearthd, which finds what the first has left.
        let net = world.network(|_| {}).await;
        assert_eq!(sandbox.tcp(PUBLIC, 80), Outcome::Reached);
        let gone = net
            .reconcile(vec![wanted(id(1), &list), wanted(id(7), &list)])
            .await
            .unwrap();
        assert_eq!(gone, [id(7)]);
        assert_eq!(talk(&mut flow), Outcome::Reached);
        assert_eq!(sandbox.tcp("10.0.0.1", 80), Outcome::Refused);
        assert_eq!(net.report(id(1)).await.unwrap().policy, list);
        let links = world.router().program("ip -o link");
        assert_eq!(links.matches(": sb").count(), 1, "{links}");
        // A policy that changed while nobody looked cuts what it does not allow.
        let gone = net
            .reconcile(vec![wanted(id(1), &allowlist(&[]))])
            .await
            .unwrap();
        assert!(gone.is_empty());
        assert_ne!(talk(&mut flow), Outcome::Reached);
        // Its address is not given out while it is there.
        let other = net.furnish(id(8), &pool("a"), &list).await.unwrap();
        assert_ne!(other.ipv4, clean.ipv4);
    });
}

#[test]
fn a_restart_into_another_policy_takes_the_new_one() {
    on_a_node(async |world: &World| {
        let first = world.network(|_| {}).await;
        first.reconcile(Vec::new()).await.unwrap();
        let interface = first.furnish(id(1), &pool("a"), &internet()).await.unwrap();
        let mut flow = world.sandbox(&interface).connect(PUBLIC, 80);
        drop(first);
        let net = world.network(|_| {}).await;
        let gone = net
            .reconcile(vec![wanted(id(1), &allowlist(&["tcp 10.0.0.0/8"]))])
            .await
            .unwrap();
        assert!(gone.is_empty());
        assert_ne!(talk(&mut flow), Outcome::Reached);
        assert_eq!(
            world.sandbox(&interface).tcp("10.0.0.1", 80),
            Outcome::Reached
        );
    });
}

#[test]
fn half_made_things_are_cleaned_up() {
    on_a_node(async |world: &World| {
        let net = world.network(|_| {}).await;
        net.reconcile(Vec::new()).await.unwrap();
        let before = census(world);
        let kept = net.furnish(id(1), &pool("a"), &internet()).await.unwrap();
        drop(net);
        let netns = world.run.path().join("netns");
        let router = world.router();
        // A link without an owner; one with an owner and no namespace; a namespace without a link; a file that is none.
        router.program("ip link add sb40 type veth peer name x40");
        router.program("ip link add sb41 type veth peer name x41");
        router.program(&format!("ip link set sb41 alias {}", id(41)));
        std::fs::write(netns.join("spare-42"), "").unwrap();
        std::fs::write(netns.join(id(43).to_string()), "").unwrap();
        let net = world.network(|_| {}).await;
        let gone = net
            .reconcile(vec![
                wanted(id(1), &internet()),
                wanted(id(41), &internet()),
            ])
            .await
            .unwrap();
        assert_eq!(gone, [id(41)]);
        assert_eq!(world.sandbox(&kept).tcp(PUBLIC, 80), Outcome::Reached);
        net.release(id(1)).await.unwrap();
        assert_eq!(census(world), before);
        // The one whose interface was gone gets another.
        let again = net
            .refurnish(id(41), &pool("a"), &internet())
            .await
            .unwrap();
        assert_eq!(world.sandbox(&again).tcp(PUBLIC, 80), Outcome::Reached);
    });
}

#[test]
fn a_namespace_that_has_gone_is_made_anew_with_the_same_addresses() {
    on_a_node(async |world: &World| {
        let net = world.network(|_| {}).await;
        net.reconcile(Vec::new()).await.unwrap();
        let interface = net.furnish(id(1), &pool("a"), &internet()).await.unwrap();
        world.router().program("ip link del sb0");
        let again = net.refurnish(id(1), &pool("a"), &internet()).await.unwrap();
        assert_eq!(again, interface);
        assert_eq!(world.sandbox(&again).tcp(PUBLIC, 80), Outcome::Reached);
        nix::mount::umount2(&interface.netns, nix::mount::MntFlags::MNT_DETACH).unwrap();
        let again = net.refurnish(id(1), &pool("a"), &internet()).await.unwrap();
        assert_eq!(world.sandbox(&again).tcp(PUBLIC, 80), Outcome::Reached);
    });
}

#[test]
fn addresses_run_out_and_come_back() {
    on_a_node(async |world: &World| {
        let net = world.network(|settings| settings.range4.length = 28).await;
        net.reconcile(Vec::new()).await.unwrap();
        for number in 0..12 {
            net.furnish(id(number), &pool("a"), &internet())
                .await
                .unwrap();
        }
        let refused = net
            .furnish(id(12), &pool("a"), &internet())
            .await
            .unwrap_err();
        assert!(
            matches!(refused, hearth::net::NetError::AddressesExhausted(_)),
            "{refused}"
        );
        net.release(id(5)).await.unwrap();
        net.furnish(id(12), &pool("a"), &internet()).await.unwrap();
    });
}
