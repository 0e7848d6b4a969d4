//! Where a step writes its effects.

use super::event::{Effect, Notice, Step};
use super::ids::{Now, RequestId, Ticket};
use super::record::Op;
use super::refusal::Refusal;
use super::view::{Answer, ClaimView};

/// The effects of one step, with what the step knows.
pub(super) struct Out<'a> {
    step: Step,
    effects: &'a mut Vec<Effect>,
}

impl<'a> Out<'a> {
    pub(super) fn new(step: Step, effects: &'a mut Vec<Effect>) -> Self {
        Self { step, effects }
    }

    pub(super) fn now(&self) -> Now {
        self.step.now
    }

    /// Of the commit that will hold what this step persists.
    pub(super) fn ticket(&self) -> Ticket {
        self.step.ticket
    }

    pub(super) fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(super) fn persist(&mut self, op: Op) {
        self.push(Effect::Persist(op));
    }

    pub(super) fn notice(&mut self, notice: Notice) {
        self.push(Effect::Notice(notice));
    }

    pub(super) fn answer(&mut self, to: RequestId, answer: Answer, after: Ticket) {
        let answer = Ok(answer);
        self.push(Effect::Reply { to, answer, after });
    }

    /// A refusal may tell of anything this batch and those before it decided: it waits for all of that.
    pub(super) fn refuse(&mut self, to: RequestId, refusal: Refusal) {
        let (answer, after) = (Err(refusal), self.ticket());
        self.push(Effect::Reply { to, answer, after });
    }

    pub(super) fn claim_changed(&mut self, view: ClaimView, removed: bool, after: Ticket) {
        let view = Box::new(view);
        self.push(Effect::ClaimChanged {
            view,
            removed,
            after,
        });
    }
}
