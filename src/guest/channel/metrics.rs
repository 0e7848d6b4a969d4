//! Figures of all guest channels together; no label names a sandbox.

use super::call::Kind;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, exponential_buckets,
};
use std::time::Duration;

/// What the channels count. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GuestMetrics {
    round_trip: HistogramVec,
    /// Guests that broke the protocol: sandboxes failed for it.
    pub(super) protocol_errors: IntCounter,
    /// Bytes thrown away: stale before an alignment, or of no record.
    pub(super) junk_bytes: IntCounter,
    /// Sessions begun (HELLOs answered).
    pub(super) sessions: IntCounter,
    /// Bytes of guests' logs kept.
    pub(super) log_kept: IntCounter,
    /// Bytes of guests' logs beyond the rate.
    pub(super) log_dropped: IntCounter,
}

impl GuestMetrics {
    /// Makes and registers them; called once, by `app`.
    ///
    /// # Errors
    /// A metric of that name is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        // 50 µs to 26 s: the best round trip measured is 110 µs, the longest start deadline 10 s.
        let buckets = exponential_buckets(50e-6, 2.0, 20)?;
        let round_trip = HistogramVec::new(
            HistogramOpts::new(
                "hearth_guest_round_trip_seconds",
                "From a call to the guest's first answer to it.",
            )
            .buckets(buckets),
            &["call"],
        )?;
        let protocol_errors = IntCounter::new(
            "hearth_guest_protocol_errors_total",
            "Guests that broke the protocol; each one's sandbox failed.",
        )?;
        let junk_bytes = IntCounter::new(
            "hearth_guest_junk_bytes_total",
            "Bytes of guests thrown away: stale ones before an alignment, and those of no record.",
        )?;
        let sessions = IntCounter::new(
            "hearth_guest_sessions_total",
            "Sessions begun: HELLOs that a guest answered.",
        )?;
        let log_bytes = IntCounterVec::new(
            Opts::new(
                "hearth_guest_log_bytes_total",
                "Bytes of guests' log lines, kept or dropped beyond the rate.",
            ),
            &["outcome"],
        )?;
        registry.register(Box::new(round_trip.clone()))?;
        registry.register(Box::new(protocol_errors.clone()))?;
        registry.register(Box::new(junk_bytes.clone()))?;
        registry.register(Box::new(sessions.clone()))?;
        registry.register(Box::new(log_bytes.clone()))?;
        Ok(Self {
            round_trip,
            protocol_errors,
            junk_bytes,
            sessions,
            log_kept: log_bytes.with_label_values(&["kept"]),
            log_dropped: log_bytes.with_label_values(&["dropped"]),
        })
    }

    /// A call was answered.
    pub(super) fn answered(&self, kind: Kind, took: Duration) {
        self.round_trip
            .with_label_values(&[kind.label()])
            .observe(took.as_secs_f64());
    }
}
