//! What a packet pays for the policy, and that it pays the same however many sandboxes there are: through sandboxes' links
//! with 10 of them, with 500, and with 10 again, on the real kernel. Sockets in their namespaces play the sandboxes, so
//! nothing of gVisor's own network is in the figures.

use crate::measure::{Report, Series, millis};
use crate::world::{Sandbox, World, allowlist, id, internet, on_a_node, pool};
use hearth::net::{LinuxNetwork, Network};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

const PUBLIC: &str = "93.184.216.34";
const FEW: u64 = 10;
const MANY: u64 = 500;
/// Furnished at once.
const STEP: u64 = 10;
const ROUND_TRIPS: u32 = 200;
const CONNECTIONS: u32 = 50;
/// For how long each sandbox sends as fast as it can.
const SENDING: Duration = Duration::from_millis(300);

/// Of the first ten sandboxes, one after the other.
#[derive(Default)]
struct Pass {
    /// Word and echo in a flow that is open.
    round_trip: Series,
    /// From the first packet of a flow to its handshake's end.
    connection: Series,
    /// Sent in one flow by one thread.
    packets_per_second: f64,
}

pub fn section(report: &mut Report) {
    let (tell, told) = std::sync::mpsc::channel();
    on_a_node(async move |world: &World| {
        let net = world.network(|_| {}).await;
        net.reconcile(Vec::new()).await.unwrap();
        let mut measured = Vec::new();
        let sandboxes = furnish(world, &net, 1..FEW + 1).await;
        measured.push(through(&sandboxes));
        furnish(world, &net, FEW + 1..MANY + 1).await;
        measured.push(through(&sandboxes));
        for first in (FEW + 1..MANY + 1).step_by(usize::try_from(STEP).unwrap()) {
            let released = (first..first + STEP).map(|at| net.release(id(at)));
            futures::future::try_join_all(released).await.unwrap();
        }
        measured.push(through(&sandboxes));
        // Last, when the machine is as awake as it was for the others.
        let floor = world.node.run(|| pass(1));
        net.dismantle().await.unwrap();
        tell.send((floor, measured)).unwrap();
    });
    let (floor, measured) = told.recv().unwrap();
    let [few, many, again] = <[Pass; 3]>::try_from(measured).ok().unwrap();
    for (what, pass) in [
        ("10 sandboxes", &few),
        ("500 sandboxes", &many),
        ("10 again", &again),
    ] {
        report.row(
            &format!("echo through the policy, {what}"),
            &pass.round_trip,
        );
        report.row(&format!("  new TCP connection, {what}"), &pass.connection);
        let rate = pass.packets_per_second;
        report.rate(&format!("  packets sent, {what}"), rate, "packets/s");
    }
    report.row("  floor: echo from the node itself", &floor.round_trip);
    report.row("  floor: new TCP connection of the node", &floor.connection);
    let rate = floor.packets_per_second;
    report.rate("  floor: packets sent by the node", rate, "packets/s");
    flat(
        report,
        "echo",
        |pass| millis(pass.round_trip.at(50)),
        [&few, &many, &again],
    );
    flat(
        report,
        "a connection",
        |pass| millis(pass.connection.at(50)),
        [&few, &many, &again],
    );
    let cost = |pass: &Pass| 1.0 / pass.packets_per_second;
    flat(report, "a packet", cost, [&few, &many, &again]);
}

/// With 500 against the mean of before and after: what the machine did meanwhile falls out.
fn flat(report: &mut Report, what: &str, cost: impl Fn(&Pass) -> f64, passes: [&Pass; 3]) {
    let [few, many, again] = passes.map(cost);
    let ratio = many / ((few + again) / 2.0);
    let what = format!("{what} with 500 sandboxes against 10");
    report.goal(&what, ratio, "≤ 1.2", ratio <= 1.2);
}

async fn furnish(world: &World, net: &LinuxNetwork, ids: std::ops::Range<u64>) -> Vec<Sandbox> {
    let policies = [
        internet(),
        allowlist(&["any 93.184.216.34/32", "any fd00::/8"]),
    ];
    let mut sandboxes = Vec::new();
    for first in ids.step_by(usize::try_from(STEP).unwrap()) {
        let furnished = (first..first + STEP).map(|at| {
            let policy = &policies[usize::from(at % 2 == 0)];
            async move { net.furnish(id(at), &pool("a"), policy).await.unwrap() }
        });
        for interface in futures::future::join_all(furnished).await {
            sandboxes.push(world.sandbox(&interface));
        }
    }
    sandboxes
}

fn through(sandboxes: &[Sandbox]) -> Pass {
    let mut all = Pass::default();
    let share = u32::try_from(sandboxes.len()).unwrap();
    for sandbox in sandboxes {
        let one = sandbox.space.run(move || pass(share));
        all.round_trip.extend(&one.round_trip);
        all.connection.extend(&one.connection);
        all.packets_per_second += one.packets_per_second / f64::from(share);
    }
    all
}

/// From the calling thread's namespace; one of `share` that do the same.
fn pass(share: u32) -> Pass {
    let mut pass = Pass::default();
    let echo: SocketAddr = format!("{PUBLIC}:80").parse().unwrap();
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket.connect(echo).unwrap();
    let mut word = [0; 64];
    for _ in 0..10 * ROUND_TRIPS / share {
        let began = Instant::now();
        socket.send(&word).unwrap();
        socket.recv(&mut word).unwrap();
        pass.round_trip.push(began.elapsed());
    }
    for _ in 0..10 * CONNECTIONS / share {
        let began = Instant::now();
        let stream = TcpStream::connect(echo).unwrap();
        pass.connection.push(began.elapsed());
        drop(stream);
    }
    // Nobody reads there: the far side's answer, an ICMP error, is part of what every sender pays alike.
    let nobody: SocketAddr = format!("{PUBLIC}:9").parse().unwrap();
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let (mut sent, began) = (0_u32, Instant::now());
    while began.elapsed() < SENDING {
        for _ in 0..64 {
            sent += u32::from(socket.send_to(&word, nobody).is_ok());
        }
    }
    pass.packets_per_second = f64::from(sent) / began.elapsed().as_secs_f64();
    pass
}
