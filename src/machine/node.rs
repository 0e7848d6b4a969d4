//! The machine: [`Node`] takes one event at a time and says what to do about it.
//!
//! It owns every decision of the claim contract and of the pools, and never does anything itself. The driver tells it
//! what has happened, with the time and the ticket of the batch, and runs the effects. The same events give the same
//! effects, always.
//!
//! Where to find what: `claiming` and `queueing` (Claim until it is acknowledged or refused), `releasing` (Release, Renew, expiry), `hibernating` (Hibernate, Resume, waking on
//! use), `residing` (freeze and thaw, how many members run), `sampling` (idle claims, memory pressure), `sinking` (to the disk and back),
//! `replacing` (a cold start where an image is lost), `declaring` (SetPools, WarmPools), `admission` (policies for templates), `draining`, `stowing` (Drain, Undrain), `refill` (which creation starts next), `lifecycle` (what happens to sandboxes), `recovery`,
//! `listing`, `witness` (restart, and what the outside shows), `networking` (what a sandbox may reach), `classes` (RuntimeClasses), `inspect` (reads), `invariants`. The picture is `docs/state-machine.md`, drawn by the
//! tests from what the machine does.

use super::admission::Rules;
use super::claims::Claim;
use super::classes::Classes;
use super::conditions::Conditions;
use super::draining::Drain;
use super::event::{Call, Effect, Event, Step};
use super::fence::Fencing;
use super::ids::{ClaimId, NodeTag, Now, PoolName, RequestId, SandboxId};
use super::listening::Listening;
use super::listing::Listing;
use super::out::Out;
use super::pools::Pool;
use super::reaper::Reaper;
use super::record::Drains;
use super::residing::Residing;
use super::sampling::Sampling;
use super::sandboxes::Sandboxes;
use super::sequence::Sequence;
use super::sinking::Sinking;
use super::timers::{Timer, Timers};
use super::tombstones::Tombstones;
use super::view::Phase;
use super::yielding::Yielding;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a node is told once, at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// This data directory: sandboxes of other tags are not touched.
    pub tag: NodeTag,
    /// Sandboxes at once on this node, of all pools and in every state.
    pub max_sandboxes: u32,
    /// Refill waits so long after a claim was assigned, milliseconds, and five times that at most; 0: not at all.
    pub refill_yield_ms: u64,
    /// When memory counts as short.
    pub memory: MemoryPolicy,
    /// The disk tier.
    pub disk: DiskPolicy,
    /// From one listing of the runtime to the next while nothing happens, milliseconds. Heals lost exit events.
    pub relist_ms: u64,
}

/// When the node counts as short of memory. Then unclaimed members are frozen first, the claimed sandboxes that did
/// nothing longest next; never one in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryPolicy {
    /// What all sandboxes together may have charged to their cgroups, bytes; 0: no bound.
    pub budget_bytes: u64,
    /// Share of the last ten seconds in which something waited for memory, thousandths; 0: not looked at.
    pub pressure_permille: u32,
}

/// Who goes to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskPolicy {
    /// There is a disk tier.
    pub enabled: bool,
    /// A claimed sandbox that was frozen for so long goes to the disk, milliseconds; 0: never by age.
    pub sink_after_ms: u64,
}

/// The pure core. See the module's text.
#[derive(Debug, Clone)]
pub struct Node {
    pub(super) settings: Settings,
    /// What templates must keep to.
    pub(super) rules: Rules,
    /// Of the latest step.
    pub(super) now: Now,
    pub(super) conditions: Conditions,
    pub(super) fencing: Fencing,
    pub(super) sequence: Sequence,
    /// Generation of the declared set.
    pub(super) pools_generation: u64,
    /// The declared ones. A pool that was left out lives on in the sandboxes that carry its name.
    pub(super) pools: BTreeMap<PoolName, Pool>,
    pub(super) yielding: Yielding,
    /// The pool that got the latest creation: the next one is served first.
    pub(super) last_filled: Option<PoolName>,
    pub(super) sandboxes: Sandboxes,
    pub(super) claims: BTreeMap<ClaimId, Claim>,
    /// Places in queues given out.
    pub(super) arrivals: u64,
    pub(super) tombstones: Tombstones,
    pub(super) reaper: Reaper,
    /// Found outside without a record.
    pub(super) orphans: BTreeSet<SandboxId>,
    pub(super) listing: Listing,
    pub(super) residing: Residing,
    pub(super) sampling: Sampling,
    pub(super) listening: Listening,
    pub(super) sinking: Sinking,
    /// The drain under way.
    pub(super) drain: Option<Drain>,
    /// Who asks for what of it.
    pub(super) drains: Drains,
    /// As the cluster has told since the start.
    pub(super) classes: Option<Arc<Classes>>,
    pub(super) timers: Timers,
    /// Some pool's status changed in this step.
    pub(super) pools_changed: bool,
}

