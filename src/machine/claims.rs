//! Claims: what was asked for, and how far it has come.
//!
//! ```text
//!            ┌───────────── next member ◀──────────────┐
//!            ▼                                         │ the guest is lost
//!  Claim ─▶ Queued ──member──▶ Assigned ──guest: ok──▶ Held ──sandbox ends──▶ Failed
//!            │ cold              ▲ ▲
//!            └▶ Making ─created──┘ │ a retry
//!                                  │
//!  restart ─▶ Unknown ──guest: nothing──▶ Unheld         (guest: this claim ──▶ Held)
//! ```
//! Release and expiry end any of them; a refusal ends `Queued`, `Making` and `Assigned`.
//!
//! What is durable when: nothing before `Assigned`; the assignment with `Assigned`, unconfirmed; the confirmation lazily
//! with the next commit. The time to live counts from the guest's acknowledgement. What is durable with the assignment
//! is a first `expires_at`, counted from the assignment; the acknowledged one follows with the confirmation. If hearthd
//! dies between, recovery counts the whole time anew from its own start: later than the caller was told, never earlier.

use super::ids::{ClaimId, Now, PoolName, RequestId, SandboxId, Ticket};
use super::limits::{COLD_WAIT_MS, JOINERS_PER_CLAIM, MAX_WAIT_MS, RETRY_MS};
use super::network::NetworkPolicy;
use super::record::ClaimRecord;
use super::refusal::Refusal;
use super::spec::{ClaimRequest, ContentDigest, Holder, OnDataLoss, OnEmpty};
use super::view::{ClaimState, ClaimView, Grant, Source};
use std::sync::Arc;

/// What a claim asks for: its content, for ever.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) id: ClaimId,
    pub(super) pool: PoolName,
    pub(super) holder: Holder,
    pub(super) content: ContentDigest,
    pub(super) ttl_ms: u64,
    /// Who asked first. Not durable: only those that wait take turns.
    pub(super) by: Arc<str>,
    /// Its own; `None`: what the sandbox was made with.
    pub(super) network: Option<Arc<NetworkPolicy>>,
    pub(super) on_data_loss: OnDataLoss,
}

impl Terms {
    /// `on_data_loss`: of the template, where the claim does not say it.
    pub(super) fn of(asked: ClaimRequest, on_data_loss: OnDataLoss) -> Self {
        Self {
            id: asked.claim_id,
            pool: asked.pool,
            holder: asked.holder,
            content: asked.content,
            ttl_ms: asked.ttl_ms,
            by: asked.by,
            network: asked.network_policy.map(Arc::new),
            on_data_loss: asked.on_data_loss.unwrap_or(on_data_loss),
        }
    }
}

/// When something with this time to live expires.
pub(super) fn expiry(ttl_ms: u64, from: Now) -> Option<Now> {
    (ttl_ms > 0).then(|| from.plus(ttl_ms))
}

/// A request that waits for a claim's answer.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    pub(super) request: RequestId,
    pub(super) on_empty: OnEmpty,
    pub(super) since: Now,
    /// Of the fence it was admitted under.
    pub(super) not_before: Ticket,
}

impl Asker {
    /// When its wait in a queue ends.
    pub(super) fn deadline(&self) -> Option<Now> {
        match self.on_empty {
            OnEmpty::Fail => None,
            OnEmpty::Wait { timeout_ms } => Some(self.since.plus(timeout_ms.min(MAX_WAIT_MS))),
            OnEmpty::Cold => Some(self.since.plus(COLD_WAIT_MS)),
        }
    }
}

/// The requests of one claim that have no answer yet, oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Askers(pub(super) Vec<Asker>);

impl Askers {
    /// Rule 3: a retry joins, beside `others` that wait already.
    fn join(&mut self, asker: Asker, others: usize) -> Result<(), Refusal> {
        if self.0.len() + others >= JOINERS_PER_CLAIM {
            return Err(Refusal::QueueFull {
                queue: "joiners",
                retry_ms: RETRY_MS,
            });
        }
        self.0.push(asker);
        Ok(())
    }

    /// A retry joins those that wait for a recovered claim.
    pub(super) fn join_recovery(&mut self, asker: Asker) -> Result<(), Refusal> {
        self.join(asker, 0)
    }
}

/// A claim that is being served: at least one request waits for it.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    /// The oldest: its personalization is used.
    pub(super) first: Asker,
    pub(super) joined: Askers,
    /// In the queue: rises with arrival. A claim that lost its member comes back to its old place.
    pub(super) place: u64,
    /// Members that failed to take it.
    pub(super) attempts: u32,
}

impl Pending {
    pub(super) fn of(first: Asker, joined: Askers, place: u64) -> Self {
        Self {
            first,
            joined,
            place,
            attempts: 0,
        }
    }

    /// A retry joins the first.
    pub(super) fn join(&mut self, asker: Asker) -> Result<(), Refusal> {
        self.joined.join(asker, 1)
    }

    pub(super) fn askers(&self) -> impl Iterator<Item = &Asker> {
        std::iter::once(&self.first).chain(&self.joined.0)
    }

    /// Takes one of several requests out.
    pub(super) fn leave(&mut self, request: RequestId) {
        if self.first.request == request && !self.joined.0.is_empty() {
            self.first = self.joined.0.remove(0);
        } else {
            self.joined.0.retain(|asker| asker.request != request);
        }
    }
}

/// The sandbox a claim has.
#[derive(Debug, Clone)]
pub(super) struct Assignment {
    pub(super) sandbox: SandboxId,
    pub(super) generation: u64,
    pub(super) source: Source,
    pub(super) claimed_at: Now,
    pub(super) expires_at: Option<Now>,
    /// Of the batch that persisted what callers see of it.
    pub(super) ticket: Ticket,
    /// The sandbox it had first: its access token is of that.
    pub(super) first: SandboxId,
    /// How often it got a fresh sandbox because an image did not come back.
    pub(super) cold_starts: u32,
}

