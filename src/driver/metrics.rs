//! What the driver counts. Labels: pool names (at most 64 and those that claims still use) and closed
//! lists; never a sandbox or a claim.

use super::Phase;
use super::policies::Policies;
use super::work::Workers;
use crate::machine::event::{ExitCause, FreezeCause, Notice, SinkCause, ThawCause};
use crate::machine::spec::WaitingOn;
use crate::machine::view::{BreakerView, DrainView, PoolView};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};
use std::collections::BTreeSet;
use std::time::Duration;

/// Metrics of the driver, made once a registry.
pub(super) struct Metrics {
    phase: IntGaugeVec,
    sandboxes: IntGaugeVec,
    target: IntGaugeVec,
    waiting: IntGaugeVec,
    breaker: IntGaugeVec,
    policies: Policies,
    refill_duration: HistogramVec,
    refill_failures: IntCounterVec,
    members_lost: IntCounterVec,
    claims_expired: IntCounter,
    claims_failed: IntCounterVec,
    orphans: IntGauge,
    orphans_destroyed: IntCounter,
    destroy_retries: IntCounter,
    breaker_opened: IntCounterVec,
    tombstones_early: IntCounter,
    freezes: IntCounterVec,
    thaws: IntCounterVec,
    images: IntGauge,
    image_bytes: IntGauge,
    sinks: IntCounterVec,
    restores: IntCounterVec,
    cold_starts: IntCounter,
    memory_short: IntCounter,
    draining: IntGauge,
    drain_claims: IntGauge,
    claims_evicted: IntCounter,
    cordoned: IntGauge,
    batch_events: Histogram,
    queue: IntGauge,
    channels: IntGauge,
    /// Pools whose series exist.
    known: BTreeSet<String>,
}

/// States of `hearth_pool_sandboxes`.
const STATES: [&str; 7] = [
    "warm",
    "frozen",
    "creating",
    "claimed",
    "hibernated",
    "releasing",
    "outdated",
];

const CAUSES: [ExitCause; 5] = [
    ExitCause::Exited,
    ExitCause::OutOfMemory,
    ExitCause::GuestLost,
    ExitCause::DataLost,
    ExitCause::NetworkLost,
];

const PHASES: [Phase; 4] = [
    Phase::Recovering,
    Phase::Ready,
    Phase::Degraded,
    Phase::ShuttingDown,
];

fn phase_label(phase: Phase) -> &'static str {
    match phase {
        Phase::Recovering => "recovering",
        Phase::Ready => "ready",
        Phase::Degraded => "degraded",
        Phase::ShuttingDown => "shutting_down",
    }
}

