//! A small simulated outside: a runtime, guests, a journal whose commits lag, callers. It does only what reality could
//! do, in any order, and checks on the way that the machine keeps its intents before its effects.

use super::fixtures::*;
use super::promises::Promises;
use super::store::Store;
use crate::machine::admission::{Mode, Rules};
use crate::machine::classes::{Classes, RuntimeClass};
use crate::machine::event::*;
use crate::machine::ids::*;
use crate::machine::network::NetworkPolicy;
use crate::machine::node::{DiskPolicy, MemoryPolicy, Node, Settings};
use crate::machine::record::{Op, Owner, Residency};
use crate::machine::refusal::Refusal;
use crate::machine::spec::*;
use crate::machine::view::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub const POOLS: [&str; 2] = ["js", "py"];
/// Of an object of the cluster.
pub const WARM_POOL: &str = "warm";
const SETTINGS: Settings = Settings {
    tag: TAG,
    max_sandboxes: 7,
    refill_yield_ms: 40,
    relist_ms: RELIST_MS,
    memory: MemoryPolicy {
        budget_bytes: 500,
        pressure_permille: 0,
    },
    disk: DiskPolicy {
        enabled: true,
        sink_after_ms: 20_000,
    },
};

/// The RuntimeClass of some pools.
pub const CLASS: &str = "sandboxed";

/// What the cluster says of it: 0 is well.
pub fn classes(variant: u8) -> Event {
    let handler = ["runsc", "runsc", "kata", "other"][usize::from(variant % 4)];
    let class = RuntimeClass {
        handler: handler.to_owned(),
        ..RuntimeClass::default()
    };
    let name = if variant % 4 == 1 { "renamed" } else { CLASS };
    Event::Classes(Arc::new(Classes {
        classes: [(name.to_owned(), class)].into(),
        labels: BTreeMap::new(),
        handlers: ["gvisor".to_owned(), "other".to_owned()].into(),
    }))
}

/// A sandbox of another data directory: it stays, whatever happens.
fn stranger() -> SandboxId {
    SandboxId::new(NodeTag(7), 1).unwrap()
}

/// A sandbox outside.
#[derive(Debug, Clone)]
struct Real {
    alive: bool,
    frozen: bool,
    /// The claim its guest was personalized for.
    held: Option<ClaimId>,
    /// The policy it was made with: with an interface or without.
    made_with: NetworkPolicy,
    /// What the kernel enforces; `None`: its interface is gone.
    in_force: Option<NetworkPolicy>,
}

impl Real {
    fn new(alive: bool, made_with: &NetworkPolicy) -> Self {
        Self {
            alive,
            frozen: false,
            held: None,
            made_with: made_with.clone(),
            in_force: Some(made_with.clone()),
        }
    }
}

/// What must be in force after a restart.
type Policies = Vec<(SandboxId, PoolName, NetworkPolicy)>;

/// What a worker of the driver is doing.
#[derive(Debug, Clone)]
pub enum Work {
    Create(SandboxId, Arc<Template>),
    Destroy(SandboxId),
    /// With a thaw first; then the policy, before the guest is told.
    Personalize(SandboxId, ClaimId, bool, Option<Arc<NetworkPolicy>>),
    Witness(SandboxId),
    Freeze(SandboxId, Ticket),
    Thaw(SandboxId),
    Checkpoint(SandboxId, bool),
    Shed(SandboxId),
    Restore(SandboxId, Arc<NetworkPolicy>),
    Sample(Vec<SandboxId>),
    Listen,
    /// With what a listing that began at once saw.
    /// After a restart networks are reconciled before it is told.
    List(u64, Vec<Observed>, Option<Policies>),
}

#[derive(Debug, Clone)]
pub struct World {
    pub node: Node,
    pub now: Now,
    ticket: Ticket,
    /// Events that will be one batch.
    inbox: Vec<Event>,
    /// Batches that are not durable.
    batches: VecDeque<(Ticket, Vec<Op>)>,
    /// What nothing waits for: goes with the next batch.
    lazy: Vec<Op>,
    held_back: Vec<(Ticket, Effect)>,
    pub store: Store,
    outside: BTreeMap<SandboxId, Real>,
    /// Images, with the claim that their guests hold.
    images: BTreeMap<SandboxId, Real>,
    /// Whose image is to go, and no other was decided on since.
    to_drop: BTreeSet<SandboxId>,
    /// A freeze was decided and nothing since that overtakes it.
    to_sleep: BTreeMap<SandboxId, Ticket>,
    pub work: Vec<Work>,
    reachable: bool,
    pub promises: Promises,
    ever_made: BTreeSet<SandboxId>,
    pub requests: u64,
    pub sets: u64,
    /// The epochs of two allocators.
    pub epochs: [u64; 2],
    /// Claim ids are spent: how often each of a few slots has got a new one.
    pub lives: [u128; 8],
    pub events: u64,
    /// How often callers heard what.
    pub heard: BTreeMap<String, u64>,
}

