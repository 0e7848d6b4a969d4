//! Packets of one sandbox through its policy, beside 10 and beside 500 others: the same figure, if the way of a packet does
//! not depend on how many there are. On a node of its own, without hearthd.

use crate::measure::{Report, Series, millis};
use crate::world::{World, allowlist, id, on_a_node, pool};
use hearth::net::{LinuxNetwork, Network};
use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// Sandboxes at the two points.
const FEW: u64 = 10;
const MANY: u64 = 500;
const PINGS: u32 = 5_000;
/// Of the flood that counts packets.
const FLOOD: Duration = Duration::from_secs(2);
const FAR: &str = "93.184.216.34";

#[derive(Default)]
struct Point {
    ping: Series,
    packets_per_second: f64,
}

#[derive(Default)]
struct Figures {
    points: Vec<Point>,
    /// A spare is there.
    furnish: Series,
    apply: Series,
}

pub fn section(report: &mut Report) {
    let (tell, told) = sync_channel(1);
    on_a_node(async move |world: &World| tell.send(measure(world).await).unwrap());
    let figures = told.recv().unwrap();
    report.row("network: furnish from a spare", &figures.furnish);
    report.row("network: apply a policy", &figures.apply);
    let names = [format!("{FEW} sandboxes"), format!("{MANY} sandboxes")];
    for (name, point) in names.iter().zip(&figures.points) {
        report.row(&format!("network: UDP there and back, {name}"), &point.ping);
        let what = format!("network: packets through the policy, {name}");
        report.rate(&what, point.packets_per_second, "packets/s");
    }
    let [few, many] = &figures.points[..] else {
        return;
    };
    let ratio = millis(many.ping.at(50)) / millis(few.ping.at(50));
    report.goal(
        "network: latency, 500 against 10",
        ratio,
        "≤ 1.2",
        ratio <= 1.2,
    );
    let ratio = few.packets_per_second / many.packets_per_second;
    report.goal(
        "network: packets/s, 10 against 500",
        ratio,
        "≤ 1.2",
        ratio <= 1.2,
    );
}

async fn measure(world: &World) -> Figures {
    let net = world.network(|_| {}).await;
    net.reconcile(Vec::new()).await.unwrap();
    let mut figures = Figures::default();
    let policy = allowlist(&[
        "udp 93.184.216.34/32",
        "tcp 10.0.0.0/8 443",
        "any 172.16.0.0/12",
    ]);
    for (from, to) in [(0, FEW), (FEW, MANY)] {
        for number in from..to {
            net.add_spare().await.unwrap();
            let began = Instant::now();
            net.furnish(id(number), &pool("a"), &policy).await.unwrap();
            figures.furnish.push(began.elapsed());
        }
        apply(&net, &mut figures.apply).await;
        net.apply(id(0), &policy).await.unwrap();
        let interface = net.furnish(id(0), &pool("a"), &policy).await.unwrap();
        let sandbox = world.sandbox(&interface).space;
        figures.points.push(Point {
            ping: sandbox.run(ping),
            packets_per_second: flood(world, &sandbox),
        });
    }
    figures
}

async fn apply(net: &LinuxNetwork, series: &mut Series) {
    let policies = [
        allowlist(&["tcp 10.1.0.0/16 443", "udp 10.2.0.0/16 53"]),
        allowlist(&["tcp 10.3.0.0/16 443", "any 2606:2800::/32"]),
    ];
    for round in 0..50 {
        let began = Instant::now();
        net.apply(id(0), &policies[round % 2]).await.unwrap();
        series.push(began.elapsed());
    }
}

fn ping() -> Series {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    socket.connect((FAR, 80)).unwrap();
    let mut series = Series::default();
    for round in 0..PINGS + 100 {
        let began = Instant::now();
        socket.send(&[0; 64]).unwrap();
        socket.recv(&mut [0; 64]).unwrap();
        // The first ones make the flow.
        if round >= 100 {
            series.push(began.elapsed());
        }
    }
    series
}

/// Packets that arrive in a second when the sandbox sends as many as it can.
fn flood(world: &World, sandbox: &crate::world::Space) -> f64 {
    let to: SocketAddr = format!("{FAR}:9").parse().unwrap();
    let (tell, told) = sync_channel(1);
    let (ready, is_ready) = sync_channel(1);
    world.far.spawn(move || {
        let socket = UdpSocket::bind(to).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        ready.send(()).unwrap();
        let mut arrived = 0_u32;
        let (mut first, mut last) = (None, Instant::now());
        while socket.recv(&mut [0; 64]).is_ok() {
            last = Instant::now();
            first.get_or_insert(last);
            arrived += 1;
        }
        let took = first.map_or(Duration::ZERO, |first| last - first);
        tell.send(f64::from(arrived) / took.as_secs_f64().max(1e-9))
            .unwrap();
    });
    is_ready.recv().unwrap();
    sandbox.run(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(to).unwrap();
        let began = Instant::now();
        while began.elapsed() < FLOOD {
            for _ in 0..64 {
                let _ = socket.send(&[0; 64]);
            }
        }
    });
    told.recv().unwrap()
}
