//! A node, an internet, and sockets that play sandboxes.

use hearth::machine::ids::{NodeTag, PoolName, SandboxId};
use hearth::machine::network::{
    Cidr, NetworkMode, NetworkPolicy, PortRange, Protocol, Rule, Target,
};
use hearth::net::{Interface, LinuxNetwork, NetMetrics, NetSettings};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// Longer than any answer in here takes; only what is dropped in silence waits for it.
const PATIENCE: Duration = Duration::from_millis(700);
/// For a connection that must come about: a busy machine may take its time, and one packet sent again.
const SURE: Duration = Duration::from_secs(20);
/// Where the internet's servers listen.
pub const PORTS: [u16; 2] = [80, 443];
/// Addresses of the namespace that plays the internet and all private networks.
pub const FAR: [&str; 14] = [
    "93.184.216.34",
    "151.101.1.69",
    "34.118.224.1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "100.64.0.1",
    "169.254.169.254",
    "2606:2800:220:1::1",
    "2a04:4e42::81",
    "2600:1900:4000::1",
    "fd12::1",
    "fd00:ec2::254",
    "64:ff9b::a00:1",
];
/// The cluster's ranges; part of the public ones, as some clouds have it.
pub const CLUSTER: [&str; 2] = ["34.118.224.0/20", "2600:1900:4000::/48"];
/// The node's own addresses.
pub const NODE: [&str; 2] = ["192.0.2.2", "2001:db8:1::2"];

pub fn id(sequence: u64) -> SandboxId {
    SandboxId::new(NodeTag(0xbeef), sequence).unwrap()
}

pub fn pool(name: &str) -> PoolName {
    PoolName::parse(name).unwrap()
}

pub fn cidr(text: &str) -> Cidr {
    let (address, length) = text.split_once('/').unwrap();
    Cidr {
        address: address.parse().unwrap(),
        length: length.parse().unwrap(),
    }
}

/// `tcp 10.0.0.0/8 443`, `udp *.example.com`, `any ::/0 1-1024`.
pub fn rule(text: &str) -> Rule {
    let mut words = text.split(' ');
    let protocol = match words.next().unwrap() {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        _ => None,
    };
    let to = words.next().unwrap();
    let to = match to.contains('/') {
        true => Target::Cidr(cidr(to)),
        false => Target::Name(to.to_owned()),
    };
    let ports = words.map(|word| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        PortRange {
            first: first.parse().unwrap(),
            last: last.parse().unwrap(),
        }
    });
    Rule {
        to,
        protocol,
        ports: ports.collect(),
    }
}

pub fn internet() -> NetworkPolicy {
    NetworkPolicy {
        mode: NetworkMode::Internet,
        ..NetworkPolicy::default()
    }
}

pub fn allowlist(rules: &[&str]) -> NetworkPolicy {
    NetworkPolicy {
        mode: NetworkMode::Allowlist,
        allow: rules.iter().map(|text| rule(text)).collect(),
        ..NetworkPolicy::default()
    }
}

/// A network namespace that lives as long as this.
#[derive(Clone)]
pub struct Space(Arc<File>);

impl Space {
    /// Of the calling thread.
    pub fn here() -> Self {
        Self(Arc::new(File::open("/proc/thread-self/ns/net").unwrap()))
    }

    pub fn fresh() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Self::here()
        };
        std::thread::spawn(make).join().unwrap()
    }

    pub fn open(path: &std::path::Path) -> Self {
        Self(Arc::new(File::open(path).unwrap()))
    }

    /// Runs it in a thread of the namespace.
    pub fn run<T: Send + 'static>(&self, inside: impl FnOnce() -> T + Send + 'static) -> T {
        let space = Arc::clone(&self.0);
        let work = move || {
            setns(&*space, CloneFlags::CLONE_NEWNET).unwrap();
            inside()
        };
        std::thread::spawn(work).join().unwrap()
    }

    /// Goes on in a thread of the namespace.
    pub fn spawn(&self, inside: impl FnOnce() + Send + 'static) {
        let space = Arc::clone(&self.0);
        std::thread::spawn(move || {
            setns(&*space, CloneFlags::CLONE_NEWNET).unwrap();
            inside();
        });
    }

    /// A program, to set a scene or to look at it; never part of what is tested.
    pub fn program(&self, line: &str) -> String {
        let line = line.to_owned();
        self.run(move || {
            let mut words = line.split(' ');
            let output = Command::new(words.next().unwrap()).args(words).output();
            let output = output.unwrap();
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{line}: {told}");
            String::from_utf8(output.stdout).unwrap()
        })
    }
}

