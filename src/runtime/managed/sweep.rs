//! What a containerd that ended for good leaves: shims, their sandboxes, mounts, sockets.

use std::{fs, path::Path, time::Duration};

use super::{ManagedConfig, ManagedError, io_error};
use crate::{
    cgroup::{CgroupError, CgroupTree},
    runtime::{
        mounts,
        process::{self, Process},
    },
};

/// For one sandbox to die, and for its group to go.
const KILL: Duration = Duration::from_secs(5);

/// Removes all of it; names what stays.
pub(super) fn sweep(config: &ManagedConfig) -> Result<(), ManagedError> {
    let mut left = Vec::new();
    for (shim, id) in shims(config)? {
        tracing::warn!(
            sandbox = id,
            pid = shim.pid(),
            "ending a sandbox that was left"
        );
        if let Err(error) = kill_sandbox(config, &id) {
            left.push(format!("sandbox {id}: {error}"));
        }
        if let Err(error) = shim.kill() {
            left.push(format!("shim {}: {error}", shim.pid()));
        }
    }
    // containerd's and runsc's (its `null-netns`).
    let ours = [config.root(), config.state(), config.runsc_root.clone()];
    for point in mounts::below(&ours).map_err(io_error(Path::new("/proc/thread-self/mountinfo")))? {
        if let Err(error) = mounts::detach(&point) {
            left.push(format!("mount {}: {error}", point.display()));
        }
    }
    if let Err(error) = remove_parent(config) {
        left.push(format!("cgroup {}: {error}", config.cgroup_parent));
    }
    let state = config.state();
    // Sockets of shims; every shim was ended above.
    let _absent = fs::remove_dir_all(state.join("s"));
    for name in ["pid.json", "containerd.sock", "containerd.sock.ttrpc"] {
        let path = state.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                left.push(format!("{}: {error}", path.display()))
            }
            Ok(()) | Err(_) => {}
        }
    }
    if left.is_empty() {
        Ok(())
    } else {
        Err(ManagedError::Left(left))
    }
}

/// Shims that serve this containerd, with their sandboxes' ids.
fn shims(config: &ManagedConfig) -> Result<Vec<(Process, String)>, ManagedError> {
    let socket = config.socket().display().to_string();
    let serves = |pid: i32| {
        let words = process::command_line(pid);
        let value = |flag: &str| {
            words
                .windows(2)
                .find(|pair| pair[0] == flag)
                .map(|pair| pair[1].clone())
        };
        let shim = words
            .first()
            .is_some_and(|program| program.contains("containerd-shim"));
        (shim && value("-address").as_deref() == Some(&socket)).then(|| value("-id"))?
    };
    let mut found = Vec::new();
    for pid in process::pids() {
        let Some(id) = serves(pid) else { continue };
        let held = Process::find(pid, |pid| serves(pid).as_ref() == Some(&id));
        let held = held.map_err(io_error(Path::new("/proc")))?;
        found.extend(held.map(|shim| (shim, id)));
    }
    Ok(found)
}

fn kill_sandbox(config: &ManagedConfig, id: &str) -> Result<(), CgroupError> {
    let tree = CgroupTree::detect("/sys/fs/cgroup")?;
    if let Some(cgroup) = tree.find(&config.cgroup_parent, id)? {
        cgroup.kill(KILL)?;
        cgroup.remove(KILL)?;
    }
    Ok(())
}

/// The parent goes when no other instance's sandboxes are in it.
fn remove_parent(config: &ManagedConfig) -> Result<(), CgroupError> {
    let tree = CgroupTree::detect("/sys/fs/cgroup")?;
    tree.remove_parent(&config.cgroup_parent).map(|_| ())
}
