//! The managed containerd: hearthd's own, where none is configured.
//!
//! Owns: its configuration, its process, its log. Never: talks to containerd's API beyond asking whether it answers,
//! signals a process that was not proved to be ours.
//!
//! ```text
//! start ──▶ adopt the one that runs (same program, same configuration) ─┐
//!      └──▶ spawn, detached: own session, outlives hearthd ─────────────┼─▶ answers
//! supervise: ended or hung ─▶ spawn again after a pause that grows        stop: end it, sweep what is left
//! ```

mod file;
mod instance;
mod log;
mod sweep;

use std::{
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use containerd_client::services::v1::version_client::VersionClient;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use self::instance::Instance;
use super::{RuntimeMetrics, containerd::channel};

/// For a containerd that was spawned to answer. It loads every shim before: two at a time, each asked for its pids.
const READY: Duration = Duration::from_secs(120);
/// Between two looks at one that is starting.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// One question whether it answers.
const ANSWER: Duration = Duration::from_secs(2);
/// Between two such questions while it runs.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// First and longest pause before it is started again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// One that ran for so long has recovered: the pause begins anew.
const RECOVERED: Duration = Duration::from_secs(60);
/// For a containerd that was asked to end, and for one that was killed.
const END: Duration = Duration::from_secs(10);

/// Where the managed containerd is and what it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagedConfig {
    /// The program.
    pub containerd: PathBuf,
    /// The shim; its directory is put in front of PATH.
    pub shim: PathBuf,
    /// The snapshotter images are unpacked for.
    pub snapshotter: String,
    /// hearth's data directory: content and snapshots go to `containerd/` in it, the log beside.
    pub data_dir: PathBuf,
    /// hearth's run directory: sockets, state and pid go to `containerd/` in it.
    pub run_dir: PathBuf,
    /// runsc's root (`RuntimeConfig::runsc_root`): swept by `stop`.
    pub runsc_root: PathBuf,
    /// Parent of the sandboxes' cgroups: swept by `stop`, of this containerd's sandboxes only.
    pub cgroup_parent: String,
    /// One that has answered before and does not for so long is hung: it is killed and started again. A busy node is no
    /// reason: [`Self::HUNG_AFTER`].
    pub hung_after: Duration,
}

impl ManagedConfig {
    /// What `hung_after` is in production.
    pub const HUNG_AFTER: Duration = Duration::from_secs(60);

    fn root(&self) -> PathBuf {
        self.data_dir.join("containerd")
    }

    fn state(&self) -> PathBuf {
        self.run_dir.join("containerd")
    }

    fn log(&self) -> PathBuf {
        self.data_dir.join("containerd.log")
    }

    /// Its gRPC socket, for `RuntimeConfig::socket`.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.state().join("containerd.sock")
    }
}

/// Why the managed containerd could not be started or ended.
#[derive(Debug, thiserror::Error)]
pub enum ManagedError {
    /// A directory or file of its.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("containerd does not answer after {seconds} s; its log, {log}, ends with: {tail}")]
    Silent {
        /// How long it was waited.
        seconds: u64,
        /// The log.
        log: PathBuf,
        /// Its last words.
        tail: String,
    },
    /// It ended while it was starting.
    #[error("containerd ended at once; its log, {log}, ends with: {tail}")]
    Ended {
        /// The log.
        log: PathBuf,
        /// Its last words.
        tail: String,
    },
    /// It could not be ended.
    #[error("containerd (pid {pid}) does not end")]
    Stuck {
        /// Its pid.
        pid: i32,
    },
    /// Something of it is left.
    #[error("left behind: {}", .0.join(", "))]
    Left(Vec<String>),
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ManagedError + '_ {
    move |source| ManagedError::Io {
        path: path.to_owned(),
        source,
    }
}

/// A containerd of hearthd's own.
#[derive(Debug)]
pub struct ManagedContainerd {
    config: ManagedConfig,
    metrics: RuntimeMetrics,
    running: Mutex<Arc<Instance>>,
    stopping: watch::Sender<bool>,
}

impl ManagedContainerd {
    /// Adopts the one that runs, or starts one; returns when it answers.
    ///
    /// # Errors
    /// [`ManagedError`].
    pub async fn start(
        config: ManagedConfig,
        metrics: RuntimeMetrics,
    ) -> Result<Arc<Self>, ManagedError> {
        let found = config.clone();
        let (lock, changed, found) = blocking(move || {
            for dir in [found.root(), found.state()] {
                let mut private = std::fs::DirBuilder::new();
                let made = private.recursive(true).mode(0o700).create(&dir);
                made.map_err(io_error(&dir))?;
            }
            // Two starts at once must not spawn two.
            let lock = file::lock(&found.state())?;
            Ok((lock, file::write(&found)?, instance::adopt(&found)?))
        })
        .await?;
        let current = |running: &Instance| !changed && running.runs(&config.containerd);
        let instance = match found {
            Some(running) if current(&running) => {
                tracing::info!(pid = running.pid(), "adopted the running containerd");
                running
            }
            outdated => {
                if let Some(outdated) = outdated {
                    tracing::info!(
                        pid = outdated.pid(),
                        "the running containerd is outdated: replacing it"
                    );
                    end(&outdated).await?;
                }
                let config = config.clone();
                blocking(move || instance::spawn(&config)).await?
            }
        };
        drop(lock);
        let managed = Arc::new(Self {
            running: Mutex::new(Arc::new(instance)),
            config,
            metrics,
            stopping: watch::Sender::new(false),
        });
        managed.until_it_answers().await?;
        Ok(managed)
    }

