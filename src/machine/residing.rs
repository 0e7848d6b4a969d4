//! Freeze and thaw: how many members of a pool stay running, and what the ends of freezes and thaws mean.
//!
//! ```text
//!  member   Running ─▶ Freeze ─▶ Frozen ─▶ Thaw ─▶ Running         beyond `running`; too few running ones
//!              │          │         │        │
//!              └──────────┴── claim ┴────────┘  ─▶ Personalize     it is thawed first, and that wins over a freeze
//!  claimed  Running ─▶ Freeze ─▶ Frozen ─▶ Thaw ─▶ Running         Hibernate, idle, pressure; Resume, any use
//! ```
//! A freeze is durable before it begins; a thaw runs ahead of its commit. Whether a sandbox is frozen the outside shows,
//! so recovery needs no more than that.

use super::event::{Effect, ExitCause, FreezeCause, Notice, SinkCause, ThawCause};
use super::hibernating::Sleepers;
use super::ids::{Now, SandboxId};
use super::limits::{FREEZE_PAUSE_MS, NODE_PARALLEL_FREEZES, RETRY_MS};
use super::node::Node;
use super::out::Out;
use super::pools::{Pool, count};
use super::record::{Op, Owner};
use super::refusal::{Refusal, bounded};
use super::sandboxes::{Operation, Residency, Sandbox, Tally};
use super::timers::Timer;

/// What goes on with freezes and thaws beyond single sandboxes.
#[derive(Debug, Clone, Default)]
pub(super) struct Residing {
    /// A freeze failed: hearth begins none by itself until then.
    pub(super) rests_until: Option<Now>,
    /// Requests that wait for a freeze or a thaw.
    pub(super) sleepers: Sleepers,
}

/// What a pool's member is to do.
enum Shift {
    Freeze(SandboxId),
    Thaw(SandboxId),
}

impl Node {
    /// Freezes members beyond the running few, the newest first; thaws where too few run and no refill is on its way.
    pub(super) fn balance_running(&mut self, out: &mut Out<'_>) {
        while self.conditions.may_shift()
            && let Some(shift) = self.next_shift(out.now())
        {
            match shift {
                Shift::Freeze(member) => self.begin_freeze(member, FreezeCause::Surplus, out),
                Shift::Thaw(member) => self.begin_thaw(member, ThawCause::Refill, out),
            }
        }
    }

    fn next_shift(&self, now: Now) -> Option<Shift> {
        let may_freeze = self.residing.rests_until.is_none()
            && self.sandboxes.freezing() < NODE_PARALLEL_FREEZES;
        let may_thaw = self.yielding.until(now).is_none() && !self.sampling.is_pressed(now);
        self.pools.iter().find_map(|(name, pool)| {
            let tally = self.sandboxes.tally(name);
            match self.surplus_running(pool, tally) {
                Some(member) => may_freeze.then_some(Shift::Freeze(member)),
                None if may_thaw => missing_running(pool, tally).map(Shift::Thaw),
                None => None,
            }
        })
    }

    /// The member to be frozen next, if more run than should. Members of an older template may be of a handler that can't.
    fn surplus_running(&self, pool: &Pool, tally: &Tally) -> Option<SandboxId> {
        let running = count(pool.spec.running?);
        let surplus = tally.warm.len() > running;
        let can = |id: &&SandboxId| {
            let member = self.sandboxes.get(**id);
            member.is_some_and(Sandbox::can_freeze)
        };
        let newest = || tally.warm.iter().rev().find(can).copied();
        surplus.then(newest)?
    }

    /// The intent, then the effect.
    pub(super) fn begin_freeze(&mut self, id: SandboxId, cause: FreezeCause, out: &mut Out<'_>) {
        self.put_sandbox(id, |sandbox| sandbox.operation = Operation::Freeze, out);
        let after = out.ticket();
        out.push(Effect::Freeze { sandbox: id, after });
        out.notice(Notice::FreezeStarted { cause });
        self.sampling.forget(id);
        self.listen_for(id, out.now());
        self.show_claim_of(id, out);
    }

    /// Runs ahead of its commit.
    pub(super) fn begin_thaw(&mut self, id: SandboxId, cause: ThawCause, out: &mut Out<'_>) {
        self.sinking.forget(id);
        self.set_operation(id, Operation::Thaw);
        if let Some(sandbox) = self.sandboxes.get(id) {
            out.push(Effect::PersistLazily(Op::PutSandbox(sandbox.record())));
        }
        self.pools_changed = true;
        out.push(Effect::Thaw { sandbox: id });
        out.notice(Notice::ThawStarted { cause });
        self.show_claim_of(id, out);
    }

