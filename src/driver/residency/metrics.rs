//! What the memory and the disk tier count.

use crate::guest::GuestError;
use crate::machine::event::{CheckpointFailure, RestoreFailure};
use crate::runtime::{Reclaimed, RuntimeError};
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};
use std::time::Duration;
use tokio::time::Instant;

/// Why something failed, in one of a few words.
pub(in crate::driver) trait Reason {
    fn reason(&self) -> &'static str;
}

impl Reason for RuntimeError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::DeadlineExceeded { .. } => "deadline",
            Self::ImageMissing(_) => "image_missing",
            Self::Refused { .. } => "refused",
        }
    }
}

impl Reason for GuestError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Silent(_) => "silent",
            Self::Protocol(_) => "protocol",
            Self::Closed => "closed",
            Self::Limit => "limit",
            Self::Failed { .. } => "refused",
        }
    }
}

impl Reason for CheckpointFailure {
    fn reason(&self) -> &'static str {
        match self {
            Self::NoRoom(_) => "no_room",
            Self::Mismatch(_) => "mismatch",
            Self::Failed(_) => "failed",
        }
    }
}

impl Reason for RestoreFailure {
    fn reason(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Mismatch(_) => "mismatch",
            Self::Lost(_) => "lost",
        }
    }
}

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
            "How long freezes, thaws, first replies, reclaims, checkpoints, sheds and restores took",
        );
        let stages = stages.buckets(vec![
            0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
        ]);
        let it = Self {
            stages: HistogramVec::new(stages, &["stage"])?,
            failures: IntCounterVec::new(
                Opts::new(
                    "hearth_residency_failures_total",
                    "Freezes, thaws, first replies, reclaims, checkpoints, sheds and restores that failed, and why",
                ),
                &["stage", "reason"],
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

    pub(in crate::driver) fn failed(&self, stage: &str, why: &impl Reason) {
        let counter = self.failures.with_label_values(&[stage, why.reason()]);
        counter.inc();
    }

    /// The first word of a guest that was woken, asked for at `began`.
    pub(in crate::driver) fn first_reply<T>(&self, began: Instant, reply: &Result<T, GuestError>) {
        match reply {
            Ok(_) => self.took("first_reply", began.elapsed()),
            Err(error) => self.failed("first_reply", error),
        }
    }

    pub(in crate::driver) fn reclaimed(&self, done: &Reclaimed) {
        self.reclaimed.inc_by(done.bytes);
    }
}
