//! Golden images: in staging memory, in plain, one for each pool; clones are restored from them.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use containerd_client::services::v1::CheckpointTaskRequest;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    ContainerdRuntime, blocking,
    checkpoint::{CHECKPOINT, failed},
    made_with::comes_back,
    proto::{CheckpointOptions, any},
};
use crate::{
    machine::{
        event::CheckpointFailure,
        ids::{PoolName, SandboxId},
    },
    runtime::{CreateSpec, Fit, RuntimeError},
    vault::Fingerprint,
};

/// One image.
#[derive(Debug)]
struct Golden {
    original: SandboxId,
    path: PathBuf,
    fingerprint: Fingerprint,
    /// Its part of the staging memory.
    staged: OwnedSemaphorePermit,
}

impl Golden {
    /// Removes it. What could not be removed keeps its part of the staging memory.
    async fn discard(self) -> Result<(), RuntimeError> {
        let removed = remove(self.path).await;
        if removed.is_err() {
            self.staged.forget();
        }
        removed
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Goldens {
    of: Mutex<BTreeMap<PoolName, Golden>>,
}

impl Goldens {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PoolName, Golden>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, pool: &PoolName, original: SandboxId) -> Option<(PathBuf, Fingerprint)> {
        let all = self.lock();
        let golden = all.get(pool).filter(|it| it.original == original)?;
        Some((golden.path.clone(), golden.fingerprint.clone()))
    }
}

impl ContainerdRuntime {
    /// See the trait.
    pub(super) async fn make_golden(
        &self,
        id: SandboxId,
        pool: &PoolName,
    ) -> Result<(), CheckpointFailure> {
        let Some(tier) = self.tier.get() else {
            return Err(CheckpointFailure::Failed("there is no disk tier".into()));
        };
        self.can_freeze(id).map_err(CheckpointFailure::Failed)?;
        let container = self.container(id).await.map_err(failed)?;
        let fingerprint = self.fingerprint(&container).await.map_err(failed)?;
        comes_back(&container.labels, &fingerprint).map_err(CheckpointFailure::Mismatch)?;
        let rootfs = self.rootfs(id).await.map_err(failed)?;
        let about_bytes = self.about_bytes(id, &rootfs).await.map_err(failed)?;
        // Images in the making go before: these only save time.
        let staged = tier
            .try_stage(about_bytes)
            .ok_or_else(|| CheckpointFailure::NoRoom("staging memory is taken".into()))?;
        let path = tier.golden_path(id);
        // Its pages stay charged to this member's cgroup, as long as it lives: so does the higher bound.
        let bound = self.bound_of(id).await.map_err(failed)?;
        let with_image = bound.map(|bound| bound.saturating_add(about_bytes));
        self.bound(id, with_image).await.map_err(failed)?;
        let request = CheckpointTaskRequest {
            container_id: id.to_string(),
            options: Some(any(&CheckpointOptions {
                image_path: path.display().to_string(),
            })),
            ..CheckpointTaskRequest::default()
        };
        let mut tasks = self.client.tasks();
        let made = self
            .client
            .call(CHECKPOINT, tasks.checkpoint(request))
            .await;
        if let Err(error) = made {
            remove(path).await.map_err(failed)?;
            return Err(failed(error));
        }
        let golden = Golden {
            original: id,
            path,
            fingerprint,
            staged,
        };
        let before = tier.goldens.lock().insert(pool.clone(), golden);
        if let Some(before) = before
            && let Err(error) = before.discard().await
        {
            tracing::warn!(%pool, %error, "the golden image before was not removed");
        }
        Ok(())
    }

    /// Where the image is. `Err`: why no clone can be made of it, as the trait tells it. All that restoring demands is
    /// compared, but for what its template says: whoever asks has compared that.
    pub(super) async fn fitting(
        &self,
        original: SandboxId,
        sandbox: &CreateSpec,
    ) -> Result<PathBuf, Fit> {
        let tier = self.tier.get();
        let golden = tier.and_then(|tier| tier.goldens.find(&sandbox.pool, original));
        let (path, then) = golden.ok_or(Fit::Gone)?;
        let unknown = |error: RuntimeError| Fit::Differs(error.to_string());
        let image = self.images.of(sandbox).await.map_err(unknown)?;
        let runsc = self.runsc.get().await.map_err(unknown)?;
        let flags = self.flags_and_init(&self.config.init).await;
        let flags = flags.map_err(unknown)?;
        for (what, now, then) in [
            ("the image's layers are", &image.chain_id, &then.chain),
            ("runsc is", &runsc, &then.runsc),
            ("flags and hearth-init are", &flags, &then.flags),
        ] {
            if now != then {
                return Err(Fit::Differs(format!("{what} {now} now, and were {then}")));
            }
        }
        Ok(path)
    }

    /// See the trait.
    pub(super) async fn make_clone(
        &self,
        sandbox: &CreateSpec,
        original: SandboxId,
    ) -> Result<(), RuntimeError> {
        let fitting = self.fitting(original, sandbox).await;
        let path = fitting.map_err(|why| RuntimeError::Refused {
            what: "clone",
            detail: format!("{why:?}"),
        })?;
        self.make_from(sandbox, Some(&path)).await
    }

    /// See the trait.
    pub(super) async fn forget_golden(
        &self,
        pool: &PoolName,
        original: SandboxId,
    ) -> Result<(), RuntimeError> {
        let Some(tier) = self.tier.get() else {
            return Ok(());
        };
        let golden = {
            let mut all = tier.goldens.lock();
            let is_it = all.get(pool).is_some_and(|it| it.original == original);
            is_it.then(|| all.remove(pool)).flatten()
        };
        match golden {
            Some(golden) => golden.discard().await,
            None => Ok(()),
        }
    }
}

async fn remove(path: PathBuf) -> Result<(), RuntimeError> {
    blocking("golden", move || match std::fs::remove_dir_all(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    })
    .await
}
