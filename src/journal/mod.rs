//! The durable record: redb behind a narrow trait, with one thread of its own and group commit.
//!
//! The only way to change it is to persist an [`Op`]. A failed append or fsync ends the process (the page cache can't be
//! trusted after it); a full disk is noticed before: a reserve is kept.
//!
//! ```text
//!  driver ── append ─▶ bounded queue ─▶ thread "journal" ── one transaction, one fdatasync ─▶ journal.redb
//!     ▲                                      │   │
//!     └───── Durable, Reserve (bounded) ─────┘   └─▶ journal.mark (evidence of the last commit, not synced)
//!
//!  data directory (0700)
//!    lock          flock'ed, holds the pid                     directory.rs
//!    node.key      32 random bytes, 0600, made once            directory.rs
//!    journal.redb  schema, identity, clock, records            store.rs, rows.rs, codec.rs, upgrade.rs, clock.rs
//!    journal.mark  newest durable commit                       mark.rs
//!    reserve       space given back when the disk is full      reserve.rs, file.rs
//! ```
//!
//! What it rests on, read in redb 4.6 (`docs/design.md`, `page_manager.rs`, `cached_file.rs`) and measured here:
//!
//! - **One fsync per commit.** redb's default commit (1PC+C) writes about nine pages, flips the header and calls
//!   `fdatasync` once; a commit cut short is found by checksums at the next open and rolled back. One claim took 0.27 ms
//!   where a raw 4 KiB write and fdatasync took 0.12; 2-phase commit (a second fdatasync) 0.41, quick-repair (the
//!   allocator's state as well) 0.48: p50 of one run of `tests/figures.rs`. Those would buy a fast open after a crash of a
//!   big file (ours is read whole in milliseconds) and the certainty that a *damaged* newest commit is never taken for
//!   one cut short; `mark.rs` gives that without the second fsync.
//! - **Growth costs a second fsync** (redb syncs the longer file before its header can name it). It doubles the file, so
//!   it is rare. The new part is filled with zeros at once: a commit into blocks never written before takes twice as long
//!   on ext4 (0.16-0.20 ms against 0.30-0.35 ms, measured), and the disk's lack of space shows there and not later.
//! - **After any I/O error redb refuses all further work** (`PreviousIo`). ENOSPC must therefore never reach it: `file.rs`
//!   gives the reserve back below redb and tries again.
//! - **Crash-only.** The journal is never closed cleanly: redb's close would trim the file, which then has to grow again,
//!   perhaps on a full disk. Every open verifies all checksums and rebuilds the allocator, as after a crash.

mod backends;
mod clock;
mod codec;
mod committer;
mod directory;
#[cfg(test)]
pub mod disk_fakes;
#[cfg(test)]
pub mod fakes;
mod file;
mod mark;
mod metrics;
mod points;
mod reserve;
mod rows;
mod store;
mod upgrade;

#[cfg(test)]
mod tests;

pub use clock::Boot;
pub use committer::{OnFailure, RedbJournal, Settings, abort_on_failure};
pub use directory::NodeKey;
pub use metrics::Metrics;

use crate::machine::ids::{Now, Ticket};
use crate::machine::record::{Identity, Op, Records};
use std::path::Path;

/// Batches that may be queued and not yet durable. The driver keeps to it; one more is a bug of the driver and ends the
/// process. A handful: while one commit is on the disk the next ones gather, and are committed together.
pub const BATCHES_IN_FLIGHT: usize = 8;

/// What the journal tells the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalEvent {
    /// Everything up to and including this batch is durable.
    Durable(Ticket),
    /// The reserve is reached, or free again. Not reached until told otherwise.
    Reserve {
        /// Reached.
        reached: bool,
    },
}

/// A data directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another hearthd holds the lock.
    #[error(
        "another hearthd (pid {pid}) uses {dir}; stop it, or give this one its own data directory"
    )]
    InUse {
        /// The directory.
        dir: String,
        /// Its holder; 0: unknown.
        pid: u32,
    },
    /// Written by a newer hearth.
    #[error(
        "{path} was written by a newer hearth (schema {found}, this one knows {known}); downgrades are refused"
    )]
    FutureSchema {
        /// The file.
        path: String,
        /// In the file.
        found: u32,
        /// Known here.
        known: u32,
    },
    /// The file is damaged. It is left as it was found, byte for byte.
    #[error(
        "{path} is damaged: {detail}. Move it away to start anew: sandboxes are then shown as orphans"
    )]
    Damaged {
        /// The file.
        path: String,
        /// What.
        detail: String,
    },
    /// Something is there that hearth must not trust, or not touch.
    #[error("{path} {detail}")]
    Untrusted {
        /// What.
        path: String,
        /// Why, and what to do.
        detail: String,
    },
    /// The directory can't be used.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

impl OpenError {
    /// For `map_err` on what was done to `path`.
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { path, source }
    }
}

/// What the driver needs of a journal. The real one is [`RedbJournal`].
pub trait Journal: Send + 'static {
    /// Queues one batch; never blocks. At most [`BATCHES_IN_FLIGHT`] batches may be on their way: the driver waits for
    /// [`JournalEvent::Durable`] before it sends more. Tickets rise. `anchor` is the current hearth time, kept with the
    /// commit so that time never falls over a restart. A batch without operations costs nothing and becomes durable in
    /// its turn.
    fn append(&mut self, ticket: Ticket, anchor: Now, ops: Vec<Op>);
}

/// What an opened journal brings.
#[derive(Debug)]
pub struct Opened<J> {
    /// To append to.
    pub journal: J,
    /// What it held.
    pub records: Records,
    /// The data directory's identity.
    pub identity: Identity,
    /// hearth time at the instant of the [`Boot`] that was given to open: later times are this plus the CLOCK_BOOTTIME
    /// passed since `boottime_ms`.
    pub start: Now,
    /// The node's key.
    pub key: NodeKey,
}

/// One step of the driver, to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Batch {
    ticket: Ticket,
    anchor: Now,
    ops: Vec<Op>,
}

/// Where the journal lives in a data directory.
#[must_use]
pub fn journal_path(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join("journal.redb")
}
