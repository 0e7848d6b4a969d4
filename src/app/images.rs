//! The disk tier's vault, as configured.

use super::{AppError, host};
use crate::config::Config;
use crate::machine::node::DiskPolicy;
use crate::runtime::containerd::ContainerdRuntime;
use crate::vault::{Vault, VaultConfig, image_key};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tracing::{info, warn};

/// Where images are in plain for the moment.
fn staging(config: &Config) -> PathBuf {
    config.run_dir.join("images")
}

/// Gives the runtime a disk tier, if there is to be one; what the machine is told of it. `may_mount`: runsc sees what this
/// process mounts.
///
/// # Errors
/// The configured key can't be used.
pub(super) fn tier(
    config: &Config,
    node_key: &[u8; 32],
    may_mount: bool,
    runtime: &ContainerdRuntime,
) -> Result<DiskPolicy, AppError> {
    let vault = open(config, node_key, may_mount)?;
    let disk = DiskPolicy {
        enabled: vault.is_some(),
        sink_after_ms: config.hibernation.sink_after_seconds * 1000,
    };
    if let Some(vault) = vault {
        runtime.keep_images_in(vault);
    }
    Ok(disk)
}

/// Opens it; `None`: this node has no disk tier. One that can't be had is no reason not to serve: callers are told.
///
/// # Errors
/// The configured key can't be used.
fn open(config: &Config, node_key: &[u8; 32], may_mount: bool) -> Result<Option<Vault>, AppError> {
    let settings = &config.hibernation;
    if settings.quota_bytes == 0 {
        return Ok(None);
    }
    let key = match settings.key_file.as_os_str().is_empty() {
        true => image_key(node_key),
        false => read_key(&settings.key_file)?,
    };
    let opened = Vault::open(VaultConfig {
        dir: config.data_dir.join("hibernated"),
        staging: staging(config),
        may_mount,
        staging_bytes: settings.staging_bytes,
        quota_bytes: settings.quota_bytes,
        disk_reserve_bytes: config.limits.disk_reserve_bytes,
        key,
    });
    match opened {
        Ok(vault) => {
            info!(used_bytes = vault.used_bytes(), "images of sandboxes");
            Ok(Some(vault))
        }
        Err(error) => {
            warn!(%error, "no sandbox can go to the disk: TIER_DISK is UNIMPLEMENTED");
            Ok(None)
        }
    }
}

/// Takes down what [`open`] has set up beside the data directory.
///
/// # Errors
/// It is still in use.
pub(super) fn take_down(config: &Config) -> Result<(), AppError> {
    let taken = Vault::take_down(&staging(config));
    taken.map_err(|error| AppError::Dev(error.to_string()))
}

fn read_key(path: &Path) -> Result<[u8; 32], AppError> {
    let failed = |source| host(format!("hibernation.key_file {}", path.display()))(source);
    let wrong = |what: &str| failed(std::io::Error::other(what.to_owned()));
    let about = std::fs::metadata(path).map_err(failed)?;
    if !about.is_file() || about.mode() & 0o077 != 0 {
        return Err(wrong("must be a file of mode 0600"));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| wrong("must have 32 bytes"))
}
