//! Which creation starts next: node-wide slots, shared fairly. Claims that wait come first, then pools that are short;
//! in each class the pool after the one that was served last.

use super::claims::{Claim, Stage};
use super::event::{CreateFailure, Effect, Notice};
use super::ids::{ClaimId, Now, PoolName, SandboxId};
use super::limits::NODE_PARALLEL_CREATES;
use super::node::Node;
use super::out::Out;
use super::pools::{Pool, count};
use super::record::{Op, Owner};
use super::sandboxes::{Operation, Residency, Sandbox, Tally};
use super::timers::Timer;
use std::ops::Bound::{Excluded, Unbounded};

impl Node {
    /// Starts every creation that is wanted and allowed. At most [`NODE_PARALLEL_CREATES`] turns of a loop over the
    /// declared pools.
    pub(super) fn start_creations(&mut self, out: &mut Out<'_>) {
        while self.may_create()
            && let Some((pool, urgent)) = self.next_to_fill(out.now())
        {
            let cold = self.pools.get(&pool).and_then(|it| it.queue.first_cold());
            let Some(sandbox) = self.create(&pool, cold, out) else {
                return;
            };
            if let Some(claim) = cold {
                self.make_for(claim, sandbox, out);
            }
            if !urgent {
                self.yielding.refilled();
            }
            self.last_filled = Some(pool);
        }
        let until = self.yielding.until(out.now());
        if let Some(before) = std::mem::replace(&mut self.yielding.timer, until) {
            self.timers.clear(before, Timer::Quiet);
        }
        if let Some(until) = until {
            self.timers.set(until, Timer::Quiet);
        }
    }

    fn may_create(&self) -> bool {
        self.conditions.may_fill()
            && self.sandboxes.creating() < NODE_PARALLEL_CREATES
            && self.sandboxes.len() < count(self.settings.max_sandboxes)
    }

    /// The pool whose turn it is, and whether a claim waits for it.
    fn next_to_fill(&self, now: Now) -> Option<(PoolName, bool)> {
        let in_turn = |wants: fn(&Pool, &Tally) -> bool| {
            let chosen = |(name, pool): &(&PoolName, &Pool)| {
                let tally = self.sandboxes.tally(name);
                wants(pool, tally) && pool.may_create(tally, now)
            };
            let mut ring = self.ring();
            ring.find(chosen).map(|(name, _)| name.clone())
        };
        if let Some(urgent) = in_turn(Pool::is_urgent) {
            return Some((urgent, true));
        }
        let steps_aside = self.yielding.until(now).is_some();
        let short = || in_turn(Pool::is_short).map(|pool| (pool, false));
        (!steps_aside).then(short)?
    }

    /// All pools, beginning after the one served last.
    fn ring(&self) -> impl Iterator<Item = (&PoolName, &Pool)> {
        let start = match &self.last_filled {
            Some(last) => Excluded(last),
            None => Unbounded,
        };
        let after = self.pools.range((start, Unbounded));
        after.chain(self.pools.iter()).take(self.pools.len())
    }

    /// The intent, then the effect.
    pub(super) fn create(
        &mut self,
        name: &PoolName,
        cold: Option<ClaimId>,
        out: &mut Out<'_>,
    ) -> Option<SandboxId> {
        let pool = self.pools.get_mut(name)?;
        let id = self.sequence.take(out)?;
        pool.breaker.creation_started(id);
        let sandbox = Sandbox {
            id,
            pool: name.clone(),
            generation: pool.spec.generation,
            created_at: out.now(),
            template: Some(pool.template.clone()),
            network: pool.network.clone(),
            owner: cold.map_or(Owner::Pool, Owner::Claimed),
            residency: Residency::Creating,
            operation: Operation::Create,
            known_since: self.listing.round,
            cloned: false,
        };
        out.persist(Op::PutSandbox(sandbox.record()));
        out.push(Effect::Create {
            sandbox: id,
            pool: name.clone(),
            generation: pool.spec.generation,
            template: pool.template.clone(),
            claimed: cold.is_some(),
            after: out.ticket(),
        });
        self.sandboxes.insert(sandbox);
        self.pools_changed = true;
        Some(id)
    }

    /// A cold claim leaves the queue for its own sandbox.
    fn make_for(&mut self, claim: ClaimId, sandbox: SandboxId, out: &mut Out<'_>) {
        if let Some((terms, pending)) = self.dequeue(claim) {
            let stage = Stage::Making { pending, sandbox };
            let after = out.ticket();
            self.insert_claim(Claim { terms, stage }, after, out);
        }
    }

    /// Breaker and estimate of the pool, if the sandbox was made from the template in force.
    pub(super) fn learn_from_creation(
        &mut self,
        id: SandboxId,
        result: &Result<(), CreateFailure>,
        out: &mut Out<'_>,
    ) {
        let Some(sandbox) = self.sandboxes.get(id) else {
            return;
        };
        let name = sandbox.pool.clone();
        let pool = self.pools.get_mut(&name);
        let Some(pool) = pool.filter(|pool| pool.spec.generation == sandbox.generation) else {
            return;
        };
        let now = out.now();
        match result {
            Ok(()) => {
                pool.estimate.measured(now.since(sandbox.created_at));
                if pool.breaker.creation_succeeded() {
                    out.notice(Notice::BreakerClosed { pool: name });
                }
                return;
            }
            Err(CreateFailure::RuntimeUnavailable) => pool.breaker.creation_interrupted(id, now),
            Err(CreateFailure::Template(reason)) => {
                if pool.breaker.creation_failed(id, reason, now) {
                    self.breaker_opened(&name, out);
                }
            }
        }
        let wakes_at = self.pools.get(&name).and_then(|it| it.breaker.wakes_at());
        if let Some(at) = wakes_at {
            self.timers.set(at, Timer::Refill);
        }
    }

    /// Cold claims that wait are told; those with a creation in flight see how it ends.
    fn breaker_opened(&mut self, name: &PoolName, out: &mut Out<'_>) {
        let Some(pool) = self.pools.get(name) else {
            return;
        };
        out.notice(Notice::BreakerOpened {
            pool: name.clone(),
            reason: pool.breaker.reason().to_owned(),
        });
        self.refuse_cold(name, out);
    }

    /// What is made for claims that wait is not made any more: they are told.
    pub(super) fn refuse_cold(&mut self, name: &PoolName, out: &mut Out<'_>) {
        let Some(pool) = self.pools.get(name) else {
            return;
        };
        let Some(failing) = pool.failing(out.now()) else {
            return;
        };
        for claim in pool.queue.cold() {
            self.drop_claim(claim, &failing, out);
        }
    }
}
