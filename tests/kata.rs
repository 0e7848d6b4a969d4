//! Kata's handlers at the adapter, on a real containerd that starts a **recording shim** (hack/tools/containerd): a fake in
//! the place of Kata's, for no virtual machine boots here. It writes down what containerd told it, keeps what Kata keeps of a
//! sandbox, and lets gVisor run the container. What is proven is what hearth asks for, and what it ends and removes.
#![allow(clippy::unwrap_used)]

#[path = "support/image.rs"]
#[allow(dead_code)]
mod image;
#[path = "support/runtime.rs"]
#[allow(dead_code)]
mod support;
#[path = "support/tool.rs"]
mod tool;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use hearth::{
    machine::ids::{NodeTag, SandboxId},
    runtime::{CreateSpec, KataHandler, Overhead, Runtime, RuntimeConfig},
};
use image::Layout;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use support::{IMAGE, Node, processes};
use tool::tool;

const HANDLER: &str = "kata-recording";

/// A node that offers the recording shim's handler, one whose shim is nowhere, and one that needs block devices.
struct Machines {
    node: Node,
    dir: PathBuf,
}

fn shim() -> PathBuf {
    tool("containerd-shim-kata-recording-v2")
}

impl Machines {
    async fn start(test: &str) -> Self {
        let mut place = PathBuf::new();
        let node = Node::start_with(test, |config: &mut RuntimeConfig| {
            let dir = config.run_dir.parent().unwrap().join("kata");
            let handler = |name: &str, shim: PathBuf| KataHandler {
                name: name.into(),
                shim,
                config: dir.join("configuration.toml"),
            };
            fs::create_dir_all(dir.join("shared")).unwrap();
            fs::write(dir.join("shared/precious"), "x").unwrap();
            let text = json!({
                "runtime": config.wrapper, "root": config.runsc_root, "run": dir.join("run"), "shared": dir.join("shared"),
                "calls": dir.join("calls"),
            });
            fs::write(dir.join("configuration.toml"), text.to_string()).unwrap();
            config.kata_run = dir.join("run");
            config.kata = vec![
                handler(HANDLER, shim()),
                handler("kata-absent", "io.containerd.kata-absent.v2".into()),
                handler("kata-fc", shim()),
            ];
            place = dir;
        })
        .await;
        node.import(Layout::busybox().named(IMAGE)).await;
        Self { node, dir: place }
    }

    fn spec(&mut self) -> CreateSpec {
        let mut spec = self.node.spec(IMAGE);
        let template = Arc::make_mut(&mut spec.template);
        template.runtime_handler = HANDLER.into();
        template.resources.disk_bytes = 0;
        template.resources.cpu_millis = 500;
        spec
    }

    async fn machine(&mut self) -> SandboxId {
        let spec = self.spec();
        self.node.runtime().create(&spec).await.unwrap();
        spec.id
    }

    /// What the shim was told.
    fn calls(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        let calls = text.lines().map(|line| serde_json::from_str(line).unwrap());
        calls.collect()
    }

    fn names(&self) -> Vec<String> {
        let names = self.calls().into_iter();
        names
            .map(|call| call["call"].as_str().unwrap().to_owned())
            .collect()
    }

    fn assert_nothing_of_ours_was_taken(&self) {
        assert!(self.dir.join("shared/precious").exists());
    }
}

