//! What is true after every step. Numbered; tests check all of them after every event, the daemon may.
//!
//! | # | |
//! |---|---|
//! | 1 | A sandbox belongs to at most one claim, and a claim that has a sandbox owns it: both point at each other. Beside it a claim has at most the one that is to replace it. |
//! | 2 | What goes on with a sandbox fits its owner and residency. |
//! | 3 | A claim that is served has 1 to `JOINERS_PER_CLAIM` requests; no request waits twice. |
//! | 4 | Queues hold exactly the claims that wait, at their places, within their bound. |
//! | 5 | No member is warm while a claim waits in its pool. |
//! | 6 | The counts of every pool are what counting anew gives; creations in flight are within their bound. |
//! | 7 | Timers are exactly those of running expiries, waits, back-offs and the next listing. |
//! | 8 | The reaper has exactly the releasing sandboxes that are not being made, and orphans; its bound holds. |
//! | 9 | Every id of this node was given out, and the reservation covers it. |
//! | 10 | A claim id is either a claim or remembered as released; what is remembered is within its bound. |
//! | 11 | A pool that is not declared has no unclaimed member. |
//! | 12 | Before recovery has finished nothing is being made or destroyed, and no claim waits for a member. |
//! | 13 | A half-open breaker's probe is being made. |
//! | 14 | Only a claim whose sandbox is on its way to sleep or back has requests that wait for that. |
//! | 15 | Only a claim's sandbox is on the disk. |
//! | 16 | A drained node has no unclaimed member, and no claim waits for one. |
//! | 17 | A pool whose template gives an interface has no unclaimed member without one, and no claim waits with a policy that its pool's sandboxes can't have. |
//! | 18 | No sandbox sleeps, or is on its way there or back, whose handler can't freeze it. |

use super::claims::{Claim, Stage};
use super::ids::{Now, SandboxId};
use super::limits::{JOINERS_PER_CLAIM, NODE_PARALLEL_CREATES, WAITERS_PER_POOL};
use super::node::Node;
use super::reaper::Destruction;
use super::record::Owner;
use super::sandboxes::{Operation, Residency, Sandbox};
use super::timers::Timer;
use std::collections::BTreeSet;

