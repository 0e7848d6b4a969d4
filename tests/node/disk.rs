//! The disk tier on a real node: checkpoint, restore, deaths in between, damage, a reboot.

use crate::hearthd::{Hearth, claim_request, eventually, factor, fresh_id, patience, pool};
use crate::hostile::reason;
use crate::residency::cgroup;
use hearth::api::{
    ClaimState, HibernateReason, HibernateRequest, OnDataLoss, ResumeRequest, Source, Tier,
};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

async fn try_sink(hearth: &Hearth, claim: &str) -> Result<(), tonic::Status> {
    let request = HibernateRequest {
        claim_id: claim.to_owned(),
        epoch: 1,
        tier: Tier::Disk.into(),
        reason: HibernateReason::WaitingOnHuman.into(),
    };
    let answer = hearth.claims().await.hibernate(request).await;
    answer.map(drop)
}

async fn sink(hearth: &Hearth, claim: &str) {
    joined(async || try_sink(hearth, claim).await)
        .await
        .unwrap();
}

async fn resume(hearth: &Hearth, claim: &str) {
    joined(async || try_resume(hearth, claim).await)
        .await
        .unwrap();
}

/// As a client does it: a call whose time is over went on, and the same call again joins it.
async fn joined<F: AsyncFn() -> Result<(), tonic::Status>>(call: F) -> Result<(), tonic::Status> {
    let began = Instant::now();
    loop {
        match call().await {
            Err(status)
                if status.code() == tonic::Code::DeadlineExceeded
                    && began.elapsed() < patience() => {}
            answer => return answer,
        }
    }
}

async fn try_resume(hearth: &Hearth, claim: &str) -> Result<(), tonic::Status> {
    let request = ResumeRequest {
        claim_id: claim.to_owned(),
        epoch: 1,
    };
    hearth.claims().await.resume(request).await.map(drop)
}

/// Starts a python that counts, ten times a second, with a file open and deleted that it reads from.
pub async fn count(hearth: &Hearth, claim: &str) {
    let script = "import os,time\nopen('/root/kept','w').write('from an open file')\nkept=open('/root/kept')\nos.unlink('/root/kept')\nballast=bytearray(os.urandom(1<<20)*20)\nn=0\nwhile True:\n  n+=1\n  kept.seek(0)\n  with open('/tmp/m','w') as f: f.write(f'{n} {os.getpid()} {kept.read()}')\n  os.replace('/tmp/m','/tmp/n')\n  time.sleep(.1)";
    hearth
        .start_detached(claim, &["python3", "-c", script])
        .await;
    eventually("it counts", || async { counted(hearth, claim).await.0 > 2 }).await;
}

/// How far it has come, and which process it is.
pub async fn counted(hearth: &Hearth, claim: &str) -> (u64, String) {
    let (_, text) = hearth.run(claim, &["cat", "/tmp/n"]).await;
    let (number, rest) = text.split_once(' ').unwrap_or(("0", ""));
    (number.parse().unwrap_or(0), rest.to_owned())
}

/// More than it can count from a look at it until it sleeps, and again from its waking to the next look: ten a second, 5 s.
fn counts_awake() -> u64 {
    u64::from(50 * factor())
}

pub async fn goes_on(hearth: &Hearth, claim: &str) {
    let before = counted(hearth, claim).await;
    eventually("it goes on", || async {
        counted(hearth, claim).await.0 > before.0
    })
    .await;
}

pub fn image(hearth: &Hearth, sandbox: &str) -> PathBuf {
    hearth.path("data/hibernated").join(sandbox)
}

fn manifest(hearth: &Hearth, sandbox: &str) -> PathBuf {
    image(hearth, sandbox).join("manifest.json")
}

/// Nothing of it runs, and it is an image.
pub async fn is_on_disk(hearth: &Hearth, sandbox: &str) {
    assert!(manifest(hearth, sandbox).exists());
    eventually("nothing of it runs", || async {
        let census = hearth.census();
        !census.tasks.contains(sandbox)
            && !census.cgroups.contains(sandbox)
            && !census.dirs.contains(sandbox)
    })
    .await;
}

fn size(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .map(|it| it.unwrap().metadata().unwrap().size())
        .sum()
}