/// What the cluster denies of WarmPools is not made.
fn rules() -> Rules {
    Rules {
        cluster: Mode::Enforce,
        ..Rules::default()
    }
}

impl World {
    pub fn new() -> Self {
        let mut world = Self {
            node: Node::recover(SETTINGS, Store::default().records(), Now(1000)).under(rules()),
            now: Now(1000),
            ticket: Ticket(0),
            inbox: Vec::new(),
            batches: VecDeque::new(),
            lazy: Vec::new(),
            held_back: Vec::new(),
            store: Store::default(),
            outside: BTreeMap::from([(stranger(), Real::new(true, &NetworkPolicy::default()))]),
            images: BTreeMap::new(),
            to_drop: BTreeSet::new(),
            to_sleep: BTreeMap::new(),
            work: Vec::new(),
            reachable: true,
            promises: Promises::default(),
            ever_made: BTreeSet::new(),
            requests: 0,
            sets: 0,
            epochs: [1, 2],
            lives: [0; 8],
            events: 0,
            heard: BTreeMap::new(),
        };
        world.tell(Event::Runtime { available: true });
        world
    }

    /// An event joins the batch that is being gathered.
    pub fn tell(&mut self, event: Event) {
        self.inbox.push(event);
    }

    pub fn call(&mut self, call: Call) {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.promises.send(request, call.clone(), self.now);
        self.tell(Event::Request(request, call));
    }

    /// The cluster cordons the node, or undoes that.
    pub fn cordon(&mut self, cordoned: bool) {
        self.promises.cordoned = cordoned;
        self.tell(Event::Cordon { cordoned });
    }

    /// The cluster asks for a drain, or for none. A batch of its own, so that it is known what of it holds by when.
    pub fn cluster_drain(&mut self, asked: Option<DrainRequest>) {
        self.flush();
        self.tell(Event::ClusterDrain { asked });
        self.flush();
        self.promises.cluster_drain(self.node.drains.cluster);
    }

    /// The batch is handled: one time, one ticket, one commit.
    pub fn flush(&mut self) {
        if self.inbox.is_empty() {
            return;
        }
        self.ticket.0 += 1;
        let step = Step {
            now: self.now,
            ticket: self.ticket,
        };
        let (mut ops, mut effects) = (std::mem::take(&mut self.lazy), Vec::new());
        let mut must_commit = false;
        for event in std::mem::take(&mut self.inbox) {
            self.events += 1;
            self.node.step(step, event.clone(), &mut effects);
            if let Err(broken) = self.node.check_invariants() {
                panic!("{broken} after {event:?}");
            }
            for effect in effects.drain(..) {
                self.note(&effect);
                match effect {
                    Effect::Persist(op) => {
                        self.check_op(&op);
                        must_commit = true;
                        ops.push(op);
                    }
                    Effect::PersistLazily(op) => ops.push(op),
                    other => {
                        if let Effect::Create { pool, sandbox, .. } = &other {
                            self.check_creation(pool, *sandbox);
                        }
                        self.held_back.push((after(&other), other));
                    }
                }
            }
            self.promises.evict_due(self.now);
            self.promises.check(&self.node, self.now);
        }
        match must_commit {
            true => self.batches.push_back((self.ticket, ops)),
            false => self.lazy = ops,
        }
        self.check_members();
        self.release_effects();
        self.check_policies();
    }

    /// The oldest batch becomes durable.
    pub fn commit(&mut self) -> bool {
        let Some((_, ops)) = self.batches.pop_front() else {
            return false;
        };
        ops.into_iter().for_each(|op| self.store.apply(op));
        true
    }

    /// Effects whose gate is open run.
    pub fn release_effects(&mut self) {
        let durable = |ticket: Ticket| {
            let first = self.batches.front();
            first.is_none_or(|(pending, _)| ticket < *pending)
        };
        let held_back = std::mem::take(&mut self.held_back).into_iter();
        let (open, shut): (Vec<_>, Vec<_>) = held_back.partition(|(after, _)| durable(*after));
        self.held_back = shut;
        open.into_iter().for_each(|(_, effect)| self.run(effect));
    }

