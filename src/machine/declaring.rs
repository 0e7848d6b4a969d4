//! SetPools: the whole set at once, under its generation.

use super::claiming::pool_unknown;
use super::ids::{PoolName, RequestId, SandboxId};
use super::node::Node;
use super::out::Out;
use super::pools::{Pool, count};
use super::record::Op;
use super::refusal::Refusal;
use super::spec::{Fence, PoolSet, PoolSpec};
use super::view::Answer;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a declared generation means for what is in force.
enum Step {
    Same,
    Newer,
}

impl Node {
    /// Pools.SetPools. Takes down as well as up: allowed when the disk reserve is reached.
    pub(super) fn set_pools(
        &mut self,
        request: RequestId,
        fence: Fence,
        set: PoolSet,
        out: &mut Out<'_>,
    ) {
        let generation = set.generation;
        match self.try_set_pools(fence, set, out) {
            Ok(()) => out.answer(request, Answer::PoolsSet { generation }, out.ticket()),
            Err(refusal) => out.refuse(request, refusal),
        }
    }

    fn try_set_pools(
        &mut self,
        fence: Fence,
        mut set: PoolSet,
        out: &mut Out<'_>,
    ) -> Result<(), Refusal> {
        self.conditions.serving()?;
        self.fencing.admit(fence, out)?;
        self.keep_handlers(&mut set);
        if let Step::Same = self.judge_set(&set)? {
            return Ok(());
        }
        self.resolve_handlers(&mut set)?;
        out.persist(Op::PutPools(set.clone()));
        self.pools_generation = set.generation;
        self.pools_changed = true;
        let declared: BTreeMap<_, _> = set.pools.into_iter().map(|s| (s.name.clone(), s)).collect();
        let left_out = self
            .pools
            .keys()
            .filter(|name| !declared.contains_key(name));
        for name in left_out.cloned().collect::<Vec<_>>() {
            self.withdraw(&name, out);
        }
        for (name, spec) in declared {
            match self.pools.get(&name) {
                Some(pool) if pool.spec.generation == spec.generation => {}
                Some(_) => self.revise(spec, out),
                None => drop(self.pools.insert(name.clone(), Pool::declared(spec))),
            }
            self.judge_class(&name, out);
        }
        Ok(())
    }

    /// The generation rules, for the set and for each pool in it.
    fn judge_set(&self, set: &PoolSet) -> Result<Step, Refusal> {
        let in_force = self.pools.values().map(|pool| &pool.spec);
        let same = in_force.eq(&set.pools);
        let step = judge("set", set.generation, self.pools_generation, same)?;
        for spec in &set.pools {
            if let Some(pool) = self.pools.get(&spec.name) {
                let (name, current) = (spec.name.as_str(), pool.spec.generation);
                judge(name, spec.generation, current, *spec == pool.spec)?;
            }
        }
        Ok(step)
    }

    /// A pool that is left out: unclaimed members go, claims live on, who waits is refused.
    fn withdraw(&mut self, name: &PoolName, out: &mut Out<'_>) {
        let Some(pool) = self.pools.get(name) else {
            return;
        };
        for (_, claim) in pool.queue.iter().collect::<Vec<_>>() {
            self.drop_claim(claim, &pool_unknown(name), out);
        }
        self.pools.remove(name);
        for member in self.unclaimed(name) {
            self.doom(member, out);
        }
    }

    /// A pool's generation rose. Members of the same template move to the new generation; with another template they
    /// are outdated, and the breaker starts anew. Members beyond what is now declared go.
    fn revise(&mut self, spec: PoolSpec, out: &mut Out<'_>) {
        let name = spec.name.clone();
        let Some(pool) = self.pools.get_mut(&name) else {
            return;
        };
        let (before, after) = (pool.spec.generation, spec.generation);
        let same_template = pool.spec.template == spec.template;
        if !same_template {
            pool.template = Arc::new(spec.template.clone());
            pool.network = Arc::new(spec.template.network_policy.clone());
            pool.breaker = super::breaker::Breaker::default();
        }
        pool.spec = spec;
        for id in self.unclaimed(&name) {
            let Some(generation) = self.sandboxes.get(id).map(|it| it.generation) else {
                continue;
            };
            if same_template && generation == before {
                self.put_sandbox(id, |sandbox| sandbox.generation = after, out);
            } else if self
                .pools
                .get(&name)
                .is_some_and(|pool| !pool.keeps(generation))
                || self.lacks_interface(id)
            {
                self.doom(id, out);
            }
        }
        self.refuse_policies(&name, out);
        for id in self.surplus(&name) {
            self.doom(id, out);
        }
    }

    /// Everything of a pool that belongs to no claim: those being made, those not settled, then the oldest first.
    pub(super) fn unclaimed(&self, name: &PoolName) -> Vec<SandboxId> {
        let tally = self.sandboxes.tally(name);
        let asleep = tally.frozen.iter().chain(&tally.shifting);
        let claimable: BTreeSet<_> = tally.warm.iter().chain(asleep).collect();
        let unready = tally.refilling.iter().chain(&tally.unsettled);
        unready.chain(claimable).copied().collect()
    }

    /// Members beyond `min_warm`, or beyond what `max_total` leaves room for.
    fn surplus(&self, name: &PoolName) -> Vec<SandboxId> {
        let Some(pool) = self.pools.get(name) else {
            return Vec::new();
        };
        let tally = self.sandboxes.tally(name);
        let wanted = count(pool.spec.min_warm).saturating_add(pool.queue.waiters());
        let room = count(pool.spec.max_total).saturating_sub(tally.claimed);
        let surplus = tally.members().saturating_sub(wanted.min(room));
        self.unclaimed(name).into_iter().take(surplus).collect()
    }
}

/// Lower is stale; equal must be the same.
fn judge(what: &str, declared: u64, current: u64, same: bool) -> Result<Step, Refusal> {
    let what = what.to_owned();
    match declared.cmp(&current) {
        Ordering::Less => Err(Refusal::GenerationStale { what, current }),
        Ordering::Equal if !same => Err(Refusal::GenerationConflict { what, current }),
        Ordering::Equal => Ok(Step::Same),
        Ordering::Greater => Ok(Step::Newer),
    }
}
