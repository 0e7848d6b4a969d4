//! What happens to sandboxes: made, ended by themselves, given up, destroyed.

use super::claims::{Claim, Stage};
use super::event::{CreateFailure, Effect, ExitCause, Notice};
use super::ids::{ClaimId, PoolName, RequestId, SandboxId};
use super::limits::RETRY_MS;
use super::node::Node;
use super::out::Out;
use super::record::{Op, Owner};
use super::refusal::{Refusal, bounded};
use super::sandboxes::{Operation, Residency, Sandbox};
use super::timers::Timer;
use super::view::Source;

impl Node {
    /// What is being made is a clone.
    pub(super) fn cloned(&mut self, id: SandboxId) {
        self.sandboxes.change(id, |sandbox| sandbox.cloned = true);
    }

    /// A creation has ended. What was decided meanwhile is done now.
    pub(super) fn created(
        &mut self,
        id: SandboxId,
        result: Result<(), CreateFailure>,
        out: &mut Out<'_>,
    ) {
        let Some(sandbox) = self.sandboxes.get(id) else {
            return;
        };
        if sandbox.operation != Operation::Create {
            return;
        }
        let result = match (result, sandbox.residency) {
            (Ok(()), Residency::Gone) => Err(CreateFailure::Template(
                "it ended as soon as it was ready".to_owned(),
            )),
            (result, _) => result,
        };
        let owner = sandbox.owner;
        let pool = sandbox.pool.clone();
        let took_ms = out.now().since(sandbox.created_at);
        out.notice(Notice::Created {
            pool: pool.clone(),
            took_ms: result.is_ok().then_some(took_ms),
        });
        self.learn_from_creation(id, &result, out);
        let (round, well) = (self.listing.round, result.is_ok());
        let settle = |sandbox: &mut Sandbox| {
            sandbox.operation = Operation::Idle;
            if well {
                sandbox.residency = Residency::Running;
                sandbox.known_since = round;
            }
        };
        if owner == Owner::Pool && well {
            self.put_sandbox(id, settle, out);
            return self.offer(&pool, out);
        }
        self.sandboxes.change(id, settle);
        match owner {
            Owner::Pool => self.doom(id, out),
            Owner::Claimed(claim) => self.made_for(claim, id, &pool, result, out),
            Owner::Releasing => self.reap(id),
        }
    }

    /// A creation for a cold claim has ended.
    fn made_for(
        &mut self,
        id: ClaimId,
        sandbox: SandboxId,
        pool: &PoolName,
        result: Result<(), CreateFailure>,
        out: &mut Out<'_>,
    ) {
        if let Some(old) = self.replaced_by(id, sandbox) {
            return self.replacement_made(id, old, sandbox, result, out);
        }
        match result {
            Ok(()) => {
                if let Some(Claim {
                    terms,
                    stage: Stage::Making { pending, .. },
                }) = self.claims.remove(&id)
                {
                    let made = self.sandboxes.get(sandbox);
                    let source = made.map_or(Source::Cold, Sandbox::made_as);
                    self.assign(terms, pending, sandbox, source, out);
                }
            }
            Err(failure) => {
                self.doom(sandbox, out);
                self.drop_claim(id, &self.not_made(pool, failure), out);
            }
        }
    }

    fn not_made(&self, name: &PoolName, failure: CreateFailure) -> Refusal {
        match failure {
            CreateFailure::RuntimeUnavailable => Refusal::RuntimeUnavailable { retry_ms: RETRY_MS },
            CreateFailure::Template(detail) => Refusal::CreateFailed {
                pool: name.to_string(),
                detail: bounded(detail),
                retry_ms: match self.pools.get(name) {
                    Some(pool) => pool.refill_estimate_ms(),
                    None => RETRY_MS,
                },
            },
        }
    }

    /// A sandbox ended by itself.
    pub(super) fn ended(&mut self, id: SandboxId, cause: ExitCause, out: &mut Out<'_>) {
        let Some(before) = self.sandboxes.get(id) else {
            return;
        };
        let (owner, operation) = (before.owner, before.operation);
        // It is its image; what ended outside was not it any more, or not it yet.
        if matches!(before.residency, Residency::OnDisk(_)) {
            return;
        }
        let pool = before.pool.clone();
        self.sandboxes
            .change(id, |sandbox| sandbox.residency = Residency::Gone);
        match (owner, operation) {
            // The creation's own end decides.
            (_, Operation::Create) | (Owner::Releasing, _) => {}
            (Owner::Pool, _) => {
                let sandbox = id;
                out.notice(Notice::MemberLost {
                    pool,
                    sandbox,
                    cause,
                });
                self.doom(id, out);
            }
            (Owner::Claimed(claim), _) => {
                let old = self.replaced_by(claim, id);
                self.doom(id, out);
                match old {
                    Some(old) => self.not_replaced(claim, old, "the fresh sandbox ended", out),
                    None => self.lost_by(claim, cause, out),
                }
            }
        }
    }

