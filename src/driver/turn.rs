//! The loop: what comes in becomes a batch, a batch becomes effects.

use super::flight::Flights;
use super::gate::Gate;
use super::golden::Goldens;
use super::guests::Guests;
use super::handle::Door;
use super::inbox::{Asked, Inbox, inbox};
use super::metrics::Metrics;
use super::network::Networks;
use super::residency::{Residencies, ResidencyMetrics};
use super::tell::{tell, translate};
use super::visits::Visits;
use super::watch::ClaimWatches;
use super::work::Workers;
use super::{BATCHES_IN_FLIGHT, Clock, EVENTS, Handle, LAZY_COMMIT, NOTICES, Parts, Phase};
use crate::journal::{Journal, JournalEvent};
use crate::machine::event::{Effect, Event, Step};
use crate::machine::ids::Ticket;
use crate::machine::limits;
use crate::machine::node::Node;
use crate::machine::record::Op;
use crate::runtime::RuntimeEvent;
use prometheus::Registry;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

/// With nothing to do the driver looks again after this long.
const IDLE: Duration = Duration::from_secs(3600);

/// The task that owns the machine.
pub struct Driver {
    node: Node,
    journal: Box<dyn Journal>,
    journal_events: mpsc::Receiver<JournalEvent>,
    runtime_events: mpsc::Receiver<RuntimeEvent>,
    events: mpsc::Receiver<Event>,
    inbox: Inbox,
    workers: Workers,
    flights: Flights,
    gate: Gate,
    /// Of the last batch.
    ticket: Ticket,
    /// Persisted lazily: they go with the next append, at the latest then.
    lazy: Vec<Op>,
    lazy_deadline: Option<Instant>,
    listing: Option<AbortHandle>,
    clock: Arc<dyn Clock>,
    watches: Arc<ClaimWatches>,
    phase: watch::Sender<Phase>,
    pools_changed: watch::Sender<u64>,
    metrics: Metrics,
    door: Handle,
}

/// What woke the driver.
enum Woken {
    Journal(JournalEvent),
    Input(Input),
    Timer,
    Stop,
}

/// One thing for a batch.
enum Input {
    Event(Event),
    Asked(Vec<Asked>),
    Runtime(RuntimeEvent),
}

pub(super) fn build(
    parts: Parts,
    registry: &Registry,
) -> Result<(Driver, Handle), prometheus::Error> {
    let (events_in, events) = mpsc::channel(EVENTS);
    let (lanes, inbox) = inbox();
    let guests = Arc::new(Guests::new(
        parts.runtime.clone(),
        parts.connector,
        events_in.clone(),
    ));
    let networks = Networks::new(parts.network);
    let residencies = Arc::new(Residencies::new(
        parts.runtime.clone(),
        guests.clone(),
        networks.clone(),
        parts.reclaim,
        ResidencyMetrics::register(registry)?,
    ));
    let visits = Visits::default();
    let goldens = Arc::new(Goldens::new(
        parts.golden,
        parts.runtime.clone(),
        guests.clone(),
        networks.clone(),
        events_in.clone(),
        registry,
    )?);
    goldens.declared(parts.node.pool_views().iter().map(|view| &view.spec));
    let watches = Arc::new(ClaimWatches::new(
        parts.start_nonce,
        parts.node.claim_views(),
    ));
    let phase = watch::Sender::new(Phase::Recovering);
    let pools_changed = watch::Sender::new(0);
    let door = Handle::new(Door {
        lanes,
        events: events_in.clone(),
        guests: guests.clone(),
        visits: visits.clone(),
        runtime: parts.runtime.clone(),
        networks: networks.clone(),
        memory: parts.memory,
        watches: watches.clone(),
        phase: phase.subscribe(),
        pools_changed: pools_changed.subscribe(),
        notices: broadcast::Sender::new(NOTICES),
        clock: parts.clock.clone(),
    });
    let driver = Driver {
        node: parts.node,
        journal: parts.journal,
        journal_events: parts.journal_events,
        runtime_events: parts.runtime_events,
        events,
        inbox,
        workers: Workers::new(
            parts.runtime,
            guests,
            events_in,
            residencies,
            visits,
            networks,
            goldens,
        ),
        flights: Flights::default(),
        gate: Gate::default(),
        ticket: Ticket(0),
        lazy: Vec::new(),
        lazy_deadline: None,
        listing: None,
        clock: parts.clock,
        watches,
        phase,
        pools_changed,
        metrics: Metrics::register(registry)?,
        door: door.clone(),
    };
    Ok((driver, door))
}

impl Driver {
    /// Runs until `stop`; then what was appended is durable and nothing more is answered. Spawned by `app`, once.
    pub async fn run_until_stopped(mut self, stop: CancellationToken) {
        self.show_pools();
        loop {
            match self.wait(&stop).await {
                Woken::Journal(event) => self.hear_journal(event),
                Woken::Input(first) => self.take_batch(Some(first)),
                Woken::Timer => self.take_batch(None),
                Woken::Stop => break,
            }
        }
        self.finish().await;
    }

