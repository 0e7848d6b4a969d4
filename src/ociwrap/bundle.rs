//! What the OCI bundle says to hearth-runsc.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;

use super::WrapError;

/// Annotation: bytes the sandbox may write to its root file system; the guest gets ENOSPC beyond.
pub const DISK_ANNOTATION: &str = "dev.hearth/disk-bytes";

/// Annotation: how runsc connects the sandbox. Absent: not at all.
pub const NETWORK_ANNOTATION: &str = "dev.hearth/network";
/// Its one value: gVisor's own network stack on what is in the spec's network namespace.
pub const NETWORK_SANDBOX: &str = "sandbox";

/// runsc obeys annotations under these names: with them a spec could leave its cgroup, change runsc's flags or join
/// another sandbox. hearth sets none of them.
const REFUSED: &[&str] = &["dev.gvisor.", "io.kubernetes.cri"];

/// The parts of an OCI spec that matter here.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Spec {
    #[serde(default, rename = "ociVersion")]
    pub(super) oci_version: String,
    #[serde(default)]
    pub(super) annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub(super) linux: Option<Linux>,
}

/// Its Linux part.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Linux {
    #[serde(default, rename = "cgroupsPath")]
    pub(super) cgroups_path: String,
}

impl Spec {
    /// Reads `<bundle>/config.json`.
    pub(super) fn read(bundle: &Path) -> Result<Self, WrapError> {
        let path = bundle.join("config.json");
        let text = fs::read(&path).map_err(|source| WrapError::Read {
            path: path.clone(),
            source,
        })?;
        serde_json::from_slice(&text).map_err(|source| WrapError::Config { path, source })
    }

    /// Where its cgroup is to be.
    pub(super) fn cgroups_path(&self) -> Option<&str> {
        let path = self.linux.as_ref().map(|linux| linux.cgroups_path.as_str());
        path.filter(|path| !path.is_empty())
    }

    /// How runsc connects it, if the spec says so.
    pub(super) fn network(&self) -> Result<Option<&'static str>, WrapError> {
        let annotations = self.annotations.as_ref();
        match annotations.and_then(|all| all.get(NETWORK_ANNOTATION)) {
            None => Ok(None),
            Some(text) if text == NETWORK_SANDBOX => Ok(Some(NETWORK_SANDBOX)),
            Some(text) => Err(WrapError::Network(text.clone())),
        }
    }

    /// Refuses a spec that hearth could not keep hold of; else the bound on its disk.
    pub(super) fn admit(&self, cgroup_parent: &str) -> Result<Option<u64>, WrapError> {
        let empty = BTreeMap::new();
        let annotations = self.annotations.as_ref().unwrap_or(&empty);
        let refused = |name: &&String| REFUSED.iter().any(|prefix| name.starts_with(prefix));
        if let Some(name) = annotations.keys().find(refused) {
            return Err(WrapError::Annotation(name.clone()));
        }
        let path = self.cgroups_path().unwrap_or_default();
        let below = path.strip_prefix(cgroup_parent.trim_end_matches('/'));
        let upward = path.split('/').any(|part| part == "..");
        if upward || !below.is_some_and(|rest| rest.len() > 1 && rest.starts_with('/')) {
            return Err(WrapError::Cgroup {
                path: path.to_owned(),
                parent: cgroup_parent.to_owned(),
            });
        }
        let disk = annotations.get(DISK_ANNOTATION).map(|text| {
            let bytes = text.parse::<u64>().ok().filter(|bytes| *bytes > 0);
            bytes.ok_or_else(|| WrapError::Disk(text.clone()))
        });
        disk.transpose()
    }
}
