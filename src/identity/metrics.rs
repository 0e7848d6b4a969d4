//! What identity counts. Labels are words of this file.

use super::tls::Material;
use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, Opts, Registry};
use std::time::{SystemTime, UNIX_EPOCH};

/// Identity's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    expiry: GaugeVec,
    reloads: IntCounterVec,
    handshakes_failed: IntCounter,
    rate_limited: IntCounter,
    audit_lost: IntCounter,
    audit_bytes: Gauge,
}

impl Metrics {
    /// Registers them. Called once by `app`.
    ///
    /// # Errors
    /// One of the names is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            expiry: GaugeVec::new(
                Opts::new(
                    "hearth_tls_certificate_expiry_timestamp_seconds",
                    "When the certificate in use expires: hearthd's own, and the first of the clients' CAs.",
                ),
                &["of"],
            )?,
            reloads: IntCounterVec::new(
                Opts::new(
                    "hearth_tls_reloads_total",
                    "Changed TLS files that were taken into use, or refused.",
                ),
                &["result"],
            )?,
            handshakes_failed: IntCounter::new(
                "hearth_tls_handshakes_failed_total",
                "Connections that did not get through their TLS handshake.",
            )?,
            rate_limited: IntCounter::new(
                "hearth_rpc_rate_limited_total",
                "Calls refused because their caller made too many.",
            )?,
            audit_lost: IntCounter::new(
                "hearth_audit_lost_total",
                "Lines of the audit log that could not be written.",
            )?,
            audit_bytes: Gauge::new("hearth_audit_file_bytes", "Size of the audit log's file.")?,
        };
        registry.register(Box::new(metrics.expiry.clone()))?;
        registry.register(Box::new(metrics.reloads.clone()))?;
        registry.register(Box::new(metrics.handshakes_failed.clone()))?;
        registry.register(Box::new(metrics.rate_limited.clone()))?;
        registry.register(Box::new(metrics.audit_lost.clone()))?;
        registry.register(Box::new(metrics.audit_bytes.clone()))?;
        for result in ["taken", "refused"] {
            metrics.reloads.with_label_values(&[result]);
        }
        Ok(metrics)
    }

    /// These certificates are in use.
    pub(super) fn certificates(&self, material: &Material) {
        for (of, at) in [
            ("server", material.expires),
            ("client_ca", material.client_ca_expires),
        ] {
            self.expiry.with_label_values(&[of]).set(unix_seconds(at));
        }
    }

    /// Changed files were judged.
    pub(super) fn reloaded(&self, taken: bool) {
        let result = if taken { "taken" } else { "refused" };
        self.reloads.with_label_values(&[result]).inc();
    }

    /// A handshake failed.
    pub fn handshake_failed(&self) {
        self.handshakes_failed.inc();
    }

    /// A call was refused by the limit of its caller.
    pub fn rate_limited(&self) {
        self.rate_limited.inc();
    }

    /// So many lines of the audit log are lost.
    pub(super) fn audit_lost(&self, lines: u64) {
        self.audit_lost.inc_by(lines);
    }

    /// The audit log's file has this size.
    pub(super) fn audit_bytes(&self, bytes: u64) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.audit_bytes.set(f64::from(bytes));
    }
}

fn unix_seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