fn contains(dir: &Path, needle: &[u8]) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => contains(&path, needle),
            false => {
                let content = std::fs::read(path).unwrap();
                content.windows(needle.len()).any(|it| it == needle)
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_goes_to_the_disk_and_comes_back_as_it_was() {
    let hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 1, 4)]).await;
    hearth.warm("python", 1).await;
    let (claim, answer) = hearth.claim("python").await;
    let sandbox = answer.sandbox_id;
    count(&hearth, &claim).await;
    let canary = "canary-0f8e2d-secret";
    let keep = format!("import time; secret={canary:?}; time.sleep(10**6)");
    hearth
        .start_detached(&claim, &["python3", "-c", &keep])
        .await;
    hearth
        .run(
            &claim,
            &[
                "sh",
                "-c",
                "echo written > /root/file; hostname mine || true",
            ],
        )
        .await;
    let (before, process) = counted(&hearth, &claim).await;
    let began = Instant::now();
    sink(&hearth, &claim).await;
    println!("to the disk in {:?}", began.elapsed());
    sink(&hearth, &claim).await;
    assert_eq!(hearth.get(&claim).await.state(), ClaimState::Hibernated);
    is_on_disk(&hearth, &sandbox).await;
    let bytes = size(&image(&hearth, &sandbox));
    println!("an image of {} KiB", bytes >> 10);
    assert!(bytes > 20 << 20, "its memory is in it");
    assert!(!contains(
        &hearth.path("data/hibernated"),
        canary.as_bytes()
    ));
    // To look at it wakes nobody.
    let request = hearth::api::StatsRequest {
        claim_id: claim.clone(),
        host_only: true,
    };
    let stats = hearth.sandboxes().await.stats(request).await.unwrap();
    assert!(stats.into_inner().image_bytes > 20 << 20);
    assert_eq!(hearth.get(&claim).await.state(), ClaimState::Hibernated);
    let (_, metrics) = hearth.admin_page("/metrics");
    assert!(metrics.contains("hearth_images 1\n"), "{metrics}");
    let staged = std::fs::read_dir(hearth.path("run/images")).unwrap();
    assert_eq!(staged.count(), 0, "nothing is left in plain");

    // Two at once: one restore.
    let began = Instant::now();
    tokio::join!(resume(&hearth, &claim), resume(&hearth, &claim));
    println!("back from the disk in {:?}", began.elapsed());
    let (after, same) = counted(&hearth, &claim).await;
    assert_eq!(same, process, "the same process, its file open");
    assert!(
        (before..before + counts_awake()).contains(&after),
        "{before} → {after}"
    );
    goes_on(&hearth, &claim).await;
    let (_, text) = hearth.run(&claim, &["cat", "/root/file"]).await;
    assert_eq!(text, "written\n");
    eventually("the image is deleted", || async {
        !image(&hearth, &sandbox).exists()
    })
    .await;
    let (_, metrics) = hearth.admin_page("/metrics");
    for wanted in [
        "hearth_sinks_total{cause=\"waiting_on_human\"} 1",
        "hearth_restores_total{cause=\"asked\"} 1",
    ] {
        assert!(metrics.contains(wanted), "{wanted} is not in\n{metrics}");
    }

    // A use wakes it as well; so does it from the one tier to the other.
    sink(&hearth, &claim).await;
    goes_on(&hearth, &claim).await;
    let request = HibernateRequest {
        claim_id: claim.clone(),
        epoch: 1,
        tier: Tier::Memory.into(),
        ..HibernateRequest::default()
    };
    hearth.claims().await.hibernate(request).await.unwrap();
    sink(&hearth, &claim).await;
    is_on_disk(&hearth, &sandbox).await;
    goes_on(&hearth, &claim).await;
    // And a sleeping one is released like any other.
    sink(&hearth, &claim).await;
    hearth.release(&claim).await;
    eventually("all of it is gone", || async {
        !image(&hearth, &sandbox).exists() && !hearth.census().containers.contains(&sandbox)
    })
    .await;
    hearth.finish().await;
}

/// Everything of the node ends, its run directories go, and all starts anew: what a reboot does.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_the_disk_survives_a_reboot() {
    let mut hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 1, 4)]).await;
    hearth.warm("python", 1).await;
    let (claim, answer) = hearth.claim("python").await;
    count(&hearth, &claim).await;
    let (before, process) = counted(&hearth, &claim).await;
    sink(&hearth, &claim).await;
    is_on_disk(&hearth, &answer.sandbox_id).await;
    hearth.reboot().await;
    assert_eq!(hearth.get(&claim).await.state(), ClaimState::Hibernated);
    resume(&hearth, &claim).await;
    let (after, same) = counted(&hearth, &claim).await;
    assert_eq!(same, process);
    assert!(
        (before..before + counts_awake()).contains(&after),
        "{before} → {after}"
    );
    goes_on(&hearth, &claim).await;
    hearth.finish().await;
}

