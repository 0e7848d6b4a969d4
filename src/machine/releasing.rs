//! How claims end: Release, expiry, refusal, the end of their sandbox. And Renew, which puts the end off.

use super::claiming::refuse_all;
use super::claims::{Claim, Stage, expiry};
use super::event::{ExitCause, Notice};
use super::ids::{ClaimId, Now, RequestId};
use super::node::Node;
use super::out::Out;
use super::record::Op;
use super::refusal::Refusal;
use super::spec::Fence;
use super::timers::Timer;
use super::view::Answer;

impl Node {
    /// Claims.Release. Served during recovery too: what it decides is durable, the destruction waits. Rule 9: absent is
    /// fine, and a release that meets the claim in flight wins, also over one that comes after it.
    pub(super) fn release(
        &mut self,
        request: RequestId,
        fence: Fence,
        claim: ClaimId,
        out: &mut Out<'_>,
    ) {
        let admitted = self.conditions.staying();
        match admitted.and_then(|()| self.fencing.admit(fence, out)) {
            Ok(_) => {
                // Calls have no order among each other: a claim that this release has overtaken is refused when it comes.
                if !self.claims.contains_key(&claim) && !self.tombstones.contains(claim) {
                    self.tombstones.add(claim, out);
                }
                self.end_claim(claim, out);
                out.answer(request, Answer::Released, out.ticket());
            }
            Err(refusal) => out.refuse(request, refusal),
        }
    }

    /// Claims.Renew. Served during recovery too: a holder must be able to keep what it may have.
    pub(super) fn renew(
        &mut self,
        request: RequestId,
        fence: Fence,
        claim: ClaimId,
        ttl_ms: u64,
        out: &mut Out<'_>,
    ) {
        let admitted = self.conditions.staying();
        let admitted = admitted.and_then(|()| self.fencing.admit(fence, out));
        match admitted.and_then(|_| self.move_expiry(claim, ttl_ms, out)) {
            Ok(expires_at) => out.answer(request, Answer::Renewed { expires_at }, out.ticket()),
            Err(refusal) => out.refuse(request, refusal),
        }
    }

    fn move_expiry(
        &mut self,
        id: ClaimId,
        ttl_ms: u64,
        out: &mut Out<'_>,
    ) -> Result<Option<Now>, Refusal> {
        self.stop_expiry(id);
        let absent = self.absent(id);
        let claim = self.claims.get_mut(&id).ok_or(absent)?;
        let moved = match &mut claim.stage {
            Stage::Held { assignment } | Stage::Unknown { assignment, .. } => {
                assignment.expires_at = expiry(ttl_ms, out.now());
                assignment.ticket = out.ticket();
                Ok(assignment.expires_at)
            }
            Stage::Failed { reason, .. } => Err(Refusal::SandboxEnded {
                claim: id.to_string(),
                reason: reason.clone(),
            }),
            _ => Err(Refusal::ClaimPending {
                claim: id.to_string(),
            }),
        };
        self.start_expiry(id);
        if moved.is_ok() {
            self.put_claim(id, out);
        }
        moved
    }

    /// The claim's time is over.
    pub(super) fn expire(&mut self, claim: ClaimId, out: &mut Out<'_>) {
        out.notice(Notice::ClaimExpired { claim });
        self.end_claim(claim, out);
    }

    /// Released: remembered, the sandbox destroyed. Who still waited for it is told so.
    pub(super) fn end_claim(&mut self, id: ClaimId, out: &mut Out<'_>) {
        let Some(claim) = self.remove_claim(id, out) else {
            return;
        };
        self.tombstones.add(id, out);
        let refusal = Refusal::ReleasedInFlight {
            claim: id.to_string(),
        };
        self.refuse_sleepers(id, &refusal, out);
        refuse_all(claim.askers(), &refusal, out);
        if let Some(sandbox) = claim.sandbox() {
            self.doom(sandbox, out);
        }
    }

    /// Refused: as if it had never been asked for. Its sandbox, if any, has been given up already.
    pub(super) fn drop_claim(&mut self, id: ClaimId, refusal: &Refusal, out: &mut Out<'_>) {
        if let Some(claim) = self.remove_claim(id, out) {
            refuse_all(claim.askers(), refusal, out);
        }
    }

    /// Its sandbox has ended by itself, and it may have been acknowledged: it stays, failed, until it is released or
    /// expires.
    pub(super) fn fail_claim(&mut self, id: ClaimId, cause: ExitCause, out: &mut Out<'_>) {
        let Some(claim) = self.claims.get_mut(&id) else {
            return;
        };
        let Some(mut assignment) = claim.assignment().cloned() else {
            return;
        };
        assignment.ticket = out.ticket();
        let reason = reason(cause).to_owned();
        let refusal = Refusal::SandboxEnded {
            claim: id.to_string(),
            reason: reason.clone(),
        };
        refuse_all(claim.askers(), &refusal, out);
        claim.stage = Stage::Failed { assignment, reason };
        self.refuse_sleepers(id, &refusal, out);
        self.put_claim(id, out);
        out.notice(Notice::ClaimFailed { claim: id, cause });
    }

    /// Takes a claim out of every index, and out of the journal.
    pub(super) fn remove_claim(&mut self, id: ClaimId, out: &mut Out<'_>) -> Option<Claim> {
        self.stop_expiry(id);
        self.leave_queue(id);
        let claim = self.claims.remove(&id)?;
        if claim.assignment().is_some() {
            out.persist(Op::DeleteClaim(id));
        }
        let after = out.ticket();
        out.claim_changed(self.view_of(&claim), true, after);
        Some(claim)
    }

    /// Persists a claim as it is now and tells watchers.
    pub(super) fn put_claim(&self, id: ClaimId, out: &mut Out<'_>) {
        let Some(claim) = self.claims.get(&id) else {
            return;
        };
        if let Some(record) = claim.record() {
            out.persist(Op::PutClaim(record));
        }
        let after = out.ticket();
        out.claim_changed(self.view_of(claim), false, after);
    }

    /// Sets the timer of a claim whose expiry runs.
    pub(super) fn start_expiry(&mut self, id: ClaimId) {
        let claim = self.claims.get(&id).and_then(Claim::running);
        if let Some(at) = claim.and_then(|it| it.expires_at) {
            self.timers.set(at, Timer::Expire(id));
        }
    }

    /// Clears it: before the claim's expiry or stage changes.
    pub(super) fn stop_expiry(&mut self, id: ClaimId) {
        let claim = self.claims.get(&id).and_then(Claim::running);
        if let Some(at) = claim.and_then(|it| it.expires_at) {
            self.timers.clear(at, Timer::Expire(id));
        }
    }

    /// Why a claim is not there.
    pub(super) fn absent(&self, id: ClaimId) -> Refusal {
        let claim = id.to_string();
        match self.tombstones.contains(id) {
            true => Refusal::ClaimReleased { claim },
            false => Refusal::ClaimUnknown { claim },
        }
    }
}

/// As callers see it.
fn reason(cause: ExitCause) -> &'static str {
    match cause {
        ExitCause::Exited => "SANDBOX_EXITED",
        ExitCause::OutOfMemory => "OOM",
        ExitCause::GuestLost => "GUEST_LOST",
        ExitCause::DataLost => "DATA_LOSS",
        ExitCause::NetworkLost => "NETWORK_LOST",
    }
}