    /// A freeze has ended.
    pub(super) fn frozen(&mut self, id: SandboxId, result: Result<(), String>, out: &mut Out<'_>) {
        let Some((owner, failed)) =
            self.shifted(id, Operation::Freeze, Residency::Frozen, result, out)
        else {
            return;
        };
        match &failed {
            None => out.push(Effect::Reclaim { sandbox: id }),
            Some(error) => {
                self.rest_from_freezing(out);
                let (sandbox, error) = (id, error.clone());
                out.notice(Notice::FreezeFailed { sandbox, error });
                self.show_claim_of(id, out);
            }
        }
        if let Owner::Claimed(claim) = owner {
            if failed.is_none() {
                self.sinking.fell_asleep(id, out.now());
            }
            let to_disk = self.residing.sleepers.why_on_disk(claim);
            if let (None, Some(reason)) = (&failed, to_disk) {
                return self.begin_checkpoint(id, SinkCause::Asked(reason), out);
            }
            let failed = failed.map(|detail| Refusal::HibernateFailed {
                claim: claim.to_string(),
                detail,
                retry_ms: RETRY_MS,
            });
            self.fell_asleep(claim, id, failed, out);
        }
    }

    /// A thaw has ended.
    pub(super) fn thawed(&mut self, id: SandboxId, result: Result<(), String>, out: &mut Out<'_>) {
        let Some((owner, failed)) =
            self.shifted(id, Operation::Thaw, Residency::Running, result, out)
        else {
            return;
        };
        if let Some(error) = &failed {
            let (sandbox, error) = (id, error.clone());
            out.notice(Notice::ThawFailed { sandbox, error });
            self.show_claim_of(id, out);
        }
        match owner {
            Owner::Claimed(claim) => {
                let failed = failed.map(|detail| Refusal::ResumeFailed {
                    claim: claim.to_string(),
                    detail,
                    retry_ms: RETRY_MS,
                });
                self.woke_up(claim, id, failed, out);
            }
            // Nobody's, and it can't be had back: another one is made.
            Owner::Pool if failed.is_some() => self.ended(id, ExitCause::GuestLost, out),
            Owner::Pool | Owner::Releasing => {}
        }
    }

    /// Where the end of an operation leaves its sandbox: whose it is, and why the operation failed. `None`: it was
    /// overtaken and means nothing any more.
    fn shifted(
        &mut self,
        id: SandboxId,
        operation: Operation,
        reached: Residency,
        result: Result<(), String>,
        out: &mut Out<'_>,
    ) -> Option<(Owner, Option<String>)> {
        let shifting = self.sandboxes.get(id);
        let owner = shifting.filter(|it| it.operation == operation)?.owner;
        let failed = result.err().map(bounded);
        if failed.is_some() {
            self.put_sandbox(id, |sandbox| sandbox.operation = Operation::Idle, out);
        } else {
            self.sandboxes.change(id, |sandbox| {
                sandbox.residency = reached;
                sandbox.operation = Operation::Idle;
            });
            self.pools_changed = true;
        }
        Some((owner, failed))
    }

    fn rest_from_freezing(&mut self, out: &Out<'_>) {
        let until = out.now().plus(FREEZE_PAUSE_MS);
        if let Some(before) = self.residing.rests_until.replace(until) {
            self.timers.clear(before, Timer::FreezeAgain);
        }
        self.timers.set(until, Timer::FreezeAgain);
    }

    /// Watchers see that a claim's sandbox sleeps, or no longer does.
    pub(super) fn show_claim_of(&self, id: SandboxId, out: &mut Out<'_>) {
        let owner = self.sandboxes.get(id).map(|sandbox| sandbox.owner);
        if let Some(Owner::Claimed(claim)) = owner
            && let Some(claim) = self.claims.get(&claim)
        {
            let after = out.ticket();
            out.claim_changed(self.view_of(claim), false, after);
        }
    }
}

/// The member to be thawed next, if fewer run than should and nothing is on its way.
fn missing_running(pool: &Pool, tally: &Tally) -> Option<SandboxId> {
    let running = count(pool.spec.running.unwrap_or(u32::MAX));
    let coming = tally.refilling.len() + tally.unsettled.len() + tally.shifting.len();
    let missing = tally.warm.len() + coming < running;
    tally.frozen.first().filter(|_| missing).copied()
}
