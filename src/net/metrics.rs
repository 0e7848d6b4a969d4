//! What the network room counts. Labels: pool names and closed lists.

use crate::machine::ids::PoolName;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use std::collections::BTreeMap;
use std::time::Duration;

const BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 20.0,
];

/// What became of a DNS question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Answered with what the upstream said.
    Answered,
    /// The policy does not name it, or all its addresses are closed.
    Refused,
    /// More than the sandbox may ask.
    Limited,
    /// No upstream answered in time.
    Failed,
    /// Not a question, or not from a sandbox.
    Malformed,
}

impl Asked {
    const ALL: [Self; 5] = [
        Self::Answered,
        Self::Refused,
        Self::Limited,
        Self::Failed,
        Self::Malformed,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Limited => "limited",
            Self::Failed => "failed",
            Self::Malformed => "malformed",
        }
    }
}

/// The metrics of `net`. Clones are the same.
#[derive(Debug, Clone)]
pub struct NetMetrics {
    furnish: Histogram,
    apply: Histogram,
    failures: IntCounterVec,
    spares: IntGauge,
    denied: IntCounterVec,
    questions: IntCounterVec,
    repairs: IntCounter,
}

impl NetMetrics {
    /// Makes and registers them.
    ///
    /// # Errors
    /// A name is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let histogram = |name: &str, help: &str| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()))
        };
        let counters = |name: &str, help: &str, label: &str| {
            IntCounterVec::new(Opts::new(name, help), &[label])
        };
        let metrics = Self {
            furnish: histogram(
                "hearth_network_furnish_duration_seconds",
                "Giving a sandbox its interface, or putting it back",
            )?,
            apply: histogram(
                "hearth_network_apply_duration_seconds",
                "Replacing the policy of a sandbox",
            )?,
            failures: counters(
                "hearth_network_failures_total",
                "Interfaces and policies that could not be had",
                "call",
            )?,
            spares: IntGauge::new(
                "hearth_network_spares",
                "Namespaces with an interface, made ahead of need",
            )?,
            denied: counters(
                "hearth_network_denied_packets_total",
                "Packets of sandboxes that the policy dropped",
                "pool",
            )?,
            questions: counters(
                "hearth_network_questions_total",
                "DNS questions of sandboxes",
                "outcome",
            )?,
            repairs: IntCounter::new(
                "hearth_network_repairs_total",
                "Times the rules were made anew because somebody else had changed them",
            )?,
        };
        registry.register(Box::new(metrics.furnish.clone()))?;
        registry.register(Box::new(metrics.apply.clone()))?;
        registry.register(Box::new(metrics.failures.clone()))?;
        registry.register(Box::new(metrics.spares.clone()))?;
        registry.register(Box::new(metrics.denied.clone()))?;
        registry.register(Box::new(metrics.questions.clone()))?;
        registry.register(Box::new(metrics.repairs.clone()))?;
        for call in ["furnish", "apply"] {
            metrics.failures.with_label_values(&[call]);
        }
        for outcome in Asked::ALL {
            metrics.questions.with_label_values(&[outcome.label()]);
        }
        Ok(metrics)
    }

    pub(super) fn furnished(&self, took: Duration, done: bool) {
        Self::timed(&self.furnish, took, done);
        if !done {
            self.failures.with_label_values(&["furnish"]).inc();
        }
    }

    pub(super) fn applied(&self, took: Duration, done: bool) {
        Self::timed(&self.apply, took, done);
        if !done {
            self.failures.with_label_values(&["apply"]).inc();
        }
    }

    fn timed(histogram: &Histogram, took: Duration, done: bool) {
        if done {
            histogram.observe(took.as_secs_f64());
        }
    }

    pub(super) fn spares(&self, spares: usize) {
        self.spares.set(i64::try_from(spares).unwrap_or(i64::MAX));
    }

    pub(super) fn asked(&self, outcome: Asked) {
        self.questions.with_label_values(&[outcome.label()]).inc();
    }

    pub(super) fn repaired(&self) {
        self.repairs.inc();
    }

    /// Totals as the network has them; one that fell (it never should) is left as it was.
    pub(super) fn denied(&self, totals: &BTreeMap<PoolName, u64>) {
        for (pool, total) in totals {
            let counter = self.denied.with_label_values(&[pool.as_str()]);
            counter.inc_by(total.saturating_sub(counter.get()));
        }
    }
}