fn cause_label(cause: ExitCause) -> &'static str {
    match cause {
        ExitCause::Exited => "exited",
        ExitCause::OutOfMemory => "oom",
        ExitCause::GuestLost => "guest_lost",
        ExitCause::DataLost => "data_loss",
        ExitCause::NetworkLost => "network_lost",
    }
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// A name is registered already.
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let vec = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok::<_, prometheus::Error>(vec)
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok::<_, prometheus::Error>(vec)
        };
        let gauge = |name: &str, help: &str| {
            let one = IntGauge::new(name, help)?;
            registry.register(Box::new(one.clone()))?;
            Ok::<_, prometheus::Error>(one)
        };
        let counter = |name: &str, help: &str| {
            let one = IntCounter::new(name, help)?;
            registry.register(Box::new(one.clone()))?;
            Ok::<_, prometheus::Error>(one)
        };
        let refill = HistogramOpts::new(
            "hearth_refill_duration_seconds",
            "From the decision to create a sandbox to its proof of readiness",
        );
        let refill = refill.buckets(vec![
            0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
        ]);
        let refill_duration = HistogramVec::new(refill, &["pool"])?;
        registry.register(Box::new(refill_duration.clone()))?;
        let batch = HistogramOpts::new(
            "hearth_driver_batch_events",
            "Events handled in one batch of the driver",
        );
        let batch_events = Histogram::with_opts(
            batch.buckets(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]),
        )?;
        registry.register(Box::new(batch_events.clone()))?;
        let metrics = Self {
            phase: gauges(
                "hearth_phase",
                "1 for the phase hearthd is in, 0 for every other",
                &["phase"],
            )?,
            sandboxes: gauges(
                "hearth_pool_sandboxes",
                "Sandboxes of a pool by state",
                &["pool", "state"],
            )?,
            target: gauges(
                "hearth_pool_warm_target",
                "Members a pool is to keep warm",
                &["pool"],
            )?,
            waiting: gauges(
                "hearth_pool_waiting_claims",
                "Claims waiting for a member",
                &["pool"],
            )?,
            breaker: gauges(
                "hearth_pool_breaker_open",
                "1 while refill rests because the template keeps failing",
                &["pool"],
            )?,
            refill_duration,
            refill_failures: counters(
                "hearth_refill_failures_total",
                "Creations that failed",
                &["pool"],
            )?,
            members_lost: counters(
                "hearth_members_lost_total",
                "Unclaimed members that ended by themselves",
                &["cause"],
            )?,
            claims_expired: counter("hearth_claims_expired_total", "Claims that expired")?,
            claims_failed: counters(
                "hearth_claims_failed_total",
                "Claims whose sandbox ended by itself",
                &["cause"],
            )?,
            orphans: gauge(
                "hearth_orphans",
                "Sandboxes with hearth's marks, in no record, left alone",
            )?,
            orphans_destroyed: counter(
                "hearth_orphans_destroyed_total",
                "Sandboxes of this node without a record that were destroyed",
            )?,
            destroy_retries: counter(
                "hearth_destroy_retries_total",
                "Destructions that failed and are tried again",
            )?,
            breaker_opened: counters(
                "hearth_pool_breaker_opened_total",
                "How often a pool's breaker opened",
                &["pool"],
            )?,
            policies: Policies::register(registry)?,
            tombstones_early: counter(
                "hearth_tombstones_forgotten_early_total",
                "Released claims forgotten before 24 hours because of the bound",
            )?,
            freezes: counters("hearth_freezes_total", "Freezes begun", &["cause"])?,
            thaws: counters(
                "hearth_thaws_total",
                "Thaws begun, other than for claims of members",
                &["cause"],
            )?,
            images: gauge("hearth_images", "Sandboxes that are on the disk")?,
            image_bytes: gauge(
                "hearth_images_bytes",
                "Bytes of the images of sandboxes that are on the disk, sealed",
            )?,
            sinks: counters(
                "hearth_sinks_total",
                "Sandboxes that began to go to the disk",
                &["cause"],
            )?,
            restores: counters(
                "hearth_restores_total",
                "Sandboxes that began to come back from the disk",
                &["cause"],
            )?,
            cold_starts: counter(
                "hearth_claims_cold_started_total",
                "Claims that got a fresh sandbox because an image did not come back",
            )?,
            memory_short: counter(
                "hearth_memory_short_total",
                "Looks that found the node short of memory",
            )?,
            draining: gauge("hearth_draining", "1 while the node is drained")?,
            drain_claims: gauge(
                "hearth_drain_claims",
                "Claims that the drain waits for: awake, or on their way to the disk; 0 without one",
            )?,
            cordoned: gauge("hearth_node_cordoned", "1 while the node is cordoned")?,
            claims_evicted: counter(
                "hearth_claims_evicted_total",
                "Claims that a drain's deadline released",
            )?,
            batch_events,
            queue: gauge("hearth_driver_queue_length", "Calls waiting for the driver")?,
            channels: gauge("hearth_guest_channels_open", "Open guest channels")?,
            known: BTreeSet::new(),
        };
        // A counter that appears with its first event hides that event from rate().
        for cause in CAUSES.map(cause_label) {
            metrics.members_lost.with_label_values(&[cause]);
            metrics.claims_failed.with_label_values(&[cause]);
        }
        metrics.phase(Phase::Recovering);
        Ok(metrics)
    }

    /// The phase as it is now.
    pub(super) fn phase(&self, now: Phase) {
        for phase in PHASES {
            let gauge = self.phase.with_label_values(&[phase_label(phase)]);
            gauge.set(i64::from(phase == now));
        }
    }

    /// After a batch.
    pub(super) fn batch(&self, events: u32, queue: usize, workers: &Workers) {
        self.batch_events.observe(f64::from(events));
        self.queue.set(count(queue));
        self.channels.set(count(workers.guests.count()));
    }

    /// The drain as it stands, and the cordon.
    pub(super) fn closed(&self, drain: Option<&DrainView>, cordoned: bool) {
        self.cordoned.set(i64::from(cordoned));
        self.draining.set(i64::from(drain.is_some()));
        self.drain_claims
            .set(drain.map_or(0, |it| i64::from(it.claims) + i64::from(it.to_disk)));
    }

    /// Orphans that are left alone.
    pub(super) fn orphans(&self, found: usize) {
        self.orphans.set(count(found));
    }

    /// Images on the disk: how many, and their bytes.
    pub(super) fn images(&self, (number, bytes): (usize, u64)) {
        self.images.set(count(number));
        self.image_bytes
            .set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// The pools as they stand; those that are gone lose their series, so that labels stay bounded.
    pub(super) fn pools(&mut self, pools: &[PoolView]) {
        let names: BTreeSet<String> = pools.iter().map(|p| p.spec.name.to_string()).collect();
        for gone in self.known.difference(&names) {
            for state in STATES {
                let _absent = self.sandboxes.remove_label_values(&[gone, state]);
            }
            for vec in [&self.target, &self.waiting, &self.breaker] {
                let _absent = vec.remove_label_values(&[gone.as_str()]);
            }
            for vec in [&self.refill_failures, &self.breaker_opened] {
                let _absent = vec.remove_label_values(&[gone.as_str()]);
            }
            let _absent = self.refill_duration.remove_label_values(&[gone.as_str()]);
            self.policies.gone(gone);
        }
        for view in pools {
            let pool = view.spec.name.as_str();
            let counts = [
                view.warm,
                view.frozen,
                view.creating,
                view.claimed,
                view.hibernated,
                view.releasing,
                view.outdated,
            ];
            for (state, value) in STATES.into_iter().zip(counts) {
                let gauge = self.sandboxes.with_label_values(&[pool, state]);
                gauge.set(i64::from(value));
            }
            let set = |vec: &IntGaugeVec, value: i64| vec.with_label_values(&[pool]).set(value);
            set(&self.target, i64::from(view.spec.min_warm));
            set(&self.waiting, i64::from(view.waiting));
            let rests = !matches!(view.breaker, BreakerView::Closed);
            set(&self.breaker, i64::from(rests));
            self.policies.pool(view);
            self.refill_duration.with_label_values(&[pool]);
            for vec in [&self.refill_failures, &self.breaker_opened] {
                vec.with_label_values(&[pool]);
            }
        }
        self.known = names;
    }

    /// Something for operators.
    pub(super) fn notice(&self, notice: &Notice) {
        match notice {
            // What is told of a pool after it has gone would stay for ever.
            Notice::BreakerOpened { pool, .. } | Notice::Created { pool, .. }
                if !self.known.contains(pool.as_str()) => {}
            Notice::BreakerOpened { pool, .. } => {
                self.breaker_opened
                    .with_label_values(&[pool.as_str()])
                    .inc();
            }
            Notice::PolicyFinding(_, finding) => self.policies.found(finding),
            Notice::MemberLost { cause, .. } => self
                .members_lost
                .with_label_values(&[cause_label(*cause)])
                .inc(),
            Notice::ClaimExpired { .. } => self.claims_expired.inc(),
            Notice::ClaimEvicted { .. } => self.claims_evicted.inc(),
            Notice::ClaimFailed { cause, .. } => self
                .claims_failed
                .with_label_values(&[cause_label(*cause)])
                .inc(),
            Notice::OrphanDestroyed { .. } => self.orphans_destroyed.inc(),
            Notice::DestroyRetried { .. } => self.destroy_retries.inc(),
            Notice::TombstoneForgottenEarly => self.tombstones_early.inc(),
            Notice::Created { pool, took_ms } => match took_ms {
                Some(took) => {
                    let seconds = Duration::from_millis(*took).as_secs_f64();
                    let histogram = self.refill_duration.with_label_values(&[pool.as_str()]);
                    histogram.observe(seconds);
                }
                None => self
                    .refill_failures
                    .with_label_values(&[pool.as_str()])
                    .inc(),
            },
            Notice::FreezeStarted { cause } => self
                .freezes
                .with_label_values(&[freeze_label(*cause)])
                .inc(),
            Notice::ThawStarted { cause } => {
                self.thaws.with_label_values(&[thaw_label(*cause)]).inc();
            }
            Notice::SinkStarted { cause } => {
                self.sinks.with_label_values(&[sink_label(*cause)]).inc();
            }
            Notice::RestoreStarted { cause } => {
                self.restores.with_label_values(&[thaw_label(*cause)]).inc();
            }
            Notice::ColdStarted(..) => self.cold_starts.inc(),
            Notice::MemoryShort { .. } => self.memory_short.inc(),
            // Counted where they happen.
            Notice::FreezeFailed { .. }
            | Notice::Cordoned(_)
            | Notice::ThawFailed { .. }
            | Notice::SinkFailed { .. }
            | Notice::RestoreFailed { .. } => {}
            Notice::BreakerClosed { .. }
            | Notice::Judged(..)
            | Notice::PoolUnservable { .. }
            | Notice::PoolServable { .. }
            | Notice::ShimKilled { .. }
            | Notice::DrainBegun { .. }
            | Notice::DrainEnded
            | Notice::OrphanFound { .. }
            | Notice::Recovered { .. } => {}
        }
    }
}

fn freeze_label(cause: FreezeCause) -> &'static str {
    match cause {
        FreezeCause::Surplus => "surplus",
        FreezeCause::Idle => "idle",
        FreezeCause::Pressure => "pressure",
        FreezeCause::Drain => "drain",
        FreezeCause::Asked(WaitingOn::Unspecified) => "asked",
        FreezeCause::Asked(WaitingOn::Human) => "waiting_on_human",
        FreezeCause::Asked(WaitingOn::Model) => "waiting_on_model",
    }
}

fn sink_label(cause: SinkCause) -> &'static str {
    match cause {
        SinkCause::Age => "age",
        SinkCause::Pressure => "pressure",
        SinkCause::Drain => "drain",
        SinkCause::Asked(waiting) => freeze_label(FreezeCause::Asked(waiting)),
    }
}

fn thaw_label(cause: ThawCause) -> &'static str {
    match cause {
        ThawCause::Refill => "refill",
        ThawCause::Used => "used",
        ThawCause::Asked => "asked",
        ThawCause::Traffic => "traffic",
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
