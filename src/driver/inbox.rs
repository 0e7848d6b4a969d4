//! What comes in to the driver: calls in two bounded lanes, so that claims never starve releases and renewals.

use super::{Answered, Handle};
use crate::guest::Personalization;
use crate::machine::event::Call;
use crate::machine::limits;
use crate::machine::refusal::Refusal;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

/// A call on its way to the machine.
pub(super) struct Asked {
    pub(super) call: Call,
    pub(super) personalization: Option<Arc<Personalization>>,
    /// The caller may be gone: then nobody hears the answer, and what was started goes on.
    pub(super) answer: oneshot::Sender<Result<Answered, Refusal>>,
    pub(super) accepted: Instant,
    pub(super) span: Span,
}

/// Calls that came together and share a batch.
type Together = Vec<Asked>;

/// The senders' side.
#[derive(Clone)]
pub(super) struct Lanes {
    claims: mpsc::Sender<Together>,
    others: mpsc::Sender<Together>,
}

/// The driver's side.
pub(super) struct Inbox {
    pub(super) claims: mpsc::Receiver<Together>,
    pub(super) others: mpsc::Receiver<Together>,
}

pub(super) fn inbox() -> (Lanes, Inbox) {
    let (claims_in, claims) = mpsc::channel(limits::DRIVER_QUEUE);
    let (others_in, others) = mpsc::channel(limits::DRIVER_QUEUE);
    let lanes = Lanes {
        claims: claims_in,
        others: others_in,
    };
    (lanes, Inbox { claims, others })
}

/// How soon a caller may ask again when a lane is full: a batch takes less.
const FULL_RETRY_MS: u64 = 50;

impl Lanes {
    /// Puts calls into their lane, all or none; one receiver each, in order.
    pub(super) fn put(
        &self,
        calls: Vec<(Call, Option<Arc<Personalization>>)>,
    ) -> Result<Vec<oneshot::Receiver<Result<Answered, Refusal>>>, Refusal> {
        let claims = calls
            .iter()
            .any(|(call, _)| matches!(call, Call::Claim(..)));
        let accepted = Instant::now();
        let span = Span::current();
        let mut receivers = Vec::with_capacity(calls.len());
        let mut together = Vec::with_capacity(calls.len());
        for (call, personalization) in calls {
            let (answer, receiver) = oneshot::channel();
            receivers.push(receiver);
            together.push(Asked {
                call,
                personalization,
                answer,
                accepted,
                span: span.clone(),
            });
        }
        let lane = if claims { &self.claims } else { &self.others };
        match lane.try_send(together) {
            Ok(()) => Ok(receivers),
            Err(mpsc::error::TrySendError::Full(_)) => Err(Refusal::QueueFull {
                queue: "requests",
                retry_ms: FULL_RETRY_MS,
            }),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Handle::gone()),
        }
    }

    /// Calls that wait now, for the metric.
    pub(super) fn waiting(&self) -> usize {
        let used = |lane: &mpsc::Sender<Together>| lane.max_capacity() - lane.capacity();
        used(&self.claims) + used(&self.others)
    }
}
