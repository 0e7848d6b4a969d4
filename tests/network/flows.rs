//! Flows: cut when the policy no longer allows them, kept when it does, counted, and nobody else's.

use crate::world::{Outcome, World, allowlist, id, internet, on_a_node, pool, talk, tcp};
use hearth::machine::network::NetworkPolicy;
use hearth::net::Network;
use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

const PUBLIC: &str = "93.184.216.34";
/// `MSG_MORE` of linux/socket.h, which nix has no name for.
const MORE: MsgFlags = MsgFlags::from_bits_retain(0x8000);
const OTHER: &str = "151.101.1.69";

#[test]
fn a_change_of_policy_cuts_what_it_no_longer_allows_in_both_directions() {
    on_a_node(async |world: &World| {
        let net = world.network(|_| {}).await;
        let interface = net.furnish(id(1), &pool("a"), &internet()).await.unwrap();
        let sandbox = world.sandbox(&interface);
        let mut kept = sandbox.connect(PUBLIC, 80);
        let mut cut = sandbox.connect(OTHER, 80);
        let mut six = sandbox.connect("2a04:4e42::81", 443);
        let policy = allowlist(&["tcp 93.184.216.34/32 80"]);
        net.apply(id(1), &policy).await.unwrap();
        // The far side speaks first: what comes in is held back too. Nothing of it arrives, so nothing is answered.
        assert_ne!(talk(&mut six), Outcome::Reached);
        assert_ne!(talk(&mut cut), Outcome::Reached);
        assert_eq!(talk(&mut kept), Outcome::Reached);
        net.apply(id(1), &allowlist(&[])).await.unwrap();
        assert_ne!(talk(&mut kept), Outcome::Reached);
        // Open again: a new flow is allowed, with nothing left of the old decision.
        net.apply(id(1), &policy).await.unwrap();
        assert_eq!(talk(&mut sandbox.connect(PUBLIC, 80)), Outcome::Reached);
    });
}

#[test]
fn the_same_policy_again_cuts_nothing() {
    on_a_node(async |world: &World| {
        let net = world.network(|_| {}).await;
        let interface = net.furnish(id(1), &pool("a"), &internet()).await.unwrap();
        let mut flow = world.sandbox(&interface).connect(PUBLIC, 80);
        net.apply(id(1), &internet()).await.unwrap();
        net.refurnish(id(1), &pool("a"), &internet()).await.unwrap();
        assert_eq!(talk(&mut flow), Outcome::Reached);
    });
}

#[test]
fn a_published_port_is_the_only_way_in() {
    on_a_node(async |world: &World| {
        let net = world.network(|_| {}).await;
        let published = |ports: &[u16]| NetworkPolicy {
            publish: ports.to_vec(),
            ..internet()
        };
        let interface = net
            .furnish(id(1), &pool("a"), &published(&[80]))
            .await
            .unwrap();
        let sandbox = world.sandbox(&interface);
        let addresses = [interface.ipv4.into(), interface.ipv6.into()];
        crate::world::serve(&sandbox.space, addresses.to_vec());
        world
            .far
            .program("ip route add 198.18.0.0/16 via 192.0.2.2");
        for address in addresses {
            let node = |port| world.node.run(move || tcp(SocketAddr::new(address, port)));
            assert_eq!(node(80), Outcome::Reached, "{address}");
            assert_eq!(node(443), Outcome::Silence, "{address}");
        }
        let far = move |port| tcp(SocketAddr::new(addresses[0], port));
        assert_eq!(world.far.run(move || far(80)), Outcome::Reached);
        assert_eq!(world.far.run(move || far(443)), Outcome::Silence);
        net.apply(id(1), &published(&[])).await.unwrap();
        assert_eq!(world.node.run(move || far(80)), Outcome::Silence);
    });
}

