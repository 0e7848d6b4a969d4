//! One node driven by hand: every commit is durable at once, the outside does what the test says.

use super::fixtures::*;
use super::store::Store;
use crate::machine::admission::Rules;
use crate::machine::event::*;
use crate::machine::ids::*;
use crate::machine::limits::SAMPLE_MS;
use crate::machine::node::Node;
use crate::machine::record::{Op, Owner, Residency};
use crate::machine::refusal::Refusal;
use crate::machine::spec::*;
use crate::machine::view::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone)]
pub struct Rig {
    pub node: Node,
    pub now: Now,
    pub ticket: Ticket,
    pub store: Store,
    /// Creations that have been asked for and have not ended.
    pub creating: Vec<SandboxId>,
    pub destroying: Vec<SandboxId>,
    pub personalizing: Vec<(SandboxId, ClaimId, Option<RequestId>)>,
    pub witnessing: Vec<SandboxId>,
    pub freezing: Vec<SandboxId>,
    pub thawing: Vec<SandboxId>,
    pub reclaiming: Vec<SandboxId>,
    pub checkpointing: Vec<SandboxId>,
    pub shedding: Vec<SandboxId>,
    pub restoring: Vec<SandboxId>,
    pub dropped: Vec<SandboxId>,
    /// The latest that are to be kept.
    pub kept: Option<Vec<SandboxId>>,
    /// What the latest look is to show.
    pub sampling: Vec<SandboxId>,
    pub listening: u32,
    /// Frozen outside.
    pub asleep: BTreeSet<SandboxId>,
    /// The latest question.
    pub round: u64,
    pub replies: BTreeMap<RequestId, (Result<Answer, Refusal>, Ticket)>,
    pub notices: Vec<Notice>,
    pub changes: Vec<(ClaimView, bool)>,
    /// Every creation ever asked for.
    pub created: Vec<SandboxId>,
    /// What the latest event persisted.
    pub persisted: Vec<Op>,
    /// All it asked for.
    pub effects: Vec<Effect>,
    requests: u64,
}

impl Rig {
    /// Recovered, without pools.
    pub fn new() -> Self {
        let mut rig = Self::started(Store::default(), Now(1_000_000));
        rig.connect(&[]);
        rig
    }

    /// Recovered, with these pools, filled.
    pub fn with(pools: &[PoolSpec]) -> Self {
        let mut rig = Self::new();
        let request = rig.call(Call::SetPools(fence(1), set(1, pools)));
        assert_eq!(rig.ok(request), Answer::PoolsSet { generation: 1 });
        rig.create_all();
        rig
    }

    /// As hearthd starts: nothing is known of the outside.
    pub fn started(store: Store, now: Now) -> Self {
        Self {
            node: Node::recover(settings(), store.records(), now),
            now,
            ticket: Ticket(0),
            store,
            creating: Vec::new(),
            destroying: Vec::new(),
            personalizing: Vec::new(),
            witnessing: Vec::new(),
            freezing: Vec::new(),
            thawing: Vec::new(),
            reclaiming: Vec::new(),
            checkpointing: Vec::new(),
            shedding: Vec::new(),
            restoring: Vec::new(),
            dropped: Vec::new(),
            kept: None,
            sampling: Vec::new(),
            listening: 0,
            asleep: BTreeSet::new(),
            round: 0,
            replies: BTreeMap::new(),
            notices: Vec::new(),
            changes: Vec::new(),
            created: Vec::new(),
            persisted: Vec::new(),
            effects: Vec::new(),
            requests: 0,
        }
    }

    /// hearthd dies and starts again, on what is durable.
    pub fn restart(&mut self) {
        let asleep = std::mem::take(&mut self.asleep);
        *self = Self::started(self.store.clone(), self.now.plus(1000));
        self.asleep = asleep;
    }

    /// hearthd starts with these rules on what is there.
    pub fn under(mut self, rules: Rules) -> Self {
        self.node = self.node.under(rules);
        self
    }

    /// The runtime is there and shows these as alive.
    pub fn connect(&mut self, alive: &[SandboxId]) {
        self.send(Event::Runtime { available: true });
        self.listed(alive);
    }

    /// The latest question is answered: these are alive, and there is nothing else.
    pub fn listed(&mut self, alive: &[SandboxId]) {
        let observed = alive.iter().map(|id| Observed {
            id: *id,
            alive: true,
            frozen: self.asleep.contains(id),
        });
        self.send(Event::Listed {
            round: self.round,
            observed: observed.collect(),
        });
    }

    pub fn send(&mut self, event: Event) {
        self.ticket.0 += 1;
        self.persisted.clear();
        self.effects.clear();
        self.send_in_batch(event);
    }

