//! An outside of its own for a node with a network: two network namespaces, the node's and that of the "internet", joined
//! by a veth. Servers that answer "hearth" on public and private addresses, and a DNS server that knows two names.

use nix::sched::{CloneFlags, setns};
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// A public address that serves TCP 80 and 81.
pub const PUBLIC: &str = "11.1.1.1";
/// Another one.
pub const OTHER: &str = "11.1.1.2";
/// A private one, out there all the same.
pub const PRIVATE: &str = "10.9.9.9";
/// Where cloud metadata is.
pub const METADATA: &str = "169.254.169.254";
/// The node's own address.
pub const NODE: &str = "11.0.0.1";
/// The outside's end of the wire; DNS is served there.
pub const GATEWAY: &str = "11.0.0.2";
/// A name that resolves to [`PUBLIC`].
pub const NAME: &str = "good.example.com";
/// One that resolves to [`OTHER`].
pub const OTHER_NAME: &str = "bad.example.net";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Both namespaces, as long as it lives.
pub struct Outside {
    node: String,
    there: String,
    stop: Arc<AtomicBool>,
    servers: Vec<std::thread::JoinHandle<()>>,
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {output:?}");
}

/// Runs something with a thread of this process in a namespace.
pub fn within<T: Send + 'static>(netns: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let path = format!("/run/netns/{netns}");
    let thread = std::thread::spawn(move || {
        let file = std::fs::File::open(path).unwrap();
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    });
    thread.join().unwrap()
}

impl Outside {
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("hn{}-{number}", std::process::id());
        let (node, there) = (format!("{name}n"), format!("{name}o"));
        for netns in [&node, &there] {
            ip(&format!("netns add {netns}"));
            ip(&format!("-n {netns} link set lo up"));
        }
        ip(&format!(
            "-n {node} link add wire type veth peer name wire netns {there}"
        ));
        for (netns, link, address) in [(&node, "wire", NODE), (&there, "wire", GATEWAY)] {
            ip(&format!("-n {netns} address add {address}/24 dev {link}"));
            ip(&format!("-n {netns} link set {link} up"));
        }
        ip(&format!("-n {node} route add default via {GATEWAY}"));
        for address in [PUBLIC, OTHER, PRIVATE, METADATA] {
            ip(&format!("-n {there} address add {address}/32 dev lo"));
        }
        let mut outside = Self {
            node,
            there,
            stop: Arc::default(),
            servers: Vec::new(),
        };
        for address in [PUBLIC, OTHER, PRIVATE, METADATA, GATEWAY] {
            for port in [80, 81] {
                outside.serve(outside.there.clone(), address, port);
            }
        }
        // Something of the node's own.
        outside.serve(outside.node.clone(), "0.0.0.0", 8080);
        outside.resolve();
        outside
    }

    /// The node's namespace: hearthd runs in it.
    pub fn node(&self) -> &str {
        &self.node
    }

    fn serve(&mut self, netns: String, address: &'static str, port: u16) {
        let listener = within(&netns, move || TcpListener::bind((address, port)).unwrap());
        listener.set_nonblocking(true).unwrap();
        let stop = self.stop.clone();
        self.servers.push(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, _)) => drop(stream.write_all(b"hearth")),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        }));
    }

    /// A port out there on which nobody answers by himself: the test accepts.
    pub fn listen(&self, address: &'static str, port: u16) -> TcpListener {
        let listener = within(&self.there, move || {
            TcpListener::bind((address, port)).unwrap()
        });
        listener.set_nonblocking(true).unwrap();
        listener
    }

    /// A DNS server with an A record for each of the two names; NXDOMAIN for the rest.
    fn resolve(&mut self) {
        let socket = within(&self.there, || UdpSocket::bind((GATEWAY, 53)).unwrap());
        let pause = Some(Duration::from_millis(50));
        socket.set_read_timeout(pause).unwrap();
        let stop = self.stop.clone();
        self.servers.push(std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                let _gone = socket.send_to(&answer(&buffer[..length]), from);
            }
        }));
    }

    /// Opens a TCP connection from the outside (`true`) or the node: whether something answered.
    pub fn reaches(&self, from_outside: bool, address: &str, port: u16) -> bool {
        let netns = if from_outside {
            &self.there
        } else {
            &self.node
        };
        let address = format!("{address}:{port}").parse().unwrap();
        within(netns, move || {
            let limit = Duration::from_secs(2);
            let Ok(mut stream) = std::net::TcpStream::connect_timeout(&address, limit) else {
                return false;
            };
            stream.set_read_timeout(Some(limit)).unwrap();
            stream.read(&mut [0; 16]).is_ok_and(|length| length > 0)
        })
    }
}

/// What there is of sandboxes in the namespace of hearth's router, which is bound at `router`: their links, and how many
/// elements its sets and maps have.
pub fn routed(router: &std::path::Path) -> (std::collections::BTreeSet<String>, usize) {
    let run = |words: &[&str]| {
        let entered = format!("--net={}", router.display());
        let output = Command::new("nsenter")
            .arg(entered)
            .args(words)
            .output()
            .unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let links = run(&["ip", "-o", "link"]);
    let names = links.lines().filter_map(|line| line.split(": ").nth(1));
    let names = names.filter_map(|name| name.split('@').next());
    let links = names.filter(|name| name.starts_with("sb"));
    let links = links.map(str::to_owned).collect();
    (
        links,
        run(&["nft", "list", "ruleset"]).matches(" : ").count(),
    )
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for server in self.servers.drain(..) {
            let _ended = server.join();
        }
        for netns in [&self.node, &self.there] {
            let _gone = Command::new("ip").args(["netns", "del", netns]).status();
        }
    }
}

/// The question back, with its answer.
fn answer(question: &[u8]) -> Vec<u8> {
    let mut labels = Vec::new();
    let mut at = 12;
    while let Some(length) = question
        .get(at)
        .copied()
        .map(usize::from)
        .filter(|l| *l > 0)
    {
        let label = question.get(at + 1..at + 1 + length).unwrap_or_default();
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += 1 + length;
    }
    let end = (at + 5).min(question.len());
    let is_a = question.get(at + 1..at + 3) == Some(&[0, 1]);
    let address = match labels.join(".").as_str() {
        NAME => Some([11, 1, 1, 1]),
        OTHER_NAME => Some([11, 1, 1, 2]),
        _ => None,
    };
    let mut reply = question[..2].to_vec();
    // A response, recursion available; NXDOMAIN for what is not known.
    reply.extend([0x81, if address.is_some() { 0x80 } else { 0x83 }]);
    let answers = u8::from(is_a && address.is_some());
    reply.extend([0, 1, 0, answers, 0, 0, 0, 0]);
    reply.extend(&question[12..end]);
    if let (true, Some(address)) = (is_a, address) {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(address);
    }
    reply
}
