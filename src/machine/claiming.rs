//! Claim, from the request to the acknowledgement or the refusal.

use super::claims::{Asker, Askers, Assignment, Claim, Pending, Seen, Stage, Terms, expiry, grant};
use super::event::{Effect, GuestFailure};
use super::ids::{ClaimId, PoolName, RequestId, SandboxId, Ticket};
use super::limits::{CLAIM_ATTEMPTS, CLAIMS, RETRY_MS};
use super::node::Node;
use super::out::Out;
use super::pools::Pool;
use super::record::{Op, Owner};
use super::refusal::{Refusal, bounded};
use super::sandboxes::{Operation, Residency, Sandbox};
use super::spec::{ClaimRequest, Fence, OnDataLoss, OnEmpty};
use super::timers::Timer;
use super::view::{Answer, Source};

impl Node {
    /// Claims.Claim.
    pub(super) fn claim(
        &mut self,
        request: RequestId,
        fence: Fence,
        asked: ClaimRequest,
        out: &mut Out<'_>,
    ) {
        if let Err(refusal) = self.try_claim(request, fence, asked, out) {
            out.refuse(request, refusal);
        }
    }

    fn try_claim(
        &mut self,
        request: RequestId,
        fence: Fence,
        asked: ClaimRequest,
        out: &mut Out<'_>,
    ) -> Result<(), Refusal> {
        self.conditions.serving()?;
        let asker = Asker {
            request,
            on_empty: asked.on_empty,
            since: out.now(),
            not_before: self.fencing.admit(fence, out)?,
        };
        let id = asked.claim_id;
        if self.tombstones.contains(id) {
            let claim = id.to_string();
            return Err(Refusal::ClaimReleased { claim });
        }
        if self.claims.contains_key(&id) {
            return self.join(&asked, asker, out);
        }
        self.admit(&asked)?;
        let pending = self.pending(asker, Askers::default());
        let template = self.pools.get(&asked.pool).map(|pool| &pool.template);
        let on_data_loss = template.map_or(OnDataLoss::Fail, |it| it.on_data_loss);
        self.seek(Terms::of(asked, on_data_loss), pending, out);
        Ok(())
    }

    /// May a claim with a new id be served at all?
    fn admit(&self, asked: &ClaimRequest) -> Result<(), Refusal> {
        let pool = self.pools.get(&asked.pool);
        let pool = pool.ok_or_else(|| pool_unknown(&asked.pool))?;
        pool.may_have(asked.network_policy.as_ref())?;
        self.conditions.may_claim()?;
        if self.claims.len() >= CLAIMS {
            return Err(Refusal::QueueFull {
                queue: "claims",
                retry_ms: RETRY_MS,
            });
        }
        Ok(())
    }

    /// Rules 1 to 3: the claim is there; the same content gives the same answer, now or when there is one.
    fn join(
        &mut self,
        asked: &ClaimRequest,
        asker: Asker,
        out: &mut Out<'_>,
    ) -> Result<(), Refusal> {
        let Some(claim) = self.claims.get_mut(&asked.claim_id) else {
            return Ok(());
        };
        let id = asked.claim_id;
        if let Some(field) = claim.terms.content.first_difference(&asked.content) {
            return Err(Refusal::ClaimContentDiffers {
                claim: id.to_string(),
                field: field.to_owned(),
            });
        }
        // Of a recovered claim it is only known as far as its record tells; the same content has the same.
        claim.terms.ttl_ms = asked.ttl_ms;
        if matches!(claim.stage, Stage::Unheld { .. }) {
            claim.terms.by = asked.by.clone();
        }
        match &mut claim.stage {
            Stage::Queued { pending } => {
                let wait = asker.deadline().map(|at| (at, asker.request));
                pending.join(asker)?;
                if let Some((at, request)) = wait {
                    self.timers.set(at, Timer::Wait(id, request));
                }
            }
            Stage::Making { pending, .. } | Stage::Assigned { pending, .. } => {
                pending.join(asker)?;
            }
            Stage::Held { assignment } => {
                let after = assignment.ticket.max(asker.not_before);
                out.answer(asker.request, granted(id, assignment), after);
            }
            Stage::Failed { reason, .. } => {
                return Err(Refusal::SandboxEnded {
                    claim: id.to_string(),
                    reason: reason.clone(),
                });
            }
            Stage::Unknown { assignment, askers } => {
                let sandbox = assignment.sandbox;
                askers.join_recovery(asker)?;
                self.ask(sandbox, out);
            }
            Stage::Unheld { assignment } => {
                let assignment = assignment.clone();
                let pending = self.pending(asker, Askers::default());
                self.personalize_again(id, assignment, pending, out);
            }
        }
        Ok(())
    }

