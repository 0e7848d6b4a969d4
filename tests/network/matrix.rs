//! The packet matrix: every policy against every destination, over TCP and UDP, IPv4 and IPv6; for a new sandbox, after a
//! change of policy, and after its addresses were taken off its link and put back (what a thaw and a restore are down here).
//! Written once, below; docs/network.md shows the same table (`UPDATE=1` writes it there).

use crate::names::{Upstream, lookup};
use crate::world::{
    Outcome, Sandbox, World, allowlist, id, internet, on_a_node, pool, rule, serve, tcp, udp,
};
use hearth::machine::network::NetworkPolicy;
use hearth::net::{LinuxNetwork, Network};
use std::fmt::Write;
use std::net::SocketAddr;

/// What a column is called, and its addresses over IPv4 and IPv6.
pub const COLUMNS: [(&str, &[&str]); 12] = [
    ("public", &["93.184.216.34", "2606:2800:220:1::1"]),
    ("other public", &["151.101.1.69", "2a04:4e42::81"]),
    ("cluster", &["34.118.224.1", "2600:1900:4000::1"]),
    (
        "private",
        &["10.0.0.1", "172.16.0.1", "192.168.0.1", "fd12::1"],
    ),
    ("CGNAT, NAT64", &["100.64.0.1", "64:ff9b::a00:1"]),
    ("metadata", &["169.254.169.254", "fd00:ec2::254"]),
    ("node", &["192.0.2.2", "2001:db8:1::2"]),
    ("node's end", &["198.18.0.2", "fd68:6561:7274:6800::2"]),
    ("gateway", &["198.18.0.1", "fd68:6561:7274:6800::1"]),
    ("other sandbox", &["198.18.0.3", "fd68:6561:7274:6800::3"]),
    (
        "published port of another",
        &["198.18.0.4", "fd68:6561:7274:6800::4"],
    ),
    ("DNS: listed name", &[]),
];

/// What is reached, column by column: `.` nothing, `t` TCP, `u` UDP, `b` both; the last one: is the name answered?
pub const ROWS: [(&str, &str); 8] = [
    ("`internet`", "bb.........b"),
    ("`internet`, `deny` public", ".b.........b"),
    ("`allowlist`, empty", "............"),
    ("`allowlist` of public, TCP 80", "t..........."),
    ("`allowlist` of a name (public), UDP", "u..........b"),
    ("`allowlist` of cluster and private", "..bb........"),
    ("`allowlist` of everything", "bbbbb......."),
    (
        "`allowlist` of everything, `deny` private, UDP cluster",
        "bbt.b.......",
    ),
];

const NAME: &str = "listed.example";

pub fn policy(row: usize) -> NetworkPolicy {
    const ALL: [&str; 2] = ["any 0.0.0.0/0", "any ::/0"];
    const PRIVATE: [&str; 4] = [
        "any 10.0.0.0/8",
        "any 172.16.0.0/12",
        "any 192.168.0.0/16",
        "any fc00::/7",
    ];
    let deny = |mut policy: NetworkPolicy, rules: &[&str]| {
        policy.deny = rules.iter().map(|text| rule(text)).collect();
        policy
    };
    match row {
        0 => internet(),
        1 => deny(
            internet(),
            &["any 93.184.216.0/24", "any 2606:2800:220:1::/64"],
        ),
        2 => allowlist(&[]),
        3 => allowlist(&["tcp 93.184.216.34/32 80", "tcp 2606:2800:220:1::1/128 1-80"]),
        4 => allowlist(&["udp listed.example 80"]),
        5 => allowlist(
            &[
                &["any 34.118.224.0/20", "any 2600:1900:4000::/48"][..],
                &PRIVATE,
            ]
            .concat(),
        ),
        6 => allowlist(&ALL),
        _ => deny(
            allowlist(&ALL),
            &[
                &PRIVATE[..],
                &["udp 34.118.224.0/20", "udp 2600:1900:4000::/48"],
            ]
            .concat(),
        ),
    }
}

/// What was reached, in the words of [`ROWS`]; a column whose addresses differ is told as `?`.
fn row_of(sandbox: &Sandbox) -> String {
    let answered = sandbox
        .space
        .run(|| lookup("198.18.0.1", NAME).is_some_and(|found| !found.is_empty()));
    sandbox.space.run(|| lookup("fd68:6561:7274:6800::1", NAME));
    let columns = COLUMNS
        .iter()
        .take(COLUMNS.len() - 1)
        .map(|(_, addresses)| addresses.to_vec());
    let tries = columns.flat_map(|addresses| addresses.into_iter());
    let tries: Vec<SocketAddr> = tries
        .map(|address| SocketAddr::new(address.parse().unwrap(), 80))
        .collect();
    let probes = tries.clone();
    let outcomes: Vec<[bool; 2]> = sandbox.space.run(move || {
        std::thread::scope(|scope| {
            let both = |to: SocketAddr| {
                [
                    scope.spawn(move || tcp(to)),
                    scope.spawn(move || udp(None, to)),
                ]
            };
            let threads: Vec<_> = probes.iter().map(|to| both(*to)).collect();
            let reached = |threads: [std::thread::ScopedJoinHandle<'_, Outcome>; 2]| {
                threads.map(|thread| thread.join().unwrap() == Outcome::Reached)
            };
            threads.into_iter().map(reached).collect()
        })
    });
    let mut outcomes = outcomes.into_iter();
    let mut row = String::new();
    for (_, addresses) in &COLUMNS[..COLUMNS.len() - 1] {
        let of_column: Vec<[bool; 2]> = outcomes.by_ref().take(addresses.len()).collect();
        row.push(match of_column.first() {
            Some(first) if of_column.iter().any(|other| other != first) => '?',
            Some([true, true]) => 'b',
            Some([true, false]) => 't',
            Some([false, true]) => 'u',
            _ => '.',
        });
    }
    row.push(if answered { 'b' } else { '.' });
    row
}

