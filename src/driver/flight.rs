//! Calls in flight: who waits for an answer, with what personalization, and when each stage was reached.

use super::handle::{Answered, Timings};
use super::inbox::Asked;
use crate::failpoint::failpoint;
use crate::guest::Personalization;
use crate::machine::event::Call;
use crate::machine::ids::{RequestId, SandboxId, Ticket};
use crate::machine::refusal::Refusal;
use crate::machine::view::Answer;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::oneshot;
use tracing::{Span, debug, debug_span};

struct Flight {
    answer: oneshot::Sender<Result<Answered, Refusal>>,
    personalization: Option<Arc<Personalization>>,
    span: Span,
    accepted: Instant,
    /// The span of the stage until a member is assigned.
    queue: Option<Span>,
    assigned: Option<Assigned>,
}

struct Assigned {
    sandbox: SandboxId,
    at: Instant,
    durable: Option<Instant>,
    acknowledged: Option<Instant>,
    /// The spans of the two stages, each until it is over.
    commit: Option<Span>,
    guest: Option<Span>,
}

/// All calls that the machine has still to answer.
#[derive(Default)]
pub(super) struct Flights {
    next: u64,
    open: BTreeMap<RequestId, Flight>,
    /// Claims whose assignment is being committed, oldest ticket first.
    committing: VecDeque<(Ticket, RequestId)>,
    /// Claims whose guest is being personalized.
    personalizing: BTreeMap<SandboxId, RequestId>,
}

impl Flights {
    /// Numbers a call and remembers who asked.
    pub(super) fn begin(&mut self, asked: Asked) -> (RequestId, Call) {
        let id = RequestId(self.next);
        self.next += 1;
        let queue = match asked.call {
            Call::Claim(..) => Some(debug_span!(parent: &asked.span, "queue")),
            _ => None,
        };
        let flight = Flight {
            answer: asked.answer,
            personalization: asked.personalization,
            span: asked.span,
            accepted: asked.accepted,
            queue,
            assigned: None,
        };
        self.open.insert(id, flight);
        (id, asked.call)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }

    /// A sandbox was assigned to the claim that `id` asks for; what to personalize it with, and under which span. `None`:
    /// nobody brought anything.
    pub(super) fn assigned(
        &mut self,
        id: Option<RequestId>,
        sandbox: SandboxId,
        ticket: Ticket,
    ) -> (Arc<Personalization>, Span) {
        let flight = id.and_then(|id| Some((id, self.open.get_mut(&id)?)));
        let Some((id, flight)) = flight else {
            // The machine names an unanswered request; should it err, the guest gets an empty personalization, which
            // the machine's own invariants then show.
            return (Arc::default(), Span::none());
        };
        drop(flight.queue.take());
        flight.assigned = Some(Assigned {
            sandbox,
            at: Instant::now(),
            durable: None,
            acknowledged: None,
            commit: Some(debug_span!(parent: &flight.span, "commit")),
            guest: Some(debug_span!(parent: &flight.span, "guest")),
        });
        self.committing.push_back((ticket, id));
        self.personalizing.insert(sandbox, id);
        let what = flight.personalization.clone().unwrap_or_default();
        (what, flight.span.clone())
    }

    /// The guest of `sandbox` has answered.
    pub(super) fn acknowledged(&mut self, sandbox: SandboxId) {
        let id = self.personalizing.remove(&sandbox);
        let flight = id.and_then(|id| self.open.get_mut(&id));
        if let Some(assigned) = flight.and_then(|flight| flight.assigned.as_mut())
            && assigned.sandbox == sandbox
        {
            assigned.acknowledged = Some(Instant::now());
            drop(assigned.guest.take());
        }
    }

    /// Everything up to `ticket` is durable.
    pub(super) fn durable(&mut self, ticket: Ticket) {
        let now = Instant::now();
        while let Some((oldest, id)) = self.committing.front().copied() {
            if oldest > ticket {
                return;
            }
            self.committing.pop_front();
            let Some(flight) = self.open.get_mut(&id) else {
                continue;
            };
            debug!(parent: &flight.span, ticket = oldest.0, "journal committed");
            if let Some(assigned) = flight.assigned.as_mut() {
                assigned.durable = Some(now);
                drop(assigned.commit.take());
            }
        }
    }

    /// Answers a request. One that is not open was answered before: the machine's bug, and nobody is there to tell.
    pub(super) fn answer(&mut self, id: RequestId, answer: Result<Answer, Refusal>) {
        let Some(flight) = self.open.remove(&id) else {
            tracing::error!(request = id.0, "answered twice");
            return;
        };
        if let Ok(answer) = &answer {
            durable_and_untold(answer);
        }
        let timings = flight.timings();
        debug!(parent: &flight.span, ?timings, refused = answer.is_err(), "driver answered");
        let answered = answer.map(|answer| Answered { answer, timings });
        // The caller may have gone; what it asked for stands all the same.
        let _gone = flight.answer.send(answered);
    }
}

/// The answers of calls that change something.
fn durable_and_untold(answer: &Answer) {
    match answer {
        Answer::Granted(_) => failpoint!("reply.granted"),
        Answer::Released => failpoint!("reply.released"),
        Answer::Renewed { .. } => failpoint!("reply.renewed"),
        Answer::Hibernated => failpoint!("reply.hibernated"),
        Answer::Resumed => failpoint!("reply.resumed"),
        Answer::PoolsSet { .. } | Answer::WarmPoolsSet(_) => failpoint!("reply.pools"),
        Answer::Drain(_) => failpoint!("reply.drain"),
        Answer::Claim(_)
        | Answer::Claims { .. }
        | Answer::Pools { .. }
        | Answer::Located { .. }
        | Answer::Node(_) => {}
    }
}

impl Flight {
    fn timings(&self) -> Timings {
        let mut timings = Timings {
            total: self.accepted.elapsed(),
            ..Timings::default()
        };
        if let Some(assigned) = &self.assigned {
            let since = |at: Instant| at.saturating_duration_since(assigned.at);
            timings.queue = Some(assigned.at.saturating_duration_since(self.accepted));
            timings.commit = assigned.durable.map(since);
            timings.guest = assigned.acknowledged.map(since);
        }
        timings
    }
}
