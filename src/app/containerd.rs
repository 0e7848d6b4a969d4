//! The containerd that hearthd runs itself, where the configuration names none.

use super::AppError;
use super::programs::Programs;
use crate::config::Config;
use crate::runtime::RuntimeMetrics;
use crate::runtime::managed::{ManagedConfig, ManagedContainerd};
use std::path::Path;
use std::sync::Arc;

/// Whether hearthd is to run one.
pub(super) fn is_managed(config: &Config) -> bool {
    config.containerd.socket.as_os_str().is_empty()
}

/// The managed containerd, supervised; `None` where another one is configured.
pub(super) async fn start(
    config: &Config,
    programs: &Programs,
    runsc_root: &Path,
    metrics: &RuntimeMetrics,
) -> Result<Option<Arc<ManagedContainerd>>, AppError> {
    let Some(containerd) = programs.containerd.clone() else {
        return Ok(None);
    };
    let managed = ManagedConfig {
        containerd,
        shim: programs.shim.clone(),
        snapshotter: config.containerd.snapshotter.clone(),
        data_dir: config.data_dir.clone(),
        run_dir: config.run_dir.clone(),
        runsc_root: runsc_root.to_owned(),
        cgroup_parent: config.runtime.cgroup_parent.clone(),
        hung_after: ManagedConfig::HUNG_AFTER,
    };
    let managed = ManagedContainerd::start(managed, metrics.clone()).await?;
    let supervised = managed.clone();
    tokio::spawn(async move { supervised.supervise().await });
    Ok(Some(managed))
}
