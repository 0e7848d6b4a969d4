//! The disk tier: a claim's sandbox becomes an image, and comes back.
//!
//! ```text
//!  Running, Frozen ─▶ Checkpoint ─▶ OnDisk ─▶ Shed ─▶ OnDisk ─▶ Restore ─▶ Running ─▶ Thaw ─▶ Running
//!         ▲               │ failed    │ durable first              │ failed      │ durable first
//!         └───────────────┘           └ the image is the sandbox   └▶ OnDisk     └ then the image goes
//! ```
//! One whose image never comes back is data loss, or replaced: see `replacing`.
//! The sandbox runs on (frozen) while its image is made and sealed, and is shed only after "it is on the disk" is durable;
//! until then an image is garbage. The image goes only after "it runs" is durable, and nothing inside goes on before that;
//! until then what runs is garbage. So whenever hearthd dies, exactly one of the two is the sandbox, and the record says
//! which.

use super::claims::Stage;
use super::event::{CheckpointFailure, Effect, Notice, RestoreFailure, SinkCause, ThawCause};
use super::ids::{ClaimId, Now, SandboxId};
use super::limits::{RETRY_MS, SINK_PAUSE_MS};
use super::node::Node;
use super::out::Out;
use super::record::{Image, Owner};
use super::refusal::{Refusal, bounded};
use super::sandboxes::{Operation, Residency};
use super::timers::Timer;
use std::collections::{BTreeMap, BTreeSet};

/// Claimed sandboxes that are frozen, by how long.
#[derive(Debug, Clone, Default)]
pub(super) struct Sinking {
    since: BTreeMap<SandboxId, Now>,
    order: BTreeSet<(Now, SandboxId)>,
    /// When the next one is due, if its timer is set.
    pub(super) next_at: Option<Now>,
    /// One did not get to the disk: hearth sends none by itself until then.
    rests_until: Option<Now>,
    /// On the disk, and what ran of them could not be shed.
    remains: BTreeSet<SandboxId>,
}

impl Sinking {
    /// It is frozen since then.
    pub(super) fn fell_asleep(&mut self, id: SandboxId, now: Now) {
        self.forget(id);
        self.since.insert(id, now);
        self.order.insert((now, id));
    }

    /// It is on the disk, and something of it is still there beside.
    pub(super) fn has_remains(&self, id: SandboxId) -> bool {
        self.remains.contains(&id)
    }

    /// It wakes, goes to the disk, or goes.
    pub(super) fn forget(&mut self, id: SandboxId) {
        self.remains.remove(&id);
        if let Some(since) = self.since.remove(&id) {
            self.order.remove(&(since, id));
        }
    }

    fn oldest(&self) -> Option<(Now, SandboxId)> {
        self.order.first().copied()
    }
}

impl Node {
    /// Sends to the disk who has been frozen long enough, one after the other, and sets the timer of the next.
    pub(super) fn sink_the_aged(&mut self, out: &mut Out<'_>) {
        let after_ms = self.settings.disk.sink_after_ms;
        while after_ms > 0
            && let Some((since, id)) = self.may_sink(out.now())
            && since.plus(after_ms) <= out.now()
        {
            self.begin_checkpoint(id, SinkCause::Age, out);
        }
        let due = |(since, _): (Now, SandboxId)| {
            let at = since.plus(after_ms);
            self.sinking.rests_until.map_or(at, |rest| at.max(rest))
        };
        let due = (after_ms > 0 && self.may_sink_at_all())
            .then(|| self.sinking.oldest().map(due))
            .flatten();
        let due = due.filter(|at| *at > out.now());
        let held = &mut self.sinking.next_at;
        self.timers.keep(Timer::Sink, held, due);
    }

    /// Memory is short and nobody is left to be frozen: the longest asleep goes to the disk.
    pub(super) fn sink_one(&mut self, out: &mut Out<'_>) {
        if let Some((_, id)) = self.may_sink(out.now()) {
            self.begin_checkpoint(id, SinkCause::Pressure, out);
        }
    }

    fn may_sink_at_all(&self) -> bool {
        self.settings.disk.enabled && self.conditions.may_create() && self.sandboxes.sinking() == 0
    }

    /// Who would be sent now by hearth's own decision: the longest asleep.
    fn may_sink(&mut self, now: Now) -> Option<(Now, SandboxId)> {
        let rests = self.sinking.rests_until.is_some_and(|until| now < until);
        if rests || !self.may_sink_at_all() {
            return None;
        }
        while let Some((since, id)) = self.sinking.oldest() {
            let it = self.sandboxes.get(id);
            let sleeps = it.is_some_and(|it| {
                it.residency == Residency::Frozen
                    && it.operation == Operation::Idle
                    && matches!(it.owner, Owner::Claimed(_))
            });
            if sleeps {
                return Some((since, id));
            }
            self.sinking.forget(id);
        }
        None
    }

