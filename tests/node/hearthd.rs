//! A real hearthd of the test's own: own directories, sockets and cgroup parent, its own managed containerd, the real
//! runsc. Killed, restarted and counted by tests; nothing is left at the end, or the test fails.

use hearth::api::claims_client::ClaimsClient;
use hearth::api::node_client::NodeClient;
use hearth::api::pools_client::PoolsClient;
use hearth::api::sandboxes_client::SandboxesClient;
use hearth::api::{
    Claim, ClaimRequest, ClaimResponse, ExecRequest, ExecStart, GetClaimRequest, GetPoolsRequest,
    ImportImageRequest, InfoRequest, OnEmpty, Pool, ReleaseRequest, Resources, SetPoolsRequest,
    Template, exec_request, exec_response,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

#[path = "../support/patience.rs"]
mod patience;
// The benches need not all of it.
#[allow(unused_imports)]
pub use patience::{factor, patient};
#[path = "../support/tool.rs"]
mod tool;
use tool::needed;
pub use tool::{python_archive, tool};

/// How long anything that must come may take on a busy machine.
pub fn patience() -> Duration {
    patient(Duration::from_secs(60))
}

/// A connection to a hearthd that dies and comes back.
pub async fn reach(socket: &str, limit: Duration) -> Channel {
    let began = Instant::now();
    loop {
        let endpoint = Endpoint::try_from(socket.to_owned()).unwrap();
        if let Ok(channel) = endpoint.connect().await {
            return channel;
        }
        assert!(began.elapsed() < limit, "hearthd is away for good");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub const IMAGE: &str = "hearth.local/python:3";

/// The static hearth-init.
pub fn static_init() -> PathBuf {
    static_file("hearth-init")
}

/// What `hack/build.sh hostile` builds.
pub fn static_file(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/static");
    needed(dir.join(name), "run `hack/build.sh hostile`")
}

pub fn fresh_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Pids of processes whose command line fits.
pub fn processes(mut fits: impl FnMut(&[String]) -> bool) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        let words: Vec<_> = line
            .trim_end_matches('\0')
            .split('\0')
            .map(str::to_owned)
            .collect();
        if !line.is_empty() && fits(&words) {
            found.push(pid);
        }
    }
    found
}

/// Waits for something that must come.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let began = Instant::now();
    while !done().await {
        assert!(
            began.elapsed() < patience(),
            "not within {:?}: {what}",
            patience()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One hearthd.
pub struct Hearth {
    root: tempfile::TempDir,
    settings: Vec<(String, String)>,
    /// Words before the command line.
    prefix: Vec<String>,
    child: Option<Child>,
    pub admin: String,
    /// The network namespace it runs in, at its end too; `None`: ours.
    netns: Option<String>,
}

impl Hearth {
    /// Starts it with the python image imported and no pool.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with settings of the test's own; those in capitals go into the environment.
    pub async fn start_with(settings: &[(&str, &str)]) -> Self {
        Self::start_as(&[], settings).await
    }

    /// The same through another program (setpriv), which becomes it.
    pub async fn start_as(prefix: &[&str], settings: &[(&str, &str)]) -> Self {
        Self::begin(prefix, None, settings, |_| ()).await
    }

    /// The same with something done to its empty directory first.
    pub async fn start_in(prepare: impl FnOnce(&Path), settings: &[(&str, &str)]) -> Self {
        Self::begin(&[], None, settings, prepare).await
    }

    /// The same in a network namespace of `ip netns`, perhaps through another program.
    pub async fn start_inside(prefix: &[String], netns: &str, settings: &[(&str, &str)]) -> Self {
        let entered = format!("--net=/run/netns/{netns}");
        let mut words = vec!["nsenter", &entered];
        words.extend(prefix.iter().map(String::as_str));
        Self::begin(&words, Some(netns.to_owned()), settings, |_| ()).await
    }

    async fn begin(
        prefix: &[&str],
        netns: Option<String>,
        settings: &[(&str, &str)],
        prepare: impl FnOnce(&Path),
    ) -> Self {
        // Short: sockets' paths are bounded.
        let root = tempfile::Builder::new()
            .prefix("hh")
            .tempdir_in("/tmp")
            .unwrap();
        prepare(root.path());
        let admin = {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().to_string()
        };
        let mut own = vec![
            (
                "api.socket".to_owned(),
                root.path().join("s").display().to_string(),
            ),
            ("admin.listen".to_owned(), admin.clone()),
            (
                "runtime.init".to_owned(),
                static_init().display().to_string(),
            ),
            (
                "runtime.wrapper".to_owned(),
                env!("CARGO_BIN_EXE_hearth-runsc").to_owned(),
            ),
            ("log.format".to_owned(), "json".to_owned()),
            ("log.level".to_owned(), "info,hearth=debug".to_owned()),
        ];
        own.extend(
            settings
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned())),
        );
        let mut hearth = Self {
            root,
            settings: own,
            prefix: prefix.iter().map(|word| (*word).to_owned()).collect(),
            child: None,
            admin,
            netns,
        };
        hearth.boot(true).await;
        hearth.import(&python_archive(), IMAGE).await;
        hearth
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn cgroup_parent(&self) -> String {
        format!(
            "/{}",
            self.root.path().file_name().unwrap().to_str().unwrap()
        )
    }

    /// The command line; `clear`: its end also ends all sandboxes and containerd.
    pub fn command(&self, clear: bool) -> Command {
        let hearthd = env!("CARGO_BIN_EXE_hearthd");
        // The end removes what is not hearthd's in its daily life (its cgroup parent): with all rights.
        let mut command = match self.prefix.split_first().filter(|_| !clear) {
            Some((program, words)) => {
                let mut command = Command::new(program);
                command.args(words).arg(hearthd);
                command
            }
            None => match &self.netns {
                Some(netns) => {
                    let mut command = Command::new("nsenter");
                    command
                        .arg(format!("--net=/run/netns/{netns}"))
                        .arg(hearthd);
                    command
                }
                None => Command::new(hearthd),
            },
        };
        if clear {
            command.arg("--dev").arg("--dev-root").arg(self.root.path());
            command.args(["--dev-image", "/nonexistent"]);
        } else {
            for (key, value) in [
                ("data_dir", self.path("data").display().to_string()),
                ("run_dir", self.path("run").display().to_string()),
                ("runtime.cgroup_parent", self.cgroup_parent()),
            ] {
                command.arg("--set").arg(format!("{key}={value}"));
            }
        }
        for (key, value) in &self.settings {
            if key.starts_with(|c: char| c.is_ascii_uppercase()) {
                command.env(key, value);
                continue;
            }
            command.arg("--set").arg(format!("{key}={value}"));
        }
        command.stdin(Stdio::null());
        command
    }

    /// Starts it again and waits for nothing.
    pub fn start_again(&mut self) {
        self.spawn(true);
    }

    /// It was killed by a signal. How it ended is forgotten: [`Self::restart`] may follow.
    pub fn has_died(&mut self) -> bool {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.as_mut().unwrap().try_wait().unwrap();
        let Some(status) = status else { return false };
        assert_eq!(status.signal(), Some(9), "{status}:\n{}", self.log_tail());
        self.child = None;
        true
    }

    /// How it ended by itself, once it has. [`Self::restart`] may follow.
    pub async fn end(&mut self) -> std::process::ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                self.child = None;
                return status;
            }
            assert!(
                began.elapsed() < patience(),
                "it lives:\n{}",
                self.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn spawn(&mut self, keep: bool) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let mut command = self.command(!keep);
        self.child = Some(
            command
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap(),
        );
    }

    async fn boot(&mut self, keep: bool) {
        self.spawn(keep);
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("hearthd ended with {status}:\n{}", self.log_tail());
            }
            if self.phase().await.as_deref() == Some("ready") {
                return;
            }
            assert!(
                began.elapsed() < patience(),
                "hearthd is not ready:\n{}",
                self.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// "recovering", "ready", "degraded"; `None` while it does not answer.
    pub async fn phase(&self) -> Option<String> {
        let channel = self.try_channel().await?;
        let info = NodeClient::new(channel).info(InfoRequest {}).await.ok()?;
        Some(info.into_inner().phase)
    }

    /// Starts it again after [`Self::kill`] or [`Self::terminate`]; returns when it is ready.
    pub async fn restart(&mut self) -> Duration {
        let began = Instant::now();
        self.boot(true).await;
        began.elapsed()
    }

    /// Another value of a setting, from the next start on.
    pub fn set(&mut self, key: &str, value: &str) {
        self.settings.retain(|(known, _)| known != key);
        self.settings.push((key.to_owned(), value.to_owned()));
    }

    /// What a reboot does: every process of the node ends at once, mounts, cgroups and the run directory are gone.
    pub async fn reboot(&mut self) {
        self.kill();
        let root = self.root.path().to_str().unwrap().to_owned();
        let ours = || processes(|line| line.iter().any(|word| word.contains(&root)));
        let tree = hearth::cgroup::CgroupTree::detect("/sys/fs/cgroup").unwrap();
        let parent = self.cgroup_parent();
        eventually("every process has ended", || async {
            for pid in ours() {
                let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            for found in tree.list(&parent).unwrap() {
                let group = tree.sandbox(&parent, &found.pool, &found.id).unwrap();
                group.kill(patience()).unwrap();
            }
            ours().is_empty()
        })
        .await;
        for found in tree.list(&parent).unwrap() {
            let group = tree.sandbox(&parent, &found.pool, &found.id).unwrap();
            group.remove(patience()).unwrap();
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for point in points.filter(|point| point.contains(&root)) {
            let _gone = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
        std::fs::remove_dir_all(self.path("run")).unwrap();
        self.restart().await;
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; how it ended.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        let mut child = self.child.take().unwrap();
        kill(
            Pid::from_raw(i32::try_from(child.id()).unwrap()),
            Signal::SIGTERM,
        )
        .unwrap();
        child.wait().unwrap()
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Its last words, but those about who asks how it is, and containerd's.
    pub fn log_tail(&self) -> String {
        let tail = |text: &str, most: usize| {
            let lines = text.lines().filter(|line| !line.contains("Node/Info"));
            let lines: Vec<_> = lines.collect();
            lines[lines.len().saturating_sub(most)..].join("\n")
        };
        let containerd = std::fs::read_to_string(self.path("data/containerd.log"));
        let containerd = containerd.unwrap_or_default();
        format!(
            "{}\ncontainerd:\n{}",
            tail(&self.log_text(), 60),
            tail(&containerd, 20)
        )
    }

    async fn try_channel(&self) -> Option<Channel> {
        let endpoint = format!("unix://{}", self.path("s").display());
        Endpoint::try_from(endpoint).unwrap().connect().await.ok()
    }

    pub async fn channel(&self) -> Channel {
        self.try_channel().await.expect("hearthd's socket")
    }

    pub async fn claims(&self) -> ClaimsClient<Channel> {
        ClaimsClient::new(self.channel().await)
    }

    pub async fn pools(&self) -> PoolsClient<Channel> {
        PoolsClient::new(self.channel().await)
    }

    pub async fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel().await)
    }

    pub async fn sandboxes(&self) -> SandboxesClient<Channel> {
        SandboxesClient::new(self.channel().await)
    }

    pub async fn import(&self, archive: &Path, name: &str) {
        let content = std::fs::read(archive).unwrap();
        let mut requests: Vec<_> = content
            .chunks(1 << 20)
            .map(|chunk| ImportImageRequest {
                name: String::new(),
                chunk: chunk.to_vec().into(),
                eof: false,
            })
            .collect();
        requests[0].name = name.to_owned();
        requests.last_mut().unwrap().eof = true;
        let mut node = self.node().await;
        let mut steps = node
            .import_image(tokio_stream::iter(requests))
            .await
            .unwrap()
            .into_inner();
        while let Some(step) = steps.message().await.unwrap() {
            if step.stage == "done" {
                return;
            }
        }
        panic!("the import never said done");
    }

    /// Declares pools under the next generation.
    pub async fn set_pools(&self, pools: Vec<Pool>) {
        let mut client = self.pools().await;
        let now = client
            .get_pools(GetPoolsRequest::default())
            .await
            .unwrap()
            .into_inner();
        let request = SetPoolsRequest {
            generation: now.generation + 1,
            pools,
            epoch: 1,
        };
        client.set_pools(request).await.unwrap();
    }

    /// Waits until the pool has this many warm members.
    pub async fn warm(&self, pool: &str, count: u32) {
        eventually(&format!("{count} warm members of {pool}"), || async {
            self.status(pool).await.warm >= count
        })
        .await;
    }

    pub async fn status(&self, pool: &str) -> hearth::api::PoolStatus {
        let mut client = self.pools().await;
        let pools = client
            .get_pools(GetPoolsRequest::default())
            .await
            .unwrap()
            .into_inner();
        let view = pools.pools.into_iter().find(|view| {
            view.pool
                .as_ref()
                .is_some_and(|declared| declared.name == pool)
        });
        view.unwrap().status.unwrap()
    }

    pub async fn claim(&self, pool: &str) -> (String, ClaimResponse) {
        let id = fresh_id();
        let request = claim_request(&id, pool);
        let answer = self.claims().await.claim(request).await.unwrap();
        (id, answer.into_inner())
    }

    pub async fn release(&self, claim: &str) {
        let request = ReleaseRequest {
            claim_id: claim.to_owned(),
            epoch: 1,
        };
        self.claims().await.release(request).await.unwrap();
    }

    /// What is known of a claim.
    pub async fn get(&self, claim: &str) -> Claim {
        let request = GetClaimRequest {
            claim_id: claim.to_owned(),
        };
        let got = self.claims().await.get(request).await.unwrap();
        got.into_inner().claim.unwrap()
    }

    /// Claims from a pool, waits for a member if need be, runs something and releases: every call must succeed.
    pub async fn serve_one(&self, pool: &str) {
        let id = fresh_id();
        let request = patient_request(&id, pool, 60);
        self.claims().await.claim(request).await.unwrap();
        let ran = self.run(&id, &["echo", "served"]).await;
        assert_eq!(ran, (0, "served\n".to_owned()));
        self.release(&id).await;
    }

    /// Runs a command inside: (exit code, stdout).
    pub async fn run(&self, claim: &str, command: &[&str]) -> (i32, String) {
        self.try_run(claim, command).await.unwrap()
    }

    pub async fn try_run(
        &self,
        claim: &str,
        command: &[&str],
    ) -> Result<(i32, String), tonic::Status> {
        run_in(self.channel().await, claim, command).await
    }

    /// Starts a python inside that holds so much memory, and does nothing with it.
    pub async fn hold(&self, claim: &str, mib: u64) {
        let script = format!(
            "import os,time\npiece=os.urandom(1<<20)\nballast=[piece[1:] for _ in range({mib})]\nopen('/tmp/held','w').close()\ntime.sleep(100000)"
        );
        self.start_detached(claim, &["python3", "-c", &script])
            .await;
        eventually("it holds its memory", || async {
            self.run(claim, &["test", "-e", "/tmp/held"]).await.0 == 0
        })
        .await;
    }

    /// Starts a command inside that outlives its stream.
    pub async fn start_detached(&self, claim: &str, command: &[&str]) {
        let start = ExecStart {
            claim_id: claim.to_owned(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            detach: true,
            ..ExecStart::default()
        };
        let request = ExecRequest {
            request: Some(exec_request::Request::Start(start)),
        };
        let mut client = self.sandboxes().await;
        let mut stream = client
            .exec(tokio_stream::iter([request]))
            .await
            .unwrap()
            .into_inner();
        let first = stream.message().await.unwrap().unwrap().response.unwrap();
        assert!(
            matches!(first, exec_response::Response::StartedPid(_)),
            "{first:?}"
        );
    }

    /// A page of the admin port.
    pub fn admin_page(&self, path: &str) -> (u16, String) {
        use std::io::{Read, Write};
        let admin = self.admin.clone();
        let connect = move || std::net::TcpStream::connect(admin).unwrap();
        let mut stream = match &self.netns {
            Some(netns) => crate::outside::within(netns, connect),
            None => connect(),
        };
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: hearth\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        (code, body.to_owned())
    }

    /// The state dump.
    pub fn state(&self) -> serde_json::Value {
        let (code, body) = self.admin_page("/state");
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// kill -9 of the managed containerd; hearthd starts another.
    pub fn kill_containerd(&self) {
        kill(self.containerd_pid(), Signal::SIGKILL).unwrap();
    }

    pub fn containerd_pid(&self) -> Pid {
        let config = self.path("").display().to_string();
        let pid = processes(|line| {
            line[0].ends_with("/containerd") && line.iter().any(|word| word.starts_with(&config))
        });
        assert_eq!(pid.len(), 1, "one managed containerd");
        Pid::from_raw(pid[0])
    }

    pub fn ctr(&self, args: &[&str]) -> String {
        let output = Command::new(tool("ctr"))
            .arg("--address")
            .arg(self.containerd_socket())
            .args(["-n", "hearth"])
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "ctr {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn containerd_socket(&self) -> PathBuf {
        self.path("run/containerd/containerd.sock")
    }

    /// What there is of sandboxes outside hearthd.
    pub fn census(&self) -> Census {
        let ids = |text: String| -> BTreeSet<String> {
            let lines = text
                .lines()
                .filter_map(|line| line.split_whitespace().next());
            lines
                .filter(|word| *word != "TASK")
                .map(str::to_owned)
                .collect()
        };
        let tree = hearth::cgroup::CgroupTree::detect("/sys/fs/cgroup").unwrap();
        let cgroups = tree.list(&self.cgroup_parent()).unwrap();
        let dirs = std::fs::read_dir(self.path("run/sandboxes"));
        Census {
            containers: ids(self.ctr(&["containers", "ls", "-q"])),
            tasks: ids(self.ctr(&["tasks", "ls"])),
            cgroups: cgroups.into_iter().map(|found| found.id).collect(),
            dirs: dirs.map_or_else(
                |_| BTreeSet::new(),
                |dirs| {
                    dirs.map(|d| d.unwrap().file_name().into_string().unwrap())
                        .collect()
                },
            ),
        }
    }

    /// Ends everything and proves that nothing is left. A test that does not call it is cleaned up all the same.
    pub async fn finish(mut self) {
        self.clear().await;
        let left = self.leftovers();
        assert!(
            left.is_empty(),
            "left behind: {left:#?}\n{}",
            self.log_tail()
        );
    }

    async fn clear(&mut self) {
        if self.child.is_some() {
            self.terminate();
        }
        self.boot(false).await;
        let status = self.terminate();
        assert!(status.success(), "{status}:\n{}", self.log_tail());
    }

    fn leftovers(&self) -> Vec<String> {
        let root = self.root.path().to_str().unwrap();
        let mut left = Vec::new();
        for pid in processes(|line| line.iter().any(|word| word.contains(root))) {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            left.push(format!(
                "process {pid}: {}",
                String::from_utf8_lossy(&line).replace('\0', " ")
            ));
        }
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let mounts = mounts.lines().filter(|line| line.contains(root));
        left.extend(mounts.map(|line| format!("mount {line}")));
        let name = self.cgroup_parent();
        for tree in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let group = tree.path().join(&name[1..]);
            if group.exists() {
                left.push(format!("cgroup {}", group.display()));
            }
        }
        left
    }
}

impl Drop for Hearth {
    /// Only where a test failed before [`Hearth::finish`]: best effort, by the same way out.
    fn drop(&mut self) {
        if self.leftovers().is_empty() {
            return;
        }
        eprintln!("hearthd's log:\n{}", self.log_tail());
        if self.child.is_some() {
            self.terminate();
        }
        if let Ok(mut child) = self
            .command(true)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
        {
            std::thread::sleep(Duration::from_secs(3));
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
            let _ended = kill(pid, Signal::SIGTERM);
            let _status = child.wait();
        }
    }
}

/// Runs a command inside over this connection: (exit code, stdout).
pub async fn run_in(
    channel: Channel,
    claim: &str,
    command: &[&str],
) -> Result<(i32, String), tonic::Status> {
    let start = ExecStart {
        claim_id: claim.to_owned(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        ..ExecStart::default()
    };
    let request = ExecRequest {
        request: Some(exec_request::Request::Start(start)),
    };
    let mut client = SandboxesClient::new(channel);
    let mut stream = client
        .exec(tokio_stream::iter([request]))
        .await?
        .into_inner();
    let mut stdout = Vec::new();
    while let Some(response) = stream.message().await? {
        match response.response.unwrap() {
            exec_response::Response::Stdout(data) => stdout.extend_from_slice(&data),
            exec_response::Response::Exited(exited) => {
                return Ok((exited.code, String::from_utf8_lossy(&stdout).into_owned()));
            }
            _ => {}
        }
    }
    Err(tonic::Status::unavailable(
        "the stream ended before the process",
    ))
}

/// What there is of sandboxes outside hearthd, by id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Census {
    pub containers: BTreeSet<String>,
    pub tasks: BTreeSet<String>,
    pub cgroups: BTreeSet<String>,
    pub dirs: BTreeSet<String>,
}

impl Census {
    /// The same sandboxes everywhere.
    pub fn of(ids: &BTreeSet<String>) -> Self {
        Self {
            containers: ids.clone(),
            tasks: ids.clone(),
            cgroups: ids.clone(),
            dirs: ids.clone(),
        }
    }
}

/// A pool of the python image.
pub fn pool(name: &str, min_warm: u32, max_total: u32) -> Pool {
    Pool {
        name: name.to_owned(),
        generation: 1,
        template: Some(Template {
            image: IMAGE.to_owned(),
            runtime_handler: "gvisor".to_owned(),
            resources: Some(Resources {
                memory_bytes: 256 << 20,
                ..Resources::default()
            }),
            ..Template::default()
        }),
        min_warm,
        max_total,
        ..Pool::default()
    }
}

pub fn claim_request(id: &str, pool: &str) -> ClaimRequest {
    ClaimRequest {
        claim_id: id.to_owned(),
        pool: pool.to_owned(),
        epoch: 1,
        ..ClaimRequest::default()
    }
}

/// The same of a caller who waits for a member.
pub fn patient_request(id: &str, pool: &str, seconds: i64) -> ClaimRequest {
    ClaimRequest {
        on_empty: OnEmpty::Wait.into(),
        wait_timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..claim_request(id, pool)
    }
}
