//! Sandboxes on their two axes: whose they are, and how far the outside has come with them; with at most one operation
//! in progress each.

use super::handler::Family;
use super::ids::{Now, PoolName, SandboxId};
use super::network::NetworkPolicy;
use super::record::{self, Image, Owner, SandboxRecord};
use super::spec::Template;
use super::view::{SandboxView, Source};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How far the outside has come with a sandbox, as far as this process knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Residency {
    /// It is being made, or was when hearthd died: the outside may hold anything.
    Creating,
    /// It was made, proved ready, and has not ended since.
    Running,
    /// It was proved ready, and its processes are stopped in their cgroup.
    Frozen,
    /// It is an image on the disk and nothing else. A claim's always.
    OnDisk(Image),
    /// It was there before hearthd started; since then neither the runtime nor its guest has spoken for it.
    Unknown {
        /// Its record says that it is frozen.
        slept: bool,
    },
    /// It has ended by itself; remains may be left.
    Gone,
}

impl Residency {
    /// In memory or on the disk.
    pub(super) fn is_asleep(self) -> bool {
        matches!(self, Self::Frozen | Self::OnDisk(_))
    }
}

/// What goes on with a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    /// Nothing.
    Idle,
    /// `Effect::Create` is out. Never cut short: whatever is decided meanwhile waits for `Event::Created`.
    Create,
    /// `Effect::Personalize` is out, for the claim that owns it.
    Personalize,
    /// `Effect::Freeze` is out. A claim that takes the member meanwhile overtakes it.
    Freeze,
    /// `Effect::Thaw` is out.
    Thaw,
    /// `Effect::Checkpoint` is out: it is as it was until the image is sealed.
    Checkpoint,
    /// `Effect::Shed` is out: its image is durable, what ran goes.
    Shed,
    /// `Effect::Restore` is out.
    Restore,
    /// Its image does not come back, and its claim is to get that one in its place: see `replacing`.
    Replace { by: SandboxId },
    /// `Effect::Witness` is out; the guest has been silent so many times before.
    Witness { tries: u32 },
    /// The guest was silent so many times and is asked again then.
    AskAgain { tries: u32, at: Now },
    /// It is the reaper's.
    Destroy,
}

impl Operation {
    /// It is on its way to sleep, or back.
    pub(super) fn is_shift(self) -> bool {
        use Operation::{Checkpoint, Freeze, Replace, Restore, Shed, Thaw};
        matches!(
            self,
            Freeze | Thaw | Checkpoint | Shed | Restore | Replace { .. }
        )
    }
}

/// A sandbox.
#[derive(Debug, Clone)]
pub(super) struct Sandbox {
    pub(super) id: SandboxId,
    pub(super) pool: PoolName,
    pub(super) generation: u64,
    pub(super) created_at: Now,
    /// What it was made from; not known of those that are older than this process and their pool's generation.
    pub(super) template: Option<Arc<Template>>,
    /// Its template's network policy: whether it has an interface, and what is in force without a claim's own.
    pub(super) network: Arc<NetworkPolicy>,
    pub(super) owner: Owner,
    pub(super) residency: Residency,
    pub(super) operation: Operation,
    /// The latest listing that had been asked for when it became known to run: only later ones may judge it.
    pub(super) known_since: u64,
    /// It was made from its pool's golden image; not known of those that are older than this process.
    pub(super) cloned: bool,
}

/// What a sandbox counts as in its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Can be claimed now.
    Warm,
    /// Can be claimed now: it is thawed for that.
    Frozen,
    /// Can be claimed now: it is on its way to being frozen, or back.
    Shifting,
    /// Is being made for the pool.
    Refilling,
    /// May be a member: recovery has yet to tell.
    Unsettled,
    Claimed,
    Releasing,
}

impl Sandbox {
    fn role(&self) -> Role {
        match (self.owner, self.residency, self.operation) {
            (Owner::Releasing, _, _) => Role::Releasing,
            (Owner::Claimed(_), _, _) => Role::Claimed,
            (Owner::Pool, _, Operation::Create) => Role::Refilling,
            (Owner::Pool, Residency::Running, Operation::Idle) => Role::Warm,
            (Owner::Pool, Residency::Frozen, Operation::Idle) => Role::Frozen,
            (Owner::Pool, _, Operation::Freeze | Operation::Thaw) => Role::Shifting,
            (Owner::Pool, _, _) => Role::Unsettled,
        }
    }

    pub(super) fn record(&self) -> SandboxRecord {
        let made = self.residency != Residency::Creating && self.operation != Operation::Create;
        SandboxRecord {
            id: self.id,
            pool: self.pool.clone(),
            generation: self.generation,
            owner: self.owner,
            residency: match (made, self.residency, self.is_to_sleep()) {
                (false, _, _) => record::Residency::Creating,
                (true, Residency::OnDisk(image), _) => record::Residency::OnDisk(image),
                (true, _, true) => record::Residency::Frozen,
                (true, _, false) => record::Residency::Running,
            },
            created_at: self.created_at,
            network: NetworkPolicy::clone(&self.network),
        }
    }

