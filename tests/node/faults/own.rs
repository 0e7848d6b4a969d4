//! hearthd itself is short of something: of file descriptors, of memory.

use super::{answers, is_gone};
use crate::crash::assert_no_leak;
use crate::hearthd::{Hearth, IMAGE, claim_request, eventually, fresh_id, pool, python_archive};
use hearth::api::{
    ExecRequest, ExecResponse, ExecStart, GetClaimRequest, InfoRequest, ReleaseRequest,
    exec_request,
};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// A bound on a running hearthd's descriptors that leaves it none.
struct NoDescriptors {
    pid: u32,
    before: u64,
}

fn prlimit(pid: u32, soft: u64) {
    let said = Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &format!("--nofile={soft}:")])
        .output()
        .unwrap();
    assert!(said.status.success(), "{said:?}");
}

fn descriptors(pid: u32) -> BTreeSet<u64> {
    let names = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let number = |entry: std::io::Result<std::fs::DirEntry>| {
        let name = entry.unwrap().file_name();
        name.to_string_lossy().parse().unwrap()
    };
    names.map(number).collect()
}

impl NoDescriptors {
    async fn new(pid: u32) -> Self {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find(|it| it.starts_with("Max open files"));
        let before = line.unwrap().split_whitespace().nth(3).unwrap();
        let before = before.parse().unwrap();
        // Connections that the test has dropped are closed first.
        let mut open = descriptors(pid);
        eventually("nothing is opened or closed", || {
            let last = std::mem::replace(&mut open, descriptors(pid));
            let calm = last == open;
            async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                calm
            }
        })
        .await;
        // The next one would get this number, which is not below the bound.
        let free = (0..).find(|number| !open.contains(number)).unwrap();
        prlimit(pid, free);
        Self { pid, before }
    }
}

impl Drop for NoDescriptors {
    fn drop(&mut self) {
        prlimit(self.pid, self.before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_held_connections_go_on_and_new_ones_wait() {
    let hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 2, 8)]).await;
    hearth.warm("python", 2).await;
    let (kept, _) = hearth.claim("python").await;
    let (spent, answer) = hearth.claim("python").await;
    hearth.warm("python", 2).await;
    let mut held = hearth.claims().await;
    let get = || GetClaimRequest {
        claim_id: kept.clone(),
    };
    held.get(get()).await.unwrap();

    let pid = hearth.pid();
    let short = NoDescriptors::new(pid).await;
    held.get(get()).await.unwrap();
    // The kernel connects it; nobody takes it.
    let mut waiting = hearth.node().await;
    let asked = tokio::time::timeout(Duration::from_secs(2), waiting.info(InfoRequest {}));
    assert!(!matches!(asked.await, Ok(Ok(_))), "it was accepted");
    let request = claim_request(&fresh_id(), "python");
    let more = request.claim_id.clone();
    held.claim(request).await.unwrap();
    let request = ReleaseRequest {
        claim_id: spent,
        epoch: 1,
    };
    held.release(request).await.unwrap();
    held.get(get()).await.unwrap();

    drop(short);
    eventually("new connections are taken", || async {
        hearth.phase().await.as_deref() == Some("ready")
    })
    .await;
    assert_eq!(hearth.pid(), pid);
    is_gone(&hearth, &answer.sandbox_id).await;
    for claim in [&kept, &more] {
        answers(&hearth, claim).await;
    }
    hearth.warm("python", 2).await;
    hearth.serve_one("python").await;
    assert_no_leak(&hearth).await;
    hearth.finish().await;
}

/// A memory cgroup of its own for a hearthd that has just been started: all it has is counted.
struct Squeezed {
    group: PathBuf,
    v1: bool,
}

impl Squeezed {
    fn new(pid: u32) -> Self {
        let root = PathBuf::from("/sys/fs/cgroup");
        let v1 = root.join("memory/memory.limit_in_bytes").exists();
        let parent = if v1 { root.join("memory") } else { root };
        let group = parent.join(format!("hearth-squeezed-{pid}"));
        std::fs::create_dir(&group).unwrap();
        std::fs::write(group.join("cgroup.procs"), pid.to_string()).unwrap();
        Self { group, v1 }
    }

