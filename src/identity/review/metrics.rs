//! What is counted of reviews. Labels are words of this room.

use super::token::Unfit;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry};
use std::time::Duration;

/// From 1 ms to the longest deadline.
const SECONDS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 60.0,
];

/// Registered where tokens are taken. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    reviews: IntCounterVec,
    duration: HistogramVec,
    lookups: IntCounterVec,
    kept: IntGaugeVec,
    unfit: IntCounterVec,
}

impl Metrics {
    /// Registers them. Called once by `app`.
    ///
    /// # Errors
    /// One of the names is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            reviews: IntCounterVec::new(
                Opts::new(
                    "hearth_token_reviews_total",
                    "Reviews by the Kubernetes API that have ended: of tokens, and of what their owners may do.",
                ),
                &["review", "result"],
            )?,
            duration: HistogramVec::new(
                HistogramOpts::new(
                    "hearth_token_review_duration_seconds",
                    "How long a review took, up to its deadline.",
                )
                .buckets(SECONDS.to_vec()),
                &["review"],
            )?,
            lookups: IntCounterVec::new(
                Opts::new(
                    "hearth_token_lookups_total",
                    "Questions about tokens and rights, by what answered them.",
                ),
                &["review", "by"],
            )?,
            kept: IntGaugeVec::new(
                Opts::new(
                    "hearth_token_answers_kept",
                    "Answers about tokens and rights that are kept.",
                ),
                &["review", "kind"],
            )?,
            unfit: IntCounterVec::new(
                Opts::new(
                    "hearth_token_unfit_total",
                    "Tokens that were refused by their form, without a review.",
                ),
                &["why"],
            )?,
        };
        registry.register(Box::new(metrics.reviews.clone()))?;
        registry.register(Box::new(metrics.duration.clone()))?;
        registry.register(Box::new(metrics.lookups.clone()))?;
        registry.register(Box::new(metrics.kept.clone()))?;
        registry.register(Box::new(metrics.unfit.clone()))?;
        for review in ["token", "access"] {
            for result in ["good", "refused", "away"] {
                metrics.reviews.with_label_values(&[review, result]);
            }
            for by in ["memory", "review", "joined", "budget"] {
                metrics.lookups.with_label_values(&[review, by]);
            }
            metrics.kept(review, (0, 0));
        }
        for why in Unfit::ALL {
            metrics.unfit.with_label_values(&[why.word()]);
        }
        Ok(metrics)
    }

    pub(super) fn reviewed(&self, review: &str, result: &str, took: Duration) {
        self.reviews.with_label_values(&[review, result]).inc();
        self.duration
            .with_label_values(&[review])
            .observe(took.as_secs_f64());
    }

    pub(super) fn looked(&self, review: &str, by: &str) {
        self.lookups.with_label_values(&[review, by]).inc();
    }

    pub(super) fn kept(&self, review: &str, (good, bad): (usize, usize)) {
        for (kind, count) in [("good", good), ("bad", bad)] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.kept.with_label_values(&[review, kind]).set(count);
        }
    }

    pub(super) fn unfit(&self, why: Unfit) {
        self.unfit.with_label_values(&[why.word()]).inc();
    }
}
