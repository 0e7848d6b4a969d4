//! hearth as a DaemonSet on a real kubelet: installed by its chart, claimed from, its pod deleted, upgraded, its containerd
//! and its kubelet restarted, uninstalled; a claim's processes must not notice. Run by hack/cluster-test.sh, which makes
//! the cluster and says in HEARTH_CLUSTER where it is; no part of a plain `cargo test`.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

#[path = "support/certificates.rs"]
mod certificates;
use certificates::{Authority, Issued, Wanted};
#[path = "support/tool.rs"]
mod tool;

#[path = "cluster/pools.rs"]
mod pools;
// What the cluster counts for pools.
#[path = "cluster/reservation.rs"]
mod reservation;

#[path = "cluster/drained.rs"]
mod drained;
// What hearthd and the API server tell each other.
#[path = "cluster/node.rs"]
mod node;

#[path = "cluster/tokens.rs"]
mod tokens;

/// How long anything that must come may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const POOL: &str = "python";
const IMAGE: &str = "hearth.local/python:3";
/// CAP_KILL, as a mask.
const KILL: u64 = 1 << 5;

fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// There is one cluster: a test at a time.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ONE.lock()
        .expect("another test has left the cluster as it was")
}

fn step(what: &str) {
    println!("  … {what}");
}

/// Waits for something that must come.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(
            began.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

struct Cluster {
    root: PathBuf,
}

impl Cluster {
    fn find() -> Self {
        let root = std::env::var_os("HEARTH_CLUSTER").expect("run hack/cluster-test.sh");
        Self { root: root.into() }
    }

    fn try_tool(&self, name: &str, args: &[&str]) -> Output {
        let mut command = Command::new(self.root.join("bin").join(name));
        command.args(args).stdin(Stdio::null()).output().unwrap()
    }

