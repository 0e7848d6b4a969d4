//! What policies say of the templates of pools, and what their sandboxes were promised.

use crate::machine::admission::{Check, Finding};
use crate::machine::spec::Verdict;
use crate::machine::view::PoolView;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry};

/// Made once a registry. Labels: pools, and closed lists.
pub(super) struct Policies {
    held: IntGaugeVec,
    denied: IntGaugeVec,
    findings: IntCounterVec,
    promised: IntGaugeVec,
    promised_cpu: GaugeVec,
}

impl Policies {
    /// Registers everything.
    ///
    /// # Errors
    /// A name is registered already.
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauges = |name: &str, help: &str| {
            let vec = IntGaugeVec::new(Opts::new(name, help), &["pool"])?;
            registry.register(Box::new(vec.clone()))?;
            Ok::<_, prometheus::Error>(vec)
        };
        let findings = IntCounterVec::new(
            Opts::new(
                "hearth_policy_findings_total",
                "Templates that were declared and do not pass a check",
            ),
            &["check", "mode"],
        )?;
        registry.register(Box::new(findings.clone()))?;
        for check in Check::ALL {
            for mode in ["audit", "enforce"] {
                findings.with_label_values(&[check.name(), mode]);
            }
        }
        let promised_cpu = GaugeVec::new(
            Opts::new(
                "hearth_pool_promised_cpu_cores",
                "CPU that template and RuntimeClass count for a pool's sandboxes, all together",
            ),
            &["pool"],
        )?;
        registry.register(Box::new(promised_cpu.clone()))?;
        Ok(Self {
            held: gauges(
                "hearth_pool_held",
                "1 while no policy lets a pool have a further sandbox",
            )?,
            denied: gauges(
                "hearth_pool_denied",
                "1 while the cluster's admission denies a pool's template",
            )?,
            findings,
            promised: gauges(
                "hearth_pool_promised_memory_bytes",
                "Memory that template and RuntimeClass count for a pool's sandboxes, all together",
            )?,
            promised_cpu,
        })
    }

    /// A pool as it stands.
    pub(super) fn pool(&self, view: &PoolView) {
        let pool = [view.spec.name.as_str()];
        let held = !view.held.is_empty();
        self.held.with_label_values(&pool).set(held.into());
        let denied = matches!(view.verdict, Some(Verdict::Denied { .. }));
        self.denied.with_label_values(&pool).set(denied.into());
        let promised = view.promised();
        let memory = i64::try_from(promised.memory_bytes).unwrap_or(i64::MAX);
        self.promised.with_label_values(&pool).set(memory);
        let cores = promised.cpu_millis as f64 / 1000.0;
        self.promised_cpu.with_label_values(&pool).set(cores);
    }

    /// A pool is gone.
    pub(super) fn gone(&self, pool: &str) {
        for vec in [&self.held, &self.denied, &self.promised] {
            let _absent = vec.remove_label_values(&[pool]);
        }
        let _absent = self.promised_cpu.remove_label_values(&[pool]);
    }

    /// A template that was declared does not pass a check.
    pub(super) fn found(&self, finding: &Finding) {
        let mode = if finding.enforced { "enforce" } else { "audit" };
        let labels = [finding.check.name(), mode];
        self.findings.with_label_values(&labels).inc();
    }
}