impl Node {
    /// Checks every invariant; `Err` names the first that is broken, and where. Linear in what the node holds.
    ///
    /// # Errors
    /// A text for the log: number, rule, and what breaks it.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.sandboxes
            .iter()
            .try_for_each(|it| self.check_sandbox(it))?;
        self.claims
            .values()
            .try_for_each(|it| self.check_claim(it))?;
        self.check_requests()?;
        self.check_queues()?;
        self.check_counts()?;
        self.check_timers()?;
        self.check_reaper()?;
        self.check_recovering()
    }

    fn check_sandbox(&self, sandbox: &Sandbox) -> Result<(), String> {
        let id = sandbox.id;
        if let Owner::Claimed(claim) = sandbox.owner {
            let claim = self.claims.get(&claim);
            let mutual = claim.is_some_and(|it| it.sandbox() == Some(id));
            let undone_soon = self.conditions.recovering && is_left_over(sandbox);
            let to_come = || match sandbox.owner {
                Owner::Claimed(claim) => self.replaced_by(claim, id).is_some(),
                _ => false,
            };
            ensure(
                mutual || undone_soon || to_come(),
                1,
                "a claimed sandbox without its claim",
                id,
            )?;
        }
        ensure(self.operation_fits(sandbox), 2, "operation", id)?;
        if let Operation::Replace { by } = sandbox.operation {
            let owner = self.sandboxes.get(by).map(|it| it.owner);
            ensure(owner == Some(sandbox.owner), 1, "replaced by nobody", id)?;
        }
        let ours = id.tag() == self.settings.tag;
        ensure(
            !ours || self.sequence.covers(id),
            9,
            "an id not reserved",
            id,
        )?;
        let claimed = matches!(sandbox.owner, Owner::Claimed(_) | Owner::Releasing);
        let on_disk = matches!(sandbox.residency, Residency::OnDisk(_));
        ensure(claimed || !on_disk, 15, "on the disk for nobody", id)?;
        let closed = sandbox.owner == Owner::Pool && self.lacks_interface(id);
        ensure(!closed, 17, "a member without an interface", id)?;
        let sleeps = sandbox.residency.is_asleep() || sandbox.operation.is_shift();
        ensure(sandbox.can_freeze() || !sleeps, 18, "asleep", id)?;
        let declared = self.pools.contains_key(&sandbox.pool);
        let pool_less = sandbox.owner == Owner::Pool && !declared && !self.conditions.recovering;
        ensure(!pool_less, 11, "a member of no pool", id)?;
        let drained = self.conditions.draining && !self.conditions.recovering;
        let unclaimed = drained && sandbox.owner == Owner::Pool;
        ensure(!unclaimed, 16, "an unclaimed member", id)
    }

    fn operation_fits(&self, sandbox: &Sandbox) -> bool {
        use Residency::{Creating, Frozen, Gone, OnDisk, Running, Unknown};
        match (sandbox.owner, sandbox.residency, sandbox.operation) {
            (_, Creating | Gone, Operation::Create) => true,
            (Owner::Releasing, _, Operation::Destroy) => true,
            (Owner::Pool, Running, Operation::Idle | Operation::Freeze) => true,
            (Owner::Pool, Frozen, Operation::Idle | Operation::Thaw) => true,
            (Owner::Pool | Owner::Claimed(_), Unknown { .. }, Operation::Idle) => {
                self.conditions.recovering
            }
            (Owner::Pool | Owner::Claimed(_), Creating, Operation::Idle) => {
                self.conditions.recovering
            }
            (
                Owner::Pool,
                Unknown { .. },
                Operation::Witness { .. } | Operation::AskAgain { .. },
            ) => true,
            (Owner::Claimed(claim), Running, Operation::Personalize)
                if self.replaced_by(claim, sandbox.id).is_some() =>
            {
                true
            }
            (Owner::Claimed(claim), residency, operation) => {
                let stage = self.claims.get(&claim).map(|it| &it.stage);
                matches!(
                    (stage, residency, operation),
                    (
                        Some(Stage::Assigned { .. }),
                        Running,
                        Operation::Personalize
                    ) | (
                        Some(Stage::Held { .. }),
                        Running,
                        Operation::Idle
                            | Operation::Freeze
                            | Operation::Checkpoint
                            // Back from the disk.
                            | Operation::Thaw
                    ) | (
                        Some(Stage::Held { .. }),
                        Frozen,
                        Operation::Idle | Operation::Thaw | Operation::Checkpoint
                    ) | (
                        Some(Stage::Held { .. }),
                        OnDisk(_),
                        Operation::Idle
                            | Operation::Shed
                            | Operation::Restore
                            | Operation::Replace { .. }
                    ) | (Some(Stage::Unheld { .. }), Running, Operation::Idle)
                        | (
                            Some(Stage::Unknown { .. }),
                            Unknown { .. },
                            Operation::Witness { .. } | Operation::AskAgain { .. },
                        )
                )
            }
            _ => false,
        }
    }

    fn check_claim(&self, claim: &Claim) -> Result<(), String> {
        let id = claim.terms.id;
        if let Some(sandbox) = claim.sandbox() {
            let owner = self.sandboxes.get(sandbox).map(|it| it.owner);
            let mutual = owner == Some(Owner::Claimed(id));
            ensure(mutual, 1, "a claim without its sandbox", id)?;
        }
        let served = matches!(
            claim.stage,
            Stage::Queued { .. } | Stage::Making { .. } | Stage::Assigned { .. }
        );
        let bound = usize::from(served)..=JOINERS_PER_CLAIM;
        ensure(bound.contains(&claim.askers().len()), 3, "requests", id)?;
        ensure(!self.tombstones.contains(id), 10, "released and there", id)
    }

    fn check_requests(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        let askers = self.claims.values().flat_map(Claim::askers);
        for request in askers.map(|asker| asker.request) {
            ensure(
                seen.insert(request),
                3,
                "waits twice",
                format!("{request:?}"),
            )?;
        }
        for (claim, request) in self.residing.sleepers.iter() {
            let which = format!("{request:?}");
            ensure(seen.insert(request), 3, "waits twice", &which)?;
            let sandbox = self.claims.get(&claim).and_then(Claim::sandbox);
            let sandbox = sandbox.and_then(|id| self.sandboxes.get(id));
            let shifting = |it: &Sandbox| it.operation.is_shift();
            ensure(sandbox.is_some_and(shifting), 14, "waits in vain", &which)?;
        }
        ensure(self.tombstones.is_sound(), 10, "tombstones", "all")
    }

    fn check_queues(&self) -> Result<(), String> {
        let mut queued = 0;
        for (name, pool) in &self.pools {
            for (place, id) in pool.queue.iter() {
                let there = self.claims.get(&id).is_some_and(|claim| {
                    claim.terms.pool == *name
                        && matches!(&claim.stage, Stage::Queued { pending } if pending.place == place)
                });
                ensure(there, 4, "a place without its claim", id)?;
            }
            for (_, id) in pool.queue.iter() {
                let network = self.claims.get(&id).map(|it| it.terms.network.as_deref());
                let served = network.is_none_or(|network| pool.may_have(network).is_ok());
                ensure(served, 17, "a claim waits for what can't be", id)?;
            }
            queued += pool.queue.len();
            ensure(pool.queue.len() <= WAITERS_PER_POOL, 4, "bound", name)?;
            ensure(pool.queue.is_sound(), 4, "turns", name)?;
            let idle = pool.queue.len() > 0 && self.sandboxes.next_member(name).is_some();
            ensure(!idle, 5, "a warm member beside a claim that waits", name)?;
        }
        let closed = self.conditions.draining || self.conditions.cordoned;
        ensure(queued == 0 || !closed, 16, "waits", "all")?;
        let waiting = self.claims.values();
        let waiting = waiting.filter(|claim| matches!(claim.stage, Stage::Queued { .. }));
        ensure(
            waiting.count() == queued,
            4,
            "a claim without its place",
            "all",
        )
    }

    fn check_counts(&self) -> Result<(), String> {
        ensure(self.sandboxes.is_sound(), 6, "counts", "all")?;
        let bounded = self.sandboxes.creating() <= NODE_PARALLEL_CREATES;
        ensure(bounded, 6, "creations in flight", self.sandboxes.creating())?;
        for (name, pool) in &self.pools {
            let probe = pool.breaker.probe().map(|probe| self.sandboxes.get(probe));
            let made = |it: &Sandbox| it.operation == Operation::Create;
            let probing = probe.is_none_or(|probe| probe.is_some_and(made));
            ensure(probing, 13, "half-open without a probe", name)?;
        }
        Ok(())
    }

    fn check_timers(&self) -> Result<(), String> {
        let set: BTreeSet<_> = self.timers.iter().copied().collect();
        let wanted = self.wanted_timers();
        let refill = |(_, timer): &&(Now, Timer)| *timer == Timer::Refill;
        let relist = |(_, timer): &&(Now, Timer)| *timer == Timer::Relist;
        let set_apart: BTreeSet<_> = set.iter().copied().filter(|it| !refill(&it)).collect();
        if let Some(missing) = wanted.difference(&set_apart).next() {
            return ensure(false, 7, "a timer is not set", format!("{missing:?}"));
        }
        if let Some(stray) = set_apart.difference(&wanted).next() {
            return ensure(false, 7, "a stray timer", format!("{stray:?}"));
        }
        ensure(set.iter().filter(relist).count() <= 1, 7, "listings", "all")?;
        let mut pools = self.pools.iter();
        let wakes = |at: Now| set.contains(&(at, Timer::Refill)) || at <= self.now;
        let asleep = pools.find(|(_, pool)| pool.breaker.wakes_at().is_some_and(|at| !wakes(at)));
        ensure(asleep.is_none(), 7, "a pause without its end", "some pool")
    }

    fn wanted_timers(&self) -> BTreeSet<(Now, Timer)> {
        let mut wanted = BTreeSet::new();
        wanted.extend(self.yielding.timer.map(|at| (at, Timer::Quiet)));
        for claim in self.claims.values() {
            let id = claim.terms.id;
            let expiry = claim.running().and_then(|it| it.expires_at);
            wanted.extend(expiry.map(|at| (at, Timer::Expire(id))));
            if let Stage::Queued { pending } = &claim.stage {
                let wait = |asker: &super::claims::Asker| {
                    Some((asker.deadline()?, Timer::Wait(id, asker.request)))
                };
                wanted.extend(pending.askers().filter_map(wait));
            }
        }
        for sandbox in self.sandboxes.iter() {
            if let Operation::AskAgain { at, .. } = sandbox.operation {
                wanted.insert((at, Timer::Witness(sandbox.id)));
            }
        }
        for (id, destruction) in self.reaper.iter() {
            if let Destruction::Resting { until, .. } = destruction {
                wanted.insert((until, Timer::Destroy(id)));
            }
        }
        let rests_until = self.residing.rests_until;
        wanted.extend(rests_until.map(|at| (at, Timer::FreezeAgain)));
        wanted.extend(self.sinking.next_at.map(|at| (at, Timer::Sink)));
        let drain = self.drain.as_ref().and_then(|drain| drain.timer);
        wanted.extend(drain.map(|at| (at, Timer::Drain)));
        let stow = self.drain.as_ref().and_then(|it| it.stowing.next_at);
        wanted.extend(stow.map(|at| (at, Timer::DrainSink)));
        wanted.extend(self.sampling.next_at.map(|at| (at, Timer::Sample)));
        wanted.extend(self.listening.next_at.map(|at| (at, Timer::Listen)));
        wanted.extend(self.listing.next_at.map(|at| (at, Timer::Relist)));
        wanted
    }

    fn check_reaper(&self) -> Result<(), String> {
        ensure(self.reaper.is_sound(), 8, "queue or bound", "all")?;
        let releasing = self.sandboxes.iter();
        let releasing = releasing.filter(|it| it.operation == Operation::Destroy);
        let releasing: BTreeSet<SandboxId> = releasing.map(|it| it.id).collect();
        let doomed: BTreeSet<_> = self.reaper.iter().map(|(id, _)| id).collect();
        if let Some(id) = releasing.difference(&doomed).next() {
            return ensure(false, 8, "releasing, but forgotten", id);
        }
        let strangers = doomed.difference(&releasing);
        let mut strangers = strangers.filter(|id| !self.orphans.contains(id));
        match strangers.next() {
            Some(id) => ensure(false, 8, "doomed, but nobody's to destroy", id),
            None => Ok(()),
        }
    }

    fn check_recovering(&self) -> Result<(), String> {
        if !self.conditions.recovering {
            return Ok(());
        }
        ensure(self.reaper.in_flight() == 0, 12, "destroying", "all")?;
        ensure(self.sandboxes.creating() == 0, 12, "creating", "all")?;
        let waiting = self.pools.values().any(|pool| pool.queue.len() > 0);
        ensure(!waiting, 12, "a claim waits", "all")
    }
}

/// Was being made when hearthd died.
fn is_left_over(sandbox: &Sandbox) -> bool {
    sandbox.residency == Residency::Creating && sandbox.operation == Operation::Idle
}

fn ensure(
    holds: bool,
    number: u32,
    what: &str,
    which: impl std::fmt::Display,
) -> Result<(), String> {
    match holds {
        true => Ok(()),
        false => Err(format!("invariant {number} is broken: {what}: {which}")),
    }
}
