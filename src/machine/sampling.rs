//! Looks at what sandboxes use, every [`SAMPLE_MS`](super::limits::SAMPLE_MS) while that can decide anything, and freezes by it: claimed sandboxes that
//! did nothing for their template's `idle_after`, and, when the node is short of memory, whoever is missed least.

use super::claims::Stage;
use super::event::{Effect, FreezeCause, Notice, Sample};
use super::ids::{Now, SandboxId};
use super::limits::{
    DROWSY_IDLE_MS, IDLE_CPU_PERMILLE, PRESSED_FREEZES, PRESSED_IDLE_MS, PRESSED_REST_MS,
    PRESSED_STEP_BYTES, SAMPLE_GAP_MS, SAMPLE_MS,
};
use super::node::{MemoryPolicy, Node};
use super::out::Out;
use super::record::Owner;
use super::sandboxes::{Operation, Residency, Sandbox};
use super::timers::Timer;
use std::collections::BTreeMap;

/// What a sandbox did at the latest look.
#[derive(Debug, Clone, Copy)]
struct Activity {
    cpu_nanoseconds: u64,
    packets: Option<u64>,
    at: Now,
    /// When it was last seen doing something, or first seen.
    busy_at: Now,
}

/// The looks.
#[derive(Debug, Clone, Default)]
pub(super) struct Sampling {
    /// When the next one is due.
    pub(super) next_at: Option<Now>,
    /// Of running sandboxes.
    seen: BTreeMap<SandboxId, Activity>,
    /// Memory was short: nothing is thawed without need until then.
    pressed_until: Option<Now>,
}

impl Sampling {
    pub(super) fn is_pressed(&self, now: Now) -> bool {
        self.pressed_until.is_some_and(|until| now < until)
    }

    /// Somebody uses it.
    pub(super) fn used(&mut self, id: SandboxId, now: Now) {
        if let Some(activity) = self.seen.get_mut(&id) {
            activity.busy_at = now;
        }
    }

    /// It is being frozen: what it did before means nothing after.
    pub(super) fn forget(&mut self, id: SandboxId) {
        self.seen.remove(&id);
    }

    fn note(&mut self, sample: &Sample, now: Now) {
        let fresh = Activity {
            cpu_nanoseconds: sample.cpu_nanoseconds,
            packets: sample.packets,
            at: now,
            busy_at: now,
        };
        let Some(before) = self.seen.insert(sample.id, fresh) else {
            return;
        };
        let used_ns = sample
            .cpu_nanoseconds
            .saturating_sub(before.cpu_nanoseconds);
        let span_ns = now.since(before.at).saturating_mul(1_000_000);
        let few = used_ns.saturating_mul(1000) < span_ns.saturating_mul(IDLE_CPU_PERMILLE);
        // Over a long gap a burst of work averages to nothing: what was not looked at counts as busy.
        let idle = few && now.since(before.at) <= SAMPLE_GAP_MS;
        if let Some(activity) = self.seen.get_mut(&sample.id)
            && idle
            && !sample.busy
            && sample.packets.is_some()
            && sample.packets == before.packets
        {
            activity.busy_at = before.busy_at;
        }
    }

    /// How long it has done nothing, milliseconds.
    fn idle_ms(&self, id: SandboxId, now: Now) -> u64 {
        self.seen.get(&id).map_or(0, |it| now.since(it.busy_at))
    }
}

/// A sandbox that may be frozen under pressure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) id: SandboxId,
    pub(super) claimed: bool,
    pub(super) idle_ms: u64,
    pub(super) memory_bytes: u64,
}

/// Whom to freeze so that `short_bytes` come free: unclaimed members first, the newest of them (the oldest is handed out
/// next); then claimed ones, the longest idle first.
pub(super) fn choose(mut candidates: Vec<Candidate>, short_bytes: u64) -> Vec<SandboxId> {
    candidates.retain(|it| !it.claimed || it.idle_ms >= PRESSED_IDLE_MS);
    candidates.sort_by(|one, other| {
        let by_claim = one.claimed.cmp(&other.claimed);
        let by_need = match one.claimed {
            false => other.id.cmp(&one.id),
            true => (other.idle_ms, one.id).cmp(&(one.idle_ms, other.id)),
        };
        by_claim.then(by_need)
    });
    let mut freed = 0u64;
    let enough = |candidate: &Candidate| {
        let still_short = freed < short_bytes;
        freed = freed.saturating_add(candidate.memory_bytes);
        still_short
    };
    let chosen = candidates.into_iter().take_while(enough);
    chosen.take(PRESSED_FREEZES).map(|it| it.id).collect()
}

/// Bytes to be freed.
fn short_bytes(policy: MemoryPolicy, used_bytes: u64, pressure_permille: u32) -> u64 {
    let over = match policy.budget_bytes {
        0 => 0,
        budget => used_bytes.saturating_sub(budget),
    };
    let pressed = policy.pressure_permille > 0 && pressure_permille >= policy.pressure_permille;
    match pressed {
        true => over.max(PRESSED_STEP_BYTES),
        false => over,
    }
}

