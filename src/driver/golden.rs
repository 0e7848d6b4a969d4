//! Golden images: of each pool's generation one image of a member that was proved ready and that nobody has claimed; its
//! next members are clones of it, where that is faster than making them anew.
//!
//! ```text
//! Create ─▶ there is an image, and clones were faster? ─ yes ─▶ clone ─▶ its guest answers, proved ready ─▶ Created
//!                        │ no                                      └ failed: counted, destroyed ─┐
//!                        └▶ made and proved ready ◀──────────────────────────────────────────────┘
//!                               └ no image of this generation yet ─▶ its image is taken ─▶ Created
//! ```
//! The image is taken before the machine knows the member, so nobody can have claimed it. It stays in staging memory, in
//! plain: nothing of any caller is in it. It goes with the generation, with hearthd, and when a sandbox's image needs its
//! staging memory; then it is taken anew, of the next member that is made.

mod metrics;

use super::guests::Guests;
use super::network::Networks;
use super::ready;
use super::work::bounded;
use crate::guest::{Personalization, Silence};
use crate::machine::event::{CheckpointFailure, CreateFailure, Event};
use crate::machine::handler::Family;
use crate::machine::ids::{PoolName, SandboxId};
use crate::runtime::{CreateSpec, Runtime};
use metrics::GoldenMetrics;
use prometheus::Registry;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

/// The guest's word that everybody inside waits, before its image is taken.
const QUIESCE: Duration = Duration::from_secs(5);
/// Clones that fail in a row until the image is given up for its generation.
const SPOILT_AFTER: u32 = 3;

/// How far the image of a generation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    None,
    Making,
    There,
    /// It could not be taken, or does not come to life: not tried again.
    Spoilt,
}

/// A pool's generation.
#[derive(Debug, Clone, Copy)]
struct Known {
    generation: u64,
    stage: Stage,
    /// Of the latest creation of each kind, until it was proved ready.
    cold: Option<Duration>,
    clone: Option<Duration>,
    failures: u32,
}

impl Known {
    fn new(generation: u64) -> Self {
        Self {
            generation,
            stage: Stage::None,
            cold: None,
            clone: None,
            failures: 0,
        }
    }

    /// Clones are tried once, and stay where they were faster.
    fn prefers_clone(&self) -> bool {
        let faster = match (self.clone, self.cold) {
            (Some(clone), Some(cold)) => clone < cold,
            _ => true,
        };
        self.stage == Stage::There && faster
    }
}

/// Of the whole node.
pub(super) struct Goldens {
    enabled: bool,
    runtime: Arc<dyn Runtime>,
    guests: Arc<Guests>,
    networks: Arc<Networks>,
    events: mpsc::Sender<Event>,
    known: Mutex<BTreeMap<PoolName, Known>>,
    metrics: GoldenMetrics,
}

