//! A drain in mode Hibernate empties the memory too: what sleeps goes to the disk, a few at a time, where there is a disk
//! tier.
//!
//! ```text
//!  Frozen ─▶ Checkpoint ─▶ OnDisk                 first asleep, then stowed: a checkpoint that fails leaves it frozen
//!    ▲           │ failed: again after a pause, a few times
//!    └───────────┘ too often: it stays frozen, and the drain says why
//! ```
//! None of this is durable: a restart tries again those that were left, from the beginning.

use super::event::{CheckpointFailure, SinkCause};
use super::ids::{Now, SandboxId};
use super::limits::{DRAIN_KEPT_SHOWN, DRAIN_SINK_RETRY_MS, DRAIN_SINK_TRIES, NODE_PARALLEL_SINKS};
use super::node::Node;
use super::out::Out;
use super::record::Owner;
use super::refusal::bounded;
use super::sandboxes::{Operation, Residency, Sandbox, Sandboxes};
use super::timers::Timer;
use super::view::{Kept, NotStowed};
use std::collections::BTreeMap;

/// A sandbox that did not get to the disk.
#[derive(Debug, Clone)]
struct Left {
    tries: u32,
    /// When it is tried again; `None`: it is given up.
    again_at: Option<Now>,
    why: NotStowed,
    detail: String,
}

/// How the drain's way to the disk stands, beyond what sandboxes themselves show.
#[derive(Debug, Clone, Default)]
pub(super) struct Stowing {
    left: BTreeMap<SandboxId, Left>,
    /// When the next one is tried again, if its timer is set.
    pub(super) next_at: Option<Now>,
}

impl Stowing {
    /// It is not given up.
    fn hopes_for(&self, id: SandboxId) -> bool {
        self.left.get(&id).is_none_or(|it| it.again_at.is_some())
    }

    /// It may be tried now.
    fn may_try(&self, id: SandboxId, now: Now) -> bool {
        let left = self.left.get(&id);
        left.is_none_or(|it| it.again_at.is_some_and(|at| at <= now))
    }

    fn failed(&mut self, id: SandboxId, failure: &CheckpointFailure, now: Now) {
        let tries = self.left.get(&id).map_or(0, |it| it.tries) + 1;
        let (why, detail) = match failure {
            CheckpointFailure::NoRoom(detail) => (NotStowed::NoRoom, detail),
            CheckpointFailure::Mismatch(detail) => (NotStowed::NotRestorable, detail),
            CheckpointFailure::Failed(detail) => (NotStowed::Failed, detail),
        };
        // Room may come free while others shrink to their sealed size, or go. What it was made with does not come back.
        let again = tries < DRAIN_SINK_TRIES && why != NotStowed::NotRestorable;
        let left = Left {
            tries,
            again_at: again.then(|| now.plus(DRAIN_SINK_RETRY_MS)),
            why,
            detail: bounded(detail.clone()),
        };
        self.left.insert(id, left);
    }

    /// Those that are given up, and sleep in memory.
    pub(super) fn kept(&self, sandboxes: &Sandboxes) -> Vec<Kept> {
        let given_up = self.left.iter().filter(|(_, it)| it.again_at.is_none());
        let kept = given_up.filter_map(|(id, left)| {
            let it = sandboxes.get(*id)?;
            match (it.owner, it.residency) {
                (Owner::Claimed(claim), Residency::Frozen) => Some(Kept {
                    claim,
                    why: left.why,
                    detail: left.detail.clone(),
                }),
                _ => None,
            }
        });
        kept.take(DRAIN_KEPT_SHOWN).collect()
    }
}

impl Node {
    /// Sends to the disk who sleeps, and sets the timer of the next retry. Called at the end of every step of a drain in
    /// mode Hibernate.
    pub(super) fn stow(&mut self, out: &mut Out<'_>) {
        while self.settings.disk.enabled
            && self.conditions.may_destroy()
            && self.sandboxes.sinking() < NODE_PARALLEL_SINKS
            && let Some(id) = self.next_to_stow(out.now())
        {
            self.begin_checkpoint(id, SinkCause::Drain, out);
        }
        let Some(drain) = &mut self.drain else {
            return;
        };
        let retries = drain.stowing.left.values().filter_map(|it| it.again_at);
        let next = retries.filter(|at| *at > out.now()).min();
        let held = &mut drain.stowing.next_at;
        self.timers.keep(Timer::DrainSink, held, next);
    }

    fn next_to_stow(&self, now: Now) -> Option<SandboxId> {
        let stowing = &self.drain.as_ref()?.stowing;
        let may = |it: &&Sandbox| {
            it.residency == Residency::Frozen
                && it.operation == Operation::Idle
                && stowing.may_try(it.id, now)
                && self.is_held(it)
        };
        self.sandboxes.iter().find(may).map(|it| it.id)
    }

    /// A retry has fallen due: the end of the step does it.
    pub(super) fn drain_sink_due(&mut self) {
        if let Some(drain) = &mut self.drain {
            drain.stowing.next_at = None;
        }
    }

    /// A checkpoint has failed, whoever asked for it.
    pub(super) fn drain_not_stowed(
        &mut self,
        id: SandboxId,
        failure: &CheckpointFailure,
        out: &Out<'_>,
    ) {
        if let Some(drain) = &mut self.drain
            && drain.hibernates()
        {
            drain.stowing.failed(id, failure, out.now());
        }
    }

    /// It goes.
    pub(super) fn drain_forget(&mut self, id: SandboxId) {
        if let Some(drain) = &mut self.drain {
            drain.stowing.left.remove(&id);
        }
    }

    /// The same drain was asked for again: those that were given up are tried again.
    pub(super) fn stow_anew(&mut self) {
        if let Some(drain) = &mut self.drain {
            let left = &mut drain.stowing.left;
            left.retain(|_, it| it.again_at.is_some());
        }
    }

    /// It is on the disk, and nothing of it runs.
    pub(super) fn is_stowed(&self, it: &Sandbox) -> bool {
        let on_disk = matches!(it.residency, Residency::OnDisk(_));
        on_disk && it.operation == Operation::Idle && !self.sinking.has_remains(it.id)
    }

    /// The drain is to see it on the disk, or is at it.
    pub(super) fn is_to_stow(&self, it: &Sandbox) -> bool {
        let drain = self.drain.as_ref().filter(|drain| drain.hibernates());
        let Some(drain) = drain.filter(|_| self.settings.disk.enabled) else {
            return false;
        };
        match (it.residency, it.operation) {
            (Residency::OnDisk(_), Operation::Shed) => true,
            (Residency::OnDisk(_), Operation::Idle) => self.sinking.has_remains(it.id),
            (Residency::Frozen, Operation::Idle | Operation::Checkpoint) => {
                self.is_held(it) && drain.stowing.hopes_for(it.id)
            }
            _ => false,
        }
    }
}
