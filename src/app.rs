//! Composition root: the one place where real things are built, joined and spawned.
//!
//! ```text
//! config ─▶ journal (lock, records, key) ─▶ containerd (managed or not) ─▶ runtime ─▶ Node::recover ─▶ driver
//!                                                                     rpc, admin ◀── Handle ◀──┘
//! ```
//! Ends in the reverse order: refuse, drain, stop the driver when all is durable. Sandboxes and containerd live on.

mod callers;
mod containerd;
mod dev;
mod host;
mod images;
mod install;
mod kubernetes;
mod log;
mod metrics;
mod mountspace;
mod network;
#[cfg(feature = "otlp")]
mod otlp;
mod pages;
mod policies;
mod privileges;
mod programs;
mod swap;
mod uninstall;
mod versions;
mod wait;
mod wiping;

pub use dev::Dev;
pub use install::install;
pub use log::LogError;
pub use programs::MissingPrograms;
pub use uninstall::uninstall;
pub use wait::wait;
pub use wiping::Wiping;

use crate::cgroup::{CgroupError, CgroupTree, Version};
use crate::config::{Config, Swap};
use crate::driver::{self, BootClock, Handle};
use crate::failpoint::failpoint;
use crate::guest::channel::{ChannelConfig, FifoConnector, GuestMetrics};
use crate::identity;
use crate::journal::{self, Boot, Opened, RedbJournal};
use crate::machine::limits;
use crate::machine::node::{MemoryPolicy, Node, Settings};
use crate::machine::refusal::Refusal;
use crate::rpc;
use crate::runtime::containerd::ContainerdRuntime;
use crate::runtime::managed::{ManagedContainerd, ManagedError};
use crate::runtime::{RuntimeConfig, RuntimeError, RuntimeMetrics, SHIM};
use containerd::is_managed;
use log::Logs;
use programs::Programs;
use prometheus::Registry;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Events of the journal that wait for the driver.
const JOURNAL_EVENTS: usize = 2 * journal::BATCHES_IN_FLIGHT;
/// How long the driver may take to commit what is left, beyond what the requests had.
const LAST_COMMIT: Duration = Duration::from_secs(10);

