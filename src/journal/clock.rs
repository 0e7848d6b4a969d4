//! hearth time: wall clock at the data directory's anchor plus CLOCK_BOOTTIME since. Pure.
//!
//! A clock step does not move it, also not one that happened while hearthd was down: within one boot of the machine only
//! CLOCK_BOOTTIME counts. Over a reboot nothing but the wall clock knows how long it took; then the later one of wall
//! clock and newest committed time goes on.

use crate::machine::ids::Now;
use serde::{Deserialize, Serialize};

/// The machine's clocks, read by `app` as one instant at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// CLOCK_BOOTTIME, milliseconds: goes on during suspend, starts anew with every boot.
    pub boottime_ms: u64,
    /// Wall clock, milliseconds since 1970.
    pub wall_ms: u64,
}

/// An instant known by both clocks: in boot `boot_id` it was `now` when CLOCK_BOOTTIME showed `boottime_ms`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Anchor {
    pub boot_id: String,
    pub boottime_ms: u64,
    pub now: Now,
}

impl Anchor {
    /// The first one of a data directory.
    pub fn first(boot: &Boot) -> Self {
        Self::at(boot, Now(boot.wall_ms))
    }

    /// The one that follows at the next start. `last` is the newest time committed since.
    pub fn next(&self, last: Now, boot: &Boot) -> Self {
        let now = if self.boot_id == boot.boot_id {
            let passed_ms = boot.boottime_ms.saturating_sub(self.boottime_ms);
            self.now.plus(passed_ms)
        } else {
            Now(boot.wall_ms).max(self.now)
        };
        Self::at(boot, now.max(last))
    }

    fn at(boot: &Boot, now: Now) -> Self {
        Self {
            boot_id: boot.boot_id.clone(),
            boottime_ms: boot.boottime_ms,
            now,
        }
    }
}
