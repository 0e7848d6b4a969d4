//! What the memory and the disk tier count.

use crate::runtime::Reclaimed;
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};
use std::time::Duration;

/// What freezes, thaws and reclaims count.
pub(in crate::driver) struct ResidencyMetrics {
    stages: HistogramVec,
    failures: IntCounterVec,
    reclaimed: IntCounter,
}

impl ResidencyMetrics {
    /// Registers everything.
    ///
    /// # Errors
    /// A name is registered already.
    pub(in crate::driver) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let stages = HistogramOpts::new(
            "hearth_residency_stage_duration_seconds",
            "How long freezes, thaws, reclaims, checkpoints, sheds and restores took",
        );
        let stages = stages.buckets(vec![
            0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
        ]);
        let it = Self {
            stages: HistogramVec::new(stages, &["stage"])?,
            failures: IntCounterVec::new(
                Opts::new(
                    "hearth_residency_failures_total",
                    "Freezes, thaws, reclaims, checkpoints, sheds and restores that failed",
                ),
                &["stage"],
            )?,
            reclaimed: IntCounter::new(
                "hearth_reclaimed_bytes_total",
                "Memory of frozen sandboxes that left RAM",
            )?,
        };
        registry.register(Box::new(it.stages.clone()))?;
        registry.register(Box::new(it.failures.clone()))?;
        registry.register(Box::new(it.reclaimed.clone()))?;
        Ok(it)
    }

    pub(in crate::driver) fn took(&self, stage: &str, took: Duration) {
        let histogram = self.stages.with_label_values(&[stage]);
        histogram.observe(took.as_secs_f64());
    }

    pub(in crate::driver) fn failed(&self, stage: &str) {
        self.failures.with_label_values(&[stage]).inc();
    }

    pub(in crate::driver) fn reclaimed(&self, done: &Reclaimed) {
        self.reclaimed.inc_by(done.bytes);
    }
}