    /// A claim begins to be served: it takes its place among those that wait.
    pub(super) fn pending(&mut self, first: Asker, joined: Askers) -> Pending {
        self.arrivals += 1;
        Pending::of(first, joined, self.arrivals)
    }

    /// The transfer of ownership: durable, while the guest is personalized at the same time.
    pub(super) fn assign(
        &mut self,
        terms: Terms,
        pending: Pending,
        member: SandboxId,
        source: Source,
        out: &mut Out<'_>,
    ) {
        let id = terms.id;
        let pause_ms = self.settings.refill_yield_ms;
        self.yielding.assigned(out.now(), pause_ms);
        let generation = self.sandboxes.get(member).map_or(0, |it| it.generation);
        let take = |sandbox: &mut Sandbox| {
            sandbox.owner = Owner::Claimed(id);
            sandbox.residency = Residency::Running;
            sandbox.operation = Operation::Personalize;
        };
        self.put_sandbox(member, take, out);
        out.push(Effect::Personalize {
            sandbox: member,
            claim: id,
            request: Some(pending.first.request),
            thaw: source == Source::Thawed,
            network: self.policy_to_apply(&terms, member),
        });
        let assignment = Assignment {
            sandbox: member,
            generation,
            source,
            claimed_at: out.now(),
            expires_at: expiry(terms.ttl_ms, out.now()),
            ticket: out.ticket(),
            first: member,
            cold_starts: 0,
        };
        let stage = Stage::Assigned {
            pending,
            assignment,
        };
        let claim = Claim { terms, stage };
        if let Some(record) = claim.record() {
            out.persist(Op::PutClaim(record));
        }
        self.insert_claim(claim, out.ticket(), out);
    }

    /// A recovered claim whose guest holds nothing: the same sandbox is personalized for the retry. What is durable of
    /// it stands.
    pub(super) fn personalize_again(
        &mut self,
        id: ClaimId,
        assignment: Assignment,
        pending: Pending,
        out: &mut Out<'_>,
    ) {
        self.stop_expiry(id);
        let sandbox = assignment.sandbox;
        self.set_operation(sandbox, Operation::Personalize);
        let claim = self.claims.get(&id);
        let network = claim.and_then(|claim| self.policy_to_apply(&claim.terms, sandbox));
        out.push(Effect::Personalize {
            sandbox,
            claim: id,
            request: Some(pending.first.request),
            thaw: false,
            network,
        });
        self.change_stage(
            id,
            Stage::Assigned {
                pending,
                assignment,
            },
            out,
        );
    }

    /// The guest has answered. An answer for a sandbox that has been given up meanwhile means nothing.
    pub(super) fn personalized(
        &mut self,
        sandbox: SandboxId,
        id: ClaimId,
        result: Result<(), GuestFailure>,
        out: &mut Out<'_>,
    ) {
        let expected = self.sandboxes.get(sandbox).is_some_and(|it| {
            it.owner == Owner::Claimed(id) && it.operation == Operation::Personalize
        });
        if !expected {
            return;
        }
        if let Some(old) = self.replaced_by(id, sandbox) {
            return self.replacement_told(id, old, sandbox, result, out);
        }
        match result {
            Ok(()) => self.acknowledge(id, sandbox, out),
            Err(GuestFailure::Lost(why)) => {
                self.doom(sandbox, out);
                self.try_next_member(id, why, out);
            }
            Err(GuestFailure::Refused(detail)) => {
                self.doom(sandbox, out);
                let detail = bounded(detail);
                self.drop_claim(id, &Refusal::PersonalizationRefused { detail }, out);
            }
        }
    }

    /// Rule 6: the guest has confirmed; the answer waits only for the commit of the assignment.
    fn acknowledge(&mut self, id: ClaimId, sandbox: SandboxId, out: &mut Out<'_>) {
        let Some((terms, pending, mut assignment)) = self.take_assigned(id) else {
            return;
        };
        self.set_operation(sandbox, Operation::Idle);
        assignment.expires_at = expiry(terms.ttl_ms, out.now());
        for asker in pending.askers() {
            let after = assignment.ticket.max(asker.not_before);
            out.answer(asker.request, granted(id, &assignment), after);
        }
        let stage = Stage::Held { assignment };
        self.confirm(Claim { terms, stage }, out);
    }

