//! How patient the tests are. `HEARTH_PATIENCE=6` makes everything that they wait for, and every bound on how long
//! something may take, six times as long: for machines that are slow (an emulated one, `hack/v2-node.sh`). The only place
//! that reads it.
#![allow(dead_code)]

use std::time::Duration;

/// By how much: a whole number, 1 where nothing is said.
pub fn factor() -> u32 {
    let said = std::env::var("HEARTH_PATIENCE").ok();
    said.map_or(1, |text| {
        text.parse().expect("HEARTH_PATIENCE is a whole number")
    })
}

/// What takes at most `limit` on a machine of today, here.
pub fn patient(limit: Duration) -> Duration {
    limit * factor()
}
