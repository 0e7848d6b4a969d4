//! Guests asked after a restart what they hold.

use super::claiming::{granted, refuse_all};
use super::claims::{Askers, Assignment, Claim, Stage};
use super::event::{Effect, ExitCause, Held};
use super::ids::{ClaimId, SandboxId};
use super::limits::{WITNESS_RETRY_MAX_MS, WITNESS_RETRY_MS, WITNESS_TRIES};
use super::node::Node;
use super::out::Out;
use super::reaper::back_off;
use super::record::{Op, Owner};
use super::refusal::Refusal;
use super::sandboxes::{Operation, Residency, Sandbox};
use super::timers::Timer;

impl Node {
    /// Asks a guest now, unless it is being asked. Questions are out for all guests at once, at most one each; the
    /// driver bounds how many run.
    pub(super) fn ask(&mut self, id: SandboxId, out: &mut Out<'_>) {
        let Some(sandbox) = self.sandboxes.get(id) else {
            return;
        };
        let tries = match (sandbox.residency, sandbox.operation) {
            (Residency::Unknown { .. }, Operation::Idle) => 0,
            (Residency::Unknown { .. }, Operation::AskAgain { tries, at }) => {
                self.timers.clear(at, Timer::Witness(id));
                tries
            }
            _ => return,
        };
        self.set_operation(id, Operation::Witness { tries });
        out.push(Effect::Witness { sandbox: id });
    }

    /// A guest has told what it holds, or nothing.
    pub(super) fn witnessed(&mut self, id: SandboxId, held: Held, out: &mut Out<'_>) {
        let Some(sandbox) = self.sandboxes.get(id) else {
            return;
        };
        let Operation::Witness { tries } = sandbox.operation else {
            return;
        };
        let tries = tries.saturating_add(1);
        match (sandbox.owner, held) {
            (Owner::Pool, Held::Nothing) => {
                let pool = sandbox.pool.clone();
                self.proved(id, out);
                self.offer(&pool, out);
            }
            // Personalized ahead of a commit that never was: used, though nobody was told.
            (Owner::Pool, Held::Claim(_)) => self.doom(id, out),
            (Owner::Pool, Held::Silent) if tries >= WITNESS_TRIES => {
                self.ended(id, ExitCause::GuestLost, out);
            }
            (Owner::Pool, Held::Silent) => self.ask_again(id, tries, out),
            (Owner::Claimed(claim), held) => self.witnessed_for(claim, id, held, tries, out),
            (Owner::Releasing, _) => {}
        }
    }

    /// A recovered claim's guest has answered; requests may be waiting for that.
    fn witnessed_for(
        &mut self,
        id: ClaimId,
        sandbox: SandboxId,
        held: Held,
        tries: u32,
        out: &mut Out<'_>,
    ) {
        // It cannot hold another claim, whatever it says: it is not what was handed out.
        if matches!(held, Held::Claim(other) if other != id) {
            return self.ended(sandbox, ExitCause::GuestLost, out);
        }
        let Some(Claim {
            stage: Stage::Unknown { assignment, askers },
            ..
        }) = self.claims.get_mut(&id)
        else {
            return;
        };
        let (assignment, askers) = (assignment.clone(), std::mem::take(askers));
        match held {
            Held::Claim(_) => {
                self.proved(sandbox, out);
                self.confirm_recovered(id, assignment, &askers, out);
            }
            Held::Nothing => {
                self.proved(sandbox, out);
                self.serve_unheld(id, assignment, askers, out);
            }
            // Unknown is not dead. Those who wait are told to come again.
            Held::Silent => {
                let claim = id.to_string();
                refuse_all(&askers.0, &Refusal::ClaimRecovering { claim }, out);
                self.ask_again(sandbox, tries, out);
            }
        }
    }

    fn confirm_recovered(
        &mut self,
        id: ClaimId,
        assignment: Assignment,
        askers: &Askers,
        out: &mut Out<'_>,
    ) {
        for asker in &askers.0 {
            let after = assignment.ticket.max(asker.not_before);
            out.answer(asker.request, granted(id, &assignment), after);
        }
        if let Some(claim) = self.claims.remove(&id) {
            let stage = Stage::Held { assignment };
            self.confirm(Claim { stage, ..claim }, out);
        }
    }

    fn serve_unheld(
        &mut self,
        id: ClaimId,
        assignment: Assignment,
        askers: Askers,
        out: &mut Out<'_>,
    ) {
        let mut askers = askers.0.into_iter();
        match askers.next() {
            None => self.change_stage(id, Stage::Unheld { assignment }, out),
            Some(first) => {
                let pending = self.pending(first, Askers(askers.collect()));
                self.personalize_again(id, assignment, pending, out);
            }
        }
    }

    /// It is there and answers.
    fn proved(&mut self, id: SandboxId, out: &mut Out<'_>) {
        self.set_operation(id, Operation::Idle);
        self.found_there(id, false, out);
    }

    /// It is there, as the outside shows it; its record follows where it says otherwise.
    pub(super) fn found_there(&mut self, id: SandboxId, frozen: bool, out: &mut Out<'_>) {
        let round = self.listing.round;
        let before = self.sandboxes.get(id).map(|it| it.record().residency);
        let found = self.sandboxes.change(id, |sandbox| {
            sandbox.residency = match frozen {
                true => Residency::Frozen,
                false => Residency::Running,
            };
            sandbox.known_since = round;
        });
        if let Some(record) = found.map(Sandbox::record)
            && before != Some(record.residency)
        {
            out.persist(Op::PutSandbox(record));
        }
        self.pools_changed = true;
    }

    fn ask_again(&mut self, id: SandboxId, tries: u32, out: &mut Out<'_>) {
        let pause_ms = back_off(WITNESS_RETRY_MS, WITNESS_RETRY_MAX_MS, tries);
        let at = out.now().plus(pause_ms);
        self.timers.set(at, Timer::Witness(id));
        self.set_operation(id, Operation::AskAgain { tries, at });
    }
}