    /// The guest's word for it is known: to the journal with the next commit there is.
    pub(super) fn confirm(&mut self, claim: Claim, out: &mut Out<'_>) {
        if let Some(record) = claim.record() {
            out.push(Effect::PersistLazily(Op::PutClaim(record)));
        }
        let after = claim.assignment().map_or(Ticket(0), |held| held.ticket);
        let id = claim.terms.id;
        self.insert_claim(claim, after, out);
        self.start_expiry(id);
    }

    /// The member is lost and being destroyed: the same requests get the next one, within their budget.
    pub(super) fn try_next_member(&mut self, id: ClaimId, why: String, out: &mut Out<'_>) {
        let shown = self.claims.get(&id).map(|claim| self.view_of(claim));
        let (Some(shown), Some((terms, mut pending, _))) = (shown, self.take_assigned(id)) else {
            return;
        };
        pending.attempts += 1;
        let dry = self.sandboxes.next_member(&terms.pool).is_none();
        let over =
            pending.attempts >= CLAIM_ATTEMPTS || (dry && pending.first.on_empty == OnEmpty::Fail);
        if over {
            let pool = self.pools.get(&terms.pool);
            let refusal = Refusal::GuestFailed {
                pool: terms.pool.to_string(),
                attempts: pending.attempts,
                last: bounded(why),
                retry_ms: pool.map_or(RETRY_MS, Pool::refill_estimate_ms),
            };
            refuse_all(pending.askers(), &refusal, out);
        } else {
            self.seek(terms, pending, out);
        }
        let there = self.claims.get(&id);
        if there.is_none_or(|claim| claim.assignment().is_none()) {
            out.persist(Op::DeleteClaim(id));
        }
        if there.is_none() {
            let after = out.ticket();
            out.claim_changed(shown, true, after);
        }
    }

    fn take_assigned(&mut self, id: ClaimId) -> Option<(Terms, Pending, Assignment)> {
        match self.claims.remove(&id)? {
            Claim {
                terms,
                stage:
                    Stage::Assigned {
                        pending,
                        assignment,
                    },
            } => Some((terms, pending, assignment)),
            other => {
                self.claims.insert(id, other);
                None
            }
        }
    }

    /// Puts a claim in its (new) stage and tells watchers.
    pub(super) fn insert_claim(&mut self, claim: Claim, after: Ticket, out: &mut Out<'_>) {
        out.claim_changed(self.view_of(&claim), false, after);
        self.claims.insert(claim.terms.id, claim);
    }

    /// Puts a claim whose durable state stands in a new stage.
    pub(super) fn change_stage(&mut self, id: ClaimId, stage: Stage, out: &mut Out<'_>) {
        if let Some(claim) = self.claims.remove(&id) {
            let claim = Claim { stage, ..claim };
            let after = claim.assignment().map_or(out.ticket(), |held| held.ticket);
            self.insert_claim(claim, after, out);
        }
    }

    /// A claim as callers see it.
    pub(super) fn view_of(&self, claim: &Claim) -> super::view::ClaimView {
        let sandbox = claim.sandbox().and_then(|id| self.sandboxes.get(id));
        let seen = match sandbox {
            None => Seen::NotYet,
            Some(it) if matches!(it.residency, Residency::Unknown { .. }) => Seen::NotYet,
            Some(it) if it.is_to_sleep() => Seen::Asleep,
            Some(_) => Seen::Awake,
        };
        let image = sandbox.and_then(Sandbox::image);
        let image_bytes = image.map_or(0, |image| image.size_bytes);
        super::view::ClaimView {
            image_bytes,
            ..claim.view(seen)
        }
    }
}

/// The answer to a Claim.
pub(super) fn granted(claim: ClaimId, assignment: &Assignment) -> Answer {
    Answer::Granted(grant(claim, assignment))
}

pub(super) fn pool_unknown(pool: &PoolName) -> Refusal {
    Refusal::PoolUnknown {
        pool: pool.to_string(),
    }
}

/// Refuses every request that waits.
pub(super) fn refuse_all<'a>(
    askers: impl IntoIterator<Item = &'a Asker>,
    refusal: &Refusal,
    out: &mut Out<'_>,
) {
    for asker in askers {
        out.refuse(asker.request, refusal.clone());
    }
}
