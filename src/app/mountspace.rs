//! Where a mount must be made so that containerd, its shims and runsc see it. In a pod hearthd has a mount namespace of its
//! own: what it mounted there nobody else would see, and it would go with the pod.

use super::is_managed;
use crate::config::Config;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt,
};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// The node's init, where containerd does not say its process (it is down, or of a process namespace that we don't see).
const INIT: i32 = 1;

/// The mount namespace of containerd, if it is another than hearthd's. A managed containerd has hearthd's.
pub(super) fn elsewhere(config: &Config) -> Option<PathBuf> {
    if is_managed(config) {
        return None;
    }
    let pid = listener(config).unwrap_or(INIT);
    is_another(pid).then(|| PathBuf::from(format!("/proc/{pid}/ns/mnt")))
}

/// Who listens on containerd's socket. Does not wait: one whose queue is full does not say.
fn listener(config: &Config) -> Option<i32> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let client = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
    let address = UnixAddr::new(&config.containerd.socket).ok()?;
    connect(client.as_raw_fd(), &address).ok()?;
    let peer = getsockopt(&client, sockopt::PeerCredentials).ok()?;
    // 0: not in our process namespace.
    (peer.pid() > 0).then(|| peer.pid())
}

/// Two mount namespaces have no mount in common, by its number. (Comparing /proc/PID/ns/mnt would take CAP_SYS_PTRACE.)
fn is_another(pid: i32) -> bool {
    let first = |who: &str| {
        let table = std::fs::read_to_string(format!("/proc/{who}/mountinfo")).ok()?;
        Some(table.split_whitespace().next()?.to_owned())
    };
    match (first("self"), first(&pid.to_string())) {
        (Some(ours), Some(theirs)) => ours != theirs,
        // It has gone, or is hidden from us: then nothing can be entered either.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_with_the_same_mounts_is_not_elsewhere() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(!is_another(own));
        assert!(!is_another(i32::MAX));
    }

    #[test]
    fn a_process_with_mounts_of_its_own_is() {
        let mut other = std::process::Command::new("unshare")
            .args(["--mount", "sh", "-c", "echo; exec sleep 600"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0];
        std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut line).unwrap();
        let is_another = is_another(i32::try_from(other.id()).unwrap());
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(is_another);
    }
}
