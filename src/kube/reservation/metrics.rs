//! Metrics of reservations.

use super::plan::Why;
use crate::machine::view::Promised;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry};

/// What is reserved for each pool, and what went wrong. Registered where reservations are made.
#[derive(Clone)]
pub struct Metrics {
    memory: IntGaugeVec,
    cpu: GaugeVec,
    failures: IntCounterVec,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// A name is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let memory = IntGaugeVec::new(
            Opts::new(
                "hearth_pool_reserved_memory_bytes",
                "Memory of a pool's reservation: wanted, and granted by the cluster",
            ),
            &["pool", "state"],
        )?;
        let cpu = GaugeVec::new(
            Opts::new(
                "hearth_pool_reserved_cpu_cores",
                "CPU of a pool's reservation: wanted, and granted by the cluster",
            ),
            &["pool", "state"],
        )?;
        let failures = IntCounterVec::new(
            Opts::new(
                "hearth_reservation_failures_total",
                "Reservations, or resizes of them, that were not granted or were lost",
            ),
            &["reason"],
        )?;
        registry.register(Box::new(memory.clone()))?;
        registry.register(Box::new(cpu.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        for why in Why::ALL {
            failures.with_label_values(&[why.name()]);
        }
        Ok(Self {
            memory,
            cpu,
            failures,
        })
    }

    pub(super) fn failed(&self, why: Why) {
        self.failures.with_label_values(&[why.name()]).inc();
    }

    /// One pool's reservation as it is. `wanted`: `None`, not known yet.
    pub(super) fn pool(&self, pool: &str, wanted: Option<Promised>, granted: Promised) {
        let states = [("wanted", wanted), ("granted", Some(granted))];
        for (state, amounts) in states {
            let Some(amounts) = amounts else {
                continue;
            };
            let memory = i64::try_from(amounts.memory_bytes).unwrap_or(i64::MAX);
            let cores = amounts.cpu_millis as f64 / 1000.0;
            self.memory.with_label_values(&[pool, state]).set(memory);
            self.cpu.with_label_values(&[pool, state]).set(cores);
        }
    }

    /// A pool is gone, and its reservation.
    pub(super) fn gone(&self, pool: &str) {
        for state in ["wanted", "granted"] {
            let _absent = self.memory.remove_label_values(&[pool, state]);
            let _absent = self.cpu.remove_label_values(&[pool, state]);
        }
    }
}