    async fn wait(&mut self, stop: &CancellationToken) -> Woken {
        let room = self.gate.in_flight() < BATCHES_IN_FLIGHT;
        let wakeup = self.wakeup();
        tokio::select! {
            biased;
            Some(event) = self.journal_events.recv() => Woken::Journal(event),
            () = stop.cancelled() => Woken::Stop,
            Some(event) = self.events.recv(), if room => Woken::Input(Input::Event(event)),
            Some(event) = self.runtime_events.recv(), if room => Woken::Input(Input::Runtime(event)),
            Some(asked) = self.inbox.others.recv(), if room => Woken::Input(Input::Asked(asked)),
            Some(asked) = self.inbox.claims.recv(), if room => Woken::Input(Input::Asked(asked)),
            () = sleep_until(wakeup), if room => Woken::Timer,
        }
    }

    /// When the driver must look even if nothing comes in.
    fn wakeup(&self) -> Instant {
        let now = self.clock.now();
        let machine = self
            .node
            .next_wakeup()
            .map_or(IDLE, |at| Duration::from_millis(at.since(now)));
        let wakeup = Instant::now() + machine.min(IDLE);
        self.lazy_deadline.map_or(wakeup, |lazy| wakeup.min(lazy))
    }

    /// Everything that is there, up to the bound, in one batch.
    fn take_batch(&mut self, first: Option<Input>) {
        let mut inputs: Vec<Input> = first.into_iter().collect();
        while inputs.len() < limits::BATCH_EVENTS {
            let next = if let Ok(event) = self.events.try_recv() {
                Input::Event(event)
            } else if let Ok(event) = self.runtime_events.try_recv() {
                Input::Runtime(event)
            } else if let Ok(asked) = self.inbox.others.try_recv() {
                Input::Asked(asked)
            } else if let Ok(asked) = self.inbox.claims.try_recv() {
                Input::Asked(asked)
            } else {
                break;
            };
            inputs.push(next);
        }
        self.ticket = Ticket(self.ticket.0 + 1);
        let step = Step {
            now: self.clock.now(),
            ticket: self.ticket,
        };
        let mut effects = Vec::new();
        let mut count = 0;
        for input in inputs {
            count += self.step(step, input, &mut effects);
        }
        self.node.step(step, Event::Tick, &mut effects);
        if cfg!(debug_assertions)
            && let Err(broken) = self.node.check_invariants()
        {
            error!(broken, "an invariant of the machine is broken");
            debug_assert!(false, "{broken}");
        }
        self.run_effects(step, effects);
        self.show_phase();
        let drain = self.node.drain_view();
        self.metrics.closed(drain.as_ref(), self.node.is_cordoned());
        self.metrics
            .batch(count, self.door.waiting(), &self.workers);
    }

    /// Steps the machine with one input; how many events that was.
    fn step(&mut self, step: Step, input: Input, effects: &mut Vec<Effect>) -> u32 {
        match input {
            Input::Event(event) => {
                self.note(&event);
                self.node.step(step, event, effects);
                1
            }
            Input::Runtime(event) => {
                if event == RuntimeEvent::Disconnected
                    && let Some(listing) = self.listing.take()
                {
                    listing.abort();
                }
                let event = translate(event, &self.workers.guests, &self.door);
                self.node.step(step, event, effects);
                1
            }
            Input::Asked(asked) => {
                let mut count = 0;
                for one in asked {
                    let (id, call) = self.flights.begin(one);
                    self.node.step(step, Event::Request(id, call), effects);
                    count += 1;
                }
                count
            }
        }
    }

    /// What the driver itself learns from an event.
    fn note(&mut self, event: &Event) {
        match event {
            Event::Personalized(sandbox, _, _) => self.flights.acknowledged(*sandbox),
            // Whoever talks to it learns at once that there is nobody.
            Event::Ended(sandbox, _) => self.workers.guests.close(*sandbox),
            _ => {}
        }
    }

    fn hear_journal(&mut self, event: JournalEvent) {
        match event {
            JournalEvent::Durable(ticket) => {
                self.flights.durable(ticket);
                for effect in self.gate.durable(ticket) {
                    self.run(effect);
                }
            }
            JournalEvent::Reserve { reached } => {
                warn!(reached, "disk reserve of the data directory");
                self.take_batch(Some(Input::Event(Event::Disk {
                    reserve_reached: reached,
                })));
            }
        }
    }

