//! What operators see of hearthd's calls to the API server.

use super::client::CallError;
use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

/// Registered where `kubernetes.enabled`. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    calls: IntCounterVec,
    followed: IntGaugeVec,
    pub(super) events_dropped: IntCounter,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// A name is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let calls = IntCounterVec::new(
            Opts::new(
                "hearth_kubernetes_calls_total",
                "Calls to the Kubernetes API that have ended",
            ),
            &["call", "result"],
        )?;
        let followed = IntGaugeVec::new(
            Opts::new(
                "hearth_kubernetes_followed",
                "1 while objects of a kind are followed, 0 while the API server is away",
            ),
            &["kind"],
        )?;
        let events_dropped = IntCounter::new(
            "hearth_kubernetes_events_dropped_total",
            "Kubernetes Events that were not sent, because there were too many or the API server was away",
        )?;
        registry.register(Box::new(calls.clone()))?;
        registry.register(Box::new(followed.clone()))?;
        registry.register(Box::new(events_dropped.clone()))?;
        Ok(Self {
            calls,
            followed,
            events_dropped,
        })
    }

    pub(super) fn called(&self, call: &str, error: Option<&CallError>) {
        let result = match error {
            None => "ok",
            Some(CallError::Unavailable { .. }) => "unavailable",
            Some(CallError::Refused { .. }) => "refused",
        };
        self.calls.with_label_values(&[call, result]).inc();
    }

    pub(super) fn follows(&self, kind: &str, well: bool) {
        self.followed.with_label_values(&[kind]).set(well.into());
    }
}
