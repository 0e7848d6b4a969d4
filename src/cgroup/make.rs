//! Making a sandbox's cgroup with its limits, for runtimes that leave that to who calls them (Kata, as with the kubelet's
//! pods). runsc makes its own.

use std::{fs, io, path::Path};

use super::{CgroupError, SandboxCgroup, Version, files};

/// What all of a sandbox may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// RAM, bytes; swap beside it: as much again on v2, none on v1, as for gVisor's sandboxes.
    pub memory_bytes: u64,
    /// (quota, period) of CPU time, microseconds; `None`: no bound.
    pub cpu_quota: Option<(u64, u64)>,
    /// Processes and threads on the host.
    pub tasks: u64,
}

/// Controllers that the limits need.
const CONTROLLERS: &[&str] = &["cpu", "memory", "pids"];

impl SandboxCgroup {
    /// Makes it, in every hierarchy, and sets its limits; one that is there gets them too.
    ///
    /// # Errors
    /// `Io`; `NotFound` when a controller is off: a bound that is not in force is an error.
    pub fn make(&self, limits: &Limits) -> Result<(), CgroupError> {
        for dir in &self.dirs {
            if self.version == Version::V2 {
                delegate(&dir.path);
            }
            let made = fs::create_dir_all(&dir.path);
            made.map_err(|source| CgroupError::Io {
                path: dir.path.clone(),
                source,
            })?;
        }
        self.bound_memory(limits.memory_bytes)?;
        match self.version {
            Version::V1 => self.limit_v1(limits),
            Version::V2 => self.limit_v2(limits),
        }
    }

    fn limit_v1(&self, limits: &Limits) -> Result<(), CgroupError> {
        if let (Some(dir), Some((quota, period))) = (self.controller("cpu"), limits.cpu_quota) {
            files::write(&dir.join("cpu.cfs_period_us"), &period.to_string())?;
            files::write(&dir.join("cpu.cfs_quota_us"), &quota.to_string())?;
        }
        match self.controller("pids") {
            Some(dir) => files::write(&dir.join("pids.max"), &limits.tasks.to_string()),
            None => Ok(()),
        }
    }

    fn limit_v2(&self, limits: &Limits) -> Result<(), CgroupError> {
        let write = |file: &str, text: &str| files::write(&self.path().join(file), text);
        match write("memory.swap.max", &limits.memory_bytes.to_string()) {
            // A kernel that counts no swap.
            Err(CgroupError::NotFound(_)) => {}
            other => other?,
        }
        // Without it the OOM killer takes one process and leaves a machine that limps.
        write("memory.oom.group", "1")?;
        if let Some((quota, period)) = limits.cpu_quota {
            write("cpu.max", &format!("{quota} {period}"))?;
        }
        write("pids.max", &limits.tasks.to_string())
    }
}

/// Makes the groups above it and hands the controllers down to it. What is refused shows when the limits are set.
fn delegate(path: &Path) {
    let mut above: Vec<_> = path.ancestors().skip(1).collect();
    above.reverse();
    for group in above {
        if !group.exists() && !parent_is_group(group) {
            continue;
        }
        let made = fs::create_dir(group);
        if made.is_err_and(|error| error.kind() != io::ErrorKind::AlreadyExists) {
            return;
        }
        let handed_down = group.join("cgroup.subtree_control");
        if handed_down.exists() {
            for controller in CONTROLLERS {
                let _refused = files::write(&handed_down, &format!("+{controller}"));
            }
        }
    }
}

/// Whether the directory above it is a group.
fn parent_is_group(path: &Path) -> bool {
    path.parent()
        .is_some_and(|parent| parent.join("cgroup.procs").exists())
}
