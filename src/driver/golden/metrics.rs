//! What golden images count.

use super::book::Miss;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// See the names.
pub(super) struct GoldenMetrics {
    pub(super) clones: Histogram,
    pub(super) failures: IntCounter,
    pub(super) images: IntGauge,
    misses: IntCounterVec,
}

impl GoldenMetrics {
    /// Registers everything.
    ///
    /// # Errors
    /// A name is registered already.
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let clones = HistogramOpts::new(
            "hearth_clone_duration_seconds",
            "Members cloned from a golden image, until they were proved ready",
        );
        let clones = Histogram::with_opts(clones.buckets(vec![
            0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0,
        ]))?;
        let failures = IntCounter::new(
            "hearth_clone_failures_total",
            "Clones of golden images that failed; each was made anew",
        )?;
        let images = IntGauge::new("hearth_golden_images", "Golden images there are")?;
        let misses = IntCounterVec::new(
            Opts::new(
                "hearth_golden_misses_total",
                "Sandboxes that were made anew although golden images are on",
            ),
            &["reason"],
        )?;
        for miss in Miss::ALL {
            misses.with_label_values(&[miss.name()]);
        }
        registry.register(Box::new(clones.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        registry.register(Box::new(images.clone()))?;
        registry.register(Box::new(misses.clone()))?;
        Ok(Self {
            clones,
            failures,
            images,
            misses,
        })
    }

    /// One was made anew.
    pub(super) fn missed(&self, why: Miss) {
        self.misses.with_label_values(&[why.name()]).inc();
    }
}
