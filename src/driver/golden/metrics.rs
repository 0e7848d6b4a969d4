//! What golden images count.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry};

/// See the names.
pub(super) struct GoldenMetrics {
    pub(super) clones: Histogram,
    pub(super) failures: IntCounter,
    pub(super) images: IntGauge,
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
        registry.register(Box::new(clones.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        registry.register(Box::new(images.clone()))?;
        Ok(Self {
            clones,
            failures,
            images,
        })
    }
}
