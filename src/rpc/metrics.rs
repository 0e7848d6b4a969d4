//! What the API counts. Labels are bounded: methods and codes by their tables, pools by the pools that were ever set,
//! at most [`POOL_LABELS`] of them.

use super::places::Kind;
use crate::driver::Timings;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tonic::Code;

/// Pools that get a label of their own, over the life of the process.
const POOL_LABELS: usize = 4 * crate::machine::limits::POOLS;
/// The label of every other pool.
const UNKNOWN: &str = "unknown";

/// Claims take from a fraction of a millisecond (warm) to minutes (waiting): 100 µs to 105 s, doubling.
fn claim_buckets() -> Vec<f64> {
    (0..21)
        .map(|power| 0.0001 * f64::from(1 << power))
        .collect()
}

/// Calls: 100 µs to 30 min, in steps of about three.
fn call_buckets() -> Vec<f64> {
    vec![
        0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0,
        1800.0,
    ]
}

/// The API's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    requests: IntCounterVec,
    duration: HistogramVec,
    claims: IntCounterVec,
    claim_duration: HistogramVec,
    code_runs: HistogramVec,
    interpreters_lost: prometheus::IntCounter,
    streams_open: IntGaugeVec,
    connections: IntGauge,
    connections_refused: prometheus::IntCounter,
    pools: Arc<Mutex<BTreeSet<String>>>,
}

impl Metrics {
    /// Registers them. Called once by `app`.
    ///
    /// # Errors
    /// One of the names is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new(
                    "hearth_rpc_requests_total",
                    "Calls that have ended, by method and gRPC code.",
                ),
                &["method", "code"],
            )?,
            duration: HistogramVec::new(
                HistogramOpts::new(
                    "hearth_rpc_duration_seconds",
                    "From a call's headers to the end of its answer.",
                )
                .buckets(call_buckets()),
                &["method"],
            )?,
            claims: IntCounterVec::new(
                Opts::new(
                    "hearth_claims_total",
                    "Claims answered, members of batches one by one.",
                ),
                &["pool", "source", "code"],
            )?,
            claim_duration: HistogramVec::new(
                HistogramOpts::new(
                    "hearth_claim_duration_seconds",
                    "Stages of claims that were granted.",
                )
                .buckets(claim_buckets()),
                &["stage"],
            )?,
            code_runs: HistogramVec::new(
                HistogramOpts::new(
                    "hearth_code_run_seconds",
                    "From the begin of code to its end, by how it ended; cut: its caller or the channel went first.",
                )
                .buckets(call_buckets()),
                &["status"],
            )?,
            interpreters_lost: prometheus::IntCounter::new(
                "hearth_code_interpreters_lost_total",
                "Interpreters that ended, or had to be ended, under code: the state of a context was lost.",
            )?,
            streams_open: IntGaugeVec::new(
                Opts::new("hearth_streams_open", "Streams open now, by kind."),
                &["kind"],
            )?,
            connections: IntGauge::new("hearth_rpc_connections", "Connections open now.")?,
            connections_refused: prometheus::IntCounter::new(
                "hearth_rpc_connections_refused_total",
                "Connections closed at once because there were too many.",
            )?,
            pools: Arc::default(),
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.duration.clone()))?;
        registry.register(Box::new(metrics.claims.clone()))?;
        registry.register(Box::new(metrics.claim_duration.clone()))?;
        registry.register(Box::new(metrics.code_runs.clone()))?;
        registry.register(Box::new(metrics.interpreters_lost.clone()))?;
        registry.register(Box::new(metrics.streams_open.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.connections_refused.clone()))?;
        // Shown from the start, not only once there was one.
        Kind::ALL
            .iter()
            .for_each(|kind| metrics.streams_open(*kind).set(0));
        Ok(metrics)
    }

    /// A call has ended.
    pub fn call_ended(&self, method: &str, code: Code, took: Duration) {
        self.requests
            .with_label_values(&[method, code_name(code)])
            .inc();
        self.duration
            .with_label_values(&[method])
            .observe(took.as_secs_f64());
    }

    /// A claim was answered. `source` is empty when it was refused.
    pub fn claim_answered(&self, pool: &str, source: &str, code: Code) {
        let known = self
            .pools
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(pool);
        let pool = if known { pool } else { UNKNOWN };
        self.claims
            .with_label_values(&[pool, source, code_name(code)])
            .inc();
    }

    /// Where the time of a granted claim went.
    pub fn claim_took(&self, timings: &Timings) {
        let stages = [
            ("queue", timings.queue),
            ("commit", timings.commit),
            ("guest", timings.guest),
            ("total", Some(timings.total)),
        ];
        for (stage, took) in stages {
            if let Some(took) = took {
                self.claim_duration
                    .with_label_values(&[stage])
                    .observe(took.as_secs_f64());
            }
        }
    }

    /// These pools exist: they may be labels.
    pub fn pools_known<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        let mut known = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        for name in names {
            if known.len() < POOL_LABELS && !known.contains(name) {
                known.insert(name.to_owned());
            }
        }
    }

    /// Code has ended, or its caller has gone. `status` is one of seven words.
    pub fn code_ran(&self, status: &'static str, took: Duration) {
        self.code_runs
            .with_label_values(&[status])
            .observe(took.as_secs_f64());
    }

    /// The state of a context was lost.
    pub fn interpreter_lost(&self) {
        self.interpreters_lost.inc();
    }

    /// The gauge of a kind of stream.
    #[must_use]
    pub fn streams_open(&self, kind: Kind) -> IntGauge {
        self.streams_open.with_label_values(&[kind.label()])
    }

    /// The gauge of connections.
    #[must_use]
    pub fn connections(&self) -> &IntGauge {
        &self.connections
    }

    /// A connection was closed at once.
    pub fn connection_refused(&self) {
        self.connections_refused.inc();
    }
}

