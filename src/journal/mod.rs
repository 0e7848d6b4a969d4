//! The durable record: redb behind a narrow trait, with one thread of its own and group commit.
//!
//! The only way to change it is to persist an [`Op`]. A failed append or fsync ends the process (the page cache can't be
//! trusted after it); a full disk is noticed before: a reserve is kept.

use crate::machine::ids::{Now, Ticket};
use crate::machine::record::{Identity, Op, Records};
use std::path::Path;

/// What the journal tells the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalEvent {
    /// Everything up to and including this batch is durable.
    Durable(Ticket),
    /// The reserve is reached, or free again.
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
    /// The file is damaged.
    #[error(
        "{path} is damaged: {detail}. Move it away to start anew: sandboxes are then shown as orphans"
    )]
    Damaged {
        /// The file.
        path: String,
        /// What.
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

/// What the driver needs of a journal. The real one is `redb::RedbJournal`.
pub trait Journal: Send + 'static {
    /// Queues one batch. The queue is bounded: the driver has at most a handful of batches in flight and waits for
    /// [`JournalEvent::Durable`] before it sends more. `anchor` is the current hearth time, kept with the commit so
    /// that time never falls over a restart.
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
    /// The largest hearth time committed, 0: none.
    pub last_now: Now,
}

/// Where the journal lives in a data directory.
#[must_use]
pub fn journal_path(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join("journal.redb")
}
