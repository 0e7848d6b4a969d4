//! Buries children, own and adopted ones.

use nix::{libc, unistd::Pid};
use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

#[derive(Debug)]
pub enum Found {
    Dead(Pid, ExitStatus),
    /// Children, but no dead one.
    Alive,
    Nobody,
}

/// One dead child, if there is one. Not through nix: it fails on a child that a real-time signal ended, and that child
/// would be lost.
#[allow(unsafe_code)]
pub fn bury() -> Found {
    let mut status = 0;
    // SAFETY: `status` is a place for an int that outlives the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    match pid {
        1.. => Found::Dead(Pid::from_raw(pid), ExitStatus::from_raw(status)),
        0 => Found::Alive,
        // ECHILD; EINTR does not happen to a wait that does not wait.
        _ => Found::Nobody,
    }
}