impl Node {
    /// Sets the timer of the next look, or clears it when no look can decide anything.
    pub(super) fn keep_sampling(&mut self) {
        let sleepy = |pool: &super::pools::Pool| pool.template.idle_after_ms > 0;
        let wanted = self.conditions.may_shift()
            && (self.watches_memory()
                || self.drain_looks()
                || self.listening.any_drowsy()
                || self.pools.values().any(sleepy));
        let held = &mut self.sampling.next_at;
        let at = wanted.then(|| held.unwrap_or(self.now.plus(SAMPLE_MS)));
        self.timers.keep(Timer::Sample, held, at);
    }

    fn watches_memory(&self) -> bool {
        self.settings.memory != MemoryPolicy::default()
    }

    /// Asks for a look at those whose use can decide something.
    pub(super) fn sample(&mut self, out: &mut Out<'_>) {
        self.sampling.next_at = None;
        self.forget_drowsy();
        let counts = |it: &&Sandbox| match (it.owner, it.residency) {
            (Owner::Claimed(_), Residency::Running) => {
                self.watches_memory() || self.drain_looks() || self.idle_after_ms(it) > 0
            }
            (_, Residency::Running | Residency::Frozen) => self.watches_memory(),
            _ => false,
        };
        let sandboxes: Vec<_> = self
            .sandboxes
            .iter()
            .filter(counts)
            .map(|it| it.id)
            .collect();
        let sleepy = |it: &Sandbox| self.idle_after_ms(it) > 0;
        let policy = self.settings.memory;
        let always =
            policy.budget_bytes > 0 || self.drain_looks() || self.sandboxes.iter().any(sleepy);
        if !sandboxes.is_empty() {
            out.push(Effect::Sample {
                sandboxes,
                from_permille: if always { 0 } else { policy.pressure_permille },
            });
        }
    }

    /// What was seen.
    pub(super) fn sampled(
        &mut self,
        samples: &[Sample],
        pressure_permille: u32,
        out: &mut Out<'_>,
    ) {
        let sandboxes = &self.sandboxes;
        self.sampling
            .seen
            .retain(|id, _| sandboxes.get(*id).is_some());
        for sample in samples {
            let running = |it: &Sandbox| it.residency == Residency::Running;
            if self.sandboxes.get(sample.id).is_some_and(running) {
                self.sampling.note(sample, out.now());
            }
        }
        self.drain_looked(samples);
        if !self.conditions.may_shift() || self.residing.rests_until.is_some() {
            return;
        }
        self.freeze_idle(samples, out);
        self.relieve(samples, pressure_permille, out);
    }

    fn freeze_idle(&mut self, samples: &[Sample], out: &mut Out<'_>) {
        for sample in samples {
            let sandbox = self.freezable(sample.id);
            let Some(sandbox) = sandbox.filter(|it| self.is_held(it)) else {
                continue;
            };
            let after_ms = self.idle_after_ms(sandbox);
            if after_ms > 0 && self.sampling.idle_ms(sample.id, out.now()) >= after_ms {
                self.begin_freeze(sample.id, FreezeCause::Idle, out);
            }
        }
    }

    fn relieve(&mut self, samples: &[Sample], pressure_permille: u32, out: &mut Out<'_>) {
        let used = samples.iter().map(|it| it.memory_bytes);
        let used = used.fold(0, u64::saturating_add);
        let short_bytes = short_bytes(self.settings.memory, used, pressure_permille);
        if short_bytes == 0 {
            return;
        }
        self.sampling.pressed_until = Some(out.now().plus(PRESSED_REST_MS));
        let candidate = |sample: &Sample| {
            let sandbox = self.freezable(sample.id)?;
            let claimed = self.is_held(sandbox);
            (claimed || sandbox.owner == Owner::Pool).then_some(Candidate {
                id: sample.id,
                claimed,
                idle_ms: self.sampling.idle_ms(sample.id, out.now()),
                memory_bytes: sample.memory_bytes,
            })
        };
        let chosen = choose(samples.iter().filter_map(candidate).collect(), short_bytes);
        out.notice(Notice::MemoryShort {
            short_bytes,
            chosen: chosen.len(),
        });
        if chosen.is_empty() {
            self.sink_one(out);
        }
        for id in chosen {
            self.begin_freeze(id, FreezeCause::Pressure, out);
        }
    }

    /// A sandbox that runs, with which nothing goes on, and whose handler can freeze it.
    fn freezable(&self, id: SandboxId) -> Option<&Sandbox> {
        let idle = |it: &&Sandbox| {
            it.residency == Residency::Running && it.operation == Operation::Idle && it.can_freeze()
        };
        self.sandboxes.get(id).filter(idle)
    }

    /// Its claim is acknowledged.
    pub(super) fn is_held(&self, sandbox: &Sandbox) -> bool {
        let Owner::Claimed(claim) = sandbox.owner else {
            return false;
        };
        let claim = self.claims.get(&claim);
        claim.is_some_and(|it| matches!(it.stage, Stage::Held { .. }))
    }

    /// After how long without doing anything it falls asleep; 0: never by itself.
    fn idle_after_ms(&self, sandbox: &Sandbox) -> u64 {
        let template = sandbox.template.as_ref();
        match template.map_or(0, |it| it.idle_after_ms) {
            0 if self.listening.is_drowsy(sandbox.id) => DROWSY_IDLE_MS,
            after_ms => after_ms,
        }
    }
}