    /// Its gRPC socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.config.socket()
    }

    /// Its pid, for `doctor`, logs and tests.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.current().pid()
    }

    fn current(&self) -> Arc<Instance> {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn until_it_answers(&self) -> Result<(), ManagedError> {
        let began = Instant::now();
        let log = self.config.log();
        loop {
            if answers(&self.config.socket()).await {
                return Ok(());
            }
            let tail = || log::tail(&log);
            if !self.current().is_running() {
                return Err(ManagedError::Ended { tail: tail(), log });
            }
            if began.elapsed() >= READY {
                let seconds = READY.as_secs();
                return Err(ManagedError::Silent {
                    seconds,
                    tail: tail(),
                    log,
                });
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Keeps it running: starts it again when it ends or hangs, bounds its log. Returns after `stop`. Run by `app`.
    pub async fn supervise(&self) {
        let mut stopping = self.stopping.subscribe();
        tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => {}
            () = self.keep_running() => {}
        }
    }

    async fn keep_running(&self) {
        let mut pause = PAUSE.0;
        loop {
            let began = Instant::now();
            let instance = self.current();
            tokio::select! {
                ended = instance.ended() => {
                    if let Err(error) = ended {
                        // Out of descriptors: its end is seen by the questions below.
                        tracing::error!(%error, "containerd's end cannot be watched");
                        self.until_it_hangs(&instance).await;
                    }
                }
                () = self.until_it_hangs(&instance) => {}
            }
            if instance.is_running() {
                tracing::error!(pid = instance.pid(), "containerd is hung: ending it");
                if let Err(error) = end(&instance).await {
                    tracing::error!(%error, "a hung containerd stays");
                    sleep(PAUSE.1).await;
                    continue;
                }
            }
            instance.reap();
            self.metrics.restarts.inc();
            let tail = log::tail(&self.config.log());
            tracing::error!(
                pid = instance.pid(),
                tail,
                "containerd has ended: starting it again"
            );
            if began.elapsed() >= RECOVERED {
                pause = PAUSE.0;
            }
            loop {
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
                match self.start_again().await {
                    Ok(Some(fresh)) => {
                        *self.running.lock().unwrap_or_else(PoisonError::into_inner) =
                            Arc::new(fresh);
                        break;
                    }
                    Ok(None) => return,
                    Err(error) => tracing::error!(%error, "containerd cannot be started"),
                }
            }
        }
    }

    /// Another start may have been quicker: then that one is taken. `None`: it is to stop.
    async fn start_again(&self) -> Result<Option<Instance>, ManagedError> {
        let config = self.config.clone();
        let stopping = self.stopping.subscribe();
        blocking(move || {
            let _lock = file::lock(&config.state())?;
            // This thread goes on when nobody waits for it any more.
            if *stopping.borrow() {
                return Ok(None);
            }
            match instance::adopt(&config)? {
                Some(running) => Ok(Some(running)),
                None => instance::spawn(&config).map(Some),
            }
        })
        .await
    }

    /// Returns when it has answered once and then does not for `hung_after`, or has ended.
    async fn until_it_hangs(&self, instance: &Instance) {
        let mut answered: Option<Instant> = None;
        while instance.is_running() {
            if answers(&self.config.socket()).await {
                answered = Some(Instant::now());
            }
            if answered.is_some_and(|at| at.elapsed() >= self.config.hung_after) {
                return;
            }
            log::bound(&self.config.log());
            sleep(ASK_EVERY.min(self.config.hung_after / 4)).await;
        }
    }

    /// Ends it for good, with every sandbox that it still has, and removes mounts and sockets it leaves. For `--dev`,
    /// the demo and tests; a service's containerd lives on.
    ///
    /// # Errors
    /// `Stuck`, `Left`.
    pub async fn stop(&self) -> Result<(), ManagedError> {
        self.stopping.send_replace(true);
        end(&self.current()).await?;
        // One that was being started just now, or that another start made.
        let config = self.config.clone();
        let other = blocking(move || {
            let _lock = file::lock(&config.state())?;
            instance::adopt(&config)
        });
        if let Some(other) = other.await? {
            end(&other).await?;
        }
        let config = self.config.clone();
        blocking(move || sweep::sweep(&config)).await
    }
}

/// Small file I/O, forks and waiting for the lock, off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ManagedError> + Send + 'static,
) -> Result<T, ManagedError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Asks it to end, then makes it.
async fn end(instance: &Instance) -> Result<(), ManagedError> {
    let pid = instance.pid();
    let stuck = |_| ManagedError::Stuck { pid };
    instance.terminate().map_err(stuck)?;
    if instance.ends_within(END).await.map_err(stuck)? {
        return Ok(());
    }
    instance.kill().map_err(stuck)?;
    if instance.ends_within(END).await.map_err(stuck)? {
        return Ok(());
    }
    Err(ManagedError::Stuck { pid })
}

/// Whether something answers on the socket.
async fn answers(socket: &Path) -> bool {
    let mut version = VersionClient::new(channel(socket));
    matches!(timeout(ANSWER, version.version(())).await, Ok(Ok(_)))
}
