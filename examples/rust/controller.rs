//! A small controller: keeps so many sandboxes of a pool claimed for one owner, as an operator does for its custom resource.
//!
//! ```sh
//! cargo run --example controller -- --server https://NODE:9470 --ca ca.crt --cert tls.crt --key tls.key --pool python --claims 3
//! ```
//!
//! What to take from it: one stream tells everything (`Watch`: first what is, then what changes); the claims themselves are
//! the state, so a controller that starts anew finds its own by their holder; a claim_id is chosen before the call and kept
//! until an answer came, so that no retry makes a second sandbox; hearthd says when to come again (`RetryInfo`).
//! SIGTERM gives all claims back. Written from `proto/` alone.

use anyhow::Context;
use clap::Parser;
use hearth::api::claims_client::ClaimsClient;
use hearth::api::{
    ChangeKind, Claim, ClaimRequest, ClaimState, Holder, OnEmpty, ReleaseRequest, RenewRequest,
    WatchClaimsRequest, WatchClaimsResponse,
};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, interval, sleep};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt;

/// Longest life of a claim whose controller is gone. Renewed after a third of it.
const TTL: Duration = Duration::from_secs(60);
/// How long a call may take.
const DEADLINE: Duration = Duration::from_secs(40);
/// How long a claim waits for an empty pool.
const PATIENCE: Duration = Duration::from_secs(30);
/// Before a call is tried again where hearthd names no time.
const PAUSE: Duration = Duration::from_secs(1);
/// Calls in all for what hearthd refuses for the moment.
const TRIES: u32 = 10;

/// Keeps sandboxes of a pool claimed for one owner.
#[derive(Parser)]
struct Wanted {
    /// hearthd, https://HOST:PORT.
    #[arg(long)]
    server: String,
    /// Name in hearthd's certificate, where it is not the host's.
    #[arg(long)]
    server_name: Option<String>,
    /// Who signs hearthd's certificate.
    #[arg(long)]
    ca: PathBuf,
    /// Our certificate.
    #[arg(long)]
    cert: PathBuf,
    /// Its key.
    #[arg(long)]
    key: PathBuf,
    /// Pool to claim from.
    #[arg(long)]
    pool: String,
    /// How many claims to keep.
    #[arg(long, default_value_t = 1)]
    claims: usize,
    /// Whom they are for, NAMESPACE/NAME.
    #[arg(long, default_value = "examples/controller")]
    owner: String,
    /// Of the leader election: whoever leads next takes a larger one, and hearthd refuses this one from then on.
    #[arg(long, default_value_t = 1)]
    epoch: u64,
}

/// What is, as the stream tells it.
struct Controller {
    wanted: Wanted,
    holder: Holder,
    hearth: ClaimsClient<Channel>,
    /// Our claims by claim_id. Nothing else is remembered.
    ours: BTreeMap<String, Claim>,
    /// The claim that is being made: its claim_id stays the same until an answer came.
    next: Option<String>,
    /// The snapshot is complete: before, what is missing may still be told.
    synced: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let wanted = Wanted::parse();
    let (namespace, name) = wanted
        .owner
        .split_once('/')
        .context("--owner is not NAMESPACE/NAME")?;
    let holder = Holder {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: String::new(),
    };
    let mut controller = Controller {
        hearth: ClaimsClient::new(connect(&wanted)?),
        holder,
        wanted,
        ours: BTreeMap::new(),
        next: None,
        synced: false,
    };
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    tokio::select! {
        result = controller.run() => result,
        _ = terminated.recv() => controller.end().await,
        _ = interrupted.recv() => controller.end().await,
    }
}

/// A channel that connects when it is used, and again when hearthd comes back.
fn connect(wanted: &Wanted) -> anyhow::Result<Channel> {
    let read =
        |path: &PathBuf| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read(&wanted.ca)?))
        .identity(Identity::from_pem(read(&wanted.cert)?, read(&wanted.key)?));
    if let Some(name) = &wanted.server_name {
        tls = tls.domain_name(name);
    }
    let endpoint = Endpoint::try_from(wanted.server.clone())?
        .tls_config(tls)?
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_lazy())
}

