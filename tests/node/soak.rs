//! Churn for a long time: claims, executions, sleep in memory and on the disk, releases, pools that change, sandboxes whose
//! shim dies, hearthd and containerd killed with -9. Then everything is as flat as after the warm-up: memory, descriptors, processes, disk;
//! and nothing has leaked. `HEARTH_SOAK_SECONDS` is how long (default 180; `make soak` 1800).
//!
//! Memory and descriptors of hearthd are those of one life: it is killed in the warm-up and at the very end, not between the
//! two looks. containerd lives through all of it.

use crate::crash::assert_no_leak;
use crate::hearthd::{
    Hearth, eventually, fresh_id, patience, patient_request, pool, processes, reach, run_in,
};
use crate::vitals::Vitals;
use hearth::api::claims_client::ClaimsClient;
use hearth::api::{
    HibernateRequest, ListClaimsRequest, Pool, ReleaseRequest, RenewRequest, Tier, UpdateStrategy,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::StatusExt;

const CALLERS: usize = 3;
/// From one fault to the next.
const FAULT_EVERY: Duration = Duration::from_secs(8);
/// The node's members when it rests.
const MEMBERS: u32 = 3;

/// How much more there may be after the churn than after the warm-up. Allocators keep what they had at their peak, the
/// journal and containerd's store grow in steps of pages; a leak of one page or descriptor a claim is beyond this in the
/// long run.
const RSS_PARTS: u64 = 8;
const RSS_BYTES: u64 = 16 << 20;
const DESCRIPTORS: usize = 8;
const PROCESSES: usize = 2;
const DISK_BYTES: u64 = 32 << 20;

/// What is counted, by what was done or why it was refused.
#[derive(Default)]
struct Done(Mutex<BTreeMap<String, u64>>);

impl Done {
    fn note(&self, what: &str) {
        *self.0.lock().unwrap().entry(what.to_owned()).or_default() += 1;
    }

    fn of(&self, what: &str) -> u64 {
        self.0.lock().unwrap().get(what).copied().unwrap_or(0)
    }
}

/// A caller that goes on over every death of hearthd.
struct Caller {
    socket: String,
    done: Arc<Done>,
    stop: Arc<AtomicBool>,
}

impl Caller {
    async fn channel(&self) -> Channel {
        reach(&self.socket, patience()).await
    }

    /// Asks until there is an answer or a refusal that is final; which it was is counted.
    async fn ask<T, F: Future<Output = Result<T, Status>>>(
        &self,
        what: &str,
        call: impl Fn(Channel) -> F,
    ) -> Option<T> {
        let began = Instant::now();
        loop {
            let status = match call(self.channel().await).await {
                Ok(answer) => {
                    self.done.note(what);
                    return Some(answer);
                }
                Err(status) => status,
            };
            let details = status.get_error_details();
            let reason = details.error_info().map(|info| info.reason.clone());
            // Without a reason it is a hearthd that died under the call.
            let again = reason.is_none() || details.retry_info().is_some();
            if !again || began.elapsed() > patience() {
                let reason = reason.unwrap_or_else(|| status.to_string());
                self.done.note(&format!("{what}: {reason}"));
                return None;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn hibernate(&self, id: &str, tier: Tier) {
        let what = match tier {
            Tier::Disk => "to the disk",
            _ => "to memory",
        };
        let call = |channel: Channel| {
            let request = HibernateRequest {
                claim_id: id.to_owned(),
                epoch: 1,
                tier: tier.into(),
                ..HibernateRequest::default()
            };
            async move { ClaimsClient::new(channel).hibernate(request).await }
        };
        self.ask(what, call).await;
    }

    /// What it wrote before is there; a sleeping sandbox wakes for that.
    async fn use_it(&self, id: &str, turn: u64) {
        let expected = format!("{turn}\n");
        let read =
            |channel: Channel| async move { run_in(channel, id, &["cat", "/root/turn"]).await };
        match self.ask("executed", read).await {
            Some((0, text)) => assert_eq!(text, expected, "what was written is there"),
            // cat's own word.
            Some((1, _)) => panic!("what was written is gone"),
            // Its sandbox ended under it.
            Some(_) => self.done.note("executed: killed"),
            None => {}
        }
    }

    async fn live(self, owner: u64) {
        let mut turn = owner;
        while !self.stop.load(Ordering::SeqCst) {
            turn += 1;
            let id = fresh_id();
            let claim = |channel: Channel| {
                let request = patient_request(&id, "python", 20);
                async move { ClaimsClient::new(channel).claim(request).await }
            };
            if self.ask("claimed", claim).await.is_some() {
                let write =
                    format!("echo {turn} > /root/turn; head -c 300000 /dev/urandom > /tmp/x");
                let write = |channel: Channel| {
                    let write = write.clone();
                    let id = &id;
                    async move { run_in(channel, id, &["sh", "-c", &write]).await }
                };
                if self.ask("executed", write).await.is_some() {
                    if turn.is_multiple_of(2) {
                        self.hibernate(&id, Tier::Memory).await;
                        self.use_it(&id, turn).await;
                    }
                    if turn.is_multiple_of(3) {
                        self.hibernate(&id, Tier::Disk).await;
                        self.use_it(&id, turn).await;
                    }
                    // Some are released as they sleep.
                    if turn.is_multiple_of(7) {
                        self.hibernate(&id, Tier::Disk).await;
                    }
                }
                let renew = |channel: Channel| {
                    let request = RenewRequest {
                        claim_id: id.clone(),
                        epoch: 1,
                        ttl: Some(prost_types::Duration {
                            seconds: 600,
                            nanos: 0,
                        }),
                    };
                    async move { ClaimsClient::new(channel).renew(request).await }
                };
                self.ask("renewed", renew).await;
            }
            // Whether or not it was told: it may be there.
            let release = |channel: Channel| {
                let request = ReleaseRequest {
                    claim_id: id.clone(),
                    epoch: 1,
                };
                async move { ClaimsClient::new(channel).release(request).await }
            };
            let released = self.ask("released", release).await;
            assert!(released.is_some(), "a release is never refused");
        }
    }
}

/// What a node costs when it rests.
#[derive(Debug)]
struct Cost {
    hearthd_bytes: u64,
    hearthd_descriptors: usize,
    containerd_bytes: u64,
    containerd_descriptors: usize,
    /// Processes that carry the node's directory in their command line: containerd, shims, runsc.
    processes: usize,
    mounts: usize,
    disk_bytes: u64,
}

/// Blocks of everything on the same file system, the logs apart: they are bounded by their own rules.
fn disk_bytes(dir: &Path, device: u64) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    let mut bytes = 0;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(about) = std::fs::symlink_metadata(entry.path()) else {
            continue;
        };
        if about.dev() != device || name == "log" || name.starts_with("audit.log") {
            continue;
        }
        bytes += about.blocks() * 512;
        if about.is_dir() {
            bytes += disk_bytes(&entry.path(), device);
        }
    }
    bytes
}

impl Cost {
    fn of(hearth: &Hearth) -> Self {
        let root = hearth.path("");
        let text = root.display().to_string();
        let text = text.trim_end_matches('/');
        let ours = |line: &[String]| line.iter().any(|word| word.contains(text));
        let containerd = processes(|line| line[0].ends_with("/containerd") && ours(line));
        assert_eq!(containerd.len(), 1, "one managed containerd");
        let containerd = Vitals::of(u32::try_from(containerd[0]).unwrap());
        let hearthd = Vitals::of(hearth.pid());
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let device = std::fs::metadata(&root).unwrap().dev();
        Self {
            hearthd_bytes: hearthd.resident_bytes(),
            hearthd_descriptors: hearthd.descriptors(),
            containerd_bytes: containerd.resident_bytes(),
            containerd_descriptors: containerd.descriptors(),
            processes: processes(ours).len(),
            mounts: mounts.lines().filter(|line| line.contains(text)).count(),
            disk_bytes: disk_bytes(&root, device),
        }
    }

    /// It is no more than before, within the tolerances.
    fn assert_flat(&self, before: &Self) {
        let memory = |before: u64| before + before / RSS_PARTS + RSS_BYTES;
        assert!(
            self.hearthd_bytes <= memory(before.hearthd_bytes),
            "hearthd's memory"
        );
        assert!(
            self.containerd_bytes <= memory(before.containerd_bytes),
            "containerd's memory"
        );
        assert!(
            self.hearthd_descriptors <= before.hearthd_descriptors + DESCRIPTORS,
            "hearthd's descriptors"
        );
        assert!(
            self.containerd_descriptors <= before.containerd_descriptors + DESCRIPTORS,
            "containerd's descriptors"
        );
        assert!(self.processes <= before.processes + PROCESSES, "processes");
        assert!(self.mounts <= before.mounts, "mounts");
        assert!(self.disk_bytes <= before.disk_bytes + DISK_BYTES, "disk");
    }
}

/// What goes wrong in a phase.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Faults {
    /// hearthd dies, and shims do.
    All,
    Shims,
}

struct Soak {
    hearth: Hearth,
    done: Arc<Done>,
    generation: u64,
}

fn declared(generation: u64) -> Vec<Pool> {
    let mut python = pool("python", MEMBERS, 16);
    python.generation = generation;
    python.running = Some(2);
    python.update_strategy = UpdateStrategy::Recreate.into();
    // Another template now and then: members made from the old one go.
    python.template.as_mut().unwrap().env =
        [("SOAK".to_owned(), (generation / 4).to_string())].into();
    vec![python]
}

impl Soak {
    async fn change_pools(&mut self) {
        self.generation += 1;
        let request = hearth::api::SetPoolsRequest {
            generation: self.generation,
            pools: declared(self.generation),
            epoch: 1,
        };
        self.hearth.pools().await.set_pools(request).await.unwrap();
        self.done.note("pools changed");
    }

    /// The shim of a sandbox that is claimed.
    async fn kill_a_shim(&self) {
        let mut client = self.hearth.claims().await;
        let Ok(listed) = client.list(ListClaimsRequest::default()).await else {
            return;
        };
        let claims = listed.into_inner().claims;
        let Some(claim) = claims.iter().find(|it| !it.sandbox_id.is_empty()) else {
            return;
        };
        let shim = processes(|line| {
            line[0].ends_with("containerd-shim-runc-v2") && line.contains(&claim.sandbox_id)
        });
        for pid in shim {
            // It may have ended by itself.
            if kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
                self.done.note("shims killed");
            }
        }
    }

    /// Churn for so long, then rest.
    async fn churn(&mut self, duration: Duration, faults: Faults) {
        let stop = Arc::new(AtomicBool::new(false));
        let callers = (0..CALLERS as u64).map(|owner| {
            let caller = Caller {
                socket: format!("unix://{}", self.hearth.path("s").display()),
                done: self.done.clone(),
                stop: stop.clone(),
            };
            tokio::spawn(caller.live(owner * 100))
        });
        let callers: Vec<_> = callers.collect();
        let began = Instant::now();
        let mut round = 0;
        while began.elapsed() < duration {
            tokio::time::sleep(FAULT_EVERY.min(duration.saturating_sub(began.elapsed()))).await;
            round += 1;
            match (faults, round % 3) {
                (Faults::All, 1) => {
                    self.hearth.kill();
                    self.hearth.restart().await;
                    self.done.note("hearthd killed");
                }
                (Faults::All, 2) => {
                    self.hearth.kill_containerd();
                    self.done.note("containerd killed");
                }
                _ => self.kill_a_shim().await,
            }
            self.change_pools().await;
        }
        stop.store(true, Ordering::SeqCst);
        for caller in callers {
            caller.await.unwrap();
        }
        self.rest().await;
    }

    async fn rest(&self) {
        eventually("it rests", || async {
            let status = self.hearth.status("python").await;
            let state = self.hearth.state();
            let sandboxes = state["sandboxes"].as_array().unwrap().len();
            (status.warm, status.claimed, status.releasing) == (MEMBERS, 0, 0)
                && (status.outdated, sandboxes) == (0, MEMBERS as usize)
        })
        .await;
        assert_no_leak(&self.hearth).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_churn_leaves_the_node_as_flat_as_it_was() {
    let seconds = std::env::var("HEARTH_SOAK_SECONDS");
    let seconds: u64 = seconds.map_or(180, |text| text.parse().expect("seconds"));
    let part = |percent: u64| Duration::from_millis(seconds * percent * 10);
    let hearth = Hearth::start_with(&[("memory.swap", "zram:1GiB"), ("log.level", "info")]).await;
    let mut soak = Soak {
        hearth,
        done: Arc::default(),
        generation: 0,
    };
    soak.change_pools().await;
    soak.rest().await;
    soak.churn(part(30), Faults::All).await;
    // The life that is looked at has its caches filled before the first look.
    soak.churn(part(25), Faults::Shims).await;
    let before = Cost::of(&soak.hearth);
    println!("after the warm-up: {before:?}");
    soak.churn(part(45), Faults::Shims).await;
    let after = Cost::of(&soak.hearth);
    println!("after {seconds} s:    {after:?}");
    println!("done: {:?}", soak.done.0.lock().unwrap());
    after.assert_flat(&before);
    for what in [
        "claimed",
        "executed",
        "to memory",
        "to the disk",
        "renewed",
        "released",
    ] {
        assert!(soak.done.of(what) > 0, "never {what}");
    }
    assert!(soak.done.of("hearthd killed") > 0, "hearthd lived on");
    let killed = soak.done.of("containerd killed");
    assert!(killed > 0, "containerd lived on");
    assert!(soak.done.of("shims killed") > 0, "no shim died");
    // What is there is adopted once more, and nothing is left behind at the end.
    soak.hearth.kill();
    soak.hearth.restart().await;
    soak.rest().await;
    soak.hearth.finish().await;
}