impl Goldens {
    pub(super) fn new(
        enabled: bool,
        runtime: Arc<dyn Runtime>,
        guests: Arc<Guests>,
        networks: Arc<Networks>,
        events: mpsc::Sender<Event>,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        Ok(Self {
            enabled,
            runtime,
            guests,
            networks,
            events,
            known: Mutex::default(),
            metrics: GoldenMetrics::register(registry)?,
        })
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<PoolName, Known>> {
        // Values are copied in whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known of a generation. What is known of an older one is forgotten; of a newer one it stays.
    fn change<T>(&self, spec: &CreateSpec, change: impl FnOnce(&mut Known) -> T) -> Option<T> {
        let mut all = self.known();
        let known = all
            .entry(spec.pool.clone())
            .or_insert_with(|| Known::new(spec.generation));
        if known.generation < spec.generation {
            *known = Known::new(spec.generation);
        }
        let changed = (known.generation == spec.generation).then(|| change(known));
        let there = all.values().filter(|it| it.stage == Stage::There).count();
        self.metrics
            .images
            .set(i64::try_from(there).unwrap_or(i64::MAX));
        changed
    }

    /// Makes a member in the faster way. Its network is furnished.
    pub(super) async fn make(&self, spec: &mut CreateSpec) -> Result<(), CreateFailure> {
        let checkpoints = Family::of(&spec.template.runtime_handler).capabilities(true);
        if !self.enabled || !checkpoints.checkpoint {
            return ready::make(self.runtime.as_ref(), &self.guests, spec).await;
        }
        let clone = self.change(spec, |known| {
            let there = || self.runtime.has_golden(&spec.pool, spec.generation);
            if known.stage == Stage::There && !there() {
                // It made way for a sandbox's image: it is taken anew, of the next member that is made.
                known.stage = Stage::None;
            }
            known.prefers_clone()
        });
        if clone == Some(true) {
            if self.cloned(spec).await? {
                return Ok(());
            }
            // gVisor has taken the addresses off the link.
            let policy = &spec.template.network_policy;
            let furnished = self.networks.furnish(spec.id, &spec.pool, policy).await;
            spec.network = furnished
                .map_err(|why| CreateFailure::Template(bounded(format!("network: {why}"))))?;
        }
        let began = Instant::now();
        ready::make(self.runtime.as_ref(), &self.guests, spec).await?;
        let wanted = self.change(spec, |known| {
            known.cold = Some(began.elapsed());
            let wanted = known.stage == Stage::None;
            if wanted {
                known.stage = Stage::Making;
            }
            wanted
        });
        if wanted == Some(true) {
            self.take(spec).await;
        }
        Ok(())
    }

    /// Whether it is a clone now. One that fails leaves nothing.
    async fn cloned(&self, spec: &CreateSpec) -> Result<bool, CreateFailure> {
        let began = Instant::now();
        let Err(failure) = ready::clone(self.runtime.as_ref(), &self.guests, spec).await else {
            self.change(spec, |known| {
                known.clone = Some(began.elapsed());
                known.failures = 0;
            });
            self.metrics.clones.observe(began.elapsed().as_secs_f64());
            // The driver is gone only when hearthd ends.
            let _ended = self.events.send(Event::Cloned(spec.id)).await;
            return Ok(true);
        };
        warn!(sandbox = %spec.id, ?failure, "a clone failed: it is made anew");
        self.metrics.failures.inc();
        self.change(spec, |known| {
            known.failures += 1;
            if known.failures >= SPOILT_AFTER {
                known.stage = Stage::Spoilt;
            }
        });
        self.guests.close(spec.id);
        let gone = self.runtime.destroy(spec.id).await;
        gone.map_err(|error| super::work::create_failure(&error))?;
        Ok(false)
    }

    /// Takes the image of a member that nobody knows yet. It is ready whether or not that goes well.
    async fn take(&self, spec: &CreateSpec) {
        let began = Instant::now();
        let taken = self.try_take(spec).await;
        let stage = match &taken {
            Ok(()) => {
                info!(pool = %spec.pool, generation = spec.generation, took = ?began.elapsed(), "golden image taken");
                Stage::There
            }
            // Of staging memory: it may be free when the next member is made.
            Err(CheckpointFailure::NoRoom(what)) => {
                info!(pool = %spec.pool, what, "no golden image yet");
                Stage::None
            }
            Err(what) => {
                warn!(pool = %spec.pool, ?what, "no golden image of this generation");
                Stage::Spoilt
            }
        };
        self.change(spec, |known| known.stage = stage);
    }

    async fn try_take(&self, spec: &CreateSpec) -> Result<(), CheckpointFailure> {
        let failed = |error: String| CheckpointFailure::Failed(bounded(error));
        let guest = self.guests.open(spec.id);
        let guest = guest.map_err(|error| failed(error.to_string()))?;
        let quiet = guest.quiesce(Silence::Image, QUIESCE).await;
        quiet.map_err(|error| failed(error.to_string()))?;
        let taken = self
            .runtime
            .take_golden(spec.id, &spec.pool, spec.generation)
            .await;
        let goes_on = guest.ping(QUIESCE).await;
        taken?;
        goes_on.map(drop).map_err(|error| failed(error.to_string()))
    }

    /// Clones are born with their original's name: a claim that brings none gets the sandbox's id.
    pub(super) fn named(&self, id: SandboxId, what: Arc<Personalization>) -> Arc<Personalization> {
        if !self.enabled || !what.hostname.is_empty() {
            return what;
        }
        let mut named = Personalization::clone(&what);
        named.hostname = id.to_string();
        Arc::new(named)
    }
}