    /// What it is, on the disk.
    pub(super) fn image(&self) -> Option<Image> {
        match self.residency {
            Residency::OnDisk(image) => Some(image),
            _ => None,
        }
    }

    /// How a claim comes by it that it was made for.
    pub(super) fn made_as(&self) -> Source {
        match self.cloned {
            true => Source::Cloned,
            false => Source::Cold,
        }
    }

    /// Its handler can freeze it. Where the handler is not known any more, the runtime has the last word.
    pub(super) fn can_freeze(&self) -> bool {
        let template = self.template.as_ref();
        template.is_none_or(|it| Family::of(&it.runtime_handler).can_freeze())
    }

    /// It sleeps and stays so, or is about to.
    pub(super) fn is_to_sleep(&self) -> bool {
        match self.residency {
            Residency::Frozen => self.operation != Operation::Thaw,
            Residency::OnDisk(_) => !matches!(
                self.operation,
                Operation::Restore | Operation::Replace { .. }
            ),
            Residency::Unknown { slept } => slept,
            _ => matches!(self.operation, Operation::Freeze | Operation::Checkpoint),
        }
    }

    pub(super) fn view(&self) -> SandboxView {
        let (owner, claim) = match self.owner {
            Owner::Pool => ("pool", None),
            Owner::Claimed(claim) => ("claimed", Some(claim)),
            Owner::Releasing => ("releasing", None),
        };
        SandboxView {
            id: self.id,
            pool: self.pool.clone(),
            owner,
            claim,
            residency: match self.residency {
                Residency::Creating => "creating",
                Residency::Running => "running",
                Residency::Frozen => "frozen",
                Residency::OnDisk(_) => "on_disk",
                Residency::Unknown { .. } => "unknown",
                Residency::Gone => "gone",
            },
            created_at: self.created_at,
        }
    }
}

/// The sandboxes of one pool by what they count as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Ordered by age: the oldest is handed out first, so members of an older template are used up first.
    pub(super) warm: BTreeSet<SandboxId>,
    pub(super) frozen: BTreeSet<SandboxId>,
    pub(super) shifting: BTreeSet<SandboxId>,
    pub(super) refilling: BTreeSet<SandboxId>,
    pub(super) unsettled: BTreeSet<SandboxId>,
    pub(super) claimed: usize,
    /// Those of the claimed ones that sleep, or are about to.
    pub(super) hibernated: usize,
    /// Those of them that are on the disk.
    pub(super) on_disk: usize,
    pub(super) releasing: usize,
    /// Creations in flight, whoever they are for: also those that will be destroyed as soon as they end.
    pub(super) creating: usize,
    /// Of all images of its sandboxes.
    pub(super) image_bytes: u64,
}

impl Tally {
    /// All of them.
    pub(super) fn total(&self) -> usize {
        self.members() + self.claimed + self.releasing
    }

    /// Those that are, will be or may be warm.
    pub(super) fn members(&self) -> usize {
        self.claimable() + self.refilling.len() + self.unsettled.len()
    }

    /// Those that can be claimed now.
    pub(super) fn claimable(&self) -> usize {
        self.warm.len() + self.frozen.len() + self.shifting.len()
    }

    fn add(&mut self, sandbox: &Sandbox) {
        match sandbox.role() {
            Role::Warm => drop(self.warm.insert(sandbox.id)),
            Role::Frozen => drop(self.frozen.insert(sandbox.id)),
            Role::Shifting => drop(self.shifting.insert(sandbox.id)),
            Role::Refilling => drop(self.refilling.insert(sandbox.id)),
            Role::Unsettled => drop(self.unsettled.insert(sandbox.id)),
            Role::Claimed => {
                self.claimed += 1;
                self.hibernated += usize::from(sandbox.is_to_sleep());
                self.on_disk += usize::from(sandbox.is_to_sleep() && sandbox.image().is_some());
            }
            Role::Releasing => self.releasing += 1,
        }
        self.creating += usize::from(sandbox.operation == Operation::Create);
        self.image_bytes += sandbox.image().map_or(0, |it| it.size_bytes);
    }

    fn remove(&mut self, sandbox: &Sandbox) {
        match sandbox.role() {
            Role::Warm => drop(self.warm.remove(&sandbox.id)),
            Role::Frozen => drop(self.frozen.remove(&sandbox.id)),
            Role::Shifting => drop(self.shifting.remove(&sandbox.id)),
            Role::Refilling => drop(self.refilling.remove(&sandbox.id)),
            Role::Unsettled => drop(self.unsettled.remove(&sandbox.id)),
            Role::Claimed => {
                self.claimed -= 1;
                self.hibernated -= usize::from(sandbox.is_to_sleep());
                self.on_disk -= usize::from(sandbox.is_to_sleep() && sandbox.image().is_some());
            }
            Role::Releasing => self.releasing -= 1,
        }
        self.creating -= usize::from(sandbox.operation == Operation::Create);
        self.image_bytes -= sandbox.image().map_or(0, |it| it.size_bytes);
    }
}

