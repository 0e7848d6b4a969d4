//! The workers: each runs one effect on the outside and ends with exactly one event, whatever happens.

use super::golden::Goldens;
use super::guests::Guests;
use super::network::Networks;
use super::residency::Residencies;
use super::visits::Visits;
use crate::failpoint::failpoint;
use crate::guest::{GuestError, Personalization, v1};
use crate::machine::event::{CreateFailure, Effect, Event, ExitCause, GuestFailure, Held};
use crate::machine::ids::{ClaimId, PoolName, SandboxId};
use crate::machine::network::NetworkPolicy;
use crate::machine::refusal::bounded;
use crate::runtime::{CreateSpec, Runtime};
use futures::FutureExt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use tracing::{Instrument, Span, debug, warn};

/// How long a guest may take to acknowledge a personalization before its sandbox is given up.
const PERSONALIZE: Duration = Duration::from_secs(5);
/// How long a guest may take to say what it holds. One that is merely slow is asked again.
const WITNESS: Duration = Duration::from_secs(2);
/// Guests asked at once: after a restart all of them are.
const WITNESSES: usize = 32;
/// A whole creation, above the deadlines of its steps: only a bug in them comes here.
const CREATE: Duration = Duration::from_secs(600);
/// A whole destruction, in the same way.
const DESTROY: Duration = Duration::from_secs(120);
/// A listing.
const LIST: Duration = Duration::from_secs(60);
/// Tries of one listing; after them the machine asks anew in its own time.
const LIST_TRIES: u32 = 5;
/// Between two tries.
const LIST_PAUSE: Duration = Duration::from_secs(1);

/// What `Node::network_policies` tells.
type Policies = Vec<(SandboxId, PoolName, NetworkPolicy)>;

/// What workers need.
pub(super) struct Workers {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) guests: Arc<Guests>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) witnesses: Arc<Semaphore>,
    pub(super) residencies: Arc<Residencies>,
    pub(super) visits: Visits,
    pub(super) networks: Arc<Networks>,
    goldens: Arc<Goldens>,
}

impl Workers {
    pub(super) fn new(
        runtime: Arc<dyn Runtime>,
        guests: Arc<Guests>,
        events: mpsc::Sender<Event>,
        residencies: Arc<Residencies>,
        visits: Visits,
        networks: Arc<Networks>,
        goldens: Arc<Goldens>,
    ) -> Self {
        Self {
            runtime,
            guests,
            events,
            witnesses: Arc::new(Semaphore::new(WITNESSES)),
            residencies,
            visits,
            networks,
            goldens,
        }
    }

    /// Runs `work` and sends its event; `otherwise` when it overran `limit` or panicked.
    pub(super) fn spawn(
        &self,
        span: Span,
        limit: Duration,
        otherwise: Event,
        work: impl Future<Output = Event> + Send + 'static,
    ) {
        let events = self.events.clone();
        // A panic must not lose the event; what it leaves half done is the outside's, which the event has destroyed.
        let work = AssertUnwindSafe(timeout(limit, work)).catch_unwind();
        let task = async move {
            let event = match work.await {
                Ok(Ok(event)) => event,
                Ok(Err(_)) | Err(_) => {
                    warn!(?otherwise, "a worker overran its deadline or panicked");
                    otherwise
                }
            };
            // The driver is gone only when hearthd ends.
            let _ended = events.send(event).await;
        };
        tokio::spawn(task.instrument(span));
    }

    /// Sees every effect in the machine's order.
    pub(super) fn note(&self, effect: &Effect) {
        self.residencies.note(effect);
        self.goldens.note(effect);
    }

