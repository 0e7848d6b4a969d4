//! The door to the driver, for rpc and admin.

use super::Clock;
use super::guests::Guests;
use super::inbox::Lanes;
use super::memory::{MemoryLook, NodeMemory, Zram};
use super::network::Networks;
use super::visits::{Visit, Visits};
use super::watch::ClaimWatches;
use crate::cgroup::Usage;
use crate::guest::{Guest, Personalization};
use crate::machine::classes::Classes;
use crate::machine::event::{Call, Event, Notice};
use crate::machine::ids::{Now, SandboxId};
use crate::machine::refusal::{Refusal, bounded};
use crate::machine::spec::DrainRequest;
use crate::machine::view::{Answer, ClaimView, Phase};
use crate::net::NetReport;
use crate::runtime::{Handler, ImageInfo, ImageProgress, Runtime, RuntimeError, Versions};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{broadcast, mpsc, watch};

/// Where the time of a call went; `None` where a stage does not apply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Acceptance by the queue → assignment of a member.
    pub queue: Option<Duration>,
    /// Assignment → durable.
    pub commit: Option<Duration>,
    /// Assignment → the guest's acknowledgement.
    pub guest: Option<Duration>,
    /// Acceptance → reply.
    pub total: Duration,
}

/// An answer with its timings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The answer.
    pub answer: Answer,
    /// Where the time went.
    pub timings: Timings,
}

/// One item of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimChange {
    /// Part of the snapshot.
    Snapshot(ClaimView),
    /// The snapshot is complete, or none was needed.
    Synced {
        /// The watch goes on after its token; else what the snapshot has not shown is gone.
        resumed: bool,
    },
    /// Added or changed.
    Upserted(ClaimView),
    /// Gone; its last state.
    Removed(ClaimView),
}

/// A watch of claims: items with the resume token that stands after each. The channel is bounded; a watcher that lags
/// more than the history gets an error and must start anew.
#[derive(Debug)]
pub struct ClaimWatch {
    /// (what, resume token; empty before a snapshot is complete).
    pub changes: mpsc::Receiver<Result<(ClaimChange, String), Refusal>>,
}

/// What the door opens on.
pub(super) struct Door {
    pub(super) lanes: Lanes,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) guests: Arc<Guests>,
    pub(super) visits: Visits,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) networks: Arc<Networks>,
    pub(super) memory: Option<Arc<NodeMemory>>,
    pub(super) watches: Arc<ClaimWatches>,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) pools_changed: watch::Receiver<u64>,
    pub(super) notices: broadcast::Sender<Notice>,
    pub(super) clock: Arc<dyn Clock>,
}

/// How soon to ask again when something outside is away.
const RETRY_MS: u64 = 500;

/// The door to the driver. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    door: Arc<Door>,
}

impl Handle {
    pub(super) fn new(door: Door) -> Self {
        Self {
            door: Arc::new(door),
        }
    }

    /// What a caller hears once the driver has ended.
    pub(super) fn gone() -> Refusal {
        Refusal::ShuttingDown { retry_ms: RETRY_MS }
    }

    /// Sends one call and waits for its answer. Never waits for queue space: a full queue is `QueueFull`. Dropping the
    /// future does not cancel what was started. `personalization` goes with `Call::Claim` only. The current tracing
    /// span travels with the call.
    pub async fn call(
        &self,
        call: Call,
        personalization: Option<Arc<Personalization>>,
    ) -> Result<Answered, Refusal> {
        let mut answers = self.call_batch(vec![(call, personalization)]).await;
        answers.pop().unwrap_or_else(|| Err(Self::gone()))
    }

    /// Sends several calls so that they share one batch and one commit; answers in order.
    pub async fn call_batch(
        &self,
        calls: Vec<(Call, Option<Arc<Personalization>>)>,
    ) -> Vec<Result<Answered, Refusal>> {
        let count = calls.len();
        let receivers = match self.door.lanes.put(calls) {
            Ok(receivers) => receivers,
            Err(refusal) => return vec![Err(refusal); count],
        };
        let mut answers = Vec::with_capacity(count);
        for receiver in receivers {
            answers.push(receiver.await.unwrap_or_else(|_| Err(Self::gone())));
        }
        answers
    }

    /// Calls that wait for the driver.
    pub(super) fn waiting(&self) -> usize {
        self.door.lanes.waiting()
    }

    /// The guest of a sandbox that `Call::Locate` has just named. Must be called inside the tokio runtime.
    pub fn guest(&self, sandbox: SandboxId) -> Result<Arc<dyn Guest>, Refusal> {
        self.door.guests.open(sandbox).map_err(|error| {
            tracing::debug!(%sandbox, %error, "the guest's FIFOs can't be opened");
            Refusal::GuestUnavailable {
                sandbox,
                retry_ms: RETRY_MS,
            }
        })
    }

    /// Tells that a caller is inside a sandbox, until the visit is dropped. Begun before `Call::Locate`'s answer is used.
    #[must_use]
    pub fn visit(&self, sandbox: SandboxId) -> Visit {
        self.door.visits.begin(sandbox)
    }

    /// Resident use of a sandbox.
    pub async fn usage(&self, sandbox: SandboxId) -> Result<Usage, Refusal> {
        let usage = self.door.runtime.usage(sandbox).await;
        usage.map_err(|error| Refusal::Internal {
            detail: bounded(error.to_string()),
        })
    }

    /// What the sandboxes of each pool take in memory, some seconds old at most; it waits for two at most. `None`: it
    /// can't be read now. Not for the way of a claim.
    pub async fn memory(&self) -> Option<Arc<MemoryLook>> {
        self.door.memory.clone()?.ask().await
    }