    fn run(&mut self, effect: Effect) {
        match effect {
            Effect::Reply { to, answer, .. } => self.answered(to, &answer),
            Effect::Create {
                sandbox,
                template,
                claimed,
                ..
            } => {
                assert!(self.ever_made.insert(sandbox), "{sandbox} was made before");
                let record = &self.store.sandboxes[&sandbox];
                assert_eq!(record.residency, Residency::Creating, "intent");
                // What is made for a claim is never told as the pool's: images would be taken of it.
                let somebodys = matches!(record.owner, Owner::Claimed(_));
                assert!(claimed || !somebodys, "{sandbox} is made for the pool");
                assert!(self.store.next_sequence > sandbox.sequence());
                if sandbox.sequence() % 3 == 0 {
                    self.appear(sandbox, true, &template.network_policy);
                }
                self.work.push(Work::Create(sandbox, template));
            }
            Effect::Destroy { sandbox, .. } => {
                let owner = self.store.sandboxes.get(&sandbox).map(|it| it.owner);
                let intended = matches!(owner, None | Some(Owner::Releasing));
                assert!(intended, "destroyed while its record says {owner:?}");
                assert_ne!(sandbox, stranger());
                self.promises.check_destroy(sandbox, self.now);
                self.work.push(Work::Destroy(sandbox));
            }
            Effect::Personalize {
                sandbox,
                claim,
                thaw,
                network,
                ..
            } => {
                let work = Work::Personalize(sandbox, claim, thaw, network);
                self.work.push(work);
            }
            Effect::Freeze { sandbox, after } => {
                if self.to_sleep.get(&sandbox) == Some(&after) {
                    let record = &self.store.sandboxes[&sandbox];
                    assert_eq!(record.residency, Residency::Frozen, "intent");
                }
                self.work.push(Work::Freeze(sandbox, after));
            }
            Effect::Thaw { sandbox } => self.work.push(Work::Thaw(sandbox)),
            Effect::Checkpoint {
                sandbox, asleep, ..
            } => {
                self.work.push(Work::Checkpoint(sandbox, asleep));
            }
            Effect::Shed { sandbox, .. } => {
                let record = &self.store.sandboxes[&sandbox];
                let on_disk = matches!(record.residency, Residency::OnDisk(_));
                assert!(on_disk || record.owner == Owner::Releasing, "{record:?}");
                self.work.push(Work::Shed(sandbox));
            }
            Effect::Restore {
                sandbox, in_force, ..
            } => self.work.push(Work::Restore(sandbox, in_force)),
            Effect::GoOn { sandbox, .. } => {
                let record = self.store.sandboxes.get(&sandbox);
                let on_disk = record.is_some_and(|it| matches!(it.residency, Residency::OnDisk(_)));
                assert!(!on_disk, "it goes on while it is an image");
                self.work.push(Work::Thaw(sandbox));
            }
            Effect::DropImage { sandbox, .. } if self.to_drop.remove(&sandbox) => {
                let record = self.store.sandboxes.get(&sandbox);
                let on_disk = record.is_some_and(|it| matches!(it.residency, Residency::OnDisk(_)));
                assert!(!on_disk, "an image that is the sandbox is dropped");
                self.images.remove(&sandbox);
            }
            Effect::KeepImages(keep) => self.images.retain(|id, _| keep.contains(id)),
            Effect::Sample { sandboxes, .. } => self.work.push(Work::Sample(sandboxes)),
            Effect::Listen => self.work.push(Work::Listen),
            Effect::Witness { sandbox } => self.work.push(Work::Witness(sandbox)),
            Effect::List { round } => {
                let seen = self.look();
                // The driver gives up an older question.
                for work in &mut self.work {
                    if let Work::List(_, _, wanted) = work {
                        *wanted = None;
                    }
                }
                let wanted = self.node.unreconciled();
                self.work.push(Work::List(round, seen, wanted));
            }
            _ => {}
        }
    }

    /// What the driver learns when an effect is decided, before any commit it waits for.
    fn note(&mut self, effect: &Effect) {
        match effect {
            Effect::DropImage { sandbox, .. } => drop(self.to_drop.insert(*sandbox)),
            Effect::Checkpoint { sandbox, .. } => drop(self.to_drop.remove(sandbox)),
            Effect::Freeze { sandbox, after } => drop(self.to_sleep.insert(*sandbox, *after)),
            Effect::Personalize {
                sandbox,
                thaw: true,
                ..
            }
            | Effect::Thaw { sandbox }
            | Effect::Destroy { sandbox, .. } => drop(self.to_sleep.remove(sandbox)),
            _ => {}
        }
    }

    fn set_frozen(&mut self, sandbox: SandboxId, frozen: bool) {
        if let Some(real) = self.outside.get_mut(&sandbox) {
            real.frozen = frozen;
        }
    }

    fn answered(&mut self, to: RequestId, answer: &Result<Answer, Refusal>) {
        let kind = match answer {
            Ok(Answer::Granted(grant)) => format!("Granted {:?}", grant.source),
            Ok(answer) => format!("{answer:?}"),
            Err(refusal) => format!("{refusal:?}"),
        };
        let word = |c: char| !c.is_alphanumeric() && c != ' ';
        let kind = kind.split(word).next().unwrap_or_default().trim();
        *self.heard.entry(kind.to_owned()).or_default() += 1;
        if let Ok(Answer::Granted(grant)) = answer {
            // A release may have become durable with the answer.
            let durable = match self.store.claims.get(&grant.claim) {
                Some(record) => record.sandbox == grant.sandbox,
                None => self.store.tombstones.contains_key(&grant.claim),
            };
            assert!(durable, "acknowledged, not durable: {grant:?}");
            let record = self.store.sandboxes.get(&grant.sandbox);
            let on_disk = record.is_some_and(|it| matches!(it.residency, Residency::OnDisk(_)));
            let real = self.outside.get(&grant.sandbox);
            // What is left beside an image is not the sandbox, and goes.
            if let Some(real) = real.filter(|_| !on_disk) {
                assert_eq!(real.held, Some(grant.claim), "acknowledged, not confirmed");
                let asked = self.promises.policy_asked(to);
                let due = asked.unwrap_or(&real.made_with);
                let enforced = real.in_force.as_ref();
                assert_eq!(enforced, Some(due), "acknowledged, not enforced: {grant:?}");
            }
        }
        if let Err(Refusal::ClaimReleased { claim }) = answer {
            let slot =
                (0..self.lives.len()).find(|slot| self.claim_id(*slot).to_string() == *claim);
            slot.into_iter().for_each(|slot| self.lives[slot] += 1);
        }
        self.promises.answer(to, answer);
    }

