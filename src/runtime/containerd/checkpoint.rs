//! The disk tier: a living sandbox's image, and a sandbox from its image.
//!
//! ```text
//! checkpoint: room ─▶ silence ─▶ Tasks.Checkpoint into the staging tmpfs, the sandbox stays ─▶ frozen ─▶ sealed
//! shed:       killed ─▶ task ─▶ cgroup, FIFOs                    container record and snapshot stay: they are what it is
//! restore:    shed ─▶ unsealed ─▶ FIFOs ─▶ Tasks.Create with the image ─▶ Tasks.Start ─▶ watched ─▶ staging emptied
//! ```
//! runsc's `--leave-running` (no `exit` in the options): without it the sandbox is killed even when its image could not be
//! written (`SaveOpts.Save` in pkg/sentry/state), so a full disk would lose it. With it the sandbox stays as it was until
//! the image is sealed and the journal says so, and whatever is cut off before costs nothing.
//!
//! What is written to the root file system is in the image: gVisor's overlay keeps it in a file of its own in the
//! snapshot, which it saves with the memory and makes anew at a restore.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use containerd_client::{
    services::v1::{
        CheckpointTaskRequest, Container, CreateTaskRequest, GetContainerRequest, StartRequest,
        snapshots::{MountsRequest, StatSnapshotRequest},
    },
    types::Mount,
};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::{
    ContainerdRuntime, blocking,
    client::{Call, CallError, Reason},
    fifo,
    made_with::comes_back,
    names,
    proto::{CheckpointOptions, any},
    room::filestore,
    staging::Staging,
    watch::{self, Watch},
};
use crate::{
    failpoint::failpoint,
    machine::{
        event::{CheckpointFailure, RestoreFailure},
        ids::{PoolName, SandboxId},
    },
    ociwrap::OVERDUE,
    runtime::{Quieting, RuntimeError, SandboxNetwork},
    vault::{Fingerprint, Vault, VaultError, cpu_features},
};

const CONTAINER: Call = Call::seconds("containers.get", 10);
const STAT: Call = Call::seconds("snapshots.stat", 10);
const MOUNTS: Call = Call::seconds("snapshots.mounts", 10);
/// hearth-runsc gives `runsc checkpoint` and `runsc restore` 120 s each.
pub(super) const CHECKPOINT: Call = Call::seconds("tasks.checkpoint", 130);
const TASK: Call = Call::seconds("tasks.create", 30);
pub(super) const RESTORE: Call = Call::seconds("tasks.start", 130);

/// Where images are, and who has staging memory.
#[derive(Debug)]
pub(super) struct Tier {
    vault: Arc<Vault>,
    pub(super) staging: Staging,
}

impl Tier {
    pub(super) fn new(vault: Vault) -> Self {
        Self {
            staging: Staging::new(vault.staging_bytes()),
            vault: Arc::new(vault),
        }
    }

    /// Where the golden image of this original is.
    pub(super) fn golden_path(&self, original: SandboxId) -> PathBuf {
        self.vault.beside(&format!("golden-{original}"))
    }
}

impl From<VaultError> for CheckpointFailure {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::NoRoom(what) => Self::NoRoom(what),
            other => Self::Failed(other.to_string()),
        }
    }
}

pub(super) fn failed(error: impl Into<RuntimeError>) -> CheckpointFailure {
    CheckpointFailure::Failed(error.into().to_string())
}

fn later(error: impl Into<RuntimeError>) -> RestoreFailure {
    RestoreFailure::Unavailable(error.into().to_string())
}

/// What runsc was asked to do went wrong, or could not be asked. One that hung has said nothing of the image.
fn judged(error: RuntimeError) -> RestoreFailure {
    match error {
        RuntimeError::Refused { ref detail, .. } if detail.contains(OVERDUE) => later(error),
        RuntimeError::Refused { .. } | RuntimeError::ImageMissing(_) => {
            RestoreFailure::Lost(error.to_string())
        }
        RuntimeError::Unavailable(_) | RuntimeError::DeadlineExceeded { .. } => later(error),
    }
}

