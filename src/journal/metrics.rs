//! What the journal counts.

use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, Registry};

/// The journal's metrics. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(super) commit_duration_seconds: Histogram,
    pub(super) batch_ops: Histogram,
    pub(super) commits: IntCounter,
    pub(super) disk_free_bytes: Gauge,
    pub(super) reserve_reached: IntGauge,
}

impl Metrics {
    /// Makes the metrics and registers them. Fails only when they are registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let commit_duration_seconds = Histogram::with_opts(
            HistogramOpts::new(
                "hearth_journal_commit_duration_seconds",
                "Time of one durable commit of the journal.",
            )
            // 0.1 ms to 1.6 s: a good disk commits in 0.2 ms.
            .buckets(prometheus::exponential_buckets(0.0001, 2.0, 15)?),
        )?;
        let batch_ops = Histogram::with_opts(
            HistogramOpts::new(
                "hearth_journal_batch_ops",
                "Operations in one commit of the journal.",
            )
            .buckets(prometheus::exponential_buckets(1.0, 2.0, 12)?),
        )?;
        let metrics = Self {
            commit_duration_seconds,
            batch_ops,
            commits: IntCounter::new(
                "hearth_journal_commits_total",
                "Durable commits of the journal.",
            )?,
            disk_free_bytes: Gauge::new(
                "hearth_journal_disk_free_bytes",
                "Free space of the data directory's file system, beside the reserve.",
            )?,
            reserve_reached: IntGauge::new(
                "hearth_journal_reserve_reached",
                "1: the disk reserve is reached, new claims are refused.",
            )?,
        };
        registry.register(Box::new(metrics.commit_duration_seconds.clone()))?;
        registry.register(Box::new(metrics.batch_ops.clone()))?;
        registry.register(Box::new(metrics.commits.clone()))?;
        registry.register(Box::new(metrics.disk_free_bytes.clone()))?;
        registry.register(Box::new(metrics.reserve_reached.clone()))?;
        Ok(metrics)
    }
}
