//! containerd and the runtime handlers, behind one trait. The real one is [`containerd::ContainerdRuntime`]; hearthd
//! may run a containerd of its own ([`managed`]).

pub mod containerd;
pub mod managed;
mod metrics;
pub mod mounts;
mod process;

pub use crate::cgroup::Reclaimed;
pub use crate::machine::handler::{Capabilities, Family, Handler, Overhead};
pub use metrics::RuntimeMetrics;

use crate::machine::event::{CheckpointFailure, Observed, RestoreFailure};
use crate::machine::ids::{NodeTag, PoolName, SandboxId};
use crate::machine::spec::Template;
use async_trait::async_trait;
use futures::future::BoxFuture;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// hearth's namespace in containerd; also the last part of runsc's root, for the shim appends it.
pub const NAMESPACE: &str = "hearth";

/// The name of containerd's runc shim, which runs gVisor through hearth-runsc.
pub const SHIM: &str = "io.containerd.runc.v2";

/// Why a call to the runtime failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RuntimeError {
    /// containerd cannot be reached (or went away in the middle).
    #[error("containerd is unreachable: {0}")]
    Unavailable(String),
    /// The call's deadline passed; what it was to do may still happen.
    #[error("{what} did not finish in {seconds} s")]
    DeadlineExceeded {
        /// Which call.
        what: &'static str,
        /// Its deadline.
        seconds: u64,
    },
    /// The image is not there.
    #[error("image {0:?} is not in containerd")]
    ImageMissing(String),
    /// The runtime refused.
    #[error("{what}: {detail}")]
    Refused {
        /// Which call.
        what: &'static str,
        /// Bounded.
        detail: String,
    },
}

/// A sandbox to be made.
#[derive(Debug, Clone)]
pub struct CreateSpec {
    /// Its id: container id, labels, cgroup path.
    pub id: SandboxId,
    /// Its pool.
    pub pool: PoolName,
    /// The pool's generation.
    pub generation: u64,
    /// What it is.
    pub template: Arc<Template>,
    /// What it is started in; `None`: no interface at all.
    pub network: Option<SandboxNetwork>,
}

/// The network a sandbox is started in: gVisor reads interfaces, addresses and routes of the namespace when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxNetwork {
    /// The network namespace.
    pub netns: std::path::PathBuf,
    /// For its resolv.conf.
    pub resolvers: Vec<std::net::IpAddr>,
}

/// The host's ends of a sandbox's stdio FIFOs, for the guest channel. Opening is the runtime's business (it must hold
/// them open before Tasks.Create and as long as the sandbox lives).
#[derive(Debug, Clone)]
pub struct StdioPaths {
    /// Host → guest (the guest's stdin).
    pub stdin: std::path::PathBuf,
    /// Guest → host (the guest's stdout).
    pub stdout: std::path::PathBuf,
    /// The guest's log lines (its stderr): drained, bounded, logged at debug level.
    pub stderr: std::path::PathBuf,
}

/// What happens to sandboxes by itself, and to containerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// Reachable: subscribed; a listing should follow.
    Connected,
    /// Not reachable; it is being tried again.
    Disconnected,
    /// A sandbox's task ended.
    Exited {
        /// Which.
        id: SandboxId,
        /// The kernel's OOM killer took it.
        out_of_memory: bool,
    },
    /// A wedged shim was killed, so that its sandbox could be removed.
    ShimKilled {
        /// Whose.
        id: SandboxId,
    },
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// Reference.
    pub name: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Bytes of its content; 0: not known.
    pub size_bytes: u64,
}

/// Progress of an import or a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageProgress {
    /// "importing", "unpacking", or containerd's own word.
    pub stage: String,
    /// Which part.
    pub item: String,
    /// Bytes so far.
    pub bytes: u64,
    /// 0: not known.
    pub total_bytes: u64,
}

/// Versions, for Info and doctor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Versions {
    /// containerd's.
    pub containerd: String,
    /// runsc's.
    pub runsc: String,
}

/// Brings a sandbox to silence; why that failed.
pub type Quieting<'a> = BoxFuture<'a, Result<(), String>>;