    /// A command of the cluster that must succeed: what it prints.
    fn tool(&self, name: &str, args: &[&str]) -> String {
        let output = self.try_tool(name, args);
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let wrong = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{name} {args:?}: {told}{wrong}{}",
            self.state()
        );
        told
    }

    fn kubectl(&self, args: &[&str]) -> String {
        self.tool("kubectl", &[&["--namespace=hearth"], args].concat())
    }

    fn get(&self, what: &[&str]) -> Value {
        let text = self.kubectl(&[&["get", "-o", "json"], what].concat());
        serde_json::from_str(&text).unwrap()
    }

    /// What an operator would look at, for the report of a failed test.
    fn state(&self) -> String {
        let mut text = String::new();
        // The API server may be the one that is away.
        let patience = "--request-timeout=10s";
        for args in [
            &["get", "pods", "-A", "-o", "wide"][..],
            &["get", "events", "-n", "hearth", "--sort-by=.lastTimestamp"],
            &[
                "logs",
                "-n",
                "hearth",
                "daemonset/hearth",
                "--tail=30",
                "--all-containers",
            ],
        ] {
            let output = self.try_tool("kubectl", &[&[patience], args].concat());
            text.push_str(&format!("\n--- kubectl {}\n", args.join(" ")));
            text.push_str(&String::from_utf8_lossy(&output.stdout));
        }
        text
    }

    fn apply(&self, object: &Value) {
        let file = self.root.join("object.json");
        std::fs::write(&file, object.to_string()).unwrap();
        self.kubectl(&["apply", "-f", file.to_str().unwrap()]);
    }

    fn secret(&self, name: &str, authority: &Authority, issued: &Issued) {
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "stringData": {"tls.crt": issued.pem, "tls.key": issued.key_pem, "ca.crt": authority.pem()},
        }));
    }

    /// Process 1 of the node, in this machine's eyes.
    fn node(&self) -> String {
        let pid = std::fs::read_to_string(self.root.join("pid")).unwrap();
        format!("/proc/{}/root", pid.trim())
    }

    fn command_of_hearthctl(&self) -> Command {
        let socket = format!("{}/run/hearth/hearth.sock", self.node());
        let mut command = Command::new(env!("CARGO_BIN_EXE_hearthctl"));
        command.arg("--socket").arg(socket).stdin(Stdio::null());
        command
    }

    fn try_hearthctl(&self, args: &[&str]) -> Output {
        self.command_of_hearthctl().args(args).output().unwrap()
    }

    fn hearthctl(&self, args: &[&str]) -> String {
        let output = self.try_hearthctl(args);
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let wrong = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "hearthctl {args:?}: {told}{wrong}{}",
            self.state()
        );
        told
    }

    /// The image of the pools.
    fn import_python(&self) {
        let archive = tool::python_archive();
        self.hearthctl(&["image", "import", archive.to_str().unwrap()]);
    }

    fn helm(&self, verb: &[&str], values: &[&str]) {
        let chart = here("daemonset/chart");
        let mut args = verb.to_vec();
        args.extend(["hearth", chart.to_str().unwrap(), "--namespace=hearth"]);
        for value in values {
            args.extend(["--set", *value]);
        }
        self.tool("helm", &args);
        self.kubectl(&["rollout", "status", "daemonset/hearth", "--timeout=120s"]);
    }

    fn no_sandbox_is_left(&self) {
        eventually("every sandbox is gone", || {
            let left = self.tool("ctr", &["-n", "hearth", "containers", "ls", "-q"]);
            left.trim().is_empty()
        });
    }

    /// helm does not wait for the pods' end.
    fn uninstall(&self) {
        let args = ["uninstall", "hearth", "--namespace=hearth", "--wait"];
        self.tool("helm", &args);
        eventually("no pod is left", || {
            let pods = self.get(&["pods"])["items"].take();
            pods.as_array().unwrap().is_empty()
        });
    }

    /// The one pod there is, when it is ready and nothing is ending.
    fn pod(&self) -> Value {
        let mut found = Value::Null;
        eventually("one ready pod", || {
            let ours = "app.kubernetes.io/name=hearth";
            let pods = self.get(&["pods", "-l", ours])["items"].take();
            let pods = pods.as_array().unwrap();
            let ready = |pod: &Value| {
                let conditions = pod["status"]["conditions"].as_array();
                let mut ready = conditions.into_iter().flatten();
                pod["metadata"]["deletionTimestamp"].is_null()
                    && ready.any(|c| c["type"] == "Ready" && c["status"] == "True")
            };
            if let [pod] = pods.as_slice()
                && ready(pod)
            {
                found = pod.clone();
            }
            !found.is_null()
        });
        found
    }

    fn pod_name(&self) -> String {
        self.pod()["metadata"]["name"].as_str().unwrap().to_owned()
    }

    /// Sets how many members of the pool are warm and waits for them; 0: no pool at all.
    fn pool(&self, warm: u32) {
        match warm {
            0 => self.pools(&json!([])),
            warm => self.pools(&json!([pool(POOL, warm)])),
        }
    }

    fn pools(&self, pools: &Value) {
        let file = self.root.join("pools.json");
        let text = json!({"pools": pools}).to_string();
        std::fs::write(&file, text).unwrap();
        self.hearthctl(&["pools", "set", "-f", file.to_str().unwrap(), "--wait", "2m"]);
    }

    /// Processes that carry the sandbox's id in their command line: pid → when it started. Shim, sentry and gofer.
    fn processes(&self, sandbox: &str) -> BTreeMap<i32, String> {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
                continue;
            };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(sandbox) {
                let rest = stat
                    .rsplit_once(')')
                    .map(|(_, rest)| rest)
                    .unwrap_or_default();
                let started = rest.split_whitespace().nth(19).unwrap_or_default();
                found.insert(pid, started.to_owned());
            }
        }
        found
    }

    /// hearthd's pid, in this machine's eyes.
    fn hearthd(&self) -> i32 {
        let root = self.root.file_name().unwrap().to_str().unwrap();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
                continue;
            };
            let read = |name: &str| {
                let bytes = std::fs::read(entry.path().join(name)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).into_owned()
            };
            if read("cmdline").starts_with("/usr/local/bin/hearthd\0--config")
                && read("cgroup").contains(root)
            {
                found.push(pid);
            }
        }
        assert_eq!(found.len(), 1, "one hearthd");
        found[0]
    }

    /// Prints what hearthd's pod takes: the process's resident memory, and its container's cgroup with the page cache.
    fn tell_memory(&self, when: &str) {
        let pid = self.hearthd();
        let read = |path: String| std::fs::read_to_string(path).unwrap();
        let status = read(format!("/proc/{pid}/status"));
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss = rss.unwrap().trim();
        let groups = read(format!("/proc/{pid}/cgroup"));
        let of = |controller: &str| {
            groups.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                let ours = controllers.split(',').any(|it| it == controller);
                ours.then(|| path.to_owned())
            })
        };
        let usage = match (of("memory"), of("")) {
            (Some(path), _) => format!("/sys/fs/cgroup/memory{path}/memory.usage_in_bytes"),
            (None, Some(path)) => format!("/sys/fs/cgroup{path}/memory.current"),
            (None, None) => panic!("{groups}"),
        };
        let usage: u64 = read(usage).trim().parse().unwrap();
        println!(
            "  hearthd {when}: {rss} resident, its cgroup {} kB",
            usage / 1024
        );
    }

    fn versions(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(format!("{}/opt/hearth", self.node()))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with('.') && name != "current")
            .collect();
        names.sort();
        names
    }

    fn current(&self) -> String {
        let link = std::fs::read_link(format!("{}/opt/hearth/current", self.node())).unwrap();
        link.to_str().unwrap().to_owned()
    }

    /// A page of the metrics port, over the pod's network; the code is in the text of an error.
    fn page(&self, path: &str) -> Result<String, String> {
        let ip = self.pod()["status"]["podIP"].as_str().unwrap().to_owned();
        let url = format!("http://{ip}:9468{path}");
        let output = self.try_tool("node", &["busybox", "wget", "-q", "-O", "-", &url]);
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn pool(name: &str, warm: u32) -> Value {
    json!({
        "name": name, "min_warm": warm, "max_total": 8,
        "template": {"image": IMAGE, "interpreter": "python"},
    })
}

/// A claim whose interpreter remembers a number, and its processes.
struct Held {
    claim: String,
    sandbox: String,
    processes: BTreeMap<i32, String>,
}

impl Held {
    fn claim(cluster: &Cluster, number: u32) -> Self {
        let text = cluster.hearthctl(&["claim", POOL, "-o", "json"]);
        let claim: Value = serde_json::from_str(&text).unwrap();
        let word = |key: &str| claim[key].as_str().unwrap().to_owned();
        let (claim, sandbox) = (word("claim_id"), word("sandbox_id"));
        cluster.hearthctl(&["run", &claim, &format!("x = {number}")]);
        let processes = cluster.processes(&sandbox);
        assert!(processes.len() >= 3, "shim, sentry, gofer: {processes:?}");
        Self {
            claim,
            sandbox,
            processes,
        }
    }

    /// The same processes, the same memory.
    fn is_untouched(&self, cluster: &Cluster, number: u32) {
        self.runs(cluster);
        // It may recover at this moment.
        eventually("the claim answers", || {
            let output = cluster.try_hearthctl(&["run", &self.claim, "x"]);
            output.status.success()
                && String::from_utf8_lossy(&output.stdout).trim() == number.to_string()
        });
        self.runs(cluster);
    }

    /// Beside its processes there may be one of containerd's that looks at it at this moment.
    fn runs(&self, cluster: &Cluster) {
        let now = cluster.processes(&self.sandbox);
        let still = |(pid, started): (&i32, &String)| now.get(pid) == Some(started);
        assert!(
            self.processes.iter().all(still),
            "{now:?} were {:?}",
            self.processes
        );
    }
}

/// A long execution in a claim whose output somebody follows, over whatever happens to hearthd meanwhile.
struct Followed {
    claim: String,
    follower: std::process::Child,
}

impl Followed {
    const STOP: &str = "/tmp/stop";

    fn begin(cluster: &Cluster, claim: &str) -> Self {
        let stop = Self::STOP;
        let script = format!(
            "i=0; until [ -e {stop} ]; do echo line $i; i=$((i+1)); sleep 0.02; done; echo end $i; exit 7"
        );
        let out = std::fs::File::create(cluster.root.join("followed")).unwrap();
        let mut command = cluster.command_of_hearthctl();
        command.args(["exec", "--keep", "10m", claim, "--", "sh", "-c", &script]);
        let follower = command.stdout(out).spawn().unwrap();
        Self {
            claim: claim.to_owned(),
            follower,
        }
    }

    fn text(cluster: &Cluster) -> String {
        std::fs::read_to_string(cluster.root.join("followed")).unwrap()
    }

    /// More of it comes.
    fn flows(&mut self, cluster: &Cluster) {
        let before = Self::text(cluster).len();
        eventually("the output goes on", || {
            let ended = self.follower.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", Self::text(cluster));
            Self::text(cluster).len() > before + 100
        });
    }

    /// It is ended: every line came, once, in order, and so did its code.
    fn end(mut self, cluster: &Cluster) {
        cluster.hearthctl(&["exec", &self.claim, "--", "touch", Self::STOP]);
        eventually("the follower ends", || {
            self.follower.try_wait().unwrap().is_some()
        });
        assert_eq!(self.follower.wait().unwrap().code(), Some(7));
        let text = Self::text(cluster);
        let lines: Vec<_> = text.lines().collect();
        let last = lines.len() - 1;
        for (i, line) in lines[..last].iter().enumerate() {
            assert_eq!(*line, format!("line {i}"));
        }
        assert_eq!(lines[last], format!("end {last}"));
        println!("  {last} lines were followed");
    }
}

impl Drop for Followed {
    /// After a failed test: it would wait for a cluster that is gone.
    fn drop(&mut self) {
        let _ = self.follower.kill();
        let _ = self.follower.wait();
    }
}

/// In the order in which an operator meets it: each part needs the one before.
#[test]
fn a_daemonset_lives_on_a_real_kubelet() {
    let _alone = alone();
    let cluster = Cluster::find();
    let image = |name: &str| {
        here(&format!("target/image/{name}.tar"))
            .display()
            .to_string()
    };
    for name in ["first", "second"] {
        cluster.tool("ctr", &["-n", "k8s.io", "images", "import", &image(name)]);
    }

    step("installed by its chart");
    let first = ["image.tag=first", "image.pullPolicy=Never"];
    cluster.helm(&["install", "--create-namespace"], &first);
    let pod = cluster.pod();
    has_only_its_rights(&cluster, &pod);
    shows_metrics_and_no_state(&cluster);
    let old = cluster.current();
    assert_eq!(cluster.versions(), std::slice::from_ref(&old));

    step("a pool gets warm and a sandbox is claimed");
    cluster.import_python();
    cluster.pool(2);
    let held = Held::claim(&cluster, 41);
    held.is_untouched(&cluster, 41);
    cluster.tell_memory("with a pool of 2 and a claim");
    // hearthctl of the image itself, which has no shell.
    let inside = [
        "exec",
        "daemonset/hearth",
        "--",
        "hearthctl",
        "pools",
        "-o",
        "name",
    ];
    assert!(cluster.kubectl(&inside).contains(POOL));
    let shell = [
        "-n",
        "hearth",
        "exec",
        "daemonset/hearth",
        "--",
        "sh",
        "-c",
        "true",
    ];
    assert!(!cluster.try_tool("kubectl", &shell).status.success());

    let mut followed = Followed::begin(&cluster, &held.claim);
    followed.flows(&cluster);

    step("its pod is deleted");
    let name = cluster.pod_name();
    cluster.kubectl(&["delete", "pod", &name]);
    assert_ne!(cluster.pod_name(), name);
    held.is_untouched(&cluster, 41);
    followed.flows(&cluster);

    step("hearthd is killed: the kubelet starts it again in the same pod");
    let killed = nix::unistd::Pid::from_raw(cluster.hearthd());
    nix::sys::signal::kill(killed, nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("the container was restarted", || {
        let pod = cluster.pod();
        pod["status"]["containerStatuses"][0]["restartCount"] == 1
    });
    held.is_untouched(&cluster, 41);
    followed.flows(&cluster);

    for part in ["containerd", "kubelet"] {
        step(&format!("{part} is killed and comes back"));
        let root = cluster.root.to_str().unwrap();
        let killed = Command::new(here("hack/cluster.sh"))
            .args(["restart", root, part])
            .status();
        assert!(killed.unwrap().success());
        eventually("the node is ready", || {
            let wait = ["wait", "--for=condition=Ready", "node/node", "--timeout=1s"];
            cluster.try_tool("kubectl", &wait).status.success()
        });
        held.is_untouched(&cluster, 41);
    }

    step("rolled out to another image");
    let second = ["image.tag=second", "image.pullPolicy=Never"];
    cluster.helm(&["upgrade"], &second);
    let pod = cluster.pod();
    assert_eq!(
        pod["spec"]["containers"][0]["image"],
        "hearth.local/hearth:second"
    );
    held.is_untouched(&cluster, 41);
    let new = cluster.current();
    assert_ne!(new, old);
    assert_eq!(cluster.versions().len(), 2, "the old one is in use");

    step("who followed an execution meanwhile has every byte of it, once");
    followed.flows(&cluster);
    followed.end(&cluster);
    let later = Held::claim(&cluster, 7);

    step("claimed over mutual TLS from another pod");
    let authority = Authority::new("test");
    let server = authority.issue(&Wanted::dns("hearth"));
    cluster.secret("hearth-tls", &authority, &server);
    let served = [
        "api.tcp.enabled=true",
        "api.tcp.tlsSecret=hearth-tls",
        "api.roles.allocator={spiffe://test/allocator}",
        "kubernetes.enabled=true",
    ];
    cluster.helm(&["upgrade"], &[&second[..], &served].concat());
    claimed_from_a_pod(&cluster, &authority);
    controlled_from_a_pod(&cluster, &authority);
    held.is_untouched(&cluster, 41);

    step("writes to nodes are pinned to the own one");
    writes_are_pinned(&cluster);
    held.is_untouched(&cluster, 41);
    later.is_untouched(&cluster, 7);
    cluster.tell_memory("with the cluster's API and mutual TLS");

    step("sandboxes have a network");
    let networked = [&second[..], &["network.enabled=true"]].concat();
    cluster.helm(&["upgrade"], &networked);
    sandboxes_have_a_network(&cluster);
    held.is_untouched(&cluster, 41);

    step("nothing is taken off a node in use");
    let command = [
        "-n",
        "hearth",
        "exec",
        "daemonset/hearth",
        "--",
        "hearthd",
        "uninstall",
    ];
    let refused = cluster.try_tool("kubectl", &command);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && told.contains("another hearthd"),
        "{told}"
    );
    held.is_untouched(&cluster, 41);

    step("the old version goes when nothing uses it");
    cluster.hearthctl(&["release", &held.claim]);
    cluster.hearthctl(&["release", &later.claim]);
    cluster.pool(0);
    cluster.no_sandbox_is_left();
    let name = cluster.pod_name();
    cluster.kubectl(&["delete", "pod", &name]);
    cluster.pod();
    eventually("only the new version is there", || {
        cluster.versions() == [new.clone()]
    });

    step("taken off the node, and uninstalled");
    cluster.helm(
        &["upgrade"],
        &[&networked[..], &["uninstall=true"]].concat(),
    );
    cluster.pod();
    nothing_is_left(&cluster);
    cluster.uninstall();
    nothing_runs(&cluster);
}

/// What a client in such a pod is told.
fn with_certificate(server: &str) -> [&str; 6] {
    [
        "--server",
        server,
        "--server-name=hearth",
        "--ca=/tls/ca.crt",
        "--cert=/tls/tls.crt",
        "--key=/tls/tls.key",
    ]
}

/// A pod that has nothing but a certificate, the secret of its own name, and what it is given to see of the node.
fn client(name: &str, command: &[&str], seen: &[&Path]) -> Value {
    let mut volumes =
        vec![json!({"name": "tls", "secret": {"secretName": name, "defaultMode": 0o440}})];
    let mut mounts = vec![json!({"name": "tls", "mountPath": "/tls"})];
    for (number, path) in seen.iter().enumerate() {
        let volume = format!("seen-{number}");
        volumes.push(json!({"name": volume, "hostPath": {"path": path, "type": "Directory"}}));
        mounts.push(json!({"name": volume, "mountPath": path, "readOnly": true}));
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never", "automountServiceAccountToken": false,
            "enableServiceLinks": false, "volumes": volumes,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65534, "fsGroup": 65534},
            "containers": [{
                "name": "client", "image": "hearth.local/hearth:second", "imagePullPolicy": "Never",
                "command": command, "volumeMounts": mounts,
            }],
        },
    })
}

