//! What sleep costs and saves: claims of frozen members, RAM kept by them, the way to the disk and back beside raw
//! `runsc checkpoint` and `runsc restore` of the same sandbox, and the same again and again.

use crate::hearthd::{Hearth, claim_request, eventually, fresh_id, pool, tool};
use crate::measure::{self, Report, Series, millis};
use hearth::api::{HibernateRequest, ResumeRequest, Tier};
use hearth::cgroup::{CgroupTree, SandboxCgroup};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Members whose memory is counted; `HEARTH_BENCH_SLEEPERS`.
const SLEEPERS: u32 = 200;
const ROUNDS: u32 = 25;
/// Sandboxes, and sleeps of all of them together, in the churn; `HEARTH_BENCH_CHURN_SANDBOXES`, `HEARTH_BENCH_CHURN_ROUNDS`.
const CHURN: (u32, u32) = (50, 1000);
/// Heavy members made each way; `HEARTH_BENCH_GOLDEN`.
const GOLDEN: u32 = 12;

pub async fn section(report: &mut Report) {
    let settings = [("log.level", "warn"), ("memory.swap", "zram:4GiB")];
    let hearth = Hearth::start_with(&settings).await;
    memory_tier(report, &hearth).await;
    disk_tier(report, &hearth).await;
    churn(report, &hearth).await;
    hearth.finish().await;
    golden(report).await;
}

fn tree() -> CgroupTree {
    CgroupTree::detect("/sys/fs/cgroup").unwrap()
}

fn groups(hearth: &Hearth) -> Vec<SandboxCgroup> {
    let parent = hearth.cgroup_parent();
    let found = tree().list(&parent).unwrap().into_iter();
    found
        .map(|it| tree().sandbox(&parent, &it.pool, &it.id).unwrap())
        .collect()
}

/// A size of this run, from the environment.
pub fn number(name: &str, otherwise: u32) -> u32 {
    let text = std::env::var(name).ok();
    text.map_or(otherwise, |text| text.parse().expect("a number"))
}

/// So many members are warm, however long that takes as long as it goes on.
pub async fn full(hearth: &Hearth, pool: &str, wanted: u32) {
    let mut there = hearth.status(pool).await.warm;
    while there < wanted {
        let before = there;
        eventually("more members", || async {
            hearth.status(pool).await.warm > before
        })
        .await;
        there = hearth.status(pool).await.warm;
    }
}

/// RAM that all sandboxes have: their cgroups, the zram device, their shims.
fn all_in_mib(hearth: &Hearth) -> (f64, f64) {
    let cgroups: u64 = groups(hearth)
        .iter()
        .map(|group| group.usage().map_or(0, |usage| usage.memory_bytes))
        .sum();
    let note = std::fs::read_to_string(hearth.path("run/zram")).unwrap();
    let number = note.split_whitespace().next().unwrap();
    let stat = std::fs::read_to_string(format!("/sys/block/zram{number}/mm_stat"));
    let compressed: u64 = stat
        .unwrap()
        .split_whitespace()
        .nth(2)
        .unwrap()
        .parse()
        .unwrap();
    let root = hearth.path("").display().to_string();
    let shims = crate::hearthd::processes(|line| {
        line[0].contains("containerd-shim") && line.iter().any(|word| word.starts_with(&root))
    });
    let shims: u64 = shims.into_iter().map(pss_kib).sum();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    (
        mib(cgroups + compressed),
        mib(cgroups + compressed + (shims << 10)),
    )
}

fn pss_kib(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_default()
}