/// The same of something that containerd keeps for the sandbox.
fn kept(error: CallError) -> RestoreFailure {
    match error.reason {
        Reason::NotFound => RestoreFailure::Lost(RuntimeError::from(error).to_string()),
        _ => later(error),
    }
}

impl ContainerdRuntime {
    /// Gives the node a disk tier. Called by `app` once, before the driver runs; again: nothing.
    pub fn keep_images_in(&self, vault: Vault) {
        let _again = self.tier.set(Tier::new(vault));
    }

    /// See the trait.
    pub(super) async fn make_image(
        &self,
        id: SandboxId,
        quiet: Quieting<'_>,
        stop: &CancellationToken,
    ) -> Result<u64, CheckpointFailure> {
        let Some(tier) = self.tier.get() else {
            return Err(CheckpointFailure::Failed("there is no disk tier".into()));
        };
        self.can_freeze(id).map_err(CheckpointFailure::Failed)?;
        let container = self.container(id).await.map_err(failed)?;
        let fingerprint = self.fingerprint(&container).await.map_err(failed)?;
        comes_back(&container.labels, &fingerprint).map_err(CheckpointFailure::Mismatch)?;
        let rootfs = self.rootfs(id).await.map_err(failed)?;
        let about_bytes = self.about_bytes(id, &rootfs).await.map_err(failed)?;
        let _staged = tier.staging.take(about_bytes).await;
        if stop.is_cancelled() {
            return Err(VaultError::Stopped.into());
        }
        let vault = tier.vault.clone();
        on_thread(move || vault.reserve(id, about_bytes)).await?;
        let sealed = self
            .sealed(id, (about_bytes, fingerprint), tier, quiet, stop)
            .await;
        if sealed.is_err() {
            let vault = tier.vault.clone();
            on_thread(move || vault.remove(id)).await?;
        }
        sealed
    }

    /// There is room for it.
    async fn sealed(
        &self,
        id: SandboxId,
        (about_bytes, fingerprint): (u64, Fingerprint),
        tier: &Tier,
        quiet: Quieting<'_>,
        stop: &CancellationToken,
    ) -> Result<u64, CheckpointFailure> {
        let bound = self.bound_of(id).await.map_err(failed)?;
        // Its image is charged to it as well.
        let with_image = bound.map(|bound| bound.saturating_add(about_bytes));
        self.bound(id, with_image).await.map_err(failed)?;
        // Nothing is waited for between the silence and the image: silence has an end.
        let made = match quiet.await {
            Ok(()) => self.fill(id, &tier.vault).await,
            Err(what) => Err(CheckpointFailure::Failed(what)),
        };
        let sealed = match made {
            Ok(()) => {
                let (vault, stop) = (tier.vault.clone(), stop.clone());
                on_thread(move || vault.seal(id, &fingerprint, || stop.is_cancelled())).await
            }
            Err(failure) => {
                let vault = tier.vault.clone();
                on_thread(move || vault.discard(id)).await?;
                Err(failure)
            }
        };
        // The plain image is gone now.
        if let Err(error) = self.bound(id, bound).await {
            tracing::warn!(sandbox = %id, %error, "its memory's bound was not put back");
        }
        sealed
    }

    /// runsc writes the plain image; the sandbox is frozen then.
    async fn fill(&self, id: SandboxId, vault: &Vault) -> Result<(), CheckpointFailure> {
        let request = CheckpointTaskRequest {
            container_id: id.to_string(),
            options: Some(any(&CheckpointOptions {
                image_path: vault.staged(id).display().to_string(),
            })),
            ..CheckpointTaskRequest::default()
        };
        let mut tasks = self.client.tasks();
        let made = self
            .client
            .call(CHECKPOINT, tasks.checkpoint(request))
            .await;
        made.map_err(failed)?;
        failpoint!("checkpoint.plain");
        self.stop_processes(id).await.map_err(failed)
    }

