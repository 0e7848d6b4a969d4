//! Freezes, thaws and reclaims, in the order the machine decided on them: one at a time for each sandbox, and a freeze
//! that was overtaken by a thaw, a claim or a destruction never begins.

mod metrics;

pub(super) use metrics::ResidencyMetrics;

use super::guests::Guests;
use super::network::Networks;
use crate::failpoint::failpoint;
use crate::guest::{GuestError, Silence};
use crate::machine::event::Effect;
use crate::machine::ids::{SandboxId, Ticket};
use crate::machine::limits::NODE_PARALLEL_SINKS;
use crate::machine::refusal::bounded;
use crate::runtime::{Runtime, RuntimeError};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// A guest's word that everything inside is stopped, or goes on.
const QUIESCE: Duration = Duration::from_secs(1);
/// After its word the guest agent itself comes to rest.
pub(super) const SETTLE: Duration = Duration::from_millis(3);
/// Reclaims at once on the node: each uses a core.
const RECLAIMS: usize = 1;
/// Restores at once.
const RESTORES: usize = 4;
/// After a reclaim the place stays taken this many times as long as it took: at most a quarter of a core goes into it.
const REST_FACTOR: u32 = 3;
/// Between a sandbox's freeze and its first reclaim: a claim or a call that follows at once finds all in memory.
const FIRST_PASS: Duration = Duration::from_millis(50);
/// From the first pass to the second, which catches what the first left: pages that were in use a moment ago.
const SECOND_PASS: Duration = Duration::from_secs(2);

/// What is wanted of one sandbox.
pub(super) struct Slot {
    /// The batch that decided on a freeze, if nothing was decided since; 0: none.
    to_sleep: AtomicU64,
    /// Held by whoever freezes, thaws or destroys it.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Its image is to go, and no other was decided on since.
    pub(super) image_goes: AtomicBool,
    /// Ends its reclaim.
    awake: Mutex<CancellationToken>,
    /// What ends the reclaim that was decided on last, until that begins.
    to_reclaim: Mutex<Option<CancellationToken>>,
}

impl Slot {
    fn new() -> Self {
        Self {
            to_sleep: AtomicU64::new(0),
            image_goes: AtomicBool::new(false),
            turn: tokio::sync::Mutex::new(()),
            awake: Mutex::new(CancellationToken::new()),
            to_reclaim: Mutex::default(),
        }
    }

    pub(super) fn awake(&self) -> MutexGuard<'_, CancellationToken> {
        // One value, replaced whole.
        self.awake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn to_reclaim(&self) -> MutexGuard<'_, Option<CancellationToken>> {
        // One value, replaced whole.
        let lock = self.to_reclaim.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of the whole node.
pub(super) struct Residencies {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) guests: Arc<Guests>,
    pub(super) networks: Arc<Networks>,
    /// Frozen ones' memory is reclaimed.
    reclaims: bool,
    slots: Mutex<BTreeMap<SandboxId, Arc<Slot>>>,
    places: Arc<Semaphore>,
    pub(super) sinks: Semaphore,
    pub(super) restores: Semaphore,
    pub(super) metrics: ResidencyMetrics,
    /// Claims whose guests are being told: no reclaim begins meanwhile.
    claims: watch::Sender<usize>,
}

/// A claim on its way into a guest.
pub(super) struct Claiming<'a>(&'a watch::Sender<usize>);

impl Drop for Claiming<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Residencies {
    pub(super) fn new(
        runtime: Arc<dyn Runtime>,
        guests: Arc<Guests>,
        networks: Arc<Networks>,
        reclaims: bool,
        metrics: ResidencyMetrics,
    ) -> Self {
        Self {
            runtime,
            guests,
            networks,
            reclaims,
            slots: Mutex::default(),
            places: Arc::new(Semaphore::new(RECLAIMS)),
            sinks: Semaphore::new(NODE_PARALLEL_SINKS),
            restores: Semaphore::new(RESTORES),
            metrics,
            claims: watch::Sender::new(0),
        }
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<SandboxId, Arc<Slot>>> {
        // Every change is one call: a panic leaves the map whole.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn slot(&self, id: SandboxId) -> Arc<Slot> {
        let mut slots = self.slots();
        let slot = slots.entry(id).or_insert_with(|| Arc::new(Slot::new()));
        slot.clone()
    }

    /// Learns of an effect when the machine decides on it, before any commit it waits for.
    pub(super) fn note(&self, effect: &Effect) {
        match effect {
            Effect::Freeze { sandbox, after } => {
                let slot = self.slot(*sandbox);
                slot.to_sleep.store(after.0, Ordering::SeqCst);
            }
            Effect::DropImage { sandbox, .. } => {
                let slot = self.slot(*sandbox);
                slot.image_goes.store(true, Ordering::SeqCst);
            }
            // A checkpoint that is decided on in the same step ends it.
            Effect::Reclaim { sandbox } => {
                let slot = self.slot(*sandbox);
                let awake = slot.awake().clone();
                *slot.to_reclaim() = Some(awake);
            }
            // Its reclaim ends; its own destruction ends it.
            Effect::Checkpoint { sandbox, .. } => {
                let slot = self.slot(*sandbox);
                slot.image_goes.store(false, Ordering::SeqCst);
                let before = std::mem::take(&mut *slot.awake());
                before.cancel();
            }
            Effect::Personalize {
                sandbox,
                thaw: true,
                ..
            }
            | Effect::Thaw { sandbox }
            | Effect::Destroy { sandbox, .. } => {
                let slot = self.slots().get(sandbox).cloned();
                if let Some(slot) = slot {
                    slot.to_sleep.store(0, Ordering::SeqCst);
                    slot.awake().cancel();
                }
            }
            _ => {}
        }
    }

    /// Counts a claim as under way.
    pub(super) fn claiming(&self) -> Claiming<'_> {
        self.claims.send_modify(|count| *count += 1);
        Claiming(&self.claims)
    }