    /// `Effect::Create`; the driver hands over no other.
    pub(super) fn create(&self, effect: Effect) {
        let Effect::Create {
            sandbox: id,
            pool,
            generation,
            template,
            claimed,
            ..
        } = effect
        else {
            return;
        };
        let mut spec = CreateSpec {
            id,
            pool,
            generation,
            template,
            network: None,
        };
        let (networks, goldens) = (self.networks.clone(), self.goldens.clone());
        let failure = CreateFailure::Template("the creation never ended".into());
        let span = tracing::info_span!("create", sandbox = %id, pool = %spec.pool);
        self.spawn(span, CREATE, Event::Created(id, Err(failure)), async move {
            failpoint!("create.begin");
            let policy = &spec.template.network_policy;
            let furnished = networks.furnish(id, &spec.pool, policy).await;
            let made = match furnished {
                Ok(network) => {
                    spec.network = network;
                    goldens.make(&mut spec, claimed).await
                }
                Err(why) => Err(CreateFailure::Template(bounded(format!("network: {why}")))),
            };
            failpoint!("create.end");
            match &made {
                Ok(()) => debug!("sandbox is ready"),
                Err(failure) => warn!(?failure, "sandbox was not made"),
            }
            Event::Created(id, made)
        });
    }

    pub(super) fn destroy(&self, id: SandboxId) {
        let (residencies, guests) = (self.residencies.clone(), self.guests.clone());
        let (visits, networks) = (self.visits.clone(), self.networks.clone());
        let otherwise = Event::Destroyed(id, Err("the destruction never ended".into()));
        let span = tracing::info_span!("destroy", sandbox = %id);
        self.spawn(span, DESTROY, otherwise, async move {
            failpoint!("destroy.begin");
            guests.close(id);
            let destroyed = residencies.destroy(id).await;
            let mut destroyed = destroyed.map_err(|error| error.to_string());
            // Not before: what may still run keeps its interface, and the policy on it.
            if destroyed.is_ok() {
                let released = networks.release(id).await;
                destroyed = released.map_err(|error| format!("network: {error}"));
            }
            failpoint!("destroy.end");
            visits.forget(id);
            // Again: a caller that had just located the sandbox may have opened its channel meanwhile.
            guests.close(id);
            match &destroyed {
                Ok(()) => debug!("sandbox is gone"),
                Err(error) => warn!(%error, "sandbox is not known to be gone"),
            }
            Event::Destroyed(id, destroyed.map_err(bounded))
        });
    }

    pub(super) fn personalize(
        &self,
        span: Span,
        id: SandboxId,
        (thaw, network): (bool, Option<Arc<NetworkPolicy>>),
        claim: ClaimId,
        what: Arc<Personalization>,
    ) {
        let (guests, residencies) = (self.guests.clone(), self.residencies.clone());
        let networks = self.networks.clone();
        let what = self.goldens.named(id, what);
        let lost = GuestFailure::Lost("the personalization never ended".into());
        let otherwise = Event::Personalized(id, claim, Err(lost));
        self.spawn(span, PERSONALIZE * 2, otherwise, async move {
            failpoint!("personalize.begin");
            let _claiming = residencies.claiming();
            let thawed = async {
                match thaw {
                    true => residencies.thaw(id).await,
                    false => Ok(()),
                }
            };
            let enforced = async {
                match &network {
                    Some(policy) => networks.apply(id, policy).await,
                    None => Ok(()),
                }
            };
            // Both before the guest is told: a secret must not reach one that may still send it where the claim forbids.
            let (thawed, enforced) = tokio::join!(thawed, enforced);
            let thawed = thawed.map_err(|error| format!("the thaw failed: {error}"));
            let enforced = enforced.map_err(|error| format!("the network policy: {error}"));
            if let Err(why) = thawed.and(enforced) {
                return Event::Personalized(id, claim, Err(GuestFailure::Lost(why)));
            }
            if thaw {
                failpoint!("personalize.thawed");
            }
            let done = match guests.open(id) {
                Ok(guest) => {
                    let began = Instant::now();
                    let claim = claim.to_string();
                    let done = guest.personalize(&claim, &what, PERSONALIZE).await;
                    if thaw {
                        residencies.metrics.first_reply(began, &done);
                    }
                    done.map_err(failure)
                }
                Err(error) => Err(GuestFailure::Lost(bounded(error.to_string()))),
            };
            failpoint!("personalize.end");
            debug!(sandbox = %id, %claim, ?done, "guest personalized");
            Event::Personalized(id, claim, done)
        });
    }

