//! The bound of a sandbox's memory, for the moment of a checkpoint: the pages of its image in the staging tmpfs are
//! charged to its own cgroup, for its sentry writes them. At the bound that the OCI spec set the OOM killer would take it.

use super::{CgroupError, SandboxCgroup, Version, files};

impl SandboxCgroup {
    /// Sets it, bytes; v1 bounds RAM and swap together as well, by the same number.
    ///
    /// # Errors
    /// `NotFound`, `Io`: also when more is in use than a lower bound allows.
    pub fn bound_memory(&self, bytes: u64) -> Result<(), CgroupError> {
        let Some(dir) = self.controller("memory") else {
            return Ok(());
        };
        let text = bytes.to_string();
        match self.version {
            Version::V2 => files::write(&dir.join("memory.max"), &text),
            Version::V1 => {
                let both = dir.join("memory.memsw.limit_in_bytes");
                // The joint bound is never below the other: it is raised before, lowered after. The wrong one of the two
                // is refused; a kernel that does not count swap has none.
                let _raised = files::write(&both, &text);
                files::write(&dir.join("memory.limit_in_bytes"), &text)?;
                match files::write(&both, &text) {
                    Err(CgroupError::NotFound(_)) => Ok(()),
                    other => other,
                }
            }
        }
    }
}
