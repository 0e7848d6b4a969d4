//! Drain and Undrain: the node is emptied without losing what is claimed, and filled again.
//!
//! ```text
//!            ┌─ Wait ──────── claims end by themselves ────────────────────────────────┐
//!  Drain ────┼─ Hibernate ─── no stream open ─▶ sleeps;  deadline ─▶ the rest sleeps ──┼─▶ Drained ──Undrain──▶ refill
//!            │                who sleeps goes to the disk, if there is a disk tier      │
//!            └─ Evict ─────── claims end by themselves;  deadline ─▶ the rest released ┘
//! ```
//! From its beginning no new claim is taken, who waits without a sandbox is refused, nothing is made, and unclaimed members
//! are destroyed. What was taken before is served to its end: retries join, renewals and releases go on. The record is
//! durable before anybody is told, so a restart goes on with it: the deadline counts from the beginning of the drain.
//!
//! A drain is asked for by Node.Drain, and by the cluster ([`Drains`](super::record::Drains)). Each takes back its own only.

use super::claims::{Claim, Stage};
use super::event::{FreezeCause, Notice, Sample};
use super::ids::{ClaimId, Now, RequestId, SandboxId};
use super::limits::{DRAIN_RETRY_MS, NODE_PARALLEL_FREEZES};
use super::node::Node;
use super::out::Out;
use super::record::{Asker, DrainRecord, Op, Owner};
use super::refusal::Refusal;
use super::sandboxes::{Operation, Residency, Sandbox};
use super::spec::{DrainMode, DrainRequest};
use super::stowing::Stowing;
use super::timers::Timer;
use super::view::{Answer, DrainState, DrainView};
use std::collections::BTreeSet;

/// The drain under way.
#[derive(Debug, Clone)]
pub(super) struct Drain {
    record: DrainRecord,
    /// The timer of its deadline, until that has passed.
    pub(super) timer: Option<Now>,
    /// Mode Hibernate: claimed sandboxes in which the latest look found no stream open, and that nobody has used since.
    quiet: BTreeSet<SandboxId>,
    /// Mode Hibernate: what goes to the disk.
    pub(super) stowing: Stowing,
}

impl Drain {
    fn is_overdue(&self, now: Now) -> bool {
        self.record.deadline().is_some_and(|at| at <= now)
    }

    pub(super) fn hibernates(&self) -> bool {
        self.record.asked.mode == DrainMode::Hibernate
    }
}

impl Node {
    /// Node.Drain. The same again joins what it has asked for, whose deadline stays; anything else replaces that. Served
    /// during recovery too: what it decides is durable, destructions wait.
    pub(super) fn begin_drain(
        &mut self,
        request: RequestId,
        asked: DrainRequest,
        out: &mut Out<'_>,
    ) {
        if let Err(refusal) = self.conditions.staying() {
            return out.refuse(request, refusal);
        }
        if self.drains.api.map(|it| it.asked) == Some(asked) {
            self.stow_anew();
        } else {
            self.want_drain(Asker::Api, Some(asked), out);
        }
        self.get_drain(request, out);
    }

    /// Node.Undrain. What sleeps goes on sleeping until it is used; pools fill again. What the cluster asks for stays.
    pub(super) fn undrain(&mut self, request: RequestId, out: &mut Out<'_>) {
        if let Err(refusal) = self.conditions.staying() {
            return out.refuse(request, refusal);
        }
        self.want_drain(Asker::Api, None, out);
        self.get_drain(request, out);
    }

    /// What the cluster asks for now. It tells again after a start, and is told nothing: so nothing is lost by a hearthd that
    /// goes away.
    pub(super) fn cluster_drain(&mut self, asked: Option<DrainRequest>, out: &mut Out<'_>) {
        if self.conditions.staying().is_ok() {
            self.want_drain(Asker::Cluster, asked, out);
        }
    }

