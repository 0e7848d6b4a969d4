//! Golden images: in staging memory, in plain, one for each pool's generation; clones are restored from them.

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
    proto::{CheckpointOptions, any},
};
use crate::{
    machine::{
        event::CheckpointFailure,
        ids::{PoolName, SandboxId},
    },
    runtime::{CreateSpec, RuntimeError},
    vault::Fingerprint,
};

/// One image.
#[derive(Debug)]
struct Golden {
    generation: u64,
    path: PathBuf,
    fingerprint: Fingerprint,
    /// Its part of the staging memory.
    _staged: OwnedSemaphorePermit,
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

    fn find(&self, pool: &PoolName, generation: u64) -> Option<(PathBuf, Fingerprint)> {
        let all = self.lock();
        let golden = all.get(pool).filter(|it| it.generation == generation)?;
        Some((golden.path.clone(), golden.fingerprint.clone()))
    }
}

impl ContainerdRuntime {
    /// See the trait.
    pub(super) async fn make_golden(
        &self,
        id: SandboxId,
        pool: &PoolName,
        generation: u64,
    ) -> Result<(), CheckpointFailure> {
        let Some(tier) = self.tier.get() else {
            return Err(CheckpointFailure::Failed("there is no disk tier".into()));
        };
        self.can_freeze(id).map_err(CheckpointFailure::Failed)?;
        let container = self.container(id).await.map_err(failed)?;
        let fingerprint = self.fingerprint(&container).await.map_err(failed)?;
        let rootfs = self.rootfs(id).await.map_err(failed)?;
        let about_bytes = self.about_bytes(id, &rootfs).await.map_err(failed)?;
        // Images in the making go before: these only save time.
        let staged = tier
            .try_stage(about_bytes)
            .ok_or_else(|| CheckpointFailure::NoRoom("staging memory is taken".into()))?;
        let path = tier.golden_path(pool, generation);
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
            generation,
            path,
            fingerprint,
            _staged: staged,
        };
        let before = tier.goldens.lock().insert(pool.clone(), golden);
        if let Some(before) = before {
            remove(before.path).await.map_err(failed)?;
        }
        Ok(())
    }

    /// See the trait.
    pub(super) async fn make_clone(&self, sandbox: &CreateSpec) -> Result<(), RuntimeError> {
        let refused = |detail: String| RuntimeError::Refused {
            what: "clone",
            detail,
        };
        let tier = self.tier.get();
        let golden = tier.and_then(|tier| tier.goldens.find(&sandbox.pool, sandbox.generation));
        let (path, then) = golden.ok_or_else(|| refused("there is no golden image".into()))?;
        let image = self.images.of(sandbox).await?;
        if image.chain_id != then.chain {
            return Err(refused("the image's layers have changed".into()));
        }
        let runsc = self.runsc.get().await?;
        if runsc != then.runsc {
            return Err(refused(format!("runsc is {runsc} now")));
        }
        self.make_from(sandbox, Some(&path)).await
    }
}

async fn remove(path: PathBuf) -> Result<(), RuntimeError> {
    blocking("golden", move || match std::fs::remove_dir_all(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    })
    .await
}
