//! What hearthd may do, keeps and shows: the smallest set of capabilities it works with, its files' modes, and where a
//! claim's secrets are after they were delivered. docs/privileges.md is this file in words.

use crate::hearthd::{Hearth, claim_request, eventually, fresh_id, pool, tool};
use crate::outside::{self, Outside};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hearth::api::{NetworkMode, NetworkPolicy, Personalization, Secret};
use hearth::ociwrap::NULL_NETNS;
use hearth::runtime::managed::{ManagedConfig, ManagedContainerd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// All that hearthd needs beside a containerd of its own right (docs/privileges.md says what for).
const CAPABILITIES: &[&str] = &["kill"];
/// The same where sandboxes may have a network.
const WITH_NETWORK: &[&str] = &["kill", "net_admin", "sys_admin"];

fn below(path: &Path, found: &mut Vec<(PathBuf, std::fs::Metadata)>) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        // Gone meanwhile.
        let Ok(info) = entry.metadata() else { continue };
        if info.is_dir() {
            below(&entry.path(), found);
        }
        found.push((entry.path(), info));
    }
}

fn has(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|part| part == needle)
}

/// Where in a process's writable memory the needle is.
fn in_memory(pid: u32, needle: &[u8]) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut found = Vec::new();
    let mut read = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let from = u64::from_str_radix(from, 16).unwrap();
        let to = u64::from_str_radix(to, 16).unwrap();
        let mut content = vec![0; usize::try_from(to - from).unwrap()];
        // A mapping may go in between, and some can't be read at all.
        if memory.read_exact_at(&mut content, from).is_ok() {
            read += content.len();
            if has(&content, needle) {
                found.push(line.to_owned());
            }
        }
    }
    assert!(read > 1 << 20, "only {read} bytes of memory could be read");
    found
}

/// Files of plain content that the needle is in, and how many were looked at.
fn in_files(roots: &[PathBuf], needle: &[u8]) -> (Vec<PathBuf>, usize) {
    let mut files = Vec::new();
    for root in roots {
        below(root, &mut files);
    }
    files.retain(|(_, info)| info.is_file() && info.len() < 256 << 20);
    let looked_at = files.len();
    let holds = |path: &PathBuf| std::fs::read(path).is_ok_and(|bytes| has(&bytes, needle));
    let found = files.into_iter().map(|(path, _)| path).filter(holds);
    (found.collect(), looked_at)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_nowhere_once_it_was_delivered() {
    let hearth = Hearth::start_with(&[("log.level", "trace")]).await;
    hearth.set_pools(vec![pool("python", 1, 4)]).await;
    hearth.warm("python", 1).await;
    // Long enough for a block of its own in every buffer, and never written down here as one piece.
    let word = uuid::Uuid::new_v4().simple().to_string();
    let secret = format!("canary-{word}").repeat(100);
    let id = fresh_id();
    let mut request = claim_request(&id, "python");
    request.personalization = Some(Personalization {
        secrets: vec![Secret {
            name: "token".to_owned(),
            value: secret.clone().into_bytes().into(),
        }],
        ..Personalization::default()
    });
    // A client of its own, whose connection ends with it.
    let granted = hearth.claims().await.claim(request).await.unwrap();
    let token = granted.into_inner().access_token;
    // Looked at inside: out again through hearthd it would not be a secret any more.
    let look = "head -c 7 /run/hearth/secrets/token; wc -c </run/hearth/secrets/token";
    let inside = hearth.run(&id, &["sh", "-c", look]).await.1;
    assert_eq!(
        inside,
        format!("canary-{}\n", secret.len()),
        "it was delivered"
    );

    let needle = format!("canary-{word}").into_bytes();
    let pid = hearth.pid();
    eventually("hearthd's memory is clean", || async {
        let found = in_memory(pid, &needle);
        if !found.is_empty() {
            eprintln!("still in {found:?}");
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
        found.is_empty()
    })
    .await;
    // The search finds what is there: the claim's id is in the same memory.
    assert!(!in_memory(pid, hearth.path("data").as_os_str().as_encoded_bytes()).is_empty());

    let (found, looked_at) = in_files(&[hearth.path("")], &needle);
    assert!(found.is_empty(), "{found:?}");
    assert!(looked_at > 100, "only {looked_at} files were looked at");
    // Nor is the claim's access token written anywhere, in its letters or as the bytes that they stand for; the claim is.
    let letters = token.strip_prefix("hearth_").unwrap();
    let bytes = URL_SAFE_NO_PAD.decode(letters).unwrap();
    for needle in [letters.as_bytes(), &bytes] {
        let (found, _) = in_files(&[hearth.path("")], needle);
        assert!(found.is_empty(), "{found:?}");
    }
    let (found, _) = in_files(&[hearth.path("data")], id.as_bytes());
    assert!(
        found.contains(&hearth.path("data/journal.redb")),
        "{found:?}"
    );
    for page in ["/state", "/metrics"] {
        let text = hearth.admin_page(page).1;
        assert!(!has(text.as_bytes(), &needle), "{page}");
        assert!(text.len() > 100, "{page}: {text}");
    }

    // Nor can a dump bring it back: of hearthd, of containerd, of the shims, of the sandboxes.
    let root = hearth.path("").display().to_string();
    let ours = crate::hearthd::processes(|line| line.iter().any(|word| word.contains(&root)));
    assert!(ours.len() > 3, "{ours:?}");
    for pid in ours {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.contains("core file size"));
        let words: Vec<_> = core.unwrap().split_whitespace().collect();
        assert_eq!(words[4..6], ["0", "0"], "{pid}: {limits}");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("NoNewPrivs:\t1"), "{pid}: {status}");
    }
    hearth.release(&id).await;
    hearth.finish().await;
}