async fn memory_tier(report: &mut Report, hearth: &Hearth) {
    let wanted = number("HEARTH_BENCH_SLEEPERS", SLEEPERS);
    let mut members = pool("python", wanted, wanted + 2 * ROUNDS);
    members.max_parallel_refills = 4;
    if let Some(template) = &mut members.template {
        template.warm_command = ["python3", "-c", "pass"].map(str::to_owned).to_vec();
        template.interpreter = "python".into();
    }
    hearth.set_pools(vec![members.clone()]).await;
    full(hearth, "python", wanted).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let count = f64::from(wanted);
    let (_, running) = all_in_mib(hearth);
    members.running = Some(0);
    members.generation = 2;
    hearth.set_pools(vec![members]).await;
    eventually("all are frozen", || async {
        hearth.status("python").await.frozen == wanted
    })
    .await;
    // Both passes of the reclaim of each, at a quarter of a core.
    let mut before = f64::MAX;
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let (now, _) = all_in_mib(hearth);
        if now > before * 0.995 {
            break;
        }
        before = now;
    }
    let (own, all_in) = all_in_mib(hearth);
    report.rate(
        "idle python member, running, all-in",
        running / count,
        "MiB",
    );
    let (own, all_in) = (own / count, all_in / count);
    report.goal("  frozen, cgroup + compressed, MiB", own, "≤ 6", own <= 6.0);
    report.goal("  frozen, all-in, MiB", all_in, "≤ 8", all_in <= 8.0);
    let ratio = running / count / all_in;
    report.goal("  times less than running", ratio, "≥ 3", ratio >= 3.0);

    let mut client = hearth.claims().await;
    let (mut claims, mut held) = (Series::default(), Vec::new());
    for _ in 0..ROUNDS {
        // No refill and no reclaim is measured.
        eventually("full, frozen and quiet", || async {
            let status = hearth.status("python").await;
            status.creating == 0 && status.frozen == wanted
        })
        .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let id = fresh_id();
        let began = Instant::now();
        client.claim(claim_request(&id, "python")).await.unwrap();
        claims.push(began.elapsed());
        held.push(id);
    }
    report.row("claim of a frozen member, guest acknowledged", &claims);
    report.row("  floor: freeze and thaw by hand", &by_hand(hearth));
    let (p50, p99) = (millis(claims.at(50)), millis(claims.at(99)));
    report.goal("claim of a frozen member, p50 ms", p50, "≤ 5", p50 <= 5.0);
    report.goal("claim of a frozen member, p99 ms", p99, "≤ 15", p99 <= 15.0);
    for id in held {
        hearth.release(&id).await;
    }
}

/// Members that sleep anyway: thawed and frozen.
fn by_hand(hearth: &Hearth) -> Series {
    let mut series = Series::default();
    let limit = Duration::from_secs(2);
    let frozen = |group: &&SandboxCgroup| group.is_frozen().unwrap_or_default();
    for group in groups(hearth).iter().filter(frozen).take(10) {
        let began = Instant::now();
        group.thaw(limit).unwrap();
        group.freeze(limit).unwrap();
        series.push(began.elapsed());
    }
    series
}

async fn to_disk(hearth: &Hearth, claim: &str) -> Duration {
    let request = HibernateRequest {
        claim_id: claim.to_owned(),
        epoch: 1,
        tier: Tier::Disk.into(),
        ..HibernateRequest::default()
    };
    let mut client = hearth.claims().await;
    let began = Instant::now();
    client.hibernate(request).await.unwrap();
    began.elapsed()
}

async fn back(hearth: &Hearth, claim: &str) -> Duration {
    let request = ResumeRequest {
        claim_id: claim.to_owned(),
        epoch: 1,
    };
    let mut client = hearth.claims().await;
    let began = Instant::now();
    client.resume(request).await.unwrap();
    began.elapsed()
}