    /// A claim's sandbox has ended.
    fn lost_by(&mut self, claim: ClaimId, cause: ExitCause, out: &mut Out<'_>) {
        match self.claims.get(&claim).map(|it| &it.stage) {
            Some(Stage::Assigned { .. }) => {
                let why = "its sandbox ended while it was personalized";
                self.try_next_member(claim, why.to_owned(), out);
            }
            // Nobody was told of it: a retry starts anew.
            Some(Stage::Unheld { .. }) => drop(self.remove_claim(claim, out)),
            _ => self.fail_claim(claim, cause, out),
        }
    }

    /// A sandbox is to be destroyed, whatever goes on with it. Only a creation is waited for: destroying beside it could
    /// leave behind what it makes last. A call to its guest ends with the guest.
    pub(super) fn doom(&mut self, id: SandboxId, out: &mut Out<'_>) {
        let Some(sandbox) = self.sandboxes.get(id) else {
            return;
        };
        if sandbox.owner == Owner::Releasing {
            return;
        }
        if let Operation::AskAgain { at, .. } = sandbox.operation {
            self.timers.clear(at, Timer::Witness(id));
        }
        let operation = sandbox.operation;
        self.sinking.forget(id);
        self.drain_forget(id);
        self.put_sandbox(id, |sandbox| sandbox.owner = Owner::Releasing, out);
        if operation != Operation::Create {
            self.reap(id);
        }
        // What was to take its place has none any more.
        if let Operation::Replace { by } = operation {
            self.doom(by, out);
        }
    }

    /// Hands a releasing sandbox to the reaper.
    fn reap(&mut self, id: SandboxId) {
        self.set_operation(id, Operation::Destroy);
        self.reaper.add(id);
    }

    /// Starts what may be destroyed now. The intent is durable: it was persisted in this batch or an earlier one.
    pub(super) fn start_destructions(&mut self, out: &mut Out<'_>) {
        while self.conditions.may_destroy()
            && let Some(sandbox) = self.reaper.start()
        {
            let after = out.ticket();
            out.push(Effect::Destroy { sandbox, after });
        }
    }

    /// A destruction has ended.
    pub(super) fn destroyed(
        &mut self,
        id: SandboxId,
        result: Result<(), String>,
        out: &mut Out<'_>,
    ) {
        if let Err(error) = result {
            if let Some(again_at) = self.reaper.failed(id, out.now()) {
                self.timers.set(again_at, Timer::Destroy(id));
                let (sandbox, error) = (id, bounded(error));
                out.notice(Notice::DestroyRetried { sandbox, error });
            }
        } else if self.reaper.succeeded(id) {
            self.listing.note_destroyed(id);
            if !self.orphans.remove(&id) {
                self.sandboxes.remove(id);
                self.pools_changed = true;
                out.persist(Op::DeleteSandbox(id));
            }
        }
    }

    /// Node.Orphans with destroy: all that are named, or none if one of them is no orphan.
    pub(super) fn destroy_orphans(
        &mut self,
        request: RequestId,
        named: &[SandboxId],
        out: &mut Out<'_>,
    ) {
        if let Err(refusal) = self.conditions.serving() {
            return out.refuse(request, refusal);
        }
        let strangers = named.iter().filter(|id| !self.orphans.contains(id));
        let violations: Vec<_> = strangers
            .map(|id| ("destroy".to_owned(), format!("{id} is no orphan")))
            .collect();
        if !violations.is_empty() {
            return out.refuse(request, Refusal::InvalidArgument(violations));
        }
        for id in named {
            self.reaper.add(*id);
        }
        self.inspect(request, out);
    }

    /// Changes a sandbox and persists it.
    pub(super) fn put_sandbox(
        &mut self,
        id: SandboxId,
        change: impl FnOnce(&mut Sandbox),
        out: &mut Out<'_>,
    ) {
        if let Some(sandbox) = self.sandboxes.change(id, change) {
            out.persist(Op::PutSandbox(sandbox.record()));
            self.pools_changed = true;
        }
    }

    /// Changes what goes on with a sandbox: not durable.
    pub(super) fn set_operation(&mut self, id: SandboxId, operation: Operation) {
        self.sandboxes
            .change(id, |sandbox| sandbox.operation = operation);
    }
}
