//! Rule 1: released claims are remembered.

use super::event::Notice;
use super::ids::{ClaimId, Now};
use super::limits::{TOMBSTONE_MIN_AGE_MS, TOMBSTONES};
use super::out::Out;
use super::record::Op;
use std::collections::{BTreeMap, BTreeSet};

/// At least [`TOMBSTONE_MIN_AGE_MS`], at most [`TOMBSTONES`]. No timer: each new one sweeps out two that are old enough,
/// so the store shrinks as fast as it is used.
#[derive(Debug, Clone, Default)]
pub(super) struct Tombstones {
    released: BTreeMap<ClaimId, Now>,
    by_age: BTreeSet<(Now, ClaimId)>,
}

impl Tombstones {
    pub(super) fn recovered(records: &[(ClaimId, Now)]) -> Self {
        Self {
            released: records.iter().copied().collect(),
            by_age: records.iter().map(|(claim, at)| (*at, *claim)).collect(),
        }
    }

    pub(super) fn contains(&self, claim: ClaimId) -> bool {
        self.released.contains_key(&claim)
    }

    pub(super) fn len(&self) -> usize {
        self.released.len()
    }

    /// Remembers a claim released now.
    pub(super) fn add(&mut self, claim: ClaimId, out: &mut Out<'_>) {
        if let Some(earlier) = self.released.insert(claim, out.now()) {
            self.by_age.remove(&(earlier, claim));
        }
        self.by_age.insert((out.now(), claim));
        out.persist(Op::PutTombstone(claim, out.now()));
        for _ in 0..2 {
            self.sweep(out);
        }
    }

    /// Forgets the oldest if it is old enough, or if there are too many.
    fn sweep(&mut self, out: &mut Out<'_>) {
        let Some(&(at, claim)) = self.by_age.first() else {
            return;
        };
        let old = out.now().since(at) >= TOMBSTONE_MIN_AGE_MS;
        if !old && self.len() <= TOMBSTONES {
            return;
        }
        if !old {
            out.notice(Notice::TombstoneForgottenEarly);
        }
        self.by_age.remove(&(at, claim));
        self.released.remove(&claim);
        out.persist(Op::DeleteTombstone(claim));
    }

    /// Both indices hold the same, within the bound.
    pub(super) fn is_sound(&self) -> bool {
        let indexed = self.released.iter();
        self.len() <= TOMBSTONES
            && self.by_age.len() == self.len()
            && indexed
                .map(|(claim, at)| (*at, *claim))
                .all(|entry| self.by_age.contains(&entry))
    }
}