    /// hearth's zram device as it is now; the same holds. `None`: there is none.
    pub async fn zram(&self) -> Option<Zram> {
        self.door.memory.clone()?.zram().await
    }

    /// What is in force for a sandbox's network, and what was denied.
    pub async fn network_report(&self, sandbox: SandboxId) -> Result<NetReport, Refusal> {
        self.door.networks.report(sandbox).await
    }

    /// `Err`: why templates with a network can't be served here.
    pub fn network(&self) -> Result<(), String> {
        self.door.networks.available()
    }

    /// Brings up to date what is only counted when somebody looks. Called before each scrape; takes half a second at
    /// most.
    pub async fn prepare_metrics(&self) {
        self.door.networks.count_denied().await;
    }

    /// Watches claims from a resume token, or with a snapshot first. A token that is too old, or of another start of
    /// hearthd, gives a snapshot again. Must be called inside the tokio runtime.
    pub async fn watch_claims(&self, resume: Option<String>) -> Result<ClaimWatch, Refusal> {
        self.door.watches.follow(resume.as_deref())
    }

    /// Changes whenever some pool's status changes; read the pools with `Call::GetPools`. Updates are coalesced.
    #[must_use]
    pub fn pools_changed(&self) -> watch::Receiver<u64> {
        self.door.pools_changed.clone()
    }

    /// The daemon's phase.
    #[must_use]
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.door.phase.clone()
    }

    /// What operators should see, from now on. Who lags loses the oldest, never holds up the driver.
    #[must_use]
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        self.door.notices.subscribe()
    }

    /// Tells all who listen.
    pub(super) fn announce(&self, notice: Notice) {
        // Nobody listens.
        let _ = self.door.notices.send(notice);
    }

    /// The cluster has cordoned the node, or undone that. Called by `kube`.
    pub async fn cordon(&self, cordoned: bool) {
        let _ended = self.door.events.send(Event::Cordon { cordoned }).await;
    }

    /// What drain the cluster asks for now; `None`: none. Called by `kube`.
    pub async fn cluster_drain(&self, asked: Option<DrainRequest>) {
        let _ended = self.door.events.send(Event::ClusterDrain { asked }).await;
    }

    /// RuntimeClasses and the node's labels, as the cluster has them now. Called by `kube`.
    pub async fn tell_classes(&self, classes: Arc<Classes>) {
        let _ended = self.door.events.send(Event::Classes(classes)).await;
    }

    /// Begins to shut down: mutating calls are refused from now on. Called by `app`.
    pub async fn shut_down(&self) {
        // The driver is gone: nothing is left to shut.
        let _ended = self.door.events.send(Event::ShuttingDown).await;
    }

    /// Converts hearth time to wall-clock time.
    #[must_use]
    pub fn to_wall_clock(&self, at: Now) -> SystemTime {
        self.door.clock.to_wall_clock(at)
    }

    /// Images, ordered by name.
    pub async fn images(&self) -> Result<Vec<ImageInfo>, Refusal> {
        let images = self.door.runtime.images().await;
        images.map_err(|error| image_refusal("", error))
    }

    /// Imports an archive file.
    pub async fn import_image(
        &self,
        archive: &std::path::Path,
        name: Option<&str>,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<Vec<ImageInfo>, Refusal> {
        let runtime = &self.door.runtime;
        let imported = runtime.import_image(archive, name, progress).await;
        imported.map_err(|error| image_refusal(name.unwrap_or_default(), error))
    }

    /// Pulls an image.
    pub async fn pull_image(
        &self,
        name: &str,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<ImageInfo, Refusal> {
        let pulled = self.door.runtime.pull_image(name, progress).await;
        pulled.map_err(|error| image_refusal(name, error))
    }

    /// Removes an image no pool names.
    pub async fn remove_image(&self, name: &str) -> Result<(), Refusal> {
        let answered = self.call(Call::GetPools, None).await?;
        let Answer::Pools { pools, .. } = answered.answer else {
            return Err(Refusal::Internal {
                detail: "GetPools was answered with something else".into(),
            });
        };
        let user = pools.iter().find(|pool| pool.spec.template.image == name);
        if let Some(pool) = user {
            return Err(Refusal::ImageInUse {
                image: name.to_owned(),
                pool: pool.spec.name.to_string(),
            });
        }
        let removed = self.door.runtime.remove_image(name).await;
        removed.map_err(|error| image_refusal(name, error))
    }

    /// Versions of the outside parts.
    pub async fn versions(&self) -> Result<Versions, Refusal> {
        let versions = self.door.runtime.versions().await;
        versions.map_err(|error| match error {
            RuntimeError::Unavailable(_) => Refusal::RuntimeUnavailable { retry_ms: RETRY_MS },
            other => Refusal::Internal {
                detail: bounded(other.to_string()),
            },
        })
    }

    /// The runtime handlers of this node, ordered by name: what each can do, what it takes beside what templates promise,
    /// and why it can't be served now, if it can't.
    #[must_use]
    pub fn handlers(&self) -> Vec<Handler> {
        self.door.runtime.handlers()
    }
}

fn image_refusal(image: &str, error: RuntimeError) -> Refusal {
    match error {
        RuntimeError::Unavailable(_) => Refusal::RuntimeUnavailable { retry_ms: RETRY_MS },
        RuntimeError::ImageMissing(image) => Refusal::ImageUnknown { image },
        RuntimeError::DeadlineExceeded { .. } | RuntimeError::Refused { .. } => {
            Refusal::ImageFailed {
                image: image.to_owned(),
                detail: bounded(error.to_string()),
            }
        }
    }
}
