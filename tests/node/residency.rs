//! The memory tier on a real node: freeze, reclaim to a zram device of the test's own, thaw on claim and on use, deaths
//! of hearthd and of containerd in between.

use crate::hearthd::{Hearth, eventually, patient, pool};
use hearth::api::{
    ClaimState, HibernateReason, HibernateRequest, Pool, ResumeRequest, Source, StatsRequest, Tier,
};
use hearth::cgroup::{CgroupTree, SandboxCgroup};
use std::time::{Duration, Instant};

const SWAP: (&str, &str) = ("memory.swap", "zram:1GiB");

fn tiers(min_warm: u32, running: u32) -> Pool {
    let mut tiers = pool("python", min_warm, 32);
    tiers.running = Some(running);
    tiers
}

pub fn cgroup(hearth: &Hearth, sandbox: &str) -> SandboxCgroup {
    let tree = CgroupTree::detect("/sys/fs/cgroup").unwrap();
    let found = tree.find(&hearth.cgroup_parent(), sandbox).unwrap();
    found.expect("the sandbox's cgroup")
}

fn is_frozen(hearth: &Hearth, sandbox: &str) -> bool {
    cgroup(hearth, sandbox).is_frozen().unwrap()
}

async fn frozen(hearth: &Hearth, count: u32) {
    eventually(&format!("{count} frozen members"), || async {
        hearth.status("python").await.frozen == count
    })
    .await;
}

async fn hibernate(hearth: &Hearth, claim: &str) {
    let request = HibernateRequest {
        claim_id: claim.to_owned(),
        epoch: 1,
        tier: Tier::Memory.into(),
        reason: HibernateReason::WaitingOnModel.into(),
    };
    hearth.claims().await.hibernate(request).await.unwrap();
}

pub async fn resume(hearth: &Hearth, claim: &str) {
    let request = ResumeRequest {
        claim_id: claim.to_owned(),
        epoch: 1,
    };
    hearth.claims().await.resume(request).await.unwrap();
}

/// Starts a python that counts, ten times a second.
async fn count(hearth: &Hearth, claim: &str) {
    let script = "import os,time\nballast=bytearray(os.urandom(1<<20)*20)\nn=0\nwhile True:\n  n+=1\n  with open('/tmp/m','w') as f: f.write(str(n))\n  os.replace('/tmp/m','/tmp/n')\n  time.sleep(.1)";
    hearth
        .start_detached(claim, &["python3", "-c", script])
        .await;
    eventually("it counts", || async { counted(hearth, claim).await > 2 }).await;
}