/// Everything hearthd makes is its own user's alone. containerd's own directories are closed at their top.
#[tokio::test(flavor = "multi_thread")]
async fn files_are_for_hearthd_alone() {
    let hearth = Hearth::start().await;
    hearth.set_pools(vec![pool("python", 1, 4)]).await;
    hearth.warm("python", 1).await;
    let (claim, _) = hearth.claim("python").await;
    let mut found = Vec::new();
    for name in ["data", "run"] {
        let path = hearth.path(name);
        found.push((path.clone(), path.metadata().unwrap()));
        below(&path, &mut found);
    }
    assert!(found.len() > 50);
    let closed: Vec<PathBuf> = ["data/containerd", "run/containerd", "run/runsc"]
        .iter()
        .map(|name| hearth.path(name))
        .collect();
    let mut open = Vec::new();
    for (path, info) in &found {
        assert_eq!(info.uid(), 0, "{}", path.display());
        let mode = info.permissions().mode() & 0o7777;
        let inside = closed
            .iter()
            .any(|top| path.starts_with(top) && path != top);
        // Others reach the API's socket through the run directory; what they may there is the socket's mode and rpc's.
        let is_way = *path == hearth.path("run") && mode == 0o755;
        if !inside && !is_way && !info.is_symlink() && mode & 0o077 != 0 {
            open.push(format!("{} {mode:o}", path.display()));
        }
    }
    assert!(open.is_empty(), "{open:#?}");
    hearth.release(&claim).await;
    hearth.finish().await;
}

/// Ends what a failed test leaves of its containerd; a good one has ended it.
struct Ended(String);

