//! The adapter to containerd.
//!
//! Owns: every call to containerd, the spec of a sandbox, its FIFOs, its image, the watch for its end. Never: decides
//! what is made or destroyed (the machine does), talks to a guest, spawns a task that outlives a call. [`Background`]
//! is run by `app`.
//!
//! ```text
//! create ─┐                   ┌─ containerd (socket, namespace hearth) ─ shim ─ hearth-runsc ─ runsc
//! destroy ┼─ ContainerdRuntime┤
//! list ───┘        │          └─ kernel: cgroups, pidfds, FIFOs
//!                  └─ Background: pidfds ─▶ Exited, connection ─▶ Connected/Disconnected ─▶ driver
//! ```

mod checkpoint;
mod client;
mod create;
mod destroy;
mod fifo;
mod golden;
mod image;
mod kata;
mod leaving;
mod link;
mod list;
mod live;
mod made_with;
mod named;
mod names;
mod outbox;
mod proto;
mod residency;
mod room;
mod shim;
mod spec;
mod staging;
mod versions;
mod watch;

pub use leaving::leave;

use std::{
    future::Future,
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub(super) use self::client::channel;
use self::{
    client::Client, image::Images, link::Link, live::Live, outbox::Outbox, versions::RunscVersion,
    watch::Watch,
};
use super::{
    CreateSpec, Fit, Handler, ImageInfo, ImageProgress, Quieting, Reclaimed, Runtime,
    RuntimeConfig, RuntimeError, RuntimeEvent, RuntimeMetrics, SandboxNetwork, StdioPaths,
    Versions,
};
use crate::{
    cgroup::{CgroupError, CgroupTree, Usage},
    machine::{
        event::{CheckpointFailure, Observed, RestoreFailure},
        handler::GVISOR,
        ids::{PoolName, SandboxId},
    },
    ociwrap::WrapperConfig,
};

/// Events on their way to the driver; what does not fit waits as a state (see `outbox`).
const EVENTS: usize = 64;
/// For the keeper of watches to take one; it does nothing that takes time.
const HAND_OVER: Duration = Duration::from_secs(5);

/// The real [`Runtime`].
#[derive(Debug)]
pub struct ContainerdRuntime {
    config: Arc<RuntimeConfig>,
    client: Client,
    tree: CgroupTree,
    live: Arc<Live>,
    images: Images,
    runsc: RunscVersion,
    tier: OnceLock<checkpoint::Tier>,
    probes: kata::Probes,
    metrics: RuntimeMetrics,
    outbox: Arc<Outbox>,
    watches: mpsc::Sender<Watch>,
}

/// What must run beside the adapter for it to work: the watch for ends of sandboxes, the connection, the delivery of
/// events. `app` runs it; dropping it ends all three.
#[derive(Debug)]
pub struct Background {
    client: Client,
    link: Arc<Link>,
    live: Arc<Live>,
    outbox: Arc<Outbox>,
    metrics: RuntimeMetrics,
    watches: mpsc::Receiver<Watch>,
    events: mpsc::Sender<RuntimeEvent>,
}

impl Background {
    /// Runs until the receiver of events is dropped.
    pub async fn run(self) {
        let delivered = self.outbox.deliver(self.events);
        let watched = watch::keep(self.watches, self.live, self.outbox.clone(), self.metrics);
        let linked = self.link.keep(&self.client);
        let kept: (std::pin::Pin<Box<dyn Future<Output = ()> + Send>>, _) =
            (Box::pin(watched), Box::pin(linked));
        tokio::select! {
            () = delivered => {}
            () = async { tokio::join!(kept.0, kept.1); } => {}
        }
    }
}

/// An adapter with what belongs to it.
#[derive(Debug)]
pub struct Connected {
    /// The adapter.
    pub runtime: Arc<ContainerdRuntime>,
    /// To be run by `app`.
    pub background: Background,
    /// For the driver.
    pub events: mpsc::Receiver<RuntimeEvent>,
}

impl ContainerdRuntime {
    /// Prepares the directories, writes hearth-runsc's configuration, and makes an adapter that connects when it is
    /// first used: containerd need not run yet. Called once by `app`; blocks for some small writes.
    ///
    /// # Errors
    /// `Refused` when a directory or file cannot be written, or the host has no cgroups to use.
    pub fn connect(
        config: RuntimeConfig,
        metrics: RuntimeMetrics,
    ) -> Result<Connected, RuntimeError> {
        let wrong = |error: &dyn std::error::Error| RuntimeError::Refused {
            what: "connect",
            detail: client::clip(&error.to_string()),
        };
        let tree = CgroupTree::detect("/sys/fs/cgroup").map_err(|error| wrong(&error))?;
        let mut private = std::fs::DirBuilder::new();
        let made = private.recursive(true).mode(0o700);
        made.create(fifo::directory(&config))
            .map_err(|error| wrong(&error))?;
        WrapperConfig::new(&config.runsc, &config.cgroup_parent)
            .write(&config.runsc_root)
            .map_err(|error| wrong(&error))?;
        let config = Arc::new(config);
        let outbox = Arc::new(Outbox::default());
        let link = Arc::new(Link::new(outbox.clone()));
        let live = Arc::new(Live::default());
        let client = Client::new(&config.socket, link.clone(), metrics.clone());
        let (watches, handed_over) = mpsc::channel(watch::HANDED_OVER);
        let (events, receiver) = mpsc::channel(EVENTS);
        let runtime = Arc::new(Self {
            images: Images::new(client.clone(), config.clone()),
            runsc: RunscVersion::new(&config.runsc),
            tier: OnceLock::new(),
            config,
            client: client.clone(),
            tree,
            live: live.clone(),
            probes: kata::Probes::default(),
            metrics: metrics.clone(),
            outbox: outbox.clone(),
            watches,
        });
        let background = Background {
            client,
            link,
            live,
            outbox,
            metrics,
            watches: handed_over,
            events,
        };
        Ok(Connected {
            runtime,
            background,
            events: receiver,
        })
    }

    fn known_handler(&self, handler: &str) -> bool {
        handler == GVISOR || self.kata(handler).is_some()
    }

    async fn hand_over(&self, watch: Watch) -> Result<(), RuntimeError> {
        let id = watch.id;
        let sent = tokio::time::timeout(HAND_OVER, self.watches.send(watch)).await;
        if matches!(sent, Ok(Ok(()))) {
            return Ok(());
        }
        self.live.unwatch(id);
        Err(RuntimeError::DeadlineExceeded {
            what: "watching for the sandbox's end",
            seconds: HAND_OVER.as_secs(),
        })
    }
}

/// Small file I/O, off the async threads. What fails is `Refused` in `what`.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, RuntimeError> {
    let refused = |detail: String| RuntimeError::Refused {
        what,
        detail: client::clip(&detail),
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(refused),
        Err(error) => Err(refused(error.to_string())),
    }
}