    /// May a caller send a sandbox to the disk?
    pub(super) fn disk_tier(&self) -> Result<(), Refusal> {
        if !self.settings.disk.enabled {
            let what = "Hibernate with TIER_DISK".to_owned();
            return Err(Refusal::Unsupported { what });
        }
        match self.conditions.runtime_available {
            true => Ok(()),
            false => Err(Refusal::RuntimeUnavailable { retry_ms: RETRY_MS }),
        }
    }

    /// Needs no intent: nothing is lost however it ends. But its claim must be durable, which may be told to nobody yet.
    pub(super) fn begin_checkpoint(&mut self, id: SandboxId, cause: SinkCause, out: &mut Out<'_>) {
        self.sinking.forget(id);
        self.sampling.forget(id);
        let before = self.sandboxes.get(id).map(|it| it.residency);
        let asleep = before == Some(Residency::Frozen);
        if !asleep {
            self.listen_for(id, out.now());
        }
        self.set_operation(id, Operation::Checkpoint);
        self.pools_changed = true;
        let after = out.ticket();
        out.push(Effect::Checkpoint {
            sandbox: id,
            asleep,
            after,
        });
        out.notice(Notice::SinkStarted { cause });
        self.show_claim_of(id, out);
    }

    /// A checkpoint has ended.
    pub(super) fn checkpointed(
        &mut self,
        id: SandboxId,
        result: Result<u64, CheckpointFailure>,
        out: &mut Out<'_>,
    ) {
        let Some(claim) = self.claimed_in(id, Operation::Checkpoint) else {
            return;
        };
        let wanted_awake = self.residing.sleepers.someone_wakes(claim);
        match result {
            Ok(_) if wanted_awake => {
                self.sandboxes.change(id, |sandbox| {
                    sandbox.residency = Residency::Frozen;
                    sandbox.operation = Operation::Idle;
                });
                let after = out.ticket();
                out.push(Effect::DropImage { sandbox: id, after });
                self.fell_asleep(claim, id, None, out);
            }
            Ok(size_bytes) => {
                let since = out.now();
                let image = Image { size_bytes, since };
                let sink = |sandbox: &mut super::sandboxes::Sandbox| {
                    sandbox.residency = Residency::OnDisk(image);
                    sandbox.operation = Operation::Shed;
                };
                self.put_sandbox(id, sink, out);
                let after = out.ticket();
                out.push(Effect::Shed { sandbox: id, after });
                self.fell_asleep(claim, id, None, out);
            }
            Err(failure) => self.not_checkpointed(claim, id, failure, out),
        }
    }

    fn not_checkpointed(
        &mut self,
        claim: ClaimId,
        id: SandboxId,
        failure: CheckpointFailure,
        out: &mut Out<'_>,
    ) {
        self.set_operation(id, Operation::Idle);
        self.pools_changed = true;
        let until = out.now().plus(SINK_PAUSE_MS);
        self.sinking.rests_until = Some(until);
        if self.is_frozen(id) {
            self.sinking.fell_asleep(id, out.now());
            // The checkpoint has ended the one under way, and may have brought its memory back.
            out.push(Effect::Reclaim { sandbox: id });
        }
        self.drain_not_stowed(id, &failure, out);
        let name = claim.to_string();
        let (error, refusal) = match failure {
            CheckpointFailure::NoRoom(detail) => {
                let detail = bounded(detail);
                let refusal = Refusal::NoRoomOnDisk {
                    claim: name,
                    detail: detail.clone(),
                    retry_ms: SINK_PAUSE_MS,
                };
                (detail, refusal)
            }
            CheckpointFailure::Mismatch(detail) => {
                let detail = bounded(detail);
                let refusal = Refusal::NotRestorable {
                    claim: name,
                    detail: detail.clone(),
                };
                (detail, refusal)
            }
            CheckpointFailure::Failed(detail) => {
                let detail = bounded(detail);
                let refusal = Refusal::HibernateFailed {
                    claim: name,
                    detail: detail.clone(),
                    retry_ms: RETRY_MS,
                };
                (detail, refusal)
            }
        };
        out.notice(Notice::SinkFailed { sandbox: id, error });
        self.fell_asleep(claim, id, Some(refusal), out);
        self.show_claim_of(id, out);
    }

    /// What ran of it is gone. If not, it is tried again at the next listing, whatever that shows: of what has died there is
    /// no more to be seen than of what is gone.
    pub(super) fn shed(&mut self, id: SandboxId, result: Result<(), String>, out: &mut Out<'_>) {
        let Some(claim) = self.claimed_in(id, Operation::Shed) else {
            return;
        };
        self.set_operation(id, Operation::Idle);
        self.pools_changed = true;
        self.sinking.remains.remove(&id);
        if let Err(error) = result {
            self.sinking.remains.insert(id);
            let (sandbox, error) = (id, bounded(error));
            out.notice(Notice::SinkFailed { sandbox, error });
        }
        if let Some(cause) = self.residing.sleepers.why_awake(claim) {
            self.begin_restore(id, cause, out);
        }
    }