    /// The claim id a slot uses now.
    pub fn claim_id(&self, slot: usize) -> ClaimId {
        id(100 * self.lives[slot] + u128::try_from(slot).unwrap() + 1)
    }

    fn check_op(&self, op: &Op) {
        if let Op::DeleteSandbox(sandbox) = op {
            assert!(
                !self.outside.contains_key(sandbox),
                "{sandbox} is still there"
            );
        }
    }

    /// What can be claimed was never used.
    fn check_members(&self) {
        for name in self.node.pools.keys() {
            let tally = self.node.sandboxes.tally(name);
            let asleep = tally.frozen.iter().chain(&tally.shifting);
            for member in tally.warm.iter().chain(asleep) {
                let held = self.outside.get(member).and_then(|real| real.held);
                assert_eq!(held, None, "{member} was used");
            }
        }
    }

    /// A creation keeps the limits, and no policy forbids it. (It is what a step decides last.)
    fn check_creation(&self, name: &PoolName, id: SandboxId) {
        assert_eq!(self.node.pools[name].held, None, "{name} is held");
        let unservable = &self.node.pools[name].unservable;
        assert_eq!(*unservable, None, "made for a pool that can't be served");
        let filled = self.node.conditions.cordoned;
        let owner = self.node.sandboxes.get(id).map(|it| it.owner);
        assert!(
            !filled || owner != Some(Owner::Pool),
            "a cordoned node fills"
        );
        let most = usize::try_from(self.node.pools[name].spec.max_total).unwrap();
        // One that takes the place of a lost image does not count beside it.
        let lost = self.node.sandboxes.iter().filter(|it| {
            let lost = matches!(
                it.operation,
                crate::machine::sandboxes::Operation::Replace { .. }
            );
            lost && it.pool == *name
        });
        let there = self.node.sandboxes.tally(name).total() - lost.count();
        assert!(
            there <= most,
            "{name} has {there} sandboxes, {most} at most"
        );
        let most = usize::try_from(SETTINGS.max_sandboxes).unwrap();
        assert!(self.node.sandboxes.len() <= most);
    }

    fn appear(&mut self, sandbox: SandboxId, alive: bool, network: &NetworkPolicy) {
        let fresh = || Real::new(alive, network);
        self.outside.entry(sandbox).or_insert_with(fresh);
    }

    fn look(&self) -> Vec<Observed> {
        let seen = self.outside.iter();
        seen.map(|(id, real)| Observed {
            id: *id,
            alive: real.alive,
            frozen: real.frozen && real.alive,
        })
        .collect()
    }

    fn alive(&self, sandbox: SandboxId) -> bool {
        self.outside.get(&sandbox).is_some_and(|real| real.alive)
    }

