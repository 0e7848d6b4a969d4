//! Fail points around a commit, named after what the batch holds.

use super::Batch;
#[cfg(debug_assertions)]
use crate::failpoint::failpoint;
#[cfg(debug_assertions)]
use crate::machine::record::{Op, Owner, Residency};

/// Where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing of it is durable.
    Before,
    /// All of it is, and nobody knows.
    After,
}

/// One point for each kind of operation in the group.
#[cfg(debug_assertions)]
pub(super) fn reached(stage: Stage, group: &[Batch]) {
    for op in group.iter().flat_map(|batch| &batch.ops) {
        failpoint!(name(stage, op));
    }
}

/// A release has none.
#[cfg(not(debug_assertions))]
pub(super) fn reached(_: Stage, _: &[Batch]) {}

#[cfg(debug_assertions)]
macro_rules! both {
    ($stage:expr, $kind:literal) => {
        match $stage {
            Stage::Before => concat!("journal.before.", $kind),
            Stage::After => concat!("journal.after.", $kind),
        }
    };
}

#[cfg(debug_assertions)]
fn name(stage: Stage, op: &Op) -> &'static str {
    match op {
        Op::PutSandbox(record) => match (record.owner, record.residency) {
            (Owner::Releasing, _) => both!(stage, "doom"),
            (Owner::Pool, Residency::Creating) => both!(stage, "refill"),
            (Owner::Pool, Residency::Running) => both!(stage, "member"),
            (Owner::Pool, Residency::Frozen | Residency::OnDisk(_)) => both!(stage, "freeze"),
            (Owner::Claimed(_), Residency::Creating) => both!(stage, "make"),
            (Owner::Claimed(_), Residency::Running) => both!(stage, "assign"),
            (Owner::Claimed(_), Residency::Frozen) => both!(stage, "hibernate"),
            (Owner::Claimed(_), Residency::OnDisk(_)) => both!(stage, "sink"),
        },
        Op::DeleteSandbox(_) => both!(stage, "gone"),
        Op::PutClaim(record) if record.confirmed => both!(stage, "confirm"),
        Op::PutClaim(_) => both!(stage, "claim"),
        Op::DeleteClaim(_) => both!(stage, "end"),
        Op::PutTombstone(..) | Op::DeleteTombstone(_) => both!(stage, "release"),
        Op::PutPools(_) => both!(stage, "pools"),
        Op::PutFence(_) => both!(stage, "fence"),
        Op::PutDrain(..) | Op::PutCordon(_) => both!(stage, "drain"),
        Op::DeleteDrain(_) => both!(stage, "undrain"),
        Op::PutSequence(_) => both!(stage, "sequence"),
    }
}