    fn want_drain(&mut self, asker: Asker, asked: Option<DrainRequest>, out: &mut Out<'_>) {
        if self.drains.of(asker).map(|it| it.asked) == asked {
            return;
        }
        let since = out.now();
        let record = asked.map(|asked| DrainRecord { asked, since });
        out.persist(match record {
            Some(record) => Op::PutDrain(asker, record),
            None => Op::DeleteDrain(asker),
        });
        let before = self.drains.in_force();
        self.drains.put(asker, record);
        let now = self.drains.in_force();
        self.pools_changed = true;
        if before == now {
            return;
        }
        self.forget_drain();
        self.resume_drain();
        let Some(DrainRecord { asked, .. }) = now else {
            return out.notice(Notice::DrainEnded);
        };
        self.refuse_waiting(out);
        for pool in self.pools.keys().cloned().collect::<Vec<_>>() {
            for member in self.unclaimed(&pool) {
                self.doom(member, out);
            }
        }
        out.notice(Notice::DrainBegun { asked });
    }

    /// How far it is.
    pub(super) fn get_drain(&self, request: RequestId, out: &mut Out<'_>) {
        let answer = Answer::Drain(self.drain_view());
        out.answer(request, answer, out.ticket());
    }

    /// Begins, or after a restart goes on with, what is in force. A deadline that has passed meanwhile is due at once.
    pub(super) fn resume_drain(&mut self) {
        let Some(record) = self.drains.in_force() else {
            return;
        };
        let mut drain = Drain {
            record,
            timer: None,
            quiet: BTreeSet::new(),
            stowing: Stowing::default(),
        };
        drain.timer = record.deadline();
        if let Some(at) = drain.timer {
            self.timers.set(at, Timer::Drain);
        }
        self.drain = Some(drain);
        self.conditions.draining = true;
    }

    fn forget_drain(&mut self) {
        self.conditions.draining = false;
        let Some(drain) = self.drain.take() else {
            return;
        };
        if let Some(at) = drain.timer {
            self.timers.clear(at, Timer::Drain);
        }
        if let Some(at) = drain.stowing.next_at {
            self.timers.clear(at, Timer::DrainSink);
        }
    }

    /// Its deadline has passed. Mode Hibernate goes on in [`Node::drain_on`], mode Wait goes on waiting.
    pub(super) fn drain_overdue(&mut self, out: &mut Out<'_>) {
        let Some(drain) = &mut self.drain else {
            return;
        };
        drain.timer = None;
        if drain.record.asked.mode != DrainMode::Evict {
            return;
        }
        // All of them: new ones are refused, so none comes after.
        for claim in self.claims.keys().copied().collect::<Vec<ClaimId>>() {
            out.notice(Notice::ClaimEvicted { claim });
            self.end_claim(claim, out);
        }
    }

    /// Gives up claims nobody was told of, and in mode Hibernate puts to sleep what may sleep now, few at a time. Called at
    /// the end of every step.
    pub(super) fn drain_on(&mut self, out: &mut Out<'_>) {
        if self.drain.is_some() {
            self.drop_unheld(out);
        }
        if !self.drain.as_ref().is_some_and(Drain::hibernates) {
            return;
        }
        while self.conditions.may_shift()
            && self.residing.rests_until.is_none()
            && self.sandboxes.freezing() < NODE_PARALLEL_FREEZES
            && let Some(id) = self.next_to_sleep(out.now())
        {
            self.begin_freeze(id, FreezeCause::Drain, out);
        }
        self.stow(out);
    }

    /// Recovery found that these claims' guests hold nothing, so no caller was answered: a retry is refused like any new
    /// claim, instead of the drain waiting for one that may never come.
    fn drop_unheld(&mut self, out: &mut Out<'_>) {
        let unheld = self.claims.iter();
        let unheld = unheld.filter(|(_, claim)| matches!(claim.stage, Stage::Unheld { .. }));
        for id in unheld.map(|(id, _)| *id).collect::<Vec<ClaimId>>() {
            if let Some(sandbox) = self.remove_claim(id, out).and_then(|it| it.sandbox()) {
                self.doom(sandbox, out);
            }
        }
    }