async fn disk_tier(report: &mut Report, hearth: &Hearth) {
    let few = pool("few", 12, 40);
    hearth.set_pools(vec![few]).await;
    hearth.warm("few", 12).await;
    let (mut down, mut up) = (Series::default(), Series::default());
    let (mut raw_down, mut raw_up) = (Series::default(), Series::default());
    for _ in 0..10 {
        let (claim, answer) = hearth.claim("few").await;
        hearth
            .start_detached(&claim, &["python3", "-c", "import time; time.sleep(10**6)"])
            .await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (checkpoint, restore) = raw(hearth, &answer.sandbox_id);
        raw_down.push(checkpoint);
        raw_up.push(restore);
        down.push(to_disk(hearth, &claim).await);
        tokio::time::sleep(Duration::from_millis(500)).await;
        up.push(back(hearth, &claim).await);
        hearth.release(&claim).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    report.row("to the disk: sealed, durable", &down);
    report.row("  peer: runsc checkpoint, to a tmpfs", &raw_down);
    report.row("back from the disk, its guest answers", &up);
    report.row("  peer: runsc restore, from a tmpfs", &raw_up);
    for (what, ours, theirs) in [("to the disk", &down, &raw_down), ("back", &up, &raw_up)] {
        let ratio = millis(ours.at(50)) / millis(theirs.at(50));
        let what = format!("{what}, against raw runsc");
        report.goal(&what, ratio, "≤ 1.2", ratio <= 1.2);
    }
}

/// `runsc checkpoint` of a living sandbox, which stays, and `runsc restore` of that image under another id.
fn raw(hearth: &Hearth, sandbox: &str) -> (Duration, Duration) {
    let image = hearth.path("run/images").join("raw");
    let root = hearth.path("run/runsc/hearth");
    let run = |root: &Path, words: &[&str]| {
        let mut command = Command::new(tool("runsc"));
        command.arg(format!("--root={}", root.display())).args([
            "--platform=systrap",
            "--network=none",
            "--overlay2=root:self,size=1073741824",
        ]);
        // What a restored sandbox inherits stays open: a pipe would never end.
        let told = hearth.path("raw.log");
        let log = std::fs::File::create(&told).unwrap();
        let command = command.args(words).stdin(Stdio::null());
        let command = command.stdout(log.try_clone().unwrap()).stderr(log);
        let began = Instant::now();
        let status = command.status().unwrap();
        let took = began.elapsed();
        let said = || std::fs::read_to_string(&told).unwrap_or_default();
        assert!(status.success(), "{words:?}: {}", said());
        took
    };
    let path = format!("--image-path={}", image.display());
    let checkpoint = run(&root, &["checkpoint", "--leave-running", &path, sandbox]);
    let own = hearth.path("raw");
    let bundle = bundle(hearth, sandbox, &own);
    let bundle = format!("--bundle={}", bundle.display());
    let restore = run(&own, &["restore", "--detach", &bundle, &path, "raw"]);
    run(&own, &["delete", "--force", "raw"]);
    let null = own.join("null-netns");
    if null.exists() {
        let unmounted = Command::new("umount").arg(&null).status().unwrap();
        assert!(unmounted.success());
    }
    std::fs::remove_dir_all(own).unwrap();
    std::fs::remove_dir_all(image).unwrap();
    (checkpoint, restore)
}

/// The sandbox's own bundle, in another cgroup.
fn bundle(hearth: &Hearth, sandbox: &str, own: &Path) -> PathBuf {
    let root = hearth.path("").display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let rootfs = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .find(|point| {
            point.starts_with(&root) && point.contains(sandbox) && point.ends_with("/rootfs")
        })
        .expect("its rootfs");
    let config = Path::new(rootfs).parent().unwrap().join("config.json");
    let text = std::fs::read(config).unwrap();
    let mut spec: serde_json::Value = serde_json::from_slice(&text).unwrap();
    spec["root"]["path"] = rootfs.into();
    spec["linux"]["cgroupsPath"] = format!("{}/raw/raw", hearth.cgroup_parent()).into();
    let bundle = own.join("bundle");
    std::fs::create_dir_all(&bundle).unwrap();
    std::fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
    bundle
}

async fn churn(report: &mut Report, hearth: &Hearth) {
    let count = number("HEARTH_BENCH_CHURN_SANDBOXES", CHURN.0);
    let rounds = number("HEARTH_BENCH_CHURN_ROUNDS", CHURN.1).div_ceil(count);
    let mut few = pool("churn", 1, count + 1);
    few.max_parallel_refills = 2;
    hearth.set_pools(vec![few]).await;
    let mut claims = Vec::new();
    for _ in 0..count {
        hearth.warm("churn", 1).await;
        claims.push(hearth.claim("churn").await.0);
    }
    hearth.warm("churn", 1).await;
    let (census, fds) = (hearth.census(), measure::open_files(hearth.pid()));
    let resident = measure::resident_mib(hearth.pid());
    let began = Instant::now();
    for _ in 0..rounds {
        // Each call must succeed, or the bench ends here.
        let sinks = claims.iter().map(|claim| to_disk(hearth, claim));
        futures::future::join_all(sinks).await;
        let wakes = claims.iter().map(|claim| back(hearth, claim));
        futures::future::join_all(wakes).await;
    }
    let done = f64::from(rounds) * f64::from(count);
    let rate = done / began.elapsed().as_secs_f64();
    let what = format!("to the disk and back, {done} times, {count} at once");
    report.rate(&what, rate, "rounds/s");
    for claim in &claims {
        let (code, _) = hearth.run(claim, &["true"]).await;
        assert_eq!(code, 0);
    }
    let (_, metrics) = hearth.admin_page("/metrics");
    let failed = metrics.lines().filter_map(|line| {
        let line = line.strip_prefix("hearth_residency_failures_total{")?;
        line.rsplit(' ').next()?.parse::<f64>().ok()
    });
    let failed: f64 = failed.sum();
    report.goal("  failures", failed, "0", failed == 0.0);
    let left = std::fs::read_dir(hearth.path("data/hibernated")).map_or(0, Iterator::count);
    let strange = usize::from(hearth.census() != census) + left;
    report.goal(
        "  images and sandboxes left over",
        strange as f64,
        "0",
        strange == 0,
    );
    let more = measure::open_files(hearth.pid()).saturating_sub(fds);
    report.goal(
        "  more open files of hearthd",
        more as f64,
        "≤ 8",
        more <= 8,
    );
    let grown = measure::resident_mib(hearth.pid()) - resident;
    report.rate("  more resident memory of hearthd", grown, "MiB");
    for claim in &claims {
        hearth.release(claim).await;
    }
}

/// Members that import what takes a second: made anew, and cloned.
async fn golden(report: &mut Report) {
    let count = number("HEARTH_BENCH_GOLDEN", GOLDEN);
    let mut took = Vec::new();
    for mode in ["off", "auto"] {
        let settings = [("log.level", "warn"), ("hibernation.golden_images", mode)];
        let hearth = Hearth::start_with(&settings).await;
        let mut heavy = pool("heavy", 1, 3 * count);
        heavy.max_parallel_refills = 2;
        if let Some(template) = &mut heavy.template {
            // What there is of the standard library: no numpy is at hand; as there, most of it is reading and running
            // modules. The time of both ways is told beside the ratio.
            let import = "import sys\nfor name in sorted(sys.stdlib_module_names):\n  if name not in ('antigravity', 'this', 'idlelib', 'turtle'):\n    try: __import__(name)\n    except Exception: pass";
            template.warm_command = ["python3", "-c", import].map(str::to_owned).to_vec();
            template.interpreter = "python".into();
        }
        heavy.min_warm = count;
        hearth.set_pools(vec![heavy]).await;
        full(&hearth, "heavy", count).await;
        let (_, metrics) = hearth.admin_page("/metrics");
        let figure = |name: &str| -> f64 {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim().parse().unwrap()
        };
        took.push(match mode {
            "off" => {
                figure("hearth_refill_duration_seconds_sum{pool=\"heavy\"}")
                    / figure("hearth_refill_duration_seconds_count{pool=\"heavy\"}")
            }
            _ => {
                figure("hearth_clone_duration_seconds_sum")
                    / figure("hearth_clone_duration_seconds_count")
            }
        });
        hearth.finish().await;
    }
    report.rate("refill of a heavy template, made anew", took[0] * 1e3, "ms");
    report.rate("  cloned from a golden image", took[1] * 1e3, "ms");
    let ratio = took[0] / took[1];
    report.goal(
        "golden refill, times faster than cold",
        ratio,
        "≥ 2",
        ratio >= 2.0,
    );
}
