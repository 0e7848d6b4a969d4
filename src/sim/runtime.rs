//! Fake: containerd and the cgroups, on a [`Site`].

use super::site::{Deed, Site};
use super::world::Fate;
use crate::cgroup::{Reclaimed, Usage};
use crate::machine::event::{CheckpointFailure, Observed, RestoreFailure};
use crate::machine::ids::{PoolName, SandboxId};
use crate::machine::record::{Owner, Residency};
use crate::runtime::{
    CreateSpec, Fit, Handler, ImageInfo, ImageProgress, Quieting, Runtime, RuntimeError,
    SandboxNetwork, StdioPaths, Versions,
};
use async_trait::async_trait;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// The handler there is.
pub const HANDLER: &str = "gvisor";
/// An image of which nothing can be made.
pub const BAD: &str = "bad:1";
/// Deadline of every call to containerd.
const DEADLINE: Duration = Duration::from_secs(10);
/// Deadline of a freeze or a thaw.
const CGROUP_DEADLINE: Duration = Duration::from_secs(2);
/// A creation that was cut off may still happen so much later.
const LATE_MS: u64 = 3_000;

pub struct SimRuntime(pub Arc<Site>);

/// A call that containerd may carry out although its caller is gone. What becomes of it is chosen when it begins: tokio
/// drops the tasks of a dead hearthd in an order of its own.
struct UnderWay<'a> {
    site: &'a Site,
    deed: Option<Deed>,
    chance: u64,
    late_ms: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let Some(deed) = self.deed.take() else {
            return;
        };
        match (deed, self.chance) {
            (_, 0) => {}
            (Deed::Create(..) | Deed::Destroy(_), 1) => {
                self.site.carry_out_late(deed, self.late_ms);
            }
            // The others are writes to a cgroup, or of hearthd itself: done by now, or never.
            _ => self.site.carry_out(deed),
        }
    }
}

fn refused(what: &'static str) -> RuntimeError {
    RuntimeError::Refused {
        what,
        detail: "the simulation says no".to_owned(),
    }
}

impl SimRuntime {
    fn reach(&self) -> Result<(), RuntimeError> {
        match self.0.is_reachable() {
            true => Ok(()),
            false => Err(RuntimeError::Unavailable("away".to_owned())),
        }
    }

    /// One call: some time before the deed, some time after, and whatever may go wrong.
    async fn act(
        &self,
        what: &'static str,
        deed: Deed,
        takes: std::ops::Range<u64>,
    ) -> Result<(), RuntimeError> {
        let (site, world) = (&*self.0, &self.0.world);
        let containerd = !matches!(deed, Deed::Freeze(_) | Deed::Thaw(_));
        let deadline = if containerd {
            DEADLINE
        } else {
            CGROUP_DEADLINE
        };
        let fate = world.fate();
        let mut under_way = UnderWay {
            site,
            deed: Some(deed),
            chance: world.below(3),
            late_ms: world.below(LATE_MS),
        };
        world.pause(what, takes.clone()).await;
        if containerd {
            self.reach()?;
        }
        match fate {
            Fate::Before => {
                under_way.deed = None;
                world.note(format!("{deed:?} refused"));
                return Err(refused(what));
            }
            Fate::Hang => {
                sleep(deadline).await;
                world.note(format!("{deed:?} hung"));
                let seconds = deadline.as_secs();
                return Err(RuntimeError::DeadlineExceeded { what, seconds });
            }
            Fate::Well | Fate::After => {}
        }
        under_way.deed = None;
        world.note(format!("{deed:?}"));
        site.carry_out(deed);
        world.pause(what, takes).await;
        if fate == Fate::After {
            world.note(format!("{deed:?} done and failed"));
            return Err(refused(what));
        }
        if containerd { self.reach() } else { Ok(()) }
    }

    /// It is to be made.
    fn begins(&self, id: SandboxId) -> Result<(), RuntimeError> {
        let record = self.0.disk.sandbox(id);
        let intended = record.is_some_and(|it| it.residency == Residency::Creating);
        self.0.world.ensure(intended, || {
            format!("{id} is made without a durable intent")
        });
        self.reach()
    }

    fn is_alive(&self, id: SandboxId) -> bool {
        self.0.real(id).is_some_and(|real| real.alive)
    }

    /// A cgroup of one that runs.
    fn cgroup(&self, id: SandboxId, what: &'static str) -> Result<(), RuntimeError> {
        match self.is_alive(id) {
            true => Ok(()),
            false => Err(refused(what)),
        }
    }
}

