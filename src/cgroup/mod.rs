//! A sandbox's cgroup: freeze, thaw, kill, usage; v1 and v2. Synchronous small file I/O; used by `runtime` (daemon)
//! and by hearth-runsc.

/// What a sandbox uses on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// CPU time in nanoseconds.
    pub cpu_nanoseconds: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Memory limit in bytes, 0: none.
    pub memory_limit_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Times the OOM killer struck.
    pub oom_kills: u64,
}
