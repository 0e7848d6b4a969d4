//! A managed containerd with the adapter on it, for one test: own directories, own cgroup parent, own node tag. Its end
//! is checked: nothing may be left.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use hearth::{
    cgroup::{CgroupTree, SandboxCgroup},
    machine::{
        ids::{NodeTag, PoolName, SandboxId},
        spec::{Readiness, Resources, Template},
    },
    runtime::{
        CreateSpec, Runtime, RuntimeConfig, RuntimeEvent, RuntimeMetrics, SHIM,
        containerd::{Connected, ContainerdRuntime},
        managed::{ManagedConfig, ManagedContainerd},
    },
};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{image::Layout, tool::tool};

#[path = "patience.rs"]
mod patience;
pub use patience::patient;

/// Nothing takes so long; only for what would hang.
pub fn patience() -> Duration {
    patient(Duration::from_secs(30))
}
pub const IMAGE: &str = "test.local/busybox:1";
pub const LIMIT: Duration = Duration::from_secs(5);

/// A stand-in for hearth-init: answers a line with "pong" and the line, and runs what follows "run ". Its arguments are
/// kept as they came.
const FAKE_INIT: &str = r#"#!/bin/sh
args="$*"
while read -r word rest; do
  case $word in
    run) eval "$rest" 2>&1; echo "exit $?" ;;
    args) echo "$args"; echo "exit 0" ;;
    *) echo "pong $word" ;;
  esac
done
"#;

/// What is on top of a started containerd.
pub struct Adapter {
    pub runtime: Arc<ContainerdRuntime>,
    pub events: mpsc::Receiver<RuntimeEvent>,
    background: JoinHandle<()>,
}

impl Adapter {
    fn new(config: RuntimeConfig, metrics: RuntimeMetrics) -> Self {
        let Connected {
            runtime,
            background,
            events,
        } = ContainerdRuntime::connect(config, metrics).unwrap();
        Self {
            runtime,
            events,
            background: tokio::spawn(background.run()),
        }
    }

    /// The next event that is not about something else.
    pub async fn event(&mut self, wanted: impl Fn(&RuntimeEvent) -> bool) -> RuntimeEvent {
        let next = async {
            loop {
                let event = self.events.recv().await.unwrap();
                if wanted(&event) {
                    return event;
                }
            }
        };
        tokio::time::timeout(patience(), next)
            .await
            .expect("the event comes")
    }

    /// The end of one sandbox; whether it ran out of memory.
    pub async fn exit_of(&mut self, id: SandboxId) -> bool {
        let event = self
            .event(|event| matches!(event, RuntimeEvent::Exited { id: other, .. } if *other == id));
        matches!(
            event.await,
            RuntimeEvent::Exited {
                out_of_memory: true,
                ..
            }
        )
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        self.background.abort();
    }
}

pub struct Node {
    pub dir: tempfile::TempDir,
    pub config: RuntimeConfig,
    pub managed_config: ManagedConfig,
    pub managed: Arc<ManagedContainerd>,
    pub adapter: Option<Adapter>,
    pub registry: prometheus::Registry,
    pub tree: CgroupTree,
    pub metrics: RuntimeMetrics,
    supervisor: JoinHandle<()>,
    next: u64,
    ended: bool,
}

impl Node {
    pub async fn start(test: &str) -> Self {
        Self::start_with(test, |_| {}).await
    }

