//! Rule 5: allocators are fenced by epoch.

use super::ids::Ticket;
use super::out::Out;
use super::record::Op;
use super::refusal::Refusal;
use super::spec::Fence;

/// The largest epoch seen, and whose it is.
#[derive(Debug, Clone)]
pub(super) struct Fencing {
    seen: Option<Fence>,
    /// Of the batch that persisted it.
    ticket: Ticket,
}

impl Fencing {
    pub(super) fn recovered(seen: Option<Fence>) -> Self {
        Self {
            seen,
            ticket: Ticket(0),
        }
    }

    /// Admits a mutating call, or refuses it as stale or in conflict. A larger epoch is persisted with the call that
    /// brought it, even if the call is then refused for another reason. The answer must wait for the ticket returned:
    /// who has been answered under an epoch must never see a smaller one succeed, crash or not.
    ///
    /// An epoch belongs to the first allocator that comes with it. A caller without a name (an admin) never owns one:
    /// only its staleness is checked.
    pub(super) fn admit(&mut self, fence: Fence, out: &mut Out<'_>) -> Result<Ticket, Refusal> {
        match &self.seen {
            Some(seen) if fence.epoch < seen.epoch => Err(Refusal::EpochStale {
                current: seen.epoch,
            }),
            Some(seen) if fence.epoch == seen.epoch => match (&seen.caller, &fence.caller) {
                (Some(owner), Some(caller)) if owner != caller => Err(Refusal::EpochConflict {
                    current: seen.epoch,
                }),
                (None, Some(_)) => Ok(self.put(fence, out)),
                (Some(_) | None, Some(_) | None) => Ok(self.ticket),
            },
            Some(_) | None => Ok(self.put(fence, out)),
        }
    }

    fn put(&mut self, fence: Fence, out: &mut Out<'_>) -> Ticket {
        out.persist(Op::PutFence(fence.clone()));
        self.seen = Some(fence);
        self.ticket = out.ticket();
        self.ticket
    }

    /// The largest epoch seen, 0: none.
    pub(super) fn epoch(&self) -> u64 {
        self.seen.as_ref().map_or(0, |seen| seen.epoch)
    }
}
