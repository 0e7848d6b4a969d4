//! A declared pool: its template, the claims that wait for it, its breaker and how long its creations take.

use super::admission::Rules;
use super::breaker::Breaker;
use super::classes::unservable;
use super::handler::Overhead;
use super::ids::Now;
use super::limits::{DEFAULT_PARALLEL_REFILLS, REFILL_ESTIMATE_MS};
use super::network::NetworkPolicy;
use super::queue::Queue;
use super::refusal::Refusal;
use super::sandboxes::{Sandboxes, Tally};
use super::spec::{PoolSpec, Template, UpdateStrategy, Verdict};
use super::view::{BreakerView, PoolView};
use std::sync::Arc;

/// How long a pool's creations take: a moving average that gives the latest a quarter of the weight.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Estimate {
    measured_ms: Option<u64>,
}

impl Estimate {
    pub(super) fn measured(&mut self, took_ms: u64) {
        let before = self.measured_ms.unwrap_or(took_ms);
        self.measured_ms = Some((before.saturating_mul(3).saturating_add(took_ms)) / 4);
    }

    pub(super) fn creation_ms(&self) -> u64 {
        self.measured_ms.unwrap_or(REFILL_ESTIMATE_MS).max(1)
    }
}

/// A pool as declared, with what happens in it.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    pub(super) spec: PoolSpec,
    /// The spec's.
    pub(super) template: Arc<Template>,
    /// The template's.
    pub(super) network: Arc<NetworkPolicy>,
    pub(super) queue: Queue,
    pub(super) breaker: Breaker,
    pub(super) estimate: Estimate,
    /// What the cluster said of the template.
    pub(super) verdict: Option<Verdict>,
    /// What a claim hears that needs a sandbox which is not there: no policy lets one be made.
    pub(super) held: Option<Refusal>,
    /// Why this node can't serve its RuntimeClass; bounded.
    pub(super) unservable: Option<String>,
    /// Of one sandbox, beside what the template promises. `None`: its RuntimeClass has not been told of yet.
    pub(super) overhead: Option<Overhead>,
}

impl Pool {
    pub(super) fn declared(spec: PoolSpec) -> Self {
        let mut pool = Self {
            template: Arc::new(spec.template.clone()),
            network: Arc::new(spec.template.network_policy.clone()),
            spec,
            queue: Queue::default(),
            breaker: Breaker::default(),
            estimate: Estimate::default(),
            verdict: None,
            held: None,
            unservable: None,
            overhead: None,
        };
        pool.weigh(None);
        pool
    }

    /// Is a member made for that generation still wanted?
    pub(super) fn keeps(&self, generation: u64) -> bool {
        generation >= self.spec.generation
            || self.spec.update_strategy == UpdateStrategy::OnReplenish
    }

    /// Does its own limit leave room for one more sandbox?
    pub(super) fn has_room(&self, tally: &Tally) -> bool {
        tally.total() < count(self.spec.max_total)
    }

    /// May one more creation be in flight?
    pub(super) fn may_create(&self, tally: &Tally, now: Now) -> bool {
        self.held.is_none()
            && self.unservable.is_none()
            && tally.creating < self.parallel()
            && self.has_room(tally)
            && self.breaker.permits(now)
    }

    /// Claims wait that need a creation which is not under way.
    pub(super) fn is_urgent(&self, tally: &Tally) -> bool {
        self.queue.cold_len() > 0 || self.queue.waiters() > tally.members()
    }

    /// There are, or will be, too few members. Everything that is being made or not settled yet counts, so events that
    /// come late make no creation too many.
    pub(super) fn is_short(&self, tally: &Tally) -> bool {
        tally.members() < count(self.spec.min_warm).saturating_add(self.queue.waiters())
    }

    /// Milliseconds until one more caller may find a member: those who wait are served first.
    pub(super) fn refill_estimate_ms(&self) -> u64 {
        let rounds = self.queue.len() / self.parallel() + 1;
        let rounds = u64::try_from(rounds).unwrap_or(u64::MAX);
        self.estimate.creation_ms().saturating_mul(rounds)
    }

    /// The refusal of a pool that may not be filled, that this node can't serve, or that keeps failing.
    pub(super) fn failing(&self, now: Now) -> Option<Refusal> {
        if self.held.is_some() {
            return self.held.clone();
        }
        if let Some(why) = &self.unservable {
            return Some(unservable(&self.spec.name, why));
        }
        let rest_ms = self.breaker.failing_for(now)?;
        Some(Refusal::PoolFailing {
            pool: self.spec.name.to_string(),
            detail: self.breaker.reason().to_owned(),
            retry_ms: rest_ms.saturating_add(self.estimate.creation_ms()),
        })
    }

    /// The refusal of a request whose wait is over.
    pub(super) fn timed_out(&self) -> Refusal {
        Refusal::WaitTimedOut {
            pool: self.spec.name.to_string(),
            retry_ms: self.refill_estimate_ms(),
        }
    }

    fn parallel(&self) -> usize {
        match self.spec.max_parallel_refills {
            0 => count(DEFAULT_PARALLEL_REFILLS),
            limit => count(limit),
        }
    }

    pub(super) fn view(&self, sandboxes: &Sandboxes, rules: &Rules) -> PoolView {
        let tally = sandboxes.tally(&self.spec.name);
        let asleep = tally.frozen.iter().chain(&tally.shifting);
        let members = tally.warm.iter().chain(asleep);
        let outdated = members.filter_map(|id| sandboxes.get(*id));
        let outdated = outdated.filter(|member| member.generation < self.spec.generation);
        PoolView {
            spec: self.spec.clone(),
            warm: shown(tally.claimable()),
            frozen: shown(tally.frozen.len() + tally.shifting.len()),
            creating: shown(tally.refilling.len() + tally.unsettled.len()),
            claimed: shown(tally.claimed),
            hibernated: shown(tally.hibernated),
            on_disk: shown(tally.on_disk),
            image_bytes: tally.image_bytes,
            releasing: shown(tally.releasing),
            waiting: shown(self.queue.len()),
            outdated: shown(outdated.count()),
            breaker: match &self.unservable {
                Some(_) => BreakerView::Unservable,
                None => self.breaker.view(),
            },
            breaker_reason: match &self.unservable {
                Some(why) => why.clone(),
                None => self.breaker.reason().to_owned(),
            },
            consecutive_failures: self.breaker.failures(),
            verdict: self.verdict.clone(),
            findings: rules.findings(&self.spec),
            held: self
                .held
                .as_ref()
                .map_or_else(String::new, ToString::to_string),
            overhead: self.overhead,
        }
    }
}

/// A declared number as a count.
pub(super) fn count(declared: u32) -> usize {
    usize::try_from(declared).unwrap_or(usize::MAX)
}

/// A count as shown.
fn shown(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