/// Whether a golden image could be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// It could.
    Fits,
    /// There is no such image (any more).
    Gone,
    /// It could not: in words, what differs from the time when it was taken, or what can't be told now.
    Differs(String),
}

/// What hearth needs of a container runtime. Every call has a deadline of its own inside.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Makes and starts a sandbox (its hearth-init runs; nothing is known of its readiness). Its FIFOs are open for
    /// reading on the host before the task is made and are kept. On error whatever was made stays: the machine
    /// decides to destroy it.
    async fn create(&self, spec: &CreateSpec) -> Result<(), RuntimeError>;

    /// Destroys whatever there is: task, container, snapshot, cgroup, directories; thaws or kills the cgroup first if
    /// need be. Idempotent. `Ok` only when it was verified that nothing is left.
    async fn destroy(&self, id: SandboxId) -> Result<(), RuntimeError>;

    /// Everything in namespace `hearth` (and under the run directory, and the cgroup parent) that carries a sandbox
    /// id, of any node tag, ordered by id. Also re-arms exit watching and re-opens FIFOs for what is alive.
    async fn list(&self) -> Result<Vec<Observed>, RuntimeError>;

    /// Where the stdio FIFOs of a sandbox are.
    fn stdio(&self, id: SandboxId) -> StdioPaths;

    /// Stops a sandbox's processes in their cgroup; `Ok` when the kernel says that all are stopped.
    async fn freeze(&self, id: SandboxId) -> Result<(), RuntimeError>;
    /// Lets them go on. One that is not frozen stays as it is.
    async fn thaw(&self, id: SandboxId) -> Result<(), RuntimeError>;
    /// Takes a frozen sandbox's memory once, as far as the kernel will; stops soon after `stop`.
    async fn reclaim(
        &self,
        id: SandboxId,
        stop: &CancellationToken,
    ) -> Result<Reclaimed, RuntimeError>;

    /// Makes and seals the image of a sandbox. `quiet` has it running and everybody inside but its guest agent wait; it is
    /// awaited only when there is room and staging memory for the image, and nothing is left to be waited for. `Ok` with
    /// the image's size: the sandbox is frozen, and the image is durable. `Err`: there is no image; it is as it was if
    /// `quiet` was not awaited, else it runs or is frozen. Gives up soon after `stop`.
    async fn checkpoint(
        &self,
        id: SandboxId,
        quiet: Quieting<'_>,
        stop: &CancellationToken,
    ) -> Result<u64, CheckpointFailure>;
    /// Destroys what runs of a sandbox, as `destroy` does, but keeps what a restore needs. Idempotent.
    async fn shed(&self, id: SandboxId) -> Result<(), RuntimeError>;
    /// Brings a sandbox back from its image, under the same id, with the same stdio paths. On error nothing of it runs.
    /// The image stays. `network`: its interface, put back just before; `None`: it was made without.
    async fn restore(
        &self,
        id: SandboxId,
        pool: &PoolName,
        network: Option<&SandboxNetwork>,
    ) -> Result<(), RestoreFailure>;
    /// Removes a sandbox's image, if it has one.
    async fn drop_image(&self, id: SandboxId) -> Result<(), RuntimeError>;
    /// Removes every image that was there at the start and is not of these. Returns who of the others runs: a hearthd ended
    /// in the middle of their images, and has left them silent, maybe.
    async fn keep_images(&self, keep: Vec<SandboxId>) -> Result<Vec<SandboxId>, RuntimeError>;

    /// Takes a pool's golden image from this sandbox, which runs, whose guest has quiesced, and which nobody has claimed; it
    /// runs on. The pool's image before, if there is one, goes.
    async fn take_golden(&self, spec: &CreateSpec) -> Result<(), CheckpointFailure>;
    /// Could the golden image of this original be restored as that sandbox now? Asked before `create_clone`.
    async fn golden_fits(&self, original: SandboxId, spec: &CreateSpec) -> Fit;
    /// Makes a sandbox as `create` does, from the golden image of this original. On error whatever was made stays.
    async fn create_clone(
        &self,
        spec: &CreateSpec,
        original: SandboxId,
    ) -> Result<(), RuntimeError>;
    /// Removes a pool's golden image if it is that of this original; one that a clone is just made from goes after that.
    /// Idempotent. What could not be removed is told in the log, and the next start removes it.
    async fn drop_golden(&self, pool: &PoolName, original: SandboxId);

    /// Resident use of a sandbox, from its cgroup.
    async fn usage(&self, id: SandboxId) -> Result<crate::cgroup::Usage, RuntimeError>;

    /// Images, ordered by name.
    async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError>;
    /// Imports an OCI or docker archive file; unpacks it.
    async fn import_image(
        &self,
        archive: &std::path::Path,
        name: Option<&str>,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<Vec<ImageInfo>, RuntimeError>;
    /// Pulls an image with the Transfer service; unpacks it.
    async fn pull_image(
        &self,
        name: &str,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<ImageInfo, RuntimeError>;
    /// Removes an image's reference; content goes with garbage collection.
    async fn remove_image(&self, name: &str) -> Result<(), RuntimeError>;

    /// Versions of the outside parts.
    async fn versions(&self) -> Result<Versions, RuntimeError>;
    /// The handlers of this node, ordered by name; those too that it can't serve now, with the reason.
    fn handlers(&self) -> Vec<Handler>;
}

/// Labels on containers: identity lives outside too, so a lost journal can be rebuilt.
pub mod labels {
    /// Sandbox id.
    pub const SANDBOX: &str = "hearth.dev/sandbox";
    /// Pool.
    pub const POOL: &str = "hearth.dev/pool";
    /// Pool generation.
    pub const GENERATION: &str = "hearth.dev/generation";
    /// Node tag.
    pub const NODE_TAG: &str = "hearth.dev/node-tag";
    /// Version of the runsc that runs it.
    pub const RUNSC: &str = "hearth.dev/runsc";
    /// What else an image of it could only be restored with: runsc's flags, and which hearth-init is mounted into it.
    pub const MADE_WITH: &str = "hearth.dev/made-with";
    /// Runtime handler. Absent: gVisor, by a hearthd that knew no other.
    pub const HANDLER: &str = "hearth.dev/handler";
}

/// What the real runtime is built with.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// containerd's socket.
    pub socket: std::path::PathBuf,
    /// For FIFOs: `<run_dir>/sandboxes/<id>/`.
    pub run_dir: std::path::PathBuf,
    /// hearth-runsc, given to the shim as `binary_name`.
    pub wrapper: std::path::PathBuf,
    /// runsc; the wrapper is told by its config file.
    pub runsc: std::path::PathBuf,
    /// runsc's root directory (state of containers).
    pub runsc_root: std::path::PathBuf,
    /// hearth-init, mounted read-only into every sandbox.
    pub init: std::path::PathBuf,
    /// The runtime's name in containerd: [`SHIM`], found by containerd in its PATH (the managed containerd's begins with
    /// the configured shim's directory), or the absolute path of a shim. With a path containerd 2.4 starts the shim
    /// once more in each creation, only to ask what it can mount (`deprecatedMountCapabilities`): 20 ms of CPU.
    pub shim: std::path::PathBuf,
    /// containerd's snapshotter.
    pub snapshotter: String,
    /// Parent of all sandbox cgroups, "/hearth" by default.
    pub cgroup_parent: String,
    /// This data directory.
    pub node_tag: NodeTag,
    /// Kata's handlers that this node offers, beside gVisor.
    pub kata: Vec<KataHandler>,
    /// Where Kata keeps what it has of each sandbox while it runs: `/run` always, for its shims have it built in.
    pub kata_run: std::path::PathBuf,
}

/// A Kata handler that this node offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KataHandler {
    /// As templates call it; begins with "kata".
    pub name: String,
    /// containerd's name of the shim, such as "io.containerd.kata-clh.v2", or its absolute path.
    pub shim: std::path::PathBuf,
    /// Kata's configuration file for it; empty: the shim's own default.
    pub config: std::path::PathBuf,
}
