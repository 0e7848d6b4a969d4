//! hearth's resolver: the only one that sandboxes reach, on the gateway's address in the router's namespace.
//!
//! Who asks is known by the source address, which the guard has checked. A name that the policy does not name does not exist
//! (NXDOMAIN: every client takes that for an answer); addresses that the sandbox could not reach are taken out; under an
//! allowlist the rest is opened in the kernel before the answer goes out. Everything is bounded: the size and the rate of
//! questions, how many are asked at once by one and by all, how long an upstream may take.

mod decide;
mod upstream;

use super::NetError;
use super::enforce::{Enforcer, lock};
use super::linux::{Inner, RULES_DEADLINE};
use super::metrics::Asked;
use super::rules::Compiled;
use super::worker::refused;
use crate::machine::ids::SandboxId;
use decide::{Asking, Malformed, Ranges, UDP_BYTES};
use futures::stream::{FuturesUnordered, StreamExt};
use simple_dns::RCODE;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

const PORT: u16 = 53;
/// Questions under way, of all sandboxes.
const AT_ONCE: usize = 256;
/// And of one: a slow upstream of one is nobody else's.
const AT_ONCE_EACH: usize = 16;
/// Connections over TCP, of all sandboxes.
const CONNECTIONS: usize = 64;
/// And of one.
const CONNECTIONS_EACH: usize = 4;
/// Questions in one connection.
const QUESTIONS_IN_CONNECTION: usize = 32;
/// A connection in which nothing is asked for so long ends.
const IDLE: Duration = Duration::from_secs(10);

/// Sockets on the gateway's addresses, made in the router's namespace.
pub(super) struct Sockets {
    udp: Vec<std::net::UdpSocket>,
    tcp: Vec<std::net::TcpListener>,
}

impl Sockets {
    /// Binds them. The thread must be in the router's namespace.
    pub(super) fn bind(gateway: [IpAddr; 2]) -> Result<Self, NetError> {
        let failed = |error: std::io::Error| refused("binding the resolver", error);
        let mut sockets = Self {
            udp: Vec::new(),
            tcp: Vec::new(),
        };
        for address in gateway {
            let udp = std::net::UdpSocket::bind((address, PORT)).map_err(failed)?;
            let tcp = std::net::TcpListener::bind((address, PORT)).map_err(failed)?;
            udp.set_nonblocking(true).map_err(failed)?;
            tcp.set_nonblocking(true).map_err(failed)?;
            sockets.udp.push(udp);
            sockets.tcp.push(tcp);
        }
        Ok(sockets)
    }
}

/// What a sandbox has asked lately.
#[derive(Debug)]
struct Asker {
    /// Questions it may still ask, in thousandths.
    left: u64,
    since: Instant,
    under_way: usize,
    connections: usize,
}

/// Bounds of each sandbox.
struct Askers {
    each: Mutex<BTreeMap<SandboxId, Asker>>,
    per_second: u32,
}

/// One question or connection under way.
struct Ticket<'a> {
    askers: &'a Askers,
    id: SandboxId,
    connection: bool,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut each = self
            .askers
            .each
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(asker) = each.get_mut(&self.id) {
            let counted = if self.connection {
                &mut asker.connections
            } else {
                &mut asker.under_way
            };
            *counted = counted.saturating_sub(1);
        }
    }
}

impl Askers {
    fn admit(&self, id: SandboxId, connection: bool, now: Instant) -> Option<Ticket<'_>> {
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        let most = 2000 * u64::from(self.per_second);
        let rate = u64::from(self.per_second);
        if each.len() > 4096 {
            // Those who have asked nothing for long enough to be as good as new.
            each.retain(|_, asker| {
                asker.under_way + asker.connections > 0
                    || now.duration_since(asker.since) < Duration::from_secs(10)
            });
        }
        let asker = each.entry(id).or_insert(Asker {
            left: most,
            since: now,
            under_way: 0,
            connections: 0,
        });
        let passed = u64::try_from(now.duration_since(asker.since).as_millis()).unwrap_or(u64::MAX);
        asker.left = asker
            .left
            .saturating_add(passed.saturating_mul(rate))
            .min(most);
        asker.since = now;
        if connection {
            if asker.connections >= CONNECTIONS_EACH {
                return None;
            }
            asker.connections += 1;
        } else {
            if asker.under_way >= AT_ONCE_EACH || asker.left < 1000 {
                return None;
            }
            asker.left -= 1000;
            asker.under_way += 1;
        }
        Some(Ticket {
            askers: self,
            id,
            connection,
        })
    }
}

/// Answers for ever.
pub(super) async fn serve(net: &Inner, sockets: Sockets) -> Result<(), NetError> {
    let failed = |error: std::io::Error| refused("starting the resolver", error);
    let askers = Askers {
        each: Mutex::default(),
        per_second: net.settings.questions_per_second,
    };
    let served = FuturesUnordered::new();
    for socket in sockets.udp {
        let socket = UdpSocket::from_std(socket).map_err(failed)?;
        served.push(futures::future::Either::Left(datagrams(
            net, &askers, socket,
        )));
    }
    for listener in sockets.tcp {
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        served.push(futures::future::Either::Right(connections(
            net, &askers, listener,
        )));
    }
    served.collect::<()>().await;
    Ok(())
}

