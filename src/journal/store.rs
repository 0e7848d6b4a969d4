//! journal.redb: made, opened on the shadow first, and changed by whole batches. What is in its tables: `rows.rs`.

use super::backends::{Gate, Shadow};
use super::clock::{Anchor, Boot};
use super::codec::CodecError;
use super::mark::Mark;
use super::rows::{META, META_NAME, Rows, get, put, read_records};
use super::upgrade::{self, Step};
use super::{Batch, OpenError};
use crate::failpoint::failpoint;
use crate::machine::ids::{NodeTag, Now};
use crate::machine::record::{Identity, Records};
use redb::{Database, ReadableDatabase, StorageBackend};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// redb's cache, bytes. More than a journal usually has; half of it bounds what a commit holds in memory.
const CACHE_BYTES: usize = 32 << 20;

/// Why the store can't be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("{0}")]
    Redb(#[source] Box<redb::Error>),
    #[error("table {table}: {source}")]
    Value {
        table: &'static str,
        source: CodecError,
    },
    #[error("schema {found} is newer than {known}")]
    Future { found: u32, known: u32 },
    #[error("{0}")]
    Damaged(String),
}

/// For `map_err` on any of redb's errors.
pub(super) fn redb_error(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Redb(Box::new(error.into()))
}

impl StoreError {
    /// As the caller of open is told.
    fn at(self, path: &Path) -> OpenError {
        let path = path.display().to_string();
        let damaged = |detail: String| OpenError::Damaged {
            path: path.clone(),
            detail,
        };
        match self {
            Self::Future { found, known } => OpenError::FutureSchema { path, found, known },
            Self::Damaged(detail) => damaged(detail),
            Self::Value { ref source, .. } => {
                // The whole chain: an error without source keeps it in its text.
                let cause = std::error::Error::source(source).map(|cause| format!(": {cause}"));
                damaged(format!("{self}{}", cause.unwrap_or_default()))
            }
            Self::Redb(error) => match *error {
                // So says redb of a file that is no database, and our file of a read beyond its end.
                redb::Error::Io(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
                    ) =>
                {
                    damaged(error.to_string())
                }
                redb::Error::Io(source) => OpenError::Io { path, source },
                redb::Error::Corrupted(detail) => damaged(detail),
                other => damaged(other.to_string()),
            },
        }
    }
}

/// What stands in META under "clock".
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Clock {
    /// Of the last start.
    anchor: Anchor,
    /// The newest hearth time committed.
    last: Now,
    /// Number of this commit: see `mark.rs`.
    commit: u64,
}

/// What an opened store held.
#[derive(Debug)]
pub(super) struct Loaded {
    pub records: Records,
    pub identity: Identity,
    pub start: Now,
}

/// An open journal.redb.
#[derive(Debug)]
pub(super) struct Store {
    database: Database,
    shut: Arc<AtomicBool>,
    mark: Mark,
    tag: NodeTag,
    clock: Clock,
}

impl Drop for Store {
    /// Crash-only: what is committed is on the disk, nothing else gets there.
    fn drop(&mut self) {
        self.shut.store(true, Ordering::Release);
    }
}

/// Makes the tables of a new journal in empty storage: schema, identity, the first anchor.
pub(super) fn create<B: StorageBackend>(
    backend: Arc<B>,
    identity: Identity,
    boot: &Boot,
    path: &Path,
) -> Result<(), OpenError> {
    let shut = Arc::new(AtomicBool::new(false));
    let made = open_database(backend, &shut).and_then(|database| {
        let made = fill_new(&database, identity, boot);
        // Set before the database is dropped, so that it is left as its last commit made it.
        shut.store(true, Ordering::Release);
        made
    });
    made.map_err(|error| error.at(path))
}

/// Opens a journal: on the shadow first, so that one that can't be read is not touched.
pub(super) fn open<B: StorageBackend>(
    backend: Arc<B>,
    mark: Mark,
    boot: &Boot,
    path: &Path,
    steps: &[Step],
) -> Result<(Store, Loaded), OpenError> {
    let shadow = Shadow::new(Arc::clone(&backend)).map_err(OpenError::io(path))?;
    // redb would make a database of it.
    if shadow.is_empty() {
        return Err(StoreError::Damaged("it is empty".into()).at(path));
    }
    let shut = Arc::new(AtomicBool::new(false));
    let tried = open_database(Arc::new(shadow), &shut).and_then(|database| {
        let tried = load(&database, &mark, boot, steps).map(drop);
        shut.store(true, Ordering::Release);
        tried
    });
    tried.map_err(|error| error.at(path))?;

    let shut = Arc::new(AtomicBool::new(false));
    let database = open_database(backend, &shut).map_err(|error| error.at(path))?;
    let loaded = load(&database, &mark, boot, steps);
    let (loaded, clock) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            shut.store(true, Ordering::Release);
            return Err(error.at(path));
        }
    };
    let store = Store {
        database,
        shut,
        mark,
        tag: loaded.identity.tag,
        clock,
    };
    store.note_commit();
    Ok((store, loaded))
}

