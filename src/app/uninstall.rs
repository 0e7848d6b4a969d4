//! `hearthd uninstall`: takes hearth off this node, after its last sandbox.
//!
//! ```text
//! journal (lock; no claim, no sandbox) ─▶ containerd's namespace ─▶ network, swap, images ─▶ mounts ─▶ cgroup ─▶ files
//! ```
//! Whatever was there before hearth stays: files are removed by their names, a directory only when it is empty then.

use super::{AppError, host, images, is_managed, mountspace, network, swap};
use crate::cgroup::CgroupTree;
use crate::config::Config;
use crate::net;
use crate::runtime::containerd::leave;
use crate::runtime::{RuntimeMetrics, mounts};
use nix::mount::{MntFlags, umount2};
use prometheus::Registry;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// First letters of what hearthd makes in its data directory.
const DATA: [&str; 8] = [
    "audit.log",
    "containerd",
    "hibernated",
    "import",
    "journal",
    "lock",
    "node.key",
    "reserve",
];
/// The same of its run directory.
const RUN: [&str; 7] = [
    "containerd",
    "hearth.sock",
    "images",
    "netns",
    "runsc",
    "sandboxes",
    "views",
];

/// Removes what hearth made on this node, and tells `done` the paths that were not hearth's own, and stay. Doing it again
/// changes nothing. With `stay` it waits for SIGTERM afterwards, as the container of a DaemonSet must. Called by the binary,
/// once.
///
/// # Errors
/// Claims or sandboxes are left, hearthd runs, or a part can't be removed; what comes after it is still there then.
pub fn uninstall(
    config: &Config,
    stay: bool,
    done: impl FnOnce(&[PathBuf]),
) -> Result<(), AppError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(host("starting"))?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(host("catching SIGTERM"))?;
        done(&Box::pin(remove_all(config)).await?);
        if stay {
            terminate.recv().await;
        }
        Ok(())
    })
}

async fn remove_all(config: &Config) -> Result<Vec<PathBuf>, AppError> {
    if is_managed(config) {
        return Err(AppError::Left(
            "containerd.socket is empty: this hearthd runs a containerd of its own. End it, then remove data_dir and run_dir"
                .into(),
        ));
    }
    let registry = Registry::new();
    let (boot, _) = host::boot().map_err(host("reading the clocks"))?;
    let (events, _unread) = mpsc::channel(super::JOURNAL_EVENTS);
    // Held until the end: no hearthd starts meanwhile.
    let opened = super::open_journal(config, boot, events, &registry)?;
    let (claims, sandboxes) = (opened.records.claims.len(), opened.records.sandboxes.len());
    if claims + sandboxes > 0 {
        return Err(AppError::Left(format!(
            "{claims} claims and {sandboxes} sandboxes are left: start hearthd again, set no pools, release the claims, and wait until `hearthctl sandboxes` is empty"
        )));
    }
    let tag = opened.identity.tag;
    let elsewhere = mountspace::elsewhere(config);
    leave(
        &config.containerd.socket,
        RuntimeMetrics::register(&registry)?,
    )
    .await?;
    if config.network.enabled {
        let built = network::build(config, tag, elsewhere.clone(), &registry).await?;
        built.take_down().await;
    }
    swap::take_down(config).await?;
    images::take_down(config)?;
    CgroupTree::detect("/sys/fs/cgroup")?.remove_parent(&config.runtime.cgroup_parent)?;
    // Nothing else runs in this process by now.
    let removed = remove_files(config, elsewhere.as_deref());
    drop(opened);
    removed
}

/// In a thread of its own, which does not come back from where it goes: in a pod the directories are mount points, and runsc's
/// mount is one in every pod that has them or containerd's.
fn remove_files(config: &Config, elsewhere: Option<&Path>) -> Result<Vec<PathBuf>, AppError> {
    let work = || {
        if let Some(mounts) = elsewhere {
            const WHAT: &str =
                "entering containerd's mount namespace (CAP_SYS_PTRACE, CAP_SYS_CHROOT)";
            net::mount_there(mounts).map_err(|error| host(WHAT)(error.into()))?;
        }
        let mut kept = Vec::new();
        unmount_below(&config.run_dir)?;
        remove(&config.api.socket)?;
        clear(&config.run_dir, ours(&RUN), &mut kept)?;
        if !config.runtime.install_dir.as_os_str().is_empty() {
            clear(&config.runtime.install_dir, is_version, &mut kept)?;
        }
        clear(&config.data_dir, ours(&DATA), &mut kept)?;
        Ok(kept)
    };
    let ended = std::thread::scope(|scope| scope.spawn(work).join());
    ended.unwrap_or_else(|_| Err(AppError::Left("removing files failed".into())))
}

