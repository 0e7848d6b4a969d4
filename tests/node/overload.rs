//! More claims than the node can serve, without waiting for answers: who is refused hears it with what to do next, who gives
//! back or renews is never starved, a modest caller is served beside a greedy one, memory stays bounded, and when it is over
//! the node is as before. `HEARTH_OVERLOAD_SECONDS` is how long (default 10; the promise is of 60).

use crate::hearthd::{eventually, fresh_id, patience, patient_request, pool};
use crate::identity::Secure;
use crate::vitals::Vitals;
use hearth::api::claims_client::ClaimsClient;
use hearth::api::{ClaimRequest, OnEmpty, ReleaseRequest, RenewRequest};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// What is offered, in multiples of what was measured before.
const TIMES: f64 = 10.0;
/// Claims a second at least, so that queues fill whatever the machine can do.
const LEAST_OFFERED: f64 = 200.0;
/// How long half of the greedy caller's claims wait; the others do not.
const WAIT_SECONDS: i64 = 4;
/// How long the modest caller's claims wait.
const MODEST_SECONDS: i64 = 30;
/// Connections of the greedy caller.
const CHANNELS: usize = 4;
/// The deadline of every release and renewal.
const RETURN: Duration = Duration::from_secs(10);
/// How much hearthd may grow: the waiting claims, their spans and tasks, of a debug build.
const GROWTH_BYTES: u64 = 128 << 20;
/// Everything that a claim under overload may be told. Each comes with a delay.
const REASONS: [&str; 6] = [
    "POOL_EMPTY",
    "POOL_FULL",
    "QUEUE_FULL",
    "WAIT_TIMED_OUT",
    "RATE_LIMITED",
    "GUEST_FAILED",
];

/// What came of the claims of one caller.
#[derive(Default)]
struct Heard {
    offered: usize,
    admitted: Vec<Duration>,
    /// By reason.
    refused: BTreeMap<String, Vec<Duration>>,
    releases: Vec<Duration>,
}

