//! What the adapter holds in memory of each sandbox: open FIFOs, its shim, the watch for its end. All of it can be made
//! anew from the outside, and is, by every listing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::fifo::Fifos;
use crate::{
    cgroup::SandboxCgroup,
    machine::ids::SandboxId,
    runtime::{Family, process::Process},
};

/// One sandbox.
#[derive(Debug, Default)]
struct Held {
    /// Whose; `None`: not known, so gVisor's.
    family: Option<Family>,
    fifos: Option<Fifos>,
    cgroup: Option<SandboxCgroup>,
    shim: Option<Arc<Process>>,
    /// Its end is being watched, or was seen.
    watched: bool,
    /// It is being destroyed: its end is no news.
    leaving: bool,
    /// How often it has come back from its image.
    life: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Live {
    held: Mutex<BTreeMap<SandboxId, Held>>,
}

impl Live {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SandboxId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A creation begins: its cgroup will be this one.
    pub(super) fn expect(
        &self,
        id: SandboxId,
        cgroup: SandboxCgroup,
        fifos: Fifos,
        family: Family,
    ) {
        let mut held = self.lock();
        let one = held.entry(id).or_default();
        one.family = Some(family);
        one.cgroup = Some(cgroup);
        one.fifos = Some(fifos);
    }

    /// It comes back from its image: nothing of what it was before counts.
    pub(super) fn return_to(&self, id: SandboxId, cgroup: SandboxCgroup, fifos: Fifos) {
        let mut held = self.lock();
        let life = held.get(&id).map_or(0, |one| one.life) + 1;
        let fresh = Held {
            fifos: Some(fifos),
            cgroup: Some(cgroup),
            life,
            ..Held::default()
        };
        held.insert(id, fresh);
    }

    /// Which of its lives it is in.
    pub(super) fn life(&self, id: SandboxId) -> u64 {
        self.lock().get(&id).map_or(0, |one| one.life)
    }

    /// Its FIFOs are closed: nobody is at their other end any more.
    pub(super) fn close(&self, id: SandboxId) {
        if let Some(one) = self.lock().get_mut(&id) {
            one.fifos = None;
            one.shim = None;
        }
    }

    /// What a listing has shown of it.
    pub(super) fn is_of(&self, id: SandboxId, family: Family) {
        self.lock().entry(id).or_default().family = Some(family);
    }

    /// Whose it is.
    pub(super) fn family(&self, id: SandboxId) -> Family {
        let family = self.lock().get(&id).and_then(|one| one.family);
        family.unwrap_or(Family::Gvisor)
    }

    /// Its cgroup, if known.
    pub(super) fn cgroup(&self, id: SandboxId) -> Option<SandboxCgroup> {
        self.lock().get(&id)?.cgroup.clone()
    }

    /// Its shim, if known.
    pub(super) fn shim(&self, id: SandboxId) -> Option<Arc<Process>> {
        self.lock().get(&id)?.shim.clone()
    }

    /// Whether the watch for its end must still be armed, or its FIFOs opened.
    pub(super) fn lacks(&self, id: SandboxId) -> Lacks {
        let held = self.lock();
        let one = held.get(&id);
        Lacks {
            fifos: one.is_none_or(|one| one.fifos.is_none()),
            watch: one.is_none_or(|one| !one.watched && !one.leaving),
        }
    }

    /// It was found alive outside.
    pub(super) fn adopt(&self, id: SandboxId, cgroup: SandboxCgroup, fifos: Option<Fifos>) {
        let mut held = self.lock();
        let one = held.entry(id).or_default();
        one.cgroup = Some(cgroup);
        if fifos.is_some() {
            one.fifos = fifos;
        }
    }

    /// Its end is watched from now on.
    pub(super) fn watch(&self, id: SandboxId, shim: Option<Process>) {
        let mut held = self.lock();
        let one = held.entry(id).or_default();
        one.watched = true;
        if let Some(shim) = shim {
            one.shim = Some(Arc::new(shim));
        }
    }

    /// Its end could not be watched.
    pub(super) fn unwatch(&self, id: SandboxId) {
        if let Some(one) = self.lock().get_mut(&id) {
            one.watched = false;
        }
    }

    /// It is being destroyed.
    pub(super) fn leave(&self, id: SandboxId) {
        self.lock().entry(id).or_default().leaving = true;
    }

    /// Whether its end is no news.
    pub(super) fn is_leaving(&self, id: SandboxId) -> bool {
        self.lock().get(&id).is_none_or(|one| one.leaving)
    }

    /// Nothing of it is left.
    pub(super) fn forget(&self, id: SandboxId) {
        self.lock().remove(&id);
    }

    /// Drops what is held of sandboxes that are neither outside (as of a listing) nor being made: `since` are those
    /// that were held before the listing began.
    pub(super) fn retain(&self, since: &BTreeSet<SandboxId>, outside: &BTreeSet<SandboxId>) {
        self.lock()
            .retain(|id, _| !since.contains(id) || outside.contains(id));
    }

    /// The ids held now.
    pub(super) fn ids(&self) -> BTreeSet<SandboxId> {
        self.lock().keys().copied().collect()
    }
}

/// What a listing has to do for a living sandbox.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lacks {
    pub(super) fifos: bool,
    pub(super) watch: bool,
}
