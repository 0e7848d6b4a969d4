//! Reads. They need no epoch, and what they show is durable when they answer.

use super::ids::{ClaimId, PoolName, RequestId};
use super::limits::PAGE;
use super::node::Node;
use super::out::Out;
use super::sandboxes::Sandbox;
use super::view::{Answer, ClaimView, NodeView, PoolView};
use std::ops::Bound::{Excluded, Unbounded};

impl Node {
    /// Claims.Get.
    pub(super) fn get(&self, request: RequestId, id: ClaimId, out: &mut Out<'_>) {
        let Some(claim) = self.claims.get(&id) else {
            return out.refuse(request, self.absent(id));
        };
        let after = claim.assignment().map_or(out.ticket(), |it| it.ticket);
        let view = Box::new(self.view_of(claim));
        out.answer(request, Answer::Claim(view), after);
    }

    /// Claims.List.
    pub(super) fn list(
        &self,
        request: RequestId,
        pool: Option<PoolName>,
        after: Option<ClaimId>,
        limit: usize,
        out: &mut Out<'_>,
    ) {
        let start = after.map_or(Unbounded, Excluded);
        let range = self.claims.range((start, Unbounded)).map(|(_, it)| it);
        let mut found = range.filter(|it| pool.as_ref().is_none_or(|pool| *pool == it.terms.pool));
        let page = found.by_ref().take(limit.clamp(1, PAGE));
        let claims = page.map(|claim| self.view_of(claim)).collect();
        let more = found.next().is_some();
        let after = out.ticket();
        out.answer(request, Answer::Claims { claims, more }, after);
    }

    /// Pools.GetPools.
    pub(super) fn get_pools(&self, request: RequestId, out: &mut Out<'_>) {
        let answer = Answer::Pools {
            generation: self.pools_generation,
            pools: self.pool_views(),
        };
        out.answer(request, answer, out.ticket());
    }

    /// The whole state.
    pub(super) fn inspect(&self, request: RequestId, out: &mut Out<'_>) {
        let view = NodeView {
            phase: self.phase().as_str(),
            epoch: self.fencing.epoch(),
            pools_generation: self.pools_generation,
            pools: self.pool_views(),
            sandboxes: self.sandboxes.iter().map(Sandbox::view).collect(),
            claims: self.claim_views(),
            tombstones: self.tombstones.len(),
            orphans: self.orphans.iter().copied().collect(),
            drain: self.drain_view(),
            cordoned: self.conditions.cordoned,
        };
        out.answer(request, Answer::Node(Box::new(view)), out.ticket());
    }

    /// The declared pools as they stand, ordered by name. For the driver's gauges, and for the reads above.
    #[must_use]
    pub fn pool_views(&self) -> Vec<PoolView> {
        let pools = self.pools.values();
        pools
            .map(|pool| pool.view(&self.sandboxes, &self.rules))
            .collect()
    }

    /// The claims as they stand, ordered by id. Right after [`Node::recover`] all of it is durable: what watchers begin
    /// with.
    #[must_use]
    pub fn claim_views(&self) -> Vec<ClaimView> {
        self.claims.values().map(|it| self.view_of(it)).collect()
    }

    /// Sandboxes that are on the disk, and the bytes of their images.
    #[must_use]
    pub fn images(&self) -> (usize, u64) {
        self.sandboxes.images()
    }

    /// Sandboxes found outside without a record.
    #[must_use]
    pub fn orphan_count(&self) -> usize {
        self.orphans.len()
    }
}
