//! Hibernate and Resume, and the waking of a sandbox that is used: for each claim, who waits for what.

use super::claims::Stage;
use super::event::{FreezeCause, ThawCause};
use super::ids::{ClaimId, RequestId, SandboxId};
use super::limits::{RETRY_MS, WAKERS_PER_CLAIM};
use super::node::Node;
use super::out::Out;
use super::refusal::Refusal;
use super::sandboxes::{Operation, Residency};
use super::spec::{Fence, Tier, WaitingOn};
use super::view::Answer;
use std::collections::BTreeMap;

/// Who waits for a claim's sandbox to wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waker {
    /// Claims.Resume.
    Resume(RequestId),
    /// A use of the sandbox.
    Locate(RequestId),
}

/// Requests that wait for one claim's sandbox.
#[derive(Debug, Clone, Default)]
struct Waiting {
    /// Claims.Hibernate: until it sleeps.
    to_sleep: Vec<RequestId>,
    /// Until it is awake. While a freeze is out they wait for its end and for the thaw after it.
    to_wake: Vec<Waker>,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Sleepers {
    waiting: BTreeMap<ClaimId, Waiting>,
}

impl Sleepers {
    /// Every request that waits, with its claim. For the invariants.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ClaimId, RequestId)> {
        self.waiting.iter().flat_map(|(claim, waiting)| {
            let wakers = waiting.to_wake.iter().map(|waker| match waker {
                Waker::Resume(request) | Waker::Locate(request) => *request,
            });
            let all = waiting.to_sleep.iter().copied().chain(wakers);
            all.map(|request| (*claim, request))
        })
    }

    fn join(&mut self, claim: ClaimId, join: impl FnOnce(&mut Waiting)) -> Result<(), Refusal> {
        let waiting = self.waiting.entry(claim).or_default();
        if waiting.to_sleep.len() + waiting.to_wake.len() >= WAKERS_PER_CLAIM {
            return Err(Refusal::QueueFull {
                queue: "joiners",
                retry_ms: RETRY_MS,
            });
        }
        join(waiting);
        Ok(())
    }
}

impl Node {
    /// Claims.Hibernate.
    pub(super) fn hibernate(
        &mut self,
        request: RequestId,
        fence: Fence,
        claim: ClaimId,
        (tier, reason): (Tier, WaitingOn),
        out: &mut Out<'_>,
    ) {
        let admitted = self.conditions.staying();
        let admitted = admitted.and_then(|()| self.fencing.admit(fence, out));
        let done = admitted.and_then(|_| match tier {
            Tier::Auto | Tier::Memory => self.try_hibernate(request, claim, reason, out),
            Tier::Disk => Err(Refusal::Unsupported {
                what: "Hibernate with TIER_DISK".to_owned(),
            }),
        });
        if let Err(refusal) = done {
            out.refuse(request, refusal);
        }
    }

    fn try_hibernate(
        &mut self,
        request: RequestId,
        claim: ClaimId,
        reason: WaitingOn,
        out: &mut Out<'_>,
    ) -> Result<(), Refusal> {
        let sandbox = self.held_sandbox(claim)?;
        let join = |waiting: &mut Waiting| waiting.to_sleep.push(request);
        match self.sandboxes.get(sandbox).map(|it| it.operation) {
            Some(Operation::Thaw) => {
                let claim = claim.to_string();
                return Err(Refusal::WakeInFlight { claim });
            }
            Some(Operation::Freeze) => {
                self.residing.sleepers.join(claim, join)?;
            }
            _ if self.is_frozen(sandbox) => {
                out.answer(request, Answer::Hibernated, out.ticket());
            }
            _ => {
                self.residing.sleepers.join(claim, join)?;
                self.begin_freeze(sandbox, FreezeCause::Asked(reason), out);
            }
        }
        Ok(())
    }

    /// Claims.Resume.
    pub(super) fn resume(
        &mut self,
        request: RequestId,
        fence: Fence,
        claim: ClaimId,
        out: &mut Out<'_>,
    ) {
        let admitted = self.conditions.staying();
        let admitted = admitted.and_then(|()| self.fencing.admit(fence, out));
        let woken = admitted.and_then(|_| {
            let sandbox = self.held_sandbox(claim)?;
            self.wake(claim, sandbox, Waker::Resume(request), out)
        });
        if let Err(refusal) = woken {
            out.refuse(request, refusal);
        }
    }

    /// The sandbox of an acknowledged claim, awake.
    pub(super) fn locate(&mut self, request: RequestId, claim: ClaimId, out: &mut Out<'_>) {
        let woken = self.held_sandbox(claim).and_then(|sandbox| {
            self.sampling.used(sandbox, out.now());
            self.drain_used(sandbox);
            self.wake(claim, sandbox, Waker::Locate(request), out)
        });
        if let Err(refusal) = woken {
            out.refuse(request, refusal);
        }
    }