/// examples/rust in a pod: it keeps two claims, makes a new one for one that ends under it, and gives them back when its pod
/// is deleted.
fn controlled_from_a_pod(cluster: &Cluster, authority: &Authority) {
    const NAME: &str = "controller";
    let issued = authority.issue(&Wanted::spiffe("spiffe://test/allocator"));
    cluster.secret(NAME, authority, &issued);
    let ip = cluster.pod()["status"]["podIP"]
        .as_str()
        .unwrap()
        .to_owned();
    let server = format!("https://{ip}:9470");
    // target/debug/deps/cluster-… beside target/debug/examples, where cargo builds it.
    let deps = std::env::current_exe().unwrap();
    let programs = deps.ancestors().nth(2).unwrap().join("examples");
    let program = programs.join(NAME);
    let command = [
        &[program.to_str().unwrap()],
        &with_certificate(&server)[..],
        &["--claims=2", "--pool", POOL],
    ];
    cluster.apply(&client(NAME, &command.concat(), &[&programs]));
    let ours = || -> Vec<String> {
        let told = cluster.hearthctl(&["claims", "-o", "json"]);
        let told: Value = serde_json::from_str(&told).unwrap();
        let claims = told.as_array().into_iter().flatten();
        let ours = claims.filter(|claim| claim["holder"]["name"] == NAME);
        ours.map(|claim| claim["claim_id"].as_str().unwrap().to_owned())
            .collect()
    };
    eventually("it has two claims", || {
        let pod = cluster.get(&["pod", NAME]);
        assert_ne!(
            pod["status"]["phase"],
            "Failed",
            "{:#} {}",
            pod["status"],
            cluster.kubectl(&["logs", NAME])
        );
        ours().len() == 2
    });
    let lost = ours().remove(0);
    cluster.hearthctl(&["release", &lost]);
    eventually("another one took its place", || {
        let ours = ours();
        ours.len() == 2 && !ours.contains(&lost)
    });
    cluster.kubectl(&["delete", "pod", NAME, "--grace-period=20"]);
    assert_eq!(ours(), Vec::<String>::new());
    cluster.kubectl(&["delete", "secret", NAME]);
}

