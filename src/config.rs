//! Typed configuration of hearthd: a TOML file, then the environment, then flags; the later one wins.
//!
//! Unknown keys are refused and all errors are told at once, each with its place. `load` knows where values come from;
//! this file knows what they are. Read by `app` only.

mod api;
mod load;
mod network;
pub use api::{Api, Audit, ClientCertificate, RoleLists, Tls};
mod hibernation;
mod kata;
mod kubernetes;
mod memory;
mod policy;
mod reservation;
mod tokens;
pub use hibernation::Hibernation;
pub use kata::{Kata, kata};
pub use kubernetes::{Kubernetes, is_node_name};
pub use memory::{Memory, Swap};
pub use network::{Network, prefix, resolver};
pub use policy::{Policy, PolicyMode};
pub use reservation::{Reservation, ReservationMode};
pub use tokens::Tokens;

pub use load::{ConfigError, Problem, Sources, load};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Everything hearthd can be told. Sizes in bytes, times in the unit of the name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where hearth keeps what must survive: journal, node key, the managed containerd. One hearthd each.
    pub data_dir: PathBuf,
    /// Where hearth keeps what may go at a reboot: sockets, the sandboxes' FIFOs.
    pub run_dir: PathBuf,
    /// The gRPC API.
    pub api: Api,
    /// Probes, metrics and state dump.
    pub admin: Admin,
    /// containerd.
    pub containerd: Containerd,
    /// The runtime's parts.
    pub runtime: Runtime,
    /// Memory: the swap that frozen sandboxes go to, and when the node counts as short of it.
    pub memory: Memory,
    /// The disk tier: where images of sleeping sandboxes go.
    pub hibernation: Hibernation,
    /// The network of sandboxes.
    pub network: Network,
    /// hearthd's own calls to the Kubernetes API.
    pub kubernetes: Kubernetes,
    /// What templates of pools must keep to.
    pub policy: Policy,
    /// Bounds.
    pub limits: Limits,
    /// The audit log.
    pub audit: Audit,
    /// Logs.
    pub log: Log,
}

/// Probes, metrics and state dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Address of the admin port; must be loopback, for it asks for no identity. Empty: off.
    pub listen: String,
    /// Address of a second port with probes and metrics but without the state dump, which the kubelet and Prometheus
    /// reach, such as "0.0.0.0:9468". It asks for no identity either: say who reaches it (docs/security.md). Empty: off.
    pub metrics_listen: String,
}

/// containerd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Containerd {
    /// Socket of a containerd to use. Empty: hearthd runs one of its own under data_dir.
    pub socket: PathBuf,
    /// Snapshotter.
    pub snapshotter: String,
    /// Seconds between two reconciling listings.
    pub reconcile_seconds: u64,
}

/// The runtime's parts. Empty paths: looked for in the current version below install_dir, then beside hearthd, then in the
/// directory of HEARTH_BIN_DIR, then in PATH.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Runtime {
    /// Directory that `hearthd install --to` fills, one directory a version; hearthd removes old versions there when no
    /// sandbox uses them. Empty: none.
    pub install_dir: PathBuf,
    /// gVisor's runsc.
    pub runsc: PathBuf,
    /// hearth-runsc, which the shim calls.
    pub wrapper: PathBuf,
    /// hearth-init, PID 1 of every sandbox.
    pub init: PathBuf,
    /// containerd-shim-runc-v2. "io.containerd.runc.v2": containerd, one of somebody else, finds it by itself.
    pub shim: PathBuf,
    /// containerd, when managed.
    pub containerd: PathBuf,
    /// Parent of all sandbox cgroups.
    pub cgroup_parent: String,
    /// Kata's runtime handlers that this node offers beside gVisor, each "NAME", "NAME=SHIM" or "NAME=SHIM:CONFIG": the name
    /// that templates and RuntimeClasses give it ("kata-clh", "kata-qemu-runtime-rs", …), containerd's name of the shim
    /// ("io.containerd.NAME.v2" when it is left out) or its absolute path, and Kata's configuration file.
    pub kata: Vec<String>,
}

/// Bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of the data directory's file system kept free; below, new claims are refused and releases go on.
    pub disk_reserve_bytes: u64,
    /// Largest image archive that ImportImage takes, bytes.
    pub image_import_bytes: u64,
    /// Streams (executions, files, connections) open in one sandbox.
    pub streams_per_sandbox: usize,
    /// Calls a second that one caller may make; releases and renewals are counted apart.
    pub calls_per_second: u32,
    /// Seconds that SIGTERM leaves for requests in flight.
    pub shutdown_seconds: u64,
}

/// Form of the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Text.
    Text,
    /// One JSON object a line.
    Json,
}

/// Logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Form.
    pub format: LogFormat,
    /// Filter, as tracing's EnvFilter reads it, for example "info,hearth=debug".
    pub level: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/hearth".into(),
            run_dir: "/run/hearth".into(),
            api: Api::default(),
            admin: Admin::default(),
            containerd: Containerd::default(),
            runtime: Runtime::default(),
            memory: Memory::default(),
            hibernation: Hibernation::default(),
            network: Network::default(),
            kubernetes: Kubernetes::default(),
            policy: Policy::default(),
            limits: Limits::default(),
            audit: Audit::default(),
            log: Log::default(),
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:9469".into(),
            metrics_listen: String::new(),
        }
    }
}

