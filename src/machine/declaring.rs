//! SetPools: the whole set at once, under its generation. And the pools that WarmPool objects declare, beside it: neither
//! side changes or removes the other's.

use super::claiming::pool_unknown;
use super::event::Notice;
use super::ids::{PoolName, RequestId, SandboxId};
use super::limits::POOLS;
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
        self.leaves_warm_pools(&set.pools)?;
        self.keep_handlers(&mut set);
        if let Step::Same = self.judge_set(&set)? {
            return Ok(());
        }
        self.resolve_handlers(&mut set)?;
        self.keeps_policies(&set.pools, out)?;
        self.pools_generation = set.generation;
        let others = self.specs().filter(|spec| spec.warm_pool.is_some());
        let declared = others.cloned().chain(set.pools).collect();
        self.declare(declared, out);
        Ok(())
    }

    /// `Call::SetWarmPools`. A name that SetPools has taken stays its, and pools beyond the bound are left out: `kube` tells
    /// so before it gets here.
    pub(super) fn set_warm_pools(
        &mut self,
        request: RequestId,
        pools: Vec<PoolSpec>,
        out: &mut Out<'_>,
    ) {
        if let Err(refusal) = self.conditions.serving() {
            return out.refuse(request, refusal);
        }
        let others = self.specs().filter(|spec| spec.warm_pool.is_none());
        let mut declared: Vec<_> = others.cloned().collect();
        let mut unserved = Vec::new();
        for spec in pools {
            let taken = declared.iter().any(|other| other.name == spec.name);
            if taken || spec.warm_pool.is_none() || declared.len() >= POOLS {
                continue;
            }
            let there = self.pools.get(&spec.name).map(|pool| &pool.spec);
            let there = there.filter(|there| there.warm_pool == spec.warm_pool);
            let (name, before) = (spec.name.clone(), there.cloned());
            match self.served(spec) {
                Ok(spec) => declared.push(self.numbered(spec)),
                Err(refusal) => {
                    declared.extend(before);
                    unserved.push((name, refusal));
                }
            }
        }
        declared.sort_by(|a, b| a.name.cmp(&b.name));
        if !self.specs().eq(&declared) {
            self.declare(declared, out);
        }
        out.answer(request, Answer::WarmPoolsSet(unserved), out.ticket());
    }

    /// The pool with the handler that its RuntimeClass means now. Before the cluster has told, the one that it has.
    fn served(&self, spec: PoolSpec) -> Result<PoolSpec, Refusal> {
        let mut one = PoolSet {
            pools: vec![spec],
            ..PoolSet::default()
        };
        if let (None, Some(spec)) = (&self.classes, one.pools.first_mut())
            && let Some(there) = self.pools.get(&spec.name)
        {
            let (asked, there) = (&mut spec.template, &there.spec.template);
            if asked.runtime_class == there.runtime_class && !asked.runtime_class.is_empty() {
                asked.runtime_handler.clone_from(&there.runtime_handler);
            }
        }
        self.resolve_handlers(&mut one)?;
        one.pools.pop().ok_or_else(|| Refusal::Internal {
            detail: "a pool was lost".to_owned(),
        })
    }

    /// A WarmPool's generation is the machine's: an object that was made anew begins at 1 again, and what a template means
    /// may change without its object. It rises with every change, also above what is left of a pool of that name.
    fn numbered(&self, spec: PoolSpec) -> PoolSpec {
        let generation = match self.pools.get(&spec.name) {
            Some(pool) if pool.spec.warm_pool.is_some() => {
                let current = pool.spec.generation;
                let same = pool.spec
                    == PoolSpec {
                        generation: current,
                        ..spec.clone()
                    };
                current + u64::from(!same)
            }
            Some(_) | None => {
                let left = self.sandboxes.iter().filter(|it| it.pool == spec.name);
                left.map(|it| it.generation).max().unwrap_or(0) + 1
            }
        };
        PoolSpec { generation, ..spec }
    }

    /// Puts a set in force: durable, then what follows for members and claims.
    fn declare(&mut self, declared: Vec<PoolSpec>, out: &mut Out<'_>) {
        let declared: BTreeMap<_, _> = declared.into_iter().map(|s| (s.name.clone(), s)).collect();
        for (name, spec) in &declared {
            let before = self.pools.get_mut(name);
            // Another tenant's namespace has other rules.
            let asked_about = |pool: &&mut Pool| {
                pool.spec.template != spec.template || pool.spec.warm_pool != spec.warm_pool
            };
            if let Some(pool) = before.filter(asked_about) {
                pool.verdict = None;
            }
        }
        let verdicts = declared.keys().filter_map(|name| {
            let verdict = self.pools.get(name)?.verdict.clone()?;
            Some((name.clone(), verdict))
        });
        out.persist(Op::PutPools(PoolSet {
            generation: self.pools_generation,
            pools: declared.values().cloned().collect(),
            verdicts: verdicts.collect(),
        }));
        self.pools_changed = true;
        let left_out = self
            .pools
            .keys()
            .filter(|name| !declared.contains_key(name));
        for name in left_out.cloned().collect::<Vec<_>>() {
            self.withdraw(&name, out);
        }
        for (name, spec) in declared {
            let changed = match self.pools.get(&name) {
                Some(pool) if pool.spec == spec => continue,
                Some(pool) => {
                    let changed = pool.spec.template != spec.template;
                    self.revise(spec, out);
                    changed
                }
                None => {
                    self.pools.insert(name.clone(), Pool::declared(spec));
                    true
                }
            };
            self.hold(&name, out);
            self.judge_class(&name, out);
            if changed {
                self.tell_findings(&name, out);
            }
        }
    }

    fn tell_findings(&self, name: &PoolName, out: &mut Out<'_>) {
        let spec = self.pools.get(name).map(|pool| &pool.spec);
        for finding in spec.map_or_else(Vec::new, |spec| self.rules.findings(spec)) {
            out.notice(Notice::PolicyFinding(name.clone(), finding));
        }
    }

    /// What is in force, ordered by name.
    fn specs(&self) -> impl Iterator<Item = &PoolSpec> {
        self.pools.values().map(|pool| &pool.spec)
    }

    /// What is in force, as it is durable.
    pub(super) fn pool_set(&self) -> PoolSet {
        let verdicts = self.pools.iter().filter_map(|(name, pool)| {
            let verdict = pool.verdict.clone()?;
            Some((name.clone(), verdict))
        });
        PoolSet {
            generation: self.pools_generation,
            pools: self.specs().cloned().collect(),
            verdicts: verdicts.collect(),
        }
    }

    /// A set names no pool that an object of the cluster declares, and leaves those their places.
    fn leaves_warm_pools(&self, pools: &[PoolSpec]) -> Result<(), Refusal> {
        for spec in pools {
            let there = self.pools.get(&spec.name);
            if let Some(object) = there.and_then(|pool| pool.spec.warm_pool.as_ref()) {
                return Err(Refusal::PoolOfWarmPool {
                    pool: spec.name.to_string(),
                    warm_pool: object.to_string(),
                });
            }
        }
        let others = self.specs().filter(|spec| spec.warm_pool.is_some()).count();
        if pools.len() + others > POOLS {
            let what = format!("must be at most {POOLS} with the {others} of WarmPools");
            return Err(Refusal::InvalidArgument(vec![("pools".into(), what)]));
        }
        Ok(())
    }

    /// No pool of a set breaks a check that is enforced. What does not pass is counted, here where it is refused.
    fn keeps_policies(&self, pools: &[PoolSpec], out: &mut Out<'_>) -> Result<(), Refusal> {
        for spec in pools {
            let findings = self.rules.findings(spec);
            if let Some(finding) = findings.into_iter().find(|it| it.enforced) {
                let told = Notice::PolicyFinding(spec.name.clone(), finding.clone());
                out.notice(told);
                return Err(finding.refuses(spec.name.to_string()));
            }
        }
        Ok(())
    }

    /// The generation rules, for the set and for each pool in it.
    fn judge_set(&self, set: &PoolSet) -> Result<Step, Refusal> {
        let in_force = self.specs().filter(|spec| spec.warm_pool.is_none());
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
