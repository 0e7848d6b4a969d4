//! How names are resolved inside a sandbox with a network: its resolv.conf and hosts, beside its FIFOs, so that they go
//! with them.

use std::{
    fmt::Write,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::fifo;
use crate::{
    machine::ids::SandboxId,
    runtime::{RuntimeConfig, SandboxNetwork},
};

/// glibc and musl read no more nameservers.
const RESOLVERS: usize = 3;
/// Not the sandbox's own name: it changes with the claim.
const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost\n";

/// Where they are: resolv.conf, then hosts.
pub(super) fn paths(config: &RuntimeConfig, id: SandboxId) -> [PathBuf; 2] {
    let dir = fifo::directory(config).join(id.to_string());
    [dir.join("resolv.conf"), dir.join("hosts")]
}

/// Writes them; the sandbox's directory is there.
pub(super) fn write(paths: &[PathBuf; 2], network: &SandboxNetwork) -> io::Result<()> {
    let [resolv_conf, hosts] = paths;
    write_one(resolv_conf, &resolv_conf_of(network))?;
    write_one(hosts, HOSTS)
}

fn resolv_conf_of(network: &SandboxNetwork) -> String {
    let mut text = String::new();
    for resolver in network.resolvers.iter().take(RESOLVERS) {
        // Writing to a String does not fail.
        let _infallible = writeln!(text, "nameserver {resolver}");
    }
    text
}

/// Readable by every user inside; on the host their directory is for root alone.
fn write_one(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}
