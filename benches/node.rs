//! `make bench`: hearth's figures beside their floor or peer, measured in the same run on the same machine. Nothing is
//! asserted; the goal is told beside each figure, met or missed. Writes target/bench/node.md and node.json.
#![allow(clippy::unwrap_used)]

#[path = "node/code.rs"]
mod code;
#[path = "node/density.rs"]
mod density;
#[path = "../tests/node/hearthd.rs"]
#[allow(dead_code)]
mod hearthd;
#[path = "node/measure.rs"]
mod measure;
#[path = "node/neighbours.rs"]
mod neighbours;
#[path = "node/network.rs"]
mod network;
#[path = "../tests/node/noises.rs"]
mod noises;
#[path = "../tests/node/outside.rs"]
#[allow(dead_code)]
mod outside;
#[path = "node/packets.rs"]
mod packets;
#[path = "node/peer.rs"]
mod peer;
#[path = "node/sleep.rs"]
mod sleep;
#[path = "../tests/network/world.rs"]
#[allow(dead_code)]
mod world;

use hearth::api::claims_client::ClaimsClient;
use hearth::api::{ExecRequest, ExecStart, Pool, exec_request, exec_response};
use hearthd::{Hearth, claim_request, eventually, fresh_id, pool};
use measure::{Report, Series, millis};
use std::time::{Duration, Instant};
use tonic::transport::Channel;

/// The second pool.
const PREPARED: &str = "prepared";
/// Members of the bench's pool, and claims at once in (c).
const MEMBERS: u32 = 100;
/// Claims in a series, and rounds of their floors.
const ROUNDS: u32 = 50;
/// Between two of them, where they are not in a row: processors and guests have gone to sleep.
const PAUSE: Duration = Duration::from_millis(100);

#[tokio::main]
async fn main() {
    // `cargo bench --bench node -- claims`: only sections whose name begins so. cargo adds a --bench of its own.
    let only = std::env::args()
        .skip(1)
        .find(|word| !word.starts_with("--"));
    let wanted = |name: &str| only.as_ref().is_none_or(|only| name.starts_with(only));
    let mut report = Report::new();
    // Each on a node of its own, gone before the others' members come.
    if wanted("code") {
        code::section(&mut report).await;
    }
    if wanted("sleep") {
        sleep::section(&mut report).await;
    }
    if wanted("density") {
        density::section(&mut report).await;
    }
    if wanted("network") {
        network::section(&mut report).await;
    }
    if wanted("packets") {
        packets::section(&mut report);
    }
    let shared = ["claims", "burst", "exec", "neighbours", "refill", "memory"];
    if let Some(only) = only.as_ref().filter(|_| !shared.into_iter().any(wanted)) {
        return report.write(&format!("node-{only}"));
    }
    let hearth = Hearth::start_with(&[("log.level", "warn")]).await;
    let rss_empty = measure::resident_mib(hearth.pid());
    // Fills the pool that the sections use.
    let filled = fill(&hearth).await;
    let rss_full = measure::resident_mib(hearth.pid());
    if wanted("claims") {
        claims(&mut report, &hearth).await;
    }
    if wanted("burst") {
        burst(&mut report, &hearth).await;
    }
    if wanted("exec") {
        exec(&mut report, &hearth).await;
    }
    if wanted("neighbours") {
        neighbours::section(&mut report, &hearth).await;
    }
    if wanted("refill") {
        refill(&mut report, &hearth, filled);
    }
    if wanted("memory") {
        report.rate("resident memory of hearthd, no sandbox", rss_empty, "MiB");
        report.rate("resident memory of hearthd, 100 sandboxes", rss_full, "MiB");
        let what = "resident memory with 100 sandboxes, MiB";
        report.goal(what, rss_full, "≤ 40", rss_full <= 40.0);
    }
    report.write("node");
    hearth.finish().await;
}

async fn claims(report: &mut Report, hearth: &Hearth) {
    for (when, pause) in [("in a row", Duration::ZERO), ("after 100 ms", PAUSE)] {
        let claims = warm_claims(hearth, pause).await;
        claim_latency(report, when, &claims, &floor(hearth, pause).await);
        if pause > Duration::ZERO {
            against_ctr(report, &claims, &peer::ctr_run(hearth, 10));
        }
    }
}

