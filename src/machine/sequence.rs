//! Sandbox ids: numbered, never reused.

use super::ids::{NodeTag, SandboxId};
use super::limits::SEQUENCE_BLOCK;
use super::out::Out;
use super::record::Op;

/// The next id. Numbers are reserved durably in blocks: the reservation is persisted in a batch no later than the first
/// use, and an id is only used (`Effect::Create`) once that batch is durable.
#[derive(Debug, Clone)]
pub(super) struct Sequence {
    tag: NodeTag,
    next: u64,
    reserved: u64,
}

impl Sequence {
    /// `next`: first number that was never reserved.
    pub(super) fn starting_at(tag: NodeTag, next: u64) -> Self {
        Self {
            tag,
            next,
            reserved: next,
        }
    }

    /// A fresh id; `None` when all 2^48 are used.
    pub(super) fn take(&mut self, out: &mut Out<'_>) -> Option<SandboxId> {
        let id = SandboxId::new(self.tag, self.next)?;
        self.next += 1;
        if self.next > self.reserved {
            self.reserved += SEQUENCE_BLOCK;
            out.persist(Op::PutSequence(self.reserved));
        }
        Some(id)
    }

    /// A sandbox with this id was found outside: never use its number, nor one before it. (The data directory may have
    /// been put back from an older copy.)
    pub(super) fn skip(&mut self, found: SandboxId, out: &mut Out<'_>) {
        if found.tag() == self.tag && found.sequence() >= self.reserved {
            self.next = found.sequence() + 1;
            self.reserved = self.next + SEQUENCE_BLOCK;
            out.persist(Op::PutSequence(self.reserved));
        }
    }

    /// Has this id been given out, and durably reserved?
    pub(super) fn covers(&self, id: SandboxId) -> bool {
        id.sequence() < self.next && self.next <= self.reserved
    }
}
