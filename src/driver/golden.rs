//! Golden images: of each pool's template one image of a member that was proved ready and that nobody has claimed; its
//! next members are clones of it, where that is faster than making them anew.
//!
//! ```text
//! Create ─▶ there is an image that fits, and clones were faster? ─ yes ─▶ clone ─▶ its guest answers, proved ready ─▶ Created
//!                        │ no: counted, with the reason             └ failed: counted, destroyed ─┐
//!                        └▶ made and proved ready ◀───────────────────────────────────────────────┘
//!                               └ for the pool, and no image of this template yet ─▶ its image is taken ─▶ Created
//! ```
//! The image is taken before the machine knows that the member is ready, so nobody can have claimed it; what is made for a
//! claim is a claim's from its first record on, and none is taken of that. It stays in staging memory, in plain: nothing of
//! any caller is in it. It goes with its pool, with the pool's template, when it could not be restored any more, with
//! hearthd, and when a sandbox's image needs its staging memory; then another one is taken, of the next member that is
//! made. What is decided is in `book`.

mod book;
mod metrics;

use super::guests::Guests;
use super::network::Networks;
use super::ready;
use crate::failpoint::failpoint;
use crate::guest::{GuestError, Personalization, Silence};
use crate::machine::event::{CheckpointFailure, CreateFailure, Effect, Event};
use crate::machine::handler::Family;
use crate::machine::ids::SandboxId;
use crate::machine::record::Op;
use crate::machine::refusal::bounded;
use crate::machine::spec::PoolSpec;
use crate::runtime::{CreateSpec, Fit, Runtime};
use book::{Book, Miss};
use metrics::GoldenMetrics;
use prometheus::Registry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

/// The guest's word that everybody inside waits, before its image is taken.
const QUIESCE: Duration = Duration::from_secs(5);