/// hearth-init and runsc in files of the test's own, which are exchanged as an upgrade in place does it.
struct Programs(tempfile::TempDir);

/// As long as it lives another program is there; then the old file is back.
struct Exchanged {
    path: PathBuf,
    kept: PathBuf,
}

impl Drop for Exchanged {
    fn drop(&mut self) {
        std::fs::rename(&self.kept, &self.path).unwrap();
    }
}

impl Programs {
    fn new() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        std::fs::copy(crate::hearthd::static_init(), this.path("init")).unwrap();
        this.runsc("exec");
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Fake where it says another version: there is only one build of runsc here.
    fn runsc(&self, first: &str) {
        let runsc = crate::hearthd::tool("runsc");
        let script = format!("#!/bin/sh\n{first} {} \"$@\"\n", runsc.display());
        std::fs::write(self.path("runsc"), script).unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self.path("runsc"), mode).unwrap();
    }

    fn settings(&self) -> [(&'static str, String); 2] {
        let path = |name: &str| self.path(name).display().to_string();
        [
            ("runtime.init", path("init")),
            ("runtime.runsc", path("runsc")),
        ]
    }

    fn exchange(&self, name: &str) -> Exchanged {
        let (path, kept) = (self.path(name), self.path("kept"));
        std::fs::rename(&path, &kept).unwrap();
        match name {
            "init" => drop(std::fs::copy(crate::hearthd::static_init(), &path).unwrap()),
            _ => self
                .runsc("[ \"$1\" = --version ] && echo runsc version release-other && exit\nexec"),
        }
        Exchanged { path, kept }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_image_is_data_loss_and_one_that_does_not_fit_is_kept() {
    let programs = Programs::new();
    let settings = programs.settings();
    let settings = settings.each_ref().map(|(key, path)| (*key, path.as_str()));
    let mut hearth = Hearth::start_with(&settings).await;
    hearth.set_pools(vec![pool("python", 1, 4)]).await;
    hearth.warm("python", 1).await;
    let (claim, answer) = hearth.claim("python").await;
    count(&hearth, &claim).await;

    // What gVisor would refuse to restore does not go: a runsc or a hearth-init that was exchanged while it lived.
    for program in ["runsc", "init"] {
        let other = programs.exchange(program);
        let refused = try_sink(&hearth, &claim).await.unwrap_err();
        assert_eq!(reason(&refused), "NOT_RESTORABLE", "{refused}");
        assert!(refused.message().contains(program), "{refused}");
        assert_eq!(hearth.get(&claim).await.state(), ClaimState::Claimed);
        goes_on(&hearth, &claim).await;
        drop(other);
    }
    sink(&hearth, &claim).await;
    is_on_disk(&hearth, &answer.sandbox_id).await;

    // The same once it is there: its image is kept.
    for program in ["runsc", "init"] {
        let other = programs.exchange(program);
        let refused = try_resume(&hearth, &claim).await.unwrap_err();
        assert_eq!(reason(&refused), "IMAGE_MISMATCH", "{refused}");
        assert_eq!(hearth.get(&claim).await.state(), ClaimState::Hibernated);
        drop(other);
    }
    // A hearthd of another version brings another hearth-init, and leaves that of the sandbox where it was.
    let newer = hearth.path("newer-init");
    std::fs::copy(crate::hearthd::static_init(), &newer).unwrap();
    hearth.kill();
    hearth.set("runtime.init", newer.to_str().unwrap());
    hearth.restart().await;
    goes_on(&hearth, &claim).await;

    sink(&hearth, &claim).await;
    is_on_disk(&hearth, &answer.sandbox_id).await;
    damage(&hearth, &answer.sandbox_id);
    let lost = try_resume(&hearth, &claim).await.unwrap_err();
    assert!(lost.message().contains("DATA_LOSS"), "{lost}");
    let view = hearth.get(&claim).await;
    assert_eq!(view.state(), ClaimState::Failed);
    assert_eq!(view.status_reason, "DATA_LOSS");
    hearth.release(&claim).await;
    hearth.finish().await;
}

/// One bit in the middle of its memory.
fn damage(hearth: &Hearth, sandbox: &str) {
    let pages = image(hearth, sandbox).join("pages.img");
    let mut content = std::fs::read(&pages).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(&pages, content).unwrap();
}

/// The claim says so: it goes on in a fresh sandbox, under its own id and token, and everybody can see what was lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_image_is_a_cold_start_where_the_claim_wants_it() {
    let mut hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 1, 2)]).await;
    hearth.warm("python", 1).await;
    let claim = fresh_id();
    let mut request = claim_request(&claim, "python");
    request.on_data_loss = OnDataLoss::Cold.into();
    let mut client = hearth.claims().await;
    let first = client.claim(request.clone()).await.unwrap().into_inner();
    count(&hearth, &claim).await;
    sink(&hearth, &claim).await;
    is_on_disk(&hearth, &first.sandbox_id).await;
    damage(&hearth, &first.sandbox_id);
    // It is known of after a restart, too.
    hearth.kill();
    hearth.restart().await;
    // The use that meets the damage is served, in the fresh one.
    let (code, text) = hearth
        .run(&claim, &["sh", "-c", "ls /tmp; echo here"])
        .await;
    assert_eq!((code, text.as_str()), (0, "here\n"));
    let view = hearth.get(&claim).await;
    assert_eq!(view.state(), ClaimState::Claimed);
    assert_eq!(
        (view.cold_starts, view.status_reason.as_str()),
        (1, "DATA_LOSS")
    );
    assert_eq!(view.source(), Source::Cold);
    assert_ne!(view.sandbox_id, first.sandbox_id);
    let again = hearth.claims().await.claim(request).await.unwrap();
    let again = again.into_inner();
    assert_eq!(again.sandbox_id, view.sandbox_id);
    assert_eq!(
        again.access_token, first.access_token,
        "it holds on to its token"
    );
    let (_, metrics) = hearth.admin_page("/metrics");
    assert!(metrics.contains("hearth_claims_cold_started_total 1"));
    eventually("nothing is left of the old one", || async {
        !image(&hearth, &first.sandbox_id).exists()
            && !hearth.census().containers.contains(&first.sandbox_id)
    })
    .await;
    // From here on it is like any other.
    count(&hearth, &claim).await;
    sink(&hearth, &claim).await;
    goes_on(&hearth, &claim).await;
    hearth.release(&claim).await;
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_it_runs_on_and_is_told_which_bound() {
    let hearth = Hearth::start_with(&[("hibernation.quota_bytes", "33554432")]).await;
    hearth.set_pools(vec![pool("python", 2, 4)]).await;
    hearth.warm("python", 2).await;
    let (claim, answer) = hearth.claim("python").await;
    count(&hearth, &claim).await;
    let refused = try_sink(&hearth, &claim).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("quota_bytes"), "{refused}");
    assert_eq!(hearth.get(&claim).await.state(), ClaimState::Claimed);
    goes_on(&hearth, &claim).await;
    // One that sleeps is not woken for that, and keeps no memory for it.
    let request = HibernateRequest {
        claim_id: claim.clone(),
        epoch: 1,
        ..HibernateRequest::default()
    };
    hearth.claims().await.hibernate(request).await.unwrap();
    let cgroup = cgroup(&hearth, &answer.sandbox_id);
    let used = || cgroup.usage().unwrap().cpu_nanoseconds;
    let (asleep, before) = (cgroup.is_frozen().unwrap(), used());
    let refused = try_sink(&hearth, &claim).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    assert_eq!(hearth.get(&claim).await.state(), ClaimState::Hibernated);
    assert!(asleep && cgroup.is_frozen().unwrap());
    assert_eq!(used(), before, "it was woken");
    goes_on(&hearth, &claim).await;
    hearth.finish().await;

    let hearth = Hearth::start_with(&[("hibernation.quota_bytes", "0")]).await;
    hearth.set_pools(vec![pool("python", 1, 4)]).await;
    hearth.warm("python", 1).await;
    let (claim, _) = hearth.claim("python").await;
    let refused = try_sink(&hearth, &claim).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unimplemented, "{refused}");
    hearth.finish().await;
}

