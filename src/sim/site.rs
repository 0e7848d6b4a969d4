//! The machine beneath hearthd: sandboxes as containerd and the kernel hold them. It lives on when hearthd dies.
//!
//! As runtime-facts says: an id is there until it is deleted; who is killed is still there; what was asked for and not
//! answered may happen later; what cannot be reached is not gone.

use super::network::SimNetwork;
use super::world::World;
use crate::journal::disk_fakes::TornDisk;
use crate::machine::event::Observed;
use crate::machine::ids::SandboxId;
use crate::machine::record::Residency;
use crate::machine::spec::Template;
use crate::net::fakes::PaperNetwork;
use crate::runtime::RuntimeEvent;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::mpsc;

/// A sandbox.
#[derive(Debug, Clone)]
pub struct Real {
    pub alive: bool,
    pub frozen: bool,
    /// The claim that its guest was personalized for.
    pub held: Option<String>,
}

/// What a call does outside, at once or later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    /// With a task that runs, or without.
    Create(SandboxId, bool),
    Destroy(SandboxId),
    Shed(SandboxId),
    Restore(SandboxId),
    Freeze(SandboxId),
    Thaw(SandboxId),
    Checkpoint(SandboxId),
    /// A golden image of it.
    Golden(SandboxId),
}

#[derive(Default)]
struct State {
    reals: BTreeMap<SandboxId, Real>,
    images: BTreeMap<SandboxId, Real>,
    ever_made: BTreeSet<SandboxId>,
    /// Clones that were begun.
    clones: BTreeSet<SandboxId>,
    /// Ended by themselves.
    ended: BTreeSet<SandboxId>,
    /// What golden images were taken of, or are to be, and of which template that is; gone with hearthd.
    originals: BTreeMap<SandboxId, Arc<Template>>,
    goldens: BTreeSet<SandboxId>,
    /// How often each execution was started.
    executions: BTreeMap<String, u32>,
    /// containerd is.
    reachable: bool,
    /// What will still happen, and when.
    late: BTreeSet<(u64, Deed)>,
    /// Of hearthd.
    lives: u64,
    /// Of the present hearthd.
    events: Option<mpsc::Sender<RuntimeEvent>>,
}

impl State {
    fn carry_out(&mut self, deed: Deed) {
        let set_frozen = |real: Option<&mut Real>, frozen| {
            if let Some(real) = real.filter(|real| real.alive) {
                real.frozen = frozen;
            }
        };
        match deed {
            Deed::Create(id, alive) => {
                let fresh = Real {
                    alive,
                    frozen: false,
                    held: None,
                };
                self.reals.entry(id).or_insert(fresh);
            }
            Deed::Destroy(id) => {
                self.reals.remove(&id);
                self.images.remove(&id);
            }
            Deed::Shed(id) => drop(self.reals.remove(&id)),
            Deed::Restore(id) => {
                if let Some(image) = self.images.get(&id) {
                    self.reals.insert(id, image.clone());
                }
            }
            Deed::Freeze(id) => set_frozen(self.reals.get_mut(&id), true),
            Deed::Thaw(id) => set_frozen(self.reals.get_mut(&id), false),
            Deed::Golden(id) => drop(self.goldens.insert(id)),
            Deed::Checkpoint(id) => {
                if let Some(real) = self.reals.get_mut(&id).filter(|real| real.alive) {
                    real.frozen = true;
                    let image = Real {
                        frozen: false,
                        ..real.clone()
                    };
                    self.images.insert(id, image);
                }
            }
        }
    }
}

/// See the module.
pub struct Site {
    pub world: Arc<World>,
    pub disk: TornDisk,
    pub network: Arc<SimNetwork>,
    /// Members are cloned.
    pub golden: bool,
    state: Mutex<State>,
}

impl Site {
    pub fn new(world: Arc<World>, disk: TornDisk) -> Arc<Self> {
        let state = State {
            reachable: true,
            ..State::default()
        };
        let network = SimNetwork::new(PaperNetwork::new(), Arc::clone(&world));
        let golden = world.once_in(2);
        Arc::new(Self {
            golden,
            world,
            disk,
            network: Arc::new(network),
            state: Mutex::new(state),
        })
    }