    fn next_to_sleep(&self, now: Now) -> Option<SandboxId> {
        let drain = self.drain.as_ref()?;
        let may_sleep = |it: &&Sandbox| {
            it.residency == Residency::Running
                && it.operation == Operation::Idle
                && it.can_freeze()
                && self.is_held(it)
        };
        let mut quiet = drain.quiet.iter();
        match drain.is_overdue(now) {
            true => self.sandboxes.iter().find(may_sleep).map(|it| it.id),
            false => quiet
                .find(|id| self.sandboxes.get(**id).as_ref().is_some_and(may_sleep))
                .copied(),
        }
    }

    /// Does the drain need to know in which sandboxes streams are open?
    pub(super) fn drain_looks(&self) -> bool {
        self.drain.as_ref().is_some_and(Drain::hibernates)
    }

    /// What a look has shown.
    pub(super) fn drain_looked(&mut self, samples: &[Sample]) {
        if let Some(drain) = &mut self.drain
            && drain.hibernates()
        {
            let quiet = samples.iter().filter(|sample| !sample.busy);
            drain.quiet = quiet.map(|sample| sample.id).collect();
        }
    }

    /// A sandbox is used: it runs until the next look finds it quiet, or the deadline passes.
    pub(super) fn drain_used(&mut self, id: SandboxId) {
        if let Some(drain) = &mut self.drain {
            drain.quiet.remove(&id);
        }
    }

    /// What a drain has put to sleep stays so until it is undone.
    pub(super) fn may_wake(&self) -> Result<(), Refusal> {
        match self.drain_looks() {
            true => Err(Refusal::NodeDraining {
                retry_ms: DRAIN_RETRY_MS,
            }),
            false => Ok(()),
        }
    }

    /// The drain as it stands. For the driver's gauges, and for the reads.
    #[must_use]
    pub fn drain_view(&self) -> Option<DrainView> {
        let drain = self.drain.as_ref()?;
        let served = |claim: &&Claim| !matches!(claim.stage, Stage::Failed { .. });
        let served = self.claims.values().filter(served);
        let theirs: Vec<_> = served
            .filter_map(|claim| self.sandboxes.get(claim.sandbox()?))
            .collect();
        let asleep = |it: &&&Sandbox| match it.residency {
            Residency::Frozen => it.is_to_sleep(),
            Residency::OnDisk(_) => it.operation != Operation::Restore,
            _ => false,
        };
        let hibernated = theirs.iter().filter(asleep).count();
        let on_disk = theirs.iter().filter(|it| self.is_stowed(it)).count();
        let to_disk = theirs.iter().filter(|it| self.is_to_stow(it)).count();
        let claims = match drain.hibernates() {
            true => theirs.len() - hibernated,
            false => theirs.len(),
        };
        let claimed = |it: &Sandbox| matches!(it.owner, Owner::Claimed(_));
        let unclaimed = self.sandboxes.iter().filter(|it| !claimed(it)).count();
        Some(DrainView {
            mode: drain.record.asked.mode,
            state: match (claims + to_disk + unclaimed, drain.is_overdue(self.now)) {
                (0, _) => DrainState::Drained,
                (_, true) => DrainState::Overdue,
                (_, false) => DrainState::Draining,
            },
            since: drain.record.since,
            deadline: drain.record.deadline(),
            by_cluster: self.drains.cluster.is_some(),
            claims: shown(claims),
            hibernated: shown(hibernated),
            on_disk: shown(on_disk),
            to_disk: shown(to_disk),
            disk_tier: self.settings.disk.enabled && drain.hibernates(),
            kept: drain.stowing.kept(&self.sandboxes),
            unclaimed: shown(unclaimed),
        })
    }
}

fn shown(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
