//! What can go wrong with a cgroup.

use std::{io, path::PathBuf, time::Duration};

/// Why an operation on a cgroup failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Neither a v2 root nor a v1 freezer hierarchy is mounted there.
    #[error("no cgroup v2 and no v1 freezer hierarchy below {0}")]
    NoHierarchy(PathBuf),
    /// A cgroup path with an empty or upward component, or the root itself.
    #[error("{0:?} is not a path of a cgroup below a parent")]
    BadPath(String),
    /// The cgroup does not exist (any more).
    #[error("cgroup {0} does not exist")]
    NotFound(PathBuf),
    /// The kernel did not get there in time. The request stays in force.
    #[error("{path}: not {wanted} within {after:?}")]
    Deadline {
        /// The cgroup.
        path: PathBuf,
        /// What was waited for: frozen, thawed, empty, removed.
        wanted: &'static str,
        /// How long it was waited.
        after: Duration,
    },
    /// Reading or writing a cgroup file failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}