impl Node {
    /// Tells the machine what has happened, and takes what it wants done. Called by the driver, in the order of events;
    /// `step.now` and `step.ticket` never fall.
    pub fn step(&mut self, step: Step, event: Event, effects: &mut Vec<Effect>) {
        let out = &mut Out::new(step, effects);
        self.now = step.now;
        self.elapse(out);
        match event {
            Event::Request(request, call) => self.serve(request, call, out),
            Event::Created(sandbox, result) => self.created(sandbox, result, out),
            Event::Cloned(sandbox) => self.cloned(sandbox),
            Event::Destroyed(sandbox, result) => self.destroyed(sandbox, result, out),
            Event::Personalized(sandbox, claim, result) => {
                self.personalized(sandbox, claim, result, out);
            }
            Event::Frozen(sandbox, result) => self.frozen(sandbox, result, out),
            Event::Thawed(sandbox, result) => self.thawed(sandbox, result, out),
            Event::Checkpointed(sandbox, result) => self.checkpointed(sandbox, result, out),
            Event::Shed(sandbox, result) => self.shed(sandbox, result, out),
            Event::Restored(sandbox, result) => self.restored(sandbox, result, out),
            Event::Sampled {
                samples,
                pressure_permille,
            } => self.sampled(&samples, pressure_permille, out),
            Event::Heard(knocks) => self.heard(&knocks, out),
            Event::Witnessed(sandbox, held) => self.witnessed(sandbox, held, out),
            Event::Ended(sandbox, cause) => self.ended(sandbox, cause, out),
            Event::Listed { round, observed } => self.listed(round, &observed, out),
            Event::Runtime { available } => self.runtime_changed(available, out),
            Event::Disk { reserve_reached } => {
                self.conditions.reserve_reached = reserve_reached;
                self.refuse_waiting(out);
            }
            Event::Cordon { cordoned } => self.cordoned(cordoned, out),
            Event::ClusterDrain { asked } => self.cluster_drain(asked, out),
            Event::Classes(classes) => self.classes_told(classes, out),
            Event::ShuttingDown => {
                self.conditions.shutting_down = true;
                self.refuse_waiting(out);
            }
            Event::Tick => {}
        }
        self.drain_on(out);
        self.start_destructions(out);
        self.start_creations(out);
        self.balance_running(out);
        self.sink_the_aged(out);
        self.keep_sampling();
        self.keep_listening();
        if std::mem::take(&mut self.pools_changed) {
            out.push(Effect::PoolsChanged);
        }
    }

    /// When the machine wants a `Tick` if nothing happens before. `None`: nothing is due.
    #[must_use]
    pub fn next_wakeup(&self) -> Option<Now> {
        self.timers.next()
    }

    /// Where the node stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.conditions.phase()
    }

    /// The cluster has cordoned the node. For the driver's gauges.
    #[must_use]
    pub fn is_cordoned(&self) -> bool {
        self.conditions.cordoned
    }

    fn serve(&mut self, request: RequestId, call: Call, out: &mut Out<'_>) {
        match call {
            Call::Claim(fence, asked) => self.claim(request, fence, *asked, out),
            Call::Release(fence, claim) => self.release(request, fence, claim, out),
            Call::Renew(fence, claim, ttl_ms) => self.renew(request, fence, claim, ttl_ms, out),
            Call::Hibernate(fence, claim, tier, reason) => {
                self.hibernate(request, fence, claim, (tier, reason), out);
            }
            Call::Resume(fence, claim) => self.resume(request, fence, claim, out),
            Call::SetPools(fence, set) => self.set_pools(request, fence, set, out),
            Call::SetWarmPools(pools) => self.set_warm_pools(request, pools, out),
            Call::JudgePools(judged) => self.judge_pools(request, judged, out),
            Call::DestroyOrphans(named) => self.destroy_orphans(request, &named, out),
            Call::Drain(asked) => self.begin_drain(request, asked, out),
            Call::Undrain => self.undrain(request, out),
            Call::GetDrain => self.get_drain(request, out),
            Call::Get(claim) => self.get(request, claim, out),
            Call::List { pool, after, limit } => self.list(request, pool, after, limit, out),
            Call::GetPools => self.get_pools(request, out),
            Call::Locate(claim) => self.locate(request, claim, out),
            Call::Inspect => self.inspect(request, out),
        }
    }

    /// Does what has fallen due.
    fn elapse(&mut self, out: &mut Out<'_>) {
        while let Some(timer) = self.timers.pop_due(out.now()) {
            match timer {
                Timer::Expire(claim) => self.expire(claim, out),
                Timer::Wait(claim, request) => self.wait_ended(claim, request, out),
                Timer::Destroy(sandbox) => self.reaper.rested(sandbox),
                Timer::Witness(sandbox) => self.ask(sandbox, out),
                Timer::Relist => self.relist(out),
                Timer::FreezeAgain => self.residing.rests_until = None,
                Timer::Drain => self.drain_overdue(out),
                Timer::Sample => self.sample(out),
                Timer::Listen => self.listen(out),
                Timer::DrainSink => self.drain_sink_due(),
                Timer::Refill | Timer::Quiet | Timer::Sink => {}
            }
        }
    }
}
