//! What is known of the pools' golden images, and what follows from it: whether a sandbox is cloned, and of which image;
//! whether one is to be taken; which ones nobody needs any more. Decides, and does nothing.
//!
//! An image belongs to a pool's template, not to its generation: a pool that was removed and made anew begins at any
//! generation again, and one that only grows keeps what its members are. Which image it is its original's id says, for a
//! sandbox's id is never used again.

use crate::machine::event::CheckpointFailure;
use crate::machine::ids::{PoolName, SandboxId};
use crate::machine::spec::{PoolSpec, Template};
use crate::runtime::CreateSpec;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Clones that fail in a row until the template's image is given up.
pub(super) const FAILURES: u32 = 3;
/// Members that are made anew before an image is tried again for which there was no room.
pub(super) const REST: u32 = 2;

/// Why a sandbox was made anew although golden images are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Miss {
    /// There is no image of its template: not yet, not any more, or no room for one.
    NoImage,
    /// There is one that could not be restored here now: its runsc, flags, hearth-init or layers are others than today's.
    NotRestorable,
    /// Clones were slower.
    Slower,
    /// The image could not be taken, or its clones kept failing.
    GivenUp,
    /// The clone failed.
    Failed,
}

impl Miss {
    /// All of them.
    pub(super) const ALL: [Self; 5] = [
        Self::NoImage,
        Self::NotRestorable,
        Self::Slower,
        Self::GivenUp,
        Self::Failed,
    ];

    /// As metrics call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::NoImage => "no_image",
            Self::NotRestorable => "not_restorable",
            Self::Slower => "slower",
            Self::GivenUp => "given_up",
            Self::Failed => "failed",
        }
    }
}

/// How far the image of a template has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// To be taken of the next member, once that many more were made anew.
    Wanted {
        rest: u32,
    },
    Making,
    /// Of this original.
    There(SandboxId),
    /// Not tried again.
    GivenUp,
}

/// A pool's template.
#[derive(Debug, Clone)]
struct Known {
    template: Arc<Template>,
    stage: Stage,
    /// Of the latest creation of each kind, until it was proved ready.
    cold: Option<Duration>,
    clone: Option<Duration>,
    /// Clones that failed since one went well.
    failures: u32,
}

impl Known {
    fn new(template: Arc<Template>) -> Self {
        Self {
            template,
            stage: Stage::Wanted { rest: 0 },
            cold: None,
            clone: None,
            failures: 0,
        }
    }

    fn image(&self) -> Option<SandboxId> {
        match self.stage {
            Stage::There(original) => Some(original),
            _ => None,
        }
    }

    /// Clones are tried once, and stay where they were faster than what was made anew last.
    fn way(&self) -> Result<SandboxId, Miss> {
        match (self.stage, self.clone, self.cold) {
            (Stage::GivenUp, ..) => Err(Miss::GivenUp),
            (Stage::Wanted { .. } | Stage::Making, ..) => Err(Miss::NoImage),
            (Stage::There(_), Some(clone), Some(cold)) if clone >= cold => Err(Miss::Slower),
            (Stage::There(original), ..) => Ok(original),
        }
    }
}

/// Of the whole node: only pools that are declared, each with the template in force.
#[derive(Debug, Default)]
pub(super) struct Book {
    of: BTreeMap<PoolName, Known>,
}

impl Book {
    /// These pools are in force, and no others. The images that nobody needs any more: of pools that are gone, and of
    /// templates that were replaced.
    pub(super) fn declared<'a>(
        &mut self,
        pools: impl IntoIterator<Item = &'a PoolSpec>,
    ) -> Vec<(PoolName, SandboxId)> {
        let mut before = std::mem::take(&mut self.of);
        let mut unneeded = BTreeMap::new();
        for spec in pools {
            let known = before.remove(&spec.name);
            let (same, other) = match known {
                Some(known) if *known.template == spec.template => (Some(known), None),
                other => (None, other),
            };
            unneeded.extend(other.map(|other| (spec.name.clone(), other)));
            let fresh = || Known::new(Arc::new(spec.template.clone()));
            self.of
                .insert(spec.name.clone(), same.unwrap_or_else(fresh));
        }
        unneeded.append(&mut before);
        let images = unneeded.into_iter();
        images
            .filter_map(|(pool, known)| Some((pool, known.image()?)))
            .collect()
    }

    /// `None`: its pool is gone by now, or has another template.
    fn known(&mut self, spec: &CreateSpec) -> Option<&mut Known> {
        let known = self.of.get_mut(&spec.pool)?;
        (known.template == spec.template).then_some(known)
    }

    /// The original to clone it of, or why it is to be made anew.
    pub(super) fn way(&mut self, spec: &CreateSpec) -> Result<SandboxId, Miss> {
        self.known(spec).ok_or(Miss::NoImage)?.way()
    }

    /// A clone was proved ready.
    pub(super) fn cloned(&mut self, spec: &CreateSpec, took: Duration) {
        if let Some(known) = self.known(spec) {
            known.clone = Some(took);
            known.failures = 0;
        }
    }

    /// A clone failed: whether the image is given up with it.
    pub(super) fn clone_failed(&mut self, spec: &CreateSpec, original: SandboxId) -> bool {
        let known = self.known(spec).filter(|it| it.image() == Some(original));
        let Some(known) = known else { return false };
        known.failures += 1;
        let given_up = known.failures >= FAILURES;
        if given_up {
            known.stage = Stage::GivenUp;
        }
        given_up
    }

    /// It was made anew and proved ready: whether its image is to be taken. Never of one that is a claim's already.
    pub(super) fn made(&mut self, spec: &CreateSpec, took: Duration, claimed: bool) -> bool {
        let Some(known) = self.known(spec) else {
            return false;
        };
        known.cold = Some(took);
        match &mut known.stage {
            Stage::Wanted { rest: 0 } if !claimed => {
                known.stage = Stage::Making;
                true
            }
            Stage::Wanted { rest } => {
                *rest = rest.saturating_sub(1);
                false
            }
            _ => false,
        }
    }

    /// The taking that [`Self::made`] asked for has ended: whether what was taken is kept.
    pub(super) fn taken(
        &mut self,
        spec: &CreateSpec,
        outcome: Result<(), &CheckpointFailure>,
    ) -> bool {
        let Some(known) = self.known(spec) else {
            return false;
        };
        known.stage = match outcome {
            Ok(()) => Stage::There(spec.id),
            // There may be room later, and the next member is made with what there is now.
            Err(CheckpointFailure::NoRoom(_) | CheckpointFailure::Mismatch(_)) => {
                Stage::Wanted { rest: REST }
            }
            Err(CheckpointFailure::Failed(_)) => Stage::GivenUp,
        };
        outcome.is_ok()
    }

    /// This image is gone, or can't be restored any more: another one is wanted.
    pub(super) fn lost(&mut self, spec: &CreateSpec, original: SandboxId) {
        let known = self.known(spec);
        if let Some(known) = known.filter(|it| it.image() == Some(original)) {
            *known = Known::new(known.template.clone());
        }
    }

    /// How many there are.
    pub(super) fn images(&self) -> usize {
        self.of.values().filter_map(Known::image).count()
    }
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
