//! Golden images: in staging memory, in plain, one for each pool's generation; clones are restored from them.

use containerd_client::services::v1::CheckpointTaskRequest;

use super::{
    ContainerdRuntime,
    checkpoint::{CHECKPOINT, failed},
    proto::{CheckpointOptions, any},
    staging::Golden,
};
use crate::{
    machine::{
        event::CheckpointFailure,
        ids::{PoolName, SandboxId},
    },
    runtime::{CreateSpec, RuntimeError},
};

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
        // Whatever becomes of this one.
        if let Some(older) = tier.staging.goldens.forget_older(pool, generation) {
            older.go().await;
        }
        if !tier.staging.holds(about_bytes) {
            let what = format!(
                "its image takes about {} MiB, more than hibernation.staging_bytes",
                about_bytes >> 20
            );
            return Err(CheckpointFailure::Failed(what));
        }
        // Images in the making go before: these only save time.
        let staged = tier
            .staging
            .try_take(about_bytes)
            .ok_or_else(|| CheckpointFailure::NoRoom("staging memory is taken".into()))?;
        let path = tier.golden_path(pool, generation);
        let golden = Golden::new(generation, fingerprint, path.clone(), staged);
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
            golden.go().await;
            return Err(failed(error));
        }
        tier.staging.goldens.keep(pool.clone(), golden);
        Ok(())
    }

    /// See the trait.
    pub(super) async fn make_clone(&self, sandbox: &CreateSpec) -> Result<(), RuntimeError> {
        let refused = |detail: String| RuntimeError::Refused {
            what: "clone",
            detail,
        };
        let tier = self.tier.get();
        let goldens = tier.map(|tier| &tier.staging.goldens);
        let golden = goldens.and_then(|all| all.make_use(&sandbox.pool, sandbox.generation));
        let golden = golden.ok_or_else(|| refused("there is no golden image".into()))?;
        let then = &golden.fingerprint;
        let image = self.images.of(sandbox).await?;
        if image.chain_id != then.chain {
            return Err(refused("the image's layers have changed".into()));
        }
        let runsc = self.runsc.get().await?;
        if runsc != then.runsc {
            return Err(refused(format!("runsc is {runsc} now")));
        }
        self.make_from(sandbox, Some(golden.path())).await
    }
}
