//! What hearthd gives up before it does anything. docs/privileges.md says what it needs and why.

use nix::errno::Errno;
use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::sys::resource::{Resource, setrlimit};
use tracing::warn;

/// What could not be given up: what it was, and why not.
pub(super) type Kept = Vec<(&'static str, Errno)>;

/// Called while there is a single thread: the kernel keeps no_new_privs for each thread, and new ones inherit it. There is
/// no log yet; what failed goes to [`tell`].
///
/// - **no_new_privs**: no program that hearthd starts, nor one of theirs, gains by its exec what hearthd does not have
///   itself. The managed containerd, its shims and runsc inherit it; they never need more than they are started with.
/// - **No core dumps**, of hearthd and of all that inherits its limits: a sandbox's memory and hearthd's own hold secrets.
/// - **Not dumpable**: nobody without CAP_SYS_PTRACE reads hearthd's memory or attaches to it, not even its own user.
pub(super) fn give_up() -> Kept {
    let steps = [
        ("no_new_privs", set_no_new_privs()),
        ("core dumps", setrlimit(Resource::RLIMIT_CORE, 0, 0)),
        ("being dumpable", set_dumpable(false)),
    ];
    steps
        .into_iter()
        .filter_map(|(what, done)| Some((what, done.err()?)))
        .collect()
}

/// Logs what could not be given up.
pub(super) fn tell(kept: Kept) {
    for (what, error) in kept {
        warn!(%error, what, "a privilege could not be given up");
    }
}