fn sockets(dir: &Path, id: SandboxId) -> String {
    dir.join("run/vc/vm")
        .join(id.to_string())
        .display()
        .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_asked_for_as_kata_wants_it_and_leaves_nothing() {
    let mut machines = Machines::start("kata").await;
    let runtime = machines.node.runtime();
    let id = machines.machine().await;
    machines.node.guest(id).assert_answers("hello").await;

    let calls = machines.calls();
    let create = &calls[0];
    assert_eq!(create["call"], "create");
    assert_eq!(create["options_type"], "runtimeoptions.v1.Options");
    let config = machines.dir.join("configuration.toml");
    assert_eq!(create["config_path"], json!(config));
    assert_eq!(create["terminal"], false);
    for (name, path) in [
        ("stdin", runtime.stdio(id).stdin),
        ("stdout", runtime.stdio(id).stdout),
        ("stderr", runtime.stdio(id).stderr),
    ] {
        assert_eq!(create[name], json!(path), "the guest's channel");
    }
    let spec = &create["spec"];
    assert_eq!(
        spec["annotations"],
        json!({
            "io.katacontainers.config_path": config,
            "io.katacontainers.config.runtime.sandbox_cgroup_only": "true",
        })
    );
    let group = format!("{}/pool/{id}/vm", machines.node.config.cgroup_parent);
    assert_eq!(spec["linux"]["cgroupsPath"], json!(group));
    let memory = 128 << 20;
    assert_eq!(
        spec["linux"]["resources"],
        json!({
            "memory": {"limit": memory}, "pids": {"limit": 64 + 32},
            "cpu": {"quota": 50_000, "period": 100_000},
        })
    );
    let named = machines.node.ctr(&[
        "containers",
        "ls",
        "-q",
        &format!("labels.\"hearth.dev/handler\"=={HANDLER}"),
    ]);
    assert_eq!(named.trim(), id.to_string());

    // The group that hearth has made bounds the machine and all that belongs to it.
    let usage = runtime.usage(id).await.unwrap();
    assert_eq!(usage.memory_limit_bytes, (128 + 130) << 20);
    assert!(usage.memory_bytes > 1 << 20 && usage.pids > 5, "{usage:?}");

    runtime.destroy(id).await.unwrap();
    machines.node.assert_gone(id).await;
    machines.assert_nothing_of_ours_was_taken();
    assert_eq!(machines.names(), ["create", "kill", "delete"]);
    let calls = machines.calls();
    assert_eq!(
        (&calls[1]["signal"], &calls[1]["all"]),
        (&json!(9), &json!(true))
    );
    runtime.destroy(id).await.unwrap();
    machines.node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_each_handler_can_do_is_told_and_what_it_can_not_is_refused() {
    let mut machines = Machines::start("katacan").await;
    let runtime = machines.node.runtime();
    let handlers = |runtime: &dyn Runtime| {
        let all = runtime.handlers().into_iter();
        let named = all.map(|it| (it.name.clone(), it));
        named.collect::<std::collections::BTreeMap<_, _>>()
    };
    // Before containerd was asked nothing speaks against any.
    assert!(
        handlers(&*runtime)
            .values()
            .all(|it| it.unservable.is_empty())
    );
    runtime.list().await.unwrap();
    let all = handlers(&*runtime);
    let names: Vec<_> = all.keys().map(String::as_str).collect();
    assert_eq!(names, ["gvisor", "kata-absent", "kata-fc", HANDLER]);
    assert!(all["gvisor"].unservable.is_empty() && all["gvisor"].can.freeze);
    assert_eq!(all["gvisor"].overhead, None);
    let ours = &all[HANDLER];
    assert_eq!(
        (ours.unservable.as_str(), ours.version.as_str()),
        ("", "recording")
    );
    let can = ours.can;
    assert!(!can.freeze && !can.checkpoint && !can.disk_bound, "{can:?}");
    let overhead = Overhead {
        memory_bytes: 130 << 20,
        cpu_millis: 250,
    };
    assert_eq!(ours.overhead, Some(overhead));
    let absent = &all["kata-absent"].unservable;
    println!("absent: {absent}");
    assert!(absent.contains("io.containerd.kata-absent.v2"), "{absent}");
    let block = &all["kata-fc"].unservable;
    assert!(
        block.contains("devmapper") && block.contains("overlayfs"),
        "{block}"
    );

    // The runtime has the last word, also after a restart, when only the container's label tells what it is.
    let id = machines.machine().await;
    for restarted in [false, true] {
        if restarted {
            machines.node.restart_adapter();
            let listed = machines.node.runtime().list().await.unwrap();
            assert_eq!(listed.len(), 1);
            assert!(listed[0].alive && !listed[0].frozen, "{listed:?}");
        }
        let runtime = machines.node.runtime();
        let refused = runtime.freeze(id).await.unwrap_err().to_string();
        assert!(refused.contains("shim"), "{refused}");
        runtime.thaw(id).await.unwrap();
        assert!(!machines.node.group(id).is_frozen().unwrap());
        machines.node.guest(id).assert_answers("awake").await;
    }
    machines.node.runtime().destroy(id).await.unwrap();
    machines.node.assert_gone(id).await;
    assert_eq!(machines.names(), ["create", "kill", "delete"]);
    machines.node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_shim_has_left_is_ended_first_and_removed_then() {
    let mut machines = Machines::start("kataleft").await;
    fs::create_dir_all(machines.dir.join("run")).unwrap();
    fs::write(machines.dir.join("run/leave"), "").unwrap();
    let runtime = machines.node.runtime();

    // A shim in good order that leaves everything all the same; one that was killed; one that hangs.
    for harm in [None, Some(Signal::SIGKILL), Some(Signal::SIGSTOP)] {
        let id = machines.machine().await;
        let socket = sockets(&machines.dir, id);
        let stand_ins = processes(&socket);
        assert_eq!(stand_ins.len(), 2, "{stand_ins:?}");
        assert!(!support::mounts(&id.to_string()).is_empty());
        if let Some(signal) = harm {
            kill(shim_of(id), signal).unwrap();
        }
        runtime.destroy(id).await.unwrap();
        machines.node.assert_gone(id).await;
        machines.assert_nothing_of_ours_was_taken();
    }

    // Directories alone, of a sandbox of which nobody has a record: found and swept.
    let stray = SandboxId::new(NodeTag(7), 99).unwrap();
    for place in ["vc/sbs", "kata"] {
        let dir = machines.dir.join("run").join(place).join(stray.to_string());
        fs::create_dir_all(dir.join("deep")).unwrap();
    }
    let listed = runtime.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert!(listed[0].id == stray && !listed[0].alive);
    runtime.destroy(stray).await.unwrap();
    machines.node.assert_gone(stray).await;
    machines.node.finish().await;
}

fn shim_of(id: SandboxId) -> Pid {
    let text = format!("-id {id}");
    let lines = processes(&text).into_iter();
    let mut shims = lines.filter(|line| line.contains("containerd-shim-kata-recording"));
    let line = shims.next().expect("the shim runs");
    let pid = line.trim_start_matches('"').split('"').next().unwrap();
    Pid::from_raw(pid.parse().unwrap())
}