#[test]
fn every_policy_reaches_what_it_names_and_nothing_else() {
    on_a_node(async |world: &World| {
        let upstream = Upstream::start(&world.far, "192.0.2.1:53");
        upstream.says(NAME, &["93.184.216.34", "2606:2800:220:1::1"]);
        let net = world
            .network(|settings| settings.upstream = vec!["192.0.2.1:53".parse().unwrap()])
            .await;
        net.reconcile(Vec::new()).await.unwrap();
        let running = tokio::spawn(net.clone().run());
        others(world, &net).await;
        // One sandbox goes through all policies, another is new for each.
        let interface = net
            .furnish(id(3), &pool("a"), &allowlist(&[]))
            .await
            .unwrap();
        let changed = world.sandbox(&interface);
        let mut report = String::new();
        for (at, (name, expected)) in ROWS.iter().enumerate() {
            let policy = policy(at);
            net.apply(id(3), &policy).await.unwrap();
            let interface = net
                .furnish(id(100 + at as u64), &pool("a"), &policy)
                .await
                .unwrap();
            let fresh = world.sandbox(&interface);
            let check = |report: &mut String, when: &str, row: String| {
                if row != *expected {
                    writeln!(report, "{name}, {when}: {row}, expected {expected}").unwrap();
                }
            };
            // The resolver runs on this thread too.
            let (fresh, row) = tokio::task::spawn_blocking(move || {
                let row = row_of(&fresh);
                (fresh, row)
            })
            .await
            .unwrap();
            check(&mut report, "new", row);
            fresh.space.program("ip addr flush dev eth0");
            let (again, row) = tokio::task::spawn_blocking(move || {
                let row = row_of(&fresh);
                (fresh, row)
            })
            .await
            .unwrap();
            if row.contains(['b', 't', 'u', '?']) {
                writeln!(report, "{name}: reaches {row} without its addresses").unwrap();
            }
            let before = net
                .refurnish(id(100 + at as u64), &pool("a"), &policy)
                .await
                .unwrap();
            assert_eq!(before, again.interface);
            let row = tokio::task::spawn_blocking(move || row_of(&again))
                .await
                .unwrap();
            check(&mut report, "after its addresses were put back", row);
            let space = changed.space.clone();
            let interface = changed.interface.clone();
            let row = tokio::task::spawn_blocking(move || row_of(&Sandbox { space, interface }))
                .await
                .unwrap();
            check(&mut report, "after a change of policy", row);
            net.release(id(100 + at as u64)).await.unwrap();
        }
        running.abort();
        assert!(report.is_empty(), "\n{report}");
    });
}

/// Two sandboxes that serve: they answer their own, and nobody else reaches them.
async fn others(world: &World, net: &LinuxNetwork) {
    for (number, publish) in [(1, vec![]), (2, vec![80])] {
        let policy = NetworkPolicy {
            publish,
            ..internet()
        };
        let interface = net
            .furnish(id(number), &pool("others"), &policy)
            .await
            .unwrap();
        let column = COLUMNS[8 + usize::try_from(number).unwrap()].1;
        assert_eq!(interface.ipv4.to_string(), column[0]);
        assert_eq!(interface.ipv6.to_string(), column[1]);
        let sandbox = world.sandbox(&interface);
        sandbox.space.program("ip link set lo up");
        serve(
            &sandbox.space,
            vec![interface.ipv4.into(), interface.ipv6.into()],
        );
        assert_eq!(sandbox.tcp(column[0], 80), Outcome::Reached);
    }
}

#[test]
fn the_page_shows_the_matrix() {
    let mut table = String::from("| policy |");
    for (name, _) in COLUMNS {
        write!(table, " {name} |").unwrap();
    }
    table.push_str("\n|---|");
    table.push_str(&"---|".repeat(COLUMNS.len()));
    table.push_str("\n| `none` |");
    table.push_str(&" no interface |".repeat(COLUMNS.len()));
    for (name, cells) in ROWS {
        write!(table, "\n| {name} |").unwrap();
        for (at, cell) in cells.chars().enumerate() {
            let word = match (at == COLUMNS.len() - 1, cell) {
                (true, 'b') => "answered",
                (true, _) => "no such name",
                (false, 't') => "TCP",
                (false, 'u') => "UDP",
                (false, 'b') => "TCP, UDP",
                _ => "–",
            };
            write!(table, " {word} |").unwrap();
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/network.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (begin, end) = ("<!-- matrix -->\n", "\n<!-- end of matrix -->");
    let (before, rest) = page.split_once(begin).unwrap();
    let (shown, after) = rest.split_once(end).unwrap();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, format!("{before}{begin}{table}{end}{after}")).unwrap();
        return;
    }
    assert_eq!(shown, table, "UPDATE=1 writes it anew");
}