    /// A worker ends; `outcome` chooses how, 0 is well.
    pub fn finish(&mut self, pick: usize, outcome: u8) {
        if self.work.is_empty() {
            return;
        }
        let work = self.work.remove(pick % self.work.len());
        match work {
            Work::Create(sandbox, template) => self.finish_create(sandbox, &template, outcome),
            Work::Destroy(sandbox) => {
                let result = match self.reachable && outcome % 4 != 1 {
                    true => Ok(()),
                    false => Err("busy".to_owned()),
                };
                if result.is_ok() || outcome % 4 == 1 {
                    self.outside.remove(&sandbox);
                    self.images.remove(&sandbox);
                }
                self.tell(Event::Destroyed(sandbox, result));
            }
            Work::Personalize(sandbox, claim, thaw, network) => {
                match thaw {
                    true => self.set_frozen(sandbox, false),
                    false => {
                        let frozen = self.outside.get(&sandbox).is_some_and(|it| it.frozen);
                        assert!(!frozen, "a guest is told something while it is frozen");
                    }
                }
                self.finish_personalize(sandbox, claim, network.as_deref(), outcome);
            }
            Work::Freeze(sandbox, decided) => {
                if self.to_sleep.get(&sandbox) != Some(&decided) {
                    // Overtaken: nothing is done, and nothing said.
                    return self.tell(Event::Tick);
                }
                let result = match outcome % 5 == 1 || !self.alive(sandbox) {
                    true => Err("deadline".to_owned()),
                    false => Ok(()),
                };
                if result.is_ok() {
                    self.set_frozen(sandbox, true);
                }
                self.tell(Event::Frozen(sandbox, result));
            }
            Work::Thaw(sandbox) => {
                let result = match outcome % 5 == 1 || !self.alive(sandbox) {
                    true => Err("deadline".to_owned()),
                    false => Ok(()),
                };
                // A sandbox's workers take turns: it was done before a freeze that was decided after it.
                if result.is_ok() && !self.to_sleep.contains_key(&sandbox) {
                    self.set_frozen(sandbox, false);
                }
                self.tell(Event::Thawed(sandbox, result));
            }
            Work::Checkpoint(sandbox, asleep) => self.finish_checkpoint(sandbox, asleep, outcome),
            Work::Shed(sandbox) => {
                let result = match self.reachable && outcome % 5 != 1 {
                    true => Ok(()),
                    false => Err("busy".to_owned()),
                };
                if result.is_ok() {
                    self.outside.remove(&sandbox);
                }
                self.tell(Event::Shed(sandbox, result));
            }
            Work::Restore(sandbox, policy) => self.finish_restore(sandbox, &policy, outcome),
            Work::Sample(sandboxes) => {
                let samples = sandboxes.into_iter().map(|id| Sample {
                    id,
                    cpu_nanoseconds: self.now.0,
                    memory_bytes: 100,
                    busy: (id.sequence() + u64::from(outcome)) % 3 == 0,
                    packets: Some(0),
                });
                let samples = samples.collect();
                self.tell(Event::Sampled {
                    samples,
                    pressure_permille: 0,
                });
            }
            Work::Listen => {
                let knocked =
                    |id: &SandboxId| (id.sequence() + u64::from(outcome)).is_multiple_of(5);
                let ids = self.outside.keys().chain(self.images.keys());
                let knocks = ids.copied().filter(knocked);
                let ago_ms = u64::from(outcome) * 20;
                let knocks = knocks.map(|id| (id, ago_ms)).collect();
                self.tell(Event::Heard(knocks));
            }
            Work::Witness(sandbox) => {
                self.set_frozen(sandbox, false);
                let real = self.outside.get(&sandbox).filter(|real| real.alive);
                let held = match (real.map(|real| real.held), outcome % 3) {
                    (None, _) | (_, 1) => Held::Silent,
                    (Some(None), _) => Held::Nothing,
                    (Some(Some(claim)), _) => Held::Claim(claim),
                };
                self.tell(Event::Witnessed(sandbox, held));
            }
            Work::List(round, early, wanted) => {
                // Its view is from any time between the question and the answer.
                let observed = match self.events % 2 {
                    0 => self.look(),
                    _ => early,
                };
                if self.reachable && self.reconcile(wanted, &observed, outcome) {
                    self.tell(Event::Listed { round, observed });
                }
            }
        }
    }

    fn finish_checkpoint(&mut self, sandbox: SandboxId, asleep: bool, outcome: u8) {
        let result = match outcome % 7 {
            _ if !self.alive(sandbox) => Err(CheckpointFailure::Failed("gone".to_owned())),
            _ if !self.reachable => Err(CheckpointFailure::Failed("unreachable".to_owned())),
            1 => Err(CheckpointFailure::NoRoom("full".to_owned())),
            2 => Err(CheckpointFailure::Failed("deadline".to_owned())),
            3 => Err(CheckpointFailure::Mismatch("runsc".to_owned())),
            _ => Ok(7),
        };
        if result.is_ok() {
            self.take_image(sandbox);
        }
        self.set_frozen(sandbox, asleep || result.is_ok());
        self.tell(Event::Checkpointed(sandbox, result));
    }

    fn take_image(&mut self, sandbox: SandboxId) {
        if let Some(real) = self.outside.get(&sandbox) {
            self.images.insert(sandbox, real.clone());
        }
    }

    /// Whatever ran before is shed first.
    fn come_back(&mut self, sandbox: SandboxId, policy: &NetworkPolicy) {
        if let Some(real) = self.images.get(&sandbox).cloned() {
            let fresh = Real {
                alive: true,
                frozen: false,
                in_force: Some(policy.clone()),
                ..real
            };
            self.outside.insert(sandbox, fresh);
        }
    }

    fn finish_restore(&mut self, sandbox: SandboxId, policy: &NetworkPolicy, outcome: u8) {
        let result = match outcome % 7 {
            _ if !self.reachable => Err(RestoreFailure::Unavailable("unreachable".to_owned())),
            1 => Err(RestoreFailure::Unavailable("no room".to_owned())),
            2 => Err(RestoreFailure::Mismatch("runsc".to_owned())),
            3 => Err(RestoreFailure::Lost("damaged".to_owned())),
            _ => Ok(()),
        };
        let there = self.images.contains_key(&sandbox);
        let known = self.node.sandboxes.get(sandbox);
        let on_disk = known.is_some_and(|it| {
            matches!(
                it.residency,
                crate::machine::sandboxes::Residency::OnDisk(_)
            )
        });
        let kept = there || !on_disk || known.is_some_and(|it| it.owner == Owner::Releasing);
        assert!(kept, "{sandbox} is on the disk and has no image");
        let result = match there {
            true => result,
            false => Err(RestoreFailure::Lost("gone".to_owned())),
        };
        match &result {
            Ok(()) => self.come_back(sandbox, policy),
            Err(RestoreFailure::Lost(_)) => {
                self.promises.ended(sandbox);
                self.outside.remove(&sandbox);
            }
            Err(_) => {}
        }
        self.tell(Event::Restored(sandbox, result));
    }