/// hearthctl in a pod of another namespace, which has nothing but its certificate. A stranger's is refused.
fn claimed_from_a_pod(cluster: &Cluster, authority: &Authority) {
    let ip = cluster.pod()["status"]["podIP"]
        .as_str()
        .unwrap()
        .to_owned();
    let allocator = authority.issue(&Wanted::spiffe("spiffe://test/allocator"));
    let stranger = authority.issue(&Wanted::spiffe("spiffe://test/stranger"));
    for (name, issued, succeeds) in [
        ("allocator", allocator, true),
        ("stranger", stranger, false),
    ] {
        cluster.secret(name, authority, &issued);
        let server = format!("https://{ip}:9470");
        let command = [
            &["hearthctl"],
            &with_certificate(&server)[..],
            &["claim", POOL, "-o", "json"],
        ];
        let pod = client(name, &command.concat(), &[]);
        cluster.apply(&pod);
        let phase = || {
            cluster.get(&["pod", name])["status"]["phase"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        eventually("the client has ended", || {
            ["Succeeded", "Failed"].contains(&phase().as_str())
        });
        let log = cluster.kubectl(&["logs", name]);
        assert_eq!(phase() == "Succeeded", succeeds, "{name}: {log}");
        if succeeds {
            let claim: Value = serde_json::from_str(&log).unwrap();
            let id = claim["claim_id"].as_str().unwrap();
            assert!(cluster.hearthctl(&["claims", "-o", "name"]).contains(id));
            cluster.hearthctl(&["release", id]);
        } else {
            assert!(log.contains("FORBIDDEN") || log.contains("role"), "{log}");
        }
        cluster.kubectl(&["delete", "pod", name, "--grace-period=0", "--force"]);
        cluster.kubectl(&["delete", "secret", name]);
    }
}

/// Sandboxes with a network of their own, made from inside the pod: one reaches a pod of the cluster where its policy says
/// so, another does not, and both stay so when hearthd's pod is deleted.
fn sandboxes_have_a_network(cluster: &Cluster) {
    const NETWORKED: &str = "networked";
    let web = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "web", "image": "hearth.local/pause:1", "imagePullPolicy": "Never",
                "command": ["/busybox", "httpd", "-f", "-p", "8080"],
            }],
        },
    });
    cluster.apply(&web);
    let mut address = String::new();
    eventually("the web server's pod has an address", || {
        let status = cluster.get(&["pod", "web"])["status"].take();
        address = status["podIP"].as_str().unwrap_or_default().to_owned();
        status["phase"] == "Running" && !address.is_empty()
    });
    let mut networked = pool(NETWORKED, 2);
    networked["template"]["network_policy"] = json!("allowlist");
    cluster.pools(&json!([pool(POOL, 2), networked]));
    let claim = |policy: &str| {
        let told = cluster.hearthctl(&["claim", NETWORKED, "--network", policy, "-o", "name"]);
        told.trim().to_owned()
    };
    let may = claim(&format!("allow:{address}@tcp/8080"));
    let may_not = claim("allow");
    let code = format!(
        "import http.client\n\
         try:\n\
         \x20   c = http.client.HTTPConnection('{address}', 8080, timeout=10)\n\
         \x20   c.request('GET', '/')\n\
         \x20   print('answered', c.getresponse().status)\n\
         except OSError as e:\n\
         \x20   print('refused', e)\n"
    );
    let reaches = |claim: &str| cluster.hearthctl(&["run", claim, &code]);
    let hold = || {
        let (first, second) = (reaches(&may), reaches(&may_not));
        assert!(first.contains("answered 404"), "{first}");
        assert!(second.contains("refused"), "{second}");
    };
    hold();
    cluster.kubectl(&["delete", "pod", &cluster.pod_name()]);
    cluster.pod();
    hold();
    for claim in [may, may_not] {
        cluster.hearthctl(&["release", &claim]);
    }
    cluster.kubectl(&["delete", "pod", "web", "--grace-period=0", "--force"]);
    cluster.pool(2);
}