    pub(super) fn witness(&self, id: SandboxId) {
        let (guests, places) = (self.guests.clone(), self.witnesses.clone());
        let residencies = self.residencies.clone();
        let otherwise = Event::Witnessed(id, Held::Silent);
        let span = tracing::info_span!("witness", sandbox = %id);
        // All of them wait for their turn, so the bound is on the whole crowd.
        self.spawn(span, CREATE, otherwise, async move {
            let _place = places.acquire().await;
            // It may have been frozen when hearthd died. One that can't be thawed is silent.
            if let Err(error) = residencies.thaw(id).await {
                debug!(error, "not thawed");
            }
            let held = match guests.open(id) {
                Ok(guest) => guest.witness(WITNESS).await,
                Err(_) => Err(GuestError::Closed),
            };
            let held = match held {
                Ok(text) if text.is_empty() => Held::Nothing,
                // A guest that tells anything but a claim id lies; what it holds is then unknown.
                Ok(text) => ClaimId::parse(&text).map_or(Held::Silent, Held::Claim),
                Err(_) => Held::Silent,
            };
            failpoint!("witness.end");
            debug!(?held, "guest witnessed");
            Event::Witnessed(id, held)
        });
    }

    /// Lists the runtime; with `wanted` networks are reconciled before the machine learns of it. What keeps failing ends
    /// with no event: the machine asks again.
    pub(super) fn list(&self, round: u64, wanted: Option<Policies>) -> tokio::task::AbortHandle {
        let (runtime, events) = (self.runtime.clone(), self.events.clone());
        let networks = self.networks.clone();
        let task = tokio::spawn(async move {
            for _ in 0..LIST_TRIES {
                match timeout(LIST, runtime.list()).await {
                    Ok(Ok(observed)) => {
                        failpoint!("list.end");
                        debug!(sandboxes = observed.len(), "runtime listed");
                        let lost = match wanted.clone() {
                            Some(wanted) => networks.reconcile(wanted, &observed).await,
                            None => Ok(Vec::new()),
                        };
                        match lost {
                            Ok(lost) => {
                                // The driver is gone only when hearthd ends.
                                for id in lost {
                                    let ended = Event::Ended(id, ExitCause::NetworkLost);
                                    let _ended = events.send(ended).await;
                                }
                                let _ended = events.send(Event::Listed { round, observed }).await;
                                return;
                            }
                            Err(error) => warn!(error, "networks could not be reconciled"),
                        }
                    }
                    Ok(Err(error)) => warn!(%error, "the runtime could not be listed"),
                    Err(_) => warn!("the runtime's listing hangs"),
                }
                tokio::time::sleep(LIST_PAUSE).await;
            }
        });
        task.abort_handle()
    }
}

/// What a failed personalization means for the sandbox.
fn failure(error: GuestError) -> GuestFailure {
    let lost = |error: &GuestError| GuestFailure::Lost(bounded(error.to_string()));
    match &error {
        GuestError::Silent(_) | GuestError::Protocol(_) | GuestError::Closed => lost(&error),
        GuestError::Limit => lost(&error),
        GuestError::Failed { kind, message } => match kind {
            // Held by another claim: it must never serve this one.
            v1::FailureKind::Claimed | v1::FailureKind::Unspecified => lost(&error),
            v1::FailureKind::NotFound
            | v1::FailureKind::Permission
            | v1::FailureKind::Invalid
            | v1::FailureKind::Limit
            | v1::FailureKind::Refused
            | v1::FailureKind::Io => GuestFailure::Refused(bounded(message.clone())),
        },
    }
}