    /// `change` may adapt the adapter's configuration.
    pub async fn start_with(test: &str, change: impl FnOnce(&mut RuntimeConfig)) -> Self {
        // Short: a socket's path is bounded.
        let dir = tempfile::Builder::new()
            .prefix("hr")
            .tempdir_in("/tmp")
            .unwrap();
        let run_dir = dir.path().join("run");
        let mut config = RuntimeConfig {
            socket: PathBuf::new(),
            wrapper: env!("CARGO_BIN_EXE_hearth-runsc").into(),
            runsc: tool("runsc"),
            runsc_root: run_dir.join("runsc"),
            run_dir,
            init: dir.path().join("init"),
            shim: SHIM.into(),
            snapshotter: "overlayfs".into(),
            cgroup_parent: format!("/hearth-runtime-{}-{test}", std::process::id()),
            node_tag: NodeTag(u32::from_le_bytes(
                uuid::Uuid::new_v4().into_bytes()[..4].try_into().unwrap(),
            )),
            kata: Vec::new(),
            kata_run: "/run".into(),
        };
        change(&mut config);
        if !config.init.exists() {
            fs::write(&config.init, FAKE_INIT).unwrap();
            fs::set_permissions(&config.init, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let managed_config = ManagedConfig {
            containerd: tool("containerd"),
            shim: tool("containerd-shim-runc-v2"),
            snapshotter: config.snapshotter.clone(),
            data_dir: dir.path().join("data"),
            run_dir: config.run_dir.clone(),
            runsc_root: config.runsc_root.clone(),
            cgroup_parent: config.cgroup_parent.clone(),
            hung_after: patient(Duration::from_secs(3)),
        };
        config.socket = managed_config.socket();
        let registry = prometheus::Registry::new();
        let metrics = RuntimeMetrics::register(&registry).unwrap();
        let managed = ManagedContainerd::start(managed_config.clone(), metrics.clone())
            .await
            .unwrap();
        let supervisor = tokio::spawn({
            let managed = managed.clone();
            async move { managed.supervise().await }
        });
        let adapter = Some(Adapter::new(config.clone(), metrics.clone()));
        Self {
            dir,
            config,
            managed_config,
            managed,
            adapter,
            registry,
            tree: CgroupTree::detect("/sys/fs/cgroup").unwrap(),
            metrics,
            supervisor,
            next: 0,
            ended: false,
        }
    }

    /// With the busybox image.
    pub async fn with_image(test: &str) -> Self {
        let node = Self::start(test).await;
        node.import(Layout::busybox().named(IMAGE)).await;
        node
    }

    pub async fn import(&self, layout: Layout) {
        let archive = layout.archive(&self.dir.path().join("image.tar"));
        let (progress, _) = mpsc::channel(1);
        self.runtime()
            .import_image(&archive, None, progress)
            .await
            .unwrap();
    }

    pub fn adapter(&mut self) -> &mut Adapter {
        self.adapter.as_mut().unwrap()
    }

    pub fn runtime(&self) -> Arc<ContainerdRuntime> {
        self.adapter.as_ref().unwrap().runtime.clone()
    }

    /// As when hearthd ends and a new one starts.
    pub fn restart_adapter(&mut self) {
        self.adapter = None;
        self.adapter = Some(Adapter::new(self.config.clone(), self.metrics.clone()));
    }

    /// A sandbox to be made.
    pub fn spec(&mut self, image: &str) -> CreateSpec {
        self.next += 1;
        CreateSpec {
            id: SandboxId::new(self.config.node_tag, self.next).unwrap(),
            pool: PoolName::parse("pool").unwrap(),
            generation: 1,
            template: Arc::new(template(image)),
            network: None,
        }
    }

    /// A running one.
    pub async fn sandbox(&mut self) -> SandboxId {
        let spec = self.spec(IMAGE);
        self.runtime().create(&spec).await.unwrap();
        spec.id
    }

    pub fn group(&self, id: SandboxId) -> SandboxCgroup {
        let parent = &self.config.cgroup_parent;
        self.tree.sandbox(parent, "pool", &id.to_string()).unwrap()
    }

    pub fn guest(&self, id: SandboxId) -> Guest {
        Guest::open(&*self.runtime(), id)
    }

    /// A counter or the count of a histogram, over all its labels that contain `label`.
    pub fn count(&self, name: &str, label: &str) -> u64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let metrics = family.map(|family| family.get_metric()).unwrap_or_default();
        let fits = |metric: &&prometheus::proto::Metric| {
            label.is_empty() || metric.get_label().iter().any(|pair| pair.value() == label)
        };
        let one = |metric: &prometheus::proto::Metric| {
            let counter = metric.get_counter().get_value();
            metric.get_histogram().get_sample_count()
                + format!("{counter:.0}").parse::<u64>().unwrap()
        };
        metrics.iter().filter(fits).map(one).sum()
    }

    /// The mean of a histogram under one label, in its unit.
    pub fn mean(&self, name: &str, label: &str) -> f64 {
        let families = self.registry.gather();
        let family = families
            .iter()
            .find(|family| family.name() == name)
            .unwrap();
        let fits = |metric: &&prometheus::proto::Metric| {
            metric.get_label().iter().any(|pair| pair.value() == label)
        };
        let histogram = family
            .get_metric()
            .iter()
            .find(fits)
            .unwrap()
            .get_histogram();
        histogram.get_sample_sum() / histogram.get_sample_count() as f64
    }

    /// Nothing of a sandbox is anywhere.
    pub async fn assert_gone(&self, id: SandboxId) {
        let text = id.to_string();
        assert!(
            self.runtime()
                .list()
                .await
                .unwrap()
                .iter()
                .all(|seen| seen.id != id)
        );
        assert!(!self.group(id).exists(), "cgroup");
        assert!(
            !self.config.run_dir.join("sandboxes").join(&text).exists(),
            "directory"
        );
        assert_eq!(processes(&text), Vec::<String>::new());
        assert_eq!(mounts(&text), Vec::<String>::new());
        let mut left = Vec::new();
        find(self.dir.path(), &text, &mut left);
        left.retain(|path| !path.ends_with("containerd.log"));
        assert_eq!(left, Vec::<PathBuf>::new());
        let snapshots = self.ctr(&["snapshots", "ls"]);
        assert!(!snapshots.contains(&text), "{snapshots}");
    }

    pub fn ctr(&self, args: &[&str]) -> String {
        let mut command = std::process::Command::new(tool("ctr"));
        command
            .args(["--connect-timeout", "5s", "-n", "hearth", "--address"])
            .arg(&self.config.socket);
        let said = command.args(args).output().unwrap();
        assert!(said.status.success(), "{args:?}: {said:?}");
        String::from_utf8(said.stdout).unwrap()
    }

    /// Destroys all, ends containerd, and looks for what is left.
    pub async fn finish(mut self) {
        let runtime = self.runtime();
        for seen in runtime.list().await.unwrap() {
            runtime.destroy(seen.id).await.unwrap();
        }
        let sockets = fs::read_dir(self.config.run_dir.join("containerd/s"));
        let sockets: Vec<_> = sockets
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(sockets, Vec::<PathBuf>::new(), "sockets of shims");
        self.adapter = None;
        self.finish_stopped().await;
    }

    /// Ends containerd, and looks for what is left.
    pub async fn finish_stopped(mut self) {
        self.managed.stop().await.unwrap();
        tokio::time::timeout(patience(), &mut self.supervisor)
            .await
            .unwrap()
            .unwrap();
        self.ended = true;
        let dir = self.dir.path().display().to_string();
        assert_eq!(processes(&dir), Vec::<String>::new());
        assert_eq!(mounts(&dir), Vec::<String>::new());
        let parent = &self.config.cgroup_parent;
        assert!(self.tree.remove_parent(parent).unwrap(), "cgroups are left");
        assert!(self.tree.list(parent).unwrap().is_empty());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // A failed test: show what containerd said, and clean up as far as possible.
        self.supervisor.abort();
        let log =
            fs::read_to_string(self.dir.path().join("data/containerd.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        eprintln!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        let managed = self.managed.clone();
        let stopped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async { managed.stop().await })
        });
        eprintln!("cleaning up after a failed test: {:?}", stopped.join());
    }
}

