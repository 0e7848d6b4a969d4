//! What the machine is told, and what it asks for.

pub use super::call::Call;
pub use super::causes::{
    CheckpointFailure, CreateFailure, ExitCause, FreezeCause, GuestFailure, RestoreFailure,
    SinkCause, ThawCause,
};
use super::classes::Classes;
use super::ids::{ClaimId, Now, PoolName, RequestId, SandboxId, Ticket};
use super::network::NetworkPolicy;
pub use super::notice::Notice;
use super::record::Op;
use super::refusal::Refusal;
use super::spec::{DrainRequest, Template};
use super::view::{Answer, ClaimView};
use std::sync::Arc;

/// What a guest holds, asked by recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Nothing: never personalized.
    Nothing,
    /// This claim's personalization.
    Claim(ClaimId),
    /// It does not answer (yet). The machine asks again after a pause.
    Silent,
}

/// What the runtime shows of one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// Its id.
    pub id: SandboxId,
    /// Its task runs (or is frozen): verified alive. `false`: verified that it does not run (it ended, or there is no
    /// task). A listing that cannot tell of some sandbox does not end in `Event::Listed`.
    pub alive: bool,
    /// Its cgroup is frozen, or about to be.
    pub frozen: bool,
}

/// What a sandbox did since it was looked at before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Which.
    pub id: SandboxId,
    /// CPU time it has used in all, nanoseconds.
    pub cpu_nanoseconds: u64,
    /// Memory charged to its cgroup, bytes.
    pub memory_bytes: u64,
    /// A caller has a stream open in it, or had one since.
    pub busy: bool,
    /// Packets over its network interface in all, both ways; without one: 0. `None`: they could not be counted.
    pub packets: Option<u64>,
}

/// What the machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A call. Answered exactly once.
    Request(RequestId, Call),
    /// A creation ended. `Ok`: runs, guest answers, warm command and readiness have passed.
    Created(SandboxId, Result<(), CreateFailure>),
    /// What is being made is a clone of its pool's golden image. Before its `Created`.
    Cloned(SandboxId),
    /// A destruction ended. `Ok`: verified that nothing is left. `Err`: it is not known to be gone.
    Destroyed(SandboxId, Result<(), String>),
    /// The guest answered a personalization.
    Personalized(SandboxId, ClaimId, Result<(), GuestFailure>),
    /// A freeze ended. `Err`: it runs.
    Frozen(SandboxId, Result<(), String>),
    /// A thaw ended. `Err`: it is still frozen, or gone.
    Thawed(SandboxId, Result<(), String>),
    /// A checkpoint ended. `Ok`: its image is sealed, that many bytes; it is frozen. `Err`: it is as it was.
    Checkpointed(SandboxId, Result<u64, CheckpointFailure>),
    /// What ran of a sandbox whose image is durable is verified gone, or not.
    Shed(SandboxId, Result<(), String>),
    /// A restore ended. `Ok`: it runs, its guest answers and has everybody inside wait. `Err`: nothing of it runs.
    Restored(SandboxId, Result<(), RestoreFailure>),
    /// The answer to `Effect::Sample`; empty when nothing could be read.
    Sampled {
        /// Ordered by id.
        samples: Vec<Sample>,
        /// Share of the last ten seconds in which something waited for memory, thousandths; 0 where the kernel does not
        /// tell.
        pressure_permille: u32,
    },
    /// The answer to `Effect::Listen`: who something came in for, and how long ago the last of it, milliseconds; empty when
    /// it could not be read.
    Heard(Vec<(SandboxId, u64)>),
    /// The guest answered recovery's question.
    Witnessed(SandboxId, Held),
    /// A sandbox ended by itself (also during an operation).
    Ended(SandboxId, ExitCause),
    /// Everything the runtime holds of hearth's: the result of `Effect::List`.
    Listed {
        /// Of the `Effect::List` it answers. Nothing that became known after that effect is judged by it.
        round: u64,
        /// Ordered by id.
        observed: Vec<Observed>,
    },
    /// containerd is reachable, or not.
    Runtime {
        /// Reachable.
        available: bool,
    },
    /// The data directory's reserve is reached, or free again.
    Disk {
        /// Reached.
        reserve_reached: bool,
    },
    /// The cluster has cordoned the node, or undone that. Until it is told after a start, what it told last holds.
    Cordon {
        /// Cordoned.
        cordoned: bool,
    },
    /// What the cluster asks for now; the same again changes nothing.
    ClusterDrain {
        /// `None`: no drain.
        asked: Option<DrainRequest>,
    },
    /// RuntimeClasses and the node's labels, as the cluster has them now.
    Classes(Arc<Classes>),
    /// hearthd begins to shut down: refuse mutating calls, start nothing new.
    ShuttingDown,
    /// Time passed; see `Node::next_wakeup`.
    Tick,
}

