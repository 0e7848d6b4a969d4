//! The cold start of a claim whose sandbox does not come back from the disk, where the claim or its template says so.
//!
//! ```text
//!  Restore ──lost──▶ Replace ──made, told──▶ one commit: the claim has the fresh sandbox, the old one goes
//!                       │ it can't be made now, or fails
//!                       └▶ OnDisk, Idle: the next use tries all of it again
//! ```
//! Until that commit the claim is its old sandbox's, and the fresh one's record says that it is being made, so a restart
//! undoes it. Who waits for the old one gets the fresh one. A fresh sandbox has the claim's network policy and nothing else
//! of its own: hearth keeps no environment, file or secret of a claim, so rpc lets only claims without them ask for this.

use super::claims::{Assignment, Stage};
use super::event::{CreateFailure, Effect, ExitCause, GuestFailure, Notice};
use super::ids::{ClaimId, Now, PoolName, SandboxId};
use super::limits::{NODE_PARALLEL_CREATES, RETRY_MS};
use super::node::Node;
use super::out::Out;
use super::pools::count;
use super::refusal::{Refusal, bounded};
use super::sandboxes::{Operation, Residency};
use super::spec::OnDataLoss;

/// What the status of a claim says that was started cold.
pub(super) const REASON: &str = "DATA_LOSS";

impl Node {
    /// The image of a claim's sandbox will never come back.
    pub(super) fn image_lost(&mut self, claim: ClaimId, old: SandboxId, out: &mut Out<'_>) {
        let Some(pool) = self.pool_to_start_in(claim) else {
            self.sandboxes
                .change(old, |sandbox| sandbox.residency = Residency::Gone);
            self.doom(old, out);
            return self.fail_claim(claim, ExitCause::DataLost, out);
        };
        let may = self.may_replace(&pool, out.now());
        match may.then(|| self.create(&pool, Some(claim), out)).flatten() {
            Some(by) => {
                self.set_operation(old, Operation::Replace { by });
                self.pools_changed = true;
                self.show_claim_of(old, out);
            }
            None => {
                let why = "its image is lost, and no fresh sandbox can be made now";
                self.not_replaced(claim, old, why, out);
            }
        }
    }

    /// `None`: it is not to be started cold, or can't ever be.
    fn pool_to_start_in(&self, claim: ClaimId) -> Option<PoolName> {
        let terms = &self.claims.get(&claim)?.terms;
        let pool = self.pools.get(&terms.pool)?;
        let may = pool.may_have(terms.network.as_deref()).is_ok();
        (may && terms.on_data_loss == OnDataLoss::Cold).then(|| terms.pool.clone())
    }

    /// The limits of any creation, but for the pool's own size: it takes the place of one that does not run.
    fn may_replace(&self, pool: &PoolName, now: Now) -> bool {
        let failing = self.pools.get(pool).and_then(|pool| pool.failing(now));
        self.conditions.may_create()
            && failing.is_none()
            && self.sandboxes.creating() < NODE_PARALLEL_CREATES
            && self.sandboxes.len() < count(self.settings.max_sandboxes)
    }

    /// The sandbox of this claim that `by` is to replace.
    pub(super) fn replaced_by(&self, claim: ClaimId, by: SandboxId) -> Option<SandboxId> {
        let old = self.claims.get(&claim)?.sandbox()?;
        let operation = self.sandboxes.get(old)?.operation;
        (operation == Operation::Replace { by }).then_some(old)
    }

    /// The fresh sandbox's creation has ended.
    pub(super) fn replacement_made(
        &mut self,
        claim: ClaimId,
        old: SandboxId,
        fresh: SandboxId,
        result: Result<(), CreateFailure>,
        out: &mut Out<'_>,
    ) {
        if let Err(failure) = result {
            self.doom(fresh, out);
            let why = match failure {
                CreateFailure::RuntimeUnavailable => "containerd is not reachable".to_owned(),
                CreateFailure::Template(detail) => detail,
            };
            return self.not_replaced(claim, old, &why, out);
        }
        let terms = self.claims.get(&claim).map(|it| &it.terms);
        let network = terms.and_then(|terms| self.policy_to_apply(terms, fresh));
        self.set_operation(fresh, Operation::Personalize);
        out.push(Effect::Personalize {
            sandbox: fresh,
            claim,
            request: None,
            thaw: false,
            network,
        });
    }

    /// The fresh sandbox's guest has answered.
    pub(super) fn replacement_told(
        &mut self,
        claim: ClaimId,
        old: SandboxId,
        fresh: SandboxId,
        result: Result<(), GuestFailure>,
        out: &mut Out<'_>,
    ) {
        match result {
            Ok(()) => self.take_over(claim, old, fresh, out),
            Err(GuestFailure::Lost(why) | GuestFailure::Refused(why)) => {
                self.doom(fresh, out);
                self.not_replaced(claim, old, &why, out);
            }
        }
    }

    /// One commit: from here on it is the claim's.
    fn take_over(&mut self, id: ClaimId, old: SandboxId, fresh: SandboxId, out: &mut Out<'_>) {
        let Some(Stage::Held { assignment }) = self.claims.get(&id).map(|it| &it.stage) else {
            return;
        };
        let Some(made) = self.sandboxes.get(fresh) else {
            return;
        };
        let assignment = Assignment {
            sandbox: fresh,
            generation: made.generation,
            source: made.made_as(),
            ticket: out.ticket(),
            cold_starts: assignment.cold_starts.saturating_add(1),
            ..assignment.clone()
        };
        self.put_sandbox(fresh, |sandbox| sandbox.operation = Operation::Idle, out);
        if let Some(claim) = self.claims.get_mut(&id) {
            claim.stage = Stage::Held { assignment };
        }
        self.put_claim(id, out);
        self.set_operation(old, Operation::Idle);
        self.doom(old, out);
        out.notice(Notice::ColdStarted(id, fresh));
        self.woke_up(id, fresh, None, out);
    }

    /// Not now. The old one stays as it is, and who waits may come again.
    pub(super) fn not_replaced(
        &mut self,
        claim: ClaimId,
        old: SandboxId,
        why: &str,
        out: &mut Out<'_>,
    ) {
        self.set_operation(old, Operation::Idle);
        self.pools_changed = true;
        let refusal = Refusal::ResumeFailed {
            claim: claim.to_string(),
            detail: bounded(why.to_owned()),
            retry_ms: RETRY_MS,
        };
        self.woke_up(claim, old, Some(refusal), out);
        self.show_claim_of(old, out);
    }
}