/// docs/privileges.md, as the kernel sees it.
fn has_only_its_rights(cluster: &Cluster, pod: &Value) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.hearthd())).unwrap();
    let value = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap().trim().to_owned()
    };
    for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
        assert_eq!(
            u64::from_str_radix(&value(set), 16).unwrap(),
            KILL,
            "{set} {status}"
        );
    }
    assert_eq!(value("NoNewPrivs:"), "1");
    assert_eq!(value("Seccomp:"), "2", "a filter");
    let mounts = pod["spec"]["containers"][0]["volumeMounts"].to_string();
    assert!(!mounts.contains("serviceaccount"), "no token: {mounts}");
    assert_eq!(pod["spec"]["priorityClassName"], "system-node-critical");
}

fn shows_metrics_and_no_state(cluster: &Cluster) {
    for path in ["/livez", "/readyz", "/startupz"] {
        assert!(cluster.page(path).unwrap().starts_with("ok"), "{path}");
    }
    assert!(
        cluster
            .page("/metrics")
            .unwrap()
            .contains("hearth_build_info")
    );
    let error = cluster.page("/state").unwrap_err();
    assert!(error.contains("404"), "{error}");
}

/// With the token of hearthd's pod.
fn writes_are_pinned(cluster: &Cluster) {
    let pod = cluster.pod_name();
    let token = cluster.kubectl(&[
        "create",
        "token",
        "hearth",
        "--bound-object-kind=Pod",
        "--bound-object-name",
        &pod,
    ]);
    cluster.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "other"}}));
    let token = format!("--token={}", token.trim());
    let label = |node: &str, label: &str| {
        let args = [token.as_str(), "label", "--overwrite", "node", node, label];
        let output = cluster.try_tool("kubectl", &args);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            Ok(())
        } else {
            Err(told)
        }
    };
    // The policy is in force some moments after it was made.
    eventually("the policy is in force", || {
        label("other", "hearth.dev/node=true").is_err()
    });
    label("node", "hearth.dev/node=true").unwrap();
    for (node, text, why) in [
        (
            "other",
            "hearth.dev/node=false",
            "may write to that node only",
        ),
        (
            "node",
            "node-role.kubernetes.io/control-plane=true",
            "labels hearth.dev/* only",
        ),
        ("node", "kubernetes.io/os-", "labels hearth.dev/* only"),
    ] {
        let error = label(node, text).unwrap_err();
        assert!(error.contains(why), "{node} {text}: {error}");
    }
    let taint = |taint: &str| {
        let args = [
            token.as_str(),
            "taint",
            "--overwrite",
            "node",
            "node",
            taint,
        ];
        cluster.try_tool("kubectl", &args).status.success()
    };
    assert!(taint("hearth.dev/starting=true:NoSchedule"));
    // hearthd itself removes it: its pool is warm.
    eventually("the startup taint is removed", || {
        let node = cluster.get(&["node", "node"]);
        !node["spec"]["taints"]
            .to_string()
            .contains("hearth.dev/starting")
    });
    assert!(!taint("other.example/x=true:NoSchedule"));
    let delete = [token.as_str(), "delete", "node", "other"];
    assert!(!cluster.try_tool("kubectl", &delete).status.success());
    cluster.kubectl(&["delete", "node", "other"]);
}

