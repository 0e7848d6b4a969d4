//! Metrics of asking.

use crate::machine::spec::Verdict;
use prometheus::{IntCounterVec, Opts, Registry};

/// How often the cluster was asked, and what it said.
#[derive(Clone)]
pub struct Metrics {
    asked: IntCounterVec,
}

impl Metrics {
    /// Registers it.
    ///
    /// # Errors
    /// The name is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let asked = IntCounterVec::new(
            Opts::new(
                "hearth_admission_reviews_total",
                "Templates that the cluster was asked about in a dry run",
            ),
            &["result"],
        )?;
        registry.register(Box::new(asked.clone()))?;
        for result in ["allowed", "denied", "failed"] {
            asked.with_label_values(&[result]);
        }
        Ok(Self { asked })
    }

    pub(super) fn count(&self, verdict: &Result<Verdict, String>) {
        let result = match verdict {
            Ok(Verdict::Allowed) => "allowed",
            Ok(Verdict::Denied { .. }) => "denied",
            Err(_) => "failed",
        };
        self.asked.with_label_values(&[result]).inc();
    }
}