/// hearthd dies at moments spread over checkpoints, sealing, shedding and restores.
#[tokio::test(flavor = "multi_thread")]
async fn kill_9_in_the_middle_of_checkpoints_and_restores_loses_nothing() {
    const KILLS: u64 = 12;
    let mut hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 1, 4)]).await;
    hearth.warm("python", 1).await;
    let (claim, answer) = hearth.claim("python").await;
    count(&hearth, &claim).await;
    let (mut least, process) = counted(&hearth, &claim).await;
    for round in 0..KILLS {
        let callers = async {
            loop {
                // hearthd dies under these: an error is as good as an answer.
                let _answer = try_sink(&hearth, &claim).await;
                let _answer = try_resume(&hearth, &claim).await;
            }
        };
        let moment = Duration::from_millis(20 + round * 173 % 1_400);
        let _cut_short = tokio::time::timeout(moment, callers).await;
        hearth.kill();
        hearth.restart().await;
        eventually("it is known", || async {
            let state = hearth.get(&claim).await.state();
            [ClaimState::Claimed, ClaimState::Hibernated].contains(&state)
        })
        .await;
        let (now, same) = counted(&hearth, &claim).await;
        assert_eq!(same, process, "round {round}");
        // What was told stands: a count that somebody has seen is never undone.
        assert!(now >= least, "round {round}: {least} → {now}");
        goes_on(&hearth, &claim).await;
        least = counted(&hearth, &claim).await.0;
        eventually("no image is left over", || async {
            !image(&hearth, &answer.sandbox_id).exists()
        })
        .await;
    }
    hearth.finish().await;
}

