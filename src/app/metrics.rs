//! What the composition root counts itself: the build, hearthd's own process, and the memory of sandboxes as their cgroups
//! and the zram device have it, read for a scrape unless they just were.

use super::{AppError, swap};
use crate::cgroup::CgroupTree;
use crate::config::Config;
use crate::driver::NodeMemory;
use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, Opts, Registry};
use std::sync::{Arc, Mutex, PoisonError};

/// Registers all of it. What it reads of the memory is what callers are told.
///
/// # Errors
/// A name is registered already, or there is no cgroup hierarchy.
pub(super) fn register(registry: &Registry, config: &Config) -> Result<Arc<NodeMemory>, AppError> {
    let info = IntGaugeVec::new(
        Opts::new("hearth_build_info", "1, labelled with hearthd's version"),
        &["version"],
    )?;
    info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    registry.register(Box::new(info))?;
    // Start time, memory, files and threads under the names that every Prometheus knows.
    registry.register(Box::new(ProcessCollector::for_self()))?;
    let note = swap::note(config);
    let memory = Arc::new(NodeMemory::new(
        CgroupTree::detect("/sys/fs/cgroup")?,
        config.runtime.cgroup_parent.clone(),
        Box::new(move || swap::zram(&note)),
    ));
    registry.register(Box::new(SandboxMemory::new(Arc::clone(&memory))?))?;
    Ok(memory)
}

/// Shows what sandboxes take of the memory.
struct SandboxMemory {
    memory: Arc<NodeMemory>,
    pools: IntGaugeVec,
    zram: IntGaugeVec,
    /// One scrape at a time.
    turn: Mutex<()>,
}

impl SandboxMemory {
    fn new(memory: Arc<NodeMemory>) -> Result<Self, AppError> {
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            IntGaugeVec::new(Opts::new(name, help), labels)
        };
        Ok(Self {
            memory,
            pools: gauges(
                "hearth_pool_memory_bytes",
                "Memory charged to the sandboxes of a pool: in RAM, and in swap before compression",
                &["pool", "tier", "kind"],
            )?,
            zram: gauges(
                "hearth_zram_bytes",
                "hearth's zram device: what it holds, before compression, and the RAM that takes",
                &["kind"],
            )?,
            turn: Mutex::new(()),
        })
    }
}

impl Collector for SandboxMemory {
    fn desc(&self) -> Vec<&Desc> {
        [self.pools.desc(), self.zram.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // Pools come and go.
        self.pools.reset();
        let set = |gauges: &IntGaugeVec, labels: &[&str], bytes: u64| {
            let gauge = gauges.with_label_values(labels);
            gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        };
        let look = self.memory.look().unwrap_or_else(|error| {
            tracing::warn!(%error, "the memory of sandboxes could not be read");
            Arc::default()
        });
        for ((pool, tier), charge) in &look.charged {
            set(&self.pools, &[pool, tier, "ram"], charge.memory_bytes);
            set(&self.pools, &[pool, tier, "swap"], charge.swap_bytes);
        }
        let zram = look.zram.unwrap_or_default();
        set(&self.zram, &["stored"], zram.stored_bytes);
        set(&self.zram, &["compressed"], zram.taken_bytes);
        [self.pools.collect(), self.zram.collect()].concat()
    }
}