/// A request with our deadline.
fn within<T>(deadline: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// When to try again; `None`: it will not get better by itself.
fn pause(status: &Status) -> Option<Duration> {
    let named = status
        .get_details_retry_info()
        .and_then(|info| info.retry_delay);
    match status.code() {
        Code::Unavailable | Code::ResourceExhausted => Some(named.unwrap_or(PAUSE)),
        // Whether it happened is not known: the same request again tells.
        Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => Some(PAUSE),
        _ => named,
    }
}

impl Controller {
    /// Follows hearthd for ever; a broken stream is begun anew, from a new snapshot.
    async fn run(&mut self) -> anyhow::Result<()> {
        loop {
            let request = WatchClaimsRequest {
                pool: self.wanted.pool.clone(),
                resume_token: String::new(),
            };
            let ended = match self.hearth.watch(request).await {
                Ok(stream) => self.follow(stream.into_inner()).await,
                Err(status) => Err(status),
            };
            let Err(status) = ended else { continue };
            let Some(pause) = pause(&status) else {
                anyhow::bail!("watching: {}", status.message());
            };
            println!("watching: {}; again in {pause:?}", status.message());
            sleep(pause).await;
        }
    }

    /// One stream: takes in what it tells, makes what is missing, renews.
    async fn follow(&mut self, mut stream: Streaming<WatchClaimsResponse>) -> Result<(), Status> {
        self.ours.clear();
        self.synced = false;
        let mut renewal = interval(TTL / 3);
        loop {
            tokio::select! {
                change = stream.message() => match change? {
                    Some(change) => self.take_in(change),
                    None => return Ok(()),
                },
                _ = renewal.tick() => self.renew().await?,
            }
            if self.synced && self.ours.len() < self.wanted.claims {
                self.claim().await?;
            }
        }
    }

    fn take_in(&mut self, change: WatchClaimsResponse) {
        let kind = change.kind();
        self.synced |= kind == ChangeKind::Synced;
        let Some(claim) = change.claim else { return };
        if claim.holder.as_ref() != Some(&self.holder) {
            return;
        }
        let gone = kind == ChangeKind::Removed || claim.state() == ClaimState::Failed;
        if !gone {
            self.ours.insert(claim.claim_id.clone(), claim);
        } else if self.ours.remove(&claim.claim_id).is_some() {
            println!("lost {} {}", claim.claim_id, claim.status_reason);
        }
    }

    /// Claims one. A claim_id that got no answer is used again.
    async fn claim(&mut self) -> Result<(), Status> {
        let claim_id = self
            .next
            .get_or_insert_with(|| uuid::Uuid::new_v4().to_string())
            .clone();
        let request = ClaimRequest {
            claim_id: claim_id.clone(),
            pool: self.wanted.pool.clone(),
            holder: Some(self.holder.clone()),
            epoch: self.wanted.epoch,
            ttl: TTL.try_into().ok(),
            on_empty: OnEmpty::Wait.into(),
            wait_timeout: PATIENCE.try_into().ok(),
            ..ClaimRequest::default()
        };
        let begun = Instant::now();
        let answer = self.hearth.claim(within(DEADLINE, request)).await;
        match answer.map(tonic::Response::into_inner) {
            Ok(answer) => {
                self.next = None;
                // The stream tells it too, but later: without this line the next round would claim one too many.
                let claim = Claim {
                    claim_id: claim_id.clone(),
                    sandbox_id: answer.sandbox_id.clone(),
                    ..Claim::default()
                };
                self.ours.entry(claim_id.clone()).or_insert(claim);
                let took = begun.elapsed().as_secs_f64() * 1000.0;
                println!("claimed {claim_id} {} in {took:.1} ms", answer.sandbox_id);
                Ok(())
            }
            Err(status) => match pause(&status) {
                Some(pause) => {
                    println!("claiming: {}; again in {pause:?}", status.message());
                    sleep(pause).await;
                    Err(status)
                }
                None => Err(status),
            },
        }
    }

    async fn renew(&mut self) -> Result<(), Status> {
        let claims: Vec<_> = self.ours.keys().cloned().collect();
        for claim_id in claims {
            let request = RenewRequest {
                claim_id: claim_id.clone(),
                epoch: self.wanted.epoch,
                ttl: TTL.try_into().ok(),
            };
            match self.hearth.renew(within(DEADLINE, request)).await {
                Ok(_) => {}
                // It ended meanwhile; the stream says so as well.
                Err(status) if status.code() == Code::NotFound => {
                    self.ours.remove(&claim_id);
                }
                Err(status) => return Err(status),
            }
        }
        Ok(())
    }

    /// Gives all back.
    async fn end(&mut self) -> anyhow::Result<()> {
        for claim_id in self.ours.keys().chain(&self.next) {
            let mut tries = TRIES;
            loop {
                let request = ReleaseRequest {
                    claim_id: claim_id.clone(),
                    epoch: self.wanted.epoch,
                };
                let answer = self.hearth.release(within(DEADLINE, request)).await;
                let Err(status) = answer else { break };
                tries -= 1;
                let Some(pause) = pause(&status).filter(|_| tries > 0) else {
                    anyhow::bail!("releasing {claim_id}: {}", status.message());
                };
                sleep(pause).await;
            }
            println!("released {claim_id}");
        }
        Ok(())
    }
}