    fn read(&self, v1: &str, v2: &str) -> String {
        let name = if self.v1 { v1 } else { v2 };
        std::fs::read_to_string(self.group.join(name)).unwrap()
    }

    fn field(text: &str, name: &str) -> u64 {
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap().trim().parse().unwrap()
    }

    /// What can't be taken from it without a swap.
    fn own_bytes(&self) -> u64 {
        let text = self.read("memory.stat", "memory.stat");
        Self::field(&text, if self.v1 { "rss " } else { "anon " })
    }

    /// From now on it may have so much.
    fn limit(&self, bytes: u64) {
        let name = if self.v1 {
            "memory.limit_in_bytes"
        } else {
            "memory.max"
        };
        std::fs::write(self.group.join(name), bytes.to_string()).unwrap();
    }

    /// How often it came to its bound, and the kernel took something from it.
    fn bumps(&self) -> u64 {
        let text = self.read("memory.failcnt", "memory.events");
        Self::field(&text, if self.v1 { "" } else { "max " })
    }

    /// How often the OOM killer struck.
    fn kills(&self) -> u64 {
        Self::field(
            &self.read("memory.oom_control", "memory.events"),
            "oom_kill ",
        )
    }
}

impl Drop for Squeezed {
    fn drop(&mut self) {
        // Whoever is left goes back up.
        let parent = self.group.parent().unwrap().join("cgroup.procs");
        let pids = std::fs::read_to_string(self.group.join("cgroup.procs"));
        for pid in pids.unwrap_or_default().lines() {
            let _gone = std::fs::write(&parent, pid);
        }
        let _gone = std::fs::remove_dir(&self.group);
    }
}

/// An execution that says more than anybody takes.
async fn unread(hearth: &Hearth, claim: &str) -> tonic::Streaming<ExecResponse> {
    let start = ExecStart {
        claim_id: claim.to_owned(),
        command: vec!["yes".to_owned()],
        ..ExecStart::default()
    };
    let request = ExecRequest {
        request: Some(exec_request::Request::Start(start)),
    };
    let requests = tokio_stream::iter([request]);
    let answers = hearth.sandboxes().await.exec(requests).await.unwrap();
    answers.into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn short_of_memory_hearthd_outlives_a_flood() {
    /// What it may take beyond its own. An import by itself takes some 8 MiB, and the archive's pages, which the kernel
    /// takes back, are more than all of it.
    const MORE: u64 = 20 << 20;
    let mut hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 2, 8)]).await;
    hearth.warm("python", 2).await;
    // Anew, so that containerd and the shims are not in the group.
    hearth.kill();
    hearth.start_again();
    let squeezed = Squeezed::new(hearth.pid());
    eventually("it is ready", || async {
        hearth.phase().await.as_deref() == Some("ready")
    })
    .await;
    hearth.warm("python", 2).await;
    let (loud, _) = hearth.claim("python").await;
    for _ in 0..3 {
        hearth.serve_one("python").await;
    }
    let own = squeezed.own_bytes();
    squeezed.limit(own + MORE);
    let pid = hearth.pid();
    // Eight that nobody reads, and one that is read.
    let mut floods = Vec::new();
    for _ in 0..8 {
        floods.push(unread(&hearth, &loud).await);
    }
    let zeros = ["head", "-c", "67108864", "/dev/zero"];
    let (code, said) = hearth.run(&loud, &zeros).await;
    assert_eq!((code, said.len()), (0, 64 << 20));
    let archive = std::fs::metadata(python_archive()).unwrap();
    assert!(archive.len() > MORE);
    hearth.import(&python_archive(), IMAGE).await;
    for _ in 0..3 {
        hearth.serve_one("python").await;
    }
    println!(
        "{} KiB of its own, {} KiB after the flood; {} times at its bound",
        own >> 10,
        squeezed.own_bytes() >> 10,
        squeezed.bumps()
    );
    assert!(squeezed.bumps() > 0, "it was never short of memory");
    drop(floods);
    answers(&hearth, &loud).await;
    hearth.release(&loud).await;
    hearth.warm("python", 2).await;
    assert_eq!((squeezed.kills(), hearth.pid()), (0, pid));
    assert_eq!(hearth.phase().await.as_deref(), Some("ready"));
    assert_no_leak(&hearth).await;
    drop(squeezed);
    hearth.finish().await;
}
