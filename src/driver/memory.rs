//! What sandboxes take of the node's memory, as their cgroups and hearth's zram device have it: for those who look at the
//! node. Never asked on a claim's way, and read no more often than it may cost.

use crate::cgroup::{CgroupError, CgroupTree};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tracing::warn;

/// A look is given for so long at least, however many ask.
const FRESH: Duration = Duration::from_secs(1);
/// And for so many times as long as it took: all looks together take at most a twentieth of a core.
const FRESH_FACTOR: u32 = 20;
/// But not for longer.
const STALE: Duration = Duration::from_secs(10);
/// Who asks waits so long at most.
const LOOK: Duration = Duration::from_secs(2);

/// Bytes charged to sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Charge {
    /// In RAM.
    pub memory_bytes: u64,
    /// In swap, before compression.
    pub swap_bytes: u64,
}

impl Charge {
    fn add(&mut self, other: Self) {
        self.memory_bytes = self.memory_bytes.saturating_add(other.memory_bytes);
        self.swap_bytes = self.swap_bytes.saturating_add(other.swap_bytes);
    }
}

/// hearth's zram device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Zram {
    /// What it holds, before compression.
    pub stored_bytes: u64,
    /// The RAM that this takes.
    pub taken_bytes: u64,
}

impl Zram {
    /// The RAM that so much swapped memory takes, if it compresses as all that the device holds does. Which of it is whose
    /// the kernel does not tell. `None`: it holds nothing, so what is swapped is elsewhere.
    #[must_use]
    pub fn estimate(&self, swap_bytes: u64) -> Option<u64> {
        if swap_bytes == 0 {
            return Some(0);
        }
        let taken = u128::from(swap_bytes) * u128::from(self.taken_bytes);
        let taken = taken.checked_div(u128::from(self.stored_bytes))?;
        u64::try_from(taken).ok()
    }
}

/// One look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemoryLook {
    /// By pool and tier, "running" or "frozen": all that is there, whoever has it.
    pub charged: BTreeMap<(String, &'static str), Charge>,
    /// `None`: hearth has no device.
    pub zram: Option<Zram>,
}

impl MemoryLook {
    /// All sandboxes of a pool.
    #[must_use]
    pub fn pool(&self, pool: &str) -> Charge {
        let mut sum = Charge::default();
        let tiers = self.charged.iter().filter(|((of, _), _)| of == pool);
        tiers.for_each(|(_, charge)| sum.add(*charge));
        sum
    }
}

/// Reads hearth's zram device; `None`: there is none.
pub type ReadZram = Box<dyn Fn() -> Option<Zram> + Send + Sync>;

/// A look and when the next one is due.
struct Kept {
    due: Instant,
    look: Arc<MemoryLook>,
}

/// The memory of this node's sandboxes. Made by `app`, which also shows it in the metrics.
pub struct NodeMemory {
    tree: CgroupTree,
    parent: String,
    read_zram: ReadZram,
    kept: Mutex<Option<Kept>>,
    /// Callers that wait hold no thread: one of them reads.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl NodeMemory {
    /// Of the sandboxes below a cgroup.
    #[must_use]
    pub fn new(tree: CgroupTree, parent: String, read_zram: ReadZram) -> Self {
        Self {
            tree,
            parent,
            read_zram,
            kept: Mutex::default(),
            turn: Arc::default(),
        }
    }

    /// The look that is kept, or a new one. Blocks: some file reads for each sandbox.
    ///
    /// # Errors
    /// The cgroups can't be listed.
    pub fn look(&self) -> Result<Arc<MemoryLook>, CgroupError> {
        // Replaced whole. Who comes meanwhile waits, and shares it.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        if let Some(kept) = kept.as_ref().filter(|it| began < it.due) {
            return Ok(Arc::clone(&kept.look));
        }
        let look = Arc::new(MemoryLook {
            charged: self.charged()?,
            zram: (self.read_zram)(),
        });
        let now = Instant::now();
        let fresh = now.duration_since(began).saturating_mul(FRESH_FACTOR);
        *kept = Some(Kept {
            due: now + fresh.clamp(FRESH, STALE),
            look: Arc::clone(&look),
        });
        Ok(look)
    }

    /// A sandbox that goes meanwhile has no memory.
    fn charged(&self) -> Result<BTreeMap<(String, &'static str), Charge>, CgroupError> {
        let mut charged = BTreeMap::<_, Charge>::new();
        for found in self.tree.list(&self.parent)? {
            let group = self.tree.sandbox(&self.parent, &found.pool, &found.id)?;
            let (Ok(usage), Ok(frozen)) = (group.usage(), group.is_frozen()) else {
                continue;
            };
            let tier = if frozen { "frozen" } else { "running" };
            charged.entry((found.pool, tier)).or_default().add(Charge {
                memory_bytes: usage.memory_bytes,
                swap_bytes: usage.swap_bytes,
            });
        }
        Ok(charged)
    }

    /// The same for a task. `None`: it can't be read, or not in time.
    pub(super) async fn ask(self: Arc<Self>) -> Option<Arc<MemoryLook>> {
        let looked = self.blocking(Self::look).await?;
        looked
            .inspect_err(|error| warn!(%error, "the memory of sandboxes could not be read"))
            .ok()
    }

    /// hearth's zram device, for a task.
    pub(super) async fn zram(self: Arc<Self>) -> Option<Zram> {
        self.blocking(|memory| (memory.read_zram)()).await?
    }

    async fn blocking<T: Send + 'static>(
        self: Arc<Self>,
        read: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        let turn = Arc::clone(&self.turn);
        let read = async {
            let turn = turn.lock_owned().await;
            // Cut short it goes on, and keeps its turn.
            let read = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                read(&self)
            });
            read.await.ok()
        };
        timeout(LOOK, read).await.ok()?
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
