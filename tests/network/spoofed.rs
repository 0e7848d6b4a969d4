//! The matrix once more, in another's name: with a source address that is not the sandbox's, no policy lets anything out.

use crate::matrix::{COLUMNS, ROWS, policy};
use crate::world::{Sandbox, World, id, internet, on_a_node, pool};
use hearth::net::Network;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;
use tokio::net::TcpSocket;

/// Another sandbox's addresses, and the node's.
const NAMES_OF_OTHERS: [&str; 4] = [
    "198.18.0.3",
    "192.0.2.2",
    "fd68:6561:7274:6800::3",
    "2001:db8:1::2",
];

#[test]
fn in_anothers_name_no_policy_reaches_anything() {
    on_a_node(async |world: &World| {
        watch_arrivals(world);
        let net = world.network(|_| {}).await;
        net.reconcile(Vec::new()).await.unwrap();
        // Two others first: theirs are the addresses of the columns.
        for other in [2, 3] {
            net.furnish(id(other), &pool("a"), &internet())
                .await
                .unwrap();
        }
        let interface = net.furnish(id(1), &pool("a"), &internet()).await.unwrap();
        let sandbox = world.sandbox(&interface);
        assert_eq!(
            sandbox.udp("93.184.216.34", 80),
            crate::world::Outcome::Reached
        );
        assert!(arrived(world) > 0, "the far side counts what arrives");
        for (at, (name, _)) in ROWS.iter().enumerate() {
            net.apply(id(1), &policy(at)).await.unwrap();
            let arrivals = arrived(world);
            let denied = net.report(id(1)).await.unwrap().denied_packets;
            let sent = send_as_others(&sandbox);
            assert_eq!(arrived(world), arrivals, "{name}");
            let more = net.report(id(1)).await.unwrap().denied_packets - denied;
            assert!(more >= sent, "{name}: {more} of {sent} were denied");
        }
    });
}

/// Counts packets to the servers' port on the far side.
fn watch_arrivals(world: &World) {
    for line in [
        "nft add table inet seen",
        "nft add chain inet seen in { type filter hook prerouting priority -300 ; }",
        "nft add rule inet seen in iifname wan meta l4proto { tcp, udp } th dport 80 counter",
    ] {
        world.far.program(line);
    }
}

fn arrived(world: &World) -> u64 {
    let told = world.far.program("nft list chain inet seen in");
    let count = told.split("packets ").nth(1).unwrap();
    count.split(' ').next().unwrap().parse().unwrap()
}

/// A datagram and a SYN to every destination of every column, in each name. How many packets that were at least.
fn send_as_others(sandbox: &Sandbox) -> u64 {
    let mut sent = 0;
    for name in NAMES_OF_OTHERS {
        let source: IpAddr = name.parse().unwrap();
        let length = if source.is_ipv4() { "32" } else { "128" };
        let more = if source.is_ipv4() { "" } else { " nodad" };
        let space = &sandbox.space;
        space.program(&format!("ip addr add {name}/{length} dev eth0{more}"));
        let to = COLUMNS.iter().flat_map(|(_, addresses)| addresses.iter());
        let to = to.map(|address| SocketAddr::new(address.parse().unwrap(), 80));
        // To itself it would not leave the sandbox.
        let to: Vec<_> = to
            .filter(|to| to.is_ipv4() == source.is_ipv4() && to.ip() != source)
            .collect();
        sent += space.run(move || to.into_iter().map(|to| send(source, to)).sum::<u64>());
        space.program(&format!("ip addr del {name}/{length} dev eth0"));
    }
    sent
}

fn send(source: IpAddr, to: SocketAddr) -> u64 {
    let socket = UdpSocket::bind((source, 0)).unwrap();
    let datagram = u64::from(socket.send_to(b"in another's name", to).is_ok());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        let socket = match to {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        };
        let socket = socket.unwrap();
        socket.bind((source, 0).into()).unwrap();
        let connected = tokio::time::timeout(Duration::from_millis(20), socket.connect(to)).await;
        assert!(!matches!(connected, Ok(Ok(_))), "{source} reaches {to}");
    });
    datagram + 1
}
