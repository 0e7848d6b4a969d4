//! hearthd dies at every fail point there is (`src/failpoint.rs`), under load, and starts again. After each death the
//! callers ask again until they are answered, and then everything is compared: what they were told, what hearthd says,
//! and what is really there, on the disk and in the network too. `HEARTH_TORTURE_KILLS` is how often (default 100; `make torture` 1000); `HEARTH_SEED` repeats
//! a run.

use crate::crash::assert_no_leak;
use crate::hearthd::{Hearth, fresh_id, patience, patient_request, reach};
use crate::network::{mode, with_policy};
use crate::outside::{self, Outside};
use hearth::api::claims_client::ClaimsClient;
use hearth::api::node_client::NodeClient;
use hearth::api::pools_client::PoolsClient;
use hearth::api::{
    ClaimRequest, ClaimState, DrainMode, DrainRequest, GetClaimRequest, GetPoolsRequest,
    HibernateRequest, ListClaimsRequest, NetworkMode, NetworkPolicy, NetworkRule, OnEmpty,
    Personalization, Pool, ReleaseRequest, RenewRequest, ResumeRequest, SetPoolsRequest, Tier,
    UndrainRequest,
};
use hearth::failpoint::ALL;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::StatusExt;

/// Callers at once, and how many claims each keeps.
const CALLERS: usize = 2;
const KEPT: usize = 2;
/// Between two claims of one caller.
const PAUSE: Duration = Duration::from_millis(500);
/// Has only cold claims.
const COLD: &str = "cold";
/// The ttl of a claim that nobody renews.
const SHORT: i64 = 1;
/// Slots that the node keeps ahead.
const SPARES: usize = 2;

/// Points that a running hearthd has passed already: it is killed and comes to them when it starts.
const AT_START: [&str; 9] = [
    "start.journal",
    "start.containerd",
    "list.end",
    "witness.end",
    "net.reconciled",
    "journal.before.sequence",
    "journal.after.sequence",
    // A golden image goes with its hearthd; the first member after a start is the next one's.
    "golden.taken",
    "clone.restored",
];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// What callers were told.
#[derive(Clone, Default)]
struct Told {
    /// Acknowledged, by claim: the request, the sandbox, and which caller.
    claimed: BTreeMap<String, (ClaimRequest, String, usize)>,
    /// Releases that were acknowledged, and claims that had their time.
    released: BTreeSet<String>,
    /// Claims with a short time that nobody renews; they end by themselves.
    expiring: BTreeSet<String>,
    /// Every sandbox that was ever told, with its claim.
    sandboxes: BTreeMap<String, String>,
}

impl Told {
    fn granted(&mut self, request: ClaimRequest, sandbox: String, owner: usize) {
        let id = request.claim_id.clone();
        let before = self.sandboxes.insert(sandbox.clone(), id.clone());
        assert_eq!(before, None, "sandbox {sandbox} was handed out twice");
        self.claimed.insert(id, (request, sandbox, owner));
    }

    /// The claims of one caller.
    fn of(&self, owner: usize) -> Vec<String> {
        let mine = self.claimed.iter().filter(|(_, it)| it.2 == owner);
        mine.map(|(id, _)| id.clone()).collect()
    }
}

/// What callers share.
struct World {
    socket: String,
    told: Mutex<Told>,
    epoch: AtomicU64,
    /// Everybody comes to an end of what he does.
    stop: AtomicBool,
}

/// An answer, or hearth's definite refusal; anything else is asked again.
enum Heard<T> {
    Answer(T),
    Refused(String),
}

impl World {
    fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    async fn channel(&self) -> Channel {
        reach(&self.socket, patience() * 2).await
    }

