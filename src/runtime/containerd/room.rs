//! What a sandbox's image needs: how big it may become, and the bound of the memory that it is charged to meanwhile.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use containerd_client::types::Mount;

use super::{ContainerdRuntime, blocking};
use crate::{machine::ids::SandboxId, runtime::RuntimeError};

/// Room that an image needs beside the memory it holds: gVisor's own state.
const STATE_BYTES: u64 = 8 << 20;

impl ContainerdRuntime {
    pub(super) async fn bound_of(&self, id: SandboxId) -> Result<Option<u64>, RuntimeError> {
        let cgroup = self.cgroup_of(id);
        blocking("checkpoint", move || {
            let usage = cgroup()?.usage().map_err(|error| error.to_string())?;
            Ok(Some(usage.memory_limit_bytes).filter(|bytes| *bytes > 0))
        })
        .await
    }

    pub(super) async fn bound(
        &self,
        id: SandboxId,
        bytes: Option<u64>,
    ) -> Result<(), RuntimeError> {
        let Some(bytes) = bytes else {
            return Ok(());
        };
        let cgroup = self.cgroup_of(id);
        blocking("checkpoint", move || {
            cgroup()?
                .bound_memory(bytes)
                .map_err(|error| error.to_string())
        })
        .await
    }

    /// How big its image may become: its memory, in RAM and in swap, and what it has written to its root.
    pub(super) async fn about_bytes(
        &self,
        id: SandboxId,
        rootfs: &[Mount],
    ) -> Result<u64, RuntimeError> {
        let (cgroup, filestore) = (self.cgroup_of(id), filestore(id, rootfs));
        blocking("checkpoint", move || {
            use std::os::unix::fs::MetadataExt;
            let usage = cgroup()?.usage().map_err(|error| error.to_string())?;
            let written = filestore.and_then(|path| Some(std::fs::metadata(path).ok()?.blocks()));
            let written = written.unwrap_or_default().saturating_mul(512);
            let memory = usage.memory_bytes.saturating_add(usage.swap_bytes);
            Ok(memory.saturating_add(written).saturating_add(STATE_BYTES))
        })
        .await
    }
}

/// Where gVisor keeps what is written to the root (`--overlay2=root:self`): in the snapshot's upper directory, under the
/// name of `SelfFilestoreName` in runsc/boot.
pub(super) fn filestore(id: SandboxId, rootfs: &[Mount]) -> Option<PathBuf> {
    let options = rootfs.iter().flat_map(|mount| mount.options.iter());
    let options: BTreeMap<_, _> = options
        .filter_map(|option| option.split_once('='))
        .collect();
    let upper = options.get("upperdir")?;
    Some(Path::new(upper).join(format!(".gvisor.filestore.{id}")))
}
