//! `port-forward`: local TCP ports joined to ports inside, one Connect stream a connection.
//!
//! Listens on 127.0.0.1 only. Connections are bounded; the next one waits in the kernel's queue.

use crate::App;
use crate::failure::{Exit, Failure};
use crate::link::Link;
use crate::output;
use hearth::api::connect_request::Request as Up;
use hearth::api::connect_response::Response as Down;
use hearth::api::{ConnectRequest, ConnectResponse, ConnectStart};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Connections at once; hearth takes 64 streams a sandbox by default, and an exec should still find room.
const CONNECTIONS: usize = 48;
/// Bytes in one message; hearth takes 64 KiB.
const CHUNK: usize = 32 << 10;
/// Messages on their way up; then reading the socket waits.
const QUEUE: usize = 8;

/// A local port and the port inside that it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// 0: any free one.
    pub local: u16,
    /// Never 0.
    pub remote: u16,
}

/// LOCAL:REMOTE, PORT, :REMOTE
pub fn ports(text: &str) -> Result<Ports, String> {
    let port = |text: &str| {
        text.parse::<u16>()
            .map_err(|_| format!("{text:?} is not a port"))
    };
    let (local, remote) = match text.split_once(':') {
        None => (port(text)?, port(text)?),
        Some(("", remote)) => (0, port(remote)?),
        Some((local, remote)) => (port(local)?, port(remote)?),
    };
    if remote == 0 {
        return Err("the port inside must not be 0".into());
    }
    Ok(Ports { local, remote })
}

/// `port-forward`: until interrupted.
pub async fn run(app: &App, name: &str, wanted: Vec<Ports>) -> Result<(), Failure> {
    let link = app.link().await?;
    let claim = link.resolve(name).await?;
    // A wrong claim is told now, not at the first connection.
    let known = link.call(hearth::api::GetClaimRequest {
        claim_id: claim.clone(),
    });
    if app.common.token.is_none() {
        link.claims().get(known).await?;
    }
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut listeners = JoinSet::new();
    for ports in wanted {
        let listener = TcpListener::bind(("127.0.0.1", ports.local))
            .await
            .map_err(|error| Failure::local(format!("127.0.0.1:{}", ports.local), &error))?;
        let local = listener
            .local_addr()
            .map_err(|error| Failure::local("the listener", &error))?;
        output::print(&format!("{local} -> {} in {claim}\n", ports.remote))?;
        let (link, claim, room) = (link.clone(), claim.clone(), Arc::clone(&room));
        listeners.spawn(accept(listener, link, claim, ports.remote, room));
    }
    tokio::select! {
        _ = tokio::signal::ctrl_c() => Ok(()),
        // A listener ends only by an error.
        Some(ended) = listeners.join_next() => Err(match ended {
            Ok(error) => Failure::local("accepting connections", &error),
            Err(_) => Failure::new(Exit::Refused, "accepting connections failed"),
        }),
    }
}

async fn accept(
    listener: TcpListener,
    link: Link,
    claim: String,
    port: u16,
    room: Arc<Semaphore>,
) -> std::io::Error {
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return std::io::Error::other("closed");
        };
        let (socket, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => return error,
        };
        while connections.try_join_next().is_some() {}
        let (link, claim) = (link.clone(), claim.clone());
        connections.spawn(async move {
            let _permit = permit;
            if let Err(failure) = serve(&link, claim, port, socket).await {
                output::note(&format!(
                    "{peer}: {}",
                    crate::failure::clean(&failure.message)
                ));
            }
        });
    }
}

/// One connection, with half-closed ends passed on both ways.
async fn serve(link: &Link, claim_id: String, port: u16, socket: TcpStream) -> Result<(), Failure> {
    let (sender, queue) = mpsc::channel(QUEUE);
    let start = Up::Start(ConnectStart {
        claim_id,
        port: u32::from(port),
    });
    send(&sender, start).await;
    let request = link.stream(ReceiverStream::new(queue));
    let mut client = link.sandboxes();
    let opened = tokio::time::timeout(crate::link::CALL_DEADLINE, client.connect(request)).await;
    let answers = match opened {
        Ok(opened) => opened?.into_inner(),
        Err(_) => return Err(Failure::new(Exit::Retry, "connecting took too long")),
    };
    let (read, write) = socket.into_split();
    // The upward half ends with the downward one: when the inside is done, nobody reads ours.
    let up = tokio::spawn(upward(read, sender));
    let done = downward(answers, write).await;
    up.abort();
    done
}

async fn send(sender: &mpsc::Sender<ConnectRequest>, request: Up) -> bool {
    let request = ConnectRequest {
        request: Some(request),
    };
    sender.send(request).await.is_ok()
}

async fn upward(mut read: OwnedReadHalf, sender: mpsc::Sender<ConnectRequest>) {
    loop {
        let mut chunk = bytes::BytesMut::with_capacity(CHUNK);
        match read.read_buf(&mut chunk).await {
            Ok(0) => {
                send(&sender, Up::Eof(true)).await;
                // Kept open: the end of the stream is the end of both directions.
                return std::future::pending().await;
            }
            // A reset: dropping the stream resets the inside too.
            Err(_) => return,
            Ok(_) if send(&sender, Up::Data(chunk.freeze())).await => {}
            Ok(_) => return,
        }
    }
}

async fn downward(
    mut answers: Streaming<ConnectResponse>,
    mut write: OwnedWriteHalf,
) -> Result<(), Failure> {
    while let Some(answer) = answers.message().await? {
        match answer.response {
            Some(Down::Connected(_)) | None => {}
            Some(Down::Data(piece)) => {
                // The local side has gone: so does the stream.
                if write.write_all(&piece).await.is_err() {
                    return Ok(());
                }
            }
            Some(Down::Eof(_)) => {
                let _ = write.shutdown().await;
            }
        }
    }
    Ok(())
}