impl Default for Containerd {
    fn default() -> Self {
        Self {
            socket: PathBuf::new(),
            snapshotter: "overlayfs".into(),
            reconcile_seconds: 60,
        }
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            install_dir: PathBuf::new(),
            runsc: PathBuf::new(),
            wrapper: PathBuf::new(),
            init: PathBuf::new(),
            shim: PathBuf::new(),
            containerd: PathBuf::new(),
            cgroup_parent: "/hearth".into(),
            kata: Vec::new(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            disk_reserve_bytes: 64 << 20,
            image_import_bytes: 8 << 30,
            streams_per_sandbox: 64,
            calls_per_second: 5000,
            shutdown_seconds: 10,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Auto,
            level: "info".into(),
        }
    }
}

/// The runc shim's name in containerd, as `runtime.shim`.
pub const SHIM: &str = "io.containerd.runc.v2";

/// An address and a port; `None`: the text is empty.
fn address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.parse().map(Some);
    parsed.map_err(|_| "must be an IP address and a port such as \"127.0.0.1:9469\"".into())
}

impl Config {
    /// What is wrong with the values, as (key, problem); all of them.
    fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut absolute = |key: &'static str, path: &Path, may_be_empty: bool| {
            if !(path.is_absolute() || may_be_empty && path.as_os_str().is_empty()) {
                found.push((key, format!("must be an absolute path, not {path:?}")));
            }
        };
        absolute("data_dir", &self.data_dir, false);
        absolute("run_dir", &self.run_dir, false);
        absolute("api.socket", &self.api.socket, false);
        absolute("containerd.socket", &self.containerd.socket, true);
        absolute("runtime.runsc", &self.runtime.runsc, true);
        absolute("runtime.wrapper", &self.runtime.wrapper, true);
        absolute("runtime.init", &self.runtime.init, true);
        absolute("runtime.install_dir", &self.runtime.install_dir, true);
        if !self.shim_is_named() {
            absolute("runtime.shim", &self.runtime.shim, true);
        }
        absolute("runtime.containerd", &self.runtime.containerd, true);
        if self.api.socket.as_os_str().len() > 100 {
            found.push((
                "api.socket",
                "must be at most 100 bytes: the kernel's bound for a socket path".into(),
            ));
        }
        if self.socket_mode().is_none() {
            found.push((
                "api.socket_mode",
                "must be octal permission bits such as \"0660\"".into(),
            ));
        }
        self.api.problems(&mut found);
        self.audit.problems(&mut found);
        if let Err(problem) = self.admin_address() {
            found.push(("admin.listen", problem));
        }
        if let Err(problem) = self.metrics_address() {
            found.push(("admin.metrics_listen", problem));
        }
        if !(1..=3600).contains(&self.containerd.reconcile_seconds) {
            found.push(("containerd.reconcile_seconds", "must be 1 to 3600".into()));
        }
        let parent = &self.runtime.cgroup_parent;
        if !parent.starts_with('/')
            || parent.len() < 2
            || parent.contains("..")
            || parent.starts_with("/kubepods")
        {
            found.push((
                "runtime.cgroup_parent",
                "must be an absolute cgroup path of its own, never kubepods".into(),
            ));
        }
        found.extend(kata::problems(&self.runtime.kata));
        if self.limits.disk_reserve_bytes < 4 << 20 {
            found.push((
                "limits.disk_reserve_bytes",
                "must be at least 4 MiB: releases are committed from it".into(),
            ));
        }
        if !(1..=4096).contains(&self.limits.streams_per_sandbox) {
            found.push(("limits.streams_per_sandbox", "must be 1 to 4096".into()));
        }
        if self.limits.calls_per_second == 0 {
            found.push(("limits.calls_per_second", "must be at least 1".into()));
        }
        if !(1..=600).contains(&self.limits.shutdown_seconds) {
            found.push(("limits.shutdown_seconds", "must be 1 to 600".into()));
        }
        found.extend(self.memory.problems());
        found.extend(self.hibernation.problems());
        found.extend(self.network.problems());
        found.extend(self.kubernetes.problems());
        found.extend(self.kubernetes.tokens.problems(self));
        found.extend(self.policy.problems());
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log.level) {
            found.push(("log.level", error.to_string()));
        }
        found
    }

    /// The socket's permission bits; `None` if the text is none.
    #[must_use]
    pub fn socket_mode(&self) -> Option<u32> {
        u32::from_str_radix(&self.api.socket_mode, 8)
            .ok()
            .filter(|mode| *mode <= 0o777)
    }

    /// The admin port's address; `None`: off.
    pub fn admin_address(&self) -> Result<Option<SocketAddr>, String> {
        match address(&self.admin.listen)? {
            Some(address) if !address.ip().is_loopback() => {
                Err("must be a loopback address: the admin port asks for no identity".into())
            }
            loopback => Ok(loopback),
        }
    }

    /// The address of the second port, for probes and metrics; `None`: off.
    pub fn metrics_address(&self) -> Result<Option<SocketAddr>, String> {
        address(&self.admin.metrics_listen)
    }

    /// Whether containerd is to find the shim by its name. Only one of somebody else: hearthd's own is told where.
    #[must_use]
    pub fn shim_is_named(&self) -> bool {
        let named = self.runtime.shim == Path::new(SHIM);
        named && !self.containerd.socket.as_os_str().is_empty()
    }

    /// The JSON schema of the file.
    #[must_use]
    pub fn json_schema() -> serde_json::Value {
        schemars::schema_for!(Config).to_value()
    }

    /// The defaults as a commented TOML file.
    #[must_use]
    pub fn default_file() -> String {
        load::commented_defaults()
    }
}
