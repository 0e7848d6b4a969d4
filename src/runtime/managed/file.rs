//! The managed containerd's configuration file, and the lock that makes starts wait for each other.

use std::{fs, path::Path};

use nix::fcntl::{Flock, FlockArg};
use toml::Value;

use super::{ManagedConfig, ManagedError, io_error};

/// containerd's own bound for the directory of its shims' sockets (`maxSocketDirLen`).
const SOCKET_DIR_BYTES: usize = 42;

/// What it gives itself to clean up after a shim that died: more than hearth-runsc gives `runsc delete` (8 s), for what is
/// cut short leaves its bundle behind for good. containerd's own is 5 s.
const CLEANUP: &str = "12s";

/// Plugins that hearth must not have near it: CRI's garbage collector and NRI change what they do not know; the restart
/// monitor would revive what was destroyed; the opt plugin makes directories in /opt.
const DISABLED: &[&str] = &[
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.podsandbox.controller.v1.podsandbox",
    "io.containerd.nri.v1.nri",
    "io.containerd.monitor.container.v1.restart",
    "io.containerd.internal.v1.opt",
];

/// The text of the file.
fn text(config: &ManagedConfig) -> String {
    let quoted = |text: &str| Value::String(text.to_owned()).to_string();
    let path = |path: &Path| quoted(&path.display().to_string());
    let disabled: Vec<_> = DISABLED.iter().map(|name| quoted(name)).collect();
    let state = config.state();
    let mut text = format!(
        "# Written by hearthd at every start.\n\
         version = 3\n\
         root = {root}\n\
         state = {state}\n\
         disabled_plugins = [{disabled}]\n\n\
         [grpc]\naddress = {socket}\n\n\
         [ttrpc]\naddress = {ttrpc}\n\n\
         [debug]\nlevel = \"warn\"\n\n\
         [timeouts]\n\"io.containerd.timeout.shim.cleanup\" = \"{CLEANUP}\"\n\n\
         [plugins.\"io.containerd.transfer.v1.local\"]\n\
         [[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n\
         platform = \"linux/amd64\"\n\
         snapshotter = {snapshotter}\n",
        root = path(&config.root()),
        state = path(&state.join("state")),
        disabled = disabled.join(", "),
        socket = path(&config.socket()),
        ttrpc = path(&state.join("containerd.sock.ttrpc")),
        snapshotter = quoted(&config.snapshotter),
    );
    // Of our own where it fits, so that nothing lies about elsewhere.
    let sockets = state.join("s");
    if sockets.as_os_str().len() <= SOCKET_DIR_BYTES {
        let dir = path(&sockets);
        text.push_str(&format!(
            "\n[plugins.\"io.containerd.shim.v1.manager\"]\nsocket_dir = {dir}\n"
        ));
    }
    text
}

/// Where it is.
pub(super) fn path(config: &ManagedConfig) -> std::path::PathBuf {
    config.state().join("config.toml")
}

/// Writes it; whether it is other than before.
pub(super) fn write(config: &ManagedConfig) -> Result<bool, ManagedError> {
    let (path, text) = (path(config), text(config));
    if fs::read_to_string(&path).is_ok_and(|before| before == text) {
        return Ok(false);
    }
    let fresh = path.with_extension("toml.fresh");
    fs::write(&fresh, text).map_err(io_error(&fresh))?;
    fs::rename(&fresh, &path).map_err(io_error(&path))?;
    Ok(true)
}

/// Held while an instance is looked for and started. Waits for another start, which takes milliseconds.
pub(super) fn lock(dir: &Path) -> Result<Flock<fs::File>, ManagedError> {
    let path = dir.join("lock");
    let file = fs::File::create(&path).map_err(io_error(&path))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| io_error(&path)(errno.into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_file_is_toml_whatever_the_paths_are() {
        let config = ManagedConfig {
            containerd: "/b/containerd".into(),
            shim: "/b/shim".into(),
            snapshotter: "overlayfs".into(),
            data_dir: "/var/lib/he\"ar\\th".into(),
            run_dir: "/run/hearth".into(),
            runsc_root: "/run/hearth/runsc".into(),
            cgroup_parent: "/hearth".into(),
            hung_after: ManagedConfig::HUNG_AFTER,
        };
        let table: toml::Table = text(&config).parse().unwrap();
        assert_eq!(
            table["root"].as_str(),
            Some("/var/lib/he\"ar\\th/containerd")
        );
        assert_eq!(
            table["grpc"]["address"].as_str(),
            Some("/run/hearth/containerd/containerd.sock")
        );
        let cleanup = &table["timeouts"]["io.containerd.timeout.shim.cleanup"];
        assert_eq!(cleanup.as_str(), Some(CLEANUP));
        let plugins = &table["plugins"];
        let dir = &plugins["io.containerd.shim.v1.manager"]["socket_dir"];
        assert_eq!(dir.as_str(), Some("/run/hearth/containerd/s"));
        let unpack = &plugins["io.containerd.transfer.v1.local"]["unpack_config"][0];
        assert_eq!(unpack["snapshotter"].as_str(), Some("overlayfs"));
    }
}
