//! One sandbox's cgroup.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use super::{CgroupError, Usage, Version, files};

/// Within one round of a v1 kill: how long a freeze may take before the round goes on without it.
const V1_ROUND_FREEZE: Duration = Duration::from_millis(200);
/// Within one round of a v1 kill: how long the killed may take to leave before the next round.
const V1_ROUND_EMPTY: Duration = Duration::from_millis(100);

/// The cgroup of one sandbox. It may vanish at any moment: then operations answer `NotFound`.
#[derive(Debug, Clone)]
pub struct SandboxCgroup {
    pub(super) version: Version,
    /// v2: one directory. v1: one per hierarchy, that of the freezer first.
    pub(super) dirs: Vec<Dir>,
}

/// Its directory in one hierarchy.
#[derive(Debug, Clone)]
pub(super) struct Dir {
    /// Name of the mount: a controller, or several joined by commas.
    pub(super) hierarchy: String,
    pub(super) path: PathBuf,
}

impl SandboxCgroup {
    /// Called by `CgroupTree` only, which has checked the paths.
    pub(super) fn new(version: Version, dirs: Vec<Dir>) -> Self {
        Self { version, dirs }
    }

    /// The directory whose freezer and processes count.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dirs
            .first()
            .map_or(Path::new(""), |dir| dir.path.as_path())
    }

    /// Whether any controller still has it.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.dirs.iter().any(|dir| dir.path.is_dir())
    }

    /// The directory of a v1 controller, also of a joint mount such as `cpu,cpuacct`. v2: the only one.
    pub(super) fn controller(&self, name: &str) -> Option<&Path> {
        if self.version == Version::V2 {
            return Some(self.path());
        }
        let of = |dir: &&Dir| dir.hierarchy.split(',').any(|one| one == name);
        self.dirs.iter().find(of).map(|dir| dir.path.as_path())
    }

    /// Processes in it and below it, by host pid, ascending.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        if !self.path().is_dir() {
            return Err(CgroupError::NotFound(self.path().to_owned()));
        }
        let mut pids = Vec::new();
        for dir in files::subtree(self.path())? {
            match files::read(&dir.join("cgroup.procs")) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
                Err(CgroupError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Whether every process in it is stopped by a freeze, or is about to be: v1's FREEZING counts, for nothing in such
    /// a group answers reliably.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        match self.version {
            Version::V1 => Ok(self.v1_state()? != "THAWED"),
            Version::V2 => Ok(
                files::read(&self.path().join("cgroup.freeze"))?.trim() == "1"
                    || self.v2_event("frozen")?,
            ),
        }
    }

    fn v1_state(&self) -> Result<String, CgroupError> {
        files::read(&self.path().join("freezer.state")).map(|text| text.trim().to_owned())
    }

    fn v2_event(&self, key: &str) -> Result<bool, CgroupError> {
        let events = self.path().join("cgroup.events");
        match files::keyed(&events, key)? {
            Some(value) => Ok(value == 1),
            None => Err(CgroupError::NotFound(self.path().to_owned())),
        }
    }

    /// Freezes every process; returns when the kernel says that all are stopped. 0.2-0.9 ms as a rule.
    ///
    /// # Errors
    /// `NotFound`, `Io`; `Deadline` after `limit`: the request is taken back, the group runs.
    pub fn freeze(&self, limit: Duration) -> Result<(), CgroupError> {
        let frozen = self.try_freeze(limit);
        if matches!(frozen, Err(CgroupError::Deadline { .. })) {
            self.request(false)?;
        }
        frozen
    }

    fn try_freeze(&self, limit: Duration) -> Result<(), CgroupError> {
        self.request(true)?;
        files::wait(self.path(), "frozen", limit, || match self.version {
            Version::V1 => {
                let state = self.v1_state()?;
                // A v1 group can stay FREEZING when a process forked meanwhile; asking again moves it on.
                if state == "FREEZING" {
                    self.request(true)?;
                }
                Ok(state == "FROZEN")
            }
            Version::V2 => self.v2_event("frozen"),
        })
    }

    /// Lets every process run again.
    ///
    /// # Errors
    /// `NotFound`, `Io`; `Deadline` after `limit` (an ancestor is frozen): the request stays.
    pub fn thaw(&self, limit: Duration) -> Result<(), CgroupError> {
        self.request(false)?;
        files::wait(self.path(), "thawed", limit, || match self.version {
            Version::V1 => Ok(self.v1_state()? == "THAWED"),
            Version::V2 => Ok(!self.v2_event("frozen")?),
        })
    }

    fn request(&self, freeze: bool) -> Result<(), CgroupError> {
        let (file, text) = match (self.version, freeze) {
            (Version::V1, true) => ("freezer.state", "FROZEN"),
            (Version::V1, false) => ("freezer.state", "THAWED"),
            (Version::V2, true) => ("cgroup.freeze", "1"),
            (Version::V2, false) => ("cgroup.freeze", "0"),
        };
        files::write(&self.path().join(file), text)
    }

    /// Ends every process in it, frozen or not, and returns when none is left. A group that does not exist is dead.
    ///
    /// # Errors
    /// `Io`; `Deadline` after `limit`: something is stuck in the kernel.
    pub fn kill(&self, limit: Duration) -> Result<(), CgroupError> {
        let killed = match self.version {
            Version::V1 => self.kill_in_rounds(limit),
            Version::V2 => self.kill_v2(limit),
        };
        match killed {
            Err(CgroupError::NotFound(_)) => Ok(()),
            other => other,
        }
    }

    fn kill_v2(&self, limit: Duration) -> Result<(), CgroupError> {
        match files::write(&self.path().join("cgroup.kill"), "1") {
            Ok(()) => {}
            // Kernels before 5.14 have no cgroup.kill; SIGKILL reaches a v2-frozen process as well.
            Err(CgroupError::NotFound(_)) if self.path().is_dir() => {
                return self.kill_in_rounds(limit);
            }
            Err(error) => return Err(error),
        }
        files::wait(self.path(), "empty", limit, || {
            Ok(!self.v2_event("populated")?)
        })
    }

    /// Freeze, so that nobody forks and no pid is reused in between; signal all; thaw, so that the signal is taken.
    fn kill_in_rounds(&self, limit: Duration) -> Result<(), CgroupError> {
        let began = Instant::now();
        loop {
            let left = limit.saturating_sub(began.elapsed());
            match self.try_freeze(left.min(V1_ROUND_FREEZE)) {
                Ok(()) | Err(CgroupError::Deadline { .. }) => {}
                Err(error) => return Err(error),
            }
            for pid in self.processes()? {
                // ESRCH: it left by itself. 0 would be ourselves: a process of another pid namespace is shown so.
                if pid > 0 {
                    let _gone = signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
            self.request(false)?;
            let patience = limit.saturating_sub(began.elapsed()).min(V1_ROUND_EMPTY);
            let empty = || Ok(self.processes()?.is_empty());
            match files::wait(self.path(), "empty", patience, empty) {
                Err(CgroupError::Deadline { .. }) if began.elapsed() < limit => {}
                Err(CgroupError::Deadline { path, wanted, .. }) => {
                    return Err(CgroupError::Deadline {
                        path,
                        wanted,
                        after: limit,
                    });
                }
                other => return other,
            }
        }
    }

    /// What it uses now. A figure whose controller is off is 0.
    ///
    /// # Errors
    /// `NotFound` when the group is gone, `Io`.
    pub fn usage(&self) -> Result<Usage, CgroupError> {
        if !self.path().is_dir() {
            return Err(CgroupError::NotFound(self.path().to_owned()));
        }
        let number = |controller: &str, file: &str| match self.controller(controller) {
            Some(dir) => files::number(&dir.join(file)).map(Option::unwrap_or_default),
            None => Ok(0),
        };
        let keyed = |controller: &str, file: &str, key: &str| match self.controller(controller) {
            Some(dir) => files::keyed(&dir.join(file), key).map(Option::unwrap_or_default),
            None => Ok(0),
        };
        Ok(match self.version {
            Version::V1 => Usage {
                cpu_nanoseconds: number("cpuacct", "cpuacct.usage")?,
                memory_bytes: number("memory", "memory.usage_in_bytes")?,
                // RAM and swap together; none where the kernel counts no swap.
                swap_bytes: number("memory", "memory.memsw.usage_in_bytes")?
                    .saturating_sub(number("memory", "memory.usage_in_bytes")?),
                memory_limit_bytes: number("memory", "memory.limit_in_bytes")?,
                pids: number("pids", "pids.current")?,
                oom_kills: keyed("memory", "memory.oom_control", "oom_kill")?,
            },
            Version::V2 => Usage {
                cpu_nanoseconds: keyed("cpu", "cpu.stat", "usage_usec")?.saturating_mul(1000),
                memory_bytes: number("memory", "memory.current")?,
                swap_bytes: number("memory", "memory.swap.current")?,
                memory_limit_bytes: number("memory", "memory.max")?,
                pids: number("pids", "pids.current")?,
                oom_kills: keyed("memory", "memory.events", "oom_kill")?,
            },
        })
    }

    /// Removes its directories in every controller. Nothing may live in it any more: kill first.
    ///
    /// # Errors
    /// `Io`; `Deadline` when it is still busy after `limit`.
    pub fn remove(&self, limit: Duration) -> Result<(), CgroupError> {
        files::wait(self.path(), "removed", limit, || {
            let mut all = true;
            for dir in &self.dirs {
                for group in files::subtree(&dir.path)? {
                    all &= files::remove_dir(&group)?;
                }
            }
            Ok(all)
        })
    }
}
