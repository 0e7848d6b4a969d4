//! A containerd of the test's own, driven by `ctr`, with hearth-runsc as its runtime: own directories, own sockets, own
//! cgroup parent; nothing is left at the end.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use hearth::{
    cgroup::{CgroupTree, SandboxCgroup},
    ociwrap::WrapperConfig,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

#[path = "patience.rs"]
mod patience;
pub use patience::patient;
#[path = "tool.rs"]
mod tool;
pub use tool::tool;

pub const POOL: &str = "pool";

fn patience() -> Duration {
    patient(Duration::from_secs(20))
}

/// What a finished command said.
#[derive(Debug)]
pub struct Said {
    pub ok: bool,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

pub fn say(command: &mut Command) -> Said {
    let began = Instant::now();
    let Output {
        status,
        stdout,
        stderr,
    } = command.stdin(Stdio::null()).output().unwrap();
    Said {
        ok: status.success(),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
        took: began.elapsed(),
    }
}

/// Waits for something that must come.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(
            began.elapsed() < patience(),
            "not within {:?}: {what}",
            patience()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One containerd with one cgroup parent.
pub struct Node {
    pub dir: tempfile::TempDir,
    pub config: WrapperConfig,
    pub tree: CgroupTree,
    containerd: Option<Child>,
    ids: Vec<String>,
}

impl Node {
    /// Starts it; `change` may adapt the wrapper's configuration, given the directory.
    pub fn start(test: &str, change: impl FnOnce(&mut WrapperConfig, &Path)) -> Self {
        // Short: a socket's path is bounded, and the shim adds to it.
        let dir = tempfile::Builder::new()
            .prefix("hw")
            .tempdir_in("/tmp")
            .unwrap();
        let parent = format!("/hearth-wrapper-{}-{test}", std::process::id());
        let mut config = WrapperConfig::new(tool("runsc"), parent);
        change(&mut config, dir.path());
        config.write(&dir.path().join("runc")).unwrap();
        let bin = dir.path().join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        let busybox = Path::new("/bin/busybox");
        assert!(
            busybox.exists(),
            "busybox-static is missing: run `make setup`"
        );
        fs::copy(busybox, bin.join("busybox")).unwrap();
        let mut node = Self {
            dir,
            config,
            tree: CgroupTree::detect("/sys/fs/cgroup").unwrap(),
            containerd: None,
            ids: Vec::new(),
        };
        node.boot();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts containerd and tells how long it took to answer a list of the tasks.
    pub fn boot(&mut self) -> Duration {
        let text = format!(
            "version = 3\nroot = {root:?}\nstate = {state:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\", \
             \"io.containerd.cri.v1.runtime\", \"io.containerd.nri.v1.nri\"]\n\
             [grpc]\naddress = {socket:?}\n[ttrpc]\naddress = {ttrpc:?}\n",
            root = self.path("root"),
            state = self.path("state"),
            socket = self.path("s"),
            ttrpc = self.path("t"),
        );
        fs::write(self.path("config.toml"), text).unwrap();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let bin = tool("containerd").parent().unwrap().display().to_string();
        let path = format!("{bin}:{}", std::env::var("PATH").unwrap());
        tool("containerd-shim-runc-v2");
        let began = Instant::now();
        let child = Command::new(tool("containerd"))
            .arg("--config")
            .arg(self.path("config.toml"))
            .env("PATH", path)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.containerd = Some(child);
        eventually("containerd answers", || self.ctr(&["tasks", "ls"]).ok);
        began.elapsed()
    }

    /// Ends containerd as a crash does. The shims live on.
    pub fn crash(&mut self) {
        let mut child = self.containerd.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn ctr(&self, args: &[&str]) -> Said {
        let mut command = Command::new(tool("ctr"));
        command
            .args(["--connect-timeout", "2s", "--address"])
            .arg(self.path("s"));
        say(command.args(["-n", "hearth"]).args(args))
    }

    /// A busybox sandbox; `extra` are flags of `ctr run`.
    pub fn run(&mut self, id: &str, extra: &[&str], command: &[&str]) -> Said {
        let (rootfs, runc) = (self.path("rootfs"), self.path("runc"));
        let cgroup = format!("{}/{POOL}/{id}", self.config.cgroup_parent);
        let mut args = vec![
            "run",
            "-d",
            "--null-io",
            "--runtime",
            "io.containerd.runc.v2",
        ];
        args.extend(["--runc-binary", env!("CARGO_BIN_EXE_hearth-runsc")]);
        args.extend(["--runc-root", runc.to_str().unwrap(), "--cgroup", &cgroup]);
        args.extend(extra);
        args.extend(["--rootfs", rootfs.to_str().unwrap(), id]);
        args.extend(command);
        self.ids.push(id.to_owned());
        self.ctr(&args)
    }

    /// One that sleeps.
    pub fn sleeper(&mut self, id: &str) -> SandboxCgroup {
        let said = self.run(id, &[], &["/bin/busybox", "sleep", "100000"]);
        assert!(said.ok, "{said:?}\n{}", self.log());
        self.group(id)
    }

    pub fn group(&self, id: &str) -> SandboxCgroup {
        self.tree
            .sandbox(&self.config.cgroup_parent, POOL, id)
            .unwrap()
    }

    /// A command inside a running sandbox.
    pub fn exec(&self, id: &str, command: &[&str]) -> Said {
        let exec = format!("e{}", fastrand());
        let mut args = vec!["tasks", "exec", "--exec-id", &exec, id];
        args.extend(command);
        self.ctr(&args)
    }

    /// RUNNING, STOPPED, …; `None` when there is no task.
    pub fn status(&self, id: &str) -> Option<String> {
        let said = self.ctr(&["tasks", "ls"]);
        let mut lines = said.stdout.lines().map(str::split_whitespace);
        lines.find_map(|mut words| {
            (words.next() == Some(id)).then(|| words.nth(1).map(str::to_owned))?
        })
    }

    /// hearth-runsc as the shim calls it.
    pub fn wrapper(&self, args: &[&str]) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hearth-runsc"));
        command.arg("--root").arg(self.path("runc/hearth"));
        say(command.args(args))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Kills, deletes and removes a sandbox; what the shim says to the deletes.
    pub fn remove(&mut self, id: &str) -> (Said, Said) {
        self.group(id).kill(patience()).unwrap();
        eventually("the shim sees the end", || {
            self.status(id).is_none_or(|status| status != "RUNNING")
        });
        let task = self.ctr(&["tasks", "delete", id]);
        let container = self.ctr(&["containers", "rm", id]);
        self.ids.retain(|known| known != id);
        (task, container)
    }
}

/// Enough to tell exec ids apart.
fn fastrand() -> u128 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos()
}

impl Drop for Node {
    fn drop(&mut self) {
        let panicking = std::thread::panicking();
        for id in self.ids.clone() {
            let _said = self.remove(&id);
        }
        if let Some(mut child) = self.containerd.take() {
            let _ended = kill(
                Pid::from_raw(i32::try_from(child.id()).unwrap()),
                Signal::SIGTERM,
            );
            child.wait().unwrap();
        }
        let parent = self.config.cgroup_parent.clone();
        for found in self.tree.list(&parent).unwrap_or_default() {
            let group = self.tree.sandbox(&parent, &found.pool, &found.id).unwrap();
            let _cleaned = group
                .kill(patience())
                .and_then(|()| group.remove(patience()));
        }
        let gone = self.tree.remove_parent(&parent).unwrap_or(false);
        // runsc keeps one mount per root for all its gofers; whoever owns the root unmounts it at the end.
        let null = self.path("runc/hearth").join(hearth::ociwrap::NULL_NETNS);
        if null.exists() {
            let _unmounted = Command::new("umount").arg(&null).status();
        }
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let prefix = self.dir.path().to_str().unwrap();
        let left: Vec<_> = mounts
            .lines()
            .filter(|line| line.contains(prefix))
            .collect();
        for line in &left {
            let _unmounted = Command::new("umount")
                .arg(line.split(' ').nth(1).unwrap())
                .status();
        }
        if panicking {
            eprintln!("{}", self.log());
        } else {
            assert!(gone, "cgroup {parent} is left");
            assert!(left.is_empty(), "mounts are left: {left:?}");
        }
    }
}
