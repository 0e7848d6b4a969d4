//! Whatever happens to the rules, nothing is open.

use crate::world::{Outcome, World, id, internet, on_a_node, pool, talk};
use hearth::net::Network;

const PUBLIC: &str = "93.184.216.34";

#[test]
fn without_hearths_rules_nothing_is_reached_and_they_come_back_with_the_flows() {
    on_a_node(async |world: &World| {
        let net = world.network(|_| {}).await;
        net.reconcile(Vec::new()).await.unwrap();
        let interface = net.furnish(id(1), &pool("a"), &internet()).await.unwrap();
        let other = net.furnish(id(2), &pool("a"), &internet()).await.unwrap();
        let sandbox = world.sandbox(&interface);
        let sibling = world.sandbox(&other);
        sibling.space.program("ip link set lo up");
        crate::world::serve(&sibling.space, vec![other.ipv4.into(), other.ipv6.into()]);
        let mut flow = sandbox.connect(PUBLIC, 80);
        world.router().program("nft flush ruleset");
        for to in [
            PUBLIC,
            "10.0.0.1",
            "192.0.2.2",
            "198.18.0.2",
            "2606:2800:220:1::1",
            "2001:db8:1::2",
        ] {
            assert_ne!(sandbox.tcp(to, 80), Outcome::Reached, "{to}");
        }
        for to in [other.ipv4.to_string(), other.ipv6.to_string()] {
            assert_ne!(sandbox.tcp(&to, 80), Outcome::Reached, "{to}");
        }
        assert!(
            net.report(id(1)).await.is_err(),
            "a policy that is not there is not reported"
        );
        net.look().await.unwrap();
        assert_eq!(sandbox.tcp(PUBLIC, 80), Outcome::Reached);
        assert_eq!(sandbox.tcp("10.0.0.1", 80), Outcome::Refused);
        assert_eq!(talk(&mut flow), Outcome::Reached);
        net.report(id(1)).await.unwrap();
    });
}

#[test]
fn flushing_the_nodes_rules_opens_nothing() {
    on_a_node(async |world: &World| {
        let net = world.network(|_| {}).await;
        net.reconcile(Vec::new()).await.unwrap();
        let interface = net.furnish(id(1), &pool("a"), &internet()).await.unwrap();
        let sandbox = world.sandbox(&interface);
        world.node.program("nft flush ruleset");
        for to in [
            "10.0.0.1",
            "192.0.2.2",
            "198.18.0.2",
            "169.254.169.254",
            "2001:db8:1::2",
        ] {
            assert_ne!(sandbox.tcp(to, 80), Outcome::Reached, "{to}");
        }
        net.look().await.unwrap();
        assert_eq!(sandbox.tcp(PUBLIC, 80), Outcome::Reached);
    });
}

#[test]
fn a_policy_can_be_applied_where_somebody_has_flushed_the_rules() {
    on_a_node(async |world: &World| {
        let net = world.network(|_| {}).await;
        net.reconcile(Vec::new()).await.unwrap();
        let interface = net.furnish(id(1), &pool("a"), &internet()).await.unwrap();
        world.router().program("nft flush ruleset");
        let policy = crate::world::allowlist(&["tcp 10.0.0.0/8 80"]);
        net.apply(id(1), &policy).await.unwrap();
        let sandbox = world.sandbox(&interface);
        assert_eq!(sandbox.tcp("10.0.0.1", 80), Outcome::Reached);
        assert_eq!(sandbox.tcp(PUBLIC, 80), Outcome::Refused);
        assert_eq!(net.report(id(1)).await.unwrap().policy, policy);
        world.router().program("nft flush ruleset");
        net.furnish(id(2), &pool("a"), &policy).await.unwrap();
        world.router().program("nft flush ruleset");
        net.release(id(1)).await.unwrap();
        net.release(id(2)).await.unwrap();
    });
}

#[test]
fn a_new_address_of_the_node_is_closed_at_the_next_look_and_behind_the_router_at_once() {
    on_a_node(async |world: &World| {
        let net = world.network(|_| {}).await;
        net.reconcile(Vec::new()).await.unwrap();
        let interface = net.furnish(id(1), &pool("a"), &internet()).await.unwrap();
        world.node.program("ip addr add 8.8.4.4/32 dev up0");
        crate::world::serve(&world.node, vec!["8.8.4.4".parse().unwrap()]);
        let sandbox = world.sandbox(&interface);
        assert_eq!(sandbox.tcp("8.8.4.4", 80), Outcome::Silence);
        net.look().await.unwrap();
        assert_eq!(sandbox.tcp("8.8.4.4", 80), Outcome::Refused);
    });
}

/// A process that owns a table of hearth's name (nftables lets nobody else change it): every transaction of hearth's fails,
/// until it ends, and its table with it.
struct Owner(std::process::Child);

impl Owner {
    fn of(router: &crate::world::Space, table: &str) -> Self {
        let nft = router.run(|| {
            let mut nft = std::process::Command::new("nft");
            nft.arg("-i").stdin(std::process::Stdio::piped());
            nft.stdout(std::process::Stdio::null()).spawn().unwrap()
        });
        let mut this = Self(nft);
        let stdin = this.0.stdin.as_mut().unwrap();
        let line = format!("add table {table} {{ flags owner; }}\n");
        std::io::Write::write_all(stdin, line.as_bytes()).unwrap();
        let began = std::time::Instant::now();
        while !router.program("nft list tables").contains(table) {
            assert!(began.elapsed().as_secs() < 30, "no table {table}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        this
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

#[test]
fn while_nft_fails_nothing_is_open_and_nothing_is_said_to_be_in_force() {
    on_a_node(async |world: &World| {
        let net = world.network(|_| {}).await;
        net.reconcile(Vec::new()).await.unwrap();
        let interface = net.furnish(id(1), &pool("a"), &internet()).await.unwrap();
        let sandbox = world.sandbox(&interface);
        let tables = world.router().program("nft list tables");
        let table = tables.lines().next().unwrap();
        let table = table.strip_prefix("table ").unwrap().to_owned();
        world.router().program("nft flush ruleset");
        let owner = Owner::of(&world.router(), &table);
        let policy = crate::world::allowlist(&["tcp 10.0.0.0/8 80"]);
        assert!(net.look().await.is_err());
        assert!(net.apply(id(1), &policy).await.is_err());
        assert!(net.furnish(id(2), &pool("a"), &policy).await.is_err());
        assert!(net.report(id(1)).await.is_err());
        for to in [PUBLIC, "10.0.0.1", "192.0.2.2", "198.18.0.1"] {
            assert_ne!(sandbox.tcp(to, 80), Outcome::Reached, "{to}");
        }
        // Destroyed all the same, or later: never said to be gone while it is not.
        let released = net.release(id(2)).await;
        drop(owner);
        let began = std::time::Instant::now();
        while net.look().await.is_err() {
            assert!(began.elapsed().as_secs() < 30, "it stays");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        println!("released meanwhile: {released:?}");
        assert_eq!(sandbox.tcp(PUBLIC, 80), Outcome::Reached, "as it was");
        net.apply(id(1), &policy).await.unwrap();
        assert_eq!(sandbox.tcp(PUBLIC, 80), Outcome::Refused);
        assert_eq!(sandbox.tcp("10.0.0.1", 80), Outcome::Reached);
        net.release(id(2)).await.unwrap();
        net.furnish(id(3), &pool("a"), &policy).await.unwrap();
        net.release(id(3)).await.unwrap();
        net.release(id(1)).await.unwrap();
    });
}