impl Store {
    /// Commits batches in order, in one transaction with one fsync. After an error the store is of no more use: what
    /// reached the disk is for the next open to find out.
    pub fn commit(&mut self, batches: &[Batch]) -> Result<(), StoreError> {
        let anchors = batches.iter().map(|batch| batch.anchor);
        let mut clock = self.clock.clone();
        clock.commit += 1;
        clock.last = anchors.fold(clock.last, Now::max);
        let txn = self.database.begin_write().map_err(redb_error)?;
        {
            let mut rows = Rows::open(&txn)?;
            for op in batches.iter().flat_map(|batch| &batch.ops) {
                rows.apply(op)?;
            }
            put(&mut rows.meta, "clock", &clock)?;
        }
        txn.commit().map_err(redb_error)?;
        self.clock = clock;
        failpoint!("journal.unmarked");
        self.note_commit();
        Ok(())
    }

    fn note_commit(&self) {
        // Only evidence: a journal that can't note it is as safe as redb alone.
        if let Err(error) = self.mark.note(self.tag, self.clock.commit) {
            tracing::warn!(%error, path = %self.mark.path().display(), "the mark can't be written");
        }
    }
}

fn open_database<B: StorageBackend>(
    backend: Arc<B>,
    shut: &Arc<AtomicBool>,
) -> Result<Database, StoreError> {
    // The check costs nothing more than the repair that follows a crash anyway, and redb promises an error instead of a
    // panic for a damaged file only with it.
    Database::builder()
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true)
        .create_with_backend(Gate::new(backend, Arc::clone(shut)))
        .map_err(redb_error)
}

fn fill_new(database: &Database, identity: Identity, boot: &Boot) -> Result<(), StoreError> {
    let anchor = Anchor::first(boot);
    let clock = Clock {
        last: anchor.now,
        anchor,
        commit: 1,
    };
    let txn = database.begin_write().map_err(redb_error)?;
    upgrade::write_schema(&txn, upgrade::schema_of(upgrade::STEPS))?;
    {
        let mut rows = Rows::open(&txn)?;
        put(&mut rows.meta, "identity", &identity)?;
        put(&mut rows.meta, "clock", &clock)?;
    }
    txn.commit().map_err(redb_error)
}

/// Checks the schema, upgrades, reads everything, looks at the evidence, and commits the anchor of this start.
fn load(
    database: &Database,
    mark: &Mark,
    boot: &Boot,
    steps: &[Step],
) -> Result<(Loaded, Clock), StoreError> {
    let found = found_schema(database)?;
    let known = upgrade::schema_of(steps);
    if found > known {
        return Err(StoreError::Future { found, known });
    }
    if found != known {
        let txn = database.begin_write().map_err(redb_error)?;
        upgrade::climb(&txn, found, steps)?;
        txn.commit().map_err(redb_error)?;
    }

    let txn = database.begin_read().map_err(redb_error)?;
    let meta = txn.open_table(META).map_err(redb_error)?;
    let identity: Identity =
        get(&meta, META_NAME, "identity")?.ok_or_else(|| missing("identity"))?;
    let mut clock: Clock = get(&meta, META_NAME, "clock")?.ok_or_else(|| missing("clock"))?;
    let records = read_records(&txn)?;
    let durable = mark.newest(identity.tag);
    if durable > clock.commit {
        return Err(StoreError::Damaged(format!(
            "it holds {} commits, but {durable} were acknowledged ({}). If an older copy was put here on purpose, \
             remove that file",
            clock.commit,
            mark.path().display()
        )));
    }

    clock.anchor = clock.anchor.next(clock.last, boot);
    clock.last = clock.anchor.now;
    clock.commit += 1;
    let start = clock.anchor.now;
    let txn = database.begin_write().map_err(redb_error)?;
    put(
        &mut txn.open_table(META).map_err(redb_error)?,
        "clock",
        &clock,
    )?;
    txn.commit().map_err(redb_error)?;
    let loaded = Loaded {
        records,
        identity,
        start,
    };
    Ok((loaded, clock))
}

fn found_schema(database: &Database) -> Result<u32, StoreError> {
    let foreign = || StoreError::Damaged("it is a redb file, but no journal of hearth".into());
    let txn = database.begin_read().map_err(redb_error)?;
    let meta = match txn.open_table(META) {
        Ok(meta) => meta,
        Err(redb::TableError::Storage(error)) => return Err(redb_error(error)),
        Err(_) => return Err(foreign()),
    };
    let row = meta.get("schema").map_err(redb_error)?;
    upgrade::read_schema(row.as_ref().map(|row| row.value())).ok_or_else(foreign)
}

fn missing(what: &str) -> StoreError {
    StoreError::Damaged(format!("its {what} is missing"))
}