fn percentile(of: &[Duration], percent: usize) -> Duration {
    let mut sorted = of.to_vec();
    sorted.sort();
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

fn with_deadline<T>(message: T, deadline: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(deadline);
    request
}

impl Heard {
    fn refusal(&mut self, status: &Status, took: Duration) {
        let fits = [Code::ResourceExhausted, Code::Unavailable].contains(&status.code());
        assert!(fits, "{status:?}");
        let details = status.get_error_details();
        let delay = details.retry_info().and_then(|it| it.retry_delay);
        assert!(delay.is_some(), "{status:?}");
        let reason = details.error_info().map(|it| it.reason.clone());
        let reason = reason.unwrap_or_default();
        assert!(REASONS.contains(&reason.as_str()), "{status:?}");
        self.refused.entry(reason).or_default().push(took);
    }

    fn tell(&self, who: &str, seconds: f64) {
        let rate = |count: usize| count as f64 / seconds;
        println!(
            "{who}: offered {} ({:.1}/s), admitted {} ({:.1}/s) in p50 {:?} p99 {:?}",
            self.offered,
            rate(self.offered),
            self.admitted.len(),
            rate(self.admitted.len()),
            percentile(&self.admitted, 50),
            percentile(&self.admitted, 99),
        );
        for (reason, times) in &self.refused {
            println!(
                "  refused {reason}: {} in p50 {:?} p99 {:?}",
                times.len(),
                percentile(times, 50),
                percentile(times, 99)
            );
        }
        println!(
            "  releases: {} in p50 {:?} p99 {:?}",
            self.releases.len(),
            percentile(&self.releases, 50),
            percentile(&self.releases, 99)
        );
    }
}

/// One claim; what is admitted is given back at once.
async fn one(channel: Channel, request: ClaimRequest, heard: Arc<Mutex<Heard>>) {
    let mut client = ClaimsClient::new(channel);
    let id = request.claim_id.clone();
    let began = Instant::now();
    let answer = client.claim(with_deadline(request, patience())).await;
    let took = began.elapsed();
    match answer {
        Ok(_) => heard.lock().unwrap().admitted.push(took),
        Err(status) => return heard.lock().unwrap().refusal(&status, took),
    }
    let request = ReleaseRequest {
        claim_id: id,
        epoch: 1,
    };
    let began = Instant::now();
    let released = client.release(with_deadline(request, RETURN)).await;
    released.expect("a release is never starved");
    heard.lock().unwrap().releases.push(began.elapsed());
}

/// Claims at this rate for so long, whatever becomes of those before. Returns, when all are answered, when the last was
/// offered.
async fn open_loop(
    channels: Vec<Channel>,
    rate: f64,
    duration: Duration,
    what: impl Fn(usize) -> ClaimRequest,
    heard: Arc<Mutex<Heard>>,
) -> Instant {
    let mut under_way = JoinSet::new();
    let began = Instant::now();
    let mut offered = 0;
    while began.elapsed() < duration {
        let due = began.elapsed().as_secs_f64() * rate;
        while (offered as f64) < due {
            let channel = channels[offered % channels.len()].clone();
            under_way.spawn(one(channel, what(offered), heard.clone()));
            offered += 1;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        while let Some(ended) = under_way.try_join_next() {
            ended.unwrap();
        }
    }
    heard.lock().unwrap().offered = offered;
    let last = Instant::now();
    while let Some(ended) = under_way.join_next().await {
        ended.unwrap();
    }
    last
}

/// What the node can do: claims one after the other by a few callers, each given back at once.
async fn capacity(channel: &Channel) -> f64 {
    let (duration, heard) = (
        Duration::from_secs(4),
        Arc::new(Mutex::new(Heard::default())),
    );
    let began = Instant::now();
    let callers = (0..8).map(|_| {
        let (channel, heard) = (channel.clone(), heard.clone());
        async move {
            while began.elapsed() < duration {
                let request = patient_request(&fresh_id(), "python", MODEST_SECONDS);
                one(channel.clone(), request, heard.clone()).await;
            }
        }
    });
    futures::future::join_all(callers).await;
    let served = heard.lock().unwrap().admitted.len();
    served as f64 / began.elapsed().as_secs_f64()
}

/// Renews claims that are held, one after the other, until it is over.
async fn renew(channel: Channel, held: Vec<String>, over: Arc<AtomicBool>) -> Vec<Duration> {
    let mut client = ClaimsClient::new(channel);
    let mut took = Vec::new();
    for claim in held.iter().cycle() {
        if over.load(Ordering::SeqCst) {
            break;
        }
        let request = RenewRequest {
            claim_id: claim.clone(),
            epoch: 1,
            ttl: Some(prost_types::Duration {
                seconds: 3600,
                nanos: 0,
            }),
        };
        let began = Instant::now();
        let renewed = client.renew(with_deadline(request, RETURN)).await;
        renewed.expect("a renewal is never starved");
        took.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn overload_is_refused_quickly_and_starves_neither_returns_nor_modest_callers() {
    let seconds = std::env::var("HEARTH_OVERLOAD_SECONDS");
    let seconds: u64 = seconds.map_or(10, |text| text.parse().expect("seconds"));
    let duration = Duration::from_secs(seconds);
    // Root over the socket is the greedy one, an allocator with a certificate the modest one.
    let secure = Secure::start().await;
    let hearth = &secure.hearth;
    let modest = secure.channel("allocator").await;
    hearth.set_pools(vec![pool("python", 4, 16)]).await;
    hearth.warm("python", 4).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let request = patient_request(&fresh_id(), "python", MODEST_SECONDS);
        held.push(request.claim_id.clone());
        let mut client = ClaimsClient::new(modest.clone());
        client.claim(request).await.unwrap();
    }
    hearth.warm("python", 4).await;
    let capacity = capacity(&hearth.channel().await).await;
    hearth.warm("python", 4).await;
    let rate = (capacity * TIMES).max(LEAST_OFFERED);
    println!("capacity {capacity:.1} claims/s; {rate:.0}/s are offered for {duration:?}");

    let vitals = Vitals::of(hearth.pid());
    let before = (vitals.resident_bytes(), vitals.descriptors());
    vitals.forget_peak();
    let (greedy_heard, modest_heard) = (
        Arc::new(Mutex::new(Heard::default())),
        Arc::new(Mutex::new(Heard::default())),
    );
    let over = Arc::new(AtomicBool::new(false));
    let renewals = tokio::spawn(renew(modest.clone(), held.clone(), over.clone()));
    let mut channels = Vec::new();
    for _ in 0..CHANNELS {
        channels.push(hearth.channel().await);
    }
    let hasty = |at: usize| match at % 2 {
        0 => patient_request(&fresh_id(), "python", WAIT_SECONDS),
        _ => ClaimRequest {
            on_empty: OnEmpty::Fail.into(),
            wait_timeout: None,
            ..patient_request(&fresh_id(), "python", 0)
        },
    };
    let calm = |_| patient_request(&fresh_id(), "python", MODEST_SECONDS);
    // A quarter of what the node can do: half of it is its own by turns.
    let (last, _) = tokio::join!(
        open_loop(channels, rate, duration, hasty, greedy_heard.clone()),
        open_loop(
            vec![modest.clone()],
            (capacity / 4.0).max(0.5),
            duration,
            calm,
            modest_heard.clone()
        )
    );
    let answered = last.elapsed();
    let peak = vitals.peak_bytes();

    eventually("the node is as before", || async {
        let status = hearth.status("python").await;
        status.warm >= 4 && status.waiting == 0 && status.releasing == 0
    })
    .await;
    hearth.serve_one("python").await;
    let recovered = last.elapsed();
    over.store(true, Ordering::SeqCst);
    let renewals = renewals.await.unwrap();
    let after = (vitals.resident_bytes(), vitals.descriptors());

    let take = |heard: &Mutex<Heard>| std::mem::take(&mut *heard.lock().unwrap());
    let (greedy, modest_told) = (take(&greedy_heard), take(&modest_heard));
    greedy.tell("greedy", duration.as_secs_f64());
    modest_told.tell("modest", duration.as_secs_f64());
    println!(
        "renewals: {} in p50 {:?} p99 {:?}",
        renewals.len(),
        percentile(&renewals, 50),
        percentile(&renewals, 99)
    );
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "recovered {recovered:?} after the last claim was offered, the last answer came after {answered:?}; RSS {} MiB before, {} MiB at most, {} MiB after; {} descriptors before, {} after",
        mib(before.0),
        mib(peak),
        mib(after.0),
        before.1,
        after.1
    );
    assert!(!renewals.is_empty());
    assert!(!greedy.admitted.is_empty(), "the greedy one is served too");
    let refused: usize = greedy.refused.values().map(Vec::len).sum();
    assert!(
        refused > greedy.admitted.len(),
        "that was no overload: {refused} refused"
    );
    assert_eq!(greedy.admitted.len() + refused, greedy.offered);
    // Its own offer is below its share, so it is served whole, however much the other one asks for.
    assert!(modest_told.offered > 0);
    assert!(modest_told.refused.is_empty(), "{:?}", modest_told.refused);
    assert_eq!(modest_told.admitted.len(), modest_told.offered);
    assert!(
        peak < before.0 + GROWTH_BYTES,
        "it grew from {} to {peak} bytes",
        before.0
    );
    let mut client = ClaimsClient::new(modest.clone());
    for claim_id in held {
        let request = ReleaseRequest { claim_id, epoch: 1 };
        client.release(request).await.unwrap();
    }
    crate::crash::assert_no_leak(hearth).await;
    secure.hearth.finish().await;
}
