//! What the composition root counts itself: the build, hearthd's own process, and the memory of sandboxes as their cgroups
//! and the zram device have it, read at each scrape.

use super::{AppError, swap};
use crate::cgroup::{CgroupError, CgroupTree};
use crate::config::Config;
use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricFamily;
use prometheus::{IntGaugeVec, Opts, Registry};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Registers all of it.
///
/// # Errors
/// A name is registered already, or there is no cgroup hierarchy.
pub(super) fn register(registry: &Registry, config: &Config) -> Result<(), AppError> {
    let info = IntGaugeVec::new(
        Opts::new("hearth_build_info", "1, labelled with hearthd's version"),
        &["version"],
    )?;
    info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    registry.register(Box::new(info))?;
    // Start time, memory, files and threads under the names that every Prometheus knows.
    registry.register(Box::new(ProcessCollector::for_self()))?;
    registry.register(Box::new(SandboxMemory::new(config)?))?;
    Ok(())
}

/// Looks at every sandbox's cgroup when it is collected: some file reads each.
struct SandboxMemory {
    tree: CgroupTree,
    parent: String,
    /// The note of our zram device.
    note: PathBuf,
    pools: IntGaugeVec,
    zram: IntGaugeVec,
    /// One scrape at a time.
    turn: Mutex<()>,
}

/// Bytes by pool, tier and kind.
type Charged = BTreeMap<(String, &'static str, &'static str), u64>;

impl SandboxMemory {
    fn new(config: &Config) -> Result<Self, AppError> {
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            IntGaugeVec::new(Opts::new(name, help), labels)
        };
        Ok(Self {
            tree: CgroupTree::detect("/sys/fs/cgroup")?,
            parent: config.runtime.cgroup_parent.clone(),
            note: swap::note(config),
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

    /// A sandbox that goes meanwhile has no memory.
    fn look(&self) -> Result<Charged, CgroupError> {
        let mut charged = Charged::new();
        for found in self.tree.list(&self.parent)? {
            let group = self.tree.sandbox(&self.parent, &found.pool, &found.id)?;
            let (Ok(usage), Ok(frozen)) = (group.usage(), group.is_frozen()) else {
                continue;
            };
            let tier = if frozen { "frozen" } else { "running" };
            for (kind, bytes) in [("ram", usage.memory_bytes), ("swap", usage.swap_bytes)] {
                let sum = charged.entry((found.pool.clone(), tier, kind)).or_default();
                *sum = sum.saturating_add(bytes);
            }
        }
        Ok(charged)
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
        match self.look() {
            Ok(charged) => {
                for ((pool, tier, kind), bytes) in charged {
                    let gauge = self.pools.with_label_values(&[pool.as_str(), tier, kind]);
                    gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
                }
            }
            Err(error) => tracing::warn!(%error, "the memory of sandboxes could not be read"),
        }
        let (stored, taken) = swap::zram_bytes(&self.note).unwrap_or_default();
        for (kind, bytes) in [("stored", stored), ("compressed", taken)] {
            let gauge = self.zram.with_label_values(&[kind]);
            gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        [self.pools.collect(), self.zram.collect()].concat()
    }
}