    /// Appends what the batch persists, then lets its effects go as far as they may.
    fn run_effects(&mut self, step: Step, effects: Vec<Effect>) {
        let mut commit = self
            .lazy_deadline
            .is_some_and(|deadline| deadline <= Instant::now());
        let mut rest = Vec::with_capacity(effects.len());
        for effect in effects {
            // In the machine's order, before what follows changes it.
            self.workers.note(&effect);
            match effect {
                Effect::Persist(op) => {
                    self.lazy.push(op);
                    commit = true;
                }
                Effect::PersistLazily(op) => {
                    self.lazy.push(op);
                    self.lazy_deadline
                        .get_or_insert_with(|| Instant::now() + LAZY_COMMIT);
                }
                other => rest.push(other),
            }
        }
        // The guests' way is the longer one: they set out before the journal takes a core.
        let (personalizations, rest): (Vec<_>, Vec<_>) = rest
            .into_iter()
            .partition(|effect| matches!(effect, Effect::Personalize { .. }));
        for effect in personalizations {
            self.run(effect);
        }
        if commit && !self.lazy.is_empty() {
            let ops = std::mem::take(&mut self.lazy);
            self.lazy_deadline = None;
            self.journal.append(step.ticket, step.now, ops);
            self.gate.appended(step.ticket);
        }
        let mut pools = false;
        for effect in rest {
            match effect {
                Effect::PoolsChanged => pools = true,
                Effect::Reply { after, .. }
                | Effect::Create { after, .. }
                | Effect::Destroy { after, .. }
                | Effect::Freeze { after, .. }
                | Effect::Checkpoint { after, .. }
                | Effect::Shed { after, .. }
                | Effect::GoOn { after, .. }
                | Effect::DropImage { after, .. }
                | Effect::ClaimChanged { after, .. } => {
                    if let Some(effect) = self.gate.pass(after, effect) {
                        self.run(effect);
                    }
                }
                other => self.run(other),
            }
        }
        if pools {
            self.show_pools();
            self.pools_changed.send_modify(|number| *number += 1);
        }
    }

    /// Runs an effect that has nothing more to wait for.
    fn run(&mut self, effect: Effect) {
        match effect {
            Effect::Reply { to, answer, .. } => self.flights.answer(to, answer),
            effect @ Effect::Create { .. } => self.workers.create(effect),
            Effect::Destroy { sandbox, .. } => self.workers.destroy(sandbox),
            Effect::Personalize {
                sandbox,
                claim,
                request,
                thaw,
                network,
            } => {
                let (what, span) = self.flights.assigned(request, sandbox, self.ticket);
                self.workers
                    .personalize(span, sandbox, (thaw, network), claim, what);
            }
            Effect::Witness { sandbox } => self.workers.witness(sandbox),
            Effect::List { round } => self.list(round),
            Effect::ClaimChanged { view, removed, .. } => self.watches.put(*view, removed),
            Effect::Notice(notice) => {
                self.metrics.notice(&notice);
                tell(&notice);
                self.door.announce(notice);
            }
            Effect::Freeze { sandbox, after } => self.workers.freeze(sandbox, after),
            Effect::Thaw { sandbox } => self.workers.thaw(sandbox),
            Effect::Reclaim { sandbox } => self.workers.reclaim(sandbox),
            Effect::Sample {
                sandboxes,
                from_permille,
            } => self.workers.sample(sandboxes, from_permille),
            Effect::Listen => self.workers.listen(),
            effect @ (Effect::Checkpoint { .. }
            | Effect::Shed { .. }
            | Effect::Restore { .. }
            | Effect::GoOn { .. }
            | Effect::DropImage { .. }
            | Effect::KeepImages(_)) => self.workers.sink(effect),
            // Taken apart in run_effects.
            Effect::Persist(_) | Effect::PersistLazily(_) | Effect::PoolsChanged => {}
        }
    }

    fn list(&mut self, round: u64) {
        let wanted = self.node.unreconciled();
        // An older question that is still unanswered would be answered in vain.
        if let Some(before) = self.listing.replace(self.workers.list(round, wanted)) {
            before.abort();
        }
    }

    fn show_pools(&mut self) {
        self.metrics.pools(&self.node.pool_views());
        self.metrics.orphans(self.node.orphan_count());
        self.metrics.images(self.node.images());
    }

    fn show_phase(&mut self) {
        let phase = self.node.phase();
        let changed = self.phase.send_if_modified(|shown| {
            let changed = *shown != phase;
            *shown = phase;
            changed
        });
        if changed {
            self.metrics.phase(phase);
        }
    }

    /// Commits what is lazy and waits until everything is durable.
    async fn finish(mut self) {
        if !self.lazy.is_empty() {
            self.lazy_deadline = Some(Instant::now());
            self.take_batch(None);
        }
        while self.gate.in_flight() > 0 {
            match self.journal_events.recv().await {
                Some(event @ JournalEvent::Durable(_)) => self.hear_journal(event),
                Some(JournalEvent::Reserve { .. }) => {}
                None => return,
            }
        }
        debug!(unanswered = self.flights.count(), "driver stopped");
    }
}