static NONE: Tally = Tally {
    warm: BTreeSet::new(),
    frozen: BTreeSet::new(),
    shifting: BTreeSet::new(),
    refilling: BTreeSet::new(),
    unsettled: BTreeSet::new(),
    claimed: 0,
    hibernated: 0,
    on_disk: 0,
    releasing: 0,
    creating: 0,
    image_bytes: 0,
};

/// All sandboxes. Every change goes through [`Self::change`], so the tallies cannot drift.
#[derive(Debug, Clone, Default)]
pub(super) struct Sandboxes {
    by_id: BTreeMap<SandboxId, Sandbox>,
    tallies: BTreeMap<PoolName, Tally>,
    creating: usize,
    freezing: usize,
    sinking: usize,
    images: usize,
    image_bytes: u64,
}

impl Sandboxes {
    pub(super) fn get(&self, id: SandboxId) -> Option<&Sandbox> {
        self.by_id.get(&id)
    }

    /// Ordered by id.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Sandbox> {
        self.by_id.values()
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Creations in flight on the node.
    pub(super) fn creating(&self) -> usize {
        self.creating
    }

    /// Of a pool, declared or not.
    pub(super) fn tally(&self, pool: &PoolName) -> &Tally {
        self.tallies.get(pool).unwrap_or(&NONE)
    }

    /// The member that is handed out next, and whether it must be thawed for that. Running ones first.
    pub(super) fn next_member(&self, pool: &PoolName) -> Option<(SandboxId, Source)> {
        let tally = self.tally(pool);
        if let Some(warm) = tally.warm.first() {
            return Some((*warm, Source::Warm));
        }
        let asleep = tally.frozen.first().or(tally.shifting.first());
        asleep.map(|id| (*id, Source::Thawed))
    }

    /// Freezes in flight on the node.
    pub(super) fn freezing(&self) -> usize {
        self.freezing
    }

    /// Those that are on the disk, and the bytes of their images.
    pub(super) fn images(&self) -> (usize, u64) {
        (self.images, self.image_bytes)
    }

    /// Checkpoints in flight on the node.
    pub(super) fn sinking(&self) -> usize {
        self.sinking
    }

    pub(super) fn insert(&mut self, sandbox: Sandbox) {
        let tally = self.tallies.entry(sandbox.pool.clone()).or_default();
        tally.add(&sandbox);
        self.creating += usize::from(sandbox.operation == Operation::Create);
        self.freezing += usize::from(sandbox.operation == Operation::Freeze);
        self.sinking += usize::from(sandbox.operation == Operation::Checkpoint);
        self.images += usize::from(sandbox.image().is_some());
        self.image_bytes += sandbox.image().map_or(0, |it| it.size_bytes);
        self.by_id.insert(sandbox.id, sandbox);
    }

    /// Changes a sandbox; returns it as it is then.
    pub(super) fn change(
        &mut self,
        id: SandboxId,
        change: impl FnOnce(&mut Sandbox),
    ) -> Option<&Sandbox> {
        let sandbox = self.by_id.get_mut(&id)?;
        let tally = self.tallies.get_mut(&sandbox.pool)?;
        tally.remove(sandbox);
        self.creating -= usize::from(sandbox.operation == Operation::Create);
        self.freezing -= usize::from(sandbox.operation == Operation::Freeze);
        self.sinking -= usize::from(sandbox.operation == Operation::Checkpoint);
        self.images -= usize::from(sandbox.image().is_some());
        self.image_bytes -= sandbox.image().map_or(0, |it| it.size_bytes);
        change(sandbox);
        tally.add(sandbox);
        self.creating += usize::from(sandbox.operation == Operation::Create);
        self.freezing += usize::from(sandbox.operation == Operation::Freeze);
        self.sinking += usize::from(sandbox.operation == Operation::Checkpoint);
        self.images += usize::from(sandbox.image().is_some());
        self.image_bytes += sandbox.image().map_or(0, |it| it.size_bytes);
        Some(sandbox)
    }

    pub(super) fn remove(&mut self, id: SandboxId) {
        let Some(sandbox) = self.by_id.remove(&id) else {
            return;
        };
        self.creating -= usize::from(sandbox.operation == Operation::Create);
        self.freezing -= usize::from(sandbox.operation == Operation::Freeze);
        self.sinking -= usize::from(sandbox.operation == Operation::Checkpoint);
        self.images -= usize::from(sandbox.image().is_some());
        self.image_bytes -= sandbox.image().map_or(0, |it| it.size_bytes);
        if let Some(tally) = self.tallies.get_mut(&sandbox.pool) {
            tally.remove(&sandbox);
            if tally.total() == 0 {
                self.tallies.remove(&sandbox.pool);
            }
        }
    }

    /// The tallies are what counting anew gives.
    pub(super) fn is_sound(&self) -> bool {
        let mut anew = Self::default();
        self.iter().for_each(|sandbox| anew.insert(sandbox.clone()));
        let counts = |it: &Self| {
            let images = (it.images, it.image_bytes);
            (it.creating, it.freezing, it.sinking, images)
        };
        anew.tallies == self.tallies && counts(&anew) == counts(self)
    }
}
