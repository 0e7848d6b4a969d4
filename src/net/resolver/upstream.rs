//! Asking on: over UDP from a port of its own for every question, over TCP where the answer is too long.

use super::decide::{self, Asking};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

/// For one upstream.
const EACH: Duration = Duration::from_secs(2);
/// For all of them.
const ALL: Duration = Duration::from_secs(5);
/// Bytes of an answer.
const ANSWER_BYTES: usize = 16 << 10;
/// Answers to other questions that are passed over: somebody guesses.
const STRANGERS: usize = 16;
/// `TC` in the third octet: the answer is longer than UDP carries.
const TRUNCATED: u8 = 0x02;

/// The answer of the first upstream that has one, and the number it was asked under. `None`: none in time.
pub(super) async fn ask(upstream: &[SocketAddr], asking: &Asking) -> Option<(u16, Vec<u8>)> {
    let all = async {
        for server in upstream {
            if let Ok(Some(answer)) = timeout(EACH, ask_one(*server, asking)).await {
                return Some(answer);
            }
        }
        None
    };
    timeout(ALL, all).await.ok().flatten()
}

async fn ask_one(server: SocketAddr, asking: &Asking) -> Option<(u16, Vec<u8>)> {
    let mut number = [0; 2];
    getrandom::fill(&mut number).ok()?;
    let number = u16::from_be_bytes(number);
    let question = decide::ask(asking, number)?;
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await.ok()?;
    socket.connect(server).await.ok()?;
    socket.send(&question).await.ok()?;
    let mut buffer = vec![0; ANSWER_BYTES];
    for _ in 0..STRANGERS {
        let length = socket.recv(&mut buffer).await.ok()?;
        let answer = buffer.get(..length)?;
        if answer.first_chunk() != Some(&number.to_be_bytes()) || length < 12 {
            continue;
        }
        if answer[2] & TRUNCATED != 0 {
            return over_tcp(server, &question)
                .await
                .map(|answer| (number, answer));
        }
        if decide::parse(asking, number, answer).is_some() {
            return Some((number, answer.to_vec()));
        }
    }
    None
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> Option<Vec<u8>> {
    let deadline = Instant::now() + EACH;
    let talk = async {
        let mut stream = TcpStream::connect(server).await.ok()?;
        let length = u16::try_from(question.len()).ok()?;
        let message = [&length.to_be_bytes()[..], question].concat();
        stream.write_all(&message).await.ok()?;
        let length = usize::from(stream.read_u16().await.ok()?);
        if length > ANSWER_BYTES {
            return None;
        }
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).await.ok()?;
        Some(answer)
    };
    timeout_at(deadline, talk).await.ok().flatten()
}