async fn burst(report: &mut Report, hearth: &Hearth) {
    let (series, rate) = claims_at_once(hearth).await;
    report.row("100 claims at once on a full pool", &series);
    report.rate("  rate", rate, "claims/s");
    hearth.warm("python", MEMBERS).await;
    settle(hearth, "python").await;
}

async fn exec(report: &mut Report, hearth: &Hearth) {
    let echo = first_byte(hearth, "python", &["busybox", "echo", "x"], 30).await;
    let python = first_byte(hearth, "python", &["python3", "-c", "print('x')"], 30).await;
    report.row("claim → first byte of a static binary", &echo);
    report.row("claim → first byte of python", &python);
    prepare(hearth).await;
    let python = first_byte(hearth, PREPARED, &["python3", "-c", "print('x')"], 30).await;
    report.row("  in a pool whose warm_command has run python", &python);
    let peer = peer::ctr_first_byte(hearth, 5);
    report.row("  peer: ctr run of python → first byte", &peer);
}

fn refill(report: &mut Report, hearth: &Hearth, filled: Duration) {
    let ours = f64::from(MEMBERS) / filled.as_secs_f64();
    let theirs = peer::ctr_run_detached_rate(hearth, 40, 4);
    report.rate("refill, 4 in parallel, proved ready", ours, "sandboxes/s");
    report.rate("  peer: ctr run -d, 4 in parallel", theirs, "sandboxes/s");
    let ratio = ours / theirs;
    report.goal("refill against ctr run -d", ratio, "≥ 1.2", ratio >= 1.2);
}

