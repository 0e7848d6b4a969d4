//! Golden images: in staging memory, in plain, one for each pool; clones are restored from them.

use containerd_client::services::v1::CheckpointTaskRequest;

use super::{
    ContainerdRuntime,
    checkpoint::{CHECKPOINT, failed},
    made_with::comes_back,
    proto::{CheckpointOptions, any},
    staging::{Golden, Using},
};
use crate::{
    machine::{
        event::CheckpointFailure,
        ids::{PoolName, SandboxId},
    },
    runtime::{CreateSpec, Fit, RuntimeError},
};

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
        // Whatever becomes of this one.
        if let Some(before) = tier.staging.goldens.forget_others(pool, id) {
            before.go().await;
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
        let path = tier.golden_path(id);
        let golden = Golden::new(id, fingerprint, path.clone(), staged);
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

    /// The image, which stays as long as it is used. `Err`: why no clone can be made of it, as the trait tells it. All that
    /// restoring demands is compared, but for what its template says: whoever asks has compared that.
    pub(super) async fn fitting(
        &self,
        original: SandboxId,
        sandbox: &CreateSpec,
    ) -> Result<Using<'_>, Fit> {
        let tier = self.tier.get();
        let goldens = tier.map(|tier| &tier.staging.goldens);
        let golden = goldens.and_then(|all| all.make_use(&sandbox.pool, original));
        let golden = golden.ok_or(Fit::Gone)?;
        let then = &golden.fingerprint;
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
        Ok(golden)
    }

    /// See the trait.
    pub(super) async fn make_clone(
        &self,
        sandbox: &CreateSpec,
        original: SandboxId,
    ) -> Result<(), RuntimeError> {
        let fitting = self.fitting(original, sandbox).await;
        let golden = fitting.map_err(|why| RuntimeError::Refused {
            what: "clone",
            detail: format!("{why:?}"),
        })?;
        self.make_from(sandbox, Some(golden.path())).await
    }

    /// See the trait.
    pub(super) async fn forget_golden(&self, pool: &PoolName, original: SandboxId) {
        let tier = self.tier.get();
        let golden = tier.and_then(|tier| tier.staging.goldens.forget(pool, original));
        if let Some(golden) = golden {
            golden.go().await;
        }
    }
}