#[async_trait]
impl Runtime for ContainerdRuntime {
    async fn create(&self, spec: &CreateSpec) -> Result<(), RuntimeError> {
        self.make(spec).await
    }

    async fn destroy(&self, id: SandboxId) -> Result<(), RuntimeError> {
        self.unmake(id).await
    }

    async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        self.observe().await
    }

    fn stdio(&self, id: SandboxId) -> StdioPaths {
        fifo::paths(&self.config, id)
    }

    async fn freeze(&self, id: SandboxId) -> Result<(), RuntimeError> {
        self.stop_processes(id).await
    }

    async fn thaw(&self, id: SandboxId) -> Result<(), RuntimeError> {
        self.let_go_on(id).await
    }

    async fn reclaim(
        &self,
        id: SandboxId,
        stop: &CancellationToken,
    ) -> Result<Reclaimed, RuntimeError> {
        self.take_memory(id, stop).await
    }

    async fn checkpoint(
        &self,
        id: SandboxId,
        quiet: Quieting<'_>,
        stop: &CancellationToken,
    ) -> Result<u64, CheckpointFailure> {
        self.make_image(id, quiet, stop).await
    }

    async fn shed(&self, id: SandboxId) -> Result<(), RuntimeError> {
        self.shed_task(id).await
    }

    async fn restore(
        &self,
        id: SandboxId,
        pool: &PoolName,
        network: Option<&SandboxNetwork>,
    ) -> Result<(), RestoreFailure> {
        self.bring_back(id, pool, network).await
    }

    async fn drop_image(&self, id: SandboxId) -> Result<(), RuntimeError> {
        self.forget_image(id).await
    }

    async fn keep_images(&self, keep: Vec<SandboxId>) -> Result<Vec<SandboxId>, RuntimeError> {
        self.sweep_images(keep).await
    }

    async fn take_golden(&self, spec: &CreateSpec) -> Result<(), CheckpointFailure> {
        self.make_golden(spec.id, &spec.pool).await
    }

    async fn golden_fits(&self, original: SandboxId, spec: &CreateSpec) -> Fit {
        self.fitting(original, spec)
            .await
            .err()
            .unwrap_or(Fit::Fits)
    }

    async fn create_clone(
        &self,
        spec: &CreateSpec,
        original: SandboxId,
    ) -> Result<(), RuntimeError> {
        self.make_clone(spec, original).await
    }

    async fn drop_golden(&self, pool: &PoolName, original: SandboxId) {
        self.forget_golden(pool, original).await;
    }

    async fn usage(&self, id: SandboxId) -> Result<Usage, RuntimeError> {
        let cgroup = self.cgroup_of(id);
        blocking("usage", move || {
            cgroup()?.usage().map_err(|error| match error {
                CgroupError::NotFound(_) => format!("sandbox {id} has no cgroup"),
                other => other.to_string(),
            })
        })
        .await
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        self.images.list().await
    }

    async fn import_image(
        &self,
        archive: &Path,
        name: Option<&str>,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<Vec<ImageInfo>, RuntimeError> {
        self.images.import(archive, name, progress).await
    }

    async fn pull_image(
        &self,
        name: &str,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<ImageInfo, RuntimeError> {
        self.images.pull(name, progress).await
    }

    async fn remove_image(&self, name: &str) -> Result<(), RuntimeError> {
        self.images.remove(name).await
    }

    async fn versions(&self) -> Result<Versions, RuntimeError> {
        self.read_versions().await
    }

    fn handlers(&self) -> Vec<Handler> {
        let disk_tier = self.tier.get().is_some();
        let kata = self.config.kata.iter().map(|it| it.name.as_str());
        let handlers = std::iter::once(GVISOR).chain(kata).map(|name| {
            let probe = self.probes.of(name);
            Handler {
                version: probe.version,
                unservable: probe.unservable,
                ..Handler::named(name, disk_tier)
            }
        });
        let mut handlers: Vec<_> = handlers.collect();
        handlers.sort_by(|one, other| one.name.cmp(&other.name));
        handlers
    }
}