/// No directory, no mount, no cgroup; containerd has forgotten hearth.
fn nothing_is_left(cluster: &Cluster) {
    for dir in ["/var/lib/hearth", "/run/hearth", "/opt/hearth"] {
        let left = cluster.try_tool("node", &["ls", "-A", dir]);
        assert!(!left.status.success(), "{dir}: {left:?}");
    }
    let namespaces = cluster.tool("ctr", &["namespaces", "ls", "-q"]);
    assert!(
        !namespaces.lines().any(|name| name == "hearth"),
        "{namespaces}"
    );
    let mounts = cluster.tool("node", &["cat", "/proc/mounts"]);
    assert!(!mounts.contains("/run/hearth/"), "{mounts}");
    let groups = "find /sys/fs/cgroup -path '*/hearth' -type d";
    assert_eq!(cluster.tool("node", &["sh", "-c", groups]).trim(), "");
}

/// No process, no container, no cgroup of a sandbox.
fn nothing_runs(cluster: &Cluster) {
    let containers = cluster.tool("ctr", &["-n", "hearth", "containers", "ls", "-q"]);
    assert_eq!(containers.trim(), "");
    let processes = cluster.tool("node", &["ps", "-e", "-o", "args"]);
    for word in [
        "hearthd",
        "hearth-runsc",
        "hearth-init",
        "runsc-sandbox",
        "runsc-gofer",
    ] {
        assert!(!processes.contains(word), "{word}: {processes}");
    }
    let groups = "find /sys/fs/cgroup -path '*/hearth/*/*' -type d";
    assert_eq!(cluster.tool("node", &["sh", "-c", groups]).trim(), "");
    for kind in [
        "clusterrole",
        "clusterrolebinding",
        "validatingadmissionpolicy",
    ] {
        let left = cluster.kubectl(&[
            "get",
            kind,
            "-o",
            "name",
            "-l",
            "app.kubernetes.io/name=hearth",
        ]);
        assert_eq!(left.trim(), "", "{kind}");
    }
}