    /// Asks until there is an answer, over every death. `patient`: "not now" is asked again too, until everybody stops.
    async fn ask<T, F: Future<Output = Result<T, Status>>>(
        &self,
        patient: bool,
        call: impl Fn(Channel) -> F,
    ) -> Heard<T> {
        let began = Instant::now();
        loop {
            let status = match call(self.channel().await).await {
                Ok(answer) => return Heard::Answer(answer),
                Err(status) => status,
            };
            assert!(began.elapsed() < patience() * 2, "no answer: {status:?}");
            let details = status.get_error_details();
            if let Some(info) = details.error_info() {
                // Of a hearthd that lives. One that starts, or that is fenced newer, is asked again by everybody.
                let again = [
                    "STARTING",
                    "SHUTTING_DOWN",
                    "EPOCH_STALE",
                    "CLAIM_RECOVERING",
                ];
                let later = patient && details.retry_info().is_some() && !self.stopping();
                if !again.contains(&info.reason.as_str()) && !later {
                    return Heard::Refused(info.reason.clone());
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Claims, now and then with a policy of its own, or for a moment only.
    async fn claim(&self, pool: &str, owner: usize, turn: usize) {
        let id = fresh_id();
        let mut request = ClaimRequest {
            epoch: self.epoch(),
            ..patient_request(&id, pool, 20)
        };
        if turn.is_multiple_of(3) {
            request.personalization = Some(Personalization {
                network_policy: Some(open(outside::OTHER)),
                ..Personalization::default()
            });
        }
        let short = turn.is_multiple_of(5);
        if short {
            request.ttl = Some(prost_types::Duration {
                seconds: SHORT,
                nanos: 0,
            });
        }
        if pool == COLD {
            request.on_empty = OnEmpty::Cold.into();
            request.wait_timeout = None;
        }
        let call = |channel: Channel| {
            let mut request = request.clone();
            request.epoch = self.epoch();
            async move { ClaimsClient::new(channel).claim(request).await }
        };
        match self.ask(true, call).await {
            Heard::Answer(answer) => {
                let sandbox = answer.into_inner().sandbox_id;
                let mut told = self.told.lock().unwrap();
                told.granted(request, sandbox, owner);
                if short {
                    told.claimed.remove(&id);
                    told.expiring.insert(id);
                }
            }
            // It may be there all the same: nobody was told.
            Heard::Refused(_) => self.release(&id).await,
        }
    }

    async fn release(&self, id: &str) {
        self.told.lock().unwrap().claimed.remove(id);
        let call = |channel: Channel| {
            let request = ReleaseRequest {
                claim_id: id.to_owned(),
                epoch: self.epoch(),
            };
            async move { ClaimsClient::new(channel).release(request).await }
        };
        match self.ask(false, call).await {
            Heard::Answer(_) => {
                self.told.lock().unwrap().released.insert(id.to_owned());
            }
            Heard::Refused(reason) => panic!("release of {id}: {reason}"),
        }
    }

    async fn renew(&self, id: &str) {
        let call = |channel: Channel| {
            let request = RenewRequest {
                claim_id: id.to_owned(),
                epoch: self.epoch(),
                ttl: Some(prost_types::Duration {
                    seconds: 3600,
                    nanos: 0,
                }),
            };
            async move { ClaimsClient::new(channel).renew(request).await }
        };
        if let Heard::Refused(reason) = self.ask(false, call).await {
            panic!("renewal of {id}: {reason}");
        }
    }

    async fn sleep_and_wake(&self, id: &str, tier: Tier) {
        let call = |channel: Channel| {
            let request = HibernateRequest {
                claim_id: id.to_owned(),
                epoch: self.epoch(),
                tier: tier.into(),
                ..HibernateRequest::default()
            };
            async move { ClaimsClient::new(channel).hibernate(request).await }
        };
        // A freeze or a checkpoint that failed is no broken promise.
        let _slept = self.ask(false, call).await;
        let call = |channel: Channel| {
            let request = ResumeRequest {
                claim_id: id.to_owned(),
                epoch: self.epoch(),
            };
            async move { ClaimsClient::new(channel).resume(request).await }
        };
        let _woken = self.ask(false, call).await;
    }

    /// A caller's life until everybody stops.
    async fn caller(self: Arc<Self>, owner: usize) {
        let mut turn = owner;
        while !self.stopping() {
            turn += 1;
            let pool = if turn.is_multiple_of(4) {
                COLD
            } else {
                "python"
            };
            self.claim(pool, owner, turn).await;
            let mine = self.told.lock().unwrap().of(owner);
            if let Some(id) = mine.last() {
                self.renew(id).await;
                let tiers = [Tier::Memory, Tier::Disk];
                self.sleep_and_wake(id, tiers[turn % tiers.len()]).await;
            }
            for id in mine.iter().take(mine.len().saturating_sub(KEPT)) {
                self.release(id).await;
            }
            // Refill keeps up, so that there are members to freeze.
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What an operator does, as far as the point has to do with it.
    async fn operator(self: Arc<Self>, point: &'static str) {
        let mut variant = 0;
        while !self.stopping() {
            variant += 1;
            if point.ends_with("pools") {
                self.set_pools(variant % 2).await;
            }
            if point.ends_with("fence") {
                self.epoch.fetch_add(1, Ordering::SeqCst);
            }
            if point.ends_with("drain") {
                let modes = [DrainMode::Wait, DrainMode::Hibernate];
                let mode = modes[usize::try_from(variant / 2 % 2).unwrap()];
                self.drain((variant % 2 == 1).then_some(mode)).await;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        if point.ends_with("drain") {
            self.drain(None).await;
        }
    }

    async fn set_pools(&self, variant: u32) {
        let call = |channel: Channel| async move {
            let mut client = PoolsClient::new(channel);
            let now = client
                .get_pools(GetPoolsRequest::default())
                .await?
                .into_inner();
            let request = SetPoolsRequest {
                generation: now.generation + 1,
                pools: declared(now.generation + 1, variant),
                epoch: self.epoch(),
            };
            client.set_pools(request).await
        };
        if let Heard::Refused(reason) = self.ask(false, call).await {
            panic!("pools: {reason}");
        }
    }

    /// `None`: undrain.
    async fn drain(&self, mode: Option<DrainMode>) {
        let call = |channel: Channel| async move {
            let mut client = NodeClient::new(channel);
            let Some(mode) = mode else {
                return client.undrain(UndrainRequest {}).await.map(drop);
            };
            let request = DrainRequest {
                mode: mode.into(),
                ..DrainRequest::default()
            };
            client.drain(request).await.map(drop)
        };
        if let Heard::Refused(reason) = self.ask(false, call).await {
            panic!("drain: {reason}");
        }
    }
}

/// Everything that was told stands: the same answer for each claim that is held, and nothing of those released.
async fn assert_promises(hearth: &Hearth, told: &Told, epoch: u64) {
    let mut client = hearth.claims().await;
    for (claim, (request, sandbox, _)) in &told.claimed {
        let got = hearth.get(claim).await;
        let usable = [ClaimState::Claimed, ClaimState::Hibernated];
        assert!(usable.contains(&got.state()), "{claim}: {got:?}");
        let mut request = request.clone();
        request.epoch = epoch;
        let again = client.claim(request).await.unwrap().into_inner();
        assert_eq!(&again.sandbox_id, sandbox, "asked again: {claim}");
    }
    // The latest: a release is remembered long, and the list grows.
    for claim in told.released.iter().rev().take(50) {
        let request = GetClaimRequest {
            claim_id: claim.clone(),
        };
        let gone = client.get(request).await.unwrap_err();
        assert_eq!(gone.code(), tonic::Code::NotFound, "{claim}");
    }
    let all = client.list(ListClaimsRequest::default()).await.unwrap();
    let strangers = all.into_inner().claims.into_iter().map(|it| it.claim_id);
    let strangers: Vec<_> = strangers
        .filter(|id| !told.claimed.contains_key(id))
        .collect();
    assert!(strangers.is_empty(), "claims nobody has: {strangers:?}");
}

/// One address is open.
fn open(address: &str) -> NetworkPolicy {
    let rule = NetworkRule {
        cidr: address.to_owned(),
        ..NetworkRule::default()
    };
    NetworkPolicy {
        allow: vec![rule],
        ..mode(NetworkMode::Allowlist)
    }
}

/// Few members of which one runs, so that claims freeze and thaw; and a pool of cold claims. All with a network.
fn declared(generation: u64, variant: u32) -> Vec<Pool> {
    let mut python = with_policy("python", 3 + variant, open(outside::PUBLIC));
    (python.generation, python.max_total) = (generation, 24);
    python.running = Some(1);
    let mut cold = with_policy(COLD, 0, open(outside::PUBLIC));
    (cold.generation, cold.max_total) = (generation, 8);
    vec![cold, python]
}

/// Whatever carries the id of a sandbox of this node, by whether it is there while the sandbox is on the disk.
#[derive(Debug)]
struct Traces {
    /// Mounts but those of namespaces, and shims.
    of_what_runs: [BTreeSet<String>; 2],
    /// Namespaces, and links in the router: how many, spares too.
    of_all: (BTreeSet<String>, usize),
    /// Images on the disk, with whatever else lies there.
    of_what_sleeps: BTreeSet<String>,
}

fn traces(hearth: &Hearth) -> Traces {
    let root = hearth.path("").display().to_string();
    let is_id = |word: &str| {
        word.len() == 21
            && word.starts_with('h')
            && word[1..].bytes().all(|b| b.is_ascii_hexdigit())
    };
    let ids = |text: &str| -> BTreeSet<String> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric());
        words
            .filter(|word| is_id(word))
            .map(str::to_owned)
            .collect()
    };
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let mounts = mounts.lines().filter(|line| line.contains(&root));
    let (spaces, mounts): (Vec<_>, Vec<_>) = mounts.partition(|line| line.contains("/netns/"));
    let mut shims = BTreeSet::new();
    crate::hearthd::processes(|line| {
        if line[0].contains("containerd-shim") && line.iter().any(|word| word.contains(&root)) {
            shims.extend(ids(&line.join(" ")));
        }
        false
    });
    let images = std::fs::read_dir(hearth.path("data/hibernated"));
    let names = images.into_iter().flatten().flatten();
    let (links, _) = outside::routed(&hearth.path("run/netns/router"));
    Traces {
        of_what_runs: [mounts.into_iter().flat_map(ids).collect(), shims],
        of_all: (spaces.into_iter().flat_map(ids).collect(), links.len()),
        of_what_sleeps: names
            .map(|it| it.file_name().into_string().unwrap())
            .collect(),
    }
}

/// Shims, mounts, namespaces, links and images are those of the sandboxes that hearthd knows.
async fn assert_no_trace(hearth: &Hearth) {
    let mut last = String::new();
    let agreed = |last: &mut String| {
        let state = hearth.state();
        let known = state["sandboxes"].as_array().unwrap().iter();
        let id = |it: &serde_json::Value| it["id"].as_str().unwrap().to_owned();
        let (asleep, there): (Vec<_>, Vec<_>) = known.partition(|it| it["residency"] == "on_disk");
        let asleep: BTreeSet<_> = asleep.into_iter().map(id).collect();
        let there: BTreeSet<_> = there.into_iter().map(id).collect();
        let traces = traces(hearth);
        let all: BTreeSet<_> = asleep.union(&there).cloned().collect();
        *last = format!("there {there:?}, on the disk {asleep:?}; found {traces:?}");
        traces.of_what_runs.iter().all(|found| *found == there)
            && traces.of_all == (all.clone(), all.len() + SPARES)
            && traces.of_what_sleeps == asleep
    };
    let began = Instant::now();
    while !agreed(&mut last) {
        assert!(began.elapsed() < patience(), "something is left: {last}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A start has met all its points, or will not.
const START: Duration = Duration::from_secs(8);

struct Torture {
    hearth: Hearth,
    _outside: Outside,
    world: Arc<World>,
    /// Armed while it is there.
    armed: std::path::PathBuf,
}

impl Torture {
    fn arm(&self, point: &str, nth: u64) {
        let written = self.armed.with_extension("new");
        std::fs::write(&written, format!("{point}={nth}")).unwrap();
        std::fs::rename(written, &self.armed).unwrap();
    }

    /// One death. Returns how long hearthd took to be ready again.
    async fn round(&mut self, point: &'static str, nth: u64) -> Duration {
        self.world.stop.store(false, Ordering::SeqCst);
        let mut tasks: Vec<_> = (0..CALLERS)
            .map(|owner| tokio::spawn(self.world.clone().caller(owner)))
            .collect();
        tasks.push(tokio::spawn(self.world.clone().operator(point)));
        self.arm(point, nth);
        let began = Instant::now();
        let mut started: Option<Instant> = None;
        while !self.hearth.has_died() {
            // What a start meets depends on what the death before it left: another one may meet the point.
            if AT_START.contains(&point) && started.is_none_or(|at| at.elapsed() > START) {
                self.hearth.kill();
                self.hearth.start_again();
                started = Some(Instant::now());
            }
            assert!(
                began.elapsed() < patience(),
                "{point} was not reached {nth} times:\n{}",
                self.hearth.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        std::fs::remove_file(&self.armed).unwrap();
        let ready = self.hearth.restart().await;
        self.world.stop.store(true, Ordering::SeqCst);
        for task in tasks {
            task.await.unwrap();
        }
        self.wait_for_expiries().await;
        let told = self.world.told.lock().unwrap().clone();
        assert_promises(&self.hearth, &told, self.world.epoch()).await;
        assert_no_leak(&self.hearth).await;
        assert_no_trace(&self.hearth).await;
        ready
    }

    /// Claims that nobody renewed end by themselves, whatever died meanwhile.
    async fn wait_for_expiries(&self) {
        let expiring = std::mem::take(&mut self.world.told.lock().unwrap().expiring);
        let mut client = self.hearth.claims().await;
        for claim_id in &expiring {
            let began = Instant::now();
            loop {
                let request = GetClaimRequest {
                    claim_id: claim_id.clone(),
                };
                match client.get(request).await {
                    Err(status) if status.code() == tonic::Code::NotFound => break,
                    got => assert!(began.elapsed() < patience(), "{claim_id} stays: {got:?}"),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        let mut told = self.world.told.lock().unwrap();
        told.released.extend(expiring);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hearthd_may_die_at_every_fail_point() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let kills = number("HEARTH_TORTURE_KILLS").unwrap_or(100);
    let seed = number("HEARTH_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("HEARTH_SEED={seed}");
    let mut random = Random(seed);
    let armed = tempfile::tempdir().unwrap();
    let armed_file = armed.path().join("point");
    let outside = Outside::new();
    let spares = SPARES.to_string();
    let settings = [
        ("HEARTH_FAILPOINT_FILE", armed_file.to_str().unwrap()),
        ("memory.swap", "zram:1GiB"),
        ("hibernation.golden_images", "auto"),
        ("network.enabled", "true"),
        ("network.resolvers", outside::GATEWAY),
        ("network.spares", &spares),
        ("log.level", "info"),
    ];
    let hearth = Hearth::start_inside(&[], outside.node(), &settings).await;
    let world = Arc::new(World {
        socket: format!("unix://{}", hearth.path("s").display()),
        told: Mutex::default(),
        epoch: AtomicU64::new(1),
        stop: AtomicBool::new(false),
    });
    world.set_pools(0).await;
    hearth.warm("python", 3).await;
    let mut torture = Torture {
        hearth,
        _outside: outside,
        world,
        armed: armed_file,
    };
    let (began, mut ready) = (Instant::now(), Vec::new());
    for number in 0..kills {
        let at = usize::try_from(number).unwrap();
        let (point, nth) = match ALL.get(at) {
            Some(point) => (*point, 1),
            None => {
                let point = ALL[usize::try_from(random.below(ALL.len() as u64)).unwrap()];
                (
                    point,
                    1 + random.below(if AT_START.contains(&point) { 1 } else { 4 }),
                )
            }
        };
        println!("{number}: {point}={nth}");
        ready.push(torture.round(point, nth).await);
    }
    ready.sort();
    let told = torture.world.told.lock().unwrap().clone();
    println!(
        "{kills} kills at {} points in {:?}; {} claims held, {} released; start to ready: median {:?}, max {:?}",
        ALL.len(),
        began.elapsed(),
        told.claimed.len(),
        told.released.len(),
        ready[ready.len() / 2],
        ready[ready.len() - 1],
    );
    assert!(kills >= ALL.len() as u64, "some points were not reached");
    torture.hearth.finish().await;
}

fn sources(dir: &Path, text: &mut String) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|it| it == "rs") {
            text.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_fail_point_of_the_sources_is_listed() {
    let mut text = String::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut text,
    );
    let named = |before: &str| -> Vec<String> {
        let found = text.split(before).skip(1);
        found
            .filter_map(|rest| rest.split('"').next())
            .map(str::to_owned)
            .collect()
    };
    let mut found: BTreeSet<String> = named("failpoint!(\"").into_iter().collect();
    for kind in named("both!(stage, \"") {
        found.insert(format!("journal.before.{kind}"));
        found.insert(format!("journal.after.{kind}"));
    }
    let listed: BTreeSet<String> = ALL.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(found, listed);
    assert_eq!(listed.len(), ALL.len(), "one is listed twice");
    assert!(ALL.len() > 60);
}