    pub(super) async fn container(&self, id: SandboxId) -> Result<Container, CallError> {
        let request = GetContainerRequest { id: id.to_string() };
        let mut containers = self.client.containers();
        let got = self.client.call(CONTAINER, containers.get(request)).await?;
        Ok(got.container.unwrap_or_default())
    }

    pub(super) async fn rootfs(&self, id: SandboxId) -> Result<Vec<Mount>, CallError> {
        let request = MountsRequest {
            snapshotter: self.config.snapshotter.clone(),
            key: id.to_string(),
        };
        let mut snapshots = self.client.snapshots();
        let got = self.client.call(MOUNTS, snapshots.mounts(request)).await?;
        Ok(got.mounts)
    }

    pub(super) async fn fingerprint(
        &self,
        container: &Container,
    ) -> Result<Fingerprint, RuntimeError> {
        let spec = container.spec.as_ref().map(|spec| spec.value.as_slice());
        let spec = Sha256::digest(spec.unwrap_or_default());
        let spec = spec.iter().map(|byte| format!("{byte:02x}")).collect();
        let runsc = self.runsc.get().await?;
        let flags = self.flags_and_init(&self.init_of(container)).await?;
        let request = StatSnapshotRequest {
            snapshotter: self.config.snapshotter.clone(),
            key: container.id.clone(),
        };
        let mut snapshots = self.client.snapshots();
        let about = self.client.call(STAT, snapshots.stat(request)).await?;
        let chain = about.info.unwrap_or_default().parent;
        blocking("checkpoint", move || {
            let read = std::fs::read_to_string("/proc/cpuinfo").map_err(|e| e.to_string())?;
            Ok(Fingerprint {
                runsc,
                flags,
                chain,
                spec,
                cpu: cpu_features(&read),
            })
        })
        .await
    }

    /// See the trait.
    pub(super) async fn bring_back(
        &self,
        id: SandboxId,
        pool: &PoolName,
        network: Option<&SandboxNetwork>,
    ) -> Result<(), RestoreFailure> {
        let Some(tier) = self.tier.get() else {
            let what = "hibernation.quota_bytes is 0: there is no disk tier".to_owned();
            return Err(RestoreFailure::Unavailable(what));
        };
        let container = self.container(id).await.map_err(kept)?;
        let rootfs = self.rootfs(id).await.map_err(kept)?;
        let fingerprint = self.fingerprint(&container).await.map_err(later)?;
        let vault = tier.vault.clone();
        let plain_bytes = blocking("restore", move || Ok(vault.plain_bytes(id))).await;
        let _staged = tier.staging.take(plain_bytes.map_err(later)?).await;
        let vault = tier.vault.clone();
        let unsealed = blocking("restore", move || Ok(vault.unseal(id, &fingerprint))).await;
        match unsealed.map_err(later)? {
            Ok(()) => {}
            Err(error @ VaultError::Damaged(_)) => {
                return Err(RestoreFailure::Lost(error.to_string()));
            }
            Err(VaultError::Mismatch(what)) => return Err(RestoreFailure::Mismatch(what)),
            Err(error) => return Err(RestoreFailure::Unavailable(error.to_string())),
        }
        let mut started = self
            .start_from(id, (pool, network), &tier.vault, rootfs)
            .await
            .map_err(judged);
        if started.is_err()
            && let Err(error) = self.shed_task(id).await
        {
            started = Err(later(error));
        }
        let vault = tier.vault.clone();
        let discarded = blocking("restore", move || {
            vault.discard(id).map_err(|error| error.to_string())
        });
        discarded.await.map_err(later)?;
        started
    }

