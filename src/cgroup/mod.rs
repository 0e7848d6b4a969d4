//! A sandbox's cgroup: where it is, freeze, thaw, reclaim, kill, usage, removal; v1 (also hybrid) and v2.
//!
//! Owns: the layout `<parent>/<pool>/<sandbox id>` below the cgroup mounts, and every read and write of cgroup files.
//! Never: makes gVisor's cgroups (runsc does) or sets their limits (the OCI spec does; but see `ceiling`; Kata's: `make`), or touches anything outside the parent it is
//! given. Synchronous small file I/O, used by `runtime` (on a blocking thread) and by hearth-runsc, which lives for
//! microseconds.
//!
//! Plain files instead of the crate cgroups-rs: that one creates groups, owns limits and drives systemd; what is needed
//! here (freeze with a deadline, kill of a frozen group, leftovers of every controller) it does not do, and
//! hearth-runsc should not link it.

mod ceiling;
mod error;
mod files;
mod group;
mod make;
mod reclaim;
mod tree;

#[cfg(test)]
mod tests;

pub use error::CgroupError;
pub use group::SandboxCgroup;
pub use make::Limits;
pub use reclaim::{Reclaimed, memory_pressure_permille};
pub use tree::{CgroupTree, Found, Version};

/// What a sandbox uses on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// CPU time in nanoseconds.
    pub cpu_nanoseconds: u64,
    /// Memory in bytes: what is in RAM.
    pub memory_bytes: u64,
    /// Memory that is in swap, bytes before any compression.
    pub swap_bytes: u64,
    /// Memory limit in bytes, 0: none.
    pub memory_limit_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Times the OOM killer struck.
    pub oom_kills: u64,
}