pub struct World {
    pub node: Space,
    pub far: Space,
    pub run: tempfile::TempDir,
}

/// Runs a test on a node of its own: the thread, and all that it starts, are in a fresh network namespace.
pub fn on_a_node(test: impl AsyncFnOnce(&World) + Send + 'static) {
    let work = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let world = World::new();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(test(&world));
        world.end();
    };
    let thread = std::thread::Builder::new()
        .name(std::thread::current().name().unwrap_or("node").to_owned());
    if let Err(panic) = thread.spawn(work).unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

impl World {
    fn new() -> Self {
        let (node, far) = (Space::here(), Space::fresh());
        for space in [&node, &far] {
            space.program("ip link set lo up");
        }
        node.program("ip link add up0 type veth peer name tmp0");
        let world = Self {
            node,
            far,
            run: tempfile::tempdir().unwrap(),
        };
        world.link();
        world.serve();
        world
    }

    fn link(&self) {
        // `ip` finds a namespace by a process in it: a sleeping thread of ours has one of its own.
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let (stay, stayed) = std::sync::mpsc::sync_channel::<()>(1);
        self.far.spawn(move || {
            tell.send(nix::unistd::gettid().as_raw()).unwrap();
            let _ = stayed.recv();
        });
        let thread = told.recv().unwrap();
        self.node
            .program(&format!("ip link set tmp0 netns {thread}"));
        drop(stay);
        self.far.program("ip link set tmp0 name wan");
        for line in [
            "ip addr add 192.0.2.2/24 dev up0",
            "ip addr add 2001:db8:1::2/64 dev up0 nodad",
            "ip link set up0 up",
            "ip route add default via 192.0.2.1",
            "ip -6 route add default via 2001:db8:1::1",
        ] {
            self.node.program(line);
        }
        for line in [
            "ip addr add 192.0.2.1/24 dev wan",
            "ip addr add 2001:db8:1::1/64 dev wan nodad",
            "ip link set wan up",
        ] {
            self.far.program(line);
        }
        for address in FAR {
            let length = if address.contains(':') { 128 } else { 32 };
            let more = if length == 128 { " nodad" } else { "" };
            self.far
                .program(&format!("ip addr add {address}/{length} dev lo{more}"));
        }
    }

    /// Servers on every address of the far side and of the node.
    fn serve(&self) {
        let far = FAR.iter().map(|address| address.parse().unwrap());
        serve(&self.far, far.collect());
        let node = NODE.iter().map(|address| address.parse().unwrap());
        serve(&self.node, node.collect());
    }

    pub fn settings(&self) -> NetSettings {
        let mut settings = NetSettings::new(self.run.path().to_owned(), NodeTag(0xbeef));
        settings.closed = CLUSTER.iter().map(|text| cidr(text)).collect();
        settings.spares = 0;
        settings
    }

    pub async fn network(&self, change: impl FnOnce(&mut NetSettings)) -> LinuxNetwork {
        let mut settings = self.settings();
        change(&mut settings);
        let metrics = NetMetrics::register(&prometheus::Registry::new()).unwrap();
        LinuxNetwork::start(settings, metrics).await.unwrap()
    }

    pub fn sandbox(&self, interface: &Interface) -> Sandbox {
        Sandbox {
            space: Space::open(&interface.netns),
            interface: interface.clone(),
        }
    }

    pub fn router(&self) -> Space {
        Space::open(&self.run.path().join("netns/router"))
    }