impl Drop for Ended {
    fn drop(&mut self) {
        for pid in crate::hearthd::processes(|line| line.iter().any(|word| word.contains(&self.0)))
        {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _gone = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// A containerd that somebody else runs.
async fn foreign_containerd() -> (Ended, std::sync::Arc<ManagedContainerd>, tempfile::TempDir) {
    let root = tempfile::Builder::new()
        .prefix("hc")
        .tempdir_in("/tmp")
        .unwrap();
    let config = ManagedConfig {
        containerd: tool("containerd"),
        shim: tool("containerd-shim-runc-v2"),
        snapshotter: "overlayfs".to_owned(),
        data_dir: root.path().join("data"),
        run_dir: root.path().join("run"),
        runsc_root: root.path().join("runsc"),
        cgroup_parent: format!("/{}", root.path().file_name().unwrap().to_str().unwrap()),
        hung_after: ManagedConfig::HUNG_AFTER,
    };
    let metrics = hearth::runtime::RuntimeMetrics::register(&prometheus::Registry::new()).unwrap();
    let containerd = ManagedContainerd::start(config, metrics).await.unwrap();
    let ended = Ended(root.path().display().to_string());
    (ended, containerd, root)
}

/// Words that start a program with these capabilities and no others.
fn only(capabilities: &[&str]) -> Vec<String> {
    let set: Vec<_> = capabilities.iter().map(|name| format!("+{name}")).collect();
    let bounding = format!("--bounding-set=-all,{}", set.join(","));
    let words = ["setpriv", "--inh-caps=-all", "--ambient-caps=-all"];
    let words = words.into_iter().chain([bounding.as_str(), "--"]);
    words.map(str::to_owned).collect()
}

fn has_only(hearth: &Hearth, capabilities: &[&str]) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", hearth.pid())).unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = u64::from_str_radix(effective.unwrap().trim(), 16).unwrap();
    let count = effective.count_ones() as usize;
    assert_eq!(count, capabilities.len(), "{status}");
}

/// runsc's own mount, which takes more than hearthd has: whoever runs containerd owns it.
fn unmount_null_netns(hearth: &Hearth) {
    let netns = hearth.path("run/runsc/hearth").join(NULL_NETNS);
    let is_mounted = || {
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        mounts.contains(netns.to_str().unwrap())
    };
    // It may lie there more than once.
    while is_mounted() {
        let unmounted = std::process::Command::new("umount").arg(&netns).status();
        assert!(unmounted.unwrap().success());
    }
}

/// The same with a network: what docs/privileges.md names for it is enough from the first namespace to the last.
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_capabilities_suffice_for_a_network() {
    let (_ended, containerd, _root) = foreign_containerd().await;
    let outside = Outside::new();
    let socket = containerd.socket().display().to_string();
    let settings = [
        ("containerd.socket", socket.as_str()),
        ("network.enabled", "true"),
        ("network.resolvers", outside::GATEWAY),
    ];
    let prefix = only(WITH_NETWORK);
    let mut hearth = Hearth::start_inside(&prefix, outside.node(), &settings).await;
    has_only(&hearth, WITH_NETWORK);
    let mut declared = pool("python", 1, 4);
    declared.template.as_mut().unwrap().network_policy = Some(NetworkPolicy {
        mode: NetworkMode::Allowlist.into(),
        ..NetworkPolicy::default()
    });
    hearth.set_pools(vec![declared]).await;
    hearth.warm("python", 1).await;
    let id = fresh_id();
    let mut request = claim_request(&id, "python");
    request.personalization = Some(Personalization {
        network_policy: Some(NetworkPolicy {
            mode: NetworkMode::Internet.into(),
            ..NetworkPolicy::default()
        }),
        ..Personalization::default()
    });
    hearth.claims().await.claim(request).await.unwrap();
    let connect = format!(
        "import socket; print(socket.create_connection(('{}', 80), 5).recv(16).decode())",
        outside::PUBLIC
    );
    let command = ["python3", "-c", connect.as_str()];
    assert_eq!(hearth.run(&id, &command).await.1, "hearth\n");
    hearth.kill();
    hearth.restart().await;
    assert_eq!(hearth.run(&id, &command).await.1, "hearth\n");
    hearth.release(&id).await;
    hearth.set_pools(Vec::new()).await;
    eventually("every sandbox is gone", || async {
        hearth.state()["sandboxes"].as_array().unwrap().is_empty()
    })
    .await;
    unmount_null_netns(&hearth);
    hearth.finish().await;
    containerd.stop().await.unwrap();
}

/// hearthd with exactly the capabilities that docs/privileges.md names, on a containerd that somebody else runs: a whole
/// working life passes.
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_capabilities_suffice() {
    let (_ended, containerd, _root) = foreign_containerd().await;
    let socket = containerd.socket().display().to_string();
    let prefix = only(CAPABILITIES);
    let prefix: Vec<_> = prefix.iter().map(String::as_str).collect();
    let settings = [("containerd.socket", socket.as_str())];
    let mut hearth = Hearth::start_as(&prefix, &settings).await;
    has_only(&hearth, CAPABILITIES);

    hearth.set_pools(vec![pool("python", 2, 6)]).await;
    hearth.warm("python", 2).await;
    let (first, _) = hearth.claim("python").await;
    assert_eq!(
        hearth.run(&first, &["python3", "-c", "print(6*7)"]).await.1,
        "42\n"
    );
    // Destruction (also where the shim is gone and hearthd kills by itself), adoption, the end of a sandbox by itself.
    let (second, _) = hearth.claim("python").await;
    hearth.release(&second).await;
    hearth.warm("python", 1).await;
    let (orphaned, answer) = hearth.claim("python").await;
    for shim in crate::hearthd::processes(|line| {
        line[0].ends_with("containerd-shim-runc-v2") && line.contains(&answer.sandbox_id)
    }) {
        let shim = nix::unistd::Pid::from_raw(shim);
        nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    hearth.release(&orphaned).await;
    eventually("it is gone without its shim", || async {
        !hearth.state()["sandboxes"]
            .to_string()
            .contains(&answer.sandbox_id)
    })
    .await;
    hearth.kill();
    hearth.restart().await;
    assert_eq!(hearth.run(&first, &["echo", "still"]).await.1, "still\n");
    let hog = "b=[]\nwhile True: b.append(bytearray(1<<24))";
    let _ended = hearth.try_run(&first, &["python3", "-c", hog]).await;
    eventually("the claim tells", || async {
        let request = hearth::api::GetClaimRequest {
            claim_id: first.clone(),
        };
        let got = hearth.claims().await.get(request).await.unwrap();
        got.into_inner().claim.unwrap().status_reason == "OOM"
    })
    .await;
    hearth.release(&first).await;
    hearth.set_pools(Vec::new()).await;
    eventually("every sandbox is gone", || async {
        hearth.state()["sandboxes"].as_array().unwrap().is_empty()
    })
    .await;
    unmount_null_netns(&hearth);
    hearth.finish().await;
    containerd.stop().await.unwrap();
}
