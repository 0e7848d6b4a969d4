//! Fail points: named places where hearthd's death matters. Builds with debug assertions (the tests') have them; in a
//! release build nothing of them is left, and `hack/build.sh` looks for that.
//!
//! `HEARTH_FAILPOINT_FILE` names a file, which holds `name=nth` while a point is armed: the process that comes to that
//! point for the nth time kills itself as `kill -9` would. The file is read at every point, so that one is armed and
//! disarmed while hearthd runs. `tests/node/torture.rs` goes through [`ALL`].

/// Every fail point. A test compares it with the sources; the torture has to reach each.
#[cfg(debug_assertions)]
pub const ALL: &[&str] = &[
    // Starting.
    "start.journal",
    "start.containerd",
    "list.end",
    "witness.end",
    // Committing, by what the batch holds: before it is durable, and after, told to nobody.
    "journal.before.sequence",
    "journal.after.sequence",
    "journal.before.refill",
    "journal.after.refill",
    "journal.before.member",
    "journal.after.member",
    "journal.before.make",
    "journal.after.make",
    "journal.before.assign",
    "journal.after.assign",
    "journal.before.freeze",
    "journal.after.freeze",
    "journal.before.hibernate",
    "journal.after.hibernate",
    "journal.before.sink",
    "journal.after.sink",
    "journal.before.doom",
    "journal.after.doom",
    "journal.before.gone",
    "journal.after.gone",
    "journal.before.claim",
    "journal.after.claim",
    "journal.before.confirm",
    "journal.after.confirm",
    "journal.before.end",
    "journal.after.end",
    "journal.before.release",
    "journal.after.release",
    "journal.before.pools",
    "journal.after.pools",
    "journal.before.fence",
    "journal.after.fence",
    "journal.before.drain",
    "journal.after.drain",
    "journal.before.undrain",
    "journal.after.undrain",
    "journal.unmarked",
    // Answering: durable, and the caller does not know.
    "reply.granted",
    "reply.released",
    "reply.renewed",
    "reply.hibernated",
    "reply.resumed",
    "reply.pools",
    "reply.drain",
    // Effects.
    "create.begin",
    "create.container",
    "create.snapshot",
    "create.fifos",
    "create.task",
    "create.watched",
    "create.started",
    "create.end",
    "personalize.begin",
    "personalize.thawed",
    "personalize.end",
    "freeze.begin",
    "freeze.quiesced",
    "freeze.end",
    "thaw.begin",
    "thaw.end",
    "reclaim.end",
    // A sandbox's network: its link, its place, its policy, and away with them.
    "net.linked",
    "net.given",
    "net.enforced",
    "net.unruled",
    "net.unlinked",
    "net.reconciled",
    // To the disk and back.
    "checkpoint.begin",
    "checkpoint.quiesced",
    "checkpoint.plain",
    "checkpoint.sealed",
    "checkpoint.end",
    "shed.begin",
    "shed.end",
    "restore.begin",
    "restore.task",
    "restore.started",
    "restore.end",
    "image.dropped",
    // Golden images: taken, and cloned from, before anybody knows it.
    "golden.taken",
    "clone.restored",
    "destroy.begin",
    "destroy.killed",
    "destroy.task",
    "destroy.container",
    "destroy.snapshot",
    "destroy.runsc",
    "destroy.end",
];

/// The process comes to a point. Ends it, if that point is armed and it is the time for it.
#[cfg(debug_assertions)]
pub fn reached(name: &str) {
    use std::sync::{Mutex, OnceLock, PoisonError};
    static FILE: OnceLock<Option<std::path::PathBuf>> = OnceLock::new();
    /// What is armed, and how often it was reached since.
    static SEEN: Mutex<(String, u64)> = Mutex::new((String::new(), 0));
    let file = FILE.get_or_init(|| std::env::var_os("HEARTH_FAILPOINT_FILE").map(Into::into));
    let Some(armed) = file
        .as_ref()
        .and_then(|file| std::fs::read_to_string(file).ok())
    else {
        return;
    };
    let Some((point, nth)) = armed.trim().split_once('=') else {
        return;
    };
    if point != name {
        return;
    }
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.0 != armed {
        *seen = (armed.clone(), 0);
    }
    seen.1 += 1;
    if nth.parse() == Ok(seen.1) {
        let _sent = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::SIGKILL);
        // It may take the kernel a moment; nothing more happens here.
        loop {
            std::thread::park();
        }
    }
}

/// Marks a place where the process may die, by a name of [`ALL`].
macro_rules! failpoint {
    ($name:expr) => {{
        #[cfg(debug_assertions)]
        $crate::failpoint::reached($name);
    }};
}
pub(crate) use failpoint;
