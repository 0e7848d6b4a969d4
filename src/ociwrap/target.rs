//! The sandbox an invocation is about: what runsc recorded, and its cgroup.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{WrapError, WrapperConfig, bundle::Spec};
use crate::cgroup::{CgroupError, CgroupTree, SandboxCgroup};

/// The parts of runsc's state file (`container.Container` in its source) that matter here.
#[derive(Debug, Clone, Deserialize)]
struct Record {
    #[serde(rename = "bundleDir")]
    bundle_dir: String,
    status: String,
    spec: Spec,
    #[serde(default)]
    sandbox: Option<Sandbox>,
}

#[derive(Debug, Clone, Deserialize)]
struct Sandbox {
    #[serde(default)]
    pid: i32,
}

/// The OCI state, as `runsc state` prints it.
#[derive(Debug, Serialize)]
struct State<'a> {
    #[serde(rename = "ociVersion")]
    oci_version: &'a str,
    id: &'a str,
    status: &'a str,
    pid: i32,
    bundle: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<&'a BTreeMap<String, String>>,
}

/// One sandbox.
#[derive(Debug)]
pub(super) struct Target {
    id: String,
    record: Option<Record>,
    /// `None` when neither a record nor a directory below the parent tells where it is.
    pub(super) cgroup: Option<SandboxCgroup>,
}

/// runsc's name for the record of a single-container sandbox ("_" and ":" can't occur in ids).
fn record_path(root: &Path, id: &str) -> PathBuf {
    root.join(format!("{id}_sandbox:{id}.state"))
}

impl Target {
    /// Looks it up. A sandbox that does not exist is not an error here: runsc says it better.
    pub(super) fn find(config: &WrapperConfig, root: &Path, id: &str) -> Result<Self, WrapError> {
        let path = record_path(root, id);
        let record = match fs::read(&path) {
            // Unreadable counts as absent: runsc may be writing it. The directory search below still finds the group.
            Ok(text) => serde_json::from_slice::<Record>(&text).ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(WrapError::Read { path, source }),
        };
        let tree = CgroupTree::detect(&config.cgroup_root)?;
        let recorded = record
            .as_ref()
            .and_then(|record| record.spec.cgroups_path());
        let cgroup = match recorded {
            Some(path) => Some(tree.at(path)?),
            None => tree.find(&config.cgroup_parent, id)?,
        };
        Ok(Self {
            id: id.to_owned(),
            record,
            cgroup,
        })
    }

    /// Whether it is frozen. An empty group is not: on v2 the request outlives the killed.
    pub(super) fn is_frozen(&self) -> Result<bool, WrapError> {
        match self.cgroup.as_ref().map(SandboxCgroup::is_frozen) {
            Some(Ok(frozen)) => Ok(frozen && !self.processes()?.is_empty()),
            Some(Err(CgroupError::NotFound(_))) | None => Ok(false),
            Some(Err(error)) => Err(error.into()),
        }
    }

    /// Its processes on the host; none when the group is gone.
    pub(super) fn processes(&self) -> Result<Vec<i32>, WrapError> {
        match self.cgroup.as_ref().map(SandboxCgroup::processes) {
            Some(Ok(pids)) => Ok(pids),
            Some(Err(CgroupError::NotFound(_))) | None => Ok(Vec::new()),
            Some(Err(error)) => Err(error.into()),
        }
    }

    /// What `ps --format json` prints.
    pub(super) fn ps(&self) -> Result<Vec<u8>, WrapError> {
        let mut text = serde_json::to_vec(&self.processes()?).map_err(WrapError::Encode)?;
        text.push(b'\n');
        Ok(text)
    }

    /// What `state` prints; `None` without a record.
    pub(super) fn state(&self) -> Result<Option<Vec<u8>>, WrapError> {
        let Some(record) = &self.record else {
            return Ok(None);
        };
        let state = State {
            oci_version: &record.spec.oci_version,
            id: &self.id,
            status: &record.status,
            pid: record.sandbox.as_ref().map_or(0, |sandbox| sandbox.pid),
            bundle: &record.bundle_dir,
            annotations: record.spec.annotations.as_ref(),
        };
        let mut text = serde_json::to_vec_pretty(&state).map_err(WrapError::Encode)?;
        text.push(b'\n');
        Ok(Some(text))
    }

    /// How runsc connects it, as its spec said when it was made.
    pub(super) fn network(&self) -> Result<Option<&'static str>, WrapError> {
        let record = self.record.as_ref();
        record.map_or(Ok(None), |record| record.spec.network())
    }

    /// Whether runsc has forgotten it.
    pub(super) fn is_forgotten(root: &Path, id: &str) -> bool {
        !record_path(root, id).exists()
    }
}
