//! Hibernate and Resume, and the waking of a sandbox that is used: for each claim, who waits for what.

use super::claims::Stage;
use super::event::{FreezeCause, SinkCause, ThawCause};
use super::handler::Family;
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
    /// One of them wants it on the disk, and why it sleeps.
    to_disk: Option<WaitingOn>,
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

    /// Somebody wants it awake.
    pub(super) fn someone_wakes(&self, claim: ClaimId) -> bool {
        self.why_awake(claim).is_some()
    }

    /// Why, if somebody does.
    pub(super) fn why_awake(&self, claim: ClaimId) -> Option<ThawCause> {
        let waiting = self.waiting.get(&claim)?;
        waiting.to_wake.first().copied().map(cause)
    }

    /// Somebody wants it on the disk, and nobody awake.
    pub(super) fn why_on_disk(&self, claim: ClaimId) -> Option<WaitingOn> {
        let waiting = self.waiting.get(&claim)?;
        waiting.to_disk.filter(|_| waiting.to_wake.is_empty())
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
            Tier::Auto | Tier::Memory => self.try_sleep(request, claim, (false, reason), out),
            Tier::Disk => self
                .disk_tier()
                .and_then(|()| self.try_sleep(request, claim, (true, reason), out)),
        });
        if let Err(refusal) = done {
            out.refuse(request, refusal);
        }
    }

    fn try_sleep(
        &mut self,
        request: RequestId,
        claim: ClaimId,
        (to_disk, reason): (bool, WaitingOn),
        out: &mut Out<'_>,
    ) -> Result<(), Refusal> {
        let sandbox = self.held_sandbox(claim)?;
        self.may_sleep(sandbox)?;
        let there = self.is_on_disk(sandbox) || (!to_disk && self.is_frozen(sandbox));
        let join = |waiting: &mut Waiting| {
            waiting.to_sleep.push(request);
            if to_disk {
                waiting.to_disk = Some(reason);
            }
        };
        match self.sandboxes.get(sandbox).map(|it| it.operation) {
            Some(Operation::Thaw | Operation::Restore | Operation::Replace { .. }) => {
                let claim = claim.to_string();
                return Err(Refusal::WakeInFlight { claim });
            }
            Some(Operation::Freeze | Operation::Checkpoint) => {
                self.residing.sleepers.join(claim, join)?;
            }
            _ if there => out.answer(request, Answer::Hibernated, out.ticket()),
            _ => {
                self.residing.sleepers.join(claim, join)?;
                match to_disk {
                    true => self.begin_checkpoint(sandbox, SinkCause::Asked(reason), out),
                    false => self.begin_freeze(sandbox, FreezeCause::Asked(reason), out),
                }
            }
        }
        Ok(())
    }

    /// Its handler can freeze it.
    fn may_sleep(&self, sandbox: SandboxId) -> Result<(), Refusal> {
        let known = self.sandboxes.get(sandbox);
        let awake_always = known.filter(|it| !it.can_freeze());
        match awake_always.and_then(|it| it.template.as_ref()) {
            None => Ok(()),
            Some(template) => {
                let handler = &template.runtime_handler;
                let why = Family::of(handler).why_no_freeze();
                let what = format!("Hibernate of a sandbox of runtime handler {handler:?} ({why})");
                Err(Refusal::Unsupported { what })
            }
        }
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
            self.listening.wanted_awake(sandbox);
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
            self.listening.wanted_awake(sandbox);
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
        let shifting = operation.is_some_and(Operation::is_shift);
        let on_disk = self.is_on_disk(sandbox);
        if !shifting && !on_disk && !self.is_frozen(sandbox) {
            self.answer_waker(claim, sandbox, waker, out);
            return Ok(());
        }
        if operation != Some(Operation::Thaw) {
            self.may_wake()?;
        }
        let sleepers = &mut self.residing.sleepers;
        sleepers.join(claim, |waiting| waiting.to_wake.push(waker))?;
        match (shifting, on_disk) {
            (true, _) => {}
            (false, true) => self.begin_restore(sandbox, cause(waker), out),
            (false, false) => self.begin_thaw(sandbox, cause(waker), out),
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

    /// A freeze or a checkpoint of a claim's sandbox has ended: who waits is told; who wants it awake gets it woken at
    /// once.
    pub(super) fn fell_asleep(
        &mut self,
        claim: ClaimId,
        sandbox: SandboxId,
        failed: Option<Refusal>,
        out: &mut Out<'_>,
    ) {
        let waiting = self.residing.sleepers.waiting.remove(&claim);
        let Waiting {
            to_sleep, to_wake, ..
        } = waiting.unwrap_or_default();
        for request in to_sleep {
            match &failed {
                None => out.answer(request, Answer::Hibernated, out.ticket()),
                Some(refusal) => out.refuse(request, refusal.clone()),
            }
        }
        let Some(first) = to_wake.first().copied() else {
            return;
        };
        if !self.is_frozen(sandbox) {
            for waker in to_wake {
                self.answer_waker(claim, sandbox, waker, out);
            }
            return;
        }
        let waiting = Waiting {
            to_wake,
            ..Waiting::default()
        };
        self.residing.sleepers.waiting.insert(claim, waiting);
        self.begin_thaw(sandbox, cause(first), out);
    }

    /// A thaw or a restore of a claim's sandbox has ended.
    pub(super) fn woke_up(
        &mut self,
        claim: ClaimId,
        sandbox: SandboxId,
        failed: Option<Refusal>,
        out: &mut Out<'_>,
    ) {
        let waiting = self.residing.sleepers.waiting.remove(&claim);
        for waker in waiting.unwrap_or_default().to_wake {
            match (&failed, waker) {
                (None, waker) => self.answer_waker(claim, sandbox, waker, out),
                (Some(refusal), Waker::Resume(request) | Waker::Locate(request)) => {
                    out.refuse(request, refusal.clone());
                }
            }
        }
    }

    /// The claim ends while somebody waits for its sandbox.
    pub(super) fn refuse_sleepers(&mut self, claim: ClaimId, refusal: &Refusal, out: &mut Out<'_>) {
        let Some(Waiting {
            to_sleep, to_wake, ..
        }) = self.residing.sleepers.waiting.remove(&claim)
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
                let settled = |it: &&super::sandboxes::Sandbox| match it.residency {
                    Residency::Unknown { .. } => false,
                    Residency::OnDisk(_) => !self.conditions.recovering,
                    _ => true,
                };
                let there = sandbox.filter(settled);
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

    pub(super) fn is_frozen(&self, sandbox: SandboxId) -> bool {
        let sandbox = self.sandboxes.get(sandbox);
        sandbox.is_some_and(|it| it.residency == Residency::Frozen)
    }

    fn is_on_disk(&self, sandbox: SandboxId) -> bool {
        let sandbox = self.sandboxes.get(sandbox);
        sandbox.is_some_and(|it| matches!(it.residency, Residency::OnDisk(_)))
    }
}

fn cause(waker: Waker) -> ThawCause {
    match waker {
        Waker::Resume(_) => ThawCause::Asked,
        Waker::Locate(_) => ThawCause::Used,
    }
}