    /// What was to happen by now has happened.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap();
        if !state.late.is_empty() {
            let now = self.world.now_ms();
            let late = std::mem::take(&mut state.late).into_iter();
            let (due, rest): (BTreeSet<_>, BTreeSet<_>) = late.partition(|(at, _)| *at <= now);
            state.late = rest;
            for (_, deed) in due {
                self.world.note(format!("late: {deed:?}"));
                state.carry_out(deed);
            }
        }
        state
    }

    /// hearthd is started: it hears from now on. Golden images are gone with the one before. How many there were.
    pub fn attach(&self, events: mpsc::Sender<RuntimeEvent>) -> u64 {
        let reachable = self.is_reachable();
        let number = {
            let mut state = self.state();
            state.events = Some(events);
            state.originals.clear();
            state.goldens.clear();
            state.lives += 1;
            state.lives
        };
        if reachable {
            self.tell(RuntimeEvent::Connected);
        }
        number
    }

    fn tell(&self, event: RuntimeEvent) {
        let state = self.state();
        // Events that find no room are lost; a listing makes up for them.
        let _lost = state.events.as_ref().map(|events| events.try_send(event));
    }

    pub fn is_reachable(&self) -> bool {
        self.state().reachable
    }

    /// containerd goes or comes back.
    pub fn reach(&self, reachable: bool) {
        let changed = std::mem::replace(&mut self.state().reachable, reachable) != reachable;
        if changed {
            self.world
                .note(format!("containerd reachable: {reachable}"));
            self.tell(match reachable {
                true => RuntimeEvent::Connected,
                false => RuntimeEvent::Disconnected,
            });
        }
    }

    pub fn carry_out(&self, deed: Deed) {
        self.state().carry_out(deed);
    }

    /// It happens so much later.
    pub fn carry_out_late(&self, deed: Deed, millis: u64) {
        let at = self.world.now_ms() + millis;
        self.state().late.insert((at, deed));
    }

    /// It is about to be made. A clone that failed, and of which nothing is left, is made anew.
    pub fn make(&self, id: SandboxId) {
        let first = {
            let mut state = self.state();
            let anew = state.clones.remove(&id) && !state.reals.contains_key(&id);
            state.ever_made.insert(id) || anew
        };
        self.world.ensure(first, || format!("{id} is made twice"));
    }

    /// It is about to be cloned.
    pub fn clone_one(&self, id: SandboxId) {
        self.make(id);
        self.state().clones.insert(id);
    }

    pub fn is_clone(&self, id: SandboxId) -> bool {
        self.state().clones.contains(&id)
    }

    /// A golden image of `id` is to be taken.
    pub fn choose_original(&self, id: SandboxId, template: &Arc<Template>) {
        self.state().originals.insert(id, Arc::clone(template));
    }

    /// A golden image makes way for a sandbox's image.
    pub fn golden_makes_way(&self) {
        self.state().goldens.pop_first();
    }

    /// What an original's template was.
    pub fn original(&self, id: SandboxId) -> Option<Arc<Template>> {
        self.state().originals.get(&id).cloned()
    }

    /// Is there a golden image of it?
    pub fn has_golden(&self, original: SandboxId) -> bool {
        self.state().goldens.contains(&original)
    }

    /// What golden images are of.
    pub fn goldens(&self) -> Vec<Arc<Template>> {
        let state = self.state();
        let originals = state.originals.iter();
        let there = originals.filter(|(id, _)| state.goldens.contains(id));
        there.map(|(_, template)| Arc::clone(template)).collect()
    }

    /// It goes.
    pub fn drop_golden(&self, original: SandboxId) {
        self.state().goldens.remove(&original);
    }

    /// A process is started inside: how often that has happened now.
    pub fn execute(&self, key: &str) -> u32 {
        let mut state = self.state();
        let times = state.executions.entry(key.to_owned()).or_default();
        *times += 1;
        *times
    }

    pub fn executions(&self, key: &str) -> u32 {
        self.state().executions.get(key).copied().unwrap_or(0)
    }

    pub fn real(&self, id: SandboxId) -> Option<Real> {
        self.state().reals.get(&id).cloned()
    }

    pub fn has_image(&self, id: SandboxId) -> bool {
        self.state().images.contains_key(&id)
    }

    /// The guest is personalized.
    pub fn hold(&self, id: SandboxId, claim: &str) {
        if let Some(real) = self.state().reals.get_mut(&id) {
            real.held = Some(claim.to_owned());
        }
    }

    /// Returns who of the others runs.
    pub fn keep_images(&self, keep: &[SandboxId]) -> Vec<SandboxId> {
        let mut state = self.state();
        let images = state.images.keys().copied();
        let gone: Vec<_> = images.filter(|id| !keep.contains(id)).collect();
        for id in &gone {
            state.images.remove(id);
        }
        let runs = |id: &SandboxId| state.reals.get(id).is_some_and(|it| it.alive && !it.frozen);
        gone.into_iter().filter(runs).collect()
    }

    pub fn drop_image(&self, id: SandboxId) {
        self.state().images.remove(&id);
    }

    pub fn look(&self) -> Vec<Observed> {
        let state = self.state();
        let seen = state.reals.iter();
        seen.map(|(id, real)| Observed {
            id: *id,
            alive: real.alive,
            frozen: real.alive && real.frozen,
        })
        .collect()
    }

    /// Ids of all that is there, and of the images.
    pub fn there(&self) -> (Vec<SandboxId>, Vec<SandboxId>) {
        let state = self.state();
        let reals = state.reals.keys().copied().collect();
        (reals, state.images.keys().copied().collect())
    }

    /// Those whose guests were ever told a claim.
    pub fn used(&self) -> BTreeSet<SandboxId> {
        let state = self.state();
        let used = state.reals.iter().filter(|(_, real)| real.held.is_some());
        used.map(|(id, _)| *id).collect()
    }

    /// Claims' sandboxes that live; with `awake` those that are not frozen.
    pub fn held_by_somebody(&self, awake: bool) -> Vec<SandboxId> {
        let state = self.state();
        let held = state
            .reals
            .iter()
            .filter(|(_, real)| real.held.is_some() && real.alive && !(awake && real.frozen));
        held.map(|(id, _)| *id).collect()
    }

    /// One that runs ends by itself. hearthd may not hear of it.
    pub fn end_one(&self) {
        let alive: Vec<_> = {
            let state = self.state();
            let alive = state.reals.iter().filter(|(_, real)| real.alive);
            alive.map(|(id, _)| *id).collect()
        };
        if alive.is_empty() {
            return;
        }
        let id = alive[self.world.index(alive.len())];
        self.world.note(format!("{id} ends by itself"));
        let reachable = {
            let mut state = self.state();
            state.ended.insert(id);
            if let Some(real) = state.reals.get_mut(&id) {
                (real.alive, real.frozen) = (false, false);
            }
            state.reachable
        };
        if reachable && !self.world.once_in(4) {
            self.tell(RuntimeEvent::Exited {
                id,
                out_of_memory: self.world.once_in(3),
            });
        }
    }

    /// Whoever else is on the node removes an interface. What loses it is of no use any more; hearthd sees it at its next
    /// start.
    pub fn lose_interface(&self) {
        let present = self.network.paper.present();
        if !present.is_empty() {
            let id = present[self.world.index(present.len())];
            self.world.note(format!("{id} loses its interface"));
            self.network.paper.lose(id);
            self.lost(id);
        }
    }

    /// The power goes. Images stay, and what containerd has written down of containers.
    pub fn reboot(&self) {
        self.world.note("the machine reboots".to_owned());
        let (there, _) = self.there();
        for id in there {
            self.lost(id);
            if let Some(real) = self.state().reals.get_mut(&id) {
                (real.alive, real.frozen) = (false, false);
            }
        }
        let paper = &self.network.paper;
        paper.present().into_iter().for_each(|id| paper.lose(id));
    }

    /// What runs of it is of no use any more. One that is its image lives on, if it is not coming back just now.
    fn lost(&self, id: SandboxId) {
        let record = self.disk.sandbox(id);
        let on_disk = record.is_some_and(|it| matches!(it.residency, Residency::OnDisk(_)));
        if !on_disk || self.network.was_refurnished(id) {
            self.state().ended.insert(id);
        }
    }

    pub fn has_ended(&self, id: SandboxId) -> bool {
        self.state().ended.contains(&id)
    }
}