async fn counted(hearth: &Hearth, claim: &str) -> u64 {
    let (_, text) = hearth.run(claim, &["cat", "/tmp/n"]).await;
    text.parse().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_keeps_few_running_and_a_claim_thaws_the_others() {
    let hearth = Hearth::start_with(&[SWAP]).await;
    hearth.set_pools(vec![tiers(4, 1)]).await;
    hearth.warm("python", 4).await;
    frozen(&hearth, 3).await;
    let mut asleep: Vec<String> = Vec::new();
    eventually("all three are frozen", || {
        let state = hearth.state();
        let sandboxes = state["sandboxes"].as_array().unwrap().iter();
        let frozen = sandboxes.filter(|it| it["residency"] == "frozen");
        asleep = frozen
            .map(|it| it["id"].as_str().unwrap().to_owned())
            .collect();
        let all = asleep.len() == 3;
        async move { all }
    })
    .await;
    for sandbox in &asleep {
        assert!(is_frozen(&hearth, sandbox));
        let resident = || cgroup(&hearth, sandbox).usage().unwrap().memory_bytes;
        eventually("reclaimed", || async { resident() < 6 << 20 }).await;
    }
    let (first, answer) = hearth.claim("python").await;
    assert_eq!(answer.source(), Source::Warm, "a running one first");
    let (second, answer) = hearth.claim("python").await;
    assert_eq!(answer.source(), Source::Thawed);
    println!("claim of a frozen member: {:?}", answer.timings);
    assert!(!is_frozen(&hearth, &answer.sandbox_id));
    assert!(asleep.contains(&answer.sandbox_id));
    for claim in [&first, &second] {
        let (code, text) = hearth.run(claim, &["python3", "-c", "print(6*7)"]).await;
        assert_eq!((code, text.as_str()), (0, "42\n"));
    }
    // And the pool comes back to what was declared.
    hearth.warm("python", 4).await;
    frozen(&hearth, 3).await;
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claimed_sandbox_sleeps_and_any_use_wakes_it() {
    let hearth = Hearth::start_with(&[SWAP]).await;
    hearth.set_pools(vec![pool("python", 1, 4)]).await;
    hearth.warm("python", 1).await;
    let (claim, answer) = hearth.claim("python").await;
    let sandbox = answer.sandbox_id;
    count(&hearth, &claim).await;
    let before = cgroup(&hearth, &sandbox).usage().unwrap();
    hibernate(&hearth, &claim).await;
    hibernate(&hearth, &claim).await;
    assert_eq!(hearth.get(&claim).await.state(), ClaimState::Hibernated);
    assert!(is_frozen(&hearth, &sandbox));
    let usage = || cgroup(&hearth, &sandbox).usage().unwrap();
    eventually("its memory goes to swap", || async {
        usage().memory_bytes < before.memory_bytes / 4 && usage().swap_bytes > 10 << 20
    })
    .await;
    let after = usage();
    println!(
        "counter: {} KiB running, {} KiB frozen + {} KiB in swap before compression",
        before.memory_bytes >> 10,
        after.memory_bytes >> 10,
        after.swap_bytes >> 10
    );
    let slept = {
        resume(&hearth, &claim).await;
        assert_eq!(hearth.get(&claim).await.state(), ClaimState::Claimed);
        counted(&hearth, &claim).await
    };
    eventually("it goes on", || async {
        counted(&hearth, &claim).await > slept
    })
    .await;
    // A use wakes it as well, and so does a question for its figures.
    hibernate(&hearth, &claim).await;
    assert!(counted(&hearth, &claim).await >= slept);
    hibernate(&hearth, &claim).await;
    let request = StatsRequest {
        claim_id: claim.clone(),
        ..StatsRequest::default()
    };
    let stats = hearth.sandboxes().await.stats(request).await.unwrap();
    assert!(stats.into_inner().guest_processes >= 1);
    assert!(!is_frozen(&hearth, &sandbox));
    // A sleeping one is released like any other.
    hibernate(&hearth, &claim).await;
    hearth.release(&claim).await;
    eventually("it is gone", || async {
        !hearth.census().tasks.contains(&sandbox)
    })
    .await;
    let (_, metrics) = hearth.admin_page("/metrics");
    for wanted in [
        "hearth_freezes_total{cause=\"waiting_on_model\"} 4",
        "hearth_thaws_total{cause=\"asked\"} 1",
        "hearth_thaws_total{cause=\"used\"} 2",
    ] {
        assert!(metrics.contains(wanted), "{wanted} is not in\n{metrics}");
    }
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_claim_falls_asleep_by_itself_and_one_in_use_does_not() {
    let hearth = Hearth::start_with(&[SWAP]).await;
    let mut sleepy = pool("python", 2, 4);
    sleepy.template.as_mut().unwrap().idle_after = Some(prost_types::Duration {
        seconds: 2,
        nanos: 0,
    });
    hearth.set_pools(vec![sleepy]).await;
    hearth.warm("python", 2).await;
    let (idle, _) = hearth.claim("python").await;
    let (used, _) = hearth.claim("python").await;
    let busy = ["python3", "-c", "while True: pass"];
    hearth.start_detached(&used, &busy).await;
    eventually("the idle one sleeps", || async {
        hearth.get(&idle).await.state() == ClaimState::Hibernated
    })
    .await;
    assert_eq!(hearth.get(&used).await.state(), ClaimState::Claimed);
    let (code, _) = hearth.run(&idle, &["true"]).await;
    assert_eq!(code, 0);
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sleeps_outlives_hearthd_and_delays_no_restart_of_containerd() {
    let mut hearth = Hearth::start_with(&[SWAP]).await;
    hearth.set_pools(vec![tiers(6, 0)]).await;
    hearth.warm("python", 6).await;
    frozen(&hearth, 6).await;
    let (claim, answer) = hearth.claim("python").await;
    count(&hearth, &claim).await;
    hibernate(&hearth, &claim).await;
    hearth.warm("python", 6).await;
    frozen(&hearth, 6).await;

    hearth.kill();
    let took = hearth.restart().await;
    println!("hearthd restarted beside 7 frozen sandboxes in {took:?}");
    assert_eq!(hearth.get(&claim).await.state(), ClaimState::Hibernated);
    assert!(is_frozen(&hearth, &answer.sandbox_id));
    let status = hearth.status("python").await;
    assert_eq!((status.warm, status.frozen, status.hibernated), (6, 6, 1));

    // containerd asks every shim for its pids; a frozen sandbox must not make it wait 5 s each.
    let began = Instant::now();
    hearth.kill_containerd();
    eventually("containerd is back", || async {
        hearth.phase().await.as_deref() == Some("degraded")
    })
    .await;
    eventually("ready again", || async {
        hearth.phase().await.as_deref() == Some("ready")
    })
    .await;
    let took = began.elapsed();
    println!("containerd restarted beside 7 frozen sandboxes in {took:?}");
    assert!(took < patient(Duration::from_secs(20)), "{took:?}");
    assert_eq!(hearth.get(&claim).await.state(), ClaimState::Hibernated);
    let slept = counted(&hearth, &claim).await;
    eventually("it goes on", || async {
        counted(&hearth, &claim).await > slept
    })
    .await;
    hearth.finish().await;
}

/// Hibernate and Resume under way when hearthd dies, again and again.
#[tokio::test(flavor = "multi_thread")]
async fn kill_9_in_the_middle_of_freezes_and_thaws_loses_nothing() {
    const KILLS: u64 = 10;
    let mut hearth = Hearth::start_with(&[SWAP]).await;
    hearth.set_pools(vec![tiers(3, 0)]).await;
    hearth.warm("python", 3).await;
    let mut claims = Vec::new();
    for _ in 0..3 {
        let (claim, _) = hearth.claim("python").await;
        count(&hearth, &claim).await;
        let forks = ["sh", "-c", "while :; do sleep 0.02; done"];
        hearth.start_detached(&claim, &forks).await;
        claims.push(claim);
    }
    let mut slept = Vec::new();
    for round in 0..KILLS {
        let calls: Vec<_> = claims
            .iter()
            .map(|claim| {
                let request = HibernateRequest {
                    claim_id: claim.clone(),
                    epoch: 1,
                    ..HibernateRequest::default()
                };
                let wake = ResumeRequest {
                    claim_id: claim.clone(),
                    epoch: 1,
                };
                let connect = hearth.claims();
                async move {
                    let mut client = connect.await;
                    for _ in 0..50 {
                        // hearthd dies under these: an error is as good as an answer.
                        let _answer = client.hibernate(request.clone()).await;
                        let _answer = client.resume(wake.clone()).await;
                    }
                }
            })
            .collect();
        let callers = futures::future::join_all(calls);
        // Moments spread over commits, freezes, thaws and reclaims.
        let moment = Duration::from_micros(1_500 + round * 7_777);
        let _cut_short = tokio::time::timeout(moment, callers).await;
        hearth.kill();
        slept.push(hearth.restart().await);
        for claim in &claims {
            let state = hearth.get(claim).await.state();
            let known = [ClaimState::Claimed, ClaimState::Hibernated];
            assert!(known.contains(&state), "{claim}: {state:?}");
            let before = counted(&hearth, claim).await;
            eventually("it goes on", || async {
                counted(&hearth, claim).await > before
            })
            .await;
        }
    }
    slept.sort();
    println!(
        "{KILLS} kills; start to ready at most {:?}",
        slept[slept.len() - 1]
    );
    hearth.warm("python", 3).await;
    frozen(&hearth, 3).await;
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_zram_device_is_hearthds_own_and_goes_with_it() {
    let swaps = || std::fs::read_to_string("/proc/swaps").unwrap();
    let devices = || {
        let all = std::fs::read_dir("/sys/block").unwrap();
        let names = all.map(|it| it.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("zram")).count()
    };
    let mut hearth = Hearth::start_with(&[("memory.swap", "zram:128MiB")]).await;
    let number = zram(&hearth).unwrap();
    let device = format!("/dev/zram{number} ");
    assert!(swaps().contains(&device), "{}", swaps());
    // It stays while hearthd is away, and is known again.
    hearth.kill();
    assert!(swaps().contains(&device));
    hearth.restart().await;
    assert_eq!(zram(&hearth), Some(number));
    assert!(devices() >= 1);
    hearth.finish().await;
    assert!(!swaps().contains(&device), "{}", swaps());
}

/// The number of hearthd's zram device, if its note names one.
fn zram(hearth: &Hearth) -> Option<u32> {
    let note = std::fs::read_to_string(hearth.path("run/zram")).ok()?;
    note.split_whitespace().next()?.parse().ok()
}

fn zram_bytes(number: u32) -> Option<u64> {
    let size = std::fs::read_to_string(format!("/sys/block/zram{number}/disksize")).ok()?;
    size.trim().parse().ok()
}

/// A zram device that hearthd has not made.
struct Theirs(u32);

impl Theirs {
    fn add() -> Self {
        let number = std::fs::read_to_string("/sys/class/zram-control/hot_add").unwrap();
        Self(number.trim().parse().unwrap())
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        let _gone = std::fs::write("/sys/class/zram-control/hot_remove", self.0.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_swap_is_what_the_configuration_says_and_nobody_elses_device_is_touched() {
    let mut hearth = Hearth::start_with(&[("memory.swap", "zram:128MiB")]).await;
    assert_eq!(zram_bytes(zram(&hearth).unwrap()), Some(128 << 20));
    let mut with = async |swap: &str| {
        hearth.kill();
        hearth.set("memory.swap", swap);
        hearth.restart().await;
        zram(&hearth)
    };
    // Another size is another device.
    let other = with("zram:192MiB").await.unwrap();
    assert_eq!(zram_bytes(other), Some(192 << 20));
    assert_eq!(with("existing").await, None);
    assert!(with("zram:128MiB").await.is_some());
    assert_eq!(with("none").await, None);
    let taken_down = hearth.log_text().matches("zram device taken down").count();
    assert_eq!(taken_down, 3);

    // What is frozen keeps its memory then.
    hearth.set_pools(vec![tiers(1, 0)]).await;
    hearth.warm("python", 1).await;
    frozen(&hearth, 1).await;
    let asleep = || {
        let state = hearth.state();
        let sandboxes = state["sandboxes"].as_array().unwrap().iter();
        let mut frozen = sandboxes.filter(|it| it["residency"] == "frozen");
        frozen
            .next()
            .map(|it| it["id"].as_str().unwrap().to_owned())
    };
    eventually("it is frozen", || async { asleep().is_some() }).await;
    let resident = || cgroup(&hearth, &asleep().unwrap()).usage().unwrap();
    let before = resident().memory_bytes;
    // Both passes of a reclaim would be over.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(resident().memory_bytes > before / 2, "its memory was taken");

    // A note of an earlier boot, or of a hearthd that wrote no boot, names a number that was given to somebody else since.
    for note in ["{} 5bd7c3ba-0000-4000-8000-3f3b1c1e8f6a", "{}\n"] {
        let theirs = Theirs::add();
        hearth.kill();
        let note = note.replace("{}", &theirs.0.to_string());
        std::fs::write(hearth.path("run/zram"), note).unwrap();
        hearth.restart().await;
        assert_eq!(zram(&hearth), None);
        assert_eq!(zram_bytes(theirs.0), Some(0), "somebody's device is gone");
    }
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_nodes_budget_the_longest_idle_one_is_frozen() {
    // Enough for one of the two and all that is small, not for both.
    let budget = (220u64 << 20).to_string();
    let hearth = Hearth::start_with(&[SWAP, ("memory.budget_bytes", &budget)]).await;
    hearth.set_pools(vec![pool("python", 2, 2)]).await;
    hearth.warm("python", 2).await;
    let (idle, answer) = hearth.claim("python").await;
    let (used, _) = hearth.claim("python").await;
    hearth.hold(&idle, 130).await;
    let (_, metrics) = hearth.admin_page("/metrics");
    assert!(metrics.contains("hearth_memory_short_total 0"), "{metrics}");
    hearth.hold(&used, 130).await;
    eventually("the idle one sleeps", || async {
        // Whoever is used is never frozen, however short memory is.
        assert_eq!(hearth.run(&used, &["true"]).await.0, 0);
        hearth.get(&idle).await.state() == ClaimState::Hibernated
    })
    .await;
    assert_eq!(hearth.get(&used).await.state(), ClaimState::Claimed);
    // What callers see is what was decided; the kernel follows.
    eventually("it is frozen", || async {
        is_frozen(&hearth, &answer.sandbox_id)
    })
    .await;
    let (_, metrics) = hearth.admin_page("/metrics");
    let counted = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    assert_eq!(counted("hearth_freezes_total{cause=\"pressure\"}"), 1);
    assert!(counted("hearth_memory_short_total") >= 1);
    // Its memory goes to swap; a use has it back.
    let resident = || cgroup(&hearth, &answer.sandbox_id).usage().unwrap();
    eventually("its memory is taken", || async {
        resident().memory_bytes < 40 << 20
    })
    .await;
    assert_eq!(hearth.run(&idle, &["true"]).await.0, 0);
    hearth.finish().await;
}

/// The same two verbs over and over, with work in between.
#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_sleeps_and_wakes_harm_nobody() {
    const ROUNDS: u64 = 60;
    let hearth = Hearth::start_with(&[SWAP]).await;
    hearth.set_pools(vec![pool("python", 4, 8)]).await;
    hearth.warm("python", 4).await;
    let mut claims = Vec::new();
    for _ in 0..4 {
        let (claim, _) = hearth.claim("python").await;
        count(&hearth, &claim).await;
        // Something that starts processes all the time: a freeze in the middle of that is what hurts.
        let forks = ["sh", "-c", "while :; do sleep 0.02; done"];
        hearth.start_detached(&claim, &forks).await;
        claims.push(claim);
    }
    for round in 0..ROUNDS {
        for claim in &claims {
            hibernate(&hearth, claim).await;
        }
        // Some are woken before, some in the middle of, some after their memory was taken.
        if round % 3 == 0 {
            tokio::time::sleep(Duration::from_millis(round * 37 % 400)).await;
        }
        for claim in &claims {
            resume(&hearth, claim).await;
            assert!(counted(&hearth, claim).await > 0);
        }
    }
    hearth.finish().await;
}
