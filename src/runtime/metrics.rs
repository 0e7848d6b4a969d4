//! What the runtime room counts. Registered once, on hearthd's registry; shared by the adapter and the managed
//! containerd.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
};

/// From a metadata read (0.3 ms) to the deadline of a destruction (tens of seconds).
const CALL_BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// Reasons of `hearth_runtime_exits_total`.
const EXITED: &str = "exited";
const OUT_OF_MEMORY: &str = "oom";

/// The metrics of `runtime`.
#[derive(Debug, Clone)]
pub struct RuntimeMetrics {
    /// `hearth_containerd_call_duration_seconds{call}`.
    pub(super) calls: HistogramVec,
    /// `hearth_containerd_call_failures_total{call,reason}`.
    pub(super) call_failures: IntCounterVec,
    /// `hearth_containerd_restarts_total`.
    pub(super) restarts: IntCounter,
    /// `hearth_runtime_exits_total{reason}`.
    exits: IntCounterVec,
    /// `hearth_shims_killed_total`.
    pub(super) shims_killed: IntCounter,
    /// `hearth_sandbox_create_stage_seconds{stage}`.
    create_stages: HistogramVec,
}

/// A part of a creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Image resolved (from memory as a rule), container record written.
    Container,
    /// The writable layer.
    Snapshot,
    /// Shim, sentry and gofer started.
    Task,
    /// hearth-init started.
    Start,
}

impl Stage {
    fn label(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Snapshot => "snapshot",
            Self::Task => "task",
            Self::Start => "start",
        }
    }
}

impl RuntimeMetrics {
    /// Makes and registers them.
    ///
    /// # Errors
    /// `prometheus::Error` when a name is registered already: two runtimes on one registry.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let histogram = |name: &str, help: &str, label: &str| {
            let opts = HistogramOpts::new(name, help).buckets(CALL_BUCKETS.to_vec());
            HistogramVec::new(opts, &[label])
        };
        let metrics = Self {
            calls: histogram(
                "hearth_containerd_call_duration_seconds",
                "Calls to containerd, failed ones included.",
                "call",
            )?,
            call_failures: IntCounterVec::new(
                Opts::new(
                    "hearth_containerd_call_failures_total",
                    "Calls to containerd that failed.",
                ),
                &["call", "reason"],
            )?,
            restarts: IntCounter::new(
                "hearth_containerd_restarts_total",
                "Restarts of the managed containerd after it died or hung.",
            )?,
            exits: IntCounterVec::new(
                Opts::new(
                    "hearth_runtime_exits_total",
                    "Sandboxes that ended by themselves.",
                ),
                &["reason"],
            )?,
            shims_killed: IntCounter::new(
                "hearth_shims_killed_total",
                "Wedged shims that were killed so that their sandbox could be removed.",
            )?,
            create_stages: histogram(
                "hearth_sandbox_create_stage_seconds",
                "Parts of successful creations.",
                "stage",
            )?,
        };
        registry.register(Box::new(metrics.calls.clone()))?;
        registry.register(Box::new(metrics.call_failures.clone()))?;
        registry.register(Box::new(metrics.restarts.clone()))?;
        registry.register(Box::new(metrics.exits.clone()))?;
        registry.register(Box::new(metrics.shims_killed.clone()))?;
        registry.register(Box::new(metrics.create_stages.clone()))?;
        // A counter that appears with its first event hides that event from rate().
        for reason in [EXITED, OUT_OF_MEMORY] {
            metrics.exits.with_label_values(&[reason]);
        }
        Ok(metrics)
    }

    /// The histogram of one stage of creations.
    pub(super) fn stage(&self, stage: Stage) -> Histogram {
        self.create_stages.with_label_values(&[stage.label()])
    }

    /// A sandbox ended by itself.
    pub(super) fn exited(&self, out_of_memory: bool) {
        let reason = if out_of_memory { OUT_OF_MEMORY } else { EXITED };
        self.exits.with_label_values(&[reason]).inc();
    }
}