/// The code as the protocol writes it.
#[must_use]
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(registry: &Registry) -> String {
        prometheus::TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap()
    }

    #[test]
    fn labels_of_pools_are_bounded() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        metrics.claim_answered("made-up", "", Code::NotFound);
        let names: Vec<_> = (0..POOL_LABELS * 2).map(|n| format!("p{n}")).collect();
        metrics.pools_known(names.iter().map(String::as_str));
        for name in &names {
            metrics.claim_answered(name, "warm", Code::Ok);
        }
        let text = text(&registry);
        assert!(
            text.contains(r#"hearth_claims_total{code="NOT_FOUND",pool="unknown",source=""} 1"#),
            "{text}"
        );
        assert!(text.contains(r#"hearth_claims_total{code="OK",pool="p0",source="warm"} 1"#));
        assert_eq!(
            text.matches("hearth_claims_total{").count(),
            POOL_LABELS + 2
        );
    }

    #[test]
    fn every_metric_moves() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        metrics.call_ended("Claims/Get", Code::Ok, Duration::from_millis(2));
        let took = Some(Duration::from_micros(150));
        metrics.claim_took(&Timings {
            queue: took,
            commit: took,
            guest: None,
            total: Duration::from_millis(1),
        });
        metrics.connection_refused();
        metrics.code_ran("ok", Duration::from_millis(2));
        metrics.interpreter_lost();
        let text = text(&registry);
        for line in [
            r#"hearth_rpc_requests_total{code="OK",method="Claims/Get"} 1"#,
            r#"hearth_rpc_duration_seconds_count{method="Claims/Get"} 1"#,
            r#"hearth_claim_duration_seconds_bucket{stage="queue",le="0.0001"} 0"#,
            r#"hearth_claim_duration_seconds_bucket{stage="queue",le="0.0002"} 1"#,
            r#"hearth_claim_duration_seconds_count{stage="total"} 1"#,
            r#"hearth_streams_open{kind="exec"} 0"#,
            "hearth_rpc_connections_refused_total 1",
            r#"hearth_code_run_seconds_count{status="ok"} 1"#,
            "hearth_code_interpreters_lost_total 1",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains(r#"stage="guest""#));
    }
}