    /// Whatever is still bound must not hinder the directory's end.
    fn end(&self) {
        let directory = self.run.path().join("netns");
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let _ = nix::mount::umount2(&entry.path(), nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.end();
    }
}

/// Echoes on every address and port, over TCP and UDP, until the process ends.
pub fn serve(space: &Space, addresses: Vec<IpAddr>) {
    let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
    space.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            for address in addresses {
                for port in PORTS {
                    let listener = tokio::net::TcpListener::bind((address, port))
                        .await
                        .unwrap();
                    let socket = tokio::net::UdpSocket::bind((address, port)).await.unwrap();
                    tokio::spawn(echo_tcp(listener));
                    tokio::spawn(echo_udp(socket));
                }
            }
            ready.send(()).unwrap();
            std::future::pending::<()>().await;
        });
    });
    is_ready.recv().unwrap();
}

async fn echo_tcp(listener: tokio::net::TcpListener) {
    loop {
        let Ok((mut stream, peer)) = listener.accept().await else {
            continue;
        };
        tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            let _ = stream
                .write_all(format!("{}\n", peer.ip()).as_bytes())
                .await;
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
    }
}

async fn echo_udp(socket: tokio::net::UdpSocket) {
    let mut buffer = [0; 2048];
    loop {
        if let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..length], peer).await;
        }
    }
}

/// What became of a try to talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Reached,
    /// Told so at once.
    Refused,
    /// No word.
    Silence,
}

/// Sockets in a sandbox's namespace.
pub struct Sandbox {
    pub space: Space,
    pub interface: Interface,
}

impl Sandbox {
    pub fn tcp(&self, to: &str, port: u16) -> Outcome {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        self.space.run(move || tcp(to))
    }

    pub fn udp(&self, to: &str, port: u16) -> Outcome {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        self.space.run(move || udp(None, to))
    }

    /// With a source address that is not the sandbox's.
    pub fn udp_from(&self, from: &str, to: &str, port: u16) -> Outcome {
        let length = if from.contains(':') {
            "128 nodad"
        } else {
            "32"
        };
        self.space
            .program(&format!("ip addr add {from}/{length} dev eth0"));
        let source = SocketAddr::new(from.parse().unwrap(), 0);
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let outcome = self.space.run(move || udp(Some(source), to));
        let length = length.split(' ').next().unwrap();
        self.space
            .program(&format!("ip addr del {from}/{length} dev eth0"));
        outcome
    }

    /// A connection that has said hello.
    pub fn connect(&self, to: &str, port: u16) -> TcpStream {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        self.space.run(move || {
            let mut stream = TcpStream::connect_timeout(&to, SURE).unwrap();
            stream.set_read_timeout(Some(SURE)).unwrap();
            read_line(&mut stream).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        })
    }
}

pub fn tcp(to: SocketAddr) -> Outcome {
    let connected = TcpStream::connect_timeout(&to, PATIENCE).and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        read_line(&mut stream).map(|_| ())
    });
    outcome(connected)
}

pub fn udp(from: Option<SocketAddr>, to: SocketAddr) -> Outcome {
    let any = SocketAddr::new(
        if to.is_ipv4() {
            [0, 0, 0, 0].into()
        } else {
            [0; 16].into()
        },
        0,
    );
    let socket = UdpSocket::bind(from.unwrap_or(any)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let echoed = socket.connect(to).and_then(|()| {
        socket.send(b"hello")?;
        socket.recv(&mut [0; 16]).map(|_| ())
    });
    outcome(echoed)
}

fn read_line(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).trim().to_owned())
}

/// One word there and back.
pub fn talk(stream: &mut TcpStream) -> Outcome {
    let talked = stream.write_all(b"word\n").and_then(|()| read_line(stream));
    outcome(talked.map(|_| ()))
}

fn outcome(done: std::io::Result<()>) -> Outcome {
    match done {
        Ok(()) => Outcome::Reached,
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => {
            Outcome::Silence
        }
        Err(_) => Outcome::Refused,
    }
}