#[async_trait]
impl Runtime for SimRuntime {
    async fn create(&self, spec: &CreateSpec) -> Result<(), RuntimeError> {
        let (id, world) = (spec.id, &self.0.world);
        self.0.make(id);
        self.begins(id)?;
        if spec.template.image == BAD {
            world.pause("create", 30..200).await;
            return Err(refused("start"));
        }
        let corpse = !world.is_healed() && world.once_in(40);
        self.act("create", Deed::Create(id, !corpse), 30..200)
            .await?;
        match self.is_alive(id) {
            true => Ok(()),
            false => Err(refused("start")),
        }
    }

    async fn destroy(&self, id: SandboxId) -> Result<(), RuntimeError> {
        let record = self.0.disk.sandbox(id);
        let failed_clone = self.0.is_clone(id)
            && (record.as_ref()).is_some_and(|it| it.residency == Residency::Creating);
        let owner = record.map(|it| it.owner);
        let intended = matches!(owner, None | Some(Owner::Releasing)) || failed_clone;
        self.0.world.ensure(intended, || {
            format!("{id} is destroyed while its record says {owner:?}")
        });
        self.reach()?;
        self.act("destroy", Deed::Destroy(id), 5..60).await
    }

    async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        let world = &self.0.world;
        world.pause("list", 1..40).await;
        self.reach()?;
        let seen = self.0.look();
        let fate = world.fate();
        world.pause("list", 1..40).await;
        if fate == Fate::Hang {
            sleep(DEADLINE).await;
        }
        self.reach()?;
        match fate {
            Fate::Well => Ok(seen),
            _ => Err(refused("list")),
        }
    }

    fn stdio(&self, id: SandboxId) -> StdioPaths {
        let at = |name: &str| Path::new(&id.to_string()).join(name);
        StdioPaths {
            stdin: at("stdin"),
            stdout: at("stdout"),
            stderr: at("stderr"),
        }
    }

    async fn freeze(&self, id: SandboxId) -> Result<(), RuntimeError> {
        self.cgroup(id, "freeze")?;
        let frozen = self.act("freeze", Deed::Freeze(id), 0..3).await;
        if frozen.is_err() {
            // One that takes too long is taken back.
            self.0.carry_out(Deed::Thaw(id));
        }
        frozen?;
        self.cgroup(id, "freeze")
    }

    async fn thaw(&self, id: SandboxId) -> Result<(), RuntimeError> {
        self.cgroup(id, "thaw")?;
        self.act("thaw", Deed::Thaw(id), 0..3).await?;
        self.cgroup(id, "thaw")
    }

    async fn reclaim(
        &self,
        id: SandboxId,
        stop: &CancellationToken,
    ) -> Result<Reclaimed, RuntimeError> {
        let world = &self.0.world;
        world.pause("reclaim", 0..20).await;
        self.cgroup(id, "reclaim")?;
        Ok(Reclaimed {
            bytes: 1,
            took: Duration::from_millis(1),
            complete: !stop.is_cancelled(),
        })
    }

    async fn checkpoint(
        &self,
        id: SandboxId,
        quiet: Quieting<'_>,
        stop: &CancellationToken,
    ) -> Result<u64, CheckpointFailure> {
        let failed = |error: RuntimeError| CheckpointFailure::Failed(error.to_string());
        let owner = self.0.disk.sandbox(id).map(|it| it.owner);
        self.0.world.ensure(owner != Some(Owner::Pool), || {
            format!("{id} is frozen for its image while its record calls it a member")
        });
        self.reach().map_err(failed)?;
        self.cgroup(id, "checkpoint").map_err(failed)?;
        if !self.0.world.is_healed() && self.0.world.once_in(20) {
            let what = "the simulation says no".to_owned();
            return Err(match self.0.world.once_in(2) {
                true => CheckpointFailure::NoRoom(what),
                false => CheckpointFailure::Mismatch(what),
            });
        }
        // Staging memory may be taken by others, and golden images make way.
        self.0.world.pause("staging", 0..40).await;
        if self.0.world.once_in(3) {
            self.0.golden_makes_way();
        }
        quiet.await.map_err(CheckpointFailure::Failed)?;
        self.act("checkpoint", Deed::Checkpoint(id), 20..80)
            .await
            .map_err(|error| {
                // There is no image without its manifest, which is written last.
                self.0.drop_image(id);
                failed(error)
            })?;
        match self.0.has_image(id) && !stop.is_cancelled() {
            true => Ok(7),
            false => {
                self.0.drop_image(id);
                Err(CheckpointFailure::Failed("it ended".to_owned()))
            }
        }
    }

    async fn shed(&self, id: SandboxId) -> Result<(), RuntimeError> {
        self.reach()?;
        self.act("shed", Deed::Shed(id), 5..60).await
    }

    async fn restore(
        &self,
        id: SandboxId,
        _: &PoolName,
        _: Option<&SandboxNetwork>,
    ) -> Result<(), RestoreFailure> {
        let unavailable = |error: RuntimeError| RestoreFailure::Unavailable(error.to_string());
        self.reach().map_err(unavailable)?;
        self.0.carry_out(Deed::Shed(id));
        if !self.0.has_image(id) {
            let what = format!("{id} is to come back and has no image");
            let known = self.0.disk.sandbox(id);
            let on_disk = known.is_some_and(|it| {
                it.owner != Owner::Releasing && matches!(it.residency, Residency::OnDisk(_))
            });
            self.0.world.ensure(!on_disk, || what);
            return Err(RestoreFailure::Lost("gone".to_owned()));
        }
        let restored = self.act("restore", Deed::Restore(id), 40..120).await;
        if let Err(error) = restored {
            self.0.carry_out(Deed::Shed(id));
            return Err(unavailable(error));
        }
        match self.is_alive(id) {
            true => Ok(()),
            false => Err(RestoreFailure::Unavailable("it ended".to_owned())),
        }
    }

    async fn drop_image(&self, id: SandboxId) -> Result<(), RuntimeError> {
        self.0.world.pause("drop_image", 0..5).await;
        self.0.drop_image(id);
        Ok(())
    }

    async fn keep_images(&self, keep: Vec<SandboxId>) -> Result<Vec<SandboxId>, RuntimeError> {
        self.0.world.point("keep_images").await;
        Ok(self.0.keep_images(&keep))
    }

    async fn take_golden(&self, spec: &CreateSpec) -> Result<(), CheckpointFailure> {
        let id = spec.id;
        let failed = |error: RuntimeError| CheckpointFailure::Failed(error.to_string());
        let (site, world) = (&self.0, &self.0.world);
        let record = site.disk.sandbox(id);
        let unknown = record.is_some_and(|it| {
            it.residency == Residency::Creating && !matches!(it.owner, Owner::Claimed(_))
        });
        let used = site.real(id).is_some_and(|real| real.held.is_some());
        world.ensure(unknown && !used, || {
            format!("{id} becomes a golden image, and may be somebody's")
        });
        self.reach().map_err(failed)?;
        self.cgroup(id, "golden").map_err(failed)?;
        if !world.is_healed() && world.once_in(30) {
            return Err(CheckpointFailure::NoRoom("full".to_owned()));
        }
        site.choose_original(id, &spec.template);
        self.act("golden", Deed::Golden(id), 20..80)
            .await
            .map_err(failed)
    }

    async fn golden_fits(&self, original: SandboxId, _: &CreateSpec) -> Fit {
        let (site, world) = (&self.0, &self.0.world);
        world.pause("golden_fits", 0..5).await;
        match site.has_golden(original) {
            false => Fit::Gone,
            true if !world.is_healed() && world.once_in(30) => Fit::Differs("runsc".to_owned()),
            true => Fit::Fits,
        }
    }

    async fn create_clone(
        &self,
        spec: &CreateSpec,
        original: SandboxId,
    ) -> Result<(), RuntimeError> {
        let (id, world) = (spec.id, &self.0.world);
        self.0.clone_one(id);
        let same = self
            .0
            .original(original)
            .is_some_and(|it| it == spec.template);
        world.ensure(same, || format!("{id} is to be cloned of another template"));
        self.begins(id)?;
        if !self.0.has_golden(original) {
            return Err(refused("clone"));
        }
        let corpse = !world.is_healed() && world.once_in(20);
        self.act("clone", Deed::Create(id, !corpse), 20..100)
            .await?;
        match self.is_alive(id) {
            true => Ok(()),
            false => Err(refused("clone")),
        }
    }

    async fn drop_golden(&self, _: &PoolName, original: SandboxId) {
        self.0.world.pause("drop_golden", 0..5).await;
        self.0.drop_golden(original);
    }

    async fn usage(&self, id: SandboxId) -> Result<Usage, RuntimeError> {
        self.cgroup(id, "usage")?;
        Ok(Usage {
            memory_bytes: 100,
            ..Usage::default()
        })
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        Ok(Vec::new())
    }

    async fn import_image(
        &self,
        _: &Path,
        _: Option<&str>,
        _: mpsc::Sender<ImageProgress>,
    ) -> Result<Vec<ImageInfo>, RuntimeError> {
        Err(refused("import"))
    }

    async fn pull_image(
        &self,
        _: &str,
        _: mpsc::Sender<ImageProgress>,
    ) -> Result<ImageInfo, RuntimeError> {
        Err(refused("pull"))
    }

    async fn remove_image(&self, _: &str) -> Result<(), RuntimeError> {
        Err(refused("remove"))
    }

    async fn versions(&self) -> Result<Versions, RuntimeError> {
        Ok(Versions::default())
    }

    fn handlers(&self) -> Vec<Handler> {
        vec![Handler::named(HANDLER, true)]
    }
}