#[test]
fn what_comes_in_is_a_knock_where_somebody_inside_may_wait_for_it() {
    on_a_node(async |world: &World| {
        let net = world.network(|_| {}).await;
        let policy = NetworkPolicy {
            publish: vec![80],
            ..internet()
        };
        let interface = net.furnish(id(1), &pool("a"), &policy).await.unwrap();
        let quiet = net.furnish(id(2), &pool("a"), &policy).await.unwrap();
        let (sandbox, _quiet) = (world.sandbox(&interface), world.sandbox(&quiet));
        let address = interface.ipv4.into();
        crate::world::serve(&sandbox.space, vec![address]);
        let began = Instant::now();
        let heard = async || net.knocks().await.unwrap().get(&id(1)).copied();
        // Is what came in since then a knock? The kernel tells times in its own ticks.
        let since = async |at: Instant| {
            let ago = heard().await;
            ago.is_some_and(|ago| ago < at.elapsed() + Duration::from_millis(5))
        };
        let pause = async || {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Instant::now()
        };
        assert_eq!(net.knocks().await.unwrap(), BTreeMap::new());
        // Nobody is let in there.
        let node = |port| {
            let to = SocketAddr::new(address, port);
            world.node.run(move || tcp(to))
        };
        assert_eq!(node(443), Outcome::Silence);
        assert_eq!(heard().await, None);
        // What it says itself is none; an answer is.
        let connect = move || TcpStream::connect(SocketAddr::new(address, 80)).unwrap();
        let mut visitor = world.node.run(connect);
        assert!(since(began).await, "who connects");
        let mut at = pause().await;
        assert!(!since(at).await);
        assert_eq!(talk(&mut visitor), Outcome::Reached);
        assert!(since(at).await, "who goes on");
        // One whole segment, and what follows is held back: it ends nothing, so the other side is not told to read.
        at = pause().await;
        send(visitor.as_raw_fd(), &[b'x'; 2000], MORE).unwrap();
        assert!(since(at).await, "who has not said all");
        // The rest follows by itself; then nothing does.
        tokio::time::sleep(Duration::from_millis(500)).await;
        // Kept alive once a second: a packet comes in that says nothing.
        setsockopt(&visitor, sockopt::KeepAlive, &true).unwrap();
        setsockopt(&visitor, sockopt::TcpKeepIdle, &1).unwrap();
        at = pause().await;
        let packets = async || net.packets().await.unwrap()[&id(1)];
        let before = packets().await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(packets().await > before, "it is kept alive");
        assert!(!since(at).await);
        at = pause().await;
        drop(visitor);
        pause().await;
        assert!(!since(at).await, "who hangs up");
        let mut flow = sandbox.connect(PUBLIC, 80);
        at = pause().await;
        assert!(!since(at).await, "that connects");
        assert_eq!(talk(&mut flow), Outcome::Reached);
        assert!(since(at).await, "the answer of a server");
        at = pause().await;
        assert_eq!(sandbox.udp(PUBLIC, 80), Outcome::Reached);
        assert!(since(at).await, "the same over UDP");
        // It is told of the one that it came in for, and of nobody else; a change of policy changes nothing about that.
        net.apply(id(1), &internet()).await.unwrap();
        let knocks = net.knocks().await.unwrap();
        assert_eq!(knocks.keys().collect::<Vec<_>>(), [&id(1)]);
        at = pause().await;
        assert_eq!(node(80), Outcome::Silence);
        assert!(!since(at).await);
        net.release(id(1)).await.unwrap();
        assert_eq!(net.knocks().await.unwrap(), BTreeMap::new());
    });
}

#[test]
fn a_sandbox_has_so_many_flows_and_no_more() {
    on_a_node(async |world: &World| {
        let net = world
            .network(|settings| settings.flows_per_sandbox = 20)
            .await;
        let interface = net.furnish(id(1), &pool("a"), &internet()).await.unwrap();
        let other = net.furnish(id(2), &pool("a"), &internet()).await.unwrap();
        let sandbox = world.sandbox(&interface);
        let mut held: Vec<_> = (0..20).map(|_| sandbox.connect(PUBLIC, 80)).collect();
        assert_eq!(sandbox.tcp(PUBLIC, 80), Outcome::Refused);
        assert_eq!(world.sandbox(&other).tcp(PUBLIC, 80), Outcome::Reached);
        // What it has stays.
        assert_eq!(talk(&mut held[0]), Outcome::Reached);
    });
}

#[test]
fn nobody_sends_in_anothers_name() {
    on_a_node(async |world: &World| {
        let net = world.network(|_| {}).await;
        let interface = net.furnish(id(1), &pool("a"), &internet()).await.unwrap();
        let other = net.furnish(id(2), &pool("a"), &internet()).await.unwrap();
        let sandbox = world.sandbox(&interface);
        let before = net.report(id(1)).await.unwrap().denied_packets;
        for source in [
            other.ipv4.to_string(),
            "10.9.9.9".into(),
            "192.0.2.2".into(),
        ] {
            assert_eq!(
                sandbox.udp_from(&source, PUBLIC, 80),
                Outcome::Silence,
                "{source}"
            );
        }
        for source in [other.ipv6.to_string(), "2606:2800:220:1::2".into()] {
            let outcome = sandbox.udp_from(&source, "2606:2800:220:1::1", 80);
            assert_ne!(outcome, Outcome::Reached, "{source}");
        }
        assert!(net.report(id(1)).await.unwrap().denied_packets >= before + 5);
        // Nor with another's MAC, not even from its own addresses.
        let gateway = sandbox.space.program("ip neigh show dev eth0 198.18.0.1");
        assert!(gateway.contains("PERMANENT"), "{gateway}");
        let link = |mac: &str| {
            sandbox
                .space
                .program(&format!("ip link set dev eth0 address {mac}"))
        };
        link("02:00:00:00:00:77");
        net.refurnish(id(1), &pool("a"), &internet()).await.unwrap();
        assert_eq!(sandbox.udp(PUBLIC, 80), Outcome::Silence);
        // The router learns nobody's addresses: it asks nobody and answers nobody.
        let neighbours = world.router().program("ip neigh");
        assert!(
            neighbours
                .lines()
                .all(|line| line.contains("PERMANENT") || line.contains("NOARP")),
            "{neighbours}"
        );
    });
}
