//! The managed containerd: adopted, replaced, started again, ended without a trace.
#![allow(clippy::unwrap_used)]

#[path = "support/image.rs"]
#[allow(dead_code)]
mod image;
#[path = "support/runtime.rs"]
#[allow(dead_code)]
mod support;
#[path = "support/tool.rs"]
mod tool;

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use hearth::runtime::{
    Runtime, RuntimeEvent,
    managed::{ManagedConfig, ManagedContainerd, ManagedError},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use support::{Node, eventually, mounts, processes};

fn is_running(pid: i32) -> bool {
    // A zombie has no command line.
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_start_adopts_the_first_and_never_a_stranger() {
    let mut node = Node::with_image("adopt").await;
    let id = node.sandbox().await;
    let pid = node.managed.pid();
    let config = node.managed_config.clone();
    let start = || ManagedContainerd::start(config.clone(), node.metrics.clone());
    assert_eq!(start().await.unwrap().pid(), pid);

    // hearthd died between starting it and recording it.
    let record = config.run_dir.join("containerd/pid.json");
    let whole = fs::read(&record).unwrap();
    for damaged in [
        None,
        Some("not json".to_owned()),
        Some(format!(
            "{{\"pid\":{},\"started_at_ticks\":1}}",
            std::process::id()
        )),
    ] {
        match damaged {
            None => fs::remove_file(&record).unwrap(),
            Some(text) => fs::write(&record, text).unwrap(),
        }
        assert_eq!(start().await.unwrap().pid(), pid);
    }
    fs::write(&record, &whole).unwrap();

    // Another configuration (as of a newer hearthd): replaced, and the sandbox lives.
    let file = config.run_dir.join("containerd/config.toml");
    fs::write(&file, "version = 3\n").unwrap();
    let replaced = start().await.unwrap();
    assert_ne!(replaced.pid(), pid);
    assert!(!is_running(pid));
    node.guest(id).assert_answers("living").await;
    // Its own supervisor saw it end and tried to start one too: there is one in the end.
    let socket = node.config.socket.display().to_string();
    let file = file.display().to_string();
    eventually("one containerd is left", || processes(&file).len() == 1).await;
    println!("{:?}", processes(&socket));
    drop(replaced);
    node.runtime().destroy(id).await.unwrap();
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_detached_and_its_files_are_bounded() {
    let node = Node::start("detached").await;
    let pid = node.managed.pid();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    assert_eq!(fields[3], pid.to_string(), "a session of its own");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let words: Vec<_> = files.split_whitespace().collect();
    assert_eq!(words[3], words[4], "as many open files as allowed: {files}");
    let env = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let shims = tool::tool("containerd-shim-runc-v2");
    let path = format!("PATH={}:", shims.parent().unwrap().display());
    assert!(String::from_utf8_lossy(&env).contains(&path));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_leaves_nothing_even_of_sandboxes_that_were_not_destroyed() {
    let mut node = Node::with_image("stop").await;
    let (one, two) = (node.sandbox().await, node.sandbox().await);
    node.group(two).freeze(support::LIMIT).unwrap();
    node.adapter = None;
    node.managed.stop().await.unwrap();
    let dir = node.dir.path().display().to_string();
    for id in [one, two] {
        eventually("its processes are gone", || {
            processes(&id.to_string()).is_empty()
        })
        .await;
        assert!(!node.group(id).exists());
    }
    eventually("no process is left", || processes(&dir).is_empty()).await;
    assert_eq!(mounts(&dir), Vec::<String>::new());
    assert!(node.tree.remove_parent(&node.config.cgroup_parent).unwrap());
    // Twice is fine.
    node.finish_stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_cannot_start_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("fake-containerd-that-ends");
    fs::write(
        &program,
        "#!/bin/sh\necho no space in the inn >&2\nexit 1\n",
    )
    .unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let config = ManagedConfig {
        containerd: program,
        shim: tool::tool("containerd-shim-runc-v2"),
        snapshotter: "overlayfs".into(),
        data_dir: dir.path().join("data"),
        run_dir: dir.path().join("run"),
        runsc_root: dir.path().join("run/runsc"),
        cgroup_parent: format!("/hearth-managed-{}", std::process::id()),
        hung_after: ManagedConfig::HUNG_AFTER,
    };
    let metrics = hearth::runtime::RuntimeMetrics::register(&prometheus::Registry::new()).unwrap();
    let failed = ManagedContainerd::start(config.clone(), metrics.clone())
        .await
        .unwrap_err();
    assert!(
        matches!(&failed, ManagedError::Ended { tail, .. } if tail.contains("no space in the inn")),
        "{failed}"
    );
    let missing = ManagedConfig {
        containerd: dir.path().join("none"),
        ..config
    };
    let failed = ManagedContainerd::start(missing, metrics)
        .await
        .unwrap_err();
    assert!(
        matches!(&failed, ManagedError::Io { path, .. } if path.ends_with("none")),
        "{failed}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_started_again_as_often_as_it_dies() {
    let node = Node::start("again").await;
    for round in 1..=3 {
        let pid = node.managed.pid();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        eventually("another runs", || {
            let now = node.managed.pid();
            now != pid && is_running(now)
        })
        .await;
        assert!(
            !std::path::Path::new(&format!("/proc/{pid}")).exists(),
            "reaped"
        );
        assert_eq!(node.count("hearth_containerd_restarts_total", ""), round);
    }
    let began = std::time::Instant::now();
    while node.runtime().versions().await.is_err() {
        assert!(began.elapsed() < support::patience());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node.finish().await;
}

/// Another one answers, and that one is gone.
async fn until_replaced(node: &mut Node, pid: i32) {
    for wanted in [RuntimeEvent::Disconnected, RuntimeEvent::Connected] {
        node.adapter().event(|event| *event == wanted).await;
    }
    assert_ne!(node.managed.pid(), pid);
    assert!(!is_running(pid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_one_is_killed_and_started_again() {
    let mut node = Node::with_image("hung").await;
    node.adapter()
        .event(|event| *event == RuntimeEvent::Connected)
        .await;
    let id = node.sandbox().await;
    let pid = node.managed.pid();
    // Long enough for the supervisor to have seen an answer.
    tokio::time::sleep(Duration::from_secs(2)).await;
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    until_replaced(&mut node, pid).await;
    assert!(node.runtime().list().await.unwrap()[0].alive);
    node.guest(id).assert_answers("living").await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_socket_is_gone_is_replaced() {
    let mut node = Node::with_image("socket").await;
    node.adapter()
        .event(|event| *event == RuntimeEvent::Connected)
        .await;
    let id = node.sandbox().await;
    let pid = node.managed.pid();
    // Long enough for the supervisor to have seen an answer.
    tokio::time::sleep(Duration::from_secs(2)).await;
    fs::remove_file(&node.config.socket).unwrap();
    until_replaced(&mut node, pid).await;
    assert!(node.config.socket.exists());
    assert!(node.runtime().list().await.unwrap()[0].alive);
    node.guest(id).assert_answers("living").await;
    node.runtime().destroy(id).await.unwrap();
    node.finish().await;
}
