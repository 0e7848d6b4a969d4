//! The tables of journal.redb: made, opened, read, and changed by whole batches.

use super::backends::{Gate, Shadow};
use super::clock::{Anchor, Boot};
use super::codec::{self, CodecError};
use super::mark::Mark;
use super::upgrade::{self, Step};
use super::{Batch, OpenError};
use crate::machine::ids::{NodeTag, Now};
use crate::machine::record::{ClaimRecord, Identity, Op, Records, SandboxRecord};
use redb::{
    Database, Key, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend, Table,
    TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

type Bytes = &'static [u8];

/// Small single values: schema, identity, clock, fence, sequence. One leaf, rewritten with every commit.
pub(super) const META: TableDefinition<&str, Bytes> = TableDefinition::new("meta");
/// The set of pools, under "set": apart from META because it can be megabytes.
const POOLS: TableDefinition<&str, Bytes> = TableDefinition::new("pools");
const SANDBOXES: TableDefinition<&[u8; 12], Bytes> = TableDefinition::new("sandboxes");
const CLAIMS: TableDefinition<&[u8; 16], Bytes> = TableDefinition::new("claims");
const TOMBSTONES: TableDefinition<&[u8; 16], Bytes> = TableDefinition::new("tombstones");

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
            Self::Value { source, .. } => {
                // The whole chain: an error without source keeps it in its text.
                let cause = std::error::Error::source(&source).map(ToString::to_string);
                damaged(match cause {
                    Some(cause) => format!("{source}: {cause}"),
                    None => source.to_string(),
                })
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

/// Every table, for one transaction.
struct Rows<'t> {
    meta: Table<'t, &'static str, Bytes>,
    pools: Table<'t, &'static str, Bytes>,
    sandboxes: Table<'t, &'static [u8; 12], Bytes>,
    claims: Table<'t, &'static [u8; 16], Bytes>,
    tombstones: Table<'t, &'static [u8; 16], Bytes>,
}

impl<'t> Rows<'t> {
    fn open(txn: &'t WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            meta: txn.open_table(META).map_err(redb_error)?,
            pools: txn.open_table(POOLS).map_err(redb_error)?,
            sandboxes: txn.open_table(SANDBOXES).map_err(redb_error)?,
            claims: txn.open_table(CLAIMS).map_err(redb_error)?,
            tombstones: txn.open_table(TOMBSTONES).map_err(redb_error)?,
        })
    }

    fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
        use codec::{claim_key, sandbox_key};
        match op {
            Op::PutSandbox(record) => put(&mut self.sandboxes, &sandbox_key(record.id), record),
            Op::DeleteSandbox(id) => delete(&mut self.sandboxes, &sandbox_key(*id)),
            Op::PutClaim(record) => put(&mut self.claims, &claim_key(record.id), record),
            Op::DeleteClaim(id) => delete(&mut self.claims, &claim_key(*id)),
            Op::PutTombstone(id, at) => put(&mut self.tombstones, &claim_key(*id), at),
            Op::DeleteTombstone(id) => delete(&mut self.tombstones, &claim_key(*id)),
            Op::PutPools(set) => put(&mut self.pools, "set", set),
            Op::PutFence(fence) => put(&mut self.meta, "fence", fence),
            Op::PutSequence(next) => put(&mut self.meta, "sequence", next),
        }
    }
}

fn put<'k, K: Key + 'static, T: Serialize>(
    table: &mut Table<'_, K, Bytes>,
    key: impl std::borrow::Borrow<K::SelfType<'k>>,
    value: &T,
) -> Result<(), StoreError> {
    let bytes = codec::encode(value).map_err(|source| StoreError::Value {
        table: "(written)",
        source,
    })?;
    table
        .insert(key, bytes.as_slice())
        .map(drop)
        .map_err(redb_error)
}

fn delete<'k, K: Key + 'static>(
    table: &mut Table<'_, K, Bytes>,
    key: impl std::borrow::Borrow<K::SelfType<'k>>,
) -> Result<(), StoreError> {
    table.remove(key).map(drop).map_err(redb_error)
}

const META_NAME: &str = "meta";

fn get<T: DeserializeOwned>(
    table: &impl ReadableTable<&'static str, Bytes>,
    name: &'static str,
    key: &str,
) -> Result<Option<T>, StoreError> {
    let row = table.get(key).map_err(redb_error)?;
    let value = row.map(|row| codec::decode(row.value())).transpose();
    value.map_err(|source| StoreError::Value {
        table: name,
        source,
    })
}

/// All rows of a table in key order, each made of its key and value by `read`.
fn rows<const N: usize, T>(
    txn: &ReadTransaction,
    table: TableDefinition<'static, &'static [u8; N], Bytes>,
    name: &'static str,
    read: impl Fn(&[u8; N], &[u8]) -> Result<T, CodecError>,
) -> Result<Vec<T>, StoreError> {
    let table = txn.open_table(table).map_err(redb_error)?;
    let mut found = Vec::new();
    for row in table.iter().map_err(redb_error)? {
        let (key, value) = row.map_err(redb_error)?;
        let row = read(key.value(), value.value());
        found.push(row.map_err(|source| StoreError::Value {
            table: name,
            source,
        })?);
    }
    Ok(found)
}

fn read_records(txn: &ReadTransaction) -> Result<Records, StoreError> {
    let sandboxes = rows(txn, SANDBOXES, "sandboxes", |key, value| {
        let record: SandboxRecord = codec::decode(value)?;
        let same = record.id == codec::sandbox_id(key)?;
        same.then_some(record).ok_or(CodecError::KeyDiffers)
    })?;
    let claims = rows(txn, CLAIMS, "claims", |key, value| {
        let record: ClaimRecord = codec::decode(value)?;
        let same = record.id == codec::claim_id(*key);
        same.then_some(record).ok_or(CodecError::KeyDiffers)
    })?;
    let tombstones = rows(txn, TOMBSTONES, "tombstones", |key, value| {
        Ok((codec::claim_id(*key), codec::decode(value)?))
    })?;
    let meta = txn.open_table(META).map_err(redb_error)?;
    let pools = txn.open_table(POOLS).map_err(redb_error)?;
    Ok(Records {
        sandboxes,
        claims,
        tombstones,
        pools: get(&pools, "pools", "set")?.unwrap_or_default(),
        fence: get(&meta, META_NAME, "fence")?,
        next_sequence: get(&meta, META_NAME, "sequence")?.unwrap_or_default(),
    })
}