async fn datagrams(net: &Inner, askers: &Askers, socket: UdpSocket) {
    let mut under_way = FuturesUnordered::new();
    let mut buffer = vec![0; usize::from(UDP_BYTES) + 1];
    loop {
        tokio::select! {
            Some(()) = under_way.next(), if !under_way.is_empty() => {}
            got = socket.recv_from(&mut buffer), if under_way.len() < AT_ONCE => {
                let Ok((length, from)) = got else { continue };
                let question = buffer.get(..length).unwrap_or(&[]).to_vec();
                let socket = &socket;
                under_way.push(async move {
                    if let Some(answer) = handle(net, askers, from, &question, true).await {
                        // One who does not take its answer has lost it.
                        let _ = socket.try_send_to(&answer, from);
                    }
                });
            }
        }
    }
}

async fn connections(net: &Inner, askers: &Askers, listener: TcpListener) {
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(()) = open.next(), if !open.is_empty() => {}
            got = listener.accept(), if open.len() < CONNECTIONS => {
                if let Ok((stream, from)) = got {
                    open.push(connection(net, askers, stream, from));
                }
            }
        }
    }
}

async fn connection(net: &Inner, askers: &Askers, mut stream: TcpStream, from: SocketAddr) {
    let Some((id, _)) = asker(net, from.ip()) else {
        return;
    };
    let Some(_ticket) = askers.admit(id, true, Instant::now()) else {
        return net.metrics.asked(Asked::Limited);
    };
    for _ in 0..QUESTIONS_IN_CONNECTION {
        let read = tokio::time::timeout(IDLE, read_message(&mut stream)).await;
        let Ok(Some(question)) = read else { return };
        let Some(answer) = handle(net, askers, from, &question, false).await else {
            return;
        };
        let length = u16::try_from(answer.len()).unwrap_or(0);
        let message = [&length.to_be_bytes()[..], &answer].concat();
        let written = tokio::time::timeout(IDLE, stream.write_all(&message)).await;
        if !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}

async fn read_message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let length = usize::from(stream.read_u16().await.ok()?);
    if length > decide::QUESTION_BYTES {
        return None;
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await.ok()?;
    Some(message)
}

/// Who asks, and what it may.
fn asker(net: &Inner, from: IpAddr) -> Option<(SandboxId, Arc<Compiled>)> {
    let slot = net.plan.slot_of(from)?;
    let state = lock(&net.state);
    let holder = state.slots.get(&slot)?.holder.as_ref()?;
    Some((holder.id, Arc::clone(&holder.compiled)))
}

/// One question. `None`: no answer.
async fn handle(
    net: &Inner,
    askers: &Askers,
    from: SocketAddr,
    bytes: &[u8],
    udp: bool,
) -> Option<Vec<u8>> {
    let (outcome, answer) = match asker(net, from.ip()) {
        None => (Asked::Malformed, None),
        Some((id, policy)) => match askers.admit(id, false, Instant::now()) {
            None => (Asked::Limited, None),
            Some(_ticket) => match decide::read(bytes) {
                Err(Malformed::Nothing) => (Asked::Malformed, None),
                Err(Malformed::Unsupported(id)) => {
                    (Asked::Malformed, Some(decide::unsupported(id)))
                }
                Ok(asking) => {
                    let (outcome, answer) = resolve(net, id, &policy, &asking, udp).await;
                    (outcome, Some(answer))
                }
            },
        },
    };
    net.metrics.asked(outcome);
    answer
}

async fn resolve(
    net: &Inner,
    id: SandboxId,
    policy: &Compiled,
    asking: &Asking,
    udp: bool,
) -> (Asked, Vec<u8>) {
    if !decide::may_ask(policy, &asking.name) {
        return (Asked::Refused, decide::bare(asking, RCODE::NameError));
    }
    let failed = || (Asked::Failed, decide::bare(asking, RCODE::ServerFailure));
    let Some((number, answer)) = upstream::ask(&net.settings.upstream, asking).await else {
        return failed();
    };
    let Some(packet) = decide::parse(asking, number, &answer) else {
        return failed();
    };
    let node = lock(&net.state).node_addresses.clone();
    let ranges = Ranges {
        never: net.table.never(),
        closed: net.table.closed(),
        node: &node,
    };
    let kept = decide::keep(asking, policy, ranges, packet);
    if kept.emptied && decide::asks_for_addresses(asking) {
        return (Asked::Refused, decide::bare(asking, RCODE::NameError));
    }
    if !policy.internet && !kept.addresses.is_empty() {
        let now = Instant::now();
        let until: Vec<(IpAddr, Instant)> = kept
            .addresses
            .iter()
            .map(|(address, life)| (*address, now + *life))
            .collect();
        let name = asking.name.clone();
        let pin = move |rules: &mut Enforcer| rules.pin(id, &name, &until);
        if net
            .rules
            .run("opening what a name leads to", RULES_DEADLINE, pin)
            .await
            .is_err()
        {
            return failed();
        }
    }
    let room = udp.then_some(asking.room);
    (
        Asked::Answered,
        decide::answer(asking, kept.rcode, &kept.records, room),
    )
}