/// Why hearthd did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Logs and spans.
    #[error(transparent)]
    Logs(#[from] LogError),
    /// Programs are missing.
    #[error(transparent)]
    Programs(#[from] MissingPrograms),
    /// The host cannot be used.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The host's cgroups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The data directory.
    #[error(transparent)]
    Journal(#[from] journal::OpenError),
    /// The managed containerd.
    #[error(transparent)]
    Managed(#[from] ManagedError),
    /// The adapter to containerd.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The API's socket.
    #[error(transparent)]
    Bind(#[from] rpc::BindError),
    /// The API.
    #[error(transparent)]
    Serve(#[from] rpc::ServeError),
    /// The files of TLS.
    #[error("api.tls: {0}")]
    Tls(#[from] identity::TlsError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] identity::AuditError),
    /// A metric was registered twice: a bug.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    /// The swap that frozen sandboxes go to.
    #[error("memory.swap: {0}")]
    Swap(String),
    /// The Kubernetes API can't even be asked.
    #[error("kubernetes: {0}")]
    Kubernetes(String),
    /// A call of `--dev` itself.
    #[error("--dev: {0}")]
    Refused(#[from] Refusal),
    /// Something of `--dev`.
    #[error("--dev: {0}")]
    Dev(String),
    /// hearth can't be taken off the node.
    #[error("{0}")]
    Left(String),
    /// A task that must not end has ended.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
}

fn host(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> AppError {
    let what = what.into();
    move |source| AppError::Host { what, source }
}

/// `hearthd --check`: what can be judged without starting anything.
///
/// # Errors
/// Missing programs, bad files of TLS.
pub fn check(config: &Config) -> Result<(), AppError> {
    Programs::find(config, is_managed(config))?;
    CgroupTree::detect("/sys/fs/cgroup")?;
    callers::check(config)
}

/// Runs hearthd until SIGTERM or SIGINT. Called by the binary, once.
///
/// # Errors
/// Why it did not start, or what of it broke.
pub fn run(config: Config, dev: Option<Dev>) -> Result<(), AppError> {
    let kept = privileges::give_up();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(host("starting threads"))?;
    let logs = Logs::start(&config.log, &runtime)?;
    privileges::tell(kept);
    let result = runtime.block_on(Box::pin(serve(config, dev)));
    if let Err(error) = &result {
        error!(%error, "hearthd ends");
    }
    logs.stop();
    // A thread may hang in the kernel on behalf of one sandbox; the end does not wait for it.
    runtime.shutdown_background();
    result
}

async fn serve(config: Config, dev: Option<Dev>) -> Result<(), AppError> {
    let started_at = SystemTime::now();
    let mut terminate = signal(SignalKind::terminate()).map_err(host("catching SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(host("catching SIGINT"))?;
    let programs = Programs::find(&config, is_managed(&config))?;
    host::raise_open_files();
    let registry = Registry::new();
    let node = Box::pin(start(&config, &programs, &registry, started_at)).await?;
    let ended = tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
        failed = node.furnish_and_watch(dev.as_ref()) => Err(failed),
    };
    match &ended {
        Ok(signal) if dev.is_some() => info!(signal, "shutting down; sandboxes end with it"),
        Ok(signal) => info!(signal, "shutting down; sandboxes stay"),
        Err(error) => error!(%error, "shutting down"),
    }
    let cleared = node.stop(&config, dev.as_ref()).await;
    ended?;
    cleared
}

/// Everything that runs.
struct Running {
    handle: Handle,
    managed: Option<Arc<ManagedContainerd>>,
    network: network::Built,
    kubernetes: kubernetes::Kubernetes,
    /// Tells rpc and admin to end.
    stop_serving: CancellationToken,
    /// Tells the driver to end, after them.
    stop_driver: CancellationToken,
    rpc: JoinHandle<Result<(), rpc::ServeError>>,
    driver: JoinHandle<()>,
}

/// Builds and spawns everything, in the order of the picture above.
async fn start(
    config: &Config,
    programs: &Programs,
    registry: &Registry,
    started_at: SystemTime,
) -> Result<Running, AppError> {
    let (boot, boottime) = host::boot().map_err(host("reading the clocks"))?;
    let mut kubernetes = kubernetes::Kubernetes::begin(config, registry).await?;
    swap::prepare(config).await?;
    let (journal_in, journal_events) = mpsc::channel(JOURNAL_EVENTS);
    let opened = open_journal(config, boot, journal_in, registry)?;
    failpoint!("start.journal");
    let memory = metrics::register(registry, config)?;

    let reviewer = kubernetes.reviewer(config, registry)?;
    let (listeners, guard) = Box::pin(callers::listen(config, registry, reviewer)).await?;
    let ports = pages::Ports::bind(config).await?;

    let metrics = RuntimeMetrics::register(registry)?;
    let runsc_root = config.run_dir.join("runsc");
    let managed = containerd::start(config, programs, &runsc_root, &metrics).await?;
    failpoint!("start.containerd");
    let socket = match &managed {
        Some(managed) => managed.socket(),
        None => config.containerd.socket.clone(),
    };
    let runtime_config = RuntimeConfig {
        socket,
        run_dir: config.run_dir.clone(),
        wrapper: programs.wrapper.clone(),
        runsc: programs.runsc.clone(),
        runsc_root,
        init: programs.init.clone(),
        // The managed containerd finds the shim by its name; another one is told which to take.
        shim: match &managed {
            Some(_) => SHIM.into(),
            None => programs.shim.clone(),
        },
        snapshotter: config.containerd.snapshotter.clone(),
        cgroup_parent: config.runtime.cgroup_parent.clone(),
        node_tag: opened.identity.tag,
        kata: programs::kata(config),
        kata_run: "/run".into(),
    };
    let connected = ContainerdRuntime::connect(runtime_config, metrics)?;
    tokio::spawn(connected.background.run());
    let elsewhere = mountspace::elsewhere(config);
    let may_mount = elsewhere.is_none();
    let disk = images::tier(config, opened.key.expose(), may_mount, &connected.runtime)?;

    let channel = ChannelConfig {
        streams: config.limits.streams_per_sandbox,
        ..ChannelConfig::default()
    };
    let connector = FifoConnector::new(
        tokio::runtime::Handle::current(),
        channel,
        GuestMetrics::register(registry)?,
    );
    let settings = Settings {
        tag: opened.identity.tag,
        max_sandboxes: limits::POOL_MAX_TOTAL,
        refill_yield_ms: limits::REFILL_YIELD_MS,
        relist_ms: config.containerd.reconcile_seconds * 1000,
        memory: MemoryPolicy {
            budget_bytes: config.memory.budget_bytes,
            pressure_permille: config.memory.pressure_percent * 10,
        },
        disk,
    };
    let network = network::build(config, opened.identity.tag, elsewhere, registry).await?;
    let runtime = connected.runtime.clone();
    let parts = driver::Parts {
        node: Node::recover(settings, opened.records, opened.start).under(policies::rules(config)),
        journal: Box::new(opened.journal),
        journal_events,
        runtime: connected.runtime,
        runtime_events: connected.events,
        network: network.network.clone(),
        connector: Arc::new(connector),
        memory: Some(memory),
        reclaim: config.memory.swap() != Ok(Swap::None),
        golden: config.hibernation.golden_images == "auto",
        clock: Arc::new(BootClock::new(opened.start, boottime)),
        start_nonce: opened.start.0,
    };
    let (driver, handle) = driver::build(parts, registry)?;
    let (stop_serving, stop_driver) = (CancellationToken::new(), CancellationToken::new());
    let driver = tokio::spawn(driver.run_until_stopped(stop_driver.clone()));
    kubernetes.serve(&handle).await;
    ports.serve(&handle, registry, &stop_serving);
    kubernetes.serve_pools(config, &handle, registry)?;
    let dir = config.runtime.install_dir.clone();
    if !dir.as_os_str().is_empty() {
        let own = programs.installed.clone();
        tokio::spawn(versions::sweep(dir, own, runtime, handle.clone()));
    }
    let rpc_config = rpc_config(config, opened.key.expose(), opened.identity.tag, started_at)?;
    let rpc = tokio::spawn(rpc::serve(
        listeners,
        handle.clone(),
        rpc_config,
        guard,
        rpc::Metrics::register(registry)?,
        stop_serving.clone().cancelled_owned(),
    ));
    info!(
        version = env!("CARGO_PKG_VERSION"),
        socket = %config.api.socket.display(),
        data_dir = %config.data_dir.display(),
        node_tag = %opened.identity.tag,
        "hearthd serves"
    );
    Ok(Running {
        handle,
        managed,
        network,
        kubernetes,
        stop_serving,
        stop_driver,
        rpc,
        driver,
    })
}

fn open_journal(
    config: &Config,
    boot: Boot,
    events: mpsc::Sender<journal::JournalEvent>,
    registry: &Registry,
) -> Result<Opened<RedbJournal>, AppError> {
    let settings = journal::Settings {
        data_dir: config.data_dir.clone(),
        boot,
        reserve_bytes: config.limits.disk_reserve_bytes,
    };
    let metrics = journal::Metrics::register(registry)?;
    let opened = RedbJournal::open(&settings, events, metrics, journal::abort_on_failure())?;
    Ok(opened)
}

fn rpc_config(
    config: &Config,
    node_key: &[u8; 32],
    node_tag: crate::machine::ids::NodeTag,
    started_at: SystemTime,
) -> Result<rpc::RpcConfig, AppError> {
    let cgroup_version = match CgroupTree::detect("/sys/fs/cgroup")?.version() {
        Version::V1 => 1,
        Version::V2 => 2,
    };
    Ok(rpc::RpcConfig {
        node_key: *node_key,
        endpoints: config.api.endpoints(),
        version: env!("CARGO_PKG_VERSION").into(),
        node_tag,
        started_at,
        max_sandboxes: limits::POOL_MAX_TOTAL,
        cgroup_version,
        limits: rpc::RpcLimits {
            streams_per_sandbox: config.limits.streams_per_sandbox,
            image_import_bytes: config.limits.image_import_bytes,
            import_dir: config.data_dir.join("import"),
            disk_reserve_bytes: config.limits.disk_reserve_bytes,
            shutdown: Duration::from_secs(config.limits.shutdown_seconds),
        },
    })
}

impl Running {
    /// Furnishes a `--dev` node, then waits for something that must not end.
    async fn furnish_and_watch(&self, dev: Option<&Dev>) -> AppError {
        if let Some(dev) = dev
            && let Err(error) = dev.furnish(&self.handle).await
        {
            return error;
        }
        let look = Duration::from_millis(200);
        loop {
            tokio::time::sleep(look).await;
            if self.rpc.is_finished() {
                return AppError::Ended("the API");
            }
            if self.driver.is_finished() {
                return AppError::Ended("the driver");
            }
        }
    }

    /// Refuses, drains, commits, ends. With `--dev` also every sandbox and containerd.
    async fn stop(self, config: &Config, dev: Option<&Dev>) -> Result<(), AppError> {
        let cleared = match dev {
            Some(dev) => dev.clear(&self.handle).await,
            None => Ok(()),
        };
        self.handle.shut_down().await;
        self.stop_serving.cancel();
        self.kubernetes.stop().await;
        let patience = Duration::from_secs(config.limits.shutdown_seconds) + LAST_COMMIT;
        if tokio::time::timeout(patience, self.rpc).await.is_err() {
            warn!("the API did not end in time");
        }
        self.stop_driver.cancel();
        if tokio::time::timeout(LAST_COMMIT, self.driver)
            .await
            .is_err()
        {
            warn!("the driver did not end in time");
        }
        if let Some(dev) = dev {
            if let Some(managed) = &self.managed {
                managed.stop().await?;
            }
            self.network.take_down().await;
            swap::take_down(config).await?;
            images::take_down(config)?;
            dev.remove(config)?;
        }
        info!("hearthd ended");
        cleared
    }
}