    fn finish_create(&mut self, sandbox: SandboxId, template: &Template, outcome: u8) {
        let bad = template.image.starts_with("bad") || outcome % 5 == 1;
        let died = self.outside.get(&sandbox).is_some_and(|real| !real.alive);
        let result = if !self.reachable {
            Err(CreateFailure::RuntimeUnavailable)
        } else if bad || (died && outcome & 1 == 0) {
            Err(CreateFailure::Template("exit status 1".to_owned()))
        } else {
            Ok(())
        };
        // A failure leaves nothing, a corpse, or something that runs.
        match (&result, outcome % 3) {
            (Ok(()), _) => self.appear(sandbox, true, &template.network_policy),
            (Err(_), 0) => self.appear(sandbox, true, &template.network_policy),
            (Err(_), 1) => self.appear(sandbox, false, &template.network_policy),
            (Err(_), _) => {}
        }
        self.tell(Event::Created(sandbox, result));
    }

    /// After a restart the kernel is made to match before a listing is told; `false`: it could not be.
    fn reconcile(&mut self, wanted: Option<Policies>, observed: &[Observed], outcome: u8) -> bool {
        let Some(wanted) = wanted else {
            return true;
        };
        if outcome % 3 == 1 {
            return false;
        }
        for (id, _, policy) in wanted {
            let alive = observed.iter().any(|seen| seen.id == id && seen.alive);
            let Some(real) = self.outside.get_mut(&id) else {
                continue;
            };
            if real.in_force.is_some() {
                real.in_force = Some(policy);
            } else if alive {
                self.promises.ended(id);
                self.tell(Event::Ended(id, ExitCause::NetworkLost));
            }
        }
        true
    }

    /// Those who were given a sandbox with a policy have it, as long as hearthd knows what there is.
    fn check_policies(&self) {
        if self.node.unreconciled().is_some() {
            return;
        }
        for (sandbox, asked) in self.promises.policies(self.now) {
            if let Some(real) = self.outside.get(&sandbox).filter(|real| real.alive) {
                let due = asked.unwrap_or(&real.made_with);
                assert_eq!(real.in_force.as_ref(), Some(due), "{sandbox}");
            }
        }
    }

    fn finish_personalize(
        &mut self,
        sandbox: SandboxId,
        claim: ClaimId,
        network: Option<&NetworkPolicy>,
        outcome: u8,
    ) {
        if let Some(policy) = network
            && !self.enforce(sandbox, policy, outcome)
        {
            let lost = GuestFailure::Lost("the network policy: refused".to_owned());
            return self.tell(Event::Personalized(sandbox, claim, Err(lost)));
        }
        let alive = self.alive(sandbox);
        let result = match outcome % 6 {
            1 | 2 => Err(GuestFailure::Lost("no answer".to_owned())),
            3 => Err(GuestFailure::Refused("bad path".to_owned())),
            _ if !alive => Err(GuestFailure::Lost("gone".to_owned())),
            _ => Ok(()),
        };
        // An answer that got lost may have been a yes.
        if alive && (result.is_ok() || outcome % 6 == 2) {
            self.personalize(sandbox, claim);
        }
        self.tell(Event::Personalized(sandbox, claim, result));
    }

    /// Puts a claim's policy in force, or fails, having done so or not.
    fn enforce(&mut self, sandbox: SandboxId, policy: &NetworkPolicy, outcome: u8) -> bool {
        let Some(real) = self.outside.get_mut(&sandbox) else {
            return false;
        };
        assert!(
            real.made_with.needs_interface(),
            "{sandbox} has no interface"
        );
        let fails = outcome % 7 == 1;
        if real.in_force.is_some() && (!fails || outcome & 1 == 0) {
            real.in_force = Some(policy.clone());
        }
        real.in_force.is_some() && !fails
    }

    fn personalize(&mut self, sandbox: SandboxId, claim: ClaimId) {
        if let Some(real) = self.outside.get_mut(&sandbox) {
            let fresh = real.held.is_none_or(|held| held == claim);
            assert!(fresh, "{sandbox} was personalized for two claims");
            real.held = Some(claim);
        }
    }