pub fn template(image: &str) -> Template {
    Template {
        image: image.to_owned(),
        runtime_handler: "gvisor".to_owned(),
        runtime_class: String::new(),
        command: Vec::new(),
        env: [("FROM_TEMPLATE".to_owned(), "too".to_owned())].into(),
        working_dir: String::new(),
        resources: Resources {
            cpu_millis: 0,
            memory_bytes: 128 << 20,
            pids: 64,
            disk_bytes: 8 << 20,
            open_files: 65_536,
        },
        network_policy: Default::default(),
        warm_command: Vec::new(),
        readiness: Readiness {
            command: Vec::new(),
            timeout_ms: 30_000,
        },
        interpreter: String::new(),
        prefork: 0,
        idle_after_ms: 0,
        on_data_loss: hearth::machine::spec::OnDataLoss::Fail,
    }
}

/// The host's end of a sandbox's FIFOs, in lines.
pub struct Guest {
    stdin: fs::File,
    stdout: fs::File,
    rest: Vec<u8>,
}

impl Guest {
    pub fn open(runtime: &dyn Runtime, id: SandboxId) -> Self {
        let paths = runtime.stdio(id);
        let open = |path: &Path| {
            let mut options = fs::OpenOptions::new();
            let options = options.read(true).write(true);
            options
                .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
                .open(path)
                .unwrap()
        };
        Self {
            stdin: open(&paths.stdin),
            stdout: open(&paths.stdout),
            rest: Vec::new(),
        }
    }

    pub fn send(&mut self, line: &str) {
        self.stdin
            .write_all(format!("{line}\n").as_bytes())
            .unwrap();
    }

    pub async fn line(&mut self) -> String {
        let began = Instant::now();
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return String::from_utf8_lossy(&line).trim_end().to_owned();
            }
            let mut piece = [0; 4096];
            match self.stdout.read(&mut piece) {
                Ok(read) => self.rest.extend_from_slice(&piece[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    assert!(began.elapsed() < patience(), "the guest is silent");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub async fn assert_answers(&mut self, word: &str) {
        self.send(word);
        assert_eq!(self.line().await, format!("pong {word}"));
    }

    /// Runs a shell command inside: what it says, and its exit status.
    pub async fn run(&mut self, command: &str) -> (String, i32) {
        self.send(&format!("run {command}"));
        self.until_exit().await
    }

    pub async fn until_exit(&mut self) -> (String, i32) {
        let mut said = Vec::new();
        loop {
            let line = self.line().await;
            match line.strip_prefix("exit ") {
                Some(code) => return (said.join("\n"), code.parse().unwrap()),
                None => said.push(line),
            }
        }
    }
}

/// Command lines of processes (but our own) that contain `text`.
pub fn processes(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().map(Result::unwrap) {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let own = entry.file_name() == std::process::id().to_string().as_str();
        if line.contains(text) && !own {
            found.push(format!("{:?} {line}", entry.file_name()));
        }
    }
    found
}

pub fn mounts(text: &str) -> Vec<String> {
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    all.lines()
        .filter(|line| line.contains(text))
        .map(str::to_owned)
        .collect()
}

/// Files and directories below `dir` whose name contains `text`.
fn find(dir: &Path, text: &str, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.map(Result::unwrap) {
        if entry.file_name().to_string_lossy().contains(text) {
            found.push(entry.path());
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find(&entry.path(), text, found);
        }
    }
}

/// Waits for something that must come.
pub async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(
            began.elapsed() < patience(),
            "not within {:?}: {what}",
            patience()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