/// What was stopped inside for an image goes on at the next start, long before it would by itself and before anybody uses it.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_silent_when_hearthd_died_goes_on_at_its_start() {
    let armed = tempfile::tempdir().unwrap();
    let armed = armed.path().join("point");
    let mut hearth =
        Hearth::start_with(&[("HEARTH_FAILPOINT_FILE", armed.to_str().unwrap())]).await;
    hearth.set_pools(vec![pool("python", 1, 4)]).await;
    hearth.warm("python", 1).await;
    let (claim, answer) = hearth.claim("python").await;
    let busy = ["sh", "-c", "while :; do :; done"];
    hearth.start_detached(&claim, &busy).await;
    let group = cgroup(&hearth, &answer.sandbox_id);
    let used_in = async |time: Duration| {
        let before = group.usage().unwrap().cpu_nanoseconds;
        tokio::time::sleep(time).await;
        Duration::from_nanos(group.usage().unwrap().cpu_nanoseconds - before)
    };
    std::fs::write(&armed, "checkpoint.quiesced=1").unwrap();
    assert!(try_sink(&hearth, &claim).await.is_err(), "hearthd has died");
    while !hearth.has_died() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    std::fs::remove_file(&armed).unwrap();
    let stopped = used_in(Duration::from_secs(2)).await;
    assert!(stopped < Duration::from_millis(500), "it ran: {stopped:?}");

    hearth.restart().await;
    let since = Instant::now();
    eventually("it goes on", || async {
        used_in(Duration::from_secs(1)).await > Duration::from_millis(250)
    })
    .await;
    let took = since.elapsed();
    assert!(took < Duration::from_secs(90), "by itself: {took:?}");
    assert_eq!(hearth.get(&claim).await.state(), ClaimState::Claimed);
    hearth.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sleeps_long_sinks_to_the_disk() {
    let hearth = Hearth::start_with(&[("hibernation.sink_after_seconds", "1")]).await;
    hearth.set_pools(vec![pool("python", 1, 4)]).await;
    hearth.warm("python", 1).await;
    let (claim, answer) = hearth.claim("python").await;
    count(&hearth, &claim).await;
    let request = HibernateRequest {
        claim_id: claim.clone(),
        epoch: 1,
        ..HibernateRequest::default()
    };
    hearth.claims().await.hibernate(request).await.unwrap();
    eventually("it is on the disk", || async {
        manifest(&hearth, &answer.sandbox_id).exists()
    })
    .await;
    is_on_disk(&hearth, &answer.sandbox_id).await;
    let (_, metrics) = hearth.admin_page("/metrics");
    assert!(metrics.contains("hearth_sinks_total{cause=\"age\"} 1"));
    goes_on(&hearth, &claim).await;
    hearth.finish().await;
}