    /// Freezes. `None`: it was overtaken, maybe even by a later freeze, which has a commit of its own to wait for.
    pub(super) async fn freeze(
        &self,
        id: SandboxId,
        decided: Ticket,
    ) -> Option<Result<(), String>> {
        let slot = self.slot(id);
        let _turn = slot.turn.lock().await;
        if slot.to_sleep.load(Ordering::SeqCst) != decided.0 {
            return None;
        }
        failpoint!("freeze.begin");
        *slot.awake() = CancellationToken::new();
        self.quiesce(id).await;
        failpoint!("freeze.quiesced");
        let began = Instant::now();
        let frozen = self.runtime.freeze(id).await;
        failpoint!("freeze.end");
        self.measure("freeze", began, frozen.as_ref().err());
        if frozen.is_err() {
            self.go_on(id).await;
        }
        Some(frozen.map_err(|error| bounded(error.to_string())))
    }

    /// Has the guest stop what runs inside. A guest that does not is frozen all the same: what gVisor then does to its
    /// processes is its own doing.
    async fn quiesce(&self, id: SandboxId) {
        let began = Instant::now();
        let quiesced = match self.guests.open(id) {
            Ok(guest) => guest.quiesce(Silence::Freeze, QUIESCE).await,
            Err(_) => Err(GuestError::Closed),
        };
        match quiesced {
            Ok(()) => {
                self.metrics.took("quiesce", began.elapsed());
                sleep(SETTLE).await;
            }
            Err(error) => {
                self.metrics.failed("quiesce", &error);
                debug!(sandbox = %id, %error, "not quiesced");
            }
        }
    }

    /// Thaws and waits until the guest has let everything inside go on; it would do so by itself a moment later.
    pub(super) async fn wake(&self, id: SandboxId) -> Result<(), String> {
        self.thaw(id).await?;
        let began = Instant::now();
        if let Some(reply) = self.go_on(id).await {
            self.metrics.first_reply(began, &reply);
        }
        Ok(())
    }

    /// `None`: its channel can't be opened.
    pub(super) async fn go_on(&self, id: SandboxId) -> Option<Result<(), GuestError>> {
        let guest = self.guests.open(id).ok()?;
        let reply = guest.ping(QUIESCE).await.map(drop);
        if let Err(error) = &reply {
            debug!(sandbox = %id, %error, "awake, and silent yet");
        }
        Some(reply)
    }

    /// Thaws; a freeze that is under way ends first.
    pub(super) async fn thaw(&self, id: SandboxId) -> Result<(), String> {
        let slot = self.slot(id);
        let _turn = slot.turn.lock().await;
        failpoint!("thaw.begin");
        let began = Instant::now();
        let thawed = self.runtime.thaw(id).await;
        failpoint!("thaw.end");
        self.measure("thaw", began, thawed.as_ref().err());
        thawed.map_err(|error| bounded(error.to_string()))
    }

    /// Destroys, when nothing else goes on with it.
    pub(super) async fn destroy(&self, id: SandboxId) -> Result<(), RuntimeError> {
        let slot = self.slots().get(&id).cloned();
        let _turn = match &slot {
            Some(slot) => Some(slot.turn.lock().await),
            None => None,
        };
        let destroyed = self.runtime.destroy(id).await;
        if destroyed.is_ok() {
            self.slots().remove(&id);
        }
        destroyed
    }

    /// Takes a frozen sandbox's memory in two passes, each when its turn comes, until it is woken.
    pub(super) async fn reclaim(&self, id: SandboxId) {
        if !self.reclaims {
            return;
        }
        let slot = self.slots().get(&id).cloned();
        let Some(awake) = slot.and_then(|slot| slot.to_reclaim().take()) else {
            return;
        };
        for pause in [FIRST_PASS, SECOND_PASS] {
            tokio::select! {
                biased;
                () = awake.cancelled() => return,
                () = sleep(pause) => {}
            }
            let place = tokio::select! {
                biased;
                () = awake.cancelled() => return,
                place = self.places.acquire() => place,
            };
            let mut claims = self.claims.subscribe();
            tokio::select! {
                biased;
                () = awake.cancelled() => return,
                // The sender lives as long as self.
                _quiet = claims.wait_for(|count| *count == 0) => {}
            }
            // Not cut short: it ends soon after the token, and its thread with it.
            let took = self.take_memory(id, &awake).await;
            sleep(took * REST_FACTOR).await;
            drop(place);
        }
    }

    async fn take_memory(&self, id: SandboxId, awake: &CancellationToken) -> Duration {
        let began = Instant::now();
        let reclaimed = self.runtime.reclaim(id, awake).await;
        failpoint!("reclaim.end");
        self.measure("reclaim", began, reclaimed.as_ref().err());
        match reclaimed {
            Ok(done) => {
                self.metrics.reclaimed(&done);
                debug!(sandbox = %id, bytes = done.bytes, took = ?done.took, complete = done.complete, "memory reclaimed");
            }
            Err(error) => debug!(sandbox = %id, %error, "memory not reclaimed"),
        }
        began.elapsed()
    }

    pub(super) fn measure(
        &self,
        stage: &'static str,
        began: Instant,
        failed: Option<&RuntimeError>,
    ) {
        match failed {
            None => self.metrics.took(stage, began.elapsed()),
            Some(error) => self.metrics.failed(stage, error),
        }
    }
}

#[cfg(test)]
#[path = "residency_tests.rs"]
mod tests;