/// Of the whole node.
pub(super) struct Goldens {
    enabled: bool,
    runtime: Arc<dyn Runtime>,
    guests: Arc<Guests>,
    networks: Arc<Networks>,
    events: mpsc::Sender<Event>,
    book: Mutex<Book>,
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
            book: Mutex::default(),
            metrics: GoldenMetrics::register(registry)?,
        })
    }

    /// Asks the book, or tells it something.
    fn book<T>(&self, work: impl FnOnce(&mut Book) -> T) -> T {
        // Nothing in between panics.
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = work(&mut book);
        let images = i64::try_from(book.images()).unwrap_or(i64::MAX);
        self.metrics.images.set(images);
        answer
    }

    /// Sees every effect in the machine's order, so it knows of a set of pools before anything is made of it.
    pub(super) fn note(&self, effect: &Effect) {
        if let Effect::Persist(Op::PutPools(set)) = effect {
            self.declared(&set.pools);
        }
    }

    /// These pools are in force, and no others.
    pub(super) fn declared<'a>(&self, pools: impl IntoIterator<Item = &'a PoolSpec>) {
        if !self.enabled {
            return;
        }
        for (pool, original) in self.book(|book| book.declared(pools)) {
            info!(%pool, "golden image is not needed any more");
            let runtime = self.runtime.clone();
            tokio::spawn(async move { runtime.drop_golden(&pool, original).await });
        }
    }

    /// Makes a sandbox in the faster way; `claimed`: for a claim that it belongs to. Its network is furnished.
    pub(super) async fn make(
        &self,
        spec: &mut CreateSpec,
        claimed: bool,
    ) -> Result<(), CreateFailure> {
        let checkpoints = Family::of(&spec.template.runtime_handler).capabilities(true);
        if !self.enabled || !checkpoints.checkpoint {
            return ready::make(self.runtime.as_ref(), &self.guests, spec).await;
        }
        let miss = match self.way(spec).await {
            Ok(original) => {
                if self.cloned(spec, original).await? {
                    return Ok(());
                }
                // gVisor has taken the addresses off the link.
                let policy = &spec.template.network_policy;
                let furnished = self.networks.furnish(spec.id, &spec.pool, policy).await;
                spec.network = furnished
                    .map_err(|why| CreateFailure::Template(bounded(format!("network: {why}"))))?;
                Miss::Failed
            }
            Err(miss) => miss,
        };
        self.metrics.missed(miss);
        let began = Instant::now();
        ready::make(self.runtime.as_ref(), &self.guests, spec).await?;
        if self.book(|book| book.made(spec, began.elapsed(), claimed)) {
            self.take(spec).await;
        }
        Ok(())
    }

    /// The original to clone it of, or why it is made anew. An image that does not fit any more goes.
    async fn way(&self, spec: &CreateSpec) -> Result<SandboxId, Miss> {
        let original = self.book(|book| book.way(spec))?;
        let miss = match self.runtime.golden_fits(original, spec).await {
            Fit::Fits => return Ok(original),
            Fit::Gone => Miss::NoImage,
            Fit::Differs(what) => {
                info!(pool = %spec.pool, what, "golden image could not be restored any more");
                Miss::NotRestorable
            }
        };
        self.book(|book| book.lost(spec, original));
        self.runtime.drop_golden(&spec.pool, original).await;
        Err(miss)
    }

    /// Whether it is a clone now. One that fails leaves nothing.
    async fn cloned(&self, spec: &CreateSpec, original: SandboxId) -> Result<bool, CreateFailure> {
        let began = Instant::now();
        let made = ready::clone(self.runtime.as_ref(), &self.guests, spec, original).await;
        let Err(failed) = made else {
            failpoint!("clone.restored");
            self.book(|book| book.cloned(spec, began.elapsed()));
            self.metrics.clones.observe(began.elapsed().as_secs_f64());
            // The driver is gone only when hearthd ends.
            let _ended = self.events.send(Event::Cloned(spec.id)).await;
            return Ok(true);
        };
        warn!(sandbox = %spec.id, failure = ?failed.failure, "a clone failed");
        self.metrics.failures.inc();
        if self.book(|book| book.clone_failed(spec, original)) {
            warn!(pool = %spec.pool, "clones keep failing: no more of this template");
            self.runtime.drop_golden(&spec.pool, original).await;
        }
        // The machine then destroys it, and makes another one.
        if failed.may_still_come {
            return Err(failed.failure);
        }
        self.guests.close(spec.id);
        let gone = self.runtime.destroy(spec.id).await;
        gone.map_err(|error| ready::create_failure(&error))?;
        Ok(false)
    }

    /// Takes the image of a member that nobody knows yet. It is ready whether or not that goes well.
    async fn take(&self, spec: &CreateSpec) {
        let began = Instant::now();
        let taken = self.try_take(spec).await;
        let kept = self.book(|book| book.taken(spec, taken.as_ref().map(|&()| ())));
        // Its pool is gone meanwhile, or has another template; or it failed, and something may be there all the same.
        if !kept {
            self.runtime.drop_golden(&spec.pool, spec.id).await;
        }
        match taken {
            Ok(()) if kept => {
                let (pool, generation) = (&spec.pool, spec.generation);
                info!(%pool, generation, took = ?began.elapsed(), "golden image taken");
            }
            Ok(()) => {}
            Err(failure @ (CheckpointFailure::NoRoom(_) | CheckpointFailure::Mismatch(_))) => {
                info!(pool = %spec.pool, ?failure, "no golden image yet");
            }
            Err(failure) => warn!(pool = %spec.pool, ?failure, "no golden image of this template"),
        }
    }

    async fn try_take(&self, spec: &CreateSpec) -> Result<(), CheckpointFailure> {
        let failed = |error: GuestError| CheckpointFailure::Failed(bounded(error.to_string()));
        let guest = self.guests.open(spec.id);
        let guest = guest.map_err(|error| CheckpointFailure::Failed(bounded(error.to_string())))?;
        let quiet = guest.quiesce(Silence::Image, QUIESCE).await;
        quiet.map_err(failed)?;
        let taken = self.runtime.take_golden(spec).await;
        if taken.is_ok() {
            failpoint!("golden.taken");
        }
        let goes_on = guest.ping(QUIESCE).await;
        taken?;
        goes_on.map(drop).map_err(failed)
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
