//! The workers of the disk tier: checkpoint, shed, restore. One at a time for each sandbox, in turn with its freezes,
//! thaws and destruction.

use super::residency::{Residencies, SETTLE};
use super::work::Workers;
use crate::failpoint::failpoint;
use crate::guest::Silence;
use crate::machine::event::{CheckpointFailure, Effect, Event, RestoreFailure};
use crate::machine::ids::{PoolName, SandboxId};
use crate::machine::network::NetworkPolicy;
use crate::machine::refusal::bounded;
use futures::FutureExt;
use futures::future::join_all;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

/// A checkpoint or a restore with its waiting for staging memory and for its turn, above the deadlines of their steps.
const IMAGE: Duration = Duration::from_secs(900);
/// As a destruction.
const SHED: Duration = Duration::from_secs(120);
/// A guest's word that everybody inside waits: its memory may have to come back from swap first.
const QUIESCE: Duration = Duration::from_secs(5);
/// The same of one that has just come back from its image.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// A sandbox comes back at the second try at the latest: about one restore in a thousand fails for no lasting reason. Before
/// each its network is put back, for gVisor takes the addresses off the link.
const TRIES: u32 = 2;

impl Workers {
    /// An effect of the disk tier.
    pub(super) fn sink(&self, effect: Effect) {
        match effect {
            Effect::Checkpoint {
                sandbox, asleep, ..
            } => self.checkpoint(sandbox, asleep),
            Effect::Shed { sandbox, .. } => self.shed(sandbox),
            Effect::Restore {
                sandbox,
                pool,
                made_with,
                in_force,
            } => self.restore(sandbox, pool, made_with, in_force),
            Effect::GoOn { sandbox, .. } => self.thaw(sandbox),
            Effect::DropImage { sandbox, .. } => {
                let residencies = self.residencies.clone();
                tokio::spawn(async move { residencies.drop_image(sandbox).await });
            }
            Effect::KeepImages(keep) => {
                let residencies = self.residencies.clone();
                tokio::spawn(async move { residencies.keep_images(keep).await });
            }
            // The driver hands over no others.
            _ => {}
        }
    }

    fn checkpoint(&self, id: SandboxId, asleep: bool) {
        let residencies = self.residencies.clone();
        let otherwise = CheckpointFailure::Failed("the checkpoint never ended".into());
        let span = tracing::info_span!("checkpoint", sandbox = %id);
        let otherwise = Event::Checkpointed(id, Err(otherwise));
        self.spawn(span, IMAGE, otherwise, async move {
            Event::Checkpointed(id, residencies.checkpoint(id, asleep).await)
        });
    }

    fn shed(&self, id: SandboxId) {
        let (residencies, visits) = (self.residencies.clone(), self.visits.clone());
        let otherwise = Event::Shed(id, Err("it never ended".into()));
        let span = tracing::info_span!("shed", sandbox = %id);
        self.spawn(span, SHED, otherwise, async move {
            let shed = residencies.shed(id).await;
            visits.forget(id);
            Event::Shed(id, shed)
        });
    }

    fn restore(
        &self,
        id: SandboxId,
        pool: PoolName,
        made_with: Arc<NetworkPolicy>,
        in_force: Arc<NetworkPolicy>,
    ) {
        let residencies = self.residencies.clone();
        let otherwise = RestoreFailure::Unavailable("the restore never ended".into());
        let span = tracing::info_span!("restore", sandbox = %id);
        let otherwise = Event::Restored(id, Err(otherwise));
        self.spawn(span, IMAGE, otherwise, async move {
            let policies = (made_with.as_ref(), in_force.as_ref());
            Event::Restored(id, residencies.restore(id, &pool, policies).await)
        });
    }
}

impl Residencies {
    /// Makes and seals its image. On failure it is left as it was: frozen if it was `asleep`, else running. It is woken,
    /// or hushed, only when there is room for its image and nothing is left to be waited for.
    async fn checkpoint(&self, id: SandboxId, asleep: bool) -> Result<u64, CheckpointFailure> {
        let slot = self.slot(id);
        let stop = slot.awake().clone();
        let _place = self.sinks.acquire().await;
        let _turn = slot.turn.lock().await;
        failpoint!("checkpoint.begin");
        let began = Instant::now();
        let touched = AtomicBool::new(false);
        let quiet = async {
            touched.store(true, Ordering::SeqCst);
            self.hush(id, asleep).await?;
            failpoint!("checkpoint.quiesced");
            Ok::<(), String>(())
        };
        let made = self.runtime.checkpoint(id, quiet.boxed(), &stop).await;
        failpoint!("checkpoint.end");
        match &made {
            Ok(size_bytes) => {
                self.metrics.took("checkpoint", began.elapsed());
                info!(size_bytes, took = ?began.elapsed(), "image sealed");
            }
            Err(failure) => {
                self.metrics.failed("checkpoint", failure);
                debug!(?failure, "no image");
                if touched.into_inner() {
                    self.put_back(id, asleep).await;
                }
            }
        }
        made
    }