/// Releases and refills of a pool are over: the machine is quiet.
async fn settle(hearth: &Hearth, pool: &str) {
    eventually("nothing under way", || async {
        let status = hearth.status(pool).await;
        status.releasing == 0 && status.creating == 0
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
}

fn python() -> Pool {
    let mut python = pool("python", MEMBERS, 3 * MEMBERS);
    python.max_parallel_refills = 4;
    python
}

/// Declares a second pool: its members have run python once before they are claimed.
async fn prepare(hearth: &Hearth) {
    let mut prepared = pool(PREPARED, 10, 30);
    if let Some(template) = &mut prepared.template {
        template.warm_command = ["python3", "-c", "pass"].map(str::to_owned).to_vec();
    }
    hearth.set_pools(vec![python(), prepared]).await;
    hearth.warm(PREPARED, 10).await;
}

/// From the declaration until all members are proved ready.
async fn fill(hearth: &Hearth) -> Duration {
    let began = Instant::now();
    hearth.set_pools(vec![python()]).await;
    hearth.warm("python", MEMBERS).await;
    let took = began.elapsed();
    settle(hearth, "python").await;
    took
}

/// What a claim cannot do without: an RPC, a commit, a word from the guest.
struct Floor {
    rpc: Series,
    fdatasync: Series,
    guest: Series,
}

async fn floor(hearth: &Hearth, pause: Duration) -> Floor {
    let mut health = tonic_health::pb::health_client::HealthClient::new(hearth.channel().await);
    let mut rpc = Series::default();
    for _ in 0..ROUNDS {
        let request = tonic_health::pb::HealthCheckRequest::default();
        tokio::time::sleep(pause).await;
        let began = Instant::now();
        health.check(request).await.unwrap();
        rpc.push(began.elapsed());
    }
    Floor {
        rpc,
        fdatasync: peer::fdatasync(&hearth.path("floor"), ROUNDS, pause),
        guest: peer::guest_round_trip(hearth, ROUNDS, pause).await,
    }
}

/// Claims, whole and by stage.
#[derive(Default)]
struct Claims {
    whole: Series,
    queue: Series,
    commit: Series,
    guest: Series,
    total: Series,
}

impl Claims {
    fn stages(&mut self, timings: hearth::api::StageTimings) {
        let time = |stage: Option<prost_types::Duration>| {
            Duration::try_from(stage.unwrap_or_default()).unwrap_or_default()
        };
        self.queue.push(time(timings.queue));
        self.commit.push(time(timings.commit));
        self.guest.push(time(timings.guest));
        self.total.push(time(timings.total));
    }
}

/// Claims one after the other, with the same pause as their floors. Every guest is claimed for the first time.
async fn warm_claims(hearth: &Hearth, pause: Duration) -> Claims {
    let mut client = hearth.claims().await;
    let mut claims = Claims::default();
    let mut held = Vec::new();
    for _ in 0..ROUNDS {
        let id = fresh_id();
        tokio::time::sleep(pause).await;
        let began = Instant::now();
        let answer = client.claim(claim_request(&id, "python")).await.unwrap();
        claims.whole.push(began.elapsed());
        claims.stages(answer.into_inner().timings.unwrap());
        held.push(id);
        if pause > Duration::ZERO {
            // A refill of the claim before would be measured too.
            until_refilled(hearth).await;
        }
    }
    for id in held {
        hearth.release(&id).await;
    }
    hearth.warm("python", MEMBERS).await;
    settle(hearth, "python").await;
    claims
}

async fn until_refilled(hearth: &Hearth) {
    eventually("refilled", || async {
        let status = hearth.status("python").await;
        status.creating == 0 && status.warm == MEMBERS
    })
    .await;
}

fn claim_latency(report: &mut Report, when: &str, claims: &Claims, floor: &Floor) {
    let sum = floor.rpc.at(50) + floor.fdatasync.at(50) + floor.guest.at(50);
    report.row(&format!("warm claim, {when}"), &claims.whole);
    report.row("  in hearthd", &claims.total);
    report.row("  of it: queue", &claims.queue);
    report.row("  of it: commit, beside the guest", &claims.commit);
    report.row("  of it: guest, beside the commit", &claims.guest);
    report.row("  floor: RPC that does nothing", &floor.rpc);
    report.row(
        "  floor: write + fdatasync of the same bytes",
        &floor.fdatasync,
    );
    report.row("  floor: round trip to an idle guest", &floor.guest);
    let ratio = millis(claims.whole.at(50)) / millis(sum);
    let what = format!("warm claim, {when}, against the sum of its floors");
    report.goal(&what, ratio, "≤ 1.5", ratio <= 1.5);
}

fn against_ctr(report: &mut Report, claims: &Claims, ctr: &Series) {
    report.row("  peer: ctr run of the same image, `true`", ctr);
    let times = millis(ctr.at(50)) / millis(claims.whole.at(50));
    report.goal(
        "claim against ctr run, times faster",
        times,
        "≥ 100",
        times >= 100.0,
    );
}

/// All members at once, over a few connections as controllers have them.
async fn claims_at_once(hearth: &Hearth) -> (Series, f64) {
    let mut channels: Vec<Channel> = Vec::new();
    for _ in 0..4 {
        channels.push(hearth.channel().await);
    }
    let began = Instant::now();
    let mut tasks = Vec::new();
    for number in 0..MEMBERS as usize {
        let mut client = ClaimsClient::new(channels[number % channels.len()].clone());
        tasks.push(tokio::spawn(async move {
            let id = fresh_id();
            let began = Instant::now();
            client.claim(claim_request(&id, "python")).await.unwrap();
            (id, began.elapsed())
        }));
    }
    let mut series = Series::default();
    let mut held = Vec::new();
    for task in tasks {
        let (id, took) = task.await.unwrap();
        series.push(took);
        held.push(id);
    }
    let rate = f64::from(MEMBERS) / began.elapsed().as_secs_f64();
    for id in held {
        hearth.release(&id).await;
    }
    (series, rate)
}

/// A claim and an exec in it, until the first byte of its output.
async fn first_byte(hearth: &Hearth, pool: &str, command: &[&str], count: usize) -> Series {
    let mut series = Series::default();
    let (mut claims, mut sandboxes) = (hearth.claims().await, hearth.sandboxes().await);
    for _ in 0..count {
        let id = fresh_id();
        let start = ExecStart {
            claim_id: id.clone(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            ..ExecStart::default()
        };
        let request = ExecRequest {
            request: Some(exec_request::Request::Start(start)),
        };
        let began = Instant::now();
        claims.claim(claim_request(&id, pool)).await.unwrap();
        let stream = sandboxes.exec(tokio_stream::iter([request])).await.unwrap();
        let mut stream = stream.into_inner();
        while let Some(response) = stream.message().await.unwrap() {
            if let Some(exec_response::Response::Stdout(_)) = response.response {
                series.push(began.elapsed());
                break;
            }
        }
        hearth.release(&id).await;
        settle(hearth, pool).await;
    }
    series
}
