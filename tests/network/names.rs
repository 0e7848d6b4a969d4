//! A name server that plays the upstream, and a client that asks hearth's resolver.

use crate::world::Space;
use simple_dns::rdata::{A, AAAA, RData};
use simple_dns::{CLASS, Name, Packet, QTYPE, Question, RCODE, ResourceRecord, TYPE};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Answers what it was told, NXDOMAIN to the rest, with a TTL of one second.
#[derive(Clone, Default)]
pub struct Upstream {
    names: Arc<Mutex<BTreeMap<String, Vec<IpAddr>>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Upstream {
    pub fn start(space: &Space, address: &str) -> Self {
        let upstream = Self::default();
        let (this, address): (Self, SocketAddr) = (upstream.clone(), address.parse().unwrap());
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        space.spawn(move || {
            let socket = UdpSocket::bind(address).unwrap();
            ready.send(()).unwrap();
            let mut buffer = [0; 2048];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&this.answer(&buffer[..length]), peer);
            }
        });
        is_ready.recv().unwrap();
        upstream
    }

    pub fn says(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses
            .iter()
            .map(|address| address.parse().unwrap())
            .collect();
        self.names
            .lock()
            .unwrap()
            .insert(name.to_owned(), addresses);
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn answer(&self, question: &[u8]) -> Vec<u8> {
        let question = Packet::parse(question).unwrap();
        let asked = question.questions[0].clone();
        let name = asked.qname.to_string();
        self.asked.lock().unwrap().push(name.clone());
        let mut reply = Packet::new_reply(question.id());
        let names = self.names.lock().unwrap();
        match names.get(&name) {
            None => *reply.rcode_mut() = RCODE::NameError,
            Some(addresses) => {
                for address in addresses {
                    let (kind, data) = match address {
                        IpAddr::V4(four) => (
                            TYPE::A,
                            RData::A(A {
                                address: (*four).into(),
                            }),
                        ),
                        IpAddr::V6(six) => (
                            TYPE::AAAA,
                            RData::AAAA(AAAA {
                                address: (*six).into(),
                            }),
                        ),
                    };
                    if asked.qtype == QTYPE::TYPE(kind) {
                        reply.answers.push(ResourceRecord::new(
                            asked.qname.clone(),
                            CLASS::IN,
                            1,
                            data,
                        ));
                    }
                }
            }
        }
        reply.questions.push(asked);
        reply.build_bytes_vec().unwrap()
    }
}

fn ask(server: &str, name: &str, kind: TYPE) -> Option<Result<Vec<IpAddr>, RCODE>> {
    let mut packet = Packet::new_query(4711);
    packet.questions.push(Question::new(
        Name::new_unchecked(name),
        kind.into(),
        CLASS::IN.into(),
        false,
    ));
    let server = SocketAddr::new(server.parse().unwrap(), 53);
    let any: IpAddr = if server.is_ipv4() {
        [0, 0, 0, 0].into()
    } else {
        [0; 16].into()
    };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    socket.connect(server).ok()?;
    socket.send(&packet.build_bytes_vec().unwrap()).ok()?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer).ok()?;
    let answer = Packet::parse(&buffer[..length]).unwrap();
    assert_eq!(answer.id(), 4711);
    if answer.rcode() != RCODE::NoError {
        return Some(Err(answer.rcode()));
    }
    let address = |record: &ResourceRecord<'_>| match &record.rdata {
        RData::A(a) => Some(IpAddr::V4(a.address.into())),
        RData::AAAA(a) => Some(IpAddr::V6(a.address.into())),
        _ => None,
    };
    Some(Ok(answer.answers.iter().filter_map(address).collect()))
}

/// Asks for both kinds of addresses. `None`: no answer at all; a name that does not exist has none.
pub fn lookup(server: &str, name: &str) -> Option<Vec<IpAddr>> {
    let both = [ask(server, name, TYPE::A)?, ask(server, name, TYPE::AAAA)?];
    Some(
        both.into_iter()
            .flat_map(|found| found.unwrap_or_default())
            .collect(),
    )
}

/// The code of the answer for IPv4 addresses.
pub fn code(server: &str, name: &str) -> Option<RCODE> {
    ask(server, name, TYPE::A).map(|found| found.err().unwrap_or(RCODE::NoError))
}
