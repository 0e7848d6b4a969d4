//! The queue of a pool: claims that find it dry wait for a member or for their own creation, as they asked for.

use super::claiming::{pool_unknown, refuse_all};
use super::claims::{Claim, Pending, Stage, Terms};
use super::event::Notice;
use super::ids::{ClaimId, Now, PoolName, RequestId};
use super::limits::RETRY_MS;
use super::node::Node;
use super::out::Out;
use super::pools::{Pool, count};
use super::queue;
use super::record::Op;
use super::refusal::Refusal;
use super::spec::OnEmpty;
use super::timers::Timer;

impl Node {
    /// Gives a claim the oldest running member, or the oldest that is to be thawed. In a dry pool it does what was asked for: refuse, wait, or make one.
    pub(super) fn seek(&mut self, terms: Terms, pending: Pending, out: &mut Out<'_>) {
        // The template may be another since the claim was admitted.
        let pool = self.pools.get(&terms.pool);
        if let Some(Err(refusal)) = pool.map(|pool| pool.may_have(terms.network.as_deref())) {
            return refuse_all(pending.askers(), &refusal, out);
        }
        match self.sandboxes.next_member(&terms.pool) {
            Some((member, source)) => self.assign(terms, pending, member, source, out),
            None => match self.may_wait(&terms, pending.first.on_empty, out.now()) {
                Ok(goes) => {
                    if let Some(claim) = goes {
                        self.drop_claim(claim, &queue::full(), out);
                    }
                    self.enqueue(terms, pending, out);
                }
                Err(refusal) => refuse_all(pending.askers(), &refusal, out),
            },
        }
    }

    /// Rule 7: what a dry pool means. `Some`: that one makes room.
    fn may_wait(
        &self,
        terms: &Terms,
        on_empty: OnEmpty,
        now: Now,
    ) -> Result<Option<ClaimId>, Refusal> {
        self.conditions.may_claim()?;
        let name = &terms.pool;
        let pool = self.pools.get(name).ok_or_else(|| pool_unknown(name))?;
        let empty = || Refusal::PoolEmpty {
            pool: name.to_string(),
            retry_ms: pool.refill_estimate_ms(),
        };
        match on_empty {
            OnEmpty::Fail => Err(pool.failing(now).unwrap_or_else(empty)),
            OnEmpty::Wait { .. } => pool.queue.room_for(&terms.by),
            OnEmpty::Cold => {
                let goes = pool.queue.room_for(&terms.by)?;
                self.may_make(pool, now).map(|()| goes)
            }
        }
    }

    /// A creation for a claim has the same limits as any other.
    fn may_make(&self, pool: &Pool, now: Now) -> Result<(), Refusal> {
        if !self.conditions.runtime_available {
            return Err(Refusal::RuntimeUnavailable { retry_ms: RETRY_MS });
        }
        if let Some(failing) = pool.failing(now) {
            return Err(failing);
        }
        let name = &pool.spec.name;
        let expected = pool.queue.cold_len();
        let of_pool = (self.sandboxes.tally(name).total(), pool.spec.max_total);
        let of_node = (self.sandboxes.len(), self.settings.max_sandboxes);
        for (there, limit) in [of_pool, of_node] {
            if there + expected >= count(limit) {
                return Err(Refusal::PoolFull {
                    pool: name.to_string(),
                    limit,
                    retry_ms: pool.refill_estimate_ms(),
                });
            }
        }
        Ok(())
    }

    fn enqueue(&mut self, terms: Terms, pending: Pending, out: &mut Out<'_>) {
        for asker in pending.askers() {
            if let Some(at) = asker.deadline() {
                self.timers.set(at, Timer::Wait(terms.id, asker.request));
            }
        }
        if let Some(pool) = self.pools.get_mut(&terms.pool) {
            let on_empty = pending.first.on_empty;
            let by = terms.by.clone();
            pool.queue.enter(pending.place, terms.id, by, on_empty);
        }
        self.pools_changed = true;
        let stage = Stage::Queued { pending };
        self.insert_claim(Claim { terms, stage }, out.ticket(), out);
    }

    /// Takes a claim out of its pool's queue; nothing happens to one that does not wait there.
    pub(super) fn leave_queue(&mut self, id: ClaimId) {
        let Some(Claim {
            terms,
            stage: Stage::Queued { pending },
        }) = self.claims.get(&id)
        else {
            return;
        };
        for asker in pending.askers() {
            if let Some(at) = asker.deadline() {
                self.timers.clear(at, Timer::Wait(id, asker.request));
            }
        }
        if let Some(pool) = self.pools.get_mut(&terms.pool) {
            pool.queue.leave(pending.place);
        }
        self.pools_changed = true;
    }

    /// Takes a claim that waits, to serve it.
    pub(super) fn dequeue(&mut self, id: ClaimId) -> Option<(Terms, Pending)> {
        self.leave_queue(id);
        match self.claims.remove(&id)? {
            Claim {
                terms,
                stage: Stage::Queued { pending },
            } => Some((terms, pending)),
            other => {
                self.claims.insert(id, other);
                None
            }
        }
    }

    /// Members became warm: those who wait get them, callers in turn, each one's first come first served.
    pub(super) fn offer(&mut self, pool: &PoolName, out: &mut Out<'_>) {
        while let Some((member, source)) = self.sandboxes.next_member(pool) {
            let next = self.pools.get(pool).and_then(|pool| pool.queue.first());
            let Some((terms, pending)) = next.and_then(|claim| self.dequeue(claim)) else {
                return;
            };
            self.assign(terms, pending, member, source, out);
        }
    }

    /// One request's wait is over; the last one takes the claim with it.
    pub(super) fn wait_ended(&mut self, id: ClaimId, request: RequestId, out: &mut Out<'_>) {
        let Some(Claim {
            terms,
            stage: Stage::Queued { pending },
        }) = self.claims.get_mut(&id)
        else {
            return;
        };
        let Some(pool) = self.pools.get(&terms.pool) else {
            return;
        };
        let refusal = pool.timed_out();
        if pending.joined.0.is_empty() {
            self.drop_claim(id, &refusal, out);
        } else {
            pending.leave(request);
            out.refuse(request, refusal);
        }
    }

    /// The cluster has cordoned the node, or undone that. Members stay: they are claimable when it is undone.
    pub(super) fn cordoned(&mut self, cordoned: bool, out: &mut Out<'_>) {
        if std::mem::replace(&mut self.conditions.cordoned, cordoned) != cordoned {
            out.persist(Op::PutCordon(cordoned));
            out.notice(Notice::Cordoned(cordoned));
            self.refuse_waiting(out);
        }
    }

    /// The disk is full, the node is cordoned or hearthd is going away: nothing will come to those who wait without a sandbox.
    pub(super) fn refuse_waiting(&mut self, out: &mut Out<'_>) {
        let Err(refusal) = self.conditions.may_claim() else {
            return;
        };
        let waiting = self.pools.values().flat_map(|pool| pool.queue.iter());
        let waiting: Vec<_> = waiting.map(|(_, claim)| claim).collect();
        for claim in waiting {
            self.drop_claim(claim, &refusal, out);
        }
    }
}