    async fn start_from(
        &self,
        id: SandboxId,
        (pool, network): (&PoolName, Option<&SandboxNetwork>),
        vault: &Vault,
        rootfs: Vec<Mount>,
    ) -> Result<(), RuntimeError> {
        self.shed_task(id).await?;
        let paths = fifo::paths(&self.config, id);
        let parent = &self.config.cgroup_parent;
        let cgroup = self.tree.sandbox(parent, pool.as_str(), &id.to_string());
        let cgroup = cgroup.map_err(|error| RuntimeError::Refused {
            what: "restore",
            detail: error.to_string(),
        })?;
        let stale = filestore(id, &rootfs);
        let fifos = blocking("restore", {
            let paths = paths.clone();
            let names = names::paths(&self.config, id);
            let network = network.cloned();
            move || {
                // runsc makes it anew and takes none that is there.
                if let Some(stale) = stale {
                    let _absent = std::fs::remove_file(stale);
                }
                let fifos = fifo::make(&paths).map_err(|error| error.to_string())?;
                if let Some(network) = network {
                    names::write(&names, &network).map_err(|error| error.to_string())?;
                }
                Ok(fifos)
            }
        });
        self.live.return_to(id, cgroup.clone(), fifos.await?);
        let text = |path: &Path| path.display().to_string();
        let mut options = self.options();
        options.criu_image_path = text(&vault.staged(id));
        let request = CreateTaskRequest {
            container_id: id.to_string(),
            rootfs,
            stdin: text(&paths.stdin),
            stdout: text(&paths.stdout),
            stderr: text(&paths.stderr),
            options: Some(any(&options)),
            ..CreateTaskRequest::default()
        };
        let mut tasks = self.client.tasks();
        self.client.call(TASK, tasks.create(request)).await?;
        failpoint!("restore.task");
        let request = StartRequest {
            container_id: id.to_string(),
            exec_id: String::new(),
        };
        let mut tasks = self.client.tasks();
        // Only now runsc runs, and only now there is a pid.
        let started = self.client.call(RESTORE, tasks.start(request)).await?;
        failpoint!("restore.started");
        let found = blocking("watch", move || {
            watch::find(id, started.pid, &cgroup).map_err(|error| error.to_string())
        });
        let found = found.await?;
        self.live.watch(id, found.shim);
        let (sentry, life) = (found.sentry, self.live.life(id));
        self.hand_over(Watch { id, sentry, life }).await
    }

    /// See the trait.
    pub(super) async fn forget_image(&self, id: SandboxId) -> Result<(), RuntimeError> {
        let Some(tier) = self.tier.get() else {
            return Ok(());
        };
        let vault = tier.vault.clone();
        blocking("image", move || {
            vault.remove(id).map_err(|error| error.to_string())
        })
        .await
    }

    /// See the trait.
    pub(super) async fn sweep_images(
        &self,
        keep: Vec<SandboxId>,
    ) -> Result<Vec<SandboxId>, RuntimeError> {
        let Some(tier) = self.tier.get() else {
            return Ok(Vec::new());
        };
        let vault = tier.vault.clone();
        let removed = blocking("image", move || {
            let removed = vault.sweep(&keep.into_iter().collect());
            removed.map_err(|error| error.to_string())
        })
        .await?;
        if !removed.is_empty() {
            let removed = removed.len();
            tracing::info!(removed, "images that nobody needs were removed");
        }
        let mut cut_off = Vec::new();
        for id in removed {
            let cgroup = self.cgroup_of(id);
            let frozen = blocking("image", move || {
                let frozen = cgroup()?.is_frozen();
                frozen.map_err(|error| error.to_string())
            });
            // The bound of its memory stays raised: runsc may still be writing what was asked of it, charged to that.
            if let Ok(false) = frozen.await {
                cut_off.push(id);
            }
        }
        Ok(cut_off)
    }
}

/// Off the async threads.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VaultError> + Send + 'static,
) -> Result<T, CheckpointFailure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(CheckpointFailure::from),
        Err(error) => Err(CheckpointFailure::Failed(error.to_string())),
    }
}