    fn wake(
        &mut self,
        claim: ClaimId,
        sandbox: SandboxId,
        waker: Waker,
        out: &mut Out<'_>,
    ) -> Result<(), Refusal> {
        let operation = self.sandboxes.get(sandbox).map(|it| it.operation);
        let shifting = matches!(operation, Some(Operation::Freeze | Operation::Thaw));
        if !shifting && !self.is_frozen(sandbox) {
            self.answer_waker(claim, sandbox, waker, out);
            return Ok(());
        }
        if operation != Some(Operation::Thaw) {
            self.may_wake()?;
        }
        let sleepers = &mut self.residing.sleepers;
        sleepers.join(claim, |waiting| waiting.to_wake.push(waker))?;
        if !shifting {
            self.begin_thaw(sandbox, cause(waker), out);
        }
        Ok(())
    }

    fn answer_waker(&self, claim: ClaimId, sandbox: SandboxId, waker: Waker, out: &mut Out<'_>) {
        match waker {
            Waker::Resume(request) => out.answer(request, Answer::Resumed, out.ticket()),
            Waker::Locate(request) => {
                let assignment = self.claims.get(&claim).and_then(|it| it.assignment());
                let after = assignment.map_or(out.ticket(), |it| it.ticket);
                let known = self.sandboxes.get(sandbox);
                let template = known.and_then(|it| it.template.clone());
                out.answer(request, Answer::Located { sandbox, template }, after);
            }
        }
    }

    /// A freeze of a claim's sandbox has ended: who waits is told; who wants it awake gets it woken at once.
    pub(super) fn fell_asleep(
        &mut self,
        claim: ClaimId,
        sandbox: SandboxId,
        failed: Option<String>,
        out: &mut Out<'_>,
    ) {
        let waiting = self.residing.sleepers.waiting.remove(&claim);
        let Waiting { to_sleep, to_wake } = waiting.unwrap_or_default();
        for request in to_sleep {
            match &failed {
                None => out.answer(request, Answer::Hibernated, out.ticket()),
                Some(detail) => out.refuse(
                    request,
                    Refusal::HibernateFailed {
                        claim: claim.to_string(),
                        detail: detail.clone(),
                        retry_ms: RETRY_MS,
                    },
                ),
            }
        }
        let Some(first) = to_wake.first().copied() else {
            return;
        };
        if failed.is_some() {
            for waker in to_wake {
                self.answer_waker(claim, sandbox, waker, out);
            }
            return;
        }
        let waiting = Waiting {
            to_sleep: Vec::new(),
            to_wake,
        };
        self.residing.sleepers.waiting.insert(claim, waiting);
        self.begin_thaw(sandbox, cause(first), out);
    }

    /// A thaw of a claim's sandbox has ended.
    pub(super) fn woke_up(
        &mut self,
        claim: ClaimId,
        sandbox: SandboxId,
        failed: Option<String>,
        out: &mut Out<'_>,
    ) {
        let waiting = self.residing.sleepers.waiting.remove(&claim);
        for waker in waiting.unwrap_or_default().to_wake {
            match (&failed, waker) {
                (None, waker) => self.answer_waker(claim, sandbox, waker, out),
                (Some(detail), Waker::Resume(request) | Waker::Locate(request)) => out.refuse(
                    request,
                    Refusal::ResumeFailed {
                        claim: claim.to_string(),
                        detail: detail.clone(),
                        retry_ms: RETRY_MS,
                    },
                ),
            }
        }
    }

    /// The claim ends while somebody waits for its sandbox.
    pub(super) fn refuse_sleepers(&mut self, claim: ClaimId, refusal: &Refusal, out: &mut Out<'_>) {
        let Some(Waiting { to_sleep, to_wake }) = self.residing.sleepers.waiting.remove(&claim)
        else {
            return;
        };
        for request in to_sleep {
            out.refuse(request, refusal.clone());
        }
        for Waker::Resume(request) | Waker::Locate(request) in to_wake {
            out.refuse(request, refusal.clone());
        }
    }

    /// The sandbox of a claim that is acknowledged and whose sandbox has been seen.
    fn held_sandbox(&self, id: ClaimId) -> Result<SandboxId, Refusal> {
        let claim = self.claims.get(&id).ok_or_else(|| self.absent(id))?;
        let name = id.to_string();
        match &claim.stage {
            Stage::Held { assignment } => {
                let sandbox = self.sandboxes.get(assignment.sandbox);
                let there = sandbox.filter(|it| !matches!(it.residency, Residency::Unknown { .. }));
                let there = there.map(|it| it.id);
                there.ok_or(Refusal::ClaimRecovering { claim: name })
            }
            Stage::Unknown { .. } => Err(Refusal::ClaimRecovering { claim: name }),
            Stage::Failed { reason, .. } => Err(Refusal::SandboxEnded {
                claim: name,
                reason: reason.clone(),
            }),
            _ => Err(Refusal::ClaimPending { claim: name }),
        }
    }

    fn is_frozen(&self, sandbox: SandboxId) -> bool {
        let sandbox = self.sandboxes.get(sandbox);
        sandbox.is_some_and(|it| it.residency == Residency::Frozen)
    }
}

fn cause(waker: Waker) -> ThawCause {
    match waker {
        Waker::Resume(_) => ThawCause::Asked,
        Waker::Locate(_) => ThawCause::Used,
    }
}