/// What the machine asks for. Effects `after` a ticket wait until that batch is durable; others start at once.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Make durable, in this batch's commit.
    Persist(Op),
    /// Make durable with the next commit there is, in order with what else is persisted; nothing waits for it.
    PersistLazily(Op),
    /// Answer a request.
    Reply {
        /// Which.
        to: RequestId,
        /// What.
        answer: Result<Answer, Refusal>,
        /// When.
        after: Ticket,
    },
    /// Make a sandbox and prove it ready; ends with `Event::Created`.
    Create {
        /// Its id.
        sandbox: SandboxId,
        /// Its pool (cgroup parent, labels).
        pool: PoolName,
        /// The pool's generation.
        generation: u64,
        /// What it is.
        template: Arc<Template>,
        /// Its owner is a claim from the beginning: no golden image is taken of it.
        claimed: bool,
        /// When: the intent is durable.
        after: Ticket,
    },
    /// Destroy whatever there is of a sandbox; ends with `Event::Destroyed`. Never out beside a creation of the same
    /// sandbox. Calls to its guest may be: they end with the guest, and their events mean nothing any more.
    Destroy {
        /// Which.
        sandbox: SandboxId,
        /// When: the intent is durable.
        after: Ticket,
    },
    /// Personalize a member for a claim, with the personalization that came with `request`: the oldest request of the
    /// claim that has no answer yet, so the driver still holds it. Ends with `Event::Personalized`. Runs ahead of the
    /// commit: recovery can undo it.
    Personalize {
        /// The member.
        sandbox: SandboxId,
        /// The claim.
        claim: ClaimId,
        /// Whose personalization; `None`: an empty one (a cold start).
        request: Option<RequestId>,
        /// It is frozen, or a freeze or thaw of it is out: it is thawed first, and a freeze that has not begun never
        /// does.
        thaw: bool,
        /// The claim's own network policy, where another one is in force: put in force before the guest is told
        /// anything. Where that fails the member is lost, as with a guest that does not answer.
        network: Option<Arc<NetworkPolicy>>,
    },
    /// Stop a sandbox's processes; ends with `Event::Frozen`. Overtaken by a later personalization, thaw or destruction
    /// of the same sandbox: then it need not happen.
    Freeze {
        /// Which.
        sandbox: SandboxId,
        /// When: the intent is durable.
        after: Ticket,
    },
    /// Let a sandbox's processes go on; ends with `Event::Thawed`. Runs ahead of the commit: recovery goes by the outside.
    Thaw {
        /// Which.
        sandbox: SandboxId,
    },
    /// Make and seal the image of a sandbox that runs or is frozen; ends with `Event::Checkpointed`. Nothing is lost if it
    /// is cut off at any moment: the sandbox stays until `Shed`. Overtaken by its destruction.
    Checkpoint {
        /// Which.
        sandbox: SandboxId,
        /// It is frozen.
        asleep: bool,
        /// When: whose it is is durable. It is frozen meanwhile, and a frozen sandbox whose record still calls it a member
        /// would be taken for one that was never used.
        after: Ticket,
    },
    /// Destroy what runs of a sandbox and keep its image and its file system; ends with `Event::Shed`.
    Shed {
        /// Which.
        sandbox: SandboxId,
        /// When: that it is on the disk is durable.
        after: Ticket,
    },
    /// Bring a sandbox back from its image, having shed what is left of it; ends with `Event::Restored`.
    Restore {
        /// Which.
        sandbox: SandboxId,
        /// Its pool (cgroup parent).
        pool: PoolName,
        /// The policy it was made with: with an interface or without.
        made_with: Arc<NetworkPolicy>,
        /// The policy to be in force before it runs.
        in_force: Arc<NetworkPolicy>,
    },
    /// Let the processes of a restored sandbox go on; ends with `Event::Thawed`.
    GoOn {
        /// Which.
        sandbox: SandboxId,
        /// When: that it runs is durable, so that nothing that happens inside can be undone.
        after: Ticket,
    },
    /// Delete an image that nobody needs any more. No event ends it: what is left is swept at the next start.
    DropImage {
        /// Whose.
        sandbox: SandboxId,
        /// When.
        after: Ticket,
    },
    /// Once, when recovery has finished: of the images that were there at the start keep these, delete the others.
    KeepImages(Vec<SandboxId>),
    /// Take a frozen sandbox's memory, in the background, until it is thawed or destroyed. No event ends it.
    Reclaim {
        /// Which.
        sandbox: SandboxId,
    },
    /// Look at the node's memory pressure and at what these use; ends with `Event::Sampled`.
    Sample {
        /// Ordered by id.
        sandboxes: Vec<SandboxId>,
        /// With less pressure than this, thousandths, the sandboxes need not be looked at.
        from_permille: u32,
    },
    /// Look what has come in for sandboxes over their interfaces; ends with `Event::Heard`.
    Listen,
    /// Ask a guest what it holds, having thawed it if need be; ends with `Event::Witnessed`.
    Witness {
        /// Which.
        sandbox: SandboxId,
    },
    /// List the runtime; ends with `Event::Listed`, or with nothing when it failed: the machine asks again. Asked for at
    /// every `Event::Runtime { available: true }` and every `Settings::relist_ms` after.
    List {
        /// Goes into the answer. The listing must begin after the effect.
        round: u64,
    },
    /// A claim changed or went: for watchers.
    ClaimChanged {
        /// As it stands, or its last state.
        view: Box<ClaimView>,
        /// It is gone.
        removed: bool,
        /// When: the change is durable.
        after: Ticket,
    },
    /// Some pool's status changed: watchers may look.
    PoolsChanged,
    /// Something for operators and metrics.
    Notice(Notice),
}

/// What a step knows besides the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// One for the whole batch.
    pub now: Now,
    /// Of the batch under way: effects that must wait for what this step persists carry it.
    pub ticket: Ticket,
}