    /// A sandbox ends by itself; the event of it may be lost.
    pub fn exit(&mut self, pick: usize, how: u8) {
        let ours = self.outside.iter_mut().filter(|(id, _)| **id != stranger());
        let alive = ours.filter(|(_, real)| real.alive);
        let mut alive: Vec<_> = alive.collect();
        if alive.is_empty() {
            return;
        }
        let pick = pick % alive.len();
        let (sandbox, real) = &mut alive[pick];
        let sandbox = **sandbox;
        let cause = match how % 4 {
            0 => ExitCause::OutOfMemory,
            1 => ExitCause::GuestLost,
            _ => ExitCause::Exited,
        };
        real.alive = cause == ExitCause::GuestLost;
        self.promises.ended(sandbox);
        if cause == ExitCause::GuestLost || (self.reachable && how % 8 != 2) {
            self.tell(Event::Ended(sandbox, cause));
        }
    }

    pub fn reach(&mut self, available: bool) {
        self.reachable = available;
        self.tell(Event::Runtime { available });
    }

    pub fn advance(&mut self, millis: u64) {
        self.now = self.now.plus(millis);
        if self.node.next_wakeup().is_some_and(|at| at <= self.now) {
            self.tell(Event::Tick);
        }
    }

    /// hearthd dies. `commits` batches were durable though nobody was told; what workers were doing has happened, or
    /// has not.
    pub fn crash(&mut self, commits: usize, fate: u8) {
        for _ in 0..commits {
            self.commit();
        }
        for (at, work) in std::mem::take(&mut self.work).into_iter().enumerate() {
            let happened = (usize::from(fate) >> (at % 8)) & 1 == 1;
            match work {
                Work::Create(sandbox, template) if happened => {
                    self.appear(sandbox, at % 2 == 0, &template.network_policy);
                }
                Work::Destroy(sandbox) if happened => {
                    self.outside.remove(&sandbox);
                    self.images.remove(&sandbox);
                }
                Work::Checkpoint(sandbox, _) if happened && self.alive(sandbox) => {
                    self.take_image(sandbox);
                    self.set_frozen(sandbox, at % 2 == 0);
                }
                Work::Shed(sandbox) if happened => drop(self.outside.remove(&sandbox)),
                Work::Restore(sandbox, policy) if happened => self.come_back(sandbox, &policy),
                Work::Personalize(sandbox, claim, thaw, network)
                    if happened && self.alive(sandbox) =>
                {
                    if thaw {
                        self.set_frozen(sandbox, false);
                    }
                    // Between the thaw, the policy and the guest's answer there are moments too.
                    let moment = if thaw || network.is_some() { at % 3 } else { 2 };
                    let enforced = match network {
                        Some(policy) if moment > 0 => self.enforce(sandbox, &policy, 0),
                        Some(_) => false,
                        None => true,
                    };
                    if moment > 1 && enforced {
                        self.personalize(sandbox, claim);
                    }
                }
                Work::Freeze(sandbox, decided)
                    if happened && self.to_sleep.get(&sandbox) == Some(&decided) =>
                {
                    self.set_frozen(sandbox, true);
                }
                Work::Thaw(sandbox) | Work::Witness(sandbox) if happened => {
                    self.set_frozen(sandbox, false);
                }
                _ => {}
            }
        }
        // Whoever else is on the node: policies are flushed, an interface is removed.
        for (id, real) in self.outside.iter_mut().filter(|(id, _)| **id != stranger()) {
            let whim = id.sequence().wrapping_mul(7) + u64::from(fate);
            match (real.made_with.needs_interface(), whim % 16) {
                (true, 3) => real.in_force = None,
                (true, 5 | 6) => real.in_force = real.in_force.as_ref().map(|_| reaches(66)),
                _ => {}
            }
        }
        self.promises.crash();
        self.promises.cordoned = self.store.cordoned;
        self.promises.cluster_drain(self.store.drains.cluster);
        *self.heard.entry("(crash)".to_owned()).or_default() += 1;
        self.inbox.clear();
        self.batches.clear();
        self.lazy.clear();
        self.held_back.clear();
        self.to_sleep.clear();
        self.to_drop.clear();
        self.now = self.now.plus(u64::from(fate) * 10);
        self.ticket = Ticket(0);
        self.node = Node::recover(SETTINGS, self.store.records(), self.now).under(rules());
        self.promises.evict_due(self.now);
        self.node.check_invariants().unwrap();
        self.promises.check(&self.node, self.now);
        if self.reachable {
            self.tell(Event::Runtime { available: true });
        }
    }

    /// From now on all goes well: recovery comes to its end.
    pub fn heal(&mut self) {
        if self.node.phase() == Phase::ShuttingDown {
            self.crash(self.batches.len(), 0);
        }
        self.reach(true);
        self.tell(Event::Disk {
            reserve_reached: false,
        });
        self.cordon(false);
        self.cluster_drain(None);
        self.tell(classes(0));
        self.go_on_until(|world| world.node.phase() == Phase::Ready);
    }

    /// And everything comes to rest, at what was asked for.
    pub fn rest(&mut self) {
        self.go_on_until(Self::is_at_rest);
        self.check_at_rest();
    }