    /// One more event under the same ticket.
    pub fn send_in_batch(&mut self, event: Event) {
        let step = Step {
            now: self.now,
            ticket: self.ticket,
        };
        let mut effects = Vec::new();
        self.node.step(step, event, &mut effects);
        self.node.check_invariants().unwrap();
        for effect in effects {
            self.effects.push(effect.clone());
            self.run(effect);
        }
    }

    fn run(&mut self, effect: Effect) {
        match effect {
            Effect::Persist(op) | Effect::PersistLazily(op) => {
                self.persisted.push(op.clone());
                self.store.apply(op);
            }
            Effect::Reply { to, answer, after } => {
                assert!(after <= self.ticket, "waits for a commit that may never be");
                let before = self.replies.insert(to, (answer, after));
                assert_eq!(before, None, "{to:?} is answered twice");
            }
            Effect::Create { sandbox, .. } => {
                self.creating.push(sandbox);
                self.created.push(sandbox);
            }
            Effect::Destroy { sandbox, .. } => {
                let owner = self.store.sandboxes.get(&sandbox).map(|it| it.owner);
                assert!(matches!(owner, None | Some(Owner::Releasing)));
                self.destroying.push(sandbox);
            }
            Effect::Personalize {
                sandbox,
                claim,
                request,
                ..
            } => self.personalizing.push((sandbox, claim, request)),
            Effect::Witness { sandbox } => self.witnessing.push(sandbox),
            Effect::Freeze { sandbox, .. } => {
                let record = &self.store.sandboxes[&sandbox];
                assert_eq!(record.residency, Residency::Frozen, "intent");
                self.freezing.push(sandbox);
            }
            Effect::Thaw { sandbox } => self.thawing.push(sandbox),
            Effect::Reclaim { sandbox } => self.reclaiming.push(sandbox),
            Effect::Checkpoint { sandbox, .. } => self.checkpointing.push(sandbox),
            Effect::Shed { sandbox, .. } => self.shedding.push(sandbox),
            Effect::Restore { sandbox, .. } => self.restoring.push(sandbox),
            Effect::GoOn { sandbox, .. } => self.thawing.push(sandbox),
            Effect::DropImage { sandbox, .. } => self.dropped.push(sandbox),
            Effect::KeepImages(keep) => self.kept = Some(keep),
            Effect::Sample { sandboxes, .. } => self.sampling = sandboxes,
            Effect::Listen => self.listening += 1,
            Effect::List { round } => self.round = round,
            Effect::ClaimChanged { view, removed, .. } => self.changes.push((*view, removed)),
            Effect::Notice(notice) => self.notices.push(notice),
            Effect::PoolsChanged => {}
        }
    }

