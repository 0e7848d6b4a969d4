//! What comes in for a sandbox that sleeps wakes it, on gVisor itself: its stack finds the packets of its sleep in its ring.

use crate::hearthd::{Hearth, eventually};
use crate::network::{allow, mode, network, node, sleep, to, with_policy};
use crate::outside::{self, Outside, within};
use crate::residency::resume;
use hearth::api::{ClaimState, NetworkMode, NetworkPolicy, Pool, Tier};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Echoes what visitors send, and keeps their connections.
const ECHO: &str = "import socket, threading
def serve(c):
    while data := c.recv(100): c.sendall(data)
s = socket.create_server(('', 8000))
while True:
    threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()";

/// Asks a server, waits for its answer and keeps it; its keep-alives go on meanwhile.
const ASK: &str = "import socket
s = socket.create_connection(('{address}', 7000))
s.sendall(b'a question')
open('/tmp/asked', 'w').close()
answer = s.recv(100)
open('/tmp/answer', 'wb').write(answer)";

/// Longer than a client of TCP waits for an answer to its second SYN, and a restore takes.
const PATIENCE: Duration = Duration::from_secs(20);

fn served() -> Pool {
    let policy = NetworkPolicy {
        publish: vec![8000],
        ..mode(NetworkMode::Internet)
    };
    with_policy("served", 1, policy)
}

/// A connection from the node's namespace.
fn visit(outside: &Outside, address: &str) -> TcpStream {
    let stream = try_visit(outside, address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn try_visit(outside: &Outside, address: &str) -> std::io::Result<TcpStream> {
    let address: SocketAddr = format!("{address}:8000").parse().unwrap();
    within(outside.node(), move || {
        TcpStream::connect_timeout(&address, PATIENCE)
    })
}

/// One word there and back.
async fn talk(stream: &mut TcpStream) {
    let mut stream = stream.try_clone().unwrap();
    let said = tokio::task::spawn_blocking(move || {
        stream.write_all(b"word").unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        answer
    });
    assert_eq!(&said.await.unwrap(), b"word");
}

/// To sleep, once it is awake: a visitor is answered before hearthd has seen the end of the thaw.
async fn sleep_again(hearth: &Hearth, claim: &str, tier: Tier) {
    resume(hearth, claim).await;
    sleep(hearth, claim, tier).await;
}

async fn state(hearth: &Hearth, claim: &str) -> ClaimState {
    hearth.get(claim).await.state()
}

fn woken(hearth: &Hearth) -> bool {
    let (_, page) = hearth.admin_page("/metrics");
    page.contains("hearth_thaws_total{cause=\"traffic\"} ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_wakes_who_sleeps() {
    let outside = Outside::new();
    let mut hearth = node(&outside).await;
    hearth.set_pools(vec![served()]).await;
    hearth.warm("served", 1).await;
    let (claim, _) = hearth.claim("served").await;
    hearth
        .start_detached(&claim, &["python3", "-c", ECHO])
        .await;
    let address = network(&hearth, &claim).await.addresses[0].clone();
    eventually("it serves", || async {
        try_visit(&outside, &address).is_ok()
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    sleep(&hearth, &claim, Tier::Memory).await;
    // Who was there before it was put to sleep does not wake it.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(state(&hearth, &claim).await, ClaimState::Hibernated);
    assert!(!woken(&hearth));
    let began = Instant::now();
    let mut visitor = visit(&outside, &address);
    talk(&mut visitor).await;
    println!("answered from memory after {:?}", began.elapsed());
    assert!(woken(&hearth));
    // Nobody else uses it: it sleeps again, its visitor's connection with it, which goes on when that says something.
    eventually("it sleeps again", || async {
        state(&hearth, &claim).await == ClaimState::Hibernated
    })
    .await;
    talk(&mut visitor).await;
    // The same over a death of hearthd, and from the disk.
    sleep_again(&hearth, &claim, Tier::Memory).await;
    hearth.kill();
    hearth.restart().await;
    talk(&mut visitor).await;
    drop(visitor);
    sleep_again(&hearth, &claim, Tier::Disk).await;
    let began = Instant::now();
    talk(&mut visit(&outside, &address)).await;
    println!("answered from the disk after {:?}", began.elapsed());
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_that_somebody_inside_waits_for_wakes_them() {
    let outside = Outside::new();
    let hearth = node(&outside).await;
    let server = outside.listen(outside::PUBLIC, 7000);
    hearth
        .set_pools(vec![with_policy("asks", 1, allow(to(outside::PUBLIC)))])
        .await;
    hearth.warm("asks", 1).await;
    let (claim, _) = hearth.claim("asks").await;
    let ask = ASK.replace("{address}", outside::PUBLIC);
    hearth
        .start_detached(&claim, &["python3", "-c", &ask])
        .await;
    let mut asked = None;
    eventually("it asks", || {
        asked = asked.take().or_else(|| server.accept().ok());
        let there = asked.is_some();
        async move { there }
    })
    .await;
    let (mut asked, _) = asked.unwrap();
    asked.set_nonblocking(false).unwrap();
    asked.read_exact(&mut [0; 10]).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    sleep(&hearth, &claim, Tier::Memory).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(state(&hearth, &claim).await, ClaimState::Hibernated);
    asked.write_all(b"the answer").unwrap();
    eventually("it wakes", || async {
        state(&hearth, &claim).await == ClaimState::Claimed
    })
    .await;
    let read = async || hearth.run(&claim, &["cat", "/tmp/answer"]).await;
    eventually("it has the answer", || async {
        read().await == (0, "the answer".to_owned())
    })
    .await;
    hearth.finish().await;
}