    fn go_on_until(&mut self, done: impl Fn(&Self) -> bool) {
        self.flush();
        for _ in 0..5_000 {
            while self.commit() {
                self.release_effects();
            }
            if !self.work.is_empty() {
                self.finish(0, 0);
            } else if done(self) && self.inbox.is_empty() {
                return;
            } else if self.inbox.is_empty() {
                let at = self.node.next_wakeup().expect("nothing will ever happen");
                self.now = self.now.max(at);
                self.tell(Event::Tick);
            }
            self.flush();
        }
        let (claims, pools) = (&self.node.claims, &self.node.pools);
        panic!("no rest: {claims:?} {pools:?} {:?}", self.node.sandboxes);
    }

    fn is_at_rest(&self) -> bool {
        let drain = self.node.drain_view();
        let full = |name: &PoolName, pool: &crate::machine::pools::Pool| {
            let tally = self.node.sandboxes.tally(name);
            let enough = tally.claimable() >= usize::try_from(pool.spec.min_warm).unwrap();
            enough || pool.held.is_some() || !pool.has_room(tally) || self.node.sandboxes.len() >= 7
        };
        let settled = |it: &crate::machine::sandboxes::Sandbox| {
            it.owner != Owner::Releasing
                && it.operation == crate::machine::sandboxes::Operation::Idle
        };
        self.promises.open() == 0
            && match drain {
                Some(drain) => {
                    drain.mode == DrainMode::Wait
                        || drain.state == DrainState::Drained
                        || (drain.mode == DrainMode::Hibernate && self.only_sleepless(&drain))
                }
                None => self.node.pools.iter().all(|(name, pool)| full(name, pool)),
            }
            && self.node.sandboxes.iter().all(settled)
            && self.node.reaper.iter().next().is_none()
    }

    /// What a drain that hibernates still waits for are claims whose handler can't freeze.
    fn only_sleepless(&self, drain: &DrainView) -> bool {
        let awake = self.node.sandboxes.iter();
        let mut awake = awake.filter(|it| !it.is_to_sleep());
        drain.to_disk + drain.unclaimed == 0 && awake.all(|it| !it.can_freeze())
    }

    /// The outside, the journal and the machine agree.
    fn check_at_rest(&mut self) {
        self.promises.check_usable(&self.node, self.now);
        let there = self.outside.keys().copied();
        let there: Vec<_> = there.filter(|id| *id != stranger()).collect();
        let on_disk = |it: &&crate::machine::sandboxes::Sandbox| {
            matches!(
                it.residency,
                crate::machine::sandboxes::Residency::OnDisk(_)
            )
        };
        let known = self.node.sandboxes.iter().filter(|it| !on_disk(it));
        let known: Vec<_> = known.map(|it| it.id).collect();
        assert_eq!(there, known);
        let images: Vec<_> = self.images.keys().copied().collect();
        let asleep = self.node.sandboxes.iter().filter(on_disk);
        assert_eq!(images, asleep.map(|it| it.id).collect::<Vec<_>>(), "images");
        for sandbox in self.node.sandboxes.iter().filter(|it| !on_disk(it)) {
            let asleep = sandbox.residency == crate::machine::sandboxes::Residency::Frozen;
            assert_eq!(self.outside[&sandbox.id].frozen, asleep, "{sandbox:?}");
        }
        for (id, _, policy) in self.node.network_policies() {
            // On the disk nothing is in force, for nothing is there.
            if let Some(real) = self.outside.get(&id) {
                assert_eq!(real.in_force, Some(policy), "{id}");
            }
        }
        let lazy = std::mem::take(&mut self.lazy);
        lazy.into_iter().for_each(|op| self.store.apply(op));
        let sandboxes = self.node.sandboxes.iter();
        let sandboxes: Vec<_> = sandboxes.map(|it| it.record()).collect();
        let claims = self.node.claims.values();
        let claims: Vec<_> = claims.filter_map(|it| it.record()).collect();
        let records = self.store.records();
        assert_eq!(records.sandboxes, sandboxes);
        assert_eq!(records.claims.len(), claims.len());
        for (durable, there) in records.claims.iter().zip(&claims) {
            // The whole time to live of a claim that hearthd's death left unconfirmed counts anew in memory.
            let mut durable = durable.clone();
            if !durable.confirmed {
                durable.expires_at = there.expires_at;
            }
            assert_eq!(durable, *there);
        }
        assert_eq!(records.tombstones.len(), self.node.tombstones.len());
        assert_eq!(records.drains, self.node.drains);
        let in_force = records.drains.in_force().is_some();
        assert_eq!(in_force, self.node.drain_view().is_some());
        assert_eq!(records.cordoned, self.node.conditions.cordoned);
    }
}

/// The gate of an effect.
fn after(effect: &Effect) -> Ticket {
    match effect {
        Effect::Reply { after, .. }
        | Effect::Create { after, .. }
        | Effect::Destroy { after, .. }
        | Effect::Freeze { after, .. }
        | Effect::Checkpoint { after, .. }
        | Effect::Shed { after, .. }
        | Effect::GoOn { after, .. }
        | Effect::DropImage { after, .. }
        | Effect::ClaimChanged { after, .. } => *after,
        _ => Ticket(0),
    }
}
