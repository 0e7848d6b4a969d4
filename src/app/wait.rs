//! `hearthd wait`: what runs in a reservation's Pod, in an image that has no shell and no `sleep`.

use super::{AppError, host};
use nix::sys::signal::{SigSet, Signal};

/// Does nothing until SIGTERM or SIGINT. Called by the binary, once, with nothing else running.
///
/// # Errors
/// The kernel does not let it wait for signals.
pub fn wait() -> Result<(), AppError> {
    let wrong = |error: nix::Error| host("waiting for SIGTERM")(error.into());
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    // Blocked, or the kernel would not deliver them: process 1 of a container has no default action.
    ends.thread_block().map_err(wrong)?;
    ends.wait().map_err(wrong)?;
    Ok(())
}