/// How far a claim has come.
#[derive(Debug, Clone)]
pub(super) enum Stage {
    /// Waits in its pool's queue.
    Queued { pending: Pending },
    /// Its own sandbox is being made.
    Making {
        pending: Pending,
        sandbox: SandboxId,
    },
    /// The guest is being personalized. Its expiry does not run yet.
    Assigned {
        pending: Pending,
        assignment: Assignment,
    },
    /// Acknowledged.
    Held { assignment: Assignment },
    /// Its sandbox ended by itself; that is being destroyed, the claim stays until it is released or expires.
    Failed {
        assignment: Assignment,
        reason: String,
    },
    /// Recovered, and perhaps acknowledged: the guest has yet to tell. Requests wait for that.
    Unknown {
        assignment: Assignment,
        askers: Askers,
    },
    /// Recovered, and its caller was never told: the guest holds nothing. A retry personalizes the same sandbox; else it
    /// goes with its expiry or release.
    Unheld { assignment: Assignment },
}

/// What is known of a claim's sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// It has not been heard of since hearthd started.
    NotYet,
    /// It runs.
    Awake,
    /// It sleeps, or is about to.
    Asleep,
}

/// A claim.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) terms: Terms,
    pub(super) stage: Stage,
}

impl Claim {
    pub(super) fn assignment(&self) -> Option<&Assignment> {
        match &self.stage {
            Stage::Queued { .. } | Stage::Making { .. } => None,
            Stage::Assigned { assignment, .. }
            | Stage::Held { assignment }
            | Stage::Failed { assignment, .. }
            | Stage::Unknown { assignment, .. }
            | Stage::Unheld { assignment } => Some(assignment),
        }
    }

    /// The assignment of a claim whose expiry runs.
    pub(super) fn running(&self) -> Option<&Assignment> {
        match &self.stage {
            Stage::Assigned { .. } => None,
            _ => self.assignment(),
        }
    }

    /// The sandbox that is this claim's: not that of a failed one, which is being destroyed.
    pub(super) fn sandbox(&self) -> Option<SandboxId> {
        match &self.stage {
            Stage::Making { sandbox, .. } => Some(*sandbox),
            Stage::Failed { .. } => None,
            _ => self.assignment().map(|assignment| assignment.sandbox),
        }
    }

    /// The requests that wait for an answer.
    pub(super) fn askers(&self) -> Vec<&Asker> {
        match &self.stage {
            Stage::Queued { pending, .. }
            | Stage::Making { pending, .. }
            | Stage::Assigned { pending, .. } => pending.askers().collect(),
            Stage::Unknown { askers, .. } => askers.0.iter().collect(),
            Stage::Held { .. } | Stage::Failed { .. } | Stage::Unheld { .. } => Vec::new(),
        }
    }

    /// `None`: nothing of it is durable.
    pub(super) fn record(&self) -> Option<ClaimRecord> {
        let assignment = self.assignment()?;
        let confirmed = matches!(self.stage, Stage::Held { .. } | Stage::Failed { .. });
        let failed = match &self.stage {
            Stage::Failed { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        Some(ClaimRecord {
            id: self.terms.id,
            pool: self.terms.pool.clone(),
            holder: self.terms.holder.clone(),
            content: self.terms.content.clone(),
            sandbox: assignment.sandbox,
            generation: assignment.generation,
            source: assignment.source,
            claimed_at: assignment.claimed_at,
            expires_at: assignment.expires_at,
            confirmed,
            failed,
            network: self.terms.network.as_deref().cloned(),
            on_data_loss: self.terms.on_data_loss,
            first: (assignment.first != assignment.sandbox).then_some(assignment.first),
            cold_starts: assignment.cold_starts,
        })
    }

    /// As callers see it.
    pub(super) fn view(&self, seen: Seen) -> ClaimView {
        let state = match &self.stage {
            Stage::Queued { .. }
            | Stage::Making { .. }
            | Stage::Assigned { .. }
            | Stage::Unheld { .. } => ClaimState::Pending,
            Stage::Held { .. } => match seen {
                Seen::NotYet => ClaimState::Unknown,
                Seen::Awake => ClaimState::Claimed,
                Seen::Asleep => ClaimState::Hibernated,
            },
            Stage::Unknown { .. } => ClaimState::Unknown,
            Stage::Failed { .. } => ClaimState::Failed,
        };
        let shown = self.assignment();
        let told = shown.filter(|_| state != ClaimState::Pending);
        let cold_starts = shown.map_or(0, |a| a.cold_starts);
        ClaimView {
            id: self.terms.id,
            pool: self.terms.pool.clone(),
            holder: self.terms.holder.clone(),
            state,
            reason: match &self.stage {
                Stage::Failed { reason, .. } => Some(reason.clone()),
                _ => (cold_starts > 0).then(|| super::replacing::REASON.to_owned()),
            },
            sandbox: shown.map(|a| a.sandbox),
            first: shown.map(|a| a.first),
            cold_starts,
            generation: shown.map_or(0, |a| a.generation),
            source: shown.map(|a| a.source),
            claimed_at: told.map(|a| a.claimed_at),
            expires_at: told.and_then(|a| a.expires_at),
            image_bytes: 0,
        }
    }
}

/// The answer to a Claim that holds this.
pub(super) fn grant(claim: ClaimId, assignment: &Assignment) -> Grant {
    Grant {
        claim,
        sandbox: assignment.sandbox,
        generation: assignment.generation,
        source: assignment.source,
        expires_at: assignment.expires_at,
        first: assignment.first,
    }
}
