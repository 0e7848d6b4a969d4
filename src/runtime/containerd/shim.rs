//! The shim of a sandbox: found, held, and killed when it is wedged.
//!
//! A wedged shim (stopped, or hung in a call to the runtime) keeps its task for ever: the task says RUNNING and its
//! deletion hangs although every process of the sandbox is dead. Only its death helps; containerd then sees the
//! connection end and cleans up with `shim delete`.

use std::{
    io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{
    machine::ids::SandboxId,
    runtime::{
        NAMESPACE,
        process::{self, Process},
    },
};

/// Whether a command line is that of the shim which serves sandbox `id`. The short-lived `start` and `delete` helpers
/// of the same program carry the id too.
fn serves(words: &[String], id: &str) -> bool {
    let program = words.first().map(String::as_str).unwrap_or_default();
    let flag = |name: &str, value: &str| {
        let mut pairs = words.windows(2);
        pairs.any(|pair| pair[0] == name && pair[1] == value)
    };
    let helper = matches!(words.last().map(String::as_str), Some("start" | "delete"));
    program.contains("containerd-shim")
        && flag("-namespace", NAMESPACE)
        && flag("-id", id)
        && !helper
}

/// The shim that is the parent of the sandbox's first process `pid` (it is a subreaper and starts the runtime).
pub(super) fn of_task(id: SandboxId, pid: i32) -> io::Result<Option<Process>> {
    let Some(parent) = process::parent(pid) else {
        return Ok(None);
    };
    let id = id.to_string();
    Process::find(parent, |pid| serves(&process::command_line(pid), &id))
}

/// The same by a look at every process there is.
pub(super) fn search(id: SandboxId) -> io::Result<Option<Process>> {
    let text = id.to_string();
    for pid in process::pids() {
        let is_it = |pid| serves(&process::command_line(pid), &text);
        if is_it(pid)
            && let Some(found) = Process::find(pid, is_it)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Where the socket of a sandbox's shim may be: named by a hash (`CreateSocketAddress` in containerd's pkg/shim), in the
/// managed containerd's directory or the default one.
pub(super) fn sockets(containerd: &Path, id: SandboxId) -> [PathBuf; 2] {
    let path = containerd.join(NAMESPACE).join(id.to_string());
    let sum = Sha256::digest(path.as_os_str().as_encoded_bytes());
    let name: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    let own = containerd.parent().unwrap_or(containerd).join("s");
    [own, PathBuf::from("/run/containerd/s")].map(|dir| dir.join(&name))
}

/// Whether any process has the id among its arguments: a shim, its helpers, hearth-runsc, runsc.
pub(super) fn is_spoken_of(id: SandboxId) -> bool {
    let text = id.to_string();
    let names = |pid| process::command_line(pid).contains(&text);
    process::pids().into_iter().any(names)
}

#[cfg(test)]
mod tests {
    use super::serves;

    #[test]
    fn only_the_shim_of_this_sandbox_is_taken_for_it() {
        let id = "h00000007000000000001";
        let is = |line: &str| {
            let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
            serves(&words, id)
        };
        assert!(is(
            "/b/containerd-shim-runc-v2 -namespace hearth -id h00000007000000000001 -address /s"
        ));
        for other in [
            "/b/containerd-shim-runc-v2 -namespace hearth -id h00000007000000000002 -address /s",
            "/b/containerd-shim-runc-v2 -namespace k8s.io -id h00000007000000000001 -address /s",
            "/b/containerd-shim-runc-v2 -namespace hearth -address /s -id h00000007000000000001 start",
            "/b/containerd-shim-runc-v2 -namespace hearth -id h00000007000000000001 -bundle /x delete",
            "vi -namespace hearth -id h00000007000000000001",
            "",
        ] {
            assert!(!is(other), "{other}");
        }
    }
}