/// Whether a name begins as one of ours does.
fn ours(names: &'static [&'static str]) -> impl Fn(&Path, &OsStr) -> bool {
    |_, name| {
        let name = name.to_string_lossy();
        names.iter().any(|known| name.starts_with(known))
    }
}

/// A version of `hearthd install`, the link to the current one, or the lock.
fn is_version(path: &Path, name: &OsStr) -> bool {
    name == ".lock" || name == "current" || path.join("hearth-init").is_file()
}

/// What is mounted below, the innermost first: the images' tmpfs, and the empty network namespace that runsc keeps.
fn unmount_below(dir: &Path) -> Result<(), AppError> {
    for point in mounts::below(&[dir.to_owned()]).map_err(host("reading the mounts"))? {
        umount2(&point, MntFlags::empty())
            .map_err(|error| host(format!("unmounting {}", point.display()))(error.into()))?;
    }
    Ok(())
}

/// Removes what `is_ours` in a directory, and itself when nothing else is in it. What is mounted on an entry in another
/// mount namespace, such as a pod's, goes with it: the kernel detaches it.
fn clear(
    dir: &Path,
    is_ours: impl Fn(&Path, &OsStr) -> bool,
    kept: &mut Vec<PathBuf>,
) -> Result<(), AppError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(host(format!("reading {}", dir.display())))?,
    };
    let mut empty = true;
    for entry in entries {
        let entry = entry.map_err(host(format!("reading {}", dir.display())))?;
        let path = entry.path();
        match is_ours(&path, &entry.file_name()) {
            true => remove(&path)?,
            false => {
                empty = false;
                kept.push(path);
            }
        }
    }
    match empty {
        true => fs::remove_dir(dir).map_err(host(format!("removing {}", dir.display()))),
        false => Ok(()),
    }
}

fn remove(path: &Path) -> Result<(), AppError> {
    let about = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        about => about.map_err(host(format!("looking at {}", path.display())))?,
    };
    let removed = match about.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    removed.map_err(host(format!("removing {}", path.display())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_hearth_made_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let (full, own) = (place.path().join("full"), place.path().join("own"));
        for dir in [&full, &own] {
            fs::create_dir_all(dir.join("sandboxes/a")).unwrap();
            fs::write(dir.join("hearth.sock"), "").unwrap();
        }
        fs::write(full.join("somebody's"), "").unwrap();
        let mut kept = Vec::new();
        clear(&full, ours(&RUN), &mut kept).unwrap();
        clear(&own, ours(&RUN), &mut kept).unwrap();
        clear(&own, ours(&RUN), &mut kept).unwrap();
        assert_eq!(kept, [full.join("somebody's")]);
        assert!(!full.join("sandboxes").exists() && full.exists() && !own.exists());
    }

    #[test]
    fn versions_are_told_from_other_files() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path();
        fs::create_dir(dir.join("0.1.0-abc")).unwrap();
        fs::write(dir.join("0.1.0-abc/hearth-init"), "").unwrap();
        std::os::unix::fs::symlink("0.1.0-abc", dir.join("current")).unwrap();
        fs::create_dir(dir.join("bin")).unwrap();
        let mut kept = Vec::new();
        clear(dir, is_version, &mut kept).unwrap();
        assert_eq!(kept, [dir.join("bin")]);
    }

    #[test]
    fn a_managed_containerd_is_not_left_behind() {
        let config = Config::default();
        assert!(config.containerd.socket.as_os_str().is_empty());
        let error = uninstall(&config, false, |_| ()).unwrap_err().to_string();
        assert!(error.contains("containerd.socket"), "{error}");
    }
}