    pub fn call(&mut self, call: Call) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.send(Event::Request(request, call));
        request
    }

    pub fn claim(&mut self, asked: ClaimRequest) -> RequestId {
        self.call(Call::Claim(fence(1), Box::new(asked)))
    }

    pub fn release(&mut self, claim: u128) -> RequestId {
        self.call(Call::Release(fence(1), id(claim)))
    }

    pub fn renew(&mut self, claim: u128, ttl_ms: u64) -> RequestId {
        self.call(Call::Renew(fence(1), id(claim), ttl_ms))
    }

    /// Claims, and the guest confirms.
    pub fn granted(&mut self, asked: ClaimRequest) -> Grant {
        let request = self.claim(asked);
        self.guests_confirm();
        self.grant(request)
    }

    pub fn is_open(&self, request: RequestId) -> bool {
        !self.replies.contains_key(&request)
    }

    pub fn ok(&self, request: RequestId) -> Answer {
        let (answer, _) = self.replies.get(&request).expect("no answer yet");
        answer.clone().expect("refused")
    }

    pub fn grant(&self, request: RequestId) -> Grant {
        match self.ok(request) {
            Answer::Granted(grant) => grant,
            other => panic!("{other:?}"),
        }
    }

    pub fn refusal(&self, request: RequestId) -> Refusal {
        let (answer, _) = self.replies.get(&request).expect("no answer yet");
        answer.clone().expect_err("answered")
    }

    pub fn advance(&mut self, millis: u64) {
        self.now = self.now.plus(millis);
        self.send(Event::Tick);
    }

    /// Time goes on to every wakeup for this long, as the driver would do.
    pub fn live_for(&mut self, millis: u64, mut meanwhile: impl FnMut(&mut Self)) {
        let end = self.now.plus(millis);
        while let Some(at) = self.node.next_wakeup().filter(|at| *at <= end) {
            self.now = at.max(self.now);
            self.send(Event::Tick);
            meanwhile(self);
        }
        self.now = end;
        self.send(Event::Tick);
    }

    /// Every creation succeeds, half a second each, until no more is asked for.
    pub fn create_all(&mut self) {
        while !self.creating.is_empty() {
            let sandbox = self.creating.remove(0);
            self.now = self.now.plus(500);
            self.send(Event::Created(sandbox, Ok(())));
        }
    }

    /// The next look at what sandboxes use. `found` tells how each differs from one that does nothing; the pressure is in
    /// thousandths.
    pub fn look(&mut self, pressure_permille: u32, found: impl Fn(Sample) -> Sample) {
        self.sampling.clear();
        self.advance(SAMPLE_MS);
        let idle = |id: &SandboxId| Sample {
            id: *id,
            cpu_nanoseconds: 0,
            memory_bytes: 100,
            busy: false,
            packets: Some(0),
        };
        let samples = self.sampling.iter().map(idle).map(found).collect();
        self.send(Event::Sampled {
            samples,
            pressure_permille,
        });
    }

    /// Every freeze that is out succeeds, and those asked for because of it.
    pub fn freeze_all(&mut self) {
        while !self.freezing.is_empty() {
            let sandbox = self.freezing.remove(0);
            self.asleep.insert(sandbox);
            self.send(Event::Frozen(sandbox, Ok(())));
        }
    }

    /// The same with thaws.
    pub fn thaw_all(&mut self) {
        while !self.thawing.is_empty() {
            let sandbox = self.thawing.remove(0);
            self.asleep.remove(&sandbox);
            self.send(Event::Thawed(sandbox, Ok(())));
        }
    }

    pub fn hibernate(&mut self, claim: u128) -> RequestId {
        self.call(Call::Hibernate(
            fence(1),
            id(claim),
            Tier::Auto,
            WaitingOn::Model,
        ))
    }

    pub fn sink(&mut self, claim: u128) -> RequestId {
        self.call(Call::Hibernate(
            fence(1),
            id(claim),
            Tier::Disk,
            WaitingOn::Human,
        ))
    }

    /// Every checkpoint that is out succeeds, and what ran goes.
    pub fn sink_all(&mut self) {
        while !self.checkpointing.is_empty() {
            let sandbox = self.checkpointing.remove(0);
            self.asleep.remove(&sandbox);
            self.send(Event::Checkpointed(sandbox, Ok(7)));
        }
        while !self.shedding.is_empty() {
            let sandbox = self.shedding.remove(0);
            self.send(Event::Shed(sandbox, Ok(())));
        }
    }

    /// Every restore that is out succeeds, and what came back goes on.
    pub fn restore_all(&mut self) {
        while !self.restoring.is_empty() {
            let sandbox = self.restoring.remove(0);
            self.send(Event::Restored(sandbox, Ok(())));
        }
        self.thaw_all();
    }

    pub fn resume(&mut self, claim: u128) -> RequestId {
        self.call(Call::Resume(fence(1), id(claim)))
    }

    pub fn locate(&mut self, claim: u128) -> RequestId {
        self.call(Call::Locate(id(claim)))
    }

    pub fn create_fails(&mut self, reason: &str) {
        let sandbox = self.creating.remove(0);
        let failure = CreateFailure::Template(reason.to_owned());
        self.send(Event::Created(sandbox, Err(failure)));
    }

    pub fn guests_confirm(&mut self) {
        for (sandbox, claim, _) in std::mem::take(&mut self.personalizing) {
            self.send(Event::Personalized(sandbox, claim, Ok(())));
        }
    }

    pub fn guest_says(&mut self, failure: GuestFailure) {
        let (sandbox, claim, _) = self.personalizing.remove(0);
        self.send(Event::Personalized(sandbox, claim, Err(failure)));
    }

    pub fn guest_is_lost(&mut self) {
        self.guest_says(GuestFailure::Lost("no answer".to_owned()));
    }

    pub fn destroy_all(&mut self) {
        while let Some(sandbox) = self.destroying.pop() {
            self.send(Event::Destroyed(sandbox, Ok(())));
        }
    }

    pub fn witness(&mut self, held: Held) {
        let sandbox = self.witnessing.remove(0);
        self.send(Event::Witnessed(sandbox, held));
    }

    pub fn inspect(&mut self) -> NodeView {
        let request = self.call(Call::Inspect);
        match self.ok(request) {
            Answer::Node(view) => *view,
            other => panic!("{other:?}"),
        }
    }

    pub fn pool(&mut self, pool: &str) -> PoolView {
        let pools = self.inspect().pools;
        let found = pools.into_iter().find(|view| view.spec.name == name(pool));
        found.expect("no such pool")
    }

    pub fn view(&mut self, claim: u128) -> Option<ClaimView> {
        let claims = self.inspect().claims;
        claims.into_iter().find(|view| view.id == id(claim))
    }

    pub fn state(&mut self, claim: u128) -> Option<ClaimState> {
        self.view(claim).map(|view| view.state)
    }
}
