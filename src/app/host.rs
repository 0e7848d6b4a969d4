//! What hearthd asks of its host once, at start.

use crate::driver::BootClock;
use crate::journal::Boot;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tracing::warn;

/// Every sandbox costs some six descriptors of hearthd's.
const WANTED_OPEN_FILES: u64 = 65_536;

/// Of this boot of the machine: another after each.
pub(super) fn boot_id() -> std::io::Result<String> {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(read.trim().to_owned())
}

/// The machine's clocks as one instant, and its CLOCK_BOOTTIME.
pub(super) fn boot() -> std::io::Result<(Boot, Duration)> {
    let boottime = BootClock::boottime()?;
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let boot = Boot {
        boot_id: boot_id()?,
        boottime_ms: millis(boottime),
        wall_ms: millis(wall),
    };
    Ok((boot, boottime))
}

/// Raises the soft limit of open files as far as the hard one lets.
pub(super) fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = WANTED_OPEN_FILES.min(hard);
        if soft < wanted {
            setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
        }
        Ok(wanted.max(soft))
    });
    match raised {
        Ok(limit) if limit < WANTED_OPEN_FILES => {
            warn!(limit, "few open files are allowed: large pools may not fit");
        }
        Ok(_) => {}
        Err(error) => warn!(%error, "the limit of open files can't be raised"),
    }
}
