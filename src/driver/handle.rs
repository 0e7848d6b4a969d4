//! The door to the driver, for rpc and admin.

use crate::cgroup::Usage;
use crate::guest::{Guest, Personalization};
use crate::machine::event::Call;
use crate::machine::ids::{Now, SandboxId};
use crate::machine::refusal::Refusal;
use crate::machine::view::{Answer, ClaimView};
use crate::runtime::{Capabilities, ImageInfo, ImageProgress, Runtime, Versions};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};

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

/// Phase of the daemon, for readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Recovery goes on: claims are refused with UNAVAILABLE.
    Recovering,
    /// Serving.
    Ready,
    /// Serving what needs no containerd; containerd is unreachable.
    Degraded,
    /// Shutting down.
    ShuttingDown,
}

/// One item of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimChange {
    /// Part of the snapshot.
    Snapshot(ClaimView),
    /// The snapshot is complete.
    Synced,
    /// Added or changed.
    Upserted(ClaimView),
    /// Gone; its last state.
    Removed(ClaimView),
}

/// A watch of claims: items with the resume token that stands after each. The channel is bounded; a watcher that lags
/// more than the history gets an error and must start anew.
#[derive(Debug)]
pub struct ClaimWatch {
    /// (what, resume token).
    pub changes: mpsc::Receiver<Result<(ClaimChange, String), Refusal>>,
}

/// The door to the driver. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    runtime: Arc<dyn Runtime>,
}

impl Handle {
    /// Sends one call and waits for its answer. Never waits for queue space: a full queue is `QueueFull`. Dropping the
    /// future does not cancel what was started. `personalization` goes with `Call::Claim` only. The current tracing
    /// span travels with the call.
    pub async fn call(
        &self,
        call: Call,
        personalization: Option<Arc<Personalization>>,
    ) -> Result<Answered, Refusal> {
        let _ = (call, personalization);
        Err(Refusal::Starting { retry_ms: 100 })
    }

    /// Sends several calls so that they share one batch and one commit (as far as the batch's bound goes); answers in
    /// order.
    pub async fn call_batch(
        &self,
        calls: Vec<(Call, Option<Arc<Personalization>>)>,
    ) -> Vec<Result<Answered, Refusal>> {
        let _ = calls;
        Vec::new()
    }

    /// The guest of a sandbox.
    pub fn guest(&self, sandbox: SandboxId) -> Result<Arc<dyn Guest>, Refusal> {
        Err(Refusal::GuestUnavailable {
            sandbox,
            retry_ms: 100,
        })
    }

    /// Resident use of a sandbox.
    pub async fn usage(&self, sandbox: SandboxId) -> Result<Usage, Refusal> {
        self.runtime
            .usage(sandbox)
            .await
            .map_err(|e| Refusal::Internal {
                detail: e.to_string(),
            })
    }

    /// Watches claims from a resume token, or with a snapshot first. A token that is too old, or of another start of
    /// hearthd, gives a snapshot again.
    pub async fn watch_claims(&self, resume: Option<String>) -> Result<ClaimWatch, Refusal> {
        let _ = resume;
        Err(Refusal::Starting { retry_ms: 100 })
    }

    /// Changes whenever some pool's status changes; read the pools with `Call::GetPools`. Updates are coalesced.
    #[must_use]
    pub fn pools_changed(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }

    /// The daemon's phase.
    #[must_use]
    pub fn phase(&self) -> watch::Receiver<Phase> {
        watch::channel(Phase::Recovering).1
    }

    /// Begins to shut down: mutating calls are refused from now on.
    pub fn shut_down(&self) {}

    /// Converts hearth time to wall-clock time.
    #[must_use]
    pub fn to_wall_clock(&self, at: Now) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(at.0)
    }

    /// Images.
    pub async fn images(&self) -> Result<Vec<ImageInfo>, Refusal> {
        Ok(Vec::new())
    }

    /// Imports an archive file.
    pub async fn import_image(
        &self,
        archive: &std::path::Path,
        name: Option<&str>,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<Vec<ImageInfo>, Refusal> {
        let _ = (archive, name, progress);
        Ok(Vec::new())
    }

    /// Pulls an image.
    pub async fn pull_image(
        &self,
        name: &str,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<ImageInfo, Refusal> {
        let _ = progress;
        Err(Refusal::ImageUnknown {
            image: name.to_owned(),
        })
    }

    /// Removes an image no pool names.
    pub async fn remove_image(&self, name: &str) -> Result<(), Refusal> {
        Err(Refusal::ImageUnknown {
            image: name.to_owned(),
        })
    }

    /// Versions of the outside parts.
    pub async fn versions(&self) -> Result<Versions, Refusal> {
        Ok(Versions::default())
    }

    /// What each handler can do.
    #[must_use]
    pub fn handlers(&self) -> Vec<(String, Capabilities)> {
        Vec::new()
    }
}