    /// What the outside shows beside sandboxes that are on the disk goes: at the first listing of each, for some of it
    /// may not show; later of those that live, and of those of which it could not be shed before.
    pub(super) fn shed_remains(&mut self, alive: &BTreeSet<SandboxId>, out: &mut Out<'_>) {
        let first = self.conditions.recovering;
        let on_disk = self.sandboxes.iter().filter(|it| {
            matches!(it.residency, Residency::OnDisk(_)) && matches!(it.owner, Owner::Claimed(_))
        });
        let on_disk: Vec<_> = on_disk.map(|it| (it.id, it.operation)).collect();
        for (id, operation) in &on_disk {
            let seen = alive.contains(id) || self.sinking.has_remains(*id);
            if *operation == Operation::Idle && (first || seen) {
                self.set_operation(*id, Operation::Shed);
                let (sandbox, after) = (*id, out.ticket());
                out.push(Effect::Shed { sandbox, after });
            }
        }
        if first {
            let kept = on_disk.into_iter().map(|(id, _)| id);
            out.push(Effect::KeepImages(kept.collect()));
        }
    }

    pub(super) fn begin_restore(&mut self, id: SandboxId, cause: ThawCause, out: &mut Out<'_>) {
        let Some(sandbox) = self.sandboxes.get(id) else {
            return;
        };
        let restore = Effect::Restore {
            sandbox: id,
            pool: sandbox.pool.clone(),
            made_with: sandbox.network.clone(),
            in_force: self.in_force(sandbox).into(),
        };
        self.set_operation(id, Operation::Restore);
        self.pools_changed = true;
        out.push(restore);
        out.notice(Notice::RestoreStarted { cause });
        self.show_claim_of(id, out);
    }

    /// A restore has ended.
    pub(super) fn restored(
        &mut self,
        id: SandboxId,
        result: Result<(), RestoreFailure>,
        out: &mut Out<'_>,
    ) {
        let Some(claim) = self.claimed_in(id, Operation::Restore) else {
            return;
        };
        let failure = match result {
            Ok(()) => return self.is_back(claim, id, out),
            Err(failure) => failure,
        };
        let name = claim.to_string();
        let (error, refusal) = match failure {
            RestoreFailure::Unavailable(detail) => {
                let detail = bounded(detail);
                let refusal = Refusal::ResumeFailed {
                    claim: name,
                    detail: detail.clone(),
                    retry_ms: RETRY_MS,
                };
                (detail, Some(refusal))
            }
            RestoreFailure::Mismatch(detail) => {
                let detail = bounded(detail);
                let refusal = Refusal::ImageMismatch {
                    claim: name,
                    detail: detail.clone(),
                };
                (detail, Some(refusal))
            }
            RestoreFailure::Lost(detail) => (bounded(detail), None),
        };
        out.notice(Notice::RestoreFailed { sandbox: id, error });
        match refusal {
            Some(refusal) => {
                self.set_operation(id, Operation::Idle);
                self.pools_changed = true;
                self.woke_up(claim, id, Some(refusal), out);
                self.show_claim_of(id, out);
            }
            None => self.image_lost(claim, id, out),
        }
    }

    /// It runs, and everybody inside waits: what they do is theirs once "it runs" is durable.
    fn is_back(&mut self, claim: ClaimId, id: SandboxId, out: &mut Out<'_>) {
        // What was left of it was shed before.
        self.sinking.forget(id);
        let round = self.listing.round;
        let wake = |sandbox: &mut super::sandboxes::Sandbox| {
            sandbox.residency = Residency::Running;
            sandbox.operation = Operation::Thaw;
            sandbox.known_since = round;
        };
        self.put_sandbox(id, wake, out);
        let after = out.ticket();
        // What callers are told of it from now on must not be undone.
        if let Some(Stage::Held { assignment }) =
            self.claims.get_mut(&claim).map(|it| &mut it.stage)
        {
            assignment.ticket = after;
        }
        out.push(Effect::GoOn { sandbox: id, after });
        out.push(Effect::DropImage { sandbox: id, after });
        self.show_claim_of(id, out);
    }

    /// The claim of a sandbox with which exactly this goes on. `None`: it was overtaken and means nothing any more.
    fn claimed_in(&self, id: SandboxId, operation: Operation) -> Option<ClaimId> {
        let it = self.sandboxes.get(id);
        match it.filter(|it| it.operation == operation)?.owner {
            Owner::Claimed(claim) => Some(claim),
            Owner::Pool | Owner::Releasing => None,
        }
    }
}