    /// Everybody inside but the guest agent waits. Without that an image would be of some moment in the middle.
    async fn hush(&self, id: SandboxId, asleep: bool) -> Result<(), String> {
        let told = |error: String| bounded(error);
        if asleep {
            let thawed = self.runtime.thaw(id).await;
            thawed.map_err(|error| told(error.to_string()))?;
        }
        let guest = self.guests.open(id);
        let guest = guest.map_err(|error| told(error.to_string()))?;
        let quiet = guest.quiesce(Silence::Image, QUIESCE).await;
        quiet.map_err(|error| told(error.to_string()))?;
        sleep(SETTLE).await;
        Ok(())
    }

    /// Of the images that were there at the start only these stay. Who was silent for one that hearthd's end has cut off goes
    /// on: by itself it would only much later.
    async fn keep_images(&self, keep: Vec<SandboxId>) {
        match self.runtime.keep_images(keep).await {
            Ok(cut_off) => {
                let told = cut_off.into_iter().map(|id| self.end_silence(id));
                join_all(told).await;
            }
            Err(error) => warn!(%error, "old images were not removed; the next start does"),
        }
    }

    async fn end_silence(&self, id: SandboxId) {
        let slot = self.slot(id);
        // Another image of it would be spoilt by a word.
        let _turn = slot.turn.lock().await;
        let wanted = slot.awake().clone();
        tokio::select! {
            _ = self.go_on(id) => info!(sandbox = %id, "goes on: its image was cut off"),
            () = wanted.cancelled() => {}
        }
    }

    async fn put_back(&self, id: SandboxId, asleep: bool) {
        let put_back = match asleep {
            true => self.runtime.freeze(id).await,
            false => self.runtime.thaw(id).await,
        };
        if let Err(error) = put_back {
            // Destroyed meanwhile, as a rule.
            debug!(%error, "not put back");
        }
        if !asleep {
            self.go_on(id).await;
        }
    }

    /// Unless another image was decided on since: that takes the place of this one.
    async fn drop_image(&self, id: SandboxId) {
        let slot = self.slot(id);
        let _turn = slot.turn.lock().await;
        if slot.image_goes.swap(false, Ordering::SeqCst)
            && let Err(error) = self.runtime.drop_image(id).await
        {
            warn!(sandbox = %id, %error, "its image was not removed; the next start does");
        }
        failpoint!("image.dropped");
    }

    async fn shed(&self, id: SandboxId) -> Result<(), String> {
        let slot = self.slot(id);
        let _turn = slot.turn.lock().await;
        failpoint!("shed.begin");
        self.guests.close(id);
        let began = Instant::now();
        let shed = self.runtime.shed(id).await;
        failpoint!("shed.end");
        self.measure("shed", began, shed.as_ref().err());
        shed.map_err(|error| bounded(error.to_string()))
    }

    /// Brings it back; its guest answers, and everybody else inside waits.
    async fn restore(
        &self,
        id: SandboxId,
        pool: &PoolName,
        policies: (&NetworkPolicy, &NetworkPolicy),
    ) -> Result<(), RestoreFailure> {
        let slot = self.slot(id);
        let _place = self.restores.acquire().await;
        let _turn = slot.turn.lock().await;
        failpoint!("restore.begin");
        let began = Instant::now();
        let mut last = Ok(());
        for attempt in 1..=TRIES {
            self.guests.close(id);
            // A policy that can't be in force now is no fault of the image.
            let furnished = self.networks.refurnish(id, pool, policies).await;
            let network = furnished.map_err(RestoreFailure::Unavailable)?;
            last = self.runtime.restore(id, pool, network.as_ref()).await;
            if last.is_ok() {
                last = self.first_word(id).await;
            }
            match &last {
                Ok(()) | Err(RestoreFailure::Mismatch(_)) => break,
                Err(failure) => warn!(sandbox = %id, attempt, ?failure, "not brought back"),
            }
        }
        failpoint!("restore.end");
        match &last {
            Ok(()) => self.metrics.took("restore", began.elapsed()),
            Err(failure) => {
                self.metrics.failed("restore", failure);
                warn!(?failure, "not brought back");
            }
        }
        last
    }

    async fn first_word(&self, id: SandboxId) -> Result<(), RestoreFailure> {
        let answered = match self.guests.open(id) {
            Ok(guest) => {
                let began = Instant::now();
                let quiet = guest.quiesce(Silence::Image, FIRST_WORD).await;
                self.metrics.first_reply(began, &quiet);
                quiet.map_err(|error| bounded(error.to_string()))
            }
            Err(error) => Err(bounded(error.to_string())),
        };
        let Err(what) = answered else {
            return Ok(());
        };
        self.guests.close(id);
        let shed = self.runtime.shed(id).await;
        shed.map_err(|error| RestoreFailure::Unavailable(bounded(error.to_string())))?;
        Err(RestoreFailure::Lost(format!("its guest: {what}")))
    }
}

#[cfg(test)]
#[path = "sink_tests.rs"]
mod tests;
